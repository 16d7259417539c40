//! `ldmatrix` and `stmatrix`: 8 x 8 matrices of 16-bit units between shared memory and a warp's registers (PTX ISA,
//! "Warp-level matrix load/store instruction").
//!
//! Lane l gives the address of row `l % 8` of matrix `l / 8`: 16 contiguous bytes. Register j of lane l receives (or
//! offers) the 32-bit word `l % 4` of row `l / 4` of matrix j; with `.trans`, the units at rows `2 (l % 4)` and
//! `2 (l % 4) + 1` of column `l / 4`.

use crate::DType;
use crate::layout::memory::MemoryLayout;
use crate::layout::{Basis, Coord, FragmentLayout, LANE, LayoutError, LinearLayout, REGISTER, WARP_DIM};

/// The fragment of `ldmatrix.x1`, `.x2` or `.x4` (and `stmatrix`), axes (matrix, row, column), 16-bit elements.
pub fn fragment(matrices: usize, trans: bool) -> Result<FragmentLayout, LayoutError> {
    if !matches!(matrices, 1 | 2 | 4) {
        let need = "1, 2 or 4".to_string();
        return Err(LayoutError::Unsupported {
            what: "ldmatrix",
            axis: "the number of matrices",
            value: matrices,
            need,
        });
    }
    let (pairs, lines) = if trans { ("dim1", "dim2") } else { ("dim2", "dim1") };
    let map = FragmentLayout::builder(3)
        .tile(REGISTER, 2, pairs)
        .tile(LANE, 4, pairs)
        .tile(LANE, 8, lines)
        .tile(REGISTER, matrices, "dim0");
    FragmentLayout::exact(map.build()?)
}

/// How a fragment is loaded with `ldmatrix`, or stored with `stmatrix`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MatrixAccess {
    /// The `.trans` qualifier.
    pub trans: bool,
    /// Matrices per instruction: 1, 2 or 4.
    pub matrices: usize,
    /// (`register`: the instruction, `lane`, `warp`) to the tile coordinate whose address the lane gives.
    pub rows: LinearLayout,
    /// For each instruction and each of its matrices, the registers of the fragment that share the 32-bit word, in
    /// order of significance.
    pub words: Vec<Vec<Vec<usize>>>,
}

impl MatrixAccess {
    /// The tile coordinate of the first element of the row that `lane` of `warp` addresses in instruction `issue`.
    pub fn row(&self, issue: usize, lane: usize, warp: usize) -> Coord {
        self.rows.apply(&[issue, lane, warp])
    }
}

/// The `ldmatrix`/`stmatrix` form of the accesses between `fragment` and a shared tile `memory`, whose first element
/// is aligned to 16 bytes; `None` when the fragment does not have that form. Plain words serve elements of 8, 16 and 32
/// bits, `.trans` those of 16.
pub fn matrix_access(fragment: &FragmentLayout, memory: &MemoryLayout, dtype: DType) -> Option<MatrixAccess> {
    let per_row = 128 / dtype.bits();
    if fragment.shape() != memory.shape() || !fragment.is_exact() || !matches!(dtype.bits(), 8 | 16 | 32) {
        return None;
    }
    let physical = memory.after(fragment)?;
    let out = physical.output();
    let contiguous = (0..out.rank()).find(|&d| memory.strides()[d] == 1 && out.dims()[d].extent() >= per_row)?;
    let aligned =
        |d: usize| d == contiguous || out.dims()[d].extent() == 1 || memory.strides()[d].is_multiple_of(per_row);
    if !(0..out.rank()).all(aligned) {
        return None;
    }
    // The bits of the contiguous dimension inside a 16-byte row, lowest first, as masks over the output bits.
    let inside =
        |stride: usize| out.bits().iter().position(|b| b.dim == contiguous && b.stride == stride).map(|i| 1u64 << i);
    let row: Vec<u64> = (0..per_row.trailing_zeros()).map(|i| inside(1 << i)).collect::<Option<_>>()?;
    let row_mask = row.iter().fold(0, |m, b| m | b);

    let bits = physical.input().bits();
    let lane = |i: usize| bits.iter().position(|b| b.dim == 1 && b.stride == 1 << i);
    let lanes: Vec<usize> = (0..5).map(lane).collect::<Option<_>>()?;
    let registers: Vec<usize> = (0..bits.len()).filter(|&i| bits[i].dim == 0).collect();

    // The word's registers and the lanes along a row must produce exactly the bits inside the row, in order.
    let (trans, word, along): (bool, Vec<usize>, Vec<usize>) = {
        let w = (32 / dtype.bits()).trailing_zeros() as usize;
        let with = |mask: u64| registers.iter().copied().find(|&i| physical.column(i) == mask);
        let word: Option<Vec<usize>> = row[..w].iter().map(|&m| with(m)).collect();
        let plain = word.filter(|_| (0..2).all(|i| physical.column(lanes[i]) == row[w + i]));
        match plain {
            Some(word) => (false, word, lanes[..2].to_vec()),
            None if dtype.bits() == 16 && (0..3).all(|i| physical.column(lanes[2 + i]) == row[i]) => {
                (true, vec![*registers.first()?], lanes[2..].to_vec())
            }
            None => return None,
        }
    };
    let in_row = |i: &usize| along.contains(i) || (!trans && word.contains(i));
    if (0..bits.len()).any(|i| !in_row(&i) && physical.column(i) & row_mask != 0) {
        return None;
    }

    // What is left of the registers counts matrices, then instructions.
    let rest: Vec<usize> = registers.iter().copied().filter(|i| !word.contains(i)).collect();
    let per_issue = &rest[..rest.len().min(2)];
    let place = |i: usize| bits[i].stride;

    let map = fragment.map();
    let image = |i: usize| map.output().join(map.column(i), []);
    let mut lane_bases: Vec<Basis> = match trans {
        false => lanes[2..].iter().map(|&i| Basis::bit(&image(i))).collect(),
        true => word.iter().chain(&lanes[..2]).map(|&i| Basis::bit(&image(i))).collect(),
    };
    lane_bases.extend(per_issue.iter().map(|&i| Basis::bit(&image(i))));
    // Lanes beyond the matrices of a short instruction repeat addresses; the hardware ignores them.
    let nowhere = vec![0; map.output().rank()];
    lane_bases.resize(5, Basis::bit(&nowhere));
    let mut issue_bases = Vec::new();
    let mut issue_strides = Vec::new();
    let mut stride = 1;
    for basis in map.bases(0) {
        let bit = registers.iter().copied().find(|&i| basis.radix == 2 && place(i) == stride);
        if bit.is_none_or(|i| !word.contains(&i) && !per_issue.contains(&i)) {
            issue_strides.push((stride, basis.radix));
            issue_bases.push(basis.clone());
        }
        stride *= basis.radix;
    }
    let inputs = [(REGISTER, issue_bases), (LANE, lane_bases), (WARP_DIM, map.bases(2))];
    let rows = LinearLayout::from_bases(inputs, map.output().clone()).ok()?;

    let offsets = |digits: &[usize]| digits.iter().fold(vec![0], |v, &i| [v.clone(), add(&v, place(i))].concat());
    let mut issues = vec![0];
    for (stride, radix) in issue_strides {
        issues = (0..radix).flat_map(|v| add(&issues, v * stride)).collect();
    }
    let words = issues.iter().map(|&issue| {
        let matrices = offsets(per_issue).into_iter();
        matrices.map(|m| offsets(&word).into_iter().map(|w| issue + m + w).collect()).collect()
    });
    Some(MatrixAccess { trans, matrices: 1 << per_issue.len(), rows, words: words.collect() })
}

fn add(values: &[usize], shift: usize) -> Vec<usize> {
    values.iter().map(|v| v + shift).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::instances::{Swizzle, blocked, mma, swizzled, wgmma};

    #[test]
    fn fragments_match_the_manual() {
        for matrices in [1, 2, 4] {
            for trans in [false, true] {
                let f = fragment(matrices, trans).unwrap();
                assert_eq!((f.shape(), f.regs_per_thread()), (&[matrices, 8, 8][..], 2 * matrices));
                for lane in 0..32 {
                    for i in 0..2 * matrices {
                        let (line, pair) = (lane / 4, 2 * (lane % 4) + i % 2);
                        let want = if trans { [i / 2, pair, line] } else { [i / 2, line, pair] };
                        assert_eq!(f.coord(i, lane).unwrap().as_slice(), want);
                    }
                }
            }
        }
        assert!(fragment(3, false).is_err());
    }

    /// Executes the instructions as the manual says and compares every register with the fragment.
    fn check(f: &FragmentLayout, m: &MemoryLayout, dtype: DType, trans: bool, matrices: usize) {
        let access = matrix_access(f, m, dtype).unwrap_or_else(|| panic!("{f:?} from {m:?}"));
        assert_eq!((access.trans, access.matrices), (trans, matrices));
        let unit = 16 / dtype.bits().min(16);
        let mut seen = vec![false; f.regs_per_thread()];
        for warp in 0..f.warps() {
            for (issue, words) in access.words.iter().enumerate() {
                let address = |l: usize| m.offset(&access.row(issue, l, warp));
                for (j, regs) in words.iter().enumerate() {
                    for lane in 0..32 {
                        for (e, &reg) in regs.iter().enumerate() {
                            // The 16-bit units of this lane's word as (row, column); 32-bit elements span two of them.
                            let half = e * dtype.bits() / 16;
                            let (row, col) = if trans {
                                (2 * (lane % 4) + half, lane / 4)
                            } else {
                                (lane / 4, 2 * (lane % 4) + half)
                            };
                            let start = address(8 * j + row);
                            assert!((start * dtype.bits() / 8).is_multiple_of(16), "rows are aligned");
                            let element = start + col * 16 / dtype.bits() + e % unit;
                            assert_eq!(m.offset(&f.coord(reg, 32 * warp + lane).unwrap()), element);
                            seen[reg] = true;
                        }
                    }
                }
            }
        }
        assert!(seen.iter().all(|&s| s), "every register is loaded");
    }

    #[test]
    fn operands_load_by_ldmatrix() {
        let a = mma::a_tile([64, 64], 16, [2, 2]).unwrap();
        for m in [MemoryLayout::row_major(&[64, 64]).unwrap(), swizzled([64, 64], 16, Swizzle::B128).unwrap()] {
            check(&a, &m, DType::BF16, false, 4);
        }
        // A stored k-major transposed: m contiguous.
        let transposed = swizzled([64, 64], 16, Swizzle::B128).unwrap().permute(&[1, 0]).unwrap();
        check(&a, &transposed, DType::F16, true, 4);
        // B from rows of n (k contiguous), and from rows of k.
        let b = mma::b_tile([32, 48], 16, [1, 1]).unwrap();
        check(&b, &swizzled([48, 32], 16, Swizzle::B64).unwrap().permute(&[1, 0]).unwrap(), DType::BF16, false, 4);
        check(&b, &MemoryLayout::padded(&[32, 48], 8).unwrap(), DType::BF16, true, 4);
        check(&mma::b(16).unwrap(), &MemoryLayout::row_major(&[16, 8]).unwrap(), DType::BF16, true, 2);
        check(&mma::b_half(16).unwrap(), &MemoryLayout::row_major(&[8, 8]).unwrap(), DType::BF16, true, 1);
        // 8-bit and tf32 operands, k contiguous.
        let a = mma::a_tile([32, 64], 8, [1, 1]).unwrap();
        check(&a, &swizzled([32, 64], 8, Swizzle::B64).unwrap(), DType::F8E4M3, false, 4);
        let a = mma::a_tile([32, 32], 32, [2, 1]).unwrap();
        check(&a, &swizzled([32, 32], 32, Swizzle::B128).unwrap(), DType::F32, false, 4);
    }

    #[test]
    fn accumulators_store_by_stmatrix() {
        let d = wgmma::accumulator_tile([128, 192], 192, [2, 1]).unwrap();
        check(&d, &swizzled([128, 192], 16, Swizzle::B128).unwrap(), DType::BF16, false, 4);
        let d = wgmma::accumulator(24).unwrap();
        check(&d, &MemoryLayout::row_major(&[64, 24]).unwrap(), DType::BF16, false, 2);
        check(&d, &MemoryLayout::strided(&[64, 24], &[1, 64]).unwrap(), DType::BF16, true, 2);
    }

    #[test]
    fn other_fragments_are_not_forced() {
        let m = MemoryLayout::row_major(&[64, 64]).unwrap();
        assert_eq!(matrix_access(&blocked(&[64, 64], 128, 8).unwrap(), &m, DType::BF16), None);
        let a = mma::a_tile([64, 64], 16, [2, 1]).unwrap();
        // Rows of 68 elements are not aligned to 16 bytes.
        assert_eq!(matrix_access(&a, &MemoryLayout::padded(&[64, 64], 4).unwrap(), DType::BF16), None);
        // 32-bit elements cannot be transposed.
        let a = mma::a_tile([32, 32], 32, [2, 1]).unwrap();
        let columns = MemoryLayout::strided(&[32, 32], &[1, 32]).unwrap();
        assert_eq!(matrix_access(&a, &columns, DType::F32), None);
    }
}
