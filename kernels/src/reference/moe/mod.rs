//! Mixture of experts: routing, mapping of tokens to expert-sorted rows, and back.
//!
//! Ids, positions and counts are `i32`; −1 means none. Everything except the scores themselves
//! is exact.

pub mod fused;
pub mod gate;
pub mod gate_backward;
pub mod indices;
pub mod layer;
pub mod mapping;
pub mod top2_sum_gate;
pub mod training;
