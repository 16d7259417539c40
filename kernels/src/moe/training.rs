//! A whole mixture-of-experts layer for training in bf16: forward in one call, and the gradients of its input, its router and
//! its experts in another.
//!
//! ```
//! use zellige::prelude::*;
//! use zellige_kernels::moe::layer::{LayerError, MoeConfig, Router};
//! use zellige_kernels::moe::training::{ExpertWeights, MoeTraining};
//!
//! # fn main() -> Result<(), LayerError> {
//! let (tokens, experts, hidden, inner) = (5, 4, 32, 16);
//! let weights = ExpertWeights {
//!     gate_up: DeviceTensor::full([experts, 2 * inner, hidden], bf16::from_f32(0.125))?,
//!     down: DeviceTensor::full([experts, hidden, inner], bf16::from_f32(0.25))?,
//! };
//! let router = Router::Biased { bias: DeviceTensor::zeros([experts])? };
//! let gate = DeviceTensor::zeros([experts, hidden])?;
//! let layer = MoeTraining::new(MoeConfig { top_k: 2, ..MoeConfig::default() }, gate, router, weights, None)?;
//! let stream = Device::cpu().stream();
//! let x = DeviceTensor::full([tokens, hidden], bf16::from_f32(0.5))?;
//! let (y, saved) = layer.forward(&stream, &x, None)?;
//! // g = h = 2, silu(2) * 2 = 3.52; times 16 / 4 and a routing factor of 1.5.
//! assert!((y.to_vec()?[0].to_f32() - 21.1).abs() < 0.1);
//! let gradients = layer.backward(&stream, &saved, &DeviceTensor::full(y.shape(), bf16::from_f32(1.0))?)?;
//! // Equal scores: experts 0 and 1, each for all tokens; the others have no gradient.
//! let down = gradients.experts.down.to_vec()?;
//! assert!(down[0] > 0.0 && down[2 * hidden * inner..].iter().all(|&d| d == 0.0));
//! # Ok(())
//! # }
//! ```
//!
//! Depends on the kernels of this folder, of [`crate::gemm`] and of [`crate::quant`]; computes nothing itself.

use super::expand::{ExpandConfig, ExpandToFused};
use super::gate::GateConfig;
use super::gate_backward::GateBackward;
use super::layer::{LayerError, MoeConfig, Router, expect};
use super::route::{ExpertOrder, Routed};
use crate::gemm::dense::{DenseGemm, GemmConfig};
use crate::gemm::grouped::GroupedGemm;
use crate::gemm::k_grouped::{KGroupedConfig, KGroupedGemm};
use crate::gemm::product::ProductConfig;
use crate::quant::activation::{ActivationConfig, Swiglu};
use crate::quant::activation_backward::{ActivationBackwardConfig, SwigluBackward};
use crate::quant::transpose::{BatchedTranspose, TransposeConfig};
use zellige::prelude::*;

/// Weights of experts, in bf16.
#[derive(Clone, Debug)]
pub struct ExpertWeights {
    /// Gate rows, then up rows, [experts, 2 inner, hidden].
    pub gate_up: DeviceTensor<bf16, 3>,
    /// [experts, hidden, inner].
    pub down: DeviceTensor<bf16, 3>,
}

/// Gradients of [`ExpertWeights`], zero for an expert without tokens.
#[derive(Clone, Debug)]
pub struct ExpertGradients {
    /// [experts, 2 inner, hidden].
    pub gate_up: DeviceTensor<f32, 3>,
    /// [experts, hidden, inner].
    pub down: DeviceTensor<f32, 3>,
}

/// The gradients of a layer.
#[derive(Clone, Debug)]
pub struct MoeGradients {
    /// [tokens, hidden].
    pub x: DeviceTensor<bf16, 2>,
    /// Of the router's weight, [experts, hidden].
    pub gate: DeviceTensor<f32, 2>,
    pub experts: ExpertGradients,
    pub shared: Option<ExpertGradients>,
}

/// What the gradients need of a forward.
#[derive(Clone, Debug)]
pub struct Saved {
    x: DeviceTensor<bf16, 2>,
    routed: Routed,
    experts: Projected,
    shared: Option<Projected>,
}

impl Saved {
    /// The chosen experts, best first (in the table's order for a hash router), [tokens, k].
    pub fn ids(&self) -> &DeviceTensor<i64, 2> {
        &self.routed.ids
    }

    /// Their weights, [tokens, k].
    pub fn weights(&self) -> &DeviceTensor<f32, 2> {
        &self.routed.weights
    }
}

/// What goes into the SwiGLU of experts, in expert order.
#[derive(Clone, Debug)]
struct Projected {
    order: ExpertOrder,
    /// [positions, 2 inner].
    rows: DeviceTensor<bf16, 2>,
}

/// A mixture-of-experts layer of DeepSeek-V4 with weights in bf16: [`forward`](MoeTraining::forward) and
/// [`backward`](MoeTraining::backward).
#[derive(Clone, Debug)]
pub struct MoeTraining {
    config: MoeConfig,
    /// [experts, hidden].
    gate: DeviceTensor<bf16, 2>,
    router: Router,
    experts: ExpertWeights,
    shared: Option<ExpertWeights>,
}

impl MoeTraining {
    /// Puts a layer together. `gate` is the router's weight [experts, hidden]; `shared` is one expert, of any inner width. Of
    /// `config` the `group` is not used: nothing is quantised.
    ///
    /// # Errors
    /// If a shape does not follow from that of `gate` and of `experts.gate_up`, or `top_k` is more than the experts.
    pub fn new(
        config: MoeConfig,
        gate: DeviceTensor<bf16, 2>,
        router: Router,
        experts: ExpertWeights,
        shared: Option<ExpertWeights>,
    ) -> Result<MoeTraining, LayerError> {
        let [count, hidden] = gate.shape();
        router.check(&config, count)?;
        let check = |[gate_up, down]: [&'static str; 2], experts: usize, weights: &ExpertWeights, from| {
            let inner = weights.gate_up.shape()[1] / 2;
            expect(gate_up, &weights.gate_up.shape(), &[experts, 2 * inner, hidden], from)?;
            expect(down, &weights.down.shape(), &[experts, hidden, inner], from)
        };
        check(["experts.gate_up", "experts.down"], count, &experts, "gate and experts.gate_up")?;
        if let Some(shared) = &shared {
            check(["shared.gate_up", "shared.down"], 1, shared, "gate and shared.gate_up")?;
        }
        Ok(MoeTraining { config, gate, router, experts, shared })
    }

    /// The output of the layer for tokens `x` [tokens, hidden], and what its gradients need:
    /// `y[t] = bf16(sum_j E_ids[t,j](x[t], weights[t,j]) + shared(x[t], 1))`, `E(x, w) = bf16(bf16(silu(min(g, c)) clamp(h, -c, c) w) W_down^T)`,
    /// `[g | h] = bf16(x W_gate_up^T)`. The sum runs in f32 in slot order. `token_ids` `[tokens]` are needed by a hash router only. The
    /// bits of a token's output do not depend on the other tokens.
    ///
    /// # Errors
    /// If `x` or `token_ids` do not fit, memory runs out, or a kernel cannot be built or fails.
    pub fn forward(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 2>,
        token_ids: Option<&DeviceTensor<i64, 1>>,
    ) -> Result<(DeviceTensor<bf16, 2>, Saved), LayerError> {
        let tokens = x.shape()[0];
        let [count, hidden] = self.gate.shape();
        expect("x", &x.shape(), &[tokens, hidden], "gate")?;
        let routed = self.router.route(stream, &self.config, &self.gate, x, token_ids)?;
        // The shared expert is a layer of its own with one expert and no choice.
        let shared = match &self.shared {
            None => None,
            Some(weights) => {
                let order = ExpertOrder::of(stream, &DeviceTensor::zeros([tokens, 1])?, 1)?;
                Some(self.run(stream, order, x, weights, None, None)?)
            }
        };
        let (shared_y, shared) = shared.unzip();
        let order = ExpertOrder::of(stream, &routed.ids, count)?;
        let weights = Some(&routed.weights);
        let (y, experts) = self.run(stream, order, x, &self.experts, weights, shared_y.as_ref())?;
        Ok((y, Saved { x: x.clone(), routed, experts, shared }))
    }

    /// The gradients of the layer from that of its output, `dy` [tokens, hidden]. The experts are taken as chosen: scores have a
    /// gradient through the weights only, the bias has none.
    ///
    /// Gradients that pass from kernel to kernel are rounded to bf16, and that of `x` after each of its parts: router, shared
    /// expert, routed experts. Those of weights are summed over tokens in f32, in ascending order.
    ///
    /// # Errors
    /// As [`forward`](MoeTraining::forward).
    pub fn backward(
        &self,
        stream: &Stream,
        saved: &Saved,
        dy: &DeviceTensor<bf16, 2>,
    ) -> Result<MoeGradients, LayerError> {
        let Saved { x, routed, experts, shared } = saved;
        expect("dy", &dy.shape(), &x.shape(), "x")?;
        let routed_step = self.run_backward(stream, experts, x, dy, &self.experts, Some(&routed.weights))?;
        let (dx, gate) = self.route_backward(stream, saved, &routed_step.dweight)?;
        let (dx, shared) = match shared.as_ref().zip(self.shared.as_ref()) {
            None => (dx, None),
            Some((projected, weights)) => {
                let step = self.run_backward(stream, projected, x, dy, weights, None)?;
                (projected.order.sum(stream, &step.dx, Some(&dx))?, Some(step.gradients))
            }
        };
        let x = experts.order.sum(stream, &routed_step.dx, Some(&dx))?;
        Ok(MoeGradients { x, gate, experts: routed_step.gradients, shared })
    }

    /// Experts' outputs summed for each token, with `addend`; `weights` [tokens, k] are those of the order's pairs.
    fn run(
        &self,
        stream: &Stream,
        order: ExpertOrder,
        x: &DeviceTensor<bf16, 2>,
        experts: &ExpertWeights,
        weights: Option<&DeviceTensor<f32, 2>>,
        addend: Option<&DeviceTensor<bf16, 2>>,
    ) -> Result<(DeviceTensor<bf16, 2>, Projected), LayerError> {
        let rows = project(stream, &order, &order.expand(stream, x)?, &experts.gate_up)?;
        let mut activation = DeviceTensor::zeros([order.positions(), experts.down.shape()[2]])?;
        let config = ActivationConfig { weighted: weights.is_some(), ..ActivationConfig::default() };
        Swiglu::<bf16, bf16>::new(config).launch(
            stream,
            &rows,
            &order.pos_to_expert,
            &order.pos_to_pair,
            weights.unwrap_or(&DeviceTensor::zeros([0, 0])?),
            &mut DeviceTensor::zeros([3])?,
            &mut activation,
            self.config.limit,
        )?;
        let outputs = project(stream, &order, &activation, &experts.down)?;
        let y = order.sum(stream, &outputs, addend)?;
        Ok((y, Projected { order, rows }))
    }

    /// The gradients of [`run`](MoeTraining::run).
    fn run_backward(
        &self,
        stream: &Stream,
        Projected { order, rows }: &Projected,
        x: &DeviceTensor<bf16, 2>,
        dy: &DeviceTensor<bf16, 2>,
        experts: &ExpertWeights,
        weights: Option<&DeviceTensor<f32, 2>>,
    ) -> Result<Step, LayerError> {
        // The sum's gradient in expert order.
        let dy = order.expand(stream, dy)?;
        let dactivation = project(stream, order, &dy, &transposed(stream, &experts.down)?)?;
        let mut activation = DeviceTensor::zeros(dactivation.shape())?;
        let mut drows = DeviceTensor::zeros(rows.shape())?;
        let mut dweight = DeviceTensor::zeros([order.positions()])?;
        let config = ActivationBackwardConfig { weighted: weights.is_some(), ..ActivationBackwardConfig::default() };
        SwigluBackward::new(config).launch(
            stream,
            rows,
            &dactivation,
            &order.pos_to_pair,
            weights.unwrap_or(&DeviceTensor::zeros([0, 0])?),
            &mut activation,
            &mut drows,
            &mut dweight,
            self.config.limit,
        )?;
        let dx = project(stream, order, &drows, &transposed(stream, &experts.gate_up)?)?;
        let ends = (&order.start, &order.end);
        let gradients = ExpertGradients {
            gate_up: weight_gradient(stream, ends, &drows, &order.expand(stream, x)?, order.rows)?,
            down: weight_gradient(stream, ends, &dy, &activation, order.rows)?,
        };
        Ok(Step { dx, gradients, dweight })
    }

    /// The router's part of the input's gradient, and the gradient of its weight, from those of the weights of rows.
    fn route_backward(
        &self,
        stream: &Stream,
        saved: &Saved,
        dweight: &DeviceTensor<f32, 1>,
    ) -> Result<(DeviceTensor<bf16, 2>, DeviceTensor<f32, 2>), LayerError> {
        let Saved { x, routed: Routed { logits, ids, .. }, experts, .. } = saved;
        let [tokens, top_k] = ids.shape();
        let (positions, pairs) = (experts.order.positions(), tokens * top_k);
        // From the order of rows to that of pairs, where those without a row get zero.
        let mut dweights = DeviceTensor::zeros([pairs, 1])?;
        let config = ExpandConfig { bm: 32, bn: 2, ..ExpandConfig::default() };
        ExpandToFused::<f32>::new(config).launch(
            stream,
            &dweight.reshape([positions, 1])?,
            &experts.order.pair_to_pos.reshape([pairs])?,
            &mut dweights,
        )?;
        let mut dlogits = DeviceTensor::zeros(logits.shape())?;
        GateBackward::<i64, bf16>::new(GateConfig { scoring: self.config.scoring, ..GateConfig::default() }).launch(
            stream,
            logits,
            ids,
            &dweights.reshape([tokens, top_k])?,
            &mut dlogits,
            self.config.route_scale,
        )?;
        let mut dx = DeviceTensor::zeros(x.shape())?;
        let config = GemmConfig { b_transposed: true, ..GemmConfig::default() };
        DenseGemm::<bf16, bf16>::new(config).launch(stream, &dlogits, &self.gate, &mut dx, 1.0)?;
        // All tokens are one group, whose last step reads zeros past the end.
        let end = tokens.next_multiple_of(TOKENS) as i32;
        let ends = (&DeviceTensor::zeros([1])?, &DeviceTensor::from_slice([1], &[end])?);
        let gate = weight_gradient(stream, ends, &dlogits, x, TOKENS)?;
        Ok((dx, gate.reshape(self.gate.shape())?))
    }
}

/// Tokens of a step of the sum for the router's weight.
const TOKENS: usize = 64;

/// Gradients from one set of experts.
struct Step {
    /// Of the input, in expert order.
    dx: DeviceTensor<bf16, 2>,
    gradients: ExpertGradients,
    /// Of the weights of the rows.
    dweight: DeviceTensor<f32, 1>,
}

/// Rows in expert order times the transposes of their experts' matrices [experts, n, k].
fn project(
    stream: &Stream,
    order: &ExpertOrder,
    rows: &DeviceTensor<bf16, 2>,
    matrices: &DeviceTensor<bf16, 3>,
) -> Result<DeviceTensor<bf16, 2>, LayerError> {
    let mut out = DeviceTensor::zeros([rows.shape()[0], matrices.shape()[1]])?;
    let config = ProductConfig { bm: order.rows, ..ProductConfig::unscaled() };
    GroupedGemm::<bf16, bf16, f32, bf16>::new(config).launch(
        stream,
        rows,
        &DeviceTensor::zeros([0, 0])?,
        matrices,
        &DeviceTensor::zeros([0, 0, 0])?,
        &order.pos_to_expert,
        &mut out,
    )?;
    Ok(out)
}

/// The transpose of each matrix.
fn transposed(stream: &Stream, matrices: &DeviceTensor<bf16, 3>) -> Result<DeviceTensor<bf16, 3>, LayerError> {
    let [experts, n, k] = matrices.shape();
    let mut out = DeviceTensor::zeros([experts, k, n])?;
    BatchedTranspose::<bf16>::new(TransposeConfig::default()).launch(stream, matrices, &mut out)?;
    Ok(out)
}

/// `sum_p a[p, i] b[p, j]` over the rows of each group, which are a multiple of `rows`.
fn weight_gradient(
    stream: &Stream,
    (starts, ends): (&DeviceTensor<i32, 1>, &DeviceTensor<i32, 1>),
    a: &DeviceTensor<bf16, 2>,
    b: &DeviceTensor<bf16, 2>,
    rows: usize,
) -> Result<DeviceTensor<f32, 3>, LayerError> {
    let mut sums = DeviceTensor::zeros([starts.shape()[0], a.shape()[1], b.shape()[1]])?;
    let default = KGroupedConfig::default();
    let config = KGroupedConfig { bk: rows.min(default.bk), accumulate: false, ..default };
    KGroupedGemm::<bf16>::new(config).launch(stream, a, b, starts, ends, &mut sums)?;
    Ok(sums)
}
