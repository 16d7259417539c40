//! Dense matrix product in f64: `C = alpha · op(A) · op(B)`.
//!
//! Every element is one sum over k in ascending order, accumulated in f64 and rounded once, so the
//! blocking below (which only makes large sizes bearable) cannot change a bit of the result.
//! May depend on `rayon`.

use super::expect_len;
use rayon::prelude::*;

/// How an operand is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// As used: A is `[m, k]`, B is `[k, n]`.
    N,
    /// Transposed: A is `[k, m]`, B is `[n, k]`.
    T,
}

/// A matrix product of `f32` (or `f64`) operands; run it with [`Gemm::full`] or, at sizes where that
/// takes minutes, [`Gemm::rows`].
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a, E = f32> {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Factor on the product.
    pub alpha: f64,
    /// First operand, `m · k` elements.
    pub a: &'a [E],
    /// Storage of `a`.
    pub op_a: Op,
    /// Second operand, `k · n` elements.
    pub b: &'a [E],
    /// Storage of `b`.
    pub op_b: Op,
}

/// Rows and columns of C computed together.
const BLOCK: usize = 4;

impl<E: Copy + Default + Into<f64> + Send + Sync> Gemm<'_, E> {
    /// All of C, `[m, n]`.
    pub fn full(&self) -> Vec<f32> {
        self.rows(&(0..self.m).collect::<Vec<_>>())
    }

    /// The given rows of C, `[rows.len(), n]`.
    pub fn rows(&self, rows: &[usize]) -> Vec<f32> {
        self.rows_f64(rows).into_iter().map(|c| c as f32).collect()
    }

    /// [`Gemm::rows`] without the final rounding.
    pub fn rows_f64(&self, rows: &[usize]) -> Vec<f64> {
        let Gemm { m, n, k, .. } = *self;
        expect_len("a", self.a.len(), &[m, k]);
        expect_len("b", self.b.len(), &[k, n]);
        if let Some(row) = rows.iter().find(|&&row| row >= m) {
            panic!("row {row} asked of a product with {m} rows");
        }
        let mut c = vec![0.0; rows.len() * n];
        if n == 0 {
            return c;
        }
        let panels = self.panels_of_b();
        c.par_chunks_mut(BLOCK * n).zip(rows.par_chunks(BLOCK)).for_each(|(c, rows)| {
            let a: Vec<[f64; BLOCK]> = (0..k).map(|p| std::array::from_fn(|r| self.a_at(rows.get(r), p))).collect();
            for (j, panel) in panels.iter().enumerate() {
                let sums = product_of_panels(&a, panel);
                for r in 0..rows.len() {
                    for (q, col) in (j * BLOCK..n.min((j + 1) * BLOCK)).enumerate() {
                        c[r * n + col] = self.alpha * sums[r][q];
                    }
                }
            }
        });
        c
    }

    fn a_at(&self, row: Option<&usize>, p: usize) -> f64 {
        match (row, self.op_a) {
            (None, Op::N | Op::T) => 0.0,
            (Some(row), Op::N) => self.a[row * self.k + p].into(),
            (Some(row), Op::T) => self.a[p * self.m + row].into(),
        }
    }

    /// B cut into panels of [`BLOCK`] columns, each contiguous over k and zero-padded.
    fn panels_of_b(&self) -> Vec<Vec<[E; BLOCK]>> {
        let at = |p: usize, col: usize| match self.op_b {
            _ if col >= self.n => E::default(),
            Op::N => self.b[p * self.n + col],
            Op::T => self.b[col * self.k + p],
        };
        let panel = |j: usize| (0..self.k).map(|p| std::array::from_fn(|q| at(p, j * BLOCK + q))).collect();
        (0..self.n.div_ceil(BLOCK)).into_par_iter().map(panel).collect()
    }
}

/// `Σ_p a[p]ᵀ · b[p]`, p ascending.
fn product_of_panels<E: Copy + Into<f64>>(a: &[[f64; BLOCK]], b: &[[E; BLOCK]]) -> [[f64; BLOCK]; BLOCK] {
    let mut sums = [[0.0; BLOCK]; BLOCK];
    for (a, b) in a.iter().zip(b) {
        for r in 0..BLOCK {
            for q in 0..BLOCK {
                sums[r][q] += a[r] * b[q].into();
            }
        }
    }
    sums
}

/// `A · Bᵀ` with A `[m, k]` and B `[n, k]`: the layout of every linear layer.
pub fn gemm_nt(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
    Gemm { m, n, k, alpha: 1.0, a, op_a: Op::N, b, op_b: Op::T }.full()
}

/// Grouped product, rows sorted by group: rows `offsets[g]..offsets[g + 1]` of A `[m, k]` times
/// the transpose of matrix g of B `[groups, n, k]`. Rows outside every group are zero.
pub fn grouped_gemm_nt(a: &[f32], b: &[f32], offsets: &[usize], m: usize, n: usize, k: usize) -> Vec<f32> {
    let groups = offsets.len().saturating_sub(1);
    expect_len("a", a.len(), &[m, k]);
    expect_len("b", b.len(), &[groups, n, k]);
    let mut c = vec![0.0; m * n];
    for (g, range) in offsets.windows(2).enumerate() {
        let (start, end) = (range[0], range[1]);
        let product = gemm_nt(&a[start * k..end * k], &b[g * n * k..][..n * k], end - start, n, k);
        c[start * n..end * n].copy_from_slice(&product);
    }
    c
}

/// `Σ_k x[t, k]²` of each row of `[rows, k]`.
pub fn row_sum_of_squares(x: &[f32], rows: usize, k: usize) -> Vec<f32> {
    expect_len("x", x.len(), &[rows, k]);
    let square_sum = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() as f32;
    (0..rows).map(|t| square_sum(&x[t * k..][..k])).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::uniform;
    use super::*;

    fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[(i % rows) * cols + i / rows]).collect()
    }

    #[test]
    fn small_product_by_hand() {
        // [1 2; 3 4] · [5 6; 7 8] = [19 22; 43 50]
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let gemm = Gemm { m: 2, n: 2, k: 2, alpha: 1.0, a: &a, op_a: Op::N, b: &b, op_b: Op::N };
        assert_eq!(gemm.full(), [19.0, 22.0, 43.0, 50.0]);
        assert_eq!(Gemm { op_b: Op::T, ..gemm }.full(), [17.0, 23.0, 39.0, 53.0]);
        assert_eq!(Gemm { op_a: Op::T, alpha: 0.5, ..gemm }.full(), [13.0, 15.0, 19.0, 22.0]);
        assert_eq!(gemm.rows(&[1]), [43.0, 50.0]);
    }

    #[test]
    fn all_transposes_and_odd_sizes_agree_with_the_triple_loop() {
        let (m, n, k) = (7, 9, 13);
        let (a, b) = (uniform(1, m * k, 1.0), uniform(2, k * n, 1.0));
        let mut want = vec![0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                want[i * n + j] = (0.25 * sum) as f32;
            }
        }
        let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
        for (a, op_a) in [(&a, Op::N), (&at, Op::T)] {
            for (b, op_b) in [(&b, Op::N), (&bt, Op::T)] {
                let gemm = Gemm { m, n, k, alpha: 0.25, a, op_a, b, op_b };
                assert_eq!(gemm.full(), want, "{op_a:?}{op_b:?}");
                assert_eq!(gemm.rows(&[5, 0]), [&want[5 * n..6 * n], &want[..n]].concat());
            }
        }
    }

    #[test]
    fn empty_extents() {
        assert_eq!(gemm_nt(&[], &[], 2, 3, 0), [0.0; 6]);
        assert!(gemm_nt(&[], &[1.0], 0, 1, 1).is_empty());
        assert!(gemm_nt(&[1.0], &[], 1, 0, 1).is_empty());
    }

    #[test]
    fn groups_use_their_own_matrix() {
        let (n, k) = (3, 5);
        let (a, b) = (uniform(3, 6 * k, 1.0), uniform(4, 3 * n * k, 1.0));
        let c = grouped_gemm_nt(&a, &b, &[0, 2, 2, 5], 6, n, k);
        assert_eq!(c[..2 * n], gemm_nt(&a[..2 * k], &b[..n * k], 2, n, k));
        assert_eq!(c[2 * n..5 * n], gemm_nt(&a[2 * k..5 * k], &b[2 * n * k..], 3, n, k));
        assert_eq!(c[5 * n..], [0.0; 3]);
    }

    #[test]
    fn squares() {
        assert_eq!(row_sum_of_squares(&[3.0, 4.0, 0.0, -2.0], 2, 2), [25.0, 4.0]);
    }
}
