//! Checks that a SIMT kernel is well formed: definitions precede uses and operand classes fit.
//!
//! Run after lowering and, in tests and debug builds, after every pass. A failure is a defect of the compiler,
//! never of the author's kernel.

use super::builder::mem_reg;
use super::func::{Block, Kernel, ObjKind, Val, ValDef};
use super::op::{Addr, Bin, Fields, MmaKind, Packed, SimtOp, Un};
use super::ty::{Num, Space, Ty};
use smallvec::SmallVec;
use zellige_ir::EntityId;

/// What is wrong, with the op as text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid SIMT IR: {what} in `{op}`")]
pub struct VerifyError {
    pub what: String,
    pub op: String,
}

struct Verifier<'k> {
    k: &'k Kernel,
    /// By value and by op.
    defined: Vec<bool>,
    seen: Vec<bool>,
}

/// Checks the whole kernel and returns the first failure.
pub fn verify(k: &Kernel) -> Result<(), VerifyError> {
    Verifier { k, defined: vec![false; k.vals.len()], seen: vec![false; k.insts.len()] }.block(k.body)
}

impl Verifier<'_> {
    fn block(&mut self, block: Block) -> Result<(), VerifyError> {
        let mut here = Vec::new();
        for &inst in &self.k.blocks[block] {
            let op = &self.k.insts[inst].op;
            let fail = |what: String| {
                let mut fields = String::new();
                op.show(self.k, &mut fields);
                Err(VerifyError { what, op: format!("{}{fields}", op.name()) })
            };
            if std::mem::replace(&mut self.seen[inst.index()], true) {
                return fail("the op stands twice".into());
            }
            if let SimtOp::While { before, cond, body, .. } = op {
                // The condition is what `before` computes; nothing else of it is visible outside.
                let inner = self.open(*before)?;
                if !self.is_defined(*cond) {
                    return fail("the condition is not defined".into());
                }
                self.close(inner);
                self.block(*body)?;
                continue;
            }
            let mut bad = None;
            op.uses(&mut |v| {
                if !self.is_defined(v) {
                    bad = Some(v);
                }
            });
            if let Some(v) = bad {
                return fail(format!("{v} is used before its definition"));
            }
            if let Err(what) = self.types(op) {
                return fail(what);
            }
            let mut defs: SmallVec<[Val; 4]> = SmallVec::new();
            op.defs(&mut |v| defs.push(v));
            for &v in &defs {
                if self.k.vals[v].def != ValDef::Inst(inst) {
                    return fail(format!("{v} has another definition"));
                }
            }
            self.set_defined(&defs, true);
            let mut blocks: SmallVec<[Block; 2]> = SmallVec::new();
            op.blocks(&mut |b| blocks.push(b));
            for b in blocks {
                self.block(b)?;
            }
            if matches!(op, SimtOp::For { .. }) {
                self.set_defined(&defs, false);
            } else {
                here.extend(defs);
            }
        }
        self.close(here);
        Ok(())
    }

    /// Checks a block and leaves its definitions visible.
    fn open(&mut self, block: Block) -> Result<Vec<Val>, VerifyError> {
        self.block(block)?;
        let mut defs = Vec::new();
        for &inst in &self.k.blocks[block] {
            self.k.insts[inst].op.defs(&mut |v| defs.push(v));
        }
        self.set_defined(&defs, true);
        Ok(defs)
    }

    fn close(&mut self, defs: Vec<Val>) {
        self.set_defined(&defs, false);
    }

    fn set_defined(&mut self, vals: &[Val], to: bool) {
        for v in vals {
            self.defined[v.index()] = to;
        }
    }

    fn is_defined(&self, v: Val) -> bool {
        matches!(self.k.vals[v].def, ValDef::Const(_)) || self.defined[v.index()]
    }

    fn want(&self, v: Val, ty: Ty) -> Result<(), String> {
        let is = self.k.ty(v);
        if is == ty { Ok(()) } else { Err(format!("{v} is {is}, must be {ty}")) }
    }

    fn addr(&self, a: &Addr, space: Space) -> Result<(), String> {
        self.want(a.base, space.addr_ty())?;
        let fits = match self.k.objs[a.obj].kind {
            ObjKind::Global { .. } => space == Space::Global,
            ObjKind::Shared { .. } => space == Space::Shared,
            ObjKind::Local { .. } => space == Space::Local,
        };
        if fits { Ok(()) } else { Err(format!("{} is not in {space} memory", a.obj)) }
    }

    fn guard(&self, g: &Option<Val>) -> Result<(), String> {
        g.map_or(Ok(()), |g| self.want(g, Ty::Pred))
    }

    fn types(&self, op: &SimtOp) -> Result<(), String> {
        match op {
            SimtOp::Get { out, var } => self.want(out.0, self.k.vars[*var]),
            SimtOp::Set { var, x } => self.want(*x, self.k.vars[*var]),
            SimtOp::Special { out, .. } | SimtOp::SharedAddr { out, .. } | SimtOp::LocalAddr { out, .. } => {
                self.want(out.0, Ty::B32)
            }
            SimtOp::Param { .. } => Ok(()),
            SimtOp::Un { out, op, num, x } => {
                self.want(*x, num.ty())?;
                self.want(out.0, if matches!(op, Un::Popc | Un::Clz) { Ty::B32 } else { num.ty() })
            }
            SimtOp::Bin { out, op, num, x, y } => {
                self.want(*x, num.ty())?;
                self.want(*y, if matches!(op, Bin::Shl | Bin::Shr) { Ty::B32 } else { num.ty() })?;
                self.want(out.0, if *op == Bin::MulWide { Ty::B64 } else { num.ty() })
            }
            SimtOp::Mad { out, num, x, y, z } => {
                [*x, *y, *z, out.0].into_iter().try_for_each(|v| self.want(v, num.ty()))
            }
            SimtOp::MadWide { out, x, y, z, .. } => {
                self.want(*x, Ty::B32)?;
                self.want(*y, Ty::B32)?;
                self.want(*z, Ty::B64)?;
                self.want(out.0, Ty::B64)
            }
            SimtOp::Setp { out, num, x, y, .. } => {
                self.want(*x, num.ty())?;
                self.want(*y, num.ty())?;
                self.want(out.0, Ty::Pred)
            }
            SimtOp::Selp { out, cond, x, y } => {
                self.want(*cond, Ty::Pred)?;
                let ty = self.k.ty(*x);
                self.want(*y, ty)?;
                self.want(out.0, ty)
            }
            SimtOp::Cvt { out, to, from, x, .. } => {
                self.want(*x, from.ty())?;
                self.want(out.0, to.ty())
            }
            SimtOp::CvtPack { out, to, hi, lo } => {
                self.want(*hi, Ty::F32)?;
                self.want(*lo, Ty::F32)?;
                self.want(out.0, if matches!(to, Packed::E4M3x2 | Packed::E5M2x2) { Ty::B16 } else { Ty::B32 })
            }
            SimtOp::CvtUnpack { out, x, .. } => {
                self.want(*x, Ty::B16)?;
                self.want(out.0, Ty::B32)
            }
            SimtOp::CvtTf32 { out, x } => {
                self.want(*x, Ty::F32)?;
                self.want(out.0, Ty::B32)
            }
            SimtOp::Bits { out, x } => {
                if self.k.ty(out.0).bits() == self.k.ty(*x).bits() {
                    Ok(())
                } else {
                    Err("widths differ".into())
                }
            }
            SimtOp::Pack { out, lo, hi } => {
                self.want(*hi, self.k.ty(*lo))?;
                let fits = self.k.ty(out.0).bits() == 2 * self.k.ty(*lo).bits();
                if fits { Ok(()) } else { Err("widths do not add up".into()) }
            }
            SimtOp::Unpack { lo, hi, x } => {
                self.want(hi.0, self.k.ty(lo.0))?;
                let fits = self.k.ty(*x).bits() == 2 * self.k.ty(lo.0).bits();
                if fits { Ok(()) } else { Err("widths do not add up".into()) }
            }
            SimtOp::Prmt { out, x, y, .. } | SimtOp::Bfi { out, x, y, .. } => {
                [*x, *y, out.0].into_iter().try_for_each(|v| self.want(v, Ty::B32))
            }
            SimtOp::PrmtBy { out, x, y, sel } => {
                [*x, *y, *sel, out.0].into_iter().try_for_each(|v| self.want(v, Ty::B32))
            }
            SimtOp::Bfe { out, x, .. } => {
                self.want(*x, Ty::B32)?;
                self.want(out.0, Ty::B32)
            }
            SimtOp::Ld { outs, space, mem, addr, guard, .. } => {
                self.addr(addr, *space)?;
                self.guard(guard)?;
                vector(outs.len(), mem.bytes())?;
                outs.iter().try_for_each(|d| self.want(d.0, mem_reg(*mem)))
            }
            SimtOp::St { space, mem, addr, vals, guard } => {
                self.addr(addr, *space)?;
                self.guard(guard)?;
                vector(vals.len(), mem.bytes())?;
                vals.iter().try_for_each(|v| self.want(*v, mem_reg(*mem)))
            }
            SimtOp::CpAsync { dst, src, bytes, size, guard } => {
                self.addr(dst, Space::Shared)?;
                self.addr(src, Space::Global)?;
                self.guard(guard)?;
                size.map_or(Ok(()), |s| self.want(s, Ty::B32))?;
                if matches!(bytes, 4 | 8 | 16) {
                    Ok(())
                } else {
                    Err(format!("{bytes} bytes cannot be copied at once"))
                }
            }
            SimtOp::LdMatrix { outs, addr, .. } => {
                self.addr(addr, Space::Shared)?;
                if !matches!(outs.len(), 1 | 2 | 4) {
                    return Err(format!("{} matrices", outs.len()));
                }
                outs.iter().try_for_each(|d| self.want(d.0, Ty::B32))
            }
            SimtOp::Mma { outs, kind, a, b, c } => self.mma(outs.iter().map(|d| d.0).collect(), *kind, a, b, c),
            SimtOp::Shfl { out, x, lane, .. } => {
                self.want(*lane, Ty::B32)?;
                self.want(out.0, self.k.ty(*x))?;
                if self.k.ty(*x).bits() == 32 { Ok(()) } else { Err("only 32-bit registers can be exchanged".into()) }
            }
            SimtOp::Vote { x, .. } => self.want(*x, Ty::Pred),
            SimtOp::Redux { out, op, num, x } => {
                self.want(*x, Ty::B32)?;
                self.want(out.0, Ty::B32)?;
                let combines = matches!(op, Bin::Add | Bin::Min | Bin::Max | Bin::And | Bin::Or | Bin::Xor);
                if combines && !num.is_float() { Ok(()) } else { Err(format!("{op} of {num} does not combine lanes")) }
            }
            SimtOp::Atom { out, num, space, addr, x, guard, .. } => {
                self.addr(addr, *space)?;
                self.guard(guard)?;
                self.want(*x, num.ty())?;
                out.map_or(Ok(()), |d| self.want(d.0, num.ty()))
            }
            SimtOp::For { index, lo, hi, step, .. } => {
                let ty = self.k.ty(index.0);
                if !matches!(ty, Ty::B32 | Ty::B64) {
                    return Err(format!("a loop index cannot be {ty}"));
                }
                [*lo, *hi, *step].into_iter().try_for_each(|v| self.want(v, ty))
            }
            SimtOp::If { cond, .. } => self.want(*cond, Ty::Pred),
            SimtOp::Print { args, .. } => args.iter().try_for_each(|v| match self.k.ty(*v) {
                Ty::B32 | Ty::B64 | Ty::F64 => Ok(()),
                ty => Err(format!("a {ty} cannot be printed")),
            }),
            SimtOp::BarPart { id, .. } | SimtOp::BarArrive { id, .. } => self.want(*id, Ty::B32),
            SimtOp::MapPrefetch { map } => self.want(*map, Ty::B64),
            SimtOp::ParamAddr { out, .. } => self.want(out.0, Ty::B64),
            SimtOp::MbarInit { addr, .. } | SimtOp::MbarExpect { addr, .. } => self.addr(addr, Space::Shared),
            SimtOp::MbarArrive { addr, guard } => {
                self.addr(addr, Space::Shared)?;
                self.guard(guard)
            }
            SimtOp::BulkSend { addr, bar, rank, bytes } => {
                self.addr(addr, Space::Shared)?;
                self.addr(bar, Space::Shared)?;
                self.want(*rank, Ty::B32)?;
                if bytes % 16 == 0 { Ok(()) } else { Err(format!("{bytes} bytes are no multiple of 16")) }
            }
            SimtOp::MbarArriveAt { addr, rank, guard } | SimtOp::MbarReleaseAt { addr, rank, guard } => {
                self.addr(addr, Space::Shared)?;
                self.want(*rank, Ty::B32)?;
                self.guard(guard)
            }
            SimtOp::MbarWait { addr, parity } => {
                self.addr(addr, Space::Shared)?;
                self.want(*parity, Ty::B32)
            }
            SimtOp::TmaLoad { dst, map, coords, bar, .. } => {
                self.addr(dst, Space::Shared)?;
                self.addr(bar, Space::Shared)?;
                self.want(*map, Ty::B64)?;
                coords.iter().try_for_each(|c| self.want(*c, Ty::B32))
            }
            SimtOp::TmaStore { map, coords, src } => {
                self.addr(src, Space::Shared)?;
                self.want(*map, Ty::B64)?;
                coords.iter().try_for_each(|c| self.want(*c, Ty::B32))
            }
            SimtOp::Wgmma { acc, ty, n, a, b, scale_d, trans_a, trans_b } => {
                if ty.bits() != 16 && (*trans_a || *trans_b) {
                    return Err(format!("{ty} operands are not transposed"));
                }
                self.want(*a, Ty::B64)?;
                self.want(*b, Ty::B64)?;
                self.want(*scale_d, Ty::Pred)?;
                let fits = *n % 8 == 0 && (8..=256).contains(n) && acc.len() == *n as usize / 2;
                let floats = acc.iter().all(|v| self.k.vars[*v] == Ty::F32);
                if fits && floats { Ok(()) } else { Err(format!("{} accumulators for n = {n}", acc.len())) }
            }
            SimtOp::WgmmaRegs { acc, ty, n, a, b, scale_d, trans_b } => {
                if ty.bits() == 8 {
                    return Err(format!("{ty} operands come from shared memory"));
                }
                if ty.bits() != 16 && *trans_b {
                    return Err(format!("{ty} operands are not transposed"));
                }
                self.want(*b, Ty::B64)?;
                self.want(*scale_d, Ty::Pred)?;
                let fits = *n % 8 == 0 && (8..=256).contains(n) && acc.len() == *n as usize / 2 && a.len() == 4;
                let classes =
                    acc.iter().all(|v| self.k.vars[*v] == Ty::F32) && a.iter().all(|v| self.k.vars[*v] == Ty::B32);
                if fits && classes { Ok(()) } else { Err(format!("{} accumulators for n = {n}", acc.len())) }
            }
            SimtOp::StMatrix { addr, vals, .. } => {
                self.addr(addr, Space::Shared)?;
                if !matches!(vals.len(), 1 | 2 | 4) {
                    return Err(format!("{} matrices", vals.len()));
                }
                vals.iter().try_for_each(|v| self.want(*v, Ty::B32))
            }
            SimtOp::Fail { record, number } => {
                if *number == 0 || *number as usize > self.k.assertions.len() {
                    return Err(format!("there is no assertion {number}"));
                }
                self.want(*record, Ty::B64)
            }
            SimtOp::MbarFence {}
            | SimtOp::ClusterSync {}
            | SimtOp::BulkCommit {}
            | SimtOp::BulkWait { .. }
            | SimtOp::AsyncFence {}
            | SimtOp::WgmmaFence {}
            | SimtOp::WgmmaCommit {}
            | SimtOp::WgmmaWait { .. }
            | SimtOp::SetRegs { .. }
            | SimtOp::CpAsyncCommit {}
            | SimtOp::CpAsyncWait { .. }
            | SimtOp::Phase { .. }
            | SimtOp::Bar {}
            | SimtOp::BarWarp {}
            | SimtOp::Fence {}
            | SimtOp::GridWait {}
            | SimtOp::GridTrigger {}
            | SimtOp::While { .. } => Ok(()),
        }
    }

    fn mma(&self, outs: Vec<Val>, kind: MmaKind, a: &[Val], b: &[Val], c: &[Val]) -> Result<(), String> {
        let (na, nb) = kind.operand_regs();
        if a.len() != na || b.len() != nb || c.len() != 4 || outs.len() != 4 {
            return Err("wrong number of operand registers".into());
        }
        let acc = if kind.is_integer() { Num::S32 } else { Num::F32 };
        a.iter().chain(b).try_for_each(|v| self.want(*v, Ty::B32))?;
        c.iter().chain(&outs).try_for_each(|v| self.want(*v, acc.ty()))
    }
}

fn vector(count: usize, bytes: u32) -> Result<(), String> {
    let fits = matches!(count, 1 | 2 | 4) && count as u32 * bytes <= 16;
    if fits { Ok(()) } else { Err(format!("no vector of {count} elements of {bytes} bytes")) }
}
