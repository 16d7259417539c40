//! `index` arithmetic: values with a constant part, bounds and divisibility, computed as they are built.
//!
//! An [`Idx`] is `base + off` with a register `base` (or none). Carrying the constant part lets neighbouring elements
//! share one address register; the bounds decide 32 or 64 bits and which bounds checks are needed; the divisor of the
//! base decides vector widths. All of it is exact or conservative, so no separate analysis runs over the kernel.

use crate::ptx::simt::{Bin, Builder, Cmp, Num, Round, Ty, Val};
use zellige_ir::CmpOp;

/// An `index` value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Idx {
    /// The register part, b32 or b64; `None` for a constant.
    pub base: Option<Val>,
    /// The constant part.
    pub off: i64,
    /// Bounds of the whole value, inclusive.
    pub lo: i64,
    pub hi: i64,
    /// A power of two that divides the base.
    pub align: u64,
}

/// Divisor of zero: every power of two divides it.
const ANY: u64 = 1 << 62;

impl Idx {
    pub fn constant(c: i64) -> Idx {
        Idx { base: None, off: c, lo: c, hi: c, align: ANY }
    }

    /// A register with bounds; a constant if the bounds leave one value.
    pub fn new(base: Val, lo: i64, hi: i64, align: u64) -> Idx {
        if lo == hi { Idx::constant(lo) } else { Idx { base: Some(base), off: 0, lo, hi, align } }
    }

    pub fn as_const(self) -> Option<i64> {
        self.base.is_none().then_some(self.off)
    }

    /// A power of two that divides the value.
    pub fn divisor(self) -> u64 {
        let off = if self.off == 0 { ANY } else { 1 << self.off.trailing_zeros() };
        self.align.min(off)
    }

    /// The same register with another constant part.
    pub fn shift(self, by: i64) -> Idx {
        Idx { off: self.off.saturating_add(by), lo: self.lo.saturating_add(by), hi: self.hi.saturating_add(by), ..self }
    }

    /// True if the bounds fit 32 bits.
    pub fn is_narrow(self) -> bool {
        fits(self.lo, self.hi)
    }

    /// The register part, without the constant.
    pub fn base_only(self) -> Idx {
        self.shift(-self.off)
    }
}

fn fits(lo: i64, hi: i64) -> bool {
    lo >= i64::from(i32::MIN) && hi <= i64::from(i32::MAX)
}

fn corners(x: Idx, y: Idx, f: impl Fn(i64, i64) -> i64) -> (i64, i64) {
    let all = [f(x.lo, y.lo), f(x.lo, y.hi), f(x.hi, y.lo), f(x.hi, y.hi)];
    (all.into_iter().min().unwrap_or(0), all.into_iter().max().unwrap_or(0))
}

/// Signed type of an integer class.
pub fn signed(ty: Ty) -> Num {
    if ty == Ty::B64 { Num::S64 } else { Num::S32 }
}

/// Unsigned type of an integer class.
pub fn unsigned(ty: Ty) -> Num {
    if ty == Ty::B64 { Num::U64 } else { Num::U32 }
}

/// A register part widened or narrowed to `ty`; narrowing is the caller's claim that it fits.
fn resize(b: &mut Builder, v: Val, ty: Ty) -> Val {
    match (b.ty(v), ty) {
        (Ty::B32, Ty::B64) => b.cvt(Num::S64, Num::S32, Round::Exact, v),
        (Ty::B64, Ty::B32) => b.cvt(Num::U32, Num::U64, Round::Exact, v),
        _ => v,
    }
}

/// The value in a register of class `ty` (b32 only if it fits).
pub fn to_val(b: &mut Builder, x: Idx, ty: Ty) -> Val {
    let Some(base) = x.base else { return b.int(ty, x.off) };
    if ty == Ty::B64 && b.ty(base) == Ty::B32 {
        // The sum may need more than 32 bits even where the base does not.
        let sum_fits = x.is_narrow() && fits(x.off, x.off);
        if sum_fits {
            let off = b.c32(x.off);
            let narrow = b.add(Num::S32, base, off);
            return resize(b, narrow, Ty::B64);
        }
    }
    let base = resize(b, base, ty);
    let off = b.int(ty, x.off);
    b.add(signed(ty), base, off)
}

/// The value in a register as narrow as its bounds allow.
pub fn to_reg(b: &mut Builder, x: Idx) -> Val {
    let ty = if x.is_narrow() { Ty::B32 } else { Ty::B64 };
    to_val(b, x, ty)
}

/// Class in which an op on `x` and `y` with a result in `lo..=hi` is computed.
fn class(b: &Builder, x: Idx, y: Idx, lo: i64, hi: i64) -> Ty {
    let narrow = |i: Idx| i.is_narrow() && i.base.is_none_or(|v| b.ty(v) == Ty::B32);
    if fits(lo, hi) && narrow(x) && narrow(y) { Ty::B32 } else { Ty::B64 }
}

/// A fresh result, narrowed to 32 bits where its bounds allow.
fn result(b: &mut Builder, v: Val, lo: i64, hi: i64, align: u64) -> Idx {
    if let Some(c) = b.as_int(v) {
        return Idx::constant(c);
    }
    let v = if fits(lo, hi) { resize(b, v, Ty::B32) } else { v };
    Idx::new(v, lo, hi, align)
}

pub fn add(b: &mut Builder, x: Idx, y: Idx) -> Idx {
    let (lo, hi) = (x.lo.saturating_add(y.lo), x.hi.saturating_add(y.hi));
    let off = x.off.saturating_add(y.off);
    match (x.base, y.base) {
        (None, _) => return y.shift(x.off),
        (_, None) => return x.shift(y.off),
        (Some(_), Some(_)) => {}
    }
    let (xb, yb) = (x.base_only(), y.base_only());
    let (blo, bhi) = (lo.saturating_sub(off), hi.saturating_sub(off));
    let ty = class(b, xb, yb, blo, bhi);
    let (xv, yv) = (to_val(b, xb, ty), to_val(b, yb, ty));
    let v = b.add(signed(ty), xv, yv);
    match b.as_int(v) {
        Some(c) => Idx::constant(c + off),
        None => Idx { base: Some(v), off, lo, hi, align: x.align.min(y.align) },
    }
}

pub fn sub(b: &mut Builder, x: Idx, y: Idx) -> Idx {
    if let Some(c) = y.as_const() {
        return x.shift(-c);
    }
    if x == y {
        return Idx::constant(0);
    }
    let (lo, hi) = (x.lo.saturating_sub(y.hi), x.hi.saturating_sub(y.lo));
    let ty = class(b, x, y, lo, hi);
    let (xv, yv) = (to_val(b, x, ty), to_val(b, y, ty));
    let v = b.sub(signed(ty), xv, yv);
    result(b, v, lo, hi, x.divisor().min(y.divisor()))
}

pub fn mul(b: &mut Builder, x: Idx, y: Idx) -> Idx {
    let (x, y) = if x.base.is_none() { (y, x) } else { (x, y) };
    let (lo, hi) = corners(x, y, |a, c| a.saturating_mul(c));
    if let Some(k) = y.as_const() {
        if k == 0 {
            return Idx::constant(0);
        }
        let Some(base) = x.base else { return Idx::constant(x.off.saturating_mul(k)) };
        let off = x.off.saturating_mul(k);
        let (blo, bhi) = (lo.saturating_sub(off), hi.saturating_sub(off));
        let ty = class(b, x.base_only(), y, blo, bhi);
        let v = if ty == Ty::B64 && b.ty(base) == Ty::B32 && fits(k, k) {
            let kv = b.c32(k);
            b.bin(Bin::MulWide, Num::S32, base, kv)
        } else {
            let (bv, kv) = (resize(b, base, ty), b.int(ty, k));
            b.mul(signed(ty), bv, kv)
        };
        let align = x.align.saturating_mul(1 << k.trailing_zeros().min(32)).min(ANY);
        return Idx { base: Some(v), off, lo, hi, align };
    }
    let ty = class(b, x, y, lo, hi);
    let v = if ty == Ty::B64 && x.is_narrow() && y.is_narrow() {
        let (xv, yv) = (to_val(b, x, Ty::B32), to_val(b, y, Ty::B32));
        b.bin(Bin::MulWide, Num::S32, xv, yv)
    } else {
        let (xv, yv) = (to_val(b, x, ty), to_val(b, y, ty));
        b.mul(signed(ty), xv, yv)
    };
    result(b, v, lo, hi, x.divisor().saturating_mul(y.divisor()).min(ANY))
}

/// Quotient rounded towards minus infinity.
pub fn div(b: &mut Builder, x: Idx, y: Idx) -> Idx {
    if let (Some(a), Some(c)) = (x.as_const(), y.as_const())
        && c != 0
    {
        return Idx::constant(a.div_euclid(c) - i64::from(c < 0 && a.rem_euclid(c) != 0));
    }
    if let Some(k) = y.as_const()
        && k > 0
    {
        let (lo, hi) = (x.lo.div_euclid(k), x.hi.div_euclid(k));
        if lo == hi {
            return Idx::constant(lo);
        }
        if let Some((q, _)) = split_constant(x, k) {
            return Idx::constant(q);
        }
        // (k m + r + c) / k with 0 <= r + c < k and k dividing the base: no need to add the constant first.
        if (k as u64).is_power_of_two() && x.align >= k as u64 {
            let base = x.base_only();
            let q = shift_right(b, base, k);
            return q.shift(x.off.div_euclid(k));
        }
        if (k as u64).is_power_of_two() {
            return shift_right(b, x.shift(-below_alignment(x, k)), k);
        }
        let ty = class(b, x, y, lo, hi);
        let (xv, kv) = (to_val(b, x, ty), b.int(ty, k));
        let v = if x.lo >= 0 { b.bin(Bin::Div, unsigned(ty), xv, kv) } else { floor_div(b, ty, xv, kv) };
        return result(b, v, lo, hi, 1);
    }
    let ty = class(b, x, y, x.lo, x.hi);
    let (xv, yv) = (to_val(b, x, ty), to_val(b, y, ty));
    let (v, lo, hi) = if x.lo >= 0 && y.lo >= 0 {
        (b.bin(Bin::Div, unsigned(ty), xv, yv), x.lo / y.hi.max(1), x.hi / y.lo.max(1))
    } else {
        let m = x.lo.saturating_abs().max(x.hi.saturating_abs());
        (floor_div(b, ty, xv, yv), m.saturating_neg().saturating_sub(1), m)
    };
    result(b, v, lo, hi, 1)
}

/// What of the constant part no multiple of the base's divisor reaches: it carries into no quotient by `k`, a power of two.
/// Neighbours that differ in it alone share quotient and remainder.
fn below_alignment(x: Idx, k: i64) -> i64 {
    x.off.rem_euclid(i64::try_from(x.align).unwrap_or(k).min(k))
}

/// Quotient and remainder by `k` when the base never carries into or borrows from the constant part's quotient.
fn split_constant(x: Idx, k: i64) -> Option<(i64, Idx)> {
    let (q, r) = (x.off.div_euclid(k), x.off.rem_euclid(k));
    let base = x.base_only();
    let stays = base.lo.saturating_add(r) >= 0 && base.hi.saturating_add(r) < k;
    stays.then(|| (q, base.shift(r)))
}

fn shift_right(b: &mut Builder, x: Idx, k: i64) -> Idx {
    let (lo, hi) = (x.lo.div_euclid(k), x.hi.div_euclid(k));
    let ty = if x.is_narrow() { Ty::B32 } else { Ty::B64 };
    let xv = to_val(b, x, ty);
    let by = b.c32(i64::from(k.trailing_zeros()));
    let num = if x.lo >= 0 { unsigned(ty) } else { signed(ty) };
    let v = b.bin(Bin::Shr, num, xv, by);
    result(b, v, lo, hi, (x.divisor() / k as u64).max(1))
}

/// Floor division of registers of any sign.
fn floor_div(b: &mut Builder, ty: Ty, x: Val, y: Val) -> Val {
    let num = signed(ty);
    let q = b.bin(Bin::Div, num, x, y);
    let back = b.mul(num, q, y);
    let r = b.sub(num, x, back);
    let zero = b.int(ty, 0);
    let inexact = b.setp(Cmp::Ne, num, r, zero);
    let signs = b.bin(Bin::Xor, num, r, y);
    let differ = b.setp(Cmp::Lt, num, signs, zero);
    let adjust = b.and(inexact, differ);
    let minus = b.int(ty, -1);
    let less = b.add(num, q, minus);
    b.selp(adjust, less, q)
}

/// Remainder that goes with [`div`].
pub fn rem(b: &mut Builder, x: Idx, y: Idx) -> Idx {
    if let Some(k) = y.as_const()
        && k > 0
    {
        if let Some(a) = x.as_const() {
            return Idx::constant(a.rem_euclid(k));
        }
        if let Some((_, r)) = split_constant(x, k) {
            return r;
        }
        let pow2 = (k as u64).is_power_of_two();
        if pow2 && x.align >= k as u64 {
            return Idx::constant(x.off.rem_euclid(k));
        }
        // Only the constant's remainder matters.
        let below = if pow2 { below_alignment(x, k) } else { 0 };
        let x = if pow2 { x.shift(x.off.rem_euclid(k) - x.off - below) } else { x };
        let ty = if x.is_narrow() { Ty::B32 } else { Ty::B64 };
        let xv = to_val(b, x, ty);
        if pow2 {
            let mask = b.int(ty, k - 1);
            let v = b.bin(Bin::And, signed(ty), xv, mask);
            let divisor = x.divisor().min(k as u64);
            return result(b, v, 0, k - divisor as i64, divisor).shift(below);
        }
        if x.lo >= 0 {
            let kv = b.int(ty, k);
            let v = b.bin(Bin::Rem, unsigned(ty), xv, kv);
            return result(b, v, 0, k - 1, 1);
        }
    }
    let q = div(b, x, y);
    let back = mul(b, q, y);
    let r = sub(b, x, back);
    let (lo, hi) = if y.lo > 0 { (0, y.hi - 1) } else { (y.lo.min(0), y.hi.max(0)) };
    let r_val = to_reg(b, r);
    result(b, r_val, lo.max(r.lo.min(lo)), hi, 1)
}

/// Quotient rounded towards plus infinity.
pub fn ceil_div(b: &mut Builder, x: Idx, y: Idx) -> Idx {
    if y.lo > 0 {
        let up = y.shift(-1);
        let sum = add(b, x, up);
        let mut q = div(b, sum, y);
        if let Some(k) = y.as_const() {
            let ceil = |v: i64| -(v.saturating_neg().div_euclid(k));
            (q.lo, q.hi) = (ceil(x.lo), ceil(x.hi));
            if q.lo == q.hi {
                return Idx::constant(q.lo);
            }
        }
        return q;
    }
    let minus = sub(b, Idx::constant(0), x);
    let q = div(b, minus, y);
    sub(b, Idx::constant(0), q)
}

pub fn min(b: &mut Builder, x: Idx, y: Idx) -> Idx {
    if x.hi <= y.lo {
        return x;
    }
    if y.hi <= x.lo {
        return y;
    }
    extremum(b, Bin::Min, x, y, x.lo.min(y.lo), x.hi.min(y.hi))
}

pub fn max(b: &mut Builder, x: Idx, y: Idx) -> Idx {
    if x.lo >= y.hi {
        return x;
    }
    if y.lo >= x.hi {
        return y;
    }
    extremum(b, Bin::Max, x, y, x.lo.max(y.lo), x.hi.max(y.hi))
}

fn extremum(b: &mut Builder, op: Bin, x: Idx, y: Idx, lo: i64, hi: i64) -> Idx {
    let ty = class(b, x, y, lo, hi);
    let (xv, yv) = (to_val(b, x, ty), to_val(b, y, ty));
    let v = b.bin(op, signed(ty), xv, yv);
    result(b, v, lo, hi, x.divisor().min(y.divisor()))
}

/// A bitwise op on the 64-bit two's complement forms.
pub fn bitwise(b: &mut Builder, op: Bin, x: Idx, y: Idx) -> Idx {
    let non_negative = x.lo >= 0 && y.lo >= 0;
    let bits = |v: i64| (1i64 << (63 - v.max(1).leading_zeros())).saturating_mul(2) - 1;
    let (lo, hi) = match op {
        Bin::And if y.lo >= 0 => (0, y.hi),
        Bin::And if x.lo >= 0 => (0, x.hi),
        _ if non_negative => (0, bits(x.hi.max(y.hi))),
        _ if x.is_narrow() && y.is_narrow() => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    let ty = if x.is_narrow() && y.is_narrow() { Ty::B32 } else { Ty::B64 };
    let (xv, yv) = (to_val(b, x, ty), to_val(b, y, ty));
    let v = b.bin(op, signed(ty), xv, yv);
    let align = if op == Bin::And { x.divisor().max(y.divisor()) } else { x.divisor().min(y.divisor()) };
    result(b, v, lo, hi, align)
}

/// `x << y` and `x >> y`, the amount modulo 64.
pub fn shift(b: &mut Builder, left: bool, x: Idx, y: Idx) -> Idx {
    if let Some(n) = y.as_const() {
        let n = n.rem_euclid(64);
        if n < 62 {
            return if left { mul(b, x, Idx::constant(1 << n)) } else { div(b, x, Idx::constant(1 << n)) };
        }
    }
    let xv = to_val(b, x, Ty::B64);
    let amount = to_val(b, y, Ty::B64);
    let amount = b.cvt(Num::U32, Num::U64, Round::Exact, amount);
    let mask = b.c32(63);
    let amount = b.bin(Bin::And, Num::B32, amount, mask);
    let v = b.bin(if left { Bin::Shl } else { Bin::Shr }, Num::S64, xv, amount);
    let (lo, hi) = if left { (i64::MIN, i64::MAX) } else { (x.lo.min(0), x.hi.max(0)) };
    result(b, v, lo, hi, 1)
}

/// The predicate `x op y`, decided by the bounds where they allow.
pub fn compare(b: &mut Builder, op: CmpOp, x: Idx, y: Idx) -> Val {
    let apart = x.hi < y.lo || y.hi < x.lo;
    let below = matches!((x.base, y.base), (Some(v), Some(bound)) if x.off <= y.off && b.is_below(v, bound));
    let decided = match op {
        CmpOp::Lt if below || x.hi < y.lo => Some(true),
        CmpOp::Lt if x.lo >= y.hi => Some(false),
        CmpOp::Le if x.hi <= y.lo => Some(true),
        CmpOp::Le if x.lo > y.hi => Some(false),
        CmpOp::Gt if x.lo > y.hi => Some(true),
        CmpOp::Gt if x.hi <= y.lo => Some(false),
        CmpOp::Ge if x.lo >= y.hi => Some(true),
        CmpOp::Ge if below || x.hi < y.lo => Some(false),
        CmpOp::Eq if apart => Some(false),
        CmpOp::Ne if apart => Some(true),
        _ => None,
    };
    if let Some(d) = decided {
        return b.pred(d);
    }
    let cmp = match op {
        CmpOp::Eq => Cmp::Eq,
        CmpOp::Ne => Cmp::Ne,
        CmpOp::Lt => Cmp::Lt,
        CmpOp::Le => Cmp::Le,
        CmpOp::Gt => Cmp::Gt,
        CmpOp::Ge => Cmp::Ge,
    };
    // The constant parts meet on the right, so that elements that differ by a constant share the left register.
    let (x, y) = match (x.base, y.base) {
        (Some(_), None) => (x.base_only(), y.shift(-x.off)),
        (None, Some(_)) => (x.shift(-y.off), y.base_only()),
        _ => (x, y),
    };
    let ty = class(b, x, y, x.lo.min(y.lo), x.hi.max(y.hi));
    let (xv, yv) = (to_val(b, x, ty), to_val(b, y, ty));
    b.setp(cmp, signed(ty), xv, yv)
}

/// `0 <= x < extent`, or `None` if that is certain.
///
/// Where a power of two divides the extent and the base, all elements of one aligned group are inside or outside
/// together; they get the same predicate, so that a vector access needs one.
pub fn in_bounds(b: &mut Builder, x: Idx, extent: Idx) -> Option<Val> {
    let group = i64::try_from(x.align.min(extent.divisor())).unwrap_or(1);
    let x = if x.base.is_some() && x.lo < 0 || x.hi >= extent.lo { x.shift(-x.off.rem_euclid(group)) } else { x };
    let zero = Idx::constant(0);
    let low = if x.lo >= 0 { None } else { Some(compare(b, CmpOp::Ge, x, zero)) };
    let high = if x.hi < extent.lo { None } else { Some(compare(b, CmpOp::Lt, x, extent)) };
    b.and_guard(low, high)
}
