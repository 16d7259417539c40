//! The tensor type, and what can be asked of it without touching its bytes.

use super::layout::{Units, is_contiguous};
use super::storage::Storage;
use super::{Hold, Mode, TensorError};
use std::ops::Range;
use std::sync::Arc;
use zellige_ir::DType;

/// A strided view of host memory with a run-time element type. Cloning makes another view of the same memory.
#[derive(Clone, Debug)]
pub struct DynTensor {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// In elements.
    pub(super) strides: Vec<usize>,
    /// In elements, from the start of the storage.
    pub(super) offset: usize,
    pub(super) storage: Arc<Storage>,
}

impl DynTensor {
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Distance between neighbours along each axis, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// First element of the view, in elements from the start of its storage.
    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Bytes that the elements take when laid out without gaps.
    pub fn byte_len(&self) -> usize {
        self.dtype.bytes_for(self.len())
    }

    /// True if the elements lie one after another in row-major order.
    pub fn is_contiguous(&self) -> bool {
        is_contiguous(&self.shape, &self.strides)
    }

    /// Identifies the storage; equal for views that share it.
    pub fn storage_id(&self) -> usize {
        Arc::as_ptr(&self.storage).addr()
    }

    /// Addresses from the first to past the last byte of the view, gaps included.
    pub fn byte_range(&self) -> Range<usize> {
        let (start, end) = self.units().span();
        let base = self.storage.ptr().addr().get();
        base + start..base + end
    }

    /// True if the byte ranges of the two views intersect. Views whose elements interleave without touching (two
    /// columns of a matrix) count as overlapping.
    pub fn may_overlap(&self, other: &DynTensor) -> bool {
        let (a, b) = (self.byte_range(), other.byte_range());
        a.start.max(b.start) < a.end.min(b.end)
    }

    /// Address of the first element.
    ///
    /// To go through it, hold the storage ([`DynTensor::hold`]) for as long, in [`Mode::Write`] if anything is
    /// written, and stay within [`DynTensor::byte_range`].
    pub fn as_ptr(&self) -> *mut u8 {
        let (start, _) = self.units().span();
        self.storage.ptr().as_ptr().wrapping_add(start)
    }

    /// Claims the storage, as every method that touches bytes does.
    pub fn hold(&self, mode: Mode) -> Result<Hold, TensorError> {
        Hold::new(&self.storage, mode)
    }

    pub(super) fn units(&self) -> Units {
        Units::new(self.dtype, &self.shape, &self.strides, self.offset)
    }

    /// Fails unless the element type is `dtype`.
    pub fn expect_dtype(&self, dtype: DType) -> Result<(), TensorError> {
        if self.dtype == dtype { Ok(()) } else { Err(TensorError::DTypeMismatch { expected: dtype, got: self.dtype }) }
    }

    /// Fails unless the elements lie one after another; `what` names the operation that needs it.
    pub(super) fn expect_contiguous(&self, what: &'static str) -> Result<(), TensorError> {
        if self.is_contiguous() {
            return Ok(());
        }
        Err(TensorError::NotContiguous { what, shape: self.shape.clone(), strides: self.strides.clone() })
    }
}
