//! Memory of one buffer: bytes, which elements were written, and who touched them.

use super::race::Shadow;
use crate::DType;
use crate::numerics::Const;

#[derive(Debug)]
pub(super) struct Storage {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<usize>,
    pub bytes: Vec<u8>,
    /// By element position in memory.
    pub init: Vec<bool>,
    pub shadow: Vec<Shadow>,
}

impl Storage {
    /// Uninitialised contiguous memory.
    pub fn uninit(dtype: DType, shape: Vec<usize>) -> Storage {
        let n = shape.iter().product();
        let strides = contiguous(&shape);
        Storage {
            dtype,
            shape,
            strides,
            bytes: vec![0; dtype.bytes_for(n)],
            init: vec![false; n],
            shadow: vec![Shadow::default(); n],
        }
    }

    /// Position of an element, `None` outside the buffer.
    pub fn slot(&self, indices: &[i64]) -> Option<usize> {
        let mut slot = 0;
        for ((&i, &n), &stride) in indices.iter().zip(&self.shape).zip(&self.strides) {
            let i = usize::try_from(i).ok().filter(|&i| i < n)?;
            slot += i * stride;
        }
        Some(slot)
    }

    pub fn get(&self, slot: usize) -> Const {
        Const::from_bits(self.dtype, read_bits(self.dtype, &self.bytes, slot))
    }

    pub fn set(&mut self, slot: usize, value: Const) {
        debug_assert_eq!(value.dtype(), self.dtype);
        write_bits(self.dtype, &mut self.bytes, slot, value.bits());
        self.init[slot] = true;
    }
}

/// Row-major strides in elements.
pub(super) fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// Bits of element `slot`, zero-extended.
pub(super) fn read_bits(dtype: DType, bytes: &[u8], slot: usize) -> u64 {
    if dtype.bits() == 4 {
        return u64::from(bytes[slot / 2] >> (4 * (slot % 2)) & 0xf);
    }
    let size = dtype.bits() / 8;
    let mut le = [0; 8];
    le[..size].copy_from_slice(&bytes[slot * size..][..size]);
    u64::from_le_bytes(le)
}

/// Stores the low bits as element `slot`.
pub(super) fn write_bits(dtype: DType, bytes: &mut [u8], slot: usize, bits: u64) {
    if dtype.bits() == 4 {
        let (byte, shift) = (&mut bytes[slot / 2], 4 * (slot % 2));
        *byte = *byte & !(0xf << shift) | ((bits as u8 & 0xf) << shift);
        return;
    }
    let size = dtype.bits() / 8;
    bytes[slot * size..][..size].copy_from_slice(&bits.to_le_bytes()[..size]);
}
