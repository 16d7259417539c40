//! A fragment layout in the form code generation wants: a thread part plus a constant register part per coordinate.
//!
//! The layouts in use (blocked, mma operands and accumulators, slices of these) map each digit of (register, lane, warp)
//! to one digit of one coordinate, so a coordinate is the sum of what the thread and what the register contributes.

use super::index::{self, Idx};
use crate::ptx::simt::{Builder, Cmp, Num, Val};
use smallvec::SmallVec;
use std::hash::BuildHasherDefault;
use zellige_ir::hash::FastMap;
use zellige_ir::layout::{Coord, FragmentLayout, LANE, LayoutError, REGISTER, WARP, WARP_DIM, tile_dim};

/// One digit of the thread number: `(thread / div) % radix` counts `stride` elements along an axis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ThreadDigit {
    pub div: usize,
    pub radix: usize,
    pub stride: usize,
}

impl ThreadDigit {
    /// What of the digit counts warps: one that runs on from lanes to warps has a part of each.
    pub fn warps(self) -> Option<ThreadDigit> {
        let end = self.div * self.radix;
        if end <= WARP {
            return None;
        }
        if self.div >= WARP {
            return Some(self);
        }
        let skipped = WARP / self.div;
        Some(ThreadDigit { div: WARP, radix: self.radix / skipped, stride: self.stride * skipped })
    }
}

/// A fragment layout, taken apart.
#[derive(Clone, Debug)]
pub struct Dist {
    pub layout: FragmentLayout,
    /// What each register contributes to the coordinate.
    pub regs: Vec<Coord>,
    /// Register by contribution.
    by_coord: FastMap<Coord, usize>,
    /// Thread digits along each axis.
    pub threads: Vec<SmallVec<[ThreadDigit; 4]>>,
    /// Thread digits that change nothing: their threads hold replicas.
    pub replicas: SmallVec<[ThreadDigit; 4]>,
}

impl Dist {
    pub fn new(layout: FragmentLayout) -> Dist {
        let rank = layout.shape().len();
        let regs: Vec<Coord> = (0..layout.regs_per_thread()).map(|r| layout.map().apply(&[r, 0, 0])).collect();
        let mut by_coord = FastMap::with_capacity_and_hasher(regs.len(), BuildHasherDefault::default());
        for (r, c) in regs.iter().enumerate() {
            by_coord.entry(c.clone()).or_insert(r);
        }
        let mut threads = vec![SmallVec::new(); rank];
        let mut replicas = SmallVec::new();
        for (dim, mut div) in [(1, 1), (2, WARP)] {
            for basis in layout.map().bases(dim) {
                let axis = basis.image.iter().position(|&s| s != 0);
                debug_assert!(basis.image.iter().filter(|&&s| s != 0).count() <= 1, "one coordinate per digit");
                let (list, stride): (&mut SmallVec<[ThreadDigit; 4]>, usize) = match axis {
                    Some(a) => (&mut threads[a], basis.image[a]),
                    None => (&mut replicas, 0),
                };
                match list.last_mut() {
                    Some(last) if last.div * last.radix == div && last.stride * last.radix == stride => {
                        last.radix *= basis.radix;
                    }
                    _ => list.push(ThreadDigit { div, radix: basis.radix, stride }),
                }
                div *= basis.radix;
            }
        }
        Dist { layout, regs, by_coord, threads, replicas }
    }

    /// The default layout: runs of up to `vector` elements along the last axis, lanes next to each other.
    pub fn blocked(shape: &[usize], threads: usize, vector: usize) -> Result<Dist, LayoutError> {
        if shape.is_empty() {
            return Dist::replicated(shape, threads);
        }
        let shape: Vec<usize> = shape.iter().map(|&e| e.max(1)).collect();
        zellige_ir::layout::instances::blocked(&shape, threads, vector).map(Dist::new)
    }

    /// Every thread holds everything.
    pub fn replicated(shape: &[usize], threads: usize) -> Result<Dist, LayoutError> {
        let mut builder = FragmentLayout::builder(shape.len());
        for (axis, &extent) in shape.iter().enumerate().rev() {
            builder = builder.tile(REGISTER, extent.max(1), &tile_dim(axis));
        }
        if shape.is_empty() {
            builder = builder.replicate(REGISTER, 1);
        }
        let map = builder.replicate(LANE, WARP).replicate(WARP_DIM, threads / WARP).build()?;
        let shape: Vec<usize> = shape.iter().map(|&e| e.max(1)).collect();
        FragmentLayout::new(&shape, map).map(Dist::new)
    }

    /// Extents of the tile.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    pub fn rank(&self) -> usize {
        self.threads.len()
    }

    /// The register that contributes `coord`.
    pub fn reg(&self, coord: &[usize]) -> Option<usize> {
        self.by_coord.get(coord).copied()
    }

    /// What the thread contributes along each axis.
    pub fn thread_coords(&self, b: &mut Builder, tid: Idx) -> SmallVec<[Idx; 4]> {
        self.threads.iter().map(|digits| thread_part(b, tid, digits)).collect()
    }

    /// True in one replica of each element; `None` if there is one only.
    pub fn primary(&self, b: &mut Builder, tid: Idx) -> Option<Val> {
        let mut guard = None;
        for d in &self.replicas {
            let digit = thread_part(b, tid, &[ThreadDigit { stride: 1, ..*d }]);
            let v = index::to_reg(b, digit);
            let zero = b.c32(0);
            let p = b.setp(Cmp::Eq, Num::S32, v, zero);
            guard = b.and_guard(guard, Some(p));
        }
        guard
    }

    /// True if both give a thread the same contribution along an axis of each.
    pub fn same_threads(&self, axis: usize, other: &Dist, other_axis: usize) -> bool {
        self.threads[axis] == other.threads[other_axis]
    }

    /// Registers that hold one run of neighbours along the last axis, at most `limit`.
    pub fn run(&self, limit: usize) -> usize {
        let Some(last) = self.rank().checked_sub(1) else { return 1 };
        let mut n = 1;
        while 2 * n <= limit
            && self.regs.len().is_multiple_of(2 * n)
            && (n..2 * n).all(|r| {
                self.regs[r]
                    .iter()
                    .zip(&self.regs[0])
                    .enumerate()
                    .all(|(a, (&x, &y))| x == y + if a == last { r } else { 0 })
            })
        {
            n *= 2;
        }
        n
    }
}

/// What some digits of the thread number contribute.
pub fn thread_part(b: &mut Builder, tid: Idx, digits: &[ThreadDigit]) -> Idx {
    let mut sum = Idx::constant(0);
    for d in digits {
        let q = index::div(b, tid, Idx::constant(d.div as i64));
        let digit = index::rem(b, q, Idx::constant(d.radix as i64));
        let part = index::mul(b, digit, Idx::constant(d.stride as i64));
        sum = index::add(b, sum, part);
    }
    sum
}
