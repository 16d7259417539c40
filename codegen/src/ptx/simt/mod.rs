//! SIMT IR: what one thread of a block does, with typed registers, explicit vector accesses and structured
//! control flow. It lies between tile IR and PTX text and knows nothing of either.
//!
//! Values are SSA; what changes across control flow (fragment registers, mutable scalars) is a [`Var`], read and
//! written by `get` and `set`. The assembler renames registers anyway, so no phi is needed.

pub mod builder;
pub mod fold;
pub mod func;
pub mod op;
mod parse;
pub mod text;
pub mod ty;
pub mod verify;

pub use builder::Builder;
pub use func::{
    Assertion, Block, GridPlan, Inst, InstData, Kernel, MapSpec, Obj, ObjData, ObjKind, ParamSlot, PhaseId, PhaseInfo,
    Roles, Val, ValDef, Var,
};
pub use op::{
    Addr, AtomOp, Bin, Cache, Cmp, Def, Defs, Effect, Fields, MemTy, MmaKind, Packed, Round, ShflMode, SimtOp, Special,
    Un, Vals, Vars, VoteMode, WgmmaTy,
};
pub use parse::{ParseError, parse};
pub use ty::{Num, Space, Ty};
pub use verify::{VerifyError, verify};
