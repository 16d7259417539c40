//! From arguments to a running kernel: signatures, their check, and errors. Knows no backend.

mod arg;
mod error;
mod signature;

pub(crate) use arg::hold;
pub use arg::{Arg, bind};
pub use error::LaunchError;
pub use signature::{DimSpec, ParamSpec, Signature, Sizes, TensorSpec};

use zellige_ir::Func;

/// A kernel that can be recorded for given extents of its static dims.
pub struct Recordable<'a> {
    /// Identity of the kernel, its type arguments and its compile-time parameters.
    pub key: &'a str,
    pub signature: &'a Signature,
    pub record: &'a dyn Fn(&Sizes) -> Result<Func, LaunchError>,
}
