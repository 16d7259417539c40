//! The state of a running cluster: blocks, warps, and the split masks of diverged warps.

use std::collections::HashMap;

use super::copy::CopyQueue;
use super::mbarrier::Mbarrier;
use super::regs::Regs;
use super::wgmma::{TileCache, WgmmaState};
use crate::sim::check::clock::{Agent, Knowledge};
use crate::sim::check::global::GlobalShadow;
use crate::sim::check::shadow::Shadow;
use crate::sim::check::within::BlockGlobal;
use crate::sim::decode::Kernel;
use crate::sim::decode::op::BoolOp;
use crate::sim::fault::FaultLog;
use crate::sim::memory::{Allocation, Memory};
use crate::sim::options::{LaunchDims, SimOptions};
use crate::sim::stats::Counters;

/// What stays the same for a whole launch.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    pub kernel: &'a Kernel,
    pub memory: &'a Memory,
    /// The module's own global variables.
    pub globals: &'a Allocation,
    pub consts: &'a [u8],
    pub params: &'a [u8],
    pub options: &'a SimOptions,
    pub dims: LaunchDims,
    pub grid_id: u64,
    /// Bytes of shared memory per block, from [`crate::sim::decode::SHARED_BASE`].
    pub shared_bytes: u32,
}

/// What a blocked split waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitOn {
    /// Named barrier of its block.
    Barrier(u32),
    /// The cluster barrier.
    Cluster,
    /// An mbarrier: block in the cluster and offset.
    Mbarrier { block: usize, offset: u32 },
}

/// Whether a split can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitState {
    Ready,
    /// Waits for its children to arrive at its pc.
    Joining,
    Waiting(WaitOn),
    /// Slot not in use.
    Free,
}

/// Lanes of a warp that run together.
#[derive(Debug, Clone)]
pub struct Split {
    pub pc: u32,
    pub mask: u32,
    /// Where it merges into its parent.
    pub meet: u32,
    pub parent: Option<usize>,
    pub children: u32,
    pub state: SplitState,
    /// A potentially blocking wait gave up and reports failure once.
    pub timed_out: bool,
}

/// One warp.
#[derive(Default)]
pub struct Warp {
    /// Index of its block in the cluster, and its own index in the block.
    pub block: usize,
    pub index: u32,
    /// Lanes that exist and have not exited.
    pub alive: u32,
    pub regs: Regs,
    pub splits: Vec<Split>,
    /// The instruction being executed, for fault reports.
    pub pc: u32,
    /// Local memory of the 32 lanes, one after another, and which bytes were written.
    pub local: Vec<u8>,
    pub local_written: Vec<bool>,
    pub agent: Agent,
    pub copies: CopyQueue,
    pub wgmma: WgmmaState,
    pub executed: u64,
    /// Lanes that know the launch before this one to have ended.
    pub waited: u32,
    next_split: usize,
}

impl Warp {
    /// A warp at the start of the kernel.
    pub fn start(&mut self, mask: u32) {
        self.alive = mask;
        self.splits = vec![Split {
            pc: 0,
            mask,
            meet: u32::MAX,
            parent: None,
            children: 0,
            state: SplitState::Ready,
            timed_out: false,
        }];
    }

    /// The next split that can run, taking turns.
    pub fn ready_split(&mut self) -> Option<usize> {
        let n = self.splits.len();
        let found = (0..n).map(|k| (self.next_split + k) % n).find(|&s| self.splits[s].state == SplitState::Ready)?;
        self.next_split = found + 1;
        Some(found)
    }

    /// True while any split may still run.
    pub fn is_ready(&self) -> bool {
        self.splits.iter().any(|s| s.state == SplitState::Ready)
    }

    fn new_split(&mut self, split: Split) -> usize {
        match self.splits.iter().position(|s| s.state == SplitState::Free) {
            Some(at) => {
                self.splits[at] = split;
                at
            }
            None => {
                self.splits.push(split);
                self.splits.len() - 1
            }
        }
    }

    /// Splits `s` at a branch where the lanes of `taken` jump. Returns the split to go on with.
    pub fn diverge(&mut self, s: usize, pc: u32, target: u32, taken: u32, meet: u32) -> usize {
        let Split { mask, meet: own_meet, parent, .. } = self.splits[s];
        let other = mask & !taken;
        let child = |pc, mask, meet, parent| Split {
            pc,
            mask,
            meet,
            parent,
            children: 0,
            state: SplitState::Ready,
            timed_out: false,
        };
        if meet == u32::MAX || meet == own_meet {
            // Same meeting point as the split itself. Lanes that jump there are done: the parent's mask has them already.
            let (go_pc, go, wait_pc, wait) =
                if target == own_meet { (pc + 1, other, target, taken) } else { (target, taken, pc + 1, other) };
            self.splits[s].pc = go_pc;
            self.splits[s].mask = go;
            if wait_pc != own_meet {
                let new = child(wait_pc, wait, own_meet, parent);
                self.new_split(new);
                if let Some(p) = parent {
                    self.splits[p].children += 1;
                }
            }
            return s;
        }
        self.splits[s].pc = meet;
        let mut first = None;
        for (at, lanes) in [(target, taken), (pc + 1, other)] {
            if at != meet {
                let new = self.new_split(child(at, lanes, meet, Some(s)));
                self.splits[s].children += 1;
                first = first.or(Some(new));
            }
        }
        match first {
            Some(f) => {
                self.splits[s].state = SplitState::Joining;
                f
            }
            None => s,
        }
    }

    /// Split `s` has arrived at its meeting point or lost its last lane. Returns the parent if it can go on.
    pub fn finish(&mut self, s: usize) -> Option<usize> {
        self.splits[s].state = SplitState::Free;
        let p = self.splits[s].parent?;
        self.splits[p].children -= 1;
        if self.splits[p].children > 0 {
            return None;
        }
        self.splits[p].mask &= self.alive;
        if self.splits[p].mask == 0 {
            return self.finish(p);
        }
        self.splits[p].state = SplitState::Ready;
        Some(p)
    }
}

/// A split that waits at a barrier, and where it wants the barrier's reduction.
#[derive(Debug, Clone, Copy)]
pub struct Waiter {
    pub warp: usize,
    pub split: usize,
    pub mask: u32,
    pub result: Option<(Option<BoolOp>, u32)>,
}

/// One of a block's sixteen barriers.
#[derive(Debug, Default, Clone)]
pub struct Named {
    /// Threads arrived, in whole warps.
    pub arrived: u32,
    /// Threads expected; 0 while nobody has arrived, `u32::MAX` for "all of the block".
    pub expected: u32,
    pub knowledge: Knowledge,
    pub waiters: Vec<Waiter>,
    /// Lanes of diverged warps that have arrived, by warp.
    pub partial: Vec<(usize, u32)>,
    pub count: u32,
    pub all: bool,
    pub any: bool,
}

/// One block.
#[derive(Default)]
pub struct Block {
    pub id: [u32; 3],
    /// Linear index in the grid.
    pub linear: u32,
    pub shared: Vec<u8>,
    /// One bit per byte, four bytes per entry.
    pub written: Vec<u8>,
    pub shadow: Shadow,
    /// The block's accesses to global memory.
    pub global: BlockGlobal,
    pub named: Vec<Named>,
    pub mbarriers: HashMap<u32, Mbarrier>,
    pub tiles: TileCache,
    pub live_warps: u32,
    /// What other blocks of the cluster did to its shared memory: component and lane, with the last epoch and instruction. The
    /// block must not exit before.
    pub visits: HashMap<(u16, u8), (u32, u32)>,
    /// Its warps in the cluster's list.
    pub first_warp: usize,
    pub warp_count: usize,
}

/// The barrier of a cluster.
#[derive(Debug, Default)]
pub struct ClusterBarrier {
    pub arrived: u32,
    pub knowledge: Knowledge,
    /// What the last completed phase ordered.
    pub done: Knowledge,
    pub phase: u32,
    /// Phase each warp arrived for, plus one; 0 before the first arrival.
    pub arrived_for: Vec<u32>,
}

/// Why a launch stopped early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A fault after which going on makes no sense, or too many faults.
    Faults,
}

/// A cluster that runs, with everything it reports.
pub struct Cluster<'a> {
    pub env: Env<'a>,
    pub blocks: Vec<Block>,
    pub warps: Vec<Warp>,
    pub barrier: ClusterBarrier,
    pub faults: FaultLog,
    pub counters: Counters,
    pub global: Option<GlobalShadow>,
    pub stop: Option<Stop>,
    /// Next free component of the vector clocks.
    pub next_component: u16,
    /// State of the scheduling order's random generator.
    pub random: u64,
    /// Events that count as progress (barrier completions, mbarrier phases).
    pub progress: u64,
    pub ticks: u64,
}
