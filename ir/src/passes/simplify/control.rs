//! Conditionals, loops and assertions whose course is known.

use super::{Context, Round, compare};
use crate::func::{Op, Region, Value};
use crate::hash::FastSet;
use crate::numerics::Const;
use crate::op::{LoopKind, OpKind, Visit};

/// The rules of this file.
pub(super) const LAWS: [(&str, &str); 5] = [
    ("decided-if", "a conditional whose condition is known is the arm taken"),
    ("empty-loop", "a loop that runs no iteration is nothing"),
    (
        "single-iteration",
        "a loop of one iteration is its body with the indices 0; persistent loops deal iterations out to blocks and stay",
    ),
    ("single-index", "an index of extent 1 is 0"),
    (
        "true-assertion",
        "an assertion that follows from what is known checks nothing; an assumption goes only if its condition is a \
         constant, since it would follow from itself",
    ),
];

/// The ops that stand for `op`, if it is not needed itself; they have not been visited yet.
pub(super) fn decide(round: &mut Round<'_>, op: Op) -> Option<Vec<Op>> {
    let cx = Context { func: round.func, facts: &round.facts, scopes: &round.scopes };
    match &cx.func.ops[op].kind {
        OpKind::If { cond, then_body, else_body } => {
            let taken = if compare::condition(&cx, op, *cond)? { *then_body } else { *else_body };
            round.stats.note("decided-if");
            Some(take(round, taken))
        }
        OpKind::For { kind, indices, extents, body } => {
            let (kind, body) = (*kind, *body);
            let extents: Vec<_> = extents.iter().map(|&e| cx.facts.ranges.range(e)).collect();
            let indices: Vec<Value> = indices.iter().map(|d| d.0).collect();
            if extents.iter().any(|e| e.hi <= 0) {
                round.stats.note("empty-loop");
                return Some(Vec::new());
            }
            if kind == LoopKind::Persistent {
                return None;
            }
            let zero = round.func.constant(Const::index(0));
            let mut used = FastSet::default();
            if extents.iter().any(|e| e.hi == 1) {
                round.func.walk(body, &mut |_, data| {
                    data.kind.for_each_use(&mut |v| {
                        used.insert(v);
                    });
                });
            }
            for (&v, extent) in indices.iter().zip(&extents) {
                // An extent of zero runs no iteration, so the index is 0 wherever it is used.
                if extent.hi == 1 && used.contains(&v) {
                    round.replace(v, zero);
                    round.stats.note("single-index");
                }
            }
            if extents.iter().any(|e| e.as_point() != Some(1)) {
                return None;
            }
            round.stats.note("single-iteration");
            Some(take(round, body))
        }
        OpKind::Assert { cond, .. } => {
            if compare::condition(&cx, op, *cond)? {
                round.stats.note("true-assertion");
                return Some(Vec::new());
            }
            None
        }
        OpKind::Assume { cond } if cx.constant(*cond)?.as_bool() => {
            round.stats.note("true-assertion");
            Some(Vec::new())
        }
        _ => None,
    }
}

fn take(round: &mut Round<'_>, region: Region) -> Vec<Op> {
    std::mem::take(&mut round.func.regions[region].ops)
}
