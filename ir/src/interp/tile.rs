//! Tile ops: each reads its operands, computes, and writes its results.
//!
//! A tile op is one step: it reads all its sources before it writes. Where a backend could not keep that promise
//! without a copy, because a destination overlaps a source, the interpreter reports an error; only copies, scans and
//! shuffles may work in place, on one and the same window. The ops themselves are in `moves`, `sums` and `order`.

use super::error::InterpErrorKind;
use super::exec::{Coords, Machine, Step};
use super::points::Points;
use crate::func::Op;
use crate::numerics::{Const, cast};
use crate::op::{OpKind, Visit};
use crate::window::Window;

impl Machine<'_> {
    pub(super) fn tile_op(&mut self, op: Op) -> Step {
        let func = self.func;
        let kind = &func.ops[op].kind;
        let mut elements = 0;
        kind.for_each_window(&mut |w| elements += w.len() as u64);
        self.spend(op, elements)?;
        match kind {
            OpKind::Copy { src, dst, pad } => self.copy(op, src, dst, *pad),
            OpKind::Gather { src, index, dst, pad } => self.gather(op, src, index, dst, *pad),
            OpKind::Scatter { src, dst, index } => self.scatter(op, src, dst, index),
            OpKind::Fill { dst, value } => {
                let value = self.get(op, *value)?;
                self.write_window(op, dst, &vec![value; dst.len()])
            }
            OpKind::Gemm { a, b, acc, precision } => self.gemm(op, a, b, acc, *precision),
            OpKind::Reduce { op: f, src, dst, axis, accumulate } => {
                self.reduce(op, *f, src, dst, *axis as usize, *accumulate)
            }
            OpKind::Scan { op: f, src, dst, axis, reverse, exclusive } => {
                self.scan(op, *f, src, dst, *axis as usize, *reverse, *exclusive)
            }
            OpKind::TopK { src, values, indices, largest } => self.topk(op, src, values, indices, *largest),
            OpKind::Sort { keys, payload, descending } => self.sort(op, keys, payload.as_ref(), *descending),
            OpKind::Shuffle { op: f, src, dst, amount } => {
                let amount = self.get(op, *amount)?.as_i64();
                self.shuffle(op, *f, src, dst, amount)
            }
            OpKind::Unary { .. }
            | OpKind::Binary { .. }
            | OpKind::Fma { .. }
            | OpKind::Cmp { .. }
            | OpKind::Select { .. }
            | OpKind::Cast { .. }
            | OpKind::Bitcast { .. }
            | OpKind::Load { .. }
            | OpKind::Store { .. }
            | OpKind::Atomic { .. }
            | OpKind::Alloc { .. }
            | OpKind::For { .. }
            | OpKind::If { .. }
            | OpKind::While { .. }
            | OpKind::Role { .. }
            | OpKind::Print { .. }
            | OpKind::Assert { .. }
            | OpKind::Assume { .. }
            | OpKind::Layout { .. } => self.malformed(op, format!("{} is no tile op", kind.name())),
        }
    }

    /// All elements of a window in its own row-major order; `pad` outside a global buffer.
    pub(super) fn read_window(&mut self, op: Op, window: &Window, pad: Const) -> Step<Vec<Const>> {
        let origin = self.origin(op, window)?;
        Points::new(&window.shape()).map(|p| self.read(op, window.buffer, &element(&origin, window, &p), pad)).collect()
    }

    /// As [`read_window`](Self::read_window), padded with zeros.
    pub(super) fn read_zero_padded(&mut self, op: Op, window: &Window) -> Step<Vec<Const>> {
        self.read_window(op, window, Const::zero(self.dtype(window.buffer)))
    }

    /// Writes all elements of a window, converting them.
    pub(super) fn write_window(&mut self, op: Op, window: &Window, values: &[Const]) -> Step {
        let origin = self.origin(op, window)?;
        let ty = self.dtype(window.buffer);
        Points::new(&window.shape())
            .zip(values)
            .try_for_each(|(p, &v)| self.write(op, window.buffer, &element(&origin, window, &p), cast(v, ty)))
    }

    /// Reports an error if two windows share an element. With `in_place`, the very same window is fine.
    pub(super) fn check_overlap(&mut self, op: Op, src: &Window, dst: &Window, in_place: bool) -> Step {
        if src.buffer != dst.buffer {
            return Ok(());
        }
        let (a, b) = (self.origin(op, src)?, self.origin(op, dst)?);
        if in_place && a == b && src.axes == dst.axes {
            return Ok(());
        }
        let extent =
            |w: &Window, axis| w.axes.iter().find(|a| usize::from(a.axis) == axis).map_or(1, |a| a.extent as i64);
        let apart = (0..a.len()).any(|i| a[i] + extent(src, i) <= b[i] || b[i] + extent(dst, i) <= a[i]);
        if apart || src.is_empty() || dst.is_empty() {
            return Ok(());
        }
        let buffer = self.name(src.buffer);
        self.report(op, InterpErrorKind::Overlap { buffer }, Vec::new())
    }

    pub(super) fn expect_shape(&mut self, op: Op, what: &str, got: &[usize], want: &[usize]) -> Step {
        if got == want {
            return Ok(());
        }
        self.malformed(op, format!("{what} has shape {got:?}, expected {want:?}"))
    }
}

/// The buffer coordinates of a window's element.
pub(super) fn element(origin: &Coords, window: &Window, point: &[usize]) -> Coords {
    let mut at = origin.clone();
    for (axis, &i) in window.axes.iter().zip(point) {
        // Offsets near the ends of i64 lie outside every buffer, as their saturated sums do.
        at[usize::from(axis.axis)] = at[usize::from(axis.axis)].saturating_add(i as i64);
    }
    at
}

/// The elements of a row-major array along one axis.
pub(super) struct Line {
    start: usize,
    step: usize,
    pub(super) len: usize,
}

impl Line {
    pub(super) fn at(&self, i: usize) -> usize {
        self.start + i * self.step
    }
}

/// All lines along `axis`, in row-major order of the other axes.
pub(super) fn lines(shape: &[usize], axis: usize) -> impl Iterator<Item = Line> {
    let (len, step) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let outer: usize = shape[..axis].iter().product();
    (0..outer * step).map(move |i| Line { start: i / step * step * len + i % step, step, len })
}
