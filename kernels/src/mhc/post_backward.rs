//! The gradients of the state after a sub-layer.

use super::apply::RowsConfig;
use super::problem::{Entry, Shape, abs, check, check_bf16, problem, tokens};
use super::token::weighted_sum;
use crate::dots::Dots;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// `dF = sum_k post_k dX'_k` and `dX_j = sum_k C[j, k] dX'_k`, each rounded once; `dpost_k = <dX'_k, F>` and
/// `dC[j, k] = <X_j, dX'_k>` in f32. One pass over a token: its state and gradients are read once, `bd`
/// columns at a time. A thread sums the products of neighbouring columns in turn, so that it holds one sum for each product
/// and has registers left for loads on their way.
#[kernel(static_dims(n, d))]
pub fn mhc_post_backward(
    t: T,
    #[dims(tokens, d)] f: &Tensor<bf16, 2>,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(tokens, n)] post: &Tensor<f32, 2>,
    #[dims(tokens, n, n)] comb: &Tensor<f32, 3>,
    #[dims(tokens, n, d)] dy: &Tensor<bf16, 3>,
    #[dims(tokens, d)] df: &mut Tensor<bf16, 2>,
    #[dims(tokens, n, d)] dx: &mut Tensor<bf16, 3>,
    #[dims(tokens, n)] dpost: &mut Tensor<f32, 2>,
    #[dims(tokens, n, n)] dcomb: &mut Tensor<f32, 3>,
    #[comptime] cfg: RowsConfig,
) {
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let [b] = t.grid([x.dim(0).ceil_div(cfg.bt)], cfg.threads);
    let neighbours = cfg.bd.div_ceil(cfg.threads);
    let lanes = cfg.bd.div_ceil(neighbours);
    // <X_j, dX'_k> row by row, then <F, dX'_k>.
    let dots = Dots::new(t, n * n + n, lanes);
    for i in t.serial(cfg.bt) {
        let token = b * cfg.bt + i;
        let post: Vec<_> = (0..n).map(|k| post[(token, k)]).collect();
        let comb: Vec<Vec<_>> = (0..n).map(|j| (0..n).map(|k| comb[(token, j, k)]).collect()).collect();
        dots.clear(t);
        for chunk in t.serial(d.div_ceil(cfg.bd)) {
            for c in t.parallel(lanes) {
                for e in t.unrolled(neighbours) {
                    let at = chunk * cfg.bd + c * neighbours + e;
                    let g: Vec<Expr<f32>> = (0..n).map(|k| dy[(token, k, at)].cast()).collect();
                    df[(token, at)] = weighted_sum(&post, |k| g[k]).cast();
                    let f = f[(token, at)].cast();
                    for k in 0..n {
                        dots.add(n * n + k, c, f, g[k]);
                    }
                    for j in 0..n {
                        dx[(token, j, at)] = weighted_sum(&comb[j], |k| g[k]).cast();
                        let x = x[(token, j, at)].cast();
                        for k in 0..n {
                            dots.add(j * n + k, c, x, g[k]);
                        }
                    }
                }
            }
        }
        let sums = dots.sum(t);
        for k in t.parallel(n) {
            dpost[(token, k)] = sums[k + n * n];
        }
        for (j, k) in t.parallel((n, n)) {
            dcomb[(token, j, k)] = sums[j * n + k];
        }
    }
}

fn post_backward_problem(s: Shape, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let (n, d) = (s.streams, s.dim);
    let mut inputs = Inputs::new(21);
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, d], 1.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, n, d], 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[s.tokens, n], 0.0, 2.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[s.tokens, n, n], 0.0, 1.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, n, d], 1.0)?),
        Value::Tensor(output(DType::BF16, &[s.tokens, d])?),
        Value::Tensor(output(DType::BF16, &[s.tokens, n, d])?),
        Value::Tensor(output(DType::F32, &[s.tokens, n])?),
        Value::Tensor(output(DType::F32, &[s.tokens, n, n])?),
    ];
    Ok(problem(MhcPostBackward::new(cfg), args, move |args| {
        let sample = s.sample();
        let [f, x, post, comb, dy, df, dx, dpost, dcomb] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|i| tokens(&args[i], &sample));
        let want = s.mhc().post_backward(&f, &x, &post, &comb, &dy);
        let sizes = s.mhc().post_backward(&abs(&f), &abs(&x), &post, &comb, &abs(&dy));
        let mixes = Tolerance::AbsPlusRel { abs: 1e-4, rel: 1e-4 };
        vec![
            check_bf16("df", &df, &want.df, &sizes.df),
            check_bf16("dx", &dx, &want.dx, &sizes.dx),
            check("dpost", &dpost, &want.dpost, mixes),
            check("dcomb", &dcomb, &want.dcomb, mixes),
        ]
    }))
}

pub(super) const DEFAULT: RowsConfig = RowsConfig { bt: 1, bd: 1024, threads: 128 };

/// The library's entry.
pub const ENTRY: Entry<RowsConfig> = Entry {
    info: Info {
        name: "mhc_post_backward",
        family: Family::Mhc,
        summary: "gradients of a sub-layer's output, the streams, post and C",
        equation: "dF = bf16(sum_k post_k dX'_k);  dX_j = bf16(sum_k C[j,k] dX'_k);  dpost_k = <dX'_k, F>;  dC[j,k] = <X_j, dX'_k>",
        tolerance: "dF and dX bf16 of a value within 2^-16 of its terms; dpost and dC abs 1e-4 + rel 1e-4",
        source: "V4 specification 2.2 (post bwd), 2.3",
    },
    config: DEFAULT,
    small: &[RowsConfig::SMALL],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcPostBackward::new(cfg)),
    problem: post_backward_problem,
};
