//! Closed intervals of integers.

use std::fmt;

/// The integers from `lo` to `hi`, both included; the ends of `i64` mean "not bounded".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Interval {
    pub lo: i64,
    pub hi: i64,
}

impl Interval {
    /// All values.
    pub const FULL: Interval = Interval { lo: i64::MIN, hi: i64::MAX };

    /// `lo..=hi`. An empty one describes a value that is never computed, and becomes `lo..=lo`.
    pub const fn new(lo: i64, hi: i64) -> Interval {
        Interval { lo, hi: if hi < lo { lo } else { hi } }
    }

    pub const fn point(v: i64) -> Interval {
        Interval { lo: v, hi: v }
    }

    /// `lo..`.
    pub const fn at_least(lo: i64) -> Interval {
        Interval { lo, hi: i64::MAX }
    }

    /// The only value, if there is one.
    pub fn as_point(self) -> Option<i64> {
        (self.lo == self.hi).then_some(self.lo)
    }

    pub fn contains(self, v: i64) -> bool {
        self.lo <= v && v <= self.hi
    }

    /// True if every value of `self` is one of `other`.
    pub fn is_within(self, other: Interval) -> bool {
        other.lo <= self.lo && self.hi <= other.hi
    }

    /// The smallest interval with the values of both.
    pub fn union(self, other: Interval) -> Interval {
        Interval { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }

    /// The values in both.
    pub fn intersect(self, other: Interval) -> Interval {
        Interval::new(self.lo.max(other.lo), self.hi.min(other.hi))
    }

    /// From exact bounds, clamped to what a value can hold.
    pub fn clamped(lo: i128, hi: i128) -> Interval {
        let clamp = |v: i128| v.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        Interval::new(clamp(lo), clamp(hi))
    }

    /// The smallest interval around `f(x, y)` for corner values; right for an `f` that is monotonic in each operand.
    pub fn corners(self, other: Interval, f: impl Fn(i128, i128) -> i128) -> Interval {
        let (x, y) = ([self.lo, self.hi], [other.lo, other.hi]);
        let all = x.into_iter().flat_map(|x| y.into_iter().map(move |y| (i128::from(x), i128::from(y))));
        let (mut lo, mut hi) = (i128::MAX, i128::MIN);
        for (x, y) in all {
            let v = f(x, y);
            (lo, hi) = (lo.min(v), hi.max(v));
        }
        Interval::clamped(lo, hi)
    }
}

impl std::ops::Add for Interval {
    type Output = Interval;
    fn add(self, other: Interval) -> Interval {
        self.corners(other, |x, y| x + y)
    }
}

impl std::ops::Sub for Interval {
    type Output = Interval;
    fn sub(self, other: Interval) -> Interval {
        self.corners(other, |x, y| x - y)
    }
}

impl std::ops::Mul for Interval {
    type Output = Interval;
    fn mul(self, other: Interval) -> Interval {
        self.corners(other, |x, y| x * y)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.lo, self.hi) {
            (i64::MIN, i64::MAX) => f.write_str("any"),
            (i64::MIN, hi) => write!(f, "..={hi}"),
            (lo, i64::MAX) => write!(f, "{lo}.."),
            (lo, hi) => write!(f, "{lo}..={hi}"),
        }
    }
}
