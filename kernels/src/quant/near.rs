//! Comparison of quantised results of computations that are not exact to the bit.
//!
//! A fused kernel quantises a value it computed in f32 with elementary functions that are good to an ulp or two, and an error
//! of an ulp can carry a value over a rounding boundary of the narrow format. Comparing decoded values within a tolerance
//! would have to allow a whole step of that format everywhere. Instead, what is compared exactly is whether the
//! kernel's scale factors and codes are those of *some* values within the stated error of the reference's.

use crate::library::Comparison;
use crate::reference::quant::{self as reference, CastSpec, ScaleFormat, Scaling};
use rayon::prelude::*;

/// Values a kernel may have computed: the reference's, each with the largest error allowed.
pub struct Near<'a> {
    pub values: &'a [f32],
    pub errors: &'a [f32],
    pub rows: usize,
    pub cols: usize,
}

/// The value nearest to `got` in `lo..=hi`; of equal ends, that end to the bit.
fn clamp(got: f32, lo: f32, hi: f32) -> f32 {
    if lo.to_bits() == hi.to_bits() || got.is_nan() || got < lo {
        lo
    } else if got > hi {
        hi
    } else {
        got
    }
}

impl Near<'_> {
    /// The smallest and largest values, after `round`.
    fn range(&self, i: usize, round: &impl Fn(f32) -> f32) -> (f32, f32) {
        let (v, e) = (self.values[i], self.errors[i]);
        if e == 0.0 { (round(v), round(v)) } else { (round(v - e), round(v + e)) }
    }

    /// Compares values that were rounded by `round` (such as to bf16).
    pub fn compare_values(&self, name: &'static str, got: &[f32], round: impl Fn(f32) -> f32) -> Comparison {
        let want: Vec<f32> = got
            .iter()
            .enumerate()
            .map(|(i, &got)| {
                let (lo, hi) = self.range(i, &round);
                clamp(got, lo, hi)
            })
            .collect();
        Comparison::exact_f32(name, got, &want)
    }

    /// Compares decoded codes `[rows, cols]` and decoded row-major scale factors of values that were rounded by `round`
    /// and then cast as `spec` says.
    pub fn compare_cast(
        &self,
        names: [&'static str; 2],
        codes: &[f32],
        scales: &[f32],
        spec: &CastSpec,
        round: impl Fn(f32) -> f32 + Sync,
    ) -> Vec<Comparison> {
        let (rows, cols) = (self.rows, self.cols);
        let (block_rows, block_cols) = spec.block;
        let groups = cols.div_ceil(block_cols);
        // The range of each group's amax.
        let mut amax = vec![(spec.amax_floor, spec.amax_floor); rows.div_ceil(block_rows) * groups];
        for i in 0..rows * cols {
            let (lo, hi) = self.range(i, &round);
            let (smallest, largest) = if lo <= 0.0 && hi >= 0.0 {
                (0.0, hi.max(-lo))
            } else {
                (lo.abs().min(hi.abs()), lo.abs().max(hi.abs()))
            };
            let group = &mut amax[i / cols / block_rows * groups + i % cols / block_cols];
            *group = (group.0.max(smallest), group.1.max(largest));
        }
        let scale = |amax: f32| {
            // Two elements: e2m1 codes come in pairs.
            let one = CastSpec { block: (1, 2), ..*spec };
            reference::cast(&[amax, 0.0], 1, 2, &one).scales[0]
        };
        let want_scales: Vec<f32> =
            scales.iter().zip(&amax).map(|(&s, &(lo, hi))| clamp(s, scale(lo), scale(hi))).collect();
        let encode = |v: f32, s: f32, amax: f32| {
            let scaled = match (spec.scale, spec.scaling) {
                (ScaleFormat::Ue8m0, _) | (ScaleFormat::F32, Scaling::Divide) => v / s,
                (ScaleFormat::F32, Scaling::Reciprocal) => v * (spec.codes.max() / amax),
            };
            spec.codes.decode(&spec.codes.encode(&[scaled, 0.0]))[0]
        };
        let want_codes: Vec<f32> = codes
            .par_iter()
            .enumerate()
            .map(|(i, &got)| {
                let group = i / cols / block_rows * groups + i % cols / block_cols;
                let (lo, hi) = self.range(i, &round);
                let (s, amax) = (want_scales[group], amax[group]);
                // The larger amax makes the smaller magnitude.
                let (for_lo, for_hi) = (if lo < 0.0 { amax.0 } else { amax.1 }, if hi < 0.0 { amax.1 } else { amax.0 });
                clamp(got, encode(lo, s, for_lo), encode(hi, s, for_hi))
            })
            .collect();
        vec![Comparison::exact_f32(names[0], codes, &want_codes), Comparison::exact_f32(names[1], scales, &want_scales)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::quant::CodeFormat;

    #[test]
    fn a_step_is_allowed_only_at_a_boundary() {
        // 1.0625 lies halfway between the e4m3 values 1 and 1.125; amax 448 makes the scale factor 1.
        let spec = CastSpec::per_token(CodeFormat::E4m3, 4, ScaleFormat::Ue8m0);
        let values = [1.0625, 1.05, 448.0, -0.0];
        let near = Near { values: &values, errors: &[1e-6, 1e-6, 0.0, 0.0], rows: 1, cols: 4 };
        let pass = |codes: [f32; 4], scale: f32| {
            let verdicts = near.compare_cast(["codes", "sf"], &codes, &[scale], &spec, |v| v);
            verdicts.iter().map(|c| c.verdict.pass).collect::<Vec<_>>()
        };
        assert_eq!(pass([1.0, 1.0, 448.0, -0.0], 1.0), [true, true]);
        assert_eq!(pass([1.125, 1.0, 448.0, -0.0], 1.0), [true, true]);
        assert_eq!(pass([1.25, 1.0, 448.0, -0.0], 1.0), [false, true]);
        assert_eq!(pass([1.0, 1.125, 448.0, -0.0], 1.0), [false, true]);
        assert_eq!(pass([1.0, 1.0, 448.0, 0.0], 1.0), [false, true]);
        assert!(!pass([1.0, 1.0, 448.0, -0.0], 2.0)[1]);
    }

    #[test]
    fn values_may_differ_by_their_error() {
        let near = Near { values: &[1.0, 2.0], errors: &[0.0, 0.5], rows: 1, cols: 2 };
        assert!(near.compare_values("y", &[1.0, 2.4], |v| v).verdict.pass);
        assert!(!near.compare_values("y", &[1.0, 2.6], |v| v).verdict.pass);
        assert!(!near.compare_values("y", &[1.0 + f32::EPSILON, 2.0], |v| v).verdict.pass);
    }
}
