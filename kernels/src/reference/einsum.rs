//! Sums of products of two tensors in f64, as Einstein wrote them: an index that the result lacks is summed over.
//!
//! Every element is one sum in ascending order of the summed indices, accumulated in f64. May depend on `rayon`.

use super::expect_len;
use rayon::prelude::*;

/// An equation such as `bhr,hdr->bhd`, one letter an axis, and the letters' extents.
#[derive(Clone, Copy, Debug)]
pub struct Einsum<'a> {
    pub equation: &'a str,
    pub extents: &'a [(char, usize)],
}

impl<'a> Einsum<'a> {
    /// The letters of both operands and of the result.
    ///
    /// # Panics
    /// If the equation is not of the form `ab,bc->ac`.
    pub fn letters(&self) -> [&'a str; 3] {
        let parts = self.equation.split_once("->").and_then(|(from, to)| Some((from.split_once(',')?, to)));
        let ((a, b), out) = parts.unwrap_or_else(|| panic!("`{}` is no equation of two operands", self.equation));
        [a, b, out]
    }

    /// The extent of a letter.
    ///
    /// # Panics
    /// If it has none.
    pub fn extent(&self, letter: char) -> usize {
        let found = self.extents.iter().find(|(l, _)| *l == letter);
        found.unwrap_or_else(|| panic!("no extent for `{letter}` of `{}`", self.equation)).1
    }

    /// The extents of a tensor with these letters.
    pub fn shape(&self, letters: &str) -> Vec<usize> {
        letters.chars().map(|l| self.extent(l)).collect()
    }

    /// The result, in its letters' order.
    pub fn of<A, B>(&self, a: &[A], b: &[B]) -> Vec<f64>
    where
        A: Copy + Into<f64> + Sync,
        B: Copy + Into<f64> + Sync,
    {
        let [of_a, of_b, out] = self.letters();
        expect_len("a", a.len(), &self.shape(of_a));
        expect_len("b", b.len(), &self.shape(of_b));
        let summed: String = of_a.chars().filter(|&l| !out.contains(l)).collect();
        // Where each term of a sum lies, counted from the first.
        let terms = self.places(&summed, [of_a, of_b]);
        let sum =
            |[a0, b0]: &[usize; 2]| -> f64 { terms.iter().map(|[i, j]| a[a0 + i].into() * b[b0 + j].into()).sum() };
        self.places(out, [of_a, of_b]).par_iter().map(sum).collect()
    }

    /// For every choice of these letters' indices, the last one fastest: the places that it has in tensors with other letters.
    fn places(&self, letters: &str, tensors: [&str; 2]) -> Vec<[usize; 2]> {
        let mut places = vec![[0, 0]];
        for letter in letters.chars() {
            let steps = tensors.map(|t| self.stride(t, letter));
            let along =
                |p: [usize; 2]| (0..self.extent(letter)).map(move |i| [p[0] + i * steps[0], p[1] + i * steps[1]]);
            places = places.into_iter().flat_map(along).collect();
        }
        places
    }

    /// Elements from one index of a letter to the next; 0 if the tensor lacks it.
    fn stride(&self, tensor: &str, letter: char) -> usize {
        tensor.find(letter).map_or(0, |at| self.shape(&tensor[at + 1..]).iter().product())
    }
}

#[cfg(test)]
mod tests {
    use super::super::gemm::gemm_nt;
    use super::super::testing::integers;
    use super::*;

    #[test]
    fn by_hand() {
        let product = Einsum { equation: "ij,jk->ik", extents: &[('i', 1), ('j', 2), ('k', 2)] };
        assert_eq!(product.of(&[1f32, 2.0], &[3f32, 4.0, 5.0, 6.0]), [13.0, 16.0]);
        let dot = Einsum { equation: "bi,bi->", extents: &[('b', 2), ('i', 2)] };
        assert_eq!(dot.of(&[1f32, 2.0, 3.0, 4.0], &[1f64, 1.0, 10.0, 10.0]), [73.0]);
    }

    /// Small integers: sums are exact in any order.
    #[test]
    fn a_matrix_for_each_head_is_a_product_for_each_head() {
        let (m, h, n, k) = (3, 2, 5, 7);
        let floats = |seed, n| integers(seed, n, -4..5).into_iter().map(|v| v as f32).collect::<Vec<_>>();
        let (a, w) = (floats(1, m * h * k), floats(2, h * n * k));
        let extents = [('b', m), ('h', h), ('d', n), ('r', k)];
        let got = Einsum { equation: "bhr,hdr->bhd", extents: &extents }.of(&a, &w);
        let turned: Vec<f32> = (0..h * k * n).map(|i| w[(i / (k * n) * n + i % n) * k + i / n % k]).collect();
        assert_eq!(Einsum { equation: "bhr,hrd->bhd", extents: &extents }.of(&a, &turned), got);
        for head in 0..h {
            let rows: Vec<f32> = (0..m).flat_map(|i| a[(i * h + head) * k..][..k].to_vec()).collect();
            let want = gemm_nt(&rows, &w[head * n * k..][..n * k], m, n, k);
            let got: Vec<f32> = (0..m * n).map(|i| got[(i / n * h + head) * n + i % n] as f32).collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn nothing_to_sum_is_zero() {
        let extents = [('b', 0), ('m', 2), ('n', 1), ('k', 4)];
        assert_eq!(Einsum { equation: "bmk,bnk->mn", extents: &extents }.of::<f32, f32>(&[], &[]), [0.0, 0.0]);
        let extents = [('b', 2), ('m', 0), ('n', 1), ('k', 4)];
        assert!(Einsum { equation: "bmk,bnk->mn", extents: &extents }.of::<f32, f32>(&[], &[0.0; 8]).is_empty());
    }
}
