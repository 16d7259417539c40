//! Loads and stores of elements, one or four at a time.
//!
//! Outside a tensor a load gives a pad and a store does nothing, without a branch: the access is diverted to scratch
//! memory.

use super::cast::{pack, unpack};
use super::rep::{Rep, W, reg, vec_reg};
use super::{Lower, Result, Storage, Stride};
use crate::cpu::abi::FailureKind;
use crate::cpu::loopir::{BinOp, IntCc, Mem, Rmw, Ty, UnOp, Val};
use crate::cpu::plan::Cell;
use zellige_ir::{AtomicOp, Buffer, DType, Op, Value};

/// Positions of the elements that an access touches, in cells from the buffer's first.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// One element, or four at a constant distance.
    Steps {
        slot: Val,
        step: i64,
    },
    Lanes([Val; W]),
}

/// What happens outside the buffer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Guard {
    /// Nothing can be outside.
    Inside,
    /// Loads give this value of the buffer's type, stores do nothing.
    Check(Val),
}

impl Lower<'_> {
    /// Slot of the element at `indices`, in cells.
    pub(crate) fn place(&mut self, s: &Storage, indices: &[Rep]) -> Place {
        if s.private {
            return self.private_place(s, indices);
        }
        let parts: Option<Vec<(Val, i64)>> = indices
            .iter()
            .map(|r| match *r {
                Rep::Uni(v) => Some((v, 0)),
                Rep::Lin { base, step } => Some((base, step)),
                Rep::Vec(_) | Rep::Lanes(_) => None,
            })
            .collect();
        if let Some(parts) = parts {
            let step: Option<i64> =
                parts.iter().zip(&s.strides).try_fold(0i64, |sum, (&(_, step), stride)| match stride {
                    _ if step == 0 => Some(sum),
                    Stride::Const(c) => sum.checked_add(step.checked_mul(*c)?),
                    Stride::Dynamic(_) => None,
                });
            if let Some(step) = step {
                let bases: Vec<Val> = parts.iter().map(|p| p.0).collect();
                return Place::Steps { slot: self.slot(s, &bases), step };
            }
        }
        let lanes: Vec<[Val; W]> = indices.iter().map(|r| self.as_lanes(*r, DType::Index)).collect();
        Place::Lanes(std::array::from_fn(|i| {
            let at: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
            self.slot(s, &at)
        }))
    }

    /// As [`place`](Self::place), in the running iterations' own copies.
    fn private_place(&mut self, s: &Storage, indices: &[Rep]) -> Place {
        if indices.iter().all(|r| r.is_uniform()) {
            let at: Vec<Val> = indices.iter().map(|r| self.lane(*r, DType::Index, 0)).collect();
            let slot = self.slot(s, &at);
            if self.wide {
                return Place::Steps { slot, step: 1 };
            }
            let lane = self.lane as i64;
            return Place::Steps { slot: self.b.add_imm(slot, lane), step: 0 };
        }
        let lanes: Vec<[Val; W]> = indices.iter().map(|r| self.as_lanes(*r, DType::Index)).collect();
        Place::Lanes(std::array::from_fn(|i| {
            let at: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
            let slot = self.slot(s, &at);
            self.b.add_imm(slot, i as i64)
        }))
    }

    fn slot(&mut self, s: &Storage, at: &[Val]) -> Val {
        let terms: Vec<(Val, i64)> = at
            .iter()
            .zip(&s.strides)
            .map(|(&v, stride)| match *stride {
                Stride::Const(c) => (v, c),
                Stride::Dynamic(d) => (self.b.mul(v, d), 1),
            })
            .collect();
        self.b.sum(&terms)
    }

    /// Address of a cell of whole bytes.
    pub(crate) fn address(&mut self, s: &Storage, slot: Val) -> Val {
        let size = s.cell.bytes(s.dtype).unwrap_or(1);
        // Take the slot's sum apart, so that each loop adds its own part.
        self.b.scaled_address(s.base, slot, size)
    }

    /// Is the element at `at` inside? `None` if it is known to be.
    pub(crate) fn inside(&mut self, s: &Storage, at: &[Val]) -> Option<Val> {
        let mut all: Option<Val> = None;
        for (&i, &n) in at.iter().zip(&s.extents) {
            let (fi, fn_) = (self.b.facts(i), self.b.facts(n));
            if fi.lo >= 0 && fi.hi < fn_.lo {
                continue;
            }
            let ok = self.b.icmp(IntCc::Ult, i, n);
            all = Some(match all {
                Some(a) => self.b.bin(BinOp::And, a, ok),
                None => ok,
            });
        }
        all
    }

    // ---- Ops ----

    pub(super) fn load_op(&mut self, at: Op, buffer: Buffer, indices: &[Value]) -> Result<Rep> {
        let s = self.storage(buffer, at)?;
        let idx: Vec<Rep> = indices.iter().map(|v| self.get(*v)).collect();
        let guard = self.guard_of(at, buffer, &s, &idx);
        // A load may move to where it runs although the original would not, if it can do no harm there.
        let harmless = s.global || self.is_within(&s, &idx);
        self.invariant = self.invariant_from(buffer).filter(|_| harmless);
        let v = self.load_elem(&s, &idx, guard);
        self.invariant = None;
        Ok(v)
    }

    /// Is an index known to lie inside in all iterations?
    fn is_within(&self, s: &Storage, idx: &[Rep]) -> bool {
        idx.iter().zip(&s.extents).all(|(rep, n)| {
            let (base, reach) = match *rep {
                Rep::Uni(v) => (v, 0),
                Rep::Lin { base, step } => (base, step * (W as i64 - 1)),
                Rep::Vec(_) | Rep::Lanes(_) => return false,
            };
            let (f, n) = (self.b.facts(base), self.b.facts(*n));
            f.lo.saturating_add(reach.min(0)) >= 0 && f.hi.saturating_add(reach.max(0)) < n.lo
        })
    }

    /// Loads from memory, wherever the surrounding loops allow.
    fn read(&mut self, mem: Mem, ty: Ty, addr: Val) -> Val {
        match self.invariant {
            Some(floor) => self.b.load_invariant(mem, ty, addr, 0, floor),
            None => self.b.load_as(mem, ty, addr, 0),
        }
    }

    pub(super) fn store_op(&mut self, at: Op, buffer: Buffer, indices: &[Value], value: Value) -> Result {
        let s = self.storage(buffer, at)?;
        let idx: Vec<Rep> = indices.iter().map(|v| self.get(*v)).collect();
        let rep = self.get(value);
        let guard = self.guard_of(at, buffer, &s, &idx);
        self.store_elem(&s, &idx, rep, guard);
        Ok(())
    }

    fn guard_of(&mut self, at: Op, buffer: Buffer, s: &Storage, idx: &[Rep]) -> Guard {
        if s.global {
            return if self.unguarded.contains(&at) { Guard::Inside } else { Guard::Check(self.immediate(s.dtype, 0)) };
        }
        self.check_tile_access(at, buffer, s, idx);
        Guard::Inside
    }

    /// With bounds checks on, leaves the kernel if an access is outside a tile.
    pub(crate) fn check_tile_access(&mut self, at: Op, buffer: Buffer, s: &Storage, idx: &[Rep]) {
        if !self.opts.check_bounds {
            return;
        }
        let lanes: Vec<[Val; W]> = idx.iter().map(|r| self.as_lanes(*r, DType::Index)).collect();
        let count = if idx.iter().all(|r| r.is_uniform()) { 1 } else { W };
        for i in 0..count {
            let point: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
            if let Some(ok) = self.inside(s, &point) {
                let outside = self.b.bin_imm(BinOp::Xor, ok, 1);
                self.exit_if(outside, at, FailureKind::OutOfBounds { buffer: buffer.to_string() });
            }
        }
    }

    pub(super) fn atomic(
        &mut self,
        at: Op,
        op: AtomicOp,
        buffer: Buffer,
        indices: &[Value],
        value: Value,
    ) -> Result<Rep> {
        let s = self.storage(buffer, at)?;
        let ty = s.dtype;
        let idx: Vec<Rep> = indices.iter().map(|v| self.get(*v)).collect();
        let rep = self.get(value);
        let guard = self.guard_of(at, buffer, &s, &idx);
        let uniform = !self.wide;
        let lanes: Vec<[Val; W]> = idx.iter().map(|r| self.as_lanes(*r, DType::Index)).collect();
        let values = self.as_lanes(rep, ty);
        let mut olds = Vec::new();
        for i in 0..if uniform { 1 } else { W } {
            let point: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
            let inside = match guard {
                Guard::Inside => None,
                Guard::Check(_) => self.inside(&s, &point),
            };
            let slot = self.slot(&s, &point);
            let addr = self.address(&s, slot);
            let old = match inside {
                None => self.atomic_at(op, ty, addr, values[i]),
                Some(ok) => {
                    self.b.begin_if(ok);
                    let old = self.atomic_at(op, ty, addr, values[i]);
                    self.b.begin_else(&[old]);
                    let zero = self.immediate(ty, 0);
                    self.b.end_if(&[zero])[0]
                }
            };
            olds.push(old);
        }
        Ok(match olds[..] {
            [a, b, c, d] if vec_reg(ty).is_some() => Rep::Vec(self.join_lanes([a, b, c, d], ty)),
            [a, b, c, d] => Rep::Lanes([a, b, c, d]),
            _ => Rep::Uni(olds[0]),
        })
    }

    fn atomic_at(&mut self, op: AtomicOp, ty: DType, addr: Val, value: Val) -> Val {
        let signed = ty.is_signed_int();
        let rmw = match (op, ty.is_float()) {
            (AtomicOp::Add, true) => return self.atomic_add_float(addr, value),
            (AtomicOp::Add, false) => Rmw::Add,
            (AtomicOp::Min, _) => {
                if signed {
                    Rmw::SMin
                } else {
                    Rmw::UMin
                }
            }
            (AtomicOp::Max, _) => {
                if signed {
                    Rmw::SMax
                } else {
                    Rmw::UMax
                }
            }
            (AtomicOp::And, _) => Rmw::And,
            (AtomicOp::Or, _) => Rmw::Or,
            (AtomicOp::Exchange, _) => Rmw::Xchg,
        };
        let reg_ty = self.b.ty(value);
        let bits = self.b.bitcast(reg_ty.as_int(), value);
        let old = self.b.atomic(rmw, addr, bits);
        self.b.bitcast(reg_ty, old)
    }

    /// Floats have no atomic add: compare and swap until nobody was faster.
    fn atomic_add_float(&mut self, addr: Val, value: Val) -> Val {
        let float = self.b.ty(value);
        let int = float.as_int();
        // The loop leaves the old bits in scratch: loops of loop IR that run until a condition carry nothing.
        let cell = self.scratch(16);
        let first = self.b.load(int, addr, 0);
        self.b.store(first, cell, 0);
        self.b.begin_while();
        let expected = self.b.load(int, cell, 0);
        let old = self.b.bitcast(float, expected);
        let sum = self.b.bin(BinOp::FAdd, old, value);
        let sum = self.b.bitcast(int, sum);
        let found = self.b.cas(addr, expected, sum);
        let lost = self.b.icmp(IntCc::Ne, found, expected);
        self.b.store(found, cell, 0);
        self.b.begin_while_body(lost);
        self.b.end_while();
        let old = self.b.load(int, cell, 0);
        self.b.bitcast(float, old)
    }

    // ---- Elements ----

    /// Loads the elements at `idx` in register form.
    pub(crate) fn load_elem(&mut self, s: &Storage, idx: &[Rep], guard: Guard) -> Rep {
        let uniform = idx.iter().all(|r| r.is_uniform());
        if let Guard::Check(pad) = guard {
            let lanes: Vec<[Val; W]> = idx.iter().map(|r| self.as_lanes(*r, DType::Index)).collect();
            let guards: Vec<Option<Val>> = (0..if uniform { 1 } else { W })
                .map(|i| {
                    let point: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
                    self.inside(s, &point)
                })
                .collect();
            if guards.iter().any(|g| g.is_some()) {
                let out: Vec<Val> = guards
                    .into_iter()
                    .enumerate()
                    .map(|(i, ok)| {
                        let point: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
                        let slot = self.slot(s, &point);
                        let Some(ok) = ok else { return self.load_scalar(s, slot) };
                        // Slot zero may not exist either, so the diverted load reads scratch.
                        let zero = self.b.i64(0);
                        let slot = self.b.select(ok, slot, zero);
                        let [.., arena] = self.b.params();
                        let base = self.b.select(ok, s.base, arena);
                        let v = self.load_scalar(&Storage { base, ..s.clone() }, slot);
                        self.b.select(ok, v, pad)
                    })
                    .collect();
                return self.collect_lanes(&out, s.dtype);
            }
        }
        match self.place(s, idx) {
            Place::Steps { slot, step: 0 } => Rep::Uni(self.load_scalar(s, slot)),
            Place::Steps { slot, step } => {
                if step == 1
                    && let Some(v) = self.load_vector(s, slot)
                {
                    return Rep::Vec(v);
                }
                let out: Vec<Val> = (0..W as i64)
                    .map(|i| {
                        let at = self.b.add_imm(slot, step * i);
                        self.load_scalar(s, at)
                    })
                    .collect();
                self.collect_lanes(&out, s.dtype)
            }
            Place::Lanes(slots) => {
                let out: Vec<Val> = slots.iter().map(|slot| self.load_scalar(s, *slot)).collect();
                self.collect_lanes(&out, s.dtype)
            }
        }
    }

    fn collect_lanes(&mut self, lanes: &[Val], ty: DType) -> Rep {
        match *lanes {
            [a, b, c, d] if vec_reg(ty).is_some() => Rep::Vec(self.join_lanes([a, b, c, d], ty)),
            [a, b, c, d] => Rep::Lanes([a, b, c, d]),
            _ => Rep::Uni(lanes[0]),
        }
    }

    /// Stores register values to the elements at `idx`.
    pub(crate) fn store_elem(&mut self, s: &Storage, idx: &[Rep], value: Rep, guard: Guard) {
        let uniform = idx.iter().all(|r| r.is_uniform());
        if let Guard::Check(_) = guard {
            let lanes: Vec<[Val; W]> = idx.iter().map(|r| self.as_lanes(*r, DType::Index)).collect();
            let count = if uniform { 1 } else { W };
            let guards: Vec<Option<Val>> = (0..count)
                .map(|i| {
                    let point: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
                    self.inside(s, &point)
                })
                .collect();
            if guards.iter().any(|g| g.is_some()) {
                let values = self.as_lanes(value, s.dtype);
                for (i, ok) in guards.into_iter().enumerate() {
                    let point: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
                    let slot = self.slot(s, &point);
                    // Of iterations that store to one place, the last wins.
                    let v = if uniform && self.wide { values[W - 1] } else { values[i] };
                    let Some(ok) = ok else {
                        self.store_scalar(s, slot, v);
                        continue;
                    };
                    let zero = self.b.i64(0);
                    let slot = self.b.select(ok, slot, zero);
                    let [.., arena] = self.b.params();
                    let base = self.b.select(ok, s.base, arena);
                    self.store_scalar(&Storage { base, ..s.clone() }, slot, v);
                }
                return;
            }
        }
        match self.place(s, idx) {
            Place::Steps { slot, step: 0 } => {
                let v = self.lane(value, s.dtype, if self.wide { W - 1 } else { 0 });
                self.store_scalar(s, slot, v);
            }
            Place::Steps { slot, step } => {
                if step == 1 && vec_reg(s.dtype).is_some() && self.store_vector(s, slot, value) {
                    return;
                }
                let values = self.as_lanes(value, s.dtype);
                for (i, v) in values.into_iter().enumerate() {
                    let at = self.b.add_imm(slot, step * i as i64);
                    self.store_scalar(s, at, v);
                }
            }
            Place::Lanes(slots) => {
                let values = self.as_lanes(value, s.dtype);
                for (slot, v) in slots.into_iter().zip(values) {
                    self.store_scalar(s, slot, v);
                }
            }
        }
    }

    // ---- Cells ----

    /// Loads one element in register form.
    pub(crate) fn load_scalar(&mut self, s: &Storage, slot: Val) -> Val {
        if s.cell == Cell::Native && s.dtype.bits() < 8 {
            let (addr, shift) = self.nibble(s, slot);
            let byte = self.read(Mem::Plain, Ty::I8, addr);
            let byte = self.b.convert(UnOp::ZExt, Ty::I32, byte);
            let low = self.b.bin(BinOp::UShr, byte, shift);
            return self.b.bin_imm(BinOp::And, low, 0xf);
        }
        let addr = self.address(s, slot);
        if s.cell == Cell::Wide {
            let v = self.read(Mem::Plain, wide_reg(s.dtype), addr);
            return self.narrow(v, s.dtype);
        }
        match (s.dtype, s.cell) {
            (DType::Bool, _) => self.read(Mem::Plain, Ty::I8, addr),
            (DType::I8, _) => {
                let v = self.read(Mem::Plain, Ty::I8, addr);
                self.b.convert(UnOp::SExt, Ty::I32, v)
            }
            (DType::U8 | DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 | DType::F4E2M1, _) => {
                let v = self.read(Mem::Plain, Ty::I8, addr);
                self.b.convert(UnOp::ZExt, Ty::I32, v)
            }
            (DType::I16, _) => {
                let v = self.read(Mem::Plain, Ty::I16, addr);
                self.b.convert(UnOp::SExt, Ty::I32, v)
            }
            (DType::U16 | DType::F16 | DType::BF16, _) => {
                let v = self.read(Mem::Plain, Ty::I16, addr);
                self.b.convert(UnOp::ZExt, Ty::I32, v)
            }
            (ty @ (DType::I32 | DType::U32 | DType::F32 | DType::I64 | DType::U64 | DType::Index | DType::F64), _) => {
                self.read(Mem::Plain, reg(ty), addr)
            }
        }
    }

    pub(crate) fn store_scalar(&mut self, s: &Storage, slot: Val, v: Val) {
        if s.cell == Cell::Native && s.dtype.bits() < 8 {
            // The other half of the byte may belong to another block: change it indivisibly.
            let (addr, shift) = self.nibble(s, slot);
            let low = self.b.bin_imm(BinOp::And, v, 0xf);
            let set = self.b.bin(BinOp::Shl, low, shift);
            let mask = self.b.i32(0xf);
            let mask = self.b.bin(BinOp::Shl, mask, shift);
            let keep = self.b.un(UnOp::Not, mask);
            let (keep, set) = (self.b.convert(UnOp::Reduce, Ty::I8, keep), self.b.convert(UnOp::Reduce, Ty::I8, set));
            self.b.atomic(Rmw::And, addr, keep);
            self.b.atomic(Rmw::Or, addr, set);
            return;
        }
        let addr = self.address(s, slot);
        let v = self.stored(s, v);
        self.b.store(v, addr, 0);
    }

    /// A scalar in the type and width of a cell of whole bytes.
    pub(crate) fn stored(&mut self, s: &Storage, v: Val) -> Val {
        if s.cell == Cell::Wide {
            return self.widen(v, s.dtype);
        }
        match s.dtype.bits() {
            4 | 8 if s.dtype != DType::Bool => self.b.convert(UnOp::Reduce, Ty::I8, v),
            16 => self.b.convert(UnOp::Reduce, Ty::I16, v),
            _ => v,
        }
    }

    /// From the register form of a type to its wide cell.
    fn widen(&mut self, v: Val, ty: DType) -> Val {
        if ty.is_float() { unpack(&mut self.b, ty, v) } else { v }
    }

    /// From a wide cell to the register form.
    fn narrow(&mut self, v: Val, ty: DType) -> Val {
        match ty {
            // The low half is zero: nothing to round.
            DType::BF16 => {
                let int = self.b.ty(v).as_int();
                let bits = self.b.bitcast(int, v);
                self.b.bin_imm(BinOp::UShr, bits, 16)
            }
            _ if ty.is_float() => pack(&mut self.b, ty, v),
            _ => v,
        }
    }

    /// Address of the byte that holds a packed half byte.
    pub(crate) fn byte_address(&mut self, s: &Storage, slot: Val) -> Val {
        let byte = self.b.bin_imm(BinOp::SShr, slot, 1);
        self.b.add(s.base, byte)
    }

    /// Byte address and bit position of a packed half byte.
    fn nibble(&mut self, s: &Storage, slot: Val) -> (Val, Val) {
        let addr = self.byte_address(s, slot);
        let odd = self.b.bin_imm(BinOp::And, slot, 1);
        let shift = self.b.bin_imm(BinOp::Shl, odd, 2);
        (addr, self.b.convert(UnOp::Reduce, Ty::I32, shift))
    }

    /// Loads four neighbouring elements, if their type has a vector form.
    pub(crate) fn load_vector(&mut self, s: &Storage, slot: Val) -> Option<Val> {
        let vec = vec_reg(s.dtype)?;
        if s.cell == Cell::Native && s.dtype.bits() < 8 {
            if self.b.facts(slot).align < 2 {
                return None;
            }
            // Two bytes in every lane; a product brings each lane's own half byte to the same place.
            let addr = self.byte_address(s, slot);
            let pair = self.read(Mem::Plain, Ty::I16, addr);
            let pair = self.b.convert(UnOp::ZExt, Ty::I32, pair);
            let all = self.b.splat(pair);
            let (mask, scale) = (self.b.i32x4([0xf, 0xf0, 0xf00, 0xf000]), self.b.i32x4([4096, 256, 16, 1]));
            let own = self.b.bin(BinOp::And, all, mask);
            let high = self.b.mul(own, scale);
            return Some(self.b.bin_imm(BinOp::UShr, high, 12));
        }
        let addr = self.address(s, slot);
        if s.cell == Cell::Wide {
            let v = self.read(Mem::Plain, wide_reg(s.dtype).vector(), addr);
            return Some(self.narrow(v, s.dtype));
        }
        let signed = s.dtype.is_signed_int();
        Some(match s.dtype.bits() {
            32 => self.read(Mem::Plain, vec, addr),
            16 => self.read(if signed { Mem::SExt16x4 } else { Mem::ZExt16x4 }, vec, addr),
            _ => {
                let op = if signed { UnOp::SExt } else { UnOp::ZExt };
                let four = self.read(Mem::Plain, Ty::I32, addr);
                let b = &mut self.b;
                let v = b.convert(UnOp::ToVector, Ty::I32x4, four);
                let v = b.bitcast(Ty::I8x16, v);
                let v = b.convert(op, Ty::I16x8, v);
                let v = b.convert(op, Ty::I32x4, v);
                if s.dtype == DType::Bool {
                    let zero = b.imm(Ty::I32x4, 0);
                    b.icmp(IntCc::Ne, v, zero)
                } else {
                    v
                }
            }
        })
    }

    /// Stores four neighbouring elements; false if that must be done one by one.
    pub(crate) fn store_vector(&mut self, s: &Storage, slot: Val, value: Rep) -> bool {
        if s.cell == Cell::Native && s.dtype.bits() < 8 {
            if self.b.facts(slot).align < 2 {
                return false;
            }
            let v = self.as_vec(value, s.dtype);
            let v = self.b.bin_imm(BinOp::And, v, 0xf);
            let scale = self.b.i32x4([1, 16, 256, 4096]);
            let v = self.b.mul(v, scale);
            let lanes: [Val; W] = std::array::from_fn(|i| self.b.extract(v, i));
            let low = self.b.bin(BinOp::Or, lanes[0], lanes[1]);
            let high = self.b.bin(BinOp::Or, lanes[2], lanes[3]);
            let pair = self.b.bin(BinOp::Or, low, high);
            let pair = self.b.convert(UnOp::Reduce, Ty::I16, pair);
            let addr = self.byte_address(s, slot);
            self.b.store(pair, addr, 0);
            return true;
        }
        let v = self.as_vec(value, s.dtype);
        let addr = self.address(s, slot);
        if s.cell == Cell::Wide {
            let v = self.widen(v, s.dtype);
            self.b.store(v, addr, 0);
            return true;
        }
        let b = &mut self.b;
        match s.dtype.bits() {
            32 => b.store(v, addr, 0),
            16 => {
                let v = b.bitcast(Ty::I8x16, v);
                let v = b.shuffle(v, v, [0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13]);
                // As a float, which need not leave the vector registers.
                let v = b.bitcast(Ty::F64x2, v);
                let low = b.extract(v, 0);
                b.store(low, addr, 0);
            }
            _ => {
                let v = if s.dtype == DType::Bool { b.bin_imm(BinOp::And, v, 1) } else { v };
                let v = b.bitcast(Ty::I8x16, v);
                let v = b.shuffle(v, v, [0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12]);
                let v = b.bitcast(Ty::F32x4, v);
                let low = b.extract(v, 0);
                b.store(low, addr, 0);
            }
        }
        true
    }
}

/// Register type of a wide cell.
pub(crate) fn wide_reg(ty: DType) -> Ty {
    if ty.is_float() { Ty::F32 } else { Ty::I32 }
}
