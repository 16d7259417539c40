//! Shared-memory planning: objects that are never alive together share bytes.
//!
//! An object lives from the first phase that accesses it to the last (within a phase nothing is ordered); if a loop that
//! does not contain the object's birth accesses it, over the whole loop; if mbarriers order its accesses, always. What
//! `cp.async` fills lives at least until the copy has been waited for, whether or not anyone reads it. Objects are placed
//! first fit in order of size.

use crate::ptx::simt::{Block, Effect, Kernel, Obj, ObjKind, SimtOp};
use zellige_ir::EntityId;
use zellige_ir::hash::FastMap;

#[derive(Clone, Copy, Debug)]
struct Life {
    first: usize,
    last: usize,
}

struct Lives<'k> {
    k: &'k Kernel,
    lives: FastMap<Obj, Life>,
    /// Number of the phase.
    position: usize,
    /// Enclosing blocks with, for loop bodies, the position where the loop began.
    path: Vec<(Block, Option<usize>)>,
    /// Objects whose life must reach the end of an enclosing loop: (depth of the loop's body in `path`, object).
    extend: Vec<(usize, Obj)>,
    /// Objects with copies that have not been waited for.
    pending: Vec<Obj>,
    /// Number of waits passed.
    waits: usize,
}

/// Assigns offsets and sets the kernel's shared memory size. Adds the plan to `explain`.
pub fn plan(k: &mut Kernel, explain: &mut Vec<String>) {
    let mut lives = Lives {
        k,
        lives: FastMap::default(),
        position: 0,
        path: vec![(k.body, None)],
        extend: Vec::new(),
        pending: Vec::new(),
        waits: 0,
    };
    lives.block(k.body);
    let lives = lives.lives;
    let mut objects: Vec<(Obj, u32, u32, Life)> = k
        .objs
        .iter()
        .filter_map(|(id, data)| match data.kind {
            ObjKind::Shared { bytes, align, .. } => lives.get(&id).map(|l| (id, bytes, align, *l)),
            ObjKind::Global { .. } | ObjKind::Local { .. } => None,
        })
        .collect();
    objects.sort_by_key(|&(id, bytes, align, _)| (std::cmp::Reverse((align, bytes)), id));
    let mut placed: Vec<(u32, u32, Life)> = Vec::new();
    let mut total = 0;
    for (id, bytes, align, life) in objects {
        let mut taken: Vec<(u32, u32)> = placed
            .iter()
            .filter(|(_, _, l)| l.first <= life.last && life.first <= l.last)
            .map(|&(at, size, _)| (at, size))
            .collect();
        taken.sort_unstable();
        let mut at = 0u32;
        for (start, size) in taken {
            if at + bytes <= start {
                break;
            }
            at = at.max((start + size).next_multiple_of(align));
        }
        placed.push((at, bytes, life));
        total = total.max(at + bytes);
        if let ObjKind::Shared { offset, .. } = &mut k.objs[id].kind {
            *offset = Some(at);
        }
        explain.push(format!("shared: {} at {at}..{}", k.objs[id].name, at + bytes));
    }
    k.shared_bytes = total.next_multiple_of(16);
}

impl Lives<'_> {
    fn block(&mut self, block: Block) {
        for &inst in &self.k.blocks[block] {
            let op = &self.k.insts[inst].op;
            match op {
                SimtOp::Phase { .. } | SimtOp::Bar {} => self.position += 1,
                SimtOp::Ld { addr, .. }
                | SimtOp::St { addr, .. }
                | SimtOp::LdMatrix { addr, .. }
                | SimtOp::Atom { addr, .. } => self.touch(addr.obj),
                SimtOp::StMatrix { addr, .. } => self.touch(addr.obj),
                SimtOp::CpAsync { dst, .. } => {
                    self.touch(dst.obj);
                    if self.pending.last() != Some(&dst.obj) {
                        self.pending.push(dst.obj);
                    }
                }
                SimtOp::CpAsyncWait { .. } => {
                    self.waits += 1;
                    for obj in std::mem::take(&mut self.pending) {
                        self.touch(obj);
                    }
                }
                SimtOp::MbarInit { addr, .. }
                | SimtOp::MbarExpect { addr, .. }
                | SimtOp::MbarArrive { addr, .. }
                | SimtOp::MbarArriveAt { addr, .. }
                | SimtOp::MbarReleaseAt { addr, .. }
                | SimtOp::BulkSend { addr, .. }
                | SimtOp::MbarWait { addr, .. } => self.keep(addr.obj),
                SimtOp::TmaLoad { dst, .. } => self.keep(dst.obj),
                SimtOp::TmaStore { src, .. } => self.keep(src.obj),
                SimtOp::For { body, .. } => self.nested(&[*body], true),
                SimtOp::While { before, body, .. } => self.nested(&[*before, *body], true),
                SimtOp::If { then_body, else_body, .. } => self.nested(&[*then_body, *else_body], false),
                _ => debug_assert!(
                    op.effect() != Effect::Control || matches!(op, SimtOp::Fail { .. } | SimtOp::Print { .. })
                ),
            }
        }
    }

    fn nested(&mut self, blocks: &[Block], is_loop: bool) {
        let start = self.position;
        let waits = self.waits;
        for &b in blocks {
            self.path.push((b, is_loop.then_some(start)));
            self.block(b);
            self.path.pop();
        }
        if self.position != start {
            // What follows belongs to no phase of the nested blocks.
            self.position += 1;
        }
        if is_loop && self.waits != waits {
            // A ring's loop: its waits count the groups, and the last iteration leaves no copy pending.
            self.pending.clear();
        }
        let depth = self.path.len();
        let end = self.position;
        let lives = &mut self.lives;
        self.extend.retain(|(d, obj)| {
            if *d == depth
                && let Some(l) = lives.get_mut(obj)
            {
                l.last = l.last.max(end);
            }
            *d < depth
        });
    }

    /// What mbarriers order and what the asynchronous proxy accesses is alive throughout: other warps use it at other
    /// positions.
    fn keep(&mut self, obj: Obj) {
        self.lives.insert(obj, Life { first: 0, last: usize::MAX });
    }

    fn touch(&mut self, obj: Obj) {
        if !matches!(self.k.objs[obj].kind, ObjKind::Shared { .. }) {
            return;
        }
        let home = self.k.objs[obj].home;
        let born = self.path.iter().rposition(|(b, _)| *b == home).unwrap_or(0);
        let outer_loop =
            self.path[born + 1..].iter().enumerate().find_map(|(i, (_, start))| start.map(|s| (born + 1 + i, s)));
        let first = outer_loop.map_or(self.position, |(_, s)| s);
        if let Some((depth, _)) = outer_loop {
            self.extend.push((depth, obj));
        }
        let life = self.lives.entry(obj).or_insert(Life { first, last: self.position });
        life.first = life.first.min(first);
        life.last = life.last.max(self.position);
    }
}

/// True if two objects share bytes of the arena (or are one).
pub fn overlap(k: &Kernel, a: Obj, b: Obj) -> bool {
    if a == b {
        return true;
    }
    match (&k.objs[a].kind, &k.objs[b].kind) {
        (ObjKind::Shared { bytes: x, offset: Some(i), .. }, ObjKind::Shared { bytes: y, offset: Some(j), .. }) => {
            *i < j + y && *j < i + x
        }
        _ => a.index() == b.index(),
    }
}
