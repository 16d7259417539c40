//! The kernel language of zellige.
//!
//! A kernel is a Rust function under [`#[kernel]`](macro@kernel). Rust checks its element types and ranks; running it
//! records tile IR, which checks every extent and reports all mistakes at once; a launcher of the same name
//! in camel case compiles and runs it.
//!
//! ```
//! use zellige::prelude::*;
//!
//! /// y = a x + y
//! #[kernel]
//! pub fn axpy(t: T, a: Expr<f32>, #[dims(n)] x: &Tensor<f32, 1>, #[dims(n)] y: &mut Tensor<f32, 1>) {
//!     let [b] = t.grid([x.dim(0).ceil_div(1024)], 128);
//!     for i in t.parallel(1024) {
//!         let at = b * 1024 + i;
//!         y[at] += a * x[at];
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = Device::cpu().stream();
//! let x = DeviceTensor::from_slice([3], &[1.0f32, 2.0, 3.0])?;
//! let mut y = DeviceTensor::from_slice([3], &[10.0f32, 20.0, 30.0])?;
//! Axpy::new().launch(&stream, 2.0, &x, &mut y)?;
//! assert_eq!(y.to_vec()?, [12.0, 24.0, 36.0]);
//! # Ok(())
//! # }
//! ```
//!
//! The body is ordinary Rust: helper functions, generics, closures, `if` and `for` over host values all run while
//! recording. Device loops (`t.parallel`, `t.serial`, `t.pipelined`, ..) yield their index once. `buf[i]` reads
//! where it stands; `buf[i] = v`, comparisons and statement-`if` on device values are recorded; a value that depends on a
//! device condition is [`select`]ed.
//!
//! Depends on `zellige-ir` and `zellige-runtime`; knows no particular kernel and no backend.

extern crate self as zellige;

mod buffer;
mod compare;
mod expr;
mod extents;
mod kernel;
mod loops;
pub mod random;
mod record;
mod tile;
mod tune;

pub use buffer::{At, Fragment, Local, Position, Shared, Subscript, Tensor, Tile, View};
pub use expr::{Bits, Expr, Idx, Var, lit, select};
pub use kernel::{Kernel, Key, capture, capture_overlapped};
pub use loops::{Extents, Loop};
pub use record::RecordError;
pub use tile::{Gemm, Grid, T, ceil_pow2};
pub use tune::{Tune, TuneError, TuneField, TuneValue};
pub use zellige_ir::element::{Element, Float, Int, Numeric, bf16, e8m0, f4e2m1, f8e4m3, f8e5m2, f16, index};
pub use zellige_ir::{GemmPrecision, ScanOp};
pub use zellige_macros::{Tune, kernel, tile};
pub use zellige_runtime as runtime;

/// The comparisons that `#[kernel]` writes for `<`, `<=`, `>`, `>=`, `==` and `!=`. Plain helper functions call them.
pub mod cmp {
    pub use crate::compare::{eq, ge, gt, le, lt, ne};
}

/// Everything a kernel and its caller need.
pub mod prelude {
    pub use crate::{
        Element, Expr, Float, Fragment, Gemm, Idx, Int, Kernel, Local, Numeric, RecordError, Shared, T, Tensor, Tile,
        Tune, Var, bf16, cmp, e8m0, f4e2m1, f8e4m3, f8e5m2, f16, index, kernel, lit, select, tile,
    };
    pub use zellige_runtime::{Device, DeviceTensor, DynTensor, LaunchError, Sizes, Stream};
}

/// What the code that `#[kernel]` generates refers to.
#[doc(hidden)]
pub mod __rt {
    pub use crate::buffer::{Named, StoreAt};
    pub use crate::compare::{Condition, Logic};
    pub use crate::kernel::{Binder, Key, ScalarParam, TensorParam, record};
    pub use crate::record::RecordError;
    pub use zellige_ir::{Access, Func};
    pub use zellige_runtime::{Arg, DimSpec, LaunchError, Signature, Sizes, Stream};

    /// `buf[at] = v`.
    #[track_caller]
    pub fn store<B: StoreAt<I>, I>(buf: &B, at: I, v: impl Into<crate::Expr<B::Element>>) {
        buf.store_at(at, v.into());
    }

    /// Tells a tile the name of the variable that it is bound to.
    #[track_caller]
    pub fn named<B: Named>(name: &str, tile: B) -> B {
        tile.set_name(name);
        tile
    }

    /// The place of the call, for the span of a kernel.
    #[track_caller]
    pub fn here() -> &'static std::panic::Location<'static> {
        std::panic::Location::caller()
    }
}
