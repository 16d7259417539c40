//! Removal of ops without an effect.

use crate::entity::EntityId;
use crate::func::{Func, Op, Region};
use crate::op::{Effect, OpKind, Visit};
use crate::passes::PassStats;

/// The rules of this file.
pub(super) const LAWS: [(&str, &str); 3] = [
    ("dead-op", "a pure op or a load whose result is not used does nothing"),
    ("dead-alloc", "a tile that nothing names holds nothing"),
    ("empty-control", "a loop, conditional or role without ops does nothing"),
];

/// Removes what nothing uses, in one sweep from the end.
pub(super) fn run(func: &mut Func, stats: &mut PassStats) {
    let mut uses = Uses { values: vec![0; func.values.len()], buffers: vec![0; func.buffers.len()] };
    for &v in &func.grid {
        uses.values[v.index()] += 1;
    }
    for region in [func.prelude, func.body] {
        func.walk(region, &mut |_, data| uses.count(&data.kind, 1));
    }
    // The body first: it uses the prelude's values.
    sweep(func, func.body, &mut uses, stats);
    sweep(func, func.prelude, &mut uses, stats);
}

struct Uses {
    values: Vec<usize>,
    buffers: Vec<usize>,
}

impl Uses {
    fn count(&mut self, kind: &OpKind, times: isize) {
        let add = |n: &mut usize| *n = n.wrapping_add_signed(times);
        kind.for_each_use(&mut |v| add(&mut self.values[v.index()]));
        kind.for_each_buffer(&mut |b| add(&mut self.buffers[b.index()]));
    }
}

fn sweep(func: &mut Func, region: Region, uses: &mut Uses, stats: &mut PassStats) {
    let ops = std::mem::take(&mut func.regions[region].ops);
    let mut kept = Vec::with_capacity(ops.len());
    for op in ops.into_iter().rev() {
        let mut nested = Vec::new();
        func.ops[op].kind.for_each_region(&mut |r| nested.push(r));
        for r in nested.into_iter().rev() {
            sweep(func, r, uses, stats);
        }
        match dead(func, op, uses) {
            Some(rule) => {
                stats.note(rule);
                uses.count(&func.ops[op].kind, -1);
            }
            None => kept.push(op),
        }
    }
    kept.reverse();
    func.regions[region].ops = kept;
}

/// The rule by which an op can go.
fn dead(func: &Func, op: Op, uses: &Uses) -> Option<&'static str> {
    let kind = &func.ops[op].kind;
    let empty = |r: &Region| func.regions[*r].ops.is_empty();
    match kind {
        OpKind::Alloc { buffer } => (uses.buffers[buffer.index()] == 1).then_some("dead-alloc"),
        OpKind::For { body, .. } | OpKind::Role { body, .. } => empty(body).then_some("empty-control"),
        OpKind::If { then_body, else_body, .. } => (empty(then_body) && empty(else_body)).then_some("empty-control"),
        _ if matches!(kind.effect(), Effect::Pure | Effect::Read) => {
            let mut used = false;
            kind.for_each_def(&mut |v| used |= uses.values[v.index()] > 0);
            (!used).then_some("dead-op")
        }
        _ => None,
    }
}
