//! Attention kernels, and what they share. May depend on the language and on the library's registry.

pub mod delta;
pub mod dkv;
pub mod dq;
pub mod flash;
pub mod head_sum;
mod problem;

use zellige::prelude::*;

/// Tile sizes of the dense attention kernels, and which keys and logits take part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct AttentionConfig {
    /// Queries of a tile.
    #[tune(32, 64, 128)]
    pub bm: usize,
    /// Keys of a tile.
    #[tune(32, 64, 128)]
    pub bn: usize,
    #[tune(1..=3)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
    /// Query `i` of S sees the keys `j <= i + N - S` only: the last query sees the last key.
    pub causal: bool,
    /// Every head has an extra logit without a value.
    pub sink: bool,
}

impl AttentionConfig {
    /// Tiles of the forward pass that fit registers and shared memory at a head dim.
    pub fn forward(d: usize) -> AttentionConfig {
        let (bm, bn) = match d {
            0..=128 => (128, 128),
            129..=256 => (128, 64),
            // Two warpgroups share the columns of 64 rows.
            _ => (64, 32),
        };
        AttentionConfig { bm, bn, stages: 2, threads: 256, causal: false, sink: false }
    }

    /// Tiles of [`attention_dq`](dq::attention_dq), which keeps `bm` queries.
    pub fn of_queries(d: usize) -> AttentionConfig {
        let (bm, bn, stages) = match d {
            0..=128 => (128, 64, 2),
            129..=256 => (128, 32, 2),
            // Two warpgroups share the columns of 64 rows.
            _ => (64, 32, 1),
        };
        AttentionConfig { bm, bn, stages, threads: 256, causal: false, sink: false }
    }

    /// Tiles of [`attention_dkv`](dkv::attention_dkv), which keeps `bn` keys and two gradients of them.
    pub fn of_keys(d: usize) -> AttentionConfig {
        let (bm, bn, stages) = match d {
            0..=128 => (64, 128, 2),
            129..=256 => (32, 64, 2),
            _ => (32, 32, 1),
        };
        AttentionConfig { bm, bn, stages, threads: 256, causal: false, sink: false }
    }
}

/// The packed positions that one sequence of a ragged batch owns.
#[derive(Clone, Copy)]
struct Segment {
    start: Idx,
    len: Idx,
}

impl Segment {
    /// Sequence `b` of a batch owns `bounds[b]..bounds[b + 1]`.
    fn of(bounds: &Tensor<i32, 1>, b: Idx) -> Segment {
        let start = bounds[b].to_index();
        Segment { start, len: bounds[b + 1].to_index() - start }
    }
}

/// Heads are dealt to groups evenly, or the kernel does not run.
#[tile]
fn check_groups(t: T, heads: usize, groups: usize, message: &str) {
    if groups == 0 || heads % groups != 0 {
        t.assert(Expr::from(false), message);
    }
}

/// What is wrong with heads that are not a multiple of the key heads.
const UNEVEN: &str = "the number of query heads is not a multiple of the number of key heads";

/// How many keys query `i` of a sequence sees.
fn visible(i: Idx, queries: Segment, keys: Segment, causal: bool) -> Idx {
    if causal { keys.len.min(i + 1 + keys.len - queries.len) } else { keys.len }
}

/// Sets the rows of some tiles from `valid` on to zero: they belong to another sequence, where a probability of zero would
/// not stop a NaN.
#[tile]
fn clear_rows_from<const N: usize>(t: T, tiles: [Shared<bf16, 2>; N], valid: Idx) {
    let [rows, cols] = tiles[0].shape();
    if valid < rows {
        for tile in tiles {
            for (r, c) in t.parallel((rows, cols)) {
                tile[(r, c)] = select(r < valid, tile[(r, c)], 0.0);
            }
        }
    }
}
