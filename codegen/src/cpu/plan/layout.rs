//! How each tile lies in memory.
//!
//! A tile's elements may be stored wider than its element type and in another axis order: nobody but the lowered
//! kernel sees them.

use std::collections::HashSet;
use zellige_ir::{Buffer, DType, EntityId, Func, LoopKind, OpKind, Region, Scope, Visit};

/// How an element lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cell {
    /// As in a tensor.
    Native,
    /// One `f4e2m1` code to a byte.
    Byte,
    /// Converted to the type that a gemm multiplies: f32 for a float, i32 for an integer.
    Wide,
}

impl Cell {
    /// Distance of neighbouring elements; `None` for packed half bytes.
    pub(crate) fn bytes(self, ty: DType) -> Option<i64> {
        match self {
            Cell::Native if ty.bits() < 8 => None,
            Cell::Native => Some(ty.bits() as i64 / 8),
            Cell::Byte => Some(1),
            Cell::Wide => Some(4),
        }
    }
}

/// The layout of a tile; of a tensor only `cell` counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub cell: Cell,
    /// In cells, one for each axis.
    pub strides: Vec<i64>,
    pub bytes: usize,
    /// Allocated in the body of a parallel loop: there is one for each of the iterations that run at once.
    pub private: bool,
}

/// How a kernel uses a tile.
#[derive(Clone, Default)]
struct Uses {
    /// It is an operand of a gemm.
    operand: bool,
    /// Axes along which right-hand operands of gemms are read as vectors.
    columns: Vec<u8>,
    /// Other ops than whole-tile moves and gemms touch its elements.
    elementwise: bool,
    /// A move converts its elements.
    converted: bool,
}

/// Can every value of the type be stored wide and come back as it was (up to the payload of a NaN)?
fn widens(ty: DType) -> bool {
    match ty {
        DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F4E2M1 | DType::I8 | DType::I16 | DType::U8 | DType::U16 => {
            true
        }
        // An infinity of f8e5m2 would come back saturated.
        DType::F8E5M2
        | DType::E8M0
        | DType::Bool
        | DType::I32
        | DType::I64
        | DType::U32
        | DType::U64
        | DType::Index
        | DType::F32
        | DType::F64 => false,
    }
}

fn uses(func: &Func) -> Vec<Uses> {
    let mut uses = vec![Uses::default(); func.buffers.len()];
    func.walk(func.body, &mut |_, data| match &data.kind {
        OpKind::Gemm { a, b, acc, .. } => {
            uses[a.buffer.index()].operand = true;
            let right = &mut uses[b.buffer.index()];
            right.operand = true;
            right.columns.extend(b.axes.get(1).map(|a| a.axis));
            uses[acc.buffer.index()].elementwise = true;
        }
        OpKind::Copy { src, dst, .. } | OpKind::Gather { src, dst, .. } | OpKind::Scatter { src, dst, .. } => {
            let converts = func.buffers[src.buffer].dtype != func.buffers[dst.buffer].dtype;
            for b in [src.buffer, dst.buffer] {
                uses[b.index()].converted |= converts;
            }
        }
        OpKind::Alloc { .. } | OpKind::Fill { .. } | OpKind::Layout { .. } => {}
        other => other.for_each_buffer(&mut |b: Buffer| uses[b.index()].elementwise = true),
    });
    uses
}

/// The layouts of all buffers, by buffer.
pub(crate) fn layouts(func: &Func) -> Vec<Layout> {
    let uses = uses(func);
    let private = private_tiles(func);
    func.buffers
        .iter()
        .map(|(id, data)| {
            let Some(shape) = data.static_shape().filter(|_| data.scope != Scope::Global) else {
                return Layout { cell: Cell::Native, strides: Vec::new(), bytes: 0, private: false };
            };
            let plain = layout(data.dtype, &shape, &uses[id.index()]);
            if !private.contains(&id) {
                return plain;
            }
            let strides = plain.strides.iter().map(|s| s * COPIES as i64).collect();
            Layout { strides, bytes: plain.bytes * COPIES, private: true, ..plain }
        })
        .collect()
}

/// Iterations that run at once.
const COPIES: usize = 4;

/// Tiles that are allocated in the body of an element-wise parallel loop.
fn private_tiles(func: &Func) -> HashSet<Buffer> {
    let mut private = HashSet::new();
    func.walk(func.body, &mut |_, data| {
        if let OpKind::For { kind: LoopKind::Parallel | LoopKind::Vectorized, body, .. } = &data.kind
            && is_elementwise(func, *body)
        {
            func.walk(*body, &mut |_, data| {
                if let OpKind::Alloc { buffer } = &data.kind {
                    private.insert(*buffer);
                }
            });
        }
    });
    private
}

/// Does the region consist of scalar ops, element accesses, branches and serial loops only?
pub(crate) fn is_elementwise(func: &Func, body: Region) -> bool {
    let mut ok = true;
    func.walk(body, &mut |_, data| {
        ok &= match &data.kind {
            OpKind::Unary { .. }
            | OpKind::Binary { .. }
            | OpKind::Fma { .. }
            | OpKind::Cmp { .. }
            | OpKind::Select { .. }
            | OpKind::Cast { .. }
            | OpKind::Bitcast { .. }
            | OpKind::Load { .. }
            | OpKind::Store { .. }
            | OpKind::Atomic { .. }
            | OpKind::Alloc { .. }
            | OpKind::If { .. }
            | OpKind::While { .. }
            | OpKind::Assert { .. }
            | OpKind::Assume { .. }
            | OpKind::Layout { .. } => true,
            OpKind::For { kind, .. } => match kind {
                LoopKind::Serial | LoopKind::Unrolled | LoopKind::Pipelined { .. } => true,
                LoopKind::Parallel | LoopKind::Vectorized | LoopKind::Persistent => false,
            },
            OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. }
            | OpKind::Role { .. }
            | OpKind::Print { .. } => false,
        };
    });
    ok
}

/// Bytes of a cache line.
const LINE: usize = 64;

fn layout(ty: DType, shape: &[usize], uses: &Uses) -> Layout {
    let cell = match ty {
        _ if uses.operand && widens(ty) => Cell::Wide,
        // What is only moved stays packed, and moves by whole bytes.
        DType::F4E2M1 if uses.elementwise || uses.operand || uses.converted => Cell::Byte,
        _ => Cell::Native,
    };
    // Half bytes are given a whole one; a tile of them is small.
    let size = cell.bytes(ty).unwrap_or(1) as usize;
    // Axes from the outermost to the one of neighbours.
    let mut order: Vec<usize> = (0..shape.len()).collect();
    let agreed = uses.columns.first().filter(|c| uses.columns.iter().all(|d| d == *c));
    let columns = agreed.map(|c| usize::from(*c)).filter(|_| !uses.elementwise);
    if let Some(last) = columns {
        order.retain(|a| *a != last);
        order.push(last);
    }
    let mut strides = vec![1; shape.len()];
    let mut next = 1;
    for (depth, &axis) in order.iter().rev().enumerate() {
        strides[axis] = next as i64;
        next *= shape[axis];
        // A micro-kernel walks down the rows of a right-hand operand: rows a multiple of many lines apart would compete
        // for the same few sets of the cache.
        if depth == 0 && !uses.columns.is_empty() && (next * size).is_multiple_of(4 * LINE) {
            next += LINE / size;
        }
    }
    // Room for a vector access at the last element.
    Layout { cell, strides, bytes: next * size + 16, private: false }
}
