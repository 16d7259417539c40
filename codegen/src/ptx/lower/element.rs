//! Single elements read and written by the block: every thread reads, one writes.

use super::index::{self, Idx};
use super::place::Place;
use super::value::Scalar;
use super::view::Coords;
use super::{Lowerer, Result};
use crate::ptx::simt::Val;
use zellige_ir::{Buffer, CmpOp, Def, Indices, Op, Value};

impl Lowerer<'_> {
    pub(super) fn indices(&mut self, op: Op, indices: &Indices, lane: Option<usize>) -> Result<Coords> {
        indices.iter().map(|&v| self.idx(op, v, lane)).collect()
    }

    pub(super) fn load_scalar(&mut self, op: Op, out: Def, buffer: Buffer, indices: &Indices) -> Result {
        let at = self.indices(op, indices, None)?;
        self.place(op, buffer)?;
        let v = match self.replicated_reg(buffer, &at) {
            Some(r) => self.get_reg(buffer, r),
            None if self.is_replicated(buffer) => self.pick(buffer, &at),
            None => {
                let view = self.readable(op, buffer)?;
                self.b.phase("load");
                let guard = view.guard(&mut self.b, &at);
                view.load(&mut self.b, &[at], &[guard])[0]
            }
        };
        self.set(out.0, None, Scalar::Reg(v));
        Ok(())
    }

    pub(super) fn store_scalar(&mut self, op: Op, buffer: Buffer, indices: &Indices, value: Value) -> Result {
        let at = self.indices(op, indices, None)?;
        let v = self.reg(op, value, None)?;
        self.place(op, buffer)?;
        if let Some(r) = self.replicated_reg(buffer, &at) {
            self.set_reg(buffer, r, v);
            return Ok(());
        }
        if let Some(view) = self.memory(buffer) {
            self.b.phase("store");
            let inside = view.guard(&mut self.b, &at);
            let first = self.first_thread();
            let guard = self.b.and_guard(inside, Some(first));
            view.store(&mut self.b, &[at], &[guard], &[v]);
            return Ok(());
        }
        // Whoever holds the element takes the value.
        let Some(dist) = self.dist_of(buffer) else {
            return self.malformed(op, "the buffer belongs to an iteration");
        };
        let part = self.part(&dist);
        for &r in &part.regs {
            let mut here: Option<Val> = None;
            for (c, &x) in part.coords(r).into_iter().zip(&at) {
                let same = index::compare(&mut self.b, CmpOp::Eq, c, x);
                here = self.b.and_guard(here, Some(same));
            }
            match here {
                Some(g) if self.b.as_const(g) == Some(0) => {}
                Some(g) => {
                    let old = self.get_reg(buffer, r);
                    let new = self.b.selp(g, v, old);
                    self.set_reg(buffer, r, new);
                }
                None => self.set_reg(buffer, r, v),
            }
        }
        Ok(())
    }

    /// True if every thread holds all of a buffer.
    pub(super) fn is_replicated(&self, buffer: Buffer) -> bool {
        self.dist_of(buffer).is_some_and(|d| d.threads.iter().all(|t| t.is_empty()))
    }

    /// The register that holds an element in every thread, if there is one and the position is known.
    fn replicated_reg(&self, buffer: Buffer, at: &Coords) -> Option<usize> {
        let dist = self.dist_of(buffer)?;
        if !dist.threads.iter().all(|t| t.is_empty()) {
            return None;
        }
        let coord: Option<Vec<usize>> = at.iter().map(|x| x.as_const().and_then(|c| usize::try_from(c).ok())).collect();
        dist.reg(&coord?)
    }

    /// The element at a position that is not known at compile time, of a buffer that every thread holds.
    fn pick(&mut self, buffer: Buffer, at: &Coords) -> Val {
        let Some(dist) = self.dist_of(buffer) else { unreachable!("the caller asked") };
        let mut v = self.get_reg(buffer, 0);
        for r in 1..dist.regs.len() {
            let here = self.is_at(&dist.regs[r].iter().map(|&c| c as i64).collect::<Vec<_>>(), at);
            let e = self.get_reg(buffer, r);
            v = self.b.selp(here, e, v);
        }
        v
    }

    /// True if the position equals `coord`.
    pub(super) fn is_at(&mut self, coord: &[i64], at: &Coords) -> Val {
        let mut here = self.b.pred(true);
        for (&c, &x) in coord.iter().zip(at) {
            let same = index::compare(&mut self.b, CmpOp::Eq, x, Idx::constant(c));
            here = self.b.and(here, same);
        }
        here
    }

    /// Registers private to an iteration: reads one element.
    pub(super) fn lane_get(&mut self, buffer: Buffer, lane: usize, at: &Coords) -> Val {
        let regs = self.lane_regs(buffer, lane, at);
        let mut v: Option<Val> = None;
        for (r, here) in regs {
            let e = match &mut self.places[zellige_ir::EntityId::index(buffer)] {
                Some(Place::PerLane(f)) => f[lane].get(&mut self.b, r),
                _ => unreachable!("the caller knows where the buffer is"),
            };
            v = Some(match (v, here) {
                (Some(old), Some(g)) => self.b.selp(g, e, old),
                _ => e,
            });
        }
        v.unwrap_or_else(|| self.b.zero(super::value::class(self.func.buffers[buffer].dtype)))
    }

    pub(super) fn lane_set(&mut self, buffer: Buffer, lane: usize, at: &Coords, x: Val) {
        for (r, here) in self.lane_regs(buffer, lane, at) {
            let Some(Place::PerLane(f)) = &mut self.places[zellige_ir::EntityId::index(buffer)] else { continue };
            let new = match here {
                Some(g) => {
                    let old = f[lane].get(&mut self.b, r);
                    self.b.selp(g, x, old)
                }
                None => x,
            };
            f[lane].set(r, new);
        }
    }

    /// Registers that may be meant, each with the condition that it is.
    fn lane_regs(&mut self, buffer: Buffer, lane: usize, at: &Coords) -> Vec<(usize, Option<Val>)> {
        let dist = match &self.places[zellige_ir::EntityId::index(buffer)] {
            Some(Place::PerLane(f)) => f[lane].dist.clone(),
            _ => return Vec::new(),
        };
        let known: Option<Vec<usize>> = at.iter().map(|x| x.as_const().and_then(|c| usize::try_from(c).ok())).collect();
        if let Some(c) = known {
            return dist.reg(&c).map(|r| (r, None)).into_iter().collect();
        }
        (0..dist.regs.len())
            .map(|r| {
                let here = self.is_at(&dist.regs[r].iter().map(|&c| c as i64).collect::<Vec<_>>(), at);
                (r, Some(here))
            })
            .collect()
    }
}
