//! Detection of races between iterations that may run in any order.
//!
//! The interpreter runs everything one after the other, so an earlier access at time `t` belongs to another
//! iteration of a loop that is still running exactly if `start <= t < iteration`, where `start` is when the loop
//! began and `iteration` is when its present iteration began. Two accesses of one element, at least one of them a
//! write, race if that holds for some parallel loop around the later one; the grid is the outermost such loop.
//! (The order of accesses inside one iteration is program order, and a finished loop is ordered before
//! everything after it.)

use super::error::AccessKind;
use crate::func::Op;

/// The parallel loops that are running, outermost first.
#[derive(Default, Debug)]
pub(super) struct Clock {
    now: u64,
    levels: Vec<Level>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    start: u64,
    iteration: u64,
}

impl Clock {
    /// A parallel loop begins.
    pub fn enter(&mut self) {
        self.levels.push(Level { start: self.now + 1, iteration: self.now + 1 });
    }

    /// The innermost parallel loop begins its next iteration.
    pub fn next_iteration(&mut self) {
        self.now += 1;
        if let Some(level) = self.levels.last_mut() {
            level.iteration = self.now;
        }
    }

    /// The innermost parallel loop ends.
    pub fn leave(&mut self) {
        self.levels.pop();
    }

    /// The outermost loop of which `stamp` belongs to another iteration than the present one.
    fn level_of(&self, stamp: Stamp) -> Option<usize> {
        self.levels.iter().position(|l| l.start <= stamp.time && stamp.time < l.iteration)
    }
}

/// Who accessed an element, and when.
#[derive(Clone, Copy, Debug)]
struct Stamp {
    time: u64,
    op: Op,
}

/// Up to two accesses of one kind that stand for all of them.
///
/// Two are enough: if they belong to different iterations of a running loop, any later access conflicts with at
/// least one of them when it conflicts with any access at all.
#[derive(Clone, Copy, Default, Debug)]
struct Stamps([Option<Stamp>; 2]);

impl Stamps {
    fn add(&mut self, clock: &Clock, new: Stamp) {
        let level = |s: Option<Stamp>| s.and_then(|s| clock.level_of(s));
        let [a, b] = self.0;
        self.0 = match (level(a), level(b)) {
            // `a` differs from `b` in a loop further out than `b` from `new`: `b` speaks for `new` there.
            (Some(la), Some(lb)) if la < lb => [a, b],
            (_, Some(_)) => [b, Some(new)],
            (Some(_), None) => [a, Some(new)],
            (None, None) => [None, Some(new)],
        };
    }

    fn conflict(&self, clock: &Clock) -> Option<(Op, usize)> {
        self.0.iter().flatten().find_map(|s| clock.level_of(*s).map(|level| (s.op, level)))
    }
}

/// The history of one element.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Shadow {
    writes: Stamps,
    reads: Stamps,
    atomics: Stamps,
}

/// An earlier access that races with the present one.
pub(super) struct Conflict {
    pub op: Op,
    pub kind: AccessKind,
    /// Position of the loop among the running ones; 0 is the grid.
    pub level: usize,
}

impl Shadow {
    /// Notes an access and returns an earlier one that races with it.
    pub fn access(&mut self, clock: &Clock, op: Op, kind: AccessKind) -> Option<Conflict> {
        let find = |stamps: &Stamps, kind| stamps.conflict(clock).map(|(op, level)| Conflict { op, kind, level });
        let mut conflict = find(&self.writes, AccessKind::Write);
        if kind != AccessKind::Read {
            conflict = conflict.or_else(|| find(&self.reads, AccessKind::Read));
        }
        if kind != AccessKind::Atomic {
            conflict = conflict.or_else(|| find(&self.atomics, AccessKind::Atomic));
        }
        let stamp = Stamp { time: clock.now, op };
        match kind {
            AccessKind::Read => self.reads.add(clock, stamp),
            AccessKind::Atomic => self.atomics.add(clock, stamp),
            // A write speaks for the accesses before it: whatever races with them races with it, or was reported.
            AccessKind::Write => {
                *self = Shadow { writes: Stamps([None, Some(stamp)]), ..Shadow::default() };
            }
        }
        conflict
    }
}
