//! The gradient of the clamped, weighted SwiGLU, with the gradient of its input cast per token.

use super::activation::rows_in_expert_order;
use super::activation_backward::Gradient;
use super::problem::{compare_codes, format, quantized, sf_shape};
use super::scale::{Code, PerGroup, ScaleLayout, Scaling, Sharing, divide, scales};
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
#[tune(constraint = group > 1 && group.is_multiple_of(2) && input_group > 0 && input_group.is_multiple_of(group))]
#[tune(constraint = layout != ScaleLayout::Packed)]
#[tune(constraint = bn.is_multiple_of(group))]
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
    /// Columns of a step.
    #[tune(512, 1024)]
    pub bn: usize,
    /// Steps that are read ahead, and the one at hand.
    #[tune(2, 3, 4)]
    pub stages: usize,
    #[tune(64, 128, 256)]
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
            bn: 1024,
            stages: 2,
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
    let SwigluBackwardConfig { group, bn, .. } = cfg;
    let (m, inner) = (x.dim(0), act.static_dim(1));
    let whole = inner.is_multiple_of(group);
    t.assert(whole.into(), "swiglu_backward_and_per_token_cast: half a row is not a whole number of groups");
    // A row at a time, in long runs. Columns of scale factors have padding, which is zero.
    let [row] = t.grid([if cfg.layout == ScaleLayout::ColumnMajor { m.ceil_div(4) * 4 } else { m }], cfg.threads);
    let shape = [bn / group, group];
    let tile = || t.fragment::<f32, 2>(shape);
    let (weighted, gate, up, products) = (tile(), tile(), tile(), tile());
    let per_group = || t.fragment::<f32, 1>([bn / group]);
    let (g_sf, h_sf, g_sf_next, h_sf_next) = (per_group(), per_group(), per_group(), per_group());
    let (of_gate, of_up) = (PerGroup::new(t, Sharing::Row, shape), PerGroup::new(t, Sharing::Row, shape));
    let weight = t.fragment::<f32, 0>([]);
    let at = pos_to_token_topk[row].to_index();
    weight[[]] = select(at >= 0, weights[(at / weights.dim(1), at % weights.dim(1))], 0.0);
    // Factors of the next step are on their way while this one is worked on.
    let read_factors = |step: Idx| {
        for q in t.parallel(bn / group) {
            let col = step * bn + q * group;
            g_sf_next[q] = x_sf[(row, col / cfg.input_group)];
            h_sf_next[q] = x_sf[(row, (col + inner) / cfg.input_group)];
        }
    };
    read_factors(0.into());
    t.clear(products);
    let (g_tile, h_tile) = (t.shared::<f8e4m3, 2>([1, bn]), t.shared::<f8e4m3, 2>([1, bn]));
    let dy_tile = t.shared::<bf16, 2>([1, bn]);
    for step in t.pipelined(inner.div_ceil(bn), cfg.stages) {
        let col = step * bn;
        t.copy(x.at((row, col)), g_tile);
        t.copy(x.at((row, col + inner)), h_tile);
        t.copy(dy.at((row, col)), dy_tile);
        t.copy(g_sf_next, g_sf);
        t.copy(h_sf_next, h_sf);
        read_factors(step + 1);
        // Columns past the end of the first half belong to the second.
        let inside = |c: Idx| if inner.is_multiple_of(bn) { Expr::from(true) } else { c < inner };
        for (q, j) in t.parallel((bn / group, group)) {
            let (i, c) = (q * group + j, col + q * group + j);
            let [g, h] = [(g_tile, g_sf), (h_tile, h_sf)].map(|(codes, sf)| codes[(0, i)].cast::<f32>() * sf[q]);
            let grad = dy_tile[(0, i)].cast::<f32>();
            let gradient = Gradient::of(g, h, grad * weight[[]], cfg.clamp.then_some(limit));
            let sum = grad.mul_add(gradient.activation, products[(q, j)]);
            products[(q, j)] = select(inside(c), sum, products[(q, j)]);
            weighted[(q, j)] = gradient.activation * weight[[]];
            gate[(q, j)] = gradient.of_gate;
            up[(q, j)] = gradient.of_up;
            if inside(c) {
                act[(row, c)] = weighted[(q, j)].cast();
                dx[(row, c)] = gate[(q, j)].cast();
                dx[(row, c + inner)] = up[(q, j)].cast();
            }
        }
        let scales = [(gate, of_gate), (up, of_up)].map(|(gradient, amax)| {
            amax.absmax(t, gradient);
            scales::<Q>(t, amax, lit(Q::AMAX_FLOOR), Scaling::new(cfg.ue8m0, false))
        });
        for q in t.parallel(bn / group) {
            if inside(col + q * group) {
                for (half, scales) in scales.iter().enumerate() {
                    let (factor, g) = (scales.factor.at(q, q), (col + half * inner) / group + q);
                    match cfg.layout {
                        ScaleLayout::ColumnMajor => dx_sf[(g, row)] = select(row < m, factor, 0.0),
                        ScaleLayout::RowMajor | ScaleLayout::Packed => dx_sf[(row, g)] = factor,
                    }
                }
            }
        }
        divide(t, gate, &scales[0]);
        divide(t, up, &scales[1]);
        for (q, j) in t.parallel((bn / group, group)) {
            let c = col + q * group + j;
            if inside(c) {
                dx_codes[(row, c)] = gate[(q, j)].cast();
                dx_codes[(row, c + inner)] = up[(q, j)].cast();
            }
        }
    }
    // Terms of both signs cancel: the sums of the columns are added up in f64.
    let (sums, of_groups, total) =
        (t.fragment::<f64, 2>(shape), t.fragment::<f64, 1>([bn / group]), t.fragment::<f64, 0>([]));
    t.cast(products, sums);
    t.reduce_sum(sums, of_groups, 1);
    t.reduce_sum(of_groups, total, 0);
    dweight[row] = total[[]].cast::<f32>();
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
        if !inner.is_multiple_of(cfg.group) {
            return Err(ProblemError::Unsupported(format!(
                "half a row of {inner} is not a whole number of groups of {}",
                cfg.group
            )));
        }
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
                let small = SwigluBackwardConfig { group: 32, input_group: 64, bn: 128, ..cfg };
                let columns = SwigluBackwardConfig { layout: ScaleLayout::ColumnMajor, ..small };
                vec![
                    case(0, 64, 10.0, small),
                    case(1, 64, 10.0, small),
                    case(13, 192, 10.0, small),
                    case(13, 128, 0.5, columns),
                    case(7, 256, 10.0, SwigluBackwardConfig { clamp: false, ue8m0: false, ..cfg }),
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
