//! Every kernel of the library on its small and edge shapes, against its reference.

use zellige::runtime::Device;
use zellige_kernels::library::{Scale, all};
use zellige_kernels::run::run;

/// Every kernel passes.
fn check(device: &Device) {
    let failures = failures(device);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs the small cases of every kernel on a device and returns what went wrong, led by the kernel's name.
fn failures(device: &Device) -> Vec<String> {
    let stream = device.stream();
    let mut failures = Vec::new();
    for kernel in all() {
        let name = kernel.info().name;
        for case in kernel.cases(Scale::Small) {
            let outcome = (case.build)(&[])
                .map_err(|e| e.to_string())
                .and_then(|p| run(&p, &stream, 0).map_err(|e| e.to_string()));
            match outcome {
                Err(e) => failures.push(format!("{name} {}: {e}", case.name)),
                Ok(o) => {
                    for c in o.comparisons.iter().filter(|c| !c.verdict.pass) {
                        failures.push(format!("{name} {}: {}: {}", case.name, c.output, c.verdict));
                    }
                }
            }
        }
    }
    failures
}

#[test]
fn the_interpreter_agrees_with_the_references() {
    check(&Device::interp());
}

#[test]
fn the_cpu_agrees_with_the_references() {
    check(&Device::cpu());
}

/// Kernels whose PTX the simulator finds a race in. An entry goes when its kernel passes: the test insists.
const RACY_ON_GPU: [&str; 1] = ["mhc_mix_norm"];

#[test]
fn the_simulated_gpu_agrees_with_the_references() {
    let (known, failures): (Vec<String>, Vec<String>) =
        failures(&Device::sim()).into_iter().partition(|f| RACY_ON_GPU.iter().any(|k| f.starts_with(&format!("{k} "))));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for kernel in RACY_ON_GPU {
        assert!(
            known.iter().any(|f| f.starts_with(&format!("{kernel} "))),
            "{kernel} passes now: take it off the list"
        );
    }
    assert!(known.iter().all(|f| f.contains("SharedRace")), "{}", known.join("\n"));
}
