//! Engram: n-gram hash lookup and the gate that mixes what was found into the hidden states, forward and backward. DeepSeek-V4 itself
//! does not use it. May depend on the language and on the library's registry.
//!
//! With `n(x) = w x / rms(x)` per token and stream: `a = n_x(x) . n_k(k) / sqrt(dim)`, `gate = sigmoid(sign(a) sqrt(max(|a|, clamp)))`,
//! `y = x + gate v`. The two weights only occur as their product, the fused weight.

pub mod gate;
pub mod gate_backward;
pub mod hash;
pub mod weight;

use zellige::prelude::*;

/// Tile sizes of the gate kernels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct GateConfig {
    /// Tokens of a tile.
    #[tune(1, 2, 4)]
    pub tokens: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl GateConfig {
    /// Tiles that fit the registers of a block.
    pub fn for_dim(dim: usize) -> GateConfig {
        GateConfig { tokens: crate::norm::rows_for(4096, dim).min(4), threads: 256 }
    }
}

impl Default for GateConfig {
    fn default() -> GateConfig {
        GateConfig::for_dim(4096)
    }
}
