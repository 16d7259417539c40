//! What a parallel loop touches, and which of its indices stand where: the input of layout inference.

use zellige_ir::{BinaryOp, Buffer, Func, OpKind, Region, Value, ValueDef};

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
    func.walk(body, &mut |_, data| {
        let (buffer, at, write) = match &data.kind {
            OpKind::Load { buffer, indices, .. } => (*buffer, indices, false),
            OpKind::Store { buffer, indices, .. } | OpKind::Atomic { buffer, indices, .. } => (*buffer, indices, true),
            _ => return,
        };
        let forms: Vec<Form> = at.iter().map(|&v| form(func, indices, v)).collect();
        let contiguous = match indices.last() {
            Some(&inner) => {
                let (last, rest) = match at.split_last() {
                    Some((last, rest)) => (Some(*last), rest),
                    None => (None, &at[..]),
                };
                last.is_some_and(|v| step(func, v, inner) == Some(1))
                    && rest.iter().all(|&v| step(func, v, inner) == Some(0))
            }
            None => false,
        };
        found.push(Access { buffer, forms, contiguous, write });
    });
    found
}

fn form(func: &Func, indices: &[Value], v: Value) -> Form {
    if let Some(dim) = indices.iter().position(|&i| i == v) {
        return Form::Loop { dim, off: 0 };
    }
    if let Some(c) = func.as_index(v) {
        return Form::Const(c);
    }
    let ValueDef::Op(op) = func.values[v].def else { return Form::Other };
    let OpKind::Binary { op, x, y, .. } = func.ops[op].kind else { return Form::Other };
    match (op, form(func, indices, x), form(func, indices, y)) {
        (BinaryOp::Add, Form::Loop { dim, off }, Form::Const(c)) => Form::Loop { dim, off: off + c },
        (BinaryOp::Add, Form::Const(c), Form::Loop { dim, off }) => Form::Loop { dim, off: off + c },
        (BinaryOp::Sub, Form::Loop { dim, off }, Form::Const(c)) => Form::Loop { dim, off: off - c },
        _ => Form::Other,
    }
}

/// How much `v` grows when the index `i` grows by one; `None` if that is not constant.
fn step(func: &Func, v: Value, i: Value) -> Option<i64> {
    if v == i {
        return Some(1);
    }
    let ValueDef::Op(op) = func.values[v].def else { return Some(0) };
    match &func.ops[op].kind {
        OpKind::Binary { op, x, y, .. } => {
            let (sx, sy) = (step(func, *x, i)?, step(func, *y, i)?);
            match op {
                BinaryOp::Add => Some(sx + sy),
                BinaryOp::Sub => Some(sx - sy),
                BinaryOp::Mul if sx == 0 && sy == 0 => Some(0),
                BinaryOp::Mul => match (func.as_index(*x), func.as_index(*y)) {
                    (_, Some(c)) => Some(sx * c),
                    (Some(c), _) => Some(sy * c),
                    _ => None,
                },
                _ if sx == 0 && sy == 0 => Some(0),
                _ => None,
            }
        }
        // Whatever else computes the value: it must not depend on the index.
        kind => {
            let mut constant = true;
            zellige_ir::Visit::for_each_use(kind, &mut |u| constant &= step(func, u, i) == Some(0));
            constant.then_some(0)
        }
    }
}
