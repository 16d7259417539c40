//! Which slots an instruction reads and writes, and the packing of virtual registers into few slots.
//!
//! PTX names thousands of virtual registers; a warp's register file must stay small to stay in cache. Liveness is computed
//! per thread (lanes write only their own part of a slot, so divergence needs no special care), then a linear scan over
//! instruction order (Poletto and Sarkar, "Linear Scan Register Allocation", 1999) assigns slots.

use std::collections::{BTreeMap, HashMap};

use super::async_copy::bulk_slot;
use super::op::{AtomOp, Class, Inst, IntOp, MemOp, Op, WgmmaOp};
use super::{ConstSlot, SpecialSlot};

/// What an instruction does with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Use,
    Def,
    /// Read and written in place.
    UseDef,
}

/// Number of accumulator registers of a `wgmma`.
pub fn wgmma_acc_regs(op: &WgmmaOp) -> usize {
    use super::op::AccTy;
    match op.acc {
        AccTy::F16 => op.n as usize / 4,
        AccTy::F32 | AccTy::S32 => op.n as usize / 2,
    }
}

fn w(wide: bool) -> Class {
    if wide { Class::W64 } else { Class::W32 }
}

/// Calls `f` once for every operand place of `i` with its class and role.
pub fn visit(i: &mut Inst, pool: &mut [u32], f: &mut impl FnMut(&mut u32, Class, Role)) {
    use Class::{Pred, W32, W64};
    use Role::{Def, Use};
    if i.guard != 0 {
        let mut slot = (i.guard - 1) >> 1;
        let negated = (i.guard - 1) & 1;
        f(&mut slot, Pred, Use);
        i.guard = ((slot << 1) | negated) + 1;
    }
    let list = i.e as usize;
    let mem = |i: &mut Inst, pool: &mut [u32], m: &MemOp, role: Role, f: &mut dyn FnMut(&mut u32, Class, Role)| {
        f(&mut i.a, w(m.a64), Use);
        for s in &mut pool[list..list + m.n as usize] {
            f(s, w(m.wide), role);
        }
    };
    match i.op {
        Op::Nop | Op::Bra | Op::Exit | Op::Trap | Op::Brkpt | Op::Prefetch | Op::Fence(_) | Op::Nanosleep => {}
        Op::CpAsyncCommit | Op::CpAsyncWait { .. } | Op::BulkCommit | Op::BulkWait { .. } => {}
        Op::ClusterArrive { .. } | Op::ClusterWait | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait => {}
        Op::Setmaxnreg { .. } => {}
        Op::Int(op, ty) => {
            use IntOp as O;
            let c = ty.class();
            let wide = if ty.bits() == 16 { W32 } else { W64 };
            let (d, b, cc, e) = match op {
                O::MulWide => (wide, Some(c), None, None),
                O::MadWide => (wide, Some(c), Some(wide), None),
                O::MadLo | O::MadHi | O::Sad | O::Lop3 | O::Mad24Lo | O::Dp4a | O::Prmt => (c, Some(c), Some(c), None),
                O::ShfLeftWrap | O::ShfRightWrap | O::ShfLeftClamp | O::ShfRightClamp => (c, Some(c), Some(c), None),
                O::Abs | O::Neg | O::Not | O::Cnot | O::Brev => (c, None, None, None),
                O::Popc | O::Clz | O::Bfind => (W32, None, None, None),
                O::Shl | O::Shr => (c, Some(W32), None, None),
                O::Bfe => (c, Some(W32), Some(W32), None),
                O::Bfi => (c, Some(c), Some(W32), Some(W32)),
                O::Add | O::Sub | O::MulLo | O::MulHi | O::Div | O::Rem | O::Min | O::Max => (c, Some(c), None, None),
                O::And | O::Or | O::Xor | O::Mul24Lo | O::AddSat | O::SubSat => (c, Some(c), None, None),
            };
            f(&mut i.a, c, Use);
            for (slot, class) in [(&mut i.b, b), (&mut i.c, cc), (&mut i.e, e)] {
                if let Some(class) = class {
                    f(slot, class, Use);
                }
            }
            f(&mut i.d, d, Def);
        }
        Op::Flt(op, ty, _) => {
            use super::op::FltOp as O;
            let c = ty.class();
            let n = match op {
                O::Fma | O::FmaRelu => 3,
                O::Add | O::Sub | O::Mul | O::Div | O::Min | O::Max | O::MinNan | O::MaxNan | O::CopySign => 2,
                O::Neg | O::Abs | O::Rcp | O::Sqrt | O::Rsqrt | O::Ex2 | O::Lg2 | O::Sin | O::Cos | O::Tanh => 1,
            };
            for slot in [&mut i.a, &mut i.b, &mut i.c].into_iter().take(n) {
                f(slot, c, Use);
            }
            f(&mut i.d, c, Def);
        }
        Op::Mov(c) => {
            f(&mut i.a, c, Use);
            f(&mut i.d, c, Def);
        }
        Op::PredNot => {
            f(&mut i.a, Pred, Use);
            f(&mut i.d, Pred, Def);
        }
        Op::PredBin(_) => {
            f(&mut i.a, Pred, Use);
            f(&mut i.b, Pred, Use);
            f(&mut i.d, Pred, Def);
        }
        Op::Pack { n, wide, wide_in, .. } => {
            for s in &mut pool[list..list + n as usize] {
                f(s, w(wide_in), Use);
            }
            f(&mut i.d, w(wide), Def);
        }
        Op::Unpack { n, wide, wide_out, .. } => {
            f(&mut i.a, w(wide), Use);
            for s in &mut pool[list..list + n as usize] {
                f(s, w(wide_out), Def);
            }
        }
        Op::Setp { ty, combine, second, .. } => {
            let c = cmp_class(ty);
            f(&mut i.a, c, Use);
            f(&mut i.b, c, Use);
            if combine.is_some() {
                f(&mut i.c, Pred, Use);
            }
            f(&mut i.d, Pred, Def);
            if second {
                f(&mut i.e, Pred, Def);
            }
        }
        Op::Set { ty, combine, .. } => {
            let c = cmp_class(ty);
            f(&mut i.a, c, Use);
            f(&mut i.b, c, Use);
            if combine.is_some() {
                f(&mut i.c, Pred, Use);
            }
            f(&mut i.d, W32, Def);
        }
        Op::Selp { wide, .. } => {
            f(&mut i.a, w(wide), Use);
            f(&mut i.b, w(wide), Use);
            f(&mut i.c, Pred, Use);
            f(&mut i.d, w(wide), Def);
        }
        Op::Slct { wide, .. } => {
            f(&mut i.a, w(wide), Use);
            f(&mut i.b, w(wide), Use);
            f(&mut i.c, W32, Use);
            f(&mut i.d, w(wide), Def);
        }
        Op::Cvt { to, from, .. } => {
            f(&mut i.a, num_class(from), Use);
            f(&mut i.d, num_class(to), Def);
        }
        Op::CvtPackF32 { .. } => {
            f(&mut i.a, W32, Use);
            f(&mut i.b, W32, Use);
            f(&mut i.d, W32, Def);
        }
        Op::CvtUnpackF8 { .. } | Op::CvtF8FromF16 { .. } => {
            f(&mut i.a, W32, Use);
            f(&mut i.d, W32, Def);
        }
        Op::Cvta { wide, .. } => {
            f(&mut i.a, w(wide), Use);
            f(&mut i.d, w(wide), Def);
        }
        Op::IsSpace(_) => {
            f(&mut i.a, W64, Use);
            f(&mut i.d, Pred, Def);
        }
        Op::Clock { wide, .. } => f(&mut i.d, w(wide), Def),
        Op::LdParam(m) => {
            for s in &mut pool[list..list + m.n as usize] {
                f(s, w(m.wide), Def);
            }
        }
        Op::Ld(m) => mem(i, pool, &m, Def, f),
        Op::St(m) => mem(i, pool, &m, Use, f),
        Op::Atom { op, ty, n, ret, a64, .. } => {
            f(&mut i.a, w(a64), Use);
            let c = w(ty.bytes() == 8);
            let n = n as usize;
            let dst = if ret { n } else { 0 };
            let sources = n + usize::from(op == AtomOp::Cas);
            for s in &mut pool[list + dst..list + dst + sources] {
                f(s, c, Use);
            }
            for s in &mut pool[list..list + dst] {
                f(s, c, Def);
            }
        }
        Op::Shfl { pred, .. } => {
            for slot in [&mut i.a, &mut i.b, &mut i.c, &mut pool[list]] {
                f(slot, W32, Use);
            }
            f(&mut i.d, W32, Def);
            if pred {
                f(&mut pool[list + 1], Pred, Def);
            }
        }
        Op::Vote(v) => {
            f(&mut i.a, Pred, Use);
            f(&mut i.b, W32, Use);
            f(&mut i.d, if v == super::op::Vote::Ballot { W32 } else { Pred }, Def);
        }
        Op::Match { wide, .. } => {
            f(&mut i.a, w(wide), Use);
            f(&mut i.b, W32, Use);
            f(&mut i.d, W32, Def);
            f(&mut i.e, Pred, Def);
        }
        Op::Activemask => f(&mut i.d, W32, Def),
        Op::Redux(_) => {
            f(&mut i.a, W32, Use);
            f(&mut i.b, W32, Use);
            f(&mut i.d, W32, Def);
        }
        Op::Elect => {
            f(&mut i.a, W32, Use);
            f(&mut i.d, W32, Def);
            f(&mut i.e, Pred, Def);
        }
        Op::WarpSync => f(&mut i.a, W32, Use),
        Op::BarSync { .. } | Op::BarArrive => {
            f(&mut i.a, W32, Use);
            f(&mut i.b, W32, Use);
        }
        Op::BarRed { op, .. } => {
            f(&mut i.a, W32, Use);
            f(&mut i.b, W32, Use);
            f(&mut i.c, Pred, Use);
            f(&mut i.d, if op.is_some() { Pred } else { W32 }, Def);
        }
        Op::CpAsync { sized, ignore, a64, .. } => {
            f(&mut i.a, w(a64), Use);
            f(&mut i.b, W64, Use);
            f(&mut i.e, W64, Use);
            if sized {
                f(&mut i.c, W32, Use);
            }
            if ignore {
                f(&mut i.c, Pred, Use);
            }
        }
        Op::CpAsyncMbarArrive { a64, .. } | Op::MbarInval { a64 } => f(&mut i.a, w(a64), Use),
        Op::Ldmatrix { n, a64, .. } => {
            f(&mut i.a, w(a64), Use);
            for s in &mut pool[list..list + n as usize] {
                f(s, W32, Def);
            }
        }
        Op::Stmatrix { n, a64, .. } => {
            f(&mut i.a, w(a64), Use);
            for s in &mut pool[list..list + n as usize] {
                f(s, W32, Use);
            }
        }
        Op::Mma { k, a, b, acc, .. } => {
            let d = if acc == super::op::AccTy::F16 { 2 } else { 4 };
            let n = (16 * u32::from(k) * a.bits() + 8 * u32::from(k) * b.bits()) as usize / 1024 + d;
            for s in &mut pool[list + d..list + d + n] {
                f(s, W32, Use);
            }
            for s in &mut pool[list..list + d] {
                f(s, W32, Def);
            }
        }
        Op::Printf => {
            for slot in [&mut i.a, &mut i.b, &mut i.d] {
                f(slot, W64, Use);
            }
        }
        Op::AssertFail => {
            for s in &mut pool[list..list + 5] {
                f(s, W64, Use);
            }
        }
        Op::MbarInit { a64 } => {
            f(&mut i.a, w(a64), Use);
            f(&mut i.b, W32, Use);
        }
        Op::Mbar(m) => {
            f(&mut i.a, w(m.a64), Use);
            f(&mut i.b, W32, Use);
            f(&mut i.c, W32, Use);
            f(&mut i.d, W64, Def);
        }
        Op::MbarTest { parity, a64, .. } => {
            f(&mut i.a, w(a64), Use);
            f(&mut i.b, w(!parity), Use);
            f(&mut i.d, Pred, Def);
        }
        Op::MbarPending => {
            f(&mut i.a, W64, Use);
            f(&mut i.d, W32, Def);
        }
        Op::Mapa { wide, .. } => {
            f(&mut i.a, w(wide), Use);
            f(&mut i.b, W32, Use);
            f(&mut i.d, w(wide), Def);
        }
        Op::GetCtaRank { wide } => {
            f(&mut i.a, w(wide), Use);
            f(&mut i.d, W32, Def);
        }
        Op::Bulk(b) => {
            for at in 0..bulk_slot::LEN {
                let class = match at {
                    bulk_slot::SHARED => w(b.s64),
                    bulk_slot::OTHER => w(b.g64),
                    bulk_slot::BARRIER => w(b.b64),
                    bulk_slot::SHARED_OFFSET | bulk_slot::OTHER_OFFSET | bulk_slot::BARRIER_OFFSET => W64,
                    _ => W32,
                };
                f(&mut pool[list + at as usize], class, Use);
            }
        }
        Op::StAsync { n, wide, a64, b64, .. } => {
            f(&mut i.a, w(a64), Use);
            f(&mut pool[list], w(b64), Use);
            f(&mut pool[list + 1], W64, Use);
            for s in &mut pool[list + 2..list + 2 + n as usize] {
                f(s, w(wide), Use);
            }
        }
        Op::Wgmma(op) => {
            let d = wgmma_acc_regs(&op);
            let mut at = list + d;
            if op.a_regs {
                for s in &mut pool[at..at + 4] {
                    f(s, W32, Use);
                }
                at += 4;
            } else {
                f(&mut pool[at], W64, Use);
                at += 1;
            }
            f(&mut pool[at], W64, Use);
            f(&mut pool[at + 1], Pred, Use);
            for s in &mut pool[list..list + d] {
                f(s, W32, Role::UseDef);
            }
        }
    }
}

fn cmp_class(ty: super::op::CmpTy) -> Class {
    match ty {
        super::op::CmpTy::Int(t) => t.class(),
        super::op::CmpTy::Flt(t) => t.class(),
    }
}

fn num_class(ty: super::op::NumTy) -> Class {
    use super::op::NumTy as N;
    match ty {
        N::U64 | N::S64 | N::F64 => Class::W64,
        N::U8 | N::S8 | N::U16 | N::S16 | N::U32 | N::S32 | N::F16 | N::Bf16 | N::Tf32 | N::F32 => Class::W32,
    }
}

/// One number space for the registers of all classes.
struct Ids {
    base: [u32; 3],
    total: usize,
}

impl Ids {
    fn new(count: [u32; 3]) -> Ids {
        let base = [0, count[0], count[0] + count[1]];
        Ids { base, total: (base[2] + count[2]) as usize }
    }

    fn of(&self, class: Class, slot: u32) -> usize {
        (self.base[class as usize] + slot) as usize
    }
}

#[derive(Clone, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Bits {
        Bits(vec![0; n.div_ceil(64)])
    }
    fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
    fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }
    fn get(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 != 0
    }
    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(w, &bits)| {
            let mut rest = bits;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let b = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    w * 64 + b
                })
            })
        })
    }
}

/// Renumbers all slots so that registers with disjoint lifetimes share one; constants and special registers keep their own.
pub fn compact(
    code: &mut [Inst],
    pool: &mut [u32],
    count: &mut [u32; 3],
    consts: &mut [ConstSlot],
    specials: &mut [SpecialSlot],
) {
    let ids = Ids::new(*count);
    let mut uses: Vec<Vec<usize>> = vec![Vec::new(); code.len()];
    let mut defs: Vec<Vec<usize>> = vec![Vec::new(); code.len()];
    for (at, i) in code.iter_mut().enumerate() {
        visit(i, pool, &mut |slot, class, role| {
            let id = ids.of(class, *slot);
            match role {
                Role::Use => uses[at].push(id),
                Role::Def => defs[at].push(id),
                Role::UseDef => {
                    uses[at].push(id);
                    defs[at].push(id);
                }
            }
        });
        // A guarded write may leave the old value.
        if i.guard != 0 {
            let d = defs[at].clone();
            uses[at].extend(d);
        }
    }
    let (first, last) = intervals(code, &uses, &defs, ids.total);

    let mut pinned = vec![false; ids.total];
    for c in consts.iter() {
        pinned[ids.of(c.class, c.slot)] = true;
    }
    for s in specials.iter() {
        pinned[ids.of(s.class, s.slot)] = true;
    }
    // Registers of an asynchronous wgmma stay in use until some later wait: they get slots of their own.
    for (at, i) in code.iter().enumerate() {
        if matches!(i.op, Op::Wgmma(_)) {
            uses[at].iter().for_each(|id| pinned[*id] = true);
        }
    }
    let mut next = [0u32; 3];
    let mut map = vec![u32::MAX; ids.total];
    for class in [Class::Pred, Class::W32, Class::W64] {
        let k = class as usize;
        let range = ids.base[k] as usize..(ids.base[k] + count[k]) as usize;
        for id in range.clone().filter(|id| pinned[*id]) {
            map[id] = next[k];
            next[k] += 1;
        }
        let mut order: Vec<usize> = range.filter(|id| !pinned[*id] && first[*id] != usize::MAX).collect();
        order.sort_by_key(|id| first[*id]);
        let mut free: Vec<u32> = Vec::new();
        // Active intervals by their end.
        let mut active: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for id in order {
            while let Some(e) = active.first_entry().filter(|e| *e.key() < first[id]) {
                free.extend(e.remove());
            }
            let slot = free.pop().unwrap_or_else(|| {
                next[k] += 1;
                next[k] - 1
            });
            map[id] = slot;
            active.entry(last[id]).or_default().push(slot);
        }
    }
    for i in code.iter_mut() {
        visit(i, pool, &mut |slot, class, _| *slot = map[ids.of(class, *slot)]);
    }
    for c in consts.iter_mut() {
        c.slot = map[ids.of(c.class, c.slot)];
    }
    for s in specials.iter_mut() {
        s.slot = map[ids.of(s.class, s.slot)];
    }
    *count = next;
}

/// The 32-bit slots each instruction reads and writes, if any is a `wgmma`.
pub fn touched(code: &mut [Inst], pool: &mut [u32]) -> Vec<(Vec<u32>, Vec<u32>)> {
    if !code.iter().any(|i| matches!(i.op, Op::Wgmma(_))) {
        return Vec::new();
    }
    code.iter_mut()
        .map(|i| {
            let (mut uses, mut defs) = (Vec::new(), Vec::new());
            visit(i, pool, &mut |slot, class, role| {
                if class == Class::W32 {
                    if role != Role::Def {
                        uses.push(*slot);
                    }
                    if role != Role::Use {
                        defs.push(*slot);
                    }
                }
            });
            (uses, defs)
        })
        .collect()
}

/// First and last position at which each register is live.
fn intervals(code: &[Inst], uses: &[Vec<usize>], defs: &[Vec<usize>], total: usize) -> (Vec<usize>, Vec<usize>) {
    let n = code.len();
    let mut leader = vec![false; n + 1];
    leader[0] = true;
    for (at, i) in code.iter().enumerate() {
        if matches!(i.op, Op::Bra | Op::Exit | Op::Trap) {
            leader[at + 1] = true;
            if i.op == Op::Bra {
                leader[i.imm as usize] = true;
            }
        }
    }
    let starts: Vec<usize> = (0..n).filter(|&at| leader[at]).collect();
    let index: HashMap<usize, usize> = starts.iter().enumerate().map(|(b, s)| (*s, b)).collect();
    let end = |b: usize| starts.get(b + 1).copied().unwrap_or(n);
    let mut live_in = vec![Bits::new(total); starts.len()];
    let mut live_out = live_in.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..starts.len()).rev() {
            let i = &code[end(b) - 1];
            let mut out = Bits::new(total);
            let mut join = |at: usize| {
                if let Some(&s) = index.get(&at) {
                    for (o, l) in out.0.iter_mut().zip(&live_in[s].0) {
                        *o |= l;
                    }
                }
            };
            if i.guard != 0 || !matches!(i.op, Op::Bra | Op::Exit | Op::Trap) {
                join(end(b));
            }
            if i.op == Op::Bra {
                join(i.imm as usize);
            }
            let mut live = out.clone();
            live_out[b] = out;
            for at in (starts[b]..end(b)).rev() {
                defs[at].iter().for_each(|&d| live.clear(d));
                uses[at].iter().for_each(|&u| live.set(u));
            }
            if live != live_in[b] {
                live_in[b] = live;
                changed = true;
            }
        }
    }
    let (mut first, mut last) = (vec![usize::MAX; total], vec![0usize; total]);
    let mut touch = |id: usize, at: usize| {
        first[id] = first[id].min(at);
        last[id] = last[id].max(at);
    };
    for b in 0..starts.len() {
        for id in live_in[b].iter() {
            touch(id, starts[b]);
        }
        for id in live_out[b].iter() {
            touch(id, end(b) - 1);
        }
        for at in starts[b]..end(b) {
            uses[at].iter().chain(&defs[at]).for_each(|&id| touch(id, at));
        }
    }
    debug_assert!(live_in.first().is_none_or(|l| (0..total).all(|id| !l.get(id) || first[id] == 0)));
    (first, last)
}

#[cfg(test)]
mod tests {
    use crate::sim::Module;

    fn slots(body: &str) -> [u32; 3] {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .b32 %r<2000>; .reg .b64 %rd<4>; .reg .pred %q<9>;\n{body}\nret; }}"
        );
        Module::parse(&text).unwrap_or_else(|e| panic!("{e}")).kernels()[0].slots
    }

    #[test]
    fn a_chain_of_temporaries_needs_few_slots() {
        let chain: String = (0..1000).map(|k| format!("add.u32 %r{}, %r{k}, 1;", k + 1)).collect();
        let [_, w32, _] =
            slots(&format!("mov.u32 %r0, 1; {chain} ld.param.u64 %rd0, [p]; st.global.u32 [%rd0], %r1000;"));
        assert!(w32 <= 4, "{w32}");
    }

    #[test]
    fn values_that_live_together_stay_apart() {
        let load: String = (0..100).map(|k| format!("mov.u32 %r{k}, {k};")).collect();
        let add: String = (0..100).map(|k| format!("add.u32 %r200, %r200, %r{k};")).collect();
        let [_, w32, _] =
            slots(&format!("mov.u32 %r200, 0; {load} {add} ld.param.u64 %rd0, [p]; st.global.u32 [%rd0], %r200;"));
        assert!(w32 >= 101, "{w32}");
    }

    #[test]
    fn values_carried_around_a_loop_keep_their_slot() {
        // %r1 is set before the loop and read at its top only: temporaries inside must not take its place.
        let body = "mov.u32 %r1, 5; mov.u32 %r2, 0; L: add.u32 %r2, %r2, %r1; mov.u32 %r3, 7; add.u32 %r4, %r3, %r2; setp.lt.u32 %q0, %r4, 99; @%q0 bra L;
            ld.param.u64 %rd0, [p]; st.global.u32 [%rd0], %r2;";
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .b32 %r<9>; .reg .b64 %rd<4>; .reg .pred %q<9>;\n{body}\nret; }}"
        );
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let mut m = crate::sim::Memory::new();
        let p = m.alloc("p", 4);
        let dims = crate::sim::LaunchDims::linear(1, 1);
        crate::sim::launch(&module, "k", dims, &p.to_le_bytes(), &mut m, &crate::sim::SimOptions::default())
            .expect("launches");
        assert_eq!(m.read(p, 4).expect("read"), 95u32.to_le_bytes());
    }
}
