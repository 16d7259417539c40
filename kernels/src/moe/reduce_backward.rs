//! The gradients of the weighted sum of expert outputs: of the outputs, in expert order, and of the weights.

use super::problem::random_ids;
use crate::choice::with_type;
use crate::dots::Dots;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec;
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::moe::{fused as reference, mapping};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Chunks of columns that are read ahead, and the one at hand.
const STAGES: usize = 3;

/// Config of [`reduce_fused_backward`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct ReduceBackwardConfig {
    /// Tokens of a block.
    #[tune(1, 2, 4)]
    pub bm: usize,
    /// Columns whose products are summed side by side.
    #[tune(256, 512, 1024)]
    pub bn: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for ReduceBackwardConfig {
    fn default() -> ReduceBackwardConfig {
        ReduceBackwardConfig { bm: 1, bn: 1024, threads: 128 }
    }
}

/// The gradients of `out[t] = sum_j weights[t,j] y[token_topk_to_pos[t,j]]`, a weighted
/// [`reduce_fused`](super::reduce::reduce_fused), from `dout` [tokens, width]: `dy` [positions, width] and `dweights` [tokens, k],
/// accumulated in fp32 in an order that depends on `width` and the config alone. `pos_to_token_topk` and `token_topk_to_pos` are
/// those of [`get_fused_mapping`](super::mapping::get_fused_mapping); rows of padding and the weights of empty slots get zero.
///
/// One pass over the tokens, which reads `dout` once for all slots of a token. The gradient of a sum without weights is
/// [`expand_to_fused`](super::expand::expand_to_fused) of `dout`; that of an addend is `dout` itself.
#[kernel(static_dims(width, k))]
pub fn reduce_fused_backward<E: Float>(
    t: T,
    #[dims(positions, width)] y: &Tensor<E, 2>,
    #[dims(tokens, k)] weights: &Tensor<f32, 2>,
    #[dims(tokens, k)] token_topk_to_pos: &Tensor<i32, 2>,
    #[dims(positions)] pos_to_token_topk: &Tensor<i32, 1>,
    #[dims(tokens, width)] dout: &Tensor<E, 2>,
    #[dims(positions, width)] dy: &mut Tensor<E, 2>,
    #[dims(tokens, k)] dweights: &mut Tensor<f32, 2>,
    #[comptime] cfg: ReduceBackwardConfig,
) {
    let ReduceBackwardConfig { bm, bn, .. } = cfg;
    let (tokens, positions) = (dout.dim(0), y.dim(0));
    let (width, k) = (dout.static_dim(1), weights.static_dim(1));
    // Without tokens there is padding still.
    let blocks = tokens.ceil_div(bm).max(1);
    let [b] = t.grid([blocks], cfg.threads);
    let dots = Dots::new(t, k, bn);
    let tile = || t.shared::<E, 2>([1, bn]);
    let (dout_tile, y_tiles) = (tile(), (0..k).map(|_| tile()).collect::<Vec<_>>());
    for i in t.serial(bm) {
        let token = b * bm + i;
        // Position -1 lies outside: it reads as zero, and what is written there goes nowhere.
        let slots: Vec<(Expr<f32>, Idx)> = (0..k)
            .map(|j| {
                let pos = select(token < tokens, token_topk_to_pos[(token, j)], -1);
                (weights[(token, j)], pos.to_index())
            })
            .collect();
        dots.clear(t);
        for chunk in t.pipelined(width.div_ceil(bn), STAGES) {
            t.copy(dout.at((token, chunk * bn)), dout_tile);
            for (tile, &(_, pos)) in y_tiles.iter().zip(&slots) {
                t.copy(y.at((pos, chunk * bn)), *tile);
            }
            for c in t.parallel(bn) {
                let gradient = dout_tile[(0, c)].cast::<f32>();
                for (j, &(weight, pos)) in slots.iter().enumerate() {
                    dots.add(j, c, gradient, y_tiles[j][(0, c)].cast());
                    dy[(pos, chunk * bn + c)] = (weight * gradient).cast();
                }
            }
        }
        let sums = dots.sum(t);
        for j in t.parallel(k) {
            dweights[(token, j)] = sums[j];
        }
    }
    // Every block clears the padding of a share of the positions.
    let share = positions.ceil_div(blocks);
    for i in t.serial(share) {
        let p = b * share + i;
        if p < positions && pos_to_token_topk[p] < 0 {
            for chunk in t.serial(width.div_ceil(bn)) {
                for c in t.parallel(bn) {
                    dy[(p, chunk * bn + c)] = lit::<f32>(0.0).cast();
                }
            }
        }
    }
}

/// The library's entry.
pub struct Entry;

fn launcher(dtype: DType, cfg: ReduceBackwardConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(dtype, E in [BF16 = bf16, F32 = f32], Ok(Box::new(ReduceFusedBackward::<E>::new(cfg))))
}

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Backward {
    tokens: usize,
    width: usize,
    experts: usize,
    k: usize,
    dtype: DType,
    /// All slots are empty.
    nothing: bool,
    cfg: ReduceBackwardConfig,
}

impl Backward {
    fn case(self) -> Case {
        let Backward { tokens, width, experts, k, dtype, nothing, cfg } = self;
        let nothing = if nothing { " nothing" } else { "" };
        let name = format!("t={tokens} k={k} h={width} e={experts} {dtype}{nothing}");
        Case::new(name, cfg, move |cfg| Backward { cfg, ..self }.problem())
    }

    fn problem(self) -> Result<Problem, ProblemError> {
        let Backward { tokens, width, experts, k, dtype, nothing, cfg } = self;
        let mut inputs = Inputs::new(26);
        let mut ids = random_ids(&mut inputs, tokens, experts, k);
        if nothing {
            ids.fill(-1);
        }
        // A tile of padding after the last expert.
        let positions = mapping::positions_needed(&ids, experts, 16) + 16;
        let map = mapping::fused_mapping(&ids, tokens, k, experts, 16, positions);
        let pos = map.token_topk_to_pos;
        let args = vec![
            Value::Tensor(inputs.normal(dtype, &[positions, width], 1.0)?),
            Value::Tensor(inputs.uniform(DType::F32, &[tokens, k], 0.0, 1.0)?),
            Value::Tensor(DynTensor::from_slice::<i32>(&[tokens, k], &pos)?),
            Value::Tensor(DynTensor::from_slice::<i32>(&[positions], &map.pos_to_token_topk)?),
            Value::Tensor(inputs.normal(dtype, &[tokens, width], 1.0)?),
            Value::Tensor(output(dtype, &[positions, width])?),
            Value::Tensor(output(DType::F32, &[tokens, k])?),
        ];
        let live = ids.iter().filter(|&&id| id >= 0).count();
        let work = Work { flops: 0.0, bytes: ((live + positions + tokens) * dtype.bytes_for(width)) as f64 };
        let verify = move |args: &[Value]| {
            let [y, weights, dout, dy, dweights] = [0, 1, 4, 5, 6].map(|i| args[i].f32s());
            let (want, want_weights) = reference::reduce_fused_backward(&y, width, &weights, &pos, k, &dout);
            let want = if dtype == DType::BF16 { codec::bf16_round_all(&want) } else { want };
            // Terms of both signs cancel: relative to their size, not to the sum's.
            let tolerance = Tolerance::AbsPlusRel { abs: 1e-4, rel: 1e-4 };
            vec![
                Comparison::exact_f32("dy", &dy, &want),
                Comparison { output: "dweights", verdict: compare(&dweights, &want_weights, tolerance) },
            ]
        };
        Ok(Problem { kernel: launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
    }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "reduce_fused_backward",
            family: Family::Moe,
            summary: "gradients of the weighted sum of expert outputs: of the outputs, in expert order, and of the weights",
            equation: "dy[pos] = weights[t,j] dout[t]; dweights[t,j] = sum_c dout[t,c] y[pos,c], pos = token_topk_to_pos[t,j]",
            tolerance: "dy exact; dweights abs 1e-4 + rel 1e-4",
            source: "V4 specification 3.2 (reduce_fused), differentiated",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ReduceBackwardConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let dtype = dtypes.get("y").copied().unwrap_or(DType::BF16);
        launcher(dtype, apply(ReduceBackwardConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = ReduceBackwardConfig::default();
        let (bf16, f32) = (DType::BF16, DType::F32);
        let case = |tokens, width, experts, k, dtype, cfg| {
            Backward { tokens, width, experts, k, dtype, nothing: false, cfg }.case()
        };
        match scale {
            Scale::Small => {
                let small = ReduceBackwardConfig { bm: 2, bn: 256, ..cfg };
                vec![
                    case(0, 256, 24, 6, bf16, small),
                    case(1, 256, 24, 6, bf16, small),
                    case(19, 576, 24, 6, bf16, small),
                    case(20, 100, 9, 1, f32, small),
                    case(9, 300, 24, 7, f32, ReduceBackwardConfig { bm: 1, ..small }),
                    Backward { tokens: 5, width: 64, experts: 8, k: 2, dtype: bf16, nothing: true, cfg: small }.case(),
                ]
            }
            Scale::Representative => vec![case(4096, 7168, 384, 6, bf16, cfg)],
            Scale::Full => vec![case(4001, 4096, 256, 6, bf16, cfg), case(4096, 4096, 256, 6, f32, cfg)],
        }
    }
}
