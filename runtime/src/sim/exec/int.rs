//! Integer arithmetic and logic, as the PTX ISA manual's chapter "Integer Arithmetic Instructions" defines it.

use super::regs::Regs;
use crate::sim::decode::op::{Inst, IntOp, IntTy};

/// Executes one integer instruction for the lanes of `m`.
pub fn exec(r: &mut Regs, i: &Inst, m: u32, op: IntOp, ty: IntTy) {
    match ty {
        IntTy::U16 => u16_ops(r, i, m, op),
        IntTy::S16 => s16_ops(r, i, m, op),
        IntTy::U32 => u32_ops(r, i, m, op),
        IntTy::S32 => s32_ops(r, i, m, op),
        IntTy::U64 => u64_ops(r, i, m, op),
        IntTy::S64 => s64_ops(r, i, m, op),
    }
}

/// `$t` the type, `$u` its unsigned twin, `$x` the type twice as wide, `$xu` that one's unsigned twin,
/// `$w` the register, `$xw` the register of wide results.
macro_rules! family {
    ($name:ident, $t:ty, $u:ty, $x:ty, $w:ty, $xw:ty, $xu:ty) => {
        fn $name(r: &mut Regs, i: &Inst, m: u32, op: IntOp) {
            use IntOp as O;
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn un(v: $w) -> $t {
                v as $t
            }
            #[inline(always)]
            fn re(v: $t) -> $w {
                v as $u as $w
            }
            let ab = (i.a, i.b);
            let abc = (i.a, i.b, i.c);
            match op {
                O::Add => r.map2(i.d, ab, m, |a: $w, b: $w| re(un(a).wrapping_add(un(b)))),
                O::Sub => r.map2(i.d, ab, m, |a: $w, b: $w| re(un(a).wrapping_sub(un(b)))),
                O::AddSat => r.map2(i.d, ab, m, |a: $w, b: $w| re(un(a).saturating_add(un(b)))),
                O::SubSat => r.map2(i.d, ab, m, |a: $w, b: $w| re(un(a).saturating_sub(un(b)))),
                O::MulLo => r.map2(i.d, ab, m, |a: $w, b: $w| re(un(a).wrapping_mul(un(b)))),
                O::MulHi => {
                    r.map2(i.d, ab, m, |a: $w, b: $w| re(((un(a) as $x).wrapping_mul(un(b) as $x) >> BITS) as $t))
                }
                O::MulWide => r.map2(i.d, ab, m, |a: $w, b: $w| (un(a) as $x).wrapping_mul(un(b) as $x) as $xu as $xw),
                O::MadLo => {
                    r.map3(i.d, abc, m, |a: $w, b: $w, c: $w| re(un(a).wrapping_mul(un(b)).wrapping_add(un(c))))
                }
                O::MadHi => r.map3(i.d, abc, m, |a: $w, b: $w, c: $w| {
                    re((((un(a) as $x).wrapping_mul(un(b) as $x) >> BITS) as $t).wrapping_add(un(c)))
                }),
                O::MadWide => r.map3(i.d, abc, m, |a: $w, b: $w, c: $xw| {
                    (un(a) as $x).wrapping_mul(un(b) as $x).wrapping_add(c as $x) as $xu as $xw
                }),
                O::Mul24Lo => r.map2(i.d, ab, m, |a: $w, b: $w| {
                    re(low24(a as i64, BITS).wrapping_mul(low24(b as i64, BITS)) as $t)
                }),
                O::Mad24Lo => r.map3(i.d, abc, m, |a: $w, b: $w, c: $w| {
                    re((low24(a as i64, BITS).wrapping_mul(low24(b as i64, BITS)) as $t).wrapping_add(un(c)))
                }),
                // Division by zero is unspecified; the hardware gives all ones and leaves the dividend as remainder.
                O::Div => r.map2(
                    i.d,
                    ab,
                    m,
                    |a: $w, b: $w| {
                        if un(b) == 0 { <$u>::MAX as $w } else { re(un(a).wrapping_div(un(b))) }
                    },
                ),
                O::Rem => r.map2(
                    i.d,
                    ab,
                    m,
                    |a: $w, b: $w| {
                        if un(b) == 0 { re(un(a)) } else { re(un(a).wrapping_rem(un(b))) }
                    },
                ),
                O::Min => r.map2(i.d, ab, m, |a: $w, b: $w| re(un(a).min(un(b)))),
                O::Max => r.map2(i.d, ab, m, |a: $w, b: $w| re(un(a).max(un(b)))),
                #[allow(unused_comparisons)]
                O::Abs => {
                    r.map1(i.d, i.a, m, |a: $w| if un(a) < 0 { re((0 as $t).wrapping_sub(un(a))) } else { re(un(a)) })
                }
                O::Neg => r.map1(i.d, i.a, m, |a: $w| re((0 as $t).wrapping_sub(un(a)))),
                O::And => r.map2(i.d, ab, m, |a: $w, b: $w| a & b),
                O::Or => r.map2(i.d, ab, m, |a: $w, b: $w| a | b),
                O::Xor => r.map2(i.d, ab, m, |a: $w, b: $w| a ^ b),
                O::Not => r.map1(i.d, i.a, m, |a: $w| re(!un(a))),
                O::Cnot => r.map1(i.d, i.a, m, |a: $w| <$w>::from(un(a) == 0)),
                O::Shl => r.map2(i.d, ab, m, |a: $w, n: u32| if n >= BITS { 0 } else { re(un(a) << n) }),
                O::Shr => r.map2(i.d, ab, m, |a: $w, n: u32| {
                    #[allow(unused_comparisons)]
                    let fill = if un(a) < 0 { re(!0) } else { 0 };
                    if n >= BITS { fill } else { re(un(a) >> n) }
                }),
                O::Popc => r.map1(i.d, i.a, m, |a: $w| (a as $u).count_ones()),
                O::Clz => r.map1(i.d, i.a, m, |a: $w| (a as $u).leading_zeros()),
                O::Brev => r.map1(i.d, i.a, m, |a: $w| re(un(a).reverse_bits())),
                O::Bfind => r.map1(i.d, i.a, m, |a: $w| {
                    #[allow(unused_comparisons)]
                    let v = if un(a) < 0 { !un(a) } else { un(a) } as $u;
                    if v == 0 { u32::MAX } else { BITS - 1 - v.leading_zeros() }
                }),
                O::Sad => r.map3(i.d, abc, m, |a: $w, b: $w, c: $w| {
                    let (a, b) = (un(a), un(b));
                    re(un(c).wrapping_add(a.max(b).wrapping_sub(a.min(b))))
                }),
                O::Bfe => r.map3(i.d, abc, m, |a: $w, pos: u32, len: u32| {
                    re(bfe(un(a) as i128, BITS, <$t>::MIN != 0, pos, len) as $t)
                }),
                O::Bfi => {
                    let (pos, len): ([u32; 32], [u32; 32]) = (r.get(i.c), r.get(i.e));
                    let (a, b): ([$w; 32], [$w; 32]) = (r.get(i.a), r.get(i.b));
                    let mut out = [0 as $w; 32];
                    for l in 0..32 {
                        out[l] = bfi(a[l] as u64, b[l] as u64, BITS, pos[l], len[l]) as $w;
                    }
                    r.put(i.d, &out, m);
                }
                O::Lop3 => {
                    let lut = i.imm as u8;
                    r.map3(i.d, abc, m, |a: $w, b: $w, c: $w| {
                        let mut out = 0 as $w;
                        for bit in 0..8 {
                            let all = <$w>::MAX;
                            let pick = if lut >> bit & 1 != 0 { all } else { 0 };
                            let a = if bit & 4 != 0 { a } else { !a };
                            let b = if bit & 2 != 0 { b } else { !b };
                            let c = if bit & 1 != 0 { c } else { !c };
                            out |= pick & a & b & c;
                        }
                        out
                    });
                }
                O::Prmt => r.map3(i.d, abc, m, |a: $w, b: $w, s: $w| <$w>::from(prmt(a as u32, b as u32, s as u32))),
                O::ShfLeftWrap => r.map3(i.d, abc, m, |a: u32, b: u32, n: u32| funnel_left(a, b, n & 31)),
                O::ShfLeftClamp => r.map3(i.d, abc, m, |a: u32, b: u32, n: u32| funnel_left(a, b, n.min(32))),
                O::ShfRightWrap => r.map3(i.d, abc, m, |a: u32, b: u32, n: u32| funnel_right(a, b, n & 31)),
                O::ShfRightClamp => r.map3(i.d, abc, m, |a: u32, b: u32, n: u32| funnel_right(a, b, n.min(32))),
                O::Dp4a => {
                    let (sa, sb) = (i.imm & 1 != 0, i.imm & 2 != 0);
                    r.map3(i.d, abc, m, |a: u32, b: u32, c: u32| dp4a(a, b, c, sa, sb));
                }
            }
        }
    };
}

family!(u16_ops, u16, u16, u32, u32, u32, u32);
family!(s16_ops, i16, u16, i32, u32, u32, u32);
family!(u32_ops, u32, u32, u64, u32, u64, u64);
family!(s32_ops, i32, u32, i64, u32, u64, u64);
family!(u64_ops, u64, u64, u128, u64, u64, u128);
family!(s64_ops, i64, u64, i128, u64, u64, u128);

fn low24(v: i64, bits: u32) -> i64 {
    // mul24 exists for 32-bit operands only.
    debug_assert_eq!(bits, 32);
    v & 0xFF_FFFF
}

fn bfe(a: i128, bits: u32, signed: bool, pos: u32, len: u32) -> i128 {
    let (pos, len) = (pos & 0xFF, len & 0xFF);
    if len == 0 {
        return 0;
    }
    let msb = bits - 1;
    let sign = signed && a >> (pos + len - 1).min(msb) & 1 != 0;
    let a = (a as u128) & ((1u128 << bits) - 1);
    let field = if pos > msb { 0 } else { a >> pos };
    let avail = if pos > msb { 0 } else { (bits - pos).min(len) };
    let kept = field & ((1u128 << avail) - 1);
    let filled = if sign { kept | (u128::MAX << avail) } else { kept };
    filled as i128
}

fn bfi(a: u64, b: u64, bits: u32, pos: u32, len: u32) -> u64 {
    let (pos, len) = (pos & 0xFF, len & 0xFF);
    if pos >= bits || len == 0 {
        return b;
    }
    let len = len.min(bits - pos);
    let mask = if len >= 64 { u64::MAX } else { ((1u64 << len) - 1) << pos };
    (b & !mask) | ((a << pos) & mask)
}

fn prmt(a: u32, b: u32, sel: u32) -> u32 {
    let bytes = u64::from(a) | u64::from(b) << 32;
    let mut out = 0;
    for k in 0..4 {
        let s = sel >> (4 * k);
        let byte = (bytes >> ((s & 7) * 8)) as u8;
        let v = if s & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out |= u32::from(v) << (8 * k);
    }
    out
}

fn funnel_left(lo: u32, hi: u32, n: u32) -> u32 {
    let v = u64::from(lo) | u64::from(hi) << 32;
    ((v << n) >> 32) as u32
}

fn funnel_right(lo: u32, hi: u32, n: u32) -> u32 {
    let v = u64::from(lo) | u64::from(hi) << 32;
    (v >> n) as u32
}

fn dp4a(a: u32, b: u32, c: u32, sa: bool, sb: bool) -> u32 {
    let part = |v: u32, k: u32, signed: bool| {
        let byte = (v >> (8 * k)) as u8;
        if signed { i32::from(byte as i8) } else { i32::from(byte) }
    };
    (0..4).fold(c, |acc, k| acc.wrapping_add((part(a, k, sa) * part(b, k, sb)) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_fields() {
        assert_eq!(bfe(0xABCD, 32, false, 4, 8), 0xBC);
        assert_eq!(bfe(i128::from(0xF0u32 as i32), 32, true, 4, 4) as i32, -1);
        assert_eq!(bfe(1, 32, false, 40, 8), 0);
        assert_eq!(bfe(-8, 32, true, 30, 8) as i32, -1);
        assert_eq!(bfi(0xFF, 0, 32, 8, 4), 0xF00);
        assert_eq!(bfi(u64::MAX, 0, 64, 0, 64), u64::MAX);
    }

    #[test]
    fn byte_permutation_and_funnels() {
        assert_eq!(prmt(0x0403_0201, 0x0807_0605, 0x5410), 0x0605_0201);
        assert_eq!(prmt(0x0000_0080, 0, 0x8888), 0xFFFF_FFFF);
        assert_eq!(funnel_left(0x8000_0000, 1, 1), 3);
        assert_eq!(funnel_right(0x8000_0000, 1, 31), 3);
        assert_eq!(funnel_right(5, 9, 32), 9);
    }

    #[test]
    fn dot_products_mix_signs() {
        assert_eq!(dp4a(0xFF01_0101, 0x0202_0202, 10, true, false), (10 + 6 - 2) as u32);
        assert_eq!(dp4a(0xFF01_0101, 0x0202_0202, 10, false, false), 10 + 6 + 510);
    }
}
