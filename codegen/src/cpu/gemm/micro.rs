//! The loop nest and the register-blocked micro-kernel of a product.

use super::blocking::{Block, choose};
use crate::cpu::loopir::{BinOp, Ty, Val};
use crate::cpu::lower::{Lower, Result};

/// A matrix of 4-byte cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    /// Address of the first cell.
    pub base: Val,
    /// In cells.
    pub row_stride: i64,
    pub column_stride: i64,
}

/// `c += a * b`, `m x k` by `k x n`. The columns of `b` and `c` are neighbours.
pub(super) struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Matrix,
    pub b: Matrix,
    pub c: Matrix,
    /// i32 rather than f32.
    pub int: bool,
}

/// Steps of `k` in one iteration of the micro-kernel's loop.
const UNROLL: i64 = 8;

/// Columns of one micro-kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Columns {
    Vectors(usize),
    /// The last few, one by one.
    Scalars(usize),
}

impl Lower<'_> {
    pub(super) fn multiply(&mut self, p: &Product) -> Result {
        let block = choose(p.m, p.n);
        let width = block.vectors * 4;
        let (full, rest) = (p.n / width * width, p.n % width);
        self.panels(p, block, 0, full, Columns::Vectors(block.vectors))?;
        if rest >= 4 {
            self.panels(p, block, full, full + rest / 4 * 4, Columns::Vectors(rest / 4))?;
        }
        if rest % 4 > 0 {
            self.panels(p, block, p.n - rest % 4, p.n, Columns::Scalars(rest % 4))?;
        }
        Ok(())
    }

    /// Computes the columns `from..to` in panels of `columns`.
    fn panels(&mut self, p: &Product, block: Block, from: usize, to: usize, columns: Columns) -> Result {
        let width = match columns {
            Columns::Vectors(v) => v * 4,
            Columns::Scalars(s) => s,
        };
        let whole = p.m / block.rows * block.rows;
        let (lo, hi) = (self.b.i64(from as i64), self.b.i64(to as i64));
        self.counted(lo, hi, width as i64, &mut |l, j| {
            let (zero, rows_end) = (l.b.i64(0), l.b.i64(whole as i64));
            l.counted(zero, rows_end, block.rows as i64, &mut |l, i| {
                l.micro_kernel(p, block.rows, columns, i, j);
                Ok(())
            })?;
            if p.m > whole {
                l.micro_kernel(p, p.m - whole, columns, rows_end, j);
            }
            Ok(())
        })
    }

    /// `rows` rows from `i` by the columns from `j`, over all of `k`, in registers.
    fn micro_kernel(&mut self, p: &Product, rows: usize, columns: Columns, i: Val, j: Val) {
        let scalar = if p.int { Ty::I32 } else { Ty::F32 };
        let (ty, count) = match columns {
            Columns::Vectors(v) => (scalar.vector(), v),
            Columns::Scalars(s) => (scalar, s),
        };
        let a = self.b.sum(&[(p.a.base, 1), (i, p.a.row_stride * 4)]);
        let b = self.b.sum(&[(p.b.base, 1), (j, 4)]);
        let c = self.b.sum(&[(p.c.base, 1), (i, p.c.row_stride * 4), (j, 4)]);
        let place = |r: usize, v: usize| (r as i64 * p.c.row_stride * 4 + (v * ty.bytes()) as i64) as i32;
        let mut acc: Vec<Val> = (0..rows * count).map(|x| self.b.load(ty, c, place(x / count, x % count))).collect();
        let k = p.k as i64;
        let whole = k / UNROLL * UNROLL;
        let (zero, end) = (self.b.i64(0), self.b.i64(whole));
        if whole > 0 {
            // Both operands' addresses move along with k.
            let lp = self.b.begin_for(zero, end, UNROLL, &acc);
            let a_k = self.b.sum(&[(a, 1), (lp.iv, p.a.column_stride * 4)]);
            let b_k = self.b.sum(&[(b, 1), (lp.iv, p.b.row_stride * 4)]);
            let mut next = lp.params.clone();
            for u in 0..UNROLL {
                self.step(p, rows, count, ty, (a_k, b_k), u, &mut next);
            }
            acc = self.b.end_for(lp, &next);
        }
        if whole < k {
            let (lo, hi) = (self.b.i64(whole), self.b.i64(k));
            let lp = self.b.begin_for(lo, hi, 1, &acc);
            let a_k = self.b.sum(&[(a, 1), (lp.iv, p.a.column_stride * 4)]);
            let b_k = self.b.sum(&[(b, 1), (lp.iv, p.b.row_stride * 4)]);
            let mut next = lp.params.clone();
            self.step(p, rows, count, ty, (a_k, b_k), 0, &mut next);
            acc = self.b.end_for(lp, &next);
        }
        for (x, v) in acc.into_iter().enumerate() {
            self.b.store(v, c, place(x / count, x % count));
        }
    }

    /// One step of `k`: `u` steps from the given addresses.
    #[allow(clippy::too_many_arguments)]
    fn step(&mut self, p: &Product, rows: usize, count: usize, ty: Ty, at: (Val, Val), u: i64, acc: &mut [Val]) {
        let row = p.b.row_stride * 4 * u;
        let right: Vec<Val> =
            (0..count).map(|v| self.b.load(ty, at.1, (row + (v * ty.bytes()) as i64) as i32)).collect();
        for r in 0..rows {
            let offset = (r as i64 * p.a.row_stride + u * p.a.column_stride) * 4;
            let x = self.b.load(ty.lane(), at.0, offset as i32);
            let x = if ty.is_vector() { self.b.splat(x) } else { x };
            for (v, &y) in right.iter().enumerate() {
                let sum = &mut acc[r * count + v];
                *sum = if p.int {
                    let xy = self.b.bin(BinOp::Mul, x, y);
                    self.b.add(*sum, xy)
                } else {
                    self.b.fma(x, y, *sum)
                };
            }
        }
    }
}
