//! Matrix products.

pub mod batch_sum;
pub mod batched;
pub mod block_scaled;
mod choose;
pub mod dense;
mod einsum_problem;
pub mod grouped;
pub mod k_grouped;
pub mod k_grouped_scaled;
pub mod product;
mod scaled_problem;
