//! SwiGLU backward, alone and fused with a cast. May depend on `rayon`.
//!
//! Everything but the weight gradient is specified to the bit. With `e = exp(−g)` correctly
//! rounded to f32 and every step in f32, left to right:
//! `σ = 1 / (1 + e)`, `a = g / (1 + e) · h`, `t = dA · w · σ`,
//! `dg = t · h · fma(g, 1 − σ, 1)`, `dh = t · g`, weighted activation `a · w`.
//! Clamped inputs are used at the limit and get a zero gradient.

use super::attention::dot;
use super::expect_len;
use super::quant::{CastSpec, Quantized, cast};
use rayon::prelude::*;

/// A SwiGLU backward over rows `[g | h]`.
#[derive(Clone, Copy, Debug)]
pub struct SwigluBackward<'a> {
    /// Forward input `[rows, 2 · inner]`, dequantised in f32.
    pub x: &'a [f32],
    /// Gradient of the weighted activation, `[rows, inner]`.
    pub dy: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Width of each half.
    pub inner: usize,
    /// Clamp of the forward.
    pub clamp: Option<f32>,
    /// Factor per row of the forward, `[rows]`; zero on padding.
    pub row_weight: &'a [f32],
}

/// Result of [`SwigluBackward::backward`].
#[derive(Clone, Debug, PartialEq)]
pub struct SwigluGrad {
    /// The forward's result recomputed, `[rows, inner]`.
    pub weighted: Vec<f32>,
    /// Gradient of x, `[rows, 2 · inner]`.
    pub dx: Vec<f32>,
    /// Gradient of each row's weight, `Σ dA · silu(g) h`, `[rows]`; summed in f64.
    pub dweight: Vec<f32>,
}

impl SwigluBackward<'_> {
    /// All gradients, in f32 (a kernel rounds `weighted` and its copy of `dx` to bf16).
    pub fn backward(&self) -> SwigluGrad {
        let inner = self.inner;
        expect_len("x", self.x.len(), &[self.rows, 2, inner]);
        expect_len("dy", self.dy.len(), &[self.rows, inner]);
        expect_len("row_weight", self.row_weight.len(), &[self.rows]);
        let rows: Vec<(Vec<f32>, Vec<f32>, f32)> = (0..self.rows).into_par_iter().map(|row| self.row(row)).collect();
        SwigluGrad {
            weighted: rows.iter().flat_map(|(weighted, _, _)| weighted).copied().collect(),
            dx: rows.iter().flat_map(|(_, dx, _)| dx).copied().collect(),
            dweight: rows.iter().map(|&(_, _, dweight)| dweight).collect(),
        }
    }

    fn row(&self, row: usize) -> (Vec<f32>, Vec<f32>, f32) {
        let inner = self.inner;
        let (gate, up) = self.x[row * 2 * inner..][..2 * inner].split_at(inner);
        let dy = &self.dy[row * inner..][..inner];
        let weight = self.row_weight[row];
        let (mut weighted, mut activation) = (Vec::with_capacity(inner), Vec::with_capacity(inner));
        let mut dx = vec![0.0; 2 * inner];
        for c in 0..inner {
            let (mut g, mut h) = (gate[c], up[c]);
            let (mut gate_clamped, mut up_clamped) = (false, false);
            if let Some(limit) = self.clamp {
                (gate_clamped, up_clamped) = (g > limit, h > limit || h < -limit);
                (g, h) = (g.min(limit), h.clamp(-limit, limit));
            }
            let denominator = 1.0 + (-f64::from(g)).exp() as f32;
            let sigmoid = 1.0 / denominator;
            let a = g / denominator * h;
            let t = dy[c] * weight * sigmoid;
            dx[c] = if gate_clamped { 0.0 } else { t * h * g.mul_add(1.0 - sigmoid, 1.0) };
            dx[inner + c] = if up_clamped { 0.0 } else { t * g };
            weighted.push(a * weight);
            activation.push(a);
        }
        (weighted, dx, dot(dy, &activation) as f32)
    }

    /// [`SwigluBackward::backward`], and the f32 gradient of x cast as `spec` says.
    pub fn backward_and_cast(&self, spec: &CastSpec) -> (SwigluGrad, Quantized) {
        let grad = self.backward();
        let quantized = cast(&grad.dx, self.rows, 2 * self.inner, spec);
        (grad, quantized)
    }
}

/// Moves per-row weight gradients back to `[tokens, k]` through `token_topk_to_pos`; zero where a
/// slot has no row.
pub fn weight_grad_by_slot(dweight: &[f32], token_topk_to_pos: &[i32]) -> Vec<f32> {
    token_topk_to_pos.iter().map(|&pos| usize::try_from(pos).map_or(0.0, |pos| dweight[pos])).collect()
}

#[cfg(test)]
mod tests {
    use super::super::activation::Swiglu;
    use super::super::metrics::max_abs;
    use super::super::quant::{CodeFormat, ScaleFormat};
    use super::super::testing::{check_gradient, uniform};
    use super::*;

    #[test]
    fn gradients_match_differences_inside_and_outside_the_clamp() {
        let (rows, inner) = (2, 6);
        // Values around ±3 with a clamp at 1.25 leave no element near the kink.
        let x: Vec<f32> = uniform(1, rows * 2 * inner, 3.0).iter().map(|x| (x * 2.0).round() / 2.0 + 0.1).collect();
        let (w, dy) = (uniform(2, rows, 1.0), uniform(3, rows * inner, 1.0));
        for clamp in [None, Some(1.25)] {
            let loss = |x: &[f32], w: &[f32]| {
                let forward = Swiglu { x, rows, inner, clamp, row_weight: Some(w), pos_to_expert: None };
                dot(&forward.forward().y, &dy)
            };
            let problem = SwigluBackward { x: &x, dy: &dy, rows, inner, clamp, row_weight: &w };
            let grad = problem.backward();
            check_gradient(&x, &grad.dx, 2e-3, |x| loss(x, &w));
            check_gradient(&w, &grad.dweight, 2e-3, |w| loss(&x, w));
            let forward = Swiglu { x: &x, rows, inner, clamp, row_weight: Some(&w), pos_to_expert: None };
            assert_eq!(grad.weighted, forward.forward().y);
        }
    }

    #[test]
    fn clamped_elements_get_no_gradient() {
        let x = [20.0, 1.0, 1.0, -30.0];
        let grad = SwigluBackward { x: &x, dy: &[1.0, 1.0], rows: 1, inner: 2, clamp: Some(10.0), row_weight: &[1.0] };
        let dx = grad.backward().dx;
        assert_eq!((dx[0], dx[3]), (0.0, 0.0));
        // d/dh = silu(10); d/dg at g = 1 uses the limit −10.
        assert!((dx[2] - 10.0).abs() < 1e-3);
        let sigma = 1.0 / (1.0 + (-1f64).exp());
        assert!((f64::from(dx[1]) + 10.0 * sigma * (1.0 + 1.0 - sigma)).abs() < 1e-5);
    }

    #[test]
    fn cast_and_slots() {
        let (x, dy) = (uniform(4, 3 * 64, 2.0), uniform(5, 3 * 32, 1.0));
        let problem = SwigluBackward { x: &x, dy: &dy, rows: 3, inner: 32, clamp: None, row_weight: &[1.0, 0.0, 2.0] };
        let (grad, quantized) =
            problem.backward_and_cast(&CastSpec::per_token(CodeFormat::E4m3, 32, ScaleFormat::Ue8m0));
        assert_eq!(quantized.scales.len(), 3 * 2);
        assert!(max_abs(&quantized.dequantize(), &grad.dx) < 0.2);
        assert!(grad.dx[64..128].iter().all(|&dx| dx == 0.0));
        assert_eq!(weight_grad_by_slot(&[5.0, 6.0, 7.0], &[2, -1, 0]), [7.0, 0.0, 5.0]);
    }
}
