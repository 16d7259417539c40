//! Reducing a fragment over one axis: what to combine in registers, across lanes, across warps. Depends on `fragment`.

use std::collections::BTreeMap;

use super::error::LayoutError;
use super::fragment::{FragmentLayout, LANE, REGISTER, WARP_DIM};
use super::gf2::{Echelon, multiply};
use super::linear::LinearLayout;
use super::space::{Coord, Digit, tile_dim};

/// How to reduce a fragment over an axis with any associative and commutative operation.
///
/// Each thread combines `registers`; then, for each mask of `lane_masks`, every lane combines its results with those of
/// the lane that differs by the mask (`shfl.bfly`); then, for each entry of `warps`, warps combine through shared memory.
/// Afterwards `result` holds, replicas included. Dead places must contribute the neutral element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReductionPlan {
    /// The layout of the result: the tile without the axis.
    pub result: FragmentLayout,
    /// For each register of `result`, the registers to combine. Replicas inside the thread are left out.
    pub registers: Vec<Vec<usize>>,
    /// XOR masks of the butterfly over lanes, independent of each other.
    pub lane_masks: Vec<usize>,
    /// What distinguishes the warps that still have to combine.
    pub warps: Vec<WarpStep>,
}

/// Warps whose partial results belong together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WarpStep {
    /// Warps that differ by this XOR mask.
    Mask(usize),
    /// Warps that differ in this digit of odd radix: `warp / stride % radix`.
    Odd {
        /// Warps per step of the digit.
        stride: usize,
        /// Values of the digit, all of which combine.
        radix: usize,
    },
}

impl FragmentLayout {
    /// The plan to reduce over axis `dim`, or `None` when lanes that share a result hold it in different registers (then
    /// convert to another layout first). Errors when there is no such axis.
    pub fn reduction(&self, dim: usize) -> Result<Option<ReductionPlan>, LayoutError> {
        let result = self.drop_dim(dim)?;
        let keep: Vec<_> = (0..self.shape().len()).filter(|&i| i != dim).map(tile_dim).collect();
        let keep: Vec<&str> = keep.iter().map(AsRef::as_ref).collect();
        let full = self.map();
        let kept = full.restrict(&[REGISTER, LANE, WARP_DIM], &keep)?;

        let axes = |c: Coord| c.iter().enumerate().filter(|&(i, _)| i != dim).map(|(_, &c)| c).collect::<Coord>();
        let mut places: BTreeMap<Coord, usize> = BTreeMap::new();
        for reg in 0..result.regs_per_thread() {
            places.entry(result.padded_coord(reg, 0)).or_insert(reg);
        }
        let mut registers = vec![Vec::new(); result.regs_per_thread()];
        let mut seen = Vec::new();
        for reg in 0..self.regs_per_thread() {
            let coord = self.padded_coord(reg, 0);
            if seen.contains(&coord) {
                continue;
            }
            seen.push(coord.clone());
            match places.get(&axes(coord)) {
                Some(&to) => registers[to].push(reg),
                None => return Ok(None),
            }
        }

        let Some(lanes) = steps(full, &kept, 1) else { return Ok(None) };
        let Some(warps) = steps(full, &kept, 2) else { return Ok(None) };
        let bits = full.input().bits();
        let value = |mask: u64| (0..bits.len()).filter(|i| mask >> i & 1 == 1).map(|i| bits[i].stride).sum::<usize>();
        let mut warps: Vec<WarpStep> = warps.into_iter().map(|m| WarpStep::Mask(value(m))).collect();
        for (i, d) in full.input().odds().iter().enumerate().filter(|(_, d)| d.dim == 2) {
            let Digit { stride, radix, .. } = *d;
            // A digit that only counts along the axis: the full map shows it, the kept one does not.
            if full.sources.contains(&Some(i)) && !kept.sources.contains(&Some(i)) {
                warps.push(WarpStep::Odd { stride, radix });
            }
        }
        Ok(Some(ReductionPlan { result, registers, lane_masks: lanes.into_iter().map(value).collect(), warps }))
    }
}

/// Bit vectors of input `dim` (lane or warp) that stay on one result but move along the reduced axis: a basis, without
/// those that only lead to replicas. `None` when moving along them also takes another place of a lower input.
fn steps(full: &LinearLayout, kept: &LinearLayout, dim: usize) -> Option<Vec<u64>> {
    let bits = full.input().bits();
    let own: Vec<usize> = (0..bits.len()).filter(|&i| bits[i].dim == dim).collect();
    let below: Vec<usize> = (0..bits.len()).filter(|&i| bits[i].dim < dim).collect();
    // Vectors of `dim` whose image the lower inputs can make up for, by the images of `map`.
    let reachable = |map: &LinearLayout| {
        let columns: Vec<u64> = below.iter().chain(&own).map(|&i| map.column(i)).collect();
        let kernel = Echelon::new(&columns);
        kernel.kernel().iter().map(|k| k >> below.len()).filter(|&v| v != 0).collect::<Vec<u64>>()
    };
    let kept_columns: Vec<u64> = own.iter().map(|&i| kept.column(i)).collect();
    let wanted = reachable(kept);
    if wanted.iter().any(|&v| multiply(&kept_columns, v) != 0) {
        return None;
    }
    let mut span = reachable(full);
    let mut out = Vec::new();
    for v in wanted {
        if Echelon::new(&span).solve(v).is_none() {
            span.push(v);
            out.push((0..own.len()).filter(|j| v >> j & 1 == 1).fold(0, |m, j| m | 1 << own[j]));
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::WARP;
    use crate::layout::instances::{blocked, mma, wgmma};

    /// Carries the plan out on sums of distinct powers, that is, on multisets of elements, and checks every result.
    fn check(f: &FragmentLayout, dim: usize) -> ReductionPlan {
        let plan = f.reduction(dim).unwrap().unwrap();
        let combine = |a: &[Coord], b: &[Coord]| [a, b].concat();
        let mut partial: Vec<Vec<Vec<Coord>>> = (0..f.threads())
            .map(|t| {
                let of = |regs: &Vec<usize>| regs.iter().filter_map(|&r| f.coord(r, t)).collect();
                plan.registers.iter().map(of).collect()
            })
            .collect();
        let exchange = |partial: &Vec<Vec<Vec<Coord>>>, others: &dyn Fn(usize) -> Vec<usize>| {
            let step = |t: usize| {
                let sum = |r: usize| others(t).iter().fold(partial[t][r].clone(), |s, &o| combine(&s, &partial[o][r]));
                (0..plan.registers.len()).map(sum).collect()
            };
            (0..f.threads()).map(step).collect::<Vec<Vec<Vec<Coord>>>>()
        };
        for &mask in &plan.lane_masks {
            partial = exchange(&partial, &|t| vec![t ^ mask]);
        }
        for &warp in &plan.warps {
            partial = exchange(&partial, &|t| match warp {
                WarpStep::Mask(mask) => vec![t ^ (mask * WARP)],
                WarpStep::Odd { stride, radix } => {
                    let (digit, step) = (t / WARP / stride % radix, stride * WARP);
                    (0..radix).filter(|&v| v != digit).map(|v| t - digit * step + v * step).collect()
                }
            });
        }
        for (t, partial) in partial.iter().enumerate() {
            for (r, elements) in partial.iter().enumerate() {
                let Some(at) = plan.result.coord(r, t) else { continue };
                let mut got = elements.clone();
                got.sort();
                let want: Vec<Coord> = (0..f.shape()[dim])
                    .map(|i| {
                        let mut c = at.clone();
                        c.insert(dim, i);
                        c
                    })
                    .collect();
                assert_eq!(got, want, "result {at:?} in register {r} of thread {t}");
            }
        }
        plan
    }

    #[test]
    fn row_sums_of_accumulators() {
        let plan = check(&wgmma::accumulator(24).unwrap(), 1);
        assert_eq!(plan.registers, [vec![0, 1, 4, 5, 8, 9], vec![2, 3, 6, 7, 10, 11]]);
        assert_eq!((plan.lane_masks, plan.warps), (vec![1, 2], vec![]));
        let plan = check(&wgmma::accumulator(24).unwrap(), 0);
        assert_eq!((plan.lane_masks, plan.warps), (vec![4, 8, 16], vec![WarpStep::Mask(1), WarpStep::Mask(2)]));
        let plan = check(&mma::c_tile([32, 48], [2, 2]).unwrap(), 1);
        assert_eq!((plan.lane_masks, plan.warps), (vec![1, 2], vec![WarpStep::Mask(1)]));
    }

    #[test]
    fn replicas_and_dead_places_count_once() {
        for (shape, threads) in [([4, 8], 128), ([3, 100], 64), ([1, 16], 32), ([6, 64], 96), ([100, 3], 96)] {
            for vector in [1, 4] {
                let f = blocked(&shape, threads, vector).unwrap();
                check(&f, 0);
                check(&f, 1);
            }
        }
        check(&mma::a_tile([32, 32], 16, [2, 2]).unwrap(), 1);
        check(&blocked(&[4, 6, 8], 96, 2).unwrap(), 1);
        // 192 threads, three warps along the axis and two times two of the others.
        let f = FragmentLayout::builder(2).tile("lane", 32, "dim1").tile("warp", 2, "dim0").tile("warp", 3, "dim1");
        let plan = check(&FragmentLayout::exact(f.build().unwrap()).unwrap(), 1);
        assert_eq!(plan.warps, [WarpStep::Odd { stride: 2, radix: 3 }]);
    }

    #[test]
    fn skewed_fragments_are_refused() {
        // Lane bit 0 moves along both axes; only a register on the kept axis can make up for it.
        let text =
            "fragment(2, 64) register[(1,0)] lane[(1,1) (0,2) (0,4) (0,8) (0,16)] warp[(0,32)] -> (dim0: 2, dim1: 64)";
        let f: FragmentLayout = text.parse().unwrap();
        assert_eq!(f.reduction(1).unwrap(), None);
        assert!(f.reduction(2).is_err());
    }
}
