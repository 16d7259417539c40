//! Control flow of the block: loops, conditionals, assertions. All threads take the same way.

use super::index::{self, Idx};
use super::value::Scalar;
use super::{Lowerer, Result};
use crate::ptx::simt::{SimtOp, Special, Ty};
use zellige_ir::{Buffer, EntityId, Indices, LoopKind, Op, OpKind, Region, Value};

/// Copies of a body that an unrolled loop may become.
const MAX_UNROLL: i64 = 64;

impl Lowerer<'_> {
    pub(super) fn for_op(
        &mut self,
        op: Op,
        kind: LoopKind,
        indices: &[Value],
        extents: &Indices,
        body: Region,
    ) -> Result {
        if indices.len() != extents.len() {
            return self.malformed(op, "a loop has as many indices as extents");
        }
        let mut bounds = Vec::with_capacity(extents.len());
        for &e in extents {
            bounds.push(self.idx(op, e, None)?);
        }
        match kind {
            LoopKind::Parallel | LoopKind::Vectorized => self.parallel(op, indices, &bounds, body),
            LoopKind::Serial | LoopKind::Unrolled | LoopKind::Persistent | LoopKind::Pipelined { .. } => {
                let (&[index], &[extent]) = (indices, &bounds[..]) else {
                    return self.malformed(op, "only parallel loops have several indices");
                };
                if let Some(done) = self.hopper_loop(op, index, extent) {
                    return done;
                }
                match kind {
                    LoopKind::Unrolled if extent.as_const().is_some_and(|n| n <= MAX_UNROLL) => {
                        for i in 0..extent.off.max(0) {
                            self.env[index.index()] = Some(Scalar::Idx(Idx::constant(i)));
                            self.region(body)?;
                        }
                        Ok(())
                    }
                    LoopKind::Persistent => {
                        let (first, step) = self.block_stride();
                        self.serial(op, index, first, extent, step, body)
                    }
                    LoopKind::Pipelined { stages } if stages >= 2 && !self.in_pipeline => {
                        self.pipelined(op, index, extent, stages, body)
                    }
                    _ => self.serial(op, index, Idx::constant(0), extent, Idx::constant(1), body),
                }
            }
        }
    }

    /// The block's linear id, by its coordinates in whatever order blocks run, and the number of blocks.
    fn block_stride(&mut self) -> (Idx, Idx) {
        let sizes = [Special::GridX, Special::GridY, Special::GridZ];
        let (mut id, mut count) = (Idx::constant(0), Idx::constant(1));
        for (&v, size) in self.func.block_ids.iter().zip(sizes) {
            let Some(Scalar::Idx(at)) = self.env[v.index()] else { continue };
            let size = self.b.special(size);
            let size = Idx::new(size, 1, i64::from(i32::MAX), 1);
            let part = index::mul(&mut self.b, at, count);
            id = index::add(&mut self.b, id, part);
            count = index::mul(&mut self.b, count, size);
        }
        (id, count)
    }

    pub(super) fn serial(&mut self, op: Op, index: Value, first: Idx, extent: Idx, step: Idx, body: Region) -> Result {
        if extent.hi <= 0 {
            return Ok(());
        }
        if first.as_const() == Some(0) && extent.as_const() == Some(1) && step.as_const() == Some(1) {
            self.env[index.index()] = Some(Scalar::Idx(Idx::constant(0)));
            return self.region(body);
        }
        self.flush();
        // Index plus step must not overflow.
        let narrow = extent.is_narrow() && step.is_narrow() && first.is_narrow() && extent.hi < 1 << 30;
        let ty = if narrow { Ty::B32 } else { Ty::B64 };
        let [lo, hi, by] = [first, extent, step].map(|x| index::to_val(&mut self.b, x, ty));
        let v = self.b.begin_for(ty);
        self.note_split(op, &[]);
        let align = first.divisor().min(step.divisor());
        self.env[index.index()] =
            Some(Scalar::Idx(Idx { base: Some(v), off: 0, lo: first.lo, hi: extent.hi - 1, align }));
        self.region(body)?;
        self.flush();
        self.b.end_for(v, lo, hi, by, true);
        Ok(())
    }

    /// Tells barrier insertion of which tensors each turn of a loop, whose body is open, has a part of its own. Those `besides` are
    /// touched by other turns, too.
    pub(super) fn note_split(&mut self, op: Op, besides: &[Buffer]) {
        let body = self.b.block();
        for &tensor in self.apart.split.get(&op).into_iter().flatten().filter(|t| !besides.contains(t)) {
            if let Some(view) = self.memory(tensor) {
                self.b.kernel.objs[view.obj].split.push(body);
            }
        }
    }

    pub(super) fn if_op(&mut self, op: Op, cond: Value, then_body: Region, else_body: Region) -> Result {
        let cond = self.reg(op, cond, None)?;
        match self.b.as_const(cond) {
            Some(1) => return self.region(then_body),
            Some(_) => return self.region(else_body),
            None => {}
        }
        self.flush();
        let pinned = self.in_mixed_loop();
        let then_block = self.b.open(false);
        if pinned {
            self.b.pin();
        }
        self.region(then_body)?;
        self.flush();
        self.b.close();
        let else_block = self.b.open(false);
        if pinned {
            self.b.pin();
        }
        self.region(else_body)?;
        self.flush();
        self.b.close();
        self.b.push(SimtOp::If { cond, uniform: true, then_body: then_block, else_body: else_block });
        Ok(())
    }

    pub(super) fn while_op(&mut self, op: Op, before: Region, cond: Value, body: Region) -> Result {
        self.flush();
        let before_block = self.b.open(true);
        self.region(before)?;
        let cond = self.reg(op, cond, None)?;
        self.flush();
        self.b.close();
        let body_block = self.b.open(true);
        self.region(body)?;
        self.flush();
        self.b.close();
        self.b.push(SimtOp::While { before: before_block, cond, uniform: true, body: body_block });
        Ok(())
    }

    pub(super) fn assert(&mut self, op: Op, cond: Value, message: &str, lane: Option<usize>) -> Result {
        let cond = self.reg(op, cond, lane)?;
        let failed = self.b.not(cond);
        if self.b.as_const(failed) == Some(0) {
            return Ok(());
        }
        let at = self.span(op).to_string();
        let number = self.b.kernel.assertion(&at, message);
        let slot = self.b.kernel.failure_slot();
        let (then_body, ()) = self.b.in_block(false, |b| {
            let record = b.param(Ty::B64, slot);
            b.push(SimtOp::Fail { record, number });
        });
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond: failed, uniform: lane.is_none(), then_body, else_body });
        Ok(())
    }

    /// Calls `f` for every op of a region and of the regions nested in it.
    pub(super) fn walk_ops(&self, region: Region, f: &mut dyn FnMut(Op, &OpKind)) {
        self.func.walk(region, &mut |op, data| f(op, &data.kind));
    }
}
