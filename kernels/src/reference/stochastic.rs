//! Stochastic rounding to bf16, and the counter-based generator it draws from. Depends on nothing.

/// Philox4x32 with ten rounds (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
/// 1, 2, 3", SC 2011): four uniform words from a counter and a key.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
        }
        let wide = |word: u32, multiplier: u32| {
            let product = u64::from(word) * u64::from(multiplier);
            ((product >> 32) as u32, product as u32)
        };
        let (high0, low0) = wide(c[0], 0xd251_1f53);
        let (high1, low1) = wide(c[2], 0xcd9e_8d57);
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0];
    }
    c
}

/// Rounds x to bf16 given 16 random bits: they are added below the bf16 mantissa and the rest is
/// cut off, so x goes up with exactly the probability of its distance from the lower neighbour.
/// Values that bf16 holds, infinities and NaN come back unchanged. A finite value above the
/// largest bf16 may become infinite, as in round to nearest.
pub fn bf16_round_stochastic(x: f32, random: u16) -> f32 {
    if !x.is_finite() {
        return x;
    }
    f32::from_bits((x.to_bits() + u32::from(random)) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // From the authors' Random123 distribution, file kat_vectors.
        let zero = philox4x32_10([0; 4], [0; 2]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn probability_is_the_distance() {
        // A quarter of the way from 1 to its neighbour: up for exactly a quarter of all bits.
        for sign in [1.0, -1.0] {
            let x = sign * (1.0 + 2f32.powi(-9));
            let up = (0..=u16::MAX).filter(|&bits| bf16_round_stochastic(x, bits) == sign * (1.0 + 2f32.powi(-7)));
            let count = up.count();
            assert_eq!(count, 1 << 14);
            let down = (0..=u16::MAX).filter(|&bits| bf16_round_stochastic(x, bits) == sign).count();
            assert_eq!(count + down, 1 << 16);
        }
    }

    #[test]
    fn representable_and_special_values_stay() {
        for x in [0.0, -0.0, 1.0, -3.5, f32::INFINITY, f32::NEG_INFINITY] {
            for bits in [0, 1, 0x8000, u16::MAX] {
                assert_eq!(bf16_round_stochastic(x, bits).to_bits(), x.to_bits());
            }
        }
        assert!(bf16_round_stochastic(f32::NAN, u16::MAX).is_nan());
    }

    #[test]
    fn mean_is_unbiased() {
        let x = 0.1f32;
        let mean = (0..4096u32)
            .flat_map(|i| philox4x32_10([i, 0, 0, 0], [7, 9]))
            .map(|word| f64::from(bf16_round_stochastic(x, word as u16)))
            .sum::<f64>()
            / (4.0 * 4096.0);
        // Spacing 2^-11 near 0.1: standard error below 2^-11 / 2 / 128.
        assert!((mean - f64::from(x)).abs() < 5.0 * 2f64.powi(-19), "{mean}");
    }
}
