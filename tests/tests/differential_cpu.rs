//! Random programs, and those of the filetests, as machine code against the interpreter, bit for bit.
//!
//! All sums of these programs are exact, so their order does not show, except in the sign of a zero: a sum of
//! negative zeros may come out as either. Of two NaN any counts as the other.

use proptest::prelude::*;
use std::path::Path;
use zellige_codegen::cpu::{CpuOptions, Stage, emit, run::run};
use zellige_ir::Const;
use zellige_ir::interp::{Arg, Interpreter};
use zellige_tests::filetest::{self, TestFile, inputs};
use zellige_tests::random::{Config, Program, plans};

fn configs() -> [Config; 3] {
    [Config::default(), Config::gpu(), Config { transcendental: true, ..Config::default() }]
}

fn same(x: Const, y: Const) -> bool {
    let float = x.dtype().is_float();
    x == y || (float && (x.as_f64() == y.as_f64() || x.as_f64().is_nan() && y.as_f64().is_nan()))
}

/// Where the tensors differ, if they do.
fn difference(want: &[Arg], got: &[Arg]) -> Option<String> {
    for (position, (w, g)) in want.iter().zip(got).enumerate() {
        let (Some(w), Some(g)) = (w.as_tensor(), g.as_tensor()) else { continue };
        for (i, (x, y)) in w.elements().into_iter().zip(g.elements()).enumerate() {
            // Memory that the interpreter saw nobody write holds what it held before.
            if !same(x, y) {
                return Some(format!("argument {position}, element {i}: the interpreter has {x}, machine code {y}"));
            }
        }
    }
    None
}

/// Runs a program both ways; says what is wrong.
fn check(program: &Program, opts: &CpuOptions) -> Result<(), String> {
    let (mut want, mut got) = (program.args.clone(), program.args.clone());
    Interpreter::new(&program.func).fuel(Program::FUEL).run(&mut want).map_err(|e| format!("interpreter: {e:?}"))?;
    run(&program.func, opts, &mut got).map_err(|e| format!("machine code: {e}"))?;
    match difference(&want, &got) {
        None => Ok(()),
        Some(d) => {
            let lowered = emit(&program.func, opts, Stage::Loop).unwrap_or_default();
            Err(format!("{d}\n{}\n{lowered}", program.func.canonical_text()))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn machine_code_does_what_the_interpreter_does(plan in plans(), which in 0..3usize, check_bounds: bool) {
        let program = plan.build(&configs()[which]);
        check(&program, &CpuOptions { check_bounds }).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn machine_code_runs_the_filetests() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests/run");
    let mut runs = 0;
    for path in filetest::files(&directory).expect("the directory is readable") {
        let file = TestFile::read(&path).expect("the file is readable");
        let funcs = file.funcs().expect("the file parses");
        // Runs that fail have no outputs.
        for run in file.runs.iter().filter(|run| !run.outputs.is_empty()) {
            let args = inputs::args(&funcs[0], &run.inputs).expect("the inputs fit");
            let program = Program { func: funcs[0].clone(), args };
            check(&program, &CpuOptions::default()).unwrap_or_else(|e| panic!("{}:{}: {e}", path.display(), run.line));
            runs += 1;
        }
    }
    assert!(runs >= 20, "{runs} runs");
}
