//! Inequalities that hold where an op stands, and proofs with them.
//!
//! A fact is an affine form that is not negative. Facts come from enclosing conditionals, from assumptions
//! that were executed before, from loop extents and the grid (an index is below its extent) and from the definition
//! of floor division and of minima. A goal `e >= 0` is proved by its range, or by subtracting a multiple of
//! a fact that removes one of its terms and proving what is left (Fourier-Motzkin elimination, to a small depth; a goal
//! with a term that is unbounded on the wrong side follows up on that term only).

use super::affine::{Affine, Term, gcd};
use super::range::{MAX_EXTENT, Ranges, is_tracked};
use crate::entity::EntityId;
use crate::func::{Func, Op, Region, Value, ValueDef};
use crate::op::{BinaryOp, CmpOp, OpKind, UnaryOp, Visit};

/// How many facts a proof may chain.
const DEPTH: usize = 5;

/// How many eliminations a proof may try in all.
const BUDGET: usize = 100;

/// Where each op of a function stands, and what holds there.
#[derive(Clone, Debug)]
pub struct Facts {
    pub ranges: Ranges,
    /// By op: its region and position in it.
    place: Vec<Option<(Region, usize)>>,
    /// By region: the op it belongs to.
    owner: Vec<Option<Op>>,
    /// By region: facts that hold from the given position on.
    known: Vec<Vec<(usize, Affine)>>,
    prelude: Region,
    body: Region,
}

impl Facts {
    pub fn new(func: &Func) -> Facts {
        let mut facts = Facts {
            ranges: Ranges::new(func),
            place: vec![None; func.ops.len()],
            owner: vec![None; func.regions.len()],
            known: vec![Vec::new(); func.regions.len()],
            prelude: func.prelude,
            body: func.body,
        };
        facts.region(func, func.prelude);
        facts.region(func, func.body);
        facts
    }

    fn region(&mut self, func: &Func, region: Region) {
        for (position, &op) in func.regions[region].ops.iter().enumerate() {
            self.place[op.index()] = Some((region, position));
            let kind = &func.ops[op].kind;
            kind.for_each_region(&mut |r| self.owner[r.index()] = Some(op));
            let learn = |facts: &mut Facts, region: Region, from, cond, truth| {
                let mut found = Vec::new();
                facts.conditions(func, cond, truth, &mut found);
                facts.known[region.index()].extend(found.into_iter().map(|f| (from, f)));
            };
            match kind {
                OpKind::If { cond, then_body, else_body } => {
                    learn(self, *then_body, 0, *cond, true);
                    learn(self, *else_body, 0, *cond, false);
                }
                OpKind::While { cond, body, .. } => learn(self, *body, 0, *cond, true),
                OpKind::Assume { cond } | OpKind::Assert { cond, .. } => {
                    learn(self, region, position + 1, *cond, true);
                }
                _ => {}
            }
            kind.for_each_region(&mut |r| self.region(func, r));
        }
    }

    /// Facts that follow from a condition being true, or false.
    fn conditions(&self, func: &Func, cond: Value, truth: bool, out: &mut Vec<Affine>) {
        let ValueDef::Op(op) = func.values[cond].def else { return };
        match (&func.ops[op].kind, truth) {
            (OpKind::Unary { op: UnaryOp::Not, x, .. }, _) => self.conditions(func, *x, !truth, out),
            (OpKind::Binary { op: BinaryOp::And, x, y, .. }, true)
            | (OpKind::Binary { op: BinaryOp::Or, x, y, .. }, false) => {
                self.conditions(func, *x, truth, out);
                self.conditions(func, *y, truth, out);
            }
            (OpKind::Cmp { op, x, y, .. }, _) if is_tracked(func.ty(*x)) => {
                let Some(rise) = self.ranges.form(*y).sub(&self.ranges.form(*x)) else { return };
                let fall = || rise.scale(-1);
                // x < y is y - x - 1 >= 0.
                let strict = |f: Option<Affine>| f.and_then(|f| f.offset(-1));
                match (op, truth) {
                    (CmpOp::Lt, true) | (CmpOp::Ge, false) => out.extend(strict(Some(rise))),
                    (CmpOp::Le, true) | (CmpOp::Gt, false) => out.push(rise),
                    (CmpOp::Gt, true) | (CmpOp::Le, false) => out.extend(strict(fall())),
                    (CmpOp::Ge, true) | (CmpOp::Lt, false) => out.extend(fall()),
                    (CmpOp::Eq, true) | (CmpOp::Ne, false) => {
                        out.extend(fall());
                        out.push(rise);
                    }
                    (CmpOp::Eq, false) | (CmpOp::Ne, true) => {}
                }
            }
            _ => {}
        }
    }

    /// Facts about a term that hold wherever it is computed.
    fn about(&self, func: &Func, term: &Term, out: &mut Vec<Affine>) {
        let this = Affine::term(term.clone());
        let below = |bound: Value, strict: i64| self.ranges.form(bound).sub(&this).and_then(|f| f.offset(-strict));
        match term {
            // r - c * (r / c) lies between 0 and c - 1, or c minus the divisor that r and c share.
            Term::Div(r, c) => {
                let Some(rest) = this.scale(*c).and_then(|q| r.sub(&q)) else { return };
                let slack = c - gcd(self.ranges.multiple_of_form(r), *c);
                out.extend(rest.scale(-1).and_then(|f| f.offset(slack)));
                out.push(rest);
            }
            Term::Value(v) => match func.values[*v].def {
                ValueDef::BlockId(axis) => out.extend(below(func.grid[axis as usize], 1)),
                ValueDef::Op(op) => match &func.ops[op].kind {
                    OpKind::For { indices, extents, .. } => {
                        let extent = indices.iter().zip(extents).find(|(d, _)| d.0 == *v).map(|(_, e)| *e);
                        out.extend(extent.and_then(|e| below(e, 1)));
                    }
                    OpKind::Binary { op: BinaryOp::Min, x, y, .. } => {
                        out.extend(below(*x, 0));
                        out.extend(below(*y, 0));
                    }
                    OpKind::Binary { op: BinaryOp::Max, x, y, .. } => {
                        out.extend(below(*x, 0).and_then(|f| f.scale(-1)));
                        out.extend(below(*y, 0).and_then(|f| f.scale(-1)));
                    }
                    // The remainder by a positive number.
                    OpKind::Binary { op: BinaryOp::Rem, y, .. } if self.ranges.range(*y).lo > 0 => {
                        out.extend(below(*y, 1));
                    }
                    _ => {}
                },
                ValueDef::Const(_) | ValueDef::Dim(_) | ValueDef::Param(_) | ValueDef::Pending => {}
            },
        }
    }

    /// The ops in whose regions `op` stands, innermost first.
    pub fn enclosing(&self, op: Op) -> impl Iterator<Item = Op> {
        let parent = |op: Op| {
            let (region, _) = self.place.get(op.index()).copied().flatten()?;
            self.owner[region.index()]
        };
        std::iter::successors(parent(op), move |&op| parent(op))
    }

    /// Facts from the conditions around and before an op, innermost first.
    fn at(&self, op: Op) -> Vec<&Affine> {
        let mut found = Vec::new();
        let mut at = Some(op);
        while let Some((region, position)) = at.and_then(|op| self.place.get(op.index()).copied().flatten()) {
            found.extend(self.known[region.index()].iter().filter(|(from, _)| *from <= position).map(|(_, f)| f));
            at = self.owner[region.index()];
            if region == self.body {
                found.extend(self.known[self.prelude.index()].iter().map(|(_, f)| f));
            }
        }
        found
    }

    /// True only if `e >= 0` whenever `at` is executed.
    pub fn proves(&self, func: &Func, at: Op, e: &Affine) -> bool {
        let mut proof = Proof { facts: self, func, conditions: None, at, budget: BUDGET };
        proof.try_goal(e, DEPTH)
    }

    /// True only if `x < y` whenever `at` is executed.
    pub fn proves_less(&self, func: &Func, at: Op, x: &Affine, y: &Affine) -> bool {
        y.sub(x).and_then(|d| d.offset(-1)).is_some_and(|e| self.proves(func, at, &e))
    }

    /// What a comparison of tracked integers yields at `at`, if that is known.
    pub fn compare(&self, func: &Func, at: Op, op: CmpOp, x: Value, y: Value) -> Option<bool> {
        let (x, y) = (self.ranges.form(x), self.ranges.form(y));
        let less = |strict| {
            let (lo, hi) = (x.sub(&y)?, y.sub(&x)?);
            // x < y, or x <= y.
            if self.proves(func, at, &hi.offset(if strict { -1 } else { 0 })?) {
                return Some(true);
            }
            self.proves(func, at, &lo.offset(if strict { 0 } else { -1 })?).then_some(false)
        };
        let equal = || {
            if x == y {
                return Some(true);
            }
            if self.proves_less(func, at, &x, &y) || self.proves_less(func, at, &y, &x) {
                return Some(false);
            }
            let (rise, fall) = (y.sub(&x)?, x.sub(&y)?);
            (self.proves(func, at, &rise) && self.proves(func, at, &fall)).then_some(true)
        };
        match op {
            CmpOp::Eq => equal(),
            CmpOp::Ne => equal().map(|e| !e),
            CmpOp::Lt => less(true),
            CmpOp::Le => less(false),
            CmpOp::Gt => less(false).map(|l| !l),
            CmpOp::Ge => less(true).map(|l| !l),
        }
    }
}

struct Proof<'a> {
    facts: &'a Facts,
    func: &'a Func,
    /// Found when first needed.
    conditions: Option<Vec<&'a Affine>>,
    at: Op,
    budget: usize,
}

impl Proof<'_> {
    fn try_goal(&mut self, e: &Affine, depth: usize) -> bool {
        if self.facts.ranges.range_of(e).lo >= 0 {
            return true;
        }
        if depth == 0 {
            return false;
        }
        let facts = self.facts;
        let at = self.at;
        let conditions = self.conditions.get_or_insert_with(|| facts.at(at)).clone();
        // A term that pulls the sum down without limit must go at some point, so it may as well go first.
        let limitless = |(term, k): &(Term, i64)| {
            let range = facts.ranges.range_of(&Affine::term(term.clone()));
            if *k > 0 { range.lo <= -MAX_EXTENT } else { range.hi >= MAX_EXTENT }
        };
        let pivot = e.terms().iter().position(limitless);
        let mut open = Vec::new();
        for (i, (term, a)) in e.terms().iter().enumerate() {
            let mut own = Vec::new();
            facts.about(self.func, term, &mut own);
            for fact in conditions.iter().copied().chain(&own) {
                let b = fact.coefficient(term);
                if b == 0 || (b < 0) != (*a < 0) {
                    continue;
                }
                if self.budget == 0 {
                    return false;
                }
                self.budget -= 1;
                // If b * e - a * fact + b - 1 >= 0, then b * e >= 1 - b, and e, an integer, is not negative.
                let g = gcd(*a, b);
                let (a, b) = (a.abs() / g, b.abs() / g);
                let rest = e.scale(b).and_then(|e| e.offset(b - 1)).and_then(|e| e.sub_scaled(fact, a));
                let Some(rest) = rest else { continue };
                if facts.ranges.range_of(&rest).lo >= 0 {
                    return true;
                }
                if pivot.is_none_or(|p| p == i) {
                    open.push(rest);
                }
            }
        }
        open.iter().any(|rest| self.try_goal(rest, depth - 1))
    }
}
