//! Tile ops that combine elements: gemm, reduce, scan. Sums run by position, in f32 where the result is narrower.

use super::exec::{Machine, Step};
use super::tile::lines;
use crate::DType;
use crate::eval;
use crate::func::Op;
use crate::numerics::{Const, cast};
use crate::op::{BinaryOp, CmpOp, GemmPrecision, ReduceOp, ScanOp, UnaryOp};
use crate::window::Window;

impl Machine<'_> {
    pub(super) fn gemm(&mut self, op: Op, a: &Window, b: &Window, acc: &Window, precision: GemmPrecision) -> Step {
        let (sa, sb, sc) = (a.shape(), b.shape(), acc.shape());
        if sa.len() != 2 || sb.len() != 2 || sa[1] != sb[0] || sc[..] != [sa[0], sb[1]] {
            return self.malformed(op, format!("a gemm of {sa:?} by {sb:?} into {sc:?}"));
        }
        self.check_overlap(op, a, acc, false)?;
        self.check_overlap(op, b, acc, false)?;
        let (m, n, k) = (sa[0], sb[1], sa[1]);
        self.spend(op, (m * n * k) as u64)?;
        let (va, vb) = (self.read_zero_padded(op, a)?, self.read_zero_padded(op, b)?);
        let mut vc = self.read_zero_padded(op, acc)?;
        let ty = self.dtype(acc.buffer).accumulator();
        match ty {
            DType::F32 => {
                let operand = |c: &Const| {
                    let x = c.as_f64() as f32;
                    match precision {
                        GemmPrecision::Exact => x,
                        GemmPrecision::Tf32 => tf32(x),
                    }
                };
                let (fa, fb): (Vec<f32>, Vec<f32>) =
                    (va.iter().map(operand).collect(), vb.iter().map(operand).collect());
                for (i, c) in vc.iter_mut().enumerate() {
                    let (row, col) = (i / n, i % n);
                    let start = c.as_f64() as f32;
                    let sum = (0..k).fold(start, |sum, l| fa[row * k + l].mul_add(fb[l * n + col], sum));
                    *c = Const::f32(sum);
                }
            }
            _ => {
                for (i, c) in vc.iter_mut().enumerate() {
                    let (row, col) = (i / n, i % n);
                    let mut sum = cast(*c, ty);
                    for l in 0..k {
                        let (x, y) = (cast(va[row * k + l], ty), cast(vb[l * n + col], ty));
                        let step = if ty.is_float() {
                            eval::fma(x, y, sum)
                        } else {
                            eval::binary(BinaryOp::Mul, x, y).and_then(|p| eval::binary(BinaryOp::Add, p, sum))
                        };
                        sum = self.check(op, &[x, y, sum], step)?;
                    }
                    *c = sum;
                }
            }
        }
        self.write_window(op, acc, &vc)
    }

    pub(super) fn reduce(
        &mut self,
        op: Op,
        f: ReduceOp,
        src: &Window,
        dst: &Window,
        axis: usize,
        accumulate: bool,
    ) -> Step {
        let shape = src.shape();
        if axis >= shape.len() {
            return self.malformed(op, format!("a reduction along axis {axis} of {shape:?}"));
        }
        let mut want = shape.clone();
        want.remove(axis);
        self.expect_shape(op, "the destination", &dst.shape(), &want)?;
        self.check_overlap(op, src, dst, false)?;
        let values = self.read_zero_padded(op, src)?;
        let positions = match f {
            ReduceOp::ArgMax => Some(CmpOp::Gt),
            ReduceOp::ArgMin => Some(CmpOp::Lt),
            ReduceOp::Sum
            | ReduceOp::Max
            | ReduceOp::Min
            | ReduceOp::AbsMax
            | ReduceOp::And
            | ReduceOp::Or
            | ReduceOp::Xor => None,
        };
        if accumulate && positions.is_some() {
            return self.malformed(op, format!("{f} cannot accumulate"));
        }
        let ty = self.dtype(dst.buffer).accumulator();
        let start = if accumulate { Some(self.read_zero_padded(op, dst)?) } else { None };
        let mut results = Vec::with_capacity(dst.len());
        for (i, line) in lines(&shape, axis).enumerate() {
            results.push(match positions {
                Some(better) => {
                    let mut best = 0;
                    for p in 1..line.len {
                        let (x, y) = (values[line.at(p)], values[line.at(best)]);
                        let wins =
                            eval::cmp(better, x, y).map(|gt| gt || (y.as_f64().is_nan() && !x.as_f64().is_nan()));
                        if self.check(op, &[x, y], wins)? {
                            best = p;
                        }
                    }
                    Const::i32(best as i32)
                }
                None => {
                    let identity = match &start {
                        Some(values) => Some(cast(values[i], ty)),
                        None => f.identity(ty),
                    };
                    let Some(mut sum) = identity else {
                        return self.malformed(op, format!("{f} of {ty} elements"));
                    };
                    for p in 0..line.len {
                        let x = cast(values[line.at(p)], ty);
                        sum = self.check(op, &[sum, x], combine(f, sum, x))?;
                    }
                    sum
                }
            });
        }
        self.write_window(op, dst, &results)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn scan(
        &mut self,
        op: Op,
        f: ScanOp,
        src: &Window,
        dst: &Window,
        axis: usize,
        reverse: bool,
        exclusive: bool,
    ) -> Step {
        let shape = src.shape();
        if axis >= shape.len() {
            return self.malformed(op, format!("a scan along axis {axis} of {shape:?}"));
        }
        self.expect_shape(op, "the destination", &dst.shape(), &shape)?;
        self.check_overlap(op, src, dst, true)?;
        let f = ReduceOp::from(f);
        let ty = self.dtype(dst.buffer).accumulator();
        let values = self.read_zero_padded(op, src)?;
        let Some(identity) = f.identity(ty) else {
            return self.malformed(op, format!("a scan of {ty} elements"));
        };
        let mut results = vec![identity; values.len()];
        for line in lines(&shape, axis) {
            let mut sum = identity;
            for step in 0..line.len {
                let at = line.at(if reverse { line.len - 1 - step } else { step });
                let x = cast(values[at], ty);
                let next = self.check(op, &[sum, x], combine(f, sum, x))?;
                results[at] = if exclusive { sum } else { next };
                sum = next;
            }
        }
        self.write_window(op, dst, &results)
    }
}

/// One step of a reduction.
fn combine(f: ReduceOp, sum: Const, x: Const) -> Result<Const, eval::EvalError> {
    match f {
        ReduceOp::Sum => eval::binary(BinaryOp::Add, sum, x),
        ReduceOp::Max => eval::binary(BinaryOp::Max, sum, x),
        ReduceOp::Min => eval::binary(BinaryOp::Min, sum, x),
        ReduceOp::AbsMax => eval::binary(BinaryOp::Max, sum, eval::unary(UnaryOp::Abs, x)?),
        ReduceOp::And => eval::binary(BinaryOp::And, sum, x),
        ReduceOp::Or => eval::binary(BinaryOp::Or, sum, x),
        ReduceOp::Xor => eval::binary(BinaryOp::Xor, sum, x),
        ReduceOp::ArgMax | ReduceOp::ArgMin => Err(eval::EvalError::Undefined),
    }
}

/// `x` rounded to 10 mantissa bits, half away from zero, as `cvt.rna.tf32.f32` does.
fn tf32(x: f32) -> f32 {
    if x.is_finite() { f32::from_bits((x.to_bits() + 0x1000) & !0x1fff) } else { x }
}
