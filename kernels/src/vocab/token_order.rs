//! Tokens in the order of their ids, for sums over equal ids in a fixed order.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// How many tokens [`token_order`] can sort.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct TokenOrderConfig {
    /// Most tokens; a power of two.
    pub capacity: usize,
    #[tune(256, 512, 1024)]
    pub threads: usize,
}

impl TokenOrderConfig {
    /// Room for so many tokens.
    pub fn for_tokens(tokens: usize) -> TokenOrderConfig {
        TokenOrderConfig { capacity: tokens.next_power_of_two().max(64), threads: 256 }
    }
}

impl Default for TokenOrderConfig {
    fn default() -> TokenOrderConfig {
        TokenOrderConfig::for_tokens(8192)
    }
}

/// The positions of the tokens, sorted by id and, among equal ids, by position. One block sorts them all.
#[kernel]
pub fn token_order(
    t: T,
    #[dims(tokens)] ids: &Tensor<i32, 1>,
    #[dims(tokens)] order: &mut Tensor<i32, 1>,
    #[comptime] cfg: TokenOrderConfig,
) {
    let n = cfg.capacity;
    t.assert(ids.dim(0) <= n, "token_order: more tokens than the config's `capacity`");
    let [_] = t.grid([1], cfg.threads);
    let (keys, positions) = (t.shared::<i32, 1>([n]), t.shared::<i32, 1>([n]));
    for i in t.parallel(n) {
        keys[i] = select(i < ids.dim(0), ids[i], i32::MAX);
        positions[i] = i.cast();
    }
    t.sort_pairs(keys, positions, false);
    t.copy(positions, order.at(0));
}

/// The library's entry.
pub struct Entry;

fn problem(tokens: usize, vocab: usize, cfg: TokenOrderConfig) -> Result<Problem, ProblemError> {
    let args = vec![
        Value::Tensor(Inputs::new(11).integers(DType::I32, &[tokens], -1, vocab as i64)?),
        Value::Tensor(output(DType::I32, &[tokens])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let ids: Vec<i32> = args[0].f32s().iter().map(|&id| id as i32).collect();
        let mut want: Vec<usize> = (0..tokens).collect();
        want.sort_by_key(|&t| ids[t]);
        let want: Vec<f32> = want.iter().map(|&t| t as f32).collect();
        vec![Comparison { output: "order", verdict: compare(&args[1].f32s(), &want, Tolerance::Exact) }]
    };
    Ok(Problem { kernel: Box::new(TokenOrder::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(tokens: usize, vocab: usize) -> Case {
    let cfg = TokenOrderConfig::for_tokens(tokens);
    Case::new(format!("tokens={tokens} vocab={vocab}"), cfg, move |cfg| problem(tokens, vocab, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "token_order",
            family: Family::Vocab,
            summary: "stable order of tokens by id, for deterministic scatter-adds",
            equation: "order = stable argsort(ids)",
            tolerance: "exact",
            source: "V4 specification 7 (embedding scatter-add gradient)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(TokenOrderConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(TokenOrder::new(apply(TokenOrderConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(0, 5), case(1, 5), case(77, 10), case(128, 1000)],
            Scale::Representative => vec![case(4096, 129_280)],
            Scale::Full => vec![case(8192, 129_280)],
        }
    }
}
