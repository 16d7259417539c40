//! Manifold-constrained hyper-connections.
//!
//! A token's state is n residual streams of width d. Before a sub-layer F the streams are mixed into one vector,
//! `u = sum_j pre_j X_j`; after it `X'_k = post_k F(u) + sum_j C[j,k] X_j`. The mixes come from the state itself:
//! [`mix`] projects it, [`mix_norm`] scales the projection, [`split`] makes `pre`, `post` and the logits of C, and
//! [`sinkhorn`] makes C nearly doubly stochastic. Inference runs [`mix`], then [`pre_big_fuse`], then [`post`].
//!
//! Training keeps mixes and sub-layer outputs and recomputes the states ([`recompute`]); the `_backward` kernels add their
//! gradients of the state into one bf16 buffer in the order post (which writes), apply, mix.
//!
//! All mixes are f32, states and sub-layer outputs bf16; sums are formed in f32 in an order that depends on neither the
//! number of tokens nor the tile sizes along tokens, so that a token's bits do not depend on its batch.

// A kernel's parameters are its tensors, and a stream's number selects its register, its tile and its column alike.
#![allow(clippy::too_many_arguments, clippy::needless_range_loop)]

pub mod apply;
pub mod apply_backward;
pub mod expand;
pub mod expand_backward;
pub mod head;
pub mod head_mix;
pub mod head_mix_backward;
pub mod layer;
pub mod mix;
pub mod mix_backward;
pub mod mix_norm;
pub mod mix_norm_backward;
pub mod norm_weight;
pub mod post;
pub mod post_backward;
pub mod post_mix;
pub mod pre_big_fuse;
mod problem;
pub mod recompute;
pub mod sinkhorn;
pub mod sinkhorn_backward;
pub mod split;
pub mod split_backward;
mod token;
