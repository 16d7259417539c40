//! What whole layers have in common: the choice of experts, and the way of rows to expert order and back.

use super::expand::{ExpandConfig, ExpandToFused};
use super::gate::{Gate, GateConfig};
use super::hash_gate::HashGate;
use super::layer::{LayerError, MoeConfig, expect};
use super::mapping::{GetFusedMapping, MappingConfig};
use super::reduce::{ReduceConfig, ReduceFused};
use crate::gemm::dense::{DenseGemm, GemmConfig};
use zellige::prelude::*;

/// How experts are chosen; weights come from the scores either way.
#[derive(Clone, Debug)]
pub enum Router {
    /// The best by score plus `bias` `[experts]`.
    Biased { bias: DeviceTensor<f32, 1> },
    /// Row `token id` of `table` [vocab, k], as in the first layers.
    Hash { table: DeviceTensor<i32, 2> },
}

/// The experts of each token.
#[derive(Clone, Debug)]
pub(super) struct Routed {
    /// [tokens, experts].
    pub logits: DeviceTensor<f32, 2>,
    /// [tokens, k], as `weights`.
    pub ids: DeviceTensor<i64, 2>,
    pub weights: DeviceTensor<f32, 2>,
}

impl Router {
    /// Does the router fit so many experts?
    pub(super) fn check(&self, config: &MoeConfig, experts: usize) -> Result<(), LayerError> {
        let MoeConfig { top_k, .. } = *config;
        if !(1..=experts).contains(&top_k) {
            return Err(LayerError::TopK { top_k, experts });
        }
        match self {
            Router::Biased { bias } => expect("bias", &bias.shape(), &[experts], "gate"),
            Router::Hash { table } => expect("table", &table.shape(), &[table.shape()[0], top_k], "top_k"),
        }
    }

    /// The experts of tokens `x` [tokens, hidden]; `gate` is [experts, hidden].
    pub(super) fn route(
        &self,
        stream: &Stream,
        config: &MoeConfig,
        gate: &DeviceTensor<bf16, 2>,
        x: &DeviceTensor<bf16, 2>,
        token_ids: Option<&DeviceTensor<i64, 1>>,
    ) -> Result<Routed, LayerError> {
        let MoeConfig { top_k, scoring, route_scale, .. } = *config;
        let (tokens, experts) = (x.shape()[0], gate.shape()[0]);
        let mut logits = DeviceTensor::zeros([tokens, experts])?;
        let product = GemmConfig { bm: 64, ..GemmConfig::default() };
        DenseGemm::<bf16, f32>::new(product).launch(stream, x, gate, &mut logits, 1.0)?;
        let (mut ids, mut weights) = (DeviceTensor::zeros([tokens, top_k])?, DeviceTensor::zeros([tokens, top_k])?);
        let config = GateConfig { scoring, ..GateConfig::default() };
        match self {
            Router::Biased { bias } => {
                Gate::<i64>::new(config).launch(stream, &logits, bias, &mut ids, &mut weights, route_scale)?;
            }
            Router::Hash { table } => {
                let token_ids = token_ids.ok_or(LayerError::TokenIds { tokens })?;
                expect("token_ids", &token_ids.shape(), &[tokens], "x")?;
                HashGate::<i64>::new(GateConfig { tokens: 64, ..config }).launch(
                    stream,
                    &logits,
                    token_ids,
                    table,
                    &mut ids,
                    &mut weights,
                    route_scale,
                )?;
            }
        }
        Ok(Routed { logits, ids, weights })
    }
}

/// Where the rows of each expert lie, and which (token, slot) pairs they are.
#[derive(Clone, Debug)]
pub(super) struct ExpertOrder {
    /// Rows of a tile of a product, and the alignment of the experts' rows.
    pub rows: usize,
    /// Expert of each row, -1 for padding.
    pub pos_to_expert: DeviceTensor<i32, 1>,
    pub pos_to_token: DeviceTensor<i32, 1>,
    pub pos_to_pair: DeviceTensor<i32, 1>,
    /// [tokens, k].
    pub pair_to_pos: DeviceTensor<i32, 2>,
    /// First row of each expert, and one past its last with padding.
    pub start: DeviceTensor<i32, 1>,
    pub end: DeviceTensor<i32, 1>,
}

impl ExpertOrder {
    /// The order of the pairs of `ids` [tokens, k].
    pub fn of(stream: &Stream, ids: &DeviceTensor<i64, 2>, experts: usize) -> Result<ExpertOrder, LayerError> {
        let [tokens, top_k] = ids.shape();
        let pairs = tokens * top_k;
        let rows = tile_rows(pairs, experts);
        // Room for the worst distribution of the pairs, whose counts stay on the device.
        let positions = (pairs + experts.min(pairs) * (rows - 1)).next_multiple_of(rows);
        let mut order = ExpertOrder {
            rows,
            pos_to_expert: DeviceTensor::zeros([positions])?,
            pos_to_token: DeviceTensor::zeros([positions])?,
            pos_to_pair: DeviceTensor::zeros([positions])?,
            pair_to_pos: DeviceTensor::zeros([tokens, top_k])?,
            start: DeviceTensor::zeros([experts])?,
            end: DeviceTensor::zeros([experts])?,
        };
        GetFusedMapping::<i64>::new(MappingConfig { alignment: rows, ..MappingConfig::default() }).launch(
            stream,
            ids,
            &mut order.pos_to_expert,
            &mut order.pos_to_token,
            &mut order.pos_to_pair,
            &mut order.pair_to_pos,
            &mut order.start,
            &mut order.end,
            &mut DeviceTensor::zeros([experts])?,
        )?;
        Ok(order)
    }

    /// Rows of all experts, padding included.
    pub fn positions(&self) -> usize {
        self.pos_to_expert.shape()[0]
    }

    /// The rows of tokens `x` [tokens, width] in expert order, padding zero.
    pub fn expand(&self, stream: &Stream, x: &DeviceTensor<bf16, 2>) -> Result<DeviceTensor<bf16, 2>, LayerError> {
        let mut rows = DeviceTensor::zeros([self.positions(), x.shape()[1]])?;
        ExpandToFused::<bf16>::new(ExpandConfig::default()).launch(stream, x, &self.pos_to_token, &mut rows)?;
        Ok(rows)
    }

    /// The sums of the rows of each token, and of `addend` [tokens, width].
    pub fn sum(
        &self,
        stream: &Stream,
        rows: &DeviceTensor<bf16, 2>,
        addend: Option<&DeviceTensor<bf16, 2>>,
    ) -> Result<DeviceTensor<bf16, 2>, LayerError> {
        let mut sum = DeviceTensor::zeros([self.pair_to_pos.shape()[0], rows.shape()[1]])?;
        let config = ReduceConfig { weighted: false, added: addend.is_some(), ..ReduceConfig::default() };
        ReduceFused::<bf16, bf16>::new(config).launch(
            stream,
            rows,
            &DeviceTensor::zeros([0, 0])?,
            &DeviceTensor::zeros([0])?,
            &self.pair_to_pos,
            addend.unwrap_or(&DeviceTensor::zeros([0, 0])?),
            &mut sum,
            1.0,
        )?;
        Ok(sum)
    }
}

/// Rows of a product's tiles, and the alignment of groups, for so many rows of so many groups. The order in which an
/// element's products are added does not depend on it.
pub(super) fn tile_rows(rows: usize, groups: usize) -> usize {
    rows.div_ceil(groups.max(1)).next_power_of_two().clamp(16, 128)
}
