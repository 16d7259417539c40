//! Optimiser steps. May depend on the language and on the library's registry.

pub mod adamw;
pub mod muon;

use zellige::prelude::*;

/// Tile sizes of the element-wise kernels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct ElementwiseConfig {
    /// Elements of a tile.
    #[tune(512, 1024, 2048, 4096)]
    pub chunk: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for ElementwiseConfig {
    fn default() -> ElementwiseConfig {
        ElementwiseConfig { chunk: 2048, threads: 256 }
    }
}
