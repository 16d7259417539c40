//! `pow`: exp2(y log2 |x|) with the logarithm and the product carried as sums of two floats.
//!
//! The result's relative error is the absolute error of y log2 |x|, which reaches 150, so the logarithm needs some
//! ten bits more than an `f32` holds. Depends on the parent only.

use super::exp::exp2_sum;
use super::log::{LOG2E_HI, LOG2E_LO, split};
use super::{Arith, poly};

/// (atanh(s)/s - 1 - s^2/3) / s^4 as a polynomial in s^2, on |s| <= (sqrt(2) - 1) / (sqrt(2) + 1).
const ATANH: [f32; 3] = [0.200_000_76, 0.142_735_44, 0.117_098_84];
const THIRD_HI: f32 = 1.0 / 3.0;
const THIRD_LO: f32 = f32::from_bits(0xb22a_aaab);

/// x * y as product and rounding error.
fn two_product<A: Arith + ?Sized>(a: &mut A, x: A::F, y: A::F) -> (A::F, A::F) {
    let p = a.mul(x, y);
    let minus_p = a.neg(p);
    (p, a.fma(x, y, minus_p))
}

/// x + y as sum and rounding error, where |x| >= |y| or x = 0 (Dekker).
fn fast_two_sum<A: Arith + ?Sized>(a: &mut A, x: A::F, y: A::F) -> (A::F, A::F) {
    let s = a.add(x, y);
    let y_part = a.sub(s, x);
    (s, a.sub(y, y_part))
}

/// log2(x) as a sum of two floats with some 34 good bits, for positive finite `x`; anything otherwise.
fn log2_double<A: Arith + ?Sized>(a: &mut A, x: A::F) -> (A::F, A::F) {
    let (k, f) = split(a, x);
    let k = a.int_to_float(k);
    // s = f / (2 + f), so that log(1 + f) = 2 atanh(s).
    let two = a.f32(2.0);
    let (d, d_lo) = fast_two_sum(a, two, f);
    let s = a.div(f, d);
    let minus_s = a.neg(s);
    let remainder = a.fma(minus_s, d, f);
    let remainder = a.fma(minus_s, d_lo, remainder);
    let s_lo = a.div(remainder, d);
    // z = s^2
    let (z, z_lo) = two_product(a, s, s);
    let twice_s = a.add(s, s);
    let z_lo = a.fma(twice_s, s_lo, z_lo);
    // c = 1/3 + z T(z)
    let t = poly(a, z, &ATANH);
    let t = a.mul(t, z);
    let (third, third_lo) = (a.f32(THIRD_HI), a.f32(THIRD_LO));
    let (c, c_lo) = fast_two_sum(a, third, t);
    let c_lo = a.add(c_lo, third_lo);
    // p = z c, w = s p, h = s + w = atanh(s)
    let (p, p_lo) = two_product(a, z, c);
    let p_lo = a.fma(z, c_lo, p_lo);
    let p_lo = a.fma(z_lo, c, p_lo);
    let (w, w_lo) = two_product(a, s, p);
    let w_lo = a.fma(s, p_lo, w_lo);
    let w_lo = a.fma(s_lo, p, w_lo);
    let (h, h_lo) = fast_two_sum(a, s, w);
    let h_lo = a.add(h_lo, w_lo);
    let h_lo = a.add(h_lo, s_lo);
    // g = 2 log2(e) h
    let (e, e_lo) = (a.f32(2.0 * LOG2E_HI), a.f32(2.0 * LOG2E_LO));
    let (g, g_lo) = two_product(a, h, e);
    let g_lo = a.fma(h, e_lo, g_lo);
    let g_lo = a.fma(h_lo, e, g_lo);
    let (hi, lo) = fast_two_sum(a, k, g);
    let lo = a.add(lo, g_lo);
    fast_two_sum(a, hi, lo)
}

/// x^y with all the cases of C99 Annex F. Error below 1.5 ulp.
pub fn pow<A: Arith + ?Sized>(a: &mut A, x: A::F, y: A::F) -> A::F {
    let zero = a.f32(0.0);
    let one = a.f32(1.0);
    let infinity = a.f32(f32::INFINITY);
    let minus_infinity = a.f32(f32::NEG_INFINITY);
    let nan = a.f32(f32::NAN);

    let magnitude = a.abs(x);
    let (l, l_lo) = log2_double(a, magnitude);
    // Infinity and NaN are their own logarithms; that of zero is -infinity.
    let finite = a.lt(magnitude, infinity);
    let l = a.select(finite, l, magnitude);
    let x_is_zero = a.eq(x, zero);
    let l = a.select(x_is_zero, minus_infinity, l);

    let (p, p_lo) = two_product(a, y, l);
    let p_lo = a.fma(y, l_lo, p_lo);
    // Far outside the range of exp2 (or NaN) the low part does not matter and may be NaN itself.
    let p_magnitude = a.abs(p);
    let limit = a.f32(200.0);
    let in_range = a.lt(p_magnitude, limit);
    let p_lo = a.select(in_range, p_lo, zero);
    let m = exp2_sum(a, p, p_lo);
    // infinity * log2(1) is NaN, but 1^y is 1.
    let is_one = a.eq(magnitude, one);
    let m = a.select(is_one, one, m);

    // Parity of y: an odd integer passes the sign of x on, a fraction makes finite negative x a NaN. Every float
    // from 2^24 on, infinity included, is even.
    let y_rounded = a.round_even(y);
    let y_integral = a.eq(y_rounded, y);
    let half = a.f32(0.5);
    let y_half = a.mul(y, half);
    let y_half_rounded = a.round_even(y_half);
    let y_even = a.eq(y_half_rounded, y_half);
    let zero_i = a.i32(0);
    let sign_mask = a.i32(i32::MIN);
    let odd_mask = a.iselect(y_even, zero_i, sign_mask);
    let odd_mask = a.iselect(y_integral, odd_mask, zero_i);
    let x_bits = a.bits(x);
    let sign = a.iand(x_bits, odd_mask);
    let m_bits = a.bits(m);
    let bits = a.ior(m_bits, sign);
    let r = a.bits_to_float(bits);

    let fraction_of_negative = a.select(y_integral, r, nan);
    let x_negative = a.lt(x, zero);
    let r_negative = a.select(finite, fraction_of_negative, r);
    let r = a.select(x_negative, r_negative, r);
    let x_is_one = a.eq(x, one);
    let r = a.select(x_is_one, one, r);
    let y_is_zero = a.eq(y, zero);
    a.select(y_is_zero, one, r)
}

#[cfg(test)]
mod tests {
    use super::super::Scalar;
    use super::super::testing::{check_accuracy, linear, log_spaced, ulp_error};
    use super::*;

    #[test]
    fn accuracy_along_lines() {
        for y in [-40.0f32, -3.7, -1.0, -0.5, 0.1, 0.333, 0.5, 1.0, 1.7, 2.0, 3.0, 17.3, 80.0] {
            let xs = log_spaced(-149, 127).step_by(7).filter(|x| *x > 0.0);
            check_accuracy("pow", |x| pow(&mut Scalar, x, y), |x| x.powf(y.into()), xs, 1.2);
        }
        for x in [1e4f32, 1e6, 0.1, 0.97, 1.0001, 2.0, 10.0, 1e-30] {
            let reach = 150.0 / x.log2().abs();
            let ys = linear(-reach, reach).step_by(7);
            check_accuracy("pow", |y| pow(&mut Scalar, x, y), |y| f64::from(x).powf(y), ys, 1.2);
        }
    }

    #[test]
    fn specials_agree_with_the_standard_library() {
        let xs = [
            0.0f32,
            -0.0,
            1.0,
            -1.0,
            0.5,
            -0.5,
            2.0,
            -2.0,
            3.0,
            -3.0,
            1e-40,
            -1e-40,
            3e38,
            -3e38,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        let ys = [
            0.0f32,
            -0.0,
            1.0,
            -1.0,
            2.0,
            -2.0,
            3.0,
            -3.0,
            0.5,
            -0.5,
            2.5,
            -2.5,
            127.0,
            -127.0,
            8_388_609.0,
            16_777_216.0,
            -16_777_217.0,
            3e38,
            -3e38,
            1e-45,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        for x in xs {
            for y in ys {
                let (got, exact) = (pow(&mut Scalar, x, y), f64::from(x).powf(y.into()));
                let error = ulp_error(got, exact);
                assert!(error < 1.0, "pow({x:e}, {y:e}) = {got:e}, exact {exact:e}");
                if !exact.is_nan() {
                    assert_eq!(got.is_sign_negative(), exact.is_sign_negative(), "sign of pow({x:e}, {y:e})");
                }
            }
        }
    }
}
