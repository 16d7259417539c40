//! What the interpreter computes, and what it objects to.

use zellige_ir::interp::{AccessKind, Arg, InterpError, InterpErrorKind, Interpreter, TensorArg};
use zellige_ir::*;

fn at_line(line: u32) -> Span {
    Span { file: "kernel.rs".into(), line, col: 5 }
}

/// A kernel of one block (unless `grid` is called by `build`) over the given tensors.
struct Kernel {
    b: FuncBuilder,
}

impl Kernel {
    fn new() -> Kernel {
        Kernel { b: FuncBuilder::new("test", Span::unknown()) }
    }

    fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Buffer {
        self.b.tensor(name, dtype, shape.iter().map(|&n| Extent::Static(n)).collect(), Access::Write)
    }

    fn one_block(&mut self) {
        let one = self.b.index(1);
        self.b.grid(&[one], 128);
    }

    fn run(self, args: &mut [Arg]) -> Vec<InterpError> {
        let func = self.b.finish();
        let copy = args.to_vec();
        let first = Interpreter::new(&func).run(args);
        // The order of iterations must not matter.
        for seed in 0..4 {
            let mut again = copy.clone();
            let second = Interpreter::new(&func).seed(seed).run(&mut again);
            assert_eq!(first.is_ok(), second.is_ok(), "{first:?} in order, {second:?} shuffled");
            if first.is_ok() {
                assert_eq!(args, &again[..]);
            }
        }
        first.err().unwrap_or_default()
    }
}

fn tensor(dtype: DType, shape: &[usize], values: &[f64]) -> Arg {
    TensorArg::from_f64(dtype, shape, values).into()
}

fn values(arg: &Arg) -> Vec<f64> {
    arg.as_tensor().unwrap().to_f64()
}

fn ramp(n: usize) -> Vec<f64> {
    (0..n).map(|i| i as f64).collect()
}

#[test]
fn gemm_multiplies_and_pads() {
    // 3x5 by 5x2 in tiles of 4x8 and 8x2, the edges padded with zeros and not written back.
    let mut k = Kernel::new();
    let a = k.tensor("a", DType::BF16, &[3, 5]);
    let bt = k.tensor("b", DType::BF16, &[2, 5]);
    let c = k.tensor("c", DType::F32, &[3, 2]);
    k.one_block();
    let b = &mut k.b;
    let zero = b.index(0);
    let (sa, sb) = (b.alloc(Scope::Shared, DType::BF16, &[4, 8]), b.alloc(Scope::Shared, DType::BF16, &[2, 8]));
    let acc = b.alloc(Scope::Fragment, DType::F32, &[4, 2]);
    let (wa, wb, wacc) = (b.whole(sa), b.whole(sb), b.whole(acc));
    let value = b.constant(Const::f32(1.0));
    b.append(OpKind::Fill { dst: wacc.clone(), value });
    let ga = b.window(a, &[zero, zero], &[4, 8]);
    b.copy(ga, wa.clone());
    let gb = b.window(bt, &[zero, zero], &[2, 8]);
    b.copy(gb, wb.clone());
    let precision = GemmPrecision::Exact;
    b.append(OpKind::Gemm { a: wa, b: wb.transposed(), acc: wacc.clone(), precision });
    let gc = b.window(c, &[zero, zero], &[4, 2]);
    b.copy(wacc, gc);

    let mut args = [
        tensor(DType::BF16, &[3, 5], &ramp(15)),
        tensor(DType::BF16, &[2, 5], &ramp(10)),
        TensorArg::uninit(DType::F32, &[3, 2]).into(),
    ];
    assert_eq!(k.run(&mut args), []);
    // Row i of a is 5i..5i+5, row j of b is 5j..5j+5.
    let expect: Vec<f64> = (0..3)
        .flat_map(|i| (0..2).map(move |j| 1.0 + (0..5).map(|l| f64::from((5 * i + l) * (5 * j + l))).sum::<f64>()))
        .collect();
    assert_eq!(values(&args[2]), expect);
}

/// A kernel that copies `x` to a fragment, applies `op` and copies the fragments it fills to `outs`.
fn apply(
    x: (DType, &[usize], &[f64]),
    outs: &[(DType, &[usize])],
    op: impl FnOnce(&mut FuncBuilder, Window, &[Window]),
) -> Vec<Vec<f64>> {
    let mut k = Kernel::new();
    let src = k.tensor("x", x.0, x.1);
    let dsts: Vec<Buffer> = outs.iter().map(|(ty, shape)| k.tensor("y", *ty, shape)).collect();
    k.one_block();
    let b = &mut k.b;
    let tile = b.alloc(Scope::Fragment, x.0, x.1);
    let (src, tile) = (b.whole(src), b.whole(tile));
    b.copy(src, tile.clone());
    let tiles: Vec<Window> = outs
        .iter()
        .map(|(ty, shape)| {
            let t = b.alloc(Scope::Fragment, *ty, shape);
            b.whole(t)
        })
        .collect();
    op(b, tile, &tiles);
    for (t, d) in tiles.into_iter().zip(dsts) {
        let d = b.whole(d);
        b.copy(t, d);
    }
    let mut args = vec![tensor(x.0, x.1, x.2)];
    args.extend(outs.iter().map(|(ty, shape)| Arg::from(TensorArg::uninit(*ty, shape))));
    assert_eq!(k.run(&mut args), []);
    args[1..].iter().map(values).collect()
}

#[test]
fn reductions() {
    let x = [3.0, -7.0, f64::NAN, 2.0, 5.0, 5.0];
    let cases: [(ReduceOp, [f64; 2]); 5] = [
        (ReduceOp::Max, [3.0, 5.0]),
        (ReduceOp::Min, [-7.0, 2.0]),
        (ReduceOp::AbsMax, [7.0, 5.0]),
        (ReduceOp::ArgMax, [0.0, 1.0]),
        (ReduceOp::ArgMin, [1.0, 0.0]),
    ];
    for (f, expect) in cases {
        let ty = if matches!(f, ReduceOp::ArgMax | ReduceOp::ArgMin) { DType::I32 } else { DType::F32 };
        let out = apply((DType::F32, &[2, 3], &x), &[(ty, &[2])], |b, src, dst| {
            b.append(OpKind::Reduce { op: f, src, dst: dst[0].clone(), axis: 1, accumulate: false });
        });
        assert_eq!(out[0], expect, "{f}");
    }
    // Along the first axis, in f32 whatever the destination: 256 + 1 is no bf16, but 256 + 1 + 1 is.
    let out = apply((DType::BF16, &[3, 1], &[256.0, 1.0, 1.0]), &[(DType::BF16, &[1])], |b, src, dst| {
        b.append(OpKind::Reduce { op: ReduceOp::Sum, src, dst: dst[0].clone(), axis: 0, accumulate: false });
    });
    assert_eq!(out[0], [258.0]);
}

#[test]
fn scans() {
    let x = ramp(4);
    for (reverse, exclusive, expect) in [
        (false, false, [0.0, 1.0, 3.0, 6.0]),
        (false, true, [0.0, 0.0, 1.0, 3.0]),
        (true, false, [6.0, 6.0, 5.0, 3.0]),
        (true, true, [6.0, 5.0, 3.0, 0.0]),
    ] {
        let out = apply((DType::I32, &[4], &x), &[(DType::I32, &[4])], |b, src, dst| {
            b.append(OpKind::Scan { op: ScanOp::Sum, src, dst: dst[0].clone(), axis: 0, reverse, exclusive });
        });
        assert_eq!(out[0], expect, "reverse {reverse} exclusive {exclusive}");
    }
}

#[test]
fn order_is_stable_and_nan_is_last() {
    let x = [1.0, 4.0, f64::NAN, 4.0, 2.0];
    let out = apply((DType::F32, &[5], &x), &[(DType::F32, &[3]), (DType::I32, &[3])], |b, src, dst| {
        b.append(OpKind::TopK { src, values: dst[0].clone(), indices: dst[1].clone(), largest: true });
    });
    assert_eq!(out, [vec![4.0, 4.0, 2.0], vec![1.0, 3.0, 4.0]]);
    let out = apply((DType::F32, &[5], &x), &[(DType::F32, &[5])], |b, src, dst| {
        b.append(OpKind::Sort { keys: src.clone(), payload: None, descending: false });
        b.copy(src, dst[0].clone());
    });
    assert_eq!(out[0][..4], [1.0, 2.0, 4.0, 4.0]);
    assert!(out[0][4].is_nan());
}

#[test]
fn shuffles_stay_in_their_group() {
    let x = ramp(40);
    for (f, amount, at, expect) in [
        (ShuffleOp::Xor, 1, 33, 32.0),
        (ShuffleOp::Up, 2, 32, 32.0),
        (ShuffleOp::Up, 2, 35, 33.0),
        (ShuffleOp::Down, 3, 30, 30.0),
        (ShuffleOp::Down, 3, 36, 39.0),
        (ShuffleOp::Down, 3, 38, 38.0),
        (ShuffleOp::Idx, 5, 20, 5.0),
        (ShuffleOp::Idx, 5, 34, 37.0),
        (ShuffleOp::Idx, 9, 34, 34.0),
    ] {
        let out = apply((DType::F32, &[40], &x), &[(DType::F32, &[40])], |b, src, dst| {
            let amount = b.index(amount);
            b.append(OpKind::Shuffle { op: f, src, dst: dst[0].clone(), amount });
        });
        assert_eq!(out[0][at], expect, "{f} {amount} at {at}");
    }
}

#[test]
fn gather_pads_and_scatter_skips() {
    for scatter in [false, true] {
        let mut k = Kernel::new();
        let x = k.tensor("x", DType::F32, &[4, 2]);
        let index = k.tensor("index", DType::I32, &[4]);
        let y = k.tensor("y", DType::F32, &[4, 2]);
        k.one_block();
        let (x, index, y) = (k.b.whole(x), k.b.whole(index), k.b.whole(y));
        k.b.append(if scatter {
            OpKind::Scatter { src: x, dst: y, index }
        } else {
            OpKind::Gather { src: x, index, dst: y, pad: Const::f32(-1.0) }
        });
        let mut args = [
            tensor(DType::F32, &[4, 2], &ramp(8)),
            tensor(DType::I32, &[4], &[2.0, -1.0, 0.0, 4.0]),
            tensor(DType::F32, &[4, 2], &[9.0; 8]),
        ];
        assert_eq!(k.run(&mut args), []);
        let expect = if scatter {
            [4.0, 5.0, 9.0, 9.0, 0.0, 1.0, 9.0, 9.0]
        } else {
            [4.0, 5.0, -1.0, -1.0, 0.0, 1.0, -1.0, -1.0]
        };
        assert_eq!(values(&args[2]), expect, "scatter: {scatter}");
    }
}

#[test]
fn packed_elements_share_bytes() {
    let out = apply((DType::F4E2M1, &[2, 2], &[0.5, 6.0, -3.0, 1.0]), &[(DType::F32, &[2, 2])], |b, src, dst| {
        b.copy(src, dst[0].clone());
    });
    assert_eq!(out[0], [0.5, 6.0, -3.0, 1.0]);
    assert_eq!(TensorArg::from_f64(DType::F4E2M1, &[2], &[0.5, 6.0]).bytes, [0x71]);
}

#[test]
fn while_persistent_and_dims() {
    // Each of 3 blocks adds its share of 0..m to out[block].
    let mut k = Kernel::new();
    let m = k.b.func_mut().add_dim("m");
    let extent = k.b.func().dims[m].value;
    k.b.tensor("x", DType::F32, vec![Extent::Dynamic(m)], Access::Read);
    let out = k.tensor("out", DType::I64, &[3]);
    let three = k.b.index(3);
    let block = k.b.grid(&[three], 32)[0];
    let b = &mut k.b;
    let local = b.alloc(Scope::Local, DType::I64, &[]);
    let zero = b.constant(Const::zero(DType::I64));
    b.store(local, &[], zero);
    let i = b.begin_for(LoopKind::Persistent, &[extent])[0];
    let (old, new) = (b.load(local, &[]), b.cast(i, DType::I64));
    let sum = b.add(old, new);
    b.store(local, &[], sum);
    b.close();
    // Double it until it exceeds 100.
    let (before, body) = (b.func_mut().add_region(), b.func_mut().add_region());
    b.open(before);
    let (v, hundred) = (b.load(local, &[]), b.constant(Const::from_i64(DType::I64, 100)));
    let cond = b.cmp(CmpOp::Le, v, hundred);
    b.close();
    b.open(body);
    let v = b.load(local, &[]);
    let twice = b.add(v, v);
    b.store(local, &[], twice);
    b.close();
    b.append(OpKind::While { before, cond, body });
    let v = b.load(local, &[]);
    b.store(out, &[block], v);
    let mut args = [tensor(DType::F32, &[10], &[0.0; 10]), TensorArg::uninit(DType::I64, &[3]).into()];
    assert_eq!(k.run(&mut args), []);
    // 0+3+6+9 = 18, 1+4+7 = 12, 2+5+8 = 15.
    assert_eq!(values(&args[1]), [144.0, 192.0, 120.0]);
}

/// The kind and the line of each error, with the lines of its notes.
fn summary(errors: &[InterpError]) -> Vec<(String, u32, Vec<u32>)> {
    errors.iter().map(|e| (e.kind.to_string(), e.span.line, e.notes.iter().map(|n| n.0.line).collect())).collect()
}

#[test]
fn parallel_iterations_may_not_meet() {
    // t[i] = x[i] and, in the same loop, x[i] is read as t[i + shift].
    for (shift, kind, races) in [
        (0, LoopKind::Parallel, false),
        (1, LoopKind::Parallel, true),
        (1, LoopKind::Vectorized, true),
        (1, LoopKind::Serial, false),
    ] {
        let mut k = Kernel::new();
        let x = k.tensor("x", DType::F32, &[8]);
        k.one_block();
        let b = &mut k.b;
        let (n, one) = (b.index(7), b.constant(Const::f32(1.0)));
        let i = b.begin_for(kind, &[n])[0];
        b.set_span(at_line(10));
        b.store(x, &[i], one);
        b.set_span(at_line(11));
        let s = b.index(shift);
        let j = b.add(i, s);
        b.load(x, &[j]);
        b.close();
        let errors = k.run(&mut [tensor(DType::F32, &[8], &[0.0; 8])]);
        if !races {
            assert_eq!(errors, []);
            continue;
        }
        let expect = "`x` [1] is written by one iteration and read by another: the result depends on their order";
        assert_eq!(summary(&errors), [(expect.to_owned(), 10, vec![11])]);
    }
}

#[test]
fn a_later_loop_may_read_what_an_earlier_one_wrote() {
    let mut k = Kernel::new();
    let x = k.tensor("x", DType::F32, &[8]);
    k.one_block();
    let b = &mut k.b;
    let (two, four, seven, one) = (b.index(2), b.index(4), b.index(7), b.constant(Const::f32(1.0)));
    // Reads of all by all are no race; neither are writes after the loop, or in a serial loop around two of them.
    b.begin_for(LoopKind::Serial, &[two]);
    let i = b.begin_for(LoopKind::Parallel, &[four, two]);
    let r = b.mul(i[0], two);
    let at = b.add(r, i[1]);
    b.store(x, &[at], one);
    b.close();
    let i = b.begin_for(LoopKind::Parallel, &[four])[0];
    let back = b.sub(seven, i);
    b.load(x, &[back]);
    b.load(x, &[two]);
    b.close();
    b.close();
    b.store(x, &[four], one);
    assert_eq!(k.run(&mut [tensor(DType::F32, &[8], &[0.0; 8])]), []);
}

#[test]
fn an_outer_race_is_seen_behind_an_inner_loop() {
    // Iteration 0 of the outer loop reads x[0]; iteration 1 reads it twice in an inner loop and then writes it.
    let mut k = Kernel::new();
    let x = k.tensor("x", DType::F32, &[8]);
    k.one_block();
    let b = &mut k.b;
    let (zero, one, two, value) = (b.index(0), b.index(1), b.index(2), b.constant(Const::f32(1.0)));
    let i = b.begin_for(LoopKind::Parallel, &[two])[0];
    b.set_span(at_line(1));
    b.load(x, &[zero]);
    let later = b.cmp(CmpOp::Eq, i, one);
    b.begin_if(later);
    b.begin_for(LoopKind::Parallel, &[two]);
    b.set_span(at_line(2));
    b.load(x, &[zero]);
    b.close();
    b.set_span(at_line(3));
    b.store(x, &[zero], value);
    b.close();
    b.close();
    let func = k.b.finish();
    let errors = Interpreter::new(&func).run(&mut [tensor(DType::F32, &[8], &[0.0; 8])]).unwrap_err();
    assert_eq!((errors[0].span.line, errors[0].notes[0].0.line), (3, 1), "{errors:?}");
}

#[test]
fn blocks_may_meet_only_atomically() {
    for atomic in [false, true] {
        let mut k = Kernel::new();
        let x = k.tensor("x", DType::I32, &[1]);
        let (zero, four) = (k.b.index(0), k.b.index(4));
        k.b.grid(&[four], 32);
        let b = &mut k.b;
        b.set_span(at_line(7));
        let one = b.constant(Const::i32(1));
        if atomic {
            b.atomic(AtomicOp::Add, x, &[zero], one);
        } else {
            b.store(x, &[zero], one);
        }
        let mut args = [tensor(DType::I32, &[1], &[0.0])];
        let errors = k.run(&mut args);
        if atomic {
            assert_eq!(errors, []);
            assert_eq!(values(&args[0]), [4.0]);
        } else {
            let (first, second) = (AccessKind::Write, AccessKind::Write);
            assert!(
                matches!(&errors[..], [InterpError { kind: InterpErrorKind::Race { first: f, second: s, between: "block", .. }, .. }]
                    if (*f, *s) == (first, second)),
                "{errors:?}"
            );
        }
    }
}

#[test]
fn bounds_and_initialisation() {
    let mut k = Kernel::new();
    let x = k.tensor("x", DType::F32, &[2]);
    k.one_block();
    let b = &mut k.b;
    b.set_span(at_line(3));
    let t = b.alloc(Scope::Shared, DType::F32, &[4]);
    let (zero, one, four, minus) = (b.index(0), b.index(1), b.index(4), b.index(-1));
    b.set_span(at_line(5));
    let v = b.load(t, &[one]);
    b.set_span(at_line(6));
    b.store(t, &[four], v);
    // Outside a global buffer: zero, and nothing.
    b.set_span(at_line(7));
    let v = b.load(x, &[minus]);
    b.store(x, &[four], v);
    b.store(x, &[zero], v);
    let func = k.b.finish();
    let mut args = [tensor(DType::F32, &[2], &[5.0, 6.0])];
    let errors = Interpreter::new(&func).run(&mut args).unwrap_err();
    assert_eq!(
        summary(&errors),
        [
            ("`$0` [1] is read before it is written".to_owned(), 5, vec![3]),
            ("`$0` [4] is written but its shape is [4]".to_owned(), 6, vec![3]),
        ]
    );
    assert_eq!(values(&args[0]), [0.0, 6.0]);
}

#[test]
fn an_alloc_forgets() {
    let mut k = Kernel::new();
    k.one_block();
    let b = &mut k.b;
    let (two, zero) = (b.index(2), b.index(0));
    let one = b.constant(Const::f32(1.0));
    let i = b.begin_for(LoopKind::Serial, &[two])[0];
    let t = b.alloc(Scope::Local, DType::F32, &[1]);
    let first = b.cmp(CmpOp::Eq, i, zero);
    b.begin_if(first);
    b.store(t, &[zero], one);
    b.close();
    b.load(t, &[zero]);
    b.close();
    let errors = k.run(&mut []);
    assert!(matches!(errors[0].kind, InterpErrorKind::Uninitialised { .. }), "{errors:?}");
}

#[test]
fn runs_end_with_a_reason() {
    type Build = fn(&mut FuncBuilder);
    let cases: [(Build, InterpErrorKind); 5] = [
        (
            |b| {
                let (x, zero) = (b.constant(Const::i32(1)), b.constant(Const::i32(0)));
                b.binary(BinaryOp::Div, x, zero);
            },
            InterpErrorKind::DivisionByZero,
        ),
        (
            |b| {
                let cond = b.constant(Const::from_bool(false));
                b.append(OpKind::Assert { cond, message: "m > 0".to_owned() });
            },
            InterpErrorKind::Assert { message: "m > 0".to_owned() },
        ),
        (
            |b| {
                let cond = b.constant(Const::from_bool(false));
                b.append(OpKind::Assume { cond });
            },
            InterpErrorKind::Assume,
        ),
        (
            |b| {
                let (before, body) = (b.func_mut().add_region(), b.func_mut().add_region());
                let cond = b.constant(Const::from_bool(true));
                b.append(OpKind::While { before, cond, body });
            },
            InterpErrorKind::OutOfFuel { fuel: 1000 },
        ),
        (
            |b| {
                let t = b.alloc(Scope::Fragment, DType::F32, &[4]);
                let one = b.constant(Const::f32(1.0));
                let (zero, shift) = (b.index(0), b.index(1));
                let whole = b.whole(t);
                b.append(OpKind::Fill { dst: whole, value: one });
                let (src, dst) = (b.window(t, &[zero], &[3]), b.window(t, &[shift], &[3]));
                b.copy(src, dst);
            },
            InterpErrorKind::Overlap { buffer: "$0".to_owned() },
        ),
    ];
    for (build, expect) in cases {
        let mut b = FuncBuilder::new("test", Span::unknown());
        let one = b.index(1);
        b.grid(&[one], 32);
        build(&mut b);
        let func = b.finish();
        let errors = Interpreter::new(&func).fuel(1000).run(&mut []).unwrap_err();
        assert_eq!(errors.iter().map(|e| &e.kind).collect::<Vec<_>>(), [&expect]);
    }
}

#[test]
fn arguments_are_checked() {
    let mut b = FuncBuilder::new("test", Span::unknown());
    let m = b.func_mut().add_dim("m");
    for name in ["x", "y"] {
        b.tensor(name, DType::F32, vec![Extent::Dynamic(m)], Access::Read);
    }
    let extent = b.func().dims[m].value;
    b.grid(&[extent], 32);
    let func = b.finish();
    let t = |n| tensor(DType::F32, &[n], &vec![0.0; n]);
    assert_eq!(Interpreter::new(&func).run(&mut [t(3), t(3)]).unwrap().grid, [3]);
    for (args, message) in [
        (vec![t(3)], "the launch is wrong: `test` has 2 parameters but 1 arguments"),
        (vec![t(3), t(4)], "argument 1 (`y`): axis 0 has extent 4, expected 3"),
        (vec![t(3), tensor(DType::F16, &[3], &[0.0; 3])], "argument 1 (`y`): its elements are f16, expected f32"),
        (vec![t(3), Const::f32(0.0).into()], "argument 1 (`y`): it is a scalar, expected a tensor"),
    ] {
        let errors = Interpreter::new(&func).run(&mut args.clone()).unwrap_err();
        assert_eq!(errors[0].kind.to_string(), message);
    }
}

#[test]
fn grids_are_evaluated_on_the_host() {
    let mut b = FuncBuilder::new("test", Span::unknown());
    let m = b.func_mut().add_dim("m");
    let extent = b.func().dims[m].value;
    let tile = b.index(128);
    let blocks = b.ceildiv(extent, tile);
    let scale = b.func_mut().add_scalar("scale", DType::Index);
    let total = b.mul(blocks, scale);
    b.grid(&[blocks, total], 128);
    let func = b.finish();
    let grid = |m_extent, scale| prelude::eval_grid(&func, &[(m, m_extent)], &[Const::index(scale)]);
    assert_eq!(grid(129, 3).unwrap()[..], [2, 6]);
    assert_eq!(grid(0, 3).unwrap()[..], [0, 0]);
    assert_eq!(grid(129, -1), Err(prelude::PreludeError::Extent { axis: 1, extent: -2 }));
    let missing = prelude::eval_grid(&func, &[], &[]).unwrap_err();
    assert_eq!(missing.to_string(), "dim `m` has no extent");
}

#[test]
fn prints_are_reported() {
    let mut b = FuncBuilder::new("test", Span::unknown());
    let two = b.index(2);
    let block = b.grid(&[two], 32)[0];
    b.append(OpKind::Print { message: "block".to_owned(), values: [block].into_iter().collect(), window: None });
    let report = Interpreter::new(&b.finish()).run(&mut []).unwrap();
    assert_eq!(report.prints, ["block 0", "block 1"]);
}
