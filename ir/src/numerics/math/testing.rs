//! Sampling and error measurement for the tests of this module.

/// Samples per range.
const SAMPLES: u32 = 1 << 20;

/// A cheap, fixed sequence of well spread 32-bit words (Weyl sequence through a multiplicative mix).
fn noise(i: u32) -> u32 {
    let x = i.wrapping_mul(0x9e37_79b9);
    let x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x ^ (x >> 13)
}

/// One sample from each of 2^20 equal parts of `lo..hi`.
pub fn linear(lo: f32, hi: f32) -> impl Iterator<Item = f32> {
    let (lo, width) = (f64::from(lo), f64::from(hi) - f64::from(lo));
    (0..SAMPLES).map(move |i| {
        let u = (f64::from(i) + f64::from(noise(i)) / 4294967296.0) / f64::from(SAMPLES);
        (lo + width * u) as f32
    })
}

/// 2^20 numbers of either sign with exponents spread evenly over `min..=max` and arbitrary mantissas.
pub fn log_spaced(min: i32, max: i32) -> impl Iterator<Item = f32> {
    let binades = (max - min + 1) as u32;
    (0..SAMPLES).map(move |i| {
        let mantissa = 1.0 + f64::from(noise(i) & 0x7f_ffff) / 8388608.0;
        let magnitude = mantissa * 2f64.powi(min + (i % binades) as i32);
        if (i / binades).is_multiple_of(2) { magnitude as f32 } else { -magnitude as f32 }
    })
}

/// |got - exact| in units of the last place of the `f32` nearest to `exact` (the spacing below it at a power of
/// two is not used). 0 where both are NaN or the same infinity; an overflow counts from 2^128.
pub fn ulp_error(got: f32, exact: f64) -> f64 {
    if got.is_nan() || exact.is_nan() {
        return if got.is_nan() && exact.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let rounded = exact as f32;
    if rounded.is_infinite() || got.is_infinite() {
        if rounded == got {
            return 0.0;
        }
        // One of them is the largest finite number, or this is a gross error.
        let limit = 2f64.powi(128);
        let value = |v: f32| {
            if v.is_infinite() { limit.copysign(v.into()) } else { f64::from(v) }
        };
        return (value(got) - value(rounded)).abs() / 2f64.powi(104);
    }
    let exponent = if rounded.is_normal() { ((rounded.to_bits() >> 23) & 0xff) as i32 - 127 } else { -126 };
    (f64::from(got) - exact).abs() / 2f64.powi(exponent - 23)
}

/// Asserts that `f` is within `bound` ulp of `exact` on all samples.
pub fn check_accuracy(
    name: &str,
    f: impl Fn(f32) -> f32,
    exact: impl Fn(f64) -> f64,
    samples: impl Iterator<Item = f32>,
    bound: f64,
) {
    let (mut worst, mut at) = (0.0, 0.0f32);
    for x in samples {
        let error = ulp_error(f(x), exact(x.into()));
        if error > worst {
            (worst, at) = (error, x);
        }
    }
    println!("{name}: worst error {worst:.3} ulp at {at:e}");
    assert!(worst <= bound, "{name}: {worst:.3} ulp at {at:e}, allowed {bound}; got {:e}", f(at));
}
