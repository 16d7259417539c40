//! Products that are added up in runs of iterations: [`Sums::Runs`].
//!
//! A small tile leaves little to do for a multiprocessor but to wait for its operands, and the narrower the tiles that give
//! all multiprocessors one, the more often each operand is fetched. So the blocks of a cluster may share the iterations of a
//! tile instead: each adds up one run, and hands its sums to the first, which adds them in their order through its shared
//! memory and goes on alone. A block that runs all iterations itself keeps the sum of the runs beside the products of the
//! present one, and ends with the same bits.

use super::super::facts::Facts;
use super::super::index::{self, Idx};
use super::super::{Lowerer, Result};
use super::cluster::MAX_CLUSTER;
use super::plan::{Finder, HopperPlan, MAX_ACCUMULATORS, Product, Refusal, WARPGROUP, refuse};
use super::{HopperRole, MBARRIER, Rings};
use crate::ptx::simt::{Addr, Bin, Cache, Cmp, MemTy, Num, Obj, SimtOp, Space, Special, Ty, Val, Vals, Var, Vars};
use zellige_ir::layout::WARP;
use zellige_ir::{OpKind, Sums};

/// Sums that one store hands over.
const TOGETHER: usize = 4;

/// The runs that a loop's iterations are cut into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Runs {
    pub count: usize,
    /// Iterations of each but the last.
    pub length: usize,
    /// Each block of a cluster takes one.
    pub spread: bool,
}

impl HopperPlan {
    /// Blocks that share the iterations of one.
    pub fn spread(&self) -> usize {
        self.runs.filter(|r| r.spread).map_or(1, |r| r.count)
    }

    /// Registers of sums that a thread hands over.
    fn handed(&self) -> usize {
        self.products.iter().map(Product::registers).sum()
    }

    /// Bytes of the sums of one block.
    fn part_bytes(&self) -> usize {
        4 * self.handed() * self.consumers * WARPGROUP
    }

    /// Bytes of the sums of all blocks but the first.
    pub fn parts_bytes(&self) -> usize {
        (self.spread() - 1) * self.part_bytes()
    }
}

/// Barriers between the blocks that share a loop, and which of their phases is next.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    /// Sums of the other blocks, in the first one.
    pub parts: Obj,
    /// Number of the barrier that counts what is handed to the first block. The one by which the others learn when they may
    /// hand over follows.
    pub first: usize,
    pub parity: Var,
}

/// Barriers of a [`Handover`].
pub(super) const BARRIERS: usize = 2;

impl Finder<'_> {
    /// The runs of the loop, if the author wants more than one.
    pub(super) fn runs(&self, products: &[Product]) -> std::result::Result<Option<Runs>, Refusal> {
        let func = self.func;
        let Sums::Runs { count, spread } = func.sums else { return Ok(None) };
        let OpKind::For { extents, .. } = &func.ops[self.loop_op].kind else { return Ok(None) };
        let Some(n) = Facts::of(func).known(func, extents[0]).and_then(|n| usize::try_from(n).ok()) else {
            return refuse("its iterations are summed in runs, but their number is not known");
        };
        let length = n.div_ceil(count as usize).max(1);
        let count = n.div_ceil(length);
        if count < 2 {
            return Ok(None);
        }
        if products.iter().any(|p| p.clear.is_none()) {
            return refuse("its iterations are summed in runs, but its accumulators do not start from zero");
        }
        if spread && (count > MAX_CLUSTER || self.path.len() > 1) {
            return refuse(format!("no {count} blocks can share its iterations"));
        }
        let registers: usize = products.iter().map(Product::registers).sum();
        if !spread && 2 * registers > MAX_ACCUMULATORS[self.consumers] {
            return refuse(format!("its accumulators and the sums of earlier runs take {} registers", 2 * registers));
        }
        Ok(Some(Runs { count, length, spread }))
    }
}

impl Lowerer<'_> {
    pub(super) fn init_handover(&mut self, rings: &Rings) {
        let Some(h) = rings.handover else { return };
        let base = self.b.shared_addr(rings.barriers);
        // The first block's warps say that they have read what was handed over.
        for (at, count) in [(h.first, 1), (h.first + 1, (rings.plan.consumers * WARPGROUP / WARP) as u32)] {
            let addr = Addr { base, offset: (MBARRIER * at) as i32, obj: rings.barriers };
            self.b.push(SimtOp::MbarInit { addr, count });
        }
    }

    /// The iterations of the loop that fall to this block: from the first to before the last.
    pub(super) fn share(&mut self, plan: &HopperPlan, extent: Idx) -> (Val, Val) {
        let n = index::to_val(&mut self.b, extent, Ty::B32);
        match plan.runs {
            Some(Runs { length, spread: true, .. }) => {
                let rank = self.b.special(Special::ClusterRank);
                self.run_bounds(rank, length, n)
            }
            _ => (self.b.c32(0), n),
        }
    }

    fn run_bounds(&mut self, run: Val, length: usize, n: Val) -> (Val, Val) {
        let b = &mut self.b;
        let length = b.c32(length as i64);
        let lo = b.mul(Num::S32, run, length);
        let hi = b.add(Num::S32, lo, length);
        (lo, b.bin(Bin::Min, Num::S32, hi, n))
    }

    /// Runs `multiply` for each run of iterations, and leaves the sum of the runs in the accumulators.
    pub(super) fn in_runs(
        &mut self,
        runs: Runs,
        accs: &[Vars],
        extent: Idx,
        multiply: &mut dyn FnMut(&mut Self, Val, Val) -> Result,
    ) -> Result {
        let n = index::to_val(&mut self.b, extent, Ty::B32);
        let accs: Vec<Var> = accs.iter().flatten().copied().collect();
        let zero = self.b.zero(Ty::F32);
        let sums: Vec<Var> = accs
            .iter()
            .map(|_| {
                let sum = self.b.new_var(Ty::F32);
                self.b.set(sum, zero);
                sum
            })
            .collect();
        let (none, one, count) = (self.b.c32(0), self.b.c32(1), self.b.c32(runs.count as i64));
        let run = self.b.begin_for(Ty::B32);
        let (lo, hi) = self.run_bounds(run, runs.length, n);
        multiply(self, lo, hi)?;
        let first = self.b.setp(Cmp::Eq, Num::S32, run, none);
        for (&acc, &sum) in accs.iter().zip(&sums) {
            let (part, before) = (self.b.get(acc), self.b.get(sum));
            let both = self.b.add(Num::F32, before, part);
            // Not zero plus the first: that would lose a negative zero.
            let now = self.b.selp(first, part, both);
            self.b.set(sum, now);
        }
        self.b.end_for(run, none, count, one, true);
        for (&acc, &sum) in accs.iter().zip(&sums) {
            let sum = self.b.get(sum);
            self.b.set(acc, sum);
        }
        Ok(())
    }

    /// Hands this block's sums to the first block of the cluster, or adds the others' to its own.
    pub(super) fn hand_over(&mut self, role: &HopperRole, accs: &[Vars]) {
        let rings = &role.rings;
        let Some(h) = rings.handover else { return };
        let accs: Vec<Var> = accs.iter().flatten().copied().collect();
        let plan = rings.plan.clone();
        let b = &mut self.b;
        let (base, barriers) = (b.shared_addr(h.parts), b.shared_addr(rings.barriers));
        let barrier = |at: usize| Addr { base: barriers, offset: (MBARRIER * at) as i32, obj: rings.barriers };
        let (given, free) = (barrier(h.first), barrier(h.first + 1));
        let (rank, tid, lane) = (b.special(Special::ClusterRank), b.special(Special::Tid), b.special(Special::LaneId));
        // Each warp's sums lie together: four of each lane side by side, then the next four.
        let (zero, warp_size, chunk) = (b.c32(0), b.c32(WARP as i64), b.c32((4 * accs.len() * WARP) as i64));
        let warp = b.bin(Bin::Div, Num::U32, tid, warp_size);
        let warp_base = b.mad(Num::S32, warp, chunk, base);
        let bytes = b.c32(4 * TOGETHER as i64);
        let base = b.mad(Num::S32, lane, bytes, warp_base);
        let at = |part: usize, i: usize, base: Val| Addr {
            base,
            offset: (part * plan.part_bytes() + 4 * i * WARP) as i32,
            obj: h.parts,
        };
        let is_first = b.setp(Cmp::Eq, Num::S32, rank, zero);
        let parity = b.get(h.parity);
        let one = b.c32(1);
        let flipped = b.bin(Bin::Xor, Num::B32, parity, one);

        let first_body = b.open(false);
        let is_leader = b.setp(Cmp::Eq, Num::S32, tid, zero);
        let (then_body, ()) = b.in_block(false, |b| {
            b.push(SimtOp::MbarExpect { addr: given, bytes: plan.parts_bytes() as u32 });
        });
        let (else_body, ()) = b.in_block(false, |_| ());
        b.push(SimtOp::If { cond: is_leader, uniform: false, then_body, else_body });
        b.push(SimtOp::MbarWait { addr: given, parity });
        for part in 0..plan.spread() - 1 {
            for (i, four) in accs.chunks(TOGETHER).enumerate() {
                let theirs =
                    b.ld(Space::Shared, MemTy::F32, Cache::Default, at(part, i * TOGETHER, base), four.len(), None);
                for (&acc, theirs) in four.iter().zip(theirs) {
                    let mine = b.get(acc);
                    let sum = b.add(Num::F32, mine, theirs);
                    b.set(acc, sum);
                }
            }
        }
        b.close();

        let other_body = b.open(false);
        // The phase before the first one counts as ended: nothing has been handed over yet.
        b.push(SimtOp::MbarWait { addr: free, parity: flipped });
        let before = b.sub(Num::S32, rank, one);
        let size = b.c32(plan.part_bytes() as i64);
        let mine = b.mad(Num::S32, before, size, base);
        for (i, four) in accs.chunks(TOGETHER).enumerate() {
            let vals: Vals = four.iter().map(|&acc| b.get(acc)).collect();
            b.st(Space::Shared, MemTy::F32, at(0, i * TOGETHER, mine), vals, None);
        }
        // One copy for each warp: single stores would each have to be counted by the barrier.
        b.push(SimtOp::AsyncFence {});
        b.push(SimtOp::BarWarp {});
        let is_lane = b.setp(Cmp::Eq, Num::S32, lane, zero);
        let mine = b.mad(Num::S32, before, size, warp_base);
        let (then_body, ()) = b.in_block(false, |b| {
            let bytes = (4 * accs.len() * WARP) as u32;
            b.push(SimtOp::BulkSend { addr: at(0, 0, mine), bytes, bar: given, rank: zero });
        });
        let (else_body, ()) = b.in_block(false, |_| ());
        b.push(SimtOp::If { cond: is_lane, uniform: false, then_body, else_body });
        b.close();
        b.push(SimtOp::If { cond: is_first, uniform: true, then_body: first_body, else_body: other_body });
        b.set(h.parity, flipped);
    }

    /// Runs what follows the loop in the first block of the cluster alone, and then lets the others hand over again.
    pub(super) fn in_first_block(&mut self, role: &HopperRole, rest: &mut dyn FnMut(&mut Self) -> Result) -> Result {
        let rings = &role.rings;
        let Some(h) = rings.handover else { return rest(self) };
        self.flush();
        let (rank, zero) = (self.b.special(Special::ClusterRank), self.b.c32(0));
        let is_first = self.b.setp(Cmp::Eq, Num::S32, rank, zero);
        let then_body = self.b.open(false);
        rest(self)?;
        self.flush();
        let b = &mut self.b;
        let base = b.shared_addr(rings.barriers);
        let addr = Addr { base, offset: (MBARRIER * (h.first + 1)) as i32, obj: rings.barriers };
        // Lane `r` of each warp tells block `r`, once all its lanes have read.
        b.push(SimtOp::BarWarp {});
        let (lane, count) = (b.special(Special::LaneId), b.c32(rings.plan.spread() as i64));
        let (some, other) = (b.setp(Cmp::Lt, Num::S32, lane, count), b.setp(Cmp::Gt, Num::S32, lane, zero));
        let guard = b.and_guard(Some(some), Some(other));
        b.push(SimtOp::MbarReleaseAt { addr, rank: lane, guard });
        b.close();
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond: is_first, uniform: true, then_body, else_body });
        Ok(())
    }
}
