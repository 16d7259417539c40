//! `shuffle`: exchange inside groups of 32 along the last axis.

use super::index::{self, Idx};
use super::scan::window_point;
use super::view::Coords;
use super::window::Sink;
use super::{Lowerer, Result, cast};
use crate::ptx::simt::{Bin, Ty};
use zellige_ir::{CmpOp, DType, Op, ShuffleOp, Value, Window};

/// Elements that exchange among themselves.
const GROUP: i64 = 32;

impl Lowerer<'_> {
    pub(super) fn shuffle(&mut self, op: Op, f: ShuffleOp, src: &Window, dst: &Window, amount: Value) -> Result {
        let shape = src.shape();
        if shape.is_empty() || dst.shape() != shape {
            return self.malformed(op, "the windows have different shapes");
        }
        if src.is_empty() {
            return Ok(());
        }
        let amount_ty = self.func.ty(amount);
        let amount = self.scalar(op, amount, None)?;
        let amount = match cast::cast(&mut self.b, self.target, amount, amount_ty, DType::Index) {
            super::value::Scalar::Idx(i) => i,
            super::value::Scalar::Reg(_) => return self.malformed(op, "the amount is no integer"),
        };
        let (from_ty, to_ty) = (self.dtype(src.buffer), self.dtype(dst.buffer));
        let dist = match self.whole_dist(dst) {
            Some(d) => d,
            None => self.walk_dist(dst, to_ty.bits())?,
        };
        // In place, the elements are read before any is overwritten.
        let (from, offsets) = if src.buffer == dst.buffer && self.memory(src.buffer).is_some() {
            let copy = self.scratch_copy(op, src)?;
            (copy, None)
        } else {
            (self.readable(op, src.buffer)?, Some(self.offsets(op, src)?))
        };
        let sink = self.sink(op, dst, &dist)?;
        self.b.phase("shuffle");
        let n = shape[shape.len() - 1] as i64;
        let max = if matches!(sink, Sink::Registers { .. }) { usize::MAX } else { 16 };
        self.for_parts(&dist, max, &mut |l, part| {
            let mut at = Vec::with_capacity(part.regs.len());
            let mut guards = Vec::with_capacity(part.regs.len());
            for &r in &part.regs {
                let mut point: Coords = part.coords(r);
                if let Some(last) = point.last_mut() {
                    *last = l.exchanged(f, *last, amount, n);
                }
                let c = match &offsets {
                    Some(o) => window_point(&mut l.b, src, o, &point),
                    None => point,
                };
                let live = l.live(part, r);
                let inside = from.guard(&mut l.b, &c);
                guards.push(l.b.and_guard(live, inside));
                at.push(c);
            }
            let vals = from.load(&mut l.b, &at, &guards);
            let vals = cast::cast_all(&mut l.b, l.target, &vals, from_ty, to_ty);
            l.store_part(&sink, part, &vals);
            Ok(())
        })?;
        self.finish(op, sink)
    }

    /// Where element `i` of a line of `n` comes from.
    fn exchanged(&mut self, f: ShuffleOp, i: Idx, amount: Idx, n: i64) -> Idx {
        let b = &mut self.b;
        let lane = index::rem(b, i, Idx::constant(GROUP));
        let group = index::sub(b, i, lane);
        let from = match f {
            ShuffleOp::Xor => index::bitwise(b, Bin::Xor, lane, amount),
            ShuffleOp::Up => index::sub(b, lane, amount),
            ShuffleOp::Down => index::add(b, lane, amount),
            ShuffleOp::Idx => amount,
        };
        let left = index::sub(b, Idx::constant(n), group);
        let lanes = index::min(b, left, Idx::constant(GROUP));
        let low = index::compare(b, CmpOp::Ge, from, Idx::constant(0));
        let high = index::compare(b, CmpOp::Lt, from, lanes);
        let valid = b.and(low, high);
        let there = index::add(b, group, from);
        let narrow = Idx { lo: 0, hi: n - 1, ..there };
        let ty = if there.is_narrow() { Ty::B32 } else { Ty::B64 };
        let (x, y) = (index::to_val(b, there, ty), index::to_val(b, i, ty));
        let v = b.selp(valid, x, y);
        if ty == Ty::B64 {
            let v = b.cvt(crate::ptx::simt::Num::U32, crate::ptx::simt::Num::U64, crate::ptx::simt::Round::Exact, v);
            return Idx::new(v, narrow.lo, narrow.hi, 1);
        }
        Idx::new(v, narrow.lo, narrow.hi, 1)
    }
}
