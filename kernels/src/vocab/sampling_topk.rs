//! The largest logits of each row, for sampling.

use super::cross_entropy::take_rows;
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::moe::gate::top_k;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`sampling_topk`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct SamplingConfig {
    /// Logits of a step.
    #[tune(256, 512, 1024)]
    pub cols: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for SamplingConfig {
    fn default() -> SamplingConfig {
        SamplingConfig { cols: 512, threads: 256 }
    }
}

/// The `k` largest of the first `ends[r]` logits of each row, in descending order, with their columns; of equal logits the
/// smaller column first. Where there are fewer, or they are minus infinity, the rest has value minus infinity and column -1.
/// `logits` [rows, vocab] holds no NaN, `values` and `ids` [rows, k].
///
/// A row is one block's: it keeps the best so far and takes in the vocabulary step by step. Steps without a logit above the
/// smallest of the best are only read.
#[kernel(static_dims(vocab, k))]
pub fn sampling_topk(
    t: T,
    #[dims(rows, vocab)] logits: &Tensor<f32, 2>,
    #[dims(rows)] ends: &Tensor<i32, 1>,
    #[dims(rows, k)] values: &mut Tensor<f32, 2>,
    #[dims(rows, k)] ids: &mut Tensor<i32, 2>,
    #[comptime] cfg: SamplingConfig,
) {
    let (cols, k) = (cfg.cols, values.static_dim(1));
    let [row] = t.grid([logits.dim(0)], cfg.threads);
    let end = ends[row].to_index();
    // The best so far, then the logits of the step.
    let (pool, columns) = (t.shared::<f32, 2>([1, k + cols]), t.shared::<i32, 1>([k + cols]));
    let (best, at) = (t.fragment::<f32, 2>([1, k]), t.shared::<i32, 2>([1, k]));
    let chosen = t.shared::<i32, 1>([k]);
    for j in t.parallel(k) {
        pool[(0, j)] = f32::NEG_INFINITY;
        columns[j] = -1;
    }
    let (step_max, largest) = (t.fragment::<f32, 2>([1, cols]), t.fragment::<f32, 1>([1]));
    for step in t.serial(logits.static_dim(1).div_ceil(cols)) {
        let first = step * cols;
        for c in t.parallel(cols) {
            let x = select(first + c < end, logits[(row, first + c)], f32::NEG_INFINITY);
            step_max[(0, c)] = x;
            pool[(0, c + k)] = x;
            columns[c + k] = (first + c).cast::<i32>();
        }
        t.reduce_max(step_max, largest, 1);
        if largest[0usize] > pool[(0, k - 1)] {
            t.topk(pool, best, at);
            for j in t.parallel(k) {
                chosen[j] = columns[at[(0, j)].to_index()];
            }
            for j in t.parallel(k) {
                pool[(0, j)] = best[(0, j)];
                columns[j] = select(best[(0, j)] > f32::NEG_INFINITY, chosen[j], -1);
            }
        }
    }
    for j in t.parallel(k) {
        values[(row, j)] = pool[(0, j)];
        ids[(row, j)] = columns[j];
    }
}

/// The library's entry.
pub struct Entry;

/// Rows of a large problem that are compared.
const SAMPLED_ROWS: usize = 32;

fn problem(rows: usize, vocab: usize, k: usize, cfg: SamplingConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(24);
    let mut logits = inputs.draw(rows * vocab, |rng| 3.0 * crate::inputs::normal(rng) as f32);
    for (r, row) in logits.chunks_mut(vocab.max(1)).enumerate() {
        match r % 4 {
            // Ties.
            1 => row.iter_mut().for_each(|x| *x = x.round()),
            2 => row.iter_mut().skip(3).for_each(|x| *x = f32::NEG_INFINITY),
            _ => {}
        }
    }
    let end = move |r: usize| match r % 5 {
        3 => vocab / 3,
        4 => 0,
        _ => vocab,
    };
    let ends: Vec<i32> = (0..rows).map(|r| end(r) as i32).collect();
    let args = vec![
        Value::Tensor(DynTensor::from_slice::<f32>(&[rows, vocab], &logits)?),
        Value::Tensor(DynTensor::from_slice::<i32>(&[rows], &ends)?),
        Value::Tensor(output(DType::F32, &[rows, k])?),
        Value::Tensor(output(DType::I32, &[rows, k])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let sampled = sample_rows(rows, SAMPLED_ROWS);
        let (mut values, mut ids) = (Vec::new(), Vec::new());
        for &r in &sampled {
            let mut row = logits[r * vocab..(r + 1) * vocab].to_vec();
            row[end(r)..].fill(f32::NEG_INFINITY);
            for id in top_k(&row, 1, vocab, k) {
                let value = row[id as usize];
                values.push(value);
                ids.push(if value == f32::NEG_INFINITY { -1.0 } else { id as f32 });
            }
        }
        let got = |i: usize| take_rows(&args[i].f32s(), &sampled, k);
        vec![
            Comparison::exact_f32("values", &got(2), &values),
            // Columns are below 2^24: exact as f32.
            Comparison::exact_f32("ids", &got(3), &ids),
        ]
    };
    Ok(Problem { kernel: Box::new(SamplingTopk::new(cfg)), args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "sampling_topk",
            family: Family::Vocab,
            summary: "the k largest logits of each row with their columns, smaller column first on ties",
            equation: "ids[r] = argtopk_c(z[r,c], c < ends[r]), values[r,j] = z[r,ids[r,j]]; -1 and -inf where there are fewer",
            tolerance: "exact",
            source: "V4 specification 7, appendix a 58; DeepSelect (fp32 mode)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(SamplingConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(SamplingTopk::new(apply(SamplingConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |rows: usize, vocab: usize, k: usize, cfg: SamplingConfig| {
            Case::new(format!("rows={rows} vocab={vocab} k={k}"), cfg, move |cfg| problem(rows, vocab, k, cfg))
        };
        let cfg = SamplingConfig::default();
        match scale {
            Scale::Small => {
                let small = SamplingConfig { cols: 64, threads: 64 };
                vec![
                    case(0, 100, 4, small),
                    case(1, 5, 5, small),
                    case(9, 200, 8, small),
                    case(6, 700, 1, small),
                    case(3, 1500, 50, cfg),
                ]
            }
            Scale::Representative => vec![case(64, 129_280, 32, cfg)],
            Scale::Full => vec![case(256, 129_280, 64, cfg), case(1, 129_280, 20, cfg)],
        }
    }
}
