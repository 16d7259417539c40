//! The role that multiplies, and runs all of the kernel but the copies of its loop.

use super::super::index::Idx;
use super::super::place::Place;
use super::super::value::Scalar;
use super::super::{Lowerer, Result};
use super::plan::{HopperPlan, OperandA, Product};
use super::{HopperRole, Rings, Role};
use crate::ptx::simt::{Bin, Cmp, Num, SimtOp, Special, Ty, Val, Var, Vars, WgmmaTy};
use std::rc::Rc;
use zellige_ir::layout::instances::wgmma::{Major, SharedOperand};
use zellige_ir::{Buffer, EntityId, Op, Value};

/// A matrix descriptor of a slot of a ring, without what changes from instruction to instruction.
struct Descriptor {
    /// Low word: start address and leading offset.
    low: Val,
    /// High word: stride offset and swizzle.
    high: Val,
}

/// Registers of 32 bits that hold a thread's share of A for one instruction.
const REGISTERS_OF_A: usize = 4;

/// The first operand of a product.
enum First<'p> {
    Tile(Descriptor, &'p SharedOperand),
    Registers(&'p [Var]),
}

impl Lowerer<'_> {
    pub(super) fn consume(&mut self, rings: &Rings, group: Val) -> Result {
        self.start_rings(rings, 0);
        let plan: &HopperPlan = &rings.plan;
        self.skip.extend(plan.products.iter().filter_map(|p| p.clear));
        let (previous, zero) = (self.b.new_var(Ty::B32), self.b.c32(0));
        self.b.set(previous, zero);
        let (team, group) = if plan.teams > 1 { (group, zero) } else { (zero, group) };
        let role = Rc::new(HopperRole { rings: rings.clone(), group, team, previous });
        self.tid = self.start_teams(rings, team);
        self.first_turn(&role);
        self.hopper = Some(role.clone());
        if let Some(h) = rings.handover {
            self.b.set(h.parity, zero);
        }
        let r = self.blocks(rings, Role::Multiplies, &mut |l| {
            l.consume_body(&role)?;
            // Written back, an accumulator keeps its registers from block to block; forgotten, the assembler would carry both
            // what the products left and what became of it.
            l.flush();
            Ok(())
        });
        self.hopper = None;
        self.drain_stores(rings);
        r
    }

    /// The block's ops; those behind the loop may be one block's of a cluster.
    fn consume_body(&mut self, role: &HopperRole) -> Result {
        let func = self.func;
        let ops = &func.regions[func.body].ops;
        if role.rings.handover.is_none() {
            return self.ops(ops);
        }
        let end = ops.iter().position(|&op| op == role.rings.plan.loop_op).map_or(ops.len(), |at| at + 1);
        self.ops(&ops[..end])?;
        self.in_first_block(role, &mut |l| l.ops(&ops[end..]))
    }

    /// The loop whose tiles come through the rings, if `op` is that loop.
    pub(in super::super) fn hopper_loop(&mut self, op: Op, index: Value, extent: Idx) -> Option<Result> {
        let role = self.hopper.clone().filter(|h| h.rings.plan.loop_op == op)?;
        Some(match role.rings.plan.mixed {
            Some(_) => self.mixed_loop(&role, op, index, extent),
            None => self.multiply(&role, op, index, extent),
        })
    }

    fn multiply(&mut self, role: &HopperRole, op: Op, index: Value, extent: Idx) -> Result {
        let rings = &role.rings;
        self.flush();
        let accs: Vec<Vars> = rings.plan.products.iter().map(|p| self.accumulators(p)).collect::<Result<_>>()?;
        match rings.plan.runs {
            Some(runs) if !runs.spread => {
                self.in_runs(runs, &accs, extent, &mut |l, lo, hi| {
                    l.iterations(role, op, index, &accs, (lo, hi), extent)
                })?;
            }
            _ => {
                self.await_team(role, extent);
                let (lo, hi) = self.share(&rings.plan, extent);
                self.iterations(role, op, index, &accs, (lo, hi), extent)?;
            }
        }
        self.hand_over(role, &accs);
        Ok(())
    }

    /// The iterations of the loop from `lo` to before `hi`.
    fn iterations(
        &mut self,
        role: &HopperRole,
        op: Op,
        index: Value,
        accs: &[Vars],
        (lo, hi): (Val, Val),
        extent: Idx,
    ) -> Result {
        let rings = &role.rings;
        let one = self.b.c32(1);
        let k = self.b.begin_for(Ty::B32);
        self.env[index.index()] =
            Some(Scalar::Idx(Idx { base: Some(k), off: 0, lo: 0, hi: (extent.hi - 1).max(0), align: 1 }));
        let (slot, parity) = (self.b.get(rings.at[0].slot), self.b.get(rings.at[0].parity));
        let full = self.barrier_at(rings, 0, slot, false);
        self.b.push(SimtOp::MbarWait { addr: full, parity });
        self.b.push(SimtOp::WgmmaFence {});
        let later = self.b.setp(Cmp::Ne, Num::S32, k, lo);
        for (p, acc) in rings.plan.products.iter().zip(accs) {
            self.b.at(&self.func.ops[p.op].span);
            self.product(role, p, &[], acc, &[slot], later)?;
        }
        self.b.at(&self.func.ops[op].span);
        self.b.push(SimtOp::WgmmaCommit {});
        // The products of this iteration go on while the slot of the one before is given back.
        self.b.push(SimtOp::WgmmaWait { pending: 1 });
        self.release(role, later);
        self.b.set(role.previous, slot);
        self.advance(rings, 0, slot, parity);
        self.b.end_for(k, lo, hi, one, true);
        self.next_team(role);
        self.b.push(SimtOp::WgmmaWait { pending: 0 });
        let ran = self.b.setp(Cmp::Gt, Num::S32, hi, lo);
        self.release(role, ran);
        self.clear_unused(rings, accs, ran);
        Ok(())
    }

    /// Accumulators that the first product would have cleared, had there been one.
    fn clear_unused(&mut self, rings: &Rings, accs: &[Vars], ran: Val) {
        let cleared: Vec<Var> = rings
            .plan
            .products
            .iter()
            .zip(accs)
            .filter(|(p, _)| p.clear.is_some())
            .flat_map(|(_, acc)| acc.iter().copied())
            .collect();
        if cleared.is_empty() || self.b.as_const(ran) == Some(1) {
            return;
        }
        let zero = self.b.zero(Ty::F32);
        let (else_body, ()) = self.b.in_block(false, |b| cleared.iter().for_each(|&v| b.set(v, zero)));
        let (then_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond: ran, uniform: true, then_body, else_body });
    }

    /// One lane of each warp gives the slot of the previous iteration back to each block that fills it, if there was one.
    fn release(&mut self, role: &HopperRole, exists: Val) {
        let previous = self.b.get(role.previous);
        self.free_slot(&role.rings, 0, previous, Some(exists));
    }

    /// One lane of each warp tells each block that fills a slot that the warp is done with it.
    pub(super) fn free_slot(&mut self, rings: &Rings, ring: usize, slot: Val, guard: Option<Val>) {
        let addr = self.barrier_at(rings, ring, slot, true);
        let fillers = rings.plan.fillers(ring);
        let (lane, count) = (self.b.special(Special::LaneId), self.b.c32(fillers as i64));
        let some = self.b.setp(Cmp::Lt, Num::S32, lane, count);
        let guard = self.b.and_guard(Some(some), guard);
        if fillers > 1 {
            self.b.push(SimtOp::MbarArriveAt { addr, rank: lane, guard });
        } else {
            self.b.push(SimtOp::MbarArrive { addr, guard });
        }
    }

    pub(super) fn accumulators(&mut self, p: &Product) -> Result<Vars> {
        self.registers_of(p.op, p.acc)
    }

    fn registers_of(&self, op: Op, buffer: Buffer) -> Result<Vars> {
        match &self.places[buffer.index()] {
            Some(Place::Registers(f)) => Ok(f.vars().collect()),
            Some(Place::Memory(_) | Place::PerLane(_)) | None => {
                self.malformed(op, "an accumulator or operand of it has no registers")
            }
        }
    }

    /// The registers of a product's first operand, if it is in a fragment: tf32 as rounded copies.
    pub(super) fn first_operand(&mut self, p: &Product) -> Result<Vars> {
        let OperandA::Registers(buffer) = p.a else { return Ok(Vars::new()) };
        let own = self.registers_of(p.op, buffer)?;
        if p.ty != WgmmaTy::TF32 {
            return Ok(own);
        }
        let rounded = own.iter().map(|&v| {
            let (x, copy) = (self.b.get(v), self.b.new_var(Ty::B32));
            let x = self.b.cvt_tf32(x);
            self.b.set(copy, x);
            copy
        });
        Ok(rounded.collect())
    }

    /// The instructions of a product on one slot of each ring; `a` are the registers of the first operand, if it is in some.
    pub(super) fn product(
        &mut self,
        role: &HopperRole,
        p: &Product,
        a: &[Var],
        acc: &[Var],
        slots: &[Val],
        later: Val,
    ) -> Result {
        let in_registers = a;
        let [m, n, k] = p.shape;
        let [gm, gn] = p.warpgroups;
        let (row, column) = self.group_place(role.group, gn);
        let slot_of = |load: usize| slots[role.rings.plan.loads[load].ring];
        // The warpgroup's first block along m and along n.
        let a = match &p.a {
            OperandA::Tile { load, operand } => {
                let row_bytes = if gm > 1 { operand.start_bytes(64, 0) as i64 } else { 0 };
                let d = self.descriptor(&role.rings, *load, operand, slot_of(*load), row, row_bytes);
                First::Tile(d, operand)
            }
            OperandA::Registers(_) => First::Registers(in_registers),
        };
        let column_bytes = if gn > 1 { p.operand_b.start_bytes(p.inst_n, 0) as i64 } else { 0 };
        let b = self.descriptor(&role.rings, p.b, &p.operand_b, slot_of(p.b), column, column_bytes);
        let (blocks_m, blocks_n) = (m / (64 * gm), n / (p.inst_n * gn));
        let yes = self.b.pred(true);
        let (deep, [ka, kb]) = (p.ty.k(), p.from_k);
        for step in 0..k / deep {
            for im in 0..blocks_m {
                for jn in 0..blocks_n {
                    let b = self.at(&b, p.operand_b.start_bytes(p.inst_n * jn, kb + deep * step));
                    let from = (im * blocks_n + jn) * p.inst_n / 2;
                    let (acc, ty, n) = (acc[from..from + p.inst_n / 2].to_vec(), p.ty, p.inst_n as u32);
                    let scale_d = if step == 0 && p.clear.is_some() { later } else { yes };
                    let trans_b = p.operand_b.major == Major::Mn;
                    let op = match &a {
                        First::Tile(d, operand) => {
                            let a = self.at(d, operand.start_bytes(64 * gm * im, ka + deep * step));
                            SimtOp::Wgmma { acc, ty, n, a, b, scale_d, trans_a: operand.major == Major::Mn, trans_b }
                        }
                        First::Registers(vars) => {
                            let first = (im * (k / deep) + step) * REGISTERS_OF_A;
                            let a = vars[first..first + REGISTERS_OF_A].to_vec();
                            SimtOp::WgmmaRegs { acc, ty, n, a, b, scale_d, trans_b }
                        }
                    };
                    self.b.push(op);
                }
            }
        }
        Ok(())
    }

    /// Numbers of the warpgroup along m and n.
    pub(super) fn group_place(&mut self, group: Val, gn: usize) -> (Val, Val) {
        let n = self.b.c32(gn as i64);
        (self.b.bin(Bin::Div, Num::U32, group, n), self.b.bin(Bin::Rem, Num::U32, group, n))
    }

    /// The descriptor of a slot; block number `which` begins `block_bytes` times that behind the slot's start.
    fn descriptor(
        &mut self,
        rings: &Rings,
        load: usize,
        operand: &SharedOperand,
        slot: Val,
        which: Val,
        block_bytes: i64,
    ) -> Descriptor {
        let b = &mut self.b;
        let base = b.shared_addr(rings.tiles[load]);
        let by = b.c32(block_bytes);
        let base = b.mad(Num::S32, which, by, base);
        // 18 bits of address, in units of 16 bytes.
        let (mask, four) = (b.c32(0x3_ffff), b.c32(4));
        let start = b.bin(Bin::And, Num::B32, base, mask);
        let start = b.bin(Bin::Shr, Num::U32, start, four);
        let leading = b.c32((operand.leading_bytes as i64 >> 4) << 16);
        let start = b.bin(Bin::Or, Num::B32, start, leading);
        let size = b.c32(rings.plan.loads[load].slot_bytes() as i64 >> 4);
        let low = b.mad(Num::S32, slot, size, start);
        let mode: i64 = match operand.swizzle.atom_bytes() {
            128 => 1,
            64 => 2,
            32 => 3,
            _ => 0,
        };
        let high = b.c32((operand.stride_bytes as i64 >> 4) | mode << 30);
        Descriptor { low, high }
    }

    /// A descriptor moved by so many bytes.
    fn at(&mut self, d: &Descriptor, bytes: usize) -> Val {
        let by = self.b.c32(bytes as i64 >> 4);
        let low = self.b.add(Num::S32, d.low, by);
        self.b.pack(low, d.high)
    }
}
