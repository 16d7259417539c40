//! The gradient of the router's weights. May depend on nothing but its forward.

use super::super::expect_len;
use super::gate::{Gate, Scoring};

/// The gradient of the logits `[tokens, experts]` from that of the weights `[tokens, top_k]` of the experts `ids`
/// `[tokens, top_k]`; negative ids are empty slots. In f64, rounded once.
pub fn gate_backward(gate: &Gate<'_>, ids: &[i32], dweights: &[f32]) -> Vec<f32> {
    let Gate { tokens, experts, top_k, .. } = *gate;
    expect_len("ids", ids.len(), &[tokens, top_k]);
    expect_len("dweights", dweights.len(), &[tokens, top_k]);
    let mut dlogits = vec![0f32; tokens * experts];
    for t in 0..tokens {
        let x: Vec<f64> = gate.logits[t * experts..][..experts].iter().map(|&x| f64::from(x)).collect();
        let scores: Vec<f64> = (0..experts).map(|e| score(&x, e, gate.scoring)).collect();
        let slots: Vec<(usize, f64)> = (t * top_k..(t + 1) * top_k)
            .filter_map(|slot| Some((usize::try_from(ids[slot]).ok()?, f64::from(dweights[slot]))))
            .collect();
        let sum = 1e-20 + slots.iter().map(|&(e, _)| scores[e]).sum::<f64>();
        let mean = slots.iter().map(|&(e, dw)| dw * scores[e]).sum::<f64>() / sum;
        for (e, dw) in slots {
            let ds = (dw - mean) / sum * f64::from(gate.route_scale);
            for (to, dx) in dlogits[t * experts..][..experts].iter_mut().enumerate() {
                *dx += (ds * slope(&x, &scores, e, to, gate.scoring)) as f32;
            }
        }
    }
    dlogits
}

pub(super) fn score(x: &[f64], e: usize, scoring: Scoring) -> f64 {
    match scoring {
        Scoring::SqrtSoftplus if x[e] > 20.0 => x[e].sqrt(),
        Scoring::SqrtSoftplus => x[e].exp().ln_1p().sqrt(),
        Scoring::Sigmoid => 1.0 / (1.0 + (-x[e]).exp()),
        Scoring::Softmax => {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (x[e] - max).exp() / x.iter().map(|x| (x - max).exp()).sum::<f64>()
        }
    }
}

/// Derivative of score `e` by logit `to`.
fn slope(x: &[f64], scores: &[f64], e: usize, to: usize, scoring: Scoring) -> f64 {
    let own = f64::from(u8::from(e == to));
    match scoring {
        Scoring::SqrtSoftplus => own / (2.0 * scores[e] * (1.0 + (-x[e]).exp())),
        Scoring::Sigmoid => own * scores[e] * (1.0 - scores[e]),
        Scoring::Softmax => scores[e] * (own - scores[to]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights in f64, as a function of the logits.
    fn loss(x: &[f64], ids: &[i32], dw: &[f32], scoring: Scoring, scale: f64) -> f64 {
        let s: Vec<f64> = ids.iter().map(|&e| score(x, e as usize, scoring)).collect();
        let sum = 1e-20 + s.iter().sum::<f64>();
        s.iter().zip(dw).map(|(s, dw)| s / sum * scale * f64::from(*dw)).sum()
    }

    #[test]
    fn agrees_with_finite_differences() {
        let logits = [0.3f32, -1.5, 2.25, 0.75, -4.0, 1.0];
        let (ids, dw) = ([2, 0, 4], [0.5f32, -1.25, 2.0]);
        for scoring in [Scoring::SqrtSoftplus, Scoring::Sigmoid, Scoring::Softmax] {
            let gate = Gate { logits: &logits, bias: None, tokens: 1, experts: 6, top_k: 3, scoring, route_scale: 1.5 };
            let got = gate_backward(&gate, &ids, &dw);
            for e in 0..6 {
                let at = |h: f64| {
                    let mut x: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
                    x[e] += h;
                    loss(&x, &ids, &dw, scoring, 1.5)
                };
                let want = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((f64::from(got[e]) - want).abs() < 1e-6, "{scoring:?} {e}: {} {want}", got[e]);
            }
        }
    }
}
