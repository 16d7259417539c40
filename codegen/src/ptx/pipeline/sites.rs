//! The accesses of a kernel between its phase marks, and the control flow around them.

use super::threads::{Form, Threads};
use crate::ptx::simt::{Addr, Block, Fields, Inst, Kernel, Obj, ObjKind, PhaseId, Roles, SimtOp, Val};
use std::rc::Rc;
use zellige_ir::hash::FastMap;
use zellige_ir::layout::WARP;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    Read,
    Write,
    Atomic,
}

impl Kind {
    pub fn conflicts(self, later: Kind) -> bool {
        match (self, later) {
            (Kind::Read, Kind::Read) | (Kind::Atomic, Kind::Atomic) => false,
            (Kind::Read | Kind::Write | Kind::Atomic, _) => true,
        }
    }
}

/// What the ops of one site do to one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    pub site: usize,
    pub obj: Obj,
    pub kind: Kind,
    /// A copy that the site starts and does not wait for.
    pub in_flight: bool,
}

/// Ops that follow one another with no mark, barrier or control flow with marks between them.
#[derive(Clone, Debug)]
pub struct Site {
    pub phase: Option<PhaseId>,
    pub insts: Vec<Inst>,
    /// Positions of its accesses in the list of all.
    pub accesses: std::ops::Range<usize>,
    /// It waits for copies that were started before it. Nothing in it asks for them.
    pub waits: bool,
}

/// What the ops of a site access.
#[derive(Default)]
struct Found {
    accesses: Vec<(Obj, Kind)>,
    /// Those of copies that have not been waited for.
    in_flight: Vec<(Obj, Kind)>,
    waits: bool,
}

/// A kernel as far as the order of its accesses is concerned.
#[derive(Clone, Debug)]
pub enum Step {
    /// A mark, by its number, and the site that follows it.
    Mark {
        number: usize,
        site: usize,
    },
    /// Accesses that no mark stands before.
    Site(usize),
    Bar,
    BarWarp,
    /// Blocks that run one after the other, again and again. The body of the outermost loop is at depth 1.
    Loop {
        depth: u32,
        bodies: Vec<(Block, Vec<Step>)>,
    },
    Branch {
        arms: [Vec<Step>; 2],
    },
}

/// What a thread touches: bytes from a place on.
#[derive(Clone, Debug)]
pub struct Touch {
    pub form: Rc<Form>,
    pub bytes: i64,
    /// Threads that may do it; `None` for all.
    pub active: Option<Rc<[bool]>>,
    /// The data goes to or comes from all lanes of the warp.
    pub wide: bool,
    /// Predicates that hold, or do not hold, where it is done.
    pub conds: Vec<(Val, bool)>,
}

pub struct Sites<'k> {
    k: &'k Kernel,
    pub steps: Vec<Step>,
    pub sites: Vec<Site>,
    pub accesses: Vec<Access>,
    /// The marks, with the loops around each.
    pub marks: Vec<(Inst, u32)>,
    ordered: FastMap<Block, bool>,
}

impl<'k> Sites<'k> {
    pub fn new(k: &'k Kernel) -> Sites<'k> {
        let mut s = Sites {
            k,
            steps: Vec::new(),
            sites: Vec::new(),
            accesses: Vec::new(),
            marks: Vec::new(),
            ordered: FastMap::default(),
        };
        s.has_order(k.body);
        s.steps = s.block(k.body, 0);
        s
    }

    /// True if the block contains marks or barriers.
    fn has_order(&mut self, block: Block) -> bool {
        let mut found = false;
        for &inst in &self.k.blocks[block] {
            let op = &self.k.insts[inst].op;
            found |= matches!(op, SimtOp::Phase { .. } | SimtOp::Bar {} | SimtOp::BarWarp {});
            let mut nested = Vec::new();
            op.blocks(&mut |b| nested.push(b));
            for b in nested {
                found |= self.has_order(b);
            }
        }
        self.ordered.insert(block, found);
        found
    }

    fn block(&mut self, block: Block, depth: u32) -> Vec<Step> {
        let k = self.k;
        let mut steps = Vec::new();
        let mut run: Vec<Inst> = Vec::new();
        // The mark before the run, and the phase that it began.
        let mut mark = None;
        let mut phase = None;
        for &inst in &k.blocks[block] {
            let op = &k.insts[inst].op;
            let mut nested = Vec::new();
            op.blocks(&mut |b| nested.push(b));
            let ordered = nested.iter().any(|b| self.ordered[b]);
            if !ordered && !matches!(op, SimtOp::Phase { .. } | SimtOp::Bar {} | SimtOp::BarWarp {}) {
                run.push(inst);
                continue;
            }
            self.close(&mut steps, &mut run, mark.take(), phase);
            match op {
                SimtOp::Phase { id } => {
                    phase = Some(*id);
                    mark = Some(self.marks.len());
                    self.marks.push((inst, depth));
                }
                SimtOp::Bar {} => steps.push(Step::Bar),
                SimtOp::BarWarp {} => steps.push(Step::BarWarp),
                SimtOp::If { then_body, else_body, .. } => {
                    let arms = [*then_body, *else_body].map(|b| self.block(b, depth));
                    steps.push(Step::Branch { arms });
                }
                _ => {
                    let bodies = nested.into_iter().map(|b| (b, self.block(b, depth + 1))).collect();
                    steps.push(Step::Loop { depth: depth + 1, bodies });
                }
            }
        }
        self.close(&mut steps, &mut run, mark, phase);
        steps
    }

    fn close(&mut self, steps: &mut Vec<Step>, run: &mut Vec<Inst>, mark: Option<usize>, phase: Option<PhaseId>) {
        let insts = std::mem::take(run);
        let first = self.accesses.len();
        let site = self.sites.len();
        let mut found = Found::default();
        for &inst in &insts {
            self.accesses_of(inst, &mut found);
        }
        let Found { accesses, in_flight, waits } = found;
        self.accesses.extend(accesses.into_iter().map(|(obj, kind)| {
            let in_flight = in_flight.contains(&(obj, kind));
            Access { site, obj, kind, in_flight }
        }));
        if first == self.accesses.len() && mark.is_none() && !waits {
            return;
        }
        self.sites.push(Site { phase, insts, accesses: first..self.accesses.len(), waits });
        steps.push(match mark {
            Some(number) => Step::Mark { number, site },
            None => Step::Site(site),
        });
    }

    /// Accesses of an op and of what is nested in it.
    fn accesses_of(&self, inst: Inst, found: &mut Found) {
        let op = &self.k.insts[inst].op;
        if let SimtOp::CpAsyncWait { .. } = op {
            found.waits = true;
            found.in_flight.clear();
        }
        for (addr, kind) in places(op).into_iter().flatten() {
            let access = (addr.obj, kind);
            if !self.matters(addr.obj) {
                continue;
            }
            if !found.accesses.contains(&access) {
                found.accesses.push(access);
            }
            if matches!(op, SimtOp::CpAsync { .. }) && !found.in_flight.contains(&access) {
                found.in_flight.push(access);
            }
        }
        op.blocks(&mut |b| self.k.blocks[b].iter().for_each(|&inner| self.accesses_of(inner, found)));
    }

    fn matters(&self, obj: Obj) -> bool {
        match self.k.objs[obj].kind {
            ObjKind::Global { read_only } => !read_only,
            ObjKind::Shared { .. } => true,
            ObjKind::Local { .. } => false,
        }
    }
}

/// The places that an op accesses.
fn places(op: &SimtOp) -> [Option<(Addr, Kind)>; 2] {
    match op {
        SimtOp::Ld { addr, .. } | SimtOp::LdMatrix { addr, .. } => [Some((*addr, Kind::Read)), None],
        SimtOp::St { addr, .. } | SimtOp::StMatrix { addr, .. } => [Some((*addr, Kind::Write)), None],
        SimtOp::Atom { addr, .. } => [Some((*addr, Kind::Atomic)), None],
        SimtOp::CpAsync { dst, src, .. } => [Some((*src, Kind::Read)), Some((*dst, Kind::Write))],
        _ => [None, None],
    }
}

/// A shared object that ops access and whose accesses barriers of the block are to order, if there is one.
pub fn scratch(k: &Kernel) -> Option<Obj> {
    let mut found = None;
    k.walk(k.body, &mut |_, data| {
        let objs = places(&data.op).into_iter().flatten().map(|(addr, _)| addr.obj);
        let is_scratch = |&o: &Obj| matches!(k.objs[o].kind, ObjKind::Shared { .. }) && !k.objs[o].managed;
        found = found.or(objs.into_iter().find(is_scratch));
    });
    found
}

/// Turns of loops in a site that are looked at one by one.
const MAX_TURNS: i64 = 64;

/// Finds what the threads touch in a site.
struct Walk<'a, 'k> {
    k: &'k Kernel,
    threads: &'a mut Threads<'k>,
    conds: Vec<(Val, bool)>,
    turn: Vec<(Val, i64)>,
    turns: i64,
    found: Vec<((Obj, Kind), Touch)>,
}

/// All touches of a site, by object and kind.
pub fn touches<'k>(k: &'k Kernel, threads: &mut Threads<'k>, site: &Site) -> Vec<((Obj, Kind), Touch)> {
    let mut walk = Walk { k, threads, conds: Vec::new(), turn: Vec::new(), turns: 1, found: Vec::new() };
    walk.insts(&site.insts, &None);
    walk.found
}

/// Threads that run what barriers order: those that only feed tensor copies do not.
pub fn thread_count(k: &Kernel) -> usize {
    match k.roles {
        Roles::Uniform => k.threads as usize,
        Roles::Specialised { consumers } => consumers as usize,
    }
}

type Active = Option<Rc<[bool]>>;

fn both(x: &Active, y: Active) -> Active {
    match (x, y) {
        (None, y) => y,
        (x, None) => x.clone(),
        (Some(x), Some(y)) => Some(x.iter().zip(&*y).map(|(&a, &b)| a && b).collect()),
    }
}

impl Walk<'_, '_> {
    fn insts(&mut self, insts: &[Inst], active: &Active) {
        for &inst in insts {
            self.inst(inst, active);
        }
    }

    fn inst(&mut self, inst: Inst, active: &Active) {
        let k = self.k;
        match &k.insts[inst].op {
            SimtOp::For { index, lo, hi, step, body, .. } => {
                let (outer, index) = (self.turns, index.0);
                let known = self.threads.turns(*lo, *hi, *step).filter(|t| t.2 * outer <= MAX_TURNS);
                let Some((lo, step, n)) = known else { return self.insts(&k.blocks[*body], active) };
                self.turns *= n.max(1);
                for i in 0..n {
                    self.turn.push((index, lo + step * i));
                    self.threads.fix(&self.turn);
                    self.insts(&k.blocks[*body], active);
                    self.turn.pop();
                }
                self.threads.fix(&self.turn);
                self.turns = outer;
            }
            SimtOp::While { before, body, .. } => {
                self.insts(&k.blocks[*before], active);
                self.insts(&k.blocks[*body], active);
            }
            SimtOp::If { cond, then_body, else_body, .. } => {
                for (block, holds) in [(*then_body, true), (*else_body, false)] {
                    let threads = &mut *self.threads;
                    let some = if holds { threads.possible(*cond) } else { threads.certain(*cond, false) };
                    self.conds.push((*cond, holds));
                    self.insts(&k.blocks[block], &both(active, some));
                    self.conds.pop();
                }
            }
            op => self.touch(op, active),
        }
    }

    fn touch(&mut self, op: &SimtOp, active: &Active) {
        let (bytes, guard, lanes) = match op {
            SimtOp::Ld { outs, mem, guard, .. } => (outs.len() as u32 * mem.bytes(), *guard, None),
            SimtOp::St { vals, mem, guard, .. } => (vals.len() as u32 * mem.bytes(), *guard, None),
            SimtOp::Atom { num, guard, .. } => (num.ty().bytes() as u32, *guard, None),
            SimtOp::CpAsync { bytes, guard, .. } => (*bytes, *guard, None),
            SimtOp::LdMatrix { outs, .. } => (16, None, Some(8 * outs.len())),
            SimtOp::StMatrix { vals, .. } => (16, None, Some(8 * vals.len())),
            _ => return,
        };
        for (addr, kind) in places(op).into_iter().flatten() {
            if !matches!(self.k.objs[addr.obj].kind, ObjKind::Global { read_only: false } | ObjKind::Shared { .. }) {
                continue;
            }
            let mut active = active.clone();
            if let Some(lanes) = lanes {
                let give = (0..self.threads.count).map(|t| t % WARP < lanes).collect();
                active = both(&active, Some(give));
            }
            let mut conds = self.conds.clone();
            if let Some(guard) = guard {
                active = both(&active, self.threads.possible(guard));
                conds.push((guard, true));
            }
            let form = self.threads.form(addr.base);
            let form = if addr.offset == 0 { form } else { Rc::new(form.shifted(addr.offset.into())) };
            let touch = Touch { form, bytes: bytes.into(), active, wide: lanes.is_some(), conds };
            self.found.push(((addr.obj, kind), touch));
        }
    }
}
