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
/// Between these no step of the short sequence overflows or loses bits below the smallest normal number: divisors lie here,
/// dividends are zero or of at least the smaller magnitude, so that the last remainder, a multiple of 2^-46 times the
/// dividend's scale, is above 2^-107. A dividend above is fine if its quotient is finite.
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
                    checks.push(Check::new(&mut self.b, active));
                    checks.len() - 1
                });
                checks[check].add(&mut self.b, x, y, q);
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

/// What is gathered over divisions to find an extreme operand among all of them with few instructions for each.
struct Check {
    /// Whose divisions count: nobody looks at the quotient of an iteration that does not exist.
    active: Option<Val>,
    /// Smallest magnitude of a dividend as twice its bits less one: zeros, which are safe, come last.
    dividends: Val,
    divisors: Vec<Val>,
    /// Zeros, unless a quotient is not finite: its dividend was not or was too large, or an operand is no number. Several,
    /// so that no long chain of instructions comes of it.
    quotients: [Val; 4],
    /// Divisions so far.
    count: usize,
}

impl Check {
    fn new(b: &mut Builder, active: Option<Val>) -> Check {
        Check { active, dividends: b.c32(-1), divisors: Vec::new(), quotients: [b.f32(0.0); 4], count: 0 }
    }

    fn add(&mut self, b: &mut Builder, x: Val, y: Val, q: Val) {
        let (bits, one, zero) = (b.bits(Ty::B32, x), b.c32(1), b.f32(0.0));
        let twice = b.bin(Bin::Shl, Num::B32, bits, one);
        let size = b.sub(Num::S32, twice, one);
        self.dividends = b.bin(Bin::Min, Num::U32, self.dividends, size);
        if !self.divisors.contains(&y) {
            self.divisors.push(y);
        }
        let sum = &mut self.quotients[self.count % 4];
        *sum = b.mad(Num::F32, q, zero, *sum);
        self.count += 1;
    }

    /// True if an operand was extreme.
    fn finish(self, b: &mut Builder) -> Val {
        let (lo, hi, zero) = (b.f32(RANGE.0), b.f32(RANGE.1), b.f32(0.0));
        let smallest = b.c32(i64::from(2 * RANGE.0.to_bits() - 1));
        let mut safe = b.setp(Cmp::Ge, Num::U32, self.dividends, smallest);
        let quotients = self.quotients.into_iter().reduce(|x, y| b.add(Num::F32, x, y)).unwrap_or(zero);
        let finite = b.setp(Cmp::Eq, Num::F32, quotients, zero);
        safe = b.and(safe, finite);
        for (extremum, cmp, limit) in [(Bin::Min, Cmp::Ge, lo), (Bin::Max, Cmp::Le, hi)] {
            let last = self.divisors.iter().copied().reduce(|x, y| b.bin(extremum, Num::F32, x, y));
            if let Some(y) = last {
                let inside = b.setp(cmp, Num::F32, y, limit);
                safe = b.and(safe, inside);
            }
        }
        let extreme = b.not(safe);
        match self.active {
            Some(active) => b.and(extreme, active),
            None => extreme,
        }
    }
}
