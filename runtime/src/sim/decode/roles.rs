//! Which slots an instruction reads and writes.

use super::async_copy::bulk_slot;
use super::op::{AtomOp, Class, Inst, IntOp, MemOp, Op, WgmmaOp};

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
        Op::Setmaxnreg { .. } | Op::GridWait => {}
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
