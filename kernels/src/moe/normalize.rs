//! Normalisation of the weights of chosen experts.

use super::score::normalize;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::moe::indices as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Config of [`normalize_weight`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct NormalizeConfig {
    /// Tokens of a block.
    #[tune(64, 128, 256)]
    pub tokens: usize,
    #[tune(64, 128)]
    pub threads: usize,
}

impl Default for NormalizeConfig {
    fn default() -> NormalizeConfig {
        NormalizeConfig { tokens: 128, threads: 128 }
    }
}

/// `sums[t] = 1e-20 + sum_j weights[t,j]` in slot order, `normalized[t,j] = weights[t,j] / sums[t]`.
/// [`gate_backward`](super::gate_backward::gate_backward) has its gradient.
#[kernel(static_dims(k))]
pub fn normalize_weight(
    t: T,
    #[dims(tokens, k)] weights: &Tensor<f32, 2>,
    #[dims(tokens)] sums: &mut Tensor<f32, 1>,
    #[dims(tokens, k)] normalized: &mut Tensor<f32, 2>,
    #[comptime] cfg: NormalizeConfig,
) {
    let [b] = t.grid([weights.dim(0).ceil_div(cfg.tokens)], cfg.threads);
    let tile = t.shared::<f32, 2>([cfg.tokens, weights.static_dim(1)]);
    t.copy(weights.at((b * cfg.tokens, 0)), tile);
    let total = normalize(t, tile);
    t.copy(total, sums.at(b * cfg.tokens));
    t.copy(tile, normalized.at((b * cfg.tokens, 0)));
}

/// The library's entry.
pub struct Entry;

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "normalize_weight",
            family: Family::Moe,
            summary: "weights of chosen experts divided by their sum",
            equation: "sums[t] = 1e-20 + sum_j w[t,j]; normalized[t,j] = w[t,j] / sums[t]",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels normalize_weight",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(NormalizeConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(NormalizeWeight::new(apply(NormalizeConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, k: usize| {
            Case::new(format!("t={tokens} k={k}"), NormalizeConfig::default(), move |cfg| {
                let weights = Inputs::new(9).uniform(DType::F32, &[tokens, k], 0.0, 1.0)?;
                let args = vec![
                    Value::Tensor(weights),
                    Value::Tensor(output(DType::F32, &[tokens])?),
                    Value::Tensor(output(DType::F32, &[tokens, k])?),
                ];
                let verify = move |args: &[Value]| {
                    let (sums, normalized) = reference::normalize_weight(&args[0].f32s(), tokens, k);
                    vec![
                        Comparison::exact_f32("sums", &args[1].f32s(), &sums),
                        Comparison::exact_f32("normalized", &args[2].f32s(), &normalized),
                    ]
                };
                let kernel = Box::new(NormalizeWeight::new(cfg));
                Ok(Problem { kernel, work: Work::of(&args), args, verify: Box::new(verify) })
            })
        };
        match scale {
            Scale::Small => vec![case(0, 6), case(1, 1), case(131, 6), case(5, 9)],
            Scale::Representative => vec![case(4096, 6)],
            Scale::Full => vec![case(4001, 6), case(8001, 8)],
        }
    }
}
