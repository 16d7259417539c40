//! Tile IR scalars in registers: which register class holds which element type.

use super::index::Idx;
use crate::ptx::simt::{MemTy, Num, Ty, Val};
use zellige_ir::{Const, DType};

/// A tile IR scalar: an `index` with its constant part and bounds, or a register of the class of its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scalar {
    Idx(Idx),
    Reg(Val),
}

/// Register class of a type other than `index`. Integers and narrow floats below 32 bits are kept extended (by their
/// sign where they have one), bools are predicates, f16 and bf16 are 16-bit registers.
pub fn class(ty: DType) -> Ty {
    match ty {
        DType::Bool => Ty::Pred,
        DType::I8 | DType::I16 | DType::I32 | DType::U8 | DType::U16 | DType::U32 => Ty::B32,
        DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 | DType::E8M0 => Ty::B32,
        DType::I64 | DType::U64 | DType::Index => Ty::B64,
        DType::F16 | DType::BF16 => Ty::B16,
        DType::F32 => Ty::F32,
        DType::F64 => Ty::F64,
    }
}

/// How arithmetic reads a type.
pub fn num(ty: DType) -> Num {
    match ty {
        DType::Bool => Num::Pred,
        DType::I8 => Num::S8,
        DType::I16 => Num::S16,
        DType::I32 => Num::S32,
        DType::I64 | DType::Index => Num::S64,
        DType::U8 => Num::U8,
        DType::U16 => Num::U16,
        DType::U32 => Num::U32,
        DType::U64 => Num::U64,
        DType::F16 => Num::F16,
        DType::BF16 => Num::BF16,
        DType::F32 => Num::F32,
        DType::F64 => Num::F64,
        DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 | DType::E8M0 => Num::U8,
    }
}

/// Suffix of a load or store of one element; `None` for the packed 4-bit format.
pub fn mem(ty: DType) -> Option<MemTy> {
    match ty {
        DType::Bool | DType::U8 | DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 => Some(MemTy::U8),
        DType::I8 => Some(MemTy::S8),
        DType::I16 => Some(MemTy::S16),
        DType::U16 => Some(MemTy::U16),
        DType::F16 | DType::BF16 => Some(MemTy::B16),
        DType::I32 | DType::U32 => Some(MemTy::B32),
        DType::F32 => Some(MemTy::F32),
        DType::I64 | DType::U64 | DType::Index => Some(MemTy::B64),
        DType::F64 => Some(MemTy::F64),
        DType::F4E2M1 => None,
    }
}

/// The bits of a constant as its register holds them: narrow signed integers are sign-extended.
pub fn bits(c: Const) -> u64 {
    if c.dtype().is_signed_int() { c.as_i64() as u64 } else { c.bits() }
}
