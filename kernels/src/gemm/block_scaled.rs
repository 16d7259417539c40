//! Dense product of FP8 operands, or of FP8 by MXFP4, with scale factors per group of columns.

use super::product::{ProductConfig, Weight, multiply, multiply_turned};
use super::scaled_problem::{Layout, Operands, ScaledProblem, operand_types};
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// `C[m, n] = sum_k A[m, k] a_sf[m, k / a_group] B[n, k] b_sf[n / b_rows, k / b_group]`: `a` [M, K], `b` [N, K]. Sums of `min(a_group,
/// b_group)` columns are scaled and added in f32 in a fixed order, so that the bits of a row do not depend on `m`. MXFP4
/// (e2m1) is widened to e4m3, exactly.
#[kernel(static_dims(n, k))]
pub fn block_scaled_gemm<A: Element, B: Weight, S: Element, C: Float>(
    t: T,
    #[dims(m, k)] a: &Tensor<A, 2>,
    #[dims(a_sf0, a_sf1)] a_sf: &Tensor<f32, 2>,
    #[dims(n, k)] b: &Tensor<B, 2>,
    #[dims(b_sf0, b_sf1)] b_sf: &Tensor<S, 2>,
    #[dims(m, n)] c: &mut Tensor<C, 2>,
    #[comptime] cfg: ProductConfig,
) {
    let (bm, bn) = (cfg.bm, cfg.bn);
    let [bx, by] = t.grid([c.dim(1).ceil_div(bn), c.dim(0).ceil_div(bm)], cfg.threads);
    let (row, col) = (by * bm, bx * bn);
    let a_sf = |i: Idx, g: Idx| if cfg.column_major { a_sf[(g, row + i)] } else { a_sf[(row + i, g)] };
    let b_sf = |j: Idx, g: Idx| b_sf[((col + j) / cfg.b_rows, g)];
    let (k, a, b) = (a.dim(1), |depth: Idx| a.at((row, depth)), |depth: Idx| b.at((col, depth)));
    if cfg.turned {
        let acc = multiply_turned(t, k, a, b, a_sf, b_sf, cfg);
        for (j, i) in t.parallel((bn, bm)) {
            c[(row + i, col + j)] = acc[(j, i)].cast::<C>();
        }
    } else {
        t.cast(multiply(t, k, a, b, a_sf, b_sf, cfg), c.at((row, col)));
    }
}

/// The library's entry.
pub struct Entry;

/// The launcher for element types.
fn launcher(types: Operands, cfg: ProductConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    if cfg.zero_padding {
        return Err(ProblemError::Unsupported(
            "a dense product has no padding rows: leave `zero_padding` off".to_owned(),
        ));
    }
    if !cfg.scaled {
        return Err(ProblemError::Unsupported("operands without scale factors: `gemm` multiplies them".to_owned()));
    }
    operand_types!(types, (A, B, S, C), Ok(Box::new(BlockScaledGemm::<A, B, S, C>::new(cfg))))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "block_scaled_gemm",
            family: Family::Gemm,
            summary: "FP8 by FP8 or MXFP4 with scale factors per group of columns, promoted to fp32 after each group",
            equation: "C[m,n] = sum_k A[m,k] a_sf[m,k/128] B[n,k] b_sf[n/128,k/128]; MXFP4: b_sf[n,k/32]",
            tolerance: "calc_diff < 1e-5 against the same quantised operands",
            source: "V4 specification 5; DeepGEMM fp8_gemm_nt, DeepSeek-V4 inference fp8_gemm and fp4_gemm",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ProductConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        launcher(Operands::of(dtypes), apply(ProductConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        use DType::{BF16, E8M0, F4E2M1, F8E4M3, F32};
        let types = |b, sf, c| Operands { a: F8E4M3, b, sf, c };
        let case = |m: usize, n, k, types, cfg| {
            ScaledProblem { layout: Layout::Dense, rows: vec![m], n, k, types, cfg, launcher }.case()
        };
        let (fp8, mxfp4) = (ProductConfig::default(), ProductConfig::mxfp4());
        match scale {
            Scale::Small => {
                let tile = |cfg| ProductConfig { bm: 32, bn: 64, threads: 128, ..cfg };
                vec![
                    case(0, 64, 128, types(F8E4M3, F32, BF16), tile(fp8)),
                    case(1, 136, 256, types(F8E4M3, F32, BF16), tile(fp8)),
                    case(33, 72, 160, types(F8E4M3, E8M0, F32), tile(fp8)),
                    case(19, 64, 384, types(F8E4M3, F32, F32), tile(ProductConfig { column_major: true, ..fp8 })),
                    // Both sides 1 x 128, as gradients of weights have them.
                    case(17, 72, 256, types(F8E4M3, F32, F32), tile(ProductConfig { b_rows: 1, ..fp8 })),
                    case(33, 72, 160, types(F4E2M1, E8M0, BF16), tile(mxfp4)),
                    case(5, 64, 128, types(F4E2M1, E8M0, F32), tile(ProductConfig { a_group: 32, bk: 64, ..mxfp4 })),
                ]
            }
            Scale::Representative => vec![case(512, 4096, 2048, types(F8E4M3, E8M0, BF16), fp8)],
            Scale::Full => {
                let of_fp8 = types(F8E4M3, F32, BF16);
                let shapes = [
                    (1, 4096, 7168),
                    (128, 7168, 2048),
                    (128, 2112, 7168),
                    (128, 7168, 16384),
                    (4096, 576, 7168),
                    (4096, 2112, 7168),
                    (4096, 7168, 2048),
                    (4096, 24576, 1536),
                    (4096, 4096, 7168),
                    (4096, 7168, 16384),
                ];
                shapes
                    .map(|(m, n, k)| case(m, n, k, of_fp8, fp8))
                    .into_iter()
                    .chain([case(512, 7168, 3072, types(F4E2M1, E8M0, BF16), mxfp4)])
                    .collect()
            }
        }
    }
}
