//! Conversions between element types, bit for bit as `zellige_ir::numerics::cast` defines them.
//!
//! Float sources narrower than f32 are widened exactly, then rounded once. 8-bit formats use the hardware's conversions
//! from sm_89 on and integer sequences before.

use super::index::{self, Idx};
use super::value::{self, Scalar};
use super::words;
use crate::ptx::simt::{Bin, Builder, Cmp, Num, Packed, Round, Ty, Un, Val};
use crate::ptx::target::Target;
use zellige_ir::DType;

/// `x` of type `from` converted to `to`.
pub fn cast(b: &mut Builder, target: Target, x: Scalar, from: DType, to: DType) -> Scalar {
    if from == to {
        return x;
    }
    if to == DType::Index {
        return Scalar::Idx(to_index(b, target, x, from));
    }
    let v = match x {
        Scalar::Reg(v) => v,
        Scalar::Idx(i) => return Scalar::Reg(from_index(b, target, i, to)),
    };
    Scalar::Reg(cast_reg(b, target, v, from, to))
}

/// Converts neighbouring elements, two at once where the hardware can.
pub fn cast_all(b: &mut Builder, target: Target, vals: &[Val], from: DType, to: DType) -> Vec<Val> {
    if from == to {
        return vals.to_vec();
    }
    if from == DType::F4E2M1 && to.is_float() {
        let eights = vals.chunks(8).flat_map(|vals| match words::origin(b, from, vals).filter(|_| vals.len() == 8) {
            Some(word) if to == DType::F8E4M3 => e2m1_as_e4m3(b, word),
            Some(word) => {
                let halves = e2m1_as_bf16(b, word);
                cast_all(b, target, &halves, DType::BF16, to)
            }
            None => vals.iter().map(|&v| cast_reg(b, target, v, from, to)).collect(),
        });
        return eights.collect();
    }
    let mut out = Vec::with_capacity(vals.len());
    let pairs = from != DType::Bool && from.is_float() && from != DType::F64;
    for pair in vals.chunks(2) {
        if pairs && pair.len() == 2 && (packs(target, to) || from == DType::F8E4M3) {
            let wide = widen_pair(b, target, from, [pair[0], pair[1]]);
            match narrow_pair(b, target, to, wide) {
                Some(both) => out.extend(both),
                None => out.extend(wide.map(|x| cast_reg(b, target, x, DType::F32, to))),
            }
            continue;
        }
        out.extend(pair.iter().map(|&v| cast_reg(b, target, v, from, to)));
    }
    out
}

/// True if two f32 are converted to `to` at once.
fn packs(target: Target, to: DType) -> bool {
    match to {
        DType::BF16 | DType::F16 => true,
        DType::F8E4M3 | DType::F8E5M2 => target.has_fp8_cvt(),
        _ => false,
    }
}

/// What the magnitudes 0, 0.5, 1, 1.5 and 2, 3, 4, 6 of e2m1 are in wider formats, a byte each: the codes in e4m3, and the upper
/// and the lower byte in bf16.
const E4M3_BYTES: [i64; 2] = [0x3c38_3000, 0x4c48_4440];
const BF16_UPPER: [i64; 2] = [0x3f3f_3f00, 0x4040_4040];
const BF16_LOWER: [i64; 2] = [0xc080_0000, 0xc080_4000];

/// The first or the last four of a word's eight e2m1: their magnitudes where a look-up wants them, and their signs, each the
/// highest bit of a byte.
fn magnitudes_and_signs(b: &mut Builder, word: Val, last: bool) -> (Val, Val) {
    let (mask, half, nibble) = (b.c32(0x7777_7777), b.c32(16), b.c32(4));
    let picks = b.bin(Bin::And, Num::B32, word, mask);
    let picks = if last { b.bin(Bin::Shr, Num::U32, picks, half) } else { picks };
    // The signs of upper nibbles are in place, those of lower ones in the word moved by a nibble.
    let (moved, highest) = (b.bin(Bin::Shl, Num::B32, word, nibble), b.c32(0x8080_8080));
    let spread = b.prmt(word, moved, if last { 0x3726 } else { 0x1504 });
    (picks, b.bin(Bin::And, Num::B32, spread, highest))
}

fn look_up(b: &mut Builder, table: [i64; 2], picks: Val) -> Val {
    let [low, high] = table.map(|bytes| b.c32(bytes));
    b.prmt_by(low, high, picks)
}

/// A word of eight e2m1 as codes in e4m3.
fn e2m1_as_e4m3(b: &mut Builder, word: Val) -> Vec<Val> {
    let words = [false, true].map(|last| {
        let (picks, signs) = magnitudes_and_signs(b, word, last);
        let codes = look_up(b, E4M3_BYTES, picks);
        b.bin(Bin::Or, Num::B32, codes, signs)
    });
    (0..8).map(|i| b.bfe(words[i / 4], 8 * (i as u32 % 4), 8)).collect()
}

/// A word of eight e2m1 in bf16.
fn e2m1_as_bf16(b: &mut Builder, word: Val) -> Vec<Val> {
    let mut out = Vec::with_capacity(8);
    for last in [false, true] {
        let (picks, signs) = magnitudes_and_signs(b, word, last);
        let (upper, lower) = (look_up(b, BF16_UPPER, picks), look_up(b, BF16_LOWER, picks));
        let upper = b.bin(Bin::Or, Num::B32, upper, signs);
        for bytes in [0x5140, 0x7362] {
            let pair = b.prmt(lower, upper, bytes);
            let (lo, hi) = b.unpack(pair);
            out.extend([lo, hi]);
        }
    }
    out
}

fn widen_pair(b: &mut Builder, target: Target, from: DType, pair: [Val; 2]) -> [Val; 2] {
    if from == DType::F8E4M3
        && target.has_fp8_cvt()
        && let Some(half) = byte_pair(b, pair)
    {
        let halves = b.cvt_unpack(Packed::E4M3x2, half);
        let (lo, hi) = b.unpack(halves);
        return [lo, hi].map(|h| b.cvt(Num::F32, Num::F16, Round::Exact, h));
    }
    pair.map(|v| widen(b, target, from, v))
}

/// The 16-bit register that two bytes were extracted from.
fn byte_pair(b: &mut Builder, pair: [Val; 2]) -> Option<Val> {
    use crate::ptx::simt::SimtOp;
    let (x, at) = match (b.kernel.def(pair[0]), b.kernel.def(pair[1])) {
        (Some(&SimtOp::Bfe { x, pos, len: 8, .. }), Some(&SimtOp::Bfe { x: y, pos: next, len: 8, .. }))
            if x == y && next == pos + 8 && pos % 16 == 0 =>
        {
            (x, pos)
        }
        _ => return None,
    };
    let (lo, hi) = b.unpack(x);
    Some(if at == 0 { lo } else { hi })
}

fn narrow_pair(b: &mut Builder, target: Target, to: DType, [lo, hi]: [Val; 2]) -> Option<[Val; 2]> {
    match to {
        DType::BF16 | DType::F16 => {
            let packed = b.cvt_pack(if to == DType::BF16 { Packed::BF16x2 } else { Packed::F16x2 }, hi, lo);
            let (lo, hi) = b.unpack(packed);
            Some([lo, hi])
        }
        DType::F8E4M3 | DType::F8E5M2 if target.has_fp8_cvt() => {
            let format = if to == DType::F8E4M3 { Packed::E4M3x2 } else { Packed::E5M2x2 };
            let pair = b.cvt_pack(format, hi, lo);
            let zero = b.zero(Ty::B16);
            let word = b.pack(pair, zero);
            Some([b.bfe(word, 0, 8), b.bfe(word, 8, 8)])
        }
        _ => None,
    }
}

fn to_index(b: &mut Builder, target: Target, x: Scalar, from: DType) -> Idx {
    let v = match x {
        Scalar::Idx(i) => return i,
        Scalar::Reg(v) => v,
    };
    if let Some(c) = b.as_int(v).filter(|_| from.is_int()) {
        let c = if from == DType::U32 { i64::from(c as u32) } else { c };
        return Idx::constant(c);
    }
    let full = (i64::MIN, i64::MAX);
    let (v, (lo, hi)) = match from {
        DType::I8 => (v, (-128, 127)),
        DType::U8 => (v, (0, 255)),
        DType::I16 => (v, (-32768, 32767)),
        DType::U16 => (v, (0, 65535)),
        DType::I32 => (v, (i64::from(i32::MIN), i64::from(i32::MAX))),
        DType::U32 => (b.cvt(Num::U64, Num::U32, Round::Exact, v), (0, i64::from(u32::MAX))),
        DType::I64 | DType::U64 | DType::Index => (v, full),
        DType::Bool => (cast_reg(b, target, v, from, DType::I32), (0, 1)),
        DType::F16
        | DType::BF16
        | DType::F32
        | DType::F64
        | DType::F8E4M3
        | DType::F8E5M2
        | DType::F4E2M1
        | DType::E8M0 => (cast_reg(b, target, v, from, DType::I64), full),
    };
    Idx::new(v, lo, hi, 1)
}

fn from_index(b: &mut Builder, target: Target, i: Idx, to: DType) -> Val {
    match value::class(to) {
        Ty::B32 if to.is_int() => {
            let v = if i.is_narrow() {
                index::to_val(b, i, Ty::B32)
            } else {
                let wide = index::to_val(b, i, Ty::B64);
                b.cvt(Num::U32, Num::U64, Round::Exact, wide)
            };
            extend(b, to, v)
        }
        Ty::B64 => index::to_val(b, i, Ty::B64),
        _ if i.is_narrow() => {
            let v = index::to_val(b, i, Ty::B32);
            cast_reg(b, target, v, DType::I32, to)
        }
        _ => {
            let v = index::to_val(b, i, Ty::B64);
            cast_reg(b, target, v, DType::I64, to)
        }
    }
}

/// The low bits of a 32-bit register as a properly extended integer of type `ty`.
pub fn extend(b: &mut Builder, ty: DType, v: Val) -> Val {
    match ty {
        DType::I8 => b.cvt(Num::S32, Num::S8, Round::Exact, v),
        DType::I16 => b.cvt(Num::S32, Num::S16, Round::Exact, v),
        DType::U8 | DType::U16 => {
            let mask = b.c32(if ty == DType::U8 { 0xff } else { 0xffff });
            b.bin(Bin::And, Num::B32, v, mask)
        }
        _ => v,
    }
}

fn cast_reg(b: &mut Builder, target: Target, v: Val, from: DType, to: DType) -> Val {
    if from == to {
        return v;
    }
    if from == DType::Bool {
        let (one, zero) = (constant(b, to, 1.0), constant(b, to, 0.0));
        return b.selp(v, one, zero);
    }
    if from.is_int() {
        return from_int(b, target, v, from, to);
    }
    if from == DType::F64 {
        return from_f64(b, target, v, to);
    }
    let x = widen(b, target, from, v);
    if to == DType::F64 {
        return b.cvt(Num::F64, Num::F32, Round::Exact, x);
    }
    if to == DType::Bool {
        let zero = b.f32(0.0);
        return b.setp(Cmp::Neu, Num::F32, x, zero);
    }
    if to.is_int() { float_to_int(b, Num::F32, x, to) } else { narrow(b, target, to, x) }
}

/// A small constant of any type in its register.
fn constant(b: &mut Builder, ty: DType, v: f64) -> Val {
    let bits = value::bits(zellige_ir::Const::from_f64(ty, v));
    b.kernel.constant(value::class(ty), bits)
}

fn float_to_int(b: &mut Builder, source: Num, x: Val, to: DType) -> Val {
    let wide = to.bits() == 64;
    let signed = to.is_signed_int();
    let num = match (wide, signed) {
        (true, true) => Num::S64,
        (true, false) => Num::U64,
        (false, true) => Num::S32,
        (false, false) => Num::U32,
    };
    let mut v = b.cvt(num, source, Round::Rzi, x);
    if to.bits() < 32 {
        let (lo, hi) = match to {
            DType::I8 => (-128, 127),
            DType::U8 => (0, 255),
            DType::I16 => (-32768, 32767),
            _ => (0, 65535),
        };
        let (lo, hi) = (b.c32(lo), b.c32(hi));
        if signed {
            v = b.bin(Bin::Max, num, v, lo);
        }
        v = b.bin(Bin::Min, num, v, hi);
    }
    if wide || source == Num::F64 {
        // Only the 32-bit conversion from f32 is sure to turn a NaN into zero.
        let nan = b.setp(Cmp::IsNan, source, x, x);
        let zero = b.int(num.ty(), 0);
        v = b.selp(nan, zero, v);
    }
    v
}

fn from_int(b: &mut Builder, target: Target, v: Val, from: DType, to: DType) -> Val {
    let wide = from.bits() == 64;
    let source = match (wide, from.is_signed_int()) {
        (true, true) => Num::S64,
        (true, false) => Num::U64,
        (false, true) => Num::S32,
        (false, false) => Num::U32,
    };
    if to == DType::Bool {
        let zero = b.int(source.ty(), 0);
        return b.setp(Cmp::Ne, source, v, zero);
    }
    if to.is_int() {
        return match (wide, to.bits() == 64) {
            (true, true) => v,
            (false, true) => b.cvt(if source == Num::S32 { Num::S64 } else { Num::U64 }, source, Round::Exact, v),
            (true, false) => {
                let low = b.cvt(Num::U32, Num::U64, Round::Exact, v);
                extend(b, to, low)
            }
            (false, false) => extend(b, to, v),
        };
    }
    match to {
        DType::F32 => b.cvt(Num::F32, source, Round::Rn, v),
        DType::F64 => b.cvt(Num::F64, source, Round::Rn, v),
        DType::F16 => b.cvt(Num::F16, source, Round::Rn, v),
        _ => {
            let x = if from.bits() <= 16 {
                b.cvt(Num::F32, source, Round::Rn, v)
            } else {
                let x = b.cvt(Num::F32, source, Round::Rz, v);
                // Round to odd, so that the second rounding cannot err (Boldo and Melquiond 2008). The way back can
                // overflow only where the float is exact.
                let back = b.cvt(source, Num::F32, Round::Rzi, x);
                let inexact = b.setp(Cmp::Ne, source, back, v);
                make_odd(b, x, inexact)
            };
            narrow(b, target, to, x)
        }
    }
}

fn make_odd(b: &mut Builder, x: Val, inexact: Val) -> Val {
    let bits = b.bits(Ty::B32, x);
    let one = b.c32(1);
    let odd = b.bin(Bin::Or, Num::B32, bits, one);
    let bits = b.selp(inexact, odd, bits);
    b.bits(Ty::F32, bits)
}

fn from_f64(b: &mut Builder, target: Target, v: Val, to: DType) -> Val {
    match to {
        DType::F32 => b.cvt(Num::F32, Num::F64, Round::Rn, v),
        DType::F16 => b.cvt(Num::F16, Num::F64, Round::Rn, v),
        DType::Bool => {
            let zero = b.f64(0.0);
            b.setp(Cmp::Neu, Num::F64, v, zero)
        }
        _ if to.is_int() => float_to_int(b, Num::F64, v, to),
        _ => {
            let x = b.cvt(Num::F32, Num::F64, Round::Rz, v);
            let back = b.cvt(Num::F64, Num::F32, Round::Exact, x);
            let inexact = b.setp(Cmp::Ne, Num::F64, back, v);
            let x = make_odd(b, x, inexact);
            narrow(b, target, to, x)
        }
    }
}

/// A float of at most 32 bits as f32, exactly.
pub fn widen(b: &mut Builder, target: Target, from: DType, v: Val) -> Val {
    match from {
        DType::F32 => v,
        DType::F16 => b.cvt(Num::F32, Num::F16, Round::Exact, v),
        DType::BF16 => {
            // Straight from the packed word where there is one.
            if let Some(&crate::ptx::simt::SimtOp::Unpack { lo, x, .. }) = b.kernel.def(v) {
                let bits = if lo.0 == v {
                    let by = b.c32(16);
                    b.bin(Bin::Shl, Num::B32, x, by)
                } else {
                    let mask = b.c32(0xffff_0000);
                    b.bin(Bin::And, Num::B32, x, mask)
                };
                return b.bits(Ty::F32, bits);
            }
            let zero = b.zero(Ty::B16);
            let bits = b.pack(zero, v);
            b.bits(Ty::F32, bits)
        }
        DType::F8E4M3 if target.has_fp8_cvt() => {
            let (pair, _) = b.unpack(v);
            let halves = b.cvt_unpack(Packed::E4M3x2, pair);
            let (lo, _) = b.unpack(halves);
            b.cvt(Num::F32, Num::F16, Round::Exact, lo)
        }
        DType::F8E4M3 => {
            let x = small_float(b, v, 7, 20, 120);
            let magnitude = b.bfe(v, 0, 7);
            let top = b.c32(0x7f);
            let is_nan = b.setp(Cmp::Eq, Num::B32, magnitude, top);
            let nan = b.f32(f32::NAN);
            b.selp(is_nan, nan, x)
        }
        DType::F8E5M2 => {
            // The upper byte of an f16.
            let by = b.c32(8);
            let bits = b.bin(Bin::Shl, Num::B32, v, by);
            let (lo, _) = b.unpack(bits);
            b.cvt(Num::F32, Num::F16, Round::Exact, lo)
        }
        DType::F4E2M1 => small_float(b, v, 3, 22, 126),
        DType::E8M0 => {
            let by = b.c32(23);
            let bits = b.bin(Bin::Shl, Num::B32, v, by);
            let (zero, top) = (b.c32(0), b.c32(0xff));
            let (least, nan) = (b.c32(1 << 22), b.c32(0x7fc0_0000));
            let is_least = b.setp(Cmp::Eq, Num::B32, v, zero);
            let is_nan = b.setp(Cmp::Eq, Num::B32, v, top);
            let bits = b.selp(is_least, least, bits);
            let bits = b.selp(is_nan, nan, bits);
            b.bits(Ty::F32, bits)
        }
        DType::Bool
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Index
        | DType::F64 => unreachable!("only floats of at most 32 bits are widened"),
    }
}

/// A sign-magnitude float without special values: the magnitude's `bits` bits moved to f32's fields by `shift`, then
/// scaled by 2^`scale` to correct the bias; subnormals come out right because the product is exact.
fn small_float(b: &mut Builder, v: Val, bits: u32, shift: i64, scale: i32) -> Val {
    let magnitude = b.bfe(v, 0, bits);
    let by = b.c32(shift);
    let fields = b.bin(Bin::Shl, Num::B32, magnitude, by);
    let x = b.bits(Ty::F32, fields);
    let factor = b.f32(2f32.powi(scale));
    let x = b.mul(Num::F32, x, factor);
    let x_bits = b.bits(Ty::B32, x);
    let sign = b.bfe(v, bits, 1);
    let by = b.c32(31);
    let sign = b.bin(Bin::Shl, Num::B32, sign, by);
    let signed = b.bin(Bin::Or, Num::B32, x_bits, sign);
    b.bits(Ty::F32, signed)
}

/// An f32 rounded once to a float of at most 32 bits.
pub fn narrow(b: &mut Builder, target: Target, to: DType, x: Val) -> Val {
    match to {
        DType::F32 => x,
        DType::F16 => b.cvt(Num::F16, Num::F32, Round::Rn, x),
        DType::BF16 => b.cvt(Num::BF16, Num::F32, Round::Rn, x),
        DType::F8E4M3 | DType::F8E5M2 if target.has_fp8_cvt() => {
            let zero = b.f32(0.0);
            let to = if to == DType::F8E4M3 { Packed::E4M3x2 } else { Packed::E5M2x2 };
            let pair = b.cvt_pack(to, zero, x);
            let top = b.zero(Ty::B16);
            b.pack(pair, top)
        }
        DType::F8E4M3 => encode(b, x, Small { mantissa: 3, min_exp: -6, sign: 7, overflow: 0x7e, nan: 0x7f }),
        DType::F8E5M2 => encode(b, x, Small { mantissa: 2, min_exp: -14, sign: 7, overflow: 0x7b, nan: 0x7f }),
        DType::F4E2M1 => encode(b, x, Small { mantissa: 1, min_exp: 0, sign: 3, overflow: 7, nan: 7 }),
        DType::E8M0 => encode_scale(b, x),
        DType::Bool
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Index
        | DType::F64 => unreachable!("only floats of at most 32 bits are narrowed to"),
    }
}

/// A sign-magnitude format of at most 8 bits, as in `zellige_ir::numerics::minifloat`.
struct Small {
    mantissa: i64,
    min_exp: i64,
    sign: i64,
    overflow: i64,
    nan: i64,
}

fn encode(b: &mut Builder, x: Val, f: Small) -> Val {
    let magnitude = b.un(Un::Abs, Num::F32, x);
    let bits = b.bits(Ty::B32, magnitude);
    // Normal numbers: round the bits to nearest even at the format's last place, then correct the bias. A carry out of
    // the mantissa lands in the exponent, where it belongs.
    let drop = 23 - f.mantissa;
    let by = b.c32(drop);
    let last = b.bfe(bits, drop as u32, 1);
    let half = b.c32((1 << (drop - 1)) - 1);
    let rounded = b.add(Num::S32, bits, half);
    let rounded = b.add(Num::S32, rounded, last);
    let code = b.bin(Bin::Shr, Num::U32, rounded, by);
    let bias = b.c32(-((126 + f.min_exp) << f.mantissa));
    let normal = b.add(Num::S32, code, bias);
    // Subnormal numbers: the count of quanta.
    let quantum = b.f32(2f32.powi((f.mantissa - f.min_exp) as i32));
    let quanta = b.mul(Num::F32, magnitude, quantum);
    let quanta = b.cvt(Num::S32, Num::F32, Round::Rni, quanta);
    let least = b.f32(2f32.powi(f.min_exp as i32));
    let small = b.setp(Cmp::Lt, Num::F32, magnitude, least);
    let code = b.selp(small, quanta, normal);
    let top = b.c32(f.overflow);
    let code = b.bin(Bin::Min, Num::S32, code, top);
    let x_bits = b.bits(Ty::B32, x);
    let sign = b.bfe(x_bits, 31, 1);
    let by = b.c32(f.sign);
    let sign = b.bin(Bin::Shl, Num::B32, sign, by);
    let code = b.bin(Bin::Or, Num::B32, code, sign);
    let is_nan = b.setp(Cmp::IsNan, Num::F32, x, x);
    let nan = b.c32(f.nan);
    b.selp(is_nan, nan, code)
}

/// The least power of two at or above `x`.
fn encode_scale(b: &mut Builder, x: Val) -> Val {
    let bits = b.bits(Ty::B32, x);
    let up = b.c32(0x7f_ffff);
    let sum = b.add(Num::S32, bits, up);
    let by = b.c32(23);
    let code = b.bin(Bin::Shr, Num::U32, sum, by);
    let top = b.c32(0xfe);
    let code = b.bin(Bin::Min, Num::U32, code, top);
    // As integers, negative floats are negative; 2^-127 is subnormal.
    let least = b.c32(1 << 22);
    let small = b.setp(Cmp::Le, Num::S32, bits, least);
    let zero = b.c32(0);
    let code = b.selp(small, zero, code);
    let is_nan = b.setp(Cmp::IsNan, Num::F32, x, x);
    let nan = b.c32(0xff);
    b.selp(is_nan, nan, code)
}
