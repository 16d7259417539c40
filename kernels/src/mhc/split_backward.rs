//! The gradients of the mixes' split.

use super::problem::{Entry, PARTS, POST_MULTIPLIER, Shape, check, problem, scalar, total};
use super::split::SplitConfig;
use super::token::{Affine, ordered_sum};
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::metrics::Tolerance;
use std::ops::Range;
use zellige::prelude::*;
use zellige_ir::DType;

/// Sums over a block's tokens of the gradients by biases and scales, token row by token row until the end.
#[derive(Clone, Copy)]
pub(super) struct ParameterSums {
    /// [rows, outputs]: d.
    base: Fragment<f32, 2>,
    /// [rows, outputs]: d m.
    scale: Fragment<f32, 2>,
    outputs: usize,
}

impl ParameterSums {
    #[track_caller]
    pub fn new(t: T, rows: usize, outputs: usize) -> ParameterSums {
        let sums = ParameterSums { base: t.fragment([rows, outputs]), scale: t.fragment([rows, outputs]), outputs };
        t.clear(sums.base);
        t.clear(sums.scale);
        sums
    }

    /// Adds the gradient `d` by `s m + b` of output `o`.
    #[track_caller]
    pub fn add(self, i: Idx, o: Idx, d: Expr<f32>, mix: Expr<f32>) {
        self.base.store((i, o), self.base[(i, o)] + d);
        self.scale.store((i, o), d.mul_add(mix, self.scale[(i, o)]));
    }

    /// Writes row `part` of both gradients; scale `i` belongs to the outputs `ranges[i]`.
    #[track_caller]
    pub fn write(self, t: T, part: Idx, ranges: &[Range<usize>], dscale: &Tensor<f32, 2>, dbase: &Tensor<f32, 2>) {
        let (base, scale) = (t.shared::<f32, 1>([self.outputs]), t.shared::<f32, 1>([self.outputs]));
        t.reduce_sum(self.base, base, 0);
        t.reduce_sum(self.scale, scale, 0);
        t.copy(base, dbase.at((part, 0)));
        for (i, range) in ranges.iter().enumerate() {
            dscale.store((part, i), ordered_sum(range.len(), |o| scale[range.start + o]));
        }
    }
}

/// From the gradients of `pre`, `post` and the logits to those of the mixes, `dm = d s` with d the gradient by `s m + b`, and to
/// the parts `dscale = sum_t d m`, `dbase = sum_t d` of the parameters' gradients: part p sums every P-th tile of tokens, P
/// the first extent of both, to be added in order ([`column_sum`](crate::norm::column_sum)).
#[kernel(static_dims(n, parts))]
pub fn mhc_split_backward(
    t: T,
    #[dims(tokens, outputs)] mixes: &Tensor<f32, 2>,
    #[dims(3)] scale: &Tensor<f32, 1>,
    #[dims(outputs)] base: &Tensor<f32, 1>,
    #[dims(tokens, n)] dpre: &Tensor<f32, 2>,
    #[dims(tokens, n)] dpost: &Tensor<f32, 2>,
    #[dims(tokens, n, n)] dcomb: &Tensor<f32, 3>,
    #[dims(tokens, outputs)] dmixes: &mut Tensor<f32, 2>,
    #[dims(parts, 3)] dscale: &mut Tensor<f32, 2>,
    #[dims(parts, outputs)] dbase: &mut Tensor<f32, 2>,
    post_multiplier: Expr<f32>,
    #[comptime] cfg: SplitConfig,
) {
    let (bt, n, parts) = (cfg.bt, dpre.static_dim(1), dscale.static_dim(0));
    let outputs = n * (2 + n);
    let [part] = t.grid([parts], cfg.threads);
    let sums = ParameterSums::new(t, bt, outputs);
    let [s_pre, s_post, s_comb] = [scale[0usize], scale[1usize], scale[2usize]];
    for step in t.serial(mixes.dim(0).ceil_div(bt).ceil_div(parts)) {
        let first = (step * parts + part) * bt;
        for (i, o) in t.parallel((bt, outputs)) {
            let token = first + i;
            let of = |pre: Expr<f32>, post: Expr<f32>, comb: Expr<f32>| {
                select(cmp::lt(&o, &n), pre, select(cmp::lt(&o, &(2 * n)), post, comb))
            };
            let (post, comb) = ((o - n).max(0), (o - 2 * n).max(0));
            let (m, s) = (mixes[(token, o)], of(s_pre, s_post, s_comb));
            let slope = Affine { scale: s, base: base[o] }.slope(m);
            let d = of(
                dpre[(token, o)] * slope,
                dpost[(token, post)] * (post_multiplier * slope),
                dcomb[(token, comb / n, comb % n)],
            );
            dmixes[(token, o)] = d * s;
            sums.add(i, o, d, m);
        }
    }
    sums.write(t, part, &[0..n, n..2 * n, 2 * n..n * (2 + n)], dscale, dbase);
}

fn split_backward_problem(s: Shape, cfg: SplitConfig) -> Result<Problem, ProblemError> {
    let (n, outputs) = (s.streams, s.mixes());
    let mut inputs = Inputs::new(17);
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &[s.tokens, outputs], 2.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[3], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[outputs], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[s.tokens, n], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[s.tokens, n], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[s.tokens, n, n], 1.0)?),
        Value::Tensor(output(DType::F32, &[s.tokens, outputs])?),
        Value::Tensor(output(DType::F32, &[PARTS, 3])?),
        Value::Tensor(output(DType::F32, &[PARTS, outputs])?),
        scalar(POST_MULTIPLIER),
    ];
    Ok(problem(MhcSplitBackward::new(cfg), args, move |args| {
        let [mixes, scale, base, dpre, dpost, dcomb, dmixes, dscale, dbase] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|i| args[i].f32s());
        let want = s.mhc().split_backward(&mixes, &scale, &base, (&dpre, &dpost, &dcomb));
        let tolerance = Tolerance::AbsPlusRel { abs: 1e-5, rel: 2e-5 };
        vec![
            check("dmixes", &dmixes, &want.dmixes, tolerance),
            check("dscale", &total(&dscale, 3), &want.dscale, tolerance),
            check("dbase", &total(&dbase, outputs), &want.dbase, tolerance),
        ]
    }))
}

/// Sums of few tokens each: one long sum in f32 would miss the tolerance of the gradients at thousands of tokens.
pub(super) const DEFAULT: SplitConfig = SplitConfig { bt: 32, threads: 256 };

/// The library's entry.
pub const ENTRY: Entry<SplitConfig> = Entry {
    info: Info {
        name: "mhc_split_backward",
        family: Family::Mhc,
        summary: "gradients of the mixes, and parts of those of scales and biases",
        equation: "d = dpre s'(..), 2 dpost s'(..), dcomb with s' = sigmoid (1 - sigmoid);  dm = d s;  ds = sum_t d m;  db = sum_t d",
        tolerance: "abs 1e-5 + rel 2e-5",
        source: "V4 specification 2.2 (pre_split_mixes bwd), 2.3",
    },
    config: DEFAULT,
    small: &[SplitConfig { bt: 8, threads: 32 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcSplitBackward::new(cfg)),
    problem: split_backward_problem,
};
