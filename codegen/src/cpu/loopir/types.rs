//! Types of loop IR values: machine scalars and 128-bit vectors.
//!
//! 128 bits because that is what Cranelift has on x86-64 and AArch64 alike.

use std::fmt;

/// A machine type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Ty {
    /// Also a condition: 0 or 1.
    I8,
    I16,
    I32,
    /// Also an address.
    I64,
    F32,
    F64,
    I8x16,
    I16x8,
    /// Also a lane mask: every lane all ones or all zeros.
    I32x4,
    I64x2,
    F32x4,
    F64x2,
}

impl Ty {
    /// The spelling in text.
    pub const fn name(self) -> &'static str {
        match self {
            Ty::I8 => "i8",
            Ty::I16 => "i16",
            Ty::I32 => "i32",
            Ty::I64 => "i64",
            Ty::F32 => "f32",
            Ty::F64 => "f64",
            Ty::I8x16 => "i8x16",
            Ty::I16x8 => "i16x8",
            Ty::I32x4 => "i32x4",
            Ty::I64x2 => "i64x2",
            Ty::F32x4 => "f32x4",
            Ty::F64x2 => "f64x2",
        }
    }

    /// Number of lanes; 1 for a scalar.
    pub const fn lanes(self) -> usize {
        match self {
            Ty::I8 | Ty::I16 | Ty::I32 | Ty::I64 | Ty::F32 | Ty::F64 => 1,
            Ty::I8x16 => 16,
            Ty::I16x8 => 8,
            Ty::I32x4 | Ty::F32x4 => 4,
            Ty::I64x2 | Ty::F64x2 => 2,
        }
    }

    /// The scalar type of a lane.
    pub const fn lane(self) -> Ty {
        match self {
            Ty::I8 | Ty::I8x16 => Ty::I8,
            Ty::I16 | Ty::I16x8 => Ty::I16,
            Ty::I32 | Ty::I32x4 => Ty::I32,
            Ty::I64 | Ty::I64x2 => Ty::I64,
            Ty::F32 | Ty::F32x4 => Ty::F32,
            Ty::F64 | Ty::F64x2 => Ty::F64,
        }
    }

    /// The 128-bit vector whose lanes have this type.
    pub const fn vector(self) -> Ty {
        match self.lane() {
            Ty::I8 => Ty::I8x16,
            Ty::I16 => Ty::I16x8,
            Ty::I32 => Ty::I32x4,
            Ty::I64 => Ty::I64x2,
            Ty::F32 => Ty::F32x4,
            _ => Ty::F64x2,
        }
    }

    /// Size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Ty::I8 => 1,
            Ty::I16 => 2,
            Ty::I32 | Ty::F32 => 4,
            Ty::I64 | Ty::F64 => 8,
            Ty::I8x16 | Ty::I16x8 | Ty::I32x4 | Ty::I64x2 | Ty::F32x4 | Ty::F64x2 => 16,
        }
    }

    pub const fn is_vector(self) -> bool {
        self.lanes() > 1
    }

    pub const fn is_float(self) -> bool {
        matches!(self.lane(), Ty::F32 | Ty::F64)
    }

    /// The integer type of the same shape: what a comparison of vectors yields.
    pub const fn as_int(self) -> Ty {
        match self {
            Ty::F32 => Ty::I32,
            Ty::F64 => Ty::I64,
            Ty::F32x4 => Ty::I32x4,
            Ty::F64x2 => Ty::I64x2,
            Ty::I8 | Ty::I16 | Ty::I32 | Ty::I64 | Ty::I8x16 | Ty::I16x8 | Ty::I32x4 | Ty::I64x2 => self,
        }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
