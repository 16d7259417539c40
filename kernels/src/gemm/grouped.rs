//! Products of rows that belong to groups (experts), each group with a matrix of its own: rows of all groups one after
//! the other, or a fixed number of rows for each group of which the first are in use.

use super::product::{ProductConfig, Weight, multiply, multiply_turned};
use super::scaled_problem::{Layout, Operands, ScaledProblem, operand_types};
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, ProblemError, Scale, Settings, apply};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Rows of all groups one after the other: `C[p, n] = sum_k A[p, k] B[e, n, k]`, `e = pos_to_expert[p]`, with scale factors as in
/// [`block_scaled_gemm`](super::block_scaled::block_scaled_gemm) if `cfg.scaled`. `a` [positions, K], `b` [experts, N, K], `b_sf`
/// [experts, N / b_rows, K / b_group].
///
/// Every group starts at a multiple of `cfg.bm` and is filled up with rows of group -1, as
/// [`get_fused_mapping`](crate::moe::mapping::get_fused_mapping) lays them out; from groups given by prefix sums
/// [`expert_of_rows`](crate::moe::expert_of_rows::expert_of_rows) makes `pos_to_expert`. Padding rows of a tile that has others get the
/// product of what `a` holds there (zeros after `expand_to_fused`), tiles of padding alone are neither computed nor
/// written; with `cfg.zero_padding` both are zero. The bits of a row depend on the row and its group's matrix only.
#[kernel(static_dims(n, k))]
pub fn grouped_gemm<A: Element, B: Weight, S: Element, C: Float>(
    t: T,
    #[dims(positions, k)] a: &Tensor<A, 2>,
    #[dims(a_sf0, a_sf1)] a_sf: &Tensor<f32, 2>,
    #[dims(experts, n, k)] b: &Tensor<B, 3>,
    #[dims(b_sf0, b_sf1, b_sf2)] b_sf: &Tensor<S, 3>,
    #[dims(positions)] pos_to_expert: &Tensor<i32, 1>,
    #[dims(positions, n)] c: &mut Tensor<C, 2>,
    #[comptime] cfg: ProductConfig,
) {
    let (bm, bn, k) = (cfg.bm, cfg.bn, a.dim(1));
    let [bx, by] = t.grid([c.dim(1).ceil_div(bn), c.dim(0).ceil_div(bm)], cfg.threads);
    let (row, col) = (by * bm, bx * bn);
    let found = pos_to_expert[row];
    if found >= 0 {
        let e = found.to_index();
        // One block of those with these rows looks.
        if bx == 0 {
            for i in t.parallel(bm) {
                let own = pos_to_expert[row + i];
                t.assert(
                    own == found || own < 0 || row + i >= c.dim(0),
                    "rows of two groups share a tile: align the groups to a multiple of bm",
                );
            }
        }
        let a_sf = |i: Idx, g: Idx| if cfg.column_major { a_sf[(g, row + i)] } else { a_sf[(row + i, g)] };
        let b_sf = |j: Idx, g: Idx| b_sf[(e, (col + j) / cfg.b_rows, g)];
        let (a, b) = (|depth: Idx| a.at((row, depth)), |depth: Idx| b.at((e, col, depth)));
        let kept = |i: Idx, x: Expr<f32>| {
            if cfg.zero_padding { select(pos_to_expert[row + i] == found, x, 0.0) } else { x }
        };
        if cfg.turned {
            let acc = multiply_turned(t, k, a, b, a_sf, b_sf, cfg);
            for (j, i) in t.parallel((bn, bm)) {
                c[(row + i, col + j)] = kept(i, acc[(j, i)]).cast::<C>();
            }
        } else {
            let acc = multiply(t, k, a, b, a_sf, b_sf, cfg);
            if cfg.zero_padding {
                for (i, j) in t.parallel((bm, bn)) {
                    acc[(i, j)] = kept(i, acc[(i, j)]);
                }
            }
            t.cast(acc, c.at((row, col)));
        }
    } else if cfg.zero_padding {
        let zeros = t.fragment::<C, 2>([bm, bn]);
        t.clear(zeros);
        t.copy(zeros, c.at((row, col)));
    }
}

/// Groups up to which blocks look for the tiles in use; behind that they go over all tiles.
const FEW_GROUPS: usize = 24;

/// Tile `number` of the tiles of all groups, one group after the other: the group, the tile's number in the group, and whether
/// there are so many. `tiles` gives the tiles of a group.
#[tile]
fn tile_among(number: Expr<i32>, groups: usize, tiles: impl Fn(usize) -> Expr<i32>) -> (Idx, Idx, Expr<bool>) {
    let (mut group, mut first, mut end) = (lit::<i32>(0), lit::<i32>(0), lit::<i32>(0));
    for e in 0..groups {
        end = end + tiles(e);
        let behind = number >= end;
        group = select(behind, e as i32 + 1, group);
        first = select(behind, end, first);
    }
    (group.to_index(), (number - first).to_index(), number < end)
}

/// A fixed number of rows for each group, the first `counts[e]` in use: `C[e, i, n] = sum_k A[e, i, k] B[e, n, k]`, with scale
/// factors as in [`block_scaled_gemm`](super::block_scaled::block_scaled_gemm) if `cfg.scaled`. `a` [experts, rows, K], `b`
/// [experts, N, K], `counts` `[experts]`, at most `rows` each.
///
/// Tiles without a row in use are neither computed nor written, the other rows of a tile hold nothing in particular; with
/// `cfg.zero_padding` both are zero.
#[kernel(static_dims(n, k, experts))]
pub fn masked_gemm<A: Element, B: Weight, S: Element, C: Float>(
    t: T,
    #[dims(experts, rows, k)] a: &Tensor<A, 3>,
    #[dims(a_sf0, a_sf1, a_sf2)] a_sf: &Tensor<f32, 3>,
    #[dims(experts, n, k)] b: &Tensor<B, 3>,
    #[dims(b_sf0, b_sf1, b_sf2)] b_sf: &Tensor<S, 3>,
    #[dims(experts)] counts: &Tensor<i32, 1>,
    #[dims(experts, rows, n)] c: &mut Tensor<C, 3>,
    #[comptime] cfg: ProductConfig,
) {
    let (bm, bn) = (cfg.bm, cfg.bn);
    let (groups, room, k) = (c.static_dim(0), c.dim(1).ceil_div(bm), a.dim(2));
    // Blocks that run at once share a group's rows, and those with nothing to do come last.
    let [bx, number] = t.grid([c.dim(2).ceil_div(bn), room * groups], cfg.threads);
    t.block_order_panel(1);
    let few = groups <= FEW_GROUPS;
    let in_use = |e: usize| (counts[e] + (bm as i32 - 1)) / bm as i32;
    let (e, by, has_rows) = if few {
        tile_among(number.cast::<i32>(), groups, in_use)
    } else {
        let (e, by) = (number % groups, number / groups);
        (e, by, by * bm < counts[e].to_index())
    };
    let (row, col) = (by * bm, bx * bn);
    if has_rows {
        let count = counts[e].to_index();
        let a_sf = |i: Idx, g: Idx| if cfg.column_major { a_sf[(e, g, row + i)] } else { a_sf[(e, row + i, g)] };
        let b_sf = |j: Idx, g: Idx| b_sf[(e, (col + j) / cfg.b_rows, g)];
        let (a, b) = (|depth: Idx| a.at((e, row, depth)), |depth: Idx| b.at((e, col, depth)));
        let kept = |i: Idx, x: Expr<f32>| if cfg.zero_padding { select(row + i < count, x, 0.0) } else { x };
        if cfg.turned {
            let acc = multiply_turned(t, k, a, b, a_sf, b_sf, cfg);
            for (j, i) in t.parallel((bn, bm)) {
                c[(e, row + i, col + j)] = kept(i, acc[(j, i)]).cast::<C>();
            }
        } else {
            let acc = multiply(t, k, a, b, a_sf, b_sf, cfg);
            if cfg.zero_padding {
                for (i, j) in t.parallel((bm, bn)) {
                    acc[(i, j)] = kept(i, acc[(i, j)]);
                }
            }
            t.cast(acc, c.at((e, row, col)));
        }
    } else if cfg.zero_padding {
        let (e, by) = if few {
            let used = (0..groups).fold(lit::<i32>(0), |sum, e| sum + in_use(e));
            let left = |e: usize| room.cast::<i32>() - in_use(e);
            let (e, by, _) = tile_among(number.cast::<i32>() - used, groups, left);
            (e, by + (counts[e].to_index()).ceil_div(bm))
        } else {
            (e, by)
        };
        let (row, col) = (by * bm, bx * bn);
        let zeros = t.fragment::<C, 2>([bm, bn]);
        t.clear(zeros);
        t.copy(zeros, c.at((e, row, col)));
    }
}

/// The library's entry of [`grouped_gemm`].
pub struct Contiguous;

/// The library's entry of [`masked_gemm`].
pub struct Masked;

fn contiguous(types: Operands, cfg: ProductConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    operand_types!(types, (A, B, S, C), Ok(Box::new(GroupedGemm::<A, B, S, C>::new(cfg))))
}

fn masked(types: Operands, cfg: ProductConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    operand_types!(types, (A, B, S, C), Ok(Box::new(MaskedGemm::<A, B, S, C>::new(cfg))))
}

/// The config for operand types where the user gives none.
fn default_config(types: Operands) -> ProductConfig {
    match (types.a, types.b) {
        (DType::BF16, _) => ProductConfig::unscaled(),
        (_, DType::F4E2M1) => ProductConfig::mxfp4(),
        (_, _) => ProductConfig::default(),
    }
}

const TOLERANCE: &str = "calc_diff < 1e-5 against the same quantised operands";
const SOURCE: &str = "V4 specification 3.4, 5; DeepGEMM m_grouped_{bf16,fp8,fp8_fp4}_gemm_nt_{contiguous,masked}";

/// The three pairs of operand types, as they come in the model.
fn types(c: DType) -> [Operands; 3] {
    use DType::{BF16, E8M0, F4E2M1, F8E4M3, F32};
    [
        Operands { a: BF16, b: BF16, sf: F32, c },
        Operands { a: F8E4M3, b: F8E4M3, sf: E8M0, c },
        Operands { a: F8E4M3, b: F4E2M1, sf: E8M0, c },
    ]
}

fn cases(layout: Layout, scale: Scale) -> Vec<Case> {
    // Groups one after the other are aligned to whole tiles, however few rows they have.
    let chosen = |types: Operands, rows: usize| match layout {
        Layout::Masked { .. } => default_config(types).for_rows(rows),
        Layout::Dense | Layout::Contiguous => default_config(types),
    };
    let case = |rows: Vec<usize>, n: usize, k: usize, types: Operands, cfg: ProductConfig| {
        let launcher = if matches!(layout, Layout::Masked { .. }) { masked } else { contiguous };
        ScaledProblem { layout, rows, n, k, types, cfg, launcher }.case()
    };
    match scale {
        Scale::Small => {
            let tile = |bm, cfg| ProductConfig { bm, bn: 64, threads: 128, ..cfg };
            let mut out = Vec::new();
            for types in types(DType::BF16) {
                let cfg = default_config(types);
                out.push(case(vec![], 64, 128, types, tile(32, cfg)));
                out.push(case(vec![0, 5, 0, 33, 1], 72, 160, types, tile(32, cfg)));
            }
            let [bf16, fp8, mxfp4] = types(DType::F32);
            let fp8_cfg = default_config(fp8);
            out.extend([
                case(vec![16, 0], 40, 96, bf16, tile(16, default_config(bf16))),
                case(
                    vec![16, 0, 7, 19],
                    40,
                    96,
                    bf16,
                    tile(16, ProductConfig { zero_padding: true, ..default_config(bf16) }),
                ),
                case(vec![0, 0, 0], 64, 128, fp8, tile(16, fp8_cfg)),
                case(vec![7, 40], 136, 256, fp8, tile(32, ProductConfig { column_major: true, ..fp8_cfg })),
                case(vec![3, 18], 64, 96, mxfp4, tile(16, ProductConfig { a_group: 32, ..default_config(mxfp4) })),
            ]);
            out
        }
        // Products of the experts of V4-Flash.
        Scale::Representative => {
            types(DType::BF16).map(|types| case(vec![128, 40, 0, 100], 4096, 2048, types, chosen(types, 128))).into()
        }
        Scale::Full => {
            let [bf16, fp8, mxfp4] = types(DType::BF16);
            let rows = || match layout {
                Layout::Masked { .. } => vec![192, 3, 0, 100, 150, 192, 20, 77],
                Layout::Dense | Layout::Contiguous => vec![1024, 900, 1100, 0, 517],
            };
            let many = match layout {
                Layout::Masked { .. } => vec![20; 6],
                Layout::Dense | Layout::Contiguous => vec![8192; 4],
            };
            let shapes = [(4096, 4096, bf16), (4096, 4096, fp8), (6144, 7168, mxfp4), (7168, 3072, mxfp4)];
            let several = shapes.map(|(n, k, types)| case(rows(), n, k, types, chosen(types, rows()[0])));
            let few = [bf16, fp8, mxfp4].map(|types| case(many.clone(), 4096, 7168, types, chosen(types, many[0])));
            several.into_iter().chain(few).collect()
        }
    }
}

impl LibraryKernel for Contiguous {
    fn info(&self) -> Info {
        Info {
            name: "grouped_gemm",
            family: Family::Gemm,
            summary: "rows in expert order times their experts' matrices: bf16, FP8 by FP8, FP8 by MXFP4",
            equation: "C[p,n] = sum_k A[p,k] a_sf[p,k/128] B[e,n,k] b_sf[e,n/128,k/128], e = pos_to_expert[p]; MXFP4: b_sf[e,n,k/32]",
            tolerance: TOLERANCE,
            source: SOURCE,
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ProductConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let types = Operands::of(dtypes);
        contiguous(types, apply(default_config(types), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        cases(Layout::Contiguous, scale)
    }
}

impl LibraryKernel for Masked {
    fn info(&self) -> Info {
        Info {
            name: "masked_gemm",
            family: Family::Gemm,
            summary: "the first rows of each expert's share times its matrix: bf16, FP8 by FP8, FP8 by MXFP4",
            equation: "C[e,i,n] = sum_k A[e,i,k] a_sf[e,i,k/128] B[e,n,k] b_sf[e,n/128,k/128], i < counts[e]; MXFP4: b_sf[e,n,k/32]",
            tolerance: TOLERANCE,
            source: SOURCE,
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ProductConfig::default())
    }

    fn settings_at(
        &self,
        sizes: &Sizes,
        dtypes: &Dtypes,
        settings: &[(String, TuneValue)],
    ) -> Result<Box<dyn Settings>, ProblemError> {
        let config = default_config(Operands::of(dtypes));
        let config = sizes.get("rows").map_or(config, |rows| config.for_rows(rows));
        Ok(Box::new(apply(config, settings)?))
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let types = Operands::of(dtypes);
        masked(types, apply(default_config(types), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        // Room for the largest count, in whole and in broken tiles.
        cases(Layout::Masked { spare: 5 }, scale)
    }
}
