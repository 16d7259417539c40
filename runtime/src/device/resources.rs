//! What a compiled kernel takes of a GPU.

use serde::Serialize;

/// Registers, memory and occupancy of a kernel, as the device's driver tells them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Resources {
    /// Registers of a thread, 32 bits each.
    pub registers: u32,
    /// Bytes of memory of its own that a thread uses: spilled registers and local arrays.
    pub local_bytes: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor runs at a time.
    pub blocks_per_sm: u32,
    /// The share of a multiprocessor's warps that these blocks fill, 0 to 1.
    pub occupancy: f64,
}
