//! Copies and fills of windows.

use super::access::{Guard, Place};
use super::rep::{Rep, W};
use super::{Lower, Result, Storage, Stride};
use crate::cpu::loopir::{BinOp, IntCc, Ty, Val};
use zellige_ir::numerics::{Const, cast};
use zellige_ir::{Op, Value, Window};

/// Integer of `size` bytes.
fn unit(size: i64) -> Ty {
    match size {
        1 => Ty::I8,
        2 => Ty::I16,
        4 => Ty::I32,
        _ => Ty::I64,
    }
}

/// A window with its buffer and the values of its offsets.
#[derive(Clone)]
pub(crate) struct View {
    pub storage: Storage,
    pub offsets: Vec<Val>,
    /// Buffer axis of each window axis.
    pub axes: Vec<usize>,
    pub shape: Vec<usize>,
}

impl View {
    /// Buffer indices of a window point.
    pub(crate) fn index(&self, l: &mut Lower<'_>, point: &[Rep]) -> Vec<Rep> {
        let mut idx: Vec<Rep> = self.offsets.iter().map(|v| Rep::Uni(*v)).collect();
        for (&axis, &p) in self.axes.iter().zip(point) {
            idx[axis] = l.add_index(idx[axis], p);
        }
        idx
    }

    /// Distance of neighbours along a window axis, in cells.
    pub(crate) fn stride(&self, axis: usize) -> Stride {
        self.storage.strides[self.axes[axis]]
    }

    /// The window axis along which elements are neighbours.
    pub(crate) fn unit_axis(&self) -> Option<usize> {
        (0..self.axes.len()).rev().find(|&a| self.stride(a) == Stride::Const(1))
    }
}

impl Lower<'_> {
    pub(crate) fn view(&mut self, at: Op, w: &Window) -> Result<View> {
        let storage = self.storage(w.buffer, at)?;
        let offsets: Vec<Val> = w.offsets.iter().map(|v| self.get_uniform(*v)).collect();
        let view = View {
            storage,
            offsets,
            axes: w.axes.iter().map(|a| usize::from(a.axis)).collect(),
            shape: w.shape().to_vec(),
        };
        if !view.storage.global {
            self.check_view(at, w, &view);
        }
        Ok(view)
    }

    /// With bounds checks on, leaves the kernel if a window of a tile sticks out.
    fn check_view(&mut self, at: Op, w: &Window, view: &View) {
        if w.is_empty() {
            return;
        }
        let first: Vec<Rep> = view.offsets.iter().map(|v| Rep::Uni(*v)).collect();
        self.check_tile_access(at, w.buffer, &view.storage, &first);
        let ends: Vec<Rep> = view.shape.iter().map(|n| Rep::Uni(self.b.i64(*n as i64 - 1))).collect();
        let last = view.index(self, &ends);
        self.check_tile_access(at, w.buffer, &view.storage, &last);
    }

    /// Buffer indices of a point of a window.
    pub(crate) fn window_point(&mut self, w: &Window, point: &[Rep]) -> Vec<Rep> {
        let mut idx: Vec<Rep> = w.offsets.iter().map(|v| Rep::Uni(self.get_uniform(*v))).collect();
        for (axis, &p) in w.axes.iter().zip(point) {
            let a = usize::from(axis.axis);
            idx[a] = self.add_index(idx[a], p);
        }
        idx
    }

    pub(crate) fn add_index(&mut self, x: Rep, y: Rep) -> Rep {
        match (x, y) {
            (Rep::Uni(a), Rep::Uni(b)) => Rep::Uni(self.b.add(a, b)),
            (Rep::Uni(a), Rep::Lin { base, step }) | (Rep::Lin { base, step }, Rep::Uni(a)) => {
                Rep::Lin { base: self.b.add(a, base), step }
            }
            _ => {
                let ty = zellige_ir::DType::Index;
                let (a, b) = (self.as_lanes(x, ty), self.as_lanes(y, ty));
                Rep::Lanes(std::array::from_fn(|i| self.b.add(a[i], b[i])))
            }
        }
    }

    /// A condition under which the whole window is inside its tensor.
    pub(crate) fn view_inside(&mut self, v: &View) -> Val {
        let mut cond = self.b.bits(Ty::I8, 1);
        if !v.storage.global {
            return cond;
        }
        let zero = self.b.i64(0);
        for (axis, &offset) in v.offsets.iter().enumerate() {
            let extent = v.axes.iter().position(|a| *a == axis).map_or(1, |a| v.shape[a]);
            let last = self.b.add_imm(offset, extent as i64 - 1);
            let above = self.b.icmp(IntCc::Sge, offset, zero);
            let below = self.b.icmp(IntCc::Slt, last, v.storage.extents[axis]);
            cond = self.and(cond, above);
            cond = self.and(cond, below);
        }
        cond
    }

    /// The part of a window that is inside its tensor, as `lo..hi` for each axis of the window. Empty along the first axis if a
    /// fixed axis is outside.
    pub(crate) fn clip(&mut self, v: &View) -> Vec<(Val, Val)> {
        let zero = self.b.i64(0);
        let mut box_: Vec<(Val, Val)> = Vec::new();
        for (&axis, &n) in v.axes.iter().zip(&v.shape) {
            let n = self.b.i64(n as i64);
            if !v.storage.global {
                box_.push((zero, n));
                continue;
            }
            let (offset, extent) = (v.offsets[axis], v.storage.extents[axis]);
            let before = self.b.sub(zero, offset);
            let lo = self.b.bin(BinOp::SMax, before, zero);
            let left = self.b.sub(extent, offset);
            let hi = self.b.bin(BinOp::SMin, left, n);
            box_.push((lo, hi));
        }
        if v.storage.global {
            for (axis, &offset) in v.offsets.iter().enumerate().filter(|(a, _)| !v.axes.contains(a)) {
                let inside = self.b.icmp(IntCc::Ult, offset, v.storage.extents[axis]);
                if let Some(first) = box_.first_mut() {
                    first.1 = self.b.select(inside, first.1, first.0);
                }
            }
        }
        box_
    }

    /// Copies `src` to `dst`, both known to be inside along `range` (one `lo..hi` for each window axis).
    pub(crate) fn copy_inside(&mut self, src: &View, dst: &View, range: &[(Val, Val)]) -> Result {
        let (from, to) = (src.storage.dtype, dst.storage.dtype);
        let extents: Vec<Val> = range.iter().map(|&(lo, hi)| self.b.sub(hi, lo)).collect();
        if let Some((p, q)) = self.transposes(src, dst, &extents) {
            return self.copy_transposed(src, dst, range, p, q);
        }
        if let Some(axis) = self.moves_bytes(src, dst) {
            return self.copy_bytes(src, dst, range, axis);
        }
        let axis = self.copy_axis(src, dst);
        let axis = axis.filter(|&a| self.b.as_const(extents[a]).is_none_or(|n| n >= W as i64));
        self.box_loop(&extents, axis, 4, &mut |l, point| {
            let at: Vec<Rep> = point.iter().zip(range).map(|(&p, &(lo, _))| l.add_index(p, Rep::Uni(lo))).collect();
            let (i, o) = (src.index(l, &at), dst.index(l, &at));
            let v = l.load_elem(&src.storage, &i, Guard::Inside);
            let v = l.cast(v, from, to);
            l.store_elem(&dst.storage, &o, v, Guard::Inside);
            Ok(())
        })
    }

    /// The axis along which runs of bytes can be moved as they are.
    fn moves_bytes(&self, src: &View, dst: &View) -> Option<usize> {
        let (s, d) = (&src.storage, &dst.storage);
        let plain = s.dtype == d.dtype && s.cell == d.cell && !s.private && !d.private;
        let axis = dst.unit_axis()?;
        (plain && src.stride(axis) == Stride::Const(1)).then_some(axis)
    }

    /// Slot of a view's element at `at`, of which all parts are the same in all iterations.
    fn start(&mut self, v: &View, at: &[Rep]) -> Val {
        let idx = v.index(self, at);
        match self.place(&v.storage, &idx) {
            Place::Steps { slot, .. } => slot,
            Place::Lanes(slots) => slots[0],
        }
    }

    fn copy_bytes(&mut self, src: &View, dst: &View, range: &[(Val, Val)], axis: usize) -> Result {
        let others: Vec<usize> = (0..range.len()).filter(|a| *a != axis).collect();
        let extents: Vec<Val> = others.iter().map(|&a| self.b.sub(range[a].1, range[a].0)).collect();
        let count = self.b.sub(range[axis].1, range[axis].0);
        let zero = self.b.i64(0);
        let count = self.b.bin(BinOp::SMax, count, zero);
        let size = src.storage.cell.bytes(src.storage.dtype);
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let mut at: Vec<Rep> = range.iter().map(|r| Rep::Uni(r.0)).collect();
            for (&a, &rep) in others.iter().zip(point) {
                at[a] = l.add_index(rep, Rep::Uni(range[a].0));
            }
            let (i, o) = (l.start(src, &at), l.start(dst, &at));
            match size {
                Some(size) => {
                    let bytes = l.b.mul_imm(count, size);
                    let (from, to) = (l.address(&src.storage, i), l.address(&dst.storage, o));
                    l.move_bytes(from, to, bytes, size)
                }
                None => l.move_packed(src, dst, (i, o), count),
            }
        })
    }

    /// Moves a run of `count` half bytes from slot to slot: by whole bytes if both sides start on one.
    fn move_packed(&mut self, src: &View, dst: &View, (i, o): (Val, Val), count: Val) -> Result {
        let (s, d) = (&src.storage, &dst.storage);
        let zero = self.b.i64(0);
        let element = |l: &mut Self, k: Val| {
            let (i, o) = (l.b.add(i, k), l.b.add(o, k));
            let v = l.load_scalar(s, i);
            l.store_scalar(d, o, v);
            Ok(())
        };
        let either = self.b.bin(BinOp::Or, i, o);
        let odd = self.b.bin_imm(BinOp::And, either, 1);
        let even = self.b.icmp(IntCc::Eq, odd, zero);
        let whole_bytes = |l: &mut Self| {
            let (from, to) = (l.byte_address(s, i), l.byte_address(d, o));
            let bytes = l.b.bin_imm(BinOp::SShr, count, 1);
            l.move_bytes(from, to, bytes, 1)?;
            // An odd one at the end shares its byte.
            let pairs = l.b.bin_imm(BinOp::And, count, -2);
            l.counted(pairs, count, 1, &mut |l, k| element(l, k))
        };
        if self.b.as_const(even) == Some(1) {
            return whole_bytes(self);
        }
        self.b.begin_if(even);
        whole_bytes(self)?;
        self.b.begin_else(&[]);
        self.counted(zero, count, 1, &mut |l, k| element(l, k))?;
        self.b.end_if(&[]);
        Ok(())
    }

    /// Moves `bytes` bytes, a multiple of `size`.
    fn move_bytes(&mut self, from: Val, to: Val, bytes: Val, size: i64) -> Result {
        self.runs(bytes, size, &mut |l, ty, at, offset| {
            let (f, t) = (l.b.add(from, at), l.b.add(to, at));
            let v = l.b.load(ty, f, offset);
            l.b.store(v, t, offset);
        })
    }

    /// Visits `bytes` bytes, a multiple of `size`, in whole vectors as long as there are, then element by element. `body`
    /// gets the type to access and where: an offset and a constant one.
    fn runs(&mut self, bytes: Val, size: i64, body: &mut dyn FnMut(&mut Self, Ty, Val, i32)) -> Result {
        let zero = self.b.i64(0);
        let long = self.b.bin_imm(BinOp::And, bytes, -64);
        let whole = self.b.bin_imm(BinOp::And, bytes, -16);
        for (lo, hi, ty, times) in
            [(zero, long, Ty::I8x16, 4), (long, whole, Ty::I8x16, 1), (whole, bytes, unit(size), 1)]
        {
            let step = (ty.bytes() * times) as i64;
            self.counted(lo, hi, step, &mut |l, at| {
                (0..times).for_each(|k| body(l, ty, at, (k * ty.bytes()) as i32));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Sets runs of neighbours along `axis` of `range` to one value.
    fn fill_bytes(&mut self, d: &View, range: &[(Val, Val)], axis: usize, value: Val, size: i64) -> Result {
        let element = self.stored(&d.storage, value);
        let int = self.b.ty(element).as_int();
        let element = self.b.bitcast(int, element);
        let all = self.b.splat(element);
        let all = self.b.bitcast(Ty::I8x16, all);
        let others: Vec<usize> = (0..range.len()).filter(|a| *a != axis).collect();
        let extents: Vec<Val> = others.iter().map(|&a| self.b.sub(range[a].1, range[a].0)).collect();
        let count = self.b.sub(range[axis].1, range[axis].0);
        let zero = self.b.i64(0);
        let count = self.b.bin(BinOp::SMax, count, zero);
        let bytes = self.b.mul_imm(count, size);
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let mut at: Vec<Rep> = range.iter().map(|r| Rep::Uni(r.0)).collect();
            for (&a, &rep) in others.iter().zip(point) {
                at[a] = l.add_index(rep, Rep::Uni(range[a].0));
            }
            let slot = l.start(d, &at);
            let to = l.address(&d.storage, slot);
            l.runs(bytes, size, &mut |l, ty, at, offset| {
                let t = l.b.add(to, at);
                l.b.store(if ty.is_vector() { all } else { element }, t, offset);
            })
        })
    }

    /// The window axis to move four elements along.
    fn copy_axis(&self, src: &View, dst: &View) -> Option<usize> {
        let unit = |v: &View, a: usize| i64::from(v.stride(a) == Stride::Const(1));
        (0..src.shape.len()).max_by_key(|&a| (unit(src, a) + unit(dst, a), a))
    }

    fn whole(&mut self, shape: &[usize]) -> Vec<(Val, Val)> {
        shape.iter().map(|n| (self.b.i64(0), self.b.i64(*n as i64))).collect()
    }

    pub(super) fn copy(&mut self, at: Op, src: &Window, dst: &Window, pad: Const) -> Result {
        if src == dst {
            return Ok(());
        }
        let (s, d) = (self.view(at, src)?, self.view(at, dst)?);
        if src.buffer == dst.buffer && s.storage.global {
            // Padding first would destroy what an in-place copy is to keep.
            return self.copy_checked(&s, &d, pad);
        }
        self.copy_views(&s, &d, pad)
    }

    /// Copies element by element, each with its own check.
    fn copy_checked(&mut self, s: &View, d: &View, pad: Const) -> Result {
        let (from, to) = (s.storage.dtype, d.storage.dtype);
        let pad = self.immediate(from, pad.bits());
        let extents: Vec<Val> = s.shape.iter().map(|n| self.b.i64(*n as i64)).collect();
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let (i, o) = (s.index(l, point), d.index(l, point));
            let v = l.load_elem(&s.storage, &i, Guard::Check(pad));
            let v = l.cast(v, from, to);
            l.store_elem(&d.storage, &o, v, Guard::Check(pad));
            Ok(())
        })
    }

    pub(crate) fn copy_views(&mut self, s: &View, d: &View, pad: Const) -> Result {
        let (src_inside, dst_inside) = (self.view_inside(s), self.view_inside(d));
        let inside = self.and(src_inside, dst_inside);
        let whole = self.whole(&s.shape);
        match self.b.as_const(inside) {
            Some(1) => self.copy_inside(s, d, &whole),
            _ => {
                self.b.begin_if(inside);
                self.copy_inside(s, d, &whole)?;
                self.b.begin_else(&[]);
                self.copy_edge(s, d, pad)?;
                self.b.end_if(&[]);
                Ok(())
            }
        }
    }

    /// Copies what is inside both, and pads the rest of what is inside the destination.
    fn copy_edge(&mut self, s: &View, d: &View, pad: Const) -> Result {
        let pad = cast(pad, d.storage.dtype);
        let value = self.immediate(d.storage.dtype, pad.bits());
        let target = self.clip(d);
        if s.storage.global {
            self.fill_inside(d, &target, Rep::Uni(value))?;
        }
        let source = self.clip(s);
        let both: Vec<(Val, Val)> = source
            .into_iter()
            .zip(target)
            .map(|((a, b), (c, d))| (self.b.bin(BinOp::SMax, a, c), self.b.bin(BinOp::SMin, b, d)))
            .collect();
        if both.is_empty() {
            // A single element.
            let cond = self.view_inside(s);
            let and = self.view_inside(d);
            let cond = self.and(cond, and);
            self.b.begin_if(cond);
            self.copy_inside(s, d, &[])?;
            self.b.end_if(&[]);
            return Ok(());
        }
        self.copy_inside(s, d, &both)
    }

    /// Sets the elements of `range`, known to be inside.
    pub(crate) fn fill_inside(&mut self, d: &View, range: &[(Val, Val)], value: Rep) -> Result {
        if range.is_empty() {
            let cond = self.view_inside(d);
            self.b.begin_if(cond);
            let idx = d.index(self, &[]);
            self.store_elem(&d.storage, &idx, value, Guard::Inside);
            self.b.end_if(&[]);
            return Ok(());
        }
        if let (Some(axis), Rep::Uni(v), Some(size)) = (d.unit_axis(), value, d.storage.cell.bytes(d.storage.dtype))
            && !d.storage.private
        {
            return self.fill_bytes(d, range, axis, v, size);
        }
        let axis = d.unit_axis().or(Some(d.shape.len() - 1));
        let extents: Vec<Val> = range.iter().map(|&(lo, hi)| self.b.sub(hi, lo)).collect();
        let axis = axis.filter(|&a| self.b.as_const(extents[a]).is_none_or(|n| n >= W as i64));
        self.box_loop(&extents, axis, 4, &mut |l, point| {
            let at: Vec<Rep> = point.iter().zip(range).map(|(&p, &(lo, _))| l.add_index(p, Rep::Uni(lo))).collect();
            let idx = d.index(l, &at);
            l.store_elem(&d.storage, &idx, value, Guard::Inside);
            Ok(())
        })
    }

    pub(super) fn fill(&mut self, at: Op, dst: &Window, value: Value) -> Result {
        let d = self.view(at, dst)?;
        let (rep, ty) = (self.get(value), self.func.ty(value));
        let rep = self.cast(rep, ty, d.storage.dtype);
        let range = self.clip(&d);
        self.fill_inside(&d, &range, rep)
    }
}
