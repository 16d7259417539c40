//! What can go wrong between tile IR and PTX.

use super::simt::VerifyError;
use zellige_ir::layout::LayoutError;
use zellige_ir::{DType, Span};

/// Why a kernel has no PTX. Each names the place, the values and the way out.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum CodegenError {
    #[error("{span}: a block of {threads} threads: use a multiple of 32, at most 1024")]
    Threads { span: Span, threads: usize },
    #[error("{span}: `{op}` is not defined on {dtype}")]
    Undefined { span: Span, op: String, dtype: DType },
    #[error("{span}: malformed `{op}`: {what}")]
    Malformed { span: Span, op: &'static str, what: String },
    #[error(
        "{span}: the kernel needs {need} bytes of shared memory, {arch} has {have}: use smaller tiles or fewer stages"
    )]
    SharedMemory { span: Span, need: u32, have: u32, arch: &'static str },
    #[error("{span}: {what}: {error}")]
    Layout { span: Span, what: String, error: Box<LayoutError> },
    #[error("{span}: {what}")]
    Unsupported { span: Span, what: String },
    /// A defect of the compiler.
    #[error("{0}")]
    Internal(#[from] VerifyError),
}
