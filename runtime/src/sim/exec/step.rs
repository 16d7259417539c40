//! The interpreter loop: one decoded instruction for all lanes of a warp's split.

use super::barrier::{At, Pass};
use super::state::{Cluster, SplitState, WaitOn, Warp};
use super::{compare, cvt, float, int};
use crate::sim::decode::op::{Class, FenceKind, Inst, Op, Space};
use crate::sim::fault::FaultKind;
use crate::sim::memory::addr;

/// What an instruction does to the flow of its split.
enum Flow {
    Next,
    /// Wait and run the instruction again.
    Retry(WaitOn),
    /// Wait, then go on behind the instruction.
    Pause(WaitOn),
}

impl Cluster<'_> {
    /// Runs split `s` until it blocks, ends, or `left` instructions are spent; returns what is left.
    pub fn run_split(&mut self, warp: &mut Warp, me: usize, mut s: usize, mut left: u32) -> u32 {
        let k = self.env.kernel;
        let code = &k.code[..];
        let has_wgmma = self.env.options.check_wgmma && !k.touched.is_empty();
        let (mut pc, mut mask, mut meet) = (warp.splits[s].pc, warp.splits[s].mask, warp.splits[s].meet);
        loop {
            if pc == meet {
                match warp.finish(s) {
                    Some(p) => {
                        s = p;
                        (pc, mask, meet) = (warp.splits[s].pc, warp.splits[s].mask, warp.splits[s].meet);
                        continue;
                    }
                    None => return left,
                }
            }
            if left == 0 {
                warp.splits[s].pc = pc;
                warp.splits[s].mask = mask;
                return 0;
            }
            left -= 1;
            let i = &code[pc as usize];
            let active = match i.guard {
                0 => mask,
                g => {
                    let p = warp.regs.p[((g - 1) >> 1) as usize];
                    mask & if (g - 1) & 1 != 0 { !p } else { p }
                }
            };
            warp.executed += 1;
            let c = &mut self.counters.per_inst[pc as usize];
            c.warps += 1;
            c.threads += u64::from(active.count_ones());
            if active == 0 {
                pc += 1;
                continue;
            }
            warp.pc = pc;
            if has_wgmma {
                let (uses, defs) = &k.touched[pc as usize];
                if !(uses.is_empty() && defs.is_empty()) {
                    self.check_wgmma_registers(warp, uses, defs);
                }
            }
            match i.op {
                Op::Int(op, ty) => int::exec(&mut warp.regs, i, active, op, ty),
                Op::Flt(op, ty, mode) => float::exec(&mut warp.regs, i, active, op, ty, mode),
                Op::Mov(Class::W32) => warp.regs.map1(i.d, i.a, active, |a: u32| a),
                Op::Mov(Class::W64) => warp.regs.map1(i.d, i.a, active, |a: u64| a),
                Op::Mov(Class::Pred) => {
                    let a = warp.regs.p[i.a as usize];
                    warp.regs.put_pred(i.d, a, active);
                }
                Op::Setp { cmp, ty, ftz, combine, second } => {
                    compare::setp(&mut warp.regs, i, active, (cmp, ty, ftz), combine, second);
                }
                Op::Selp { wide, negate } => compare::selp(&mut warp.regs, i, active, wide, negate),
                Op::Cvt { to, from, mode } => cvt::exec(&mut warp.regs, i, active, to, from, mode),
                Op::Ld(m) => self.load(warp, i, m, active),
                Op::St(m) => self.store(warp, i, m, active),
                Op::Bra => {
                    let target = i.imm as u32;
                    if active == mask {
                        pc = target;
                        continue;
                    }
                    warp.splits[s].mask = mask;
                    s = warp.diverge(s, pc, target, active, i.e);
                    (pc, mask, meet) = (warp.splits[s].pc, warp.splits[s].mask, warp.splits[s].meet);
                    continue;
                }
                Op::Exit => {
                    self.exit_lanes(warp, me, active);
                    mask &= !active;
                    warp.splits[s].mask = mask;
                    if mask == 0 {
                        match warp.finish(s) {
                            Some(p) => {
                                s = p;
                                (pc, mask, meet) = (warp.splits[s].pc, warp.splits[s].mask, warp.splits[s].meet);
                                continue;
                            }
                            None => return left,
                        }
                    }
                }
                _ => {
                    let flow = self.execute(warp, me, s, i, active);
                    match flow {
                        Flow::Next => {}
                        Flow::Retry(on) => {
                            warp.splits[s].pc = pc;
                            warp.splits[s].mask = mask;
                            warp.splits[s].state = SplitState::Waiting(on);
                            return left;
                        }
                        Flow::Pause(on) => {
                            warp.splits[s].pc = pc + 1;
                            warp.splits[s].mask = mask;
                            warp.splits[s].state = SplitState::Waiting(on);
                            return left;
                        }
                    }
                    if self.stop.is_some() {
                        return left;
                    }
                }
            }
            pc += 1;
        }
    }

    /// The instructions outside the hot loop.
    fn execute(&mut self, warp: &mut Warp, me: usize, split: usize, i: &Inst, active: u32) -> Flow {
        let paused = |p: Pass| match p {
            Pass::Go => Flow::Next,
            Pass::Wait(on) => Flow::Pause(on),
        };
        let retried = |p: Pass| match p {
            Pass::Go => Flow::Next,
            Pass::Wait(on) => Flow::Retry(on),
        };
        let whole = active == warp.alive;
        match i.op {
            // Executed in the loop itself.
            Op::Int(..) | Op::Flt(..) | Op::Mov(_) | Op::Setp { .. } | Op::Selp { .. } | Op::Cvt { .. } => {}
            Op::Ld(_) | Op::St(_) | Op::Bra | Op::Exit => {}
            Op::GridWait => warp.waited |= active,
            Op::Nop | Op::Prefetch | Op::Nanosleep | Op::Setmaxnreg { .. } => {}
            Op::Trap => self.fatal(warp, active.trailing_zeros() as usize, FaultKind::Trap, || "trap executed".into()),
            Op::Brkpt => {
                self.fatal(warp, active.trailing_zeros() as usize, FaultKind::Trap, || "brkpt executed".into())
            }
            Op::PredNot => {
                let a = warp.regs.p[i.a as usize];
                warp.regs.put_pred(i.d, !a, active);
            }
            Op::PredBin(op) => {
                let v = compare::combine(op, warp.regs.p[i.a as usize], warp.regs.p[i.b as usize]);
                warp.regs.put_pred(i.d, v, active);
            }
            Op::Pack { n, bits, wide, wide_in } => {
                let parts = &self.env.kernel.pool[i.e as usize..i.e as usize + n as usize];
                compare::pack(&mut warp.regs, parts, i.d, active, (bits, wide, wide_in));
            }
            Op::Unpack { n, bits, wide, wide_out } => {
                let parts = &self.env.kernel.pool[i.e as usize..i.e as usize + n as usize];
                compare::unpack(&mut warp.regs, parts, i.a, active, (bits, wide, wide_out));
            }
            Op::Set { cmp, ty, ftz, float, combine } => {
                compare::set(&mut warp.regs, i, active, (cmp, ty, ftz), float, combine);
            }
            Op::Slct { wide, float } => compare::slct(&mut warp.regs, i, active, wide, float),
            Op::CvtPackF32 { to, mode } => cvt::pack_f32(&mut warp.regs, i, active, to, mode),
            Op::CvtUnpackF8 { from, relu } => cvt::unpack_f8(&mut warp.regs, i, active, from, relu),
            Op::CvtF8FromF16 { to, relu } => cvt::f8_from_f16(&mut warp.regs, i, active, to, relu),
            Op::Cvta { space, to, wide } => Self::cvta(warp, i, active, space, to, wide),
            Op::IsSpace(space) => {
                let a = &warp.regs.w64[i.a as usize];
                let mut bits = 0;
                for (l, a) in a.iter().enumerate() {
                    let found = Self::resolve(*a).0;
                    let same = match space {
                        Space::Shared | Space::SharedCluster => found == Space::SharedCluster,
                        s => s == found,
                    };
                    bits |= u32::from(same) << l;
                }
                warp.regs.put_pred(i.d, bits, active);
            }
            Op::Clock { wide, nanos } => {
                self.ticks += 1;
                let now = warp.executed + if nanos { self.ticks } else { 0 };
                if wide {
                    warp.regs.put(i.d, &[now; 32], active);
                } else {
                    warp.regs.put(i.d, &[now as u32; 32], active);
                }
            }
            Op::LdParam(m) => self.load_param(warp, i, m, active),
            Op::Atom { space, op, ty, n, ret, a64, sem } => {
                self.atomic(warp, i, active, (space, op, ty, n), (ret, a64, sem));
            }
            Op::Shfl { mode, pred } => self.shfl(warp, i, active, mode, pred),
            Op::Vote(v) => self.vote(warp, i, active, v),
            Op::Match { all, wide } => self.match_lanes(warp, i, active, all, wide),
            Op::Activemask => warp.regs.put(i.d, &[active; 32], active),
            Op::Redux(op) => self.redux(warp, i, active, op),
            Op::Elect => self.elect(warp, i, active),
            Op::WarpSync => self.warp_sync(warp, i, active),
            Op::BarSync { aligned } => return paused(self.bar(warp, me, split, i, active, At::Sync { aligned })),
            Op::BarArrive => return paused(self.bar(warp, me, split, i, active, At::Arrive)),
            Op::BarRed { op, aligned } => {
                return paused(self.bar(warp, me, split, i, active, At::Reduce { op, aligned }));
            }
            Op::Fence(kind) => match kind {
                FenceKind::Block => {}
                FenceKind::MbarrierInit => self.show_mbarriers(warp, active),
                FenceKind::Device => {
                    let block = self.blocks[warp.block].linear;
                    if let Some(g) = &mut self.global {
                        g.enter(block);
                        g.fence();
                    }
                }
                FenceKind::ProxyAsync => {
                    warp.agent.proxy_fence(active, whole);
                    self.show_mbarriers(warp, active);
                }
            },
            Op::CpAsync { bytes, sized, ignore, a64 } => self.cp_async(warp, i, active, (bytes, sized, ignore, a64)),
            Op::CpAsyncCommit => self.cp_async_commit(warp, active),
            Op::CpAsyncWait { all } => self.cp_async_wait(warp, active, if all { None } else { Some(i.imm as u32) }),
            Op::CpAsyncMbarArrive { noinc, space, a64 } => {
                self.cp_async_mbar_arrive(warp, i, active, noinc, space, a64)
            }
            Op::Ldmatrix { n, trans, a64, generic } => self.ldmatrix(warp, i, active, (n, trans, a64, generic)),
            Op::Stmatrix { n, trans, a64, generic } => self.stmatrix(warp, i, active, (n, trans, a64, generic)),
            Op::Mma { n, k, a, b, acc, .. } => self.mma(warp, i, active, (n.into(), k.into()), (a, b), acc),
            Op::Printf => self.printf(warp, i, active),
            Op::AssertFail => self.assert_fail(warp, i, active),
            Op::MbarInit { a64 } => self.mbar_init(warp, i, active, a64),
            Op::MbarInval { a64 } => self.mbar_inval(warp, i, active, a64),
            Op::Mbar(op) => self.mbar_arrive(warp, i, active, op),
            Op::MbarTest { parity, wait, a64, relaxed } => {
                return retried(self.mbar_test(warp, split, i, active, (parity, wait, a64, relaxed)));
            }
            Op::MbarPending => warp.regs.map1(i.d, i.a, active, |state: u64| (state >> 32) as u32),
            Op::Mapa { wide, generic } => {
                let window = if generic { addr::SHARED_WINDOW } else { 0 };
                let moved = |a: u64, rank: u32| window | (a & 0xFF_FFFF) | u64::from(rank) << addr::RANK_SHIFT;
                if wide {
                    warp.regs.map2(i.d, (i.a, i.b), active, moved);
                } else {
                    warp.regs.map2(i.d, (i.a, i.b), active, |a: u32, r: u32| moved(a.into(), r) as u32);
                }
            }
            Op::GetCtaRank { wide } => {
                let rank = |a: u64| (addr::offset(a) >> addr::RANK_SHIFT) as u32;
                if wide {
                    warp.regs.map1(i.d, i.a, active, rank);
                } else {
                    warp.regs.map1(i.d, i.a, active, |a: u32| rank(a.into()));
                }
            }
            Op::ClusterArrive { relaxed } => self.cluster_arrive(warp, me, active, relaxed),
            Op::ClusterWait => return retried(self.cluster_wait(warp, me, active)),
            Op::Bulk(op) => self.bulk(warp, i, active, op),
            Op::BulkCommit => self.bulk_commit(warp, active),
            Op::BulkWait { .. } => self.bulk_wait(warp, active, i.imm as u32),
            Op::StAsync { elem, n, wide, a64, b64 } => self.st_async(warp, i, active, (elem, n, wide), (a64, b64)),
            Op::WgmmaFence => self.wgmma_fence(warp),
            Op::Wgmma(op) => self.wgmma(warp, i, active, op),
            Op::WgmmaCommit => self.wgmma_commit(warp),
            Op::WgmmaWait => self.wgmma_wait(warp, i.imm as usize, active),
        }
        Flow::Next
    }

    /// Only shared and local addresses differ between their own space and the generic one.
    fn cvta(warp: &mut Warp, i: &Inst, active: u32, space: Space, to: bool, wide: bool) {
        let window = match space {
            Space::Shared | Space::SharedCluster => addr::SHARED_WINDOW,
            Space::Local => addr::LOCAL_WINDOW,
            Space::Generic | Space::Global | Space::Param | Space::Const => 0,
        };
        let f = |a: u64| if to { a.wrapping_sub(window) } else { a.wrapping_add(window) };
        if wide {
            warp.regs.map1(i.d, i.a, active, f);
        } else {
            warp.regs.map1(i.d, i.a, active, |a: u32| f(a.into()) as u32);
        }
    }
}
