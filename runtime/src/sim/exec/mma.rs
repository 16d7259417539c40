//! `mma.sync`, and the tile arithmetic it shares with `wgmma`.
//!
//! Products of the narrow formats are exact in f32. They are added in f32 by ascending k, starting from the accumulator.
//! The hardware keeps a few more bits inside a group of products and truncates, so results differ from it by rounding of
//! the same size as any other summation order; integer results are exact.

use half::f16;

use super::cvt::f8_value;
use super::float::canonical;
use super::state::{Cluster, Warp};
use crate::sim::decode::op::{AccTy, Inst, MatTy, PackTy};

/// Widens little-endian elements; one match for the whole run.
#[inline]
pub fn decode(bytes: &[u8], ty: MatTy, out: &mut [f32]) {
    #[inline(always)]
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
        for (o, b) in out.iter_mut().zip(bytes.chunks_exact(N)) {
            let mut e = [0; N];
            e.copy_from_slice(b);
            *o = f(e);
        }
    }
    match ty {
        MatTy::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        MatTy::Bf16 => each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        // The low mantissa bits of a tf32 register are ignored.
        MatTy::Tf32 => each(bytes, out, |b| f32::from_bits(u32::from_le_bytes(b) & 0xFFFF_E000)),
        MatTy::E4m3 => each(bytes, out, |[b]| f8_value(b, PackTy::E4m3x2)),
        MatTy::E5m2 => each(bytes, out, |[b]| f8_value(b, PackTy::E5m2x2)),
        MatTy::S8 => each(bytes, out, |[b]| f32::from(b as i8)),
        MatTy::U8 => each(bytes, out, |[b]| f32::from(b)),
    }
}

/// Unpacks a fragment of 16 (A) or 8 (B) rows by `k`: register `r` of lane `4g+t` holds row `g` (+8 for odd `r` of A) and
/// columns from `t*e + (r / rows8) * 4e`, with `e` elements per register.
pub fn unpack_rows(warp: &Warp, slots: &[u32], ty: MatTy, k: usize, rows8: usize) -> Vec<f32> {
    let per = 32 / ty.bits() as usize;
    let mut out = vec![0f32; 8 * rows8 * k];
    for (r, &slot) in slots.iter().enumerate() {
        let v = &warp.regs.w32[slot as usize];
        let (half, block) = (r % rows8, r / rows8);
        for (l, bits) in v.iter().enumerate() {
            let (g, t) = (l / 4, l % 4);
            let col = t * per + block * 4 * per;
            let at = (g + 8 * half) * k + col;
            decode(&bits.to_le_bytes(), ty, &mut out[at..at + per]);
        }
    }
    out
}

/// `d[r][c] += a[r][:] . b[:][c]` with `b` stored by k, rows of `n` (a multiple of 8); f32 sums by ascending k.
pub fn multiply(a: &[f32], b: &[f32], d: &mut [f32], (m, n, k): (usize, usize, usize)) {
    for r in 0..m {
        let (row, out) = (&a[r * k..(r + 1) * k], &mut d[r * n..(r + 1) * n]);
        // Eight columns at a time stay in registers for the whole of k.
        for (c, eight) in out.chunks_exact_mut(8).enumerate() {
            let mut sum = [0f32; 8];
            sum.copy_from_slice(eight);
            for (x, bs) in row.iter().zip(b[8 * c..].chunks(n)) {
                for (s, y) in sum.iter_mut().zip(&bs[..8]) {
                    *s += x * y;
                }
            }
            eight.copy_from_slice(&sum);
        }
    }
}

/// `d += a b` for eight columns of a warp's accumulators, held in the four `slots`; `a` has 16 rows, `b` is stored by k. f32 sums
/// by ascending k, from zero unless `keep`.
pub fn multiply_eight(warp: &mut Warp, slots: &[u32], a: &[f32], b: &[f32], keep: bool, active: u32) {
    let k = b.len() / 8;
    let mut d = [[0f32; 8]; 16];
    if keep {
        for (v, &slot) in slots.iter().enumerate() {
            for (l, bits) in warp.regs.w32[slot as usize].iter().enumerate() {
                let (r, c) = acc_place(l, 0, v);
                d[r][c] = f32::from_bits(*bits);
            }
        }
    }
    // Four rows at a time stay in registers for the whole of k.
    for (rows, out) in a.chunks_exact(4 * k).zip(d.chunks_exact_mut(4)) {
        let mut sum = [out[0], out[1], out[2], out[3]];
        for (kk, bs) in b.chunks_exact(8).enumerate() {
            for (i, s) in sum.iter_mut().enumerate() {
                let x = rows[i * k + kk];
                for (s, y) in s.iter_mut().zip(bs) {
                    *s += x * y;
                }
            }
        }
        out.copy_from_slice(&sum);
    }
    for (v, &slot) in slots.iter().enumerate() {
        let bits = std::array::from_fn(|l| {
            let (r, c) = acc_place(l, 0, v);
            canonical(d[r][c])
        });
        warp.regs.put(slot, &bits, active);
    }
}

/// As [`multiply`] for integers held in f32; wraps at 32 bits.
pub fn multiply_int(a: &[f32], b: &[f32], d: &mut [i32], (m, n, k): (usize, usize, usize)) {
    for r in 0..m {
        for kk in 0..k {
            let x = a[r * k + kk] as i32;
            for c in 0..n {
                d[r * n + c] = d[r * n + c].wrapping_add(x * b[kk * n + c] as i32);
            }
        }
    }
}

/// Rows by columns to columns by rows.
pub fn transpose(a: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0f32; a.len()];
    for r in 0..rows {
        for c in 0..cols {
            out[c * rows + r] = a[r * cols + c];
        }
    }
    out
}

/// Row and column in a 16 x n accumulator tile of value `v` (0..4) of 8-column block `j` held by a lane.
#[inline]
pub fn acc_place(lane: usize, j: usize, v: usize) -> (usize, usize) {
    (lane / 4 + 8 * (v / 2), 8 * j + 2 * (lane % 4) + v % 2)
}

/// Reads a 16 x n accumulator fragment as raw 32-bit values (f16 accumulators widened to f32 bits).
pub fn read_acc(warp: &Warp, slots: &[u32], n: usize, acc: AccTy) -> Vec<u32> {
    let mut out = vec![0u32; 16 * n];
    for j in 0..n / 8 {
        for v in 0..4 {
            for l in 0..32 {
                let (r, c) = acc_place(l, j, v);
                out[r * n + c] = match acc {
                    AccTy::F32 | AccTy::S32 => warp.regs.w32[slots[4 * j + v] as usize][l],
                    AccTy::F16 => {
                        let pair = warp.regs.w32[slots[2 * j + v / 2] as usize][l];
                        f16::from_bits((pair >> (16 * (v % 2))) as u16).to_f32().to_bits()
                    }
                };
            }
        }
    }
    out
}

/// Writes what [`read_acc`] reads.
pub fn write_acc(warp: &mut Warp, slots: &[u32], n: usize, acc: AccTy, values: &[u32], active: u32) {
    for j in 0..n / 8 {
        for v in 0..4 {
            let mut out = [0u32; 32];
            for (l, o) in out.iter_mut().enumerate() {
                let (r, c) = acc_place(l, j, v);
                *o = values[r * n + c];
            }
            match acc {
                AccTy::F32 => warp.regs.put(slots[4 * j + v], &out.map(|b| canonical(f32::from_bits(b))), active),
                AccTy::S32 => warp.regs.put(slots[4 * j + v], &out, active),
                AccTy::F16 => {
                    let slot = slots[2 * j + v / 2];
                    let old: [u32; 32] = warp.regs.get(slot);
                    let shift = 16 * (v as u32 % 2);
                    let new = std::array::from_fn(|l| {
                        let x = f32::from_bits(out[l]);
                        let h = if x.is_nan() { 0x7FFF } else { u32::from(f16::from_f32(x).to_bits()) };
                        old[l] & !(0xFFFF << shift) | h << shift
                    });
                    warp.regs.put(slot, &new, active);
                }
            }
        }
    }
}

/// `values += a b` in the accumulator's arithmetic.
pub fn accumulate(a: &[f32], b: &[f32], values: &mut [u32], acc: AccTy, shape: (usize, usize, usize)) {
    match acc {
        AccTy::S32 => multiply_int(a, b, bytemuck::cast_slice_mut(values), shape),
        AccTy::F32 | AccTy::F16 => multiply(a, b, bytemuck::cast_slice_mut(values), shape),
    }
}

impl Cluster<'_> {
    pub fn mma(
        &mut self,
        warp: &mut Warp,
        i: &Inst,
        active: u32,
        (n, k): (usize, usize),
        (ta, tb): (MatTy, MatTy),
        acc: AccTy,
    ) {
        self.need_whole_warp(warp, active);
        let pool = &self.env.kernel.pool[i.e as usize..];
        let d_regs = if acc == AccTy::F16 { 2 } else { 4 };
        let a_regs = 16 * k * ta.bits() as usize / 1024;
        let b_regs = 8 * k * tb.bits() as usize / 1024;
        let (d_slots, rest) = pool.split_at(d_regs);
        let (a_slots, rest) = rest.split_at(a_regs);
        let (b_slots, rest) = rest.split_at(b_regs);
        let a = unpack_rows(warp, a_slots, ta, k, 2);
        let b = transpose(&unpack_rows(warp, b_slots, tb, k, 1), n, k);
        let mut values = read_acc(warp, &rest[..d_regs], n, acc);
        accumulate(&a, &b, &mut values, acc, (16, n, k));
        write_acc(warp, d_slots, n, acc, &values, active);
    }
}
