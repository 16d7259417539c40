//! A rectangular view of a buffer: the operand of every tile op.

use crate::func::{Buffer, Func, Value};
use smallvec::SmallVec;

/// One axis of a window: which buffer axis it runs along, and over how many elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WindowAxis {
    /// Axis of the underlying buffer.
    pub axis: u8,
    /// Extent in elements, known at compile time.
    pub extent: usize,
}

/// A rectangle of a buffer.
///
/// Element `(i0, i1, ..)` of the window is the buffer element whose index along buffer axis `a` is
/// `offsets[a]`, plus `ij` if `axes[j].axis == a`. Buffer axes that no window axis names are fixed at
/// their offset, so a rank-2 tile of a rank-3 tensor is a window with two axes. The order of `axes`
/// is the window's own: a transposed operand is the same rectangle with its axes swapped.
///
/// Reading outside a *global* buffer yields the reading op's padding (zero unless it says otherwise)
/// and writing outside it does nothing; outside any other buffer both are errors.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Window {
    pub buffer: Buffer,
    /// One `index` value for each axis of the buffer.
    pub offsets: SmallVec<[Value; 4]>,
    /// The window's axes in its own order, each naming a different buffer axis.
    pub axes: SmallVec<[WindowAxis; 4]>,
}

impl Window {
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.axes.len()
    }

    /// Extents in the window's own axis order.
    pub fn shape(&self) -> SmallVec<[usize; 4]> {
        self.axes.iter().map(|a| a.extent).collect()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.axes.iter().map(|a| a.extent).product()
    }

    /// True when some extent is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if the window starts at constant zeros and runs over every axis of a buffer of static shape to its end, in
    /// whatever order its axes are.
    pub fn covers_whole_buffer(&self, func: &Func) -> bool {
        let Some(shape) = func.buffers.get(self.buffer).and_then(|data| data.static_shape()) else { return false };
        self.offsets.len() == shape.len()
            && self.axes.len() == shape.len()
            && self.offsets.iter().all(|&v| func.values.get(v).is_some() && func.as_index(v) == Some(0))
            && shape
                .iter()
                .enumerate()
                .all(|(axis, &extent)| self.axes.iter().any(|a| usize::from(a.axis) == axis && a.extent == extent))
    }

    /// The same rectangle with its axes in reverse order.
    pub fn transposed(mut self) -> Window {
        self.axes.reverse();
        self
    }
}
