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

/// Values of one element format as f32 (integers too: 8-bit values are exact).
#[inline]
pub fn element(bits: u32, ty: MatTy) -> f32 {
    match ty {
        MatTy::F16 => f16::from_bits(bits as u16).to_f32(),
        MatTy::Bf16 => f32::from_bits(bits << 16),
        // The low mantissa bits of a tf32 register are ignored.
        MatTy::Tf32 => f32::from_bits(bits & 0xFFFF_E000),
        MatTy::E4m3 => f8_value(bits as u8, PackTy::E4m3x2),
        MatTy::E5m2 => f8_value(bits as u8, PackTy::E5m2x2),
        MatTy::S8 => f32::from(bits as i8),
        MatTy::U8 => f32::from(bits as u8),
    }
}

/// Unpacks a fragment of 16 (A) or 8 (B) rows by `k`: register `r` of lane `4g+t` holds row `g` (+8 for odd `r` of A) and
/// columns from `t*e + (r / rows8) * 4e`, with `e` elements per register.
pub fn unpack_rows(warp: &Warp, slots: &[u32], ty: MatTy, k: usize, rows8: usize) -> Vec<f32> {
    let per = 32 / ty.bits() as usize;
    let keep = if ty.bits() == 32 { u32::MAX } else { (1 << ty.bits()) - 1 };
    let mut out = vec![0f32; 8 * rows8 * k];
    for (r, &slot) in slots.iter().enumerate() {
        let v = &warp.regs.w32[slot as usize];
        let (half, block) = (r % rows8, r / rows8);
        for (l, bits) in v.iter().enumerate() {
            let (g, t) = (l / 4, l % 4);
            for e in 0..per {
                let col = t * per + e + block * 4 * per;
                out[(g + 8 * half) * k + col] = element(bits >> (e as u32 * ty.bits()) & keep, ty);
            }
        }
    }
    out
}

/// `d[r][c] += a[r][:] . b[:][c]` with `b` stored by k, rows of `n`; f32 sums by ascending k.
pub fn multiply(a: &[f32], b: &[f32], d: &mut [f32], (m, n, k): (usize, usize, usize)) {
    for r in 0..m {
        let row = &mut d[r * n..(r + 1) * n];
        for kk in 0..k {
            let x = a[r * k + kk];
            let bs = &b[kk * n..(kk + 1) * n];
            for (o, y) in row.iter_mut().zip(bs) {
                *o += x * y;
            }
        }
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
        AccTy::S32 => {
            let mut d: Vec<i32> = values.iter().map(|v| *v as i32).collect();
            multiply_int(a, b, &mut d, shape);
            values.iter_mut().zip(d).for_each(|(v, d)| *v = d as u32);
        }
        AccTy::F32 | AccTy::F16 => {
            let mut d: Vec<f32> = values.iter().map(|v| f32::from_bits(*v)).collect();
            multiply(a, b, &mut d, shape);
            values.iter_mut().zip(d).for_each(|(v, d)| *v = d.to_bits());
        }
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
