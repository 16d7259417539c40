//! Casts to e4m3 and e2m1 with shared scale factors, and back. May depend on `rayon`.
//!
//! Specified to the bit, in f32. For a block with largest magnitude `amax` (floored, see
//! [`CastSpec::amax_floor`]) and format maximum `max`:
//! - scale factor `s = amax / max` (one f32 division), or with [`ScaleFormat::Ue8m0`] the smallest
//!   power of two not below it;
//! - code = nearest-even(clamp(`v`, ±max)), where `v` is `x / s` ([`Scaling::Divide`], the published
//!   inference code) or `x · (max / amax)` ([`Scaling::Reciprocal`], TileKernels). With UE8M0 the
//!   two agree, since `s` is a power of two; with f32 scales they may differ in the last bit
//!   of `v`, hence in the code of a value near a tie.
//!
//! NaN and infinite inputs are outside the specification.

use super::codec::{E2M1_MAX, E4M3_MAX, bf16_round_all, e2m1_decode, e2m1_encode, e2m1_pack, e2m1_unpack};
use super::codec::{e4m3_decode, e4m3_encode, e8m0_decode, e8m0_encode_ceil};
use super::expect_len;
use rayon::prelude::*;

/// Element format of a cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeFormat {
    /// One code a byte.
    E4m3,
    /// Two codes a byte along the last dimension, the even index in the low nibble.
    E2m1,
}

impl CodeFormat {
    /// Largest finite value.
    pub fn max(self) -> f32 {
        match self {
            CodeFormat::E4m3 => E4M3_MAX,
            CodeFormat::E2m1 => E2M1_MAX,
        }
    }

    /// Usual floor on amax: 1e-4 for e4m3, 6·2⁻¹²⁶ for e2m1.
    pub fn amax_floor(self) -> f32 {
        match self {
            CodeFormat::E4m3 => 1e-4,
            CodeFormat::E2m1 => 6.0 * f32::MIN_POSITIVE,
        }
    }

    /// Bytes of a row of `cols` elements.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            CodeFormat::E4m3 => cols,
            CodeFormat::E2m1 => {
                assert!(cols.is_multiple_of(2), "rows of {cols} e2m1 codes do not fill whole bytes");
                cols / 2
            }
        }
    }

    /// Encodes values, saturating, and packs them.
    pub fn encode(self, x: &[f32]) -> Vec<u8> {
        match self {
            CodeFormat::E4m3 => x.iter().map(|&x| e4m3_encode(x)).collect(),
            CodeFormat::E2m1 => e2m1_pack(&x.iter().map(|&x| e2m1_encode(x)).collect::<Vec<_>>()),
        }
    }

    /// Inverse of [`CodeFormat::encode`].
    pub fn decode(self, codes: &[u8]) -> Vec<f32> {
        match self {
            CodeFormat::E4m3 => codes.iter().map(|&code| e4m3_decode(code)).collect(),
            CodeFormat::E2m1 => e2m1_unpack(codes).into_iter().map(e2m1_decode).collect(),
        }
    }
}

/// Format of the scale factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Unrounded.
    F32,
    /// Rounded up to a power of two.
    Ue8m0,
}

/// How an element is divided by its scale factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// `x / s`.
    Divide,
    /// `x · (max / amax)`, or `x · (1 / s)` if `s` is rounded to a power of two.
    Reciprocal,
}

/// Rows and columns that share one scale factor: `(1, 128)` is per token, `(128, 128)` per block,
/// `(128, 1)` per channel, `(1, cols)` per row. The last block of a dimension may be cut short.
pub type Block = (usize, usize);

/// What cast to make.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CastSpec {
    /// Element format.
    pub codes: CodeFormat,
    /// Elements per scale factor.
    pub block: Block,
    /// Scale-factor format.
    pub scale: ScaleFormat,
    /// How elements are scaled.
    pub scaling: Scaling,
    /// Smallest amax used; keeps the scale factor of a zero block positive.
    pub amax_floor: f32,
}

impl CastSpec {
    /// A per-token cast over groups of `group` columns, dividing by the scale factor.
    pub fn per_token(codes: CodeFormat, group: usize, scale: ScaleFormat) -> Self {
        CastSpec { codes, block: (1, group), scale, scaling: Scaling::Divide, amax_floor: codes.amax_floor() }
    }
}

/// A quantised matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns (elements, not bytes).
    pub cols: usize,
    /// Element format.
    pub format: CodeFormat,
    /// Elements per scale factor.
    pub block: Block,
    /// Codes, row-major, `[rows, cols]` bytes for e4m3 and `[rows, cols / 2]` for e2m1.
    pub codes: Vec<u8>,
    /// Scale factors `[ceil(rows / block.0), ceil(cols / block.1)]`, decoded.
    pub scales: Vec<f32>,
}

impl Quantized {
    /// Rows and columns of `scales`.
    pub fn scale_shape(&self) -> (usize, usize) {
        (self.rows.div_ceil(self.block.0), self.cols.div_ceil(self.block.1))
    }

    /// Decoded values `code · s`, one f32 product each.
    pub fn dequantize(&self) -> Vec<f32> {
        let (_, scale_cols) = self.scale_shape();
        let at = |i: usize, value: f32| {
            let (row, col) = (i / self.cols, i % self.cols);
            value * self.scales[row / self.block.0 * scale_cols + col / self.block.1]
        };
        self.format.decode(&self.codes).into_par_iter().enumerate().map(|(i, value)| at(i, value)).collect()
    }
}

/// Scale factor and its reciprocal as used by [`Scaling::Reciprocal`].
pub(super) fn scale_of(amax: f32, max: f32, floor: f32, format: ScaleFormat) -> (f32, f32) {
    let amax = amax.max(floor);
    match format {
        ScaleFormat::F32 => (amax / max, max / amax),
        ScaleFormat::Ue8m0 => {
            let s = e8m0_decode(e8m0_encode_ceil(amax / max));
            (s, 1.0 / s)
        }
    }
}

/// Casts x `[rows, cols]`.
pub fn cast(x: &[f32], rows: usize, cols: usize, spec: &CastSpec) -> Quantized {
    expect_len("x", x.len(), &[rows, cols]);
    let (block_rows, block_cols) = spec.block;
    let max = spec.codes.max();
    // One task per band of `block_rows` rows.
    let bands: Vec<(Vec<f32>, Vec<u8>)> = x
        .par_chunks((block_rows * cols).max(1))
        .map(|band| {
            let mut amax = vec![0f32; cols.div_ceil(block_cols)];
            for row in band.chunks(cols) {
                for (c, x) in row.iter().enumerate() {
                    amax[c / block_cols] = amax[c / block_cols].max(x.abs());
                }
            }
            let scales: Vec<(f32, f32)> =
                amax.iter().map(|&amax| scale_of(amax, max, spec.amax_floor, spec.scale)).collect();
            let scaled = |row: &[f32]| -> Vec<f32> {
                let divide = |(c, &x): (usize, &f32)| {
                    let (s, reciprocal) = scales[c / block_cols];
                    match spec.scaling {
                        Scaling::Divide => x / s,
                        Scaling::Reciprocal => x * reciprocal,
                    }
                };
                row.iter().enumerate().map(divide).collect()
            };
            let codes = band.chunks(cols).flat_map(|row| spec.codes.encode(&scaled(row))).collect();
            (scales.iter().map(|&(s, _)| s).collect(), codes)
        })
        .collect();
    Quantized {
        rows,
        cols,
        format: spec.codes,
        block: spec.block,
        codes: bands.iter().flat_map(|(_, codes)| codes.iter().copied()).collect(),
        scales: bands.iter().flat_map(|(scales, _)| scales.iter().copied()).collect(),
    }
}

/// Codes of x `[rows, cols]` under scale factors computed elsewhere, `x · (1 / s)`.
pub fn cast_with_scales(
    x: &[f32],
    rows: usize,
    cols: usize,
    format: CodeFormat,
    block: Block,
    scales: &[f32],
) -> Vec<u8> {
    expect_len("x", x.len(), &[rows, cols]);
    let scale_cols = cols.div_ceil(block.1);
    expect_len("scales", scales.len(), &[rows.div_ceil(block.0), scale_cols]);
    let at = |i: usize| x[i] * (1.0 / scales[i / cols / block.0 * scale_cols + i % cols / block.1]);
    format.encode(&(0..rows * cols).map(at).collect::<Vec<_>>())
}

/// Simulated quantisation as used in training: cast per token to the format with UE8M0 scales,
/// cast back, round to bf16. V4 uses e4m3 with groups of 64 on the 448 unrotated key channels, and
/// e2m1 with groups of 32 on the indexer's queries and keys.
pub fn round_trip(x: &[f32], rows: usize, cols: usize, format: CodeFormat, group: usize) -> Vec<f32> {
    let spec = CastSpec::per_token(format, group, ScaleFormat::Ue8m0);
    bf16_round_all(&cast(x, rows, cols, &spec).dequantize())
}

/// Row count of a TMA-aligned scale tensor: `rows` rounded up to a multiple of 4 (16 bytes).
pub fn tma_aligned_rows(rows: usize) -> usize {
    rows.next_multiple_of(4)
}

/// Column-major TMA-aligned layout of scale factors `[rows, groups]`:
/// `[groups, tma_aligned_rows(rows)]`, padding zero.
pub fn scales_column_major(scales: &[f32], rows: usize, groups: usize) -> Vec<f32> {
    expect_len("scales", scales.len(), &[rows, groups]);
    let stride = tma_aligned_rows(rows);
    let at = |i: usize| if i % stride < rows { scales[i % stride * groups + i / stride] } else { 0.0 };
    (0..groups * stride).map(at).collect()
}

/// Packed UE8M0 layout of power-of-two scale factors `[rows, groups]`: words
/// `[ceil(groups / 4), tma_aligned_rows(rows)]`, column-major; byte j (little-endian) of word w is
/// the exponent of group `4w + j`. Padding is zero.
///
/// # Panics
/// If a scale factor is not a power of two.
pub fn scales_packed_ue8m0(scales: &[f32], rows: usize, groups: usize) -> Vec<i32> {
    expect_len("scales", scales.len(), &[rows, groups]);
    let stride = tma_aligned_rows(rows);
    let exponent = |row: usize, group: usize| {
        if row >= rows || group >= groups {
            return 0;
        }
        let s = scales[row * groups + group];
        let code = e8m0_encode_ceil(s);
        assert_eq!(e8m0_decode(code), s, "the scale factor {s} of row {row}, group {group} is not a power of two");
        code
    };
    let word = |i: usize| i32::from_le_bytes(std::array::from_fn(|j| exponent(i % stride, i / stride * 4 + j)));
    (0..groups.div_ceil(4) * stride).map(word).collect()
}

/// Inverse of [`scales_packed_ue8m0`]: `[rows, groups]`, decoded.
pub fn scales_unpack_ue8m0(words: &[i32], rows: usize, groups: usize) -> Vec<f32> {
    let stride = tma_aligned_rows(rows);
    expect_len("words", words.len(), &[groups.div_ceil(4), stride]);
    let at = |i: usize| {
        let (row, group) = (i / groups, i % groups);
        e8m0_decode(words[group / 4 * stride + row].to_le_bytes()[group % 4])
    };
    (0..rows * groups).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{calc_diff, check_bias};
    use super::super::testing::{uniform, uniform_bf16};
    use super::*;

    #[test]
    fn one_group_by_hand() {
        // amax 3: s = 3/448 unrounded, 2^-7 rounded up (3/448 ≈ 2^-7.22).
        let x = [3.0, -1.5, 0.0, 0.75];
        let spec = CastSpec::per_token(CodeFormat::E4m3, 4, ScaleFormat::F32);
        let q = cast(&x, 1, 4, &spec);
        assert_eq!(q.scales, [3.0 / 448.0]);
        assert_eq!(CodeFormat::E4m3.decode(&q.codes), [448.0, -224.0, 0.0, 112.0]);
        let q = cast(&x, 1, 4, &CastSpec { scale: ScaleFormat::Ue8m0, ..spec });
        assert_eq!(q.scales, [2f32.powi(-7)]);
        assert_eq!(CodeFormat::E4m3.decode(&q.codes), [384.0, -192.0, 0.0, 96.0]);
        assert_eq!(q.dequantize(), x);
        let q = cast(&x, 1, 4, &CastSpec::per_token(CodeFormat::E2m1, 4, ScaleFormat::Ue8m0));
        // s = 3/6 = 1/2: 6, −3, 0, 1.5.
        assert_eq!(q.scales, [0.5]);
        assert_eq!(q.codes, [0xd7, 0x30]);
        assert_eq!(q.dequantize(), x);
    }

    #[test]
    fn zero_groups_get_the_floor() {
        let spec = CastSpec::per_token(CodeFormat::E4m3, 2, ScaleFormat::F32);
        let q = cast(&[0.0, -0.0, 1.0, 1.0], 1, 4, &spec);
        assert_eq!(q.scales, [1e-4 / 448.0, 1.0 / 448.0]);
        assert_eq!(q.codes, [0, 0x80, 0x7e, 0x7e]);
        let q = cast(&[0.0; 2], 1, 2, &CastSpec::per_token(CodeFormat::E2m1, 2, ScaleFormat::Ue8m0));
        assert_eq!(q.scales, [f32::MIN_POSITIVE]);
    }

    #[test]
    fn power_of_two_scales_make_the_two_scalings_agree() {
        let x = uniform(1, 64 * 256, 3.0);
        for codes in [CodeFormat::E4m3, CodeFormat::E2m1] {
            for group in [16, 32, 64, 128, 256] {
                let divide = CastSpec::per_token(codes, group, ScaleFormat::Ue8m0);
                let reciprocal = CastSpec { scaling: Scaling::Reciprocal, ..divide };
                assert_eq!(cast(&x, 64, 256, &divide), cast(&x, 64, 256, &reciprocal));
            }
        }
    }

    #[test]
    fn error_and_bias_are_within_the_stated_bounds() {
        let x = uniform_bf16(2, 128 * 512, 4.0);
        for (codes, bound) in [(CodeFormat::E4m3, 1e-3), (CodeFormat::E2m1, 2e-2)] {
            for scale in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
                let y = cast(&x, 128, 512, &CastSpec::per_token(codes, 32, scale)).dequantize();
                assert!(calc_diff(&y, &x) < bound);
                assert!(check_bias(&y, &x).pass);
            }
        }
    }

    #[test]
    fn blocks_share_scales_in_both_directions_and_may_be_cut() {
        // 3×5 in blocks of 2×2: scales are 2×3.
        let x: Vec<f32> = (1..=15).map(|i| i as f32).collect();
        let spec = CastSpec { block: (2, 2), ..CastSpec::per_token(CodeFormat::E4m3, 1, ScaleFormat::F32) };
        let q = cast(&x, 3, 5, &spec);
        let want = [7.0, 9.0, 10.0, 12.0, 14.0, 15.0].map(|amax: f32| amax / 448.0);
        assert_eq!(q.scales, want);
        assert_eq!(q.scale_shape(), (2, 3));
        assert_eq!(cast_with_scales(&x, 3, 5, q.format, q.block, &q.scales).len(), 15);
        assert!(calc_diff(&q.dequantize(), &x) < 1e-3);
    }

    #[test]
    fn a_second_power_of_two_cast_changes_nothing() {
        let x = uniform(3, 128 * 256, 2.0);
        let spec = CastSpec { block: (128, 128), ..CastSpec::per_token(CodeFormat::E4m3, 1, ScaleFormat::Ue8m0) };
        let once = cast(&x, 128, 256, &spec);
        assert_eq!(cast(&once.dequantize(), 128, 256, &spec), once);
        let trip = round_trip(&x, 128, 256, CodeFormat::E2m1, 32);
        assert_eq!(round_trip(&trip, 128, 256, CodeFormat::E2m1, 32), trip);
    }

    #[test]
    fn scale_layouts() {
        let scales: Vec<f32> = (0..10).map(|i| 2f32.powi(i - 5)).collect();
        // 2 rows, 5 groups.
        let columns = scales_column_major(&scales, 2, 5);
        assert_eq!(columns.len(), 5 * 4);
        assert_eq!(columns[..8], [scales[0], scales[5], 0.0, 0.0, scales[1], scales[6], 0.0, 0.0]);
        let words = scales_packed_ue8m0(&scales, 2, 5);
        assert_eq!(words.len(), 2 * 4);
        assert_eq!(words[0].to_le_bytes(), [122, 123, 124, 125]);
        assert_eq!(words[1].to_le_bytes(), [127, 128, 129, 130]);
        assert_eq!(words[4].to_le_bytes(), [126, 0, 0, 0]);
        assert_eq!(words[2..4], [0, 0]);
        assert_eq!(scales_unpack_ue8m0(&words, 2, 5), scales);
    }

    #[test]
    fn no_rows() {
        let q = cast(&[], 0, 128, &CastSpec::per_token(CodeFormat::E4m3, 128, ScaleFormat::F32));
        assert!(q.codes.is_empty() && q.scales.is_empty());
    }
}
