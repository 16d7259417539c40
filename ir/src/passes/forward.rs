//! Forwarding: element-wise loops read and write tensors themselves instead of tiles that are only copied in or out.
//!
//! Input and output: any verified function.
//! - A tile that one copy fills from a tensor which is only read, and that parallel loops over its shape then read element
//!   by element, is not needed: the loops load from the tensor.
//! - A tile whose elements a parallel loop over its shape stores, and that is then copied to a tensor and not used again,
//!   is not needed for that: the loop stores to the tensor.
//!
//! Outside a tensor a copy gives its padding and a load gives zero, so only copies that pad with zero go.
//!
//! ```text
//! copy x[%0 : 64] -> $0                       for parallel (%1) in (64) {
//! for parallel (%1) in (64) {                   %2: index = add %0, %1
//!   %2: f32 = load $0[%1]                       %3: f32 = load x[%2]
//!   %3: f32 = mul %2, %2              ->        %4: f32 = mul %3, %3
//!   store %3 -> $0[%1]                          %5: index = add %0, %1
//! }                                             store %4 -> y[%5]
//! copy $0 -> y[%0 : 64]                       }
//! ```
//!
//! Not part of [`PIPELINE`](super::pipeline::PIPELINE): it is for machines whose tiles are memory like any other. Where
//! tiles lie in registers or nearer memory, the copies are the point.

use super::PassStats;
use crate::DType;
use crate::func::{Access, Buffer, Func, Op, Param, Region, Scope, Value};
use crate::op::{BinaryOp, Def, LoopKind, OpKind, Visit};
use crate::window::Window;
use std::collections::HashMap;

/// Loads of one element that are still cheaper than a copy of it.
const MAX_LOADS: usize = 2;

/// Runs the pass.
pub fn run(func: &mut Func) -> PassStats {
    let mut stats = PassStats::default();
    let mut regions = vec![func.body];
    func.walk(func.body, &mut |_, data| data.kind.for_each_region(&mut |r| regions.push(r)));
    for region in regions {
        // Stores first: a tile that is worked on in place is then only read.
        while let Some(plan) = find(func, region, store_plan) {
            redirect_store(func, region, &plan);
            stats.note("forward-store");
        }
        while let Some(plan) = find(func, region, load_plan) {
            redirect_loads(func, region, &plan);
            stats.note("forward-load");
        }
    }
    stats
}

/// A copy that can go.
struct Plan {
    /// Position of the copy in its region.
    copy: usize,
    tile: Buffer,
    /// The part of the tensor that the tile stands for.
    window: Window,
    /// The loops that get the accesses.
    loops: Vec<Op>,
}

/// What a search looks at.
struct Place<'f> {
    func: &'f Func,
    region: Region,
    ops: &'f [Op],
    /// Ops that use each buffer, in the whole function.
    uses: HashMap<Buffer, usize>,
}

fn find(func: &Func, region: Region, plan: fn(&Place<'_>, usize, Op) -> Option<Plan>) -> Option<Plan> {
    let ops = &func.regions[region].ops;
    if !ops.iter().any(|&op| matches!(func.ops[op].kind, OpKind::Copy { .. })) {
        return None;
    }
    let mut uses = HashMap::new();
    func.walk(func.body, &mut |_, data| {
        each_use(&data.kind, &mut |b| *uses.entry(b).or_default() += 1);
    });
    let place = Place { func, region, ops, uses };
    ops.iter().enumerate().find_map(|(at, &op)| plan(&place, at, op))
}

/// Calls `f` for each buffer whose elements an op may touch, once.
fn each_use(kind: &OpKind, f: &mut dyn FnMut(Buffer)) {
    if matches!(kind, OpKind::Alloc { .. } | OpKind::Layout { .. }) {
        return;
    }
    let mut seen: Vec<Buffer> = Vec::new();
    kind.for_each_buffer(&mut |b| {
        if !seen.contains(&b) {
            seen.push(b);
            f(b);
        }
    });
}

impl Place<'_> {
    /// Ops in and under `op` that use a buffer.
    fn uses_in(&self, op: Op, buffer: Buffer) -> usize {
        let mut n = 0;
        let mut count = |kind: &OpKind| each_use(kind, &mut |b| n += usize::from(b == buffer));
        let kind = &self.func.ops[op].kind;
        count(kind);
        kind.for_each_region(&mut |r| self.func.walk(r, &mut |_, data| count(&data.kind)));
        n
    }

    /// Positions of the ops of the region that use a buffer; `None` if something outside the region does.
    fn positions(&self, buffer: Buffer) -> Option<Vec<usize>> {
        let counts: Vec<usize> = self.ops.iter().map(|&op| self.uses_in(op, buffer)).collect();
        (counts.iter().sum::<usize>() == self.uses[&buffer])
            .then(|| (0..counts.len()).filter(|&i| counts[i] > 0).collect())
    }

    fn is_tensor(&self, buffer: Buffer) -> bool {
        self.func.buffers[buffer].scope == Scope::Global
    }

    fn is_only_read(&self, buffer: Buffer) -> bool {
        let read = |p: &Param| matches!(p, Param::Tensor { buffer: b, access: Access::Read } if *b == buffer);
        self.func.params.iter().any(read)
    }

    /// Is the window the whole tile, axes in their order?
    fn is_whole(&self, w: &Window) -> bool {
        let shape = self.func.buffers[w.buffer].static_shape().unwrap_or_default();
        w.rank() == shape.len()
            && w.offsets.iter().all(|&v| self.func.as_index(v) == Some(0))
            && w.axes.iter().zip(&shape).enumerate().all(|(i, (a, &n))| usize::from(a.axis) == i && a.extent == n)
    }

    /// The indices and body of a parallel loop over the tile's shape.
    fn loop_over(&self, op: Op, tile: Buffer) -> Option<(&[Def], Region)> {
        let OpKind::For { kind: LoopKind::Parallel | LoopKind::Vectorized, indices, extents, body } =
            &self.func.ops[op].kind
        else {
            return None;
        };
        let shape = self.func.buffers[tile].static_shape()?;
        let fits = extents.len() == shape.len()
            && extents.iter().zip(&shape).all(|(&e, &n)| self.func.as_index(e) == Some(n as i64));
        fits.then_some((indices, *body))
    }

    /// Are `indices` those of the loop? The only index of an axis may be written as 0.
    fn is_own_element(&self, indices: &[Value], ivs: &[Def], tile: Buffer) -> bool {
        let shape = self.func.buffers[tile].static_shape().unwrap_or_default();
        indices.len() == ivs.len()
            && indices
                .iter()
                .zip(ivs)
                .zip(&shape)
                .all(|((&v, iv), &n)| v == iv.0 || n == 1 && self.func.as_index(v) == Some(0))
    }
}

fn load_plan(place: &Place<'_>, at: usize, op: Op) -> Option<Plan> {
    let OpKind::Copy { src, dst, pad } = &place.func.ops[op].kind else { return None };
    let tile = dst.buffer;
    if !place.is_only_read(src.buffer) || place.is_tensor(tile) || !place.is_whole(dst) || pad.bits() != 0 {
        return None;
    }
    let (from, to) = (place.func.buffers[src.buffer].dtype, place.func.buffers[tile].dtype);
    let mut loads = 0;
    let mut loops = Vec::new();
    for i in place.positions(tile)?.into_iter().filter(|i| *i != at) {
        let (ivs, body) = place.loop_over(place.ops[i], tile).filter(|_| i > at)?;
        let here = own_accesses(place, body, ivs, tile, |kind| matches!(kind, OpKind::Load { .. }));
        if here != place.uses_in(place.ops[i], tile) {
            return None;
        }
        loads += here;
        loops.push(place.ops[i]);
    }
    // Conversions from the narrow floats are long.
    let worth = if from != to && from.bits() <= 8 { 1 } else { MAX_LOADS };
    (loads <= worth).then(|| Plan { copy: at, tile, window: src.clone(), loops })
}

/// Ops of a loop's body, not of what is nested in it, that access the iteration's own element in the given way.
fn own_accesses(place: &Place<'_>, body: Region, ivs: &[Def], tile: Buffer, is_meant: fn(&OpKind) -> bool) -> usize {
    let ops = place.func.regions[body].ops.iter().map(|&op| &place.func.ops[op].kind);
    ops.filter(|kind| match kind {
        OpKind::Load { buffer, indices, .. } | OpKind::Store { buffer, indices, .. } => {
            *buffer == tile && is_meant(kind) && place.is_own_element(indices, ivs, tile)
        }
        _ => false,
    })
    .count()
}

fn store_plan(place: &Place<'_>, at: usize, op: Op) -> Option<Plan> {
    let OpKind::Copy { src, dst, .. } = &place.func.ops[op].kind else { return None };
    let (tile, tensor) = (src.buffer, dst.buffer);
    if !place.is_tensor(tensor) || place.is_tensor(tile) || !place.is_whole(src) {
        return None;
    }
    let positions = place.positions(tile)?;
    let [before @ .., last] = &positions[..] else { return None };
    let the_loop = *before.last().filter(|_| *last == at)?;
    // What the loop stores must not be seen again when the region runs again.
    let first = &place.func.ops[place.ops[positions[0]]].kind;
    let renewed = matches!(first, OpKind::Copy { dst, .. } if dst.buffer == tile && place.is_whole(dst));
    let is_alloc = |&op: &Op| matches!(place.func.ops[op].kind, OpKind::Alloc { buffer } if buffer == tile);
    if !renewed && place.region != place.func.body && !place.ops.iter().any(is_alloc) {
        return None;
    }
    let (ivs, body) = place.loop_over(place.ops[the_loop], tile)?;
    let loads = own_accesses(place, body, ivs, tile, |kind| matches!(kind, OpKind::Load { .. }));
    let stores = own_accesses(place, body, ivs, tile, |kind| matches!(kind, OpKind::Store { .. }));
    if stores != 1 || loads + stores != place.uses_in(place.ops[the_loop], tile) {
        return None;
    }
    // The store comes last.
    let touches = |&&op: &&Op| place.uses_in(op, tile) > 0;
    let last_access = place.func.regions[body].ops.iter().rev().find(touches)?;
    if !matches!(place.func.ops[*last_access].kind, OpKind::Store { .. }) {
        return None;
    }
    // Nothing sees the tensor before the copy would have written it.
    if place.ops[the_loop..at].iter().any(|&op| place.uses_in(op, tensor) > 0) {
        return None;
    }
    // The window's offsets are at hand in the loop.
    let defined_between = |v: &Value| {
        place.ops[the_loop..at].iter().any(|&op| {
            let mut found = false;
            place.func.ops[op].kind.for_each_def(&mut |d| found |= d == *v);
            found
        })
    };
    if dst.offsets.iter().any(defined_between) {
        return None;
    }
    Some(Plan { copy: at, tile, window: dst.clone(), loops: vec![place.ops[the_loop]] })
}

/// The index in the tensor of the loop's own element, computed at the end of a region.
fn tensor_index(func: &mut Func, region: Region, ivs: &[Value], window: &Window, at: Op) -> Vec<Value> {
    let span = func.ops[at].span.clone();
    let mut indices: Vec<Value> = window.offsets.to_vec();
    for (axis, &iv) in window.axes.iter().zip(ivs) {
        let a = usize::from(axis.axis);
        if func.as_index(indices[a]) == Some(0) {
            indices[a] = iv;
            continue;
        }
        let out = func.add_value(DType::Index);
        let kind = OpKind::Binary { out: Def(out), op: BinaryOp::Add, x: indices[a], y: iv };
        func.append(region, kind, span.clone());
        indices[a] = out;
    }
    indices
}

fn parts(func: &Func, op: Op) -> Option<(Vec<Value>, Region)> {
    match &func.ops[op].kind {
        OpKind::For { indices, body, .. } => Some((indices.iter().map(|d| d.0).collect(), *body)),
        _ => None,
    }
}

fn redirect_loads(func: &mut Func, region: Region, plan: &Plan) {
    let (tensor, from, to) =
        (plan.window.buffer, func.buffers[plan.window.buffer].dtype, func.buffers[plan.tile].dtype);
    for (ivs, body) in plan.loops.iter().filter_map(|&op| parts(func, op)).collect::<Vec<_>>() {
        for op in std::mem::take(&mut func.regions[body].ops) {
            if let OpKind::Load { out, buffer, .. } = func.ops[op].kind
                && buffer == plan.tile
            {
                let indices = tensor_index(func, body, &ivs, &plan.window, op).into_iter().collect();
                if from == to {
                    func.ops[op].kind = OpKind::Load { out, buffer: tensor, indices };
                } else {
                    let raw = func.add_value(from);
                    let span = func.ops[op].span.clone();
                    func.append(body, OpKind::Load { out: Def(raw), buffer: tensor, indices }, span);
                    func.ops[op].kind = OpKind::Cast { out, x: raw };
                }
            }
            func.regions[body].ops.push(op);
        }
    }
    func.regions[region].ops.remove(plan.copy);
}

fn redirect_store(func: &mut Func, region: Region, plan: &Plan) {
    let (tensor, from, to) =
        (plan.window.buffer, func.buffers[plan.tile].dtype, func.buffers[plan.window.buffer].dtype);
    for (ivs, body) in plan.loops.iter().filter_map(|&op| parts(func, op)).collect::<Vec<_>>() {
        for op in std::mem::take(&mut func.regions[body].ops) {
            if let OpKind::Store { buffer, value, .. } = func.ops[op].kind
                && buffer == plan.tile
            {
                let indices = tensor_index(func, body, &ivs, &plan.window, op).into_iter().collect();
                let mut stored = value;
                if from != to {
                    stored = func.add_value(to);
                    let span = func.ops[op].span.clone();
                    func.append(body, OpKind::Cast { out: Def(stored), x: value }, span);
                }
                func.ops[op].kind = OpKind::Store { buffer: tensor, indices, value: stored };
            }
            func.regions[body].ops.push(op);
        }
    }
    func.regions[region].ops.remove(plan.copy);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::{Arg, Interpreter, TensorArg};
    use crate::{Const, Extent, FuncBuilder, Span, verify};

    /// `y = f(x)` over 10 elements in tiles of 4, through a tile of `ty` that is worked on in place; with `again`, it is read
    /// once more afterwards.
    fn in_place(ty: DType, again: bool) -> Func {
        let mut b = FuncBuilder::new("in_place", Span::unknown());
        let x = b.tensor("x", DType::BF16, vec![Extent::Static(10)], Access::Read);
        let y = b.tensor("y", DType::BF16, vec![Extent::Static(10)], Access::Write);
        let z = b.tensor("z", ty, vec![Extent::Static(12)], Access::Write);
        let (blocks, four) = (b.index(3), b.index(4));
        let ids = b.grid(&[blocks], 32);
        let at = b.mul(ids[0], four);
        let tile = b.alloc(Scope::Fragment, ty, &[4]);
        let (src, whole) = (b.window(x, &[at], &[4]), b.whole(tile));
        b.copy(src, whole.clone());
        let i = b.begin_for(LoopKind::Parallel, &[four])[0];
        let v = b.load(tile, &[i]);
        let v = b.mul(v, v);
        b.store(tile, &[i], v);
        b.close();
        let out = b.window(y, &[at], &[4]);
        b.copy(whole.clone(), out);
        if again {
            let out = b.window(z, &[at], &[4]);
            b.copy(whole, out);
        }
        b.finish()
    }

    fn results(func: &Func, ty: DType) -> Vec<Vec<Const>> {
        let x: Vec<f64> = (0..10).map(f64::from).collect();
        let mut args = vec![
            Arg::Tensor(TensorArg::from_f64(DType::BF16, &[10], &x)),
            Arg::Tensor(TensorArg::zeros(DType::BF16, &[10])),
            Arg::Tensor(TensorArg::zeros(ty, &[12])),
        ];
        Interpreter::new(func).run(&mut args).expect("the function runs");
        args.iter().filter_map(Arg::as_tensor).map(TensorArg::elements).collect()
    }

    #[test]
    fn a_tile_worked_on_in_place_is_not_needed() {
        for ty in [DType::BF16, DType::F32] {
            let func = in_place(ty, false);
            let mut after = func.clone();
            let stats = run(&mut after);
            assert_eq!((stats.count("forward-store"), stats.count("forward-load")), (1, 1));
            assert_eq!(verify(&after), Ok(()), "{}", after.canonical_text());
            let text = after.canonical_text();
            assert!(!text.contains("copy") && !text.contains("$0["), "{text}");
            assert_eq!(results(&func, ty), results(&after, ty));
        }
    }

    #[test]
    fn a_tile_that_is_used_again_stays() {
        let mut func = in_place(DType::F32, true);
        let text = func.canonical_text();
        assert_eq!(run(&mut func).total(), 0);
        assert_eq!(func.canonical_text(), text);
    }
}
