//! `exp2`, `exp`, `exp_m1` and what follows from them: `tanh`, `sigmoid`.
//!
//! The argument is split as n + r (base 2) or n ln 2 + r (base e) with |r| at most half a step; a polynomial covers
//! r, and 2^n is multiplied in two exact halves so that subnormal results round once. Depends on the parent only.

use super::{Arith, clamp, copy_sign, poly, pow2i, round_product};

/// (2^r - 1) / r on |r| <= 1/2.
const EXP2: [f32; 6] =
    [f32::from_bits(0x3f317219), 0.240_226_55, 0.055_502_724, 0.009_617_063, 0.001_341_821_4, 0.000_158_202_34];

/// (e^r - 1 - r) / r^2 on |r| <= ln(2)/2.
const EXPM1: [f32; 6] = [0.5, 0.166_666_67, 0.041_666_45, 0.008_333_08, 0.001_393_655_4, 0.000_200_759_53];

/// (tanh(x) - x) / x^3 as a polynomial in x^2, on |x| <= 0.625.
const TANH: [f32; 6] = [-0.333_333_3, 0.133_332_22, -0.053_948_462, 0.021_708_751, -0.008_195_098, 0.002_157_652_3];

/// log2(e) and ln(2), the latter in two parts whose sum holds 48 bits.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN2_HI: f32 = std::f32::consts::LN_2;
const LN2_LO: f32 = f32::from_bits(0xb102_e308);

/// `p * 2^n` for p near 1 and -252 <= n <= 254, rounded once.
fn scale<A: Arith + ?Sized>(a: &mut A, p: A::F, n: A::I) -> A::F {
    let half = a.sshr(n, 1);
    let rest = a.isub(n, half);
    let first = pow2i(a, half);
    let second = pow2i(a, rest);
    let p = a.mul(p, first);
    a.mul(p, second)
}

/// 2^(hi + lo) where |lo| is at most about an ulp of `hi`. Over- and underflow as they should.
pub(super) fn exp2_sum<A: Arith + ?Sized>(a: &mut A, hi: A::F, lo: A::F) -> A::F {
    let hi = clamp(a, hi, -151.0, 129.0);
    let one = a.f32(1.0);
    let (nf, n) = round_product(a, hi, one);
    let r = a.sub(hi, nf);
    let r = a.add(r, lo);
    let q = poly(a, r, &EXP2);
    let p = a.fma(r, q, one);
    scale(a, p, n)
}

/// 2^x; exact for integral x. Error below 1 ulp.
pub fn exp2<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let zero = a.f32(0.0);
    exp2_sum(a, x, zero)
}

/// Splits `x` (|x| < 2^20) as n ln 2 + r; returns n and e^r - 1.
fn reduce<A: Arith + ?Sized>(a: &mut A, x: A::F) -> (A::I, A::F) {
    let log2e = a.f32(LOG2_E);
    let (nf, n) = round_product(a, x, log2e);
    let minus_n = a.neg(nf);
    let (hi, lo) = (a.f32(LN2_HI), a.f32(LN2_LO));
    // Exact: the operands cancel down to 24 bits.
    let r = a.fma(minus_n, hi, x);
    let r = a.fma(minus_n, lo, r);
    let q = poly(a, r, &EXPM1);
    let rr = a.mul(r, r);
    (n, a.fma(rr, q, r))
}

/// e^x. Error below 1 ulp.
pub fn exp<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let x = clamp(a, x, -105.0, 90.0);
    let (n, m) = reduce(a, x);
    let one = a.f32(1.0);
    let p = a.add(m, one);
    scale(a, p, n)
}

/// e^x - 1 without cancellation near zero. Error below 1.5 ulp.
pub fn exp_m1<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let clamped = clamp(a, x, -20.0, 88.8);
    let (n, m) = reduce(a, clamped);
    // At half scale, because 2^n itself may not be representable: (2^n m + 2^n - 1) / 2.
    let minus_one = a.i32(-1);
    let n = a.iadd(n, minus_one);
    let half_scale = pow2i(a, n);
    let minus_half = a.f32(-0.5);
    let offset = a.add(half_scale, minus_half);
    let half = a.fma(m, half_scale, offset);
    let y = a.add(half, half);
    // Below 2^-25 the result is the argument; this keeps -0 and subnormals exact.
    let magnitude = a.abs(x);
    let threshold = a.f32(f32::EPSILON / 4.0);
    let tiny = a.lt(magnitude, threshold);
    a.select(tiny, x, y)
}

/// Hyperbolic tangent; odd, within [-1, 1]. Error below 1.5 ulp.
pub fn tanh<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let magnitude = a.abs(x);
    let one = a.f32(1.0);
    let two = a.f32(2.0);
    // 1 - 2 / (e^2|x| + 1) where that does not cancel, a polynomial below.
    let doubled = a.add(magnitude, magnitude);
    let e = exp(a, doubled);
    let e = a.add(e, one);
    let q = a.div(two, e);
    let large = a.sub(one, q);
    let z = a.mul(magnitude, magnitude);
    let p = poly(a, z, &TANH);
    let cube = a.mul(magnitude, z);
    let small = a.fma(cube, p, magnitude);
    let threshold = a.f32(0.625);
    let is_small = a.lt(magnitude, threshold);
    let y = a.select(is_small, small, large);
    copy_sign(a, y, x)
}

/// 1 / (1 + e^-x), accurate in both tails. Error below 1.5 ulp.
pub fn sigmoid<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let magnitude = a.abs(x);
    let minus = a.neg(magnitude);
    let e = exp(a, minus);
    let one = a.f32(1.0);
    let zero = a.f32(0.0);
    let denominator = a.add(one, e);
    let negative = a.lt(x, zero);
    let numerator = a.select(negative, e, one);
    let reciprocal = a.div(one, denominator);
    let y = a.mul(numerator, reciprocal);
    // One Newton step on the quotient, with the rounding error of the denominator put back.
    let e_part = a.sub(denominator, one);
    let denominator_lo = a.sub(e, e_part);
    let minus_y = a.neg(y);
    let residual = a.fma(minus_y, denominator, numerator);
    let residual = a.fma(minus_y, denominator_lo, residual);
    a.fma(residual, reciprocal, y)
}

#[cfg(test)]
mod tests {
    use super::super::Scalar;
    use super::super::testing::{check_accuracy, linear, log_spaced};
    use super::*;

    const INF: f32 = f32::INFINITY;

    #[test]
    fn exp2_accuracy_and_specials() {
        let f = |x| exp2(&mut Scalar, x);
        check_accuracy("exp2", f, f64::exp2, linear(-150.0, 128.0), 0.85);
        check_accuracy("exp2", f, f64::exp2, log_spaced(-140, 6), 0.85);
        for n in -149..128 {
            assert_eq!(f64::from(f(n as f32)), f64::from(n).exp2());
        }
        assert_eq!((f(INF), f(-INF), f(128.0), f(-150.0), f(0.0), f(-0.0)), (INF, 0.0, INF, 0.0, 1.0, 1.0));
        assert_eq!((f(3e38), f(-3e38)), (INF, 0.0));
        assert!(f(f32::NAN).is_nan());
    }

    #[test]
    fn exp_accuracy_and_specials() {
        let f = |x| exp(&mut Scalar, x);
        check_accuracy("exp", f, f64::exp, linear(-104.0, 89.0), 0.99);
        check_accuracy("exp", f, f64::exp, log_spaced(-140, 6), 0.99);
        assert_eq!((f(INF), f(-INF), f(89.0), f(-104.5), f(0.0), f(-0.0)), (INF, 0.0, INF, 0.0, 1.0, 1.0));
        assert_eq!((f(3e38), f(-3e38)), (INF, 0.0));
        assert!(f(f32::NAN).is_nan());
    }

    #[test]
    fn exp_m1_accuracy_and_specials() {
        let f = |x| exp_m1(&mut Scalar, x);
        check_accuracy("exp_m1", f, f64::exp_m1, linear(-25.0, 89.0), 1.45);
        check_accuracy("exp_m1", f, f64::exp_m1, linear(-1.5, 1.5), 1.45);
        check_accuracy("exp_m1", f, f64::exp_m1, log_spaced(-149, 6), 1.45);
        assert_eq!((f(INF), f(-INF), f(0.0)), (INF, -1.0, 0.0));
        assert_eq!(f(-0.0).to_bits(), (-0.0f32).to_bits());
        assert!(f(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_accuracy_and_specials() {
        let f = |x| tanh(&mut Scalar, x);
        check_accuracy("tanh", f, f64::tanh, linear(-10.0, 10.0), 1.45);
        check_accuracy("tanh", f, f64::tanh, log_spaced(-149, 127), 1.45);
        assert_eq!((f(INF), f(-INF)), (1.0, -1.0));
        assert_eq!(f(-0.0).to_bits(), (-0.0f32).to_bits());
        assert!(f(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_accuracy_and_specials() {
        let f = |x| sigmoid(&mut Scalar, x);
        let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
        check_accuracy("sigmoid", f, exact, linear(-104.0, 104.0), 1.5);
        check_accuracy("sigmoid", f, exact, log_spaced(-149, 6), 1.5);
        assert_eq!((f(INF), f(-INF), f(0.0), f(-0.0)), (1.0, 0.0, 0.5, 0.5));
        assert!(f(f32::NAN).is_nan());
    }
}
