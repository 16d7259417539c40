//! What reductions and scans start from, and the type in which they run.

use crate::DType;
use crate::numerics::Const;
use crate::op::{ReduceOp, ScanOp};

impl DType {
    /// The type in which elements of this type are summed: f32 for the 16-bit floats, the type itself otherwise.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::F16 | DType::BF16 => DType::F32,
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
            | DType::F32
            | DType::F64
            | DType::F8E4M3
            | DType::F8E5M2
            | DType::F4E2M1
            | DType::E8M0 => self,
        }
    }
}

impl ReduceOp {
    /// What a reduction without elements gives: `None` if it is not defined on the type, or has no such value. Sums of
    /// floats start from +0.
    pub fn identity(self, ty: DType) -> Option<Const> {
        let is_float = ty.is_float() && ty.is_arithmetic();
        match self {
            ReduceOp::Sum if ty.is_arithmetic() => Some(Const::zero(ty)),
            ReduceOp::AbsMax if is_float || ty.is_signed_int() => Some(Const::zero(ty)),
            ReduceOp::Max if is_float => Some(Const::from_f64(ty, f64::NEG_INFINITY)),
            ReduceOp::Min if is_float => Some(Const::from_f64(ty, f64::INFINITY)),
            // Saturating casts give the ends of the integer's range.
            ReduceOp::Max | ReduceOp::AbsMax if ty.is_int() => Some(Const::from_f64(ty, f64::NEG_INFINITY)),
            ReduceOp::Min if ty.is_int() => Some(Const::from_f64(ty, f64::INFINITY)),
            ReduceOp::Or | ReduceOp::Xor if ty.is_int() || ty == DType::Bool => Some(Const::zero(ty)),
            ReduceOp::And if ty == DType::Bool => Some(Const::from_bool(true)),
            ReduceOp::And if ty.is_int() => Some(Const::from_bits(ty, u64::MAX)),
            ReduceOp::Sum
            | ReduceOp::Max
            | ReduceOp::Min
            | ReduceOp::AbsMax
            | ReduceOp::And
            | ReduceOp::Or
            | ReduceOp::Xor
            | ReduceOp::ArgMax
            | ReduceOp::ArgMin => None,
        }
    }
}

/// The reduction of which a scan gives the running results.
impl From<ScanOp> for ReduceOp {
    fn from(scan: ScanOp) -> ReduceOp {
        match scan {
            ScanOp::Sum => ReduceOp::Sum,
            ScanOp::Max => ReduceOp::Max,
            ScanOp::Min => ReduceOp::Min,
        }
    }
}
