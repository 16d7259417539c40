//! Happens-before: vector clocks, the shadow of shared memory, and those of global memory between blocks and within one.
//!
//! Depends on nothing but the standard library, so that its rules can be tested by themselves.

pub mod clock;
pub mod global;
pub mod shadow;
pub mod within;
