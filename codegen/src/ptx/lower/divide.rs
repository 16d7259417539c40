//! Divisions in f32 by few divisors, side by side.
//!
//! An IEEE division is a reciprocal and a few fused multiply-adds, unless an operand is extreme: zero, not finite, or so
//! large or small that a step would round where it must not. The hardware's own sequence branches on that for every
//! single division, which keeps divisions from overlapping, and finds the reciprocal anew. Here a group of independent
//! divisions takes one branch: all are computed by the short sequence (the hardware's: its results are correctly rounded for
//! operands in [`RANGE`]), and where an operand of any is extreme, all are divided again the long way.

use super::lanes::Lanes;
use super::{Lowerer, Result, value::Scalar};
use crate::ptx::simt::{Bin, Cmp, Num, SimtOp, Ty, Un, Val};
use zellige_ir::{BinaryOp, DType, Op, OpKind, Value};

/// Fewer divisions are left to the hardware.
const MIN_GROUP: usize = 4;
/// More would need too many registers.
const MAX_GROUP: usize = 16;
/// Magnitudes between which no step of the short sequence overflows or loses bits below the smallest normal number: for
/// operands in it the last remainder, a multiple of 2^-46 times the dividend's scale, is above 2^-107.
const RANGE: (f32, f32) = (1.0 / (1u64 << 60) as f32, (1u64 << 60) as f32);

impl Lowerer<'_> {
    /// How many of the first ops are divisions that are better done together.
    pub(super) fn divisions_together(&mut self, ops: &[Op], lanes: &Lanes) -> Result<usize> {
        let mut results: Vec<Value> = Vec::new();
        let mut divisors: Vec<Val> = Vec::new();
        for &op in ops {
            let OpKind::Binary { out, op: BinaryOp::Div, x, y } = self.func.ops[op].kind else { break };
            let full = (results.len() + 1) * lanes.which.len() > MAX_GROUP;
            if self.func.ty(x) != DType::F32 || full || results.contains(&x) || results.contains(&y) {
                break;
            }
            for &lane in &lanes.which {
                let y = self.reg(op, y, Some(lane))?;
                if !divisors.contains(&y) {
                    divisors.push(y);
                }
            }
            results.push(out.0);
        }
        let divisions = results.len() * lanes.which.len();
        Ok(if divisions >= MIN_GROUP.max(2 * divisors.len()) { results.len() } else { 0 })
    }

    /// Lowers what [`divisions_together`](Self::divisions_together) found.
    pub(super) fn divide_together(&mut self, ops: &[Op], lanes: &Lanes) -> Result {
        let mut quotients = Vec::new();
        let mut extreme: Option<Val> = None;
        for &op in ops {
            let OpKind::Binary { out, x, y, .. } = self.func.ops[op].kind else { continue };
            self.b.at(&self.func.ops[op].span);
            for &lane in &lanes.which {
                let (x, y) = (self.reg(op, x, Some(lane))?, self.reg(op, y, Some(lane))?);
                let (safe_x, safe_y) = (self.is_moderate(x), self.is_moderate(y));
                // A dividend of +0 is safe: every product is a zero of the right sign.
                let (bits, zero) = (self.b.bits(Ty::B32, x), self.b.c32(0));
                let is_zero = self.b.setp(Cmp::Eq, Num::B32, bits, zero);
                let safe_x = self.b.bin(Bin::Or, Num::Pred, safe_x, is_zero);
                let safe = self.b.and(safe_x, safe_y);
                let mut unsafe_here = self.b.not(safe);
                // Nobody looks at the quotient of an iteration that does not exist.
                if let Some(active) = self.active(lanes, lane) {
                    unsafe_here = self.b.and(unsafe_here, active);
                }
                extreme = Some(match extreme {
                    Some(e) => self.b.bin(Bin::Or, Num::Pred, e, unsafe_here),
                    None => unsafe_here,
                });
                let var = self.b.new_var(Ty::F32);
                let q = self.short_division(x, y);
                self.b.set(var, q);
                quotients.push((out.0, lane, var, x, y));
            }
        }
        let Some(cond) = extreme else { return Ok(()) };
        let then_body = self.b.open(false);
        for &(_, _, var, x, y) in &quotients {
            let q = self.b.bin(Bin::Div, Num::F32, x, y);
            self.b.set(var, q);
        }
        self.b.close();
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond, uniform: false, then_body, else_body });
        for (out, lane, var, ..) in quotients {
            let q = self.b.get(var);
            self.set(out, Some(lane), Scalar::Reg(q));
        }
        Ok(())
    }

    fn is_moderate(&mut self, x: Val) -> Val {
        let b = &mut self.b;
        let (lo, hi) = (b.f32(RANGE.0), b.f32(RANGE.1));
        let size = b.un(Un::Abs, Num::F32, x);
        let (above, below) = (b.setp(Cmp::Ge, Num::F32, size, lo), b.setp(Cmp::Le, Num::F32, size, hi));
        b.and(above, below)
    }

    /// `x / y`, correctly rounded for operands in [`RANGE`].
    fn short_division(&mut self, x: Val, y: Val) -> Val {
        let b = &mut self.b;
        let one = b.f32(1.0);
        let minus_y = b.un(Un::Neg, Num::F32, y);
        let guess = b.un(Un::RcpApprox, Num::F32, y);
        let error = b.mad(Num::F32, minus_y, guess, one);
        let reciprocal = b.mad(Num::F32, guess, error, guess);
        let mut q = b.mul(Num::F32, x, reciprocal);
        for _ in 0..2 {
            let rest = b.mad(Num::F32, minus_y, q, x);
            q = b.mad(Num::F32, reciprocal, rest, q);
        }
        q
    }
}
