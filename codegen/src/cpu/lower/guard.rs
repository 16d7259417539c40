//! Proofs that a whole loop stays inside its tensors, made when the loop is entered.
//!
//! An index that is built from loop indices by additions, constant factors and the like has its extremes at the
//! corners of the box. Comparing these with the tensor's extents once replaces a comparison for every element.

use super::Lower;
use super::rep::Rep;
use crate::cpu::loopir::{BinOp, IntCc, Val};
use std::collections::{HashMap, HashSet};
use zellige_ir::{BinaryOp, Buffer, DType, Func, Op, OpKind, Region, Scope, Value, ValueDef, Visit};

/// Smallest and largest value.
type Interval = (Val, Val);

/// An access to a tensor in a loop body.
struct Access {
    op: Op,
    buffer: Buffer,
    indices: Vec<Value>,
}

/// The tensor accesses and the loop indices with their extents in a region.
fn collect(func: &Func, region: Region, accesses: &mut Vec<Access>, indices: &mut Vec<(Value, Value)>) {
    func.walk(region, &mut |op, data| match &data.kind {
        OpKind::Load { buffer, indices, .. }
        | OpKind::Store { buffer, indices, .. }
        | OpKind::Atomic { buffer, indices, .. }
            if func.buffers[*buffer].scope == Scope::Global =>
        {
            accesses.push(Access { op, buffer: *buffer, indices: indices.to_vec() });
        }
        OpKind::For { indices: ivs, extents, .. } => {
            indices.extend(ivs.iter().map(|d| d.0).zip(extents.iter().copied()));
        }
        _ => {}
    });
}

/// The values that a region's ops define.
pub(super) fn definitions(func: &Func, region: Region) -> HashSet<Value> {
    let mut defs = HashSet::new();
    func.walk(region, &mut |_, data| {
        data.kind.for_each_def(&mut |v| {
            defs.insert(v);
        });
    });
    defs
}

impl Lower<'_> {
    /// A condition, computed here, under which the listed accesses of a loop body are inside; `None` if there are none
    /// that could be shown to be.
    pub(super) fn prove_inside(&mut self, ivs: &[(Value, Val)], body: Region) -> Option<(Val, Vec<Op>)> {
        let (mut accesses, mut inner) = (Vec::new(), Vec::new());
        collect(self.func, body, &mut accesses, &mut inner);
        if accesses.iter().all(|a| self.unguarded.contains(&a.op)) {
            return None;
        }
        let mut known: HashMap<Value, Option<Interval>> = HashMap::new();
        self.local_defs = definitions(self.func, body);
        let zero = self.b.i64(0);
        for &(iv, extent) in ivs {
            let last = self.b.add_imm(extent, -1);
            known.insert(iv, Some((zero, last)));
        }
        for (iv, extent) in inner {
            let range = self.interval(extent, &mut known);
            let range = range.map(|(_, hi)| (zero, self.b.add_imm(hi, -1)));
            known.insert(iv, range);
        }
        let mut cond = self.b.bits(crate::cpu::loopir::Ty::I8, 1);
        let mut proved = Vec::new();
        for access in accesses {
            if self.unguarded.contains(&access.op) {
                continue;
            }
            let ranges: Option<Vec<Interval>> = access.indices.iter().map(|v| self.interval(*v, &mut known)).collect();
            let (Some(ranges), Ok(s)) = (ranges, self.storage(access.buffer, access.op)) else { continue };
            for ((lo, hi), extent) in ranges.into_iter().zip(s.extents) {
                let above = self.b.icmp(IntCc::Sge, lo, zero);
                let below = self.b.icmp(IntCc::Slt, hi, extent);
                for c in [above, below] {
                    cond = self.and(cond, c);
                }
            }
            proved.push(access.op);
        }
        (!proved.is_empty()).then_some((cond, proved))
    }

    /// Conjunction of conditions, folding known ones.
    pub(crate) fn and(&mut self, x: Val, y: Val) -> Val {
        match (self.b.as_const(x), self.b.as_const(y)) {
            (Some(0), _) | (_, Some(1)) => x,
            (_, Some(_)) | (Some(_), _) => y,
            (None, None) => self.b.bin(BinOp::And, x, y),
        }
    }

    /// The range of an `index` value over the loops whose indices are in `known`.
    fn interval(&mut self, v: Value, known: &mut HashMap<Value, Option<Interval>>) -> Option<Interval> {
        if let Some(r) = known.get(&v) {
            return *r;
        }
        let range = self.interval_of(v, known);
        known.insert(v, range);
        range
    }

    fn interval_of(&mut self, v: Value, known: &mut HashMap<Value, Option<Interval>>) -> Option<Interval> {
        // A value from outside the loop is a point.
        let outside = !self.local_defs.contains(&v);
        if let ValueDef::Op(op) = self.func.values[v].def
            && !outside
        {
            let func = self.func;
            return match &func.ops[op].kind {
                OpKind::Binary { op, x, y, .. } if func.ty(v) == DType::Index => {
                    let (x, y) = (self.interval(*x, known)?, self.interval(*y, known)?);
                    self.interval_binary(*op, x, y)
                }
                _ => None,
            };
        }
        if !outside || self.func.ty(v) != DType::Index {
            return None;
        }
        match self.get(v) {
            Rep::Uni(x) => Some((x, x)),
            _ => None,
        }
    }

    fn interval_binary(&mut self, op: BinaryOp, (xl, xh): Interval, (yl, yh): Interval) -> Option<Interval> {
        let b = &mut self.b;
        match op {
            BinaryOp::Add => Some((b.add(xl, yl), b.add(xh, yh))),
            BinaryOp::Sub => Some((b.sub(xl, yh), b.sub(xh, yl))),
            BinaryOp::Min => Some((b.bin(BinOp::SMin, xl, yl), b.bin(BinOp::SMin, xh, yh))),
            BinaryOp::Max => Some((b.bin(BinOp::SMax, xl, yl), b.bin(BinOp::SMax, xh, yh))),
            BinaryOp::Mul => {
                let (factor, (lo, hi)) = if yl == yh {
                    (yl, (xl, xh))
                } else if xl == xh {
                    (xl, (yl, yh))
                } else {
                    return None;
                };
                let (p, q) = (b.mul(lo, factor), b.mul(hi, factor));
                Some((b.bin(BinOp::SMin, p, q), b.bin(BinOp::SMax, p, q)))
            }
            BinaryOp::Div | BinaryOp::CeilDiv => {
                let c = b.as_const(yl).filter(|c| *c > 0 && yl == yh)?;
                let y = b.i64(c);
                let div = |l: &mut Self, x| l.index_quotient(op, x, y);
                Some((div(self, xl), div(self, xh)))
            }
            BinaryOp::Rem => {
                let c = b.as_const(yl).filter(|c| *c > 0 && yl == yh)?;
                let f = b.facts(xl);
                let top = b.i64(c - 1);
                // Not more than the dividend, where that is known not to be negative.
                let hi = if f.lo >= 0 { b.bin(BinOp::SMin, xh, top) } else { top };
                Some((b.i64(0), hi))
            }
            BinaryOp::And
            | BinaryOp::Or
            | BinaryOp::Xor
            | BinaryOp::Shl
            | BinaryOp::Shr
            | BinaryOp::MulHi
            | BinaryOp::Pow
            | BinaryOp::CopySign => None,
        }
    }
}
