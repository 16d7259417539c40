//! The first state: every stream a copy of the embedding.

use super::apply::RowsConfig;
use super::problem::{Entry, Shape, check, problem, tokens};
use crate::inputs::{Inputs, output};
use crate::library::{Family, Info, Problem, ProblemError, Value};
use crate::reference::metrics::Tolerance;
use zellige::prelude::*;
use zellige_ir::DType;

/// `Y[t, j] = x[t]` for every stream j.
#[kernel(static_dims(n, d))]
pub fn mhc_expand(
    t: T,
    #[dims(tokens, d)] x: &Tensor<bf16, 2>,
    #[dims(tokens, n, d)] y: &mut Tensor<bf16, 3>,
    #[comptime] cfg: RowsConfig,
) {
    let [first, column] = cfg.grid(t, x.dim(0), x.static_dim(1));
    for i in t.serial(cfg.bt) {
        for c in t.parallel(cfg.bd) {
            let (token, at) = (first + i, column + c);
            let v = x[(token, at)];
            for j in 0..y.static_dim(1) {
                y[(token, j, at)] = v;
            }
        }
    }
}

fn expand_problem(s: Shape, cfg: RowsConfig) -> Result<Problem, ProblemError> {
    let args = vec![
        Value::Tensor(Inputs::new(7).normal(DType::BF16, &[s.tokens, s.dim], 1.0)?),
        Value::Tensor(output(DType::BF16, &[s.tokens, s.streams, s.dim])?),
    ];
    Ok(problem(MhcExpand::new(cfg), args, move |args| {
        let sample = s.sample();
        let want = s.mhc().expand(&tokens(&args[0], &sample));
        vec![check("y", &tokens(&args[1], &sample), &want, Tolerance::Exact)]
    }))
}

/// The library's entry.
pub const ENTRY: Entry<RowsConfig> = Entry {
    info: Info {
        name: "mhc_expand",
        family: Family::Mhc,
        summary: "embedding copied into every stream",
        equation: "Y[t,j,c] = x[t,c]",
        tolerance: "exact",
        source: "V4 specification 2.1, 2.2 (expand)",
    },
    config: RowsConfig::DEFAULT,
    small: &[RowsConfig::SMALL],
    shapes: Shape::of,
    kernel: |cfg| Box::new(MhcExpand::new(cfg)),
    problem: expand_problem,
};
