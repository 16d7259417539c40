//! Lossless widening of e2m1 weights with 1×32 scales to e4m3 with coarser blocks.
//! May depend on `rayon`.

use super::codec::{e8m0_decode, e8m0_encode_ceil};
use super::quant::{Block, CodeFormat, Quantized};

/// The spread of scale factors inside one output block is too large to keep every value.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "scale factor 2^{scale} at ({row}, {col}) is too small for its block's output scale factor 2^{block_scale}: \
     the largest and smallest scale factors of a block may differ by at most 2^11"
)]
pub struct NotLossless {
    /// Row of the input scale factor.
    pub row: usize,
    /// Column of the input scale factor.
    pub col: usize,
    /// Its exponent.
    pub scale: i32,
    /// Exponent of the output block's scale factor.
    pub block_scale: i32,
}

/// Widens an e2m1 matrix with power-of-two scale factors to e4m3 with blocks of `block`, a multiple
/// of the input's: each output scale factor is the largest input one of the block over 2⁶
/// (stopping at 2⁻¹²⁷), and the difference goes into the element's exponent. e2m1 times 2⁶ ends
/// below 448, and down to 2⁻⁵ every product is a normal or exact subnormal e4m3 value.
pub fn widen_lossless(x: &Quantized, block: Block) -> Result<Quantized, NotLossless> {
    assert_eq!(x.format, CodeFormat::E2m1, "only e2m1 can be widened");
    assert!(
        block.0.is_multiple_of(x.block.0) && block.1.is_multiple_of(x.block.1),
        "blocks of {block:?} are not made of blocks of {:?}",
        x.block
    );
    let (scale_rows, scale_cols) = x.scale_shape();
    let (ratio_rows, ratio_cols) = (block.0 / x.block.0, block.1 / x.block.1);
    let out_cols = x.cols.div_ceil(block.1);
    let out_at = |row: usize, col: usize| row / ratio_rows * out_cols + col / ratio_cols;
    let mut largest = vec![0u8; x.rows.div_ceil(block.0) * out_cols];
    for row in 0..scale_rows {
        for col in 0..scale_cols {
            let slot = &mut largest[out_at(row, col)];
            *slot = (*slot).max(e8m0_encode_ceil(x.scales[row * scale_cols + col]));
        }
    }
    let out_codes: Vec<u8> = largest.iter().map(|code| code.saturating_sub(6)).collect();
    for row in 0..scale_rows {
        for col in 0..scale_cols {
            let code = e8m0_encode_ceil(x.scales[row * scale_cols + col]);
            let out = out_codes[out_at(row, col)];
            if code + 5 < out {
                let (scale, block_scale) = (i32::from(code) - 127, i32::from(out) - 127);
                return Err(NotLossless { row, col, scale, block_scale });
            }
        }
    }
    let scales: Vec<f32> = out_codes.iter().map(|&code| e8m0_decode(code)).collect();
    let shifted: Vec<f32> = x
        .format
        .decode(&x.codes)
        .iter()
        .enumerate()
        .map(|(i, &value)| {
            let (row, col) = (i / x.cols / x.block.0, i % x.cols / x.block.1);
            // In f64: both scale factors may be subnormal in f32.
            let shift = f64::from(x.scales[row * scale_cols + col]) / f64::from(scales[out_at(row, col)]);
            (f64::from(value) * shift) as f32
        })
        .collect();
    Ok(Quantized { format: CodeFormat::E4m3, block, codes: CodeFormat::E4m3.encode(&shifted), scales, ..*x })
}

#[cfg(test)]
mod tests {
    use super::super::quant::{CastSpec, ScaleFormat, cast};
    use super::super::testing::uniform;
    use super::*;

    fn fp4(x: &[f32], rows: usize, cols: usize) -> Quantized {
        cast(x, rows, cols, &CastSpec::per_token(CodeFormat::E2m1, 32, ScaleFormat::Ue8m0))
    }

    #[test]
    fn values_do_not_change() {
        let (rows, cols) = (160, 192);
        // Row magnitudes over eight octaves: scale factors differ inside a block.
        let x: Vec<f32> = uniform(1, rows * cols, 1.0)
            .iter()
            .enumerate()
            .map(|(i, x)| x * 2f32.powi((i / cols % 8) as i32))
            .collect();
        let narrow = fp4(&x, rows, cols);
        for block in [(128, 128), (1, 128), (32, 32)] {
            let wide = widen_lossless(&narrow, block).unwrap();
            assert_eq!(wide.dequantize(), narrow.dequantize());
            assert_eq!(wide.scales.len(), rows.div_ceil(block.0) * cols.div_ceil(block.1));
        }
    }

    #[test]
    fn limits_of_the_spread() {
        let matrix = |exponents: [i32; 2]| Quantized {
            rows: 1,
            cols: 64,
            format: CodeFormat::E2m1,
            block: (1, 32),
            // Every e2m1 magnitude, both signs.
            codes: [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe].repeat(4),
            scales: exponents.map(|e| 2f32.powi(e)).to_vec(),
        };
        let extreme = matrix([0, -11]);
        let wide = widen_lossless(&extreme, (1, 64)).unwrap();
        assert_eq!(wide.scales, [2f32.powi(-6)]);
        assert_eq!(wide.dequantize(), extreme.dequantize());
        let error = widen_lossless(&matrix([0, -12]), (1, 64));
        assert_eq!(error, Err(NotLossless { row: 0, col: 1, scale: -12, block_scale: -6 }));
    }
}
