//! The logistic function with a denominator and quotients that are correctly rounded.
//!
//! Activations are quantised as soon as they are computed, and whoever compares codes exactly must know the activation to the
//! bit. The f32 exponential of the language is good to an ulp, which now and then puts a value on the other side of a
//! rounding boundary; in this one the polynomial is summed in f64, which is rounded once. Quotients are Newton steps from
//! an approximate reciprocal: unlike a division they have no special cases to branch to, and one reciprocal serves all.

use zellige::prelude::*;

/// Added to an f32 of at most 22 bits it leaves the nearest integer in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// Denominators are kept divided by 16: so none overflows where the quotient is a normal number.
const SCALE: f32 = 0.0625;

/// Below this 1 + e^-g is infinite in f32.
const OVERFLOW: f32 = -88.722_84;

/// Bits of the coefficients of a polynomial that is e^r within 2^-44.8 for |r| <= ln 2 / 2. Of all such it has the least error with 1 and
/// 1 in front, and with 21 significant bits in the last four: six that an instruction of the GPU has room for.
const COEFFICIENTS: [u64; 10] = [
    0x3ff0_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0x3fdf_ffff_ffff_72f2,
    0x3fc5_5555_5558_2db5,
    0x3fa5_5555_578c_0f2e,
    0x3f81_1111_094c_805b,
    0x3f56_c164_0000_0000,
    0x3f2a_01b7_0000_0000,
    0x3efa_16e2_0000_0000,
    0x3ec7_0fef_0000_0000,
];

#[track_caller]
fn constant(v: f64) -> Expr<f64> {
    lit::<u64>(v.to_bits()).bitcast()
}

/// `1 / (1 + e^-g)` as a factor.
#[derive(Clone, Copy)]
pub(super) struct Logistic {
    /// `1 + e^-g` in f32 as if both steps were done exactly and rounded to nearest even, times [`SCALE`]; up to exponentials
    /// within 2^-44 of the middle between two numbers.
    denominator: Expr<f32>,
    /// Its reciprocal within a unit in the last place.
    reciprocal: Expr<f32>,
    /// The denominator is infinite.
    overflow: Expr<bool>,
}

impl Logistic {
    #[track_caller]
    pub fn of(g: Expr<f32>) -> Logistic {
        // Below -80 the sum is 1; what comes out where it overflows is not used.
        let x = (-g).max(-80.0);
        let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let bits = rounded.bitcast::<u32>();
        // The same bits as the low word of a number of which all but the integer is a constant.
        let high = 1u64 << 52;
        let wide = (bits.cast::<u64>() | f64::to_bits(high as f64)).bitcast::<f64>();
        let n = wide - constant((high + u64::from(ROUND.to_bits())) as f64);
        let r = (-n).mul_add(constant(std::f64::consts::LN_2), x.cast::<f64>());
        let [rest @ .., last] = COEFFICIENTS.map(f64::from_bits);
        let p = rest.iter().rev().fold(constant(last), |sum, &c| sum.mul_add(r, constant(c)));
        let power = ((bits << 23) + ((127 - 4) << 23)).bitcast::<f32>();
        let denominator = p.cast::<f32>().mul_add(power, SCALE);
        Logistic { denominator, reciprocal: denominator.fast_recip(), overflow: cmp::lt(&g, &OVERFLOW) }
    }

    /// `y / (1 + e^-g)`, rounded to nearest even for `y` above 2^-96 in magnitude; up to quotients within 2^-45 of the middle
    /// between two numbers.
    #[track_caller]
    pub fn times(self, y: Expr<f32>) -> Expr<f32> {
        let numerator = y * SCALE;
        let quotient = self.divide(numerator, numerator * self.reciprocal);
        // The residual of infinity is no number, and that of zero loses the sign, which is that of `y` anyhow.
        let magnitude = select(self.overflow, 0.0, quotient).bitcast::<u32>();
        (magnitude | (y.bitcast::<u32>() & 0x8000_0000u32)).bitcast()
    }

    /// `1 / (1 + e^-g)`, as [`times`](Self::times).
    #[track_caller]
    pub fn value(self) -> Expr<f32> {
        select(self.overflow, 0.0, self.divide(lit(SCALE), self.reciprocal * SCALE))
    }

    /// A Newton step from a quotient that is off by up to 2^-22: by that much the reciprocal corrects it wrongly, and its residual is
    /// rounded, to 2^-24, before the sum is.
    fn divide(self, numerator: Expr<f32>, quotient: Expr<f32>) -> Expr<f32> {
        (-self.denominator).mul_add(quotient, numerator).mul_add(self.reciprocal, quotient)
    }
}

/// How an activation is rounded as soon as it is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rounding {
    /// Not at all: all bits count.
    None,
    /// To bf16.
    Bf16,
    /// To codes of at most four significant bits, after a division by a power of two. That depends on where the largest of a group
    /// lies among powers of two times a number of as many bits.
    Codes,
}

/// Where [`quick`] may be used for bf16: above its negative.
const QUICK: f32 = 16.0;

impl Rounding {
    /// Bits of an f32, read as an integer, by which products of [`quick`] and two further factors are off at most.
    ///
    /// In units of 2^-24 of the value, a half to one bit each: the argument of the exponential, 1.23 for each unit of `-g` (its product
    /// with log2 e and that constant, both rounded), and the exponential itself, 4, count for the denominator only where it is not 1;
    /// its sum, the reciprocal, 2, the products, 3; and what the exact steps differ by from their exact values, 6 in all.
    fn off(self) -> u32 {
        match self {
            Rounding::None => 0,
            Rounding::Bf16 => 40,
            // For all `g`. Where the denominator overflows, or is too large for the reciprocal, the product is zero, which is in doubt.
            Rounding::Codes => 128,
        }
    }

    /// What [`in_doubt`](Self::in_doubt) compares with, for elements of which the value matters.
    pub fn margin(self) -> u32 {
        (2 * self.off()) << self.dropped()
    }

    /// A shift that leaves the bits below those of which any may be the last.
    fn dropped(self) -> u32 {
        match self {
            Rounding::None => 0,
            Rounding::Bf16 => 16,
            Rounding::Codes => 13,
        }
    }

    /// Might another value than `y` come of the exact steps, once rounded? `y` is made of [`quick`] of `g`.
    #[track_caller]
    pub fn in_doubt(self, y: Expr<f32>, g: Expr<f32>, margin: Expr<u32>) -> Expr<bool> {
        let shift = self.dropped();
        // Small around the places where a rounding changes: the middle of two numbers, and in codes any number of up to four bits,
        // which is such a middle or the end of a power's reach.
        let from = |middle: u32| (y.bitcast::<u32>() << shift) + ((middle + self.off()) << shift);
        match self {
            Rounding::None => Expr::from(true),
            Rounding::Bf16 => cmp::lt(&from(0x8000), &margin) | cmp::lt(&g, &-QUICK),
            Rounding::Codes => cmp::lt(&from(0), &margin),
        }
    }
}

/// `g / (1 + e^-g)` to about 20 bits, fewer far below zero.
#[track_caller]
pub(super) fn quick(g: Expr<f32>) -> Expr<f32> {
    g * ((g * -std::f32::consts::LOG2_E).fast_exp2() + 1.0).fast_recip()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// y = g / (1 + e^-g), z = 1 / (1 + e^-g).
    #[kernel]
    fn logistics(
        t: T,
        #[dims(n)] g: &Tensor<f32, 1>,
        #[dims(n)] y: &mut Tensor<f32, 1>,
        #[dims(n)] z: &mut Tensor<f32, 1>,
    ) {
        let [b] = t.grid([g.dim(0).ceil_div(1024)], 128);
        for i in t.parallel(1024) {
            let at = b * 1024 + i;
            let logistic = Logistic::of(g[at]);
            y[at] = logistic.times(g[at]);
            z[at] = logistic.value();
        }
    }

    #[test]
    fn the_polynomial_is_the_exponential() {
        for i in -10_000..=10_000 {
            let r = f64::from(i) * 1e-4 * std::f64::consts::LN_2 / 2.0;
            let p = COEFFICIENTS.iter().rev().fold(0.0, |sum: f64, &c| sum.mul_add(r, f64::from_bits(c)));
            assert!((p / r.exp() - 1.0).abs() < 2f64.powf(-44.8), "e^{r} is not {p}");
        }
    }

    #[test]
    fn every_bf16_and_many_f32_give_the_nearest_number() {
        let mut g: Vec<f32> = (0..=u16::MAX).map(|b| bf16::from_bits(b).to_f32()).filter(|x| x.is_finite()).collect();
        g.extend((0..1 << 18).map(|i| (i as f32 - 131_072.0) * 6.1e-4));
        g.retain(|g| *g == 0.0 || g.abs() > 2f32.powi(-96));
        let denominator = |g: f32| 1.0 + (-f64::from(g)).exp() as f32;
        let tensor = DeviceTensor::from_slice([g.len()], &g).unwrap();
        for device in [Device::cpu(), Device::interp(), Device::sim()] {
            let (mut y, mut z) = (DeviceTensor::zeros([g.len()]).unwrap(), DeviceTensor::zeros([g.len()]).unwrap());
            Logistics::new().launch(&device.stream(), &tensor, &mut y, &mut z).unwrap();
            for ((&g, y), z) in g.iter().zip(y.to_vec().unwrap()).zip(z.to_vec().unwrap()) {
                let want = (g / denominator(g), 1.0 / denominator(g));
                let same = y.to_bits() == want.0.to_bits() && z.to_bits() == want.1.to_bits();
                assert!(same, "g = {g} on {}: {y} and {z}, not {want:?}", device.name());
            }
        }
    }

    /// From g, h and w: `g / (1 + e^-g) h w`, quickly and exactly, and what is in doubt of the quick one, for codes (1) and in bf16 (2).
    #[kernel]
    fn products(
        t: T,
        #[dims(n)] g: &Tensor<f32, 1>,
        #[dims(n)] h: &Tensor<f32, 1>,
        #[dims(n)] w: &Tensor<f32, 1>,
        #[dims(n)] rough: &mut Tensor<f32, 1>,
        #[dims(n)] exact: &mut Tensor<f32, 1>,
        #[dims(n)] doubts: &mut Tensor<i32, 1>,
    ) {
        let [b] = t.grid([g.dim(0).ceil_div(1024)], 128);
        for i in t.parallel(1024) {
            let at = b * 1024 + i;
            let product = |silu: Expr<f32>| silu * h[at] * w[at];
            let y = product(quick(g[at]));
            rough[at] = y;
            exact[at] = product(Logistic::of(g[at]).times(g[at]));
            let [codes, narrow] = [Rounding::Codes, Rounding::Bf16].map(|r| r.in_doubt(y, g[at], lit(r.margin())));
            doubts[at] = codes.cast::<i32>() + narrow.cast::<i32>() * 2;
        }
    }

    #[test]
    fn what_is_not_in_doubt_is_rounded_as_the_exact_product() {
        let gates = (0..=u16::MAX).map(|b| bf16::from_bits(b).to_f32()).filter(|g| (-80.0..1e4).contains(g));
        let gates: Vec<f32> = gates.filter(|g| g.abs() > 2f32.powi(-30)).collect();
        let g: Vec<f32> = (0..8).flat_map(|_| gates.iter().copied()).collect();
        let n = g.len();
        let mut state = 1u32;
        let mut random = |low: f32, high: f32| -> Vec<f32> {
            let next = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                low + (high - low) * (state >> 8) as f32 / (1 << 24) as f32
            };
            (0..n).map(next).collect()
        };
        let (h, w) = (random(-10.0, 10.0), random(0.0, 1.0));
        let inputs = [&g, &h, &w].map(|v| DeviceTensor::from_slice([n], v).unwrap());
        // A number rounded to so many significant bits, halves to even.
        let rounded = |x: f32, bits: u32| {
            let drop = 24 - bits;
            let (low, half) = (x.to_bits() & ((1 << drop) - 1), 1 << (drop - 1));
            let kept = x.to_bits() >> drop;
            kept + u32::from(low > half || low == half && kept & 1 == 1)
        };
        for device in [Device::cpu(), Device::interp(), Device::sim()] {
            let (mut rough, mut exact) = (DeviceTensor::zeros([n]).unwrap(), DeviceTensor::zeros([n]).unwrap());
            let mut doubts = DeviceTensor::zeros([n]).unwrap();
            let [g_in, h_in, w_in] = &inputs;
            Products::new().launch(&device.stream(), g_in, h_in, w_in, &mut rough, &mut exact, &mut doubts).unwrap();
            let (rough, exact, doubts) = (rough.to_vec().unwrap(), exact.to_vec().unwrap(), doubts.to_vec().unwrap());
            for i in 0..n {
                let (a, b) = (rough[i].to_bits(), exact[i].to_bits());
                if exact[i].abs() > 1e-30 {
                    let off = if g[i] >= -QUICK { Rounding::Bf16 } else { Rounding::Codes }.off();
                    assert!(a.abs_diff(b) <= off, "{} {} for g = {} on {}", rough[i], exact[i], g[i], device.name());
                }
                for bits in 1..=4 {
                    let same = rounded(rough[i], bits) == rounded(exact[i], bits);
                    assert!(
                        doubts[i] & 1 == 1 || same,
                        "{} {} in {bits} bits on {}",
                        rough[i],
                        exact[i],
                        device.name()
                    );
                }
                let same = rounded(rough[i], 8) == rounded(exact[i], 8);
                assert!(doubts[i] & 2 == 2 || same, "{} {} in bf16 on {}", rough[i], exact[i], device.name());
            }
        }
    }
}
