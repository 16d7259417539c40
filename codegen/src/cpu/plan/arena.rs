//! Places tiles in a thread's arena; tiles that are never live at once share memory.

use super::layout::Layout;
use crate::cpu::abi::ARENA_ALIGN;
use std::collections::HashSet;
use zellige_ir::{Buffer, EntityId, Func, Op, OpKind, Region, Visit};

/// Where the tiles of a kernel lie.
pub(crate) struct Arena {
    /// Byte offset of each buffer; `None` for tensors and for tiles that are never allocated.
    pub offsets: Vec<Option<usize>>,
    /// End of the last tile.
    pub bytes: usize,
}

/// A tile is live from its `alloc` to the end of the last op of the same region that mentions it, or contains one that does.
#[derive(Clone, Copy)]
struct Live {
    buffer: Buffer,
    region: Region,
    first: usize,
    last: usize,
}

struct Scan<'f> {
    func: &'f Func,
    clock: usize,
    live: Vec<Live>,
}

impl Scan<'_> {
    /// Numbers the ops of a region; returns the buffers mentioned in it.
    fn region(&mut self, region: Region) -> HashSet<Buffer> {
        let mut mentioned = HashSet::new();
        for &op in &self.func.regions[region].ops {
            let inside = self.op(op, region);
            let end = self.clock;
            for l in self.live.iter_mut().filter(|l| l.region == region && inside.contains(&l.buffer)) {
                l.last = end;
            }
            mentioned.extend(inside);
        }
        mentioned
    }

    fn op(&mut self, op: Op, region: Region) -> HashSet<Buffer> {
        self.clock += 1;
        let kind = &self.func.ops[op].kind;
        let mut inside = HashSet::new();
        kind.for_each_buffer(&mut |b| {
            inside.insert(b);
        });
        if let OpKind::Alloc { buffer } = kind {
            self.live.push(Live { buffer: *buffer, region, first: self.clock, last: self.clock });
        }
        let mut regions = Vec::new();
        kind.for_each_region(&mut |r| regions.push(r));
        for r in regions {
            inside.extend(self.region(r));
        }
        inside
    }
}

/// Plans the arena from byte `start` on.
pub(crate) fn arena(func: &Func, layouts: &[Layout], start: usize) -> Arena {
    let mut scan = Scan { func, clock: 0, live: Vec::new() };
    scan.region(func.body);
    let mut offsets = vec![None; func.buffers.len()];
    let mut placed: Vec<(Live, usize, usize)> = Vec::new();
    let mut bytes = start;
    // Largest first: small tiles then fill the gaps.
    let mut live = scan.live;
    let size = |b: Buffer| layouts[b.index()].bytes.next_multiple_of(ARENA_ALIGN);
    live.sort_by_key(|l| (std::cmp::Reverse(size(l.buffer)), l.first));
    for l in live {
        let want = size(l.buffer);
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(p, _, _)| p.first <= l.last && l.first <= p.last)
            .map(|&(_, lo, hi)| (lo, hi))
            .collect();
        busy.sort_unstable();
        let mut at = start;
        for (lo, hi) in busy {
            if at + want <= lo {
                break;
            }
            at = at.max(hi);
        }
        offsets[l.buffer.index()] = Some(at);
        placed.push((l, at, at + want));
        bytes = bytes.max(at + want);
    }
    Arena { offsets, bytes }
}
