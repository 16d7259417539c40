//! Tile IR to SIMT IR: what the block does becomes what each of its threads does.
//!
//! * Scalars are computed by every thread alike (`scalar`, `index`).
//! * Shared buffers become areas of the arena, fragments become registers under an inferred layout (`infer`).
//! * A tile op walks its tile under some layout: each thread handles the elements that the layout gives it
//!   (`window`). Operands that lie elsewhere are staged through shared memory, so every legal program compiles.
//! * On Hopper, a pipelined loop of copies and products may run on units of its own, with warps in roles (`hopper`).
//! * Each tile op is a *phase*; where one phase touches what another thread touched before, barrier insertion
//!   ([`super::pipeline`]) puts a barrier between them. Nothing here places barriers by hand.

mod accesses;
mod apart;
mod atomic;
mod cast;
mod control;
mod copy;
mod dist;
mod divide;
mod element;
mod exchange;
mod facts;
mod frag;
mod gather;
mod gemm;
mod hopper;
mod index;
mod infer;
mod lanes;
mod layouts;
mod math;
mod order;
mod parallel;
mod params;
mod place;
mod print;
mod reduce;
mod ring;
mod root;
mod scalar;
mod scan;
mod shuffle;
mod value;
mod view;
mod window;
mod words;

pub use layouts::{Layouts, TileLayout, layouts};
pub use params::alignable;

use super::PtxOptions;
use super::error::CodegenError;
use super::pipeline::scratch;
use super::simt::{Builder, Kernel, Obj, ObjKind, PhaseId, SimtOp, Special, Val};
use super::target::Target;
use index::Idx;
use place::Place;
use std::collections::HashSet;
use std::rc::Rc;
use value::Scalar;
use zellige_ir::{Buffer, DType, EntityId, Func, Op, OpKind, Region, Span, Value, ValueDef};

pub(crate) type Result<T = ()> = std::result::Result<T, CodegenError>;

/// A kernel in SIMT IR, before shared-memory planning and barrier insertion.
pub struct Lowered {
    pub kernel: Kernel,
    /// Decisions, for `emit --explain`.
    pub explain: Vec<String>,
}

/// Lowers a verified function.
///
/// # Errors
/// If the kernel uses something that the target lacks or that tile IR does not define.
pub fn lower(func: &Func, opts: &PtxOptions) -> Result<Lowered> {
    let target = opts.target;
    if func.threads == 0 || !func.threads.is_multiple_of(32) || func.threads > 1024 {
        return Err(CodegenError::Threads { span: func.span.clone(), threads: func.threads });
    }
    let mut kernel = Kernel::new(&func.name, func.span.clone(), func.threads as u32);
    kernel.params = params::slots(func);
    let mut explain = Vec::new();
    let plan = if opts.tensor_maps { hopper::plan::plan(func, target) } else { Err(None) };
    let plan = match plan {
        Ok(plan) => Some(Rc::new(plan)),
        Err(why) => {
            explain.extend(why.map(|why| format!("hopper: products run on mma.sync, not wgmma: {why}")));
            None
        }
    };
    if let Some(plan) = &plan {
        kernel.params.extend(hopper::map_slots(func, plan));
    }
    let layouts = infer::infer(func, target, plan.as_deref(), &mut explain)?;
    let mut b = Builder::new(kernel);
    let tid = b.special(Special::Tid);
    let tid = Idx::new(tid, 0, func.threads as i64 - 1, 1);
    let mut lowerer = Lowerer {
        func,
        target,
        b,
        env: vec![None; func.values.len()],
        lanes: Vec::new(),
        spare_lanes: Vec::new(),
        places: func.buffers.ids().map(|_| None).collect(),
        layouts,
        tid,
        explain,
        in_pipeline: false,
        skip: HashSet::new(),
        aligned: opts.aligned,
        overlapped: opts.overlapped,
        phase_ops: Vec::new(),
        apart: apart::Apart::new(func),
        hopper: None,
    };
    // The launcher has checked the prelude's assertions.
    let asserts = func.regions[func.prelude].ops.iter().copied();
    lowerer.skip.extend(asserts.filter(|&op| matches!(func.ops[op].kind, OpKind::Assert { .. })));
    if opts.overlapped {
        // The next launch waits for this one's end, not for this op: the earlier its blocks are in place, the better.
        lowerer.b.push(SimtOp::GridTrigger {});
    }
    match plan {
        Some(plan) => {
            let teams = plan.teams;
            lowerer.specialised(plan)?;
            if let (2.., Some(scratch)) = (teams, scratch(&lowerer.b.kernel)) {
                let note =
                    format!("hopper: no ping-pong: its teams would share the {}", lowerer.b.kernel.objs[scratch].name);
                let mut alone = func.clone();
                alone.ping_pong = false;
                let mut lowered = lower(&alone, opts)?;
                lowered.explain.push(note);
                return Ok(lowered);
            }
        }
        None => {
            lowerer.params();
            lowerer.region(func.prelude)?;
            lowerer.block_ids();
            lowerer.wait_for_launch();
            lowerer.region(func.body)?;
        }
    }
    lowerer.note_apart();
    Ok(Lowered { kernel: lowerer.b.kernel, explain: lowerer.explain })
}

struct Lowerer<'f> {
    func: &'f Func,
    target: Target,
    /// Positions of the parameters that are multiples of [`ALIGNED`](super::ALIGNED), as bits.
    aligned: u64,
    /// The launch before this one may still run when the kernel begins.
    overlapped: bool,
    b: Builder,
    /// Scalars that all threads agree on.
    env: Vec<Option<Scalar>>,
    /// Scalars of the iterations of a parallel loop that are being lowered side by side.
    lanes: Vec<lanes::LaneScalars>,
    /// Empty ones, for the next loop.
    spare_lanes: Vec<lanes::LaneScalars>,
    places: Vec<Option<Place>>,
    layouts: infer::Layouts,
    tid: Idx,
    explain: Vec<String>,
    /// Inside a pipelined loop: asynchronous copies belong to its ring.
    in_pipeline: bool,
    /// Copies of the current pipelined loop that run ahead: not lowered where they stand.
    skip: HashSet<Op>,
    /// The op of the block that each phase belongs to.
    phase_ops: Vec<Option<Op>>,
    apart: apart::Apart,
    /// Set while the warps that multiply with `wgmma` are lowered.
    hopper: Option<Rc<hopper::HopperRole>>,
}

impl<'f> Lowerer<'f> {
    fn span(&self, op: Op) -> Span {
        self.func.ops[op].span.clone()
    }

    /// Waits for the end of the launch before this one, if that may still run: from here on memory is touched.
    fn wait_for_launch(&mut self) {
        if self.overlapped {
            self.b.push(SimtOp::GridWait {});
        }
    }

    fn malformed<T>(&self, op: Op, what: impl Into<String>) -> Result<T> {
        let data = &self.func.ops[op];
        Err(CodegenError::Malformed { span: data.span.clone(), op: data.kind.name(), what: what.into() })
    }

    fn undefined<T>(&self, op: Op, what: &str, dtype: DType) -> Result<T> {
        Err(CodegenError::Undefined { span: self.span(op), op: what.to_string(), dtype })
    }

    fn dtype(&self, buffer: Buffer) -> DType {
        self.func.buffers[buffer].dtype
    }

    /// Name of a buffer in explanations.
    fn name(&self, buffer: Buffer) -> String {
        infer::buffer_name(self.func, buffer)
    }

    // ---- scalars ---------------------------------------------------------------------------------------------

    /// A scalar; `lane` picks the iteration inside a parallel loop.
    fn scalar(&mut self, op: Op, v: Value, lane: Option<usize>) -> Result<Scalar> {
        let in_lane = lane.and_then(|l| self.lanes[l].get(v));
        if let Some(s) = in_lane.or(self.env[v.index()]) {
            return Ok(s);
        }
        match self.func.values[v].def {
            ValueDef::Const(c) => Ok(self.constant(c)),
            ValueDef::Dim(_) | ValueDef::Param(_) | ValueDef::BlockId(_) | ValueDef::Op(_) | ValueDef::Pending => {
                self.malformed(op, format!("{v} is used before it is computed"))
            }
        }
    }

    fn constant(&mut self, c: zellige_ir::Const) -> Scalar {
        match c.dtype() {
            DType::Index => Scalar::Idx(Idx::constant(c.as_i64())),
            ty => Scalar::Reg(self.b.kernel.constant(value::class(ty), value::bits(c))),
        }
    }

    /// A constant in its register.
    fn constant_reg(&mut self, c: zellige_ir::Const) -> Val {
        self.b.kernel.constant(value::class(c.dtype()), value::bits(c))
    }

    fn reg(&mut self, op: Op, v: Value, lane: Option<usize>) -> Result<Val> {
        Ok(match self.scalar(op, v, lane)? {
            Scalar::Reg(r) => r,
            Scalar::Idx(i) => index::to_val(&mut self.b, i, crate::ptx::simt::Ty::B64),
        })
    }

    fn idx(&mut self, op: Op, v: Value, lane: Option<usize>) -> Result<Idx> {
        match self.scalar(op, v, lane)? {
            Scalar::Idx(i) => Ok(i),
            Scalar::Reg(_) => self.malformed(op, format!("{v} is no `index`")),
        }
    }

    fn set(&mut self, v: Value, lane: Option<usize>, s: Scalar) {
        let s = match s {
            // One that was in memory may be any number.
            Scalar::Reg(r) if self.func.ty(v) == DType::Index => Scalar::Idx(Idx::new(r, i64::MIN, i64::MAX, 1)),
            s => s,
        };
        match lane {
            Some(l) => self.lanes[l].set(v, s),
            None => self.env[v.index()] = Some(s),
        }
    }

    /// Lowers a scalar op for one iteration (or for the block). Returns false for other ops.
    fn scalar_op(&mut self, op: Op, lane: Option<usize>) -> Result<bool> {
        let func = self.func;
        let target = self.target;
        let done = match &func.ops[op].kind {
            OpKind::Unary { out, op: f, x } => {
                let ty = func.ty(*x);
                let x = self.scalar(op, *x, lane)?;
                let Ok(r) = scalar::unary(&mut self.b, target, *f, ty, x) else {
                    return self.undefined(op, f.name(), ty);
                };
                (*out, r)
            }
            OpKind::Binary { out, op: f, x, y } => {
                let ty = func.ty(*x);
                let (x, y) = (self.scalar(op, *x, lane)?, self.scalar(op, *y, lane)?);
                let Ok(r) = scalar::binary(&mut self.b, target, *f, ty, x, y) else {
                    return self.undefined(op, f.name(), ty);
                };
                (*out, r)
            }
            OpKind::Fma { out, x, y, z } => {
                let ty = func.ty(*x);
                let (x, y, z) = (self.reg(op, *x, lane)?, self.reg(op, *y, lane)?, self.reg(op, *z, lane)?);
                let Ok(r) = scalar::fma(&mut self.b, target, ty, x, y, z) else {
                    return self.undefined(op, "fma", ty);
                };
                (*out, Scalar::Reg(r))
            }
            OpKind::Cmp { out, op: f, x, y } => {
                let ty = func.ty(*x);
                let (x, y) = (self.scalar(op, *x, lane)?, self.scalar(op, *y, lane)?);
                let Ok(r) = scalar::compare(&mut self.b, target, *f, ty, x, y) else {
                    return self.undefined(op, f.name(), ty);
                };
                (*out, Scalar::Reg(r))
            }
            OpKind::Select { out, cond, x, y } => {
                let cond = self.reg(op, *cond, lane)?;
                let (x, y) = (self.scalar(op, *x, lane)?, self.scalar(op, *y, lane)?);
                (*out, self.select(cond, x, y))
            }
            OpKind::Cast { out, x } => {
                let (from, to) = (func.ty(*x), func.ty(out.0));
                let x = self.scalar(op, *x, lane)?;
                (*out, cast::cast(&mut self.b, target, x, from, to))
            }
            OpKind::Bitcast { out, x } => {
                let (from, to) = (func.ty(*x), func.ty(out.0));
                let opaque = |t| matches!(t, DType::Bool | DType::Index);
                if opaque(from) || opaque(to) || from.bits() != to.bits() {
                    return self.undefined(op, "bitcast", from);
                }
                let x = self.reg(op, *x, lane)?;
                (*out, Scalar::Reg(self.bitcast(x, from, to)))
            }
            OpKind::Assume { .. } | OpKind::Layout { .. } => return Ok(true),
            OpKind::Load { .. }
            | OpKind::Store { .. }
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
            | OpKind::Assert { .. } => return Ok(false),
        };
        self.set(done.0.0, lane, done.1);
        Ok(true)
    }

    fn select(&mut self, cond: Val, x: Scalar, y: Scalar) -> Scalar {
        match (x, y) {
            (Scalar::Idx(i), Scalar::Idx(j)) if i == j => x,
            (Scalar::Idx(i), Scalar::Idx(j)) => {
                let narrow = i.is_narrow() && j.is_narrow();
                let ty = if narrow { crate::ptx::simt::Ty::B32 } else { crate::ptx::simt::Ty::B64 };
                let (iv, jv) = (index::to_val(&mut self.b, i, ty), index::to_val(&mut self.b, j, ty));
                let v = self.b.selp(cond, iv, jv);
                let align = i.divisor().min(j.divisor());
                Scalar::Idx(Idx::new(v, i.lo.min(j.lo), i.hi.max(j.hi), align))
            }
            (Scalar::Reg(x), Scalar::Reg(y)) => Scalar::Reg(self.b.selp(cond, x, y)),
            (Scalar::Idx(_), Scalar::Reg(_)) | (Scalar::Reg(_), Scalar::Idx(_)) => {
                unreachable!("both arms of a select have one type")
            }
        }
    }

    /// The bits of a register of type `from` as type `to`.
    fn bitcast(&mut self, x: Val, from: DType, to: DType) -> Val {
        use crate::ptx::simt::Ty;
        let b = &mut self.b;
        let (source, dest) = (value::class(from), value::class(to));
        match (source, dest) {
            (s, d) if s == d => {
                if to.is_int() && to.bits() < 32 {
                    cast::extend(b, to, x)
                } else if to.bits() < 32 && source == Ty::B32 {
                    // A narrow float keeps zeros above its code.
                    b.bfe(x, 0, to.bits() as u32)
                } else {
                    x
                }
            }
            (Ty::B16, Ty::B32) => {
                let zero = b.zero(Ty::B16);
                let word = b.pack(x, zero);
                cast::extend(b, to, word)
            }
            (Ty::B32, Ty::B16) => b.unpack(x).0,
            (_, d) => b.bits(d, x),
        }
    }

    /// Tells barrier insertion which phases touch different elements of a tensor.
    fn note_apart(&mut self) {
        for (tensor, obj) in self.written_tensors() {
            let of = |(i, op): (usize, &Option<Op>)| Some((i, op.filter(|&op| self.apart.touches(op, tensor))?));
            let phases: Vec<(usize, Op)> = self.phase_ops.iter().enumerate().filter_map(of).collect();
            for (n, &(i, after)) in phases.iter().enumerate() {
                let before =
                    phases[..n].iter().filter(|(_, before)| self.apart.differ(self.func, *before, after, tensor));
                let found = before.map(|&(j, _)| (obj, PhaseId::from_index(j)));
                self.b.kernel.phases[PhaseId::from_index(i)].apart.extend(found);
            }
        }
    }

    /// Tensors that the kernel writes, with their objects.
    fn written_tensors(&self) -> Vec<(Buffer, Obj)> {
        let global = |b: &Buffer| self.func.buffers[*b].scope == zellige_ir::Scope::Global;
        let objs = self.func.buffers.ids().filter(global).filter_map(|b| Some((b, self.memory(b)?.obj)));
        objs.filter(|(_, o)| matches!(self.b.kernel.objs[*o].kind, ObjKind::Global { read_only: false })).collect()
    }

    // ---- ops of the block ------------------------------------------------------------------------------------

    fn region(&mut self, region: Region) -> Result {
        let func = self.func;
        self.ops(&func.regions[region].ops)
    }

    fn ops(&mut self, ops: &[Op]) -> Result {
        ops.iter().try_for_each(|&op| if self.skip.contains(&op) { Ok(()) } else { self.op(op) })
    }

    fn op(&mut self, op: Op) -> Result {
        let func = self.func;
        self.b.at(&func.ops[op].span);
        if self.scalar_op(op, None)? {
            return Ok(());
        }
        let first = self.b.kernel.phases.len();
        self.tile_op(op)?;
        // Those of ops nested in a loop are noted already.
        self.phase_ops.resize(self.b.kernel.phases.len().max(first), None);
        for source in &mut self.phase_ops[first..] {
            source.get_or_insert(op);
        }
        Ok(())
    }

    fn tile_op(&mut self, op: Op) -> Result {
        let func = self.func;
        match &func.ops[op].kind {
            OpKind::Load { out, buffer, indices } => self.load_scalar(op, *out, *buffer, indices),
            OpKind::Store { buffer, indices, value } => self.store_scalar(op, *buffer, indices, *value),
            OpKind::Atomic { out, op: f, buffer, indices, value } => {
                self.atomic_scalar(op, *out, *f, *buffer, indices, *value)
            }
            OpKind::Alloc { buffer } => self.alloc(op, *buffer),
            OpKind::Copy { src, dst, pad } => self.copy(op, src, dst, *pad),
            OpKind::Gather { src, index, dst, pad } => self.gather(op, src, index, dst, *pad),
            OpKind::Scatter { src, dst, index } => self.scatter(op, src, dst, index),
            OpKind::Fill { dst, value } => self.fill(op, dst, *value),
            OpKind::Gemm { a, b, acc, precision } => self.gemm(op, a, b, acc, *precision),
            OpKind::Reduce { op: f, src, dst, axis, accumulate } => {
                self.reduce(op, *f, src, dst, *axis as usize, *accumulate)
            }
            OpKind::Scan { op: f, src, dst, axis, reverse, exclusive } => {
                self.scan(op, *f, src, dst, *axis as usize, *reverse, *exclusive)
            }
            OpKind::TopK { src, values, indices, largest } => self.topk(op, src, values, indices, *largest),
            OpKind::Sort { keys, payload, descending } => self.sort(op, keys, payload.as_ref(), *descending),
            OpKind::Shuffle { op: f, src, dst, amount } => self.shuffle(op, *f, src, dst, *amount),
            OpKind::For { kind, indices, extents, body } => {
                let indices: Vec<Value> = indices.iter().map(|d| d.0).collect();
                self.for_op(op, *kind, &indices, extents, *body)
            }
            OpKind::If { cond, then_body, else_body } => self.if_op(op, *cond, *then_body, *else_body),
            OpKind::While { before, cond, body } => self.while_op(op, *before, *cond, *body),
            // A placement hint; all warps run it.
            OpKind::Role { role: _, body } => self.region(*body),
            OpKind::Print { message, values, window } => self.print(op, message, values, window.as_ref()),
            OpKind::Assert { cond, message } => self.assert(op, *cond, message, None),
            OpKind::Unary { .. }
            | OpKind::Binary { .. }
            | OpKind::Fma { .. }
            | OpKind::Cmp { .. }
            | OpKind::Select { .. }
            | OpKind::Cast { .. }
            | OpKind::Bitcast { .. }
            | OpKind::Assume { .. }
            | OpKind::Layout { .. } => Ok(()),
        }
    }
}
