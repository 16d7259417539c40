//! Casts that share a scale factor along tokens (for weight-gradient operands): plain, gathered
//! and transposed. Specified to the bit, as [`super::quant`]. May depend on `rayon`.

use super::codec::bf16_round_all;
use super::moe::fused::expand_to_fused;
use super::quant::{CastSpec, CodeFormat, Quantized, cast};
use super::transpose::batched_transpose;

/// Cast with one scale factor per `group` tokens and channel, codes transposed.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelCast {
    /// e4m3 codes `[cols, rows]`.
    pub codes: Vec<u8>,
    /// Scale factors `[ceil(rows / group), cols]`, not transposed.
    pub scales: Vec<f32>,
}

/// Casts x `[rows, cols]` per channel and transposes the codes. `spec.block` must be `(group, 1)`
/// and the format e4m3.
pub fn cast_per_channel_transposed(x: &[f32], rows: usize, cols: usize, spec: &CastSpec) -> ChannelCast {
    assert_eq!(spec.codes, CodeFormat::E4m3, "packed codes cannot be transposed");
    assert_eq!(spec.block.1, 1, "a per-channel cast shares no scale factor between channels");
    let q = cast(x, rows, cols, spec);
    ChannelCast { codes: batched_transpose(&q.codes, 1, rows, cols), scales: q.scales }
}

/// [`cast_per_channel_transposed`] of a SwiGLU output, which is rounded to bf16 before its amax
/// is taken.
pub fn cast_activation_transposed(y: &[f32], rows: usize, cols: usize, spec: &CastSpec) -> ChannelCast {
    cast_per_channel_transposed(&bf16_round_all(y), rows, cols, spec)
}

/// Gathers rows of x by `pos_to_token` (zeros where negative) and casts the result as `spec` says.
/// For a quantised x pass [`Quantized::dequantize`]: the dequantised value is not rounded further.
pub fn cast_gathered(x: &[f32], cols: usize, pos_to_token: &[i32], spec: &CastSpec) -> Quantized {
    cast(&expand_to_fused(x, cols, pos_to_token), pos_to_token.len(), cols, spec)
}

#[cfg(test)]
mod tests {
    use super::super::quant::ScaleFormat;
    use super::super::testing::uniform;
    use super::*;

    fn spec(group: usize, scale: ScaleFormat) -> CastSpec {
        CastSpec { block: (group, 1), ..CastSpec::per_token(CodeFormat::E4m3, 1, scale) }
    }

    #[test]
    fn one_column_by_hand() {
        // Column 0: groups (1, 2) and (4); column 1: (8, 0) and (0).
        let x = [1.0, 8.0, 2.0, 0.0, 4.0, 0.0];
        let out = cast_per_channel_transposed(&x, 3, 2, &spec(2, ScaleFormat::F32));
        assert_eq!(out.scales, [2.0 / 448.0, 8.0 / 448.0, 4.0 / 448.0, 1e-4 / 448.0]);
        assert_eq!(CodeFormat::E4m3.decode(&out.codes), [224.0, 448.0, 448.0, 448.0, 0.0, 0.0]);
    }

    #[test]
    fn transposing_is_casting_the_transpose_per_token() {
        let (rows, cols) = (64, 48);
        let x = uniform(1, rows * cols, 2.0);
        let out = cast_per_channel_transposed(&x, rows, cols, &spec(32, ScaleFormat::Ue8m0));
        let xt = batched_transpose(&x, 1, rows, cols);
        let want = cast(&xt, cols, rows, &CastSpec::per_token(CodeFormat::E4m3, 32, ScaleFormat::Ue8m0));
        assert_eq!(out.codes, want.codes);
        assert_eq!(out.scales, batched_transpose(&want.scales, 1, cols, rows / 32));
    }

    #[test]
    fn activation_is_rounded_first() {
        // 1 + 2^-9 rounds to 1 in bf16, which changes the scale factor.
        let x = [1.0 + 2f32.powi(-9)];
        let spec = spec(1, ScaleFormat::F32);
        assert_eq!(cast_activation_transposed(&x, 1, 1, &spec).scales, [1.0 / 448.0]);
        assert_ne!(cast_per_channel_transposed(&x, 1, 1, &spec).scales, [1.0 / 448.0]);
    }

    #[test]
    fn gathered_padding_is_zero_and_takes_no_part() {
        let x = uniform(2, 4 * 8, 1.0);
        let q = cast_gathered(&x, 8, &[3, -1, 0, -1], &spec(2, ScaleFormat::F32));
        assert!(q.codes[8..16].iter().chain(&q.codes[24..]).all(|&code| code == 0));
        let want: Vec<f32> = x[24..].iter().chain(&x[..8]).map(|x| x.abs() / 448.0).collect();
        assert_eq!(q.scales, want);
    }
}
