//! Every kernel of the library on its small and edge shapes, against its reference.

use zellige::runtime::Device;
use zellige_kernels::library::{Scale, all};
use zellige_kernels::run::run;

/// Runs the small cases of every kernel on a device and reports all failures together.
fn check(device: &Device) {
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
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_interpreter_agrees_with_the_references() {
    check(&Device::interp());
}

#[test]
fn the_cpu_agrees_with_the_references() {
    check(&Device::cpu());
}

#[test]
fn the_simulated_gpu_agrees_with_the_references() {
    check(&Device::sim());
}
