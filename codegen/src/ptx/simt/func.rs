//! A kernel in SIMT IR: arenas of values, variables, memory objects, ops and blocks.

use super::op::{Fields, SimtOp};
use super::ty::Ty;
use serde::{Deserialize, Serialize};
use std::fmt;
use zellige_ir::hash::FastMap;
use zellige_ir::{Arena, DType, EntityId, Span};

macro_rules! ids {
    ($($(#[$meta:meta])* $name:ident = $prefix:literal;)*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u32);

        impl EntityId for $name {
            fn from_index(index: usize) -> Self {
                Self(u32::try_from(index).expect("arena holds fewer than 2^32 entries"))
            }
            fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )* };
}

ids! {
    /// A per-thread SSA value.
    Val = "v";
    /// A per-thread mutable register: a slot of a fragment or a local scalar.
    Var = "r";
    /// A memory object.
    Obj = "m";
    /// An op with its place.
    Inst = "i";
    /// A list of ops executed in order.
    Block = "block";
    /// A phase: see [`SimtOp::Phase`].
    PhaseId = "phase";
}

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValDef {
    /// An immediate, as bits zero-extended to 64.
    Const(u64),
    Inst(Inst),
    /// Allocated for an op that is not yet appended.
    Pending,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ValData {
    pub ty: Ty,
    pub def: ValDef,
}

/// What a memory object is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjKind {
    /// A tensor parameter. `read_only`: the kernel never writes it.
    Global { read_only: bool },
    /// An area of the block's shared memory; `offset` within the arena is known after planning.
    Shared { bytes: u32, align: u32, offset: Option<u32> },
    /// An area private to the thread.
    Local { bytes: u32, align: u32 },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjData {
    /// For comments and explanations: `tile a_s`, `scratch of reduce`.
    pub name: String,
    pub kind: ObjKind,
    pub span: Span,
    /// Ring buffers of pipelined loops are ordered by what their loop waits for, not by hazard analysis.
    pub managed: bool,
    /// The block where the object comes into being: its contents do not outlive one execution of the block.
    pub home: Block,
    /// Bodies of loops of which each turn touches elements that no other turn touches.
    pub split: Vec<Block>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InstData {
    pub op: SimtOp,
    /// Index into [`Kernel::spans`].
    pub span: u32,
}

/// A parameter of the kernel as the launcher passes it, in order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ParamSlot {
    /// Address of the first element of tensor parameter `param`, aligned to 16 bytes.
    Base { param: u32, name: String },
    /// Stride of one axis of tensor parameter `param`, in elements, 64 bits.
    Stride { param: u32, axis: u32, name: String },
    /// Extent of a named dim, 32 bits; at most [`crate::ptx::DIM_LIMIT`].
    Dim { dim: u32, name: String },
    /// Scalar parameter `param` as its dtype lies in memory (`index` as i64, bool as u32).
    Scalar {
        param: u32,
        name: String,
        #[serde(with = "dtype_name")]
        dtype: DType,
    },
    /// Tensor map of tensor parameter `param`: 128 bytes, aligned to 64.
    TensorMap { param: u32, name: String, map: MapSpec },
    /// Address of a 32-bit counter that is 0 and that the kernel leaves at 0. Launches that may overlap need one each.
    Counter { name: String },
    /// Address of a 32-bit record for the number of an assertion that does not hold; null if nobody reads it.
    Failure { name: String },
}

/// What the kernel asserts at one place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assertion {
    /// The author's place.
    pub place: String,
    pub message: String,
}

/// Element types are stored by name.
mod dtype_name {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use zellige_ir::DType;

    pub fn serialize<S: Serializer>(dtype: &DType, s: S) -> Result<S::Ok, S::Error> {
        dtype.name().serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<DType, D::Error> {
        let name = String::deserialize(d)?;
        DType::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown type `{name}`")))
    }
}

/// How a tensor map walks its tensor: zero outside, one element after the other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapSpec {
    #[serde(with = "dtype_name")]
    pub dtype: DType,
    /// f32 elements are rounded to tf32 on their way, halves to even.
    pub tf32: bool,
    /// Extents of a box in elements, innermost first, one for each axis of the tensor. Elements narrower than a byte are
    /// counted in bytes along the innermost axis, here and in coordinates.
    pub tile: Vec<u32>,
    /// Bytes of the swizzle atom in shared memory, 0 for none; the box's innermost extent has as many.
    pub swizzle: u32,
}

/// How many blocks a launch has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GridPlan {
    /// The author's grid.
    AsWritten,
    /// At most one block for each multiprocessor, in one row; each walks over blocks of the author's grid.
    Persistent,
    /// The same, where all blocks of a cluster share each block of the author's grid.
    Spread,
}

/// How the warps of a block share the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Roles {
    /// All run everything.
    Uniform,
    /// The first `consumers` threads run the kernel and have a barrier of their own; the last 128 feed them.
    Specialised { consumers: u32 },
}

impl ParamSlot {
    /// Width in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            ParamSlot::Base { .. }
            | ParamSlot::Stride { .. }
            | ParamSlot::Counter { .. }
            | ParamSlot::Failure { .. } => 8,
            ParamSlot::Dim { .. } => 4,
            ParamSlot::Scalar { dtype, .. } => match dtype {
                DType::Bool => 4,
                _ => dtype.bits().div_ceil(8),
            },
            ParamSlot::TensorMap { .. } => 128,
        }
    }

    /// Alignment in bytes.
    pub fn align(&self) -> usize {
        match self {
            ParamSlot::TensorMap { .. } => 64,
            ParamSlot::Base { .. }
            | ParamSlot::Stride { .. }
            | ParamSlot::Dim { .. }
            | ParamSlot::Scalar { .. }
            | ParamSlot::Counter { .. }
            | ParamSlot::Failure { .. } => self.bytes(),
        }
    }

    pub fn name(&self) -> &str {
        match self {
            ParamSlot::Base { name, .. }
            | ParamSlot::Stride { name, .. }
            | ParamSlot::Dim { name, .. }
            | ParamSlot::Scalar { name, .. }
            | ParamSlot::TensorMap { name, .. }
            | ParamSlot::Counter { name }
            | ParamSlot::Failure { name } => name,
        }
    }
}

/// What a phase is, for explanations, and what is known about its accesses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PhaseInfo {
    /// The tile op: `copy`, `reduce (across warps)`.
    pub what: String,
    pub span: Option<Span>,
    /// Earlier phases that touch other elements of an object, if they belong to the same turn of all loops around.
    pub apart: Vec<(Obj, PhaseId)>,
    /// Rings whose copies have landed before this phase, and of which it fills a slot: where a thread touches what another one has
    /// copied, they wait for each other.
    pub rings: Vec<Obj>,
}

/// A kernel as one thread runs it.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub name: String,
    pub span: Span,
    /// Threads in a block.
    pub threads: u32,
    pub params: Vec<ParamSlot>,
    /// What [`SimtOp::Fail`] counts from 1.
    pub assertions: Vec<Assertion>,
    pub grid: GridPlan,
    pub roles: Roles,
    /// Blocks of a cluster; 1 for none.
    pub cluster: u32,
    pub vals: Arena<Val, ValData>,
    pub vars: Arena<Var, Ty>,
    pub objs: Arena<Obj, ObjData>,
    pub insts: Arena<Inst, InstData>,
    pub blocks: Arena<Block, Vec<Inst>>,
    pub phases: Arena<PhaseId, PhaseInfo>,
    pub spans: Vec<Span>,
    pub body: Block,
    /// Bytes of shared memory, known after planning.
    pub shared_bytes: u32,
    constants: FastMap<(Ty, u64), Val>,
    /// Powers of two known to divide address registers.
    aligned: FastMap<Val, u64>,
}

impl Kernel {
    /// An empty kernel.
    pub fn new(name: impl Into<String>, span: Span, threads: u32) -> Kernel {
        let mut blocks = Arena::default();
        let body = blocks.push(Vec::new());
        Kernel {
            name: name.into(),
            spans: vec![span.clone()],
            span,
            threads,
            params: Vec::new(),
            assertions: Vec::new(),
            grid: GridPlan::AsWritten,
            roles: Roles::Uniform,
            cluster: 1,
            vals: Arena::default(),
            vars: Arena::default(),
            objs: Arena::default(),
            insts: Arena::default(),
            blocks,
            phases: Arena::default(),
            body,
            shared_bytes: 0,
            constants: FastMap::default(),
            aligned: FastMap::default(),
        }
    }

    /// The number of an assertion, which is added if it is new.
    pub fn assertion(&mut self, place: &str, message: &str) -> u32 {
        let is_it = |a: &Assertion| a.place == place && a.message == message;
        let at = self.assertions.iter().position(is_it).unwrap_or_else(|| {
            self.assertions.push(Assertion { place: place.into(), message: message.into() });
            self.assertions.len() - 1
        });
        at as u32 + 1
    }

    /// The parameter with the record of failures, which is added if there is none.
    pub fn failure_slot(&mut self) -> u32 {
        let at = self.params.iter().position(|p| matches!(p, ParamSlot::Failure { .. })).unwrap_or_else(|| {
            self.params.push(ParamSlot::Failure { name: "failure".into() });
            self.params.len() - 1
        });
        at as u32
    }

    /// Notes that a power of two divides an address register.
    pub fn set_aligned(&mut self, v: Val, by: u64) {
        let known = self.aligned.entry(v).or_insert(by);
        *known = by.max(*known);
    }

    /// A power of two that divides an address register.
    pub fn aligned(&self, v: Val) -> u64 {
        self.aligned.get(&v).copied().unwrap_or(1)
    }

    /// The value of an immediate; `bits` above the width are ignored.
    pub fn constant(&mut self, ty: Ty, bits: u64) -> Val {
        let bits = match ty.bits() {
            64 => bits,
            n => bits & ((1u64 << n) - 1),
        };
        let vals = &mut self.vals;
        *self.constants.entry((ty, bits)).or_insert_with(|| vals.push(ValData { ty, def: ValDef::Const(bits) }))
    }

    /// The bits of an immediate, if it is one.
    pub fn as_const(&self, v: Val) -> Option<u64> {
        match self.vals[v].def {
            ValDef::Const(bits) => Some(bits),
            ValDef::Inst(_) | ValDef::Pending => None,
        }
    }

    pub fn ty(&self, v: Val) -> Ty {
        self.vals[v].ty
    }

    /// The op that defines a value, if one does.
    pub fn def(&self, v: Val) -> Option<&SimtOp> {
        match self.vals[v].def {
            ValDef::Inst(i) => Some(&self.insts[i].op),
            ValDef::Const(_) | ValDef::Pending => None,
        }
    }

    /// A value that an op appended later will define.
    pub fn pending(&mut self, ty: Ty) -> Val {
        self.vals.push(ValData { ty, def: ValDef::Pending })
    }

    /// Appends an op to a block and makes it the definition of its results.
    pub fn append(&mut self, block: Block, op: SimtOp, span: u32) -> Inst {
        let inst = self.insts.next_id();
        op.defs(&mut |v| self.vals[v].def = ValDef::Inst(inst));
        self.insts.push(InstData { op, span });
        self.blocks[block].push(inst);
        inst
    }

    /// Calls `f` for every op of `block` and of the blocks nested in it, outer before inner, in program order.
    pub fn walk(&self, block: Block, f: &mut dyn FnMut(Inst, &InstData)) {
        for &inst in &self.blocks[block] {
            let data = &self.insts[inst];
            f(inst, data);
            data.op.blocks(&mut |b| self.walk(b, f));
        }
    }
}
