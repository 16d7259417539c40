//! The tile IR of zellige.
//!
//! A kernel is a [`Func`]: structured regions of [`OpKind`] ops over SSA scalars ([`Value`]) and mutable
//! tiles ([`Buffer`]). The meaning of each op is in the op table ([`op`]); the interpreter is the reference
//! for every backend.
//!
//! Depends on no other crate of the project and knows no backend.

pub mod analysis;
pub mod builder;
mod combine;
pub mod diagnostic;
mod dtype;
pub mod element;
pub mod entity;
pub mod eval;
pub mod func;
pub mod hash;
pub mod interp;
pub mod layout;
pub mod numerics;
pub mod op;
pub mod passes;
pub mod prelude;
pub mod span;
pub mod text;
pub mod verify;
pub mod window;

pub use builder::FuncBuilder;
pub use diagnostic::{Diagnostic, Label, Severity};
pub use dtype::DType;
pub use element::{Element, Float, Int, Numeric};
pub use entity::{Arena, EntityId};
pub use func::{
    Access, BlockOrder, Buffer, BufferData, Clusters, Dim, DimData, Extent, Func, Op, OpData, Param, Region,
    RegionData, Scope, Strides, Sums, Value, ValueData, ValueDef,
};
pub use numerics::Const;
pub use op::{
    AtomicOp, BinaryOp, CmpOp, Def, Effect, GemmPrecision, Indices, LayoutHint, LoopKind, OpInfo, OpKind, ReduceOp,
    ScanOp, ShuffleOp, UnaryOp, Visit, WarpRole,
};
pub use span::Span;
pub use verify::{VerifyError, verify};
pub use window::{Window, WindowAxis};
