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

/// A softmax over long rows in which every lane has a running maximum and sum of its own: nothing passes between threads
/// until the row ends. Scores are in units of ln.
#[derive(Clone, Copy)]
pub(crate) struct LaneSoftmax {
    max: Fragment<f32, 2>,
    sum: Fragment<f32, 2>,
}

/// What [`LaneSoftmax`] found out about its rows.
#[derive(Clone, Copy)]
pub(crate) struct RowSoftmax {
    max: Fragment<f32, 1>,
    /// Sum of `exp(score - max)`.
    pub sum: Fragment<f32, 1>,
    /// `exp(max of the lane - max)`: what the sums of a lane weigh.
    pub share: Fragment<f32, 2>,
}

impl LaneSoftmax {
    pub fn new(t: T, rows: usize, lanes: usize) -> LaneSoftmax {
        let state = LaneSoftmax { max: t.fragment([rows, lanes]), sum: t.fragment([rows, lanes]) };
        t.fill(state.max, FLOOR);
        t.clear(state.sum);
        state
    }

    /// Takes in scores of a lane. Returns what the lane's earlier sums shrink by, and the exponentials of the scores relative to
    /// its maximum so far.
    #[track_caller]
    pub fn step(self, at: (Idx, Idx), scores: &[Expr<f32>]) -> (Expr<f32>, Vec<Expr<f32>>) {
        let max = scores.iter().fold(self.max[at], |max, s| max.max(*s));
        let shrink = ((self.max[at] - max) * LOG2_E).fast_exp2();
        let zero = max * LOG2_E;
        let exps: Vec<Expr<f32>> = scores.iter().map(|s| s.mul_add(LOG2_E, -zero).fast_exp2()).collect();
        self.sum.store(at, exps.iter().fold(self.sum[at] * shrink, |sum, e| sum + *e));
        self.max.store(at, max);
        (shrink, exps)
    }

    /// Puts the lanes together.
    #[track_caller]
    pub fn finish(self, t: T) -> RowSoftmax {
        let [rows, lanes] = self.max.shape();
        let all = RowSoftmax { max: t.fragment([rows]), sum: t.fragment([rows]), share: t.fragment([rows, lanes]) };
        t.reduce_max(self.max, all.max, 1);
        for (r, c) in t.parallel((rows, lanes)) {
            let share = ((self.max[(r, c)] - all.max[r]) * LOG2_E).fast_exp2();
            all.share.store((r, c), share);
            self.sum.store((r, c), self.sum[(r, c)] * share);
        }
        t.reduce_sum(self.sum, all.sum, 1);
        all
    }
}

impl RowSoftmax {
    /// Natural log of the sum of all exponentials of row `r`.
    #[track_caller]
    pub fn lse(self, r: Idx) -> Expr<f32> {
        self.sum[r].log2().mul_add(std::f32::consts::LN_2, self.max[r])
    }

    /// By how much that lies above another softmax's.
    #[track_caller]
    pub fn above(self, other: RowSoftmax, r: Idx) -> Expr<f32> {
        let ratio = self.sum[r] / other.sum[r];
        ratio.log2().mul_add(std::f32::consts::LN_2, self.max[r] - other.max[r])
    }
}
