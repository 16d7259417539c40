//! Embedding lookup.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::embedding as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`embedding`] and [`embedding_backward`](super::embedding_backward::embedding_backward).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct EmbeddingConfig {
    /// Tokens of a block.
    #[tune(4, 8, 16)]
    pub tokens: usize,
    /// Channels of a block.
    #[tune(256, 512, 1024)]
    pub cols: usize,
    #[tune(64, 128)]
    pub threads: usize,
}

impl Default for EmbeddingConfig {
    fn default() -> EmbeddingConfig {
        EmbeddingConfig { tokens: 8, cols: 1024, threads: 128 }
    }
}

/// `out[t] = table[ids[t]]`; a negative id, or one beyond the table, gives zeros.
#[kernel(static_dims(dim))]
pub fn embedding<E: Element>(
    t: T,
    #[dims(tokens)] ids: &Tensor<i32, 1>,
    #[dims(vocab, dim)] table: &Tensor<E, 2>,
    #[dims(tokens, dim)] out: &mut Tensor<E, 2>,
    #[comptime] cfg: EmbeddingConfig,
) {
    let EmbeddingConfig { tokens, cols, threads } = cfg;
    let [b, c] = t.grid([ids.dim(0).ceil_div(tokens), table.dim(1).ceil_div(cols)], threads);
    let (rows, tile) = (t.fragment::<i32, 1>([tokens]), t.shared::<E, 2>([tokens, cols]));
    t.copy(ids.at(b * tokens), rows);
    t.gather(table.at((0, c * cols)), rows, tile);
    t.copy(tile, out.at((b * tokens, c * cols)));
}

/// The library's entry.
pub struct Entry;

fn launcher(dtype: DType, cfg: EmbeddingConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    match dtype {
        DType::BF16 => Ok(Box::new(Embedding::<bf16>::new(cfg))),
        DType::F32 => Ok(Box::new(Embedding::<f32>::new(cfg))),
        _ => Err(ProblemError::Unsupported(format!("no embedding of {dtype}; there is bf16 and f32"))),
    }
}

fn problem(
    tokens: usize,
    vocab: usize,
    dim: usize,
    dtype: DType,
    cfg: EmbeddingConfig,
) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(10);
    let args = vec![
        // -1 is a padding slot.
        Value::Tensor(inputs.integers(DType::I32, &[tokens], -1, vocab as i64)?),
        Value::Tensor(inputs.normal(dtype, &[vocab, dim], 1.0)?),
        Value::Tensor(output(dtype, &[tokens, dim])?),
    ];
    let work = Work { flops: 0.0, bytes: 2.0 * dtype.bytes_for(tokens * dim) as f64 };
    let verify = move |args: &[Value]| {
        let ids: Vec<i32> = args[0].f32s().iter().map(|&id| id as i32).collect();
        let want = reference::embedding(&args[1].f32s(), &ids, dim);
        vec![Comparison { output: "out", verdict: compare(&args[2].f32s(), &want, Tolerance::Exact) }]
    };
    Ok(Problem { kernel: launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
}

fn case(tokens: usize, vocab: usize, dim: usize, dtype: DType) -> Case {
    let name = format!("tokens={tokens} vocab={vocab} dim={dim} {dtype}");
    Case::new(name, EmbeddingConfig::default(), move |cfg| problem(tokens, vocab, dim, dtype, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "embedding",
            family: Family::Vocab,
            summary: "embedding lookup",
            equation: "out[t] = table[ids[t]]",
            tolerance: "exact",
            source: "V4 specification 7",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(EmbeddingConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let dtype = dtypes.get("table").copied().unwrap_or(DType::BF16);
        launcher(dtype, apply(EmbeddingConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![
                case(0, 5, 64, DType::BF16),
                case(1, 1, 1030, DType::BF16),
                case(19, 50, 100, DType::F32),
                case(33, 300, 576, DType::BF16),
            ],
            Scale::Representative => vec![case(4096, 16160, 7168, DType::BF16)],
            Scale::Full => vec![case(8192, 16160, 4096, DType::BF16), case(1, 129_280, 256, DType::F32)],
        }
    }
}
