//! `atom` and `red` on global and shared memory.

use super::access::How;
use super::combine::combine;
use super::regs::lanes;
use super::state::{Cluster, Warp};
use crate::sim::check::global::{Access, Combines};
use crate::sim::decode::op::{AtomOp, AtomSem, AtomTy, Inst, Space};

const STRONG: How = How { strong: true, ..How::PLAIN };

impl Cluster<'_> {
    /// Lanes act one after another in lane order, which keeps runs reproducible.
    pub fn atomic(
        &mut self,
        warp: &mut Warp,
        i: &Inst,
        active: u32,
        (space, op, ty, n): (Space, AtomOp, AtomTy, u8),
        (ret, a64, sem): (bool, bool, AtomSem),
    ) {
        let pool = &self.env.kernel.pool;
        let bytes = u32::from(ty.bytes());
        let wide = bytes == 8;
        let n = usize::from(n);
        let list = i.e as usize + if ret { n } else { 0 };
        let addrs = warp.regs.addresses(i.a, a64, i.imm);
        let read = |warp: &Warp, slot: u32, l: usize| {
            if wide { warp.regs.w64[slot as usize][l] } else { u64::from(warp.regs.w32[slot as usize][l]) }
        };
        for l in lanes(active) {
            for k in 0..n {
                let b = read(warp, pool[list + k], l);
                let new = if op == AtomOp::Cas { read(warp, pool[list + 1], l) } else { 0 };
                let address = addrs[l] + k as u64 * u64::from(bytes);
                let old = self.atomic_one(warp, l, space, address, (op, ty, sem), (b, new, ret));
                if ret {
                    let slot = pool[i.e as usize + k] as usize;
                    if wide {
                        warp.regs.w64[slot][l] = old;
                    } else {
                        warp.regs.w32[slot][l] = old as u32;
                    }
                }
            }
        }
        self.count_access(warp, space, &addrs, bytes * n as u32, active, true);
    }

    fn atomic_one(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        space: Space,
        address: u64,
        (op, ty, sem): (AtomOp, AtomTy, AtomSem),
        (b, new, ret): (u64, u64, bool),
    ) -> u64 {
        let bytes = u32::from(ty.bytes());
        let (space, address) = if space == Space::Generic { Self::resolve(address) } else { (space, address) };
        match space {
            Space::Shared | Space::SharedCluster => {
                let Some(p) = self.shared_place(warp, lane, space, address, bytes) else {
                    return 0;
                };
                let word = (p.at / 4) as usize;
                let before = self.blocks[p.block].written[word];
                // A store of a few bits, in two steps: what surrounds them may be unwritten, and stays so.
                let changed = if ret { None } else { changed_bytes(op, bytes, b) };
                if changed.is_none() && self.env.options.check_uninit && !self.blocks[p.block].is_written(p.at, bytes) {
                    self.uninitialised(warp, lane, address, bytes, "shared memory".into());
                }
                let old = self.blocks[p.block].peek(p.at, bytes) as u64;
                let value = combine(op, ty, old, b, new);
                self.store_shared(warp, lane, p, address, (bytes, u128::from(value)), STRONG);
                if let Some(bits) = changed {
                    self.blocks[p.block].written[word] = before | bits;
                }
                old
            }
            _ => {
                let check_uninit = self.env.options.check_uninit;
                let Some((a, at)) = self.global_place(warp, lane, address, bytes) else {
                    return 0;
                };
                let unwritten = check_uninit && !a.is_written(at, bytes);
                let old = a.update(at, bytes, |old| combine(op, ty, old, b, new));
                let len = a.len;
                if unwritten {
                    let name = self.buffer_name(address);
                    self.uninitialised(warp, lane, address, bytes, name);
                }
                if self.global.is_some() {
                    self.global_race(
                        warp,
                        lane,
                        address,
                        (at, bytes, len),
                        Access::Atomic { combines: combines(op), observes: ret },
                    );
                    self.race_within_block(warp, lane, address, (at, bytes), true, STRONG);
                    if let Some(g) = &mut self.global {
                        g.atomic(address, sem.acquire, sem.release);
                    }
                }
                old
            }
        }
    }
}

/// For the order of atomics of different blocks.
pub(super) fn combines(op: AtomOp) -> Combines {
    match op {
        AtomOp::Add => Combines::Sum,
        AtomOp::Min => Combines::Least,
        AtomOp::Max => Combines::Greatest,
        AtomOp::And | AtomOp::Or | AtomOp::Xor => Combines::Bits,
        AtomOp::Exch | AtomOp::Cas => Combines::Exchange,
        AtomOp::Inc | AtomOp::Dec => Combines::Count,
    }
}

/// The bytes of a word, as bits, that an `and` or `or` with `b` may change; `None` for what computes with all of its bits.
fn changed_bytes(op: AtomOp, bytes: u32, b: u64) -> Option<u8> {
    let neutral = match op {
        AtomOp::And if bytes == 4 => 0xFF,
        AtomOp::Or if bytes == 4 => 0,
        _ => return None,
    };
    Some((0..4).filter(|k| (b >> (8 * k)) as u8 != neutral).fold(0, |bits, k| bits | 1 << k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_leave_bytes_alone() {
        assert_eq!(changed_bytes(AtomOp::And, 4, 0xFFFF_0FFF), Some(0b0010));
        assert_eq!(changed_bytes(AtomOp::Or, 4, 0x0100_0000), Some(0b1000));
        assert_eq!(changed_bytes(AtomOp::Add, 4, 1), None);
    }
}
