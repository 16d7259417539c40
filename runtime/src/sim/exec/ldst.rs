//! Loads and stores of a whole warp, and the counting of sectors and bank conflicts.

use super::access::How;
use super::regs::lanes;
use super::state::{Cluster, Warp};
use crate::sim::decode::op::{Inst, MemOp, Space};

impl Cluster<'_> {
    pub fn load(&mut self, warp: &mut Warp, i: &Inst, m: MemOp, active: u32) {
        let addrs = warp.regs.addresses(i.a, m.a64, i.imm);
        let bytes = u32::from(m.elem) * u32::from(m.n);
        let how = How { strong: m.strong, constant: m.constant, ..How::PLAIN };
        let mut data = [0u128; 32];
        for l in lanes(active) {
            data[l] = self.load_one(warp, l, m.space, addrs[l], bytes, how);
        }
        self.count_access(warp, m.space, &addrs, bytes, active, false);
        self.scatter(warp, i.e, m, &data, active);
    }

    /// `ld.param` at a fixed offset: one value for all lanes.
    pub fn load_param(&mut self, warp: &mut Warp, i: &Inst, m: MemOp, active: u32) {
        let address = crate::sim::memory::addr::PARAM_WINDOW.wrapping_add_signed(i.imm);
        let bytes = u32::from(m.elem) * u32::from(m.n);
        let lane = active.trailing_zeros() as usize;
        let v = self.load_one(warp, lane, Space::Param, address, bytes, How::PLAIN);
        self.scatter(warp, i.e, m, &[v; 32], active);
    }

    /// Distributes loaded bytes to the destination registers.
    fn scatter(&self, warp: &mut Warp, list: u32, m: MemOp, data: &[u128; 32], active: u32) {
        let bits = u32::from(m.elem) * 8;
        for k in 0..u32::from(m.n) {
            let slot = self.env.kernel.pool[(list + k) as usize];
            if m.wide {
                let mut out = [0u64; 32];
                for l in 0..32 {
                    out[l] = extend((data[l] >> (k * bits)) as u64, bits, m.signed);
                }
                warp.regs.put(slot, &out, active);
            } else {
                let mut out = [0u32; 32];
                for l in 0..32 {
                    out[l] = extend((data[l] >> (k * bits)) as u64, bits, m.signed) as u32;
                }
                // A sub-word load into a 16-bit register keeps its zero upper half when unsigned.
                warp.regs.put(slot, &out, active);
            }
        }
    }

    pub fn store(&mut self, warp: &mut Warp, i: &Inst, m: MemOp, active: u32) {
        let addrs = warp.regs.addresses(i.a, m.a64, i.imm);
        let bytes = u32::from(m.elem) * u32::from(m.n);
        let data = self.gather(warp, i.e, m.elem, m.n, m.wide);
        let how = How { strong: m.strong, ..How::PLAIN };
        for l in lanes(active) {
            self.store_one(warp, l, m.space, addrs[l], (bytes, data[l]), how);
        }
        self.count_access(warp, m.space, &addrs, bytes, active, true);
    }

    /// Collects the bytes to store from the source registers.
    pub fn gather(&self, warp: &Warp, list: u32, elem: u8, n: u8, wide: bool) -> [u128; 32] {
        let bits = u32::from(elem) * 8;
        let keep = super::access::mask(elem.into());
        let mut data = [0u128; 32];
        for k in 0..u32::from(n) {
            let slot = self.env.kernel.pool[(list + k) as usize];
            if wide {
                let v: [u64; 32] = warp.regs.get(slot);
                for l in 0..32 {
                    data[l] |= (u128::from(v[l]) & keep) << (k * bits);
                }
            } else {
                let v: [u32; 32] = warp.regs.get(slot);
                for l in 0..32 {
                    data[l] |= (u128::from(v[l]) & keep) << (k * bits);
                }
            }
        }
        data
    }

    /// Counts sectors (global) or wavefronts (shared) of a warp's access.
    pub fn count_access(&mut self, warp: &Warp, space: Space, addrs: &[u64; 32], bytes: u32, active: u32, write: bool) {
        if !self.env.options.count_accesses || active == 0 {
            return;
        }
        let space = match space {
            Space::Generic => Self::resolve(addrs[active.trailing_zeros() as usize]).0,
            s => s,
        };
        match space {
            Space::Global => {
                let moved = u64::from(bytes) * u64::from(active.count_ones());
                if write {
                    self.counters.global_written += moved;
                } else {
                    self.counters.global_read += moved;
                }
                let sectors = count_sectors(addrs, bytes, active);
                let c = &mut self.counters.per_inst[warp.pc as usize];
                c.sectors += sectors;
                c.ideal_sectors += moved.div_ceil(32).min(sectors);
            }
            Space::Shared | Space::SharedCluster => {
                let (waves, least) = count_wavefronts(addrs, bytes, active);
                let c = &mut self.counters.per_inst[warp.pc as usize];
                c.wavefronts += waves;
                c.bank_conflicts += waves - least;
            }
            Space::Generic | Space::Local | Space::Param | Space::Const => {}
        }
    }
}

#[inline(always)]
fn extend(v: u64, bits: u32, signed: bool) -> u64 {
    if bits >= 64 {
        return v;
    }
    let v = v & ((1 << bits) - 1);
    if signed { ((v << (64 - bits)) as i64 >> (64 - bits)) as u64 } else { v }
}

/// Distinct 32-byte sectors of a warp's access.
fn count_sectors(addrs: &[u64; 32], bytes: u32, active: u32) -> u64 {
    let mut seen = [0u64; 64];
    let mut n = 0usize;
    let mut highest = 0u64;
    for l in lanes(active) {
        for s in [addrs[l] >> 5, (addrs[l] + u64::from(bytes) - 1) >> 5] {
            let new = n == 0 || s > highest || !seen[..n].contains(&s);
            if new {
                seen[n] = s;
                n += 1;
                highest = highest.max(s);
            }
        }
    }
    n as u64
}

/// Passes a shared access takes, and the fewest its width allows: 32 lanes of up to 4 bytes, 16 of 8 or 8 of 16 per pass.
pub fn count_wavefronts(addrs: &[u64; 32], bytes: u32, active: u32) -> (u64, u64) {
    let group = match bytes {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    let (mut waves, mut least) = (0, 0);
    for g in (0..32).step_by(group) {
        let in_group = active >> g & if group == 32 { u32::MAX } else { (1 << group) - 1 };
        if in_group == 0 {
            continue;
        }
        least += 1;
        let mut first = [u64::MAX; 32];
        let mut depth = [0u8; 32];
        let mut more: Vec<u64> = Vec::new();
        for l in lanes(in_group) {
            let base = addrs[g + l] / 4;
            for w in base..base + u64::from(bytes.div_ceil(4)) {
                let bank = (w % 32) as usize;
                if first[bank] == u64::MAX {
                    first[bank] = w;
                    depth[bank] = 1;
                } else if first[bank] != w && !more.contains(&w) {
                    more.push(w);
                    depth[bank] += 1;
                }
            }
        }
        waves += u64::from(depth.iter().copied().max().unwrap_or(1));
    }
    (waves, least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(stride: u64) -> [u64; 32] {
        std::array::from_fn(|l| 1024 + l as u64 * stride)
    }

    #[test]
    fn wavefronts_follow_the_stride() {
        assert_eq!(count_wavefronts(&strided(4), 4, u32::MAX), (1, 1));
        assert_eq!(count_wavefronts(&strided(8), 4, u32::MAX), (2, 1));
        assert_eq!(count_wavefronts(&strided(128), 4, u32::MAX), (32, 1));
        assert_eq!(count_wavefronts(&strided(0), 4, u32::MAX), (1, 1));
        assert_eq!(count_wavefronts(&strided(16), 16, u32::MAX), (4, 4));
        assert_eq!(count_wavefronts(&strided(128), 16, u32::MAX), (32, 4));
    }

    #[test]
    fn sectors_follow_the_stride() {
        assert_eq!(count_sectors(&strided(4), 4, u32::MAX), 4);
        assert_eq!(count_sectors(&strided(16), 16, u32::MAX), 16);
        assert_eq!(count_sectors(&strided(64), 4, u32::MAX), 32);
        assert_eq!(count_sectors(&strided(0), 4, 0xFF), 1);
    }

    #[test]
    fn sign_extension() {
        assert_eq!(extend(0x80, 8, true), 0xFFFF_FFFF_FFFF_FF80);
        assert_eq!(extend(0x1_80, 8, false), 0x80);
    }
}
