//! The hash router of the first layers: experts by token id, weights from the scores.

use super::gate::GateConfig;
use super::problem::{RouterProblem, id_type};
use super::score::{Scorer, Scoring, slot_sum};
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// `ids[t, ..] = tid2eid[token_ids[t], ..]`, and weights from the scores of `logits` [tokens, experts] as in
/// [`super::gate::gate`], without a bias. `token_ids` `[tokens]` are rows of `tid2eid` [vocab, k].
#[kernel(static_dims(experts, k))]
pub fn hash_gate<I: Int>(
    t: T,
    #[dims(tokens, experts)] logits: &Tensor<f32, 2>,
    #[dims(tokens)] token_ids: &Tensor<i64, 1>,
    #[dims(vocab, k)] tid2eid: &Tensor<i32, 2>,
    #[dims(tokens, k)] ids: &mut Tensor<I, 2>,
    #[dims(tokens, k)] weights: &mut Tensor<f32, 2>,
    route_scale: Expr<f32>,
    #[comptime] cfg: GateConfig,
) {
    let (rows, k) = (cfg.tokens, ids.static_dim(1));
    let [b] = t.grid([logits.dim(0).ceil_div(rows)], cfg.threads);
    let first = b * rows;
    let scorer = match cfg.scoring {
        Scoring::SqrtSoftplus => Scorer::SqrtSoftplus,
        Scoring::Sigmoid => Scorer::Sigmoid,
        Scoring::Softmax => {
            let logits_s = t.shared::<f32, 2>([rows, logits.static_dim(1)]);
            t.copy(logits.at((first, 0)), logits_s);
            Scorer::new(t, cfg.scoring, logits_s)
        }
    };
    let scores = t.shared::<f32, 2>([rows, k]);
    for (i, j) in t.parallel((rows, k)) {
        let id = tid2eid[(token_ids[first + i].to_index(), j)];
        ids[(first + i, j)] = id.cast::<I>();
        scores[(i, j)] = scorer.score(i, logits[(first + i, id.to_index())]);
    }
    for (i, j) in t.parallel((rows, k)) {
        weights[(first + i, j)] = scores[(i, j)] / slot_sum(scores, i) * route_scale;
    }
}

/// The library's entry.
pub struct Entry;

impl Entry {
    fn launcher(ids: DType, cfg: GateConfig) -> Result<Box<dyn Kernel>, ProblemError> {
        id_type!(ids, I, Ok(Box::new(HashGate::<I>::new(cfg))))
    }
}

fn config() -> GateConfig {
    GateConfig { tokens: 64, ..GateConfig::default() }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "hash_gate",
            family: Family::Moe,
            summary: "hash router: experts by token id, weights from the scores",
            equation: "ids[t] = tid2eid[token_ids[t]]; weights[t,j] = score_j / (1e-20 + sum_j score_j) * route_scale",
            tolerance: "ids exact; weights rel 4e-6",
            source: "V4 specification 3.1; DeepSeek-V4 Gate of hash layers",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(config())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Entry::launcher(dtypes.get("ids").copied().unwrap_or(DType::I64), apply(config(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, experts: usize, vocab: usize, ids: DType, cfg: GateConfig| {
            let problem = RouterProblem { tokens, experts, k: 6, ids };
            let name = format!("{} vocab={vocab}", problem.name(&cfg));
            Case::new(name, cfg, move |cfg| problem.hash_gate(vocab, cfg, Entry::launcher(ids, cfg)?))
        };
        let (i64, i32, cfg) = (DType::I64, DType::I32, config());
        match scale {
            Scale::Small => {
                let mut cases: Vec<Case> = [0, 1, 67].iter().map(|&tokens| case(tokens, 64, 100, i64, cfg)).collect();
                for &scoring in Scoring::ALL {
                    cases.push(case(13, 72, 50, i32, GateConfig { scoring, tokens: 4, ..cfg }));
                }
                cases
            }
            Scale::Representative => vec![case(4096, 384, 129_280, i64, cfg)],
            Scale::Full => vec![case(4001, 256, 129_280, i64, cfg), case(1, 256, 129_280, i64, cfg)],
        }
    }
}
