//! SwiGLU with clamp and row weights: by itself, and as the first part of the kernels that cast its result.

use super::cast::PACKED_STEPS;
use super::silu::{Logistic, Rounding, quick};
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::activation as reference;
use crate::reference::codec;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// What a SwiGLU does besides.
#[derive(Clone, Copy)]
pub(super) struct Options {
    pub clamp: bool,
    pub counted: bool,
    pub weighted: bool,
    pub padded: bool,
}

/// What a SwiGLU reads.
pub(super) struct Source<'a, X: Element> {
    pub x: &'a Tensor<X, 2>,
    pub pos_to_expert: &'a Tensor<i32, 1>,
    pub pos_to_token_topk: &'a Tensor<i32, 1>,
    pub weights: &'a Tensor<f32, 2>,
    pub clamped: &'a Tensor<i64, 1>,
    pub limit: Expr<f32>,
}

/// The activation of the rows from `row` on and the columns from `col` on, in f32: `min(g, c)` and `clamp(h, -c, c)` if
/// clamped, `g / (1 + exp(-g)) * h * w` in this order, each step rounded to nearest, zero on padding; or what cannot be told from
/// that once it is rounded as `then` says.
#[tile]
pub(super) fn activation<X: Element>(
    t: T,
    s: &Source<'_, X>,
    row: Idx,
    col: Idx,
    y: Fragment<f32, 2>,
    then: Rounding,
    cfg: Options,
) {
    let [rows, cols] = y.shape();
    let (m, inner) = (s.x.dim(0), s.x.static_dim(1) / 2);
    let (live, weight, margin) =
        (t.fragment::<i32, 1>([rows]), t.fragment::<f32, 1>([rows]), t.fragment::<u32, 1>([rows]));
    for i in t.parallel(rows) {
        let p = row + i;
        let real = if cfg.padded { s.pos_to_expert[p] >= 0 } else { Expr::from(true) };
        live[i] = (real & (p < m)).cast::<i32>();
        weight[i] = if cfg.weighted {
            let (at, k) = (s.pos_to_token_topk[p].to_index(), s.weights.static_dim(1));
            select(at >= 0, s.weights[(at / k, at % k)], 0.0)
        } else {
            lit(1.0)
        };
        margin[i] = select((live[i] == 1) & (weight[i] != 0.0), then.margin(), 0u32);
    }
    let (g, h) = (t.fragment::<X, 2>([rows, cols]), t.fragment::<X, 2>([rows, cols]));
    t.copy(s.x.at((row, col)), g);
    t.copy(s.x.at((row, col + inner)), h);
    // Columns past the end of the first half belong to the second, and take no part.
    let whole = inner.is_multiple_of(cols * PACKED_STEPS);
    let inside = |j: Idx| if whole { Expr::from(true) } else { col + j < inner };
    if cfg.clamp && cfg.counted {
        let (hits, per_row, total) =
            (t.fragment::<i32, 2>([rows, cols]), t.fragment::<i32, 1>([rows]), t.fragment::<i32, 0>([]));
        for which in 0..3 {
            for (i, j) in t.parallel((rows, cols)) {
                let (g, h) = (g[(i, j)].cast::<f32>(), h[(i, j)].cast::<f32>());
                let hit = match which {
                    0 => g > s.limit,
                    1 => h > s.limit,
                    _ => h < -s.limit,
                };
                hits[(i, j)] = (hit & inside(j) & (live[i] == 1)).cast::<i32>();
            }
            t.reduce_sum(hits, per_row, 1);
            t.reduce_sum(per_row, total, 0);
            s.clamped.atomic_add(which, total[[]].cast::<i64>());
        }
    }
    for (i, j) in t.parallel((rows, cols)) {
        // Read anew by those who come late: until then it need not be kept.
        let gate = || {
            let g = g[(i, j)].cast::<f32>();
            if cfg.clamp { g.min(s.limit) } else { g }
        };
        let finish = |silu: Expr<f32>| {
            let h = h[(i, j)].cast::<f32>();
            let a = silu * if cfg.clamp { h.clamp(-s.limit, s.limit) } else { h };
            let a = if cfg.weighted { a * weight[i] } else { a };
            let a = if whole { a } else { select(inside(j), a, 0.0) };
            if cfg.padded { select(live[i] == 1, a, 0.0) } else { a }
        };
        let exact = || finish(Logistic::of(gate()).times(gate()));
        if then == Rounding::None {
            y[(i, j)] = exact();
        } else {
            let rough = finish(quick(gate()));
            y[(i, j)] = rough;
            if then.in_doubt(rough, gate(), margin[i]) {
                y[(i, j)] = exact();
            }
        }
    }
}

/// Config of [`swiglu`]. Arguments that an option turns off are not read and may have any extents.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct ActivationConfig {
    /// Clamp the gate from above, and the other half from both sides, to `limit`.
    pub clamp: bool,
    /// Count what the clamp changes.
    pub counted: bool,
    /// Rows are multiplied by the router weights.
    pub weighted: bool,
    /// Rows whose `pos_to_expert` is negative are padding.
    pub padded: bool,
    /// Rows of a tile.
    #[tune(1, 2, 4, 8)]
    pub bm: usize,
    /// Columns of a tile.
    #[tune(256, 512, 1024)]
    pub bn: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for ActivationConfig {
    fn default() -> ActivationConfig {
        ActivationConfig { clamp: true, counted: false, weighted: true, padded: true, bm: 2, bn: 512, threads: 128 }
    }
}

/// SwiGLU of `x` = [g | h] [m, 2 inner]: `y = silu(min(g, c)) clamp(h, -c, c) w` [m, inner] with the clamp `c = limit`, in f32 and
/// rounded once. Row `p` weighs `w = weights[pos_to_token_topk[p]]` (0 if that is negative), `weights` [tokens, k]; `clamped` `[3]`
/// grows by how many elements the clamp changed: `g > c`, `h > c`, `h < -c`. Rows with a negative `pos_to_expert` give zeros.
///
/// For products in bf16; [`swiglu_backward`](super::activation_backward::swiglu_backward) is its gradient.
#[kernel(static_dims(two_inner, inner, k))]
pub fn swiglu<X: Element, Y: Float>(
    t: T,
    #[dims(m, two_inner)] x: &Tensor<X, 2>,
    #[dims(experts_m)] pos_to_expert: &Tensor<i32, 1>,
    #[dims(pairs_m)] pos_to_token_topk: &Tensor<i32, 1>,
    #[dims(tokens, k)] weights: &Tensor<f32, 2>,
    #[dims(3)] clamped: &mut Tensor<i64, 1>,
    #[dims(m, inner)] y: &mut Tensor<Y, 2>,
    limit: Expr<f32>,
    #[comptime] cfg: ActivationConfig,
) {
    let ActivationConfig { clamp, counted, weighted, padded, bm, bn, threads } = cfg;
    t.assert(x.dim(1) == y.dim(1) * 2, "x has not twice as many columns as y");
    let [bx, by] = t.grid([y.dim(1).ceil_div(bn), y.dim(0).ceil_div(bm)], threads);
    let source = Source { x, pos_to_expert, pos_to_token_topk, weights, clamped, limit };
    let (row, col) = (by * bm, bx * bn);
    let tile = t.fragment::<f32, 2>([bm, bn]);
    let then = if Y::DTYPE == DType::BF16 { Rounding::Bf16 } else { Rounding::None };
    activation(t, &source, row, col, tile, then, Options { clamp, counted, weighted, padded });
    t.cast(tile, y.at((row, col)));
}

/// Pairs, experts and weights of `rows` rows in expert order: two slots for each token; every sixth row is padding.
///
/// # Errors
/// If there is no memory for them.
pub(super) fn rows_in_expert_order(
    inputs: &mut Inputs,
    rows: usize,
) -> Result<(Vec<i32>, Vec<i32>, DynTensor), ProblemError> {
    let (tokens, k) = (rows.div_ceil(2).max(1), 2);
    let pair = |p: i32| if p % 6 == 5 { -1 } else { p * 3 % (tokens * k) as i32 };
    let pairs: Vec<i32> = (0..rows as i32).map(pair).collect();
    let experts = pairs.iter().map(|p| p.signum().min(0)).collect();
    Ok((pairs, experts, inputs.uniform(DType::F32, &[tokens, k], 0.0, 1.0)?))
}

/// The library's entry.
pub struct Entry;

fn launcher(x: DType, y: DType, cfg: ActivationConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(x, X in [BF16 = bf16, F32 = f32], {
        with_type!(y, Y in [BF16 = bf16, F32 = f32], Ok(Box::new(Swiglu::<X, Y>::new(cfg))))
    })
}

fn problem(
    rows: usize,
    inner: usize,
    types: (DType, DType),
    limit: f32,
    cfg: ActivationConfig,
) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(27);
    let x = inputs.normal(types.0, &[rows, 2 * inner], 4.0)?;
    let (pairs, experts, weights) = rows_in_expert_order(&mut inputs, rows)?;
    let args = vec![
        Value::Tensor(x),
        Value::Tensor(DynTensor::from_slice::<i32>(&[rows], &experts)?),
        Value::Tensor(DynTensor::from_slice::<i32>(&[rows], &pairs)?),
        Value::Tensor(weights),
        Value::Tensor(DynTensor::zeros(DType::I64, &[3])?),
        Value::Tensor(output(types.1, &[rows, inner])?),
        Value::Scalar(Const::f32(limit)),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let (x, weights) = (args[0].f32s(), args[3].f32s());
        let row_weight = reference::row_weights(&pairs, &weights);
        let want = reference::Swiglu {
            x: &x,
            rows,
            inner,
            clamp: cfg.clamp.then_some(limit),
            row_weight: cfg.weighted.then_some(&row_weight[..]),
            pos_to_expert: cfg.padded.then_some(&experts[..]),
        }
        .forward();
        let y = if types.1 == DType::BF16 { codec::bf16_round_all(&want.y) } else { want.y };
        vec![
            Comparison::exact_f32("y", &args[5].f32s(), &y),
            counters("clamped", &args[4], if cfg.clamp && cfg.counted { want.clamped } else { [0; 3] }),
        ]
    };
    Ok(Problem { kernel: launcher(types.0, types.1, cfg)?, args, work, verify: Box::new(verify) })
}

/// Compares counters, which grow with every launch of the problem.
pub(super) fn counters(output: &'static str, got: &Value, want: [u64; 3]) -> Comparison {
    let got = got.f32s();
    let launches = if want[0] > 0 { (got[0] / want[0] as f32).round().max(1.0) } else { 1.0 };
    Comparison::exact_f32(output, &got, &want.map(|count| count as f32 * launches))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "swiglu",
            family: Family::Quant,
            summary: "SwiGLU with clamp and row weights, not cast",
            equation: "y = silu(min(g,c)) * clamp(h,-c,c) * w, [g|h] = x",
            tolerance: "exact",
            source: "V4 specification 3.3",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ActivationConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let of = |name: &str| dtypes.get(name).copied().unwrap_or(DType::BF16);
        launcher(of("x"), of("y"), apply(ActivationConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = ActivationConfig::default();
        let case = |rows: usize, inner: usize, types: (DType, DType), limit: f32, cfg: ActivationConfig| {
            let mut name = format!("m={rows} i={inner} {}->{}", types.0, types.1);
            if cfg.clamp {
                name.push_str(&format!(" clamp={limit}"));
            }
            for (on, word) in [(cfg.counted, " counted"), (cfg.weighted, " weighted"), (cfg.padded, " padded")] {
                if on {
                    name.push_str(word);
                }
            }
            Case::new(name, cfg, move |cfg| problem(rows, inner, types, limit, cfg))
        };
        let (bf16, wide) = ((DType::BF16, DType::BF16), (DType::F32, DType::F32));
        match scale {
            Scale::Small => {
                let small = ActivationConfig { bn: 32, ..cfg };
                let counted = ActivationConfig { counted: true, ..small };
                let plain = ActivationConfig { clamp: false, weighted: false, padded: false, ..small };
                vec![
                    case(0, 64, bf16, 10.0, small),
                    case(1, 64, bf16, 10.0, small),
                    case(37, 75, bf16, 0.5, counted),
                    case(19, 40, wide, 10.0, plain),
                ]
            }
            Scale::Representative => vec![case(8192, 3072, bf16, 10.0, cfg)],
            Scale::Full => vec![
                case(24576, 3072, bf16, 10.0, cfg),
                case(4001, 2048, bf16, 0.5, ActivationConfig { counted: true, ..cfg }),
            ],
        }
    }
}
