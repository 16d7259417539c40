//! Load of the experts: histograms of ids.

use super::problem::{id_type, int_tensor, random_ids};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::moe::indices as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Adds to `counts` how often each id occurs among rows `from..to` of `ids` [.., k]; ids outside the table are ignored. `tile`
/// rows are handled at once.
#[tile]
pub fn histogram<I: Int>(t: T, ids: &Tensor<I, 2>, from: Idx, to: Idx, tile: usize, counts: Shared<i32, 1>) {
    let (k, [bins]) = (ids.static_dim(1), counts.shape());
    for step in t.serial((to - from).ceil_div(tile)) {
        for (i, j) in t.parallel((tile, k)) {
            let token = from + step * tile + i;
            let id = ids[(token, j)].to_index();
            if token < to && id >= 0 && id < bins {
                counts.atomic_add(id, 1);
            }
        }
    }
}

/// Counts `bins` ids over the blocks of the grid, each of which takes `chunk` rows. Returns the counts, and if they are
/// everybody's: in the block that is the last to finish. `work` is as in [`group_count`].
#[tile]
fn count_together<I: Int>(
    t: T,
    ids: &Tensor<I, 2>,
    work: &Tensor<i32, 1>,
    bins: usize,
    cfg: CountConfig,
) -> (Shared<i32, 1>, Expr<bool>) {
    let tokens = ids.dim(0);
    let blocks = tokens.ceil_div(cfg.chunk).max(1);
    let [b] = t.grid([blocks], cfg.threads);
    let counts = t.shared::<i32, 1>([bins]);
    t.clear(counts);
    histogram(t, ids, b * cfg.chunk, tokens.min((b + 1) * cfg.chunk), cfg.chunk, counts);
    for e in t.parallel(bins) {
        if counts[e] > 0 {
            work.atomic_add(e, counts[e]);
        }
    }
    let finished = work.atomic_add(bins, 1);
    let last = cmp::eq(&finished.to_index(), &(blocks - 1));
    if last {
        for e in t.parallel(bins) {
            counts[e] = work.atomic_exchange(e, 0);
        }
        work.atomic_exchange(bins, 0);
    }
    (counts, last)
}

/// Config of [`group_count`] and [`aux_fi`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct CountConfig {
    /// Rows of ids that a block counts.
    #[tune(256, 512, 1024)]
    pub chunk: usize,
    #[tune(256, 512, 1024)]
    pub threads: usize,
}

impl Default for CountConfig {
    fn default() -> CountConfig {
        CountConfig { chunk: 512, threads: 512 }
    }
}

/// `counts[g]` = how often id `g` occurs in `ids` [tokens, k]; negative ids and those from `groups` on are ignored.
///
/// `work` [groups + 1] holds zeros before and after: blocks add their counts up in it, then count themselves, and the last
/// one moves the sums on.
#[kernel(static_dims(k, groups))]
pub fn group_count<I: Int>(
    t: T,
    #[dims(tokens, k)] ids: &Tensor<I, 2>,
    #[dims(groups)] counts: &mut Tensor<i32, 1>,
    #[dims(slots)] work: &mut Tensor<i32, 1>,
    #[comptime] cfg: CountConfig,
) {
    let (bins, complete) = count_together(t, ids, work, counts.static_dim(0), cfg);
    if complete {
        t.copy(bins, counts.at(0));
    }
}

/// `fi[e] = count_e * experts / (tokens * aux_top_k)`, in f32 in this order; zeros if there are no tokens. `work`
/// [experts + 1] is as in [`group_count`].
#[kernel(static_dims(k, experts))]
pub fn aux_fi<I: Int>(
    t: T,
    #[dims(tokens, k)] ids: &Tensor<I, 2>,
    #[dims(experts)] fi: &mut Tensor<f32, 1>,
    #[dims(slots)] work: &mut Tensor<i32, 1>,
    aux_top_k: Expr<i64>,
    #[comptime] cfg: CountConfig,
) {
    let (experts, tokens) = (fi.static_dim(0), ids.dim(0));
    let (bins, complete) = count_together(t, ids, work, experts, cfg);
    let denominator = (tokens.cast::<i64>() * aux_top_k).cast::<f32>();
    if complete {
        for e in t.parallel(experts) {
            let f = bins[e].cast::<f32>() * experts as f32 / denominator;
            fi[e] = select(tokens > 0, f, 0.0);
        }
    }
}

/// The library's entry of [`group_count`].
pub struct GroupCountEntry;

/// The library's entry of [`aux_fi`].
pub struct AuxFiEntry;

fn id_dtype(dtypes: &Dtypes) -> DType {
    dtypes.get("ids").copied().unwrap_or(DType::I64)
}

/// Sizes of a case: tokens, slots, bins, type of the ids.
type Sizes = (usize, usize, usize, DType);

fn sizes(scale: Scale) -> Vec<Sizes> {
    match scale {
        Scale::Small => {
            vec![(0, 6, 64, DType::I64), (1, 1, 8, DType::I32), (67, 6, 72, DType::I64), (41, 2, 4, DType::I32)]
        }
        Scale::Representative => vec![(4096, 6, 384, DType::I64)],
        Scale::Full => vec![
            (4001, 6, 256, DType::I64),
            (8001, 9, 72, DType::I32),
            (4096, 8, 8, DType::I64),
            (8126, 2, 256, DType::I64),
            (36262, 9, 256, DType::I64),
        ],
    }
}

fn ids_argument((tokens, k, bins, dtype): Sizes) -> Result<(Vec<i32>, Value), ProblemError> {
    let ids = random_ids(&mut Inputs::new(5), tokens, bins, k);
    let tensor = int_tensor(dtype, &[tokens, k], &ids)?;
    Ok((ids, Value::Tensor(tensor)))
}

fn zeros(n: usize) -> Result<DynTensor, ProblemError> {
    Ok(DynTensor::from_slice::<i32>(&[n], &vec![0; n])?)
}

/// The blocks' common counts, which a launch leaves as it found them.
fn left_zero(work: &Value) -> Comparison {
    let got = work.f32s();
    Comparison::exact_f32("work", &got, &vec![0.0; got.len()])
}

impl LibraryKernel for GroupCountEntry {
    fn info(&self) -> Info {
        Info {
            name: "group_count",
            family: Family::Moe,
            summary: "histogram of expert ids",
            equation: "counts[g] = |{(t,j): ids[t,j] = g}|",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels group_count",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(CountConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = apply(CountConfig::default(), settings)?;
        id_type!(id_dtype(dtypes), I, Ok(Box::new(GroupCount::<I>::new(cfg))))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |s: Sizes| {
            let (tokens, k, bins, dtype) = s;
            let name = format!("t={tokens} k={k} groups={bins} {dtype}");
            Case::new(name, CountConfig::default(), move |cfg| {
                let (ids, tensor) = ids_argument(s)?;
                let counts = output(DType::I32, &[bins])?;
                let args = vec![tensor, Value::Tensor(counts), Value::Tensor(zeros(bins + 1)?)];
                let kernel: Result<Box<dyn Kernel>, ProblemError> =
                    id_type!(dtype, I, Ok(Box::new(GroupCount::<I>::new(cfg))));
                let verify = move |args: &[Value]| {
                    let want = int_tensor(DType::I32, &[bins], &reference::group_count(&ids, bins));
                    let want = want.expect("as large as the kernel's own");
                    vec![Comparison::exact("counts", &args[1], &want), left_zero(&args[2])]
                };
                Ok(Problem { kernel: kernel?, work: Work::of(&args), args, verify: Box::new(verify) })
            })
        };
        sizes(scale).into_iter().map(case).collect()
    }
}

impl LibraryKernel for AuxFiEntry {
    fn info(&self) -> Info {
        Info {
            name: "aux_fi",
            family: Family::Moe,
            summary: "load of each expert relative to a balanced one",
            equation: "fi[e] = count_e * E / (T * k)",
            tolerance: "abs 2e-7",
            source: "V4 specification 3.1, 3.2; TileKernels aux_fi",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(CountConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = apply(CountConfig::default(), settings)?;
        id_type!(id_dtype(dtypes), I, Ok(Box::new(AuxFi::<I>::new(cfg))))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |s: Sizes| {
            let (tokens, k, experts, dtype) = s;
            let name = format!("t={tokens} k={k} e={experts} {dtype}");
            Case::new(name, CountConfig::default(), move |cfg| {
                let (ids, tensor) = ids_argument(s)?;
                let aux_top_k = zellige_ir::Const::from_i64(DType::I64, k as i64);
                let fi = Value::Tensor(output(DType::F32, &[experts])?);
                let args = vec![tensor, fi, Value::Tensor(zeros(experts + 1)?), Value::Scalar(aux_top_k)];
                let kernel: Result<Box<dyn Kernel>, ProblemError> =
                    id_type!(dtype, I, Ok(Box::new(AuxFi::<I>::new(cfg))));
                let verify = move |args: &[Value]| {
                    let want = reference::aux_fi(&ids, tokens, experts, k);
                    let verdict = compare(&args[1].f32s(), &want, Tolerance::Abs(2e-7));
                    vec![Comparison { output: "fi", verdict }, left_zero(&args[2])]
                };
                Ok(Problem { kernel: kernel?, work: Work::of(&args), args, verify: Box::new(verify) })
            })
        };
        sizes(scale).into_iter().map(case).collect()
    }
}
