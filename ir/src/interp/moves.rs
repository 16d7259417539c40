//! Tile ops that move elements: copy, gather, scatter, shuffle.

use super::error::InterpErrorKind;
use super::exec::{Coords, Machine, Step};
use super::points::Points;
use super::tile::element;
use crate::func::{Buffer, Op, Scope};
use crate::numerics::{Const, cast};
use crate::op::ShuffleOp;
use crate::window::Window;
use std::collections::HashMap;

/// Lanes that exchange elements in a shuffle.
const GROUP: usize = 32;

impl Machine<'_> {
    pub(super) fn copy(&mut self, op: Op, src: &Window, dst: &Window, pad: Const) -> Step {
        self.expect_shape(op, "the destination", &dst.shape(), &src.shape())?;
        self.check_overlap(op, src, dst, true)?;
        let (from, to) = (self.origin(op, src)?, self.origin(op, dst)?);
        let ty = self.dtype(dst.buffer);
        for p in Points::new(&src.shape()) {
            let at = element(&to, dst, &p);
            // What is not written need not exist.
            if self.is_skipped(dst.buffer, &at) {
                continue;
            }
            let v = self.read(op, src.buffer, &element(&from, src, &p), pad)?;
            self.write(op, dst.buffer, &at, cast(v, ty))?;
        }
        Ok(())
    }

    /// True for a write that does nothing: outside a global buffer.
    pub(super) fn is_skipped(&self, buffer: Buffer, at: &[i64]) -> bool {
        self.func.buffers[buffer].scope == Scope::Global && !self.is_inside(buffer, at)
    }

    pub(super) fn gather(&mut self, op: Op, src: &Window, index: &Window, dst: &Window, pad: Const) -> Step {
        if src.rank() == 0 || dst.rank() == 0 || src.shape()[1..] != dst.shape()[1..] {
            return self.malformed(op, "a gather's source rows have another shape than its destination rows");
        }
        self.expect_shape(op, "the index", &index.shape(), &dst.shape()[..1])?;
        self.check_overlap(op, src, dst, false)?;
        let (from, to) = (self.origin(op, src)?, self.origin(op, dst)?);
        let ty = self.dtype(dst.buffer);
        for p in Points::new(&dst.shape()) {
            let at = element(&to, dst, &p);
            if self.is_skipped(dst.buffer, &at) {
                continue;
            }
            let v = match self.row(op, src, &from, index, &p)? {
                Some(place) => self.read(op, src.buffer, &place, pad)?,
                None => pad,
            };
            self.write(op, dst.buffer, &at, cast(v, ty))?;
        }
        Ok(())
    }

    pub(super) fn scatter(&mut self, op: Op, src: &Window, dst: &Window, index: &Window) -> Step {
        if src.rank() == 0 || dst.rank() == 0 || src.shape()[1..] != dst.shape()[1..] {
            return self.malformed(op, "a scatter's source rows have another shape than its destination rows");
        }
        self.expect_shape(op, "the index", &index.shape(), &src.shape()[..1])?;
        self.check_overlap(op, src, dst, false)?;
        let (from, to) = (self.origin(op, src)?, self.origin(op, dst)?);
        let ty = self.dtype(dst.buffer);
        // Which row was written to which position.
        let mut rows = HashMap::new();
        for p in Points::new(&src.shape()) {
            let Some(at) = self.row(op, dst, &to, index, &p)? else { continue };
            let position = at[usize::from(dst.axes[0].axis)];
            if *rows.entry(position).or_insert(p[0]) != p[0] {
                self.report(op, InterpErrorKind::DuplicatePosition { position }, Vec::new())?;
            }
            if self.is_skipped(dst.buffer, &at) {
                continue;
            }
            let zero = Const::zero(self.dtype(src.buffer));
            let v = self.read(op, src.buffer, &element(&from, src, &p), zero)?;
            self.write(op, dst.buffer, &at, cast(v, ty))?;
        }
        Ok(())
    }

    /// Where `window`'s element `p` lies when its first coordinate is looked up in `index`; `None` if the position is
    /// negative or beyond the buffer.
    pub(super) fn row(
        &mut self,
        op: Op,
        window: &Window,
        origin: &Coords,
        index: &Window,
        p: &[usize],
    ) -> Step<Option<Coords>> {
        let index_origin = self.origin(op, index)?;
        let zero = Const::zero(self.dtype(index.buffer));
        let position = self.read(op, index.buffer, &element(&index_origin, index, &p[..1]), zero)?.as_i64();
        let axis = usize::from(window.axes[0].axis);
        let extent = self.extent(window.buffer, axis);
        let mut at = element(origin, window, p);
        at[axis] = match origin[axis].checked_add(position) {
            Some(row) if position >= 0 && (0..extent).contains(&row) => row,
            Some(_) | None => return Ok(None),
        };
        Ok(Some(at))
    }

    pub(super) fn shuffle(&mut self, op: Op, f: ShuffleOp, src: &Window, dst: &Window, amount: i64) -> Step {
        self.expect_shape(op, "the destination", &dst.shape(), &src.shape())?;
        self.check_overlap(op, src, dst, true)?;
        let values = self.read_zero_padded(op, src)?;
        let n = src.shape().last().copied().unwrap_or(1).max(1);
        let shuffled: Vec<Const> = (0..values.len())
            .map(|at| {
                let i = at % n;
                let lane = (i % GROUP) as i64;
                let from = match f {
                    ShuffleOp::Xor => lane ^ amount,
                    ShuffleOp::Up => lane - amount,
                    ShuffleOp::Down => lane + amount,
                    ShuffleOp::Idx => amount,
                };
                let group = i - i % GROUP;
                let lanes = GROUP.min(n - group) as i64;
                if (0..lanes).contains(&from) { values[at - i + group + from as usize] } else { values[at] }
            })
            .collect();
        self.write_window(op, dst, &shuffled)
    }
}
