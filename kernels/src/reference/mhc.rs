//! Manifold-constrained hyper-connections, forward: projection to mixes, split, Sinkhorn, apply,
//! post, head. May depend on `rayon`.
//!
//! State is n residual streams per token, X `[tokens, n, d]`. Before a sub-layer F the streams are
//! mixed into one vector `u = Σ_j pre_j X_j`; after it `X'_k = post_k F(u) + Σ_j C[j, k] X_j`. The
//! coefficients come from X itself through a small projection.

use super::expect_len;
use super::gemm::{gemm_nt, row_sum_of_squares};
use super::norm::rstd;
use rayon::prelude::*;

/// Sizes and constants of a hyper-connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mhc {
    /// Streams n.
    pub streams: usize,
    /// Width d of a stream.
    pub dim: usize,
    /// Sinkhorn rounds (one column step, then `rounds − 1` row and column steps).
    pub rounds: usize,
    /// The eps of the norm, of `pre` and of every Sinkhorn division.
    pub eps: f64,
    /// Factor on `post`.
    pub post_multiplier: f64,
}

impl Mhc {
    /// DeepSeek-V4: 4 streams, 20 rounds, eps 1e-6, post multiplier 2.
    pub fn v4(dim: usize) -> Self {
        Mhc { streams: 4, dim, rounds: 20, eps: 1e-6, post_multiplier: 2.0 }
    }

    /// Mixes per token: n for pre, n for post, n² for the residual matrix.
    pub fn mixes(&self) -> usize {
        self.streams * (2 + self.streams)
    }
}

/// Result of [`Mhc::project`].
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// `v φᵀ` before the norm, `[tokens, outputs]`.
    pub raw: Vec<f32>,
    /// `Σ v²`, `[tokens]`.
    pub square_sum: Vec<f32>,
    /// `r · raw` with `r = 1 / sqrt(mean(v²) + eps)`, `[tokens, outputs]`.
    pub mixes: Vec<f32>,
}

/// Result of [`Mhc::split`].
#[derive(Clone, Debug, PartialEq)]
pub struct Mixes {
    /// `σ(s0 m + b) + eps`, `[tokens, n]`.
    pub pre: Vec<f32>,
    /// `multiplier · σ(s1 m + b)`, `[tokens, n]`.
    pub post: Vec<f32>,
    /// `s2 m + b`, `[tokens, n, n]`, source stream first.
    pub comb: Vec<f32>,
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Mhc {
    /// Copies x `[tokens, d]` into every stream.
    pub fn expand(&self, x: &[f32]) -> Vec<f32> {
        x.chunks(self.dim).flat_map(|row| row.repeat(self.streams)).collect()
    }

    /// Projects the streams X `[tokens, n · d]` with φ `[outputs, n · d]`.
    ///
    /// A kernel that multiplies in TF32 is compared on a φ rounded beforehand
    /// ([`super::codec::tf32_round_half_away`]).
    pub fn project(&self, x: &[f32], phi: &[f32], tokens: usize, outputs: usize) -> Projection {
        let width = self.streams * self.dim;
        expect_len("x", x.len(), &[tokens, width]);
        expect_len("phi", phi.len(), &[outputs, width]);
        let raw = gemm_nt(x, phi, tokens, outputs, width);
        let r: Vec<f64> = x.par_chunks(width).map(|v| rstd(v, self.eps)).collect();
        let mixes = raw.iter().enumerate().map(|(i, &raw)| (f64::from(raw) * r[i / outputs]) as f32).collect();
        Projection { raw, square_sum: row_sum_of_squares(x, tokens, width), mixes }
    }

    /// Splits mixes `[tokens, n(2 + n)]` with scales s `[3]` and biases b `[n(2 + n)]`.
    pub fn split(&self, mixes: &[f32], scale: &[f32], base: &[f32], tokens: usize) -> Mixes {
        let n = self.streams;
        expect_len("mixes", mixes.len(), &[tokens, self.mixes()]);
        expect_len("scale", scale.len(), &[3]);
        expect_len("base", base.len(), &[self.mixes()]);
        let mut out = Mixes { pre: vec![], post: vec![], comb: vec![] };
        for m in mixes.chunks(self.mixes()) {
            let affine = |i: usize, s: f32| f64::from(m[i]) * f64::from(s) + f64::from(base[i]);
            out.pre.extend((0..n).map(|i| (sigmoid(affine(i, scale[0])) + self.eps) as f32));
            out.post.extend((n..2 * n).map(|i| (self.post_multiplier * sigmoid(affine(i, scale[1]))) as f32));
            out.comb.extend((2 * n..self.mixes()).map(|i| affine(i, scale[2]) as f32));
        }
        out
    }

    /// Sinkhorn normalisation of logits `[tokens, n, n]`: softmax over k plus eps, columns, then
    /// `rounds − 1` times rows and columns, each dividing by its sum plus eps. The order and
    /// the count define the result; it ends on columns.
    pub fn sinkhorn(&self, comb: &[f32]) -> Vec<f32> {
        let n = self.streams;
        assert!(comb.len().is_multiple_of(n * n), "{} elements are not matrices of {n}×{n}", comb.len());
        comb.par_chunks(n * n)
            .flat_map_iter(|logits| {
                let mut c = softmax_rows(logits, n);
                c.iter_mut().for_each(|c| *c += self.eps);
                normalize_columns(&mut c, n, self.eps);
                for _ in 1..self.rounds {
                    normalize_rows(&mut c, n, self.eps);
                    normalize_columns(&mut c, n, self.eps);
                }
                c.into_iter().map(|c| c as f32)
            })
            .collect()
    }

    /// `u = Σ_j pre_j X_j`: X `[tokens, n, d]`, pre `[tokens, n]` to `[tokens, d]`, not yet
    /// rounded to bf16.
    pub fn apply(&self, x: &[f32], pre: &[f32], tokens: usize) -> Vec<f32> {
        let (n, d) = (self.streams, self.dim);
        expect_len("x", x.len(), &[tokens, n, d]);
        expect_len("pre", pre.len(), &[tokens, n]);
        let at = |i: usize| {
            let (t, c) = (i / d, i % d);
            (0..n).map(|j| f64::from(pre[t * n + j]) * f64::from(x[(t * n + j) * d + c])).sum::<f64>() as f32
        };
        (0..tokens * d).into_par_iter().map(at).collect()
    }

    /// `X'_k = post_k F + Σ_j C[j, k] X_j`, `[tokens, n, d]`, not yet rounded to bf16.
    pub fn post(&self, f: &[f32], x: &[f32], post: &[f32], comb: &[f32], tokens: usize) -> Vec<f32> {
        let (n, d) = (self.streams, self.dim);
        expect_len("f", f.len(), &[tokens, d]);
        expect_len("x", x.len(), &[tokens, n, d]);
        expect_len("post", post.len(), &[tokens, n]);
        expect_len("comb", comb.len(), &[tokens, n, n]);
        let at = |i: usize| {
            let (t, k, c) = (i / (n * d), i / d % n, i % d);
            let residual: f64 =
                (0..n).map(|j| f64::from(comb[(t * n + j) * n + k]) * f64::from(x[(t * n + j) * d + c])).sum();
            (f64::from(post[t * n + k]) * f64::from(f[t * d + c]) + residual) as f32
        };
        (0..tokens * n * d).into_par_iter().map(at).collect()
    }

    /// Mixes of the head: `σ(s m + b) + eps` for m `[tokens, n]`, b `[n]`.
    pub fn head_mix(&self, mixes: &[f32], scale: f32, base: &[f32]) -> Vec<f32> {
        expect_len("base", base.len(), &[self.streams]);
        let affine = |(i, &m): (usize, &f32)| f64::from(m) * f64::from(scale) + f64::from(base[i % self.streams]);
        mixes.iter().enumerate().map(|im| (sigmoid(affine(im)) + self.eps) as f32).collect()
    }

    /// Everything before a sub-layer: `u` `[tokens, d]`, `post` `[tokens, n]`, C `[tokens, n, n]`.
    pub fn pre(
        &self,
        x: &[f32],
        phi: &[f32],
        scale: &[f32],
        base: &[f32],
        tokens: usize,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let projection = self.project(x, phi, tokens, self.mixes());
        let mixes = self.split(&projection.mixes, scale, base, tokens);
        (self.apply(x, &mixes.pre, tokens), mixes.post, self.sinkhorn(&mixes.comb))
    }

    /// The head: streams to `[tokens, d]` with φ `[n, n · d]`, before the final norm.
    pub fn head(&self, x: &[f32], phi: &[f32], scale: f32, base: &[f32], tokens: usize) -> Vec<f32> {
        let mixes = self.project(x, phi, tokens, self.streams).mixes;
        self.apply(x, &self.head_mix(&mixes, scale, base), tokens)
    }
}

/// Softmax over the second index of an n×n matrix.
pub(super) fn softmax_rows(logits: &[f32], n: usize) -> Vec<f64> {
    let softmax = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.into_iter().map(move |e| e / sum)
    };
    logits.chunks(n).flat_map(softmax).collect()
}

/// `C[j, :] /= Σ_k C[j, k] + eps`.
pub(super) fn normalize_rows(c: &mut [f64], n: usize, eps: f64) {
    for row in c.chunks_mut(n) {
        let sum = row.iter().sum::<f64>() + eps;
        row.iter_mut().for_each(|c| *c /= sum);
    }
}

/// `C[:, k] /= Σ_j C[j, k] + eps`.
pub(super) fn normalize_columns(c: &mut [f64], n: usize, eps: f64) {
    for k in 0..n {
        let sum = (0..n).map(|j| c[j * n + k]).sum::<f64>() + eps;
        (0..n).for_each(|j| c[j * n + k] /= sum);
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::max_abs;
    use super::super::testing::uniform;
    use super::*;

    #[test]
    fn projection_by_hand() {
        let mhc = Mhc { streams: 2, dim: 1, eps: 0.0, ..Mhc::v4(1) };
        // v = (3, 4): Σv² = 25, r = 1/sqrt(12.5).
        let out = mhc.project(&[3.0, 4.0], &[1.0, 0.0, 1.0, 1.0], 1, 2);
        assert_eq!(out.raw, [3.0, 7.0]);
        assert_eq!(out.square_sum, [25.0]);
        assert_eq!(out.mixes, [(3.0 / 12.5f64.sqrt()) as f32, (7.0 / 12.5f64.sqrt()) as f32]);
    }

    #[test]
    fn split_uses_its_three_scales() {
        let mhc = Mhc { streams: 2, eps: 0.0, ..Mhc::v4(1) };
        // σ(ln 3) = 3/4 reached through scale and base.
        let ln3 = 3f32.ln();
        let mixes = [ln3, 0.0, 0.5, -0.5, 1.0, 2.0, 3.0, 4.0];
        let base = [0.0, ln3, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0];
        let out = mhc.split(&mixes, &[1.0, 2.0 * ln3, 3.0], &base, 1);
        assert!(max_abs(&out.pre, &[0.75, 0.75]) < 1e-6);
        assert!(max_abs(&out.post, &[1.5, 0.5]) < 1e-6);
        assert_eq!(out.comb, [13.0, 6.0, 9.0, 12.0]);
        let with_eps = Mhc { eps: 0.25, ..mhc }.split(&mixes, &[1.0, 2.0 * ln3, 3.0], &base, 1);
        assert!(max_abs(&with_eps.pre, &[1.0, 1.0]) < 1e-6);
        assert_eq!(with_eps.post, out.post);
    }

    #[test]
    fn sinkhorn_one_round_by_hand() {
        // softmax rows (3/4, 1/4), (1/2, 1/2), then columns: sums 5/4 and 3/4.
        let mhc = Mhc { streams: 2, rounds: 1, eps: 0.0, ..Mhc::v4(1) };
        let c = mhc.sinkhorn(&[3f32.ln(), 0.0, 5.0, 5.0]);
        assert!(max_abs(&c, &[0.6, 1.0 / 3.0, 0.4, 2.0 / 3.0]) < 1e-6);
    }

    #[test]
    fn sinkhorn_columns_sum_to_one_and_rows_nearly() {
        let mhc = Mhc::v4(1);
        let c = mhc.sinkhorn(&uniform(1, 200 * 16, 3.0));
        for c in c.chunks(16) {
            for k in 0..4 {
                let column: f32 = (0..4).map(|j| c[j * 4 + k]).sum();
                let row: f32 = c[k * 4..][..4].iter().sum();
                assert!((column - 1.0).abs() < 1e-5, "{column}");
                assert!((row - 1.0).abs() < 0.05, "{row}");
            }
        }
        // A doubly stochastic start is a fixed point.
        assert!(max_abs(&mhc.sinkhorn(&[0.0; 16]), &[0.25; 16]) < 1e-5);
    }

    #[test]
    fn apply_and_post_by_hand() {
        let mhc = Mhc { streams: 2, ..Mhc::v4(2) };
        let x = [1.0, 2.0, 10.0, 20.0];
        assert_eq!(mhc.apply(&x, &[0.5, 2.0], 1), [20.5, 41.0]);
        // First index of C is the source: X'_0 = 3F + 1·X_0 + 3·X_1, X'_1 = −F + 2·X_0 + 4·X_1.
        let out = mhc.post(&[100.0, 200.0], &x, &[3.0, -1.0], &[1.0, 2.0, 3.0, 4.0], 1);
        assert_eq!(out, [331.0, 662.0, -58.0, -116.0]);
        assert_eq!(mhc.expand(&[1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
    }

    #[test]
    fn uniform_mixing_keeps_equal_streams() {
        let (mhc, tokens) = (Mhc::v4(8), 3);
        let x = mhc.expand(&uniform(2, tokens * 8, 1.0));
        let phi = uniform(3, mhc.mixes() * 32, 1.0);
        let (u, post, comb) = mhc.pre(&x, &phi, &[1.0; 3], &[0.0; 24], tokens);
        assert_eq!((u.len(), post.len(), comb.len()), (tokens * 8, tokens * 4, tokens * 16));
        // Columns of C sum to one, so with F = 0 equal streams stay as they are.
        let next = mhc.post(&vec![0.0; tokens * 8], &x, &post, &comb, tokens);
        assert!(max_abs(&next, &x) < 1e-5);
        // The head mix of zero logits is σ(0) + eps on every stream.
        let head = mhc.head(&x, &[0.0; 4 * 32], 1.0, &[0.0; 4], tokens);
        let twice: Vec<f32> = x.chunks(32).flat_map(|v| v[..8].iter().map(|x| 2.0 * x)).collect();
        assert!(max_abs(&head, &twice) < 1e-4);
    }
}
