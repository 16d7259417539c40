//! Copies whose rows are looked up in an index.

use super::access::Guard;
use super::copy::View;
use super::rep::Rep;
use super::{Lower, Result};
use crate::cpu::loopir::{IntCc, Val};
use zellige_ir::numerics::{Const, cast};
use zellige_ir::{DType, Op, Window};

/// The first axis of a view taken away, its offset moved.
fn row_of(view: &View, row: Val) -> View {
    let mut v = view.clone();
    v.offsets[v.axes[0]] = row;
    v.axes.remove(0);
    v.shape.remove(0);
    v
}

impl Lower<'_> {
    /// Runs `body` for each row `i` with the position that the index gives it: the row along `target`'s first axis, and whether
    /// that is inside.
    fn each_row(
        &mut self,
        index: &View,
        target: &View,
        body: &mut dyn FnMut(&mut Self, Val, Val, Val) -> Result,
    ) -> Result {
        let n = self.b.i64(index.shape[0] as i64);
        let zero = self.b.i64(0);
        let ty = index.storage.dtype;
        let pad = self.immediate(ty, 0);
        let guard = if index.storage.global { Guard::Check(pad) } else { Guard::Inside };
        self.counted(zero, n, 1, &mut |l, i| {
            let at = index.index(l, &[Rep::Uni(i)]);
            let position = l.load_elem(&index.storage, &at, guard);
            let position = l.cast(position, ty, DType::I64);
            let position = l.lane(position, DType::I64, 0);
            let axis = target.axes[0];
            let row = l.b.add(target.offsets[axis], position);
            let positive = l.b.icmp(IntCc::Sge, position, zero);
            let inside = l.b.icmp(IntCc::Ult, row, target.storage.extents[axis]);
            let ok = l.and(positive, inside);
            body(l, i, row, ok)
        })
    }

    pub(super) fn gather(&mut self, at: Op, src: &Window, index: &Window, dst: &Window, pad: Const) -> Result {
        let (s, x, d) = (self.view(at, src)?, self.view(at, index)?, self.view(at, dst)?);
        let fill = cast(pad, d.storage.dtype);
        let value = self.immediate(d.storage.dtype, fill.bits());
        self.each_row(&x, &s, &mut |l, i, row, ok| {
            let to = l.b.add(d.offsets[d.axes[0]], i);
            let (from, to) = (row_of(&s, row), row_of(&d, to));
            l.b.begin_if(ok);
            l.copy_views(&from, &to, pad)?;
            l.b.begin_else(&[]);
            let range = l.clip(&to);
            l.fill_inside(&to, &range, Rep::Uni(value))?;
            l.b.end_if(&[]);
            Ok(())
        })
    }

    pub(super) fn scatter(&mut self, at: Op, src: &Window, dst: &Window, index: &Window) -> Result {
        let (s, x, d) = (self.view(at, src)?, self.view(at, index)?, self.view(at, dst)?);
        let pad = Const::zero(s.storage.dtype);
        self.each_row(&x, &d, &mut |l, i, row, ok| {
            let from = l.b.add(s.offsets[s.axes[0]], i);
            let (from, to) = (row_of(&s, from), row_of(&d, row));
            l.b.begin_if(ok);
            l.copy_views(&from, &to, pad)?;
            l.b.end_if(&[]);
            Ok(())
        })
    }
}
