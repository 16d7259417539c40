//! Elementary functions as fixed sequences of IEEE `f32` operations.
//!
//! Each function is written once, over the builder trait [`Arith`]. The interpreter runs it on [`Scalar`]
//! (values), a code generator on a builder that emits vector instructions; both perform the same correctly
//! rounded operations in the same order and so produce the same bits. Nothing may be reassociated, contracted or
//! replaced by a library call on the way. Fast approximate variants are no business of this module: a backend
//! that offers them (`ex2.approx` and the like) defines them itself, and they are not bit-exact.
//!
//! Worst errors measured by the tests beside each function are below 1.5 ulp, for most below 1.
//! Special values follow C99 Annex F; subnormal arguments and results are handled, not flushed.
//!
//! Coefficients are minimax fits computed for this module with the Remez exchange algorithm in 160-bit arithmetic,
//! rounded to `f32` one by one with the rest refitted. Depends on nothing.

mod exp;
mod log;
mod pow;
mod trig;

#[cfg(test)]
mod testing;

pub use exp::{exp, exp_m1, exp2, sigmoid, tanh};
pub use log::{log, log1p, log2};
pub use pow::pow;
pub use trig::{cos, sin};

/// A builder of `f32` and `i32` operations.
///
/// Floating-point operations are IEEE-754 binary32, round to nearest even, subnormals kept, [`Arith::fma`] fused.
/// Integer operations wrap. No operation may trap, whatever its operands; on a NaN, [`Arith::bits`] may give any
/// NaN pattern.
pub trait Arith {
    /// A float, or a vector of them.
    type F: Copy;
    /// A 32-bit integer, or a vector of them.
    type I: Copy;
    /// The result of a comparison, one per lane.
    type B: Copy;

    /// The constant `v`, in every lane.
    fn f32(&mut self, v: f32) -> Self::F;
    /// The constant `v`, in every lane.
    fn i32(&mut self, v: i32) -> Self::I;

    fn add(&mut self, x: Self::F, y: Self::F) -> Self::F;
    fn sub(&mut self, x: Self::F, y: Self::F) -> Self::F;
    fn mul(&mut self, x: Self::F, y: Self::F) -> Self::F;
    fn div(&mut self, x: Self::F, y: Self::F) -> Self::F;
    /// `x * y + z`, rounded once.
    fn fma(&mut self, x: Self::F, y: Self::F, z: Self::F) -> Self::F;
    fn sqrt(&mut self, x: Self::F) -> Self::F;
    /// The integral value nearest to `x`, ties to even; keeps the sign of zero.
    fn round_even(&mut self, x: Self::F) -> Self::F;
    /// Clears the sign bit, that of a NaN too.
    fn abs(&mut self, x: Self::F) -> Self::F;
    /// Flips the sign bit, that of a NaN too.
    fn neg(&mut self, x: Self::F) -> Self::F;

    /// The bit pattern of `x`.
    fn bits(&mut self, x: Self::F) -> Self::I;
    /// The float with bit pattern `x`.
    fn bits_to_float(&mut self, x: Self::I) -> Self::F;
    /// `x` as a float, rounded to nearest even.
    fn int_to_float(&mut self, x: Self::I) -> Self::F;

    fn iadd(&mut self, x: Self::I, y: Self::I) -> Self::I;
    fn isub(&mut self, x: Self::I, y: Self::I) -> Self::I;
    fn iand(&mut self, x: Self::I, y: Self::I) -> Self::I;
    fn ior(&mut self, x: Self::I, y: Self::I) -> Self::I;
    fn ixor(&mut self, x: Self::I, y: Self::I) -> Self::I;
    /// `x << n`, `n < 32`.
    fn ishl(&mut self, x: Self::I, n: u32) -> Self::I;
    /// `x >> n` filling with zeros, `n < 32`.
    fn ushr(&mut self, x: Self::I, n: u32) -> Self::I;
    /// `x >> n` filling with the sign, `n < 32`.
    fn sshr(&mut self, x: Self::I, n: u32) -> Self::I;

    /// `x < y`; false if either is NaN.
    fn lt(&mut self, x: Self::F, y: Self::F) -> Self::B;
    /// `x <= y`; false if either is NaN.
    fn le(&mut self, x: Self::F, y: Self::F) -> Self::B;
    /// `x == y`; false if either is NaN.
    fn eq(&mut self, x: Self::F, y: Self::F) -> Self::B;
    /// `x != y`; true if either is NaN.
    fn ne(&mut self, x: Self::F, y: Self::F) -> Self::B;
    /// `x == y` on integers.
    fn ieq(&mut self, x: Self::I, y: Self::I) -> Self::B;
    /// `x` where `c` holds, else `y`.
    fn select(&mut self, c: Self::B, x: Self::F, y: Self::F) -> Self::F;
    /// `x` where `c` holds, else `y`.
    fn iselect(&mut self, c: Self::B, x: Self::I, y: Self::I) -> Self::I;

    /// The smaller operand; of a NaN and a number, the number (IEEE-754-2019 `minimumNumber`); of equal operands,
    /// and so of zeros of either sign, the second. Override only with something that gives the same bits.
    fn min(&mut self, x: Self::F, y: Self::F) -> Self::F {
        let less = self.lt(x, y);
        let m = self.select(less, x, y);
        let y_is_nan = self.ne(y, y);
        self.select(y_is_nan, x, m)
    }

    /// The larger operand, with the rules of [`Arith::min`].
    fn max(&mut self, x: Self::F, y: Self::F) -> Self::F {
        let greater = self.lt(y, x);
        let m = self.select(greater, x, y);
        let y_is_nan = self.ne(y, y);
        self.select(y_is_nan, x, m)
    }
}

/// [`Arith`] on plain values: the reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

impl Arith for Scalar {
    type F = f32;
    type I = i32;
    type B = bool;

    fn f32(&mut self, v: f32) -> f32 {
        v
    }
    fn i32(&mut self, v: i32) -> i32 {
        v
    }
    fn add(&mut self, x: f32, y: f32) -> f32 {
        x + y
    }
    fn sub(&mut self, x: f32, y: f32) -> f32 {
        x - y
    }
    fn mul(&mut self, x: f32, y: f32) -> f32 {
        x * y
    }
    fn div(&mut self, x: f32, y: f32) -> f32 {
        x / y
    }
    fn fma(&mut self, x: f32, y: f32, z: f32) -> f32 {
        x.mul_add(y, z)
    }
    fn sqrt(&mut self, x: f32) -> f32 {
        x.sqrt()
    }
    fn round_even(&mut self, x: f32) -> f32 {
        x.round_ties_even()
    }
    fn abs(&mut self, x: f32) -> f32 {
        x.abs()
    }
    fn neg(&mut self, x: f32) -> f32 {
        -x
    }
    fn bits(&mut self, x: f32) -> i32 {
        x.to_bits().cast_signed()
    }
    fn bits_to_float(&mut self, x: i32) -> f32 {
        f32::from_bits(x.cast_unsigned())
    }
    fn int_to_float(&mut self, x: i32) -> f32 {
        x as f32
    }
    fn iadd(&mut self, x: i32, y: i32) -> i32 {
        x.wrapping_add(y)
    }
    fn isub(&mut self, x: i32, y: i32) -> i32 {
        x.wrapping_sub(y)
    }
    fn iand(&mut self, x: i32, y: i32) -> i32 {
        x & y
    }
    fn ior(&mut self, x: i32, y: i32) -> i32 {
        x | y
    }
    fn ixor(&mut self, x: i32, y: i32) -> i32 {
        x ^ y
    }
    fn ishl(&mut self, x: i32, n: u32) -> i32 {
        x << n
    }
    fn ushr(&mut self, x: i32, n: u32) -> i32 {
        (x.cast_unsigned() >> n).cast_signed()
    }
    fn sshr(&mut self, x: i32, n: u32) -> i32 {
        x >> n
    }
    fn lt(&mut self, x: f32, y: f32) -> bool {
        x < y
    }
    fn le(&mut self, x: f32, y: f32) -> bool {
        x <= y
    }
    fn eq(&mut self, x: f32, y: f32) -> bool {
        x == y
    }
    fn ne(&mut self, x: f32, y: f32) -> bool {
        x != y
    }
    fn ieq(&mut self, x: i32, y: i32) -> bool {
        x == y
    }
    fn select(&mut self, c: bool, x: f32, y: f32) -> f32 {
        if c { x } else { y }
    }
    fn iselect(&mut self, c: bool, x: i32, y: i32) -> i32 {
        if c { x } else { y }
    }
}

/// 1 / x, correctly rounded.
pub fn rcp<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let one = a.f32(1.0);
    a.div(one, x)
}

/// 1 / sqrt(x), two roundings: error below 1.5 ulp. NaN below zero, an infinity with the sign of the argument at zero.
pub fn rsqrt<A: Arith + ?Sized>(a: &mut A, x: A::F) -> A::F {
    let root = a.sqrt(x);
    rcp(a, root)
}

/// `c[0] + c[1] x + c[2] x² ...` by Horner's rule, one fma a step.
fn poly<A: Arith + ?Sized>(a: &mut A, x: A::F, c: &[f32]) -> A::F {
    let (&last, rest) = c.split_last().expect("a polynomial has at least one coefficient");
    let mut p = a.f32(last);
    for &c in rest.iter().rev() {
        let c = a.f32(c);
        p = a.fma(p, x, c);
    }
    p
}

/// 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// Nearest integer to `x * y` (|x * y| < 2^22), as a float and as an integer. The integer is arbitrary for larger
/// or NaN products.
fn round_product<A: Arith + ?Sized>(a: &mut A, x: A::F, y: A::F) -> (A::F, A::I) {
    let magic = a.f32(ROUND_MAGIC);
    let shifted = a.fma(x, y, magic);
    let float = a.sub(shifted, magic);
    let magic_bits = a.i32(ROUND_MAGIC.to_bits().cast_signed());
    let shifted_bits = a.bits(shifted);
    (float, a.isub(shifted_bits, magic_bits))
}

/// 2^n for -126 <= n <= 127.
fn pow2i<A: Arith + ?Sized>(a: &mut A, n: A::I) -> A::F {
    let bias = a.i32(127);
    let field = a.iadd(n, bias);
    let bits = a.ishl(field, 23);
    a.bits_to_float(bits)
}

/// `magnitude` (sign bit clear) with the sign bit of `sign`.
fn copy_sign<A: Arith + ?Sized>(a: &mut A, magnitude: A::F, sign: A::F) -> A::F {
    let mask = a.i32(i32::MIN);
    let sign = a.bits(sign);
    let sign = a.iand(sign, mask);
    let magnitude = a.bits(magnitude);
    let bits = a.ior(magnitude, sign);
    a.bits_to_float(bits)
}

/// `x` limited to `lo..=hi`; NaN stays NaN.
fn clamp<A: Arith + ?Sized>(a: &mut A, x: A::F, lo: f32, hi: f32) -> A::F {
    let (lo, hi) = (a.f32(lo), a.f32(hi));
    let below = a.lt(x, lo);
    let x = a.select(below, lo, x);
    let above = a.lt(hi, x);
    a.select(above, hi, x)
}

#[cfg(test)]
mod tests {
    use super::testing::{check_accuracy, log_spaced};
    use super::*;

    #[test]
    fn reciprocals() {
        check_accuracy("rcp", |x| rcp(&mut Scalar, x), |x| 1.0 / x, log_spaced(-126, 126), 0.51);
        let positive = || log_spaced(-149, 127).filter(|x| *x > 0.0);
        check_accuracy("rsqrt", |x| rsqrt(&mut Scalar, x), |x| 1.0 / x.sqrt(), positive(), 1.5);
        assert_eq!(rsqrt(&mut Scalar, 0.0), f32::INFINITY);
        assert_eq!(rsqrt(&mut Scalar, -0.0), f32::NEG_INFINITY);
        assert!(rsqrt(&mut Scalar, -1.0).is_nan());
        assert_eq!(rsqrt(&mut Scalar, f32::INFINITY), 0.0);
    }

    #[test]
    fn min_and_max_pick_the_number() {
        let a = &mut Scalar;
        assert_eq!(a.min(1.0, f32::NAN), 1.0);
        assert_eq!(a.min(f32::NAN, 1.0), 1.0);
        assert_eq!(a.max(1.0, f32::NAN), 1.0);
        assert_eq!(a.max(f32::NAN, 1.0), 1.0);
        assert!(a.max(f32::NAN, f32::NAN).is_nan());
        assert_eq!(a.min(-0.0, 0.0).to_bits(), 0.0f32.to_bits());
        assert_eq!(a.max(0.0, -0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!((a.min(2.0, 3.0), a.max(2.0, 3.0)), (2.0, 3.0));
    }
}
