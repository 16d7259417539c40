//! The router: scores of all experts, the k best by biased score, their normalised weights.

use super::problem::{RouterProblem, id_type};
use super::score::{Scorer, Scoring, lanes, slot_sum};
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Config of [`gate`] and [`super::hash_gate::hash_gate`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct GateConfig {
    pub scoring: Scoring,
    /// Tokens of a block.
    #[tune(4, 8, 16, 32)]
    pub tokens: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for GateConfig {
    fn default() -> GateConfig {
        GateConfig { scoring: Scoring::SqrtSoftplus, tokens: 4, threads: 128 }
    }
}

/// `ids[t, ..]` = the `k` experts of largest `score(logits[t, e]) + bias[e]`, best first, the smaller id first on ties;
/// `weights[t, j] = score_j / (1e-20 + sum_j score_j) * route_scale`, without the bias. `logits` [tokens, experts] and
/// `bias` `[experts]` (zeros if there is none) are finite.
#[kernel(static_dims(experts, k))]
pub fn gate<I: Int>(
    t: T,
    #[dims(tokens, experts)] logits: &Tensor<f32, 2>,
    #[dims(experts)] bias: &Tensor<f32, 1>,
    #[dims(tokens, k)] ids: &mut Tensor<I, 2>,
    #[dims(tokens, k)] weights: &mut Tensor<f32, 2>,
    route_scale: Expr<f32>,
    #[comptime] cfg: GateConfig,
) {
    let (rows, experts, k) = (cfg.tokens, logits.static_dim(1), ids.static_dim(1));
    let [b] = t.grid([logits.dim(0).ceil_div(rows)], cfg.threads);
    let first = b * rows;
    let logits_s = t.shared::<f32, 2>([rows, experts]);
    t.copy(logits.at((first, 0)), logits_s);
    let scorer = Scorer::new(t, cfg.scoring, logits_s);
    let keys = t.fragment::<f32, 2>([rows, experts]);
    for (i, e) in t.parallel((rows, experts)) {
        keys[(i, e)] = scorer.key(i, logits_s[(i, e)]) + bias[e];
    }
    // The best keys make room for their scores.
    let (scores, chosen) = (t.shared::<f32, 2>([rows, k]), t.shared::<i32, 2>([rows, k]));
    t.topk(keys, scores, chosen);
    for (i, j) in t.parallel((rows, lanes(k))) {
        let score = scorer.score(i, logits_s[(i, chosen[(i, j.min(k - 1))].to_index())]);
        if j < k {
            scores[(i, j)] = score;
        }
    }
    for (i, j) in t.parallel((rows, lanes(k))) {
        let weight = scores[(i, j.min(k - 1))] / slot_sum(scores, i) * route_scale;
        if j < k {
            ids[(first + i, j)] = chosen[(i, j)].cast::<I>();
            weights[(first + i, j)] = weight;
        }
    }
}

/// The library's entry.
pub struct Entry;

impl Entry {
    fn launcher(ids: DType, cfg: GateConfig) -> Result<Box<dyn Kernel>, ProblemError> {
        id_type!(ids, I, Ok(Box::new(Gate::<I>::new(cfg))))
    }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "gate",
            family: Family::Moe,
            summary: "router: scores, top-k experts by biased score, normalised weights",
            equation: "ids[t] = topk_e(score(logits[t,e]) + bias[e]); weights[t,j] = score_j / (1e-20 + sum_j score_j) * route_scale",
            tolerance: "ids exact up to keys closer than their rounding; weights rel 4e-6",
            source: "V4 specification 3.1; DeepSeek-V4 Gate, TileKernels topk_gate",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(GateConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Entry::launcher(dtypes.get("ids").copied().unwrap_or(DType::I64), apply(GateConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, experts: usize, k: usize, ids: DType, cfg: GateConfig| {
            let problem = RouterProblem { tokens, experts, k, ids };
            Case::new(problem.name(&cfg), cfg, move |cfg| problem.gate(cfg, Entry::launcher(ids, cfg)?))
        };
        let (i64, i32, cfg) = (DType::I64, DType::I32, GateConfig::default());
        match scale {
            Scale::Small => {
                let mut cases: Vec<Case> = [0, 1, 9].iter().map(|&tokens| case(tokens, 64, 6, i64, cfg)).collect();
                for &scoring in Scoring::ALL {
                    let cfg = GateConfig { scoring, tokens: 4, ..cfg };
                    cases.extend([case(13, 72, 6, i32, cfg), case(5, 16, 1, i64, cfg), case(5, 9, 9, i64, cfg)]);
                }
                cases
            }
            Scale::Representative => vec![case(4096, 384, 6, i64, cfg)],
            Scale::Full => vec![
                case(4001, 256, 6, i64, cfg),
                case(4096, 256, 6, i32, cfg),
                case(8001, 72, 8, i64, cfg),
                case(4096, 256, 8, i64, GateConfig { scoring: Scoring::Sigmoid, ..cfg }),
                case(4096, 256, 6, i64, GateConfig { scoring: Scoring::Softmax, ..cfg }),
            ],
        }
    }
}
