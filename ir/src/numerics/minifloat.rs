//! Encoding and decoding of the float formats that have no hardware scalar type on a CPU.
//!
//! Formats: OCP `f8e4m3`, `f8e5m2`, `f4e2m1`, `e8m0` (MX specification v1.0, section 5), and IEEE `f16` and
//! `bf16`. A code is the bit pattern in the low bits of the integer; `f4e2m1` uses the low four.
//!
//! Encoders round to nearest, ties to even, in a single rounding from `f64` (every `f32` is an `f64`, so the
//! `f32` entry points are the same function). The 8- and 4-bit formats *saturate* as `cvt.rn.satfinite` does:
//! anything beyond the largest magnitude, infinities included, becomes that magnitude with its sign. `f16` and
//! `bf16` overflow to infinity. NaN becomes the format's positive NaN, and +6 in `f4e2m1`, which has none.
//! May depend on nothing but `half` (for the fast `f16`/`bf16` paths).

/// Largest finite `f8e4m3` magnitude.
pub const F8E4M3_MAX: f32 = 448.0;
/// Largest finite `f8e5m2` magnitude.
pub const F8E5M2_MAX: f32 = 57344.0;
/// Largest `f4e2m1` magnitude.
pub const F4E2M1_MAX: f32 = 6.0;
/// The only NaN an `f8e4m3` or `f8e5m2` encoder produces.
pub const F8_NAN: u8 = 0x7f;
/// The NaN of `e8m0`.
pub const E8M0_NAN: u8 = 0xff;

/// A sign-magnitude binary format of at most 16 bits.
struct Format {
    /// Explicit mantissa bits.
    mantissa: i32,
    /// Exponent of the smallest normal number.
    min_exp: i32,
    /// Position of the sign bit.
    sign: u32,
    /// Magnitude code that stands for everything too large.
    overflow: u16,
    /// Code of NaN.
    nan: u16,
}

const F8E4M3: Format = Format { mantissa: 3, min_exp: -6, sign: 7, overflow: 0x7e, nan: 0x7f };
const F8E5M2: Format = Format { mantissa: 2, min_exp: -14, sign: 7, overflow: 0x7b, nan: 0x7f };
const F4E2M1: Format = Format { mantissa: 1, min_exp: 0, sign: 3, overflow: 0x7, nan: 0x7 };
const F16: Format = Format { mantissa: 10, min_exp: -14, sign: 15, overflow: 0x7c00, nan: 0x7e00 };
const BF16: Format = Format { mantissa: 7, min_exp: -126, sign: 15, overflow: 0x7f80, nan: 0x7fc0 };

/// 2^e as `f64`, for `e` in the normal range.
const fn pow2(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// Exponent of the leading bit of a positive `x`, or -1023 for a subnormal `f64` (below every format here).
const fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

impl Format {
    fn encode(&self, x: f64) -> u16 {
        if x.is_nan() {
            return self.nan;
        }
        let sign = u16::from(x.is_sign_negative()) << self.sign;
        let x = x.abs();
        let exp = exponent(x).max(self.min_exp);
        if exp > 127 {
            return sign | self.overflow;
        }
        // Count of quanta of this binade: below 2^mantissa for subnormals, up to 2^(mantissa+1) otherwise. Adding
        // it to the exponent field lets the hidden bit, and a carry out of the mantissa, land where they belong.
        let quanta = (x * pow2(self.mantissa - exp)).round_ties_even() as u16;
        let code = (((exp - self.min_exp) as u32) << self.mantissa) + u32::from(quanta);
        sign | (code.min(u32::from(self.overflow)) as u16)
    }
}

/// Magnitude of an `ebits`/`mbits` code without special values; `bias` is that of the format.
const fn decode_finite(code: u32, ebits: u32, mbits: u32, bias: i32) -> f32 {
    let negative = (code >> (ebits + mbits)) & 1 == 1;
    let exp = ((code >> mbits) & ((1 << ebits) - 1)) as i32;
    let man = code & ((1 << mbits) - 1);
    let (quanta, exp) = if exp == 0 { (man, 1) } else { (man | (1 << mbits), exp) };
    let magnitude = quanta as f32 * f32::from_bits(((exp - bias - mbits as i32 + 127) as u32) << 23);
    if negative { -magnitude } else { magnitude }
}

const F8E4M3_TO_F32: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = if code & 0x7f == 0x7f { f32::NAN } else { decode_finite(code as u32, 4, 3, 7) };
        code += 1;
    }
    table
};

const F8E5M2_TO_F32: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = match code {
            0x7c => f32::INFINITY,
            0xfc => f32::NEG_INFINITY,
            _ if code & 0x7f > 0x7c => f32::NAN,
            _ => decode_finite(code as u32, 5, 2, 15),
        };
        code += 1;
    }
    table
};

const F4E2M1_TO_F32: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Value of an `f8e4m3` code.
pub fn f8e4m3_to_f32(code: u8) -> f32 {
    F8E4M3_TO_F32[usize::from(code)]
}

/// Nearest `f8e4m3` code, saturating at ±448.
pub fn f8e4m3_from_f32(x: f32) -> u8 {
    F8E4M3.encode(f64::from(x)) as u8
}

/// Nearest `f8e4m3` code, saturating at ±448.
pub fn f8e4m3_from_f64(x: f64) -> u8 {
    F8E4M3.encode(x) as u8
}

/// Value of an `f8e5m2` code, infinities and NaN included.
pub fn f8e5m2_to_f32(code: u8) -> f32 {
    F8E5M2_TO_F32[usize::from(code)]
}

/// Nearest `f8e5m2` code, saturating at ±57344 (an infinity saturates too).
pub fn f8e5m2_from_f32(x: f32) -> u8 {
    F8E5M2.encode(f64::from(x)) as u8
}

/// Nearest `f8e5m2` code, saturating at ±57344 (an infinity saturates too).
pub fn f8e5m2_from_f64(x: f64) -> u8 {
    F8E5M2.encode(x) as u8
}

/// Value of an `f4e2m1` code; only the low four bits are looked at.
pub fn f4e2m1_to_f32(code: u8) -> f32 {
    F4E2M1_TO_F32[usize::from(code & 0xf)]
}

/// Nearest `f4e2m1` code (0..16), saturating at ±6; NaN gives +6.
pub fn f4e2m1_from_f32(x: f32) -> u8 {
    F4E2M1.encode(f64::from(x)) as u8
}

/// Nearest `f4e2m1` code (0..16), saturating at ±6; NaN gives +6.
pub fn f4e2m1_from_f64(x: f64) -> u8 {
    F4E2M1.encode(x) as u8
}

/// Value of an `e8m0` code: 2^(code-127), exact in `f32` (code 0 is a subnormal), NaN for 0xff.
pub fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22),
        E8M0_NAN => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// Smallest power of two that is not below `x`, as an `e8m0` code: the cast to `e8m0`.
///
/// For positive normal numbers up to 2^127 this is `(bits + 0x7fffff) >> 23`. Zero and negative numbers give 0
/// (2^-127, the smallest scale), anything above 2^127 saturates at 0xfe, NaN gives 0xff.
pub fn e8m0_from_f32_ceil(x: f32) -> u8 {
    e8m0_from_f64_ceil(f64::from(x))
}

/// [`e8m0_from_f32_ceil`] for `f64`.
pub fn e8m0_from_f64_ceil(x: f64) -> u8 {
    if x.is_nan() {
        return E8M0_NAN;
    }
    if x <= pow2(-127) {
        return 0;
    }
    let exact = x.to_bits() & ((1 << 52) - 1) == 0;
    (exponent(x) + i32::from(!exact) + 127).min(0xfe) as u8
}

/// Power of two nearest to `x`, as an `e8m0` code; halfway (1.5 times a power) goes to the even code.
/// Limits as in [`e8m0_from_f32_ceil`].
pub fn e8m0_from_f32_nearest(x: f32) -> u8 {
    e8m0_from_f64_nearest(f64::from(x))
}

/// [`e8m0_from_f32_nearest`] for `f64`.
pub fn e8m0_from_f64_nearest(x: f64) -> u8 {
    if x.is_nan() {
        return E8M0_NAN;
    }
    if x <= pow2(-127) {
        return 0;
    }
    let (mantissa, half) = (x.to_bits() & ((1 << 52) - 1), 1 << 51);
    let code = exponent(x) + 127;
    let up = mantissa > half || (mantissa == half && code & 1 == 1);
    (code + i32::from(up)).min(0xfe) as u8
}

/// Nearest `f16` bit pattern, overflowing to infinity.
pub fn f16_from_f32(x: f32) -> u16 {
    if x.is_nan() { F16.nan } else { half::f16::from_f32(x).to_bits() }
}

/// Nearest `f16` bit pattern. Not `half::f16::from_f64`, which may round twice (through `f32`).
pub fn f16_from_f64(x: f64) -> u16 {
    F16.encode(x)
}

/// Value of an `f16` bit pattern.
pub fn f16_to_f32(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

/// Nearest `bf16` bit pattern, overflowing to infinity.
pub fn bf16_from_f32(x: f32) -> u16 {
    if x.is_nan() { BF16.nan } else { half::bf16::from_f32(x).to_bits() }
}

/// Nearest `bf16` bit pattern, in one rounding.
pub fn bf16_from_f64(x: f64) -> u16 {
    BF16.encode(x)
}

/// Value of a `bf16` bit pattern.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Finite codes of a format in rising order of value (-0 left out), found by decoding all of them.
    fn grid(codes: impl Iterator<Item = u16>, value: impl Fn(u16) -> f32) -> Vec<(f64, u16)> {
        let mut grid: Vec<_> = codes
            .map(|c| (f64::from(value(c)), c))
            .filter(|&(v, _)| v.is_finite() && !(v == 0.0 && v.is_sign_negative()))
            .collect();
        grid.sort_by(|a, b| a.0.total_cmp(&b.0));
        grid
    }

    /// Nearest grid value by bisection and comparison of distances; ties to the even code. Differences of
    /// neighbours are exact in `f64` for every input used here.
    fn nearest(grid: &[(f64, u16)], x: f64) -> f64 {
        let above = grid.partition_point(|&(v, _)| v < x);
        if above == 0 {
            return grid[0].0;
        }
        if above == grid.len() {
            return grid[above - 1].0;
        }
        let (lo, hi) = (grid[above - 1], grid[above]);
        let (dl, dh) = (x - lo.0, hi.0 - x);
        if dl < dh || (dl == dh && lo.1 & 1 == 0) { lo.0 } else { hi.0 }
    }

    struct Mini {
        name: &'static str,
        codes: u16,
        decode: fn(u8) -> f32,
        encode: fn(f64) -> u8,
        nan: u8,
    }

    const MINIS: [Mini; 3] = [
        Mini { name: "f8e4m3", codes: 256, decode: f8e4m3_to_f32, encode: f8e4m3_from_f64, nan: 0x7f },
        Mini { name: "f8e5m2", codes: 256, decode: f8e5m2_to_f32, encode: f8e5m2_from_f64, nan: 0x7f },
        Mini { name: "f4e2m1", codes: 16, decode: f4e2m1_to_f32, encode: f4e2m1_from_f64, nan: 0x07 },
    ];

    fn check(mini: &Mini, grid: &[(f64, u16)], x: f64) {
        let code = (mini.encode)(x);
        let got = (mini.decode)(code);
        if x.is_nan() {
            assert_eq!(code, mini.nan, "{}: NaN", mini.name);
            return;
        }
        assert_eq!(f64::from(got), nearest(grid, x), "{}: {x:e}", mini.name);
        assert_eq!(got.is_sign_negative(), x.is_sign_negative(), "{}: sign of {x:e}", mini.name);
    }

    #[test]
    fn known_values() {
        assert_eq!(f8e4m3_to_f32(0x7e), F8E4M3_MAX);
        assert_eq!(f8e4m3_to_f32(0x01), 2f32.powi(-9));
        assert_eq!(f8e5m2_to_f32(0x7b), F8E5M2_MAX);
        assert_eq!(f8e5m2_to_f32(0x01), 2f32.powi(-16));
        assert_eq!(f4e2m1_to_f32(0x7), F4E2M1_MAX);
        assert_eq!(f8e4m3_from_f32(f32::INFINITY), 0x7e);
        assert_eq!(f8e4m3_from_f32(-1e9), 0xfe);
        assert_eq!(f8e5m2_from_f32(f32::NEG_INFINITY), 0xfb);
        assert_eq!(f4e2m1_from_f32(f32::NAN), 0x7);
        assert_eq!(f4e2m1_from_f32(2.5), 0x4);
        assert_eq!(e8m0_to_f32(127), 1.0);
        assert_eq!(e8m0_to_f32(0), 2f32.powi(-127));
        assert_eq!(e8m0_to_f32(254), 2f32.powi(127));
    }

    #[test]
    fn every_code_round_trips() {
        for mini in &MINIS {
            for code in 0..mini.codes {
                let v = (mini.decode)(code as u8);
                let back = (mini.encode)(f64::from(v));
                if v.is_finite() {
                    assert_eq!(u16::from(back), code, "{} {code:#x}", mini.name);
                } else if v.is_nan() {
                    assert_eq!(back, mini.nan);
                }
            }
        }
        for code in 0..=254u8 {
            assert_eq!(e8m0_from_f32_ceil(e8m0_to_f32(code)), code);
            assert_eq!(e8m0_from_f32_nearest(e8m0_to_f32(code)), code);
        }
        for bits in 0..=u16::MAX {
            let (h, b) = (f16_to_f32(bits), bf16_to_f32(bits));
            if !h.is_nan() {
                assert_eq!((f16_from_f32(h), f16_from_f64(h.into())), (bits, bits));
            }
            if !b.is_nan() {
                assert_eq!((bf16_from_f32(b), bf16_from_f64(b.into())), (bits, bits));
            }
        }
    }

    #[test]
    fn every_bf16_and_its_neighbours_go_to_the_nearest_code() {
        for mini in &MINIS {
            let grid = grid(0..mini.codes, |c| (mini.decode)(c as u8));
            for bits in 0..=u16::MAX {
                let x = bf16_to_f32(bits);
                check(mini, &grid, x.into());
                check(mini, &grid, x.next_up().into());
                check(mini, &grid, f64::from(x).next_down());
            }
        }
    }

    #[test]
    fn every_midpoint_and_its_neighbours_go_to_the_nearest_code() {
        for mini in &MINIS {
            let grid = grid(0..mini.codes, |c| (mini.decode)(c as u8));
            for pair in grid.windows(2) {
                let mid = 0.5 * (pair[0].0 + pair[1].0);
                for x in [mid, mid.next_up(), mid.next_down()] {
                    // The sign of a zero result follows the input, which the midpoint list cannot know at 0.
                    check(mini, &grid, x);
                }
            }
        }
    }

    #[test]
    fn e8m0_matches_its_definition_on_every_bf16() {
        for bits in 0..=u16::MAX {
            let x = bf16_to_f32(bits);
            for x in [x, f32::from_bits(x.to_bits() | 1), f32::from_bits(x.to_bits() | 0xffff)] {
                let (ceil, near) = (e8m0_from_f32_ceil(x), e8m0_from_f32_nearest(x));
                if x.is_nan() {
                    assert_eq!((ceil, near), (E8M0_NAN, E8M0_NAN));
                    continue;
                }
                let first_not_below = (0..=254u8).find(|&c| e8m0_to_f32(c) >= x).unwrap_or(254);
                assert_eq!(ceil, first_not_below, "{x:e}");
                if x.is_normal() && x > 0.0 && x <= 2f32.powi(127) {
                    assert_eq!(u32::from(ceil), (x.to_bits() + 0x7f_ffff) >> 23, "{x:e}");
                }
                let distance = |c: u8| (f64::from(e8m0_to_f32(c)) - f64::from(x)).abs();
                let best = (0..=254u8)
                    .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))))
                    .expect("there are 255 candidates");
                if x.is_finite() {
                    assert_eq!(near, best, "{x:e}");
                } else {
                    assert_eq!(near, if x > 0.0 { 254 } else { 0 });
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn f32_and_f64_entry_points_agree(bits: u32) {
            let x = f32::from_bits(bits);
            prop_assert_eq!(f8e4m3_from_f32(x), f8e4m3_from_f64(x.into()));
            prop_assert_eq!(f16_from_f32(x), f16_from_f64(x.into()));
            prop_assert_eq!(bf16_from_f32(x), bf16_from_f64(x.into()));
        }

        #[test]
        fn sixteen_bit_formats_round_f64_once(bits: u64, narrow in 0u64..0x7ff) {
            // Spread the exponents over the range of the formats, with arbitrary mantissas.
            let exponent = 1023 - 160 + narrow % 300;
            let x = f64::from_bits((bits & 0x800f_ffff_ffff_ffff) | (exponent << 52));
            let h = f16_to_f32(f16_from_f64(x));
            let b = bf16_to_f32(bf16_from_f64(x));
            for (got, next) in [
                (h, half::f16::from_bits(f16_from_f64(x).wrapping_add(1)).to_f32()),
                (h, half::f16::from_bits(f16_from_f64(x).wrapping_sub(1)).to_f32()),
                (b, bf16_to_f32(bf16_from_f64(x).wrapping_add(1))),
                (b, bf16_to_f32(bf16_from_f64(x).wrapping_sub(1))),
            ] {
                if got.is_finite() && next.is_finite() {
                    prop_assert!((f64::from(got) - x).abs() <= (f64::from(next) - x).abs());
                }
            }
        }
    }

    #[test]
    fn f64_to_f16_does_not_round_twice() {
        // Just above the midpoint of 1 and 1 + 2^-10, by less than an f32 can hold.
        let x = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(f16_from_f64(x), 0x3c01);
        let x = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(bf16_from_f64(x), 0x3f81);
    }
}
