//! Attention kernels, and what they share. May depend on the language and on the library's registry.

pub mod flash;

use zellige::prelude::*;

/// log2(e): exponentials are computed in base 2.
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Where a running maximum starts: far below every score, yet finite, so that a row that has seen no key needs
/// no guard (`exp2(-inf - FLOOR)` is 0 and `exp2(FLOOR - FLOOR)` is 1).
pub(crate) const FLOOR: f32 = -1_073_741_824.0;

/// The packed positions that one sequence of a ragged batch owns.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub start: Idx,
    pub len: Idx,
}

impl Segment {
    /// Sequence `b` of a batch owns `bounds[b]..bounds[b + 1]`.
    pub fn of(bounds: &Tensor<i32, 1>, b: Idx) -> Segment {
        let start = bounds[b].to_index();
        Segment { start, len: bounds[b + 1].to_index() - start }
    }
}
