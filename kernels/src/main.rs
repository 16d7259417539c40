//! The `zellige` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    zellige_kernels::cli::main()
}
