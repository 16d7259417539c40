//! The mixes of the model's head.

use super::problem::{EPS, Entry, Shape, check, problem, scalar, tokens};
use super::split::SplitConfig;
use super::token::Affine;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// `pre_j = sigmoid(s m_j + b_j) + eps`.
#[kernel(static_dims(n))]
pub fn mhc_head_mix(
    t: T,
    #[dims(tokens, n)] mixes: &Tensor<f32, 2>,
    #[dims(1)] scale: &Tensor<f32, 1>,
    #[dims(n)] base: &Tensor<f32, 1>,
    #[dims(tokens, n)] pre: &mut Tensor<f32, 2>,
    eps: Expr<f32>,
    #[comptime] cfg: SplitConfig,
) {
    let [b] = t.grid([mixes.dim(0).ceil_div(cfg.bt)], cfg.threads);
    let scale = scale[0usize];
    for (i, j) in t.parallel((cfg.bt, mixes.static_dim(1))) {
        let token = b * cfg.bt + i;
        pre[(token, j)] = Affine { scale, base: base[j] }.pre(mixes[(token, j)], eps);
    }
}

fn head_mix_problem(s: Shape, cfg: SplitConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(8);
    let shape = [s.tokens, s.streams];
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &shape, 2.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[1], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[s.streams], 1.0)?),
        Value::Tensor(output(DType::F32, &shape)?),
        scalar(EPS),
    ];
    Ok(problem(MhcHeadMix::new(cfg), args, move |args| {
        let sample = s.sample();
        let want = s.mhc().head_mix(&tokens(&args[0], &sample), args[1].f32s()[0], &args[2].f32s());
        let tolerance = Tolerance::AbsPlusRel { abs: 1e-5, rel: 1e-5 };
        vec![check("pre", &tokens(&args[3], &sample), &want, tolerance)]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<SplitConfig> = Entry {
    info: Info {
        name: "mhc_head_mix",
        family: Family::Mhc,
        summary: "mixes of the head",
        equation: "pre[t,j] = sigmoid(s m[t,j] + b[j]) + eps",
        tolerance: "abs 1e-5 + rel 1e-5 (the public test: 1e-4 and 1e-5)",
        source: "V4 specification 2.1 (head), 2.2 (head_compute_mix)",
    },
    config: SplitConfig { bt: 32, threads: 128 },
    small: &[SplitConfig { bt: 8, threads: 32 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcHeadMix::new(cfg)),
    problem: head_mix_problem,
};
