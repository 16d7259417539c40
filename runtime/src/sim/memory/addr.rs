//! The simulated virtual address space.
//!
//! Bits 34 and up name a region. Every global allocation has a region of its own, so an index that runs off its buffer
//! never lands in another one. Shared addresses are 32-bit: block rank in the cluster above bit 24, offset below.

/// log2 of a region's size.
pub const REGION_SHIFT: u32 = 34;
/// Generic window of shared memory.
pub const SHARED_WINDOW: u64 = 1 << REGION_SHIFT;
/// Generic window of a thread's local memory.
pub const LOCAL_WINDOW: u64 = 2 << REGION_SHIFT;
/// Kernel parameters.
pub const PARAM_WINDOW: u64 = 3 << REGION_SHIFT;
/// Module constants.
pub const CONST_WINDOW: u64 = 4 << REGION_SHIFT;
/// Module-level global variables.
pub const MODULE_WINDOW: u64 = 5 << REGION_SHIFT;
/// Region of the first allocation.
pub const FIRST_REGION: u64 = 8;
/// log2 of the distance between the shared memories of a cluster's blocks.
pub const RANK_SHIFT: u32 = 24;

/// The region an address belongs to.
pub fn region(addr: u64) -> u64 {
    addr >> REGION_SHIFT
}

/// The offset inside its region.
pub fn offset(addr: u64) -> u64 {
    addr & ((1 << REGION_SHIFT) - 1)
}
