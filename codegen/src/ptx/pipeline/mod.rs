//! Resources and order of a SIMT kernel: how far loops run ahead, where shared objects lie in the arena, and where threads wait
//! for each other.

pub mod barrier;
pub mod depth;
mod meet;
pub mod shared;
mod sites;
mod threads;

pub use sites::scratch;
