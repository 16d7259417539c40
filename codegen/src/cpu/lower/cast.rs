//! Conversions between element types, bit for bit those of `numerics::cast`, written once for scalars and vectors.
//!
//! Narrow floats are unpacked to f32 (always exact) and packed from f32 with one rounding. What an f32 cannot hold
//! (f64, wide integers) is first rounded to odd, after which a second rounding to a narrower format gives the result
//! of a single one (Boldo and Melquiond 2008).

use super::Lower;
use super::rep::{Rep, reg};
use crate::cpu::loopir::{BinOp, Builder, FloatCc, IntCc, Ty, UnOp, Val};
use zellige_ir::DType;

/// A sign-magnitude float format of at most 16 bits.
#[derive(Clone, Copy)]
struct Format {
    mantissa: u32,
    bias: i32,
    /// Position of the sign bit.
    sign: u32,
    /// Largest magnitude code that a number rounds to: the saturation value, or infinity.
    overflow: i32,
    nan: i32,
    /// Magnitude code of infinity, which decodes specially, as do codes above it (NaN).
    infinity: Option<i32>,
    /// The one magnitude code of NaN in a format without infinity.
    only_nan: Option<i32>,
}

fn format(ty: DType) -> Option<Format> {
    let f = |mantissa, bias, sign, overflow, nan, infinity, only_nan| {
        Some(Format { mantissa, bias, sign, overflow, nan, infinity, only_nan })
    };
    match ty {
        DType::F16 => f(10, 15, 15, 0x7c00, 0x7e00, Some(0x7c00), None),
        DType::F8E4M3 => f(3, 7, 7, 0x7e, 0x7f, None, Some(0x7f)),
        DType::F8E5M2 => f(2, 15, 7, 0x7b, 0x7f, Some(0x7c), None),
        DType::F4E2M1 => f(1, 1, 3, 0x7, 0x7, None, None),
        DType::BF16
        | DType::E8M0
        | DType::F32
        | DType::F64
        | DType::Bool
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Index => None,
    }
}

/// The float type in the shape of an i32 register.
fn float_like(ty: Ty) -> Ty {
    if ty.is_vector() { Ty::F32x4 } else { Ty::F32 }
}

/// The value of a narrow float's bits as f32.
pub(crate) fn unpack(b: &mut Builder, ty: DType, bits: Val) -> Val {
    let float = float_like(b.ty(bits));
    match (ty, format(ty)) {
        (DType::BF16, _) => {
            let wide = b.bin_imm(BinOp::Shl, bits, 16);
            b.bitcast(float, wide)
        }
        (DType::E8M0, _) => {
            // 2^(code-127): the exponent field, but for the subnormal 2^-127 and NaN.
            let int = b.ty(bits);
            let field = b.bin_imm(BinOp::Shl, bits, 23);
            let (zero, all) = (b.imm(int, 0), b.imm(int, 0xff));
            let is_zero = b.icmp(IntCc::Eq, bits, zero);
            let is_nan = b.icmp(IntCc::Eq, bits, all);
            let (tiny, nan) = (b.imm(int, 1 << 22), b.imm(int, 0x7fc0_0000));
            let r = b.select(is_zero, tiny, field);
            let r = b.select(is_nan, nan, r);
            b.bitcast(float, r)
        }
        (_, Some(f)) => unpack_format(b, f, bits),
        _ => bits,
    }
}

fn unpack_format(b: &mut Builder, f: Format, bits: Val) -> Val {
    let int = b.ty(bits);
    let float = float_like(int);
    let magnitude = b.bin_imm(BinOp::And, bits, (1 << f.sign) - 1);
    // As an f32 with the same exponent field the value is 2^(bias - 127) of what it should be; the multiplication is
    // exact and turns subnormals of the format into normal numbers.
    let shifted = b.bin_imm(BinOp::Shl, magnitude, i64::from(23 - f.mantissa));
    let small = b.bitcast(float, shifted);
    let scale = b.imm(float, u64::from(f32::to_bits(2f32.powi(127 - f.bias))));
    let value = b.bin(BinOp::FMul, small, scale);
    let mut value = b.bitcast(int, value);
    if let Some(infinity) = f.infinity {
        // An exponent field of ones stays one of ones.
        let limit = b.imm(int, infinity as u64 - 1);
        let special = b.icmp(IntCc::Sgt, magnitude, limit);
        let ones = b.imm(int, 0x7f80_0000);
        let wide = b.bin(BinOp::Or, shifted, ones);
        value = b.select(special, wide, value);
    }
    if let Some(nan) = f.only_nan {
        let code = b.imm(int, nan as u64);
        let is_nan = b.icmp(IntCc::Eq, magnitude, code);
        let quiet = b.imm(int, 0x7fc0_0000);
        value = b.select(is_nan, quiet, value);
    }
    let sign = b.bin_imm(BinOp::UShr, bits, i64::from(f.sign));
    let sign = b.bin_imm(BinOp::Shl, sign, 31);
    let value = b.bin(BinOp::Or, value, sign);
    b.bitcast(float, value)
}

/// The bits of a narrow float nearest to an f32.
pub(crate) fn pack(b: &mut Builder, ty: DType, x: Val) -> Val {
    let int = b.ty(x).as_int();
    let bits = b.bitcast(int, x);
    match (ty, format(ty)) {
        (DType::BF16, _) => {
            let odd = b.bin_imm(BinOp::UShr, bits, 16);
            let odd = b.bin_imm(BinOp::And, odd, 1);
            let rounded = b.bin_imm(BinOp::Add, bits, 0x7fff);
            let rounded = b.add(rounded, odd);
            let rounded = b.bin_imm(BinOp::UShr, rounded, 16);
            let is_nan = b.fcmp(FloatCc::Uno, x, x);
            let nan = b.imm(int, 0x7fc0);
            b.select(is_nan, nan, rounded)
        }
        (DType::E8M0, _) => {
            // Up to the next power of two: a carry into the exponent unless the mantissa is zero.
            let up = b.bin_imm(BinOp::Add, bits, 0x7f_ffff);
            let code = b.bin_imm(BinOp::UShr, up, 23);
            let top = b.imm(int, 0xfe);
            let code = b.bin(BinOp::SMin, code, top);
            // 2^-127 and everything below it, zero and negative numbers included.
            let limit = b.imm(b.ty(x), 1 << 22);
            let tiny = b.fcmp(FloatCc::Le, x, limit);
            let zero = b.imm(int, 0);
            let code = b.select(tiny, zero, code);
            let is_nan = b.fcmp(FloatCc::Uno, x, x);
            let nan = b.imm(int, 0xff);
            b.select(is_nan, nan, code)
        }
        (_, Some(f)) => pack_format(b, f, x, bits),
        _ => x,
    }
}

fn pack_format(b: &mut Builder, f: Format, x: Val, bits: Val) -> Val {
    let (int, float) = (b.ty(bits), b.ty(x));
    let magnitude = b.bin_imm(BinOp::And, bits, 0x7fff_ffff);
    let shift = i64::from(23 - f.mantissa);
    // Normal results: rebias, and round half to even by adding half a quantum less one, plus the last kept bit.
    let odd = b.bin_imm(BinOp::UShr, magnitude, shift);
    let odd = b.bin_imm(BinOp::And, odd, 1);
    let rebias = (i64::from(f.bias) - 127) * (1 << 23) + (1 << (shift - 1)) - 1;
    let normal = b.bin_imm(BinOp::Add, magnitude, rebias);
    let normal = b.add(normal, odd);
    let normal = b.bin_imm(BinOp::SShr, normal, shift);
    // Subnormal results: adding a power of two whose quantum is the format's leaves the rounded code in the low bits.
    let magic = ((127 - f.bias) + (23 - f.mantissa as i32) + 1) << 23;
    let magic_bits = b.imm(int, magic as u64);
    let magic_float = b.imm(float, magic as u64);
    let abs = b.bitcast(float, magnitude);
    let sum = b.bin(BinOp::FAdd, abs, magic_float);
    let sum = b.bitcast(int, sum);
    let subnormal = b.sub(sum, magic_bits);
    let first_normal = b.imm(int, (((127 - f.bias + 1) as u32) << 23) as u64);
    let is_subnormal = b.icmp(IntCc::Slt, magnitude, first_normal);
    let top = b.imm(int, f.overflow as u64);
    let normal = b.bin(BinOp::SMin, normal, top);
    let code = b.select(is_subnormal, subnormal, normal);
    let sign = b.bin_imm(BinOp::UShr, bits, 31);
    let sign = b.bin_imm(BinOp::Shl, sign, i64::from(f.sign));
    let code = b.bin(BinOp::Or, code, sign);
    let is_nan = b.fcmp(FloatCc::Uno, x, x);
    let nan = b.imm(int, f.nan as u64);
    b.select(is_nan, nan, code)
}

/// An f64 scalar as an f32 that any narrower format rounds to the same code.
fn f64_to_odd_f32(b: &mut Builder, x: Val) -> Val {
    let near = b.convert(UnOp::Demote, Ty::F32, x);
    let back = b.convert(UnOp::Promote, Ty::F64, near);
    let (abs_x, abs_back) = (b.un(UnOp::FAbs, x), b.un(UnOp::FAbs, back));
    let bits = b.bitcast(Ty::I32, near);
    // Towards zero, then the last bit set if anything was lost. NaN compares false and stays.
    let too_far = b.fcmp(FloatCc::Gt, abs_back, abs_x);
    let inexact = b.fcmp(FloatCc::Ne, back, x);
    let (one, zero) = (b.i32(1), b.i32(0));
    let less = b.select(too_far, one, zero);
    let truncated = b.sub(bits, less);
    let odd = b.bin(BinOp::Or, truncated, one);
    let is_nan = b.fcmp(FloatCc::Uno, x, x);
    let odd = b.select(inexact, odd, bits);
    let odd = b.select(is_nan, bits, odd);
    b.bitcast(Ty::F32, odd)
}

/// An i64 or u64 scalar as an f64 that any narrower format rounds to the same code.
fn int_to_odd_f64(b: &mut Builder, x: Val, signed: bool) -> Val {
    let zero = b.i64(0);
    let negative = if signed { b.icmp(IntCc::Slt, x, zero) } else { b.bits(Ty::I8, 0) };
    let minus = b.sub(zero, x);
    let magnitude = b.select(negative, minus, x);
    // Fold the low 11 bits into one where there are more than 53.
    let low = b.bin_imm(BinOp::And, magnitude, 0x7ff);
    let lost = b.icmp(IntCc::Ne, low, zero);
    let lost = b.convert(UnOp::ZExt, Ty::I64, lost);
    let high = b.bin_imm(BinOp::UShr, magnitude, 11);
    let high = b.bin(BinOp::Or, high, lost);
    let folded = b.bin_imm(BinOp::Shl, high, 11);
    let top = b.bin_imm(BinOp::UShr, magnitude, 53);
    let fits = b.icmp(IntCc::Eq, top, zero);
    let m = b.select(fits, magnitude, folded);
    let f = b.convert(UnOp::UToF, Ty::F64, m);
    let minus_f = b.un(UnOp::FNeg, f);
    b.select(negative, minus_f, f)
}

impl Lower<'_> {
    /// `rep` of type `from` converted to `to`.
    pub(crate) fn cast(&mut self, rep: Rep, from: DType, to: DType) -> Rep {
        if from == to || (from == DType::Index && to == DType::I64) || (from == DType::I64 && to == DType::Index) {
            return rep;
        }
        if let Rep::Lin { base, step } = rep {
            // The low 32 bits of a linear index are linear in any vector.
            let narrow = to.is_int() && to.bits() <= 32;
            if narrow || (to.is_float() && self.fits_i32(base, step)) {
                let v = self.linear_i32(base, step);
                return self.cast(Rep::Vec(v), DType::I32, to);
            }
        }
        let vector = vectorises(from, to);
        self.apply(&[(rep, from)], to, vector, &mut |l, x| l.cast_val(x[0], from, to))
    }

    /// One conversion in registers, scalar or vector.
    pub(crate) fn cast_val(&mut self, x: Val, from: DType, to: DType) -> Val {
        if from == to {
            return x;
        }
        if from == DType::Bool {
            let int = self.bool_to_int(x);
            return self.cast_val(int, DType::U8, to);
        }
        if from.is_float() { self.cast_float(x, from, to) } else { self.cast_int(x, from, to) }
    }

    /// 0 or 1 as an i32 or i32x4.
    fn bool_to_int(&mut self, x: Val) -> Val {
        if self.b.ty(x).is_vector() { self.b.bin_imm(BinOp::And, x, 1) } else { self.b.convert(UnOp::ZExt, Ty::I32, x) }
    }

    fn cast_float(&mut self, x: Val, from: DType, to: DType) -> Val {
        let b = &mut self.b;
        if from == DType::F64 {
            return match to {
                DType::F32 => b.convert(UnOp::Demote, Ty::F32, x),
                _ if to.is_float() => {
                    let odd = f64_to_odd_f32(b, x);
                    pack(b, to, odd)
                }
                _ => self.float_to_int(x, to),
            };
        }
        let wide = if from == DType::F32 { x } else { unpack(b, from, x) };
        match to {
            DType::F32 => wide,
            DType::F64 => b.convert(UnOp::Promote, Ty::F64, wide),
            _ if to.is_float() => pack(b, to, wide),
            _ => self.float_to_int(wide, to),
        }
    }

    /// From f32 or f64: towards zero, saturating, NaN to zero.
    fn float_to_int(&mut self, x: Val, to: DType) -> Val {
        let b = &mut self.b;
        let int = if b.ty(x).is_vector() { Ty::I32x4 } else { Ty::I32 };
        let clamped = |b: &mut Builder, lo: i32, hi: i32| {
            let i = b.convert(UnOp::FToS, int, x);
            let (lo, hi) = (b.imm(int, lo as u64), b.imm(int, hi as u64));
            let i = b.bin(BinOp::SMax, i, lo);
            b.bin(BinOp::SMin, i, hi)
        };
        match to {
            DType::Bool => {
                let ty = b.ty(x);
                let zero = b.imm(ty, 0);
                b.fcmp(FloatCc::Ne, x, zero)
            }
            DType::I8 => clamped(b, -128, 127),
            DType::I16 => clamped(b, -32768, 32767),
            DType::U8 => clamped(b, 0, 255),
            DType::U16 => clamped(b, 0, 65535),
            DType::I32 => b.convert(UnOp::FToS, int, x),
            DType::U32 => b.convert(UnOp::FToU, int, x),
            DType::I64 | DType::Index => b.convert(UnOp::FToS, Ty::I64, x),
            DType::U64 => b.convert(UnOp::FToU, Ty::I64, x),
            DType::F16
            | DType::BF16
            | DType::F32
            | DType::F64
            | DType::F8E4M3
            | DType::F8E5M2
            | DType::F4E2M1
            | DType::E8M0 => x,
        }
    }

    fn cast_int(&mut self, x: Val, from: DType, to: DType) -> Val {
        let wide = reg(from) == Ty::I64;
        let signed = from.is_signed_int();
        let b = &mut self.b;
        match to {
            DType::Bool => {
                let zero = b.imm(b.ty(x), 0);
                b.icmp(IntCc::Ne, x, zero)
            }
            _ if to.is_int() && reg(to) == Ty::I64 => match (wide, signed) {
                (true, _) => x,
                (false, true) => b.convert(UnOp::SExt, Ty::I64, x),
                (false, false) => b.convert(UnOp::ZExt, Ty::I64, x),
            },
            _ if to.is_int() => {
                let low = if wide { b.convert(UnOp::Reduce, Ty::I32, x) } else { x };
                self.normalise(low, to)
            }
            DType::F32 if b.ty(x).is_vector() => {
                let op = if from == DType::U32 { UnOp::UToF } else { UnOp::SToF };
                b.convert(op, Ty::F32x4, x)
            }
            DType::F32 => b.convert(if signed { UnOp::SToF } else { UnOp::UToF }, Ty::F32, x),
            DType::F64 => b.convert(if signed { UnOp::SToF } else { UnOp::UToF }, Ty::F64, x),
            _ if from.bits() <= 16 => {
                let float = float_like(b.ty(x));
                let f = b.convert(UnOp::SToF, float, x);
                pack(b, to, f)
            }
            _ => {
                let f = match (wide, signed) {
                    (true, signed) => int_to_odd_f64(b, x, signed),
                    (false, true) => b.convert(UnOp::SToF, Ty::F64, x),
                    (false, false) => b.convert(UnOp::UToF, Ty::F64, x),
                };
                let odd = f64_to_odd_f32(b, f);
                pack(b, to, odd)
            }
        }
    }

    /// Wraps a 32-bit value to an integer type of at most that width.
    pub(crate) fn normalise(&mut self, x: Val, ty: DType) -> Val {
        let b = &mut self.b;
        match ty {
            DType::U8 => b.bin_imm(BinOp::And, x, 0xff),
            DType::U16 => b.bin_imm(BinOp::And, x, 0xffff),
            DType::I8 | DType::I16 => {
                let k = 32 - ty.bits() as i64;
                let up = b.bin_imm(BinOp::Shl, x, k);
                b.bin_imm(BinOp::SShr, up, k)
            }
            DType::Bool
            | DType::I32
            | DType::I64
            | DType::U32
            | DType::U64
            | DType::Index
            | DType::F16
            | DType::BF16
            | DType::F32
            | DType::F64
            | DType::F8E4M3
            | DType::F8E5M2
            | DType::F4E2M1
            | DType::E8M0 => x,
        }
    }

    /// The bits of `x` as type `to` of the same width.
    pub(crate) fn bitcast(&mut self, rep: Rep, from: DType, to: DType) -> Rep {
        if from == to {
            return rep;
        }
        self.apply(&[(rep, from)], to, true, &mut |l, x| {
            let shape = |ty: Ty| if l.b.ty(x[0]).is_vector() { ty.vector() } else { ty };
            let (int, out) = (shape(reg(from).as_int()), shape(reg(to)));
            let bits = l.b.bitcast(int, x[0]);
            // Integers below 32 bits are held extended by their own sign, narrow floats zero-extended.
            let unsigned = match to.bits() {
                4 => l.b.bin_imm(BinOp::And, bits, 0xf),
                8 => l.b.bin_imm(BinOp::And, bits, 0xff),
                16 => l.b.bin_imm(BinOp::And, bits, 0xffff),
                _ => bits,
            };
            let bits = l.normalise(unsigned, to);
            l.b.bitcast(out, bits)
        })
    }
}

/// Is there a vector sequence for the conversion?
pub(crate) fn vectorises(from: DType, to: DType) -> bool {
    let wide_int_to_narrow_float =
        from.is_int() && from.bits() == 32 && to.is_float() && !matches!(to, DType::F32 | DType::F64);
    !wide_int_to_narrow_float
}
