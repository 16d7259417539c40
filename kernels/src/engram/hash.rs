//! Engram: hashes of n-grams as rows of the embedding tables.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::engram as reference;
use crate::reference::metrics::{Tolerance, compare};
use rand::Rng;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`engram_hash`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct HashConfig {
    /// Tokens of a block.
    #[tune(64, 128, 256)]
    pub tokens: usize,
    #[tune(64, 128, 256)]
    pub threads: usize,
}

impl Default for HashConfig {
    fn default() -> HashConfig {
        HashConfig { tokens: 128, threads: 128 }
    }
}

/// For each layer, token, n-gram length n from 2 to N and table of that length:
/// `rows = (XOR over i < n of ids[i] multipliers[i]) mod vocab_size + offset`, products wrapping in 64 bits, the remainder not negative.
///
/// `ids` holds the token and those before it, nearest first. The `columns` are N - 1 groups of tables, one group for each n; vocabulary
/// sizes are positive.
#[kernel(static_dims(ngram, columns))]
pub fn engram_hash(
    t: T,
    #[dims(tokens, ngram)] ids: &Tensor<i32, 2>,
    #[dims(layers, ngram)] multipliers: &Tensor<i64, 2>,
    #[dims(layers, columns)] vocab_sizes: &Tensor<i32, 2>,
    #[dims(layers, columns)] offsets: &Tensor<i32, 2>,
    #[dims(layers, tokens, columns)] rows: &mut Tensor<i32, 3>,
    #[comptime] cfg: HashConfig,
) {
    let (ngram, columns) = (ids.static_dim(1), offsets.static_dim(1));
    let lengths = ngram.saturating_sub(1);
    let tables = columns.checked_div(lengths).unwrap_or(0);
    t.assert((tables * lengths == columns).into(), "engram_hash: the columns are not N - 1 groups of tables");
    let [b, layer] = t.grid([ids.dim(0).ceil_div(cfg.tokens), rows.dim(0)], cfg.threads);
    for i in t.parallel(cfg.tokens) {
        let token = b * cfg.tokens + i;
        let product = |n: usize| ids[(token, n)].cast::<i64>() * multipliers[(layer, n)];
        let mut hash = product(0);
        for n in 1..=lengths {
            hash = hash ^ product(n);
            for column in (n - 1) * tables..n * tables {
                let size = vocab_sizes[(layer, column)].cast::<i64>();
                let rest = hash % size;
                let row = select(rest < 0, rest + size, rest).cast::<i32>();
                rows[(layer, token, column)] = row + offsets[(layer, column)];
            }
        }
    }
}

/// The library's entry.
pub struct Entry;

fn problem(tokens: usize, shape: reference::HashShape, cfg: HashConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(24);
    let (layers, ngram, columns) = (shape.layers, shape.max_ngram, shape.columns());
    let ids: Vec<i32> = inputs.draw(tokens * ngram, |rng| rng.random_range(0..129_280));
    let multipliers: Vec<i64> = inputs.draw(layers * ngram, |rng| rng.random());
    let vocab_sizes: Vec<i32> = inputs.draw(layers * columns, |rng| rng.random_range(1..1_000_003));
    let offsets = reference::hash_offsets(&vocab_sizes, shape);
    let rows = reference::hash(&ids, &multipliers, &vocab_sizes, &offsets, shape);
    let want: Vec<f32> = rows.iter().map(|&row| row as f32).collect();
    let args = vec![
        Value::Tensor(DynTensor::from_slice(&[tokens, ngram], &ids)?),
        Value::Tensor(DynTensor::from_slice(&[layers, ngram], &multipliers)?),
        Value::Tensor(DynTensor::from_slice(&[layers, columns], &vocab_sizes)?),
        Value::Tensor(DynTensor::from_slice(&[layers, columns], &offsets)?),
        Value::Tensor(output(DType::I32, &[layers, tokens, columns])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        vec![Comparison { output: "rows", verdict: compare(&args[4].f32s(), &want, Tolerance::Exact) }]
    };
    Ok(Problem { kernel: Box::new(EngramHash::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(tokens: usize, layers: usize, max_ngram: usize, tables: usize) -> Case {
    let name = format!("tokens={tokens} layers={layers} ngram={max_ngram} tables={tables}");
    let shape = reference::HashShape { layers, max_ngram, tables };
    Case::new(name, HashConfig::default(), move |cfg| problem(tokens, shape, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "engram_hash",
            family: Family::Engram,
            summary: "n-gram hashes as rows of the embedding tables",
            equation: "row = (XOR_i ids[i] multipliers[i]) mod vocab + offset",
            tolerance: "exact",
            source: "V4 specification 7; TileKernels engram",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(HashConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(EngramHash::new(apply(HashConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(0, 1, 2, 1), case(1, 2, 3, 4), case(130, 2, 4, 2), case(5, 1, 2, 8)],
            Scale::Representative => vec![case(8192, 2, 3, 8)],
            Scale::Full => vec![case(16384, 4, 4, 8)],
        }
    }
}
