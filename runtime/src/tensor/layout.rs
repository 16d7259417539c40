//! Shapes, strides and the order of elements in memory.

use super::TensorError;
use zellige_ir::DType;

/// Row-major strides, in elements.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        // Saturating: a shape with a zero extent may have any others.
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

/// Number of elements and bytes of a new tensor, or why there can be none.
pub(crate) fn size(dtype: DType, shape: &[usize]) -> Result<(usize, usize), TensorError> {
    if dtype == DType::Index {
        return Err(TensorError::NoMemoryForm);
    }
    let too_large = || TensorError::TooLarge { dtype, shape: shape.to_vec() };
    let empty = shape.contains(&0);
    let count = if empty { Some(0) } else { shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) };
    let count = count.ok_or_else(too_large)?;
    let bits = count.checked_mul(dtype.bits()).filter(|&bits| bits <= isize::MAX as usize).ok_or_else(too_large)?;
    if dtype.bits() < 8 && !shape.last().is_some_and(|d| d.is_multiple_of(2)) {
        return Err(TensorError::Packed { what: "this shape", dtype, shape: shape.to_vec() });
    }
    Ok((count, bits / 8))
}

/// True if elements lie one after another in row-major order.
pub(super) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    for (&d, &s) in shape.iter().zip(strides).rev() {
        if d != 1 && s != expected {
            return false;
        }
        expected *= d;
    }
    true
}

/// A view in whole memory units: elements, or for packed types pairs of them (one byte).
pub(super) struct Units {
    pub shape: Vec<usize>,
    /// In units.
    pub strides: Vec<usize>,
    /// In units, from the start of the storage.
    pub offset: usize,
    /// Bytes of a unit.
    pub size: usize,
}

impl Units {
    pub(super) fn new(dtype: DType, shape: &[usize], strides: &[usize], offset: usize) -> Units {
        let (mut shape, mut strides, mut offset) = (shape.to_vec(), strides.to_vec(), offset);
        if dtype.bits() < 8 {
            let last = shape.len() - 1;
            shape[last] /= 2;
            strides[..last].iter_mut().for_each(|s| *s /= 2);
            offset /= 2;
        }
        Units { shape, strides, offset, size: dtype.bits().div_ceil(8) }
    }

    /// Byte range from the first to the last unit, from the start of the storage.
    pub(super) fn span(&self) -> (usize, usize) {
        // A view of nothing may start beyond the storage.
        if self.shape.contains(&0) {
            return (0, 0);
        }
        let start = self.offset * self.size;
        let last: usize = self.shape.iter().zip(&self.strides).map(|(d, s)| (d - 1) * s).sum();
        (start, start + (last + 1) * self.size)
    }

    /// Calls `f(start, len)` with byte ranges, relative to [`Units::span`], that cover the view in row-major order;
    /// each is a run of whole units that lie one after another.
    pub(super) fn for_each_run(&self, mut f: impl FnMut(usize, usize)) {
        if self.shape.contains(&0) {
            return;
        }
        // The trailing axes that form one contiguous block.
        let (mut outer, mut run) = (self.shape.len(), 1);
        while outer > 0 && (self.shape[outer - 1] == 1 || self.strides[outer - 1] == run) {
            run *= self.shape[outer - 1];
            outer -= 1;
        }
        let (shape, strides) = (&self.shape[..outer], &self.strides[..outer]);
        let mut index = vec![0; outer];
        let mut at = 0;
        loop {
            f(at * self.size, run * self.size);
            let mut axis = outer;
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                at += strides[axis];
                if index[axis] < shape[axis] {
                    break;
                }
                at -= index[axis] * strides[axis];
                index[axis] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(shape: &[usize], strides: &[usize]) -> Vec<(usize, usize)> {
        let mut out = Vec::new();
        Units::new(DType::U8, shape, strides, 0).for_each_run(|at, len| out.push((at, len)));
        out
    }

    #[test]
    fn runs_are_as_long_as_the_strides_allow() {
        assert_eq!(runs(&[2, 3], &[3, 1]), [(0, 6)]);
        assert_eq!(runs(&[2, 3], &[4, 1]), [(0, 3), (4, 3)]);
        assert_eq!(runs(&[3, 2], &[1, 3]), [(0, 1), (3, 1), (1, 1), (4, 1), (2, 1), (5, 1)]);
        assert_eq!(runs(&[2, 1, 3], &[8, 99, 1]), [(0, 3), (8, 3)]);
        assert_eq!(runs(&[], &[]), [(0, 1)]);
        assert_eq!(runs(&[0, 3], &[3, 1]), []);
    }

    #[test]
    fn sizes_and_their_limits() {
        assert_eq!(size(DType::F32, &[2, 3]), Ok((6, 24)));
        assert_eq!(size(DType::F4E2M1, &[3, 4]), Ok((12, 6)));
        assert_eq!(size(DType::F64, &[0, usize::MAX, 7]), Ok((0, 0)));
        assert!(matches!(size(DType::F4E2M1, &[4, 3]), Err(TensorError::Packed { .. })));
        assert!(matches!(size(DType::F4E2M1, &[]), Err(TensorError::Packed { .. })));
        assert!(matches!(size(DType::U8, &[usize::MAX]), Err(TensorError::TooLarge { .. })));
        assert_eq!(size(DType::Index, &[1]), Err(TensorError::NoMemoryForm));
    }
}
