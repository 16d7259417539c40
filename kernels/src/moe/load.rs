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

/// Adds to `counts` how often each id occurs among the first `tokens` rows of `ids` [.., k]; ids outside the table are
/// ignored. `tile` rows are handled at once.
#[tile]
pub fn histogram<I: Int>(t: T, ids: &Tensor<I, 2>, tokens: Idx, tile: usize, counts: Shared<i32, 1>) {
    let (k, [bins]) = (ids.static_dim(1), counts.shape());
    for chunk in t.serial(tokens.ceil_div(tile)) {
        for (i, j) in t.parallel((tile, k)) {
            let token = chunk * tile + i;
            let id = ids[(token, j)].to_index();
            if token < tokens && id >= 0 && id < bins {
                counts.atomic_add(id, 1);
            }
        }
    }
}

/// Config of [`group_count`] and [`aux_fi`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct CountConfig {
    /// Rows of ids that are read at once.
    #[tune(64, 256, 1024)]
    pub tile: usize,
    #[tune(256, 512, 1024)]
    pub threads: usize,
}

impl Default for CountConfig {
    fn default() -> CountConfig {
        CountConfig { tile: 256, threads: 512 }
    }
}

/// `counts[g]` = how often id `g` occurs in `ids` [tokens, k]; negative ids and those from `groups` on are ignored.
#[kernel(static_dims(k, groups))]
pub fn group_count<I: Int>(
    t: T,
    #[dims(tokens, k)] ids: &Tensor<I, 2>,
    #[dims(groups)] counts: &mut Tensor<i32, 1>,
    #[comptime] cfg: CountConfig,
) {
    let [_] = t.grid([1usize], cfg.threads);
    let bins = t.shared::<i32, 1>([counts.static_dim(0)]);
    t.clear(bins);
    histogram(t, ids, ids.dim(0), cfg.tile, bins);
    t.copy(bins, counts.at(0));
}

/// `fi[e] = count_e * experts / (tokens * aux_top_k)`, in f32 in this order; zeros if there are no tokens.
#[kernel(static_dims(k, experts))]
pub fn aux_fi<I: Int>(
    t: T,
    #[dims(tokens, k)] ids: &Tensor<I, 2>,
    #[dims(experts)] fi: &mut Tensor<f32, 1>,
    aux_top_k: Expr<i64>,
    #[comptime] cfg: CountConfig,
) {
    let [_] = t.grid([1usize], cfg.threads);
    let (experts, tokens) = (fi.static_dim(0), ids.dim(0));
    let bins = t.shared::<i32, 1>([experts]);
    t.clear(bins);
    histogram(t, ids, tokens, cfg.tile, bins);
    let denominator = (tokens.cast::<i64>() * aux_top_k).cast::<f32>();
    for e in t.parallel(experts) {
        let f = bins[e].cast::<f32>() * experts as f32 / denominator;
        fi[e] = select(tokens > 0, f, 0.0);
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
        Scale::Full => vec![(4001, 6, 256, DType::I64), (8001, 9, 72, DType::I32), (4096, 8, 8, DType::I64)],
    }
}

fn ids_argument((tokens, k, bins, dtype): Sizes) -> Result<(Vec<i32>, Value), ProblemError> {
    let ids = random_ids(&mut Inputs::new(5), tokens, bins, k);
    let tensor = int_tensor(dtype, &[tokens, k], &ids)?;
    Ok((ids, Value::Tensor(tensor)))
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
                let args = vec![tensor, Value::Tensor(output(DType::I32, &[bins])?)];
                let kernel: Result<Box<dyn Kernel>, ProblemError> =
                    id_type!(dtype, I, Ok(Box::new(GroupCount::<I>::new(cfg))));
                let verify = move |args: &[Value]| {
                    let want = int_tensor(DType::I32, &[bins], &reference::group_count(&ids, bins));
                    vec![Comparison::exact("counts", &args[1], &want.expect("as large as the kernel's own"))]
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
                let args = vec![tensor, Value::Tensor(output(DType::F32, &[experts])?), Value::Scalar(aux_top_k)];
                let kernel: Result<Box<dyn Kernel>, ProblemError> =
                    id_type!(dtype, I, Ok(Box::new(AuxFi::<I>::new(cfg))));
                let verify = move |args: &[Value]| {
                    let want = reference::aux_fi(&ids, tokens, experts, k);
                    let verdict = compare(&args[1].f32s(), &want, Tolerance::Abs(2e-7));
                    vec![Comparison { output: "fi", verdict }]
                };
                Ok(Problem { kernel: kernel?, work: Work::of(&args), args, verify: Box::new(verify) })
            })
        };
        sizes(scale).into_iter().map(case).collect()
    }
}
