//! Resources and order of a SIMT kernel: where shared objects lie in the arena, and where threads wait for each other.

pub mod barrier;
pub mod shared;
