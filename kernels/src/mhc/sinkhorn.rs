//! Sinkhorn normalisation of the residual matrix.

use super::problem::{EPS, Entry, F32, Shape, check, problem, scalar, tokens};
use super::token::Matrix;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`mhc_sinkhorn`] and its rounds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = rounds > 0)]
pub struct SinkhornConfig {
    /// Tokens of a block.
    #[tune(32, 64, 128)]
    pub bt: usize,
    #[tune(32, 64, 128)]
    pub threads: usize,
    /// Column steps; V4 has 20. There is one row step fewer.
    pub rounds: usize,
}

/// Each token's logits [n, n] to a nearly doubly stochastic matrix: softmax along k plus eps, then columns, then
/// `rounds - 1` times rows and columns, each divided by its sum plus eps.
///
/// A token's matrix stays in the registers of one thread or vector lane, so the loop over tokens is the vector loop.
#[kernel(static_dims(n))]
pub fn mhc_sinkhorn(
    t: T,
    #[dims(tokens, n, n)] logits: &Tensor<f32, 3>,
    #[dims(tokens, n, n)] comb: &mut Tensor<f32, 3>,
    eps: Expr<f32>,
    #[comptime] cfg: SinkhornConfig,
) {
    let [b] = t.grid([logits.dim(0).ceil_div(cfg.bt)], cfg.threads);
    for i in t.parallel(cfg.bt) {
        let token = b * cfg.bt + i;
        let c = Matrix::from_fn(logits.static_dim(1), |j, k| logits[(token, j, k)]).sinkhorn(t, cfg.rounds, eps);
        c.for_each(|j, k, c| comb.store((token, j, k), c));
    }
}

fn sinkhorn_problem(s: Shape, cfg: SinkhornConfig) -> Result<Problem, ProblemError> {
    let shape = [s.tokens, s.streams, s.streams];
    let args = vec![
        Value::Tensor(Inputs::new(4).normal(DType::F32, &shape, 2.0)?),
        Value::Tensor(output(DType::F32, &shape)?),
        scalar(EPS),
    ];
    Ok(problem(MhcSinkhorn::new(cfg), args, move |args| {
        let mhc = crate::reference::mhc::Mhc { rounds: cfg.rounds, ..s.mhc() };
        let sample = s.sample();
        vec![check("comb", &tokens(&args[1], &sample), &mhc.sinkhorn(&tokens(&args[0], &sample)), F32)]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<SinkhornConfig> = Entry {
    info: Info {
        name: "mhc_sinkhorn",
        family: Family::Mhc,
        summary: "Sinkhorn normalisation of the residual matrix, 20 rounds",
        equation: "C = softmax_k(L) + eps;  C[:,k] /= sum_j C + eps;  19 x { C[j,:] /= sum_k C + eps;  C[:,k] /= sum_j C + eps }",
        tolerance: "abs 1e-5 + rel 1.3e-6",
        source: "V4 specification 2.1 step 3, appendix d 3",
    },
    config: SinkhornConfig { bt: 32, threads: 32, rounds: 20 },
    small: &[SinkhornConfig { bt: 8, threads: 32, rounds: 20 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcSinkhorn::new(cfg)),
    problem: sinkhorn_problem,
};
