//! A softmax that sees its rows block by block: the running maximum and sum that attention and the losses over the vocabulary
//! share. May depend on the language.

use zellige::prelude::*;

/// log2(e): exponentials are computed in base 2.
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Where a running maximum starts: far below every score, yet finite, so that a row that has seen nothing needs
/// no guard (`exp2(-inf - FLOOR)` is 0 and `exp2(FLOOR - FLOOR)` is 1).
const FLOOR: f32 = -1_073_741_824.0;

/// State of some rows. Scores are in units of log2.
#[derive(Clone, Copy)]
pub(crate) struct OnlineSoftmax {
    /// Largest score so far.
    max: Fragment<f32, 1>,
    /// Sum of `exp2(score - max)` so far.
    pub sum: Fragment<f32, 1>,
    /// What sums of earlier blocks shrink by, set by [`step`](Self::step).
    pub shrink: Fragment<f32, 1>,
    /// Scratch: of the block at hand.
    block: Fragment<f32, 1>,
}

impl OnlineSoftmax {
    pub fn new(t: T, rows: usize) -> OnlineSoftmax {
        let row = || t.fragment::<f32, 1>([rows]);
        let state = OnlineSoftmax { max: row(), sum: row(), shrink: row(), block: row() };
        t.fill(state.max, FLOOR);
        t.clear(state.sum);
        state
    }

    /// Takes in a block of scores, given in units of log2 / `scale` (which is positive), and leaves their exponentials, relative
    /// to the maximum so far, in their place.
    pub fn step(self, t: T, s: Fragment<f32, 2>, scale: Expr<f32>) {
        let [rows, cols] = s.shape();
        t.reduce_max(s, self.block, 1);
        for r in t.parallel(rows) {
            let max = self.max[r].max(self.block[r] * scale);
            self.shrink.store(r, (self.max[r] - max).fast_exp2());
            self.max.store(r, max);
        }
        for (r, c) in t.parallel((rows, cols)) {
            s.store((r, c), s[(r, c)].mul_add(scale, -self.max[r]).fast_exp2());
        }
        t.reduce_sum(s, self.block, 1);
        for r in t.parallel(rows) {
            self.sum.store(r, self.sum[r].mul_add(self.shrink[r], self.block[r]));
        }
    }

    /// Natural log of the sum of all exponentials of row `r`.
    pub fn lse(self, r: Idx) -> Expr<f32> {
        (self.max[r] + self.sum[r].log2()) * std::f32::consts::LN_2
    }
}
