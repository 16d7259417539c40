//! How a gemm is computed: which matrix instruction, and how its warps share the accumulator.

use crate::ptx::simt::MmaKind;
use crate::ptx::target::{Arch, Target};
use zellige_ir::layout::{FragmentLayout, LANE, LayoutError, REGISTER, WARP, WARP_DIM};
use zellige_ir::{DType, Func, GemmPrecision, OpKind, Scope, Window};

/// The way a gemm goes.
#[derive(Clone, Debug)]
pub enum GemmPlan {
    /// Warp-wide matrix instructions.
    Mma(MmaPlan),
    /// One multiply-add for each product: types that no matrix instruction computes as asked.
    Fma,
}

/// A gemm by matrix instructions.
#[derive(Clone, Debug)]
pub struct MmaPlan {
    pub kind: MmaKind,
    /// What operands are converted to in registers.
    pub operand_a: DType,
    pub operand_b: DType,
    /// Extents m, n, k.
    pub shape: [usize; 3],
    /// Warps along m and n.
    pub warps: [usize; 2],
    /// Warps that compute the same.
    pub replicas: usize,
}

/// Chooses for one gemm.
pub fn plan(func: &Func, target: Target, a: &Window, b: &Window, acc: &Window, precision: GemmPrecision) -> GemmPlan {
    let (sa, sc) = (a.shape(), acc.shape());
    let dtype = |w: &Window| func.buffers[w.buffer].dtype;
    let Some((kind, operand_a, operand_b)) = instruction(target, dtype(a), dtype(b), dtype(acc), precision) else {
        return GemmPlan::Fma;
    };
    if sa.len() != 2 || sc.len() != 2 {
        return GemmPlan::Fma;
    }
    let shape = [sc[0], sc[1], sa[1]];
    let rows_only = func.buffers[a.buffer].scope == Scope::Fragment || reduced_along_rows(func, acc);
    let (warps, replicas) = share(shape[0], shape[1], func.threads / WARP, rows_only);
    GemmPlan::Mma(MmaPlan { kind, operand_a, operand_b, shape, warps, replicas })
}

/// The instruction for operand and accumulator types, with the types its operands have in registers.
fn instruction(
    target: Target,
    a: DType,
    b: DType,
    acc: DType,
    precision: GemmPrecision,
) -> Option<(MmaKind, DType, DType)> {
    use DType::*;
    if acc == I32 {
        let kind = match (a, b) {
            (I8, I8) => MmaKind::S8K32,
            (U8, U8) => MmaKind::U8K32,
            (I8, U8) => MmaKind::S8U8K32,
            (U8, I8) => MmaKind::U8S8K32,
            _ => return None,
        };
        return Some((kind, a, b));
    }
    if !matches!(acc, F32 | F16 | BF16) {
        return None;
    }
    let small = |t| matches!(t, F8E4M3 | F8E5M2 | F4E2M1);
    if target.arch >= Arch::Sm89 {
        let kind = match (a, b) {
            (F8E4M3, F8E4M3) => Some(MmaKind::E4M3K32),
            (F8E5M2, F8E5M2) => Some(MmaKind::E5M2K32),
            (F8E4M3, F8E5M2) => Some(MmaKind::E4M3E5M2K32),
            (F8E5M2, F8E4M3) => Some(MmaKind::E5M2E4M3K32),
            _ => None,
        };
        if let Some(kind) = kind {
            return Some((kind, a, b));
        }
    }
    match (a, b) {
        // The small formats are exact in both 16-bit ones.
        _ if (a == BF16 || small(a)) && (b == BF16 || small(b)) && (a == BF16 || b == BF16) => {
            Some((MmaKind::BF16K16, BF16, BF16))
        }
        _ if (a == F16 || small(a)) && (b == F16 || small(b)) => Some((MmaKind::F16K16, F16, F16)),
        // tf32 has the exponent of bf16 and the mantissa of f16: a mixed product is exact too.
        (F16, BF16) | (BF16, F16) => Some((MmaKind::TF32K8, F32, F32)),
        _ if precision == GemmPrecision::Tf32 && [a, b].iter().all(|&t| matches!(t, F32 | F16 | BF16) || small(t)) => {
            Some((MmaKind::TF32K8, F32, F32))
        }
        _ => None,
    }
}

/// True if some op reduces the accumulator along its rows: then a row should stay within a warp.
fn reduced_along_rows(func: &Func, acc: &Window) -> bool {
    let mut found = false;
    func.walk(func.body, &mut |_, data| {
        if let OpKind::Reduce { src, axis, .. } = &data.kind {
            found |= src.buffer == acc.buffer && *axis == 1;
        }
    });
    found
}

/// Warps along m and n, and how many do the same work: the least work for each warp, then the fewest operand elements.
fn share(m: usize, n: usize, warps: usize, rows_only: bool) -> ([usize; 2], usize) {
    let mut best = None;
    for wm in 1..=warps {
        for wn in 1..=warps / wm {
            if !warps.is_multiple_of(wm * wn) {
                continue;
            }
            let (rm, rn) = (m.div_ceil(16 * wm), n.div_ceil(8 * wn));
            let split_rows = rows_only && wn > 1 && m.div_ceil(16) >= wm * wn;
            let cost = (rm * rn, split_rows, 2 * rm + rn, warps / (wm * wn), wn);
            // A row that stays in one warp is worth some more work for it.
            let cost = if rows_only {
                (cost.0 + if wn > 1 { rm * rn / 2 } else { 0 }, cost.1, cost.2, cost.3, cost.4)
            } else {
                cost
            };
            if best.as_ref().is_none_or(|(c, _)| cost < *c) {
                best = Some((cost, ([wm, wn], warps / (wm * wn))));
            }
        }
    }
    best.map_or(([1, 1], warps), |(_, b)| b)
}

fn even(n: usize) -> usize {
    1 << n.trailing_zeros()
}

impl MmaPlan {
    /// Instruction tiles of a warp along m and n.
    pub fn repeats(&self) -> [usize; 2] {
        [self.shape[0].div_ceil(16 * self.warps[0]), self.shape[1].div_ceil(8 * self.warps[1])]
    }

    /// Steps along k.
    pub fn steps(&self) -> usize {
        self.shape[2].div_ceil(self.kind.k())
    }

    /// The accumulator's layout, as `zellige_ir::layout::instances::mma::c_tile` where the shape divides; rows and
    /// columns beyond the tile are dead.
    pub fn acc(&self) -> Result<FragmentLayout, LayoutError> {
        let [rm, rn] = self.repeats();
        let [wm, wn] = self.warps;
        let map = FragmentLayout::builder(2)
            .tile(REGISTER, 2, "dim1")
            .tile(LANE, 4, "dim1")
            .tile(LANE, 8, "dim0")
            .tile(REGISTER, 2, "dim0")
            .tile(REGISTER, even(rn), "dim1")
            .tile(WARP_DIM, wn, "dim1")
            .tile(REGISTER, rn / even(rn), "dim1")
            .tile(REGISTER, even(rm), "dim0")
            .tile(WARP_DIM, wm, "dim0")
            .tile(REGISTER, rm / even(rm), "dim0")
            .replicate(WARP_DIM, self.replicas)
            .build()?;
        FragmentLayout::new(&self.shape[..2], map)
    }

    /// Elements in a 32-bit register of an operand.
    pub fn per_register(&self) -> usize {
        self.kind.k() / 8
    }

    /// The layout of operand A in registers, if a fragment of type `dtype` can be it.
    pub fn operand_a(&self, dtype: DType) -> Option<Result<FragmentLayout, LayoutError>> {
        if !self.fits_registers(dtype, self.operand_a) {
            return None;
        }
        let e = self.per_register();
        let rm = self.repeats()[0];
        let [wm, wn] = self.warps;
        let map = FragmentLayout::builder(2)
            .tile(REGISTER, e, "dim1")
            .tile(LANE, 4, "dim1")
            .tile(LANE, 8, "dim0")
            .tile(REGISTER, 2, "dim0")
            .tile(REGISTER, 2, "dim1")
            .tile(REGISTER, self.steps(), "dim1")
            .replicate(WARP_DIM, wn)
            .tile(REGISTER, even(rm), "dim0")
            .tile(WARP_DIM, wm, "dim0")
            .tile(REGISTER, rm / even(rm), "dim0")
            .replicate(WARP_DIM, self.replicas)
            .build();
        Some(map.and_then(|m| FragmentLayout::new(&[self.shape[0], self.shape[2]], m)))
    }

    /// The layout of operand B (axes k, n) in registers, if a fragment of type `dtype` can be it.
    pub fn operand_b(&self, dtype: DType) -> Option<Result<FragmentLayout, LayoutError>> {
        if !self.fits_registers(dtype, self.operand_b) {
            return None;
        }
        let e = self.per_register();
        let rn = self.repeats()[1];
        let [wm, wn] = self.warps;
        let map = FragmentLayout::builder(2)
            .tile(REGISTER, e, "dim0")
            .tile(LANE, 4, "dim0")
            .tile(LANE, 8, "dim1")
            .tile(REGISTER, 2, "dim0")
            .tile(REGISTER, self.steps(), "dim0")
            .tile(REGISTER, even(rn), "dim1")
            .tile(WARP_DIM, wn, "dim1")
            .tile(REGISTER, rn / even(rn), "dim1")
            .replicate(WARP_DIM, wm * self.replicas)
            .build();
        Some(map.and_then(|m| FragmentLayout::new(&[self.shape[2], self.shape[1]], m)))
    }

    /// Operands in registers must have the instruction's type and a whole number of steps; tf32 wants rounding first,
    /// which f32 fragments get on the way.
    fn fits_registers(&self, dtype: DType, operand: DType) -> bool {
        dtype == operand && self.shape[2].is_multiple_of(self.kind.k())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zellige_ir::layout::instances::mma;

    fn plan(shape: [usize; 3], warps: usize, rows_only: bool) -> MmaPlan {
        let (warps, replicas) = share(shape[0], shape[1], warps, rows_only);
        MmaPlan { kind: MmaKind::BF16K16, operand_a: DType::BF16, operand_b: DType::BF16, shape, warps, replicas }
    }

    #[test]
    fn layouts_agree_with_the_instances_where_shapes_divide() {
        for (shape, warps) in [([128, 128, 64], 4), ([64, 96, 32], 4), ([48, 24, 16], 1), ([128, 256, 64], 8)] {
            let p = plan(shape, warps, false);
            assert_eq!(p.replicas, 1, "{shape:?}");
            let want = mma::c_tile([shape[0], shape[1]], p.warps).unwrap();
            assert_eq!(p.acc().unwrap(), want, "{shape:?}");
            let want = mma::a_tile([shape[0], shape[2]], 16, p.warps).unwrap();
            let got = p.operand_a(DType::BF16).unwrap().unwrap();
            for t in 0..want.threads() {
                for r in 0..want.regs_per_thread() {
                    assert_eq!(got.coord(r, t), want.coord(r, t));
                }
            }
        }
    }

    #[test]
    fn every_element_of_an_odd_accumulator_has_a_place() {
        for shape in [[24, 40, 16], [1, 8, 16], [17, 3, 16], [64, 8, 16]] {
            let p = plan(shape, 4, true);
            let layout = p.acc().unwrap();
            let mut seen = vec![false; shape[0] * shape[1]];
            for t in 0..128 {
                for r in 0..layout.regs_per_thread() {
                    if let Some(c) = layout.coord(r, t) {
                        seen[c[0] * shape[1] + c[1]] = true;
                    }
                }
            }
            assert!(seen.iter().all(|s| *s), "{shape:?}");
        }
    }

    #[test]
    fn rows_stay_in_a_warp_where_they_are_reduced() {
        assert_eq!(plan([64, 64, 16], 4, true).warps, [4, 1]);
        assert_eq!(plan([128, 128, 16], 8, true).warps, [8, 1]);
    }
}
