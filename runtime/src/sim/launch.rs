//! Launching a kernel: checks of the request, then cluster after cluster.

use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::check::global::GlobalShadow;
use super::decode::{Kernel, SHARED_BASE};
use super::error::SimError;
use super::exec::state::{Cluster, Env};
use super::fault::{Fault, FaultLog};
use super::memory::{Allocation, Memory, NEXT_GRID, addr};
use super::options::{LaunchDims, SimOptions};
use super::stats::{Counters, Stats};
use super::{Module, decode};

/// What a launch did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Distinct faults, in the order they were found; empty for a clean run.
    pub faults: Vec<Fault>,
    pub stats: Stats,
}

impl Report {
    /// All faults as text.
    pub fn describe(&self) -> String {
        self.faults.iter().map(|f| format!("{f}\n")).collect()
    }
}

/// Runs `kernel` of `module`. `params` is the parameter block as [`Kernel::params`] lays it out. Module-level `.global`
/// variables start from their initial values at every launch.
///
/// # Errors
/// The kernel does not exist, the parameters have the wrong size, or the dimensions cannot be launched. What the kernel does
/// wrong while running is in the report.
pub fn launch(
    module: &Module,
    kernel: &str,
    dims: LaunchDims,
    params: &[u8],
    memory: &mut Memory,
    options: &SimOptions,
) -> Result<Report, SimError> {
    let k = module.kernel(kernel)?;
    let shared_bytes = check(k, &dims, params, options)?;
    let globals = module_globals(&module.image);
    let env = Env {
        kernel: k,
        memory,
        globals: &globals,
        consts: &module.image.consts,
        params,
        options,
        dims,
        grid_id: NEXT_GRID.fetch_add(1, Ordering::Relaxed),
        shared_bytes,
    };
    let clusters: u64 = (0..3).map(|d| u64::from(dims.grid[d] / dims.cluster[d])).product();
    let parallel = options.parallel && !options.check_global_races && !k.global_atomics && clusters > 1;
    let (faults, counters) = if parallel { run_parallel(env, clusters) } else { run_serial(env, clusters) };
    Ok(Report { faults: faults.into_faults(), stats: counters.finish(k) })
}

fn run_serial(env: Env<'_>, clusters: u64) -> (FaultLog, Counters) {
    let global = env.options.check_global_races.then(GlobalShadow::default);
    let mut c = Cluster::new(env, global);
    for which in 0..clusters {
        c.place(which);
        c.run();
        if c.stop.is_some() {
            break;
        }
    }
    (c.faults, c.counters)
}

fn run_parallel(env: Env<'_>, clusters: u64) -> (FaultLog, Counters) {
    // Contiguous ranges keep the printed output in block order.
    let parts = (rayon::current_num_threads() as u64 * 4).min(clusters);
    let runs: Vec<_> = (0..parts)
        .into_par_iter()
        .map(|p| {
            let mut c = Cluster::new(env, None);
            for which in clusters * p / parts..clusters * (p + 1) / parts {
                c.place(which);
                c.run();
                if c.stop.is_some() {
                    break;
                }
            }
            (c.faults, c.counters)
        })
        .collect();
    let mut faults = FaultLog::default();
    let mut counters = Counters::new(env.kernel.code.len());
    for (f, n) in runs {
        faults.merge(f);
        counters.merge(n);
    }
    (faults, counters)
}

fn module_globals(image: &decode::Image) -> Allocation {
    let a = Allocation::new("module variables", addr::MODULE_WINDOW, image.globals.len() as u64);
    for (at, b) in image.globals.iter().enumerate().filter(|(at, _)| image.globals_set[*at]) {
        a.store(at as u64, 1, u128::from(*b));
    }
    a
}

/// Checks the launch as the driver would; returns the shared bytes of a block.
fn check(k: &Kernel, d: &LaunchDims, params: &[u8], options: &SimOptions) -> Result<u32, SimError> {
    let fail = |message: String| Err(SimError::Launch { kernel: k.name.clone(), message });
    if params.len() != k.param_bytes {
        return Err(SimError::Params { kernel: k.name.clone(), expected: k.param_bytes, got: params.len() });
    }
    for axis in 0..3 {
        let (g, c) = (d.grid[axis], d.cluster[axis]);
        if g == 0 || d.block[axis] == 0 || c == 0 {
            return fail(format!(
                "grid {:?}, block {:?}, cluster {:?}: no dimension may be 0",
                d.grid, d.block, d.cluster
            ));
        }
        if g % c != 0 {
            return fail(format!("grid {:?} is not a multiple of cluster {:?}", d.grid, d.cluster));
        }
        if axis > 0 && g > 65_535 {
            return fail(format!("grid {:?}: y and z are at most 65535", d.grid));
        }
    }
    let threads: u64 = d.block.iter().map(|b| u64::from(*b)).product();
    if threads > 1024 || d.block[2] > 64 {
        return fail(format!("block {:?} has {threads} threads: at most 1024, z at most 64", d.block));
    }
    if let Some(r) = k.required_threads
        && r != d.block
    {
        return fail(format!("block {:?}, but the kernel requires .reqntid {r:?}", d.block));
    }
    if let Some(m) = k.max_threads {
        let most: u64 = m.iter().map(|v| u64::from(*v)).product();
        if threads > most {
            return fail(format!("{threads} threads, but the kernel allows .maxntid {most}"));
        }
    }
    if let Some(r) = k.required_cluster
        && r != d.cluster
    {
        return fail(format!("cluster {:?}, but the kernel requires .reqnctapercluster {r:?}", d.cluster));
    }
    let blocks: u64 = d.cluster.iter().map(|c| u64::from(*c)).product();
    if blocks > 16 {
        return fail(format!("cluster {:?} has {blocks} blocks: at most 16", d.cluster));
    }
    let static_bytes = k.shared_static - SHARED_BASE;
    if static_bytes > 49_152 {
        return fail(format!("{static_bytes} bytes of static shared memory: at most 49152, the rest must be dynamic"));
    }
    let total = if d.dynamic_shared > 0 { k.shared_dynamic - SHARED_BASE + d.dynamic_shared } else { static_bytes };
    if total > options.max_shared {
        return fail(format!("{total} bytes of shared memory, the device has {}", options.max_shared));
    }
    Ok(total)
}
