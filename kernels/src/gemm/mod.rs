//! Matrix products.

pub mod block_scaled;
mod choose;
pub mod dense;
pub mod grouped;
pub mod k_grouped;
pub mod k_grouped_scaled;
pub mod product;
mod scaled_problem;
