//! What a parallel loop touches, and which of its indices stand where: the input of layout inference.

use zellige_ir::hash::FastMap;
use zellige_ir::{BinaryOp, Buffer, Func, OpKind, Region, Value, ValueDef, Visit};

/// An index as far as layouts care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Loop index number `dim` plus a constant.
    Loop {
        dim: usize,
        off: i64,
    },
    Const(i64),
    Other,
}

/// An element access in a parallel loop.
#[derive(Clone, Debug)]
pub struct Access {
    pub buffer: Buffer,
    pub forms: Vec<Form>,
    /// The last index follows the loop's last index with step one (its other parts do not depend on it).
    pub contiguous: bool,
    pub write: bool,
}

/// All element accesses of a parallel loop's body, in program order.
pub fn loop_accesses(func: &Func, indices: &[Value], body: Region) -> Vec<Access> {
    let mut found = Vec::new();
    let mut positions = Positions { func, indices, forms: FastMap::default(), steps: FastMap::default() };
    func.walk(body, &mut |_, data| {
        let (buffer, at, write) = match &data.kind {
            OpKind::Load { buffer, indices, .. } => (*buffer, indices, false),
            OpKind::Store { buffer, indices, .. } | OpKind::Atomic { buffer, indices, .. } => (*buffer, indices, true),
            _ => return,
        };
        let forms: Vec<Form> = at.iter().map(|&v| positions.form(v)).collect();
        let contiguous = match at.split_last() {
            Some((&last, rest)) if !indices.is_empty() => {
                positions.step(last) == Some(1) && rest.iter().all(|&v| positions.step(v) == Some(0))
            }
            _ => false,
        };
        found.push(Access { buffer, forms, contiguous, write });
    });
    found
}

/// What is known of the values that a loop's accesses stand at. Each is looked at once: a value may be reached from another
/// along more ways than there are ops.
struct Positions<'f> {
    func: &'f Func,
    /// The loop's.
    indices: &'f [Value],
    forms: FastMap<Value, Form>,
    steps: FastMap<Value, Option<i64>>,
}

impl Positions<'_> {
    fn form(&mut self, v: Value) -> Form {
        if let Some(dim) = self.indices.iter().position(|&i| i == v) {
            return Form::Loop { dim, off: 0 };
        }
        if let Some(c) = self.func.as_index(v) {
            return Form::Const(c);
        }
        if let Some(&known) = self.forms.get(&v) {
            return known;
        }
        let found = self.computed_form(v);
        self.forms.insert(v, found);
        found
    }

    fn computed_form(&mut self, v: Value) -> Form {
        let ValueDef::Op(op) = self.func.values[v].def else { return Form::Other };
        let OpKind::Binary { op, x, y, .. } = self.func.ops[op].kind else { return Form::Other };
        if !matches!(op, BinaryOp::Add | BinaryOp::Sub) {
            return Form::Other;
        }
        let shifted = |dim, off: Option<i64>| off.map_or(Form::Other, |off| Form::Loop { dim, off });
        match (op, self.form(x), self.form(y)) {
            (BinaryOp::Add, Form::Loop { dim, off }, Form::Const(c))
            | (BinaryOp::Add, Form::Const(c), Form::Loop { dim, off }) => shifted(dim, off.checked_add(c)),
            (BinaryOp::Sub, Form::Loop { dim, off }, Form::Const(c)) => shifted(dim, off.checked_sub(c)),
            _ => Form::Other,
        }
    }

    /// How much `v` grows when the last index grows by one; `None` if that is not constant.
    fn step(&mut self, v: Value) -> Option<i64> {
        if self.indices.last() == Some(&v) {
            return Some(1);
        }
        let ValueDef::Op(op) = self.func.values[v].def else { return Some(0) };
        if let Some(&known) = self.steps.get(&v) {
            return known;
        }
        let found = self.computed_step(&self.func.ops[op].kind);
        self.steps.insert(v, found);
        found
    }

    fn computed_step(&mut self, kind: &OpKind) -> Option<i64> {
        match kind {
            OpKind::Binary { op, x, y, .. } => {
                let (sx, sy) = (self.step(*x)?, self.step(*y)?);
                match op {
                    BinaryOp::Add => sx.checked_add(sy),
                    BinaryOp::Sub => sx.checked_sub(sy),
                    BinaryOp::Mul if sx == 0 && sy == 0 => Some(0),
                    BinaryOp::Mul => match (self.func.as_index(*x), self.func.as_index(*y)) {
                        (_, Some(c)) => sx.checked_mul(c),
                        (Some(c), _) => sy.checked_mul(c),
                        _ => None,
                    },
                    _ if sx == 0 && sy == 0 => Some(0),
                    _ => None,
                }
            }
            // Whatever else computes the value: it must not depend on the index.
            kind => {
                let mut constant = true;
                kind.for_each_use(&mut |u| constant = constant && self.step(u) == Some(0));
                constant.then_some(0)
            }
        }
    }
}
