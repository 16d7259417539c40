//! Casts between wide floats and e4m3, e2m1 and e5m6 with scale factors, alone and fused with SwiGLU; and SwiGLU alone.

pub mod activation;
pub mod activation_backward;
pub mod cast;
pub mod cast_back;
pub mod e5m6;
pub mod lossless;
pub mod per_block;
pub mod per_channel;
pub mod per_token;
pub mod problem;
pub mod requant;
pub mod round_trip;
pub mod scale;
mod silu;
pub mod stochastic;
pub mod swiglu;
pub mod swiglu_backward;
pub mod transpose;
