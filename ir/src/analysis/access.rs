//! Questions about buffer accesses: in bounds, disjoint, contiguous along a loop.

use super::affine::{Affine, Term, gcd};
use super::facts::Facts;
use crate::func::{Buffer, Extent, Func, Op, Value, ValueDef};
use crate::op::OpKind;
use crate::window::Window;

impl Facts {
    /// The extent of a buffer axis as a form.
    fn extent(&self, func: &Func, buffer: Buffer, axis: usize) -> Affine {
        match func.buffers[buffer].shape[axis] {
            Extent::Static(n) => Affine::constant(i64::try_from(n).unwrap_or(i64::MAX)),
            Extent::Dynamic(dim) => self.ranges.form(func.dims[dim].value),
        }
    }

    /// True only if `first..first + len` along an axis of `buffer` lies inside it whenever `at` is executed.
    fn span_in_bounds(&self, func: &Func, at: Op, buffer: Buffer, axis: usize, first: Value, len: usize) -> bool {
        let first = self.ranges.form(first);
        let end = i64::try_from(len).ok().and_then(|len| first.offset(len));
        let room = end.and_then(|end| self.extent(func, buffer, axis).sub(&end));
        self.proves(func, at, &first) && room.is_some_and(|room| self.proves(func, at, &room))
    }

    /// True only if the element lies inside the buffer whenever `at` is executed.
    pub fn access_in_bounds(&self, func: &Func, at: Op, buffer: Buffer, indices: &[Value]) -> bool {
        indices.iter().enumerate().all(|(axis, &i)| self.span_in_bounds(func, at, buffer, axis, i, 1))
    }

    /// True only if the whole window lies inside its buffer whenever `at` is executed.
    pub fn window_in_bounds(&self, func: &Func, at: Op, window: &Window) -> bool {
        (0..window.offsets.len()).all(|axis| self.axis_in_bounds(func, at, window, axis))
    }

    /// True only if the window stays inside along one axis of its buffer.
    pub fn axis_in_bounds(&self, func: &Func, at: Op, window: &Window, axis: usize) -> bool {
        self.span_in_bounds(func, at, window.buffer, axis, window.offsets[axis], window_extent(window, axis))
    }

    /// True only if the windows share no element whenever `at` is executed; both are evaluated there.
    pub fn disjoint(&self, func: &Func, at: Op, a: &Window, b: &Window) -> bool {
        if a.buffer != b.buffer || a.is_empty() || b.is_empty() {
            return true;
        }
        (0..a.offsets.len()).any(|axis| {
            let (x, y) = (self.ranges.form(a.offsets[axis]), self.ranges.form(b.offsets[axis]));
            let after = |x: &Affine, w: &Window, y: &Affine| {
                let end = i64::try_from(window_extent(w, axis)).ok().and_then(|len| x.offset(len));
                end.and_then(|end| y.sub(&end)).is_some_and(|gap| self.proves(func, at, &gap))
            };
            after(&x, a, &y) || after(&y, b, &x)
        })
    }

    /// By how much `v` grows from one iteration to the next inside each group of `width` iterations that starts at a
    /// multiple of `width`, if that is the same for all; 0 if `v` stays the same.
    pub fn step_along(&self, func: &Func, v: Value, index: Value, width: i64) -> Option<i64> {
        self.step_of(func, &self.ranges.form(v), index, width)
    }

    /// The largest power of two up to `max` of iterations of `index` over which `v` grows by one each time,
    /// in groups that start at a multiple of it.
    pub fn contiguous_run(&self, func: &Func, v: Value, index: Value, max: i64) -> i64 {
        let mut width = 1;
        while 2 * width <= max && self.step_along(func, v, index, 2 * width) == Some(1) {
            width *= 2;
        }
        width
    }

    fn step_of(&self, func: &Func, form: &Affine, index: Value, width: i64) -> Option<i64> {
        let mut step = 0i64;
        for (t, k) in form.terms() {
            let own = match t {
                Term::Value(v) if *v == index => 1,
                // A value defined inside the loop may depend on the index in ways that the form does not show.
                Term::Value(v) => {
                    if self.is_inside_loop_of(func, *v, index) {
                        return None;
                    }
                    0
                }
                Term::Div(r, c) => {
                    let inner = self.step_of(func, r, index, width)?;
                    // The group's first dividend is a multiple of `aligned`, so it is followed by at least
                    // `aligned - 1` dividends with the same quotient.
                    let aligned = gcd(self.group_start(r, index, width), *c);
                    if inner == 0 || (inner > 0 && inner.checked_mul(width - 1)? < aligned) {
                        0
                    } else {
                        return None;
                    }
                }
            };
            step = step.checked_add(k.checked_mul(own)?)?;
        }
        Some(step)
    }

    /// True if `v` is computed in the body of the loop whose index is `index`. Indices of nested loops do not count.
    fn is_inside_loop_of(&self, func: &Func, v: Value, index: Value) -> bool {
        let (ValueDef::Op(def), ValueDef::Op(the_loop)) = (func.values[v].def, func.values[index].def) else {
            return false;
        };
        let is_index = matches!(func.ops[def].kind, OpKind::For { .. });
        !is_index && self.enclosing(def).any(|op| op == the_loop)
    }

    /// Divides the form's value wherever `index` is a multiple of `width`.
    fn group_start(&self, form: &Affine, index: Value, width: i64) -> i64 {
        form.terms().iter().fold(form.constant, |g, (t, k)| {
            let m = match t {
                Term::Value(v) if *v == index => width,
                Term::Value(v) => self.ranges.multiple_of(*v),
                Term::Div(..) => 1,
            };
            gcd(g, k.checked_mul(m).unwrap_or(*k))
        })
    }
}

/// Extent of a window along an axis of its buffer: 1 where it is fixed.
fn window_extent(window: &Window, axis: usize) -> usize {
    window.axes.iter().find(|a| usize::from(a.axis) == axis).map_or(1, |a| a.extent)
}
