//! Swizzled shared memory tiles, as TMA writes and reads them (PTX ISA, "Swizzling modes" of tensor copies).

use smallvec::SmallVec;

use crate::layout::{Basis, Coord, LayoutError, LinearLayout, MemoryLayout, Space, canonical_radices};

/// How 16-byte chunks are permuted inside a shared tile: the chunk number is XORed with bits of the row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Swizzle {
    /// No permutation; boxes are 16 bytes wide (the interleaved form of unswizzled `wgmma` operands).
    None,
    /// Two chunks, XORed with bit 2 of the row.
    B32,
    /// Four chunks, XORed with bits 1 and 2 of the row.
    B64,
    /// Eight chunks, XORed with bits 0 to 2 of the row.
    B128,
}

impl Swizzle {
    /// All modes, narrowest first.
    pub const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

    /// Width in bytes of a box: the contiguous run that is permuted.
    pub const fn atom_bytes(self) -> usize {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Alignment in bytes of the tile's first byte, so that row numbers and address bits agree.
    pub const fn alignment(self) -> usize {
        match self {
            Swizzle::None => 128,
            Swizzle::B32 => 256,
            Swizzle::B64 => 512,
            Swizzle::B128 => 1024,
        }
    }

    /// The bits of the row (as a mask of its low three) that are XORed into the chunk number, after shifting them
    /// down to bit 0.
    pub const fn row_bits(self) -> std::ops::Range<usize> {
        match self {
            Swizzle::None => 3..3,
            Swizzle::B32 => 2..3,
            Swizzle::B64 => 1..3,
            Swizzle::B128 => 0..3,
        }
    }
}

/// A tile of `shape` (rows, columns) with elements of `bits` bits, columns contiguous, swizzled.
///
/// The columns are cut into boxes [`Swizzle::atom_bytes`] wide; box after box, each holds all rows, one after another
/// without gaps. Inside a box, 16-byte chunk `c` of row `r` stands at chunk `c ^ (r's row bits)`. The number of columns
/// must be a multiple of the box; rows are filled up to a multiple of 8 so that every box starts a new pattern.
pub fn swizzled(shape: [usize; 2], bits: usize, swizzle: Swizzle) -> Result<MemoryLayout, LayoutError> {
    const WHAT: &str = "swizzled shared tile";
    let unsupported = |axis, value, need: String| LayoutError::Unsupported { what: WHAT, axis, value, need };
    if !matches!(bits, 4 | 8 | 16 | 32 | 64) {
        return Err(unsupported("element width", bits, "4, 8, 16, 32 or 64 bits".into()));
    }
    let chunk = 128 / bits;
    let atom = swizzle.atom_bytes() * 8 / bits;
    let [rows, cols] = shape;
    if cols == 0 || !cols.is_multiple_of(atom) {
        return Err(unsupported(
            "the number of columns",
            cols,
            format!("a multiple of {atom} ({} bytes)", swizzle.atom_bytes()),
        ));
    }
    if rows == 0 {
        return Err(unsupported("the number of rows", rows, "at least 1".into()));
    }
    let rows = rows.next_multiple_of(8);
    let physical = Space::of([("box", cols / atom), ("row", rows), ("col", atom)])?;
    let image = |b: usize, r: usize, c: usize| -> Coord { SmallVec::from_slice(&[b, r, c]) };

    let mut stride = 1;
    let row_bases = canonical_radices(rows).map(|radix| {
        let row = stride;
        stride *= radix;
        let swapped = swizzle.row_bits().find(|&bit| row == 1 << bit);
        let col = swapped.map_or(0, |bit| chunk << (bit - swizzle.row_bits().start));
        Basis { radix, image: image(0, row, col) }
    });
    let row_bases: Vec<Basis> = row_bases.collect();
    let mut stride = 1;
    let in_box = canonical_radices(atom).map(|radix| {
        let col = stride;
        stride *= radix;
        Basis { radix, image: image(0, 0, col) }
    });
    let mut col_bases: Vec<Basis> = in_box.collect();
    let mut stride = 1;
    col_bases.extend(canonical_radices(cols / atom).map(|radix| {
        let b = stride;
        stride *= radix;
        Basis { radix, image: image(b, 0, 0) }
    }));
    let map = LinearLayout::from_bases([("dim0", row_bases), ("dim1", col_bases)], physical)?;
    MemoryLayout::new(&shape, map, &[rows * atom, atom, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formulas of the manual: chunk c of row r stands at c ^ f(r).
    fn formula(swizzle: Swizzle, r: usize) -> usize {
        match swizzle {
            Swizzle::None => 0,
            Swizzle::B32 => r >> 2 & 1,
            Swizzle::B64 => r >> 1 & 3,
            Swizzle::B128 => r & 7,
        }
    }

    #[test]
    fn swizzles_follow_the_formulas() {
        for swizzle in Swizzle::ALL {
            for bits in [4, 8, 16, 32] {
                let atom = swizzle.atom_bytes() * 8 / bits;
                let (rows, cols) = (24, 3 * atom);
                let layout = swizzled([rows, cols], bits, swizzle).unwrap();
                assert_eq!(layout.span(), rows * cols);
                for r in 0..rows {
                    for c in 0..cols {
                        let (b, c_in) = (c / atom, c % atom);
                        let chunk = (c_in * bits / 128) ^ formula(swizzle, r);
                        let want = b * rows * atom + r * atom + chunk * (128 / bits) + c_in % (128 / bits);
                        assert_eq!(layout.offset(&[r, c]), want);
                        assert_eq!(layout.coord_at(want).unwrap().as_slice(), [r, c]);
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_rows_of_a_128_byte_swizzle() {
        // Table of chunk positions for bf16, rows 0 to 3 of a 64-column box.
        let layout = swizzled([8, 64], 16, Swizzle::B128).unwrap();
        let chunks = |r: usize| (0..8).map(|c| layout.offset(&[r, 8 * c]) % 64 / 8).collect::<Vec<_>>();
        assert_eq!(chunks(0), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(chunks(1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(chunks(2), [2, 3, 0, 1, 6, 7, 4, 5]);
        assert_eq!(chunks(3), [3, 2, 1, 0, 7, 6, 5, 4]);
    }

    #[test]
    fn rows_fill_up_to_the_pattern() {
        let layout = swizzled([12, 128], 16, Swizzle::B128).unwrap();
        assert_eq!(layout.shape(), [12, 128]);
        assert_eq!(layout.offset(&[0, 64]), 16 * 64);
        let e = swizzled([8, 48], 16, Swizzle::B128).unwrap_err();
        assert!(e.to_string().contains("the number of columns is 48, but must be a multiple of 64 (128 bytes)"), "{e}");
    }
}
