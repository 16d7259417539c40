//! Rules 14 to 19: windows, elements, access and overlap.

use super::{Rule, Verifier};
use crate::DType;
use crate::func::{Access, Buffer, Extent, Scope, Value};
use crate::window::Window;

impl Verifier<'_> {
    /// Checks a window's axes and bounds; returns its shape if it has one.
    pub(super) fn check_window(&mut self, w: &Window) -> bool {
        let data = &self.func.buffers[w.buffer];
        let (name, rank) = (self.buffer_name(w.buffer), data.rank());
        if w.offsets.len() != rank {
            let n = w.offsets.len();
            self.buffer_violation(
                Rule::WindowAxes,
                w.buffer,
                format!("a window of {name} has {n} offsets for {rank} axes"),
            );
            return false;
        }
        for &v in &w.offsets {
            self.expect_type(Rule::WindowAxes, "the offset", v, DType::Index);
        }
        for (i, axis) in w.axes.iter().enumerate() {
            if usize::from(axis.axis) >= rank {
                let at = axis.axis;
                self.buffer_violation(Rule::WindowAxes, w.buffer, format!("{name} has no axis {at}"));
                return false;
            }
            if w.axes[..i].iter().any(|a| a.axis == axis.axis) {
                let at = axis.axis;
                self.buffer_violation(
                    Rule::WindowAxes,
                    w.buffer,
                    format!("a window runs twice along axis {at} of {name}"),
                );
                return false;
            }
            if axis.extent == 0 {
                self.violation(Rule::WindowBounds, format!("a window of {name} has no elements"));
                return false;
            }
        }
        for (axis, &offset) in w.offsets.iter().enumerate() {
            let extent = window_extent(w, axis);
            self.check_bounds(w.buffer, axis, offset, extent.unwrap_or(1));
            if data.dtype == DType::F4E2M1 && axis + 1 == rank {
                self.check_packed(w.buffer, offset, extent);
            }
        }
        true
    }

    /// Checks that constants keep `extent` elements from `offset` on inside a tile.
    fn check_bounds(&mut self, b: Buffer, axis: usize, offset: Value, extent: usize) {
        let data = &self.func.buffers[b];
        if data.scope == Scope::Global || self.ty(offset) != DType::Index {
            return;
        }
        let Extent::Static(limit) = data.shape[axis] else { return };
        let name = self.buffer_name(b);
        match self.func.as_index(offset) {
            Some(at) => {
                let end = i128::from(at) + extent as i128;
                if at < 0 || end > limit as i128 {
                    let which =
                        if extent == 1 { format!("element {at}") } else { format!("elements {at} to {}", end - 1) };
                    let message = format!("{which} of axis {axis} of {name}, which has {limit}");
                    self.buffer_violation(Rule::WindowBounds, b, message);
                }
            }
            None if extent > limit => {
                let message = format!("{extent} elements of axis {axis} of {name}, which has {limit}");
                self.buffer_violation(Rule::WindowBounds, b, message);
            }
            None => {}
        }
    }

    /// Checks that a window does not split a byte; `extent` is `None` for a single element.
    fn check_packed(&mut self, b: Buffer, offset: Value, extent: Option<usize>) {
        let Some(extent) = extent else { return };
        let odd_offset = self.func.as_index(offset).is_some_and(|at| at % 2 != 0);
        if extent % 2 != 0 || odd_offset {
            let name = self.buffer_name(b);
            self.buffer_violation(
                Rule::PackedWindow,
                b,
                format!("a window of {name} splits a byte, which holds two elements"),
            );
        }
    }

    /// Checks the indices of a single element.
    pub(super) fn check_element(&mut self, b: Buffer, indices: &[Value]) {
        let rank = self.func.buffers[b].rank();
        if indices.len() != rank {
            let (name, n) = (self.buffer_name(b), indices.len());
            self.buffer_violation(Rule::Elements, b, format!("an element of {name} has {n} indices, expected {rank}"));
            return;
        }
        for (axis, &v) in indices.iter().enumerate() {
            self.expect_type(Rule::Elements, "the index", v, DType::Index);
            self.check_bounds(b, axis, v, 1);
        }
    }

    /// Checks that a buffer may be written.
    pub(super) fn check_write(&mut self, b: Buffer) {
        if self.access.get(&b) == Some(&Access::Read) {
            let name = self.buffer_name(b);
            let span = self.func.buffers[b].span.clone();
            self.violation(Rule::ReadOnly, format!("{name} is written, but is a read-only tensor"))
                .note(span, format!("{name} is declared here"))
                .help("declare the tensor `mut`");
        }
    }

    /// Checks that two windows are apart, as far as constants tell; with `in_place`, one window may be the other.
    pub(super) fn check_overlap(&mut self, a: &Window, b: &Window, in_place: bool) {
        if a.buffer != b.buffer || (in_place && a == b) {
            return;
        }
        let rank = self.func.buffers[a.buffer].rank();
        let overlap = (0..rank).all(|axis| {
            let (n, m) = (window_extent(a, axis).unwrap_or(1) as i128, window_extent(b, axis).unwrap_or(1) as i128);
            match (a.offsets[axis], b.offsets[axis]) {
                (x, y) if x == y => true,
                (x, y) => match (self.func.as_index(x), self.func.as_index(y)) {
                    (Some(x), Some(y)) => i128::from(x) < i128::from(y) + m && i128::from(y) < i128::from(x) + n,
                    (_, _) => false,
                },
            }
        });
        if overlap {
            let name = self.buffer_name(a.buffer);
            self.violation(Rule::Overlap, format!("what is written overlaps another operand in {name}"))
                .help("use another tile as destination");
        }
    }
}

/// Extent of a window along a buffer axis, if it runs along it.
fn window_extent(w: &Window, axis: usize) -> Option<usize> {
    w.axes.iter().find(|a| usize::from(a.axis) == axis).map(|a| a.extent)
}
