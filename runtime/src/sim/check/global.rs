//! Conflicts of different blocks on global memory.
//!
//! Blocks are ordered only by atomics: a block that fences and then performs an atomic releases what it wrote, and a block
//! whose atomic (or strong load) meets that value afterwards acquires it. The "last block reduces" pattern is therefore
//! clean with its fence and a fault without it. Works on blocks that run one after another.

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
    bytes: u8,
    read_bytes: u8,
    atomic: bool,
}

const EMPTY: Cell = Cell { writer: NOBODY, writer_epoch: 0, reader: NOBODY, bytes: 0, read_bytes: 0, atomic: false };

/// How a block accesses memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// A read through a path that does not see what the launch itself writes.
    Constant,
    Write,
    /// Atomic or strong; these never conflict with each other.
    Atomic,
}

/// What one block knows of others.
#[derive(Debug, Default)]
struct Block {
    epoch: u32,
    /// A device-scope fence was executed since the last release.
    fenced: bool,
    known: HashMap<u32, u32>,
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
    }

    /// An atomic at `address`: releases if fenced (or `release`), acquires what earlier ones released.
    pub fn atomic(&mut self, address: u64, release: bool) {
        let id = self.current_id;
        if let Some(told) = self.locations.get(&address) {
            for (b, e) in told {
                let k = self.current.known.entry(*b).or_default();
                *k = (*k).max(*e);
            }
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
        let strong = how == Access::Atomic;
        if c.writer != NOBODY && c.bytes & mask != 0 && !(strong && c.atomic) && !self.ordered(c.writer, c.writer_epoch)
        {
            found = Some(Conflict { block: c.writer, wrote: true });
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
        if c.reader != NOBODY && c.reader != id && c.read_bytes & mask != 0 && !strong {
            let ordered = c.reader != SEVERAL && self.current.known.contains_key(&c.reader);
            if !ordered {
                found = found.or(Some(Conflict { block: c.reader, wrote: false }));
            }
        }
        let same_writer = c.writer == id && c.writer_epoch == self.current.epoch;
        // Only the last writer is remembered: forgetting another one's bytes can miss a conflict, never invent one.
        c.bytes = if same_writer { c.bytes | mask } else { mask };
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
        for fenced in [true, false] {
            let mut g = GlobalShadow::default();
            g.enter(0);
            g.access(0, 64, 0, 4, Access::Write);
            if fenced {
                g.fence();
            }
            g.access(1, 4, 0, 4, Access::Atomic);
            g.atomic(256, false);
            g.enter(1);
            g.access(1, 4, 0, 4, Access::Atomic);
            g.atomic(256, false);
            assert_eq!(g.access(0, 64, 0, 4, Access::Read).is_none(), fenced);
        }
    }
}
