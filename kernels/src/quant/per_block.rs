//! The per-block cast: a scale factor for each square block, as weights have.

use super::cast::{CastConfig, CastMode};
use super::problem::{CastProblem, Variant};
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use zellige::{Kernel, TuneValue};
use zellige_ir::DType::{self, BF16, E8M0, F8E4M3, F32};

/// The library's entry.
pub struct Entry;

fn config(block: usize) -> CastConfig {
    CastConfig { block_rows: block, block_cols: block, ue8m0: true, ..CastConfig::default() }
}

fn problem(rows: usize, cols: usize, x: DType, cfg: CastConfig) -> CastProblem {
    CastProblem { variant: Variant::Plain, rows, cols, x, codes: F8E4M3, sf: F32, cfg }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "per_block_cast",
            family: Family::Quant,
            summary: "cast to e4m3 with a scale factor per square block",
            equation: "sf[a,b] = max(max_{ij in block} |x[i,j]|, floor) / max, or the power of two above; codes[i,j] = rne(x[i,j] / sf[a,b])",
            tolerance: "exact",
            source: "V4 specification 4.1 to 4.3; TileKernels per_block_cast",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(config(128))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        CastProblem::instantiate(Variant::Plain, apply(config(128), settings)?, dtypes)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let problems = match scale {
            Scale::Small => vec![
                problem(33, 72, BF16, config(32)),
                problem(130, 160, BF16, config(128)),
                problem(0, 64, BF16, config(32)),
                problem(1, 32, F32, CastConfig { ue8m0: false, ..config(32) }),
                problem(40, 40, F32, CastConfig { ue8m0: false, reciprocal: true, ..config(32) }),
                problem(40, 64, BF16, CastConfig { mode: CastMode::ScalesOnly, ..config(32) }),
                problem(40, 64, BF16, CastConfig { mode: CastMode::GivenScales, ..config(32) }),
                CastProblem { sf: E8M0, ..problem(32, 64, BF16, config(32)) },
            ],
            Scale::Representative => vec![problem(4096, 7168, BF16, config(128))],
            Scale::Full => vec![
                problem(8192, 7168, BF16, config(128)),
                problem(6144, 7168, BF16, config(128)),
                problem(7168, 3072, F32, config(128)),
                problem(4096, 4096, BF16, config(32)),
                problem(2112, 576, BF16, CastConfig { ue8m0: false, ..config(128) }),
            ],
        };
        problems.into_iter().map(CastProblem::case).collect()
    }
}
