//! The default fragment layout: coalesced, vectorised, without prescription from any instruction.

use crate::layout::{FragmentLayout, LANE, LayoutError, REGISTER, WARP, WARP_DIM, canonical_radices, tile_dim};

/// A layout of a tile of `shape` over `threads` threads for coalesced access to row-major memory.
///
/// Each thread holds runs of up to `vector` neighbours along the last axis (the largest power of two that divides the
/// axis and is not above `vector`). Threads follow along the last axis, then along earlier ones, lanes before warps;
/// what is left over is repeated in registers. How many threads stand along each axis is chosen to need the fewest
/// registers, then the fewest dead places, then the longest rows. When the tile has fewer runs than there are threads,
/// the rest hold replicas; when extents do not divide, some places are dead.
pub fn blocked(shape: &[usize], threads: usize, vector: usize) -> Result<FragmentLayout, LayoutError> {
    if threads == 0 || !threads.is_multiple_of(WARP) {
        return Err(LayoutError::Threads { threads });
    }
    if let Some(dim) = shape.iter().position(|&e| e == 0) {
        return Err(LayoutError::ZeroExtent { dim: tile_dim(dim).into_owned() });
    }
    let last =
        shape.len().checked_sub(1).ok_or(LayoutError::Rank { what: "blocked layout", expected: 1, shape: vec![] })?;
    let run = largest_power_of_two(shape[last], vector);
    let mut extents = shape.to_vec();
    extents[last] /= run;

    let digits: Vec<usize> = canonical_radices(WARP).chain(canonical_radices(threads / WARP)).collect();
    let plan = Plan::best(&extents, &digits);

    let mut b = FragmentLayout::builder(shape.len());
    b = b.tile(REGISTER, run, &tile_dim(last));
    for (i, &radix) in digits.iter().enumerate() {
        let input = if i < LANE_DIGITS { LANE } else { WARP_DIM };
        b = match plan.axis_of(i) {
            Some(axis) => b.tile(input, radix, &tile_dim(axis)),
            None => b.replicate(input, radix),
        };
    }
    for axis in (0..shape.len()).rev() {
        b = b.tile(REGISTER, plan.registers(axis), &tile_dim(axis));
    }
    FragmentLayout::new(shape, b.build()?)
}

const LANE_DIGITS: usize = WARP.trailing_zeros() as usize;

fn largest_power_of_two(extent: usize, limit: usize) -> usize {
    let mut v = 1;
    while 2 * v <= limit && extent.is_multiple_of(2 * v) {
        v *= 2;
    }
    v
}

/// Which thread digits stand along which axis. `ends[a]` is the digit after the last one of axis `a`; digits are given
/// out in order, last axis first, and those after `ends[0]` replicate.
struct Plan<'a> {
    extents: &'a [usize],
    digits: &'a [usize],
    ends: Vec<usize>,
}

impl<'a> Plan<'a> {
    fn best(extents: &'a [usize], digits: &'a [usize]) -> Plan<'a> {
        let mut best: Option<(_, Vec<usize>)> = None;
        let mut ends = vec![0; extents.len()];
        visit(&mut ends, digits.len(), &mut |ends| {
            let plan = Plan { extents, digits, ends: ends.to_vec() };
            let cost = plan.cost();
            if best.as_ref().is_none_or(|(c, _)| cost < *c) {
                best = Some((cost, plan.ends));
            }
        });
        let ends = best.map_or(ends, |(_, e)| e);
        Plan { extents, digits, ends }
    }

    fn range(&self, axis: usize) -> std::ops::Range<usize> {
        let start = self.ends.get(axis + 1).copied().unwrap_or(0);
        start..self.ends[axis]
    }

    fn threads(&self, axis: usize) -> usize {
        self.digits[self.range(axis)].iter().product()
    }

    fn registers(&self, axis: usize) -> usize {
        self.extents[axis].div_ceil(self.threads(axis))
    }

    fn axis_of(&self, digit: usize) -> Option<usize> {
        (0..self.extents.len()).find(|&a| self.range(a).contains(&digit))
    }

    /// Smaller is better: registers, places, then (negated) threads along each axis from the last.
    fn cost(&self) -> (usize, usize, Vec<std::cmp::Reverse<usize>>) {
        let axes = 0..self.extents.len();
        let registers: usize = axes.clone().map(|a| self.registers(a)).product();
        let places = axes.clone().map(|a| self.registers(a) * self.threads(a)).product();
        (registers, places, axes.rev().map(|a| std::cmp::Reverse(self.threads(a))).collect())
    }
}

/// All non-increasing assignments of `ends` with values in `0..=limit`.
fn visit(ends: &mut [usize], limit: usize, f: &mut impl FnMut(&[usize])) {
    fn go(ends: &mut [usize], axis: usize, from: usize, limit: usize, f: &mut impl FnMut(&[usize])) {
        for end in from..=limit {
            ends[axis] = end;
            match axis.checked_sub(1) {
                Some(next) => go(ends, next, end, limit, f),
                None => f(ends),
            }
        }
    }
    if let Some(last) = ends.len().checked_sub(1) {
        go(ends, last, 0, limit, f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element has a place, its owner agrees with the map, and live places hold what they should.
    fn check(shape: &[usize], threads: usize, vector: usize) -> FragmentLayout {
        let f = blocked(shape, threads, vector).unwrap();
        assert_eq!(f.threads(), threads);
        let size: usize = shape.iter().product();
        let mut primary = vec![0; size];
        let flat = |c: &[usize]| c.iter().zip(shape).fold(0, |i, (c, e)| i * e + c);
        for thread in 0..threads {
            for reg in 0..f.regs_per_thread() {
                let Some(c) = f.coord(reg, thread) else { continue };
                primary[flat(&c)] += usize::from(f.is_primary(reg, thread));
                if f.is_primary(reg, thread) {
                    assert_eq!(f.owner(&c), (reg, thread));
                }
            }
        }
        assert!(primary.iter().all(|&n| n == 1), "{shape:?} over {threads}: {f:?}");
        f
    }

    #[test]
    fn covers_every_element_in_one_dimension() {
        for n in 1..=257 {
            for threads in [32, 96, 128] {
                for vector in [1, 4, 8] {
                    let f = check(&[n], threads, vector);
                    let run = largest_power_of_two(n, vector);
                    assert_eq!(f.regs_per_thread(), run * (n / run).div_ceil(threads), "fewest registers for {n}");
                }
            }
        }
    }

    #[test]
    fn covers_every_element_in_two_dimensions() {
        for m in [1, 2, 3, 7, 8, 24, 33, 64] {
            for n in [1, 3, 8, 17, 24, 48, 96, 100, 128] {
                for (threads, vector) in [(32, 4), (128, 8), (384, 2)] {
                    check(&[m, n], threads, vector);
                }
            }
        }
        check(&[3, 5, 24], 64, 4);
        check(&[2, 2, 6, 16], 64, 4);
    }

    #[test]
    fn odd_factors_need_no_padding() {
        let f = blocked(&[7168], 128, 8).unwrap();
        assert!(f.is_exact());
        assert_eq!(f.regs_per_thread(), 56);
        assert_eq!(f.coord(8, 0).unwrap()[0], 1024);
        // 12 runs of 8 in a row: four threads along it three times over beat sixteen threads with four idle.
        let f = blocked(&[64, 96], 128, 8).unwrap();
        assert!(f.is_exact());
        assert_eq!(f.regs_per_thread(), 48);
    }

    #[test]
    fn neighbouring_threads_hold_neighbouring_runs() {
        let f = blocked(&[16, 64], 128, 8).unwrap();
        assert_eq!(f.coord(7, 0).unwrap().as_slice(), [0, 7]);
        assert_eq!(f.coord(0, 1).unwrap().as_slice(), [0, 8]);
        assert_eq!(f.coord(0, 8).unwrap().as_slice(), [1, 0]);
        assert_eq!(f.coord(0, 127).unwrap().as_slice(), [15, 56]);
    }

    #[test]
    fn small_tiles_are_replicated() {
        let f = blocked(&[16], 128, 4).unwrap();
        assert_eq!(f.replication().count(), 32);
        assert_eq!(f.owners(&[5]).len(), 32);
        assert_eq!(f.owner(&[5]), (1, 1));
    }

    #[test]
    fn part_of_a_warp_is_refused() {
        assert_eq!(blocked(&[16], 48, 4), Err(LayoutError::Threads { threads: 48 }));
    }
}
