//! New tensors. All are row-major, contiguous, and own fresh storage.

use super::bulk;
use super::layout::{row_major, size};
use super::storage::{Mode, Storage};
use super::{DynTensor, Hold, TensorError};
use rayon::prelude::*;
use std::sync::Arc;
use zellige_ir::numerics::Const;
use zellige_ir::{DType, Element};

/// Writes the bit patterns of elements, one after another, into memory.
pub(super) struct Encoder<'a> {
    dtype: DType,
    bytes: &'a mut [u8],
    next: usize,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(dtype: DType, bytes: &'a mut [u8]) -> Self {
        Encoder { dtype, bytes, next: 0 }
    }

    pub(super) fn push(&mut self, bits: u64) {
        let i = self.next;
        self.next += 1;
        match self.dtype.bits() {
            4 => self.bytes[i / 2] |= (bits as u8 & 0xf) << (4 * (i % 2)),
            8 => self.bytes[i] = bits as u8,
            16 => self.bytes[2 * i..2 * i + 2].copy_from_slice(&(bits as u16).to_ne_bytes()),
            32 => self.bytes[4 * i..4 * i + 4].copy_from_slice(&(bits as u32).to_ne_bytes()),
            _ => self.bytes[8 * i..8 * i + 8].copy_from_slice(&bits.to_ne_bytes()),
        }
    }
}

impl DynTensor {
    /// Elements that [`DynTensor::from_f64_chunks`] asks for at a time.
    pub const CHUNK: usize = bulk::CHUNK;

    /// All bits zero: 0, `false`, or 2^-127 for `e8m0`.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<DynTensor, TensorError> {
        let (_, bytes) = size(dtype, shape)?;
        let storage = Arc::new(Storage::zeroed(bytes)?);
        Ok(DynTensor { dtype, shape: shape.to_vec(), strides: row_major(shape), offset: 0, storage })
    }

    /// Runs `fill` on the zeroed bytes of a new tensor.
    pub(crate) fn filled<E: From<TensorError>>(
        dtype: DType,
        shape: &[usize],
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<DynTensor, E> {
        let tensor = DynTensor::zeros(dtype, shape)?;
        let mut hold = Hold::new(&tensor.storage, Mode::Write)?;
        let len = tensor.storage.len();
        fill(hold.bytes_mut(0, len))?;
        Ok(tensor)
    }

    /// A tensor of the bit patterns that `bits` yields, in row-major order.
    fn from_codes(dtype: DType, shape: &[usize], bits: impl Iterator<Item = u64>) -> Result<DynTensor, TensorError> {
        DynTensor::filled(dtype, shape, |bytes| {
            let mut encoder = Encoder::new(dtype, bytes);
            bits.for_each(|b| encoder.push(b));
            Ok(())
        })
    }

    /// Every element equal to `value`.
    pub fn full(shape: &[usize], value: Const) -> Result<DynTensor, TensorError> {
        DynTensor::filled(value.dtype(), shape, |bytes| {
            bulk::fill(value.dtype(), value.bits(), bytes);
            Ok(())
        })
    }

    /// The elements of `values` in row-major order.
    pub fn from_slice<E: Element>(shape: &[usize], values: &[E]) -> Result<DynTensor, TensorError> {
        expect_count(E::DTYPE, shape, values.len())?;
        DynTensor::from_codes(E::DTYPE, shape, values.iter().map(|v| v.to_bits()))
    }

    /// The elements of `values` in row-major order, converted to `dtype` as [`zellige_ir::numerics::cast`] does.
    pub fn from_f64(dtype: DType, shape: &[usize], values: &[f64]) -> Result<DynTensor, TensorError> {
        expect_count(dtype, shape, values.len())?;
        DynTensor::from_f64_chunks(dtype, shape, |first, out| out.copy_from_slice(&values[first..first + out.len()]))
    }

    /// A tensor whose elements `fill` writes, converted as [`DynTensor::from_f64`] does: `fill(first, values)` is
    /// called with runs of elements in row-major order that start at multiples of [`DynTensor::CHUNK`], in any order
    /// and on several threads.
    pub fn from_f64_chunks(
        dtype: DType,
        shape: &[usize],
        fill: impl Fn(usize, &mut [f64]) + Sync,
    ) -> Result<DynTensor, TensorError> {
        let (count, _) = size(dtype, shape)?;
        DynTensor::filled(dtype, shape, |bytes| {
            let chunk = |(i, bytes): (usize, &mut [u8])| {
                let first = i * bulk::CHUNK;
                let mut values = vec![0.0; bulk::CHUNK.min(count - first)];
                fill(first, &mut values);
                bulk::encode(dtype, &values, bytes);
            };
            bytes.par_chunks_mut(bulk::CHUNK * dtype.bits() / 8).enumerate().for_each(chunk);
            Ok(())
        })
    }

    /// A copy of `bytes`, the elements in row-major order as they lie in memory (little-endian hosts: as in files).
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<DynTensor, TensorError> {
        let (_, expected) = size(dtype, shape)?;
        if bytes.len() != expected {
            return Err(TensorError::ByteCount { dtype, shape: shape.to_vec(), expected, got: bytes.len() });
        }
        check_bools(dtype, bytes)?;
        DynTensor::filled(dtype, shape, |dst| {
            dst.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// A copy of `values`, the elements in row-major order in their host form ([`Element::Host`]).
    pub fn from_host<E: Element>(shape: &[usize], values: &[E::Host]) -> Result<DynTensor, TensorError> {
        DynTensor::from_bytes(E::DTYPE, shape, bytemuck::cast_slice(values))
    }
}

/// Fails unless `shape` has `got` elements.
fn expect_count(dtype: DType, shape: &[usize], got: usize) -> Result<(), TensorError> {
    let (expected, _) = size(dtype, shape)?;
    if got == expected {
        return Ok(());
    }
    Err(TensorError::ElementCount { shape: shape.to_vec(), expected, got })
}

/// Fails if bytes from outside are not valid `bool`s. Every pattern of the other types is valid.
pub(crate) fn check_bools(dtype: DType, bytes: &[u8]) -> Result<(), TensorError> {
    if dtype != DType::Bool {
        return Ok(());
    }
    match bytes.iter().position(|&b| b > 1) {
        None => Ok(()),
        Some(at) => Err(TensorError::InvalidBool { at, value: bytes[at] }),
    }
}
