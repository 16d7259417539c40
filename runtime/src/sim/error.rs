//! Errors of loading and launching a simulated module. What a running kernel does wrong is a [`Fault`](super::Fault).

use std::fmt;

/// A place in the author's source, from `.loc` or a `// file:line` comment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceRef {
    pub file: std::sync::Arc<str>,
    pub line: u32,
    /// 0 when unknown.
    pub col: u32,
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.col {
            0 => write!(f, "{}:{}", self.file, self.line),
            col => write!(f, "{}:{}:{col}", self.file, self.line),
        }
    }
}

/// Why a module could not be loaded or launched.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SimError {
    /// The text is not PTX.
    #[error("PTX syntax error at {line}:{col}: {message}\n  | {text}")]
    Parse { line: u32, col: u32, text: String, message: String },
    /// The text is PTX, but an instruction's operands or types do not fit together.
    #[error("PTX line {line}: {message}\n  | {text}")]
    Invalid { line: u32, text: String, message: String },
    /// The simulator does not know this instruction, directive or combination of modifiers.
    #[error("not simulated: {what} (PTX line {line})\n  | {text}")]
    NotSimulated { what: String, line: u32, text: String },
    /// No entry of that name.
    #[error("module has no kernel `{name}`; it has: {}", available.join(", "))]
    UnknownKernel { name: String, available: Vec<String> },
    /// The parameter block does not have the size the kernel declares.
    #[error("kernel `{kernel}` takes {expected} bytes of parameters, {got} were given")]
    Params { kernel: String, expected: usize, got: usize },
    /// Grid, block, cluster or shared-memory sizes that no GPU would accept.
    #[error("cannot launch `{kernel}`: {message}")]
    Launch { kernel: String, message: String },
    /// A host access to simulated memory that no single allocation covers.
    #[error("host access to {len} bytes at {addr:#x}: {message}")]
    HostAccess { addr: u64, len: usize, message: String },
}
