//! Questions about a fragment that meets memory: how wide each thread's accesses can be, and which banks they hit.
//! Depends on `fragment`, `memory` and `DType`.

use std::collections::BTreeMap;

use super::error::LayoutError;
use super::fragment::{FragmentLayout, WARP};
use super::gf2::Echelon;
use super::linear::LinearLayout;
use super::memory::MemoryLayout;
use super::space::Digit;
use crate::DType;

/// The widest access a thread can make, in bytes.
pub const MAX_VECTOR_BYTES: usize = 16;
/// Banks of shared memory, each [`BANK_BYTES`] wide.
pub const BANKS: usize = 32;
/// Width of a bank in bytes.
pub const BANK_BYTES: usize = 4;

/// How the registers of a thread are grouped into vector accesses of one memory tile.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct VectorAccess {
    /// Elements per access, a power of two.
    pub elems: usize,
    /// The registers of each access in order of address. For every thread they are contiguous, and the first is
    /// aligned to `elems` elements. A group is live or dead as a whole.
    pub groups: Vec<Vec<usize>>,
    /// Registers that hold the same element as another of their thread: (register, the one in `groups`).
    pub duplicates: Vec<(usize, usize)>,
}

/// Shared memory traffic of one warp.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BankUse {
    /// Instructions issued.
    pub accesses: usize,
    /// Passes over the banks that the hardware needs.
    pub wavefronts: usize,
    /// Passes that would do without conflicts.
    pub ideal: usize,
}

impl BankUse {
    /// Passes lost to conflicts.
    pub fn conflicts(self) -> usize {
        self.wavefronts - self.ideal
    }
}

impl std::ops::Add for BankUse {
    type Output = BankUse;
    fn add(self, o: BankUse) -> BankUse {
        BankUse {
            accesses: self.accesses + o.accesses,
            wavefronts: self.wavefronts + o.wavefronts,
            ideal: self.ideal + o.ideal,
        }
    }
}

impl FragmentLayout {
    /// The widest vector access (up to 16 bytes) between this fragment and `memory`, which must have the same shape.
    ///
    /// `align` is the alignment in elements of the tile's first element. For a window of a tensor with strides that are
    /// known only by a divisor, build `memory` with that divisor as stride.
    pub fn vectorize(&self, memory: &MemoryLayout, dtype: DType, align: usize) -> Result<VectorAccess, LayoutError> {
        same_shape(self, memory)?;
        let limit = (MAX_VECTOR_BYTES * 8 / dtype.bits()).min(align.max(1));
        let mut elems = 1;
        while 2 * elems <= limit {
            elems *= 2;
        }
        let physical = memory.after(self);
        loop {
            let found = match &physical {
                Some(map) => self.linear_groups(map, memory, elems),
                None => self.walked_groups(memory, elems),
            };
            match found {
                Some(access) => return Ok(access),
                // Single elements always work, so the loop ends at width 1.
                None => elems /= 2,
            }
        }
    }

    /// Groups of `elems` registers, from the linear structure of `physical`: (register, lane, warp) to the physical
    /// coordinates of `memory`.
    fn linear_groups(&self, physical: &LinearLayout, memory: &MemoryLayout, elems: usize) -> Option<VectorAccess> {
        let v = elems.trailing_zeros() as usize;
        if v > 0 {
            let out = physical.output();
            let dims = out.dims();
            let contiguous = (0..dims.len()).find(|&d| memory.strides()[d] == 1 && dims[d].low_bits() >= v)?;
            let others_aligned = (0..dims.len())
                .all(|d| d == contiguous || dims[d].extent() == 1 || memory.strides()[d].is_multiple_of(elems));
            // The v lowest bits of the contiguous dimension say where in the vector an element stands.
            let low_bit = |d: &Digit| d.dim == contiguous && d.stride < elems;
            let low = out.bits().iter().enumerate().filter(|(_, d)| low_bit(d)).fold(0, |m, (i, _)| m | 1u64 << i);
            let inputs = physical.input().bits();
            let register = |i: &usize| inputs[*i].dim == 0;
            // Another thread must not see another order.
            let threads_clear = (0..inputs.len()).filter(|i| !register(i)).all(|i| physical.column(i) & low == 0);
            let columns: Vec<u64> = (0..inputs.len()).filter(register).map(|i| physical.column(i)).collect();
            let registers = Echelon::new(&columns);
            let solvable = (0..64).filter(|b| low >> b & 1 == 1).all(|b| registers.solve(1 << b).is_some());
            if !others_aligned || !threads_clear || !solvable {
                return None;
            }
        }
        let access = self.group(memory, elems)?;
        let whole = self.is_exact() || self.groups_live_together(&access.groups);
        (v == 0 || whole).then_some(access)
    }

    /// Groups the registers by the aligned block they hold in thread 0, in which dead places count like live ones.
    fn group(&self, memory: &MemoryLayout, elems: usize) -> Option<VectorAccess> {
        let mut blocks: BTreeMap<usize, Vec<Option<usize>>> = BTreeMap::new();
        let mut order = Vec::new();
        let mut duplicates = Vec::new();
        for reg in 0..self.regs_per_thread() {
            let offset = memory.offset_unbounded(&self.padded_coord(reg, 0));
            let (block, pos) = (offset / elems, offset % elems);
            let slots = blocks.entry(block).or_insert_with(|| {
                order.push(block);
                vec![None; elems]
            });
            match slots[pos] {
                Some(first) => duplicates.push((reg, first)),
                None => slots[pos] = Some(reg),
            }
        }
        let groups: Option<Vec<Vec<usize>>> = order.iter().map(|b| blocks[b].iter().copied().collect()).collect();
        Some(VectorAccess { elems, groups: groups?, duplicates })
    }

    fn groups_live_together(&self, groups: &[Vec<usize>]) -> bool {
        groups.iter().all(|g| {
            (0..self.threads()).all(|t| {
                let live = self.coord(g[0], t).is_some();
                g.iter().all(|&r| self.coord(r, t).is_some() == live)
            })
        })
    }

    /// As [`FragmentLayout::linear_groups`], by looking at every place: for cuts that do not compose.
    fn walked_groups(&self, memory: &MemoryLayout, elems: usize) -> Option<VectorAccess> {
        let access = self.group(memory, elems)?;
        let offset = |r, t| self.coord(r, t).map(|c| memory.offset(&c));
        let ok = (0..self.threads()).all(|t| {
            let in_order = access.groups.iter().all(|g| match offset(g[0], t) {
                Some(base) => {
                    base.is_multiple_of(elems) && g.iter().enumerate().all(|(i, &r)| offset(r, t) == Some(base + i))
                }
                None => g.iter().all(|&r| offset(r, t).is_none()),
            });
            in_order && access.duplicates.iter().all(|&(a, b)| offset(a, t) == offset(b, t))
        });
        ok.then_some(access)
    }

    /// Bank use of warp `warp` when it makes the accesses `access` to a shared tile of layout `memory`.
    pub fn bank_use(&self, memory: &MemoryLayout, dtype: DType, access: &VectorAccess, warp: usize) -> BankUse {
        let bytes = (access.elems * dtype.bits()).div_ceil(8);
        let per_group = access.groups.iter().map(|g| {
            let address = |lane| {
                let coord = self.coord(g[0], warp * WARP + lane)?;
                Some(memory.offset(&coord) * dtype.bits() / 8)
            };
            warp_banks(&(0..WARP).map(address).collect::<Vec<_>>(), bytes)
        });
        per_group.fold(BankUse::default(), |a, b| a + b)
    }
}

/// Bank use of one access of `bytes` bytes per lane at the given byte addresses (`None`: the lane is off).
///
/// The hardware serves a warp's 4-byte accesses in one phase, 8-byte ones by half warps, 16-byte ones by quarter warps.
/// Within a phase, each bank delivers one word per pass, to any number of lanes.
pub fn warp_banks(addresses: &[Option<usize>], bytes: usize) -> BankUse {
    let lanes_per_phase = WARP / bytes.div_ceil(BANK_BYTES).clamp(1, MAX_VECTOR_BYTES / BANK_BYTES);
    let mut sum = BankUse { accesses: usize::from(addresses.iter().any(Option::is_some)), ..BankUse::default() };
    for phase in addresses.chunks(lanes_per_phase) {
        let mut words: Vec<usize> =
            phase.iter().flatten().flat_map(|&a| a / BANK_BYTES..=(a + bytes.max(1) - 1) / BANK_BYTES).collect();
        words.sort_unstable();
        words.dedup();
        let mut passes = [0; BANKS];
        for w in words {
            passes[w % BANKS] += 1;
        }
        let most = passes.into_iter().max().unwrap_or(0);
        sum.wavefronts += most;
        sum.ideal += most.min(1);
    }
    sum
}

pub(super) fn same_shape(fragment: &FragmentLayout, memory: &MemoryLayout) -> Result<(), LayoutError> {
    if fragment.shape() == memory.shape() {
        return Ok(());
    }
    Err(LayoutError::SpaceMismatch {
        left: format!("fragment {:?}", fragment.shape()),
        right: format!("memory {:?}", memory.shape()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::instances::{Swizzle, blocked, mma, swizzled, wgmma};

    #[test]
    fn vector_width_of_the_usual_cases() {
        let row_major = |s: &[usize]| MemoryLayout::row_major(s).unwrap();
        // The default layout reaches 16 bytes; the duplicates of small tiles are other threads' business.
        let f = blocked(&[64, 64], 128, 8).unwrap();
        let v = f.vectorize(&row_major(&[64, 64]), DType::BF16, 8).unwrap();
        assert_eq!((v.elems, v.groups.len(), v.duplicates.len()), (8, 4, 0));
        assert_eq!(v.groups[0], [0, 1, 2, 3, 4, 5, 6, 7]);
        // A wider element type, a smaller alignment, a row stride of 68.
        assert_eq!(f.vectorize(&row_major(&[64, 64]), DType::F32, 8).unwrap().elems, 4);
        assert_eq!(f.vectorize(&row_major(&[64, 64]), DType::BF16, 2).unwrap().elems, 2);
        assert_eq!(f.vectorize(&MemoryLayout::padded(&[64, 64], 4).unwrap(), DType::BF16, 8).unwrap().elems, 4);
        // Accumulators have pairs along n, single elements along m.
        let d = wgmma::accumulator(24).unwrap();
        assert_eq!(d.vectorize(&row_major(&[64, 24]), DType::F32, 4).unwrap().elems, 2);
        let column_major = MemoryLayout::strided(&[64, 24], &[1, 64]).unwrap();
        assert_eq!(d.vectorize(&column_major, DType::F32, 4).unwrap().elems, 1);
        // A swizzle keeps 16-byte chunks whole.
        let s = swizzled([64, 64], 16, Swizzle::B128).unwrap();
        assert_eq!(f.vectorize(&s, DType::BF16, 8).unwrap().elems, 8);
        assert!(f.vectorize(&row_major(&[64, 32]), DType::BF16, 8).is_err());
    }

    #[test]
    fn vectors_do_not_straddle_the_edge_of_the_tile() {
        // 100 columns: dead places begin at column 100, inside a run of 8 but not of 4.
        let f = blocked(&[4, 100], 128, 8).unwrap();
        assert_eq!(f.vectorize(&MemoryLayout::row_major(&[4, 100]).unwrap(), DType::BF16, 8).unwrap().elems, 4);
        let wide = FragmentLayout::builder(1).tile("register", 8, "dim0").tile("lane", 32, "dim0").build().unwrap();
        let f = FragmentLayout::new(&[100], wide).unwrap();
        let v = f.vectorize(&MemoryLayout::row_major(&[100]).unwrap(), DType::BF16, 8).unwrap();
        assert_eq!((v.elems, v.groups.len()), (4, 2));
    }

    #[test]
    fn linear_and_walked_groups_agree() {
        let fragments = [
            blocked(&[32, 96], 128, 8).unwrap(),
            wgmma::accumulator_tile([64, 96], 96, [1, 1]).unwrap(),
            mma::c_tile([32, 96], [2, 2]).unwrap(),
            blocked(&[32, 96], 64, 2).unwrap(),
        ];
        for f in &fragments {
            let shape = [f.shape()[0], 96];
            let memories = [
                MemoryLayout::row_major(&shape).unwrap(),
                MemoryLayout::padded(&shape, 2).unwrap(),
                MemoryLayout::strided(&shape, &[1, shape[0]]).unwrap(),
                swizzled(shape, 16, Swizzle::B64).unwrap(),
                swizzled(shape, 32, Swizzle::B128).unwrap(),
            ];
            for m in &memories {
                let physical = m.after(f).unwrap();
                for elems in [1, 2, 4, 8] {
                    assert_eq!(f.linear_groups(&physical, m, elems), f.walked_groups(m, elems), "{elems} of {m:?}");
                }
            }
        }
    }

    #[test]
    fn banks_of_single_accesses() {
        let all = |f: &dyn Fn(usize) -> usize| (0..32).map(|l| Some(f(l))).collect::<Vec<_>>();
        let waves = |a: &[Option<usize>], bytes| (warp_banks(a, bytes).wavefronts, warp_banks(a, bytes).conflicts());
        assert_eq!(waves(&all(&|l| 4 * l), 4), (1, 0));
        assert_eq!(waves(&all(&|_| 64), 4), (1, 0), "broadcast");
        assert_eq!(waves(&all(&|l| 128 * l), 4), (32, 31), "one bank");
        assert_eq!(waves(&all(&|l| 8 * l), 4), (2, 1), "stride of two words");
        assert_eq!(waves(&all(&|l| 8 * l), 8), (2, 0), "two half warps");
        assert_eq!(waves(&all(&|l| 16 * l), 16), (4, 0), "four quarter warps");
        assert_eq!(waves(&all(&|l| 128 * l), 16), (32, 28), "a column of 16-byte chunks");
        assert_eq!(waves(&all(&|l| 2 * l), 2), (1, 0), "two lanes share a word");
        assert_eq!(warp_banks(&[None; 32], 4), BankUse::default());
    }

    #[test]
    fn a_swizzle_removes_the_conflicts_of_a_column_walk() {
        // Each lane reads a 16-byte chunk of its own row: the access pattern of ldmatrix.
        let map = FragmentLayout::builder(2).tile("register", 8, "dim1").tile("lane", 32, "dim0");
        let f = FragmentLayout::exact(map.tile("register", 8, "dim1").build().unwrap()).unwrap();
        let banks = |m: &MemoryLayout| {
            let v = f.vectorize(m, DType::BF16, 8).unwrap();
            assert_eq!(v.elems, 8);
            f.bank_use(m, DType::BF16, &v, 0)
        };
        let plain = banks(&MemoryLayout::row_major(&[32, 64]).unwrap());
        assert_eq!((plain.accesses, plain.ideal, plain.wavefronts), (8, 32, 256));
        assert_eq!(banks(&swizzled([32, 64], 16, Swizzle::B128).unwrap()).conflicts(), 0);
        assert_eq!(banks(&MemoryLayout::padded(&[32, 64], 8).unwrap()).conflicts(), 0);
    }
}
