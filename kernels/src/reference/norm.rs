//! RMSNorm, forward and backward. May depend on `rayon`.

use super::expect_len;
use rayon::prelude::*;

/// The eps of every norm in DeepSeek-V4.
pub const EPS: f64 = 1e-6;

/// Result of [`rms_norm`].
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// `w ∘ x · rstd`, `[rows, dim]`.
    pub y: Vec<f32>,
    /// `1 / sqrt(mean(x²) + eps)`, `[rows]`.
    pub rstd: Vec<f32>,
}

/// `1 / sqrt(mean(x²) + eps)` of one row.
pub(super) fn rstd(x: &[f32], eps: f64) -> f64 {
    let mean_square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    1.0 / (mean_square + eps).sqrt()
}

/// RMSNorm over the last dimension of x `[rows, dim]`, times `weight` `[dim]` if given.
pub fn rms_norm(x: &[f32], weight: Option<&[f32]>, rows: usize, dim: usize, eps: f64) -> RmsNorm {
    expect_len("x", x.len(), &[rows, dim]);
    if let Some(weight) = weight {
        expect_len("weight", weight.len(), &[dim]);
    }
    let row_rstd: Vec<f64> = (0..rows).into_par_iter().map(|t| rstd(&x[t * dim..][..dim], eps)).collect();
    let at = |i: usize| {
        let w = weight.map_or(1.0, |weight| f64::from(weight[i % dim]));
        (w * f64::from(x[i]) * row_rstd[i / dim]) as f32
    };
    RmsNorm { y: (0..rows * dim).into_par_iter().map(at).collect(), rstd: row_rstd.iter().map(|&r| r as f32).collect() }
}

/// Gradients of [`rms_norm`].
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNormGrad {
    /// With respect to x, `[rows, dim]`.
    pub dx: Vec<f32>,
    /// With respect to the weight, summed over rows, `[dim]`.
    pub dw: Vec<f32>,
}

/// Backward of [`rms_norm`]: with `x̂ = x·r`, `dx = r (w∘dy − x̂ mean(w∘dy∘x̂))`, `dw = Σ dy∘x̂`.
pub fn rms_norm_backward(
    x: &[f32],
    weight: Option<&[f32]>,
    dy: &[f32],
    rows: usize,
    dim: usize,
    eps: f64,
) -> RmsNormGrad {
    expect_len("x", x.len(), &[rows, dim]);
    expect_len("dy", dy.len(), &[rows, dim]);
    let w = |c: usize| weight.map_or(1.0, |weight| f64::from(weight[c]));
    let mut dx = vec![0.0; rows * dim];
    let mut dw = vec![0f64; dim];
    for t in 0..rows {
        let (x, dy) = (&x[t * dim..][..dim], &dy[t * dim..][..dim]);
        let r = rstd(x, eps);
        let mean = (0..dim).map(|c| w(c) * f64::from(dy[c]) * f64::from(x[c]) * r).sum::<f64>() / dim as f64;
        for c in 0..dim {
            let x_hat = f64::from(x[c]) * r;
            dx[t * dim + c] = (r * (w(c) * f64::from(dy[c]) - x_hat * mean)) as f32;
            dw[c] += f64::from(dy[c]) * x_hat;
        }
    }
    RmsNormGrad { dx, dw: dw.iter().map(|&dw| dw as f32).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradient, uniform};
    use super::*;

    #[test]
    fn by_hand() {
        // mean(x²) = (9 + 16) / 2 = 12.5
        let out = rms_norm(&[3.0, 4.0], Some(&[1.0, 2.0]), 1, 2, 0.0);
        assert_eq!(out.rstd, [(1.0 / 12.5f64.sqrt()) as f32]);
        assert_eq!(out.y, [(3.0 / 12.5f64.sqrt()) as f32, (8.0 / 12.5f64.sqrt()) as f32]);
        // A zero row has rstd = eps^-0.5 and stays zero.
        let zero = rms_norm(&[0.0; 4], None, 1, 4, EPS);
        assert_eq!(zero.y, [0.0; 4]);
        assert_eq!(zero.rstd, [1000.0]);
    }

    #[test]
    fn output_has_unit_mean_square() {
        let y = rms_norm(&uniform(1, 3 * 512, 5.0), None, 3, 512, 0.0).y;
        for row in y.chunks(512) {
            let mean = row.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / 512.0;
            assert!((mean - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn gradients_match_differences() {
        let (rows, dim) = (2, 5);
        let (x, w, dy) = (uniform(2, rows * dim, 1.0), uniform(3, dim, 1.0), uniform(4, rows * dim, 1.0));
        let loss = |x: &[f32], w: &[f32]| {
            let y = rms_norm(x, Some(w), rows, dim, 1e-2).y;
            y.iter().zip(&dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum::<f64>()
        };
        let grad = rms_norm_backward(&x, Some(&w), &dy, rows, dim, 1e-2);
        check_gradient(&x, &grad.dx, 1e-3, |x| loss(x, &w));
        check_gradient(&w, &grad.dw, 1e-3, |w| loss(&x, w));
    }
}
