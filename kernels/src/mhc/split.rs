//! Splits a token's mixes into `pre`, `post` and the logits of the residual matrix.

use super::problem::{EPS, Entry, POST_MULTIPLIER, Shape, check, problem, scalar, tokens};
use super::token::Affine;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`mhc_split`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct SplitConfig {
    /// Tokens of a block.
    #[tune(16, 32, 64, 128)]
    pub bt: usize,
    #[tune(128, 256, 512)]
    pub threads: usize,
}

/// `pre_j = sigmoid(s_0 m_j + b_j) + eps`, `post_j = post_multiplier sigmoid(s_1 m_{n+j} + b_{n+j})`, and the logits
/// `comb[j, k] = s_2 m_{2n+nj+k} + b_{2n+nj+k}`, whose first index is the source stream.
#[kernel(static_dims(n))]
pub fn mhc_split(
    t: T,
    #[dims(tokens, outputs)] mixes: &Tensor<f32, 2>,
    #[dims(3)] scale: &Tensor<f32, 1>,
    #[dims(outputs)] base: &Tensor<f32, 1>,
    #[dims(tokens, n)] pre: &mut Tensor<f32, 2>,
    #[dims(tokens, n)] post: &mut Tensor<f32, 2>,
    #[dims(tokens, n, n)] comb: &mut Tensor<f32, 3>,
    eps: Expr<f32>,
    post_multiplier: Expr<f32>,
    #[comptime] cfg: SplitConfig,
) {
    let n = pre.static_dim(1);
    let [b] = t.grid([mixes.dim(0).ceil_div(cfg.bt)], cfg.threads);
    let [s_pre, s_post, s_comb] = [scale[0usize], scale[1usize], scale[2usize]];
    for (i, j) in t.parallel((cfg.bt, n)) {
        let token = b * cfg.bt + i;
        pre[(token, j)] = Affine { scale: s_pre, base: base[j] }.pre(mixes[(token, j)], eps);
        post[(token, j)] = Affine { scale: s_post, base: base[j + n] }.post(mixes[(token, j + n)], post_multiplier);
    }
    for (i, j, k) in t.parallel((cfg.bt, n, n)) {
        let (token, o) = (b * cfg.bt + i, j * n + k + 2 * n);
        comb[(token, j, k)] = Affine { scale: s_comb, base: base[o] }.of(mixes[(token, o)]);
    }
}

fn split_problem(s: Shape, cfg: SplitConfig) -> Result<Problem, ProblemError> {
    let (n, outputs) = (s.streams, s.mixes());
    let mut inputs = Inputs::new(3);
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &[s.tokens, outputs], 2.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[3], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[outputs], 1.0)?),
        Value::Tensor(output(DType::F32, &[s.tokens, n])?),
        Value::Tensor(output(DType::F32, &[s.tokens, n])?),
        Value::Tensor(output(DType::F32, &[s.tokens, n, n])?),
        scalar(EPS),
        scalar(POST_MULTIPLIER),
    ];
    Ok(problem(MhcSplit::new(cfg), args, move |args| {
        let sample = s.sample();
        let mixes = tokens(&args[0], &sample);
        let want = s.mhc().split(&mixes, &args[1].f32s(), &args[2].f32s(), sample.len());
        let tolerance = Tolerance::AbsPlusRel { abs: 1e-5, rel: 2e-5 };
        vec![
            check("pre", &tokens(&args[3], &sample), &want.pre, tolerance),
            check("post", &tokens(&args[4], &sample), &want.post, tolerance),
            check("comb", &tokens(&args[5], &sample), &want.comb, tolerance),
        ]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<SplitConfig> = Entry {
    info: Info {
        name: "mhc_split",
        family: Family::Mhc,
        summary: "mixes to pre, post and the logits of the residual matrix",
        equation: "pre = sigmoid(s0 m + b) + eps;  post = 2 sigmoid(s1 m + b);  comb = s2 m + b",
        tolerance: "abs 1e-5 + rel 2e-5",
        source: "V4 specification 2.1 step 2, 2.2 (pre_split_mixes)",
    },
    config: SplitConfig { bt: 32, threads: 128 },
    small: &[SplitConfig { bt: 8, threads: 32 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcSplit::new(cfg)),
    problem: split_problem,
};
