//! Host tensors: aligned, reference-counted storage under strided views.
//!
//! [`DynTensor`] knows its element type and rank at run time, [`DeviceTensor`] at compile time; the second is a
//! checked wrapper of the first.
//!
//! # Sharing
//! Views share storage, so `&mut` on a view proves nothing about the bytes. Instead each storage carries a run-time
//! borrow, as a `RefCell` does: any number of readers or one writer. Whoever touches bytes takes a [`Hold`] first
//! (all methods here do so by themselves, for as long as the call or the returned guard lives); a conflict is
//! [`TensorError::Borrowed`], never a wait and never undefined behaviour.
//!
//! # Packed elements
//! `f4e2m1` puts two elements in a byte along the last dimension. A tensor of it keeps that dimension innermost
//! (stride 1) and even, and its offset and other strides even; views that would break this are refused.
//!
//! Depends on `zellige-ir` for element types and constants.

mod access;
mod bulk;
mod create;
mod dyn_tensor;
mod error;
mod layout;
mod storage;
mod typed;
mod view;

pub(crate) use create::check_bools;
pub(crate) use layout::size;

pub use access::{ReadGuard, Slice, SliceMut, WriteGuard};
pub use dyn_tensor::DynTensor;
pub use error::TensorError;
pub use storage::{Hold, Mode};
pub use typed::DeviceTensor;
