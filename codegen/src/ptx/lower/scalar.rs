//! Scalar ops of tile IR on SIMT registers.
//!
//! f16 and bf16 are widened to f32, computed there and rounded once; integers below 32 bits are computed in 32 and
//! extended again; `index` goes through [`super::index`].

use super::cast;
use super::index;
use super::math::Steps;
use super::value::{self, Scalar};
use crate::ptx::simt::{Bin, Builder, Cmp, Num, Round, Ty, Un, Val};
use crate::ptx::target::Target;
use zellige_ir::numerics::math;
use zellige_ir::{BinaryOp, CmpOp, DType, UnaryOp};

/// The op is not defined on its operand's type.
pub struct Undefined;

type Result<T> = std::result::Result<T, Undefined>;

fn is_half(ty: DType) -> bool {
    matches!(ty, DType::F16 | DType::BF16)
}

/// `index` operands of ops that have no `index` form are computed in 64 bits.
fn wide(b: &mut Builder, x: Scalar) -> Val {
    match x {
        Scalar::Reg(v) => v,
        Scalar::Idx(i) => index::to_val(b, i, Ty::B64),
    }
}

fn full_index(v: Val) -> Scalar {
    Scalar::Idx(index::Idx::new(v, i64::MIN, i64::MAX, 1))
}

pub fn unary(b: &mut Builder, target: Target, op: UnaryOp, ty: DType, x: Scalar) -> Result<Scalar> {
    if let Scalar::Idx(i) = x {
        let zero = index::Idx::constant(0);
        return match op {
            UnaryOp::Neg => Ok(Scalar::Idx(index::sub(b, zero, i))),
            UnaryOp::Abs => {
                let minus = index::sub(b, zero, i);
                Ok(Scalar::Idx(index::max(b, i, minus)))
            }
            UnaryOp::Not | UnaryOp::Popcount | UnaryOp::Clz => {
                let v = index::to_val(b, i, Ty::B64);
                let r = int_unary(b, op, DType::I64, v)?;
                Ok(full_index(r))
            }
            _ => Err(Undefined),
        };
    }
    let v = wide(b, x);
    let r = match ty {
        DType::Bool if op == UnaryOp::Not => b.not(v),
        DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Index => int_unary(b, op, ty, v)?,
        DType::F16 | DType::BF16 => half_unary(b, target, op, ty, v)?,
        DType::F32 => float_unary(b, op, v)?,
        DType::F64 => double_unary(b, op, v)?,
        DType::Bool | DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 | DType::E8M0 => return Err(Undefined),
    };
    Ok(Scalar::Reg(r))
}

fn int_unary(b: &mut Builder, op: UnaryOp, ty: DType, v: Val) -> Result<Val> {
    let bits = ty.bits() as i64;
    let num = value::num(ty);
    let class = num.ty();
    match op {
        UnaryOp::Neg => {
            let r = b.un(Un::Neg, index::signed(class), v);
            Ok(cast::extend(b, ty, r))
        }
        UnaryOp::Abs if !ty.is_signed_int() => Ok(v),
        UnaryOp::Abs => {
            let r = b.un(Un::Abs, index::signed(class), v);
            Ok(cast::extend(b, ty, r))
        }
        UnaryOp::Not => {
            let r = b.un(Un::Not, if class == Ty::B64 { Num::B64 } else { Num::B32 }, v);
            Ok(cast::extend(b, ty, r))
        }
        UnaryOp::Popcount | UnaryOp::Clz => {
            // Only the type's own bits count.
            let v = match bits {
                8 | 16 => b.bfe(v, 0, bits as u32),
                _ => v,
            };
            let r = if op == UnaryOp::Popcount {
                b.un(Un::Popc, if class == Ty::B64 { Num::B64 } else { Num::B32 }, v)
            } else {
                let n = b.un(Un::Clz, if class == Ty::B64 { Num::B64 } else { Num::B32 }, v);
                let less = b.c32(if bits < 32 { bits - 32 } else { 0 });
                b.add(Num::S32, n, less)
            };
            Ok(if class == Ty::B64 { b.cvt(Num::U64, Num::U32, Round::Exact, r) } else { r })
        }
        _ => Err(Undefined),
    }
}

fn half_unary(b: &mut Builder, target: Target, op: UnaryOp, ty: DType, v: Val) -> Result<Val> {
    match op {
        UnaryOp::Neg | UnaryOp::Abs => {
            // On the bits: an arithmetic instruction may change a NaN.
            let zero = b.zero(Ty::B16);
            let word = b.pack(v, zero);
            let (f, mask) = if op == UnaryOp::Neg { (Bin::Xor, b.c32(0x8000)) } else { (Bin::And, b.c32(0x7fff)) };
            let r = b.bin(f, Num::B32, word, mask);
            Ok(b.unpack(r).0)
        }
        UnaryOp::IsNan | UnaryOp::IsFinite => {
            let x = cast::widen(b, target, ty, v);
            float_unary(b, op, x)
        }
        _ => {
            let x = cast::widen(b, target, ty, v);
            let r = float_unary(b, op, x)?;
            Ok(cast::narrow(b, target, ty, r))
        }
    }
}

fn float_unary(b: &mut Builder, op: UnaryOp, x: Val) -> Result<Val> {
    let round = |b: &mut Builder, r| Ok(b.cvt(Num::F32, Num::F32, r, x));
    match op {
        UnaryOp::Neg => Ok(b.un(Un::Neg, Num::F32, x)),
        UnaryOp::Abs => Ok(b.un(Un::Abs, Num::F32, x)),
        UnaryOp::Exp => Ok(math::exp(&mut Steps(b), x)),
        UnaryOp::Exp2 => Ok(math::exp2(&mut Steps(b), x)),
        UnaryOp::Log => Ok(math::log(&mut Steps(b), x)),
        UnaryOp::Log2 => Ok(math::log2(&mut Steps(b), x)),
        UnaryOp::Log1p => Ok(math::log1p(&mut Steps(b), x)),
        UnaryOp::Sin => Ok(math::sin(&mut Steps(b), x)),
        UnaryOp::Cos => Ok(math::cos(&mut Steps(b), x)),
        UnaryOp::Tanh => Ok(math::tanh(&mut Steps(b), x)),
        UnaryOp::Sqrt => Ok(b.un(Un::Sqrt, Num::F32, x)),
        UnaryOp::Rsqrt => Ok(math::rsqrt(&mut Steps(b), x)),
        UnaryOp::Rcp => Ok(b.un(Un::Rcp, Num::F32, x)),
        UnaryOp::Floor => round(b, Round::Rmi),
        UnaryOp::Ceil => round(b, Round::Rpi),
        UnaryOp::Trunc => round(b, Round::Rzi),
        UnaryOp::Round => round(b, Round::Rni),
        UnaryOp::FastExp2 => Ok(b.un(Un::Ex2Approx, Num::F32, x)),
        UnaryOp::FastLog2 => Ok(b.un(Un::Lg2Approx, Num::F32, x)),
        UnaryOp::FastRcp => Ok(b.un(Un::RcpApprox, Num::F32, x)),
        UnaryOp::FastRsqrt => Ok(b.un(Un::RsqrtApprox, Num::F32, x)),
        UnaryOp::FastTanh => Ok(b.un(Un::TanhApprox, Num::F32, x)),
        UnaryOp::IsNan => Ok(b.setp(Cmp::IsNan, Num::F32, x, x)),
        UnaryOp::IsFinite => {
            let magnitude = b.un(Un::Abs, Num::F32, x);
            let inf = b.f32(f32::INFINITY);
            Ok(b.setp(Cmp::Lt, Num::F32, magnitude, inf))
        }
        UnaryOp::Not | UnaryOp::Popcount | UnaryOp::Clz => Err(Undefined),
    }
}

fn double_unary(b: &mut Builder, op: UnaryOp, x: Val) -> Result<Val> {
    let round = |b: &mut Builder, r| Ok(b.cvt(Num::F64, Num::F64, r, x));
    match op {
        UnaryOp::Neg => Ok(b.un(Un::Neg, Num::F64, x)),
        UnaryOp::Abs => Ok(b.un(Un::Abs, Num::F64, x)),
        UnaryOp::Sqrt => Ok(b.un(Un::Sqrt, Num::F64, x)),
        UnaryOp::Rcp | UnaryOp::FastRcp => Ok(b.un(Un::Rcp, Num::F64, x)),
        UnaryOp::Rsqrt | UnaryOp::FastRsqrt => {
            let root = b.un(Un::Sqrt, Num::F64, x);
            Ok(b.un(Un::Rcp, Num::F64, root))
        }
        UnaryOp::Floor => round(b, Round::Rmi),
        UnaryOp::Ceil => round(b, Round::Rpi),
        UnaryOp::Trunc => round(b, Round::Rzi),
        UnaryOp::Round => round(b, Round::Rni),
        UnaryOp::IsNan => Ok(b.setp(Cmp::IsNan, Num::F64, x, x)),
        UnaryOp::IsFinite => {
            let magnitude = b.un(Un::Abs, Num::F64, x);
            let inf = b.f64(f64::INFINITY);
            Ok(b.setp(Cmp::Lt, Num::F64, magnitude, inf))
        }
        // f64 has no elementary functions on the device.
        UnaryOp::Exp
        | UnaryOp::Exp2
        | UnaryOp::Log
        | UnaryOp::Log2
        | UnaryOp::Log1p
        | UnaryOp::Sin
        | UnaryOp::Cos
        | UnaryOp::Tanh
        | UnaryOp::FastExp2
        | UnaryOp::FastLog2
        | UnaryOp::FastTanh
        | UnaryOp::Not
        | UnaryOp::Popcount
        | UnaryOp::Clz => Err(Undefined),
    }
}

pub fn binary(b: &mut Builder, target: Target, op: BinaryOp, ty: DType, x: Scalar, y: Scalar) -> Result<Scalar> {
    if let (Scalar::Idx(i), Scalar::Idx(j)) = (x, y) {
        let r = match op {
            BinaryOp::Add => index::add(b, i, j),
            BinaryOp::Sub => index::sub(b, i, j),
            BinaryOp::Mul => index::mul(b, i, j),
            BinaryOp::Div => index::div(b, i, j),
            BinaryOp::Rem => index::rem(b, i, j),
            BinaryOp::CeilDiv => index::ceil_div(b, i, j),
            BinaryOp::Min => index::min(b, i, j),
            BinaryOp::Max => index::max(b, i, j),
            BinaryOp::And => index::bitwise(b, Bin::And, i, j),
            BinaryOp::Or => index::bitwise(b, Bin::Or, i, j),
            BinaryOp::Xor => index::bitwise(b, Bin::Xor, i, j),
            BinaryOp::Shl => index::shift(b, true, i, j),
            BinaryOp::Shr => index::shift(b, false, i, j),
            BinaryOp::MulHi | BinaryOp::Pow | BinaryOp::CopySign => return Err(Undefined),
        };
        return Ok(Scalar::Idx(r));
    }
    let (x, y) = (wide(b, x), wide(b, y));
    let r = match ty {
        DType::Bool => {
            let f = match op {
                BinaryOp::And => Bin::And,
                BinaryOp::Or => Bin::Or,
                BinaryOp::Xor => Bin::Xor,
                _ => return Err(Undefined),
            };
            b.bin(f, Num::Pred, x, y)
        }
        DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Index => int_binary(b, op, ty, x, y)?,
        DType::F16 | DType::BF16 if op == BinaryOp::CopySign => {
            let zero = b.zero(Ty::B16);
            let (xw, yw) = (b.pack(x, zero), b.pack(y, zero));
            let r = copy_sign(b, xw, yw, 0x7fff, 0x8000);
            b.unpack(r).0
        }
        DType::F16 | DType::BF16 => {
            let (xw, yw) = (cast::widen(b, target, ty, x), cast::widen(b, target, ty, y));
            let r = float_binary(b, op, Num::F32, xw, yw)?;
            cast::narrow(b, target, ty, r)
        }
        DType::F32 if op == BinaryOp::CopySign => {
            let (xw, yw) = (b.bits(Ty::B32, x), b.bits(Ty::B32, y));
            let r = copy_sign(b, xw, yw, 0x7fff_ffff, 0x8000_0000);
            b.bits(Ty::F32, r)
        }
        DType::F32 if op == BinaryOp::Pow => math::pow(&mut Steps(b), x, y),
        DType::F32 => float_binary(b, op, Num::F32, x, y)?,
        DType::F64 if op == BinaryOp::CopySign => {
            let (xw, yw) = (b.bits(Ty::B64, x), b.bits(Ty::B64, y));
            let (keep, sign) = (b.c64(i64::MAX), b.c64(i64::MIN));
            let m = b.bin(Bin::And, Num::B64, xw, keep);
            let s = b.bin(Bin::And, Num::B64, yw, sign);
            let r = b.bin(Bin::Or, Num::B64, m, s);
            b.bits(Ty::F64, r)
        }
        DType::F64 => float_binary(b, op, Num::F64, x, y)?,
        DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 | DType::E8M0 => return Err(Undefined),
    };
    Ok(Scalar::Reg(r))
}

fn copy_sign(b: &mut Builder, x: Val, y: Val, keep: i64, sign: i64) -> Val {
    let (keep, sign) = (b.c32(keep), b.c32(sign));
    let m = b.bin(Bin::And, Num::B32, x, keep);
    let s = b.bin(Bin::And, Num::B32, y, sign);
    b.bin(Bin::Or, Num::B32, m, s)
}

fn int_binary(b: &mut Builder, op: BinaryOp, ty: DType, x: Val, y: Val) -> Result<Val> {
    let num = match (ty.bits() == 64, ty.is_signed_int()) {
        (true, true) => Num::S64,
        (true, false) => Num::U64,
        (false, true) => Num::S32,
        (false, false) => Num::U32,
    };
    let r = match op {
        BinaryOp::Add => b.add(num, x, y),
        BinaryOp::Sub => b.sub(num, x, y),
        BinaryOp::Mul => b.mul(num, x, y),
        BinaryOp::Div => b.bin(Bin::Div, num, x, y),
        BinaryOp::Rem => b.bin(Bin::Rem, num, x, y),
        BinaryOp::Min => b.bin(Bin::Min, num, x, y),
        BinaryOp::Max => b.bin(Bin::Max, num, x, y),
        BinaryOp::And => b.bin(Bin::And, num, x, y),
        BinaryOp::Or => b.bin(Bin::Or, num, x, y),
        BinaryOp::Xor => b.bin(Bin::Xor, num, x, y),
        BinaryOp::Shl | BinaryOp::Shr => {
            let amount = if b.ty(y) == Ty::B64 { b.cvt(Num::U32, Num::U64, Round::Exact, y) } else { y };
            let mask = b.c32(ty.bits() as i64 - 1);
            let amount = b.bin(Bin::And, Num::B32, amount, mask);
            b.bin(if op == BinaryOp::Shl { Bin::Shl } else { Bin::Shr }, num, x, amount)
        }
        BinaryOp::MulHi if ty == DType::U32 => b.bin(Bin::MulHi, Num::U32, x, y),
        BinaryOp::MulHi | BinaryOp::CeilDiv | BinaryOp::Pow | BinaryOp::CopySign => return Err(Undefined),
    };
    Ok(cast::extend(b, ty, r))
}

fn float_binary(b: &mut Builder, op: BinaryOp, num: Num, x: Val, y: Val) -> Result<Val> {
    let f = match op {
        BinaryOp::Add => Bin::Add,
        BinaryOp::Sub => Bin::Sub,
        BinaryOp::Mul => Bin::Mul,
        BinaryOp::Div => Bin::Div,
        BinaryOp::Min => Bin::Min,
        BinaryOp::Max => Bin::Max,
        BinaryOp::Rem
        | BinaryOp::CeilDiv
        | BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::Xor
        | BinaryOp::Shl
        | BinaryOp::Shr
        | BinaryOp::MulHi
        | BinaryOp::Pow
        | BinaryOp::CopySign => return Err(Undefined),
    };
    Ok(b.bin(f, num, x, y))
}

/// `x * y + z`, rounded once to f32 (or f64), then to the type.
pub fn fma(b: &mut Builder, target: Target, ty: DType, x: Val, y: Val, z: Val) -> Result<Val> {
    match ty {
        DType::F32 => Ok(b.mad(Num::F32, x, y, z)),
        DType::F64 => Ok(b.mad(Num::F64, x, y, z)),
        _ if is_half(ty) => {
            let [x, y, z] = [x, y, z].map(|v| cast::widen(b, target, ty, v));
            let r = b.mad(Num::F32, x, y, z);
            Ok(cast::narrow(b, target, ty, r))
        }
        _ => Err(Undefined),
    }
}

pub fn compare(b: &mut Builder, target: Target, op: CmpOp, ty: DType, x: Scalar, y: Scalar) -> Result<Val> {
    if let (Scalar::Idx(i), Scalar::Idx(j)) = (x, y) {
        return Ok(index::compare(b, op, i, j));
    }
    let (x, y) = (wide(b, x), wide(b, y));
    if ty == DType::Bool {
        let (one, zero) = (b.c32(1), b.c32(0));
        let (x, y) = (b.selp(x, one, zero), b.selp(y, one, zero));
        return Ok(b.setp(cmp(op, false), Num::U32, x, y));
    }
    if ty.is_storage_only() {
        return Err(Undefined);
    }
    if is_half(ty) {
        let (x, y) = (cast::widen(b, target, ty, x), cast::widen(b, target, ty, y));
        return Ok(b.setp(cmp(op, true), Num::F32, x, y));
    }
    let num = match value::num(ty) {
        Num::S8 | Num::S16 => Num::S32,
        Num::U8 | Num::U16 => Num::U32,
        n => n,
    };
    Ok(b.setp(cmp(op, ty.is_float()), num, x, y))
}

fn cmp(op: CmpOp, float: bool) -> Cmp {
    match op {
        CmpOp::Eq => Cmp::Eq,
        CmpOp::Ne if float => Cmp::Neu,
        CmpOp::Ne => Cmp::Ne,
        CmpOp::Lt => Cmp::Lt,
        CmpOp::Le => Cmp::Le,
        CmpOp::Gt => Cmp::Gt,
        CmpOp::Ge => Cmp::Ge,
    }
}
