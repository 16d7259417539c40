//! Comparisons and selections.

use super::{Context, Rewrite, Rule};
use crate::DType;
use crate::analysis::range::is_tracked;
use crate::func::{Op, Value};
use crate::numerics::Const;
use crate::op::{CmpOp, OpKind, UnaryOp};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "decide-comparison",
        law: "a comparison whose outcome follows from ranges, conditions and assumptions is a constant",
        apply: decide,
    },
    Rule {
        name: "constant-last-in-comparison",
        law: "c < x is x > c; puts constants second, so that equal comparisons look equal",
        apply: constant_last,
    },
    Rule {
        name: "negated-comparison",
        law: "!(x < y) is x >= y on integers; on floats, where NaN fails both, only == and != are opposites",
        apply: negated,
    },
    Rule { name: "select-same", law: "c ? x : x is x", apply: select_same },
    Rule { name: "select-bool", law: "c ? true : false is c, c ? false : true is !c", apply: select_bool },
    Rule { name: "select-negated", law: "!c ? x : y is c ? y : x", apply: select_negated },
    Rule {
        name: "decide-select",
        law: "a selection by a comparison whose outcome is known there is one of its operands",
        apply: decide_select,
    },
];

/// What a comparison yields at `at`, if that is known.
pub(super) fn outcome(cx: &Context<'_>, at: Op, op: CmpOp, x: Value, y: Value) -> Option<bool> {
    let ty = cx.func.ty(x);
    if is_tracked(ty) {
        return cx.facts.compare(cx.func, at, op, x, y);
    }
    if x != y || ty.is_float() {
        return None;
    }
    Some(match op {
        CmpOp::Eq | CmpOp::Le | CmpOp::Ge => true,
        CmpOp::Ne | CmpOp::Lt | CmpOp::Gt => false,
    })
}

/// What a condition yields at `at`, if it is a constant or a comparison that is decided there.
pub(super) fn condition(cx: &Context<'_>, at: Op, cond: Value) -> Option<bool> {
    if let Some(c) = cx.constant(cond) {
        return Some(c.as_bool());
    }
    match *cx.def(cond)? {
        OpKind::Cmp { op, x, y, .. } => outcome(cx, at, op, x, y),
        _ => None,
    }
}

fn decide(cx: &Context<'_>, at: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Cmp { op, x, y, .. } = *kind else { return None };
    outcome(cx, at, op, x, y).map(|b| Rewrite::Const(Const::from_bool(b)))
}

fn flipped(op: CmpOp) -> CmpOp {
    match op {
        CmpOp::Eq | CmpOp::Ne => op,
        CmpOp::Lt => CmpOp::Gt,
        CmpOp::Le => CmpOp::Ge,
        CmpOp::Gt => CmpOp::Lt,
        CmpOp::Ge => CmpOp::Le,
    }
}

fn constant_last(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    match *kind {
        OpKind::Cmp { out, op, x, y } if cx.constant(x).is_some() && cx.constant(y).is_none() => {
            Some(Rewrite::Op(OpKind::Cmp { out, op: flipped(op), x: y, y: x }))
        }
        _ => None,
    }
}

fn negated(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Unary { out, op: UnaryOp::Not, x } = *kind else { return None };
    let OpKind::Cmp { op, x, y, .. } = *cx.def(x)? else { return None };
    let opposite = match op {
        CmpOp::Eq => CmpOp::Ne,
        CmpOp::Ne => CmpOp::Eq,
        CmpOp::Lt | CmpOp::Le | CmpOp::Gt | CmpOp::Ge if cx.func.ty(x).is_float() => return None,
        CmpOp::Lt => CmpOp::Ge,
        CmpOp::Le => CmpOp::Gt,
        CmpOp::Gt => CmpOp::Le,
        CmpOp::Ge => CmpOp::Lt,
    };
    Some(Rewrite::Op(OpKind::Cmp { out, op: opposite, x, y }))
}

fn select_same(_cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    match *kind {
        OpKind::Select { x, y, .. } if x == y => Some(Rewrite::Value(x)),
        _ => None,
    }
}

fn select_bool(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Select { out, cond, x, y } = *kind else { return None };
    if cx.func.ty(x) != DType::Bool {
        return None;
    }
    match (cx.constant(x)?.as_bool(), cx.constant(y)?.as_bool()) {
        (true, false) => Some(Rewrite::Value(cond)),
        (false, true) => Some(Rewrite::Op(OpKind::Unary { out, op: UnaryOp::Not, x: cond })),
        (true, true) | (false, false) => Some(Rewrite::Value(x)),
    }
}

fn select_negated(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Select { out, cond, x, y } = *kind else { return None };
    match *cx.def(cond)? {
        OpKind::Unary { op: UnaryOp::Not, x: c, .. } => Some(Rewrite::Op(OpKind::Select { out, cond: c, x: y, y: x })),
        _ => None,
    }
}

fn decide_select(cx: &Context<'_>, at: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Select { cond, x, y, .. } = *kind else { return None };
    condition(cx, at, cond).map(|c| Rewrite::Value(if c { x } else { y }))
}
