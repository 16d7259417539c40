//! Everything the index analyses claim about random functions is turned into assertions, and the interpreter checks them.

mod support;

use zellige_ir::analysis::affine::Affine;
use zellige_ir::analysis::range::is_tracked;
use zellige_ir::analysis::{Facts, Term};
use zellige_ir::interp::{InterpErrorKind, Interpreter};
use zellige_ir::verify::verify;
use zellige_ir::*;

/// Adds assertions to a function.
struct Instrument<'f> {
    func: &'f mut Func,
    facts: Facts,
    claims: usize,
}

impl Instrument<'_> {
    fn region(&mut self, region: Region) {
        let ops = std::mem::take(&mut self.func.regions[region].ops);
        for op in ops {
            let kind = self.func.ops[op].kind.clone();
            // A comparison or an access is judged by what holds before it.
            match &kind {
                OpKind::Load { buffer, indices, .. } | OpKind::Store { buffer, indices, .. }
                    if self.facts.access_in_bounds(self.func, op, *buffer, indices) =>
                {
                    for (axis, &i) in indices.iter().enumerate() {
                        let extent = match self.func.buffers[*buffer].shape[axis] {
                            Extent::Static(n) => self.func.constant(Const::index(n as i64)),
                            Extent::Dynamic(d) => self.func.dims[d].value,
                        };
                        self.claim(region, CmpOp::Lt, i, extent, "in bounds");
                        let zero = self.func.constant(Const::index(0));
                        self.claim(region, CmpOp::Ge, i, zero, "in bounds");
                    }
                }
                OpKind::Cmp { op: f, x, y, .. } if is_tracked(self.func.ty(*x)) => {
                    if let Some(truth) = self.facts.compare(self.func, op, *f, *x, *y) {
                        let got = self.emit(region, DType::Bool, |out| OpKind::Cmp { out, op: *f, x: *x, y: *y });
                        let want = self.func.constant(Const::from_bool(truth));
                        self.claim(region, CmpOp::Eq, got, want, "comparison");
                    }
                }
                _ => {}
            }
            self.func.regions[region].ops.push(op);
            let mut defs = Vec::new();
            kind.for_each_def(&mut |v| defs.push(v));
            let tracked = defs.into_iter().filter(|&v| is_tracked(self.func.ty(v))).collect::<Vec<_>>();
            if let OpKind::For { body, .. } = kind {
                let inner = std::mem::take(&mut self.func.regions[body].ops);
                tracked.iter().for_each(|&v| self.value(body, v));
                self.func.regions[body].ops.extend(inner);
            } else {
                tracked.iter().for_each(|&v| self.value(region, v));
            }
            let mut nested = Vec::new();
            kind.for_each_region(&mut |r| nested.push(r));
            nested.into_iter().for_each(|r| self.region(r));
        }
    }

    fn emit(&mut self, region: Region, ty: DType, kind: impl FnOnce(Def) -> OpKind) -> Value {
        let out = self.func.add_value(ty);
        self.func.append(region, kind(Def(out)), Span::unknown());
        out
    }

    fn claim(&mut self, region: Region, op: CmpOp, x: Value, y: Value, what: &str) {
        let cond = self.emit(region, DType::Bool, |out| OpKind::Cmp { out, op, x, y });
        let message = format!("{what}: {x} {op} {y}");
        self.func.append(region, OpKind::Assert { cond, message }, Span::unknown());
        self.claims += 1;
    }

    /// Claims what is known about a value.
    fn value(&mut self, region: Region, v: Value) {
        let ranges = &self.facts.ranges;
        let (range, multiple, form) = (ranges.range(v), ranges.multiple_of(v), ranges.form(v));
        let of_form = ranges.range_of(&form);
        let wide = self.widen(region, v);
        for range in [range, of_form] {
            if range.lo > i64::MIN {
                let lo = self.func.constant(Const::index(range.lo));
                self.claim(region, CmpOp::Ge, wide, lo, "range");
            }
            if range.hi < i64::MAX {
                let hi = self.func.constant(Const::index(range.hi));
                self.claim(region, CmpOp::Le, wide, hi, "range");
            }
        }
        if multiple > 1 {
            let (n, zero) = (self.func.constant(Const::index(multiple)), self.func.constant(Const::index(0)));
            let rest = self.emit(region, DType::Index, |out| OpKind::Binary { out, op: BinaryOp::Rem, x: wide, y: n });
            self.claim(region, CmpOp::Eq, rest, zero, "multiple");
        }
        if form.as_value() != Some(v) {
            let value = self.form(region, &form);
            self.claim(region, CmpOp::Eq, wide, value, "form");
        }
    }

    fn widen(&mut self, region: Region, v: Value) -> Value {
        if self.func.ty(v) == DType::Index {
            return v;
        }
        self.emit(region, DType::Index, |out| OpKind::Cast { out, x: v })
    }

    /// Computes a form.
    fn form(&mut self, region: Region, form: &Affine) -> Value {
        let mut sum = self.func.constant(Const::index(form.constant));
        for (t, k) in form.terms() {
            let t = match t {
                Term::Value(v) => self.widen(region, *v),
                Term::Div(r, c) => {
                    let (r, c) = (self.form(region, r), self.func.constant(Const::index(*c)));
                    self.emit(region, DType::Index, |out| OpKind::Binary { out, op: BinaryOp::Div, x: r, y: c })
                }
            };
            let k = self.func.constant(Const::index(*k));
            let product = self.emit(region, DType::Index, |out| OpKind::Binary { out, op: BinaryOp::Mul, x: t, y: k });
            let (x, y) = (sum, product);
            sum = self.emit(region, DType::Index, |out| OpKind::Binary { out, op: BinaryOp::Add, x, y });
        }
        sum
    }
}

#[test]
fn claims_hold() {
    let (mut claims, mut checked) = (0, 0);
    for seed in 0..3000 {
        let case = support::case(seed);
        if Interpreter::new(&case.func).fuel(1_000_000).run(&mut case.args.clone()).is_err() {
            continue;
        }
        let mut func = case.func.clone();
        let facts = Facts::new(&func);
        let (prelude, body) = (func.prelude, func.body);
        let mut instrument = Instrument { func: &mut func, facts, claims: 0 };
        instrument.region(prelude);
        instrument.region(body);
        claims += instrument.claims;
        verify(&func).unwrap_or_else(|e| panic!("seed {seed}: {e:?}"));
        match Interpreter::new(&func).fuel(100_000_000).run(&mut case.args.clone()) {
            Ok(_) => checked += 1,
            Err(errors) => {
                let broken = errors.iter().find(|e| match &e.kind {
                    InterpErrorKind::Assert { .. } => true,
                    // A claim of the prelude.
                    InterpErrorKind::Launch(message) => !message.contains("overflow"),
                    _ => false,
                });
                if let Some(e) = broken {
                    panic!(
                        "seed {seed}: {e}\nbefore:\n{}\nwith claims:\n{}",
                        case.func.canonical_text(),
                        func.canonical_text()
                    );
                }
            }
        }
    }
    assert!(claims > 100_000 && checked > 1500, "{claims} claims in {checked} functions");
}
