//! `setp`, `set`, `selp`, `slct` and predicate logic.

use half::f16;

use super::float::flush;
use super::regs::{Regs, lanes};
use crate::sim::decode::op::{BoolOp, Cmp, CmpTy, FltTy, Inst, IntTy};

/// Combines a comparison result with another predicate.
pub fn combine(op: BoolOp, a: u32, b: u32) -> u32 {
    match op {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}

fn float_cmp(cmp: Cmp, a: f64, b: f64) -> bool {
    let nan = a.is_nan() || b.is_nan();
    match cmp {
        Cmp::Eq => a == b,
        Cmp::Ne => a != b && !nan,
        Cmp::Lt => a < b,
        Cmp::Le => a <= b,
        Cmp::Gt => a > b,
        Cmp::Ge => a >= b,
        Cmp::Equ => a == b || nan,
        Cmp::Neu => a != b,
        Cmp::Ltu => a < b || nan,
        Cmp::Leu => a <= b || nan,
        Cmp::Gtu => a > b || nan,
        Cmp::Geu => a >= b || nan,
        Cmp::Num => !nan,
        Cmp::Nan => nan,
    }
}

macro_rules! int_cmp {
    ($r:expr, $ab:expr, $cmp:expr, $w:ty, $t:ty) => {
        match $cmp {
            Cmp::Eq | Cmp::Equ => $r.test2($ab, |a: $w, b: $w| a as $t == b as $t),
            Cmp::Ne | Cmp::Neu => $r.test2($ab, |a: $w, b: $w| a as $t != b as $t),
            Cmp::Lt | Cmp::Ltu => $r.test2($ab, |a: $w, b: $w| (a as $t) < b as $t),
            Cmp::Le | Cmp::Leu => $r.test2($ab, |a: $w, b: $w| a as $t <= b as $t),
            Cmp::Gt | Cmp::Gtu => $r.test2($ab, |a: $w, b: $w| a as $t > b as $t),
            Cmp::Ge | Cmp::Geu => $r.test2($ab, |a: $w, b: $w| a as $t >= b as $t),
            Cmp::Num => u32::MAX,
            Cmp::Nan => 0,
        }
    };
}

/// The lanes (lower half, upper half of packed operands) for which the comparison holds.
fn compare(r: &Regs, i: &Inst, cmp: Cmp, ty: CmpTy, ftz: bool) -> (u32, u32) {
    let ab = (i.a, i.b);
    let fix = |v: f32| f64::from(if ftz { flush(v) } else { v });
    let half = |bits: u32| f16::from_bits(bits as u16).to_f64();
    let brain = |bits: u32| f64::from(f32::from_bits(bits << 16));
    match ty {
        CmpTy::Int(IntTy::U16) => (int_cmp!(r, ab, cmp, u32, u16), 0),
        CmpTy::Int(IntTy::S16) => (int_cmp!(r, ab, cmp, u32, i16), 0),
        CmpTy::Int(IntTy::U32) => (int_cmp!(r, ab, cmp, u32, u32), 0),
        CmpTy::Int(IntTy::S32) => (int_cmp!(r, ab, cmp, u32, i32), 0),
        CmpTy::Int(IntTy::U64) => (int_cmp!(r, ab, cmp, u64, u64), 0),
        CmpTy::Int(IntTy::S64) => (int_cmp!(r, ab, cmp, u64, i64), 0),
        CmpTy::Flt(FltTy::F32) => {
            (r.test2(ab, |a: u32, b: u32| float_cmp(cmp, fix(f32::from_bits(a)), fix(f32::from_bits(b)))), 0)
        }
        CmpTy::Flt(FltTy::F64) => {
            (r.test2(ab, |a: u64, b: u64| float_cmp(cmp, f64::from_bits(a), f64::from_bits(b))), 0)
        }
        CmpTy::Flt(FltTy::F16 | FltTy::F16x2) => (
            r.test2(ab, |a: u32, b: u32| float_cmp(cmp, half(a), half(b))),
            r.test2(ab, |a: u32, b: u32| float_cmp(cmp, half(a >> 16), half(b >> 16))),
        ),
        CmpTy::Flt(FltTy::Bf16 | FltTy::Bf16x2) => (
            r.test2(ab, |a: u32, b: u32| float_cmp(cmp, brain(a), brain(b))),
            r.test2(ab, |a: u32, b: u32| float_cmp(cmp, brain(a >> 16), brain(b >> 16))),
        ),
    }
}

fn third(r: &Regs, i: &Inst, negated: bool) -> u32 {
    r.p[i.c as usize] ^ if negated { u32::MAX } else { 0 }
}

/// `setp`.
pub fn setp(
    r: &mut Regs,
    i: &Inst,
    m: u32,
    (cmp, ty, ftz): (Cmp, CmpTy, bool),
    with: Option<(BoolOp, bool)>,
    second: bool,
) {
    let (lo, hi) = compare(r, i, cmp, ty, ftz);
    let packed = matches!(ty, CmpTy::Flt(FltTy::F16x2 | FltTy::Bf16x2));
    let (mut p, mut q) = (lo, if packed { hi } else { !lo });
    if let Some((op, negated)) = with {
        let c = third(r, i, negated);
        (p, q) = (combine(op, p, c), combine(op, q, c));
    }
    r.put_pred(i.d, p, m);
    if second {
        r.put_pred(i.e, q, m);
    }
}

/// `set`: `imm` is the width of the result type.
pub fn set(
    r: &mut Regs,
    i: &Inst,
    m: u32,
    (cmp, ty, ftz): (Cmp, CmpTy, bool),
    float: bool,
    with: Option<(BoolOp, bool)>,
) {
    let (mut lo, mut hi) = compare(r, i, cmp, ty, ftz);
    if let Some((op, negated)) = with {
        let c = third(r, i, negated);
        (lo, hi) = (combine(op, lo, c), combine(op, hi, c));
    }
    let (packed, one) = match ty {
        CmpTy::Flt(FltTy::F16x2) => (true, if float { 0x3C00 } else { 0xFFFF }),
        CmpTy::Flt(FltTy::Bf16x2) => (true, if float { 0x3F80 } else { 0xFFFF }),
        CmpTy::Flt(FltTy::F16) if i.imm == 16 => (false, if float { 0x3C00 } else { 0xFFFF }),
        CmpTy::Flt(FltTy::Bf16) if i.imm == 16 => (false, if float { 0x3F80 } else { 0xFFFF }),
        CmpTy::Flt(_) | CmpTy::Int(_) => (false, if float { 1.0f32.to_bits() } else { u32::MAX }),
    };
    let mut out = [0u32; 32];
    for (l, o) in out.iter_mut().enumerate() {
        let v = if lo >> l & 1 != 0 { one } else { 0 };
        *o = if packed { v | if hi >> l & 1 != 0 { one << 16 } else { 0 } } else { v };
    }
    r.put(i.d, &out, m);
}

/// `selp`.
pub fn selp(r: &mut Regs, i: &Inst, m: u32, wide: bool, negate: bool) {
    let p = r.p[i.c as usize] ^ if negate { u32::MAX } else { 0 };
    if wide {
        let (a, b): ([u64; 32], [u64; 32]) = (r.get(i.a), r.get(i.b));
        let out = std::array::from_fn(|l| if p >> l & 1 != 0 { a[l] } else { b[l] });
        r.put(i.d, &out, m);
    } else {
        let (a, b): ([u32; 32], [u32; 32]) = (r.get(i.a), r.get(i.b));
        let out = std::array::from_fn(|l| if p >> l & 1 != 0 { a[l] } else { b[l] });
        r.put(i.d, &out, m);
    }
}

/// `slct`.
pub fn slct(r: &mut Regs, i: &Inst, m: u32, wide: bool, float: bool) {
    let c: [u32; 32] = r.get(i.c);
    let first = |l: usize| if float { f32::from_bits(c[l]) >= 0.0 } else { c[l] as i32 >= 0 };
    for l in lanes(m) {
        let from = if first(l) { i.a } else { i.b } as usize;
        if wide {
            r.w64[i.d as usize][l] = r.w64[from][l];
        } else {
            r.w32[i.d as usize][l] = r.w32[from][l];
        }
    }
}

/// `mov` of several registers into one.
pub fn pack(r: &mut Regs, parts: &[u32], d: u32, m: u32, (bits, wide, wide_in): (u8, bool, bool)) {
    let keep = if bits == 64 { u64::MAX } else { (1u64 << bits) - 1 };
    let mut out = [0u64; 32];
    for (k, &slot) in parts.iter().enumerate() {
        let part: [u64; 32] = if wide_in { r.get(slot) } else { r.get::<u32>(slot).map(u64::from) };
        for l in 0..32 {
            out[l] |= (part[l] & keep) << (k as u32 * u32::from(bits));
        }
    }
    if wide { r.put(d, &out, m) } else { r.put(d, &out.map(|v| v as u32), m) }
}

/// `mov` of one register into several.
pub fn unpack(r: &mut Regs, parts: &[u32], a: u32, m: u32, (bits, wide, wide_out): (u8, bool, bool)) {
    let keep = if bits == 64 { u64::MAX } else { (1u64 << bits) - 1 };
    let whole: [u64; 32] = if wide { r.get(a) } else { r.get::<u32>(a).map(u64::from) };
    for (k, &slot) in parts.iter().enumerate() {
        let part = whole.map(|v| v >> (k as u32 * u32::from(bits)) & keep);
        if wide_out { r.put(slot, &part, m) } else { r.put(slot, &part.map(|v| v as u32), m) }
    }
}
