//! `wgmma`: 64 x n x k products of a warpgroup, operands in shared memory or registers, accumulators in registers.
//!
//! Each warp computes its 16 rows when it issues the instruction. That the result is not available, and the operands not
//! free, before the group has been waited for is enforced by checks: registers in flight are tracked, and the shared-memory
//! reads belong to an asynchronous agent that only `wgmma.wait_group` orders.

use std::collections::VecDeque;

use super::access::{How, SharedAt};
use super::mma::{accumulate, element, read_acc, transpose, unpack_rows, write_acc};
use super::state::{Cluster, Warp};
use crate::sim::check::clock::Knowledge;
use crate::sim::decode::SHARED_BASE;
use crate::sim::decode::op::{Inst, MatTy, Op, WgmmaOp};
use crate::sim::decode::slots::wgmma_acc_regs;
use crate::sim::fault::FaultKind;

/// A register's part in unfinished products.
const IDLE: u8 = 0;
const OPERAND: u8 = 1;
const ACCUMULATOR: u8 = 2;

/// A warp's `wgmma` groups.
#[derive(Debug, Default)]
pub struct WgmmaState {
    /// Registers of the group being built and of the committed groups, with their part.
    open: Vec<(u32, u8)>,
    groups: VecDeque<Vec<(u32, u8)>>,
    /// Part of each 32-bit slot.
    busy: Vec<u8>,
    /// Slots written since the last `wgmma.fence`.
    dirty: Vec<bool>,
    fenced: bool,
    committed: u32,
    component: Option<u16>,
}

impl WgmmaState {
    fn grow(&mut self, slots: usize) {
        if self.busy.len() < slots {
            self.busy.resize(slots, IDLE);
            // Before the first fence every register counts as written.
            self.dirty.resize(slots, true);
        }
    }

    fn outstanding(&self) -> bool {
        !self.open.is_empty() || !self.groups.is_empty()
    }

    fn rebuild(&mut self) {
        self.busy.fill(IDLE);
        for (slot, part) in self.groups.iter().flatten().chain(&self.open) {
            let b = &mut self.busy[*slot as usize];
            *b = (*b).max(*part);
        }
    }
}

/// A matrix descriptor, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    /// Bytes of a swizzle atom row: 16 for none.
    atom: u32,
}

impl Descriptor {
    fn decode(bits: u64) -> Result<Descriptor, String> {
        let field = |low: u32| ((bits >> low & 0x3FFF) << 4) as u32;
        if bits >> 49 & 7 != 0 {
            return Err(format!(
                "matrix descriptor {bits:#018x}: a base offset is not simulated, align the tile instead"
            ));
        }
        let atom = match bits >> 62 {
            0 => 16,
            1 => 128,
            2 => 64,
            _ => 32,
        };
        Ok(Descriptor { start: field(0), leading: field(16), stride: field(32), atom })
    }

    /// Offset in shared memory of the 16-byte chunk holding element (`row`, `k`), and the byte inside it.
    fn place(&self, row: u32, k: u32, size: u32, trans: bool) -> u32 {
        let linear = if !trans {
            let kb = k * size;
            if self.atom == 16 {
                (row / 8) * self.stride + (kb / 16) * self.leading + (row % 8) * 16 + kb % 16
            } else {
                (row / 8) * self.stride + (row % 8) * self.atom + kb
            }
        } else {
            let mb = row * size;
            if self.atom == 16 {
                (mb / 16) * self.stride + (k / 8) * self.leading + (k % 8) * 16 + mb % 16
            } else {
                (mb / self.atom) * self.leading + (k / 8) * self.stride + (k % 8) * self.atom + mb % self.atom
            }
        };
        swizzle(self.start.wrapping_add(linear), self.atom)
    }
}

/// The shared-memory address at which the swizzle of the given atom puts what a linear layout would put at `address`.
pub fn swizzle(address: u32, atom: u32) -> u32 {
    match atom {
        128 => address ^ (address >> 7 & 7) << 4,
        64 => address ^ (address >> 7 & 3) << 4,
        32 => address ^ (address >> 7 & 1) << 4,
        _ => address,
    }
}

impl Cluster<'_> {
    /// Faults on registers that an unfinished `wgmma` uses; called before every instruction of kernels that have one.
    pub fn check_wgmma_registers(&mut self, warp: &mut Warp, pc: u32) {
        let k = self.env.kernel;
        let (uses, defs) = &k.touched[pc as usize];
        let n = k.slots[1] as usize;
        warp.wgmma.grow(n);
        let is_wgmma = matches!(k.code[pc as usize].op, Op::Wgmma(_));
        if warp.wgmma.outstanding() && !is_wgmma {
            let read = uses.iter().find(|s| warp.wgmma.busy[**s as usize] == ACCUMULATOR);
            let written = defs.iter().find(|s| warp.wgmma.busy[**s as usize] != IDLE);
            let what = match (read, written) {
                (_, Some(s)) if warp.wgmma.busy[*s as usize] == OPERAND => {
                    Some("writes a register that an unfinished wgmma reads as A")
                }
                (_, Some(_)) => Some("writes the accumulator of an unfinished wgmma"),
                (Some(_), None) => Some("reads the accumulator of an unfinished wgmma"),
                (None, None) => None,
            };
            if let Some(what) = what {
                self.fault(warp, 0, FaultKind::WgmmaHazard, None, || {
                    format!("{what}: wgmma.wait_group must come first")
                });
            }
        }
        if !is_wgmma {
            for s in defs {
                warp.wgmma.dirty[*s as usize] = true;
            }
        }
    }

    pub fn wgmma_fence(&mut self, warp: &mut Warp) {
        warp.wgmma.dirty.fill(false);
        warp.wgmma.fenced = true;
    }

    pub fn wgmma_commit(&mut self, warp: &mut Warp) {
        let open = std::mem::take(&mut warp.wgmma.open);
        warp.wgmma.groups.push_back(open);
        warp.wgmma.committed += 1;
    }

    pub fn wgmma_wait(&mut self, warp: &mut Warp, keep: usize, active: u32) {
        let w = &mut warp.wgmma;
        if w.groups.len() > keep {
            let done = w.groups.len() - keep;
            w.groups.drain(..done);
            w.rebuild();
        }
        if let Some(component) = w.component {
            let mut k = Knowledge::default();
            k.order.raise(component, w.committed - w.groups.len() as u32);
            warp.agent.acquire(active, active == warp.alive, &k);
        }
    }

    pub fn wgmma(&mut self, warp: &mut Warp, i: &Inst, active: u32, op: WgmmaOp) {
        self.need_whole_warp(warp, active);
        let pool = &self.env.kernel.pool[i.e as usize..];
        let acc_regs = wgmma_acc_regs(&op);
        let (d_slots, rest) = pool.split_at(acc_regs);
        let (a_slots, rest) = rest.split_at(if op.a_regs { 4 } else { 1 });
        let (b_slot, scale_slot) = (rest[0], rest[1]);
        let n = op.n as usize;
        let size = op.a.bits() / 8;
        let k = (256 / op.a.bits()) as usize;
        if self.env.options.check_wgmma {
            self.note_registers(warp, d_slots, if op.a_regs { a_slots } else { &[] });
        }
        let component = match warp.wgmma.component {
            Some(c) => c,
            None => {
                let c = self.component();
                warp.wgmma.component = Some(c);
                c
            }
        };
        let how = How { agent: Some((component, warp.wgmma.committed + 1)), asynchronous: true, ..How::PLAIN };
        let quarter = warp.index % 4;
        let mut a = if op.a_regs {
            unpack_rows(warp, a_slots, op.a, k, 2)
        } else {
            let Some(d) = self.descriptor(warp, a_slots[0]) else {
                return;
            };
            self.tile(warp, d, (16 * quarter, 16, k as u32), (op.a, size), op.trans_a, how, None)
        };
        let Some(d) = self.descriptor(warp, b_slot) else {
            return;
        };
        // All four warps read B; for the race check each answers for a quarter of it.
        let b = self.tile(warp, d, (0, n as u32, k as u32), (op.b, size), op.trans_b, how, Some(quarter));
        let mut b = transpose(&b, n, k);
        if op.negate_a {
            a.iter_mut().for_each(|v| *v = -*v);
        }
        if op.negate_b {
            b.iter_mut().for_each(|v| *v = -*v);
        }
        let keep = warp.regs.p[scale_slot as usize] & active != 0;
        let mut values = if keep { read_acc(warp, d_slots, n, op.acc) } else { vec![0; 16 * n] };
        accumulate(&a, &b, &mut values, op.acc, (16, n, k));
        write_acc(warp, d_slots, n, op.acc, &values, active);
    }

    /// Checks and marks the registers a `wgmma` takes.
    fn note_registers(&mut self, warp: &mut Warp, acc: &[u32], a: &[u32]) {
        let slots = self.env.kernel.slots[1] as usize;
        warp.wgmma.grow(slots);
        let dirty = acc.iter().chain(a).any(|s| warp.wgmma.dirty[*s as usize]);
        if dirty || !warp.wgmma.fenced {
            self.fault(warp, 0, FaultKind::WgmmaHazard, None, || {
                "registers of this wgmma were written since the last wgmma.fence".into()
            });
        }
        let a_in_flight = a.iter().any(|s| warp.wgmma.busy[*s as usize] == ACCUMULATOR);
        if a_in_flight {
            self.fault(warp, 0, FaultKind::WgmmaHazard, None, || {
                "A comes from the accumulator of an unfinished wgmma".into()
            });
        }
        let parts = acc.iter().map(|s| (*s, ACCUMULATOR)).chain(a.iter().map(|s| (*s, OPERAND)));
        for (s, part) in parts {
            warp.wgmma.open.push((s, part));
            let b = &mut warp.wgmma.busy[s as usize];
            *b = (*b).max(part);
        }
    }

    fn descriptor(&mut self, warp: &Warp, slot: u32) -> Option<Descriptor> {
        let bits = &warp.regs.w64[slot as usize];
        if bits.iter().any(|b| *b != bits[0]) {
            self.fault(warp, 0, FaultKind::BadDescriptor, None, || {
                "the matrix descriptor differs between lanes".into()
            });
            return None;
        }
        match Descriptor::decode(bits[0]) {
            Ok(d) => Some(d),
            Err(message) => {
                self.fault(warp, 0, FaultKind::BadDescriptor, None, || message);
                None
            }
        }
    }

    /// Reads rows `from .. from + rows` of an operand tile as f32, `k` columns each.
    #[allow(clippy::too_many_arguments)]
    fn tile(
        &mut self,
        warp: &Warp,
        d: Descriptor,
        (from, rows, k): (u32, u32, u32),
        (ty, size): (MatTy, u32),
        trans: bool,
        how: How,
        share: Option<u32>,
    ) -> Vec<f32> {
        let mut out = vec![0f32; (rows * k) as usize];
        let per = 16 / size;
        // Chunks of 16 bytes along the contiguous dimension.
        let (outer, inner) = if trans { (k, rows) } else { (rows, k) };
        for o in 0..outer {
            for c in (0..inner).step_by(per as usize) {
                let (row, kk) = if trans { (c, o) } else { (o, c) };
                let offset = d.place(from + row, kk, size, trans);
                let checked = share.is_none_or(|s| (row / 8) % 4 == s);
                let Some(chunk) = self.operand_chunk(warp, offset, checked, how) else {
                    return out;
                };
                for e in 0..per.min(inner - c) {
                    let bits = (chunk >> (8 * size * e)) as u32;
                    let (r, q) = if trans { (c + e, o) } else { (o, c + e) };
                    let keep = if size == 4 { u32::MAX } else { (1 << (8 * size)) - 1 };
                    out[(r * k + q) as usize] = element(bits & keep, ty);
                }
            }
        }
        out
    }

    fn operand_chunk(&mut self, warp: &Warp, offset: u32, checked: bool, how: How) -> Option<u128> {
        let at = offset.wrapping_sub(SHARED_BASE);
        let total = self.env.shared_bytes;
        let address = u64::from(offset);
        if at >= total || total - at < 16 {
            self.fault(warp, 0, FaultKind::OutOfBounds, Some((address, "shared memory".into())), || {
                format!(
                    "matrix descriptor leads to offset {offset:#x}, shared memory ends at {:#x}",
                    SHARED_BASE + total
                )
            });
            return None;
        }
        let p = SharedAt { block: warp.block, at };
        if checked {
            return Some(self.load_shared(warp, 0, p, address, 16, how));
        }
        Some(self.blocks[p.block].peek(at, 16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_major_128_byte_swizzle() {
        // Start 0x400, rows of 128 bytes, 8-row groups 1024 bytes apart.
        let bits = 0x40 | (64u64 << 32) | 1 << 62;
        let d = Descriptor::decode(bits).expect("valid");
        assert_eq!((d.start, d.stride, d.atom), (0x400, 1024, 128));
        assert_eq!(d.place(0, 0, 2, false), 0x400);
        // Row 1, chunk 0 goes to chunk 1.
        assert_eq!(d.place(1, 0, 2, false), 0x400 + 128 + 16);
        // Row 9 = row 1 of the next group.
        assert_eq!(d.place(9, 8, 2, false), 0x400 + 1024 + 128);
    }

    #[test]
    fn base_offsets_are_refused() {
        assert!(Descriptor::decode(1 << 49).is_err());
    }
}
