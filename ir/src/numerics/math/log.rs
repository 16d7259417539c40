//! `log2`, `log`, `log1p`.
//!
//! x = 2^k m with sqrt(1/2) <= m < sqrt(2) and f = m - 1 exact; then log(1 + f) = f + f^2 (-1/2 + f P(f)).
//! Depends on the parent only.

use super::{Arith, poly, pow2i};

/// (log(1 + f) - f + f^2/2) / f^3 on sqrt(1/2) - 1 <= f <= sqrt(2) - 1.
const LOG: [f32; 8] =
    [0.333_333_3, -0.250_008_23, 0.200_012_61, -0.166_230_6, 0.142_004_88, -0.131_649_69, 0.127_727_79, -0.076_259_88];

const LN2_HI: f32 = std::f32::consts::LN_2;
const LN2_LO: f32 = f32::from_bits(0xb102_e308);
pub(super) const LOG2E_HI: f32 = std::f32::consts::LOG2_E;
pub(super) const LOG2E_LO: f32 = f32::from_bits(0x32a5_7060);

/// x = 2^k (1 + f), for positive finite `x` (subnormals too); anything for other arguments. Returns (k, f).
pub(super) fn split<A: Arith + ?Sized>(a: &mut A, x: A::F) -> (A::I, A::F) {
    let min_normal = a.f32(f32::MIN_POSITIVE);
    let subnormal = a.lt(x, min_normal);
    let two23 = a.f32(8_388_608.0);
    let scaled = a.mul(x, two23);
    let x = a.select(subnormal, scaled, x);
    let bits = a.bits(x);
    let sqrt_half = a.i32(std::f32::consts::FRAC_1_SQRT_2.to_bits().cast_signed());
    let offset = a.isub(bits, sqrt_half);
    let k = a.sshr(offset, 23);
    let k_bits = a.ishl(k, 23);
    let m = a.isub(bits, k_bits);
    let m = a.bits_to_float(m);
    let one = a.f32(1.0);
    let f = a.sub(m, one);
    let (zero, minus23) = (a.i32(0), a.i32(-23));
    let correction = a.iselect(subnormal, minus23, zero);
    (a.iadd(k, correction), f)
}

/// log(1 + f) - f for `f` from [`split`].
fn tail<A: Arith + ?Sized>(a: &mut A, f: A::F) -> A::F {
    let p = poly(a, f, &LOG);
    let minus_half = a.f32(-0.5);
    let q = a.fma(f, p, minus_half);
    let ff = a.mul(f, f);
    a.mul(ff, q)
}

/// k ln 2 + log(1 + f).
fn assemble<A: Arith + ?Sized>(a: &mut A, k: A::I, f: A::F) -> A::F {
    let k = a.int_to_float(k);
    let (hi, lo) = (a.f32(LN2_HI), a.f32(LN2_LO));
    let t = tail(a, f);
    let t = a.fma(k, lo, t);
    let small = a.add(f, t);
    a.fma(k, hi, small)
}

/// Replaces `y` where `x`, the argument of the logarithm, is not positive and finite.
fn specials<A: Arith + ?Sized>(a: &mut A, x: A::F, y: A::F) -> A::F {
    let zero = a.f32(0.0);
    let infinity = a.f32(f32::INFINITY);
    let minus_infinity = a.f32(f32::NEG_INFINITY);
    let nan = a.f32(f32::NAN);
    // Infinity and NaN are their own logarithms.
    let finite = a.lt(x, infinity);
    let y = a.select(finite, y, x);
    let is_zero = a.eq(x, zero);
    let y = a.select(is_zero, minus_infinity, y);
    let negative = a.lt(x, zero);
    a.select(negative, nan, y)
}

/// Natural logarithm. Error below 1 ulp.
pub fn log<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let (k, f) = split(a, x);
    let y = assemble(a, k, f);
    specials(a, x, y)
}

/// Base-2 logarithm; exact for powers of two. Error below 1.5 ulp.
pub fn log2<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let (k, f) = split(a, x);
    let k = a.int_to_float(k);
    let (hi, lo) = (a.f32(LOG2E_HI), a.f32(LOG2E_LO));
    let t = tail(a, f);
    let y = a.mul(t, hi);
    let y = a.fma(f, lo, y);
    let y = a.fma(f, hi, y);
    let y = a.add(k, y);
    specials(a, x, y)
}

/// log(1 + x) without cancellation near zero. Error below 1.5 ulp.
pub fn log1p<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let one = a.f32(1.0);
    let s = a.add(one, x);
    // s + e = 1 + x exactly (Knuth's two-sum).
    let x_part = a.sub(s, one);
    let one_part = a.sub(s, x_part);
    let one_error = a.sub(one, one_part);
    let x_error = a.sub(x, x_part);
    let e = a.add(one_error, x_error);
    let (k, f) = split(a, s);
    // 1 + x = 2^k (1 + f + 2^-k e). From 2^25 on, e is below the last bit of f and 2^-k may not exist.
    let zero_i = a.i32(0);
    let minus_k = a.isub(zero_i, k);
    let unscale = pow2i(a, minus_k);
    let e = a.mul(e, unscale);
    let limit = a.f32(33_554_432.0);
    let matters = a.lt(x, limit);
    let zero = a.f32(0.0);
    let e = a.select(matters, e, zero);
    let f = a.add(f, e);
    let y = assemble(a, k, f);
    let y = specials(a, s, y);
    // Below 2^-25 the result is the argument; this keeps -0 and subnormals exact.
    let magnitude = a.abs(x);
    let threshold = a.f32(f32::EPSILON / 4.0);
    let tiny = a.lt(magnitude, threshold);
    a.select(tiny, x, y)
}

#[cfg(test)]
mod tests {
    use super::super::Scalar;
    use super::super::testing::{check_accuracy, linear, log_spaced};
    use super::*;

    const INF: f32 = f32::INFINITY;

    fn positive() -> impl Iterator<Item = f32> {
        log_spaced(-149, 127).filter(|x| *x > 0.0)
    }

    #[test]
    fn log_accuracy_and_specials() {
        let f = |x| log(&mut Scalar, x);
        check_accuracy("log", f, f64::ln, positive(), 0.95);
        check_accuracy("log", f, f64::ln, linear(0.5, 2.0), 0.95);
        assert_eq!((f(1.0), f(0.0), f(-0.0), f(INF)), (0.0, -INF, -INF, INF));
        assert!(f(-1.0).is_nan() && f(-INF).is_nan() && f(f32::NAN).is_nan() && f(-1e-45).is_nan());
    }

    #[test]
    fn log2_accuracy_and_specials() {
        let f = |x| log2(&mut Scalar, x);
        check_accuracy("log2", f, f64::log2, positive(), 1.49);
        check_accuracy("log2", f, f64::log2, linear(0.5, 2.0), 1.49);
        for n in -149..128 {
            assert_eq!(f(2f64.powi(n) as f32), n as f32);
        }
        assert_eq!((f(0.0), f(-0.0), f(INF)), (-INF, -INF, INF));
        assert!(f(-1.0).is_nan() && f(-INF).is_nan() && f(f32::NAN).is_nan());
    }

    #[test]
    fn log1p_accuracy_and_specials() {
        let f = |x| log1p(&mut Scalar, x);
        check_accuracy("log1p", f, f64::ln_1p, log_spaced(-149, 127).filter(|x| *x > -1.0), 1.4);
        check_accuracy("log1p", f, f64::ln_1p, linear(-0.999_999, 3.0), 1.49);
        assert_eq!((f(0.0), f(-1.0), f(INF)), (0.0, -INF, INF));
        assert_eq!(f(-0.0).to_bits(), (-0.0f32).to_bits());
        assert!(f(-1.5).is_nan() && f(-INF).is_nan() && f(f32::NAN).is_nan());
    }
}
