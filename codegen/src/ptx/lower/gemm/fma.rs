//! A gemm by multiply-adds: f32 operands as they are, f64, wide integers.

use crate::ptx::lower::frag::Fragment;
use crate::ptx::lower::index::{self, Idx};
use crate::ptx::lower::value::{self, Scalar};
use crate::ptx::lower::view::{Coords, View};
use crate::ptx::lower::{Lowerer, Result, cast, scalar};
use crate::ptx::simt::{Ty, Val};
use std::collections::BTreeMap;
use zellige_ir::{BinaryOp, DType, Op, Window};

/// Steps along k in one turn of the loop.
const UNROLL: usize = 4;

/// An operand in memory, with the position of its axis along m (or n) and along k.
struct Factor<'w> {
    view: View,
    offsets: Coords,
    window: &'w Window,
    outer: usize,
    k: usize,
}

impl Lowerer<'_> {
    pub(super) fn gemm_fma(&mut self, op: Op, a: &Window, b: &Window, acc: &mut Fragment) -> Result {
        let ty = acc.dtype;
        let a = Factor { view: self.readable(op, a.buffer)?, offsets: self.offsets(op, a)?, window: a, outer: 0, k: 1 };
        let b = Factor { view: self.readable(op, b.buffer)?, offsets: self.offsets(op, b)?, window: b, outer: 1, k: 0 };
        self.b.phase("gemm");
        let dist = acc.dist.clone();
        let depth = a.window.axes[1].extent;
        let unroll = (1..=UNROLL).rev().find(|u| depth.is_multiple_of(*u)).unwrap_or(1);
        self.flush();
        acc.flush(&mut self.b);
        let i = self.b.begin_for(Ty::B32);
        let base =
            Idx { base: Some(i), off: 0, lo: 0, hi: (depth - unroll) as i64, align: 1 << unroll.trailing_zeros() };
        let thread = dist.thread_coords(&mut self.b, self.tid);
        for step in 0..unroll {
            let k = base.shift(step as i64);
            let rows = self.factor(&a, thread[0], dist.regs.iter().map(|c| c[0]), k, ty);
            let cols = self.factor(&b, thread[1], dist.regs.iter().map(|c| c[1]), k, ty);
            for (r, c) in dist.regs.iter().enumerate() {
                let (x, y) = (rows[&c[0]], cols[&c[1]]);
                let old = acc.get(&mut self.b, r);
                let new = self.multiply_add(op, ty, x, y, old)?;
                acc.set(r, new);
            }
        }
        acc.flush(&mut self.b);
        let (lo, hi, by) = (self.b.c32(0), self.b.c32(depth as i64), self.b.c32(unroll as i64));
        self.b.end_for(i, lo, hi, by, true);
        Ok(())
    }

    /// Elements of an operand at depth `k`, by what the register contributes along m (or n). Zero beyond the tile.
    fn factor(
        &mut self,
        f: &Factor<'_>,
        thread: Idx,
        places: impl Iterator<Item = usize>,
        k: Idx,
        ty: DType,
    ) -> BTreeMap<usize, Val> {
        let mut unique: Vec<usize> = places.collect();
        unique.sort_unstable();
        unique.dedup();
        let extent = Idx::constant(f.window.axes[f.outer].extent as i64);
        let mut at = Vec::with_capacity(unique.len());
        let mut guards = Vec::with_capacity(unique.len());
        for &p in &unique {
            let x = thread.shift(p as i64);
            let live = index::in_bounds(&mut self.b, x, extent);
            let mut c = f.offsets.clone();
            let (outer, along) = (usize::from(f.window.axes[f.outer].axis), usize::from(f.window.axes[f.k].axis));
            c[outer] = index::add(&mut self.b, c[outer], x);
            c[along] = index::add(&mut self.b, c[along], k);
            let inside = f.view.guard(&mut self.b, &c);
            guards.push(self.b.and_guard(live, inside));
            at.push(c);
        }
        let vals = f.view.load(&mut self.b, &at, &guards);
        let vals: Vec<Val> = match (f.view.dtype == ty, value::class(ty)) {
            (true, _) => vals,
            (false, _) => cast::cast_all(&mut self.b, self.target, &vals, f.view.dtype, ty),
        };
        unique.into_iter().zip(vals).collect()
    }

    fn multiply_add(&mut self, op: Op, ty: DType, x: Val, y: Val, z: Val) -> Result<Val> {
        if ty.is_float() {
            return match scalar::fma(&mut self.b, self.target, ty, x, y, z) {
                Ok(v) => Ok(v),
                Err(scalar::Undefined) => self.undefined(op, "gemm", ty),
            };
        }
        let mut v = Scalar::Reg(x);
        for (f, other) in [(BinaryOp::Mul, y), (BinaryOp::Add, z)] {
            v = match scalar::binary(&mut self.b, self.target, f, ty, v, Scalar::Reg(other)) {
                Ok(v) => v,
                Err(scalar::Undefined) => return self.undefined(op, "gemm", ty),
            };
        }
        match v {
            Scalar::Reg(v) => Ok(v),
            Scalar::Idx(_) => self.undefined(op, "gemm", ty),
        }
    }
}
