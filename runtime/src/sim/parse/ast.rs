//! What the parser produces: a module as written, with registers, labels and scopes resolved but no meaning given to opcodes.

use crate::sim::error::SourceRef;

/// A PTX scalar type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ty {
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    E4m3x2,
    E5m2x2,
    E4m3,
    E5m2,
    Pred,
}

impl Ty {
    /// The type a dotted word names, if it names one.
    pub fn from_word(word: &str) -> Option<Ty> {
        Some(match word {
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "tf32" => Ty::Tf32,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "e4m3x2" => Ty::E4m3x2,
            "e5m2x2" => Ty::E5m2x2,
            "e4m3" => Ty::E4m3,
            "e5m2" => Ty::E5m2,
            "pred" => Ty::Pred,
            _ => return None,
        })
    }

    /// Size in bits; a predicate counts as 1.
    pub fn bits(self) -> u32 {
        match self {
            Ty::Pred => 1,
            Ty::B8 | Ty::U8 | Ty::S8 | Ty::E4m3 | Ty::E5m2 => 8,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 | Ty::E4m3x2 | Ty::E5m2x2 => 16,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::Tf32 | Ty::F16x2 | Ty::Bf16x2 => 32,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 64,
        }
    }

    /// Size in bytes as stored in memory.
    pub fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// True for the signed integer types.
    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// True for scalar and packed floating-point types.
    pub fn is_float(self) -> bool {
        match self {
            Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::Tf32 | Ty::F32 | Ty::F64 => true,
            Ty::E4m3x2 | Ty::E5m2x2 | Ty::E4m3 | Ty::E5m2 => true,
            Ty::B8 | Ty::B16 | Ty::B32 | Ty::B64 | Ty::U8 | Ty::U16 | Ty::U32 | Ty::U64 => false,
            Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64 | Ty::Pred => false,
        }
    }
}

/// Index of a register in [`Entry::regs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegId(pub u32);

/// A declared register; `.reg .b32 %r<4>` declares four.
#[derive(Debug, Clone)]
pub struct RegDecl {
    pub name: String,
    pub ty: Ty,
}

/// Where a variable lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VarSpace {
    Global,
    Const,
    Shared,
    Local,
    /// Declared in a body: the argument or result slot of a call.
    CallParam,
}

/// A module- or kernel-level variable.
#[derive(Debug, Clone)]
pub struct Variable {
    pub name: String,
    pub space: VarSpace,
    pub align: u32,
    /// Size in bytes; 0 for an unsized `.extern .shared` array.
    pub bytes: u32,
    /// Initial bytes; empty when not initialised.
    pub init: Vec<u8>,
}

/// A kernel parameter and its place in the parameter block.
#[derive(Debug, Clone)]
pub struct ParamDecl {
    pub name: String,
    pub align: u32,
    pub bytes: u32,
    pub offset: u32,
}

/// The base of an address operand.
#[derive(Debug, Clone, PartialEq)]
pub enum AddrBase {
    Reg(RegId),
    /// A variable or parameter by name.
    Symbol(String),
    Absolute,
}

/// One operand as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    Reg(RegId),
    /// `!%p`.
    NotReg(RegId),
    /// `%p|%q`: two destinations.
    Pair(Box<Operand>, Box<Operand>),
    Int(i128),
    F32(u32),
    F64(u64),
    /// A special register, with its component: `%tid.x`.
    Special(String),
    /// A variable, parameter or function name, with an offset.
    Symbol(String, i64),
    /// A label as a branch target: index into [`Entry::labels`].
    Label(u32),
    /// `_`: no destination.
    Sink,
    /// `[base+offset]`.
    Addr {
        base: AddrBase,
        offset: i64,
    },
    /// `[tensorMap, {c0, c1}]`, the second operand optional offsets.
    TensorAddr {
        base: Box<Operand>,
        coords: Vec<Operand>,
    },
    /// `{a, b, ...}`.
    Vec(Vec<Operand>),
    /// `(a, b)` of a call.
    Args(Vec<Operand>),
}

/// One instruction as written.
#[derive(Debug, Clone)]
pub struct Instr {
    /// Guard predicate and whether it is negated.
    pub guard: Option<(RegId, bool)>,
    /// First word of the opcode.
    pub name: String,
    /// Dotted words after it, without dots.
    pub mods: Vec<String>,
    pub operands: Vec<Operand>,
    pub line: u32,
    /// Where the author wrote it, from `.loc` or a comment on the line.
    pub source: Option<SourceRef>,
}

impl Instr {
    /// True when the dotted word `m` is present.
    pub fn has(&self, m: &str) -> bool {
        self.mods.iter().any(|x| x == m)
    }

    /// The opcode with its modifiers, as written.
    pub fn opcode(&self) -> String {
        let mut s = self.name.clone();
        for m in &self.mods {
            s.push('.');
            s.push_str(m);
        }
        s
    }
}

/// A kernel.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    pub params: Vec<ParamDecl>,
    pub regs: Vec<RegDecl>,
    pub vars: Vec<Variable>,
    pub instrs: Vec<Instr>,
    /// Of each label, the index of the instruction it stands before (`instrs.len()` at the end).
    pub labels: Vec<u32>,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.maxntid`.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster` or `.explicitcluster` dims.
    pub required_cluster: Option<[u32; 3]>,
    pub line: u32,
}

/// A whole module.
#[derive(Debug, Clone)]
pub struct Ast {
    pub version: (u32, u32),
    pub target: String,
    pub vars: Vec<Variable>,
    pub entries: Vec<Entry>,
}
