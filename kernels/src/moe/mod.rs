//! Routing of tokens to experts, and the moves of rows to and from expert order.

pub mod expand;
pub mod expert_of_rows;
pub mod gate;
pub mod gate_backward;
pub mod hash_gate;
pub mod indices;
pub mod layer;
pub mod load;
pub mod mapping;
pub mod normalize;
pub mod problem;
pub mod reduce;
pub mod reduce_backward;
mod route;
pub mod router;
pub mod score;
pub mod top2_sum_gate;
pub mod top_groups;
pub mod training;
