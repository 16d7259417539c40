//! The layout algebra: where the elements of a tile live, in registers and in memory. Depends on `DType` alone.

mod algebra;
mod convert;
mod error;
mod fragment;
mod gf2;
mod linear;
mod memory;
mod query;
mod shuffle;
mod space;
mod text;

pub mod instances;

#[cfg(test)]
mod convert_tests;
#[cfg(test)]
mod law_tests;

pub use algebra::Replication;
pub use convert::{Conversion, SharedPlan};
pub use error::LayoutError;
pub use fragment::{FragmentLayout, LANE, REGISTER, WARP, WARP_DIM};
pub use linear::{Basis, LayoutBuilder, LinearLayout};
pub use memory::MemoryLayout;
pub use query::{BANK_BYTES, BANKS, BankUse, MAX_VECTOR_BYTES, VectorAccess, warp_banks};
pub use shuffle::{LaneMap, RegisterChoice, ShufflePlan, ShuffleRound};
pub use space::{Coord, Digit, Dim, Space, canonical_radices, tile_dim};
