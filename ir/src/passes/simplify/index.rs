//! Affine normal forms of index arithmetic.
//!
//! An op whose form is a constant, or that of a value at hand, is that. Otherwise it is rewritten only where the
//! path from its inputs gets shorter, so the rules cannot run in circles.

use super::{Context, Rewrite, Rule};
use crate::DType;
use crate::analysis::affine::{Affine, Term, gcd};
use crate::analysis::range::is_tracked;
use crate::func::{Op, Value};
use crate::numerics::Const;
use crate::op::{BinaryOp, OpKind, Visit};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "known-form",
        law: "equal affine forms are equal values, so an op whose form is at hand is not needed",
        apply: known,
    },
    Rule {
        name: "one-step",
        law: "a sum of two computed values that is `x + c` or `x * c` for an x at hand depends on x only",
        apply: one_step,
    },
    Rule {
        name: "fold-steps",
        law: "two steps with constants, (x op c) op' d, that amount to one step from x skip the middle",
        apply: fold_steps,
    },
];

/// The result of an op that the analysis follows, with its type and form.
fn subject(cx: &Context<'_>, kind: &OpKind) -> Option<(Value, DType, Affine)> {
    let mut out = None;
    kind.for_each_def(&mut |v| out = Some(v));
    let out = out?;
    let ty = cx.func.ty(out);
    is_tracked(ty).then(|| (out, ty, cx.facts.ranges.form(out)))
}

/// A value of type `ty` with this form that can be used here.
fn at_hand(cx: &Context<'_>, ty: DType, form: &Affine) -> Option<Value> {
    // A term of an op's form is among the op's inputs, direct or not, so it is visible where the op is.
    form.as_value().filter(|&v| cx.func.ty(v) == ty).or_else(|| cx.scopes.form(ty, form))
}

fn known(cx: &Context<'_>, _at: Op, kind: &OpKind) -> Option<Rewrite> {
    let (out, ty, form) = subject(cx, kind)?;
    if let Some(c) = form.as_constant() {
        return Some(Rewrite::Const(Const::from_i64(ty, c)));
    }
    at_hand(cx, ty, &form).filter(|&v| v != out).map(Rewrite::Value)
}

fn one_step(cx: &Context<'_>, _at: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Binary { x, y, .. } = *kind else { return None };
    if cx.constant(x).is_some() || cx.constant(y).is_some() {
        return None;
    }
    let (_, ty, form) = subject(cx, kind)?;
    if form.constant != 0
        && let Some(v) = at_hand(cx, ty, &form.offset(form.constant.checked_neg()?)?)
    {
        return Some(Rewrite::WithConst(BinaryOp::Add, v, Const::from_i64(ty, form.constant)));
    }
    let factor = form.terms().iter().fold(form.constant, |g, (_, k)| gcd(g, *k));
    if factor > 1
        && let Some(v) = at_hand(cx, ty, &form.floor_div(factor)?)
    {
        return Some(Rewrite::WithConst(BinaryOp::Mul, v, Const::from_i64(ty, factor)));
    }
    None
}

fn fold_steps(cx: &Context<'_>, _at: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Binary { op, x: middle, y: d, .. } = *kind else { return None };
    let d = cx.constant(d)?.as_i64();
    let OpKind::Binary { x, y: c, .. } = *cx.def(middle)? else { return None };
    cx.constant(c)?;
    let (_, ty, form) = subject(cx, kind)?;
    if cx.constant(x).is_some() || cx.func.ty(x) != ty {
        return None;
    }
    let from = cx.facts.ranges.form(x);
    let step = |op, c| Some(Rewrite::WithConst(op, x, Const::from_i64(ty, c)));
    if let Some(c) = form.sub(&from)?.as_constant() {
        return step(BinaryOp::Add, c);
    }
    if let (Some((term, k)), Some((_, j))) = (form.terms().first(), from.terms().first())
        && k.checked_rem(*j) == Some(0)
        && from.coefficient(term) == *j
        && from.scale(k / j).as_ref() == Some(&form)
    {
        return step(BinaryOp::Mul, k / j);
    }
    // Other integers divide towards zero.
    if ty != DType::Index {
        return None;
    }
    if let [(Term::Div(_, c), 1)] = form.terms()
        && cx.facts.ranges.floor_div(&from, *c).as_ref() == Some(&form)
    {
        return step(BinaryOp::Div, *c);
    }
    let rem = || from.sub_scaled(&cx.facts.ranges.floor_div(&from, d)?, d);
    if op == BinaryOp::Rem && d > 0 && rem().as_ref() == Some(&form) {
        return step(BinaryOp::Rem, d);
    }
    None
}
