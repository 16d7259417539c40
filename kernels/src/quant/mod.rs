//! Casts between wide floats and e4m3, e2m1 and e5m6 with scale factors.

pub mod cast;
pub mod per_block;
pub mod per_channel;
pub mod per_token;
pub mod problem;
pub mod requant;
pub mod scale;
