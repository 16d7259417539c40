//! `cp.async`: copies from global to shared memory that become visible when their group is waited for.
//!
//! The source is read at issue, the destination is written when the copy is waited for: a kernel that forgets the wait
//! reads old data here as it may on the GPU.

use super::access::{How, SharedAt};
use super::mbarrier::Change;
use super::regs::lanes;
use super::state::{Cluster, Warp};
use crate::sim::check::shadow::PENDING;
use crate::sim::decode::op::{Inst, Space};

/// A copy in flight.
#[derive(Debug, Clone, Copy)]
struct Copy {
    lane: u8,
    group: u32,
    to: SharedAt,
    bytes: u32,
    data: u128,
}

/// A warp's copies in flight and its lanes' group counters.
#[derive(Debug, Default)]
pub struct CopyQueue {
    pending: Vec<Copy>,
    /// Groups each lane has committed.
    committed: [u32; 32],
    /// Bulk copy groups: committed, uncommitted copies, and groups waited for, per lane.
    pub bulk: BulkGroups,
}

/// Bulk-group counters of a warp's lanes.
#[derive(Debug, Default)]
pub struct BulkGroups {
    pub committed: [u32; 32],
    pub open: [u32; 32],
    pub waited: [u32; 32],
    /// Clock component of these copies, once there is one.
    pub component: Option<u16>,
}

impl Cluster<'_> {
    pub fn cp_async(
        &mut self,
        warp: &mut Warp,
        i: &Inst,
        active: u32,
        (bytes, sized, ignore, a64): (u8, bool, bool, bool),
    ) {
        let bytes = u32::from(bytes);
        let to = warp.regs.addresses(i.a, a64, i.imm);
        let from: [u64; 32] = warp.regs.get(i.b);
        let offset = warp.regs.w64[i.e as usize][0];
        let mut read = [0u64; 32];
        for l in lanes(active) {
            let from = from[l].wrapping_add(offset);
            read[l] = from;
            let size = match (sized, ignore) {
                (true, _) => warp.regs.w32[i.c as usize][l],
                (_, true) if warp.regs.p[i.c as usize] >> l & 1 != 0 => 0,
                _ => bytes,
            };
            if size > bytes {
                self.fault(warp, l, crate::sim::FaultKind::BadDescriptor, None, || {
                    format!("source size {size} exceeds the copy size {bytes}")
                });
            }
            let data = self.read_prefix(warp, l, from, bytes, size.min(bytes));
            let Some(p) = self.own_place(warp, l, to[l], bytes) else {
                continue;
            };
            let how = How { agent: Some((PENDING, u32::from(warp.agent.id))), ..How::PLAIN };
            if let Some(c) = self.check_shared(warp, l, p, bytes, true, how) {
                self.shared_conflict(warp, l, to[l], true, c);
            }
            let group = warp.copies.committed[l];
            warp.copies.pending.push(Copy { lane: l as u8, group, to: p, bytes, data });
        }
        self.count_access(warp, Space::Global, &read, bytes, active, false);
        self.count_access(warp, Space::Shared, &to, bytes, active, true);
    }

    /// A destination in the block's own shared memory, by shared or generic address.
    fn own_place(&mut self, warp: &Warp, lane: usize, address: u64, bytes: u32) -> Option<SharedAt> {
        let address =
            if address >> crate::sim::memory::addr::REGION_SHIFT != 0 { Self::resolve(address).1 } else { address };
        self.shared_place(warp, lane, Space::Shared, address, bytes)
    }

    /// The first `size` of `bytes` global bytes, the rest zero. Nothing is read for size 0, so the address may be anything.
    fn read_prefix(&mut self, warp: &mut Warp, lane: usize, from: u64, bytes: u32, size: u32) -> u128 {
        if size == bytes {
            return self.load_one(warp, lane, Space::Global, from, bytes, How::PLAIN);
        }
        let mut data = 0;
        let mut at = 0;
        while at < size {
            let step = if size - at >= 4 && from.is_multiple_of(4) { 4 } else { 1 };
            let v = self.load_one(warp, lane, Space::Global, from + u64::from(at), step, How::PLAIN);
            data |= v << (8 * at);
            at += step;
        }
        data
    }

    pub fn cp_async_commit(&mut self, warp: &mut Warp, active: u32) {
        for l in lanes(active) {
            warp.copies.committed[l] += 1;
        }
    }

    /// Finishes all but the last `keep` groups of the active lanes (or everything).
    pub fn cp_async_wait(&mut self, warp: &mut Warp, active: u32, keep: Option<u32>) {
        let committed = warp.copies.committed;
        let (comp, epoch) = (warp.agent.id, warp.agent.epoch);
        self.finish_copies(warp, comp, epoch, |c| {
            let lane = c.lane as usize;
            active >> lane & 1 != 0 && keep.is_none_or(|k| c.group + k < committed[lane])
        });
    }

    fn finish_copies(&mut self, warp: &mut Warp, comp: u16, epoch: u32, which: impl Fn(&Copy) -> bool) {
        let id = warp.agent.id;
        let checked = self.env.options.check_shared_races;
        let blocks = &mut self.blocks;
        warp.copies.pending.retain(|c| {
            let done = which(c);
            if done {
                let b = &mut blocks[c.to.block];
                b.poke(c.to.at, c.bytes, c.data);
                if checked {
                    b.shadow.settle(c.to.at, c.bytes, id, c.lane, comp, epoch);
                }
            }
            !done
        });
    }

    /// `cp.async.mbarrier.arrive`: the mbarrier learns of the lane's copies when they are done. They are done at once here,
    /// but only waiting on that mbarrier makes them visible.
    pub fn cp_async_mbar_arrive(
        &mut self,
        warp: &mut Warp,
        i: &Inst,
        active: u32,
        noinc: bool,
        space: Space,
        a64: bool,
    ) {
        let addrs = warp.regs.addresses(i.a, a64, i.imm);
        for l in lanes(active) {
            let Some(p) = self.live_mbar(warp, l, space, addrs[l]) else {
                continue;
            };
            let Some(m) = self.blocks[p.block].mbarriers.get(&p.at) else {
                continue;
            };
            let (comp, epoch) = (m.component, m.epoch());
            self.finish_copies(warp, comp, epoch, |c| c.lane as usize == l);
            // Without .noinc the pending count is raised first, so that the arrival changes nothing.
            if noinc {
                self.mbar_change(warp, l, p, Change { arrivals: 1, ..Change::default() });
            }
        }
    }

    /// Copies nobody waited for still land before the block's memory is gone.
    pub fn drain_copies(&mut self, warp: &mut Warp, lanes_mask: u32) {
        let (comp, epoch) = (PENDING, u32::from(warp.agent.id));
        self.finish_copies(warp, comp, epoch, |c| lanes_mask >> c.lane & 1 != 0);
    }
}
