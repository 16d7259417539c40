//! Folding an RMSNorm weight into the projection, and its gradient.

use super::apply::RowsConfig;
use super::problem::{Entry, F32, Shape, check, problem};
use super::token::ordered_sum;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Scale, Value};
use crate::reference::metrics::Tolerance;
use crate::reference::mhc_backward::{merge_norm_weight, merge_norm_weight_backward};
use zellige::prelude::*;
use zellige_ir::DType;

/// `merged[o, k] = phi[o, k] w[k]`.
#[kernel(static_dims(outputs, k))]
pub fn mhc_norm_weight(
    t: T,
    #[dims(outputs, k)] phi: &Tensor<f32, 2>,
    #[dims(k)] weight: &Tensor<f32, 1>,
    #[dims(outputs, k)] merged: &mut Tensor<f32, 2>,
    #[comptime] cfg: RowsConfig,
) {
    let [first, column] = cfg.grid(t, phi.dim(0), phi.static_dim(1));
    for i in t.serial(cfg.bt) {
        for c in t.parallel(cfg.bd) {
            let at = column + c;
            merged[(first + i, at)] = phi[(first + i, at)] * weight[at];
        }
    }
}

/// `dphi[o, k] = dmerged[o, k] w[k]` and `dw[k] = sum_o dmerged[o, k] phi[o, k]` in the order of o.
#[kernel(static_dims(outputs, k))]
pub fn mhc_norm_weight_backward(
    t: T,
    #[dims(outputs, k)] phi: &Tensor<f32, 2>,
    #[dims(k)] weight: &Tensor<f32, 1>,
    #[dims(outputs, k)] dmerged: &Tensor<f32, 2>,
    #[dims(outputs, k)] dphi: &mut Tensor<f32, 2>,
    #[dims(k)] dweight: &mut Tensor<f32, 1>,
    #[comptime] cfg: RowsConfig,
) {
    let outputs = phi.static_dim(0);
    let [b] = t.grid([phi.static_dim(1).div_ceil(cfg.bd)], cfg.threads);
    for c in t.parallel(cfg.bd) {
        let at = b * cfg.bd + c;
        let w = weight[at];
        let g: Vec<_> = (0..outputs).map(|o| dmerged[(o, at)]).collect();
        for o in 0..outputs {
            dphi[(o, at)] = g[o] * w;
        }
        dweight[at] = ordered_sum(outputs, |o| g[o] * phi[(o, at)]);
    }
}

/// The tokens do not matter here.
fn shapes(scale: Scale) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Shape::of(scale).into_iter().map(|s| Shape { tokens: 1, ..s }).collect();
    shapes.dedup();
    shapes
}

fn merge_problem(s: Shape, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let shape = [s.mixes(), s.width()];
    let mut inputs = Inputs::new(13);
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &shape, 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &shape[1..], 1.0)?),
        Value::Tensor(output(DType::F32, &shape)?),
    ];
    Ok(problem(MhcNormWeight::new(cfg), args, move |args| {
        let want = merge_norm_weight(&args[0].f32s(), &args[1].f32s());
        vec![check("merged", &args[2].f32s(), &want, Tolerance::Exact)]
    }))
}

fn merge_backward_problem(s: Shape, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let shape = [s.mixes(), s.width()];
    let mut inputs = Inputs::new(14);
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &shape, 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &shape[1..], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &shape, 1.0)?),
        Value::Tensor(output(DType::F32, &shape)?),
        Value::Tensor(output(DType::F32, &shape[1..])?),
    ];
    Ok(problem(MhcNormWeightBackward::new(cfg), args, move |args| {
        let [phi, weight, dmerged, dphi, dweight] = [0, 1, 2, 3, 4].map(|i| args[i].f32s());
        let want = merge_norm_weight_backward(&phi, &weight, &dmerged);
        vec![check("dphi", &dphi, &want.0, Tolerance::Exact), check("dweight", &dweight, &want.1, F32)]
    }))
}

/// The library's entry of the forward kernel.
pub const ENTRY: Entry<RowsConfig> = Entry {
    info: Info {
        name: "mhc_norm_weight",
        family: Family::Mhc,
        summary: "RMSNorm weight folded into the projection",
        equation: "merged[o,k] = phi[o,k] w[k]",
        tolerance: "exact",
        source: "V4 specification 2.1 step 1, 2.2 (fn_normw_merge)",
    },
    config: RowsConfig::DEFAULT,
    small: &[RowsConfig::SMALL],
    shapes,
    kernel: |cfg| Box::new(MhcNormWeight::new(cfg)),
    problem: merge_problem,
};

/// The library's entry of the backward kernel.
pub const BACKWARD_ENTRY: Entry<RowsConfig> = Entry {
    info: Info {
        name: "mhc_norm_weight_backward",
        family: Family::Mhc,
        summary: "gradients of the RMSNorm weight and of the projection it was folded into",
        equation: "dphi[o,k] = g[o,k] w[k];  dw[k] = sum_o g[o,k] phi[o,k]",
        tolerance: "dphi exact; dw abs 1e-5 + rel 1.3e-6",
        source: "V4 specification 2.2 (fn_normw_merge bwd)",
    },
    config: RowsConfig { bt: 1, bd: 128, threads: 128 },
    small: &[RowsConfig::SMALL],
    shapes,
    kernel: |cfg| Box::new(MhcNormWeightBackward::new(cfg)),
    problem: merge_backward_problem,
};
