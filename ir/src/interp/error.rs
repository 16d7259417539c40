//! What the interpreter can object to, with the places in the author's source.

use crate::diagnostic::Diagnostic;
use crate::numerics::Const;
use crate::span::Span;
use std::fmt;

/// How an op touched an element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AccessKind {
    Read,
    Write,
    Atomic,
}

impl fmt::Display for AccessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AccessKind::Read => "read",
            AccessKind::Write => "written",
            AccessKind::Atomic => "updated atomically",
        })
    }
}

/// The kind of an [`InterpError`]. Buffers are named as the author named them, or by their id.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum InterpErrorKind {
    #[error("`{buffer}` {indices:?} is {access} but its shape is {shape:?}")]
    OutOfBounds { buffer: String, indices: Vec<i64>, shape: Vec<usize>, access: AccessKind },
    #[error("`{buffer}` {indices:?} is read before it is written")]
    Uninitialised { buffer: String, indices: Vec<i64> },
    #[error(
        "`{buffer}` {indices:?} is {second} by one {between} and {first} by another: the result depends on their order"
    )]
    Race { buffer: String, indices: Vec<i64>, first: AccessKind, second: AccessKind, between: &'static str },
    #[error("the operands overlap in `{buffer}`: the result depends on the order in which elements are visited")]
    Overlap { buffer: String },
    #[error("position {position} is the destination of two rows: the result depends on their order")]
    DuplicatePosition { position: i64 },
    #[error("division by zero")]
    DivisionByZero,
    #[error("an `index` computation overflows: {op} of {x} and {y}")]
    IndexOverflow { op: &'static str, x: i64, y: i64 },
    #[error("assertion failed: {message}")]
    Assert { message: String },
    #[error("an assumption does not hold: the compiler was promised a condition that is false here")]
    Assume,
    #[error("stopped after {fuel} steps: the kernel may not terminate")]
    OutOfFuel { fuel: u64 },
    #[error("argument {position} (`{name}`): {problem}")]
    Argument { position: usize, name: String, problem: String },
    #[error("the launch is wrong: {0}")]
    Launch(String),
    #[error("`{op}` is not defined on {operands:?}")]
    Undefined { op: &'static str, operands: Vec<Const> },
    /// The verifier would have rejected the function.
    #[error("the function is malformed: {0}")]
    Malformed(String),
}

/// An error found while a function ran.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{span}: {kind}")]
pub struct InterpError {
    pub kind: InterpErrorKind,
    /// The op that was running.
    pub span: Span,
    /// The other places involved, each with what happened there.
    pub notes: Vec<(Span, String)>,
}

impl From<InterpError> for Diagnostic {
    fn from(e: InterpError) -> Diagnostic {
        let first = Diagnostic::error(e.kind.to_string()).at(e.span, "");
        e.notes.into_iter().fold(first, |d, (span, text)| d.note_at(span, text))
    }
}
