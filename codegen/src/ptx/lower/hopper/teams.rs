//! Ping-pong: sets of warpgroups that take the blocks of the grid in turns, so that one multiplies while another stores.
//!
//! All teams share the rings, which are filled block by block in the order in which the teams take them. A team begins its block
//! when the one before has waited for all its tiles: mbarriers pass the turn on. They are needed for more than speed: the
//! parity of a slot tells two uses that follow each other apart, not more. Not named barriers, as within an iteration: the last
//! team to have a block passes on a turn that nobody takes. From block to block a team skips the slots of the
//! others' blocks. CUTLASS's `KernelTmaWarpSpecializedPingpong` orders its warpgroups in the same way.

use super::super::Lowerer;
use super::super::index::{self, Idx};
use super::plan::{Finder, HopperPlan, MAX_ACCUMULATORS, Product, WARPGROUP};
use super::{HopperRole, MBARRIER, Rings};
use crate::ptx::simt::{Addr, Bin, Cmp, Num, SimtOp, Special, Ty, Val, Var};
use zellige_ir::layout::WARP;

/// Teams where the author wants several.
const TEAMS: usize = 2;

/// The barriers by which teams pass the turn on, one for each.
#[derive(Clone, Copy, Debug)]
pub struct Teams {
    /// Number of the first.
    pub first: usize,
    /// Parity of the phase that the team waits for next.
    pub parity: Var,
    /// Blocks of other teams since the team's last one, whose slots it skips.
    pub skipped: Var,
}

impl Finder<'_> {
    /// The number of teams that a kernel can have.
    pub(super) fn teams(&self, plan: &HopperPlan) -> Result<usize, String> {
        let registers: usize = plan.products.iter().map(Product::registers).sum();
        let most = MAX_ACCUMULATORS[TEAMS];
        if self.consumers != 1 {
            return Err(format!("its blocks have {} threads, not {WARPGROUP}", self.func.threads));
        }
        if plan.runs.is_some() {
            return Err("its iterations are summed in runs".into());
        }
        if self.path.len() > 1 || self.length_varies() {
            return Err("not all blocks run its loop, and equally often".into());
        }
        if registers > most {
            return Err(format!("its accumulators take {registers} registers a thread, of {most}"));
        }
        if !self.touches_only(&plan.loads, &plan.stores) {
            return Err("it touches tensors in more than its loop's copies and the copies of accumulators".into());
        }
        Ok(TEAMS)
    }
}

impl HopperPlan {
    /// Warps of a team.
    pub(super) fn team_warps(&self) -> usize {
        self.consumers * WARPGROUP / WARP
    }
}

impl Lowerer<'_> {
    pub(super) fn init_teams(&mut self, rings: &Rings) {
        let Some(teams) = rings.teams else { return };
        let base = self.b.shared_addr(rings.barriers);
        for team in 0..rings.plan.teams {
            let addr = Addr { base, offset: (MBARRIER * (teams.first + team)) as i32, obj: rings.barriers };
            self.b.push(SimtOp::MbarInit { addr, count: rings.plan.team_warps() as u32 });
        }
    }

    /// Starts with the first team's turn. Returns the number of the thread in its team.
    pub(super) fn start_teams(&mut self, rings: &Rings, team: Val) -> Idx {
        let Some(teams) = rings.teams else { return self.tid };
        let b = &mut self.b;
        let (zero, one) = (b.c32(0), b.c32(1));
        // The phase before the first one counts as ended.
        let is_first = b.setp(Cmp::Eq, Num::S32, team, zero);
        let parity = b.selp(is_first, one, zero);
        b.set(teams.parity, parity);
        b.set(teams.skipped, team);
        let (tid, mask) = (b.special(Special::Tid), b.c32(WARPGROUP as i64 - 1));
        let own = b.bin(Bin::And, Num::B32, tid, mask);
        Idx::new(own, 0, WARPGROUP as i64 - 1, 1)
    }

    /// Waits for the team's turn, and skips the slots of the blocks of others.
    pub(super) fn await_team(&mut self, role: &HopperRole, extent: Idx) {
        let rings = &role.rings;
        let Some(teams) = rings.teams else { return };
        let extent = index::to_val(&mut self.b, extent, Ty::B32);
        let addr = self.turn_of(rings, teams, role.team);
        let b = &mut self.b;
        let (parity, skipped) = (b.get(teams.parity), b.get(teams.skipped));
        let (one, others) = (b.c32(1), b.c32(rings.plan.teams as i64 - 1));
        b.push(SimtOp::MbarWait { addr, parity });
        let flipped = b.bin(Bin::Xor, Num::B32, parity, one);
        b.set(teams.parity, flipped);
        let uses = b.mul(Num::S32, skipped, extent);
        b.set(teams.skipped, others);
        for at in &rings.at {
            let b = &mut self.b;
            let stages = b.c32(at.stages as i64);
            let (slot, parity) = (b.get(at.slot), b.get(at.parity));
            let (rounds, rest) = (b.bin(Bin::Div, Num::U32, uses, stages), b.bin(Bin::Rem, Num::U32, uses, stages));
            let moved = b.add(Num::S32, slot, rest);
            let wraps = b.setp(Cmp::Ge, Num::S32, moved, stages);
            let wrapped = b.sub(Num::S32, moved, stages);
            let (zero, one) = (b.c32(0), b.c32(1));
            let more = b.selp(wraps, one, zero);
            let rounds = b.add(Num::S32, rounds, more);
            let odd = b.bin(Bin::And, Num::B32, rounds, one);
            let slot = b.selp(wraps, wrapped, moved);
            let parity = b.bin(Bin::Xor, Num::B32, parity, odd);
            b.set(at.slot, slot);
            b.set(at.parity, parity);
        }
    }

    /// Lets the next team begin: this one has waited for all its tiles.
    pub(super) fn next_team(&mut self, role: &HopperRole) {
        let rings = &role.rings;
        let Some(teams) = rings.teams else { return };
        let b = &mut self.b;
        let (one, zero, count) = (b.c32(1), b.c32(0), b.c32(rings.plan.teams as i64));
        let next = b.add(Num::S32, role.team, one);
        let wraps = b.setp(Cmp::Eq, Num::S32, next, count);
        let next = b.selp(wraps, zero, next);
        let lane = b.special(Special::LaneId);
        let guard = b.setp(Cmp::Eq, Num::S32, lane, zero);
        let addr = self.turn_of(rings, teams, next);
        self.b.push(SimtOp::MbarArrive { addr, guard: Some(guard) });
    }

    /// The first block of the grid that this block's thread takes, and the step to the next: teams take them in turns.
    pub(super) fn team_blocks(&mut self, role: &HopperRole, first: Val, step: Val) -> (Val, Val) {
        let teams = self.b.c32(role.rings.plan.teams as i64);
        (self.b.mad(Num::S32, role.team, step, first), self.b.mul(Num::S32, step, teams))
    }

    fn turn_of(&mut self, rings: &Rings, teams: Teams, team: Val) -> Addr {
        let (base, size) = (self.b.shared_addr(rings.barriers), self.b.c32(MBARRIER as i64));
        let base = self.b.mad(Num::S32, team, size, base);
        Addr { base, offset: (MBARRIER * teams.first) as i32, obj: rings.barriers }
    }
}
