//! What can be wrong with a tensor file.

use crate::tensor::TensorError;
use std::io;
use std::path::{Path, PathBuf};
use zellige_ir::DType;

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct FileError {
    pub path: PathBuf,
    #[source]
    pub cause: FileCause,
}

impl FileError {
    pub(super) fn at(path: &Path) -> impl Fn(FileCause) -> FileError {
        move |cause| FileError { path: path.to_owned(), cause }
    }
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileCause {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a {0} file")]
    Format(&'static str),
    #[error("file ends after {got} bytes, but its header asks for {expected}")]
    Truncated { expected: u64, got: u64 },
    #[error("{extra} bytes left over after the last tensor")]
    TrailingBytes { extra: u64 },
    #[error("malformed header: {0}")]
    Header(String),
    #[error("tensor `{name}`: element type {dtype} is not supported")]
    UnsupportedType { name: String, dtype: String },
    #[error("element type `{0}` is not supported")]
    UnsupportedDescr(String),
    #[error("npy has no element type for {0}; save as safetensors")]
    NotInNpy(DType),
    #[error("tensor `{name}`: {source}")]
    Tensor { name: String, source: TensorError },
    #[error("{0}")]
    Npy(TensorError),
    #[error("no tensor `{name}`; the file has {available}")]
    NoSuchTensor { name: String, available: String },
}
