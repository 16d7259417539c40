//! The per-channel cast: a scale factor for each group of a column, as operands of weight gradients have; plain and with
//! the codes transposed.

use super::cast::CastConfig;
use super::problem::{CastProblem, Variant};
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use zellige::{Kernel, TuneValue};
use zellige_ir::DType::{self, BF16, F8E4M3, F32};

/// The library's entry of the plain cast.
pub struct Entry;

/// The library's entry of the cast with transposed codes.
pub struct Transposed;

fn config(group: usize) -> CastConfig {
    CastConfig { block_rows: group, block_cols: 1, ue8m0: true, bn: 64, ..CastConfig::default() }
}

fn cases(variant: Variant, scale: Scale) -> Vec<Case> {
    let problem = |rows: usize, cols: usize, x: DType, cfg: CastConfig| CastProblem {
        variant,
        rows,
        cols,
        x,
        codes: F8E4M3,
        sf: F32,
        cfg,
    };
    let f32_scales = |group| CastConfig { ue8m0: false, ..config(group) };
    let problems = match scale {
        Scale::Small => vec![
            problem(33, 72, BF16, config(32)),
            problem(130, 40, BF16, f32_scales(128)),
            problem(0, 64, BF16, config(32)),
            problem(1, 8, F32, config(32)),
            problem(64, 576, BF16, CastConfig { reciprocal: true, ..f32_scales(32) }),
        ],
        Scale::Representative => vec![problem(4096, 7168, BF16, config(128))],
        Scale::Full => vec![
            problem(8192, 7168, BF16, config(128)),
            problem(4096, 4096, BF16, config(128)),
            problem(4001, 7168, BF16, f32_scales(128)),
            problem(8192, 3072, BF16, config(32)),
            problem(4096, 2048, F32, config(128)),
        ],
    };
    problems.into_iter().map(CastProblem::case).collect()
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "per_channel_cast",
            family: Family::Quant,
            summary: "cast to e4m3 with a scale factor per group of a column",
            equation: "sf[a,j] = max(max_{i in group} |x[i,j]|, floor) / max, or the power of two above; codes[i,j] = rne(x[i,j] / sf[a,j])",
            tolerance: "exact",
            source: "V4 specification 4.3; TileKernels per_channel_cast",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(config(128))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        CastProblem::instantiate(Variant::Plain, apply(config(128), settings)?, dtypes)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(Variant::Plain, scale)
    }
}

impl LibraryKernel for Transposed {
    fn info(&self) -> Info {
        Info {
            name: "per_channel_cast_and_transpose",
            family: Family::Quant,
            summary: "per-channel cast to e4m3 with the codes transposed",
            equation: "sf[a,j] as per_channel_cast; codes[j,i] = rne(x[i,j] / sf[a,j])",
            tolerance: "exact",
            source: "V4 specification 4.3; TileKernels per_channel_cast_and_transpose",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(config(128))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        CastProblem::instantiate(Variant::Transposed, apply(config(128), settings)?, dtypes)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(Variant::Transposed, scale)
    }
}
