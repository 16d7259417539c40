//! Whole lines in order, or the first part of each, by Batcher's bitonic network on records in shared memory.
//!
//! An exchange compares the records whose places differ in one bit. A thread reads the records that differ in a few bits,
//! runs all exchanges along these in registers and writes them back, so that a barrier stands between passes of several
//! exchanges only. Where the first `k` are wanted, blocks of the next power of two are sorted, and then merged in pairs of
//! which the better half is kept.

use super::record::{self, Record};
use super::{Found, Lines};
use crate::ptx::lower::index::{self, Idx};
use crate::ptx::lower::view::{Coords, View};
use crate::ptx::lower::{Lowerer, Result};
use crate::ptx::simt::{Bin, Cmp, Num, Ty, Val};
use std::collections::BTreeSet;
use zellige_ir::DType;

/// Bits of the place that a thread handles in one pass, where there are enough records for all threads.
const WIDE_PASS: u32 = 4;
const NARROW_PASS: u32 = 3;

/// Records after which one place stays empty, so that strides of powers of two meet different banks.
const PADDED: i64 = 16;

/// The exchanges along one bit of the place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Exchange {
    bit: u32,
    /// Where this bit of the place is set, the order is reversed.
    reversed: Option<u32>,
    /// The later half is dropped.
    halves: bool,
}

/// Exchanges between two barriers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Pass {
    bits: BTreeSet<u32>,
    exchanges: Vec<Exchange>,
    /// Bits of the place that are zero from here on.
    dropped: BTreeSet<u32>,
}

/// The network for lines of `1 << bits` places of which the first `1 << kept` are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    bits: u32,
    passes: Vec<Pass>,
    /// Bits of a pass.
    width: u32,
}

impl Network {
    pub fn new(threads: usize, lines: usize, n: usize, k: usize) -> Network {
        let bits = n.next_power_of_two().ilog2();
        let kept = k.next_power_of_two().ilog2().min(bits);
        let many = (lines << bits) >> WIDE_PASS >= threads;
        let width = if many { WIDE_PASS } else { NARROW_PASS };
        let reversed = |bit: u32| (bit < bits).then_some(bit);
        let merge = |bit: u32| (0..bit).rev().map(move |b| Exchange { bit: b, reversed: reversed(bit), halves: false });
        let mut exchanges: Vec<Exchange> = (1..=kept).flat_map(merge).collect();
        for bit in kept..bits {
            exchanges.push(Exchange { bit, reversed: None, halves: true });
            exchanges.extend(merge(kept).map(|e| Exchange { reversed: reversed(bit + 1), ..e }));
        }
        let mut passes: Vec<Pass> = vec![Pass::default()];
        for e in exchanges {
            let pass = passes.last_mut().expect("one from the start");
            // Merges end with a pass over the lowest bits, the most that one pass can take.
            let low = e.bit + 1 == width && pass.bits.iter().any(|&b| b >= width);
            let full = !pass.bits.contains(&e.bit) && pass.bits.len() >= width as usize;
            if low || full {
                let dropped = pass.dropped.clone();
                passes.push(Pass { dropped, ..Pass::default() });
            }
            let pass = passes.last_mut().expect("one from the start");
            pass.bits.insert(e.bit);
            pass.exchanges.push(e);
            if e.halves {
                pass.dropped.insert(e.bit);
            }
        }
        Network { bits, passes, width }
    }

    /// Cycles that it takes, roughly: those of barriers, and of the records of a thread.
    pub fn cycles(&self, threads: usize, lines: usize) -> usize {
        let turns = ((lines << self.bits) >> self.width).div_ceil(threads).max(1);
        self.passes.len() * (60 + 10 * (turns << self.width))
    }
}

/// Records of all lines in shared memory.
struct Store {
    keys: View,
    /// For records of two registers.
    positions: Option<View>,
}

impl Store {
    fn at(b: &mut crate::ptx::simt::Builder, base: Idx, offset: i64) -> Coords {
        // The offset adds bits that the base lacks, so that nothing carries.
        let skipped = index::div(b, base, Idx::constant(PADDED));
        let place = index::add(b, base, skipped);
        [place.shift(offset + offset / PADDED)].into_iter().collect()
    }
}

/// Part of a pass: the records whose places are `element` plus each of `offsets`.
struct Group {
    line: Idx,
    element: Idx,
    /// The first place of all lines' in a row.
    place: Idx,
    live: Option<Val>,
}

impl Lowerer<'_> {
    /// Calls `found` with the first `k` records of each line.
    pub(super) fn network(
        &mut self,
        network: &Network,
        lines: &Lines<'_>,
        k: usize,
        found: &mut Found<'_, Self>,
    ) -> Result {
        let places = lines.count << network.bits;
        let padded = places + places / PADDED as usize;
        let key_type = DType::U64;
        let wide = record::is_wide(lines.keys.view.dtype);
        let store = Store {
            keys: self.scratch(lines.what, key_type, &[padded]),
            positions: wide.then(|| self.scratch(lines.what, DType::U32, &[padded])),
        };
        let mut dropped = BTreeSet::new();
        for (i, pass) in network.passes.iter().enumerate() {
            self.b.phase(format!("pass {} of {} for {}", i + 1, network.passes.len(), lines.what));
            let ends = (i == 0, i + 1 == network.passes.len());
            self.pass(network, pass, &dropped, lines, &store, ends, k, found)?;
            dropped.clone_from(&pass.dropped);
        }
        Ok(())
    }

    /// One pass. `dropped` were before it. `ends`: is it the first, is it the last?
    #[allow(clippy::too_many_arguments)]
    fn pass(
        &mut self,
        network: &Network,
        pass: &Pass,
        dropped: &BTreeSet<u32>,
        lines: &Lines<'_>,
        store: &Store,
        ends: (bool, bool),
        k: usize,
        found: &mut Found<'_, Self>,
    ) -> Result {
        let free: Vec<u32> = (0..network.bits).filter(|b| !pass.bits.contains(b) && !dropped.contains(b)).collect();
        let groups = lines.count << free.len();
        let threads = self.func.threads;
        let turns = groups.div_ceil(threads);
        if turns == 1 {
            let group = self.group(network, &free, groups, self.tid);
            return self.exchange(pass, lines, store, &group, ends, k, found);
        }
        let v = self.b.begin_for(Ty::B32);
        let first = index::mul(&mut self.b, Idx::new(v, 0, turns as i64 - 1, 1), Idx::constant(threads as i64));
        let number = index::add(&mut self.b, first, self.tid);
        let group = self.group(network, &free, groups, number);
        let r = self.exchange(pass, lines, store, &group, ends, k, found);
        let (lo, hi, one) = (self.b.c32(0), self.b.c32(turns as i64), self.b.c32(1));
        self.b.end_for(v, lo, hi, one, true);
        r
    }

    /// Group `number` of `count`: its low bits go to the free bits of the place, the others count lines.
    fn group(&mut self, network: &Network, free: &[u32], count: usize, number: Idx) -> Group {
        let b = &mut self.b;
        let live = index::in_bounds(b, number, Idx::constant(count as i64));
        let mut rest = number;
        let mut element = Idx::constant(0);
        let mut i = 0;
        while i < free.len() {
            // Neighbouring bits move together.
            let run = free[i..].iter().zip(free[i]..).take_while(|&(&bit, next)| bit == next).count();
            let size = Idx::constant(1 << run);
            let digit = index::rem(b, rest, size);
            rest = index::div(b, rest, size);
            let part = index::mul(b, digit, Idx::constant(1 << free[i]));
            element = index::add(b, element, part);
            i += run;
        }
        let lines = index::mul(b, rest, Idx::constant(1 << network.bits));
        Group { line: rest, element, place: index::add(b, lines, element), live }
    }

    #[allow(clippy::too_many_arguments)]
    fn exchange(
        &mut self,
        pass: &Pass,
        lines: &Lines<'_>,
        store: &Store,
        group: &Group,
        (is_first, is_last): (bool, bool),
        k: usize,
        found: &mut Found<'_, Self>,
    ) -> Result {
        let bits: Vec<u32> = pass.bits.iter().copied().collect();
        let offset = |r: usize| -> i64 {
            bits.iter().enumerate().filter(|(i, _)| r >> i & 1 == 1).map(|(_, &bit)| 1i64 << bit).sum()
        };
        let count = 1usize << bits.len();
        let mut records: Vec<Option<Record>> = if is_first {
            let places: Vec<Idx> = (0..count).map(|r| group.element.shift(offset(r))).collect();
            self.line_records(lines, group.line, &places, group.live).into_iter().map(Some).collect()
        } else {
            let at: Vec<Coords> = (0..count).map(|r| Store::at(&mut self.b, group.place, offset(r))).collect();
            let guards = vec![group.live; count];
            let keys = store.keys.load(&mut self.b, &at, &guards);
            let positions = store.positions.as_ref().map(|view| view.load(&mut self.b, &at, &guards));
            (0..count).map(|r| Some([keys[r]].into_iter().chain(positions.as_ref().map(|p| p[r])).collect())).collect()
        };
        for e in &pass.exchanges {
            let step = 1 << bits.iter().position(|&b| b == e.bit).expect("a pass has the bits of its exchanges");
            for r in (0..count).filter(|r| r & step == 0) {
                let (Some(x), Some(y)) = (records[r].clone(), records[r | step].clone()) else { continue };
                let mut swap = self.is_before(&y, &x);
                if let Some(bit) = e.reversed {
                    let reversed = match bits.iter().position(|&b| b == bit) {
                        Some(i) => self.b.pred(r >> i & 1 == 1),
                        None => self.has_bit(group.element, bit),
                    };
                    swap = self.b.bin(Bin::Xor, Num::Pred, swap, reversed);
                }
                records[r] = Some(self.select_record(swap, &y, &x));
                records[r | step] = (!e.halves).then(|| self.select_record(swap, &x, &y));
            }
        }
        let live: Vec<usize> = (0..count).filter(|&r| records[r].is_some()).collect();
        if is_last {
            for &r in &live {
                let rank = group.element.shift(offset(r));
                let wanted = index::in_bounds(&mut self.b, rank, Idx::constant(k as i64));
                let guard = self.b.and_guard(wanted, group.live);
                if guard.is_some_and(|g| self.b.as_const(g) == Some(0)) {
                    continue;
                }
                let record = records[r].clone().unwrap_or_default();
                let position = self.position(&record);
                found(self, group.line, rank, position, guard)?;
            }
            return Ok(());
        }
        let at: Vec<Coords> = live.iter().map(|&r| Store::at(&mut self.b, group.place, offset(r))).collect();
        let guards = vec![group.live; live.len()];
        let parts: Vec<Record> = live.iter().filter_map(|&r| records[r].clone()).collect();
        let keys: Vec<Val> = parts.iter().map(|x| x[0]).collect();
        store.keys.store(&mut self.b, &at, &guards, &keys);
        if let Some(view) = &store.positions {
            let positions: Vec<Val> = parts.iter().map(|x| x[1]).collect();
            view.store(&mut self.b, &at, &guards, &positions);
        }
        Ok(())
    }

    fn has_bit(&mut self, x: Idx, bit: u32) -> Val {
        let v = index::to_val(&mut self.b, x, Ty::B32);
        let (one, zero) = (self.b.bfe(v, bit, 1), self.b.c32(0));
        self.b.setp(Cmp::Ne, Num::B32, one, zero)
    }
}
