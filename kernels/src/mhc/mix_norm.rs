//! The norm of the projection: adds its slabs in order and scales by the state's root mean square.

use super::problem::{EPS, Entry, SLABS, Shape, at, check, problem, scalar, tokens};
use super::token::ordered_sum;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`mhc_mix_norm`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct MixNormConfig {
    /// Tokens of a block.
    #[tune(8, 16, 32, 64)]
    pub bt: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl MixNormConfig {
    pub(super) const DEFAULT: MixNormConfig = MixNormConfig { bt: 16, threads: 128 };
}

/// Reciprocal root mean square of a state of `width` elements whose squares sum to `square_sum`.
#[track_caller]
pub(super) fn rstd(square_sum: Expr<f32>, width: Expr<f32>, eps: Expr<f32>) -> Expr<f32> {
    (square_sum / width + eps).rsqrt()
}

/// The slabs of a projection, as [`mhc_mix`](super::mix::mhc_mix) leaves them.
#[derive(Clone, Copy)]
pub(super) struct Slabs<'a> {
    /// [S, T, outputs].
    pub raw: &'a Tensor<f32, 3>,
    /// [S, T].
    pub square_sum: &'a Tensor<f32, 2>,
}

impl Slabs<'_> {
    fn count(self) -> usize {
        self.raw.static_dim(0)
    }

    /// Sum of squares of a token's state.
    #[track_caller]
    pub fn square_sum(self, token: Idx) -> Expr<f32> {
        ordered_sum(self.count(), |s| self.square_sum[(s, token)])
    }

    /// Output `o` of a token's projection.
    #[track_caller]
    pub fn projected(self, token: Idx, o: Idx) -> Expr<f32> {
        ordered_sum(self.count(), |s| self.raw[(Idx::from(s), token, o)])
    }

    /// The same under the norm. Every thread sums the squares for itself, and divides when all it needs is on its way.
    #[track_caller]
    pub fn mix(self, token: Idx, o: Idx, width: Expr<f32>, eps: Expr<f32>) -> Expr<f32> {
        let projected = self.projected(token, o);
        rstd(self.square_sum(token), width, eps) * projected
    }

    /// Fills `mixes` [rows, outputs] for the tokens from `first` on.
    #[track_caller]
    pub fn normalize(self, t: T, first: Idx, width: Expr<f32>, eps: Expr<f32>, mixes: Shared<f32, 2>) {
        let [rows, outputs] = mixes.shape();
        for (i, o) in t.parallel((rows, outputs)) {
            mixes.store((i, o), self.mix(first + i, o, width, eps));
        }
    }
}

/// Slabs of some tokens in shared memory: all of them on their way at once.
#[derive(Clone, Copy)]
pub(super) struct StagedSlabs {
    raw: Shared<f32, 3>,
    square_sum: Shared<f32, 2>,
}

impl StagedSlabs {
    /// Of the `rows` tokens from `first` on.
    #[track_caller]
    pub fn new(t: T, slabs: Slabs<'_>, first: Idx, rows: usize) -> StagedSlabs {
        let (count, outputs) = (slabs.count(), slabs.raw.static_dim(2));
        let staged = StagedSlabs { raw: t.shared([count, rows, outputs]), square_sum: t.shared([count, rows]) };
        t.copy(slabs.raw.at((0, first, 0)), staged.raw);
        t.copy(slabs.square_sum.at((0, first)), staged.square_sum);
        staged
    }

    /// Sum of squares of a token's state.
    #[track_caller]
    pub fn square_sum(self, i: Idx) -> Expr<f32> {
        ordered_sum(self.square_sum.shape()[0], |s| self.square_sum[(s, i)])
    }

    /// Output `o` of a token's projection.
    #[track_caller]
    pub fn projected(self, i: Idx, o: Idx) -> Expr<f32> {
        ordered_sum(self.raw.shape()[0], |s| self.raw[(Idx::from(s), i, o)])
    }
}

/// `mixes = r sum_s raw[s]` with `r = 1 / sqrt(sum_s square_sum[s] / width + eps)`, the sums in the order of s. `width` is
/// n d.
#[kernel(static_dims(slabs, outputs))]
pub fn mhc_mix_norm(
    t: T,
    #[dims(slabs, tokens, outputs)] raw: &Tensor<f32, 3>,
    #[dims(slabs, tokens)] square_sum: &Tensor<f32, 2>,
    #[dims(tokens, outputs)] mixes: &mut Tensor<f32, 2>,
    width: Expr<f32>,
    eps: Expr<f32>,
    #[comptime] cfg: MixNormConfig,
) {
    let [b] = t.grid([raw.dim(1).ceil_div(cfg.bt)], cfg.threads);
    let slabs = StagedSlabs::new(t, Slabs { raw, square_sum }, b * cfg.bt, cfg.bt);
    for (i, o) in t.parallel((cfg.bt, raw.static_dim(2))) {
        mixes[(b * cfg.bt + i, o)] = rstd(slabs.square_sum(i), width, eps) * slabs.projected(i, o);
    }
}

/// The normalised mixes of tokens, each given by its [SLABS, outputs] projections and [SLABS] sums of squares; f64.
pub(super) fn expected(raw: &[f32], square_sum: &[f32], outputs: usize, width: usize) -> Vec<f32> {
    let sum = |v: &[f32], o: usize, step: usize| v.iter().skip(o).step_by(step).map(|&v| f64::from(v)).sum::<f64>();
    let token = |(raw, squares): (&[f32], &[f32])| -> Vec<f32> {
        let rms = (sum(squares, 0, 1) / width as f64 + f64::from(EPS)).sqrt();
        (0..outputs).map(|o| (sum(raw, o, outputs) / rms) as f32).collect()
    };
    raw.chunks(SLABS * outputs).zip(square_sum.chunks(SLABS)).flat_map(token).collect()
}

fn norm_problem(s: Shape, cfg: MixNormConfig) -> Result<Problem, ProblemError> {
    let (width, outputs) = (s.width() as f32, s.mixes());
    let mut inputs = Inputs::new(2);
    let mean = f64::from(width) / SLABS as f64;
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &[SLABS, s.tokens, outputs], 0.5 * f64::from(width).sqrt())?),
        Value::Tensor(inputs.uniform(DType::F32, &[SLABS, s.tokens], 0.5 * mean, 1.5 * mean)?),
        Value::Tensor(output(DType::F32, &[s.tokens, outputs])?),
        scalar(width),
        scalar(EPS),
    ];
    Ok(problem(MhcMixNorm::new(cfg), args, move |args| {
        let sample = s.sample();
        let (raw, square_sum) = (at(&args[0], 1, &sample), at(&args[1], 1, &sample));
        let want = expected(&raw, &square_sum, outputs, s.width());
        let tolerance = Tolerance::AbsPlusRel { abs: 1e-3, rel: 1e-3 };
        vec![check("mixes", &tokens(&args[2], &sample), &want, tolerance)]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<MixNormConfig> = Entry {
    info: Info {
        name: "mhc_mix_norm",
        family: Family::Mhc,
        summary: "ordered sum of the projection's slabs, scaled by the state's root mean square",
        equation: "m[t,o] = r sum_s raw[s,t,o],  r = 1 / sqrt(sum_s square_sum[s,t] / (n d) + eps)",
        tolerance: "abs 1e-3 + rel 1e-3",
        source: "V4 specification 2.1 step 1, 2.2 (pre_norm_fn fwd_norm)",
    },
    config: MixNormConfig::DEFAULT,
    small: &[MixNormConfig { bt: 8, threads: 32 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcMixNorm::new(cfg)),
    problem: norm_problem,
};
