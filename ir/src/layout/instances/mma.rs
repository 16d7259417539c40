//! Fragments of `mma.sync`, one warp (PTX ISA, "Matrix Fragments for mma.m16n8k8/k16/k32").
//!
//! All have one pattern. Let `e` be the elements in a 32-bit register, `g = lane / 4` and `t = lane % 4`. A and the
//! accumulators count rows by `g`, B counts columns (n) by `g`; along the other axis each thread has `e` neighbours
//! starting at `e * t`, and the rest of the tile follows in further registers. B is described with the axes (k, n).

use crate::layout::{FragmentLayout, LANE, LayoutError, REGISTER, WARP_DIM};

/// Operand A, 16 x K, of `mma.m16n8kK` with elements of `bits` bits; K = 256 / `bits` (half of it: [`a_half`]).
///
/// 16 bits: m16n8k16 (f16, bf16). 32 bits: m16n8k8 (tf32). 8 bits: m16n8k32 (e4m3, e5m2, s8, u8).
pub fn a(bits: usize) -> Result<FragmentLayout, LayoutError> {
    operand_a(elements(bits)?, 2)
}

/// Operand A of the half-depth shape, K = 128 / `bits`: m16n8k8 (f16, bf16), m16n8k4 (tf32), m16n8k16 (8-bit).
pub fn a_half(bits: usize) -> Result<FragmentLayout, LayoutError> {
    operand_a(elements(bits)?, 1)
}

/// Operand B, K x 8, axes (k, n), of `mma.m16n8kK` with elements of `bits` bits; K = 256 / `bits`.
pub fn b(bits: usize) -> Result<FragmentLayout, LayoutError> {
    operand_b(elements(bits)?, 2)
}

/// Operand B of the half-depth shape, K = 128 / `bits`, axes (k, n).
pub fn b_half(bits: usize) -> Result<FragmentLayout, LayoutError> {
    operand_b(elements(bits)?, 1)
}

/// Accumulators C and D, 16 x 8, of every `mma.m16n8kK` with 32-bit (or packed 16-bit) accumulators.
pub fn c() -> FragmentLayout {
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, 2, "dim1")
        .tile(LANE, 4, "dim1")
        .tile(LANE, 8, "dim0")
        .tile(REGISTER, 2, "dim0")
        .replicate(WARP_DIM, 1)
        .build();
    map.and_then(FragmentLayout::exact).expect("constant layout")
}

/// Accumulators of a tile of `shape` (m, n) computed by `warps` (along m, along n).
///
/// Along each axis: one instruction, then repeats up to a power of two, then warps, then the odd rest of the repeats.
/// So warps own contiguous sub-tiles as far as digits allow without leaving their canonical order, which keeps the
/// layout composable with memory layouts. Warps along m are numbered first. The registers of one instruction are
/// consecutive; repeats along n follow, then repeats along m.
pub fn c_tile(shape: [usize; 2], warps: [usize; 2]) -> Result<FragmentLayout, LayoutError> {
    let [wm, wn] = warps;
    let rm = blocks("m", shape[0], 16, wm)?;
    let rn = blocks("n", shape[1], 8, wn)?;
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, 2, "dim1")
        .tile(LANE, 4, "dim1")
        .tile(LANE, 8, "dim0")
        .tile(REGISTER, 2, "dim0")
        .tile(REGISTER, even(rn), "dim1")
        .tile(WARP_DIM, wn, "dim1")
        .tile(REGISTER, rn / even(rn), "dim1")
        .tile(REGISTER, even(rm), "dim0")
        .tile(WARP_DIM, wm, "dim0")
        .tile(REGISTER, rm / even(rm), "dim0")
        .build()?;
    FragmentLayout::exact(map)
}

/// Operand A of a tile of `shape` (m, k) for the accumulators of [`c_tile`]; warps along n hold replicas.
/// The registers of one instruction are consecutive; repeats along k follow, then repeats along m.
pub fn a_tile(shape: [usize; 2], bits: usize, warps: [usize; 2]) -> Result<FragmentLayout, LayoutError> {
    let e = elements(bits)?;
    let [wm, wn] = warps;
    let rm = blocks("m", shape[0], 16, wm)?;
    let rk = blocks("k", shape[1], 8 * e, 1)?;
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, e, "dim1")
        .tile(LANE, 4, "dim1")
        .tile(LANE, 8, "dim0")
        .tile(REGISTER, 2, "dim0")
        .tile(REGISTER, 2, "dim1")
        .tile(REGISTER, rk, "dim1")
        .replicate(WARP_DIM, wn)
        .tile(REGISTER, even(rm), "dim0")
        .tile(WARP_DIM, wm, "dim0")
        .tile(REGISTER, rm / even(rm), "dim0")
        .build()?;
    FragmentLayout::exact(map)
}

/// Operand B of a tile of `shape` (k, n) for the accumulators of [`c_tile`]; warps along m hold replicas.
/// The registers of one instruction are consecutive; repeats along k follow, then repeats along n.
pub fn b_tile(shape: [usize; 2], bits: usize, warps: [usize; 2]) -> Result<FragmentLayout, LayoutError> {
    let e = elements(bits)?;
    let [wm, wn] = warps;
    let rk = blocks("k", shape[0], 8 * e, 1)?;
    let rn = blocks("n", shape[1], 8, wn)?;
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, e, "dim0")
        .tile(LANE, 4, "dim0")
        .tile(LANE, 8, "dim1")
        .tile(REGISTER, 2, "dim0")
        .tile(REGISTER, rk, "dim0")
        .tile(REGISTER, even(rn), "dim1")
        .tile(WARP_DIM, wn, "dim1")
        .tile(REGISTER, rn / even(rn), "dim1")
        .replicate(WARP_DIM, wm)
        .build()?;
    FragmentLayout::exact(map)
}

/// The largest power of two that divides `n`.
fn even(n: usize) -> usize {
    1 << n.trailing_zeros()
}

fn blocks(axis: &'static str, extent: usize, block: usize, warps: usize) -> Result<usize, LayoutError> {
    let step = block * warps;
    if step == 0 || extent == 0 || !extent.is_multiple_of(step) {
        let need = format!("a multiple of {block} x {warps}");
        return Err(LayoutError::Unsupported { what: "mma tile", axis, value: extent, need });
    }
    Ok(extent / step)
}

fn elements(bits: usize) -> Result<usize, LayoutError> {
    match bits {
        8 | 16 | 32 => Ok(32 / bits),
        value => Err(LayoutError::Unsupported {
            what: "mma operand",
            axis: "element width",
            value,
            need: "8, 16 or 32 bits".into(),
        }),
    }
}

fn operand_a(e: usize, k_halves: usize) -> Result<FragmentLayout, LayoutError> {
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, e, "dim1")
        .tile(LANE, 4, "dim1")
        .tile(LANE, 8, "dim0")
        .tile(REGISTER, 2, "dim0")
        .tile(REGISTER, k_halves, "dim1")
        .build()?;
    FragmentLayout::exact(map)
}

fn operand_b(e: usize, k_halves: usize) -> Result<FragmentLayout, LayoutError> {
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, e, "dim0")
        .tile(LANE, 4, "dim0")
        .tile(LANE, 8, "dim1")
        .tile(REGISTER, k_halves, "dim0")
        .build()?;
    FragmentLayout::exact(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with (row, col) as the manual's formulas give it, for register i of a lane with group g, index t.
    fn check(f: &FragmentLayout, regs: usize, table: impl Fn(usize, usize, usize) -> [usize; 2]) {
        assert_eq!((f.regs_per_thread(), f.threads()), (regs, 32));
        for lane in 0..32 {
            for i in 0..regs {
                let want = table(i, lane >> 2, lane % 4);
                assert_eq!(f.coord(i, lane).as_deref(), Some(&want[..]), "element {i} of lane {lane}");
                assert_eq!(f.owner(&want), (i, lane));
            }
        }
    }

    #[test]
    fn m16n8k16_f16() {
        let a = a(16).unwrap();
        assert_eq!(a.shape(), [16, 16]);
        check(&a, 8, |i, g, t| {
            let row = if i < 2 || (4..6).contains(&i) { g } else { g + 8 };
            [row, t * 2 + (i & 1) + if i < 4 { 0 } else { 8 }]
        });
        let b = b(16).unwrap();
        assert_eq!(b.shape(), [16, 8]);
        check(&b, 4, |i, g, t| [t * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, g]);
        check(&c(), 4, |i, g, t| [if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)]);
    }

    #[test]
    fn m16n8k8_f16() {
        check(&a_half(16).unwrap(), 4, |i, g, t| [if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)]);
        check(&b_half(16).unwrap(), 2, |i, g, t| [t * 2 + i, g]);
    }

    #[test]
    fn m16n8k8_tf32() {
        let a = a(32).unwrap();
        assert_eq!(a.shape(), [16, 8]);
        check(&a, 4, |i, g, t| [if i == 0 || i == 2 { g } else { g + 8 }, if i < 2 { t } else { t + 4 }]);
        let b = b(32).unwrap();
        assert_eq!(b.shape(), [8, 8]);
        check(&b, 2, |i, g, t| [if i == 0 { t } else { t + 4 }, g]);
    }

    #[test]
    fn m16n8k32_8bit() {
        let a = a(8).unwrap();
        assert_eq!(a.shape(), [16, 32]);
        check(&a, 16, |i, g, t| {
            let row = if i < 4 || (8..12).contains(&i) { g } else { g + 8 };
            [row, t * 4 + (i & 3) + if i < 8 { 0 } else { 16 }]
        });
        let b = b(8).unwrap();
        assert_eq!(b.shape(), [32, 8]);
        check(&b, 8, |i, g, t| [t * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, g]);
    }

    #[test]
    fn tiles_agree_on_warps() {
        let c = c_tile([64, 48], [2, 2]).unwrap();
        assert_eq!((c.threads(), c.regs_per_thread()), (128, 24));
        // Three instructions along n per warp: the odd count goes on top of the warps. Warp 2 is the second along m.
        assert_eq!(c.coord(0, 32).unwrap().as_slice(), [0, 8]);
        assert_eq!(c.coord(4, 0).unwrap().as_slice(), [0, 16]);
        assert_eq!(c.coord(12, 0).unwrap().as_slice(), [16, 0]);
        assert_eq!(c.coord(0, 64).unwrap().as_slice(), [32, 0]);
        // Even counts leave each warp a contiguous sub-tile.
        assert_eq!(c_tile([64, 64], [2, 2]).unwrap().coord(0, 32).unwrap().as_slice(), [0, 32]);
        let a = a_tile([64, 32], 16, [2, 2]).unwrap();
        assert_eq!(a.owners(&[32, 0]), [(0, 64), (0, 96)]);
        assert_eq!(a.coord(8, 0).unwrap().as_slice(), [0, 16]);
        let b = b_tile([32, 48], 16, [2, 2]).unwrap();
        assert_eq!(b.owners(&[0, 8]), [(0, 32), (0, 96)]);
        assert_eq!(b.coord(4, 0).unwrap().as_slice(), [16, 0]);
        assert_eq!(b.coord(8, 0).unwrap().as_slice(), [0, 16]);
        // One instruction is a tile of one block.
        assert_eq!(c_tile([16, 8], [1, 1]).unwrap(), super::c());
        assert_eq!(a_tile([16, 16], 16, [1, 1]).unwrap(), super::a(16).unwrap());
        assert_eq!(b_tile([32, 8], 8, [1, 1]).unwrap(), super::b(8).unwrap());
        assert!(c_tile([48, 8], [2, 1]).is_err());
    }

    #[test]
    fn other_widths_are_refused() {
        let e = a(4).unwrap_err();
        assert_eq!(e.to_string(), "mma operand: element width is 4, but must be 8, 16 or 32 bits");
    }
}
