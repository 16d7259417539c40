//! Register fragments and shared operands of `wgmma.mma_async` (PTX ISA, "Register Fragments and Shared Memory Matrix
//! Layouts"). One warpgroup of four warps; warp `w` holds rows `16 w` to `16 w + 15`.

use super::shared::{Swizzle, swizzled};
use crate::layout::{FragmentLayout, LANE, LayoutError, MemoryLayout, REGISTER, WARP_DIM};

/// Rows of one `wgmma`.
pub const M: usize = 64;

/// Accumulator D of m64nNkK, axes (m, n): `n` a multiple of 8 up to 256, N/2 elements per thread.
pub fn accumulator(n: usize) -> Result<FragmentLayout, LayoutError> {
    accumulator_tile([M, n], n, [1, 1])
}

/// Accumulators of a tile of `shape` (m, n) computed by `warpgroups` (along m, along n) with instructions of width
/// `inst_n`.
///
/// Along m stand the 64 rows of an instruction, then warpgroups, then repeats; along n the columns of an instruction,
/// then repeats up to a power of two, then warpgroups, then the odd rest of the repeats. The registers of one
/// instruction are consecutive; repeats along n follow, then repeats along m. Warpgroups along n are numbered first.
pub fn accumulator_tile(
    shape: [usize; 2],
    inst_n: usize,
    warpgroups: [usize; 2],
) -> Result<FragmentLayout, LayoutError> {
    check_n(inst_n)?;
    let [gm, gn] = warpgroups;
    let rm = blocks("wgmma accumulator", "m", shape[0], M, gm)?;
    let rn = blocks("wgmma accumulator", "n", shape[1], inst_n, gn)?;
    let even = 1 << rn.trailing_zeros();
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, 2, "dim1")
        .tile(LANE, 4, "dim1")
        .tile(LANE, 8, "dim0")
        .tile(REGISTER, 2, "dim0")
        .tile(REGISTER, inst_n / 8, "dim1")
        .tile(WARP_DIM, 4, "dim0")
        .tile(REGISTER, even, "dim1")
        .tile(WARP_DIM, gn, "dim1")
        .tile(REGISTER, rn / even, "dim1")
        .tile(WARP_DIM, gm, "dim0")
        .tile(REGISTER, rm, "dim0")
        .build()?;
    FragmentLayout::exact(map)
}

/// Accumulators of a tile of `shape` (m, n) that each of `copies` warpgroups computes as a whole, with instructions of
/// width `inst_n`; registers as in [`accumulator_tile`].
pub fn copied_accumulator_tile(shape: [usize; 2], inst_n: usize, copies: usize) -> Result<FragmentLayout, LayoutError> {
    check_n(inst_n)?;
    let rm = blocks("wgmma accumulator", "m", shape[0], M, 1)?;
    let rn = blocks("wgmma accumulator", "n", shape[1], inst_n, 1)?;
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, 2, "dim1")
        .tile(LANE, 4, "dim1")
        .tile(LANE, 8, "dim0")
        .tile(REGISTER, 2, "dim0")
        .tile(REGISTER, inst_n / 8, "dim1")
        .tile(WARP_DIM, 4, "dim0")
        .tile(REGISTER, rn, "dim1")
        .replicate(WARP_DIM, copies)
        .tile(REGISTER, rm, "dim0")
        .build()?;
    FragmentLayout::exact(map)
}

/// Operand A in registers for one instruction: 64 x K with K = 256 / `bits` (16: f16, bf16; 32: tf32; 8: fp8, s8, u8).
pub fn a(bits: usize) -> Result<FragmentLayout, LayoutError> {
    a_tile([M, 256 / bits.clamp(1, 256)], bits, [1, 1])
}

/// Operand A in registers for a tile of `shape` (m, k), rows distributed as in [`accumulator_tile`]; warpgroups along n
/// hold replicas. The registers of one instruction are consecutive; repeats along k follow, then repeats along m.
pub fn a_tile(shape: [usize; 2], bits: usize, warpgroups: [usize; 2]) -> Result<FragmentLayout, LayoutError> {
    if !matches!(bits, 8 | 16 | 32) {
        return Err(unsupported("wgmma operand A", "element width", bits, "8, 16 or 32 bits"));
    }
    let [gm, gn] = warpgroups;
    let rm = blocks("wgmma operand A", "m", shape[0], M, gm)?;
    let rk = blocks("wgmma operand A", "k", shape[1], 256 / bits, 1)?;
    let map = FragmentLayout::builder(2)
        .tile(REGISTER, 32 / bits, "dim1")
        .tile(LANE, 4, "dim1")
        .tile(LANE, 8, "dim0")
        .tile(REGISTER, 2, "dim0")
        .tile(REGISTER, 2, "dim1")
        .tile(REGISTER, rk, "dim1")
        .tile(WARP_DIM, 4, "dim0")
        .replicate(WARP_DIM, gn)
        .tile(WARP_DIM, gm, "dim0")
        .tile(REGISTER, rm, "dim0")
        .build()?;
    FragmentLayout::exact(map)
}

/// Which axis of an operand is contiguous in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Major {
    /// k contiguous: `tnspA`/`tnspB` = 0.
    K,
    /// m (of A) or n (of B) contiguous: `tnspA`/`tnspB` = 1, 16-bit elements only.
    Mn,
}

/// A `wgmma` operand in shared memory and what its matrix descriptor needs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SharedOperand {
    /// Layout of the tile, axes (mn, k).
    pub layout: MemoryLayout,
    /// The swizzle mode of the descriptor.
    pub swizzle: Swizzle,
    /// The contiguous axis.
    pub major: Major,
    /// Leading dimension byte offset; 0 where the hardware ignores it.
    pub leading_bytes: usize,
    /// Stride dimension byte offset.
    pub stride_bytes: usize,
    bits: usize,
}

impl SharedOperand {
    /// Byte offset of the descriptor's start address for the block that begins at (`mn`, `k`).
    pub fn start_bytes(&self, mn: usize, k: usize) -> usize {
        self.layout.offset(&[mn, k]) * self.bits / 8
    }
}

/// The canonical layout of an operand of extents (mn, k) with elements of `bits` bits.
///
/// The tile is cut into boxes as wide (along the contiguous axis) as the swizzle, laid out one after another, each as
/// one TMA box would leave it. Units of 8 rows x 16 bytes are the *core matrices*. With `T` elements in 16 bytes and
/// `s` = swizzle bytes / 16 the manual writes these layouts, as (shape):(stride),
/// K-major `((8,m),(T,2k)):((sT,SBO),(1,T))`, unswizzled `((8,m),(T,2k)):((T,SBO),(1,LBO))`,
/// MN-major `((T,s,m),(8,k)):((1,T,LBO),(sT,SBO))`, unswizzled `((T,1,m),(8,k)):((1,T,SBO),(T,LBO))`.
pub fn shared_operand(
    shape: [usize; 2],
    bits: usize,
    major: Major,
    swizzle: Swizzle,
) -> Result<SharedOperand, LayoutError> {
    const WHAT: &str = "wgmma shared operand";
    let [mn, k] = shape;
    if !matches!(bits, 8 | 16 | 32) {
        return Err(unsupported(WHAT, "element width", bits, "8, 16 or 32 bits"));
    }
    if major == Major::Mn && bits != 16 {
        return Err(unsupported(WHAT, "element width", bits, "16 bits when m or n is contiguous"));
    }
    let (rows, cols, axis) = match major {
        Major::K => (mn, k, "mn"),
        Major::Mn => (k, mn, "k"),
    };
    if !rows.is_multiple_of(8) {
        return Err(unsupported(WHAT, axis, rows, "a multiple of 8"));
    }
    let tile = swizzled([rows, cols], bits, swizzle)?;
    let core = 8 * swizzle.atom_bytes();
    let next_box = rows * swizzle.atom_bytes();
    let (layout, leading_bytes, stride_bytes) = match (major, swizzle) {
        (Major::K, Swizzle::None) => (tile, next_box, core),
        (Major::K, Swizzle::B32 | Swizzle::B64 | Swizzle::B128) => (tile, 0, core),
        (Major::Mn, Swizzle::None) => (tile.permute(&[1, 0])?, core, next_box),
        (Major::Mn, Swizzle::B32 | Swizzle::B64 | Swizzle::B128) => (tile.permute(&[1, 0])?, next_box, core),
    };
    Ok(SharedOperand { layout, swizzle, major, leading_bytes, stride_bytes, bits })
}

fn check_n(n: usize) -> Result<(), LayoutError> {
    if n == 0 || !n.is_multiple_of(8) || n > 256 {
        return Err(unsupported("wgmma accumulator", "n of the instruction", n, "a multiple of 8 from 8 to 256"));
    }
    Ok(())
}

fn blocks(
    what: &'static str,
    axis: &'static str,
    extent: usize,
    block: usize,
    groups: usize,
) -> Result<usize, LayoutError> {
    let step = block * groups;
    if step == 0 || extent == 0 || !extent.is_multiple_of(step) {
        return Err(unsupported(what, axis, extent, &format!("a multiple of {block} x {groups}")));
    }
    Ok(extent / step)
}

fn unsupported(what: &'static str, axis: &'static str, value: usize, need: &str) -> LayoutError {
    LayoutError::Unsupported { what, axis, value, need: need.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accumulator_matches_the_manual_for_every_width() {
        for n in (8..=256).step_by(8) {
            let d = accumulator(n).unwrap();
            assert_eq!((d.shape(), d.threads(), d.regs_per_thread()), (&[64, n][..], 128, n / 2));
            for thread in 0..128 {
                let (lane, warp) = (thread % 32, thread / 32);
                for i in 0..n / 2 {
                    let row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
                    let col = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
                    assert_eq!(d.coord(i, thread).unwrap().as_slice(), [row, col]);
                }
            }
        }
        assert!(accumulator(12).is_err() && accumulator(264).is_err() && accumulator(0).is_err());
    }

    #[test]
    fn operand_a_matches_the_manual() {
        for (bits, k) in [(16, 16), (32, 8), (8, 32)] {
            let a = a(bits).unwrap();
            let e = 32 / bits;
            assert_eq!((a.shape(), a.regs_per_thread()), (&[64, k][..], 4 * e));
            for thread in 0..128 {
                let (g, t, warp) = (thread % 32 / 4, thread % 4, thread / 32);
                for i in 0..4 * e {
                    let row = 16 * warp + g + if (i / e) % 2 == 0 { 0 } else { 8 };
                    let col = e * t + i % e + if i < 2 * e { 0 } else { k / 2 };
                    assert_eq!(a.coord(i, thread).unwrap().as_slice(), [row, col], "bits {bits} element {i}");
                }
            }
        }
        assert!(a(4).is_err());
    }

    #[test]
    fn tiles_keep_instructions_together() {
        // 256 x 112 by two warpgroups, as one of DeepGEMM's tiles: two instructions of width 112 each.
        let d = accumulator_tile([256, 112], 112, [2, 1]).unwrap();
        assert_eq!((d.threads(), d.regs_per_thread()), (256, 112));
        assert_eq!(d.coord(0, 128).unwrap().as_slice(), [64, 0]);
        assert_eq!(d.coord(56, 0).unwrap().as_slice(), [128, 0]);
        // Two warpgroups side by side, 24 columns each: the odd digit sits below the warpgroup bit.
        let d = accumulator_tile([64, 48], 24, [1, 2]).unwrap();
        assert_eq!(d.coord(0, 128).unwrap().as_slice(), [0, 24]);
        assert_eq!(d.owner(&[0, 24]), (0, 128));
        let a = a_tile([128, 64], 16, [1, 2]).unwrap();
        assert_eq!(a.replication().count(), 2);
        assert_eq!(a.owners(&[0, 0]), [(0, 0), (0, 128)]);
    }

    /// Offset in elements of (i, j) in `((d0, d1, ..), (e0, e1, ..)):((s0, ..), (u0, ..))`.
    fn shape_stride(index: [usize; 2], modes: [&[(usize, usize)]; 2]) -> usize {
        let along = |mut i: usize, modes: &[(usize, usize)]| {
            let mut offset = 0;
            for &(extent, stride) in modes {
                offset += i % extent * stride;
                i /= extent;
            }
            offset
        };
        along(index[0], modes[0]) + along(index[1], modes[1])
    }

    /// The address permutation of the manual's swizzle modes, on a byte address.
    fn xor_address(swizzle: Swizzle, byte: usize) -> usize {
        match swizzle {
            Swizzle::None => byte,
            Swizzle::B32 => byte ^ (byte >> 7 & 1) << 4,
            Swizzle::B64 => byte ^ (byte >> 7 & 3) << 4,
            Swizzle::B128 => byte ^ (byte >> 7 & 7) << 4,
        }
    }

    #[test]
    fn shared_operands_match_the_canonical_layouts() {
        const END: usize = usize::MAX;
        for bits in [8, 16, 32] {
            let t = 128 / bits;
            for swizzle in Swizzle::ALL {
                let s = swizzle.atom_bytes() / 16;
                for major in [Major::K, Major::Mn] {
                    if major == Major::Mn && bits != 16 {
                        continue;
                    }
                    // Two swizzle atoms along the contiguous axis, three groups of eight rows along the other.
                    let (wide, tall) = (2 * t * s, 24);
                    let shape = if major == Major::K { [tall, wide] } else { [wide, tall] };
                    let op = shared_operand(shape, bits, major, swizzle).unwrap();
                    let (lbo, sbo) = (op.leading_bytes * 8 / bits, op.stride_bytes * 8 / bits);
                    for i in 0..shape[0] {
                        for j in 0..shape[1] {
                            let linear = match (major, swizzle) {
                                (Major::K, Swizzle::None) => {
                                    shape_stride([i, j], [&[(8, t), (END, sbo)], &[(t, 1), (END, lbo)]])
                                }
                                // Within one box; the next box is a new start address.
                                (Major::K, _) => {
                                    shape_stride([i, j % (t * s)], [&[(8, s * t), (END, sbo)], &[(t, 1), (END, t)]])
                                        + j / (t * s) * tall * t * s
                                }
                                (Major::Mn, Swizzle::None) => {
                                    shape_stride([i, j], [&[(t, 1), (END, sbo)], &[(8, t), (END, lbo)]])
                                }
                                (Major::Mn, _) => {
                                    shape_stride([i, j], [&[(t, 1), (s, t), (END, lbo)], &[(8, s * t), (END, sbo)]])
                                }
                            };
                            let byte = xor_address(swizzle, linear * bits / 8);
                            assert_eq!(
                                op.layout.offset(&[i, j]) * bits / 8,
                                byte,
                                "{major:?} {swizzle:?} {bits} ({i},{j})"
                            );
                        }
                    }
                }
            }
        }
        assert!(shared_operand([64, 64], 8, Major::Mn, Swizzle::B128).is_err());
        assert!(shared_operand([60, 64], 16, Major::K, Swizzle::B128).is_err());
    }

    #[test]
    fn descriptor_steps() {
        // bf16, 128-byte swizzle: a k step of 16 elements advances 32 bytes inside the box, the fifth enters the next.
        let op = shared_operand([128, 128], 16, Major::K, Swizzle::B128).unwrap();
        assert_eq!((op.leading_bytes, op.stride_bytes), (0, 1024));
        assert_eq!([0, 16, 48, 64].map(|k| op.start_bytes(0, k)), [0, 32, 96, 128 * 128]);
        assert_eq!(op.start_bytes(64, 0), 64 * 128);
        let op = shared_operand([128, 64], 16, Major::Mn, Swizzle::B128).unwrap();
        assert_eq!((op.leading_bytes, op.stride_bytes), (64 * 128, 1024));
        assert_eq!(op.start_bytes(0, 16), 16 * 128);
        assert_eq!(op.start_bytes(64, 0), 64 * 128);
    }
}
