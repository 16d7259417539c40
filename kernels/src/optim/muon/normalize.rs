//! Muon: the matrix to orthogonalise, divided by its Frobenius norm.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::norm::BF16_STEP;
use crate::optim::ElementwiseConfig;
use crate::reference::codec::bf16_round_all;
use crate::reference::metrics::compare;
use crate::reference::muon::unit_frobenius;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// `Y = X / |X|` in bf16 with `X = mu M + G`, from the parts of `|X|^2` that [`muon_momentum`](super::momentum::muon_momentum) left; a
/// zero X stays zero.
#[kernel(static_dims(parts))]
pub fn muon_normalize(
    t: T,
    #[dims(batch, n)] gradient: &Tensor<f32, 2>,
    #[dims(batch, n)] momentum: &Tensor<f32, 2>,
    #[dims(batch, parts)] squares: &Tensor<f32, 2>,
    mu: Expr<f32>,
    #[dims(batch, n)] y: &mut Tensor<bf16, 2>,
    #[comptime] cfg: ElementwiseConfig,
) {
    let (chunk, parts) = (cfg.chunk, squares.static_dim(1));
    let [c, b] = t.grid([y.dim(1).ceil_div(chunk), y.dim(0)], cfg.threads);
    let (of_parts, sum) = (t.fragment::<f32, 2>([1, parts]), t.fragment::<f32, 1>([1]));
    t.copy(squares.at((b, 0)), of_parts);
    t.reduce_sum(of_parts, sum, 1);
    let total = sum[0];
    let scale = select(total == 0.0, lit::<f32>(0.0), total.rsqrt());
    for i in t.parallel(chunk) {
        let at = (b, c * chunk + i);
        y[at] = ((momentum[at] * mu + gradient[at]) * scale).cast();
    }
}

/// The library's entry.
pub struct Entry;

fn problem(batch: usize, n: usize, parts: usize, cfg: ElementwiseConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(20);
    let mu = 0.95f32;
    let gradient = inputs.normal(DType::F32, &[batch, n], 0.1)?;
    let momentum = inputs.normal(DType::F32, &[batch, n], 1.0)?;
    // The last matrix pretends to be zero.
    let scale = move |b: usize| if batch > 1 && b == batch - 1 { 0.0 } else { 1.0 };
    let matrix = move |gradient: &DynTensor, momentum: &DynTensor| -> Result<Vec<f64>, ProblemError> {
        let (g, m) = (gradient.to_f64_vec()?, momentum.to_f64_vec()?);
        Ok(g.iter().zip(m).enumerate().map(|(i, (g, m))| scale(i / n) * (f64::from(mu) * m + g)).collect())
    };
    // Any split of the sum of squares will do.
    let x = matrix(&gradient, &momentum)?;
    let squares: Vec<f64> = (0..batch)
        .flat_map(|b| {
            let total: f64 = x[b * n..(b + 1) * n].iter().map(|x| x * x).sum();
            std::iter::repeat_n(total / parts as f64, parts)
        })
        .collect();
    let args = vec![
        Value::Tensor(gradient),
        Value::Tensor(momentum),
        Value::Tensor(DynTensor::from_f64(DType::F32, &[batch, parts], &squares)?),
        Value::Scalar(Const::f32(mu)),
        Value::Tensor(output(DType::BF16, &[batch, n])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let (Value::Tensor(gradient), Value::Tensor(momentum)) = (&args[0], &args[1]) else {
            unreachable!("built as tensors above")
        };
        let x = matrix(gradient, momentum).expect("nobody writes the tensors now");
        let want: Vec<f32> =
            if n == 0 { vec![] } else { x.chunks(n).flat_map(unit_frobenius).map(|x| x as f32).collect() };
        let want = bf16_round_all(&want);
        // A zero matrix of zeros with signs.
        let got: Vec<f32> = args[4].f32s().iter().map(|&y| if y == 0.0 { 0.0 } else { y }).collect();
        vec![Comparison { output: "y", verdict: compare(&got, &want, BF16_STEP) }]
    };
    Ok(Problem { kernel: Box::new(MuonNormalize::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(batch: usize, n: usize, parts: usize) -> Case {
    let name = format!("batch={batch} n={n} parts={parts}");
    Case::new(name, ElementwiseConfig::default(), move |cfg| problem(batch, n, parts, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "muon_normalize",
            family: Family::Optim,
            summary: "Muon: Nesterov matrix divided by its Frobenius norm, in bf16",
            equation: "Y = (mu M + G) / |mu M + G|",
            tolerance: "a bf16 step (rel 1/128), cos 1e-6",
            source: "V4 specification 6",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ElementwiseConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(MuonNormalize::new(apply(ElementwiseConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(1, 0, 2), case(1, 5000, 1), case(3, 100, 64)],
            Scale::Representative => vec![case(1, 2048 * 4096, 512)],
            Scale::Full => vec![case(1, 3072 * 7168, 64)],
        }
    }
}
