//! A whole MoE layer in f64 with nothing rounded on the way, to be differentiated by finite differences.
//!
//! Written out apart from [`super::layer`], which quantises.

use super::super::expect_len;
use super::gate::Scoring;
use super::gate_backward::score;

/// What a layer's output depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// `[tokens, hidden]`.
    pub x: Vec<f64>,
    /// The router's weight `[experts, hidden]`.
    pub gate: Vec<f64>,
    /// `[experts, 2 inner, hidden]`.
    pub gate_up: Vec<f64>,
    /// `[experts, hidden, inner]`.
    pub down: Vec<f64>,
    /// Of the shared expert, whose inner width is its own; empty if there is none.
    pub shared_gate_up: Vec<f64>,
    /// The same.
    pub shared_down: Vec<f64>,
}

/// One of the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// [`Parameters::x`].
    X,
    /// [`Parameters::gate`].
    Gate,
    /// [`Parameters::gate_up`].
    GateUp,
    /// [`Parameters::down`].
    Down,
    /// [`Parameters::shared_gate_up`].
    SharedGateUp,
    /// [`Parameters::shared_down`].
    SharedDown,
}

impl Parameters {
    fn of(&mut self, parameter: Parameter) -> &mut Vec<f64> {
        match parameter {
            Parameter::X => &mut self.x,
            Parameter::Gate => &mut self.gate,
            Parameter::GateUp => &mut self.gate_up,
            Parameter::Down => &mut self.down,
            Parameter::SharedGateUp => &mut self.shared_gate_up,
            Parameter::SharedDown => &mut self.shared_down,
        }
    }
}

/// A layer.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// Width of a token.
    pub hidden: usize,
    /// Width of a routed expert.
    pub inner: usize,
    /// Routed experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Score function of the router.
    pub scoring: Scoring,
    /// Factor on the normalised weights.
    pub route_scale: f64,
    /// Clamp of the SwiGLU.
    pub limit: f64,
}

impl Training {
    /// One token through one expert; the activation is multiplied by `weight`.
    fn expert(&self, x: &[f64], gate_up: &[f64], down: &[f64], weight: f64) -> Vec<f64> {
        let Training { hidden, limit, .. } = *self;
        let inner = down.len() / hidden;
        let dot = |row: &[f64], x: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        let activation = |i: usize| {
            let g = dot(&gate_up[i * hidden..][..hidden], x).min(limit);
            let h = dot(&gate_up[(inner + i) * hidden..][..hidden], x).clamp(-limit, limit);
            g / (1.0 + (-g).exp()) * h * weight
        };
        let activation: Vec<f64> = (0..inner).map(activation).collect();
        (0..hidden).map(|c| dot(&down[c * inner..][..inner], &activation)).collect()
    }

    /// The output `[tokens, hidden]` with experts `ids` `[tokens, top_k]`, whatever the scores say; negative ids are empty slots.
    pub fn forward(&self, p: &Parameters, ids: &[i32]) -> Vec<f64> {
        let Training { hidden, inner, experts, top_k, .. } = *self;
        expect_len("gate", p.gate.len(), &[experts, hidden]);
        expect_len("gate_up", p.gate_up.len(), &[experts, 2 * inner, hidden]);
        expect_len("down", p.down.len(), &[experts, hidden, inner]);
        expect_len("ids", ids.len(), &[p.x.len() / hidden, top_k]);
        let token = |(x, ids): (&[f64], &[i32])| {
            let logits: Vec<f64> =
                p.gate.chunks(hidden).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
            let chosen: Vec<usize> = ids.iter().filter_map(|&id| usize::try_from(id).ok()).collect();
            let scores: Vec<f64> = chosen.iter().map(|&e| score(&logits, e, self.scoring)).collect();
            let sum = 1e-20 + scores.iter().sum::<f64>();
            let mut y = vec![0.0; hidden];
            let mut add = |part: Vec<f64>| y.iter_mut().zip(part).for_each(|(y, part)| *y += part);
            for (&e, score) in chosen.iter().zip(scores) {
                let gate_up = &p.gate_up[e * 2 * inner * hidden..][..2 * inner * hidden];
                let down = &p.down[e * hidden * inner..][..hidden * inner];
                add(self.expert(x, gate_up, down, score / sum * self.route_scale));
            }
            add(self.expert(x, &p.shared_gate_up, &p.shared_down, 1.0));
            y
        };
        p.x.chunks(hidden).zip(ids.chunks(top_k)).flat_map(token).collect()
    }

    /// The gradient of `Σ dy · forward` with respect to one of the parameters, by central differences.
    pub fn gradient(&self, p: &Parameters, ids: &[i32], parameter: Parameter, dy: &[f64]) -> Vec<f64> {
        const STEP: f64 = 1e-5;
        let mut moved = p.clone();
        let count = moved.of(parameter).len();
        let loss = |p: &Parameters| self.forward(p, ids).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
        (0..count)
            .map(|i| {
                let at = moved.of(parameter)[i];
                moved.of(parameter)[i] = at + STEP;
                let above = loss(&moved);
                moved.of(parameter)[i] = at - STEP;
                let below = loss(&moved);
                moved.of(parameter)[i] = at;
                (above - below) / (2.0 * STEP)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token of width 1 and experts of width 1, by hand.
    #[test]
    fn by_hand() {
        let layer = Training {
            hidden: 1,
            inner: 1,
            experts: 2,
            top_k: 2,
            scoring: Scoring::Sigmoid,
            route_scale: 1.5,
            limit: 10.0,
        };
        // Equal scores: both experts weigh 0.75. silu(2) * 3 twice, of which the second's is clamped to 10; and the shared one.
        let p = Parameters {
            x: vec![1.0],
            gate: vec![0.0, 0.0],
            gate_up: vec![2.0, 3.0, 2.0, 30.0],
            down: vec![1.0, -1.0],
            shared_gate_up: vec![2.0, 1.0],
            shared_down: vec![4.0],
        };
        let silu = 2.0 / (1.0 + (-2f64).exp());
        let want = 0.75 * silu * 3.0 - 0.75 * silu * 10.0 + 4.0 * silu;
        assert!((layer.forward(&p, &[0, 1])[0] - want).abs() < 1e-12);
        let down = layer.gradient(&p, &[0, 1], Parameter::Down, &[2.0]);
        assert!((down[0] - 2.0 * 0.75 * silu * 3.0).abs() < 1e-8 && (down[1] - 2.0 * 0.75 * silu * 10.0).abs() < 1e-8);
        // Clamped.
        assert_eq!(layer.gradient(&p, &[0, 1], Parameter::GateUp, &[2.0])[3], 0.0);
        // More of the first expert is less of the second: s' / (2 s) = 1/4 of each weight.
        let gate = layer.gradient(&p, &[0, 1], Parameter::Gate, &[1.0]);
        assert!((gate[0] - 1.5 * silu * 13.0 / 8.0).abs() < 1e-8, "{gate:?}");
        // An empty slot leaves all the weight to the other.
        let alone = 1.5 * silu * 3.0 + 4.0 * silu;
        assert!((layer.forward(&p, &[0, -1])[0] - alone).abs() < 1e-12);
    }
}
