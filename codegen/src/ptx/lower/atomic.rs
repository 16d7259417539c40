//! Atomics on global and shared elements.

use super::value::{self, Scalar};
use super::view::{Coords, View};
use super::{Lowerer, Result};
use crate::ptx::simt::{Addr, AtomOp, Num, SimtOp, Space, Ty, Val};
use zellige_ir::{AtomicOp, Buffer, DType, Def, Indices, Op, Value};

fn atom_op(op: AtomicOp) -> AtomOp {
    match op {
        AtomicOp::Add => AtomOp::Add,
        AtomicOp::Min => AtomOp::Min,
        AtomicOp::Max => AtomOp::Max,
        AtomicOp::And => AtomOp::And,
        AtomicOp::Or => AtomOp::Or,
        AtomicOp::Exchange => AtomOp::Exch,
    }
}

impl Lowerer<'_> {
    /// The type an atomic works in, if the device has it.
    fn atomic_num(&self, op: Op, f: AtomicOp, dtype: DType) -> Result<Num> {
        match dtype {
            DType::I32 | DType::U32 | DType::I64 | DType::U64 => Ok(value::num(dtype)),
            DType::F32 if matches!(f, AtomicOp::Add | AtomicOp::Exchange) => Ok(Num::F32),
            _ => self.undefined(op, &format!("atomic {f}"), dtype),
        }
    }

    /// One element, updated under a guard; the element before.
    pub(super) fn atomic_at(
        &mut self,
        op: Op,
        f: AtomicOp,
        view: &View,
        at: &Coords,
        x: Val,
        guard: Option<Val>,
    ) -> Result<Val> {
        let num = self.atomic_num(op, f, view.dtype)?;
        let offset = view.offset(&mut self.b, at);
        let addr: Addr = view.address(&mut self.b, offset);
        if f == AtomicOp::Exchange && num == Num::F32 {
            let bits = self.b.bits(Ty::B32, x);
            let old = self.b.atom(AtomOp::Exch, Num::B32, view.space, addr, bits, guard);
            return Ok(self.b.bits(Ty::F32, old));
        }
        Ok(self.b.atom(atom_op(f), num, view.space, addr, x, guard))
    }

    /// An atomic of the block: one thread does it, all learn the old element through shared memory. A block that learns
    /// from a tensor's element what others did may rely on what they did before, so fences stand around such an atomic.
    pub(super) fn atomic_scalar(
        &mut self,
        op: Op,
        out: Def,
        f: AtomicOp,
        buffer: Buffer,
        indices: &Indices,
        x: Value,
    ) -> Result {
        let at = self.indices(op, indices, None)?;
        let x = self.reg(op, x, None)?;
        self.place(op, buffer)?;
        let Some(view) = self.memory(buffer) else {
            return self.malformed(op, "atomics work on global and shared buffers");
        };
        let communicates = view.space == Space::Global && self.is_used(out.0);
        if communicates {
            self.b.push(SimtOp::Bar {});
            self.b.push(SimtOp::Fence {});
        }
        self.b.phase("atomic");
        let inside = view.guard(&mut self.b, &at);
        let first = self.first_thread();
        let guard = self.b.and_guard(inside, Some(first));
        let old = self.atomic_at(op, f, &view, &at, x, guard)?;
        if communicates {
            self.b.push(SimtOp::Fence {});
        }
        if !self.is_used(out.0) {
            self.b.kernel.discard(old);
            return Ok(());
        }
        let scratch = self.scratch("atomic", view.dtype, &[1]);
        let zero: Coords = [super::index::Idx::constant(0)].into_iter().collect();
        scratch.store(&mut self.b, std::slice::from_ref(&zero), &[Some(first)], &[old]);
        self.b.phase("broadcast of an atomic's result");
        let v = scratch.load(&mut self.b, &[zero], &[None])[0];
        self.set(out.0, None, Scalar::Reg(v));
        Ok(())
    }

    /// True if some op uses the value.
    pub(super) fn is_used(&self, v: Value) -> bool {
        let mut used = false;
        self.walk_ops(self.func.body, &mut |_, kind| {
            zellige_ir::Visit::for_each_use(kind, &mut |u| used |= u == v);
        });
        used
    }

    /// Forgets the result of the atomic that was emitted last, if nobody wants it.
    pub(super) fn drop_result(&mut self, old: Val) {
        self.b.kernel.discard(old);
    }
}

impl crate::ptx::simt::Kernel {
    /// Turns the atomic that defines `v` into one without a result.
    pub(crate) fn discard(&mut self, v: Val) {
        if let crate::ptx::simt::ValDef::Inst(i) = self.vals[v].def
            && let SimtOp::Atom { out, op, .. } = &mut self.insts[i].op
            // `red` has no exchange.
            && *op != AtomOp::Exch
        {
            *out = None;
        }
    }
}
