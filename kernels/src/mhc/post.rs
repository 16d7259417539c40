//! The state after a sub-layer.

use super::apply::RowsConfig;
use super::problem::{Entry, Shape, abs, check_bf16, problem, tokens};
use super::token::next_state;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use zellige::prelude::*;
use zellige_ir::DType;

/// `X'_k = post_k F + sum_j C[j, k] X_j`, rounded once. C is applied transposed: its first index is the source stream.
#[kernel(static_dims(n, d))]
pub fn mhc_post(
    t: T,
    #[dims(tokens, d)] f: &Tensor<bf16, 2>,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(tokens, n)] post: &Tensor<f32, 2>,
    #[dims(tokens, n, n)] comb: &Tensor<f32, 3>,
    #[dims(tokens, n, d)] y: &mut Tensor<bf16, 3>,
    #[comptime] cfg: RowsConfig,
) {
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let [first, column] = cfg.grid(t, x.dim(0), d);
    for i in t.serial(cfg.bt) {
        let token = first + i;
        let post: Vec<_> = (0..n).map(|k| post[(token, k)]).collect();
        let comb: Vec<_> = (0..n * n).map(|e| comb[(token, e / n, e % n)]).collect();
        for c in t.parallel(cfg.bd) {
            let at = column + c;
            let f = f[(token, at)].cast();
            let streams: Vec<_> = (0..n).map(|j| x[(token, j, at)].cast()).collect();
            for k in 0..n {
                y[(token, k, at)] = next_state(post[k], f, |j| comb[j * n + k], &streams).cast();
            }
        }
    }
}

fn post_problem(s: Shape, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let (n, d) = (s.streams, s.dim);
    let mut inputs = Inputs::new(6);
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, d], 1.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, n, d], 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[s.tokens, n], 0.0, 2.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[s.tokens, n, n], 0.0, 1.0)?),
        Value::Tensor(output(DType::BF16, &[s.tokens, n, d])?),
    ];
    Ok(problem(MhcPost::new(cfg), args, move |args| {
        let sample = s.sample();
        let [f, x, post, comb, y] = [0, 1, 2, 3, 4].map(|i| tokens(&args[i], &sample));
        let want = s.mhc().post(&f, &x, &post, &comb, sample.len());
        let sizes = s.mhc().post(&abs(&f), &abs(&x), &post, &comb, sample.len());
        vec![check_bf16("y", &y, &want, &sizes)]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<RowsConfig> = Entry {
    info: Info {
        name: "mhc_post",
        family: Family::Mhc,
        summary: "state after a sub-layer: its output spread over the mixed streams",
        equation: "X'[t,k,c] = bf16(post[t,k] F[t,c] + sum_j C[t,j,k] X[t,j,c])",
        tolerance: "bf16 of a value within 2^-16 of its terms",
        source: "V4 specification 2.1 step 5, 2.2 (post)",
    },
    config: RowsConfig::DEFAULT,
    small: &[RowsConfig::SMALL],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcPost::new(cfg)),
    problem: post_problem,
};
