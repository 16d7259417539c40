//! Types and modifiers of decoded instructions.

/// Register file classes. 8- and 16-bit registers live zero-extended in the 32-bit file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Pred,
    W32,
    W64,
}

/// Integer types of ALU instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntTy {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

impl IntTy {
    /// Width in bits.
    pub fn bits(self) -> u32 {
        match self {
            IntTy::U16 | IntTy::S16 => 16,
            IntTy::U32 | IntTy::S32 => 32,
            IntTy::U64 | IntTy::S64 => 64,
        }
    }

    /// The register class that holds it.
    pub fn class(self) -> Class {
        if self.bits() == 64 { Class::W64 } else { Class::W32 }
    }
}

/// Integer operations whose operands and result share one type, except where noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntOp {
    Add,
    Sub,
    MulLo,
    MulHi,
    /// Result twice as wide as the operands.
    MulWide,
    MadLo,
    MadHi,
    /// Addend and result twice as wide.
    MadWide,
    Div,
    Rem,
    Min,
    Max,
    Abs,
    Neg,
    And,
    Or,
    Xor,
    Not,
    /// Logical not: `cnot`.
    Cnot,
    /// Shift counts are 32-bit and clamp at the width.
    Shl,
    Shr,
    /// Result is 32-bit.
    Popc,
    /// Result is 32-bit.
    Clz,
    Brev,
    Sad,
    /// Position and length are 32-bit.
    Bfe,
    /// `d = bfi(a into b, pos c, len e)`.
    Bfi,
    /// Result is 32-bit: position of the most significant non-sign bit, or all ones.
    Bfind,
    /// Truth table in `imm`.
    Lop3,
    /// Mode in `imm`: generic byte permutation only.
    Prmt,
    /// Funnel shifts of 32-bit operands.
    ShfLeftWrap,
    ShfRightWrap,
    ShfLeftClamp,
    ShfRightClamp,
    /// `d = c + dot4(a, b)`; `imm` bit 0: a signed, bit 1: b signed.
    Dp4a,
    /// Byte-wise multiply-adds with 24-bit operands.
    Mul24Lo,
    Mad24Lo,
    /// Saturating add and sub of s32.
    AddSat,
    SubSat,
}

/// Rounding of floating-point arithmetic and conversions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero (`.rna`).
    NearestAway,
    Zero,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
}

/// Floating-point formats of ALU instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FltTy {
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
}

impl FltTy {
    /// The register class that holds it.
    pub fn class(self) -> Class {
        if self == FltTy::F64 { Class::W64 } else { Class::W32 }
    }
}

/// Floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FltOp {
    Add,
    Sub,
    Mul,
    Fma,
    /// `.relu` after the fma.
    FmaRelu,
    Div,
    Min,
    Max,
    /// `.NaN`: a NaN operand gives NaN.
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    /// `copysign a, b`: b with the sign of a.
    CopySign,
}

/// Modifiers of a floating-point operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FltMode {
    pub round: Round,
    /// Flush subnormal inputs and results to sign-preserving zero.
    pub ftz: bool,
    /// Clamp the result to [0, 1], NaN to 0.
    pub sat: bool,
}

/// Comparison operators of `setp` and `set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Unordered forms: true if either operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// Types that `setp` and `set` compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpTy {
    Int(IntTy),
    Flt(FltTy),
}

/// How a comparison combines with a third predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoolOp {
    And,
    Or,
    Xor,
}

/// Scalar formats of `cvt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumTy {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
}

/// Modifiers of a scalar `cvt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CvtMode {
    pub round: Round,
    /// `.rni` and friends: round to an integer (also float to float).
    pub to_int: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub satfinite: bool,
}

/// Packed conversions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackTy {
    F16x2,
    Bf16x2,
    E4m3x2,
    E5m2x2,
}

/// State spaces of memory instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    Generic,
    Global,
    /// The block's own shared memory.
    Shared,
    /// Shared memory of any block of the cluster.
    SharedCluster,
    Local,
    Param,
    Const,
}

/// A load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemOp {
    pub space: Space,
    /// Bytes per element.
    pub elem: u8,
    /// Elements (`.v2`, `.v4`).
    pub n: u8,
    /// Sign-extend loaded elements.
    pub signed: bool,
    /// Registers of the data operands are 64-bit.
    pub wide: bool,
    /// The address register is 64-bit.
    pub a64: bool,
    /// Volatile, relaxed, acquire or release: does not race with other strong accesses.
    pub strong: bool,
    /// Through the read-only path (`.nc`): the kernel must not write what it reads so.
    pub constant: bool,
}

/// Atomic operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// Types of atomics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomTy {
    U32,
    S32,
    U64,
    S64,
    F32,
    F64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
}

impl AtomTy {
    /// Bytes of memory it covers.
    pub fn bytes(self) -> u8 {
        match self {
            AtomTy::F16 | AtomTy::Bf16 => 2,
            AtomTy::U32 | AtomTy::S32 | AtomTy::F32 | AtomTy::F16x2 | AtomTy::Bf16x2 => 4,
            AtomTy::U64 | AtomTy::S64 | AtomTy::F64 => 8,
        }
    }
}

/// `shfl.sync` modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shfl {
    Up,
    Down,
    Bfly,
    Idx,
}

/// `vote.sync` modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// Warp-wide reductions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redux {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
}

/// Element formats of matrix operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatTy {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
}

impl MatTy {
    /// Bits per element as stored (tf32 occupies 32).
    pub fn bits(self) -> u32 {
        match self {
            MatTy::F16 | MatTy::Bf16 => 16,
            MatTy::Tf32 => 32,
            MatTy::E4m3 | MatTy::E5m2 | MatTy::S8 | MatTy::U8 => 8,
        }
    }
}

/// Accumulator formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccTy {
    F32,
    F16,
    S32,
}

/// `mbarrier.arrive` and `expect_tx` forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MbarOp {
    /// The address may name another block's barrier.
    pub space: Space,
    pub a64: bool,
    /// Arrivals are counted (false for a bare `expect_tx` or `complete_tx`).
    pub arrive: bool,
    /// Add the transaction count in the second source.
    pub expect: bool,
    /// Subtract it instead (`complete_tx`).
    pub complete: bool,
    /// Give up the arrival for later phases too.
    pub drop: bool,
    /// A relaxed arrival releases nothing.
    pub relaxed: bool,
}

/// Bulk (TMA) copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkOp {
    pub kind: BulkKind,
    /// Number of tensor dims; 0 for a plain byte range.
    pub dims: u8,
    /// Completes on an mbarrier (else on the bulk group).
    pub mbarrier: bool,
    pub multicast: bool,
    /// Reduction instead of a store.
    pub reduce: Option<BulkReduce>,
    /// The shared, global and barrier address registers are 64-bit.
    pub s64: bool,
    pub g64: bool,
    pub b64: bool,
    /// Shared addresses are generic.
    pub s_generic: bool,
}

/// Direction of a bulk copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BulkKind {
    GlobalToShared,
    SharedToGlobal,
    /// To another block's shared memory.
    SharedToShared,
}

/// A bulk reduction. For tensors the element type comes from the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkReduce {
    pub op: AtomOp,
    pub ty: Option<AtomTy>,
}

/// `wgmma.mma_async`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WgmmaOp {
    pub n: u16,
    pub a: MatTy,
    pub b: MatTy,
    pub acc: AccTy,
    /// A comes from registers.
    pub a_regs: bool,
    pub negate_a: bool,
    pub negate_b: bool,
    /// M- (N-)major operands in shared memory.
    pub trans_a: bool,
    pub trans_b: bool,
}
