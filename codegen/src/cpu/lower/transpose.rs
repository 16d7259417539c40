//! Copies between a window and its transpose, by blocks of 4 x 4 elements in registers.

use super::copy::View;
use super::rep::{Rep, W, vec_reg};
use super::{Lower, Result, Stride};
use crate::cpu::loopir::{Builder, Ty, Val};

/// Interleavings of the 32-bit lanes of two vectors, and of their 64-bit halves.
const LOW_LANES: [u8; 16] = [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23];
const HIGH_LANES: [u8; 16] = [8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31];
const LOW_HALVES: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const HIGH_HALVES: [u8; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31];

/// The transpose of a 4 x 4 block of 32-bit lanes.
fn transpose(b: &mut Builder, rows: [Val; W]) -> [Val; W] {
    let (a, c) = (b.shuffle(rows[0], rows[1], LOW_LANES), b.shuffle(rows[2], rows[3], LOW_LANES));
    let (d, e) = (b.shuffle(rows[0], rows[1], HIGH_LANES), b.shuffle(rows[2], rows[3], HIGH_LANES));
    [
        b.shuffle(a, c, LOW_HALVES),
        b.shuffle(a, c, HIGH_HALVES),
        b.shuffle(d, e, LOW_HALVES),
        b.shuffle(d, e, HIGH_HALVES),
    ]
}

impl Lower<'_> {
    /// The axes of neighbours in source and destination, if they differ and blocks pay.
    pub(super) fn transposes(&self, src: &View, dst: &View, extents: &[Val]) -> Option<(usize, usize)> {
        let (p, q) = (src.unit_axis()?, dst.unit_axis()?);
        let has_unit = |v: &View, a: usize| v.stride(a) == Stride::Const(1);
        if has_unit(src, q) || has_unit(dst, p) {
            return None;
        }
        let large = |a: usize| self.b.as_const(extents[a]).is_some_and(|n| n >= W as i64);
        let vectors = vec_reg(src.storage.dtype).is_some() && vec_reg(dst.storage.dtype).is_some();
        (large(p) && large(q) && vectors).then_some((p, q))
    }

    /// Copies `range`; the source's neighbours lie along `p`, the destination's along `q`.
    pub(super) fn copy_transposed(
        &mut self,
        src: &View,
        dst: &View,
        range: &[(Val, Val)],
        p: usize,
        q: usize,
    ) -> Result {
        let w = W as i64;
        let split = |l: &mut Self, a: usize| {
            let (lo, hi) = range[a];
            let n = l.b.sub(hi, lo);
            let n = l.b.as_const(n).unwrap_or(0);
            l.b.add_imm(lo, n - n % w)
        };
        let (p_end, q_end) = (split(self, p), split(self, q));
        let others: Vec<usize> = (0..range.len()).filter(|a| *a != p && *a != q).collect();
        let extents: Vec<Val> = others.iter().map(|&a| self.b.sub(range[a].1, range[a].0)).collect();
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let mut at: Vec<Rep> = range.iter().map(|r| Rep::Uni(r.0)).collect();
            for (&a, &rep) in others.iter().zip(point) {
                at[a] = l.add_index(rep, Rep::Uni(range[a].0));
            }
            l.counted(range[q].0, q_end, w, &mut |l, j| {
                l.counted(range[p].0, p_end, w, &mut |l, i| {
                    l.transpose_block(src, dst, &at, (p, i), (q, j));
                    Ok(())
                })
            })
        })?;
        // The strips that are left, element by element.
        let mut strip = range.to_vec();
        strip[q].0 = q_end;
        self.copy_strip(src, dst, &strip)?;
        let mut strip = range.to_vec();
        strip[p].0 = p_end;
        strip[q].1 = q_end;
        self.copy_strip(src, dst, &strip)
    }

    fn copy_strip(&mut self, src: &View, dst: &View, range: &[(Val, Val)]) -> Result {
        let (from, to) = (src.storage.dtype, dst.storage.dtype);
        let extents: Vec<Val> = range.iter().map(|&(lo, hi)| self.b.sub(hi, lo)).collect();
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let at: Vec<Rep> = point.iter().zip(range).map(|(&p, &(lo, _))| l.add_index(p, Rep::Uni(lo))).collect();
            let (i, o) = (src.index(l, &at), dst.index(l, &at));
            let v = l.load_elem(&src.storage, &i, super::Guard::Inside);
            let v = l.cast(v, from, to);
            l.store_elem(&dst.storage, &o, v, super::Guard::Inside);
            Ok(())
        })
    }

    fn transpose_block(&mut self, src: &View, dst: &View, at: &[Rep], (p, i): (usize, Val), (q, j): (usize, Val)) {
        let (from, to) = (src.storage.dtype, dst.storage.dtype);
        let outer = self.wide;
        self.wide = true;
        let mut form = Ty::I32x4;
        let rows: [Val; W] = std::array::from_fn(|r| {
            let mut point = at.to_vec();
            point[p] = Rep::Lin { base: i, step: 1 };
            point[q] = Rep::Uni(self.b.add_imm(j, r as i64));
            let idx = src.index(self, &point);
            let v = self.load_elem(&src.storage, &idx, super::Guard::Inside);
            let v = self.cast(v, from, to);
            let v = self.as_vec(v, to);
            form = self.b.ty(v);
            self.b.bitcast(Ty::I32x4, v)
        });
        for (c, column) in transpose(&mut self.b, rows).into_iter().enumerate() {
            let mut point = at.to_vec();
            point[p] = Rep::Uni(self.b.add_imm(i, c as i64));
            point[q] = Rep::Lin { base: j, step: 1 };
            let idx = dst.index(self, &point);
            let v = self.b.bitcast(form, column);
            self.store_elem(&dst.storage, &idx, Rep::Vec(v), super::Guard::Inside);
        }
        self.wide = outer;
    }
}
