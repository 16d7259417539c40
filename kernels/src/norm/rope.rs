//! Rotary position embedding in place, forward and inverse.

use super::BF16_STEP;
use crate::inputs::Inputs;
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::metrics::compare;
use crate::reference::rope as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`rope`] and the direction of rotation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct RopeConfig {
    /// Tokens of a block.
    #[tune(1, 2, 4, 8, 16)]
    pub tokens: usize,
    /// Heads of a block.
    #[tune(1, 4, 16, 64)]
    pub heads: usize,
    #[tune(64, 128, 256)]
    pub threads: usize,
    /// Multiply by the conjugate.
    pub inverse: bool,
}

impl RopeConfig {
    /// Tiles of about 64 vectors, of as few tokens as can be.
    pub fn for_heads(heads: usize) -> RopeConfig {
        let heads = heads.clamp(1, 64);
        RopeConfig { tokens: 64 / heads, heads, threads: 256, inverse: false }
    }
}

impl Default for RopeConfig {
    fn default() -> RopeConfig {
        RopeConfig::for_heads(64)
    }
}

/// Rotates the last `2 P` channels of every vector of `x` in place: the adjacent channels `2i` and `2i + 1` of that part are
/// multiplied, as a complex number, by `cos[p, i] + j sin[p, i]` for the token's position `p`, or by its conjugate. In fp32, rounded once.
///
/// The tables have a row for each position, below which all positions lie.
#[kernel(static_dims(heads, dim, pairs))]
pub fn rope(
    t: T,
    #[dims(tokens)] positions: &Tensor<i32, 1>,
    #[dims(table, pairs)] cos: &Tensor<f32, 2>,
    #[dims(table, pairs)] sin: &Tensor<f32, 2>,
    #[dims(tokens, heads, dim)] x: &mut Tensor<bf16, 3>,
    #[comptime] cfg: RopeConfig,
) {
    let pairs = cos.static_dim(1);
    let first = x.dim(2) - 2 * pairs;
    t.assert(first >= 0, "rope: the table has more channels than the vectors");
    let [b, h] = t.grid([x.dim(0).ceil_div(cfg.tokens), x.dim(1).ceil_div(cfg.heads)], cfg.threads);
    for (r, k, i) in t.parallel((cfg.tokens, cfg.heads, pairs)) {
        let (token, head) = (b * cfg.tokens + r, h * cfg.heads + k);
        // Channels first: reading them waits for nothing, the tables for the position.
        let (even, odd) = ((token, head, first + i * 2), (token, head, first + i * 2 + 1));
        let (re, im) = (x[even].cast::<f32>(), x[odd].cast::<f32>());
        let position = positions[token].to_index();
        let (c, s) = (cos[(position, i)], sin[(position, i)]);
        let s = if cfg.inverse { -s } else { s };
        x[even] = (re * c - im * s).cast();
        x[odd] = (re * s + im * c).cast();
    }
}

/// The library's entry.
pub struct Entry;

/// Random vectors of tokens at random positions of a context.
fn problem(shape: [usize; 3], context: usize, cfg: RopeConfig) -> Result<Problem, ProblemError> {
    let [tokens, heads, dim] = shape;
    let mut inputs = Inputs::new(6);
    let frequencies =
        reference::frequencies(reference::V4_COMPRESSED_BASE, reference::ROPE_DIM, Some(reference::V4_YARN));
    let every: Vec<u32> = (0..context as u32).collect();
    let table = reference::RopeTable::new(&frequencies, &every, reference::AnglePrecision::F32);
    let positions = inputs.integers(DType::I32, &[tokens], 0, context as i64)?;
    let chosen: Vec<u32> = Value::Tensor(positions.clone()).f32s().iter().map(|&p| p as u32).collect();
    let x = inputs.normal(DType::BF16, &[tokens, heads, dim], 1.0)?;
    let before = Value::Tensor(x.clone()).f32s();
    let args = vec![
        Value::Tensor(positions),
        Value::Tensor(DynTensor::from_slice(&[context, table.pairs], &table.cos)?),
        Value::Tensor(DynTensor::from_slice(&[context, table.pairs], &table.sin)?),
        Value::Tensor(x),
    ];
    // Two numbers of a table and two channels, read and written, for each pair.
    let work = Work { flops: 0.0, bytes: (tokens * table.pairs) as f64 * 8.0 * (1.0 + heads as f64) };
    let verify = move |args: &[Value]| {
        let rotation = if cfg.inverse { reference::Rotation::Inverse } else { reference::Rotation::Forward };
        let rows = reference::RopeTable::new(&frequencies, &chosen, reference::AnglePrecision::F32);
        let want = bf16_round_all(&reference::rope(&before, &rows, tokens, heads, dim, rotation));
        vec![Comparison { output: "x", verdict: compare(&args[3].f32s(), &want, BF16_STEP) }]
    };
    Ok(Problem { kernel: Box::new(Rope::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(tokens: usize, heads: usize, dim: usize, context: usize, inverse: bool) -> Case {
    let direction = if inverse { "inverse" } else { "forward" };
    let name = format!("tokens={tokens} heads={heads} dim={dim} context={context} {direction}");
    let cfg = RopeConfig { inverse, ..RopeConfig::for_heads(heads) };
    Case::new(name, cfg, move |cfg| problem([tokens, heads, dim], context, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "rope",
            family: Family::Norm,
            summary: "rotary embedding of the last channels, in place, forward or inverse, position per token",
            equation: "x[2i] + j x[2i+1] *= exp(+-j p theta_i)",
            tolerance: "a bf16 step (rel 1/128), cos 1e-6",
            source: "V4 specification 1.1, 7; Su et al., RoFormer (2021)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(RopeConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(Rope::new(apply(RopeConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![
                case(0, 2, 64, 10, false),
                case(1, 1, 512, 2000, false),
                case(5, 20, 128, 100, true),
                case(67, 1, 576, 100_000, false),
                case(3, 7, 64, 50, true),
            ],
            Scale::Representative => vec![case(4096, 64, 512, 65536, false)],
            Scale::Full => vec![
                case(8192, 64, 512, 65536, false),
                case(4096, 128, 512, 65536, true),
                case(8192, 1, 512, 262_144, false),
                case(4096, 64, 128, 65536, false),
            ],
        }
    }
}
