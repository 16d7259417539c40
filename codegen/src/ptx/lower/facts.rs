//! What a function's prelude asserts: extents that the launcher has compared before the kernel runs.

use std::collections::HashMap;
use zellige_ir::{CmpOp, Const, DType, Func, OpKind, Value, ValueDef, eval};

/// Values that stand for one another.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    equal: HashMap<Value, Value>,
}

impl Facts {
    /// Collects the equalities between dims, and between dims and constants.
    pub fn of(func: &Func) -> Facts {
        let mut facts = Facts::default();
        let is_dim = |v: Value| matches!(func.values[v].def, ValueDef::Dim(_));
        for &op in &func.regions[func.prelude].ops {
            let OpKind::Assert { cond, .. } = &func.ops[op].kind else { continue };
            let ValueDef::Op(by) = func.values[*cond].def else { continue };
            let OpKind::Cmp { op: CmpOp::Eq, x, y, .. } = &func.ops[by].kind else { continue };
            let (x, y) = (facts.resolve(*x), facts.resolve(*y));
            let (from, to) = if is_dim(x) { (x, y) } else { (y, x) };
            if from != to && is_dim(from) && (is_dim(to) || func.as_index(to).is_some()) {
                facts.equal.insert(from, to);
            }
        }
        facts
    }

    /// The value that `v` is known to equal: a constant if there is one.
    pub fn resolve(&self, mut v: Value) -> Value {
        while let Some(&next) = self.equal.get(&v) {
            v = next;
        }
        v
    }

    /// The number behind an `index` value of the prelude, if it is the same in all launches.
    pub fn known(&self, func: &Func, v: Value) -> Option<i64> {
        let v = self.resolve(v);
        if let Some(c) = func.as_index(v) {
            return Some(c);
        }
        let ValueDef::Op(op) = func.values[v].def else { return None };
        let OpKind::Binary { op, x, y, .. } = &func.ops[op].kind else { return None };
        if func.ty(v) != DType::Index {
            return None;
        }
        let (x, y) = (self.known(func, *x)?, self.known(func, *y)?);
        eval::binary(*op, Const::index(x), Const::index(y)).ok().map(|c| c.as_i64())
    }
}
