//! The first few of each line: every line belongs to some lanes of one warp, which hold it in registers and find one record
//! after the other. No barriers, and many lines at once. Where some lanes share a line they compare records by shuffles, from
//! all of their elements each time; where all lanes of a warp do, each keeps its two first elements at hand and the warp
//! combines these by `redux`, so that a lane looks through its elements again only after two of them were found.

use super::{Found, Lines};
use crate::ptx::lower::Lowerer;
use crate::ptx::lower::Result;
use crate::ptx::lower::index::{self, Idx};
use crate::ptx::simt::{Bin, Builder, Cmp, Num, Ty, Val};
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
    /// Keys of 32 bits, and a warp for each line.
    by_redux: bool,
}

/// The plan, if there is one that takes less than `limit` cycles. `wide`: keys are of 64 bits.
pub fn plan(threads: usize, lines: usize, n: usize, k: usize, wide: bool, limit: usize) -> Option<Plan> {
    let spare = 1 << (threads / lines.max(1)).clamp(1, WARP).ilog2();
    let lanes = n.div_ceil(MAX_HELD).next_power_of_two().max(spare).min(n.next_power_of_two());
    if lanes > WARP || k > MAX_FOUND {
        return None;
    }
    let held = n.div_ceil(lanes);
    // A comparison of registers, and one with another lane.
    let (compared, exchanged) = (6 * held, 40 * lanes.ilog2() as usize);
    let turns = lines.div_ceil(threads / lanes);
    let by_shuffles = turns * k * (compared + exchanged);
    // The two first elements of a lane, once and now and then again, and two reductions for each result.
    let held_by_warp = n.div_ceil(WARP);
    let by_redux = lines.div_ceil(threads / WARP) * (14 * held_by_warp + 80 * k);
    if !wide && by_redux < by_shuffles && by_redux <= limit {
        return Some(Plan { lanes: WARP, held: held_by_warp, by_redux: true });
    }
    (by_shuffles <= limit).then_some(Plan { lanes, held, by_redux: false })
}

/// A key and its position, both b32; all ones for none.
#[derive(Clone, Copy)]
struct Entry {
    key: Val,
    position: Val,
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
        plan: Plan,
        lines: &Lines<'_>,
        line: Idx,
        lane: Idx,
        k: usize,
        found: &mut Found<'_, Self>,
    ) -> Result {
        let live = index::in_bounds(&mut self.b, line, Idx::constant(lines.count as i64));
        let Plan { lanes, held, by_redux } = plan;
        let places: Vec<Idx> = (0..held).map(|r| lane.shift((r * lanes) as i64)).collect();
        if by_redux {
            return self.select_by_redux(lines, line, lane, &places, live, k, found);
        }
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

    /// [`select_line`](Self::select_line) by all lanes of a warp on 32-bit keys.
    #[allow(clippy::too_many_arguments)]
    fn select_by_redux(
        &mut self,
        lines: &Lines<'_>,
        line: Idx,
        lane: Idx,
        places: &[Idx],
        live: Option<Val>,
        k: usize,
        found: &mut Found<'_, Self>,
    ) -> Result {
        let ty = lines.keys.view.dtype;
        let none = self.b.c32(-1);
        let elements = self.line_elements(lines, line, places, live);
        let mine: Vec<Entry> = elements
            .into_iter()
            .zip(places)
            .map(|((x, guard), &place)| {
                let key = self.order_key(ty, lines.descending, x);
                let key = guard.map_or(key, |g| self.b.selp(g, key, none));
                Entry { key, position: index::to_val(&mut self.b, place, Ty::B32) }
            })
            .collect();
        let lane_val = index::to_val(&mut self.b, lane, Ty::B32);
        let [first, second] = self.first_two(&mine, None);
        let vars = [first.key, first.position, second.key, second.position].map(|x| {
            let var = self.b.new_var(Ty::B32);
            self.b.set(var, x);
            var
        });
        let mut kept = none;
        for j in 0..k {
            let [first_key, first_position, second_key, second_position] = vars.map(|var| self.b.get(var));
            let key = self.b.redux(Bin::Min, Num::U32, first_key);
            let is_least = self.b.setp(Cmp::Eq, Num::B32, first_key, key);
            let position = self.b.selp(is_least, first_position, none);
            let position = self.b.redux(Bin::Min, Num::U32, position);
            let number = self.b.c32(j as i64);
            let keeps = self.b.setp(Cmp::Eq, Num::B32, lane_val, number);
            kept = self.b.selp(keeps, position, kept);
            if j + 1 == k {
                break;
            }
            // The lane whose element it was goes on to its second, or looks for two more.
            let was_mine = self.b.setp(Cmp::Eq, Num::B32, first_position, position);
            let next = [second_key, second_position, none, none];
            for ((var, next), now) in
                vars.iter().zip(next).zip([first_key, first_position, second_key, second_position])
            {
                let x = self.b.selp(was_mine, next, now);
                self.b.set(*var, x);
            }
            let no_second = self.b.setp(Cmp::Eq, Num::B32, second_position, none);
            let looks = self.b.and(was_mine, no_second);
            self.branch_on(Some(looks), &mut |l| {
                let [first, second] = l.first_two(&mine, Some(Entry { key, position }));
                for (var, x) in vars.iter().zip([first.key, first.position, second.key, second.position]) {
                    l.b.set(*var, x);
                }
                Ok(())
            })?;
        }
        let inside = index::in_bounds(&mut self.b, lane, Idx::constant(k as i64));
        let guard = self.b.and_guard(inside, live);
        found(self, line, lane, kept, guard)
    }

    /// The two first of a lane's elements, which stand in the order of their positions, of those behind `before`. What does not
    /// exist stands behind all that do, because equal keys are in the order of positions.
    fn first_two(&mut self, mine: &[Entry], before: Option<Entry>) -> [Entry; 2] {
        let b = &mut self.b;
        let none = Entry { key: b.c32(-1), position: b.c32(-1) };
        let mut two = [none; 2];
        // From last to first, so that the earlier of two equal ones comes to stand before the later.
        for &x in mine.iter().rev() {
            let [first, second] = two;
            let mut leads = b.setp(Cmp::Le, Num::U32, x.key, first.key);
            let mut follows = b.setp(Cmp::Le, Num::U32, x.key, second.key);
            if let Some(before) = before {
                let greater = b.setp(Cmp::Gt, Num::U32, x.key, before.key);
                let (equal, later) = (
                    b.setp(Cmp::Eq, Num::B32, x.key, before.key),
                    b.setp(Cmp::Gt, Num::U32, x.position, before.position),
                );
                let tie = b.and(equal, later);
                let behind = b.bin(Bin::Or, Num::Pred, greater, tie);
                leads = b.and(leads, behind);
                follows = b.and(follows, behind);
            }
            let choose = |b: &mut Builder, x: Val, first: Val, second: Val| {
                let other = b.selp(follows, x, second);
                [b.selp(leads, x, first), b.selp(leads, first, other)]
            };
            let keys = choose(b, x.key, first.key, second.key);
            let positions = choose(b, x.position, first.position, second.position);
            two = [0, 1].map(|i| Entry { key: keys[i], position: positions[i] });
        }
        two
    }
}
