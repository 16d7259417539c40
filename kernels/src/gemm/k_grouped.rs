//! Products over the rows of each group: the gradients of the experts' weights.

use crate::inputs::{Inputs, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::gemm::{Gemm as Product, Op};
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`k_grouped_gemm`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = bm * bn <= 128 * 256)]
pub struct KGroupedConfig {
    #[tune(64, 128)]
    pub bm: usize,
    #[tune(64, 128, 256)]
    pub bn: usize,
    /// Rows of a step; divides the number of rows of every group, padding included.
    #[tune(16, 32, 64)]
    pub bk: usize,
    #[tune(2..=5)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// Add to what `c` holds.
    pub accumulate: bool,
}

impl Default for KGroupedConfig {
    fn default() -> KGroupedConfig {
        KGroupedConfig { bm: 128, bn: 128, bk: 64, stages: 3, threads: 128, accumulate: true }
    }
}

/// `C[e, i, j] (+)= sum_p A[p, i] B[p, j]` over the rows `starts[e] <= p < ends[e]` of group e, accumulated in fp32 in the order of
/// the rows: `a` [positions, M], `b` [positions, N], `c` [experts, M, N]. The rows of a group, padding included, are a multiple of
/// `cfg.bk`; padding rows of one of the operands are zero, as `expand_to_fused` leaves them. Rows past the last position count as
/// zero. A group without rows contributes nothing.
#[kernel(static_dims(m, n))]
pub fn k_grouped_gemm<E: Float>(
    t: T,
    #[dims(positions, m)] a: &Tensor<E, 2>,
    #[dims(positions, n)] b: &Tensor<E, 2>,
    #[dims(experts)] starts: &Tensor<i32, 1>,
    #[dims(experts)] ends: &Tensor<i32, 1>,
    #[dims(experts, m, n)] c: &mut Tensor<f32, 3>,
    #[comptime] cfg: KGroupedConfig,
) {
    let KGroupedConfig { bm, bn, bk, .. } = cfg;
    let [bx, by, e] = t.grid((c.dim(2).ceil_div(bn), c.dim(1).ceil_div(bm), c.dim(0)), cfg.threads);
    let (row, col) = (by * bm, bx * bn);
    let (start, end) = (starts[e].to_index(), ends[e].to_index());
    t.assert((end - start) % bk == 0, "the rows of a group are no multiple of bk");
    let (a_s, b_s) = (t.shared::<E, 2>([bk, bm]), t.shared::<E, 2>([bk, bn]));
    let acc = t.fragment::<f32, 2>([bm, bn]);
    if cfg.accumulate {
        t.copy(c.at((e, row, col)), acc);
    } else {
        t.clear(acc);
    }
    for ko in t.pipelined((end - start) / bk, cfg.stages) {
        t.copy(a.at((start + ko * bk, row)), a_s);
        t.copy(b.at((start + ko * bk, col)), b_s);
        t.gemm(a_s.t(), b_s, acc);
    }
    t.copy(acc, c.at((e, row, col)));
}

/// The library's entry.
pub struct Entry;

/// Rows of a large result that are compared.
const SAMPLED_ROWS: usize = 16;

fn launcher(dtype: DType, cfg: KGroupedConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    crate::choice::with_type!(dtype, E in [BF16 = bf16, F32 = f32], Ok(Box::new(KGroupedGemm::<E>::new(cfg))))
}

fn problem(rows: &[usize], m: usize, n: usize, dtype: DType, cfg: KGroupedConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(25);
    let groups = rows.len();
    let padded: Vec<usize> = rows.iter().map(|r| r.next_multiple_of(cfg.bk)).collect();
    let starts: Vec<usize> = (0..groups).map(|e| padded[..e].iter().sum()).collect();
    let positions = padded.iter().sum::<usize>();
    // Padding rows of `a` are zero.
    let mut a = inputs.draw(positions * m, crate::inputs::normal);
    for e in 0..groups {
        a[(starts[e] + rows[e]) * m..(starts[e] + padded[e]) * m].fill(0.0);
    }
    let ints = |v: Vec<usize>| {
        let v: Vec<i32> = v.into_iter().map(|v| v as i32).collect();
        DynTensor::from_slice::<i32>(&[groups], &v)
    };
    let before = inputs.normal(DType::F32, &[groups, m, n], 10.0)?;
    let args = vec![
        Value::Tensor(DynTensor::from_f64(dtype, &[positions, m], &a)?),
        Value::Tensor(inputs.normal(dtype, &[positions, n], 1.0)?),
        Value::Tensor(ints(starts.clone())?),
        Value::Tensor(ints(starts.iter().zip(&padded).map(|(s, p)| s + p).collect())?),
        Value::Tensor(before.to_owned_tensor()?),
    ];
    let work = Work::of(&args).flops(2.0 * (rows.iter().sum::<usize>() * m * n) as f64);
    let rows = rows.to_vec();
    let verify = move |args: &[Value]| {
        let (a, b, c) = (args[0].f32s(), args[1].f32s(), args[4].f32s());
        let before = Value::Tensor(before.clone()).f32s();
        let large = positions * m * n > 1 << 27;
        let sampled = sample_rows(m, if large { SAMPLED_ROWS } else { m });
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for (e, (&start, &k)) in starts.iter().zip(&rows).enumerate() {
            let (a, b) = (&a[start * m..][..k * m], &b[start * n..][..k * n]);
            let sums = Product { m, n, k, alpha: 1.0, a, op_a: Op::T, b, op_b: Op::N }.rows_f64(&sampled);
            let at = |i: usize| (e * m + sampled[i / n]) * n + i % n;
            let start = |i: usize| if cfg.accumulate { f64::from(before[at(i)]) } else { 0.0 };
            want.extend(sums.iter().enumerate().map(|(i, s)| (start(i) + s) as f32));
            got.extend((0..sums.len()).map(|i| c[at(i)]));
        }
        vec![Comparison { output: "c", verdict: compare(&got, &want, Tolerance::CalcDiff(1e-10)) }]
    };
    Ok(Problem { kernel: launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "k_grouped_gemm",
            family: Family::Gemm,
            summary: "products over the rows of each expert, added to the gradients of its weights",
            equation: "C[e,i,j] += sum_p A[p,i] B[p,j], starts[e] <= p < ends[e]",
            tolerance: "calc_diff < 1e-10",
            source: "V4 specification 3.4; DeepGEMM k_grouped_bf16_gemm_tn_contiguous",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(KGroupedConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        launcher(dtypes.get("a").copied().unwrap_or(DType::BF16), apply(KGroupedConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |rows: Vec<usize>, m: usize, n: usize, dtype: DType, cfg: KGroupedConfig| {
            let list = format!("{rows:?}").replace(", ", ",");
            let added = if cfg.accumulate { "" } else { " cleared" };
            Case::new(format!("rows={list} m={m} n={n} {dtype}{added}"), cfg, move |cfg| {
                problem(&rows, m, n, dtype, cfg)
            })
        };
        let (cfg, bf16) = (KGroupedConfig::default(), DType::BF16);
        match scale {
            Scale::Small => {
                let small = KGroupedConfig { bm: 64, bn: 64, bk: 16, ..cfg };
                vec![
                    case(vec![], 64, 64, bf16, small),
                    case(vec![0, 5, 0, 97, 16], 72, 40, bf16, small),
                    case(vec![0, 40], 64, 130, bf16, KGroupedConfig { accumulate: false, ..small }),
                    case(vec![9, 20], 33, 48, DType::F32, small),
                ]
            }
            Scale::Representative => vec![case(vec![300, 0, 128, 212], 2048, 2048, bf16, cfg)],
            Scale::Full => vec![
                case(vec![1024, 900, 0, 517], 4096, 4096, bf16, cfg),
                case(vec![1024, 900, 0, 517], 7168, 3072, bf16, cfg),
            ],
        }
    }
}
