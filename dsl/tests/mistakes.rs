//! Kernels that rustc accepts and the recorder refuses: the whole text an author reads, one file each in
//! `tests/mistakes`. `ZELLIGE_BLESS=1` rewrites the files.

use std::path::Path;
use zellige::prelude::*;

/// Compares what an author reads with the file `name`.
fn expect(name: &str, trace: Result<impl Sized, zellige::RecordError>) {
    let text = match trace {
        Err(error) => format!("{error}\n"),
        Ok(_) => panic!("{name}: recorded without complaint"),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes").join(name).with_extension("txt");
    if std::env::var_os("ZELLIGE_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the file can be written");
    }
    let want = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, want, "{}: look at it with ZELLIGE_BLESS=1 and git diff", path.display());
}

#[kernel]
fn wrong(t: T, a: &Tensor<bf16, 2>, #[comptime] bm: usize, #[comptime] bk: usize) {
    let [b] = t.grid([a.dim(0).ceil_div(bm)], 128);
    let a_s = t.shared::<bf16, 2>([bm, bk]);
    let b_s = t.shared::<bf16, 2>([bk * 2, bm]);
    let acc = t.fragment::<f32, 2>([bm, bk]);
    t.copy(a.at((b * bm, 0)), a_s);
    t.gemm(a_s, b_s, acc);
    let small = t.shared::<bf16, 2>([bm, 8]);
    t.copy(a_s, small);
    leave(t);
}

/// `break` in a helper without an attribute is found while recording.
#[allow(clippy::never_loop)]
fn leave(t: T) {
    for _ in t.serial(4usize) {
        break;
    }
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_places() {
    expect("several", Wrong::new(128, 64).trace());
}

#[kernel]
fn unwritten(t: T, x: &Tensor<f32, 2>, y: &mut Tensor<f32, 2>) {
    let [b] = t.grid([x.dim(0).ceil_div(16)], 32);
    let (read, sum) = (t.fragment::<f32, 2>([16, 64]), t.fragment::<f32, 1>([16]));
    for i in t.parallel(16) {
        y[(b * 16 + i, 0)] = sum[i];
    }
    t.reduce_sum(read, sum, 1);
}

#[test]
fn reading_an_unwritten_fragment() {
    expect("unwritten", Unwritten::new().trace());
}

/// A Rust variable changed in a device loop changes once, while the body is recorded; in a helper only the recorder sees it.
fn count(t: T, y: &Tensor<f32, 1>) {
    let mut row = lit::<i32>(0);
    for i in t.serial(4usize) {
        let next = row + 1;
        y.store(i, next.cast());
        row = next;
    }
    y.store(4usize, row.cast());
}

#[kernel]
fn leaking(t: T, y: &mut Tensor<f32, 1>) {
    let [_] = t.grid([1usize], 32);
    count(t, y);
}

#[test]
fn a_value_that_leaves_its_loop() {
    expect("leaking", Leaking::new().trace());
}

#[kernel]
fn extents(t: T, x: &Tensor<f32, 2>, y: &mut Tensor<f32, 1>) {
    let [b] = t.grid([x.dim(0).ceil_div(16)], 32);
    let (rows, sums) = (t.fragment::<f32, 2>([16, 64]), t.fragment::<f32, 1>([64]));
    t.copy(x.at((b * 16, 0)), rows);
    t.reduce_sum(rows, sums, 1);
    for (i, j) in t.parallel((16, 64)) {
        rows[(i, j)] = rows[(i, j)] * sums[i];
    }
    let halves = t.fragment::<f32, 1>([32]);
    t.copy(sums, halves);
    t.copy(halves, y.at((b * 32,)));
}

#[test]
fn extents_that_disagree() {
    expect("extents", Extents::new().trace());
}
