//! Runs a problem on a device: builds its kernel, launches it, compares the outputs with the reference.

use crate::library::{Comparison, Problem, Value, Work};
use std::time::{Duration, Instant};
use zellige::capture_overlapped;
use zellige::runtime::{Arg, BuildTimes, LaunchError, ParamSpec, Sizes, Stream, bind};
use zellige_ir::Access;

/// What a run of a problem showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub build: BuildTimes,
    /// The fastest launch on a device whose time others take too, the median one elsewhere.
    pub time: Duration,
    pub work: Work,
    pub comparisons: Vec<Comparison>,
    /// Comparing with the reference, which is computed for it.
    pub verify: Duration,
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

/// Builds the kernel, launches it once and compares the outputs, then times `repeats` more launches.
///
/// # Errors
/// If an argument does not fit, the kernel cannot be built, or the device fails.
pub fn run(problem: &Problem, stream: &Stream, repeats: usize) -> Result<Outcome, LaunchError> {
    let args = arguments(problem);
    let build = problem.kernel.prepare(stream.device(), &args)?;
    let mut bound = problem.kernel.bind_args(stream, &args)?;
    let first = bound.time(1)?;
    bound.finish()?;
    // The tensors are free again: a verification may read them.
    drop(bound);
    // Now, not after the repeats: a kernel that updates its arguments in place moves on with every launch.
    let start = Instant::now();
    let comparisons = (problem.verify)(&problem.args);
    let verify = start.elapsed();
    let mut times = match repeats {
        0 => first,
        _ => problem.kernel.bind_args(stream, &args)?.time(repeats)?,
    };
    times.sort_unstable();
    let time = if stream.device().is_shared() { times[0] } else { times[times.len() / 2] };
    Ok(Outcome { build, time, work: problem.work, comparisons, verify })
}

/// Launches the problem's kernel once.
///
/// # Errors
/// If an argument does not fit, the kernel cannot be built, or the device fails.
pub fn launch(problem: &Problem, stream: &Stream) -> Result<(), LaunchError> {
    problem.kernel.launch_args(stream, &arguments(problem))
}

/// Launches the problem's kernel once, in its form for launches that overlap, and compares the outputs.
///
/// # Errors
/// As [`run`], and if the device has no such launches.
pub fn run_overlapped(problem: &Problem, stream: &Stream) -> Result<Vec<Comparison>, LaunchError> {
    let args = arguments(problem);
    let mut bound = capture_overlapped(stream, &[(&*problem.kernel, &args)])?;
    bound.run()?;
    bound.finish()?;
    drop(bound);
    Ok((problem.verify)(&problem.args))
}

/// The problem's arguments as its kernel takes them.
pub(crate) fn arguments(problem: &Problem) -> Vec<Arg<'_>> {
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
