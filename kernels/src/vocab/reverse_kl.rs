//! Reverse KL divergence between student and teacher over the whole vocabulary, and its gradient: on-policy distillation.

use super::cross_entropy::{LOSS, take_rows};
use super::{PER_LANE, VocabConfig, lane_columns, loss_cases};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::cross_entropy as reference;
use crate::reference::metrics::{Tolerance, compare};
use crate::softmax::{LOG2_E, LaneSoftmax};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Steps whose logits are read ahead, and the one at hand.
const STAGES: usize = 3;

/// `kl = sum_c p_s(c) (ln p_s(c) - ln p_t(c))` of each row, with `ln p = z - lse`, in one pass: the
/// mean of `z_s - z_t` under p_s, and the difference of the log-sum-exps. Both are small where the two agree, so nothing cancels.
#[kernel]
pub fn reverse_kl<E: Float>(
    t: T,
    #[dims(rows, vocab)] student: &Tensor<E, 2>,
    #[dims(rows, vocab)] teacher: &Tensor<E, 2>,
    #[dims(rows)] kl: &mut Tensor<f32, 1>,
    #[dims(rows)] student_lse: &mut Tensor<f32, 1>,
    #[dims(rows)] teacher_lse: &mut Tensor<f32, 1>,
    #[comptime] cfg: VocabConfig,
) {
    let VocabConfig { rows, cols, .. } = cfg;
    let vocab = student.dim(1);
    let [b] = t.grid([student.dim(0).ceil_div(rows)], cfg.threads);
    let lanes = cols / PER_LANE;
    let (of_s, of_t) = (LaneSoftmax::new(t, rows, lanes), LaneSoftmax::new(t, rows, lanes));
    // sum_c exp(s_c - max s) (s_c - t_c) of each lane.
    let ratio = t.fragment::<f32, 2>([rows, lanes]);
    t.clear(ratio);
    let (s_tile, t_tile) = (t.shared::<E, 2>([rows, cols]), t.shared::<E, 2>([rows, cols]));
    for j in t.pipelined(vocab.ceil_div(cols), STAGES) {
        t.copy(student.at((b * rows, j * cols)), s_tile);
        t.copy(teacher.at((b * rows, j * cols)), t_tile);
        // Only the last step may reach beyond the vocabulary.
        let whole = (j + 1) * cols <= vocab;
        let step = |guarded: bool| {
            for (r, c) in t.parallel((rows, lanes)) {
                let columns = lane_columns(0.into(), c, lanes);
                let of = |tile: Shared<E, 2>| columns.map(|col| tile[(r, col)].cast::<f32>());
                let (s, u) = (of(s_tile), of(t_tile));
                let differences = std::array::from_fn::<_, PER_LANE, _>(|k| s[k] - u[k]);
                let inside = |k: usize, z: Expr<f32>| match guarded {
                    true => select(j * cols + columns[k] < vocab, z, f32::NEG_INFINITY),
                    false => z,
                };
                let [z_s, z_t] = [s, u].map(|z| std::array::from_fn::<_, PER_LANE, _>(|k| inside(k, z[k])));
                let (shrink, exps) = of_s.step((r, c), &z_s);
                of_t.step((r, c), &z_t);
                let sum = ratio[(r, c)] * shrink;
                ratio[(r, c)] = exps.iter().zip(differences).fold(sum, |sum, (e, d)| e.mul_add(d, sum));
            }
        };
        if whole {
            step(false);
        } else {
            step(true);
        }
    }
    let (of_s, of_t) = (of_s.finish(t), of_t.finish(t));
    for (r, c) in t.parallel((rows, lanes)) {
        ratio[(r, c)] *= of_s.share[(r, c)];
    }
    let row = || t.fragment::<f32, 1>([rows]);
    let (lse_s, lse_t, sum) = (row(), row(), row());
    t.reduce_sum(ratio, sum, 1);
    for r in t.parallel(rows) {
        lse_s[r] = of_s.lse(r);
        lse_t[r] = of_t.lse(r);
        sum[r] = sum[r] / of_s.sum[r] + of_t.above(of_s, r);
    }
    t.copy(sum, kl.at(b * rows));
    t.copy(lse_s, student_lse.at(b * rows));
    t.copy(lse_t, teacher_lse.at(b * rows));
}

/// `dstudent[c] = p_s(c) (ln p_s(c) - ln p_t(c) - kl) dloss` for each row, from what [`reverse_kl`] gave; in fp32, rounded once.
#[kernel]
pub fn reverse_kl_backward<E: Float>(
    t: T,
    #[dims(rows, vocab)] student: &Tensor<E, 2>,
    #[dims(rows, vocab)] teacher: &Tensor<E, 2>,
    #[dims(rows)] kl: &Tensor<f32, 1>,
    #[dims(rows)] student_lse: &Tensor<f32, 1>,
    #[dims(rows)] teacher_lse: &Tensor<f32, 1>,
    #[dims(rows)] dloss: &Tensor<f32, 1>,
    #[dims(rows, vocab)] dstudent: &mut Tensor<E, 2>,
    #[comptime] cfg: VocabConfig,
) {
    let VocabConfig { rows, cols, .. } = cfg;
    let [j, b] = t.grid([student.dim(1).ceil_div(cols), student.dim(0).ceil_div(rows)], cfg.threads);
    let (s, u) = (t.fragment::<f32, 2>([rows, cols]), t.fragment::<f32, 2>([rows, cols]));
    t.cast(student.at((b * rows, j * cols)), s);
    t.cast(teacher.at((b * rows, j * cols)), u);
    for (r, c) in t.parallel((rows, cols)) {
        let row = b * rows + r;
        let (ln_s, ln_t) = (s[(r, c)] - student_lse[row], u[(r, c)] - teacher_lse[row]);
        s[(r, c)] = (ln_s * LOG2_E).fast_exp2() * (ln_s - ln_t - kl[row]) * dloss[row];
    }
    t.cast(s, dstudent.at((b * rows, j * cols)));
}

/// The library's entry of [`reverse_kl`].
pub struct Entry;
/// The library's entry of [`reverse_kl_backward`].
pub struct BackwardEntry;

/// Rows of a large problem that are compared.
const SAMPLED_ROWS: usize = 64;
/// A bf16 step where log-ratio and divergence do not cancel; probabilities are around 1e-5.
const GRADIENT: Tolerance = Tolerance::AbsRelCos { abs: 1e-7, rel: 1.0 / 128.0, cos: 1e-6 };

fn launcher(dtype: DType, cfg: VocabConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    match dtype {
        DType::BF16 => Ok(Box::new(ReverseKl::<bf16>::new(cfg))),
        DType::F32 => Ok(Box::new(ReverseKl::<f32>::new(cfg))),
        _ => Err(ProblemError::Unsupported(format!("no divergence of {dtype} logits; there is bf16 and f32"))),
    }
}

fn backward_launcher(dtype: DType, cfg: VocabConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    match dtype {
        DType::BF16 => Ok(Box::new(ReverseKlBackward::<bf16>::new(cfg))),
        DType::F32 => Ok(Box::new(ReverseKlBackward::<f32>::new(cfg))),
        _ => Err(ProblemError::Unsupported(format!("no divergence of {dtype} logits; there is bf16 and f32"))),
    }
}

/// A teacher, and a student that is off by a little.
fn logits(rows: usize, vocab: usize, dtype: DType) -> Result<[Value; 2], ProblemError> {
    let mut inputs = Inputs::new(15);
    let teacher = inputs.normal(dtype, &[rows, vocab], 3.0)?;
    let noise = inputs.normal(DType::F32, &[rows, vocab], 0.5)?;
    let student: Vec<f64> =
        teacher.to_f64_vec()?.iter().zip(noise.to_f64_vec()?).map(|(teacher, noise)| teacher + noise).collect();
    Ok([Value::Tensor(DynTensor::from_f64(dtype, &[rows, vocab], &student)?), Value::Tensor(teacher)])
}

fn problem(rows: usize, vocab: usize, dtype: DType, cfg: VocabConfig) -> Result<Problem, ProblemError> {
    let [student, teacher] = logits(rows, vocab, dtype)?;
    let row = || -> Result<Value, ProblemError> { Ok(Value::Tensor(output(DType::F32, &[rows])?)) };
    let args = vec![student, teacher, row()?, row()?, row()?];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let sampled = sample_rows(rows, SAMPLED_ROWS);
        let rows = |i: usize, width: usize| take_rows(&args[i].f32s(), &sampled, width);
        let (student, teacher) = (rows(0, vocab), rows(1, vocab));
        let none = vec![-1; sampled.len()];
        let lse = |logits: &[f32]| reference::cross_entropy(logits, &none, vocab).lse;
        let (kl, _) = reference::reverse_kl(&student, &teacher, vocab);
        vec![
            Comparison { output: "kl", verdict: compare(&rows(2, 1), &kl, LOSS) },
            Comparison { output: "student_lse", verdict: compare(&rows(3, 1), &lse(&student), LOSS) },
            Comparison { output: "teacher_lse", verdict: compare(&rows(4, 1), &lse(&teacher), LOSS) },
        ]
    };
    Ok(Problem { kernel: launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
}

fn backward_problem(rows: usize, vocab: usize, dtype: DType, cfg: VocabConfig) -> Result<Problem, ProblemError> {
    let [student, teacher] = logits(rows, vocab, dtype)?;
    let (s, u) = (student.f32s(), teacher.f32s());
    let lse = |logits: &[f32]| reference::cross_entropy(logits, &vec![-1; rows], vocab).lse;
    let vector = |x: &[f32]| -> Result<Value, ProblemError> { Ok(Value::Tensor(DynTensor::from_slice(&[rows], x)?)) };
    let (kl, gradient) = reference::reverse_kl(&s, &u, vocab);
    let args = vec![
        student,
        teacher,
        vector(&kl)?,
        vector(&lse(&s))?,
        vector(&lse(&u))?,
        Value::Tensor(Inputs::new(16).uniform(DType::F32, &[rows], 0.5, 1.5)?),
        Value::Tensor(output(dtype, &[rows, vocab])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let dloss = args[5].f32s();
        let mut want: Vec<f32> = gradient.iter().enumerate().map(|(i, g)| g * dloss[i / vocab]).collect();
        if dtype == DType::BF16 {
            want = bf16_round_all(&want);
        }
        vec![Comparison { output: "dstudent", verdict: compare(&args[6].f32s(), &want, GRADIENT) }]
    };
    Ok(Problem { kernel: backward_launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
}

/// Of the gradient: rows are few, so their blocks are large.
fn backward_config() -> VocabConfig {
    VocabConfig { cols: 8192, threads: 512, ..VocabConfig::default() }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "reverse_kl",
            family: Family::Vocab,
            summary: "reverse KL between student and teacher over the whole vocabulary, in one pass with running sums",
            equation: "kl = sum_c p_s[c] (ln p_s[c] - ln p_t[c])",
            tolerance: "abs 1e-5 or rel 1e-5",
            source: "V4 specification 7",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(VocabConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let dtype = dtypes.get("student").copied().unwrap_or(DType::BF16);
        launcher(dtype, apply(VocabConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        loss_cases(scale, VocabConfig::default(), 256, problem)
    }
}

impl LibraryKernel for BackwardEntry {
    fn info(&self) -> Info {
        Info {
            name: "reverse_kl_backward",
            family: Family::Vocab,
            summary: "gradient of the reverse KL with respect to the student's logits",
            equation: "dz_s[c] = p_s[c] (ln p_s[c] - ln p_t[c] - kl) dloss",
            tolerance: "a bf16 step (rel 1/128), abs 1e-7, cos 1e-6",
            source: "V4 specification 7",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(backward_config())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let dtype = dtypes.get("student").copied().unwrap_or(DType::BF16);
        backward_launcher(dtype, apply(backward_config(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        loss_cases(scale, backward_config(), 256, backward_problem)
    }
}
