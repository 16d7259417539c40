//! Muon: the last product of a Newton-Schulz iteration.

use super::MuonGemmConfig;
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::gemm as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// `C = P Q + beta D` of each matrix of a batch, P [M, K], Q [K, N], accumulated in fp32.
#[kernel(static_dims(k, n))]
pub fn muon_product(
    t: T,
    #[dims(batch, m, k)] p: &Tensor<bf16, 3>,
    #[dims(batch, k, n)] q: &Tensor<bf16, 3>,
    #[dims(batch, m, n)] d: &Tensor<bf16, 3>,
    beta: Expr<f32>,
    #[dims(batch, m, n)] c: &mut Tensor<bf16, 3>,
    #[comptime] cfg: MuonGemmConfig,
) {
    let MuonGemmConfig { bm, bn, bk, .. } = cfg;
    let [j, i, b] = t.grid([c.dim(2).ceil_div(bn), c.dim(1).ceil_div(bm), c.dim(0)], cfg.threads);
    let (p_s, q_s) = (t.shared::<bf16, 2>([bm, bk]), t.shared::<bf16, 2>([bk, bn]));
    let acc = t.fragment::<f32, 2>([bm, bn]);
    t.clear(acc);
    for step in t.pipelined(p.dim(2).ceil_div(bk), cfg.stages) {
        t.copy(p.at((b, i * bm, step * bk)), p_s);
        t.copy(q.at((b, step * bk, j * bn)), q_s);
        t.gemm(p_s, q_s, acc);
    }
    for (r, s) in t.parallel((bm, bn)) {
        acc[(r, s)] += d[(b, i * bm + r, j * bn + s)].cast::<f32>() * beta;
    }
    t.cast(acc, c.at((b, i * bm, j * bn)));
}

/// The library's entry.
pub struct Entry;

/// Rows of a large result that are compared.
const SAMPLED_ROWS: usize = 48;

fn problem(batch: usize, m: usize, n: usize, k: usize, cfg: MuonGemmConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(22);
    let beta = 3.4445f32;
    let scale = (k.max(1) as f64).powf(-0.5);
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[batch, m, k], scale)?),
        Value::Tensor(inputs.normal(DType::BF16, &[batch, k, n], 1.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[batch, m, n], 1.0)?),
        Value::Scalar(Const::f32(beta)),
        Value::Tensor(output(DType::BF16, &[batch, m, n])?),
    ];
    let work = Work::of(&args).flops(2.0 * (batch * m) as f64 * (n * k) as f64);
    let verify = move |args: &[Value]| {
        let (p, q, d, c) = (args[0].f32s(), args[1].f32s(), args[2].f32s(), args[4].f32s());
        let rows = sample_rows(m, SAMPLED_ROWS);
        let (mut want, mut got) = (Vec::new(), Vec::new());
        for b in 0..batch {
            let (a, b_matrix) = (&p[b * m * k..(b + 1) * m * k], &q[b * k * n..(b + 1) * k * n]);
            let (op_a, op_b) = (reference::Op::N, reference::Op::N);
            let product = reference::Gemm { m, n, k, alpha: 1.0, a, op_a, b: b_matrix, op_b }.rows(&rows);
            for (row, product) in rows.iter().zip(product.chunks(n.max(1))) {
                let at = (b * m + row) * n;
                want.extend(product.iter().zip(&d[at..]).map(|(x, d)| x + beta * d));
                got.extend_from_slice(&c[at..at + n]);
            }
        }
        let verdict = compare(&got, &bf16_round_all(&want), Tolerance::CalcDiff(1e-5));
        vec![Comparison { output: "c", verdict }]
    };
    Ok(Problem { kernel: Box::new(MuonProduct::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(batch: usize, m: usize, n: usize, k: usize, cfg: MuonGemmConfig) -> Case {
    Case::new(format!("batch={batch} m={m} n={n} k={k}"), cfg, move |cfg| problem(batch, m, n, k, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "muon_product",
            family: Family::Optim,
            summary: "Muon: batched product with an added matrix, the last step of a Newton-Schulz iteration",
            equation: "C = P Q + beta D",
            tolerance: "calc_diff 1e-5",
            source: "V4 specification 6",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(MuonGemmConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(MuonProduct::new(apply(MuonGemmConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = MuonGemmConfig::default();
        let small = MuonGemmConfig { bm: 32, bn: 32, bk: 16, threads: 64, ..cfg };
        match scale {
            Scale::Small => vec![case(1, 0, 8, 8, small), case(2, 1, 1, 1, small), case(2, 40, 70, 33, small)],
            Scale::Representative => vec![case(1, 1024, 2048, 1024, cfg)],
            Scale::Full => vec![case(1, 4096, 512, 512, cfg), case(2, 512, 1024, 512, cfg)],
        }
    }
}
