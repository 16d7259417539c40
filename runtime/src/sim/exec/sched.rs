//! Which warp runs next; deadlocks; the end of a cluster.

use super::state::{Cluster, SplitState, Stop, WaitOn, Warp};
use crate::sim::fault::FaultKind;

/// Instructions a warp runs before the next one gets a turn, so that a warp that polls memory cannot starve the others.
const SLICE: u32 = 4096;
/// Rounds of failed waits without any progress after which the cluster counts as stuck.
const STALLS: u32 = 64;

impl Cluster<'_> {
    /// Runs until all warps have exited, or nothing can go on.
    pub fn run(&mut self) {
        let mut stalls = 0;
        let mut seen = self.progress;
        while self.stop.is_none() {
            let n = self.warps.len();
            let start = if self.env.options.shuffle.is_some() { self.next_random() as usize % n } else { 0 };
            let mut ran = false;
            for k in 0..n {
                let w = (start + k) % n;
                if self.warps[w].is_ready() {
                    ran = true;
                    self.run_warp(w);
                    if self.stop.is_some() {
                        return;
                    }
                }
            }
            if ran {
                if self.progress != seen {
                    seen = self.progress;
                    stalls = 0;
                }
                continue;
            }
            if self.warps.iter().all(|w| w.alive == 0) {
                return;
            }
            stalls += 1;
            if stalls > STALLS || !self.time_out_waits() {
                self.deadlock();
                return;
            }
        }
    }

    fn run_warp(&mut self, w: usize) {
        let mut warp = std::mem::take(&mut self.warps[w]);
        let limit = if self.env.options.shuffle.is_some() { 1 + self.next_random() as u32 % 64 } else { SLICE };
        let mut left = limit;
        while let Some(s) = warp.ready_split() {
            left = self.run_split(&mut warp, w, s, left);
            if left == 0 || self.stop.is_some() {
                break;
            }
        }
        if warp.executed > self.env.options.budget && self.stop.is_none() {
            let budget = self.env.options.budget;
            self.fatal(&warp, 0, FaultKind::Budget, || {
                format!("the warp has executed {budget} instructions: a loop does not end")
            });
        }
        self.warps[w] = warp;
    }

    /// xorshift64* (Vigna, 2016).
    fn next_random(&mut self) -> u64 {
        let mut x = self.random;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random = x;
        x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// Lets every blocked `try_wait` return failure once, as the hardware does after a time limit.
    fn time_out_waits(&mut self) -> bool {
        let mut any = false;
        for s in self.warps.iter_mut().flat_map(|w| &mut w.splits) {
            if matches!(s.state, SplitState::Waiting(WaitOn::Mbarrier { .. })) {
                s.state = SplitState::Ready;
                s.timed_out = true;
                any = true;
            }
        }
        any
    }

    #[cold]
    fn deadlock(&mut self) {
        let k = self.env.kernel;
        let mut waits = Vec::new();
        let mut first = None;
        for (w, warp) in self.warps.iter().enumerate() {
            for s in warp.splits.iter().filter(|s| !matches!(s.state, SplitState::Free | SplitState::Joining)) {
                let on = match s.state {
                    SplitState::Waiting(WaitOn::Barrier(id)) => {
                        let b = &self.blocks[warp.block].named[id as usize];
                        let all = self.blocks[warp.block].live_warps * 32;
                        let expected = if b.expected == u32::MAX { all } else { b.expected };
                        format!("barrier {id} ({} of {expected} threads arrived)", b.arrived)
                    }
                    SplitState::Waiting(WaitOn::Cluster) => {
                        format!("the cluster barrier ({} warps arrived)", self.barrier.arrived)
                    }
                    SplitState::Waiting(WaitOn::Mbarrier { block, offset }) => {
                        match self.blocks[block].mbarriers.get(&offset) {
                            Some(m) => format!(
                                "mbarrier at {:#x} of block {block} (phase {}, {} arrivals and {} bytes missing)",
                                offset + crate::sim::decode::SHARED_BASE,
                                m.phase,
                                m.pending,
                                m.tx
                            ),
                            None => "an mbarrier that is gone".into(),
                        }
                    }
                    SplitState::Ready => "a wait that keeps failing".into(),
                    SplitState::Joining | SplitState::Free => continue,
                };
                // The pc of a passed barrier already points behind it.
                let behind = matches!(s.state, SplitState::Waiting(WaitOn::Barrier(_)));
                let pc = s.pc - u32::from(behind);
                first = first.or(Some((w, pc, s.mask)));
                let line = k.lines[pc as usize];
                let source = k.sources[pc as usize].as_ref().map_or_else(String::new, |s| format!(" ({s})"));
                waits.push(format!("warp {} lanes {:#010x} at PTX line {line}{source}: {on}", warp.index, s.mask));
            }
        }
        let Some((w, pc, mask)) = first else {
            return;
        };
        let mut warp = std::mem::take(&mut self.warps[w]);
        warp.pc = pc;
        let message = format!("no warp can go on:\n    {}", waits.join("\n    "));
        self.fault(&warp, mask.trailing_zeros() as usize, FaultKind::Deadlock, None, || message);
        self.stop = Some(Stop::Faults);
        self.warps[w] = warp;
    }

    /// Lanes leave the kernel.
    pub fn exit_lanes(&mut self, warp: &mut Warp, me: usize, exiting: u32) {
        self.bulk_at_exit(warp, exiting);
        self.drain_copies(warp, exiting);
        warp.alive &= !exiting;
        if warp.alive == 0 {
            self.blocks[warp.block].live_warps -= 1;
            if self.blocks[warp.block].live_warps == 0 {
                self.visits_at_exit(warp);
            }
            self.recheck_barriers(warp, me);
        }
    }
}
