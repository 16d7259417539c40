//! Plain-Rust references: the definition every kernel of this library is checked against.
//!
//! Each file holds one operator family, written as the loops one would write on paper, from the
//! operator's definition. Nothing here uses the DSL, the compiler, the runtime or any helper of
//! theirs, down to the fp8 and fp4 encoders: a mistake shared by a kernel and its reference would
//! be invisible. Allowed: `std`, `half` (bf16 and f16 only), `rayon` (over rows).
//!
//! Conventions
//! - Tensors are slices in row-major order with `usize` extents. Narrow floats come in decoded to
//!   `f32` (which holds every bf16, f16, e4m3 and e2m1 value exactly) or as raw codes (`u8`).
//! - Real arithmetic is done in `f64` and rounded once to `f32` on output, so that a difference
//!   from a kernel is the kernel's rounding. Where an operator is specified to the bit (casts,
//!   scale factors, top-k weights, weighted reduction), the same `f32` operations are done in the
//!   same order as specified, and the item says so.
//! - A shape that does not match its slice is a bug in the caller and panics, naming both.

pub mod activation;
pub mod activation_backward;
pub mod attention;
pub mod attention_backward;
pub mod codec;
pub mod cross_entropy;
pub mod einsum;
pub mod embedding;
pub mod engram;
pub mod gemm;
pub mod gemm_scaled;
pub mod hadamard;
pub mod metrics;
pub mod mhc;
pub mod mhc_backward;
pub mod mhc_step;
pub mod moe;
pub mod muon;
pub mod norm;
pub mod quant;
pub mod quant_channel;
pub mod quant_e5m6;
pub mod quant_lossless;
pub mod rope;
pub mod stochastic;
pub mod transpose;

/// Checks a slice length against the extents it should have.
#[track_caller]
fn expect_len(name: &str, len: usize, extents: &[usize]) {
    let want: usize = extents.iter().product();
    assert_eq!(len, want, "`{name}` has {len} elements, but its shape {extents:?} needs {want}");
}

#[cfg(test)]
mod testing {
    //! Random inputs for the unit tests of this module.

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// `n` values uniform in (-scale, scale), rounded to bf16.
    pub fn uniform_bf16(seed: u64, n: usize, scale: f32) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| super::codec::bf16_round(rng.random_range(-scale..scale))).collect()
    }

    /// `n` values uniform in (-scale, scale).
    pub fn uniform(seed: u64, n: usize, scale: f32) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-scale..scale)).collect()
    }

    /// `n` integers in `range`.
    pub fn integers(seed: u64, n: usize, range: std::ops::Range<i32>) -> Vec<i32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(range.clone())).collect()
    }

    /// Checks an analytic gradient against central differences of a scalar function.
    #[track_caller]
    pub fn check_gradient(x: &[f32], gradient: &[f32], tolerance: f64, f: impl Fn(&[f32]) -> f64) {
        assert_eq!(x.len(), gradient.len());
        for i in 0..x.len() {
            let step = 1e-3 * (1.0 + x[i].abs());
            let mut moved = x.to_vec();
            moved[i] = x[i] + step;
            let (hi, above) = (f64::from(moved[i]), f(&moved));
            moved[i] = x[i] - step;
            let (lo, below) = (f64::from(moved[i]), f(&moved));
            let numeric = (above - below) / (hi - lo);
            let error = (numeric - f64::from(gradient[i])).abs();
            assert!(
                error <= tolerance * (1.0 + numeric.abs()),
                "gradient at {i}: analytic {}, numeric {numeric}",
                gradient[i]
            );
        }
    }
}
