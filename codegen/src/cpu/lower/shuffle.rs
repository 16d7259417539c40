//! `shuffle`: exchange of elements inside groups of 32 along the last axis.

use super::access::Guard;
use super::rep::{Rep, reg};
use super::{Lower, Result};
use crate::cpu::loopir::{BinOp, IntCc, Val};
use zellige_ir::{Op, ShuffleOp, Value, Window};

/// Lanes of a group.
const GROUP: i64 = 32;

impl Lower<'_> {
    pub(super) fn shuffle(&mut self, at: Op, op: ShuffleOp, src: &Window, dst: &Window, amount: Value) -> Result {
        let (s, d) = (self.view(at, src)?, self.view(at, dst)?);
        let amount_ty = self.func.ty(amount);
        let amount = self.get_uniform(amount);
        let amount = self.cast_val(amount, amount_ty, zellige_ir::DType::I64);
        let (from, to) = (s.storage.dtype, d.storage.dtype);
        let Some((&n, outer)) = s.shape.split_last() else { return Ok(()) };
        let n = n as i64;
        let pad = self.immediate(from, 0);
        let guard = if s.storage.global { Guard::Check(pad) } else { Guard::Inside };
        let group_area = self.scratch(GROUP as usize * 8);
        let groups = self.b.i64((n + GROUP - 1) / GROUP);
        let mut extents: Vec<Val> = outer.iter().map(|n| self.b.i64(*n as i64)).collect();
        extents.push(groups);
        // In place is allowed: a group is read before it is written.
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let Some((Rep::Uni(group), outer)) = point.split_last().map(|(g, o)| (*g, o)) else { return Ok(()) };
            let start = l.b.mul_imm(group, GROUP);
            let whole = l.b.i64(n);
            let left = l.b.sub(whole, start);
            let size = l.b.i64(GROUP);
            let lanes = l.b.bin(BinOp::SMin, left, size);
            let zero = l.b.i64(0);
            let window_point = |l: &mut Self, lane: Val| {
                let i = l.b.add(start, lane);
                let mut p = outer.to_vec();
                p.push(Rep::Uni(i));
                p
            };
            l.counted(zero, lanes, 1, &mut |l, lane| {
                let p = window_point(l, lane);
                let idx = s.index(l, &p);
                let v = l.load_elem(&s.storage, &idx, guard);
                let v = l.lane(v, from, 0);
                let addr = l.b.scaled_address(group_area, lane, 8);
                l.b.store(v, addr, 0);
                Ok(())
            })?;
            l.counted(zero, lanes, 1, &mut |l, lane| {
                let source = match op {
                    ShuffleOp::Xor => l.b.bin(BinOp::Xor, lane, amount),
                    ShuffleOp::Up => l.b.sub(lane, amount),
                    ShuffleOp::Down => l.b.add(lane, amount),
                    ShuffleOp::Idx => amount,
                };
                let ok = l.b.icmp(IntCc::Ult, source, lanes);
                let source = l.b.select(ok, source, lane);
                let addr = l.b.scaled_address(group_area, source, 8);
                let v = l.b.load(reg(from), addr, 0);
                let v = l.cast(Rep::Uni(v), from, to);
                let p = window_point(l, lane);
                let idx = d.index(l, &p);
                l.store_elem(&d.storage, &idx, v, if d.storage.global { Guard::Check(pad) } else { Guard::Inside });
                Ok(())
            })
        })
    }
}
