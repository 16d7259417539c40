//! How a gemm is computed: which matrix instruction, and how its warps share the accumulator.

use crate::ptx::lower::accesses::{Form, loop_accesses};
use crate::ptx::simt::MmaKind;
use crate::ptx::target::{Arch, Target};
use zellige_ir::layout::{FragmentLayout, LANE, LayoutError, REGISTER, WARP, WARP_DIM};
use zellige_ir::{Buffer, DType, Func, GemmPrecision, LoopKind, OpKind, Scope, Value, Window};

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
    /// Elements side by side along k that a thread has of a tf32 operand; 1 where it has them as the manual says.
    ///
    /// The order of a sum is free, so any k may stand at any place of an instruction as long as both operands agree. With
    /// runs of `r`, the instructions of `r / 2` steps share a depth of `4 r` and lane `q` of four has its elements `r q` to
    /// `r q + r - 1`: two at a time, and all of them in one access.
    pub run: usize,
    /// The same along m, of the accumulator and of operand A: the `r / 2` instruction tiles of `8 r` rows deal them out so
    /// that lane `g` of eight has rows `r g` to `r g + r - 1`.
    pub run_m: usize,
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
    let (run, run_m) = if kind == MmaKind::TF32K8 { runs(func, a, b, acc, warps[0]) } else { (1, 1) };
    GemmPlan::Mma(MmaPlan { kind, operand_a, operand_b, shape, warps, replicas, run, run_m })
}

/// The runs of a tf32 product along k and m: what one access to memory can take of fragments, along k at least pairs.
/// `ldmatrix` has no runs of f32.
fn runs(func: &Func, a: &Window, b: &Window, acc: &Window, warps: usize) -> (usize, usize) {
    if is_matrix(func, a, 1) && is_matrix(func, b, 0) {
        return (1, 1);
    }
    let fitting = |wanted: usize, extent: usize, lanes: usize, least: usize| {
        let mut runs = (0..).map(|s| wanted >> s).take_while(|&r| r > least);
        runs.find(|r| extent.is_multiple_of(lanes * r)).unwrap_or(least)
    };
    let along_k = [wide_access(func, a, 1), wide_access(func, b, 0)].into_iter().flatten().min();
    let along_m = wide_access(func, a, 0).or_else(|| wide_access(func, acc, 0));
    let (m, k) = (a.shape()[0], a.shape()[1]);
    (fitting(along_k.unwrap_or(2), k, 4, 2), fitting(along_m.unwrap_or(1), m, 8 * warps, 1))
}

/// True if an f32 operand lies in shared memory with rows along k, its axis number `k`.
fn is_matrix(func: &Func, w: &Window, k: usize) -> bool {
    let data = &func.buffers[w.buffer];
    data.scope == Scope::Shared && data.dtype == DType::F32 && usize::from(w.axes[k].axis) + 1 == data.rank()
}

/// Elements of the widest access along an axis of a fragment's window to the tensors that the fragment is copied from, or
/// that a loop over it goes along.
fn wide_access(func: &Func, w: &Window, axis: usize) -> Option<usize> {
    if func.buffers[w.buffer].scope != Scope::Fragment {
        return None;
    }
    let axis = usize::from(w.axes[axis].axis);
    let mut narrowest: Option<usize> = None;
    let mut meet = |tensor: Buffer| {
        let data = &func.buffers[tensor];
        if data.scope == Scope::Global {
            narrowest = Some(narrowest.map_or(data.dtype.bits(), |bits| bits.min(data.dtype.bits())));
        }
    };
    func.walk(func.body, &mut |_, data| match &data.kind {
        OpKind::Copy { src, dst, .. } if dst.buffer == w.buffer => {
            let last = func.buffers[src.buffer].rank() - 1;
            let along = src.axes.iter().position(|a| usize::from(a.axis) == last);
            if along.and_then(|j| dst.axes.get(j)).is_some_and(|a| usize::from(a.axis) == axis) {
                meet(src.buffer);
            }
        }
        OpKind::For { kind: LoopKind::Parallel | LoopKind::Vectorized, indices, body, .. } => {
            let indices: Vec<Value> = indices.iter().map(|d| d.0).collect();
            let accesses = loop_accesses(func, &indices, *body);
            let last = Form::Loop { dim: indices.len() - 1, off: 0 };
            if accesses.iter().any(|a| a.buffer == w.buffer && a.forms.get(axis) == Some(&last)) {
                accesses.iter().filter(|a| a.contiguous).for_each(|a| meet(a.buffer));
            }
        }
        _ => {}
    });
    narrowest.map(|bits| 128 / bits)
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

    /// Steps whose operands lie together.
    pub fn batch(&self) -> usize {
        (self.run / 2).max(1)
    }

    /// Where the elements in half `half` (0 or 1) of an operand's registers lie along k in step `step`: lane `q` of four
    /// has those from `q stride + offset` on. Returns stride and offset.
    pub fn along_k(&self, step: usize, half: usize) -> (usize, usize) {
        if self.run == 1 {
            let k = self.kind.k();
            return (self.per_register(), step * k + half * k / 2);
        }
        let batch = self.batch();
        (self.run, step / batch * 4 * self.run + step % batch * 2 + half)
    }

    /// Instruction tiles along m whose rows lie together.
    pub fn batch_m(&self) -> usize {
        (self.run_m / 2).max(1)
    }

    /// Rows of such tiles.
    pub fn depth_m(&self) -> usize {
        16 * self.batch_m()
    }

    /// Where the rows in half `half` (0 or 1) of instruction tile `tile` of a batch lie: lane `g` of eight has row
    /// `g stride + offset`. Returns stride and offset.
    pub fn along_m(&self, tile: usize, half: usize) -> (usize, usize) {
        if self.run_m == 1 { (1, 8 * half) } else { (self.run_m, 2 * tile + half) }
    }

    /// The accumulator's layout, as `zellige_ir::layout::instances::mma::c_tile` where the shape divides; rows and
    /// columns beyond the tile are dead.
    pub fn acc(&self) -> Result<FragmentLayout, LayoutError> {
        let rn = self.repeats()[1];
        let [wm, wn] = self.warps;
        let [run, halves, rm] = self.registers_along_m();
        let map = FragmentLayout::builder(2)
            .tile(REGISTER, 2, "dim1")
            .tile(LANE, 4, "dim1")
            .tile(REGISTER, run, "dim0")
            .tile(LANE, 8, "dim0")
            .tile(REGISTER, halves, "dim0")
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
        let [wm, wn] = self.warps;
        let [run_m, halves_m, rm] = self.registers_along_m();
        let [run, halves, batches] = self.registers_along_k();
        let map = FragmentLayout::builder(2)
            .tile(REGISTER, run, "dim1")
            .tile(LANE, 4, "dim1")
            .tile(REGISTER, run_m, "dim0")
            .tile(LANE, 8, "dim0")
            .tile(REGISTER, halves_m, "dim0")
            .tile(REGISTER, halves, "dim1")
            .tile(REGISTER, batches, "dim1")
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
        let rn = self.repeats()[1];
        let [wm, wn] = self.warps;
        let [run, halves, batches] = self.registers_along_k();
        let map = FragmentLayout::builder(2)
            .tile(REGISTER, run, "dim0")
            .tile(LANE, 4, "dim0")
            .tile(LANE, 8, "dim1")
            .tile(REGISTER, halves, "dim0")
            .tile(REGISTER, batches, "dim0")
            .tile(REGISTER, even(rn), "dim1")
            .tile(WARP_DIM, wn, "dim1")
            .tile(REGISTER, rn / even(rn), "dim1")
            .replicate(WARP_DIM, wm * self.replicas)
            .build();
        Some(map.and_then(|m| FragmentLayout::new(&[self.shape[2], self.shape[1]], m)))
    }

    /// What a thread has of an operand along k: side by side, beyond the other lanes, and that so many times.
    fn registers_along_k(&self) -> [usize; 3] {
        if self.run == 1 {
            return [self.per_register(), 2, self.steps()];
        }
        [self.run, 1, self.steps() / self.batch()]
    }

    /// The same along m.
    fn registers_along_m(&self) -> [usize; 3] {
        let rm = self.repeats()[0];
        if self.run_m == 1 { [1, 2, rm] } else { [self.run_m, 1, rm / self.batch_m()] }
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
        MmaPlan {
            kind: MmaKind::BF16K16,
            operand_a: DType::BF16,
            operand_b: DType::BF16,
            shape,
            warps,
            replicas,
            run: 1,
            run_m: 1,
        }
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

    fn tf32(shape: [usize; 3], run: usize, run_m: usize) -> MmaPlan {
        let (warps, replicas) = share(shape[0], shape[1], 4, true);
        let kind = MmaKind::TF32K8;
        MmaPlan { kind, operand_a: DType::F32, operand_b: DType::F32, shape, warps, replicas, run, run_m }
    }

    /// The k at which lane `q` of four has the element of half `half` in step `step`.
    fn depth(p: &MmaPlan, q: usize, step: usize, half: usize) -> usize {
        let (stride, offset) = p.along_k(step, half);
        q * stride + offset
    }

    #[test]
    fn runs_cover_the_depth_once_and_lie_side_by_side() {
        for run in [1, 2, 4, 8] {
            let p = tf32([64, 24, 64], run, 1);
            let places = (0..p.steps()).flat_map(|s| [(s, 0), (s, 1)]);
            let mut all: Vec<usize> = places
                .flat_map(|(s, half)| (0..4).map(move |q| (q, s, half)))
                .map(|(q, s, h)| depth(&p, q, s, h))
                .collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..64), "runs of {run}");
            let mine = (0..p.batch()).flat_map(|s| [0, 1].map(|half| depth(&p, 1, s, half)));
            if run > 1 {
                assert!(mine.eq(run..2 * run), "runs of {run}");
            }
        }
    }

    #[test]
    fn fragments_lie_as_their_runs_say() {
        for (run, run_m) in [(1, 1), (2, 1), (8, 1), (2, 4), (4, 8)] {
            let p = tf32([256, 24, 32], run, run_m);
            let (acc, a) = (p.acc().unwrap(), p.operand_a(DType::F32).unwrap().unwrap());
            for (thread, q, g) in [(0, 0, 0), (5, 1, 1), (32 + 31, 3, 7)] {
                let warp = thread / 32 * (256 / p.warps[0]);
                for (tile, half) in [(0, 0), (0, 1), (p.batch_m() - 1, 1)] {
                    let (stride, offset) = p.along_m(tile, half);
                    let row = warp + g * stride + offset;
                    let has = |layout: &FragmentLayout, at: [usize; 2]| {
                        (0..layout.regs_per_thread()).any(|r| layout.coord(r, thread).is_some_and(|c| c[..] == at))
                    };
                    assert!(has(&acc, [row, 2 * q]) && has(&acc, [row, 2 * q + 1]), "runs of {run} and {run_m}");
                    assert!(has(&a, [row, depth(&p, q, 0, half)]), "runs of {run} and {run_m}");
                }
            }
        }
    }

    #[test]
    fn rows_stay_in_a_warp_where_they_are_reduced() {
        assert_eq!(plan([64, 64, 16], 4, true).warps, [4, 1]);
        assert_eq!(plan([128, 128, 16], 8, true).warps, [8, 1]);
    }
}
