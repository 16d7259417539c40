//! What can be wrong with a tensor or a request to one.

use zellige_ir::DType;

/// An impossible request to a tensor. Shapes and strides are in elements.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    #[error("shape {shape:?} has {expected} elements, but {got} were given")]
    ElementCount { shape: Vec<usize>, expected: usize, got: usize },
    #[error("{dtype} tensor of shape {shape:?} takes {expected} bytes, but {got} were given")]
    ByteCount { dtype: DType, shape: Vec<usize>, expected: usize, got: usize },
    #[error("expected a tensor of {expected}, got one of {got}")]
    DTypeMismatch { expected: DType, got: DType },
    #[error("expected a tensor of rank {expected}, got shape {shape:?}")]
    RankMismatch { expected: usize, shape: Vec<usize> },
    #[error("expected shape {expected:?}, got {got:?}")]
    ShapeMismatch { expected: Vec<usize>, got: Vec<usize> },
    #[error("`index` has no memory representation; use i32 or i64")]
    NoMemoryForm,
    #[error("{dtype} tensor of shape {shape:?} is larger than the address space")]
    TooLarge { dtype: DType, shape: Vec<usize> },
    #[error("cannot allocate {bytes} bytes")]
    OutOfMemory { bytes: usize },
    #[error("axis {axis} is out of range for shape {shape:?}")]
    Axis { axis: usize, shape: Vec<usize> },
    #[error("range {start}..{end} is out of bounds for axis {axis} of shape {shape:?}")]
    Range { axis: usize, start: usize, end: usize, shape: Vec<usize> },
    #[error("index {index:?} is out of bounds for shape {shape:?}")]
    Index { index: Vec<usize>, shape: Vec<usize> },
    #[error("{order:?} is not a permutation of the axes of shape {shape:?}")]
    Permutation { order: Vec<usize>, shape: Vec<usize> },
    #[error("{what} needs a contiguous tensor, but shape {shape:?} has strides {strides:?}; call `contiguous()` first")]
    NotContiguous { what: &'static str, shape: Vec<usize>, strides: Vec<usize> },
    #[error(
        "{what} would split a byte of the packed {dtype} tensor of shape {shape:?}; its last axis must stay innermost and even"
    )]
    Packed { what: &'static str, dtype: DType, shape: Vec<usize> },
    #[error(
        "cannot reinterpret {from} of shape {shape:?} as {to}: element widths differ or not every pattern is valid"
    )]
    Reinterpret { from: DType, to: DType, shape: Vec<usize> },
    #[error("byte {at} of a bool tensor is {value:#04x}, not 0 or 1")]
    InvalidBool { at: usize, value: u8 },
    #[error("the tensor's storage is being {held}; {wanted} it has to wait until that view is dropped")]
    Borrowed { wanted: &'static str, held: &'static str },
}
