//! What `topk` and `sort` compare: an element made to order as an unsigned integer, smallest first in the wanted order,
//! with its position below it. No two records of a line are equal, so every network of comparisons is stable.

use crate::ptx::lower::Lowerer;
use crate::ptx::simt::{Bin, Cmp, Num, ShflMode, Ty, Un, Val};
use smallvec::SmallVec;
use zellige_ir::DType;

/// One 64-bit register, key above position; for 64-bit elements key (b64) and position (b32).
pub type Record = SmallVec<[Val; 2]>;

/// True if records of this element type are two registers.
pub fn is_wide(ty: DType) -> bool {
    ty.bits() == 64
}

impl Lowerer<'_> {
    /// The key of an element as an unsigned b32 or b64. NaN is the largest.
    pub(super) fn order_key(&mut self, ty: DType, descending: bool, x: Val) -> Val {
        let v = self.comparable(ty, x);
        let b = &mut self.b;
        let class = if is_wide(ty) { Ty::B64 } else { Ty::B32 };
        let num = if is_wide(ty) { Num::B64 } else { Num::B32 };
        let top = b.int(class, if is_wide(ty) { i64::MIN } else { i64::from(i32::MIN) });
        let float = b.ty(v);
        if !matches!(float, Ty::F32 | Ty::F64) {
            let key = if ty.is_signed_int() { b.bin(Bin::Xor, num, v, top) } else { v };
            return if descending { b.un(Un::Not, num, key) } else { key };
        }
        let float = if float == Ty::F32 { Num::F32 } else { Num::F64 };
        // Zeros of both signs are equal.
        let zero = b.zero(float.ty());
        let clean = b.add(float, v, zero);
        let bits = b.bits(class, clean);
        // Negative numbers: all bits flipped; others: the sign bit.
        let signed = if is_wide(ty) { Num::S64 } else { Num::S32 };
        let by = b.c32(ty.bits().max(32) as i64 - 1);
        let sign = b.bin(Bin::Shr, signed, bits, by);
        let flip = b.bin(Bin::Or, num, sign, top);
        let key = b.bin(Bin::Xor, num, bits, flip);
        let key = if descending { b.un(Un::Not, num, key) } else { key };
        let nan = b.setp(Cmp::IsNan, float, v, v);
        let last = b.int(class, -1);
        b.selp(nan, last, key)
    }

    /// The record of an element at a position (b32).
    pub(super) fn record(&mut self, ty: DType, descending: bool, x: Val, position: Val) -> Record {
        let key = self.order_key(ty, descending, x);
        if is_wide(ty) {
            return [key, position].into_iter().collect();
        }
        [self.b.pack(position, key)].into_iter().collect()
    }

    /// What stands after every record.
    pub(super) fn last_record(&mut self, ty: DType) -> Record {
        let last = self.b.c64(-1);
        let mut record: Record = [last].into_iter().collect();
        if is_wide(ty) {
            record.push(self.b.c32(-1));
        }
        record
    }

    /// The position in a record (b32).
    pub(super) fn position(&mut self, x: &Record) -> Val {
        match x[..] {
            [_, position] => position,
            _ => self.b.unpack(x[0]).0,
        }
    }

    /// True if `x` stands before `y`.
    pub(super) fn is_before(&mut self, x: &Record, y: &Record) -> Val {
        let b = &mut self.b;
        let less = b.setp(Cmp::Lt, Num::U64, x[0], y[0]);
        if let (Some(&p), Some(&q)) = (x.get(1), y.get(1)) {
            let (same, first) = (b.setp(Cmp::Eq, Num::U64, x[0], y[0]), b.setp(Cmp::Lt, Num::U32, p, q));
            let tie = b.and(same, first);
            return b.bin(Bin::Or, Num::Pred, less, tie);
        }
        less
    }

    pub(super) fn select_record(&mut self, cond: Val, x: &Record, y: &Record) -> Record {
        x.iter().zip(y).map(|(&x, &y)| self.b.selp(cond, x, y)).collect()
    }

    /// The record of the lane whose number differs in the bits of `mask`.
    pub(super) fn exchange_record(&mut self, x: &Record, mask: usize) -> Record {
        let mask = self.b.c32(mask as i64);
        x.iter().map(|&v| self.shfl(ShflMode::Bfly, v, mask, 31)).collect()
    }
}
