//! Narrow floating-point formats: bf16, tf32, e4m3, e2m1 and e8m0.
//!
//! Encoders search the table of all representable magnitudes and pick the nearest, ties to the
//! even code. That is slow and cannot be wrong in the way bit tricks can. May depend on `rayon` and on `half`
//! for bf16 only.

use rayon::prelude::*;
use std::sync::LazyLock;

/// Largest finite e4m3 value.
pub const E4M3_MAX: f32 = 448.0;
/// Largest e2m1 value.
pub const E2M1_MAX: f32 = 6.0;

/// The non-negative finite e4m3 values; the index is the code.
static E4M3: LazyLock<[f32; 127]> = LazyLock::new(|| std::array::from_fn(|code| e4m3_magnitude(code as u8)));
/// The non-negative e2m1 values; the index is the code.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Rounds to the nearest bf16 value, ties to even, and widens it back.
pub fn bf16_round(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// [`bf16_round`] of every element.
pub fn bf16_round_all(x: &[f32]) -> Vec<f32> {
    x.par_iter().map(|&x| bf16_round(x)).collect()
}

/// Widens bf16 values.
pub fn bf16_decode_all(x: &[half::bf16]) -> Vec<f32> {
    x.par_iter().map(|x| x.to_f32()).collect()
}

/// Rounds to 10 explicit mantissa bits, half away from zero, as the mHC projection rounds its
/// weight: 0x1000 is added to the bit pattern and the tensor core drops the low 13 bits.
pub fn tf32_round_half_away(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0x1000) & !0x1fff)
}

/// 1-4-3 with bias 7: magnitude of the code's low seven bits (0x7f excluded).
fn e4m3_magnitude(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7));
    if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) }
}

/// Decodes e4m3 (the "fn" variant: no infinity; 0x7f and 0xff are NaN).
pub fn e4m3_decode(code: u8) -> f32 {
    let magnitude = match code & 0x7f {
        0x7f => f32::NAN,
        low => E4M3[usize::from(low)],
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Encodes to e4m3: nearest, ties to even, saturating at 448 (infinities too). The sign of zero
/// is kept; NaN becomes 0x7f.
pub fn e4m3_encode(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    sign | nearest_even(x.abs(), &*E4M3)
}

/// Decodes the low four bits as e2m1.
pub fn e2m1_decode(code: u8) -> f32 {
    let magnitude = E2M1[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// Encodes to e2m1 (low four bits): nearest, ties to even, saturating at 6. The sign of zero is
/// kept. The format has no NaN; NaN becomes 6, as `cvt.rn.satfinite.e2m1x2` gives.
pub fn e2m1_encode(x: f32) -> u8 {
    if x.is_nan() {
        return 7;
    }
    let sign = if x.is_sign_negative() { 8 } else { 0 };
    sign | nearest_even(x.abs(), &E2M1)
}

/// Packs e2m1 codes two to a byte, the even index in the low nibble.
pub fn e2m1_pack(codes: &[u8]) -> Vec<u8> {
    assert!(codes.len().is_multiple_of(2), "an odd number of e2m1 codes ({}) cannot be packed", codes.len());
    codes.chunks_exact(2).map(|pair| (pair[0] & 0xf) | (pair[1] << 4)).collect()
}

/// Inverse of [`e2m1_pack`].
pub fn e2m1_unpack(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [byte & 0xf, byte >> 4]).collect()
}

/// Decodes e8m0: 2^(code - 127); 255 is NaN.
pub fn e8m0_decode(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        0 => 2f32.powi(-127),
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// Smallest e8m0 value that is not below `x`, as a code.
///
/// # Panics
/// If `x` is not a positive number of at most 2^127.
pub fn e8m0_encode_ceil(x: f32) -> u8 {
    assert!(x > 0.0 && x <= 2f32.powi(127), "a UE8M0 scale factor must be positive and at most 2^127, got {x}");
    (0..=254u8).find(|&code| e8m0_decode(code) >= x).unwrap_or(254)
}

/// Index of the entry of `table` (ascending, from zero) nearest to `magnitude`; of two equally
/// near ones the even index; beyond the end, the last.
fn nearest_even(magnitude: f32, table: &[f32]) -> u8 {
    let above = table.partition_point(|&entry| entry < magnitude);
    if above == 0 {
        return 0;
    }
    if above == table.len() {
        return (table.len() - 1) as u8;
    }
    let below = above - 1;
    // Exact in f64 whenever the two distances are close enough for the comparison to matter.
    let down = f64::from(magnitude) - f64::from(table[below]);
    let up = f64::from(table[above]) - f64::from(magnitude);
    let nearest = match down.total_cmp(&up) {
        std::cmp::Ordering::Less => below,
        std::cmp::Ordering::Greater => above,
        std::cmp::Ordering::Equal => below + below % 2,
    };
    nearest as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_round_trips_every_code() {
        for code in 0..=255u8 {
            let value = e4m3_decode(code);
            if code & 0x7f == 0x7f {
                assert!(value.is_nan());
            } else {
                assert_eq!(e4m3_encode(value), code, "{value}");
            }
        }
        assert_eq!(e4m3_decode(0x7e), 448.0);
        assert_eq!(e4m3_decode(0x08), 2f32.powi(-6));
        assert_eq!(e4m3_decode(0x01), 2f32.powi(-9));
        assert_eq!(e4m3_decode(0xb8), -1.0);
    }

    #[test]
    fn e4m3_rounds_ties_to_even_and_saturates() {
        // Between 1.0 (0x38, even) and 1.125 (0x39): the tie 1.0625 goes down; 1.1875 goes up.
        assert_eq!(e4m3_encode(1.0625), 0x38);
        assert_eq!(e4m3_encode(1.0625 + 1e-6), 0x39);
        assert_eq!(e4m3_encode(1.1875), 0x3a);
        // Half the smallest subnormal is a tie with zero.
        assert_eq!(e4m3_encode(2f32.powi(-10)), 0);
        assert_eq!(e4m3_encode(-2f32.powi(-10) * 1.001), 0x81);
        assert_eq!(e4m3_encode(1e30), 0x7e);
        assert_eq!(e4m3_encode(f32::NEG_INFINITY), 0xfe);
        assert_eq!(e4m3_encode(-0.0), 0x80);
        assert_eq!(e4m3_encode(f32::NAN), 0x7f);
    }

    #[test]
    fn e2m1_covers_its_grid() {
        for code in 0..16u8 {
            assert_eq!(e2m1_encode(e2m1_decode(code)), code);
        }
        // Every midpoint and where it goes: 0.25→0, 0.75→1, 1.25→1, 1.75→2, 2.5→2, 3.5→4, 5→4.
        let ties = [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)];
        for (x, want) in ties {
            assert_eq!(e2m1_decode(e2m1_encode(x)), want, "{x}");
            assert_eq!(e2m1_decode(e2m1_encode(-x)), -want, "{x}");
        }
        assert_eq!(e2m1_encode(100.0), 7);
        assert_eq!(e2m1_pack(&[1, 2, 0xf, 8]), [0x21, 0x8f]);
        assert_eq!(e2m1_unpack(&[0x21, 0x8f]), [1, 2, 0xf, 8]);
    }

    #[test]
    fn e8m0_rounds_up() {
        assert_eq!(e8m0_encode_ceil(1.0), 127);
        assert_eq!(e8m0_encode_ceil(1.0000001), 128);
        assert_eq!(e8m0_encode_ceil(0.9999999), 127);
        assert_eq!(e8m0_encode_ceil(2f32.powi(-126)), 1);
        for code in 0..=254u8 {
            assert_eq!(e8m0_encode_ceil(e8m0_decode(code)), code);
        }
        assert!(e8m0_decode(255).is_nan());
    }

    #[test]
    fn e8m0_agrees_with_the_bit_formula_for_normal_numbers() {
        for i in 0..20_000u32 {
            let x = f32::from_bits(0x0080_0000 + i * 91_003);
            if x <= 2f32.powi(127) {
                let bits = (x.to_bits() + 0x7f_ffff) & 0x7f80_0000;
                assert_eq!(e8m0_decode(e8m0_encode_ceil(x)).to_bits(), bits, "{x}");
            }
        }
    }

    #[test]
    fn bf16_and_tf32_round() {
        // bf16 keeps 7 mantissa bits: 1 + 2^-8 is a tie that goes to even, 1 + 3·2^-8 goes up.
        assert_eq!(bf16_round(1.0 + 2f32.powi(-8)), 1.0);
        assert_eq!(bf16_round(1.0 + 3.0 * 2f32.powi(-8)), 1.0 + 2f32.powi(-6));
        // tf32 keeps 10 bits and takes the tie away from zero.
        assert_eq!(tf32_round_half_away(1.0 + 2f32.powi(-11)), 1.0 + 2f32.powi(-10));
        assert_eq!(tf32_round_half_away(-1.0 - 2f32.powi(-11)), -1.0 - 2f32.powi(-10));
        assert_eq!(tf32_round_half_away(1.0 + 2f32.powi(-12)), 1.0);
    }
}
