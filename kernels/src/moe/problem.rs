//! Problems with known answers for the routers, and random choices of experts for everything that works on ids.

use super::gate::GateConfig;
use super::score::Scoring;
use crate::inputs::{Inputs, output};
use crate::library::{Comparison, Problem, ProblemError, Value, Work};
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::moe::gate as reference;
use rand::Rng;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Evaluates an expression with `$I` standing for the element type of ids: i64 or i32.
macro_rules! id_type {
    ($dtype:expr, $I:ident, $body:expr) => {
        $crate::choice::with_type!($dtype, $I in [I64 = i64, I32 = i32], $body)
    };
}
pub(crate) use id_type;

/// How close the weights must be: a few roundings of the score functions, and of a softmax' argument.
pub const WEIGHTS: Tolerance = Tolerance::AbsRel { abs: 1e-12, rel: 4e-6 };

/// Factor on the weights in the problems.
pub const ROUTE_SCALE: f32 = 2.5;

/// A routing problem's sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouterProblem {
    pub tokens: usize,
    pub experts: usize,
    /// Experts per token.
    pub k: usize,
    /// Element type of the ids.
    pub ids: DType,
}

/// Integers as a tensor of some integer type.
///
/// # Errors
/// If there is no memory for it.
pub fn int_tensor(dtype: DType, shape: &[usize], values: &[i32]) -> Result<DynTensor, ProblemError> {
    let wide: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    Ok(DynTensor::from_f64(dtype, shape, &wide)?)
}

/// The elements of an integer tensor of small numbers.
///
/// # Panics
/// If it is being written: a problem's own mistake.
pub fn ints(value: &Value) -> Vec<i32> {
    value.f32s().iter().map(|&v| v as i32).collect()
}

/// Router logits with rows of equal values, of runs of equal values, and of values above softplus' threshold.
pub fn logits(inputs: &mut Inputs, tokens: usize, experts: usize) -> Vec<f32> {
    let mut values = inputs.draw(tokens * experts, |rng| 2.0 * crate::inputs::normal(rng) as f32);
    for (t, row) in values.chunks_mut(experts.max(1)).enumerate() {
        match t % 8 {
            1 => row.fill(0.25),
            3 => row.iter_mut().for_each(|x| *x = x.round()),
            4 => row.iter_mut().for_each(|x| *x += 20.0),
            6 => row.iter_mut().for_each(|x| *x -= 30.0),
            _ => {}
        }
    }
    values
}

/// `k` different experts for each token, with every fifth slot and every seventh token empty (-1). Some experts get
/// no tokens, and low ids are more likely than high ones.
pub fn random_ids(inputs: &mut Inputs, tokens: usize, experts: usize, k: usize) -> Vec<i32> {
    let seeds = inputs.draw(tokens, |rng| rng.random::<u64>());
    let mut ids = Vec::with_capacity(tokens * k);
    for (token, seed) in seeds.into_iter().enumerate() {
        let mut row: Vec<i32> = Vec::with_capacity(k);
        let mut state = seed | 1;
        while row.len() < k {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            let u = (state >> 40) as f64 / (1u64 << 24) as f64;
            let id = (u * u * experts as f64) as i32;
            // Every ninth expert stays empty where there are enough others.
            let reserved = experts > 2 * k && id % 9 == 4;
            if !reserved && !row.contains(&id) {
                row.push(id);
            }
        }
        for (j, id) in row.iter_mut().enumerate() {
            if token % 7 == 5 || (token + j) % 5 == 4 {
                *id = -1;
            }
        }
        ids.extend(row);
    }
    ids
}

impl RouterProblem {
    /// The case's name.
    pub fn name(&self, cfg: &GateConfig) -> String {
        let scoring = match cfg.scoring {
            Scoring::SqrtSoftplus => "sqrtsoftplus",
            Scoring::Sigmoid => "sigmoid",
            Scoring::Softmax => "softmax",
        };
        format!("t={} e={} k={} {scoring} {}", self.tokens, self.experts, self.k, self.ids)
    }

    /// The reference for these logits.
    pub fn gate_of<'a>(&self, logits: &'a [f32], bias: Option<&'a [f32]>, scoring: Scoring) -> reference::Gate<'a> {
        let scoring = match scoring {
            Scoring::SqrtSoftplus => reference::Scoring::SqrtSoftplus,
            Scoring::Sigmoid => reference::Scoring::Sigmoid,
            Scoring::Softmax => reference::Scoring::Softmax,
        };
        let RouterProblem { tokens, experts, k: top_k, .. } = *self;
        reference::Gate { logits, bias, tokens, experts, top_k, scoring, route_scale: ROUTE_SCALE }
    }

    /// A bias with ties and a strong preference.
    pub fn bias(&self, inputs: &mut Inputs) -> Vec<f32> {
        let mut bias = inputs.draw(self.experts, |rng| (rng.random_range(-2..3) as f32) * 0.125);
        if let Some(b) = bias.get_mut(self.experts / 2) {
            *b = 1.0;
        }
        bias
    }

    /// A problem for [`super::gate::gate`].
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn gate(self, cfg: GateConfig, kernel: Box<dyn Kernel>) -> Result<Problem, ProblemError> {
        let RouterProblem { tokens, experts, k, ids } = self;
        let mut inputs = Inputs::new(3);
        let logits = logits(&mut inputs, tokens, experts);
        let bias = self.bias(&mut inputs);
        let args = vec![
            Value::Tensor(DynTensor::from_slice::<f32>(&[tokens, experts], &logits)?),
            Value::Tensor(DynTensor::from_slice::<f32>(&[experts], &bias)?),
            Value::Tensor(output(ids, &[tokens, k])?),
            Value::Tensor(output(DType::F32, &[tokens, k])?),
            Value::Scalar(Const::f32(ROUTE_SCALE)),
        ];
        let work = Work::of(&args);
        let verify = move |args: &[Value]| {
            let gate = self.gate_of(&logits, Some(&bias), cfg.scoring);
            let got = ints(&args[2]);
            let want = nearest_choice(&gate, &gate.keys(), &got, &gate.route().ids);
            let want_ids = int_tensor(ids, &[tokens, k], &want).expect("as large as the kernel's own");
            vec![Comparison::exact("ids", &args[2], &want_ids), weights(&gate, &want, &args[3])]
        };
        Ok(Problem { kernel, args, work, verify: Box::new(verify) })
    }

    /// A problem for [`super::hash_gate::hash_gate`].
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn hash_gate(self, vocab: usize, cfg: GateConfig, kernel: Box<dyn Kernel>) -> Result<Problem, ProblemError> {
        let RouterProblem { tokens, experts, k, ids } = self;
        let mut inputs = Inputs::new(4);
        let logits = logits(&mut inputs, tokens, experts);
        let token_ids = inputs.draw(tokens, |rng| rng.random_range(0..vocab as i32));
        let table: Vec<i32> = random_ids(&mut inputs, vocab, experts, k).iter().map(|id| id.abs()).collect();
        let args = vec![
            Value::Tensor(DynTensor::from_slice::<f32>(&[tokens, experts], &logits)?),
            Value::Tensor(int_tensor(DType::I64, &[tokens], &token_ids)?),
            Value::Tensor(int_tensor(DType::I32, &[vocab, k], &table)?),
            Value::Tensor(output(ids, &[tokens, k])?),
            Value::Tensor(output(DType::F32, &[tokens, k])?),
            Value::Scalar(Const::f32(ROUTE_SCALE)),
        ];
        let work = Work { flops: 0.0, bytes: (tokens * k * (4 + 4 + 8 + 4) + tokens * 8) as f64 };
        let verify = move |args: &[Value]| {
            let gate = self.gate_of(&logits, None, cfg.scoring);
            let want = gate.route_by_hash(&token_ids, &table);
            let want_ids = int_tensor(ids, &[tokens, k], &want.ids).expect("as large as the kernel's own");
            vec![Comparison::exact("ids", &args[3], &want_ids), weights(&gate, &want.ids, &args[4])]
        };
        Ok(Problem { kernel, args, work, verify: Box::new(verify) })
    }
}

/// Compares weights with those of a choice.
pub fn weights(gate: &reference::Gate<'_>, ids: &[i32], got: &Value) -> Comparison {
    let rows: Vec<i32> = (0..gate.tokens as i32).collect();
    let want = gate.route_by_hash(&rows, ids).weights;
    Comparison { output: "weights", verdict: compare(&got.f32s(), &want, WEIGHTS) }
}

/// The choice that `got` is compared with, bit for bit: the reference's `want`, except where the kernel chose another expert
/// whose key differs from the reference's by no more than the rounding of a score. Experts of equal logit and bias have
/// equal keys in the kernel too, so that among them the order is the reference's or wrong.
pub fn nearest_choice(gate: &reference::Gate<'_>, keys: &[f32], got: &[i32], want: &[i32]) -> Vec<i32> {
    let (scores, k, experts) = (gate.scores(), gate.top_k, gate.experts);
    let bits = |i: usize| (gate.logits[i].to_bits(), gate.bias.map(|bias| bias[i % experts].to_bits()));
    let admissible = |i: usize| {
        let (Ok(g), Ok(w)) = (usize::try_from(got[i]), usize::try_from(want[i])) else { return false };
        let repeated = got[i / k * k..][..k].iter().filter(|&&id| id == got[i]).count() > 1;
        if g >= experts || repeated {
            return false;
        }
        let (g, w) = (i / k * experts + g, i / k * experts + w);
        let rounding = match gate.scoring {
            reference::Scoring::SqrtSoftplus | reference::Scoring::Sigmoid => {
                1e-6 * scores[g].max(scores[w]).max(keys[w].abs())
            }
            // Its keys are sums of two inputs.
            reference::Scoring::Softmax => 0.0,
        };
        bits(g) != bits(w) && (keys[g] - keys[w]).abs() <= rounding
    };
    (0..want.len()).map(|i| if got[i] != want[i] && admissible(i) { got[i] } else { want[i] }).collect()
}
