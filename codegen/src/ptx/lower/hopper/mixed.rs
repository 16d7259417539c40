//! Plans for loops that work on their products between them, as attention does: products of shared tiles into fragments,
//! anything on those fragments, products whose first operand is one of them.
//!
//! Tiles of the same products share a ring, others have rings of their own, so that a tile goes back when its own products are
//! done. Operands that the loop never changes are filled once before it; others the loop itself fills (`made.rs`). If the last op of
//! an iteration is a product from tiles of its own, it is started during the next iteration instead, after that one's first products:
//! the work between products then runs beside it. If its tiles have other readers, and all warpgroups meet in every iteration, it is
//! started where it stands but waited for only when the next iteration's first product is under way: the units stay busy meanwhile.

use super::super::infer::is_whole;
use super::plan::{
    Finder, HopperPlan, Load, MAX_ACCUMULATORS, Mixed, Product, Refusal, Ring, RingKind, Split, Store, WARPGROUP,
    has_gemm, refuse, staging_limit,
};
use crate::ptx::target::Target;
use zellige_ir::{Buffer, Effect, Func, LoopKind, Op, OpKind, Region, Scope, Visit};

/// A loop with products, and the regions it stands in, outermost first.
pub(super) struct Found {
    pub op: Op,
    pub stages: usize,
    pub body: Region,
    pub path: Vec<Region>,
}

/// Finds the plan of a function whose only loop with products does more than multiply.
pub(super) fn plan(func: &Func, target: Target) -> Result<HopperPlan, Refusal> {
    let found = find(func);
    let mut all = 0;
    func.walk(func.body, &mut |_, d| all += usize::from(matches!(d.kind, OpKind::Gemm { .. })));
    let [Found { op: loop_op, stages, body: region, path }] = &found[..] else { return Err(None) };
    let inside =
        func.regions[*region].ops.iter().filter(|&&op| matches!(func.ops[op].kind, OpKind::Gemm { .. })).count();
    if inside != all {
        return refuse("there are products outside of its pipelined loop, or in loops and conditionals inside of it");
    }
    if !func.threads.is_multiple_of(WARPGROUP) || func.threads > 3 * WARPGROUP {
        return refuse(format!("its {} threads are not 1 to 3 warpgroups", func.threads));
    }
    let consumers = func.threads / WARPGROUP;
    let finder = Finder { func, loop_op: *loop_op, region: *region, path: path.clone(), consumers };
    finder.is_reached()?;
    let mut rings = Vec::new();
    let mut loads = finder.all_loads(*stages, &mut rings)?;
    finder.all_made(&mut loads, &mut rings)?;
    let products = finder.all_products(&loads)?;
    finder.check_work(&loads)?;
    merge_rings(&mut loads, &mut rings, &products);
    let need: usize = loads.iter().map(|l| l.slot_bytes() * rings[l.ring].stages).sum();
    let have = target.arch.max_shared_bytes() as usize - 1024;
    if need > have {
        return refuse(format!("its tiles need {need} bytes of shared memory in {stages} stages, there are {have}"));
    }
    let mut plan = HopperPlan {
        loop_op: *loop_op,
        stages: *stages,
        consumers,
        teams: 1,
        no_teams: func.ping_pong.then(|| "its loop works between products".to_owned()),
        cluster: [1, 1],
        loads,
        products,
        stores: Vec::new(),
        rings,
        mixed: None,
        runs: None,
    };
    if need + staging_limit(consumers) <= have {
        finder.all_stores(finder.home(), None, &plan.products, &mut plan.stores);
    }
    let carried = finder.carried(&plan);
    // Blocks that are equally long need no counter, and can share their tiles. Where a product is left to the next iteration
    // the work between products is long: neighbours would wait for each other.
    let dealt = carried.is_some() || finder.length_varies();
    if !dealt {
        plan.cluster = finder.share(&mut plan.loads, &plan.products, &plan.stores);
    }
    let lasting = if carried.is_none() { finder.lasting(&plan) } else { None };
    plan.mixed = Some(Mixed { carried, lasting, dealt });
    Ok(plan)
}

/// Gives tiles that the same products read one ring.
fn merge_rings(loads: &mut [Load], rings: &mut Vec<Ring>, products: &[Product]) {
    let readers = |load: usize| -> Vec<usize> {
        (0..products.len()).filter(|&p| products[p].loads().any(|l| l == load)).collect()
    };
    let separate = std::mem::take(rings);
    let mut merged: Vec<(RingKind, Vec<usize>)> = Vec::new();
    for load in 0..loads.len() {
        let ring = separate[loads[load].ring];
        let key = (ring.kind, readers(load));
        loads[load].ring = merged.iter().position(|k| *k == key).unwrap_or_else(|| {
            merged.push(key);
            rings.push(ring);
            rings.len() - 1
        });
    }
}

/// The pipelined loops with products that stand in nothing but conditionals.
pub(super) fn find(func: &Func) -> Vec<Found> {
    let mut found = Vec::new();
    collect(func, &mut vec![func.body], &mut found);
    found
}

fn collect(func: &Func, path: &mut Vec<Region>, found: &mut Vec<Found>) {
    let Some(&here) = path.last() else { return };
    for &op in &func.regions[here].ops {
        match &func.ops[op].kind {
            OpKind::For { kind: LoopKind::Pipelined { stages }, body, .. } if has_gemm(func, *body) => {
                found.push(Found { op, stages: *stages as usize, body: *body, path: path.clone() });
            }
            OpKind::If { then_body, .. } => {
                path.push(*then_body);
                collect(func, path, found);
                path.pop();
            }
            _ => {}
        }
    }
}

impl Finder<'_> {
    /// The loads of the loop, each with a ring, and those that its products need from before it.
    fn all_loads(&self, stages: usize, rings: &mut Vec<Ring>) -> Result<Vec<Load>, Refusal> {
        let func = self.func;
        let mut loads: Vec<Load> = Vec::new();
        let mut add = |op: Op, once: bool| -> Result<(), Refusal> {
            let OpKind::Copy { src, dst, pad } = &func.ops[op].kind else { return Ok(()) };
            let at = &func.ops[op].span;
            let load = self.load(op, src, dst).map_err(|why| Some(format!("the copy at {at}: {why}")))?;
            // Work between products would find the tile as the tensor has it.
            if load.turned {
                return refuse(format!("the copy at {at} turns its tile"));
            }
            if pad.bits() != 0 {
                return refuse(format!("the copy at {at}: it pads with something else than zero"));
            }
            if loads.iter().any(|l| l.buffer == load.buffer) {
                return refuse(format!("the copy at {at} is not the only one into its tile"));
            }
            loads.push(Load { ring: rings.len(), ..load });
            rings.push(match once {
                true => Ring { stages: 1, kind: RingKind::Once },
                false => Ring { stages, kind: RingKind::Streamed },
            });
            Ok(())
        };
        let mut operands: Vec<Buffer> = Vec::new();
        for &op in &func.regions[self.region].ops {
            match &func.ops[op].kind {
                OpKind::Copy { src, dst, .. }
                    if func.buffers[dst.buffer].scope == Scope::Shared
                        && func.buffers[src.buffer].scope == Scope::Global =>
                {
                    add(op, false)?;
                }
                OpKind::Gemm { a, b, .. } => operands.extend([a.buffer, b.buffer]),
                _ => {}
            }
        }
        // Tiles filled before the loop, in the regions around it.
        for &region in &self.path {
            for &op in func.regions[region].ops.iter().take_while(|&&op| op != self.loop_op) {
                if let OpKind::Copy { dst, .. } = &func.ops[op].kind
                    && func.buffers[dst.buffer].scope == Scope::Shared
                    && operands.contains(&dst.buffer)
                {
                    if region != self.home() {
                        return refuse("a tile of its products is filled outside of a conditional that it stands in");
                    }
                    add(op, true)?;
                }
            }
        }
        for load in &loads {
            let own = usize::from(rings[load.ring].kind == RingKind::Once);
            if self.uses_outside(load.buffer) != own {
                return refuse("a shared tile of the loop is used outside of it");
            }
        }
        Ok(loads)
    }

    fn all_products(&self, loads: &[Load]) -> Result<Vec<Product>, Refusal> {
        let func = self.func;
        let mut products: Vec<Product> = Vec::new();
        for &op in &func.regions[self.region].ops {
            let OpKind::Gemm { a, b, acc, .. } = &func.ops[op].kind else { continue };
            let at = &func.ops[op].span;
            let mut product = self
                .product(op, [a, b, acc], loads, Split::Rows)
                .map_err(|why| Some(format!("the gemm at {at}: {why}")))?;
            product.clear = product.clear.filter(|_| self.starts_anew(product.acc));
            if product.ty.bits() == 8 && product.clear.is_none() {
                let ty = product.ty;
                return refuse(format!("the gemm at {at}: its accumulator takes products of {ty} from all iterations"));
            }
            let mut others = products.iter().filter(|p| p.acc == product.acc).peekable();
            let shared = others.peek().is_some();
            if shared && others.chain([&product]).any(|p| p.clear.is_none()) {
                return refuse(format!("the gemm at {at} adds to an accumulator that another one uses"));
            }
            products.push(product);
        }
        let operand_of_two = |p: &Product| {
            p.operand_fragment().is_some_and(|(buffer, _)| {
                products.iter().filter(|q| q.operand_fragment().is_some_and(|(b, _)| b == buffer)).count() > 1
            })
        };
        if products.iter().any(operand_of_two) {
            return refuse("a fragment is the first operand of two products");
        }
        let first = |i: usize| products[..i].iter().all(|p| p.acc != products[i].acc);
        let registers: usize = (0..products.len()).filter(|&i| first(i)).map(|i| products[i].registers()).sum();
        if registers > MAX_ACCUMULATORS[self.consumers] {
            return refuse(format!("its accumulators and operands take {registers} registers a thread"));
        }
        Ok(products)
    }

    /// True if no iteration sees what an earlier one left in an accumulator, nor does what follows the loop.
    fn starts_anew(&self, acc: Buffer) -> bool {
        let func = self.func;
        let first = func.regions[self.region].ops.iter().find(|&&op| {
            let mut touched = false;
            let kind = &func.ops[op].kind;
            kind.for_each_buffer(&mut |b| touched |= b == acc);
            kind.for_each_region(&mut |r| {
                func.walk(r, &mut |_, d| d.kind.for_each_buffer(&mut |b| touched |= b == acc))
            });
            touched
        });
        let cleared = first.is_some_and(|&op| match &func.ops[op].kind {
            OpKind::Fill { dst, value } => is_whole(func, dst) && func.as_const(*value).is_some_and(|c| c.bits() == 0),
            _ => false,
        });
        cleared && self.uses_outside(acc) == 0
    }

    /// The work between products may touch fragments, tensors, and the tiles that the loop fills.
    fn check_work(&self, loads: &[Load]) -> Result<(), Refusal> {
        let func = self.func;
        for &op in &func.regions[self.region].ops {
            let (kind, at) = (&func.ops[op].kind, &func.ops[op].span);
            let copy = loads.iter().any(|l| l.op == op && l.made.is_none());
            if copy || kind.effect() == Effect::Pure || matches!(kind, OpKind::Gemm { .. }) {
                continue;
            }
            let mut wrong = None;
            let mut see = |kind: &OpKind| {
                if matches!(kind, OpKind::Role { .. } | OpKind::While { .. }) {
                    wrong = Some(format!("its loop contains `{}` at {at}", kind.name()));
                }
                kind.for_each_buffer(&mut |b| {
                    let tile = loads.iter().find(|l| l.buffer == b);
                    if func.buffers[b].scope == Scope::Shared && tile.is_none() {
                        wrong = Some(format!("`{}` at {at} works on a shared tile that no copy fills", kind.name()));
                    }
                });
            };
            see(kind);
            kind.for_each_region(&mut |r| func.walk(r, &mut |_, d| see(&d.kind)));
            if wrong.is_some() {
                return Err(wrong);
            }
        }
        Ok(())
    }

    /// Copies of whole accumulators to tensors after the loop that tensor copies can do: nothing else names their tensors but,
    /// maybe, the other arm of the conditional that they stand in.
    fn all_stores(&self, region: Region, conditional: Option<Op>, products: &[Product], stores: &mut Vec<Store>) {
        let func = self.func;
        let ops = &func.regions[region].ops;
        let after = ops.iter().position(|&op| op == self.loop_op).map_or(0, |at| at + 1);
        for &op in &ops[after..] {
            match &func.ops[op].kind {
                OpKind::Copy { src, dst, .. } => {
                    let own = products.iter().position(|p| p.acc == src.buffer);
                    let like = || products.iter().position(|p| self.lies_like(src.buffer, p));
                    let Some(product) = own.or_else(like) else { continue };
                    let inside = conditional.map_or(1, |c| {
                        let mut uses = 0;
                        func.ops[c].kind.for_each_region(&mut |r| uses += self.uses(r, dst.buffer));
                        uses
                    });
                    let apart = self.uses(region, dst.buffer) == 1 && self.uses(func.body, dst.buffer) == inside;
                    if is_whole(func, src) && apart {
                        stores.extend(self.store(op, src.buffer, product, &products[product], dst));
                    }
                }
                OpKind::If { then_body, else_body, .. } if conditional.is_none() => {
                    for arm in [*then_body, *else_body] {
                        self.all_stores(arm, Some(op), products, stores);
                    }
                }
                _ => {}
            }
        }
    }

    /// True for a fragment that the work between products combines with an accumulator of its shape element by element.
    fn lies_like(&self, fragment: Buffer, p: &Product) -> bool {
        let func = self.func;
        let (data, acc) = (&func.buffers[fragment], &func.buffers[p.acc]);
        let alike = data.scope == Scope::Fragment
            && data.dtype == acc.dtype
            && data.static_shape().is_some_and(|s| Some(s) == acc.static_shape());
        alike
            && func.regions[self.region].ops.iter().any(|&op| match &func.ops[op].kind {
                OpKind::For { kind: LoopKind::Parallel, body, .. } => {
                    self.uses(*body, fragment) > 0 && self.uses(*body, p.acc) > 0
                }
                _ => false,
            })
    }

    /// The product that ends an iteration, if the next one can begin while it runs: nothing else of the loop has to do with its
    /// accumulator, and its tiles come by tensor copies, into two slots or more. Only where the warpgroups meet in every iteration:
    /// others drift apart, and each multiplies while the other one works.
    fn lasting(&self, plan: &HopperPlan) -> Option<usize> {
        if plan.rings.iter().all(|r| r.kind != RingKind::Made) {
            return None;
        }
        let p = self.last(plan)?;
        let product = &plan.products[p];
        let streamed = product.loads().all(|l| {
            let ring = plan.rings[plan.loads[l].ring];
            ring.kind == RingKind::Streamed && ring.stages > 1
        });
        let alone = product.clear.is_none() && self.uses(self.region, product.acc) == 1;
        (streamed && alone && p > 0).then_some(p)
    }

    /// The product that is the last op of an iteration.
    fn last(&self, plan: &HopperPlan) -> Option<usize> {
        let func = self.func;
        let ops = &func.regions[self.region].ops;
        let last = ops.iter().rev().find(|&&op| func.ops[op].kind.effect() != Effect::Pure)?;
        plan.products.iter().position(|p| p.op == *last)
    }

    /// The product that may be left to the next iteration: the last op, into an accumulator of its own, from tiles of its own.
    fn carried(&self, plan: &HopperPlan) -> Option<usize> {
        let p = self.last(plan)?;
        let alone = plan.products[p].loads().all(|l| {
            let ring = plan.loads[l].ring;
            plan.rings[ring].kind == RingKind::Streamed
                && (0..plan.products.len()).all(|q| q == p || !plan.reads(q, ring))
        });
        let own = plan.products.iter().filter(|q| q.acc == plan.products[p].acc).count() == 1;
        (alone && own && plan.products.len() > 1).then_some(p)
    }
}
