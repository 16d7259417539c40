//! Small exact operators on expert ids: local experts of a rank, and removal of repeated ids.

use super::problem::{id_type, int_tensor, random_ids};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::moe::indices as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Which experts a tensor-parallel rank owns, and the tile size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = ep_ranks > 0 && tp_ranks > 0 && experts.is_multiple_of(ep_ranks))]
pub struct RankConfig {
    /// Experts over all ranks.
    pub experts: usize,
    /// Expert-parallel ranks.
    pub ep_ranks: usize,
    /// Tensor-parallel ranks.
    pub tp_ranks: usize,
    /// Tokens of a block.
    #[tune(64, 128, 256)]
    pub tokens: usize,
    #[tune(64, 128)]
    pub threads: usize,
}

impl Default for RankConfig {
    fn default() -> RankConfig {
        RankConfig { experts: 256, ep_ranks: 8, tp_ranks: 1, tokens: 128, threads: 128 }
    }
}

/// The id of expert `id` on rank `tp_rank`: experts are numbered over `ep_ranks` ranks, of which this one owns every
/// `tp_ranks`-th; what it owns is renumbered without gaps. -1 if it does not own it or `id` is negative.
pub fn local_id(id: Expr<i32>, experts: usize, ep_ranks: usize, tp_ranks: usize, tp_rank: Expr<i32>) -> Expr<i32> {
    let (per_rank, tp_ranks) = ((experts / ep_ranks) as i32, tp_ranks as i32);
    let rank = id / per_rank;
    let mine = cmp::ge(&id, &0) & cmp::eq(&(rank % tp_ranks), &tp_rank);
    select(mine, rank / tp_ranks * per_rank + id % per_rank, -1)
}

/// `masked[t,j]` = the id of expert `ids[t,j]` among those of rank `tp_rank`, -1 if the rank does not own it.
#[kernel(static_dims(k))]
pub fn mask_indices_by_tp<I: Int>(
    t: T,
    #[dims(tokens, k)] ids: &Tensor<I, 2>,
    #[dims(tokens, k)] masked: &mut Tensor<I, 2>,
    tp_rank: Expr<i32>,
    #[comptime] cfg: RankConfig,
) {
    let [b] = t.grid([ids.dim(0).ceil_div(cfg.tokens)], cfg.threads);
    for (i, j) in t.parallel((cfg.tokens, ids.static_dim(1))) {
        let at = (b * cfg.tokens + i, j);
        let id = local_id(ids[at].cast::<i32>(), cfg.experts, cfg.ep_ranks, cfg.tp_ranks, tp_rank);
        masked[at] = id.cast::<I>();
    }
}

/// Config of [`inplace_unique_group_indices`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct UniqueConfig {
    /// Tokens of a block.
    #[tune(64, 128, 256)]
    pub tokens: usize,
    #[tune(64, 128)]
    pub threads: usize,
}

impl Default for UniqueConfig {
    fn default() -> UniqueConfig {
        UniqueConfig { tokens: 128, threads: 128 }
    }
}

/// Replaces, in each row of `ids` [tokens, k], every repetition of an earlier id by -1.
#[kernel(static_dims(k))]
pub fn inplace_unique_group_indices<I: Int>(
    t: T,
    #[dims(tokens, k)] ids: &mut Tensor<I, 2>,
    #[comptime] cfg: UniqueConfig,
) {
    let (rows, k) = (cfg.tokens, ids.static_dim(1));
    let [b] = t.grid([ids.dim(0).ceil_div(rows)], cfg.threads);
    for i in t.parallel(rows) {
        let row: Vec<Expr<i32>> = (0..k).map(|j| ids[(b * rows + i, j)].cast::<i32>()).collect();
        for j in 1..k {
            let seen = (0..j).fold(Expr::from(false), |seen, earlier| seen | (row[earlier] == row[j]));
            ids[(b * rows + i, j)] = select(seen, -1, row[j]).cast::<I>();
        }
    }
}

/// The library's entry of [`mask_indices_by_tp`].
pub struct MaskEntry;

/// The library's entry of [`inplace_unique_group_indices`].
pub struct UniqueEntry;

fn mask_launcher(ids: DType, cfg: RankConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    id_type!(ids, I, Ok(Box::new(MaskIndicesByTp::<I>::new(cfg))))
}

fn unique_launcher(ids: DType, cfg: UniqueConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    id_type!(ids, I, Ok(Box::new(InplaceUniqueGroupIndices::<I>::new(cfg))))
}

impl LibraryKernel for MaskEntry {
    fn info(&self) -> Info {
        Info {
            name: "mask_indices_by_tp",
            family: Family::Moe,
            summary: "keeps the experts of a tensor-parallel rank, renumbered; the others become -1",
            equation: "r = id / per_rank; masked = r / tp_ranks * per_rank + id % per_rank if r % tp_ranks = tp_rank, else -1",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels mask_indices_by_tp",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(RankConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        mask_launcher(dtypes.get("ids").copied().unwrap_or(DType::I64), apply(RankConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, k: usize, dtype: DType, ranks: (usize, usize, usize), tp_rank: usize| {
            let (experts, ep_ranks, tp_ranks) = ranks;
            let name = format!("t={tokens} k={k} e={experts} ep={ep_ranks} tp={tp_ranks} rank={tp_rank} {dtype}");
            let cfg = RankConfig { experts, ep_ranks, tp_ranks, ..RankConfig::default() };
            Case::new(name, cfg, move |cfg| {
                if cfg.experts < k {
                    let few = format!("a token has {k} different experts, and `experts` is {}", cfg.experts);
                    return Err(ProblemError::Unsupported(few));
                }
                let ids = random_ids(&mut Inputs::new(10), tokens, cfg.experts, k);
                let args = vec![
                    Value::Tensor(int_tensor(dtype, &[tokens, k], &ids)?),
                    Value::Tensor(output(dtype, &[tokens, k])?),
                    Value::Scalar(Const::from_i64(DType::I32, tp_rank as i64)),
                ];
                let verify = move |args: &[Value]| {
                    let RankConfig { experts, ep_ranks, tp_ranks, .. } = cfg;
                    let ranks = reference::ExpertRanks { experts, ep_ranks, tp_ranks, tp_rank };
                    let want = int_tensor(dtype, &[tokens, k], &reference::mask_indices_by_tp(&ids, ranks));
                    vec![Comparison::exact("masked", &args[1], &want.expect("as large as the kernel's own"))]
                };
                Ok(Problem {
                    kernel: mask_launcher(dtype, cfg)?,
                    work: Work::of(&args),
                    args,
                    verify: Box::new(verify),
                })
            })
        };
        let (i64, i32) = (DType::I64, DType::I32);
        match scale {
            Scale::Small => vec![
                case(0, 6, i64, (64, 8, 2), 0),
                case(1, 6, i64, (64, 8, 2), 1),
                case(133, 6, i64, (72, 8, 4), 3),
                case(9, 1, i32, (16, 16, 1), 0),
            ],
            Scale::Representative => vec![case(4096, 6, i64, (384, 64, 8), 5)],
            Scale::Full => vec![case(4001, 6, i64, (256, 8, 2), 1), case(8001, 8, i32, (256, 64, 1), 0)],
        }
    }
}

impl LibraryKernel for UniqueEntry {
    fn info(&self) -> Info {
        Info {
            name: "inplace_unique_group_indices",
            family: Family::Moe,
            summary: "replaces repetitions of an id within a row by -1, in place",
            equation: "ids[t,j] = -1 if ids[t,i] = ids[t,j] for some i < j",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels inplace_unique_group_indices",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(UniqueConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        unique_launcher(dtypes.get("ids").copied().unwrap_or(DType::I64), apply(UniqueConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, k: usize, groups: usize, dtype: DType| {
            Case::new(format!("t={tokens} k={k} groups={groups} {dtype}"), UniqueConfig::default(), move |cfg| {
                // Few groups: most rows have repetitions. A second launch changes nothing.
                let ids: Vec<i32> =
                    random_ids(&mut Inputs::new(11), tokens, 4096, k).iter().map(|id| id % groups as i32).collect();
                let args = vec![Value::Tensor(int_tensor(dtype, &[tokens, k], &ids)?)];
                let verify = move |args: &[Value]| {
                    let want = int_tensor(dtype, &[tokens, k], &reference::unique_group_indices(&ids, tokens, k));
                    vec![Comparison::exact("ids", &args[0], &want.expect("as large as the kernel's own"))]
                };
                Ok(Problem {
                    kernel: unique_launcher(dtype, cfg)?,
                    work: Work::of(&args),
                    args,
                    verify: Box::new(verify),
                })
            })
        };
        match scale {
            Scale::Small => {
                vec![
                    case(0, 6, 4, DType::I64),
                    case(1, 6, 2, DType::I32),
                    case(131, 6, 8, DType::I64),
                    case(7, 1, 8, DType::I32),
                ]
            }
            Scale::Representative => vec![case(4096, 6, 8, DType::I64)],
            Scale::Full => vec![case(4001, 8, 128, DType::I64), case(8001, 9, 8, DType::I32)],
        }
    }
}
