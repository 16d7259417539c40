//! Operations on constants.

use super::{Context, Rewrite, Rule};
use crate::eval;
use crate::func::Op;
use crate::numerics::{Const, bitcast, cast};
use crate::op::OpKind;

pub(super) const RULES: &[Rule] = &[Rule {
    name: "fold-constants",
    law: "the result is what the interpreter computes; what has no result (a division by zero) stays",
    apply: fold,
}];

fn fold(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let get = |v| cx.constant(v);
    let c = match *kind {
        OpKind::Unary { op, x, .. } => eval::unary(op, get(x)?).ok()?,
        OpKind::Binary { op, x, y, .. } => eval::binary(op, get(x)?, get(y)?).ok()?,
        OpKind::Fma { x, y, z, .. } => eval::fma(get(x)?, get(y)?, get(z)?).ok()?,
        OpKind::Cmp { op, x, y, .. } => Const::from_bool(eval::cmp(op, get(x)?, get(y)?).ok()?),
        OpKind::Cast { out, x } => cast(get(x)?, cx.func.ty(out.0)),
        OpKind::Bitcast { out, x } => bitcast(get(x)?, cx.func.ty(out.0))?,
        OpKind::Select { cond, x, y, .. } => {
            return Some(Rewrite::Value(if get(cond)?.as_bool() { x } else { y }));
        }
        _ => return None,
    };
    Some(Rewrite::Const(c))
}
