//! Problems with known answers for the block-scaled and grouped products.

use super::product::ProductConfig;
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{Case, Comparison, Dtypes, Problem, ProblemError, Value, Work};
use crate::reference::gemm_scaled as reference;
use crate::reference::metrics::{Tolerance, compare};
use rand::Rng;
use zellige::prelude::*;
use zellige_ir::DType;

/// Element types of a product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operands {
    pub a: DType,
    pub b: DType,
    /// Of the scale factors of `b`.
    pub sf: DType,
    pub c: DType,
}

impl Operands {
    /// From the types of a user's tensors.
    pub fn of(dtypes: &Dtypes) -> Operands {
        let of = |name: &str, default| dtypes.get(name).copied().unwrap_or(default);
        let a = of("a", DType::F8E4M3);
        let b = of("b", if a == DType::BF16 { DType::BF16 } else { DType::F8E4M3 });
        let sf = if b == DType::F4E2M1 { DType::E8M0 } else { DType::F32 };
        Operands { a, b, sf: of("b_sf", sf), c: of("c", DType::BF16) }
    }
}

/// Evaluates an expression with names standing for the types of [`Operands`].
macro_rules! operand_types {
    ($types:expr, ($A:ident, $B:ident, $S:ident, $C:ident), $body:expr) => {{
        use zellige_ir::DType as D;
        let types: $crate::gemm::scaled_problem::Operands = $types;
        match (types.a, types.b) {
            (D::BF16, D::BF16) => {
                type $A = bf16;
                type $B = bf16;
                type $S = f32;
                $crate::choice::with_type!(types.c, $C in [BF16 = bf16, F32 = f32], $body)
            }
            (D::F8E4M3, D::F8E4M3) => {
                type $A = f8e4m3;
                type $B = f8e4m3;
                $crate::choice::with_type!(types.sf, $S in [F32 = f32, E8M0 = e8m0], {
                    $crate::choice::with_type!(types.c, $C in [BF16 = bf16, F32 = f32], $body)
                })
            }
            (D::F8E4M3, D::F4E2M1) => {
                type $A = f8e4m3;
                type $B = f4e2m1;
                type $S = e8m0;
                $crate::choice::with_type!(types.c, $C in [BF16 = bf16, F32 = f32], $body)
            }
            (a, b) => Err($crate::library::ProblemError::Unsupported(format!(
                "no product of {a} by {b}; there is: bf16 by bf16, f8e4m3 by f8e4m3 or f4e2m1"
            ))),
        }
    }};
}
pub(crate) use operand_types;

/// Where the rows of the groups lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// One group and no mapping.
    Dense,
    /// One after the other, each filled up to whole tiles.
    Contiguous,
    /// As many rows for each as the largest has, and `spare` more.
    Masked { spare: usize },
}

/// A product with random operands.
#[derive(Clone)]
pub struct ScaledProblem {
    pub layout: Layout,
    /// Rows in use of each group.
    pub rows: Vec<usize>,
    pub n: usize,
    pub k: usize,
    pub types: Operands,
    pub cfg: ProductConfig,
    pub launcher: fn(Operands, ProductConfig) -> Result<Box<dyn Kernel>, ProblemError>,
}

/// Rows of a group that are compared where there are many; each takes N * K multiplications of the reference.
const SAMPLED_ROWS: usize = 16;

/// Powers of two around 1.
pub(super) fn powers(inputs: &mut Inputs, dtype: DType, shape: &[usize]) -> Result<DynTensor, ProblemError> {
    let values = inputs.draw(shape.iter().product(), |rng| f64::from(2f32.powi(rng.random_range(-3..4))));
    Ok(DynTensor::from_f64(dtype, shape, &values)?)
}

impl ScaledProblem {
    /// A case of the library.
    pub fn case(self) -> Case {
        let Operands { a, b, sf, c } = self.types;
        let rows = match (self.layout, &self.rows[..]) {
            (Layout::Dense, rows) => format!("m={}", rows.iter().sum::<usize>()),
            (_, rows) => format!("rows={rows:?}").replace(", ", ","),
        };
        let mut name = format!("{rows} n={} k={} {a}x{b}->{c}", self.n, self.k);
        if self.cfg.scaled {
            name.push_str(&format!(" {}/{}x{} {sf}", self.cfg.a_group, self.cfg.b_rows, self.cfg.b_group));
        }
        if self.cfg.column_major {
            name.push_str(" column-major");
        }
        if self.cfg.zero_padding {
            name.push_str(" zero-padding");
        }
        Case::new(name, self.cfg, move |cfg| ScaledProblem { cfg, ..self.clone() }.problem())
    }

    fn problem(self) -> Result<Problem, ProblemError> {
        let ScaledProblem { layout, rows, n, k, types, cfg, launcher } = self;
        if cfg.scaled != (types.a.bits() == 8) {
            return Err(ProblemError::Unsupported(format!(
                "`scaled` is {}: operands of {} {}",
                cfg.scaled,
                types.a,
                if cfg.scaled { "have no scale factors" } else { "have scale factors" }
            )));
        }
        let groups = rows.len();
        let mut inputs = Inputs::new(19);
        // First row of each group, and rows of `a` in all.
        let (starts, total): (Vec<usize>, usize) = match layout {
            Layout::Dense => (vec![0], rows.iter().sum()),
            Layout::Contiguous => {
                let mut next = 0;
                let starts = rows.iter().map(|r| {
                    let start = next;
                    next += r.next_multiple_of(cfg.bm);
                    start
                });
                // A tile of padding after the last group.
                (starts.collect(), next + cfg.bm + 3)
            }
            Layout::Masked { spare } => {
                let room = rows.iter().max().copied().unwrap_or(0) + spare;
                ((0..groups).map(|e| e * room).collect(), groups * room)
            }
        };
        let room = if matches!(layout, Layout::Masked { .. }) { total / groups.max(1) } else { total };
        let batch = |inner: [usize; 2]| match layout {
            Layout::Dense => inner.to_vec(),
            Layout::Contiguous | Layout::Masked { .. } => [groups, inner[0], inner[1]].to_vec(),
        };
        let a_batch = |inner: [usize; 2]| match layout {
            Layout::Dense | Layout::Contiguous => inner.to_vec(),
            Layout::Masked { .. } => [groups, inner[0], inner[1]].to_vec(),
        };
        let a = inputs.normal(types.a, &a_batch([room, k]), 1.0)?;
        let b = inputs.normal(types.b, &batch([n, k]), 1.0)?;
        let (a_groups, b_rows, b_groups) = (k.div_ceil(cfg.a_group), n.div_ceil(cfg.b_rows), k.div_ceil(cfg.b_group));
        let (a_sf, b_sf) = if cfg.scaled {
            let shape = if cfg.column_major { [a_groups, room.next_multiple_of(4)] } else { [room, a_groups] };
            let a_sf = inputs.uniform(DType::F32, &a_batch(shape), 0.25, 2.0)?;
            let b_sf = match types.sf {
                DType::E8M0 => powers(&mut inputs, types.sf, &batch([b_rows, b_groups]))?,
                _ => inputs.uniform(types.sf, &batch([b_rows, b_groups]), 0.25, 2.0)?,
            };
            (a_sf, b_sf)
        } else {
            (DynTensor::zeros(DType::F32, &a_batch([0, 0]))?, DynTensor::zeros(DType::F32, &batch([0, 0]))?)
        };
        let c = output(types.c, &a_batch([room, n]))?;
        let mut args = vec![a, a_sf, b, b_sf];
        match layout {
            Layout::Dense => {}
            Layout::Contiguous => {
                let mut experts = vec![-1; total];
                for (e, (&start, &count)) in starts.iter().zip(&rows).enumerate() {
                    experts[start..start + count].fill(e as i32);
                }
                args.push(DynTensor::from_slice::<i32>(&[total], &experts)?);
            }
            Layout::Masked { .. } => {
                let counts: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
                args.push(DynTensor::from_slice::<i32>(&[groups], &counts)?);
            }
        }
        args.push(c);
        let args: Vec<Value> = args.into_iter().map(Value::Tensor).collect();
        // Rows in use, and the matrices of groups that have any.
        let live: usize = rows.iter().sum();
        let used = rows.iter().filter(|&&r| r > 0).count();
        let bits = live * (k * types.a.bits() + n * types.c.bits()) + used * n * k * types.b.bits();
        let work = Work { flops: 2.0 * (live * n * k) as f64, bytes: bits as f64 / 8.0 };
        let verify = move |args: &[Value]| {
            let (a, b) = (args[0].f32s(), args[2].f32s());
            let (a_sf, b_sf) = (args[1].f32s(), args[3].f32s());
            let c = args[args.len() - 1].f32s();
            let large = live * n * k > 1 << 27;
            let (mut got, mut want) = (Vec::new(), Vec::new());
            for (e, (&start, &count)) in starts.iter().zip(&rows).enumerate() {
                let in_group = sample_rows(count, if large { SAMPLED_ROWS } else { count });
                let sampled: Vec<usize> = in_group.iter().map(|r| start + r).collect();
                let a_factor = |row: usize, g: usize| match (cfg.column_major, layout) {
                    (false, _) => a_sf[row * a_groups + g],
                    (true, Layout::Masked { .. }) => {
                        let stride = room.next_multiple_of(4);
                        a_sf[row / room * a_groups * stride + g * stride + row % room]
                    }
                    (true, Layout::Dense | Layout::Contiguous) => a_sf[g * room.next_multiple_of(4) + row],
                };
                let b_factor = |col: usize, g: usize| b_sf[(e * b_rows + col / cfg.b_rows) * b_groups + g];
                let product = reference::Scaled {
                    n,
                    k,
                    a: &a,
                    b: &b[e * n * k..][..n * k],
                    a_factor: &|row, col| if cfg.scaled { a_factor(row, col / cfg.a_group) } else { 1.0 },
                    b_factor: &|row, col| if cfg.scaled { b_factor(row, col / cfg.b_group) } else { 1.0 },
                };
                want.extend(product.rows(&sampled));
                got.extend(sampled.iter().flat_map(|r| c[r * n..(r + 1) * n].iter().copied()));
            }
            let mut out = vec![Comparison { output: "c", verdict: compare(&got, &want, Tolerance::CalcDiff(1e-5)) }];
            if cfg.zero_padding {
                let in_use = |row: &usize| starts.iter().zip(&rows).any(|(s, n)| (*s..s + n).contains(row));
                let padding: Vec<f32> = (0..c.len() / n.max(1))
                    .filter(|row| !in_use(row))
                    .flat_map(|r| c[r * n..(r + 1) * n].iter().copied())
                    .collect();
                out.push(Comparison::exact_f32("c", &padding, &vec![0.0; padding.len()]));
            }
            out
        };
        Ok(Problem { kernel: launcher(types, cfg)?, args, work, verify: Box::new(verify) })
    }
}
