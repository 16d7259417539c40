//! Which blocks work together: neighbours in the grid that want the same tiles form clusters, in which each block fetches a
//! part of a tile for all.

use super::super::facts::Facts;
use super::plan::{Finder, Load, Product, Store};
use zellige_ir::{OpKind, Scope, Value, ValueDef, Visit};

/// Blocks of a cluster. On an H200 four were no faster than two for 64 x 2112 x 7168 and 128 x 7168 x 2048, and slower wherever
/// the multiprocessors do not divide among such clusters.
const CLUSTER: usize = 2;

/// Rows of a tile from which on it is worth to pair blocks though one of the last pair may have nothing to do.
const TALL_TILE: usize = 128;

impl Finder<'_> {
    /// Finds the axis of the grid along which neighbours have most bytes of the loads in common and marks those loads. Returns
    /// the blocks of a cluster, and the axis.
    pub(super) fn share(&self, loads: &mut [Load], products: &[Product], stores: &[Store]) -> (usize, usize) {
        let func = self.func;
        let conditions = self.conditions();
        let OpKind::For { extents, .. } = &func.ops[self.loop_op].kind else { return (1, 0) };
        let facts = Facts::of(func);
        let tall = products.iter().all(|p| p.shape[0] >= TALL_TILE);
        let mut best: Option<(usize, usize)> = None;
        for (axis, (&id, &extent)) in func.block_ids.iter().zip(&func.grid).enumerate().take(2) {
            let divides = facts.known(func, extent).is_some_and(|n| n > 0 && n % CLUSTER as i64 == 0);
            // Otherwise the last block lies outside of the grid.
            let harmless = divides || (axis == 1 && tall && self.touches_only(loads, stores));
            // Otherwise one block might wait for a part that its neighbour never fetches.
            let alike = !extents.iter().chain(&conditions).any(|&v| self.depends(v, id));
            if !harmless || !alike {
                continue;
            }
            let bytes: usize = loads.iter().filter(|l| self.is_common(l, id)).map(Load::bytes).sum();
            if bytes > best.map_or(0, |(most, _)| most) {
                best = Some((bytes, axis));
            }
        }
        let Some((_, axis)) = best else { return (1, 0) };
        for l in loads.iter_mut().filter(|l| self.is_common(l, func.block_ids[axis])) {
            let OpKind::Copy { src, .. } = &func.ops[l.op].kind else { continue };
            l.shared = true;
            if !l.boxes().is_multiple_of(CLUSTER) {
                let rows = src.offsets.len() - 1 - usize::from(src.axes[0].axis);
                l.tile[rows] /= CLUSTER as u32;
            }
        }
        (CLUSTER, axis)
    }

    /// What the loop's running depends on.
    fn conditions(&self) -> Vec<Value> {
        let func = self.func;
        let outside = self.path.iter().flat_map(|&r| &func.regions[r].ops);
        outside
            .filter_map(|&op| match &func.ops[op].kind {
                OpKind::If { cond, then_body, else_body }
                    if self.path.contains(then_body) || self.path.contains(else_body) =>
                {
                    Some(*cond)
                }
                _ => None,
            })
            .collect()
    }

    /// True if the loop's length is not the same for all blocks.
    pub(super) fn length_varies(&self) -> bool {
        let OpKind::For { extents, .. } = &self.func.ops[self.loop_op].kind else { return true };
        self.func.block_ids.iter().any(|&id| extents.iter().any(|&e| self.depends(e, id)))
    }

    /// True if blocks that differ in `id` alone load the same tile, and it can be divided among them.
    fn is_common(&self, l: &Load, id: Value) -> bool {
        let OpKind::Copy { src, .. } = &self.func.ops[l.op].kind else { return false };
        let divides = l.boxes().is_multiple_of(CLUSTER) || l.rows.is_multiple_of(8 * CLUSTER);
        divides && !src.offsets.iter().any(|&v| self.depends(v, id))
    }

    /// True if the kernel touches tensors in nothing but these loads and stores, which leave out what lies outside.
    fn touches_only(&self, loads: &[Load], stores: &[Store]) -> bool {
        let func = self.func;
        let mut only = true;
        let outside = func.regions[func.body].ops.iter().filter(|&&op| op != self.loop_op);
        for &op in outside.chain(&func.regions[self.region].ops) {
            if loads.iter().any(|l| l.op == op) || stores.iter().any(|s| s.op == op) {
                continue;
            }
            let mut see = |kind: &OpKind| {
                only &= !matches!(kind, OpKind::Assert { .. } | OpKind::Print { .. });
                kind.for_each_buffer(&mut |b| only &= func.buffers[b].scope != Scope::Global);
            };
            see(&func.ops[op].kind);
            func.ops[op].kind.for_each_region(&mut |r| func.walk(r, &mut |_, d| see(&d.kind)));
        }
        only
    }

    fn depends(&self, v: Value, on: Value) -> bool {
        let func = self.func;
        if v == on {
            return true;
        }
        let ValueDef::Op(op) = func.values[v].def else { return false };
        let mut depends = false;
        if op != self.loop_op {
            func.ops[op].kind.for_each_use(&mut |u| depends = depends || self.depends(u, on));
        }
        depends
    }
}
