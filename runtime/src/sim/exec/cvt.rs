//! Conversions between integers, floating-point formats and packed pairs.

use half::f16;

use super::float::{canonical, flush, max_f32};
use super::regs::{Regs, lanes};
use super::round::{self, BF16, E4M3, E5M2, F16, F32, TF32, round_to, to_odd};
use crate::sim::decode::op::{CvtMode, Inst, NumTy, PackTy, Round};

fn is_float(t: NumTy) -> bool {
    match t {
        NumTy::F16 | NumTy::Bf16 | NumTy::Tf32 | NumTy::F32 | NumTy::F64 => true,
        NumTy::U8 | NumTy::S8 | NumTy::U16 | NumTy::S16 | NumTy::U32 | NumTy::S32 | NumTy::U64 | NumTy::S64 => false,
    }
}

fn is_wide(t: NumTy) -> bool {
    matches!(t, NumTy::U64 | NumTy::S64 | NumTy::F64)
}

/// The value of an integer register.
fn int_value(bits: u64, t: NumTy) -> i128 {
    match t {
        NumTy::U8 => i128::from(bits as u8),
        NumTy::S8 => i128::from(bits as i8),
        NumTy::U16 => i128::from(bits as u16),
        NumTy::S16 => i128::from(bits as i16),
        NumTy::U32 => i128::from(bits as u32),
        NumTy::S32 => i128::from(bits as i32),
        NumTy::U64 => i128::from(bits),
        NumTy::S64 => i128::from(bits as i64),
        NumTy::F16 | NumTy::Bf16 | NumTy::Tf32 | NumTy::F32 | NumTy::F64 => 0,
    }
}

/// Smallest and largest value of an integer type.
fn int_range(t: NumTy) -> (i128, i128) {
    match t {
        NumTy::U8 => (0, 0xFF),
        NumTy::S8 => (-0x80, 0x7F),
        NumTy::U16 => (0, 0xFFFF),
        NumTy::S16 => (-0x8000, 0x7FFF),
        NumTy::U32 => (0, u32::MAX.into()),
        NumTy::S32 => (i32::MIN.into(), i32::MAX.into()),
        NumTy::U64 => (0, u64::MAX.into()),
        NumTy::S64 | NumTy::F16 | NumTy::Bf16 | NumTy::Tf32 | NumTy::F32 | NumTy::F64 => {
            (i64::MIN.into(), i64::MAX.into())
        }
    }
}

/// The exact value of a floating-point register.
fn float_value(bits: u64, t: NumTy) -> f64 {
    match t {
        NumTy::F16 => f16::from_bits(bits as u16).to_f64(),
        NumTy::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
        NumTy::F64 => f64::from_bits(bits),
        NumTy::Tf32 | NumTy::F32 => f64::from(f32::from_bits(bits as u32)),
        NumTy::U8 | NumTy::S8 | NumTy::U16 | NumTy::S16 | NumTy::U32 | NumTy::S32 | NumTy::U64 | NumTy::S64 => 0.0,
    }
}

/// Truncates an integer result to its type; sign extension to the register follows the type.
fn store_int(v: i128, t: NumTy) -> u64 {
    match t {
        NumTy::U8 => v as u8 as u64,
        NumTy::S8 => u64::from(v as i8 as u32),
        NumTy::U16 => v as u16 as u64,
        NumTy::S16 => u64::from(v as i16 as u16),
        NumTy::U32 | NumTy::S32 => u64::from(v as u32),
        NumTy::U64 | NumTy::S64 | NumTy::F16 | NumTy::Bf16 | NumTy::Tf32 | NumTy::F32 | NumTy::F64 => v as u64,
    }
}

/// Rounds to an integral value.
fn integral(x: f64, mode: Round) -> f64 {
    match mode {
        Round::Nearest => x.round_ties_even(),
        Round::NearestAway => x.round(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// An integer as an f64 rounded to odd, so that the next rounding is the only one that shows.
fn int_to_odd(v: i128) -> f64 {
    let s = v as f64;
    to_odd(s, (v - s as i128) as f64)
}

fn to_float(x: f64, t: NumTy, mode: CvtMode) -> u64 {
    let sat = mode.satfinite;
    match t {
        NumTy::F16 => u64::from(round_to(x, F16, mode.round, sat)),
        NumTy::Bf16 => u64::from(round_to(x, BF16, mode.round, sat)),
        NumTy::Tf32 => u64::from(round_to(x, TF32, mode.round, sat) << 13),
        NumTy::F32 => u64::from(round_to(x, F32, mode.round, sat)),
        _ => x.to_bits(),
    }
}

/// One scalar conversion.
pub fn scalar(bits: u64, to: NumTy, from: NumTy, mode: CvtMode) -> u64 {
    if !is_float(from) {
        let v = int_value(bits, from);
        if is_float(to) {
            if to == NumTy::F64 {
                let s = v as f64;
                let err = v - s as i128;
                let s = match mode.round {
                    Round::Zero if err != 0 && (err > 0) != (v > 0) => {
                        if v > 0 {
                            s.next_down()
                        } else {
                            s.next_up()
                        }
                    }
                    Round::Down if err < 0 => s.next_down(),
                    Round::Up if err > 0 => s.next_up(),
                    _ => s,
                };
                return s.to_bits();
            }
            return to_float(int_to_odd(v), to, mode);
        }
        if mode.sat {
            let (lo, hi) = int_range(to);
            return store_int(v.clamp(lo, hi), to);
        }
        return store_int(v, to);
    }
    let mut x = float_value(bits, from);
    if mode.ftz && from == NumTy::F32 {
        x = f64::from(flush(x as f32));
    }
    if !is_float(to) {
        // NaN converts to zero, except that 64-bit results (and f64 sources) give the sign bit alone.
        if x.is_nan() {
            let wide = is_wide(to) || from == NumTy::F64;
            return if wide { 1u64 << (if is_wide(to) { 63 } else { 31 }) } else { 0 };
        }
        let (lo, hi) = int_range(to);
        let v = integral(x, mode.round);
        // `as` saturates, which the clamp then narrows to the type.
        return store_int((v as i128).clamp(lo, hi), to);
    }
    if mode.to_int {
        x = integral(x, mode.round);
    }
    if mode.sat {
        x = if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    if mode.relu && !x.is_nan() && (x < 0.0 || x.to_bits() == 1 << 63) {
        x = 0.0;
    }
    if to == NumTy::F64 {
        return x.to_bits();
    }
    let out = to_float(x, to, mode);
    if mode.ftz && to == NumTy::F32 { u64::from(canonical(flush(f32::from_bits(out as u32)))) } else { out }
}

/// Executes a scalar conversion for the lanes of `m`.
pub fn exec(r: &mut Regs, i: &Inst, m: u32, to: NumTy, from: NumTy, mode: CvtMode) {
    // The conversions that kernels are full of, without the detour through exact arithmetic.
    let plain = !mode.ftz && !mode.sat && !mode.relu && !mode.satfinite && !mode.to_int;
    match (to, from) {
        (NumTy::F32, NumTy::F16) if plain => {
            return r.map1(i.d, i.a, m, |a: u32| canonical(f16::from_bits(a as u16).to_f32()));
        }
        (NumTy::F32, NumTy::Bf16) if plain => return r.map1(i.d, i.a, m, |a: u32| canonical(f32::from_bits(a << 16))),
        (NumTy::U64, NumTy::U32) => return r.map1(i.d, i.a, m, |a: u32| u64::from(a)),
        (NumTy::S64, NumTy::S32) => return r.map1(i.d, i.a, m, |a: u32| i64::from(a as i32) as u64),
        (NumTy::U32 | NumTy::S32, NumTy::U64 | NumTy::S64) if !mode.sat => {
            return r.map1(i.d, i.a, m, |a: u64| a as u32);
        }
        (NumTy::F32, NumTy::S32) if mode.round == Round::Nearest && plain => {
            return r.map1(i.d, i.a, m, |a: u32| (a as i32 as f32).to_bits());
        }
        (NumTy::F32, NumTy::U32) if mode.round == Round::Nearest && plain => {
            return r.map1(i.d, i.a, m, |a: u32| (a as f32).to_bits());
        }
        _ => {}
    }
    let a: [u64; 32] = if is_wide(from) { r.get(i.a) } else { r.get::<u32>(i.a).map(u64::from) };
    let mut out = [0u64; 32];
    for l in lanes(m) {
        out[l] = scalar(a[l], to, from, mode);
    }
    if is_wide(to) { r.put(i.d, &out, m) } else { r.put(i.d, &out.map(|v| v as u32), m) }
}

fn pack_format(t: PackTy) -> (round::Format, u32) {
    match t {
        PackTy::F16x2 => (F16, 16),
        PackTy::Bf16x2 => (BF16, 16),
        PackTy::E4m3x2 => (E4M3, 8),
        PackTy::E5m2x2 => (E5M2, 8),
    }
}

/// Two f32 sources into one packed register, `a` in the upper part.
pub fn pack_f32(r: &mut Regs, i: &Inst, m: u32, to: PackTy, mode: CvtMode) {
    let (fmt, shift) = pack_format(to);
    let one = |v: u32| {
        let mut x = f32::from_bits(v);
        if mode.ftz {
            x = flush(x);
        }
        if mode.relu {
            x = max_f32(x, 0.0, true);
        }
        round_to(f64::from(x), fmt, mode.round, mode.satfinite)
    };
    let (a, b): ([u32; 32], [u32; 32]) = (r.get(i.a), r.get(i.b));
    let mut out = [0u32; 32];
    for l in lanes(m) {
        out[l] = one(a[l]) << shift | one(b[l]);
    }
    r.put(i.d, &out, m);
}

/// The value of an 8-bit float.
pub fn f8_value(bits: u8, t: PackTy) -> f32 {
    let (sign, rest) = (if bits & 0x80 != 0 { -1.0f32 } else { 1.0 }, u32::from(bits & 0x7F));
    let (mantissa, bias, nan) = match t {
        PackTy::E5m2x2 => (2u32, 15i32, rest > 0x7C),
        _ => (3, 7, rest == 0x7F),
    };
    if nan {
        return f32::NAN;
    }
    if t == PackTy::E5m2x2 && rest == 0x7C {
        return sign * f32::INFINITY;
    }
    let (exp, frac) = ((rest >> mantissa) as i32, rest & ((1 << mantissa) - 1));
    let scale = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    let unit = frac as f32 / (1u32 << mantissa) as f32;
    sign * if exp == 0 { unit * scale(1 - bias) } else { (1.0 + unit) * scale(exp - bias) }
}

/// `cvt.rn.f16x2.e4m3x2` and its e5m2 twin.
pub fn unpack_f8(r: &mut Regs, i: &Inst, m: u32, from: PackTy, relu: bool) {
    let one = |b: u32| {
        let v = f8_value(b as u8, from);
        let v = if relu { max_f32(v, 0.0, true) } else { v };
        round_to(f64::from(v), F16, Round::Nearest, false)
    };
    r.map1(i.d, i.a, m, |a: u32| one(a >> 8 & 0xFF) << 16 | one(a & 0xFF));
}

/// `cvt.rn.satfinite.e4m3x2.f16x2` and its e5m2 twin.
pub fn f8_from_f16(r: &mut Regs, i: &Inst, m: u32, to: PackTy, relu: bool) {
    let (fmt, _) = pack_format(to);
    let one = |b: u32| {
        let v = f16::from_bits(b as u16).to_f32();
        let v = if relu { max_f32(v, 0.0, true) } else { v };
        round_to(f64::from(v), fmt, Round::Nearest, true)
    };
    r.map1(i.d, i.a, m, |a: u32| one(a >> 16) << 8 | one(a & 0xFFFF));
}

#[cfg(test)]
mod tests {
    use super::*;

    const RN: CvtMode =
        CvtMode { round: Round::Nearest, to_int: false, ftz: false, sat: false, relu: false, satfinite: false };

    #[test]
    fn float_to_int_saturates() {
        let rz = CvtMode { round: Round::Zero, to_int: true, ..RN };
        let f = |v: f32| u64::from(v.to_bits());
        assert_eq!(scalar(f(-1.5), NumTy::S32, NumTy::F32, rz) as i32, -1);
        assert_eq!(scalar(f(1e20), NumTy::S32, NumTy::F32, rz) as i32, i32::MAX);
        assert_eq!(scalar(f(-3.0), NumTy::U32, NumTy::F32, rz), 0);
        assert_eq!(scalar(f(f32::NAN), NumTy::S32, NumTy::F32, rz), 0);
        assert_eq!(scalar(f(2.5), NumTy::S32, NumTy::F32, CvtMode { round: Round::Nearest, to_int: true, ..RN }), 2);
        assert_eq!(scalar(f(300.0), NumTy::U8, NumTy::F32, rz), 255);
    }

    #[test]
    fn int_to_float_rounds_once() {
        for v in [u64::MAX, (1 << 53) + 1, 0x7FFF_FFBF_FFFF_FFFF, 16_777_217] {
            assert_eq!(scalar(v, NumTy::F32, NumTy::U64, RN) as u32, (v as f32).to_bits());
            assert_eq!(scalar(v, NumTy::F64, NumTy::U64, RN), (v as f64).to_bits());
        }
        let up = CvtMode { round: Round::Up, ..RN };
        assert_eq!(f32::from_bits(scalar(16_777_217, NumTy::F32, NumTy::U32, up) as u32), 16_777_218.0);
    }

    #[test]
    fn tf32_rounds_ties_away() {
        let rna = CvtMode { round: Round::NearestAway, ..RN };
        let half_ulp = f32::from_bits(0x3F80_1000);
        assert_eq!(scalar(u64::from(half_ulp.to_bits()), NumTy::Tf32, NumTy::F32, rna), 0x3F80_2000);
        assert_eq!(scalar(u64::from(half_ulp.to_bits()), NumTy::Tf32, NumTy::F32, RN), 0x3F80_0000);
    }

    #[test]
    fn every_f8_survives_the_round_trip() {
        for t in [PackTy::E4m3x2, PackTy::E5m2x2] {
            let (fmt, _) = pack_format(t);
            for b in 0..=255u8 {
                let v = f8_value(b, t);
                if v.is_nan() {
                    continue;
                }
                assert_eq!(round_to(f64::from(v), fmt, Round::Nearest, v.is_finite()), u32::from(b), "{t:?} {b:#x}");
            }
        }
        assert_eq!(f8_value(0x7E, PackTy::E4m3x2), 448.0);
        assert_eq!(f8_value(0x7B, PackTy::E5m2x2), 57344.0);
    }

    #[test]
    fn sign_extension_and_truncation() {
        assert_eq!(scalar(0xFF, NumTy::S32, NumTy::S8, RN), 0xFFFF_FFFF);
        assert_eq!(scalar(0xFF, NumTy::U32, NumTy::U8, RN), 0xFF);
        assert_eq!(scalar(0xFFFF_FFFF, NumTy::S64, NumTy::S32, RN), u64::MAX);
        assert_eq!(scalar(0x1_2345, NumTy::U16, NumTy::U32, RN), 0x2345);
        assert_eq!(scalar(0x1_2345, NumTy::U16, NumTy::U32, CvtMode { sat: true, ..RN }), 0xFFFF);
    }
}
