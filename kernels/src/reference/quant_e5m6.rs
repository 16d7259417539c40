//! The 12-bit format e5m6: cast per token, packing, cast back. May depend on `rayon`.
//!
//! 1 sign, 5 exponent (bias 15), 6 mantissa bits; largest value 65024. A value `x · (65024 / amax)`
//! (or times the reciprocal of the UE8M0 scale factor) goes to the nearest code, ties to even.
//! TileKernels rounds values below 2⁻¹⁴ (e5m6 subnormals, 2⁻³⁰ of the group maximum) by mantissa bits that
//! have not been shifted into place; here they are rounded like all others.

use super::expect_len;
use super::quant::{ScaleFormat, scale_of};
use rayon::prelude::*;

/// Largest e5m6 value.
pub const E5M6_MAX: f32 = 65024.0;
/// Smallest amax used.
pub const AMAX_FLOOR: f32 = 1e-4;

/// Decodes the low twelve bits. Exponent 31 is infinity or NaN, which the encoder never makes.
pub fn e5m6_decode(code: u16) -> f32 {
    half::f16::from_bits((code & 0xfff) << 4).to_f32()
}

/// Nearest code, ties to even, saturating.
pub fn e5m6_encode(x: f32) -> u16 {
    let sign = if x.is_sign_negative() { 0x800 } else { 0 };
    let magnitude = f64::from(x.abs().min(E5M6_MAX));
    // Spacing of the grid around the value: 2^-20 up to 2^-13, then doubling with every octave.
    let mut exponent = 1;
    while exponent < 30 && magnitude >= 2f64.powi(exponent - 14) {
        exponent += 1;
    }
    let steps = (magnitude / 2f64.powi(exponent - 21)).round_ties_even() as u16;
    // `steps` counts from zero; codes above the first 64 are offset by the implicit bit, and a
    // carry out of the mantissa runs into the exponent by itself.
    sign | if exponent == 1 { steps } else { ((exponent as u16 - 1) << 6) + steps }
}

/// Packs codes eight at a time into three words, first code in the highest bits.
pub fn e5m6_pack(codes: &[u16]) -> Vec<u32> {
    assert!(codes.len().is_multiple_of(8), "{} codes are not groups of eight", codes.len());
    let words = |codes: &[u16]| {
        let bits = codes.iter().fold(0u128, |bits, &code| bits << 12 | u128::from(code & 0xfff));
        [(bits >> 64) as u32, (bits >> 32) as u32, bits as u32]
    };
    codes.chunks(8).flat_map(words).collect()
}

/// Inverse of [`e5m6_pack`].
pub fn e5m6_unpack(words: &[u32]) -> Vec<u16> {
    let codes = |words: &[u32]| {
        let bits = words.iter().fold(0u128, |bits, &word| bits << 32 | u128::from(word));
        std::array::from_fn::<u16, 8, _>(|i| (bits >> (12 * (7 - i))) as u16 & 0xfff)
    };
    words.chunks_exact(3).flat_map(codes).collect()
}

/// A matrix in e5m6.
#[derive(Clone, Debug, PartialEq)]
pub struct E5m6 {
    /// `[rows, cols · 3 / 8]` words.
    pub words: Vec<u32>,
    /// Scale factors `[rows, cols / group]`.
    pub scales: Vec<f32>,
}

/// Casts x `[rows, cols]` with one scale factor per `group` columns.
pub fn cast_e5m6(x: &[f32], rows: usize, cols: usize, group: usize, format: ScaleFormat) -> E5m6 {
    expect_len("x", x.len(), &[rows, cols]);
    assert!(
        cols.is_multiple_of(group) && cols.is_multiple_of(8),
        "rows of {cols} do not split into groups of {group} and of 8"
    );
    let (codes, scales): (Vec<Vec<u16>>, Vec<f32>) = x
        .par_chunks(group)
        .map(|group| {
            let amax = group.iter().fold(0f32, |amax, x| amax.max(x.abs()));
            let (scale, reciprocal) = scale_of(amax, E5M6_MAX, AMAX_FLOOR, format);
            (group.iter().map(|x| e5m6_encode(x * reciprocal)).collect::<Vec<_>>(), scale)
        })
        .unzip();
    E5m6 { words: e5m6_pack(&codes.concat()), scales }
}

/// Decodes to f32: one product per element.
pub fn cast_back_e5m6(x: &E5m6, group: usize) -> Vec<f32> {
    e5m6_unpack(&x.words).iter().enumerate().map(|(i, &code)| e5m6_decode(code) * x.scales[i / group]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{calc_diff, check_bias};
    use super::super::testing::uniform;
    use super::*;

    #[test]
    fn every_finite_code_round_trips() {
        for code in 0..0x1000u16 {
            let value = e5m6_decode(code);
            if value.is_finite() {
                assert_eq!(e5m6_encode(value), code, "{value}");
            }
        }
        assert_eq!(e5m6_decode(0x7bf), E5M6_MAX);
        assert_eq!(e5m6_encode(1e9), 0x7bf);
    }

    #[test]
    fn ties_go_to_even() {
        // Around 1 (code 15 << 6) the spacing is 2^-6.
        let one = 15 << 6;
        assert_eq!(e5m6_encode(1.0 + 2f32.powi(-7)), one);
        assert_eq!(e5m6_encode(1.0 + 3.0 * 2f32.powi(-7)), one + 2);
        assert_eq!(e5m6_encode(1.0 + 2.001 * 2f32.powi(-7)), one + 1);
        // A carry into the next octave, and subnormals.
        assert_eq!(e5m6_encode(2.0 - 2f32.powi(-8)), one + 64);
        assert_eq!(e5m6_encode(2f32.powi(-21)), 0);
        assert_eq!(e5m6_encode(-3.0 * 2f32.powi(-21)), 0x802);
    }

    #[test]
    fn packing() {
        let codes = [0x123, 0x456, 0x789, 0xabc, 0xdef, 0x012, 0x345, 0x678];
        assert_eq!(e5m6_pack(&codes), [0x1234_5678, 0x9abc_def0, 0x1234_5678]);
        assert_eq!(e5m6_unpack(&e5m6_pack(&codes)), codes);
    }

    #[test]
    fn cast_is_close_and_unbiased() {
        let x = uniform(1, 32 * 512, 3.0);
        for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
            let y = cast_back_e5m6(&cast_e5m6(&x, 32, 512, 128, format), 128);
            assert!(calc_diff(&y, &x) < 1e-4);
            assert!(check_bias(&y, &x).pass);
        }
        let zero = cast_e5m6(&[0.0; 8], 1, 8, 8, ScaleFormat::F32);
        assert_eq!((zero.words, zero.scales), (vec![0; 3], vec![AMAX_FLOOR / E5M6_MAX]));
    }
}
