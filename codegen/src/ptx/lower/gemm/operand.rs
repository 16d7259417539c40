//! Operands of matrix instructions: from shared memory by `ldmatrix`, from any memory element by element, or from a
//! fragment that already lies as the instruction wants.

use super::plan::MmaPlan;
use crate::ptx::lower::dist::{Dist, ThreadDigit, thread_part};
use crate::ptx::lower::index::{self, Idx};
use crate::ptx::lower::view::{Coords, View};
use crate::ptx::lower::{Lowerer, Result, cast, words};
use crate::ptx::simt::{MmaKind, Space, Ty, Val, Vals};
use smallvec::SmallVec;
use std::ops::Range;
use zellige_ir::layout::WARP;
use zellige_ir::{Buffer, DType, EntityId, Op, Window};

/// Which operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    A,
    B,
}

/// Where an operand's registers come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// `ldmatrix`; `trans` if the axis along k is not the contiguous one.
    Matrix {
        trans: bool,
    },
    Elements,
    Registers {
        buffer: Buffer,
    },
}

/// An operand ready to be fetched.
#[derive(Clone, Debug)]
pub struct Operand {
    side: Side,
    origin: Origin,
    view: Option<View>,
    offsets: Coords,
    /// Buffer axes along m (or n) and along k.
    outer_axis: usize,
    k_axis: usize,
    /// Extents along m (or n) and along k.
    outer: i64,
    k: i64,
    dtype: DType,
    /// Type in registers.
    target: DType,
    kind: MmaKind,
    /// What the warp contributes along m (or n).
    warp: Idx,
    lane: Idx,
}

/// What the warps contribute to an axis of the accumulator.
fn warp_origin(l: &mut Lowerer<'_>, acc: &Dist, axis: usize) -> Idx {
    let digits: SmallVec<[ThreadDigit; 4]> = acc.threads[axis].iter().filter_map(|d| d.warps()).collect();
    thread_part(&mut l.b, l.tid, &digits)
}

impl Lowerer<'_> {
    /// Prepares an operand; may add a phase that writes a fragment to scratch.
    pub(super) fn operand(&mut self, op: Op, side: Side, w: &Window, plan: &MmaPlan, acc: &Dist) -> Result<Operand> {
        // Axes of the window: A is (m, k), B is (k, n).
        let (outer_pos, k_pos, acc_axis) = match side {
            Side::A => (0, 1, 0),
            Side::B => (1, 0, 1),
        };
        let dtype = self.dtype(w.buffer);
        let target = match side {
            Side::A => plan.operand_a,
            Side::B => plan.operand_b,
        };
        let lane = index::rem(&mut self.b, self.tid, Idx::constant(WARP as i64));
        let warp = warp_origin(self, acc, acc_axis);
        let mut operand = Operand {
            side,
            origin: Origin::Elements,
            view: None,
            offsets: self.offsets(op, w)?,
            outer_axis: usize::from(w.axes[outer_pos].axis),
            k_axis: usize::from(w.axes[k_pos].axis),
            outer: w.axes[outer_pos].extent as i64,
            k: w.axes[k_pos].extent as i64,
            dtype,
            target,
            kind: plan.kind,
            warp,
            lane,
        };
        if let Some(dist) = self.turned_dist(w) {
            let wanted = match side {
                Side::A => plan.operand_a(dtype),
                Side::B => plan.operand_b(dtype),
            };
            if wanted.is_some_and(|l| l.is_ok_and(|l| l == dist.layout)) {
                operand.origin = Origin::Registers { buffer: w.buffer };
                return Ok(operand);
            }
        }
        let view = self.readable(op, w.buffer)?;
        operand.view = Some(view);
        // Runs of tf32 operands do not lie as `ldmatrix` has them.
        operand.origin = if plan.run == 1 { self.matrix_origin(&operand) } else { Origin::Elements };
        Ok(operand)
    }

    /// `ldmatrix` if the operand lies in shared memory with rows of 16 bytes and needs no conversion.
    fn matrix_origin(&mut self, o: &Operand) -> Origin {
        let Some(view) = &o.view else { return Origin::Elements };
        let last = view.extents.len() - 1;
        let trans = o.k_axis != last;
        let whole_steps = o.k % o.kind.k() as i64 == 0;
        let fits = view.space == Space::Shared
            && o.dtype == o.target
            && whole_steps
            && (!trans || (o.outer_axis == last && o.dtype.bits() == 16));
        if !fits {
            return Origin::Elements;
        }
        let at = self.matrix_place(o, trans, 0, Idx::constant(0), true);
        let view = view.clone();
        let offset = view.offset(&mut self.b, &at);
        if view.align_of(offset) < 16 || (trans && o.outer % 8 != 0) {
            return Origin::Elements;
        }
        Origin::Matrix { trans }
    }

    /// The row that this lane points `ldmatrix` to. `four`: the instruction loads four matrices.
    fn matrix_place(&mut self, o: &Operand, trans: bool, outer: i64, k: Idx, four: bool) -> Coords {
        let b = &mut self.b;
        let chunk = 128 / o.dtype.bits() as i64;
        let row = index::rem(b, o.lane, Idx::constant(8));
        let second = {
            let x = index::div(b, o.lane, Idx::constant(8));
            index::rem(b, x, Idx::constant(2))
        };
        let third = if four { index::div(b, o.lane, Idx::constant(16)) } else { Idx::constant(0) };
        // Matrices of A: (m, k), (m + 8, k), (m, k + half), (m + 8, k + half);
        // of B: (n, k), (n, k + half), (n + 8, k), (n + 8, k + half).
        let (outer_block, k_block) = match o.side {
            Side::A => (second, third),
            Side::B => (third, second),
        };
        let (outer_row, k_row) = if trans { (Idx::constant(0), row) } else { (row, Idx::constant(0)) };
        let outer_step = index::mul(b, outer_block, Idx::constant(8));
        let k_step = index::mul(b, k_block, Idx::constant(if trans { 8 } else { chunk }));
        let mut x = index::add(b, o.warp, outer_step);
        x = index::add(b, x, outer_row);
        x = x.shift(outer);
        if x.hi >= o.outer {
            // Rows beyond the tile are dead; any address will do.
            let last = if trans { o.outer - 8 } else { o.outer - 1 };
            x = index::min(b, x, Idx::constant(last));
        }
        let mut kk = index::add(b, k_step, k_row);
        kk = index::add(b, kk, k);
        let mut at = o.offsets.clone();
        at[o.outer_axis] = index::add(b, at[o.outer_axis], x);
        at[o.k_axis] = index::add(b, at[o.k_axis], kk);
        at
    }

    /// Registers of operand A for the instruction tile whose halves begin at rows `m` of the warp's part, for each of the
    /// steps from depth `base` on.
    pub(super) fn fetch_a(
        &mut self,
        p: &MmaPlan,
        o: &Operand,
        m: [usize; 2],
        base: Idx,
        steps: Range<usize>,
    ) -> Result<Vec<Vals>> {
        match &o.origin {
            Origin::Matrix { trans } => {
                let k = o.kind.k();
                Ok(steps.map(|s| self.fetch_matrix(o, *trans, m[0] as i64, base.shift((s * k) as i64), 4)).collect())
            }
            Origin::Registers { buffer } => {
                let step = |s| {
                    let [lo, hi] = [0, 1].map(|half| p.along_k(s, half).1);
                    let places = [[m[0], lo], [m[1], lo], [m[0], hi], [m[1], hi]];
                    places.iter().map(|&[m, k]| self.operand_word(o, *buffer, m, k)).collect()
                };
                Ok(steps.map(step).collect())
            }
            Origin::Elements => {
                let [upper, lower] = m.map(|m| self.fetch_elements(p, o, m as i64, base, steps.clone()));
                let rows = upper.into_iter().zip(lower);
                Ok(rows.map(|([a, c], [b, d])| SmallVec::from_slice(&[a, b, c, d])).collect())
            }
        }
    }

    /// Registers of operand B for each of the steps from depth `base` on, for the instruction tiles at columns `n` of the
    /// warp's part: two at once where they are neighbours.
    pub(super) fn fetch_b(
        &mut self,
        p: &MmaPlan,
        o: &Operand,
        n: &[usize],
        base: Idx,
        steps: Range<usize>,
    ) -> Result<Vec<Vec<Vals>>> {
        match &o.origin {
            Origin::Matrix { trans } => {
                let k = o.kind.k();
                Ok(steps.map(|s| self.fetch_columns(o, *trans, n, base.shift((s * k) as i64))).collect())
            }
            Origin::Registers { buffer } => {
                let step = |s: usize| -> Vec<Vals> {
                    let halves = [0, 1].map(|half| p.along_k(s, half).1);
                    let column = |&n: &usize| halves.iter().map(|&k| self.operand_word(o, *buffer, n, k)).collect();
                    n.iter().map(column).collect()
                };
                Ok(steps.map(step).collect())
            }
            Origin::Elements => {
                let mut out = vec![Vec::with_capacity(n.len()); steps.len()];
                for &n in n {
                    let column = self.fetch_elements(p, o, n as i64, base, steps.clone());
                    out.iter_mut().zip(column).for_each(|(step, regs)| step.push(SmallVec::from_slice(&regs)));
                }
                Ok(out)
            }
        }
    }

    /// Operand B of one step by `ldmatrix`.
    fn fetch_columns(&mut self, o: &Operand, trans: bool, n: &[usize], k: Idx) -> Vec<Vals> {
        let inside = |c: usize| o.warp.hi + c as i64 + 8 <= o.outer;
        let mut out = Vec::with_capacity(n.len());
        let mut i = 0;
        while i < n.len() {
            if i + 1 < n.len() && n[i + 1] == n[i] + 8 && inside(n[i + 1]) {
                let regs = self.fetch_matrix(o, trans, n[i] as i64, k, 4);
                out.push(SmallVec::from_slice(&regs[..2]));
                out.push(SmallVec::from_slice(&regs[2..]));
                i += 2;
            } else {
                out.push(self.fetch_matrix(o, trans, n[i] as i64, k, 2));
                i += 1;
            }
        }
        out
    }

    fn fetch_matrix(&mut self, o: &Operand, trans: bool, outer: i64, k: Idx, count: usize) -> Vals {
        let at = self.matrix_place(o, trans, outer, k, count == 4);
        let Some(view) = &o.view else { unreachable!("a matrix operand lies in memory") };
        let view = view.clone();
        let offset = view.offset(&mut self.b, &at);
        let addr = view.address(&mut self.b, offset);
        let regs = self.b.ldmatrix(count, trans, addr);
        if o.kind == MmaKind::TF32K8 {
            return regs
                .into_iter()
                .map(|r| {
                    let x = self.b.bits(Ty::F32, r);
                    self.b.cvt_tf32(x)
                })
                .collect();
        }
        regs
    }

    /// A word of a fragment that lies as the operand, by what its register contributes along m (or n) and k.
    fn operand_word(&mut self, o: &Operand, buffer: Buffer, outer: usize, k: usize) -> Val {
        let dist = self.dist_of(buffer);
        let mut place = [0; 2];
        (place[o.outer_axis], place[o.k_axis]) = (outer, k);
        let reg = dist.and_then(|d| d.reg(&place)).unwrap_or(0);
        let per_word = words::per_word(o.dtype);
        let Some(crate::ptx::lower::place::Place::Registers(f)) = &mut self.places[buffer.index()] else {
            unreachable!("the operand was found in registers")
        };
        let word = f.word(&mut self.b, reg / per_word);
        if o.kind == MmaKind::TF32K8 { self.b.cvt_tf32(word) } else { word }
    }

    /// Both halves of an operand's registers at row (or column) `outer` of the warp's part for each of the steps from depth
    /// `base` on, element by element; zero beyond the tile.
    fn fetch_elements(
        &mut self,
        p: &MmaPlan,
        o: &Operand,
        outer: i64,
        base: Idx,
        steps: Range<usize>,
    ) -> Vec<[Val; 2]> {
        let e = p.per_register();
        let b = &mut self.b;
        let group = index::div(b, o.lane, Idx::constant(4));
        let quad = index::rem(b, o.lane, Idx::constant(4));
        let stride = if o.side == Side::A { p.along_m(0, 0).0 } else { 1 };
        let row = index::mul(b, group, Idx::constant(stride as i64));
        let x = index::add(b, o.warp, row);
        let x = x.shift(outer);
        let inside = index::in_bounds(b, x, Idx::constant(o.outer));
        let Some(view) = &o.view else { unreachable!("an operand fetched by element lies in memory") };
        let view = view.clone();
        let mut at = Vec::new();
        let mut guards = Vec::new();
        for (step, half) in steps.flat_map(|s| [(s, 0), (s, 1)]) {
            let (stride, offset) = p.along_k(step, half);
            let along = index::mul(b, quad, Idx::constant(stride as i64));
            let along = index::add(b, along, base).shift(offset as i64);
            for i in 0..e {
                let kk = along.shift(i as i64);
                let mut c = o.offsets.clone();
                c[o.outer_axis] = index::add(b, c[o.outer_axis], x);
                c[o.k_axis] = index::add(b, c[o.k_axis], kk);
                let within = if kk.hi < o.k { None } else { index::in_bounds(b, kk, Idx::constant(o.k)) };
                let mut guard = b.and_guard(inside, within);
                let exists = view.guard(b, &c);
                guard = b.and_guard(guard, exists);
                at.push(c);
                guards.push(guard);
            }
        }
        let vals = view.load(b, &at, &guards);
        let vals = cast::cast_all(b, self.target, &vals, o.dtype, o.target);
        let mut word = |vals: &[Val]| {
            if o.kind == MmaKind::TF32K8 { b.cvt_tf32(vals[0]) } else { words::pack(b, o.target, vals) }
        };
        vals.chunks(2 * e).map(|step| [word(&step[..e]), word(&step[e..])]).collect()
    }

    /// True if the operand must be indexed by constants.
    pub(super) fn is_in_registers(o: &Operand) -> bool {
        matches!(o.origin, Origin::Registers { .. })
    }
}
