//! The simplifier: constants, identities, index arithmetic, equal values, decided control flow, dead ops.
//!
//! Input and output: any verified function. One round walks the function in program order and rewrites each op with
//! the operands that earlier rewrites left, then removes what nothing uses; rounds follow until nothing changes.
//! Rules are grouped by theme, one file each, and have a name and a law:
//! - `fold`: operations on constants;
//! - `identity`: algebraic identities of integers, floats and bools;
//! - `convert`: chains of casts and bit casts;
//! - `compare`: comparisons and selections, with the facts that hold where they stand;
//! - `divide`: divisions, remainders and minima, with the ranges of their operands;
//! - `index`: affine normal forms;
//! - `control`: conditionals and loops whose course is known;
//! - `dead`: ops without an effect.
//!
//! A pure op that repeats one in an enclosing scope is replaced by it (rule `same-op`).
//!
//! ```text
//! %0: index = mul %bx, 128                     %0: index = mul %bx, 128
//! for parallel (%1) in (128) {                 for parallel (%1) in (128) {
//!   %2: index = add %0, %1                       %2: index = add %0, %1
//!   %3: index = div %2, 128           ->         %3: f32 = load x[%2]
//!   %4: index = add %2, 0                        store %3 -> y[%bx, %1]
//!   %5: f32 = load x[%4]                       }
//!   store %5 -> y[%3, %1]
//! }
//! ```

mod compare;
mod control;
mod convert;
mod dead;
mod divide;
mod fold;
mod identity;
mod index;

use super::PassStats;
use crate::DType;
use crate::analysis::{Affine, Facts, range};
use crate::entity::EntityId;
use crate::func::{Func, Op, Region, Value, ValueDef};
use crate::hash::{FastMap, FastSet};
use crate::numerics::Const;
use crate::op::{BinaryOp, CmpOp, Def, Effect, OpKind, UnaryOp, Visit};

/// Rounds after which the pass gives up waiting for a fixed point; a handful is usual.
const MAX_ROUNDS: usize = 16;

/// What a rule makes of a pure op.
#[expect(clippy::large_enum_variant, reason = "short-lived, and few are other than `Op`")]
enum Rewrite {
    /// The result is this value.
    Value(Value),
    /// The result is this constant.
    Const(Const),
    /// Another op with the same result.
    Op(OpKind),
    /// `op x, c`.
    WithConst(BinaryOp, Value, Const),
}

/// A rewrite of pure ops.
struct Rule {
    name: &'static str,
    /// Why the result is the same and not worse.
    law: &'static str,
    apply: fn(&Context<'_>, Op, &OpKind) -> Option<Rewrite>,
}

/// The rules for pure ops, in the order in which they are tried.
fn pure_rules() -> impl Iterator<Item = &'static Rule> {
    [fold::RULES, identity::RULES, convert::RULES, compare::RULES, divide::RULES, index::RULES].into_iter().flatten()
}

const SAME_OP: (&str, &str) =
    ("same-op", "a pure op with the operands of an earlier one in an enclosing scope has its result");

/// All rules: their names, as in [`PassStats`], and their laws.
pub fn rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    let named = [SAME_OP].into_iter().chain(control::LAWS).chain(dead::LAWS);
    pure_rules().map(|rule| (rule.name, rule.law)).chain(named)
}

/// What a rule may look at.
struct Context<'a> {
    func: &'a Func,
    /// Of the function before the round.
    facts: &'a Facts,
    scopes: &'a Scopes,
}

impl Context<'_> {
    fn constant(&self, v: Value) -> Option<Const> {
        self.func.as_const(v)
    }

    /// The op that computes a value.
    fn def(&self, v: Value) -> Option<&OpKind> {
        match self.func.values[v].def {
            ValueDef::Op(op) => Some(&self.func.ops[op].kind),
            ValueDef::Const(_) | ValueDef::Dim(_) | ValueDef::Param(_) | ValueDef::BlockId(_) | ValueDef::Pending => {
                None
            }
        }
    }
}

/// What makes two pure ops compute the same value.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Unary(UnaryOp, Value),
    Binary(BinaryOp, Value, Value),
    Fma(Value, Value, Value),
    Cmp(CmpOp, Value, Value),
    Select(Value, Value, Value),
    Cast(DType, Value),
    Bitcast(DType, Value),
}

impl Key {
    fn new(func: &Func, kind: &OpKind) -> Option<Key> {
        let ordered = |x: Value, y: Value| if x < y { (x, y) } else { (y, x) };
        Some(match *kind {
            OpKind::Unary { op, x, .. } => Key::Unary(op, x),
            OpKind::Binary { op, x, y, .. } => {
                let (x, y) = if identity::commutes(op) { ordered(x, y) } else { (x, y) };
                Key::Binary(op, x, y)
            }
            OpKind::Fma { x, y, z, .. } => {
                let (x, y) = ordered(x, y);
                Key::Fma(x, y, z)
            }
            OpKind::Cmp { op, x, y, .. } => Key::Cmp(op, x, y),
            OpKind::Select { cond, x, y, .. } => Key::Select(cond, x, y),
            OpKind::Cast { out, x } => Key::Cast(func.ty(out.0), x),
            OpKind::Bitcast { out, x } => Key::Bitcast(func.ty(out.0), x),
            _ => return None,
        })
    }
}

/// The values at hand in each of the nested regions around the present op, outermost first.
#[derive(Default)]
struct Scopes {
    ops: Vec<FastMap<Key, Value>>,
    forms: Vec<FastMap<(DType, Affine), Value>>,
}

impl Scopes {
    fn enter(&mut self) {
        self.ops.push(FastMap::default());
        self.forms.push(FastMap::default());
    }

    fn leave(&mut self) {
        self.ops.pop();
        self.forms.pop();
    }

    fn op(&self, key: &Key) -> Option<Value> {
        self.ops.iter().rev().find_map(|scope| scope.get(key).copied())
    }

    fn form(&self, ty: DType, form: &Affine) -> Option<Value> {
        // Forms are few and short; cloning one beats a borrowed key type.
        let key = (ty, form.clone());
        self.forms.iter().rev().find_map(|scope| scope.get(&key).copied())
    }

    fn add_op(&mut self, key: Key, v: Value) {
        if let Some(scope) = self.ops.last_mut() {
            scope.entry(key).or_insert(v);
        }
    }

    fn add_form(&mut self, ty: DType, form: Affine, v: Value) {
        if let Some(scope) = self.forms.last_mut() {
            scope.entry((ty, form)).or_insert(v);
        }
    }
}

/// Runs the pass.
pub fn run(func: &mut Func) -> PassStats {
    let mut stats = PassStats::default();
    for _ in 0..MAX_ROUNDS {
        let before = stats.total();
        Round::new(func, &mut stats).run();
        dead::run(func, &mut stats);
        if stats.total() == before {
            break;
        }
    }
    stats
}

fn resolved(replaced: &[Option<Value>], mut v: Value) -> Value {
    while let Some(&Some(by)) = replaced.get(v.index()) {
        v = by;
    }
    v
}

/// One walk over a function.
struct Round<'a> {
    func: &'a mut Func,
    stats: &'a mut PassStats,
    facts: Facts,
    scopes: Scopes,
    /// By value: if it is not used any more, what stands for it.
    replaced: Vec<Option<Value>>,
    /// Conditions of `while` loops: they must be computed in the loop's first region.
    pinned: FastSet<Value>,
    /// Conditions of top-level assumptions and what they are computed from. Knowing them true, the round would turn
    /// them into constants, and the promise would be lost to later passes; so they stay as they are.
    promised: FastSet<Value>,
}

impl<'a> Round<'a> {
    fn new(func: &'a mut Func, stats: &'a mut PassStats) -> Round<'a> {
        let facts = Facts::new(func);
        let mut pinned = FastSet::default();
        func.walk(func.body, &mut |_, data| {
            if let OpKind::While { cond, .. } = data.kind {
                pinned.insert(cond);
            }
        });
        let mut promised = FastSet::default();
        let mut open: Vec<Value> = range::promises(func).collect();
        while let Some(v) = open.pop() {
            if let ValueDef::Op(op) = func.values[v].def
                && func.ops[op].kind.effect() == Effect::Pure
                && promised.insert(v)
            {
                func.ops[op].kind.for_each_use(&mut |v| open.push(v));
            }
        }
        Round { func, stats, facts, scopes: Scopes::default(), replaced: Vec::new(), pinned, promised }
    }

    fn run(mut self) {
        // The body sees the prelude's values.
        self.scopes.enter();
        let (prelude, body) = (self.func.prelude, self.func.body);
        self.region_in_scope(prelude);
        for i in 0..self.func.grid.len() {
            self.func.grid[i] = self.resolve(self.func.grid[i]);
        }
        self.region(body);
        self.scopes.leave();
    }

    fn resolve(&self, v: Value) -> Value {
        resolved(&self.replaced, v)
    }

    fn replace(&mut self, v: Value, by: Value) {
        if self.replaced.len() <= v.index() {
            self.replaced.resize(v.index() + 1, None);
        }
        self.replaced[v.index()] = Some(by);
    }

    /// True for what must stay as it is; other uses of its result may still find a simpler value.
    fn is_promise(&mut self, op: Op) -> bool {
        let kind = &self.func.ops[op].kind;
        if let OpKind::Assume { cond } = kind {
            return self.promised.contains(cond);
        }
        let mut out = None;
        kind.for_each_def(&mut |v| out = Some(v));
        let Some(out) = out.filter(|v| self.promised.contains(v)) else { return false };
        if let Some(c) = self.facts.ranges.form(out).as_constant().filter(|_| range::is_tracked(self.func.ty(out))) {
            let c = self.func.constant(Const::from_i64(self.func.ty(out), c));
            self.replace(out, c);
        }
        true
    }

    fn resolve_uses(&mut self, op: Op) {
        let replaced = &self.replaced;
        self.func.ops[op].kind.for_each_use_mut(&mut |v| *v = resolved(replaced, *v));
    }

    fn region(&mut self, region: Region) {
        self.scopes.enter();
        self.region_in_scope(region);
        self.scopes.leave();
    }

    fn region_in_scope(&mut self, region: Region) {
        let ops = std::mem::take(&mut self.func.regions[region].ops);
        let mut out = Vec::with_capacity(ops.len());
        self.ops(ops, &mut out);
        self.func.regions[region].ops = out;
    }

    fn ops(&mut self, ops: Vec<Op>, out: &mut Vec<Op>) {
        for op in ops {
            if self.is_promise(op) {
                out.push(op);
                continue;
            }
            self.resolve_uses(op);
            if self.pure(op) {
                continue;
            }
            if let Some(taken) = control::decide(self, op) {
                self.ops(taken, out);
                continue;
            }
            out.push(op);
            let mut nested = Vec::new();
            self.func.ops[op].kind.for_each_region(&mut |r| nested.push(r));
            for r in nested {
                self.region(r);
            }
            // The condition of a `while` comes from its first region.
            self.resolve_uses(op);
        }
    }

    /// Rewrites a pure op; true if it is not needed any more.
    fn pure(&mut self, op: Op) -> bool {
        let mut out = None;
        if self.func.ops[op].kind.effect() != Effect::Pure {
            return false;
        }
        self.func.ops[op].kind.for_each_def(&mut |v| out = Some(v));
        let Some(out) = out else { return false };
        let is_pinned = self.pinned.contains(&out);
        while let Some((rule, rewrite)) = self.first_rewrite(op, is_pinned) {
            self.stats.note(rule);
            let by = match rewrite {
                Rewrite::Op(kind) => {
                    self.func.ops[op].kind = kind;
                    self.resolve_uses(op);
                    continue;
                }
                Rewrite::WithConst(f, x, c) => {
                    let y = self.func.constant(c);
                    self.func.ops[op].kind = OpKind::Binary { out: Def(out), op: f, x, y };
                    self.resolve_uses(op);
                    continue;
                }
                Rewrite::Value(v) => self.resolve(v),
                Rewrite::Const(c) => self.func.constant(c),
            };
            self.replace(out, by);
            return true;
        }
        let key = Key::new(self.func, &self.func.ops[op].kind);
        if let Some(key) = key {
            if let (Some(same), false) = (self.scopes.op(&key), is_pinned) {
                self.stats.note(SAME_OP.0);
                self.replace(out, same);
                return true;
            }
            self.scopes.add_op(key, out);
        }
        let ty = self.func.ty(out);
        if range::is_tracked(ty) {
            self.scopes.add_form(ty, self.facts.ranges.form(out), out);
        }
        false
    }

    fn first_rewrite(&self, op: Op, is_pinned: bool) -> Option<(&'static str, Rewrite)> {
        let context = Context { func: self.func, facts: &self.facts, scopes: &self.scopes };
        let kind = &self.func.ops[op].kind;
        let found = pure_rules().find_map(|rule| {
            let rewrite = (rule.apply)(&context, op, kind)?;
            Some((rule.name, rewrite))
        });
        // A pinned op stays, whatever else has its value.
        found.filter(|(_, rewrite)| !is_pinned || matches!(rewrite, Rewrite::Op(_) | Rewrite::WithConst(..)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn rules_have_names_and_laws() {
        let mut names = HashSet::new();
        for (name, law) in super::rules() {
            assert!(names.insert(name), "two rules are called {name}");
            assert!(!law.is_empty(), "{name} has no law");
        }
    }
}
