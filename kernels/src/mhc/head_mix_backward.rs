//! The gradients of the head's mixes.

use super::problem::{Entry, PARTS, Shape, check, problem, total};
use super::split::SplitConfig;
use super::split_backward::ParameterSums;
use super::token::Affine;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// `d = dpre sigmoid'(s m + b)`, `dm = d s`, and the parts `dscale = sum_t,j d m` and `dbase = sum_t d`, as
/// [`mhc_split_backward`](super::split_backward::mhc_split_backward) leaves them.
#[kernel(static_dims(n, parts))]
pub fn mhc_head_mix_backward(
    t: T,
    #[dims(tokens, n)] mixes: &Tensor<f32, 2>,
    #[dims(1)] scale: &Tensor<f32, 1>,
    #[dims(n)] base: &Tensor<f32, 1>,
    #[dims(tokens, n)] dpre: &Tensor<f32, 2>,
    #[dims(tokens, n)] dmixes: &mut Tensor<f32, 2>,
    #[dims(parts, 1)] dscale: &mut Tensor<f32, 2>,
    #[dims(parts, n)] dbase: &mut Tensor<f32, 2>,
    #[comptime] cfg: SplitConfig,
) {
    let (bt, n, parts) = (cfg.bt, dpre.static_dim(1), dscale.static_dim(0));
    let [part] = t.grid([parts], cfg.threads);
    let sums = ParameterSums::new(t, bt, n);
    let scale = scale[0usize];
    for step in t.serial(mixes.dim(0).ceil_div(bt).ceil_div(parts)) {
        for (i, j) in t.parallel((bt, n)) {
            let token = (step * parts + part) * bt + i;
            let m = mixes[(token, j)];
            let d = dpre[(token, j)] * Affine { scale, base: base[j] }.slope(m);
            dmixes[(token, j)] = d * scale;
            sums.add(i, j, d, m);
        }
    }
    sums.write(t, part, std::slice::from_ref(&(0..n)), dscale, dbase);
}

fn head_mix_backward_problem(s: Shape, cfg: SplitConfig) -> Result<Problem, ProblemError> {
    let (n, shape) = (s.streams, [s.tokens, s.streams]);
    let mut inputs = Inputs::new(18);
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &shape, 2.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[1], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[n], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &shape, 1.0)?),
        Value::Tensor(output(DType::F32, &shape)?),
        Value::Tensor(output(DType::F32, &[PARTS, 1])?),
        Value::Tensor(output(DType::F32, &[PARTS, n])?),
    ];
    Ok(problem(MhcHeadMixBackward::new(cfg), args, move |args| {
        let [mixes, scale, base, dpre, dmixes, dscale, dbase] = [0, 1, 2, 3, 4, 5, 6].map(|i| args[i].f32s());
        let want = s.mhc().head_mix_backward(&mixes, scale[0], &base, &dpre);
        let tolerance = Tolerance::AbsPlusRel { abs: 1e-5, rel: 1e-5 };
        vec![
            check("dmixes", &dmixes, &want.0, tolerance),
            check("dscale", &total(&dscale, 1), &[want.1], tolerance),
            check("dbase", &total(&dbase, n), &want.2, tolerance),
        ]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<SplitConfig> = Entry {
    info: Info {
        name: "mhc_head_mix_backward",
        family: Family::Mhc,
        summary: "gradients of the head's mixes, and parts of those of its scale and biases",
        equation: "d = dpre sigmoid'(s m + b);  dm = d s;  ds = sum_{t,j} d m;  db[j] = sum_t d",
        tolerance: "abs 1e-5 + rel 1e-5",
        source: "V4 specification 2.2 (head_compute_mix bwd)",
    },
    config: SplitConfig { bt: 32, threads: 128 },
    small: &[SplitConfig { bt: 8, threads: 32 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcHeadMixBackward::new(cfg)),
    problem: head_mix_backward_problem,
};
