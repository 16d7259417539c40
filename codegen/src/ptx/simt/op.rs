//! The operations of SIMT IR: what one thread of a block does.
//!
//! As in tile IR, every op is declared once, in the `simt_ops!` table at the end of this file: its fields,
//! its name in SIMT text, its effect and its meaning. An op's fields are in the order in which it is printed.

use super::func::{Block, Kernel, Obj, PhaseId, Val, Var};
use super::parse::{ParseError, ParseField, Parser};
use super::ty::{Num, Space};
use smallvec::SmallVec;
use std::fmt::Write;

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$vmeta])* $variant),* }

        impl $name {
            /// The spelling in SIMT text; where PTX has the instruction, its spelling too.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl ParseField for $name {
            fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<$name, ParseError> {
                super::parse::variant(p, &[$($name::$variant),*], $name::name)
            }
        }
    };
}

named! {
    /// One-operand arithmetic.
    Un {
        Neg = "neg", Abs = "abs", Not = "not", Popc = "popc", Clz = "clz",
        /// Correctly rounded.
        Sqrt = "sqrt.rn",
        /// Correctly rounded.
        Rcp = "rcp.rn",
        Ex2Approx = "ex2.approx", Lg2Approx = "lg2.approx", RcpApprox = "rcp.approx", RsqrtApprox = "rsqrt.approx",
        TanhApprox = "tanh.approx",
    }
}

named! {
    /// Two-operand arithmetic. Float add, sub and mul round to nearest and are never contracted.
    Bin {
        Add = "add", Sub = "sub",
        /// Low half of an integer product.
        Mul = "mul",
        /// High half of an integer product.
        MulHi = "mul.hi",
        /// Full product: 64 bits of two 32-bit operands.
        MulWide = "mul.wide",
        /// Correctly rounded for floats, towards zero for integers.
        Div = "div",
        Rem = "rem", Min = "min", Max = "max", And = "and", Or = "or", Xor = "xor",
        /// The amount (b32) is clamped at the width.
        Shl = "shl",
        /// The amount (b32) is clamped at the width.
        Shr = "shr",
    }
}

named! {
    /// Comparison. Float forms are ordered except `Neu` (not equal or unordered).
    Cmp {
        Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge", Neu = "neu",
        /// Neither operand is a NaN.
        Number = "num",
        /// Some operand is a NaN.
        IsNan = "nan",
    }
}

named! {
    /// How a conversion rounds.
    Round {
        /// The conversion is exact, or between integers.
        Exact = "exact",
        /// To nearest, ties to even.
        Rn = "rn",
        /// Towards zero.
        Rz = "rz",
        /// To nearest, ties away from zero.
        Rna = "rna",
        /// To an integral value: nearest even, towards zero, minus infinity, plus infinity.
        Rni = "rni", Rzi = "rzi", Rmi = "rmi", Rpi = "rpi",
    }
}

named! {
    /// Formats of which two are converted at once.
    Packed {
        E4M3x2 = "e4m3x2", E5M2x2 = "e5m2x2", F16x2 = "f16x2", BF16x2 = "bf16x2",
    }
}

named! {
    /// A read-only hardware register.
    Special {
        Tid = "%tid.x", LaneId = "%laneid", CtaX = "%ctaid.x", CtaY = "%ctaid.y", CtaZ = "%ctaid.z",
        /// The block's number in its cluster.
        ClusterRank = "%cluster_ctarank",
        GridX = "%nctaid.x", GridY = "%nctaid.y", GridZ = "%nctaid.z",
    }
}

named! {
    /// What a load or store moves: the type suffix of the instruction.
    MemTy {
        U8 = "u8", S8 = "s8", U16 = "u16", S16 = "s16", B16 = "b16", B32 = "b32", B64 = "b64", F32 = "f32", F64 = "f64",
    }
}

impl MemTy {
    /// Bytes of one element.
    pub const fn bytes(self) -> u32 {
        match self {
            MemTy::U8 | MemTy::S8 => 1,
            MemTy::U16 | MemTy::S16 | MemTy::B16 => 2,
            MemTy::B32 | MemTy::F32 => 4,
            MemTy::B64 | MemTy::F64 => 8,
        }
    }
}

named! {
    /// Which path a load takes.
    Cache {
        Default = "",
        /// Read-only data: the kernel never writes it.
        ReadOnly = "nc",
    }
}

named! {
    /// Warp-wide matrix product: shape and operand types.
    MmaKind {
        BF16K16 = "m16n8k16.row.col.f32.bf16.bf16.f32",
        BF16K8 = "m16n8k8.row.col.f32.bf16.bf16.f32",
        F16K16 = "m16n8k16.row.col.f32.f16.f16.f32",
        F16K8 = "m16n8k8.row.col.f32.f16.f16.f32",
        TF32K8 = "m16n8k8.row.col.f32.tf32.tf32.f32",
        TF32K4 = "m16n8k4.row.col.f32.tf32.tf32.f32",
        E4M3K32 = "m16n8k32.row.col.f32.e4m3.e4m3.f32",
        E5M2K32 = "m16n8k32.row.col.f32.e5m2.e5m2.f32",
        E4M3E5M2K32 = "m16n8k32.row.col.f32.e4m3.e5m2.f32",
        E5M2E4M3K32 = "m16n8k32.row.col.f32.e5m2.e4m3.f32",
        S8K32 = "m16n8k32.row.col.s32.s8.s8.s32",
        U8K32 = "m16n8k32.row.col.s32.u8.u8.s32",
        S8U8K32 = "m16n8k32.row.col.s32.s8.u8.s32",
        U8S8K32 = "m16n8k32.row.col.s32.u8.s8.s32",
    }
}

impl MmaKind {
    /// Depth of the product in elements.
    pub const fn k(self) -> usize {
        match self {
            MmaKind::BF16K16 | MmaKind::F16K16 => 16,
            MmaKind::BF16K8 | MmaKind::F16K8 | MmaKind::TF32K8 => 8,
            MmaKind::TF32K4 => 4,
            MmaKind::E4M3K32
            | MmaKind::E5M2K32
            | MmaKind::E4M3E5M2K32
            | MmaKind::E5M2E4M3K32
            | MmaKind::S8K32
            | MmaKind::U8K32
            | MmaKind::S8U8K32
            | MmaKind::U8S8K32 => 32,
        }
    }

    /// Registers of 32 bits that hold a thread's share of A and of B.
    pub const fn operand_regs(self) -> (usize, usize) {
        match self {
            MmaKind::BF16K8 | MmaKind::F16K8 | MmaKind::TF32K4 => (2, 1),
            MmaKind::BF16K16
            | MmaKind::F16K16
            | MmaKind::TF32K8
            | MmaKind::E4M3K32
            | MmaKind::E5M2K32
            | MmaKind::E4M3E5M2K32
            | MmaKind::E5M2E4M3K32
            | MmaKind::S8K32
            | MmaKind::U8K32
            | MmaKind::S8U8K32
            | MmaKind::U8S8K32 => (4, 2),
        }
    }

    /// True when the accumulator is i32.
    pub const fn is_integer(self) -> bool {
        matches!(self, MmaKind::S8K32 | MmaKind::U8K32 | MmaKind::S8U8K32 | MmaKind::U8S8K32)
    }

    /// True for 8-bit float operands, which need sm_89.
    pub const fn needs_sm89(self) -> bool {
        matches!(self, MmaKind::E4M3K32 | MmaKind::E5M2K32 | MmaKind::E4M3E5M2K32 | MmaKind::E5M2E4M3K32)
    }
}

named! {
    /// Operand types of a warpgroup's matrix product.
    WgmmaTy { BF16 = "bf16", F16 = "f16", TF32 = "tf32", E4M3 = "e4m3", E5M2 = "e5m2" }
}

impl WgmmaTy {
    /// Bits of an element.
    pub const fn bits(self) -> usize {
        match self {
            WgmmaTy::TF32 => 32,
            WgmmaTy::BF16 | WgmmaTy::F16 => 16,
            WgmmaTy::E4M3 | WgmmaTy::E5M2 => 8,
        }
    }

    /// Inner extent of an instruction: 32 bytes.
    pub const fn k(self) -> usize {
        256 / self.bits()
    }
}

named! {
    /// How lanes of a warp exchange registers.
    ShflMode { Bfly = "bfly", Up = "up", Down = "down", Idx = "idx" }
}

named! {
    /// What a vote computes from a predicate over the lanes of a warp.
    VoteMode { Any = "any", All = "all", Ballot = "ballot" }
}

named! {
    /// How an atomic combines.
    AtomOp { Add = "add", Min = "min", Max = "max", And = "and", Or = "or", Xor = "xor", Exch = "exch" }
}

/// What an op does besides computing its results.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Nothing: equal ops may be merged, unused ones removed, all may move.
    Pure,
    /// Reads memory or a variable: unused ones may be removed.
    Read,
    /// Writes memory or a variable, or is a collective of the warp.
    Write,
    /// Orders or waits.
    Sync,
    /// Has nested blocks, or ends or reports on the thread.
    Control,
}

/// A value that the op defines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Def(pub Val);

pub type Vals = SmallVec<[Val; 4]>;
pub type Defs = SmallVec<[Def; 4]>;
pub type Vars = Vec<Var>;

/// A memory location: a register plus a constant number of bytes, within an object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Addr {
    pub base: Val,
    /// Bytes added to the base.
    pub offset: i32,
    /// The buffer, arena area or scratch area that the access stays within: what hazard analysis goes by.
    pub obj: Obj,
}

/// Access to what an op's fields mention.
pub trait Fields {
    fn uses(&self, f: &mut dyn FnMut(Val));
    fn uses_mut(&mut self, f: &mut dyn FnMut(&mut Val));
    fn defs(&self, _f: &mut dyn FnMut(Val)) {}
    fn blocks(&self, _f: &mut dyn FnMut(Block)) {}
    /// Writes the field as SIMT text; nothing for results, which stand elsewhere.
    fn show(&self, _k: &Kernel, _out: &mut String) {}
    /// [`show`](Self::show) for the field called `name`.
    fn show_named(&self, _name: &str, k: &Kernel, out: &mut String) {
        self.show(k, out);
    }
}

impl Fields for Val {
    fn show(&self, k: &Kernel, out: &mut String) {
        out.push_str(&super::text::operand(k, *self));
    }
    fn uses(&self, f: &mut dyn FnMut(Val)) {
        f(*self);
    }
    fn uses_mut(&mut self, f: &mut dyn FnMut(&mut Val)) {
        f(self);
    }
}

impl Fields for Def {
    fn uses(&self, _f: &mut dyn FnMut(Val)) {}
    fn uses_mut(&mut self, _f: &mut dyn FnMut(&mut Val)) {}
    fn defs(&self, f: &mut dyn FnMut(Val)) {
        f(self.0);
    }
}

impl Fields for Addr {
    fn show(&self, k: &Kernel, out: &mut String) {
        let base = super::text::operand(k, self.base);
        let _ = write!(out, "[{base}{:+} in {}]", self.offset, self.obj);
    }
    fn uses(&self, f: &mut dyn FnMut(Val)) {
        f(self.base);
    }
    fn uses_mut(&mut self, f: &mut dyn FnMut(&mut Val)) {
        f(&mut self.base);
    }
}

impl Fields for Block {
    fn show(&self, _k: &Kernel, out: &mut String) {
        let _ = write!(out, "{self}");
    }
    fn uses(&self, _f: &mut dyn FnMut(Val)) {}
    fn uses_mut(&mut self, _f: &mut dyn FnMut(&mut Val)) {}
    fn blocks(&self, f: &mut dyn FnMut(Block)) {
        f(*self);
    }
}

macro_rules! fields_seq {
    ($($t:ty),*) => { $(impl Fields for $t {
        fn uses(&self, f: &mut dyn FnMut(Val)) { self.iter().for_each(|x| x.uses(f)); }
        fn uses_mut(&mut self, f: &mut dyn FnMut(&mut Val)) { self.iter_mut().for_each(|x| x.uses_mut(f)); }
        fn defs(&self, f: &mut dyn FnMut(Val)) { self.iter().for_each(|x| x.defs(f)); }
        fn show(&self, k: &Kernel, out: &mut String) { super::text::list(k, self.iter(), out); }
    })* };
}
fields_seq!(Vals, Defs, Option<Def>);

impl Fields for Option<Val> {
    fn uses(&self, f: &mut dyn FnMut(Val)) {
        self.iter().for_each(|v| f(*v));
    }
    fn uses_mut(&mut self, f: &mut dyn FnMut(&mut Val)) {
        self.iter_mut().for_each(f);
    }
    fn show_named(&self, name: &str, k: &Kernel, out: &mut String) {
        if let Some(v) = self {
            let _ = write!(out, "{name} {}", super::text::operand(k, *v));
        }
    }
}

macro_rules! fields_none {
    ($($t:ty),*) => { $(impl Fields for $t {
        fn uses(&self, _f: &mut dyn FnMut(Val)) {}
        fn uses_mut(&mut self, _f: &mut dyn FnMut(&mut Val)) {}
        fn show(&self, _k: &Kernel, out: &mut String) { let _ = write!(out, "{self}"); }
    })* };
}
fields_none!(
    Un, Bin, Cmp, Round, Packed, Special, MemTy, Cache, MmaKind, WgmmaTy, ShflMode, VoteMode, AtomOp, Num, Space, Obj,
    Var, PhaseId, u32, bool
);

impl Fields for Vars {
    fn uses(&self, _f: &mut dyn FnMut(Val)) {}
    fn uses_mut(&mut self, _f: &mut dyn FnMut(&mut Val)) {}
    fn show(&self, _k: &Kernel, out: &mut String) {
        if let (Some(first), Some(last)) = (self.first(), self.last()) {
            let _ = write!(out, "{{{first}..{last}}}");
        }
    }
}

impl Fields for String {
    fn uses(&self, _f: &mut dyn FnMut(Val)) {}
    fn uses_mut(&mut self, _f: &mut dyn FnMut(&mut Val)) {}
    fn show(&self, _k: &Kernel, out: &mut String) {
        let _ = write!(out, "{self:?}");
    }
}

/// The table's row for one op.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo {
    pub name: &'static str,
    pub effect: Effect,
    pub fields: &'static [(&'static str, &'static str)],
    pub doc: &'static str,
}

macro_rules! simt_ops {
    ($( $(#[doc = $doc:literal])* $name:literal $effect:ident $variant:ident { $($field:ident : $ty:ty),* $(,)? } )*) => {
        /// An operation of one thread.
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub enum SimtOp { $( $(#[doc = $doc])* $variant { $($field: $ty),* } ),* }

        impl SimtOp {
            /// The op table, in declaration order.
            pub const TABLE: &'static [OpInfo] = &[$(OpInfo {
                name: $name,
                effect: Effect::$effect,
                fields: &[$((stringify!($field), stringify!($ty))),*],
                doc: concat!($($doc, "\n"),*),
            }),*];

            pub const fn name(&self) -> &'static str {
                match self { $(SimtOp::$variant { .. } => $name),* }
            }

            pub const fn effect(&self) -> Effect {
                match self { $(SimtOp::$variant { .. } => Effect::$effect),* }
            }

            /// Reads the fields of the op called `name`; `None` if there is no such op.
            pub(super) fn parse(name: &str, p: &mut Parser<'_>) -> Result<Option<SimtOp>, ParseError> {
                Ok(Some(match name {
                    $($name => {
                        $(let $field = <$ty as ParseField>::parse_field(p, stringify!($field))?;)*
                        SimtOp::$variant { $($field),* }
                    })*
                    _ => return Ok(None),
                }))
            }
        }

        impl Fields for SimtOp {
            fn uses(&self, f: &mut dyn FnMut(Val)) {
                match self { $(SimtOp::$variant { $($field),* } => { $($field.uses(f);)* let _ = f; }),* }
            }
            fn uses_mut(&mut self, f: &mut dyn FnMut(&mut Val)) {
                match self { $(SimtOp::$variant { $($field),* } => { $($field.uses_mut(f);)* let _ = f; }),* }
            }
            fn defs(&self, f: &mut dyn FnMut(Val)) {
                match self { $(SimtOp::$variant { $($field),* } => { $($field.defs(f);)* let _ = f; }),* }
            }
            fn blocks(&self, f: &mut dyn FnMut(Block)) {
                match self { $(SimtOp::$variant { $($field),* } => { $($field.blocks(f);)* let _ = f; }),* }
            }
            fn show(&self, k: &Kernel, out: &mut String) {
                match self { $(SimtOp::$variant { $($field),* } => {
                    $(let from = out.len(); out.push_str(", "); $field.show_named(stringify!($field), k, out); if out.len() == from + 2 { out.truncate(from); })*
                    let _ = (k, out);
                }),* }
            }
        }
    };
}

impl SimtOp {
    /// The variables that the op changes.
    pub fn written_vars(&self) -> &[Var] {
        match self {
            SimtOp::Set { var, .. } => std::slice::from_ref(var),
            SimtOp::Wgmma { acc, .. } | SimtOp::WgmmaRegs { acc, .. } => acc,
            _ => &[],
        }
    }
}

simt_ops! {
    /// Reads a variable as it is at this point.
    "get" Read Get { out: Def, var: Var }
    /// Changes a variable.
    "set" Write Set { var: Var, x: Val }
    /// A hardware register that never changes while the thread runs.
    "special" Pure Special { out: Def, reg: Special }
    /// A kernel parameter, by its position in the parameter list.
    "param" Pure Param { out: Def, slot: u32 }
    /// Address of a shared object in the arena, in the shared window.
    "shared_addr" Pure SharedAddr { out: Def, obj: Obj }
    /// Address of a thread-local object.
    "local_addr" Pure LocalAddr { out: Def, obj: Obj }

    "un" Pure Un { out: Def, op: Un, num: Num, x: Val }
    "bin" Pure Bin { out: Def, op: Bin, num: Num, x: Val, y: Val }
    /// `out = x * y + z`: rounded once for floats, low half for integers.
    "mad" Pure Mad { out: Def, num: Num, x: Val, y: Val, z: Val }
    /// `out = x * y + z` with 32-bit `x`, `y` and 64-bit `z`.
    "mad_wide" Pure MadWide { out: Def, num: Num, x: Val, y: Val, z: Val }
    /// `out: pred = x op y`.
    "setp" Pure Setp { out: Def, op: Cmp, num: Num, x: Val, y: Val }
    /// `out = cond ? x : y`.
    "selp" Pure Selp { out: Def, cond: Val, x: Val, y: Val }
    /// Converts between number types; integers narrower than the register are read from its low bits.
    "cvt" Pure Cvt { out: Def, to: Num, from: Num, round: Round, x: Val }
    /// Two f32 rounded to nearest even (saturating for 8-bit formats) into one register, `lo` in the low half.
    "cvt_pack" Pure CvtPack { out: Def, to: Packed, hi: Val, lo: Val }
    /// Two 8-bit floats (b16) widened to a pair of f16 (b32).
    "cvt_unpack" Pure CvtUnpack { out: Def, from: Packed, x: Val }
    /// f32 to tf32, ties away from zero; the result is a b32 that mma reads.
    "cvt_tf32" Pure CvtTf32 { out: Def, x: Val }
    /// The same bits in a register of another class of one width.
    "bits" Pure Bits { out: Def, x: Val }
    /// A register from two of half the width, `lo` in the low half.
    "pack" Pure Pack { out: Def, lo: Val, hi: Val }
    /// The halves of a register.
    "unpack" Pure Unpack { lo: Def, hi: Def, x: Val }
    /// Bytes of `y:x` picked by the nibbles of `sel`.
    "prmt" Pure Prmt { out: Def, x: Val, y: Val, sel: u32 }
    /// Bytes of `y:x` picked by the low four nibbles of a register; where a nibble is 8 or more, eight copies of the sign bit
    /// of the byte that it would pick without its highest bit.
    "prmt_by" Pure PrmtBy { out: Def, x: Val, y: Val, sel: Val }
    /// `len` bits of `x` from bit `pos`, zero-extended (b32).
    "bfe" Pure Bfe { out: Def, x: Val, pos: u32, len: u32 }
    /// `y` with its `len` bits from `pos` replaced by the low bits of `x` (b32).
    "bfi" Pure Bfi { out: Def, x: Val, y: Val, pos: u32, len: u32 }

    /// Reads one to four consecutive elements. Where `guard` is false the results are zero.
    "ld" Read Ld { outs: Defs, space: Space, mem: MemTy, cache: Cache, addr: Addr, guard: Option<Val> }
    /// Writes one to four consecutive elements, unless `guard` is false.
    "st" Write St { space: Space, mem: MemTy, addr: Addr, vals: Vals, guard: Option<Val> }
    /// Starts copying `bytes` (4, 8 or 16) from global to shared memory; `size` (b32) of them are read, the rest is zero.
    "cp_async" Write CpAsync { dst: Addr, src: Addr, bytes: u32, size: Option<Val>, guard: Option<Val> }
    /// Closes a group of asynchronous copies.
    "cp_async_commit" Sync CpAsyncCommit {}
    /// Waits until at most `pending` groups are unfinished.
    "cp_async_wait" Sync CpAsyncWait { pending: u32 }
    /// Loads 8x8 matrices of 16-bit elements, one for each result (1, 2 or 4): lane `8 i + r` gives the address of row `r`
    /// of matrix `i`.
    "ldmatrix" Read LdMatrix { outs: Defs, trans: bool, addr: Addr }
    /// `out = a * b + c` over the warp.
    "mma" Pure Mma { outs: Defs, kind: MmaKind, a: Vals, b: Vals, c: Vals }
    /// A register of another lane; lanes outside the segment keep their own. All lanes take part.
    "shfl" Write Shfl { out: Def, mode: ShflMode, x: Val, lane: Val, clamp: u32 }
    /// Combines a predicate over the warp.
    "vote" Write Vote { out: Def, mode: VoteMode, x: Val }
    /// Combines a 32-bit integer over the warp.
    "redux" Write Redux { out: Def, op: Bin, num: Num, x: Val }
    /// Indivisible read-modify-write; `out` is the value before.
    "atom" Write Atom { out: Option<Def>, op: AtomOp, num: Num, space: Space, addr: Addr, x: Val, guard: Option<Val> }

    /// Generic address of a tensor map among the parameters.
    "param_addr" Pure ParamAddr { out: Def, slot: u32 }
    /// Fetches a tensor map that copies will need soon.
    "map_prefetch" Write MapPrefetch { map: Val }
    /// Makes 8 bytes of shared memory an mbarrier whose phases end after `count` arrivals.
    "mbar_init" Write MbarInit { addr: Addr, count: u32 }
    /// Makes initialised mbarriers visible to asynchronous copies.
    "mbar_fence" Sync MbarFence {}
    /// Arrives, and lets the phase end only after `bytes` more have been copied.
    "mbar_expect" Write MbarExpect { addr: Addr, bytes: u32 }
    /// Arrives, unless `guard` is false.
    "mbar_arrive" Write MbarArrive { addr: Addr, guard: Option<Val> }
    /// As `mbar_arrive`, at the barrier at the same place in block `rank` (b32) of the cluster.
    "mbar_arrive_at" Write MbarArriveAt { addr: Addr, rank: Val, guard: Option<Val> }
    /// As `mbar_arrive_at`, after all of this thread's accesses to memory, for all blocks of the cluster.
    "mbar_release_at" Write MbarReleaseAt { addr: Addr, rank: Val, guard: Option<Val> }
    /// Starts copying `bytes` of shared memory to the same place in block `rank` (b32) of the cluster; they count on the
    /// mbarrier `bar` of that block.
    "bulk_send" Write BulkSend { addr: Addr, bytes: u32, bar: Addr, rank: Val }
    /// Waits until the phase of this parity (b32, 0 or 1) has ended.
    "mbar_wait" Sync MbarWait { addr: Addr, parity: Val }
    /// Starts copying the box at `coords` (b32, innermost first) of a tensor map to shared memory; its bytes count on the
    /// mbarrier. Elements outside of the tensor are zero. If `blocks` is not 0, it is the set of the cluster's blocks that get
    /// the box, each at the same places.
    "tma_load" Write TmaLoad { dst: Addr, map: Val, coords: Vals, bar: Addr, blocks: u32 }
    /// Starts copying a box from shared memory to `coords` of a tensor map; elements outside of the tensor are left out.
    "tma_store" Write TmaStore { map: Val, coords: Vals, src: Addr }
    /// Closes a group of asynchronous stores.
    "bulk_commit" Sync BulkCommit {}
    /// Waits until at most `pending` groups of stores have not yet read their shared memory.
    "bulk_wait" Sync BulkWait { pending: u32 }
    /// Orders this thread's accesses to shared memory before later ones of the asynchronous proxy.
    "async_fence" Sync AsyncFence {}
    /// Orders register accesses before the warpgroup's next product.
    "wgmma_fence" Sync WgmmaFence {}
    /// `acc = a * b + (scale_d ? acc : 0)` over a warpgroup: 64 x `n` in f32, 16 deep, operands in shared memory given by
    /// matrix descriptors (b64). Asynchronous: `acc` may not be touched before a wait.
    "wgmma" Write Wgmma { acc: Vars, ty: WgmmaTy, n: u32, a: Val, b: Val, scale_d: Val, trans_a: bool, trans_b: bool }
    /// As `wgmma`, with A in four registers (b32) of each thread, which may not be changed before a wait.
    "wgmma_regs" Write WgmmaRegs { acc: Vars, ty: WgmmaTy, n: u32, a: Vars, b: Val, scale_d: Val, trans_b: bool }
    /// Closes a group of products.
    "wgmma_commit" Sync WgmmaCommit {}
    /// Waits until at most `pending` groups of products are unfinished.
    "wgmma_wait" Sync WgmmaWait { pending: u32 }
    /// Sets the registers that a thread of this warpgroup may use: more (`grow`) or fewer than it has.
    "set_regs" Sync SetRegs { grow: bool, count: u32 }
    /// Stores 8x8 matrices of 16-bit elements, one for each operand (1, 2 or 4), addressed as by `ldmatrix`.
    "stmatrix" Write StMatrix { addr: Addr, vals: Vals, trans: bool }

    /// Begins a phase: accesses after it may touch what other threads accessed in earlier phases; within one phase
    /// threads do not conflict. Barrier insertion replaces it.
    "phase" Sync Phase { id: PhaseId }
    /// Waits for all threads of the block and orders their memory accesses.
    "bar" Sync Bar {}
    /// As `bar`, for `threads` threads of the block that share the numbered barrier.
    "bar_part" Sync BarPart { id: Val, threads: u32 }
    /// Arrives at a numbered barrier of `threads` threads without waiting for the others.
    "bar_arrive" Sync BarArrive { id: Val, threads: u32 }
    /// As `bar`, for the threads of all blocks of the cluster.
    "cluster_sync" Sync ClusterSync {}
    /// As `bar`, for the threads of a warp.
    "bar_warp" Sync BarWarp {}
    /// Orders what this thread knows to have happened before its later accesses, for all threads of the device.
    "fence" Sync Fence {}
    /// Waits until the launch before this one has ended and all that it wrote is visible, if this one was allowed to begin
    /// earlier.
    "grid_wait" Sync GridWait {}
    /// Allows the launch behind this one to begin, once all blocks have said so or ended.
    "grid_trigger" Sync GridTrigger {}
    /// Ends the launch with an error: assertion `number` does not hold. It is left in the record (b64), if there is one.
    "fail" Control Fail { record: Val, number: u32 }
    /// Prints: the text is a printf format over the arguments (b32, b64 or f64).
    "print" Control Print { format: String, args: Vals }

    /// Runs `body` for `index = lo, lo + step, ..` below `hi` (signed). `uniform`: all threads of the block agree on the trip count.
    "for" Control For { index: Def, lo: Val, hi: Val, step: Val, uniform: bool, body: Block }
    /// Runs one of two blocks.
    "if" Control If { cond: Val, uniform: bool, then_body: Block, else_body: Block }
    /// Runs `before`, and as long as `cond` holds, `body` and `before` again.
    "while" Control While { before: Block, cond: Val, uniform: bool, body: Block }
}
