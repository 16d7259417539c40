//! Gather of token rows, and of their scale factors, into expert order.

use super::problem::random_ids;
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::moe::{fused as reference, mapping};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Config of [`expand_to_fused`] and [`expand_to_fused_with_sf`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = bm.is_multiple_of(4) && bn.is_multiple_of(2))]
pub struct ExpandConfig {
    /// Scale factors lie column-major, `[groups, rows rounded up to 4]`; otherwise `[rows, groups]`.
    pub sf_column_major: bool,
    /// Positions of a tile.
    #[tune(8, 16, 32)]
    pub bm: usize,
    /// Columns of a tile.
    #[tune(512, 1024, 2048)]
    pub bn: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for ExpandConfig {
    fn default() -> ExpandConfig {
        ExpandConfig { sf_column_major: false, bm: 8, bn: 512, threads: 128 }
    }
}

/// Tokens of a block's positions, -1 for padding, after copying the tile of rows.
#[tile]
fn expand_tile<E: Element>(
    t: T,
    x: &Tensor<E, 2>,
    pos_to_token: &Tensor<i32, 1>,
    y: &Tensor<E, 2>,
    cfg: ExpandConfig,
) -> (Idx, Idx, Shared<i32, 1>) {
    let ExpandConfig { bm, bn, .. } = cfg;
    // All positions of some columns first: of those the L2 cache has the tokens until the last of their rows is written.
    let [by, bx] = t.grid([pos_to_token.dim(0).ceil_div(bm), x.dim(1).ceil_div(bn)], cfg.threads);
    let (row, col) = (by * bm, bx * bn);
    let tokens = t.shared::<i32, 1>([bm]);
    t.copy_padded(pos_to_token.at(row), tokens, -1.0);
    let tile = t.shared::<E, 2>([bm, bn]);
    t.gather(x.at((0, col)), tokens, tile);
    t.copy(tile, y.at((row, col)));
    (bx, row, tokens)
}

/// `y[p] = x[pos_to_token[p]]`, zeros where the position is negative. `x` [tokens, width], `y` [positions, width].
///
/// Its gradient, the sum over a token's rows, is [`reduce_fused`](super::reduce::reduce_fused) without weights.
#[kernel]
pub fn expand_to_fused<E: Element>(
    t: T,
    #[dims(tokens, width)] x: &Tensor<E, 2>,
    #[dims(positions)] pos_to_token: &Tensor<i32, 1>,
    #[dims(positions, width)] y: &mut Tensor<E, 2>,
    #[comptime] cfg: ExpandConfig,
) {
    expand_tile(t, x, pos_to_token, y, cfg);
}

/// [`expand_to_fused`] of codes together with their scale factors: f32, or exponents packed four to an i32 in the
/// column-major layout. Both sides have the same layout.
#[kernel]
pub fn expand_to_fused_with_sf<E: Element, S: Element>(
    t: T,
    #[dims(tokens, width)] x: &Tensor<E, 2>,
    #[dims(sf_rows, sf_cols)] sf: &Tensor<S, 2>,
    #[dims(positions)] pos_to_token: &Tensor<i32, 1>,
    #[dims(positions, width)] y: &mut Tensor<E, 2>,
    #[dims(y_sf_rows, y_sf_cols)] y_sf: &mut Tensor<S, 2>,
    #[comptime] cfg: ExpandConfig,
) {
    let (bx, row, tokens) = expand_tile(t, x, pos_to_token, y, cfg);
    // A read at token -1 lies outside and gives zero.
    if bx == 0 {
        if cfg.sf_column_major {
            for (g, i) in t.parallel((sf.dim(0), cfg.bm)) {
                y_sf[(g, row + i)] = sf[(g, tokens[i].to_index())];
            }
        } else {
            for (i, g) in t.parallel((cfg.bm, sf.dim(1))) {
                y_sf[(row + i, g)] = sf[(tokens[i].to_index(), g)];
            }
        }
    }
}

/// The library's entry of [`expand_to_fused`].
pub struct Entry;

/// The library's entry of [`expand_to_fused_with_sf`].
pub struct WithScales;

fn plain(dtype: DType, cfg: ExpandConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(dtype, E in [BF16 = bf16, F32 = f32, F8E4M3 = f8e4m3, F4E2M1 = f4e2m1], {
        Ok(Box::new(ExpandToFused::<E>::new(cfg)))
    })
}

fn with_scales(dtype: DType, sf: DType, cfg: ExpandConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(dtype, E in [F8E4M3 = f8e4m3, F4E2M1 = f4e2m1], {
        with_type!(sf, S in [F32 = f32, I32 = i32], Ok(Box::new(ExpandToFusedWithSf::<E, S>::new(cfg))))
    })
}

/// Sizes of a case. `sf` is the type of the scale factors, if there are any.
#[derive(Clone, Copy)]
struct Expand {
    tokens: usize,
    width: usize,
    experts: usize,
    k: usize,
    dtype: DType,
    sf: Option<DType>,
    cfg: ExpandConfig,
}

impl Expand {
    fn case(self) -> Case {
        let Expand { tokens, width, experts, k, dtype, sf, cfg } = self;
        let layout = match sf {
            None => String::new(),
            Some(sf) => format!(" sf={sf}{}", if cfg.sf_column_major { " column-major" } else { "" }),
        };
        let name = format!("t={tokens} k={k} h={width} e={experts} {dtype}{layout}");
        Case::new(name, cfg, move |cfg| Expand { cfg, ..self }.problem())
    }

    fn problem(self) -> Result<Problem, ProblemError> {
        let Expand { tokens, width, experts, k, dtype, sf, cfg } = self;
        let mut inputs = Inputs::new(7);
        let ids = random_ids(&mut inputs, tokens, experts, k);
        let positions = mapping::positions_needed(&ids, experts, 16) + 3;
        let pos_to_token = mapping::fused_mapping(&ids, tokens, k, experts, 16, positions).pos_to_token;
        let x = inputs.normal(dtype, &[tokens, width], 2.0)?;
        let bytes = x.to_bytes()?;
        let pos = Value::Tensor(DynTensor::from_slice::<i32>(&[positions], &pos_to_token)?);
        let y = Value::Tensor(output(dtype, &[positions, width])?);
        let x = Value::Tensor(x);
        let (args, expected_sf) = match sf {
            None => (vec![x, pos, y], None),
            Some(sf) => {
                // Columns of scale factors as the rows they belong to, then laid out.
                let groups = if sf == DType::I32 { width.div_ceil(512) } else { width.div_ceil(128) };
                let scales = inputs.integers(sf, &[tokens, groups], 1, 1 << 20)?.to_bytes()?;
                let scales: Vec<u32> = words(&scales);
                let expanded = reference::expand_to_fused(&scales, groups, &pos_to_token);
                let input = lay_out(&scales, tokens, groups, sf, cfg.sf_column_major)?;
                let want = lay_out(&expanded, positions, groups, sf, cfg.sf_column_major)?;
                let out = output(sf, want.shape())?;
                (vec![x, Value::Tensor(input), pos, y, Value::Tensor(out)], Some(want))
            }
        };
        let kernel = match sf {
            None => plain(dtype, cfg)?,
            Some(sf) => with_scales(dtype, sf, cfg)?,
        };
        // Every row of y is written and read from some row of x.
        let work = Work { flops: 0.0, bytes: 2.0 * (positions * width * dtype.bits()) as f64 / 8.0 };
        let verify = move |args: &[Value]| {
            let row_bytes = dtype.bytes_for(width);
            let want = reference::expand_to_fused(&bytes, row_bytes, &pos_to_token);
            let want = DynTensor::from_bytes(dtype, &[positions, width], &want).expect("as large as the kernel's own");
            match &expected_sf {
                None => vec![Comparison::exact("y", &args[2], &want)],
                Some(sf) => vec![Comparison::exact("y", &args[3], &want), Comparison::exact("y_sf", &args[4], sf)],
            }
        };
        Ok(Problem { kernel, args, work, verify: Box::new(verify) })
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Scale factors `[rows, groups]`, as bit patterns, in a layout; padding zero.
fn lay_out(
    scales: &[u32],
    rows: usize,
    groups: usize,
    dtype: DType,
    column_major: bool,
) -> Result<DynTensor, ProblemError> {
    let (shape, words): (_, Vec<u32>) = if column_major {
        let stride = rows.next_multiple_of(4);
        let at = |i: usize| if i % stride < rows { scales[i % stride * groups + i / stride] } else { 0 };
        ([groups, stride], (0..groups * stride).map(at).collect())
    } else {
        ([rows, groups], scales.to_vec())
    };
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    Ok(DynTensor::from_bytes(dtype, &shape, &bytes)?)
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "expand_to_fused",
            family: Family::Moe,
            summary: "gather of token rows into expert order, padding zero",
            equation: "y[p] = x[pos_to_token[p]], 0 where pos_to_token[p] < 0",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels expand_to_fused",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ExpandConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        plain(dtypes.get("x").copied().unwrap_or(DType::BF16), apply(ExpandConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = ExpandConfig::default();
        let small = ExpandConfig { bm: 8, bn: 256, ..cfg };
        let case = |tokens, width, dtype, cfg| Expand { tokens, width, experts: 24, k: 3, dtype, sf: None, cfg }.case();
        let full = |tokens, width, experts, dtype| Expand { tokens, width, experts, k: 6, dtype, sf: None, cfg }.case();
        match scale {
            Scale::Small => vec![
                case(0, 64, DType::BF16, small),
                case(1, 576, DType::BF16, small),
                case(19, 576, DType::F8E4M3, small),
                case(7, 130, DType::F4E2M1, small),
                case(7, 33, DType::F32, small),
            ],
            Scale::Representative => vec![full(4096, 7168, 384, DType::BF16)],
            Scale::Full => vec![
                full(4001, 4096, 256, DType::BF16),
                full(4096, 7168, 384, DType::F8E4M3),
                full(4096, 7168, 384, DType::F4E2M1),
            ],
        }
    }
}

impl LibraryKernel for WithScales {
    fn info(&self) -> Info {
        Info {
            name: "expand_to_fused_with_sf",
            family: Family::Moe,
            summary: "gather of quantised token rows and their scale factors into expert order, padding zero",
            equation: "y[p] = x[pos_to_token[p]], y_sf[p] = sf[pos_to_token[p]], 0 where pos_to_token[p] < 0",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels expand_to_fused_with_sf",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ExpandConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let of = |name: &str, default| dtypes.get(name).copied().unwrap_or(default);
        with_scales(of("x", DType::F8E4M3), of("sf", DType::F32), apply(ExpandConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = ExpandConfig::default();
        let columns = ExpandConfig { sf_column_major: true, ..cfg };
        let (fp8, fp4) = (DType::F8E4M3, DType::F4E2M1);
        let case = |tokens, width, experts, dtype, sf, cfg| {
            Expand { tokens, width, experts, k: 6, dtype, sf: Some(sf), cfg }.case()
        };
        match scale {
            Scale::Small => {
                let small = ExpandConfig { bm: 8, bn: 256, ..cfg };
                let columns = ExpandConfig { sf_column_major: true, ..small };
                vec![
                    case(0, 128, 24, fp8, DType::F32, small),
                    case(19, 576, 24, fp8, DType::F32, small),
                    case(19, 576, 24, fp8, DType::F32, columns),
                    case(19, 1152, 24, fp4, DType::I32, columns),
                    case(1, 128, 24, fp8, DType::F32, columns),
                ]
            }
            Scale::Representative => vec![case(4096, 7168, 384, fp8, DType::F32, cfg)],
            Scale::Full => vec![
                case(4001, 4096, 256, fp8, DType::F32, columns),
                case(4096, 7168, 384, fp8, DType::I32, columns),
                case(4096, 7168, 384, fp4, DType::I32, columns),
            ],
        }
    }
}
