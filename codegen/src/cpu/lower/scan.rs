//! Running combinations along an axis.

use super::access::Guard;
use super::rep::{Rep, W};
use super::{Lower, Result, Stride};
use crate::cpu::loopir::Val;
use zellige_ir::{Const, Op, ReduceOp, ScanOp, Window};

impl Lower<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn scan(
        &mut self,
        at: Op,
        op: ScanOp,
        src: &Window,
        dst: &Window,
        axis: usize,
        reverse: bool,
        exclusive: bool,
    ) -> Result {
        let (s, d) = (self.view(at, src)?, self.view(at, dst)?);
        let op = ReduceOp::from(op);
        let (from, to) = (s.storage.dtype, d.storage.dtype);
        let ty = to.accumulator();
        let start = op.identity(ty).unwrap_or(Const::zero(ty));
        let n = s.shape[axis] as i64;
        let outer: Vec<usize> = (0..s.shape.len()).filter(|a| *a != axis).collect();
        let extents: Vec<Val> = outer.iter().map(|a| self.b.i64(s.shape[*a] as i64)).collect();
        let pad = self.immediate(from, 0);
        let (load, store) = (
            if s.storage.global { Guard::Check(pad) } else { Guard::Inside },
            if d.storage.global { Guard::Check(pad) } else { Guard::Inside },
        );
        // Four lines at once, if they are neighbours.
        let across = (0..outer.len()).rev().find(|&i| {
            s.stride(outer[i]) == Stride::Const(1)
                && s.shape[outer[i]] >= W
                && super::rep::vec_reg(ty).is_some()
                && !s.storage.global
        });
        self.box_loop(&extents, across, 1, &mut |l, point| {
            let start = l.immediate(ty, start.bits());
            let wide = point.iter().any(|p| !p.is_uniform());
            let start = if wide { l.as_vec(Rep::Uni(start), ty) } else { start };
            let (zero, end) = (l.b.i64(0), l.b.i64(n));
            let lp = l.b.begin_for(zero, end, 1, &[start]);
            let sum = lp.params[0];
            let position = if reverse {
                let last = l.b.i64(n - 1);
                l.b.sub(last, lp.iv)
            } else {
                lp.iv
            };
            let mut p = vec![Rep::Uni(position); s.shape.len()];
            for (&a, &rep) in outer.iter().zip(point) {
                p[a] = rep;
            }
            let idx = s.index(l, &p);
            let x = l.load_elem(&s.storage, &idx, load);
            let x = l.cast(x, from, ty);
            let x = if wide { l.as_vec(x, ty) } else { l.lane(x, ty, 0) };
            let next = l.combine(op, sum, x, ty);
            let shown = if exclusive { sum } else { next };
            let shown = if wide { Rep::Vec(shown) } else { Rep::Uni(shown) };
            let shown = l.cast(shown, ty, to);
            let idx = d.index(l, &p);
            l.store_elem(&d.storage, &idx, shown, store);
            let _ = l.b.end_for(lp, &[next]);
            Ok(())
        })
    }
}
