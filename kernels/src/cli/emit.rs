//! `zellige emit`.

use super::{Passed, args, lookup};
use crate::library::Scale;
use crate::run::sizes;
use anyhow::{Result, anyhow};
use zellige_codegen::cpu::{self, CpuOptions, Stage};

pub fn run(args: &args::Emit) -> Result<Passed> {
    let entry = lookup::kernel(&args.kernel)?;
    let part = args.case.as_deref();
    let case = [Scale::Representative, Scale::Full, Scale::Small]
        .into_iter()
        .flat_map(|s| entry.cases(s))
        .find(|c| part.is_none_or(|part| c.name.contains(part)))
        .ok_or_else(|| {
            anyhow!("no problem of `{}` has a name that contains `{}`", args.kernel, part.unwrap_or_default())
        })?;
    let problem = (case.build)(&args.settings)?;
    let func = problem.kernel.record(&sizes(&problem)?)?;
    let emit = |stage| cpu::emit(&func, &CpuOptions::default(), stage);
    let text = match args.stage {
        args::StageArg::Tile => func.to_text(),
        args::StageArg::Loop => emit(Stage::Loop)?,
        args::StageArg::Clif => emit(Stage::Clif)?,
        args::StageArg::Asm => emit(Stage::Asm)?,
    };
    if args.json {
        let stage = format!("{:?}", args.stage).to_lowercase();
        let value = serde_json::json!({ "kernel": args.kernel, "case": case.name, "stage": stage, "text": text });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print!("{text}");
    }
    Ok(true)
}
