//! Algebraic identities.
//!
//! Float identities hold for every value, signed zeros and infinities included (which NaN comes out is open).

use super::{Context, Rewrite, Rule};
use crate::DType;
use crate::func::{Op, Value};
use crate::numerics::{Const, cast};
use crate::op::{BinaryOp, OpKind, UnaryOp};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "constant-last",
        law: "x op y = y op x for commutative ops; puts constants second, so that other rules look there only",
        apply: constant_last,
    },
    Rule { name: "neutral-operand", law: "x op e = x for the neutral element e of the op", apply: neutral },
    Rule { name: "absorbing-operand", law: "x op a = a for an a that decides an integer or bool op", apply: absorbing },
    Rule {
        name: "same-operands",
        law: "x op x is x, or a constant, for integers and bools, and for float min and max",
        apply: same_operands,
    },
    Rule { name: "double-negation", law: "-(-x) = x, !!x = x, |-x| = |x| = ||x||", apply: involution },
    Rule { name: "negate", law: "0 - x = -x on integers, x * -1 = -x: a negation costs less", apply: negate },
    Rule {
        name: "fold-into-constant",
        law: "(x op c) op d = x op (c op d) for associative ops on integers and bools: one op fewer on the path",
        apply: reassociate,
    },
];

pub(super) fn commutes(op: BinaryOp) -> bool {
    use BinaryOp::*;
    match op {
        Add | Mul | Min | Max | And | Or | Xor | MulHi => true,
        Sub | Div | Rem | CeilDiv | Shl | Shr | Pow | CopySign => false,
    }
}

fn binary(kind: &OpKind) -> Option<(BinaryOp, Value, Value)> {
    match *kind {
        OpKind::Binary { op, x, y, .. } => Some((op, x, y)),
        _ => None,
    }
}

/// The constant `v` of a type, which every numeric type can represent.
fn small(ty: DType, v: i64) -> Const {
    cast(Const::index(v), ty)
}

fn constant_last(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    match *kind {
        OpKind::Binary { out, op, x, y } if commutes(op) && cx.constant(x).is_some() && cx.constant(y).is_none() => {
            Some(Rewrite::Op(OpKind::Binary { out, op, x: y, y: x }))
        }
        _ => None,
    }
}

fn neutral(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    use BinaryOp::*;
    let (op, x, y) = binary(kind)?;
    let c = cx.constant(y)?;
    let ty = c.dtype();
    let is = |v| c == small(ty, v);
    let holds = match op {
        // x + 0 turns -0 into +0.
        Add if ty.is_float() => c.as_f64() == 0.0 && c.as_f64().is_sign_negative(),
        Sub if ty.is_float() => c.as_f64() == 0.0 && c.as_f64().is_sign_positive(),
        Add | Sub => is(0),
        Mul | Div => is(1),
        CeilDiv => is(1),
        Or | Xor | Shl | Shr if ty != DType::Bool => is(0),
        And if ty != DType::Bool => c == Const::from_bits(ty, u64::MAX),
        And => c.as_bool(),
        Or | Xor => !c.as_bool(),
        Shl | Shr | Rem | Min | Max | MulHi | Pow | CopySign => false,
    };
    holds.then_some(Rewrite::Value(x))
}

fn absorbing(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    use BinaryOp::*;
    let (op, _, y) = binary(kind)?;
    let c = cx.constant(y)?;
    let ty = c.dtype();
    if ty.is_float() {
        return None;
    }
    let zero = Const::zero(ty);
    let ones = if ty == DType::Bool { Const::from_bool(true) } else { Const::from_bits(ty, u64::MAX) };
    match op {
        Mul | And if c == zero => Some(Rewrite::Const(zero)),
        Or if c == ones => Some(Rewrite::Const(ones)),
        Rem if c == small(ty, 1) => Some(Rewrite::Const(zero)),
        _ => None,
    }
}

fn same_operands(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    use BinaryOp::*;
    let (op, x, y) = binary(kind)?;
    if x != y {
        return None;
    }
    let ty = cx.func.ty(x);
    match op {
        Min | Max | And | Or => Some(Rewrite::Value(x)),
        Sub | Xor if !ty.is_float() => Some(Rewrite::Const(Const::zero(ty))),
        Add | Sub | Mul | Div | Rem | CeilDiv | Xor | Shl | Shr | MulHi | Pow | CopySign => None,
    }
}

fn involution(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Unary { out, op, x } = *kind else { return None };
    let OpKind::Unary { op: inner, x: y, .. } = *cx.def(x)? else { return None };
    match (op, inner) {
        (UnaryOp::Neg, UnaryOp::Neg) | (UnaryOp::Not, UnaryOp::Not) => Some(Rewrite::Value(y)),
        (UnaryOp::Abs, UnaryOp::Abs) => Some(Rewrite::Value(x)),
        (UnaryOp::Abs, UnaryOp::Neg) => Some(Rewrite::Op(OpKind::Unary { out, op, x: y })),
        _ => None,
    }
}

fn negate(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Binary { out, op, x, y } = *kind else { return None };
    let ty = cx.func.ty(x);
    let operand = match op {
        BinaryOp::Mul if ty.is_signed_int() || ty.is_float() => (cx.constant(y)? == small(ty, -1)).then_some(x)?,
        BinaryOp::Sub if ty.is_signed_int() => (cx.constant(x)? == small(ty, 0)).then_some(y)?,
        _ => return None,
    };
    Some(Rewrite::Op(OpKind::Unary { out, op: UnaryOp::Neg, x: operand }))
}

fn reassociate(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    use BinaryOp::*;
    let (op, x, y) = binary(kind)?;
    let ty = cx.func.ty(x);
    // `index` arithmetic, which must not overflow, is left to the affine forms.
    if ty.is_float() || ty == DType::Index || !matches!(op, Add | Mul | And | Or | Xor | Min | Max) {
        return None;
    }
    let d = cx.constant(y)?;
    let (inner, z, w) = binary(cx.def(x)?)?;
    let c = cx.constant(w).filter(|_| inner == op)?;
    let both = crate::eval::binary(op, c, d).ok()?;
    Some(Rewrite::WithConst(op, z, both))
}
