//! Intervals, divisors and affine forms of the integer values of a function.
//!
//! One pass in program order. Loop indices get their ranges from the extents, block ids from the grid, dims are
//! not negative; assumptions at the top level of the prelude or the body narrow dims and parameters. Fixed-width integers take part as long as their arithmetic provably does not wrap; `u64` does not.

use super::affine::{Affine, Term, gcd};
use super::interval::Interval;
use crate::DType;
use crate::entity::EntityId;
use crate::func::{Func, Region, Value, ValueDef};
use crate::op::{BinaryOp, CmpOp, OpKind, UnaryOp, Visit};

/// No tensor axis is longer: 2^40 elements are half a terabyte at least.
pub const MAX_EXTENT: i64 = 1 << 40;

/// What is known about a value.
#[derive(Clone, PartialEq, Debug)]
struct Info {
    range: Interval,
    /// Divides the value; 0 only for the value 0.
    multiple: i64,
    form: Affine,
}

/// Facts about every integer value of one version of a function.
///
/// Values that were added to the function later are answered with what their type says.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// `None` for values of which their type says everything there is to know, as most of a kernel are.
    info: Vec<Option<Info>>,
}

/// The values of a type, as far as they are tracked.
pub fn type_range(ty: DType) -> Interval {
    match ty {
        DType::Bool => Interval::new(0, 1),
        DType::I8 => Interval::new(i8::MIN.into(), i8::MAX.into()),
        DType::I16 => Interval::new(i16::MIN.into(), i16::MAX.into()),
        DType::I32 => Interval::new(i32::MIN.into(), i32::MAX.into()),
        DType::U8 => Interval::new(0, u8::MAX.into()),
        DType::U16 => Interval::new(0, u16::MAX.into()),
        DType::U32 => Interval::new(0, u32::MAX.into()),
        DType::I64
        | DType::Index
        | DType::U64
        | DType::F16
        | DType::BF16
        | DType::F32
        | DType::F64
        | DType::F8E4M3
        | DType::F8E5M2
        | DType::F4E2M1
        | DType::E8M0 => Interval::FULL,
    }
}

/// True for integer types whose values the analysis follows.
pub fn is_tracked(ty: DType) -> bool {
    ty.is_int() && ty != DType::U64
}

/// Conditions that are assumed at the top level of the prelude or the body.
///
/// Ranges take them for granted everywhere, so a pass that wants to keep a promise must not simplify its condition.
pub fn promises(func: &Func) -> impl Iterator<Item = Value> {
    let ops = [func.prelude, func.body].into_iter().flat_map(|r| &func.regions[r].ops);
    ops.filter_map(|&op| match func.ops[op].kind {
        OpKind::Assume { cond } => Some(cond),
        _ => None,
    })
}

impl Ranges {
    pub fn new(func: &Func) -> Ranges {
        let mut ranges = Ranges { info: Vec::with_capacity(func.values.len()) };
        for (v, data) in func.values.iter() {
            if !is_tracked(data.ty) && data.ty != DType::Bool {
                ranges.info.push(None);
                continue;
            }
            let mut info = Info { range: type_range(data.ty), multiple: 1, form: Affine::value(v) };
            match data.def {
                ValueDef::Const(c) => info = Info::constant(c.as_i64()),
                ValueDef::Dim(_) => info.range = Interval::new(0, MAX_EXTENT),
                ValueDef::Param(_) | ValueDef::BlockId(_) | ValueDef::Op(_) | ValueDef::Pending => {}
            }
            ranges.info.push(Some(info));
        }
        for cond in promises(func) {
            ranges.narrow(func, cond);
        }
        ranges.region(func, func.prelude);
        for (&id, &extent) in func.block_ids.iter().zip(&func.grid) {
            let range = Interval::new(0, ranges.range(extent).hi.saturating_sub(1));
            if let Some(info) = &mut ranges.info[id.index()] {
                info.range = range;
            }
        }
        ranges.region(func, func.body);
        ranges
    }

    fn get(&self, v: Value) -> Option<&Info> {
        self.info.get(v.index())?.as_ref()
    }

    /// Contains the value whenever it is computed.
    pub fn range(&self, v: Value) -> Interval {
        self.get(v).map_or(Interval::FULL, |i| i.range)
    }

    /// A number that divides the value whenever it is computed: at least 1, or 0 for a value that is always 0.
    pub fn multiple_of(&self, v: Value) -> i64 {
        self.get(v).map_or(1, |i| i.multiple)
    }

    /// The value's normal form.
    pub fn form(&self, v: Value) -> Affine {
        self.get(v).map_or_else(|| Affine::value(v), |i| i.form.clone())
    }

    /// Contains the form's value.
    pub fn range_of(&self, form: &Affine) -> Interval {
        let start = i128::from(form.constant);
        let mut range = form.terms().iter().fold((start, start), |acc, (t, k)| {
            let (t, k) = (self.term_range(t), i128::from(*k));
            let (x, y) = (k * i128::from(t.lo), k * i128::from(t.hi));
            // An open end stays open, whatever it is multiplied with.
            let open = |end: i64, v: i128| if end == i64::MIN || end == i64::MAX { v.signum() << 100 } else { v };
            let (x, y) = (open(t.lo, x), open(t.hi, y));
            (acc.0 + x.min(y), acc.1 + x.max(y))
        });
        // A division and what it divides vary together: r - c * (r / c) lies in 0..c.
        for (t, k) in form.terms() {
            let Term::Div(r, c) = t else { continue };
            let lead = r.terms().first().map_or(0, |(u, j)| form.coefficient(u) / j);
            for share in [lead, -(k / c)] {
                if share == 0 {
                    continue;
                }
                let rem = Affine::term(t.clone()).scale(*c).and_then(|q| r.sub(&q));
                let Some(rest) = rem.and_then(|rem| form.sub_scaled(&rem, share)) else { continue };
                if rest.terms().len() >= form.terms().len() {
                    continue;
                }
                let part = self.range_of(&rest) + Interval::new(0, c - 1) * Interval::point(share);
                range = (range.0.max(part.lo.into()), range.1.min(part.hi.into()));
            }
        }
        Interval::clamped(range.0, range.1)
    }

    fn term_range(&self, term: &Term) -> Interval {
        match term {
            Term::Value(v) => self.range(*v),
            Term::Div(r, c) => floor_div_range(self.range_of(r), *c),
        }
    }

    /// Divides the form's value, as [`multiple_of`](Self::multiple_of) does.
    pub fn multiple_of_form(&self, form: &Affine) -> i64 {
        form.terms().iter().fold(form.constant, |g, (t, k)| {
            let m = match t {
                Term::Value(v) => self.multiple_of(*v),
                Term::Div(..) => 1,
            };
            // An overflowing product is a multiple of the coefficient at least.
            gcd(g, k.checked_mul(m).unwrap_or(*k))
        })
    }

    /// The form divided by `c > 0`, rounded down, using ranges and divisors to simplify.
    pub fn floor_div(&self, form: &Affine, c: i64) -> Option<Affine> {
        form.floor_div(c)?.map_divisions(&mut |r, c| self.reduce_division(r, c))
    }

    /// `r / c` in a simpler form.
    fn reduce_division(&self, r: &Affine, c: i64) -> Option<Affine> {
        if let Some(q) = floor_div_range(self.range_of(r), c).as_point() {
            return Some(Affine::constant(q));
        }
        // The constant counts only in steps of what divides everything else.
        let varying = r.offset(r.constant.checked_neg()?)?;
        let step = gcd(self.multiple_of_form(&varying), c);
        if step > 1 && r.constant % step != 0 {
            let r = varying.offset(r.constant.div_euclid(step) * step)?;
            return r.floor_div(c);
        }
        // r = g * q + s with s in 0..g and g a divisor of c: s does not matter.
        for (_, k) in r.terms() {
            let g = gcd(*k, c);
            if g <= 1 {
                continue;
            }
            let mut low = Affine::constant(r.constant.rem_euclid(g));
            for (t, k) in r.terms().iter().filter(|(_, k)| k % g != 0) {
                low = low.add(&Affine::term(t.clone()).scale(*k)?)?;
            }
            if low.as_constant().is_none() && self.range_of(&low).is_within(Interval::new(0, g - 1)) {
                let high = r.sub(&low)?;
                return self.floor_div(&high, c);
            }
        }
        None
    }

    fn rem(&self, form: &Affine, c: i64) -> Option<Affine> {
        if self.multiple_of_form(form) % c == 0 {
            return Some(Affine::constant(0));
        }
        form.sub_scaled(&self.floor_div(form, c)?, c)
    }

    // Assumptions about dims and parameters.

    fn narrow(&mut self, func: &Func, cond: Value) {
        let ValueDef::Op(op) = func.values[cond].def else { return };
        match &func.ops[op].kind {
            OpKind::Binary { op: BinaryOp::And, x, y, .. } => {
                self.narrow(func, *x);
                self.narrow(func, *y);
            }
            OpKind::Cmp { op, x, y, .. } => {
                if let (Some(c), true) = (func.as_const(*y), is_tracked(func.ty(*x))) {
                    self.narrow_value(func, *x, *op, c.as_i64());
                } else if let (Some(c), true) = (func.as_const(*x), is_tracked(func.ty(*x))) {
                    let flipped = match op {
                        CmpOp::Eq | CmpOp::Ne => *op,
                        CmpOp::Lt => CmpOp::Gt,
                        CmpOp::Le => CmpOp::Ge,
                        CmpOp::Gt => CmpOp::Lt,
                        CmpOp::Ge => CmpOp::Le,
                    };
                    self.narrow_value(func, *y, flipped, c.as_i64());
                }
            }
            _ => {}
        }
    }

    /// Notes `x op c`.
    fn narrow_value(&mut self, func: &Func, x: Value, op: CmpOp, c: i64) {
        match func.values[x].def {
            ValueDef::Dim(_) | ValueDef::Param(_) => {
                let range = match op {
                    CmpOp::Eq => Interval::point(c),
                    CmpOp::Ne => return,
                    CmpOp::Lt => Interval::new(i64::MIN, c.saturating_sub(1)),
                    CmpOp::Le => Interval::new(i64::MIN, c),
                    CmpOp::Gt => Interval::at_least(c.saturating_add(1)),
                    CmpOp::Ge => Interval::at_least(c),
                };
                let Some(info) = &mut self.info[x.index()] else { return };
                info.range = info.range.intersect(range);
                if let Some(p) = info.range.as_point() {
                    *info = Info::constant(p);
                }
            }
            // x % n == 0.
            ValueDef::Op(def) if op == CmpOp::Eq && c == 0 => {
                if let OpKind::Binary { op: BinaryOp::Rem, x, y, .. } = func.ops[def].kind
                    && let ValueDef::Dim(_) | ValueDef::Param(_) = func.values[x].def
                    && let Some(n) = func.as_const(y).map(|n| n.as_i64()).filter(|n| *n > 0)
                {
                    let Some(info) = &mut self.info[x.index()] else { return };
                    // The least common multiple; the old divisor if it does not fit.
                    info.multiple = (info.multiple / gcd(info.multiple, n)).checked_mul(n).unwrap_or(info.multiple);
                }
            }
            ValueDef::Const(_) | ValueDef::BlockId(_) | ValueDef::Op(_) | ValueDef::Pending => {}
        }
    }

    // The pass over the function.

    fn region(&mut self, func: &Func, region: Region) {
        for &op in &func.regions[region].ops {
            let kind = &func.ops[op].kind;
            self.op(func, kind);
            kind.for_each_region(&mut |r| self.region(func, r));
        }
    }

    fn op(&mut self, func: &Func, kind: &OpKind) {
        let (out, info) = match kind {
            OpKind::Unary { out, op, x } => (out.0, self.unary(func, *op, *x)),
            OpKind::Binary { out, op, x, y } => (out.0, self.binary(func, out.0, *op, *x, *y)),
            OpKind::Select { out, x, y, .. } => (out.0, self.either(out.0, *x, *y)),
            OpKind::Cast { out, x } => {
                let (from, to) = (func.ty(*x), func.ty(out.0));
                let same = is_tracked(from) && is_tracked(to) && self.range(*x).is_within(type_range(to));
                (out.0, if same { self.get(*x).cloned() } else { None })
            }
            OpKind::For { indices, extents, .. } => {
                for (d, &extent) in indices.iter().zip(extents) {
                    let range = Interval::new(0, self.range(extent).hi.saturating_sub(1));
                    self.set(func, d.0, Info { range, multiple: 1, form: Affine::value(d.0) });
                }
                return;
            }
            OpKind::Fma { .. }
            | OpKind::Cmp { .. }
            | OpKind::Bitcast { .. }
            | OpKind::Load { .. }
            | OpKind::Store { .. }
            | OpKind::Atomic { .. }
            | OpKind::Alloc { .. }
            | OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. }
            | OpKind::If { .. }
            | OpKind::While { .. }
            | OpKind::Role { .. }
            | OpKind::Print { .. }
            | OpKind::Assert { .. }
            | OpKind::Assume { .. }
            | OpKind::Layout { .. } => return,
        };
        if let Some(info) = info.filter(|_| is_tracked(func.ty(out))) {
            self.set(func, out, info);
        }
    }

    /// Records what an op computes, unless it may wrap.
    fn set(&mut self, func: &Func, out: Value, mut info: Info) {
        // The value itself says nothing but its type, which does not tell whether it wraps.
        if info.form.as_value() != Some(out) {
            info.range = info.range.intersect(self.range_of(&info.form));
        }
        if !fits(func.ty(out), info.range) {
            return;
        }
        if let Some(p) = info.range.as_point() {
            info = Info::constant(p);
        }
        let g = self.multiple_of_form(&info.form);
        // Both divide the value, so their least common multiple does.
        if info.multiple != 0 && g != 0 {
            info.multiple = (info.multiple / gcd(info.multiple, g)).checked_mul(g).unwrap_or(g);
        } else {
            info.multiple = 0;
        }
        self.info[out.index()] = Some(info);
    }

    /// One of two values.
    fn either(&self, out: Value, x: Value, y: Value) -> Option<Info> {
        let (a, b) = (self.get(x)?, self.get(y)?);
        let form = if a.form == b.form { a.form.clone() } else { Affine::value(out) };
        Some(Info { range: a.range.union(b.range), multiple: gcd(a.multiple, b.multiple), form })
    }

    fn unary(&self, func: &Func, op: UnaryOp, x: Value) -> Option<Info> {
        let a = self.get(x).filter(|_| is_tracked(func.ty(x)))?;
        match op {
            UnaryOp::Neg => {
                let form = a.form.scale(-1)?;
                Some(Info { range: Interval::point(0) - a.range, multiple: a.multiple, form })
            }
            UnaryOp::Abs if a.range.lo >= 0 => Some(a.clone()),
            _ => None,
        }
    }

    fn binary(&self, func: &Func, out: Value, op: BinaryOp, x: Value, y: Value) -> Option<Info> {
        use BinaryOp::*;
        if !is_tracked(func.ty(x)) {
            return None;
        }
        let (a, b) = (self.get(x)?, self.get(y)?);
        let ty = func.ty(x);
        let constant = b.form.as_constant();
        let opaque = |range, multiple| Some(Info { range, multiple, form: Affine::value(out) });
        let exact = |form: Affine| Some(Info { range: Interval::FULL, multiple: 1, form });
        // Division rounds towards zero except on `index`; on non-negative values there is no difference.
        let floors = ty == DType::Index || a.range.lo >= 0;
        match op {
            Add => Some(Info { range: a.range + b.range, ..exact(a.form.add(&b.form)?)? }),
            Sub => Some(Info { range: a.range - b.range, ..exact(a.form.sub(&b.form)?)? }),
            Mul => match (a.form.as_constant(), constant) {
                (_, Some(c)) => exact(a.form.scale(c)?),
                (Some(c), _) => exact(b.form.scale(c)?),
                (None, None) => {
                    let multiple = a.multiple.checked_mul(b.multiple).unwrap_or(1);
                    opaque(a.range * b.range, multiple)
                }
            },
            Div if floors && constant.is_some_and(|c| c > 0) => exact(self.floor_div(&a.form, constant?)?),
            Rem if floors && constant.is_some_and(|c| c > 0) => {
                Some(Info { range: Interval::new(0, constant? - 1), ..exact(self.rem(&a.form, constant?)?)? })
            }
            CeilDiv if constant.is_some_and(|c| c > 0) => {
                exact(self.floor_div(&a.form.offset(constant? - 1)?, constant?)?)
            }
            Div | CeilDiv if a.range.lo >= 0 && b.range.lo >= 0 => opaque(Interval::new(0, a.range.hi), 1),
            Rem if a.range.lo >= 0 && b.range.lo >= 0 => {
                let hi = a.range.hi.min(b.range.hi.saturating_sub(1));
                opaque(Interval::new(0, hi), gcd(a.multiple, b.multiple))
            }
            Rem if ty == DType::Index && b.range.lo >= 0 => {
                let hi = b.range.hi.saturating_sub(1);
                opaque(Interval::new(0, hi), gcd(a.multiple, b.multiple))
            }
            Min if a.range.hi <= b.range.lo => Some(a.clone()),
            Min if b.range.hi <= a.range.lo => Some(b.clone()),
            Max if a.range.lo >= b.range.hi => Some(a.clone()),
            Max if b.range.lo >= a.range.hi => Some(b.clone()),
            Min => {
                let range = a.range.corners(b.range, |x, y| x.min(y));
                opaque(range, gcd(a.multiple, b.multiple))
            }
            Max => {
                let range = a.range.corners(b.range, |x, y| x.max(y));
                opaque(range, gcd(a.multiple, b.multiple))
            }
            // A mask of low bits is a remainder, on negative numbers too.
            And if constant.is_some_and(|c| (0..i64::MAX).contains(&c) && (c + 1) & c == 0) => {
                Some(Info { range: Interval::new(0, constant?), ..exact(self.rem(&a.form, constant? + 1)?)? })
            }
            And if a.range.lo >= 0 || b.range.lo >= 0 => {
                let hi = [a.range, b.range].iter().filter(|r| r.lo >= 0).map(|r| r.hi).min()?;
                opaque(Interval::new(0, hi), 1)
            }
            Or | Xor if a.range.lo >= 0 && b.range.lo >= 0 => {
                let top = a.range.hi.max(b.range.hi);
                let hi = if top == 0 { 0 } else { i64::MAX >> (top.leading_zeros() - 1) };
                opaque(Interval::new(0, hi), 1)
            }
            Shl => {
                let amount = constant?.rem_euclid(ty.bits() as i64);
                let form = a.form.scale(1i64.checked_shl(amount as u32).filter(|p| *p > 0)?)?;
                // Unlike a product, a shift may drop bits of an `index`.
                if fits(DType::I64, self.range_of(&form)) { exact(form) } else { None }
            }
            Shr => {
                let amount = constant?.rem_euclid(ty.bits() as i64);
                exact(self.floor_div(&a.form, 1i64.checked_shl(amount as u32).filter(|p| *p > 0)?)?)
            }
            Div | Rem | CeilDiv | And | Or | Xor | MulHi | Pow | CopySign => None,
        }
    }
}

impl Info {
    fn constant(c: i64) -> Info {
        let multiple = c.checked_abs().unwrap_or(1);
        Info { range: Interval::point(c), multiple, form: Affine::constant(c) }
    }
}

/// True if a result in `range` cannot have wrapped.
fn fits(ty: DType, range: Interval) -> bool {
    match ty {
        // Overflow is an error, so there is none.
        DType::Index => true,
        DType::I64 => range.lo > i64::MIN && range.hi < i64::MAX,
        _ => range.is_within(type_range(ty)),
    }
}

/// Values of `x / c`, rounded down, for `x` in `range`.
fn floor_div_range(range: Interval, c: i64) -> Interval {
    let end = |v: i64| if v == i64::MIN || v == i64::MAX { v } else { v.div_euclid(c) };
    Interval::new(end(range.lo), end(range.hi))
}
