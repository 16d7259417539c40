//! Gather of token rows into expert order, the weighted sum back, and its gradient. May depend on `rayon`.

use super::super::attention::dot;
use super::super::codec::e4m3_encode;
use super::super::expect_len;
use rayon::prelude::*;

/// Copies row `pos_to_token[p]` of x `[tokens, width]` to row p; padding rows (−1) are
/// `E::default()`. Serves values, codes and scale factors alike.
pub fn expand_to_fused<E: Copy + Default + Send + Sync>(x: &[E], width: usize, pos_to_token: &[i32]) -> Vec<E> {
    let mut y = vec![E::default(); pos_to_token.len() * width];
    y.par_chunks_mut(width.max(1)).zip(pos_to_token).for_each(|(row, &token)| {
        if let Ok(token) = usize::try_from(token) {
            row.copy_from_slice(&x[token * width..][..width]);
        }
    });
    y
}

/// Inputs of [`reduce_fused`].
#[derive(Clone, Copy, Debug)]
pub struct ReduceFused<'a> {
    /// Expert outputs `[positions, width]`.
    pub y: &'a [f32],
    /// Columns.
    pub width: usize,
    /// Router weights `[tokens, k]`; one if absent.
    pub weights: Option<&'a [f32]>,
    /// Scale factor per position, multiplied into the weight in f32; one if absent.
    pub row_scales: Option<&'a [f32]>,
    /// `[tokens, k]`, −1 for a slot without a row.
    pub token_topk_to_pos: &'a [i32],
    /// Slots per token.
    pub k: usize,
    /// Rows added after the slots, `[tokens, width]`; nothing if absent.
    pub addend: Option<&'a [f32]>,
    /// Factor on the finished sum, in f32.
    pub out_scale: Option<f32>,
}

/// `out_t = Σ_j (w_tj · s_pos) · y[pos]`, starting from zero, one fused multiply-add in f32 per
/// slot in slot order, −1 skipped; then the addend; `[tokens, width]` in f32. Exact.
pub fn reduce_fused(args: &ReduceFused<'_>) -> Vec<f32> {
    let ReduceFused { y, width, weights, row_scales, token_topk_to_pos, k, addend, out_scale } = *args;
    if let Some(weights) = weights {
        expect_len("weights", weights.len(), &[token_topk_to_pos.len()]);
    }
    let pairs: Vec<usize> = (0..token_topk_to_pos.len()).collect();
    pairs
        .par_chunks(k.max(1))
        .enumerate()
        .flat_map_iter(|(token, slots)| {
            let mut sum = vec![0f32; width];
            for &pair in slots {
                let Ok(pos) = usize::try_from(token_topk_to_pos[pair]) else { continue };
                let mut factor = weights.map_or(1.0, |weights| weights[pair]);
                if let Some(scales) = row_scales {
                    factor *= scales[pos];
                }
                for (sum, &y) in sum.iter_mut().zip(&y[pos * width..][..width]) {
                    *sum = y.mul_add(factor, *sum);
                }
            }
            if let Some(addend) = addend {
                sum.iter_mut().zip(&addend[token * width..][..width]).for_each(|(sum, x)| *sum += x);
            }
            if let Some(scale) = out_scale {
                sum.iter_mut().for_each(|sum| *sum *= scale);
            }
            sum
        })
        .collect()
}

/// [`reduce_fused`] with the sum encoded as e4m3; `out_scale` is the reciprocal of the scale factor.
pub fn reduce_fused_e4m3(args: &ReduceFused<'_>) -> Vec<u8> {
    reduce_fused(args).into_iter().map(e4m3_encode).collect()
}

/// The gradients of a weighted [`reduce_fused`] without scale factors, from that of its result, `dout` `[tokens, width]`: of
/// `y` in expert order, `dy[pos] = w_tj · dout_t` in f32, zero where no slot has its row; and of the weights, `[tokens, k]`,
/// `dw_tj = Σ_c dout_tc · y[pos, c]`, summed in f64, zero for a slot without a row.
pub fn reduce_fused_backward(
    y: &[f32],
    width: usize,
    weights: &[f32],
    token_topk_to_pos: &[i32],
    k: usize,
    dout: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    expect_len("weights", weights.len(), &[token_topk_to_pos.len()]);
    expect_len("dout", dout.len(), &[token_topk_to_pos.len() / k, width]);
    let (mut dy, mut dweights) = (vec![0f32; y.len()], vec![0f32; weights.len()]);
    for (pair, &pos) in token_topk_to_pos.iter().enumerate() {
        let Ok(pos) = usize::try_from(pos) else { continue };
        let (dout, row) = (&dout[pair / k * width..][..width], pos * width..(pos + 1) * width);
        dweights[pair] = dot(dout, &y[row.clone()]) as f32;
        dy[row].iter_mut().zip(dout).for_each(|(dy, dout)| *dy = weights[pair] * dout);
    }
    (dy, dweights)
}

#[cfg(test)]
mod tests {
    use super::super::super::metrics::max_abs;
    use super::super::super::testing::{check_gradient, integers, uniform, uniform_bf16};
    use super::super::mapping::{fused_mapping, positions_needed};
    use super::*;

    #[test]
    fn by_hand() {
        let x = [1, 2, 3, 4];
        assert_eq!(expand_to_fused(&x, 2, &[1, -1, 0, 1]), [3, 4, 0, 0, 1, 2, 3, 4]);
        let y = [1.0, 10.0, 2.0, 20.0, 4.0, 40.0];
        let base = ReduceFused {
            y: &y,
            width: 2,
            weights: Some(&[0.5, 3.0, 1.0, 7.0]),
            row_scales: None,
            token_topk_to_pos: &[2, 0, -1, 1],
            k: 2,
            addend: None,
            out_scale: None,
        };
        assert_eq!(reduce_fused(&base), [5.0, 50.0, 14.0, 140.0]);
        let scaled = ReduceFused { row_scales: Some(&[2.0, 1.0, 0.5]), out_scale: Some(0.5), ..base };
        assert_eq!(reduce_fused(&scaled), [3.5, 35.0, 7.0, 70.0]);
        assert_eq!(reduce_fused_e4m3(&scaled).len(), 4);
        assert_eq!(reduce_fused(&ReduceFused { weights: None, ..base }), [5.0, 50.0, 2.0, 20.0]);
        let added = ReduceFused { addend: Some(&[1.0, 2.0, 3.0, 4.0]), out_scale: Some(2.0), ..base };
        assert_eq!(reduce_fused(&added), [12.0, 104.0, 34.0, 288.0]);
    }

    #[test]
    fn one_rounding_per_slot() {
        // (1 + 2^-23)² − 1 keeps its low bits only under a fused multiply-add.
        let x = 1.0 + f32::EPSILON;
        let args = ReduceFused {
            y: &[-1.0, x],
            width: 1,
            weights: Some(&[1.0, x]),
            row_scales: None,
            token_topk_to_pos: &[0, 1],
            k: 2,
            addend: None,
            out_scale: None,
        };
        assert_eq!(reduce_fused(&args), [2.0 * f32::EPSILON + f32::EPSILON.powi(2)]);
    }

    #[test]
    fn reducing_what_was_expanded_gives_the_tokens_back() {
        let (tokens, k, experts, width) = (50, 4, 8, 16);
        let ids = integers(1, tokens * k, 0..experts as i32);
        let positions = positions_needed(&ids, experts, 16);
        let map = fused_mapping(&ids, tokens, k, experts, 16, positions);
        let x = uniform_bf16(2, tokens * width, 1.0);
        let rows = expand_to_fused(&x, width, &map.pos_to_token);
        let weights: Vec<f32> = uniform(3, tokens * k, 1.0);
        let args = ReduceFused {
            y: &rows,
            width,
            weights: Some(&weights),
            row_scales: None,
            token_topk_to_pos: &map.token_topk_to_pos,
            k,
            addend: None,
            out_scale: None,
        };
        let total = |t: usize| weights[t * k..][..k].iter().sum::<f32>();
        let want: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * total(i / width)).collect();
        assert!(max_abs(&reduce_fused(&args), &want) < 1e-5);
    }

    #[test]
    fn gradients_match_differences() {
        let (width, k, pos) = (3, 2, [2, 0, -1, 4, 1, -1]);
        let (y, weights, dout) = (uniform(1, 5 * width, 1.0), uniform(2, 6, 1.0), uniform(3, 3 * width, 1.0));
        let loss = |y: &[f32], weights: &[f32]| {
            let args = ReduceFused {
                y,
                width,
                weights: Some(weights),
                row_scales: None,
                token_topk_to_pos: &pos,
                k,
                addend: None,
                out_scale: None,
            };
            dot(&reduce_fused(&args), &dout)
        };
        let (dy, dweights) = reduce_fused_backward(&y, width, &weights, &pos, k, &dout);
        check_gradient(&y, &dy, 1e-3, |y| loss(y, &weights));
        check_gradient(&weights, &dweights, 1e-3, |weights| loss(&y, weights));
        assert_eq!(dy[3 * width..4 * width], [0.0; 3]);
    }
}
