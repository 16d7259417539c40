//! The denominator of the logistic function, correctly rounded.
//!
//! Activations are quantised as soon as they are computed, and whoever compares codes exactly must know the activation to the
//! bit. The f32 exponential of the language is good to an ulp, which now and then puts a value on the other side of a
//! rounding boundary; in this one the terms that matter are summed in f64, which is rounded once.

use zellige::prelude::*;

/// ln 2 in f32: a part of which small multiples are exact, and the rest.
const LN2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];

/// Terms of the Taylor series of e^r, |r| <= ln 2 / 2, whose sum is formed in f64: r^0 to r^6.
const WIDE: i32 = 6;

/// The last term, in f32 as those between: what is left out, and the error of the terms in f32, are below 2^-44.
const LAST: i32 = 11;

/// 1 / k!.
fn coefficient(k: i32) -> f64 {
    (1..=k).map(|i| 1.0 / f64::from(i)).product()
}

#[track_caller]
fn constant(v: f64) -> Expr<f64> {
    lit::<u64>(v.to_bits()).bitcast()
}

/// `1 + e^-g` in f32 as if both steps were done exactly and rounded to nearest even, up to exponentials within 2^-44 of the
/// middle between two numbers. Infinite where e^-g overflows.
#[track_caller]
pub(super) fn one_plus_exp_minus(g: Expr<f32>) -> Expr<f32> {
    // Below -80 the sum is 1, above 89 infinite.
    let x = (-g).clamp(-80.0, 89.0);
    let n = (x * std::f32::consts::LOG2_E).round();
    let r = (-n).mul_add(LN2[1], (-n).mul_add(LN2[0], x));
    let tail = (WIDE + 1..LAST)
        .rev()
        .fold(lit::<f32>(coefficient(LAST) as f32), |sum, k| sum.mul_add(r, coefficient(k) as f32));
    let r = (-n.cast::<f64>()).mul_add(constant(std::f64::consts::LN_2), x.cast::<f64>());
    let p = (0..=WIDE).rev().fold(tail.cast::<f64>(), |sum, k| sum.mul_add(r, constant(coefficient(k))));
    // 2^(n - 1) is a number for n = 128 too.
    let half_scale = ((n.cast::<i32>() + 126) << 23).bitcast::<f32>();
    lit::<f32>(1.0) + p.cast::<f32>() * half_scale * 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// y = 1 + e^-x.
    #[kernel]
    fn denominators(t: T, #[dims(n)] x: &Tensor<f32, 1>, #[dims(n)] y: &mut Tensor<f32, 1>) {
        let [b] = t.grid([x.dim(0).ceil_div(1024)], 128);
        for i in t.parallel(1024) {
            y[b * 1024 + i] = one_plus_exp_minus(x[b * 1024 + i]);
        }
    }

    #[test]
    fn every_bf16_and_many_f32_give_the_nearest_number() {
        let mut x: Vec<f32> = (0..=u16::MAX).map(|b| bf16::from_bits(b).to_f32()).filter(|x| !x.is_nan()).collect();
        x.extend((0..1 << 18).map(|i| (i as f32 - 131_072.0) * 6.1e-4));
        let want: Vec<f32> = x.iter().map(|&x| 1.0 + (-f64::from(x)).exp() as f32).collect();
        let tensor = DeviceTensor::from_slice([x.len()], &x).unwrap();
        for device in [Device::cpu(), Device::interp()] {
            let mut y = DeviceTensor::zeros([x.len()]).unwrap();
            Denominators::new().launch(&device.stream(), &tensor, &mut y).unwrap();
            for ((x, got), want) in x.iter().zip(y.to_vec().unwrap()).zip(&want) {
                assert_eq!(got.to_bits(), want.to_bits(), "1 + e^-{x} on {}: {got} {want}", device.name());
            }
        }
    }
}
