//! The model's head in one pass: norm of the projection, mixes, mixed streams.

use super::mix_norm::Slabs;
use super::problem::{EPS, Entry, SLABS, Shape, abs, at, check_mixed_bf16, problem, scalar, tokens};
use super::token::{Affine, weighted_sum};
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of the kernels whose blocks work on whole tokens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct TokensConfig {
    /// Tokens of a block.
    #[tune(1, 2, 4, 8, 16)]
    pub bt: usize,
    #[tune(96, 128, 256)]
    pub threads: usize,
}

/// `y = sum_j pre_j X_j` with `pre_j = sigmoid(s m_j + b_j) + eps`, m the normalised projection on n outputs. The same bits
/// as [`mhc_mix_norm`](super::mix_norm::mhc_mix_norm), [`mhc_head_mix`](super::head_mix::mhc_head_mix) and
/// [`mhc_apply`](super::apply::mhc_apply) in turn. The final RMSNorm is left to its own kernel.
#[kernel(static_dims(slabs, n, d))]
pub fn mhc_head(
    t: T,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(slabs, tokens, n)] raw: &Tensor<f32, 3>,
    #[dims(slabs, tokens)] square_sum: &Tensor<f32, 2>,
    #[dims(1)] scale: &Tensor<f32, 1>,
    #[dims(n)] base: &Tensor<f32, 1>,
    #[dims(tokens, d)] y: &mut Tensor<bf16, 2>,
    eps: Expr<f32>,
    #[comptime] cfg: TokensConfig,
) {
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let [b] = t.grid([x.dim(0).ceil_div(cfg.bt)], cfg.threads);
    let first = b * cfg.bt;
    let mixes = t.shared::<f32, 2>([cfg.bt, n]);
    Slabs { raw, square_sum }.normalize(t, first, lit((n * d) as f32), eps, mixes);
    let scale = scale[0usize];
    for (i, j) in t.parallel((cfg.bt, n)) {
        mixes[(i, j)] = Affine { scale, base: base[j] }.pre(mixes[(i, j)], eps);
    }
    for i in t.serial(cfg.bt) {
        let weights: Vec<_> = (0..n).map(|j| mixes[(i, j)]).collect();
        for c in t.parallel(d) {
            y[(first + i, c)] = weighted_sum(&weights, |j| x[(first + i, j, c)].cast()).cast();
        }
    }
}

fn head_problem(s: Shape, cfg: TokensConfig) -> Result<Problem, ProblemError> {
    let (n, width) = (s.streams, s.width());
    let mut inputs = Inputs::new(9);
    let mean = width as f64 / SLABS as f64;
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, n, s.dim], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[SLABS, s.tokens, n], 0.5 * (width as f64).sqrt())?),
        Value::Tensor(inputs.uniform(DType::F32, &[SLABS, s.tokens], 0.5 * mean, 1.5 * mean)?),
        Value::Tensor(inputs.normal(DType::F32, &[1], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[n], 1.0)?),
        Value::Tensor(output(DType::BF16, &[s.tokens, s.dim])?),
        scalar(EPS),
    ];
    Ok(problem(MhcHead::new(cfg), args, move |args| {
        let sample = s.sample();
        let mixes = super::mix_norm::expected(&at(&args[1], 1, &sample), &at(&args[2], 1, &sample), n, width);
        let pre = s.mhc().head_mix(&mixes, args[3].f32s()[0], &args[4].f32s());
        let (x, y) = (tokens(&args[0], &sample), tokens(&args[5], &sample));
        let want = s.mhc().apply(&x, &pre, sample.len());
        vec![check_mixed_bf16("y", &y, &want, &s.mhc().apply(&abs(&x), &pre, sample.len()))]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<TokensConfig> = Entry {
    info: Info {
        name: "mhc_head",
        family: Family::Mhc,
        summary: "the head in one pass: norm of the projection, mixes, mixed streams",
        equation: "m = r sum_s raw[s];  y[t,c] = bf16(sum_j (sigmoid(s m[t,j] + b[j]) + eps) X[t,j,c])",
        tolerance: "bf16 of a value within 2^-16 of its terms",
        source: "V4 specification 2.1 (head)",
    },
    config: TokensConfig { bt: 1, threads: 128 },
    small: &[TokensConfig { bt: 2, threads: 32 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcHead::new(cfg)),
    problem: head_problem,
};
