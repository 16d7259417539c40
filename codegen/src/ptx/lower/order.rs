//! `topk` and `sort` by counting: an element's place is the number of elements that stand before it.
//!
//! Quadratic in the length of a line, but without data-dependent control flow; lines of a few thousand elements are
//! meant. Positions break ties, so places are distinct and the order is stable.

use super::dist::Dist;
use super::index::{self, Idx};
use super::scan::window_point;
use super::view::{Coords, View};
use super::window::{Part, Source};
use super::{Lowerer, Result, cast};
use crate::ptx::simt::{Num, Ty, Val};
use smallvec::SmallVec;
use std::rc::Rc;
use zellige_ir::{Const, DType, Op, Window};

/// Elements of a thread whose places are counted in one pass.
const MAX_COUNTED: usize = 8;

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
        let keys = self.scratch_copy(op, src)?;
        let (values_view, values_at, values_staged) = self.written(op, values)?;
        let (indices_view, indices_at, indices_staged) = self.written(op, indices)?;
        self.b.phase("topk");
        let ty = keys.dtype;
        let (to, index_ty) = (values_view.dtype, indices_view.dtype);
        self.ranked(op, &keys, &shape, largest, &mut |l, point, key, position, rank| {
            let kept = index::in_bounds(&mut l.b, rank, Idx::constant(k as i64));
            let mut place: Coords = point.clone();
            if let Some(last) = place.last_mut() {
                *last = rank;
            }
            let v = cast::cast_all(&mut l.b, l.target, &[key.0], ty, to)[0];
            l.store_ranked(values, &values_view, &values_at, &place, kept, key.1, v);
            let p = cast::cast_all(&mut l.b, l.target, &[position], DType::I32, index_ty)[0];
            l.store_ranked(indices, &indices_view, &indices_at, &place, kept, key.1, p);
        })?;
        self.written_back(op, values, values_staged)?;
        self.written_back(op, indices, indices_staged)
    }

    pub(super) fn sort(&mut self, op: Op, keys: &Window, payload: Option<&Window>, descending: bool) -> Result {
        let shape = keys.shape();
        if shape.is_empty() {
            return self.malformed(op, "a window without axes");
        }
        if payload.is_some_and(|p| p.shape() != shape) {
            return self.malformed(op, "the payload has another shape");
        }
        if keys.is_empty() {
            return Ok(());
        }
        let sorted = self.scratch_copy(op, keys)?;
        let carried = match payload {
            Some(p) => Some(self.scratch_copy(op, p)?),
            None => None,
        };
        let (keys_view, keys_at, keys_staged) = self.written(op, keys)?;
        let target = match payload {
            Some(p) => Some(self.written(op, p)?),
            None => None,
        };
        self.b.phase("sort");
        self.ranked(op, &sorted, &shape, descending, &mut |l, point, key, _, rank| {
            let mut place: Coords = point.clone();
            if let Some(last) = place.last_mut() {
                *last = rank;
            }
            l.store_ranked(keys, &keys_view, &keys_at, &place, None, key.1, key.0);
            if let (Some(from), Some((view, at, _)), Some(p)) = (&carried, &target, payload) {
                let v = from.load(&mut l.b, std::slice::from_ref(point), &[key.1])[0];
                l.store_ranked(p, view, at, &place, None, key.1, v);
            }
        })?;
        self.written_back(op, keys, keys_staged)?;
        if let (Some(p), Some((_, _, staged))) = (payload, target) {
            self.written_back(op, p, staged)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn store_ranked(
        &mut self,
        w: &Window,
        view: &View,
        offsets: &Coords,
        place: &Coords,
        kept: Option<Val>,
        live: Option<Val>,
        v: Val,
    ) {
        let c = window_point(&mut self.b, w, offsets, place);
        let inside = view.guard(&mut self.b, &c);
        let guard = self.b.and_guard(inside, kept);
        let guard = self.b.and_guard(guard, live);
        view.store(&mut self.b, &[c], &[guard], &[v]);
    }

    /// Calls `f` for every element of `keys` that this thread handles: its point, the key (and where it is one), its
    /// position in the line, and its place in the order.
    #[allow(clippy::type_complexity)]
    fn ranked(
        &mut self,
        op: Op,
        keys: &View,
        shape: &[usize],
        largest: bool,
        f: &mut dyn FnMut(&mut Self, &Coords, (Val, Option<Val>), Val, Idx),
    ) -> Result {
        if keys.dtype.is_storage_only() {
            return self.undefined(op, "an order", keys.dtype);
        }
        let dist: Rc<Dist> = self.blocked(shape, 1)?;
        let n = shape[shape.len() - 1] as i64;
        let primary = dist.primary(&mut self.b, self.tid);
        self.for_parts(&dist, MAX_COUNTED, &mut |l, part: &Part| {
            for regs in part.regs.chunks(MAX_COUNTED) {
                let points: Vec<Coords> = regs.iter().map(|&r| part.coords(r)).collect();
                let mut live = Vec::with_capacity(regs.len());
                for &r in regs {
                    let g = l.live(part, r);
                    live.push(l.b.and_guard(g, primary));
                }
                let raw = keys.load(&mut l.b, &points, &live);
                let mine: Vec<Val> = raw.iter().map(|&v| l.comparable(keys.dtype, v)).collect();
                let positions: Vec<Val> = points
                    .iter()
                    .map(|p| index::to_val(&mut l.b, p.last().copied().unwrap_or(Idx::constant(0)), Ty::B32))
                    .collect();
                let counts: Vec<_> = regs
                    .iter()
                    .map(|_| {
                        let var = l.b.new_var(Ty::B32);
                        let zero = l.b.c32(0);
                        l.b.set(var, zero);
                        var
                    })
                    .collect();
                let j = l.b.begin_for(Ty::B32);
                let other = Idx::new(j, 0, n - 1, 1);
                let at: Vec<Coords> = points
                    .iter()
                    .map(|p| {
                        let mut c = p.clone();
                        if let Some(last) = c.last_mut() {
                            *last = other;
                        }
                        c
                    })
                    .collect();
                let theirs = keys.load(&mut l.b, &at, &live);
                let j_val = index::to_val(&mut l.b, other, Ty::B32);
                for i in 0..regs.len() {
                    let their = l.comparable(keys.dtype, theirs[i]);
                    let before = l.precedes(keys.dtype, largest, (their, j_val), (mine[i], positions[i]));
                    let (one, zero) = (l.b.c32(1), l.b.c32(0));
                    let more = l.b.selp(before, one, zero);
                    let count = l.b.get(counts[i]);
                    let sum = l.b.add(Num::S32, count, more);
                    l.b.set(counts[i], sum);
                }
                let (lo, hi, one) = (l.b.c32(0), l.b.c32(n), l.b.c32(1));
                l.b.end_for(j, lo, hi, one, true);
                for i in 0..regs.len() {
                    let rank = l.b.get(counts[i]);
                    f(l, &points[i], (raw[i], live[i]), positions[i], Idx::new(rank, 0, n - 1, 1));
                }
            }
            Ok(())
        })
    }
}
