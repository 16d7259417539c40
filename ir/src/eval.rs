//! The meaning of the scalar ops on constants.
//!
//! Used by the interpreter, the host-side evaluation of preludes and constant folding. Floats narrower
//! than f32 are widened, computed in f32 and rounded once; integers wrap; `index` must not overflow.
//! Depends on [`numerics`](crate::numerics) and the op enums only.

use crate::DType;
use crate::numerics::{Const, eval_index, math};
use crate::op::{AtomicOp, BinaryOp, CmpOp, UnaryOp};

/// Why a scalar op has no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EvalError {
    #[error("division by zero")]
    DivisionByZero,
    #[error("an `index` computation overflows")]
    IndexOverflow,
    /// The op is not defined on operands of this type; the verifier rejects it.
    #[error("the operation is not defined on this type")]
    Undefined,
}

/// `op x`.
pub fn unary(op: UnaryOp, x: Const) -> Result<Const, EvalError> {
    use UnaryOp::*;
    let ty = x.dtype();
    if ty == DType::Bool {
        return if op == Not { Ok(Const::from_bool(!x.as_bool())) } else { Err(EvalError::Undefined) };
    }
    if ty.is_int() {
        return int_unary(op, x);
    }
    if !ty.is_arithmetic() {
        return Err(EvalError::Undefined);
    }
    let sign = 1u64 << (ty.bits() - 1);
    match op {
        Neg => Ok(Const::from_bits(ty, x.bits() ^ sign)),
        Abs => Ok(Const::from_bits(ty, x.bits() & !sign)),
        IsNan => Ok(Const::from_bool(x.as_f64().is_nan())),
        IsFinite => Ok(Const::from_bool(x.as_f64().is_finite())),
        Not | Popcount | Clz => Err(EvalError::Undefined),
        Exp | Exp2 | Log | Log2 | Log1p | Sin | Cos | Tanh | Sqrt | Rsqrt | Rcp | Floor | Ceil | Trunc | Round
        | FastExp2 | FastLog2 | FastRcp | FastRsqrt | FastTanh => Ok(if ty == DType::F64 {
            Const::from_f64(DType::F64, f64_function(op, x.as_f64()))
        } else {
            from_f32(ty, f32_function(op, f32_of(x)))
        }),
    }
}

fn int_unary(op: UnaryOp, x: Const) -> Result<Const, EvalError> {
    use UnaryOp::*;
    let ty = x.dtype();
    let width = ty.bits();
    let low = x.bits() & (u64::MAX >> (64 - width));
    let v = x.as_i64();
    let bits = match op {
        Neg | Abs if ty == DType::Index => {
            let r = if op == Neg { v.checked_neg() } else { v.checked_abs() };
            r.ok_or(EvalError::IndexOverflow)? as u64
        }
        Neg => x.bits().wrapping_neg(),
        Abs if ty.is_signed_int() => v.wrapping_abs() as u64,
        Abs => x.bits(),
        Not => !x.bits(),
        Popcount => u64::from(low.count_ones()),
        Clz => u64::from(low.leading_zeros()) - (64 - width as u64),
        Exp | Exp2 | Log | Log2 | Log1p | Sin | Cos | Tanh | Sqrt | Rsqrt | Rcp | Floor | Ceil | Trunc | Round
        | FastExp2 | FastLog2 | FastRcp | FastRsqrt | FastTanh | IsNan | IsFinite => return Err(EvalError::Undefined),
    };
    Ok(Const::from_bits(ty, bits))
}

/// `op x, y`.
pub fn binary(op: BinaryOp, x: Const, y: Const) -> Result<Const, EvalError> {
    use BinaryOp::*;
    let ty = x.dtype();
    if y.dtype() != ty {
        return Err(EvalError::Undefined);
    }
    if ty == DType::Index {
        let (a, b) = (x.as_i64(), y.as_i64());
        return match (op, eval_index(op, a, b)) {
            (_, Some(v)) => Ok(Const::index(v)),
            (Div | Rem | CeilDiv, None) if b == 0 => Err(EvalError::DivisionByZero),
            (MulHi | Pow | CopySign, None) => Err(EvalError::Undefined),
            (_, None) => Err(EvalError::IndexOverflow),
        };
    }
    if ty == DType::Bool {
        let bits = match op {
            And => x.bits() & y.bits(),
            Or => x.bits() | y.bits(),
            Xor => x.bits() ^ y.bits(),
            Add | Sub | Mul | Div | Rem | CeilDiv | Min | Max | Shl | Shr | MulHi | Pow | CopySign => {
                return Err(EvalError::Undefined);
            }
        };
        return Ok(Const::from_bits(ty, bits));
    }
    if ty.is_int() {
        return int_binary(op, x, y);
    }
    if !ty.is_arithmetic() {
        return Err(EvalError::Undefined);
    }
    if op == CopySign {
        let sign = 1u64 << (ty.bits() - 1);
        return Ok(Const::from_bits(ty, (x.bits() & !sign) | (y.bits() & sign)));
    }
    if ty == DType::F64 {
        let (a, b) = (x.as_f64(), y.as_f64());
        let v = match op {
            Add => a + b,
            Sub => a - b,
            Mul => a * b,
            Div => a / b,
            Min => number_min(x, y).as_f64(),
            Max => number_max(x, y).as_f64(),
            Rem | CeilDiv | And | Or | Xor | Shl | Shr | MulHi | Pow | CopySign => return Err(EvalError::Undefined),
        };
        return Ok(Const::from_f64(DType::F64, v));
    }
    let (a, b) = (f32_of(x), f32_of(y));
    let v = match op {
        Add => a + b,
        Sub => a - b,
        Mul => a * b,
        Div => a / b,
        Min => return Ok(number_min(x, y)),
        Max => return Ok(number_max(x, y)),
        Pow if ty == DType::F32 => math::pow(&mut math::Scalar, a, b),
        Rem | CeilDiv | And | Or | Xor | Shl | Shr | MulHi | Pow | CopySign => return Err(EvalError::Undefined),
    };
    Ok(from_f32(ty, v))
}

fn int_binary(op: BinaryOp, x: Const, y: Const) -> Result<Const, EvalError> {
    use BinaryOp::*;
    let ty = x.dtype();
    let (a, b) = (x.bits(), y.bits());
    let (sa, sb) = (x.as_i64(), y.as_i64());
    let signed = ty.is_signed_int();
    let amount = (b as u32) % ty.bits() as u32;
    let bits = match op {
        Add => a.wrapping_add(b),
        Sub => a.wrapping_sub(b),
        Mul => a.wrapping_mul(b),
        Div | Rem if b == 0 => return Err(EvalError::DivisionByZero),
        Div if signed => sa.wrapping_div(sb) as u64,
        Div => a / b,
        Rem if signed => sa.wrapping_rem(sb) as u64,
        Rem => a % b,
        Min if signed => sa.min(sb) as u64,
        Min => a.min(b),
        Max if signed => sa.max(sb) as u64,
        Max => a.max(b),
        And => a & b,
        Or => a | b,
        Xor => a ^ b,
        Shl => a << amount,
        Shr if signed => (sa >> amount) as u64,
        Shr => a >> amount,
        MulHi if ty == DType::U32 => (a * b) >> 32,
        CeilDiv | MulHi | Pow | CopySign => return Err(EvalError::Undefined),
    };
    Ok(Const::from_bits(ty, bits))
}

/// `x * y + z`, rounded once (to f32 first if the type is narrower).
pub fn fma(x: Const, y: Const, z: Const) -> Result<Const, EvalError> {
    let ty = x.dtype();
    if y.dtype() != ty || z.dtype() != ty || !ty.is_float() || !ty.is_arithmetic() {
        return Err(EvalError::Undefined);
    }
    Ok(if ty == DType::F64 {
        Const::from_f64(DType::F64, x.as_f64().mul_add(y.as_f64(), z.as_f64()))
    } else {
        from_f32(ty, f32_of(x).mul_add(f32_of(y), f32_of(z)))
    })
}

/// `x op y`. Ordered on floats: false if an operand is NaN, except `ne`.
pub fn cmp(op: CmpOp, x: Const, y: Const) -> Result<bool, EvalError> {
    let ty = x.dtype();
    if y.dtype() != ty || ty.is_storage_only() {
        return Err(EvalError::Undefined);
    }
    let ordering = if ty.is_float() {
        x.as_f64().partial_cmp(&y.as_f64())
    } else if ty.is_signed_int() {
        Some(x.as_i64().cmp(&y.as_i64()))
    } else {
        Some(x.bits().cmp(&y.bits()))
    };
    Ok(match op {
        CmpOp::Eq => ordering.is_some_and(|o| o.is_eq()),
        CmpOp::Ne => !ordering.is_some_and(|o| o.is_eq()),
        CmpOp::Lt => ordering.is_some_and(|o| o.is_lt()),
        CmpOp::Le => ordering.is_some_and(|o| o.is_le()),
        CmpOp::Gt => ordering.is_some_and(|o| o.is_gt()),
        CmpOp::Ge => ordering.is_some_and(|o| o.is_ge()),
    })
}

/// What an atomic leaves in memory.
pub fn atomic(op: AtomicOp, old: Const, value: Const) -> Result<Const, EvalError> {
    match op {
        AtomicOp::Add => binary(BinaryOp::Add, old, value),
        AtomicOp::Min => binary(BinaryOp::Min, old, value),
        AtomicOp::Max => binary(BinaryOp::Max, old, value),
        AtomicOp::And => binary(BinaryOp::And, old, value),
        AtomicOp::Or => binary(BinaryOp::Or, old, value),
        AtomicOp::Exchange => Ok(value),
    }
}

/// IEEE 754-2019 minimumNumber.
fn number_min(x: Const, y: Const) -> Const {
    let (a, b) = (x.as_f64(), y.as_f64());
    let x_first = b.is_nan() || a < b || (a == b && a.is_sign_negative());
    if x_first { x } else { y }
}

/// IEEE 754-2019 maximumNumber.
fn number_max(x: Const, y: Const) -> Const {
    let (a, b) = (x.as_f64(), y.as_f64());
    let x_first = b.is_nan() || a > b || (a == b && a.is_sign_positive());
    if x_first { x } else { y }
}

/// The functions that need more than one IEEE operation come from [`math`]; the fast variants are exact here.
fn f32_function(op: UnaryOp, x: f32) -> f32 {
    use UnaryOp::*;
    let a = &mut math::Scalar;
    match op {
        Exp => math::exp(a, x),
        Exp2 | FastExp2 => math::exp2(a, x),
        Log => math::log(a, x),
        Log2 | FastLog2 => math::log2(a, x),
        Log1p => math::log1p(a, x),
        Sin => math::sin(a, x),
        Cos => math::cos(a, x),
        Tanh | FastTanh => math::tanh(a, x),
        Sqrt => x.sqrt(),
        Rsqrt | FastRsqrt => math::rsqrt(a, x),
        Rcp | FastRcp => math::rcp(a, x),
        Floor => x.floor(),
        Ceil => x.ceil(),
        Trunc => x.trunc(),
        Round => x.round_ties_even(),
        Neg | Abs | Not | Popcount | Clz | IsNan | IsFinite => unreachable!("handled on the bits"),
    }
}

/// f64 has no bit-exact contract beyond IEEE operations: elementary functions are the platform's.
fn f64_function(op: UnaryOp, x: f64) -> f64 {
    use UnaryOp::*;
    match op {
        Exp => x.exp(),
        Exp2 | FastExp2 => x.exp2(),
        Log => x.ln(),
        Log2 | FastLog2 => x.log2(),
        Log1p => x.ln_1p(),
        Sin => x.sin(),
        Cos => x.cos(),
        Tanh | FastTanh => x.tanh(),
        Sqrt => x.sqrt(),
        Rsqrt | FastRsqrt => 1.0 / x.sqrt(),
        Rcp | FastRcp => 1.0 / x,
        Floor => x.floor(),
        Ceil => x.ceil(),
        Trunc => x.trunc(),
        Round => x.round_ties_even(),
        Neg | Abs | Not | Popcount | Clz | IsNan | IsFinite => unreachable!("handled on the bits"),
    }
}

/// The value of a float of at most 32 bits.
fn f32_of(c: Const) -> f32 {
    c.as_f64() as f32
}

/// An f32 rounded to a type of at most 32 bits.
fn from_f32(ty: DType, x: f32) -> Const {
    Const::from_f64(ty, f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares all ops on all pairs of interesting values with the host's own arithmetic.
    macro_rules! check_int {
        ($t:ident, $ty:expr) => {
            let values: Vec<$t> = (0..$t::BITS)
                .flat_map(|i| [1 << i, ((1 as $t) << i).wrapping_sub(1), !(1 << i)])
                .chain([0, 3, 100, $t::MIN, $t::MAX, $t::MAX / 3])
                .collect();
            let wrap = |v: $t| Const::from_i64($ty, v as i64);
            for &x in &values {
                for op in UnaryOp::ALL {
                    let expect = match op {
                        UnaryOp::Neg => Some(x.wrapping_neg()),
                        UnaryOp::Abs => Some(if x < 0 as $t { x.wrapping_neg() } else { x }),
                        UnaryOp::Not => Some(!x),
                        UnaryOp::Popcount => Some(x.count_ones() as $t),
                        UnaryOp::Clz => Some(x.leading_zeros() as $t),
                        _ => None,
                    };
                    assert_eq!(unary(*op, wrap(x)).ok(), expect.map(wrap), "{op} {x}");
                }
                for &y in &values {
                    for &op in BinaryOp::ALL {
                        let expect = match op {
                            BinaryOp::Add => Some(x.wrapping_add(y)),
                            BinaryOp::Sub => Some(x.wrapping_sub(y)),
                            BinaryOp::Mul => Some(x.wrapping_mul(y)),
                            BinaryOp::Div if y != 0 => Some(x.wrapping_div(y)),
                            BinaryOp::Rem if y != 0 => Some(x.wrapping_rem(y)),
                            BinaryOp::Min => Some(x.min(y)),
                            BinaryOp::Max => Some(x.max(y)),
                            BinaryOp::And => Some(x & y),
                            BinaryOp::Or => Some(x | y),
                            BinaryOp::Xor => Some(x ^ y),
                            BinaryOp::Shl => Some(x.wrapping_shl(y as u32)),
                            BinaryOp::Shr => Some(x.wrapping_shr(y as u32)),
                            BinaryOp::MulHi if $ty == DType::U32 => Some(((x as u64 * y as u64) >> 32) as $t),
                            _ => None,
                        };
                        assert_eq!(binary(op, wrap(x), wrap(y)).ok(), expect.map(wrap), "{x} {op} {y}");
                    }
                    for (op, expect) in [
                        (CmpOp::Eq, x == y),
                        (CmpOp::Ne, x != y),
                        (CmpOp::Lt, x < y),
                        (CmpOp::Le, x <= y),
                        (CmpOp::Gt, x > y),
                        (CmpOp::Ge, x >= y),
                    ] {
                        assert_eq!(cmp(op, wrap(x), wrap(y)), Ok(expect), "{x} {op} {y}");
                    }
                }
            }
        };
    }

    #[test]
    fn integers_are_the_hosts() {
        check_int!(i8, DType::I8);
        check_int!(i16, DType::I16);
        check_int!(i32, DType::I32);
        check_int!(i64, DType::I64);
        check_int!(u8, DType::U8);
        check_int!(u16, DType::U16);
        check_int!(u32, DType::U32);
        check_int!(u64, DType::U64);
    }

    #[test]
    fn floats() {
        let f = |v: f64| Const::from_f64(DType::F32, v);
        let nan = f(f64::NAN);
        for (op, x, y, expect) in [
            (BinaryOp::Min, f(0.0), f(-0.0), f(-0.0)),
            (BinaryOp::Max, f(-0.0), f(0.0), f(0.0)),
            (BinaryOp::Min, nan, f(1.0), f(1.0)),
            (BinaryOp::Max, f(1.0), nan, f(1.0)),
            (BinaryOp::Div, f(1.0), f(0.0), f(f64::INFINITY)),
            (BinaryOp::CopySign, f(3.0), f(-0.0), f(-3.0)),
        ] {
            assert_eq!(binary(op, x, y), Ok(expect), "{x} {op} {y}");
        }
        assert_eq!(cmp(CmpOp::Ne, nan, nan), Ok(true));
        assert_eq!(cmp(CmpOp::Le, nan, nan), Ok(false));
        assert_eq!(unary(UnaryOp::IsNan, nan), Ok(Const::from_bool(true)));
        assert_eq!(unary(UnaryOp::Neg, f(0.0)), Ok(f(-0.0)));
        assert_eq!(unary(UnaryOp::Round, f(2.5)), Ok(f(2.0)));
        // Narrow floats: computed in f32, rounded once.
        let b = |v: f64| Const::from_f64(DType::BF16, v);
        assert_eq!(binary(BinaryOp::Add, b(256.0), b(1.0)), Ok(b(256.0)));
        assert_eq!(fma(b(16.0), b(16.0), b(1.0)), Ok(b(256.0)));
        assert_eq!(fma(f(4097.0), f(4097.0), f(-16785408.0)), Ok(f(4097.0 * 4097.0 - 16785408.0)));
        assert_eq!(unary(UnaryOp::Popcount, f(1.0)), Err(EvalError::Undefined));
        assert_eq!(binary(BinaryOp::Add, f(1.0), b(1.0)), Err(EvalError::Undefined));
    }

    #[test]
    fn index_arithmetic_does_not_wrap() {
        let i = Const::index;
        assert_eq!(binary(BinaryOp::Add, i(i64::MAX), i(1)), Err(EvalError::IndexOverflow));
        assert_eq!(binary(BinaryOp::Rem, i(-3), i(8)), Ok(i(5)));
        assert_eq!(binary(BinaryOp::Div, i(1), i(0)), Err(EvalError::DivisionByZero));
        assert_eq!(unary(UnaryOp::Neg, i(i64::MIN)), Err(EvalError::IndexOverflow));
    }
}
