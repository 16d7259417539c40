//! Immediate values and the bit-exact scalar semantics of the element types: number formats, casts, index
//! arithmetic and elementary functions.
//!
//! Everything that computes a value (the interpreter, constant folding, every backend) takes its meaning
//! from here, so that all of them agree to the last bit. Depends on [`crate::DType`] and the op names only.
//!
//! One thing is left open throughout: *which* NaN an operation returns. Compare results with "both are NaN".

mod cast;
mod constant;
mod index;
pub mod math;
pub mod minifloat;

pub use cast::{bitcast, cast};
pub use constant::{Const, ParseConstError};
pub use index::eval_index;
