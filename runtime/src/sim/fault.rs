//! What a simulated kernel did wrong, with every place a reader needs to find it.

use std::collections::HashMap;
use std::fmt;

use super::error::SourceRef;

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An access outside every allocation, or past the end of one.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// A read of bytes nobody wrote.
    UninitialisedRead,
    /// Two accesses to shared memory, one of them a write, that no synchronisation orders.
    SharedRace,
    /// Two blocks touch the same global bytes, one of them writing, with nothing that orders them.
    GlobalRace,
    /// The destination of a `cp.async` touched before the copy was waited for.
    AsyncCopyPending,
    /// Generic-proxy writes read or overwritten through the async proxy without `fence.proxy.async` in between.
    MissingProxyFence,
    /// A register of an unfinished `wgmma` touched before its group was waited for, or before `wgmma.fence`.
    WgmmaHazard,
    /// A barrier reached by only part of a warp, or by threads that disagree on its count.
    BarrierMisuse,
    /// A `.sync` instruction whose member mask names lanes that do not execute it.
    WarpMask,
    /// An mbarrier used before init, with the wrong count, or with a transaction count that went wrong.
    MbarrierMisuse,
    /// A descriptor, tensor map or coordinate that the hardware would not accept.
    BadDescriptor,
    /// Global memory touched before `griddepcontrol.wait`, or through the path for constant data, by one of several launches
    /// that overlap: the launch before may not have written it yet.
    LaunchOverlap,
    /// The block ended while bulk copies, or other blocks of the cluster, may still access its shared memory.
    PendingAtExit,
    /// No warp can go on.
    Deadlock,
    /// The instruction budget ran out.
    Budget,
    /// `trap` or `brkpt` executed.
    Trap,
    /// A device assertion failed.
    Assertion,
}

/// One fault; repeated occurrences at the same instruction are counted, not listed.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub kind: FaultKind,
    pub kernel: String,
    /// PTX line (1-based) and the opcode there.
    pub line: u32,
    pub opcode: String,
    /// The author's line, if the PTX names it.
    pub source: Option<SourceRef>,
    pub block: [u32; 3],
    /// The thread, or the first thread of the warp when a whole warp is at fault.
    pub thread: [u32; 3],
    /// Address in the space of the access.
    pub address: Option<u64>,
    /// The allocation or space concerned.
    pub buffer: Option<String>,
    pub message: String,
    /// How often this fault occurred at this instruction.
    pub count: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bx, by, bz] = self.block;
        let [tx, ty, tz] = self.thread;
        write!(f, "{:?}: {}", self.kind, self.message)?;
        write!(f, "\n  in `{}` at PTX line {} ({})", self.kernel, self.line, self.opcode)?;
        if let Some(s) = &self.source {
            write!(f, "\n  from {s}")?;
        }
        write!(f, "\n  block ({bx},{by},{bz}) thread ({tx},{ty},{tz})")?;
        if let Some(a) = self.address {
            write!(f, ", address {a:#x}")?;
        }
        if let Some(b) = &self.buffer {
            write!(f, " in {b}")?;
        }
        if self.count > 1 {
            write!(f, "\n  {} occurrences", self.count)?;
        }
        Ok(())
    }
}

/// Collects faults, one per kind and instruction.
#[derive(Debug, Default)]
pub(crate) struct FaultLog {
    faults: Vec<(u32, Fault)>,
    index: HashMap<(FaultKind, u32), usize>,
}

impl FaultLog {
    /// Counts an occurrence; `make` is called only for the first one at this instruction.
    pub fn add(&mut self, kind: FaultKind, pc: u32, make: impl FnOnce() -> Fault) {
        match self.index.get(&(kind, pc)) {
            Some(&at) => self.faults[at].1.count += 1,
            None => {
                self.index.insert((kind, pc), self.faults.len());
                self.faults.push((pc, make()));
            }
        }
    }

    /// Number of distinct faults.
    pub fn len(&self) -> usize {
        self.faults.len()
    }

    pub fn merge(&mut self, other: FaultLog) {
        for (pc, f) in other.faults {
            let n = f.count;
            match self.index.get(&(f.kind, pc)) {
                Some(&at) => self.faults[at].1.count += n,
                None => self.add(f.kind, pc, || f),
            }
        }
    }

    pub fn into_faults(self) -> Vec<Fault> {
        self.faults.into_iter().map(|(_, f)| f).collect()
    }
}
