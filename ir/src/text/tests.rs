//! Tests of printing and parsing.

use super::fields::{Aspect, OpText, Segment, head, segments};
use super::*;
use crate::op::OpKind;
use crate::{Diagnostic, Func, diagnostic};
use std::collections::HashSet;

/// Every op once, every field type in its variants.
const EVERY_OP: &str = r#"func every_op(
  a: tensor<bf16, [m, k]>,
  b: tensor<f4e2m1, [m, 32]> strided,
  c: mut tensor<f32, [64, 64]>,
  n: i32,
  `r#type`: f32,
) threads 128 order panel(8) {
prelude:
  %0: index = ceildiv m, 64
  %1: index = cast n
grid (%bx, %by) in (%0, %1)
body:
  $0 = alloc shared bf16[64, 32]
  $1 = alloc fragment f32[64, 64]
  $2 = alloc local i32[]
  $3 = alloc fragment f32[64]
  $4 = alloc shared i32[64]
  layout $0 swizzle(64)
  layout $4 pad(4)
  layout $1 row_major
  %2: index = mul %bx, 64
  fill 0.0f32 -> $1
  fill -1i32 -> $2
  for pipelined(3) (%3) in (k) {
    copy a[%2 : 64, %3 : 32] -> $0 pad 0.0bf16
    gemm $0, $0 perm(1, 0) -> $1 exact
  }
  gather a[0 : 1, 0 : 32] at $4 -> $0 pad nan_bf16
  scatter $0 -> c[0 : 64, %2 : 32] at $4
  reduce sum $1 axis 1 -> $3 accumulate
  reduce argmax $1 axis 1 -> $4
  scan sum $3 axis 0 -> $3 reverse exclusive
  topk $1 -> $1[0 : 64, 0 : 8], $1[0 : 64, 8 : 8] largest
  sort $3 payload $4 descending
  sort $3
  shuffle xor $3 by 1 -> $3
  for parallel (%4, %5) in (64, 32) {
    %6: bf16 = load $0[%4, %5]
    %7: f32 = cast %6
    %8: f32 = exp2 %7
    %9: f32 = add %8, `r#type`
    %10: f32 = fma %9, %9, 1.0f32
    %11: bool = cmp lt %10, inf_f32
    %12: f32 = select %11, %10, -0.0f32
    %13: i32 = bitcast %12
    %14: i32 = atomic add %13 -> $4[%4]
    if %11 {
      store %12 -> $1[%4, %5]
    } else {}
  }
  role producer {
    while {
      %15: i32 = load $2[]
      %16: bool = cmp ne %15, 0i32
    } yields %16 do {
      store 0i32 -> $2[]
    }
  }
  role consumer(1) {}
  print "a \"quoted\"\n%0" (%2, n) window $4[0 : 8]
  print "" ()
  assert true, "yes"
  assume true
}
"#;

#[test]
fn every_op_round_trips() {
    let f = parse_func(EVERY_OP).unwrap_or_else(|e| panic!("{}", report(EVERY_OP, &e)));
    assert_eq!(f.to_text(), EVERY_OP);
    let mut seen = HashSet::new();
    f.walk(f.prelude, &mut |_, op| {
        seen.insert(op.kind.name());
    });
    f.walk(f.body, &mut |_, op| {
        seen.insert(op.kind.name());
    });
    let missing: Vec<_> = OpKind::TABLE.iter().map(|info| info.name).filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "not in the test: {missing:?}");
}

#[test]
fn numbers_are_dense_whatever_the_text_says() {
    let text = "func f(x: mut tensor<f32, [4]>) threads 32 {\ngrid (%block) in (1)\nbody:\n  $tmp = alloc local f32[4]\n  \
                %sum: f32 = add 1.0f32, 2.0f32 ; comment\n  %907: f32 = mul %sum, %sum\n  store %907 -> $tmp[%block]\n}\n";
    let expected = "func f(x: mut tensor<f32, [4]>) threads 32 {\ngrid (%bx) in (1)\nbody:\n  $0 = alloc local f32[4]\n  \
                    %0: f32 = add 1.0f32, 2.0f32\n  %1: f32 = mul %0, %0\n  store %1 -> $0[%bx]\n}\n";
    assert_eq!(parse(text).to_text(), expected);
}

#[test]
fn spans_round_trip_and_canonical_text_has_none() {
    let text = r#"func f(
  x: mut tensor<f32, [m]> @"dir/k.rs":3:9,
  s: f32,
) threads 32 @"dir/k.rs":2:8 {
grid (%bx) in (m)
body:
  $0 = alloc local f32[1] @"dir/k.rs":4:13
  for serial (%0) in (4) @"dir/k.rs":5:5 {
    store s -> $0[0] @"a \"b\".rs":6:9
    if true @"dir/k.rs":7:9 {} else {}
    while {
    } yields true do {}
  }
}
"#;
    // An empty region has its braces on one line.
    let text = text.replace("while {\n    }", "while {}");
    let f = parse(&text);
    assert_eq!(f.to_text(), text);
    assert_eq!(f.span.to_string(), "dir/k.rs:2:8");
    assert_eq!(f.buffers.iter().map(|(_, b)| b.span.line).collect::<Vec<_>>(), [3, 4]);
    let canonical = f.canonical_text();
    assert!(!canonical.contains('@'), "{canonical}");
    assert_eq!(parse(&canonical).to_text(), canonical);
}

#[test]
fn a_file_has_several_functions_and_gives_them_places() {
    let text = "func a() threads 32 {\nbody:\n}\n\n; between\nfunc b() threads 64 {\nbody:\n  assume true\n}\n";
    let funcs = parse_file("x.tile", text).expect("parses");
    assert_eq!(funcs.iter().map(|f| (&*f.name, f.span.line)).collect::<Vec<_>>(), [("a", 1), ("b", 6)]);
    let op = funcs[1].regions[funcs[1].body].ops[0];
    assert_eq!(funcs[1].ops[op].span.to_string(), "x.tile:8:3");
    assert_eq!(parse_funcs(text).expect("parses").len(), 2);
    let errors = parse_func(text).expect_err("two functions");
    assert_eq!(errors[0].to_string(), "6:1: expected one function, found another one");
}

#[test]
fn windows_read_in_any_form() {
    let header = "func f(x: tensor<f32, [m, 4, 6]>) threads 32 {\nbody:\n  $0 = alloc shared f32[4, 6]\n  ";
    for (written, printed) in [
        ("copy x[3, 0 : 4, 0 : 6] -> $0[0 : 4, 0 : 6] pad 0.0f32", "copy x[3, 0 : 4, 0 : 6] -> $0 pad 0.0f32"),
        ("copy $0[0 : 4, 0 : 6] perm(0, 1) -> $0 perm(1, 0) pad 0.0f32", "copy $0 -> $0 perm(1, 0) pad 0.0f32"),
        (
            "copy x[m : 1, 0 : 4, 0 : 6] perm(2, 0, 1) -> $0[0, 1] pad 0.0f32",
            "copy x[m : 1, 0 : 4, 0 : 6] perm(2, 0, 1) -> $0[0, 1] pad 0.0f32",
        ),
        ("copy x[0, 0, 0 : 2] perm(0) -> $0[0 : 2, 0] pad 0.0f32", "copy x[0, 0, 0 : 2] -> $0[0 : 2, 0] pad 0.0f32"),
    ] {
        assert_eq!(parse(&format!("{header}{written}\n}}\n")).to_text(), format!("{header}{printed}\n}}\n"));
    }
}

/// Checks the mistakes found in the body of a function: one line each, `line:col: message [help]`, lines counted from
/// the body's first.
fn check_body(body: &str, expected: &[&str]) {
    let text = format!("func f(x: tensor<f32, [m, 4]>, s: f32) threads 32 {{\nbody:\n{body}\n}}\n");
    let errors = parse_func(&text).err().unwrap_or_default();
    let found: Vec<String> = errors
        .into_iter()
        .map(|mut e| {
            e.span.line -= 2;
            match &e.help {
                Some(help) => format!("{e} [{help}]"),
                None => e.to_string(),
            }
        })
        .collect();
    assert_eq!(found, expected, "\n{text}");
}

#[test]
fn mistakes_name_what_was_expected_and_found() {
    check_body("frob %0", &["1:1: `frob` is not an op"]);
    check_body("copi x[0 : 1, 0] -> x[0 : 1, 0]", &["1:1: `copi` is not an op [did you mean `copy`?]"]);
    check_body("%0: f32 = sqtr s", &["1:11: `sqtr` is not an op [did you mean `sqrt`?]"]);
    check_body("%0: f32 = add s s", &["1:17: expected `,`, found `s` [the form is `{out} = {op} {x}, {y}`]"]);
    check_body(
        "%0: f32 = add s,",
        &["1:17: expected a value, found the end of the line [the form is `{out} = {op} {x}, {y}`]"],
    );
    check_body("%0: f23 = add s, s", &["1:5: expected an element type, found `f23` [did you mean `f32`?]"]);
    check_body(
        "%0: bool = cmp less s, s",
        &["1:16: expected a comparison, found `less` [one of eq, ne, lt, le, gt, ge]"],
    );
    check_body("assume %9", &["1:8: `%9` is never defined"]);
    check_body("assume t", &["1:8: no dim or scalar parameter is called `t` [did you mean `m`?]"]);
    check_body("store s -> $7[0]", &["1:12: `$7` is never defined"]);
    check_body("store s -> y[0]", &["1:12: no tensor is called `y` [did you mean `x`?]"]);
    check_body(
        "%0: f32 = add 1.5, s",
        &["1:15: `1.5` is not a constant; write `12`, `3i32`, `1.5f32`, `true`, `inf_f32` or `0x7fc00000_f32`"],
    );
    check_body("%0: i8 = add 300i8, 1i8", &["1:14: `300i8` does not fit i8"]);
    check_body("assume true true", &["1:13: expected the end of the line, found `true`"]);
    check_body(
        "fill s -> x",
        &[
            "1:12: expected `[`, as an extent of the tensor is known only at launch, found the end of the line [the form is `fill {value} -> {dst}`]",
        ],
    );
    check_body(
        "fill s -> x[0 : 1, 0] perm(1)",
        &["1:28: expected an axis below 1, found `1` [the form is `fill {value} -> {dst}`]"],
    );
    check_body("$0 = alloc shard f32[4]", &["1:12: expected a scope, found `shard` [did you mean `shared`?]"]);
    check_body(
        "$0 = alloc shared f32[4]\n$0 = alloc shared bf16[4]",
        &["2:12: `$0` is defined as shared f32[4] and again as shared bf16[4]"],
    );
    check_body("$0 = alloc shared f32[p]", &["1:23: no dim is called `p` [did you mean `m`?]"]);
    check_body("assert true, \"open", &["1:14: this text does not end on its line"]);
    check_body("assert true, \"\\q\"", &["1:14: `\\q` is not an escape"]);
    check_body("assume true ~", &["1:13: unexpected character `~`"]);
    check_body("%0: f32 = add s, s\n%0: i32 = add 1i32, 1i32", &["2:1: `%0` is defined as f32 and again as i32"]);
}

#[test]
fn all_mistakes_of_a_text_are_reported() {
    check_body(
        "frob 1\nfor serial (%0) im (4) {\n  frob 2\n  assume true\n  %1: index = ad %0, 1\n}\nif frob {\n  frob 3\n} else {\n  frob 4\n}\nassume %2\nstore s -> x[%1, %0]",
        &[
            "1:1: `frob` is not an op",
            "2:17: expected `in`, found `im` [the form is `for {kind} ({indices}) in ({extents}) {body}`]",
            "3:3: `frob` is not an op",
            "5:15: `ad` is not an op [did you mean `add`?]",
            "7:4: no dim or scalar parameter is called `frob`",
            "8:3: `frob` is not an op",
            "10:3: `frob` is not an op",
            "12:8: `%2` is never defined",
        ],
    );
}

#[test]
fn signature_mistakes() {
    for (text, expected) in [
        ("", "1:1: expected `func`, found the end of the text"),
        ("fnc", "1:1: expected `func`, found `fnc`"),
        ("func f(x: tensor<f32, [m]>, x: tensor<f32, [m]>) threads 1 {", "1:29: tensor `x` is declared twice"),
        ("func f(x: tensor<f32, [m]>, m: i32) threads 1 {", "1:29: dim or scalar parameter `m` is declared twice"),
        ("func f(x: tensr<f32, [m]>) threads 1 {", "1:11: expected an element type, found `tensr`"),
        ("func f() {", "1:10: expected `threads`, found `{`"),
        ("func f() threads many {", "1:18: expected the number of threads, found `many`"),
        ("func f() threads 1 order diagonal {", "1:26: expected a block order, found `diagonal`"),
        ("func f() threads 1 {\ngrid (%a, %a) in (1, 1)\nbody:\n}", "2:11: value `%a` is declared twice"),
        ("func f() threads 1 {\nbody:", "2:6: expected `}`, found the end of the text"),
    ] {
        let errors = parse_func(text).expect_err(text);
        assert_eq!(errors[0].to_string(), expected, "{text}");
    }
}

#[test]
fn arbitrary_prefixes_and_deletions_never_panic() {
    for cut in (0..EVERY_OP.len()).filter(|&at| EVERY_OP.is_char_boundary(at)) {
        drop(parse_func(&EVERY_OP[..cut]));
        let without = format!("{}{}", &EVERY_OP[..cut], EVERY_OP[cut..].chars().skip(3).collect::<String>());
        if let Ok(f) = parse_func(&without) {
            let text = f.to_text();
            assert_eq!(parse(&text).to_text(), text);
        }
    }
}

#[test]
fn one_op_prints_on_one_line() {
    let f = parse(EVERY_OP);
    let first_loop = f.regions[f.body].ops.iter().find(|&&op| matches!(f.ops[op].kind, OpKind::For { .. }));
    assert_eq!(op_text(&f, *first_loop.expect("there is a loop")), "for pipelined(3) (%3) in (k) { .. }");
}

#[test]
fn every_syntax_names_each_field_once_and_starts_with_a_word_of_its_own() {
    let mut words = HashSet::new();
    for (word, row) in OpKind::heads() {
        assert!(words.insert(word), "`{word}` starts `{row}` and another op");
        assert!(!["prelude", "grid", "body", "func"].contains(&word));
        assert!(OpKind::TABLE.iter().any(|info| info.name == row));
    }
    for info in OpKind::TABLE {
        let shown: Vec<&str> = segments(info.syntax)
            .filter_map(|s| match s {
                Segment::Field { name, aspect: Aspect::Whole } => Some(name),
                Segment::Field { aspect: Aspect::Type, .. } | Segment::Text(_) => None,
            })
            .collect();
        let fields: HashSet<&str> = info.fields.iter().map(|f| f.0).collect();
        assert_eq!(shown.len(), fields.len(), "{}", info.name);
        assert!(shown.iter().all(|name| fields.contains(name)), "{}", info.name);
        assert!(!matches!(head(info.syntax), Segment::Text("")), "{}", info.name);
        // A space before an optional part is dropped with it, so it must not be doubled.
        assert!(!info.syntax.contains("  ") && info.syntax.trim() == info.syntax, "{}", info.name);
    }
}

fn parse(text: &str) -> Func {
    parse_func(text).unwrap_or_else(|e| panic!("{}", report(text, &e)))
}

fn report(text: &str, errors: &[ParseError]) -> String {
    let diagnostics: Vec<Diagnostic> = errors.iter().map(Diagnostic::from).collect();
    diagnostic::Renderer::plain().with_source("", text).render(&diagnostics)
}
