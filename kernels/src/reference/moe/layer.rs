//! A whole MoE layer: router, routed experts on FP8 activations, shared expert, sum. May depend on `rayon`.
//!
//! The places where a value is rounded are part of the definition: activations are cast to e4m3 with power-of-two scale
//! factors before each of an expert's products, the results of products are rounded to bf16, router weights are applied
//! before the second cast, and outputs are summed in f32 in slot order, the shared expert last.

use super::super::activation::Swiglu;
use super::super::codec::bf16_round_all;
use super::super::expect_len;
use super::super::gemm::gemm_nt;
use super::super::quant::{CastSpec, CodeFormat, ScaleFormat, cast};
use super::gate::{Gate, Routing, Scoring};
use rayon::prelude::*;

/// Decoded weights of an expert, or of several one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Expert<'a> {
    /// Gate rows, then up rows, `[2 inner, hidden]`.
    pub gate_up: &'a [f32],
    /// `[hidden, inner]`.
    pub down: &'a [f32],
}

/// How the experts of a token are chosen.
#[derive(Clone, Copy, Debug)]
pub enum Choice<'a> {
    /// The best by score plus bias, `[experts]`.
    Biased(&'a [f32]),
    /// By token id: `[tokens]` ids of rows of a table `[vocab, top_k]`.
    Hash(&'a [i32], &'a [i32]),
}

/// A layer.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Width of a token.
    pub hidden: usize,
    /// Width of an expert.
    pub inner: usize,
    /// Routed experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Score function of the router.
    pub scoring: Scoring,
    /// Factor on the normalised weights.
    pub route_scale: f32,
    /// Clamp of the SwiGLU.
    pub limit: f32,
    /// Columns of an activation that share a scale factor.
    pub group: usize,
    /// Router weights `[experts, hidden]`.
    pub router: &'a [f32],
    /// How experts are chosen.
    pub choice: Choice<'a>,
    /// All routed experts.
    pub routed: Expert<'a>,
    /// The shared expert, if there is one.
    pub shared: Option<Expert<'a>>,
}

/// Result of [`Layer::forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Ids and weights of the chosen experts.
    pub routing: Routing,
    /// `[tokens, hidden]`, rounded to bf16.
    pub y: Vec<f32>,
}

impl Layer<'_> {
    /// Cast to e4m3 and back.
    fn quantized(&self, x: &[f32], cols: usize) -> Vec<f32> {
        cast(x, x.len() / cols, cols, &CastSpec::per_token(CodeFormat::E4m3, self.group, ScaleFormat::Ue8m0))
            .dequantize()
    }

    /// One token, already cast and decoded, through one expert; the activation is multiplied by `weight`.
    fn expert(&self, x: &[f32], expert: Expert<'_>, weight: f32) -> Vec<f32> {
        let Layer { hidden, inner, limit, .. } = *self;
        let projected = bf16_round_all(&gemm_nt(x, expert.gate_up, 1, 2 * inner, hidden));
        let swiglu = Swiglu {
            x: &projected,
            rows: 1,
            inner,
            clamp: Some(limit),
            row_weight: Some(&[weight]),
            pos_to_expert: None,
        };
        let activation = self.quantized(&swiglu.forward().y, inner);
        bf16_round_all(&gemm_nt(&activation, expert.down, 1, hidden, inner))
    }

    /// Tokens x `[tokens, hidden]` to their sums.
    pub fn forward(&self, x: &[f32]) -> Output {
        let Layer { hidden, inner, experts, top_k, .. } = *self;
        let tokens = x.len() / hidden;
        expect_len("x", x.len(), &[tokens, hidden]);
        expect_len("routed.gate_up", self.routed.gate_up.len(), &[experts, 2 * inner, hidden]);
        expect_len("routed.down", self.routed.down.len(), &[experts, hidden, inner]);
        let logits = gemm_nt(x, self.router, tokens, experts, hidden);
        let bias = match self.choice {
            Choice::Biased(bias) => Some(bias),
            Choice::Hash(..) => None,
        };
        let gate = Gate {
            logits: &logits,
            bias,
            tokens,
            experts,
            top_k,
            scoring: self.scoring,
            route_scale: self.route_scale,
        };
        let routing = match self.choice {
            Choice::Biased(_) => gate.route(),
            Choice::Hash(token_ids, table) => gate.route_by_hash(token_ids, table),
        };
        let quantized = self.quantized(x, hidden);
        let token = |t: usize| {
            let x = &quantized[t * hidden..][..hidden];
            let mut sum = vec![0f32; hidden];
            let mut add = |y: Vec<f32>| sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
            for slot in t * top_k..(t + 1) * top_k {
                let Ok(e) = usize::try_from(routing.ids[slot]) else { continue };
                let own = Expert {
                    gate_up: &self.routed.gate_up[e * 2 * inner * hidden..][..2 * inner * hidden],
                    down: &self.routed.down[e * hidden * inner..][..hidden * inner],
                };
                add(self.expert(x, own, routing.weights[slot]));
            }
            if let Some(shared) = self.shared {
                add(self.expert(x, shared, 1.0));
            }
            bf16_round_all(&sum)
        };
        let y = (0..tokens).into_par_iter().flat_map_iter(token).collect();
        Output { routing, y }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::metrics::calc_diff;
    use super::super::super::testing::{uniform, uniform_bf16};
    use super::*;

    /// With nothing rounded on the way the result is the same to the precision of e4m3.
    #[test]
    fn agrees_with_unrounded_arithmetic() {
        let (tokens, hidden, inner, experts, top_k) = (5, 48, 32, 6, 2);
        let x = uniform_bf16(1, tokens * hidden, 1.0);
        let router = uniform(2, experts * hidden, 0.3);
        let (gate_up, down) =
            (uniform(3, experts * 2 * inner * hidden, 0.3), uniform(4, experts * hidden * inner, 0.3));
        let (shared_gate_up, shared_down) = (uniform(5, 2 * inner * hidden, 0.3), uniform(6, hidden * inner, 0.3));
        let bias = uniform(7, experts, 0.2);
        let layer = Layer {
            hidden,
            inner,
            experts,
            top_k,
            scoring: Scoring::SqrtSoftplus,
            route_scale: 1.5,
            limit: 0.7,
            group: 16,
            router: &router,
            choice: Choice::Biased(&bias),
            routed: Expert { gate_up: &gate_up, down: &down },
            shared: Some(Expert { gate_up: &shared_gate_up, down: &shared_down }),
        };
        let got = layer.forward(&x);
        let expert = |x: &[f32], gate_up: &[f32], down: &[f32], weight: f64| -> Vec<f64> {
            let dot = |w: &[f32], x: &[f64]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let act = |i: usize| {
                let g = dot(&gate_up[i * hidden..][..hidden], &x).min(0.7);
                let h = dot(&gate_up[(inner + i) * hidden..][..hidden], &x).clamp(-0.7, 0.7);
                g / (1.0 + (-g).exp()) * h * weight
            };
            let act: Vec<f64> = (0..inner).map(act).collect();
            (0..hidden).map(|c| dot(&down[c * inner..][..inner], &act)).collect()
        };
        let mut want = Vec::new();
        for t in 0..tokens {
            let x = &x[t * hidden..][..hidden];
            let mut sum = expert(x, &shared_gate_up, &shared_down, 1.0);
            for slot in t * top_k..(t + 1) * top_k {
                let e = got.routing.ids[slot] as usize;
                let (gate_up, down) = (&gate_up[e * 2 * inner * hidden..], &down[e * hidden * inner..]);
                let y = expert(x, gate_up, down, f64::from(got.routing.weights[slot]));
                sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
            }
            want.extend(sum.iter().map(|&y| y as f32));
        }
        let diff = calc_diff(&got.y, &want);
        assert!(diff < 2e-3, "{diff}");
    }
}
