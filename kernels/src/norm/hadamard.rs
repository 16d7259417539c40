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
    // A row as groups of lanes: stages inside a group are shuffles, stages between groups meet in one thread.
    let lanes = n.min(32);
    let groups = (n / lanes).max(1);
    let (v, partner) = (t.fragment::<f32, 3>([rows, groups, lanes]), t.fragment::<f32, 3>([rows, groups, lanes]));
    for (r, g, l) in t.parallel((rows, groups, lanes)) {
        v[(r, g, l)] = x[(b * rows + r, g * lanes + l)].cast();
    }
    for half in powers_of_two(lanes) {
        t.shuffle_xor(v, partner, half);
        for (r, g, l) in t.parallel((rows, groups, lanes)) {
            let sign = select(l / half % 2 == 0, 1.0, lit::<f32>(-1.0));
            v[(r, g, l)] = v[(r, g, l)].mul_add(sign, partner[(r, g, l)]);
        }
    }
    for half in powers_of_two(groups) {
        for (r, p, l) in t.parallel((rows, groups / 2, lanes)) {
            let first = p / half * (2 * half) + p % half;
            let (lo, hi) = (v[(r, first, l)], v[(r, first + half, l)]);
            v[(r, first, l)] = lo + hi;
            v[(r, first + half, l)] = lo - hi;
        }
    }
    let scale = (n as f32).powf(-0.5);
    for (r, g, l) in t.parallel((rows, groups, lanes)) {
        y[(b * rows + r, g * lanes + l)] = (v[(r, g, l)] * scale).cast();
    }
}

/// 1, 2, 4, .. below `n`.
fn powers_of_two(n: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |p| Some(p * 2)).take_while(move |p| *p < n)
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
