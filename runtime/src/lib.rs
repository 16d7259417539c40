//! Devices, tensors, launcher and JIT cache of zellige.
//!
//! Depends on `zellige-ir` and `zellige-codegen`; knows no particular kernel.

pub mod tensor;

pub use tensor::{DeviceTensor, DynTensor, TensorError};
