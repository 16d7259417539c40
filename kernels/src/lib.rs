//! The DeepSeek-V4 kernel library: kernels written in the zellige language, their references, and what the
//! command line and the tests need to know about them.
//!
//! A folder holds one family, a file one kernel: the config, the kernel, its [`library::LibraryKernel`] entry with
//! problems of known answers. [`mod@reference`] shares no code with the kernels. [`moe::layer`], [`moe::training`] and
//! [`mhc::layer`] run whole layers of kernels in one call.

pub mod attention;
mod choice;
pub mod cli;
mod dots;
pub mod engram;
pub mod gemm;
pub mod inputs;
pub mod library;
pub mod mhc;
pub mod moe;
pub mod norm;
pub mod optim;
pub mod quant;
pub mod reference;
pub mod run;
mod softmax;
pub mod vocab;
