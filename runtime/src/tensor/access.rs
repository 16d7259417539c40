//! Reading and writing the elements.

use super::bulk;
use super::create::Encoder;
use super::storage::{Hold, Mode};
use super::{DynTensor, TensorError};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use zellige_ir::numerics::{Const, cast};
use zellige_ir::{DType, Element};

/// The bytes of a view from its first to its last element, gaps included, held for reading.
#[derive(Debug)]
pub struct ReadGuard<'a> {
    hold: Hold,
    span: (usize, usize),
    tensor: PhantomData<&'a DynTensor>,
}

impl Deref for ReadGuard<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.hold.bytes(self.span.0, self.span.1)
    }
}

/// The bytes of a view from its first to its last element, gaps included, held for writing.
#[derive(Debug)]
pub struct WriteGuard<'a> {
    hold: Hold,
    span: (usize, usize),
    tensor: PhantomData<&'a mut DynTensor>,
}

impl Deref for WriteGuard<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.hold.bytes(self.span.0, self.span.1)
    }
}

impl DerefMut for WriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.hold.bytes_mut(self.span.0, self.span.1)
    }
}

/// The elements of a contiguous tensor as a slice, held for reading.
#[derive(Debug)]
pub struct Slice<'a, H> {
    guard: ReadGuard<'a>,
    element: PhantomData<H>,
}

impl<H: bytemuck::Pod> Deref for Slice<'_, H> {
    type Target = [H];
    fn deref(&self) -> &[H] {
        bytemuck::cast_slice(&self.guard)
    }
}

/// The elements of a contiguous tensor as a slice, held for writing.
#[derive(Debug)]
pub struct SliceMut<'a, H> {
    guard: WriteGuard<'a>,
    element: PhantomData<H>,
}

impl<H: bytemuck::Pod> Deref for SliceMut<'_, H> {
    type Target = [H];
    fn deref(&self) -> &[H] {
        bytemuck::cast_slice(&self.guard)
    }
}

impl<H: bytemuck::Pod> DerefMut for SliceMut<'_, H> {
    fn deref_mut(&mut self) -> &mut [H] {
        bytemuck::cast_slice_mut(&mut self.guard)
    }
}

/// Bit pattern of the element at `i`, counted in elements from the start of `bytes`.
fn decode(dtype: DType, bytes: &[u8], i: usize) -> u64 {
    fn array<const N: usize>(bytes: &[u8], i: usize) -> [u8; N] {
        std::array::from_fn(|k| bytes[N * i + k])
    }
    match dtype.bits() {
        4 => u64::from((bytes[i / 2] >> (4 * (i % 2))) & 0xf),
        8 => bytes[i].into(),
        16 => u16::from_ne_bytes(array(bytes, i)).into(),
        32 => u32::from_ne_bytes(array(bytes, i)).into(),
        _ => u64::from_ne_bytes(array(bytes, i)),
    }
}

impl DynTensor {
    /// The bytes of the view, for reading.
    pub fn read(&self) -> Result<ReadGuard<'_>, TensorError> {
        Ok(ReadGuard { hold: self.hold(Mode::Read)?, span: self.units().span(), tensor: PhantomData })
    }

    /// The bytes of the view, for writing.
    pub fn write(&mut self) -> Result<WriteGuard<'_>, TensorError> {
        Ok(WriteGuard { hold: self.hold(Mode::Write)?, span: self.units().span(), tensor: PhantomData })
    }

    /// The elements as a slice, without a copy. The tensor must be contiguous and of type `E`.
    pub fn as_slice<E: Element>(&self) -> Result<Slice<'_, E::Host>, TensorError> {
        self.expect_dtype(E::DTYPE)?;
        self.expect_contiguous("a slice")?;
        Ok(Slice { guard: self.read()?, element: PhantomData })
    }

    /// The elements as a mutable slice. The tensor must be contiguous and of type `E`; write only 0 and 1 to `bool`.
    pub fn as_mut_slice<E: Element>(&mut self) -> Result<SliceMut<'_, E::Host>, TensorError> {
        self.expect_dtype(E::DTYPE)?;
        self.expect_contiguous("a slice")?;
        Ok(SliceMut { guard: self.write()?, element: PhantomData })
    }

    /// Calls `f` with the bit pattern of every element in row-major order.
    pub(super) fn for_each_code(&self, mut f: impl FnMut(u64)) -> Result<(), TensorError> {
        let bytes = self.read()?;
        self.units().for_each_run(|at, len| {
            let run = &bytes[at..at + len];
            for i in 0..len * 8 / self.dtype.bits() {
                f(decode(self.dtype, run, i));
            }
        });
        Ok(())
    }

    /// The elements in row-major order.
    pub fn to_vec<E: Element>(&self) -> Result<Vec<E>, TensorError> {
        self.expect_dtype(E::DTYPE)?;
        let mut out = Vec::with_capacity(self.len());
        self.for_each_code(|bits| out.push(E::from_bits(bits)))?;
        Ok(out)
    }

    /// The elements in row-major order, as `f64` (64-bit integers beyond 2^53 round).
    pub fn to_f64_vec(&self) -> Result<Vec<f64>, TensorError> {
        self.to_numbers()
    }

    /// The elements in row-major order, as `f32`: exact for floats of up to 32 bits, rounded else.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, TensorError> {
        self.to_numbers()
    }

    fn to_numbers<N: bulk::Number>(&self) -> Result<Vec<N>, TensorError> {
        if self.is_contiguous() {
            Ok(bulk::decode(self.dtype, &self.read()?))
        } else {
            Ok(bulk::decode(self.dtype, &self.to_bytes()?))
        }
    }

    /// The elements' bytes in row-major order, without gaps.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TensorError> {
        let mut out = Vec::with_capacity(self.byte_len());
        let bytes = self.read()?;
        self.units().for_each_run(|at, len| out.extend_from_slice(&bytes[at..at + len]));
        Ok(out)
    }

    /// A view of the same memory if it is contiguous, else a contiguous copy.
    pub fn contiguous(&self) -> Result<DynTensor, TensorError> {
        if self.is_contiguous() { Ok(self.clone()) } else { self.to_owned_tensor() }
    }

    /// A contiguous copy in fresh storage.
    pub fn to_owned_tensor(&self) -> Result<DynTensor, TensorError> {
        let bytes = self.read()?;
        DynTensor::filled(self.dtype, &self.shape, |dst| {
            let mut next = 0;
            self.units().for_each_run(|at, len| {
                dst[next..next + len].copy_from_slice(&bytes[at..at + len]);
                next += len;
            });
            Ok(())
        })
    }

    /// A contiguous copy converted to `to`, element by element as [`cast`] does.
    pub fn cast(&self, to: DType) -> Result<DynTensor, TensorError> {
        DynTensor::filled(to, &self.shape, |dst| {
            let mut encoder = Encoder::new(to, dst);
            self.for_each_code(|bits| encoder.push(cast(Const::from_bits(self.dtype, bits), to).bits()))
        })
    }

    /// Overwrites the elements with those of `src`, which has the same type and shape. The two may not share storage.
    pub fn copy_from(&mut self, src: &DynTensor) -> Result<(), TensorError> {
        src.expect_dtype(self.dtype)?;
        if src.shape != self.shape {
            return Err(TensorError::ShapeMismatch { expected: self.shape.clone(), got: src.shape.clone() });
        }
        let packed = src.contiguous()?;
        let units = self.units();
        let packed = packed.read()?;
        let mut dst = self.write()?;
        let mut next = 0;
        units.for_each_run(|at, len| {
            dst[at..at + len].copy_from_slice(&packed[next..next + len]);
            next += len;
        });
        Ok(())
    }

    /// Position of `index` in elements from the first element of the view.
    fn position(&self, index: &[usize]) -> Result<usize, TensorError> {
        if index.len() != self.rank() || index.iter().zip(&self.shape).any(|(i, d)| i >= d) {
            return Err(TensorError::Index { index: index.to_vec(), shape: self.shape.clone() });
        }
        Ok(index.iter().zip(&self.strides).map(|(i, s)| i * s).sum())
    }

    /// The element at `index`.
    pub fn get(&self, index: &[usize]) -> Result<Const, TensorError> {
        let at = self.position(index)?;
        Ok(Const::from_bits(self.dtype, decode(self.dtype, &self.read()?, at)))
    }

    /// Overwrites the element at `index` with `value`, which has the tensor's type.
    pub fn set(&mut self, index: &[usize], value: Const) -> Result<(), TensorError> {
        self.expect_dtype(value.dtype())?;
        let at = self.position(index)?;
        let bits = self.dtype.bits();
        let mut bytes = self.write()?;
        if bits < 8 {
            let shift = 4 * (at % 2);
            let byte = &mut bytes[at / 2];
            *byte = (*byte & !(0xf << shift)) | ((value.bits() as u8) << shift);
        } else {
            let size = bits / 8;
            Encoder::new(value.dtype(), &mut bytes[at * size..(at + 1) * size]).push(value.bits());
        }
        Ok(())
    }
}
