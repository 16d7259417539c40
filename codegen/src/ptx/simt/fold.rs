//! Evaluates ops on immediates. Returns `None` where the result depends on the device (approximations)
//! or is not worth knowing; never guesses.

use super::op::{Bin, Cmp, Round, Un};
use super::ty::{Num, Ty};

/// Sign- or zero-extends the low bits that `num` reads.
fn int(num: Num, bits: u64) -> i64 {
    match num {
        Num::U8 => i64::from(bits as u8),
        Num::S8 => i64::from(bits as i8),
        Num::U16 | Num::B16 => i64::from(bits as u16),
        Num::S16 => i64::from(bits as i16),
        Num::U32 | Num::B32 => i64::from(bits as u32),
        Num::S32 => i64::from(bits as i32),
        Num::U64 | Num::S64 | Num::B64 => bits as i64,
        Num::Pred => i64::from(bits & 1 != 0),
        Num::F16 | Num::BF16 | Num::F32 | Num::F64 => unreachable!("not an integer type"),
    }
}

fn truncate(ty: Ty, v: i64) -> u64 {
    match ty.bits() {
        64 => v as u64,
        n => v as u64 & ((1u64 << n) - 1),
    }
}

pub fn un(op: Un, num: Num, x: u64) -> Option<u64> {
    if num.is_float() {
        return match (op, num) {
            (Un::Neg, Num::F32) => Some(x ^ 0x8000_0000),
            (Un::Abs, Num::F32) => Some(x & 0x7fff_ffff),
            _ => None,
        };
    }
    let v = int(num, x);
    let ty = num.ty();
    match op {
        Un::Neg => Some(truncate(ty, v.wrapping_neg())),
        Un::Abs => Some(truncate(ty, v.wrapping_abs())),
        Un::Not => Some(truncate(ty, !v)),
        Un::Popc => Some(u64::from(x.count_ones())),
        Un::Clz => Some(u64::from(x.leading_zeros()) - (64 - ty.bits() as u64)),
        Un::Sqrt | Un::Rcp | Un::Ex2Approx | Un::Lg2Approx | Un::RcpApprox | Un::RsqrtApprox | Un::TanhApprox => None,
    }
}

fn float_bin(op: Bin, num: Num, x: u64, y: u64) -> Option<u64> {
    if num != Num::F32 {
        return None;
    }
    let (a, b) = (f32::from_bits(x as u32), f32::from_bits(y as u32));
    let r = match op {
        Bin::Add => a + b,
        Bin::Sub => a - b,
        Bin::Mul => a * b,
        Bin::Div => a / b,
        _ => return None,
    };
    // The device's NaN differs from the host's.
    (!r.is_nan()).then(|| u64::from(r.to_bits()))
}

pub fn bin(op: Bin, num: Num, x: u64, y: u64) -> Option<u64> {
    if num.is_float() {
        return float_bin(op, num, x, y);
    }
    let ty = num.ty();
    let (a, b) = (int(num, x), int(num, y));
    let (ua, ub) = (a as u64, b as u64);
    let bits = ty.bits() as u64;
    let v = match op {
        Bin::Add => a.wrapping_add(b),
        Bin::Sub => a.wrapping_sub(b),
        Bin::Mul => a.wrapping_mul(b),
        Bin::MulWide => a.wrapping_mul(b),
        Bin::MulHi => match num {
            Num::U32 | Num::S32 => a.wrapping_mul(b) >> 32,
            Num::U64 => ((u128::from(ua) * u128::from(ub)) >> 64) as i64,
            Num::S64 => ((i128::from(a) * i128::from(b)) >> 64) as i64,
            _ => return None,
        },
        Bin::Div if b == 0 => return None,
        Bin::Rem if b == 0 => return None,
        Bin::Div if num.is_signed() => a.wrapping_div(b),
        Bin::Div => (ua / ub) as i64,
        Bin::Rem if num.is_signed() => a.wrapping_rem(b),
        Bin::Rem => (ua % ub) as i64,
        Bin::Min if num == Num::U64 => ua.min(ub) as i64,
        Bin::Max if num == Num::U64 => ua.max(ub) as i64,
        Bin::Min => a.min(b),
        Bin::Max => a.max(b),
        Bin::And => a & b,
        Bin::Or => a | b,
        Bin::Xor => a ^ b,
        Bin::Shl => {
            let n = y & 0xffff_ffff;
            if n >= bits { 0 } else { a << n }
        }
        Bin::Shr => {
            let n = (y & 0xffff_ffff).min(63);
            if num.is_signed() {
                a >> n
            } else if n >= bits {
                0
            } else {
                (ua >> n) as i64
            }
        }
    };
    Some(truncate(if op == Bin::MulWide { Ty::B64 } else { ty }, v))
}

pub fn cmp(op: Cmp, num: Num, x: u64, y: u64) -> Option<bool> {
    if num.is_float() {
        if num != Num::F32 {
            return None;
        }
        let (a, b) = (f32::from_bits(x as u32), f32::from_bits(y as u32));
        return Some(match op {
            Cmp::Eq => a == b,
            Cmp::Ne => !a.is_nan() && !b.is_nan() && a != b,
            Cmp::Lt => a < b,
            Cmp::Le => a <= b,
            Cmp::Gt => a > b,
            Cmp::Ge => a >= b,
            Cmp::Neu => a != b,
            Cmp::Number => !a.is_nan() && !b.is_nan(),
            Cmp::IsNan => a.is_nan() || b.is_nan(),
        });
    }
    let (a, b) = (int(num, x), int(num, y));
    let order = if num == Num::U64 || num == Num::B64 { (a as u64).cmp(&(b as u64)) } else { a.cmp(&b) };
    Some(match op {
        Cmp::Eq => order.is_eq(),
        Cmp::Ne | Cmp::Neu => order.is_ne(),
        Cmp::Lt => order.is_lt(),
        Cmp::Le => order.is_le(),
        Cmp::Gt => order.is_gt(),
        Cmp::Ge => order.is_ge(),
        Cmp::Number => true,
        Cmp::IsNan => false,
    })
}

pub fn cvt(to: Num, from: Num, round: Round, x: u64) -> Option<u64> {
    if to.is_float() || from.is_float() {
        return match (to, from, round) {
            (Num::F32, Num::S32, Round::Rn) => Some(u64::from((x as u32 as i32 as f32).to_bits())),
            (Num::F32, Num::U32, Round::Rn) => Some(u64::from((x as u32 as f32).to_bits())),
            (Num::F32, Num::S64, Round::Rn) => Some(u64::from((x as i64 as f32).to_bits())),
            (Num::F32, Num::BF16, Round::Exact) => Some(x << 16),
            _ => None,
        };
    }
    let v = int(from, x);
    Some(truncate(to.ty(), int(to, v as u64)))
}
