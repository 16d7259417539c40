//! The gradient of the Sinkhorn normalisation.

use super::problem::{EPS, Entry, F32, Shape, check, problem, scalar, tokens};
use super::sinkhorn::SinkhornConfig;
use super::token::{Axis, Matrix, State, reciprocal};
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use zellige::prelude::*;
use zellige_ir::DType;

/// From the gradient of the matrix to that of its logits. The `2 rounds - 1` steps are computed anew, the matrix after each and
/// the reciprocals of what it divides by are kept, and undone last to first by `dx = (dy - sum dy y) / (sum x + eps)`; then the
/// softmax.
#[kernel(static_dims(n))]
pub fn mhc_sinkhorn_backward(
    t: T,
    #[dims(tokens, n, n)] logits: &Tensor<f32, 3>,
    #[dims(tokens, n, n)] dcomb: &Tensor<f32, 3>,
    #[dims(tokens, n, n)] dlogits: &mut Tensor<f32, 3>,
    eps: Expr<f32>,
    #[comptime] cfg: SinkhornConfig,
) {
    let (n, rounds) = (logits.static_dim(1), cfg.rounds);
    let [b] = t.grid([logits.dim(0).ceil_div(cfg.bt)], cfg.threads);
    // Step by step, tokens side by side. Columns come first and last: after a step of columns the number is even.
    let states = t.shared::<f32, 3>([2 * rounds - 1, n * n, cfg.bt]);
    let reciprocals = t.shared::<f32, 3>([2 * rounds - 1, n, cfg.bt]);
    for i in t.parallel(cfg.bt) {
        let token = b * cfg.bt + i;
        let step = |number: Idx, x: &Matrix, axis: Axis| {
            let divisors = x.divisors(axis, eps);
            let y = x.divided(axis, &divisors);
            divisors.iter().enumerate().for_each(|(l, d)| reciprocals.store((number, l, i), reciprocal(*d)));
            y.for_each(|j, k, c| states.store((number, j * n + k, i), c));
            y
        };
        let undone = |number: Idx, d: &Matrix, axis: Axis| {
            let y = Matrix::from_fn(n, |j, k| states[(number, j * n + k, i)]);
            let reciprocals: Vec<_> = (0..n).map(|l| reciprocals[(number, l, i)]).collect();
            d.normalized_backward(&y, &reciprocals, axis)
        };
        let softmax = Matrix::from_fn(n, |j, k| logits[(token, j, k)]).softmax();
        let c = State::new(t, &step(lit(0), &softmax.plus(eps), Axis::Column));
        for round in t.serial(rounds - 1) {
            let rows = step(round * 2 + 1, &c.get(), Axis::Row);
            c.set(&step(round * 2 + 2, &rows, Axis::Column));
        }
        let d = State::new(t, &Matrix::from_fn(n, |j, k| dcomb[(token, j, k)]));
        for round in t.serial(rounds - 1) {
            let last = lit::<index>(2 * rounds - 2) - round * 2;
            let rows = undone(last, &d.get(), Axis::Column);
            d.set(&undone(last - 1, &rows, Axis::Row));
        }
        let d = undone(lit(0), &d.get(), Axis::Column);
        d.softmax_backward(&softmax).for_each(|j, k, d| dlogits.store((token, j, k), d));
    }
}

fn sinkhorn_backward_problem(s: Shape, cfg: SinkhornConfig) -> Result<Problem, ProblemError> {
    let shape = [s.tokens, s.streams, s.streams];
    let mut inputs = Inputs::new(19);
    let args = vec![
        Value::Tensor(inputs.normal(DType::F32, &shape, 2.0)?),
        Value::Tensor(inputs.normal(DType::F32, &shape, 1.0)?),
        Value::Tensor(output(DType::F32, &shape)?),
        scalar(EPS),
    ];
    Ok(problem(MhcSinkhornBackward::new(cfg), args, move |args| {
        let mhc = crate::reference::mhc::Mhc { rounds: cfg.rounds, ..s.mhc() };
        let sample = s.sample();
        let want = mhc.sinkhorn_backward(&tokens(&args[0], &sample), &tokens(&args[1], &sample));
        vec![check("dlogits", &tokens(&args[2], &sample), &want, F32)]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<SinkhornConfig> = Entry {
    info: Info {
        name: "mhc_sinkhorn_backward",
        family: Family::Mhc,
        summary: "gradient of the Sinkhorn normalisation, its steps recomputed and undone",
        equation: "step y = x / (S + eps), S = sum x:  dx = (dy - sum dy y) / (S + eps)",
        tolerance: "abs 1e-5 + rel 1.3e-6",
        source: "V4 specification 2.2 (sinkhorn bwd), 2.3",
    },
    config: SinkhornConfig { bt: 32, threads: 32, rounds: 20 },
    small: &[SinkhornConfig { bt: 8, threads: 32, rounds: 20 }, SinkhornConfig { bt: 4, threads: 32, rounds: 1 }],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcSinkhornBackward::new(cfg)),
    problem: sinkhorn_backward_problem,
};
