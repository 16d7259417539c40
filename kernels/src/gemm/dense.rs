//! Dense GEMM in bf16, f16 or f32 with fp32 accumulation, all transposes.

use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec;
use crate::reference::gemm as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::prelude::*;
use zellige::runtime::Sizes;
use zellige::{GemmPrecision, TuneValue};
use zellige_ir::DType;

/// Tile sizes of [`dense_gemm`] and the orientation of its operands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = bm * bn <= 128 * 256)]
#[tune(constraint = runs > 0)]
#[tune(constraint = !ping_pong || threads == 128)]
pub struct GemmConfig {
    #[tune(64, 128, 256)]
    pub bm: usize,
    #[tune(64, 128, 256)]
    pub bn: usize,
    #[tune(32, 64, 128)]
    pub bk: usize,
    #[tune(2..=5)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// `a` lies as [K, M].
    pub a_transposed: bool,
    /// `b` lies as [K, N]; otherwise as [N, K], a weight's usual layout.
    pub b_transposed: bool,
    /// Runs of K that are added up by themselves: see [`zellige::T::sum_in_runs`]. The bits of the result depend on it.
    pub runs: usize,
    /// Blocks of a cluster take a run each.
    pub spread: bool,
    /// Blocks along N and along M that fetch common tiles for each other; 0 leaves it to the compiler.
    pub cluster_n: usize,
    pub cluster_m: usize,
    /// Two warpgroups with a tile each take turns: see [`zellige::T::ping_pong`].
    pub ping_pong: bool,
    /// Round f32 operands to tf32, 10 mantissa bits, as matrix units take them; otherwise they are multiplied as they are.
    pub tf32: bool,
}

impl Default for GemmConfig {
    fn default() -> GemmConfig {
        GemmConfig {
            bm: 128,
            bn: 128,
            bk: 64,
            stages: 3,
            threads: 128,
            a_transposed: false,
            b_transposed: false,
            runs: 1,
            spread: false,
            cluster_n: 0,
            cluster_m: 0,
            ping_pong: false,
            tf32: false,
        }
    }
}

impl GemmConfig {
    /// Many rows of f32 in tf32.
    pub fn tf32() -> GemmConfig {
        GemmConfig { bn: 256, bk: 32, stages: 4, threads: 256, tf32: true, ..GemmConfig::default() }
    }
}

/// `C[m, n] = alpha * sum_k A[m, k] B[n, k]`, accumulated in fp32 in a fixed order of `k`, so that the bits of a row do
/// not depend on `m`. `a` is [M, K] or, transposed, [K, M]; `b` is [N, K] or, transposed, [K, N]. f32 operands are multiplied as they
/// are, or rounded to tf32 with `cfg.tf32`; the units of sm_90a take those only if neither is transposed.
#[kernel(static_dims(b0, b1))]
pub fn dense_gemm<E: Float, C: Float>(
    t: T,
    #[dims(a0, a1)] a: &Tensor<E, 2>,
    #[dims(b0, b1)] b: &Tensor<E, 2>,
    #[dims(m, n)] c: &mut Tensor<C, 2>,
    alpha: Expr<f32>,
    #[comptime] cfg: GemmConfig,
) {
    let GemmConfig { bm, bn, bk, .. } = cfg;
    let (m, n) = (c.dim(0), c.dim(1));
    let (a_m, k) = if cfg.a_transposed { (a.dim(1), a.dim(0)) } else { (a.dim(0), a.dim(1)) };
    let (b_n, b_k) = if cfg.b_transposed { (b.dim(1), b.dim(0)) } else { (b.dim(0), b.dim(1)) };
    t.assert(a_m == m, "a and c have different numbers of rows (M)");
    t.assert(b_n == n, "b and c have different numbers of columns (N)");
    t.assert(k == b_k, "a and b have different inner extents (K)");
    let [bx, by] = t.grid([n.ceil_div(bn), m.ceil_div(bm)], cfg.threads);
    if cfg.runs > 1 {
        t.sum_in_runs(cfg.runs, cfg.spread);
    }
    if cfg.cluster_n > 0 && cfg.cluster_m > 0 {
        t.clusters(cfg.cluster_n, cfg.cluster_m);
    }
    if cfg.ping_pong {
        t.ping_pong();
    }
    let a_s = t.shared::<E, 2>(if cfg.a_transposed { [bk, bm] } else { [bm, bk] });
    let b_s = t.shared::<E, 2>(if cfg.b_transposed { [bk, bn] } else { [bn, bk] });
    let acc = t.fragment::<f32, 2>([bm, bn]);
    t.clear(acc);
    let how = Gemm { precision: if cfg.tf32 { GemmPrecision::Tf32 } else { GemmPrecision::Exact }, ..Gemm::default() };
    for ko in t.pipelined(k.ceil_div(bk), cfg.stages) {
        let (row, col, depth) = (by * bm, bx * bn, ko * bk);
        t.copy(if cfg.a_transposed { a.at((depth, row)) } else { a.at((row, depth)) }, a_s);
        t.copy(if cfg.b_transposed { b.at((depth, col)) } else { b.at((col, depth)) }, b_s);
        match (cfg.a_transposed, cfg.b_transposed) {
            (false, false) => t.gemm_with(a_s, b_s.t(), acc, how),
            (false, true) => t.gemm_with(a_s, b_s, acc, how),
            (true, false) => t.gemm_with(a_s.t(), b_s.t(), acc, how),
            (true, true) => t.gemm_with(a_s.t(), b_s, acc, how),
        }
    }
    for (i, j) in t.parallel((bm, bn)) {
        acc[(i, j)] *= alpha;
    }
    t.cast(acc, c.at((by * bm, bx * bn)));
}

/// The library's entry.
pub struct Entry;

/// Rows of a large result that are compared; each takes N * K multiplications of the reference.
const SAMPLED_ROWS: usize = 48;

fn launcher(dtype: DType, out: DType, cfg: GemmConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    if cfg.tf32 && dtype != DType::F32 {
        return Err(ProblemError::Unsupported(format!("tf32 is for f32 operands; {dtype} is multiplied as it is")));
    }
    Ok(match (dtype, out) {
        (DType::BF16, DType::BF16) => Box::new(DenseGemm::<bf16, bf16>::new(cfg)),
        (DType::BF16, DType::F32) => Box::new(DenseGemm::<bf16, f32>::new(cfg)),
        (DType::F16, DType::F16) => Box::new(DenseGemm::<f16, f16>::new(cfg)),
        (DType::F32, DType::F32) => Box::new(DenseGemm::<f32, f32>::new(cfg)),
        _ => {
            let known = "bf16 into bf16 or f32, f16 into f16, f32 into f32";
            return Err(ProblemError::Unsupported(format!("no gemm of {dtype} into {out}; there is {known}")));
        }
    })
}

/// A product of m x k by k x n with random operands.
fn problem(m: usize, n: usize, k: usize, dtype: DType, out: DType, cfg: GemmConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(1);
    let a_shape = if cfg.a_transposed { [k, m] } else { [m, k] };
    let b_shape = if cfg.b_transposed { [k, n] } else { [n, k] };
    let a = inputs.normal(dtype, &a_shape, 1.0)?;
    let b = inputs.normal(dtype, &b_shape, 1.0)?;
    let alpha = 0.5f32;
    let args = vec![
        Value::Tensor(a),
        Value::Tensor(b),
        Value::Tensor(output(out, &[m, n])?),
        Value::Scalar(zellige_ir::Const::f32(alpha)),
    ];
    let work = Work::of(&args).flops(2.0 * m as f64 * n as f64 * k as f64);
    let verify = move |args: &[Value]| {
        let (a, b, c) = (args[0].f32s(), args[1].f32s(), args[2].f32s());
        let product = reference::Gemm {
            m,
            n,
            k,
            alpha: f64::from(alpha),
            a: &a[..],
            op_a: if cfg.a_transposed { reference::Op::T } else { reference::Op::N },
            b: &b[..],
            op_b: if cfg.b_transposed { reference::Op::N } else { reference::Op::T },
        };
        let rows = sample_rows(m, if m * n * k > 1 << 28 { SAMPLED_ROWS } else { m });
        let mut want = product.rows(&rows);
        if out == DType::BF16 {
            want = codec::bf16_round_all(&want);
        }
        let got: Vec<f32> = rows.iter().flat_map(|r| c[r * n..(r + 1) * n].iter().copied()).collect();
        vec![Comparison { output: "c", verdict: compare(&got, &want, Tolerance::CalcDiff(1e-5)) }]
    };
    Ok(Problem { kernel: launcher(dtype, out, cfg)?, args, work, verify: Box::new(verify) })
}

fn case(m: usize, n: usize, k: usize, dtype: DType, out: DType, cfg: GemmConfig) -> Case {
    let layout = match (cfg.a_transposed, cfg.b_transposed) {
        (false, false) => "nt",
        (false, true) => "nn",
        (true, false) => "tt",
        (true, true) => "tn",
    };
    let tf32 = if cfg.tf32 { " tf32" } else { "" };
    let name = format!("m={m} n={n} k={k} {dtype}->{out} {layout}{tf32}");
    Case::new(name, cfg, move |cfg| problem(m, n, k, dtype, out, cfg))
}

/// A bf16 product with the config that suits its shape.
fn chosen(m: usize, n: usize, k: usize, out: DType) -> Case {
    case(m, n, k, DType::BF16, out, GemmConfig::for_shape(m, n, k))
}

/// The four orientations of the operands.
fn orientations(cfg: GemmConfig) -> impl Iterator<Item = GemmConfig> {
    [(false, false), (false, true), (true, true), (true, false)]
        .into_iter()
        .map(move |(a_transposed, b_transposed)| GemmConfig { a_transposed, b_transposed, ..cfg })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "gemm",
            family: Family::Gemm,
            summary: "dense matrix product with fp32 accumulation, all transposes; f32 exact or in tf32",
            equation: "C[m,n] = alpha * sum_k A[m,k] B[n,k]",
            tolerance: "calc_diff < 1e-5",
            source: "V4 specification 5; DeepGEMM bf16_gemm_{nt,nn,tn,tt}",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(GemmConfig::default())
    }

    fn settings_at(
        &self,
        sizes: &Sizes,
        dtypes: &Dtypes,
        settings: &[(String, TuneValue)],
    ) -> Result<Box<dyn Settings>, ProblemError> {
        // The settings say how the operands lie.
        let given = apply(GemmConfig::default(), settings)?;
        let GemmConfig { a_transposed, b_transposed, .. } = given;
        let of = |names: [&str; 2]| names.into_iter().find_map(|name| sizes.get(name));
        let m = of(["m", if a_transposed { "a1" } else { "a0" }]);
        let n = of(["n", if b_transposed { "b1" } else { "b0" }]);
        let k = of(if b_transposed { ["b0", "b0"] } else { ["b1", "b1"] });
        let narrow = dtypes.get("a").is_none_or(|t| t.bits() == 16);
        let (Some(n), Some(k), true) = (n, k, narrow) else { return Ok(Box::new(given)) };
        // Without a number of rows: many.
        let config = GemmConfig::for_shape(m.unwrap_or(usize::MAX >> 32), n, k);
        Ok(Box::new(apply(GemmConfig { a_transposed, b_transposed, ..config }, settings)?))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = apply(GemmConfig::default(), settings)?;
        let dtype = dtypes.get("a").copied().unwrap_or(DType::BF16);
        launcher(dtype, dtypes.get("c").copied().unwrap_or(dtype), cfg)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let (bf16, f32) = (DType::BF16, DType::F32);
        let cfg = GemmConfig::default();
        match scale {
            Scale::Small => {
                let small = GemmConfig { bm: 64, bn: 64, bk: 32, ..cfg };
                let mut cases: Vec<Case> = orientations(small).map(|c| case(65, 72, 40, bf16, bf16, c)).collect();
                for (m, n, k) in [(0, 64, 64), (1, 8, 8), (7, 130, 96), (64, 64, 0)] {
                    cases.push(case(m, n, k, bf16, bf16, small));
                }
                cases.push(case(33, 48, 100, f32, f32, small));
                for b_transposed in [false, true] {
                    cases.push(case(33, 48, 100, f32, f32, GemmConfig { tf32: true, b_transposed, ..small }));
                }
                cases.push(case(64, 64, 64, DType::F16, DType::F16, small));
                cases.push(case(16, 24, 64, bf16, f32, small));
                let wide = GemmConfig { bn: 256, threads: 256, ..cfg };
                cases.push(case(136, 264, 72, bf16, bf16, wide));
                // In runs, by one block and by several; the last run is shorter.
                let runs = GemmConfig { runs: 3, ..small };
                for spread in [false, true] {
                    cases.push(case(70, 72, 264, bf16, bf16, GemmConfig { spread, ..runs }));
                    cases.push(case(33, 24, 256, bf16, f32, GemmConfig { spread, runs: 4, ..small }));
                }
                cases
            }
            Scale::Representative => vec![chosen(4096, 2048, 1024, bf16)],
            Scale::Full => orientations(GemmConfig::for_shape(4096, 4096, 512))
                .map(|c| case(4096, 4096, 512, bf16, bf16, c))
                .chain(
                    [(1, 4096, 7168), (64, 2112, 7168), (128, 7168, 2048), (4096, 576, 7168)]
                        .map(|(m, n, k)| chosen(m, n, k, bf16)),
                )
                .chain([chosen(128, 256, 7168, f32), case(4096, 4096, 1024, f32, f32, GemmConfig::tf32())])
                .collect(),
        }
    }
}
