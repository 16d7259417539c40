//! Runs a problem on a device: builds its kernel, launches it, compares the outputs with the reference.

use crate::library::{Comparison, Problem, Value, Work};
use std::time::{Duration, Instant};
use zellige::runtime::{Arg, BuildTimes, LaunchError, ParamSpec, Sizes, Stream, bind};
use zellige_ir::Access;

/// What a run of a problem showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub build: BuildTimes,
    /// The fastest of the launches after the first.
    pub time: Duration,
    pub work: Work,
    pub comparisons: Vec<Comparison>,
}

impl Outcome {
    /// Did every output pass?
    pub fn pass(&self) -> bool {
        self.comparisons.iter().all(|c| c.verdict.pass)
    }

    /// The comparison that used up most of its tolerance.
    pub fn worst(&self) -> Option<&Comparison> {
        self.comparisons.iter().max_by(|a, b| a.verdict.used.total_cmp(&b.verdict.used))
    }
}

/// Builds the kernel, launches it `1 + repeats` times and compares the outputs.
///
/// # Errors
/// If an argument does not fit, the kernel cannot be built, or the device fails.
pub fn run(problem: &Problem, stream: &Stream, repeats: usize) -> Result<Outcome, LaunchError> {
    let build = problem.kernel.prepare(stream.device(), &arguments(problem))?;
    let timed = || -> Result<Duration, LaunchError> {
        let start = Instant::now();
        launch(problem, stream)?;
        stream.synchronize()?;
        Ok(start.elapsed())
    };
    let first = timed()?;
    // Now, not after the repeats: a kernel that updates its arguments in place moves on with every launch.
    let comparisons = (problem.verify)(&problem.args);
    let mut time = if repeats == 0 { first } else { Duration::MAX };
    for _ in 0..repeats {
        time = time.min(timed()?);
    }
    Ok(Outcome { build, time, work: problem.work, comparisons })
}

/// Launches the problem's kernel once.
///
/// # Errors
/// If an argument does not fit, the kernel cannot be built, or the device fails.
pub fn launch(problem: &Problem, stream: &Stream) -> Result<(), LaunchError> {
    problem.kernel.launch_args(stream, &arguments(problem))
}

fn arguments(problem: &Problem) -> Vec<Arg<'_>> {
    let signature = problem.kernel.signature();
    let written = |i: usize| matches!(signature.params.get(i), Some(ParamSpec::Tensor(t)) if t.access == Access::Write);
    problem
        .args
        .iter()
        .enumerate()
        .map(|(i, value)| match value {
            Value::Scalar(c) => Arg::Scalar(*c),
            Value::Tensor(t) if written(i) => Arg::Write(t),
            Value::Tensor(t) => Arg::Read(t),
        })
        .collect()
}

/// The extents of the dims in a problem.
///
/// # Errors
/// If the problem's own arguments disagree.
pub fn sizes(problem: &Problem) -> Result<Sizes, LaunchError> {
    bind(&problem.kernel.signature(), &arguments(problem))
}
