//! Casts of rows that are chosen by position and may be quantised already: the per-channel cast of expert inputs for weight
//! gradients, and the change of format, group or direction of a quantised matrix.

use super::cast::CastConfig;
use super::problem::{CastProblem, Variant};
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use zellige::{Kernel, TuneValue};
use zellige_ir::DType::{self, BF16, F4E2M1, F8E4M3, F32};

/// The library's entry.
pub struct Entry;

fn config() -> CastConfig {
    CastConfig { block_rows: 128, block_cols: 1, ue8m0: true, gathered: true, bn: 64, ..CastConfig::default() }
}

fn problem(rows: usize, tokens: usize, cols: usize, x: DType, codes: DType, cfg: CastConfig) -> CastProblem {
    CastProblem { variant: Variant::Requant { tokens }, rows, cols, x, codes, sf: F32, cfg }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "requant_cast",
            family: Family::Quant,
            summary: "cast of gathered or already quantised rows: per channel, per token or per block",
            equation: "v[p,j] = x[pos_to_token[p],j] * input_sf, 0 where the position is negative; then as the plain casts",
            tolerance: "exact",
            source: "V4 specification 4.3; TileKernels per_channel_cast_fused and per_token_cast of quantised input",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(config())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        CastProblem::instantiate(Variant::Requant { tokens: 0 }, apply(config(), settings)?, dtypes)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let quantised = CastConfig { input_group: 128, ..config() };
        let per_token = |group, input_group| CastConfig { input_group, ..CastConfig::per_token(group) };
        // A thread's elements of e2m1 are twice as many as of e4m3: with more threads they stay in few registers.
        let fp4 = CastConfig { bm: 32, threads: 256, ..per_token(128, 32) };
        let problems = match scale {
            Scale::Small => {
                let small = CastConfig { block_rows: 32, ..config() };
                vec![
                    problem(70, 20, 144, BF16, F8E4M3, small),
                    problem(70, 20, 320, F8E4M3, F8E4M3, CastConfig { input_group: 128, ..small }),
                    problem(33, 9, 96, F8E4M3, F8E4M3, CastConfig { input_group: 32, ue8m0: false, ..small }),
                    problem(0, 4, 64, BF16, F8E4M3, small),
                    problem(17, 17, 192, F4E2M1, F8E4M3, fp4),
                    problem(17, 17, 192, F8E4M3, F4E2M1, CastConfig { ue8m0: true, ..per_token(32, 64) }),
                    problem(1, 1, 64, F8E4M3, F8E4M3, per_token(0, 64)),
                ]
            }
            Scale::Representative => vec![problem(8192, 2048, 4096, F8E4M3, F8E4M3, quantised)],
            Scale::Full => vec![
                problem(24576, 4096, 7168, F8E4M3, F8E4M3, quantised),
                problem(8064, 4096, 7168, BF16, F8E4M3, config()),
                problem(8064, 4001, 7168, F8E4M3, F8E4M3, quantised),
                problem(4096, 4096, 7168, F8E4M3, F4E2M1, CastConfig { ue8m0: true, ..per_token(32, 128) }),
                problem(6144, 6144, 7168, F4E2M1, F8E4M3, fp4),
            ],
        };
        problems.into_iter().map(CastProblem::case).collect()
    }
}
