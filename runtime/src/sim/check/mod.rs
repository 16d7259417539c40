//! Happens-before: vector clocks, the shadow of shared memory, and the shadow of global memory between blocks.
//!
//! Depends on nothing but the standard library, so that its rules can be tested by themselves.

pub mod clock;
pub mod global;
pub mod shadow;
