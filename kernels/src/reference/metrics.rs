//! Comparison of a kernel's output with its reference: error measures, tolerances, verdicts.
//!
//! Non-finite values never hide an error: NaN matches only NaN, an infinity only the same
//! infinity, and both are settled before any sum is taken. May depend on `rayon`.

use rayon::prelude::*;
use std::fmt;

/// Elements compared by one task.
const CHUNK: usize = 1 << 16;

/// How close is close enough. The measures are defined by the functions of this module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Same bits (any NaN equals any NaN; −0 differs from +0).
    Exact,
    /// Each element is the rounding to bf16 of some value within this fraction of the magnitudes of the sum's terms from
    /// the reference; see [`compare_rounded`].
    Rounding(f64),
    /// `|got − want| ≤ bound` for every element.
    Abs(f64),
    /// `|got − want| ≤ abs` **or** `≤ rel · |want|` for every element.
    AbsRel {
        /// Absolute bound.
        abs: f64,
        /// Bound relative to the reference.
        rel: f64,
    },
    /// `|got − want| ≤ abs + rel · |want|` for every element (`torch.testing.assert_close`).
    AbsPlusRel {
        /// Absolute part of the bound.
        abs: f64,
        /// Part of the bound relative to the reference.
        rel: f64,
    },
    /// [`calc_diff`] at most this.
    CalcDiff(f64),
    /// [`cosine_diff`] at most this.
    Cosine(f64),
    /// Both [`Tolerance::AbsRel`] and [`Tolerance::Cosine`].
    AbsRelCos {
        /// Absolute bound.
        abs: f64,
        /// Bound relative to the reference.
        rel: f64,
        /// Bound on [`cosine_diff`].
        cos: f64,
    },
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Tolerance::Exact => write!(f, "exact"),
            Tolerance::Rounding(noise) => write!(f, "rounded ±{noise:.1e}"),
            Tolerance::Abs(abs) => write!(f, "abs {abs:.1e}"),
            Tolerance::AbsRel { abs, rel } => write!(f, "abs {abs:.1e} or rel {rel:.1e}"),
            Tolerance::AbsPlusRel { abs, rel } => write!(f, "abs {abs:.1e} + rel {rel:.1e}"),
            Tolerance::CalcDiff(bound) => write!(f, "diff {bound:.1e}"),
            Tolerance::Cosine(bound) => write!(f, "cos {bound:.1e}"),
            Tolerance::AbsRelCos { abs, rel, cos } => write!(f, "abs {abs:.1e} or rel {rel:.1e}, cos {cos:.1e}"),
        }
    }
}

/// Outcome of [`compare`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Whether the tolerance holds.
    pub pass: bool,
    /// The tolerance applied.
    pub tolerance: Tolerance,
    /// The measured error as a fraction of what the tolerance allows: at most 1 on a pass.
    /// Infinite if [`Tolerance::Exact`] fails or a non-finite value does not match.
    pub used: f64,
    /// The error in the tolerance's own unit: [`calc_diff`], [`cosine_diff`], or the absolute
    /// error of the worst element.
    pub error: f64,
    /// The worst element, with the two values there; `None` if all elements agree exactly.
    pub worst: Option<Worst>,
    /// Number of elements compared.
    pub elements: usize,
}

/// One element of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worst {
    /// Flat index.
    pub index: usize,
    /// The value under test.
    pub got: f32,
    /// The reference value.
    pub want: f32,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = if self.pass { "ok" } else { "MISMATCH" };
        write!(
            f,
            "{outcome}: error {:.3e} (tolerance: {}) over {} elements",
            self.error, self.tolerance, self.elements
        )?;
        match self.worst {
            None => Ok(()),
            Some(Worst { index, got, want }) => write!(f, ", worst at {index}: got {got}, want {want}"),
        }
    }
}

/// The worst element of a part of an output.
#[derive(Clone, Copy, Default)]
struct Difference {
    used: f64,
    error: f64,
    /// Does a NaN or an infinity stand against something else, anywhere?
    mismatched_kind: bool,
    worst: Option<Worst>,
}

impl Difference {
    /// The worse of the two; the first if they are alike.
    fn or(self, other: Difference) -> Difference {
        let worse = if self.worst.is_none() || other.used > self.used { other } else { self };
        Difference { mismatched_kind: self.mismatched_kind || other.mismatched_kind, ..worse }
    }
}

/// Compares an output with its reference.
///
/// # Panics
/// If the lengths differ.
pub fn compare(got: &[f32], want: &[f32], tolerance: Tolerance) -> Verdict {
    assert_eq!(got.len(), want.len(), "outputs of {} and {} elements cannot be compared", got.len(), want.len());
    // Worst element first: it is reported whatever the tolerance measures.
    let allowance = |want: f64| match tolerance {
        Tolerance::Exact | Tolerance::Rounding(_) | Tolerance::CalcDiff(_) | Tolerance::Cosine(_) => 0.0,
        Tolerance::Abs(abs) => abs,
        Tolerance::AbsRel { abs, rel } | Tolerance::AbsRelCos { abs, rel, .. } => abs.max(rel * want.abs()),
        Tolerance::AbsPlusRel { abs, rel } => abs + rel * want.abs(),
    };
    let rank = |error: f64, want: f64| match tolerance {
        // Ranked by absolute error; the measure itself is taken over the whole output.
        Tolerance::CalcDiff(_) | Tolerance::Cosine(_) => error,
        Tolerance::Exact | Tolerance::Rounding(_) => f64::INFINITY,
        Tolerance::Abs(_) | Tolerance::AbsRel { .. } | Tolerance::AbsPlusRel { .. } | Tolerance::AbsRelCos { .. } => {
            ratio(error, allowance(want))
        }
    };
    let of_chunk = |(chunk, (got, want)): (usize, (&[f32], &[f32]))| {
        let mut found = Difference::default();
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            if g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan()) {
                continue;
            }
            let finite = g.is_finite() && w.is_finite();
            let error = if finite { (f64::from(g) - f64::from(w)).abs() } else { f64::INFINITY };
            let worst = Worst { index: chunk * CHUNK + i, got: g, want: w };
            found = found.or(Difference {
                used: rank(error, w.into()),
                error,
                mismatched_kind: !finite,
                worst: Some(worst),
            });
        }
        found
    };
    let differences: Vec<Difference> =
        got.par_chunks(CHUNK).zip(want.par_chunks(CHUNK)).enumerate().map(of_chunk).collect();
    let Difference { used: worst_used, error: worst_error, mismatched_kind, worst } =
        differences.into_iter().fold(Difference::default(), Difference::or);
    let (used, error) = match tolerance {
        _ if mismatched_kind => (f64::INFINITY, f64::INFINITY),
        Tolerance::Exact
        | Tolerance::Rounding(_)
        | Tolerance::Abs(_)
        | Tolerance::AbsRel { .. }
        | Tolerance::AbsPlusRel { .. } => (worst_used, worst_error),
        Tolerance::CalcDiff(bound) => {
            let diff = calc_diff(got, want);
            (ratio(diff, bound), diff)
        }
        Tolerance::Cosine(bound) => {
            let diff = cosine_diff(got, want);
            (ratio(diff, bound), diff)
        }
        Tolerance::AbsRelCos { cos, .. } => {
            let cosine_used = ratio(cosine_diff(got, want), cos);
            if cosine_used > worst_used { (cosine_used, cosine_diff(got, want)) } else { (worst_used, worst_error) }
        }
    };
    Verdict { pass: used <= 1.0, tolerance, used, error, worst, elements: got.len() }
}

/// Compares bf16 results of sums in f32 with the unrounded reference: `sizes` are the sums of the terms' magnitudes, and a
/// result passes if it is what some value within `noise · size` of the reference rounds to. Away from the middle between
/// two bf16 numbers that is one number, so that this is stricter than any tolerance of bf16's own size.
///
/// # Panics
/// If the lengths differ.
pub fn compare_rounded(got: &[f32], want: &[f32], sizes: &[f32], noise: f64) -> Verdict {
    assert_eq!(want.len(), sizes.len(), "{} values and the magnitudes of {}", want.len(), sizes.len());
    let nearest = |((&got, &want), &size): ((&f32, &f32), &f32)| {
        let error = noise * f64::from(size);
        let [lo, hi] = [-error, error].map(|e| super::codec::bf16_round((f64::from(want) + e) as f32));
        // Zeros of either sign are one value.
        if got >= lo && got <= hi { got } else { super::codec::bf16_round(want) }
    };
    let nearest: Vec<f32> = got.par_iter().zip(want).zip(sizes).map(nearest).collect();
    compare(got, &nearest, Tolerance::Rounding(noise))
}

/// `error / bound`, with 0 / 0 = 0.
fn ratio(error: f64, bound: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / bound }
}

/// Pairs of finite values, widened. Matching NaNs and infinities carry no distance.
fn finite_pairs<'a>(x: &'a [f32], y: &'a [f32]) -> impl Iterator<Item = (f64, f64)> + 'a {
    assert_eq!(x.len(), y.len(), "outputs of {} and {} elements cannot be compared", x.len(), y.len());
    let both_finite = |(x, y): &(&f32, &f32)| x.is_finite() && y.is_finite();
    x.iter().zip(y).filter(both_finite).map(|(&x, &y)| (f64::from(x), f64::from(y)))
}

/// Sums over the finite pairs, by chunks whose order is fixed.
fn sums<const N: usize>(x: &[f32], y: &[f32], of: impl Fn(f64, f64) -> [f64; N] + Sync) -> [f64; N] {
    assert_eq!(x.len(), y.len(), "outputs of {} and {} elements cannot be compared", x.len(), y.len());
    let add = |sum: [f64; N], term: [f64; N]| std::array::from_fn(|i| sum[i] + term[i]);
    let of_chunk = |(x, y): (&[f32], &[f32])| finite_pairs(x, y).map(|(x, y)| of(x, y)).fold([0.0; N], add);
    let parts: Vec<[f64; N]> = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)).map(of_chunk).collect();
    parts.into_iter().fold([0.0; N], add)
}

/// Whether NaN and the infinities sit at the same places in both.
fn same_non_finite(x: &[f32], y: &[f32]) -> bool {
    x.iter().zip(y).all(|(x, y)| (x.is_finite() && y.is_finite()) || (x.is_nan() && y.is_nan()) || x == y)
}

/// `1 − 2 Σxy / Σ(x² + y²)` in f64; 0 if both are all zero, infinite if a non-finite value does
/// not match.
pub fn calc_diff(x: &[f32], y: &[f32]) -> f64 {
    // Σ(x−y)² / Σ(x²+y²) is the same quantity without the cancellation of 1 − …
    let [distance, norm] = sums(x, y, |x, y| [(x - y).powi(2), x * x + y * y]);
    match same_non_finite(x, y) {
        false => f64::INFINITY,
        true if norm == 0.0 => 0.0,
        true => distance / norm,
    }
}

/// `1 − x·y / (|x| |y|)` in f64; 0 if both are zero, 1 if exactly one is, infinite if a
/// non-finite value does not match.
pub fn cosine_diff(x: &[f32], y: &[f32]) -> f64 {
    let [xy, xx, yy] = sums(x, y, |x, y| [x * y, x * x, y * y]);
    match same_non_finite(x, y) {
        false => f64::INFINITY,
        true if xx == 0.0 && yy == 0.0 => 0.0,
        true if xx == 0.0 || yy == 0.0 => 1.0,
        true => (1.0 - xy / (xx.sqrt() * yy.sqrt())).max(0.0),
    }
}

/// Largest `|x − y|`; infinite if a non-finite value does not match.
pub fn max_abs(x: &[f32], y: &[f32]) -> f64 {
    let worst = finite_pairs(x, y).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    if same_non_finite(x, y) { worst } else { f64::INFINITY }
}

/// Largest `|got − want| / |want|`; infinite where a zero is missed or a non-finite value does
/// not match.
pub fn max_rel(got: &[f32], want: &[f32]) -> f64 {
    let worst = finite_pairs(got, want).map(|(g, w)| ratio((g - w).abs(), w.abs())).fold(0.0, f64::max);
    if same_non_finite(got, want) { worst } else { f64::INFINITY }
}

/// First difference between two sequences of codes, indices or other exact values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("first mismatch at {index}: got {got:?}, want {want:?} ({count} of {len} differ)")]
pub struct CodeMismatch<E: fmt::Debug> {
    /// Flat index of the first difference.
    pub index: usize,
    /// The value under test there.
    pub got: E,
    /// The reference value there.
    pub want: E,
    /// How many elements differ.
    pub count: usize,
    /// How many elements were compared.
    pub len: usize,
}

/// Exact equality of codes, indices or masks.
///
/// # Panics
/// If the lengths differ.
pub fn compare_exact<E: Copy + PartialEq + fmt::Debug>(got: &[E], want: &[E]) -> Result<(), CodeMismatch<E>> {
    assert_eq!(got.len(), want.len(), "outputs of {} and {} elements cannot be compared", got.len(), want.len());
    let mut differences = got.iter().zip(want).enumerate().filter(|(_, (got, want))| got != want);
    match differences.next() {
        None => Ok(()),
        Some((index, (&got_value, &want_value))) => {
            let count = 1 + differences.count();
            Err(CodeMismatch { index, got: got_value, want: want_value, count, len: got.len() })
        }
    }
}

/// How many representable steps apart two sign-magnitude codes are, `bits` wide each
/// (8 for e4m3, 4 for e2m1). +0 and −0 are the same point.
pub fn code_distance(x: u8, y: u8, bits: u32) -> u32 {
    let ordinal = |code: u8| {
        let sign = 1i32 << (bits - 1);
        let magnitude = i32::from(code) & (sign - 1);
        if i32::from(code) & sign == 0 { magnitude } else { -magnitude }
    };
    ordinal(x).abs_diff(ordinal(y))
}

/// Outcome of [`check_bias`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bias {
    /// Fraction of elements below the reference, ties counted half.
    pub below: f64,
    /// Largest accepted distance of `below` from one half.
    pub allowed: f64,
    /// Whether `below` is within `allowed` of one half.
    pub pass: bool,
}

/// Whether rounding favours a direction: the fraction of elements below the reference must be
/// within `10 / sqrt(N)` (twenty standard deviations of a fair coin) of one half.
pub fn check_bias(got: &[f32], reference: &[f32]) -> Bias {
    assert_eq!(
        got.len(),
        reference.len(),
        "outputs of {} and {} elements cannot be compared",
        got.len(),
        reference.len()
    );
    if got.is_empty() {
        return Bias { below: 0.5, allowed: 0.0, pass: true };
    }
    let halves = got.iter().zip(reference).map(|(got, want)| match got.partial_cmp(want) {
        Some(std::cmp::Ordering::Less) => 1.0,
        Some(std::cmp::Ordering::Equal) => 0.5,
        Some(std::cmp::Ordering::Greater) => 0.0,
        // A NaN on either side is no coin toss: it poisons the fraction, and the check fails.
        None => f64::NAN,
    });
    let below = halves.sum::<f64>() / got.len() as f64;
    let allowed = 10.0 / (got.len() as f64).sqrt();
    Bias { below, allowed, pass: (below - 0.5).abs() < allowed }
}

#[cfg(test)]
mod tests {
    use super::super::testing::uniform;
    use super::*;

    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;

    #[test]
    fn measures_by_hand() {
        // 2·(1·1 + 2·3) / (2 + 4 + 9) = 14/15
        assert!((calc_diff(&[1.0, 2.0], &[1.0, 3.0]) - 1.0 / 15.0).abs() < 1e-15);
        assert_eq!(calc_diff(&[0.0], &[0.0]), 0.0);
        assert_eq!(calc_diff(&[1.0, 0.0], &[0.0, 1.0]), 1.0);
        assert_eq!(cosine_diff(&[1.0, 0.0], &[0.0, 2.0]), 1.0);
        assert!(cosine_diff(&[1.0, 2.0], &[2.0, 4.0]) < 1e-15);
        assert_eq!(cosine_diff(&[0.0], &[1.0]), 1.0);
        assert_eq!(max_abs(&[1.0, -2.0], &[1.5, -4.0]), 2.0);
        assert_eq!(max_rel(&[1.0, -2.0], &[2.0, -2.0]), 0.5);
        assert_eq!(max_rel(&[1.0], &[0.0]), f64::INFINITY);
    }

    #[test]
    fn a_rounding_may_differ_only_near_the_middle_of_two_numbers() {
        // 1 + 2^-8 lies halfway between the bf16 numbers 1 and 1 + 2^-7.
        let (below, above) = (1.0, 1.0 + 2f32.powi(-7));
        let middle = 1.0 + 2f32.powi(-8);
        let pass = |got: f32, want: f32| compare_rounded(&[got], &[want], &[2.0], 1e-5).pass;
        assert!(pass(below, middle) && pass(above, middle));
        assert!(pass(below, middle - 1e-3) && !pass(above, middle - 1e-3));
        assert!(pass(above, middle + 1e-3) && !pass(below, middle + 1e-3));
        assert!(pass(0.0, -0.0) && !pass(NAN, 1.0) && !pass(INF, 1.0));
        assert!(!pass(1.0, NAN));
    }

    #[test]
    fn element_tolerances() {
        let verdict = compare(&[1.0, 100.5], &[1.0, 100.0], Tolerance::AbsRel { abs: 0.1, rel: 0.01 });
        assert!(verdict.pass);
        assert_eq!(verdict.used, 0.5);
        assert_eq!(verdict.worst, Some(Worst { index: 1, got: 100.5, want: 100.0 }));
        // A small absolute slip on a small value is covered by abs, a large one by neither.
        assert!(compare(&[0.05], &[0.0], Tolerance::AbsRel { abs: 0.1, rel: 0.0 }).pass);
        let bad = compare(&[0.2, 1.0], &[0.0, 1.0], Tolerance::AbsRel { abs: 0.1, rel: 0.5 });
        assert!(!bad.pass && bad.worst.is_some_and(|worst| worst.index == 0));
        assert!(compare(&[1.15], &[1.0], Tolerance::AbsPlusRel { abs: 0.1, rel: 0.1 }).pass);
        assert!(!compare(&[1.15], &[1.0], Tolerance::AbsRel { abs: 0.1, rel: 0.1 }).pass);
        assert!(!compare(&[1.25], &[1.0], Tolerance::Abs(0.2)).pass);
    }

    #[test]
    fn whole_output_tolerances() {
        let want = uniform(1, 1000, 1.0);
        let got: Vec<f32> = want.iter().map(|x| x * 1.001).collect();
        assert!(compare(&got, &want, Tolerance::CalcDiff(1e-6)).pass);
        assert!(!compare(&got, &want, Tolerance::CalcDiff(1e-8)).pass);
        assert!(compare(&got, &want, Tolerance::Cosine(1e-9)).pass);
        let both = Tolerance::AbsRelCos { abs: 1e-6, rel: 1.1e-3, cos: 1e-9 };
        assert!(compare(&got, &want, both).pass);
        let mut flipped = got.clone();
        flipped[7] = -flipped[7];
        assert!(!compare(&flipped, &want, Tolerance::AbsRelCos { abs: 10.0, rel: 0.0, cos: 1e-9 }).pass);
    }

    #[test]
    fn exact_means_bits() {
        assert!(compare(&[1.0, NAN], &[1.0, -NAN], Tolerance::Exact).pass);
        let verdict = compare(&[1.0, 0.0], &[1.0, -0.0], Tolerance::Exact);
        assert!(!verdict.pass && verdict.worst.is_some_and(|worst| worst.index == 1));
        assert!(compare(&[0.0], &[-0.0], Tolerance::Abs(0.0)).pass);
    }

    #[test]
    fn non_finite_values_must_match() {
        let loose = [
            Tolerance::Abs(1e9),
            Tolerance::AbsRel { abs: 1e9, rel: 1e9 },
            Tolerance::AbsPlusRel { abs: 1e9, rel: 1e9 },
            Tolerance::CalcDiff(2.0),
            Tolerance::Cosine(2.0),
            Tolerance::AbsRelCos { abs: 1e9, rel: 1e9, cos: 2.0 },
        ];
        for tolerance in loose {
            for (got, want) in [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, INF), (INF, -INF), (NAN, INF)] {
                let verdict = compare(&[1.0, got], &[1.0, want], tolerance);
                assert!(!verdict.pass, "{tolerance}: {got} vs {want}");
                assert_eq!(verdict.worst.map(|worst| worst.index), Some(1));
            }
            for same in [NAN, INF, -INF] {
                assert!(compare(&[1.0, same], &[1.0, same], tolerance).pass, "{tolerance}: {same}");
            }
        }
        assert_eq!(calc_diff(&[NAN], &[0.0]), f64::INFINITY);
        assert_eq!(max_abs(&[INF], &[0.0]), f64::INFINITY);
    }

    #[test]
    fn codes() {
        assert_eq!(compare_exact(&[1u8, 2], &[1, 2]), Ok(()));
        let error = compare_exact(&[1u8, 2, 3], &[1, 4, 4]);
        assert_eq!(error, Err(CodeMismatch { index: 1, got: 2, want: 4, count: 2, len: 3 }));
        assert_eq!(code_distance(0x80, 0x00, 8), 0);
        assert_eq!(code_distance(0x81, 0x01, 8), 2);
        assert_eq!(code_distance(0x38, 0x3a, 8), 2);
        assert_eq!(code_distance(0x9, 0x1, 4), 2);
    }

    #[test]
    fn bias() {
        let reference = uniform(2, 10_000, 1.0);
        let nearest: Vec<f32> = reference.iter().map(|&x| super::super::codec::bf16_round(x)).collect();
        assert!(check_bias(&nearest, &reference).pass);
        let truncated: Vec<f32> = reference.iter().map(|x| (x * 64.0).floor() / 64.0).collect();
        let bias = check_bias(&truncated, &reference);
        assert!(!bias.pass && bias.below > 0.9);
        assert!(check_bias(&reference, &reference).pass);
        assert!(check_bias(&[], &[]).pass);
        assert!(!check_bias(&[NAN], &[1.0]).pass);
    }
}
