//! The decoded instruction set: one small `Copy` value per instruction, operands as slot numbers of the register files.

pub use super::types::*;

/// What a decoded instruction does. Operand roles are given per variant: `d`, `a`, `b`, `c`, `e` are slots, `args` is a
/// range of the operand pool starting at `e`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    Nop,
    /// To `imm`; reconverges at `e` (`u32::MAX`: never).
    Bra,
    Exit,
    Trap,
    Brkpt,
    Int(IntOp, IntTy),
    Flt(FltOp, FltTy, FltMode),
    Mov(Class),
    /// `not.pred`, `and.pred`, `or.pred`, `xor.pred` with `b` ignored for not.
    PredNot,
    PredBin(BoolOp),
    /// Concatenates `n` registers of `bits` each into `d`.
    Pack {
        n: u8,
        bits: u8,
        wide: bool,
        wide_in: bool,
    },
    /// Splits `a` into `n` registers of `bits` each.
    Unpack {
        n: u8,
        bits: u8,
        wide: bool,
        wide_out: bool,
    },
    /// `d`, optional `e` (second predicate), compare `a`, `b`; combine with predicate `c`.
    Setp {
        cmp: Cmp,
        ty: CmpTy,
        ftz: bool,
        combine: Option<(BoolOp, bool)>,
        second: bool,
    },
    /// As `Setp`, result as all-ones or 1.0 in `d`.
    Set {
        cmp: Cmp,
        ty: CmpTy,
        ftz: bool,
        float: bool,
        combine: Option<(BoolOp, bool)>,
    },
    /// `d = c ? a : b`.
    Selp {
        wide: bool,
        negate: bool,
    },
    /// `d = c >= 0 ? a : b`; `c` is s32 or f32.
    Slct {
        wide: bool,
        float: bool,
    },
    Cvt {
        to: NumTy,
        from: NumTy,
        mode: CvtMode,
    },
    /// `d = pack(a, b)`, `a` in the upper half; sources f32.
    CvtPackF32 {
        to: PackTy,
        mode: CvtMode,
    },
    /// `d (f16x2) = a (e4m3x2/e5m2x2)`.
    CvtUnpackF8 {
        from: PackTy,
        relu: bool,
    },
    /// `d (e4m3x2/e5m2x2) = a (f16x2)`.
    CvtF8FromF16 {
        to: PackTy,
        relu: bool,
    },
    /// Adds the window of a state space to a 64-bit address (or subtracts it).
    Cvta {
        space: Space,
        to: bool,
        wide: bool,
    },
    /// `d` (predicate) = address `a` lies in the space.
    IsSpace(Space),
    Clock {
        wide: bool,
        nanos: bool,
    },
    /// Uniform read of the parameter block at `imm`; destinations in the pool at `e`.
    LdParam(MemOp),
    Ld(MemOp),
    St(MemOp),
    /// `d` (if `ret`), address `a`+imm, operands in the pool at `e`: value, or compare and value.
    Atom {
        space: Space,
        op: AtomOp,
        ty: AtomTy,
        n: u8,
        ret: bool,
        a64: bool,
        sem: AtomSem,
    },
    /// Prefetches and cache hints with no visible effect.
    Prefetch,
    Shfl {
        mode: Shfl,
        pred: bool,
    },
    Vote(Vote),
    /// `all`: also a predicate in `e`.
    Match {
        all: bool,
        wide: bool,
    },
    Activemask,
    Redux(Redux),
    Elect,
    WarpSync,
    /// Barrier id `a`, thread count `b` (0: all).
    BarSync {
        aligned: bool,
    },
    BarArrive,
    /// Reduction of predicate `c` (negated by `imm`): `d` is a predicate (and/or) or a count.
    BarRed {
        op: Option<BoolOp>,
        aligned: bool,
    },
    Fence(FenceKind),
    Nanosleep,
    /// `cp.async`: shared address `a`, global address `b`, byte count `imm`, optional source size slot `c`.
    CpAsync {
        bytes: u8,
        sized: bool,
        ignore: bool,
        a64: bool,
    },
    CpAsyncCommit,
    /// Groups left outstanding in `imm`.
    CpAsyncWait {
        all: bool,
    },
    CpAsyncMbarArrive {
        noinc: bool,
        space: Space,
        a64: bool,
    },
    Ldmatrix {
        n: u8,
        trans: bool,
        a64: bool,
        generic: bool,
    },
    Stmatrix {
        n: u8,
        trans: bool,
        a64: bool,
        generic: bool,
    },
    /// Operands in the pool at `e`: d, a, b, c registers in PTX order.
    Mma {
        m: u8,
        n: u8,
        k: u8,
        a: MatTy,
        b: MatTy,
        acc: AccTy,
    },
    Printf,
    AssertFail,
    MbarInit {
        a64: bool,
    },
    MbarInval {
        a64: bool,
    },
    Mbar(MbarOp),
    /// `d` predicate, barrier `a`, state or parity `b`.
    MbarTest {
        parity: bool,
        wait: bool,
        a64: bool,
        relaxed: bool,
    },
    MbarPending,
    /// `d = a` moved to block rank `b`.
    Mapa {
        wide: bool,
        generic: bool,
    },
    GetCtaRank {
        wide: bool,
    },
    ClusterArrive {
        relaxed: bool,
    },
    ClusterWait,
    Bulk(BulkOp),
    BulkCommit,
    /// Groups left outstanding in `imm`.
    BulkWait {
        read: bool,
    },
    /// `st.async` with completion on a (remote) mbarrier.
    StAsync {
        elem: u8,
        n: u8,
        wide: bool,
        a64: bool,
        b64: bool,
    },
    WgmmaFence,
    Wgmma(WgmmaOp),
    WgmmaCommit,
    WgmmaWait,
    Setmaxnreg {
        inc: bool,
    },
    /// `griddepcontrol.wait`.
    GridWait,
}

/// Memory ordering of an atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtomSem {
    pub acquire: bool,
    pub release: bool,
}

/// Kinds of fences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceKind {
    /// `membar`, `fence.acq_rel`, `fence.sc` at block scope.
    Block,
    /// The same at cluster, device or system scope.
    Device,
    /// `fence.proxy.async` and variants.
    ProxyAsync,
    /// `fence.mbarrier_init.release.cluster`.
    MbarrierInit,
}

/// A decoded instruction.
#[derive(Debug, Clone, Copy)]
pub struct Inst {
    pub op: Op,
    /// 0: always; else `(slot << 1 | negated) + 1`.
    pub guard: u32,
    pub d: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
    pub e: u32,
    pub imm: i64,
}
