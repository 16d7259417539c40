//! Scalar ops: arithmetic, comparison, selection, with the semantics of `zellige_ir::eval`.

use super::cast::{pack, unpack};
use super::math::Emit;
use super::rep::{Rep, W};
use super::{Lower, Result};
use crate::cpu::abi::FailureKind;
use crate::cpu::loopir::{BinOp, Builder, FloatCc, Helper, IntCc, Ty, UnOp, Val};
use zellige_ir::numerics::math;
use zellige_ir::{BinaryOp, CmpOp, DType, Op, UnaryOp};

/// Is the type computed in f32 and rounded?
fn is_narrow_float(ty: DType) -> bool {
    matches!(ty, DType::F16 | DType::BF16)
}

impl Lower<'_> {
    pub(super) fn unary(&mut self, op: UnaryOp, x: Rep, ty: DType) -> Rep {
        let out = match op {
            UnaryOp::IsNan | UnaryOp::IsFinite => DType::Bool,
            _ => ty,
        };
        // Population count and leading zeros have no vector instruction for 32-bit lanes.
        let vector = !matches!(op, UnaryOp::Popcount | UnaryOp::Clz);
        if let (Rep::Lin { base, step }, UnaryOp::Neg) = (x, op) {
            let zero = self.b.i64(0);
            return Rep::Lin { base: self.b.sub(zero, base), step: -step };
        }
        self.apply(&[(x, ty)], out, vector, &mut |l, x| l.unary_val(op, x[0], ty))
    }

    fn unary_val(&mut self, op: UnaryOp, x: Val, ty: DType) -> Val {
        let b = &mut self.b;
        if ty == DType::Bool {
            return logical_not(b, x);
        }
        if ty.is_int() {
            return self.int_unary(op, x, ty);
        }
        // On the bits, so that they hold for NaN and narrow types as they are.
        match op {
            UnaryOp::Neg | UnaryOp::Abs => {
                if ty == DType::F32 || ty == DType::F64 {
                    return b.un(if op == UnaryOp::Neg { UnOp::FNeg } else { UnOp::FAbs }, x);
                }
                let sign = 1i64 << (ty.bits() - 1);
                return match op {
                    UnaryOp::Neg => b.bin_imm(BinOp::Xor, x, sign),
                    _ => b.bin_imm(BinOp::And, x, sign - 1),
                };
            }
            _ => {}
        }
        if is_narrow_float(ty) {
            let wide = unpack(b, ty, x);
            let r = self.float_unary(op, wide);
            return match op {
                UnaryOp::IsNan | UnaryOp::IsFinite => r,
                _ => pack(&mut self.b, ty, r),
            };
        }
        if ty == DType::F64 && is_elementary(op) {
            let position = UnaryOp::ALL.iter().position(|o| *o == op).expect("every op is listed");
            let bits = b.bitcast(Ty::I64, x);
            let function = b.i64(position as i64);
            let r = b.call_value(Helper::F64Math, vec![function, bits]);
            return b.bitcast(Ty::F64, r);
        }
        self.float_unary(op, x)
    }

    /// On f32, f32x4 and (without elementary functions) f64.
    fn float_unary(&mut self, op: UnaryOp, x: Val) -> Val {
        let float = self.b.ty(x);
        let a = &mut Emit { b: &mut self.b, float };
        match op {
            UnaryOp::Exp => math::exp(a, x),
            UnaryOp::Exp2 | UnaryOp::FastExp2 => math::exp2(a, x),
            UnaryOp::Log => math::log(a, x),
            UnaryOp::Log2 | UnaryOp::FastLog2 => math::log2(a, x),
            UnaryOp::Log1p => math::log1p(a, x),
            UnaryOp::Sin => math::sin(a, x),
            UnaryOp::Cos => math::cos(a, x),
            UnaryOp::Tanh | UnaryOp::FastTanh => math::tanh(a, x),
            UnaryOp::Sqrt => a.b.un(UnOp::Sqrt, x),
            UnaryOp::Rsqrt | UnaryOp::FastRsqrt => {
                let root = a.b.un(UnOp::Sqrt, x);
                reciprocal(a.b, root)
            }
            UnaryOp::Rcp | UnaryOp::FastRcp => reciprocal(a.b, x),
            UnaryOp::Floor => a.b.un(UnOp::Floor, x),
            UnaryOp::Ceil => a.b.un(UnOp::Ceil, x),
            UnaryOp::Trunc => a.b.un(UnOp::Trunc, x),
            UnaryOp::Round => a.b.un(UnOp::Nearest, x),
            UnaryOp::IsNan => a.b.fcmp(FloatCc::Uno, x, x),
            UnaryOp::IsFinite => {
                let magnitude = a.b.un(UnOp::FAbs, x);
                let infinity = float_imm(a.b, float, f64::INFINITY);
                a.b.fcmp(FloatCc::Lt, magnitude, infinity)
            }
            // Integer ops do not reach this; the verifier rejects them on floats. Sign ops were done on the bits.
            UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Not | UnaryOp::Popcount | UnaryOp::Clz => x,
        }
    }

    fn int_unary(&mut self, op: UnaryOp, x: Val, ty: DType) -> Val {
        let b = &mut self.b;
        let zero = b.imm(b.ty(x), 0);
        let r = match op {
            UnaryOp::Neg => b.sub(zero, x),
            UnaryOp::Abs if ty.is_signed_int() => {
                let minus = b.sub(zero, x);
                b.bin(BinOp::SMax, x, minus)
            }
            UnaryOp::Not => b.un(UnOp::Not, x),
            UnaryOp::Popcount | UnaryOp::Clz => {
                // Signed narrow integers are held sign-extended: count within their own width.
                let low = match ty.bits() {
                    n @ (8 | 16) => b.bin_imm(BinOp::And, x, (1 << n) - 1),
                    _ => x,
                };
                if op == UnaryOp::Popcount {
                    b.un(UnOp::Popcnt, low)
                } else {
                    let count = b.un(UnOp::Clz, low);
                    let unused = (b.ty(low).bytes() * 8 - ty.bits()) as i64;
                    b.add_imm(count, -unused)
                }
            }
            _ => x,
        };
        self.normalise(r, ty)
    }

    pub(super) fn binary(&mut self, at: Op, op: BinaryOp, x: Rep, y: Rep, ty: DType) -> Result<Rep> {
        if ty == DType::Index
            && let Some(r) = self.linear(op, x, y)
        {
            return Ok(r);
        }
        if ty.is_int() && matches!(op, BinaryOp::Div | BinaryOp::Rem | BinaryOp::CeilDiv) {
            self.refuse_zero_divisor(at, y, ty);
        }
        let vector = match op {
            BinaryOp::Div | BinaryOp::Rem | BinaryOp::CeilDiv | BinaryOp::MulHi => ty.is_float(),
            // No per-lane shifts; a uniform amount is handled below.
            BinaryOp::Shl | BinaryOp::Shr => false,
            _ => true,
        };
        if let (BinaryOp::Shl | BinaryOp::Shr, Rep::Vec(v), Rep::Uni(n)) = (op, x, y)
            && ty.is_int()
        {
            return Ok(Rep::Vec(self.shift(op, v, n, ty)));
        }
        Ok(self.apply(&[(x, ty), (y, ty)], ty, vector, &mut |l, v| l.binary_val(op, v[0], v[1], ty)))
    }

    /// Leaves the kernel if a divisor is zero in some iteration.
    fn refuse_zero_divisor(&mut self, at: Op, y: Rep, ty: DType) {
        let lanes = match y {
            Rep::Uni(v) => vec![v],
            _ => self.as_lanes(y, ty).to_vec(),
        };
        for v in lanes {
            if self.b.as_const(v).is_some_and(|c| c != 0) {
                continue;
            }
            let zero = self.b.imm(self.b.ty(v), 0);
            let is_zero = self.b.icmp(IntCc::Eq, v, zero);
            self.exit_if(is_zero, at, FailureKind::DivisionByZero);
        }
    }

    /// `index` arithmetic that keeps a linear index linear, or makes four neighbouring indices one.
    fn linear(&mut self, op: BinaryOp, x: Rep, y: Rep) -> Option<Rep> {
        let parts = |r: Rep| match r {
            Rep::Uni(v) => Some((v, 0)),
            Rep::Lin { base, step } => Some((base, step)),
            Rep::Vec(_) | Rep::Lanes(_) => None,
        };
        let ((xb, xs), (yb, ys)) = (parts(x)?, parts(y)?);
        if xs == 0 && ys == 0 {
            return None;
        }
        let lin = |base, step| Some(if step == 0 { Rep::Uni(base) } else { Rep::Lin { base, step } });
        match op {
            BinaryOp::Add => lin(self.b.add(xb, yb), xs + ys),
            BinaryOp::Sub => lin(self.b.sub(xb, yb), xs - ys),
            BinaryOp::Mul => {
                let (base, step, factor) = if ys == 0 { (xb, xs, yb) } else { (yb, ys, xb) };
                if xs != 0 && ys != 0 {
                    return None;
                }
                let c = self.b.as_const(factor)?;
                lin(self.b.mul(base, factor), step.checked_mul(c)?)
            }
            BinaryOp::Div | BinaryOp::Rem if ys == 0 => {
                // Four neighbours from a multiple of four stay in one group of a multiple of four.
                let c = self.b.as_const(yb)?;
                let aligned = self.b.facts(xb).align >= W as u64 && c % W as i64 == 0;
                if !(xs == 1 && c > 0 && aligned) {
                    return None;
                }
                let quotient = self.binary_val(BinaryOp::Div, xb, yb, DType::Index);
                if op == BinaryOp::Div {
                    return Some(Rep::Uni(quotient));
                }
                let below = self.b.mul(quotient, yb);
                lin(self.b.sub(xb, below), 1)
            }
            _ => None,
        }
    }

    fn binary_val(&mut self, op: BinaryOp, x: Val, y: Val, ty: DType) -> Val {
        let b = &mut self.b;
        match op {
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => {
                // Extended operands give an extended result.
                let op = match op {
                    BinaryOp::And => BinOp::And,
                    BinaryOp::Or => BinOp::Or,
                    _ => BinOp::Xor,
                };
                return b.bin(op, x, y);
            }
            BinaryOp::CopySign => {
                let (out, int) = (b.ty(x), b.ty(x).as_int());
                let (x, y) = (b.bitcast(int, x), b.bitcast(int, y));
                let sign = 1u64 << (ty.bits() - 1);
                let (keep, take) = (b.imm(int, sign - 1), b.imm(int, sign));
                let (x, y) = (b.bin(BinOp::And, x, keep), b.bin(BinOp::And, y, take));
                let r = b.bin(BinOp::Or, x, y);
                return b.bitcast(out, r);
            }
            _ => {}
        }
        if ty.is_int() {
            return self.int_binary(op, x, y, ty);
        }
        if is_narrow_float(ty) {
            let (wx, wy) = (unpack(b, ty, x), unpack(b, ty, y));
            let r = float_binary(b, op, wx, wy);
            return pack(b, ty, r);
        }
        float_binary(b, op, x, y)
    }

    fn int_binary(&mut self, op: BinaryOp, x: Val, y: Val, ty: DType) -> Val {
        let signed = ty.is_signed_int();
        let b = &mut self.b;
        let r = match op {
            BinaryOp::Add => b.add(x, y),
            BinaryOp::Sub => b.sub(x, y),
            BinaryOp::Mul => b.mul(x, y),
            BinaryOp::Min => b.bin(if signed { BinOp::SMin } else { BinOp::UMin }, x, y),
            BinaryOp::Max => b.bin(if signed { BinOp::SMax } else { BinOp::UMax }, x, y),
            BinaryOp::Shl | BinaryOp::Shr => return self.shift(op, x, y, ty),
            BinaryOp::MulHi => {
                let (x, y) = (b.convert(UnOp::ZExt, Ty::I64, x), b.convert(UnOp::ZExt, Ty::I64, y));
                let p = b.mul(x, y);
                let high = b.bin_imm(BinOp::UShr, p, 32);
                b.convert(UnOp::Reduce, Ty::I32, high)
            }
            BinaryOp::Div | BinaryOp::Rem | BinaryOp::CeilDiv if ty == DType::Index => {
                return index_divide(b, op, x, y);
            }
            BinaryOp::Div if !signed => b.bin(BinOp::UDiv, x, y),
            BinaryOp::Rem if !signed => b.bin(BinOp::URem, x, y),
            BinaryOp::Div | BinaryOp::Rem => {
                // The one quotient that overflows wraps; the machine's division would trap.
                let reg = b.ty(x);
                let (one, minus_one, zero) = (b.imm(reg, 1), b.imm(reg, u64::MAX), b.imm(reg, 0));
                let flips = b.icmp(IntCc::Eq, y, minus_one);
                let divisor = b.select(flips, one, y);
                if op == BinaryOp::Div {
                    let (q, minus_x) = (b.bin(BinOp::SDiv, x, divisor), b.sub(zero, x));
                    b.select(flips, minus_x, q)
                } else {
                    b.bin(BinOp::SRem, x, divisor)
                }
            }
            BinaryOp::CeilDiv | BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Pow | BinaryOp::CopySign => x,
        };
        self.normalise(r, ty)
    }

    /// Shifts by a scalar amount (or, scalar by scalar, any), taken modulo the width.
    fn shift(&mut self, op: BinaryOp, x: Val, n: Val, ty: DType) -> Val {
        let n = self.b.bin_imm(BinOp::And, n, ty.bits() as i64 - 1);
        let op = match (op, ty.is_signed_int()) {
            (BinaryOp::Shl, _) => BinOp::Shl,
            (_, true) => BinOp::SShr,
            (_, false) => BinOp::UShr,
        };
        let r = self.b.bin(op, x, n);
        self.normalise(r, ty)
    }

    pub(super) fn fma(&mut self, x: Rep, y: Rep, z: Rep, ty: DType) -> Rep {
        self.apply(&[(x, ty), (y, ty), (z, ty)], ty, true, &mut |l, v| {
            if !is_narrow_float(ty) {
                return l.b.fma(v[0], v[1], v[2]);
            }
            let w: Vec<Val> = v.iter().map(|v| unpack(&mut l.b, ty, *v)).collect();
            let r = l.b.fma(w[0], w[1], w[2]);
            pack(&mut l.b, ty, r)
        })
    }

    pub(super) fn compare(&mut self, op: CmpOp, x: Rep, y: Rep, ty: DType) -> Rep {
        if ty == DType::Index
            && let Some(mask) = self.linear_compare(op, x, y)
        {
            return mask;
        }
        self.apply(&[(x, ty), (y, ty)], DType::Bool, true, &mut |l, v| l.compare_val(op, v[0], v[1], ty))
    }

    pub(super) fn compare_val(&mut self, op: CmpOp, x: Val, y: Val, ty: DType) -> Val {
        let b = &mut self.b;
        if ty.is_float() {
            let wide = |b: &mut Builder, v| if is_narrow_float(ty) { unpack(b, ty, v) } else { v };
            let (x, y) = (wide(b, x), wide(b, y));
            let cc = match op {
                CmpOp::Eq => FloatCc::Eq,
                CmpOp::Ne => FloatCc::Ne,
                CmpOp::Lt => FloatCc::Lt,
                CmpOp::Le => FloatCc::Le,
                CmpOp::Gt => FloatCc::Gt,
                CmpOp::Ge => FloatCc::Ge,
            };
            return b.fcmp(cc, x, y);
        }
        if ty == DType::Bool && b.ty(x).is_vector() {
            // Masks are 0 and -1: order them as 0 and 1.
            let (x, y) = (b.bin_imm(BinOp::And, x, 1), b.bin_imm(BinOp::And, y, 1));
            return b.icmp(int_cc(op, true), x, y);
        }
        b.icmp(int_cc(op, ty.is_signed_int()), x, y)
    }

    /// Compares indices that are linear in the iteration: the difference, clamped to where its sign is safe.
    fn linear_compare(&mut self, op: CmpOp, x: Rep, y: Rep) -> Option<Rep> {
        let parts = |r: Rep| match r {
            Rep::Uni(v) => Some((v, 0)),
            Rep::Lin { base, step } => Some((base, step)),
            Rep::Vec(_) | Rep::Lanes(_) => None,
        };
        let ((xb, xs), (yb, ys)) = (parts(x)?, parts(y)?);
        let step = xs.checked_sub(ys)?;
        if (xs == 0 && ys == 0) || step.abs() > 1 << 20 {
            return None;
        }
        let difference = self.b.sub(xb, yb);
        let (lo, hi) = (self.b.i64(-(1 << 30)), self.b.i64(1 << 30));
        let d = self.b.bin(BinOp::SMax, difference, lo);
        let d = self.b.bin(BinOp::SMin, d, hi);
        let v = self.linear_i32(d, step);
        let zero = self.b.imm(Ty::I32x4, 0);
        Some(Rep::Vec(self.b.icmp(int_cc(op, true), v, zero)))
    }

    pub(super) fn select(&mut self, cond: Rep, x: Rep, y: Rep, ty: DType) -> Rep {
        if let (Rep::Uni(c), Rep::Lin { base: xb, step }, Rep::Lin { base: yb, step: ys }) = (cond, x, y)
            && step == ys
        {
            return Rep::Lin { base: self.b.select(c, xb, yb), step };
        }
        if let Rep::Uni(c) = cond
            && self.b.as_const(c).is_some()
        {
            return if self.b.as_const(c) == Some(0) { y } else { x };
        }
        self.apply(&[(cond, DType::Bool), (x, ty), (y, ty)], ty, true, &mut |l, v| l.b.select(v[0], v[1], v[2]))
    }
}

/// Functions that f64 gets from the host's library.
fn is_elementary(op: UnaryOp) -> bool {
    matches!(
        op,
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
    )
}

/// A float immediate in any shape.
pub(super) fn float_imm(b: &mut Builder, ty: Ty, v: f64) -> Val {
    let bits = if ty.lane() == Ty::F64 { v.to_bits() } else { u64::from((v as f32).to_bits()) };
    b.imm(ty, bits)
}

fn reciprocal(b: &mut Builder, x: Val) -> Val {
    let one = float_imm(b, b.ty(x), 1.0);
    b.bin(BinOp::FDiv, one, x)
}

pub(super) fn logical_not(b: &mut Builder, x: Val) -> Val {
    if b.ty(x).is_vector() { b.un(UnOp::Not, x) } else { b.bin_imm(BinOp::Xor, x, 1) }
}

fn int_cc(op: CmpOp, signed: bool) -> IntCc {
    match (op, signed) {
        (CmpOp::Eq, _) => IntCc::Eq,
        (CmpOp::Ne, _) => IntCc::Ne,
        (CmpOp::Lt, true) => IntCc::Slt,
        (CmpOp::Le, true) => IntCc::Sle,
        (CmpOp::Gt, true) => IntCc::Sgt,
        (CmpOp::Ge, true) => IntCc::Sge,
        (CmpOp::Lt, false) => IntCc::Ult,
        (CmpOp::Le, false) => IntCc::Ule,
        (CmpOp::Gt, false) => IntCc::Ugt,
        (CmpOp::Ge, false) => IntCc::Uge,
    }
}

fn float_binary(b: &mut Builder, op: BinaryOp, x: Val, y: Val) -> Val {
    match op {
        BinaryOp::Add => b.bin(BinOp::FAdd, x, y),
        BinaryOp::Sub => b.bin(BinOp::FSub, x, y),
        BinaryOp::Mul => b.bin(BinOp::FMul, x, y),
        BinaryOp::Div => b.bin(BinOp::FDiv, x, y),
        BinaryOp::Min | BinaryOp::Max => number_min_max(b, op == BinaryOp::Max, x, y),
        BinaryOp::Pow => {
            let float = b.ty(x);
            math::pow(&mut Emit { b, float }, x, y)
        }
        // The verifier rejects these on floats; bitwise ops and copysign were done on the bits.
        BinaryOp::Rem
        | BinaryOp::CeilDiv
        | BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::Xor
        | BinaryOp::Shl
        | BinaryOp::Shr
        | BinaryOp::MulHi
        | BinaryOp::CopySign => x,
    }
}

/// IEEE 754-2019 minimumNumber and maximumNumber: the other operand of a NaN; -0 below +0.
pub(super) fn number_min_max(b: &mut Builder, max: bool, x: Val, y: Val) -> Val {
    let (ty, int) = (b.ty(x), b.ty(x).as_int());
    // Equal operands differ at most in the sign of zero: the common or the joint bits pick the right one.
    let (xi, yi) = (b.bitcast(int, x), b.bitcast(int, y));
    let zero = b.bin(if max { BinOp::And } else { BinOp::Or }, xi, yi);
    let zero = b.bitcast(ty, zero);
    let wins = if max { b.fcmp(FloatCc::Lt, y, x) } else { b.fcmp(FloatCc::Lt, x, y) };
    let r = b.select(wins, x, y);
    let equal = b.fcmp(FloatCc::Eq, x, y);
    let r = b.select(equal, zero, r);
    let y_is_nan = b.fcmp(FloatCc::Uno, y, y);
    b.select(y_is_nan, x, r)
}

/// Division of `index` values: quotient towards minus infinity, its remainder, or quotient towards plus infinity.
pub(super) fn index_divide(b: &mut Builder, op: BinaryOp, x: Val, y: Val) -> Val {
    if let Some(c) = b.as_const(y)
        && c > 0
        && (c as u64).is_power_of_two()
    {
        let k = i64::from(c.trailing_zeros());
        return match op {
            BinaryOp::Rem => b.bin_imm(BinOp::And, x, c - 1),
            BinaryOp::CeilDiv => {
                let up = b.add_imm(x, c - 1);
                b.bin_imm(BinOp::SShr, up, k)
            }
            _ => b.bin_imm(BinOp::SShr, x, k),
        };
    }
    let plain = b.facts(x).lo >= 0 && b.facts(y).lo > 0;
    let q = b.bin(BinOp::SDiv, x, y);
    let product = b.mul(q, y);
    let r = b.sub(x, product);
    let zero = b.i64(0);
    if plain && op != BinaryOp::CeilDiv {
        return if op == BinaryOp::Div { q } else { b.bin(BinOp::SRem, x, y) };
    }
    let inexact = b.icmp(IntCc::Ne, r, zero);
    let signs = b.bin(BinOp::Xor, x, y);
    let negative = b.icmp(IntCc::Slt, signs, zero);
    if op == BinaryOp::CeilDiv {
        let positive = b.bin_imm(BinOp::Xor, negative, 1);
        let up = b.bin(BinOp::And, inexact, positive);
        let up = b.convert(UnOp::ZExt, Ty::I64, up);
        return b.add(q, up);
    }
    let down = b.bin(BinOp::And, inexact, negative);
    let down_wide = b.convert(UnOp::ZExt, Ty::I64, down);
    match op {
        BinaryOp::Rem => {
            let corrected = b.add(r, y);
            b.select(down, corrected, r)
        }
        _ => b.sub(q, down_wide),
    }
}

impl Lower<'_> {
    /// A quotient of `index` values whose divisor is known to be positive.
    pub(super) fn index_quotient(&mut self, op: BinaryOp, x: Val, y: Val) -> Val {
        index_divide(&mut self.b, op, x, y)
    }
}
