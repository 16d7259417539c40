//! Accesses of tensors that never meet: turns of a loop that take different parts of a tensor, and ops of one turn that
//! write side by side.
//!
//! Between phases that write one object there must be a barrier unless their elements differ. For tensors the tile IR
//! tells: along some axis each access stands at an affine form plus a range, and of two forms the conditions around may
//! prove one to be larger. Depends on the tile IR's analyses only; the lowering hands what it finds to barrier insertion.

use std::rc::Rc;
use zellige_ir::analysis::{Affine, Facts, Term};
use zellige_ir::hash::{FastMap, FastSet};
use zellige_ir::{Buffer, Func, Indices, LoopKind, Op, OpKind, Region, Scope, Value, Visit, Window};

/// Where an access stands along an axis: `base + lo ..= base + hi`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    base: Affine,
    lo: i64,
    hi: i64,
}

/// An access of a tensor: its place along each axis, where that can be told.
type Access = (Buffer, Vec<Option<Place>>);

/// What a function's accesses of tensors have in common.
pub struct Apart {
    /// Tensors of which each turn of a loop touches elements that no other turn of it does.
    pub split: FastMap<Op, Vec<Buffer>>,
    accesses: FastMap<Op, Vec<Access>>,
    /// The loops around an op that is not in a parallel loop; `None` under an unrolled one, whose turns share their ops.
    nests: FastMap<Op, Option<Vec<Op>>>,
    facts: Rc<Facts>,
}

impl Apart {
    pub fn new(func: &Func) -> Apart {
        let facts = Rc::new(Facts::new(func));
        let (split, accesses, nests) = (FastMap::default(), FastMap::default(), FastMap::default());
        let mut apart = Apart { split, accesses, nests, facts: facts.clone() };
        let written = zellige_ir::analysis::effects::written_in(func, func.body);
        let tensors: FastSet<Buffer> =
            written.into_iter().filter(|&b| func.buffers[b].scope == Scope::Global).collect();
        apart.region(func, &facts, &tensors, func.body, &Some(Vec::new()));
        apart
    }

    /// True if an op accesses a tensor.
    pub fn touches(&self, op: Op, tensor: Buffer) -> bool {
        self.accesses.get(&op).into_iter().flatten().any(|(t, _)| *t == tensor)
    }

    /// True if two ops of one turn of the loops around both touch different elements of a tensor.
    pub fn differ(&self, func: &Func, a: Op, b: Op, tensor: Buffer) -> bool {
        let (Some(Some(x)), Some(Some(y))) = (self.nests.get(&a), self.nests.get(&b)) else { return false };
        let of = |op: Op| self.accesses.get(&op).into_iter().flatten().filter(|(t, _)| *t == tensor);
        let along = |p: &[Option<Place>], q: &[Option<Place>], f: &dyn Fn(&Place, &Place) -> bool| {
            p.iter().zip(q).any(|(p, q)| matches!((p, q), (Some(p), Some(q)) if f(p, q)))
        };
        let differ = |f: &dyn Fn(&Place, &Place) -> bool| of(a).all(|(_, p)| of(b).all(|(_, q)| along(p, q, f)));
        a != b && x == y && (differ(&beside) || differ(&|p, q| beside(p, q) || self.proven(func, b, p, q)))
    }

    /// True if where `at` is executed one place is proven to end before the other begins.
    fn proven(&self, func: &Func, at: Op, p: &Place, q: &Place) -> bool {
        let before = |x: &Place, y: &Place| {
            let (end, start) = (x.base.offset(x.hi), y.base.offset(y.lo));
            matches!((end, start), (Some(end), Some(start)) if self.facts.proves_less(func, at, &end, &start))
        };
        p.base != q.base && (before(p, q) || before(q, p))
    }

    fn region(
        &mut self,
        func: &Func,
        facts: &Facts,
        tensors: &FastSet<Buffer>,
        region: Region,
        nest: &Option<Vec<Op>>,
    ) {
        for &op in &func.regions[region].ops {
            let kind = &func.ops[op].kind;
            let serial = match kind {
                OpKind::For { kind: LoopKind::Parallel | LoopKind::Vectorized, .. } => None,
                OpKind::For { kind, indices, body, .. } => Some((*kind, indices[0].0, *body)),
                _ => None,
            };
            if let Some((kind, index, body)) = serial {
                let split = tensors.iter().copied().filter(|&t| splits(func, facts, op, index, t)).collect();
                self.split.insert(op, split);
                let inner = match (kind, nest) {
                    (LoopKind::Unrolled, _) | (_, None) => None,
                    (_, Some(nest)) => Some(nest.iter().copied().chain([op]).collect()),
                };
                self.region(func, facts, tensors, body, &inner);
                continue;
            }
            if matches!(kind, OpKind::If { .. } | OpKind::While { .. } | OpKind::Role { .. }) {
                let inner = nest.clone().filter(|_| !matches!(kind, OpKind::While { .. }));
                kind.for_each_region(&mut |r| self.region(func, facts, tensors, r, &inner));
                continue;
            }
            let found = accesses_under(func, facts, op, None);
            self.accesses.insert(op, found);
            self.nests.insert(op, nest.clone());
        }
    }
}

/// True if the places have no element in common.
fn beside(p: &Place, q: &Place) -> bool {
    p.base == q.base && (p.hi < q.lo || q.hi < p.lo)
}

/// True if no two turns of a loop touch the same element of a tensor.
fn splits(func: &Func, facts: &Facts, op: Op, index: Value, tensor: Buffer) -> bool {
    let own: Vec<Access> =
        accesses_under(func, facts, op, Some(index)).into_iter().filter(|(t, _)| *t == tensor).collect();
    let by = Term::Value(index);
    let rank = func.buffers[tensor].rank();
    !own.is_empty()
        && (0..rank).any(|axis| {
            let places: Option<Vec<&Place>> = own.iter().map(|(_, p)| p[axis].as_ref()).collect();
            let Some(places) = places else { return false };
            let first = &places[0].base;
            let step = first.coefficient(&by);
            let beside_index = first.sub_scaled(&Affine::term(by.clone()), step);
            let (lo, hi) = places.iter().fold((i64::MAX, i64::MIN), |(l, h), p| (l.min(p.lo), h.max(p.hi)));
            step != 0
                && beside_index.is_some_and(|rest| !rest.mentions(index))
                && places.iter().all(|p| p.base == *first)
                && hi.checked_sub(lo).is_some_and(|span| span < step.abs())
        })
}

/// All accesses of tensors by an op and the ops in it. `keep` is an index that stays in the forms.
fn accesses_under(func: &Func, facts: &Facts, op: Op, keep: Option<Value>) -> Vec<Access> {
    let mut inside: FastSet<Value> = FastSet::default();
    let mut ranges: FastMap<Value, i64> = FastMap::default();
    let mut note = |kind: &OpKind| {
        kind.for_each_def(&mut |v| {
            inside.insert(v);
        });
        if let OpKind::For { indices, extents, .. } = kind {
            for (i, &e) in indices.iter().zip(extents) {
                inside.insert(i.0);
                if let Some(n) = func.as_index(e) {
                    ranges.insert(i.0, n - 1);
                }
            }
        }
    };
    note(&func.ops[op].kind);
    func.ops[op].kind.for_each_region(&mut |r| func.walk(r, &mut |_, data| note(&data.kind)));
    if let Some(keep) = keep {
        inside.remove(&keep);
    }
    let place = |v: Value, extent: usize| -> Option<Place> {
        let form = facts.ranges.form(v);
        let mut base = form.clone();
        let (mut lo, mut hi) = (0, extent as i64 - 1);
        for (term, k) in form.terms() {
            match term {
                Term::Value(v) if inside.contains(v) => {
                    let reach = k.checked_mul(*ranges.get(v)?)?;
                    (lo, hi) = (lo + reach.min(0), hi + reach.max(0));
                    base = base.sub_scaled(&Affine::term(term.clone()), *k)?;
                }
                Term::Value(_) => {}
                Term::Div(inner, _) => {
                    if inside.iter().any(|&v| inner.mentions(v)) {
                        return None;
                    }
                }
            }
        }
        (lo, hi) = (lo + base.constant, hi + base.constant);
        base = base.offset(-base.constant)?;
        Some(Place { base, lo, hi })
    };
    let mut found = Vec::new();
    let mut add = |kind: &OpKind| {
        let element = |found: &mut Vec<Access>, buffer: Buffer, at: &Indices| {
            found.push((buffer, at.iter().map(|&v| place(v, 1)).collect()));
        };
        let window = |found: &mut Vec<Access>, w: &Window| {
            let extent = |axis| w.axes.iter().find(|a| usize::from(a.axis) == axis).map_or(1, |a| a.extent);
            found.push((w.buffer, w.offsets.iter().enumerate().map(|(a, &v)| place(v, extent(a))).collect()));
        };
        match kind {
            OpKind::Load { buffer, indices, .. }
            | OpKind::Store { buffer, indices, .. }
            | OpKind::Atomic { buffer, indices, .. } => element(&mut found, *buffer, indices),
            // Rows anywhere.
            OpKind::Gather { src: w, index, dst, .. } | OpKind::Scatter { dst: w, src: dst, index } => {
                found.push((w.buffer, vec![None; w.offsets.len()]));
                window(&mut found, index);
                window(&mut found, dst);
            }
            _ => kind.for_each_window(&mut |w| window(&mut found, w)),
        }
    };
    add(&func.ops[op].kind);
    func.ops[op].kind.for_each_region(&mut |r| func.walk(r, &mut |_, data| add(&data.kind)));
    found.retain(|(b, _)| func.buffers[*b].scope == Scope::Global);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two copies of 8 columns side by side in each turn of a loop, which moves by `step` columns a turn.
    fn function(step: usize) -> Func {
        let text = format!(
            "func f(y: mut tensor<f32, [m, 256]>) threads 32 {{
            prelude:
              %0: index = ceildiv m, 16
            grid (%b) in (%0)
            body:
              $0 = alloc fragment f32[16, 8]
              fill 0.0f32 -> $0
              for serial (%1) in (4) {{
                %2: index = mul %b, 16
                %3: index = mul %1, {step}
                copy $0 -> y[%2 : 16, %3 : 8] pad 0.0f32
                %4: index = add %3, 8
                copy $0 -> y[%2 : 16, %4 : 8] pad 0.0f32
              }}
            }}"
        );
        zellige_ir::text::parse_func(&text).unwrap_or_else(|e| panic!("{e:?}"))
    }

    #[test]
    fn turns_and_ops_that_take_different_columns() {
        for (step, parts) in [(16, true), (15, false)] {
            let func = function(step);
            let (mut loops, mut copies, mut tensor) = (Vec::new(), Vec::new(), None);
            func.walk(func.body, &mut |op, data| match &data.kind {
                OpKind::For { .. } => loops.push(op),
                OpKind::Copy { dst, .. } => {
                    copies.push(op);
                    tensor = Some(dst.buffer);
                }
                _ => {}
            });
            let (apart, tensor) = (Apart::new(&func), tensor.unwrap());
            assert_eq!(apart.split[&loops[0]].contains(&tensor), parts, "turns {step} apart");
            assert!(apart.differ(&func, copies[0], copies[1], tensor));
            assert!(!apart.differ(&func, copies[0], copies[0], tensor));
        }
    }
}
