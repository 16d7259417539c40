//! Named barriers of a block and the barrier of a cluster.

use super::state::{Cluster, Named, SplitState, WaitOn, Waiter, Warp};
use crate::sim::decode::op::{BoolOp, Inst};
use crate::sim::fault::FaultKind;

/// What a thread does at a named barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Sync { aligned: bool },
    Arrive,
    Reduce { op: Option<BoolOp>, aligned: bool },
}

/// Whether the split goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Go,
    Wait(WaitOn),
}

impl Cluster<'_> {
    /// A warp arrives at a named barrier of its block.
    pub fn bar(&mut self, warp: &mut Warp, me: usize, split: usize, i: &Inst, active: u32, at: At) -> Pass {
        let lane = active.trailing_zeros() as usize;
        let id = warp.regs.w32[i.a as usize][lane];
        let count = warp.regs.w32[i.b as usize][lane];
        self.counters.barriers += 1;
        if id > 15 {
            self.fatal(warp, lane, FaultKind::BarrierMisuse, || {
                format!("barrier {id} does not exist: there are 0 to 15")
            });
            return Pass::Go;
        }
        if !count.is_multiple_of(32) {
            self.fatal(warp, lane, FaultKind::BarrierMisuse, || {
                format!("thread count {count} is not a multiple of 32")
            });
            return Pass::Go;
        }
        let (aligned, reduce) = match at {
            At::Sync { aligned } => (aligned, None),
            At::Arrive => (true, None),
            At::Reduce { op, aligned } => (aligned, Some(op)),
        };
        let whole = active == warp.alive;
        if aligned && !whole {
            let (active, alive) = (active, warp.alive);
            self.fault(warp, lane, FaultKind::BarrierMisuse, None, || {
                format!("only lanes {active:#010x} of {alive:#010x} reach the barrier: the warp has diverged")
            });
        }
        let live = self.blocks[warp.block].live_warps;
        let bar = &mut self.blocks[warp.block].named[id as usize];
        let wanted = if count == 0 { u32::MAX } else { count };
        if bar.expected != 0 && bar.expected != wanted {
            let old = bar.expected;
            let show = |n| if n == u32::MAX { "all".to_string() } else { format!("{n}") };
            self.fault(warp, lane, FaultKind::BarrierMisuse, None, || {
                format!("barrier {id} entered with {} threads while others expect {}", show(wanted), show(old))
            });
            return Pass::Go;
        }
        bar.expected = wanted;
        if let Some(op) = reduce {
            let p = (warp.regs.p[i.c as usize] ^ if i.imm != 0 { u32::MAX } else { 0 }) & active;
            if bar.count == 0 && bar.arrived == 0 && bar.partial.is_empty() {
                (bar.all, bar.any) = (true, false);
            }
            bar.count += p.count_ones();
            bar.all &= p == active;
            bar.any |= p != 0;
            bar.waiters.push(Waiter { warp: me, split, mask: active, result: Some((op, i.d)) });
        } else if matches!(at, At::Sync { .. }) {
            bar.waiters.push(Waiter { warp: me, split, mask: active, result: None });
        }
        warp.agent.release(active, whole, &mut bar.knowledge);
        if whole {
            bar.arrived += 32;
        } else {
            let lanes = match bar.partial.iter_mut().find(|(w, _)| *w == me) {
                Some((_, m)) => {
                    *m |= active;
                    *m
                }
                None => {
                    bar.partial.push((me, active));
                    active
                }
            };
            if lanes == warp.alive {
                bar.partial.retain(|(w, _)| *w != me);
                bar.arrived += 32;
            }
        }
        if let Some(done) = bar.complete(live) {
            self.release(warp, me, split, done);
            return Pass::Go;
        }
        if at == At::Arrive { Pass::Go } else { Pass::Wait(WaitOn::Barrier(id)) }
    }

    /// Lets the waiters of a completed barrier go. `warp` is the one that completed it (taken out of the list).
    fn release(&mut self, warp: &mut Warp, me: usize, split: usize, done: Named) {
        self.progress += 1;
        for w in &done.waiters {
            let other = w.warp != me;
            if other {
                std::mem::swap(&mut self.warps[w.warp], warp);
            }
            let whole = w.mask == warp.alive;
            warp.agent.acquire(w.mask, whole, &done.knowledge);
            if whole {
                warp.agent.warp_sync();
            }
            if other || w.split != split {
                warp.splits[w.split].state = SplitState::Ready;
            }
            if let Some((op, d)) = w.result {
                let all = |yes: bool| if yes { u32::MAX } else { 0 };
                match op {
                    None => warp.regs.put(d, &[done.count; 32], w.mask),
                    Some(BoolOp::And) => warp.regs.put_pred(d, all(done.all), w.mask),
                    Some(BoolOp::Or | BoolOp::Xor) => warp.regs.put_pred(d, all(done.any), w.mask),
                }
            }
            if other {
                std::mem::swap(&mut self.warps[w.warp], warp);
            }
        }
    }

    /// A warp of the block has exited: barriers that wait for all warps may now be complete.
    pub fn recheck_barriers(&mut self, warp: &mut Warp, me: usize) {
        let live = self.blocks[warp.block].live_warps;
        for id in 0..16 {
            let bar = &mut self.blocks[warp.block].named[id];
            if bar.expected == u32::MAX
                && bar.arrived > 0
                && let Some(done) = bar.complete(live)
            {
                self.release(warp, me, usize::MAX, done);
            }
        }
        self.complete_cluster_barrier();
    }

    /// `barrier.cluster.arrive`.
    pub fn cluster_arrive(&mut self, warp: &mut Warp, me: usize, active: u32, relaxed: bool) {
        if active != warp.alive {
            self.fault(warp, active.trailing_zeros() as usize, FaultKind::BarrierMisuse, None, || {
                "only part of the warp arrives at the cluster barrier".into()
            });
        }
        self.counters.barriers += 1;
        if self.barrier.arrived_for.len() <= me {
            let n = self.warps.len().max(me + 1);
            self.barrier.arrived_for.resize(n, 0);
        }
        if self.barrier.arrived_for[me] == self.barrier.phase + 1 {
            self.fatal(warp, 0, FaultKind::BarrierMisuse, || {
                "second arrival at the cluster barrier without a wait".into()
            });
            return;
        }
        self.barrier.arrived_for[me] = self.barrier.phase + 1;
        if !relaxed {
            warp.agent.release(active, active == warp.alive, &mut self.barrier.knowledge);
        }
        self.barrier.arrived += 1;
        self.complete_cluster_barrier();
    }

    fn complete_cluster_barrier(&mut self) {
        let live: u32 = self.blocks.iter().map(|b| b.live_warps).sum();
        if self.barrier.arrived == 0 || self.barrier.arrived < live {
            return;
        }
        self.progress += 1;
        self.barrier.arrived = 0;
        self.barrier.phase += 1;
        let k = std::mem::take(&mut self.barrier.knowledge);
        self.barrier.done.join(&k);
        for w in &mut self.warps {
            for s in &mut w.splits {
                if s.state == SplitState::Waiting(WaitOn::Cluster) {
                    s.state = SplitState::Ready;
                }
            }
        }
    }

    /// `barrier.cluster.wait`: passes once the phase this warp arrived for is complete.
    pub fn cluster_wait(&mut self, warp: &mut Warp, me: usize, active: u32) -> Pass {
        let phase = self.barrier.arrived_for.get(me).copied().unwrap_or(0);
        if phase == 0 {
            self.fatal(warp, 0, FaultKind::BarrierMisuse, || "wait at the cluster barrier without an arrival".into());
            return Pass::Go;
        }
        if self.barrier.phase < phase {
            return Pass::Wait(WaitOn::Cluster);
        }
        let whole = active == warp.alive;
        warp.agent.acquire(active, whole, &self.barrier.done);
        if whole {
            warp.agent.warp_sync();
        }
        Pass::Go
    }
}

impl Named {
    /// Takes the barrier's state if all expected threads have arrived.
    fn complete(&mut self, live_warps: u32) -> Option<Named> {
        let expected = if self.expected == u32::MAX { live_warps * 32 } else { self.expected };
        (self.arrived >= expected).then(|| std::mem::take(self))
    }
}
