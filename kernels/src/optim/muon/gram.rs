//! Muon: symmetric products, of which only half is computed.

use super::MuonGemmConfig;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::gemm as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Tile sizes of [`muon_gram`], the orientation of its operand, and whether it adds a matrix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct GramConfig {
    /// Rows and columns of a tile.
    #[tune(64, 128)]
    pub tile: usize,
    #[tune(32, 64)]
    pub bk: usize,
    #[tune(2..=4)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// `x` lies as [K, N].
    pub transposed: bool,
    /// Add `beta D`.
    pub add: bool,
}

impl From<MuonGemmConfig> for GramConfig {
    fn from(cfg: MuonGemmConfig) -> GramConfig {
        let MuonGemmConfig { bm: tile, bk, stages, threads, .. } = cfg;
        GramConfig { tile, bk, stages, threads, transposed: false, add: false }
    }
}

impl Default for GramConfig {
    fn default() -> GramConfig {
        GramConfig::from(MuonGemmConfig::default())
    }
}

/// `C = alpha X X^T + beta D` of each matrix of a batch, with X [N, K] or, transposed, [K, N], and D symmetric; accumulated in fp32.
/// Tiles on and above the diagonal are computed and stored twice, the second time transposed.
///
/// `d` is read if the config says so and may be empty otherwise.
#[kernel(static_dims(x1, x2))]
pub fn muon_gram(
    t: T,
    #[dims(batch, x1, x2)] x: &Tensor<bf16, 3>,
    #[dims(batch, d1, d2)] d: &Tensor<bf16, 3>,
    alpha: Expr<f32>,
    beta: Expr<f32>,
    #[dims(batch, n, n)] c: &mut Tensor<bf16, 3>,
    #[comptime] cfg: GramConfig,
) {
    let GramConfig { tile, bk, transposed, .. } = cfg;
    let tiles = c.dim(1).ceil_div(tile);
    let k = x.dim(if transposed { 1 } else { 2 });
    let [i, j, b] = t.grid([tiles, tiles, c.dim(0)], cfg.threads);
    if i <= j {
        let shape = if transposed { [bk, tile] } else { [tile, bk] };
        let (rows, cols) = (t.shared::<bf16, 2>(shape), t.shared::<bf16, 2>(shape));
        let acc = t.fragment::<f32, 2>([tile, tile]);
        t.clear(acc);
        for step in t.pipelined(k.ceil_div(bk), cfg.stages) {
            let part = |tile_at: Idx| match transposed {
                true => x.at((b, step * bk, tile_at * tile)),
                false => x.at((b, tile_at * tile, step * bk)),
            };
            t.copy(part(i), rows);
            t.copy(part(j), cols);
            match transposed {
                true => t.gemm(rows.t(), cols, acc),
                false => t.gemm(rows, cols.t(), acc),
            }
        }
        for (r, s) in t.parallel((tile, tile)) {
            let product = acc[(r, s)] * alpha;
            acc[(r, s)] = match cfg.add {
                true => product + d[(b, i * tile + r, j * tile + s)].cast::<f32>() * beta,
                false => product,
            };
        }
        t.cast(acc, c.at((b, i * tile, j * tile)));
        if i < j {
            t.cast(acc.t(), c.at((b, j * tile, i * tile)));
        }
    }
}

/// The library's entry.
pub struct Entry;

fn problem(batch: usize, n: usize, k: usize, cfg: GramConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(21);
    let (alpha, beta) = (2.0315f32, -4.775f32);
    let x_shape = if cfg.transposed { [batch, k, n] } else { [batch, n, k] };
    let scale = (k.max(1) as f64).powf(-0.5);
    let half = inputs.normal(DType::BF16, &[batch, n, n], 1.0)?.to_f64_vec()?;
    // Element (r, s) of a symmetric matrix is that of (s, r).
    let symmetric: Vec<f64> = (0..batch * n * n)
        .map(|at| {
            let (b, r, s) = (at / (n * n), at / n % n, at % n);
            half[b * n * n + r.min(s) * n + r.max(s)]
        })
        .collect();
    let d = match cfg.add {
        true => DynTensor::from_f64(DType::BF16, &[batch, n, n], &symmetric)?,
        false => DynTensor::zeros(DType::BF16, &[batch, 0, 0])?,
    };
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &x_shape, scale)?),
        Value::Tensor(d),
        Value::Scalar(Const::f32(alpha)),
        Value::Scalar(Const::f32(beta)),
        Value::Tensor(output(DType::BF16, &[batch, n, n])?),
    ];
    // Half of the products.
    let work = Work::of(&args).flops((batch * n * (n + 1) * k) as f64);
    let verify = move |args: &[Value]| {
        let (x, d, c) = (args[0].f32s(), args[1].f32s(), args[4].f32s());
        let mut want = Vec::new();
        for b in 0..batch {
            let x = &x[b * n * k..(b + 1) * n * k];
            let (op_a, op_b) = match cfg.transposed {
                true => (reference::Op::T, reference::Op::N),
                false => (reference::Op::N, reference::Op::T),
            };
            let product = reference::Gemm { m: n, n, k, alpha: f64::from(alpha), a: x, op_a, b: x, op_b };
            want.extend(product.rows(&(0..n).collect::<Vec<_>>()));
        }
        for (want, d) in want.iter_mut().zip(&d) {
            *want += beta * d;
        }
        let bits = |x: &[f32], r: usize, s: usize| x[r * n + s].to_bits();
        let mirrored = c.chunks((n * n).max(1)).all(|c| (0..n).all(|r| (0..r).all(|s| bits(c, r, s) == bits(c, s, r))));
        let symmetric = [if mirrored { 1.0 } else { 0.0 }];
        vec![
            Comparison { output: "c", verdict: compare(&c, &bf16_round_all(&want), Tolerance::CalcDiff(1e-5)) },
            Comparison { output: "symmetric", verdict: compare(&symmetric, &[1.0], Tolerance::Exact) },
        ]
    };
    Ok(Problem { kernel: Box::new(MuonGram::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(batch: usize, n: usize, k: usize, cfg: GramConfig) -> Case {
    let layout = if cfg.transposed { "XtX" } else { "XXt" };
    let add = if cfg.add { " + D" } else { "" };
    Case::new(format!("batch={batch} n={n} k={k} {layout}{add}"), cfg, move |cfg| problem(batch, n, k, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "muon_gram",
            family: Family::Optim,
            summary: "Muon: batched symmetric product X X^T (half of the flops), with an added matrix",
            equation: "C = alpha X X^T + beta D",
            tolerance: "calc_diff 1e-5, exactly symmetric",
            source: "V4 specification 6",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(GramConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(MuonGram::new(apply(GramConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = GramConfig::default();
        let small = GramConfig { tile: 32, bk: 16, threads: 64, ..cfg };
        match scale {
            Scale::Small => vec![
                case(1, 0, 8, small),
                case(2, 1, 1, small),
                case(2, 70, 40, GramConfig { add: true, ..small }),
                case(1, 40, 33, GramConfig { transposed: true, ..small }),
            ],
            Scale::Representative => vec![case(1, 1024, 2048, cfg)],
            Scale::Full => vec![
                case(1, 2048, 512, GramConfig { transposed: true, ..cfg }),
                case(2, 512, 512, GramConfig { add: true, ..cfg }),
            ],
        }
    }
}
