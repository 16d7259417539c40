//! The `zellige` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    end_with_the_reader();
    zellige_kernels::cli::main()
}

/// Lets the process end quietly when what reads its output does (`zellige list | head`). Rust programs ignore that signal
/// and then panic as they print.
#[cfg(unix)]
fn end_with_the_reader() {
    // SAFETY: sets a signal's default action, before there are other threads.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

#[cfg(not(unix))]
fn end_with_the_reader() {}
