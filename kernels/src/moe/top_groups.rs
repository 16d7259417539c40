//! Scores of expert groups, and the best groups.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::moe::indices as reference;
use rand::Rng;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Config of [`topk_sum_and_topk_group_idx`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = sum_top == 1 || sum_top == 2)]
pub struct GroupConfig {
    /// How many of a group's largest scores make its score: 1 or 2.
    pub sum_top: usize,
    /// Tokens of a block.
    #[tune(8, 16, 32)]
    pub tokens: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for GroupConfig {
    fn default() -> GroupConfig {
        GroupConfig { sum_top: 2, tokens: 8, threads: 256 }
    }
}

/// The sum of the `sum_top` (1 or 2) largest numbers along the last axis, larger first.
#[tile]
pub fn top_sum(t: T, scores: Fragment<f32, 3>, sum_top: usize) -> Fragment<f32, 2> {
    let [rows, groups, per_group] = scores.shape();
    let first = t.fragment::<f32, 2>([rows, groups]);
    t.reduce_max(scores, first, 2);
    if sum_top.min(per_group) == 1 {
        return first;
    }
    // The second is the first of the others.
    let (at, second) = (t.fragment::<i32, 2>([rows, groups]), t.fragment::<f32, 2>([rows, groups]));
    t.argmax(scores, at, 2);
    let others = t.fragment::<f32, 3>([rows, groups, per_group]);
    for (i, g, e) in t.parallel((rows, groups, per_group)) {
        others[(i, g, e)] = select(e.cast::<i32>() == at[(i, g)], f32::NEG_INFINITY, scores[(i, g, e)]);
    }
    t.reduce_max(others, second, 2);
    for (i, g) in t.parallel((rows, groups)) {
        first[(i, g)] += second[(i, g)];
    }
    first
}

/// `sums[t,g]` = the sum of the `sum_top` largest of `scores[t,g,..]`, larger first; `groups[t,..]` = the best groups by
/// that, best first, the smaller id first on ties. `scores` [tokens, all, per_group] finite.
#[kernel(static_dims(all, per_group, keep))]
pub fn topk_sum_and_topk_group_idx(
    t: T,
    #[dims(tokens, all, per_group)] scores: &Tensor<f32, 3>,
    #[dims(tokens, all)] sums: &mut Tensor<f32, 2>,
    #[dims(tokens, keep)] groups: &mut Tensor<i64, 2>,
    #[comptime] cfg: GroupConfig,
) {
    let (rows, all, keep) = (cfg.tokens, scores.static_dim(1), groups.static_dim(1));
    let [b] = t.grid([scores.dim(0).ceil_div(rows)], cfg.threads);
    let tile = t.fragment::<f32, 3>([rows, all, scores.static_dim(2)]);
    t.copy(scores.at((b * rows, 0, 0)), tile);
    let totals = top_sum(t, tile, cfg.sum_top);
    t.copy(totals, sums.at((b * rows, 0)));
    let (best, ids) = (t.fragment::<f32, 2>([rows, keep]), t.fragment::<i32, 2>([rows, keep]));
    t.topk(totals, best, ids);
    t.cast(ids, groups.at((b * rows, 0)));
}

/// The library's entry.
pub struct Entry;

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "topk_sum_and_topk_group_idx",
            family: Family::Moe,
            summary: "scores of expert groups from their best experts, and the best groups",
            equation: "sums[t,g] = sum of the 1 or 2 largest scores[t,g,:]; groups[t] = topk_g(sums[t,g])",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels topk_sum_and_topk_group_idx",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(GroupConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(TopkSumAndTopkGroupIdx::new(apply(GroupConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, groups: usize, per_group: usize, keep: usize, sum_top: usize| {
            let name = format!("t={tokens} groups={groups}x{per_group} top={sum_top} keep={keep}");
            let cfg = GroupConfig { sum_top, ..GroupConfig::default() };
            Case::new(name, cfg, move |cfg| {
                // Multiples of 1/8: sums are exact and ties frequent.
                let scores =
                    Inputs::new(12).draw(tokens * groups * per_group, |r| r.random_range(-40..40) as f32 / 8.0);
                let args = vec![
                    Value::Tensor(DynTensor::from_slice::<f32>(&[tokens, groups, per_group], &scores)?),
                    Value::Tensor(output(DType::F32, &[tokens, groups])?),
                    Value::Tensor(output(DType::I64, &[tokens, keep])?),
                ];
                let verify = move |args: &[Value]| {
                    let (sums, ids) = reference::top_groups(&scores, tokens, groups, cfg.sum_top, keep);
                    let ids = super::problem::int_tensor(DType::I64, &[tokens, keep], &ids);
                    vec![
                        Comparison::exact_f32("sums", &args[1].f32s(), &sums),
                        Comparison::exact("groups", &args[2], &ids.expect("as large as the kernel's own")),
                    ]
                };
                let kernel = Box::new(TopkSumAndTopkGroupIdx::new(cfg));
                Ok(Problem { kernel, work: Work::of(&args), args, verify: Box::new(verify) })
            })
        };
        match scale {
            Scale::Small => vec![
                case(0, 8, 32, 4, 2),
                case(1, 8, 32, 4, 2),
                case(13, 8, 9, 4, 2),
                case(9, 4, 8, 1, 1),
                case(9, 12, 1, 3, 1),
            ],
            Scale::Representative => vec![case(4096, 8, 32, 4, 2)],
            Scale::Full => vec![case(4001, 8, 48, 4, 2), case(4096, 16, 16, 2, 1)],
        }
    }
}
