//! Decoding of conversions.

use super::alu::rounding;
use super::builder::{Builder, class_of};
use super::op::{CvtMode, Inst, NumTy, Op, PackTy};
use crate::sim::error::SimError;
use crate::sim::parse::ast::{Instr, Ty};

fn num_ty(ty: Ty) -> Option<NumTy> {
    Some(match ty {
        Ty::U8 | Ty::B8 => NumTy::U8,
        Ty::S8 => NumTy::S8,
        Ty::U16 | Ty::B16 => NumTy::U16,
        Ty::S16 => NumTy::S16,
        Ty::U32 | Ty::B32 => NumTy::U32,
        Ty::S32 => NumTy::S32,
        Ty::U64 | Ty::B64 => NumTy::U64,
        Ty::S64 => NumTy::S64,
        Ty::F16 => NumTy::F16,
        Ty::Bf16 => NumTy::Bf16,
        Ty::Tf32 => NumTy::Tf32,
        Ty::F32 => NumTy::F32,
        Ty::F64 => NumTy::F64,
        _ => return None,
    })
}

impl Builder<'_> {
    pub(super) fn cvt(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.only(i, &["rn", "rna", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "relu", "satfinite"])?;
        let types: Vec<Ty> = i.mods.iter().filter_map(|m| Ty::from_word(m)).collect();
        let [to, from] = types[..] else {
            return Err(self.invalid(i, "cvt names a result type and a source type"));
        };
        let mode = CvtMode {
            round: rounding(i),
            to_int: ["rni", "rzi", "rmi", "rpi"].iter().any(|m| i.has(m)),
            ftz: i.has("ftz"),
            sat: i.has("sat"),
            relu: i.has("relu"),
            satfinite: i.has("satfinite"),
        };
        let pack = match to {
            Ty::F16x2 => Some(PackTy::F16x2),
            Ty::Bf16x2 => Some(PackTy::Bf16x2),
            Ty::E4m3x2 => Some(PackTy::E4m3x2),
            Ty::E5m2x2 => Some(PackTy::E5m2x2),
            _ => None,
        };
        let op = match (pack, from) {
            (Some(p @ (PackTy::E4m3x2 | PackTy::E5m2x2)), Ty::F16x2) => {
                self.require_satfinite(i, mode)?;
                Op::CvtF8FromF16 { to: p, relu: mode.relu }
            }
            (Some(p), Ty::F32) => {
                if matches!(p, PackTy::E4m3x2 | PackTy::E5m2x2) {
                    self.require_satfinite(i, mode)?;
                }
                self.count(i, 3)?;
                Op::CvtPackF32 { to: p, mode }
            }
            (Some(PackTy::F16x2), Ty::E4m3x2) => Op::CvtUnpackF8 { from: PackTy::E4m3x2, relu: mode.relu },
            (Some(PackTy::F16x2), Ty::E5m2x2) => Op::CvtUnpackF8 { from: PackTy::E5m2x2, relu: mode.relu },
            (Some(_), _) => return Err(self.unsupported(i)),
            (None, _) => {
                self.count(i, 2)?;
                match (num_ty(to), num_ty(from)) {
                    (Some(to), Some(from)) => {
                        self.check_rounding(i, to, from)?;
                        Op::Cvt { to, from, mode }
                    }
                    _ => return Err(self.unsupported(i)),
                }
            }
        };
        let mut inst = self.inst(op);
        // Registers may be wider than the types; the class follows the registers.
        let d = self.operand(i, 0)?;
        inst.d = self.destination(i, d, class_of(to))?;
        inst.a = self.src(i, 1, class_of(from))?;
        if matches!(op, Op::CvtPackF32 { .. }) {
            inst.b = self.src(i, 2, class_of(from))?;
        }
        Ok(inst)
    }

    fn require_satfinite(&self, i: &Instr, mode: CvtMode) -> Result<(), SimError> {
        if mode.satfinite { Ok(()) } else { Err(self.invalid(i, "conversions to fp8 need .satfinite")) }
    }

    /// The rounding modifiers that PTX demands: an integral one for float to int, any for a narrowing float or int to float.
    fn check_rounding(&self, i: &Instr, to: NumTy, from: NumTy) -> Result<(), SimError> {
        let float = |t| matches!(t, NumTy::F16 | NumTy::Bf16 | NumTy::Tf32 | NumTy::F32 | NumTy::F64);
        let rank = |t| match t {
            NumTy::F16 | NumTy::Bf16 => 0,
            NumTy::Tf32 => 1,
            NumTy::F32 => 2,
            NumTy::F64 => 3,
            _ => -1,
        };
        let integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|m| i.has(m));
        let plain = ["rn", "rna", "rz", "rm", "rp"].iter().any(|m| i.has(m));
        if float(from) && !float(to) && !integral {
            return Err(self.invalid(i, "float to integer needs .rni, .rzi, .rmi or .rpi"));
        }
        let narrowing = float(from) && float(to) && rank(to) < rank(from);
        if ((!float(from) && float(to)) || narrowing) && !plain {
            return Err(self.invalid(i, "this conversion needs a rounding modifier"));
        }
        Ok(())
    }
}
