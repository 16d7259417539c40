//! The gradients of mixing the streams into a sub-layer's input.

use super::apply::RowsConfig;
use super::problem::{Entry, Shape, abs, check, check_bf16, problem, tokens};
use crate::dots::Dots;
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value, Work};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// `dX_j += pre_j du`, added in f32 onto the bf16 buffer and rounded once, and `dpre_j = <du, X_j>`. `bd` is the number of
/// columns whose products are summed side by side.
#[kernel(static_dims(n, d))]
pub fn mhc_apply_backward(
    t: T,
    #[dims(tokens, n, d)] x: &Tensor<bf16, 3>,
    #[dims(tokens, n)] pre: &Tensor<f32, 2>,
    #[dims(tokens, d)] du: &Tensor<bf16, 2>,
    #[dims(tokens, n, d)] dx: &mut Tensor<bf16, 3>,
    #[dims(tokens, n)] dpre: &mut Tensor<f32, 2>,
    #[comptime] cfg: RowsConfig,
) {
    let (n, d) = (x.static_dim(1), x.static_dim(2));
    let [b] = t.grid([x.dim(0).ceil_div(cfg.bt)], cfg.threads);
    let dots = Dots::new(t, n, cfg.bd);
    for i in t.serial(cfg.bt) {
        let token = b * cfg.bt + i;
        let pre: Vec<_> = (0..n).map(|j| pre[(token, j)]).collect();
        dots.clear(t);
        for chunk in t.serial(d.div_ceil(cfg.bd)) {
            for c in t.parallel(cfg.bd) {
                let at = chunk * cfg.bd + c;
                let g = du[(token, at)].cast::<f32>();
                // All reads before the first write, which the compiler may not move them over.
                let before: Vec<Expr<f32>> = (0..n).map(|j| dx[(token, j, at)].cast()).collect();
                for j in 0..n {
                    dx[(token, j, at)] = pre[j].mul_add(g, before[j]).cast();
                    dots.add(j, c, g, x[(token, j, at)].cast());
                }
            }
        }
        let sums = dots.sum(t);
        for j in t.parallel(n) {
            dpre[(token, j)] = sums[j];
        }
    }
}

fn apply_backward_problem(s: Shape, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let (n, d) = (s.streams, s.dim);
    let mut inputs = Inputs::new(20);
    let before = inputs.normal(DType::BF16, &[s.tokens, n, d], 1.0)?;
    let args = vec![
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, n, d], 1.0)?),
        Value::Tensor(inputs.uniform(DType::F32, &[s.tokens, n], 0.0, 1.0)?),
        Value::Tensor(inputs.normal(DType::BF16, &[s.tokens, d], 1.0)?),
        Value::Tensor(before.to_owned_tensor()?),
        Value::Tensor(output(DType::F32, &[s.tokens, n])?),
    ];
    let before = Value::Tensor(before);
    let once = problem(MhcApplyBackward::new(cfg), args, move |args| {
        let sample = s.sample();
        let [x, pre, du, dx, dpre] = [0, 1, 2, 3, 4].map(|i| tokens(&args[i], &sample));
        let (add, want) = s.mhc().apply_backward(&x, &pre, &du);
        let before = tokens(&before, &sample);
        let sum = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x + y).collect::<Vec<f32>>();
        let (after, sizes) = (sum(&before, &add), sum(&abs(&before), &abs(&add)));
        let tolerance = Tolerance::AbsPlusRel { abs: 1e-2, rel: 1e-3 };
        vec![check_bf16("dx", &dx, &after, &sizes), check("dpre", &dpre, &want, tolerance)]
    });
    // The gradient is read and written.
    let work = Work { bytes: once.work.bytes + 2.0 * (s.tokens * n * d) as f64, ..once.work };
    Ok(Problem { work, ..once })
}

pub(super) const DEFAULT: RowsConfig = RowsConfig { bt: 1, bd: 2048, threads: 128 };

/// The library's entry.
pub const ENTRY: Entry<RowsConfig> = Entry {
    info: Info {
        name: "mhc_apply_backward",
        family: Family::Mhc,
        summary: "gradients of the streams (added) and of pre",
        equation: "dX[t,j,c] = bf16(dX[t,j,c] + pre[t,j] du[t,c]);  dpre[t,j] = sum_c du[t,c] X[t,j,c]",
        tolerance: "dX bf16 of a value within 2^-16 of its terms; dpre abs 1e-2 + rel 1e-3",
        source: "V4 specification 2.2 (pre_apply_mix bwd), 2.3",
    },
    config: DEFAULT,
    small: &[RowsConfig::SMALL],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcApplyBackward::new(cfg)),
    problem: apply_backward_problem,
};
