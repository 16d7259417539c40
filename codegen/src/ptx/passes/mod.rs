//! Passes over SIMT IR.
//!
//! Constant folding, common subexpressions, loop-invariant code and strength reduction are taken care of while ops are
//! appended ([`super::simt::Builder`]), and loops are unrolled while they are lowered; what is left is to join
//! accesses and waits that stand apart, and to remove what turned out not to be needed.

pub mod combine;
pub mod dce;
pub mod overlap;
pub mod waits;
