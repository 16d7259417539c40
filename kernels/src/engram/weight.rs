//! Engram: the fused weight of the two norms, and the gradients of its factors.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::norm::column_sum::ColumnSumConfig;
use crate::optim::ElementwiseConfig;
use crate::reference::engram as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// `fused = weight_x weight_k`, element by element.
#[kernel]
pub fn engram_fused_weight(
    t: T,
    #[dims(n)] weight_x: &Tensor<f32, 1>,
    #[dims(n)] weight_k: &Tensor<f32, 1>,
    #[dims(n)] fused: &mut Tensor<f32, 1>,
    #[comptime] cfg: ElementwiseConfig,
) {
    let [b] = t.grid([fused.dim(0).ceil_div(cfg.chunk)], cfg.threads);
    for i in t.parallel(cfg.chunk) {
        let at = b * cfg.chunk + i;
        fused[at] = weight_x[at] * weight_k[at];
    }
}

/// `grad_x += weight_k sum_p partial[p]` and `grad_k += weight_x sum_p partial[p]`, in place: from parts of the fused weight's
/// gradient, summed in ascending order of `p`.
#[kernel(static_dims(n))]
pub fn engram_weight_grad(
    t: T,
    #[dims(parts, n)] partial: &Tensor<f32, 2>,
    #[dims(n)] weight_x: &Tensor<f32, 1>,
    #[dims(n)] weight_k: &Tensor<f32, 1>,
    #[dims(n)] grad_x: &mut Tensor<f32, 1>,
    #[dims(n)] grad_k: &mut Tensor<f32, 1>,
    #[comptime] cfg: ColumnSumConfig,
) {
    let ColumnSumConfig { rows, cols, threads } = cfg;
    let [b] = t.grid([partial.dim(1).ceil_div(cols)], threads);
    let (tile, sum) = (t.fragment::<f32, 2>([rows, cols]), t.fragment::<f32, 1>([cols]));
    t.clear(sum);
    for i in t.serial(partial.dim(0).ceil_div(rows)) {
        t.copy(partial.at((i * rows, b * cols)), tile);
        t.reduce_sum_into(tile, sum, 0);
    }
    for c in t.parallel(cols) {
        let at = b * cols + c;
        grad_x[at] += sum[c] * weight_k[at];
        grad_k[at] += sum[c] * weight_x[at];
    }
}

/// The library's entry of [`engram_fused_weight`].
pub struct FusedEntry;
/// The library's entry of [`engram_weight_grad`].
pub struct GradEntry;

fn fused_problem(n: usize, cfg: ElementwiseConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(25);
    let args = vec![
        Value::Tensor(inputs.uniform(DType::F32, &[n], 0.5, 1.5)?),
        Value::Tensor(inputs.uniform(DType::F32, &[n], 0.5, 1.5)?),
        Value::Tensor(output(DType::F32, &[n])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let want = reference::fused_weight(&args[0].f32s(), &args[1].f32s());
        vec![Comparison { output: "fused", verdict: compare(&args[2].f32s(), &want, Tolerance::Exact) }]
    };
    Ok(Problem { kernel: Box::new(EngramFusedWeight::new(cfg)), args, work, verify: Box::new(verify) })
}

fn grad_problem(parts: usize, n: usize, cfg: ColumnSumConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(26);
    let mut draw = |shape: &[usize]| inputs.normal(DType::F32, shape, 1.0);
    let args: Vec<Value> =
        [draw(&[parts, n])?, draw(&[n])?, draw(&[n])?, draw(&[n])?, draw(&[n])?].map(Value::Tensor).into();
    let before = [args[3].f32s(), args[4].f32s()];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let [partial, x, k] = [0, 1, 2].map(|i| args[i].f32s());
        let (want_x, want_k) = reference::weight_grad_reduce(&partial, &x, &k, &before[0], &before[1]);
        let close = Tolerance::CalcDiff(1e-10);
        vec![
            Comparison { output: "grad_x", verdict: compare(&args[3].f32s(), &want_x, close) },
            Comparison { output: "grad_k", verdict: compare(&args[4].f32s(), &want_k, close) },
        ]
    };
    Ok(Problem { kernel: Box::new(EngramWeightGrad::new(cfg)), args, work, verify: Box::new(verify) })
}

impl LibraryKernel for FusedEntry {
    fn info(&self) -> Info {
        Info {
            name: "engram_fused_weight",
            family: Family::Engram,
            summary: "product of the two norm weights",
            equation: "fused = weight_x weight_k",
            tolerance: "exact",
            source: "V4 specification 7; TileKernels engram",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ElementwiseConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(EngramFusedWeight::new(apply(ElementwiseConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case =
            |n: usize| Case::new(format!("n={n}"), ElementwiseConfig::default(), move |cfg| fused_problem(n, cfg));
        match scale {
            Scale::Small => vec![case(0), case(1), case(2050)],
            Scale::Representative => vec![case(4 * 7168)],
            Scale::Full => vec![case(4 * 4096)],
        }
    }
}

impl LibraryKernel for GradEntry {
    fn info(&self) -> Info {
        Info {
            name: "engram_weight_grad",
            family: Family::Engram,
            summary: "gradients of the two norm weights from parts of the fused weight's gradient",
            equation: "grad_x += weight_k sum_p partial[p], grad_k += weight_x sum_p partial[p]",
            tolerance: "calc_diff 1e-10",
            source: "V4 specification 7; TileKernels engram",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ColumnSumConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(EngramWeightGrad::new(apply(ColumnSumConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |parts: usize, n: usize| {
            let name = format!("parts={parts} n={n}");
            Case::new(name, ColumnSumConfig::default(), move |cfg| grad_problem(parts, n, cfg))
        };
        match scale {
            Scale::Small => vec![case(0, 5), case(1, 128), case(33, 300), case(300, 40)],
            Scale::Representative => vec![case(128, 4 * 7168)],
            Scale::Full => vec![case(64, 4 * 4096)],
        }
    }
}
