//! RMSNorm forward.

use super::{BF16_STEP, row_rstd, rows_for};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::norm as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Tile sizes of [`rms_norm`] and [`rms_norm_backward`](super::rmsnorm_backward::rms_norm_backward).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct RmsNormConfig {
    /// Rows of a tile.
    #[tune(1, 2, 4, 8, 16)]
    pub rows: usize,
    #[tune(64, 128, 256)]
    pub threads: usize,
    /// Is there a weight?
    pub weighted: bool,
}

impl RmsNormConfig {
    /// Tiles that fit the registers of a block.
    pub fn for_dim(dim: usize) -> RmsNormConfig {
        RmsNormConfig { rows: rows_for(8192, dim), threads: 256, weighted: true }
    }
}

impl Default for RmsNormConfig {
    fn default() -> RmsNormConfig {
        RmsNormConfig::for_dim(7168)
    }
}

/// `y = w * x * rstd`, `rstd = 1 / sqrt(mean(x^2) + eps)` over each row, in fp32, `y` rounded once.
///
/// `weight` is read if the config says so and may be empty otherwise. `rstd` is for the backward pass and may be empty.
#[kernel(static_dims(dim))]
pub fn rms_norm(
    t: T,
    #[dims(rows, dim)] x: &Tensor<bf16, 2>,
    #[dims(weights)] weight: &Tensor<f32, 1>,
    eps: Expr<f32>,
    #[dims(rows, dim)] y: &mut Tensor<bf16, 2>,
    #[dims(saved)] rstd: &mut Tensor<f32, 1>,
    #[comptime] cfg: RmsNormConfig,
) {
    let (rows, dim) = (cfg.rows, x.static_dim(1));
    let [b] = t.grid([x.dim(0).ceil_div(rows)], cfg.threads);
    let tile = t.fragment::<f32, 2>([rows, dim]);
    t.cast(x.at((b * rows, 0)), tile);
    let row_rstd = row_rstd(t, tile, eps);
    for (r, c) in t.parallel((rows, dim)) {
        let scale = if cfg.weighted { row_rstd[r] * weight[c] } else { row_rstd[r] };
        tile[(r, c)] *= scale;
    }
    t.cast(tile, y.at((b * rows, 0)));
    t.copy(row_rstd, rstd.at(b * rows));
}

/// The library's entry.
pub struct Entry;

/// A norm of random rows; without a weight nothing is saved for the backward pass either.
fn problem(rows: usize, dim: usize, cfg: RmsNormConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(3);
    let weights = if cfg.weighted { dim } else { 0 };
    let saved = if cfg.weighted { rows } else { 0 };
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[rows, dim], 2.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[weights], 0.5, 1.5)?),
        Value::Scalar(Const::f32(reference::EPS as f32)),
        Value::Tensor(output(DType::BF16, &[rows, dim])?),
        Value::Tensor(output(DType::F32, &[saved])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let (x, weight, y, rstd) = (args[0].f32s(), args[1].f32s(), args[3].f32s(), args[4].f32s());
        let want = reference::rms_norm(&x, cfg.weighted.then_some(&weight), rows, dim, reference::EPS);
        vec![
            Comparison { output: "y", verdict: compare(&y, &bf16_round_all(&want.y), BF16_STEP) },
            Comparison { output: "rstd", verdict: compare(&rstd, &want.rstd[..saved], RSTD) },
        ]
    };
    Ok(Problem { kernel: Box::new(RmsNorm::new(cfg)), args, work, verify: Box::new(verify) })
}

/// An fp32 sum of n squares one after another is off by about sqrt(n) half-ulps: 5e-6 for 7168; the root halves that.
const RSTD: Tolerance = Tolerance::AbsRel { abs: 0.0, rel: 1e-5 };

fn case(rows: usize, dim: usize, cfg: RmsNormConfig) -> Case {
    let weight = if cfg.weighted { "" } else { " no weight" };
    Case::new(format!("rows={rows} dim={dim}{weight}"), cfg, move |cfg| problem(rows, dim, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "rmsnorm",
            family: Family::Norm,
            summary: "RMSNorm forward with optional weight and saved 1/rms",
            equation: "y = w * x / sqrt(mean(x^2) + eps)",
            tolerance: "y: a bf16 step (rel 1/128), cos 1e-6; rstd: rel 1e-5",
            source: "V4 specification 1.1; Zhang and Sennrich, Root Mean Square Layer Normalization (2019)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(RmsNormConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(RmsNorm::new(apply(RmsNormConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |rows: usize, dim: usize| case(rows, dim, RmsNormConfig::for_dim(dim));
        // The head norm of the queries: 64 heads of 512 channels, no weight.
        let head_norm = |tokens: usize| {
            let cfg = RmsNormConfig { weighted: false, ..RmsNormConfig::for_dim(512) };
            self::case(tokens * 64, 512, cfg)
        };
        match scale {
            Scale::Small => {
                vec![case(0, 512), case(1, 7168), case(3, 4096), case(17, 576), case(33, 100), case(5, 1), head_norm(1)]
            }
            Scale::Representative => vec![case(4096, 7168)],
            Scale::Full => vec![case(8192, 4096), case(4096, 1536), case(4096, 512), case(1, 7168), head_norm(2048)],
        }
    }
}
