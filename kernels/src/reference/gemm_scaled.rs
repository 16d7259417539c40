//! Matrix product `C = A Bᵀ` of operands with scale factors, in f64. May depend on `rayon`.
//!
//! The definition is of the decoded values: every element of an operand times its own factor, products summed over k in
//! ascending order, rounded once. Where a kernel applies the factors is its business.

use super::expect_len;
use super::gemm::{Gemm, Op};
use rayon::prelude::*;

/// The factor of the element in a row and a column of an operand.
pub type Factor<'a> = &'a (dyn Fn(usize, usize) -> f32 + Sync);

/// A product of some rows of A by one matrix B.
#[derive(Clone, Copy)]
pub struct Scaled<'a> {
    /// Rows of B and columns of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// `[rows, k]`, decoded codes.
    pub a: &'a [f32],
    /// `[n, k]`, decoded codes.
    pub b: &'a [f32],
    /// Scale factors of A.
    pub a_factor: Factor<'a>,
    /// Scale factors of B.
    pub b_factor: Factor<'a>,
}

impl Scaled<'_> {
    /// The given rows of C, `[rows.len(), n]`.
    pub fn rows(&self, rows: &[usize]) -> Vec<f32> {
        let Scaled { n, k, a, b, .. } = *self;
        expect_len("b", b.len(), &[n, k]);
        if rows.is_empty() {
            return Vec::new();
        }
        // A code times a factor is exact in f64.
        let scaled = |x: &[f32], row: usize, at: usize, factor: Factor<'_>| -> Vec<f64> {
            (0..k).map(|c| f64::from(x[row * k + c]) * f64::from(factor(at, c))).collect()
        };
        let a: Vec<f64> = rows.iter().flat_map(|&r| scaled(a, r, r, self.a_factor)).collect();
        let b: Vec<f64> = (0..n).into_par_iter().flat_map_iter(|r| scaled(b, r, r, self.b_factor)).collect();
        Gemm { m: rows.len(), n, k, alpha: 1.0, a: &a[..], op_a: Op::N, b: &b[..], op_b: Op::T }.full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Rows of A: [1 2 | 3], of B: [4 5 | 6] and [1 1 | 1]; groups of two columns.
        let (a, b) = ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 1.0, 1.0, 1.0]);
        let product = Scaled {
            n: 2,
            k: 3,
            a: &a,
            b: &b,
            a_factor: &|_, c| [0.5, 2.0][c / 2],
            b_factor: &|r, c| [[1.0, 0.25], [10.0, 1.0]][r][c / 2],
        };
        // 0.5 (4 + 10) + 2 * 3 * 6 * 0.25 = 16; 0.5 * 3 * 10 + 2 * 3 = 21.
        assert_eq!(product.rows(&[0]), [16.0, 21.0]);
        assert!(product.rows(&[]).is_empty());
    }
}
