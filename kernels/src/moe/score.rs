//! What the routers share: scores of logits, and the weights of chosen experts.

use crate::choice::choices;
use zellige::prelude::*;

choices! {
    /// How a router logit becomes a score.
    Scoring {
        /// `sqrt(softplus(x))`, softplus taken as x above 20: DeepSeek-V4.
        SqrtSoftplus,
        /// Logistic function.
        Sigmoid,
        /// Softmax over the experts.
        Softmax,
    }
}

/// Coefficients of `(log(1 + z) - z) / z^2` on [0, 1], from the constant on: an interpolation at Chebyshev's points.
const LOG1P: [f32; 10] = [
    -0.5,
    0.333_332_36,
    -0.249_967_6,
    0.199_567_08,
    -0.163_651_53,
    0.130_333_65,
    -0.091_394_134,
    0.049_309_973,
    -0.017_184_267,
    0.002_801_642,
];

/// `log(1 + e^x)`, within 3 units in the last place; x itself where that is what it rounds to.
#[track_caller]
fn softplus(x: Expr<f32>) -> Expr<f32> {
    let z = (-x.abs()).exp();
    let (last, rest) = LOG1P.split_last().expect("there are coefficients");
    let q = rest.iter().rev().fold(lit(*last), |q: Expr<f32>, c| q.mul_add(z, *c));
    (z * z).mul_add(q, z) + x.max(0.0)
}

/// Scores the logits of a tile, row by row.
#[derive(Clone, Copy, Debug)]
pub enum Scorer {
    SqrtSoftplus,
    Sigmoid,
    /// Largest logit and sum of exponentials of each row.
    Softmax {
        max: Fragment<f32, 1>,
        sum: Fragment<f32, 1>,
    },
}

impl Scorer {
    /// For rows whose logits stand whole in `logits`.
    #[track_caller]
    pub fn new(t: T, scoring: Scoring, logits: Shared<f32, 2>) -> Scorer {
        match scoring {
            Scoring::SqrtSoftplus => Scorer::SqrtSoftplus,
            Scoring::Sigmoid => Scorer::Sigmoid,
            Scoring::Softmax => {
                let [rows, experts] = logits.shape();
                let (max, sum) = (t.fragment([rows]), t.fragment([rows]));
                t.reduce_max(logits, max, 1);
                let exps = t.fragment::<f32, 2>([rows, experts]);
                for (i, e) in t.parallel((rows, experts)) {
                    exps.store((i, e), (logits[(i, e)] - max[i]).exp());
                }
                t.reduce_sum(exps, sum, 1);
                Scorer::Softmax { max, sum }
            }
        }
    }

    /// The score of logit `x` of row `i`.
    #[track_caller]
    pub fn score(self, i: Idx, x: Expr<f32>) -> Expr<f32> {
        match self {
            Scorer::SqrtSoftplus => softplus(x).sqrt(),
            Scorer::Sigmoid => x.sigmoid(),
            Scorer::Softmax { max, sum } => (x - max[i]).exp() / sum[i],
        }
    }

    /// The derivative of the score `s` of logit `x` by `x`; of a softmax, the part without the sum's.
    #[track_caller]
    pub fn own_slope(self, s: Expr<f32>, x: Expr<f32>) -> Expr<f32> {
        match self {
            // Scores below the smallest number are zero and stay so.
            Scorer::SqrtSoftplus => select(cmp::gt(&s, &0.0), x.sigmoid() / (s + s), 0.0),
            Scorer::Sigmoid => s * (1.0 - s),
            Scorer::Softmax { .. } => s,
        }
    }

    /// What the choice is made by, before the bias: the score, or for a softmax the logit, which is in the same order.
    #[track_caller]
    pub fn key(self, i: Idx, x: Expr<f32>) -> Expr<f32> {
        match self {
            Scorer::SqrtSoftplus | Scorer::Sigmoid => self.score(i, x),
            Scorer::Softmax { .. } => x,
        }
    }
}

/// Iterations of a loop over `k` slots of a token that a warp shares among its lanes: what a warp has chosen for a token, it
/// works on without waiting for others. Lanes without a slot do as the last one does.
pub fn lanes(k: usize) -> usize {
    k.next_multiple_of(32)
}

/// The sum of row `i` of `weights`, which starts at 1e-20 and runs in the order of the slots.
#[track_caller]
pub fn slot_sum(weights: Shared<f32, 2>, i: Idx) -> Expr<f32> {
    (0..weights.shape()[1]).fold(lit::<f32>(1e-20), |sum, j| sum + weights[(i, j)])
}

/// Divides each row of `weights` by its sum, and returns the sums.
#[tile]
pub fn normalize(t: T, weights: Shared<f32, 2>) -> Fragment<f32, 1> {
    let [rows, k] = weights.shape();
    let sums = t.fragment::<f32, 1>([rows]);
    for i in t.parallel(rows) {
        sums[i] = slot_sum(weights, i);
    }
    for (i, j) in t.parallel((rows, k)) {
        weights[(i, j)] /= sums[i];
    }
    sums
}
