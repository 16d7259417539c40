//! Which buffers an op reads and writes by itself, nested regions not included.

use crate::func::{Buffer, Func, Op, Region};
use crate::hash::FastSet;
use crate::op::OpKind;

/// Calls `read` and `write` for the buffers whose elements an op touches.
pub fn touches(kind: &OpKind, read: &mut dyn FnMut(Buffer), write: &mut dyn FnMut(Buffer)) {
    match kind {
        OpKind::Load { buffer, .. } => read(*buffer),
        OpKind::Store { buffer, .. } => write(*buffer),
        OpKind::Atomic { buffer, .. } => {
            read(*buffer);
            write(*buffer);
        }
        // Forgets the contents.
        OpKind::Alloc { buffer } => write(*buffer),
        OpKind::Copy { src, dst, .. } | OpKind::Scan { src, dst, .. } | OpKind::Shuffle { src, dst, .. } => {
            read(src.buffer);
            write(dst.buffer);
        }
        OpKind::Gather { src, index, dst, .. } | OpKind::Scatter { src, dst, index } => {
            read(src.buffer);
            read(index.buffer);
            write(dst.buffer);
        }
        OpKind::Fill { dst, .. } => write(dst.buffer),
        OpKind::Gemm { a, b, acc, .. } => {
            read(a.buffer);
            read(b.buffer);
            read(acc.buffer);
            write(acc.buffer);
        }
        OpKind::Reduce { src, dst, accumulate, .. } => {
            read(src.buffer);
            if *accumulate {
                read(dst.buffer);
            }
            write(dst.buffer);
        }
        OpKind::TopK { src, values, indices, .. } => {
            read(src.buffer);
            write(values.buffer);
            write(indices.buffer);
        }
        OpKind::Sort { keys, payload, .. } => {
            for w in std::iter::once(keys).chain(payload) {
                read(w.buffer);
                write(w.buffer);
            }
        }
        OpKind::Print { window, .. } => window.iter().for_each(|w| read(w.buffer)),
        OpKind::Unary { .. }
        | OpKind::Binary { .. }
        | OpKind::Fma { .. }
        | OpKind::Cmp { .. }
        | OpKind::Select { .. }
        | OpKind::Cast { .. }
        | OpKind::Bitcast { .. }
        | OpKind::For { .. }
        | OpKind::If { .. }
        | OpKind::While { .. }
        | OpKind::Role { .. }
        | OpKind::Assert { .. }
        | OpKind::Assume { .. }
        | OpKind::Layout { .. } => {}
    }
}

/// The buffers written somewhere in a region or in the regions nested there.
pub fn written_in(func: &Func, region: Region) -> FastSet<Buffer> {
    let mut written = FastSet::default();
    func.walk(region, &mut |_: Op, data| {
        touches(&data.kind, &mut |_| {}, &mut |b| {
            written.insert(b);
        });
    });
    written
}
