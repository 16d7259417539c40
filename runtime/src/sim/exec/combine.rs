//! Values of atomics and bulk reductions: one operation on two values of a type.

use half::{bf16, f16};

use super::float::{canonical, max_f32, min_f32};
use crate::sim::decode::op::{AtomOp, AtomTy};

fn each_half(a: u64, b: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    let lo = f(a as u16, b as u16);
    let hi = f((a >> 16) as u16, (b >> 16) as u16);
    u64::from(lo) | u64::from(hi) << 16
}

fn f16_op(op: AtomOp, a: u16, b: u16) -> u16 {
    let (x, y) = (f16::from_bits(a).to_f32(), f16::from_bits(b).to_f32());
    narrow(float_op(op, x, y), |v| f16::from_f32(v).to_bits())
}

fn bf16_op(op: AtomOp, a: u16, b: u16) -> u16 {
    let (x, y) = (bf16::from_bits(a).to_f32(), bf16::from_bits(b).to_f32());
    narrow(float_op(op, x, y), |v| bf16::from_f32(v).to_bits())
}

fn narrow(v: f32, f: impl Fn(f32) -> u16) -> u16 {
    if v.is_nan() { 0x7FFF } else { f(v) }
}

fn float_op(op: AtomOp, x: f32, y: f32) -> f32 {
    match op {
        AtomOp::Min => min_f32(x, y, false),
        AtomOp::Max => max_f32(x, y, false),
        AtomOp::Exch => y,
        AtomOp::Add | AtomOp::And | AtomOp::Or | AtomOp::Xor | AtomOp::Cas | AtomOp::Inc | AtomOp::Dec => x + y,
    }
}

/// The value an atomic leaves: `old` is in memory, `b` the operand, `new` the second operand of a compare-and-swap.
pub fn combine(op: AtomOp, ty: AtomTy, old: u64, b: u64, new: u64) -> u64 {
    if op == AtomOp::Exch {
        return b;
    }
    if op == AtomOp::Cas {
        return if old == b { new } else { old };
    }
    match ty {
        AtomTy::F32 => u64::from(canonical(float_op(op, f32::from_bits(old as u32), f32::from_bits(b as u32)))),
        AtomTy::F64 => {
            let (x, y) = (f64::from_bits(old), f64::from_bits(b));
            match op {
                AtomOp::Min => x.min(y),
                AtomOp::Max => x.max(y),
                _ => x + y,
            }
            .to_bits()
        }
        AtomTy::F16 => u64::from(f16_op(op, old as u16, b as u16)),
        AtomTy::Bf16 => u64::from(bf16_op(op, old as u16, b as u16)),
        AtomTy::F16x2 => each_half(old, b, |x, y| f16_op(op, x, y)),
        AtomTy::Bf16x2 => each_half(old, b, |x, y| bf16_op(op, x, y)),
        AtomTy::S32 => int_op(op, i64::from(old as i32), i64::from(b as i32)) as u32 as u64,
        AtomTy::S64 => int_op(op, old as i64, b as i64) as u64,
        AtomTy::U32 => {
            let (x, y) = (old as u32, b as u32);
            u64::from(match op {
                AtomOp::Add => x.wrapping_add(y),
                AtomOp::Inc => {
                    if x >= y {
                        0
                    } else {
                        x + 1
                    }
                }
                AtomOp::Dec => {
                    if x == 0 || x > y {
                        y
                    } else {
                        x - 1
                    }
                }
                _ => unsigned_op(op, old & 0xFFFF_FFFF, b & 0xFFFF_FFFF) as u32,
            })
        }
        AtomTy::U64 => unsigned_op(op, old, b),
    }
}

fn unsigned_op(op: AtomOp, x: u64, y: u64) -> u64 {
    match op {
        AtomOp::Min => x.min(y),
        AtomOp::Max => x.max(y),
        AtomOp::And => x & y,
        AtomOp::Or => x | y,
        AtomOp::Xor => x ^ y,
        AtomOp::Add | AtomOp::Exch | AtomOp::Cas | AtomOp::Inc | AtomOp::Dec => x.wrapping_add(y),
    }
}

fn int_op(op: AtomOp, x: i64, y: i64) -> i64 {
    match op {
        AtomOp::Min => x.min(y),
        AtomOp::Max => x.max(y),
        AtomOp::And => x & y,
        AtomOp::Or => x | y,
        AtomOp::Xor => x ^ y,
        AtomOp::Add | AtomOp::Exch | AtomOp::Cas | AtomOp::Inc | AtomOp::Dec => x.wrapping_add(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_counters() {
        assert_eq!(combine(AtomOp::Inc, AtomTy::U32, 3, 3, 0), 0);
        assert_eq!(combine(AtomOp::Inc, AtomTy::U32, 2, 3, 0), 3);
        assert_eq!(combine(AtomOp::Dec, AtomTy::U32, 0, 7, 0), 7);
        assert_eq!(combine(AtomOp::Min, AtomTy::S32, 5, u64::from(-3i32 as u32), 0) as u32 as i32, -3);
        assert_eq!(combine(AtomOp::Cas, AtomTy::U32, 5, 5, 9), 9);
        assert_eq!(combine(AtomOp::Cas, AtomTy::U32, 4, 5, 9), 4);
    }

    #[test]
    fn packed_halves_add_separately() {
        let ones = 0x3C00_3C00;
        assert_eq!(combine(AtomOp::Add, AtomTy::F16x2, ones, ones, 0), 0x4000_4000);
        assert_eq!(combine(AtomOp::Add, AtomTy::Bf16x2, 0x3F80_0000, 0x3F80_3F80, 0), 0x4000_3F80);
    }
}
