//! RMSNorm backward: the gradient of the rows, and the gradient of the weight in fixed parts.

use super::BF16_STEP;
use super::rmsnorm::RmsNormConfig;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::norm as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tiles that are read ahead, and the one at hand.
const STAGES: usize = 3;

/// With `xh = x rstd`: `dx = rstd (w dy - xh mean(w dy xh))` and, summed over the rows of each part, `dw = sum dy xh`.
///
/// Part `p` of P takes every P-th tile of rows from `p` on: the number of rows of `dw` says how the sum is split, so its bits
/// do not depend on the device. [`column_sum`](super::column_sum::column_sum) adds the parts. `rstd` is what
/// [`rms_norm`](super::rmsnorm::rms_norm) saved. `weight` is read if the config says so and may be empty otherwise.
#[kernel(static_dims(dim))]
pub fn rms_norm_backward(
    t: T,
    #[dims(rows, dim)] x: &Tensor<bf16, 2>,
    #[dims(weights)] weight: &Tensor<f32, 1>,
    #[dims(rows, dim)] dy: &Tensor<bf16, 2>,
    #[dims(rows)] rstd: &Tensor<f32, 1>,
    #[dims(rows, dim)] dx: &mut Tensor<bf16, 2>,
    #[dims(parts, dim)] dw: &mut Tensor<f32, 2>,
    #[comptime] cfg: RmsNormConfig,
) {
    let (rows, dim) = (cfg.rows, x.static_dim(1));
    let [part] = t.grid([dw.dim(0)], cfg.threads);
    let product = t.fragment::<f32, 2>([rows, dim]);
    let (mean, dw_sum, w) = (t.fragment::<f32, 1>([rows]), t.fragment::<f32, 1>([dim]), t.fragment::<f32, 1>([dim]));
    t.clear(dw_sum);
    if cfg.weighted {
        t.copy(weight.at(0), w);
    }
    let weigh = |v: Expr<f32>, c: Idx| if cfg.weighted { v * w[c] } else { v };
    let (x_tile, dy_tile) = (t.shared::<bf16, 2>([rows, dim]), t.shared::<bf16, 2>([rows, dim]));
    let parts = dw.dim(0);
    for i in t.pipelined((x.dim(0).ceil_div(rows) - part).ceil_div(parts), STAGES) {
        let first = (part + i * parts) * rows;
        t.copy(x.at((first, 0)), x_tile);
        t.copy(dy.at((first, 0)), dy_tile);
        // Read again rather than kept in registers.
        let at = |r: Idx, c: Idx| (x_tile[(r, c)].cast::<f32>() * rstd[first + r], dy_tile[(r, c)].cast::<f32>());
        for (r, c) in t.parallel((rows, dim)) {
            let (xh, dy) = at(r, c);
            product[(r, c)] = dy * xh;
        }
        t.reduce_sum_into(product, dw_sum, 0);
        if cfg.weighted {
            for (r, c) in t.parallel((rows, dim)) {
                product[(r, c)] *= w[c];
            }
        }
        t.reduce_sum(product, mean, 1);
        for (r, c) in t.parallel((rows, dim)) {
            let (xh, dy) = at(r, c);
            product[(r, c)] = rstd[first + r] * (weigh(dy, c) - xh * (mean[r] / dim as f32));
        }
        t.cast(product, dx.at((first, 0)));
    }
    t.copy(dw_sum, dw.at((part, 0)));
}

/// The library's entry.
pub struct Entry;

/// fp32 sums of thousands of terms: about 1e-6 off, squared.
const DW: Tolerance = Tolerance::CalcDiff(1e-11);

fn problem(rows: usize, dim: usize, parts: usize, cfg: RmsNormConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(4);
    let weights = if cfg.weighted { dim } else { 0 };
    let x = inputs.normal(DType::BF16, &[rows, dim], 2.0)?;
    let rstd = reference::rms_norm(&Value::Tensor(x.clone()).f32s(), None, rows, dim, reference::EPS).rstd;
    let args = vec![
        Value::Tensor(x),
        Value::Tensor(inputs.uniform(DType::F32, &[weights], 0.5, 1.5)?),
        Value::Tensor(inputs.normal(DType::BF16, &[rows, dim], 1.0)?),
        Value::Tensor(DynTensor::from_slice(&[rows], &rstd)?),
        Value::Tensor(output(DType::BF16, &[rows, dim])?),
        Value::Tensor(output(DType::F32, &[parts, dim])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let (x, weight, dy) = (args[0].f32s(), args[1].f32s(), args[2].f32s());
        let (dx, dw) = (args[4].f32s(), args[5].f32s());
        let want = reference::rms_norm_backward(&x, cfg.weighted.then_some(&weight), &dy, rows, dim, reference::EPS);
        let column = |c: usize| dw.iter().skip(c).step_by(dim).map(|&v| f64::from(v)).sum::<f64>() as f32;
        let dw: Vec<f32> = (0..dim).map(column).collect();
        vec![
            Comparison { output: "dx", verdict: compare(&dx, &bf16_round_all(&want.dx), BF16_STEP) },
            Comparison { output: "dw", verdict: compare(&dw, &want.dw, DW) },
        ]
    };
    Ok(Problem { kernel: Box::new(RmsNormBackward::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(rows: usize, dim: usize, parts: usize, cfg: RmsNormConfig) -> Case {
    let weight = if cfg.weighted { "" } else { " no weight" };
    let name = format!("rows={rows} dim={dim} parts={parts}{weight}");
    Case::new(name, cfg, move |cfg| problem(rows, dim, parts, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "rmsnorm_backward",
            family: Family::Norm,
            summary: "RMSNorm backward; the weight's gradient in fixed parts",
            equation: "dx = r (w dy - xh mean(w dy xh)), dw = sum dy xh, xh = x r",
            tolerance: "dx: a bf16 step (rel 1/128), cos 1e-6; dw: calc_diff 1e-11",
            source: "V4 specification 7",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(RmsNormConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(RmsNormBackward::new(apply(RmsNormConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |rows: usize, dim: usize, parts: usize| {
            // They share 7168 columns without a rest.
            let threads = if dim.is_multiple_of(8 * 448) { 448 } else { 256 };
            let cfg = RmsNormConfig { rows: super::rows_for(4096, dim), threads, ..RmsNormConfig::for_dim(dim) };
            self::case(rows, dim, parts, cfg)
        };
        match scale {
            Scale::Small => {
                let unweighted = RmsNormConfig { weighted: false, rows: 4, ..RmsNormConfig::for_dim(512) };
                vec![
                    case(0, 64, 2),
                    case(1, 7168, 1),
                    case(19, 576, 4),
                    case(70, 100, 3),
                    self::case(9, 512, 2, unweighted),
                ]
            }
            Scale::Representative => vec![case(4096, 7168, 132)],
            Scale::Full => {
                vec![case(8192, 7168, 132), case(4096, 4096, 128), case(4096, 1536, 128), case(8192, 512, 64)]
            }
        }
    }
}
