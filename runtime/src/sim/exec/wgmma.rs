//! `wgmma`: 64 x n x k products of a warpgroup, operands in shared memory or registers, accumulators in registers.
//!
//! Each warp computes its 16 rows when it issues the instruction. That the result is not available, and the operands not
//! free, before the group has been waited for is enforced by checks: registers in flight are tracked, and the shared-memory
//! reads belong to an asynchronous agent that only `wgmma.wait_group` orders.

use std::collections::VecDeque;
use std::sync::Arc;

use super::access::How;
use super::mma::{accumulate, decode, multiply_eight, read_acc, unpack_rows, write_acc};
use super::state::{Block, Cluster, Warp};
use crate::sim::check::clock::Knowledge;
use crate::sim::check::shadow::{EMPTY, Who};
use crate::sim::decode::SHARED_BASE;
use crate::sim::decode::op::{AccTy, Inst, MatTy, WgmmaOp};
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
    /// For a kernel with this many 32-bit slots. Before the first fence every register counts as written.
    pub fn new(slots: usize) -> WgmmaState {
        WgmmaState { busy: vec![IDLE; slots], dirty: vec![true; slots], ..WgmmaState::default() }
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
    /// Faults on registers that an unfinished `wgmma` uses; called before every other instruction that reads (`uses`) or
    /// writes (`defs`) operands of one.
    pub fn check_wgmma_registers(&mut self, warp: &mut Warp, uses: &[u32], defs: &[u32]) {
        if warp.wgmma.outstanding() {
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
        for s in defs {
            warp.wgmma.dirty[*s as usize] = true;
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
            if !self.in_bounds(warp, &rows) {
                return;
            }
            self.touch(warp, &rows, how, None);
            rows.read(&self.blocks[warp.block].shared)
        };
        let Some(d) = self.descriptor(warp, b_slot) else {
            return;
        };
        let tile = Tile { d, from: 0, rows: n as u32, k: k as u32, ty: op.b, trans: op.trans_b };
        let b = match self.blocks[warp.block].tiles.find(&tile) {
            Some(b) => b,
            None if self.in_bounds(warp, &tile) => self.blocks[warp.block].operand_tile(&tile),
            None => return,
        };
        // All four warps read B; for the race check each answers for a quarter of it.
        self.touch(warp, &tile, how, Some(quarter));
        // Negating one factor or the other gives the same products.
        if op.negate_a != op.negate_b {
            a.iter_mut().for_each(|v| *v = -*v);
        }
        let keep = warp.regs.p[scale_slot as usize] & active != 0;
        match op.acc {
            AccTy::F32 => {
                for (j, slots) in d_slots.chunks_exact(4).enumerate() {
                    multiply_eight(warp, slots, &a, &b[8 * k * j..8 * k * (j + 1)], keep, active);
                }
            }
            AccTy::S32 | AccTy::F16 => {
                let mut values = if keep { read_acc(warp, d_slots, n, op.acc) } else { vec![0; 16 * n] };
                accumulate(&a, &by_rows(&b, n, k), &mut values, op.acc, (16, n, k));
                write_acc(warp, d_slots, n, op.acc, &values, active);
            }
        }
    }

    /// Checks and marks the registers a `wgmma` takes.
    fn note_registers(&mut self, warp: &mut Warp, acc: &[u32], a: &[u32]) {
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

    /// Faults if a tile leaves shared memory.
    fn in_bounds(&mut self, warp: &Warp, t: &Tile) -> bool {
        let total = self.env.shared_bytes;
        let (mut highest, mut lowest) = (0, u32::MAX);
        t.chunks(None, |_, _, at| (highest, lowest) = (highest.max(at), lowest.min(at)));
        let inside = lowest >= SHARED_BASE && highest + 16 <= SHARED_BASE + total;
        if !inside {
            let bad = if lowest < SHARED_BASE { lowest } else { highest };
            self.fault(warp, 0, FaultKind::OutOfBounds, Some((u64::from(bad), "shared memory".into())), || {
                format!("matrix descriptor leads to offset {bad:#x}, shared memory ends at {:#x}", SHARED_BASE + total)
            });
        }
        inside
    }

    /// Checks the reads of a tile that is in bounds; `share` restricts it to a quarter of the rows.
    fn touch(&mut self, warp: &Warp, t: &Tile, how: How, share: Option<u32>) {
        let (races, uninit) = (self.env.options.check_shared_races, self.env.options.check_uninit);
        let who = Who {
            agent: &warp.agent,
            lane: 0,
            pc: warp.pc,
            recorded_as: how.agent,
            asynchronous: how.asynchronous,
            strong: how.strong,
            last: EMPTY.into(),
        };
        let mut bad = Vec::new();
        let block = &mut self.blocks[warp.block];
        t.chunks(share, |_, _, at| {
            let place = at - SHARED_BASE;
            let unwritten = uninit && !block.is_written(place, 16);
            let conflict = if races { block.shadow.read(place, 16, &who) } else { None };
            if unwritten || conflict.is_some() {
                bad.push((at, unwritten, conflict));
            }
        });
        for (at, unwritten, conflict) in bad {
            if unwritten {
                self.uninitialised(warp, 0, u64::from(at), 16, "shared memory".into());
            }
            if let Some(c) = conflict {
                self.shared_conflict(warp, 0, u64::from(at), false, c);
            }
        }
    }
}

/// An operand from its panels of eight columns to rows of `n`.
fn by_rows(panels: &[f32], n: usize, k: usize) -> Vec<f32> {
    (0..k * n).map(|i| (i / n, i % n)).map(|(row, col)| panels[8 * k * (col / 8) + 8 * row + col % 8]).collect()
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
    /// Calls `f` for every 16-byte chunk, or those of a quarter of the rows, by eights: row and column (from 0) of the first
    /// element, and the offset in shared memory.
    #[inline(always)]
    fn chunks(&self, share: Option<u32>, mut f: impl FnMut(u32, u32, u32)) {
        let size = self.ty.bits() / 8;
        let per = 16 / size as usize;
        let wanted = |row: u32| share.is_none_or(|s| (row / 8) % 4 == s);
        if self.trans {
            // The contiguous dimension is that of the rows.
            for k in 0..self.k {
                for row in (0..self.rows).step_by(per).filter(|row| wanted(*row)) {
                    f(row, k, self.d.place(self.from + row, k, size, true));
                }
            }
        } else {
            for row in (0..self.rows).filter(|row| wanted(*row)) {
                for k in (0..self.k).step_by(per) {
                    f(row, k, self.d.place(self.from + row, k, size, false));
                }
            }
        }
    }

    /// Calls `f` with row, column and value of every element. All chunks are known to be in bounds.
    #[inline(always)]
    fn elements(&self, shared: &[u8], mut f: impl FnMut(usize, usize, f32)) {
        let per = 16 / (self.ty.bits() / 8) as usize;
        let mut chunk = [0f32; 16];
        self.chunks(None, |row, k, at| {
            let from = (at - SHARED_BASE) as usize;
            decode(&shared[from..from + 16], self.ty, &mut chunk[..per]);
            let (row, k) = (row as usize, k as usize);
            for (e, v) in chunk[..per].iter().enumerate() {
                if self.trans {
                    if row + e < self.rows as usize {
                        f(row + e, k, *v);
                    }
                } else {
                    f(row, k + e, *v);
                }
            }
        });
    }

    /// The values, row by row.
    fn read(&self, shared: &[u8]) -> Vec<f32> {
        let mut out = vec![0f32; (self.rows * self.k) as usize];
        self.elements(shared, |row, k, v| out[row * self.k as usize + k] = v);
        out
    }

    /// The values in panels of eight rows, each stored by k.
    fn panels(&self, shared: &[u8]) -> Vec<f32> {
        let depth = self.k as usize;
        let mut out = vec![0f32; self.rows as usize * depth];
        self.elements(shared, |row, k, v| out[8 * depth * (row / 8) + 8 * k + row % 8] = v);
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

    /// A tile, if it is here.
    fn find(&self, t: &Tile) -> Option<Arc<Vec<f32>>> {
        self.tiles.iter().find(|(k, _)| k == t).map(|(_, v)| Arc::clone(v))
    }
}

impl Block {
    /// Reads an operand tile and keeps it, in panels of eight rows.
    fn operand_tile(&mut self, t: &Tile) -> Arc<Vec<f32>> {
        let v = Arc::new(t.panels(&self.shared));
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
