//! Inner products of long rows, several at a time, in one pass over what they have in common.

use zellige::prelude::*;

/// Inner products of rows of a block, lane by lane until [`sum`](Dots::sum).
#[derive(Clone, Copy)]
pub(crate) struct Dots {
    /// [products, lanes].
    lanes: Fragment<f32, 2>,
    sums: Shared<f32, 1>,
}

impl Dots {
    #[track_caller]
    pub fn new(t: T, products: usize, lanes: usize) -> Dots {
        Dots { lanes: t.fragment([products, lanes]), sums: t.shared([products]) }
    }

    #[track_caller]
    pub fn clear(self, t: T) {
        t.clear(self.lanes);
    }

    /// Adds `x y` to product `q` in lane `c`.
    #[track_caller]
    pub fn add(self, q: usize, c: Idx, x: Expr<f32>, y: Expr<f32>) {
        self.lanes.store((q, c), x.mul_add(y, self.lanes[(q, c)]));
    }

    /// The products.
    #[track_caller]
    pub fn sum(self, t: T) -> Shared<f32, 1> {
        t.reduce_sum(self.lanes, self.sums, 1);
        self.sums
    }
}
