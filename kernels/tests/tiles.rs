//! The tiles of V4's sizes on small problems, on the simulated GPU: what small tiles do not show, such as rings that share bytes
//! with other tiles or products in many steps, under the simulator's checks.

use rayon::prelude::*;
use std::collections::BTreeSet;
use zellige::TuneValue;
use zellige::runtime::Device;
use zellige::runtime::device::Recordings;
use zellige_codegen::ptx::Arch;
use zellige_kernels::library::{Case, LibraryKernel, Scale, all};
use zellige_kernels::run::run;

/// Small problems that each config is tried on.
const PROBLEMS: usize = 4;

type Config = Vec<(String, TuneValue)>;

/// The distinct configs of a kernel's problems of V4's sizes.
fn configs(kernel: &dyn LibraryKernel) -> Vec<Config> {
    let mut seen = BTreeSet::new();
    let cases = [Scale::Representative, Scale::Full].into_iter().flat_map(|scale| kernel.cases(scale));
    let configs = cases.map(|case| {
        let fields = case.config.fields();
        fields.iter().filter_map(|f| Some((f.name.to_owned(), case.config.get(f.name)?))).collect::<Config>()
    });
    configs.filter(|config| seen.insert(format!("{config:?}"))).collect()
}

/// Some of the small problems that a config fits, from the first to the last.
fn fitting(kernel: &dyn LibraryKernel, config: &Config) -> Vec<Case> {
    let cases = kernel.cases(Scale::Small).into_iter().filter(|c| !c.name.contains("=0 "));
    let fits: Vec<Case> = cases.filter(|case| (case.build)(config).is_ok()).collect();
    let last = fits.len().saturating_sub(1);
    let chosen: BTreeSet<usize> = (0..PROBLEMS).map(|i| i * last / (PROBLEMS - 1)).collect();
    fits.into_iter().enumerate().filter(|(i, _)| chosen.contains(i)).map(|(_, case)| case).collect()
}

fn check(case: &Case, config: &Config, device: &Device) -> Result<(), String> {
    let problem = (case.build)(config).map_err(|e| e.to_string())?;
    match run(&problem, &device.stream(), 0) {
        // Tiles chosen for the newest level need not fit the older ones.
        Err(e) if e.to_string().contains("bytes of shared memory") => Ok(()),
        Err(e) => Err(e.to_string()),
        Ok(o) => match o.comparisons.iter().find(|c| !c.verdict.pass) {
            Some(c) => Err(format!("{}: {}", c.output, c.verdict)),
            None => Ok(()),
        },
    }
}

fn check_level(arch: Arch) {
    let failures: Vec<String> = all()
        .par_iter()
        .flat_map_iter(|kernel| {
            let name = kernel.info().name;
            let device = Device::sim_recording(arch, Recordings::default());
            let mut failures = Vec::new();
            let mut tried = 0;
            for config in configs(*kernel) {
                for case in fitting(*kernel, &config) {
                    tried += 1;
                    if let Err(e) = check(&case, &config, &device) {
                        failures.push(format!("{name} {} with {config:?}: {e}", case.name));
                    }
                }
            }
            if tried == 0 {
                failures.push(format!("{name}: no small problem takes a config of V4's sizes"));
            }
            failures
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn on_hopper() {
    check_level(Arch::Sm90a);
}

#[test]
fn on_ampere() {
    check_level(Arch::Sm80);
}
