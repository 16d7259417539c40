//! Accumulators to tensors through shared memory: each warpgroup writes boxes of its part of the tile, and one of its
//! threads starts their tensor copies. Two boxes for each warpgroup take turns, so that one is read while the other is
//! written.

use super::super::index::{self, Idx};
use super::super::{Lowerer, Result, cast, words};
use super::plan::{Store, WARPGROUP};
use super::{HopperRole, Rings};
use crate::ptx::simt::{Addr, Bin, Cmp, MemTy, Num, SimtOp, Space, Special, Ty, Val, Vals};
use smallvec::smallvec;
use zellige_ir::{DType, Op, Window};

/// Boxes of a warpgroup.
pub const BOXES: usize = 2;

/// The named barrier of the first warpgroup; the others' follow.
const FIRST_BARRIER: i64 = 2;

impl Lowerer<'_> {
    /// The copy of an accumulator to a tensor, if the plan has it go through tensor copies.
    pub(in super::super) fn hopper_store(&mut self, op: Op, dst: &Window) -> Option<Result> {
        let role = self.hopper.clone()?;
        let at = role.rings.plan.stores.iter().position(|s| s.op == op)?;
        Some(self.store_boxes(&role, at, dst))
    }

    fn store_boxes(&mut self, role: &HopperRole, at: usize, dst: &Window) -> Result {
        let plan = role.rings.plan.clone();
        let s = &plan.stores[at];
        let p = &plan.products[s.product];
        let [gm, gn] = p.warpgroups;
        let (row, column) = self.group_place(role.group, gn);
        let (row, column) = (Idx::new(row, 0, gm as i64 - 1, 1), Idx::new(column, 0, gn as i64 - 1, 1));
        let map = self.map_address(s.param, &s.tile);
        let leader = self.leader();
        let own = self.own_group(role);
        let rank = dst.offsets.len();
        let (row_axis, mut origin) = (usize::from(dst.axes[0].axis), Vec::new());
        for &v in &dst.offsets {
            origin.push(self.idx(s.op, v, None)?);
        }
        let columns = p.shape[1] / gn;
        let places: Vec<(usize, usize)> = (0..p.shape[0] / (64 * gm))
            .flat_map(|block| (0..columns / s.box_cols()).map(move |c| (block, c * s.box_cols())))
            .collect();
        for (n, &(block, first)) in places.iter().enumerate() {
            let base = self.box_base(&role.rings, own, n % BOXES);
            // The box was last stored two groups ago, unless an odd number of them lets the last box of a tile meet the
            // first of the next.
            let pending = if n == 0 && places.len() % BOXES == 1 { 0 } else { BOXES as u32 - 1 };
            self.if_leader(leader, |l| {
                l.b.push(SimtOp::BulkWait { pending });
            });
            self.group_barrier(own);
            self.fill_box(role, s, block, first, base)?;
            self.b.push(SimtOp::AsyncFence {});
            self.group_barrier(own);
            let mut coords = Vals::new();
            for axis in (0..rank).rev() {
                let mut x = origin[axis];
                if axis == row_axis {
                    let part = index::mul(&mut self.b, row, Idx::constant(64));
                    x = index::add(&mut self.b, x, part).shift((64 * gm * block) as i64);
                }
                if axis + 1 == rank {
                    let part = index::mul(&mut self.b, column, Idx::constant(columns as i64));
                    x = index::add(&mut self.b, x, part).shift(first as i64);
                }
                coords.push(index::to_val(&mut self.b, x, Ty::B32));
            }
            self.if_leader(leader, |l| {
                l.b.push(SimtOp::TmaStore { map, coords: coords.clone(), src: base });
                l.b.push(SimtOp::BulkCommit {});
            });
        }
        Ok(())
    }

    /// Waits until all stores have read their boxes: a block may not end before.
    pub(super) fn drain_stores(&mut self, rings: &Rings) {
        if !rings.plan.stores.is_empty() {
            let leader = self.leader();
            self.if_leader(leader, |l| {
                l.b.push(SimtOp::BulkWait { pending: 0 });
            });
        }
    }

    /// Number of the thread's warpgroup among all that multiply.
    fn own_group(&mut self, role: &HopperRole) -> Val {
        if role.rings.plan.teams > 1 { role.team } else { role.group }
    }

    /// True in one thread of each warpgroup.
    fn leader(&mut self) -> Val {
        let (tid, mask, zero) = (self.b.special(Special::Tid), self.b.c32(WARPGROUP as i64 - 1), self.b.c32(0));
        let lane = self.b.bin(Bin::And, Num::B32, tid, mask);
        self.b.setp(Cmp::Eq, Num::S32, lane, zero)
    }

    fn if_leader(&mut self, leader: Val, f: impl FnOnce(&mut Self)) {
        let then_body = self.b.open(false);
        f(self);
        self.b.close();
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond: leader, uniform: false, then_body, else_body });
    }

    fn group_barrier(&mut self, group: Val) {
        let first = self.b.c32(FIRST_BARRIER);
        let id = self.b.add(Num::S32, group, first);
        self.b.push(SimtOp::BarPart { id, threads: WARPGROUP as u32 });
    }

    fn box_base(&mut self, rings: &Rings, group: Val, which: usize) -> Addr {
        let obj = rings.staging;
        let bytes = rings.plan.box_bytes();
        let (base, size) = (self.b.shared_addr(obj), self.b.c32((BOXES * bytes) as i64));
        let base = self.b.mad(Num::S32, group, size, base);
        Addr { base, offset: (which * bytes) as i32, obj }
    }

    /// Writes the warpgroup's accumulators of 64 rows and a box's columns, as the swizzle of the map wants them.
    fn fill_box(&mut self, role: &HopperRole, s: &Store, block: usize, first: usize, at: Addr) -> Result {
        let p = &role.rings.plan.products[s.product];
        let per_row = p.shape[1] / (p.warpgroups[1] * p.inst_n);
        // Registers of 8 columns: two in the upper 8 rows of a warp's 16, two in the lower.
        let eight = |l: &mut Self, column: usize| -> Vec<Val> {
            let from = (block * per_row + column / p.inst_n) * p.inst_n / 2 + column % p.inst_n / 2;
            let vals: Vec<Val> = (from..from + 4).map(|r| l.get_reg(s.src, r)).collect();
            cast::cast_all(&mut l.b, l.target, &vals, DType::F32, s.dtype)
        };
        let atom = s.swizzle.atom_bytes();
        let shift = self.b.c32(s.swizzle.row_bits().start as i64);
        let (lane, warp) = self.lane_and_quarter();
        let (seven, three, four) = (self.b.c32(7), self.b.c32(3), self.b.c32(4));
        let (pitch, rows) = (self.b.c32(atom as i64), self.b.c32(16));
        let b = &mut self.b;
        if s.dtype.bits() == 16 {
            // Lane 8 i + r addresses row r of matrix i: upper left, lower left, upper right, lower right.
            let r = b.bin(Bin::And, Num::B32, lane, seven);
            let low = b.bin(Bin::Shr, Num::U32, lane, three);
            let one = b.c32(1);
            let low = b.bin(Bin::And, Num::B32, low, one);
            let row = b.mad(Num::S32, warp, rows, r);
            let eight_rows = b.c32(8);
            let row = b.mad(Num::S32, low, eight_rows, row);
            let base = b.mad(Num::S32, row, pitch, at.base);
            let right = b.bin(Bin::Shr, Num::U32, lane, four);
            let flip = b.bin(Bin::Shr, Num::U32, r, shift);
            let chunk = b.bin(Bin::Xor, Num::B32, right, flip);
            for column in (0..s.box_cols()).step_by(16) {
                let mut vals = Vals::new();
                for part in [column, column + 8] {
                    for pair in eight(self, first + part).chunks(2) {
                        vals.push(words::pack(&mut self.b, s.dtype, pair));
                    }
                }
                let addr = self.chunk_at(base, chunk, column / 8, at);
                self.b.push(SimtOp::StMatrix { addr, vals, trans: false });
            }
        } else {
            let two = b.c32(2);
            let r = b.bin(Bin::Shr, Num::U32, lane, two);
            let row = b.mad(Num::S32, warp, rows, r);
            let base = b.mad(Num::S32, row, pitch, at.base);
            let one = b.c32(1);
            let odd = b.bin(Bin::And, Num::B32, lane, one);
            let pair_bytes = b.c32(8);
            let base = b.mad(Num::S32, odd, pair_bytes, base);
            let half = b.bin(Bin::Shr, Num::U32, lane, one);
            let half = b.bin(Bin::And, Num::B32, half, one);
            let masked = b.bin(Bin::And, Num::B32, r, seven);
            let flip = b.bin(Bin::Shr, Num::U32, masked, shift);
            let chunk = b.bin(Bin::Xor, Num::B32, half, flip);
            for column in (0..s.box_cols()).step_by(8) {
                let vals = eight(self, first + column);
                let upper = self.chunk_at(base, chunk, column / 4, at);
                let lower = Addr { offset: upper.offset + 8 * atom as i32, ..upper };
                for (addr, pair) in [(upper, &vals[..2]), (lower, &vals[2..])] {
                    self.b.st(Space::Shared, MemTy::F32, addr, smallvec![pair[0], pair[1]], None);
                }
            }
        }
        Ok(())
    }

    /// Where chunk `n` of 16 bytes of a row lies; `chunk` is where chunk 0 does, `n` even.
    fn chunk_at(&mut self, row: Val, chunk: Val, n: usize, at: Addr) -> Addr {
        let (n, sixteen) = (self.b.c32(n as i64), self.b.c32(16));
        let chunk = self.b.bin(Bin::Xor, Num::B32, chunk, n);
        let base = self.b.mad(Num::S32, chunk, sixteen, row);
        Addr { base, ..at }
    }

    /// The thread's lane, and which quarter of its warpgroup its warp is.
    fn lane_and_quarter(&mut self) -> (Val, Val) {
        let (lane, tid) = (self.b.special(Special::LaneId), self.b.special(Special::Tid));
        let (five, three) = (self.b.c32(5), self.b.c32(3));
        let warp = self.b.bin(Bin::Shr, Num::U32, tid, five);
        (lane, self.b.bin(Bin::And, Num::B32, warp, three))
    }
}
