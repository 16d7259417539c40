//! Arguments of an interpreted launch.

use super::memory::{contiguous, read_bits, write_bits};
use crate::DType;
use crate::numerics::{Const, cast};

/// An argument, in the order of [`crate::Func::params`].
#[derive(Clone, PartialEq, Debug)]
pub enum Arg {
    Tensor(TensorArg),
    Scalar(Const),
}

impl Arg {
    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&TensorArg> {
        match self {
            Arg::Tensor(t) => Some(t),
            Arg::Scalar(_) => None,
        }
    }
}

impl From<TensorArg> for Arg {
    fn from(t: TensorArg) -> Arg {
        Arg::Tensor(t)
    }
}

impl From<Const> for Arg {
    fn from(c: Const) -> Arg {
        Arg::Scalar(c)
    }
}

/// A tensor in memory. A run takes its bytes and leaves the result in them.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorArg {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// In elements, one for each axis.
    pub strides: Vec<usize>,
    /// Little-endian elements; two `f4e2m1` to a byte, the lower nibble first.
    pub bytes: Vec<u8>,
    /// Which elements hold a value, by position in memory; `None` if all do. After a run it says which do then.
    pub init: Option<Vec<bool>>,
}

impl TensorArg {
    /// A contiguous tensor of given bytes.
    ///
    /// # Panics
    /// If `bytes` has not the size that `shape` needs.
    pub fn new(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> TensorArg {
        assert_eq!(bytes.len(), dtype.bytes_for(shape.iter().product()), "bytes of a {dtype} tensor of {shape:?}");
        TensorArg { dtype, shape: shape.to_vec(), strides: contiguous(shape), bytes, init: None }
    }

    /// A contiguous tensor whose elements are all zero bits.
    pub fn zeros(dtype: DType, shape: &[usize]) -> TensorArg {
        TensorArg::new(dtype, shape, vec![0; dtype.bytes_for(shape.iter().product())])
    }

    /// A contiguous tensor that must be written before it is read.
    pub fn uninit(dtype: DType, shape: &[usize]) -> TensorArg {
        let init = Some(vec![false; shape.iter().product()]);
        TensorArg { init, ..TensorArg::zeros(dtype, shape) }
    }

    /// A contiguous tensor of the given values, each converted to `dtype` as a cast from f64 does.
    ///
    /// # Panics
    /// If there are not as many values as `shape` has elements.
    pub fn from_f64(dtype: DType, shape: &[usize], values: &[f64]) -> TensorArg {
        let mut t = TensorArg::zeros(dtype, shape);
        assert_eq!(values.len(), t.len(), "values of a tensor of {shape:?}");
        for (slot, &v) in values.iter().enumerate() {
            write_bits(dtype, &mut t.bytes, slot, cast(Const::from_f64(DType::F64, v), dtype).bits());
        }
        t
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at `indices`.
    ///
    /// # Panics
    /// Outside the tensor.
    pub fn get(&self, indices: &[usize]) -> Const {
        assert_eq!(indices.len(), self.shape.len(), "indices of a tensor of {:?}", self.shape);
        assert!(indices.iter().zip(&self.shape).all(|(i, n)| i < n), "{indices:?} of a tensor of {:?}", self.shape);
        let slot = indices.iter().zip(&self.strides).map(|(i, s)| i * s).sum();
        Const::from_bits(self.dtype, read_bits(self.dtype, &self.bytes, slot))
    }

    /// All elements in row-major order.
    pub fn elements(&self) -> Vec<Const> {
        super::points::Points::new(&self.shape).map(|p| self.get(&p)).collect()
    }

    /// All elements in row-major order, as a cast to f64 gives them.
    pub fn to_f64(&self) -> Vec<f64> {
        self.elements().into_iter().map(Const::as_f64).collect()
    }

    /// Number of elements from the first to the last in memory.
    pub(super) fn span(&self) -> usize {
        if self.is_empty() {
            0
        } else {
            1 + self.shape.iter().zip(&self.strides).map(|(n, s)| (n - 1) * s).sum::<usize>()
        }
    }
}
