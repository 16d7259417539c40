//! Matrix products of tiles: operands are brought into the shape that the micro-kernel reads, unless they lie so
//! already.
//!
//! The left operand is read one element at a time and spread over a vector, so it may lie in any order; the right one
//! and the accumulator are read as vectors along the columns. Every element's products are added in ascending order of
//! `k`, each by one fused multiply-add: the interpreter's order.

mod blocking;
mod micro;

use super::loopir::{BinOp, FloatCc, Ty, Val};
use super::lower::{Guard, Lower, Rep, Result, Storage, Stride, View, wide_reg};
use super::plan::Cell;
use micro::{Matrix, Product};
use zellige_ir::{Const, DType, GemmPrecision, Op, Window};

impl Lower<'_> {
    /// `acc += a * b`.
    pub(crate) fn gemm(&mut self, at: Op, a: &Window, b: &Window, acc: &Window, precision: GemmPrecision) -> Result {
        let (va, vb, vc) = (self.view(at, a)?, self.view(at, b)?, self.view(at, acc)?);
        let (m, n, k) = (va.shape[0], vb.shape[1], va.shape[1]);
        if m == 0 || n == 0 {
            return Ok(());
        }
        let ty = match vc.storage.dtype {
            DType::F32 | DType::F16 | DType::BF16 => DType::F32,
            DType::I32 => DType::I32,
            // Rare accumulators (f64, other integers) need no micro-kernel.
            _ => return self.gemm_by_element(&va, &vb, &vc),
        };
        let rounds = precision == GemmPrecision::Tf32 && ty == DType::F32;
        let left = self.operand(&va, ty, rounds, false)?;
        let right = self.operand(&vb, ty, rounds, true)?;
        let in_place = matrix(self, &vc, ty).filter(|c| c.column_stride == 1);
        let c = match in_place {
            Some(c) => c,
            None => self.packed(&vc, ty)?,
        };
        let product = Product { m, n, k, a: left, b: right, c, int: ty == DType::I32 };
        self.multiply(&product)?;
        if in_place.is_none() {
            let back = self.packed_view(&vc, ty, c);
            self.copy_views(&back, &vc, Const::zero(ty))?;
        }
        Ok(())
    }

    /// The operand as the micro-kernel reads it, packed into scratch memory if it must be.
    fn operand(&mut self, v: &View, ty: DType, rounds: bool, vectors: bool) -> Result<Matrix> {
        let must_round = rounds && v.storage.dtype == DType::F32;
        if let Some(m) = matrix(self, v, ty).filter(|m| !must_round && (!vectors || m.column_stride == 1)) {
            return Ok(m);
        }
        let packed = self.packed(v, ty)?;
        if must_round {
            self.round_to_tf32(packed.base, (v.shape[0] as i64) * packed.row_stride)?;
        }
        Ok(packed)
    }

    /// A row-major copy of a window in scratch memory, zero outside a tensor.
    fn packed(&mut self, v: &View, ty: DType) -> Result<Matrix> {
        // An odd number of cache lines apart, for the same reason as in the layout of tiles.
        let row = v.shape[1].next_multiple_of(16) | 16;
        let base = self.scratch(v.shape[0] * row * 4 + 16);
        let m = Matrix { base, row_stride: row as i64, column_stride: 1 };
        let to = self.packed_view(v, ty, m);
        self.copy_views(v, &to, Const::zero(v.storage.dtype))?;
        Ok(m)
    }

    /// Packed memory as a window of the shape of `v`.
    fn packed_view(&mut self, v: &View, ty: DType, m: Matrix) -> View {
        let zero = self.b.i64(0);
        View {
            storage: Storage {
                base: m.base,
                dtype: ty,
                cell: Cell::Native,
                strides: vec![Stride::Const(m.row_stride), Stride::Const(m.column_stride)],
                extents: v.shape.iter().map(|n| self.b.i64(*n as i64)).collect(),
                global: false,
                private: false,
            },
            offsets: vec![zero; 2],
            axes: vec![0, 1],
            shape: v.shape.clone(),
        }
    }

    /// Rounds `n` packed elements to 10 mantissa bits, half away from zero.
    fn round_to_tf32(&mut self, base: Val, n: i64) -> Result {
        let (zero, end) = (self.b.i64(0), self.b.i64(n));
        // Rows are padded to whole vectors.
        self.counted(zero, end, 4, &mut |l, i| {
            let addr = l.b.scaled_address(base, i, 4);
            let x = l.b.load(Ty::F32x4, addr, 0);
            let bits = l.b.bitcast(Ty::I32x4, x);
            let up = l.b.add_imm(bits, 0x1000);
            let rounded = l.b.bin_imm(BinOp::And, up, !0x1fff);
            let magnitude = l.b.un(super::loopir::UnOp::FAbs, x);
            let infinity = l.b.imm(Ty::F32x4, u64::from(f32::INFINITY.to_bits()));
            let finite = l.b.fcmp(FloatCc::Lt, magnitude, infinity);
            let r = l.b.select(finite, rounded, bits);
            l.b.store(r, addr, 0);
            Ok(())
        })
    }

    /// One element of the result after the other.
    fn gemm_by_element(&mut self, va: &View, vb: &View, vc: &View) -> Result {
        let ty = vc.storage.dtype;
        let (m, n, k) = (va.shape[0] as i64, vb.shape[1] as i64, va.shape[1] as i64);
        let extents = [self.b.i64(m), self.b.i64(n)];
        self.box_loop(&extents, None, 1, &mut |l, p| {
            let element = |l: &mut Self, v: &View, p: &[Rep]| -> Val {
                let pad = l.immediate(v.storage.dtype, 0);
                let guard = if v.storage.global { Guard::Check(pad) } else { Guard::Inside };
                let idx = v.index(l, p);
                let x = l.load_elem(&v.storage, &idx, guard);
                let x = l.cast(x, v.storage.dtype, ty);
                l.lane(x, ty, 0)
            };
            let start = element(l, vc, p);
            let (zero, end) = (l.b.i64(0), l.b.i64(k));
            let lp = l.b.begin_for(zero, end, 1, &[start]);
            let x = element(l, va, &[p[0], Rep::Uni(lp.iv)]);
            let y = element(l, vb, &[Rep::Uni(lp.iv), p[1]]);
            let next = if ty.is_float() {
                l.b.fma(x, y, lp.params[0])
            } else {
                let xy = l.b.bin(BinOp::Mul, x, y);
                let r = l.b.add(lp.params[0], xy);
                l.normalise(r, ty)
            };
            let total = l.b.end_for(lp, &[next])[0];
            let pad = l.immediate(ty, 0);
            let idx = vc.index(l, p);
            let guard = if vc.storage.global { Guard::Check(pad) } else { Guard::Inside };
            l.store_elem(&vc.storage, &idx, Rep::Uni(total), guard);
            Ok(())
        })
    }
}

/// The window as a matrix of f32 or i32 cells, if it is one.
fn matrix(l: &mut Lower<'_>, v: &View, ty: DType) -> Option<Matrix> {
    let s = &v.storage;
    let fits = match s.cell {
        Cell::Native => s.dtype == ty,
        Cell::Wide => wide_reg(s.dtype) == if ty == DType::F32 { Ty::F32 } else { Ty::I32 },
        Cell::Byte => false,
    };
    let (Stride::Const(row_stride), Stride::Const(column_stride)) = (v.stride(0), v.stride(1)) else { return None };
    if s.global || !fits {
        return None;
    }
    let terms: Option<Vec<(Val, i64)>> = v
        .offsets
        .iter()
        .zip(&s.strides)
        .map(|(&o, stride)| match *stride {
            Stride::Const(c) => Some((o, c * 4)),
            Stride::Dynamic(_) => None,
        })
        .collect();
    let mut terms = terms?;
    terms.push((s.base, 1));
    Some(Matrix { base: l.b.sum(&terms), row_stride, column_stride })
}
