//! Products on Hopper's own units, on the simulated GPU: the PTX says so, and the results match the reference.

use zellige::prelude::*;
use zellige::runtime::{Arg, Device, DynTensor, Sizes};
use zellige::{GemmPrecision, TuneValue};
use zellige_codegen::ptx::{Arch, PtxKernel, PtxOptions, compile};
use zellige_ir::DType;
use zellige_kernels::gemm::product::ProductConfig;
use zellige_kernels::inputs::Inputs;
use zellige_kernels::library::{Case, Problem, Scale, Value, find};
use zellige_kernels::reference::metrics::{Tolerance, compare};
use zellige_kernels::run::{launch, run, sizes};

/// What a kernel makes of tensors on a device: m x n numbers.
fn product_on(device: &Device, kernel: &dyn Kernel, tensors: &[&DynTensor], shape: [usize; 2]) -> Vec<f32> {
    let c = DynTensor::zeros(DType::F32, &shape).unwrap();
    let args: Vec<Arg<'_>> = tensors.iter().map(|t| Arg::Read(t)).chain([Arg::Write(&c)]).collect();
    kernel.launch_args(&device.stream(), &args).expect("it runs");
    c.to_f32_vec().unwrap()
}

/// The small problem of a kernel whose name begins so.
fn case(kernel: &str, name: &str) -> Case {
    let kernel = find(kernel).expect("the library has the kernel");
    kernel.cases(Scale::Small).into_iter().find(|c| c.name.starts_with(name)).expect("the case is listed")
}

fn problem_of(kernel: &str, name: &str, settings: &[(&str, TuneValue)]) -> Problem {
    let settings: Vec<(String, TuneValue)> = settings.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
    (case(kernel, name).build)(&settings).expect("the problem can be built")
}

fn problem(name: &str, settings: &[(&str, TuneValue)]) -> Problem {
    problem_of("gemm", name, settings)
}

fn ptx(problem: &Problem, arch: Arch) -> PtxKernel {
    let func = problem.kernel.record(&sizes(problem).expect("sizes fit")).expect("the kernel records");
    compile(&func, &PtxOptions::new(arch)).expect("the kernel compiles")
}

/// Runs a problem that must go through `wgmma` and tensor copies.
fn check(name: &str, settings: &[(&str, TuneValue)]) {
    check_problem(name, settings, &problem(name, settings), "2d");
}

/// The same for a problem of attention; returns what the compiler says.
fn check_attention(name: &str, settings: &[(&str, TuneValue)]) -> Vec<String> {
    let problem = problem_of("flash_attention", name, settings);
    check_problem(name, settings, &problem, "3d");
    ptx(&problem, Arch::Sm90a).explain
}

fn check_problem(name: &str, settings: &[(&str, TuneValue)], problem: &Problem, dims: &str) {
    let kernel = ptx(problem, Arch::Sm90a);
    let copies = format!("cp.async.bulk.tensor.{dims}.shared::cluster");
    for part in ["wgmma.mma_async", &copies, "mbarrier.try_wait"] {
        assert!(kernel.ptx.contains(part), "{name}: no {part}: {:?}", kernel.explain);
    }
    assert!(!kernel.ptx.contains("mma.sync"), "{name} has mma.sync");
    let outcome = run(problem, &Device::sim().stream(), 0).unwrap_or_else(|e| panic!("{name} {settings:?}: {e}"));
    for c in &outcome.comparisons {
        assert!(c.verdict.pass, "{name} {settings:?}: {}", c.verdict);
    }
}

const EDGES: &str = "m=65 n=72 k=40 bf16->bf16 nt";
const WIDE: &str = "m=136 n=264 k=72";

fn int(v: i64) -> TuneValue {
    TuneValue::Int(v)
}

#[test]
fn all_orientations() {
    for a in [false, true] {
        for b in [false, true] {
            let majors = [("a_transposed", TuneValue::Bool(a)), ("b_transposed", TuneValue::Bool(b))];
            check(WIDE, &majors);
            check(WIDE, &[majors[0], majors[1], ("bm", int(64)), ("bn", int(128)), ("bk", int(128))]);
        }
    }
}

#[test]
fn tiles_and_warpgroups() {
    for (bm, bn, threads) in
        [(64, 64, 128), (128, 128, 128), (64, 256, 256), (128, 64, 256), (256, 128, 256), (192, 64, 384)]
    {
        for (bk, stages) in [(32, 2), (64, 3)] {
            let tile = [("bm", int(bm)), ("bn", int(bn)), ("threads", int(threads))];
            check(WIDE, &[tile[0], tile[1], tile[2], ("bk", int(bk)), ("stages", int(stages))]);
        }
    }
}

#[test]
fn clusters_share_tiles() {
    let tile = |bm, bn, threads| [("bm", int(bm)), ("bn", int(bn)), ("threads", int(threads))];
    let cases = [
        // The larger tile is shared.
        (tile(128, 256, 256), "of 2 blocks along axis 1"),
        // Three tiles along the first axis do not pair up.
        (tile(128, 128, 256), "of 2 blocks along axis 1"),
        // A low tile is not worth a block without work.
        (tile(64, 256, 256), "of 2 blocks along axis 0"),
        // Five boxes of the result take turns in two places.
        (tile(64, 80, 128), "of 2 blocks along axis 0"),
    ];
    for (settings, how) in cases {
        let kernel = ptx(&problem(WIDE, &settings), Arch::Sm90a);
        assert!(kernel.ptx.contains(".multicast::cluster"));
        assert!(kernel.explain.iter().any(|e| e.contains(how)), "{settings:?}: {:?}", kernel.explain);
        check(WIDE, &settings);
    }
}

/// Grids of three tiles by five, whose last clusters lie partly outside.
#[test]
fn clusters_are_as_the_author_asks() {
    for (x, y, how) in
        [(2, 2, "of 2 x 2 blocks"), (4, 1, "of 4 blocks along axis 0"), (1, 2, "of 2 blocks along axis 1")]
    {
        for bk in [32, 128] {
            let tile = [("bm", int(64)), ("bn", int(64)), ("bk", int(bk)), ("threads", int(128))];
            let settings = [&tile[..], &[("cluster_n", int(x)), ("cluster_m", int(y))]].concat();
            let kernel = ptx(&problem(WIDE, &settings), Arch::Sm90a);
            assert!(kernel.explain.iter().any(|e| e.contains(how)), "{settings:?}: {:?}", kernel.explain);
            check(WIDE, &settings);
        }
    }
    let tile = [("bm", int(64)), ("bn", int(64)), ("threads", int(128)), ("cluster_n", int(1)), ("cluster_m", int(1))];
    assert!(!ptx(&problem(WIDE, &tile), Arch::Sm90a).ptx.contains("multicast"));
}

/// Three tiles by five, with iterations that divide among runs and that do not; blocks of a cluster take several tiles.
#[test]
fn runs_of_iterations_give_the_same_bits_in_one_block_and_in_several() {
    let result = |runs: i64, spread: bool| {
        let settings = [
            ("bm", int(64)),
            ("bn", int(64)),
            ("bk", int(16)),
            ("threads", int(128)),
            ("runs", int(runs)),
            ("spread", TuneValue::Bool(spread)),
        ];
        let problem = problem(WIDE, &settings);
        let kernel = ptx(&problem, Arch::Sm90a);
        let iterations = 5usize.div_ceil(runs as usize);
        let how = format!("in {} runs of {iterations} iterations", 5usize.div_ceil(iterations));
        assert!(kernel.explain.iter().any(|e| e.contains(&how)), "{how}: {:?}", kernel.explain);
        assert_eq!(kernel.ptx.contains("cp.async.bulk.shared::cluster.shared::cta"), spread);
        check(WIDE, &settings);
        launch(&problem, &Device::sim().stream()).expect("the problem runs");
        match &problem.args[2] {
            Value::Tensor(c) => c.to_bytes().expect("nobody writes it now"),
            Value::Scalar(_) => unreachable!("it is the result"),
        }
    };
    for runs in [2, 3, 5] {
        assert_eq!(result(runs, false), result(runs, true), "{runs} runs");
    }
}

#[test]
fn teams_take_turns() {
    let on = ("ping_pong", TuneValue::Bool(true));
    let taken = |settings: &[(&str, TuneValue)]| {
        let explain = ptx(&problem(WIDE, settings), Arch::Sm90a).explain;
        (explain.iter().any(|e| e.contains("hopper: ping-pong")), explain.join("\n"))
    };
    // Blocks have 5, 3, 2 tiles and 1; slots go round in one block, in two, in none.
    for (bm, bn, bk, stages) in [
        (64, 64, 16, 2),
        (64, 64, 16, 3),
        (64, 64, 32, 2),
        (64, 128, 32, 4),
        (128, 128, 16, 3),
        (64, 256, 64, 2),
        (128, 64, 16, 7),
    ] {
        let tiles = [("bm", int(bm)), ("bn", int(bn)), ("bk", int(bk)), ("stages", int(stages))];
        let alone = [tiles[0], tiles[1], tiles[2], tiles[3], ("cluster_n", int(1)), ("cluster_m", int(1))];
        for settings in [&tiles[..], &alone[..]] {
            let settings: Vec<_> = settings.iter().copied().chain([on, ("threads", int(128))]).collect();
            check(WIDE, &settings);
            assert!(taken(&settings).0, "{settings:?}: {}", taken(&settings).1);
        }
    }
    for (settings, why) in [
        (vec![("bm", int(128)), ("bn", int(256)), ("threads", int(128))], "256 registers"),
        (vec![("runs", int(2)), ("bk", int(16)), ("bn", int(64)), ("threads", int(128))], "summed in runs"),
    ] {
        let settings: Vec<_> = settings.into_iter().chain([on]).collect();
        let (does, explain) = taken(&settings);
        assert!(!does && (explain.contains(why)), "{explain}");
    }
}

#[test]
fn edges_and_types() {
    check(EDGES, &[]);
    check("m=1 n=8 k=8", &[]);
    check("m=64 n=64 k=64 f16->f16", &[]);
    check("m=16 n=24 k=64 bf16->f32", &[]);
}

#[test]
fn tensors_without_a_map_take_the_other_kernel() {
    // Rows of 130 bytes cannot be described to the hardware.
    let problem = problem("m=65 n=72 k=40 bf16->bf16 tn", &[]);
    assert!(ptx(&problem, Arch::Sm90a).ptx.contains("wgmma.mma_async"));
    let outcome = run(&problem, &Device::sim().stream(), 0).expect("the problem runs");
    assert!(outcome.pass());
}

#[test]
fn f32_operands_are_rounded_to_tf32_on_their_way() {
    let name = "m=33 n=48 k=100 f32->f32 nt tf32";
    for (bm, bn, bk, threads) in [(64, 64, 32, 128), (128, 64, 16, 256), (64, 128, 64, 256), (128, 256, 32, 256)] {
        let [m, n, stages, threads, bk] = deep_tile(bm, bn, bk, threads);
        check(name, &[m, n, stages, threads, bk]);
        let kernel = ptx(&problem(name, &[m, n, stages, threads, bk]), Arch::Sm90a);
        assert!(kernel.ptx.contains("k8.f32.tf32.tf32"), "{:?}", kernel.explain);
    }
    for runs in [false, true] {
        check(name, &[("runs", int(2)), ("spread", TuneValue::Bool(runs))]);
    }
    // 32-bit operands of these units have their rows along k.
    let turned = ptx(&problem("m=33 n=48 k=100 f32->f32 nn tf32", &[]), Arch::Sm90a);
    assert!(!turned.ptx.contains("wgmma") && turned.ptx.contains("mma.sync"));
    assert!(turned.explain.iter().any(|e| e.contains("hopper") && e.contains("16 bits")), "{:?}", turned.explain);
}

/// `C = scale(A) B^T` with the first operand in registers, which rounds it there.
#[kernel(static_dims(n, k))]
fn scaled_rows(
    t: T,
    #[dims(m, k)] a: &Tensor<f32, 2>,
    #[dims(n, k)] b: &Tensor<f32, 2>,
    #[dims(m, n)] c: &mut Tensor<f32, 2>,
) {
    let [bx, by] = t.grid([c.dim(1).ceil_div(64usize), c.dim(0).ceil_div(128usize)], 256);
    let (a_f, b_s) = (t.fragment::<f32, 2>([128, 32]), t.shared::<f32, 2>([64, 32]));
    let acc = t.fragment::<f32, 2>([128, 64]);
    t.clear(acc);
    for ko in t.pipelined(a.dim(1).ceil_div(32usize), 3) {
        t.copy(b.at((bx * 64, ko * 32)), b_s);
        t.copy(a.at((by * 128, ko * 32)), a_f);
        for (i, j) in t.parallel((128, 32)) {
            a_f[(i, j)] *= 3.0;
        }
        t.gemm_with(a_f, b_s.t(), acc, Gemm { precision: GemmPrecision::Tf32, ..Gemm::default() });
    }
    t.copy(acc, c.at((by * 128, bx * 64)));
}

/// `C[i, j] = sum_k A[i, k] B[j, k] + sum W[i, k]` over the odd tiles of W: no product reads those of W.
#[kernel(static_dims(n, k))]
fn with_odd_tiles(
    t: T,
    #[dims(m, k)] a: &Tensor<bf16, 2>,
    #[dims(n, k)] b: &Tensor<bf16, 2>,
    #[dims(m, k)] w: &Tensor<bf16, 2>,
    #[dims(m, n)] c: &mut Tensor<f32, 2>,
) {
    let [bx, by] = t.grid([c.dim(1).ceil_div(64usize), c.dim(0).ceil_div(64usize)], 128);
    let (row, col) = (by * 64, bx * 64);
    let tile = || t.shared::<bf16, 2>([64, 32]);
    let (a_s, b_s, w_s) = (tile(), tile(), tile());
    let (acc, odd, sums) = (t.fragment::<f32, 2>([64, 64]), t.fragment::<f32, 2>([64, 32]), t.fragment::<f32, 1>([64]));
    t.clear(acc);
    t.clear(odd);
    for ko in t.pipelined(a.dim(1).ceil_div(32usize), 2) {
        t.copy(a.at((row, ko * 32)), a_s);
        t.copy(b.at((col, ko * 32)), b_s);
        t.copy(w.at((row, ko * 32)), w_s);
        t.gemm(a_s, b_s.t(), acc);
        if ko % 2 == 1 {
            for (i, j) in t.parallel((64, 32)) {
                odd[(i, j)] += w_s[(i, j)].cast::<f32>();
            }
        }
    }
    t.reduce_sum(odd, sums, 1);
    for (i, j) in t.parallel((64, 64)) {
        acc[(i, j)] += sums[i];
    }
    t.copy(acc, c.at((row, col)));
}

#[test]
fn tiles_that_the_work_alone_reads_are_given_back() {
    let (m, n, k) = (70, 72, 232);
    let mut inputs = Inputs::new(6);
    let [a, w] = [(); 2].map(|()| inputs.normal(DType::BF16, &[m, k], 1.0).unwrap());
    let b = inputs.normal(DType::BF16, &[n, k], 1.0).unwrap();
    let kernel = WithOddTiles::new();
    let result = |device: Device| product_on(&device, &kernel, &[&a, &b, &w], [m, n]);
    let func = kernel.record(&Sizes::new().with("m", m).with("n", n).with("k", k)).expect("it records");
    let found = compile(&func, &PtxOptions::new(Arch::Sm90a)).expect("it compiles");
    assert!(found.ptx.contains("wgmma.mma_async"), "{:?}", found.explain);
    let verdict = compare(&result(Device::sim()), &result(Device::interp()), Tolerance::CalcDiff(1e-10));
    assert!(verdict.pass, "{verdict}");
}

#[test]
fn f32_operands_in_registers_are_rounded_there() {
    let (m, n, k) = (150, 72, 100);
    let mut inputs = Inputs::new(5);
    let a = inputs.normal(DType::F32, &[m, k], 1.0).unwrap();
    let b = inputs.normal(DType::F32, &[n, k], 1.0).unwrap();
    let kernel = ScaledRows::new();
    let result = |device: Device| product_on(&device, &kernel, &[&a, &b], [m, n]);
    let func = kernel.record(&Sizes::new().with("m", m).with("n", n).with("k", k)).expect("it records");
    let found = compile(&func, &PtxOptions::new(Arch::Sm90a)).expect("it compiles");
    assert!(found.ptx.contains("m64n64k8.f32.tf32.tf32"), "{:?}", found.explain);
    assert!(found.ptx.contains("cvt.rna.tf32.f32"));
    assert!(found.explain.iter().any(|e| e.contains("its first operand stays in registers")), "{:?}", found.explain);
    // Sums in another order, and halves that go another way.
    let verdict = compare(&result(Device::sim()), &result(Device::interp()), Tolerance::CalcDiff(1e-10));
    assert!(verdict.pass, "{verdict}");
}

/// The same product in blocks whose rows of `w` add up to more than `least`, over as many columns as the first of their sums says.
#[kernel(static_dims(n, k))]
fn where_sums_say(
    t: T,
    #[dims(m, k)] a: &Tensor<bf16, 2>,
    #[dims(n, k)] b: &Tensor<bf16, 2>,
    #[dims(m, k)] w: &Tensor<f32, 2>,
    #[dims(m, n)] c: &mut Tensor<f32, 2>,
    #[comptime] how_often: bool,
) {
    let [bx, by] = t.grid([c.dim(1).ceil_div(64usize), c.dim(0).ceil_div(64usize)], 128);
    let (row, col, k) = (by * 64, bx * 64, a.dim(1));
    let (w_s, sums) = (t.shared::<f32, 2>([64, 32]), t.shared::<f32, 1>([64]));
    let (a_s, b_s) = (t.shared::<bf16, 2>([64, 32]), t.shared::<bf16, 2>([64, 32]));
    let acc = t.fragment::<f32, 2>([64, 64]);
    t.copy(w.at((row, 0)), w_s);
    t.reduce_sum(w_s, sums, 1);
    let positive = zellige::cmp::gt(&sums[0], &0.0);
    let tiles = if how_often { select(positive, k.ceil_div(32), k.ceil_div(64)) } else { k.ceil_div(32) };
    t.clear(acc);
    let multiply = || {
        for ko in t.pipelined(tiles, 2) {
            t.copy(a.at((row, ko * 32)), a_s);
            t.copy(b.at((col, ko * 32)), b_s);
            t.gemm(a_s, b_s.t(), acc);
        }
    };
    if how_often {
        multiply();
    } else if positive {
        multiply();
    }
    t.copy(acc, c.at((row, col)));
}

#[test]
fn loops_that_only_the_block_knows_of_have_no_copies_ahead() {
    let (m, n, k) = (320, 72, 232);
    let mut inputs = Inputs::new(8);
    let [a, w] = [DType::BF16, DType::F32].map(|dtype| inputs.normal(dtype, &[m, k], 1.0).unwrap());
    let b = inputs.normal(DType::BF16, &[n, k], 1.0).unwrap();
    for (how_often, says) in
        [(false, "whether it runs is computed by the"), (true, "its number of iterations is computed")]
    {
        let kernel = WhereSumsSay::new(how_often);
        let result = |device: Device| product_on(&device, &kernel, &[&a, &b, &w], [m, n]);
        let func = kernel.record(&Sizes::new().with("m", m).with("n", n).with("k", k)).expect("it records");
        let found = compile(&func, &PtxOptions::new(Arch::Sm90a)).expect("it compiles");
        assert!(found.explain.iter().any(|e| e.contains(says)), "{:?}", found.explain);
        let (got, want) = (result(Device::sim()), result(Device::interp()));
        let verdict = compare(&got, &want, Tolerance::CalcDiff(1e-10));
        assert!(verdict.pass, "{verdict}");
        // Blocks of both kinds.
        let of_block = |rows: std::ops::Range<usize>| got[rows.start * n..rows.end * n].iter().any(|&x| x != 0.0);
        let ran = (0..m / 64).filter(|b| of_block(64 * b..64 * b + 64)).count();
        assert!(how_often || (1..m / 64).contains(&ran), "{ran}");
    }
}

#[test]
fn what_does_not_fit_says_why() {
    let f32s = ptx(&problem("m=33 n=48 k=100 f32", &[]), Arch::Sm90a);
    assert!(!f32s.ptx.contains("wgmma"));
    assert!(f32s.explain.iter().any(|e| e.contains("hopper") && e.contains("f32")), "{:?}", f32s.explain);
    let ampere = ptx(&problem(EDGES, &[]), Arch::Sm80);
    assert!(ampere.ptx.contains("mma.sync") && !ampere.ptx.contains("wgmma"));
}

fn tile(bm: i64, bn: i64, stages: i64, threads: i64) -> [(&'static str, TuneValue); 4] {
    [("bm", int(bm)), ("bn", int(bn)), ("stages", int(stages)), ("threads", int(threads))]
}

#[test]
fn attention_keeps_probabilities_in_registers() {
    // Ragged batches with empty sequences, fewer keys than queries, several blocks of keys, and sinks.
    for name in ["h=4/2 d=64 full", "h=6/2 d=64 causal", "h=2/1 d=64 causal sink=Normal s=1x40", "h=1/1 d=128 causal"] {
        for settings in [tile(128, 32, 2, 256), tile(128, 64, 3, 256), tile(64, 16, 2, 128), tile(64, 32, 1, 128)] {
            let explain = check_attention(name, &settings);
            assert!(explain.iter().any(|e| e.contains("its first operand stays in registers")), "{explain:?}");
            assert!(explain.iter().any(|e| e.contains("runs during the next iteration")), "{explain:?}");
        }
    }
    let explain = check_attention("h=2/1 d=64 causal sink=None s=130x70", &tile(128, 32, 2, 256));
    assert!(explain.iter().any(|e| e.contains("goes through boxes")), "{explain:?}");
    assert!(check_attention("h=1/1 d=256 full", &tile(128, 64, 2, 256)).iter().any(|e| e.contains("take turns")));
}

#[test]
fn attention_with_wide_heads_splits_columns() {
    for bn in [16, 32] {
        let explain = check_attention("h=3/1 d=512 causal", &tile(64, bn, 2, 256));
        for part in ["in 1 x 1 warpgroups, each alike", "in 1 x 2 warpgroups"] {
            assert!(explain.iter().any(|e| e.contains(part)), "{part}: {explain:?}");
        }
    }
}

/// Runs a problem of scaled products, which must go through 8-bit `wgmma`; returns what the compiler says.
fn check_scaled(kernel: &str, name: &str, settings: &[(&str, TuneValue)]) -> Vec<String> {
    let problem = problem_of(kernel, name, settings);
    let found = ptx(&problem, Arch::Sm90a);
    assert!(found.ptx.contains("k32.f32.e4m3.e4m3"), "{kernel} {name}: {:?}", found.explain);
    let outcome = run(&problem, &Device::sim().stream(), 0).unwrap_or_else(|e| panic!("{kernel} {name}: {e}"));
    assert!(outcome.pass(), "{kernel} {name} {settings:?}: {:?}", outcome.comparisons);
    found.explain
}

/// A tile with a depth of its own: small problems have few steps.
fn deep_tile(bm: i64, bn: i64, bk: i64, threads: i64) -> [(&'static str, TuneValue); 5] {
    let [m, n, stages, threads] = tile(bm, bn, 2, threads);
    [m, n, stages, threads, ("bk", int(bk))]
}

#[test]
fn eight_bit_products_are_promoted_between_iterations() {
    // A block of scale factors for all columns of a tile, one for each column, factors by column, ragged extents.
    let dense = ["m=1 n=136", "m=33 n=72 k=160 f8e4m3xf8e4m3", "m=19 n=64", "m=17 n=72"];
    for name in dense {
        for settings in [deep_tile(64, 64, 128, 128), deep_tile(128, 64, 128, 256), deep_tile(64, 128, 128, 256)] {
            let explain = check_scaled("block_scaled_gemm", name, &settings);
            assert!(explain.iter().any(|e| e.contains("blocks of the grid in turn")), "{explain:?}");
        }
    }
    for (kernel, name) in [
        ("grouped_gemm", "rows=[0,5,0,33,1] n=72 k=160 f8e4m3xf8e4m3"),
        ("grouped_gemm", "rows=[7,40]"),
        ("masked_gemm", "rows=[0,5,0,33,1] n=72 k=160 f8e4m3xf8e4m3"),
        ("masked_gemm", "rows=[7,40]"),
    ] {
        check_scaled(kernel, name, &deep_tile(64, 64, 128, 128));
        check_scaled(kernel, name, &deep_tile(128, 64, 128, 256));
    }
}

#[test]
fn rows_of_a_head_lie_among_those_of_others() {
    for equation in ["bhr,hdr->bhd", "bhd,hdr->bhr"] {
        for name in ["m=1 h=3 n=72 k=136 bf16->bf16", "m=65 h=2 n=72 k=40 bf16->f32"] {
            let name = format!("{name} {equation}");
            for settings in [deep_tile(64, 64, 32, 128), deep_tile(128, 128, 32, 256), deep_tile(64, 256, 16, 256)] {
                let problem = problem_of("batched_gemm", &name, &settings);
                check_problem(&name, &settings, &problem, "3d");
            }
        }
    }
    for name in ["m=1 h=2 n=136 k=256", "m=33 h=2 n=72 k=160"] {
        for settings in [deep_tile(64, 64, 128, 128), deep_tile(128, 64, 128, 256), deep_tile(64, 128, 128, 256)] {
            check_scaled("batched_gemm", name, &settings);
        }
    }
}

#[test]
fn eight_bit_operands_whose_rows_go_along_the_result_stay_off_these_units() {
    let problem = problem_of("batched_gemm", "m=33 h=2 n=72 k=160 f8e4m3xf8e4m3->f32 f32 bhd", &[]);
    let kernel = ptx(&problem, Arch::Sm90a);
    assert!(!kernel.ptx.contains("wgmma"));
    assert!(kernel.explain.iter().any(|e| e.contains("hopper") && e.contains("turns")), "{:?}", kernel.explain);
}

#[test]
fn products_of_a_batch_are_one_long_product() {
    let long = "b=7 m=33 n=24 k=72 bf16->f32";
    let tile = [("bm", int(64)), ("bn", int(64)), ("threads", int(128))];
    let result = |runs: i64, spread: bool| {
        let settings = [&tile[..], &[("runs", int(runs)), ("spread", TuneValue::Bool(spread))]].concat();
        let problem = problem_of("batch_sum_gemm", long, &settings);
        check_problem(long, &settings, &problem, "3d");
        match &problem.args[4] {
            Value::Tensor(c) => c.to_bytes().expect("nobody writes it now"),
            Value::Scalar(_) => unreachable!("it is the result"),
        }
    };
    for runs in [2, 3, 7] {
        assert_eq!(result(runs, false), result(runs, true), "{runs} runs");
    }
    check_problem("b=3", &tile, &problem_of("batch_sum_gemm", "b=3 m=65 n=72 k=40", &tile), "3d");
    for name in ["b=3 m=33 n=136 k=160", "b=2 m=1 n=72 k=256"] {
        for settings in [deep_tile(64, 64, 128, 128), deep_tile(128, 64, 256, 256)] {
            check_scaled("batch_sum_gemm", name, &settings);
        }
    }
}

#[test]
fn the_next_product_starts_before_a_sum_is_promoted() {
    let problem = problem_of("block_scaled_gemm", "m=19 n=64", &deep_tile(64, 64, 256, 128));
    let text = ptx(&problem, Arch::Sm90a).ptx;
    // Both products of an iteration are under way when the first is waited for.
    let first_wait = text.find("wgmma.wait_group").expect("products are waited for");
    assert_eq!(text[..first_wait].matches("wgmma.commit_group").count(), 2, "{text}");
    assert!(text[first_wait..].starts_with("wgmma.wait_group.sync.aligned 1;"));
    check_scaled("block_scaled_gemm", "m=19 n=64", &deep_tile(64, 64, 256, 128));
    check_scaled("block_scaled_gemm", "m=19 n=64", &deep_tile(128, 64, 256, 256));
}

#[test]
fn blocks_in_conditionals_share_tiles_if_they_run_alike() {
    // Neighbours along the columns have the same rows, so the same group, or none.
    let name = "rows=[0,5,0,33,1] n=72 k=160 f8e4m3xf8e4m3";
    let explain = check_scaled("grouped_gemm", name, &deep_tile(128, 64, 128, 256));
    assert!(explain.iter().any(|e| e.contains("of 2 blocks along axis 0")), "{explain:?}");
    assert!(explain.iter().any(|e| e.contains("goes through boxes")), "{explain:?}");
}

#[test]
fn narrow_operands_are_widened_by_those_who_multiply() {
    let cases = [
        ("block_scaled_gemm", "m=5 n=64 k=128 f8e4m3xf4e2m1"),
        ("grouped_gemm", "rows=[0,5,0,33,1] n=72 k=160 f8e4m3xf4e2m1"),
        ("masked_gemm", "rows=[0,5,0,33,1] n=72 k=160 f8e4m3xf4e2m1"),
    ];
    for (kernel, name) in cases {
        // One warpgroup, two that share rows, two that share columns.
        for (bm, bn, threads) in [(64, 64, 128), (128, 64, 256), (64, 128, 256)] {
            for turned in [false, true] {
                let settings = [&deep_tile(bm, bn, 64, threads)[..], &[("turned", TuneValue::Bool(turned))]].concat();
                let explain = check_scaled(kernel, name, &settings);
                assert!(explain.iter().any(|e| e.contains("ring of 2 for shared b_s")), "{explain:?}");
            }
        }
    }
}

#[test]
fn tiles_that_the_loop_fills_are_filled_beside_products() {
    let settings = [&deep_tile(32, 64, 128, 128)[..], &[("turned", TuneValue::Bool(true))]].concat();
    let problem = problem_of("masked_gemm", "rows=[0,5,0,33,1] n=72 k=160 f8e4m3xf4e2m1", &settings);
    let text = ptx(&problem, Arch::Sm90a).ptx;
    let first = text.find("wgmma.mma_async").unwrap();
    let wait = first + text[first..].find("wgmma.wait_group").unwrap();
    // Four products are under way while the next tile is widened.
    assert_eq!(text[first..wait].matches("wgmma.commit_group").count(), 4, "{text}");
    assert!(text[first..wait].contains("prmt.b32"), "{text}");
}

#[test]
fn few_rows_have_low_tiles() {
    for (name, turned) in [("bf16xbf16", false), ("f8e4m3xf8e4m3", true), ("f8e4m3xf4e2m1", true)] {
        let base = match name {
            "bf16xbf16" => ProductConfig::unscaled(),
            "f8e4m3xf8e4m3" => ProductConfig::default(),
            _ => ProductConfig::mxfp4(),
        };
        let (few, many) = (base.for_rows(20), base.for_rows(1000));
        assert_eq!((few.turned, few.bm), (turned, if turned { 32 } else { 64 }), "{name}");
        assert_eq!((many.bm, many.turned), (128, base.turned), "{name}");
        assert_eq!((many.a_group, many.b_group, many.scaled), (few.a_group, few.b_group, few.scaled), "{name}");
    }
}

#[test]
fn gradients_of_attention_keep_their_operands_in_registers() {
    let tiles = [
        ("attention_dq", [tile(128, 32, 2, 256), tile(64, 64, 1, 128)]),
        ("attention_dkv", [tile(64, 128, 2, 256), tile(32, 64, 1, 128)]),
    ];
    for (kernel, settings) in tiles {
        for name in ["h=2/1 d=64 causal sink=Normal s=17x33", "h=6/2 d=64", "h=1/1 d=128 causal"] {
            for settings in settings {
                let problem = problem_of(kernel, name, &settings);
                check_problem(name, &settings, &problem, "3d");
                let explain = ptx(&problem, Arch::Sm90a).explain;
                assert!(explain.iter().any(|e| e.contains("its first operand stays in registers")), "{explain:?}");
            }
        }
    }
    // Two warpgroups share the columns of a head of 512.
    let settings = tile(64, 32, 1, 256);
    check_problem("d=512", &settings, &problem_of("attention_dq", "h=3/1 d=512", &settings), "3d");
}

#[test]
fn rings_shrink_to_the_shared_memory_there_is() {
    let deep = [("bm", int(128)), ("bn", int(256)), ("bk", int(64)), ("stages", int(6)), ("threads", int(256))];
    let problem = problem(WIDE, &deep);
    for (arch, stages) in [(Arch::Sm90a, 4), (Arch::Sm89, 2)] {
        let kernel = ptx(&problem, arch);
        let less = format!("has {stages} stages instead of {}", stages + 1);
        assert!(kernel.explain.iter().any(|e| e.contains(&less)), "{arch}: {:?}", kernel.explain);
        assert!(kernel.shared_bytes <= arch.max_shared_bytes());
        assert_eq!(kernel.ptx.contains("wgmma"), arch == Arch::Sm90a);
    }
    // A tile that does not fit even once is the author's to change.
    let wide = [("bm", int(128)), ("bn", int(256)), ("bk", int(256)), ("threads", int(256))];
    let func = problem_of("gemm", WIDE, &wide);
    let func = func.kernel.record(&sizes(&func).expect("sizes fit")).expect("the kernel records");
    let error = compile(&func, &PtxOptions::new(Arch::Sm89)).expect_err("192 KB do not fit");
    assert!(error.to_string().contains("use smaller tiles"), "{error}");
}
