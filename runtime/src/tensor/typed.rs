//! Tensors whose element type and rank the compiler knows.

use super::{DynTensor, Slice, SliceMut, TensorError};
use std::marker::PhantomData;
use std::ops::Range;
use zellige_ir::Element;
use zellige_ir::numerics::Const;

/// A [`DynTensor`] known to hold `E` in `R` dimensions: what kernels are launched on.
#[derive(Clone, Debug)]
pub struct DeviceTensor<E: Element, const R: usize> {
    tensor: DynTensor,
    element: PhantomData<E>,
}

impl<E: Element, const R: usize> TryFrom<DynTensor> for DeviceTensor<E, R> {
    type Error = TensorError;

    fn try_from(tensor: DynTensor) -> Result<Self, TensorError> {
        tensor.expect_dtype(E::DTYPE)?;
        if tensor.rank() != R {
            return Err(TensorError::RankMismatch { expected: R, shape: tensor.shape().to_vec() });
        }
        Ok(DeviceTensor::wrap(tensor))
    }
}

impl<E: Element, const R: usize> From<DeviceTensor<E, R>> for DynTensor {
    fn from(tensor: DeviceTensor<E, R>) -> DynTensor {
        tensor.tensor
    }
}

/// Element-typed and rank-typed counterparts of the methods of [`DynTensor`].
impl<E: Element, const R: usize> DeviceTensor<E, R> {
    /// Wraps a tensor already known to have the right type and rank.
    fn wrap(tensor: DynTensor) -> Self {
        DeviceTensor { tensor, element: PhantomData }
    }

    pub fn zeros(shape: [usize; R]) -> Result<Self, TensorError> {
        DynTensor::zeros(E::DTYPE, &shape).map(Self::wrap)
    }

    pub fn full(shape: [usize; R], value: E) -> Result<Self, TensorError> {
        DynTensor::full(&shape, Const::from_bits(E::DTYPE, value.to_bits())).map(Self::wrap)
    }

    pub fn from_slice(shape: [usize; R], values: &[E]) -> Result<Self, TensorError> {
        DynTensor::from_slice(&shape, values).map(Self::wrap)
    }

    /// The values converted to `E` as [`zellige_ir::numerics::cast`] does.
    pub fn from_f64(shape: [usize; R], values: &[f64]) -> Result<Self, TensorError> {
        DynTensor::from_f64(E::DTYPE, &shape, values).map(Self::wrap)
    }

    pub fn shape(&self) -> [usize; R] {
        std::array::from_fn(|i| self.tensor.shape()[i])
    }

    /// In elements.
    pub fn strides(&self) -> [usize; R] {
        std::array::from_fn(|i| self.tensor.strides()[i])
    }

    pub fn len(&self) -> usize {
        self.tensor.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensor.is_empty()
    }

    /// The tensor without its static type.
    pub fn as_dyn(&self) -> &DynTensor {
        &self.tensor
    }

    pub fn to_vec(&self) -> Result<Vec<E>, TensorError> {
        self.tensor.to_vec()
    }

    pub fn as_slice(&self) -> Result<Slice<'_, E::Host>, TensorError> {
        self.tensor.as_slice::<E>()
    }

    pub fn as_mut_slice(&mut self) -> Result<SliceMut<'_, E::Host>, TensorError> {
        self.tensor.as_mut_slice::<E>()
    }

    pub fn copy_from(&mut self, src: &Self) -> Result<(), TensorError> {
        self.tensor.copy_from(&src.tensor)
    }

    pub fn slice(&self, axis: usize, range: Range<usize>) -> Result<Self, TensorError> {
        self.tensor.slice(axis, range).map(Self::wrap)
    }

    pub fn permute(&self, order: [usize; R]) -> Result<Self, TensorError> {
        self.tensor.permute(&order).map(Self::wrap)
    }

    pub fn transpose(&self, a: usize, b: usize) -> Result<Self, TensorError> {
        self.tensor.transpose(a, b).map(Self::wrap)
    }

    pub fn reshape<const S: usize>(&self, shape: [usize; S]) -> Result<DeviceTensor<E, S>, TensorError> {
        self.tensor.reshape(&shape).map(DeviceTensor::wrap)
    }

    pub fn contiguous(&self) -> Result<Self, TensorError> {
        self.tensor.contiguous().map(Self::wrap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zellige_ir::element::bf16;

    #[test]
    fn wrapping_checks_type_and_rank() -> Result<(), TensorError> {
        let t = DeviceTensor::<f32, 2>::from_slice([2, 2], &[1.0, 2.0, 3.0, 4.0])?;
        let d = DynTensor::from(t.clone());
        assert!(DeviceTensor::<f32, 2>::try_from(d.clone()).is_ok());
        assert!(matches!(DeviceTensor::<bf16, 2>::try_from(d.clone()), Err(TensorError::DTypeMismatch { .. })));
        assert!(matches!(DeviceTensor::<f32, 3>::try_from(d), Err(TensorError::RankMismatch { expected: 3, .. })));
        assert_eq!(t.transpose(0, 1)?.to_vec()?, [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(t.reshape([4])?.shape(), [4]);
        let mut m = DeviceTensor::<f32, 2>::full([2, 2], 7.0)?;
        m.as_mut_slice()?[3] = 0.0;
        assert_eq!(m.to_vec()?, [7.0, 7.0, 7.0, 0.0]);
        m.copy_from(&t)?;
        assert_eq!(m.to_vec()?, t.to_vec()?);
        Ok(())
    }
}
