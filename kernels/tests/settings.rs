//! Settings that nobody means: refused with a reason, or else the kernel is right with them. Never a panic, never wrong numbers.

use rayon::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use zellige::TuneValue;
use zellige::runtime::{Arg, Device, DynTensor};
use zellige_codegen::ptx::{Arch, PtxOptions, alignable, compile};
use zellige_ir::{DType, Func};
use zellige_kernels::library::{Case, Dtypes, LibraryKernel, Problem, Scale, all, find};
use zellige_kernels::run::{run, sizes};

/// Nothing, next to nothing, what is no tile's extent, and more than there is.
const NUMBERS: [i64; 5] = [0, 1, 2, 3, 1000];

/// Every change of one field of a kernel's config, to one of these where it is a number.
fn changes(kernel: &dyn LibraryKernel, numbers: &[i64]) -> Vec<(String, TuneValue)> {
    let settings = kernel.settings();
    let mut changes = Vec::new();
    for field in settings.fields() {
        let values = match settings.get(field.name) {
            Some(TuneValue::Int(_)) => numbers.iter().copied().map(TuneValue::Int).collect(),
            Some(TuneValue::Bool(b)) => vec![TuneValue::Bool(b), TuneValue::Bool(!b)],
            None => Vec::new(),
        };
        changes.extend(values.into_iter().map(|value| (field.name.to_owned(), value)));
    }
    changes
}

/// Tries every change in the first cases of each kernel, `cases` at most; reports what panics and what `attempt` finds wrong.
fn check(cases: usize, numbers: &[i64], attempt: fn(&Problem) -> Result<(), String>) {
    let of_kernel = |kernel: &&dyn LibraryKernel| {
        let all: Vec<Case> = kernel.cases(Scale::Small).into_iter().filter(|c| !c.name.contains("=0 ")).collect();
        let mut wrong = Vec::new();
        for case in all.iter().take(cases) {
            for (field, value) in changes(*kernel, numbers) {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    (case.build)(&[(field.clone(), value)]).map_or(Ok(()), |problem| attempt(&problem))
                }));
                let what = match result {
                    Ok(Ok(())) => continue,
                    Ok(Err(what)) => what,
                    Err(_) => "a panic".to_owned(),
                };
                wrong.push(format!("{} {}: {field} = {value}: {what}", kernel.info().name, case.name));
            }
        }
        wrong
    };
    let wrong: Vec<String> = all().par_iter().flat_map(of_kernel).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The kernel's tile program, if its body does not refuse the problem.
fn recorded(problem: &Problem) -> Option<Func> {
    problem.kernel.record(&sizes(problem).ok()?).ok()
}

#[test]
fn every_setting_is_refused_or_recorded() {
    check(usize::MAX, &NUMBERS, |problem| {
        let _ = recorded(problem);
        Ok(())
    });
}

#[test]
fn tiles_of_one_element_are_refused_or_compiled() {
    check(1, &[1], |problem| {
        let Some(func) = recorded(problem) else { return Ok(()) };
        for arch in [Arch::Sm80, Arch::Sm90a] {
            // An error is an answer.
            let _ = compile(&func, &PtxOptions::new(arch).aligned(alignable(&func)));
        }
        Ok(())
    });
}

#[test]
fn every_setting_is_refused_or_right() {
    check(1, &NUMBERS, |problem| match run(problem, &Device::cpu().stream(), 0) {
        Err(_) => Ok(()),
        Ok(outcome) => match outcome.comparisons.iter().find(|c| !c.verdict.pass) {
            None => Ok(()),
            Some(c) => Err(format!("{}: {}", c.output, c.verdict)),
        },
    });
}

/// Tensors of the user's own pass no problem's check: the kernel refuses them itself.
#[test]
fn rows_that_do_not_split_into_groups_are_refused() {
    let tensor = |dtype, cols| DynTensor::zeros(dtype, &[2, cols]).expect("it is small");
    let (x, words, sf) = (tensor(DType::BF16, 96), tensor(DType::U32, 36), tensor(DType::F32, 1));
    let stream = Device::cpu().stream();
    let launch = |name: &str, args: &[Arg<'_>]| {
        let kernel = find(name).expect("it is of the library").instantiate(&[], &Dtypes::new()).expect("it suits bf16");
        kernel.launch_args(&stream, args).expect_err("96 columns are no groups of 128").to_string()
    };
    let cast = launch("per_token_cast_e5m6", &[Arg::Read(&x), Arg::Write(&words), Arg::Write(&sf)]);
    let back = launch("cast_back_e5m6", &[Arg::Read(&words), Arg::Read(&sf), Arg::Write(&x)]);
    for message in [cast, back] {
        assert!(message.contains("the rows are not a whole number of groups"), "{message}");
    }
}
