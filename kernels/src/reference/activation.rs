//! SwiGLU with clamp and per-row weight, alone and fused with a cast. May depend on `rayon`.
//!
//! Evaluated in f32, in the order `g / (1 + exp(−g)) · h · w`, with the exponential correctly
//! rounded: the order matters because the result is quantised next.

use super::expect_len;
use super::quant::{CastSpec, Quantized, cast};
use rayon::prelude::*;

/// A SwiGLU over rows `[g | h]` of expert outputs.
#[derive(Clone, Copy, Debug)]
pub struct Swiglu<'a> {
    /// `[rows, 2 · inner]`: gate half first, up half second.
    pub x: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Width of each half.
    pub inner: usize,
    /// If set to c: `g ← min(g, c)`, `h ← clamp(h, −c, c)`.
    pub clamp: Option<f32>,
    /// Factor per row, `[rows]`; see [`row_weights`].
    pub row_weight: Option<&'a [f32]>,
    /// Rows with a negative entry (padding) are skipped: zero here, undefined in a kernel.
    pub pos_to_expert: Option<&'a [i32]>,
}

/// Result of [`Swiglu::forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct SwigluOutput {
    /// `[rows, inner]`, f32.
    pub y: Vec<f32>,
    /// How many elements of live rows the clamp changed: `g > c`, `h > c`, `h < −c`.
    pub clamped: [u64; 3],
}

/// `silu(g) · h` in f32, in the specified order.
fn silu_mul(g: f32, h: f32) -> f32 {
    let exp = (-f64::from(g)).exp() as f32;
    g / (1.0 + exp) * h
}

impl Swiglu<'_> {
    /// Whether a row is padding.
    pub fn skipped(&self, row: usize) -> bool {
        self.pos_to_expert.is_some_and(|experts| experts[row] < 0)
    }

    /// The activation.
    pub fn forward(&self) -> SwigluOutput {
        let inner = self.inner;
        expect_len("x", self.x.len(), &[self.rows, 2, inner]);
        if let Some(weight) = self.row_weight {
            expect_len("row_weight", weight.len(), &[self.rows]);
        }
        if let Some(experts) = self.pos_to_expert {
            expect_len("pos_to_expert", experts.len(), &[self.rows]);
        }
        let rows: Vec<(Vec<f32>, [u64; 3])> = (0..self.rows)
            .into_par_iter()
            .map(|row| {
                let mut clamped = [0; 3];
                if self.skipped(row) {
                    return (vec![0.0; inner], clamped);
                }
                let (gate, up) = self.x[row * 2 * inner..][..2 * inner].split_at(inner);
                let y = gate.iter().zip(up).map(|(&g, &h)| {
                    let (mut g, mut h) = (g, h);
                    if let Some(c) = self.clamp {
                        clamped[0] += u64::from(g > c);
                        clamped[1] += u64::from(h > c);
                        clamped[2] += u64::from(h < -c);
                        (g, h) = (g.min(c), h.clamp(-c, c));
                    }
                    let y = silu_mul(g, h);
                    self.row_weight.map_or(y, |weight| y * weight[row])
                });
                (y.collect(), clamped)
            })
            .collect();
        let add = |a: [u64; 3], b: [u64; 3]| std::array::from_fn(|i| a[i] + b[i]);
        SwigluOutput {
            clamped: rows.iter().map(|(_, clamped)| *clamped).fold([0; 3], add),
            y: rows.into_iter().flat_map(|(y, _)| y).collect(),
        }
    }

    /// The activation in f32 cast directly, without rounding to bf16 in between. Codes and scales
    /// of skipped rows are those of a zero row; a kernel may leave anything there.
    pub fn forward_and_cast(&self, spec: &CastSpec) -> (Quantized, [u64; 3]) {
        let out = self.forward();
        (cast(&out.y, self.rows, self.inner, spec), out.clamped)
    }
}

/// Router weight of each expanded row: `weights[pos_to_token_topk[row]]` of the flattened
/// `[tokens, k]` weights, zero where the entry is negative.
pub fn row_weights(pos_to_token_topk: &[i32], weights: &[f32]) -> Vec<f32> {
    let weight = |&index: &i32| usize::try_from(index).map_or(0.0, |index| weights[index]);
    pos_to_token_topk.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::super::metrics::max_abs;
    use super::super::quant::{CodeFormat, ScaleFormat};
    use super::super::testing::uniform;
    use super::*;

    fn plain(x: &[f32], rows: usize, inner: usize) -> Swiglu<'_> {
        Swiglu { x, rows, inner, clamp: None, row_weight: None, pos_to_expert: None }
    }

    #[test]
    fn by_hand() {
        // silu(0) = 0; silu(ln 3) = ln 3 · 3/4.
        let x = [0.0, 3f32.ln(), 5.0, 2.0];
        let out = plain(&x, 1, 2).forward();
        assert_eq!(out.y[0], 0.0);
        assert!((f64::from(out.y[1]) - 1.5 * 3f64.ln()).abs() < 1e-6);
        assert_eq!(out.clamped, [0; 3]);
    }

    #[test]
    fn clamp_counts_and_limits() {
        let x = [20.0, -20.0, 1.0, 10.0, 30.0, -30.0, 10.0, -10.0];
        let out = Swiglu { clamp: Some(10.0), ..plain(&x, 1, 4) }.forward();
        assert_eq!(out.clamped, [1, 1, 1]);
        let limited = [10.0, -20.0, 1.0, 10.0, 10.0, -10.0, 10.0, -10.0];
        assert_eq!(out.y, plain(&limited, 1, 4).forward().y);
    }

    #[test]
    fn weights_and_skipped_rows() {
        let x = uniform(1, 3 * 8, 2.0);
        let weight = row_weights(&[4, -1, 0], &[0.5, 9.0, 9.0, 9.0, 2.0]);
        assert_eq!(weight, [2.0, 0.0, 0.5]);
        let problem = Swiglu { row_weight: Some(&weight), pos_to_expert: Some(&[7, -1, 0]), ..plain(&x, 3, 4) };
        let (got, base) = (problem.forward().y, plain(&x, 3, 4).forward().y);
        let scaled = |row: usize, w: f32| -> Vec<f32> { base[row * 4..][..4].iter().map(|y| y * w).collect() };
        assert_eq!(got, [scaled(0, 2.0), vec![0.0; 4], scaled(2, 0.5)].concat());
    }

    #[test]
    fn f32_order_is_close_to_the_exact_value() {
        let x = uniform(2, 2 * 512, 20.0);
        let exact = |g: f32, h: f32| {
            let (g, h) = (f64::from(g), f64::from(h));
            (g / (1.0 + (-g).exp()) * h) as f32
        };
        let want: Vec<f32> = (0..512).map(|i| exact(x[i], x[512 + i])).collect();
        assert!(max_abs(&plain(&x, 1, 512).forward().y, &want) < 1e-4);
    }

    #[test]
    fn fused_cast_is_the_cast_of_the_activation() {
        let x = uniform(3, 4 * 256, 6.0);
        let problem = Swiglu { clamp: Some(2.0), ..plain(&x, 4, 128) };
        let spec = CastSpec::per_token(CodeFormat::E4m3, 128, ScaleFormat::Ue8m0);
        let (q, clamped) = problem.forward_and_cast(&spec);
        assert_eq!(q, cast(&problem.forward().y, 4, 128, &spec));
        assert!(clamped.iter().all(|&count| count > 0));
    }
}
