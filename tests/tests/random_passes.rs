//! Passes on random tile programs: valid before, valid after, and the same results to the last bit.

use proptest::prelude::*;
use zellige_ir::interp::{Arg, Interpreter};
use zellige_ir::passes::pipeline::{self, PIPELINE, Pass};
use zellige_ir::{Func, verify};
use zellige_tests::random::{Config, Program, plans};

fn results(func: &Func, args: &[Arg]) -> Result<Vec<Arg>, String> {
    let mut args = args.to_vec();
    match Interpreter::new(func).fuel(Program::FUEL).run(&mut args) {
        Ok(_) => Ok(args),
        Err(errors) => Err(format!("{errors:?}")),
    }
}

fn check(program: &Program, passes: &[Pass]) -> Result<(), TestCaseError> {
    let Program { func, args } = program;
    let mut after = func.clone();
    pipeline::run_with(&mut after, passes, &mut |_, _, _| {});
    let texts = || format!("before:\n{}\nafter:\n{}", func.canonical_text(), after.canonical_text());
    prop_assert_eq!(verify(&after), Ok(()), "{}", texts());
    let (expected, found) = (results(func, args), results(&after, args));
    prop_assert!(expected.is_ok(), "{expected:?}");
    prop_assert_eq!(expected, found, "{}", texts());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_pipeline_keeps_results(plan in plans(), gpu: bool) {
        check(&plan.build(&if gpu { Config::gpu() } else { Config::default() }), PIPELINE)?;
    }

    #[test]
    fn each_pass_keeps_results(plan in plans(), which in 0..pipeline::ALL.len()) {
        check(&plan.build(&Config { transcendental: true, ..Config::default() }), &[pipeline::ALL[which]])?;
    }
}

#[test]
fn a_thousand_seeds() {
    for seed in 0..1000 {
        check(&Program::from_seed(seed, &Config::default()), PIPELINE).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}
