//! A product for each head: rows of all heads, which lie side by side, times each head's own matrix. The output projection of
//! attention's groups of heads, forward and backward.

use super::choose::{FEW_ROWS, MULTIPROCESSORS};
use super::einsum_problem::{EinsumProblem, GROUP, check_operands, einsum_types, operands};
use super::product::{ProductConfig, Weight, multiply};
use super::scaled_problem::Operands;
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use crate::reference::metrics::Tolerance;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige::runtime::Sizes;
use zellige_ir::DType;

/// Tile sizes of [`batched_gemm`], and how its operands lie.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = bm * bn <= 128 * 256)]
#[tune(constraint = !scaled || bk.is_multiple_of(128))]
pub struct BatchedConfig {
    /// Rows of a tile.
    #[tune(16, 32, 64, 128)]
    pub bm: usize,
    #[tune(64, 128, 256)]
    pub bn: usize,
    #[tune(32, 64, 128, 256)]
    pub bk: usize,
    #[tune(2..=8)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// The operands have scale factors: `a` for 1 x 128, `w` for 128 x 128 elements; otherwise `a_sf` and `w_sf` are not read.
    pub scaled: bool,
    /// `w` lies as [heads, K, N]; otherwise as [heads, N, K].
    pub w_transposed: bool,
    /// Blocks fetch nothing for their neighbours.
    pub alone: bool,
}

impl Default for BatchedConfig {
    /// Many rows of bf16.
    fn default() -> BatchedConfig {
        BatchedConfig {
            bm: 128,
            bn: 256,
            bk: 64,
            stages: 4,
            threads: 256,
            scaled: false,
            w_transposed: false,
            alone: false,
        }
    }
}

impl BatchedConfig {
    /// The tiles for `m` rows times `heads` matrices of `n` columns; operands as they are here.
    pub fn for_shape(self, m: usize, heads: usize, n: usize) -> BatchedConfig {
        let BatchedConfig { scaled, w_transposed, .. } = self;
        let kept = BatchedConfig { scaled, w_transposed, ..BatchedConfig::default() };
        let (bm, threads) = if m <= 64 { (64, 128) } else { (128, 256) };
        if scaled && w_transposed {
            // On `mma.sync`, both sums and the fragments have to fit in registers.
            return BatchedConfig { bm, bn: 64, bk: 128, stages: 3, threads, ..kept };
        }
        if m > FEW_ROWS {
            return if scaled { BatchedConfig { bn: 128, bk: 256, stages: 3, ..kept } } else { kept };
        }
        // A product of few rows reads its matrices once and is done: as many multiprocessors as possible should have a tile, and
        // none should wait for its neighbour's part of one.
        let tiles = heads * n.div_ceil(128);
        let bn = if 4 * tiles < 3 * MULTIPROCESSORS { 64 } else { 128 };
        let slots = if m <= 64 { 4 } else { 3 };
        let (bk, stages) = if scaled { (256, slots) } else { (64, 2 * slots) };
        BatchedConfig { bm, bn, bk, stages, threads, alone: true, ..kept }
    }

    fn product(self) -> ProductConfig {
        let BatchedConfig { bm, bn, bk, stages, threads, scaled, .. } = self;
        ProductConfig { bm, bn, bk, stages, threads, scaled, ..ProductConfig::default() }
    }
}

/// `C[m, h, n] = sum_k A[m, h, k] W[h, n, k]`: `a` [M, heads, K], `w` [heads, N, K] or, transposed, [heads, K, N], in bf16 or, with
/// scale factors, in FP8: then `a_sf` [M, heads, K / 128] has a factor for 128 columns and `w_sf` [heads, N / 128, K / 128] (its last
/// axes exchanged if `w` is transposed) one for a block of 128 x 128, and sums of 128 columns are scaled and added in f32.
///
/// With b rows this is `bhr,hdr->bhd`, and `bhd,hdr->bhr` if `w` is transposed. Products are added in a fixed order, so that the
/// bits of a row do not depend on the number of rows. The units of sm_90a take 8-bit operands only if their rows go along K:
/// a transposed FP8 `w` is multiplied by `mma.sync`.
#[kernel(static_dims(heads, w0, w1, k, n))]
pub fn batched_gemm<E: Weight, S: Element, C: Float>(
    t: T,
    #[dims(m, heads, k)] a: &Tensor<E, 3>,
    #[dims(sf_rows, a_sf1, a_sf2)] a_sf: &Tensor<f32, 3>,
    #[dims(heads, w0, w1)] w: &Tensor<E, 3>,
    #[dims(w_sf0, w_sf1, w_sf2)] w_sf: &Tensor<S, 3>,
    #[dims(m, heads, n)] c: &mut Tensor<C, 3>,
    #[comptime] cfg: BatchedConfig,
) {
    let (bm, bn) = (cfg.bm, cfg.bn);
    let (k, n) = (a.dim(2), c.dim(2));
    let (w_n, w_k) = if cfg.w_transposed { (w.dim(2), w.dim(1)) } else { (w.dim(1), w.dim(2)) };
    t.assert(w_n == n, "w and c have different numbers of columns (N)");
    t.assert(w_k == k, "a and w have different inner extents (K)");
    let [bx, by, h] = t.grid((n.ceil_div(bn), c.dim(0).ceil_div(bm), c.dim(1)), cfg.threads);
    if cfg.alone {
        t.clusters(1, 1);
    }
    let (row, col) = (by * bm, bx * bn);
    let acc = multiply(
        t,
        k,
        |depth| a.at((row, h, depth)).axes([0, 2]),
        |depth| if cfg.w_transposed { w.at((h, depth, col)).axes([2, 1]) } else { w.at((h, col, depth)) },
        |i, g| a_sf[(row + i, h, g)],
        |j, g| {
            let block = (col + j) / GROUP;
            w_sf[if cfg.w_transposed { (h, g, block) } else { (h, block, g) }]
        },
        cfg.product(),
    );
    t.cast(acc, c.at((row, h, col)).axes([0, 2]));
}

/// The library's entry.
pub struct Entry;

fn launcher(types: Operands, cfg: BatchedConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    check_operands(types, cfg.scaled)?;
    einsum_types!(types, (E, S, C), Ok(Box::new(BatchedGemm::<E, S, C>::new(cfg))))
}

fn types_of(dtypes: &Dtypes) -> Operands {
    operands(dtypes, ["w", "w_sf"], DType::BF16)
}

/// The config for many rows of these types.
fn of_types(types: Operands, w_transposed: bool) -> BatchedConfig {
    let scaled = types.a == DType::F8E4M3;
    BatchedConfig { scaled, w_transposed, ..BatchedConfig::default() }.for_shape(usize::MAX, 1, 1)
}

fn case([m, heads, n, k]: [usize; 4], types: Operands, cfg: BatchedConfig) -> Case {
    let equation = if cfg.w_transposed { "mhk,hkn->mhn" } else { "mhk,hnk->mhn" };
    let extents = vec![('m', m), ('h', heads), ('n', n), ('k', k)];
    let problem = EinsumProblem { equation, extents, types, scaled: cfg.scaled };
    let name = format!("{} {}", problem.name(), if cfg.w_transposed { "bhd,hdr->bhr" } else { "bhr,hdr->bhd" });
    Case::new(name, cfg, move |cfg: BatchedConfig| {
        let equation = if cfg.w_transposed { "mhk,hkn->mhn" } else { "mhk,hnk->mhn" };
        let problem = EinsumProblem { equation, scaled: cfg.scaled, ..problem.clone() };
        problem.problem(launcher(types, cfg)?, Tolerance::CalcDiff(1e-10))
    })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "batched_gemm",
            family: Family::Gemm,
            summary: "a product for each head or group of heads, bf16 or block-scaled FP8: bhr,hdr->bhd and bhd,hdr->bhr",
            equation: "C[m,h,n] = sum_k A[m,h,k] W[h,n,k]; FP8: times a_sf[m,h,k/128] w_sf[h,n/128,k/128]; transposed: W[h,k,n]",
            tolerance: "bf16: calc_diff < 1e-10 in f32, else the rounding of a sum within 5e-7 of its terms' magnitudes; FP8: \
                        calc_diff < 1e-5 against the same quantised operands",
            source: "V4 specification 1.9, 5; DeepGEMM einsum and fp8_einsum",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(BatchedConfig::default())
    }

    fn settings_at(
        &self,
        sizes: &Sizes,
        dtypes: &Dtypes,
        settings: &[(String, TuneValue)],
    ) -> Result<Box<dyn Settings>, ProblemError> {
        // The settings say how the operands lie; types, whether they have scale factors.
        let BatchedConfig { w_transposed, .. } = apply(BatchedConfig::default(), settings)?;
        let lying = of_types(types_of(dtypes), w_transposed);
        let n = sizes.get("n").or_else(|| sizes.get(if w_transposed { "w1" } else { "w0" }));
        // Without a number of rows: many.
        let m = sizes.get("m").unwrap_or(usize::MAX);
        let chosen = match (sizes.get("heads"), n) {
            (Some(heads), Some(n)) => lying.for_shape(m, heads, n),
            _ => lying,
        };
        Ok(Box::new(apply(chosen, settings)?))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let types = types_of(dtypes);
        launcher(types, apply(of_types(types, false), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        use DType::{BF16, E8M0, F8E4M3, F32};
        let (plain, fp8) =
            (|c| Operands { a: BF16, b: BF16, sf: F32, c }, |sf, c| Operands { a: F8E4M3, b: F8E4M3, sf, c });
        let chosen = |shape: [usize; 4], types, w_transposed| {
            case(shape, types, of_types(types, w_transposed).for_shape(shape[0], shape[1], shape[2]))
        };
        let both = |cfg: BatchedConfig| [false, true].map(|w_transposed| BatchedConfig { w_transposed, ..cfg });
        let mut cases = Vec::new();
        match scale {
            Scale::Small => {
                let small =
                    BatchedConfig { bm: 64, bn: 64, bk: 64, stages: 3, threads: 128, ..BatchedConfig::default() };
                let scaled = BatchedConfig { scaled: true, bk: 128, ..small };
                for cfg in both(small) {
                    for (shape, c) in [
                        ([0, 2, 64, 64], BF16),
                        ([1, 3, 72, 136], BF16),
                        ([65, 2, 72, 40], F32),
                        ([7, 1, 130, 96], F32),
                        ([5, 2, 64, 0], BF16),
                    ] {
                        cases.push(case(shape, plain(c), cfg));
                    }
                }
                for cfg in both(scaled) {
                    for (shape, sf, c) in [
                        ([1, 2, 136, 256], E8M0, BF16),
                        ([33, 2, 72, 160], F32, F32),
                        ([136, 2, 256, 416], F32, F32),
                        ([0, 1, 64, 128], F32, BF16),
                    ] {
                        cases.push(case(shape, fp8(sf, c), cfg));
                    }
                }
            }
            // The output projection of V4-Flash: 8 groups of 8 heads.
            Scale::Representative => cases.push(chosen([128, 8, 1024, 4096], fp8(E8M0, BF16), false)),
            // And of V4-Pro, with what its gradient takes.
            Scale::Full => {
                for m in [1, 64, 128, 4096] {
                    for heads in [8, 16] {
                        cases.push(chosen([m, heads, 1024, 4096], fp8(F32, BF16), false));
                        cases.push(chosen([m, heads, 1024, 4096], plain(BF16), false));
                    }
                    cases.push(chosen([m, 16, 4096, 1024], plain(BF16), true));
                }
                cases.push(chosen([128, 16, 4096, 1024], fp8(F32, BF16), true));
            }
        }
        cases
    }
}
