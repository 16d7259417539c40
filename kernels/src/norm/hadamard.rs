//! Walsh-Hadamard transform of the last axis.

use super::{BF16_STEP, rows_for};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::codec::bf16_round_all;
use crate::reference::hadamard as reference;
use crate::reference::metrics::compare;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`hadamard`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct HadamardConfig {
    /// Rows of a block.
    #[tune(4, 8, 16, 32)]
    pub rows: usize,
    #[tune(64, 128, 256)]
    pub threads: usize,
}

impl HadamardConfig {
    /// Tiles of about 4096 elements.
    pub fn for_dim(n: usize) -> HadamardConfig {
        HadamardConfig { rows: rows_for(4096, n), threads: 128 }
    }
}

impl Default for HadamardConfig {
    fn default() -> HadamardConfig {
        HadamardConfig::for_dim(128)
    }
}

/// `y = x H n^-0.5` for each row, `H[i][j] = (-1)^popcount(i & j)` (Sylvester order), `n` a power of two: log2(n) stages of
/// sums and differences in fp32, one scale, rounded once. It is its own inverse.
#[kernel(static_dims(n))]
pub fn hadamard(
    t: T,
    #[dims(rows, n)] x: &Tensor<bf16, 2>,
    #[dims(rows, n)] y: &mut Tensor<bf16, 2>,
    #[comptime] cfg: HadamardConfig,
) {
    let (rows, n) = (cfg.rows, x.static_dim(1));
    t.assert((n.is_power_of_two()).into(), "hadamard: the last extent is not a power of two");
    let [b] = t.grid([x.dim(0).ceil_div(rows)], cfg.threads);
    let bits = n.max(1).ilog2() as usize;
    let low = bits.min(CONTIGUOUS_BITS);
    let tile = t.shared::<f32, 2>([rows, n]);
    // Rows a quarter of the banks apart.
    t.pad(tile, 8);
    t.cast(x.at((b * rows, 0)), tile);
    // Strided elements first, so that the last pass has neighbours, which it writes together.
    for (done, some) in strided_passes(low, bits) {
        let stride = 1 << done;
        for (r, q) in t.parallel((rows, n >> some)) {
            let first = q / stride * (stride << some) + q % stride;
            let v = transformed((0..1 << some).map(|i| tile[(r, first + i * stride)]).collect());
            for (i, v) in v.into_iter().enumerate() {
                tile[(r, first + i * stride)] = v;
            }
        }
    }
    let scale = (n as f32).powf(-0.5);
    for (r, g) in t.parallel((rows, n >> low)) {
        let v = transformed((0..1 << low).map(|i| tile[(r, g * (1 << low) + i)]).collect());
        for (i, v) in v.into_iter().enumerate() {
            y[(b * rows + r, g * (1 << low) + i)] = (v * scale).cast();
        }
    }
}

/// Bits of the index that a thread transforms in one pass, where its elements are neighbours.
const CONTIGUOUS_BITS: usize = 3;

/// The same where its elements lie apart.
const STRIDED_BITS: usize = 4;

/// The passes over the bits from `low` to `bits`, the highest first: the lowest bit of each, and how many.
fn strided_passes(low: usize, bits: usize) -> Vec<(usize, usize)> {
    let (mut done, mut passes) = (bits, Vec::new());
    while done > low {
        let some = (done - low).min(STRIDED_BITS);
        done -= some;
        passes.push((done, some));
    }
    passes
}

/// The transform of a few numbers without the scale.
#[track_caller]
fn transformed(mut v: Vec<Expr<f32>>) -> Vec<Expr<f32>> {
    let mut half = 1;
    while half < v.len() {
        for lo in (0..v.len()).filter(|i| i & half == 0) {
            (v[lo], v[lo + half]) = (v[lo] + v[lo + half], v[lo] - v[lo + half]);
        }
        half *= 2;
    }
    v
}

/// The library's entry.
pub struct Entry;

fn problem(rows: usize, n: usize, cfg: HadamardConfig) -> Result<Problem, ProblemError> {
    let args = vec![
        Value::Tensor(Inputs::new(7).normal(DType::BF16, &[rows, n], 1.0)?),
        Value::Tensor(output(DType::BF16, &[rows, n])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let want = bf16_round_all(&reference::hadamard(&args[0].f32s(), n));
        vec![Comparison { output: "y", verdict: compare(&args[1].f32s(), &want, BF16_STEP) }]
    };
    Ok(Problem { kernel: Box::new(Hadamard::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(rows: usize, n: usize) -> Case {
    Case::new(format!("rows={rows} n={n}"), HadamardConfig::for_dim(n), move |cfg| problem(rows, n, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "hadamard",
            family: Family::Norm,
            summary: "Walsh-Hadamard transform of the last axis, any power of two",
            equation: "y = x H n^-0.5, H[i][j] = (-1)^popcount(i & j)",
            tolerance: "a bf16 step (rel 1/128), cos 1e-6",
            source: "V4 specification 1.4, 7; Fino and Algazi, Unified Matrix Treatment of the Fast Walsh-Hadamard Transform (1976)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(HadamardConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(Hadamard::new(apply(HadamardConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => [(0, 128), (1, 1), (5, 2), (33, 128), (7, 16), (40, 32), (3, 1024), (4, 64)]
                .map(|(rows, n)| case(rows, n))
                .into(),
            Scale::Representative => vec![case(4096 * 64, 128)],
            Scale::Full => vec![case(8192, 128), case(4096, 1024), case(8192, 512)],
        }
    }
}
