//! Rounding of exact values into the floating-point formats of the GPU, all modes, from one routine.

use crate::sim::decode::op::Round;

/// A binary floating-point format of at most 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Explicit mantissa bits.
    pub mantissa: u32,
    pub bias: i32,
    /// Largest finite pattern, without sign.
    pub max: u32,
    /// Pattern of infinity, if there is one.
    pub inf: Option<u32>,
    /// The NaN that instructions produce.
    pub nan: u32,
    pub bits: u32,
}

pub const F16: Format = Format { mantissa: 10, bias: 15, max: 0x7BFF, inf: Some(0x7C00), nan: 0x7FFF, bits: 16 };
pub const BF16: Format = Format { mantissa: 7, bias: 127, max: 0x7F7F, inf: Some(0x7F80), nan: 0x7FFF, bits: 16 };
pub const F32: Format =
    Format { mantissa: 23, bias: 127, max: 0x7F7F_FFFF, inf: Some(0x7F80_0000), nan: 0x7FFF_FFFF, bits: 32 };
/// As a 19-bit pattern; in a register it is shifted left by 13.
pub const TF32: Format =
    Format { mantissa: 10, bias: 127, max: 0x3_FBFF, inf: Some(0x3_FC00), nan: 0x3_FFFF, bits: 19 };
pub const E4M3: Format = Format { mantissa: 3, bias: 7, max: 0x7E, inf: None, nan: 0x7F, bits: 8 };
pub const E5M2: Format = Format { mantissa: 2, bias: 15, max: 0x7B, inf: Some(0x7C), nan: 0x7F, bits: 8 };

/// Rounds `x` to `f`. With `satfinite`, what would overflow (infinities too) becomes the largest finite value.
pub fn round_to(x: f64, f: Format, mode: Round, satfinite: bool) -> u32 {
    if x.is_nan() {
        return f.nan;
    }
    let sign = u32::from(x.is_sign_negative()) << (f.bits - 1);
    let negative = x.is_sign_negative();
    let overflow = |exact_inf: bool| {
        let to_max = satfinite
            || f.inf.is_none()
            || (!exact_inf
                && match mode {
                    Round::Nearest | Round::NearestAway => false,
                    Round::Zero => true,
                    Round::Down => !negative,
                    Round::Up => negative,
                });
        sign | if to_max { f.max } else { f.inf.unwrap_or(f.max) }
    };
    if x.is_infinite() {
        return overflow(true);
    }
    if x == 0.0 {
        return sign;
    }
    let bits = x.abs().to_bits();
    // Value = frac * 2^(exp - 52) with frac below 2^53.
    let (mut exp, mut frac) = ((bits >> 52) as i32 - 1023, bits & ((1 << 52) - 1));
    if exp == -1023 {
        exp = -1022;
        let up = frac.leading_zeros() as i32 - 11;
        frac <<= up;
        exp -= up;
    } else {
        frac |= 1 << 52;
    }
    let min_exp = 1 - f.bias;
    let extra = (min_exp - exp).max(0) as u32;
    let shift = 52 - f.mantissa + extra;
    let (kept, rest, half) =
        if shift >= 64 { (0, 1u64, 2u64) } else { (frac >> shift, frac & ((1 << shift) - 1), 1u64 << (shift - 1)) };
    let up = match mode {
        Round::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Round::NearestAway => rest >= half,
        Round::Zero => false,
        Round::Down => negative && rest != 0,
        Round::Up => !negative && rest != 0,
    };
    let kept = kept + u64::from(up);
    // A carry out of the mantissa moves into the exponent field by plain addition.
    let pattern = if extra > 0 {
        kept
    } else {
        ((exp + f.bias) as u64).wrapping_sub(1).wrapping_shl(f.mantissa).wrapping_add(kept)
    };
    if pattern > u64::from(f.max) { overflow(false) } else { sign | pattern as u32 }
}

/// `a + b` rounded to odd in f64: rounding the result again to a format of at most 24 bits is then exact rounding.
pub fn sum_to_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    if !s.is_finite() {
        return s;
    }
    // Knuth's two-sum gives the rounding error exactly.
    let t = s - a;
    let err = (a - (s - t)) + (b - t);
    to_odd(s, err)
}

/// Moves `s`, the rounded value of `s + err`, to the neighbour with an odd last bit when inexact.
pub fn to_odd(s: f64, err: f64) -> f64 {
    if err == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    if (err > 0.0) == (s > 0.0) { f64::from_bits(s.to_bits() + 1) } else { f64::from_bits(s.to_bits() - 1) }
}

/// Fused multiply-add of f32 values with one rounding in the given mode.
pub fn fma_f32(a: f32, b: f32, c: f32, mode: Round) -> f32 {
    if mode == Round::Nearest {
        return a.mul_add(b, c);
    }
    directed(f64::from(a) * f64::from(b), f64::from(c), mode)
}

/// `a + b` of exact f64 values, rounded once to f32.
pub fn directed(a: f64, b: f64, mode: Round) -> f32 {
    let s = sum_to_odd(a, b);
    if s == 0.0 && a == -b && a != 0.0 {
        // An exact zero sum is -0 only when rounding down.
        return if mode == Round::Down { -0.0 } else { 0.0 };
    }
    f32::from_bits(round_to(s, F32, mode, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn nearest_agrees_with_half_and_hardware() {
        let mut x = 0x1234_5678u32;
        for _ in 0..20_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let v = f32::from_bits(x);
            if v.is_nan() {
                continue;
            }
            let d = f64::from(v);
            assert_eq!(round_to(d, F16, Round::Nearest, false), u32::from(f16::from_f32(v).to_bits()), "{v:e}");
            assert_eq!(round_to(d, BF16, Round::Nearest, false), u32::from(bf16::from_f32(v).to_bits()), "{v:e}");
            let w = d * 1.000_000_1;
            assert_eq!(round_to(w, F32, Round::Nearest, false), (w as f32).to_bits(), "{w:e}");
        }
    }

    #[test]
    fn fp8_tables() {
        assert_eq!(round_to(448.0, E4M3, Round::Nearest, true), 0x7E);
        assert_eq!(round_to(1e9, E4M3, Round::Nearest, true), 0x7E);
        assert_eq!(round_to(-1e9, E5M2, Round::Nearest, true), 0xFB);
        assert_eq!(round_to(1.0, E4M3, Round::Nearest, true), 0x38);
        assert_eq!(round_to(2f64.powi(-9), E4M3, Round::Nearest, true), 0x01);
        assert_eq!(round_to(2f64.powi(-10), E4M3, Round::Nearest, true), 0x00);
        assert_eq!(round_to(1.5 * 2f64.powi(-10), E4M3, Round::Nearest, true), 0x01);
        assert_eq!(round_to(1.0625, E4M3, Round::Nearest, true), 0x38);
        assert_eq!(round_to(1.1875, E4M3, Round::Nearest, true), 0x3A);
    }

    #[test]
    fn directed_modes_bracket_the_exact_value() {
        let (a, b) = (f64::from(1.0f32), f64::from(f32::MIN_POSITIVE));
        assert_eq!(directed(a, b, Round::Down), 1.0);
        assert_eq!(directed(a, b, Round::Up), 1.0f32.next_up());
        assert_eq!(directed(a, -b, Round::Zero), 1.0f32.next_down());
        assert_eq!(directed(a, -b, Round::Up), 1.0);
        assert_eq!(directed(a, -a, Round::Down).to_bits(), (-0.0f32).to_bits());
        assert_eq!(round_to(1e30, F16, Round::Zero, false), 0x7BFF);
        assert_eq!(round_to(1e30, F16, Round::Up, false), 0x7C00);
        assert_eq!(round_to(-1e30, F16, Round::Up, false), 0xFBFF);
    }
}
