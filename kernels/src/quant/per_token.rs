//! The per-token cast: a scale factor for each group of a row.

use super::cast::{CastConfig, CastMode};
use super::problem::{CastProblem, Variant, sf_dtype};
use super::scale::ScaleLayout;
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use zellige::{Kernel, TuneValue};
use zellige_ir::DType::{self, BF16, E8M0, F4E2M1, F8E4M3, F16, F32};

/// The library's entry.
pub struct Entry;

fn problem(rows: usize, cols: usize, x: DType, codes: DType, cfg: CastConfig) -> CastProblem {
    CastProblem { variant: Variant::Plain, rows, cols, x, codes, sf: sf_dtype(cfg.layout, F32), cfg }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "per_token_cast",
            family: Family::Quant,
            summary: "cast to e4m3 or packed e2m1 with a scale factor per group of a row",
            equation: "sf[i,g] = max(max_j |x[i,j]|, floor) / max, or the power of two above; codes[i,j] = rne(x[i,j] / sf[i,g])",
            tolerance: "exact",
            source: "V4 specification 4.1 to 4.3; TileKernels per_token_cast, DeepSeek-V4 act_quant",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(CastConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        CastProblem::instantiate(Variant::Plain, apply(CastConfig::default(), settings)?, dtypes)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let f32_scales = CastConfig::default();
        let ue8m0 = CastConfig { ue8m0: true, ..f32_scales };
        let packed = CastConfig { layout: ScaleLayout::Packed, ..ue8m0 };
        let problems = match scale {
            Scale::Small => {
                let group = |block_cols| CastConfig { block_cols, bm: 8, bn: 128, ..f32_scales };
                let power = |block_cols| CastConfig { ue8m0: true, ..group(block_cols) };
                let mut problems: Vec<CastProblem> = [16, 32, 64, 128, 0]
                    .iter()
                    .flat_map(|&g| [problem(9, 576, BF16, F8E4M3, power(g)), problem(7, 160, F32, F4E2M1, group(g))])
                    .collect();
                for rows in [0, 1, 17] {
                    problems.push(problem(rows, 576, BF16, F8E4M3, group(128)));
                    problems.push(problem(rows, 64, BF16, F4E2M1, power(32)));
                    for layout in [ScaleLayout::ColumnMajor, ScaleLayout::Packed] {
                        problems.push(problem(rows, 576, BF16, F8E4M3, CastConfig { layout, ..power(64) }));
                    }
                }
                problems.extend([
                    problem(9, 33, F16, F8E4M3, group(0)),
                    problem(9, 256, F32, F8E4M3, CastConfig { reciprocal: true, ..group(128) }),
                    problem(9, 96, F32, F8E4M3, CastConfig { layout: ScaleLayout::ColumnMajor, ..group(32) }),
                    CastProblem { sf: E8M0, ..problem(9, 96, BF16, F4E2M1, power(32)) },
                ]);
                for mode in [CastMode::ScalesOnly, CastMode::GivenScales] {
                    problems.push(problem(9, 192, BF16, F8E4M3, CastConfig { mode, ..group(128) }));
                    problems.push(problem(5, 300, F32, F8E4M3, CastConfig { mode, ..power(0) }));
                }
                problems
            }
            Scale::Representative => vec![problem(4096, 7168, BF16, F8E4M3, ue8m0)],
            Scale::Full => {
                let group = |group| CastConfig { ue8m0: true, ..CastConfig::per_token(group) };
                let row = CastConfig { bn: 1024, ..CastConfig::per_token(0) };
                vec![
                    problem(8192, 7168, BF16, F8E4M3, ue8m0),
                    problem(4096, 4096, BF16, F8E4M3, ue8m0),
                    problem(4001, 7168, BF16, F8E4M3, packed),
                    problem(4001, 4096, BF16, F8E4M3, CastConfig { layout: ScaleLayout::ColumnMajor, ..ue8m0 }),
                    problem(4096, 7168, F32, F8E4M3, f32_scales),
                    problem(8192, 512, BF16, F8E4M3, group(64)),
                    problem(4096, 7168, BF16, F8E4M3, row),
                    problem(4096, 3072, BF16, F4E2M1, group(32)),
                    problem(8192, 128, BF16, F4E2M1, CastConfig { layout: ScaleLayout::Packed, ..group(32) }),
                    problem(4001, 2048, BF16, F4E2M1, group(16)),
                ]
            }
        };
        problems.into_iter().map(CastProblem::case).collect()
    }
}
