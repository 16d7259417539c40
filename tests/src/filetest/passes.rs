//! The commands that run passes.

use super::commands::{funcs, run_func};
use super::{Command, Outcome, TestFile};
use zellige_ir::passes::pipeline::{self, PIPELINE, Pass};
use zellige_ir::{Func, verify};

/// Each pass by its name, and the whole pipeline. A command prints all functions after the pass and runs the first one
/// before and after it: the runs must leave the same.
pub const PASSES: &[(&str, Command)] = &[
    ("simplify", |file| single(file, "simplify")),
    ("licm", |file| single(file, "licm")),
    ("roll", |file| single(file, "roll")),
    ("forward", |file| single(file, "forward")),
    ("pipeline", |file| apply(file, PIPELINE)),
];

fn single(file: &TestFile, name: &str) -> Outcome {
    match pipeline::find(name) {
        Some(pass) => apply(file, &[pass]),
        None => Outcome { errors: vec![(0, format!("there is no pass {name}"))], ..Outcome::default() },
    }
}

fn apply(file: &TestFile, passes: &[Pass]) -> Outcome {
    let before = match funcs(file) {
        Ok(funcs) => funcs,
        Err(outcome) => return outcome,
    };
    let mut outcome = Outcome::default();
    let violations = |funcs: &[Func]| -> Vec<(u32, String)> {
        funcs.iter().filter_map(|f| verify(f).err()).flatten().map(|e| (e.span.line, e.message)).collect()
    };
    outcome.errors = violations(&before);
    if !outcome.errors.is_empty() {
        return outcome;
    }
    let mut after = before.clone();
    for func in &mut after {
        pipeline::run_with(func, passes, &mut |_, _, _| {});
    }
    outcome.errors = violations(&after);
    if let (Some(before), Some(after)) = (before.first(), after.first())
        && !file.runs.is_empty()
    {
        let (expected, found) = (run_func(file, before), run_func(file, after));
        if expected.outputs != found.outputs {
            outcome.errors.push((0, format!("the passes change the results: {:?}", expected.outputs)));
        }
        outcome.errors.extend(found.errors);
        outcome.outputs = found.outputs;
    }
    let text: Vec<String> = after.iter().map(Func::canonical_text).collect();
    outcome.printed = Some(text.join("\n").lines().map(str::to_owned).collect());
    outcome
}
