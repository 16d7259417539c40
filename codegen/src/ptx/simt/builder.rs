//! Appends SIMT ops at a current place, folding constants and trivial identities on the way.
//!
//! Folding here keeps the lowering simple (it writes general index formulas) and its output small.

use super::fold;
use super::func::{Block, Inst, Kernel, Obj, ObjData, PhaseId, PhaseInfo, Val, Var};
use super::op::{
    Addr, AtomOp, Bin, Cache, Cmp, Def, Defs, Fields, MemTy, MmaKind, Packed, Round, ShflMode, SimtOp, Special, Un,
    Vals, VoteMode,
};
use super::ty::{Num, Space, Ty};
use smallvec::SmallVec;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use zellige_ir::hash::FastMap;
use zellige_ir::{EntityId, Span};

/// A kernel under construction and the block that ops are appended to.
///
/// Ops come out canonical: constants are folded, an equal pure op that is visible is used again (common subexpression
/// elimination), and a pure op whose operands come from outside the enclosing loops is put before the outermost of
/// those loops (loop-invariant code motion). Ops are never moved out of a conditional that no loop encloses, so nothing
/// is computed in vain.
pub struct Builder {
    pub kernel: Kernel,
    /// Open blocks, outermost first.
    scopes: Vec<Scope>,
    /// Visible pure ops, by the hash of the op with its results blanked: ops are large, and stand in the kernel already.
    known: FastMap<u64, SmallVec<[Inst; 2]>>,
    /// For each value, the depth of the scope that defines it.
    depth: Vec<u32>,
    /// Registers with one that they are always less than.
    below: FastMap<Val, Val>,
    span: u32,
}

struct Scope {
    block: Block,
    /// True for the body of a loop: the block runs many times.
    is_loop: bool,
    /// Seldom run, in code that has no registers to spare: nothing is computed outside for it.
    pinned: bool,
    /// Entries of `known` that end with this scope.
    keys: Vec<(u64, Inst)>,
}

impl Builder {
    /// Notes that `v` is always less than `bound`.
    pub fn set_below(&mut self, v: Val, bound: Val) {
        self.below.insert(v, bound);
    }

    pub fn is_below(&self, v: Val, bound: Val) -> bool {
        self.below.get(&v) == Some(&bound)
    }

    pub fn new(kernel: Kernel) -> Builder {
        let root = Scope { block: kernel.body, is_loop: false, pinned: false, keys: Vec::new() };
        Builder {
            kernel,
            scopes: vec![root],
            known: FastMap::default(),
            depth: Vec::new(),
            below: FastMap::default(),
            span: 0,
        }
    }

    /// Sets the author's place for the ops that follow.
    pub fn at(&mut self, span: &Span) {
        if self.kernel.spans[self.span as usize] == *span {
            return;
        }
        self.span = match self.kernel.spans.iter().rposition(|s| s == span) {
            Some(i) => i as u32,
            None => {
                self.kernel.spans.push(span.clone());
                self.kernel.spans.len() as u32 - 1
            }
        };
    }

    /// The place set last.
    pub fn span(&self) -> Span {
        self.kernel.spans[self.span as usize].clone()
    }

    /// The current block.
    pub fn block(&self) -> Block {
        self.scopes[self.scopes.len() - 1].block
    }

    /// True inside some loop.
    pub fn in_loop(&self) -> bool {
        self.scopes.iter().any(|s| s.is_loop)
    }

    /// Makes a new block current. `is_loop`: it will run more than once.
    pub fn open(&mut self, is_loop: bool) -> Block {
        let block = self.kernel.blocks.push(Vec::new());
        self.scopes.push(Scope { block, is_loop, pinned: false, keys: Vec::new() });
        block
    }

    /// Keeps what the current block computes inside of it, even if it is the same in every iteration of the loops around.
    pub fn pin(&mut self) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.pinned = true;
        }
    }

    /// Ends the block opened last.
    pub fn close(&mut self) {
        let scope = self.scopes.pop().expect("close follows open");
        for (key, inst) in scope.keys {
            if let Entry::Occupied(mut same) = self.known.entry(key) {
                same.get_mut().retain(|i| *i != inst);
                if same.get().is_empty() {
                    same.remove();
                }
            }
        }
    }

    /// Appends an op as it is.
    pub fn push(&mut self, op: SimtOp) -> Inst {
        self.push_at(self.scopes.len() - 1, op)
    }

    fn push_at(&mut self, scope: usize, op: SimtOp) -> Inst {
        op.defs(&mut |v| {
            if self.depth.len() <= v.index() {
                self.depth.resize(v.index() + 1, 0);
            }
            self.depth[v.index()] = scope as u32;
        });
        self.kernel.append(self.scopes[scope].block, op, self.span)
    }

    fn depth_of(&self, v: Val) -> usize {
        self.depth.get(v.index()).map_or(0, |&d| d as usize)
    }

    pub fn ty(&self, v: Val) -> Ty {
        self.kernel.ty(v)
    }

    /// Index of the scope where a pure op belongs: before the outermost loop that it does not depend on.
    fn home(&self, op: &SimtOp) -> usize {
        let mut deepest = self.scopes.iter().rposition(|s| s.pinned).unwrap_or(0);
        op.uses(&mut |v| deepest = deepest.max(self.depth_of(v)));
        let inner = &self.scopes[deepest + 1..];
        match inner.iter().position(|s| s.is_loop) {
            Some(i) => deepest + i,
            None => self.scopes.len() - 1,
        }
    }

    /// The results of a pure op, of classes `tys`; `make` builds it from its results.
    fn pure(&mut self, tys: &[Ty], make: impl Fn(&[Def]) -> SimtOp) -> SmallVec<[Val; 2]> {
        let blank = Val::from_index(u32::MAX as usize);
        let key = self.known.hasher().hash_one(make(&[Def(blank), Def(blank)]));
        for &inst in self.known.get(&key).into_iter().flatten() {
            let op = &self.kernel.insts[inst].op;
            let mut defs: SmallVec<[Def; 2]> = SmallVec::new();
            op.defs(&mut |v| defs.push(Def(v)));
            if defs.len() == tys.len() && make(&defs) == *op {
                return defs.into_iter().map(|d| d.0).collect();
            }
        }
        let outs: SmallVec<[Val; 2]> = tys.iter().map(|&ty| self.kernel.pending(ty)).collect();
        let defs: SmallVec<[Def; 2]> = outs.iter().map(|&v| Def(v)).collect();
        let op = make(&defs);
        let home = self.home(&op);
        let inst = self.push_at(home, op);
        self.scopes[home].keys.push((key, inst));
        self.known.entry(key).or_default().push(inst);
        outs
    }

    /// A pure op with one result.
    fn def1(&mut self, ty: Ty, make: impl Fn(Def) -> SimtOp) -> Val {
        self.pure(&[ty], |outs| make(outs[0]))[0]
    }

    /// An op with one result that is not pure.
    fn def1_here(&mut self, ty: Ty, make: impl FnOnce(Def) -> SimtOp) -> Val {
        let out = self.kernel.pending(ty);
        self.push(make(Def(out)));
        out
    }

    // ---- constants -------------------------------------------------------------------------------------------

    pub fn c32(&mut self, v: i64) -> Val {
        self.kernel.constant(Ty::B32, v as u64)
    }

    pub fn c64(&mut self, v: i64) -> Val {
        self.kernel.constant(Ty::B64, v as u64)
    }

    /// An integer of class `ty` (b32 or b64).
    pub fn int(&mut self, ty: Ty, v: i64) -> Val {
        self.kernel.constant(ty, v as u64)
    }

    pub fn f32(&mut self, v: f32) -> Val {
        self.kernel.constant(Ty::F32, u64::from(v.to_bits()))
    }

    pub fn f64(&mut self, v: f64) -> Val {
        self.kernel.constant(Ty::F64, v.to_bits())
    }

    pub fn pred(&mut self, v: bool) -> Val {
        self.kernel.constant(Ty::Pred, u64::from(v))
    }

    pub fn zero(&mut self, ty: Ty) -> Val {
        self.kernel.constant(ty, 0)
    }

    pub fn as_const(&self, v: Val) -> Option<u64> {
        self.kernel.as_const(v)
    }

    /// The signed value of an integer immediate.
    pub fn as_int(&self, v: Val) -> Option<i64> {
        let bits = self.as_const(v)?;
        match self.ty(v) {
            Ty::B16 => Some(i64::from(bits as u16 as i16)),
            Ty::B32 => Some(i64::from(bits as u32 as i32)),
            Ty::B64 => Some(bits as i64),
            Ty::Pred | Ty::F32 | Ty::F64 => None,
        }
    }

    // ---- variables -------------------------------------------------------------------------------------------

    pub fn new_var(&mut self, ty: Ty) -> Var {
        self.kernel.vars.push(ty)
    }

    pub fn get(&mut self, var: Var) -> Val {
        let ty = self.kernel.vars[var];
        self.def1_here(ty, |out| SimtOp::Get { out, var })
    }

    pub fn set(&mut self, var: Var, x: Val) {
        self.push(SimtOp::Set { var, x });
    }

    // ---- sources ---------------------------------------------------------------------------------------------

    pub fn special(&mut self, reg: Special) -> Val {
        self.def1(Ty::B32, |out| SimtOp::Special { out, reg })
    }

    pub fn param(&mut self, ty: Ty, slot: u32) -> Val {
        self.def1(ty, |out| SimtOp::Param { out, slot })
    }

    pub fn new_obj(&mut self, data: ObjData) -> Obj {
        self.kernel.objs.push(data)
    }

    pub fn shared_addr(&mut self, obj: Obj) -> Val {
        self.def1(Ty::B32, |out| SimtOp::SharedAddr { out, obj })
    }

    pub fn local_addr(&mut self, obj: Obj) -> Val {
        self.def1(Ty::B32, |out| SimtOp::LocalAddr { out, obj })
    }

    // ---- arithmetic ------------------------------------------------------------------------------------------

    pub fn un(&mut self, op: Un, num: Num, x: Val) -> Val {
        if let Some(bits) = self.as_const(x).and_then(|x| fold::un(op, num, x)) {
            return self.kernel.constant(num.ty(), bits);
        }
        if op == Un::Not
            && let Some(&SimtOp::Un { op: Un::Not, num: n2, x: inner, .. }) = self.kernel.def(x)
            && n2 == num
        {
            return inner;
        }
        let ty = match op {
            Un::Popc | Un::Clz => Ty::B32,
            _ => num.ty(),
        };
        self.def1(ty, |out| SimtOp::Un { out, op, num, x })
    }

    pub fn bin(&mut self, op: Bin, num: Num, x: Val, y: Val) -> Val {
        let ty = if op == Bin::MulWide { Ty::B64 } else { num.ty() };
        let (cx, cy) = (self.as_const(x), self.as_const(y));
        if let (Some(cx), Some(cy)) = (cx, cy)
            && let Some(bits) = fold::bin(op, num, cx, cy)
        {
            return self.kernel.constant(ty, bits);
        }
        // Constants of commutative integer ops go right, so that one rule finds them.
        let commutes = matches!(op, Bin::Add | Bin::Mul | Bin::And | Bin::Or | Bin::Xor | Bin::MulWide);
        let (x, y, cx, cy) = if commutes && cx.is_some() && cy.is_none() { (y, x, cy, cx) } else { (x, y, cx, cy) };
        if num == Num::Pred {
            match (op, cy) {
                (Bin::And, Some(1)) | (Bin::Or, Some(0)) | (Bin::Xor, Some(0)) => return x,
                (Bin::And, Some(0)) | (Bin::Or, Some(1)) => return y,
                (Bin::Xor, Some(1)) => return self.un(Un::Not, Num::Pred, x),
                _ => {}
            }
            if x == y && matches!(op, Bin::And | Bin::Or) {
                return x;
            }
        } else if !num.is_float()
            && let Some(v) = self.bin_int(op, num, x, y, cx)
        {
            return v;
        }
        self.def1(ty, |out| SimtOp::Bin { out, op, num, x, y })
    }

    fn bin_int(&mut self, op: Bin, num: Num, x: Val, y: Val, cx: Option<u64>) -> Option<Val> {
        let c = self.as_int(y);
        let ty = num.ty();
        match (op, c) {
            (Bin::Add | Bin::Sub | Bin::Or | Bin::Xor | Bin::Shl | Bin::Shr, Some(0)) => return Some(x),
            (Bin::Mul | Bin::Div, Some(1)) => return Some(x),
            (Bin::Mul | Bin::And, Some(0)) => return Some(y),
            (Bin::MulWide, Some(0)) => return Some(self.c64(0)),
            (Bin::And, Some(-1)) => return Some(x),
            (Bin::Sub, Some(c)) if c != i64::MIN => {
                let minus = self.int(ty, -c);
                return Some(self.bin(Bin::Add, num, x, minus));
            }
            (Bin::Rem, Some(1)) => return Some(self.int(ty, 0)),
            (Bin::Mul, Some(c)) if c > 1 && (c as u64).is_power_of_two() => {
                let by = self.c32(i64::from(c.trailing_zeros()));
                return Some(self.bin(Bin::Shl, num, x, by));
            }
            (Bin::Div, Some(c)) if !num.is_signed() && c > 1 && (c as u64).is_power_of_two() => {
                let by = self.c32(i64::from(c.trailing_zeros()));
                return Some(self.bin(Bin::Shr, num, x, by));
            }
            (Bin::Rem, Some(c)) if !num.is_signed() && c > 1 && (c as u64).is_power_of_two() => {
                let mask = self.int(ty, c - 1);
                return Some(self.bin(Bin::And, num, x, mask));
            }
            _ => {}
        }
        if cx == Some(0) && matches!(op, Bin::Shl | Bin::Shr | Bin::Div | Bin::Rem) {
            return Some(x);
        }
        if x == y {
            match op {
                Bin::Sub | Bin::Xor => return Some(self.int(ty, 0)),
                Bin::And | Bin::Or | Bin::Min | Bin::Max => return Some(x),
                _ => {}
            }
        }
        // (x + a) + b, (x << a) << b, (x >> a) >> b, (x & a) & b
        if let Some(b) = c
            && let Some(&SimtOp::Bin { op: inner, num: n2, x: x0, y: y0, .. }) = self.kernel.def(x)
            && inner == op
            && n2.ty() == ty
            && let Some(a) = self.as_int(y0)
        {
            match op {
                Bin::Add => {
                    let sum = self.int(ty, a.wrapping_add(b));
                    return Some(self.bin(Bin::Add, num, x0, sum));
                }
                Bin::And => {
                    let mask = self.int(ty, a & b);
                    return Some(self.bin(Bin::And, num, x0, mask));
                }
                Bin::Shl if a + b < ty.bits() as i64 => {
                    let by = self.c32(a + b);
                    return Some(self.bin(op, num, x0, by));
                }
                Bin::Shr if n2 == num && a + b < ty.bits() as i64 => {
                    let by = self.c32(a + b);
                    return Some(self.bin(op, num, x0, by));
                }
                _ => {}
            }
        }
        None
    }

    pub fn add(&mut self, num: Num, x: Val, y: Val) -> Val {
        self.bin(Bin::Add, num, x, y)
    }

    pub fn sub(&mut self, num: Num, x: Val, y: Val) -> Val {
        self.bin(Bin::Sub, num, x, y)
    }

    pub fn mul(&mut self, num: Num, x: Val, y: Val) -> Val {
        self.bin(Bin::Mul, num, x, y)
    }

    pub fn mad(&mut self, num: Num, x: Val, y: Val, z: Val) -> Val {
        if !num.is_float() {
            let easy = |c: Option<u64>| c.is_some_and(|c| c == 0 || c.is_power_of_two());
            let all = self.as_const(x).is_some() && self.as_const(y).is_some();
            if all || easy(self.as_const(x)) || easy(self.as_const(y)) || self.as_const(z) == Some(0) {
                let xy = self.mul(num, x, y);
                return self.add(num, xy, z);
            }
        }
        self.def1(num.ty(), |out| SimtOp::Mad { out, num, x, y, z })
    }

    /// `x * y + z`, the product of 32-bit operands in 64 bits.
    pub fn mad_wide(&mut self, num: Num, x: Val, y: Val, z: Val) -> Val {
        if self.as_const(z) == Some(0) || self.as_const(x) == Some(0) || self.as_const(y) == Some(0) {
            let xy = self.bin(Bin::MulWide, num, x, y);
            return self.add(Num::S64, xy, z);
        }
        if let (Some(cx), Some(cy)) = (self.as_const(x), self.as_const(y))
            && let Some(bits) = fold::bin(Bin::MulWide, num, cx, cy)
        {
            let xy = self.kernel.constant(Ty::B64, bits);
            return self.add(Num::S64, z, xy);
        }
        self.def1(Ty::B64, |out| SimtOp::MadWide { out, num, x, y, z })
    }

    pub fn setp(&mut self, op: Cmp, num: Num, x: Val, y: Val) -> Val {
        if let (Some(cx), Some(cy)) = (self.as_const(x), self.as_const(y))
            && let Some(v) = fold::cmp(op, num, cx, cy)
        {
            return self.pred(v);
        }
        if x == y && !num.is_float() {
            return match op {
                Cmp::Eq | Cmp::Le | Cmp::Ge => self.pred(true),
                _ => self.pred(false),
            };
        }
        self.def1(Ty::Pred, |out| SimtOp::Setp { out, op, num, x, y })
    }

    pub fn selp(&mut self, cond: Val, x: Val, y: Val) -> Val {
        match self.as_const(cond) {
            Some(1) => return x,
            Some(_) => return y,
            None => {}
        }
        if x == y {
            return x;
        }
        let ty = self.ty(x);
        if ty == Ty::Pred {
            // PTX selects no predicates.
            let a = self.bin(Bin::And, Num::Pred, x, cond);
            let not = self.un(Un::Not, Num::Pred, cond);
            let b = self.bin(Bin::And, Num::Pred, y, not);
            return self.bin(Bin::Or, Num::Pred, a, b);
        }
        self.def1(ty, |out| SimtOp::Selp { out, cond, x, y })
    }

    pub fn and(&mut self, x: Val, y: Val) -> Val {
        self.bin(Bin::And, Num::Pred, x, y)
    }

    pub fn not(&mut self, x: Val) -> Val {
        self.un(Un::Not, Num::Pred, x)
    }

    /// The conjunction of guards, where `None` is always true. A guard that is always true vanishes.
    pub fn and_guard(&mut self, x: Option<Val>, y: Option<Val>) -> Option<Val> {
        let v = match (x, y) {
            (Some(x), Some(y)) => self.and(x, y),
            (x, y) => x.or(y)?,
        };
        (self.as_const(v) != Some(1)).then_some(v)
    }

    pub fn cvt(&mut self, to: Num, from: Num, round: Round, x: Val) -> Val {
        if let Some(bits) = self.as_const(x).and_then(|x| fold::cvt(to, from, round, x)) {
            return self.kernel.constant(to.ty(), bits);
        }
        let whole = |n: Num| matches!(n, Num::U32 | Num::S32 | Num::B32 | Num::U64 | Num::S64 | Num::B64);
        if whole(to) && whole(from) && to.ty() == from.ty() {
            return x;
        }
        self.def1(to.ty(), |out| SimtOp::Cvt { out, to, from, round, x })
    }

    pub fn cvt_pack(&mut self, to: Packed, hi: Val, lo: Val) -> Val {
        let ty = match to {
            Packed::E4M3x2 | Packed::E5M2x2 => Ty::B16,
            Packed::F16x2 | Packed::BF16x2 => Ty::B32,
        };
        self.def1(ty, |out| SimtOp::CvtPack { out, to, hi, lo })
    }

    pub fn cvt_unpack(&mut self, from: Packed, x: Val) -> Val {
        self.def1(Ty::B32, |out| SimtOp::CvtUnpack { out, from, x })
    }

    /// An f32 rounded to tf32. One that was widened from bf16 has no bits to round.
    pub fn cvt_tf32(&mut self, x: Val) -> Val {
        if let Some(bits) = self.widened_bf16(x) {
            return bits;
        }
        self.def1(Ty::B32, |out| SimtOp::CvtTf32 { out, x })
    }

    /// The bits of an f32 whose lower half is known to be zero.
    fn widened_bf16(&self, x: Val) -> Option<Val> {
        let Some(&SimtOp::Bits { x: bits, .. }) = self.kernel.def(x) else { return None };
        let fits = match self.kernel.def(bits) {
            Some(&SimtOp::Bin { op: Bin::Shl, num: Num::B32, y, .. }) => self.as_const(y).is_some_and(|n| n >= 16),
            Some(&SimtOp::Bin { op: Bin::And, num: Num::B32, y, .. }) => {
                self.as_const(y).is_some_and(|mask| mask & 0xffff == 0)
            }
            Some(&SimtOp::Pack { lo, .. }) => self.as_const(lo) == Some(0),
            _ => false,
        };
        (fits && self.ty(bits) == Ty::B32).then_some(bits)
    }

    /// The same bits as class `ty`.
    pub fn bits(&mut self, ty: Ty, x: Val) -> Val {
        if self.ty(x) == ty {
            return x;
        }
        if let Some(bits) = self.as_const(x) {
            return self.kernel.constant(ty, bits);
        }
        if let Some(&SimtOp::Bits { x: inner, .. }) = self.kernel.def(x)
            && self.ty(inner) == ty
        {
            return inner;
        }
        self.def1(ty, |out| SimtOp::Bits { out, x })
    }

    pub fn pack(&mut self, lo: Val, hi: Val) -> Val {
        let half = self.ty(lo).bits();
        let ty = if half == 16 { Ty::B32 } else { Ty::B64 };
        if let (Some(a), Some(b)) = (self.as_const(lo), self.as_const(hi)) {
            return self.kernel.constant(ty, a | b << half);
        }
        if let (Some(SimtOp::Unpack { lo: l, x: a, .. }), Some(SimtOp::Unpack { hi: h, x: b, .. })) =
            (self.kernel.def(lo), self.kernel.def(hi))
            && a == b
            && l.0 == lo
            && h.0 == hi
        {
            return *a;
        }
        self.def1(ty, |out| SimtOp::Pack { out, lo, hi })
    }

    /// Low and high half of a b32 (as b16) or b64 (as b32).
    pub fn unpack(&mut self, x: Val) -> (Val, Val) {
        let ty = if self.ty(x).bits() == 32 { Ty::B16 } else { Ty::B32 };
        if let Some(c) = self.as_const(x) {
            return (self.kernel.constant(ty, c), self.kernel.constant(ty, c >> ty.bits()));
        }
        if let Some(&SimtOp::Pack { lo, hi, .. }) = self.kernel.def(x) {
            return (lo, hi);
        }
        let halves = self.pure(&[ty, ty], |outs| SimtOp::Unpack { lo: outs[0], hi: outs[1], x });
        (halves[0], halves[1])
    }

    pub fn prmt(&mut self, x: Val, y: Val, sel: u32) -> Val {
        if let (Some(a), Some(b)) = (self.as_const(x), self.as_const(y))
            && sel & 0x8888 == 0
        {
            let bytes = (a & 0xffff_ffff) | b << 32;
            let byte = |i: u32| (bytes >> (8 * (sel >> (4 * i) & 7)) & 0xff) << (8 * i);
            return self.kernel.constant(Ty::B32, byte(0) | byte(1) | byte(2) | byte(3));
        }
        self.def1(Ty::B32, |out| SimtOp::Prmt { out, x, y, sel })
    }

    pub fn prmt_by(&mut self, x: Val, y: Val, sel: Val) -> Val {
        self.def1(Ty::B32, |out| SimtOp::PrmtBy { out, x, y, sel })
    }

    pub fn bfe(&mut self, x: Val, pos: u32, len: u32) -> Val {
        if let Some(c) = self.as_const(x) {
            return self.kernel.constant(Ty::B32, c >> pos & ((1u64 << len) - 1));
        }
        if pos == 0 && len == 32 {
            return x;
        }
        self.def1(Ty::B32, |out| SimtOp::Bfe { out, x, pos, len })
    }

    pub fn bfi(&mut self, x: Val, y: Val, pos: u32, len: u32) -> Val {
        if let (Some(a), Some(b)) = (self.as_const(x), self.as_const(y)) {
            let mask = ((1u64 << len) - 1) << pos;
            return self.kernel.constant(Ty::B32, (b & !mask) | (a << pos & mask));
        }
        self.def1(Ty::B32, |out| SimtOp::Bfi { out, x, y, pos, len })
    }

    // ---- memory ----------------------------------------------------------------------------------------------

    pub fn ld(&mut self, space: Space, mem: MemTy, cache: Cache, addr: Addr, count: usize, guard: Option<Val>) -> Vals {
        let ty = mem_reg(mem);
        let outs: Defs = (0..count).map(|_| Def(self.kernel.pending(ty))).collect();
        let vals = outs.iter().map(|d| d.0).collect();
        self.push(SimtOp::Ld { outs, space, mem, cache, addr, guard });
        vals
    }

    pub fn st(&mut self, space: Space, mem: MemTy, addr: Addr, vals: Vals, guard: Option<Val>) {
        self.push(SimtOp::St { space, mem, addr, vals, guard });
    }

    /// Generic address of the tensor map in parameter `slot`.
    pub fn param_addr(&mut self, slot: u32) -> Val {
        self.def1(Ty::B64, |out| SimtOp::ParamAddr { out, slot })
    }

    pub fn ldmatrix(&mut self, count: usize, trans: bool, addr: Addr) -> Vals {
        let outs: Defs = (0..count).map(|_| Def(self.kernel.pending(Ty::B32))).collect();
        let vals = outs.iter().map(|d| d.0).collect();
        self.push(SimtOp::LdMatrix { outs, trans, addr });
        vals
    }

    pub fn mma(&mut self, kind: MmaKind, a: Vals, b: Vals, c: Vals) -> Vals {
        let ty = if kind.is_integer() { Ty::B32 } else { Ty::F32 };
        let outs: Defs = (0..4).map(|_| Def(self.kernel.pending(ty))).collect();
        let vals = outs.iter().map(|d| d.0).collect();
        self.push(SimtOp::Mma { outs, kind, a, b, c });
        vals
    }

    pub fn shfl(&mut self, mode: ShflMode, x: Val, lane: Val, clamp: u32) -> Val {
        let ty = self.ty(x);
        debug_assert!(matches!(ty, Ty::B32 | Ty::F32));
        self.def1_here(ty, |out| SimtOp::Shfl { out, mode, x, lane, clamp })
    }

    pub fn vote(&mut self, mode: VoteMode, x: Val) -> Val {
        let ty = if mode == VoteMode::Ballot { Ty::B32 } else { Ty::Pred };
        self.def1_here(ty, |out| SimtOp::Vote { out, mode, x })
    }

    pub fn redux(&mut self, op: Bin, num: Num, x: Val) -> Val {
        self.def1_here(Ty::B32, |out| SimtOp::Redux { out, op, num, x })
    }

    pub fn atom(&mut self, op: AtomOp, num: Num, space: Space, addr: Addr, x: Val, guard: Option<Val>) -> Val {
        self.def1_here(num.ty(), |out| SimtOp::Atom { out: Some(out), op, num, space, addr, x, guard })
    }

    // ---- order and control -----------------------------------------------------------------------------------

    /// Begins a phase.
    pub fn phase(&mut self, what: impl Into<String>) -> PhaseId {
        let span = Some(self.span());
        let id = self.kernel.phases.push(PhaseInfo { what: what.into(), span, ..PhaseInfo::default() });
        self.push(SimtOp::Phase { id });
        id
    }

    /// Opens a counted loop's body and returns the index; close it with [`Builder::end_for`].
    pub fn begin_for(&mut self, ty: Ty) -> Val {
        self.open(true);
        let index = self.kernel.pending(ty);
        if self.depth.len() <= index.index() {
            self.depth.resize(index.index() + 1, 0);
        }
        self.depth[index.index()] = (self.scopes.len() - 1) as u32;
        index
    }

    /// Closes the body opened by [`Builder::begin_for`], which gave `index`.
    pub fn end_for(&mut self, index: Val, lo: Val, hi: Val, step: Val, uniform: bool) {
        let body = self.block();
        self.close();
        self.push(SimtOp::For { index: Def(index), lo, hi, step, uniform, body });
        // `push` files the index under the enclosing block; it lives in the body only.
    }

    /// Runs `f` in a new block and returns the block.
    pub fn in_block<R>(&mut self, is_loop: bool, f: impl FnOnce(&mut Builder) -> R) -> (Block, R) {
        let block = self.open(is_loop);
        let r = f(self);
        self.close();
        (block, r)
    }
}

/// Class of the register that an element of memory is loaded into.
pub fn mem_reg(mem: MemTy) -> Ty {
    match mem {
        MemTy::U8 | MemTy::S8 | MemTy::U16 | MemTy::S16 | MemTy::B32 => Ty::B32,
        MemTy::B16 => Ty::B16,
        MemTy::B64 => Ty::B64,
        MemTy::F32 => Ty::F32,
        MemTy::F64 => Ty::F64,
    }
}
