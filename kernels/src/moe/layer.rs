//! A whole mixture-of-experts layer in one call: router, choice of experts, the experts' products on quantised activations
//! in expert order, shared expert, and the sum back to tokens.
//!
//! ```
//! use zellige::prelude::*;
//! use zellige_kernels::moe::layer::{Experts, LayerError, MoeConfig, MoeLayer, Router};
//!
//! # fn main() -> Result<(), LayerError> {
//! let (experts, hidden, inner) = (8, 64, 128);
//! let one = e8m0::from_f32(1.0);
//! // MXFP4: a scale factor per 32 columns.
//! let weights = Experts::<f4e2m1, e8m0> {
//!     gate_up: DeviceTensor::zeros([experts, 2 * inner, hidden])?,
//!     gate_up_sf: DeviceTensor::full([experts, 2 * inner, hidden / 32], one)?,
//!     down: DeviceTensor::zeros([experts, hidden, inner])?,
//!     down_sf: DeviceTensor::full([experts, hidden, inner / 32], one)?,
//! };
//! let router = Router::Biased { bias: DeviceTensor::zeros([experts])? };
//! let gate = DeviceTensor::zeros([experts, hidden])?;
//! let layer = MoeLayer::new(MoeConfig { top_k: 2, ..MoeConfig::default() }, gate, router, weights, None)?;
//! let x = DeviceTensor::full([5, hidden], bf16::from_f32(1.0))?;
//! let out = layer.forward(&Device::cpu().stream(), &x, None)?;
//! assert_eq!(out.y.shape(), [5, hidden]);
//! // Equal scores: the first experts, with equal weights that sum to the routing factor.
//! assert_eq!(out.ids.to_vec()?[..2], [0, 1]);
//! assert_eq!(out.weights.to_vec()?[..2], [0.75, 0.75]);
//! # Ok(())
//! # }
//! ```
//!
//! Depends on the kernels of this folder, of [`crate::gemm`] and of [`crate::quant`]; computes nothing itself.

use super::expand::{ExpandConfig, ExpandToFusedWithSf};
pub use super::route::Router;
use super::route::{ExpertOrder, Routed, tile_rows};
use super::score::Scoring;
use crate::gemm::block_scaled::BlockScaledGemm;
use crate::gemm::grouped::GroupedGemm;
use crate::gemm::product::{ProductConfig, Weight};
use crate::quant::cast::{CastConfig, QuantCast};
use crate::quant::swiglu::{SwigluConfig, SwigluForwardAndPerTokenCast};
use zellige::prelude::*;
use zellige::runtime::TensorError;
use zellige_ir::DType;

/// The floor on amax in casts to e4m3.
const AMAX_FLOOR: f32 = 1e-4;

/// Rows of `b` that share a scale factor in FP8 weights, and columns.
const BLOCK: usize = 128;

/// Columns of MXFP4 weights that share a scale factor.
const MX_GROUP: usize = 32;

/// What a layer computes. The defaults are DeepSeek-V4-Flash's; V4-Pro's `route_scale` is 2.5.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MoeConfig {
    /// Experts of a token, k.
    pub top_k: usize,
    pub scoring: Scoring,
    /// Factor on the normalised weights.
    pub route_scale: f32,
    /// Clamp of the SwiGLU, of shared experts too.
    pub limit: f32,
    /// Columns of an activation that share a scale factor: 128, or 32 beside MXFP4 weights. Layers in bf16 do not quantise.
    pub group: usize,
}

impl Default for MoeConfig {
    fn default() -> MoeConfig {
        MoeConfig { top_k: 6, scoring: Scoring::SqrtSoftplus, route_scale: 1.5, limit: 10.0, group: 128 }
    }
}

/// Quantised weights of the routed experts. FP8 (`W` = e4m3) has a scale factor per 128 x 128 block, MXFP4 (`W` = e2m1) one per 32
/// columns. `inner` is a multiple of 128.
#[derive(Clone, Debug)]
pub struct Experts<W: Element, S: Element> {
    /// Gate rows, then up rows, [experts, 2 inner, hidden].
    pub gate_up: DeviceTensor<W, 3>,
    /// [experts, 2 inner / 128, hidden / 128] or [experts, 2 inner, hidden / 32], rounded up.
    pub gate_up_sf: DeviceTensor<S, 3>,
    /// [experts, hidden, inner].
    pub down: DeviceTensor<W, 3>,
    /// [experts, hidden / 128, inner / 128] or [experts, hidden, inner / 32], rounded up.
    pub down_sf: DeviceTensor<S, 3>,
}

/// FP8 weights of the shared expert, a scale factor per 128 x 128 block. Several shared experts are one with as many times
/// the inner width; their gate rows come first.
#[derive(Clone, Debug)]
pub struct SharedExpert<S: Element> {
    /// Gate rows, then up rows, [2 inner, hidden].
    pub gate_up: DeviceTensor<f8e4m3, 2>,
    pub gate_up_sf: DeviceTensor<S, 2>,
    /// [hidden, inner].
    pub down: DeviceTensor<f8e4m3, 2>,
    pub down_sf: DeviceTensor<S, 2>,
}

/// Why a layer cannot be made, or did not run.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    #[error("`{tensor}` has shape {found:?}, expected {expected:?} from `{from}`")]
    Shape { tensor: &'static str, found: Vec<usize>, expected: Vec<usize>, from: &'static str },
    #[error("the inner width of `{tensor}` is {inner}, expected a multiple of 128: pad the experts with zero rows")]
    Inner { tensor: &'static str, inner: usize },
    #[error("{top_k} experts per token of {experts}: `top_k` is from 1 to the number of experts")]
    TopK { top_k: usize, experts: usize },
    #[error("activations in groups of {group} beside weights in groups of {weights}: use 128, or 32 for MXFP4")]
    Group { group: usize, weights: usize },
    #[error("the layer chooses experts by token id: pass `token_ids`, one for each of the {tokens} tokens")]
    TokenIds { tokens: usize },
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// What a layer returns.
#[derive(Clone, Debug)]
pub struct MoeOutput {
    /// [tokens, hidden].
    pub y: DeviceTensor<bf16, 2>,
    /// The chosen experts, best first (in the table's order for a hash router), [tokens, k].
    pub ids: DeviceTensor<i64, 2>,
    /// Their weights, [tokens, k].
    pub weights: DeviceTensor<f32, 2>,
}

/// A mixture-of-experts layer of DeepSeek-V4: weights, and [`forward`](MoeLayer::forward).
///
/// `W` is the type of the routed experts' weights, e4m3 or (MXFP4) e2m1, `S` that of all scale factors, f32 or e8m0.
#[derive(Clone, Debug)]
pub struct MoeLayer<W: Element, S: Element> {
    config: MoeConfig,
    /// [experts, hidden].
    gate: DeviceTensor<bf16, 2>,
    router: Router,
    experts: Experts<W, S>,
    shared: Option<SharedExpert<S>>,
    hidden: usize,
    inner: usize,
}

/// Codes, and row-major scale factors of groups of columns.
type Quantized = (DeviceTensor<f8e4m3, 2>, DeviceTensor<f32, 2>);

/// What the rows in expert order are.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// Expert of each row, -1 for padding.
    experts: &'a DeviceTensor<i32, 1>,
    /// Place of each row's weight in `weights`.
    pairs: &'a DeviceTensor<i32, 1>,
    weights: &'a DeviceTensor<f32, 2>,
}

pub(super) fn expect(
    tensor: &'static str,
    found: &[usize],
    expected: &[usize],
    from: &'static str,
) -> Result<(), LayerError> {
    if found == expected {
        return Ok(());
    }
    Err(LayerError::Shape { tensor, found: found.to_vec(), expected: expected.to_vec(), from })
}

impl<W: Weight, S: Element> MoeLayer<W, S> {
    /// How products with the routed experts' weights are computed, in tiles of `rows`.
    fn product(group: usize, rows: usize) -> ProductConfig {
        let base = if W::DTYPE == DType::F4E2M1 { ProductConfig::mxfp4() } else { ProductConfig::default() };
        ProductConfig { bm: rows, a_group: group, ..base.for_rows(rows) }
    }

    /// Puts a layer together. `gate` is the router's weight [experts, hidden].
    ///
    /// # Errors
    /// If a shape does not follow from that of `gate` and of `experts.gate_up`, or the config does not fit the weights.
    pub fn new(
        config: MoeConfig,
        gate: DeviceTensor<bf16, 2>,
        router: Router,
        experts: Experts<W, S>,
        shared: Option<SharedExpert<S>>,
    ) -> Result<MoeLayer<W, S>, LayerError> {
        let [count, hidden] = gate.shape();
        let inner = experts.gate_up.shape()[1] / 2;
        router.check(&config, count)?;
        let weights = if W::DTYPE == DType::F4E2M1 { MX_GROUP } else { BLOCK };
        if !(config.group == BLOCK || config.group == weights) {
            return Err(LayerError::Group { group: config.group, weights });
        }
        let check_inner = |tensor, inner: usize| match inner.is_multiple_of(BLOCK) {
            true => Ok(()),
            false => Err(LayerError::Inner { tensor, inner }),
        };
        check_inner("experts.gate_up", inner)?;
        let from = "gate and experts.gate_up";
        let sf = |rows: usize, cols: usize| match weights {
            BLOCK => [count, rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)],
            group => [count, rows, cols.div_ceil(group)],
        };
        expect("experts.gate_up", &experts.gate_up.shape(), &[count, 2 * inner, hidden], from)?;
        expect("experts.gate_up_sf", &experts.gate_up_sf.shape(), &sf(2 * inner, hidden), from)?;
        expect("experts.down", &experts.down.shape(), &[count, hidden, inner], from)?;
        expect("experts.down_sf", &experts.down_sf.shape(), &sf(hidden, inner), from)?;
        if let Some(shared) = &shared {
            let inner = shared.gate_up.shape()[0] / 2;
            check_inner("shared.gate_up", inner)?;
            let from = "gate and shared.gate_up";
            let sf = |rows: usize, cols: usize| [rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)];
            expect("shared.gate_up", &shared.gate_up.shape(), &[2 * inner, hidden], from)?;
            expect("shared.gate_up_sf", &shared.gate_up_sf.shape(), &sf(2 * inner, hidden), from)?;
            expect("shared.down", &shared.down.shape(), &[hidden, inner], from)?;
            expect("shared.down_sf", &shared.down_sf.shape(), &sf(hidden, inner), from)?;
        }
        Ok(MoeLayer { config, gate, router, experts, shared, hidden, inner })
    }

    /// The output of the layer for tokens `x` [tokens, hidden]: `y[t] = bf16(sum_j E_ids[t,j](x[t], weights[t,j]) + shared(x[t]))`.
    ///
    /// `E(x, w) = bf16(q(silu(min(g, c)) clamp(h, -c, c) w) W_down^T)`, `[g | h] = bf16(q(x) W_gate_up^T)`; `q` casts to e4m3 with
    /// power-of-two scale factors. The sum runs in f32 in slot order. `token_ids` `[tokens]` are needed by a hash router only.
    /// Nothing is read back to the host on the way. The bits of a token's output do not depend on the other tokens.
    ///
    /// # Errors
    /// If `x` or `token_ids` do not fit, memory runs out, or a kernel cannot be built or fails.
    pub fn forward(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 2>,
        token_ids: Option<&DeviceTensor<i64, 1>>,
    ) -> Result<MoeOutput, LayerError> {
        let tokens = x.shape()[0];
        expect("x", &x.shape(), &[tokens, self.hidden], "gate")?;
        let Routed { ids, weights, .. } = self.router.route(stream, &self.config, &self.gate, x, token_ids)?;
        let quantized = self.quantize(stream, x)?;
        let shared = match &self.shared {
            Some(shared) => Some(self.run_shared(stream, &quantized, shared)?),
            None => None,
        };
        let order = ExpertOrder::of(stream, &ids, self.gate.shape()[0])?;
        let positions = order.positions();
        let (codes, sf) = quantized;
        let mut expanded = DeviceTensor::zeros([positions, self.hidden])?;
        let mut expanded_sf = DeviceTensor::zeros([positions, sf.shape()[1]])?;
        ExpandToFusedWithSf::<f8e4m3, f32>::new(ExpandConfig::default()).launch(
            stream,
            &codes,
            &sf,
            &order.pos_to_token,
            &mut expanded,
            &mut expanded_sf,
        )?;
        let Experts { gate_up, gate_up_sf, down, down_sf } = &self.experts;
        let product = GroupedGemm::<f8e4m3, W, S, bf16>::new(Self::product(self.config.group, order.rows));
        let mut projected = DeviceTensor::zeros([positions, 2 * self.inner])?;
        product.launch(stream, &expanded, &expanded_sf, gate_up, gate_up_sf, &order.pos_to_expert, &mut projected)?;
        let rows_of = Rows { experts: &order.pos_to_expert, pairs: &order.pos_to_pair, weights: &weights };
        let (activation, activation_sf) = self.activate(stream, &projected, Some(rows_of))?;
        let mut y = DeviceTensor::zeros([positions, self.hidden])?;
        product.launch(stream, &activation, &activation_sf, down, down_sf, &order.pos_to_expert, &mut y)?;
        // The weights are in the activations already.
        let y = order.sum(stream, &y, shared.as_ref())?;
        Ok(MoeOutput { y, ids, weights })
    }

    /// Tokens as e4m3 codes and row-major scale factors.
    fn quantize(&self, stream: &Stream, x: &DeviceTensor<bf16, 2>) -> Result<Quantized, LayerError> {
        let [tokens, hidden] = x.shape();
        let group = self.config.group;
        let mut codes = DeviceTensor::zeros([tokens, hidden])?;
        let mut sf = DeviceTensor::zeros([tokens, hidden.div_ceil(group)])?;
        let config = CastConfig { ue8m0: true, ..CastConfig::per_token(group) };
        QuantCast::<bf16, f8e4m3, f32>::new(config).launch(stream, x, &mut codes, &mut sf)?;
        Ok((codes, sf))
    }

    /// The SwiGLU of rows [g | h], cast. `rows_of` says which rows are padding and what the others weigh.
    fn activate(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 2>,
        rows_of: Option<Rows<'_>>,
    ) -> Result<Quantized, LayerError> {
        let MoeConfig { group, limit, .. } = self.config;
        let [rows, inner] = [x.shape()[0], x.shape()[1] / 2];
        let mut codes = DeviceTensor::zeros([rows, inner])?;
        let mut sf = DeviceTensor::zeros([rows, inner.div_ceil(group)])?;
        let routed = rows_of.is_some();
        let config = SwigluConfig { group, weighted: routed, padded: routed, ..SwigluConfig::default() };
        let (nothing, no_weights) = (DeviceTensor::zeros([0])?, DeviceTensor::zeros([0, 0])?);
        let rows_of = rows_of.unwrap_or(Rows { experts: &nothing, pairs: &nothing, weights: &no_weights });
        let mut clamped = DeviceTensor::zeros([3])?;
        SwigluForwardAndPerTokenCast::<bf16, f8e4m3, f32>::new(config).launch(
            stream,
            x,
            rows_of.experts,
            rows_of.pairs,
            rows_of.weights,
            &mut clamped,
            &mut codes,
            &mut sf,
            limit,
            AMAX_FLOOR,
        )?;
        Ok((codes, sf))
    }

    /// The shared expert's output [tokens, hidden].
    fn run_shared(
        &self,
        stream: &Stream,
        (codes, sf): &Quantized,
        shared: &SharedExpert<S>,
    ) -> Result<DeviceTensor<bf16, 2>, LayerError> {
        let tokens = codes.shape()[0];
        let rows = tile_rows(tokens, 1);
        let base = ProductConfig::default().for_rows(rows);
        let config = ProductConfig { bm: rows, a_group: self.config.group, ..base };
        let product = BlockScaledGemm::<f8e4m3, f8e4m3, S, bf16>::new(config);
        let mut projected = DeviceTensor::zeros([tokens, shared.gate_up.shape()[0]])?;
        product.launch(stream, codes, sf, &shared.gate_up, &shared.gate_up_sf, &mut projected)?;
        let (activation, activation_sf) = self.activate(stream, &projected, None)?;
        let mut y = DeviceTensor::zeros([tokens, self.hidden])?;
        product.launch(stream, &activation, &activation_sf, &shared.down, &shared.down_sf, &mut y)?;
        Ok(y)
    }
}
