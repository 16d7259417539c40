//! `topk` and `sort`: each line becomes an array of records that the runtime sorts.
//!
//! A record is the element made to order as an unsigned integer, smallest first in the wanted order, with its position
//! in the low half; for 64-bit elements key and position are two words.

use super::access::Guard;
use super::cast::unpack;
use super::copy::View;
use super::rep::{Rep, reg};
use super::{Lower, Result};
use crate::cpu::loopir::{BinOp, FloatCc, Helper, Ty, UnOp, Val};
use zellige_ir::{DType, Op, Window};

impl Lower<'_> {
    /// The element as an unsigned i32 or i64 that rises along the wanted order; NaN is the largest.
    fn sort_key(&mut self, v: Val, ty: DType, descending: bool) -> Val {
        if ty.is_float() {
            let float = if matches!(ty, DType::F32 | DType::F64) { v } else { unpack(&mut self.b, ty, v) };
            let b = &mut self.b;
            let int = b.ty(float).as_int();
            let width = int.bytes() as i64 * 8;
            // Zeros of both signs are equal.
            let zero = b.imm(b.ty(float), 0);
            let clean = b.bin(BinOp::FAdd, float, zero);
            let float_ty = b.ty(float);
            let clean = if descending { b.un(UnOp::FNeg, clean) } else { clean };
            // -0 again after negation: add once more.
            let clean = b.bin(BinOp::FAdd, clean, zero);
            debug_assert_eq!(b.ty(clean), float_ty);
            let bits = b.bitcast(int, clean);
            // Negative numbers: all bits flipped; others: the sign bit.
            let sign = b.bin_imm(BinOp::SShr, bits, width - 1);
            let top = b.imm(int, 1 << (width - 1));
            let flip = b.bin(BinOp::Or, sign, top);
            let key = b.bin(BinOp::Xor, bits, flip);
            let is_nan = b.fcmp(FloatCc::Uno, float, float);
            let last = b.imm(int, u64::MAX);
            return b.select(is_nan, last, key);
        }
        let b = &mut self.b;
        let v = if ty == DType::Bool { b.convert(UnOp::ZExt, Ty::I32, v) } else { v };
        let int = b.ty(v);
        let key = if ty.is_signed_int() {
            let top = b.imm(int, 1 << (int.bytes() * 8 - 1));
            b.bin(BinOp::Xor, v, top)
        } else {
            v
        };
        if descending { b.un(UnOp::Not, key) } else { key }
    }

    /// Writes the records of a line to scratch memory. Returns their address and whether they are two words each.
    fn records(&mut self, line: &View, descending: bool) -> Result<(Val, bool)> {
        let ty = line.storage.dtype;
        let wide = matches!(reg(ty), Ty::I64 | Ty::F64);
        let n = line.shape[0];
        let size = if wide { 16 } else { 8 };
        let area = self.scratch(n.max(1) * size);
        let (zero, count) = (self.b.i64(0), self.b.i64(n as i64));
        let pad = self.immediate(ty, 0);
        let guard = if line.storage.global { Guard::Check(pad) } else { Guard::Inside };
        self.counted(zero, count, 1, &mut |l, i| {
            let idx = line.index(l, &[Rep::Uni(i)]);
            let v = l.load_elem(&line.storage, &idx, guard);
            let v = l.lane(v, ty, 0);
            let key = l.sort_key(v, ty, descending);
            let addr = l.b.scaled_address(area, i, size as i64);
            if wide {
                l.b.store(key, addr, 0);
                l.b.store(i, addr, 8);
            } else {
                let key = l.b.convert(UnOp::ZExt, Ty::I64, key);
                let key = l.b.bin_imm(BinOp::Shl, key, 32);
                let record = l.b.bin(BinOp::Or, key, i);
                l.b.store(record, addr, 0);
            }
            Ok(())
        })?;
        Ok((area, wide))
    }

    /// Position that record `i` carries.
    fn record_position(&mut self, area: Val, wide: bool, i: Val) -> Val {
        if wide {
            let addr = self.b.scaled_address(area, i, 16);
            return self.b.load(Ty::I64, addr, 8);
        }
        let addr = self.b.scaled_address(area, i, 8);
        let low = self.b.load(Ty::I32, addr, 0);
        self.b.convert(UnOp::ZExt, Ty::I64, low)
    }

    /// Runs `body` for each line along the last axis of the views, which agree in the other axes.
    fn each_line(&mut self, views: &[&View], body: &mut dyn FnMut(&mut Self, &[View]) -> Result) -> Result {
        let outer = views[0].shape.len() - 1;
        let extents: Vec<Val> = views[0].shape[..outer].iter().map(|n| self.b.i64(*n as i64)).collect();
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let lines: Vec<View> = views
                .iter()
                .map(|v| {
                    let mut line = (*v).clone();
                    for (&axis, &p) in v.axes[..outer].iter().zip(point) {
                        let Rep::Uni(p) = p else { continue };
                        line.offsets[axis] = l.b.add(line.offsets[axis], p);
                    }
                    line.axes = vec![v.axes[outer]];
                    line.shape = vec![v.shape[outer]];
                    line
                })
                .collect();
            body(l, &lines)
        })
    }

    /// Element `i` of a line; zero outside a tensor.
    fn line_load(&mut self, line: &View, i: Val) -> Rep {
        let idx = line.index(self, &[Rep::Uni(i)]);
        let pad = self.immediate(line.storage.dtype, 0);
        self.load_elem(&line.storage, &idx, if line.storage.global { Guard::Check(pad) } else { Guard::Inside })
    }

    fn line_store(&mut self, line: &View, i: Val, v: Rep) {
        let idx = line.index(self, &[Rep::Uni(i)]);
        let pad = self.immediate(line.storage.dtype, 0);
        let guard = if line.storage.global { Guard::Check(pad) } else { Guard::Inside };
        self.store_elem(&line.storage, &idx, v, guard);
    }

    pub(super) fn topk(&mut self, at: Op, src: &Window, values: &Window, indices: &Window, largest: bool) -> Result {
        let (s, v, x) = (self.view(at, src)?, self.view(at, values)?, self.view(at, indices)?);
        let used = self.scratch_used;
        self.each_line(&[&s, &v, &x], &mut |l, lines| {
            l.scratch_used = used;
            let [s, v, x] = lines else { return Ok(()) };
            let (area, wide) = l.records(s, largest)?;
            let (n, k) = (l.b.i64(s.shape[0] as i64), l.b.i64(v.shape[0] as i64));
            l.b.call(if wide { Helper::Select128 } else { Helper::Select64 }, vec![area, n, k]);
            let zero = l.b.i64(0);
            l.counted(zero, k, 1, &mut |l, i| {
                let position = l.record_position(area, wide, i);
                let element = l.line_load(s, position);
                let element = l.cast(element, s.storage.dtype, v.storage.dtype);
                l.line_store(v, i, element);
                let position = l.cast(Rep::Uni(position), DType::I64, x.storage.dtype);
                l.line_store(x, i, position);
                Ok(())
            })
        })
    }

    pub(super) fn sort(&mut self, at: Op, keys: &Window, payload: Option<&Window>, descending: bool) -> Result {
        let k = self.view(at, keys)?;
        let mut views = vec![k];
        if let Some(w) = payload {
            views.push(self.view(at, w)?);
        }
        let used = self.scratch_used;
        let refs: Vec<&View> = views.iter().collect();
        self.each_line(&refs, &mut |l, lines| {
            l.scratch_used = used;
            let (area, wide) = l.records(&lines[0], descending)?;
            let count = lines[0].shape[0];
            let n = l.b.i64(count as i64);
            l.b.call(if wide { Helper::Sort128 } else { Helper::Sort64 }, vec![area, n]);
            for line in lines {
                // Elements move through scratch memory, because their places are their own sources.
                let ty = line.storage.dtype;
                let copy = l.scratch(count.max(1) * 8);
                let zero = l.b.i64(0);
                l.counted(zero, n, 1, &mut |l, i| {
                    let position = l.record_position(area, wide, i);
                    let v = l.line_load(line, position);
                    let v = l.lane(v, ty, 0);
                    let addr = l.b.scaled_address(copy, i, 8);
                    l.b.store(v, addr, 0);
                    Ok(())
                })?;
                l.counted(zero, n, 1, &mut |l, i| {
                    let addr = l.b.scaled_address(copy, i, 8);
                    let v = l.b.load(reg(ty), addr, 0);
                    l.line_store(line, i, Rep::Uni(v));
                    Ok(())
                })?;
            }
            Ok(())
        })
    }
}
