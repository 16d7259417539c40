//! The role that feeds the rings: one thread starts all copies of an iteration as soon as its slot is free.

use super::super::index::{self, Idx};
use super::super::value::Scalar;
use super::super::{Lowerer, Result};
use super::ahead::loads_constant;
use super::plan::WARPGROUP;
use super::{Rings, Role};
use crate::ptx::simt::{Addr, Bin, Builder, Cmp, Num, SimtOp, Special, Ty, Val, Vals};
use zellige_ir::{EntityId, Op, OpKind, Region};

impl Lowerer<'_> {
    pub(super) fn produce(&mut self, rings: &Rings) -> Result {
        let tid = self.b.special(Special::Tid);
        let mask = self.b.c32(WARPGROUP as i64 - 1);
        let lane = self.b.bin(Bin::And, Num::B32, tid, mask);
        let zero = self.b.c32(0);
        let one_thread = self.b.setp(Cmp::Eq, Num::S32, lane, zero);
        let then_body = self.b.open(false);
        // The phase before the first one counts as ended: all slots are free.
        self.start_rings(rings, 1);
        let func = self.func;
        self.blocks(rings, Role::Copies, &mut |l| l.produce_region(rings, func.body))?;
        self.b.close();
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond: one_thread, uniform: false, then_body, else_body });
        Ok(())
    }

    /// The scalars and the copies of a region; everything else is the other role's.
    fn produce_region(&mut self, rings: &Rings, region: Region) -> Result {
        let func = self.func;
        for &op in &func.regions[region].ops {
            self.b.at(&func.ops[op].span);
            if self.runs_ahead(op) && self.ahead_op(op)? {
                continue;
            }
            if let Some(load) = rings.plan.loads.iter().position(|l| l.op == op && l.made.is_none()) {
                self.fill_slots(rings, &[load])?;
            }
            if let OpKind::If { cond, then_body, else_body } = &func.ops[op].kind
                && self.holds(*then_body, rings.plan.loop_op)
            {
                let (cond, then_body, empty) = (self.reg(op, *cond, None)?, *then_body, *else_body);
                debug_assert!(!self.holds(empty, rings.plan.loop_op));
                let then_block = self.b.open(false);
                self.produce_region(rings, then_body)?;
                self.b.close();
                let (else_block, ()) = self.b.in_block(false, |_| ());
                self.b.push(SimtOp::If { cond, uniform: true, then_body: then_block, else_body: else_block });
            }
            if op == rings.plan.loop_op
                && let OpKind::For { indices, extents, body, .. } = &func.ops[op].kind
            {
                let extent = self.idx(op, extents[0], None)?;
                let (lo, hi) = self.share(&rings.plan, extent);
                let one = self.b.c32(1);
                let v = self.b.begin_for(Ty::B32);
                let k = Idx { base: Some(v), off: 0, lo: 0, hi: (extent.hi - 1).max(0), align: 1 };
                self.env[indices[0].0.index()] = Some(Scalar::Idx(k));
                self.produce_iteration(rings, *body)?;
                self.b.end_for(v, lo, hi, one, true);
            }
        }
        Ok(())
    }

    /// True if everything that a scalar op uses is known to this role.
    fn runs_ahead(&self, op: Op) -> bool {
        use zellige_ir::{ValueDef, Visit};
        let mut known = true;
        self.func.ops[op].kind.for_each_use(&mut |v| {
            known &= self.env[v.index()].is_some() || matches!(self.func.values[v].def, ValueDef::Const(_));
        });
        known
    }

    /// True if the region holds the op, directly or nested.
    fn holds(&self, region: Region, op: Op) -> bool {
        let mut found = false;
        self.func.walk(region, &mut |o, _| found |= o == op);
        found
    }

    /// Lowers a scalar op of the block, or the load of an element that no block changes. Returns false for other ops.
    fn ahead_op(&mut self, op: Op) -> Result<bool> {
        if self.scalar_op(op, None)? {
            return Ok(true);
        }
        let kind = &self.func.ops[op].kind;
        let OpKind::Load { out, buffer, indices } = kind else { return Ok(false) };
        let constant = loads_constant(self.func, kind);
        if constant {
            self.load_scalar(op, *out, *buffer, indices)?;
        }
        Ok(constant)
    }

    fn produce_iteration(&mut self, rings: &Rings, body: Region) -> Result {
        let func = self.func;
        let plan = rings.plan.clone();
        let mut filled = vec![false; plan.rings.len()];
        for &op in &func.regions[body].ops {
            self.b.at(&func.ops[op].span);
            match plan.copies().find(|l| l.op == op) {
                Some(l) if filled[l.ring] => {}
                Some(l) => {
                    filled[l.ring] = true;
                    let together: Vec<usize> =
                        (0..plan.loads.len()).filter(|&o| plan.loads[o].ring == l.ring).collect();
                    for &o in &together {
                        self.offsets_of(plan.loads[o].op, body)?;
                    }
                    self.fill_slots(rings, &together)?;
                }
                None if self.runs_ahead(op) => {
                    self.ahead_op(op)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Computes what a copy's place depends on, as far as the loop's body does.
    fn offsets_of(&mut self, copy: Op, body: Region) -> Result {
        let func = self.func;
        for &op in func.regions[body].ops.iter().take_while(|&&op| op != copy) {
            if self.runs_ahead(op) {
                self.ahead_op(op)?;
            }
        }
        Ok(())
    }

    /// Waits until the next slot of a ring is free and starts the copies into it.
    fn fill_slots(&mut self, rings: &Rings, loads: &[usize]) -> Result {
        let plan = rings.plan.clone();
        let ring = plan.loads[loads[0]].ring;
        let (slot, parity) = (self.b.get(rings.at[ring].slot), self.b.get(rings.at[ring].parity));
        let empty = self.barrier_at(rings, ring, slot, true);
        self.b.push(SimtOp::MbarWait { addr: empty, parity });
        let full = self.barrier_at(rings, ring, slot, false);
        let bytes = loads.iter().map(|&l| plan.loads[l].bytes()).sum::<usize>() as u32;
        self.b.push(SimtOp::MbarExpect { addr: full, bytes });
        for &load in loads {
            self.load_tile(rings, load, slot, full)?;
        }
        self.advance(rings, ring, slot, parity);
        Ok(())
    }

    /// Starts the copies of one tile, box by box.
    fn load_tile(&mut self, rings: &Rings, load: usize, slot: Val, bar: Addr) -> Result {
        let func = self.func;
        let l = &rings.plan.loads[load];
        let OpKind::Copy { src, .. } = &func.ops[l.op].kind else {
            return self.malformed(l.op, "the plan's loads are copies");
        };
        let map = self.map_address(l.param, &l.tile);
        let base = self.b.shared_addr(rings.tiles[load]);
        let size = self.b.c32(l.slot_bytes() as i64);
        let base = self.b.mad(Num::S32, slot, size, base);
        // This block's part of the tile, by boxes or by rows of the only box.
        let cluster = l.shared.map_or(1, |axis| rings.plan.cluster[axis]);
        let boxes = l.boxes();
        let (my_boxes, my_rows) =
            if boxes.is_multiple_of(cluster) { (boxes / cluster, 0) } else { (boxes, l.rows / cluster) };
        let (mut part, mut base) = (Idx::constant(0), base);
        if let Some(axis) = l.shared {
            let rank = self.rank_along(&rings.plan, axis);
            part = Idx::new(rank, 0, cluster as i64 - 1, 1);
            let bytes = if my_rows > 0 { my_rows * l.swizzle.atom_bytes() } else { my_boxes * l.box_bytes() };
            let bytes = self.b.c32(bytes as i64);
            base = self.b.mad(Num::S32, rank, bytes, base);
        }
        let row_axis = l.row_axis(src);
        let mut copies = Vec::new();
        for i in 0..my_boxes {
            let mut coords = Vals::new();
            for (axis, &v) in src.offsets.iter().enumerate().rev() {
                let mut at = self.idx(l.op, v, None)?;
                let step = match axis {
                    _ if axis == row_axis => my_rows,
                    _ if axis + 1 == src.offsets.len() && my_rows == 0 => my_boxes * l.box_cols(),
                    _ => 0,
                };
                let by = index::mul(&mut self.b, part, Idx::constant(step as i64));
                at = index::add(&mut self.b, at, by);
                if axis + 1 == src.offsets.len() {
                    at = at.shift((i * l.box_cols()) as i64);
                    // Maps count elements narrower than a byte in bytes.
                    at = index::div(&mut self.b, at, Idx::constant((8 / l.dtype.bits()).max(1) as i64));
                }
                coords.push(index::to_val(&mut self.b, at, Ty::B32));
            }
            let dst = Addr { base, offset: (i * l.box_bytes()) as i32, obj: rings.tiles[load] };
            copies.push((dst, coords));
        }
        let start = move |b: &mut Builder, blocks: u32| {
            for (dst, coords) in &copies {
                b.push(SimtOp::TmaLoad { dst: *dst, map, coords: coords.clone(), bar, blocks });
            }
        };
        let [nx, ny] = rings.plan.cluster;
        match l.shared {
            None => start(&mut self.b, 0),
            // Those beside this block along the axis: one after another, or every `nx`th.
            Some(0) => {
                let y = self.rank_along(&rings.plan, 1);
                self.for_rank(y, ny, |y| ((1u32 << nx) - 1) << (y * nx), &start);
            }
            Some(_) => {
                let x = self.rank_along(&rings.plan, 0);
                self.for_rank(x, nx, |x| (0..ny).map(|y| 1u32 << (y * nx + x)).sum(), &start);
            }
        }
        Ok(())
    }

    /// Starts copies to the blocks that go with this block's `rank` along an axis of the cluster, one of `n`.
    fn for_rank(&mut self, rank: Val, n: usize, blocks: impl Fn(usize) -> u32, start: &impl Fn(&mut Builder, u32)) {
        if n == 1 {
            return start(&mut self.b, blocks(0));
        }
        for r in 0..n {
            let this = self.b.c32(r as i64);
            let cond = self.b.setp(Cmp::Eq, Num::S32, rank, this);
            let (then_body, ()) = self.b.in_block(false, |b| start(b, blocks(r)));
            let (else_body, ()) = self.b.in_block(false, |_| ());
            self.b.push(SimtOp::If { cond, uniform: true, then_body, else_body });
        }
    }
}
