//! The full router: expert groups, masked and fixed tokens, shared experts, replicas, parallel ranks.

use super::indices::local_id;
use super::problem::{self, RouterProblem, id_type, int_tensor, ints, logits, nearest_choice, random_ids};
use super::score::{Scorer, Scoring, lanes, slot_sum};
use super::top_groups::top_sum;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::compare;
use crate::reference::moe::indices::{ExpertRanks, top_groups};
use crate::reference::moe::top2_sum_gate as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Config of [`top2_sum_gate`]. An option that is off does not read its arguments, which may then have any extents.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = kept_groups <= groups)]
#[tune(constraint = ep_ranks == 0 || (tp_ranks > 0 && physical_experts >= ep_ranks && physical_experts.is_multiple_of(ep_ranks)))]
pub struct RouteConfig {
    pub scoring: Scoring,
    /// Groups of consecutive experts; 0 for none.
    pub groups: usize,
    /// Only experts of so many best groups can be chosen.
    pub kept_groups: usize,
    /// Tokens where `live` is false are not routed.
    pub masked: bool,
    /// Tokens where `fixed` is true take their experts from `fixed_ids`.
    pub fixed: bool,
    /// Shared experts appended after the chosen ones.
    pub shared: usize,
    /// Logical ids become physical ones.
    pub replicated: bool,
    /// Expert-parallel ranks, if ids of one rank only are wanted; 0 to keep all.
    pub ep_ranks: usize,
    /// Tensor-parallel ranks.
    pub tp_ranks: usize,
    /// Experts over all ranks, replicas and shared ones included.
    pub physical_experts: usize,
    /// Tokens of a block.
    #[tune(4, 8, 16)]
    pub tokens: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for RouteConfig {
    /// As [`super::gate::gate`].
    fn default() -> RouteConfig {
        RouteConfig {
            scoring: Scoring::SqrtSoftplus,
            groups: 0,
            kept_groups: 0,
            masked: false,
            fixed: false,
            shared: 0,
            replicated: false,
            ep_ranks: 0,
            tp_ranks: 1,
            physical_experts: 0,
            tokens: 4,
            threads: 128,
        }
    }
}

/// Lowers the keys of experts outside the `kept` best of `groups` groups to minus infinity. A group's score is the sum of its
/// two largest keys.
#[tile]
fn mask_groups(t: T, keys: Shared<f32, 2>, groups: usize, kept: usize) {
    let [rows, experts] = keys.shape();
    let per_group = experts / groups;
    let grouped = t.fragment::<f32, 3>([rows, groups, per_group]);
    for (i, g, e) in t.parallel((rows, groups, per_group)) {
        grouped[(i, g, e)] = keys[(i, g * per_group + e)];
    }
    let sums = top_sum(t, grouped, 2);
    let (best, ids) = (t.fragment::<f32, 2>([rows, kept]), t.shared::<i32, 2>([rows, kept]));
    t.topk(sums, best, ids);
    let keep = t.shared::<i32, 2>([rows, groups]);
    t.clear(keep);
    for (i, g) in t.parallel((rows, kept)) {
        keep[(i, ids[(i, g)].to_index())] = 1;
    }
    for (i, g, e) in t.parallel((rows, groups, per_group)) {
        let at = (i, g * per_group + e);
        keys[at] = select(keep[(i, g)] == 1, keys[at], f32::NEG_INFINITY);
    }
}

/// Routes tokens as [`super::gate::gate`], with options: expert groups; `live` `[tokens]`, tokens without it get ids -1 and
/// weights 0; `fixed` `[tokens]`, tokens with it take the experts `fixed_ids` [tokens, k] (-1 stays, and weighs as expert 0);
/// shared experts with ids from `experts` on and weight 1; copy `(ep_rank + token * 23333) mod replica_count[id]` of expert
/// `id` out of `to_physical` [logical, columns]; only the experts of rank `tp_rank`, renumbered, the others -1.
///
/// `ids` and `weights` [tokens, k + shared] come after all mappings, `logical` [tokens, k] before them.
#[kernel(static_dims(experts, k))]
pub fn top2_sum_gate<I: Int>(
    t: T,
    #[dims(tokens, experts)] logits: &Tensor<f32, 2>,
    #[dims(experts)] bias: &Tensor<f32, 1>,
    #[dims(live_tokens)] live: &Tensor<bool, 1>,
    #[dims(fixed_tokens)] fixed: &Tensor<bool, 1>,
    #[dims(fixed_rows, fixed_cols)] fixed_ids: &Tensor<i64, 2>,
    #[dims(all_experts, columns)] to_physical: &Tensor<i32, 2>,
    #[dims(counted_experts)] replica_count: &Tensor<i32, 1>,
    #[dims(tokens, slots)] ids: &mut Tensor<I, 2>,
    #[dims(tokens, slots)] weights: &mut Tensor<f32, 2>,
    #[dims(tokens, k)] logical: &mut Tensor<I, 2>,
    route_scale: Expr<f32>,
    ep_rank: Expr<i32>,
    tp_rank: Expr<i32>,
    #[comptime] cfg: RouteConfig,
) {
    let (rows, experts, k) = (cfg.tokens, logits.static_dim(1), logical.static_dim(1));
    let [b] = t.grid([logits.dim(0).ceil_div(rows)], cfg.threads);
    let first = b * rows;
    let logits_s = t.shared::<f32, 2>([rows, experts]);
    t.copy(logits.at((first, 0)), logits_s);
    let scorer = Scorer::new(t, cfg.scoring, logits_s);
    let keys = t.shared::<f32, 2>([rows, experts]);
    for (i, e) in t.parallel((rows, experts)) {
        keys[(i, e)] = scorer.key(i, logits_s[(i, e)]) + bias[e];
    }
    if cfg.groups > 0 {
        let whole = experts.is_multiple_of(cfg.groups);
        t.assert(whole.into(), "top2_sum_gate: the experts do not split into `groups` equal groups");
        mask_groups(t, keys, cfg.groups, cfg.kept_groups);
    }
    // The best keys make room for their scores.
    let (scores, chosen) = (t.shared::<f32, 2>([rows, k]), t.shared::<i32, 2>([rows, k]));
    t.topk(keys, scores, chosen);
    if cfg.fixed {
        for (i, j) in t.parallel((rows, lanes(k))) {
            if j < k {
                let given = fixed_ids[(first + i, j)].cast::<i32>();
                chosen[(i, j)] = select(fixed[first + i], given, chosen[(i, j)]);
            }
        }
    }
    for (i, j) in t.parallel((rows, lanes(k))) {
        let score = scorer.score(i, logits_s[(i, chosen[(i, j.min(k - 1))].max(0).to_index())]);
        if j < k {
            scores[(i, j)] = score;
        }
    }

    let route = |i: Idx, slot: Idx, id: Expr<i32>, weight: Expr<f32>| {
        let token = first + i;
        let routed = if cfg.masked { live[token] } else { Expr::from(true) };
        let mut id = select(routed, id, -1);
        if cfg.replicated {
            let at = id.max(0).to_index();
            let copy = (ep_rank.to_index() + token * 23333) % replica_count[at].max(1).to_index();
            id = select(id >= 0, to_physical[(at, copy)], -1);
        }
        if cfg.ep_ranks > 0 {
            id = local_id(id, cfg.physical_experts, cfg.ep_ranks, cfg.tp_ranks, tp_rank);
        }
        ids[(token, slot)] = id.cast::<I>();
        weights[(token, slot)] = select(routed, weight, 0.0);
    };
    for (i, j) in t.parallel((rows, lanes(k))) {
        let weight = scores[(i, j.min(k - 1))] / slot_sum(scores, i) * route_scale;
        if j < k {
            route(i, j, chosen[(i, j)], weight);
            let routed = if cfg.masked { live[first + i] } else { Expr::from(true) };
            logical[(first + i, j)] = select(routed, chosen[(i, j)], -1).cast::<I>();
        }
    }
    if cfg.shared > 0 {
        for (i, s) in t.parallel((rows, cfg.shared)) {
            route(i, s + k, (s + experts).cast::<i32>(), lit(1.0));
        }
    }
}

/// The library's entry.
pub struct Entry;

fn launcher(ids: DType, cfg: RouteConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    id_type!(ids, I, Ok(Box::new(Top2SumGate::<I>::new(cfg))))
}

/// This rank's numbers in the problems.
const EP_RANK: usize = 3;
const TP_RANK: usize = 1;

fn bools(values: &[bool]) -> Result<DynTensor, ProblemError> {
    Ok(DynTensor::from_slice::<bool>(&[values.len()], values)?)
}

fn problem(sizes: RouterProblem, cfg: RouteConfig) -> Result<Problem, ProblemError> {
    let RouterProblem { tokens, experts, k, ids } = sizes;
    if cfg.groups > 0 && (cfg.groups > experts || !experts.is_multiple_of(cfg.groups)) {
        return Err(ProblemError::Unsupported(format!(
            "{experts} experts do not split into {} equal groups",
            cfg.groups
        )));
    }
    let slots = k + cfg.shared;
    let mut inputs = Inputs::new(14);
    let logits = logits(&mut inputs, tokens, experts);
    let bias = sizes.bias(&mut inputs);
    let live: Vec<bool> = (0..tokens).map(|t| t % 5 != 2).collect();
    let fixed: Vec<bool> = (0..tokens).map(|t| t % 3 == 1).collect();
    let fixed_ids = random_ids(&mut inputs, tokens, experts, k);
    // Expert e has 1 + e % 3 copies, numbered in order.
    let all = experts + cfg.shared;
    let counts: Vec<i32> = (0..all as i32).map(|e| 1 + e % 3).collect();
    let mut next = 0;
    let to_physical: Vec<i32> = counts
        .iter()
        .flat_map(|&count| {
            let first = next;
            next += count;
            (0..4).map(move |c| if c < count { first + c } else { -1 })
        })
        .collect();
    let args = vec![
        Value::Tensor(DynTensor::from_slice::<f32>(&[tokens, experts], &logits)?),
        Value::Tensor(DynTensor::from_slice::<f32>(&[experts], &bias)?),
        Value::Tensor(bools(if cfg.masked { &live } else { &[] })?),
        Value::Tensor(bools(if cfg.fixed { &fixed } else { &[] })?),
        Value::Tensor(int_tensor(DType::I64, &[tokens, k], &fixed_ids)?),
        Value::Tensor(int_tensor(DType::I32, &[all, 4], &to_physical)?),
        Value::Tensor(int_tensor(DType::I32, &[all], &counts)?),
        Value::Tensor(output(ids, &[tokens, slots])?),
        Value::Tensor(output(DType::F32, &[tokens, slots])?),
        Value::Tensor(output(ids, &[tokens, k])?),
        Value::Scalar(Const::f32(problem::ROUTE_SCALE)),
        Value::Scalar(Const::from_i64(DType::I32, EP_RANK as i64)),
        Value::Scalar(Const::from_i64(DType::I32, TP_RANK as i64)),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let gate = sizes.gate_of(&logits, Some(&bias), cfg.scoring);
        let options = reference::Options {
            groups: (cfg.groups > 0).then_some((cfg.groups, cfg.kept_groups)),
            live: None,
            fixed: cfg.fixed.then_some((&fixed[..], &fixed_ids[..])),
            ..reference::Options::default()
        };
        // The choice first, with the kernel's own where rounding decides; then everything else from that choice.
        let mut keys = gate.keys();
        if cfg.groups > 0 {
            let (_, best) = top_groups(&keys, tokens, cfg.groups, 2, cfg.kept_groups);
            let per_group = experts / cfg.groups;
            for (i, key) in keys.iter_mut().enumerate() {
                let kept = &best[i / experts * cfg.kept_groups..][..cfg.kept_groups];
                if !kept.contains(&((i % experts / per_group) as i32)) {
                    *key = f32::NEG_INFINITY;
                }
            }
        }
        let choice = nearest_choice(&gate, &keys, &ints(&args[9]), &reference::route(&gate, &options).logical);
        let everywhere = vec![true; tokens];
        let options = reference::Options {
            groups: None,
            live: cfg.masked.then_some(&live[..]),
            fixed: Some((&everywhere, &choice)),
            shared: cfg.shared,
            replicas: cfg.replicated.then_some(reference::Replicas {
                to_physical: &to_physical,
                columns: 4,
                count: &counts,
                ep_rank: EP_RANK,
            }),
            ranks: (cfg.ep_ranks > 0).then_some(ExpertRanks {
                experts: cfg.physical_experts,
                ep_ranks: cfg.ep_ranks,
                tp_ranks: cfg.tp_ranks,
                tp_rank: TP_RANK,
            }),
        };
        let want = reference::route(&gate, &options);
        let tensor = |shape: &[usize], v: &[i32]| int_tensor(ids, shape, v).expect("as large as the kernel's own");
        vec![
            Comparison::exact("ids", &args[7], &tensor(&[tokens, slots], &want.routing.ids)),
            Comparison {
                output: "weights",
                verdict: compare(&args[8].f32s(), &want.routing.weights, problem::WEIGHTS),
            },
            Comparison::exact("logical", &args[9], &tensor(&[tokens, k], &want.logical)),
        ]
    };
    Ok(Problem { kernel: launcher(ids, cfg)?, args, work, verify: Box::new(verify) })
}

fn case(sizes: RouterProblem, cfg: RouteConfig) -> Case {
    let RouterProblem { tokens, experts, k, ids } = sizes;
    let mut name = format!("t={tokens} e={experts} k={k} {:?} {ids}", cfg.scoring).to_lowercase();
    if cfg.groups > 0 {
        name.push_str(&format!(" groups={}/{}", cfg.kept_groups, cfg.groups));
    }
    for (on, word) in [
        (cfg.masked, " masked"),
        (cfg.fixed, " fixed"),
        (cfg.shared > 0, " shared"),
        (cfg.replicated, " replicated"),
        (cfg.ep_ranks > 0, " ranks"),
    ] {
        if on {
            name.push_str(word);
        }
    }
    Case::new(name, cfg, move |cfg| problem(sizes, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "top2_sum_gate",
            family: Family::Moe,
            summary: "router with expert groups, masks, fixed routing, shared experts, replicas and ranks",
            equation: "as gate over the experts of the groups with the best sums of two; then ids through masks, replicas and ranks",
            tolerance: "ids exact up to keys closer than their rounding; weights rel 4e-6",
            source: "V4 specification 3.1, 3.2; TileKernels top2_sum_gate",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(RouteConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        launcher(dtypes.get("ids").copied().unwrap_or(DType::I64), apply(RouteConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let sizes = |tokens, experts, k| RouterProblem { tokens, experts, k, ids: DType::I64 };
        let cfg = RouteConfig::default();
        let grouped = RouteConfig { scoring: Scoring::Sigmoid, groups: 8, kept_groups: 4, ..cfg };
        let ranks = |ep_ranks, tp_ranks, physical_experts| RouteConfig { ep_ranks, tp_ranks, physical_experts, ..cfg };
        let everything = |groups, kept_groups, physical_experts| RouteConfig {
            groups,
            kept_groups,
            masked: true,
            fixed: true,
            shared: 2,
            replicated: true,
            ..ranks(8, 2, physical_experts)
        };
        match scale {
            Scale::Small => {
                let mut cases = vec![
                    case(sizes(0, 64, 6), cfg),
                    case(sizes(1, 64, 6), cfg),
                    case(sizes(17, 64, 6), grouped),
                    case(sizes(9, 32, 4), RouteConfig { groups: 4, kept_groups: 1, ..cfg }),
                    case(sizes(17, 24, 2), RouteConfig { masked: true, shared: 1, ..cfg }),
                    case(sizes(17, 24, 3), RouteConfig { fixed: true, scoring: Scoring::Softmax, ..cfg }),
                    case(sizes(17, 24, 2), RouteConfig { replicated: true, ..cfg }),
                    case(sizes(17, 72, 6), ranks(8, 4, 72)),
                ];
                // 30 + 2 logical experts with 1 + e % 3 copies each are 63 physical ones.
                cases.push(case(RouterProblem { ids: DType::I32, ..sizes(33, 30, 6) }, everything(5, 3, 64)));
                cases
            }
            Scale::Representative => vec![case(sizes(4096, 256, 8), grouped)],
            Scale::Full => vec![
                case(sizes(4001, 384, 6), cfg),
                case(sizes(8001, 256, 6), everything(8, 4, 520)),
                case(sizes(4096, 72, 9), RouteConfig { scoring: Scoring::Softmax, masked: true, ..cfg }),
            ],
        }
    }
}
