//! Loop IR: what tile IR becomes on a CPU before machine code.
//!
//! SSA scalars and 128-bit vectors, structured loops and branches, byte-addressed loads and stores with their
//! address arithmetic explicit. [`Builder`] shares common subexpressions and places each pure node in the
//! outermost loop where its operands exist, so no later pass has to. Depends on nothing else in the crate.

mod builder;
mod facts;
mod node;
mod text;
mod types;
mod verify;

pub use builder::{Builder, Loop};
pub use facts::Facts;
pub use node::{BinOp, Block, Carried, FloatCc, Helper, IntCc, LoopFunc, Mem, Merge, Node, Rmw, Stmt, UnOp, Val};
pub use types::Ty;
pub use verify::{VerifyError, verify};
