//! Runs kernels: tensors, devices, launches, and the caches of compiled code.
//!
//! Depends on `zellige-ir` and `zellige-codegen`; knows no particular kernel.

pub mod cache;
pub mod device;
pub mod io;
pub mod launch;
pub mod sim;
pub mod tensor;

pub use device::{BoundLaunch, BuildTimes, Device, Resources, Stream};
pub use launch::{Arg, DimSpec, LaunchError, ParamSpec, Recordable, Signature, Sizes, TensorSpec, bind};
pub use tensor::{DeviceTensor, DynTensor, TensorError};
