//! Tiles that are read before anything can have been written to them.
//!
//! Only what cannot be right is found: a read counts if no write to its tile stands before it, nor later in a loop
//! around both, whose earlier iterations may have run it. The interpreter finds the rest, element by element.

use super::effects::{touches, written_in};
use crate::func::{Buffer, Func, Op, Region, Scope};
use crate::hash::{FastMap, FastSet};
use crate::op::{LoopKind, OpKind, Visit};

/// The first such read of each tile, in program order.
pub fn unwritten_reads(func: &Func) -> Vec<(Op, Buffer)> {
    let mut search =
        Search { func, written: FastSet::default(), loops: Vec::new(), depth: FastMap::default(), found: Vec::new() };
    // Roles run side by side: what one writes another may read, whichever stands first.
    func.walk(func.body, &mut |_, data| {
        if let OpKind::Role { body, .. } = &data.kind {
            search.written.extend(written_in(func, *body));
        }
    });
    search.region(func.body);
    search.found
}

struct Search<'a> {
    func: &'a Func,
    written: FastSet<Buffer>,
    /// What the loops around the current op write anywhere in their bodies, outermost first.
    loops: Vec<FastSet<Buffer>>,
    /// How many of those loops a tile is allocated in: it is new in each of their iterations.
    depth: FastMap<Buffer, usize>,
    found: Vec<(Op, Buffer)>,
}

impl Search<'_> {
    fn region(&mut self, region: Region) {
        for &op in &self.func.regions[region].ops {
            self.op(op, &self.func.ops[op].kind);
        }
    }

    fn op(&mut self, op: Op, kind: &OpKind) {
        if let OpKind::Alloc { buffer } = kind {
            self.depth.insert(*buffer, self.loops.len());
            return;
        }
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        touches(kind, &mut |b| reads.push(b), &mut |b| writes.push(b));
        for b in reads {
            if !self.may_be_written(b) {
                self.found.push((op, b));
                // Once is enough.
                self.written.insert(b);
            }
        }
        self.written.extend(writes);
        let again = match kind {
            OpKind::For { kind, body, .. } => match kind {
                LoopKind::Serial | LoopKind::Unrolled | LoopKind::Pipelined { .. } | LoopKind::Persistent => {
                    Some(*body)
                }
                // An iteration does not see what another writes.
                LoopKind::Parallel | LoopKind::Vectorized => None,
            },
            OpKind::While { body, .. } => Some(*body),
            _ => None,
        };
        if let Some(body) = again {
            self.loops.push(written_in(self.func, body));
        }
        kind.for_each_region(&mut |r| self.region(r));
        if again.is_some() {
            self.loops.pop();
        }
    }

    fn may_be_written(&self, b: Buffer) -> bool {
        let since = self.depth.get(&b).copied().unwrap_or(0);
        self.func.buffers[b].scope == Scope::Global
            || self.written.contains(&b)
            || self.loops[since..].iter().any(|l| l.contains(&b))
    }
}
