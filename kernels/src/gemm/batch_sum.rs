//! The sum of the products of a batch.

use super::dense::GemmConfig;
use super::einsum_problem::{EinsumProblem, GROUP, check_operands, einsum_types, operands};
use super::product::{ProductConfig, Weight, multiply};
use super::scaled_problem::Operands;
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use crate::reference::metrics::Tolerance;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige::runtime::Sizes;
use zellige_ir::DType;

/// Tile sizes of [`batch_sum_gemm`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = bm * bn <= 128 * 256 && runs > 0)]
#[tune(constraint = !scaled || (bk.is_multiple_of(128) && runs == 1))]
pub struct BatchSumConfig {
    #[tune(64, 128)]
    pub bm: usize,
    #[tune(64, 128, 256)]
    pub bn: usize,
    /// Columns of a step; each matrix of the batch takes whole steps.
    #[tune(32, 64, 128, 256)]
    pub bk: usize,
    #[tune(2..=8)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// Runs of steps that are added up by themselves: see [`zellige::T::sum_in_runs`]. The bits of the result depend on it.
    pub runs: usize,
    /// Blocks of a cluster take a run each.
    pub spread: bool,
    /// The operands have scale factors: `a` for 1 x 128, `b` for 128 x 128 elements; otherwise `a_sf` and `b_sf` are not read.
    pub scaled: bool,
}

impl Default for BatchSumConfig {
    fn default() -> BatchSumConfig {
        BatchSumConfig { bm: 128, bn: 128, bk: 64, stages: 4, threads: 256, runs: 1, spread: false, scaled: false }
    }
}

impl BatchSumConfig {
    /// The config for the sum of `batch` products of [m, k] by [k, n] in bf16: that of one product as deep as all of them. The
    /// order in which the products of an element are added up follows from `n`, `k` and `batch` alone.
    pub fn for_shape(batch: usize, m: usize, n: usize, k: usize) -> BatchSumConfig {
        let dense = GemmConfig::for_shape(m, n, batch * k.next_multiple_of(64));
        let GemmConfig { bm, bn, stages, threads, runs, spread, .. } = dense;
        // Runs begin at the same columns with any tile only if all tiles fill up the last step of a matrix alike.
        let bk = if k.is_multiple_of(128) { dense.bk } else { 64 };
        BatchSumConfig { bm, bn, bk, stages, threads, runs, spread, scaled: false }
    }

    /// The same for FP8.
    pub fn fp8() -> BatchSumConfig {
        BatchSumConfig { bk: 256, stages: 3, scaled: true, ..BatchSumConfig::default() }
    }

    fn product(self) -> ProductConfig {
        let BatchSumConfig { bm, bn, bk, stages, threads, scaled, .. } = self;
        ProductConfig { bm, bn, bk, stages, threads, scaled, ..ProductConfig::default() }
    }
}

/// `C[m, n] = sum_b sum_k A[b, m, k] B[b, n, k]`, `bmk,bnk->mn`: `a` [batch, M, K], `b` [batch, N, K], in bf16 or, with scale factors, in
/// FP8: then `a_sf` [batch, M, K / 128] has a factor for 128 columns and `b_sf` [batch, N / 128, K / 128] one for a block of
/// 128 x 128, and sums of 128 columns are scaled and added in f32. Products are added in the order of the batch, and within it
/// of k, in `cfg.runs` runs; the bits of a row do not depend on the number of rows.
#[kernel(static_dims(batch, n, k))]
pub fn batch_sum_gemm<E: Weight, S: Element, C: Float>(
    t: T,
    #[dims(batch, m, k)] a: &Tensor<E, 3>,
    #[dims(a_sf0, sf_rows, a_sf2)] a_sf: &Tensor<f32, 3>,
    #[dims(batch, n, k)] b: &Tensor<E, 3>,
    #[dims(b_sf0, b_sf1, b_sf2)] b_sf: &Tensor<S, 3>,
    #[dims(m, n)] c: &mut Tensor<C, 2>,
    #[comptime] cfg: BatchSumConfig,
) {
    let (bm, bn, bk) = (cfg.bm, cfg.bn, cfg.bk);
    let [bx, by] = t.grid([c.dim(1).ceil_div(bn), c.dim(0).ceil_div(bm)], cfg.threads);
    if cfg.runs > 1 {
        t.sum_in_runs(cfg.runs, cfg.spread);
    }
    let (row, col) = (by * bm, bx * bn);
    // One long product: what a step reads behind the last column of its matrix is zero.
    let width = a.dim(2).ceil_div(bk) * bk;
    let groups = width.ceil_div(GROUP);
    let acc = multiply(
        t,
        a.dim(0) * width,
        |depth| a.at((depth / width, row, depth % width)),
        |depth| b.at((depth / width, col, depth % width)),
        |i, g| a_sf[(g / groups, row + i, g % groups)],
        |j, g| b_sf[(g / groups, (col + j) / GROUP, g % groups)],
        cfg.product(),
    );
    t.cast(acc, c.at((row, col)));
}

/// The library's entry.
pub struct Entry;

fn launcher(types: Operands, cfg: BatchSumConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    check_operands(types, cfg.scaled)?;
    einsum_types!(types, (E, S, C), Ok(Box::new(BatchSumGemm::<E, S, C>::new(cfg))))
}

fn types_of(dtypes: &Dtypes) -> Operands {
    operands(dtypes, ["b", "b_sf"], DType::F32)
}

fn case([batch, m, n, k]: [usize; 4], types: Operands, cfg: BatchSumConfig) -> Case {
    let extents = vec![('b', batch), ('m', m), ('n', n), ('k', k)];
    let problem = EinsumProblem { equation: "bmk,bnk->mn", extents, types, scaled: cfg.scaled };
    Case::new(problem.name(), cfg, move |cfg: BatchSumConfig| {
        let problem = EinsumProblem { scaled: cfg.scaled, ..problem.clone() };
        problem.problem(launcher(types, cfg)?, Tolerance::CalcDiff(1e-5))
    })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "batch_sum_gemm",
            family: Family::Gemm,
            summary: "the sum of the products of a batch, bf16 or block-scaled FP8: bmk,bnk->mn",
            equation: "C[m,n] = sum_bk A[b,m,k] B[b,n,k]; FP8: times a_sf[b,m,k/128] b_sf[b,n/128,k/128]",
            tolerance: "bf16: calc_diff < 1e-5 in f32, else the rounding of a sum within 5e-7 of its terms' magnitudes; FP8: \
                        calc_diff < 1e-5 against the same quantised operands",
            source: "V4 specification 5; DeepGEMM einsum",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(BatchSumConfig::default())
    }

    fn settings_at(
        &self,
        sizes: &Sizes,
        dtypes: &Dtypes,
        settings: &[(String, TuneValue)],
    ) -> Result<Box<dyn Settings>, ProblemError> {
        let chosen = match (types_of(dtypes).a, sizes.get("batch"), sizes.get("n"), sizes.get("k")) {
            (DType::F8E4M3, ..) => BatchSumConfig::fp8(),
            // Without a number of rows: many.
            (_, Some(batch), Some(n), Some(k)) => {
                BatchSumConfig::for_shape(batch, sizes.get("m").unwrap_or(usize::MAX >> 32), n, k)
            }
            _ => BatchSumConfig::default(),
        };
        Ok(Box::new(apply(chosen, settings)?))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let types = types_of(dtypes);
        let fp8 = types.a == DType::F8E4M3;
        launcher(types, apply(if fp8 { BatchSumConfig::fp8() } else { BatchSumConfig::default() }, settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        use DType::{BF16, E8M0, F8E4M3, F32};
        let plain = |c| Operands { a: BF16, b: BF16, sf: F32, c };
        let fp8 = |sf, c| Operands { a: F8E4M3, b: F8E4M3, sf, c };
        let chosen =
            |shape @ [batch, m, n, k]: [usize; 4], c| case(shape, plain(c), BatchSumConfig::for_shape(batch, m, n, k));
        match scale {
            Scale::Small => {
                let small =
                    BatchSumConfig { bm: 64, bn: 64, bk: 32, stages: 3, threads: 128, ..BatchSumConfig::default() };
                let scaled = BatchSumConfig { bk: 128, scaled: true, ..small };
                let runs = BatchSumConfig { runs: 3, ..small };
                vec![
                    case([3, 65, 72, 40], plain(F32), small),
                    case([1, 1, 8, 8], plain(BF16), small),
                    case([0, 5, 16, 32], plain(F32), small),
                    case([2, 0, 64, 64], plain(F32), small),
                    case([2, 7, 64, 0], plain(BF16), small),
                    case([3, 136, 256, 72], plain(F32), small),
                    case([7, 33, 24, 72], plain(F32), runs),
                    case([7, 136, 256, 72], plain(F32), runs),
                    case([7, 33, 24, 72], plain(BF16), BatchSumConfig { spread: true, ..runs }),
                    case([7, 136, 256, 72], plain(BF16), BatchSumConfig { spread: true, ..runs }),
                    // The last block of a cluster has nothing to add up.
                    case([1, 33, 24, 40], plain(BF16), BatchSumConfig { spread: true, ..runs }),
                    case([3, 33, 136, 160], fp8(E8M0, F32), scaled),
                    case([3, 136, 256, 160], fp8(E8M0, F32), scaled),
                    case([2, 1, 72, 256], fp8(F32, BF16), scaled),
                ]
            }
            Scale::Representative => vec![chosen([128, 128, 384, 128], F32)],
            // DeepGEMM's.
            Scale::Full => {
                let shapes = [[128, 256, 128], [128, 384, 128], [256, 256, 256], [384, 128, 384]];
                let mut cases: Vec<Case> =
                    shapes.iter().flat_map(|&[m, n, k]| [128, 4096].map(|b| chosen([b, m, n, k], F32))).collect();
                cases.push(case([128, 128, 384, 128], fp8(F32, F32), BatchSumConfig::fp8()));
                cases
            }
        }
    }
}
