//! Shuffles of registers of any class, and the order of keys.

use super::Lowerer;
use super::value;
use crate::ptx::simt::{Cmp, Num, ShflMode, Ty, Val};
use zellige_ir::DType;

impl Lowerer<'_> {
    /// The register of another lane, whatever its class. All lanes of the warp take part.
    pub(super) fn shfl(&mut self, mode: ShflMode, x: Val, lane: Val, clamp: u32) -> Val {
        let b = &mut self.b;
        match b.ty(x) {
            Ty::B32 | Ty::F32 => b.shfl(mode, x, lane, clamp),
            Ty::Pred => {
                let (one, zero) = (b.c32(1), b.c32(0));
                let v = b.selp(x, one, zero);
                let v = b.shfl(mode, v, lane, clamp);
                b.setp(Cmp::Ne, Num::B32, v, zero)
            }
            Ty::B16 => {
                let zero = b.zero(Ty::B16);
                let v = b.pack(x, zero);
                let v = b.shfl(mode, v, lane, clamp);
                b.unpack(v).0
            }
            Ty::B64 => {
                let (lo, hi) = b.unpack(x);
                let (lo, hi) = (b.shfl(mode, lo, lane, clamp), b.shfl(mode, hi, lane, clamp));
                b.pack(lo, hi)
            }
            Ty::F64 => {
                let bits = b.bits(Ty::B64, x);
                let (lo, hi) = b.unpack(bits);
                let (lo, hi) = (b.shfl(mode, lo, lane, clamp), b.shfl(mode, hi, lane, clamp));
                let bits = b.pack(lo, hi);
                b.bits(Ty::F64, bits)
            }
        }
    }

    /// A key in a class that the hardware compares: f16 and bf16 as f32, bool as an integer.
    pub(super) fn comparable(&mut self, ty: DType, x: Val) -> Val {
        match ty {
            DType::F16 | DType::BF16 => super::cast::widen(&mut self.b, self.target, ty, x),
            DType::Bool => {
                let (one, zero) = (self.b.c32(1), self.b.c32(0));
                self.b.selp(x, one, zero)
            }
            _ => x,
        }
    }

    /// True if key `x` at position `p` stands before key `y` at position `q` in an order by size (`largest`: descending)
    /// with NaN last and ties by position.
    pub(super) fn precedes(&mut self, ty: DType, largest: bool, (x, p): (Val, Val), (y, q): (Val, Val)) -> Val {
        let b = &mut self.b;
        let num = match ty {
            DType::F16 | DType::BF16 => Num::F32,
            DType::Bool | DType::U8 | DType::U16 => Num::U32,
            DType::I8 | DType::I16 => Num::S32,
            _ => value::num(ty),
        };
        let better = b.setp(if largest { Cmp::Gt } else { Cmp::Lt }, num, x, y);
        let first = b.setp(Cmp::Lt, Num::S32, p, q);
        let mut same = b.setp(Cmp::Eq, num, x, y);
        if !num.is_float() {
            let tie = b.and(same, first);
            return b.bin(crate::ptx::simt::Bin::Or, Num::Pred, better, tie);
        }
        let (xn, yn) = (b.setp(Cmp::IsNan, num, x, x), b.setp(Cmp::IsNan, num, y, y));
        let both = b.and(xn, yn);
        same = b.bin(crate::ptx::simt::Bin::Or, Num::Pred, same, both);
        let tie = b.and(same, first);
        let x_number = b.not(xn);
        let only_y = b.and(yn, x_number);
        let r = b.bin(crate::ptx::simt::Bin::Or, Num::Pred, better, tie);
        b.bin(crate::ptx::simt::Bin::Or, Num::Pred, r, only_y)
    }
}
