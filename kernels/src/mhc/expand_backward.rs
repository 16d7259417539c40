//! The gradient of the embedding: the sum of its copies' gradients.

use super::apply::RowsConfig;
use super::problem::{Entry, Shape, abs, check_bf16, problem, tokens};
use super::token::ordered_sum;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use zellige::prelude::*;
use zellige_ir::DType;

/// `dx[t] = sum_j dY[t, j]` in the order of j, rounded once.
#[kernel(static_dims(n, d))]
pub fn mhc_expand_backward(
    t: T,
    #[dims(tokens, n, d)] dy: &Tensor<bf16, 3>,
    #[dims(tokens, d)] dx: &mut Tensor<bf16, 2>,
    #[comptime] cfg: RowsConfig,
) {
    let [first, column] = cfg.grid(t, dy.dim(0), dy.static_dim(2));
    for i in t.serial(cfg.bt) {
        for c in t.parallel(cfg.bd) {
            let (token, at) = (first + i, column + c);
            dx[(token, at)] = ordered_sum(dy.static_dim(1), |j| dy[(token, j, at)].cast()).cast();
        }
    }
}

fn expand_backward_problem(s: Shape, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let args = vec![
        Value::Tensor(Inputs::new(12).normal(DType::BF16, &[s.tokens, s.streams, s.dim], 1.0)?),
        Value::Tensor(output(DType::BF16, &[s.tokens, s.dim])?),
    ];
    Ok(problem(MhcExpandBackward::new(cfg), args, move |args| {
        let sample = s.sample();
        let (dy, dx) = (tokens(&args[0], &sample), tokens(&args[1], &sample));
        vec![check_bf16("dx", &dx, &s.mhc().expand_backward(&dy), &s.mhc().expand_backward(&abs(&dy)))]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<RowsConfig> = Entry {
    info: Info {
        name: "mhc_expand_backward",
        family: Family::Mhc,
        summary: "gradient of the embedding: sum over the streams",
        equation: "dx[t,c] = bf16(sum_j dY[t,j,c])",
        tolerance: "bf16 of a value within 2^-16 of its terms",
        source: "V4 specification 2.2 (expand bwd)",
    },
    config: RowsConfig::DEFAULT,
    small: &[RowsConfig::SMALL],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcExpandBackward::new(cfg)),
    problem: expand_backward_problem,
};
