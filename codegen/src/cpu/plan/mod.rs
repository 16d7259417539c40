//! Decisions about memory that precede lowering: how each tile lies in memory, and where in the arena.

mod arena;
mod layout;

pub(crate) use arena::{Arena, arena};
pub(crate) use layout::{Cell, Layout, is_elementwise, layouts};
