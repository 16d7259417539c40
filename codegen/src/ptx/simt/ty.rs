//! Register classes, instruction types and state spaces of SIMT IR.

use std::fmt;

/// Class of a per-thread register. PTX converts implicitly between registers of one width, SIMT IR does not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Ty {
    /// A predicate.
    Pred,
    /// 16 bits: a bf16 or f16 scalar, or a pair of 8-bit floats.
    B16,
    /// 32 bits: an integer up to 32 bits (extended), or a packed pair or quadruple.
    B32,
    /// 64 bits: a wide integer or an address.
    B64,
    F32,
    F64,
}

impl Ty {
    pub const ALL: [Ty; 6] = [Ty::Pred, Ty::B16, Ty::B32, Ty::B64, Ty::F32, Ty::F64];

    /// The spelling in SIMT text and in PTX register declarations.
    pub const fn name(self) -> &'static str {
        match self {
            Ty::Pred => "pred",
            Ty::B16 => "b16",
            Ty::B32 => "b32",
            Ty::B64 => "b64",
            Ty::F32 => "f32",
            Ty::F64 => "f64",
        }
    }

    /// Width in bits; a predicate has one.
    pub const fn bits(self) -> usize {
        match self {
            Ty::Pred => 1,
            Ty::B16 => 16,
            Ty::B32 | Ty::F32 => 32,
            Ty::B64 | Ty::F64 => 64,
        }
    }

    /// Bytes in memory.
    pub const fn bytes(self) -> usize {
        self.bits().div_ceil(8)
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type suffix of an arithmetic instruction: how it reads its registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Num {
    Pred,
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    B16,
    B32,
    B64,
    F16,
    BF16,
    F32,
    F64,
}

impl Num {
    /// All of them, in declaration order.
    pub const ALL: [Num; 16] = [
        Num::Pred,
        Num::U8,
        Num::S8,
        Num::U16,
        Num::S16,
        Num::U32,
        Num::S32,
        Num::U64,
        Num::S64,
        Num::B16,
        Num::B32,
        Num::B64,
        Num::F16,
        Num::BF16,
        Num::F32,
        Num::F64,
    ];

    /// The PTX type suffix.
    pub const fn name(self) -> &'static str {
        match self {
            Num::Pred => "pred",
            Num::U8 => "u8",
            Num::S8 => "s8",
            Num::U16 => "u16",
            Num::S16 => "s16",
            Num::U32 => "u32",
            Num::S32 => "s32",
            Num::U64 => "u64",
            Num::S64 => "s64",
            Num::B16 => "b16",
            Num::B32 => "b32",
            Num::B64 => "b64",
            Num::F16 => "f16",
            Num::BF16 => "bf16",
            Num::F32 => "f32",
            Num::F64 => "f64",
        }
    }

    /// The class of register that holds such a number. Small integers are kept extended to 32 bits.
    pub const fn ty(self) -> Ty {
        match self {
            Num::Pred => Ty::Pred,
            Num::U8 | Num::S8 | Num::U16 | Num::S16 | Num::U32 | Num::S32 | Num::B32 => Ty::B32,
            Num::U64 | Num::S64 | Num::B64 => Ty::B64,
            Num::B16 | Num::F16 | Num::BF16 => Ty::B16,
            Num::F32 => Ty::F32,
            Num::F64 => Ty::F64,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, Num::F16 | Num::BF16 | Num::F32 | Num::F64)
    }

    pub const fn is_signed(self) -> bool {
        matches!(self, Num::S8 | Num::S16 | Num::S32 | Num::S64)
    }
}

impl fmt::Display for Num {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where an address points.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Space {
    /// Device memory; addresses are 64 bits.
    Global,
    /// The block's memory; addresses are 32 bits.
    Shared,
    /// The thread's own memory; addresses are 32 bits.
    Local,
}

impl Space {
    pub const fn name(self) -> &'static str {
        match self {
            Space::Global => "global",
            Space::Shared => "shared",
            Space::Local => "local",
        }
    }

    /// Class of an address register.
    pub const fn addr_ty(self) -> Ty {
        match self {
            Space::Global => Ty::B64,
            Space::Shared | Space::Local => Ty::B32,
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
