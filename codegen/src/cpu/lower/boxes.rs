//! Loop nests over a box of iterations, four at a time along one axis.

use super::rep::{Rep, W};
use super::{Lower, Result};
use crate::cpu::loopir::{BinOp, Val};

/// What runs for each point (or four): gets one index for each axis of the box.
pub(crate) type Body<'a, 's> = dyn FnMut(&mut Lower<'s>, &[Rep]) -> Result + 'a;

impl<'f> Lower<'f> {
    /// Runs `body` for every point of `0..extents`, in row-major order of the axes other than `axis`; along `axis`, if
    /// given, four points at once, `unroll` times in a row.
    pub(crate) fn box_loop(
        &mut self,
        extents: &[Val],
        axis: Option<usize>,
        unroll: usize,
        body: &mut Body<'_, 'f>,
    ) -> Result {
        let zero = self.b.i64(0);
        let mut point = vec![Rep::Uni(zero); extents.len()];
        self.nest(extents, axis, unroll, 0, &mut point, body)
    }

    fn nest(
        &mut self,
        extents: &[Val],
        axis: Option<usize>,
        unroll: usize,
        depth: usize,
        point: &mut Vec<Rep>,
        body: &mut Body<'_, 'f>,
    ) -> Result {
        if depth == extents.len() {
            return match axis {
                Some(axis) => self.vector_loop(extents[axis], unroll, &mut |l, rep| {
                    point[axis] = rep;
                    body(l, point)
                }),
                None => body(self, point),
            };
        }
        if Some(depth) == axis {
            return self.nest(extents, axis, unroll, depth + 1, point, body);
        }
        let zero = self.b.i64(0);
        self.counted(zero, extents[depth], 1, &mut |l, iv| {
            point[depth] = Rep::Uni(iv);
            l.nest(extents, axis, unroll, depth + 1, point, body)
        })
    }

    /// `for iv in (lo..hi).step_by(step)`, without a loop if it is known to run at most once.
    pub(crate) fn counted(
        &mut self,
        lo: Val,
        hi: Val,
        step: i64,
        body: &mut dyn FnMut(&mut Self, Val) -> Result,
    ) -> Result {
        if let (Some(a), Some(z)) = (self.b.as_const(lo), self.b.as_const(hi)) {
            if z <= a {
                return Ok(());
            }
            if z - a <= step {
                return body(self, lo);
            }
        }
        let l = self.b.begin_for(lo, hi, step, &[]);
        body(self, l.iv)?;
        let _ = self.b.end_for(l, &[]);
        Ok(())
    }

    /// Runs `body` over `0..n`: four iterations at once as long as there are, the rest one by one.
    pub(crate) fn vector_loop(
        &mut self,
        n: Val,
        unroll: usize,
        body: &mut dyn FnMut(&mut Self, Rep) -> Result,
    ) -> Result {
        let w = W as i64;
        let zero = self.b.i64(0);
        let (mut lo, vectors, ends) = match self.b.as_const(n) {
            Some(n) => {
                let n = n.max(0);
                let wide = w * unroll as i64;
                let (a, b) = (n - n % wide, n - n % w);
                let (a, b) = (self.b.i64(a), self.b.i64(b));
                (zero, a, b)
            }
            None => {
                let n = self.b.bin(BinOp::SMax, n, zero);
                let end = self.b.bin_imm(BinOp::And, n, -w);
                (zero, zero, end)
            }
        };
        let outer = self.wide;
        self.wide = true;
        self.counted(lo, vectors, w * unroll as i64, &mut |l, iv| {
            (0..unroll as i64).try_for_each(|u| {
                let base = l.b.add_imm(iv, u * w);
                body(l, Rep::Lin { base, step: 1 })
            })
        })?;
        lo = if self.b.as_const(n).is_some() { vectors } else { lo };
        self.counted(lo, ends, w, &mut |l, iv| body(l, Rep::Lin { base: iv, step: 1 }))?;
        self.wide = outer;
        self.counted(ends, n, 1, &mut |l, iv| body(l, Rep::Uni(iv)))
    }
}
