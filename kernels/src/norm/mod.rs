//! Norms, rotary embedding and the Hadamard transform, and what they share. May depend on the language and on the library's
//! registry.

pub mod column_sum;
pub mod hadamard;
pub mod mtp_input;
pub mod rmsnorm;
pub mod rmsnorm_backward;
pub mod rmsnorm_cast;
pub mod rope;

use crate::reference::metrics::Tolerance;
use zellige::prelude::*;

/// fp32 arithmetic rounded once to bf16: neighbours at most, and few of those.
pub(crate) const BF16_STEP: Tolerance = Tolerance::AbsRelCos { abs: 1e-5, rel: 1.0 / 128.0, cos: 1e-6 };

/// Rows of a tile of `elements` elements, at least one and at most 32.
pub(crate) fn rows_for(elements: usize, dim: usize) -> usize {
    (elements / dim.max(1)).clamp(1, 32)
}

/// `1 / sqrt(mean(x^2) + eps)` of every row of a tile.
pub(crate) fn row_rstd(t: T, x: Fragment<f32, 2>, eps: Expr<f32>) -> Fragment<f32, 1> {
    let [rows, dim] = x.shape();
    let (squares, rstd) = (t.fragment::<f32, 2>([rows, dim]), t.fragment::<f32, 1>([rows]));
    for (r, c) in t.parallel((rows, dim)) {
        squares.store((r, c), x[(r, c)] * x[(r, c)]);
    }
    t.reduce_sum(squares, rstd, 1);
    for r in t.parallel(rows) {
        rstd.store(r, (rstd[r] / dim as f32 + eps).rsqrt());
    }
    rstd
}
