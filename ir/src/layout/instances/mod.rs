//! The layouts that hardware prescribes, and the default ones. Each is tested against the tables of its manual.

pub mod blocked;
pub mod ldmatrix;
pub mod mma;
pub mod shared;
pub mod wgmma;

pub use blocked::blocked;
pub use ldmatrix::{MatrixAccess, matrix_access};
pub use shared::{Swizzle, swizzled};
