//! Everything between the projection and a sub-layer in one pass, for inference.

use super::mix_norm::Slabs;
use super::problem::{
    EPS, Entry, F32, MIXED_NOISE, POST_MULTIPLIER, SLABS, Shape, abs, at, check, check_mixed_bf16, problem, scalar,
    tokens,
};
use super::token::{Affine, Matrix, weighted_sum};
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::codec::bf16_round_all;
use crate::reference::norm::rms_norm;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of the fused kernels and the rounds of their Sinkhorn normalisation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = rounds > 0)]
pub struct FuseConfig {
    /// Tokens of a block that mixes streams.
    #[tune(1, 2, 4, 8, 16)]
    pub bt: usize,
    #[tune(96, 128, 256)]
    pub threads: usize,
    /// Column steps of the Sinkhorn normalisation; V4 has 20.
    pub rounds: usize,
}

impl FuseConfig {
    pub(super) const DEFAULT: FuseConfig = FuseConfig { bt: 2, threads: 128, rounds: 20 };
    const SMALL: FuseConfig = FuseConfig { bt: 4, threads: 32, rounds: 20 };
}

/// The parameters of a hyper-connection.
#[derive(Clone, Copy)]
struct Parameters<'a> {
    /// [3].
    scale: &'a Tensor<f32, 1>,
    /// [n (2 + n)].
    base: &'a Tensor<f32, 1>,
    eps: Expr<f32>,
    post_multiplier: Expr<f32>,
}

/// Tokens of a block that computes `post` and C: the matrix of a token is one thread's work, a long chain of divisions.
const MATRICES: usize = 32;

impl Parameters<'_> {
    /// Computes `pre` of the tokens from `first` on.
    #[track_caller]
    fn pre(self, t: T, slabs: Slabs<'_>, first: Idx, width: usize, pre: Shared<f32, 2>) {
        let [bt, n] = pre.shape();
        for (i, j) in t.parallel((bt, n)) {
            let mix = slabs.mix(first + i, j, lit(width as f32), self.eps);
            pre.store((i, j), Affine { scale: self.scale[0usize], base: self.base[j] }.pre(mix, self.eps));
        }
    }
}

/// Computes `post` and C of [`MATRICES`] tokens.
#[tile]
fn coefficients(
    t: T,
    slabs: Slabs<'_>,
    p: Parameters<'_>,
    first: Idx,
    width: usize,
    rounds: usize,
    post: &Tensor<f32, 2>,
    comb: &Tensor<f32, 3>,
) {
    let n = post.static_dim(1);
    let mixes = t.shared::<f32, 2>([MATRICES, n * (2 + n)]);
    slabs.normalize(t, first, lit(width as f32), p.eps, mixes);
    let [s_post, s_comb] = [1usize, 2].map(|i| p.scale[i]);
    for i in t.parallel(MATRICES) {
        let token = first + i;
        for j in 0..n {
            let affine = Affine { scale: s_post, base: p.base[n + j] };
            post[(token, j)] = affine.post(mixes[(i, n + j)], p.post_multiplier);
        }
        let logits = Matrix::from_fn(n, |j, k| {
            let o = 2 * n + j * n + k;
            Affine { scale: s_comb, base: p.base[o] }.of(mixes[(i, o)])
        });
        logits.sinkhorn(t, rounds, p.eps).for_each(|j, k, c| comb.store((token, j, k), c));
    }
}

/// All blocks of a kernel: those that compute `post` and C come first, for their divisions take longest, and run beside those
/// that mix streams, which `mix` does for a token by its `pre`.
#[tile]
fn blocks(
    t: T,
    tokens: Idx,
    slabs: Slabs<'_>,
    p: Parameters<'_>,
    width: usize,
    cfg: FuseConfig,
    post: &Tensor<f32, 2>,
    comb: &Tensor<f32, 3>,
    mix: impl Fn(Idx, &[Expr<f32>]),
) {
    let n = post.static_dim(1);
    let matrices = tokens.ceil_div(MATRICES);
    let [b] = t.grid([matrices + tokens.ceil_div(cfg.bt)], cfg.threads);
    if b < matrices {
        coefficients(t, slabs, p, b * MATRICES, width, cfg.rounds, post, comb);
    } else {
        let first = (b - matrices) * cfg.bt;
        let pre = t.shared::<f32, 2>([cfg.bt, n]);
        p.pre(t, slabs, first, width, pre);
        for i in t.serial(cfg.bt) {
            let weights: Vec<_> = (0..n).map(|j| pre[(i, j)]).collect();
            mix(first + i, &weights);
        }
    }
}

/// From the slabs of the projection to the sub-layer's input `u`, `post` and C: the same bits as
/// [`mhc_mix_norm`](super::mix_norm::mhc_mix_norm), [`mhc_split`](super::split::mhc_split),
/// [`mhc_sinkhorn`](super::sinkhorn::mhc_sinkhorn) and [`mhc_apply`](super::apply::mhc_apply) in turn.
#[kernel(static_dims(slabs, outputs, n, d))]
pub fn mhc_pre_big_fuse(
    t: T,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(slabs, tokens, outputs)] raw: &Tensor<f32, 3>,
    #[dims(slabs, tokens)] square_sum: &Tensor<f32, 2>,
    #[dims(3)] scale: &Tensor<f32, 1>,
    #[dims(outputs)] base: &Tensor<f32, 1>,
    #[dims(tokens, d)] u: &mut Tensor<bf16, 2>,
    #[dims(tokens, n)] post: &mut Tensor<f32, 2>,
    #[dims(tokens, n, n)] comb: &mut Tensor<f32, 3>,
    eps: Expr<f32>,
    post_multiplier: Expr<f32>,
    #[comptime] cfg: FuseConfig,
) {
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let (slabs, parameters) = (Slabs { raw, square_sum }, Parameters { scale, base, eps, post_multiplier });
    blocks(t, x.dim(0), slabs, parameters, n * d, cfg, post, comb, |token, weights| {
        for c in t.parallel(d) {
            u[(token, c)] = weighted_sum(weights, |j| x[(token, j, c)].cast()).cast();
        }
    });
}

/// As [`mhc_pre_big_fuse`], and the sub-layer's RMSNorm on top: `y = bf16(w u / sqrt(mean(u^2) + eps))` of the rounded u,
/// which is not written.
#[kernel(static_dims(slabs, outputs, n, d))]
pub fn mhc_pre_big_fuse_norm(
    t: T,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(slabs, tokens, outputs)] raw: &Tensor<f32, 3>,
    #[dims(slabs, tokens)] square_sum: &Tensor<f32, 2>,
    #[dims(3)] scale: &Tensor<f32, 1>,
    #[dims(outputs)] base: &Tensor<f32, 1>,
    #[dims(d)] weight: &Tensor<f32, 1>,
    #[dims(tokens, d)] y: &mut Tensor<bf16, 2>,
    #[dims(tokens, n)] post: &mut Tensor<f32, 2>,
    #[dims(tokens, n, n)] comb: &mut Tensor<f32, 3>,
    eps: Expr<f32>,
    post_multiplier: Expr<f32>,
    #[comptime] cfg: FuseConfig,
) {
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let (slabs, parameters) = (Slabs { raw, square_sum }, Parameters { scale, base, eps, post_multiplier });
    blocks(t, x.dim(0), slabs, parameters, n * d, cfg, post, comb, |token, weights| {
        let (u, squares) = (t.fragment::<f32, 2>([1, d]), t.fragment::<f32, 2>([1, d]));
        let (square_sum, rstd) = (t.fragment::<f32, 1>([1]), t.fragment::<f32, 1>([1]));
        for c in t.parallel(d) {
            let mixed = weighted_sum(weights, |j| x[(token, j, c)].cast()).cast::<bf16>().cast::<f32>();
            u[(0, c)] = mixed;
            squares[(0, c)] = mixed * mixed;
        }
        t.reduce_sum(squares, square_sum, 1);
        for row in t.parallel(1) {
            rstd[row] = (square_sum[row] / d as f32 + eps).rsqrt();
        }
        for c in t.parallel(d) {
            y[(token, c)] = (u[(0, c)] * rstd[0usize] * weight[c]).cast();
        }
    });
}

/// The arguments up to the bias, and the scalars at the end.
fn inputs_of(s: Shape) -> Result<(Vec<Value>, [Value; 2]), ProblemError> {
    let (n, width, outputs) = (s.streams, s.width(), s.mixes());
    let mut inputs = Inputs::new(10);
    let mean = width as f64 / SLABS as f64;
    let tensors = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, n, s.dim], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[SLABS, s.tokens, outputs], 0.5 * (width as f64).sqrt())?),
        Value::Tensor(inputs.uniform(DType::F32, &[SLABS, s.tokens], 0.5 * mean, 1.5 * mean)?),
        Value::Tensor(inputs.uniform(DType::F32, &[3], 0.5, 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[outputs], 1.0)?),
    ];
    Ok((tensors, [scalar(EPS), scalar(POST_MULTIPLIER)]))
}

/// The outputs after `u`, in the order of the signature.
fn outputs_of(s: Shape) -> Result<[Value; 2], ProblemError> {
    let n = s.streams;
    Ok([Value::Tensor(output(DType::F32, &[s.tokens, n])?), Value::Tensor(output(DType::F32, &[s.tokens, n, n])?)])
}

/// The references' `u` before rounding, the magnitudes of its terms, `post` and C of sampled tokens.
fn expected(s: Shape, rounds: usize, args: &[Value], sample: &[usize]) -> [Vec<f32>; 4] {
    let mhc = crate::reference::mhc::Mhc { rounds, ..s.mhc() };
    let slabs = (at(&args[1], 1, sample), at(&args[2], 1, sample));
    let mixes = super::mix_norm::expected(&slabs.0, &slabs.1, s.mixes(), s.width());
    let split = mhc.split(&mixes, &args[3].f32s(), &args[4].f32s(), sample.len());
    let x = tokens(&args[0], sample);
    let [u, sizes] = [mhc.apply(&x, &split.pre, sample.len()), mhc.apply(&abs(&x), &split.pre, sample.len())];
    [u, sizes, split.post, mhc.sinkhorn(&split.comb)]
}

fn fuse_problem(s: Shape, cfg: FuseConfig) -> Result<Problem, ProblemError> {
    let (mut args, scalars) = inputs_of(s)?;
    args.push(Value::Tensor(output(DType::BF16, &[s.tokens, s.dim])?));
    args.extend(outputs_of(s)?);
    args.extend(scalars);
    Ok(problem(MhcPreBigFuse::new(cfg), args, move |args| {
        let sample = s.sample();
        let [u, sizes, post, comb] = expected(s, cfg.rounds, args, &sample);
        vec![
            check_mixed_bf16("u", &tokens(&args[5], &sample), &u, &sizes),
            check("post", &tokens(&args[6], &sample), &post, F32),
            check("comb", &tokens(&args[7], &sample), &comb, F32),
        ]
    }))
}

fn fuse_norm_problem(s: Shape, cfg: FuseConfig) -> Result<Problem, ProblemError> {
    let (mut args, scalars) = inputs_of(s)?;
    args.push(Value::Tensor(Inputs::new(11).normal(DType::F32, &[s.dim], 1.0)?));
    args.push(Value::Tensor(output(DType::BF16, &[s.tokens, s.dim])?));
    args.extend(outputs_of(s)?);
    args.extend(scalars);
    Ok(problem(MhcPreBigFuseNorm::new(cfg), args, move |args| {
        let sample = s.sample();
        let [u, sizes, post, comb] = expected(s, cfg.rounds, args, &sample);
        let weight = args[5].f32s();
        // A u near the middle between two bf16 may round either way; where `pre` saturates, a token's may be so by the
        // hundred. y lies between the smaller u under the norm of larger ones and the reverse.
        let rounded = |side: f32| -> Vec<f32> {
            let u = u.iter().zip(&sizes).map(|(&u, &size)| u + side * u.signum() * MIXED_NOISE as f32 * size);
            bf16_round_all(&u.collect::<Vec<f32>>())
        };
        let (small, large) = (rounded(-1.0), rounded(1.0));
        let rstd = |u: &[f32]| rms_norm(u, None, sample.len(), s.dim, f64::from(EPS)).rstd;
        let end = |u: &[f32], rstd: &[f32]| -> Vec<f32> {
            u.iter().enumerate().map(|(i, u)| weight[i % s.dim] * u * rstd[i / s.dim]).collect()
        };
        let (a, b) = (end(&small, &rstd(&large)), end(&large, &rstd(&small)));
        let middle: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.5 * (a + b)).collect();
        let reach: Vec<f32> =
            a.iter().zip(&b).map(|(a, b)| 0.5 * (a - b).abs() / MIXED_NOISE as f32 + a.abs().max(b.abs())).collect();
        vec![
            check_mixed_bf16("y", &tokens(&args[6], &sample), &middle, &reach),
            check("post", &tokens(&args[7], &sample), &post, F32),
            check("comb", &tokens(&args[8], &sample), &comb, F32),
        ]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<FuseConfig> = Entry {
    info: Info {
        name: "mhc_pre_big_fuse",
        family: Family::Mhc,
        summary: "norm of the projection, split, Sinkhorn and apply in one pass",
        equation: "m = r sum_s raw[s];  (pre, post, L) = split(m);  C = sinkhorn(L);  u = bf16(sum_j pre_j X_j)",
        tolerance: "the bits of the separate kernels; against the reference as theirs",
        source: "V4 specification 2.1, 2.2 (pre_big_fuse)",
    },
    config: FuseConfig::DEFAULT,
    small: &[FuseConfig::SMALL],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcPreBigFuse::new(cfg)),
    problem: fuse_problem,
};

/// The library's entry of the variant with the next RMSNorm.
pub const NORM_ENTRY: Entry<FuseConfig> = Entry {
    info: Info {
        name: "mhc_pre_big_fuse_norm",
        family: Family::Mhc,
        summary: "pre_big_fuse with the sub-layer's RMSNorm",
        equation: "(u, post, C) = pre_big_fuse(..);  y = bf16(w u / sqrt(mean(u^2) + eps))",
        tolerance: "y: as bf16 rounds it, of a u rounded either way near a tie; post and comb: abs 1e-5 + rel 1.3e-6",
        source: "V4 specification 2.2 (further fusions)",
    },
    config: FuseConfig::DEFAULT,
    small: &[FuseConfig::SMALL],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcPreBigFuseNorm::new(cfg)),
    problem: fuse_norm_problem,
};
