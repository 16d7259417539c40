//! Quantised matrices back to bf16 or f32.

use super::problem::{check_sf, format, lay_out, matrix, sf_dtype};
use super::scale::ScaleLayout;
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec;
use crate::reference::quant::{self as reference, CastSpec, ScaleFormat};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Config of [`cast_back`]: which elements share a scale factor, as in [`super::cast::CastConfig`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = block_rows > 0 && bn.is_multiple_of(2))]
#[tune(constraint = layout == ScaleLayout::RowMajor || block_rows == 1)]
#[tune(constraint = block_rows == 1 || bm.is_multiple_of(block_rows) || block_rows.is_multiple_of(bm))]
pub struct CastBackConfig {
    /// Rows that share a scale factor.
    pub block_rows: usize,
    /// Columns that share a scale factor; 0 for the whole row.
    pub block_cols: usize,
    pub layout: ScaleLayout,
    /// Rows of a tile.
    #[tune(8, 16, 32)]
    pub bm: usize,
    /// Columns of a tile.
    #[tune(128, 256, 512)]
    pub bn: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for CastBackConfig {
    /// Per token in groups of 128.
    fn default() -> CastBackConfig {
        CastBackConfig { block_rows: 1, block_cols: 128, layout: ScaleLayout::RowMajor, bm: 16, bn: 256, threads: 128 }
    }
}

/// `y[i, j] = codes[i, j] * sf`, one product in f32, rounded once: `codes` and `y` [m, k]. `sf` holds f32, e8m0, or packed
/// exponents in i32, in the layout of the config.
#[kernel(static_dims(k))]
pub fn cast_back<Q: Element, S: Element, O: Element>(
    t: T,
    #[dims(m, k)] codes: &Tensor<Q, 2>,
    #[dims(sf_rows, sf_cols)] sf: &Tensor<S, 2>,
    #[dims(m, k)] y: &mut Tensor<O, 2>,
    #[comptime] cfg: CastBackConfig,
) {
    let CastBackConfig { bm, bn, layout, .. } = cfg;
    let cols = codes.static_dim(1);
    let group = if cfg.block_cols == 0 { cols.max(1) } else { cfg.block_cols };
    let [bx, by] = t.grid((cols.div_ceil(bn), codes.dim(0).ceil_div(bm)), cfg.threads);
    let (row, col) = (by * bm, bx * bn);
    // Factors are fetched beside the codes, before any of them is converted.
    let (raw, tile) = (t.fragment::<Q, 2>([bm, bn]), t.fragment::<f32, 2>([bm, bn]));
    t.copy(codes.at((row, col)), raw);
    let factor = |i: Idx, g: Idx| match layout {
        ScaleLayout::RowMajor if cfg.block_rows == 1 => sf[(row + i, g)].cast::<f32>(),
        ScaleLayout::RowMajor => sf[((row + i) / cfg.block_rows, g)].cast::<f32>(),
        ScaleLayout::ColumnMajor => sf[(g, row + i)].cast::<f32>(),
        ScaleLayout::Packed => {
            let word = sf[(g / 4, row + i)].cast::<u32>();
            (word >> (g % 4 * 8).cast::<u32>()).cast::<u8>().bitcast::<e8m0>().cast::<f32>()
        }
    };
    if group.is_multiple_of(bn) {
        // A row of the tile lies in one group.
        let factors = t.fragment::<f32, 1>([bm]);
        for i in t.parallel(bm) {
            factors[i] = factor(i, col / group);
        }
        t.cast(raw, tile);
        for (i, j) in t.parallel((bm, bn)) {
            tile[(i, j)] *= factors[i];
        }
    } else {
        let factors = t.fragment::<f32, 2>([bm, bn]);
        for (i, j) in t.parallel((bm, bn)) {
            let g = if group == 1 { col + j } else { (col + j) / group };
            factors[(i, j)] = factor(i, g);
        }
        t.cast(raw, tile);
        for (i, j) in t.parallel((bm, bn)) {
            tile[(i, j)] *= factors[(i, j)];
        }
    }
    t.cast(tile, y.at((row, col)));
}

/// The library's entry.
pub struct Entry;

fn launcher(codes: DType, sf: DType, y: DType, cfg: CastBackConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    check_sf(cfg.layout, sf)?;
    with_type!(codes, Q in [F8E4M3 = f8e4m3, F4E2M1 = f4e2m1], {
        with_type!(sf, S in [F32 = f32, E8M0 = e8m0, I32 = i32], {
            with_type!(y, O in [BF16 = bf16, F32 = f32], Ok(Box::new(CastBack::<Q, S, O>::new(cfg))))
        })
    })
}

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Back {
    rows: usize,
    cols: usize,
    codes: DType,
    sf: DType,
    y: DType,
    cfg: CastBackConfig,
}

impl Back {
    fn spec(&self) -> CastSpec {
        let group = if self.cfg.block_cols == 0 { self.cols } else { self.cfg.block_cols };
        // F32 scale factors exercise products that round; the other types hold powers of two.
        let scale = if self.sf == DType::F32 { ScaleFormat::F32 } else { ScaleFormat::Ue8m0 };
        CastSpec { block: (self.cfg.block_rows, group), ..CastSpec::per_token(format(self.codes), group, scale) }
    }

    fn case(self) -> Case {
        let Back { rows, cols, codes, sf, y, cfg } = self;
        let (block_rows, block_cols) = self.spec().block;
        let layout = match cfg.layout {
            ScaleLayout::RowMajor => "",
            ScaleLayout::ColumnMajor => " column-major",
            ScaleLayout::Packed => " packed",
        };
        let name = format!("m={rows} k={cols} {codes}->{y} {block_rows}x{block_cols} sf={sf}{layout}");
        Case::new(name, cfg, move |cfg| Back { cfg, sf: sf_dtype(cfg.layout, sf), ..self }.problem())
    }

    fn problem(self) -> Result<Problem, ProblemError> {
        let Back { rows, cols, codes, sf, y, cfg } = self;
        let spec = self.spec();
        let x = Value::Tensor(matrix(&mut Inputs::new(17), DType::F32, rows, cols)?).f32s();
        let q = reference::cast(&x, rows, cols, &spec);
        let (groups_rows, groups_cols) = q.scale_shape();
        let args = vec![
            Value::Tensor(DynTensor::from_bytes(codes, &[rows, cols], &q.codes)?),
            Value::Tensor(lay_out(&q.scales, [groups_rows, groups_cols], cfg.layout, sf)?),
            Value::Tensor(output(y, &[rows, cols])?),
        ];
        let verify = move |args: &[Value]| {
            let mut want = q.dequantize();
            if y == DType::BF16 {
                want = codec::bf16_round_all(&want);
            }
            vec![Comparison::exact_f32("y", &args[2].f32s(), &want)]
        };
        let kernel = launcher(codes, sf, y, cfg)?;
        Ok(Problem { kernel, work: Work::of(&args), args, verify: Box::new(verify) })
    }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "cast_back",
            family: Family::Quant,
            summary: "e4m3 or packed e2m1 with scale factors back to bf16 or f32",
            equation: "y[i,j] = codes[i,j] * sf[i / block_rows, j / block_cols]",
            tolerance: "exact",
            source: "V4 specification 4.3; TileKernels cast_back, per_token_cast_back",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(CastBackConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = apply(CastBackConfig::default(), settings)?;
        let of = |name: &str, default| dtypes.get(name).copied().unwrap_or(default);
        let sf = of("sf", sf_dtype(cfg.layout, DType::F32));
        launcher(of("codes", DType::F8E4M3), sf, of("y", DType::BF16), cfg)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        use DType::{BF16, E8M0, F4E2M1, F8E4M3, F32, I32};
        let case = |rows, cols, codes, sf, y, cfg| Back { rows, cols, codes, sf, y, cfg }.case();
        let block = |block_rows, block_cols| CastBackConfig { block_rows, block_cols, ..CastBackConfig::default() };
        let layout = |layout, c: CastBackConfig| CastBackConfig { layout, ..c };
        match scale {
            Scale::Small => {
                let small = |block_rows, block_cols| CastBackConfig { bm: 8, bn: 64, ..block(block_rows, block_cols) };
                let mut cases: Vec<Case> =
                    [0, 1, 17].iter().map(|&m| case(m, 576, F8E4M3, F32, BF16, small(1, 128))).collect();
                cases.extend([
                    case(9, 160, F4E2M1, F32, F32, small(1, 32)),
                    case(9, 160, F4E2M1, E8M0, BF16, small(1, 16)),
                    case(9, 300, F8E4M3, F32, F32, small(1, 0)),
                    case(9, 576, F8E4M3, I32, BF16, layout(ScaleLayout::Packed, small(1, 64))),
                    case(9, 320, F8E4M3, I32, F32, layout(ScaleLayout::Packed, small(1, 32))),
                    case(9, 576, F8E4M3, F32, BF16, layout(ScaleLayout::ColumnMajor, small(1, 128))),
                    case(40, 72, F8E4M3, F32, BF16, small(32, 32)),
                    case(140, 136, F8E4M3, E8M0, BF16, small(128, 128)),
                    case(40, 72, F8E4M3, F32, BF16, small(32, 1)),
                ]);
                cases
            }
            Scale::Representative => vec![case(4096, 7168, F8E4M3, F32, BF16, block(1, 128))],
            Scale::Full => vec![
                case(8192, 7168, F8E4M3, F32, BF16, block(1, 128)),
                case(4001, 7168, F8E4M3, I32, BF16, layout(ScaleLayout::Packed, block(1, 128))),
                case(6144, 7168, F8E4M3, E8M0, BF16, block(128, 128)),
                case(6144, 7168, F4E2M1, E8M0, BF16, CastBackConfig { bn: 32, ..block(1, 32) }),
                case(4096, 4096, F8E4M3, F32, F32, block(128, 1)),
            ],
        }
    }
}
