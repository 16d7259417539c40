//! Lowerings of tile IR to machines. This crate launches nothing.

pub mod cpu;
pub mod ptx;
