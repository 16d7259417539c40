//! AdamW with decoupled weight decay.

use super::ElementwiseConfig;
use crate::inputs::Inputs;
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::muon as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`, `w = w (1 - lr decay) - lr (m / bias1) / (sqrt(v / bias2) + eps)`, in place
/// and in fp32. The bias corrections `1 - beta^step` are computed by the caller, who knows the step.
#[kernel]
pub fn adamw(
    t: T,
    #[dims(n)] gradient: &Tensor<f32, 1>,
    lr: Expr<f32>,
    beta1: Expr<f32>,
    beta2: Expr<f32>,
    eps: Expr<f32>,
    decay: Expr<f32>,
    bias1: Expr<f32>,
    bias2: Expr<f32>,
    #[dims(n)] weight: &mut Tensor<f32, 1>,
    #[dims(n)] first: &mut Tensor<f32, 1>,
    #[dims(n)] second: &mut Tensor<f32, 1>,
    #[comptime] cfg: ElementwiseConfig,
) {
    let [b] = t.grid([weight.dim(0).ceil_div(cfg.chunk)], cfg.threads);
    for i in t.parallel(cfg.chunk) {
        let at = b * cfg.chunk + i;
        let g = gradient[at];
        let m = first[at] * beta1 + g * (1.0 - beta1);
        let v = second[at] * beta2 + g * g * (1.0 - beta2);
        let update = (m / bias1) / ((v / bias2).sqrt() + eps);
        first[at] = m;
        second[at] = v;
        weight[at] = weight[at] * (1.0 - lr * decay) - lr * update;
    }
}

/// The library's entry.
pub struct Entry;

/// Moments and weights are differences of terms below 0.1, whose rounding to fp32 is worth up to 4e-9.
const STEP: Tolerance = Tolerance::AbsRel { abs: 5e-9, rel: 1e-5 };

fn problem(n: usize, step: i32, cfg: ElementwiseConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(17);
    // The constants as the kernel gets them.
    let as_given = |v: f64| f64::from(v as f32);
    let v4 = reference::AdamW::v4(2.7e-4);
    let reference = reference::AdamW {
        learning_rate: as_given(v4.learning_rate),
        beta1: as_given(v4.beta1),
        beta2: as_given(v4.beta2),
        eps: as_given(v4.eps),
        weight_decay: as_given(v4.weight_decay),
    };
    let gradient = inputs.normal(DType::F32, &[n], 0.02)?;
    let weight = inputs.normal(DType::F32, &[n], 0.05)?;
    let first = inputs.normal(DType::F32, &[n], if step == 1 { 0.0 } else { 0.01 })?;
    let second = inputs.uniform(DType::F32, &[n], 0.0, if step == 1 { 1e-30 } else { 1e-3 })?;
    let f64s = |t: &DynTensor| t.to_f64_vec();
    let (mut w, mut m, mut v) = (f64s(&weight)?, f64s(&first)?, f64s(&second)?);
    reference.update(&mut w, &mut m, &mut v, &f64s(&gradient)?, step);
    let bias = |beta: f64| 1.0 - beta.powi(step);
    let scalars = [
        reference.learning_rate,
        reference.beta1,
        reference.beta2,
        reference.eps,
        reference.weight_decay,
        bias(reference.beta1),
        bias(reference.beta2),
    ];
    let mut args = vec![Value::Tensor(gradient)];
    args.extend(scalars.map(|s| Value::Scalar(Const::f32(s as f32))));
    args.extend([weight, first, second].map(Value::Tensor));
    let work = Work { flops: 0.0, bytes: 28.0 * n as f64 };
    let verify = move |args: &[Value]| {
        [("weight", &w), ("first", &m), ("second", &v)]
            .iter()
            .zip(&args[8..])
            .map(|((output, want), got)| {
                let want: Vec<f32> = want.iter().map(|&x| x as f32).collect();
                Comparison { output, verdict: compare(&got.f32s(), &want, STEP) }
            })
            .collect()
    };
    Ok(Problem { kernel: Box::new(Adamw::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(n: usize, step: i32) -> Case {
    let name = format!("n={n} step={step}");
    Case::new(name, ElementwiseConfig::default(), move |cfg| problem(n, step, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "adamw",
            family: Family::Optim,
            summary: "AdamW step in place, for embedding, head, norms and hyper-connection scalars",
            equation: "w = w (1 - lr decay) - lr mh / (sqrt(vh) + eps)",
            tolerance: "abs 5e-9 or rel 1e-5",
            source: "V4 specification 6; Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ElementwiseConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(Adamw::new(apply(ElementwiseConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(0, 1), case(1, 1), case(2048, 2), case(5000, 100)],
            Scale::Representative => vec![case(1 << 24, 10)],
            Scale::Full => vec![case(7168 * 4000, 1000)],
        }
    }
}
