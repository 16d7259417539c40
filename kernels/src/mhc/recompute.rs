//! The states and sub-layer inputs of many layers, recomputed from the first state.

use super::apply::RowsConfig;
use super::problem::{Shape, check, problem, tokens};
use super::token::{next_state, weighted_sum};
use crate::inputs::{Inputs, output};
use crate::library::{Case, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, apply};
use crate::reference::metrics::Tolerance;
use crate::reference::mhc_backward::RecomputeLayer;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// For every layer l the sub-layer's input `u[l] = sum_j pre[l]_j X_j`, then `X = post(F[l], X)`, kept in `states[l]`; both
/// rounded to bf16 as they are made, the rounded state feeding the next layer: the bits of
/// [`mhc_apply`](super::apply::mhc_apply) and [`mhc_post`](super::post::mhc_post) in turn. There are as many post steps as `f`
/// has layers: all of them, or all but the last. A column of a token never leaves its thread.
#[kernel(static_dims(layers, steps, n, d))]
pub fn mhc_recompute(
    t: T,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(layers, tokens, n)] pre: &Tensor<f32, 3>,
    #[dims(steps, tokens, d)] f: &Tensor<bf16, 3>,
    #[dims(steps, tokens, n)] post: &Tensor<f32, 3>,
    #[dims(steps, tokens, n, n)] comb: &Tensor<f32, 4>,
    #[dims(layers, tokens, d)] u: &mut Tensor<bf16, 3>,
    #[dims(steps, tokens, n, d)] states: &mut Tensor<bf16, 4>,
    #[comptime] cfg: RowsConfig,
) {
    let (layers, steps) = (pre.static_dim(0), f.static_dim(0));
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let [first, column] = cfg.grid(t, x.dim(0), d);
    let state = t.fragment::<f32, 2>([n, cfg.bd]);
    for i in t.serial(cfg.bt) {
        let token = first + i;
        for c in t.parallel(cfg.bd) {
            for j in 0..n {
                state[(j, c)] = x[(token, j, column + c)].cast();
            }
        }
        for l in t.serial(steps) {
            let pre: Vec<_> = (0..n).map(|j| pre[(l, token, j)]).collect();
            let post: Vec<_> = (0..n).map(|k| post[(l, token, k)]).collect();
            let comb: Vec<_> = (0..n * n).map(|e| comb[(l, token, e / n, e % n)]).collect();
            for c in t.parallel(cfg.bd) {
                let at = column + c;
                let streams: Vec<_> = (0..n).map(|j| state[(j, c)]).collect();
                u[(l, token, at)] = weighted_sum(&pre, |j| streams[j]).cast();
                let f = f[(l, token, at)].cast();
                for k in 0..n {
                    let next = next_state(post[k], f, |j| comb[j * n + k], &streams).cast::<bf16>();
                    states[(l, token, k, at)] = next;
                    state[(k, c)] = next.cast();
                }
            }
        }
        if layers > steps {
            let pre: Vec<_> = (0..n).map(|j| pre[(steps, token, j)]).collect();
            for c in t.parallel(cfg.bd) {
                u[(steps, token, column + c)] = weighted_sum(&pre, |j| state[(j, c)]).cast();
            }
        }
    }
}

/// The library's entry.
pub struct Entry;

fn recompute_problem(s: Shape, layers: usize, steps: usize, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let (n, d) = (s.streams, s.dim);
    let mut inputs = Inputs::new(23);
    // Columns of C sum to one, so that the states keep their size.
    let share = 1.0 / n as f64;
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, n, d], 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[layers, s.tokens, n], 0.0, 1.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[steps, s.tokens, d], 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[steps, s.tokens, n], 0.0, 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[steps, s.tokens, n, n], 0.0, 2.0 * share)?),
        Value::Tensor(output(DType::BF16, &[layers, s.tokens, d])?),
        Value::Tensor(output(DType::BF16, &[steps, s.tokens, n, d])?),
    ];
    Ok(problem(MhcRecompute::new(cfg), args, move |args| {
        let sample = s.sample();
        let layer = |i: usize, l: usize| match &args[i] {
            Value::Tensor(t) => t.select(0, l).map(|t| tokens(&Value::Tensor(t), &sample)).unwrap_or_default(),
            Value::Scalar(_) => Vec::new(),
        };
        let of = |i: usize, count: usize| -> Vec<Vec<f32>> { (0..count).map(|l| layer(i, l)).collect() };
        let (pre, f, post, comb) = (of(1, layers), of(2, steps), of(3, steps), of(4, steps));
        let layer = |l: usize| RecomputeLayer {
            pre: &pre[l],
            post: (l < steps).then(|| (&f[l][..], &post[l][..], &comb[l][..])),
        };
        let recomputed: Vec<_> = (0..layers).map(layer).collect();
        let (inputs, states) = s.mhc().recompute(&tokens(&args[0], &sample), &recomputed);
        // A value at a tie of bf16 may round the other way, and later layers start from it.
        let tolerance = Tolerance::CalcDiff(1e-6);
        vec![
            check("u", &of(5, layers).concat(), &inputs.concat(), tolerance),
            check("states", &of(6, steps).concat(), &states.concat(), tolerance),
        ]
    }))
}

fn case(s: Shape, layers: usize, steps: usize, cfg: RowsConfig) -> Case {
    Case::new(format!("{s} layers={layers} steps={steps}"), cfg, move |cfg| recompute_problem(s, layers, steps, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "mhc_recompute",
            family: Family::Mhc,
            summary: "states and sub-layer inputs of many layers from the first state",
            equation: "u[l] = bf16(sum_j pre[l]_j X_j);  X = states[l] = bf16(post[l] F[l] + C[l]^T X)",
            tolerance: "the bits of apply and post; against the reference calc_diff < 1e-6",
            source: "V4 specification 2.2 (multilayer_recompute), 2.4",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(RowsConfig::DEFAULT)
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(MhcRecompute::new(apply(RowsConfig::DEFAULT, settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let (v4, small) = (RowsConfig::DEFAULT, RowsConfig::SMALL);
        match scale {
            Scale::Small => vec![
                case(Shape::new(0, 4, 64), 2, 2, small),
                case(Shape::new(5, 4, 40), 1, 1, small),
                case(Shape::new(3, 4, 72), 3, 2, small),
                case(Shape::new(2, 2, 40), 4, 4, small),
                case(Shape::new(3, 8, 20), 2, 1, small),
            ],
            Scale::Representative => vec![case(Shape::new(1024, 4, 7168), 3, 2, v4)],
            Scale::Full => vec![
                case(Shape::new(1024, 4, 4096), 10, 10, v4),
                case(Shape::new(1024, 4, 7168), 3, 2, v4),
                case(Shape::new(4096, 4, 4096), 2, 1, v4),
                case(Shape::new(512, 4, 2560), 2, 2, v4),
            ],
        }
    }
}
