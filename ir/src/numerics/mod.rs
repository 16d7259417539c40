//! Immediate values and the bit-exact scalar semantics of the element types.

mod index;

use crate::DType;

pub use index::eval_index;

/// An immediate: a type and the bits of one value of it, zero-extended to 64 (integers sign-extended).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Const {
    ty: DType,
    bits: u64,
}

impl Const {
    pub const fn dtype(self) -> DType {
        self.ty
    }

    pub const fn bits(self) -> u64 {
        self.bits
    }

    pub const fn index(v: i64) -> Const {
        Const { ty: DType::Index, bits: v as u64 }
    }

    /// Zero of any type (`2^-127`, the smallest value, for `e8m0`, which has no zero).
    pub const fn zero(ty: DType) -> Const {
        Const { ty, bits: 0 }
    }

    /// The value of an integer constant.
    pub const fn as_i64(self) -> i64 {
        self.bits as i64
    }
}
