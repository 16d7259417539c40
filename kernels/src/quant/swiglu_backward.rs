//! The gradient of the clamped, weighted SwiGLU, with the gradient of its input cast per token.

use super::activation::rows_in_expert_order;
use super::activation_backward::Gradient;
use super::problem::{compare_codes, format, quantized, sf_shape};
use super::scale::{Code, PerGroup, Place, ScaleLayout, Scaling, Sharing, divide, scales, store_scales};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::activation::row_weights;
use crate::reference::activation_backward as reference;
use crate::reference::codec;
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::quant::{self, CastSpec, ScaleFormat};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Config of [`swiglu_backward_and_per_token_cast`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = group > 1 && group.is_multiple_of(2) && input_group.is_multiple_of(group))]
#[tune(constraint = layout != ScaleLayout::Packed)]
pub struct SwigluBackwardConfig {
    /// Elements of the input's gradient that share a scale factor; divides `inner`.
    pub group: usize,
    /// Elements of the input that share a scale factor.
    pub input_group: usize,
    /// Round scale factors up to a power of two.
    pub ue8m0: bool,
    pub layout: ScaleLayout,
    /// Clamp as in the forward.
    pub clamp: bool,
    /// Rows of a block.
    #[tune(4, 8, 16)]
    pub bm: usize,
    /// Groups that are read ahead, and the one at hand.
    #[tune(2, 3, 4)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for SwigluBackwardConfig {
    fn default() -> SwigluBackwardConfig {
        SwigluBackwardConfig {
            group: 128,
            input_group: 128,
            ue8m0: true,
            layout: ScaleLayout::RowMajor,
            clamp: true,
            bm: 8,
            stages: 4,
            threads: 128,
        }
    }
}

/// For `x` = [g | h] = codes * `x_sf` [m, 2 inner], `dy` [m, inner], the gradient of the weighted activation, and row weights
/// `w = weights[pos_to_token_topk]` (0 where that is negative), with `s = 1 / (1 + exp(-g))`:
/// `act = g / (1 + exp(-g)) * h * w`; `t = dy * w * s`, `dg = t * h * fma(g, 1 - s, 1)`, `dh = t * g`;
/// `dweight = sum dy * silu(g) h`. Clamped inputs are used at the limit and get no gradient.
///
/// `act` and `dx` are rounded to bf16; `dx_codes` and `dx_sf` are the f32 gradient cast per token.
#[kernel(static_dims(two_inner, inner))]
pub fn swiglu_backward_and_per_token_cast<Q: Code>(
    t: T,
    #[dims(m, two_inner)] x: &Tensor<f8e4m3, 2>,
    #[dims(m, x_groups)] x_sf: &Tensor<f32, 2>,
    #[dims(m, inner)] dy: &Tensor<bf16, 2>,
    #[dims(m)] pos_to_token_topk: &Tensor<i32, 1>,
    #[dims(tokens, k)] weights: &Tensor<f32, 2>,
    #[dims(m, inner)] act: &mut Tensor<bf16, 2>,
    #[dims(m, two_inner)] dx: &mut Tensor<bf16, 2>,
    #[dims(m, two_inner)] dx_codes: &mut Tensor<Q, 2>,
    #[dims(sf_rows, sf_cols)] dx_sf: &mut Tensor<f32, 2>,
    #[dims(m)] dweight: &mut Tensor<f32, 1>,
    limit: Expr<f32>,
    #[comptime] cfg: SwigluBackwardConfig,
) {
    let SwigluBackwardConfig { group, bm, .. } = cfg;
    let (m, inner) = (x.dim(0), act.static_dim(1));
    let [b] = t.grid([m.ceil_div(bm)], cfg.threads);
    let row = b * bm;
    let shape = [bm, group];
    let (g, h, grad) = (t.fragment::<f32, 2>(shape), t.fragment::<f32, 2>(shape), t.fragment::<f32, 2>(shape));
    let (dg, dh, products) = (t.fragment::<f32, 2>(shape), t.fragment::<f32, 2>(shape), t.fragment::<f32, 2>(shape));
    let (weight, total) = (t.fragment::<f32, 1>([bm]), t.fragment::<f32, 1>([bm]));
    let (g_sf, h_sf) = (t.fragment::<f32, 1>([bm]), t.fragment::<f32, 1>([bm]));
    // All at once, so that no step waits for them.
    let x_factors = t.shared::<f32, 2>([bm, (2 * inner).div_ceil(cfg.input_group)]);
    t.copy(x_sf.at((row, 0)), x_factors);
    let amax = PerGroup::new(t, Sharing::Row, shape);
    t.clear(products);
    for i in t.parallel(bm) {
        let at = pos_to_token_topk[row + i].to_index();
        weight[i] = select(at >= 0, weights[(at / weights.dim(1), at % weights.dim(1))], 0.0);
    }
    let (g_tile, h_tile) = (t.shared::<f8e4m3, 2>(shape), t.shared::<f8e4m3, 2>(shape));
    let dy_tile = t.shared::<bf16, 2>(shape);
    for step in t.pipelined(inner / group, cfg.stages) {
        let col = step * group;
        t.copy(x.at((row, col)), g_tile);
        t.copy(x.at((row, col + inner)), h_tile);
        t.copy(dy.at((row, col)), dy_tile);
        t.cast(g_tile, g);
        t.cast(h_tile, h);
        t.cast(dy_tile, grad);
        for i in t.parallel(bm) {
            g_sf[i] = x_factors[(i, col / cfg.input_group)];
            h_sf[i] = x_factors[(i, (col + inner) / cfg.input_group)];
        }
        for (i, j) in t.parallel((bm, group)) {
            let limit = cfg.clamp.then_some(limit);
            let gradient = Gradient::of(g[(i, j)] * g_sf[i], h[(i, j)] * h_sf[i], grad[(i, j)] * weight[i], limit);
            dg[(i, j)] = gradient.of_gate;
            dh[(i, j)] = gradient.of_up;
            // What is left of the input: the weighted activation.
            h[(i, j)] = gradient.activation * weight[i];
            products[(i, j)] = grad[(i, j)].mul_add(gradient.activation, products[(i, j)]);
        }
        t.cast(h, act.at((row, col)));
        for (half, gradient) in [dg, dh].into_iter().enumerate() {
            let col = col + half * inner;
            t.cast(gradient, dx.at((row, col)));
            amax.clear(t);
            amax.absmax_into(t, gradient);
            let s = scales::<Q>(t, amax, lit(Q::AMAX_FLOOR), Scaling::new(cfg.ue8m0, false));
            let place = Place { row, col, group_row: b, group_col: col / group, rows: m };
            store_scales(t, s.factor, dx_sf, cfg.layout, place);
            divide(t, gradient, &s);
            t.cast(gradient, dx_codes.at((row, col)));
        }
    }
    t.reduce_sum(products, total, 1);
    t.copy(total, dweight.at(row));
}

/// The library's entry.
pub struct Entry;

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Backward {
    rows: usize,
    inner: usize,
    limit: f32,
    cfg: SwigluBackwardConfig,
}

impl Backward {
    fn case(self) -> Case {
        let Backward { rows, inner, limit, cfg } = self;
        let mut name = format!("m={rows} i={inner} group={}", cfg.group);
        if cfg.clamp {
            name.push_str(&format!(" clamp={limit}"));
        }
        for (on, word) in [(!cfg.ue8m0, " f32-scales"), (cfg.layout == ScaleLayout::ColumnMajor, " column-major")] {
            if on {
                name.push_str(word);
            }
        }
        Case::new(name, cfg, move |cfg| Backward { cfg, ..self }.problem())
    }

    fn problem(self) -> Result<Problem, ProblemError> {
        let Backward { rows, inner, limit, cfg } = self;
        let mut inputs = Inputs::new(16);
        let x = Value::Tensor(inputs.normal(DType::F32, &[rows, 2 * inner], 4.0)?).f32s();
        let input_spec = CastSpec::per_token(quant::CodeFormat::E4m3, cfg.input_group, ScaleFormat::F32);
        let q = quant::cast(&x, rows, 2 * inner, &input_spec);
        let x = q.dequantize();
        let (codes, x_sf) = quantized(&q)?;
        let (pairs, _, weights) = rows_in_expert_order(&mut inputs, rows)?;
        let groups = 2 * inner / cfg.group;
        let args = vec![
            Value::Tensor(codes),
            Value::Tensor(x_sf),
            Value::Tensor(inputs.normal(DType::BF16, &[rows, inner], 1.0)?),
            Value::Tensor(DynTensor::from_slice::<i32>(&[rows], &pairs)?),
            Value::Tensor(weights),
            Value::Tensor(output(DType::BF16, &[rows, inner])?),
            Value::Tensor(output(DType::BF16, &[rows, 2 * inner])?),
            Value::Tensor(output(DType::F8E4M3, &[rows, 2 * inner])?),
            Value::Tensor(output(DType::F32, &sf_shape(rows, groups, cfg.layout))?),
            Value::Tensor(output(DType::F32, &[rows])?),
            Value::Scalar(Const::f32(limit)),
        ];
        let work = Work::of(&args);
        let scale = if cfg.ue8m0 { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
        let spec = CastSpec::per_token(format(DType::F8E4M3), cfg.group, scale);
        let verify = move |args: &[Value]| {
            let (dy, weights) = (args[2].f32s(), args[4].f32s());
            let row_weight = row_weights(&pairs, &weights);
            let clamp = cfg.clamp.then_some(limit);
            let problem = reference::SwigluBackward { x: &x, dy: &dy, rows, inner, clamp, row_weight: &row_weight };
            let want = problem.backward();
            let q = quant::cast(&want.dx, rows, 2 * inner, &spec);
            let scales = match cfg.layout {
                ScaleLayout::ColumnMajor => {
                    let stride = quant::tma_aligned_rows(rows);
                    let columns = args[8].f32s();
                    (0..rows * groups).map(|i| columns[i % groups * stride + i / groups]).collect()
                }
                ScaleLayout::RowMajor | ScaleLayout::Packed => args[8].f32s(),
            };
            let mut out = vec![
                Comparison::exact_f32("act", &args[5].f32s(), &codec::bf16_round_all(&want.weighted)),
                Comparison::exact_f32("dx", &args[6].f32s(), &codec::bf16_round_all(&want.dx)),
                compare_codes("dx_codes", &args[7], &q.codes, q.format),
                Comparison::exact_f32("dx_sf", &scales, &q.scales),
            ];
            // Terms of both signs cancel: relative to their size, not to the sum's.
            let verdict = compare(&args[9].f32s(), &want.dweight, Tolerance::AbsPlusRel { abs: 1e-4, rel: 1e-4 });
            out.push(Comparison { output: "dweight", verdict });
            out
        };
        let kernel = Box::new(SwigluBackwardAndPerTokenCast::<f8e4m3>::new(cfg));
        Ok(Problem { kernel, args, work, verify: Box::new(verify) })
    }
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "swiglu_backward_and_per_token_cast",
            family: Family::Quant,
            summary: "gradient of the clamped, weighted SwiGLU, cast per token",
            equation: "dg = dy w s h (1 + g (1 - s)), dh = dy w s g, s = sigmoid(g), zero where clamped; dw = sum dy silu(g) h",
            tolerance: "exact; dweight abs 1e-4 + rel 1e-4",
            source: "V4 specification 3.3, 4.3; TileKernels swiglu_backward_and_per_token_cast",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(SwigluBackwardConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = apply(SwigluBackwardConfig::default(), settings)?;
        Ok(Box::new(SwigluBackwardAndPerTokenCast::<f8e4m3>::new(cfg)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = SwigluBackwardConfig::default();
        let case = |rows, inner, limit, cfg| Backward { rows, inner, limit, cfg }.case();
        match scale {
            Scale::Small => {
                let small = SwigluBackwardConfig { group: 32, input_group: 64, bm: 4, ..cfg };
                let columns = SwigluBackwardConfig { layout: ScaleLayout::ColumnMajor, ..small };
                vec![
                    case(0, 64, 10.0, small),
                    case(1, 64, 10.0, small),
                    case(13, 192, 10.0, small),
                    case(13, 128, 0.5, columns),
                    case(7, 256, 10.0, SwigluBackwardConfig { clamp: false, ue8m0: false, bm: 4, ..cfg }),
                ]
            }
            Scale::Representative => vec![case(4096, 3072, 10.0, cfg)],
            Scale::Full => vec![
                case(24576, 3072, 10.0, cfg),
                case(4001, 2048, 10.0, cfg),
                case(4096, 2048, 0.5, SwigluBackwardConfig { ue8m0: false, ..cfg }),
            ],
        }
    }
}
