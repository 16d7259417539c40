//! `gather` and `scatter`: rows at positions that an index gives.

use super::dist::Dist;
use super::index::{self, Idx};
use super::value::Scalar;
use super::view::{Coords, View};
use super::window::{Part, Sink};
use super::{Lowerer, Result, cast, copy};
use crate::ptx::simt::{SimtOp, Space, Val};
use smallvec::SmallVec;
use std::rc::Rc;
use zellige_ir::{CmpOp, Const, DType, Op, Window};

/// A window whose first axis is looked up.
struct Rows<'w> {
    view: View,
    offsets: Coords,
    window: &'w Window,
    index: View,
    index_offsets: Coords,
    index_window: &'w Window,
}

impl Lowerer<'_> {
    fn rows<'w>(&mut self, op: Op, view: View, window: &'w Window, index_window: &'w Window) -> Result<Rows<'w>> {
        let index = self.readable(op, index_window.buffer)?;
        let (offsets, index_offsets) = (self.offsets(op, window)?, self.offsets(op, index_window)?);
        Ok(Rows { view, offsets, window, index, index_offsets, index_window })
    }

    /// Buffer coordinates of a part's elements and whether their row exists.
    fn row_places(&mut self, rows: &Rows<'_>, part: &Part) -> (Vec<Coords>, Vec<Option<Val>>) {
        let axis = usize::from(rows.window.axes[0].axis);
        let index_axis = usize::from(rows.index_window.axes[0].axis);
        let mut index_at = Vec::with_capacity(part.regs.len());
        let mut index_guards = Vec::with_capacity(part.regs.len());
        for &r in &part.regs {
            let mut c = rows.index_offsets.clone();
            c[index_axis] = index::add(&mut self.b, c[index_axis], part.coords(r)[0]);
            let live = self.live(part, r);
            let inside = rows.index.guard(&mut self.b, &c);
            index_guards.push(self.b.and_guard(live, inside));
            index_at.push(c);
        }
        let positions = rows.index.load(&mut self.b, &index_at, &index_guards);
        let extent = rows.view.extents[axis];
        let mut at = Vec::with_capacity(part.regs.len());
        let mut guards = Vec::with_capacity(part.regs.len());
        for (i, &r) in part.regs.iter().enumerate() {
            let p = Scalar::Reg(positions[i]);
            let Scalar::Idx(p) = cast::cast(&mut self.b, self.target, p, rows.index.dtype, DType::Index) else {
                unreachable!("a cast to `index` is an index")
            };
            let row = index::add(&mut self.b, rows.offsets[axis], p);
            let coords = part.coords(r);
            let mut c = rows.offsets.clone();
            for (j, a) in rows.window.axes.iter().enumerate().skip(1) {
                let a = usize::from(a.axis);
                c[a] = index::add(&mut self.b, c[a], coords[j]);
            }
            c[axis] = row;
            let low = if p.lo >= 0 { None } else { Some(index::compare(&mut self.b, CmpOp::Ge, p, Idx::constant(0))) };
            let high = index::in_bounds(&mut self.b, row, extent);
            let mut guard = self.b.and_guard(low, high);
            guard = self.b.and_guard(guard, index_guards[i]);
            let inside = rows.view.guard(&mut self.b, &c);
            guard = self.b.and_guard(guard, inside);
            at.push(c);
            guards.push(guard);
        }
        (at, guards)
    }

    pub(super) fn gather(&mut self, op: Op, src: &Window, idx: &Window, dst: &Window, pad: Const) -> Result {
        if src.rank() == 0 || dst.rank() != src.rank() || src.shape()[1..] != dst.shape()[1..] {
            return self.malformed(op, "source and destination rows have different shapes");
        }
        if idx.shape()[..] != dst.shape()[..1] {
            return self.malformed(op, "the index has another length than the destination");
        }
        if dst.is_empty() {
            return Ok(());
        }
        let dist = self.gather_dist(src, dst)?;
        let view = self.readable(op, src.buffer)?;
        let rows = self.rows(op, view, src, idx)?;
        let sink = self.sink(op, dst, &dist)?;
        self.b.phase("gather");
        let asynchronous = self.gather_parts(&rows, &sink, &dist, dst, pad, !self.in_pipeline)?;
        if asynchronous {
            self.b.push(SimtOp::CpAsyncCommit {});
            self.b.push(SimtOp::CpAsyncWait { pending: 0 });
        }
        self.finish(op, sink)
    }

    /// The layout under which a gather walks its destination.
    pub(super) fn gather_dist(&mut self, src: &Window, dst: &Window) -> Result<Rc<Dist>> {
        match self.whole_dist(dst) {
            Some(d) => Ok(d),
            None => {
                let bits = self.dtype(src.buffer).bits().min(self.dtype(dst.buffer).bits());
                self.walk_dist(dst, bits)
            }
        }
    }

    /// Moves all rows; `may_be_async`: global rows may go to shared memory through asynchronous copies. True if some did.
    fn gather_parts(
        &mut self,
        rows: &Rows<'_>,
        sink: &Sink,
        dist: &Rc<Dist>,
        dst: &Window,
        pad: Const,
        may_be_async: bool,
    ) -> Result<bool> {
        let (from, to) = (rows.view.dtype, self.dtype(dst.buffer));
        let to_shared = matches!(sink, Sink::Memory { view, .. } if view.space == Space::Shared);
        let through = may_be_async
            && to_shared
            && rows.view.space == Space::Global
            && from == to
            && pad.bits() == 0
            && from.bits() >= 8;
        let max = if matches!(sink, Sink::Registers { .. }) {
            usize::MAX
        } else {
            copy::IN_FLIGHT_WORDS * 32 / from.bits().max(to.bits())
        };
        let mut asynchronous = false;
        self.for_parts(dist, max, &mut |l, part| {
            let (at, guards) = l.row_places(rows, part);
            if through {
                asynchronous |= l.store_async(&rows.view, &at, &guards, sink, part);
                return Ok(());
            }
            let vals = rows.view.load(&mut l.b, &at, &guards);
            let vals = l.pad(vals, &guards, pad);
            let vals = cast::cast_all(&mut l.b, l.target, &vals, from, to);
            l.store_part(sink, part, &vals);
            Ok(())
        })?;
        Ok(asynchronous)
    }

    /// The asynchronous part of a gather in a pipelined loop.
    pub(super) fn gather_ring(
        &mut self,
        op: Op,
        src: &Window,
        idx: &Window,
        dst: &Window,
        sink: &Sink,
        pad: Const,
    ) -> Result<bool> {
        let dist = self.gather_dist(src, dst)?;
        let view = self.readable(op, src.buffer)?;
        let rows = self.rows(op, view, src, idx)?;
        self.gather_parts(&rows, sink, &dist, dst, pad, true)
    }

    pub(super) fn scatter(&mut self, op: Op, src: &Window, dst: &Window, idx: &Window) -> Result {
        if src.rank() == 0 || dst.rank() != src.rank() || src.shape()[1..] != dst.shape()[1..] {
            return self.malformed(op, "source and destination rows have different shapes");
        }
        if idx.shape()[..] != src.shape()[..1] {
            return self.malformed(op, "the index has another length than the source");
        }
        if src.is_empty() {
            return Ok(());
        }
        let (from, to) = (self.dtype(src.buffer), self.dtype(dst.buffer));
        let dist = match self.whole_dist(src) {
            Some(d) => d,
            None => self.walk_dist(src, from.bits().min(to.bits()))?,
        };
        let source = self.source(op, src, &dist)?;
        self.place(op, dst.buffer)?;
        let in_memory = self.memory(dst.buffer);
        let staged = in_memory.is_none();
        let view = match in_memory {
            Some(v) => v,
            None => self.readable(op, dst.buffer)?,
        };
        let rows = self.rows(op, view.clone(), dst, idx)?;
        self.b.phase("scatter");
        let primary = dist.primary(&mut self.b, self.tid);
        let zero = Const::zero(from);
        let max = match source {
            super::window::Source::Registers { .. } => usize::MAX,
            super::window::Source::Memory { .. } => copy::IN_FLIGHT_WORDS * 32 / from.bits().max(to.bits()),
        };
        self.for_parts(&dist, max, &mut |l, part| {
            let vals = l.load_part(&source, part, zero);
            let vals = cast::cast_all(&mut l.b, l.target, &vals, from, to);
            let (at, guards) = l.row_places(&rows, part);
            let guards: SmallVec<[Option<Val>; 8]> = guards.into_iter().map(|g| l.b.and_guard(g, primary)).collect();
            rows.view.store(&mut l.b, &at, &guards, &vals);
            Ok(())
        })?;
        if staged {
            self.written_back(op, dst, Some(view))?;
        }
        Ok(())
    }
}
