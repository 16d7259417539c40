//! `scan`: a warp for each line, some neighbours in each lane, with the running result carried from chunk to chunk.

use super::index::{self, Idx};
use super::value::Scalar;
use super::view::{Coords, View};
use super::{Lowerer, Result, cast, scalar};
use crate::ptx::simt::{Cmp, Num, ShflMode, Ty, Val};
use zellige_ir::layout::WARP;
use zellige_ir::{BinaryOp, DType, Op, ReduceOp, ScanOp, Window};

/// Elements that a lane holds at most.
const MAX_HELD: usize = 16;

impl Lowerer<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn scan(
        &mut self,
        op: Op,
        f: ScanOp,
        src: &Window,
        dst: &Window,
        axis: usize,
        reverse: bool,
        exclusive: bool,
    ) -> Result {
        let shape = src.shape();
        if axis >= shape.len() || dst.shape() != shape {
            return self.malformed(op, "the windows do not fit the axis");
        }
        if src.is_empty() {
            return Ok(());
        }
        let ty = self.dtype(dst.buffer).accumulator();
        let Some(neutral) = ReduceOp::from(f).identity(ty) else { return self.undefined(op, f.name(), ty) };
        let f = match f {
            ScanOp::Sum => BinaryOp::Add,
            ScanOp::Max => BinaryOp::Max,
            ScanOp::Min => BinaryOp::Min,
        };
        let neutral = self.constant_reg(neutral);
        let from = self.readable(op, src.buffer)?;
        let from_offsets = self.offsets(op, src)?;
        let (to, to_offsets, staged) = self.written(op, dst)?;
        self.b.phase("scan");

        let n = shape[axis];
        let lines = (shape.iter().product::<usize>() / n) as i64;
        let warps = self.func.threads / WARP;
        let (lane, warp) = self.lane_and_warp();
        let each_line = |l: &mut Self, line: Idx| -> Result {
            let carry = l.b.new_var(l.b.ty(neutral));
            l.b.set(carry, neutral);
            let each = n.div_ceil(WARP).min(MAX_HELD);
            let chunks = n.div_ceil(WARP * each) as i64;
            let v = l.b.begin_for(Ty::B32);
            let chunk = Idx::new(v, 0, chunks - 1, 1);
            let first = index::mul(&mut l.b, chunk, Idx::constant((WARP * each) as i64));
            let own = index::mul(&mut l.b, lane, Idx::constant(each as i64));
            let first = index::add(&mut l.b, first, own);
            let mut places: Vec<Coords> = Vec::with_capacity(each);
            let mut insides: Vec<Option<Val>> = Vec::with_capacity(each);
            for i in 0..each {
                let step = first.shift(i as i64);
                let at = if reverse { index::sub(&mut l.b, Idx::constant(n as i64 - 1), step) } else { step };
                insides.push(index::in_bounds(&mut l.b, step, Idx::constant(n as i64)));
                places.push(l.line_point(&shape, axis, line, at));
            }
            let (at, guards) = l.scanned(&from, src, &from_offsets, &places, &insides);
            let xs = from.load(&mut l.b, &at, &guards);
            let xs = cast::cast_all(&mut l.b, l.target, &xs, from.dtype, ty);
            // What the lane's elements up to each come to.
            let mut sums: Vec<Val> = Vec::with_capacity(each);
            for (x, &inside) in xs.into_iter().zip(&insides) {
                let x = inside.map_or(x, |g| l.b.selp(g, x, neutral));
                let sum = sums.last().map_or(Ok(x), |&sum| l.step(op, f, ty, sum, x))?;
                sums.push(sum);
            }
            let lane_val = index::to_val(&mut l.b, lane, Ty::B32);
            let mut total = sums[each - 1];
            for by in [1, 2, 4, 8, 16] {
                let by_val = l.b.c32(by);
                let below = l.shfl(ShflMode::Up, total, by_val, 0);
                let combined = l.step(op, f, ty, below, total)?;
                let has = l.b.setp(Cmp::Ge, Num::S32, lane_val, by_val);
                total = l.b.selp(has, combined, total);
            }
            let carried = l.b.get(carry);
            let total = l.step(op, f, ty, carried, total)?;
            let (zero, one, last) = (l.b.c32(0), l.b.c32(1), l.b.c32(WARP as i64 - 1));
            let below = l.shfl(ShflMode::Up, total, one, 0);
            let is_first = l.b.setp(Cmp::Eq, Num::S32, lane_val, zero);
            let before = l.b.selp(is_first, carried, below);
            let mut results = Vec::with_capacity(each);
            for i in 0..each {
                results.push(match i.checked_sub(usize::from(exclusive)) {
                    Some(upto) => l.step(op, f, ty, before, sums[upto])?,
                    None => before,
                });
            }
            let next = l.shfl(ShflMode::Idx, total, last, 31);
            l.b.set(carry, next);
            let results = cast::cast_all(&mut l.b, l.target, &results, ty, to.dtype);
            let (at, guards) = l.scanned(&to, dst, &to_offsets, &places, &insides);
            to.store(&mut l.b, &at, &guards, &results);
            let (lo, hi, one) = (l.b.c32(0), l.b.c32(chunks), l.b.c32(1));
            l.b.end_for(v, lo, hi, one, false);
            Ok(())
        };
        let (lo, hi) = (index::to_val(&mut self.b, warp, Ty::B32), self.b.c32(lines));
        let step = self.b.c32(warps as i64);
        let v = self.b.begin_for(Ty::B32);
        each_line(self, Idx::new(v, 0, lines - 1, 1))?;
        self.b.end_for(v, lo, hi, step, false);
        self.written_back(op, dst, staged)
    }

    /// Where points of a window lie in its buffer, and guards that are false outside of it and where `insides` are.
    fn scanned(
        &mut self,
        view: &View,
        w: &Window,
        offsets: &Coords,
        points: &[Coords],
        insides: &[Option<Val>],
    ) -> (Vec<Coords>, Vec<Option<Val>>) {
        let at: Vec<Coords> = points.iter().map(|p| window_point(&mut self.b, w, offsets, p)).collect();
        let guards = at.iter().zip(insides).map(|(c, &inside)| {
            let guard = view.guard(&mut self.b, c);
            self.b.and_guard(guard, inside)
        });
        let guards = guards.collect();
        (at, guards)
    }

    fn step(&mut self, op: Op, f: BinaryOp, ty: DType, x: Val, y: Val) -> Result<Val> {
        match scalar::binary(&mut self.b, self.target, f, ty, Scalar::Reg(x), Scalar::Reg(y)) {
            Ok(Scalar::Reg(v)) => Ok(v),
            Ok(Scalar::Idx(_)) | Err(scalar::Undefined) => self.undefined(op, f.name(), ty),
        }
    }

    /// Lane in the warp and number of the warp.
    pub(super) fn lane_and_warp(&mut self) -> (Idx, Idx) {
        let width = Idx::constant(WARP as i64);
        (index::rem(&mut self.b, self.tid, width), index::div(&mut self.b, self.tid, width))
    }

    /// The point of a box that is `at` along `axis` of line number `line` (row-major over the other axes).
    pub(super) fn line_point(&mut self, shape: &[usize], axis: usize, line: Idx, at: Idx) -> Coords {
        let mut point: Coords = shape.iter().map(|_| at).collect();
        let mut rest = line;
        let others: Vec<usize> = (0..shape.len()).filter(|&a| a != axis).collect();
        for (i, &a) in others.iter().enumerate().rev() {
            let extent = Idx::constant(shape[a] as i64);
            point[a] = if i == 0 { rest } else { index::rem(&mut self.b, rest, extent) };
            rest = index::div(&mut self.b, rest, extent);
        }
        point
    }

    /// A memory image of a window's buffer for writing single elements: itself, or a scratch tile of the fragment's
    /// shape that holds its present contents. `true` if it must be fetched back.
    pub(super) fn written(&mut self, op: Op, w: &Window) -> Result<(View, Coords, Option<View>)> {
        let offsets = self.offsets(op, w)?;
        self.place(op, w.buffer)?;
        if let Some(view) = self.memory(w.buffer) {
            return Ok((view, offsets, None));
        }
        let view = if self.whole_dist(w).is_some() {
            // Every element will be written.
            let what = format!("{} of {}", self.func.ops[op].kind.name(), self.name(w.buffer));
            let shape = self.func.buffers[w.buffer].static_shape().unwrap_or_default();
            self.scratch(&what, self.dtype(w.buffer), &shape)
        } else {
            self.readable(op, w.buffer)?
        };
        Ok((view.clone(), offsets, Some(view)))
    }

    /// Fetches what [`Lowerer::written`] staged.
    pub(super) fn written_back(&mut self, op: Op, w: &Window, staged: Option<View>) -> Result {
        let (Some(view), Some(dist)) = (staged, self.dist_of(w.buffer)) else { return Ok(()) };
        self.b.phase(format!("fetch {} after {}", self.name(w.buffer), self.func.ops[op].kind.name()));
        self.collect(w.buffer, &dist, &view);
        Ok(())
    }
}

/// Buffer coordinates of a window's point.
pub fn window_point(b: &mut crate::ptx::simt::Builder, w: &Window, offsets: &Coords, point: &Coords) -> Coords {
    let mut at = offsets.clone();
    for (axis, &x) in w.axes.iter().zip(point) {
        let a = usize::from(axis.axis);
        at[a] = index::add(b, at[a], x);
    }
    at
}
