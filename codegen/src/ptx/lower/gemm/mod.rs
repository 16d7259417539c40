//! `gemm`: matrix instructions fed by `ldmatrix`, or multiply-adds where none fits.

mod fma;
mod mma;
mod operand;
pub mod plan;

use super::dist::Dist;
use super::frag::Fragment;
use super::place::Place;
use super::{Lowerer, Result, cast};
use plan::GemmPlan;
use std::rc::Rc;
use zellige_ir::{Const, EntityId, GemmPrecision, Op, Window};

impl Lowerer<'_> {
    pub(super) fn gemm(&mut self, op: Op, a: &Window, b: &Window, acc: &Window, precision: GemmPrecision) -> Result {
        let (sa, sb, sc) = (a.shape(), b.shape(), acc.shape());
        if sa.len() != 2 || sb.len() != 2 || sa[1] != sb[0] || sc[..] != [sa[0], sb[1]] {
            return self.malformed(op, format!("shapes {sa:?} by {sb:?} into {sc:?}"));
        }
        if acc.is_empty() || sa[1] == 0 {
            return Ok(());
        }
        let plan = plan::plan(self.func, self.target, a, b, acc, precision);
        let ty = self.dtype(acc.buffer).accumulator();
        let dist = match &plan {
            GemmPlan::Mma(p) => {
                let layout = p.acc().map_err(|e| self.layout_error("no layout for an accumulator", e))?;
                Rc::new(Dist::new(layout))
            }
            GemmPlan::Fma => match self.whole_dist(acc) {
                Some(d) => d,
                None => self.walk_dist(acc, ty.bits())?,
            },
        };
        // The accumulator in its own registers, or a copy of it.
        let own = ty == self.dtype(acc.buffer)
            && self.whole_dist(acc).is_some_and(|d| Rc::ptr_eq(&d, &dist) || d.layout == dist.layout);
        if own && let Some(Place::Registers(mut frag)) = self.places[acc.buffer.index()].take() {
            let r = self.gemm_into(op, &plan, a, b, &mut frag);
            self.places[acc.buffer.index()] = Some(Place::Registers(frag));
            return r;
        }
        let from = self.dtype(acc.buffer);
        let source = self.source(op, acc, &dist)?;
        let sink = self.sink(op, acc, &dist)?;
        self.b.phase("load a gemm's accumulator");
        let part = self.part(&dist);
        let vals = self.load_part(&source, &part, Const::zero(from));
        let vals = cast::cast_all(&mut self.b, self.target, &vals, from, ty);
        let mut frag = Fragment::new(&mut self.b, ty, dist.clone());
        for (&r, v) in part.regs.iter().zip(vals) {
            frag.set(r, v);
        }
        self.gemm_into(op, &plan, a, b, &mut frag)?;
        self.b.phase("store a gemm's accumulator");
        let part = self.part(&dist);
        let vals: Vec<_> = part.regs.iter().map(|&r| frag.get(&mut self.b, r)).collect();
        let vals = cast::cast_all(&mut self.b, self.target, &vals, ty, from);
        self.store_part(&sink, &part, &vals);
        self.finish(op, sink)
    }

    fn gemm_into(&mut self, op: Op, plan: &GemmPlan, a: &Window, b: &Window, acc: &mut Fragment) -> Result {
        match plan {
            GemmPlan::Mma(p) => self.gemm_mma(op, p, a, b, acc),
            GemmPlan::Fma => self.gemm_fma(op, a, b, acc),
        }
    }
}
