//! Muon and AdamW optimiser steps. Depends on [`super::gemm`] only.
//!
//! Everything in f64. A kernel that multiplies in bf16 differs by about 1e-2 in the
//! orthogonalised update, which the iteration itself tolerates.

use super::expect_len;
use super::gemm::{Gemm, Op};

/// Coefficients (a, b, c) of one Newton–Schulz step `Y ← aY + (bA + cA²)Y`, `A = YYᵀ`.
pub type Coefficients = (f64, f64, f64);

/// DeepSeek-V4: eight steps that grow small singular values fast, two that settle on one.
pub const V4_STEPS: [Coefficients; 10] = {
    let mut steps = [(3.4445, -4.7750, 2.0315); 10];
    steps[8] = (2.0, -1.5, 0.5);
    steps[9] = (2.0, -1.5, 0.5);
    steps
};

/// `alpha · op(A) op(B)` in f64.
fn product(m: usize, n: usize, k: usize, a: &[f64], b: &[f64], op_b: Op) -> Vec<f64> {
    Gemm { m, n, k, alpha: 1.0, a, op_a: Op::N, b, op_b }.rows_f64(&(0..m).collect::<Vec<_>>())
}

fn transpose(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// Gram matrix `Y Yᵀ` of Y `[rows, cols]`.
pub fn gram(y: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    expect_len("y", y.len(), &[rows, cols]);
    product(rows, rows, cols, y, y, Op::T)
}

/// One Newton–Schulz step on Y `[rows, cols]`.
pub fn newton_schulz_step(y: &[f64], rows: usize, cols: usize, (a, b, c): Coefficients) -> Vec<f64> {
    let gram = gram(y, rows, cols);
    let squared = product(rows, rows, rows, &gram, &gram, Op::N);
    let polynomial: Vec<f64> = gram.iter().zip(&squared).map(|(g, s)| b * g + c * s).collect();
    let correction = product(rows, cols, rows, &polynomial, y, Op::N);
    y.iter().zip(&correction).map(|(y, correction)| a * y + correction).collect()
}

/// X divided by its Frobenius norm; a zero X stays zero.
pub fn unit_frobenius(x: &[f64]) -> Vec<f64> {
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    x.iter().map(|x| if norm == 0.0 { 0.0 } else { x / norm }).collect()
}

/// Approximate orthogonalisation of X `[rows, cols]`: divides by the Frobenius norm and iterates,
/// on the transpose if that has fewer rows. A zero X stays zero.
pub fn orthogonalize(x: &[f64], rows: usize, cols: usize, steps: &[Coefficients]) -> Vec<f64> {
    expect_len("x", x.len(), &[rows, cols]);
    let scaled = unit_frobenius(x);
    let tall = rows > cols;
    let (short, long) = (rows.min(cols), rows.max(cols));
    let mut y = if tall { transpose(&scaled, rows, cols) } else { scaled };
    for &coefficients in steps {
        y = newton_schulz_step(&y, short, long, coefficients);
    }
    if tall { transpose(&y, short, long) } else { y }
}

/// Muon's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon<'a> {
    /// Learning rate η.
    pub learning_rate: f64,
    /// Momentum μ.
    pub momentum: f64,
    /// Weight decay λ.
    pub weight_decay: f64,
    /// Target update RMS γ.
    pub update_rms: f64,
    /// Newton–Schulz coefficients.
    pub steps: &'a [Coefficients],
}

impl Muon<'static> {
    /// DeepSeek-V4 at the given learning rate.
    pub fn v4(learning_rate: f64) -> Self {
        Muon { learning_rate, momentum: 0.95, weight_decay: 0.1, update_rms: 0.18, steps: &V4_STEPS }
    }
}

impl Muon<'_> {
    /// New momentum and the matrix to orthogonalise: `M' = μM + G`, `X = μM' + G` (Nesterov).
    pub fn momentum_step(&self, momentum: &[f64], gradient: &[f64]) -> (Vec<f64>, Vec<f64>) {
        expect_len("gradient", gradient.len(), &[momentum.len()]);
        let mix = |m: &[f64]| -> Vec<f64> { m.iter().zip(gradient).map(|(m, g)| self.momentum * m + g).collect() };
        let next = mix(momentum);
        let nesterov = mix(&next);
        (next, nesterov)
    }

    /// `W (1 − ηλ) − η γ sqrt(max(rows, cols)) U`.
    pub fn weight_step(&self, weight: &[f64], update: &[f64], rows: usize, cols: usize) -> Vec<f64> {
        expect_len("weight", weight.len(), &[rows, cols]);
        expect_len("update", update.len(), &[rows, cols]);
        let factor = self.update_rms * (rows.max(cols) as f64).sqrt();
        let keep = 1.0 - self.learning_rate * self.weight_decay;
        weight.iter().zip(update).map(|(w, u)| w * keep - self.learning_rate * factor * u).collect()
    }

    /// The whole update of W `[rows, cols]`: new weight and new momentum.
    pub fn update(
        &self,
        weight: &[f64],
        momentum: &[f64],
        gradient: &[f64],
        rows: usize,
        cols: usize,
    ) -> (Vec<f64>, Vec<f64>) {
        let (momentum, nesterov) = self.momentum_step(momentum, gradient);
        let update = orthogonalize(&nesterov, rows, cols, self.steps);
        (self.weight_step(weight, &update, rows, cols), momentum)
    }
}

/// AdamW with decoupled weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

impl AdamW {
    /// DeepSeek-V4 at the given learning rate.
    pub fn v4(learning_rate: f64) -> Self {
        AdamW { learning_rate, beta1: 0.9, beta2: 0.95, eps: 1e-20, weight_decay: 0.1 }
    }

    /// Updates weight and moments in place; `step` counts from 1.
    pub fn update(&self, weight: &mut [f64], first: &mut [f64], second: &mut [f64], gradient: &[f64], step: i32) {
        expect_len("gradient", gradient.len(), &[weight.len()]);
        expect_len("first", first.len(), &[weight.len()]);
        expect_len("second", second.len(), &[weight.len()]);
        let (bias1, bias2) = (1.0 - self.beta1.powi(step), 1.0 - self.beta2.powi(step));
        for (((w, m), v), g) in weight.iter_mut().zip(first).zip(second).zip(gradient) {
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            let update = (*m / bias1) / ((*v / bias2).sqrt() + self.eps);
            *w = *w * (1.0 - self.learning_rate * self.weight_decay) - self.learning_rate * update;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::uniform;
    use super::*;

    fn matrix(seed: u64, n: usize) -> Vec<f64> {
        uniform(seed, n, 1.0).into_iter().map(f64::from).collect()
    }

    #[test]
    fn a_step_on_a_scalar_is_the_polynomial() {
        let y = newton_schulz_step(&[0.5], 1, 1, (2.0, -1.5, 0.5));
        assert_eq!(y, [2.0 * 0.5 - 1.5 * 0.125 + 0.5 * 0.03125]);
    }

    #[test]
    fn gram_by_hand() {
        assert_eq!(gram(&[1.0, 2.0, 3.0, 4.0], 2, 2), [5.0, 11.0, 11.0, 25.0]);
    }

    #[test]
    fn result_is_orthogonal_and_transposes() {
        let (rows, cols) = (12, 20);
        let x = matrix(1, rows * cols);
        let y = orthogonalize(&x, rows, cols, &V4_STEPS);
        for (i, g) in gram(&y, rows, cols).iter().enumerate() {
            let want = if i / rows == i % rows { 1.0 } else { 0.0 };
            assert!((g - want).abs() < 1e-2, "{i}: {g}");
        }
        let transposed = orthogonalize(&transpose(&x, rows, cols), cols, rows, &V4_STEPS);
        for (a, b) in transpose(&y, rows, cols).iter().zip(&transposed) {
            assert!((a - b).abs() < 1e-9);
        }
        assert_eq!(orthogonalize(&[0.0; 4], 2, 2, &V4_STEPS), [0.0; 4]);
    }

    #[test]
    fn update_has_the_target_rms() {
        let (rows, cols) = (16, 48);
        let muon = Muon { weight_decay: 0.0, learning_rate: 1.0, ..Muon::v4(1.0) };
        let zero = vec![0.0; rows * cols];
        let (weight, momentum) = muon.update(&zero, &zero, &matrix(2, rows * cols), rows, cols);
        let rms = (weight.iter().map(|w| w * w).sum::<f64>() / (rows * cols) as f64).sqrt();
        // An orthogonal 16×48 matrix has squared norm 16, so rms = γ sqrt(48) sqrt(16 / 768).
        assert!((rms - 0.18).abs() < 2e-3, "{rms}");
        assert_eq!(momentum, matrix(2, rows * cols));
    }

    #[test]
    fn nesterov_and_decay_by_hand() {
        let muon = Muon { momentum: 0.5, weight_decay: 0.5, learning_rate: 0.5, update_rms: 1.0, steps: &[] };
        assert_eq!(muon.momentum_step(&[2.0], &[1.0]), (vec![2.0], vec![2.0]));
        // 4·(1 − 1/4) − 1/2 · sqrt(4) · 1
        assert_eq!(muon.weight_step(&[4.0; 4], &[1.0; 4], 1, 4), [2.0; 4]);
    }

    #[test]
    fn first_adamw_step_is_the_sign() {
        let adam = AdamW::v4(0.01);
        let (mut w, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        adam.update(&mut w, &mut m, &mut v, &[3.0, -1e-3], 1);
        assert!((w[0] - (0.999 - 0.01)).abs() < 1e-12);
        assert!((w[1] - (0.999 + 0.01)).abs() < 1e-12);
        // Second step with the same gradient keeps the bias-corrected moments.
        adam.update(&mut w, &mut m, &mut v, &[3.0, -1e-3], 2);
        assert!((w[0] - (0.989 * 0.999 - 0.01)).abs() < 1e-12);
    }
}
