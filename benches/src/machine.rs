//! Time on a machine that others use too, and results with a note of where they come from.

use serde::Serialize;
use std::process::Command;

/// The first line that a command prints, or that starts with `key`, without the key.
fn line(program: &str, args: &[&str], key: &str) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("unknown").trim().to_owned()
}

/// Writes results with the machine's name, the date and the compiler.
///
/// # Panics
/// If the file cannot be written: a bench without its result is of no use.
pub fn write(path: &str, command: &str, results: &impl Serialize) {
    let value = serde_json::json!({
        "command": command,
        "machine": {
            "cpu": line("lscpu", &[], "Model name:"),
            "cores": line("lscpu", &[], "CPU(s):"),
            "note": "a virtual machine shared with other builds: times are minima of several runs, ratios are of one run",
        },
        "date": line("date", &["+%Y-%m-%d"], ""),
        "rustc": line("rustc", &["--version"], ""),
        "results": results,
    });
    let text = serde_json::to_string_pretty(&value).expect("JSON has text");
    std::fs::write(path, text + "\n").unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Processor time of the calling thread in seconds: what others run meanwhile does not count.
pub fn thread_time() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a timespec to write to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    assert_eq!(failed, 0, "the system has no clock for a thread's time");
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
