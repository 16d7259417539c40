//! Reductions along an axis.
//!
//! Along neighbours in memory a line is reduced in several vector accumulators; across them four lines are reduced at
//! once. The order of a sum is thus fixed by the shape alone.

use super::access::Guard;
use super::copy::View;
use super::producer::Producer;
use super::rep::{Rep, W, reg, vec_reg};
use super::scalar::number_min_max;
use super::{Lower, Result, Stride};
use crate::cpu::loopir::{BinOp, FloatCc, Ty, UnOp, Val};
use zellige_ir::numerics::Const;
use zellige_ir::{CmpOp, DType, Op, ReduceOp, Window};

/// Vector accumulators of a line: hides the latency of an addition, at two loads in a cycle.
const ACCUMULATORS: usize = 8;

/// Vectors of lines that are reduced in a row where lines are neighbours.
const ACROSS: usize = 4;

/// How elements are combined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Exact,
    /// Maxima and minima of floats up to the sign of zero.
    Quick,
}

/// A line of a window along `axis` (or four), at `point` of the other axes.
#[derive(Clone, Copy)]
struct Line<'a> {
    op: ReduceOp,
    s: &'a View,
    src: &'a Window,
    /// Computes the elements, if they are not in memory.
    producer: Option<&'a Producer>,
    axis: usize,
    outer: &'a [usize],
    point: &'a [Rep],
    /// The type in which elements are combined.
    ty: DType,
    guarded: bool,
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
        let ty = to.accumulator();
        let outer: Vec<usize> = (0..s.shape.len()).filter(|a| *a != axis).collect();
        let extents: Vec<Val> = outer.iter().map(|a| self.b.i64(s.shape[*a] as i64)).collect();
        let pad = self.immediate(to, 0);
        let guard = if d.storage.global { Guard::Check(pad) } else { Guard::Inside };
        let producer = self.producers.remove(&src.buffer);
        let (inside, proved) = match &producer {
            None => (self.view_inside(&s), Vec::new()),
            Some(p) => {
                let ivs: Vec<_> = p.indices.iter().copied().zip(s.storage.extents.iter().copied()).collect();
                self.prove_inside(&ivs, p.body).unwrap_or_else(|| (self.b.bits(Ty::I8, 1), Vec::new()))
            }
        };
        let plain = self.b.as_const(inside) == Some(1);
        // Four lines at once, if they are neighbours and the line itself is not.
        let across = (0..outer.len())
            .rev()
            .find(|&i| s.stride(outer[i]) == Stride::Const(1) && s.shape[outer[i]] >= W && vec_reg(ty).is_some());
        let nest = |l: &mut Self, guarded: bool| {
            l.box_loop(&extents, across.filter(|_| !guarded), ACROSS, &mut |l, point| {
                let dst_idx = d.index(l, point);
                let start = if accumulate {
                    let v = l.load_elem(&d.storage, &dst_idx, guard);
                    l.cast(v, to, ty)
                } else {
                    Rep::Uni(l.immediate(ty, op.identity(ty).unwrap_or(Const::zero(ty)).bits()))
                };
                let producer = producer.as_ref();
                let line = Line { op, s: &s, src, producer, axis, outer: &outer, point, ty, guarded };
                let total = l.reduce_exactly(&line, start)?;
                let total = l.cast(total, ty, to);
                l.store_elem(&d.storage, &dst_idx, total, guard);
                Ok(())
            })
        };
        let proved: Vec<Op> = proved.into_iter().filter(|op| self.unguarded.insert(*op)).collect();
        let fast = |l: &mut Self| {
            nest(l, false)?;
            l.forget(&proved);
            Ok(())
        };
        if plain {
            return fast(self);
        }
        self.b.begin_if(inside);
        fast(self)?;
        self.b.begin_else(&[]);
        nest(self, true)?;
        self.b.end_if(&[]);
        Ok(())
    }

    /// Reduces a line (or four). A maximum of floats is first taken with one instruction a step, which may return a
    /// zero of the wrong sign: then, and only then, the line is reduced again with the exact rule.
    fn reduce_exactly(&mut self, line: &Line<'_>, start: Rep) -> Result<Rep> {
        let float = line.ty.is_float() && matches!(line.op, ReduceOp::Max | ReduceOp::Min);
        if !float {
            return self.reduce_line(line, start, Step::Exact);
        }
        let quick = self.reduce_line(line, start, Step::Quick)?;
        let (v, is_wide) = match quick {
            Rep::Vec(v) => (v, true),
            other => (self.lane(other, line.ty, 0), false),
        };
        let zero = self.b.imm(self.b.ty(v), 0);
        let zeros = self.b.fcmp(FloatCc::Eq, v, zero);
        let any = if is_wide { self.b.convert(UnOp::AnyTrue, Ty::I8, zeros) } else { zeros };
        self.b.begin_if(any);
        let exact = self.reduce_line(line, start, Step::Exact)?;
        let exact = if is_wide { self.as_vec(exact, line.ty) } else { self.lane(exact, line.ty, 0) };
        self.b.begin_else(&[exact]);
        let v = self.b.end_if(&[v])[0];
        Ok(if is_wide { Rep::Vec(v) } else { Rep::Uni(v) })
    }

    /// One step by the exact rule, or by the machine's own maximum: right but for the sign of zero as long as the running
    /// value is not NaN.
    fn combine_by(&mut self, step: Step, op: ReduceOp, sum: Val, x: Val, ty: DType) -> Val {
        match (step, op) {
            (Step::Quick, ReduceOp::Max) => {
                let wins = self.b.fcmp(FloatCc::Lt, sum, x);
                self.b.select(wins, x, sum)
            }
            (Step::Quick, ReduceOp::Min) => {
                let wins = self.b.fcmp(FloatCc::Lt, x, sum);
                self.b.select(wins, x, sum)
            }
            _ => self.combine(op, sum, x, ty),
        }
    }

    fn reduce_line(&mut self, line: &Line<'_>, start: Rep, step: Step) -> Result<Rep> {
        let Line { op, s, src, producer, axis, outer, point, ty, guarded } = *line;
        let from = s.storage.dtype;
        let n = s.shape[axis] as i64;
        let pad = self.immediate(from, 0);
        let guard = if guarded { Guard::Check(pad) } else { Guard::Inside };
        let load = |l: &mut Self, i: Rep| {
            let mut p = vec![i; s.shape.len()];
            for (&a, &rep) in outer.iter().zip(point) {
                p[a] = rep;
            }
            let x = match producer {
                Some(producer) => l.produce(producer, src, &p)?,
                None => {
                    let idx = s.index(l, &p);
                    l.load_elem(&s.storage, &idx, guard)
                }
            };
            Ok(l.cast(x, from, ty))
        };
        let zero = self.b.i64(0);
        if point.iter().any(|p| !p.is_uniform()) {
            let start = self.as_vec(start, ty);
            // What comes from before may be NaN, and goes in last.
            let first = if step == Step::Quick { self.neutral(op, ty) } else { start };
            let end = self.b.i64(n);
            let lp = self.b.begin_for(zero, end, 1, &[first]);
            let x = load(self, Rep::Uni(lp.iv))?;
            let x = self.as_vec(x, ty);
            let next = self.combine_by(step, op, lp.params[0], x, ty);
            let total = self.b.end_for(lp, &[next])[0];
            return Ok(Rep::Vec(if step == Step::Quick { self.combine(op, start, total, ty) } else { total }));
        }
        let mut total = self.lane(start, ty, 0);
        let along = s.stride(axis) == Stride::Const(1) && vec_reg(ty).is_some() && !guarded;
        let vectors = if along { n / W as i64 } else { 0 };
        if vectors > 0 {
            let partial = self.reduce_vectors(op, vectors, ty, step, &load)?;
            total = self.fold_lanes(op, total, partial, ty);
        }
        let (lo, hi) = (self.b.i64(vectors * W as i64), self.b.i64(n));
        if vectors * (W as i64) < n {
            let lp = self.b.begin_for(lo, hi, 1, &[total]);
            let x = load(self, Rep::Uni(lp.iv))?;
            let x = self.lane(x, ty, 0);
            let next = self.combine(op, lp.params[0], x, ty);
            total = self.b.end_for(lp, &[next])[0];
        }
        Ok(Rep::Uni(total))
    }

    /// What leaves every element as it is, in every lane: -0 for a sum of floats.
    fn neutral(&mut self, op: ReduceOp, ty: DType) -> Val {
        let neutral = match (op, ty.is_float()) {
            (ReduceOp::Sum, true) => Const::from_f64(ty, -0.0),
            _ => op.identity(ty).unwrap_or(Const::zero(ty)),
        };
        let v = self.immediate(ty, neutral.bits());
        self.as_vec(Rep::Uni(v), ty)
    }

    /// Combines the first `vectors` vectors of a line in several accumulators.
    fn reduce_vectors(
        &mut self,
        op: ReduceOp,
        vectors: i64,
        ty: DType,
        step: Step,
        load: &dyn Fn(&mut Self, Rep) -> Result<Rep>,
    ) -> Result<Val> {
        let w = W as i64;
        let many = (ACCUMULATORS as i64).min(vectors);
        let init = self.neutral(op, ty);
        let whole = vectors - vectors % many;
        let (zero, end) = (self.b.i64(0), self.b.i64(whole * w));
        let outer = self.wide;
        self.wide = true;
        let lp = self.b.begin_for(zero, end, many * w, &vec![init; many as usize]);
        let nexts: Vec<Val> = (0..many)
            .map(|k| {
                let base = self.b.add_imm(lp.iv, k * w);
                let x = load(self, Rep::Lin { base, step: 1 })?;
                let x = self.as_vec(x, ty);
                Ok(self.combine_by(step, op, lp.params[k as usize], x, ty))
            })
            .collect::<Result<_>>()?;
        let mut sums = self.b.end_for(lp, &nexts);
        for (k, v) in (whole..vectors).enumerate() {
            let base = self.b.i64(v * w);
            let x = load(self, Rep::Lin { base, step: 1 })?;
            let x = self.as_vec(x, ty);
            sums[k] = self.combine_by(step, op, sums[k], x, ty);
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
        Ok(sums[0])
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
