//! The kernel language as an author uses it: what is recorded for each construct.

use zellige::prelude::*;

#[path = "../examples/gemm.rs"]
#[allow(dead_code)]
mod example;
use example::{Gemm, GemmConfig};

const CONFIG: GemmConfig = GemmConfig { bm: 128, bn: 64, bk: 32, stages: 3, threads: 128 };

#[test]
fn gemm_records_what_it_says() {
    let f = Gemm::<bf16>::new(CONFIG).record(&Sizes::new().with("n", 192).with("k", 96)).unwrap();
    let text = f.to_text();
    println!("{text}");
    for expected in ["pipelined", "gemm", "copy", "192"] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
}

#[derive(Clone, Copy)]
struct RowState {
    max: Fragment<f32, 1>,
    sum: Fragment<f32, 1>,
}

/// A helper without an attribute: plain Rust that records.
fn softmax_rows(t: T, s: Fragment<f32, 2>, state: RowState) {
    let [rows, cols] = s.shape();
    t.reduce_max(s, state.max, 1);
    for (i, j) in t.parallel((rows, cols)) {
        s.store((i, j), (s[(i, j)] - state.max[i]).exp());
    }
    t.reduce_sum(s, state.sum, 1);
}

/// A helper that wants the rewrites.
#[tile]
fn causal(t: T, s: Fragment<f32, 2>, first: Idx, host: usize) {
    let [rows, cols] = s.shape();
    for (i, j) in t.parallel((rows, cols)) {
        if host > 1 && first + i < j {
            s[(i, j)] = f32::NEG_INFINITY;
        } else if i == j || j == 0usize {
            s[(i, j)] += 1.0;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    Scaled,
    Plain,
}

#[kernel]
fn softmax(t: T, x: &Tensor<f32, 2>, n_valid: Idx, y: &mut Tensor<f32, 2>, #[comptime] mode: Mode) {
    let [b] = t.grid([x.dim(0).ceil_div(16)], 64);
    let s = t.fragment::<f32, 2>([16, 32]);
    let state = RowState { max: t.fragment([16]), sum: t.fragment([16]) };
    t.copy(x.at((b * 16, 0)), s);
    if mode == Mode::Scaled {
        for (i, j) in t.parallel((16, 32)) {
            s[(i, j)] = 2.0 * s[(i, j)];
        }
    }
    causal(t, s, b * 16, 2);
    softmax_rows(t, s, state);
    let count = t.var::<i32>(0);
    for r in 0..2 {
        if b * 16 + r < n_valid && !(b < 1usize) {
            count.set(count.get() + 1);
        }
    }
    let old = state.max[0usize];
    state.max[0usize] = 3.0;
    y[(b, count.get().to_index())] = select(count.get().cast::<f32>() > 1.0, old - state.max[0usize], -1.0);
    t.repeat_while(|| cmp::lt(&count.get(), &10), || count.set(count.get() + 1));
    let scale = if mode == Mode::Plain { 1.0 } else { 0.5 };
    for (i, j) in t.parallel((16, 32)) {
        y[(b * 16 + i, j)] = s[(i, j)] / state.sum[i] * scale;
    }
}

#[test]
fn host_conditions_choose_and_device_conditions_are_recorded() {
    let text = |mode| Softmax::new(mode).trace().unwrap().to_text();
    let (scaled, plain) = (text(Mode::Scaled), text(Mode::Plain));
    println!("{scaled}");
    assert_eq!(scaled.matches("for parallel").count(), plain.matches("for parallel").count() + 1);
    assert_eq!(scaled.matches("if %").count(), 4, "two in the helper, two in the unrolled loop:\n{scaled}");
    assert_eq!(scaled.matches("while").count(), 1);
}

/// A read stands where it is written: storing afterwards does not change it.
#[kernel]
fn read_then_write(t: T, x: &mut Tensor<i32, 1>) {
    let [_] = t.grid([1usize], 32);
    let old = x[0usize];
    x[0usize] = 7;
    x[1usize] = old;
}

#[test]
fn a_read_is_a_load_where_it_stands() {
    let text = ReadThenWrite::new().trace().unwrap().to_text();
    let (load, store) = (text.find("load").unwrap(), text.find("store").unwrap());
    assert!(load < store, "{text}");
    assert_eq!(text.matches("load").count(), 1, "{text}");
}

#[test]
fn the_space_is_searched_in_order_and_pruned() {
    let space = CONFIG.space();
    assert_eq!(space.len(), (9 - 1) * 2 * 4, "all but 256 x 256");
    assert!(space.iter().all(|c| c.threads == 128 && c.legal().is_ok()));
    let mut c = CONFIG;
    c.set("bn", "256".parse().unwrap()).unwrap();
    assert_eq!(c.bn, 256);
    assert_eq!(
        c.set("bx", 1usize.into()).unwrap_err().to_string(),
        "no config field `bx`; the fields are: bm, bn, bk, stages, threads"
    );
    assert_eq!(
        c.set("bn", true.into()).unwrap_err().to_string(),
        "config field `bn` cannot be true: it is a number, without this 256"
    );
}
