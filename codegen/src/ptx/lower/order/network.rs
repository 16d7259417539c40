//! Whole lines in order, by Batcher's bitonic network on records in shared memory.
//!
//! An exchange compares the records whose places differ in one bit; a merge runs exchanges along bits `m - 1 .. 0` and leaves
//! runs of `1 << m` records in order, up and down in turn. A thread reads the records that differ in a few bits, runs
//! all exchanges along these in registers and writes them back, so that a barrier stands between passes of several exchanges
//! only. Merges and passes are loops of the device: code that runs once would be fetched for longer than it runs.

use super::record::{self, Record};
use super::{Found, Lines};
use crate::ptx::lower::index::{self, Idx};
use crate::ptx::lower::view::{Coords, View};
use crate::ptx::lower::{Lowerer, Result};
use crate::ptx::simt::{Bin, Cmp, Num, Ty, Val};
use zellige_ir::DType;

/// Bits of the place that a thread handles in one pass, where there are enough records for all threads.
const WIDE_PASS: u32 = 4;
const NARROW_PASS: u32 = 3;

/// Records after which one place stays empty, so that strides of powers of two meet different banks.
const PADDED: i64 = 16;

/// The network for lines of `1 << bits` places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    bits: u32,
    /// Bits of a pass.
    width: u32,
}

impl Network {
    pub fn new(threads: usize, lines: usize, n: usize) -> Network {
        let bits = n.next_power_of_two().ilog2();
        let many = (lines << bits) >> WIDE_PASS >= threads;
        Network { bits, width: bits.min(if many { WIDE_PASS } else { NARROW_PASS }) }
    }

    /// Cycles that it takes, roughly: those of barriers, and of the records of a thread.
    pub fn cycles(&self, threads: usize, lines: usize) -> usize {
        let passes: u32 = (self.width + 1..=self.bits).map(|m| m.div_ceil(self.width)).sum();
        let turns = self.groups(lines).div_ceil(threads);
        (passes as usize + 2) * (100 + 10 * (turns << self.width))
    }

    /// Groups of records that are handled together.
    fn groups(&self, lines: usize) -> usize {
        (lines << self.bits) >> self.width
    }
}

/// Records of all lines in shared memory, line after line.
struct Store {
    keys: View,
    /// For records of two registers.
    positions: Option<View>,
}

impl Lowerer<'_> {
    /// Calls `found` with the first `k` records of each line.
    pub(super) fn network(&mut self, n: Network, lines: &Lines<'_>, k: usize, found: &mut Found<'_, Self>) -> Result {
        let places = lines.count << n.bits;
        let padded = places + places / PADDED as usize;
        let wide = record::is_wide(lines.keys.view.dtype);
        let store = Store {
            keys: self.scratch(lines.what, DType::U64, &[padded]),
            positions: wide.then(|| self.scratch(lines.what, DType::U32, &[padded])),
        };
        let groups = n.groups(lines.count);
        self.b.phase(format!("first merges for {}", lines.what));
        self.in_turns(groups, &mut |l, group| l.first_merges(n, lines, &store, group))?;
        if n.bits > n.width {
            let v = self.b.begin_for(Ty::B32);
            let r = self.merge(n, v, lines, &store);
            let (lo, hi, one) = (self.b.c32(n.width as i64 + 1), self.b.c32(n.bits as i64 + 1), self.b.c32(1));
            self.b.end_for(v, lo, hi, one, true);
            r?;
        }
        self.b.phase(format!("results of {}", lines.what));
        self.in_turns(lines.count * k, &mut |l, number| {
            let k = Idx::constant(k as i64);
            let (line, rank) = (index::div(&mut l.b, number, k), index::rem(&mut l.b, number, k));
            let first = index::mul(&mut l.b, line, Idx::constant(1 << n.bits));
            let place = index::add(&mut l.b, first, rank);
            let record = l.records_at(&store, &[place]).remove(0);
            let position = l.position(&record);
            found(l, line, rank, position, None)
        })
    }

    /// Runs `f` on the numbers below `count`, dealt out to the threads. Warps without one do not wait inside.
    fn in_turns(&mut self, count: usize, f: &mut dyn FnMut(&mut Self, Idx) -> Result) -> Result {
        let threads = self.func.threads;
        let turns = count.div_ceil(threads);
        let end = Idx::constant(count as i64);
        if turns == 1 {
            let live = index::in_bounds(&mut self.b, self.tid, end);
            return self.branch_on(live, &mut |l| {
                let number = Idx { hi: count as i64 - 1, ..l.tid };
                f(l, number)
            });
        }
        let v = self.b.begin_for(Ty::B32);
        let first = index::mul(&mut self.b, Idx::new(v, 0, turns as i64 - 1, 1), Idx::constant(threads as i64));
        let number = index::add(&mut self.b, first, self.tid);
        let live = index::in_bounds(&mut self.b, number, end);
        let number = Idx { hi: count as i64 - 1, ..number };
        let r = self.branch_on(live, &mut |l| f(l, number));
        let (lo, hi, one) = (self.b.c32(0), self.b.c32(turns as i64), self.b.c32(1));
        self.b.end_for(v, lo, hi, one, true);
        r
    }

    /// Makes records of neighbouring elements and merges them in registers.
    fn first_merges(&mut self, n: Network, lines: &Lines<'_>, store: &Store, group: Idx) -> Result {
        let count = 1usize << n.width;
        let first = index::mul(&mut self.b, group, Idx::constant(count as i64));
        let length = Idx::constant(1 << n.bits);
        let (line, element) = (index::div(&mut self.b, first, length), index::rem(&mut self.b, first, length));
        let elements: Vec<Idx> = (0..count).map(|r| element.shift(r as i64)).collect();
        let mut records = self.line_records(lines, line, &elements, None);
        for m in 1..=n.width {
            let down = |l: &mut Self, r: usize| {
                if m == n.bits {
                    l.b.pred(false)
                } else if m < n.width {
                    l.b.pred(r >> m & 1 == 1)
                } else {
                    let v = index::to_val(&mut l.b, element, Ty::B32);
                    let by = l.b.c32(m as i64);
                    l.is_odd_above(v, by)
                }
            };
            for bit in (0..m).rev() {
                for r in (0..count).filter(|r| r >> bit & 1 == 0) {
                    let reversed = down(self, r);
                    self.exchange(&mut records, r, 1 << bit, reversed, None);
                }
            }
        }
        let places: Vec<Idx> = (0..count).map(|r| first.shift(r as i64)).collect();
        self.store_records(store, &places, &records);
        Ok(())
    }

    /// Merge `m` (b32), a loop over passes: each takes the highest bits that are left.
    fn merge(&mut self, n: Network, m: Val, lines: &Lines<'_>, store: &Store) -> Result {
        let width = self.b.c32(n.width as i64);
        let round = self.b.c32(n.width as i64 - 1);
        let sum = self.b.add(Num::S32, m, round);
        let passes = self.b.bin(Bin::Div, Num::U32, sum, width);
        let v = self.b.begin_for(Ty::B32);
        self.b.phase(format!("pass of a merge for {}", lines.what));
        let done = self.b.mul(Num::S32, v, width);
        let high = self.b.sub(Num::S32, m, done);
        let low = self.b.sub(Num::S32, high, width);
        let zero = self.b.c32(0);
        let low = self.b.bin(Bin::Max, Num::S32, low, zero);
        let r = self.in_turns(n.groups(lines.count), &mut |l, group| l.pass(n, m, (low, high), lines, store, group));
        let one = self.b.c32(1);
        self.b.end_for(v, zero, passes, one, true);
        r
    }

    /// Exchanges along the bits from `high - 1` down to `low`, at most [`Network::width`].
    fn pass(
        &mut self,
        n: Network,
        m: Val,
        (low, high): (Val, Val),
        lines: &Lines<'_>,
        store: &Store,
        group: Idx,
    ) -> Result {
        let b = &mut self.b;
        // The group's number with a gap of `width` bits at `low`.
        let number = index::to_val(b, group, Ty::B32);
        let above = b.bin(Bin::Shr, Num::U32, number, low);
        let kept = b.bin(Bin::Shl, Num::B32, above, low);
        let below = b.sub(Num::S32, number, kept);
        let width = b.c32(n.width as i64);
        let lifted = b.bin(Bin::Shl, Num::B32, kept, width);
        let first = b.add(Num::S32, lifted, below);
        let last = (lines.count << n.bits) as i64 - 1;
        let places: Vec<Idx> = (0..1i64 << n.width)
            .map(|r| {
                let r = self.b.c32(r);
                let offset = self.b.bin(Bin::Shl, Num::B32, r, low);
                let place = self.b.add(Num::S32, first, offset);
                Idx::new(place, 0, last, 1)
            })
            .collect();
        let mut records = self.records_at(store, &places);
        // The last merge goes up everywhere.
        let down = self.is_odd_above(first, m);
        let all = self.b.c32(n.bits as i64);
        let more = self.b.setp(Cmp::Lt, Num::S32, m, all);
        let down = self.b.and(down, more);
        for bit in (0..n.width).rev() {
            let by = self.b.c32(bit as i64);
            let actual = self.b.add(Num::S32, low, by);
            let wanted = self.b.setp(Cmp::Lt, Num::S32, actual, high);
            for r in (0..records.len()).filter(|r| r >> bit & 1 == 0) {
                self.exchange(&mut records, r, 1 << bit, down, Some(wanted));
            }
        }
        self.store_records(store, &places, &records);
        Ok(())
    }

    /// Orders records `r` and `r + step`, backwards if `reversed`, if at all.
    fn exchange(&mut self, records: &mut [Record], r: usize, step: usize, reversed: Val, wanted: Option<Val>) {
        let (x, y) = (records[r].clone(), records[r + step].clone());
        let later = self.is_before(&y, &x);
        let swap = self.b.bin(Bin::Xor, Num::Pred, later, reversed);
        let swap = self.b.and_guard(Some(swap), wanted).unwrap_or(swap);
        records[r] = self.select_record(swap, &y, &x);
        records[r + step] = self.select_record(swap, &x, &y);
    }

    /// True if bit `by` of `x` is set.
    fn is_odd_above(&mut self, x: Val, by: Val) -> Val {
        let (one, zero) = (self.b.c32(1), self.b.c32(0));
        let shifted = self.b.bin(Bin::Shr, Num::U32, x, by);
        let bit = self.b.bin(Bin::And, Num::B32, shifted, one);
        self.b.setp(Cmp::Ne, Num::B32, bit, zero)
    }

    fn padded(&mut self, places: &[Idx]) -> Vec<Coords> {
        let at = |l: &mut Self, place: Idx| {
            let skipped = index::div(&mut l.b, place, Idx::constant(PADDED));
            [index::add(&mut l.b, place, skipped)].into_iter().collect()
        };
        places.iter().map(|&place| at(self, place)).collect()
    }

    fn records_at(&mut self, store: &Store, places: &[Idx]) -> Vec<Record> {
        let (at, guards) = (self.padded(places), vec![None; places.len()]);
        let keys = store.keys.load(&mut self.b, &at, &guards);
        let positions = store.positions.as_ref().map(|view| view.load(&mut self.b, &at, &guards));
        (0..places.len()).map(|i| [keys[i]].into_iter().chain(positions.as_ref().map(|p| p[i])).collect()).collect()
    }

    fn store_records(&mut self, store: &Store, places: &[Idx], records: &[Record]) {
        let (at, guards) = (self.padded(places), vec![None; places.len()]);
        let keys: Vec<Val> = records.iter().map(|x| x[0]).collect();
        store.keys.store(&mut self.b, &at, &guards, &keys);
        if let Some(view) = &store.positions {
            let positions: Vec<Val> = records.iter().map(|x| x[1]).collect();
            view.store(&mut self.b, &at, &guards, &positions);
        }
    }
}
