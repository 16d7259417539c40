//! RMSNorm fused with the per-token cast to e4m3 that feeds the next FP8 product.

use super::{BF16_STEP, row_rstd, rows_for};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::quant::problem::{compare_codes, sf_shape};
use crate::quant::scale::{Code, PerGroup, ScaleLayout, Scaling, Sharing, divide, scales};
use crate::reference::codec::bf16_round_all;
use crate::reference::metrics::compare;
use crate::reference::quant::{CastSpec, CodeFormat, ScaleFormat, cast};
use crate::reference::{norm as reference, quant};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Tile sizes of [`rms_norm_cast`] and what its scale factors look like.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = group > 0)]
#[tune(constraint = layout == ScaleLayout::RowMajor || (layout == ScaleLayout::ColumnMajor && rows.is_multiple_of(4)))]
pub struct RmsNormCastConfig {
    /// Rows of a block.
    #[tune(1, 2, 4, 8)]
    pub rows: usize,
    #[tune(64, 128, 256)]
    pub threads: usize,
    /// Is there a weight?
    pub weighted: bool,
    /// Columns that share a scale factor.
    pub group: usize,
    /// Round scale factors up to a power of two.
    pub ue8m0: bool,
    /// Row-major, or column-major if a block has a multiple of 4 rows.
    pub layout: ScaleLayout,
}

impl RmsNormCastConfig {
    /// Tiles that fit the registers of a block.
    pub fn for_dim(dim: usize) -> RmsNormCastConfig {
        RmsNormCastConfig {
            rows: rows_for(8192, dim),
            threads: 256,
            weighted: true,
            group: 128,
            ue8m0: true,
            layout: ScaleLayout::RowMajor,
        }
    }
}

impl Default for RmsNormCastConfig {
    fn default() -> RmsNormCastConfig {
        RmsNormCastConfig::for_dim(7168)
    }
}

/// `y = bf16(w x / sqrt(mean(x^2) + eps))`, and `y` cast to e4m3 with a scale factor for each group of a row, as
/// [`quant_cast`](crate::quant::cast::quant_cast) does it: the same bits as the two kernels one after the other, with one pass over `x`.
///
/// The row length is a multiple of the group. `weight` is read if the config says so; it and `y` may be empty otherwise.
#[kernel(static_dims(dim))]
pub fn rms_norm_cast(
    t: T,
    #[dims(rows, dim)] x: &Tensor<bf16, 2>,
    #[dims(weights)] weight: &Tensor<f32, 1>,
    eps: Expr<f32>,
    #[dims(kept, dim)] y: &mut Tensor<bf16, 2>,
    #[dims(rows, dim)] codes: &mut Tensor<f8e4m3, 2>,
    #[dims(sf_rows, sf_cols)] sf: &mut Tensor<f32, 2>,
    #[comptime] cfg: RmsNormCastConfig,
) {
    let RmsNormCastConfig { rows, group, .. } = cfg;
    let dim = x.static_dim(1);
    t.assert(dim.is_multiple_of(group).into(), "rms_norm_cast: the rows are not a whole number of groups");
    let [b] = t.grid([x.dim(0).ceil_div(rows)], cfg.threads);
    let (tile, y_b) = (t.fragment::<f32, 2>([rows, dim]), t.fragment::<bf16, 2>([rows, dim]));
    t.cast(x.at((b * rows, 0)), tile);
    let rstd = row_rstd(t, tile, eps);
    for (r, c) in t.parallel((rows, dim)) {
        let scale = if cfg.weighted { rstd[r] * weight[c] } else { rstd[r] };
        y_b[(r, c)] = (tile[(r, c)] * scale).cast();
    }
    t.copy(y_b, y.at((b * rows, 0)));

    // The groups of all rows one below the other, so that they are cast side by side.
    let groups = dim / group;
    let count = rows * groups;
    let place = |q: Idx| (q / groups, q % groups);
    let part = t.fragment::<f32, 2>([count, group]);
    for (q, c) in t.parallel((count, group)) {
        let (r, g) = place(q);
        part[(q, c)] = y_b[(r, g * group + c)].cast::<f32>();
    }
    let amax = PerGroup::new(t, Sharing::Row, [count, group]);
    amax.clear(t);
    amax.absmax_into(t, part);
    let scales = scales::<f8e4m3>(t, amax, lit(f8e4m3::AMAX_FLOOR), Scaling::new(cfg.ue8m0, false));
    divide(t, part, &scales);
    for (q, c) in t.parallel((count, group)) {
        let (r, g) = place(q);
        codes[(b * rows + r, g * group + c)] = part[(q, c)].cast::<f8e4m3>();
    }
    for q in t.parallel(count) {
        let (r, g) = place(q);
        let row = b * rows + r;
        match cfg.layout {
            // Rows up to a multiple of four are padding.
            ScaleLayout::ColumnMajor => {
                sf[(g, row)] = select(row < x.dim(0), scales.factor.at(q, q), 0.0);
            }
            ScaleLayout::RowMajor | ScaleLayout::Packed => sf[(row, g)] = scales.factor.at(q, q),
        }
    }
}

/// The library's entry.
pub struct Entry;

fn problem(rows: usize, dim: usize, cfg: RmsNormCastConfig) -> Result<Problem, ProblemError> {
    if !dim.is_multiple_of(cfg.group) {
        return Err(ProblemError::Unsupported(format!(
            "rows of {dim} are not a whole number of groups of {}",
            cfg.group
        )));
    }
    let mut inputs = Inputs::new(29);
    let weights = if cfg.weighted { dim } else { 0 };
    let groups = dim.div_ceil(cfg.group);
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[rows, dim], 2.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[weights], 0.5, 1.5)?),
        Value::Scalar(Const::f32(reference::EPS as f32)),
        Value::Tensor(output(DType::BF16, &[rows, dim])?),
        Value::Tensor(output(DType::F8E4M3, &[rows, dim])?),
        Value::Tensor(output(DType::F32, &sf_shape(rows, groups, cfg.layout))?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let (x, weight, y) = (args[0].f32s(), args[1].f32s(), args[3].f32s());
        let want = reference::rms_norm(&x, cfg.weighted.then_some(&weight), rows, dim, reference::EPS);
        // The cast is exact, given the rounded norm.
        let scale = if cfg.ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
        let quantized = cast(&y, rows, dim, &CastSpec::per_token(CodeFormat::E4m3, cfg.group, scale));
        let scales = match cfg.layout {
            ScaleLayout::RowMajor | ScaleLayout::Packed => quantized.scales.clone(),
            ScaleLayout::ColumnMajor => quant::scales_column_major(&quantized.scales, rows, groups),
        };
        vec![
            Comparison { output: "y", verdict: compare(&y, &bf16_round_all(&want.y), BF16_STEP) },
            compare_codes("codes", &args[4], &quantized.codes, CodeFormat::E4m3),
            Comparison::exact_f32("sf", &args[5].f32s(), &scales),
        ]
    };
    Ok(Problem { kernel: Box::new(RmsNormCast::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(rows: usize, dim: usize, cfg: RmsNormCastConfig) -> Case {
    let weight = if cfg.weighted { "" } else { " no weight" };
    let scale = if cfg.ue8m0 { "ue8m0" } else { "f32" };
    let name = format!("rows={rows} dim={dim} group={} {scale} {:?}{weight}", cfg.group, cfg.layout);
    Case::new(name, cfg, move |cfg| problem(rows, dim, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "rmsnorm_cast",
            family: Family::Norm,
            summary: "RMSNorm fused with the per-token cast to e4m3",
            equation: "y = bf16(w x / sqrt(mean(x^2) + eps)), codes = e4m3(y / sf)",
            tolerance: "y: a bf16 step (rel 1/128), cos 1e-6; codes and scale factors of y: exact",
            source: "V4 specification 1.2, 4.1, 7",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(RmsNormCastConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(RmsNormCast::new(apply(RmsNormCastConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = RmsNormCastConfig::for_dim;
        match scale {
            Scale::Small => vec![
                case(0, 512, cfg(512)),
                case(1, 7168, cfg(7168)),
                case(5, 576, RmsNormCastConfig { group: 64, rows: 4, ue8m0: false, ..cfg(576) }),
                case(6, 512, RmsNormCastConfig { layout: ScaleLayout::ColumnMajor, rows: 4, ..cfg(512) }),
                case(3, 256, RmsNormCastConfig { weighted: false, ..cfg(256) }),
            ],
            Scale::Representative => vec![case(4096, 7168, cfg(7168))],
            Scale::Full => vec![
                case(4096, 1536, cfg(1536)),
                case(4096, 4096, RmsNormCastConfig { layout: ScaleLayout::ColumnMajor, rows: 4, ..cfg(4096) }),
            ],
        }
    }
}
