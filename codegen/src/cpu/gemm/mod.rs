//! Matrix products of tiles.

use super::lower::{Lower, Rep, Result};
use crate::cpu::loopir::{BinOp, Val};
use crate::cpu::lower::Guard;
use zellige_ir::{DType, GemmPrecision, Op, Window};

impl Lower<'_> {
    /// `acc += a * b`.
    pub(crate) fn gemm(&mut self, at: Op, a: &Window, b: &Window, acc: &Window, precision: GemmPrecision) -> Result {
        let (va, vb, vc) = (self.view(at, a)?, self.view(at, b)?, self.view(at, acc)?);
        let ty = match vc.storage.dtype {
            DType::F16 | DType::BF16 => DType::F32,
            ty => ty,
        };
        let _ = precision;
        let (m, n, k) = (va.shape[0] as i64, vb.shape[1] as i64, va.shape[1] as i64);
        let extents = [self.b.i64(m), self.b.i64(n)];
        self.box_loop(&extents, None, 1, &mut |l, p| {
            let c = vc.index(l, p);
            let guard = |l: &mut Self, v: &crate::cpu::lower::View| {
                if v.storage.global { Guard::Check(l.immediate(v.storage.dtype, 0)) } else { Guard::Inside }
            };
            let (ga, gb, gc) = (guard(l, &va), guard(l, &vb), guard(l, &vc));
            let start = l.load_elem(&vc.storage, &c, gc);
            let start = l.cast(start, vc.storage.dtype, ty);
            let start = l.lane(start, ty, 0);
            let (zero, end) = (l.b.i64(0), l.b.i64(k));
            let lp = l.b.begin_for(zero, end, 1, &[start]);
            let operand = |l: &mut Self, v: &crate::cpu::lower::View, p: &[Rep], g| -> Val {
                let idx = v.index(l, p);
                let x = l.load_elem(&v.storage, &idx, g);
                let x = l.cast(x, v.storage.dtype, ty);
                l.lane(x, ty, 0)
            };
            let x = operand(l, &va, &[p[0], Rep::Uni(lp.iv)], ga);
            let y = operand(l, &vb, &[Rep::Uni(lp.iv), p[1]], gb);
            let next = if ty.is_float() {
                l.b.fma(x, y, lp.params[0])
            } else {
                let xy = l.b.bin(BinOp::Mul, x, y);
                let r = l.b.add(lp.params[0], xy);
                l.normalise(r, ty)
            };
            let total = l.b.end_for(lp, &[next])[0];
            let total = l.cast(Rep::Uni(total), ty, vc.storage.dtype);
            l.store_elem(&vc.storage, &c, total, gc);
            Ok(())
        })
    }
}
