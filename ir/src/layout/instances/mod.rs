//! The layouts that hardware prescribes, and the default ones. Each is tested against the tables of its manual.

pub mod blocked;
pub mod mma;
pub mod shared;
pub mod wgmma;

pub use blocked::blocked;
pub use shared::{Swizzle, swizzled};
