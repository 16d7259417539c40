//! From steps to ops. A step whose operands do not exist is skipped.

use super::build::{Axis, Builder, COUNTERS, Input, ROWS, Tile, pick};
use super::expr::Point;
use super::plan::{Expr, Step};
use zellige_ir::{
    AtomicOp, BinaryOp, CmpOp, Const, DType, GemmPrecision, LayoutHint, LoopKind, OpKind, ReduceOp, ScanOp, Scope,
    ShuffleOp, Value, WarpRole, Window,
};

/// Steps of the interpreter for an element of a tile, at most.
const ELEMENT_WORK: u64 = 32;

impl Builder<'_> {
    /// Builds steps in order.
    pub fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            let made = self.step(step);
            self.tiles.extend(made.into_iter().flatten());
        }
    }

    /// Builds steps in a region of their own, which runs so many times: their tiles do not outlive it.
    fn nested(&mut self, steps: &[Step], times: u8) {
        let (tiles, indices, runs) = (self.tiles.len(), self.indices.len(), self.runs);
        self.runs *= u64::from(times);
        self.steps(steps);
        self.runs = runs;
        self.tiles.truncate(tiles);
        self.indices.truncate(indices);
    }

    /// Steps of the interpreter for a step alone, without those that it holds.
    fn work(&self, step: &Step) -> u64 {
        let extent = self.tile.into_iter().max().unwrap_or(1) as u64;
        let elements = extent * extent * ELEMENT_WORK;
        match step {
            Step::If { .. } | Step::For { .. } | Step::While { .. } | Step::Role { .. } | Step::Hint { .. } => 0,
            Step::Gemm { repeat, .. } => elements + extent.pow(3) * u64::from(*repeat).max(self.k_steps as u64),
            Step::Accumulate { trips, .. } => elements * u64::from(trips + 1),
            _ => elements,
        }
    }

    /// Builds a step; the tiles it made are all written.
    fn step(&mut self, step: &Step) -> Option<Vec<Tile>> {
        self.spend(self.work(step))?;
        match step {
            Step::Fill { dtype, shape, scope, value } => {
                let (dtype, shape) = (self.dtype(*dtype), self.shape(*shape));
                let t = self.alloc(self.scope(*scope, &shape), dtype, &shape)?;
                self.fill(&t, f64::from(*value));
                Some(vec![t])
            }
            Step::Load { input, scope, dtype, transposed, pad, shift } => {
                let input = pick(*input, &self.inputs)?;
                let src = self.input_window(&input, i64::from(*shift), *transposed);
                let scope = self.scope(*scope, &src.shape());
                // Half of the tiles keep the input's type.
                let ty = if dtype % 2 == 0 { input.dtype } else { self.dtype(dtype / 2) };
                Some(vec![self.copied(scope, ty, src, *pad)?])
            }
            Step::Elementwise { target, fresh, dtype, shape, scope, loops, value } => {
                let old = (!fresh).then(|| pick(*target, &self.writable())).flatten();
                let (t, made) = match old {
                    Some(t) => (t, None),
                    None => {
                        let (dtype, shape) = (self.dtype(*dtype), self.shape(*shape));
                        let t = self.alloc(self.scope(*scope, &shape), dtype, &shape)?;
                        (t.clone(), Some(t))
                    }
                };
                self.elementwise(&t, *loops, value);
                Some(made.into_iter().collect())
            }
            Step::Accumulate { dtype, shape, scope, loops, trips, term } => {
                let (dtype, shape) = (self.dtype(*dtype), self.shape(*shape));
                let t = self.alloc(self.scope(*scope, &shape), dtype, &shape)?;
                self.accumulate(&t, *loops, *trips, term);
                Some(vec![t])
            }
            Step::Copy { tile, scope, dtype, transposed } => {
                let from = pick(*tile, &self.tiles)?;
                let src = self.whole(&from);
                let src = if *transposed { src.transposed() } else { src };
                let scope = self.scope(*scope, &src.shape());
                Some(vec![self.copied(scope, self.dtype(*dtype), src, 0)?])
            }
            Step::CopyPart { from, to, extents, offsets } => self.copy_part(*from, *to, *extents, *offsets),
            Step::Reduce { tile, op, axis, scope, accumulate } => self.reduce(*tile, *op, *axis, *scope, *accumulate),
            Step::Scan { tile, op, axis, scope, reverse, exclusive } => {
                let from = pick(*tile, &self.ranked())?;
                let axis = u32::from(*axis) % from.shape.len() as u32;
                let op = pick(*op, ScanOp::ALL)?;
                let src = if op == ScanOp::Sum { self.quantised(&from, from.dtype)? } else { from };
                let t = self.alloc(self.scope(*scope, &src.shape), src.dtype, &src.shape)?;
                let (src, dst) = (self.whole(&src), self.whole(&t));
                // The maximum of nothing is an infinity or the end of the type's range.
                let exclusive = *exclusive && op == ScanOp::Sum;
                self.b.append(OpKind::Scan { op, src, dst, axis, reverse: *reverse, exclusive });
                Some(vec![t])
            }
            Step::Gemm { a, b, dtype, start, repeat, from_inputs, tf32 } => {
                let made = if *from_inputs { self.gemm_of_inputs(*a, *b, *start, *repeat, *tf32) } else { None };
                made.or_else(|| self.gemm_of_tiles(*a, *b, *dtype, *start, *repeat)).map(|t| vec![t])
            }
            Step::TopK { tile, k, largest } if self.config.exotic => {
                let from = pick(*tile, &self.ranked())?;
                let mut shape = from.shape.clone();
                let last = shape.last_mut()?;
                *last = usize::from(*k) % *last + 1;
                let values = self.alloc(Scope::Shared, from.dtype, &shape)?;
                let indices = self.alloc(Scope::Shared, DType::I32, &shape)?;
                let (src, v, i) = (self.whole(&from), self.whole(&values), self.whole(&indices));
                self.b.append(OpKind::TopK { src, values: v, indices: i, largest: *largest });
                Some(vec![values, indices])
            }
            Step::Sort { tile, payload, descending } if self.config.exotic => {
                let keys = pick(*tile, &self.ranked())?;
                let made = if *payload { Some(self.positions(&keys.shape)?) } else { None };
                let payload = made.as_ref().map(|t| self.whole(t));
                let keys = self.whole(&keys);
                self.b.append(OpKind::Sort { keys, payload, descending: *descending });
                Some(made.into_iter().collect())
            }
            Step::Shuffle { tile, op, amount, scope } if self.config.exotic => {
                let whole_groups = |t: &Tile| t.shape.last().is_some_and(|n| n % 32 == 0);
                let from = pick(*tile, &self.ranked().into_iter().filter(whole_groups).collect::<Vec<_>>())?;
                let t = self.alloc(self.scope(*scope, &from.shape), from.dtype, &from.shape)?;
                let amount = self.b.constant(Const::i32(i32::from(*amount)));
                let (src, dst) = (self.whole(&from), self.whole(&t));
                self.b.append(OpKind::Shuffle { op: pick(*op, ShuffleOp::ALL)?, src, dst, amount });
                Some(vec![t])
            }
            Step::Gather { input, shape, index, pad } if self.config.exotic => {
                self.gather(*input, *shape, index, *pad).map(|t| vec![t])
            }
            Step::Scatter { tile, shift } if self.config.exotic => self.scatter(*tile, *shift).map(|t| vec![t]),
            Step::TopK { .. }
            | Step::Sort { .. }
            | Step::Shuffle { .. }
            | Step::Gather { .. }
            | Step::Scatter { .. } => None,
            Step::Atomic { op, shape, value, global } => self.atomic(*op, *shape, value, *global),
            Step::Store { value } => {
                let shape = [self.tile[0], self.tile[1]];
                let (direct, base) = (self.direct, self.base);
                self.for_each(0, Scope::Global, &shape, |s, at| {
                    let v = s.expr(value, DType::F32, &Point { at, dst: None });
                    let to: Vec<Value> = (0..2).map(|axis| s.b.add(base[axis], at[axis])).collect();
                    s.b.store(direct, &to, v);
                });
                None
            }
            Step::Persistent { tile } => {
                let matrix = |t: &Tile| t.shape.len() == 2 && t.shape[1] == self.tile[1] && t.scope != Scope::Fragment;
                let from = pick(*tile, &self.tiles.iter().filter(|t| matrix(t)).cloned().collect::<Vec<_>>())?;
                let (n, rows) = (self.b.index(ROWS as i64), self.b.index(from.shape[0] as i64));
                let row = self.b.begin_for(LoopKind::Persistent, &[n])[0];
                let zero = self.b.index(0);
                let at = self.b.binary(BinaryOp::Rem, row, rows);
                let src = self.b.window(from.buffer, &[at, zero], &from.shape[1..]);
                let dst = self.b.window(self.rows, &[row, zero], &from.shape[1..]);
                self.b.copy(src, dst);
                self.b.close();
                None
            }
            Step::If { cond, then_steps, else_steps } => {
                let cond = self.condition(cond);
                let other = self.b.begin_if(cond);
                self.nested(then_steps, 1);
                self.b.close();
                self.b.open(other);
                self.nested(else_steps, 1);
                self.b.close();
                None
            }
            Step::For { kind, trips, steps } => {
                let kinds = [LoopKind::Serial, LoopKind::Unrolled, LoopKind::Pipelined { stages: 2 }];
                let extent = self.b.index(i64::from(*trips));
                let index = self.b.begin_for(pick(*kind, &kinds)?, &[extent])[0];
                self.indices.push(index);
                self.nested(steps, *trips);
                self.indices.pop();
                self.b.close();
                None
            }
            Step::While { trips, steps } => self.run_while(*trips, steps),
            Step::Role { consumer, steps } => {
                if self.in_role || !self.config.hints {
                    self.nested(steps, 1);
                    return None;
                }
                let role = if consumer % 2 == 0 { WarpRole::Producer } else { WarpRole::Consumer(0) };
                let body = self.b.func_mut().add_region();
                self.b.append(OpKind::Role { role, body });
                self.b.open(body);
                self.in_role = true;
                self.nested(steps, 1);
                self.in_role = false;
                self.b.close();
                None
            }
            Step::Hint { tile, layout } => {
                let t = pick(*tile, &self.tiles)?;
                if self.config.hints && self.may_lay_out(&t) {
                    let hint = match (t.scope, layout % 3) {
                        (Scope::Shared, 0) => LayoutHint::Swizzle(32 << (layout / 3 % 3)),
                        (Scope::Shared, 1) => LayoutHint::Pad(u32::from(layout / 3 % 3) * 4),
                        (_, _) => LayoutHint::RowMajor,
                    };
                    self.b.append(OpKind::Layout { buffer: t.buffer, hint });
                }
                None
            }
        }
    }

    // Choices.

    fn dtype(&self, choice: u8) -> DType {
        pick(choice, &self.config.dtypes).unwrap_or(DType::F32)
    }

    /// A shape along the problem's axes, of rank 1 or 2.
    fn shape(&self, choice: u8) -> Vec<usize> {
        let [m, n, k] = self.tile;
        match choice % 8 {
            0..=2 => vec![m, n],
            3 => vec![n, m],
            4 => vec![m, k],
            5 => vec![m],
            6 => vec![n],
            _ => vec![k, n],
        }
    }

    /// Tiles that may be computed into.
    fn writable(&self) -> Vec<Tile> {
        self.tiles.iter().filter(|t| t.dtype.is_arithmetic()).cloned().collect()
    }

    /// Tiles of numbers with at least one axis.
    fn ranked(&self) -> Vec<Tile> {
        self.writable().into_iter().filter(|t| !t.shape.is_empty()).collect()
    }

    /// The block's window of an input, shifted along both axes.
    fn input_window(&mut self, input: &Input, shift: i64, transposed: bool) -> Window {
        let k = match self.indices.get(2) {
            Some(&index) => index,
            None => self.b.index(0),
        };
        let (shift, shape) = (self.b.index(shift), self.extents(input));
        let offsets = self.offsets(input, k).map(|v| self.b.add(v, shift));
        let w = self.b.window(input.buffer, &offsets, &shape);
        if transposed { w.transposed() } else { w }
    }

    // Parts of steps.

    fn fill(&mut self, t: &Tile, value: f64) {
        let (value, dst) = (self.b.constant(Const::from_f64(t.dtype, value)), self.whole(t));
        self.b.append(OpKind::Fill { dst, value });
    }

    fn elementwise(&mut self, t: &Tile, loops: u8, value: &Expr) {
        let shape = t.shape.clone();
        self.for_each(loops, t.scope, &shape, |s, at| {
            let v = s.expr(value, t.dtype, &Point { at, dst: Some(t) });
            s.b.store(t.buffer, at, v);
        });
    }

    fn accumulate(&mut self, t: &Tile, loops: u8, trips: u8, term: &Expr) {
        let shape = t.shape.clone();
        self.for_each(loops, t.scope, &shape, |s, at| {
            let sum = s.b.alloc(Scope::Local, t.dtype, &[]);
            let zero = s.b.constant(Const::zero(t.dtype));
            s.b.store(sum, &[], zero);
            let trips = s.b.index(i64::from(trips));
            let index = s.b.begin_for(LoopKind::Serial, &[trips])[0];
            s.indices.push(index);
            let v = s.expr(term, t.dtype, &Point { at, dst: Some(t) });
            s.indices.pop();
            let before = s.b.load(sum, &[]);
            let after = s.sum(before, v);
            s.b.store(sum, &[], after);
            s.b.close();
            let v = s.b.load(sum, &[]);
            s.b.store(t.buffer, at, v);
        });
    }

    /// A new shared tile of small integers near a tile's elements.
    fn quantised(&mut self, from: &Tile, dtype: DType) -> Option<Tile> {
        let t =
            self.alloc(if self.config.aligned_fragments { from.scope } else { Scope::Shared }, dtype, &from.shape)?;
        let shape = t.shape.clone();
        self.for_each(0, t.scope, &shape, |s, at| {
            let v = s.b.load(from.buffer, at);
            let v = if from.dtype.is_arithmetic() { v } else { s.b.cast(v, DType::F32) };
            // A float operand of integers needs their small neighbours, too.
            let v = if dtype.is_float() { s.convert(v, DType::F32) } else { v };
            let v = s.small(v);
            let v = s.b.cast(v, dtype);
            s.b.store(t.buffer, at, v);
        });
        Some(t)
    }

    /// A new tile of i32 positions along the last axis.
    fn positions(&mut self, shape: &[usize]) -> Option<Tile> {
        let t = self.alloc(Scope::Shared, DType::I32, shape)?;
        self.for_each(0, t.scope, shape, |s, at| {
            let v = match at.last() {
                Some(&i) => s.b.cast(i, DType::I32),
                None => s.b.constant(Const::i32(0)),
            };
            s.b.store(t.buffer, at, v);
        });
        Some(t)
    }

    fn copy_part(&mut self, from: u8, to: u8, extents: [u8; 2], offsets: [u8; 4]) -> Option<Vec<Tile>> {
        let from = pick(from, &self.tiles)?;
        let fits = |t: &Tile| t.buffer != from.buffer && t.shape.len() == from.shape.len();
        let to = pick(to, &self.writable().into_iter().filter(fits).collect::<Vec<_>>())?;
        let mut shape = Vec::new();
        let mut corners: [Vec<Value>; 2] = Default::default();
        for axis in 0..from.shape.len() {
            let n = usize::from(extents[axis % 2]) % from.shape[axis].min(to.shape[axis]) + 1;
            shape.push(n);
            for (side, t) in [&from, &to].into_iter().enumerate() {
                let room = (t.shape[axis] - n + 1) as i64;
                let choice = offsets[side * 2 + axis % 2];
                let room_value = self.b.index(room);
                let offset = if choice.is_multiple_of(3) {
                    let index = self.indices[usize::from(choice) % self.indices.len()];
                    self.b.binary(BinaryOp::Rem, index, room_value)
                } else {
                    self.b.index(i64::from(choice) % room)
                };
                corners[side].push(offset);
            }
        }
        let (src, dst) =
            (self.b.window(from.buffer, &corners[0], &shape), self.b.window(to.buffer, &corners[1], &shape));
        self.b.copy(src, dst);
        None
    }

    fn reduce(&mut self, tile: u8, op: u8, axis: u8, scope: u8, accumulate: bool) -> Option<Vec<Tile>> {
        use ReduceOp::*;
        let from = pick(tile, &self.ranked())?;
        let ty = from.dtype;
        let ops: &[ReduceOp] = match (ty.is_float(), ty.is_signed_int()) {
            (true, _) => &[Sum, Max, Min, AbsMax, ArgMax, ArgMin],
            (_, true) => &[Sum, Max, Min, AbsMax, ArgMax, ArgMin, And, Or, Xor],
            (_, _) => &[Sum, Max, Min, ArgMax, ArgMin, And, Or, Xor],
        };
        let op = pick(op, ops)?;
        let axis = usize::from(axis) % from.shape.len();
        let mut shape = from.shape.clone();
        shape.remove(axis);
        let src = if op == Sum { self.quantised(&from, ty)? } else { from };
        let out = if matches!(op, ArgMax | ArgMin) { DType::I32 } else { ty };
        let t = self.alloc(self.scope(scope, &shape), out, &shape)?;
        let axis = axis as u32;
        let accumulate = accumulate && !matches!(op, ArgMax | ArgMin);
        if accumulate {
            self.fill(&t, 3.0);
        }
        let (src, dst) = (self.whole(&src), self.whole(&t));
        self.b.append(OpKind::Reduce { op, src, dst, axis, accumulate });
        Some(vec![t])
    }

    /// A product of small integers near two tiles' elements.
    fn gemm_of_tiles(&mut self, a: u8, b: u8, dtype: u8, start: i8, repeat: u8) -> Option<Tile> {
        let dtype = pick(dtype, &self.config.operands)?;
        let is_packed = dtype == DType::F4E2M1;
        let matrix = |t: &Tile| t.shape.len() == 2 && (!is_packed || t.shape[1].is_multiple_of(2));
        let matrices: Vec<Tile> = self.tiles.iter().filter(|t| matrix(t)).cloned().collect();
        let (a, b) = (pick(a, &matrices)?, pick(b, &matrices)?);
        let (qa, qb) = (self.quantised(&a, dtype)?, self.quantised(&b, dtype)?);
        let (wa, wb) = (self.whole(&qa), self.whole(&qb));
        let choices = [
            (wa.clone(), wb.clone()),
            (wa.clone(), wb.clone().transposed()),
            (wa.clone().transposed(), wb.clone()),
            (wa.clone().transposed(), wb.transposed()),
            // Always fits.
            (wa.clone(), wa.transposed()),
        ];
        let (wa, wb) = choices.into_iter().find(|(x, y)| x.shape()[1] == y.shape()[0])?;
        let acc = self.accumulator(dtype, &[wa.shape()[0], wb.shape()[1]], start)?;
        let trips = self.b.index(i64::from(repeat));
        self.b.begin_for(LoopKind::Serial, &[trips]);
        let dst = self.whole(&acc);
        self.b.append(OpKind::Gemm { a: wa, b: wb, acc: dst, precision: GemmPrecision::Exact });
        self.b.close();
        Some(acc)
    }

    /// The canonical product: two inputs with an axis along k, copied tile by tile in a pipeline.
    fn gemm_of_inputs(&mut self, a: u8, b: u8, start: i8, stages: u8, tf32: bool) -> Option<Tile> {
        let is_operand = |i: &&Input| self.config.operands.contains(&i.dtype) && i.axes.contains(&Axis::K);
        let candidates: Vec<Input> = self.inputs.iter().filter(is_operand).cloned().collect();
        let a = pick(a, &candidates)?;
        let same_kind = |i: &Input| i.dtype.is_float() == a.dtype.is_float();
        let b = pick(b, &candidates.iter().filter(|i| same_kind(i)).cloned().collect::<Vec<_>>())?;
        let [sa, sb] = [&a, &b].map(|i| self.extents(i));
        let (ta, tb) = (self.alloc(Scope::Shared, a.dtype, &sa)?, self.alloc(Scope::Shared, b.dtype, &sb)?);
        let (a_by_k, k_by_b) = (a.axes[1] == Axis::K, b.axes[0] == Axis::K);
        let (rows, columns) = (sa[usize::from(!a_by_k)], sb[usize::from(k_by_b)]);
        let acc = self.accumulator(a.dtype, &[rows, columns], start)?;
        let steps = self.b.index(self.k_steps as i64);
        let k = self.b.begin_for(LoopKind::Pipelined { stages: u32::from(stages) }, &[steps])[0];
        for (input, t) in [(&a, &ta), (&b, &tb)] {
            let offsets = self.offsets(input, k);
            let (src, dst) = (self.b.window(input.buffer, &offsets, &t.shape), self.whole(t));
            self.b.copy(src, dst);
        }
        let wa = if a_by_k { self.whole(&ta) } else { self.whole(&ta).transposed() };
        let wb = if k_by_b { self.whole(&tb) } else { self.whole(&tb).transposed() };
        let is_f32 = a.dtype == DType::F32 && b.dtype == DType::F32;
        let precision = if tf32 && is_f32 { GemmPrecision::Tf32 } else { GemmPrecision::Exact };
        let dst = self.whole(&acc);
        self.b.append(OpKind::Gemm { a: wa, b: wb, acc: dst, precision });
        self.b.close();
        Some(acc)
    }

    fn accumulator(&mut self, operand: DType, shape: &[usize], start: i8) -> Option<Tile> {
        let ty = if operand.is_float() { DType::F32 } else { DType::I32 };
        let acc = self.alloc(Scope::Fragment, ty, shape)?;
        self.fill(&acc, f64::from(start));
        Some(acc)
    }

    fn gather(&mut self, input: u8, shape: u8, index: &Expr, pad: i8) -> Option<Tile> {
        let input = pick(input, &self.inputs)?;
        let rows = self.shape(shape)[0];
        let list = self.alloc(Scope::Shared, DType::I32, &[rows])?;
        self.for_each(0, list.scope, &[rows], |s, at| {
            let v = s.expr(index, DType::I32, &Point { at, dst: None });
            // Somewhat beyond both ends of most tensors.
            let span = s.b.constant(Const::i32(20));
            let v = s.b.binary(BinaryOp::Rem, v, span);
            s.b.store(list.buffer, at, v);
        });
        let zero = self.b.index(0);
        let columns = self.extents(&input)[1];
        let offset = self.offsets(&input, zero)[1];
        let src = self.b.window(input.buffer, &[zero, offset], &[1, columns]);
        let t = self.alloc(Scope::Shared, input.dtype, &[rows, columns])?;
        let (index, dst) = (self.whole(&list), self.whole(&t));
        let pad = self.pad(&src, pad);
        self.b.append(OpKind::Gather { src, index, dst, pad });
        Some(t)
    }

    /// Rows in reverse order and shifted, so that some are skipped and all positions differ.
    fn scatter(&mut self, tile: u8, shift: i8) -> Option<Tile> {
        let from = pick(tile, &self.ranked())?;
        let rows = from.shape[0];
        let list = self.alloc(Scope::Shared, DType::I32, &[rows])?;
        let start = self.b.constant(Const::i32(rows as i32 - 1 + i32::from(shift)));
        self.for_each(0, list.scope, &[rows], |s, at| {
            let i = s.b.cast(at[0], DType::I32);
            let v = s.b.sub(start, i);
            s.b.store(list.buffer, at, v);
        });
        let t = self.alloc(Scope::Shared, from.dtype, &from.shape)?;
        self.fill(&t, 1.0);
        let (src, dst, index) = (self.whole(&from), self.whole(&t), self.whole(&list));
        self.b.append(OpKind::Scatter { src, dst, index });
        Some(t)
    }

    fn atomic(&mut self, op: u8, shape: u8, value: &Expr, global: bool) -> Option<Vec<Tile>> {
        use AtomicOp::*;
        // In any order: all updates of a counter are by one operation, and sums of floats are exact.
        let is_float = op >= 192 && !global;
        let ty = if is_float { DType::F32 } else { DType::I32 };
        let op = if global || is_float { Add } else { pick(op, &[Add, Min, Max, And, Or])? };
        let made = if global { None } else { Some(self.alloc(Scope::Shared, ty, &[COUNTERS])?) };
        let counters = made.as_ref().map_or(self.counters, |t| t.buffer);
        if let Some(t) = &made {
            self.fill(t, 7.0);
        }
        let shape = self.shape(shape);
        self.for_each(0, Scope::Shared, &shape, |s, at| {
            let v = s.expr(value, ty, &Point { at, dst: None });
            let v = s.small(v);
            let n = s.b.index(COUNTERS as i64);
            let which = s.b.binary(BinaryOp::Rem, at[0], n);
            s.b.atomic(op, counters, &[which], v);
        });
        Some(made.into_iter().collect())
    }

    /// Counts down in a local tile.
    fn run_while(&mut self, trips: u8, steps: &[Step]) -> Option<Vec<Tile>> {
        let counter = self.b.alloc(Scope::Local, DType::I32, &[]);
        let (zero, one) = (self.b.constant(Const::i32(0)), self.b.constant(Const::i32(1)));
        let start = self.b.constant(Const::i32(i32::from(trips)));
        self.b.store(counter, &[], start);
        let (before, body) = (self.b.func_mut().add_region(), self.b.func_mut().add_region());
        let outer = self.b.region();
        self.b.open(before);
        let left = self.b.load(counter, &[]);
        let cond = self.b.cmp(CmpOp::Gt, left, zero);
        self.b.close();
        self.b.open(body);
        self.nested(steps, trips);
        let left = self.b.load(counter, &[]);
        let less = self.b.sub(left, one);
        self.b.store(counter, &[], less);
        self.b.close();
        debug_assert_eq!(self.b.region(), outer);
        self.b.append(OpKind::While { before, cond, body });
        None
    }
}
