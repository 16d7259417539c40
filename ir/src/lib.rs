//! The tile IR of zellige.
//!
//! Depends on no other crate of the project and knows no backend.

mod dtype;

pub use dtype::DType;
