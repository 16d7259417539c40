//! Loop-invariant code motion: moves ops whose operands do not change in a loop to the front of the loop.
//!
//! Input and output: any verified function. Inner loops come first, so that an op may leave several. An op is moved
//! from the top level of a loop's body (not out of conditionals) if
//! - it is pure and cannot fail, or the loop provably runs at least once; or
//! - it is a load from a buffer that the loop does not write, and the loop provably runs at least once or the buffer
//!   is a read-only tensor. Loads of fragments stay in their loop, where each thread reads its own elements.
//!
//! ```text
//! for serial (%0) in (8) {                     %0: index = mul %bx, 64
//!   %1: index = mul %bx, 64                    for serial (%1) in (8) {
//!   %2: index = add %1, %0            ->         %2: index = add %0, %1
//!   %3: f32 = load x[%2]                         %3: f32 = load x[%2]
//!   store %3 -> $0[%0]                           store %3 -> $0[%1]
//! }                                            }
//! ```

use super::PassStats;
use crate::analysis::{Affine, Facts, Interval, effects};
use crate::func::{Access, Buffer, Func, Op, Param, Region, Scope, Value};
use crate::hash::FastSet;
use crate::op::{BinaryOp, OpKind, UnaryOp, Visit};

/// Runs the pass.
pub fn run(func: &mut Func) -> PassStats {
    let mut pass = Licm { facts: Facts::new(func), func, stats: PassStats::default() };
    let body = pass.func.body;
    pass.region(body);
    pass.stats
}

struct Licm<'f> {
    /// Of the function before the pass: moving an op does not change any value.
    facts: Facts,
    func: &'f mut Func,
    stats: PassStats,
}

/// The loop that ops are moved out of.
struct Loop {
    /// Values defined in it, its indices included.
    defined: FastSet<Value>,
    written: FastSet<Buffer>,
    /// The condition of a `while` is computed in its first region.
    pinned: Option<Value>,
    runs: bool,
}

impl Licm<'_> {
    fn region(&mut self, region: Region) {
        let ops = std::mem::take(&mut self.func.regions[region].ops);
        let mut out = Vec::with_capacity(ops.len());
        for op in ops {
            let mut nested = Vec::new();
            self.func.ops[op].kind.for_each_region(&mut |r| nested.push(r));
            nested.iter().for_each(|&r| self.region(r));
            self.hoist(op, &mut out);
            out.push(op);
        }
        self.func.regions[region].ops = out;
    }

    /// Moves what it can from the loop `op` to the end of `out`.
    fn hoist(&mut self, op: Op, out: &mut Vec<Op>) {
        let (bodies, runs, pinned) = match &self.func.ops[op].kind {
            OpKind::For { extents, body, .. } => {
                let zero = Affine::constant(0);
                let positive = |&e| self.facts.proves_less(self.func, op, &zero, &self.facts.ranges.form(e));
                let runs = extents.iter().all(positive);
                (vec![*body], runs, None)
            }
            // The first region runs at least once; the second may not.
            OpKind::While { before, cond, .. } => (vec![*before], true, Some(*cond)),
            _ => return,
        };
        let mut a_loop = Loop { defined: FastSet::default(), written: FastSet::default(), pinned, runs };
        self.func.ops[op].kind.for_each_def(&mut |v| {
            a_loop.defined.insert(v);
        });
        self.func.ops[op].kind.for_each_region(&mut |r| {
            a_loop.written.extend(effects::written_in(self.func, r));
            self.func.walk(r, &mut |_, data| {
                data.kind.for_each_def(&mut |v| {
                    a_loop.defined.insert(v);
                });
            });
        });
        for body in bodies {
            let ops = std::mem::take(&mut self.func.regions[body].ops);
            let mut stay = Vec::with_capacity(ops.len());
            for inner in ops {
                if !self.may_leave(inner, &a_loop) {
                    stay.push(inner);
                    continue;
                }
                self.func.ops[inner].kind.for_each_def(&mut |v| {
                    a_loop.defined.remove(&v);
                });
                self.stats.note(if matches!(self.func.ops[inner].kind, OpKind::Load { .. }) { "load" } else { "pure" });
                out.push(inner);
            }
            self.func.regions[body].ops = stay;
        }
    }

    fn may_leave(&self, op: Op, a_loop: &Loop) -> bool {
        let kind = &self.func.ops[op].kind;
        let mut invariant = true;
        kind.for_each_use(&mut |v| invariant &= !a_loop.defined.contains(&v));
        kind.for_each_def(&mut |v| invariant &= a_loop.pinned != Some(v));
        if !invariant {
            return false;
        }
        match kind {
            OpKind::Unary { out, op, .. } => match op {
                UnaryOp::Neg | UnaryOp::Abs if self.func.ty(out.0).is_int() => a_loop.runs || self.is_finite(out.0),
                _ => true,
            },
            OpKind::Binary { out, op, y, .. } => a_loop.runs || self.cannot_fail(*op, out.0, *y),
            OpKind::Fma { .. }
            | OpKind::Cmp { .. }
            | OpKind::Select { .. }
            | OpKind::Cast { .. }
            | OpKind::Bitcast { .. } => true,
            OpKind::Load { buffer, .. } => {
                let by_thread = self.func.buffers[*buffer].scope == Scope::Fragment;
                let read_only = self
                    .func
                    .params
                    .iter()
                    .any(|p| matches!(p, Param::Tensor { buffer: b, access: Access::Read } if b == buffer));
                !by_thread && !a_loop.written.contains(buffer) && (a_loop.runs || read_only)
            }
            OpKind::Store { .. }
            | OpKind::Atomic { .. }
            | OpKind::Alloc { .. }
            | OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. }
            | OpKind::For { .. }
            | OpKind::If { .. }
            | OpKind::While { .. }
            | OpKind::Role { .. }
            | OpKind::Print { .. }
            | OpKind::Assert { .. }
            | OpKind::Assume { .. }
            | OpKind::Layout { .. } => false,
        }
    }

    /// True if a binary op has a result even where the author did not ask for it.
    fn cannot_fail(&self, op: BinaryOp, out: Value, divisor: Value) -> bool {
        let ty = self.func.ty(out);
        if !ty.is_int() {
            return true;
        }
        let divides = matches!(op, BinaryOp::Div | BinaryOp::Rem | BinaryOp::CeilDiv);
        let known = self.func.as_const(divisor).is_some_and(|c| c.bits() != 0);
        // The range of a u64 is not tracked.
        let positive = ty != crate::DType::U64 && self.facts.ranges.range(divisor).lo > 0;
        if divides && !known && !positive {
            return false;
        }
        ty != crate::DType::Index || self.is_finite(out)
    }

    /// True if computing the value cannot overflow.
    fn is_finite(&self, v: Value) -> bool {
        let Interval { lo, hi } = self.facts.ranges.range(v);
        lo > i64::MIN && hi < i64::MAX
    }
}
