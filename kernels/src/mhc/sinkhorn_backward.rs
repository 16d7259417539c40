//! The gradient of the Sinkhorn normalisation.

use super::problem::{EPS, Entry, F32, Shape, check, problem, scalar, tokens};
use super::sinkhorn::SinkhornConfig;
use super::token::{Axis, Matrix, State};
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use zellige::prelude::*;
use zellige_ir::DType;

/// From the gradient of the matrix to that of its logits. The `2 rounds - 1` steps are computed anew, every matrix on the way
/// kept, and undone last to first by `dx = (dy - sum dy y) / (sum x + eps)`; then the softmax.
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
    // The matrix before each step and the last one, tokens side by side. Columns come first and last: after a step of columns
    // the number is odd.
    let states = t.shared::<f32, 3>([2 * rounds, n * n, cfg.bt]);
    for i in t.parallel(cfg.bt) {
        let token = b * cfg.bt + i;
        let keep = |step: Idx, c: &Matrix| c.for_each(|j, k, c| states.store((step, j * n + k, i), c));
        let kept = |step: Idx| Matrix::from_fn(n, |j, k| states[(step, j * n + k, i)]);
        let softmax = Matrix::from_fn(n, |j, k| logits[(token, j, k)]).softmax();
        let start = softmax.plus(eps);
        keep(lit(0), &start);
        let columns = start.normalized(Axis::Column, eps);
        keep(lit(1), &columns);
        let c = State::new(t, &columns);
        for round in t.serial(rounds - 1) {
            let rows = c.get().normalized(Axis::Row, eps);
            keep(round * 2 + 2, &rows);
            let columns = rows.normalized(Axis::Column, eps);
            keep(round * 2 + 3, &columns);
            c.set(&columns);
        }
        let d = State::new(t, &Matrix::from_fn(n, |j, k| dcomb[(token, j, k)]));
        for round in t.serial(rounds - 1) {
            let after = lit::<index>(2 * rounds - 1) - round * 2;
            let (before, between) = (kept(after - 2), kept(after - 1));
            let rows = d.get().normalized_backward(&between, &kept(after), Axis::Column, eps);
            d.set(&rows.normalized_backward(&before, &between, Axis::Row, eps));
        }
        let d = d.get().normalized_backward(&kept(lit(0)), &kept(lit(1)), Axis::Column, eps);
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
