//! Conflicts of different blocks on global memory.
//!
//! Blocks are ordered only by atomics: a block that fences and then performs an atomic releases what it wrote, and a block
//! whose atomic meets that value and that fences afterwards acquires it. The "last block reduces" pattern is therefore
//! clean with both of its fences and a fault without one. Works on blocks that run one after another.
//!
//! Atomics that combine alike may come in any order. Of an addition and an exchange of one place the order decides, so
//! something must order them.

use std::collections::HashMap;

const NOBODY: u32 = u32::MAX;
/// Reads by several blocks.
const SEVERAL: u32 = u32::MAX - 1;

#[derive(Debug, Clone, Copy)]
struct Cell {
    writer: u32,
    writer_epoch: u32,
    reader: u32,
    /// Bytes of the word the last writer wrote.
    /// The last one before it whose atomic it need not be ordered after, because both combine alike.
    other: u32,
    other_epoch: u32,
    bytes: u8,
    read_bytes: u8,
    atomic: Option<Combines>,
}

const EMPTY: Cell = Cell {
    writer: NOBODY,
    writer_epoch: 0,
    reader: NOBODY,
    other: NOBODY,
    other_epoch: 0,
    bytes: 0,
    read_bytes: 0,
    atomic: None,
};

/// How an atomic combines; those alike commute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combines {
    Sum,
    Least,
    Greatest,
    /// Bits: those of different threads are taken to be different ones.
    Bits,
    Exchange,
    /// Counts up or down, and begins again somewhere.
    Count,
    /// A strong load or store: its author wants what comes.
    Plain,
}

impl Combines {
    fn commutes(self, other: Combines) -> bool {
        self == other || self == Combines::Plain || other == Combines::Plain
    }
}

/// How a block accesses memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// A read through a path that does not see what the launch itself writes.
    Constant,
    Write,
    /// Atomic or strong. `observes`: the block sees what was there, and so that what others did before has happened.
    Atomic {
        combines: Combines,
        observes: bool,
    },
}

/// What one block knows of others.
#[derive(Debug, Default)]
struct Block {
    epoch: u32,
    /// A device-scope fence was executed since the last release.
    fenced: bool,
    known: HashMap<u32, u32>,
    /// What atomics have met and no fence has made known yet.
    met: Vec<(u32, u32)>,
}

/// The other block, and whether it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    pub block: u32,
    pub wrote: bool,
}

/// Shadow of global memory during one launch. Blocks are linear indices.
#[derive(Debug, Default)]
pub struct GlobalShadow {
    /// Cells by region of the address space, one per word, created when first touched.
    cells: Vec<Vec<Cell>>,
    current: Block,
    current_id: u32,
    done: HashMap<u32, Block>,
    /// What an atomic location has been told.
    locations: HashMap<u64, HashMap<u32, u32>>,
}

impl GlobalShadow {
    /// Block `id` runs now.
    pub fn enter(&mut self, id: u32) {
        if id == self.current_id && self.current.epoch > 0 {
            return;
        }
        let next = self.done.remove(&id).unwrap_or(Block { epoch: 1, ..Block::default() });
        let last = std::mem::replace(&mut self.current, next);
        if last.epoch > 0 {
            self.done.insert(self.current_id, last);
        }
        self.current_id = id;
    }

    /// A device-scope fence.
    pub fn fence(&mut self) {
        self.current.fenced = true;
        self.learn();
    }

    /// What was met is known from now on.
    fn learn(&mut self) {
        for (b, e) in self.current.met.drain(..) {
            let k = self.current.known.entry(b).or_default();
            *k = (*k).max(e);
        }
    }

    /// An atomic at `address`: releases if fenced (or `release`), and meets what earlier ones released. That is acquired by
    /// the next fence, or at once (`acquire`).
    pub fn atomic(&mut self, address: u64, acquire: bool, release: bool) {
        let id = self.current_id;
        if let Some(told) = self.locations.get(&address) {
            self.current.met.extend(told.iter().map(|(&b, &e)| (b, e)));
        }
        if acquire {
            self.learn();
        }
        if release || self.current.fenced {
            let told = self.locations.entry(address).or_default();
            for (b, e) in &self.current.known {
                let t = told.entry(*b).or_default();
                *t = (*t).max(*e);
            }
            told.insert(id, self.current.epoch);
            self.current.epoch += 1;
            self.current.fenced = false;
        }
    }

    fn ordered(&self, block: u32, epoch: u32) -> bool {
        block == self.current_id || self.current.known.get(&block).is_some_and(|k| *k >= epoch)
    }

    /// Records an access of `len` bytes at byte `at` of the allocation of `size` bytes in `region`.
    pub fn access(&mut self, region: usize, size: u64, at: u64, len: u32, how: Access) -> Option<Conflict> {
        if self.cells.len() <= region {
            self.cells.resize_with(region + 1, Vec::new);
        }
        let mut cells = std::mem::take(&mut self.cells[region]);
        if cells.is_empty() {
            cells.resize(size.div_ceil(4) as usize, EMPTY);
        }
        let mut found = None;
        let mut p = at;
        let end = at + u64::from(len);
        while p < end {
            let word = p / 4;
            let next = ((word + 1) * 4).min(end);
            let mask = (((1u32 << (next - p)) - 1) << (p % 4)) as u8;
            found = self.word(&mut cells[word as usize], mask, how).or(found);
            p = next;
        }
        self.cells[region] = cells;
        found
    }

    fn word(&self, c: &mut Cell, mask: u8, how: Access) -> Option<Conflict> {
        let id = self.current_id;
        let mut found = None;
        let strong = match how {
            Access::Atomic { combines, .. } => Some(combines),
            Access::Read | Access::Constant | Access::Write => None,
        };
        let commutes = matches!((strong, c.atomic), (Some(new), Some(old)) if new.commutes(old));
        if c.writer != NOBODY && c.bytes & mask != 0 && !commutes && !self.ordered(c.writer, c.writer_epoch) {
            found = Some(Conflict { block: c.writer, wrote: true });
        }
        if c.other != NOBODY && c.bytes & mask != 0 && !commutes && !self.ordered(c.other, c.other_epoch) {
            found = Some(Conflict { block: c.other, wrote: true });
        }
        if how == Access::Constant && c.writer != NOBODY && c.bytes & mask != 0 {
            found = Some(Conflict { block: c.writer, wrote: true });
        }
        if matches!(how, Access::Read | Access::Constant) {
            c.read_bytes |= mask;
            c.reader = match c.reader {
                NOBODY => id,
                r if r == id => id,
                _ => SEVERAL,
            };
            return found;
        }
        // Earlier reads carry no epoch: a reader that any atomic has ordered before us is taken as ordered.
        if c.reader != NOBODY && c.reader != id && c.read_bytes & mask != 0 && strong.is_none() {
            let ordered = c.reader != SEVERAL && self.current.known.contains_key(&c.reader);
            if !ordered {
                found = found.or(Some(Conflict { block: c.reader, wrote: false }));
            }
        }
        let same_writer = c.writer == id && c.writer_epoch == self.current.epoch;
        // Only the last writer is remembered: forgetting another one's bytes can miss a conflict, never invent one.
        c.bytes = if same_writer { c.bytes | mask } else { mask };
        if !commutes || matches!(how, Access::Atomic { observes: true, .. }) {
            c.other = NOBODY;
        } else if c.writer != id {
            (c.other, c.other_epoch) = (c.writer, c.writer_epoch);
        }
        (c.writer, c.writer_epoch, c.atomic) = (id, self.current.epoch, strong);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_blocks_writing_the_same_word_conflict() {
        let mut g = GlobalShadow::default();
        g.enter(0);
        assert_eq!(g.access(0, 64, 0, 4, Access::Write), None);
        g.enter(1);
        assert_eq!(g.access(0, 64, 4, 4, Access::Write), None);
        assert_eq!(g.access(0, 64, 0, 4, Access::Write), Some(Conflict { block: 0, wrote: true }));
    }

    #[test]
    fn neighbouring_halves_are_independent() {
        let mut g = GlobalShadow::default();
        g.enter(0);
        g.access(0, 64, 0, 2, Access::Write);
        g.enter(1);
        assert_eq!(g.access(0, 64, 2, 2, Access::Write), None);
    }

    #[test]
    fn fence_and_atomic_order_blocks() {
        let add = atomic(Combines::Sum, false);
        for (before, after) in [(true, true), (true, false), (false, true), (false, false)] {
            for (what, later) in [(Access::Write, Access::Read), (add, atomic(Combines::Exchange, true))] {
                let mut g = GlobalShadow::default();
                g.enter(0);
                g.access(0, 64, 0, 4, what);
                if before {
                    g.fence();
                }
                g.access(1, 4, 0, 4, add);
                g.atomic(256, false, false);
                g.enter(1);
                g.access(1, 4, 0, 4, add);
                g.atomic(256, false, false);
                if after {
                    g.fence();
                }
                assert_eq!(g.access(0, 64, 0, 4, later).is_none(), before && after, "{what:?} {later:?}");
            }
        }
    }

    fn atomic(combines: Combines, observes: bool) -> Access {
        Access::Atomic { combines, observes }
    }

    #[test]
    fn atomics_alike_come_in_any_order() {
        for observes in [true, false] {
            let mut g = GlobalShadow::default();
            for block in 0..3 {
                g.enter(block);
                assert_eq!(g.access(0, 64, 0, 4, atomic(Combines::Sum, observes)), None);
            }
            // The last block has seen the others' sums, or may come before them.
            assert_eq!(g.access(0, 64, 0, 4, atomic(Combines::Exchange, true)).is_none(), observes);
            g.enter(3);
            assert!(g.access(0, 64, 0, 4, atomic(Combines::Plain, true)).is_none());
        }
    }
}
