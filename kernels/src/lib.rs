//! DeepSeek-V4 kernels written in zellige, and the references they are checked against.

pub mod reference;
