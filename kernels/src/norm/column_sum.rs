//! The second stage of a deterministic reduction: adds the parts that the blocks of a first kernel left.

use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Tile sizes of [`column_sum`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct ColumnSumConfig {
    /// Rows of a step.
    #[tune(16, 32, 64, 128)]
    pub rows: usize,
    /// Columns of a block.
    #[tune(32, 64, 128)]
    pub cols: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for ColumnSumConfig {
    fn default() -> ColumnSumConfig {
        ColumnSumConfig { rows: 128, cols: 64, threads: 256 }
    }
}

/// `y[c] = sum_p x[p, c]` in fp32, step by step in ascending order of `p`.
#[kernel(static_dims(dim))]
pub fn column_sum(
    t: T,
    #[dims(parts, dim)] x: &Tensor<f32, 2>,
    #[dims(dim)] y: &mut Tensor<f32, 1>,
    #[comptime] cfg: ColumnSumConfig,
) {
    let ColumnSumConfig { rows, cols, threads } = cfg;
    let [b] = t.grid([x.dim(1).ceil_div(cols)], threads);
    let (tile, sum) = (t.fragment::<f32, 2>([rows, cols]), t.fragment::<f32, 1>([cols]));
    t.clear(sum);
    for i in t.serial(x.dim(0).ceil_div(rows)) {
        t.copy(x.at((i * rows, b * cols)), tile);
        t.reduce_sum_into(tile, sum, 0);
    }
    t.copy(sum, y.at(b * cols));
}

/// The library's entry.
pub struct Entry;

fn problem(parts: usize, dim: usize, cfg: ColumnSumConfig) -> Result<Problem, ProblemError> {
    let args = vec![
        Value::Tensor(Inputs::new(5).normal(DType::F32, &[parts, dim], 1.0)?),
        Value::Tensor(output(DType::F32, &[dim])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let x = args[0].f32s();
        let column = |c: usize| x.iter().skip(c).step_by(dim).map(|&v| f64::from(v)).sum::<f64>() as f32;
        let want: Vec<f32> = (0..dim).map(column).collect();
        vec![Comparison { output: "y", verdict: compare(&args[1].f32s(), &want, Tolerance::CalcDiff(1e-11)) }]
    };
    Ok(Problem { kernel: Box::new(ColumnSum::new(cfg)), args, work, verify: Box::new(verify) })
}

fn case(parts: usize, dim: usize) -> Case {
    let name = format!("parts={parts} dim={dim}");
    Case::new(name, ColumnSumConfig::default(), move |cfg| problem(parts, dim, cfg))
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "column_sum",
            family: Family::Norm,
            summary: "sum over rows in a fixed order: the second stage of deterministic weight gradients",
            equation: "y[c] = sum_p x[p,c]",
            tolerance: "calc_diff 1e-11",
            source: "V4 specification 7 (dw is a two-stage sum)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ColumnSumConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(ColumnSum::new(apply(ColumnSumConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        match scale {
            Scale::Small => vec![case(0, 5), case(1, 128), case(33, 300), case(300, 40)],
            Scale::Representative => vec![case(128, 7168)],
            Scale::Full => vec![case(1024, 4096), case(64, 512)],
        }
    }
}
