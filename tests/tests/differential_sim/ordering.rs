//! A kernel that orders lines in both ways.

use super::kernels::{K, n};
use zellige_ir::{DType, Func, OpKind, Scope};

/// Lines to be ordered.
#[derive(Clone, Copy, Debug)]
pub struct Ordering {
    pub dtype: DType,
    pub lines: usize,
    pub n: usize,
    /// How many of the first are wanted apart from the sorted line.
    pub k: usize,
    pub descending: bool,
    pub threads: usize,
}

/// The first `k` elements of each line, largest first if `descending`, and the whole line sorted with its positions.
pub fn ordering(o: Ordering) -> Func {
    let Ordering { dtype, lines, n: len, k: first, descending, threads } = o;
    let mut k = K::new("ordering");
    let x = k.tensor("x", dtype, &[n(lines), n(len)]);
    let vals = k.output("vals", dtype, &[n(lines), n(first)]);
    let places = k.output("places", DType::I32, &[n(lines), n(first)]);
    let sorted = k.output("sorted", dtype, &[n(lines), n(len)]);
    let from = k.output("from", DType::I32, &[n(lines), n(len)]);
    k.one_block(threads);
    let t = k.alloc(Scope::Shared, dtype, &[lines, len]);
    let ids = k.alloc(Scope::Shared, DType::I32, &[lines, len]);
    let (x_w, t_w, ids_w) = (k.whole(x), k.whole(t), k.whole(ids));
    let (v_w, p_w, sorted_w, from_w) = (k.whole(vals), k.whole(places), k.whole(sorted), k.whole(from));
    k.copy(x_w, t_w.clone());
    k.line().append(OpKind::TopK { src: t_w.clone(), values: v_w, indices: p_w, largest: descending });
    let ij = k.parallel(&[lines, len]);
    let j = k.b.cast(ij[1], DType::I32);
    k.b.store(ids, &ij, j);
    k.end();
    k.line().append(OpKind::Sort { keys: t_w.clone(), payload: Some(ids_w.clone()), descending });
    k.copy(t_w, sorted_w);
    k.copy(ids_w, from_w);
    k.finish()
}
