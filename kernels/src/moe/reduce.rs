//! The weighted sum of expert outputs back to tokens.

use super::problem::random_ids;
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec;
use crate::reference::moe::{fused as reference, mapping};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Config of [`reduce_fused`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct ReduceConfig {
    /// Slots have weights; otherwise all weigh one.
    pub weighted: bool,
    /// Rows of `y` have scale factors.
    pub scaled: bool,
    /// The rows of `addend` are added after the slots: the output of shared experts.
    pub added: bool,
    /// The finished sum is multiplied by `out_scale`.
    pub out_scaled: bool,
    /// Tokens of a tile.
    #[tune(4, 8, 16)]
    pub bm: usize,
    /// Columns of a tile.
    #[tune(256, 512, 1024)]
    pub bn: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for ReduceConfig {
    fn default() -> ReduceConfig {
        ReduceConfig { weighted: true, scaled: false, added: false, out_scaled: false, bm: 4, bn: 256, threads: 128 }
    }
}

/// `out[t] = sum_j (weights[t,j] * row_scales[pos]) * y[pos]`, `pos = token_topk_to_pos[t,j]`: from zero, one fused
/// multiply-add in f32 per slot in slot order, slots with a negative position skipped; plus `addend[t]`, times `out_scale`,
/// rounded once. `y` [positions, width], `weights` and `token_topk_to_pos` [tokens, k], `row_scales` `[positions]`, `addend` and
/// `out` [tokens, width].
/// Arguments that the config turns off are not read and may have any extents. Its gradient is
/// [`reduce_fused_backward`](super::reduce_backward::reduce_fused_backward), or without weights
/// [`expand_to_fused`](super::expand::expand_to_fused).
#[kernel(static_dims(k))]
pub fn reduce_fused<Y: Element, O: Element>(
    t: T,
    #[dims(positions, width)] y: &Tensor<Y, 2>,
    #[dims(weight_rows, weight_cols)] weights: &Tensor<f32, 2>,
    #[dims(scale_rows)] row_scales: &Tensor<f32, 1>,
    #[dims(tokens, k)] token_topk_to_pos: &Tensor<i32, 2>,
    #[dims(addend_rows, addend_cols)] addend: &Tensor<Y, 2>,
    #[dims(tokens, width)] out: &mut Tensor<O, 2>,
    out_scale: Expr<f32>,
    #[comptime] cfg: ReduceConfig,
) {
    let ReduceConfig { bm, bn, .. } = cfg;
    let [bx, by] = t.grid([out.dim(1).ceil_div(bn), out.dim(0).ceil_div(bm)], cfg.threads);
    let (row, col) = (by * bm, bx * bn);
    let k = token_topk_to_pos.static_dim(1);
    let (pos, factor) = (t.shared::<i32, 2>([bm, k]), t.shared::<f32, 2>([bm, k]));
    for (i, j) in t.parallel((bm, k)) {
        let inside = row + i < out.dim(0);
        let p = select(inside, token_topk_to_pos[(row + i, j)], -1);
        let mut f = if cfg.weighted { weights[(row + i, j)] } else { lit::<f32>(1.0) };
        if cfg.scaled {
            f = f * row_scales[p.to_index()];
        }
        pos[(i, j)] = p;
        factor[(i, j)] = f;
    }
    let acc = t.fragment::<f32, 2>([bm, bn]);
    t.clear(acc);
    // Straight from the rows to registers: nobody waits for anybody, so that the slots' reads overlap.
    for j in 0..k {
        for (i, c) in t.parallel((bm, bn)) {
            let p = pos[(i, j)];
            let v = y[(p.to_index(), col + c)].cast::<f32>();
            let sum = v.mul_add(factor[(i, j)], acc[(i, c)]);
            acc[(i, c)] = select(p >= 0, sum, acc[(i, c)]);
        }
    }
    if cfg.added {
        for (i, c) in t.parallel((bm, bn)) {
            acc[(i, c)] += addend[(row + i, col + c)].cast::<f32>();
        }
    }
    if cfg.out_scaled {
        for (i, c) in t.parallel((bm, bn)) {
            acc[(i, c)] *= out_scale;
        }
    }
    t.cast(acc, out.at((row, col)));
}

/// The library's entry.
pub struct Entry;

fn launcher(y: DType, out: DType, cfg: ReduceConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(y, Y in [BF16 = bf16, F32 = f32, F8E4M3 = f8e4m3], {
        with_type!(out, O in [BF16 = bf16, F32 = f32, F8E4M3 = f8e4m3], Ok(Box::new(ReduceFused::<Y, O>::new(cfg))))
    })
}

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Reduce {
    tokens: usize,
    width: usize,
    experts: usize,
    k: usize,
    y: DType,
    out: DType,
    cfg: ReduceConfig,
}

impl Reduce {
    fn case(self) -> Case {
        let Reduce { tokens, width, experts, k, y, out, cfg } = self;
        let mut name = format!("t={tokens} k={k} h={width} e={experts} {y}->{out}");
        for (on, word) in [
            (!cfg.weighted, " unweighted"),
            (cfg.scaled, " scaled"),
            (cfg.added, " added"),
            (cfg.out_scaled, " out-scaled"),
        ] {
            if on {
                name.push_str(word);
            }
        }
        Case::new(name, cfg, move |cfg| Reduce { cfg, ..self }.problem())
    }

    fn problem(self) -> Result<Problem, ProblemError> {
        let Reduce { tokens, width, experts, k, y: y_dtype, out, cfg } = self;
        let mut inputs = Inputs::new(8);
        let ids = random_ids(&mut inputs, tokens, experts, k);
        let positions = mapping::positions_needed(&ids, experts, 16);
        let pos = mapping::fused_mapping(&ids, tokens, k, experts, 16, positions).token_topk_to_pos;
        let y = Value::Tensor(inputs.normal(y_dtype, &[positions, width], 1.0)?);
        let weights = inputs.uniform(DType::F32, &[tokens, k], 0.0, 1.0)?;
        let scales = inputs.uniform(DType::F32, &[positions], 0.5, 2.0)?;
        let addend_shape = if cfg.added { [tokens, width] } else { [0, 0] };
        let addend = inputs.normal(y_dtype, &addend_shape, 1.0)?;
        let nothing = |used: bool, tensor: DynTensor, shape: &[usize]| {
            if used { Ok(tensor) } else { DynTensor::zeros(DType::F32, shape) }
        };
        let out_scale = 0.75f32;
        let args = vec![
            y,
            Value::Tensor(nothing(cfg.weighted, weights, &[0, 0])?),
            Value::Tensor(nothing(cfg.scaled, scales, &[0])?),
            Value::Tensor(DynTensor::from_slice::<i32>(&[tokens, k], &pos)?),
            Value::Tensor(addend),
            Value::Tensor(output(out, &[tokens, width])?),
            Value::Scalar(Const::f32(out_scale)),
        ];
        let live = ids.iter().filter(|&&id| id >= 0).count();
        let rows = live + if cfg.added { tokens } else { 0 };
        let work = Work { flops: 0.0, bytes: (rows * y_dtype.bytes_for(width) + tokens * out.bytes_for(width)) as f64 };
        let verify = move |args: &[Value]| {
            let (y, weights, scales) = (args[0].f32s(), args[1].f32s(), args[2].f32s());
            let addend = args[4].f32s();
            let problem = reference::ReduceFused {
                y: &y,
                width,
                weights: cfg.weighted.then_some(&weights[..]),
                row_scales: cfg.scaled.then_some(&scales[..]),
                token_topk_to_pos: &pos,
                k,
                addend: cfg.added.then_some(&addend[..]),
                out_scale: cfg.out_scaled.then_some(out_scale),
            };
            let want = reference::reduce_fused(&problem);
            let want = match out {
                DType::BF16 => codec::bf16_round_all(&want),
                DType::F8E4M3 => want.iter().map(|&v| codec::e4m3_decode(codec::e4m3_encode(v))).collect(),
                _ => want,
            };
            vec![Comparison::exact_f32("out", &args[5].f32s(), &want)]
        };
        Ok(Problem { kernel: launcher(y_dtype, out, cfg)?, args, work, verify: Box::new(verify) })
    }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "reduce_fused",
            family: Family::Moe,
            summary: "weighted sum of expert outputs back to tokens, in slot order",
            equation: "out[t] = sum_j weights[t,j] * y[token_topk_to_pos[t,j]] + addend[t], one fp32 FMA per slot, -1 skipped",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels reduce_fused",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ReduceConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let y = dtypes.get("y").copied().unwrap_or(DType::BF16);
        launcher(y, dtypes.get("out").copied().unwrap_or(DType::BF16), apply(ReduceConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = ReduceConfig::default();
        let (bf16, f32, fp8) = (DType::BF16, DType::F32, DType::F8E4M3);
        let case = |tokens, width, experts, k, y, out, cfg| Reduce { tokens, width, experts, k, y, out, cfg }.case();
        match scale {
            Scale::Small => {
                let small = ReduceConfig { bm: 4, bn: 256, ..cfg };
                let scaled = ReduceConfig { scaled: true, ..small };
                vec![
                    case(0, 256, 24, 6, bf16, bf16, small),
                    case(1, 256, 24, 6, bf16, bf16, small),
                    case(19, 576, 24, 6, bf16, bf16, small),
                    case(19, 256, 24, 2, f32, f32, ReduceConfig { weighted: false, ..small }),
                    case(9, 256, 24, 7, fp8, bf16, scaled),
                    case(19, 300, 24, 6, bf16, bf16, ReduceConfig { weighted: false, added: true, ..small }),
                    case(9, 300, 24, 1, bf16, fp8, ReduceConfig { out_scaled: true, ..scaled }),
                ]
            }
            Scale::Representative => vec![case(4096, 7168, 384, 6, bf16, bf16, cfg)],
            Scale::Full => vec![
                case(4001, 4096, 256, 6, bf16, bf16, cfg),
                case(4096, 7168, 384, 6, bf16, f32, cfg),
                case(4096, 7168, 384, 6, bf16, bf16, ReduceConfig { weighted: false, added: true, ..cfg }),
                case(4096, 4096, 256, 6, fp8, bf16, ReduceConfig { scaled: true, ..cfg }),
            ],
        }
    }
}
