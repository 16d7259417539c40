//! The shadow of one block's shared memory: who wrote and who read each word last.
//!
//! Sixteen bytes are tracked as one until a narrower access splits them into words, and words into bytes; a store to all of them
//! makes them one again. Readers are kept until a write
//! replaces them, three in place and the rest in a side table, because a missing barrier before a write is the usual bug of
//! a software pipeline.

use std::collections::HashMap;

use super::clock::{Agent, MANY};

/// One earlier access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rec {
    pub epoch: u32,
    /// Instruction that made it.
    pub pc: u32,
    /// Component of the clock, or [`NONE`], or [`PENDING`].
    pub comp: u16,
    pub lane: u8,
    flags: u8,
}

/// No access yet.
pub const NONE: u16 = 0xFFFF;
/// An asynchronous copy that nobody has waited for; `epoch` holds the warp.
pub const PENDING: u16 = 0xFFFE;

const STRONG: u8 = 1;
const ASYNC: u8 = 2;
const SPLIT: u8 = 4;
const SPILL: u8 = 8;

/// Stands for no access.
pub const EMPTY: Rec = Rec { epoch: 0, pc: 0, comp: NONE, lane: 0, flags: 0 };

impl Rec {
    /// Made through the async proxy.
    pub fn is_async(self) -> bool {
        self.flags & ASYNC != 0
    }
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    write: Rec,
    reads: [Rec; 3],
}

const EMPTY_CELL: Cell = Cell { write: EMPTY, reads: [EMPTY; 3] };

/// Who accesses now.
#[derive(Debug, Clone)]
pub struct Who<'a> {
    pub agent: &'a Agent,
    pub lane: u8,
    pub pc: u32,
    /// The component and epoch to record, when the access belongs to an asynchronous agent.
    pub recorded_as: Option<(u16, u32)>,
    /// Made through the async proxy.
    pub asynchronous: bool,
    /// Atomic or volatile: does not conflict with other such accesses.
    pub strong: bool,
    /// The last earlier write that was found to be ordered: neighbours were often written by the same operation.
    pub last: std::cell::Cell<Rec>,
}

/// Why two accesses conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing orders them.
    Unordered,
    /// The earlier one is a copy in flight.
    Pending,
    /// Ordered, but the async proxy may not see it.
    Proxy,
}

/// A conflict with an earlier access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    pub why: Why,
    pub earlier: Rec,
    pub earlier_wrote: bool,
}

/// The shadow.
#[derive(Debug, Default)]
pub struct Shadow {
    /// One for every 16 bytes.
    quads: Vec<Cell>,
    /// One for every 4 bytes, valid where the quad is split.
    words: Vec<Cell>,
    /// Four for the words that are split.
    bytes: HashMap<u32, [Cell; 4]>,
    spilled: HashMap<u32, Vec<Rec>>,
}

impl Shadow {
    /// Forgets everything; `len` is the size in bytes.
    pub fn reset(&mut self, len: usize) {
        self.quads.clear();
        self.quads.resize(len.div_ceil(16), EMPTY_CELL);
        // Cells are written when their quad is split.
        self.words.resize(4 * self.quads.len(), EMPTY_CELL);
        self.bytes.clear();
        self.spilled.clear();
    }

    /// Records a read of `len` bytes and returns a conflict, if there is one.
    #[inline]
    pub fn read(&mut self, at: u32, len: u32, who: &Who<'_>) -> Option<Conflict> {
        self.each(at, len, who, false, Cell::read)
    }

    /// Records a write.
    #[inline]
    pub fn write(&mut self, at: u32, len: u32, who: &Who<'_>) -> Option<Conflict> {
        self.each(at, len, who, true, Cell::write)
    }

    /// Checks against earlier writes only and records nothing (for operations on mbarriers, which never race).
    pub fn check_write_before(&mut self, at: u32, len: u32, who: &Who<'_>) -> Option<Conflict> {
        self.each(at, len, who, false, |cell, _, _, who| cell.conflict_with_write(who))
    }

    /// Turns the pending writes of an asynchronous copy into writes by `comp`.
    pub fn settle(&mut self, at: u32, len: u32, warp: u16, lane: u8, comp: u16, epoch: u32) {
        let done = |w: &mut Rec| {
            if w.comp == PENDING && w.epoch == u32::from(warp) && w.lane == lane {
                (w.comp, w.epoch) = (comp, epoch);
            }
        };
        let mut word = at / 4;
        let end = (at + len).div_ceil(4);
        while word < end {
            let quad = &mut self.quads[(word / 4) as usize];
            if quad.write.flags & SPLIT == 0 {
                done(&mut quad.write);
                word = (word / 4 + 1) * 4;
                continue;
            }
            done(&mut self.words[word as usize].write);
            if let Some(b) = self.bytes.get_mut(&word) {
                b.iter_mut().for_each(|c| done(&mut c.write));
            }
            word += 1;
        }
    }

    /// Runs `f` on every cell of an access. What an access `replaces` as a whole needs no parts any more.
    #[inline(always)]
    fn each(
        &mut self,
        at: u32,
        len: u32,
        who: &Who<'_>,
        replaces: bool,
        f: impl Fn(&mut Cell, &mut HashMap<u32, Vec<Rec>>, u32, &Who<'_>) -> Option<Conflict>,
    ) -> Option<Conflict> {
        let mut found = None;
        let end = at + len;
        let mut p = at;
        while p < end {
            let quad = p / 16;
            let next = ((quad + 1) * 16).min(end);
            let Some(cell) = self.quads.get_mut(quad as usize) else {
                return found;
            };
            let whole = p.is_multiple_of(16) && next - p == 16;
            if whole && cell.write.flags & SPLIT == 0 {
                found = f(cell, &mut self.spilled, quad * 16, who).or(found);
            } else {
                found = self.wordwise(p, next, who, replaces, &f).or(found);
                if whole && replaces {
                    let quad = quad as usize;
                    self.quads[quad] = self.words[4 * quad];
                }
            }
            p = next;
        }
        found
    }

    /// An access inside one quad, word by word.
    fn wordwise(
        &mut self,
        from: u32,
        to: u32,
        who: &Who<'_>,
        replaces: bool,
        f: &impl Fn(&mut Cell, &mut HashMap<u32, Vec<Rec>>, u32, &Who<'_>) -> Option<Conflict>,
    ) -> Option<Conflict> {
        let quad = from / 16;
        let cell = &mut self.quads[quad as usize];
        if cell.write.flags & SPLIT == 0 {
            self.words[4 * quad as usize..][..4].fill(*cell);
            share(&mut self.spilled, quad * 16, 4);
            cell.write.flags |= SPLIT;
        }
        let mut found = None;
        let mut p = from;
        while p < to {
            let word = p / 4;
            let next = ((word + 1) * 4).min(to);
            let cell = &mut self.words[word as usize];
            let whole = p.is_multiple_of(4) && next - p == 4;
            if whole && cell.write.flags & SPLIT == 0 {
                found = f(cell, &mut self.spilled, word * 4, who).or(found);
            } else {
                found = Self::bytewise(cell, &mut self.bytes, &mut self.spilled, p, next, who, f).or(found);
                if whole
                    && replaces
                    && let Some(four) = self.bytes.remove(&word)
                {
                    *cell = four[0];
                }
            }
            p = next;
        }
        found
    }

    fn bytewise(
        cell: &mut Cell,
        bytes: &mut HashMap<u32, [Cell; 4]>,
        spilled: &mut HashMap<u32, Vec<Rec>>,
        from: u32,
        to: u32,
        who: &Who<'_>,
        f: &impl Fn(&mut Cell, &mut HashMap<u32, Vec<Rec>>, u32, &Who<'_>) -> Option<Conflict>,
    ) -> Option<Conflict> {
        let word = from / 4;
        if cell.write.flags & SPLIT == 0 {
            bytes.insert(word, [*cell; 4]);
            share(spilled, word * 4, 1);
            cell.write.flags |= SPLIT;
        }
        let mut found = None;
        if let Some(four) = bytes.get_mut(&word) {
            for p in from..to {
                found = f(&mut four[(p % 4) as usize], spilled, p, who).or(found);
            }
        }
        found
    }
}

/// Gives each of four parts, `step` bytes apart, the readers of the whole.
fn share(spilled: &mut HashMap<u32, Vec<Rec>>, key: u32, step: u32) {
    if let Some(list) = spilled.get(&key).cloned() {
        for k in 1..4 {
            spilled.insert(key + k * step, list.clone());
        }
    }
}

impl Who<'_> {
    #[inline(always)]
    fn rec(&self) -> Rec {
        let (comp, epoch) = self.recorded_as.unwrap_or((self.agent.id, self.agent.epoch));
        let flags = if self.strong { STRONG } else { 0 } | if self.asynchronous { ASYNC } else { 0 };
        Rec { epoch, pc: self.pc, comp, lane: self.lane, flags }
    }

    /// Whether `r` may be followed by this access; `r` wrote if `wrote`.
    #[inline(always)]
    fn check(&self, r: &Rec, wrote: bool) -> Option<Why> {
        if r.comp == NONE || (self.strong && r.flags & STRONG != 0) {
            return None;
        }
        if r.comp == PENDING {
            return Some(Why::Pending);
        }
        // Copies that complete together do not race with each other's bookkeeping: the same agent and epoch is one operation.
        if self.recorded_as == Some((r.comp, r.epoch)) && r.pc == self.pc && r.lane == self.lane {
            return None;
        }
        if !self.agent.ordered(self.lane, r.comp, r.lane, r.epoch) {
            return Some(Why::Unordered);
        }
        // A generic read before an async write needs no proxy fence, a generic write does.
        if self.asynchronous && wrote && !r.is_async() && !self.agent.proxy_ordered(self.lane, r.comp, r.lane, r.epoch)
        {
            return Some(Why::Proxy);
        }
        None
    }
}

impl Cell {
    #[inline(always)]
    fn conflict_with_write(&self, who: &Who<'_>) -> Option<Conflict> {
        if self.write.comp == NONE || self.write == who.last.get() {
            return None;
        }
        let why = who.check(&self.write, true);
        if why.is_none() {
            who.last.set(self.write);
        }
        why.map(|why| Conflict { why, earlier: self.write, earlier_wrote: true })
    }

    #[inline(always)]
    fn read(&mut self, spilled: &mut HashMap<u32, Vec<Rec>>, key: u32, who: &Who<'_>) -> Option<Conflict> {
        let conflict = self.conflict_with_write(who);
        let new = who.rec();
        // The same warp reading again in the same epoch is the common case. The operations of an asynchronous agent finish in
        // order, so its last one stands for all.
        let agent = who.recorded_as.is_some();
        for r in &mut self.reads {
            if r.comp == new.comp && r.flags == new.flags && (agent || r.epoch == new.epoch) {
                (r.epoch, r.pc) = (r.epoch.max(new.epoch), new.pc);
                if r.lane != new.lane {
                    r.lane = MANY;
                }
                return conflict;
            }
            if r.comp == NONE {
                *r = new;
                return conflict;
            }
        }
        // Replace a reader that is ordered before this one: whoever is ordered after us is ordered after it.
        for r in &mut self.reads {
            if !agent && who.agent.ordered(who.lane, r.comp, r.lane, r.epoch) {
                *r = new;
                return conflict;
            }
        }
        self.write.flags |= SPILL;
        let list = spilled.entry(key).or_default();
        match list.iter_mut().find(|r| r.comp == new.comp && r.flags == new.flags) {
            Some(r) => {
                r.epoch = r.epoch.max(new.epoch);
                if r.lane != new.lane {
                    r.lane = MANY;
                }
            }
            None => list.push(new),
        }
        conflict
    }

    #[inline(always)]
    fn write(&mut self, spilled: &mut HashMap<u32, Vec<Rec>>, key: u32, who: &Who<'_>) -> Option<Conflict> {
        let mut conflict = self.conflict_with_write(who);
        for r in &mut self.reads {
            if r.comp == NONE {
                break;
            }
            if let Some(why) = who.check(r, false) {
                conflict = Some(Conflict { why, earlier: *r, earlier_wrote: false });
            }
            *r = EMPTY;
        }
        if self.write.flags & SPILL != 0 {
            for r in spilled.remove(&key).unwrap_or_default() {
                if let Some(why) = who.check(&r, false) {
                    conflict = Some(Conflict { why, earlier: r, earlier_wrote: false });
                }
            }
        }
        let split = self.write.flags & SPLIT;
        self.write = who.rec();
        self.write.flags |= split;
        conflict
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::Knowledge;
    use super::*;

    fn who(agent: &Agent, lane: u8) -> Who<'_> {
        Who { agent, lane, pc: 0, recorded_as: None, asynchronous: false, strong: false, last: EMPTY.into() }
    }

    fn shadow() -> Shadow {
        let mut s = Shadow::default();
        s.reset(64);
        s
    }

    #[test]
    fn unordered_write_and_read_conflict_until_a_barrier() {
        let (mut a, mut b, mut s) = (Agent::new(0), Agent::new(1), shadow());
        assert_eq!(s.write(0, 16, &who(&a, 0)), None);
        assert_eq!(s.read(4, 4, &who(&b, 0)).map(|c| c.why), Some(Why::Unordered));
        let mut bar = Knowledge::default();
        a.release(u32::MAX, true, &mut bar);
        b.acquire(u32::MAX, true, &bar);
        assert_eq!(s.read(4, 4, &who(&b, 0)), None);
    }

    #[test]
    fn a_write_conflicts_with_any_of_many_readers() {
        let agents: Vec<Agent> = (0..8).map(Agent::new).collect();
        let mut s = shadow();
        for a in &agents[1..] {
            assert_eq!(s.read(0, 4, &who(a, 3)), None);
        }
        let mut w = Agent::new(0);
        for a in &agents[1..7] {
            let mut k = Knowledge::default();
            a.clone().release(u32::MAX, true, &mut k);
            w.acquire(u32::MAX, true, &k);
        }
        let c = s.write(0, 4, &who(&w, 0)).expect("warp 7 is not ordered");
        assert_eq!((c.earlier.comp, c.earlier_wrote), (7, false));
    }

    #[test]
    fn neighbouring_half_words_do_not_conflict() {
        let (a, b, mut s) = (Agent::new(0), Agent::new(1), shadow());
        assert_eq!(s.write(0, 2, &who(&a, 0)), None);
        assert_eq!(s.write(2, 2, &who(&b, 0)), None);
        assert!(s.read(0, 4, &who(&b, 0)).is_some(), "the whole word includes a's half");
    }

    #[test]
    fn parts_become_one_again() {
        let (mut a, mut s) = (Agent::new(0), shadow());
        for at in [0, 6, 8] {
            assert_eq!(s.write(at, 2, &who(&a, 0)), None);
        }
        assert_eq!(s.write(0, 16, &who(&a, 0)), None);
        assert_eq!((s.quads[0].write.flags & SPLIT, s.bytes.len()), (0, 0));
        // Who reads a part reads what was written to the whole.
        assert!(s.read(12, 2, &who(&Agent::new(1), 0)).is_some());
        a.warp_sync();
        assert_eq!(s.write(12, 4, &who(&a, 7)).map(|c| c.earlier_wrote), Some(false), "the other warp reads there");
        assert_eq!(s.write(0, 4, &who(&a, 7)), None, "and not here");
    }

    #[test]
    fn atomics_do_not_conflict_with_each_other() {
        let (a, b, mut s) = (Agent::new(0), Agent::new(1), shadow());
        fn strong(g: &Agent, l: u8) -> Who<'_> {
            Who { strong: true, ..who(g, l) }
        }
        assert_eq!(s.write(0, 4, &strong(&a, 0)), None);
        assert_eq!(s.write(0, 4, &strong(&b, 0)), None);
        assert!(s.write(0, 4, &who(&a, 1)).is_some());
    }

    #[test]
    fn pending_copies_settle() {
        let (a, mut s) = (Agent::new(0), shadow());
        let copy = Who { recorded_as: Some((PENDING, 0)), ..who(&a, 2) };
        assert_eq!(s.write(16, 16, &copy), None);
        assert_eq!(s.read(16, 4, &who(&a, 2)).map(|c| c.why), Some(Why::Pending));
        s.settle(16, 16, 0, 2, a.id, a.epoch);
        assert_eq!(s.read(20, 4, &who(&a, 2)), None);
        assert!(s.read(24, 4, &who(&a, 3)).is_some(), "another lane still needs a warp sync");
    }

    #[test]
    fn async_reads_need_the_proxy_fence() {
        let (mut a, mut s) = (Agent::new(0), shadow());
        s.write(0, 4, &who(&a, 0));
        fn tma(g: &Agent) -> Who<'_> {
            Who { recorded_as: Some((9, 1)), asynchronous: true, ..who(g, 0) }
        }
        assert_eq!(s.read(0, 4, &tma(&a)).map(|c| c.why), Some(Why::Proxy));
        a.proxy_fence(1, false);
        assert_eq!(s.read(0, 4, &tma(&a)), None);
    }
}
