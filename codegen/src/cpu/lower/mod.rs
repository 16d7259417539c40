//! Tile IR to loop IR. One file for each family of ops.

mod access;
mod boxes;
mod cast;
mod control;
mod copy;
mod debug;
mod gather;
mod guard;
mod math;
mod order;
mod parallel;
mod producer;
mod reduce;
mod rep;
mod scalar;
mod scan;
mod shuffle;
mod transpose;

pub(crate) use access::{Guard, wide_reg};
pub(crate) use copy::View;
pub(crate) use rep::Rep;

use super::abi::{ARGS_OFFSET, ArgSlot, CpuKernel, FailureKind, FailureSite, PrintSite};
use super::loopir::{BinOp, Builder, LoopFunc, Ty, Val};
use super::plan::{self, Cell, Layout};
use super::{CodegenError, CpuOptions};
use producer::Producer;
use rep::reg;
use std::collections::{HashMap, HashSet};
use zellige_ir::{
    BlockOrder, Buffer, DType, EntityId, Extent, Func, Op, OpKind, Param, Region, Scope, Strides, Value, ValueDef,
};

pub(crate) type Result<T = (), E = CodegenError> = std::result::Result<T, E>;

/// Scratch at the start of every arena that accesses outside a tensor are diverted to.
const DUMP_BYTES: usize = 64;

/// A kernel in loop IR, and everything about it but its code.
pub(crate) struct Lowered {
    pub func: LoopFunc,
    pub kernel: CpuKernel,
}

/// Distance between neighbours along an axis, in elements.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Stride {
    Const(i64),
    Dynamic(Val),
}

/// A buffer as the code sees it.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// Address of element zero.
    pub base: Val,
    pub dtype: DType,
    pub cell: Cell,
    pub strides: Vec<Stride>,
    pub extents: Vec<Val>,
    /// Accesses outside are allowed and do nothing.
    pub global: bool,
    /// Each iteration of a vectorised loop has its own copy: the four copies of an element are neighbours.
    pub private: bool,
}

/// State while one kernel is lowered.
pub(crate) struct Lower<'f> {
    pub func: &'f Func,
    opts: CpuOptions,
    pub b: Builder,
    values: HashMap<Value, Rep>,
    storages: Vec<Option<Storage>>,
    args: HashMap<ArgSlot, Val>,
    failures: Vec<FailureSite>,
    prints: Vec<PrintSite>,
    grid: Vec<Val>,
    /// Linear id of the running block, and how many there are.
    block: Val,
    blocks: Val,
    arena: plan::Arena,
    layouts: Vec<Layout>,
    scratch_used: usize,
    scratch_max: usize,
    /// Are four iterations being lowered at once?
    wide: bool,
    /// Which of four iterations is being lowered on its own, when one is.
    lane: usize,
    /// Element accesses proved to be inside, in the loop being lowered.
    unguarded: HashSet<Op>,
    /// Values that the loop being examined defines itself.
    local_defs: HashSet<Value>,
    /// The open loops of tile IR: depth of the scope they stand in, and the buffers that something in them may write.
    loops: Vec<(usize, HashSet<Buffer>)>,
    /// Ops that touch the elements of each buffer.
    uses: Vec<u32>,
    /// Tiles that the reduction which follows computes itself.
    producers: HashMap<Buffer, Producer>,
    /// Loads being lowered read memory that does not change inside this scope.
    invariant: Option<usize>,
}

/// Lowers a kernel.
///
/// # Errors
/// If an op has no lowering.
pub(crate) fn lower(func: &Func, opts: &CpuOptions) -> Result<Lowered> {
    let mut b = Builder::new(&func.name);
    let layouts = plan::layouts(func);
    let arena = plan::arena(func, &layouts, DUMP_BYTES);
    let zero = b.i64(0);
    let mut l = Lower {
        func,
        opts: *opts,
        b,
        values: HashMap::new(),
        storages: vec![None; func.buffers.len()],
        args: HashMap::new(),
        failures: Vec::new(),
        prints: Vec::new(),
        grid: Vec::new(),
        block: zero,
        blocks: zero,
        arena,
        layouts,
        scratch_used: 0,
        scratch_max: 0,
        wide: false,
        lane: 0,
        unguarded: HashSet::new(),
        local_defs: HashSet::new(),
        loops: Vec::new(),
        uses: producer::count_uses(func),
        producers: HashMap::new(),
        invariant: None,
    };
    let slots = arg_slots(func);
    l.load_args(&slots);
    l.bind_buffers();
    l.region(func.prelude)?;
    l.run_blocks()?;
    let kernel = CpuKernel {
        name: func.name.clone(),
        code: Vec::new(),
        arena_bytes: l.arena.bytes + l.scratch_max,
        args: slots,
        failures: l.failures,
        prints: l.prints,
    };
    Ok(Lowered { func: l.b.finish(), kernel })
}

/// The argument slots of a kernel, in order.
pub(crate) fn arg_slots(func: &Func) -> Vec<ArgSlot> {
    let mut slots = Vec::new();
    for (param, p) in func.params.iter().enumerate() {
        let param = param as u32;
        match p {
            Param::Tensor { buffer, .. } => {
                slots.push(ArgSlot::Tensor { param });
                let data = &func.buffers[*buffer];
                if data.strides == Strides::Dynamic {
                    slots.extend((0..data.rank() as u32 - 1).map(|axis| ArgSlot::Stride { param, axis }));
                }
            }
            Param::Scalar { .. } => slots.push(ArgSlot::Scalar { param }),
        }
    }
    slots.extend((0..func.dims.len() as u32).map(|dim| ArgSlot::Dim { dim }));
    slots.extend((0..func.grid.len() as u32).map(|axis| ArgSlot::Grid { axis }));
    slots
}

impl Lower<'_> {
    fn load_args(&mut self, slots: &[ArgSlot]) {
        let [ctx, ..] = self.b.params();
        let array = self.b.load(Ty::I64, ctx, ARGS_OFFSET);
        for (i, &slot) in slots.iter().enumerate() {
            let v = self.b.load(Ty::I64, array, i as i32 * 8);
            match slot {
                // A tensor fits the address space, so extents and strides cannot make an address overflow.
                ArgSlot::Dim { .. } | ArgSlot::Grid { .. } => {
                    self.b.refine(v, super::loopir::Facts::range(0, 1 << 47));
                }
                ArgSlot::Tensor { .. } | ArgSlot::Stride { .. } | ArgSlot::Scalar { .. } => {}
            }
            self.args.insert(slot, v);
        }
        self.grid = (0..self.func.grid.len() as u32).map(|axis| self.args[&ArgSlot::Grid { axis }]).collect();
    }

    fn bind_buffers(&mut self) {
        let func = self.func;
        for (param, p) in func.params.iter().enumerate() {
            let Param::Tensor { buffer, .. } = p else { continue };
            let param = param as u32;
            let data = &func.buffers[*buffer];
            let extents: Vec<Val> = data
                .shape
                .iter()
                .map(|e| match e {
                    Extent::Static(n) => self.b.i64(*n as i64),
                    Extent::Dynamic(dim) => self.args[&ArgSlot::Dim { dim: dim.index() as u32 }],
                })
                .collect();
            let rank = data.rank();
            let mut strides = vec![Stride::Const(1); rank];
            for axis in (0..rank.saturating_sub(1)).rev() {
                strides[axis] = match data.strides {
                    Strides::Dynamic => Stride::Dynamic(self.args[&ArgSlot::Stride { param, axis: axis as u32 }]),
                    Strides::Contiguous => self.outer_stride(strides[axis + 1], extents[axis + 1]),
                };
            }
            self.storages[buffer.index()] = Some(Storage {
                base: self.args[&ArgSlot::Tensor { param }],
                dtype: data.dtype,
                cell: Cell::Native,
                strides,
                extents,
                global: true,
                private: false,
            });
        }
        let [.., arena] = self.b.params();
        for (buffer, data) in func.buffers.iter() {
            let (Some(offset), Some(shape)) = (self.arena.offsets[buffer.index()], data.static_shape()) else {
                continue;
            };
            if data.scope == Scope::Global {
                continue;
            }
            let layout = &self.layouts[buffer.index()];
            self.storages[buffer.index()] = Some(Storage {
                base: self.b.add_imm(arena, offset as i64),
                dtype: data.dtype,
                cell: layout.cell,
                strides: layout.strides.iter().map(|s| Stride::Const(*s)).collect(),
                extents: shape.iter().map(|n| self.b.i64(*n as i64)).collect(),
                global: false,
                private: layout.private,
            });
        }
    }

    fn outer_stride(&mut self, inner: Stride, extent: Val) -> Stride {
        match (inner, self.b.as_const(extent)) {
            (Stride::Const(s), Some(n)) => Stride::Const(s * n),
            (Stride::Const(s), None) => Stride::Dynamic(self.b.mul_imm(extent, s)),
            (Stride::Dynamic(s), _) => Stride::Dynamic(self.b.mul(s, extent)),
        }
    }

    /// The loop over the blocks that the caller asked for.
    fn run_blocks(&mut self) -> Result {
        let [_, first, last, _] = self.b.params();
        let one = self.b.i64(1);
        self.blocks = one;
        for g in self.grid.clone() {
            self.blocks = self.b.mul(self.blocks, g);
        }
        let l = self.b.begin_for(first, last, 1, &[]);
        self.b.refine(l.iv, super::loopir::Facts::range(0, i64::MAX));
        let ids = self.block_ids(l.iv);
        self.block = l.iv;
        if self.func.block_order != BlockOrder::RowMajor {
            let mut linear = self.b.i64(0);
            for (id, g) in ids.iter().zip(self.grid.clone()).rev() {
                linear = self.b.mul(linear, g);
                linear = self.b.add(linear, *id);
            }
            self.block = linear;
        }
        for (v, id) in self.func.block_ids.clone().into_iter().zip(ids) {
            self.values.insert(v, Rep::Uni(id));
        }
        self.region(self.func.body)?;
        let _ = self.b.end_for(l, &[]);
        Ok(())
    }

    /// Coordinates of the `n`-th block to run.
    fn block_ids(&mut self, n: Val) -> Vec<Val> {
        let mut ids = match self.grid[..] {
            [] => return Vec::new(),
            [_] => vec![n],
            [gx, gy, ..] => {
                let plane = self.b.mul(gx, gy);
                let (z, n) = match self.grid.len() {
                    2 => (None, n),
                    _ => (Some(self.b.bin(BinOp::UDiv, n, plane)), self.b.bin(BinOp::URem, n, plane)),
                };
                let (x, y) = match self.func.block_order {
                    BlockOrder::RowMajor => (self.b.bin(BinOp::URem, n, gx), self.b.bin(BinOp::UDiv, n, gx)),
                    BlockOrder::Panel(rows) => {
                        let rows = self.b.i64(i64::from(rows.max(1)));
                        let panel_blocks = self.b.mul(gx, rows);
                        let panel = self.b.bin(BinOp::UDiv, n, panel_blocks);
                        let inside = self.b.bin(BinOp::URem, n, panel_blocks);
                        let top = self.b.mul(panel, rows);
                        let left = self.b.sub(gy, top);
                        let height = self.b.bin(BinOp::SMin, rows, left);
                        let down = self.b.bin(BinOp::URem, inside, height);
                        (self.b.bin(BinOp::UDiv, inside, height), self.b.add(top, down))
                    }
                };
                [x, y].into_iter().chain(z).collect()
            }
        };
        for id in &mut ids {
            self.b.refine(*id, super::loopir::Facts::range(0, i64::from(i32::MAX)));
        }
        ids
    }

    // ---- Values ----

    /// A tile IR value in registers.
    pub(crate) fn get(&mut self, v: Value) -> Rep {
        if let Some(&rep) = self.values.get(&v) {
            return rep;
        }
        let ty = self.func.ty(v);
        match self.func.values[v].def {
            ValueDef::Const(c) => Rep::Uni(self.immediate(ty, c.bits())),
            ValueDef::Dim(dim) => Rep::Uni(self.args[&ArgSlot::Dim { dim: dim.index() as u32 }]),
            ValueDef::Param(param) => {
                let bits = self.args[&ArgSlot::Scalar { param }];
                Rep::Uni(self.value_of_bits(ty, bits))
            }
            // The verifier has seen to it that ops and blocks define values before they are used.
            ValueDef::BlockId(_) | ValueDef::Op(_) | ValueDef::Pending => Rep::Uni(self.immediate(ty, 0)),
        }
    }

    /// A value that is the same in all iterations: lane zero otherwise.
    pub(crate) fn get_uniform(&mut self, v: Value) -> Val {
        let (rep, ty) = (self.get(v), self.func.ty(v));
        self.lane(rep, ty, 0)
    }

    pub(crate) fn set(&mut self, v: Value, rep: Rep) {
        self.values.insert(v, rep);
    }

    /// The register form of an immediate given by its bits.
    pub(crate) fn immediate(&mut self, ty: DType, bits: u64) -> Val {
        let bits = match ty {
            DType::I8 => bits as u8 as i8 as u64,
            DType::I16 => bits as u16 as i16 as u64,
            DType::Bool
            | DType::I32
            | DType::I64
            | DType::U8
            | DType::U16
            | DType::U32
            | DType::U64
            | DType::Index
            | DType::F16
            | DType::BF16
            | DType::F32
            | DType::F64
            | DType::F8E4M3
            | DType::F8E5M2
            | DType::F4E2M1
            | DType::E8M0 => bits,
        };
        self.b.bits(reg(ty), bits)
    }

    /// The register form of a value whose bits lie in the low part of an i64.
    fn value_of_bits(&mut self, ty: DType, bits: Val) -> Val {
        use super::loopir::UnOp;
        match reg(ty) {
            Ty::I64 => bits,
            Ty::F64 => self.b.bitcast(Ty::F64, bits),
            Ty::I8 => {
                let low = self.b.bin_imm(BinOp::And, bits, 1);
                self.b.convert(UnOp::Reduce, Ty::I8, low)
            }
            _ => {
                let low = self.b.convert(UnOp::Reduce, Ty::I32, bits);
                if ty == DType::F32 {
                    return self.b.bitcast(Ty::F32, low);
                }
                match ty.bits() {
                    8 | 16 if ty.is_signed_int() => self.normalise(low, ty),
                    n @ (4 | 8 | 16) => self.b.bin_imm(BinOp::And, low, (1 << n) - 1),
                    _ => low,
                }
            }
        }
    }

    /// The bits of a register value, zero-extended to an i64.
    fn bits_of_value(&mut self, ty: DType, v: Val) -> Val {
        use super::loopir::UnOp;
        match reg(ty) {
            Ty::I64 => v,
            Ty::F64 => self.b.bitcast(Ty::I64, v),
            Ty::I8 => self.b.convert(UnOp::ZExt, Ty::I64, v),
            _ => {
                let v = self.b.bitcast(Ty::I32, v);
                let v = match ty.bits() {
                    n @ (8 | 16) => self.b.bin_imm(BinOp::And, v, (1 << n) - 1),
                    _ => v,
                };
                self.b.convert(UnOp::ZExt, Ty::I64, v)
            }
        }
    }

    /// The buffer's memory. A tile without an `alloc` has none; the verifier rejects its use.
    pub(crate) fn storage(&self, buffer: Buffer, at: Op) -> Result<Storage> {
        self.storages[buffer.index()]
            .clone()
            .ok_or_else(|| self.unsupported(format!("buffer {buffer}"), at, "allocate the buffer before it is used"))
    }

    pub(crate) fn unsupported(&self, what: String, at: Op, way_out: &'static str) -> CodegenError {
        CodegenError::Unsupported {
            kernel: self.func.name.clone(),
            what,
            span: self.func.ops[at].span.to_string(),
            way_out,
        }
    }

    /// Scratch memory until the next op; 64-byte aligned.
    pub(crate) fn scratch(&mut self, bytes: usize) -> Val {
        let [.., arena] = self.b.params();
        let at = self.arena.bytes + self.scratch_used;
        self.scratch_used += bytes.next_multiple_of(64);
        self.scratch_max = self.scratch_max.max(self.scratch_used);
        self.b.add_imm(arena, at as i64)
    }

    fn exit_if(&mut self, cond: Val, at: Op, kind: FailureKind) {
        if self.b.as_const(cond) == Some(0) {
            return;
        }
        let site = FailureSite { kind, place: (&self.func.ops[at].span).into() };
        let position = match self.failures.iter().position(|s| *s == site) {
            Some(p) => p,
            None => {
                self.failures.push(site);
                self.failures.len() - 1
            }
        };
        self.b.exit_if(cond, position as u32, self.block);
    }

    // ---- Ops ----

    pub(crate) fn region(&mut self, region: Region) -> Result {
        let func = self.func;
        func.regions[region].ops.iter().enumerate().try_for_each(|(at, &op)| match self.producer_at(region, at) {
            Some((tile, producer)) => {
                self.producers.insert(tile, producer);
                Ok(())
            }
            None => self.op(op),
        })
    }

    fn op(&mut self, at: Op) -> Result {
        let func = self.func;
        self.scratch_used = 0;
        match &func.ops[at].kind {
            OpKind::Unary { out, op, x } => {
                let (rep, ty) = (self.get(*x), func.ty(*x));
                let r = self.unary(*op, rep, ty);
                self.set(out.0, r);
            }
            OpKind::Binary { out, op, x, y } => {
                let (a, b, ty) = (self.get(*x), self.get(*y), func.ty(*x));
                let r = self.binary(at, *op, a, b, ty)?;
                self.set(out.0, r);
            }
            OpKind::Fma { out, x, y, z } => {
                let (a, b, c) = (self.get(*x), self.get(*y), self.get(*z));
                let r = self.fma(a, b, c, func.ty(*x));
                self.set(out.0, r);
            }
            OpKind::Cmp { out, op, x, y } => {
                let (a, b) = (self.get(*x), self.get(*y));
                let r = self.compare(*op, a, b, func.ty(*x));
                self.set(out.0, r);
            }
            OpKind::Select { out, cond, x, y } => {
                let (c, a, b) = (self.get(*cond), self.get(*x), self.get(*y));
                let r = self.select(c, a, b, func.ty(*x));
                self.set(out.0, r);
            }
            OpKind::Cast { out, x } => {
                let rep = self.get(*x);
                let r = self.cast(rep, func.ty(*x), func.ty(out.0));
                self.set(out.0, r);
            }
            OpKind::Bitcast { out, x } => {
                let rep = self.get(*x);
                let r = self.bitcast(rep, func.ty(*x), func.ty(out.0));
                self.set(out.0, r);
            }
            OpKind::Load { out, buffer, indices } => {
                let r = self.load_op(at, *buffer, indices)?;
                self.set(out.0, r);
            }
            OpKind::Store { buffer, indices, value } => self.store_op(at, *buffer, indices, *value)?,
            OpKind::Atomic { out, op, buffer, indices, value } => {
                let r = self.atomic(at, *op, *buffer, indices, *value)?;
                self.set(out.0, r);
            }
            // The arena was planned for all tiles.
            OpKind::Alloc { .. } => {}
            OpKind::Copy { src, dst, pad } => self.copy(at, src, dst, *pad)?,
            OpKind::Gather { src, index, dst, pad } => self.gather(at, src, index, dst, *pad)?,
            OpKind::Scatter { src, dst, index } => self.scatter(at, src, dst, index)?,
            OpKind::Fill { dst, value } => self.fill(at, dst, *value)?,
            OpKind::Gemm { a, b, acc, precision } => self.gemm(at, a, b, acc, *precision)?,
            OpKind::Reduce { op, src, dst, axis, accumulate } => {
                self.reduce(at, *op, src, dst, *axis as usize, *accumulate)?;
            }
            OpKind::Scan { op, src, dst, axis, reverse, exclusive } => {
                self.scan(at, *op, src, dst, *axis as usize, *reverse, *exclusive)?;
            }
            OpKind::TopK { src, values, indices, largest } => self.topk(at, src, values, indices, *largest)?,
            OpKind::Sort { keys, payload, descending } => self.sort(at, keys, payload.as_ref(), *descending)?,
            OpKind::Shuffle { op, src, dst, amount } => self.shuffle(at, *op, src, dst, *amount)?,
            OpKind::For { kind, indices, extents, body } => {
                self.enter_loop(*body);
                self.for_loop(*kind, indices, extents, *body)?;
                self.leave_loop();
            }
            OpKind::If { cond, then_body, else_body } => self.if_op(*cond, *then_body, *else_body)?,
            OpKind::While { before, cond, body } => self.while_op(*before, *cond, *body)?,
            OpKind::Role { role: _, body } => self.region(*body)?,
            OpKind::Print { message, values, window } => self.print(at, message, values, window.as_ref())?,
            OpKind::Assert { cond, message } => self.assert(at, *cond, message),
            // Promises need no code; layouts are the CPU's own choice.
            OpKind::Assume { .. } | OpKind::Layout { .. } => {}
        }
        Ok(())
    }
}
