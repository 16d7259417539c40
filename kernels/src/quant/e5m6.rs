//! The 12-bit format e5m6: cast per token and back. Eight codes take three words, the first code in the highest bits.

use super::problem::matrix;
use super::scale::{Scaling, power, power_exponent};
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec;
use crate::reference::quant::ScaleFormat;
use crate::reference::quant_e5m6 as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Largest e5m6 value.
const MAX: f32 = 65024.0;
/// Smallest amax used.
const AMAX_FLOOR: f32 = 1e-4;
/// Smallest normal e5m6 value, 2^-14.
const MIN_NORMAL: f32 = 6.103_515_6e-5;

/// Config of [`per_token_cast_e5m6`] and [`cast_back_e5m6`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = group > 0 && group.is_multiple_of(8))]
pub struct E5m6Config {
    /// Columns that share a scale factor.
    pub group: usize,
    /// Round scale factors up to a power of two.
    pub ue8m0: bool,
    /// Rows of a tile.
    #[tune(8, 16, 32)]
    pub bm: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for E5m6Config {
    fn default() -> E5m6Config {
        E5m6Config { group: 128, ue8m0: true, bm: 16, threads: 128 }
    }
}

/// Where reads are strided rather than writes, larger tiles do as well.
fn back_config() -> E5m6Config {
    E5m6Config { bm: 32, ..E5m6Config::default() }
}

/// The code of a number of magnitude up to [`MAX`]: nearest, ties to even.
///
/// Added to the number, a power of two 2^17 times its own leaves the seven bits that count at the low end of the sum, rounded;
/// below 2^-14 it is that of 2^-14, whose distance of codes subnormal numbers have, too.
#[tile]
fn encode(v: Expr<f32>) -> Expr<u32> {
    let bits = v.bitcast::<u32>();
    let exponent = (bits & 0x7f80_0000u32).bitcast::<f32>();
    let power = (exponent * 131_072.0).max(MIN_NORMAL * 131_072.0);
    let (sum, power) = ((v.abs() + power).bitcast::<u32>(), power.bitcast::<u32>());
    // The sum has 64 to 128 where the number is normal; the exponent's bias goes from 127 + 17 to 14, one less than 15.
    let code = (sum - power) + ((power >> 17u32) - ((127 + 17 - 14) << 6));
    code | ((bits >> 20u32) & 0x800u32)
}

/// The number of a code.
fn decode(code: Expr<u32>) -> Expr<f32> {
    // f16 has the same exponent and four mantissa bits more.
    (code << 4u32).cast::<u16>().bitcast::<f16>().cast::<f32>()
}

/// Casts `x` [m, k] in groups of `cfg.group` columns to e5m6: `words` [m, 3 k / 8] and scale factors `sf` [m, k / group],
/// `amax / 65024` or the power of two above; elements are multiplied by the reciprocal.
#[kernel(static_dims(k, words_k))]
pub fn per_token_cast_e5m6<X: Element>(
    t: T,
    #[dims(m, k)] x: &Tensor<X, 2>,
    #[dims(m, words_k)] words: &mut Tensor<u32, 2>,
    #[dims(m, groups)] sf: &mut Tensor<f32, 2>,
    #[comptime] cfg: E5m6Config,
) {
    let E5m6Config { group, bm, .. } = cfg;
    let whole = x.static_dim(1).is_multiple_of(group);
    t.assert(whole.into(), "per_token_cast_e5m6: the rows are not a whole number of groups");
    let [g, b] = t.grid((x.static_dim(1) / group, x.dim(0).ceil_div(bm)), cfg.threads);
    let (row, col) = (b * bm, g * group);
    let units = group / 8;
    // The elements of a unit of three words are neighbours: one wide read, and registers from there on.
    let values: [_; 8] = std::array::from_fn(|_| t.fragment::<f32, 2>([bm, units]));
    let largest = t.fragment::<f32, 2>([bm, units]);
    for (i, q) in t.parallel((bm, units)) {
        let v: [_; 8] = std::array::from_fn(|j| x[(row + i, col + q * 8 + j)].cast::<f32>());
        for (fragment, v) in values.iter().zip(v) {
            fragment.store((i, q), v);
        }
        largest[(i, q)] = v.iter().fold(lit(0.0), |max: Expr<f32>, v| max.max(v.abs()));
    }
    let (amax, by) = (t.fragment::<f32, 1>([bm]), t.fragment::<f32, 1>([bm]));
    t.reduce_max(largest, amax, 1);
    for i in t.parallel(bm) {
        let amax = amax[i].max(AMAX_FLOOR);
        let (scale, reciprocal) = match Scaling::new(cfg.ue8m0, true) {
            Scaling::PowerOfTwo => {
                let exponent = power_exponent(amax, MAX);
                (power(exponent), power(254 - exponent))
            }
            Scaling::Divide | Scaling::Reciprocal => (amax / MAX, lit::<f32>(MAX) / amax),
        };
        sf[(row + i, g)] = scale;
        by[i] = reciprocal;
    }
    for (i, q) in t.parallel((bm, units)) {
        let c: Vec<Expr<u32>> = values.iter().map(|v| encode(v[(i, q)] * by[i])).collect();
        let first = g * (units * 3) + q * 3;
        words[(row + i, first)] = (c[0] << 20u32) | (c[1] << 8u32) | (c[2] >> 4u32);
        words[(row + i, first + 1)] = (c[2] << 28u32) | (c[3] << 16u32) | (c[4] << 4u32) | (c[5] >> 8u32);
        words[(row + i, first + 2)] = (c[5] << 24u32) | (c[6] << 12u32) | c[7];
    }
}

/// `y[i, j] = code * sf[i, j / group]`, one product in f32, rounded once: the inverse of [`per_token_cast_e5m6`].
#[kernel(static_dims(k, words_k))]
pub fn cast_back_e5m6<O: Element>(
    t: T,
    #[dims(m, words_k)] words: &Tensor<u32, 2>,
    #[dims(m, groups)] sf: &Tensor<f32, 2>,
    #[dims(m, k)] y: &mut Tensor<O, 2>,
    #[comptime] cfg: E5m6Config,
) {
    let E5m6Config { group, bm, .. } = cfg;
    let whole = y.static_dim(1).is_multiple_of(group);
    t.assert(whole.into(), "cast_back_e5m6: the rows are not a whole number of groups");
    let [g, b] = t.grid((y.static_dim(1) / group, y.dim(0).ceil_div(bm)), cfg.threads);
    let (row, col) = (b * bm, g * group);
    for (i, q) in t.parallel((bm, group / 8)) {
        let w: Vec<Expr<u32>> = (0..3).map(|j| words[(row + i, g * (group / 8 * 3) + q * 3 + j)]).collect();
        let codes = [
            w[0] >> 20u32,
            w[0] >> 8u32,
            (w[0] << 4u32) | (w[1] >> 28u32),
            w[1] >> 16u32,
            w[1] >> 4u32,
            (w[1] << 8u32) | (w[2] >> 24u32),
            w[2] >> 12u32,
            w[2],
        ];
        for (j, code) in codes.into_iter().enumerate() {
            y[(row + i, col + q * 8 + j)] = (decode(code & 0xfffu32) * sf[(row + i, g)]).cast();
        }
    }
}

/// The library's entry of the cast.
pub struct Entry;

/// The library's entry of the cast back.
pub struct Back;

fn cast(x: DType, cfg: E5m6Config) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(x, X in [BF16 = bf16, F32 = f32], Ok(Box::new(PerTokenCastE5m6::<X>::new(cfg))))
}

fn back(y: DType, cfg: E5m6Config) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(y, O in [BF16 = bf16, F32 = f32], Ok(Box::new(CastBackE5m6::<O>::new(cfg))))
}

fn quantised(
    rows: usize,
    cols: usize,
    dtype: DType,
    cfg: E5m6Config,
) -> Result<(DynTensor, reference::E5m6), ProblemError> {
    let x = matrix(&mut Inputs::new(19), dtype, rows, cols)?;
    let format = if cfg.ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
    let q = reference::cast_e5m6(&Value::Tensor(x.clone()).f32s(), rows, cols, cfg.group, format);
    Ok((x, q))
}

fn tensors(
    q: &reference::E5m6,
    rows: usize,
    cols: usize,
    group: usize,
) -> Result<(DynTensor, DynTensor), ProblemError> {
    let words = DynTensor::from_slice::<u32>(&[rows, cols / 8 * 3], &q.words)?;
    Ok((words, DynTensor::from_slice::<f32>(&[rows, cols / group], &q.scales)?))
}

fn cases(
    scale: Scale,
    cfg: E5m6Config,
    problem: impl Fn(usize, usize, DType, E5m6Config) -> Result<Problem, ProblemError> + Copy + Send + Sync + 'static,
) -> Vec<Case> {
    let case = |rows: usize, cols: usize, dtype: DType, cfg: E5m6Config| {
        let scales = if cfg.ue8m0 { "ue8m0" } else { "f32" };
        let name = format!("m={rows} k={cols} {dtype} group={} {scales}", cfg.group);
        Case::new(name, cfg, move |cfg| {
            if !cols.is_multiple_of(cfg.group) {
                return Err(ProblemError::Unsupported(format!(
                    "rows of {cols} do not split into groups of {}",
                    cfg.group
                )));
            }
            problem(rows, cols, dtype, cfg)
        })
    };
    match scale {
        Scale::Small => {
            let small = E5m6Config { group: 32, bm: 8, ..cfg };
            vec![
                case(0, 64, DType::BF16, small),
                case(1, 32, DType::F32, small),
                case(17, 576, DType::BF16, E5m6Config { group: 64, ..small }),
                case(17, 96, DType::F32, E5m6Config { ue8m0: false, ..small }),
            ]
        }
        Scale::Representative => vec![case(4096, 7168, DType::BF16, cfg)],
        Scale::Full => {
            vec![
                case(8192, 7168, DType::BF16, cfg),
                case(4001, 4096, DType::F32, E5m6Config { ue8m0: false, ..cfg }),
                case(8001, 576, DType::BF16, E5m6Config { group: 64, ..cfg }),
            ]
        }
    }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "per_token_cast_e5m6",
            family: Family::Quant,
            summary: "cast to the 12-bit format e5m6 with a scale factor per group of a row",
            equation: "sf[i,g] = max(max_j |x[i,j]|, 1e-4) / 65024, or the power of two above; code = rne(x / sf), 8 codes in 3 words",
            tolerance: "exact",
            source: "V4 specification 4.3; TileKernels per_token_cast_to_e5m6",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(E5m6Config::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        cast(dtypes.get("x").copied().unwrap_or(DType::BF16), apply(E5m6Config::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(scale, E5m6Config::default(), |rows, cols, dtype, cfg| {
            let (x, q) = quantised(rows, cols, dtype, cfg)?;
            let args = vec![
                Value::Tensor(x),
                Value::Tensor(output(DType::U32, &[rows, cols / 8 * 3])?),
                Value::Tensor(output(DType::F32, &[rows, cols / cfg.group])?),
            ];
            let verify = move |args: &[Value]| {
                let (words, sf) = tensors(&q, rows, cols, cfg.group).expect("as large as the kernel's own");
                vec![Comparison::exact("words", &args[1], &words), Comparison::exact("sf", &args[2], &sf)]
            };
            Ok(Problem { kernel: cast(dtype, cfg)?, work: Work::of(&args), args, verify: Box::new(verify) })
        })
    }
}

impl LibraryKernel for Back {
    fn info(&self) -> Info {
        Info {
            name: "cast_back_e5m6",
            family: Family::Quant,
            summary: "the 12-bit format e5m6 back to bf16 or f32",
            equation: "y[i,j] = code[i,j] * sf[i,g]",
            tolerance: "exact",
            source: "V4 specification 4.3; TileKernels cast_back_from_e5m6",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(back_config())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        back(dtypes.get("y").copied().unwrap_or(DType::BF16), apply(back_config(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(scale, back_config(), |rows, cols, dtype, cfg| {
            let (_, q) = quantised(rows, cols, DType::F32, cfg)?;
            let (words, sf) = tensors(&q, rows, cols, cfg.group)?;
            let args = vec![Value::Tensor(words), Value::Tensor(sf), Value::Tensor(output(dtype, &[rows, cols])?)];
            let verify = move |args: &[Value]| {
                let mut want = reference::cast_back_e5m6(&q, cfg.group);
                if dtype == DType::BF16 {
                    want = codec::bf16_round_all(&want);
                }
                vec![Comparison::exact_f32("y", &args[2].f32s(), &want)]
            };
            Ok(Problem { kernel: back(dtype, cfg)?, work: Work::of(&args), args, verify: Box::new(verify) })
        })
    }
}
