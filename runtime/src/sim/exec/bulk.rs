//! Bulk and tensor copies (TMA), and `st.async`.
//!
//! Data moves when the instruction is issued. What makes it visible is left to the checks: bytes written to shared memory
//! belong to the mbarrier's agent, bytes read from it to the thread's bulk group, until somebody waits for them.

use super::access::{How, SharedAt, mask};
use super::combine::combine;
use super::mbarrier::Change;
use super::regs::lanes;
use super::state::{Cluster, Warp};
use super::tensormap::{TensorElem, TensorMap, round_to_tf32};
use super::wgmma::swizzle;
use crate::sim::check::clock::Knowledge;
use crate::sim::check::global::Access;
use crate::sim::decode::SHARED_BASE;
use crate::sim::decode::bulk_slot as at;
use crate::sim::decode::op::{AtomOp, AtomTy, BulkKind, BulkOp, Inst, Space};
use crate::sim::fault::FaultKind;
use crate::sim::memory::addr;

/// One piece of a copy: shared address, global address (`None`: fill), bytes.
#[derive(Debug, Clone, Copy)]
struct Piece {
    shared: u32,
    global: Option<u64>,
    bytes: u32,
}

/// A bulk instruction's operands for one thread.
struct Operands {
    shared: u64,
    other: u64,
    barrier: u64,
    size: u32,
    mask: u32,
    coords: [i32; 5],
}

impl Cluster<'_> {
    fn bulk_operands(&self, warp: &Warp, i: &Inst, op: &BulkOp, l: usize) -> Operands {
        let slot = |k: u32| self.env.kernel.pool[(i.e + k) as usize] as usize;
        let word = |k: u32| warp.regs.w32[slot(k)][l];
        let long = |k: u32| warp.regs.w64[slot(k)][l];
        let reg = |k: u32, wide: bool| if wide { long(k) } else { u64::from(word(k)) };
        let shared_space = |a: u64| if a >> addr::REGION_SHIFT != 0 { Self::resolve(a).1 } else { a };
        let other = reg(at::OTHER, op.g64).wrapping_add(long(at::OTHER_OFFSET));
        Operands {
            shared: shared_space(reg(at::SHARED, op.s64).wrapping_add(long(at::SHARED_OFFSET))),
            other: if op.kind == BulkKind::SharedToShared { shared_space(other) } else { other },
            barrier: shared_space(reg(at::BARRIER, op.b64).wrapping_add(long(at::BARRIER_OFFSET))),
            size: word(at::SIZE),
            mask: word(at::MASK),
            coords: std::array::from_fn(|k| word(at::COORDS + k as u32) as i32),
        }
    }

    pub fn bulk(&mut self, warp: &mut Warp, i: &Inst, active: u32, op: BulkOp) {
        for l in lanes(active) {
            let o = self.bulk_operands(warp, i, &op, l);
            match op.kind {
                BulkKind::GlobalToShared => self.bulk_load(warp, l, &op, &o),
                BulkKind::SharedToGlobal => self.bulk_store(warp, l, &op, &o),
                BulkKind::SharedToShared => self.bulk_to_block(warp, l, &o),
            }
        }
    }

    fn bad(&mut self, warp: &Warp, lane: usize, address: u64, message: String) {
        self.fault(warp, lane, FaultKind::BadDescriptor, Some((address, "bulk copy".into())), || message);
    }

    /// The pieces of a copy, or a fault: a byte range, or a box of a tensor.
    fn pieces(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        op: &BulkOp,
        o: &Operands,
    ) -> Option<(Vec<Piece>, Option<TensorMap>)> {
        if op.dims == 0 {
            if !o.size.is_multiple_of(16) || !o.shared.is_multiple_of(16) || !o.other.is_multiple_of(16) {
                let message = format!("size {} and addresses of a bulk copy must be multiples of 16", o.size);
                self.bad(warp, lane, o.other, message);
                return None;
            }
            let piece = |k: u32| Piece {
                shared: o.shared as u32 + 16 * k,
                global: Some(o.other + 16 * u64::from(k)),
                bytes: 16,
            };
            return Some(((0..o.size / 16).map(piece).collect(), None));
        }
        let map = self.tensor_map(warp, lane, o.other, op.dims)?;
        let atom = map.swizzle.atom();
        let align = if atom == 16 { 128 } else { (8 * atom).max(128) };
        if !o.shared.is_multiple_of(u64::from(align)) {
            let message = format!("shared address {:#x} of a box must be {align}-byte aligned", o.shared);
            self.bad(warp, lane, o.shared, message);
            return None;
        }
        Some((tensor_pieces(&map, o.shared as u32, &o.coords), Some(map)))
    }

    fn tensor_map(&mut self, warp: &mut Warp, lane: usize, address: u64, dims: u8) -> Option<TensorMap> {
        if !address.is_multiple_of(64) {
            self.bad(warp, lane, address, "a tensor map must be 64-byte aligned".into());
            return None;
        }
        let mut bytes = [0u8; 128];
        for k in 0..8 {
            let v = self.load_one(warp, lane, Space::Generic, address + 16 * k, 16, How::PLAIN);
            bytes[16 * k as usize..16 * k as usize + 16].copy_from_slice(&v.to_le_bytes());
        }
        match TensorMap::decode(&bytes) {
            Ok(m) if m.size.len() == usize::from(dims) => Some(m),
            Ok(m) => {
                let message = format!("{dims}d copy of a tensor with {} dims", m.size.len());
                self.bad(warp, lane, address, message);
                None
            }
            Err(message) => {
                self.bad(warp, lane, address, message);
                None
            }
        }
    }

    /// Global (or another block's) memory to shared memory, completing on an mbarrier.
    fn bulk_load(&mut self, warp: &mut Warp, lane: usize, op: &BulkOp, o: &Operands) {
        let Some((pieces, map)) = self.pieces(warp, lane, op, o) else {
            return;
        };
        let fill = map.as_ref().filter(|m| m.nan_fill).map_or(0, |m| repeat(m.elem.nan(), m.elem.bytes()));
        let rounds = map.as_ref().is_some_and(|m| m.elem == TensorElem::Tf32);
        let total: u32 = match &map {
            Some(m) => m.box_bytes(),
            None => o.size,
        };
        let rank = (o.shared >> addr::RANK_SHIFT) as u32;
        let targets = if op.multicast { o.mask } else { 1 << rank };
        for block in lanes(targets) {
            if block >= self.blocks.len() {
                self.bad(
                    warp,
                    lane,
                    o.shared,
                    format!("multicast to block {block} of a cluster of {}", self.blocks.len()),
                );
                continue;
            }
            let Some(bar) = self.barrier_in(warp, lane, block, o.barrier) else {
                continue;
            };
            let how = self.completing(bar);
            for p in &pieces {
                let v = match p.global {
                    Some(g) => self.load_wide(warp, lane, g, p.bytes),
                    None => fill,
                };
                let v = if rounds { in_words(v, round_to_tf32) } else { v };
                let address = u64::from(p.shared & 0xFF_FFFF) | (block as u64) << addr::RANK_SHIFT;
                self.async_store(warp, lane, address, (p.bytes, v), how);
            }
            self.mbar_change(warp, lane, bar, Change { tx: -i64::from(total), ..Change::default() });
        }
    }

    /// The mbarrier at the same offset in another block's shared memory.
    fn barrier_in(&mut self, warp: &Warp, lane: usize, block: usize, barrier: u64) -> Option<SharedAt> {
        let address = (barrier & 0xFF_FFFF) | (block as u64) << addr::RANK_SHIFT;
        let p = self.live_mbar(warp, lane, Space::SharedCluster, address)?;
        self.need_seen(warp, lane, p);
        Some(p)
    }

    /// Accesses that complete on this mbarrier in its current phase.
    fn completing(&self, bar: SharedAt) -> How {
        let agent = self.blocks[bar.block].mbarriers.get(&bar.at).map(|m| (m.component, m.epoch()));
        How { agent, asynchronous: true, ..How::PLAIN }
    }

    fn async_store(&mut self, warp: &mut Warp, lane: usize, address: u64, (bytes, v): (u32, u128), how: How) {
        if let Some(p) = self.shared_place(warp, lane, Space::SharedCluster, address, bytes) {
            self.store_shared(warp, lane, p, address, (bytes, v), how);
        }
    }

    /// Global bytes at any alignment that elements have.
    fn load_wide(&mut self, warp: &mut Warp, lane: usize, address: u64, bytes: u32) -> u128 {
        let step = (1u32 << address.trailing_zeros().min(4)).min(bytes);
        let mut v = 0;
        for k in (0..bytes).step_by(step as usize) {
            v |= self.load_one(warp, lane, Space::Global, address + u64::from(k), step, How::PLAIN) << (8 * k);
        }
        v
    }

    fn store_wide(&mut self, warp: &mut Warp, lane: usize, address: u64, (bytes, v): (u32, u128)) {
        let step = (1u32 << address.trailing_zeros().min(4)).min(bytes);
        for k in (0..bytes).step_by(step as usize) {
            let part = v >> (8 * k) & mask(step);
            self.store_one(warp, lane, Space::Global, address + u64::from(k), (step, part), How::PLAIN);
        }
    }

    /// The component of this warp's bulk groups.
    fn bulk_component(&mut self, warp: &mut Warp) -> u16 {
        match warp.copies.bulk.component {
            Some(c) => c,
            None => {
                let c = self.component();
                warp.copies.bulk.component = Some(c);
                c
            }
        }
    }

    /// Shared to global memory, or a reduction into it, completing with the thread's bulk group.
    fn bulk_store(&mut self, warp: &mut Warp, lane: usize, op: &BulkOp, o: &Operands) {
        let Some((pieces, map)) = self.pieces(warp, lane, op, o) else {
            return;
        };
        let component = self.bulk_component(warp);
        warp.copies.bulk.open[lane] += 1;
        let epoch = warp.copies.bulk.committed[lane] + 1;
        let how = How { agent: Some((component, epoch)), asynchronous: true, ..How::PLAIN };
        let reduce = op.reduce.map(|r| (r.op, r.ty.or_else(|| map.as_ref().and_then(|m| m.elem.reduction()))));
        if matches!(reduce, Some((_, None))) {
            self.bad(warp, lane, o.other, "the tensor's element type has no reductions".into());
            return;
        }
        for p in &pieces {
            let address = u64::from(p.shared);
            let Some(place) = self.shared_place(warp, lane, Space::Shared, address, p.bytes) else {
                return;
            };
            let v = self.load_shared(warp, lane, place, address, p.bytes, how);
            match (p.global, reduce) {
                (None, _) => {}
                (Some(g), Some((op, Some(ty)))) => self.reduce_piece(warp, lane, g, (p.bytes, v), op, ty),
                (Some(g), _) => self.store_wide(warp, lane, g, (p.bytes, v)),
            }
        }
    }

    fn reduce_piece(&mut self, warp: &mut Warp, lane: usize, g: u64, (bytes, v): (u32, u128), op: AtomOp, ty: AtomTy) {
        let n = u32::from(ty.bytes());
        for k in (0..bytes).step_by(n as usize) {
            let b = (v >> (8 * k) & mask(n)) as u64;
            let Some((a, at)) = self.global_place(warp, lane, g + u64::from(k), n) else {
                continue;
            };
            a.update(at, n, |old| combine(op, ty, old, b, 0));
            let len = a.len;
            self.global_race(
                warp,
                lane,
                g + u64::from(k),
                (at, n, len),
                Access::Atomic { combines: super::atomics::combines(op), observes: false },
            );
        }
    }

    /// Own shared memory to another block's, completing on an mbarrier there.
    fn bulk_to_block(&mut self, warp: &mut Warp, lane: usize, o: &Operands) {
        if !o.size.is_multiple_of(16) || !o.shared.is_multiple_of(16) || !o.other.is_multiple_of(16) {
            let message = format!("size {} and addresses of a bulk copy must be multiples of 16", o.size);
            self.bad(warp, lane, o.other, message);
            return;
        }
        let Some(bar) = self.live_mbar(warp, lane, Space::SharedCluster, o.barrier) else {
            return;
        };
        self.need_seen(warp, lane, bar);
        let how = self.completing(bar);
        for k in (0..o.size).step_by(16) {
            let from = o.shared + u64::from(k);
            let Some(p) = self.shared_place(warp, lane, Space::Shared, from, 16) else {
                return;
            };
            let v = self.load_shared(warp, lane, p, from, 16, how);
            self.async_store(warp, lane, o.other + u64::from(k), (16, v), how);
        }
        self.mbar_change(warp, lane, bar, Change { tx: -i64::from(o.size), ..Change::default() });
    }

    pub fn bulk_commit(&mut self, warp: &mut Warp, active: u32) {
        for l in lanes(active) {
            warp.copies.bulk.committed[l] += 1;
            warp.copies.bulk.open[l] = 0;
        }
    }

    /// Waits until all but the last `keep` groups are complete; reading done and fully done are one here.
    pub fn bulk_wait(&mut self, warp: &mut Warp, active: u32, keep: u32) {
        let Some(component) = warp.copies.bulk.component else {
            return;
        };
        for l in lanes(active) {
            let done = warp.copies.bulk.committed[l].saturating_sub(keep);
            warp.copies.bulk.waited[l] = warp.copies.bulk.waited[l].max(done);
            let mut k = Knowledge::default();
            k.order.raise_lanes(component, 1 << l, done);
            warp.agent.acquire(1 << l, warp.alive == 1 << l, &k);
        }
    }

    /// Lanes that exit must have waited for their bulk copies: the block's shared memory goes away.
    pub fn bulk_at_exit(&mut self, warp: &Warp, exiting: u32) {
        let b = &warp.copies.bulk;
        if b.component.is_none() {
            return;
        }
        if let Some(l) = lanes(exiting).find(|&l| b.open[l] > 0 || b.waited[l] < b.committed[l]) {
            self.fault(warp, l, FaultKind::PendingAtExit, None, || {
                "the thread exits while its bulk copies may still read shared memory: cp.async.bulk.wait_group.read 0 first"
                    .into()
            });
        }
    }

    /// `st.async`: a store to a block of the cluster that completes on an mbarrier of the same block.
    pub fn st_async(
        &mut self,
        warp: &mut Warp,
        i: &Inst,
        active: u32,
        (elem, n, wide): (u8, u8, bool),
        (a64, b64): (bool, bool),
    ) {
        let addrs = warp.regs.addresses(i.a, a64, i.imm);
        let pool = &self.env.kernel.pool;
        let (bar_slot, off_slot) = (pool[i.e as usize], pool[i.e as usize + 1]);
        let offset = warp.regs.w64[off_slot as usize][0] as i64;
        let bars = warp.regs.addresses(bar_slot, b64, offset);
        let data = self.gather(warp, i.e + 2, elem, n, wide);
        let bytes = u32::from(elem) * u32::from(n);
        for l in lanes(active) {
            let Some(bar) = self.live_mbar(warp, l, Space::SharedCluster, bars[l]) else {
                continue;
            };
            let how = How { asynchronous: false, ..self.completing(bar) };
            self.async_store(warp, l, addrs[l], (bytes, data[l]), how);
            self.mbar_change(warp, l, bar, Change { tx: -i64::from(bytes), ..Change::default() });
        }
    }
}

/// A value repeated over 16 bytes.
fn repeat(v: u64, bytes: u32) -> u128 {
    (0..16 / bytes).fold(0, |all, k| all | u128::from(v) << (8 * bytes * k))
}

/// The pieces of a box: chunks of at most 16 bytes, split where the tensor ends.
fn tensor_pieces(map: &TensorMap, shared: u32, coords: &[i32; 5]) -> Vec<Piece> {
    let elem = map.elem.bytes();
    let rank = map.size.len();
    let inner = map.tile[0] * elem;
    let rows: u32 = map.tile[1..].iter().product();
    let mut out = Vec::with_capacity((rows * inner / 16) as usize);
    for row in 0..rows {
        // Coordinates of this row in dims 1.., and whether it lies inside the tensor.
        let mut rest = row;
        let mut global = map.address as i64;
        let mut inside = true;
        for (d, coord) in coords.iter().enumerate().take(rank).skip(1) {
            let c = i64::from(*coord) + i64::from(rest % map.tile[d]);
            rest /= map.tile[d];
            inside &= c >= 0 && (c as u64) < map.size[d];
            global += c * map.stride[d - 1] as i64;
        }
        for chunk in (0..inner).step_by(16) {
            let linear = shared + row * inner + chunk;
            let to = swizzle(linear & 0xFF_FFFF, map.swizzle.atom()) | linear & !0xFF_FFFF;
            let first = i64::from(coords[0]) + i64::from(chunk / elem);
            let last = first + i64::from(16 / elem) - 1;
            let whole = inside && first >= 0 && last < map.size[0] as i64;
            if whole {
                out.push(Piece { shared: to, global: Some((global + first * i64::from(elem)) as u64), bytes: 16 });
                continue;
            }
            if !inside || last < 0 || first >= map.size[0] as i64 {
                out.push(Piece { shared: to, global: None, bytes: 16 });
                continue;
            }
            for e in 0..16 / elem {
                let c = first + i64::from(e);
                let ok = c >= 0 && c < map.size[0] as i64;
                let g = (global + c * i64::from(elem)) as u64;
                out.push(Piece { shared: to + e * elem, global: ok.then_some(g), bytes: elem });
            }
        }
    }
    debug_assert!(shared >= SHARED_BASE);
    out
}

/// Applies `f` to each word of a chunk.
fn in_words(v: u128, f: impl Fn(u32) -> u32) -> u128 {
    (0..4).map(|i| u128::from(f((v >> (32 * i)) as u32)) << (32 * i)).sum()
}
