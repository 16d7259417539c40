//! Element types of tensors, tiles and scalars.

use std::fmt;

/// An element type.
///
/// Arithmetic is defined on [`DType::is_arithmetic`] types only; the narrow float formats
/// ([`DType::is_storage_only`]) can be loaded, stored, cast and bit-cast, nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    /// One byte in memory, 0 or 1.
    Bool,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    /// Loop counters, extents and offsets: an integer at least as wide as the device needs.
    /// It has no memory representation, so no buffer may hold it; cast to `i32` or `i64` to store one.
    Index,
    F16,
    BF16,
    F32,
    F64,
    /// OCP 8-bit float, 4 exponent and 3 mantissa bits, no infinity, NaN = 0x7f/0xff, max 448.
    F8E4M3,
    /// OCP 8-bit float, 5 exponent and 2 mantissa bits, with infinities, max 57344.
    F8E5M2,
    /// OCP 4-bit float, magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6. Packed two to a byte along the last
    /// dimension, the lower nibble holding the even index.
    F4E2M1,
    /// OCP 8-bit exponent-only scale, 2^(code - 127), NaN = 0xff.
    E8M0,
}

impl DType {
    /// All types, in declaration order.
    pub const ALL: [DType; 18] = [
        DType::Bool,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Index,
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::F4E2M1,
        DType::E8M0,
    ];

    /// The spelling in IR text, error messages and file headers.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::Index => "index",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E5M2 => "f8e5m2",
            DType::F4E2M1 => "f4e2m1",
            DType::E8M0 => "e8m0",
        }
    }

    /// The type spelled `name`, if there is one.
    pub fn from_name(name: &str) -> Option<DType> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Width of one element in bits as it lies in memory (4 for the packed `f4e2m1`).
    pub const fn bits(self) -> usize {
        match self {
            DType::F4E2M1 => 4,
            DType::Bool | DType::I8 | DType::U8 | DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 => 8,
            DType::I16 | DType::U16 | DType::F16 | DType::BF16 => 16,
            DType::I32 | DType::U32 | DType::F32 => 32,
            DType::I64 | DType::U64 | DType::Index | DType::F64 => 64,
        }
    }

    /// Bytes that `n` elements occupy, the last byte filled up.
    pub const fn bytes_for(self, n: usize) -> usize {
        (n * self.bits()).div_ceil(8)
    }

    /// True for every floating-point format, narrow ones included.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::F16
                | DType::BF16
                | DType::F32
                | DType::F64
                | DType::F8E4M3
                | DType::F8E5M2
                | DType::F4E2M1
                | DType::E8M0
        )
    }

    /// True for signed and unsigned integers, `index` included.
    pub const fn is_int(self) -> bool {
        matches!(
            self,
            DType::I8
                | DType::I16
                | DType::I32
                | DType::I64
                | DType::U8
                | DType::U16
                | DType::U32
                | DType::U64
                | DType::Index
        )
    }

    /// True for integers whose top bit is a sign (`index` included).
    pub const fn is_signed_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::Index)
    }

    /// True for the formats that exist only in memory: no arithmetic, only casts and moves.
    pub const fn is_storage_only(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 | DType::E8M0)
    }

    /// True where `+`, `*` and comparisons are defined.
    pub const fn is_arithmetic(self) -> bool {
        self.is_int() || (self.is_float() && !self.is_storage_only())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
