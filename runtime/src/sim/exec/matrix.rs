//! `ldmatrix` and `stmatrix`: 8x8 tiles of 16-bit elements between shared memory and the registers of a warp.

use super::access::How;
use super::state::{Cluster, Warp};
use crate::sim::decode::op::{Inst, Space};
use crate::sim::fault::FaultKind;

impl Cluster<'_> {
    /// Collective instructions need the whole warp.
    pub fn need_whole_warp(&mut self, warp: &Warp, active: u32) {
        if active != u32::MAX {
            self.fault(warp, active.trailing_zeros() as usize, FaultKind::WarpMask, None, || {
                format!("the instruction needs all 32 lanes, only {active:#010x} execute it")
            });
        }
    }

    /// The rows' addresses: lanes 8k to 8k+7 give those of tile k. Returns addresses in shared space.
    fn row_addresses(warp: &Warp, i: &Inst, a64: bool, generic: bool) -> [u64; 32] {
        let a = warp.regs.addresses(i.a, a64, i.imm);
        if generic { a.map(|a| Self::resolve(a).1) } else { a }
    }

    pub fn ldmatrix(
        &mut self,
        warp: &mut Warp,
        i: &Inst,
        active: u32,
        (n, trans, a64, generic): (u8, bool, bool, bool),
    ) {
        self.need_whole_warp(warp, active);
        let addrs = Self::row_addresses(warp, i, a64, generic);
        let used = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
        for k in 0..usize::from(n) {
            let mut rows = [0u128; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let lane = 8 * k + r;
                *row = self.load_one(warp, lane, Space::Shared, addrs[lane], 16, How::PLAIN);
            }
            let mut out = [0u32; 32];
            for (l, o) in out.iter_mut().enumerate() {
                let (g, t) = (l / 4, l % 4);
                *o = if trans {
                    let at = |r: usize| (rows[r] >> (16 * g)) as u32 & 0xFFFF;
                    at(2 * t) | at(2 * t + 1) << 16
                } else {
                    (rows[g] >> (32 * t)) as u32
                };
            }
            let slot = self.env.kernel.pool[i.e as usize + k];
            warp.regs.put(slot, &out, active);
        }
        self.count_access(warp, Space::Shared, &addrs, 16, used, false);
    }

    pub fn stmatrix(
        &mut self,
        warp: &mut Warp,
        i: &Inst,
        active: u32,
        (n, trans, a64, generic): (u8, bool, bool, bool),
    ) {
        self.need_whole_warp(warp, active);
        let addrs = Self::row_addresses(warp, i, a64, generic);
        let used = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
        for k in 0..usize::from(n) {
            let v: [u32; 32] = warp.regs.get(self.env.kernel.pool[i.e as usize + k]);
            for r in 0..8 {
                let mut row = 0u128;
                if trans {
                    // Lane 4g+t holds rows 2t and 2t+1 of column g.
                    for g in 0..8 {
                        let half = v[4 * g + r / 2] >> (16 * (r % 2)) & 0xFFFF;
                        row |= u128::from(half) << (16 * g);
                    }
                } else {
                    for t in 0..4 {
                        row |= u128::from(v[4 * r + t]) << (32 * t);
                    }
                }
                let lane = 8 * k + r;
                self.store_one(warp, lane, Space::Shared, addrs[lane], (16, row), How::PLAIN);
            }
        }
        self.count_access(warp, Space::Shared, &addrs, 16, used, true);
    }
}
