//! Conversions between element types: what `cast` and `bitcast` mean, in the interpreter and in every backend.

use super::minifloat as mf;
use super::{Const, constant::sign_extend};
use crate::DType;

/// The value of `c` converted to `to`.
///
/// * float to float: nearest, ties to even, one rounding. `f16`, `bf16` and `f32` overflow to infinity; `f8e4m3`,
///   `f8e5m2` and `f4e2m1` saturate, infinities included; `e8m0` rounds up to a power of two
///   ([`super::minifloat::e8m0_from_f64_ceil`]). A NaN becomes the positive quiet NaN of `to` (+6 in `f4e2m1`).
/// * float to integer: toward zero, saturating; NaN gives 0 (as Rust's `as`).
/// * integer to float: one rounding, as float to float.
/// * integer to integer: keeps the low bits (two's complement), extending by the sign of the source type.
/// * to its own type: unchanged, bit for bit.
/// * to `bool`: is not zero (NaN is true); from `bool`: 0 or 1. `index` behaves as `i64`.
pub fn cast(c: Const, to: DType) -> Const {
    let from = c.dtype();
    if from == to {
        return c;
    }
    if from.is_float() {
        return from_f64(to, c.as_f64());
    }
    // Integers and bool: an exact 128-bit value serves signed and unsigned sources alike.
    let value = integer(c);
    if to == DType::Bool {
        Const::from_bool(value != 0)
    } else if to.is_int() {
        Const::from_bits(to, value as u64)
    } else if to == DType::F64 {
        Const::from_bits(to, (value as f64).to_bits())
    } else {
        from_f64(to, round_to_odd(value))
    }
}

/// `x` as a constant of type `to`, by the rules of [`cast`] from `f64`.
pub(super) fn from_f64(to: DType, x: f64) -> Const {
    let bits = match to {
        DType::Bool => u64::from(x != 0.0),
        DType::I8 => x as i8 as u64,
        DType::I16 => x as i16 as u64,
        DType::I32 => x as i32 as u64,
        DType::I64 | DType::Index => x as i64 as u64,
        DType::U8 => x as u8 as u64,
        DType::U16 => x as u16 as u64,
        DType::U32 => x as u32 as u64,
        DType::U64 => x as u64,
        DType::F16 => mf::f16_from_f64(x).into(),
        DType::BF16 => mf::bf16_from_f64(x).into(),
        DType::F32 if x.is_nan() => 0x7fc0_0000,
        DType::F32 => (x as f32).to_bits().into(),
        DType::F64 if x.is_nan() => 0x7ff8_0000_0000_0000,
        DType::F64 => x.to_bits(),
        DType::F8E4M3 => mf::f8e4m3_from_f64(x).into(),
        DType::F8E5M2 => mf::f8e5m2_from_f64(x).into(),
        DType::F4E2M1 => mf::f4e2m1_from_f64(x).into(),
        DType::E8M0 => mf::e8m0_from_f64_ceil(x).into(),
    };
    Const::from_bits(to, bits)
}

/// The exact value of an integer or bool constant.
pub(super) fn integer(c: Const) -> i128 {
    if c.dtype().is_signed_int() { sign_extend(c.dtype(), c.bits()).into() } else { c.bits().into() }
}

/// `v` (64 bits and a sign at most) as an `f64` that any narrower format rounds to the same code as `v` itself:
/// bits that do not fit are folded into the last one (rounding to odd, Boldo and Melquiond 2008).
fn round_to_odd(v: i128) -> f64 {
    let magnitude = v.unsigned_abs();
    let folded = if magnitude >> 53 == 0 {
        magnitude as f64
    } else {
        // At most 64 bits: dropping 11 leaves 53.
        let sticky = u128::from(magnitude & 0x7ff != 0);
        ((magnitude >> 11) | sticky) as f64 * 2048.0
    };
    if v < 0 { -folded } else { folded }
}

/// The bit pattern of `c` read as type `to`. `None` unless both types have a memory representation of the same
/// width in which every pattern is valid, which excludes `index` and `bool`.
pub fn bitcast(c: Const, to: DType) -> Option<Const> {
    let opaque = |t| matches!(t, DType::Bool | DType::Index);
    if opaque(c.dtype()) || opaque(to) || c.dtype().bits() != to.bits() {
        return None;
    }
    Some(Const::from_bits(to, c.bits()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(from: Const, to: DType) -> u64 {
        cast(from, to).bits()
    }

    #[test]
    fn float_to_int_saturates_toward_zero() {
        let f = |x| Const::from_f64(DType::F32, x);
        assert_eq!(cast(f(-1.9), DType::I32).as_i64(), -1);
        assert_eq!(cast(f(300.0), DType::U8).as_i64(), 255);
        assert_eq!(cast(f(-5.0), DType::U64).as_i64(), 0);
        assert_eq!(cast(f(f64::NAN), DType::I8).as_i64(), 0);
        assert_eq!(cast(f(f64::INFINITY), DType::Index).as_i64(), i64::MAX);
        assert_eq!(bits(f(f64::INFINITY), DType::U64), u64::MAX);
    }

    #[test]
    fn int_to_int_wraps_and_extends() {
        let i = Const::from_i64;
        assert_eq!(cast(i(DType::I32, 300), DType::U8).as_i64(), 44);
        assert_eq!(cast(i(DType::I8, -1), DType::U32).bits(), 0xffff_ffff);
        assert_eq!(cast(i(DType::U8, 255), DType::I32).as_i64(), 255);
        assert_eq!(cast(i(DType::U8, 255), DType::I8).as_i64(), -1);
        assert_eq!(cast(i(DType::Index, -7), DType::I32).as_i64(), -7);
        assert_eq!(cast(i(DType::I32, 0x100), DType::Bool).as_i64(), 1);
        assert_eq!(cast(Const::from_bool(true), DType::BF16).as_f64(), 1.0);
    }

    #[test]
    fn narrow_floats_saturate_and_wide_ones_overflow() {
        let f = |x| Const::from_f64(DType::F32, x);
        assert_eq!(cast(f(1e6), DType::F8E4M3).as_f64(), 448.0);
        assert_eq!(cast(f(f64::NEG_INFINITY), DType::F8E5M2).as_f64(), -57344.0);
        assert_eq!(cast(f(1e6), DType::F16).as_f64(), f64::INFINITY);
        assert_eq!(cast(f(3.0), DType::E8M0).as_f64(), 4.0);
        assert_eq!(bits(f(f64::NAN), DType::F16), 0x7e00);
        assert_eq!(bits(f(f64::NAN), DType::F64), 0x7ff8_0000_0000_0000);
        assert_eq!(cast(Const::from_bits(DType::F8E5M2, 0xfc), DType::F32).as_f64(), f64::NEG_INFINITY);
        // To its own type a value is just itself.
        assert_eq!(bits(Const::from_bits(DType::F8E5M2, 0x7c), DType::F8E5M2), 0x7c);
    }

    #[test]
    fn large_integers_round_once() {
        // 2^60 + 2^52 is halfway between two bf16 numbers (quantum 2^53); the last bit decides, and is beyond f64.
        let halfway = (1i64 << 60) + (1 << 52);
        let up = Const::from_i64(DType::I64, halfway + 1);
        let tie = Const::from_i64(DType::I64, halfway);
        assert_eq!(cast(up, DType::BF16).as_f64(), (1u64 << 60) as f64 + (1u64 << 53) as f64);
        assert_eq!(cast(tie, DType::BF16).as_f64(), (1u64 << 60) as f64);
    }

    #[test]
    fn bitcast_needs_equal_widths() {
        let one = Const::from_f64(DType::F32, 1.0);
        assert_eq!(bitcast(one, DType::I32).map(Const::as_i64), Some(0x3f80_0000));
        assert_eq!(bitcast(one, DType::I64), None);
        assert_eq!(bitcast(Const::from_bool(true), DType::U8), None);
        assert_eq!(bitcast(Const::from_i64(DType::Index, 1), DType::F64), None);
    }

    proptest! {
        #[test]
        fn casts_agree_with_rust(v: i64, u: u64, x: f64) {
            let (c, cu) = (Const::from_i64(DType::I64, v), Const::from_bits(DType::U64, u));
            prop_assert_eq!(bits(c, DType::F32), u64::from((v as f32).to_bits()));
            prop_assert_eq!(bits(cu, DType::F32), u64::from((u as f32).to_bits()));
            prop_assert_eq!(bits(c, DType::F64), (v as f64).to_bits());
            prop_assert_eq!(bits(cu, DType::F64), (u as f64).to_bits());
            prop_assert_eq!(bits(c, DType::I16), u64::from(v as u16));
            let f = Const::from_f64(DType::F64, x);
            prop_assert_eq!(cast(f, DType::I32).as_i64(), i64::from(x as i32));
            prop_assert_eq!(bits(f, DType::F32), u64::from((x as f32).to_bits()));
        }
    }
}
