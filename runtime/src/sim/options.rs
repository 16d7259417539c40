//! Launch dimensions and the switches of a simulation.

/// Grid, block and cluster sizes and the dynamic shared memory of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchDims {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads per block in x, y, z.
    pub block: [u32; 3],
    /// Blocks per cluster in x, y, z; `[1, 1, 1]` for none.
    pub cluster: [u32; 3],
    /// Bytes.
    pub dynamic_shared: u32,
}

impl LaunchDims {
    /// A one-dimensional launch without clusters or dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> LaunchDims {
        LaunchDims { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: [1, 1, 1], dynamic_shared: 0 }
    }

    /// The same launch with this much dynamic shared memory.
    pub fn with_shared(self, bytes: u32) -> LaunchDims {
        LaunchDims { dynamic_shared: bytes, ..self }
    }
}

/// What is checked and how warps are scheduled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimOptions {
    /// Report reads of bytes that nobody wrote.
    pub check_uninit: bool,
    /// Report data races in shared memory and missing async-proxy fences.
    pub check_shared_races: bool,
    /// Report data races in global memory, between blocks and within one. Runs the blocks one after another.
    pub check_global_races: bool,
    /// Report registers touched while a `wgmma` may still use them.
    pub check_wgmma: bool,
    /// Report lanes of one instruction that store to one place even if all store the same value, which does no harm.
    pub check_same_stores: bool,
    /// Count bank conflicts and memory sectors.
    pub count_accesses: bool,
    /// Interleave warps at random, from this seed; `None` runs each warp until it must wait.
    pub shuffle: Option<u64>,
    /// Warp instructions one block may execute before it counts as stuck.
    pub budget: u64,
    /// Distinct faults after which the launch stops.
    pub max_faults: usize,
    /// Streaming multiprocessors the device reports (`%nsmid`).
    pub sm_count: u32,
    /// Largest shared memory of a block in bytes.
    pub max_shared: u32,
    /// Run independent blocks on all cores when no check forbids it.
    pub parallel: bool,
}

impl Default for SimOptions {
    /// Every check on, deterministic order.
    fn default() -> SimOptions {
        SimOptions {
            check_uninit: true,
            check_shared_races: true,
            check_global_races: true,
            check_wgmma: true,
            check_same_stores: false,
            count_accesses: true,
            shuffle: None,
            budget: 50_000_000,
            max_faults: 32,
            sm_count: 132,
            max_shared: 232_448,
            parallel: true,
        }
    }
}

impl SimOptions {
    /// Only what costs nothing: bounds and alignment.
    pub fn fast() -> SimOptions {
        SimOptions {
            check_uninit: false,
            check_shared_races: false,
            check_global_races: false,
            check_wgmma: false,
            count_accesses: false,
            ..SimOptions::default()
        }
    }
}
