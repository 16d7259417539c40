//! Reductions along an axis.
//!
//! Along neighbours in memory a line is reduced in several vector accumulators; across them four lines are reduced at
//! once. The order of a sum is thus fixed by the shape alone.

use super::access::Guard;
use super::copy::View;
use super::rep::{Rep, W, reg, vec_reg};
use super::scalar::number_min_max;
use super::{Lower, Result, Stride};
use crate::cpu::loopir::{BinOp, FloatCc, UnOp, Val};
use zellige_ir::numerics::Const;
use zellige_ir::{CmpOp, DType, Op, ReduceOp, Window};

/// Vector accumulators of a line: hides the latency of an addition.
const ACCUMULATORS: usize = 4;

/// The type in which elements of `ty` are combined.
pub(super) fn accumulator(ty: DType) -> DType {
    match ty {
        DType::F16 | DType::BF16 => DType::F32,
        DType::Bool
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Index
        | DType::F32
        | DType::F64
        | DType::F8E4M3
        | DType::F8E5M2
        | DType::F4E2M1
        | DType::E8M0 => ty,
    }
}

/// What a combination of no elements gives. Sums of floats start from +0.
pub(super) fn identity(op: ReduceOp, ty: DType) -> Const {
    match op {
        ReduceOp::Max => Const::from_f64(ty, f64::NEG_INFINITY),
        ReduceOp::Min => Const::from_f64(ty, f64::INFINITY),
        ReduceOp::And => Const::from_bits(ty, u64::MAX),
        ReduceOp::Sum | ReduceOp::AbsMax | ReduceOp::Or | ReduceOp::Xor | ReduceOp::ArgMax | ReduceOp::ArgMin => {
            Const::zero(ty)
        }
    }
}

impl Lower<'_> {
    /// One step in registers, scalar or vector.
    pub(super) fn combine(&mut self, op: ReduceOp, sum: Val, x: Val, ty: DType) -> Val {
        let float = ty.is_float();
        let signed = ty.is_signed_int();
        let b = &mut self.b;
        let r = match op {
            ReduceOp::Sum if float => return b.bin(BinOp::FAdd, sum, x),
            ReduceOp::Sum => b.add(sum, x),
            ReduceOp::Max | ReduceOp::Min if float => return number_min_max(b, op == ReduceOp::Max, sum, x),
            ReduceOp::Max => b.bin(if signed { BinOp::SMax } else { BinOp::UMax }, sum, x),
            ReduceOp::Min => b.bin(if signed { BinOp::SMin } else { BinOp::UMin }, sum, x),
            ReduceOp::AbsMax if float => {
                // Magnitudes have no negative zero, and the running maximum is never NaN.
                let magnitude = b.un(UnOp::FAbs, x);
                let wins = b.fcmp(FloatCc::Lt, sum, magnitude);
                return b.select(wins, magnitude, sum);
            }
            ReduceOp::AbsMax if signed => {
                let zero = b.imm(b.ty(x), 0);
                let minus = b.sub(zero, x);
                let magnitude = b.bin(BinOp::SMax, x, minus);
                let magnitude = self.normalise(magnitude, ty);
                self.b.bin(BinOp::SMax, sum, magnitude)
            }
            ReduceOp::AbsMax => b.bin(BinOp::UMax, sum, x),
            ReduceOp::And => b.bin(BinOp::And, sum, x),
            ReduceOp::Or => b.bin(BinOp::Or, sum, x),
            ReduceOp::Xor => b.bin(BinOp::Xor, sum, x),
            // Positions are not combined step by step.
            ReduceOp::ArgMax | ReduceOp::ArgMin => sum,
        };
        self.normalise(r, ty)
    }

    pub(super) fn reduce(
        &mut self,
        at: Op,
        op: ReduceOp,
        src: &Window,
        dst: &Window,
        axis: usize,
        accumulate: bool,
    ) -> Result {
        let (s, d) = (self.view(at, src)?, self.view(at, dst)?);
        if matches!(op, ReduceOp::ArgMax | ReduceOp::ArgMin) {
            return self.arg_reduce(op, &s, &d, axis);
        }
        let to = d.storage.dtype;
        let ty = accumulator(to);
        let outer: Vec<usize> = (0..s.shape.len()).filter(|a| *a != axis).collect();
        let extents: Vec<Val> = outer.iter().map(|a| self.b.i64(s.shape[*a] as i64)).collect();
        let pad = self.immediate(to, 0);
        let guard = if d.storage.global { Guard::Check(pad) } else { Guard::Inside };
        let inside = self.view_inside(&s);
        let plain = self.b.as_const(inside) == Some(1);
        // Four lines at once, if they are neighbours and the line itself is not.
        let across = (0..outer.len())
            .rev()
            .find(|&i| s.stride(outer[i]) == Stride::Const(1) && s.shape[outer[i]] >= W && vec_reg(ty).is_some());
        let nest = |l: &mut Self, guarded: bool| {
            l.box_loop(&extents, across.filter(|_| !guarded), ACCUMULATORS, &mut |l, point| {
                let dst_idx = d.index(l, point);
                let start = if accumulate {
                    let v = l.load_elem(&d.storage, &dst_idx, guard);
                    l.cast(v, to, ty)
                } else {
                    Rep::Uni(l.immediate(ty, identity(op, ty).bits()))
                };
                let total = l.reduce_line(op, &s, axis, &outer, point, start, ty, guarded)?;
                let total = l.cast(total, ty, to);
                l.store_elem(&d.storage, &dst_idx, total, guard);
                Ok(())
            })
        };
        if plain {
            return nest(self, false);
        }
        self.b.begin_if(inside);
        nest(self, false)?;
        self.b.begin_else(&[]);
        nest(self, true)?;
        self.b.end_if(&[]);
        Ok(())
    }

    /// Reduces the line (or four lines) at `point` of the other axes.
    #[allow(clippy::too_many_arguments)]
    fn reduce_line(
        &mut self,
        op: ReduceOp,
        s: &View,
        axis: usize,
        outer: &[usize],
        point: &[Rep],
        start: Rep,
        ty: DType,
        guarded: bool,
    ) -> Result<Rep> {
        let from = s.storage.dtype;
        let n = s.shape[axis] as i64;
        let pad = self.immediate(from, 0);
        let guard = if guarded { Guard::Check(pad) } else { Guard::Inside };
        let load = |l: &mut Self, i: Rep| {
            let mut p = vec![i; s.shape.len()];
            for (&a, &rep) in outer.iter().zip(point) {
                p[a] = rep;
            }
            let idx = s.index(l, &p);
            let x = l.load_elem(&s.storage, &idx, guard);
            l.cast(x, from, ty)
        };
        let zero = self.b.i64(0);
        if point.iter().any(|p| !p.is_uniform()) {
            let start = self.as_vec(start, ty);
            let end = self.b.i64(n);
            let lp = self.b.begin_for(zero, end, 1, &[start]);
            let x = load(self, Rep::Uni(lp.iv));
            let x = self.as_vec(x, ty);
            let next = self.combine(op, lp.params[0], x, ty);
            return Ok(Rep::Vec(self.b.end_for(lp, &[next])[0]));
        }
        let mut total = self.lane(start, ty, 0);
        let along = s.stride(axis) == Stride::Const(1) && vec_reg(ty).is_some() && !guarded;
        let vectors = if along { n / W as i64 } else { 0 };
        if vectors > 0 {
            let partial = self.reduce_vectors(op, vectors, ty, &load);
            total = self.fold_lanes(op, total, partial, ty);
        }
        let (lo, hi) = (self.b.i64(vectors * W as i64), self.b.i64(n));
        if vectors * (W as i64) < n {
            let lp = self.b.begin_for(lo, hi, 1, &[total]);
            let x = load(self, Rep::Uni(lp.iv));
            let x = self.lane(x, ty, 0);
            let next = self.combine(op, lp.params[0], x, ty);
            total = self.b.end_for(lp, &[next])[0];
        }
        Ok(Rep::Uni(total))
    }

    /// Combines the first `vectors` vectors of a line in several accumulators.
    fn reduce_vectors(&mut self, op: ReduceOp, vectors: i64, ty: DType, load: &dyn Fn(&mut Self, Rep) -> Rep) -> Val {
        let w = W as i64;
        let many = (ACCUMULATORS as i64).min(vectors);
        // -0 is what leaves every float sum as it is.
        let neutral = match (op, ty.is_float()) {
            (ReduceOp::Sum, true) => Const::from_f64(ty, -0.0),
            _ => identity(op, ty),
        };
        let init = self.immediate(ty, neutral.bits());
        let init = self.as_vec(Rep::Uni(init), ty);
        let whole = vectors - vectors % many;
        let (zero, end) = (self.b.i64(0), self.b.i64(whole * w));
        let outer = self.wide;
        self.wide = true;
        let lp = self.b.begin_for(zero, end, many * w, &vec![init; many as usize]);
        let nexts: Vec<Val> = (0..many)
            .map(|k| {
                let base = self.b.add_imm(lp.iv, k * w);
                let x = load(self, Rep::Lin { base, step: 1 });
                let x = self.as_vec(x, ty);
                self.combine(op, lp.params[k as usize], x, ty)
            })
            .collect();
        let mut sums = self.b.end_for(lp, &nexts);
        for (k, v) in (whole..vectors).enumerate() {
            let base = self.b.i64(v * w);
            let x = load(self, Rep::Lin { base, step: 1 });
            let x = self.as_vec(x, ty);
            sums[k] = self.combine(op, sums[k], x, ty);
        }
        self.wide = outer;
        while sums.len() > 1 {
            sums = sums
                .chunks(2)
                .map(|pair| match *pair {
                    [x, y] => self.combine(op, x, y, ty),
                    _ => pair[0],
                })
                .collect();
        }
        sums[0]
    }

    /// Combines `total` with the lanes of a vector, pairwise.
    pub(crate) fn fold_lanes(&mut self, op: ReduceOp, total: Val, v: Val, ty: DType) -> Val {
        let l = self.as_lanes(Rep::Vec(v), ty);
        let (x, y) = (self.combine(op, l[0], l[2], ty), self.combine(op, l[1], l[3], ty));
        let x = self.combine(op, x, y, ty);
        self.combine(op, total, x, ty)
    }

    /// Position of the first largest or smallest element of each line.
    fn arg_reduce(&mut self, op: ReduceOp, s: &View, d: &View, axis: usize) -> Result {
        let from = s.storage.dtype;
        let better = if op == ReduceOp::ArgMax { CmpOp::Gt } else { CmpOp::Lt };
        let outer: Vec<usize> = (0..s.shape.len()).filter(|a| *a != axis).collect();
        let extents: Vec<Val> = outer.iter().map(|a| self.b.i64(s.shape[*a] as i64)).collect();
        let n = s.shape[axis] as i64;
        let (src_pad, dst_pad) = (self.immediate(from, 0), self.immediate(d.storage.dtype, 0));
        let load = if s.storage.global { Guard::Check(src_pad) } else { Guard::Inside };
        let store = if d.storage.global { Guard::Check(dst_pad) } else { Guard::Inside };
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let element = |l: &mut Self, i: Val| {
                let mut p = vec![Rep::Uni(i); s.shape.len()];
                for (&a, &rep) in outer.iter().zip(point) {
                    p[a] = rep;
                }
                let idx = s.index(l, &p);
                let x = l.load_elem(&s.storage, &idx, load);
                l.lane(x, from, 0)
            };
            let (zero, one, end) = (l.b.i64(0), l.b.i64(1), l.b.i64(n));
            let none = l.b.imm(reg(from), 0);
            let first = if n > 0 { element(l, zero) } else { none };
            let lp = l.b.begin_for(one, end, 1, &[first, zero]);
            let (best, place) = (lp.params[0], lp.params[1]);
            let x = element(l, lp.iv);
            let mut wins = l.compare_val(better, x, best, from);
            if from.is_float() {
                // Any number wins over NaN.
                let best_is_number = l.compare_val(CmpOp::Eq, best, best, from);
                let x_is_number = l.compare_val(CmpOp::Eq, x, x, from);
                let nan = l.b.bin_imm(BinOp::Xor, best_is_number, 1);
                let both = l.b.bin(BinOp::And, nan, x_is_number);
                wins = l.b.bin(BinOp::Or, wins, both);
            }
            let best = l.b.select(wins, x, best);
            let place = l.b.select(wins, lp.iv, place);
            let found = l.b.end_for(lp, &[best, place])[1];
            let r = l.cast(Rep::Uni(found), DType::I64, d.storage.dtype);
            let idx = d.index(l, point);
            l.store_elem(&d.storage, &idx, r, store);
            Ok(())
        })
    }
}
