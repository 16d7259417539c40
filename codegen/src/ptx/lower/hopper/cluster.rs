//! Which blocks work together: neighbours in the grid that want the same tiles form clusters, in which each block fetches a
//! part of a tile for all.

use super::super::facts::Facts;
use super::plan::{Finder, Load, Product, Store};
use zellige_ir::hash::FastSet;
use zellige_ir::{OpKind, Scope, Value, ValueDef, Visit};

/// Blocks of a cluster unless the author asks for others. On an H200 four were no faster than two for 64 x 2112 x 7168 and
/// 128 x 7168 x 2048, and slower wherever the multiprocessors do not divide among such clusters.
const CLUSTER: usize = 2;

/// Most blocks that every device runs as a cluster.
pub(super) const MAX_CLUSTER: usize = 8;

/// Rows of a tile from which on it is worth to pair blocks though one of the last pair may have nothing to do.
const TALL_TILE: usize = 128;

impl Finder<'_> {
    /// Finds the axis of the grid along which neighbours have most bytes of the loads in common, or takes those that the author
    /// asks for, and marks the common loads. Returns the blocks of a cluster along the first two axes.
    pub(super) fn share(&self, loads: &mut [Load], products: &[Product], stores: &[Store]) -> [usize; 2] {
        let func = self.func;
        let mut cluster = [1, 1];
        if let Some(wanted) = func.clusters {
            let [x, y] = wanted.map(|n| n as usize);
            if x.checked_mul(y).is_some_and(|n| n <= MAX_CLUSTER) {
                for (axis, n) in [x, y].into_iter().enumerate().take(func.grid.len()) {
                    let harmless = self.divides(axis, n) || self.touches_only(loads, stores);
                    if n > 1 && harmless && self.same_loop(axis) && self.common_bytes(loads, axis, n) > 0 {
                        cluster[axis] = n;
                    }
                }
            }
        } else {
            let tall = products.iter().all(|p| p.shape[0] >= TALL_TILE);
            let mut most = 0;
            for axis in 0..func.grid.len().min(2) {
                // Otherwise the last block lies outside of the grid.
                let harmless = self.divides(axis, CLUSTER) || (axis == 1 && tall && self.touches_only(loads, stores));
                let bytes = self.common_bytes(loads, axis, CLUSTER);
                if harmless && self.same_loop(axis) && bytes > most {
                    most = bytes;
                    cluster = [1, 1];
                    cluster[axis] = CLUSTER;
                }
            }
        }
        for (axis, &n) in cluster.iter().enumerate().filter(|(_, n)| **n > 1) {
            for l in loads.iter_mut().filter(|l| l.shared.is_none() && self.is_common(l, func.block_ids[axis], n)) {
                let OpKind::Copy { src, .. } = &func.ops[l.op].kind else { continue };
                l.shared = Some(axis);
                if !l.boxes().is_multiple_of(n) {
                    let rows = src.offsets.len() - 1 - l.row_axis(src);
                    l.tile[rows] /= n as u32;
                }
            }
        }
        cluster
    }

    /// True if the loop's length is not the same for all blocks.
    pub(super) fn length_varies(&self) -> bool {
        let OpKind::For { extents, .. } = &self.func.ops[self.loop_op].kind else { return true };
        self.func.block_ids.iter().any(|&id| extents.iter().any(|&e| self.depends(e, id)))
    }

    /// True if the grid's extent along an axis is known to be a multiple.
    fn divides(&self, axis: usize, n: usize) -> bool {
        let extent = Facts::of(self.func).known(self.func, self.func.grid[axis]);
        extent.is_some_and(|e| e > 0 && e % n as i64 == 0)
    }

    /// True if neighbours along an axis run the loop equally often: otherwise one block might wait for a part that its
    /// neighbour never fetches.
    fn same_loop(&self, axis: usize) -> bool {
        let OpKind::For { extents, .. } = &self.func.ops[self.loop_op].kind else { return false };
        !extents.iter().chain(&self.conditions()).any(|&v| self.depends(v, self.func.block_ids[axis]))
    }

    fn common_bytes(&self, loads: &[Load], axis: usize, n: usize) -> usize {
        loads.iter().filter(|l| self.is_common(l, self.func.block_ids[axis], n)).map(Load::bytes).sum()
    }

    /// True if blocks that differ in `id` alone load the same tile, and it can be divided among `n` of them.
    fn is_common(&self, l: &Load, id: Value, n: usize) -> bool {
        let OpKind::Copy { src, .. } = &self.func.ops[l.op].kind else { return false };
        if l.made.is_some() {
            return false;
        }
        let divides = l.boxes().is_multiple_of(n) || l.rows.is_multiple_of(8 * n);
        divides && !src.offsets.iter().any(|&v| self.depends(v, id))
    }

    /// True if the kernel touches tensors in nothing but these loads and stores, which leave out what lies outside.
    pub(super) fn touches_only(&self, loads: &[Load], stores: &[Store]) -> bool {
        let func = self.func;
        let mut only = true;
        let outside = func.regions[func.body].ops.iter().filter(|&&op| op != self.loop_op);
        for &op in outside.chain(&func.regions[self.region].ops) {
            if loads.iter().any(|l| l.op == op && l.made.is_none()) || stores.iter().any(|s| s.op == op) {
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
        let (mut seen, mut open) = (FastSet::default(), vec![v]);
        while let Some(v) = open.pop() {
            if v == on {
                return true;
            }
            if let ValueDef::Op(op) = func.values[v].def
                && op != self.loop_op
                && seen.insert(v)
            {
                func.ops[op].kind.for_each_use(&mut |u| open.push(u));
            }
        }
        false
    }
}
