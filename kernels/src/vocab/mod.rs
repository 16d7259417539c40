//! Both ends of the model, where the vocabulary is: embedding and losses over the logits. May depend on the language and
//! on the library's registry.

pub mod cross_entropy;
pub mod cross_entropy_backward;
pub mod embedding;
pub mod embedding_backward;
pub mod reverse_kl;
pub mod sampling_topk;
pub mod token_order;

use zellige::prelude::*;

/// Tile sizes of the losses over the vocabulary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct VocabConfig {
    /// Rows of a block.
    #[tune(1, 2, 4, 8)]
    pub rows: usize,
    /// Logits of a step.
    #[tune(512, 1024, 2048, 4096)]
    pub cols: usize,
    #[tune(1..=3)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for VocabConfig {
    fn default() -> VocabConfig {
        VocabConfig { rows: 2, cols: 4096, stages: 2, threads: 256 }
    }
}

/// Sets the columns of a tile from `valid` on: they lie beyond the vocabulary.
#[tile]
fn fill_columns_from(t: T, tile: Fragment<f32, 2>, valid: Idx, value: f32) {
    let [rows, cols] = tile.shape();
    if valid < cols {
        for (r, c) in t.parallel((rows, cols)) {
            tile[(r, c)] = select(c < valid, tile[(r, c)], value);
        }
    }
}
