//! SwiGLU with clamp and row weights, fused with a cast: per token, or per channel with the codes transposed.

use super::activation::{Options, Source, activation, counters, rows_in_expert_order};
use super::cast::{CastConfig, cast_tiles};
use super::problem::{check_sf, compare_codes, format, sf_dtype, sf_shape};
use super::scale::{Code, ScaleLayout};
use super::silu::Rounding;
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::activation as reference;
use crate::reference::codec;
use crate::reference::quant::{self, CastSpec, ScaleFormat};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Config of [`swiglu_forward_and_per_token_cast`] and [`swiglu_forward_and_per_channel_cast_and_transpose`].
/// Arguments that an option turns off are not read and may have any extents.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = group > 1 && group <= 128 && group.is_multiple_of(2))]
#[tune(constraint = layout != ScaleLayout::Packed || ue8m0)]
pub struct SwigluConfig {
    /// Elements that share a scale factor.
    pub group: usize,
    /// Round scale factors up to a power of two.
    pub ue8m0: bool,
    pub layout: ScaleLayout,
    /// Clamp the gate from above, and the other half from both sides, to `limit`.
    pub clamp: bool,
    /// Count what the clamp changes.
    pub counted: bool,
    /// Rows are multiplied by the router weights.
    pub weighted: bool,
    /// Rows whose `pos_to_expert` is negative are padding.
    pub padded: bool,
    /// Rows of a tile of the per-token cast.
    #[tune(8, 16, 32)]
    pub bm: usize,
    /// Columns of a tile of the per-channel cast.
    #[tune(16, 32, 64, 128)]
    pub bn: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for SwigluConfig {
    fn default() -> SwigluConfig {
        SwigluConfig {
            group: 128,
            ue8m0: true,
            layout: ScaleLayout::RowMajor,
            clamp: true,
            counted: false,
            weighted: true,
            padded: true,
            bm: 16,
            bn: 128,
            threads: 128,
        }
    }
}

impl SwigluConfig {
    /// The default of a cast per token, or per channel: there a tile has all rows of a group, so it is narrower.
    fn new(per_channel: bool) -> SwigluConfig {
        let cfg = SwigluConfig::default();
        SwigluConfig { bn: if per_channel { 32 } else { cfg.bn }, ..cfg }
    }
}

impl SwigluConfig {
    fn options(&self) -> Options {
        let SwigluConfig { clamp, counted, weighted, padded, .. } = *self;
        Options { clamp, counted, weighted, padded }
    }

    /// The cast of the activation.
    fn cast(&self, per_channel: bool) -> CastConfig {
        let SwigluConfig { group, ue8m0, layout, bm, bn, threads, .. } = *self;
        let (block_rows, block_cols) = if per_channel { (group, 1) } else { (1, group) };
        let base = CastConfig { ue8m0, bm, bn, threads, ..CastConfig::default() };
        if per_channel {
            CastConfig { block_rows, block_cols, ..base }
        } else {
            CastConfig { block_rows, block_cols, layout, bn: base.bn.max(group), ..base }
        }
    }
}

/// SwiGLU of `x` = [g | h] [m, 2 inner], cast per token: codes [m, inner] and scale factors. `limit` is the clamp, row `p` weighs
/// `weights[pos_to_token_topk[p]]` (0 if that is negative), `weights` [tokens, k]; `clamped` `[3]` grows by how many elements
/// the clamp changed: `g > limit`, `h > limit`, `h < -limit`. Rows with a negative `pos_to_expert` give zeros.
#[kernel(static_dims(two_inner, inner, k))]
pub fn swiglu_forward_and_per_token_cast<X: Element, Q: Code, S: Element>(
    t: T,
    #[dims(m, two_inner)] x: &Tensor<X, 2>,
    #[dims(experts_m)] pos_to_expert: &Tensor<i32, 1>,
    #[dims(pairs_m)] pos_to_token_topk: &Tensor<i32, 1>,
    #[dims(tokens, k)] weights: &Tensor<f32, 2>,
    #[dims(3)] clamped: &mut Tensor<i64, 1>,
    #[dims(m, inner)] codes: &mut Tensor<Q, 2>,
    #[dims(sf_rows, sf_cols)] sf: &mut Tensor<S, 2>,
    limit: Expr<f32>,
    amax_floor: Expr<f32>,
    #[comptime] cfg: SwigluConfig,
) {
    let source = Source { x, pos_to_expert, pos_to_token_topk, weights, clamped, limit };
    let then = if cfg.ue8m0 { Rounding::Codes } else { Rounding::None };
    let load = |row: Idx, col: Idx, tile: Fragment<f32, 2>| activation(t, &source, row, col, tile, then, cfg.options());
    let store = |row: Idx, col: Idx, tile: Fragment<f32, 2>| t.cast(tile, codes.at((row, col)));
    cast_tiles::<Q, S>(t, (x.dim(0), codes.static_dim(1)), load, store, sf, amax_floor, cfg.cast(false));
}

/// SwiGLU of `x` = [g | h] [m, 2 inner] as [`swiglu_forward_and_per_token_cast`], rounded to bf16 and cast per channel, with the
/// codes transposed: [inner, m], and scale factors [ceil(m / group), inner].
#[kernel(static_dims(two_inner, inner, k))]
pub fn swiglu_forward_and_per_channel_cast_and_transpose<X: Element, Q: Code, S: Element>(
    t: T,
    #[dims(m, two_inner)] x: &Tensor<X, 2>,
    #[dims(experts_m)] pos_to_expert: &Tensor<i32, 1>,
    #[dims(pairs_m)] pos_to_token_topk: &Tensor<i32, 1>,
    #[dims(tokens, k)] weights: &Tensor<f32, 2>,
    #[dims(3)] clamped: &mut Tensor<i64, 1>,
    #[dims(inner, m)] codes: &mut Tensor<Q, 2>,
    #[dims(sf_rows, sf_cols)] sf: &mut Tensor<S, 2>,
    limit: Expr<f32>,
    amax_floor: Expr<f32>,
    #[comptime] cfg: SwigluConfig,
) {
    let source = Source { x, pos_to_expert, pos_to_token_topk, weights, clamped, limit };
    let load = |row: Idx, col: Idx, tile: Fragment<f32, 2>| {
        activation(t, &source, row, col, tile, Rounding::Bf16, cfg.options());
        let [rows, cols] = tile.shape();
        for (i, j) in t.parallel((rows, cols)) {
            tile[(i, j)] = tile[(i, j)].cast::<bf16>().cast::<f32>();
        }
    };
    let store = |row: Idx, col: Idx, tile: Fragment<f32, 2>| t.cast(tile.t(), codes.at((col, row)));
    cast_tiles::<Q, S>(t, (x.dim(0), codes.static_dim(0)), load, store, sf, amax_floor, cfg.cast(true));
}

/// The library's entry of the per-token cast.
pub struct PerToken;

/// The library's entry of the per-channel cast.
pub struct PerChannel;

/// Types of a SwiGLU.
#[derive(Clone, Copy)]
struct Types {
    x: DType,
    codes: DType,
    sf: DType,
}

impl Types {
    fn of(dtypes: &Dtypes, layout: ScaleLayout) -> Types {
        let of = |name: &str, default| dtypes.get(name).copied().unwrap_or(default);
        Types { x: of("x", DType::BF16), codes: of("codes", DType::F8E4M3), sf: of("sf", sf_dtype(layout, DType::F32)) }
    }

    fn launcher(self, per_channel: bool, cfg: SwigluConfig) -> Result<Box<dyn Kernel>, ProblemError> {
        check_sf(cfg.layout, self.sf)?;
        if per_channel && cfg.layout != ScaleLayout::RowMajor {
            return Err(ProblemError::Unsupported(format!(
                "scale factors of columns lie row by row: there is no layout {:?} of them",
                cfg.layout
            )));
        }
        with_type!(self.x, X in [BF16 = bf16, F32 = f32], {
            if per_channel {
                return with_type!(self.codes, Q in [F8E4M3 = f8e4m3], {
                    with_type!(self.sf, S in [F32 = f32], {
                        Ok(Box::new(SwigluForwardAndPerChannelCastAndTranspose::<X, Q, S>::new(cfg)))
                    })
                });
            }
            with_type!(self.codes, Q in [F8E4M3 = f8e4m3, F4E2M1 = f4e2m1], {
                with_type!(self.sf, S in [F32 = f32, I32 = i32], {
                    Ok(Box::new(SwigluForwardAndPerTokenCast::<X, Q, S>::new(cfg)))
                })
            })
        })
    }
}

/// The clamp in the problems, in bf16.
const LIMIT: f32 = 10.0;

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Swiglu {
    per_channel: bool,
    rows: usize,
    inner: usize,
    types: Types,
    limit: f32,
    cfg: SwigluConfig,
}

impl Swiglu {
    fn case(self) -> Case {
        let Swiglu { rows, inner, types, limit, cfg, .. } = self;
        let Types { x, codes, .. } = types;
        let mut name = format!("m={rows} i={inner} {x}->{codes} group={}", cfg.group);
        if cfg.clamp {
            name.push_str(&format!(" clamp={limit}"));
        }
        for (on, word) in [
            (!cfg.ue8m0, " f32-scales"),
            (cfg.layout == ScaleLayout::ColumnMajor, " column-major"),
            (cfg.layout == ScaleLayout::Packed, " packed"),
            (cfg.counted, " counted"),
            (cfg.weighted, " weighted"),
            (cfg.padded, " padded"),
        ] {
            if on {
                name.push_str(word);
            }
        }
        Case::new(name, cfg, move |cfg| {
            let types = Types { sf: sf_dtype(cfg.layout, types.sf), ..types };
            Swiglu { cfg, types, ..self }.problem()
        })
    }

    fn problem(self) -> Result<Problem, ProblemError> {
        let Swiglu { per_channel, rows, inner, types, limit, cfg } = self;
        let mut inputs = Inputs::new(15);
        let x = inputs.normal(types.x, &[rows, 2 * inner], 4.0)?;
        let (pairs, experts, weights) = rows_in_expert_order(&mut inputs, rows)?;
        let kernel = types.launcher(per_channel, cfg)?;
        let spec = CastSpec {
            block: if per_channel { (cfg.group, 1) } else { (1, cfg.group) },
            ..CastSpec::per_token(format(types.codes), 1, if cfg.ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 })
        };
        let groups = [rows.div_ceil(spec.block.0), inner.div_ceil(spec.block.1)];
        let codes_shape = if per_channel { [inner, rows] } else { [rows, inner] };
        let args = vec![
            Value::Tensor(x),
            Value::Tensor(DynTensor::from_slice::<i32>(&[rows], &experts)?),
            Value::Tensor(DynTensor::from_slice::<i32>(&[rows], &pairs)?),
            Value::Tensor(weights),
            Value::Tensor(DynTensor::zeros(DType::I64, &[3])?),
            Value::Tensor(output(types.codes, &codes_shape)?),
            Value::Tensor(output(types.sf, &sf_shape(groups[0], groups[1], cfg.layout))?),
            Value::Scalar(Const::f32(limit)),
            Value::Scalar(Const::f32(spec.amax_floor)),
        ];
        let work = Work::of(&args);
        let verify = move |args: &[Value]| {
            let (x, weights) = (args[0].f32s(), args[3].f32s());
            let row_weight = reference::row_weights(&pairs, &weights);
            let problem = reference::Swiglu {
                x: &x,
                rows,
                inner,
                clamp: cfg.clamp.then_some(limit),
                row_weight: cfg.weighted.then_some(&row_weight[..]),
                pos_to_expert: cfg.padded.then_some(&experts[..]),
            };
            let want = problem.forward();
            let scales = row_major(&args[6], groups, cfg.layout);
            let mut out = if per_channel {
                let q = quant::cast(&codec::bf16_round_all(&want.y), rows, inner, &spec);
                let codes = crate::reference::transpose::batched_transpose(&args[5].f32s(), 1, inner, rows);
                vec![
                    Comparison::exact_f32("codes", &codes, &q.format.decode(&q.codes)),
                    Comparison::exact_f32("sf", &scales, &q.scales),
                ]
            } else {
                let q = quant::cast(&want.y, rows, inner, &spec);
                vec![
                    compare_codes("codes", &args[5], &q.codes, q.format),
                    Comparison::exact_f32("sf", &scales, &q.scales),
                ]
            };
            let clamped = if cfg.clamp && cfg.counted { want.clamped } else { [0; 3] };
            out.push(counters("clamped", &args[4], clamped));
            out
        };
        Ok(Problem { kernel, args, work, verify: Box::new(verify) })
    }
}

/// Scale factors of a layout as `[rows, groups]`, decoded.
fn row_major(sf: &Value, [rows, groups]: [usize; 2], layout: ScaleLayout) -> Vec<f32> {
    let stride = quant::tma_aligned_rows(rows);
    match (layout, sf) {
        (ScaleLayout::RowMajor, _) => sf.f32s(),
        (ScaleLayout::ColumnMajor, _) => {
            let columns = sf.f32s();
            (0..rows * groups).map(|i| columns[i % groups * stride + i / groups]).collect()
        }
        (ScaleLayout::Packed, Value::Tensor(words)) => {
            quant::scales_unpack_ue8m0(&words.to_vec::<i32>().expect("nobody writes the tensor now"), rows, groups)
        }
        (ScaleLayout::Packed, Value::Scalar(_)) => unreachable!("scale factors are a tensor"),
    }
}

fn cases(per_channel: bool, scale: Scale) -> Vec<Case> {
    let cfg = SwigluConfig::new(per_channel);
    let (fp8, fp4) = (DType::F8E4M3, DType::F4E2M1);
    let case = |rows, inner, x, codes, limit, cfg: SwigluConfig| {
        let sf = sf_dtype(cfg.layout, DType::F32);
        Swiglu { per_channel, rows, inner, types: Types { x, codes, sf }, limit, cfg }.case()
    };
    let (bf16, f32) = (DType::BF16, DType::F32);
    let plain = SwigluConfig { clamp: false, weighted: false, padded: false, ..cfg };
    let counted = SwigluConfig { counted: true, ..cfg };
    let mut cases = match scale {
        Scale::Small => {
            let small = |c: SwigluConfig| SwigluConfig { group: 32, bm: 8, bn: 32, ..c };
            vec![
                case(0, 64, bf16, fp8, LIMIT, small(cfg)),
                case(1, 64, bf16, fp8, LIMIT, small(counted)),
                case(37, 96, bf16, fp8, LIMIT, small(counted)),
                case(37, 80, bf16, fp8, 0.5, small(counted)),
                case(19, 576, bf16, fp8, LIMIT, SwigluConfig { ue8m0: false, bm: 8, ..plain }),
                case(19, 64, f32, fp8, LIMIT, SwigluConfig { weighted: false, ..small(cfg) }),
            ]
        }
        Scale::Representative => vec![case(8192, 3072, bf16, fp8, LIMIT, cfg)],
        Scale::Full => vec![
            case(24576, 3072, bf16, fp8, LIMIT, cfg),
            case(4001, 2048, bf16, fp8, LIMIT, counted),
            case(8064, 3072, bf16, fp8, 0.5, SwigluConfig { ue8m0: false, ..counted }),
        ],
    };
    if !per_channel {
        let layout = |layout, c: SwigluConfig| SwigluConfig { layout, ..c };
        match scale {
            Scale::Small => {
                let small = SwigluConfig { group: 32, bm: 8, ..cfg };
                cases.push(case(13, 160, bf16, fp8, LIMIT, layout(ScaleLayout::Packed, small)));
                cases.push(case(13, 160, bf16, fp8, LIMIT, layout(ScaleLayout::ColumnMajor, small)));
                cases.push(case(13, 160, bf16, fp4, LIMIT, small));
            }
            Scale::Representative => {}
            Scale::Full => {
                let fine = SwigluConfig { group: 32, ..cfg };
                cases.push(case(4096, 3072, bf16, fp8, LIMIT, layout(ScaleLayout::Packed, fine)));
                cases.push(case(4096, 3072, bf16, fp4, LIMIT, fine));
                cases.push(case(4096, 2048, f32, fp8, LIMIT, layout(ScaleLayout::ColumnMajor, cfg)));
            }
        }
    }
    cases
}

impl LibraryKernel for PerToken {
    fn info(&self) -> Info {
        Info {
            name: "swiglu_forward_and_per_token_cast",
            family: Family::Quant,
            summary: "SwiGLU with clamp and row weights, cast per token",
            equation: "a = silu(min(g,c)) * clamp(h,-c,c) * w, [g|h] = x; codes, sf = per_token_cast(a)",
            tolerance: "exact",
            source: "V4 specification 3.3, 4.3; TileKernels swiglu_forward_and_per_token_cast",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(SwigluConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = apply(SwigluConfig::default(), settings)?;
        Types::of(dtypes, cfg.layout).launcher(false, cfg)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(false, scale)
    }
}

impl LibraryKernel for PerChannel {
    fn info(&self) -> Info {
        Info {
            name: "swiglu_forward_and_per_channel_cast_and_transpose",
            family: Family::Quant,
            summary: "SwiGLU with clamp and row weights, rounded to bf16, cast per channel, codes transposed",
            equation: "a = bf16(silu(min(g,c)) * clamp(h,-c,c) * w), [g|h] = x; codes^T, sf = per_channel_cast(a)",
            tolerance: "exact",
            source: "V4 specification 4.3; TileKernels swiglu_forward_and_per_channel_cast_and_transpose",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(SwigluConfig::new(true))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = apply(SwigluConfig::new(true), settings)?;
        Types::of(dtypes, cfg.layout).launcher(true, cfg)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(true, scale)
    }
}
