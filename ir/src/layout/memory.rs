//! [`MemoryLayout`]: a tile laid out in shared memory, or a window of a global tensor. Depends on `linear`
//! and `fragment`.

use super::error::LayoutError;
use super::fragment::FragmentLayout;
use super::linear::LinearLayout;
use super::space::{Coord, Space, tile_dim};

/// Where each element of a tile lies in memory.
///
/// A linear map takes tile coordinates (`dim0`, `dim1`, ...) to *physical* coordinates; the offset is the sum of
/// physical coordinates times `strides`, in elements. Swizzles are in the linear part, padding in the strides, so both
/// keep their simple form, and address code is one XOR network followed by one dot product.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MemoryLayout {
    shape: Vec<usize>,
    map: LinearLayout,
    strides: Vec<usize>,
}

impl MemoryLayout {
    /// The layout of a tile of `shape`. `map` takes (`dim0`, ...) to physical dimensions, with `strides` one per
    /// physical dimension, in elements. Inputs of `map` may be larger than the tile.
    pub fn new(shape: &[usize], map: LinearLayout, strides: &[usize]) -> Result<MemoryLayout, LayoutError> {
        let dims = map.input().dims();
        let covered = dims.len() == shape.len()
            && dims.iter().enumerate().all(|(i, d)| *d.name() == *tile_dim(i) && d.extent() >= shape[i]);
        if !covered {
            return Err(LayoutError::ShapeNotCovered { shape: shape.to_vec(), space: map.input().to_string() });
        }
        if map.output().rank() != strides.len() {
            return Err(LayoutError::StrideRank { dims: map.output().rank(), strides: strides.len() });
        }
        map.left_inverse()?;
        Ok(MemoryLayout { shape: shape.to_vec(), map, strides: strides.to_vec() })
    }

    /// Element (i, j, ...) at `i * strides[0] + j * strides[1] + ...`.
    pub fn strided(shape: &[usize], strides: &[usize]) -> Result<MemoryLayout, LayoutError> {
        MemoryLayout::new(shape, LinearLayout::identity(&Space::tile(shape)?), strides)
    }

    /// The last axis contiguous, no gaps.
    pub fn row_major(shape: &[usize]) -> Result<MemoryLayout, LayoutError> {
        MemoryLayout::strided(shape, &row_major_strides(shape, 0))
    }

    /// The last axis contiguous, `pad` unused elements after each run of it.
    pub fn padded(shape: &[usize], pad: usize) -> Result<MemoryLayout, LayoutError> {
        MemoryLayout::strided(shape, &row_major_strides(shape, pad))
    }

    /// Extents of the tile.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The linear part: tile coordinates to physical coordinates.
    pub fn map(&self) -> &LinearLayout {
        &self.map
    }

    /// Elements per step of each physical dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Offset in elements of the element at `coord`.
    ///
    /// # Panics
    /// When `coord` does not have the rank of the tile.
    pub fn offset(&self, coord: &[usize]) -> usize {
        self.map.apply(coord).iter().zip(&self.strides).map(|(c, s)| c * s).sum()
    }

    /// As [`MemoryLayout::offset`], continued beyond the tile where the layout is merely strided.
    pub(super) fn offset_unbounded(&self, coord: &[usize]) -> usize {
        if self.is_strided() {
            return coord.iter().zip(&self.strides).map(|(c, s)| c * s).sum();
        }
        self.offset(coord)
    }

    /// True when physical coordinates are the tile coordinates, so that the offset is a plain dot product.
    pub fn is_strided(&self) -> bool {
        let (input, output) = (self.map.input(), self.map.output());
        input.rank() == output.rank()
            && input.dims().iter().zip(output.dims()).all(|(i, o)| i.radices() == o.radices())
            && (0..input.bits().len()).all(|i| self.map.column(i) == 1 << i)
            && (0..input.odds().len()).all(|i| self.map.odd_source(i) == Some(i))
    }

    /// The map from the places of `fragment` to physical coordinates, if digits agree. Where the layout is merely
    /// strided it needs no agreement, and dead places map beyond the tile.
    pub(super) fn after(&self, fragment: &FragmentLayout) -> Option<LinearLayout> {
        if self.is_strided() {
            return Some(fragment.map().clone());
        }
        fragment.map().then(&self.map).ok()
    }

    /// Elements from the first to the end of the last, gaps and dead places included: what to allocate.
    pub fn span(&self) -> usize {
        let last = self.map.output().dims().iter().zip(&self.strides).map(|(d, s)| (d.extent() - 1) * s).sum::<usize>();
        last + 1
    }

    /// The coordinate stored at `offset`, or `None` in a gap. Needs physical dimensions that nest, as all layouts of
    /// this module have; walks the tile otherwise.
    pub fn coord_at(&self, offset: usize) -> Option<Coord> {
        let mut order: Vec<usize> = (0..self.strides.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.strides[i]));
        let dims = self.map.output().dims();
        let mut physical: Coord = dims.iter().map(|_| 0).collect();
        let mut rest = offset;
        for i in order {
            physical[i] = rest.checked_div(self.strides[i]).unwrap_or(0).min(dims[i].extent() - 1);
            rest -= physical[i] * self.strides[i];
        }
        if rest == 0 {
            let inverse = self.map.left_inverse().expect("checked to be injective on construction");
            let coord = inverse.apply(&physical);
            if self.contains(&coord) && self.offset(&coord) == offset {
                return Some(coord);
            }
        }
        let space = Space::tile(&self.shape).ok()?;
        space.points().find(|c| self.offset(c) == offset)
    }

    /// The layout of the tile with its axes permuted: axis `i` of the result is axis `order[i]` of `self`.
    pub fn permute(&self, order: &[usize]) -> Result<MemoryLayout, LayoutError> {
        let dims = self.map.input().dims();
        let mut seen = order.to_vec();
        seen.sort_unstable();
        if !seen.iter().copied().eq(0..dims.len()) {
            let left = self.map.input().to_string();
            return Err(LayoutError::SpaceMismatch { left, right: format!("axes {order:?}") });
        }
        let inputs = order.iter().enumerate().map(|(i, &axis)| (tile_dim(i), self.map.bases(axis)));
        let map = LinearLayout::from_bases(inputs, self.map.output().clone())?;
        let shape: Vec<usize> = order.iter().map(|&i| self.shape[i]).collect();
        MemoryLayout::new(&shape, map, &self.strides)
    }

    fn contains(&self, coord: &[usize]) -> bool {
        coord.iter().zip(&self.shape).all(|(c, e)| c < e)
    }
}

/// Strides of a row-major tile whose last axis is followed by `pad` unused elements.
fn row_major_strides(shape: &[usize], pad: usize) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        let pad = if i + 2 == shape.len() { pad } else { 0 };
        strides[i] = strides[i + 1] * shape[i + 1] + pad;
    }
    strides
}
