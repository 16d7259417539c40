//! Decoding of integer and floating-point arithmetic, selection and moves.

use super::builder::{Builder, class_of};
use super::op::{BoolOp, Class, Cmp, CmpTy, FltMode, FltOp, FltTy, Inst, IntOp, IntTy, Op, Round};
use super::special::Special;
use crate::sim::error::SimError;
use crate::sim::parse::ast::{Instr, Operand, Ty};

/// The ALU integer type of a PTX type; untyped bits count as unsigned.
pub(super) fn int_ty(ty: Ty) -> Option<IntTy> {
    Some(match ty {
        Ty::U16 | Ty::B16 => IntTy::U16,
        Ty::S16 => IntTy::S16,
        Ty::U32 | Ty::B32 => IntTy::U32,
        Ty::S32 => IntTy::S32,
        Ty::U64 | Ty::B64 => IntTy::U64,
        Ty::S64 => IntTy::S64,
        _ => return None,
    })
}

pub(super) fn flt_ty(ty: Ty) -> Option<FltTy> {
    Some(match ty {
        Ty::F16 => FltTy::F16,
        Ty::Bf16 => FltTy::Bf16,
        Ty::F16x2 => FltTy::F16x2,
        Ty::Bf16x2 => FltTy::Bf16x2,
        Ty::F32 => FltTy::F32,
        Ty::F64 => FltTy::F64,
        _ => return None,
    })
}

/// The rounding modifier of an instruction (to nearest even when absent).
pub(super) fn rounding(i: &Instr) -> Round {
    for m in &i.mods {
        match m.as_str() {
            "rn" | "rni" => return Round::Nearest,
            "rna" => return Round::NearestAway,
            "rz" | "rzi" => return Round::Zero,
            "rm" | "rmi" => return Round::Down,
            "rp" | "rpi" => return Round::Up,
            _ => {}
        }
    }
    Round::Nearest
}

fn bool_op(word: &str) -> Option<BoolOp> {
    match word {
        "and" => Some(BoolOp::And),
        "or" => Some(BoolOp::Or),
        "xor" => Some(BoolOp::Xor),
        _ => None,
    }
}

impl Builder<'_> {
    pub(super) fn alu(&mut self, i: &Instr) -> Result<Inst, SimError> {
        let ty = self.ty(i)?;
        if ty == Ty::Pred {
            return self.pred_logic(i);
        }
        match flt_ty(ty) {
            Some(f) => self.float(i, f),
            None => self.int(i, int_ty(ty).ok_or_else(|| self.unsupported(i))?),
        }
    }

    fn pred_logic(&mut self, i: &Instr) -> Result<Inst, SimError> {
        let mut inst = match i.name.as_str() {
            "not" => self.inst(Op::PredNot),
            name => self.inst(Op::PredBin(bool_op(name).ok_or_else(|| self.unsupported(i))?)),
        };
        inst.d = self.dst(i, 0, Class::Pred)?;
        inst.a = self.pred_source(i, 1)?;
        if i.name != "not" {
            inst.b = self.pred_source(i, 2)?;
        }
        Ok(inst)
    }

    fn pred_source(&mut self, i: &Instr, at: usize) -> Result<u32, SimError> {
        match self.pred(i, at)? {
            (slot, false) => Ok(slot),
            (_, true) => Err(self.invalid(i, "`!` is not allowed on this operand")),
        }
    }

    fn int(&mut self, i: &Instr, ty: IntTy) -> Result<Inst, SimError> {
        use IntOp as O;
        if i.has("cc") {
            return Err(self.unsupported(i));
        }
        self.only(i, &["lo", "hi", "wide", "sat", "l", "r", "wrap", "clamp", "shiftamt", "b4e", "f4e"])?;
        let pick = |lo, hi, wide| {
            if i.has("hi") {
                hi
            } else if i.has("wide") {
                wide
            } else {
                lo
            }
        };
        let op = match i.name.as_str() {
            "add" if i.has("sat") => O::AddSat,
            "sub" if i.has("sat") => O::SubSat,
            "add" => O::Add,
            "sub" => O::Sub,
            "mul" => pick(O::MulLo, O::MulHi, O::MulWide),
            "mad" => pick(O::MadLo, O::MadHi, O::MadWide),
            "mul24" if !i.has("hi") => O::Mul24Lo,
            "mad24" if !i.has("hi") => O::Mad24Lo,
            "div" => O::Div,
            "rem" => O::Rem,
            "min" => O::Min,
            "max" => O::Max,
            "abs" => O::Abs,
            "neg" => O::Neg,
            "and" => O::And,
            "or" => O::Or,
            "xor" => O::Xor,
            "not" => O::Not,
            "cnot" => O::Cnot,
            "shl" => O::Shl,
            "shr" => O::Shr,
            "popc" => O::Popc,
            "clz" => O::Clz,
            "brev" => O::Brev,
            "sad" => O::Sad,
            "bfe" => O::Bfe,
            "bfi" => O::Bfi,
            "bfind" if !i.has("shiftamt") => O::Bfind,
            "lop3" => O::Lop3,
            "prmt" if !i.has("b4e") && !i.has("f4e") => O::Prmt,
            "shf" => match (i.has("l"), i.has("wrap")) {
                (true, true) => O::ShfLeftWrap,
                (true, false) => O::ShfLeftClamp,
                (false, true) => O::ShfRightWrap,
                (false, false) => O::ShfRightClamp,
            },
            "dp4a" => O::Dp4a,
            _ => return Err(self.unsupported(i)),
        };
        if matches!(op, O::AddSat | O::SubSat) && ty != IntTy::S32 {
            return Err(self.invalid(i, ".sat on integers exists for .s32 only"));
        }
        let mut ty = ty;
        let (cls, w32) = (ty.class(), Class::W32);
        let wide = match ty.bits() {
            16 => Class::W32,
            _ => Class::W64,
        };
        // Operand classes: destination, then sources.
        let (d, srcs): (Class, Vec<Class>) = match op {
            O::MulWide => (wide, vec![cls, cls]),
            O::MadWide => (wide, vec![cls, cls, wide]),
            O::MadLo | O::MadHi | O::Sad | O::Lop3 | O::Mad24Lo | O::Dp4a => (cls, vec![cls; 3]),
            O::Prmt | O::ShfLeftWrap | O::ShfRightWrap | O::ShfLeftClamp | O::ShfRightClamp => (cls, vec![cls; 3]),
            O::Abs | O::Neg | O::Not | O::Cnot | O::Brev => (cls, vec![cls]),
            O::Popc | O::Clz | O::Bfind => (w32, vec![cls]),
            O::Shl | O::Shr => (cls, vec![cls, w32]),
            O::Bfe => (cls, vec![cls, w32, w32]),
            O::Bfi => (cls, vec![cls, cls, w32, w32]),
            O::Add | O::Sub | O::MulLo | O::MulHi | O::Div | O::Rem | O::Min | O::Max => (cls, vec![cls; 2]),
            O::And | O::Or | O::Xor | O::Mul24Lo | O::AddSat | O::SubSat => (cls, vec![cls; 2]),
        };
        let extra = usize::from(op == O::Lop3);
        self.count(i, 1 + srcs.len() + extra)?;
        let mut inst = self.inst(Op::Nop);
        inst.d = self.dst(i, 0, d)?;
        let mut slots = [0u32; 4];
        for (k, c) in srcs.iter().enumerate() {
            slots[k] = self.src(i, 1 + k, *c)?;
        }
        [inst.a, inst.b, inst.c, inst.e] = slots;
        match op {
            O::Lop3 => inst.imm = self.immediate(i, 4)?,
            O::Dp4a => {
                let signs: Vec<bool> = i.mods.iter().filter_map(|m| Ty::from_word(m)).map(Ty::is_signed).collect();
                let [a, b] = signs[..] else {
                    return Err(self.invalid(i, "dp4a names the types of both operands"));
                };
                inst.imm = i64::from(a) | i64::from(b) << 1;
                ty = IntTy::U32;
            }
            _ => {}
        }
        inst.op = Op::Int(op, ty);
        Ok(inst)
    }

    fn float(&mut self, i: &Instr, ty: FltTy) -> Result<Inst, SimError> {
        use FltOp as O;
        self.only(i, &["rn", "rz", "rm", "rp", "ftz", "sat", "approx", "full", "relu", "NaN", "noftz"])?;
        let round = rounding(i);
        let (op, n) = match i.name.as_str() {
            "add" => (O::Add, 2),
            "sub" => (O::Sub, 2),
            "mul" => (O::Mul, 2),
            "fma" | "mad" if i.has("relu") => (O::FmaRelu, 3),
            "fma" | "mad" => (O::Fma, 3),
            "div" => (O::Div, 2),
            "min" if i.has("NaN") => (O::MinNan, 2),
            "max" if i.has("NaN") => (O::MaxNan, 2),
            "min" => (O::Min, 2),
            "max" => (O::Max, 2),
            "abs" => (O::Abs, 1),
            "neg" => (O::Neg, 1),
            "rcp" => (O::Rcp, 1),
            "sqrt" => (O::Sqrt, 1),
            "rsqrt" => (O::Rsqrt, 1),
            "ex2" => (O::Ex2, 1),
            "lg2" => (O::Lg2, 1),
            "sin" => (O::Sin, 1),
            "cos" => (O::Cos, 1),
            "tanh" => (O::Tanh, 1),
            "copysign" => (O::CopySign, 2),
            _ => return Err(self.unsupported(i)),
        };
        // The forms that ptxas insists on; a kernel that runs here must assemble there.
        let needs_rounding = matches!(op, O::Fma | O::FmaRelu)
            || (matches!(op, O::Div | O::Rcp | O::Sqrt) && !i.has("approx") && !i.has("full"));
        let rounded = ["rn", "rz", "rm", "rp"].iter().any(|m| i.has(m));
        if needs_rounding && !rounded {
            return Err(self.invalid(i, format!("`{}` needs a rounding modifier or .approx", i.name)));
        }
        if matches!(op, O::Rsqrt | O::Ex2 | O::Lg2 | O::Sin | O::Cos | O::Tanh) && !i.has("approx") {
            return Err(self.invalid(i, format!("`{}` needs .approx", i.name)));
        }
        let directed = round != Round::Nearest;
        let exact_helper = matches!(op, O::Add | O::Sub | O::Mul | O::Fma) && ty == FltTy::F32;
        if directed && !exact_helper {
            return Err(self.unsupported_because(i, "directed rounding of this operation"));
        }
        if i.has("relu") && op != O::FmaRelu {
            return Err(self.unsupported_because(i, "relu"));
        }
        self.count(i, 1 + n)?;
        let mode = FltMode { round, ftz: i.has("ftz"), sat: i.has("sat") };
        let mut inst = self.inst(Op::Flt(op, ty, mode));
        inst.d = self.dst(i, 0, ty.class())?;
        let mut slots = [0u32; 3];
        for (k, s) in slots.iter_mut().enumerate().take(n) {
            let operand = self.operand(i, 1 + k)?;
            *s = self.source(i, operand, ty.class(), Some(ty))?;
        }
        [inst.a, inst.b, inst.c] = slots;
        Ok(inst)
    }

    pub(super) fn select(&mut self, i: &Instr) -> Result<Inst, SimError> {
        match i.name.as_str() {
            "mov" => self.mov(i),
            "setp" => self.setp(i),
            "set" => self.set(i),
            "selp" => {
                self.only(i, &[])?;
                self.count(i, 4)?;
                let ty = self.ty(i)?;
                let class = class_of(ty);
                let (c, negate) = self.pred(i, 3)?;
                let mut inst = self.inst(Op::Selp { wide: class == Class::W64, negate });
                inst.d = self.dst(i, 0, class)?;
                (inst.a, inst.b) = (self.typed(i, 1, ty)?, self.typed(i, 2, ty)?);
                inst.c = c;
                Ok(inst)
            }
            "slct" => {
                self.only(i, &["ftz"])?;
                self.count(i, 4)?;
                let types: Vec<Ty> = i.mods.iter().filter_map(|m| Ty::from_word(m)).collect();
                let [ty, by] = types[..] else {
                    return Err(self.invalid(i, "slct names two types"));
                };
                let class = class_of(ty);
                let mut inst = self.inst(Op::Slct { wide: class == Class::W64, float: by == Ty::F32 });
                inst.d = self.dst(i, 0, class)?;
                (inst.a, inst.b, inst.c) = (self.typed(i, 1, ty)?, self.typed(i, 2, ty)?, self.typed(i, 3, by)?);
                Ok(inst)
            }
            _ => Err(self.unsupported(i)),
        }
    }

    /// A source of the given type, so that decimal literals are read as the type asks.
    fn typed(&mut self, i: &Instr, at: usize, ty: Ty) -> Result<u32, SimError> {
        let op = self.operand(i, at)?;
        self.source(i, op, class_of(ty), flt_ty(ty))
    }

    fn cmp(&self, i: &Instr) -> Result<(Cmp, Option<BoolOp>), SimError> {
        let unsigned = self.ty(i).is_ok_and(|t| !t.is_float());
        let mut cmp = None;
        let mut op = None;
        for m in &i.mods {
            let c = match m.as_str() {
                "eq" => Cmp::Eq,
                "ne" => Cmp::Ne,
                "lt" => Cmp::Lt,
                "le" => Cmp::Le,
                "gt" => Cmp::Gt,
                "ge" => Cmp::Ge,
                "lo" if unsigned => Cmp::Lt,
                "ls" if unsigned => Cmp::Le,
                "hi" if unsigned => Cmp::Gt,
                "hs" if unsigned => Cmp::Ge,
                "equ" => Cmp::Equ,
                "neu" => Cmp::Neu,
                "ltu" => Cmp::Ltu,
                "leu" => Cmp::Leu,
                "gtu" => Cmp::Gtu,
                "geu" => Cmp::Geu,
                "num" => Cmp::Num,
                "nan" => Cmp::Nan,
                word => {
                    op = op.or(bool_op(word));
                    continue;
                }
            };
            cmp = cmp.or(Some(c));
        }
        cmp.map(|c| (c, op)).ok_or_else(|| self.invalid(i, "the comparison names no operator"))
    }

    const CMP_WORDS: &'static [&'static str] = &[
        "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num",
        "nan", "and", "or", "xor", "ftz",
    ];

    fn cmp_ty(&self, i: &Instr, ty: Ty) -> Result<CmpTy, SimError> {
        flt_ty(ty)
            .map(CmpTy::Flt)
            .or_else(|| int_ty(ty).map(CmpTy::Int))
            .ok_or_else(|| self.unsupported_because(i, "comparison of this type"))
    }

    fn setp(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.only(i, Self::CMP_WORDS)?;
        let ty = self.ty(i)?;
        let (cmp, op) = self.cmp(i)?;
        self.count(i, if op.is_some() { 4 } else { 3 })?;
        let (d, e, second) = match self.operand(i, 0)? {
            Operand::Pair(p, q) => (self.destination(i, p, Class::Pred)?, self.destination(i, q, Class::Pred)?, true),
            _ => (self.dst(i, 0, Class::Pred)?, 0, false),
        };
        let (c, combine) = match op {
            Some(op) => {
                let (c, negated) = self.pred(i, 3)?;
                (c, Some((op, negated)))
            }
            None => (0, None),
        };
        let ftz = i.has("ftz");
        let mut inst = self.inst(Op::Setp { cmp, ty: self.cmp_ty(i, ty)?, ftz, combine, second });
        (inst.d, inst.e, inst.c) = (d, e, c);
        (inst.a, inst.b) = (self.typed(i, 1, ty)?, self.typed(i, 2, ty)?);
        Ok(inst)
    }

    fn set(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.only(i, Self::CMP_WORDS)?;
        let types: Vec<Ty> = i.mods.iter().filter_map(|m| Ty::from_word(m)).collect();
        let (to, from) = match types[..] {
            [to, from] => (to, from),
            // `set.gt.bf16x2.bf16x2` may be written with one type for packed operands.
            [one] => (one, one),
            _ => return Err(self.invalid(i, "set names a result type and an operand type")),
        };
        let (cmp, op) = self.cmp(i)?;
        self.count(i, if op.is_some() { 4 } else { 3 })?;
        let combine = match op {
            Some(op) => Some((op, self.pred(i, 3)?)),
            None => None,
        };
        let packed = matches!(from, Ty::F16x2 | Ty::Bf16x2);
        if class_of(to) != Class::W32 || (packed && to.is_float() && to != from) {
            return Err(self.unsupported(i));
        }
        let ftz = i.has("ftz");
        let mut inst = self.inst(Op::Set {
            cmp,
            ty: self.cmp_ty(i, from)?,
            ftz,
            float: to.is_float(),
            combine: combine.map(|(op, (_, n))| (op, n)),
        });
        inst.imm = i64::from(to.bits());
        inst.d = self.dst(i, 0, Class::W32)?;
        (inst.a, inst.b) = (self.typed(i, 1, from)?, self.typed(i, 2, from)?);
        inst.c = combine.map_or(0, |(_, (slot, _))| slot);
        Ok(inst)
    }

    fn mov(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.only(i, &[])?;
        self.count(i, 2)?;
        let ty = self.ty(i)?;
        let class = class_of(ty);
        match (self.operand(i, 0)?, self.operand(i, 1)?) {
            (Operand::Vec(ds), _) => {
                let (n, bits) = self.parts(i, ty, ds.len())?;
                let part = if bits == 64 { Class::W64 } else { Class::W32 };
                let mut slots = Vec::new();
                for d in ds {
                    slots.push(self.destination(i, d, part)?);
                }
                let wide = class == Class::W64;
                let mut inst = self.inst(Op::Unpack { n, bits, wide, wide_out: bits == 64 });
                inst.a = self.src(i, 1, class)?;
                inst.e = self.push_pool(&slots);
                Ok(inst)
            }
            (_, Operand::Vec(ss)) => {
                let (n, bits) = self.parts(i, ty, ss.len())?;
                let part = if bits == 64 { Class::W64 } else { Class::W32 };
                let mut slots = Vec::new();
                for s in ss {
                    slots.push(self.source(i, s, part, None)?);
                }
                let wide = class == Class::W64;
                let mut inst = self.inst(Op::Pack { n, bits, wide, wide_in: bits == 64 });
                inst.d = self.dst(i, 0, class)?;
                inst.e = self.push_pool(&slots);
                Ok(inst)
            }
            (_, Operand::Special(name)) if Special::from_name(name).is_none() => {
                let (wide, nanos) = match name.as_str() {
                    "%clock" | "%clock_hi" => (false, false),
                    "%clock64" => (true, false),
                    "%globaltimer" => (true, true),
                    "%globaltimer_lo" => (false, true),
                    _ => return Err(self.unsupported_because(i, &format!("special register {name}"))),
                };
                let mut inst = self.inst(Op::Clock { wide, nanos });
                inst.d = self.dst(i, 0, if wide { Class::W64 } else { Class::W32 })?;
                Ok(inst)
            }
            (_, Operand::NotReg(_)) => Err(self.invalid(i, "`!` is not allowed in mov")),
            _ => {
                let mut inst = self.inst(Op::Mov(class));
                inst.d = self.dst(i, 0, class)?;
                inst.a = self.typed(i, 1, ty)?;
                Ok(inst)
            }
        }
    }

    fn parts(&self, i: &Instr, ty: Ty, n: usize) -> Result<(u8, u8), SimError> {
        let bits = ty.bits() as usize / n.max(1);
        if !matches!(n, 2 | 4) || bits < 8 {
            return Err(self.invalid(i, format!("cannot split {} bits into {n} parts", ty.bits())));
        }
        Ok((n as u8, bits as u8))
    }
}
