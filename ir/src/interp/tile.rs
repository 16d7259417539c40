//! Tile ops: each reads its operands, computes, and writes its results.
//!
//! A tile op is one step: it reads all its sources before it writes. Where a backend could not keep that promise
//! without a copy, because a destination overlaps a source, the interpreter reports an error; only an op that maps
//! element to element, or a row to a row, may work in place.

use super::error::InterpErrorKind;
use super::exec::{Coords, Machine, Step};
use super::points::Points;
use crate::DType;
use crate::eval;
use crate::func::{Buffer, Op, Scope};
use crate::numerics::{Const, cast};
use crate::op::{BinaryOp, CmpOp, GemmPrecision, OpKind, ReduceOp, ScanOp, ShuffleOp, UnaryOp, Visit};
use crate::window::Window;
use std::cmp::Ordering;
use std::collections::HashMap;

/// Lanes that exchange elements in a shuffle.
const GROUP: usize = 32;

impl Machine<'_> {
    pub(super) fn tile_op(&mut self, op: Op) -> Step {
        let func = self.func;
        let kind = &func.ops[op].kind;
        let mut elements = 0;
        kind.for_each_window(&mut |w| elements += w.len() as u64);
        self.spend(op, elements)?;
        match kind {
            OpKind::Copy { src, dst, pad } => self.copy(op, src, dst, *pad),
            OpKind::Gather { src, index, dst, pad } => self.gather(op, src, index, dst, *pad),
            OpKind::Scatter { src, dst, index } => self.scatter(op, src, dst, index),
            OpKind::Fill { dst, value } => {
                let value = self.get(op, *value)?;
                self.write_window(op, dst, &vec![value; dst.len()])
            }
            OpKind::Gemm { a, b, acc, precision } => self.gemm(op, a, b, acc, *precision),
            OpKind::Reduce { op: f, src, dst, axis, accumulate } => {
                self.reduce(op, *f, src, dst, *axis as usize, *accumulate)
            }
            OpKind::Scan { op: f, src, dst, axis, reverse, exclusive } => {
                self.scan(op, *f, src, dst, *axis as usize, *reverse, *exclusive)
            }
            OpKind::TopK { src, values, indices, largest } => self.topk(op, src, values, indices, *largest),
            OpKind::Sort { keys, payload, descending } => self.sort(op, keys, payload.as_ref(), *descending),
            OpKind::Shuffle { op: f, src, dst, amount } => {
                let amount = self.get(op, *amount)?.as_i64();
                self.shuffle(op, *f, src, dst, amount)
            }
            OpKind::Unary { .. }
            | OpKind::Binary { .. }
            | OpKind::Fma { .. }
            | OpKind::Cmp { .. }
            | OpKind::Select { .. }
            | OpKind::Cast { .. }
            | OpKind::Bitcast { .. }
            | OpKind::Load { .. }
            | OpKind::Store { .. }
            | OpKind::Atomic { .. }
            | OpKind::Alloc { .. }
            | OpKind::For { .. }
            | OpKind::If { .. }
            | OpKind::While { .. }
            | OpKind::Role { .. }
            | OpKind::Print { .. }
            | OpKind::Assert { .. }
            | OpKind::Assume { .. }
            | OpKind::Layout { .. } => self.malformed(op, format!("{} is no tile op", kind.name())),
        }
    }

    // Windows.

    /// All elements of a window in its own row-major order; `pad` outside a global buffer.
    pub(super) fn read_window(&mut self, op: Op, window: &Window, pad: Const) -> Step<Vec<Const>> {
        let origin = self.origin(op, window)?;
        Points::new(&window.shape()).map(|p| self.read(op, window.buffer, &element(&origin, window, &p), pad)).collect()
    }

    /// As [`read_window`](Self::read_window), padded with zeros.
    fn read_zero_padded(&mut self, op: Op, window: &Window) -> Step<Vec<Const>> {
        self.read_window(op, window, Const::zero(self.dtype(window.buffer)))
    }

    /// Writes all elements of a window, converting them.
    fn write_window(&mut self, op: Op, window: &Window, values: &[Const]) -> Step {
        let origin = self.origin(op, window)?;
        let ty = self.dtype(window.buffer);
        Points::new(&window.shape())
            .zip(values)
            .try_for_each(|(p, &v)| self.write(op, window.buffer, &element(&origin, window, &p), cast(v, ty)))
    }

    /// Reports an error if two windows share an element. With `in_place`, the very same window is fine.
    fn check_overlap(&mut self, op: Op, src: &Window, dst: &Window, in_place: bool) -> Step {
        if src.buffer != dst.buffer {
            return Ok(());
        }
        let (a, b) = (self.origin(op, src)?, self.origin(op, dst)?);
        if in_place && a == b && src.axes == dst.axes {
            return Ok(());
        }
        let extent =
            |w: &Window, axis| w.axes.iter().find(|a| usize::from(a.axis) == axis).map_or(1, |a| a.extent as i64);
        let apart = (0..a.len()).any(|i| a[i] + extent(src, i) <= b[i] || b[i] + extent(dst, i) <= a[i]);
        if apart || src.is_empty() || dst.is_empty() {
            return Ok(());
        }
        let buffer = self.name(src.buffer);
        self.report(op, InterpErrorKind::Overlap { buffer }, Vec::new())
    }

    fn expect_shape(&mut self, op: Op, what: &str, got: &[usize], want: &[usize]) -> Step {
        if got == want {
            return Ok(());
        }
        self.malformed(op, format!("{what} has shape {got:?}, expected {want:?}"))
    }

    // Moves.

    fn copy(&mut self, op: Op, src: &Window, dst: &Window, pad: Const) -> Step {
        self.expect_shape(op, "the destination", &dst.shape(), &src.shape())?;
        self.check_overlap(op, src, dst, true)?;
        let (from, to) = (self.origin(op, src)?, self.origin(op, dst)?);
        let ty = self.dtype(dst.buffer);
        for p in Points::new(&src.shape()) {
            let at = element(&to, dst, &p);
            // What is not written need not exist.
            if self.is_skipped(dst.buffer, &at) {
                continue;
            }
            let v = self.read(op, src.buffer, &element(&from, src, &p), pad)?;
            self.write(op, dst.buffer, &at, cast(v, ty))?;
        }
        Ok(())
    }

    /// True for a write that does nothing: outside a global buffer.
    fn is_skipped(&self, buffer: Buffer, at: &[i64]) -> bool {
        self.func.buffers[buffer].scope == Scope::Global && !self.is_inside(buffer, at)
    }

    fn gather(&mut self, op: Op, src: &Window, index: &Window, dst: &Window, pad: Const) -> Step {
        if src.rank() == 0 || dst.rank() == 0 || src.shape()[1..] != dst.shape()[1..] {
            return self.malformed(op, "a gather's source rows have another shape than its destination rows");
        }
        self.expect_shape(op, "the index", &index.shape(), &dst.shape()[..1])?;
        self.check_overlap(op, src, dst, false)?;
        let (from, to) = (self.origin(op, src)?, self.origin(op, dst)?);
        let ty = self.dtype(dst.buffer);
        for p in Points::new(&dst.shape()) {
            let at = element(&to, dst, &p);
            if self.is_skipped(dst.buffer, &at) {
                continue;
            }
            let v = match self.row(op, src, &from, index, &p)? {
                Some(place) => self.read(op, src.buffer, &place, pad)?,
                None => pad,
            };
            self.write(op, dst.buffer, &at, cast(v, ty))?;
        }
        Ok(())
    }

    fn scatter(&mut self, op: Op, src: &Window, dst: &Window, index: &Window) -> Step {
        if src.rank() == 0 || dst.rank() == 0 || src.shape()[1..] != dst.shape()[1..] {
            return self.malformed(op, "a scatter's source rows have another shape than its destination rows");
        }
        self.expect_shape(op, "the index", &index.shape(), &src.shape()[..1])?;
        self.check_overlap(op, src, dst, false)?;
        let (from, to) = (self.origin(op, src)?, self.origin(op, dst)?);
        let ty = self.dtype(dst.buffer);
        // Which row was written to which position.
        let mut rows = HashMap::new();
        for p in Points::new(&src.shape()) {
            let Some(at) = self.row(op, dst, &to, index, &p)? else { continue };
            let position = at[usize::from(dst.axes[0].axis)];
            if *rows.entry(position).or_insert(p[0]) != p[0] {
                self.report(op, InterpErrorKind::DuplicatePosition { position }, Vec::new())?;
            }
            if self.is_skipped(dst.buffer, &at) {
                continue;
            }
            let zero = Const::zero(self.dtype(src.buffer));
            let v = self.read(op, src.buffer, &element(&from, src, &p), zero)?;
            self.write(op, dst.buffer, &at, cast(v, ty))?;
        }
        Ok(())
    }

    /// Where `window`'s element `p` lies when its first coordinate is looked up in `index`; `None` if the position is
    /// negative or beyond the buffer.
    fn row(&mut self, op: Op, window: &Window, origin: &Coords, index: &Window, p: &[usize]) -> Step<Option<Coords>> {
        let index_origin = self.origin(op, index)?;
        let zero = Const::zero(self.dtype(index.buffer));
        let position = self.read(op, index.buffer, &element(&index_origin, index, &p[..1]), zero)?.as_i64();
        let axis = usize::from(window.axes[0].axis);
        let extent = self.extent(window.buffer, axis);
        let mut at = element(origin, window, p);
        at[axis] = match origin[axis].checked_add(position) {
            Some(row) if position >= 0 && (0..extent).contains(&row) => row,
            Some(_) | None => return Ok(None),
        };
        Ok(Some(at))
    }

    fn shuffle(&mut self, op: Op, f: ShuffleOp, src: &Window, dst: &Window, amount: i64) -> Step {
        self.expect_shape(op, "the destination", &dst.shape(), &src.shape())?;
        self.check_overlap(op, src, dst, true)?;
        let values = self.read_zero_padded(op, src)?;
        let n = src.shape().last().copied().unwrap_or(1).max(1);
        let shuffled: Vec<Const> = (0..values.len())
            .map(|at| {
                let i = at % n;
                let lane = (i % GROUP) as i64;
                let from = match f {
                    ShuffleOp::Xor => lane ^ amount,
                    ShuffleOp::Up => lane - amount,
                    ShuffleOp::Down => lane + amount,
                    ShuffleOp::Idx => amount,
                };
                let group = i - i % GROUP;
                let lanes = GROUP.min(n - group) as i64;
                if (0..lanes).contains(&from) { values[at - i + group + from as usize] } else { values[at] }
            })
            .collect();
        self.write_window(op, dst, &shuffled)
    }

    // Sums and products.

    fn gemm(&mut self, op: Op, a: &Window, b: &Window, acc: &Window, precision: GemmPrecision) -> Step {
        let (sa, sb, sc) = (a.shape(), b.shape(), acc.shape());
        if sa.len() != 2 || sb.len() != 2 || sa[1] != sb[0] || sc[..] != [sa[0], sb[1]] {
            return self.malformed(op, format!("a gemm of {sa:?} by {sb:?} into {sc:?}"));
        }
        self.check_overlap(op, a, acc, false)?;
        self.check_overlap(op, b, acc, false)?;
        let (m, n, k) = (sa[0], sb[1], sa[1]);
        self.spend(op, (m * n * k) as u64)?;
        let (va, vb) = (self.read_zero_padded(op, a)?, self.read_zero_padded(op, b)?);
        let mut vc = self.read_zero_padded(op, acc)?;
        let ty = wide(self.dtype(acc.buffer));
        match ty {
            DType::F32 => {
                let operand = |c: &Const| {
                    let x = c.as_f64() as f32;
                    match precision {
                        GemmPrecision::Exact => x,
                        GemmPrecision::Tf32 => tf32(x),
                    }
                };
                let (fa, fb): (Vec<f32>, Vec<f32>) =
                    (va.iter().map(operand).collect(), vb.iter().map(operand).collect());
                for (i, c) in vc.iter_mut().enumerate() {
                    let (row, col) = (i / n, i % n);
                    let start = c.as_f64() as f32;
                    let sum = (0..k).fold(start, |sum, l| fa[row * k + l].mul_add(fb[l * n + col], sum));
                    *c = Const::f32(sum);
                }
            }
            _ => {
                for (i, c) in vc.iter_mut().enumerate() {
                    let (row, col) = (i / n, i % n);
                    let mut sum = cast(*c, ty);
                    for l in 0..k {
                        let (x, y) = (cast(va[row * k + l], ty), cast(vb[l * n + col], ty));
                        let step = if ty.is_float() {
                            eval::fma(x, y, sum)
                        } else {
                            eval::binary(BinaryOp::Mul, x, y).and_then(|p| eval::binary(BinaryOp::Add, p, sum))
                        };
                        sum = self.check(op, &[x, y, sum], step)?;
                    }
                    *c = sum;
                }
            }
        }
        self.write_window(op, acc, &vc)
    }

    fn reduce(&mut self, op: Op, f: ReduceOp, src: &Window, dst: &Window, axis: usize, accumulate: bool) -> Step {
        let shape = src.shape();
        if axis >= shape.len() {
            return self.malformed(op, format!("a reduction along axis {axis} of {shape:?}"));
        }
        let mut want = shape.clone();
        want.remove(axis);
        self.expect_shape(op, "the destination", &dst.shape(), &want)?;
        self.check_overlap(op, src, dst, false)?;
        let values = self.read_zero_padded(op, src)?;
        let positions = match f {
            ReduceOp::ArgMax => Some(CmpOp::Gt),
            ReduceOp::ArgMin => Some(CmpOp::Lt),
            ReduceOp::Sum
            | ReduceOp::Max
            | ReduceOp::Min
            | ReduceOp::AbsMax
            | ReduceOp::And
            | ReduceOp::Or
            | ReduceOp::Xor => None,
        };
        if accumulate && positions.is_some() {
            return self.malformed(op, format!("{f} cannot accumulate"));
        }
        let ty = wide(self.dtype(dst.buffer));
        let start = if accumulate { Some(self.read_zero_padded(op, dst)?) } else { None };
        let mut results = Vec::with_capacity(dst.len());
        for (i, line) in lines(&shape, axis).enumerate() {
            results.push(match positions {
                Some(better) => {
                    let mut best = 0;
                    for p in 1..line.len {
                        let (x, y) = (values[line.at(p)], values[line.at(best)]);
                        let wins =
                            eval::cmp(better, x, y).map(|gt| gt || (y.as_f64().is_nan() && !x.as_f64().is_nan()));
                        if self.check(op, &[x, y], wins)? {
                            best = p;
                        }
                    }
                    Const::i32(best as i32)
                }
                None => {
                    let identity = match &start {
                        Some(values) => Some(cast(values[i], ty)),
                        None => reduce_identity(f, ty),
                    };
                    let Some(mut sum) = identity else {
                        return self.malformed(op, format!("{f} of {ty} elements"));
                    };
                    for p in 0..line.len {
                        let x = cast(values[line.at(p)], ty);
                        sum = self.check(op, &[sum, x], combine(f, sum, x))?;
                    }
                    sum
                }
            });
        }
        self.write_window(op, dst, &results)
    }

    #[allow(clippy::too_many_arguments)]
    fn scan(
        &mut self,
        op: Op,
        f: ScanOp,
        src: &Window,
        dst: &Window,
        axis: usize,
        reverse: bool,
        exclusive: bool,
    ) -> Step {
        let shape = src.shape();
        if axis >= shape.len() {
            return self.malformed(op, format!("a scan along axis {axis} of {shape:?}"));
        }
        self.expect_shape(op, "the destination", &dst.shape(), &shape)?;
        self.check_overlap(op, src, dst, true)?;
        let f = match f {
            ScanOp::Sum => ReduceOp::Sum,
            ScanOp::Max => ReduceOp::Max,
            ScanOp::Min => ReduceOp::Min,
        };
        let ty = wide(self.dtype(dst.buffer));
        let values = self.read_zero_padded(op, src)?;
        let Some(identity) = reduce_identity(f, ty) else {
            return self.malformed(op, format!("a scan of {ty} elements"));
        };
        let mut results = vec![identity; values.len()];
        for line in lines(&shape, axis) {
            let mut sum = identity;
            for step in 0..line.len {
                let at = line.at(if reverse { line.len - 1 - step } else { step });
                let x = cast(values[at], ty);
                let next = self.check(op, &[sum, x], combine(f, sum, x))?;
                results[at] = if exclusive { sum } else { next };
                sum = next;
            }
        }
        self.write_window(op, dst, &results)
    }

    // Order.

    fn topk(&mut self, op: Op, src: &Window, values: &Window, indices: &Window, largest: bool) -> Step {
        let shape = src.shape();
        let mut want = shape.clone();
        let (Some(&n), Some(&k)) = (shape.last(), values.shape().last()) else {
            return self.malformed(op, "a topk of a window without axes");
        };
        if k > n {
            return self.malformed(op, format!("the {k} largest of {n} elements"));
        }
        want[shape.len() - 1] = k;
        self.expect_shape(op, "the values", &values.shape(), &want)?;
        self.expect_shape(op, "the indices", &indices.shape(), &want)?;
        self.check_overlap(op, src, values, false)?;
        self.check_overlap(op, src, indices, false)?;
        self.check_overlap(op, values, indices, false)?;
        let elements = self.read_zero_padded(op, src)?;
        let (mut chosen, mut places) = (Vec::new(), Vec::new());
        for line in lines(&shape, shape.len() - 1) {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&x, &y| nan_last(elements[line.at(x)], elements[line.at(y)], largest));
            for &p in &order[..k] {
                chosen.push(elements[line.at(p)]);
                places.push(Const::i32(p as i32));
            }
        }
        self.write_window(op, values, &chosen)?;
        self.write_window(op, indices, &places)
    }

    fn sort(&mut self, op: Op, keys: &Window, payload: Option<&Window>, descending: bool) -> Step {
        let shape = keys.shape();
        if shape.is_empty() {
            return self.malformed(op, "a sort of a window without axes");
        }
        let elements = self.read_zero_padded(op, keys)?;
        let carried = match payload {
            Some(payload) => {
                self.expect_shape(op, "the payload", &payload.shape(), &shape)?;
                self.check_overlap(op, keys, payload, false)?;
                self.read_zero_padded(op, payload)?
            }
            None => Vec::new(),
        };
        let mut order: Vec<usize> = (0..elements.len()).collect();
        for line in lines(&shape, shape.len() - 1) {
            let mut places: Vec<usize> = (0..line.len).map(|p| line.at(p)).collect();
            places.sort_by(|&x, &y| nan_last(elements[x], elements[y], descending));
            for (p, place) in places.into_iter().enumerate() {
                order[line.at(p)] = place;
            }
        }
        let sorted: Vec<Const> = order.iter().map(|&p| elements[p]).collect();
        self.write_window(op, keys, &sorted)?;
        match payload {
            Some(payload) => {
                let moved: Vec<Const> = order.iter().map(|&p| carried[p]).collect();
                self.write_window(op, payload, &moved)
            }
            None => Ok(()),
        }
    }
}

/// The buffer coordinates of a window's element.
fn element(origin: &Coords, window: &Window, point: &[usize]) -> Coords {
    let mut at = origin.clone();
    for (axis, &i) in window.axes.iter().zip(point) {
        // Offsets near the ends of i64 lie outside every buffer, as their saturated sums do.
        at[usize::from(axis.axis)] = at[usize::from(axis.axis)].saturating_add(i as i64);
    }
    at
}

/// The elements of a row-major array along one axis.
struct Line {
    start: usize,
    step: usize,
    len: usize,
}

impl Line {
    fn at(&self, i: usize) -> usize {
        self.start + i * self.step
    }
}

/// All lines along `axis`, in row-major order of the other axes.
fn lines(shape: &[usize], axis: usize) -> impl Iterator<Item = Line> {
    let (len, step) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let outer: usize = shape[..axis].iter().product();
    (0..outer * step).map(move |i| Line { start: i / step * step * len + i % step, step, len })
}

/// The type in which sums of `ty` elements are formed.
fn wide(ty: DType) -> DType {
    match ty {
        DType::F16 | DType::BF16 => DType::F32,
        DType::Bool
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Index
        | DType::F32
        | DType::F64
        | DType::F8E4M3
        | DType::F8E5M2
        | DType::F4E2M1
        | DType::E8M0 => ty,
    }
}

/// What a reduction without elements gives: `None` if it is not defined on the type, or has no such value.
pub(super) fn reduce_identity(f: ReduceOp, ty: DType) -> Option<Const> {
    let is_float = ty.is_float() && ty.is_arithmetic();
    match f {
        ReduceOp::Sum if ty.is_arithmetic() => Some(Const::zero(ty)),
        ReduceOp::AbsMax if is_float || ty.is_signed_int() => Some(Const::zero(ty)),
        ReduceOp::Max if is_float => Some(Const::from_f64(ty, f64::NEG_INFINITY)),
        ReduceOp::Min if is_float => Some(Const::from_f64(ty, f64::INFINITY)),
        // Saturating casts give the ends of the integer's range.
        ReduceOp::Max | ReduceOp::AbsMax if ty.is_int() => Some(Const::from_f64(ty, f64::NEG_INFINITY)),
        ReduceOp::Min if ty.is_int() => Some(Const::from_f64(ty, f64::INFINITY)),
        ReduceOp::Or | ReduceOp::Xor if ty.is_int() || ty == DType::Bool => Some(Const::zero(ty)),
        ReduceOp::And if ty == DType::Bool => Some(Const::from_bool(true)),
        ReduceOp::And if ty.is_int() => Some(Const::from_bits(ty, u64::MAX)),
        ReduceOp::Sum
        | ReduceOp::Max
        | ReduceOp::Min
        | ReduceOp::AbsMax
        | ReduceOp::And
        | ReduceOp::Or
        | ReduceOp::Xor
        | ReduceOp::ArgMax
        | ReduceOp::ArgMin => None,
    }
}

/// One step of a reduction.
fn combine(f: ReduceOp, sum: Const, x: Const) -> Result<Const, eval::EvalError> {
    match f {
        ReduceOp::Sum => eval::binary(BinaryOp::Add, sum, x),
        ReduceOp::Max => eval::binary(BinaryOp::Max, sum, x),
        ReduceOp::Min => eval::binary(BinaryOp::Min, sum, x),
        ReduceOp::AbsMax => eval::binary(BinaryOp::Max, sum, eval::unary(UnaryOp::Abs, x)?),
        ReduceOp::And => eval::binary(BinaryOp::And, sum, x),
        ReduceOp::Or => eval::binary(BinaryOp::Or, sum, x),
        ReduceOp::Xor => eval::binary(BinaryOp::Xor, sum, x),
        ReduceOp::ArgMax | ReduceOp::ArgMin => Err(eval::EvalError::Undefined),
    }
}

/// Ascending or descending order with NaN last; equal elements stay in order under a stable sort.
fn nan_last(x: Const, y: Const, descending: bool) -> Ordering {
    if x.dtype().is_float() {
        let (x, y) = (x.as_f64(), y.as_f64());
        return match (x.partial_cmp(&y), descending) {
            (Some(o), false) => o,
            (Some(o), true) => o.reverse(),
            (None, _) => x.is_nan().cmp(&y.is_nan()),
        };
    }
    let o = if x.dtype().is_signed_int() { x.as_i64().cmp(&y.as_i64()) } else { x.bits().cmp(&y.bits()) };
    if descending { o.reverse() } else { o }
}

/// `x` rounded to 10 mantissa bits, half away from zero, as `cvt.rna.tf32.f32` does.
fn tf32(x: f32) -> f32 {
    if x.is_finite() { f32::from_bits((x.to_bits() + 0x1000) & !0x1fff) } else { x }
}
