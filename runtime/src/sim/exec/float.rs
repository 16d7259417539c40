//! Floating-point arithmetic. Approximate instructions are computed with full precision, which lies within the bounds the
//! ISA manual documents for them; NaN results are the canonical NaN, as on the GPU.

use half::{bf16, f16};

use super::regs::Regs;
use super::round::{self, BF16, F16, directed, fma_f32, round_to, sum_to_odd};
use crate::sim::decode::op::{FltMode, FltOp, FltTy, Inst, Round};

/// Executes one floating-point instruction for the lanes of `m`.
pub fn exec(r: &mut Regs, i: &Inst, m: u32, op: FltOp, ty: FltTy, mode: FltMode) {
    match ty {
        FltTy::F32 => f32_op(r, i, m, op, mode),
        FltTy::F64 => f64_op(r, i, m, op),
        FltTy::F16 => half_op::<HalfF16, false>(r, i, m, op, mode),
        FltTy::Bf16 => half_op::<HalfBf16, false>(r, i, m, op, mode),
        FltTy::F16x2 => half_op::<HalfF16, true>(r, i, m, op, mode),
        FltTy::Bf16x2 => half_op::<HalfBf16, true>(r, i, m, op, mode),
    }
}

/// A subnormal becomes a zero of the same sign.
#[inline(always)]
pub fn flush(v: f32) -> f32 {
    let b = v.to_bits();
    if b & 0x7F80_0000 == 0 { f32::from_bits(b & 0x8000_0000) } else { v }
}

/// The bits of `v`, with every NaN made the canonical one.
#[inline(always)]
pub fn canonical(v: f32) -> u32 {
    if v.is_nan() { 0x7FFF_FFFF } else { v.to_bits() }
}

fn saturate(v: f32) -> f32 {
    // NaN becomes +0, as does -0.
    if v > 0.0 { v.min(1.0) } else { 0.0 }
}

macro_rules! min_max {
    ($min:ident, $max:ident, $t:ident) => {
        /// The smaller operand; a NaN loses unless `nan`; -0 is less than +0.
        #[inline(always)]
        pub fn $min(a: $t, b: $t, nan: bool) -> $t {
            if a.is_nan() || b.is_nan() {
                return match (a.is_nan(), b.is_nan(), nan) {
                    (_, _, true) | (true, true, _) => $t::NAN,
                    (true, false, false) => b,
                    (false, _, false) => a,
                };
            }
            if a == b {
                return if a.is_sign_negative() { a } else { b };
            }
            if a < b { a } else { b }
        }

        /// The larger operand, likewise.
        #[inline(always)]
        pub fn $max(a: $t, b: $t, nan: bool) -> $t {
            -$min(-a, -b, nan)
        }
    };
}

min_max!(min_f32, max_f32, f32);
min_max!(min_f64, max_f64, f64);

#[inline(always)]
fn un(r: &mut Regs, i: &Inst, m: u32, mode: FltMode, f: impl Fn(f32) -> f32) {
    let (ftz, sat) = (mode.ftz, mode.sat);
    r.map1(i.d, i.a, m, |a: u32| {
        let a = f32::from_bits(a);
        finish(f(if ftz { flush(a) } else { a }), ftz, sat)
    });
}

#[inline(always)]
fn finish(v: f32, ftz: bool, sat: bool) -> u32 {
    let v = if ftz { flush(v) } else { v };
    canonical(if sat { saturate(v) } else { v })
}

#[inline(always)]
fn bin(r: &mut Regs, i: &Inst, m: u32, mode: FltMode, f: impl Fn(f32, f32) -> f32) {
    if !mode.ftz && !mode.sat {
        r.map2(i.d, (i.a, i.b), m, |a: u32, b: u32| canonical(f(f32::from_bits(a), f32::from_bits(b))));
        return;
    }
    let (ftz, sat) = (mode.ftz, mode.sat);
    r.map2(i.d, (i.a, i.b), m, |a: u32, b: u32| {
        let (a, b) = (f32::from_bits(a), f32::from_bits(b));
        let v = if ftz { f(flush(a), flush(b)) } else { f(a, b) };
        finish(v, ftz, sat)
    });
}

fn f32_op(r: &mut Regs, i: &Inst, m: u32, op: FltOp, mode: FltMode) {
    use FltOp as O;
    let exact = |a: f32| f64::from(a);
    let round = mode.round;
    match op {
        O::Add if round == Round::Nearest => bin(r, i, m, mode, |a, b| a + b),
        O::Sub if round == Round::Nearest => bin(r, i, m, mode, |a, b| a - b),
        O::Mul if round == Round::Nearest => bin(r, i, m, mode, |a, b| a * b),
        O::Add => bin(r, i, m, mode, |a, b| directed(exact(a), exact(b), round)),
        O::Sub => bin(r, i, m, mode, |a, b| directed(exact(a), -exact(b), round)),
        O::Mul => bin(r, i, m, mode, |a, b| f32::from_bits(round_to(exact(a) * exact(b), round::F32, round, false))),
        O::Fma | O::FmaRelu => {
            let (ftz, sat, relu) = (mode.ftz, mode.sat, op == O::FmaRelu);
            r.map3(i.d, (i.a, i.b, i.c), m, |a: u32, b: u32, c: u32| {
                let (mut a, mut b, mut c) = (f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
                if ftz {
                    (a, b, c) = (flush(a), flush(b), flush(c));
                }
                let v = fma_f32(a, b, c, round);
                finish(if relu { max_f32(v, 0.0, true) } else { v }, ftz, sat)
            });
        }
        O::Div => bin(r, i, m, mode, |a, b| a / b),
        O::Min => bin(r, i, m, mode, |a, b| min_f32(a, b, false)),
        O::Max => bin(r, i, m, mode, |a, b| max_f32(a, b, false)),
        O::MinNan => bin(r, i, m, mode, |a, b| min_f32(a, b, true)),
        O::MaxNan => bin(r, i, m, mode, |a, b| max_f32(a, b, true)),
        O::CopySign => bin(r, i, m, mode, |a, b| b.copysign(a)),
        O::Neg => un(r, i, m, mode, |a| -a),
        O::Abs => un(r, i, m, mode, f32::abs),
        O::Rcp => un(r, i, m, mode, |a| 1.0 / a),
        O::Sqrt => un(r, i, m, mode, f32::sqrt),
        O::Rsqrt => un(r, i, m, mode, |a| (1.0 / f64::from(a).sqrt()) as f32),
        O::Ex2 => un(r, i, m, mode, f32::exp2),
        O::Lg2 => un(r, i, m, mode, f32::log2),
        O::Sin => un(r, i, m, mode, f32::sin),
        O::Cos => un(r, i, m, mode, f32::cos),
        O::Tanh => un(r, i, m, mode, f32::tanh),
    }
}

fn f64_op(r: &mut Regs, i: &Inst, m: u32, op: FltOp) {
    use FltOp as O;
    let f = f64::from_bits;
    let ab = (i.a, i.b);
    match op {
        O::Add => r.map2(i.d, ab, m, |a: u64, b: u64| (f(a) + f(b)).to_bits()),
        O::Sub => r.map2(i.d, ab, m, |a: u64, b: u64| (f(a) - f(b)).to_bits()),
        O::Mul => r.map2(i.d, ab, m, |a: u64, b: u64| (f(a) * f(b)).to_bits()),
        O::Div => r.map2(i.d, ab, m, |a: u64, b: u64| (f(a) / f(b)).to_bits()),
        O::Fma | O::FmaRelu => {
            r.map3(i.d, (i.a, i.b, i.c), m, |a: u64, b: u64, c: u64| f(a).mul_add(f(b), f(c)).to_bits());
        }
        O::Min => r.map2(i.d, ab, m, |a: u64, b: u64| min_f64(f(a), f(b), false).to_bits()),
        O::Max => r.map2(i.d, ab, m, |a: u64, b: u64| max_f64(f(a), f(b), false).to_bits()),
        O::MinNan => r.map2(i.d, ab, m, |a: u64, b: u64| min_f64(f(a), f(b), true).to_bits()),
        O::MaxNan => r.map2(i.d, ab, m, |a: u64, b: u64| max_f64(f(a), f(b), true).to_bits()),
        O::CopySign => r.map2(i.d, ab, m, |a: u64, b: u64| f(b).copysign(f(a)).to_bits()),
        O::Neg => r.map1(i.d, i.a, m, |a: u64| (-f(a)).to_bits()),
        O::Abs => r.map1(i.d, i.a, m, |a: u64| f(a).abs().to_bits()),
        O::Rcp => r.map1(i.d, i.a, m, |a: u64| (1.0 / f(a)).to_bits()),
        O::Sqrt => r.map1(i.d, i.a, m, |a: u64| f(a).sqrt().to_bits()),
        O::Rsqrt => r.map1(i.d, i.a, m, |a: u64| (1.0 / f(a).sqrt()).to_bits()),
        O::Ex2 => r.map1(i.d, i.a, m, |a: u64| f(a).exp2().to_bits()),
        O::Lg2 => r.map1(i.d, i.a, m, |a: u64| f(a).log2().to_bits()),
        O::Sin => r.map1(i.d, i.a, m, |a: u64| f(a).sin().to_bits()),
        O::Cos => r.map1(i.d, i.a, m, |a: u64| f(a).cos().to_bits()),
        O::Tanh => r.map1(i.d, i.a, m, |a: u64| f(a).tanh().to_bits()),
    }
}

/// A 16-bit format: exact widening and correctly rounded narrowing.
trait Half16 {
    const FMT: round::Format;
    fn widen(bits: u16) -> f32;
    fn narrow(v: f32) -> u16;
    /// Smallest normal magnitude, for `.ftz`.
    const MIN_NORMAL: f32;
}

struct HalfF16;
struct HalfBf16;

impl Half16 for HalfF16 {
    const FMT: round::Format = F16;
    const MIN_NORMAL: f32 = 6.103_515_6e-5;
    fn widen(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }
    fn narrow(v: f32) -> u16 {
        if v.is_nan() { 0x7FFF } else { f16::from_f32(v).to_bits() }
    }
}

impl Half16 for HalfBf16 {
    const FMT: round::Format = BF16;
    const MIN_NORMAL: f32 = f32::MIN_POSITIVE;
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
    fn narrow(v: f32) -> u16 {
        if v.is_nan() { 0x7FFF } else { bf16::from_f32(v).to_bits() }
    }
}

/// f32 is wide enough that rounding a sum, product or quotient of 16-bit values twice gives the single rounding
/// (Figueroa, 1995: 2p + 2 bits suffice); only the fused multiply-add needs round-to-odd.
fn half_one<H: Half16>(op: FltOp, a: u16, b: u16, c: u16, mode: FltMode) -> u16 {
    use FltOp as O;
    let ftz = |v: f32| if mode.ftz && v.abs() < H::MIN_NORMAL { 0.0f32.copysign(v) } else { v };
    let (x, y, z) = (ftz(H::widen(a)), ftz(H::widen(b)), ftz(H::widen(c)));
    let v = match op {
        O::Add => x + y,
        O::Sub => x - y,
        O::Mul => x * y,
        O::Fma | O::FmaRelu => {
            let sum = sum_to_odd(f64::from(x) * f64::from(y), f64::from(z));
            let bits = round_to(sum, H::FMT, Round::Nearest, false) as u16;
            let v = H::widen(bits);
            if op == O::FmaRelu { max_f32(v, 0.0, true) } else { v }
        }
        O::Div => x / y,
        O::Min => min_f32(x, y, false),
        O::Max => max_f32(x, y, false),
        O::MinNan => min_f32(x, y, true),
        O::MaxNan => max_f32(x, y, true),
        O::CopySign => y.copysign(x),
        O::Neg => -x,
        O::Abs => x.abs(),
        O::Rcp => 1.0 / x,
        O::Sqrt => x.sqrt(),
        O::Rsqrt => 1.0 / x.sqrt(),
        O::Ex2 => x.exp2(),
        O::Lg2 => x.log2(),
        O::Sin => x.sin(),
        O::Cos => x.cos(),
        O::Tanh => x.tanh(),
    };
    let v = if mode.sat { saturate(v) } else { v };
    H::narrow(ftz(v))
}

fn half_op<H: Half16, const PACKED: bool>(r: &mut Regs, i: &Inst, m: u32, op: FltOp, mode: FltMode) {
    let (a, b, c): ([u32; 32], [u32; 32], [u32; 32]) = (r.get(i.a), r.get(i.b), r.get(i.c));
    let mut out = [0u32; 32];
    for l in super::regs::lanes(m) {
        let lo = half_one::<H>(op, a[l] as u16, b[l] as u16, c[l] as u16, mode);
        out[l] = u32::from(lo);
        if PACKED {
            let hi = half_one::<H>(op, (a[l] >> 16) as u16, (b[l] >> 16) as u16, (c[l] >> 16) as u16, mode);
            out[l] |= u32::from(hi) << 16;
        }
    }
    r.put(i.d, &out, m);
}

#[cfg(test)]
mod tests {
    use super::*;

    const RN: FltMode = FltMode { round: Round::Nearest, ftz: false, sat: false };

    #[test]
    fn minimum_prefers_numbers_and_negative_zero() {
        assert_eq!(min_f32(f32::NAN, 1.0, false), 1.0);
        assert!(min_f32(f32::NAN, 1.0, true).is_nan());
        assert!(min_f32(0.0, -0.0, false).is_sign_negative());
        assert!(max_f32(-0.0, 0.0, false).is_sign_positive());
        assert_eq!(max_f32(2.0, f32::NAN, false), 2.0);
    }

    #[test]
    fn half_fma_rounds_once() {
        // 0x3C01 * 0x3C01 = 1 + 2^-9 + 2^-20: the tail decides the rounding that a two-step computation loses.
        let one_ulp = 0x3C01;
        assert_eq!(half_one::<HalfF16>(FltOp::Fma, one_ulp, one_ulp, 0, RN), 0x3C02);
        // bf16: 1 * 1 + tiny stays 1, 1.0039 tie + tiny goes up.
        assert_eq!(half_one::<HalfBf16>(FltOp::Fma, 0x3F80, 0x3F80, 0x0001, RN), 0x3F80);
        let tie = (0x3F81, 0x3F01); // (1+2^-7) * (0.5+2^-8): not representable, the addend breaks the tie
        let down = half_one::<HalfBf16>(FltOp::Fma, tie.0, tie.1, 0x8001, RN);
        let up = half_one::<HalfBf16>(FltOp::Fma, tie.0, tie.1, 0x0001, RN);
        assert!(up >= down);
    }

    #[test]
    fn saturation_and_flushing() {
        assert_eq!(finish(2.0, false, true), 1.0f32.to_bits());
        assert_eq!(finish(f32::NAN, false, true), 0);
        assert_eq!(flush(-1e-40).to_bits(), 0x8000_0000);
        assert_eq!(canonical(-f32::NAN), 0x7FFF_FFFF);
    }
}
