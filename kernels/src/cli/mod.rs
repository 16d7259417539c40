//! The command line: arguments, dispatch, and how errors reach the user. One file a command.

mod args;
mod bench;
mod cache;
mod check;
mod describe;
mod emit;
mod layout;
mod list;
mod lookup;
mod page;
mod run;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;

/// A command's result: did everything pass?
type Passed = bool;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = args::Cli::parse();
    let result = match args.command {
        None => check::run(&args::Check { json: args.json, ..args::Check::default() }),
        Some(args::Command::List(a)) => list::run(&a),
        Some(args::Command::Check(a)) => check::run(&a),
        Some(args::Command::Bench(a)) => bench::run(a),
        Some(args::Command::Describe(a)) => describe::run(&a),
        Some(args::Command::Run(a)) => run::run(&a),
        Some(args::Command::Emit(a)) => emit::run(&a),
        Some(args::Command::Layout(a)) => layout::run(&a),
        Some(args::Command::Cache(a)) => cache::run(&a),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("zellige: {}", one_line(&e));
            ExitCode::from(2)
        }
    }
}

/// A bar on the error output that counts `problems`.
fn progress(problems: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}").expect("a valid template");
    ProgressBar::new(problems as u64).with_style(style)
}

/// The error and its causes, each said once.
fn one_line(e: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in e.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
