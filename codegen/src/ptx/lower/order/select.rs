//! The first few of each line: every line belongs to some lanes of one warp, which hold it in registers and find one record
//! after the other by shuffles. No barriers, and many lines at once.

use super::{Found, Lines};
use crate::ptx::lower::Lowerer;
use crate::ptx::lower::Result;
use crate::ptx::lower::index::{self, Idx};
use crate::ptx::simt::{Cmp, Num, Ty, Val};
use zellige_ir::layout::WARP;

/// Elements of a line that a lane holds at most.
const MAX_HELD: usize = 32;
/// Records that are found one after the other at most.
const MAX_FOUND: usize = 16;

/// How lines are dealt out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Lanes of a line, a power of two.
    lanes: usize,
    /// Elements that each of them holds.
    held: usize,
}

/// The plan, if there is one that takes less than `limit` cycles.
pub fn plan(threads: usize, lines: usize, n: usize, k: usize, limit: usize) -> Option<Plan> {
    let spare = 1 << (threads / lines.max(1)).clamp(1, WARP).ilog2();
    let lanes = n.div_ceil(MAX_HELD).next_power_of_two().max(spare).min(n.next_power_of_two());
    if lanes > WARP || k > MAX_FOUND {
        return None;
    }
    let held = n.div_ceil(lanes);
    // A comparison of registers, and one with another lane.
    let (compared, exchanged) = (6 * held, 40 * lanes.ilog2() as usize);
    let turns = lines.div_ceil(threads / lanes);
    (turns * k * (compared + exchanged) <= limit).then_some(Plan { lanes, held })
}

impl Lowerer<'_> {
    /// Calls `found` with the first `k` records of each line.
    pub(super) fn select_first(
        &mut self,
        plan: Plan,
        lines: &Lines<'_>,
        k: usize,
        found: &mut Found<'_, Self>,
    ) -> Result {
        let lanes = plan.lanes;
        let at_once = self.func.threads / lanes;
        let rounds = lines.count.div_ceil(at_once);
        self.b.phase(format!("select for {}", lines.what));
        let width = Idx::constant(lanes as i64);
        let (group, lane) = (index::div(&mut self.b, self.tid, width), index::rem(&mut self.b, self.tid, width));
        if rounds == 1 {
            // Warps without a line wait for the others; in a warp all lanes stay together.
            let (_, warp) = self.lane_and_warp();
            let warps = Idx::constant((lines.count * lanes).div_ceil(WARP) as i64);
            let live = index::in_bounds(&mut self.b, warp, warps);
            return self.branch_on(live, &mut |l| l.select_line(plan, lines, group, lane, k, found));
        }
        let v = self.b.begin_for(Ty::B32);
        let first = index::mul(&mut self.b, Idx::new(v, 0, rounds as i64 - 1, 1), Idx::constant(at_once as i64));
        let line = index::add(&mut self.b, first, group);
        let r = self.select_line(plan, lines, line, lane, k, found);
        let (lo, hi, one) = (self.b.c32(0), self.b.c32(rounds as i64), self.b.c32(1));
        self.b.end_for(v, lo, hi, one, true);
        r
    }

    fn select_line(
        &mut self,
        Plan { lanes, held }: Plan,
        lines: &Lines<'_>,
        line: Idx,
        lane: Idx,
        k: usize,
        found: &mut Found<'_, Self>,
    ) -> Result {
        let live = index::in_bounds(&mut self.b, line, Idx::constant(lines.count as i64));
        let places: Vec<Idx> = (0..held).map(|r| lane.shift((r * lanes) as i64)).collect();
        let mine = self.line_records(lines, line, &places, live);
        let last = self.last_record(lines.keys.view.dtype);
        let lane_val = index::to_val(&mut self.b, lane, Ty::B32);
        let mut kept = vec![last.clone(); k.div_ceil(lanes)];
        let mut before = None;
        for j in 0..k {
            let mut best = last.clone();
            for x in &mine {
                let mut wins = self.is_before(x, &best);
                if let Some(before) = &before {
                    let left = self.is_before(before, x);
                    wins = self.b.and(wins, left);
                }
                best = self.select_record(wins, x, &best);
            }
            let mut mask = 1;
            while mask < lanes {
                let other = self.exchange_record(&best, mask);
                let wins = self.is_before(&other, &best);
                best = self.select_record(wins, &other, &best);
                mask *= 2;
            }
            let keeper = self.b.c32((j % lanes) as i64);
            let keeps = if lanes == 1 { self.b.pred(true) } else { self.b.setp(Cmp::Eq, Num::B32, lane_val, keeper) };
            kept[j / lanes] = self.select_record(keeps, &best, &kept[j / lanes]);
            before = Some(best);
        }
        for (i, x) in kept.iter().enumerate() {
            let rank = lane.shift((i * lanes) as i64);
            let inside = index::in_bounds(&mut self.b, rank, Idx::constant(k as i64));
            let guard: Option<Val> = self.b.and_guard(inside, live);
            let position = self.position(x);
            found(self, line, rank, position, guard)?;
        }
        Ok(())
    }
}
