//! Divisions in f32 by few divisors, side by side.
//!
//! An IEEE division is a reciprocal and a few fused multiply-adds, unless an operand is extreme: zero, not finite, or so
//! large or small that a step would round where it must not. The hardware's own sequence branches on that for every
//! single division, which keeps divisions from overlapping, and finds the reciprocal anew. Here a group of independent
//! divisions takes one branch: all are computed by the short sequence (the hardware's: its results are correctly rounded for
//! operands in [`RANGE`]), and where an operand of any is extreme, or a divisor negative, all are divided again the long way.

use super::lanes::Lanes;
use super::{Lowerer, Result, value::Scalar};
use crate::ptx::simt::{Bin, Builder, Cmp, Num, SimtOp, Ty, Un, Val};
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
        let mut checks: Vec<Check> = Vec::new();
        for &op in ops {
            let OpKind::Binary { out, x, y, .. } = self.func.ops[op].kind else { continue };
            self.b.at(&self.func.ops[op].span);
            for &lane in &lanes.which {
                let (x, y) = (self.reg(op, x, Some(lane))?, self.reg(op, y, Some(lane))?);
                let active = self.active(lanes, lane);
                let var = self.b.new_var(Ty::F32);
                let q = self.short_division(x, y);
                self.b.set(var, q);
                let known = checks.iter().position(|c| c.active == active);
                let check = known.unwrap_or_else(|| {
                    checks.push(Check { active, sizes: Vec::new(), small: Vec::new(), divisors: Vec::new() });
                    checks.len() - 1
                });
                checks[check].add(&mut self.b, x, y);
                quotients.push((out.0, lane, var, x, y));
            }
        }
        let mut extreme: Option<Val> = None;
        for check in checks {
            let here = check.finish(&mut self.b);
            extreme = Some(match extreme {
                Some(e) => self.b.bin(Bin::Or, Num::Pred, e, here),
                None => here,
            });
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

    /// `x / y`, correctly rounded and of the right sign for operands in [`RANGE`]: remainders are those of `-x`, so that
    /// what is added to a quotient of zero last is -0, which leaves it its sign.
    fn short_division(&mut self, x: Val, y: Val) -> Val {
        let b = &mut self.b;
        let one = b.f32(1.0);
        let minus_y = b.un(Un::Neg, Num::F32, y);
        let guess = b.un(Un::RcpApprox, Num::F32, y);
        let error = b.mad(Num::F32, minus_y, guess, one);
        let reciprocal = b.mad(Num::F32, guess, error, guess);
        let minus_reciprocal = b.un(Un::Neg, Num::F32, reciprocal);
        let minus_x = b.un(Un::Neg, Num::F32, x);
        let mut q = b.mul(Num::F32, x, reciprocal);
        for _ in 0..2 {
            let excess = b.mad(Num::F32, y, q, minus_x);
            q = b.mad(Num::F32, minus_reciprocal, excess, q);
        }
        q
    }
}

/// What is gathered over divisions to find an extreme operand among all of them with few instructions for each, and without
/// waiting for a quotient.
struct Check {
    /// Whose divisions count: nobody looks at the quotient of an iteration that does not exist.
    active: Option<Val>,
    /// Magnitudes of dividends.
    sizes: Vec<Val>,
    /// The same as twice their bits less one: zeros, which are safe, come last.
    small: Vec<Val>,
    divisors: Vec<Val>,
}

impl Check {
    fn add(&mut self, b: &mut Builder, x: Val, y: Val) {
        let (bits, one) = (b.bits(Ty::B32, x), b.c32(1));
        let twice = b.bin(Bin::Shl, Num::B32, bits, one);
        self.small.push(b.sub(Num::S32, twice, one));
        self.sizes.push(b.un(Un::Abs, Num::F32, x));
        if !self.divisors.contains(&y) {
            self.divisors.push(y);
        }
    }

    /// True if an operand was extreme. One that is no number is not: its quotient is none by either way.
    fn finish(self, b: &mut Builder) -> Val {
        let (lo, hi) = (b.f32(RANGE.0), b.f32(RANGE.1));
        let smallest = b.c32(i64::from(2 * RANGE.0.to_bits() - 1));
        let mut safe = b.pred(true);
        for (of, extremum, num, cmp, limit) in [
            (&self.small, Bin::Min, Num::U32, Cmp::Ge, smallest),
            (&self.sizes, Bin::Max, Num::F32, Cmp::Le, hi),
            (&self.divisors, Bin::Min, Num::F32, Cmp::Ge, lo),
            (&self.divisors, Bin::Max, Num::F32, Cmp::Le, hi),
        ] {
            let last = extreme(b, extremum, num, of);
            let inside = b.setp(cmp, num, last, limit);
            safe = b.and(safe, inside);
        }
        let extreme = b.not(safe);
        match self.active {
            Some(active) => b.and(extreme, active),
            None => extreme,
        }
    }
}

/// The least or greatest of some values, pair by pair, so that the chain of instructions is short.
fn extreme(b: &mut Builder, op: Bin, num: Num, of: &[Val]) -> Val {
    match of {
        [one] => *one,
        _ => {
            let (left, right) = of.split_at(of.len() / 2);
            let (left, right) = (extreme(b, op, num, left), extreme(b, op, num, right));
            b.bin(op, num, left, right)
        }
    }
}
