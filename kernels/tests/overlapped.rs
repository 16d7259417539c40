//! Launches that may begin before the one ahead of them has ended: every kernel's code for them on the simulated GPU, which
//! faults an access of global memory that has not waited for that end.

use rayon::prelude::*;
use zellige::runtime::device::Recordings;
use zellige::runtime::sim::{FaultKind, Module, SimOptions};
use zellige::runtime::{Device, Stream};
use zellige_codegen::ptx::Arch;
use zellige_kernels::library::{Case, LibraryKernel, Scale, all, find};
use zellige_kernels::run::run_overlapped;

/// Problems of a kernel that launch something.
fn cases(kernel: &dyn LibraryKernel) -> impl Iterator<Item = Case> {
    kernel.cases(Scale::Small).into_iter().filter(|c| !c.name.contains("=0 "))
}

fn check(case: &Case, stream: &Stream) -> Result<(), String> {
    let problem = (case.build)(&[]).map_err(|e| e.to_string())?;
    let comparisons = run_overlapped(&problem, stream).map_err(|e| e.to_string())?;
    match comparisons.iter().find(|c| !c.verdict.pass) {
        Some(c) => Err(format!("{}: {}", c.output, c.verdict)),
        None => Ok(()),
    }
}

/// Checks two problems of every kernel.
fn check_library(device: &Device) {
    let failures: Vec<String> = all()
        .par_iter()
        .flat_map_iter(|kernel| {
            let (name, stream) = (kernel.info().name, device.stream());
            cases(*kernel)
                .take(2)
                .filter_map(move |case| check(&case, &stream).err().map(|e| format!("{name} {}: {e}", case.name)))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_kernel_waits_before_it_touches_memory() {
    check_library(&Device::sim());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_kernel_is_right_on_a_gpu() {
    check_library(&Device::cuda(0).expect("a GPU"));
}

#[test]
fn a_wait_that_is_not_there_is_missed() {
    for name in ["rmsnorm", "gemm", "group_count", "expand_to_fused"] {
        let recordings = Recordings::default();
        let stream = Device::sim_recording(Arch::Sm90a, recordings.clone()).stream();
        let kernel = find(name).expect("a kernel of the library");
        check(&cases(kernel).next().expect("a small problem"), &stream).unwrap_or_else(|e| panic!("{name}: {e}"));
        let recording = recordings.lock().expect("nobody panicked").pop().expect("a launch");
        for (wait, flagged) in [("griddepcontrol.wait;", true), ("griddepcontrol.launch_dependents;", false)] {
            assert_eq!(recording.ptx.matches(wait).count(), 1, "{name}: {wait}");
            let module = Module::parse(&recording.ptx.replace(wait, "")).expect("PTX still");
            let faults = recording.replay(&module, &SimOptions::default()).expect("it runs").report.faults;
            assert_eq!(faults.iter().any(|f| f.kind == FaultKind::LaunchOverlap), flagged, "{name}: {wait}");
        }
    }
}
