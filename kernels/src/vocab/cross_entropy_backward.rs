//! Cross-entropy of the LM head's logits, backward.

use super::cross_entropy::{take_rows, take_targets};
use super::{VocabConfig, loss_cases};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::cross_entropy as reference;
use crate::reference::metrics::{Tolerance, compare};
use crate::softmax::LOG2_E;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// `dlogits[c] = (exp(z_c - lse) - [c = target]) dloss` for each row, zero for a negative target; in fp32, rounded once. `lse` is
/// what [`cross_entropy`](super::cross_entropy::cross_entropy) gave.
#[kernel]
pub fn cross_entropy_backward<E: Float>(
    t: T,
    #[dims(rows, vocab)] logits: &Tensor<E, 2>,
    #[dims(rows)] targets: &Tensor<i32, 1>,
    #[dims(rows)] lse: &Tensor<f32, 1>,
    #[dims(rows)] dloss: &Tensor<f32, 1>,
    #[dims(rows, vocab)] dlogits: &mut Tensor<E, 2>,
    #[comptime] cfg: VocabConfig,
) {
    let VocabConfig { rows, cols, .. } = cfg;
    let [j, b] = t.grid([logits.dim(1).ceil_div(cols), logits.dim(0).ceil_div(rows)], cfg.threads);
    let z = t.fragment::<f32, 2>([rows, cols]);
    t.cast(logits.at((b * rows, j * cols)), z);
    for (r, c) in t.parallel((rows, cols)) {
        let row = b * rows + r;
        let target = targets[row];
        let onehot = select(c.cast::<i32>() == target - (j * cols).cast::<i32>(), 1.0, lit::<f32>(0.0));
        let gradient = select(target >= 0, dloss[row], 0.0);
        z[(r, c)] = (((z[(r, c)] - lse[row]) * LOG2_E).fast_exp2() - onehot) * gradient;
    }
    t.cast(z, dlogits.at((b * rows, j * cols)));
}

/// The library's entry.
pub struct Entry;

/// Rows of a large problem that are compared.
const SAMPLED_ROWS: usize = 64;
/// A bf16 step; probabilities are around 1e-5.
const GRADIENT: Tolerance = Tolerance::AbsRelCos { abs: 1e-8, rel: 1.0 / 128.0, cos: 1e-6 };

fn launcher(dtype: DType, cfg: VocabConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    match dtype {
        DType::BF16 => Ok(Box::new(CrossEntropyBackward::<bf16>::new(cfg))),
        DType::F32 => Ok(Box::new(CrossEntropyBackward::<f32>::new(cfg))),
        _ => Err(ProblemError::Unsupported(format!("no cross-entropy of {dtype} logits; there is bf16 and f32"))),
    }
}

fn problem(rows: usize, vocab: usize, dtype: DType, cfg: VocabConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(14);
    let logits = Value::Tensor(inputs.normal(dtype, &[rows, vocab], 3.0)?);
    let lse = reference::cross_entropy(&logits.f32s(), &vec![0; rows], vocab).lse;
    let args = vec![
        logits,
        Value::Tensor(inputs.integers(DType::I32, &[rows], -1, vocab as i64)?),
        Value::Tensor(DynTensor::from_slice(&[rows], &lse)?),
        Value::Tensor(inputs.uniform(DType::F32, &[rows], 0.5, 1.5)?),
        Value::Tensor(output(dtype, &[rows, vocab])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let sampled = sample_rows(rows, SAMPLED_ROWS);
        let rows = |i: usize, width: usize| take_rows(&args[i].f32s(), &sampled, width);
        let targets = take_targets(&args[1], &sampled);
        let mut want = reference::cross_entropy_backward(&rows(0, vocab), &targets, &rows(3, 1), vocab);
        if dtype == DType::BF16 {
            want = bf16_round_all(&want);
        }
        vec![Comparison { output: "dlogits", verdict: compare(&rows(4, vocab), &want, GRADIENT) }]
    };
    Ok(Problem { kernel: launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "cross_entropy_backward",
            family: Family::Vocab,
            summary: "gradient of the cross-entropy with respect to the logits",
            equation: "dz[c] = (exp(z[c] - lse) - [c = target]) dloss",
            tolerance: "a bf16 step (rel 1/128), abs 1e-8, cos 1e-6",
            source: "V4 specification 7",
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
