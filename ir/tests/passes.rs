//! Passes must not change what a function computes, and must leave it valid.

mod support;

use zellige_ir::interp::{Arg, Interpreter};
use zellige_ir::passes::pipeline::{self, Pass};
use zellige_ir::verify::verify;
use zellige_ir::*;

/// Cases of each test. They are deterministic: a seed that fails fails again.
const CASES: u64 = 3000;

/// Results of a run, or `None` if it fails.
fn results(func: &Func, args: &[Arg]) -> Option<Vec<Arg>> {
    let mut args = args.to_vec();
    Interpreter::new(func).fuel(2_000_000).run(&mut args).ok()?;
    Some(args)
}

fn check_passes(passes: &[Pass]) {
    let (mut compared, mut applied) = (0, 0);
    for seed in 0..CASES {
        let case = support::case(seed);
        verify(&case.func).unwrap_or_else(|e| panic!("seed {seed}: {e:?}\n{}", case.func.canonical_text()));
        let Some(before) = results(&case.func, &case.args) else { continue };
        let mut func = case.func.clone();
        pipeline::run_with(&mut func, passes, &mut |_, _, stats| applied += stats.total());
        if let Err(errors) = verify(&func) {
            panic!(
                "seed {seed}: {errors:?}\nbefore:\n{}\nafter:\n{}",
                case.func.canonical_text(),
                func.canonical_text()
            );
        }
        let mut after = case.args.clone();
        let run = Interpreter::new(&func).fuel(2_000_000).run(&mut after);
        if run.is_err() || after != before {
            panic!(
                "seed {seed} changes: {run:?}\nbefore:\n{}\nafter:\n{}",
                case.func.canonical_text(),
                func.canonical_text()
            );
        }
        compared += 1;
    }
    assert!(compared > CASES / 2, "only {compared} of {CASES} functions ran");
    assert!(applied > CASES as usize, "only {applied} rewrites in {CASES} functions");
}

#[test]
fn simplify_keeps_results() {
    check_passes(&[pipeline::find("simplify").unwrap()]);
}

#[test]
fn licm_keeps_results() {
    check_passes(&[pipeline::find("licm").unwrap()]);
}

#[test]
fn the_pipeline_keeps_results() {
    check_passes(pipeline::PIPELINE);
}

#[test]
fn the_pipeline_reaches_a_fixed_point() {
    for seed in 0..300 {
        let mut func = support::case(seed).func;
        pipeline::run(&mut func);
        let text = func.canonical_text();
        let stats = passes::simplify::run(&mut func);
        assert_eq!((stats.to_string(), func.canonical_text()), (String::new(), text), "seed {seed}");
    }
}
