//! Batched transpose.

use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::transpose as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Config of [`batched_transpose`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct TransposeConfig {
    /// Rows and columns of a tile.
    #[tune(32, 64, 128)]
    pub tile: usize,
    #[tune(64, 128, 256)]
    pub threads: usize,
}

impl Default for TransposeConfig {
    fn default() -> TransposeConfig {
        TransposeConfig { tile: 64, threads: 64 }
    }
}

/// `y[b, j, i] = x[b, i, j]`: `x` [batch, m, n], `y` [batch, n, m].
#[kernel]
pub fn batched_transpose<E: Element>(
    t: T,
    #[dims(batch, m, n)] x: &Tensor<E, 3>,
    #[dims(batch, n, m)] y: &mut Tensor<E, 3>,
    #[comptime] cfg: TransposeConfig,
) {
    let size = cfg.tile;
    let [bx, by, b] = t.grid([x.dim(2).ceil_div(size), x.dim(1).ceil_div(size), x.dim(0)], cfg.threads);
    let (row, col) = (by * size, bx * size);
    // Each thread turns a block of the tile round in its registers.
    let tile = t.fragment::<E, 2>([size, size]);
    t.copy(x.at((b, row, col)), tile);
    t.copy(tile.t(), y.at((b, col, row)));
}

/// The library's entry.
pub struct Entry;

fn launcher(dtype: DType, cfg: TransposeConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    with_type!(dtype, E in [BF16 = bf16, F8E4M3 = f8e4m3, F32 = f32], Ok(Box::new(BatchedTranspose::<E>::new(cfg))))
}

fn problem(shape: [usize; 3], dtype: DType, cfg: TransposeConfig) -> Result<Problem, ProblemError> {
    let [batch, m, n] = shape;
    let x = Value::Tensor(Inputs::new(22).normal(dtype, &shape, 1.0)?);
    let args = vec![x, Value::Tensor(output(dtype, &[batch, n, m])?)];
    let verify = move |args: &[Value]| {
        let want = reference::batched_transpose(&args[0].f32s(), batch, m, n);
        vec![Comparison::exact_f32("y", &args[1].f32s(), &want)]
    };
    Ok(Problem { kernel: launcher(dtype, cfg)?, work: Work::of(&args), args, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "batched_transpose",
            family: Family::Quant,
            summary: "transpose of each matrix of a batch",
            equation: "y[b,j,i] = x[b,i,j]",
            tolerance: "exact",
            source: "V4 specification 4.3; TileKernels batched_transpose",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(TransposeConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        launcher(dtypes.get("x").copied().unwrap_or(DType::BF16), apply(TransposeConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |shape: [usize; 3], dtype: DType, cfg: TransposeConfig| {
            let name = format!("b={} m={} n={} {dtype}", shape[0], shape[1], shape[2]);
            Case::new(name, cfg, move |cfg| problem(shape, dtype, cfg))
        };
        let cfg = TransposeConfig::default();
        let small = TransposeConfig { tile: 32, ..cfg };
        match scale {
            Scale::Small => vec![
                case([0, 64, 64], DType::BF16, small),
                case([1, 0, 64], DType::BF16, small),
                case([2, 64, 128], DType::BF16, small),
                case([3, 33, 70], DType::F8E4M3, small),
                case([1, 1, 65], DType::F32, small),
            ],
            Scale::Representative => vec![case([1, 4096, 7168], DType::BF16, cfg)],
            Scale::Full => vec![
                case([1, 8192, 7168], DType::BF16, cfg),
                case([8, 3072, 1024], DType::F8E4M3, cfg),
                case([1, 4096, 4096], DType::F32, cfg),
                case([2, 4001, 576], DType::BF16, cfg),
            ],
        }
    }
}
