//! The norms at the entrance of a multi-token-prediction block, in one pass.

use super::{BF16_STEP, row_rstd, rows_for};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::metrics::compare;
use crate::reference::norm as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Tile sizes of [`mtp_input_norm`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct MtpInputConfig {
    /// Tokens of a block.
    #[tune(1, 2, 4, 8)]
    pub rows: usize,
    #[tune(64, 128, 256)]
    pub threads: usize,
    /// The embedding of the first token of a sequence, which has no predecessor, counts as zero.
    pub masked: bool,
}

impl Default for MtpInputConfig {
    fn default() -> MtpInputConfig {
        MtpInputConfig { rows: 1, threads: 256, masked: true }
    }
}

/// `e = w_e * embedding * rstd` and, stream by stream, `h_j = w_h * X_j * rstd_j`, with `rstd = 1 / sqrt(mean(x^2) + eps)` of each
/// vector, in fp32, rounded once: what the projections of an MTP block read. With `cfg.masked` `e` is zero where `positions`
/// is 0; otherwise `positions` may be empty.
#[kernel(static_dims(n, dim))]
pub fn mtp_input_norm(
    t: T,
    #[dims(tokens, dim)] embedding: &Tensor<bf16, 2>,
    #[dims(tokens, n, dim)] x: &Tensor<bf16, 3>,
    #[dims(positions)] positions: &Tensor<i32, 1>,
    #[dims(dim)] embedding_weight: &Tensor<f32, 1>,
    #[dims(dim)] weight: &Tensor<f32, 1>,
    eps: Expr<f32>,
    #[dims(tokens, dim)] e: &mut Tensor<bf16, 2>,
    #[dims(tokens, n, dim)] h: &mut Tensor<bf16, 3>,
    #[comptime] cfg: MtpInputConfig,
) {
    let (rows, n, dim) = (cfg.rows, x.static_dim(1), x.static_dim(2));
    // Vector 0 of a token is its embedding, vector 1 + j its stream j.
    let [v, b] = t.grid((n + 1, x.dim(0).ceil_div(rows)), cfg.threads);
    let first = b * rows;
    let tile = t.fragment::<f32, 2>([rows, dim]);
    if v == 0 {
        t.cast(embedding.at((first, 0)), tile);
        let rstd = row_rstd(t, tile, eps);
        for (r, c) in t.parallel((rows, dim)) {
            let y = tile[(r, c)] * rstd[r] * embedding_weight[c];
            tile[(r, c)] = if cfg.masked { select(positions[first + r] == 0, 0.0, y) } else { y };
        }
        t.cast(tile, e.at((first, 0)));
    } else {
        t.cast(x.at((first, v - 1, 0)).axes([0, 2]), tile);
        let rstd = row_rstd(t, tile, eps);
        for (r, c) in t.parallel((rows, dim)) {
            tile[(r, c)] *= rstd[r] * weight[c];
        }
        t.cast(tile, h.at((first, v - 1, 0)).axes([0, 2]));
    }
}

/// The library's entry.
pub struct Entry;

/// Tokens of a large problem that are compared.
const SAMPLED_TOKENS: usize = 64;

fn problem(tokens: usize, n: usize, dim: usize, cfg: MtpInputConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(23);
    // Three sequences.
    let positions: Vec<i32> = (0..tokens).map(|t| (t % tokens.div_ceil(3).max(1)) as i32).collect();
    let positions = if cfg.masked { positions } else { Vec::new() };
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[tokens, dim], 0.05)?),
        Value::Tensor(inputs.normal(DType::BF16, &[tokens, n, dim], 2.0)?),
        Value::Tensor(DynTensor::from_slice::<i32>(&[positions.len()], &positions)?),
        Value::Tensor(inputs.normal(DType::F32, &[dim], 1.0)?),
        Value::Tensor(inputs.normal(DType::F32, &[dim], 1.0)?),
        Value::Scalar(Const::f32(reference::EPS as f32)),
        Value::Tensor(output(DType::BF16, &[tokens, dim])?),
        Value::Tensor(output(DType::BF16, &[tokens, n, dim])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let rows = sample_rows(tokens, SAMPLED_TOKENS);
        let take = |i: usize, width: usize| {
            let all = args[i].f32s();
            rows.iter().flat_map(|r| all[r * width..(r + 1) * width].to_vec()).collect::<Vec<f32>>()
        };
        let norm = |x: &[f32], weight: &[f32]| {
            bf16_round_all(&reference::rms_norm(x, Some(weight), x.len() / dim, dim, reference::EPS).y)
        };
        let mut e = norm(&take(0, dim), &args[3].f32s());
        for (row, e) in rows.iter().zip(e.chunks_mut(dim)) {
            if cfg.masked && positions[*row] == 0 {
                e.fill(0.0);
            }
        }
        let h = norm(&take(1, n * dim), &args[4].f32s());
        vec![
            Comparison { output: "e", verdict: compare(&take(6, dim), &e, BF16_STEP) },
            Comparison { output: "h", verdict: compare(&take(7, n * dim), &h, BF16_STEP) },
        ]
    };
    Ok(Problem { kernel: Box::new(MtpInputNorm::new(cfg)), args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "mtp_input_norm",
            family: Family::Norm,
            summary: "RMSNorms of the embedding and of every stream at the entrance of an MTP block",
            equation: "e = w_e * emb / rms(emb), 0 at position 0;  h_j = w_h * X_j / rms(X_j)",
            tolerance: "a bf16 step (rel 1/128), cos 1e-6",
            source: "V4 specification 2.1 (MTP input), appendix a 59; vLLM fused_mtp_input_rmsnorm",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(MtpInputConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(MtpInputNorm::new(apply(MtpInputConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, n: usize, dim: usize, masked: bool| {
            let cfg = MtpInputConfig { rows: rows_for(8192, dim).min(8), masked, ..MtpInputConfig::default() };
            let name = format!("tokens={tokens} n={n} d={dim}{}", if masked { "" } else { " unmasked" });
            Case::new(name, cfg, move |cfg| problem(tokens, n, dim, cfg))
        };
        match scale {
            Scale::Small => vec![
                case(0, 4, 64, true),
                case(1, 4, 576, true),
                case(19, 4, 72, true),
                case(7, 2, 100, false),
                case(3, 1, 4096, true),
            ],
            Scale::Representative => vec![case(1024, 4, 7168, true)],
            Scale::Full => vec![case(4096, 4, 7168, true), case(4096, 4, 4096, true), case(1, 4, 7168, true)],
        }
    }
}
