//! Walking a tile: each thread handles the elements that a layout gives it.
//!
//! A [`Part`] is a set of elements of a tile, some registers' worth for each thread. Sources and sinks move the elements
//! of a window at a part's places to and from registers, whatever memory the window is in. A fragment is accessed in its
//! own registers where the layouts agree on who holds what, and through a scratch tile in shared memory otherwise.

use super::dist::Dist;
use super::index::{self, Idx};
use super::view::{Coords, View};
use super::{Lowerer, Result};
use crate::ptx::simt::{Num, Val};
use smallvec::SmallVec;
use std::rc::Rc;
use zellige_ir::{Buffer, Const, Op, Window};

/// Elements of a tile, the same registers for every thread.
#[derive(Clone, Debug)]
pub struct Part {
    pub dist: Rc<Dist>,
    /// Contribution of the thread (and of enclosing loops over registers).
    pub thread: Coords,
    /// Registers of the layout.
    pub regs: Vec<usize>,
    /// Extents of the tile walked; elements outside are dead.
    pub shape: Coords,
}

/// Where the elements of a source window come from. A few live at a time, so their size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum Source {
    Memory {
        view: Box<View>,
        offsets: Coords,
        axes: SmallVec<[usize; 4]>,
    },
    /// Register of the fragment for each register of the part's layout.
    Registers {
        buffer: Buffer,
        map: Rc<Vec<Option<usize>>>,
    },
}

/// Where the elements of a destination window go.
#[derive(Clone, Debug)]
pub enum Sink {
    Memory {
        view: Box<View>,
        offsets: Coords,
        axes: SmallVec<[usize; 4]>,
    },
    Registers {
        buffer: Buffer,
        map: Rc<Vec<Option<usize>>>,
        /// True if threads without an element of the window may hold one of the fragment in the same register.
        partial: bool,
    },
    /// Into a scratch tile of the window's shape, from which the fragment's threads fetch their elements afterwards.
    Staged {
        scratch: Box<View>,
        window: Box<Window>,
    },
}

impl Part {
    /// Coordinates of register `reg` in the tile.
    pub fn coords(&self, reg: usize) -> Coords {
        self.thread.iter().zip(&self.dist.regs[reg]).map(|(t, &r)| t.shift(r as i64)).collect()
    }
}

impl Lowerer<'_> {
    /// The whole tile under a layout, all registers at once.
    pub(super) fn part(&mut self, dist: &Rc<Dist>) -> Part {
        let shape = dist.shape().iter().map(|&e| Idx::constant(e as i64)).collect();
        let thread = dist.thread_coords(&mut self.b, self.tid);
        Part { dist: dist.clone(), thread, regs: (0..dist.regs.len()).collect(), shape }
    }

    /// True where the register holds an element of the tile; `None` if always.
    pub(super) fn live(&mut self, part: &Part, reg: usize) -> Option<Val> {
        let mut guard = None;
        for (x, &e) in part.coords(reg).into_iter().zip(&part.shape) {
            let inside = index::in_bounds(&mut self.b, x, e);
            guard = self.b.and_guard(guard, inside);
        }
        guard
    }

    /// Runs `f` on parts of at most `limit` registers that together are the tile; loops where there are several.
    pub(super) fn for_parts(
        &mut self,
        dist: &Rc<Dist>,
        limit: usize,
        f: &mut dyn FnMut(&mut Self, &Part) -> Result,
    ) -> Result {
        let whole = self.part(dist);
        let n = whole.regs.len();
        let inner = (1..=limit.max(1).min(n)).rev().find(|&d| splits_at(dist, d)).unwrap_or(1);
        if inner == n {
            return f(self, &whole);
        }
        let digits = outer_digits(dist, inner);
        self.part_loops(&whole, inner, &digits, f)
    }

    fn part_loops(
        &mut self,
        part: &Part,
        inner: usize,
        digits: &[(usize, SmallVec<[usize; 4]>)],
        f: &mut dyn FnMut(&mut Self, &Part) -> Result,
    ) -> Result {
        let Some(((radix, step), rest)) = digits.split_last() else {
            let part = Part { regs: (0..inner).collect(), ..part.clone() };
            return f(self, &part);
        };
        self.flush();
        let ty = crate::ptx::simt::Ty::B32;
        let v = self.b.begin_for(ty);
        let i = Idx::new(v, 0, *radix as i64 - 1, 1);
        let mut thread = part.thread.clone();
        for (t, &s) in thread.iter_mut().zip(step) {
            let by = index::mul(&mut self.b, i, Idx::constant(s as i64));
            *t = index::add(&mut self.b, *t, by);
        }
        let inside = Part { thread, ..part.clone() };
        let r = self.part_loops(&inside, inner, rest, f);
        self.flush();
        let (lo, hi, one) = (self.b.c32(0), self.b.c32(*radix as i64), self.b.c32(1));
        self.b.end_for(v, lo, hi, one, true);
        r
    }

    // ---- windows ---------------------------------------------------------------------------------------------

    pub(super) fn offsets(&mut self, op: Op, w: &Window) -> Result<Coords> {
        w.offsets.iter().map(|&v| self.idx(op, v, None)).collect()
    }

    fn axes(w: &Window) -> SmallVec<[usize; 4]> {
        w.axes.iter().map(|a| usize::from(a.axis)).collect()
    }

    /// Register of a fragment for each register of `dist`, if every thread holds in both the same elements of the
    /// window.
    pub(super) fn direct(&mut self, op: Op, w: &Window, dist: &Dist) -> Result<Option<Vec<Option<usize>>>> {
        let Some(frag) = self.dist_of(w.buffer) else { return Ok(None) };
        let mut offsets: SmallVec<[usize; 4]> = SmallVec::new();
        for x in self.offsets(op, w)? {
            match x.as_const().map(usize::try_from) {
                Some(Ok(c)) => offsets.push(c),
                Some(Err(_)) | None => return Ok(None),
            }
        }
        let axes = Self::axes(w);
        let named = axes.iter().enumerate().all(|(j, &a)| dist.same_threads(j, &frag, a));
        let unnamed = (0..frag.rank()).all(|a| axes.contains(&a) || frag.threads[a].is_empty());
        if !named || !unnamed {
            return Ok(None);
        }
        let shape = w.shape();
        let mut map = Vec::with_capacity(dist.regs.len());
        for coord in &dist.regs {
            // Dead for every thread?
            if coord.iter().zip(&shape).any(|(&c, &e)| c >= e) {
                map.push(None);
                continue;
            }
            let mut at = offsets.clone();
            for (j, &a) in axes.iter().enumerate() {
                at[a] += coord[j];
            }
            match frag.reg(&at) {
                Some(r) => map.push(Some(r)),
                None => return Ok(None),
            }
        }
        Ok(Some(map))
    }

    /// Prepares reading a window at the places of `dist`. May add a phase that writes a fragment to scratch.
    pub(super) fn source(&mut self, op: Op, w: &Window, dist: &Rc<Dist>) -> Result<Source> {
        if let Some(map) = self.direct(op, w, dist)? {
            return Ok(Source::Registers { buffer: w.buffer, map: Rc::new(map) });
        }
        let view = self.readable(op, w.buffer)?;
        let offsets = self.offsets(op, w)?;
        Ok(Source::Memory { view: Box::new(view), offsets, axes: Self::axes(w) })
    }

    /// A memory image of a buffer for reading: itself, or a copy of its registers in scratch (a phase of its own).
    pub(super) fn readable(&mut self, op: Op, buffer: Buffer) -> Result<View> {
        self.place(op, buffer)?;
        if let Some(view) = self.memory(buffer) {
            return Ok(view);
        }
        let Some(dist) = self.dist_of(buffer) else {
            return self.malformed(op, format!("{} belongs to an iteration", self.name(buffer)));
        };
        let what = format!("{} of {}", self.func.ops[op].kind.name(), self.name(buffer));
        let dtype = self.dtype(buffer);
        let view = self.scratch(&what, dtype, dist.shape());
        self.b.phase(format!("spread {} for {}", self.name(buffer), self.func.ops[op].kind.name()));
        self.spread(buffer, &dist, &view);
        Ok(view)
    }

    /// Stores a fragment to a tile of its shape.
    pub(super) fn spread(&mut self, buffer: Buffer, dist: &Rc<Dist>, view: &View) {
        let part = self.part(dist);
        let primary = dist.primary(&mut self.b, self.tid);
        let mut at = Vec::new();
        let mut guards = Vec::new();
        let mut vals = Vec::new();
        for &r in &part.regs {
            let live = self.live(&part, r);
            guards.push(self.b.and_guard(live, primary));
            at.push(part.coords(r));
            vals.push(self.get_reg(buffer, r));
        }
        view.store(&mut self.b, &at, &guards, &vals);
    }

    /// Loads a fragment from a tile of its shape.
    pub(super) fn collect(&mut self, buffer: Buffer, dist: &Rc<Dist>, view: &View) {
        let part = self.part(dist);
        let mut at = Vec::new();
        let mut guards = Vec::new();
        for &r in &part.regs {
            guards.push(self.live(&part, r));
            at.push(part.coords(r));
        }
        let vals = view.load(&mut self.b, &at, &guards);
        for (&r, v) in part.regs.iter().zip(vals) {
            self.set_reg(buffer, r, v);
        }
    }

    /// Prepares writing a window at the places of `dist`.
    pub(super) fn sink(&mut self, op: Op, w: &Window, dist: &Rc<Dist>) -> Result<Sink> {
        self.place(op, w.buffer)?;
        if let Some(map) = self.direct(op, w, dist)? {
            let partial = !w.covers_whole_buffer(self.func);
            return Ok(Sink::Registers { buffer: w.buffer, map: Rc::new(map), partial });
        }
        if let Some(view) = self.memory(w.buffer) {
            let offsets = self.offsets(op, w)?;
            return Ok(Sink::Memory { view: Box::new(view), offsets, axes: Self::axes(w) });
        }
        let what = format!("{} of {}", self.func.ops[op].kind.name(), self.name(w.buffer));
        let dtype = self.dtype(w.buffer);
        let scratch = Box::new(self.scratch(&what, dtype, &w.shape()));
        Ok(Sink::Staged { scratch, window: Box::new(w.clone()) })
    }

    /// Elements of a source at the part's registers; `pad` outside a tensor.
    pub(super) fn load_part(&mut self, source: &Source, part: &Part, pad: Const) -> Vec<Val> {
        match source {
            Source::Registers { buffer, map } => {
                let zero = self.constant_reg(pad);
                part.regs.iter().map(|&r| map[r].map_or(zero, |m| self.get_reg(*buffer, m))).collect()
            }
            Source::Memory { view, offsets, axes } => {
                let (at, guards) = self.places_of(view, offsets, axes, part);
                let vals = view.load(&mut self.b, &at, &guards);
                self.pad(vals, &guards, pad)
            }
        }
    }

    /// As [`Lowerer::load_part`] of elements that the part's primary threads are about to replace in the same phase: only
    /// they read memory.
    pub(super) fn load_primary(&mut self, source: &Source, part: &Part, pad: Const) -> Vec<Val> {
        match source {
            Source::Registers { .. } => self.load_part(source, part, pad),
            Source::Memory { view, offsets, axes } => {
                let (at, guards) = self.places_of(view, offsets, axes, part);
                let primary = part.dist.primary(&mut self.b, self.tid);
                let guards: Vec<Option<Val>> = guards.into_iter().map(|g| self.b.and_guard(g, primary)).collect();
                view.load(&mut self.b, &at, &guards)
            }
        }
    }

    /// Replaces elements whose guard is false (they were loaded as zero).
    pub(super) fn pad(&mut self, vals: Vec<Val>, guards: &[Option<Val>], pad: Const) -> Vec<Val> {
        if pad.bits() == 0 {
            return vals;
        }
        let pad = self.constant_reg(pad);
        vals.into_iter()
            .zip(guards)
            .map(|(v, g)| match g {
                Some(g) => self.b.selp(*g, v, pad),
                None => v,
            })
            .collect()
    }

    /// Buffer coordinates of a part's registers in a window, and whether they exist.
    pub(super) fn places_of(
        &mut self,
        view: &View,
        offsets: &Coords,
        axes: &[usize],
        part: &Part,
    ) -> (Vec<Coords>, Vec<Option<Val>>) {
        // The window's origin and the thread's contribution are added first, so that registers differ by constants.
        let mut origin = offsets.clone();
        for (j, &a) in axes.iter().enumerate() {
            origin[a] = index::add(&mut self.b, origin[a], part.thread[j]);
        }
        let mut at = Vec::with_capacity(part.regs.len());
        let mut guards = Vec::with_capacity(part.regs.len());
        for &r in &part.regs {
            let mut c = origin.clone();
            for (j, &a) in axes.iter().enumerate() {
                c[a] = c[a].shift(part.dist.regs[r][j] as i64);
            }
            let inside = view.guard(&mut self.b, &c);
            let live = self.live(part, r);
            guards.push(self.b.and_guard(inside, live));
            at.push(c);
        }
        (at, guards)
    }

    /// Writes elements (of the destination's type) at the part's registers.
    pub(super) fn store_part(&mut self, sink: &Sink, part: &Part, vals: &[Val]) {
        match sink {
            Sink::Registers { buffer, map, partial } => {
                for (&r, &v) in part.regs.iter().zip(vals) {
                    let Some(m) = map[r] else { continue };
                    let live = if *partial { self.live(part, r) } else { None };
                    let v = match live {
                        Some(live) => {
                            let old = self.get_reg(*buffer, m);
                            self.b.selp(live, v, old)
                        }
                        None => v,
                    };
                    self.set_reg(*buffer, m, v);
                }
            }
            Sink::Memory { view, offsets, axes } => {
                let (at, guards) = self.places_of(view, offsets, axes, part);
                self.store_primary(view, part, at, guards, vals);
            }
            Sink::Staged { scratch, window } => {
                let axes: SmallVec<[usize; 4]> = (0..window.rank()).collect();
                let zero: Coords = axes.iter().map(|_| Idx::constant(0)).collect();
                let (at, guards) = self.places_of(scratch, &zero, &axes, part);
                self.store_primary(scratch, part, at, guards, vals);
            }
        }
    }

    fn store_primary(&mut self, view: &View, part: &Part, at: Vec<Coords>, guards: Vec<Option<Val>>, vals: &[Val]) {
        let primary = part.dist.primary(&mut self.b, self.tid);
        let guards: Vec<Option<Val>> = guards.into_iter().map(|g| self.b.and_guard(g, primary)).collect();
        view.store(&mut self.b, &at, &guards, vals);
    }

    /// Ends writing: what was staged is fetched by its owners (a phase of its own).
    pub(super) fn finish(&mut self, op: Op, sink: Sink) -> Result {
        let Sink::Staged { scratch, window } = sink else { return Ok(()) };
        let Some(dist) = self.dist_of(window.buffer) else {
            return self.malformed(op, "a staged window is a fragment's");
        };
        self.b.phase(format!("fetch {} after {}", self.name(window.buffer), self.func.ops[op].kind.name()));
        if window.covers_whole_buffer(self.func) && Self::axes(&window).iter().copied().eq(0..dist.rank()) {
            self.collect(window.buffer, &dist, &scratch);
            return Ok(());
        }
        let offsets = self.offsets(op, &window)?;
        let part = self.part(&dist);
        for &r in &part.regs {
            let coords = part.coords(r);
            let mut guard = self.live(&part, r);
            let mut at: Coords = SmallVec::from_elem(Idx::constant(0), window.rank());
            for a in 0..dist.rank() {
                let d = index::sub(&mut self.b, coords[a], offsets[a]);
                let (extent, j) = match window.axes.iter().position(|x| usize::from(x.axis) == a) {
                    Some(j) => (window.axes[j].extent, Some(j)),
                    None => (1, None),
                };
                let inside = index::in_bounds(&mut self.b, d, Idx::constant(extent as i64));
                guard = self.b.and_guard(guard, inside);
                if let Some(j) = j {
                    at[j] = d;
                }
            }
            if guard.is_some_and(|g| self.b.as_const(g) == Some(0)) {
                continue;
            }
            let v = scratch.load(&mut self.b, &[at], &[guard])[0];
            let v = match guard {
                Some(g) => {
                    let old = self.get_reg(window.buffer, r);
                    self.b.selp(g, v, old)
                }
                None => v,
            };
            self.set_reg(window.buffer, r, v);
        }
        Ok(())
    }

    /// True if the block's first thread.
    pub(super) fn first_thread(&mut self) -> Val {
        let zero = self.b.c32(0);
        let tid = index::to_reg(&mut self.b, self.tid);
        self.b.setp(crate::ptx::simt::Cmp::Eq, Num::S32, tid, zero)
    }

    /// The layout of a buffer's registers if the window is the whole buffer in its own axis order.
    pub(super) fn whole_dist(&self, w: &Window) -> Option<Rc<Dist>> {
        let dist = self.dist_of(w.buffer)?;
        let in_order = Self::axes(w).iter().copied().eq(0..dist.rank());
        (in_order && w.covers_whole_buffer(self.func)).then_some(dist)
    }

    /// As [`Lowerer::whole_dist`] of a window with the axes in any order: the layout of the window.
    pub(super) fn turned_dist(&self, w: &Window) -> Option<Rc<Dist>> {
        let dist = self.dist_of(w.buffer)?;
        let axes = Self::axes(w);
        if !w.covers_whole_buffer(self.func) || axes.len() != dist.rank() {
            return None;
        }
        let layout = dist.layout.permute(&axes).ok()?;
        Some(Rc::new(Dist::new(layout)))
    }

    /// A layout for walking a window of memory: coalesced along the axis that is contiguous there, `bits` wide elements.
    pub(super) fn walk_dist(&mut self, w: &Window, bits: usize) -> Result<Rc<Dist>> {
        let shape = w.shape();
        let rank = shape.len();
        if rank == 0 {
            return self.blocked(&[], 1);
        }
        let last = self.func.buffers[w.buffer].rank() - 1;
        let contiguous = Self::axes(w).iter().position(|&a| a == last).unwrap_or(rank - 1);
        let mut vector = (128 / bits).max(1);
        // Fewer elements a thread rather than idle threads.
        let total: usize = shape.iter().product();
        while vector > 1 && total / vector < self.func.threads {
            vector /= 2;
        }
        if bits < 8 {
            vector = vector.max(8 / bits);
        }
        if contiguous == rank - 1 {
            return self.blocked(&shape, vector);
        }
        let mut order: Vec<usize> = (0..rank).filter(|&a| a != contiguous).collect();
        order.push(contiguous);
        let permuted: Vec<usize> = order.iter().map(|&a| shape[a]).collect();
        let dist = self.blocked(&permuted, vector)?;
        let back: Vec<usize> = (0..rank).map(|a| order.iter().position(|&o| o == a).unwrap_or(a)).collect();
        let layout = dist.layout.permute(&back).map_err(|e| self.layout_error("no layout for this tile", e))?;
        Ok(Rc::new(Dist::new(layout)))
    }
}

/// True if the first `n` registers are a complete set of low digits.
fn splits_at(dist: &Dist, n: usize) -> bool {
    dist.regs.len().is_multiple_of(n) && {
        let mut product = 1;
        for basis in dist.layout.map().bases(0) {
            if product == n {
                return true;
            }
            product *= basis.radix;
        }
        product == n
    }
}

/// Register digits above the first `inner` registers: radix, and what a step contributes to each coordinate.
fn outer_digits(dist: &Dist, inner: usize) -> Vec<(usize, SmallVec<[usize; 4]>)> {
    let mut digits: Vec<(usize, SmallVec<[usize; 4]>)> = Vec::new();
    let mut product = 1;
    for basis in dist.layout.map().bases(0) {
        if product >= inner {
            match digits.last_mut() {
                Some((radix, step)) if step.iter().map(|s| s * *radix).eq(basis.image.iter().copied()) => {
                    *radix *= basis.radix;
                }
                _ => digits.push((basis.radix, basis.image.iter().copied().collect())),
            }
        }
        product *= basis.radix;
    }
    digits
}
