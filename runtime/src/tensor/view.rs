//! Views: other shapes of the same memory. None of these touches a byte.

use super::layout::row_major;
use super::{DynTensor, TensorError};
use std::ops::Range;
use zellige_ir::DType;

impl DynTensor {
    fn check_axis(&self, axis: usize) -> Result<(), TensorError> {
        if axis < self.rank() { Ok(()) } else { Err(TensorError::Axis { axis, shape: self.shape.clone() }) }
    }

    fn is_packed(&self) -> bool {
        self.dtype.bits() < 8
    }

    fn packed_error(&self, what: &'static str) -> TensorError {
        TensorError::Packed { what, dtype: self.dtype, shape: self.shape.clone() }
    }

    /// The part of the tensor with `range` along `axis`.
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Result<DynTensor, TensorError> {
        self.check_axis(axis)?;
        let Range { start, end } = range;
        if start > end || end > self.shape[axis] {
            return Err(TensorError::Range { axis, start, end, shape: self.shape.clone() });
        }
        if self.is_packed() && axis + 1 == self.rank() && !(start.is_multiple_of(2) && end.is_multiple_of(2)) {
            return Err(self.packed_error("this slice"));
        }
        let mut view = self.clone();
        view.shape[axis] = end - start;
        // An empty view keeps its offset: past the end there is nothing to point at.
        if start < end {
            view.offset += start * self.strides[axis];
        }
        Ok(view)
    }

    /// The sub-tensor at position `i` of `axis`, of one rank less.
    pub fn select(&self, axis: usize, i: usize) -> Result<DynTensor, TensorError> {
        self.check_axis(axis)?;
        if self.is_packed() && axis + 1 == self.rank() {
            return Err(self.packed_error("selecting along the last axis"));
        }
        let end = i.saturating_add(1);
        let mut view = self.slice(axis, i..end)?;
        view.shape.remove(axis);
        view.strides.remove(axis);
        Ok(view)
    }

    /// Reorders the axes: axis `k` of the result is axis `order[k]` of this tensor.
    pub fn permute(&self, order: &[usize]) -> Result<DynTensor, TensorError> {
        let mut seen = vec![false; self.rank()];
        let fresh = order.iter().all(|&a| a < self.rank() && !std::mem::replace(&mut seen[a], true));
        if !fresh || order.len() != self.rank() {
            return Err(TensorError::Permutation { order: order.to_vec(), shape: self.shape.clone() });
        }
        if self.is_packed() && order.last() != Some(&(self.rank() - 1)) {
            return Err(self.packed_error("this permutation"));
        }
        let mut view = self.clone();
        view.shape = order.iter().map(|&a| self.shape[a]).collect();
        view.strides = order.iter().map(|&a| self.strides[a]).collect();
        Ok(view)
    }

    /// Swaps two axes.
    pub fn transpose(&self, a: usize, b: usize) -> Result<DynTensor, TensorError> {
        self.check_axis(a)?;
        self.check_axis(b)?;
        let mut order: Vec<_> = (0..self.rank()).collect();
        order.swap(a, b);
        self.permute(&order)
    }

    /// The same elements in row-major order under another shape. The tensor must be contiguous.
    pub fn reshape(&self, shape: &[usize]) -> Result<DynTensor, TensorError> {
        let (expected, _) = super::layout::size(self.dtype, shape)?;
        if expected != self.len() {
            return Err(TensorError::ElementCount { shape: shape.to_vec(), expected, got: self.len() });
        }
        self.expect_contiguous("reshape")?;
        Ok(DynTensor { shape: shape.to_vec(), strides: row_major(shape), ..self.clone() })
    }

    /// The same bits as another element type of equal width, or 8-bit elements as pairs of `f4e2m1` and back (the
    /// last axis doubles or halves; it must be innermost). Not to `bool`, whose bytes are 0 or 1 only.
    pub fn reinterpret(&self, to: DType) -> Result<DynTensor, TensorError> {
        let refuse = || TensorError::Reinterpret { from: self.dtype, to, shape: self.shape.clone() };
        if to == DType::Bool || to == DType::Index {
            return Err(refuse());
        }
        let mut view = DynTensor { dtype: to, ..self.clone() };
        match (self.dtype.bits(), to.bits()) {
            (a, b) if a == b => {}
            (8, 4) => {
                let last = self.rank().checked_sub(1).ok_or_else(refuse)?;
                if self.strides[last] != 1 && self.shape[last] > 1 {
                    return Err(refuse());
                }
                view.shape[last] *= 2;
                view.strides.iter_mut().for_each(|s| *s *= 2);
                view.strides[last] = 1;
                view.offset *= 2;
            }
            (4, 8) => {
                let units = self.units();
                (view.shape, view.strides, view.offset) = (units.shape, units.strides, units.offset);
            }
            _ => return Err(refuse()),
        }
        Ok(view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Mode, TensorError};
    use proptest::prelude::*;
    use zellige_ir::element::{bf16, e8m0, f4e2m1, f8e4m3};
    use zellige_ir::numerics::Const;

    fn iota(shape: &[usize]) -> DynTensor {
        let values: Vec<i32> = (0..shape.iter().product::<usize>() as i32).collect();
        DynTensor::from_slice(shape, &values).expect("a valid tensor")
    }

    #[test]
    fn views_show_the_right_elements() -> Result<(), TensorError> {
        let t = iota(&[2, 3, 4]);
        assert_eq!(t.slice(1, 1..3)?.to_vec::<i32>()?, [4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(t.select(2, 1)?.to_vec::<i32>()?, [1, 5, 9, 13, 17, 21]);
        assert_eq!(t.select(0, 1)?.transpose(0, 1)?.to_vec::<i32>()?, [12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23]);
        assert_eq!(t.reshape(&[6, 4])?.select(0, 5)?.to_vec::<i32>()?, [20, 21, 22, 23]);
        let p = t.permute(&[2, 0, 1])?;
        assert_eq!(p.shape(), [4, 2, 3]);
        assert_eq!(p.get(&[3, 1, 2])?, Const::i32(23));
        assert!(!p.is_contiguous());
        let c = p.contiguous()?;
        assert!(c.is_contiguous() && c.storage_id() != p.storage_id());
        assert_eq!(c.to_vec::<i32>()?, p.to_vec::<i32>()?);
        assert_eq!(&*c.as_slice::<i32>()?, &p.to_vec::<i32>()?[..]);
        Ok(())
    }

    #[test]
    fn wrong_requests_are_named() {
        let t = iota(&[2, 3]);
        assert!(matches!(t.slice(2, 0..1), Err(TensorError::Axis { axis: 2, .. })));
        assert!(matches!(t.slice(1, 2..4), Err(TensorError::Range { .. })));
        assert!(matches!(t.select(0, usize::MAX), Err(TensorError::Range { .. })));
        assert!(matches!(t.permute(&[0, 0]), Err(TensorError::Permutation { .. })));
        assert!(matches!(t.permute(&[0]), Err(TensorError::Permutation { .. })));
        assert!(matches!(t.reshape(&[5]), Err(TensorError::ElementCount { expected: 5, got: 6, .. })));
        assert!(matches!(t.get(&[2, 0]), Err(TensorError::Index { .. })));
        assert!(matches!(t.to_vec::<f32>(), Err(TensorError::DTypeMismatch { .. })));
        let turned = t.transpose(0, 1).expect("axes exist");
        assert!(matches!(turned.reshape(&[6]), Err(TensorError::NotContiguous { .. })));
        assert!(matches!(turned.as_slice::<i32>(), Err(TensorError::NotContiguous { .. })));
        assert_eq!(
            t.expect_dtype(DType::F32).map_err(|e| e.to_string()),
            Err("expected a tensor of f32, got one of i32".to_owned())
        );
    }

    #[test]
    fn packed_tensors() -> Result<(), TensorError> {
        let values: Vec<f4e2m1> = (0..24).map(|i| f4e2m1(i % 16)).collect();
        let t = DynTensor::from_slice(&[3, 8], &values)?;
        assert_eq!(t.byte_len(), 12);
        assert_eq!(t.to_bytes()?[..4], [0x10, 0x32, 0x54, 0x76]);
        assert_eq!(t.to_vec::<f4e2m1>()?, values);
        assert_eq!(t.slice(1, 2..6)?.select(0, 1)?.to_vec::<f4e2m1>()?, &values[10..14]);
        assert!(matches!(t.slice(1, 1..5), Err(TensorError::Packed { .. })));
        assert!(matches!(t.transpose(0, 1), Err(TensorError::Packed { .. })));
        assert!(matches!(t.select(1, 0), Err(TensorError::Packed { .. })));
        let mut u = t.slice(0, 1..3)?.to_owned_tensor()?;
        u.set(&[1, 3], Const::from_bits(DType::F4E2M1, 0xf))?;
        let mut expected = values[8..].to_vec();
        expected[11] = f4e2m1(0xf);
        assert_eq!(u.to_vec::<f4e2m1>()?, expected);
        let bytes = t.slice(1, 2..6)?.reinterpret(DType::U8)?;
        assert_eq!(bytes.to_vec::<u8>()?, [0x32, 0x54, 0xba, 0xdc, 0x32, 0x54]);
        assert_eq!(bytes.reinterpret(DType::F4E2M1)?.to_vec::<f4e2m1>()?, t.slice(1, 2..6)?.to_vec::<f4e2m1>()?);
        Ok(())
    }

    #[test]
    fn creation_of_every_kind() -> Result<(), TensorError> {
        assert_eq!(DynTensor::zeros(DType::E8M0, &[2])?.to_f64_vec()?, [2f64.powi(-127); 2]);
        assert_eq!(DynTensor::full(&[2, 2], Const::from_f64(DType::BF16, 1.5))?.to_f64_vec()?, [1.5; 4]);
        assert_eq!(DynTensor::from_slice(&[2], &[true, false])?.to_vec::<bool>()?, [true, false]);
        assert_eq!(DynTensor::from_f64(DType::F8E4M3, &[2], &[1e9, -0.5])?.to_f64_vec()?, [448.0, -0.5]);
        assert_eq!(DynTensor::from_host::<f4e2m1>(&[4], &[0x21, 0x43])?.to_f64_vec()?, [0.5, 1.0, 1.5, 2.0]);
        assert_eq!(DynTensor::from_slice(&[1], &[e8m0(128)])?.to_f64_vec()?, [2.0]);
        let t = DynTensor::from_slice(&[3], &[f8e4m3::from_f32(2.0); 3])?;
        assert_eq!(t.cast(DType::BF16)?.to_vec::<bf16>()?, [bf16::from_f32(2.0); 3]);
        assert!(matches!(
            DynTensor::from_bytes(DType::Bool, &[2], &[1, 2]),
            Err(TensorError::InvalidBool { at: 1, value: 2 })
        ));
        assert!(matches!(DynTensor::from_bytes(DType::F32, &[2], &[0; 7]), Err(TensorError::ByteCount { .. })));
        assert!(matches!(DynTensor::from_slice(&[2], &[0u8; 3]), Err(TensorError::ElementCount { .. })));
        assert!(DynTensor::zeros(DType::U8, &[1 << 62]).is_err());
        let scalar = DynTensor::from_slice(&[], &[7u64])?;
        assert_eq!((scalar.len(), scalar.get(&[])?.as_i64()), (1, 7));
        let empty = DynTensor::zeros(DType::F32, &[0, 5])?;
        assert_eq!((empty.to_vec::<f32>()?.len(), empty.as_slice::<f32>()?.len()), (0, 0));
        assert_eq!(t.as_ptr().addr() % 64, 0);
        Ok(())
    }

    #[test]
    fn one_writer_or_many_readers() -> Result<(), TensorError> {
        let mut a = iota(&[4]);
        let b = a.slice(0, 1..3)?;
        {
            let (_r1, _r2) = (a.read()?, b.read()?);
            let mut c = b.clone();
            assert_eq!(c.write().err(), Some(TensorError::Borrowed { wanted: "writing", held: "read" }));
        }
        {
            let mut w = a.as_mut_slice::<i32>()?;
            w[1] = 10;
            assert_eq!(b.read().err(), Some(TensorError::Borrowed { wanted: "reading", held: "written" }));
        }
        assert_eq!(b.to_vec::<i32>()?, [10, 2]);
        let hold = a.hold(Mode::Write)?;
        assert!(b.to_f64_vec().is_err());
        drop(hold);
        assert!(b.to_f64_vec().is_ok());
        Ok(())
    }

    #[test]
    fn overlap_is_seen_through_views() -> Result<(), TensorError> {
        let t = iota(&[4, 4]);
        let (top, bottom) = (t.slice(0, 0..2)?, t.slice(0, 2..4)?);
        assert!(!top.may_overlap(&bottom) && top.may_overlap(&t) && bottom.may_overlap(&t));
        assert!(!t.may_overlap(&t.to_owned_tensor()?));
        assert!(!t.slice(0, 0..0)?.may_overlap(&t));
        assert_eq!(top.byte_range().len(), 32);
        assert_eq!(t.select(1, 3)?.byte_range().len(), 13 * 4);
        Ok(())
    }

    #[test]
    fn copy_between_layouts() -> Result<(), TensorError> {
        let src = iota(&[3, 2]);
        let dst = DynTensor::zeros(DType::I32, &[2, 3])?;
        dst.transpose(0, 1)?.copy_from(&src)?;
        assert_eq!(dst.to_vec::<i32>()?, [0, 2, 4, 1, 3, 5]);
        let mut same = src.clone();
        assert!(matches!(same.copy_from(&src), Err(TensorError::Borrowed { .. })));
        assert!(matches!(same.copy_from(&dst), Err(TensorError::ShapeMismatch { .. })));
        Ok(())
    }

    proptest! {
        /// Any chain of slices and permutations shows what index arithmetic on the original says it should.
        #[test]
        fn random_views_agree_with_index_arithmetic(
            shape in proptest::collection::vec(1usize..5, 1..5),
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<[u8; 2]>()), 0..6),
        ) {
            let t = iota(&shape);
            let mut view = t.clone();
            // For every axis of the view: the axis of `t`, and where it starts there.
            let mut axes: Vec<(usize, usize)> = (0..shape.len()).map(|a| (a, 0)).collect();
            for (swap, pick, [x, y]) in steps {
                let axis = pick.index(shape.len());
                if swap {
                    let other = usize::from(x) % shape.len();
                    view = view.transpose(axis, other)?;
                    axes.swap(axis, other);
                } else {
                    let extent = view.shape()[axis];
                    let start = usize::from(x) % extent;
                    let end = start + 1 + usize::from(y) % (extent - start);
                    view = view.slice(axis, start..end)?;
                    axes[axis].1 += start;
                }
            }
            let values = view.to_vec::<i32>()?;
            let mut index = vec![0; shape.len()];
            for (linear, got) in values.into_iter().enumerate() {
                let mut rest = linear;
                for axis in (0..shape.len()).rev() {
                    index[axis] = rest % view.shape()[axis];
                    rest /= view.shape()[axis];
                }
                let mut original = vec![0; shape.len()];
                for (axis, &(a, start)) in axes.iter().enumerate() {
                    original[a] = start + index[axis];
                }
                prop_assert_eq!(Const::i32(got), t.get(&original)?);
                prop_assert_eq!(Const::i32(got), view.get(&index)?);
            }
            prop_assert_eq!(view.contiguous()?.to_vec::<i32>()?, view.to_vec::<i32>()?);
        }
    }

    #[test]
    fn a_view_of_nothing_reads_as_nothing_wherever_it_starts() {
        let t = DynTensor::zeros(DType::F32, &[2, 0, 4]).unwrap().select(0, 1).unwrap();
        assert!(t.to_f32_vec().unwrap().is_empty());
        assert_eq!(t.as_slice::<f32>().unwrap().len(), 0);
        let t = DynTensor::zeros(DType::F32, &[4]).unwrap().slice(0, 4..4).unwrap();
        assert!(t.to_f64_vec().unwrap().is_empty() && t.to_bytes().unwrap().is_empty());
    }
}
