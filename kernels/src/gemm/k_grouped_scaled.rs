//! Products over the rows of each group of FP8 operands: the gradients of the experts' weights from activations and gradients
//! cast per channel.

use super::product::{ProductConfig, multiply};
use crate::inputs::{Inputs, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::gemm_scaled as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// `C[e, i, j] += sum_p A[i, p] a_sf[p / 128, i] B[j, p] b_sf[p / 128, j]` over the positions `starts[e] <= p < ends[e]` of group e:
/// `a` [M, positions] and `b` [N, positions] with a scale factor per `cfg.a_group` positions of a row, as
/// `per_channel_cast_and_transpose` makes them, `c` [experts, M, N]. The products of as many positions are summed by the matrix
/// units, scaled and added in f32, in the order of the positions.
///
/// Groups start and end at multiples of `cfg.bk`; codes of padding are zero. A group without positions adds nothing.
#[kernel(static_dims(m, n))]
pub fn k_grouped_scaled_gemm(
    t: T,
    #[dims(m, positions)] a: &Tensor<f8e4m3, 2>,
    #[dims(groups, m)] a_sf: &Tensor<f32, 2>,
    #[dims(n, positions)] b: &Tensor<f8e4m3, 2>,
    #[dims(groups, n)] b_sf: &Tensor<f32, 2>,
    #[dims(experts)] starts: &Tensor<i32, 1>,
    #[dims(experts)] ends: &Tensor<i32, 1>,
    #[dims(experts, m, n)] c: &mut Tensor<f32, 3>,
    #[comptime] cfg: ProductConfig,
) {
    let (bm, bn) = (cfg.bm, cfg.bn);
    let [bx, by, e] = t.grid((c.dim(2).ceil_div(bn), c.dim(1).ceil_div(bm), c.dim(0)), cfg.threads);
    let (row, col) = (by * bm, bx * bn);
    let (start, end) = (starts[e].to_index(), ends[e].to_index());
    t.assert(start % cfg.bk == 0 && end % cfg.bk == 0, "a group starts or ends within a step of bk positions");
    // The same number in a form that shows it: a tile's rows begin at a multiple of bk elements, so copies are wide.
    let start = start / cfg.bk * cfg.bk;
    if start < end {
        let first = start / cfg.a_group;
        let acc = multiply(
            t,
            end - start,
            |depth| a.at((row, start + depth)),
            |depth| b.at((col, start + depth)),
            |i, g| a_sf[(first + g, row + i)],
            |j, g| b_sf[(first + g, col + j)],
            cfg,
        );
        let before = t.fragment::<f32, 2>([bm, bn]);
        t.copy(c.at((e, row, col)), before);
        for (i, j) in t.parallel((bm, bn)) {
            acc[(i, j)] += before[(i, j)];
        }
        t.copy(acc, c.at((e, row, col)));
    }
}

/// The library's entry.
pub struct Entry;

/// Rows of a large result that are compared.
const SAMPLED_ROWS: usize = 16;

fn config() -> ProductConfig {
    ProductConfig { bk: 128, b_rows: 1, ..ProductConfig::default() }
}

fn launcher(cfg: ProductConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    if !cfg.scaled || cfg.column_major || cfg.zero_padding || cfg.b_rows != 1 || cfg.a_group != cfg.b_group {
        let message = "k_grouped_scaled_gemm has scale factors per position group and row, alike on both sides";
        return Err(ProblemError::Unsupported(message.to_owned()));
    }
    if cfg.turned {
        let message = "k_grouped_scaled_gemm has many rows on both sides: leave `turned` off";
        return Err(ProblemError::Unsupported(message.to_owned()));
    }
    Ok(Box::new(KGroupedScaledGemm::new(cfg)))
}

fn problem(counts: &[usize], m: usize, n: usize, cfg: ProductConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(26);
    let experts = counts.len();
    let padded: Vec<usize> = counts.iter().map(|c| c.next_multiple_of(cfg.bk)).collect();
    let starts: Vec<usize> = (0..experts).map(|e| padded[..e].iter().sum()).collect();
    let positions = padded.iter().sum::<usize>();
    let live: Vec<bool> = padded.iter().zip(counts).flat_map(|(&p, &c)| (0..p).map(move |i| i < c)).collect();
    let mut codes = |rows: usize| {
        let mut x = inputs.draw(rows * positions, crate::inputs::normal);
        x.iter_mut().enumerate().filter(|(i, _)| !live[i % positions]).for_each(|(_, x)| *x = 0.0);
        DynTensor::from_f64(DType::F8E4M3, &[rows, positions], &x)
    };
    let (a, b) = (codes(m)?, codes(n)?);
    let groups = positions / cfg.a_group;
    let ints = |v: Vec<usize>| {
        let v: Vec<i32> = v.into_iter().map(|v| v as i32).collect();
        DynTensor::from_slice::<i32>(&[experts], &v)
    };
    let a_sf = inputs.uniform(DType::F32, &[groups, m], 0.25, 2.0)?;
    let b_sf = inputs.uniform(DType::F32, &[groups, n], 0.25, 2.0)?;
    let before = inputs.normal(DType::F32, &[experts, m, n], 10.0)?;
    let ends = starts.iter().zip(&padded).map(|(s, p)| s + p).collect();
    let args: Vec<Value> = [a, a_sf, b, b_sf, ints(starts.clone())?, ints(ends)?, before.to_owned_tensor()?]
        .into_iter()
        .map(Value::Tensor)
        .collect();
    let work = Work::of(&args).flops(2.0 * (counts.iter().sum::<usize>() * m * n) as f64);
    let verify = move |args: &[Value]| {
        let [a, a_sf, b, b_sf, c] = [0, 1, 2, 3, 6].map(|i| args[i].f32s());
        let before = Value::Tensor(before.clone()).f32s();
        let sampled = sample_rows(m, if positions * m * n > 1 << 27 { SAMPLED_ROWS } else { m });
        let (mut got, mut want) = (Vec::new(), Vec::new());
        for (e, (&start, &k)) in starts.iter().zip(&padded).enumerate() {
            let part = |x: &[f32], rows: usize| -> Vec<f32> {
                (0..rows).flat_map(|r| x[r * positions + start..][..k].iter().copied()).collect()
            };
            let (a, b) = (part(&a, m), part(&b, n));
            let group = |p: usize| (start + p) / cfg.a_group;
            let product = reference::Scaled {
                n,
                k,
                a: &a,
                b: &b,
                a_factor: &|row, p| a_sf[group(p) * m + row],
                b_factor: &|row, p| b_sf[group(p) * n + row],
            };
            let at = |i: usize| (e * m + sampled[i / n]) * n + i % n;
            let sums = product.rows(&sampled);
            got.extend((0..sums.len()).map(|i| c[at(i)]));
            want.extend(sums.iter().enumerate().map(|(i, s)| s + before[at(i)]));
        }
        vec![Comparison { output: "c", verdict: compare(&got, &want, Tolerance::CalcDiff(1e-6)) }]
    };
    Ok(Problem { kernel: launcher(cfg)?, args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "k_grouped_scaled_gemm",
            family: Family::Gemm,
            summary: "FP8 products over the positions of each expert, added to the gradients of its weights",
            equation: "C[e,i,j] += sum_p A[i,p] a_sf[p/128,i] B[j,p] b_sf[p/128,j], starts[e] <= p < ends[e]",
            tolerance: "calc_diff < 1e-6 against the same quantised operands",
            source: "V4 specification 3.4, 5 (1x128 both sides); DeepGEMM k_grouped_fp8_gemm",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(config())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        launcher(apply(config(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |counts: Vec<usize>, m: usize, n: usize, cfg: ProductConfig| {
            let list = format!("{counts:?}").replace(", ", ",");
            let name = format!("rows={list} m={m} n={n} groups of {}", cfg.a_group);
            Case::new(name, cfg, move |cfg| problem(&counts, m, n, cfg))
        };
        match scale {
            Scale::Small => {
                let small = ProductConfig { bm: 32, bn: 64, threads: 128, ..config() };
                vec![
                    case(vec![], 64, 64, small),
                    case(vec![0, 130, 0, 5], 72, 40, small),
                    case(vec![20, 33], 33, 64, ProductConfig { a_group: 32, b_group: 32, bk: 64, ..small }),
                ]
            }
            Scale::Representative => vec![case(vec![300, 0, 128], 2048, 2048, config())],
            Scale::Full => vec![
                case(vec![1024, 900, 0, 517], 4096, 4096, config()),
                case(vec![1024, 900, 0, 517], 6144, 7168, config()),
            ],
        }
    }
}
