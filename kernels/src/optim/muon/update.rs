//! Muon: the weight update.

use crate::inputs::Inputs;
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::optim::ElementwiseConfig;
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::muon as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// `W = keep W - scale U` in place, with `keep = 1 - lr decay` and `scale = lr gamma sqrt(max(rows, cols))`.
#[kernel]
pub fn muon_update(
    t: T,
    #[dims(n)] update: &Tensor<bf16, 1>,
    keep: Expr<f32>,
    scale: Expr<f32>,
    #[dims(n)] weight: &mut Tensor<f32, 1>,
    #[comptime] cfg: ElementwiseConfig,
) {
    let [b] = t.grid([weight.dim(0).ceil_div(cfg.chunk)], cfg.threads);
    for i in t.parallel(cfg.chunk) {
        let at = b * cfg.chunk + i;
        weight[at] = weight[at] * keep - update[at].cast::<f32>() * scale;
    }
}

/// The library's entry.
pub struct Entry;

fn problem(rows: usize, cols: usize, cfg: ElementwiseConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(23);
    let muon = reference::Muon::v4(2e-4);
    let n = rows * cols;
    let update = inputs.normal(DType::BF16, &[n], 0.02)?;
    let weight = inputs.normal(DType::F32, &[n], 0.05)?;
    let want = muon.weight_step(&weight.to_f64_vec()?, &update.to_f64_vec()?, rows, cols);
    let want: Vec<f32> = want.iter().map(|&w| w as f32).collect();
    let scale = muon.learning_rate * muon.update_rms * (rows.max(cols) as f64).sqrt();
    let args = vec![
        Value::Tensor(update),
        Value::Scalar(Const::f32((1.0 - muon.learning_rate * muon.weight_decay) as f32)),
        Value::Scalar(Const::f32(scale as f32)),
        Value::Tensor(weight),
    ];
    let work = Work { flops: 0.0, bytes: 10.0 * n as f64 };
    let verify = move |args: &[Value]| {
        let exact = Tolerance::AbsRel { abs: 1e-8, rel: 1e-6 };
        vec![Comparison { output: "weight", verdict: compare(&args[3].f32s(), &want, exact) }]
    };
    Ok(Problem { kernel: Box::new(MuonUpdate::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(rows: usize, cols: usize) -> Case {
    let name = format!("rows={rows} cols={cols}");
    Case::new(name, ElementwiseConfig::default(), move |cfg| problem(rows, cols, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "muon_update",
            family: Family::Optim,
            summary: "Muon: weight update in place",
            equation: "W = W (1 - lr decay) - lr gamma sqrt(max(rows, cols)) U",
            tolerance: "rel 1e-6",
            source: "V4 specification 6",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ElementwiseConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(MuonUpdate::new(apply(ElementwiseConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(0, 4), case(1, 1), case(70, 40)],
            Scale::Representative => vec![case(2048, 4096)],
            Scale::Full => vec![case(3072, 7168)],
        }
    }
}
