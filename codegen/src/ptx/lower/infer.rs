//! Layout inference: which thread holds which element of each fragment, and how shared tiles lie.
//!
//! In this order: layouts that gemm operands and accumulators must have; what follows from those through parallel loops,
//! reductions and copies; and for the rest the layout with the widest access. A fragment has one layout for all its life;
//! an op that wants another one stages it through shared memory, which the explanation says.

use super::Result;
use super::accesses::{self, Access, Form};
use super::dist::Dist;
use super::gemm::plan::{self, GemmPlan};
use super::hopper::plan::HopperPlan;
use crate::ptx::error::CodegenError;
use crate::ptx::target::Target;
use std::collections::HashMap;
use std::rc::Rc;
use zellige_ir::layout::instances::Swizzle;
use zellige_ir::layout::{FragmentLayout, LANE, REGISTER, WARP, WARP_DIM, tile_dim};
use zellige_ir::{Buffer, EntityId, Func, LayoutHint, LoopKind, Op, OpKind, Region, Scope, Value, Window};

/// How a shared tile lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SharedForm {
    RowMajor,
    /// So many unused elements after each row.
    Padded(usize),
    Swizzled(Swizzle),
}

/// Elements up to which a local buffer is kept in the registers of every thread.
const MAX_LOCAL_REGISTERS: usize = 64;

/// Layouts of a kernel's tiles.
#[derive(Clone, Debug)]
pub struct Layouts {
    dists: Vec<Option<Rc<Dist>>>,
    shared: Vec<SharedForm>,
}

impl Layouts {
    /// The register layout of a fragment or local buffer; `None` if it lives in shared memory.
    pub fn dist(&self, buffer: Buffer) -> Option<Rc<Dist>> {
        self.dists[buffer.index()].clone()
    }

    pub fn shared_form(&self, buffer: Buffer) -> SharedForm {
        self.shared[buffer.index()]
    }
}

/// A loop over a box of known extents whose iterations threads share.
#[derive(Clone, Debug)]
pub struct ParallelLoop {
    pub op: Op,
    pub extents: Vec<usize>,
    pub accesses: Vec<Access>,
}

struct Infer<'f> {
    func: &'f Func,
    target: Target,
    dists: Vec<Option<Rc<Dist>>>,
    /// Ops of the body in program order, those inside parallel loops left out.
    ops: Vec<Op>,
    loops: HashMap<Op, ParallelLoop>,
    explain: &'f mut Vec<String>,
}

/// Chooses all layouts of a function.
///
/// Under a Hopper plan, accumulators of its products lie as `wgmma` has them.
pub fn infer(func: &Func, target: Target, hopper: Option<&HopperPlan>, explain: &mut Vec<String>) -> Result<Layouts> {
    let mut ops = Vec::new();
    let mut loops = HashMap::new();
    collect(func, func.body, &mut ops, &mut loops);
    let mut infer = Infer { func, target, dists: vec![None; func.buffers.len()], ops, loops, explain };
    infer.locals()?;
    if let Some(plan) = hopper {
        infer.wgmmas(plan)?;
    }
    infer.gemms()?;
    infer.propagate()?;
    infer.free()?;
    let dists = infer.dists;
    let shared = shared_forms(func, target, explain);
    Ok(Layouts { dists, shared })
}

fn collect(func: &Func, region: Region, ops: &mut Vec<Op>, loops: &mut HashMap<Op, ParallelLoop>) {
    for &op in &func.regions[region].ops {
        ops.push(op);
        match &func.ops[op].kind {
            OpKind::For { kind: LoopKind::Parallel | LoopKind::Vectorized, indices, extents, body } => {
                let extents: Option<Vec<usize>> =
                    extents.iter().map(|&e| func.as_index(e).and_then(|n| usize::try_from(n).ok())).collect();
                if let Some(extents) = extents {
                    let indices: Vec<Value> = indices.iter().map(|d| d.0).collect();
                    let accesses = accesses::loop_accesses(func, &indices, *body);
                    loops.insert(op, ParallelLoop { op, extents, accesses });
                }
            }
            kind => zellige_ir::Visit::for_each_region(kind, &mut |r| collect(func, r, ops, loops)),
        }
    }
}

impl Infer<'_> {
    fn is_free(&self, buffer: Buffer) -> bool {
        self.func.buffers[buffer].scope == Scope::Fragment && self.dists[buffer.index()].is_none()
    }

    fn known(&self, buffer: Buffer) -> Option<Rc<Dist>> {
        match self.func.buffers[buffer].scope {
            Scope::Fragment => self.dists[buffer.index()].clone(),
            Scope::Global | Scope::Shared | Scope::Local => None,
        }
    }

    fn name(&self, buffer: Buffer) -> String {
        buffer_name(self.func, buffer)
    }

    fn assign(&mut self, buffer: Buffer, dist: Rc<Dist>, why: &str, by: Op) {
        let span = &self.func.ops[by].span;
        self.explain.push(format!(
            "layout: {} has {} registers a thread, {why} by {} at {span}",
            self.name(buffer),
            dist.regs.len(),
            self.func.ops[by].kind.name()
        ));
        self.dists[buffer.index()] = Some(dist);
    }

    fn error(&self, op: Op, what: &str, error: zellige_ir::layout::LayoutError) -> CodegenError {
        CodegenError::Layout { span: self.func.ops[op].span.clone(), what: what.into(), error: Box::new(error) }
    }

    /// Small local buffers are replicated in every thread.
    fn locals(&mut self) -> Result {
        for (buffer, data) in self.func.buffers.iter() {
            let Some(shape) = data.static_shape().filter(|_| data.scope == Scope::Local) else { continue };
            if shape.iter().product::<usize>() <= MAX_LOCAL_REGISTERS {
                let dist = Dist::replicated(&shape, self.func.threads).map_err(|error| CodegenError::Layout {
                    span: data.span.clone(),
                    what: "a local buffer".into(),
                    error: Box::new(error),
                })?;
                self.dists[buffer.index()] = Some(Rc::new(dist));
            }
        }
        Ok(())
    }

    fn wgmmas(&mut self, plan: &HopperPlan) -> Result {
        for p in &plan.products {
            let layout = p.layout().map_err(|e| self.error(p.op, "no layout for a wgmma accumulator", e))?;
            if self.is_free(p.acc) {
                self.assign(p.acc, Rc::new(Dist::new(layout)), "fixed", p.op);
            }
            if let Some((operand, layout)) = p.operand_fragment() {
                let layout = layout.map_err(|e| self.error(p.op, "no layout for an operand of wgmma", e))?;
                self.assign(operand, Rc::new(Dist::new(layout)), "fixed", p.op);
            }
        }
        for s in &plan.stores {
            if self.is_free(s.src) {
                let p = &plan.products[s.product];
                let layout = p.layout().map_err(|e| self.error(s.op, "no layout for what tensor copies store", e))?;
                self.assign(s.src, Rc::new(Dist::new(layout)), "fixed", s.op);
            }
        }
        let products: Vec<Op> = plan.products.iter().map(|p| p.op).collect();
        self.ops.retain(|op| !products.contains(op));
        Ok(())
    }

    /// Accumulators and register operands of matrix instructions.
    fn gemms(&mut self) -> Result {
        for op in self.ops.clone() {
            let OpKind::Gemm { a, b, acc, precision } = &self.func.ops[op].kind else { continue };
            let GemmPlan::Mma(mma) = plan::plan(self.func, self.target, a, b, acc, *precision) else { continue };
            let demands = [
                (acc, Some(mma.acc())),
                (a, mma.operand_a(self.func.buffers[a.buffer].dtype)),
                (b, mma.operand_b(self.func.buffers[b.buffer].dtype)),
            ];
            for (w, layout) in demands {
                if self.func.buffers[w.buffer].scope != Scope::Fragment || !w.covers_whole_buffer(self.func) {
                    continue;
                }
                let Some(layout) = layout else { continue };
                let axes: Vec<usize> = w.axes.iter().map(|a| usize::from(a.axis)).collect();
                let back: Vec<usize> = (0..axes.len()).filter_map(|a| axes.iter().position(|&x| x == a)).collect();
                let layout = layout.and_then(|l| if is_whole(self.func, w) { Ok(l) } else { l.permute(&back) });
                let layout = layout.map_err(|e| self.error(op, "no layout for a gemm operand", e))?;
                let dist = Dist::new(layout);
                match self.known(w.buffer) {
                    None => self.assign(w.buffer, Rc::new(dist), "fixed", op),
                    Some(old) if old.layout == dist.layout => {}
                    Some(_) => self.explain.push(format!(
                        "layout: gemm at {} wants another layout of {}: it is converted through shared memory",
                        self.func.ops[op].span,
                        self.name(w.buffer)
                    )),
                }
            }
        }
        Ok(())
    }

    /// Carries known layouts through the ops until nothing changes.
    fn propagate(&mut self) -> Result {
        loop {
            let mut changed = false;
            for op in self.ops.clone() {
                changed |= self.step(op)?;
            }
            if !changed {
                return Ok(());
            }
        }
    }

    fn step(&mut self, op: Op) -> Result<bool> {
        let func = self.func;
        match &func.ops[op].kind {
            OpKind::Copy { src, dst, .. } => Ok(self.same(op, src, dst) || self.same(op, dst, src)),
            OpKind::Scan { src, dst, .. } | OpKind::Shuffle { src, dst, .. } => {
                Ok(self.same(op, src, dst) || self.same(op, dst, src))
            }
            OpKind::Reduce { src, dst, axis, .. } => {
                if !self.is_free(dst.buffer) || !is_whole(func, dst) || !is_whole(func, src) {
                    return Ok(false);
                }
                let Some(dist) = self.known(src.buffer) else { return Ok(false) };
                let Ok(layout) = dist.layout.drop_dim(*axis as usize) else { return Ok(false) };
                self.assign(dst.buffer, Rc::new(Dist::new(layout)), "sliced from its source", op);
                Ok(true)
            }
            OpKind::For { .. } => {
                let Some(l) = self.loops.get(&op).cloned() else { return Ok(false) };
                let Some((dist, _)) = choose_loop_dist(func, &l, &|b| self.known(b)) else { return Ok(false) };
                Ok(self.assign_from_loop(&l, &dist))
            }
            _ => Ok(false),
        }
    }

    /// Gives `to` the layout of `from`.
    fn same(&mut self, op: Op, from: &Window, to: &Window) -> bool {
        if !self.is_free(to.buffer) || !is_whole(self.func, to) || !is_whole(self.func, from) {
            return false;
        }
        let Some(dist) = self.known(from.buffer) else { return false };
        self.assign(to.buffer, dist, "carried over", op);
        true
    }

    /// Gives free fragments of a loop the part of the loop's layout that they are indexed by.
    fn assign_from_loop(&mut self, l: &ParallelLoop, dist: &Rc<Dist>) -> bool {
        let mut changed = false;
        for access in &l.accesses {
            if !self.is_free(access.buffer) {
                continue;
            }
            let Some(shape) = self.func.buffers[access.buffer].static_shape() else { continue };
            if let Some(part) = slice_loop(&shape, &l.extents, &access.forms, dist) {
                self.assign(access.buffer, Rc::new(part), "carried over", l.op);
                changed = true;
            }
        }
        changed
    }

    /// Chooses layouts for fragments that nothing fixes, the largest first: what a reduction leaves of a tile, or what a
    /// row of it shares, follows the tile, not the other way round.
    fn free(&mut self) -> Result {
        let func = self.func;
        let mut wanted: Vec<(usize, Op, Buffer)> = Vec::new();
        for &op in &self.ops {
            if matches!(func.ops[op].kind, OpKind::Alloc { .. } | OpKind::Layout { .. }) {
                continue;
            }
            let mut add = |buffer: Buffer| {
                if let Some(shape) = func.buffers[buffer].static_shape()
                    && self.is_free(buffer)
                {
                    wanted.push((shape.iter().product(), op, buffer));
                }
            };
            match self.loops.get(&op) {
                Some(l) => l.accesses.iter().for_each(|a| add(a.buffer)),
                None => zellige_ir::Visit::for_each_buffer(&func.ops[op].kind, &mut add),
            }
        }
        // Stable: those of one size stay in program order, but what fills a tile with a constant says nothing of how it is used.
        let fills = |op: Op| matches!(func.ops[op].kind, OpKind::Fill { .. });
        wanted.sort_by_key(|&(size, op, _)| (std::cmp::Reverse(size), fills(op)));
        for (_, op, buffer) in wanted {
            if self.is_free(buffer) {
                self.choose(op, buffer)?;
            }
        }
        // Fragments that no op of the block touches by name (or at all).
        for (buffer, data) in self.func.buffers.iter() {
            if self.is_free(buffer)
                && let Some(shape) = data.static_shape()
            {
                let dist = Dist::blocked(&shape, self.func.threads, 1).map_err(|error| CodegenError::Layout {
                    span: data.span.clone(),
                    what: "no layout for a fragment".into(),
                    error: Box::new(error),
                })?;
                self.dists[buffer.index()] = Some(Rc::new(dist));
            }
        }
        Ok(())
    }

    /// Chooses the layout of a fragment by an op that accesses it.
    fn choose(&mut self, op: Op, buffer: Buffer) -> Result {
        let func = self.func;
        let threads = func.threads;
        let Some(shape) = func.buffers[buffer].static_shape() else { return Ok(()) };
        let wide = self.wide_axes(buffer);
        if let Some(dist) = crossed(&shape, threads, &wide) {
            self.assign(buffer, Rc::new(dist), "chosen for wide access along two axes", op);
            return self.propagate();
        }
        if let Some(l) = self.loops.get(&op).or_else(|| self.loop_over_rows(buffer)).cloned() {
            let vector = self.copied_vector(&l.extents).unwrap_or_else(|| loop_vector(func, &l.extents, &l.accesses));
            let dist = Dist::blocked(&l.extents, threads, vector)
                .map_err(|e| self.error(op, "no layout for a parallel loop", e))?;
            if self.assign_from_loop(&l, &Rc::new(dist)) {
                self.propagate()?;
            }
            if !self.is_free(buffer) {
                return Ok(());
            }
        }
        let mut bits = func.buffers[buffer].dtype.bits();
        if let OpKind::Copy { src, dst, .. } = &func.ops[op].kind {
            bits = bits.min(func.buffers[src.buffer].dtype.bits()).min(func.buffers[dst.buffer].dtype.bits());
        }
        // What goes out wider than it came in: neighbouring threads write neighbouring words, and read at least a word.
        if let Some(out) = self.stored_bits(buffer).filter(|&out| out > bits) {
            bits = out.min(4 * bits);
        }
        let total: usize = shape.iter().product();
        let mut vector = 128 / bits;
        while vector > 1 && total / vector < threads {
            vector /= 2;
        }
        let vector = self.copied_vector(&shape).unwrap_or(vector.max(8 / bits.min(8)));
        let dist = Dist::blocked(&shape, threads, vector).map_err(|e| self.error(op, "no layout for a fragment", e))?;
        self.assign(buffer, Rc::new(dist), "chosen for wide access", op);
        self.propagate()
    }

    /// The first loop that runs along some axes of a fragment and holds others fixed: there a thread must have all of
    /// the fixed ones, which no wide layout of the whole promises.
    fn loop_over_rows(&self, buffer: Buffer) -> Option<&ParallelLoop> {
        let shape = self.func.buffers[buffer].static_shape()?;
        let fits = |l: &&ParallelLoop, forms: &[Form]| {
            forms.iter().zip(&shape).all(|(f, &extent)| match *f {
                Form::Loop { dim, off } => off == 0 && l.extents[dim] == extent,
                Form::Const(_) => true,
                Form::Other => false,
            }) && forms.iter().any(|f| matches!(f, Form::Const(_)))
                && forms.iter().any(|f| matches!(f, Form::Loop { .. }))
        };
        let loops = self.ops.iter().filter_map(|op| self.loops.get(op));
        loops.into_iter().find(|l| l.accesses.iter().any(|a| a.buffer == buffer && fits(l, &a.forms)))
    }

    /// Elements side by side that suit all copies between tensors and fragments as long as this box: 16 bytes of the
    /// narrowest element, if no thread idles then. The same for all such boxes, so that loops over several agree.
    fn copied_vector(&self, extents: &[usize]) -> Option<usize> {
        let func = self.func;
        let last = *extents.last()?;
        let mut narrowest: Option<usize> = None;
        for &op in &self.ops {
            let OpKind::Copy { src, dst, .. } = &func.ops[op].kind else { continue };
            for (own, other) in [(src, dst), (dst, src)] {
                let (fragment, tensor) = (&func.buffers[own.buffer], &func.buffers[other.buffer]);
                let as_long = fragment.static_shape().and_then(|s| s.last().copied()) == Some(last);
                if as_long && fragment.scope == Scope::Fragment && tensor.scope == Scope::Global {
                    let bits = tensor.dtype.bits();
                    narrowest = Some(narrowest.map_or(bits, |b| b.min(bits)));
                }
            }
        }
        let vector = 128 / narrowest?;
        (last.is_multiple_of(vector * func.threads)).then_some(vector)
    }

    /// Bits of the elements of the tensors that a fragment is copied to, at once or through other fragments: the narrowest.
    fn stored_bits(&self, fragment: Buffer) -> Option<usize> {
        let func = self.func;
        let mut on_the_way = vec![fragment];
        let mut narrowest: Option<usize> = None;
        let mut at = 0;
        while let Some(&from) = on_the_way.get(at) {
            for &op in &self.ops {
                let OpKind::Copy { src, dst, .. } = &func.ops[op].kind else { continue };
                let to = &func.buffers[dst.buffer];
                match to.scope {
                    Scope::Global if src.buffer == from => {
                        let bits = to.dtype.bits();
                        narrowest = Some(narrowest.map_or(bits, |b| b.min(bits)));
                    }
                    Scope::Fragment if src.buffer == from && !on_the_way.contains(&dst.buffer) => {
                        on_the_way.push(dst.buffer);
                    }
                    Scope::Global | Scope::Fragment | Scope::Shared | Scope::Local => {}
                }
            }
            at += 1;
        }
        narrowest
    }

    /// A fragment and those that parallel loops go through side by side with it, element by element: they lie alike.
    fn side_by_side(&self, buffer: Buffer) -> Vec<Buffer> {
        let func = self.func;
        let mut found = vec![buffer];
        let Some(shape) = func.buffers[buffer].static_shape() else { return found };
        let in_order = |a: &&Access| {
            func.buffers[a.buffer].scope == Scope::Fragment
                && a.forms.len() == shape.len()
                && a.forms.iter().enumerate().all(|(i, f)| matches!(*f, Form::Loop { dim, off: 0 } if dim == i))
        };
        let loops: Vec<Vec<Buffer>> = (self.ops.iter().filter_map(|op| self.loops.get(op)))
            .filter(|l| l.extents == *shape)
            .map(|l| l.accesses.iter().filter(in_order).map(|a| a.buffer).collect())
            .collect();
        let mut at = 0;
        while let Some(from) = found.get(at).copied() {
            for buffer in loops.iter().filter(|l| l.contains(&from)).flatten() {
                if !found.contains(buffer) {
                    found.push(*buffer);
                }
            }
            at += 1;
        }
        found
    }

    /// The axes of a fragment along which tensors that it, or one side by side with it, is copied from or to are contiguous,
    /// with the elements of a widest access there.
    fn wide_axes(&self, buffer: Buffer) -> Vec<(usize, usize)> {
        let func = self.func;
        let alike = self.side_by_side(buffer);
        let mut wide: Vec<(usize, usize)> = Vec::new();
        for &op in &self.ops {
            let OpKind::Copy { src, dst, .. } = &func.ops[op].kind else { continue };
            for (own, other) in [(src, dst), (dst, src)] {
                let tensor = &func.buffers[other.buffer];
                if !alike.contains(&own.buffer) || tensor.scope != Scope::Global || !own.covers_whole_buffer(func) {
                    continue;
                }
                let last = tensor.rank().wrapping_sub(1);
                let Some(j) = other.axes.iter().position(|a| usize::from(a.axis) == last) else { continue };
                let Some(axis) = own.axes.get(j).map(|a| usize::from(a.axis)) else { continue };
                let vector = 128 / tensor.dtype.bits();
                match wide.iter_mut().find(|(a, _)| *a == axis) {
                    Some((_, v)) => *v = vector.min(*v),
                    None => wide.push((axis, vector)),
                }
            }
        }
        wide
    }
}

/// A layout of blocks that are wide along two axes, for tiles that are read along one and written along the other: a
/// thread turns its block round in registers. A warp covers 128 bytes along the last axis as far as it can. `None` if
/// one axis will do or the tile does not divide.
fn crossed(shape: &[usize], threads: usize, wide: &[(usize, usize)]) -> Option<Dist> {
    let last = shape.len().checked_sub(1)?;
    let (_, along_last) = wide.iter().find(|(a, _)| *a == last)?;
    let (axis, across) = wide.iter().find(|(a, _)| *a != last)?;
    let power = |extent: usize, limit: usize| 1 << extent.trailing_zeros().min(limit.ilog2());
    let mut block = [power(shape[last], *along_last), power(shape[*axis], *across)];
    let total: usize = shape.iter().product();
    // Smaller blocks rather than idle threads.
    while total / (block[0] * block[1]) < threads && block[0] * block[1] > 1 {
        let longer = usize::from(block[1] >= block[0]);
        block[longer] /= 2;
    }
    if !threads.is_power_of_two() || block[0] < 2 || block[1] < 2 {
        return None;
    }
    let mut left = [shape[last] / block[0], shape[*axis] / block[1]];
    let names = [tile_dim(last), tile_dim(*axis)];
    let mut builder = FragmentLayout::builder(shape.len());
    for (n, name) in block.into_iter().zip(&names) {
        builder = builder.tile(REGISTER, n, name);
    }
    for bit in 0..threads.ilog2() {
        let input = if bit < WARP.ilog2() { LANE } else { WARP_DIM };
        // Eight lanes along the last axis, then the other one.
        let order = if bit < 3 { [0, 1] } else { [1, 0] };
        builder = match order.into_iter().find(|&i| left[i].is_multiple_of(2)) {
            Some(i) => {
                left[i] /= 2;
                builder.tile(input, 2, &names[i])
            }
            None => builder.replicate(input, 2),
        };
    }
    for (a, &extent) in shape.iter().enumerate().rev() {
        let n = if a == last {
            left[0]
        } else if a == *axis {
            left[1]
        } else {
            extent
        };
        builder = builder.tile(REGISTER, n, &tile_dim(a));
    }
    FragmentLayout::new(shape, builder.build().ok()?).ok().map(Dist::new)
}

/// What a buffer is called in explanations.
pub fn buffer_name(func: &Func, buffer: Buffer) -> String {
    let name = &func.buffers[buffer].name;
    if name.is_empty() { buffer.to_string() } else { name.clone() }
}

/// True if the window is its whole buffer, axes in order.
pub fn is_whole(func: &Func, w: &Window) -> bool {
    w.covers_whole_buffer(func) && w.axes.iter().enumerate().all(|(i, a)| usize::from(a.axis) == i)
}

/// The layout for a parallel loop that one of its fragments suggests: the one that is written before those that are only
/// read, then the one with most elements. Also returns that fragment.
pub fn choose_loop_dist(
    func: &Func,
    l: &ParallelLoop,
    known: &dyn Fn(Buffer) -> Option<Rc<Dist>>,
) -> Option<(Rc<Dist>, Buffer)> {
    let mut best: Option<((bool, usize), Rc<Dist>, Buffer)> = None;
    for access in &l.accesses {
        let Some(dist) = known(access.buffer) else { continue };
        let Some(loop_dist) = spread_over_loop(&l.extents, &access.forms, &dist) else { continue };
        let size = func.buffers[access.buffer].static_shape().map_or(0, |s| s.iter().product());
        let rank = (access.write, size);
        if best.as_ref().is_none_or(|(r, _, _)| *r < rank) {
            best = Some((rank, Rc::new(loop_dist), access.buffer));
        }
    }
    best.map(|(_, d, b)| (d, b))
}

/// The loop layout under which every thread meets its own elements of a fragment, if the loop runs over all axes of it
/// but those that it holds fixed and no threads share.
fn spread_over_loop(extents: &[usize], forms: &[Form], dist: &Dist) -> Option<Dist> {
    if forms.is_empty() {
        return None;
    }
    let fixed = |axis: &usize| matches!(forms[*axis], Form::Const(_));
    let dropped: Vec<usize> = (0..forms.len()).filter(fixed).collect();
    if !dropped.is_empty() {
        if dropped.len() == forms.len() || dropped.iter().any(|&a| !dist.threads[a].is_empty()) {
            return None;
        }
        let layout = dropped.iter().rev().try_fold(dist.layout.clone(), |l, &a| l.drop_dim(a).ok())?;
        let rest: Vec<Form> = forms.iter().copied().filter(|f| !matches!(f, Form::Const(_))).collect();
        return spread_over_loop(extents, &rest, &Dist::new(layout));
    }
    // An index that can only be 0 stands nowhere.
    let named = |d: usize| forms.iter().any(|f| matches!(*f, Form::Loop { dim, .. } if dim == d));
    if let Some(d) = (0..extents.len()).find(|&d| extents[d] == 1 && !named(d)) {
        let rest: Vec<usize> = extents.iter().enumerate().filter(|(i, _)| *i != d).map(|(_, &e)| e).collect();
        let below = |form: &Form| match *form {
            Form::Loop { dim, off } if dim > d => Form::Loop { dim: dim - 1, off },
            Form::Loop { .. } | Form::Const(_) | Form::Other => *form,
        };
        let forms: Vec<Form> = forms.iter().map(below).collect();
        let layout = spread_over_loop(&rest, &forms, dist)?.layout.insert_dim(d, 1).ok()?;
        return Some(Dist::new(layout));
    }
    if forms.len() != extents.len() {
        return None;
    }
    let mut order = vec![usize::MAX; extents.len()];
    for (axis, form) in forms.iter().enumerate() {
        let Form::Loop { dim, off: 0 } = *form else { return None };
        if order[dim] != usize::MAX || dist.shape()[axis] < extents[dim] {
            return None;
        }
        order[dim] = axis;
    }
    let in_order = order.iter().enumerate().all(|(d, &a)| d == a);
    if in_order && dist.shape() == extents {
        return Some(dist.clone());
    }
    let layout = dist.layout.permute(&order).ok()?;
    zellige_ir::layout::FragmentLayout::new(extents, layout.map().clone()).ok().map(Dist::new)
}

/// The part of a loop's layout that a fragment indexed by some of the loop's indices has. Threads hold all of an axis
/// that the loop holds fixed.
fn slice_loop(shape: &[usize], extents: &[usize], forms: &[Form], dist: &Dist) -> Option<Dist> {
    let mut dims = Vec::new();
    let mut fixed = Vec::new();
    for (axis, form) in forms.iter().enumerate() {
        let dim = match *form {
            Form::Loop { dim, off: 0 } => dim,
            Form::Const(_) => {
                fixed.push(axis);
                continue;
            }
            Form::Loop { .. } | Form::Other => return None,
        };
        if dims.contains(&dim) || extents[dim] != shape[axis] {
            return None;
        }
        dims.push(dim);
    }
    let mut layout = dist.layout.clone();
    let mut kept: Vec<usize> = (0..extents.len()).collect();
    for dim in (0..extents.len()).rev() {
        if !dims.contains(&dim) {
            layout = layout.drop_dim(dim).ok()?;
            kept.remove(dim);
        }
    }
    let order: Vec<usize> = dims.iter().map(|d| kept.iter().position(|k| k == d)).collect::<Option<_>>()?;
    if !order.iter().copied().eq(0..order.len()) {
        layout = layout.permute(&order).ok()?;
    }
    for axis in fixed {
        layout = layout.insert_dim(axis, shape[axis]).ok()?;
    }
    Some(Dist::new(layout))
}

/// Elements that a thread should handle side by side in a loop over memory: 16 bytes of the narrowest element that is
/// accessed contiguously, less if threads would idle.
pub fn loop_vector(func: &Func, extents: &[usize], accesses: &[Access]) -> usize {
    let in_memory = |b: Buffer| matches!(func.buffers[b].scope, Scope::Global | Scope::Shared);
    let bits = accesses
        .iter()
        .filter(|a| a.contiguous && (in_memory(a.buffer) || func.buffers[a.buffer].scope == Scope::Fragment))
        .map(|a| func.buffers[a.buffer].dtype.bits())
        .min();
    let Some(bits) = bits else { return 1 };
    let total: usize = extents.iter().product();
    let mut vector = 128 / bits;
    while vector > 1 && total / vector < func.threads {
        vector /= 2;
    }
    vector.max(if bits < 8 { 2 } else { 1 })
}

/// Shared tiles that matrix loads read, or that fragments of products are copied from, get the widest swizzle that fits
/// their rows; those that tf32 products read in runs get rows that start in other banks. Annotations come first.
fn shared_forms(func: &Func, target: Target, explain: &mut Vec<String>) -> Vec<SharedForm> {
    let mut forms = vec![SharedForm::RowMajor; func.buffers.len()];
    let mut annotated = vec![false; func.buffers.len()];
    func.walk(func.body, &mut |_, data| {
        let OpKind::Layout { buffer, hint } = &data.kind else { return };
        annotated[buffer.index()] = true;
        forms[buffer.index()] = match hint {
            LayoutHint::RowMajor => SharedForm::RowMajor,
            LayoutHint::Pad(n) => SharedForm::Padded(*n as usize),
            LayoutHint::Swizzle(bytes) => match row_swizzle(func, *buffer, *bytes as usize) {
                Some(s) => SharedForm::Swizzled(s),
                None => {
                    explain.push(format!(
                        "layout: the {bytes}-byte swizzle at {} does not fit the rows of {}; rows stay in order",
                        data.span,
                        buffer_name(func, *buffer)
                    ));
                    SharedForm::RowMajor
                }
            },
        };
    });
    let mut operands = Vec::new();
    func.walk(func.body, &mut |_, data| {
        let OpKind::Gemm { a, b, acc, precision } = &data.kind else { return };
        let run = match plan::plan(func, target, a, b, acc, *precision) {
            GemmPlan::Mma(mma) => mma.run,
            GemmPlan::Fma => 1,
        };
        for (w, k) in [(a, 1), (b, 0)] {
            let i = w.buffer.index();
            operands.push(w.buffer);
            if func.buffers[w.buffer].scope != Scope::Shared || annotated[i] || forms[i] != SharedForm::RowMajor {
                continue;
            }
            let name = buffer_name(func, w.buffer);
            if let Some(n) = run_padding(func, w, k, run) {
                forms[i] = SharedForm::Padded(n);
                explain.push(format!(
                    "layout: rows of {name} have {n} unused elements after them for the gemm at {}",
                    data.span
                ));
            } else if let Some(s) = row_swizzle(func, w.buffer, 128) {
                forms[i] = SharedForm::Swizzled(s);
                explain.push(format!(
                    "layout: rows of {name} are swizzled in atoms of {} bytes for the gemm at {}",
                    s.atom_bytes(),
                    data.span
                ));
            }
        }
    });
    func.walk(func.body, &mut |_, data| {
        let OpKind::Copy { src, dst, .. } = &data.kind else { return };
        let i = src.buffer.index();
        let from = &func.buffers[src.buffer];
        let into_operand = operands.contains(&dst.buffer) && func.buffers[dst.buffer].scope == Scope::Fragment;
        if from.scope != Scope::Shared || !into_operand || annotated[i] || forms[i] != SharedForm::RowMajor {
            return;
        }
        if let Some(s) = row_swizzle(func, src.buffer, 128) {
            forms[i] = SharedForm::Swizzled(s);
            explain.push(format!(
                "layout: rows of {} are swizzled in atoms of {} bytes for the copy at {}",
                buffer_name(func, src.buffer),
                s.atom_bytes(),
                data.span
            ));
        }
    });
    forms
}

/// Unused elements after the rows of an f32 operand that is read in runs along them, so that the lanes of one access meet
/// different banks: four lanes cover `4 run` elements of a row, and an access takes 16 bytes of as many rows as make up 128
/// bytes. `None` for other operands.
fn run_padding(func: &Func, w: &Window, k: usize, run: usize) -> Option<usize> {
    let data = &func.buffers[w.buffer];
    let last = data.rank().checked_sub(1)?;
    if run == 1 || data.dtype.bits() != 32 || usize::from(w.axes[k].axis) != last {
        return None;
    }
    let row = data.static_shape()?[last];
    // In banks of 4 bytes: rows that one phase of an access reads must be so far apart, modulo so many.
    let (apart, modulo) = match run {
        2 => (8, 16),
        4 => (16, 32),
        _ => (4, 8),
    };
    Some((apart + modulo - row % modulo) % modulo)
}

/// The widest swizzle of at most `limit` bytes that divides a buffer's rows.
fn row_swizzle(func: &Func, buffer: Buffer, limit: usize) -> Option<Swizzle> {
    let data = &func.buffers[buffer];
    let shape = data.static_shape()?;
    let bits = data.dtype.bits();
    if shape.len() < 2 || bits < 8 {
        return None;
    }
    let row = shape[shape.len() - 1] * bits / 8;
    [Swizzle::B128, Swizzle::B64, Swizzle::B32]
        .into_iter()
        .find(|s| s.atom_bytes() <= limit && row.is_multiple_of(s.atom_bytes()))
}
