//! `sin` and `cos`.
//!
//! x = k pi/2 + r by Cody and Waite's method with pi/2 in three parts and fused multiply-adds, r kept as a sum of two
//! floats; then one of two polynomials on |r| <= pi/4. Depends on the parent only.

use super::{Arith, clamp, poly, round_product};

/// (sin(r) - r) / r^3 as a polynomial in r^2.
const SIN: [f32; 4] = [-0.166_666_67, 0.008_333_38, -0.000_198_535_05, 2.837_395_2e-6];

/// (cos(r) - 1 + r^2/2) / r^4 as a polynomial in r^2.
const COS: [f32; 3] = [0.041_666_646, -0.001_388_731, 2.443_232_7e-5];

/// pi/2 = the sum of these to 72 bits.
const PIO2: [f32; 3] = [std::f32::consts::FRAC_PI_2, f32::from_bits(0xb33b_bd2e), f32::from_bits(0xa6f7_2ced)];

/// sin(x). Error below 1 ulp for |x| <= 10^6. Beyond, the result stays within [-1, 1] but loses accuracy, and means
/// nothing from about 2^22 on. NaN at infinities.
pub fn sin<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let y = sin_shifted(a, x, 0);
    // sin(x) rounds to x here; this keeps -0 and subnormals exact.
    let magnitude = a.abs(x);
    let threshold = a.f32(2.441_406_3e-4); // 2^-12
    let tiny = a.lt(magnitude, threshold);
    a.select(tiny, x, y)
}

/// cos(x), with the limits of [`sin`].
pub fn cos<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    sin_shifted(a, x, 1)
}

/// sin(x + shift pi/2).
fn sin_shifted<A: Arith + ?Sized>(a: &mut A, x: A::F, shift: i32) -> A::F {
    let two_over_pi = a.f32(std::f32::consts::FRAC_2_PI);
    let (kf, k) = round_product(a, x, two_over_pi);
    let minus_k = a.neg(kf);
    let [c0, c1, c2] = PIO2.map(|c| a.f32(c));
    // Exact up to |k| = 2^20: the operands cancel down to 24 bits.
    let r0 = a.fma(minus_k, c0, x);
    // k c1 as p + p_lo, r0 + p as r1 + r1_lo (Knuth's two-sum: either operand may be the larger).
    let p = a.mul(minus_k, c1);
    let minus_p = a.neg(p);
    let p_lo = a.fma(minus_k, c1, minus_p);
    let r1 = a.add(r0, p);
    let p_part = a.sub(r1, r0);
    let r0_part = a.sub(r1, p_part);
    let r0_error = a.sub(r0, r0_part);
    let p_error = a.sub(p, p_part);
    let r1_lo = a.add(r0_error, p_error);
    let lo = a.add(r1_lo, p_lo);
    let lo = a.fma(minus_k, c2, lo);
    let hi = a.add(r1, lo);
    let lost = a.sub(r1, hi);
    let lo = a.add(lost, lo);
    // Up to 10^6 the rounding of x 2/pi moves |hi| past pi/4 by 5%; more means a meaningless argument.
    let hi = clamp(a, hi, -1.0, 1.0);
    let lo = clamp(a, lo, -1e-6, 1e-6);

    let one = a.f32(1.0);
    let z = a.mul(hi, hi);
    // sin(hi + lo) = hi + hi^3 S + lo
    let s = poly(a, z, &SIN);
    let cube = a.mul(hi, z);
    let s = a.fma(cube, s, lo);
    let s = a.add(hi, s);
    // cos(hi + lo) = 1 - z/2 + z^2 C - hi lo, where 1 - z/2 is kept as w plus its rounding error.
    let c = poly(a, z, &COS);
    let zz = a.mul(z, z);
    let c = a.mul(zz, c);
    let minus_hi = a.neg(hi);
    let c = a.fma(minus_hi, lo, c);
    let minus_half = a.f32(-0.5);
    let w = a.fma(z, minus_half, one);
    let w_error = a.sub(one, w);
    let w_error = a.fma(z, minus_half, w_error);
    let c = a.add(c, w_error);
    let c = a.add(w, c);

    let shift = a.i32(shift);
    let quadrant = a.iadd(k, shift);
    let bit0 = a.i32(1);
    let odd = a.iand(quadrant, bit0);
    let odd = a.ieq(odd, bit0);
    let y = a.select(odd, c, s);
    let bit1 = a.i32(2);
    let sign = a.iand(quadrant, bit1);
    let sign = a.ishl(sign, 30);
    let bits = a.bits(y);
    let bits = a.ixor(bits, sign);
    a.bits_to_float(bits)
}

#[cfg(test)]
mod tests {
    use super::super::Scalar;
    use super::super::testing::{check_accuracy, linear, log_spaced};
    use super::*;

    #[test]
    fn accuracy() {
        for (name, f, exact) in [
            ("sin", (|x| sin(&mut Scalar, x)) as fn(f32) -> f32, f64::sin as fn(f64) -> f64),
            ("cos", |x| cos(&mut Scalar, x), f64::cos),
        ] {
            check_accuracy(name, f, exact, linear(-7.0, 7.0), 0.9);
            check_accuracy(name, f, exact, linear(-1e6, 1e6), 0.9);
            check_accuracy(name, f, exact, log_spaced(-149, 16), 0.9);
            // The floats nearest to multiples of pi/2 are where a reduction fails first.
            let multiples = (0..600_000).map(|k| (f64::from(k) * std::f64::consts::FRAC_PI_2) as f32);
            check_accuracy(name, f, exact, multiples, 0.9);
        }
    }

    #[test]
    fn specials() {
        assert_eq!(cos(&mut Scalar, 0.0), 1.0);
        assert_eq!(sin(&mut Scalar, -0.0).to_bits(), (-0.0f32).to_bits());
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(sin(&mut Scalar, x).is_nan() && cos(&mut Scalar, x).is_nan(), "{x}");
        }
    }

    #[test]
    fn huge_arguments_stay_in_range() {
        for x in log_spaced(20, 127) {
            assert!(sin(&mut Scalar, x).abs() <= 1.0, "sin({x:e})");
            assert!(cos(&mut Scalar, x).abs() <= 1.0, "cos({x:e})");
        }
    }
}
