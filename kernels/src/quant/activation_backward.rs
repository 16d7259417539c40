//! The gradient of the clamped, weighted SwiGLU: by itself, and element by element for the kernel that casts it.

use super::activation::rows_in_expert_order;
use super::silu::Logistic;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::activation::row_weights;
use crate::reference::activation_backward as reference;
use crate::reference::codec;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// Chunks of columns that are read ahead, and the one at hand.
const STAGES: usize = 3;

/// The gradient of one element.
pub(super) struct Gradient {
    /// `silu(g) h` of the clamped inputs, without the row's weight.
    pub activation: Expr<f32>,
    pub of_gate: Expr<f32>,
    pub of_up: Expr<f32>,
}

impl Gradient {
    /// From inputs g and h, and the gradient of the weighted activation times the row's weight; clamped inputs get none.
    #[track_caller]
    pub fn of(g: Expr<f32>, h: Expr<f32>, weighted: Expr<f32>, limit: Option<Expr<f32>>) -> Gradient {
        let (gate, up) = limit.map_or((g, h), |limit| (g.min(limit), h.clamp(-limit, limit)));
        let logistic = Logistic::of(gate);
        let sigmoid = logistic.value();
        let activation = logistic.times(gate) * up;
        let scaled = weighted * sigmoid;
        let of_gate = scaled * up * gate.mul_add(lit::<f32>(1.0) - sigmoid, 1.0);
        let of_up = scaled * gate;
        let Some(limit) = limit else { return Gradient { activation, of_gate, of_up } };
        let beyond = cmp::gt(&h.abs(), &limit);
        Gradient { activation, of_gate: select(cmp::gt(&g, &limit), 0.0, of_gate), of_up: select(beyond, 0.0, of_up) }
    }
}

/// Config of [`swiglu_backward`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct ActivationBackwardConfig {
    /// Clamp as in the forward.
    pub clamp: bool,
    /// Rows have weights; otherwise `pos_to_token_topk` and `weights` are not read and may have any extents.
    pub weighted: bool,
    /// Rows of a block.
    #[tune(1, 2, 4)]
    pub bm: usize,
    /// Columns of a step.
    #[tune(256, 512, 1024)]
    pub bn: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for ActivationBackwardConfig {
    fn default() -> ActivationBackwardConfig {
        ActivationBackwardConfig { clamp: true, weighted: true, bm: 1, bn: 1024, threads: 128 }
    }
}

/// The gradient of [`swiglu`](super::activation::swiglu): for `x` = [g | h] [m, 2 inner], `dy` [m, inner], the gradient of the
/// weighted activation, and row weights `w = weights[pos_to_token_topk]` (0 where that is negative), with
/// `s = 1 / (1 + exp(-g))`: `t = dy w s`, `dg = t h fma(g, 1 - s, 1)`, `dh = t g`, `dweight = sum dy silu(g) h`. Clamped inputs are used at
/// the limit and get no gradient. `act` is the forward's result again, which the gradient of the next matrix needs.
///
/// `act` and `dx` are rounded to bf16 once; `dweight` is summed in f64 and rounded once.
#[kernel(static_dims(two_inner, inner))]
pub fn swiglu_backward(
    t: T,
    #[dims(m, two_inner)] x: &Tensor<bf16, 2>,
    #[dims(m, inner)] dy: &Tensor<bf16, 2>,
    #[dims(pairs_m)] pos_to_token_topk: &Tensor<i32, 1>,
    #[dims(tokens, k)] weights: &Tensor<f32, 2>,
    #[dims(m, inner)] act: &mut Tensor<bf16, 2>,
    #[dims(m, two_inner)] dx: &mut Tensor<bf16, 2>,
    #[dims(m)] dweight: &mut Tensor<f32, 1>,
    limit: Expr<f32>,
    #[comptime] cfg: ActivationBackwardConfig,
) {
    let ActivationBackwardConfig { bm, bn, .. } = cfg;
    let (m, inner) = (x.dim(0), act.static_dim(1));
    t.assert(x.dim(1) == act.dim(1) * 2, "x has not twice as many columns as act");
    let [b] = t.grid([m.ceil_div(bm)], cfg.threads);
    let row = b * bm;
    let weight = t.fragment::<f32, 1>([bm]);
    for i in t.parallel(bm) {
        weight[i] = if cfg.weighted {
            let at = pos_to_token_topk[row + i].to_index();
            select(at >= 0, weights[(at / weights.dim(1), at % weights.dim(1))], 0.0)
        } else {
            lit(1.0)
        };
    }
    // Terms of both signs cancel, so that thousands of them need more than f32.
    let (products, total) = (t.fragment::<f64, 2>([bm, bn]), t.fragment::<f64, 1>([bm]));
    t.clear(products);
    let tile = || t.shared::<bf16, 2>([bm, bn]);
    let (g_tile, h_tile, dy_tile) = (tile(), tile(), tile());
    for chunk in t.pipelined(inner.div_ceil(bn), STAGES) {
        t.copy(x.at((row, chunk * bn)), g_tile);
        t.copy(x.at((row, chunk * bn + inner)), h_tile);
        t.copy(dy.at((row, chunk * bn)), dy_tile);
        for (i, j) in t.parallel((bm, bn)) {
            let (p, c) = (row + i, chunk * bn + j);
            let [g, h, grad] = [g_tile, h_tile, dy_tile].map(|tile| tile[(i, j)].cast::<f32>());
            let gradient = Gradient::of(g, h, grad * weight[i], cfg.clamp.then_some(limit));
            // Columns past the end of the first half belong to the second.
            let inside = if inner.is_multiple_of(bn) { Expr::from(true) } else { c < inner };
            let sum = grad.cast::<f64>().mul_add(gradient.activation.cast::<f64>(), products[(i, j)]);
            products[(i, j)] = select(inside, sum, products[(i, j)]);
            if inside {
                act[(p, c)] = (gradient.activation * weight[i]).cast();
                dx[(p, c)] = gradient.of_gate.cast();
                dx[(p, c + inner)] = gradient.of_up.cast();
            }
        }
    }
    t.reduce_sum(products, total, 1);
    t.cast(total, dweight.at(row));
}

/// The library's entry.
pub struct Entry;

fn problem(rows: usize, inner: usize, limit: f32, cfg: ActivationBackwardConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(28);
    let (pairs, _, weights) = rows_in_expert_order(&mut inputs, rows)?;
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[rows, 2 * inner], 4.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[rows, inner], 1.0)?),
        Value::Tensor(DynTensor::from_slice::<i32>(&[rows], &pairs)?),
        Value::Tensor(weights),
        Value::Tensor(output(DType::BF16, &[rows, inner])?),
        Value::Tensor(output(DType::BF16, &[rows, 2 * inner])?),
        Value::Tensor(output(DType::F32, &[rows])?),
        Value::Scalar(Const::f32(limit)),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let [x, dy, weights, act, dx, dweight] = [0, 1, 3, 4, 5, 6].map(|i| args[i].f32s());
        let row_weight = if cfg.weighted { row_weights(&pairs, &weights) } else { vec![1.0; rows] };
        let clamp = cfg.clamp.then_some(limit);
        let problem = reference::SwigluBackward { x: &x, dy: &dy, rows, inner, clamp, row_weight: &row_weight };
        let want = problem.backward();
        let tolerance = Tolerance::AbsPlusRel { abs: 1e-6, rel: 1e-6 };
        vec![
            Comparison::exact_f32("act", &act, &codec::bf16_round_all(&want.weighted)),
            Comparison::exact_f32("dx", &dx, &codec::bf16_round_all(&want.dx)),
            Comparison { output: "dweight", verdict: compare(&dweight, &want.dweight, tolerance) },
        ]
    };
    Ok(Problem { kernel: Box::new(SwigluBackward::new(cfg)), args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "swiglu_backward",
            family: Family::Quant,
            summary: "gradient of the clamped, weighted SwiGLU, not cast",
            equation: "dg = dy w s h (1 + g (1 - s)), dh = dy w s g, s = sigmoid(g), zero where clamped; dw = sum dy silu(g) h",
            tolerance: "exact; dweight abs 1e-6 + rel 1e-6",
            source: "V4 specification 3.3, differentiated",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ActivationBackwardConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(SwigluBackward::new(apply(ActivationBackwardConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let cfg = ActivationBackwardConfig::default();
        let case = |rows: usize, inner: usize, limit: f32, cfg: ActivationBackwardConfig| {
            let mut name = format!("m={rows} i={inner}");
            if cfg.clamp {
                name.push_str(&format!(" clamp={limit}"));
            }
            if cfg.weighted {
                name.push_str(" weighted");
            }
            Case::new(name, cfg, move |cfg| problem(rows, inner, limit, cfg))
        };
        match scale {
            Scale::Small => {
                let small = ActivationBackwardConfig { bm: 2, bn: 64, threads: 32, ..cfg };
                vec![
                    case(0, 64, 10.0, small),
                    case(1, 64, 10.0, small),
                    case(13, 150, 0.5, small),
                    case(7, 256, 10.0, ActivationBackwardConfig { clamp: false, weighted: false, ..small }),
                ]
            }
            Scale::Representative => vec![case(8192, 3072, 10.0, cfg)],
            Scale::Full => vec![case(24576, 3072, 10.0, cfg), case(4001, 2048, 0.5, cfg)],
        }
    }
}
