//! Pipelined loops: copies from global to shared memory run several iterations ahead, in a ring of buffers.
//!
//! With `S` stages, iteration `k` waits for its own copies, passes a barrier, starts the copies of iteration `k + S - 1`
//! and computes. One barrier an iteration suffices: it makes the copies of all threads visible, and it tells that
//! everyone is done with the slot of iteration `k - 1`, which is the one filled next. Threads that touch nothing but what
//! they have copied themselves need none.
//!
//! A copy takes part if it alone writes a whole shared buffer, before all its readers of the iteration, from a tensor
//! that the loop does not write, or of which each iteration writes nothing but what it has read, and if its place can be
//! computed ahead. All others stay where they are.

use super::index::{self, Idx};
use super::infer::is_whole;
use super::place::{self, Place};
use super::value::Scalar;
use super::view::View;
use super::window::Sink;
use super::{Lowerer, Result};
use crate::ptx::simt::{Cache, Obj, ObjData, ObjKind, PhaseId, SimtOp, Space, Ty};
use smallvec::SmallVec;
use zellige_ir::{
    Access, Buffer, CmpOp, Effect, EntityId, LoopKind, Op, OpKind, Param, Region, Scope, Value, ValueDef, Visit, Window,
};

/// A copy that runs ahead.
#[derive(Clone, Debug)]
struct Producer {
    op: Op,
    /// The tensor that it reads.
    source: Buffer,
    buffer: Buffer,
    view: View,
    /// Bytes of one slot.
    slot_bytes: i64,
}

impl Lowerer<'_> {
    pub(super) fn pipelined(&mut self, op: Op, index: Value, extent: Idx, stages: u32, body: Region) -> Result {
        let at = self.span(op);
        let mut producers = Vec::new();
        let mut helpers: Vec<Op> = Vec::new();
        for &inner in &self.func.regions[body].ops.clone() {
            let (OpKind::Copy { .. } | OpKind::Gather { .. }) = &self.func.ops[inner].kind else { continue };
            match self.producer(op, inner, body, &mut helpers) {
                Ok((buffer, _)) => producers.push((inner, buffer)),
                Err(Some(why)) => {
                    self.explain.push(format!("pipeline: the copy at {} does not run ahead: {why}", self.span(inner)));
                }
                Err(None) => {}
            }
        }
        if producers.is_empty() {
            self.explain.push(format!("pipeline: the loop at {at} runs iteration by iteration: no copy can run ahead"));
            return self.serial(op, index, Idx::constant(0), extent, Idx::constant(1), body);
        }
        if extent.hi <= 0 {
            return Ok(());
        }
        let slots = i64::from(stages);
        let producers: Vec<Producer> = producers.into_iter().map(|(op, buffer)| self.ring(op, buffer, slots)).collect();
        let bytes: i64 = producers.iter().map(|p| p.slot_bytes * slots).sum();
        self.explain.push(format!(
            "pipeline: {} copies of the loop at {at} run {} iterations ahead in rings of {stages} slots, {bytes} bytes",
            producers.len(),
            stages - 1
        ));
        self.ring_loop(op, index, extent, slots, body, &producers, &helpers)
    }

    #[allow(clippy::too_many_arguments)]
    fn ring_loop(
        &mut self,
        op: Op,
        index: Value,
        extent: Idx,
        slots: i64,
        body: Region,
        producers: &[Producer],
        helpers: &[Op],
    ) -> Result {
        self.flush();
        if self.b.in_loop() {
            self.meet(op, "the rings may still be read from the loop's last execution", producers);
        }
        self.b.phase("first copies of a pipelined loop");
        for s in 0..slots - 1 {
            let here = Idx::constant(s);
            self.ahead(op, index, here, extent, here, producers, helpers)?;
            self.b.push(SimtOp::CpAsyncCommit {});
        }
        let ty = if extent.is_narrow() && extent.hi < 1 << 30 { Ty::B32 } else { Ty::B64 };
        let [lo, hi, one] = [Idx::constant(0), extent, Idx::constant(1)].map(|x| index::to_val(&mut self.b, x, ty));
        let v = self.b.begin_for(ty);
        // Their copies are read turns ahead.
        let sources: Vec<Buffer> = producers.iter().map(|p| p.source).collect();
        self.note_split(op, &sources);
        let k = Idx::new(v, 0, extent.hi - 1, 1);
        self.b.push(SimtOp::CpAsyncWait { pending: (slots - 2) as u32 });
        self.meet(op, "the copies of all threads have landed, and the slot filled next is free", producers);
        let ahead = self.b.phase("copies of a later iteration");
        let last = (extent.hi - 1).saturating_add(slots - 1);
        let next = Idx { base: Some(v), off: slots - 1, lo: slots - 1, hi: last, align: 1 };
        let next_slot = index::rem(&mut self.b, next, Idx::constant(slots));
        self.ahead(op, index, next, extent, next_slot, producers, helpers)?;
        self.b.push(SimtOp::CpAsyncCommit {});

        let slot = index::rem(&mut self.b, k, Idx::constant(slots));
        let mut kept = Vec::new();
        for p in producers {
            let view = self.slot_view(p, slot);
            kept.push((p.buffer, self.places[p.buffer.index()].replace(Place::Memory(Box::new(view)))));
            self.skip.insert(p.op);
        }
        self.env[index.index()] = Some(Scalar::Idx(k));
        self.in_pipeline = true;
        let r = self.region(body);
        self.in_pipeline = false;
        self.note_ahead(op, ahead);
        for (buffer, place) in kept {
            self.places[buffer.index()] = place;
        }
        for p in producers {
            self.skip.remove(&p.op);
        }
        self.flush();
        self.b.end_for(v, lo, hi, one, true);
        r
    }

    /// Tells barrier insertion that what this iteration does to tensors of which each iteration has a part of its own does
    /// not meet the copies of a later one.
    fn note_ahead(&mut self, around: Op, ahead: PhaseId) {
        let split = self.apart.split.get(&around).into_iter().flatten();
        let objs: Vec<Obj> = split.filter_map(|&tensor| Some(self.memory(tensor)?.obj)).collect();
        let phases = &mut self.b.kernel.phases;
        for i in ahead.index() + 1..phases.len() {
            phases[PhaseId::from_index(i)].apart.extend(objs.iter().map(|&obj| (obj, ahead)));
        }
    }

    /// Threads meet here if there are some that touch what others have copied.
    fn meet(&mut self, op: Op, why: &str, producers: &[Producer]) {
        self.b.at(&self.func.ops[op].span);
        let phase = self.b.phase(why);
        self.b.kernel.phases[phase].rings = producers.iter().map(|p| p.view.obj).collect();
    }

    /// Starts the copies of iteration `k` into a slot, if there is such an iteration.
    #[allow(clippy::too_many_arguments)]
    fn ahead(
        &mut self,
        op: Op,
        index: Value,
        k: Idx,
        extent: Idx,
        slot: Idx,
        producers: &[Producer],
        helpers: &[Op],
    ) -> Result {
        let exists = index::compare(&mut self.b, CmpOp::Lt, k, extent);
        let certain = match self.b.as_const(exists) {
            Some(0) => return Ok(()),
            Some(_) => true,
            None => false,
        };
        let then_body = if certain { None } else { Some(self.b.open(false)) };
        // Under the condition the index is below the extent.
        let k = Idx { hi: k.hi.min(extent.hi - 1), ..k };
        let k = if k.base.is_none() { Idx::constant(k.off) } else { k };
        self.env[index.index()] = Some(Scalar::Idx(k));
        for &h in helpers {
            if !self.scalar_op(h, None)?
                && let OpKind::Load { out, buffer, indices } = &self.func.ops[h].kind
            {
                let at = self.indices(h, indices, None)?;
                let Some(view) = self.memory(*buffer) else {
                    return self.malformed(op, "a copy that runs ahead reads a fragment");
                };
                let guard = view.guard(&mut self.b, &at);
                let v = view.load(&mut self.b, &[at], &[guard])[0];
                self.set(out.0, None, Scalar::Reg(v));
            }
        }
        for p in producers {
            let view = self.slot_view(p, slot);
            self.b.at(&self.func.ops[p.op].span);
            self.fill_slot(p.op, view)?;
        }
        self.b.at(&self.func.ops[op].span);
        if let Some(then_body) = then_body {
            self.b.close();
            let (else_body, ()) = self.b.in_block(false, |_| ());
            self.b.push(SimtOp::If { cond: exists, uniform: true, then_body, else_body });
        }
        Ok(())
    }

    fn fill_slot(&mut self, op: Op, view: View) -> Result {
        let func = self.func;
        let rank = view.extents.len();
        let sink = Sink::Memory {
            view: Box::new(view),
            offsets: SmallVec::from_elem(Idx::constant(0), rank),
            axes: (0..rank).collect(),
        };
        match &func.ops[op].kind {
            OpKind::Copy { src, dst, .. } => {
                let dist = self.copy_dist(src, dst)?;
                let source = self.source(op, src, &dist)?;
                let limit = super::copy::limit(&source, &sink, self.dtype(src.buffer), self.dtype(dst.buffer));
                self.for_parts(&dist, limit, &mut |l, part| {
                    l.copy_async(&source, &sink, part);
                    Ok(())
                })
            }
            OpKind::Gather { src, index, dst, pad } => self.gather_ring(op, src, index, dst, &sink, *pad).map(|_| ()),
            _ => self.malformed(op, "only copies and gathers run ahead"),
        }
    }

    /// The ring of a buffer.
    fn ring(&mut self, op: Op, buffer: Buffer, slots: i64) -> Producer {
        let data = &self.func.buffers[buffer];
        let shape = data.static_shape().unwrap_or_default();
        let (placement, bytes, align) = place::shared_placement(data.dtype, &shape, self.layouts.shared_form(buffer));
        let slot_bytes = bytes.next_multiple_of(align as usize) as i64;
        let home = self.b.block();
        let obj = self.b.new_obj(ObjData {
            name: format!("ring of {slots} for shared {}", self.name(buffer)),
            kind: ObjKind::Shared { bytes: (slot_bytes * slots) as u32, align, offset: None },
            span: data.span.clone(),
            managed: true,
            home,
            split: Vec::new(),
        });
        let base = self.b.shared_addr(obj);
        let view = View {
            space: Space::Shared,
            obj,
            dtype: data.dtype,
            base,
            base_offset: 0,
            align: u64::from(align),
            extents: shape.iter().map(|&e| Idx::constant(e as i64)).collect(),
            placement,
            cache: Cache::Default,
            checked: false,
        };
        let (OpKind::Copy { src, .. } | OpKind::Gather { src, .. }) = &self.func.ops[op].kind else {
            unreachable!("only copies and gathers run ahead")
        };
        Producer { op, source: src.buffer, buffer, view, slot_bytes }
    }

    fn slot_view(&mut self, p: &Producer, slot: Idx) -> View {
        let by = index::mul(&mut self.b, slot, Idx::constant(p.slot_bytes));
        let mut view = p.view.clone();
        match by.as_const() {
            Some(c) => view.base_offset = c,
            None => {
                let by = index::to_val(&mut self.b, by, Ty::B32);
                view.base = self.b.add(crate::ptx::simt::Num::S32, view.base, by);
            }
        }
        view
    }

    // ---- which copies can run ahead --------------------------------------------------------------------------

    /// The buffer that a copy of a pipelined loop's body fills, if the copy can run ahead; adds the scalar ops it needs to
    /// `helpers`. The error says why not (nothing if it is no candidate).
    fn producer(
        &mut self,
        around: Op,
        op: Op,
        body: Region,
        helpers: &mut Vec<Op>,
    ) -> std::result::Result<(Buffer, ()), Option<String>> {
        let (src, dst, pad, index) = match &self.func.ops[op].kind {
            OpKind::Copy { src, dst, pad } => (src, dst, pad, None),
            OpKind::Gather { src, index, dst, pad } => (src, dst, pad, Some(index)),
            _ => return Err(None),
        };
        let func = self.func;
        let data = |w: &Window| &func.buffers[w.buffer];
        if data(src).scope != Scope::Global || data(dst).scope != Scope::Shared {
            return Err(None);
        }
        if !is_whole(func, dst) {
            return Err(Some("it writes a part of its buffer".into()));
        }
        if data(src).dtype != data(dst).dtype {
            return Err(Some("it converts elements".into()));
        }
        if pad.bits() != 0 {
            return Err(Some("its padding is not zero".into()));
        }
        if self.written_in(src.buffer, body) && !self.written_behind(around, op, src.buffer, body) {
            return Err(Some("the loop writes the tensor it reads".into()));
        }
        if let Some(index) = index {
            let in_memory = matches!(data(index).scope, Scope::Global | Scope::Shared);
            if !in_memory || self.written_in(index.buffer, body) {
                return Err(Some("the loop changes its index".into()));
            }
        }
        self.alone(op, dst.buffer, body)?;
        // What its operands need.
        let mut needed = Vec::new();
        let mut values: Vec<Value> = Vec::new();
        for w in [Some(src), index].into_iter().flatten() {
            values.extend(w.offsets.iter().copied());
        }
        for v in values {
            self.needs(v, body, &mut needed)?;
        }
        for &h in &func.regions[body].ops {
            if needed.contains(&h) && !helpers.contains(&h) {
                helpers.push(h);
            }
        }
        // Program order.
        let order: Vec<Op> = func.regions[body].ops.iter().copied().filter(|o| helpers.contains(o)).collect();
        *helpers = order;
        Ok((dst.buffer, ()))
    }

    fn written_in(&self, buffer: Buffer, region: Region) -> bool {
        let mut written = false;
        self.walk_ops(region, &mut |_, kind| written |= writes(kind, buffer));
        written
    }

    /// Each iteration of the loop `around` touches a part of the tensor that no other one does, and writes it after the copy.
    fn written_behind(&self, around: Op, copy: Op, tensor: Buffer, body: Region) -> bool {
        let split = self.apart.split.get(&around).is_some_and(|tensors| tensors.contains(&tensor));
        let mut before = self.func.regions[body].ops.iter().take_while(|&&op| op != copy);
        split
            && before.all(|&op| {
                let kind = &self.func.ops[op].kind;
                let mut written = writes(kind, tensor);
                kind.for_each_region(&mut |r| written |= self.written_in(tensor, r));
                !written
            })
    }

    /// The copy is the only writer of its buffer, comes before all readers in the body, and the buffer is used in
    /// pipelined loops only.
    fn alone(&self, op: Op, buffer: Buffer, body: Region) -> std::result::Result<(), Option<String>> {
        let func = self.func;
        let mut seen = false;
        for &inner in &func.regions[body].ops {
            let mut touched = false;
            let mut written = false;
            let mut visit = |kind: &OpKind| {
                kind.for_each_buffer(&mut |b| touched |= b == buffer);
                written |= writes(kind, buffer);
            };
            visit(&func.ops[inner].kind);
            func.ops[inner].kind.for_each_region(&mut |r| func.walk(r, &mut |_, d| visit(&d.kind)));
            if inner == op {
                seen = true;
            } else if written {
                return Err(Some("another op of the loop writes its buffer".into()));
            } else if touched && !seen {
                return Err(Some("its buffer is read before it in the loop".into()));
            }
        }
        if used_elsewhere(func, func.body, buffer) {
            return Err(Some("its buffer is used outside of pipelined loops".into()));
        }
        Ok(())
    }

    /// The ops of the body that compute `v`; an error if they cannot run ahead.
    fn needs(&self, v: Value, body: Region, needed: &mut Vec<Op>) -> std::result::Result<(), Option<String>> {
        let ValueDef::Op(op) = self.func.values[v].def else { return Ok(()) };
        if !self.func.regions[body].ops.contains(&op) {
            // The loop itself (its index), or something outside; nested regions are not visible here.
            return Ok(());
        }
        if needed.contains(&op) {
            return Ok(());
        }
        let kind = &self.func.ops[op].kind;
        let free = match kind {
            OpKind::Load { buffer, .. } => self
                .func
                .params
                .iter()
                .any(|p| matches!(p, Param::Tensor { buffer: b, access: Access::Read } if b == buffer)),
            kind => kind.effect() == Effect::Pure,
        };
        if !free {
            return Err(Some("its place depends on what the loop computes".into()));
        }
        let mut r = Ok(());
        kind.for_each_use(&mut |u| {
            if r.is_ok() {
                r = self.needs(u, body, needed);
            }
        });
        r?;
        needed.push(op);
        Ok(())
    }
}

pub(super) fn writes(kind: &OpKind, buffer: Buffer) -> bool {
    match kind {
        OpKind::Store { buffer: b, .. } | OpKind::Atomic { buffer: b, .. } | OpKind::Alloc { buffer: b } => {
            *b == buffer
        }
        OpKind::Copy { dst, .. }
        | OpKind::Gather { dst, .. }
        | OpKind::Scatter { dst, .. }
        | OpKind::Fill { dst, .. }
        | OpKind::Reduce { dst, .. }
        | OpKind::Scan { dst, .. }
        | OpKind::Shuffle { dst, .. } => dst.buffer == buffer,
        OpKind::Gemm { acc, .. } => acc.buffer == buffer,
        OpKind::TopK { values, indices, .. } => values.buffer == buffer || indices.buffer == buffer,
        OpKind::Sort { keys, payload, .. } => {
            keys.buffer == buffer || payload.as_ref().is_some_and(|p| p.buffer == buffer)
        }
        OpKind::Unary { .. }
        | OpKind::Binary { .. }
        | OpKind::Fma { .. }
        | OpKind::Cmp { .. }
        | OpKind::Select { .. }
        | OpKind::Cast { .. }
        | OpKind::Bitcast { .. }
        | OpKind::Load { .. }
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

/// True if an op outside of all pipelined loops touches the buffer (its allocation aside).
fn used_elsewhere(func: &zellige_ir::Func, region: Region, buffer: Buffer) -> bool {
    func.regions[region].ops.iter().any(|&op| {
        let kind = &func.ops[op].kind;
        if matches!(
            kind,
            OpKind::For { kind: LoopKind::Pipelined { .. }, .. } | OpKind::Alloc { .. } | OpKind::Layout { .. }
        ) {
            return false;
        }
        let mut used = false;
        kind.for_each_buffer(&mut |b| used |= b == buffer);
        kind.for_each_region(&mut |r| used |= used_elsewhere(func, r, buffer));
        used
    })
}
