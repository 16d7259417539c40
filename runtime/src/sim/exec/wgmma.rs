//! `wgmma`: 64 x n x k products of a warpgroup, operands in shared memory or registers, accumulators in registers.
//!
//! Each warp computes its 16 rows when it issues the instruction. That the result is not available, and the operands not
//! free, before the group has been waited for is enforced by checks: registers in flight are tracked, and the shared-memory
//! reads belong to an asynchronous agent that only `wgmma.wait_group` orders.

use std::collections::VecDeque;
use std::sync::Arc;

use super::access::{How, SharedAt};
use super::mma::{accumulate, decode, read_acc, transpose, unpack_rows, write_acc};
use super::state::{Block, Cluster, Warp};
use crate::sim::check::clock::Knowledge;
use crate::sim::decode::SHARED_BASE;
use crate::sim::decode::op::{Inst, MatTy, Op, WgmmaOp};
use crate::sim::decode::roles::wgmma_acc_regs;
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
            let rows = Tile { d, from: 16 * quarter, rows: 16, k: k as u32, ty: op.a, trans: op.trans_a };
            if !self.touch(warp, &rows, how, None) {
                return;
            }
            rows.read(&self.blocks[warp.block].shared)
        };
        let Some(d) = self.descriptor(warp, b_slot) else {
            return;
        };
        let tile = Tile { d, from: 0, rows: n as u32, k: k as u32, ty: op.b, trans: op.trans_b };
        // All four warps read B; for the race check each answers for a quarter of it.
        if !self.touch(warp, &tile, how, Some(quarter)) {
            return;
        }
        let b = self.blocks[warp.block].operand_tile(&tile);
        // Negating one factor or the other gives the same products.
        if op.negate_a != op.negate_b {
            a.iter_mut().for_each(|v| *v = -*v);
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

    /// Checks the reads of a tile; `share` restricts the race check to a quarter of its rows. False if it leaves memory.
    fn touch(&mut self, warp: &Warp, t: &Tile, how: How, share: Option<u32>) -> bool {
        let total = self.env.shared_bytes;
        let checked = self.env.options.check_shared_races || self.env.options.check_uninit;
        let (highest, lowest) = t.chunks().fold((0, u32::MAX), |(h, l), (_, _, at)| (h.max(at), l.min(at)));
        if lowest < SHARED_BASE || highest + 16 > SHARED_BASE + total {
            let bad = if lowest < SHARED_BASE { lowest } else { highest };
            self.fault(warp, 0, FaultKind::OutOfBounds, Some((u64::from(bad), "shared memory".into())), || {
                format!("matrix descriptor leads to offset {bad:#x}, shared memory ends at {:#x}", SHARED_BASE + total)
            });
            return false;
        }
        if checked {
            for (row, _, at) in t.chunks().filter(|(row, ..)| share.is_none_or(|s| (row / 8) % 4 == s)) {
                debug_assert!(row < t.rows);
                let p = SharedAt { block: warp.block, at: at - SHARED_BASE };
                self.load_shared(warp, 0, p, u64::from(at), 16, how);
            }
        }
        true
    }
}

/// Rows `from .. from + rows` of an operand in shared memory, `k` columns each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    d: Descriptor,
    from: u32,
    rows: u32,
    k: u32,
    ty: MatTy,
    trans: bool,
}

impl Tile {
    /// The 16-byte chunks: row and column (from 0) of their first element, and their offset in shared memory.
    fn chunks(&self) -> impl Iterator<Item = (u32, u32, u32)> + use<> {
        let t = *self;
        let size = t.ty.bits() / 8;
        let per = 16 / size;
        // The contiguous dimension is k, or the rows of a transposed operand.
        let (outer, inner) = if t.trans { (t.k, t.rows) } else { (t.rows, t.k) };
        (0..outer).flat_map(move |o| (0..inner).step_by(per as usize).map(move |c| (o, c))).map(move |(o, c)| {
            let (row, k) = if t.trans { (c, o) } else { (o, c) };
            (row, k, t.d.place(t.from + row, k, size, t.trans))
        })
    }

    /// The values, row by row. All chunks are known to be in bounds.
    fn read(&self, shared: &[u8]) -> Vec<f32> {
        let per = 16 / (self.ty.bits() / 8) as usize;
        let mut out = vec![0f32; (self.rows * self.k) as usize];
        let mut chunk = [0f32; 16];
        for (row, k, at) in self.chunks() {
            let from = (at - SHARED_BASE) as usize;
            decode(&shared[from..from + 16], self.ty, &mut chunk[..per]);
            let first = (row * self.k + k) as usize;
            if self.trans {
                for (e, v) in chunk[..per.min((self.rows - row) as usize)].iter().enumerate() {
                    out[first + e * self.k as usize] = *v;
                }
            } else {
                out[first..first + per].copy_from_slice(&chunk[..per]);
            }
        }
        out
    }
}

/// The B tiles a block has decoded since its shared memory last changed: the four warps of a warpgroup share them.
#[derive(Debug, Default)]
pub struct TileCache {
    tiles: VecDeque<(Tile, Arc<Vec<f32>>)>,
}

/// Tiles kept: the k steps of a few pipeline stages.
const CACHED_TILES: usize = 32;

impl TileCache {
    /// Shared memory has changed.
    #[inline]
    pub fn clear(&mut self) {
        if !self.tiles.is_empty() {
            self.tiles.clear();
        }
    }
}

impl Block {
    /// An operand tile stored by k, rows of `rows` values.
    fn operand_tile(&mut self, t: &Tile) -> Arc<Vec<f32>> {
        if let Some((_, v)) = self.tiles.tiles.iter().find(|(k, _)| k == t) {
            return Arc::clone(v);
        }
        let v = Arc::new(transpose(&t.read(&self.shared), t.rows as usize, t.k as usize));
        if self.tiles.tiles.len() == CACHED_TILES {
            self.tiles.tiles.pop_front();
        }
        self.tiles.tiles.push_back((*t, Arc::clone(&v)));
        v
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
