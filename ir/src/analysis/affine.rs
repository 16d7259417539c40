//! Affine forms: `c0 + c1 * t1 + c2 * t2 + ..`, the normal form of index arithmetic.
//!
//! A term is a value that is not looked into (a dim, a loop index, a load) or the floor division of a form by a
//! positive constant. A remainder is written with the division, `x % c = x - c * (x / c)`, so that
//! `x / c * c + x % c` is `x`. Equal forms mean equal values.
//!
//! All operations return `None` when a coefficient would overflow.

use crate::func::Value;
use std::fmt;

/// What a coefficient multiplies.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Term {
    Value(Value),
    /// The form divided by a constant greater than one, rounded towards minus infinity.
    Div(Box<Affine>, i64),
}

/// A sum of terms with coefficients, and a constant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Affine {
    /// In ascending order of the terms, each once, no coefficient zero.
    terms: Vec<(Term, i64)>,
    pub constant: i64,
}

impl Affine {
    pub fn constant(c: i64) -> Affine {
        Affine { terms: Vec::new(), constant: c }
    }

    pub fn value(v: Value) -> Affine {
        Affine::term(Term::Value(v))
    }

    pub fn term(t: Term) -> Affine {
        Affine { terms: vec![(t, 1)], constant: 0 }
    }

    pub fn terms(&self) -> &[(Term, i64)] {
        &self.terms
    }

    /// The constant, if there are no terms.
    pub fn as_constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The value, if the form is just that.
    pub fn as_value(&self) -> Option<Value> {
        match (&self.terms[..], self.constant) {
            ([(Term::Value(v), 1)], 0) => Some(*v),
            _ => None,
        }
    }

    /// The coefficient of a term, 0 if it is absent.
    pub fn coefficient(&self, term: &Term) -> i64 {
        self.terms.binary_search_by(|(t, _)| t.cmp(term)).map_or(0, |i| self.terms[i].1)
    }

    /// `self * a + other * b`.
    fn combine(&self, a: i64, other: &Affine, b: i64) -> Option<Affine> {
        let mut terms = Vec::with_capacity(self.terms.len() + other.terms.len());
        let (mut xs, mut ys) = (self.terms.iter().peekable(), other.terms.iter().peekable());
        loop {
            let (term, x, y) = match (xs.peek(), ys.peek()) {
                (None, None) => break,
                (Some((s, x)), Some((t, y))) if s == t => (s, *x, *y),
                (Some((s, x)), Some((t, _))) if s < t => (s, *x, 0),
                (Some((s, x)), None) => (s, *x, 0),
                (_, Some((t, y))) => (t, 0, *y),
            };
            let c = x.checked_mul(a)?.checked_add(y.checked_mul(b)?)?;
            if c != 0 {
                terms.push((term.clone(), c));
            }
            xs.next_if(|(s, _)| s == term);
            ys.next_if(|(t, _)| t == term);
        }
        let constant = self.constant.checked_mul(a)?.checked_add(other.constant.checked_mul(b)?)?;
        Some(Affine { terms, constant })
    }

    pub fn add(&self, other: &Affine) -> Option<Affine> {
        self.combine(1, other, 1)
    }

    pub fn sub(&self, other: &Affine) -> Option<Affine> {
        self.combine(1, other, -1)
    }

    /// `self - other * c`.
    pub fn sub_scaled(&self, other: &Affine, c: i64) -> Option<Affine> {
        self.combine(1, other, c.checked_neg()?)
    }

    pub fn scale(&self, c: i64) -> Option<Affine> {
        self.combine(c, &Affine::default(), 0)
    }

    pub fn offset(&self, c: i64) -> Option<Affine> {
        Some(Affine { terms: self.terms.clone(), constant: self.constant.checked_add(c)? })
    }

    /// The form divided by `c > 0`, rounded down, for a form of which nothing else is known.
    ///
    /// With `self = c * q + r`, where `q` takes all terms whose coefficients `c` divides, that is `q + r / c`. Common
    /// factors of `r` and `c` cancel, and `x / a / b` is `x / (a * b)`.
    pub fn floor_div(&self, c: i64) -> Option<Affine> {
        debug_assert!(c > 0);
        let (mut q, mut r) = (Affine::default(), Affine::default());
        for (t, k) in &self.terms {
            let (part, k) = if k % c == 0 { (&mut q, k / c) } else { (&mut r, *k) };
            part.terms.push((t.clone(), k));
        }
        q.constant = self.constant.div_euclid(c);
        r.constant = self.constant.rem_euclid(c);
        if r.terms.is_empty() {
            return Some(q);
        }
        let g = r.terms.iter().fold(c, |g, (_, k)| gcd(g, *k));
        for (_, k) in &mut r.terms {
            *k /= g;
        }
        r.constant = r.constant.div_euclid(g);
        let c = c / g;
        let quotient = match &r.terms[..] {
            _ if c == 1 => r,
            [(Term::Div(inner, d), 1)] => inner.offset(r.constant.checked_mul(*d)?)?.floor_div(c.checked_mul(*d)?)?,
            _ => Affine::term(Term::Div(Box::new(r), c)),
        };
        q.add(&quotient)
    }

    /// `self - c * (self / c)`.
    pub fn rem(&self, c: i64) -> Option<Affine> {
        self.sub_scaled(&self.floor_div(c)?, c)
    }

    /// The same form with each division term that `f` knows a form for replaced by it.
    pub fn map_divisions(&self, f: &mut dyn FnMut(&Affine, i64) -> Option<Affine>) -> Option<Affine> {
        let mut out = Affine::constant(self.constant);
        for (t, k) in &self.terms {
            let replacement = match t {
                Term::Value(_) => None,
                Term::Div(r, c) => f(r, *c),
            };
            out = out.combine(1, &replacement.unwrap_or_else(|| Affine::term(t.clone())), *k)?;
        }
        Some(out)
    }

    /// True if the form mentions the value, possibly inside a division.
    pub fn mentions(&self, v: Value) -> bool {
        self.terms.iter().any(|(t, _)| match t {
            Term::Value(u) => *u == v,
            Term::Div(r, _) => r.mentions(v),
        })
    }
}

/// The greatest common divisor of the magnitudes; 0 if both are 0.
pub fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    // Only gcd(MIN, MIN or 0) does not fit; one is always a divisor.
    i64::try_from(a).unwrap_or(1)
}

impl fmt::Display for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (t, c)) in self.terms.iter().enumerate() {
            if i > 0 {
                f.write_str(" + ")?;
            }
            if *c != 1 {
                write!(f, "{c}*")?;
            }
            match t {
                Term::Value(v) => write!(f, "{v}")?,
                Term::Div(r, d) => write!(f, "(({r}) / {d})")?,
            }
        }
        match (self.terms.is_empty(), self.constant) {
            (true, c) => write!(f, "{c}"),
            (false, 0) => Ok(()),
            (false, c) => write!(f, " + {c}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::EntityId;
    use proptest::prelude::*;

    fn v(i: usize) -> Affine {
        Affine::value(Value::from_index(i))
    }

    #[test]
    fn quotient_and_remainder_cancel() {
        let x = v(0).add(&v(1).scale(3).unwrap()).unwrap();
        let q = x.floor_div(8).unwrap();
        let r = x.rem(8).unwrap();
        assert_eq!(q.scale(8).unwrap().add(&r), Some(x));
    }

    #[test]
    fn divisions_merge() {
        let x = v(0).offset(5).unwrap();
        assert_eq!(x.floor_div(4).unwrap().floor_div(6), x.floor_div(24));
        assert_eq!(v(0).scale(12).unwrap().floor_div(8), v(0).scale(3).unwrap().floor_div(2));
        assert_eq!(v(0).scale(16).unwrap().offset(9).unwrap().floor_div(8), v(0).scale(2).unwrap().offset(1));
    }

    fn eval(a: &Affine, x: &[i64]) -> i64 {
        let term = |t: &Term| match t {
            Term::Value(v) => x[v.index()],
            Term::Div(r, c) => eval(r, x).div_euclid(*c),
        };
        a.constant + a.terms.iter().map(|(t, c)| c * term(t)).sum::<i64>()
    }

    /// A random form over three values together with a function that computes the same.
    fn forms() -> impl Strategy<Value = Vec<(u8, i64)>> {
        prop::collection::vec((0u8..6, -40i64..40), 1..12)
    }

    proptest! {
        #[test]
        fn normal_forms_keep_the_value(steps in forms(), x in prop::array::uniform3(-1000i64..1000)) {
            let (mut form, mut value) = (v(0), x[0]);
            for (kind, k) in steps {
                let c = k.abs() + 1;
                (form, value) = match kind {
                    0 => (form.add(&v(1).scale(k).unwrap()).unwrap(), value + k * x[1]),
                    1 => (form.sub(&v(2)).unwrap(), value - x[2]),
                    2 => (form.offset(k).unwrap(), value + k),
                    3 => (form.floor_div(c).unwrap(), value.div_euclid(c)),
                    4 => (form.rem(c).unwrap(), value.rem_euclid(c)),
                    _ => (form.scale(k % 5).unwrap(), value * (k % 5)),
                };
                prop_assert_eq!(eval(&form, &x), value, "{}", form);
            }
        }
    }
}
