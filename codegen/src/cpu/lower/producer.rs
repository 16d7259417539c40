//! A tile that one loop computes and one reduction then combines is never stored: the reduction computes each element
//! where it needs it.

use super::rep::Rep;
use super::{Lower, Result};
use zellige_ir::{
    Buffer, EntityId, Func, LoopKind, Op, OpKind, ReduceOp, Region, Scope, UnaryOp, Value, Visit, Window,
};

/// A longer computation of an element is not worth repeating: a reduction is written out several times.
const MAX_OPS: usize = 8;

/// How an element of a tile is computed.
#[derive(Clone, Debug)]
pub(super) struct Producer {
    /// The element's position.
    pub indices: Vec<Value>,
    /// Pure ops and, last, the store of the element.
    pub body: Region,
    value: Value,
}

/// How many ops touch the elements of each buffer.
pub(super) fn count_uses(func: &Func) -> Vec<u32> {
    let mut uses = vec![0; func.buffers.len()];
    func.walk(func.body, &mut |_, data| {
        if !matches!(data.kind, OpKind::Alloc { .. } | OpKind::Layout { .. }) {
            data.kind.for_each_buffer(&mut |b| uses[b.index()] += 1);
        }
    });
    uses
}

/// The tile that a loop computes element by element, if that is all it does.
fn producer(func: &Func, op: Op) -> Option<(Buffer, Producer)> {
    let OpKind::For { kind: LoopKind::Parallel | LoopKind::Vectorized, indices, extents, body } = &func.ops[op].kind
    else {
        return None;
    };
    let (&last, pure) = func.regions[*body].ops.split_last()?;
    let OpKind::Store { buffer, indices: at, value } = &func.ops[last].kind else { return None };
    let data = &func.buffers[*buffer];
    let shape = data.static_shape()?;
    let is_pure = pure.iter().all(|&op| match &func.ops[op].kind {
        OpKind::Binary { .. }
        | OpKind::Fma { .. }
        | OpKind::Cmp { .. }
        | OpKind::Select { .. }
        | OpKind::Bitcast { .. } => true,
        // Exponentials and the like, and conversions of the narrow floats, are long.
        OpKind::Unary { op, .. } => matches!(op, UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Not),
        OpKind::Cast { out, x } => func.ty(out.0).bits() >= 16 && func.ty(*x).bits() >= 16,
        OpKind::Load { buffer: from, .. } => from != buffer,
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
    });
    let indices: Vec<Value> = indices.iter().map(|d| d.0).collect();
    let every_element = at[..] == indices[..]
        && extents.len() == shape.len()
        && extents.iter().zip(&shape).all(|(&e, &n)| func.as_index(e) == Some(n as i64));
    (is_pure && pure.len() <= MAX_OPS && every_element && data.scope != Scope::Global)
        .then_some((*buffer, Producer { indices, body: *body, value: *value }))
}

/// Does `op` combine all of the tile, writing nothing that the elements are computed from?
fn consumes(func: &Func, op: Op, tile: Buffer, producer: &Producer) -> bool {
    let OpKind::Reduce { op, src, dst, .. } = &func.ops[op].kind else { return false };
    let reads = |buffer: Buffer| {
        func.regions[producer.body]
            .ops
            .iter()
            .any(|&op| matches!(&func.ops[op].kind, OpKind::Load { buffer: from, .. } if *from == buffer))
    };
    !matches!(op, ReduceOp::ArgMax | ReduceOp::ArgMin)
        && src.buffer == tile
        && src.covers_whole_buffer(func)
        && !reads(dst.buffer)
}

impl Lower<'_> {
    /// The tile that the `at`-th op of a region computes for a reduction that follows, if that had better compute the
    /// elements itself.
    pub(super) fn producer_at(&self, region: Region, at: usize) -> Option<(Buffer, Producer)> {
        let func = self.func;
        let ops = &func.regions[region].ops[at..];
        let (tile, producer) = producer(func, *ops.first()?)?;
        let next = ops[1..].iter().find(|&&op| !matches!(func.ops[op].kind, OpKind::Alloc { .. }))?;
        let fits = !self.wide
            && self.uses[tile.index()] == 2
            && consumes(func, *next, tile, &producer)
            && producer.indices.last().is_some_and(|&iv| self.reads_along(iv, producer.body));
        fits.then_some((tile, producer))
    }

    /// The element of a producer's tile at a point of a window that covers the tile.
    pub(super) fn produce(&mut self, producer: &Producer, window: &Window, point: &[Rep]) -> Result<Rep> {
        for (axis, &rep) in window.axes.iter().zip(point) {
            self.set(producer.indices[usize::from(axis.axis)], rep);
        }
        let func = self.func;
        if let Some((_, pure)) = func.regions[producer.body].ops.split_last() {
            pure.iter().try_for_each(|&op| self.op(op))?;
        }
        Ok(self.get(producer.value))
    }
}
