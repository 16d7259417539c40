//! Barrier insertion: between two phases of which one writes what other threads access in the other.
//!
//! The lowering marks phases and says which objects each access stays within. Walking the kernel, the pass keeps the
//! accesses that no barrier has followed yet; at a phase that conflicts with one of them (read after write, write after
//! read, write after write, on one object or on two that share bytes) the phase's mark becomes a barrier, otherwise it
//! vanishes. Loops are walked until nothing changes, so accesses of one iteration meet those of the next; the arms of a
//! conditional are walked apart and their accesses united. Control flow that threads may leave differently contains no
//! marks, hence no barrier.
//!
//! A barrier orders an asynchronous copy only behind its thread's wait for it.
//!
//! Which threads touch which bytes is computed as far as it follows from a thread's number (`meet`): nobody waits
//! where each thread meets only itself, and only the warp where it meets only its warp. What the lowering knows to be
//! different elements needs no barrier either: of phases in one turn (`apart` of a
//! [`PhaseInfo`](crate::ptx::simt::PhaseInfo)), and of the turns of a loop (`split` of an
//! [`ObjData`](crate::ptx::simt::ObjData)). Rings of pipelined loops are left to the marks that name them: it does not matter
//! in which turn a thread fills or reads a part of a slot, only whether another one does. At the end barriers that others
//! imply are taken back: a barrier that a loop needs may make one unnecessary that was found before.

use super::meet::{self, Level, Turn};
use super::shared::overlap;
use super::sites::{Access, Kind, Sites, Step, Touch, thread_count, touches};
use super::threads::Threads;
use crate::ptx::simt::{Block, Fields, Inst, Kernel, Obj, PhaseId, SimtOp};
use zellige_ir::hash::FastMap;

/// An access that some thread may not have waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    /// The outermost loop that has gone into another turn since: atoms under fewer loops than this have kept their numbers.
    turned: u32,
    /// The threads of each warp have met since.
    warp_met: bool,
    /// A copy that its thread has not waited for: no barrier orders it yet.
    in_flight: bool,
}

/// No loop has turned.
const FRESH: u32 = u32::MAX;

/// What is pending, by access.
type Pending = Vec<Option<State>>;

fn unite(into: &mut [Option<State>], other: &[Option<State>]) {
    for (a, b) in into.iter_mut().zip(other) {
        *a = match (*a, *b) {
            (None, x) | (x, None) => x,
            (Some(x), Some(y)) => Some(State {
                turned: x.turned.min(y.turned),
                warp_met: x.warp_met && y.warp_met,
                in_flight: x.in_flight || y.in_flight,
            }),
        };
    }
}

/// Decides which threads meet in which accesses.
struct Meetings<'k> {
    k: &'k Kernel,
    sites: Sites<'k>,
    threads: Option<Threads<'k>>,
    touches: FastMap<usize, FastMap<(Obj, Kind), Vec<Touch>>>,
    /// For each access those before it that could conflict.
    rivals: Vec<Vec<usize>>,
    known: FastMap<(usize, usize, u32), Level>,
}

impl<'k> Meetings<'k> {
    fn new(k: &'k Kernel) -> Meetings<'k> {
        let sites = Sites::new(k);
        let rival = |x: &Access, y: &Access| {
            x.kind.conflicts(y.kind) && if x.obj == y.obj { !k.objs[x.obj].managed } else { overlap(k, x.obj, y.obj) }
        };
        let all = &sites.accesses;
        let rivals = all.iter().map(|y| (0..all.len()).filter(|&x| rival(&all[x], y)).collect()).collect();
        Meetings { k, rivals, sites, threads: None, touches: FastMap::default(), known: FastMap::default() }
    }

    /// Who has to wait between the accesses `before` and `after`.
    fn level(&mut self, before: usize, state: State, after: usize) -> Level {
        let [x, y] = [before, after].map(|a| self.sites.accesses[a]);
        let phase = |site: usize| self.sites.sites[site].phase;
        if state.turned == FRESH
            && x.obj == y.obj
            && let (Some(before), Some(after)) = (phase(x.site), phase(y.site))
            && self.k.phases[after].apart.contains(&(x.obj, before))
        {
            return Level::Thread;
        }
        if let Some(&level) = self.known.get(&(before, after, state.turned)) {
            return level;
        }
        for site in [x.site, y.site] {
            if self.touches.contains_key(&site) {
                continue;
            }
            let threads = self.threads.get_or_insert_with(|| Threads::new(self.k, thread_count(self.k)));
            let mut by_access: FastMap<(Obj, Kind), Vec<Touch>> = FastMap::default();
            for (of, touch) in touches(self.k, threads, &self.sites.sites[site]) {
                by_access.entry(of).or_default().push(touch);
            }
            self.touches.insert(site, by_access);
        }
        let of = |a: Access| self.touches.get(&a.site).and_then(|t| t.get(&(a.obj, a.kind))).map(Vec::as_slice);
        let level = match (of(x), of(y), &mut self.threads) {
            (Some(before), Some(after), Some(threads)) => {
                let turn = Turn { depth: state.turned };
                meet::level(threads, (x.kind, before), (y.kind, after), &turn)
            }
            // Loops that never run.
            _ => Level::Thread,
        };
        self.known.insert((before, after, state.turned), level);
        level
    }

    /// Who has to wait before a phase that fills a slot of some rings, and whose copies others may read.
    fn level_of_rings(&mut self, phase: PhaseId) -> Level {
        let rings = &self.k.phases[phase].rings;
        let all = &self.sites.accesses;
        let touching: Vec<usize> = (0..all.len()).filter(|&a| rings.contains(&all[a].obj)).collect();
        let any_turn = State { turned: 0, warp_met: false, in_flight: false };
        let mut need = Level::Thread;
        for (&before, &after) in touching.iter().flat_map(|x| touching.iter().map(move |y| (x, y))) {
            let [x, y] = [before, after].map(|a| self.sites.accesses[a]);
            if x.obj == y.obj && x.kind.conflicts(y.kind) && need < Level::Block {
                need = need.max(self.level(before, any_turn, after));
            }
        }
        need
    }
}

/// The barriers at marks, by the marks' numbers.
type Barriers = Vec<Level>;

struct Pass<'k> {
    k: &'k Kernel,
    meetings: Meetings<'k>,
    barriers: Barriers,
    /// Add barriers where they are needed, rather than finding out whether some are.
    inserts: bool,
    /// A barrier is missing.
    missed: bool,
    /// Number of waits for copies that the walk has passed.
    waits: usize,
    /// A conflict that each barrier is for.
    reasons: FastMap<usize, (usize, usize)>,
}

/// Replaces phase marks by barriers where they are needed and removes the others. Adds the reasons to `explain`.
pub fn insert(k: &mut Kernel, explain: &mut Vec<String>) {
    let (chosen, mut reasons) = decide(k);
    reasons.sort();
    explain.extend(reasons.into_iter().map(|(_, r)| r));
    let body = k.body;
    rewrite(k, body, &chosen);
}

fn decide(k: &Kernel) -> (FastMap<Inst, Level>, Vec<(Inst, String)>) {
    let mut meetings = Meetings::new(k);
    let marks = meetings.sites.marks.clone();
    let info = |m: usize| match k.insts[marks[m].0].op {
        SimtOp::Phase { id } => (id, !k.phases[id].rings.is_empty()),
        _ => unreachable!("marks are phases"),
    };
    // What the rings need whatever else happens.
    let least: Vec<Level> = (0..marks.len())
        .map(|m| match info(m) {
            (phase, true) => meetings.level_of_rings(phase),
            (_, false) => Level::Thread,
        })
        .collect();
    let mut pass = Pass {
        k,
        meetings,
        barriers: least.clone(),
        inserts: true,
        missed: false,
        waits: 0,
        reasons: FastMap::default(),
    };
    pass.run();
    pass.inserts = false;
    // The innermost first: they cost most.
    let mut order: Vec<usize> = (0..marks.len()).filter(|&m| pass.barriers[m] != Level::Thread).collect();
    order.sort_by_key(|&m| (std::cmp::Reverse(marks[m].1), m));
    for m in order {
        let had = pass.barriers[m];
        for less in [Level::Thread, Level::Warp].into_iter().filter(|l| *l >= least[m] && *l < had) {
            pass.barriers[m] = less;
            if pass.is_safe() {
                break;
            }
            pass.barriers[m] = had;
        }
    }
    // What each of those that are left is for.
    pass.reasons.clear();
    let safe = pass.is_safe();
    debug_assert!(safe, "a barrier is missing in `{}`", k.name);
    let chosen = marks.iter().zip(&pass.barriers).filter(|(_, l)| **l != Level::Thread).map(|(m, l)| (m.0, *l));
    let mut reasons = Vec::new();
    for (&m, &(before, after)) in &pass.reasons {
        reasons.push((marks[m].0, pass.reason(pass.barriers[m], before, after)));
    }
    for m in (0..marks.len()).filter(|&m| info(m).1) {
        let why = match least[m] {
            Level::Thread => "barrier: none for rings, of which each thread reads what it has copied itself",
            Level::Warp => "barrier of each warp: for rings",
            Level::Block => "barrier: for rings",
        };
        reasons.push((marks[m].0, format!("{why}: {}", describe(k, Some(info(m).0)))));
    }
    (chosen.collect(), reasons)
}

fn describe(k: &Kernel, phase: Option<PhaseId>) -> String {
    match phase.map(|p| &k.phases[p]) {
        Some(info) => match &info.span {
            Some(span) => format!("{} at {span}", info.what),
            None => info.what.clone(),
        },
        None => "code before".into(),
    }
}

fn rewrite(k: &mut Kernel, block: Block, barriers: &FastMap<Inst, Level>) {
    let insts = std::mem::take(&mut k.blocks[block]);
    let mut kept = Vec::with_capacity(insts.len());
    for inst in insts {
        if let SimtOp::Phase { .. } = k.insts[inst].op {
            k.insts[inst].op = match barriers.get(&inst) {
                None | Some(Level::Thread) => continue,
                Some(Level::Warp) => SimtOp::BarWarp {},
                Some(Level::Block) => SimtOp::Bar {},
            };
        }
        let mut nested = Vec::new();
        k.insts[inst].op.blocks(&mut |b| nested.push(b));
        for b in nested {
            rewrite(k, b, barriers);
        }
        kept.push(inst);
    }
    k.blocks[block] = kept;
}

impl Pass<'_> {
    fn run(&mut self) {
        let steps = std::mem::take(&mut self.meetings.sites.steps);
        let nothing = vec![None; self.meetings.sites.accesses.len()];
        self.walk(&steps, nothing);
        self.meetings.sites.steps = steps;
    }

    /// True if the barriers chosen are enough.
    fn is_safe(&mut self) -> bool {
        self.missed = false;
        self.run();
        !self.missed
    }

    /// Walks steps with the accesses pending at their start; returns those pending at their end.
    fn walk(&mut self, steps: &[Step], mut pending: Pending) -> Pending {
        for step in steps {
            if self.missed && !self.inserts {
                break;
            }
            match step {
                Step::Bar => blocks_meet(&mut pending),
                Step::BarWarp => warps_meet(&mut pending),
                Step::Mark { number, site } => {
                    self.mark(*number, *site, &mut pending);
                    self.add(*site, &mut pending);
                }
                Step::Site(site) => self.add(*site, &mut pending),
                Step::Loop { depth, bodies } => pending = self.repeat(*depth, bodies, pending),
                Step::Branch { arms: [one, other] } => {
                    let after = self.walk(other, pending.clone());
                    pending = self.walk(one, pending);
                    unite(&mut pending, &after);
                }
            }
        }
        pending
    }

    fn add(&mut self, site: usize, pending: &mut [Option<State>]) {
        let sites = &self.meetings.sites;
        if sites.sites[site].waits {
            self.waits += 1;
            copies_land(pending);
        }
        for access in sites.sites[site].accesses.clone() {
            let in_flight = sites.accesses[access].in_flight;
            pending[access] = Some(State { turned: FRESH, warp_met: false, in_flight });
        }
    }

    fn mark(&mut self, number: usize, site: usize, pending: &mut [Option<State>]) {
        let have = self.barriers[number];
        let mut need = Level::Thread;
        'all: for after in self.meetings.sites.sites[site].accesses.clone() {
            for i in 0..self.meetings.rivals[after].len() {
                let before = self.meetings.rivals[after][i];
                let Some(state) = pending[before] else { continue };
                let level = self.meetings.level(before, state, after);
                if level == Level::Thread || (level == Level::Warp && state.warp_met) {
                    continue;
                }
                if level > need {
                    need = level;
                    self.reasons.insert(number, (before, after));
                }
                if need == Level::Block || (!self.inserts && need > have) {
                    break 'all;
                }
            }
        }
        if need > have {
            self.missed = true;
            if self.inserts {
                self.barriers[number] = need;
            }
        }
        match self.barriers[number] {
            Level::Thread => {}
            Level::Warp => warps_meet(pending),
            Level::Block => blocks_meet(pending),
        }
    }

    /// A loop, until another turn adds nothing.
    fn repeat(&mut self, depth: u32, bodies: &[(Block, Vec<Step>)], pending: Pending) -> Pending {
        let mut entry = pending;
        let waits = self.waits;
        loop {
            let known = self.barriers.clone();
            let mut state = entry.clone();
            for (_, steps) in bodies {
                state = self.walk(steps, state);
            }
            for turned in state.iter_mut().flatten() {
                turned.turned = turned.turned.min(depth);
            }
            // Where each turn has elements of its own, no other one meets them.
            let mut others = state.clone();
            for (access, p) in others.iter_mut().enumerate() {
                let split = &self.k.objs[self.meetings.sites.accesses[access].obj].split;
                if bodies.iter().any(|(b, _)| split.contains(b)) {
                    *p = None;
                }
            }
            let before = entry.clone();
            unite(&mut entry, &others);
            if (entry == before && known == self.barriers) || (self.missed && !self.inserts) {
                unite(&mut entry, &state);
                // A ring's loop waits for the copies before it. Where it never runs, none of them has been started.
                if self.waits != waits {
                    copies_land(&mut entry);
                }
                // A loop with a condition is left after another run of what computes it.
                return match bodies {
                    [(_, before), _] => self.walk(before, entry),
                    _ => entry,
                };
            }
        }
    }

    fn reason(&self, level: Level, before: usize, after: usize) -> String {
        let k = self.k;
        let verb = |kind| match kind {
            Kind::Read => "reads",
            Kind::Write => "writes",
            Kind::Atomic => "updates",
        };
        let [x, y] = [before, after].map(|a| self.meetings.sites.accesses[a]);
        let [old, new] = [x, y].map(|a| describe(k, self.meetings.sites.sites[a.site].phase));
        let (o, n) = (&k.objs[x.obj].name, &k.objs[y.obj].name);
        let shared = if x.obj == y.obj { "it".into() } else { format!("{o}, which shares its bytes") };
        let what = if level == Level::Warp { "barrier of each warp" } else { "barrier" };
        format!("{what}: before {new}, which {} {n}; {old} {} {shared}", verb(y.kind), verb(x.kind))
    }
}

/// All threads of each warp have met.
fn warps_meet(pending: &mut [Option<State>]) {
    pending.iter_mut().flatten().for_each(|p| p.warp_met |= !p.in_flight);
}

/// Each thread has waited for its copies.
fn copies_land(pending: &mut [Option<State>]) {
    pending.iter_mut().flatten().for_each(|p| p.in_flight = false);
}

/// All threads of the block have met.
fn blocks_meet(pending: &mut [Option<State>]) {
    pending.iter_mut().filter(|p| p.is_some_and(|p| !p.in_flight)).for_each(|p| *p = None);
}
