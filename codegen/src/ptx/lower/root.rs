//! Square roots in f32, side by side.
//!
//! As for quotients ([`super::divide`]): the hardware's sequence branches for every single root on whether its operand is
//! zero, negative, not finite or tiny, so that roots do not overlap. Here independent ones take one branch together.

use super::lanes::Lanes;
use super::{Lowerer, Result, value::Scalar};
use crate::ptx::simt::{Bin, Cmp, Num, SimtOp, Ty, Un, Val};
use zellige_ir::{DType, Op, OpKind, UnaryOp};

/// Fewer roots are left to the hardware.
const MIN_GROUP: usize = 4;
/// More would need too many registers.
const MAX_GROUP: usize = 16;
/// Bits of the operands between which the short sequence is the hardware's: its results are correctly rounded there.
const RANGE: (u32, u32) = (0x0d00_0000, 0x7f7f_ffff);

impl Lowerer<'_> {
    /// Lowers an op that is a root in enough lanes; false if it is not.
    pub(super) fn roots_together(&mut self, op: Op, lanes: &Lanes) -> Result<bool> {
        let OpKind::Unary { out, op: UnaryOp::Sqrt, x } = self.func.ops[op].kind else { return Ok(false) };
        if self.func.ty(x) != DType::F32 || lanes.which.len() < MIN_GROUP {
            return Ok(false);
        }
        self.b.at(&self.func.ops[op].span);
        for group in lanes.which.chunks(MAX_GROUP) {
            let (lo, hi) = (self.b.c32(-i64::from(RANGE.0)), self.b.c32(i64::from(RANGE.1 - RANGE.0)));
            let mut roots = Vec::with_capacity(group.len());
            let mut largest = self.b.c32(0);
            for &lane in group {
                let x = self.reg(op, x, Some(lane))?;
                let var = self.b.new_var(Ty::F32);
                let root = self.short_root(x);
                self.b.set(var, root);
                roots.push((lane, var, x));
                let bits = self.b.bits(Ty::B32, x);
                let mut above = self.b.add(Num::S32, bits, lo);
                // Nobody looks at the root of an iteration that does not exist.
                if let Some(active) = self.active(lanes, lane) {
                    let zero = self.b.c32(0);
                    above = self.b.selp(active, above, zero);
                }
                largest = self.b.bin(Bin::Max, Num::U32, largest, above);
            }
            let cond = self.b.setp(Cmp::Gt, Num::U32, largest, hi);
            let then_body = self.b.open(false);
            for &(_, var, x) in &roots {
                let root = self.b.un(Un::Sqrt, Num::F32, x);
                self.b.set(var, root);
            }
            self.b.close();
            let (else_body, ()) = self.b.in_block(false, |_| ());
            self.b.push(SimtOp::If { cond, uniform: false, then_body, else_body });
            for (lane, var, _) in roots {
                let root = self.b.get(var);
                self.set(out.0, Some(lane), Scalar::Reg(root));
            }
        }
        Ok(true)
    }

    /// The root of an operand in [`RANGE`], correctly rounded.
    fn short_root(&mut self, x: Val) -> Val {
        let b = &mut self.b;
        let half = b.f32(0.5);
        let reciprocal = b.un(Un::RsqrtApprox, Num::F32, x);
        let guess = b.mul(Num::F32, x, reciprocal);
        let half_reciprocal = b.mul(Num::F32, reciprocal, half);
        let minus_guess = b.un(Un::Neg, Num::F32, guess);
        let rest = b.mad(Num::F32, minus_guess, guess, x);
        b.mad(Num::F32, rest, half_reciprocal, guess)
    }
}
