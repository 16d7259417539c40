//! The layout algebra: where the elements of a tile live, in registers and in memory. Depends on `DType` alone.

mod algebra;
mod error;
mod fragment;
mod gf2;
mod linear;
mod memory;
mod space;

pub mod instances;

pub use algebra::Replication;
pub use error::LayoutError;
pub use fragment::{FragmentLayout, LANE, REGISTER, WARP, WARP_DIM};
pub use linear::{Basis, LayoutBuilder, LinearLayout};
pub use memory::MemoryLayout;
pub use space::{Coord, Digit, Dim, Space, canonical_radices, tile_dim};
