//! The PTX backend against the interpreter, on the simulated GPU.

// Not all of what the snapshots use is run here.
#[allow(dead_code)]
#[path = "../../codegen/tests/ptx/kernels.rs"]
mod kernels;
#[path = "differential_sim/ordering.rs"]
mod ordering;
#[path = "differential_sim/scanning.rs"]
mod scanning;

use kernels::Gemm;
use ordering::{Ordering, ordering};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use scanning::scanning;
use std::cell::Cell;
use zellige_codegen::ptx::{Arch, PtxOptions};
use zellige_ir::interp::{Arg, Interpreter, TensorArg};
use zellige_ir::{Access, Const, DType, Extent, Func, GemmPrecision, Param};
use zellige_runtime::sim::SimOptions;
use zellige_tests::random::{Config, Program, plans};
use zellige_tests::simulate::{first_difference, run};

fn targets() -> Vec<PtxOptions> {
    [Arch::Sm80, Arch::Sm90a].into_iter().map(PtxOptions::new).collect()
}

/// A deterministic sequence of numbers in 0..1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Arguments for a kernel: dims by name, inputs drawn by `value`, outputs unwritten.
fn args(func: &Func, dims: &[(&str, usize)], value: &mut dyn FnMut(&str, DType, usize) -> f64) -> Vec<Arg> {
    let extent = |e: &Extent| match e {
        Extent::Static(n) => *n,
        Extent::Dynamic(d) => dims.iter().find(|(name, _)| *name == func.dims[*d].name).expect("a dim of the test").1,
    };
    func.params
        .iter()
        .map(|p| match p {
            Param::Tensor { buffer, access } => {
                let data = &func.buffers[*buffer];
                let shape: Vec<usize> = data.shape.iter().map(extent).collect();
                match access {
                    Access::Write => TensorArg::uninit(data.dtype, &shape).into(),
                    Access::Read => {
                        let len = shape.iter().product();
                        let values: Vec<f64> = (0..len).map(|i| value(&data.name, data.dtype, i)).collect();
                        TensorArg::from_f64(data.dtype, &shape, &values).into()
                    }
                }
            }
            Param::Scalar { value: v, .. } => Arg::Scalar(Const::from_f64(func.ty(*v), 3.0)),
        })
        .collect()
}

/// Runs on the interpreter and on every target; results must agree as `close` says.
fn agree(func: &Func, args: &[Arg], close: &dyn Fn(DType, f64, f64) -> bool) {
    let mut want = args.to_vec();
    Interpreter::new(func).run(&mut want).unwrap_or_else(|e| panic!("{}: {e:?}\n{}", func.name, func.to_text()));
    for opts in targets() {
        for shuffle in [None, Some(1)] {
            let sim = SimOptions { shuffle, ..SimOptions::default() };
            let got = run(func, args, &opts, &sim).unwrap_or_else(|e| panic!("{} on {}: {e}", func.name, opts.target));
            if let Some(d) = first_difference(&want, &got.args, close) {
                let explain = got.kernel.explain.join("\n");
                panic!("{} on {}: {d}\n{}\n{explain}\n{}", func.name, opts.target, func.to_text(), got.kernel.ptx);
            }
        }
    }
}

fn exact(_: DType, _: f64, _: f64) -> bool {
    false
}

fn within(relative: f64, absolute: f64) -> impl Fn(DType, f64, f64) -> bool {
    move |_, want, got| (want - got).abs() <= absolute + relative * want.abs()
}

#[test]
fn elementwise_is_exact() {
    let func = kernels::elementwise();
    let mut r = Numbers(1);
    for m in [1, 16, 37] {
        agree(&func, &args(&func, &[("m", m)], &mut |_, _, _| 8.0 * r.next() - 4.0), &exact);
    }
}

#[test]
fn softmax_of_partial_blocks() {
    let func = kernels::softmax();
    let mut r = Numbers(2);
    for m in [3, 8, 21] {
        agree(&func, &args(&func, &[("m", m)], &mut |_, _, _| 8.0 * r.next() - 4.0), &within(1.0 / 128.0, 1e-7));
    }
}

#[test]
fn gemms_of_every_type_and_orientation() {
    let base = Gemm { tile: [32, 32, 32], stages: 2, threads: 64, ..Gemm::BF16 };
    let cases = [
        base,
        Gemm { name: "three_stages", stages: 3, ..base },
        Gemm { name: "four_warps", tile: [64, 64, 32], threads: 128, ..base },
        Gemm { name: "f16", a: DType::F16, b: DType::F16, ..base },
        Gemm { name: "nn", b_rows: true, ..base },
        Gemm { name: "tn", a_trans: true, b_rows: true, ..base },
        Gemm { name: "tt", a_trans: true, stages: 0, ..base },
        Gemm { name: "tf32", a: DType::F32, b: DType::F32, precision: GemmPrecision::Tf32, ..base },
        Gemm { name: "tf32_nn", a: DType::F32, b: DType::F32, b_rows: true, precision: GemmPrecision::Tf32, ..base },
        Gemm { name: "exact", a: DType::F32, b: DType::F32, ..base },
        Gemm { name: "e4m3", a: DType::F8E4M3, b: DType::F8E4M3, ..base },
        Gemm { name: "e5m2_nn", a: DType::F8E5M2, b: DType::F8E5M2, b_rows: true, ..base },
        Gemm { name: "mixed", a: DType::BF16, b: DType::F8E4M3, ..base },
        Gemm { name: "halves", a: DType::BF16, b: DType::F16, ..base },
        Gemm { name: "i8", a: DType::I8, b: DType::I8, acc: DType::I32, ..base },
        Gemm { name: "u8_i8_nn", a: DType::U8, b: DType::I8, acc: DType::I32, b_rows: true, ..base },
        Gemm { name: "f64", a: DType::F64, b: DType::F64, acc: DType::F64, tile: [16, 16, 8], ..base },
        Gemm { name: "odd", tile: [24, 40, 24], ..base },
        Gemm { name: "narrow", tile: [16, 8, 16], threads: 128, ..base },
        Gemm { name: "deep", tile: [16, 16, 96], ..base },
        Gemm { name: "bf16_acc", acc: DType::BF16, ..base },
    ];
    let mut r = Numbers(3);
    for g in cases {
        let func = kernels::gemm(g);
        // Small integers: every product and sum is exact in every order (and in bf16 up to 256).
        let limit = if g.acc == DType::BF16 { 1.5 } else { 6.0 };
        let mut value = |_: &str, ty: DType, _: usize| {
            let v = (2.0 * limit * r.next() - limit).round();
            if ty == DType::U8 { v.abs() } else { v }
        };
        let (m, n) = (2 * g.tile[0] - 3, 2 * g.tile[1] - 5);
        let m = if g.a_trans { 2 * g.tile[0] } else { m };
        let n = if g.b_rows { 2 * g.tile[1] } else { n };
        agree(&func, &args(&func, &[("m", m), ("n", n)], &mut value), &exact);
    }
}

#[test]
fn attention_with_an_online_softmax() {
    let func = kernels::attention();
    let mut r = Numbers(4);
    for len in [32, 75] {
        agree(&func, &args(&func, &[("len", len)], &mut |_, _, _| 2.0 * r.next() - 1.0), &within(1e-4, 1e-5));
    }
}

#[test]
fn quantised_rows_are_exact() {
    let func = kernels::quantise();
    let mut r = Numbers(5);
    for m in [1, 4, 11] {
        agree(&func, &args(&func, &[("m", m)], &mut |_, _, _| 100.0 * r.next() - 50.0), &exact);
    }
}

#[test]
fn rows_are_gathered_and_scattered() {
    let func = kernels::gather_scatter();
    let mut r = Numbers(6);
    let mut value = |name: &str, _: DType, i: usize| match name {
        // Distinct positions, two of them outside.
        "idx" if i == 5 => -1.0,
        "idx" if i == 9 => 100.0,
        "idx" => ((7 * i) % 32) as f64,
        _ => r.next(),
    };
    agree(&func, &args(&func, &[("m", 40)], &mut value), &exact);
}

#[test]
fn a_histogram_with_atomics_and_a_scan() {
    let func = kernels::histogram();
    let mut r = Numbers(7);
    for len in [1, 300, 1000] {
        let mut value = |_: &str, _: DType, _: usize| (255.0 * r.next() * r.next()).floor();
        agree(&func, &args(&func, &[("len", len)], &mut value), &exact);
    }
}

/// Alone and beside extreme operands, quotients are those of IEEE division, and the short way to them is taken.
#[test]
fn divisions_side_by_side_are_exact() {
    let func = kernels::divisions();
    let ptx = zellige_codegen::ptx::compile(&func, &targets()[0]).unwrap().ptx;
    assert!(ptx.contains("rcp.approx"), "{ptx}");
    let mut r = Numbers(7);
    let special = [0.0, -0.0, f64::INFINITY, f64::NAN, 1e-45, -3e-39, 3e38, 1.17549435e-38, 1.0, 0.99999994];
    for (scale, often) in [(1, 0), (1, 40), (30, 0), (58, 0), (58, 7), (150, 3)] {
        let mut value = |_: &str, _: DType, _: usize| {
            let pick = r.next();
            if often > 0 && pick * f64::from(often) < 1.0 {
                return special[(r.next() * special.len() as f64) as usize];
            }
            let size = 1.0 + (r.next() * f64::from(1 << 23)).floor() / f64::from(1 << 23);
            let size = if pick < 0.1 { 2.0 - 2f64.powi(-23) } else { size };
            (r.next() - 0.5).signum() * size * 2f64.powi(((r.next() * 2.0 - 1.0) * f64::from(scale)) as i32)
        };
        agree(&func, &args(&func, &[], &mut value), &exact);
    }
}

/// Alone and beside operands that the short way does not serve, roots are IEEE's.
#[test]
fn roots_side_by_side_are_exact() {
    let func = kernels::roots();
    let ptx = zellige_codegen::ptx::compile(&func, &targets()[0]).unwrap().ptx;
    assert!(ptx.contains("rsqrt.approx"), "{ptx}");
    let mut r = Numbers(7);
    let special = [0.0, -0.0, f64::INFINITY, f64::NAN, -1.0, 1e-45, 3e38, 1.17549435e-38, 1.0, 0.99999994];
    for (scale, often) in [(1, 0), (1, 40), (60, 0), (126, 7)] {
        let mut value = |_: &str, _: DType, _: usize| {
            if often > 0 && r.next() * f64::from(often) < 1.0 {
                return special[(r.next() * special.len() as f64) as usize];
            }
            let size = 1.0 + (r.next() * f64::from(1 << 23)).floor() / f64::from(1 << 23);
            size * 2f64.powi(((r.next() * 2.0 - 1.0) * f64::from(scale)) as i32)
        };
        agree(&func, &args(&func, &[], &mut value), &exact);
    }
}

/// Lines of fewer elements than lanes, of some for each lane, and of so many that lanes take several turns.
#[test]
fn scans_of_every_length() {
    let mut r = Numbers(10);
    for (shape, along, threads) in
        [([3, 1], 1, 32), ([5, 31], 1, 64), ([2, 70], 1, 128), ([384, 1], 0, 128), ([1, 600], 1, 64), ([97, 3], 0, 64)]
    {
        let func = scanning(shape, along, threads);
        agree(&func, &args(&func, &[], &mut |_, _, _| (r.next() * 200.0 - 100.0).floor()), &exact);
    }
}

/// Selection inside warps and sorting networks of every shape: one line and many, short of a power of two, with one element,
/// more lines than threads, records of one and of two registers.
#[test]
fn orders_of_every_size_and_type() {
    let base = Ordering { dtype: DType::F32, lines: 1, n: 384, k: 6, descending: true, threads: 128 };
    let sizes = [
        base,
        Ordering { lines: 8, ..base },
        Ordering { lines: 3, n: 1, k: 1, threads: 32, ..base },
        Ordering { lines: 300, n: 7, k: 2, threads: 64, ..base },
        Ordering { lines: 5, n: 17, k: 17, descending: false, ..base },
        Ordering { n: 700, k: 1, ..base },
        Ordering { n: 600, k: 33, threads: 256, ..base },
        Ordering { lines: 2, n: 100, k: 50, threads: 32, ..base },
        Ordering { n: 3000, k: 20, threads: 64, descending: false, ..base },
    ];
    let types = [DType::BF16, DType::I32, DType::U8, DType::F64, DType::I64];
    let typed = types.iter().flat_map(|&dtype| {
        [Ordering { dtype, lines: 3, n: 70, ..base }, Ordering { dtype, n: 90, k: 40, descending: false, ..base }]
    });
    let mut r = Numbers(8);
    for o in sizes.into_iter().chain(typed) {
        let mut value = |_: &str, dtype: DType, i: usize| match i % 13 {
            3 if dtype.is_float() => f64::NAN,
            7 if dtype.is_float() => -0.0,
            8 if dtype.is_float() => f64::NEG_INFINITY,
            9 => 0.0,
            // Few values: ties everywhere.
            1 | 5 => (r.next() * 8.0 - 4.0).floor(),
            _ if dtype.is_float() => r.next() * 1e3 - 5e2,
            _ => (r.next() * 250.0 - 125.0).floor(),
        };
        let func = ordering(o);
        agree(&func, &args(&func, &[], &mut value), &exact);
    }
}

#[test]
fn order_with_ties_and_nan() {
    let func = kernels::order();
    let mut r = Numbers(8);
    let mut value = |_: &str, _: DType, i: usize| match i {
        7 | 70 => f64::NAN,
        _ => (20.0 * r.next()).floor() - 10.0,
    };
    agree(&func, &args(&func, &[], &mut value), &exact);
}

#[test]
fn control_flow_of_the_block() {
    let func = kernels::control();
    for stop in [1, 20, 80] {
        let mut value = |_: &str, _: DType, i: usize| if i == stop { -1.0 } else { 3.0 };
        agree(&func, &args(&func, &[], &mut value), &exact);
    }
}

#[test]
fn persistent_loops() {
    let func = kernels::persistent();
    let mut r = Numbers(9);
    for len in [1, 600, 1500] {
        agree(&func, &args(&func, &[("len", len)], &mut |_, _, _| r.next()), &exact);
    }
}

/// Every pair of element types, on values around zero, the limits, halves and infinities.
#[test]
fn casts_between_all_types() {
    let types: Vec<DType> = DType::ALL.into_iter().filter(|t| *t != DType::Index).collect();
    let special = [
        0.0,
        -0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.5,
        2.5,
        3.5,
        5.0,
        -1.0,
        -2.5,
        127.0,
        128.0,
        -128.5,
        255.5,
        448.0,
        464.0,
        465.0,
        57344.0,
        61440.0,
        65504.0,
        65520.0,
        1e6,
        -1e6,
        3e9,
        -3e9,
        1e19,
        -1e19,
        1e30,
        1e-3,
        2e-3,
        1e-5,
        1e-7,
        5e-8,
        1e-39,
        1e-40,
        1e300,
        -1e300,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        16777217.0,
        33554435.0,
        1.00390625,
        0.0625,
        0.09375,
    ];
    let mut r = Numbers(10);
    for &from in &types {
        for &to in &types {
            if from == to {
                continue;
            }
            let func = kernels::casts(from, to);
            let mut value = |_: &str, _: DType, i: usize| match special.get(i) {
                Some(&v) => v,
                None => (r.next() - 0.5) * 2f64.powi((r.next() * 80.0 - 40.0) as i32),
            };
            agree(&func, &args(&func, &[], &mut value), &exact);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_agree(plan in plans(), which in 0..2usize, arch in 0..2usize) {
        let config = [Config::default(), Config::gpu()][which].clone();
        let Program { func, args } = plan.build(&config);
        let mut want = args.clone();
        if Interpreter::new(&func).fuel(20_000_000).run(&mut want).is_err() {
            return Ok(());
        }
        let got = run(&func, &args, &targets()[arch], &SimOptions::default()).map_err(TestCaseError::fail)?;
        if let Some(d) = first_difference(&want, &got.args, &exact) {
            let text = func.to_text();
            return Err(TestCaseError::fail(format!("{d}\n{text}\n{}", got.kernel.ptx)));
        }
    }
}

/// Products of random shapes with the tiles of `wgmma`, tensor copies and mbarrier rings: what loops of random programs hardly
/// ever hit upon.
fn hopper_gemms() -> impl Strategy<Value = (Gemm, [usize; 2])> {
    let tile = (1..=2usize, 1..=16usize, prop::sample::select(vec![16usize, 32, 64, 128]));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (tile, 2..=4u32, 1..=2usize, flags, 1..=200usize, 1..=25usize).prop_map(
        |((rows, cols, bk), stages, groups, (a_trans, b_rows, half), m, n)| {
            let dtype = if half { DType::F16 } else { DType::BF16 };
            let tile = [64 * rows.max(groups), 16 * cols, bk];
            let g = Gemm {
                name: "random_gemm",
                a: dtype,
                b: dtype,
                tile,
                stages,
                threads: 128 * groups,
                a_trans,
                b_rows,
                ..Gemm::BF16
            };
            // Transposed operands have static extents.
            (g, [if a_trans { m.min(2 * tile[0]) } else { m }, if b_rows { (8 * n).min(2 * tile[1]) } else { 8 * n }])
        },
    )
}

#[test]
fn random_gemms_on_hopper_agree() {
    const CASES: u32 = 24;
    let reached = Cell::new(0);
    let strategy = (hopper_gemms(), any::<bool>(), prop::option::of(any::<u64>()), any::<u64>());
    let mut runner = TestRunner::new(ProptestConfig { cases: CASES, ..ProptestConfig::default() });
    let outcome = runner.run(&strategy, |((g, [m, n]), ping_pong, shuffle, seed)| {
        let mut func = kernels::gemm(g);
        func.ping_pong = ping_pong;
        let mut r = Numbers(seed);
        // Small integers: every sum is exact in every order.
        let args = args(&func, &[("m", m), ("n", n)], &mut |_, _, _| (8.0 * r.next() - 4.0).round());
        let mut want = args.clone();
        prop_assert!(Interpreter::new(&func).run(&mut want).is_ok());
        let sim = SimOptions { shuffle, ..SimOptions::default() };
        let got = match run(&func, &args, &PtxOptions::new(Arch::Sm90a), &sim) {
            Err(e) if e.contains("bytes of shared memory") => return Err(TestCaseError::reject("too large a tile")),
            got => got.map_err(TestCaseError::fail)?,
        };
        if let Some(d) = first_difference(&want, &got.args, &exact) {
            return Err(TestCaseError::fail(format!("{d}\n{}\n{}", func.to_text(), got.kernel.ptx)));
        }
        let hopper = ["wgmma.mma_async", "cp.async.bulk.tensor"].iter().all(|op| got.kernel.ptx.contains(op));
        reached.set(reached.get() + u32::from(hopper));
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    assert!(reached.get() >= CASES / 2, "only {} of {CASES} gemms ran on Hopper's units", reached.get());
}
