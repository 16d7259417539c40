//! `reduce`: registers of a thread, then shuffles inside the warp, then shared memory across warps.
//!
//! The order is fixed by the layout, so every run gives the same bits.

use super::dist::{Dist, ThreadDigit, thread_part};
use super::index::{self, Idx};
use super::value::{self, Scalar};
use super::view::{Coords, View};
use super::window::{Part, Source};
use super::{Lowerer, Result, cast, scalar};
use crate::ptx::simt::{Cmp, Num, ShflMode, Ty, Val};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::rc::Rc;
use zellige_ir::layout::{Coord, WARP};
use zellige_ir::{BinaryOp, Const, DType, Op, ReduceOp, UnaryOp, Window};

/// Elements along the reduced axis that a thread handles without a loop when they come from memory.
const MAX_UNROLLED: usize = 32;

/// What is carried along: a value, and for the positional reductions where it stands.
#[derive(Clone, Copy, Debug)]
struct Item {
    value: Val,
    position: Option<Val>,
}

/// A reduction with its types.
#[derive(Clone, Copy)]
struct Reduction {
    f: ReduceOp,
    /// Element type of the source.
    from: DType,
    /// Type of the values carried.
    ty: DType,
}

impl Reduction {
    fn is_positional(self) -> bool {
        matches!(self.f, ReduceOp::ArgMax | ReduceOp::ArgMin)
    }
}

/// Partial results by what the registers contribute to the remaining coordinates.
type Partials = BTreeMap<SmallVec<[usize; 4]>, Item>;

impl Lowerer<'_> {
    pub(super) fn reduce(
        &mut self,
        op: Op,
        f: ReduceOp,
        src: &Window,
        dst: &Window,
        axis: usize,
        accumulate: bool,
    ) -> Result {
        let mut want = src.shape();
        if axis >= want.len() {
            return self.malformed(op, format!("no axis {axis}"));
        }
        want.remove(axis);
        if want != dst.shape() {
            return self.malformed(op, "the destination has another shape");
        }
        if dst.is_empty() {
            return Ok(());
        }
        let from = self.dtype(src.buffer);
        let positional = matches!(f, ReduceOp::ArgMax | ReduceOp::ArgMin);
        let ty = if positional { from } else { self.dtype(dst.buffer).accumulator() };
        let r = Reduction { f, from, ty };
        if !positional && f.identity(ty).is_none() {
            return self.undefined(op, f.name(), ty);
        }
        let dist = match self.whole_dist(src) {
            Some(d) => d,
            None => self.walk_dist(src, from.bits())?,
        };
        let result_dist = Rc::new(match dist.layout.drop_dim(axis) {
            Ok(layout) => Dist::new(layout),
            Err(e) => return Err(self.layout_error("no layout for the result of a reduction", e)),
        });
        let source = self.source(op, src, &dist)?;
        // Warps leave their results in memory; a result that stays there is put together by one thread rather than by all.
        let across = warps_along(&dist, axis).iter().map(|d| d.radix).product::<usize>() > 1;
        let apart = across && !positional && self.memory(dst.buffer).is_some();
        let last_dist = if apart { self.walk_dist(dst, ty.bits())? } else { result_dist };
        let old = if accumulate { Some(self.source(op, dst, &last_dist)?) } else { None };
        let sink = self.sink(op, dst, &last_dist)?;
        self.b.phase("reduce");
        let mut partials = self.reduce_registers(op, r, &source, &dist, axis)?;
        self.reduce_lanes(op, r, &dist, axis, &mut partials)?;
        if across {
            let of_warps = self.share_partials(r, &dist, axis, &dst.shape(), &partials);
            if apart {
                let part = self.part(&last_dist);
                partials = part
                    .regs
                    .iter()
                    .map(|&reg| (last_dist.regs[reg].iter().copied().collect(), self.neutral(r)))
                    .collect();
                let at = part.regs.iter().map(|&reg| part.coords(reg)).collect();
                let live = part.regs.iter().map(|&reg| self.live(&part, reg)).collect();
                self.combine_warps(op, r, &WarpPartials { at, live, ..of_warps }, &mut partials)?;
            } else {
                self.combine_warps(op, r, &of_warps, &mut partials)?;
            }
        }

        let part = self.part(&last_dist);
        let zero = Const::zero(self.dtype(dst.buffer));
        let old = old.map(|o| self.load_primary(&o, &part, zero));
        let to = self.dtype(dst.buffer);
        let mut results = Vec::with_capacity(part.regs.len());
        for (i, &reg) in part.regs.iter().enumerate() {
            let key: SmallVec<[usize; 4]> = last_dist.regs[reg].iter().copied().collect();
            let Some(item) = partials.get(&key).copied() else {
                return self.malformed(op, "a result of a reduction has no place");
            };
            let mut v = item.position.unwrap_or(item.value);
            if let Some(old) = &old {
                let start = self.convert(old[i], to, ty);
                v = self
                    .combine(op, r, Item { value: start, position: None }, Item { value: v, position: None })?
                    .value;
            }
            if old.is_none() && f == ReduceOp::Sum && ty.is_float() {
                // A sum starts from +0, which shows if all elements are -0.
                let start = self.constant_reg(Const::zero(ty));
                v = self
                    .combine(op, r, Item { value: start, position: None }, Item { value: v, position: None })?
                    .value;
            }
            results.push(self.convert(v, if positional { DType::I32 } else { ty }, to));
        }
        if old.is_some() {
            // All replicas of a result read what it accumulates onto, before one of them writes it.
            self.b.phase("accumulate a reduction");
        }
        self.store_part(&sink, &part, &results);
        self.finish(op, sink)
    }

    fn convert(&mut self, v: Val, from: DType, to: DType) -> Val {
        cast::cast_all(&mut self.b, self.target, &[v], from, to)[0]
    }

    /// An element as it enters the reduction.
    fn enter(&mut self, op: Op, r: Reduction, v: Val, position: Option<Idx>) -> Result<Item> {
        if r.is_positional() {
            let p = position.map(|p| index::to_val(&mut self.b, p, Ty::B32));
            return Ok(Item { value: self.comparable(r.from, v), position: p });
        }
        let v = self.convert(v, r.from, r.ty);
        let value = if r.f == ReduceOp::AbsMax {
            match scalar::unary(&mut self.b, self.target, UnaryOp::Abs, r.ty, Scalar::Reg(v)) {
                Ok(Scalar::Reg(v)) => v,
                Ok(Scalar::Idx(_)) | Err(scalar::Undefined) => return self.undefined(op, "absmax", r.ty),
            }
        } else {
            v
        };
        Ok(Item { value, position: None })
    }

    /// An item that loses against every other.
    fn neutral(&mut self, r: Reduction) -> Item {
        if !r.is_positional() {
            let c = match r.f {
                // -0 changes no sum, +0 would change that of negative zeros.
                ReduceOp::Sum if r.ty.is_float() => Const::from_f64(r.ty, -0.0),
                f => f.identity(r.ty).unwrap_or(Const::zero(r.ty)),
            };
            return Item { value: self.constant_reg(c), position: None };
        }
        let worst = match r.from {
            DType::F16 | DType::BF16 | DType::F32 => self.b.f32(f32::NAN),
            DType::F64 => self.b.f64(f64::NAN),
            ty => {
                let end = if r.f == ReduceOp::ArgMax { f64::NEG_INFINITY } else { f64::INFINITY };
                let c = Const::from_f64(if ty == DType::Bool { DType::I32 } else { ty }, end);
                self.b.kernel.constant(if ty == DType::Bool { Ty::B32 } else { value::class(ty) }, value::bits(c))
            }
        };
        let last = self.b.c32(i64::from(i32::MAX));
        Item { value: worst, position: Some(last) }
    }

    fn combine(&mut self, op: Op, r: Reduction, x: Item, y: Item) -> Result<Item> {
        if let (Some(p), Some(q)) = (x.position, y.position) {
            let wins = self.precedes(r.from, r.f == ReduceOp::ArgMax, (y.value, q), (x.value, p));
            let value = self.b.selp(wins, y.value, x.value);
            let position = Some(self.b.selp(wins, q, p));
            return Ok(Item { value, position });
        }
        let f = match r.f {
            ReduceOp::Sum => BinaryOp::Add,
            ReduceOp::Max | ReduceOp::AbsMax => BinaryOp::Max,
            ReduceOp::Min => BinaryOp::Min,
            ReduceOp::And => BinaryOp::And,
            ReduceOp::Or => BinaryOp::Or,
            ReduceOp::Xor => BinaryOp::Xor,
            ReduceOp::ArgMax | ReduceOp::ArgMin => {
                return self.malformed(op, "positional reductions do not accumulate");
            }
        };
        let v = scalar::binary(&mut self.b, self.target, f, r.ty, Scalar::Reg(x.value), Scalar::Reg(y.value));
        match v {
            Ok(Scalar::Reg(value)) => Ok(Item { value, position: None }),
            Ok(Scalar::Idx(_)) | Err(scalar::Undefined) => self.undefined(op, r.f.name(), r.ty),
        }
    }

    /// Combines what each thread holds.
    fn reduce_registers(
        &mut self,
        op: Op,
        r: Reduction,
        source: &Source,
        dist: &Rc<Dist>,
        axis: usize,
    ) -> Result<Partials> {
        let along = dist.regs.iter().filter(|c| c.iter().enumerate().all(|(a, &x)| a == axis || x == 0)).count();
        if along <= MAX_UNROLLED || matches!(source, Source::Registers { .. }) {
            let part = self.part(dist);
            return self.reduce_part(op, r, source, &part, axis, &Partials::new());
        }
        // A loop over runs along the axis, with the partial results in variables.
        let digits: Vec<(usize, Coord)> = dist.layout.map().bases(0).into_iter().map(|b| (b.radix, b.image)).collect();
        let mut inner: Vec<usize> = vec![0];
        let mut steps: Vec<usize> = vec![0];
        let (mut weight, mut taken) = (1, 1);
        for (radix, image) in digits {
            let is_axis = image[axis] != 0;
            let list = if is_axis && taken * radix > MAX_UNROLLED { &mut steps } else { &mut inner };
            if is_axis {
                taken *= radix;
            }
            *list = (0..radix).flat_map(|d| list.iter().map(move |&x| x + d * weight)).collect();
            weight *= radix;
        }
        let step_coords: Vec<usize> = steps.iter().map(|&s| dist.regs[s][axis]).collect();
        let stride = step_coords.get(1).copied().unwrap_or(0);
        let regular = step_coords.iter().enumerate().all(|(i, &c)| c == i * stride);
        if !regular {
            let part = self.part(dist);
            return self.reduce_part(op, r, source, &part, axis, &Partials::new());
        }
        let whole = self.part(dist);
        let neutral = self.neutral(r);
        let keys: std::collections::BTreeSet<SmallVec<[usize; 4]>> =
            inner.iter().map(|&reg| rest(&dist.regs[reg], axis)).collect();
        let vars: Vec<_> = keys
            .iter()
            .map(|k| {
                let ty = self.b.ty(neutral.value);
                let v = self.b.new_var(ty);
                self.b.set(v, neutral.value);
                let p = neutral.position.map(|p| {
                    let var = self.b.new_var(Ty::B32);
                    self.b.set(var, p);
                    var
                });
                (k.clone(), v, p)
            })
            .collect();
        self.flush();
        let v = self.b.begin_for(Ty::B32);
        let i = Idx::new(v, 0, steps.len() as i64 - 1, 1);
        let by = index::mul(&mut self.b, i, Idx::constant(stride as i64));
        let mut thread = whole.thread.clone();
        thread[axis] = index::add(&mut self.b, thread[axis], by);
        let part = Part { thread, regs: inner, ..whole };
        let start: Partials = vars
            .iter()
            .map(|(k, v, p)| {
                let value = self.b.get(*v);
                let position = p.map(|p| self.b.get(p));
                (k.clone(), Item { value, position })
            })
            .collect();
        let sums = self.reduce_part(op, r, source, &part, axis, &start)?;
        for (k, v, p) in &vars {
            let item = sums[k];
            self.b.set(*v, item.value);
            if let (Some(p), Some(x)) = (p, item.position) {
                self.b.set(*p, x);
            }
        }
        let (lo, hi, one) = (self.b.c32(0), self.b.c32(steps.len() as i64), self.b.c32(1));
        self.b.end_for(v, lo, hi, one, true);
        Ok(vars
            .into_iter()
            .map(|(k, v, p)| {
                let value = self.b.get(v);
                let position = p.map(|p| self.b.get(p));
                (k, Item { value, position })
            })
            .collect())
    }

    fn reduce_part(
        &mut self,
        op: Op,
        r: Reduction,
        source: &Source,
        part: &Part,
        axis: usize,
        start: &Partials,
    ) -> Result<Partials> {
        let zero = Const::zero(r.from);
        let vals = self.load_part(source, part, zero);
        // Pairs first, so that the chain of dependent operations is short.
        let mut items: BTreeMap<SmallVec<[usize; 4]>, Vec<Item>> = BTreeMap::new();
        for (&reg, v) in part.regs.iter().zip(vals) {
            let at = part.coords(reg)[axis];
            let mut item = self.enter(op, r, v, Some(at))?;
            if let Some(live) = self.live(part, reg) {
                let none = self.neutral(r);
                item.value = self.b.selp(live, item.value, none.value);
                if let (Some(p), Some(n)) = (item.position, none.position) {
                    item.position = Some(self.b.selp(live, p, n));
                }
            }
            items.entry(rest(&part.dist.regs[reg], axis)).or_default().push(item);
        }
        let mut out = Partials::new();
        for (key, mut list) in items {
            while list.len() > 1 {
                let mut next = Vec::with_capacity(list.len().div_ceil(2));
                for pair in list.chunks(2) {
                    next.push(match pair {
                        [x, y] => self.combine(op, r, *x, *y)?,
                        _ => pair[0],
                    });
                }
                list = next;
            }
            let item = match start.get(&key) {
                Some(&s) => self.combine(op, r, s, list[0])?,
                None => list[0],
            };
            out.insert(key, item);
        }
        Ok(out)
    }

    /// Combines over the lanes that differ along the axis; all of them get the result.
    fn reduce_lanes(&mut self, op: Op, r: Reduction, dist: &Dist, axis: usize, partials: &mut Partials) -> Result {
        for d in dist.threads[axis].iter().filter(|d| d.div < WARP) {
            let end = (d.div * d.radix).min(WARP);
            let mut by = d.div;
            while by < end {
                let lane = self.b.c32(by as i64);
                for item in partials.values_mut() {
                    let value = self.shfl(ShflMode::Bfly, item.value, lane, 31);
                    let position = item.position.map(|p| self.shfl(ShflMode::Bfly, p, lane, 31));
                    *item = self.combine(op, r, *item, Item { value, position })?;
                }
                by *= 2;
            }
        }
        Ok(())
    }

    /// Puts the results of warps that differ along the axis where all threads can read them, and ends the phase.
    fn share_partials(
        &mut self,
        r: Reduction,
        dist: &Rc<Dist>,
        axis: usize,
        shape: &[usize],
        partials: &Partials,
    ) -> WarpPartials {
        let warps = warps_along(dist, axis);
        let count: usize = warps.iter().map(|d| d.radix).product();
        let mut full: SmallVec<[usize; 4]> = SmallVec::from_slice(&[count]);
        full.extend(shape.iter().copied());
        let carried = if r.is_positional() && r.from == DType::Bool { DType::I32 } else { r.ty.accumulator() };
        let values = self.scratch("reduce", carried, &full);
        let positions = r.is_positional().then(|| self.scratch("reduce", DType::I32, &full));
        // The warps' digits as one number.
        let mut weight = 1;
        let mut number = Idx::constant(0);
        for d in &warps {
            let digit = thread_part(&mut self.b, self.tid, &[ThreadDigit { stride: weight, ..*d }]);
            number = index::add(&mut self.b, number, digit);
            weight *= d.radix;
        }
        // One lane of those that hold the same partial result writes it.
        let mut guard = dist.primary(&mut self.b, self.tid);
        for d in dist.threads[axis].iter().filter(|d| d.div < WARP) {
            let radix = d.radix.min(WARP / d.div);
            let digit = thread_part(&mut self.b, self.tid, &[ThreadDigit { radix, stride: 1, ..*d }]);
            let v = index::to_val(&mut self.b, digit, Ty::B32);
            let zero = self.b.c32(0);
            let first = self.b.setp(Cmp::Eq, Num::S32, v, zero);
            guard = self.b.and_guard(guard, Some(first));
        }
        let thread = dist.thread_coords(&mut self.b, self.tid);
        let others: Vec<usize> = (0..dist.rank()).filter(|&a| a != axis).collect();
        let (mut at, mut live) = (Vec::new(), Vec::new());
        for key in partials.keys() {
            let mut c = Coords::new();
            let mut all_inside = None;
            for (j, &a) in others.iter().enumerate() {
                let x = thread[a].shift(key[j] as i64);
                let inside = index::in_bounds(&mut self.b, x, Idx::constant(shape[j] as i64));
                all_inside = self.b.and_guard(all_inside, inside);
                c.push(x);
            }
            at.push(c);
            live.push(all_inside);
        }
        let own: Vec<Coords> = at.iter().map(|c| with_warp(number, c)).collect();
        let guards: Vec<Option<Val>> = live.iter().map(|&live| self.b.and_guard(guard, live)).collect();
        let vals: Vec<Val> = partials.values().map(|i| i.value).collect();
        values.store(&mut self.b, &own, &guards, &vals);
        if let Some(view) = &positions {
            let vals: Vec<Val> = partials.values().filter_map(|i| i.position).collect();
            view.store(&mut self.b, &own, &guards, &vals);
        }
        self.b.phase("reduce across warps");
        WarpPartials { count, values, positions, at, live }
    }

    /// Combines over the warps what is at some places, one for each of `results`.
    fn combine_warps(&mut self, op: Op, r: Reduction, warps: &WarpPartials, results: &mut Partials) -> Result {
        let mut sums: Vec<Option<Item>> = vec![None; results.len()];
        for w in 0..warps.count {
            let at: Vec<Coords> = warps.at.iter().map(|c| with_warp(Idx::constant(w as i64), c)).collect();
            let vals = warps.values.load(&mut self.b, &at, &warps.live);
            let places = warps.positions.as_ref().map(|view| view.load(&mut self.b, &at, &warps.live));
            for (i, &value) in vals.iter().enumerate() {
                let item = Item { value, position: places.as_ref().map(|p| p[i]) };
                sums[i] = Some(match sums[i] {
                    Some(s) => self.combine(op, r, s, item)?,
                    None => item,
                });
            }
        }
        for (item, sum) in results.values_mut().zip(sums) {
            if let Some(s) = sum {
                *item = s;
            }
        }
        Ok(())
    }
}

/// What the warps that differ along the axis of a reduction have found, in shared memory.
struct WarpPartials {
    count: usize,
    /// [count, shape of the result].
    values: View,
    positions: Option<View>,
    /// Places in the result at which they are combined.
    at: Vec<Coords>,
    /// For each of them: is it in the result?
    live: Vec<Option<Val>>,
}

fn warps_along(dist: &Dist, axis: usize) -> Vec<ThreadDigit> {
    dist.threads[axis].iter().filter_map(|d| d.warps()).collect()
}

fn with_warp(warp: Idx, at: &Coords) -> Coords {
    std::iter::once(warp).chain(at.iter().copied()).collect()
}

/// A coordinate without one axis.
fn rest(c: &[usize], axis: usize) -> SmallVec<[usize; 4]> {
    c.iter().enumerate().filter(|(a, _)| *a != axis).map(|(_, &x)| x).collect()
}
