//! What cannot be written as text; everything else is in the filetests of the test crate.

use super::*;
use crate::entity::EntityId;
use crate::func::{Region, ValueDef};
use crate::op::{BinaryOp, Def};
use crate::{FuncBuilder, Span, Window};

/// `%0 = add 1, 2` in the body, and the value.
fn small() -> (Func, Value) {
    let mut b = FuncBuilder::new("small", Span::unknown());
    let one = b.index(1);
    b.grid(&[one], 32);
    let v = b.func_mut().add_value(DType::Index);
    let two = b.index(2);
    b.append(OpKind::Binary { out: Def(v), op: BinaryOp::Add, x: one, y: two });
    (b.finish(), v)
}

fn rules(func: &Func) -> Vec<Rule> {
    verify(func).err().unwrap_or_default().iter().map(|e| e.rule).collect()
}

#[test]
fn a_sound_function_passes() {
    assert_eq!(verify(&small().0), Ok(()));
}

/// An id that belongs to nothing.
fn nothing<K: EntityId>() -> K {
    K::from_index(1000)
}

#[test]
fn ids_of_nothing_are_reported_and_end_the_check() {
    let append = |f: &mut Func, kind| {
        f.append(f.body, kind, Span::unknown());
    };
    type Corruption<'a> = &'a dyn Fn(&mut Func, Value);
    let corruptions: [(&str, Corruption<'_>); 8] = [
        ("grid", &|f, _| f.grid = vec![nothing()]),
        ("block", &|f, _| f.block_ids = vec![nothing()]),
        ("body", &|f, _| f.body = nothing::<Region>()),
        ("op", &|f, _| f.regions[f.body].ops.push(nothing())),
        ("operand", &|f, _| append(f, OpKind::Assume { cond: nothing() })),
        ("buffer", &|f, _| append(f, OpKind::Alloc { buffer: nothing() })),
        ("window", &|f, value| {
            let dst = Window { buffer: nothing(), offsets: Default::default(), axes: Default::default() };
            append(f, OpKind::Fill { dst, value });
        }),
        ("definition", &|f, v| f.values[v].def = ValueDef::Op(nothing())),
    ];
    for (what, corrupt) in corruptions {
        let (mut f, v) = small();
        corrupt(&mut f, v);
        assert_eq!(rules(&f), [Rule::Ids], "{what}");
        // Printing is part of reporting, so it must not fail either.
        assert!(f.to_text().starts_with("func small() threads 32 {\n"), "{what}");
    }
}

#[test]
fn regions_and_ops_have_one_place() {
    let (mut f, _) = small();
    let owner = OpKind::Role { role: crate::WarpRole::Producer, body: f.body };
    f.append(f.prelude, owner, Span::unknown());
    assert_eq!(rules(&f), [Rule::Tree]);
    let (mut f, _) = small();
    let op = f.regions[f.body].ops[0];
    f.regions[f.body].ops.push(op);
    assert_eq!(rules(&f), [Rule::Tree]);
}

#[test]
fn results_name_their_op() {
    let (mut f, v) = small();
    f.values[v].def = ValueDef::Pending;
    assert_eq!(rules(&f), [Rule::DefinedOnce]);
    let (mut f, v) = small();
    let other = f.append(f.body, OpKind::Assume { cond: v }, Span::unknown());
    f.values[v].def = ValueDef::Op(other);
    assert_eq!(rules(&f), [Rule::DefinedOnce, Rule::Conditions]);
}

#[test]
fn windows_fit_their_buffer() {
    for (offsets, axes) in [(1, vec![0]), (2, vec![2]), (2, vec![1, 1])] {
        let mut b = FuncBuilder::new("f", Span::unknown());
        let one = b.index(1);
        b.grid(&[one], 32);
        let buffer = b.alloc(Scope::Shared, DType::F32, &[4, 4]);
        let zero = b.index(0);
        let axes = axes.into_iter().map(|axis| crate::WindowAxis { axis, extent: 2 }).collect();
        let dst = Window { buffer, offsets: std::iter::repeat_n(zero, offsets).collect(), axes };
        let value = b.constant(crate::Const::f32(0.0));
        b.append(OpKind::Fill { dst, value });
        let f = b.finish();
        assert_eq!(rules(&f), [Rule::WindowAxes]);
        assert!(f.to_text().contains("fill 0.0f32 -> $0["), "{f}");
    }
}

/// The parser reports these already.
#[test]
fn names_and_dims_are_distinct_and_known() {
    let signature = |build: fn(&mut FuncBuilder)| {
        let mut b = FuncBuilder::new("f", Span::unknown());
        build(&mut b);
        let one = b.index(1);
        b.grid(&[one], 32);
        rules(&b.finish())
    };
    assert_eq!(
        signature(|b| {
            let (m, n) = (b.func_mut().add_dim("m"), b.func_mut().add_dim("m"));
            b.tensor("x", DType::F32, vec![Extent::Dynamic(m), Extent::Dynamic(n)], Access::Read);
        }),
        [Rule::Names]
    );
    assert_eq!(
        signature(|b| {
            let m = b.func_mut().add_dim("m");
            b.tensor("x", DType::F32, vec![Extent::Dynamic(m)], Access::Read);
            b.tensor("x", DType::F32, vec![], Access::Read);
            b.func_mut().add_scalar("m", DType::I32);
        }),
        [Rule::Names, Rule::Names]
    );
    assert_eq!(
        signature(|b| {
            b.func_mut().add_dim("m");
        }),
        [Rule::Dims]
    );
}

#[test]
fn rules_are_numbered_in_order() {
    for (i, rule) in Rule::ALL.iter().enumerate() {
        assert_eq!(rule.number(), i + 1);
        assert!(rule.text().ends_with('.'));
    }
}

#[test]
fn violations_show_op_rule_and_help() {
    let text = "func f(x: tensor<f32, [4]>) threads 32 {\ngrid (%bx) in (1)\nbody:\n  store 1.0f32 -> x[0]\n}\n";
    let funcs = crate::text::parse_file("k.tile", text).expect("parses");
    let errors = verify(&funcs[0]).expect_err("a read-only tensor is written");
    let diagnostics: Vec<crate::Diagnostic> = errors.iter().map(Into::into).collect();
    let report = crate::diagnostic::Renderer::plain().with_source("k.tile", text).render(&diagnostics);
    let expected = "\
error: `x` is written, but is a read-only tensor
 --> k.tile:4:3
  |
1 | func f(x: tensor<f32, [4]>) threads 32 {
  |        - `x` is declared here
...
4 |   store 1.0f32 -> x[0]
  |   ^^^^^
  |
  = note: in `store 1.0f32 -> x[0]`
  = note: rule 18: A tensor that is not `mut` is not written.
  = help: declare the tensor `mut`
";
    assert_eq!(report, expected);
}
