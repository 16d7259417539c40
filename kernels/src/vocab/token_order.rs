//! Tokens in the order of their ids, for sums over equal ids in a fixed order.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Ids that a thread reads at once.
const AT_ONCE: usize = 4;

/// Tile sizes of [`token_order`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct TokenOrderConfig {
    /// Tokens of a block.
    #[tune(8, 16, 32)]
    pub bt: usize,
    #[tune(128, 256, 512)]
    pub threads: usize,
}

impl Default for TokenOrderConfig {
    fn default() -> TokenOrderConfig {
        TokenOrderConfig { bt: 16, threads: 256 }
    }
}

/// The positions of the tokens, sorted by id and, among equal ids, by position.
///
/// Every block finds the ranks of its own tokens: how many ids are smaller, or equal and earlier. That is a comparison for each
/// pair of tokens, but no block waits for another.
#[kernel]
pub fn token_order(
    t: T,
    #[dims(tokens)] ids: &Tensor<i32, 1>,
    #[dims(tokens)] order: &mut Tensor<i32, 1>,
    #[comptime] cfg: TokenOrderConfig,
) {
    let TokenOrderConfig { bt, threads } = cfg;
    let tokens = ids.dim(0);
    let [b] = t.grid([tokens.ceil_div(bt)], threads);
    let first = b * bt;
    let (counts, ranks) = (t.fragment::<i32, 2>([bt, threads]), t.fragment::<i32, 1>([bt]));
    for thread in t.parallel(threads) {
        let count = t.local::<i32, 1>([bt]);
        let own: Vec<_> = (0..bt).map(|i| ids[first + i]).collect();
        let add = |i: usize, before: Expr<bool>| count.store(i, count[i] + select(before, 1, 0));
        (0..bt).for_each(|i| count.store(i, 0));
        // Of the tokens before this block's an equal one counts, of those behind it does not.
        let count_all = |from: Idx, to: Idx, counts: &dyn Fn(Expr<i32>, Expr<i32>) -> Expr<bool>| {
            for step in t.serial((to - from).max(0).ceil_div(AT_ONCE * threads)) {
                let place = |u: usize| from + (step * AT_ONCE + u) * threads + thread;
                let others: Vec<_> = (0..AT_ONCE).map(|u| (place(u) < to, ids[place(u)])).collect();
                for (exists, other) in others {
                    own.iter().enumerate().for_each(|(i, own)| add(i, exists & counts(other, *own)));
                }
            }
        };
        count_all(lit(0), first, &|other, own| cmp::le(&other, &own));
        count_all(first + bt, tokens, &|other, own| cmp::lt(&other, &own));
        if thread < bt {
            let (other, exists) = (ids[first + thread], first + thread < tokens);
            for (i, own) in own.iter().enumerate() {
                add(i, exists & (cmp::lt(&other, own) | (cmp::eq(&other, own) & cmp::lt(&thread, &i))));
            }
        }
        for i in 0..bt {
            counts[(i, thread)] = count[i];
        }
    }
    t.reduce_sum(counts, ranks, 1);
    for i in t.parallel(bt) {
        if first + i < tokens {
            order[ranks[i].to_index()] = (first + i).cast::<i32>();
        }
    }
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
    let cfg = TokenOrderConfig::default();
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
