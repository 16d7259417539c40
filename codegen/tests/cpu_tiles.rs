//! Tile ops and control flow as machine code against the interpreter: whole tiles, edges of tensors, transposed windows.

mod common;

use common::{Rng, check};
use zellige_ir::interp::{Arg, TensorArg};
use zellige_ir::*;

fn fixed(shape: &[usize]) -> Vec<Extent> {
    shape.iter().map(|n| Extent::Static(*n)).collect()
}

/// A kernel with tensors of the given types and static shapes; the last is written.
fn kernel(tensors: &[(DType, &[usize])], body: impl FnOnce(&mut FuncBuilder, &[Buffer], &[Value])) -> Func {
    kernel_on_grid(tensors, &[1], body)
}

fn kernel_on_grid(
    tensors: &[(DType, &[usize])],
    grid: &[i64],
    body: impl FnOnce(&mut FuncBuilder, &[Buffer], &[Value]),
) -> Func {
    let mut b = FuncBuilder::new("k", Span::unknown());
    let buffers: Vec<Buffer> = tensors
        .iter()
        .enumerate()
        .map(|(i, (t, shape))| b.tensor(&format!("t{i}"), *t, fixed(shape), Access::Write))
        .collect();
    let extents: Vec<Value> = grid.iter().map(|n| b.index(*n)).collect();
    let ids = b.grid(&extents, 64);
    body(&mut b, &buffers, &ids);
    b.finish()
}

fn args(tensors: &[(DType, &[usize])], seed: u64) -> Vec<Arg> {
    let mut rng = Rng(seed);
    tensors.iter().map(|(t, shape)| rng.simple(*t, shape).into()).collect()
}

fn check_kernel(tensors: &[(DType, &[usize])], grid: &[i64], body: impl FnOnce(&mut FuncBuilder, &[Buffer], &[Value])) {
    check(&kernel_on_grid(tensors, grid, body), &args(tensors, 99));
}

/// Copies a tensor into a new tile of the same shape.
fn load_tile(b: &mut FuncBuilder, scope: Scope, dtype: DType, from: Buffer) -> Buffer {
    let shape = b.func().buffers[from].static_shape().expect("static");
    let tile = b.alloc(scope, dtype, &shape);
    let (src, dst) = (b.whole(from), b.whole(tile));
    b.copy(src, dst);
    tile
}

fn store_tile(b: &mut FuncBuilder, tile: Buffer, to: Buffer) {
    let (src, dst) = (b.whole(tile), b.whole(to));
    b.copy(src, dst);
}

const ELEMENTS: [DType; 17] = [
    DType::Bool,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
    DType::F8E4M3,
    DType::F8E5M2,
    DType::F4E2M1,
    DType::E8M0,
];

#[test]
fn copies_of_every_type_through_every_scope() {
    for ty in ELEMENTS {
        for (scope, shape) in [(Scope::Shared, &[5, 22][..]), (Scope::Fragment, &[64]), (Scope::Local, &[2, 3, 6])] {
            let t: &[(DType, &[usize])] = &[(ty, shape), (ty, shape)];
            check_kernel(t, &[1], |b, t, _| {
                let tile = load_tile(b, scope, ty, t[0]);
                store_tile(b, tile, t[1]);
            });
        }
    }
}

#[test]
fn copies_convert() {
    for (from, to) in [
        (DType::F32, DType::BF16),
        (DType::BF16, DType::F32),
        (DType::F32, DType::F8E4M3),
        (DType::F8E4M3, DType::F32),
        (DType::F4E2M1, DType::BF16),
        (DType::F32, DType::F4E2M1),
        (DType::I32, DType::F32),
        (DType::I64, DType::I8),
        (DType::F64, DType::F16),
    ] {
        let t: &[(DType, &[usize])] = &[(from, &[7, 18]), (to, &[7, 18])];
        check_kernel(t, &[1], |b, t, _| {
            let tile = load_tile(b, Scope::Shared, to, t[0]);
            store_tile(b, tile, t[1]);
        });
    }
}

#[test]
fn copies_at_edges_pad_and_skip() {
    for ty in [DType::F32, DType::BF16, DType::I8, DType::I64, DType::F4E2M1] {
        for shape in [[10, 14], [8, 16], [9, 32]] {
            let t: &[(DType, &[usize])] = &[(ty, &shape), (ty, &shape)];
            check_kernel(t, &[2, 2], |b, t, ids| {
                // 2 x 2 tiles of 8 x 16 shifted by -3 rows and -2 columns.
                let (rows, cols) = (b.index(8), b.index(16));
                let (r, c) = (b.mul(ids[1], rows), b.mul(ids[0], cols));
                let (three, two) = (b.index(3), b.index(2));
                let (r, c) = (b.sub(r, three), b.sub(c, two));
                let tile = b.alloc(Scope::Shared, ty, &[8, 16]);
                let (src, dst) = (b.window(t[0], &[r, c], &[8, 16]), b.whole(tile));
                let pad = Const::from_f64(ty, 2.0);
                b.append(OpKind::Copy { src, dst, pad });
                let (src, dst) = (b.whole(tile), b.window(t[1], &[r, c], &[8, 16]));
                b.copy(src, dst);
            });
        }
    }
}

#[test]
fn transposed_windows_and_fixed_axes() {
    for ty in [DType::F32, DType::BF16, DType::U8] {
        let t: &[(DType, &[usize])] = &[(ty, &[3, 9, 20]), (ty, &[20, 9])];
        check_kernel(t, &[3], |b, t, ids| {
            let zero = b.index(0);
            let tile = b.alloc(Scope::Fragment, ty, &[20, 9]);
            let mut src = b.window(t[0], &[ids[0], zero, zero], &[9, 20]);
            src = src.transposed();
            let dst = b.whole(tile);
            b.copy(src, dst);
            let last = b.index(2);
            let is_last = b.cmp(CmpOp::Eq, ids[0], last);
            b.begin_if(is_last);
            store_tile(b, tile, t[1]);
            b.close();
        });
    }
}

#[test]
fn fills() {
    let t: &[(DType, &[usize])] = &[(DType::BF16, &[6, 11])];
    check_kernel(t, &[1], |b, t, _| {
        let (v, one) = (b.constant(Const::from_f64(DType::BF16, 1.5)), b.index(1));
        let dst = b.window(t[0], &[one, one], &[4, 16]);
        b.append(OpKind::Fill { dst, value: v });
    });
}

#[test]
fn gather_and_scatter_rows() {
    let t: &[(DType, &[usize])] =
        &[(DType::F32, &[6, 10]), (DType::I32, &[8]), (DType::F32, &[8, 10]), (DType::F32, &[9, 10])];
    let func = kernel(t, |b, t, _| {
        let (one, zero) = (b.index(1), b.index(0));
        let tile = b.alloc(Scope::Shared, DType::F32, &[8, 10]);
        let src = b.window(t[0], &[one, zero], &[6, 10]);
        let (index, dst) = (b.whole(t[1]), b.whole(tile));
        b.append(OpKind::Gather { src, index: index.clone(), dst: dst.clone(), pad: Const::f32(7.0) });
        store_tile(b, tile, t[2]);
        let to = b.window(t[3], &[one, zero], &[8, 10]);
        b.append(OpKind::Scatter { src: dst, dst: to, index });
    });
    let mut args = args(t, 5);
    args[1] = TensorArg::from_f64(DType::I32, &[8], &[3.0, -1.0, 0.0, 5.0, 100.0, 4.0, 2.0, 7.0]).into();
    check(&func, &args);
}

#[test]
fn reductions_along_every_axis() {
    let ops = ReduceOp::ALL;
    for &op in ops {
        for ty in ELEMENTS {
            let fits = match op {
                ReduceOp::Sum | ReduceOp::Max | ReduceOp::Min | ReduceOp::ArgMax | ReduceOp::ArgMin => {
                    ty.is_arithmetic()
                }
                ReduceOp::AbsMax => ty.is_float() && ty.is_arithmetic() || ty.is_signed_int(),
                ReduceOp::And | ReduceOp::Or | ReduceOp::Xor => ty.is_int() || ty == DType::Bool,
            };
            if !fits {
                continue;
            }
            let arg = matches!(op, ReduceOp::ArgMax | ReduceOp::ArgMin);
            let out = if arg { DType::I32 } else { ty };
            for axis in 0..3usize {
                let shape = [3, 21, 23];
                let mut rest = shape.to_vec();
                rest.remove(axis);
                let t: &[(DType, &[usize])] = &[(ty, &shape), (out, &rest), (out, &rest)];
                check_kernel(t, &[1], |b, t, _| {
                    let tile = load_tile(b, Scope::Fragment, ty, t[0]);
                    let r = load_tile(b, Scope::Fragment, out, t[1]);
                    let (src, dst) = (b.whole(tile), b.whole(r));
                    let accumulate = !arg && axis != 1;
                    b.append(OpKind::Reduce { op, src, dst, axis: axis as u32, accumulate });
                    store_tile(b, r, t[2]);
                });
            }
        }
    }
}

#[test]
fn reductions_of_special_values() {
    for &op in &[ReduceOp::Max, ReduceOp::Min, ReduceOp::AbsMax, ReduceOp::ArgMax, ReduceOp::ArgMin] {
        for ty in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let out = if matches!(op, ReduceOp::ArgMax | ReduceOp::ArgMin) { DType::I32 } else { ty };
            let t: &[(DType, &[usize])] = &[(ty, &[8, 19]), (out, &[8])];
            let func = kernel(t, |b, t, _| {
                let (src, dst) = (b.whole(t[0]), b.whole(t[1]));
                b.append(OpKind::Reduce { op, src, dst, axis: 1, accumulate: false });
            });
            let mut rng = Rng(3);
            let special = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
            let values: Vec<f64> = (0..8 * 19)
                .map(|i| match i / 19 {
                    0 => f64::NAN,
                    1 => -0.0,
                    2 => [0.0, -0.0][rng.below(2) as usize],
                    3 => [-0.0, f64::NAN][rng.below(2) as usize],
                    _ => special[rng.below(5) as usize],
                })
                .collect();
            let args = [TensorArg::from_f64(ty, &[8, 19], &values).into(), TensorArg::zeros(out, &[8]).into()];
            check(&func, &args);
        }
    }
}

#[test]
fn reduction_of_the_edge_of_a_tensor() {
    let t: &[(DType, &[usize])] = &[(DType::F32, &[10, 13]), (DType::F32, &[10])];
    check_kernel(t, &[2], |b, t, ids| {
        let (eight, zero) = (b.index(8), b.index(0));
        let row = b.mul(ids[0], eight);
        let src = b.window(t[0], &[row, zero], &[8, 16]);
        let dst = b.window(t[1], &[row], &[8]);
        b.append(OpKind::Reduce { op: ReduceOp::Sum, src, dst, axis: 1, accumulate: false });
    });
}

#[test]
fn scans() {
    for &op in ScanOp::ALL {
        for (reverse, exclusive) in [(false, false), (true, false), (false, true), (true, true)] {
            for axis in 0..2u32 {
                for (ty, out) in [
                    (DType::F32, DType::F32),
                    (DType::I32, DType::I32),
                    (DType::BF16, DType::F32),
                    (DType::I8, DType::I64),
                ] {
                    let t: &[(DType, &[usize])] = &[(ty, &[6, 13]), (out, &[6, 13])];
                    check_kernel(t, &[1], |b, t, _| {
                        let tile = load_tile(b, Scope::Fragment, ty, t[0]);
                        let r = b.alloc(Scope::Fragment, out, &[6, 13]);
                        let (src, dst) = (b.whole(tile), b.whole(r));
                        b.append(OpKind::Scan { op, src, dst, axis, reverse, exclusive });
                        store_tile(b, r, t[1]);
                    });
                }
            }
        }
    }
}

#[test]
fn topk_and_sort() {
    let mut rng = Rng(11);
    for ty in ELEMENTS {
        for flag in [false, true] {
            let n = 29;
            let t: &[(DType, &[usize])] =
                &[(ty, &[3, n]), (ty, &[3, 5]), (DType::I32, &[3, 5]), (DType::I32, &[3, n]), (ty, &[3, n])];
            let func = kernel(t, |b, t, _| {
                let tile = load_tile(b, Scope::Shared, ty, t[0]);
                let payload = load_tile(b, Scope::Shared, DType::I32, t[3]);
                let (src, values, indices) = (b.whole(tile), b.whole(t[1]), b.whole(t[2]));
                b.append(OpKind::TopK { src: src.clone(), values, indices, largest: flag });
                let payload_w = b.whole(payload);
                b.append(OpKind::Sort { keys: src, payload: Some(payload_w), descending: flag });
                store_tile(b, payload, t[3]);
                store_tile(b, tile, t[4]);
            });
            let mut args = args(t, 17);
            // Few distinct values, so that ties occur; NaN and zeros of both signs among them.
            let pool: Vec<f64> = if ty.is_float() {
                vec![0.0, -0.0, f64::NAN, 1.0, -1.0, f64::INFINITY, 3.0, -2.0, 0.5]
            } else {
                vec![0.0, 1.0, -1.0, 5.0, 100.0, -100.0, 1e12, -1e12]
            };
            let values: Vec<f64> = (0..3 * n).map(|_| pool[rng.below(pool.len() as u64) as usize]).collect();
            args[0] = TensorArg::from_f64(ty, &[3, n], &values).into();
            check(&func, &args);
        }
    }
}

#[test]
fn shuffles() {
    for &op in ShuffleOp::ALL {
        for amount in [0, 1, 5, 16, 31, -3] {
            let t: &[(DType, &[usize])] = &[(DType::F32, &[2, 77]), (DType::F32, &[2, 77])];
            check_kernel(t, &[1], |b, t, _| {
                let tile = load_tile(b, Scope::Fragment, DType::F32, t[0]);
                let w = b.whole(tile);
                let amount = b.index(amount);
                // In place.
                b.append(OpKind::Shuffle { op, src: w.clone(), dst: w, amount });
                store_tile(b, tile, t[1]);
            });
        }
    }
}

fn gemm_case(
    a_ty: DType,
    b_ty: DType,
    c_ty: DType,
    (m, n, k): (usize, usize, usize),
    (ta, tb): (bool, bool),
    p: GemmPrecision,
) {
    let a_shape = if ta { [k, m] } else { [m, k] };
    let b_shape = if tb { [n, k] } else { [k, n] };
    let t: &[(DType, &[usize])] = &[(a_ty, &a_shape), (b_ty, &b_shape), (c_ty, &[m, n]), (c_ty, &[m, n])];
    check_kernel(t, &[1], |b, t, _| {
        let a = load_tile(b, Scope::Shared, a_ty, t[0]);
        let bb = load_tile(b, Scope::Shared, b_ty, t[1]);
        let acc = load_tile(b, Scope::Fragment, c_ty, t[2]);
        let (mut wa, mut wb, wc) = (b.whole(a), b.whole(bb), b.whole(acc));
        if ta {
            wa = wa.transposed();
        }
        if tb {
            wb = wb.transposed();
        }
        b.append(OpKind::Gemm { a: wa, b: wb, acc: wc, precision: p });
        store_tile(b, acc, t[3]);
    });
}

#[test]
fn gemms_of_every_shape_and_type() {
    for shape in [(16, 16, 16), (13, 21, 9), (1, 8, 4), (6, 8, 5), (7, 3, 2), (24, 40, 33), (1, 1, 1), (5, 64, 16)] {
        for transposed in [(false, false), (false, true), (true, false), (true, true)] {
            for (a, b, c) in [
                (DType::F32, DType::F32, DType::F32),
                (DType::BF16, DType::BF16, DType::F32),
                (DType::I8, DType::I8, DType::I32),
            ] {
                gemm_case(a, b, c, shape, transposed, GemmPrecision::Exact);
            }
        }
    }
    for (a, b, c) in [
        (DType::F16, DType::F16, DType::F32),
        (DType::F8E4M3, DType::F8E4M3, DType::F32),
        (DType::BF16, DType::F8E4M3, DType::F32),
        (DType::F4E2M1, DType::BF16, DType::F32),
        (DType::BF16, DType::BF16, DType::BF16),
        (DType::U8, DType::I8, DType::I32),
        (DType::F64, DType::F64, DType::F64),
    ] {
        gemm_case(a, b, c, (10, 12, 11), (false, true), GemmPrecision::Exact);
        gemm_case(a, b, c, (10, 12, 11), (true, false), GemmPrecision::Exact);
    }
    gemm_case(DType::F32, DType::F32, DType::F32, (10, 12, 11), (false, true), GemmPrecision::Tf32);
}

#[test]
fn gemm_of_windows_of_larger_tiles() {
    let t: &[(DType, &[usize])] = &[(DType::F32, &[2, 20, 32]), (DType::F32, &[32, 24]), (DType::F32, &[20, 30])];
    check_kernel(t, &[2], |b, t, ids| {
        let a = load_tile(b, Scope::Shared, DType::F32, t[0]);
        let w = load_tile(b, Scope::Shared, DType::F32, t[1]);
        let (zero, four) = (b.index(0), b.index(4));
        let acc = b.alloc(Scope::Fragment, DType::F32, &[20, 30]);
        let z = b.constant(Const::f32(0.0));
        let dst = b.whole(acc);
        b.append(OpKind::Fill { dst, value: z });
        let a = b.window(a, &[ids[0], four, zero], &[12, 32]);
        let w = b.whole(w);
        let c = b.window(acc, &[four, four], &[12, 24]);
        b.append(OpKind::Gemm { a, b: w, acc: c, precision: GemmPrecision::Exact });
        let last = b.cmp(CmpOp::Ne, ids[0], zero);
        b.begin_if(last);
        store_tile(b, acc, t[2]);
        b.close();
    });
}

/// `y[i, j] = x[j, i] * s[i / 4, j / 8] + i` with dynamic extents, so that tiles stick out.
#[test]
fn dynamic_extents_in_parallel_loops() {
    let mut b = FuncBuilder::new("dynamic", Span::unknown());
    let (m, n) = (b.func_mut().add_dim("m"), b.func_mut().add_dim("n"));
    let (dm, dn) = (Extent::Dynamic(m), Extent::Dynamic(n));
    let x = b.tensor("x", DType::F32, vec![dn, dm], Access::Read);
    let y = b.tensor("y", DType::BF16, vec![dm, dn], Access::Write);
    let (vm, vn) = (b.func().dims[m].value, b.func().dims[n].value);
    let (bm, bn) = (b.index(8), b.index(16));
    let (gm, gn) = (b.ceildiv(vm, bm), b.ceildiv(vn, bn));
    let ids = b.grid(&[gn, gm], 64);
    let ij = b.begin_for(LoopKind::Parallel, &[bm, bn]);
    let (r, c) = (b.mul(ids[1], bm), b.mul(ids[0], bn));
    let (i, j) = (b.add(r, ij[0]), b.add(c, ij[1]));
    let v = b.load(x, &[j, i]);
    let fi = b.cast(i, DType::F32);
    let v = b.add(v, fi);
    let v = b.cast(v, DType::BF16);
    b.store(y, &[i, j], v);
    b.close();
    let func = b.finish();
    for (m, n) in [(8, 16), (16, 32), (7, 5), (9, 33), (1, 1), (24, 17)] {
        let mut rng = Rng(m as u64 * 100 + n as u64);
        check(&func, &[rng.simple(DType::F32, &[n, m]).into(), TensorArg::zeros(DType::BF16, &[m, n]).into()]);
    }
}

#[test]
fn strided_tensors_and_scalars() {
    let mut b = FuncBuilder::new("strided", Span::unknown());
    let n = b.func_mut().add_dim("n");
    let data = BufferData {
        name: "x".into(),
        dtype: DType::F32,
        scope: Scope::Global,
        shape: vec![Extent::Dynamic(n), Extent::Static(10)],
        strides: Strides::Dynamic,
        span: Span::unknown(),
    };
    let x = b.func_mut().add_tensor(data, Access::Write);
    let scale = b.func_mut().add_scalar("scale", DType::BF16);
    let offset = b.func_mut().add_scalar("offset", DType::I8);
    let vn = b.func().dims[n].value;
    let ids = b.grid(&[vn], 32);
    let ten = b.index(10);
    let j = b.begin_for(LoopKind::Parallel, &[ten])[0];
    let v = b.load(x, &[ids[0], j]);
    let s = b.cast(scale, DType::F32);
    let o = b.cast(offset, DType::F32);
    let v = b.fma(v, s, o);
    b.store(x, &[ids[0], j], v);
    b.close();
    let func = b.finish();
    let mut rng = Rng(8);
    let mut t = rng.simple(DType::F32, &[4, 16]);
    t.shape = vec![4, 10];
    let args = [t.into(), Const::from_f64(DType::BF16, -1.5).into(), Const::from_i64(DType::I8, -7).into()];
    check(&func, &args);
}

#[test]
fn control_flow() {
    // Collatz steps by a device while loop; rows in a persistent loop; branches on the data.
    let t: &[(DType, &[usize])] = &[(DType::I32, &[23]), (DType::I32, &[23])];
    check_kernel(t, &[3], |b, t, _| {
        let n = b.index(23);
        let i = b.begin_for(LoopKind::Persistent, &[n])[0];
        let state = b.alloc(Scope::Local, DType::I32, &[2]);
        let (zero, one) = (b.index(0), b.index(1));
        let (c0, c1, c2, c3) = (
            b.constant(Const::i32(0)),
            b.constant(Const::i32(1)),
            b.constant(Const::i32(2)),
            b.constant(Const::i32(3)),
        );
        let x = b.load(t[0], &[i]);
        let x = b.unary(UnaryOp::Abs, x);
        let x = b.add(x, c1);
        b.store(state, &[zero], x);
        b.store(state, &[one], c0);
        let before = b.func_mut().add_region();
        let body = b.func_mut().add_region();
        b.open(before);
        let x = b.load(state, &[zero]);
        let cond = b.cmp(CmpOp::Gt, x, c1);
        b.close();
        b.append(OpKind::While { before, cond, body });
        b.open(body);
        let x = b.load(state, &[zero]);
        let odd = b.binary(BinaryOp::And, x, c1);
        let is_odd = b.cmp(CmpOp::Ne, odd, c0);
        let els = b.begin_if(is_odd);
        let y = b.mul(x, c3);
        let y = b.add(y, c1);
        b.store(state, &[zero], y);
        b.close();
        b.open(els);
        let y = b.binary(BinaryOp::Div, x, c2);
        b.store(state, &[zero], y);
        b.close();
        let s = b.load(state, &[one]);
        let s = b.add(s, c1);
        b.store(state, &[one], s);
        b.close();
        let s = b.load(state, &[one]);
        b.store(t[1], &[i], s);
        b.close();
    });
}

#[test]
fn branches_and_serial_loops_in_parallel_bodies() {
    let t: &[(DType, &[usize])] = &[(DType::F32, &[12, 20]), (DType::F32, &[20]), (DType::F32, &[12, 20])];
    check_kernel(t, &[1], |b, t, _| {
        let (m, n) = (b.index(12), b.index(20));
        let z = b.constant(Const::f32(0.0));
        // y[j] = sum over positive x[i, j], by a serial loop inside.
        let acc = b.alloc(Scope::Fragment, DType::F32, &[20]);
        let j = b.begin_for(LoopKind::Parallel, &[n])[0];
        b.store(acc, &[j], z);
        let i = b.begin_for(LoopKind::Serial, &[m])[0];
        let x = b.load(t[0], &[i, j]);
        let a = b.load(acc, &[j]);
        let positive = b.cmp(CmpOp::Gt, x, z);
        let x = b.select(positive, x, z);
        let a = b.add(a, x);
        b.store(acc, &[j], a);
        b.close();
        b.close();
        store_tile(b, acc, t[1]);
        // A branch that differs between neighbours.
        let ij = b.begin_for(LoopKind::Parallel, &[m, n]);
        let x = b.load(t[0], &[ij[0], ij[1]]);
        let negative = b.cmp(CmpOp::Lt, x, z);
        let els = b.begin_if(negative);
        b.store(t[2], &[ij[0], ij[1]], z);
        b.close();
        b.open(els);
        let y = b.load(t[1], &[ij[1]]);
        b.store(t[2], &[ij[0], ij[1]], y);
        b.close();
        b.close();
    });
}

#[test]
fn linear_indices_in_vectors() {
    // Causal masks, scales shared by groups of elements, reversed and strided accesses.
    let t: &[(DType, &[usize])] = &[(DType::F32, &[9, 32]), (DType::F32, &[9, 4]), (DType::F32, &[9, 32])];
    check_kernel(t, &[1], |b, t, _| {
        let (m, n) = (b.index(9), b.index(32));
        let ij = b.begin_for(LoopKind::Parallel, &[m, n]);
        let (i, j) = (ij[0], ij[1]);
        let (eight, last, three, two) = (b.index(8), b.index(31), b.index(3), b.index(2));
        let group = b.binary(BinaryOp::Div, j, eight);
        let inside = b.binary(BinaryOp::Rem, j, eight);
        let pair = b.binary(BinaryOp::Div, j, two);
        let third = b.binary(BinaryOp::Div, j, three);
        let mirrored = b.sub(last, j);
        let x = b.load(t[0], &[i, mirrored]);
        let s = b.load(t[1], &[i, group]);
        let p = b.load(t[0], &[i, pair]);
        let q = b.load(t[0], &[i, third]);
        let r = b.cast(inside, DType::F32);
        let v = b.fma(x, s, r);
        let v = b.add(v, p);
        let v = b.sub(v, q);
        let shifted = b.add(i, three);
        let visible = b.cmp(CmpOp::Le, j, shifted);
        let z = b.constant(Const::f32(-1.0));
        let v = b.select(visible, v, z);
        b.store(t[2], &[i, j], v);
        b.close();
    });
}

#[test]
fn atomics() {
    for (ty, ops) in [
        (DType::I32, AtomicOp::ALL),
        (DType::U32, AtomicOp::ALL),
        (DType::I64, AtomicOp::ALL),
        (DType::U64, AtomicOp::ALL),
        (DType::F32, &[AtomicOp::Add]),
    ] {
        for &op in ops {
            if op == AtomicOp::Exchange {
                continue;
            }
            let t: &[(DType, &[usize])] = &[(ty, &[40]), (ty, &[3])];
            check_kernel(t, &[2], |b, t, ids| {
                let (twenty, three) = (b.index(22), b.index(5));
                let i = b.begin_for(LoopKind::Parallel, &[twenty])[0];
                let offset = b.mul(ids[0], twenty);
                let at = b.add(offset, i);
                let v = b.load(t[0], &[at]);
                // Positions 3 and 4 are outside.
                let place = b.binary(BinaryOp::Rem, i, three);
                b.atomic(op, t[1], &[place], v);
                b.close();
            });
        }
    }
}

#[test]
fn exchange_returns_the_old_element() {
    let t: &[(DType, &[usize])] = &[(DType::F32, &[8]), (DType::F32, &[8])];
    check_kernel(t, &[1], |b, t, _| {
        let n = b.index(8);
        let i = b.begin_for(LoopKind::Serial, &[n])[0];
        let one = b.constant(Const::f32(1.0));
        let old = b.atomic(AtomicOp::Exchange, t[0], &[i], one);
        b.store(t[1], &[i], old);
        b.close();
    });
}

#[test]
fn prints_and_asserts() {
    let t: &[(DType, &[usize])] = &[(DType::BF16, &[2, 3])];
    check_kernel(t, &[2], |b, t, ids| {
        let tile = load_tile(b, Scope::Shared, DType::BF16, t[0]);
        let c = b.constant(Const::from_i64(DType::I8, -3));
        let mut w = b.whole(tile);
        w = w.transposed();
        b.append(OpKind::Print { message: "tile".into(), values: [ids[0], c].into_iter().collect(), window: Some(w) });
        let two = b.index(2);
        let cond = b.cmp(CmpOp::Lt, ids[0], two);
        b.append(OpKind::Assert { cond, message: "few blocks".into() });
    });
}

#[test]
fn a_failed_assertion_names_its_block() {
    use zellige_codegen::cpu::{
        CpuOptions, FailureKind,
        run::{RunError, run},
    };
    let t: &[(DType, &[usize])] = &[(DType::F32, &[4])];
    let func = kernel_on_grid(t, &[5, 2], |b, _, ids| {
        let three = b.index(3);
        let cond = b.cmp(CmpOp::Ne, ids[0], three);
        b.append(OpKind::Assert { cond, message: "not three".into() });
    });
    let Err(RunError::Failed(f)) = run(&func, &CpuOptions::default(), &mut args(t, 1)) else { panic!("no failure") };
    assert_eq!((f.block, f.site.kind), (3, FailureKind::Assert { message: "not three".into() }));
}

#[test]
fn bounds_checks_find_accesses_outside_tiles() {
    use zellige_codegen::cpu::{
        CpuOptions, FailureKind,
        run::{RunError, run},
    };
    let t: &[(DType, &[usize])] = &[(DType::F32, &[4])];
    let func = kernel(t, |b, t, _| {
        let tile = b.alloc(Scope::Shared, DType::F32, &[8]);
        let nine = b.index(9);
        let i = b.begin_for(LoopKind::Parallel, &[nine])[0];
        let zero = b.index(0);
        let v = b.load(t[0], &[zero]);
        b.store(tile, &[i], v);
        b.close();
    });
    let Err(RunError::Failed(f)) = run(&func, &CpuOptions { check_bounds: true }, &mut args(t, 1)) else {
        panic!("no failure")
    };
    assert!(matches!(f.site.kind, FailureKind::OutOfBounds { .. }));
}

#[test]
fn block_order_does_not_change_results() {
    let t: &[(DType, &[usize])] = &[(DType::I32, &[5, 7])];
    let mut func = kernel_on_grid(t, &[7, 5], |b, t, ids| {
        let v = b.cast(ids[0], DType::I32);
        let w = b.cast(ids[1], DType::I32);
        let hundred = b.constant(Const::i32(100));
        let w = b.mul(w, hundred);
        let v = b.add(v, w);
        b.store(t[0], &[ids[1], ids[0]], v);
    });
    func.block_order = BlockOrder::Panel(2);
    check(&func, &args(t, 1));
}

#[test]
fn tiles_share_memory_when_not_live_together() {
    use zellige_codegen::cpu::{CpuOptions, compile};
    let t: &[(DType, &[usize])] = &[(DType::F32, &[64, 64]), (DType::F32, &[64, 64])];
    let func = kernel(t, |b, t, _| {
        for _ in 0..4 {
            let tile = load_tile(b, Scope::Shared, DType::F32, t[0]);
            store_tile(b, tile, t[1]);
        }
    });
    let kernel = compile(&func, &CpuOptions::default()).expect("compiles");
    assert!(kernel.arena_bytes < 2 * 64 * 64 * 4, "{}", kernel.arena_bytes);
    check(&func, &args(t, 1));
}

#[test]
fn scalars_of_their_own_in_parallel_iterations() {
    // Each iteration counts down from its own number; neighbours leave the branch at different times.
    let t: &[(DType, &[usize])] = &[(DType::I32, &[5, 19]), (DType::I32, &[5, 19]), (DType::F32, &[5, 19])];
    check_kernel(t, &[1], |b, t, _| {
        let (m, n, steps) = (b.index(5), b.index(19), b.index(6));
        let ij = b.begin_for(LoopKind::Parallel, &[m, n]);
        let count = b.alloc(Scope::Local, DType::I32, &[]);
        let seen = b.alloc(Scope::Local, DType::F32, &[6]);
        let (c0, c1) = (b.constant(Const::i32(0)), b.constant(Const::i32(1)));
        let x = b.load(t[0], &[ij[0], ij[1]]);
        b.store(count, &[], x);
        let s = b.begin_for(LoopKind::Serial, &[steps])[0];
        let c = b.load(count, &[]);
        let positive = b.cmp(CmpOp::Gt, c, c0);
        let els = b.begin_if(positive);
        let less = b.sub(c, c1);
        b.store(count, &[], less);
        b.close();
        b.open(els);
        let more = b.add(c, c1);
        b.store(count, &[], more);
        b.close();
        let c = b.load(count, &[]);
        let f = b.cast(c, DType::F32);
        b.store(seen, &[s], f);
        b.close();
        let c = b.load(count, &[]);
        b.store(t[1], &[ij[0], ij[1]], c);
        // A place of its own in each iteration.
        let six = b.index(6);
        let place = b.binary(BinaryOp::Rem, ij[1], six);
        let f = b.load(seen, &[place]);
        b.store(t[2], &[ij[0], ij[1]], f);
        b.close();
    });
}
