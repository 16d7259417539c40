//! Both ends of the model, where the vocabulary is: embedding and losses over the logits. May depend on the language and
//! on the library's registry.

pub mod cross_entropy;
pub mod cross_entropy_backward;
pub mod embedding;
pub mod embedding_backward;
pub mod reverse_kl;
pub mod sampling_topk;
pub mod token_order;

use crate::library::{Case, Problem, ProblemError, Scale};
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of the losses over the vocabulary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = cols.is_multiple_of(PER_LANE))]
pub struct VocabConfig {
    /// Rows of a block.
    #[tune(1, 2, 4, 8)]
    pub rows: usize,
    /// Logits of a step.
    #[tune(512, 1024, 2048, 4096, 8192)]
    pub cols: usize,
    #[tune(128, 256, 512)]
    pub threads: usize,
}

impl Default for VocabConfig {
    fn default() -> VocabConfig {
        VocabConfig { rows: 1, cols: 4096, threads: 256 }
    }
}

/// Rows enough to fill a GPU with blocks that have a row each.
const MANY_ROWS: usize = 1024;

/// The cases of a loss over the vocabulary: no rows, one logit, remainders of every tile, and V4's vocabulary, whole with
/// `rows` rows and cut in eight for as many devices.
fn loss_cases(
    scale: Scale,
    cfg: VocabConfig,
    rows: usize,
    build: fn(usize, usize, DType, VocabConfig) -> Result<Problem, ProblemError>,
) -> Vec<Case> {
    let (bf16, f32) = (DType::BF16, DType::F32);
    let small = VocabConfig { rows: 4, cols: 64, threads: 64 };
    let sizes = match scale {
        Scale::Small => vec![
            (0, 70, bf16, small),
            (1, 1, bf16, small),
            (9, 200, bf16, small),
            (6, 128, f32, small),
            (3, 2500, bf16, cfg),
        ],
        Scale::Representative => vec![(rows, 129_280, bf16, cfg)],
        Scale::Full => {
            let many = (rows < MANY_ROWS).then_some((MANY_ROWS, 129_280, bf16, cfg));
            many.into_iter().chain([(rows / 4, 129_280, f32, cfg), (4 * rows, 16_160, bf16, cfg)]).collect()
        }
    };
    let case = |(rows, vocab, dtype, cfg): (usize, usize, DType, VocabConfig)| {
        Case::new(format!("rows={rows} vocab={vocab} {dtype}"), cfg, move |cfg| build(rows, vocab, dtype, cfg))
    };
    sizes.into_iter().map(case).collect()
}

/// Logits that a lane takes in a step: reads of 16 bytes, two of them where elements have two bytes.
const PER_LANE: usize = 16;

/// The columns of lane `c` of `lanes` in the step that starts at column `first`, in runs of 8.
#[track_caller]
fn lane_columns(first: Idx, c: Idx, lanes: usize) -> [Idx; PER_LANE] {
    std::array::from_fn(|k| first + c * 8 + (k / 8 * 8 * lanes + k % 8))
}
