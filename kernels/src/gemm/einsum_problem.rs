//! Problems with known answers for products over tensors of three axes.

use super::scaled_problem::{Operands, powers};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{Comparison, Dtypes, Problem, ProblemError, Value, Work};
use crate::reference::einsum::Einsum;
use crate::reference::metrics::{Tolerance, compare, compare_rounded};
use zellige::Kernel;
use zellige::runtime::DynTensor;
use zellige_ir::DType;

/// Elements along k, and along n of the second operand, that share a scale factor.
pub const GROUP: usize = 128;

/// Noise of an f32 sum relative to the magnitudes of its terms: some 2^-24 for each step of the matrix units, most of
/// which cancel.
const NOISE: f64 = 5e-7;

/// Rows of a large result that are compared.
const SAMPLED_ROWS: usize = 4;

/// The types of a user's tensors, the second operand and its scale factors by their names.
pub fn operands(dtypes: &Dtypes, [b, sf]: [&str; 2], c: DType) -> Operands {
    let of = |name: &str, default| dtypes.get(name).copied().unwrap_or(default);
    let a = of("a", of(b, DType::BF16));
    Operands { a, b: of(b, a), sf: of(sf, DType::F32), c: of("c", c) }
}

/// Refuses operands for which there is no kernel.
pub fn check_operands(types: Operands, scaled: bool) -> Result<(), ProblemError> {
    let Operands { a, b, .. } = types;
    let fits = if scaled { DType::F8E4M3 } else { DType::BF16 };
    if a != fits || b != fits {
        let how = if scaled { "with" } else { "without" };
        let message = format!("no product of {a} by {b} {how} scale factors; there is: {fits} by {fits}");
        return Err(ProblemError::Unsupported(message));
    }
    Ok(())
}

/// Evaluates an expression with names standing for the types of operands that [`check_operands`] takes.
macro_rules! einsum_types {
    ($types:expr, ($E:ident, $S:ident, $C:ident), $body:expr) => {
        $crate::choice::with_type!($types.a, $E in [BF16 = bf16, F8E4M3 = f8e4m3], {
            $crate::choice::with_type!($types.sf, $S in [F32 = f32, E8M0 = e8m0], {
                $crate::choice::with_type!($types.c, $C in [BF16 = bf16, F32 = f32], $body)
            })
        })
    };
}
pub(crate) use einsum_types;

/// A product of random operands. Of its letters, `m` counts rows, `n` columns, and scale factors go along `k`.
#[derive(Clone, Debug)]
pub struct EinsumProblem {
    pub equation: &'static str,
    pub extents: Vec<(char, usize)>,
    pub types: Operands,
    /// The operands have scale factors.
    pub scaled: bool,
}

impl EinsumProblem {
    /// What a case of the library is called: `h=2 m=5 n=72 k=160 bf16->f32`.
    pub fn name(&self) -> String {
        let Operands { a, b, sf, c } = self.types;
        let extents: Vec<String> = self.extents.iter().map(|(l, n)| format!("{l}={n}")).collect();
        let types = if self.scaled { format!("{a}x{b}->{c} {sf}") } else { format!("{a}->{c}") };
        format!("{} {types}", extents.join(" "))
    }

    fn einsum(&self) -> Einsum<'_> {
        Einsum { equation: self.equation, extents: &self.extents }
    }

    /// The scale factors' shape for an operand whose elements share them along the letters of `grouped`.
    fn sf_shape(&self, letters: &str, grouped: &str) -> Vec<usize> {
        let groups = |l: char| self.einsum().extent(l).div_ceil(if grouped.contains(l) { GROUP } else { 1 });
        letters.chars().map(groups).collect()
    }

    /// An operand's values: codes times their factors, exact in f64.
    fn values(&self, letters: &str, grouped: &str, codes: &[f32], factors: &[f32]) -> Vec<f64> {
        if !self.scaled {
            return codes.iter().map(|&v| f64::from(v)).collect();
        }
        let (shape, groups) = (self.einsum().shape(letters), self.sf_shape(letters, grouped));
        let together: Vec<usize> = letters.chars().map(|l| if grouped.contains(l) { GROUP } else { 1 }).collect();
        let factor = |mut flat: usize| {
            let (mut at, mut stride) = (0, 1);
            for axis in (0..shape.len()).rev() {
                at += stride * (flat % shape[axis] / together[axis]);
                (flat, stride) = (flat / shape[axis], stride * groups[axis]);
            }
            factors[at]
        };
        codes.iter().enumerate().map(|(i, &v)| f64::from(v) * f64::from(factor(i))).collect()
    }

    /// The problem for a kernel that takes both operands, each followed by its scale factors, and the result. An f32 result of
    /// bf16 operands is compared within `tolerance`, others as their types allow.
    pub fn problem(self, kernel: Box<dyn Kernel>, tolerance: Tolerance) -> Result<Problem, ProblemError> {
        let mut inputs = Inputs::new(31);
        let einsum = self.einsum();
        let [of_a, of_b, out] = einsum.letters();
        let Operands { a, b, sf, c } = self.types;
        let mut args = Vec::new();
        for (letters, grouped, dtype, sf) in [(of_a, "k", a, DType::F32), (of_b, "nk", b, sf)] {
            args.push(inputs.normal(dtype, &einsum.shape(letters), 1.0)?);
            let shape = self.sf_shape(letters, grouped);
            args.push(match sf {
                _ if !self.scaled => DynTensor::zeros(sf, &[0; 3])?,
                DType::E8M0 => powers(&mut inputs, sf, &shape)?,
                _ => inputs.uniform(sf, &shape, 0.25, 2.0)?,
            });
        }
        args.push(output(c, &einsum.shape(out))?);
        let args: Vec<Value> = args.into_iter().map(Value::Tensor).collect();
        let all: f64 = self.extents.iter().map(|e| e.1 as f64).product();
        let work = Work::of(&args).flops(2.0 * all);
        let verify = move |args: &[Value]| {
            let [a, a_sf, b, b_sf, c] = [0, 1, 2, 3, 4].map(|i| args[i].f32s());
            let rows = self.einsum().extent('m');
            let rows = sample_rows(rows, if all > 1e8 { SAMPLED_ROWS } else { rows });
            let [of_a, of_b, out] = self.einsum().letters();
            let a = self.rows(of_a, &self.values(of_a, "k", &a, &a_sf), &rows);
            let b = self.values(of_b, "nk", &b, &b_sf);
            let extents: Vec<(char, usize)> =
                self.extents.iter().map(|&(l, n)| (l, if l == 'm' { rows.len() } else { n })).collect();
            let sampled = Einsum { equation: self.equation, extents: &extents };
            let want: Vec<f32> = sampled.of(&a, &b).into_iter().map(|v| v as f32).collect();
            let got = self.rows(out, &c, &rows);
            let verdict = match (self.scaled, self.types.c) {
                (true, _) => compare(&got, &want, Tolerance::CalcDiff(1e-5)),
                (false, DType::BF16) => {
                    let sizes = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
                    let sizes: Vec<f32> = sampled.of(&sizes(&a), &sizes(&b)).into_iter().map(|v| v as f32).collect();
                    compare_rounded(&got, &want, &sizes, NOISE)
                }
                (false, _) => compare(&got, &want, tolerance),
            };
            vec![Comparison { output: "c", verdict }]
        };
        Ok(Problem { kernel, args, work, verify: Box::new(verify) })
    }

    /// Some rows, along `m`, of a tensor.
    fn rows<V: Copy>(&self, letters: &str, values: &[V], rows: &[usize]) -> Vec<V> {
        let at = letters.find('m').map_or(0, |at| at + 1);
        let (inner, m): (usize, usize) =
            (self.einsum().shape(&letters[at..]).iter().product(), self.einsum().extent('m'));
        let outer: usize = self.einsum().shape(&letters[..at - 1]).iter().product();
        let row = |o: usize, r: usize| values[(o * m + r) * inner..][..inner].iter().copied();
        (0..outer).flat_map(|o| rows.iter().flat_map(move |&r| row(o, r))).collect()
    }
}
