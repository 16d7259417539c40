//! Mixes the streams into the input of a sub-layer.

use super::problem::{Entry, Shape, abs, check_bf16, problem, tokens};
use super::token::weighted_sum;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of the kernels that go over a state element by element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct RowsConfig {
    /// Tokens of a block, one after the other.
    #[tune(1, 2, 4)]
    pub bt: usize,
    /// Columns of a block.
    #[tune(128, 512, 1024, 2048)]
    pub bd: usize,
    #[tune(64, 128, 256)]
    pub threads: usize,
}

impl RowsConfig {
    pub(super) const DEFAULT: RowsConfig = RowsConfig { bt: 1, bd: 1024, threads: 128 };
    pub(super) const SMALL: RowsConfig = RowsConfig { bt: 2, bd: 32, threads: 32 };

    /// The grid for a [T, .., d] tensor; returns the block's first token and column.
    #[track_caller]
    pub(super) fn grid(self, t: T, tokens: Idx, dim: usize) -> [Idx; 2] {
        let [x, y] = t.grid((dim.div_ceil(self.bd), tokens.ceil_div(self.bt)), self.threads);
        [y * self.bt, x * self.bd]
    }
}

/// `u = sum_j pre_j X_j`, rounded once.
#[kernel(static_dims(n, d))]
pub fn mhc_apply(
    t: T,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(tokens, n)] pre: &Tensor<f32, 2>,
    #[dims(tokens, d)] u: &mut Tensor<bf16, 2>,
    #[comptime] cfg: RowsConfig,
) {
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let [first, column] = cfg.grid(t, x.dim(0), d);
    for i in t.serial(cfg.bt) {
        let token = first + i;
        let weights: Vec<_> = (0..n).map(|j| pre[(token, j)]).collect();
        for c in t.parallel(cfg.bd) {
            let at = column + c;
            u[(token, at)] = weighted_sum(&weights, |j| x[(token, j, at)].cast()).cast();
        }
    }
}

fn apply_problem(s: Shape, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(5);
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, s.streams, s.dim], 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[s.tokens, s.streams], 0.0, 1.0)?),
        Value::Tensor(output(DType::BF16, &[s.tokens, s.dim])?),
    ];
    Ok(problem(MhcApply::new(cfg), args, move |args| {
        let sample = s.sample();
        let [x, pre, u] = [0, 1, 2].map(|i| tokens(&args[i], &sample));
        let want = s.mhc().apply(&x, &pre, sample.len());
        vec![check_bf16("u", &u, &want, &s.mhc().apply(&abs(&x), &pre, sample.len()))]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<RowsConfig> = Entry {
    info: Info {
        name: "mhc_apply",
        family: Family::Mhc,
        summary: "streams mixed into the input of a sub-layer",
        equation: "u[t,c] = bf16(sum_j pre[t,j] X[t,j,c])",
        tolerance: "bf16 of a value within 2^-16 of its terms (the public test: abs 1e-2 + rel 1e-3)",
        source: "V4 specification 2.1 step 4, 2.2 (pre_apply_mix)",
    },
    config: RowsConfig::DEFAULT,
    small: &[RowsConfig::SMALL],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcApply::new(cfg)),
    problem: apply_problem,
};
