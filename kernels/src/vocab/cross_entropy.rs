//! Cross-entropy of the LM head's logits, forward.

use super::{PER_LANE, VocabConfig, lane_columns, loss_cases};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::cross_entropy as reference;
use crate::reference::metrics::{Tolerance, compare};
use crate::softmax::LaneSoftmax;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// `lse = ln sum_c exp(z_c)` and `loss = lse - z[target]` of each row of logits, zero for a negative target. The logits are read
/// once, tile by tile, with a running maximum and sum in fp32.
#[kernel]
pub fn cross_entropy<E: Float>(
    t: T,
    #[dims(rows, vocab)] logits: &Tensor<E, 2>,
    #[dims(rows)] targets: &Tensor<i32, 1>,
    #[dims(rows)] loss: &mut Tensor<f32, 1>,
    #[dims(rows)] lse: &mut Tensor<f32, 1>,
    #[comptime] cfg: VocabConfig,
) {
    let VocabConfig { rows, cols, .. } = cfg;
    let vocab = logits.dim(1);
    let [b] = t.grid([logits.dim(0).ceil_div(rows)], cfg.threads);
    let lanes = cols / PER_LANE;
    let softmax = LaneSoftmax::new(t, rows, lanes);
    for j in t.serial(vocab.ceil_div(cols)) {
        for (r, c) in t.parallel((rows, lanes)) {
            let z = lane_columns(j * cols, c, lanes)
                .map(|col| select(col < vocab, logits[(b * rows + r, col)].cast::<f32>(), f32::NEG_INFINITY));
            softmax.step((r, c), &z);
        }
    }
    let softmax = softmax.finish(t);
    for r in t.parallel(rows) {
        let (row, total) = (b * rows + r, softmax.lse(r));
        let target = targets[row];
        lse[row] = total;
        loss[row] = select(target >= 0, total - logits[(row, target.to_index())].cast::<f32>(), 0.0);
    }
}

/// The library's entry.
pub struct Entry;

/// Rows of a large problem that are compared.
const SAMPLED_ROWS: usize = 64;
/// fp32 exponentials and sums; the logits are within +-20.
pub(super) const LOSS: Tolerance = Tolerance::AbsRel { abs: 1e-5, rel: 1e-5 };

fn launcher(dtype: DType, cfg: VocabConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    match dtype {
        DType::BF16 => Ok(Box::new(CrossEntropy::<bf16>::new(cfg))),
        DType::F32 => Ok(Box::new(CrossEntropy::<f32>::new(cfg))),
        _ => Err(ProblemError::Unsupported(format!("no cross-entropy of {dtype} logits; there is bf16 and f32"))),
    }
}

/// Rows `rows` of a matrix of `width` columns.
pub(super) fn take_rows(x: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    rows.iter().flat_map(|r| x[r * width..(r + 1) * width].iter().copied()).collect()
}

/// Elements `rows` of a vector of integers.
pub(super) fn take_targets(x: &Value, rows: &[usize]) -> Vec<i32> {
    let x = x.f32s();
    rows.iter().map(|&r| x[r] as i32).collect()
}

fn problem(rows: usize, vocab: usize, dtype: DType, cfg: VocabConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(13);
    let args = vec![
        Value::Tensor(inputs.normal(dtype, &[rows, vocab], 3.0)?),
        // -1 is an ignored row.
        Value::Tensor(inputs.integers(DType::I32, &[rows], -1, vocab as i64)?),
        Value::Tensor(output(DType::F32, &[rows])?),
        Value::Tensor(output(DType::F32, &[rows])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let sampled = sample_rows(rows, SAMPLED_ROWS);
        let (logits, targets) = (take_rows(&args[0].f32s(), &sampled, vocab), take_targets(&args[1], &sampled));
        let want = reference::cross_entropy(&logits, &targets, vocab);
        let got = |i: usize| take_rows(&args[i].f32s(), &sampled, 1);
        vec![
            Comparison { output: "loss", verdict: compare(&got(2), &want.loss, LOSS) },
            Comparison { output: "lse", verdict: compare(&got(3), &want.lse, LOSS) },
        ]
    };
    Ok(Problem { kernel: launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "cross_entropy",
            family: Family::Vocab,
            summary: "cross-entropy over the vocabulary with an online log-sum-exp",
            equation: "loss = ln sum_c exp(z[c]) - z[target]",
            tolerance: "abs 1e-5 or rel 1e-5",
            source: "V4 specification 7; Milakov and Gimelshein, Online normalizer calculation for softmax (2018)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(VocabConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let dtype = dtypes.get("logits").copied().unwrap_or(DType::BF16);
        launcher(dtype, apply(VocabConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        loss_cases(scale, VocabConfig::default(), 1024, problem)
    }
}
