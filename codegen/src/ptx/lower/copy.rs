//! `copy` and `fill`.

use super::dist::Dist;
use super::value::Scalar;
use super::view::{Coords, View};
use super::window::{Part, Sink, Source};
use super::{Lowerer, Result, cast};
use crate::ptx::simt::{SimtOp, Space, Val};
use std::rc::Rc;
use zellige_ir::{Const, DType, Op, Value, Window};

/// Registers of 32 bits in flight for each operand of a memory-to-memory walk.
pub const IN_FLIGHT_WORDS: usize = 32;

impl Lowerer<'_> {
    pub(super) fn copy(&mut self, op: Op, src: &Window, dst: &Window, pad: Const) -> Result {
        if src.shape() != dst.shape() {
            return self.malformed(op, "the windows have different shapes");
        }
        // Onto itself: nothing changes.
        if src.is_empty() || src == dst {
            return Ok(());
        }
        if let Some(done) = self.hopper_store(op, dst) {
            return done;
        }
        if let Some(done) = self.hopper_arrival(op) {
            return done;
        }
        let dist = self.copy_dist(src, dst)?;
        self.copy_under(op, src, dst, pad, &dist)
    }

    /// The layout under which a copy walks: that of a fragment it touches, else coalesced on the tensor's side.
    pub(super) fn copy_dist(&mut self, src: &Window, dst: &Window) -> Result<Rc<Dist>> {
        let (from, to) = (self.dtype(src.buffer), self.dtype(dst.buffer));
        if let Some(dist) = self.whole_dist(dst).or_else(|| self.whole_dist(src)) {
            return Ok(dist);
        }
        if let Some(dist) = self.turned_dist(dst).or_else(|| self.turned_dist(src)) {
            return Ok(dist);
        }
        let global = |l: &Self, w: &Window| l.memory(w.buffer).is_some_and(|v| v.space == Space::Global);
        let side = if global(self, src) || !global(self, dst) { src } else { dst };
        self.walk_dist(side, from.bits().min(to.bits()))
    }

    fn copy_under(&mut self, op: Op, src: &Window, dst: &Window, pad: Const, dist: &Rc<Dist>) -> Result {
        let (from, to) = (self.dtype(src.buffer), self.dtype(dst.buffer));
        let source = self.source(op, src, dist)?;
        let sink = self.sink(op, dst, dist)?;
        self.b.phase("copy");
        if let (Source::Memory { view: from_view, .. }, Sink::Memory { view: to_view, .. }) = (&source, &sink)
            && from_view.space == Space::Global
            && to_view.space == Space::Shared
            && from == to
            && pad.bits() == 0
            && from.bits() >= 8
            && !self.in_pipeline
        {
            let mut asynchronous = false;
            self.for_parts(dist, limit(&source, &sink, from, to), &mut |l, part| {
                asynchronous |= l.copy_async(&source, &sink, part);
                Ok(())
            })?;
            if asynchronous {
                self.b.push(SimtOp::CpAsyncCommit {});
                self.b.push(SimtOp::CpAsyncWait { pending: 0 });
            }
            return Ok(());
        }
        self.for_parts(dist, limit(&source, &sink, from, to), &mut |l, part| {
            let vals = l.load_part(&source, part, pad);
            let vals = cast::cast_all(&mut l.b, l.target, &vals, from, to);
            l.store_part(&sink, part, &vals);
            Ok(())
        })?;
        self.finish(op, sink)
    }

    /// Copies a part from global to shared memory, asynchronously where possible. True if something was started.
    pub(super) fn copy_async(&mut self, source: &Source, sink: &Sink, part: &Part) -> bool {
        let (Source::Memory { view: from, offsets, axes }, Sink::Memory { .. }) = (source, sink) else {
            unreachable!("both sides are in memory")
        };
        let (at, guards) = self.places_of(from, offsets, axes, part);
        self.store_async(from, &at, &guards, sink, part)
    }

    /// Copies elements of global memory to the part's places in shared memory without passing through registers where
    /// 4 bytes or more lie together; the rest goes through registers. True if something was started asynchronously.
    pub(super) fn store_async(
        &mut self,
        from: &View,
        src_at: &[Coords],
        src_guards: &[Option<Val>],
        sink: &Sink,
        part: &Part,
    ) -> bool {
        let Sink::Memory { view: to, offsets, axes } = sink else { unreachable!("the destination is in memory") };
        let (dst_at, dst_guards) = self.places_of(to, offsets, axes, part);
        let primary = part.dist.primary(&mut self.b, self.tid);
        let dst_guards: Vec<Option<Val>> = dst_guards.into_iter().map(|g| self.b.and_guard(g, primary)).collect();
        let src_offsets: Vec<_> = src_at.iter().map(|c| from.offset(&mut self.b, c)).collect();
        let dst_offsets: Vec<_> = dst_at.iter().map(|c| to.offset(&mut self.b, c)).collect();
        let bits = from.dtype.bits();
        let mut asynchronous = false;
        let mut i = 0;
        while i < part.regs.len() {
            let n = if bits < 8 {
                let src = from.nibble_run(&mut self.b, &src_at[i..], &src_offsets[i..], &src_guards[i..]);
                src.min(to.nibble_run(&mut self.b, &dst_at[i..], &dst_offsets[i..], &dst_guards[i..]))
            } else {
                from.run(&src_offsets[i..], &src_guards[i..]).min(to.run(&dst_offsets[i..], &dst_guards[i..]))
            };
            if n * bits >= 32 {
                let (src, dst) = (from.address(&mut self.b, src_offsets[i]), to.address(&mut self.b, dst_offsets[i]));
                let total = (n * bits / 8) as u32;
                let size = src_guards[i].filter(|g| Some(*g) != dst_guards[i]).map(|g| {
                    let (all, none) = (self.b.c32(total.into()), self.b.c32(0));
                    self.b.selp(g, all, none)
                });
                self.b.push(SimtOp::CpAsync { dst, src, bytes: total, size, guard: dst_guards[i] });
                asynchronous = true;
            } else {
                let vals = from.load(&mut self.b, &src_at[i..i + n], &src_guards[i..i + n]);
                to.store(&mut self.b, &dst_at[i..i + n], &dst_guards[i..i + n], &vals);
            }
            i += n;
        }
        asynchronous
    }

    pub(super) fn fill(&mut self, op: Op, dst: &Window, value: Value) -> Result {
        if dst.is_empty() {
            return Ok(());
        }
        let to = self.dtype(dst.buffer);
        let from = self.func.ty(value);
        let x = self.scalar(op, value, None)?;
        let x = match cast::cast(&mut self.b, self.target, x, from, to) {
            Scalar::Reg(v) => v,
            Scalar::Idx(_) => return self.malformed(op, "no buffer holds `index`"),
        };
        let dist = match self.whole_dist(dst) {
            Some(d) => d,
            None => self.walk_dist(dst, to.bits())?,
        };
        let sink = self.sink(op, dst, &dist)?;
        if !matches!(sink, Sink::Registers { .. }) {
            self.b.phase("fill");
        }
        let max = if matches!(sink, Sink::Registers { .. }) { usize::MAX } else { 4 * IN_FLIGHT_WORDS };
        self.for_parts(&dist, max, &mut |l, part| {
            let vals = vec![x; part.regs.len()];
            l.store_part(&sink, part, &vals);
            Ok(())
        })?;
        self.finish(op, sink)
    }
}

/// Registers of a part: everything where fragments are involved, else what may be in flight at once.
pub(super) fn limit(source: &Source, sink: &Sink, from: DType, to: DType) -> usize {
    match (source, sink) {
        (Source::Memory { .. }, Sink::Memory { .. } | Sink::Staged { .. }) => {
            IN_FLIGHT_WORDS * 32 / from.bits().max(to.bits())
        }
        _ => usize::MAX,
    }
}
