//! Divisions, remainders and minima whose operands' ranges make them cheaper.

use super::{Context, Rewrite, Rule};
use crate::DType;
use crate::analysis::range::is_tracked;
use crate::func::{Op, Value};
use crate::numerics::Const;
use crate::op::{BinaryOp, OpKind};

pub(super) const RULES: &[Rule] = &[
    Rule { name: "small-dividend", law: "x / y is 0 and x % y is x where 0 <= x < y", apply: small_dividend },
    Rule {
        name: "exact-ceildiv",
        law: "ceildiv x, c is x / c where c divides x: no addition, and equal to other divisions",
        apply: exact_ceildiv,
    },
    Rule {
        name: "divide-by-power",
        law: "on non-negative integers of fixed width x / 2^k is x >> k and x % 2^k is x & (2^k - 1); `index` \
              division stays as it is, for the sake of affine forms",
        apply: power_of_two,
    },
    Rule { name: "decide-minimum", law: "min x, y is x where x <= y is known", apply: minimum },
];

fn small_dividend(cx: &Context<'_>, at: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Binary { op: op @ (BinaryOp::Div | BinaryOp::Rem), x, y, .. } = *kind else { return None };
    let ty = cx.func.ty(x);
    if !is_tracked(ty) {
        return None;
    }
    let (a, b) = (cx.facts.ranges.form(x), cx.facts.ranges.form(y));
    if !cx.facts.proves(cx.func, at, &a) || !cx.facts.proves_less(cx.func, at, &a, &b) {
        return None;
    }
    Some(if op == BinaryOp::Rem { Rewrite::Value(x) } else { Rewrite::Const(Const::zero(ty)) })
}

fn exact_ceildiv(cx: &Context<'_>, _at: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Binary { op: BinaryOp::CeilDiv, x, y, .. } = *kind else { return None };
    let c = cx.constant(y)?;
    let divisor = c.as_i64();
    let exact = divisor > 0 && cx.facts.ranges.multiple_of_form(&cx.facts.ranges.form(x)) % divisor == 0;
    exact.then_some(Rewrite::WithConst(BinaryOp::Div, x, c))
}

fn power_of_two(cx: &Context<'_>, _at: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Binary { op: op @ (BinaryOp::Div | BinaryOp::Rem), x, y, .. } = *kind else { return None };
    let ty = cx.func.ty(x);
    if !ty.is_int() || ty == DType::Index {
        return None;
    }
    let divisor = cx.constant(y)?;
    let c = divisor.bits();
    let non_negative = !ty.is_signed_int() || cx.facts.ranges.range(x).lo >= 0;
    if !non_negative || !c.is_power_of_two() || (ty.is_signed_int() && divisor.as_i64() < 0) {
        return None;
    }
    Some(match op {
        BinaryOp::Rem => Rewrite::WithConst(BinaryOp::And, x, Const::from_bits(ty, c - 1)),
        _ => Rewrite::WithConst(BinaryOp::Shr, x, Const::from_bits(ty, c.trailing_zeros().into())),
    })
}

fn minimum(cx: &Context<'_>, at: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Binary { op: op @ (BinaryOp::Min | BinaryOp::Max), x, y, .. } = *kind else { return None };
    if !is_tracked(cx.func.ty(x)) {
        return None;
    }
    let at_most = |x: Value, y: Value| {
        let (x, y) = (cx.facts.ranges.form(x), cx.facts.ranges.form(y));
        y.sub(&x).is_some_and(|rise| cx.facts.proves(cx.func, at, &rise))
    };
    let (low, high) = if at_most(x, y) {
        (x, y)
    } else if at_most(y, x) {
        (y, x)
    } else {
        return None;
    };
    Some(Rewrite::Value(if op == BinaryOp::Min { low } else { high }))
}
