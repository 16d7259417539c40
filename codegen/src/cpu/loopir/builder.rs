//! Builds loop IR, sharing subexpressions and hoisting as it goes.
//!
//! Open blocks form a stack of scopes. A pure node is looked up in the scopes where it could already stand; if it
//! is new it goes to the outermost loop body in which its operands exist. An `if` arm holds what is computed in it: code
//! that may not run is not worth running always.

use super::facts::Facts;
use super::node::*;
use super::types::Ty;
use std::collections::HashMap;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ScopeKind {
    Root,
    Loop,
    /// A loop that runs until a condition: what it loads may change under it.
    While,
    Arm,
}

/// What a load reads: conversion, type, address, offset.
type LoadKey = (Mem, Ty, Val, i32);

struct Scope {
    kind: ScopeKind,
    stmts: Block,
    known: HashMap<(Node, Ty), Val>,
    /// Loads of memory that does not change while the scope is open, or until it is told.
    loads: HashMap<LoadKey, Val>,
}

impl Scope {
    fn new(kind: ScopeKind) -> Scope {
        Scope { kind, stmts: Vec::new(), known: HashMap::new(), loads: HashMap::new() }
    }

    /// May a computation leave the scope?
    fn lets_nodes_out(&self) -> bool {
        matches!(self.kind, ScopeKind::Loop | ScopeKind::While)
    }
}

/// What a value is to the builder.
#[derive(Clone, Copy)]
struct Info {
    /// Depth of the scope that defines it.
    depth: u32,
    node: Option<Node>,
    facts: Facts,
}

/// A loop that is being built.
#[must_use]
pub struct Loop {
    pub iv: Val,
    /// The carried values inside the body.
    pub params: Vec<Val>,
    lo: Val,
    hi: Val,
    step: i64,
    inits: Vec<Val>,
}

/// The first arm of an `if` and the values it yields.
type FinishedArm = (Block, Vec<Val>);

/// See the module documentation.
pub struct Builder {
    name: String,
    types: Vec<Ty>,
    infos: Vec<Info>,
    scopes: Vec<Scope>,
    /// Conditions of open `if`s, and their first arms as far as these are finished.
    open_ifs: Vec<(Val, Option<FinishedArm>)>,
    open_whiles: Vec<Option<Val>>,
    params: [Val; 4],
}

impl Builder {
    pub fn new(name: &str) -> Builder {
        let mut b = Builder {
            name: name.to_owned(),
            types: Vec::new(),
            infos: Vec::new(),
            scopes: vec![Scope::new(ScopeKind::Root)],
            open_ifs: Vec::new(),
            open_whiles: Vec::new(),
            params: [Val(0); 4],
        };
        b.params = std::array::from_fn(|_| b.fresh(Ty::I64, Facts::UNKNOWN));
        b
    }

    pub fn finish(mut self) -> LoopFunc {
        debug_assert_eq!(self.scopes.len(), 1, "unclosed scope");
        let body = self.scopes.pop().expect("root scope").stmts;
        LoopFunc { name: self.name, types: self.types, params: self.params, body }
    }

    /// Launch context, first block, last block, arena.
    pub fn params(&self) -> [Val; 4] {
        self.params
    }

    pub fn ty(&self, v: Val) -> Ty {
        self.types[v.index()]
    }

    /// What is known about an i64 value.
    pub fn facts(&self, v: Val) -> Facts {
        self.infos[v.index()].facts
    }

    /// Records what the caller knows about a value that the builder cannot see into, such as a loaded extent.
    pub fn refine(&mut self, v: Val, facts: Facts) {
        let f = &mut self.infos[v.index()].facts;
        f.lo = f.lo.max(facts.lo);
        f.hi = f.hi.min(facts.hi);
        f.align = f.align.max(facts.align);
    }

    /// How deep in the open scopes the value is defined; for ordering the terms of a sum.
    pub fn depth(&self, v: Val) -> u32 {
        self.infos[v.index()].depth
    }

    fn fresh(&mut self, ty: Ty, facts: Facts) -> Val {
        let v = Val(self.types.len() as u32);
        self.types.push(ty);
        self.infos.push(Info { depth: self.scopes.len() as u32 - 1, node: None, facts });
        v
    }

    fn push(&mut self, stmt: Stmt) {
        self.scopes.last_mut().expect("root scope").stmts.push(stmt);
    }

    // ---- Pure nodes ----

    fn node(&mut self, ty: Ty, node: Node) -> Val {
        let mut floor = 0;
        node.for_each_use(&mut |v| floor = floor.max(self.infos[v.index()].depth as usize));
        let top = self.scopes.len() - 1;
        for scope in self.scopes[floor..].iter().rev() {
            if let Some(&v) = scope.known.get(&(node, ty)) {
                return v;
            }
        }
        let mut depth = top;
        if node.is_speculatable() {
            while depth > floor && self.scopes[depth].lets_nodes_out() {
                depth -= 1;
            }
        }
        let facts = if ty == Ty::I64 { self.node_facts(node) } else { Facts::UNKNOWN };
        let v = Val(self.types.len() as u32);
        self.types.push(ty);
        self.infos.push(Info { depth: depth as u32, node: Some(node), facts });
        self.scopes[depth].stmts.push(Stmt::Let(v, node));
        self.scopes[depth].known.insert((node, ty), v);
        v
    }

    fn node_facts(&self, node: Node) -> Facts {
        match node {
            Node::Const(c) => Facts::constant(c as i64),
            Node::Binary(op, x, y) => Facts::binary(op, self.facts(x), self.facts(y)),
            Node::Select(_, x, y) => self.facts(x).union(self.facts(y)),
            Node::Unary(UnOp::ZExt, x) => match self.ty(x) {
                Ty::I8 => Facts::range(0, 255),
                Ty::I16 => Facts::range(0, 65535),
                _ => Facts::range(0, i64::from(u32::MAX)),
            },
            Node::Unary(UnOp::SExt, x) => match self.ty(x) {
                Ty::I8 => Facts::range(-128, 127),
                Ty::I16 => Facts::range(-32768, 32767),
                _ => Facts::range(i64::from(i32::MIN), i64::from(i32::MAX)),
            },
            _ => Facts::UNKNOWN,
        }
    }

    /// An integer or float scalar by its bits.
    pub fn bits(&mut self, ty: Ty, bits: u64) -> Val {
        debug_assert!(!ty.is_vector());
        let bits = match ty.bytes() {
            8 => bits,
            n => bits & ((1 << (n * 8)) - 1),
        };
        self.node(ty, Node::Const(bits))
    }

    pub fn i64(&mut self, c: i64) -> Val {
        self.bits(Ty::I64, c as u64)
    }

    pub fn i32(&mut self, c: i32) -> Val {
        self.bits(Ty::I32, u64::from(c as u32))
    }

    pub fn f32(&mut self, c: f32) -> Val {
        self.bits(Ty::F32, u64::from(c.to_bits()))
    }

    /// A vector with the same immediate in every lane, or the scalar if `ty` is one.
    pub fn imm(&mut self, ty: Ty, bits: u64) -> Val {
        if !ty.is_vector() {
            return self.bits(ty, bits);
        }
        let n = ty.lane().bytes();
        let mut bytes = [0; 16];
        for chunk in bytes.chunks_mut(n) {
            chunk.copy_from_slice(&bits.to_le_bytes()[..n]);
        }
        self.node(ty, Node::VConst(bytes))
    }

    /// An i32x4 immediate.
    pub fn i32x4(&mut self, lanes: [i32; 4]) -> Val {
        let mut bytes = [0; 16];
        for (chunk, lane) in bytes.chunks_mut(4).zip(lanes) {
            chunk.copy_from_slice(&lane.to_le_bytes());
        }
        self.node(Ty::I32x4, Node::VConst(bytes))
    }

    /// The immediate behind an integer scalar, sign-extended.
    pub fn as_const(&self, v: Val) -> Option<i64> {
        match (self.infos[v.index()].node, self.ty(v)) {
            (Some(Node::Const(c)), Ty::I64) => Some(c as i64),
            (Some(Node::Const(c)), Ty::I32) => Some(i64::from(c as u32 as i32)),
            (Some(Node::Const(c)), Ty::I16) => Some(i64::from(c as u16 as i16)),
            (Some(Node::Const(c)), Ty::I8) => Some(i64::from(c as u8 as i8)),
            _ => None,
        }
    }

    /// A conversion or other one-operand node with result type `ty`.
    pub fn convert(&mut self, op: UnOp, ty: Ty, x: Val) -> Val {
        if self.ty(x) == ty && matches!(op, UnOp::Bitcast | UnOp::SExt | UnOp::ZExt | UnOp::Reduce) {
            return x;
        }
        if let Some(Node::Unary(UnOp::Bitcast, inner)) = self.infos[x.index()].node
            && op == UnOp::Bitcast
        {
            return self.convert(UnOp::Bitcast, ty, inner);
        }
        if let Some(c) = self.as_const(x) {
            match op {
                UnOp::SExt | UnOp::Reduce if !ty.is_vector() => return self.bits(ty, c as u64),
                UnOp::ZExt if !ty.is_vector() => {
                    let n = self.ty(x).bytes() * 8;
                    return self.bits(ty, (c as u64) & (u64::MAX >> (64 - n)));
                }
                UnOp::Splat => return self.imm(ty, c as u64),
                _ => {}
            }
        }
        if let (UnOp::Splat, Some(Node::Const(c))) = (op, self.infos[x.index()].node) {
            return self.imm(ty, c);
        }
        self.node(ty, Node::Unary(op, x))
    }

    /// One operand, result of the same type.
    pub fn un(&mut self, op: UnOp, x: Val) -> Val {
        self.convert(op, self.ty(x), x)
    }

    pub fn splat(&mut self, x: Val) -> Val {
        self.convert(UnOp::Splat, self.ty(x).vector(), x)
    }

    pub fn bitcast(&mut self, ty: Ty, x: Val) -> Val {
        self.convert(UnOp::Bitcast, ty, x)
    }

    pub fn bin(&mut self, op: BinOp, x: Val, y: Val) -> Val {
        let ty = self.ty(x);
        if let Some(v) = self.fold(op, ty, x, y) {
            return v;
        }
        let out = match (op, ty) {
            (BinOp::SNarrow | BinOp::UNarrow, Ty::I32x4) => Ty::I16x8,
            (BinOp::SNarrow | BinOp::UNarrow, _) => Ty::I8x16,
            _ => ty,
        };
        self.node(out, Node::Binary(op, x, y))
    }

    /// Simplifies integer scalars.
    fn fold(&mut self, op: BinOp, ty: Ty, x: Val, y: Val) -> Option<Val> {
        if ty.is_float() || ty.is_vector() {
            return None;
        }
        let (cx, cy) = (self.as_const(x), self.as_const(y));
        if let (Some(a), Some(b)) = (cx, cy) {
            let shift = (b as u64 % (ty.bytes() as u64 * 8)) as u32;
            let r = match op {
                BinOp::Add => a.wrapping_add(b),
                BinOp::Sub => a.wrapping_sub(b),
                BinOp::Mul => a.wrapping_mul(b),
                BinOp::And => a & b,
                BinOp::Or => a | b,
                BinOp::Xor => a ^ b,
                BinOp::Shl => a << shift,
                BinOp::SShr => a >> shift,
                BinOp::SMin => a.min(b),
                BinOp::SMax => a.max(b),
                BinOp::SDiv if b != 0 && b != -1 => a / b,
                BinOp::SRem if b != 0 && b != -1 => a % b,
                _ => return None,
            };
            return Some(self.bits(ty, r as u64));
        }
        if cx.is_some() && matches!(op, BinOp::Add | BinOp::Mul | BinOp::And | BinOp::Or | BinOp::Xor) {
            return Some(self.bin(op, y, x));
        }
        match (op, cy) {
            (BinOp::Add | BinOp::Sub | BinOp::Or | BinOp::Xor | BinOp::Shl | BinOp::SShr | BinOp::UShr, Some(0))
            | (BinOp::Mul | BinOp::SDiv | BinOp::UDiv, Some(1))
            | (BinOp::And, Some(-1)) => Some(x),
            (BinOp::Mul | BinOp::And, Some(0)) => Some(self.bits(ty, 0)),
            // The low bits of a multiple of a greater power of two.
            (BinOp::And, Some(c)) if ty == Ty::I64 && c > 0 && self.facts(x).align > c as u64 => Some(self.bits(ty, 0)),
            (BinOp::Mul, Some(c)) if c > 1 && (c as u64).is_power_of_two() => {
                let k = self.bits(ty, u64::from(c.trailing_zeros()));
                Some(self.bin(BinOp::Shl, x, k))
            }
            (BinOp::Add, Some(c)) => {
                // (a + c1) + c2
                let Some(Node::Binary(BinOp::Add, a, b)) = self.infos[x.index()].node else { return None };
                let d = self.as_const(b)?;
                let sum = self.bits(ty, c.wrapping_add(d) as u64);
                Some(self.bin(BinOp::Add, a, sum))
            }
            (BinOp::Sub, Some(c)) if c != i64::MIN => {
                let k = self.bits(ty, c.wrapping_neg() as u64);
                Some(self.bin(BinOp::Add, x, k))
            }
            (BinOp::Sub, _) if x == y => Some(self.bits(ty, 0)),
            (BinOp::SMin | BinOp::SMax, _) if ty == Ty::I64 => {
                let (fx, fy) = (self.facts(x), self.facts(y));
                let (x_below, y_below) = (fx.hi <= fy.lo, fy.hi <= fx.lo);
                let (x_wins, y_wins) = if op == BinOp::SMin { (x_below, y_below) } else { (y_below, x_below) };
                if x_wins {
                    Some(x)
                } else if y_wins {
                    Some(y)
                } else {
                    None
                }
            }
            _ => None,
        }
    }

    pub fn add(&mut self, x: Val, y: Val) -> Val {
        self.bin(BinOp::Add, x, y)
    }

    pub fn sub(&mut self, x: Val, y: Val) -> Val {
        self.bin(BinOp::Sub, x, y)
    }

    pub fn mul(&mut self, x: Val, y: Val) -> Val {
        self.bin(BinOp::Mul, x, y)
    }

    /// An operation with an immediate in the shape of `x`. Shift amounts of vectors are scalars.
    pub fn bin_imm(&mut self, op: BinOp, x: Val, c: i64) -> Val {
        let ty = self.ty(x);
        let y = match op {
            BinOp::Shl | BinOp::UShr | BinOp::SShr if ty.is_vector() => self.i32(c as i32),
            _ => self.imm(ty, c as u64),
        };
        self.bin(op, x, y)
    }

    pub fn add_imm(&mut self, x: Val, c: i64) -> Val {
        self.bin_imm(BinOp::Add, x, c)
    }

    pub fn mul_imm(&mut self, x: Val, c: i64) -> Val {
        self.bin_imm(BinOp::Mul, x, c)
    }

    pub fn fma(&mut self, x: Val, y: Val, z: Val) -> Val {
        self.node(self.ty(x), Node::Fma(x, y, z))
    }

    /// Compares integers; scalars of i64 by what is known about them.
    pub fn icmp(&mut self, cc: IntCc, x: Val, y: Val) -> Val {
        let ty = self.ty(x);
        if ty == Ty::I64 {
            let (fx, fy) = (self.facts(x), self.facts(y));
            let known = match cc {
                IntCc::Slt | IntCc::Sge => {
                    let lt = if fx.hi < fy.lo {
                        Some(true)
                    } else if fx.lo >= fy.hi {
                        Some(false)
                    } else {
                        None
                    };
                    lt.map(|lt| lt == (cc == IntCc::Slt))
                }
                IntCc::Sle | IntCc::Sgt => {
                    let le = if fx.hi <= fy.lo {
                        Some(true)
                    } else if fx.lo > fy.hi {
                        Some(false)
                    } else {
                        None
                    };
                    le.map(|le| le == (cc == IntCc::Sle))
                }
                IntCc::Eq | IntCc::Ne => {
                    let eq = if fx.lo == fx.hi && fx.lo == fy.lo && fy.lo == fy.hi {
                        Some(true)
                    } else if fx.hi < fy.lo || fx.lo > fy.hi {
                        Some(false)
                    } else {
                        None
                    };
                    eq.map(|eq| eq == (cc == IntCc::Eq))
                }
                IntCc::Ult | IntCc::Ule | IntCc::Ugt | IntCc::Uge => None,
            };
            if let Some(k) = known {
                return self.bits(Ty::I8, u64::from(k));
            }
        }
        let out = if ty.is_vector() { ty } else { Ty::I8 };
        self.node(out, Node::ICmp(cc, x, y))
    }

    pub fn fcmp(&mut self, cc: FloatCc, x: Val, y: Val) -> Val {
        let ty = self.ty(x);
        let out = if ty.is_vector() { ty.as_int() } else { Ty::I8 };
        self.node(out, Node::FCmp(cc, x, y))
    }

    /// `cond ? x : y`: scalar condition, or a mask if `x` is a vector.
    pub fn select(&mut self, cond: Val, x: Val, y: Val) -> Val {
        if x == y {
            return x;
        }
        if self.ty(cond).is_vector() {
            return self.node(self.ty(x), Node::BitSelect(cond, x, y));
        }
        match self.as_const(cond) {
            Some(0) => y,
            Some(_) => x,
            None => self.node(self.ty(x), Node::Select(cond, x, y)),
        }
    }

    pub fn extract(&mut self, x: Val, lane: usize) -> Val {
        let mut from = x;
        while let Some(node) = self.infos[from.index()].node {
            match node {
                Node::Insert(_, y, l) if usize::from(l) == lane => return y,
                Node::Insert(inner, _, _) => from = inner,
                Node::Unary(UnOp::Splat, y) => return y,
                Node::VConst(bytes) => {
                    let ty = self.ty(from).lane();
                    let mut bits = [0; 8];
                    bits[..ty.bytes()].copy_from_slice(&bytes[lane * ty.bytes()..(lane + 1) * ty.bytes()]);
                    return self.bits(ty, u64::from_le_bytes(bits));
                }
                _ => break,
            }
        }
        self.node(self.ty(x).lane(), Node::Extract(x, lane as u8))
    }

    pub fn insert(&mut self, x: Val, y: Val, lane: usize) -> Val {
        self.node(self.ty(x), Node::Insert(x, y, lane as u8))
    }

    pub fn shuffle(&mut self, x: Val, y: Val, bytes: [u8; 16]) -> Val {
        self.node(self.ty(x), Node::Shuffle(x, y, bytes))
    }

    /// A sum of `value * scale` terms, outermost first, so that what does not change in a loop is added outside.
    pub fn sum(&mut self, terms: &[(Val, i64)]) -> Val {
        let mut terms: Vec<(Val, i64)> = terms.to_vec();
        terms.sort_by_key(|(v, _)| self.depth(*v));
        let mut total: Option<Val> = None;
        let mut constant = 0i64;
        for (v, scale) in terms {
            if let Some(c) = self.as_const(v) {
                constant = constant.wrapping_add(c.wrapping_mul(scale));
                continue;
            }
            let term = self.mul_imm(v, scale);
            total = Some(match total {
                Some(t) => self.add(t, term),
                None => term,
            });
        }
        match total {
            Some(t) => self.add_imm(t, constant),
            None => self.i64(constant),
        }
    }

    /// `base + slot * size`, where `slot` may be a sum: its terms are scaled one by one, so that the sums of outer
    /// loops stay there and the innermost term becomes part of the machine's addressing mode.
    pub fn scaled_address(&mut self, base: Val, slot: Val, size: i64) -> Val {
        let mut terms = vec![(base, 1)];
        let mut rest = slot;
        while let Some(Node::Binary(BinOp::Add, x, y)) = self.infos[rest.index()].node {
            terms.push((y, size));
            rest = x;
        }
        terms.push((rest, size));
        self.sum(&terms)
    }

    // ---- Statements ----

    /// Loads a value of type `ty`.
    pub fn load(&mut self, ty: Ty, addr: Val, offset: i32) -> Val {
        self.load_as(Mem::Plain, ty, addr, offset)
    }

    /// Loads four 16-bit elements widened to i32x4.
    pub fn load_as(&mut self, mem: Mem, ty: Ty, addr: Val, offset: i32) -> Val {
        let (addr, offset) = self.split_offset(addr, offset);
        let out = self.fresh(ty, Facts::UNKNOWN);
        self.push(Stmt::Load { out, mem, addr, offset });
        out
    }

    /// Depth of the innermost open scope.
    pub fn scope(&self) -> usize {
        self.scopes.len() - 1
    }

    /// Loads memory that nothing writes while scopes from depth `floor` on are lowered: in the outermost loop where the address
    /// exists, once.
    pub fn load_invariant(&mut self, mem: Mem, ty: Ty, addr: Val, offset: i32, floor: usize) -> Val {
        let (addr, offset) = self.split_offset(addr, offset);
        let floor = floor.max(self.infos[addr.index()].depth as usize);
        let key = (mem, ty, addr, offset);
        for scope in self.scopes[floor..].iter().rev() {
            if let Some(&v) = scope.loads.get(&key) {
                return v;
            }
        }
        let mut depth = self.scope();
        while depth > floor && self.scopes[depth].kind == ScopeKind::Loop {
            depth -= 1;
        }
        let out = Val(self.types.len() as u32);
        self.types.push(ty);
        self.infos.push(Info { depth: depth as u32, node: None, facts: Facts::UNKNOWN });
        self.scopes[depth].stmts.push(Stmt::Load { out, mem, addr, offset });
        self.scopes[depth].loads.insert(key, out);
        out
    }

    /// Memory may change from here on: invariant loads of the innermost scope are not used again.
    pub fn forget_loads(&mut self) {
        self.scopes.last_mut().expect("root scope").loads.clear();
    }

    pub fn store(&mut self, value: Val, addr: Val, offset: i32) {
        let (addr, offset) = self.split_offset(addr, offset);
        self.push(Stmt::Store { value, addr, offset });
    }

    /// Moves a constant summand of the address into the offset, where it costs nothing.
    fn split_offset(&self, addr: Val, offset: i32) -> (Val, i32) {
        if let Some(Node::Binary(BinOp::Add, a, c)) = self.infos[addr.index()].node
            && let Some(c) = self.as_const(c)
            && let Ok(sum) = i32::try_from(c.saturating_add(i64::from(offset)))
        {
            return (a, sum);
        }
        (addr, offset)
    }

    pub fn atomic(&mut self, op: Rmw, addr: Val, value: Val) -> Val {
        let out = self.fresh(self.ty(value), Facts::UNKNOWN);
        self.push(Stmt::Atomic { out, op, addr, value });
        out
    }

    pub fn cas(&mut self, addr: Val, expected: Val, value: Val) -> Val {
        let out = self.fresh(self.ty(value), Facts::UNKNOWN);
        self.push(Stmt::Cas { out, addr, expected, value });
        out
    }

    /// Calls a helper that returns nothing.
    pub fn call(&mut self, helper: Helper, args: Vec<Val>) {
        debug_assert!(args.len() == helper.arity() && !helper.has_result());
        self.push(Stmt::Call { out: None, helper, args });
    }

    /// Calls a helper that returns an i64.
    pub fn call_value(&mut self, helper: Helper, args: Vec<Val>) -> Val {
        debug_assert!(args.len() == helper.arity() && helper.has_result());
        let out = self.fresh(Ty::I64, Facts::UNKNOWN);
        self.push(Stmt::Call { out: Some(out), helper, args });
        out
    }

    pub fn exit_if(&mut self, cond: Val, site: u32, block: Val) {
        if self.as_const(cond) != Some(0) {
            self.push(Stmt::ExitIf { cond, site, block });
        }
    }

    fn open(&mut self, kind: ScopeKind) {
        self.scopes.push(Scope::new(kind));
    }

    fn close(&mut self) -> Block {
        self.scopes.pop().expect("an open scope").stmts
    }

    /// Opens `for iv in (lo..hi).step_by(step)`.
    pub fn begin_for(&mut self, lo: Val, hi: Val, step: i64, inits: &[Val]) -> Loop {
        debug_assert!(step > 0);
        self.open(ScopeKind::Loop);
        let iv = self.fresh(Ty::I64, Facts::induction(self.facts(lo), self.facts(hi), step));
        let params = inits.iter().map(|v| self.fresh(self.ty(*v), Facts::UNKNOWN)).collect();
        Loop { iv, params, lo, hi, step, inits: inits.to_vec() }
    }

    /// Closes the loop; returns the carried values after it.
    pub fn end_for(&mut self, l: Loop, nexts: &[Val]) -> Vec<Val> {
        debug_assert_eq!(nexts.len(), l.params.len());
        let body = self.close();
        let results: Vec<Val> = l.params.iter().map(|p| self.fresh(self.ty(*p), Facts::UNKNOWN)).collect();
        let carried = (0..nexts.len())
            .map(|i| Carried { param: l.params[i], init: l.inits[i], next: nexts[i], result: results[i] })
            .collect();
        self.push(Stmt::For { iv: l.iv, lo: l.lo, hi: l.hi, step: l.step, carried, body });
        results
    }

    pub fn begin_if(&mut self, cond: Val) {
        self.open(ScopeKind::Arm);
        self.open_ifs.push((cond, None));
    }

    /// Ends the `then` arm, which yields `values`, and opens the other.
    pub fn begin_else(&mut self, values: &[Val]) {
        let then = self.close();
        self.open_ifs.last_mut().expect("an open if").1 = Some((then, values.to_vec()));
        self.open(ScopeKind::Arm);
    }

    /// Ends an `if`; returns the merged values.
    pub fn end_if(&mut self, values: &[Val]) -> Vec<Val> {
        let last = self.close();
        let (cond, then) = self.open_ifs.pop().expect("an open if");
        let (then, otherwise, then_values) = match then {
            Some((then, values)) => (then, last, values),
            None => (last, Vec::new(), Vec::new()),
        };
        debug_assert_eq!(then_values.len(), values.len());
        let merges: Vec<Merge> = then_values
            .iter()
            .zip(values)
            .map(|(&t, &e)| Merge { then: t, otherwise: e, result: self.fresh(self.ty(t), Facts::UNKNOWN) })
            .collect();
        let results = merges.iter().map(|m| m.result).collect();
        if !(then.is_empty() && otherwise.is_empty() && merges.is_empty()) {
            self.push(Stmt::If { cond, then, otherwise, merges });
        }
        results
    }

    /// Opens the part of a `while` that computes its condition.
    pub fn begin_while(&mut self) {
        self.open(ScopeKind::While);
        self.open_whiles.push(None);
    }

    /// Opens the part that runs while `cond` holds.
    pub fn begin_while_body(&mut self, cond: Val) {
        *self.open_whiles.last_mut().expect("an open while") = Some(cond);
        self.open(ScopeKind::Arm);
    }

    pub fn end_while(&mut self) {
        let body = self.close();
        let before = self.close();
        let cond = self.open_whiles.pop().flatten().expect("a while with a condition");
        self.push(Stmt::While { before, cond, body });
    }
}
