//! Phase barriers in shared memory: arrival counts, transaction bytes, waits, and the order they establish.

use super::access::SharedAt;
use super::barrier::Pass;
use super::regs::lanes;
use super::state::{Cluster, SplitState, WaitOn, Warp};
use crate::sim::check::clock::Knowledge;
use crate::sim::check::shadow::{EMPTY, Who};
use crate::sim::decode::op::{Inst, MbarOp, Space};
use crate::sim::fault::FaultKind;

/// Largest magnitude of the pending transaction count.
const TX_LIMIT: i64 = (1 << 20) - 1;

/// One mbarrier.
#[derive(Debug, Clone)]
pub struct Mbarrier {
    /// Arrivals each phase needs; `arrive_drop` lowers it for the next phases.
    pub count: u32,
    pub pending: u32,
    /// Transaction bytes still expected; negative while data has arrived before its `expect_tx`.
    pub tx: i64,
    /// Completed phases.
    pub phase: u32,
    /// Clock component of the asynchronous copies that complete here; their epoch is the phase they belong to, plus one.
    pub component: u16,
    /// Warp and lane that initialised it, until a fence shows the initialisation to the async proxy.
    unseen: Option<(usize, u32, u32)>,
    gathering: Knowledge,
    done: Knowledge,
}

impl Mbarrier {
    /// The epoch of data that completes in the current phase.
    pub fn epoch(&self) -> u32 {
        self.phase + 1
    }

    fn try_complete(&mut self) -> bool {
        if self.pending != 0 || self.tx != 0 {
            return false;
        }
        self.phase += 1;
        self.pending = self.count;
        let k = std::mem::take(&mut self.gathering);
        self.done.join(&k);
        self.done.order.raise(self.component, self.phase);
        true
    }
}

/// A change to an mbarrier.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    pub arrivals: u32,
    pub tx: i64,
    pub drop: bool,
}

impl Cluster<'_> {
    fn own_space(space: Space) -> Space {
        if space == Space::SharedCluster { Space::SharedCluster } else { Space::Shared }
    }

    /// The place of an mbarrier operand.
    pub fn mbar_place(&mut self, warp: &Warp, lane: usize, space: Space, address: u64) -> Option<SharedAt> {
        let (space, address) = match space {
            Space::Generic if address >> crate::sim::memory::addr::REGION_SHIFT != 0 => Self::resolve(address),
            s => (Self::own_space(s), address),
        };
        self.shared_place(warp, lane, space, address, 8)
    }

    pub fn mbar_init(&mut self, warp: &mut Warp, i: &Inst, active: u32, a64: bool) {
        let addrs = warp.regs.addresses(i.a, a64, i.imm);
        for l in lanes(active) {
            let count = warp.regs.w32[i.b as usize][l];
            let Some(p) = self.mbar_place(warp, l, Space::Generic, addrs[l]) else {
                continue;
            };
            if count == 0 || i64::from(count) > TX_LIMIT {
                self.fault(warp, l, FaultKind::MbarrierMisuse, Some((addrs[l], "shared memory".into())), || {
                    format!("mbarrier count {count} is outside 1 to {TX_LIMIT}")
                });
                continue;
            }
            if self.blocks[p.block].mbarriers.contains_key(&p.at) {
                self.fault(warp, l, FaultKind::MbarrierMisuse, Some((addrs[l], "shared memory".into())), || {
                    "mbarrier.init of a live mbarrier: invalidate it first".into()
                });
            }
            self.store_shared(warp, l, p, addrs[l], (8, u128::from(count)), super::access::How::PLAIN);
            let component = self.component();
            let fresh = Mbarrier {
                count,
                pending: count,
                tx: 0,
                phase: 0,
                component,
                unseen: Some((warp.block, warp.index, l as u32)),
                gathering: Knowledge::default(),
                done: Knowledge::default(),
            };
            self.blocks[p.block].mbarriers.insert(p.at, fresh);
        }
    }

    /// Notes an access to the shared memory of `block` by a lane, in a component's epoch.
    #[inline]
    pub fn visit(&mut self, warp: &Warp, lane: usize, block: usize, (component, epoch): (u16, u32)) {
        if block != warp.block && self.env.options.check_shared_races {
            self.blocks[block].visits.insert((component, lane as u8), (epoch, warp.pc));
        }
    }

    /// Faults if the last warp of a block exits while nothing orders another block's access to its shared memory before that.
    pub fn visits_at_exit(&mut self, warp: &Warp) {
        let block = &self.blocks[warp.block];
        let own = || self.warps.iter().filter(|w| w.block == warp.block && w.agent.id != warp.agent.id).chain([warp]);
        let open = block.visits.iter().filter(|((component, lane), (epoch, _))| {
            !own().any(|w| w.agent.ordered(*lane, *component, *lane, *epoch))
        });
        let Some(pc) = open.map(|(_, (_, pc))| *pc).min() else { return };
        let line = self.env.kernel.lines[pc as usize];
        self.fault(warp, 0, FaultKind::PendingAtExit, None, || {
            format!("the block exits while another block of the cluster may still access its shared memory at PTX line {line}")
        });
    }

    /// A fence after which the async proxy sees the mbarriers that these lanes have initialised.
    pub fn show_mbarriers(&mut self, warp: &Warp, active: u32) {
        for m in self.blocks[warp.block].mbarriers.values_mut() {
            if m.unseen.is_some_and(|(b, w, l)| b == warp.block && w == warp.index && active >> l & 1 != 0) {
                m.unseen = None;
            }
        }
    }

    /// Faults if asynchronous copies may not see that the mbarrier they complete on has been initialised.
    pub fn need_seen(&mut self, warp: &Warp, lane: usize, p: SharedAt) {
        if self.blocks[p.block].mbarriers.get(&p.at).is_some_and(|m| m.unseen.is_some()) {
            self.fault(
                warp,
                lane,
                FaultKind::MissingProxyFence,
                Some((u64::from(p.at), "shared memory".into())),
                || {
                    "nothing shows the initialisation of the mbarrier to the async proxy: fence.mbarrier_init or \
                 fence.proxy.async must follow it"
                        .into()
                },
            );
        }
    }

    pub fn mbar_inval(&mut self, warp: &mut Warp, i: &Inst, active: u32, a64: bool) {
        let addrs = warp.regs.addresses(i.a, a64, i.imm);
        for l in lanes(active) {
            if let Some(p) = self.live_mbar(warp, l, Space::Generic, addrs[l]) {
                self.blocks[p.block].mbarriers.remove(&p.at);
            }
        }
    }

    /// The place of an initialised mbarrier, checking that its init is ordered before this use.
    pub fn live_mbar(&mut self, warp: &Warp, lane: usize, space: Space, address: u64) -> Option<SharedAt> {
        let p = self.mbar_place(warp, lane, space, address)?;
        if !self.blocks[p.block].mbarriers.contains_key(&p.at) {
            self.fault(warp, lane, FaultKind::MbarrierMisuse, Some((address, "shared memory".into())), || {
                "use of an mbarrier that was not initialised".into()
            });
            return None;
        }
        if self.env.options.check_shared_races {
            let who = Who {
                agent: &warp.agent,
                lane: lane as u8,
                pc: warp.pc,
                recorded_as: None,
                asynchronous: false,
                strong: true,
                last: EMPTY.into(),
            };
            if let Some(c) = self.blocks[p.block].shadow.check_write_before(p.at, 8, &who) {
                self.shared_conflict(warp, lane, address, false, c);
            }
        }
        Some(p)
    }

    /// Applies arrivals and transaction bytes; wakes waiters when a phase completes.
    pub fn mbar_change(&mut self, warp: &mut Warp, lane: usize, p: SharedAt, c: Change) {
        let Some(m) = self.blocks[p.block].mbarriers.get_mut(&p.at) else {
            return;
        };
        m.tx += c.tx;
        let (tx, pending) = (m.tx, m.pending);
        let mut bad = None;
        if c.arrivals > pending {
            bad =
                Some(format!("{} arrivals at an mbarrier that expects only {pending} more in this phase", c.arrivals));
        } else if tx.abs() > TX_LIMIT {
            bad = Some(format!("transaction count {tx} leaves the range of +-{TX_LIMIT}"));
        }
        m.pending = pending.saturating_sub(c.arrivals);
        if c.drop {
            m.count = m.count.saturating_sub(c.arrivals).max(1);
        }
        let complete = m.try_complete();
        if let Some(message) = bad {
            self.fault(warp, lane, FaultKind::MbarrierMisuse, Some((u64::from(p.at), "shared memory".into())), || {
                message
            });
        }
        if complete {
            self.progress += 1;
            let waits = SplitState::Waiting(WaitOn::Mbarrier { block: p.block, offset: p.at });
            for s in self.warps.iter_mut().chain([warp]).flat_map(|w| &mut w.splits) {
                if s.state == waits {
                    s.state = SplitState::Ready;
                }
            }
        }
    }

    pub fn mbar_arrive(&mut self, warp: &mut Warp, i: &Inst, active: u32, op: MbarOp) {
        let addrs = warp.regs.addresses(i.a, op.a64, i.imm);
        let whole = active == warp.alive;
        let mut released: Option<Knowledge> = None;
        // An arrival belongs to the epoch that it releases.
        let epoch = warp.agent.epoch;
        for l in lanes(active) {
            let Some(p) = self.live_mbar(warp, l, op.space, addrs[l]) else {
                continue;
            };
            let count = warp.regs.w32[i.b as usize][l];
            let tx = i64::from(warp.regs.w32[i.c as usize][l]);
            self.visit(warp, l, p.block, (warp.agent.id, epoch));
            let m = &self.blocks[p.block].mbarriers[&p.at];
            let state = u64::from(m.phase) | u64::from(m.pending) << 32;
            if op.arrive && !op.relaxed {
                // One release for the whole instruction: its lanes arrive together.
                let k = released.get_or_insert_with(|| {
                    let mut k = Knowledge::default();
                    warp.agent.release(active, whole, &mut k);
                    k
                });
                if let Some(m) = self.blocks[p.block].mbarriers.get_mut(&p.at) {
                    m.gathering.join(k);
                }
            }
            let change = Change {
                arrivals: if op.arrive { count } else { 0 },
                tx: if op.expect {
                    tx
                } else if op.complete {
                    -tx
                } else {
                    0
                },
                drop: op.drop,
            };
            self.mbar_change(warp, l, p, change);
            if op.arrive {
                warp.regs.w64[i.d as usize][l] = state;
            }
        }
    }

    /// `mbarrier.test_wait` and `try_wait`. A try that fails blocks until the phase completes, or once, with failure, when
    /// nothing else in the cluster can run.
    pub fn mbar_test(
        &mut self,
        warp: &mut Warp,
        split: usize,
        i: &Inst,
        active: u32,
        (parity, wait, a64, relaxed): (bool, bool, bool, bool),
    ) -> Pass {
        let addrs = warp.regs.addresses(i.a, a64, i.imm);
        let whole = active == warp.alive;
        let mut passed = 0u32;
        let mut blocked = None;
        let mut first: Option<SharedAt> = None;
        for l in lanes(active) {
            let Some(p) = self.live_mbar(warp, l, Space::Generic, addrs[l]) else {
                passed |= 1 << l;
                continue;
            };
            let m = &self.blocks[p.block].mbarriers[&p.at];
            let done = if parity {
                m.phase & 1 != warp.regs.w32[i.b as usize][l] & 1
            } else {
                m.phase > warp.regs.w64[i.b as usize][l] as u32
            };
            if done {
                passed |= 1 << l;
                // All lanes usually wait for the same barrier: learn from it once.
                if first != Some(p) && !relaxed {
                    let same = lanes(active).filter(|&o| addrs[o] == addrs[l]).fold(0, |m, o| m | 1u32 << o);
                    warp.agent.acquire(same, whole && same == active, &m.done);
                    first = Some(p);
                }
            } else {
                blocked = Some(WaitOn::Mbarrier { block: p.block, offset: p.at });
            }
        }
        if let Some(on) = blocked
            && wait
            && !warp.splits[split].timed_out
        {
            return Pass::Wait(on);
        }
        warp.splits[split].timed_out = false;
        warp.regs.put_pred(i.d, passed, active);
        Pass::Go
    }

    /// A new component of the vector clocks.
    pub fn component(&mut self) -> u16 {
        let c = self.next_component;
        self.next_component = self.next_component.saturating_add(1).min(super::super::check::shadow::PENDING - 1);
        c
    }
}
