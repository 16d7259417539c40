//! What is known about index arithmetic before a kernel runs.
//!
//! - [`affine`]: sums of `coefficient * value` and floor divisions, in a normal form;
//! - [`interval`]: closed intervals of integers;
//! - [`range`]: intervals, divisors and affine forms of all integer values of a function;
//! - [`facts`]: inequalities that hold at an op, and proofs with them;
//! - [`effects`]: which buffers an op reads and writes;
//! - [`unwritten`]: reads of tiles that nothing can have written;
//! - [`access`]: questions about buffer accesses: in bounds? disjoint? contiguous along a loop?
//!
//! `index` arithmetic never overflows (that is an error), so all reasoning is over the integers. Everything here
//! errs on the safe side: an unproved answer is "no". Depends on the IR only.

pub mod access;
pub mod affine;
pub mod effects;
pub mod facts;
pub mod interval;
pub mod range;
pub mod unwritten;

pub use affine::{Affine, Term};
pub use facts::Facts;
pub use interval::Interval;
pub use range::Ranges;
pub use unwritten::unwritten_reads;
