//! Muon: momentum, and the sum of squares of the matrix to orthogonalise.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::optim::ElementwiseConfig;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// `M = mu M + G` in place, and parts of the sum of squares of `X = mu M + G` (with the new M) of each matrix.
///
/// Part `p` of P takes every P-th chunk from `p` on: the sum is split as `squares` says, whatever the device.
#[kernel]
pub fn muon_momentum(
    t: T,
    #[dims(batch, n)] gradient: &Tensor<f32, 2>,
    mu: Expr<f32>,
    #[dims(batch, n)] momentum: &mut Tensor<f32, 2>,
    #[dims(batch, parts)] squares: &mut Tensor<f32, 2>,
    #[comptime] cfg: ElementwiseConfig,
) {
    let (chunk, parts) = (cfg.chunk, squares.dim(1));
    let [part, b] = t.grid([parts, momentum.dim(0)], cfg.threads);
    let (x, sum) = (t.fragment::<f32, 2>([1, chunk]), t.fragment::<f32, 1>([1]));
    t.clear(x);
    for step in t.serial(momentum.dim(1).ceil_div(parts * chunk)) {
        let first = (step * parts + part) * chunk;
        for i in t.parallel(chunk) {
            let at = (b, first + i);
            let g = gradient[at];
            let m = momentum[at] * mu + g;
            momentum[at] = m;
            let nesterov = m * mu + g;
            x[(0, i)] = nesterov.mul_add(nesterov, x[(0, i)]);
        }
    }
    t.reduce_sum(x, sum, 1);
    squares[(b, part)] = sum[0];
}

/// The library's entry.
pub struct Entry;

fn problem(batch: usize, n: usize, parts: usize, cfg: ElementwiseConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(19);
    let mu = 0.95f32;
    let gradient = inputs.normal(DType::F32, &[batch, n], 0.1)?;
    let momentum = inputs.normal(DType::F32, &[batch, n], 1.0)?;
    let before = momentum.to_f64_vec()?;
    let args = vec![
        Value::Tensor(gradient),
        Value::Scalar(Const::f32(mu)),
        Value::Tensor(momentum),
        Value::Tensor(output(DType::F32, &[batch, parts])?),
    ];
    let work = Work { flops: 0.0, bytes: 12.0 * (batch * n) as f64 };
    let verify = move |args: &[Value]| {
        let g = args[0].f32s();
        let mix =
            |m: &[f64]| -> Vec<f64> { m.iter().zip(&g).map(|(m, &g)| f64::from(mu) * m + f64::from(g)).collect() };
        let m = mix(&before);
        let x = mix(&m);
        let total = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>() as f32;
        let want: Vec<f32> = (0..batch).map(|b| total(&x[b * n..(b + 1) * n])).collect();
        let squares = args[3].f32s();
        let got: Vec<f32> = (0..batch).map(|b| squares[b * parts..(b + 1) * parts].iter().sum()).collect();
        let m: Vec<f32> = m.iter().map(|&m| m as f32).collect();
        let exact = Tolerance::AbsRel { abs: 1e-7, rel: 1e-6 };
        vec![
            Comparison { output: "momentum", verdict: compare(&args[2].f32s(), &m, exact) },
            Comparison { output: "squares", verdict: compare(&got, &want, Tolerance::AbsRel { abs: 0.0, rel: 1e-5 }) },
        ]
    };
    Ok(Problem { kernel: Box::new(MuonMomentum::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(batch: usize, n: usize, parts: usize) -> Case {
    let name = format!("batch={batch} n={n} parts={parts}");
    Case::new(name, ElementwiseConfig::default(), move |cfg| problem(batch, n, parts, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "muon_momentum",
            family: Family::Optim,
            summary: "Muon: momentum in place, and the Nesterov matrix's sum of squares in fixed parts",
            equation: "M = mu M + G, squares = sum (mu M + G)^2",
            tolerance: "momentum: rel 1e-6; squares: rel 1e-5",
            source: "V4 specification 6",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ElementwiseConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(MuonMomentum::new(apply(ElementwiseConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(1, 0, 2), case(2, 5000, 1), case(3, 100, 4), case(1, 9000, 2)],
            Scale::Representative => vec![case(1, 2048 * 4096, 512)],
            Scale::Full => vec![case(1, 3072 * 7168, 64), case(4, 1024 * 1024, 64)],
        }
    }
}
