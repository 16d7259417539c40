//! Runs mutants on the simulated GPU.

use super::mutate::{Aim, Mutation, mutations};
use std::sync::PoisonError;
use zellige::TuneValue;
use zellige_codegen::ptx::Arch;
use zellige_kernels::library::{Case, LibraryKernel};
use zellige_kernels::run::launch;
use zellige_runtime::Device;
use zellige_runtime::device::Recordings;
use zellige_runtime::sim::{FaultKind, Module, Recording, Replay, SimOptions};

/// Orders of execution in which a mutant of the order is given a chance to go wrong, besides the plain one.
const SHUFFLES: [u64; 2] = [1, 2];

/// A text, and launches in which it ran.
pub struct Subject {
    pub kernel: &'static str,
    pub arch: Arch,
    /// The problems that it ran in.
    pub cases: Vec<String>,
    runs: Vec<(Recording, Replay)>,
}

impl Subject {
    /// The unchanged text.
    pub fn ptx(&self) -> &str {
        &self.runs[0].0.ptx
    }

    /// Its mutations.
    pub fn mutations(&self) -> Vec<Mutation> {
        mutations(self.ptx())
    }
}

/// What becomes of a mutant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// The simulator reports a fault.
    Flagged(FaultKind),
    /// No fault, other results.
    Noticed,
    /// The launches do not exercise it: the instruction is never executed, or the predicate holds for every thread, so that the
    /// mutant executes the very same instructions.
    Idle,
    /// Nobody sees a difference.
    Survives,
}

/// Stops at the first fault. Two lanes that store the same value to one place do no harm, but a predicate keeps them from it.
fn strict() -> SimOptions {
    SimOptions { max_faults: 1, check_same_stores: true, ..SimOptions::default() }
}

/// Compiles a kernel with changed `settings` for a level of features and runs its problems; one subject for each distinct text.
///
/// # Errors
/// If a problem cannot be built or does not run cleanly.
pub fn subjects(
    kernel: &dyn LibraryKernel,
    cases: Vec<Case>,
    settings: &[(String, TuneValue)],
    arch: Arch,
) -> Result<Vec<Subject>, String> {
    let name = kernel.info().name;
    let recordings = Recordings::default();
    let stream = Device::sim_recording(arch, recordings.clone()).stream();
    let mut found: Vec<Subject> = Vec::new();
    for case in cases {
        let at = |e: &dyn std::fmt::Display| format!("{name} {} for {arch}: {e}", case.name);
        let problem = (case.build)(settings).map_err(|e| at(&e))?;
        match launch(&problem, &stream) {
            Ok(()) => {}
            // Tiles chosen for the newest level need not fit the older ones.
            Err(e) if arch != Arch::Sm90a && e.to_string().contains("bytes of shared memory") => continue,
            Err(e) => return Err(at(&e)),
        }
        for recording in std::mem::take(&mut *recordings.lock().unwrap_or_else(PoisonError::into_inner)) {
            let module = Module::parse(&recording.ptx).map_err(|e| at(&e))?;
            let replay = recording.replay(&module, &strict()).map_err(|e| at(&e))?;
            if let Some(f) = replay.report.faults.first() {
                return Err(at(f));
            }
            match found.iter_mut().find(|s| s.ptx() == recording.ptx) {
                Some(s) => {
                    s.cases.push(case.name.clone());
                    s.runs.push((recording, replay));
                }
                None => found.push(Subject {
                    kernel: name,
                    arch,
                    cases: vec![case.name.clone()],
                    runs: vec![(recording, replay)],
                }),
            }
        }
    }
    for s in &mut found {
        // The cheapest launch that shows the difference is enough.
        s.runs.sort_by_key(|(_, r)| r.report.stats.warp_instructions);
    }
    Ok(found)
}

/// Runs a mutant in every launch of its text until something shows.
///
/// # Errors
/// If the mutant is not PTX: a mistake of the mutation.
pub fn judge(subject: &Subject, mutation: &Mutation) -> Result<Verdict, String> {
    let executed = |r: &Replay| r.report.stats.executed.iter().any(|(line, _)| *line as usize == mutation.line);
    if !subject.runs.iter().any(|(_, want)| executed(want)) {
        return Ok(Verdict::Idle);
    }
    let module = Module::parse(&mutation.apply(subject.ptx())).map_err(|e| format!("{}: {e}", mutation.what))?;
    let mut idle = true;
    let mut noticed = false;
    let mut orders = vec![None];
    if mutation.aim == Aim::Order {
        orders.extend(SHUFFLES.map(Some));
    }
    for shuffle in orders {
        for (recording, want) in &subject.runs {
            let options = SimOptions {
                shuffle,
                // A mutant that runs much longer does not end.
                budget: 4 * want.report.stats.warp_instructions + 10_000,
                ..strict()
            };
            let got = recording.replay(&module, &options).map_err(|e| format!("{}: {e}", mutation.what))?;
            if let Some(f) = got.report.faults.first() {
                return Ok(Verdict::Flagged(f.kind));
            }
            noticed |= got.memory != want.memory;
            idle &= got.report.stats.thread_instructions == want.report.stats.thread_instructions;
        }
        if noticed {
            return Ok(Verdict::Noticed);
        }
    }
    Ok(if idle && mutation.aim == Aim::Predicate { Verdict::Idle } else { Verdict::Survives })
}
