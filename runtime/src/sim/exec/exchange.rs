//! Exchange between the lanes of a warp: shuffles, votes, matches, reductions, election.

use super::regs::lanes;
use super::state::{Cluster, Warp};
use crate::sim::decode::op::{Inst, Redux, Shfl, Vote};
use crate::sim::fault::FaultKind;

impl Cluster<'_> {
    /// Checks a member mask: every named lane that has not exited must be executing, and every executing lane be named.
    pub fn check_members(&mut self, warp: &Warp, members: u32, active: u32) {
        let absent = members & warp.alive & !active;
        let unnamed = active & !members;
        if absent | unnamed == 0 {
            return;
        }
        let lane = (absent | unnamed).trailing_zeros() as usize;
        self.fault(warp, lane, FaultKind::WarpMask, None, || {
            if unnamed != 0 {
                format!("lane {lane} executes the instruction but is not in its member mask {members:#010x}")
            } else {
                format!("member mask {members:#010x} names lane {lane}, which is elsewhere in a diverged warp")
            }
        });
    }

    /// The member mask as the first active lane has it.
    fn members(&mut self, warp: &Warp, slot: u32, active: u32) -> u32 {
        let m = warp.regs.w32[slot as usize][active.trailing_zeros() as usize];
        self.check_members(warp, m, active);
        m
    }

    pub fn shfl(&mut self, warp: &mut Warp, i: &Inst, active: u32, mode: Shfl, pred: bool) {
        let pool = &self.env.kernel.pool;
        let (mask_slot, pred_slot) = (pool[i.e as usize], pool[i.e as usize + 1]);
        self.members(warp, mask_slot, active);
        let (a, b, c): ([u32; 32], [u32; 32], [u32; 32]) = (warp.regs.get(i.a), warp.regs.get(i.b), warp.regs.get(i.c));
        let mut out = [0u32; 32];
        let mut valid = 0u32;
        for l in lanes(active) {
            let lane = l as u32;
            let (bval, cval, seg) = (b[l] & 31, c[l] & 31, c[l] >> 8 & 31);
            let max = (lane & seg) | (cval & !seg);
            let min = lane & seg;
            let (from, ok) = match mode {
                // The bound of `up` is a lower one.
                Shfl::Up => (lane.wrapping_sub(bval), lane as i32 - bval as i32 >= max as i32),
                Shfl::Down => (lane + bval, lane + bval <= max),
                Shfl::Bfly => (lane ^ bval, lane ^ bval <= max),
                Shfl::Idx => (min | (bval & !seg), (min | (bval & !seg)) <= max),
            };
            let from = if ok { from as usize & 31 } else { l };
            valid |= u32::from(ok) << l;
            if active >> from & 1 == 0 {
                self.fault(warp, l, FaultKind::WarpMask, None, || {
                    format!("shuffle reads lane {from}, which does not execute it")
                });
            }
            out[l] = a[from];
        }
        warp.regs.put(i.d, &out, active);
        if pred {
            warp.regs.put_pred(pred_slot, valid, active);
        }
    }

    pub fn vote(&mut self, warp: &mut Warp, i: &Inst, active: u32, vote: Vote) {
        let members = self.members(warp, i.b, active) & active;
        let p = (warp.regs.p[i.a as usize] ^ if i.imm != 0 { u32::MAX } else { 0 }) & members;
        let all = |yes: bool| if yes { u32::MAX } else { 0 };
        match vote {
            Vote::Ballot => warp.regs.put(i.d, &[p; 32], active),
            Vote::All => warp.regs.put_pred(i.d, all(p == members), active),
            Vote::Any => warp.regs.put_pred(i.d, all(p != 0), active),
            Vote::Uni => warp.regs.put_pred(i.d, all(p == 0 || p == members), active),
        }
    }

    pub fn match_lanes(&mut self, warp: &mut Warp, i: &Inst, active: u32, all: bool, wide: bool) {
        let members = self.members(warp, i.b, active) & active;
        let v: [u64; 32] = if wide { warp.regs.get(i.a) } else { warp.regs.get::<u32>(i.a).map(u64::from) };
        let mut out = [0u32; 32];
        for l in lanes(active) {
            out[l] = lanes(members).filter(|&o| v[o] == v[l]).fold(0, |m, o| m | 1 << o);
        }
        let same = lanes(members).all(|l| out[l] == members);
        if all && !same {
            out = [0; 32];
        }
        warp.regs.put(i.d, &out, active);
        warp.regs.put_pred(i.e, if same { u32::MAX } else { 0 }, active);
    }

    pub fn redux(&mut self, warp: &mut Warp, i: &Inst, active: u32, op: Redux) {
        let members = self.members(warp, i.b, active) & active;
        let v: [u32; 32] = warp.regs.get(i.a);
        let values = lanes(members).map(|l| v[l]);
        let result = match op {
            Redux::Add => values.fold(0, u32::wrapping_add),
            Redux::MinU => values.min().unwrap_or(0),
            Redux::MaxU => values.max().unwrap_or(0),
            Redux::MinS => values.map(|v| v as i32).min().unwrap_or(0) as u32,
            Redux::MaxS => values.map(|v| v as i32).max().unwrap_or(0) as u32,
            Redux::And => values.fold(u32::MAX, |a, b| a & b),
            Redux::Or => values.fold(0, |a, b| a | b),
            Redux::Xor => values.fold(0, |a, b| a ^ b),
        };
        warp.regs.put(i.d, &[result; 32], active);
    }

    pub fn elect(&mut self, warp: &mut Warp, i: &Inst, active: u32) {
        let members = self.members(warp, i.a, active) & active;
        let leader = members.trailing_zeros();
        warp.regs.put(i.d, &[leader; 32], active);
        warp.regs.put_pred(i.e, if leader < 32 { 1 << leader } else { 0 }, active);
    }

    pub fn warp_sync(&mut self, warp: &mut Warp, i: &Inst, active: u32) {
        self.members(warp, i.a, active);
        warp.agent.warp_sync();
    }
}
