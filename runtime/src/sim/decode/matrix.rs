//! Decoding of `ldmatrix`, `stmatrix` and `mma.sync`.

use super::builder::Builder;
use super::op::{AccTy, Class, Inst, MatTy, Op, Space};
use crate::sim::error::SimError;
use crate::sim::parse::ast::{Instr, Ty};

/// The matrix element format of a type.
pub(super) fn mat_ty(ty: Ty) -> Option<MatTy> {
    Some(match ty {
        Ty::F16 => MatTy::F16,
        Ty::Bf16 => MatTy::Bf16,
        Ty::Tf32 => MatTy::Tf32,
        Ty::E4m3 => MatTy::E4m3,
        Ty::E5m2 => MatTy::E5m2,
        Ty::S8 => MatTy::S8,
        Ty::U8 => MatTy::U8,
        _ => return None,
    })
}

/// The accumulator format of a type.
pub(super) fn acc_ty(ty: Ty) -> Option<AccTy> {
    match ty {
        Ty::F32 => Some(AccTy::F32),
        Ty::F16 => Some(AccTy::F16),
        Ty::S32 => Some(AccTy::S32),
        _ => None,
    }
}

/// `m16n8k16` to its numbers.
pub(super) fn shape(word: &str) -> Option<(u32, u32, u32)> {
    let rest = word.strip_prefix('m')?;
    let (m, rest) = rest.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

impl Builder<'_> {
    pub(super) fn matrix(&mut self, i: &Instr) -> Result<Inst, SimError> {
        match i.name.as_str() {
            "ldmatrix" => self.ldst_matrix(i, true),
            "stmatrix" => self.ldst_matrix(i, false),
            "mma" => self.mma(i),
            _ => Err(self.unsupported(i)),
        }
    }

    fn ldst_matrix(&mut self, i: &Instr, load: bool) -> Result<Inst, SimError> {
        self.only(i, &["sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"])?;
        let n = match () {
            () if i.has("x4") => 4u8,
            () if i.has("x2") => 2,
            () if i.has("x1") => 1,
            () => return Err(self.invalid(i, "the matrix count .x1, .x2 or .x4 is missing")),
        };
        if self.ty(i)? != Ty::B16 || !i.has("m8n8") {
            return Err(self.unsupported(i));
        }
        self.count(i, 2)?;
        let (data_at, addr_at) = if load { (0, 1) } else { (1, 0) };
        let addr_op = self.operand(i, addr_at)?.clone();
        let addr = self.address(i, &addr_op)?;
        let data_op = self.operand(i, data_at)?.clone();
        let items = self.elements(&data_op).to_vec();
        if items.len() != n as usize {
            return Err(self.invalid(i, format!("expected {n} registers, found {}", items.len())));
        }
        let mut slots = Vec::new();
        for o in &items {
            slots.push(if load { self.destination(i, o, Class::W32)? } else { self.source(i, o, Class::W32, None)? });
        }
        let (trans, generic) = (i.has("trans"), self.space(i) == Space::Generic);
        let mut inst = self.inst(if load {
            Op::Ldmatrix { n, trans, a64: addr.a64, generic }
        } else {
            Op::Stmatrix { n, trans, a64: addr.a64, generic }
        });
        (inst.a, inst.imm) = (addr.slot, addr.offset);
        inst.e = self.push_pool(&slots);
        Ok(inst)
    }

    fn mma(&mut self, i: &Instr) -> Result<Inst, SimError> {
        let Some((word, (m, n, k))) = i.mods.iter().find_map(|w| shape(w).map(|s| (w.clone(), s))) else {
            return Err(self.invalid(i, "mma names no shape"));
        };
        self.only(i, &["sync", "aligned", "row", "col", "satfinite", &word])?;
        let layouts: Vec<&str> = i.mods.iter().map(String::as_str).filter(|m| matches!(*m, "row" | "col")).collect();
        let types: Vec<Ty> = i.mods.iter().filter_map(|w| Ty::from_word(w)).collect();
        let ([d, a, b, c], ["row", "col"]) = (&types[..], &layouts[..]) else {
            return Err(self.unsupported(i));
        };
        let (Some(ta), Some(tb), Some(acc)) = (mat_ty(*a), mat_ty(*b), acc_ty(*d)) else {
            return Err(self.unsupported(i));
        };
        let int = |t| matches!(t, MatTy::S8 | MatTy::U8);
        let f8 = |t| matches!(t, MatTy::E4m3 | MatTy::E5m2);
        let same_kind = ta == tb || (int(ta) && int(tb)) || (f8(ta) && f8(tb));
        let k_ok = match ta.bits() {
            16 => k == 8 || k == 16,
            32 => k == 4 || k == 8,
            _ => k == 16 || k == 32,
        };
        let acc_ok = match acc {
            AccTy::F32 => !int(ta),
            AccTy::F16 => ta == MatTy::F16 || f8(ta),
            AccTy::S32 => int(ta),
        };
        if (m, n) != (16, 8) || !k_ok || !same_kind || !acc_ok || d != c || i.has("satfinite") {
            return Err(self.unsupported(i));
        }
        self.count(i, 4)?;
        let acc_regs = if acc == AccTy::F16 { 2 } else { 4 };
        let (a_regs, b_regs) = (16 * k * ta.bits() / 1024, 8 * k * tb.bits() / 1024);
        let mut slots = Vec::new();
        for (at, want) in [acc_regs, a_regs, b_regs, acc_regs].into_iter().enumerate() {
            let op = self.operand(i, at)?.clone();
            let items = self.elements(&op);
            if items.len() != want as usize {
                return Err(self.invalid(i, format!("operand {} needs {want} registers, has {}", at + 1, items.len())));
            }
            for o in items {
                slots.push(if at == 0 {
                    self.destination(i, o, Class::W32)?
                } else {
                    self.source(i, o, Class::W32, None)?
                });
            }
        }
        let mut inst = self.inst(Op::Mma { m: 16, n: 8, k: k as u8, a: ta, b: tb, acc });
        inst.e = self.push_pool(&slots);
        Ok(inst)
    }
}
