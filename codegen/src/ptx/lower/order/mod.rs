//! `topk` and `sort`, by records that order elements and their positions.
//!
//! Few results of many lines are selected inside warps, everything else goes through a sorting network of the block. Both
//! say where the element of each rank stands in its line; elements are then fetched from there, bits unchanged.

mod network;
mod record;
mod select;

use super::index::{self, Idx};
use super::scan::window_point;
use super::view::{Coords, View};
use super::window::Source;
use super::{Lowerer, Result, cast};
use crate::ptx::simt::{Ty, Val};
use network::Network;
use record::Record;
use smallvec::SmallVec;
use zellige_ir::{Const, DType, Op, Window};

/// A window's elements in memory.
struct Tile {
    view: View,
    offsets: Coords,
    axes: SmallVec<[usize; 4]>,
}

impl Tile {
    /// A whole view.
    fn whole(view: View) -> Tile {
        let rank = view.extents.len();
        Tile { view, offsets: (0..rank).map(|_| Idx::constant(0)).collect(), axes: (0..rank).collect() }
    }

    /// Elements at points of the window; zero where the guard is false or outside a tensor.
    fn load(&self, l: &mut Lowerer<'_>, points: &[Coords], guards: &[Option<Val>]) -> Vec<Val> {
        let mut at = Vec::with_capacity(points.len());
        let mut all = Vec::with_capacity(points.len());
        for (point, &guard) in points.iter().zip(guards) {
            let mut c = self.offsets.clone();
            for (&axis, &x) in self.axes.iter().zip(point) {
                c[axis] = index::add(&mut l.b, c[axis], x);
            }
            let inside = self.view.guard(&mut l.b, &c);
            all.push(l.b.and_guard(inside, guard));
            at.push(c);
        }
        self.view.load(&mut l.b, &at, &all)
    }
}

/// Lines to be ordered, all along the last axis.
struct Lines<'a> {
    keys: &'a Tile,
    shape: &'a [usize],
    /// Lines, and elements of each.
    count: usize,
    n: usize,
    descending: bool,
    /// The op, for explanations.
    what: &'static str,
}

/// Takes line, rank, position (b32) of the element of this rank, and whether it exists.
type Found<'f, L> = dyn FnMut(&mut L, Idx, Idx, Val, Option<Val>) -> Result + 'f;

/// Where an op's results go.
struct Target<'w> {
    window: &'w Window,
    view: View,
    offsets: Coords,
    staged: Option<View>,
}

impl Lowerer<'_> {
    /// A row-major copy of a window in scratch (a phase of its own).
    pub(super) fn scratch_copy(&mut self, op: Op, w: &Window) -> Result<View> {
        let dtype = self.dtype(w.buffer);
        let dist = match self.whole_dist(w) {
            Some(d) => d,
            None => self.walk_dist(w, dtype.bits())?,
        };
        let source = self.source(op, w, &dist)?;
        let view = self.scratch(self.func.ops[op].kind.name(), dtype, &w.shape());
        self.b.phase(format!("spread for {}", self.func.ops[op].kind.name()));
        let axes: SmallVec<[usize; 4]> = (0..w.rank()).collect();
        let offsets: Coords = axes.iter().map(|_| Idx::constant(0)).collect();
        let sink = super::window::Sink::Memory { view: Box::new(view.clone()), offsets, axes };
        let max = if matches!(source, Source::Registers { .. }) { usize::MAX } else { 32 };
        self.for_parts(&dist, max, &mut |l, part| {
            let vals = l.load_part(&source, part, Const::zero(dtype));
            l.store_part(&sink, part, &vals);
            Ok(())
        })?;
        Ok(view)
    }

    pub(super) fn topk(&mut self, op: Op, src: &Window, values: &Window, indices: &Window, largest: bool) -> Result {
        let shape = src.shape();
        let (Some(&n), Some(&k)) = (shape.last(), values.shape().last()) else {
            return self.malformed(op, "a window without axes");
        };
        if k > n || values.shape() != indices.shape() || values.shape()[..shape.len() - 1] != shape[..shape.len() - 1] {
            return self.malformed(op, "the results do not fit the source");
        }
        if values.is_empty() {
            return Ok(());
        }
        let keys = if src.buffer == values.buffer || src.buffer == indices.buffer {
            Tile::whole(self.scratch_copy(op, src)?)
        } else {
            let axes = src.axes.iter().map(|a| usize::from(a.axis)).collect();
            Tile { view: self.readable(op, src.buffer)?, offsets: self.offsets(op, src)?, axes }
        };
        let targets = [self.target(op, values)?, self.target(op, indices)?];
        self.ordered(op, &keys, &shape, k, largest, &mut |l, line, rank, position, guard| {
            let from = l.line_point(&shape, shape.len() - 1, line, position_index(position, n));
            let place = l.line_point(&shape, shape.len() - 1, line, rank);
            let value = keys.load(l, &[from], &[guard])[0];
            for (target, (v, ty)) in targets.iter().zip([(value, keys.view.dtype), (position, DType::I32)]) {
                let v = cast::cast_all(&mut l.b, l.target, &[v], ty, target.view.dtype)[0];
                l.store_at(target, &place, guard, v);
            }
            Ok(())
        })?;
        targets.into_iter().try_for_each(|t| self.written_back(op, t.window, t.staged))
    }

    pub(super) fn sort(&mut self, op: Op, keys: &Window, payload: Option<&Window>, descending: bool) -> Result {
        let shape = keys.shape();
        let Some(&n) = shape.last() else {
            return self.malformed(op, "a window without axes");
        };
        if payload.is_some_and(|p| p.shape() != shape) {
            return self.malformed(op, "the payload has another shape");
        }
        if keys.is_empty() {
            return Ok(());
        }
        let mut moved = Vec::new();
        for w in [Some(keys), payload].into_iter().flatten() {
            moved.push((Tile::whole(self.scratch_copy(op, w)?), w));
        }
        let targets: Vec<Target<'_>> = moved.iter().map(|(_, w)| self.target(op, w)).collect::<Result<_>>()?;
        self.ordered(op, &moved[0].0, &shape, n, descending, &mut |l, line, rank, position, guard| {
            let from = l.line_point(&shape, shape.len() - 1, line, position_index(position, n));
            let place = l.line_point(&shape, shape.len() - 1, line, rank);
            for ((tile, _), target) in moved.iter().zip(&targets) {
                let v = tile.load(l, std::slice::from_ref(&from), &[guard])[0];
                l.store_at(target, &place, guard, v);
            }
            Ok(())
        })?;
        targets.into_iter().try_for_each(|t| self.written_back(op, t.window, t.staged))
    }

    fn target<'w>(&mut self, op: Op, window: &'w Window) -> Result<Target<'w>> {
        let (view, offsets, staged) = self.written(op, window)?;
        Ok(Target { window, view, offsets, staged })
    }

    fn store_at(&mut self, target: &Target<'_>, place: &Coords, live: Option<Val>, v: Val) {
        let c = window_point(&mut self.b, target.window, &target.offsets, place);
        let inside = target.view.guard(&mut self.b, &c);
        let guard = self.b.and_guard(inside, live);
        target.view.store(&mut self.b, &[c], &[guard], &[v]);
    }

    /// Calls `found` with the first `k` elements of each line.
    fn ordered(
        &mut self,
        op: Op,
        keys: &Tile,
        shape: &[usize],
        k: usize,
        descending: bool,
        found: &mut Found<'_, Self>,
    ) -> Result {
        if keys.view.dtype.is_storage_only() {
            return self.undefined(op, "an order", keys.view.dtype);
        }
        let n = shape[shape.len() - 1];
        let count = shape.iter().product::<usize>() / n;
        let lines = Lines { keys, shape, count, n, descending, what: self.func.ops[op].kind.name() };
        let threads = self.func.threads;
        let network = Network::new(threads, count, n);
        let wide = record::is_wide(keys.view.dtype);
        match select::plan(threads, count, n, k, wide, network.cycles(threads, count)) {
            Some(plan) => self.select_first(plan, &lines, k, found),
            None => self.network(network, &lines, k, found),
        }
    }

    /// The elements at some places of a line with guards that are false beyond its end and where `live` is.
    fn line_elements(
        &mut self,
        lines: &Lines<'_>,
        line: Idx,
        places: &[Idx],
        live: Option<Val>,
    ) -> Vec<(Val, Option<Val>)> {
        let end = Idx::constant(lines.n as i64);
        let points: Vec<Coords> =
            places.iter().map(|&p| self.line_point(lines.shape, lines.shape.len() - 1, line, p)).collect();
        let guards: Vec<Option<Val>> = places
            .iter()
            .map(|&p| {
                let inside = index::in_bounds(&mut self.b, p, end);
                self.b.and_guard(inside, live)
            })
            .collect();
        lines.keys.load(self, &points, &guards).into_iter().zip(guards).collect()
    }

    /// The records at some places of a line; beyond its end, or where `live` is false, what stands after all others.
    fn line_records(&mut self, lines: &Lines<'_>, line: Idx, places: &[Idx], live: Option<Val>) -> Vec<Record> {
        let ty = lines.keys.view.dtype;
        let last = self.last_record(ty);
        self.line_elements(lines, line, places, live)
            .into_iter()
            .zip(places)
            .map(|((x, guard), &place)| {
                let position = index::to_val(&mut self.b, place, Ty::B32);
                let record = self.record(ty, lines.descending, x, position);
                match guard {
                    Some(g) => self.select_record(g, &record, &last),
                    None => record,
                }
            })
            .collect()
    }
}

/// The position of an element that exists.
fn position_index(position: Val, n: usize) -> Idx {
    Idx::new(position, 0, n as i64 - 1, 1)
}
