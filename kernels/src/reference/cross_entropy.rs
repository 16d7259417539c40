//! Cross-entropy and full-vocabulary KL losses with their gradients. May depend on `rayon`.

use super::expect_len;
use rayon::prelude::*;

/// Result of [`cross_entropy`], per row.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// `lse − z[target]`; zero for an ignored row.
    pub loss: Vec<f32>,
    /// `ln Σ exp(z)`.
    pub lse: Vec<f32>,
}

/// `ln Σ exp(z)` of one row.
fn log_sum_exp(z: &[f32]) -> f64 {
    let max = f64::from(z.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + z.iter().map(|&z| (f64::from(z) - max).exp()).sum::<f64>().ln()
}

/// Cross-entropy of logits `[rows, vocab]`; rows with a negative target are ignored.
pub fn cross_entropy(logits: &[f32], targets: &[i32], vocab: usize) -> CrossEntropy {
    expect_len("logits", logits.len(), &[targets.len(), vocab]);
    let row = |(z, &target): (&[f32], &i32)| {
        let lse = log_sum_exp(z);
        let loss = usize::try_from(target).map_or(0.0, |target| lse - f64::from(z[target]));
        (loss as f32, lse as f32)
    };
    let (loss, lse) = logits.par_chunks(vocab).zip(targets).map(row).unzip();
    CrossEntropy { loss, lse }
}

/// Gradient of [`cross_entropy`] with respect to the logits, from the gradient of each row's loss:
/// `(softmax(z) − onehot(target)) · dloss`.
pub fn cross_entropy_backward(logits: &[f32], targets: &[i32], dloss: &[f32], vocab: usize) -> Vec<f32> {
    expect_len("logits", logits.len(), &[targets.len(), vocab]);
    expect_len("dloss", dloss.len(), &[targets.len()]);
    logits
        .par_chunks(vocab)
        .enumerate()
        .flat_map_iter(|(t, z)| {
            let lse = log_sum_exp(z);
            let target = usize::try_from(targets[t]).ok();
            z.iter().enumerate().map(move |(c, &z)| {
                let onehot = if target == Some(c) { 1.0 } else { 0.0 };
                let g = if target.is_some() { f64::from(dloss[t]) } else { 0.0 };
                (((f64::from(z) - lse).exp() - onehot) * g) as f32
            })
        })
        .collect()
}

/// Reverse KL per row, `Σ p_s (ln p_s − ln p_t)`, of student and teacher logits `[rows, vocab]`, and
/// its gradient with respect to the student's logits, `p_s (ln p_s − ln p_t − KL)`.
pub fn reverse_kl(student: &[f32], teacher: &[f32], vocab: usize) -> (Vec<f32>, Vec<f32>) {
    expect_len("teacher", teacher.len(), &[student.len()]);
    let row = |(s, t): (&[f32], &[f32])| {
        let (lse_s, lse_t) = (log_sum_exp(s), log_sum_exp(t));
        let log_ratio: Vec<f64> =
            s.iter().zip(t).map(|(&s, &t)| (f64::from(s) - lse_s) - (f64::from(t) - lse_t)).collect();
        let p: Vec<f64> = s.iter().map(|&s| (f64::from(s) - lse_s).exp()).collect();
        let kl: f64 = p.iter().zip(&log_ratio).map(|(p, r)| p * r).sum();
        let grad: Vec<f32> = p.iter().zip(&log_ratio).map(|(p, r)| (p * (r - kl)) as f32).collect();
        (kl as f32, grad)
    };
    let (kl, grads): (Vec<f32>, Vec<Vec<f32>>) =
        student.par_chunks(vocab).zip(teacher.par_chunks(vocab)).map(row).unzip();
    (kl, grads.concat())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradient, uniform};
    use super::*;

    #[test]
    fn by_hand() {
        let ln3 = 3f32.ln();
        let out = cross_entropy(&[ln3, 0.0, 1000.0, 1000.0, 5.0, 5.0], &[0, 1, -1], 2);
        let want = [(4f64 / 3.0).ln(), 2f64.ln(), 0.0];
        for (got, want) in out.loss.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-6);
        }
        assert!((f64::from(out.lse[0]) - 4f64.ln()).abs() < 1e-6);
        let grad = cross_entropy_backward(&[ln3, 0.0, 0.0, 0.0], &[0, -100], &[2.0, 1.0], 2);
        assert!((grad[0] + 0.5).abs() < 1e-6 && (grad[1] - 0.5).abs() < 1e-6);
        assert_eq!(grad[2..], [0.0, 0.0]);
    }

    #[test]
    fn gradients_match_differences() {
        let (z, t) = (uniform(1, 3 * 7, 2.0), uniform(2, 3 * 7, 2.0));
        let (targets, dloss) = ([3, -1, 6], [1.0, 2.0, -0.5]);
        let loss = |z: &[f32]| {
            let losses = cross_entropy(z, &targets, 7).loss;
            losses.iter().zip(dloss).map(|(&l, d)| f64::from(l) * f64::from(d)).sum::<f64>()
        };
        check_gradient(&z, &cross_entropy_backward(&z, &targets, &dloss, 7), 1e-3, loss);
        let (_, grad) = reverse_kl(&z, &t, 7);
        check_gradient(&z, &grad, 1e-3, |z| reverse_kl(z, &t, 7).0.iter().map(|&kl| f64::from(kl)).sum());
    }

    #[test]
    fn kl_is_zero_only_for_equal_distributions() {
        let z = uniform(3, 2 * 50, 3.0);
        let shifted: Vec<f32> = z.iter().map(|z| z + 1.0).collect();
        assert!(reverse_kl(&z, &shifted, 50).0.iter().all(|kl| kl.abs() < 1e-5));
        assert!(reverse_kl(&z, &uniform(4, 2 * 50, 3.0), 50).0.iter().all(|&kl| kl > 0.1));
    }
}
