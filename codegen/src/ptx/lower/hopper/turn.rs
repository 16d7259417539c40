//! The loop of a mixed plan: products are started where they stand and waited for when their registers are touched. Tiles that
//! the loop fills itself are filled an iteration ahead if they can be, beside products.

use super::super::index::{self, Idx};
use super::super::infer::SharedForm;
use super::super::place::{Place, shared_placement};
use super::super::ring::writes;
use super::super::value::Scalar;
use super::super::view::View;
use super::super::{Lowerer, Result};
use super::plan::{HopperPlan, RingKind, WARPGROUP};
use super::{HopperRole, Rings};
use crate::ptx::simt::{Bin, Cache, Cmp, Num, SimtOp, Space, Ty, Val, Var};
use std::collections::HashSet;
use zellige_ir::{Buffer, Effect, EntityId, Op, OpKind, Region, Value, Visit};

/// The named barrier of the first warpgroup's turns; the other's follows.
const FIRST_TURN: i64 = 6;

/// Ops that one iteration runs for the next one.
#[derive(Clone)]
struct Ahead {
    ops: Vec<Op>,
    /// The number of the iteration that they are run for, and how many there are.
    number: Var,
    count: Val,
}

/// What is under way while the loop's body is lowered.
struct Turn {
    /// Groups of products started so far.
    started: u32,
    /// Unfinished products, each with the number of its group.
    flying: Vec<(usize, u32)>,
    /// The product of the iteration before that is not started yet.
    carried: Option<usize>,
    /// The same until it is finished.
    previous: Option<usize>,
    /// For each ring: its slot has been filled.
    arrived: Vec<bool>,
    /// For each ring: products that have finished reading its slot.
    done: Vec<usize>,
    /// Whether this warpgroup has yet to wait for its turn to start products.
    waits: bool,
    /// The op of the loop's body that is being lowered.
    at: usize,
    /// Tiles that the work has filled since the last barrier.
    fresh: Vec<usize>,
    /// Rings whose current slot the work alone reads.
    borrowed: Vec<usize>,
    /// True where there is an iteration before whose last product may still run, as group 0.
    lasts: Option<Val>,
    /// What is still to be done for the next iteration.
    ahead: Option<Ahead>,
    /// Whether that is being done.
    is_ahead: bool,
}

impl Turn {
    fn new(rings: usize) -> Turn {
        Turn {
            started: 0,
            flying: Vec::new(),
            carried: None,
            previous: None,
            arrived: vec![false; rings],
            done: vec![0; rings],
            waits: false,
            at: 0,
            fresh: Vec::new(),
            borrowed: Vec::new(),
            lasts: None,
            ahead: None,
            is_ahead: false,
        }
    }
}

impl Lowerer<'_> {
    /// Waits for a tile that is filled once before the loop, if `op` is its copy.
    pub(in super::super) fn hopper_arrival(&mut self, op: Op) -> Option<Result> {
        let role = self.hopper.clone()?;
        let plan = role.rings.plan.clone();
        let load = plan.copies().find(|l| l.op == op && plan.rings[l.ring].kind == RingKind::Once)?;
        self.await_slot(&role.rings, load.ring);
        Some(Ok(()))
    }

    /// Waits until the ring's current slot is filled.
    fn await_slot(&mut self, rings: &Rings, ring: usize) {
        let (slot, parity) = self.ring_position(rings, ring);
        let addr = self.barrier_at(rings, ring, slot, false);
        self.b.push(SimtOp::MbarWait { addr, parity });
    }

    fn ring_position(&mut self, rings: &Rings, ring: usize) -> (Val, Val) {
        (self.b.get(rings.at[ring].slot), self.b.get(rings.at[ring].parity))
    }

    /// Gives the ring's slot back and moves on.
    pub(super) fn give_back(&mut self, rings: &Rings, ring: usize) {
        let (slot, parity) = self.ring_position(rings, ring);
        self.free_slot(rings, ring, slot, None);
        self.advance(rings, ring, slot, parity);
    }

    /// True in the role that multiplies of a loop that works between products: its registers are precious.
    pub(in super::super) fn in_mixed_loop(&self) -> bool {
        self.hopper.as_ref().is_some_and(|h| h.rings.plan.mixed.is_some()) && self.b.in_loop()
    }

    pub(super) fn mixed_loop(&mut self, role: &HopperRole, op: Op, index: Value, extent: Idx) -> Result {
        let func = self.func;
        let plan = role.rings.plan.clone();
        let OpKind::For { body, .. } = func.ops[op].kind else {
            return self.malformed(op, "the plan's loop is a loop");
        };
        let carried = plan.mixed.as_ref().and_then(|m| m.carried);
        self.flush();
        let hi = index::to_val(&mut self.b, extent, Ty::B32);
        let (zero, one) = (self.b.c32(0), self.b.c32(1));
        let top = (extent.hi - 1).max(0);
        match carried {
            None => {
                let ops = self.ahead_ops(&plan, body);
                let ahead = (!ops.is_empty()).then(|| Ahead { ops, number: self.b.new_var(Ty::B32), count: hi });
                // What the iteration before leaves behind.
                let mut before = Turn::new(plan.rings.len());
                if let Some(ahead) = &ahead {
                    self.b.set(ahead.number, zero);
                    before = self.run_ahead(role, ahead, false)?;
                }
                let k = self.b.begin_for(Ty::B32);
                self.env[index.index()] = Some(Scalar::Idx(Idx { base: Some(k), off: 0, lo: 0, hi: top, align: 1 }));
                if let Some(ahead) = &ahead {
                    let next = self.b.add(Num::S32, k, one);
                    self.b.set(ahead.number, next);
                }
                let mut turn = Turn { ahead, ..before };
                if let Some(p) = plan.lasting() {
                    turn.lasts = Some(self.b.setp(Cmp::Ne, Num::S32, k, zero));
                    turn.flying.push((p, 0));
                }
                self.turn(role, body, &mut turn, None)?;
                self.settle(role, &mut turn)?;
                self.b.end_for(k, zero, hi, one, true);
                if let Some(p) = plan.lasting() {
                    let ran = self.b.setp(Cmp::Gt, Num::S32, hi, zero);
                    let mut turn = Turn { lasts: Some(ran), flying: vec![(p, 0)], ..Turn::new(plan.rings.len()) };
                    self.complete(role, &mut turn, 0);
                }
            }
            Some(p) => {
                let any = self.b.setp(Cmp::Gt, Num::S32, hi, zero);
                let then_body = self.b.open(false);
                // A known zero would spread into constants that cost registers all along.
                let first = self.b.new_var(Ty::B32);
                self.b.set(first, zero);
                let base = Some(self.b.get(first));
                self.env[index.index()] = Some(Scalar::Idx(Idx { base, off: 0, lo: 0, hi: top.max(1), align: 1 }));
                let mut turn = Turn::new(plan.rings.len());
                self.turn(role, body, &mut turn, Some(p))?;
                self.settle(role, &mut turn)?;
                let k = self.b.begin_for(Ty::B32);
                let at = Idx { base: Some(k), off: 0, lo: 1, hi: top.max(1), align: 1 };
                self.env[index.index()] = Some(Scalar::Idx(at));
                let waits = plan.takes_turns();
                let mut turn = Turn { carried: Some(p), previous: Some(p), waits, ..Turn::new(plan.rings.len()) };
                self.turn(role, body, &mut turn, Some(p))?;
                self.settle(role, &mut turn)?;
                self.b.end_for(k, one, hi, one, true);
                let mut turn = Turn { carried: Some(p), ..Turn::new(plan.rings.len()) };
                self.settle(role, &mut turn)?;
                self.b.close();
                let (else_body, ()) = self.b.in_block(false, |_| ());
                self.b.push(SimtOp::If { cond: any, uniform: true, then_body, else_body });
            }
        }
        for ring in (0..plan.rings.len()).filter(|&r| plan.rings[r].kind == RingKind::Once) {
            self.give_back(&role.rings, ring);
        }
        Ok(())
    }

    /// One iteration, without the product that is left to the next one.
    fn turn(&mut self, role: &HopperRole, body: Region, turn: &mut Turn, leave: Option<usize>) -> Result {
        let func = self.func;
        let plan = role.rings.plan.clone();
        let ops = &func.regions[body].ops;
        let before: Vec<Op> = turn.ahead.iter().flat_map(|a| a.ops.iter().copied()).collect();
        let mut early: Vec<usize> = Vec::new();
        for (at, &op) in ops.iter().enumerate() {
            turn.at = at;
            if self.skip.contains(&op) || plan.is_copy(op) || before.contains(&op) {
                continue;
            }
            self.b.at(&func.ops[op].span);
            if let Some(p) = plan.products.iter().position(|p| p.op == op) {
                if leave != Some(p) && !early.contains(&p) {
                    let touched = registers(&plan, p);
                    self.before(role, turn, &touched)?;
                    self.start(role, turn, p)?;
                }
                continue;
            }
            let mut touched = buffers(func, op);
            // A product's first operand may be read while the product runs.
            touched.retain(|&b| !plan.products.iter().any(|p| p.is_operand(b)) || writes_within(func, op, b));
            if turn.flying.iter().any(|&(p, _)| !registers(&plan, p).is_disjoint(&touched)) {
                // The units work on it while this op works on the sum of an earlier one; on all that are free where there is
                // work for the next iteration as well.
                let several = turn.ahead.is_some();
                while let Some(p) = self.next_free(&plan, turn, &ops[at..], if several { &early } else { &[] })
                    && leave != Some(p)
                    && !early.contains(&p)
                {
                    early.push(p);
                    self.start(role, turn, p)?;
                    if !several {
                        break;
                    }
                }
                self.run_next(role, turn)?;
            }
            self.before(role, turn, &touched)?;
            let tiles: Vec<usize> =
                (0..plan.loads.len()).filter(|&l| touched.contains(&plan.loads[l].buffer)).collect();
            if tiles.is_empty() {
                self.op(op)?;
            } else {
                self.on_tiles(role, turn, op, &tiles)?;
            }
        }
        self.run_next(role, turn)
    }

    /// Does what is still to be done for the next iteration. It fills the slots of the iteration before this one: all warpgroups
    /// must have passed this one's barrier.
    fn run_next(&mut self, role: &HopperRole, turn: &mut Turn) -> Result {
        let Some(ahead) = turn.ahead.take() else { return Ok(()) };
        if !turn.fresh.is_empty() {
            self.show(role, turn, false);
        }
        self.run_ahead(role, &ahead, true)?;
        Ok(())
    }

    /// Ops before the products of an iteration that can be run beside the products of the iteration before: all that fill
    /// tiles, if nothing else gets in their way.
    fn ahead_ops(&self, plan: &HopperPlan, body: Region) -> Vec<Op> {
        let func = self.func;
        let works =
            |&op: &Op| !self.skip.contains(&op) && !plan.is_copy(op) && func.ops[op].kind.effect() != Effect::Pure;
        let ops: Vec<Op> = func.regions[body].ops.iter().copied().filter(works).collect();
        let Some(first) = ops.iter().position(|&op| plan.products.iter().any(|p| p.op == op)) else {
            return Vec::new();
        };
        let (ahead, rest) = ops.split_at(first);
        let made: Vec<_> = plan.loads.iter().filter(|l| l.made.is_some()).collect();
        let straight = |&op: &Op| !matches!(func.ops[op].kind, OpKind::If { .. } | OpKind::While { .. });
        let mut apart = made.iter().all(|l| ahead.contains(&l.op)) && ahead.iter().all(straight);
        let used: HashSet<Buffer> = ahead.iter().flat_map(|&op| buffers(func, op)).collect();
        for &op in rest {
            for b in buffers(func, op).intersection(&used) {
                let is_made = made.iter().any(|l| l.buffer == *b);
                apart &=
                    !writes_within(func, op, *b) && (is_made || !ahead.iter().any(|&o| writes_within(func, o, *b)));
            }
        }
        let one_slot = plan.rings.iter().any(|r| r.kind == RingKind::Streamed && r.stages < 2);
        if made.is_empty() || !apart || one_slot { Vec::new() } else { ahead.to_vec() }
    }

    /// Runs ops for an iteration if there is such a one: for the next one (`next`), whose tiles have the slots behind those of
    /// this one, or for the first. Returns the state in which that iteration begins.
    fn run_ahead(&mut self, role: &HopperRole, ahead: &Ahead, next: bool) -> Result<Turn> {
        let func = self.func;
        let plan = role.rings.plan.clone();
        let OpKind::For { indices, extents, body, .. } = &func.ops[plan.loop_op].kind else {
            return self.malformed(plan.loop_op, "the plan's loop is a loop");
        };
        let (index, extent) = (indices[0].0, self.idx(plan.loop_op, extents[0], None)?);
        let mut turn = Turn { is_ahead: next, ..Turn::new(plan.rings.len()) };
        self.flush();
        let number = self.b.get(ahead.number);
        let any = self.b.setp(Cmp::Lt, Num::S32, number, ahead.count);
        let env = self.env.clone();
        let then_body = self.b.open(false);
        self.b.pin();
        let at = Idx { base: Some(number), off: 0, lo: 0, hi: (extent.hi - 1).max(0), align: 1 };
        self.env[index.index()] = Some(Scalar::Idx(at));
        let mut left = ahead.ops.len();
        for &op in func.regions[*body].ops.iter().take_while(|&&op| !plan.products.iter().any(|p| p.op == op)) {
            let is_pure = func.ops[op].kind.effect() == Effect::Pure;
            if left == 0 || self.skip.contains(&op) || !(is_pure || ahead.ops.contains(&op)) {
                continue;
            }
            left -= usize::from(!is_pure);
            self.b.at(&func.ops[op].span);
            let touched = buffers(func, op);
            let tiles: Vec<usize> =
                (0..plan.loads.len()).filter(|&l| touched.contains(&plan.loads[l].buffer)).collect();
            if tiles.is_empty() {
                self.op(op)?;
            } else {
                self.on_tiles(role, &mut turn, op, &tiles)?;
            }
        }
        self.flush();
        self.b.close();
        self.env = env;
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond: any, uniform: true, then_body, else_body });
        Ok(Turn { is_ahead: false, ..turn })
    }

    /// The next product of some ops that is not started, if none before it has to do with its registers or changes its tiles,
    /// and no unfinished product has its accumulator.
    fn next_free(&self, plan: &HopperPlan, turn: &Turn, ops: &[Op], started: &[usize]) -> Option<usize> {
        let (at, p) = ops.iter().enumerate().find_map(|(at, &op)| {
            let p = plan.products.iter().position(|p| p.op == op)?;
            (!started.contains(&p)).then_some((at, p))
        })?;
        let product = &plan.products[p];
        let mut own = registers(plan, p);
        own.extend(product.loads().map(|l| plan.loads[l].buffer));
        let between = ops[..at].iter().filter(|&&op| !self.skip.contains(&op) && !plan.is_copy(op));
        // Other products only read the tiles.
        let apart = between.into_iter().all(|&op| match plan.products.iter().position(|p| p.op == op) {
            Some(other) => registers(plan, other).is_disjoint(&own),
            None => buffers(self.func, op).is_disjoint(&own),
        });
        let flies = |&(q, _): &(usize, u32)| plan.products[q].acc == product.acc;
        (apart && !turn.flying.iter().any(flies)).then_some(p)
    }

    /// Finishes what is under way.
    fn settle(&mut self, role: &HopperRole, turn: &mut Turn) -> Result {
        if let Some(p) = turn.carried.take() {
            self.start(role, turn, p)?;
        }
        let plan = role.rings.plan.clone();
        let lasting = plan.lasting();
        if let Some(&(_, group)) = turn.flying.iter().rev().find(|&&(p, _)| lasting != Some(p)) {
            self.complete(role, turn, group);
        }
        for ring in (0..plan.rings.len()).filter(|&r| lasting.is_some_and(|p| plan.reads(p, r))) {
            let (slot, parity) = self.ring_position(&role.rings, ring);
            self.advance(&role.rings, ring, slot, parity);
        }
        if !turn.borrowed.is_empty() {
            turn.at = usize::MAX;
            self.show(role, turn, false);
        }
        for ring in (0..plan.rings.len()).filter(|&r| plan.rings[r].kind == RingKind::Made) {
            let (slot, parity) = self.ring_position(&role.rings, ring);
            self.advance(&role.rings, ring, slot, parity);
        }
        // What the products leave where the next iteration clears it is not kept.
        for p in plan.products.iter().filter(|p| p.clear.is_some()) {
            if let Some(f) = self.fragment(p.acc) {
                f.discard();
            }
        }
        self.flush();
        Ok(())
    }

    /// Waits for the products whose registers an op touches.
    fn before(&mut self, role: &HopperRole, turn: &mut Turn, touched: &HashSet<Buffer>) -> Result {
        let plan = role.rings.plan.clone();
        let meets = |p: usize| registers(&plan, p).iter().any(|b| touched.contains(b));
        if turn.carried.is_some_and(meets) || (turn.carried.is_some() && turn.flying.iter().any(|&(p, _)| meets(p))) {
            let p = turn.carried.take();
            p.map_or(Ok(()), |p| self.start(role, turn, p))?;
        }
        if let Some(group) = turn.flying.iter().filter(|&&(p, _)| meets(p)).map(|&(_, g)| g).max() {
            self.complete(role, turn, group);
        }
        Ok(())
    }

    fn start(&mut self, role: &HopperRole, turn: &mut Turn, p: usize) -> Result {
        let plan = role.rings.plan.clone();
        let product = &plan.products[p];
        self.flush();
        if turn.lasts.is_some() && turn.started > 0 {
            self.complete(role, turn, 0);
        }
        for load in product.loads() {
            let ring = plan.loads[load].ring;
            let streamed = plan.rings[ring].kind == RingKind::Streamed;
            if streamed && !std::mem::replace(&mut turn.arrived[ring], true) {
                self.await_slot(&role.rings, ring);
            }
            if turn.fresh.contains(&load) {
                self.show(role, turn, false);
            }
        }
        if std::mem::take(&mut turn.waits) {
            self.turn_barrier(role, false);
        }
        // Read even where it is known, so that no descriptor is kept in registers from iteration to iteration.
        let slots: Vec<Val> = role.rings.at.iter().map(|at| self.b.get(at.slot)).collect();
        let (a, acc) = (self.first_operand(product)?, self.accumulators(product)?);
        self.b.push(SimtOp::WgmmaFence {});
        let never = self.b.pred(false);
        self.product(role, product, &a, &acc, &slots, never)?;
        self.b.push(SimtOp::WgmmaCommit {});
        turn.started += 1;
        turn.flying.push((p, turn.started));
        if plan.takes_turns() && turn.previous == Some(p) {
            self.turn_barrier(role, true);
        }
        Ok(())
    }

    /// Waits until it is this warpgroup's turn to start products, or gives the turn to the other one.
    fn turn_barrier(&mut self, role: &HopperRole, other: bool) {
        let (first, one) = (self.b.c32(FIRST_TURN), self.b.c32(1));
        let threads = 2 * WARPGROUP as u32;
        if other {
            let group = self.b.bin(Bin::Xor, Num::B32, role.group, one);
            let id = self.b.add(Num::S32, group, first);
            self.b.push(SimtOp::BarArrive { id, threads });
        } else {
            let id = self.b.add(Num::S32, role.group, first);
            self.b.push(SimtOp::BarPart { id, threads });
        }
    }

    /// Gives the first turn to the first warpgroup; at the end of every loop it is that one's again.
    pub(super) fn first_turn(&mut self, role: &HopperRole) {
        if !role.rings.plan.takes_turns() {
            return;
        }
        let one = self.b.c32(1);
        let last = self.b.setp(Cmp::Eq, Num::S32, role.group, one);
        let then_body = self.b.open(false);
        self.turn_barrier(role, true);
        self.b.close();
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond: last, uniform: false, then_body, else_body });
    }

    /// Waits for the products up to a group and gives back the slots that nobody reads any more.
    fn complete(&mut self, role: &HopperRole, turn: &mut Turn, group: u32) {
        let plan = role.rings.plan.clone();
        self.b.push(SimtOp::WgmmaWait { pending: turn.started - group });
        let (mut finished, flying) = turn.flying.iter().copied().partition::<Vec<_>, _>(|&(_, g)| g <= group);
        turn.flying = flying;
        if let Some(before) = turn.lasts.take() {
            // Its slots are those before the present ones.
            let (p, _) = finished.remove(0);
            for ring in (0..plan.rings.len()).filter(|&r| plan.reads(p, r)) {
                let (slot, _) = self.ring_position(&role.rings, ring);
                let slot = self.previous_slot(&role.rings, ring, slot);
                self.free_slot(&role.rings, ring, slot, Some(before));
            }
        }
        for ring in (0..plan.rings.len()).filter(|&r| plan.rings[r].kind == RingKind::Streamed) {
            turn.done[ring] += finished.iter().filter(|&&(p, _)| plan.reads(p, ring)).count();
            let readers = (0..plan.products.len()).filter(|&p| plan.reads(p, ring)).count();
            if readers > 0 && turn.done[ring] == readers {
                self.give_back(&role.rings, ring);
                turn.done[ring] = 0;
                turn.arrived[ring] = false;
            }
        }
        if finished.iter().any(|&(p, _)| turn.previous == Some(p)) {
            turn.previous = None;
        }
    }

    /// Lowers an op on tiles of the rings: after their arrival, and before any product sees them.
    fn on_tiles(&mut self, role: &HopperRole, turn: &mut Turn, op: Op, tiles: &[usize]) -> Result {
        let func = self.func;
        let plan = role.rings.plan.clone();
        // With a single slot, the product of the iteration before must give it back first.
        let blocked = |p: usize| {
            tiles.iter().any(|&t| plan.reads(p, plan.loads[t].ring) && plan.rings[plan.loads[t].ring].stages < 2)
        };
        if turn.previous.is_some_and(blocked) {
            if let Some(p) = turn.carried.take() {
                self.start(role, turn, p)?;
            }
            let previous = turn.previous;
            if let Some(group) = turn.flying.iter().filter(|&&(p, _)| previous == Some(p)).map(|&(_, g)| g).max() {
                self.complete(role, turn, group);
            }
        }
        // Filled by this op, or read by it after another one has filled them.
        let (filled, read): (Vec<usize>, Vec<usize>) =
            tiles.iter().copied().filter(|&t| plan.loads[t].made.is_some()).partition(|&t| plan.loads[t].op == op);
        if read.iter().any(|t| turn.fresh.contains(t)) {
            self.show(role, turn, false);
        }
        for ring in tiles.iter().map(|&t| plan.loads[t].ring) {
            let streamed = plan.rings[ring].kind == RingKind::Streamed;
            if streamed && !plan.is_read(ring) && !turn.borrowed.contains(&ring) {
                // Whatever the op does with it: a slot is not given back before it has been filled.
                self.await_slot(&role.rings, ring);
                turn.borrowed.push(ring);
            }
        }
        let OpKind::If { cond, then_body, else_body } = &func.ops[op].kind else {
            self.with_tiles(role, turn, tiles, &mut |l| l.op(op))?;
            turn.fresh.extend(filled);
            let is_changed = |&t: &usize| plan.loads[t].made.is_none() && writes_within(func, op, plan.loads[t].buffer);
            if tiles.iter().any(is_changed) {
                self.show(role, turn, true);
            }
            return Ok(());
        };
        let cond = self.reg(op, *cond, None)?;
        self.flush();
        let arm = |l: &mut Self, region: Region| -> Result<_> {
            let block = l.b.open(false);
            l.b.pin();
            let here: Vec<usize> = tiles
                .iter()
                .copied()
                .filter(|&t| region_buffers(func, region).contains(&plan.loads[t].buffer))
                .collect();
            if here.is_empty() {
                l.region(region)?;
                l.flush();
            } else {
                l.with_tiles(role, turn, &here, &mut |l| l.region(region))?;
                l.b.push(SimtOp::AsyncFence {});
                l.b.push(SimtOp::Bar {});
            }
            l.b.close();
            Ok(block)
        };
        let then_body = arm(self, *then_body)?;
        let else_body = arm(self, *else_body)?;
        self.b.push(SimtOp::If { cond, uniform: true, then_body, else_body });
        Ok(())
    }

    /// Makes what the work has written in tiles, of those that copies fill too if some have `changed`, visible to the products and
    /// the work of all warpgroups, and gives back slots that no later op of the iteration reads.
    fn show(&mut self, role: &HopperRole, turn: &mut Turn, changed: bool) {
        let plan = role.rings.plan.clone();
        self.flush();
        // What only the work writes and reads needs no fence.
        if changed || !turn.borrowed.is_empty() || turn.fresh.iter().any(|&l| plan.is_read(plan.loads[l].ring)) {
            self.b.push(SimtOp::AsyncFence {});
        }
        self.b.push(SimtOp::Bar {});
        turn.fresh.clear();
        let OpKind::For { body, .. } = self.func.ops[plan.loop_op].kind else { return };
        let later = self.func.regions[body].ops.get(turn.at..).unwrap_or_default();
        let (kept, free) = std::mem::take(&mut turn.borrowed).into_iter().partition::<Vec<_>, _>(|&ring| {
            let mut tiles = plan.loads.iter().filter(|l| l.ring == ring);
            tiles.any(|l| later.iter().any(|&op| !plan.is_copy(op) && buffers(self.func, op).contains(&l.buffer)))
        });
        turn.borrowed = kept;
        free.into_iter().for_each(|ring| self.give_back(&role.rings, ring));
    }

    /// Runs `f` while tiles of this iteration stand for their buffers.
    fn with_tiles(
        &mut self,
        role: &HopperRole,
        turn: &Turn,
        tiles: &[usize],
        f: &mut dyn FnMut(&mut Self) -> Result,
    ) -> Result {
        let rings = &role.rings;
        for &t in tiles {
            let load = &rings.plan.loads[t];
            let (mut slot, mut parity) = self.ring_position(rings, load.ring);
            let is_next = turn.is_ahead && load.made.is_some();
            if is_next || turn.previous.is_some_and(|p| rings.plan.reads(p, load.ring)) {
                // The position is still that of the iteration before.
                (slot, parity) = self.next(rings, load.ring, slot, parity);
            }
            if rings.plan.rings[load.ring].kind == RingKind::Streamed && !turn.borrowed.contains(&load.ring) {
                let addr = self.barrier_at(rings, load.ring, slot, false);
                self.b.push(SimtOp::MbarWait { addr, parity });
            }
            let view = self.tile_view(rings, t, slot);
            self.places[load.buffer.index()] = Some(Place::Memory(Box::new(view)));
        }
        f(self)?;
        self.flush();
        Ok(())
    }

    /// A slot of a ring as a tile in memory.
    fn tile_view(&mut self, rings: &Rings, load: usize, slot: Val) -> View {
        let l = &rings.plan.loads[load];
        let shape = [l.rows, l.cols];
        let form = l.made.unwrap_or(SharedForm::Swizzled(l.swizzle));
        let (placement, _, align) = shared_placement(l.dtype, &shape, form);
        let base = self.b.shared_addr(rings.tiles[load]);
        let size = self.b.c32(l.slot_bytes() as i64);
        View {
            space: Space::Shared,
            obj: rings.tiles[load],
            dtype: l.dtype,
            base: self.b.mad(Num::S32, slot, size, base),
            base_offset: 0,
            align: u64::from(align),
            extents: shape.iter().map(|&e| Idx::constant(e as i64)).collect(),
            placement,
            cache: Cache::Default,
            checked: false,
        }
    }
}

/// The fragments that a product uses while it runs.
fn registers(plan: &HopperPlan, p: usize) -> HashSet<Buffer> {
    let product = &plan.products[p];
    product.operand_fragment().map(|(b, _)| b).into_iter().chain([product.acc]).collect()
}

/// The buffers that an op and what is nested in it name.
fn buffers(func: &zellige_ir::Func, op: Op) -> HashSet<Buffer> {
    let mut found = HashSet::new();
    let kind = &func.ops[op].kind;
    kind.for_each_buffer(&mut |b| {
        found.insert(b);
    });
    kind.for_each_region(&mut |r| found.extend(region_buffers(func, r)));
    found
}

/// True if the op, or what is nested in it, writes a buffer.
pub(super) fn writes_within(func: &zellige_ir::Func, op: Op, buffer: Buffer) -> bool {
    let kind = &func.ops[op].kind;
    let mut written = writes(kind, buffer);
    kind.for_each_region(&mut |r| func.walk(r, &mut |_, d| written |= writes(&d.kind, buffer)));
    written
}

fn region_buffers(func: &zellige_ir::Func, region: Region) -> HashSet<Buffer> {
    let mut found = HashSet::new();
    func.walk(region, &mut |_, d| {
        d.kind.for_each_buffer(&mut |b| {
            found.insert(b);
        });
    });
    found
}
