//! Engram: n-gram hash lookup, gate forward and backward, weight gradients. DeepSeek-V4 itself
//! does not use it. May depend on `rayon`.
//!
//! Per token t and stream h, with `n(x) = w ∘ x / rms(x)`:
//! `a = n_x(x) · n_k(k) / sqrt(d)`, `gate = σ(sign(a) sqrt(max(|a|, c)))`, `y = x + gate · v`.

use super::expect_len;
use super::mhc::sigmoid;
use super::norm::rstd;
use rayon::prelude::*;

/// Extents of the hash tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashShape {
    /// Layers that have tables.
    pub layers: usize,
    /// Longest n-gram N; there are tables for n = 2..=N.
    pub max_ngram: usize,
    /// Tables per n.
    pub tables: usize,
}

impl HashShape {
    /// Table indices per token and layer.
    pub fn columns(&self) -> usize {
        (self.max_ngram - 1) * self.tables
    }
}

/// First row of each table when those of a layer are stored one after another:
/// `vocab_sizes` `[layers, N − 1, tables]` to offsets of the same shape.
pub fn hash_offsets(vocab_sizes: &[i32], shape: HashShape) -> Vec<i32> {
    expect_len("vocab_sizes", vocab_sizes.len(), &[shape.layers, shape.columns()]);
    let prefix = |layer: &[i32]| -> Vec<i32> { (0..layer.len()).map(|i| layer[..i].iter().sum()).collect() };
    vocab_sizes.chunks(shape.columns()).flat_map(prefix).collect()
}

/// Embedding rows `[layers, tokens, (N − 1) · tables]`: for each n from 2,
/// `XOR_{i<n}(id_i · multiplier_i) mod vocab + offset`, products wrapping in i64, the remainder
/// non-negative.
///
/// `ids` is `[tokens, N]`, `multipliers` `[layers, N]`, `vocab_sizes` and `offsets`
/// `[layers, N − 1, tables]`.
pub fn hash(ids: &[i32], multipliers: &[i64], vocab_sizes: &[i32], offsets: &[i32], shape: HashShape) -> Vec<i32> {
    let tokens = ids.len() / shape.max_ngram;
    expect_len("ids", ids.len(), &[tokens, shape.max_ngram]);
    expect_len("multipliers", multipliers.len(), &[shape.layers, shape.max_ngram]);
    expect_len("vocab_sizes", vocab_sizes.len(), &[shape.layers, shape.columns()]);
    expect_len("offsets", offsets.len(), &[shape.layers, shape.columns()]);
    let mut rows = Vec::new();
    for layer in 0..shape.layers {
        let multipliers = &multipliers[layer * shape.max_ngram..][..shape.max_ngram];
        for gram in ids.chunks(shape.max_ngram) {
            let product = |i: usize| i64::from(gram[i]).wrapping_mul(multipliers[i]);
            let mut hash = product(0);
            for i in 1..shape.max_ngram {
                hash ^= product(i);
                for table in 0..shape.tables {
                    let column = layer * shape.columns() + (i - 1) * shape.tables + table;
                    rows.push(hash.rem_euclid(i64::from(vocab_sizes[column])) as i32 + offsets[column]);
                }
            }
        }
    }
    rows
}

/// Product of the two norm weights, one f32 product per element.
pub fn fused_weight(weight_x: &[f32], weight_k: &[f32]) -> Vec<f32> {
    expect_len("weight_k", weight_k.len(), &[weight_x.len()]);
    weight_x.iter().zip(weight_k).map(|(x, k)| x * k).collect()
}

/// A gate problem.
#[derive(Clone, Copy, Debug)]
pub struct EngramGate<'a> {
    /// Hidden states `[tokens, streams, dim]`.
    pub x: &'a [f32],
    /// Key embeddings `[tokens, streams, dim]`.
    pub k: &'a [f32],
    /// Value embeddings `[tokens, dim]`.
    pub v: &'a [f32],
    /// [`fused_weight`] of the two norms, `[streams, dim]`.
    pub weight: &'a [f32],
    /// Number of tokens.
    pub tokens: usize,
    /// Streams per token.
    pub streams: usize,
    /// Width of a stream.
    pub dim: usize,
    /// Smallest |a| under the root, c above.
    pub clamp: f64,
    /// The eps of both norms.
    pub eps: f64,
}

/// Result of [`EngramGate::forward`]. Everything but `y` is `[tokens, streams]`.
#[derive(Clone, Debug, PartialEq)]
pub struct EngramOutput {
    /// `[tokens, streams, dim]`, not yet rounded to bf16.
    pub y: Vec<f32>,
    /// `Σ x · k · weight`, before the norms.
    pub dot: Vec<f32>,
    /// The gate.
    pub gate: Vec<f32>,
    /// `1 / rms(x)`.
    pub rstd_x: Vec<f32>,
    /// `1 / rms(k)`.
    pub rstd_k: Vec<f32>,
}

/// Gradients of [`EngramGate::forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct EngramGrad {
    /// `[tokens, streams, dim]`.
    pub dx: Vec<f32>,
    /// `[tokens, streams, dim]`.
    pub dk: Vec<f32>,
    /// `[tokens, dim]`.
    pub dv: Vec<f32>,
    /// With respect to the fused weight, summed over tokens, `[streams, dim]`.
    pub dweight: Vec<f32>,
}

/// Scalars of one token and stream, in f64.
struct Row {
    dot: f64,
    rstd_x: f64,
    rstd_k: f64,
    a: f64,
    gate: f64,
}

impl EngramGate<'_> {
    fn check(&self) {
        expect_len("x", self.x.len(), &[self.tokens, self.streams, self.dim]);
        expect_len("k", self.k.len(), &[self.tokens, self.streams, self.dim]);
        expect_len("v", self.v.len(), &[self.tokens, self.dim]);
        expect_len("weight", self.weight.len(), &[self.streams, self.dim]);
    }

    /// Row i of `[tokens · streams]`: x, k, its token's v, its stream's weight.
    fn slices(&self, i: usize) -> [&[f32]; 4] {
        let row = |z, i| super::engram::row(z, i, self.dim);
        [row(self.x, i), row(self.k, i), row(self.v, i / self.streams), row(self.weight, i % self.streams)]
    }

    fn row(&self, i: usize) -> Row {
        let [x, k, _, weight] = self.slices(i);
        let term = |c: usize| f64::from(x[c]) * f64::from(k[c]) * f64::from(weight[c]);
        let dot: f64 = (0..self.dim).map(term).sum();
        let (rstd_x, rstd_k) = (rstd(x, self.eps), rstd(k, self.eps));
        let a = dot * rstd_x * rstd_k / (self.dim as f64).sqrt();
        // The sign of zero is zero: an orthogonal pair has gate 1/2.
        let sign = if a == 0.0 { 0.0 } else { a.signum() };
        Row { dot, rstd_x, rstd_k, a, gate: sigmoid(sign * a.abs().max(self.clamp).sqrt()) }
    }

    /// The gated output and what its backward needs.
    pub fn forward(&self) -> EngramOutput {
        self.check();
        let rows: Vec<Row> = (0..self.tokens * self.streams).into_par_iter().map(|i| self.row(i)).collect();
        let gated = |(i, row): (usize, &Row)| -> Vec<f32> {
            let [x, _, v, _] = self.slices(i);
            x.iter().zip(v).map(|(&x, &v)| (f64::from(x) + row.gate * f64::from(v)) as f32).collect()
        };
        EngramOutput {
            y: rows.iter().enumerate().flat_map(gated).collect(),
            dot: rows.iter().map(|row| row.dot as f32).collect(),
            gate: rows.iter().map(|row| row.gate as f32).collect(),
            rstd_x: rows.iter().map(|row| row.rstd_x as f32).collect(),
            rstd_k: rows.iter().map(|row| row.rstd_k as f32).collect(),
        }
    }

    /// Gradients from `dy` `[tokens, streams, dim]`. Where |a| is below the clamp the gate is
    /// constant and passes nothing to x, k and the weight.
    pub fn backward(&self, dy: &[f32]) -> EngramGrad {
        self.check();
        expect_len("dy", dy.len(), &[self.tokens, self.streams, self.dim]);
        let (dim, scale) = (self.dim, 1.0 / (self.dim as f64).sqrt());
        let (mut dx, mut dk) = (vec![0.0; self.x.len()], vec![0.0; self.k.len()]);
        let (mut dv, mut dweight) = (vec![0f64; self.v.len()], vec![0f64; self.weight.len()]);
        for i in 0..self.tokens * self.streams {
            let ([x, k, v, weight], row) = (self.slices(i), self.row(i));
            let dy = super::engram::row(dy, i, dim);
            let dgate: f64 = dy.iter().zip(v).map(|(&dy, &v)| f64::from(dy) * f64::from(v)).sum();
            let droot = dgate * row.gate * (1.0 - row.gate);
            let magnitude = row.a.abs();
            let da = if magnitude < self.clamp || magnitude == 0.0 { 0.0 } else { droot * 0.5 / magnitude.sqrt() };
            let ddot = da * row.rstd_x * row.rstd_k * scale;
            for c in 0..dim {
                let (dy, x, k) = (f64::from(dy[c]), f64::from(x[c]), f64::from(k[c]));
                let w = f64::from(weight[c]);
                // a ∝ rstd(x), and d rstd/dx = −x rstd³ / dim.
                let through_x_norm = da * row.a * row.rstd_x.powi(2) * x / dim as f64;
                let through_k_norm = da * row.a * row.rstd_k.powi(2) * k / dim as f64;
                dx[i * dim + c] = (dy + ddot * k * w - through_x_norm) as f32;
                dk[i * dim + c] = (ddot * x * w - through_k_norm) as f32;
                dv[i / self.streams * dim + c] += row.gate * dy;
                dweight[i % self.streams * dim + c] += ddot * x * k;
            }
        }
        let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect();
        EngramGrad { dx, dk, dv: narrow(&dv), dweight: narrow(&dweight) }
    }
}

/// Sums partial gradients of the fused weight `[parts, streams · dim]` and adds the gradients of
/// its two factors to those given: `(grad_x + Σ·weight_k, grad_k + Σ·weight_x)`.
pub fn weight_grad_reduce(
    partial: &[f32],
    weight_x: &[f32],
    weight_k: &[f32],
    grad_x: &[f32],
    grad_k: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let width = weight_x.len();
    let sum = |i: usize| partial.iter().skip(i).step_by(width).map(|&g| f64::from(g)).sum::<f64>();
    let add = |grad: &[f32], other: &[f32]| -> Vec<f32> {
        (0..width).map(|i| (f64::from(grad[i]) + sum(i) * f64::from(other[i])) as f32).collect()
    };
    (add(grad_x, weight_k), add(grad_k, weight_x))
}

fn row(x: &[f32], index: usize, width: usize) -> &[f32] {
    &x[index * width..][..width]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradient, uniform};
    use super::*;

    #[test]
    fn hash_by_hand() {
        let shape = HashShape { layers: 1, max_ngram: 3, tables: 2 };
        let vocab = [10, 7, 100, 13];
        let offsets = hash_offsets(&vocab, shape);
        assert_eq!(offsets, [0, 10, 17, 117]);
        // 5·3 = 15, 6·5 = 30, 7·9 = 63: 15^30 = 17, 17^63 = 46.
        let rows = hash(&[5, 6, 7], &[3, 5, 9], &vocab, &offsets, shape);
        assert_eq!(rows, [7, 10 + 3, 17 + 46, 117 + 7]);
        // Products wrap, remainders stay in range.
        let wrapped = hash(&[i32::MAX, 2, 3], &[i64::MAX, 1, 1], &vocab, &[0; 4], shape);
        assert!(wrapped.iter().zip(vocab).all(|(&row, vocab)| (0..vocab).contains(&row)));
    }

    fn problem<'a>(x: &'a [f32], k: &'a [f32], v: &'a [f32], weight: &'a [f32]) -> EngramGate<'a> {
        EngramGate { x, k, v, weight, tokens: 2, streams: 2, dim: 4, clamp: 1e-6, eps: 1e-6 }
    }

    #[test]
    fn gate_by_hand() {
        // x = k = (1, 1, 1, 1): a = 4 / sqrt(4) = 2; gate = σ(sqrt 2). Orthogonal: gate = 1/2.
        let ones = [1.0; 16];
        let mut k = ones;
        k[4..8].copy_from_slice(&[1.0, -1.0, 1.0, -1.0]);
        let out = EngramGate { eps: 0.0, ..problem(&ones, &k, &[2.0; 8], &[1.0; 8]) }.forward();
        let gate = 1.0 / (1.0 + (-(2f64.sqrt())).exp());
        assert!((f64::from(out.y[0]) - (1.0 + 2.0 * gate)).abs() < 1e-6);
        assert_eq!((out.dot[1], out.gate[1], out.y[4]), (0.0, 0.5, 2.0));
        assert_eq!((out.rstd_x[0], out.rstd_k[0]), (1.0, 1.0));
    }

    #[test]
    fn gradients_match_differences() {
        let (x, k) = (uniform(1, 16, 1.0), uniform(2, 16, 1.0));
        let (v, w, dy) = (uniform(3, 8, 1.0), uniform(4, 8, 1.0), uniform(5, 16, 1.0));
        let loss = |x: &[f32], k: &[f32], v: &[f32], w: &[f32]| {
            problem(x, k, v, w).forward().y.iter().zip(&dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum::<f64>()
        };
        let grad = problem(&x, &k, &v, &w).backward(&dy);
        check_gradient(&x, &grad.dx, 2e-3, |x| loss(x, &k, &v, &w));
        check_gradient(&k, &grad.dk, 2e-3, |k| loss(&x, k, &v, &w));
        check_gradient(&v, &grad.dv, 2e-3, |v| loss(&x, &k, v, &w));
        check_gradient(&w, &grad.dweight, 2e-3, |w| loss(&x, &k, &v, w));
    }

    #[test]
    fn below_the_clamp_only_the_direct_path_remains() {
        let (x, k, dy) = (uniform(6, 16, 1.0), uniform(7, 16, 1.0), uniform(8, 16, 1.0));
        let grad = EngramGate { clamp: 100.0, ..problem(&x, &k, &[1.0; 8], &[1.0; 8]) }.backward(&dy);
        assert_eq!(grad.dx, dy);
        assert!(grad.dk.iter().chain(&grad.dweight).all(|&g| g == 0.0));
    }

    #[test]
    fn weight_gradients() {
        assert_eq!(fused_weight(&[2.0, 3.0], &[5.0, 7.0]), [10.0, 21.0]);
        let (dx, dk) =
            weight_grad_reduce(&[1.0, 2.0, 10.0, 20.0], &[2.0, 3.0], &[5.0, 7.0], &[100.0, 0.0], &[0.0, 1.0]);
        assert_eq!(dx, [155.0, 154.0]);
        assert_eq!(dk, [22.0, 67.0]);
    }
}
