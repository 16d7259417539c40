//! The commands that concern the IR alone.

use super::{Command, Outcome, TestFile, inputs};
use zellige_ir::diagnostic::Renderer;
use zellige_ir::interp::{Arg, Interpreter};
use zellige_ir::{Diagnostic, Func, text, verify};

/// Commands on functions as they stand in the file.
pub const IR: &[(&str, Command)] = &[
    ("parse", parse),
    ("print", print),
    ("roundtrip", round_trip),
    ("report", report),
    ("verify", verify_all),
    ("run", run),
];

/// The functions, or the parser's errors.
pub(super) fn funcs(file: &TestFile) -> Result<Vec<Func>, Outcome> {
    file.funcs().map_err(|errors| Outcome {
        errors: errors
            .iter()
            .map(|e| {
                let help = e.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
                (e.span.line, format!("{}{help}", e.kind))
            })
            .collect(),
        ..Outcome::default()
    })
}

/// Reads the text; errors are the parser's.
fn parse(file: &TestFile) -> Outcome {
    funcs(file).err().unwrap_or_default()
}

/// Prints the canonical text of all functions, which must not change when it is read and printed again.
fn print(file: &TestFile) -> Outcome {
    let funcs = match funcs(file) {
        Ok(funcs) => funcs,
        Err(outcome) => return outcome,
    };
    let texts: Vec<String> = funcs.iter().map(Func::canonical_text).collect();
    let printed = texts.join("\n");
    let again = text::parse_funcs(&printed).map(|funcs| funcs.iter().map(Func::canonical_text).collect());
    let errors = if again == Ok(texts) { Vec::new() } else { vec![(0, format!("does not round trip: {again:?}"))] };
    Outcome { errors, printed: Some(printed.lines().map(str::to_owned).collect()), outputs: None }
}

/// Prints the functions, which must give the file's own text without comments, with and without spans.
fn round_trip(file: &TestFile) -> Outcome {
    let funcs = match funcs(file) {
        Ok(funcs) => funcs,
        Err(outcome) => return outcome,
    };
    let mut errors = Vec::new();
    let code = file.text.lines().map(|line| line.split_once(';').map_or(line, |(code, _)| code).trim_end());
    let code: Vec<&str> = code.filter(|line| !line.is_empty()).collect();
    let printed = funcs.iter().map(Func::canonical_text).collect::<String>();
    for (at, line) in printed.lines().enumerate() {
        if code.get(at) != Some(&line) {
            errors.push((0, format!("expected `{}`, found `{line}`", code.get(at).unwrap_or(&""))));
            break;
        }
    }
    for func in funcs {
        let spanned = func.to_text();
        match text::parse_func(&spanned) {
            Ok(again) if again.to_text() == spanned && again.canonical_text() == func.canonical_text() => {}
            other => errors.push((0, format!("`{}` changes with spans: {other:?}", func.name))),
        }
    }
    Outcome { errors, ..Outcome::default() }
}

/// Verifies the functions.
fn verify_all(file: &TestFile) -> Outcome {
    let funcs = match funcs(file) {
        Ok(funcs) => funcs,
        Err(outcome) => return outcome,
    };
    let violations = funcs.iter().filter_map(|f| verify(f).err()).flatten();
    Outcome { errors: violations.map(|e| (e.span.line, e.message)).collect(), ..Outcome::default() }
}

/// Prints what an author is shown for the file's errors, from the parser or the verifier.
fn report(file: &TestFile) -> Outcome {
    let diagnostics: Vec<Diagnostic> = match file.funcs() {
        Ok(funcs) => funcs.iter().filter_map(|f| verify(f).err()).flatten().map(|e| Diagnostic::from(&e)).collect(),
        Err(errors) => errors.iter().map(Diagnostic::from).collect(),
    };
    // Without the expectations, which the report could not contain.
    let code: Vec<&str> =
        file.text.lines().map(|line| line.split_once("; error:").map_or(line, |(code, _)| code.trim_end())).collect();
    let text = Renderer::plain().with_source(file.name(), code.join("\n")).render(&diagnostics);
    Outcome { printed: Some(text.lines().map(str::to_owned).collect()), ..Outcome::default() }
}

/// Runs the first function in the interpreter, in order and in several other orders of its parallel iterations.
fn run(file: &TestFile) -> Outcome {
    let funcs = match funcs(file) {
        Ok(funcs) => funcs,
        Err(outcome) => return outcome,
    };
    let outcome = verify_all(file);
    match funcs.first() {
        Some(func) if outcome.errors.is_empty() => run_func(file, func),
        _ => outcome,
    }
}

/// The file's runs of a verified function.
pub(super) fn run_func(file: &TestFile, func: &Func) -> Outcome {
    let mut outcome = Outcome::default();
    let mut outputs = Vec::new();
    for run in &file.runs {
        let args = match inputs::args(func, &run.inputs) {
            Ok(args) => args,
            Err(message) => {
                outcome.errors.push((run.line, message));
                outputs.push(run.outputs.clone());
                continue;
            }
        };
        let execute = |seed: Option<u64>| -> Result<Vec<Arg>, Vec<(u32, String)>> {
            let mut args = args.clone();
            let interpreter = Interpreter::new(func).fuel(10_000_000);
            let interpreter = seed.map_or(interpreter.clone(), |seed| interpreter.seed(seed));
            match interpreter.run(&mut args) {
                Ok(_) => Ok(args),
                Err(errors) => Err(errors.iter().map(|e| (e.span.line, e.kind.to_string())).collect()),
            }
        };
        match execute(None) {
            Ok(results) => {
                outputs.push(inputs::outputs(func, &results));
                if (0..3).any(|seed| execute(Some(seed)).as_ref() != Ok(&results)) {
                    outcome.errors.push((run.line, "the result depends on the order of iterations".to_owned()));
                }
            }
            Err(errors) => {
                outcome.errors.extend(errors);
                outputs.push(Vec::new());
            }
        }
    }
    outcome.outputs = Some(outputs);
    outcome
}
