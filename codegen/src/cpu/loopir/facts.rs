//! What is known at compile time about an i64 value: a range and a power-of-two divisor.
//!
//! Cheap facts computed as nodes are built; they decide whether a guard is needed and whether four
//! neighbouring indices share a quotient.

use super::node::BinOp;

/// Inclusive range and a known divisor (a power of two, at least 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    pub lo: i64,
    pub hi: i64,
    pub align: u64,
}

/// Divisor of zero: everything.
const MAX_ALIGN: u64 = 1 << 32;

impl Facts {
    pub const UNKNOWN: Facts = Facts { lo: i64::MIN, hi: i64::MAX, align: 1 };

    pub fn constant(c: i64) -> Facts {
        let align = if c == 0 { MAX_ALIGN } else { 1 << c.trailing_zeros().min(32) };
        Facts { lo: c, hi: c, align }
    }

    pub fn range(lo: i64, hi: i64) -> Facts {
        Facts { lo, hi, align: 1 }
    }

    /// A loop index that starts at `lo` and goes up by `step` while below `hi`.
    pub fn induction(lo: Facts, hi: Facts, step: i64) -> Facts {
        Facts { lo: lo.lo, hi: hi.hi.saturating_sub(1).max(lo.lo), align: lo.align.min(Facts::constant(step).align) }
    }

    fn from_wide(lo: i128, hi: i128, align: u64) -> Facts {
        match (i64::try_from(lo), i64::try_from(hi)) {
            (Ok(lo), Ok(hi)) => Facts { lo, hi, align },
            // The sum may wrap, which keeps divisibility by a power of two and loses the range.
            _ => Facts { align, ..Facts::UNKNOWN },
        }
    }

    fn is_bounded(self) -> bool {
        self.lo != i64::MIN && self.hi != i64::MAX
    }

    /// The facts of `x op y`.
    pub fn binary(op: BinOp, x: Facts, y: Facts) -> Facts {
        let (xl, xh, yl, yh) = (x.lo as i128, x.hi as i128, y.lo as i128, y.hi as i128);
        match op {
            BinOp::Add => Facts::from_wide(xl + yl, xh + yh, x.align.min(y.align)),
            BinOp::Sub => Facts::from_wide(xl - yh, xh - yl, x.align.min(y.align)),
            BinOp::Mul => {
                let align = x.align.saturating_mul(y.align).min(MAX_ALIGN);
                let c = [xl * yl, xl * yh, xh * yl, xh * yh];
                Facts::from_wide(*c.iter().min().expect("four"), *c.iter().max().expect("four"), align)
            }
            BinOp::Shl if y.lo == y.hi && (0..32).contains(&y.lo) => {
                Facts::binary(BinOp::Mul, x, Facts::constant(1 << y.lo))
            }
            BinOp::SShr if y.lo == y.hi && (0..63).contains(&y.lo) => {
                Facts { lo: x.lo >> y.lo, hi: x.hi >> y.lo, align: (x.align >> y.lo).max(1) }
            }
            BinOp::And if y.lo == y.hi && y.lo >= 0 => Facts { lo: 0, hi: y.lo, align: x.align.max(y.align) },
            BinOp::Or if x.lo >= 0 && y.lo >= 0 => {
                let top = x.hi.max(y.hi);
                let hi = if top == 0 { 0 } else { i64::MAX >> (top.leading_zeros() - 1) };
                Facts { lo: x.lo.max(y.lo), hi, align: x.align.min(y.align) }
            }
            BinOp::Or => Facts { align: x.align.min(y.align), ..Facts::UNKNOWN },
            BinOp::SMin => Facts { lo: x.lo.min(y.lo), hi: x.hi.min(y.hi), align: x.align.min(y.align) },
            BinOp::SMax => Facts { lo: x.lo.max(y.lo), hi: x.hi.max(y.hi), align: x.align.min(y.align) },
            BinOp::SDiv if y.lo > 0 && x.is_bounded() => {
                let c = [x.lo / y.lo, x.lo / y.hi, x.hi / y.lo, x.hi / y.hi];
                Facts::range(*c.iter().min().expect("four"), *c.iter().max().expect("four"))
            }
            BinOp::SRem if y.lo > 0 && y.hi < i64::MAX => {
                Facts::range(if x.lo >= 0 { 0 } else { 1 - y.hi }, if x.hi <= 0 { 0 } else { y.hi - 1 })
            }
            BinOp::Shl
            | BinOp::SShr
            | BinOp::And
            | BinOp::SDiv
            | BinOp::SRem
            | BinOp::UMulHi
            | BinOp::UDiv
            | BinOp::URem
            | BinOp::Xor
            | BinOp::UShr
            | BinOp::UMin
            | BinOp::UMax
            | BinOp::FAdd
            | BinOp::FSub
            | BinOp::FMul
            | BinOp::FDiv
            | BinOp::SNarrow
            | BinOp::UNarrow => Facts::UNKNOWN,
        }
    }

    /// What holds whichever of two values it is.
    pub fn union(self, other: Facts) -> Facts {
        Facts { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi), align: self.align.min(other.align) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_facts_contain_every_result() {
        let xs = [-9i64, -4, 0, 3, 8, 12];
        for &a in &xs {
            for &b in xs.iter().filter(|b| **b >= a) {
                for &c in &xs {
                    for &d in xs.iter().filter(|d| **d >= c) {
                        let (x, y) = (Facts::range(a, b), Facts::range(c, d));
                        for p in a..=b {
                            for q in c..=d {
                                let check = |op, r: i64| {
                                    let f = Facts::binary(op, x, y);
                                    assert!(f.lo <= r && r <= f.hi, "{op:?} {x:?} {y:?} {r}");
                                };
                                check(BinOp::Add, p + q);
                                check(BinOp::Sub, p - q);
                                check(BinOp::Mul, p * q);
                                check(BinOp::SMin, p.min(q));
                                check(BinOp::SMax, p.max(q));
                                check(BinOp::Or, p | q);
                                if q != 0 {
                                    check(BinOp::SDiv, p / q);
                                    check(BinOp::SRem, p % q);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn alignment_of_an_induction_variable_survives_scaling() {
        let iv = Facts::induction(Facts::constant(0), Facts::constant(64), 16);
        assert_eq!(iv, Facts { lo: 0, hi: 63, align: 16 });
        let f = Facts::binary(BinOp::Shl, iv, Facts::constant(2));
        assert_eq!(f.align, 64);
        assert_eq!(Facts::binary(BinOp::Add, f, Facts::constant(8)).align, 8);
    }
}
