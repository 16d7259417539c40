//! The layout algebra: where the elements of a tile live, in registers and in memory. Depends on `DType` alone.
//!
//! # Layouts are linear maps
//! A tensor core wants element (row, column) of a tile in a certain register of a certain thread. The manual says which
//! by formulas such as "row = lane / 4, column = 2 (lane % 4) + register % 2". Division and remainder by powers of two
//! only take a number's bits apart, so every such formula says which *bits* of (register, lane, warp) become which bits
//! of (row, column). A shared memory swizzle says more: a bit of the offset is the XOR of several bits of (row, column).
//! Both are **linear maps over GF(2)**, the field {0, 1} in which addition is XOR: knowing where each single bit goes is
//! knowing the whole map, because `f(a ^ b) = f(a) ^ f(b)`. Triton found this (Zhou et al., "Linear Layouts", arXiv
//! 2505.23819), and all questions about layouts turn into small linear algebra:
//!
//! | question | algebra |
//! |---|---|
//! | which thread holds element (i, j)? | inverse |
//! | where in memory is register 3 of thread 17? | composition |
//! | a bigger tile made of instructions | product |
//! | is something stored twice? | kernel |
//! | how do I get from layout A to layout B? | inverse of A after B |
//!
//! The accumulator of `mma.m16n8k16`, written as the images of the bits:
//! ```
//! use zellige_ir::layout::{FragmentLayout, instances::mma};
//!
//! let c: FragmentLayout = mma::c();
//! //                   register bit 0 -> column 1, bit 1 -> row 8;     lane bit 0 -> column 2, ... bit 4 -> row 4
//! let text = "fragment(16, 8) register[(0,1) (8,0)] lane[(0,2) (0,4) (1,0) (2,0) (4,0)] warp[] -> (dim0: 16, dim1: 8)";
//! assert_eq!(c.to_string(), text);
//! assert_eq!(text.parse(), Ok(c.clone()));
//!
//! // Register 3 = 1 + 2 and lane 5 = 1 + 4: column 1, row 8, column 2 and row 1 add up to (9, 3).
//! assert_eq!(c.coord(3, 5).unwrap().as_slice(), [9, 3]);
//! assert_eq!(c.owner(&[9, 3]), (3, 5));
//! ```
//!
//! # Odd extents
//! DeepSeek-V4 has extents such as 24, 96, 576 and 7168. Padding them to powers of two would waste registers and memory.
//! So a dimension is a number in a *mixed radix* system ([`Dim`]): digits of radix 2, the bits, and digits of odd radix.
//! 7168 is ten bits below one digit of radix 7. Bits map linearly as before; an odd digit is never computed with, only
//! copied: an odd output digit shows one odd input digit of the same radix. That keeps maps linear (over a group with odd
//! cyclic factors), keeps the algebra complete, and is all that tilings need.
//! ```
//! use zellige_ir::layout::instances::blocked;
//!
//! // 7168 elements over 128 threads: 8 neighbours each, 128 threads, then 7 times over. Nothing is padded.
//! let x = blocked(&[7168], 128, 8)?;
//! assert_eq!(x.regs_per_thread(), 56);
//! assert!(x.is_exact());
//! assert_eq!(x.coord(8, 0).unwrap().as_slice(), [1024]);
//! # Ok::<(), zellige_ir::layout::LayoutError>(())
//! ```
//! Where the digits of an extent stand in another order (24 columns by each of two warpgroups: 8 * 3 * 2), the text form
//! shows it. Two cuts of one extent compose after refining them to a common cut; if none exists, as between 8 * 3 and
//! 3 * 8, composition is an error and callers fall back to walking the points.
//!
//! # The three kinds of layout
//! - [`LinearLayout`]: the map itself, between any two named spaces.
//! - [`FragmentLayout`]: (register, lane, warp) to tile coordinates, for a tile of a given shape. The map must reach every
//!   element; it may reach some several times (*replicas*), and it may go beyond the tile (*dead places*, which masks
//!   switch off), so that a tile of 257 elements is no problem either.
//! - [`MemoryLayout`]: tile coordinates to physical coordinates, then a dot product with strides. Swizzles are in the map,
//!   padding in the strides; neither disturbs the other.
//!
//! # Building layouts
//! [`LayoutBuilder::tile`] says "the next n values of this input count the next n positions of that output":
//! ```
//! use zellige_ir::layout::{FragmentLayout, LANE, REGISTER, WARP_DIM};
//!
//! // A 64 x 24 tile: pairs along the columns, four lanes beside, eight lanes down, three repeats, two warps down.
//! let map = FragmentLayout::builder(2)
//!     .tile(REGISTER, 2, "dim1")
//!     .tile(LANE, 4, "dim1")
//!     .tile(LANE, 8, "dim0")
//!     .tile(REGISTER, 3, "dim1")
//!     .tile(WARP_DIM, 2, "dim0")
//!     .tile(REGISTER, 4, "dim0")
//!     .build()?;
//! let f = FragmentLayout::exact(map)?;
//! assert_eq!((f.shape(), f.threads(), f.regs_per_thread()), (&[64, 24][..], 64, 24));
//! # Ok::<(), zellige_ir::layout::LayoutError>(())
//! ```
//! The ready-made ones are in [`instances`].
//!
//! # Asking questions
//! ```
//! use zellige_ir::DType;
//! use zellige_ir::layout::instances::{Swizzle, blocked, matrix_access, mma, swizzled, wgmma};
//! use zellige_ir::layout::{Conversion, MemoryLayout};
//!
//! // How wide can a thread access memory? (And which registers go together?)
//! let tile = blocked(&[64, 64], 128, 8)?;
//! let shared = swizzled([64, 64], 16, Swizzle::B128)?;
//! let access = tile.vectorize(&shared, DType::BF16, 8)?;
//! assert_eq!(access.elems * 2, 16);
//! // Does a warp's access hit a bank twice?
//! assert_eq!(tile.bank_use(&shared, DType::BF16, &access, 0).conflicts(), 0);
//! // Does ldmatrix produce this operand from that tile, and in which form?
//! let a = mma::a_tile([64, 64], 16, [2, 2])?;
//! let load = matrix_access(&a, &shared, DType::BF16).unwrap();
//! assert_eq!((load.matrices, load.trans), (4, false));
//! // Softmax of attention: the accumulator of the first gemm is operand A of the second as it stands.
//! let p = Conversion::plan(&wgmma::accumulator(64)?, &wgmma::a_tile([64, 64], 16, [1, 1])?, DType::BF16)?;
//! assert_eq!(p, Conversion::Registers((0..32).collect()));
//! // A sum over the columns leaves one value per row, with replicas in the four lanes that shared the row.
//! let rows = wgmma::accumulator(64)?.drop_dim(1)?;
//! assert_eq!((rows.shape(), rows.regs_per_thread(), rows.replication().count()), (&[64][..], 2, 4));
//! # Ok::<(), zellige_ir::layout::LayoutError>(())
//! ```
//! [`svg`] draws layouts.

mod algebra;
mod convert;
mod error;
mod fragment;
mod gf2;
mod linear;
mod memory;
mod query;
mod reduce;
mod shuffle;
mod space;
pub mod svg;
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
pub use reduce::{ReductionPlan, WarpStep};
pub use shuffle::{LaneMap, RegisterChoice, ShufflePlan, ShuffleRound};
pub use space::{Coord, Digit, Dim, Space, canonical_radices, tile_dim};
