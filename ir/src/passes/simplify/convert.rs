//! Chains of casts and bit casts.

use super::{Context, Rewrite, Rule};
use crate::DType;
use crate::func::Op;
use crate::op::OpKind;

pub(super) const RULES: &[Rule] = &[
    Rule { name: "same-type", law: "a cast or bit cast to the operand's own type is the operand", apply: same_type },
    Rule {
        name: "cast-of-exact-cast",
        law: "a cast that keeps every value can be left out before another one, if that treats both types alike",
        apply: exact_chain,
    },
    Rule {
        name: "cast-of-truncation",
        law: "taking low bits of low bits takes low bits of the whole",
        apply: truncation_chain,
    },
    Rule {
        name: "bitcast-of-bitcast",
        law: "a bit cast keeps the bits, so the first type does not matter",
        apply: bits,
    },
];

fn same_type(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    match *kind {
        OpKind::Cast { out, x } | OpKind::Bitcast { out, x } if cx.func.ty(out.0) == cx.func.ty(x) => {
            Some(Rewrite::Value(x))
        }
        _ => None,
    }
}

fn exact_chain(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Cast { out, x } = *kind else { return None };
    let OpKind::Cast { x: first, .. } = *cx.def(x)? else { return None };
    let (a, b, c) = (cx.func.ty(first), cx.func.ty(x), cx.func.ty(out.0));
    // Floats become integers by saturation, integers by wrapping: these differ where the value does not fit.
    let alike = !(a.is_int() && b.is_float() && c.is_int()) || keeps_values(a, c);
    // A detour saturates the infinities of f8e5m2, which a cast to its own type keeps.
    let alike = alike && !(a == c && a.is_storage_only());
    (keeps_values(a, b) && alike).then_some(Rewrite::Op(OpKind::Cast { out, x: first }))
}

fn truncation_chain(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Cast { out, x } = *kind else { return None };
    let OpKind::Cast { x: first, .. } = *cx.def(x)? else { return None };
    let (a, b, c) = (cx.func.ty(first), cx.func.ty(x), cx.func.ty(out.0));
    let low_bits = a.is_int() && b.is_int() && c.is_int() && c.bits() <= b.bits() && b.bits() <= a.bits();
    low_bits.then_some(Rewrite::Op(OpKind::Cast { out, x: first }))
}

fn bits(cx: &Context<'_>, _op: Op, kind: &OpKind) -> Option<Rewrite> {
    let OpKind::Bitcast { out, x } = *kind else { return None };
    let OpKind::Bitcast { x: first, .. } = *cx.def(x)? else { return None };
    Some(Rewrite::Op(OpKind::Bitcast { out, x: first }))
}

/// Bits of precision, smallest and largest exponent of the values of a float type, subnormals included: all are
/// `k * 2^e` with `k < 2^precision` and `e >= min`.
const fn float_format(ty: DType) -> Option<(i32, i32, i32)> {
    Some(match ty {
        DType::F64 => (53, -1074, 1023),
        DType::F32 => (24, -149, 127),
        DType::BF16 => (8, -133, 127),
        DType::F16 => (11, -24, 15),
        DType::F8E5M2 => (3, -16, 15),
        DType::F8E4M3 => (4, -9, 8),
        DType::F4E2M1 => (2, -1, 2),
        DType::E8M0 => (1, -127, 127),
        DType::Bool
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Index => return None,
    })
}

/// True if a cast from `a` to `b` keeps every value.
fn keeps_values(a: DType, b: DType) -> bool {
    if a == b {
        return true;
    }
    match (float_format(a), float_format(b)) {
        (Some((precision, min, max)), Some((precision_b, min_b, max_b))) => {
            // f8 and f4 saturate where others have infinities, and e8m0 has neither sign nor zero.
            let wide = !b.is_storage_only();
            wide && precision <= precision_b && min >= min_b && max <= max_b
        }
        (None, Some((precision, min, max))) if !b.is_storage_only() => {
            let magnitude = match a {
                DType::Bool => 1,
                _ if a.is_signed_int() => a.bits() as i32 - 1,
                _ => a.bits() as i32,
            };
            // -2^magnitude has one significant bit.
            magnitude <= precision && magnitude <= max && min <= 0
        }
        (None, None) if b != DType::Bool => {
            let (sa, sb) = (a.is_signed_int(), b.is_signed_int());
            a == DType::Bool || (sa == sb && a.bits() <= b.bits()) || (!sa && sb && a.bits() < b.bits())
        }
        (None | Some(_), None | Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::{Const, cast};

    /// Bit patterns of a type: all of the narrow ones, a sample of the others.
    fn samples(ty: DType) -> Vec<Const> {
        match ty.bits() {
            _ if ty == DType::Bool => vec![Const::from_bool(false), Const::from_bool(true)],
            n if n <= 16 => (0..1u64 << n).map(|bits| Const::from_bits(ty, bits)).collect(),
            n => {
                let spread = (0..4096u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32));
                let edges = (0..n as u32).flat_map(|i| [1u64 << i, (1 << i) - 1, !(1u64 << i), !((1 << i) - 1)]);
                spread.chain(edges).map(|bits| Const::from_bits(ty, bits)).collect()
            }
        }
    }

    #[test]
    fn exact_casts_can_be_left_out() {
        for a in DType::ALL {
            for b in DType::ALL.into_iter().filter(|&b| keeps_values(a, b)) {
                for c in DType::ALL {
                    let saturates = a.is_int() && b.is_float() && c.is_int() && !keeps_values(a, c);
                    if saturates || (a == c && a.is_storage_only()) {
                        continue;
                    }
                    for x in samples(a) {
                        let (long, short) = (cast(cast(x, b), c), cast(x, c));
                        let both_nan = c.is_float() && long.as_f64().is_nan() && short.as_f64().is_nan();
                        assert!(both_nan || long == short, "{x} ({a}) by {b} to {c}: {long}, not {short}");
                    }
                }
            }
        }
    }
}
