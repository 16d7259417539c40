//! A kernel that scans in every way.

use super::kernels::{K, n};
use zellige_ir::{DType, Func, OpKind, ScanOp, Scope};

/// Sums and maxima of lines along the last axis (`along` 1) or the first, from either end, with and without each element.
pub fn scanning(shape: [usize; 2], along: usize, threads: usize) -> Func {
    let extents = shape.map(n);
    let mut k = K::new("scanning");
    let x = k.tensor("x", DType::I32, &extents);
    let ways = [false, true].map(|reverse| [false, true].map(|exclusive| (reverse, exclusive)));
    let ways: Vec<_> = ScanOp::ALL.iter().flat_map(|&op| ways.concat().into_iter().map(move |w| (op, w))).collect();
    let outs: Vec<_> = (0..ways.len()).map(|i| k.output(&format!("out{i}"), DType::I32, &extents)).collect();
    k.one_block(threads);
    let (from, to) = (k.alloc(Scope::Shared, DType::I32, &shape), k.alloc(Scope::Shared, DType::I32, &shape));
    let (x_w, from_w, to_w) = (k.whole(x), k.whole(from), k.whole(to));
    k.copy(x_w, from_w.clone());
    for (out, (op, (reverse, exclusive))) in outs.into_iter().zip(ways) {
        let (src, dst) = (from_w.clone(), to_w.clone());
        k.line().append(OpKind::Scan { op, src, dst, axis: along as u32, reverse, exclusive });
        let out_w = k.whole(out);
        k.copy(to_w.clone(), out_w);
    }
    k.finish()
}
