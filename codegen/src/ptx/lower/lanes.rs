//! Iterations of a parallel loop lowered side by side, op by op.

use super::dist::Dist;
use super::frag::Fragment;
use super::index::{self, Idx};
use super::place::Place;
use super::value::Scalar;
use super::view::Coords;
use super::{Lowerer, Result, cast};
use crate::ptx::error::CodegenError;
use crate::ptx::simt::{Bin, Num, SimtOp, Ty, Val};
use smallvec::SmallVec;
use std::rc::Rc;
use zellige_ir::{AtomicOp, Buffer, Def, EntityId, Indices, LoopKind, Op, OpKind, Region, Value};

/// Ops up to which the arms of a conditional are executed under predicates instead of branches.
const MAX_PREDICATED: usize = 24;
/// Lanes that pass a conditional by one branch, if none of them enters it: one that is too long for predicates is rarely entered.
pub(super) const BRANCH_LANES: usize = 4;
/// Elements of a local buffer that belongs to one iteration.
const MAX_PRIVATE: usize = 256;

/// Which lanes do what.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// Lanes that take part, by number.
    pub which: Vec<usize>,
    /// For each lane: is it an iteration of the loop at all?
    pub live: Vec<Option<Val>>,
    /// For each lane: the conditions it is under.
    pub cond: Vec<Option<Val>>,
    /// True in one of the threads that execute the same iterations.
    pub primary: Option<Val>,
    /// Buffers in memory that the loop reads and writes: a replica must not read what the primary may have replaced.
    pub in_place: Rc<Vec<Buffer>>,
}

/// The scalars of one iteration. A table over all values, which the next loop uses again: most loops compute few of them.
#[derive(Clone, Debug)]
pub struct LaneScalars {
    by_value: Vec<Option<Scalar>>,
    known: Vec<Value>,
}

impl LaneScalars {
    pub fn new(values: usize) -> LaneScalars {
        LaneScalars { by_value: vec![None; values], known: Vec::new() }
    }

    pub fn get(&self, v: Value) -> Option<Scalar> {
        self.by_value[v.index()]
    }

    pub fn set(&mut self, v: Value, s: Scalar) {
        if self.by_value[v.index()].replace(s).is_none() {
            self.known.push(v);
        }
    }

    pub fn clear(&mut self) {
        for v in self.known.drain(..) {
            self.by_value[v.index()] = None;
        }
    }
}

impl Lanes {
    pub fn new(live: Vec<Option<Val>>, primary: Option<Val>, in_place: Rc<Vec<Buffer>>) -> Lanes {
        let cond = vec![None; live.len()];
        Lanes { which: (0..live.len()).collect(), live, cond, primary, in_place }
    }

    fn only(&self, lane: usize) -> Lanes {
        Lanes { which: vec![lane], ..self.clone() }
    }
}

impl Lowerer<'_> {
    /// Live and under its conditions.
    pub(super) fn active(&mut self, lanes: &Lanes, lane: usize) -> Option<Val> {
        self.b.and_guard(lanes.live[lane], lanes.cond[lane])
    }

    /// Lowers a loop body. Lanes that may not exist take a branch around control flow.
    pub(super) fn lanes_body(&mut self, op: Op, body: Region, lanes: Lanes) -> Result {
        let mut branches = false;
        self.walk_ops(body, &mut |_, kind| branches |= matches!(kind, OpKind::For { .. } | OpKind::While { .. }));
        if !branches || lanes.live.iter().all(Option::is_none) {
            return self.lanes_region(op, body, &lanes);
        }
        for lane in 0..lanes.live.len() {
            let mut one = lanes.only(lane);
            let live = one.live[lane].take();
            self.branch_on(live, &mut |l| l.lanes_region(op, body, &one))?;
        }
        Ok(())
    }

    fn lanes_region(&mut self, op: Op, region: Region, lanes: &Lanes) -> Result {
        let mut rest = &self.func.regions[region].ops[..];
        while let Some((&next, after)) = rest.split_first() {
            let together = self.divisions_together(rest, lanes)?;
            if together > 0 {
                self.divide_together(&rest[..together], lanes)?;
                rest = &rest[together..];
                continue;
            }
            if !self.roots_together(next, lanes)? {
                self.lanes_op(op, next, lanes)?;
            }
            rest = after;
        }
        Ok(())
    }

    fn lanes_op(&mut self, parent: Op, op: Op, lanes: &Lanes) -> Result {
        let func = self.func;
        self.b.at(&func.ops[op].span);
        match &func.ops[op].kind {
            OpKind::Cast { out, x } => self.lanes_cast(op, *out, *x, lanes),
            OpKind::Load { out, buffer, indices } => self.lanes_load(op, *out, *buffer, indices, lanes),
            OpKind::Store { buffer, indices, value } => self.lanes_store(op, *buffer, indices, *value, lanes),
            OpKind::Atomic { out, op: f, buffer, indices, value } => {
                self.lanes_atomic(op, *out, *f, *buffer, indices, *value, lanes)
            }
            OpKind::Alloc { buffer } => self.lanes_alloc(op, *buffer, lanes),
            OpKind::If { cond, then_body, else_body } => {
                self.lanes_if(parent, op, *cond, *then_body, *else_body, lanes)
            }
            OpKind::For { kind, indices, extents, body } => {
                let indices: Vec<Value> = indices.iter().map(|d| d.0).collect();
                self.lanes_for(parent, op, *kind, &indices, extents, *body, lanes)
            }
            OpKind::While { before, cond, body } => self.lanes_while(parent, op, *before, *cond, *body, lanes),
            OpKind::Role { role: _, body } => self.lanes_region(parent, *body, lanes),
            OpKind::Assert { cond, message } => {
                for &lane in &lanes.which {
                    let active = self.active(lanes, lane);
                    self.branch_on(active, &mut |l| l.assert(op, *cond, message, Some(lane)))?;
                }
                Ok(())
            }
            OpKind::Print { message, values, window: None } => {
                for &lane in &lanes.which {
                    let active = self.active(lanes, lane);
                    let guard = self.b.and_guard(active, lanes.primary);
                    self.branch_on(guard, &mut |l| l.print_values(op, message, values, Some(lane)))?;
                }
                Ok(())
            }
            OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. }
            | OpKind::Print { .. } => self.malformed(op, "a tile op cannot stand in a parallel loop"),
            OpKind::Unary { .. }
            | OpKind::Binary { .. }
            | OpKind::Fma { .. }
            | OpKind::Cmp { .. }
            | OpKind::Select { .. }
            | OpKind::Bitcast { .. }
            | OpKind::Assume { .. }
            | OpKind::Layout { .. } => {
                for &lane in &lanes.which {
                    self.scalar_op(op, Some(lane))?;
                }
                Ok(())
            }
        }
    }

    /// Neighbouring lanes convert together.
    fn lanes_cast(&mut self, op: Op, out: Def, x: Value, lanes: &Lanes) -> Result {
        let (from, to) = (self.func.ty(x), self.func.ty(out.0));
        let mut vals = Vec::with_capacity(lanes.which.len());
        for &lane in &lanes.which {
            match self.scalar(op, x, Some(lane))? {
                Scalar::Reg(v) if to != zellige_ir::DType::Index => vals.push(v),
                Scalar::Reg(_) | Scalar::Idx(_) => {
                    for &lane in &lanes.which {
                        self.scalar_op(op, Some(lane))?;
                    }
                    return Ok(());
                }
            }
        }
        let vals = cast::cast_all(&mut self.b, self.target, &vals, from, to);
        for (&lane, v) in lanes.which.iter().zip(vals) {
            self.set(out.0, Some(lane), Scalar::Reg(v));
        }
        Ok(())
    }

    // ---- memory ----------------------------------------------------------------------------------------------

    fn lanes_at(&mut self, op: Op, indices: &Indices, lanes: &Lanes) -> Result<Vec<Coords>> {
        lanes.which.iter().map(|&lane| self.indices(op, indices, Some(lane))).collect()
    }

    fn lanes_load(&mut self, op: Op, out: Def, buffer: Buffer, indices: &Indices, lanes: &Lanes) -> Result {
        let at = self.lanes_at(op, indices, lanes)?;
        let vals: Vec<Val> = match self.place(op, buffer)? {
            Place::Memory(view) => {
                let view = view.clone();
                let mut guards = Vec::with_capacity(at.len());
                for (&lane, c) in lanes.which.iter().zip(&at) {
                    let inside = view.guard(&mut self.b, c);
                    let active = self.active(lanes, lane);
                    let guard = self.b.and_guard(inside, active);
                    let alone = lanes.primary.filter(|_| lanes.in_place.contains(&buffer));
                    guards.push(self.b.and_guard(guard, alone));
                }
                view.load(&mut self.b, &at, &guards)
            }
            Place::Registers(_) => {
                let mut vals = Vec::with_capacity(at.len());
                let zero = self.b.zero(super::value::class(self.func.buffers[buffer].dtype));
                let thread = self.own_part(op, buffer)?;
                for c in &at {
                    let reg = self.own_register(op, buffer, &thread, c)?;
                    vals.push(reg.map_or(zero, |r| self.get_reg(buffer, r)));
                }
                vals
            }
            Place::PerLane(_) => lanes.which.iter().zip(&at).map(|(&lane, c)| self.lane_get(buffer, lane, c)).collect(),
        };
        for (&lane, v) in lanes.which.iter().zip(vals) {
            self.set(out.0, Some(lane), Scalar::Reg(v));
        }
        Ok(())
    }

    fn lanes_store(&mut self, op: Op, buffer: Buffer, indices: &Indices, value: Value, lanes: &Lanes) -> Result {
        let at = self.lanes_at(op, indices, lanes)?;
        let mut vals = Vec::with_capacity(at.len());
        for &lane in &lanes.which {
            vals.push(self.reg(op, value, Some(lane))?);
        }
        match self.place(op, buffer)? {
            Place::Memory(view) => {
                let view = view.clone();
                let mut guards = Vec::with_capacity(at.len());
                for (&lane, c) in lanes.which.iter().zip(&at) {
                    let inside = view.guard(&mut self.b, c);
                    let active = self.active(lanes, lane);
                    let guard = self.b.and_guard(inside, active);
                    guards.push(self.b.and_guard(guard, lanes.primary));
                }
                view.store(&mut self.b, &at, &guards, &vals);
            }
            Place::Registers(_) => {
                let thread = self.own_part(op, buffer)?;
                for ((&lane, c), v) in lanes.which.iter().zip(&at).zip(vals) {
                    let Some(reg) = self.own_register(op, buffer, &thread, c)? else { continue };
                    // A lane outside the loop may still stand for an element of a larger fragment.
                    let v = match self.active(lanes, lane) {
                        Some(g) => {
                            let old = self.get_reg(buffer, reg);
                            self.b.selp(g, v, old)
                        }
                        None => v,
                    };
                    self.set_reg(buffer, reg, v);
                }
            }
            Place::PerLane(_) => {
                for ((&lane, c), v) in lanes.which.iter().zip(&at).zip(vals) {
                    let v = match lanes.cond[lane] {
                        Some(g) => {
                            let old = self.lane_get(buffer, lane, c);
                            self.b.selp(g, v, old)
                        }
                        None => v,
                    };
                    self.lane_set(buffer, lane, c, v);
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn lanes_atomic(
        &mut self,
        op: Op,
        out: Def,
        f: AtomicOp,
        buffer: Buffer,
        indices: &Indices,
        value: Value,
        lanes: &Lanes,
    ) -> Result {
        let at = self.lanes_at(op, indices, lanes)?;
        self.place(op, buffer)?;
        let Some(view) = self.memory(buffer) else {
            return self.malformed(op, "atomics work on global and shared buffers");
        };
        let used = self.is_used(out.0);
        for (&lane, c) in lanes.which.iter().zip(&at) {
            let x = self.reg(op, value, Some(lane))?;
            let inside = view.guard(&mut self.b, c);
            let active = self.active(lanes, lane);
            let guard = self.b.and_guard(inside, active);
            let guard = self.b.and_guard(guard, lanes.primary);
            let old = self.atomic_at(op, f, &view, c, x, guard)?;
            if !used {
                self.drop_result(old);
            }
            self.set(out.0, Some(lane), Scalar::Reg(old));
        }
        Ok(())
    }

    /// What this thread contributes to the places of its elements of a fragment.
    fn own_part(&mut self, op: Op, buffer: Buffer) -> Result<Coords> {
        match self.dist_of(buffer) {
            Some(dist) => Ok(dist.thread_coords(&mut self.b, self.tid)),
            None => self.malformed(op, "the buffer is no fragment"),
        }
    }

    /// The register of this thread that holds an element which the analysis of the loop found to be its own; `None` if
    /// the place is dead.
    fn own_register(&mut self, op: Op, buffer: Buffer, thread: &Coords, at: &Coords) -> Result<Option<usize>> {
        let Some(dist) = self.dist_of(buffer) else {
            return self.malformed(op, "the buffer is no fragment");
        };
        let mut coord: SmallVec<[usize; 4]> = SmallVec::with_capacity(at.len());
        for (x, t) in at.iter().zip(thread) {
            // The same register means the same contribution of the thread; what is left is the register's.
            let rest = if x.base == t.base { Some(x.off - t.off) } else { None };
            match rest.and_then(|r| usize::try_from(r).ok()) {
                Some(r) => coord.push(r),
                None => return self.malformed(op, "an element of a fragment is not where the loop's layout says"),
            }
        }
        // Beyond the registers: a place that holds nothing.
        Ok(dist.reg(&coord))
    }

    fn lanes_alloc(&mut self, op: Op, buffer: Buffer, lanes: &Lanes) -> Result {
        let data = &self.func.buffers[buffer];
        let Some(shape) = data.static_shape() else {
            return self.malformed(op, "a local buffer has a dynamic shape");
        };
        let size: usize = shape.iter().product();
        if data.scope != zellige_ir::Scope::Local || size > MAX_PRIVATE {
            return Err(CodegenError::Unsupported {
                span: self.span(op),
                what: format!(
                    "a {} buffer of {size} elements inside a parallel loop: only local buffers of at most {MAX_PRIVATE} \
                     elements can belong to an iteration",
                    data.scope.name()
                ),
            });
        }
        let dist = Dist::replicated(&shape, self.func.threads).map_err(|e| self.layout_error("a local buffer", e))?;
        let dist = Rc::new(dist);
        let count = lanes.live.len();
        let existing = matches!(&self.places[buffer.index()], Some(Place::PerLane(f)) if f.len() == count);
        if !existing || lanes.which.len() == count {
            let regs = (0..count).map(|_| Fragment::new(&mut self.b, data.dtype, dist.clone())).collect();
            self.places[buffer.index()] = Some(Place::PerLane(regs));
        }
        Ok(())
    }

    // ---- control ---------------------------------------------------------------------------------------------

    /// Ops of a region if they can run under predicates.
    fn predicable(&self, region: Region) -> Option<usize> {
        let (mut count, mut fits) = (0, true);
        self.walk_ops(region, &mut |_, kind| {
            count += 1;
            fits &= !matches!(
                kind,
                OpKind::For { .. }
                    | OpKind::While { .. }
                    | OpKind::Assert { .. }
                    | OpKind::Print { .. }
                    | OpKind::Alloc { .. }
                    | OpKind::Role { .. }
            );
        });
        fits.then_some(count)
    }

    fn lanes_if(
        &mut self,
        parent: Op,
        op: Op,
        cond: Value,
        then_body: Region,
        else_body: Region,
        lanes: &Lanes,
    ) -> Result {
        let mut conds = Vec::with_capacity(lanes.which.len());
        for &lane in &lanes.which {
            conds.push(self.reg(op, cond, Some(lane))?);
        }
        let together = conds.windows(2).all(|w| w[0] == w[1]);
        if let Some(decided) = conds.first().filter(|_| together).and_then(|&c| self.b.as_const(c)) {
            return self.lanes_region(parent, if decided != 0 { then_body } else { else_body }, lanes);
        }
        if let (Some(n), Some(m)) = (self.predicable(then_body), self.predicable(else_body))
            && n + m <= MAX_PREDICATED
        {
            for (region, positive) in [(then_body, true), (else_body, false)] {
                if self.func.regions[region].ops.is_empty() {
                    continue;
                }
                let mut inner = lanes.clone();
                for (&lane, &c) in lanes.which.iter().zip(&conds) {
                    let c = if positive { c } else { self.b.not(c) };
                    inner.cond[lane] = self.b.and_guard(lanes.cond[lane], Some(c));
                }
                self.lanes_region(parent, region, &inner)?;
            }
            return Ok(());
        }
        if together && let Some(&c) = conds.first() {
            return self.lanes_branch(parent, c, then_body, else_body, lanes);
        }
        let nothing_else = self.func.regions[else_body].ops.is_empty();
        let shared = if nothing_else { BRANCH_LANES } else { 1 };
        for (group, conds) in lanes.which.chunks(shared).zip(conds.chunks(shared)) {
            let each = |l: &mut Self| {
                group.iter().zip(conds).try_for_each(|(&lane, &cond)| {
                    l.lanes_branch(parent, cond, then_body, else_body, &lanes.only(lane))
                })
            };
            match conds.iter().copied().reduce(|x, y| self.b.bin(Bin::Or, Num::Pred, x, y)).filter(|_| group.len() > 1)
            {
                Some(any) => self.branch_on(Some(any), &mut |l| each(l))?,
                None => each(self)?,
            }
        }
        Ok(())
    }

    /// Does a loop body have a conditional that lanes branch on, each on a condition of its own?
    pub(super) fn lanes_may_branch(&self, body: Region) -> bool {
        let mut found = false;
        self.walk_ops(body, &mut |_, kind| {
            if let OpKind::If { then_body, else_body, .. } = kind {
                let ops = self.predicable(*then_body).zip(self.predicable(*else_body));
                found |= ops.is_none_or(|(n, m)| n + m > MAX_PREDICATED);
            }
        });
        found
    }

    fn lanes_branch(&mut self, parent: Op, cond: Val, then_body: Region, else_body: Region, lanes: &Lanes) -> Result {
        self.flush();
        let then_block = self.b.open(false);
        self.lanes_region(parent, then_body, lanes)?;
        self.flush();
        self.b.close();
        let else_block = self.b.open(false);
        self.lanes_region(parent, else_body, lanes)?;
        self.flush();
        self.b.close();
        self.b.push(SimtOp::If { cond, uniform: false, then_body: then_block, else_body: else_block });
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn lanes_for(
        &mut self,
        parent: Op,
        op: Op,
        kind: LoopKind,
        indices: &[Value],
        extents: &Indices,
        body: Region,
        lanes: &Lanes,
    ) -> Result {
        let (Some((&index, inner)), Some(&extent)) = (indices.split_first(), extents.first()) else {
            return self.lanes_region(parent, body, lanes);
        };
        let rest: Indices = extents[1..].iter().copied().collect();
        let mut bounds = Vec::with_capacity(lanes.which.len());
        for &lane in &lanes.which {
            bounds.push(self.idx(op, extent, Some(lane))?);
        }
        let together = bounds.windows(2).all(|w| w[0] == w[1]);
        let Some(&bound) = bounds.first() else { return Ok(()) };
        if !together {
            for &lane in &lanes.which {
                self.lanes_for(parent, op, kind, indices, extents, body, &lanes.only(lane))?;
            }
            return Ok(());
        }
        if kind == LoopKind::Persistent {
            return self.malformed(op, "a persistent loop cannot stand in a parallel loop");
        }
        if bound.hi <= 0 {
            return Ok(());
        }
        let unroll = match kind {
            LoopKind::Unrolled => 64,
            LoopKind::Vectorized => 16,
            LoopKind::Serial | LoopKind::Pipelined { .. } | LoopKind::Parallel | LoopKind::Persistent => 4,
        };
        if let Some(n) = bound.as_const().filter(|&n| n <= unroll) {
            for i in 0..n {
                for &lane in &lanes.which {
                    self.set(index, Some(lane), Scalar::Idx(Idx::constant(i)));
                }
                self.lanes_for(parent, op, kind, inner, &rest, body, lanes)?;
            }
            return Ok(());
        }
        self.flush();
        let ty = if bound.is_narrow() && bound.hi < 1 << 30 { Ty::B32 } else { Ty::B64 };
        let [lo, hi, step] = [Idx::constant(0), bound, Idx::constant(1)].map(|x| index::to_val(&mut self.b, x, ty));
        let v = self.b.begin_for(ty);
        for &lane in &lanes.which {
            self.set(index, Some(lane), Scalar::Idx(Idx::new(v, 0, bound.hi - 1, 1)));
        }
        self.lanes_for(parent, op, kind, inner, &rest, body, lanes)?;
        self.flush();
        self.b.end_for(v, lo, hi, step, false);
        Ok(())
    }

    fn lanes_while(&mut self, parent: Op, op: Op, before: Region, cond: Value, body: Region, lanes: &Lanes) -> Result {
        for &lane in &lanes.which {
            let mut one = lanes.only(lane);
            let active = self.active(&one, lane);
            (one.live[lane], one.cond[lane]) = (None, None);
            self.branch_on(active, &mut |l| {
                l.flush();
                let before_block = l.b.open(true);
                l.lanes_region(parent, before, &one)?;
                let c = l.reg(op, cond, Some(lane))?;
                l.flush();
                l.b.close();
                let body_block = l.b.open(true);
                l.lanes_region(parent, body, &one)?;
                l.flush();
                l.b.close();
                l.b.push(SimtOp::While { before: before_block, cond: c, uniform: false, body: body_block });
                Ok(())
            })?;
        }
        Ok(())
    }
}
