//! Barrier insertion: between two phases of which one writes what other threads access in the other.
//!
//! The lowering marks phases and says which objects each access stays within. Walking the kernel, the pass keeps the
//! accesses since the last barrier; at a phase that conflicts with one of them (read after write, write after read, write
//! after write, on one object or on two that share bytes) the phase's mark becomes a barrier, otherwise it vanishes.
//! Loops are walked until nothing changes, so accesses of one iteration meet those of the next; the arms of a
//! conditional are walked apart and their accesses united. Control flow that threads may leave differently contains no
//! marks, hence no barrier. What the lowering knows to be different elements needs none either: of phases in one turn
//! (`apart` of a [`PhaseInfo`](crate::ptx::simt::PhaseInfo)), and of the turns of a loop (`split` of an
//! [`ObjData`](crate::ptx::simt::ObjData)).

use super::shared::overlap;
use crate::ptx::simt::{Block, Inst, Kernel, Obj, ObjKind, PhaseId, SimtOp};
use std::collections::{HashMap, HashSet};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Kind {
    Read,
    Write,
    Atomic,
}

impl Kind {
    fn conflicts(self, later: Kind) -> bool {
        match (self, later) {
            (Kind::Read, Kind::Read) | (Kind::Atomic, Kind::Atomic) => false,
            (Kind::Read | Kind::Write | Kind::Atomic, _) => true,
        }
    }
}

/// An access since the last barrier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Access {
    obj: Obj,
    kind: Kind,
    phase: Option<PhaseId>,
    /// It may have happened in an earlier turn of a loop around its phase.
    stale: bool,
}

type Pending = HashSet<Access>;

struct Pass<'k> {
    k: &'k Kernel,
    /// Marks that become barriers, with the first conflict found.
    barriers: HashMap<Inst, (Access, Access)>,
}

/// Replaces phase marks by barriers where they are needed and removes the others. Adds the reasons to `explain`.
pub fn insert(k: &mut Kernel, explain: &mut Vec<String>) {
    let mut pass = Pass { k, barriers: HashMap::new() };
    pass.block(k.body, Pending::new());
    let barriers = pass.barriers;
    let mut reasons: Vec<(Inst, String)> =
        barriers.iter().map(|(&inst, (old, new))| (inst, reason(k, old, new))).collect();
    reasons.sort();
    explain.extend(reasons.into_iter().map(|(_, r)| r));
    let body = k.body;
    rewrite(k, body, &barriers.keys().copied().collect());
}

fn describe(k: &Kernel, phase: Option<PhaseId>) -> String {
    match phase.map(|p| &k.phases[p]) {
        Some(info) => match &info.span {
            Some(span) => format!("{} at {span}", info.what),
            None => info.what.clone(),
        },
        None => "code before".into(),
    }
}

fn reason(k: &Kernel, old: &Access, new: &Access) -> String {
    let verb = |kind| match kind {
        Kind::Read => "reads",
        Kind::Write => "writes",
        Kind::Atomic => "updates",
    };
    let before = describe(k, old.phase);
    let after = describe(k, new.phase);
    let (o, n) = (&k.objs[old.obj].name, &k.objs[new.obj].name);
    if old.obj == new.obj {
        format!("barrier: before {after}, which {} {n}; {before} {} it", verb(new.kind), verb(old.kind))
    } else {
        format!(
            "barrier: before {after}, which {} {n}; {before} {} {o}, which shares its bytes",
            verb(new.kind),
            verb(old.kind)
        )
    }
}

fn rewrite(k: &mut Kernel, block: Block, barriers: &HashSet<Inst>) {
    let insts = std::mem::take(&mut k.blocks[block]);
    let mut kept = Vec::with_capacity(insts.len());
    for inst in insts {
        if let SimtOp::Phase { .. } = k.insts[inst].op {
            if !barriers.contains(&inst) {
                continue;
            }
            k.insts[inst].op = SimtOp::Bar {};
        }
        let mut nested = Vec::new();
        crate::ptx::simt::Fields::blocks(&k.insts[inst].op, &mut |b| nested.push(b));
        for b in nested {
            rewrite(k, b, barriers);
        }
        kept.push(inst);
    }
    k.blocks[block] = kept;
}

impl Pass<'_> {
    /// Walks a block with the accesses pending at its start; returns those pending at its end.
    fn block(&mut self, block: Block, mut pending: Pending) -> Pending {
        let insts = self.k.blocks[block].clone();
        let mut i = 0;
        let mut phase = None;
        while i < insts.len() {
            let inst = insts[i];
            match &self.k.insts[inst].op {
                SimtOp::Bar {} => pending.clear(),
                SimtOp::Phase { id } => {
                    phase = Some(*id);
                    let accesses = self.phase_accesses(&insts[i + 1..], phase);
                    if let Some(conflict) = self.conflict(&pending, &accesses) {
                        self.barriers.entry(inst).or_insert(conflict);
                        pending.clear();
                    } else if self.barriers.contains_key(&inst) {
                        // Needed on another way here.
                        pending.clear();
                    }
                }
                SimtOp::For { body, .. } if self.has_order(*body) => {
                    pending = self.repeat(&[*body], pending);
                }
                SimtOp::While { before, body, .. } if self.has_order(*before) || self.has_order(*body) => {
                    pending = self.repeat(&[*before, *body], pending);
                }
                SimtOp::If { then_body, else_body, .. } if self.has_order(*then_body) || self.has_order(*else_body) => {
                    let other = self.block(*else_body, pending.clone());
                    pending = self.block(*then_body, pending);
                    pending.extend(other);
                }
                _ => {
                    let mut found = Vec::new();
                    self.accesses(inst, phase, &mut found);
                    pending.extend(found);
                }
            }
            i += 1;
        }
        pending
    }

    /// A loop over blocks, until another turn adds nothing.
    fn repeat(&mut self, blocks: &[Block], pending: Pending) -> Pending {
        let mut entry = pending;
        loop {
            let known = self.barriers.len();
            let mut state = entry.clone();
            for &b in blocks {
                state = self.block(b, state);
            }
            let size = entry.len();
            let turn: Vec<Access> = state.difference(&entry).map(|a| Access { stale: true, ..*a }).collect();
            let split = |a: &&Access| blocks.iter().any(|b| self.k.objs[a.obj].split.contains(b));
            entry.extend(turn.iter().filter(|a| !split(a)));
            if entry.len() == size && self.barriers.len() == known {
                entry.extend(turn);
                return entry;
            }
        }
    }

    /// True if the block contains marks or barriers.
    fn has_order(&self, block: Block) -> bool {
        let mut found = false;
        self.k.walk(block, &mut |_, d| found |= matches!(d.op, SimtOp::Phase { .. } | SimtOp::Bar {}));
        found
    }

    /// Accesses of a phase: what follows its mark in the block, up to the next mark, barrier or control flow with
    /// marks of its own.
    fn phase_accesses(&self, rest: &[Inst], phase: Option<PhaseId>) -> Vec<Access> {
        let mut found = Vec::new();
        for &inst in rest {
            let op = &self.k.insts[inst].op;
            if matches!(op, SimtOp::Phase { .. } | SimtOp::Bar {}) {
                break;
            }
            let mut ordered = false;
            crate::ptx::simt::Fields::blocks(op, &mut |b| ordered |= self.has_order(b));
            if ordered {
                break;
            }
            self.accesses(inst, phase, &mut found);
        }
        found
    }

    /// Accesses of an op and of what is nested in it.
    fn accesses(&self, inst: Inst, phase: Option<PhaseId>, found: &mut Vec<Access>) {
        let mut add = |obj: Obj, kind: Kind| {
            let relevant = match self.k.objs[obj].kind {
                ObjKind::Global { read_only } => !read_only,
                ObjKind::Shared { .. } => true,
                ObjKind::Local { .. } => false,
            };
            let access = Access { obj, kind, phase, stale: false };
            if relevant && !found.contains(&access) {
                found.push(access);
            }
        };
        let op = &self.k.insts[inst].op;
        match op {
            SimtOp::Ld { addr, .. } | SimtOp::LdMatrix { addr, .. } => add(addr.obj, Kind::Read),
            SimtOp::St { addr, .. } | SimtOp::StMatrix { addr, .. } => add(addr.obj, Kind::Write),
            SimtOp::Atom { addr, .. } => add(addr.obj, Kind::Atomic),
            SimtOp::CpAsync { dst, src, .. } => {
                add(src.obj, Kind::Read);
                add(dst.obj, Kind::Write);
            }
            _ => {}
        }
        let mut nested = Vec::new();
        crate::ptx::simt::Fields::blocks(op, &mut |b| nested.push(b));
        for b in nested {
            for &inner in &self.k.blocks[b] {
                self.accesses(inner, phase, found);
            }
        }
    }

    fn conflict(&self, pending: &Pending, accesses: &[Access]) -> Option<(Access, Access)> {
        let mut all: Vec<&Access> = pending.iter().collect();
        // A set has no order of its own; the explanation should.
        all.sort_by_key(|a| (a.phase, a.obj, a.kind));
        for new in accesses {
            for old in &all {
                if old.kind.conflicts(new.kind) && self.share(old, new) {
                    return Some((**old, *new));
                }
            }
        }
        None
    }

    /// True if other threads may meet in these accesses.
    fn share(&self, old: &Access, new: &Access) -> bool {
        if old.obj == new.obj {
            return !self.k.objs[old.obj].managed && !self.same_footprint(old, new) && !self.apart(old, new);
        }
        overlap(self.k, old.obj, new.obj)
    }

    fn apart(&self, old: &Access, new: &Access) -> bool {
        let (Some(before), Some(after)) = (old.phase, new.phase) else { return false };
        !old.stale && self.k.phases[after].apart.contains(&(old.obj, before))
    }

    fn same_footprint(&self, old: &Access, new: &Access) -> bool {
        let key = |a: &Access| {
            let info = &self.k.phases[a.phase?];
            info.footprints.iter().find(|(o, _)| *o == a.obj).map(|(_, k)| *k)
        };
        key(old).is_some() && key(old) == key(new)
    }
}
