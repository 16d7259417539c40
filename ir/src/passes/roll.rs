//! Rolling: a long run of ops that repeats itself becomes a loop again.
//!
//! Input and output: any verified function. A kernel that repeats a step in a loop of its host language is recorded with
//! all repetitions written out; a backend that spends time on every op would rather see the loop. The pass looks, in
//! one region at a time, for repetitions of a stretch of scalar ops. From each repetition to the next, an operand
//! - is the same value;
//! - is the result of the op at the same place, in the same or the previous repetition;
//! - or is an `index` constant that grows by the same amount.
//!
//! Results that the next repetition or later ops use go through a local tile. The run starts where the fewest do.
//!
//! ```text
//! store %0 -> x[0]                            $0 = alloc local f32[1]
//! %1: f32 = mul %0, %0                        store %0 -> $0[0]
//! store %1 -> x[1]                            for serial (%1) in (100) {
//! %2: f32 = mul %1, %1                          %2: f32 = load $0[0]
//! store %2 -> x[2]                  ->          store %2 -> x[%1]
//! ..                                            %3: f32 = mul %2, %2
//!                                               store %3 -> $0[0]
//!                                             }
//! ```
//!
//! Not part of [`PIPELINE`](super::pipeline::PIPELINE): a GPU keeps such values in registers, which the loop's tile might
//! prevent.

use super::PassStats;
use crate::DType;
use crate::entity::EntityId;
use crate::func::{Buffer, BufferData, Extent, Func, Op, Region, Scope, Strides, Value};
use crate::hash::FastMap;
use crate::numerics::Const;
use crate::op::{AtomicOp, BinaryOp, CmpOp, Def, LoopKind, OpKind, UnaryOp, Visit};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;

/// A shorter region is not worth the search.
const MIN_REGION: usize = 256;

/// Fewer ops saved are not worth a loop.
const MIN_SAVED: usize = 192;

/// Repetitions that make a loop.
const MIN_REPETITIONS: usize = 4;

/// Ops that are compared to find a distance at which a region repeats itself.
const WINDOW: usize = 24;

/// Distances that are tried, most frequent first.
const CANDIDATES: usize = 8;

/// Loops made in one region at most.
const MAX_LOOPS: usize = 16;

/// Runs the pass.
pub fn run(func: &mut Func) -> PassStats {
    let mut stats = PassStats::default();
    let mut regions = vec![func.body];
    func.walk(func.body, &mut |_, data| data.kind.for_each_region(&mut |r| regions.push(r)));
    for region in regions {
        for _ in 0..MAX_LOOPS {
            let Some(run) = find(func, region) else { break };
            rewrite(func, region, &run);
            stats.note("rolled");
        }
    }
    stats
}

/// What an op does, apart from its operands; `None` for what cannot be repeated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Shape {
    Unary(UnaryOp, DType),
    Binary(BinaryOp, DType),
    Fma(DType),
    Cmp(CmpOp, DType),
    Select(DType),
    Cast(DType, DType),
    Bitcast(DType, DType),
    Load(Buffer),
    Store(Buffer),
    Atomic(AtomicOp, Buffer),
}

fn shape(func: &Func, op: Op) -> Option<Shape> {
    let ty = |v: Value| func.ty(v);
    match &func.ops[op].kind {
        OpKind::Unary { op, x, .. } => Some(Shape::Unary(*op, ty(*x))),
        OpKind::Binary { op, x, .. } => Some(Shape::Binary(*op, ty(*x))),
        OpKind::Fma { x, .. } => Some(Shape::Fma(ty(*x))),
        OpKind::Cmp { op, x, .. } => Some(Shape::Cmp(*op, ty(*x))),
        OpKind::Select { x, .. } => Some(Shape::Select(ty(*x))),
        OpKind::Cast { out, x } => Some(Shape::Cast(ty(*x), ty(out.0))),
        OpKind::Bitcast { out, x } => Some(Shape::Bitcast(ty(*x), ty(out.0))),
        OpKind::Load { buffer, .. } => Some(Shape::Load(*buffer)),
        OpKind::Store { buffer, .. } => Some(Shape::Store(*buffer)),
        OpKind::Atomic { op, buffer, .. } => Some(Shape::Atomic(*op, *buffer)),
        OpKind::Alloc { .. }
        | OpKind::Copy { .. }
        | OpKind::Gather { .. }
        | OpKind::Scatter { .. }
        | OpKind::Fill { .. }
        | OpKind::Gemm { .. }
        | OpKind::Reduce { .. }
        | OpKind::Scan { .. }
        | OpKind::TopK { .. }
        | OpKind::Sort { .. }
        | OpKind::Shuffle { .. }
        | OpKind::For { .. }
        | OpKind::If { .. }
        | OpKind::While { .. }
        | OpKind::Role { .. }
        | OpKind::Print { .. }
        | OpKind::Assert { .. }
        | OpKind::Assume { .. }
        | OpKind::Layout { .. } => None,
    }
}

fn operands(kind: &OpKind) -> Vec<Value> {
    let mut all = Vec::new();
    kind.for_each_use(&mut |v| all.push(v));
    all
}

fn result(kind: &OpKind) -> Option<Value> {
    let mut out = None;
    kind.for_each_def(&mut |v| out = Some(v));
    out
}

/// What the loop's body gets for an operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Invariant,
    /// The result at this place of the same repetition.
    Own(usize),
    /// The result at this place of the previous repetition.
    Previous(usize),
    /// `first + repetition * step`.
    Counted {
        first: i64,
        step: i64,
    },
}

/// A repeating run of ops.
struct Run {
    /// Position of the first op.
    start: usize,
    /// Ops of a repetition.
    period: usize,
    repetitions: usize,
    /// For each op of a repetition, its operands.
    sources: Vec<Vec<Source>>,
    /// Places whose results the next repetition uses.
    carried: BTreeSet<usize>,
    /// Places whose last results are used after the run.
    leaving: BTreeSet<usize>,
}

/// Where in a region values are computed. A table, since a search asks for every operand many times.
struct Positions(Vec<Option<NonZeroUsize>>);

impl Positions {
    fn new(func: &Func, ops: &[Op]) -> Positions {
        let mut table = vec![None; func.values.len()];
        for (i, &op) in ops.iter().enumerate() {
            if let Some(v) = result(&func.ops[op].kind) {
                table[v.index()] = NonZeroUsize::new(i + 1);
            }
        }
        Positions(table)
    }

    fn get(&self, v: Value) -> Option<usize> {
        self.0[v.index()].map(|p| p.get() - 1)
    }
}

/// A region, taken apart for the search.
struct Search<'f> {
    func: &'f Func,
    ops: &'f [Op],
    shapes: Vec<Option<Shape>>,
    operands: Vec<Vec<Value>>,
    positions: Positions,
    /// By position: the last op of the region that uses the result, or contains one that does.
    last_use: Vec<usize>,
}

/// The longest repetition of a region.
fn find(func: &Func, region: Region) -> Option<Run> {
    let ops = &func.regions[region].ops;
    if ops.len() < MIN_REGION {
        return None;
    }
    let shapes: Vec<Option<Shape>> = ops.iter().map(|&op| shape(func, op)).collect();
    let candidates = distances(&shapes);
    if candidates.is_empty() {
        return None;
    }
    let positions = Positions::new(func, ops);
    let mut last_use = vec![0; ops.len()];
    for (i, &op) in ops.iter().enumerate() {
        let mut note = |v: Value| {
            if let Some(p) = positions.get(v) {
                last_use[p] = i;
            }
        };
        func.ops[op].kind.for_each_use(&mut note);
        func.ops[op].kind.for_each_region(&mut |r| func.walk(r, &mut |_, data| data.kind.for_each_use(&mut note)));
    }
    let operands = ops.iter().map(|&op| operands(&func.ops[op].kind)).collect();
    let search = Search { func, ops, shapes, operands, positions, last_use };
    let runs = candidates.into_iter().filter_map(|period| search.longest(period));
    runs.max_by_key(|r| (r.period * (r.repetitions - 1), std::cmp::Reverse(r.period)))
}

/// Distances at which a region may repeat itself.
fn distances(shapes: &[Option<Shape>]) -> Vec<usize> {
    let codes: Vec<u64> = shapes
        .iter()
        .map(|s| {
            let mut h = DefaultHasher::new();
            s.hash(&mut h);
            h.finish()
        })
        .collect();
    let mut last: FastMap<u64, usize> = FastMap::default();
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    // A polynomial in the codes of the window, brought up to date as it moves.
    const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
    let drop = (0..WINDOW).fold(1u64, |p, _| p.wrapping_mul(BASE));
    let mut hash = 0u64;
    for (i, &code) in codes.iter().enumerate() {
        hash = hash.wrapping_mul(BASE).wrapping_add(code);
        if i >= WINDOW {
            hash = hash.wrapping_sub(codes[i - WINDOW].wrapping_mul(drop));
        }
        if i + 1 >= WINDOW
            && let Some(before) = last.insert(hash, i)
        {
            *counts.entry(i - before).or_default() += 1;
        }
    }
    let mut order: Vec<(usize, usize)> = counts.into_iter().filter(|&(_, n)| n >= WINDOW).collect();
    order.sort_by_key(|&(d, n)| (std::cmp::Reverse(n), d));
    // Two kinds of steps that alternate may look alike.
    let all: BTreeSet<usize> = order.into_iter().take(CANDIDATES).flat_map(|(d, _)| [d, 2 * d]).collect();
    all.into_iter().filter(|d| *d * MIN_REPETITIONS <= shapes.len()).collect()
}

impl Search<'_> {
    fn source(&self, a: Value, b: Value, start: usize, period: usize) -> Option<Source> {
        if a == b {
            // Not one that the first repetition computes.
            return self.positions.get(a).is_none_or(|p| p < start).then_some(Source::Invariant);
        }
        if let (Some(p), Some(q)) = (self.positions.get(a), self.positions.get(b)) {
            if p + period != q {
                return None;
            }
            return match p {
                _ if p >= start => Some(Source::Own(p - start)),
                _ if p + period >= start => Some(Source::Previous(p + period - start)),
                _ => None,
            };
        }
        let (first, second) = (self.func.as_index(a)?, self.func.as_index(b)?);
        Some(Source::Counted { first, step: second.checked_sub(first)? })
    }

    /// Could op `i` and the one a period later be the same op of two repetitions, wherever these start?
    fn matches(&self, i: usize, period: usize) -> bool {
        let j = i + period;
        j < self.ops.len()
            && self.shapes[i].is_some()
            && self.shapes[i] == self.shapes[j]
            && self.operands[i].iter().zip(&self.operands[j]).all(|(&a, &b)| {
                a == b
                    || match (self.positions.get(a), self.positions.get(b)) {
                        (Some(p), Some(q)) => p + period == q,
                        (None, None) => self.func.as_index(a).is_some() && self.func.as_index(b).is_some(),
                        _ => false,
                    }
            })
    }

    /// The longest run with this period.
    fn longest(&self, period: usize) -> Option<Run> {
        let mut best: Option<Run> = None;
        let mut start = 0;
        while start + period < self.ops.len() {
            if !self.matches(start, period) {
                start += 1;
                continue;
            }
            let end = (start..).find(|&i| !self.matches(i, period)).unwrap_or(self.ops.len());
            let saved = best.as_ref().map_or(MIN_SAVED, |b| b.period * (b.repetitions - 1));
            if end - start > saved.max(period * (MIN_REPETITIONS - 1)) {
                best = self.at_best_start(start, end + period, period).or(best);
            }
            start = end + 1;
        }
        best
    }

    /// The run within `start..end` whose repetitions hand over the fewest values.
    fn at_best_start(&self, start: usize, end: usize, period: usize) -> Option<Run> {
        // Values that are computed before a position and used at it or later, by position in the second repetition.
        let mut crossing = vec![0i64; 2 * period + 1];
        for p in start..(start + period).min(end) {
            let last = self.last_in_run(p, end).min(p + 2 * period);
            if last > p {
                crossing[(p + 1 - start).min(2 * period)] += 1;
                crossing[(last + 1 - start).min(2 * period)] -= 1;
            }
        }
        for i in 1..crossing.len() {
            crossing[i] += crossing[i - 1];
        }
        let cost = |phase: usize| crossing[phase] + crossing[phase + period];
        let mut phases: Vec<usize> = (0..period).collect();
        phases.sort_by_key(|&phase| (cost(phase), phase));
        phases.into_iter().take(3).find_map(|phase| self.run_at(start + phase, end, period))
    }

    fn last_in_run(&self, p: usize, end: usize) -> usize {
        // A value that is also used after the run says nothing about the steps.
        if self.last_use[p] < end { self.last_use[p] } else { p }
    }

    /// The run that starts exactly at `start`, if it is one.
    fn run_at(&self, start: usize, end: usize, period: usize) -> Option<Run> {
        let repetitions = end.checked_sub(start)? / period;
        if repetitions < MIN_REPETITIONS || period * (repetitions - 1) < MIN_SAVED {
            return None;
        }
        let mut sources = Vec::with_capacity(period);
        let mut carried = BTreeSet::new();
        for i in start..start + period {
            let mut of_op = Vec::new();
            for (n, &a) in self.operands[i].iter().enumerate() {
                let first = self.source(a, self.operands[i + period][n], start, period)?;
                for r in 1..repetitions - 1 {
                    let at = i + r * period;
                    let (x, y) = (self.operands[at][n], self.operands[at + period][n]);
                    let same = match first {
                        Source::Invariant => x == a && y == a,
                        Source::Own(_) | Source::Previous(_) => {
                            let (p, q) = (self.positions.get(x), self.positions.get(y));
                            p.is_some_and(|p| q == Some(p + period))
                        }
                        Source::Counted { step, .. } => {
                            let (x, y) = (self.func.as_index(x)?, self.func.as_index(y)?);
                            y.checked_sub(x) == Some(step)
                        }
                    };
                    if !same {
                        return None;
                    }
                }
                if let Source::Previous(place) = first {
                    carried.insert(place);
                }
                of_op.push(first);
            }
            sources.push(of_op);
        }
        let after = start + repetitions * period;
        let mut leaving = BTreeSet::new();
        for p in start..after {
            if self.last_use[p] >= after {
                if p < after - period {
                    return None;
                }
                leaving.insert(p - (after - period));
            }
        }
        Some(Run { start, period, repetitions, sources, carried, leaving })
    }
}

/// The local tiles through which results go from one repetition to the next.
struct Slots {
    /// By place in the repetition.
    slot: BTreeMap<usize, (Buffer, Value)>,
}

impl Slots {
    /// Allocates one tile for each type, at the end of the region.
    fn new(func: &mut Func, region: Region, ops: &[Op], places: impl Iterator<Item = usize>) -> Slots {
        let mut by_type: BTreeMap<DType, Vec<usize>> = BTreeMap::new();
        for place in places {
            if let Some(v) = result(&func.ops[ops[place]].kind) {
                by_type.entry(func.ty(v)).or_default().push(place);
            }
        }
        let span = func.ops[ops[0]].span.clone();
        let mut slot = BTreeMap::new();
        for (dtype, places) in by_type {
            let buffer = func.buffers.push(BufferData {
                name: String::new(),
                dtype,
                scope: Scope::Local,
                shape: vec![Extent::Static(places.len())],
                strides: Strides::Contiguous,
                span: span.clone(),
            });
            func.append(region, OpKind::Alloc { buffer }, span.clone());
            for (n, place) in places.into_iter().enumerate() {
                let index = func.constant(Const::index(n as i64));
                slot.insert(place, (buffer, index));
            }
        }
        Slots { slot }
    }
}

/// Makes a loop of a run.
fn rewrite(func: &mut Func, region: Region, run: &Run) {
    let ops = std::mem::take(&mut func.regions[region].ops);
    let (once, after) = (run.start..run.start + run.period, run.start + run.period * run.repetitions);
    let body_ops = &ops[once];
    let span = func.ops[body_ops[0]].span.clone();
    let results: Vec<Option<Value>> = body_ops.iter().map(|&op| result(&func.ops[op].kind)).collect();
    let first_operands: Vec<Vec<Value>> = body_ops.iter().map(|&op| operands(&func.ops[op].kind)).collect();
    func.regions[region].ops = ops[..run.start].to_vec();

    let slots = Slots::new(func, region, body_ops, run.carried.union(&run.leaving).copied());
    // What the first repetition gets from before the run.
    let mut inits: BTreeMap<usize, Value> = BTreeMap::new();
    for (sources, values) in run.sources.iter().zip(&first_operands) {
        for (source, &v) in sources.iter().zip(values) {
            if let Source::Previous(place) = source {
                inits.insert(*place, v);
            }
        }
    }
    for (place, value) in inits {
        let (buffer, index) = slots.slot[&place];
        func.append(region, OpKind::Store { buffer, indices: [index].into_iter().collect(), value }, span.clone());
    }

    let body = func.add_region();
    let iv = func.add_value(DType::Index);
    let extent = func.constant(Const::index(run.repetitions as i64));
    let kind = OpKind::For {
        kind: LoopKind::Serial,
        indices: [Def(iv)].into_iter().collect(),
        extents: [extent].into_iter().collect(),
        body,
    };
    func.append(region, kind, span.clone());
    let mut before: FastMap<usize, Value> = FastMap::default();
    for &place in &run.carried {
        let (buffer, index) = slots.slot[&place];
        let out = func.add_value(func.buffers[buffer].dtype);
        let indices = [index].into_iter().collect();
        func.append(body, OpKind::Load { out: Def(out), buffer, indices }, span.clone());
        before.insert(place, out);
    }
    let mut counted: FastMap<(i64, i64), Value> = FastMap::default();
    for (at, &op) in body_ops.iter().enumerate() {
        let values: Vec<Value> = run.sources[at]
            .iter()
            .zip(&first_operands[at])
            .map(|(source, &v)| match *source {
                // Of the first repetition already.
                Source::Invariant | Source::Own(_) => v,
                Source::Previous(place) => before[&place],
                Source::Counted { first, step } => {
                    *counted.entry((first, step)).or_insert_with(|| count(func, body, iv, (first, step), &span))
                }
            })
            .collect();
        let mut next = values.into_iter();
        func.ops[op].kind.for_each_use_mut(&mut |v| *v = next.next().unwrap_or(*v));
        func.regions[body].ops.push(op);
    }
    for (&place, &(buffer, index)) in &slots.slot {
        if let Some(value) = results[place] {
            func.append(body, OpKind::Store { buffer, indices: [index].into_iter().collect(), value }, span.clone());
        }
    }

    // What comes after gets the last results.
    let mut renamed: FastMap<Value, Value> = FastMap::default();
    for &place in &run.leaving {
        let (buffer, index) = slots.slot[&place];
        let last = result(&func.ops[ops[after - run.period + place]].kind);
        let out = func.add_value(func.buffers[buffer].dtype);
        let indices = [index].into_iter().collect();
        func.append(region, OpKind::Load { out: Def(out), buffer, indices }, span.clone());
        renamed.extend(last.map(|v| (v, out)));
    }
    let rest = &ops[after..];
    rest.iter().for_each(|&op| rename(func, op, &renamed));
    func.regions[region].ops.extend_from_slice(rest);
}

/// `first + iv * step`, computed at the end of the region.
fn count(func: &mut Func, region: Region, iv: Value, (first, step): (i64, i64), span: &crate::Span) -> Value {
    let mut binary = |op, x, c| {
        let (out, y) = (func.add_value(DType::Index), func.constant(Const::index(c)));
        func.append(region, OpKind::Binary { out: Def(out), op, x, y }, span.clone());
        out
    };
    let scaled = if step == 1 { iv } else { binary(BinaryOp::Mul, iv, step) };
    if first == 0 { scaled } else { binary(BinaryOp::Add, scaled, first) }
}

fn rename(func: &mut Func, op: Op, by: &FastMap<Value, Value>) {
    func.ops[op].kind.for_each_use_mut(&mut |v| *v = by.get(v).copied().unwrap_or(*v));
    let mut nested = Vec::new();
    func.ops[op].kind.for_each_region(&mut |r| nested.push(r));
    for r in nested {
        for op in func.regions[r].ops.clone() {
            rename(func, op, by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::{Arg, Interpreter, TensorArg};
    use crate::{Access, FuncBuilder, Span, verify};

    /// Steps of two kinds in turn, each value of a step from two of the last, all kept; the last ones are read back backwards.
    fn unrolled(steps: i64, n: i64) -> Func {
        let mut b = FuncBuilder::new("steps", Span::unknown());
        let shape = |s: &[i64]| s.iter().map(|n| Extent::Static(*n as usize)).collect::<Vec<_>>();
        let x = b.tensor("x", DType::F32, shape(&[n]), Access::Read);
        let y = b.tensor("y", DType::F32, shape(&[steps + 1, n]), Access::Write);
        let one = b.index(1);
        b.grid(&[one], 32);
        let at = |b: &mut FuncBuilder, i: i64| b.index(i);
        let mut state: Vec<Value> = (0..n)
            .map(|i| {
                let i = at(&mut b, i);
                b.load(x, &[i])
            })
            .collect();
        for step in 0..steps {
            for (i, v) in state.iter().enumerate() {
                let idx = [at(&mut b, step), at(&mut b, i as i64)];
                b.store(y, &idx, *v);
            }
            let half = b.constant(Const::f32(0.5));
            let other = |i: usize| if step % 2 == 0 { (i + 1) % n as usize } else { (i + 2) % n as usize };
            state = (0..n as usize)
                .map(|i| {
                    let sum = b.add(state[i], state[other(i)]);
                    b.mul(sum, half)
                })
                .collect();
        }
        let last = at(&mut b, steps);
        for (i, v) in state.iter().enumerate() {
            let i = at(&mut b, n - 1 - i as i64);
            b.store(y, &[last, i], *v);
        }
        b.finish()
    }

    fn results(func: &Func, steps: usize, n: usize) -> Vec<Const> {
        let x: Vec<f64> = (0..n).map(|i| (i * i) as f64).collect();
        let mut args = vec![
            Arg::Tensor(TensorArg::from_f64(DType::F32, &[n], &x)),
            Arg::Tensor(TensorArg::uninit(DType::F32, &[steps + 1, n])),
        ];
        Interpreter::new(func).run(&mut args).expect("the function runs");
        args[1].as_tensor().expect("a tensor").elements()
    }

    #[test]
    fn repeated_steps_become_one_loop_with_the_same_results() {
        for (steps, n) in [(20, 8), (33, 4), (21, 5)] {
            let func = unrolled(steps, n);
            let mut rolled = func.clone();
            assert_eq!(run(&mut rolled).count("rolled"), 1);
            assert_eq!(verify(&rolled), Ok(()));
            let (mut before, mut after) = (0, 0);
            func.walk(func.body, &mut |_, _| before += 1);
            rolled.walk(rolled.body, &mut |_, _| after += 1);
            assert!(after * 3 < before, "{before} ops became {after}:\n{}", rolled.canonical_text());
            let size = (steps as usize, n as usize);
            assert_eq!(results(&func, size.0, size.1), results(&rolled, size.0, size.1));
        }
    }

    #[test]
    fn a_short_or_irregular_region_stays() {
        let mut short = unrolled(4, 4);
        assert_eq!(run(&mut short).total(), 0);
        let text = short.canonical_text();
        assert_eq!(text, unrolled(4, 4).canonical_text());
    }
}
