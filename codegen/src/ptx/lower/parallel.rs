//! Parallel loops: iterations are dealt out to threads, and those of one thread are lowered side by side.
//!
//! A loop that touches fragments follows their layout; any other is blocked for coalesced access. Going op by op over the
//! iterations of a thread (its *lanes*) lets neighbouring elements become vector accesses and keeps many loads in flight.

use super::accesses::{self, Access, Form};
use super::dist::Dist;
use super::index::{self, Idx};
use super::infer::{self, ParallelLoop};
use super::lanes::{BRANCH_LANES, LaneScalars, Lanes};
use super::place::Place;
use super::value::Scalar;
use super::view::Coords;
use super::window::Part;
use super::{Lowerer, Result};
use crate::ptx::simt::{SimtOp, Ty};
use std::rc::Rc;
use zellige_ir::{Buffer, EntityId, Op, OpKind, Region, Value};

/// Iterations of a thread that are lowered side by side.
const MAX_LANES: usize = 16;

impl Lowerer<'_> {
    pub(super) fn parallel(&mut self, op: Op, indices: &[Value], bounds: &[Idx], body: Region) -> Result {
        if bounds.iter().any(|b| b.hi <= 0) {
            return Ok(());
        }
        let accesses = accesses::loop_accesses(self.func, indices, body);
        let known: Option<Vec<usize>> =
            bounds.iter().map(|b| b.as_const().and_then(|n| usize::try_from(n).ok())).collect();
        let plan = match known {
            Some(extents) => {
                let l = ParallelLoop { op, extents, accesses: accesses.clone() };
                let chosen = infer::choose_loop_dist(self.func, &l, &|b| self.fragment_dist(b));
                let dist = match chosen {
                    Some((dist, _)) => dist,
                    None => self.blocked(&l.extents, infer::loop_vector(self.func, &l.extents, &accesses))?,
                };
                Some((l.extents, dist))
            }
            None => None,
        };
        let layout = plan.as_ref().map(|(e, d)| (&e[..], &**d));
        let updated = |b: Buffer| {
            accesses.iter().any(|a| a.write && a.buffer == b) && accesses.iter().any(|a| !a.write && a.buffer == b)
        };
        let mut in_place: Vec<Buffer> =
            accesses.iter().map(|a| a.buffer).filter(|&b| self.memory(b).is_some() && updated(b)).collect();
        // A fragment that is staged lies in memory during the loop.
        let staged = loop {
            let staged = self.staged_fragments(&accesses, body, &in_place, layout);
            let more: Vec<Buffer> =
                staged.iter().map(|s| s.0).filter(|b| updated(*b) && !in_place.contains(b)).collect();
            if more.is_empty() {
                break staged;
            }
            in_place.extend(more);
        };
        for (buffer, _) in &staged {
            self.explain.push(format!(
                "staging: {} passes through shared memory in the parallel loop at {}: an iteration needs elements that \
                 another thread holds",
                self.name(*buffer),
                self.span(op)
            ));
        }
        let in_place = Rc::new(in_place);
        let mut kept = Vec::new();
        for (buffer, written) in staged {
            let view = self.readable(op, buffer)?;
            let registers = self.places[buffer.index()].replace(Place::Memory(Box::new(view.clone())));
            kept.push((buffer, written, registers, view));
        }
        self.b.phase("parallel loop");
        match &plan {
            Some((_, dist)) => self.parallel_under(op, indices, bounds, dist, &accesses, &in_place, body)?,
            None => self.parallel_dynamic(op, indices, bounds, &accesses, body)?,
        }
        for (buffer, written, registers, view) in kept {
            self.places[buffer.index()] = registers;
            if written && let Some(dist) = self.dist_of(buffer) {
                self.b.phase(format!("fetch {} after a parallel loop", self.name(buffer)));
                self.collect(buffer, &dist, &view);
            }
        }
        Ok(())
    }

    /// The layout of a fragment that is not replicated everywhere.
    fn fragment_dist(&self, buffer: Buffer) -> Option<Rc<Dist>> {
        let is_fragment = self.func.buffers[buffer].scope == zellige_ir::Scope::Fragment;
        self.dist_of(buffer).filter(|_| is_fragment)
    }

    /// Fragments whose elements this loop cannot meet in the registers of the thread that asks, and whether they are
    /// written.
    fn staged_fragments(
        &self,
        accesses: &[Access],
        body: Region,
        in_place: &[Buffer],
        plan: Option<(&[usize], &Dist)>,
    ) -> Vec<(Buffer, bool)> {
        // A replica does not see the result of an atomic, or an element updated in place, that only the primary handles.
        let mut primary_only = !in_place.is_empty();
        self.walk_ops(body, &mut |_, kind| {
            if let OpKind::Atomic { out, .. } = kind {
                primary_only |= self.is_used(out.0);
            }
        });
        let replicas = plan.is_some_and(|(_, d)| !d.replicas.is_empty());
        let mut staged: Vec<(Buffer, bool)> = Vec::new();
        for access in accesses {
            let Some(frag) = self.dist_of(access.buffer) else { continue };
            let direct = plan.is_some_and(|(extents, dist)| meets(extents, dist, &frag, &access.forms));
            if direct && !(access.write && replicas && primary_only) {
                continue;
            }
            match staged.iter_mut().find(|(b, _)| *b == access.buffer) {
                Some((_, written)) => *written |= access.write,
                None => {
                    let written = accesses.iter().any(|a| a.buffer == access.buffer && a.write);
                    staged.push((access.buffer, written));
                }
            }
        }
        staged
    }

    #[allow(clippy::too_many_arguments)]
    fn parallel_under(
        &mut self,
        op: Op,
        indices: &[Value],
        bounds: &[Idx],
        dist: &Rc<Dist>,
        accesses: &[Access],
        in_place: &Rc<Vec<Buffer>>,
        body: Region,
    ) -> Result {
        let in_registers = accesses.iter().any(|a| self.dist_of(a.buffer).is_some());
        let limit = if in_registers { usize::MAX } else { MAX_LANES };
        let primary = dist.primary(&mut self.b, self.tid);
        // Replicas are there to keep registers alike. Without any to write, their reads would only race with the
        // primary's writes.
        let idle_replicas = !accesses.iter().any(|a| a.write && self.dist_of(a.buffer).is_some());
        let bounds: Coords = bounds.iter().copied().collect();
        // What is computed before a branch waits in registers until all before it are through. Accesses to memory are wide still.
        let branches = self.lanes_may_branch(body);
        let wide = !branches || accesses.iter().any(|a| self.memory(a.buffer).is_some());
        let together = (if branches { BRANCH_LANES } else { MAX_LANES }, if wide { dist.run(MAX_LANES) } else { 1 });
        self.for_parts(dist, limit, &mut |l, part| {
            let part = Part { shape: bounds.clone(), ..part.clone() };
            let group = together.1.max(together.0.min(part.regs.len()));
            for regs in part.regs.chunks(group) {
                let mut live = Vec::with_capacity(regs.len());
                for &r in regs {
                    let guard = l.live(&part, r);
                    live.push(if idle_replicas { l.b.and_guard(guard, primary) } else { guard });
                }
                if live.iter().all(|g| g.is_some_and(|g| l.b.as_const(g) == Some(0))) {
                    continue;
                }
                let coords: Vec<Coords> = regs.iter().map(|&r| part.coords(r)).collect();
                l.lanes_of(op, indices, &coords, Lanes::new(live, primary, in_place.clone()), body)?;
            }
            Ok(())
        })
    }

    /// Lowers the iterations at `coords`.
    fn lanes_of(&mut self, op: Op, indices: &[Value], coords: &[Coords], lanes: Lanes, body: Region) -> Result {
        let count = self.func.values.len();
        let own = coords.iter().map(|_| self.spare_lanes.pop().unwrap_or_else(|| LaneScalars::new(count))).collect();
        let outer = std::mem::replace(&mut self.lanes, own);
        for (lane, c) in coords.iter().enumerate() {
            for (&v, &x) in indices.iter().zip(c) {
                // A live iteration's index is below its bound, whatever the layout's padding.
                self.lanes[lane].set(v, Scalar::Idx(x));
            }
        }
        let r = self.lanes_body(op, body, lanes);
        let mut own = std::mem::replace(&mut self.lanes, outer);
        own.iter_mut().for_each(LaneScalars::clear);
        self.spare_lanes.append(&mut own);
        r
    }

    /// A loop whose extents are known only at launch: threads take runs of the linearised box in turn.
    fn parallel_dynamic(
        &mut self,
        op: Op,
        indices: &[Value],
        bounds: &[Idx],
        accesses: &[Access],
        body: Region,
    ) -> Result {
        self.flush();
        let Some((&inner, outer)) = bounds.split_last() else { return Ok(()) };
        let run = match inner.as_const() {
            Some(n) => {
                let wanted = infer::loop_vector(self.func, &[1 << 20], accesses) as i64;
                (0..).map(|s| wanted >> s).find(|v| n % v.max(&1) == 0).unwrap_or(1).max(1)
            }
            None => 1,
        };
        let b = &mut self.b;
        let runs = index::div(b, inner, Idx::constant(run));
        let mut total = runs;
        for &e in outer {
            let e = index::max(b, e, Idx::constant(0));
            total = index::mul(b, total, e);
        }
        let ty = if total.is_narrow() && total.hi < 1 << 30 { Ty::B32 } else { Ty::B64 };
        let [lo, hi, step] =
            [self.tid, total, Idx::constant(self.func.threads as i64)].map(|x| index::to_val(&mut self.b, x, ty));
        let v = self.b.begin_for(ty);
        let mut rest = Idx::new(v, 0, total.hi - 1, 1);
        let mut base: Coords = bounds.iter().map(|_| Idx::constant(0)).collect();
        for axis in (0..bounds.len()).rev() {
            let extent = if axis + 1 == bounds.len() { runs } else { bounds[axis] };
            let x = if axis == 0 { rest } else { index::rem(&mut self.b, rest, extent) };
            let x = if x.base.is_some() { Idx { lo: 0, hi: extent.hi - 1, ..x } } else { x };
            base[axis] = if axis + 1 == bounds.len() { index::mul(&mut self.b, x, Idx::constant(run)) } else { x };
            if axis > 0 {
                rest = index::div(&mut self.b, rest, extent);
            }
        }
        let coords: Vec<Coords> = (0..run)
            .map(|i| {
                let mut c = base.clone();
                if let Some(last) = c.last_mut() {
                    *last = last.shift(i);
                }
                c
            })
            .collect();
        let lanes = Lanes::new(vec![None; coords.len()], None, Rc::default());
        self.lanes_of(op, indices, &coords, lanes, body)?;
        self.flush();
        self.b.end_for(v, lo, hi, step, false);
        Ok(())
    }

    /// Runs `f` only where `guard` holds, as a branch.
    pub(super) fn branch_on(
        &mut self,
        guard: Option<crate::ptx::simt::Val>,
        f: &mut dyn FnMut(&mut Self) -> Result,
    ) -> Result {
        let Some(cond) = guard else { return f(self) };
        self.flush();
        let then_body = self.b.open(false);
        let r = f(self);
        self.flush();
        self.b.close();
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond, uniform: false, then_body, else_body });
        r
    }
}

/// True if, in a loop under `dist`, every thread finds the elements that its iterations access in its own registers.
fn meets(extents: &[usize], dist: &Dist, frag: &Dist, forms: &[Form]) -> bool {
    for (axis, form) in forms.iter().enumerate() {
        let fits = match *form {
            Form::Loop { dim, .. } => dist.same_threads(dim, frag, axis),
            Form::Const(_) => frag.threads[axis].is_empty(),
            Form::Other => false,
        };
        if !fits {
            return false;
        }
    }
    dist.regs.iter().all(|coord| {
        if coord.iter().zip(extents).any(|(&c, &e)| c >= e) {
            return true;
        }
        let at: Option<Vec<usize>> = forms
            .iter()
            .map(|form| match *form {
                Form::Loop { dim, off } => usize::try_from(coord[dim] as i64 + off).ok(),
                Form::Const(c) => usize::try_from(c).ok(),
                Form::Other => None,
            })
            .collect();
        at.is_some_and(|at| frag.reg(&at).is_some())
    })
}
