//! Rotary position embedding on the last channels of a vector, forward and inverse, with and
//! without YaRN. May depend on `rayon`.

use super::expect_len;
use rayon::prelude::*;

/// Rotary channels of DeepSeek-V4: the last 64 of any vector.
pub const ROPE_DIM: usize = 64;

/// YaRN frequency interpolation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// Context extension factor.
    pub factor: f64,
    /// Context length before extension.
    pub original_positions: f64,
    /// Rotations above which a frequency is left alone.
    pub beta_fast: f64,
    /// Rotations below which a frequency is fully interpolated.
    pub beta_slow: f64,
}

/// YaRN as DeepSeek-V4 uses it on layers with compressed attention (base 1.6e5).
pub const V4_YARN: Yarn = Yarn { factor: 16.0, original_positions: 65536.0, beta_fast: 32.0, beta_slow: 1.0 };
/// RoPE base of layers with compressed attention, used with [`V4_YARN`].
pub const V4_COMPRESSED_BASE: f64 = 1.6e5;
/// RoPE base of window-only layers, used without YaRN.
pub const V4_WINDOW_BASE: f64 = 1e4;

/// `θ_i` for `i < dim / 2`: `base^(-2i/dim)`, or its YaRN blend.
///
/// YaRN: with `F(r) = dim ln(L / 2πr) / (2 ln base)`, `low = floor F(beta_fast)`,
/// `high = ceil F(beta_slow)`, both clamped to `[0, dim − 1]`, and
/// `s_i = 1 − clamp((i − low)/(high − low), 0, 1)`: `θ'_i = (θ_i / factor)(1 − s_i) + θ_i s_i`.
pub fn frequencies(base: f64, dim: usize, yarn: Option<Yarn>) -> Vec<f64> {
    let plain = |i: usize| base.powf(-(2.0 * i as f64) / dim as f64);
    let Some(yarn) = yarn else { return (0..dim / 2).map(plain).collect() };
    let rotations = |r: f64| {
        let span = yarn.original_positions / (2.0 * std::f64::consts::PI * r);
        dim as f64 * span.ln() / (2.0 * base.ln())
    };
    let last = (dim - 1) as f64;
    let low = rotations(yarn.beta_fast).floor().clamp(0.0, last);
    let high = rotations(yarn.beta_slow).ceil().clamp(0.0, last);
    // Equal ends would divide by zero; a thousandth of a channel makes it a step, as in the
    // published implementations.
    let span = if high == low { 0.001 } else { high - low };
    let blend = |i: usize| {
        let keep = 1.0 - ((i as f64 - low) / span).clamp(0.0, 1.0);
        plain(i) / yarn.factor * (1.0 - keep) + plain(i) * keep
    };
    (0..dim / 2).map(blend).collect()
}

/// How the angle `t·θ_i` is formed. At position 10⁶ the two differ by up to 0.06 rad, so a kernel
/// must be compared with the variant it implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnglePrecision {
    /// θ rounded to f32 and multiplied in f32, as the published model builds its table.
    F32,
    /// Exact to f64.
    F64,
}

/// Cosine and sine per token and channel pair.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// `cos(t·θ_i)`, `[tokens, dim / 2]`.
    pub cos: Vec<f32>,
    /// `sin(t·θ_i)`, `[tokens, dim / 2]`.
    pub sin: Vec<f32>,
    /// Channel pairs, `dim / 2`.
    pub pairs: usize,
}

impl RopeTable {
    /// The rows for the given positions. For a table indexed by position, pass `0..max`.
    pub fn new(frequencies: &[f64], positions: &[u32], precision: AnglePrecision) -> Self {
        let angle = |position: u32, theta: f64| match precision {
            AnglePrecision::F32 => f64::from(position as f32 * theta as f32),
            AnglePrecision::F64 => f64::from(position) * theta,
        };
        let angles: Vec<f64> =
            positions.iter().flat_map(|&t| frequencies.iter().map(move |&theta| angle(t, theta))).collect();
        RopeTable {
            cos: angles.iter().map(|a| a.cos() as f32).collect(),
            sin: angles.iter().map(|a| a.sin() as f32).collect(),
            pairs: frequencies.len(),
        }
    }
}

/// Direction of rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Multiply by `exp(j·t·θ)`.
    Forward,
    /// Multiply by the conjugate.
    Inverse,
}

/// Rotates the last `2 · table.pairs` of the `dim` channels of x `[tokens, heads, dim]`; row t of
/// the table belongs to token t. Adjacent channels (2i, 2i+1) of the rotated part form a pair.
pub fn rope(x: &[f32], table: &RopeTable, tokens: usize, heads: usize, dim: usize, rotation: Rotation) -> Vec<f32> {
    expect_len("x", x.len(), &[tokens, heads, dim]);
    expect_len("table", table.cos.len(), &[tokens, table.pairs]);
    let start = dim.checked_sub(2 * table.pairs).unwrap_or_else(|| {
        panic!("a rotation of {} channels does not fit vectors of {dim}", 2 * table.pairs);
    });
    let mut y = x.to_vec();
    y.par_chunks_mut((heads * dim).max(1)).enumerate().for_each(|(t, token)| {
        for head in token.chunks_mut(dim) {
            for i in 0..table.pairs {
                let cos = f64::from(table.cos[t * table.pairs + i]);
                let sin = match rotation {
                    Rotation::Forward => f64::from(table.sin[t * table.pairs + i]),
                    Rotation::Inverse => -f64::from(table.sin[t * table.pairs + i]),
                };
                let pair = &mut head[start + 2 * i..start + 2 * i + 2];
                let (re, im) = (f64::from(pair[0]), f64::from(pair[1]));
                pair[0] = (re * cos - im * sin) as f32;
                pair[1] = (re * sin + im * cos) as f32;
            }
        }
    });
    y
}

#[cfg(test)]
mod tests {
    use super::super::metrics::max_abs;
    use super::super::testing::uniform;
    use super::*;

    #[test]
    fn plain_frequencies() {
        let theta = frequencies(1e4, 64, None);
        assert_eq!(theta.len(), 32);
        assert_eq!(theta[0], 1.0);
        assert!((theta[16] - 1e-2).abs() < 1e-15);
    }

    #[test]
    fn yarn_blends_between_channels_15_and_25() {
        let (plain, yarn) =
            (frequencies(V4_COMPRESSED_BASE, ROPE_DIM, None), frequencies(V4_COMPRESSED_BASE, ROPE_DIM, Some(V4_YARN)));
        for i in 0..32 {
            let ratio = yarn[i] / plain[i];
            let ramp = ((i as f64 - 15.0) / 10.0).clamp(0.0, 1.0);
            assert!((ratio - (1.0 - ramp * 15.0 / 16.0)).abs() < 1e-12, "{i}: {ratio}");
        }
    }

    #[test]
    fn a_quarter_turn() {
        let table = RopeTable { cos: vec![0.0], sin: vec![1.0], pairs: 1 };
        let x = [9.0, 3.0, 4.0, 8.0, 1.0, 2.0];
        assert_eq!(rope(&x, &table, 1, 2, 3, Rotation::Forward), [9.0, -4.0, 3.0, 8.0, -2.0, 1.0]);
        assert_eq!(rope(&x, &table, 1, 2, 3, Rotation::Inverse), [9.0, 4.0, -3.0, 8.0, 2.0, -1.0]);
    }

    #[test]
    fn inverse_undoes_forward_and_the_first_channels_stay() {
        let positions = [0, 1, 127, 4096, 1_000_000];
        let theta = frequencies(V4_COMPRESSED_BASE, ROPE_DIM, Some(V4_YARN));
        let table = RopeTable::new(&theta, &positions, AnglePrecision::F64);
        let x = uniform(1, 5 * 3 * 128, 1.0);
        let y = rope(&x, &table, 5, 3, 128, Rotation::Forward);
        assert!(max_abs(&rope(&y, &table, 5, 3, 128, Rotation::Inverse), &x) < 1e-6);
        assert!(max_abs(&y, &x) > 0.1);
        for (y, x) in y.chunks(128).zip(x.chunks(128)) {
            assert_eq!(y[..64], x[..64]);
        }
        // Position 0 is the identity.
        assert_eq!(y[..3 * 128], x[..3 * 128]);
    }

    #[test]
    fn scores_depend_on_distance_only() {
        let theta = frequencies(1e4, 64, None);
        let (q, k) = (uniform(2, 64, 1.0), uniform(3, 64, 1.0));
        let at = |x: &[f32], t: u32| {
            rope(x, &RopeTable::new(&theta, &[t], AnglePrecision::F64), 1, 1, 64, Rotation::Forward)
        };
        let score = |t: u32, s: u32| -> f32 { at(&q, t).iter().zip(at(&k, s)).map(|(q, k)| q * k).sum() };
        assert!((score(10, 3) - score(1010, 1003)).abs() < 1e-4);
    }

    #[test]
    fn f32_angles_drift_at_long_positions() {
        let theta = frequencies(1e4, 64, None);
        let table = |precision| RopeTable::new(&theta, &[1_000_000], precision).cos;
        let drift = max_abs(&table(AnglePrecision::F32), &table(AnglePrecision::F64));
        assert!(drift > 1e-3 && drift < 0.1, "{drift}");
    }
}
