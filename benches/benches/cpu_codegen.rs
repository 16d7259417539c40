//! Speed of compiled CPU kernels, on one thread, as ratios: against the `gemm` crate for products, against loops written by
//! hand with AVX2 for the rest. The ratios of one run are comparable, absolute times on a shared machine are not; each side's
//! time is the minimum of many samples of the thread's own processor time, the two sides taken in turns.
//!
//! `cargo bench -p zellige-benches --bench cpu_codegen [-- element|gemm] [-- --json FILE]`

use criterion::Criterion;
use serde::Serialize;
use std::arch::x86_64::*;
use std::hint::black_box;
use std::time::{Duration, Instant};
use zellige_benches::machine::{self, thread_time};
use zellige_codegen::cpu::exec::{Arena, Executable};
use zellige_codegen::cpu::{ArgSlot, CpuOptions, compile};
use zellige_ir::*;

/// A compiled kernel with its arguments bound.
struct Bound {
    exe: Executable,
    args: Vec<u64>,
    blocks: u64,
    arena: Arena,
    compile_time: Duration,
}

impl Bound {
    /// Binds tensors by address; all extents are static.
    fn new(func: &Func, tensors: &[*const u8], grid: &[u64]) -> Bound {
        let mut compile_time = Duration::MAX;
        let mut kernel = None;
        for _ in 0..5 {
            let start = Instant::now();
            kernel = Some(compile(func, &CpuOptions::default()).expect("the kernel compiles"));
            compile_time = compile_time.min(start.elapsed());
        }
        let exe = Executable::new(kernel.expect("compiled")).expect("executable memory");
        let args = exe
            .kernel()
            .args
            .iter()
            .map(|slot| match *slot {
                ArgSlot::Tensor { param } => tensors[param as usize] as u64,
                ArgSlot::Grid { axis } => grid[axis as usize],
                ArgSlot::Stride { .. } | ArgSlot::Dim { .. } | ArgSlot::Scalar { .. } => 0,
            })
            .collect();
        let arena = Arena::new(exe.kernel().arena_bytes);
        Bound { exe, args, blocks: grid.iter().product(), arena, compile_time }
    }

    fn run(&mut self) {
        // SAFETY: the tensors outlive the call and have the static shapes of the kernel.
        unsafe { self.exe.run(&self.args, 0..self.blocks, &mut self.arena, &mut |_, _, _, _| {}) }.expect("no failure");
    }
}

/// Minimum times of two functions in seconds, sampled in turns for about `budget`.
fn compare(budget: Duration, mut ours: impl FnMut(), mut theirs: impl FnMut()) -> (f64, f64) {
    let start = thread_time();
    let (mut a, mut b) = (f64::MAX, f64::MAX);
    let mut samples = 0;
    while thread_time() - start < budget.as_secs_f64() || samples < 5 {
        for (f, best) in [(&mut ours as &mut dyn FnMut(), &mut a), (&mut theirs, &mut b)] {
            let t = thread_time();
            f();
            *best = best.min(thread_time() - t);
        }
        samples += 1;
    }
    (a, b)
}

/// One comparison.
#[derive(Serialize)]
struct Row {
    kernel: String,
    /// Speed as a part of the baseline's.
    of_baseline: f64,
    required: f64,
    code_bytes: usize,
    arena_bytes: usize,
    compile_ms: f64,
}

fn report(rows: &mut Vec<Row>, name: String, kernel: &Bound, ours: f64, theirs: f64, target: f64) {
    let row = Row {
        kernel: name,
        of_baseline: (theirs / ours * 100.0).round() / 100.0,
        required: target,
        code_bytes: kernel.exe.kernel().code.len(),
        arena_bytes: kernel.exe.kernel().arena_bytes,
        compile_ms: (kernel.compile_time.as_secs_f64() * 1e5).round() / 100.0,
    };
    println!(
        "{:32} {:8.1} us  {:.2}x of the baseline (target {target:.2})   code {:6} B  arena {:7} B  compiled in {:4.1} ms",
        row.kernel,
        ours * 1e6,
        row.of_baseline,
        row.code_bytes,
        row.arena_bytes,
        row.compile_ms,
    );
    rows.push(row);
}

fn fixed(shape: &[usize]) -> Vec<Extent> {
    shape.iter().map(|n| Extent::Static(*n)).collect()
}

/// `c[m, n] = a[m, k] @ b` with tiles; `b` is `[k, n]`, or `[n, k]` if `transposed`.
fn gemm_kernel(ty: DType, size: usize, (bm, bn, bk): (usize, usize, usize), transposed: bool) -> Func {
    let mut b = FuncBuilder::new("gemm", Span::unknown());
    let ta = b.tensor("a", ty, fixed(&[size, size]), Access::Read);
    let tb = b.tensor("b", ty, fixed(&[size, size]), Access::Read);
    let tc = b.tensor("c", DType::F32, fixed(&[size, size]), Access::Write);
    let grid: Vec<Value> = [size / bn, size / bm].iter().map(|n| b.index(*n as i64)).collect();
    let ids = b.grid(&grid, 128);
    let a_s = b.alloc(Scope::Shared, ty, &[bm, bk]);
    let b_s = b.alloc(Scope::Shared, ty, &if transposed { [bn, bk] } else { [bk, bn] });
    let acc = b.alloc(Scope::Fragment, DType::F32, &[bm, bn]);
    let (zero, dst) = (b.constant(Const::f32(0.0)), b.whole(acc));
    b.append(OpKind::Fill { dst: dst.clone(), value: zero });
    let (ebm, ebn, ebk) = (b.index(bm as i64), b.index(bn as i64), b.index(bk as i64));
    let (row, col) = (b.mul(ids[1], ebm), b.mul(ids[0], ebn));
    let steps = b.index((size / bk) as i64);
    let ko = b.begin_for(LoopKind::Pipelined { stages: 3 }, &[steps])[0];
    let k = b.mul(ko, ebk);
    let (src, to) = (b.window(ta, &[row, k], &[bm, bk]), b.whole(a_s));
    b.copy(src, to.clone());
    let (src, to_b) = if transposed {
        (b.window(tb, &[col, k], &[bn, bk]), b.whole(b_s))
    } else {
        (b.window(tb, &[k, col], &[bk, bn]), b.whole(b_s))
    };
    b.copy(src, to_b.clone());
    let right = if transposed { to_b.transposed() } else { to_b };
    b.append(OpKind::Gemm { a: to, b: right, acc: dst.clone(), precision: GemmPrecision::Exact });
    b.close();
    let out = b.window(tc, &[row, col], &[bm, bn]);
    b.copy(dst, out);
    b.finish()
}

fn gemms(rows: &mut Vec<Row>) {
    for size in [512usize, 1024, 2048] {
        let x: Vec<f32> = (0..size * size).map(|i| (i % 17) as f32 - 8.0).collect();
        let y: Vec<f32> = (0..size * size).map(|i| (i % 13) as f32 - 6.0).collect();
        let (x16, y16): (Vec<half::bf16>, Vec<half::bf16>) = (
            x.iter().map(|v| half::bf16::from_f32(*v)).collect(),
            y.iter().map(|v| half::bf16::from_f32(*v)).collect(),
        );
        let (mut ours, mut theirs) = (vec![0f32; size * size], vec![0f32; size * size]);
        for (ty, transposed, tile) in [
            (DType::F32, false, (128, 128, 64)),
            (DType::F32, true, (128, 128, 64)),
            (DType::F32, true, (64, 64, 32)),
            (DType::BF16, true, (128, 128, 64)),
        ] {
            let (px, py) = match ty {
                DType::BF16 => (x16.as_ptr().cast(), y16.as_ptr().cast()),
                _ => (x.as_ptr().cast(), y.as_ptr().cast()),
            };
            let func = gemm_kernel(ty, size, tile, transposed);
            let grid = [(size / tile.1) as u64, (size / tile.0) as u64];
            let mut kernel = Bound::new(&func, &[px, py, ours.as_mut_ptr().cast()], &grid);
            let s = size as isize;
            let (rhs_cs, rhs_rs) = if transposed { (s, 1) } else { (1, s) };
            let budget = Duration::from_millis(if size > 1024 { 4000 } else { 1200 });
            let (t, base) = compare(
                budget,
                || kernel.run(),
                || {
                    // SAFETY: the three matrices have `size` rows and columns.
                    unsafe {
                        gemm::gemm(
                            size,
                            size,
                            size,
                            theirs.as_mut_ptr(),
                            1,
                            s,
                            false,
                            x.as_ptr(),
                            1,
                            s,
                            y.as_ptr(),
                            rhs_cs,
                            rhs_rs,
                            0.0,
                            1.0,
                            false,
                            false,
                            false,
                            gemm::Parallelism::None,
                        );
                    }
                },
            );
            // All partial sums are small integers.
            assert!(ours == theirs, "gemm results differ");
            let kind = if transposed { "nt" } else { "nn" };
            report(rows, format!("gemm {ty} {kind} {size} {tile:?}"), &kernel, t, base, 0.35);
        }
    }
}

/// `y = silu-like chain` of cheap operations: `out = x * a + y`, through fragments.
fn axpy_kernel(n: usize, tile: usize) -> Func {
    let mut b = FuncBuilder::new("axpy", Span::unknown());
    let x = b.tensor("x", DType::F32, fixed(&[n]), Access::Read);
    let y = b.tensor("y", DType::F32, fixed(&[n]), Access::Read);
    let out = b.tensor("out", DType::F32, fixed(&[n]), Access::Write);
    let grid = b.index((n / tile) as i64);
    let ids = b.grid(&[grid], 128);
    let extent = b.index(tile as i64);
    let base = b.mul(ids[0], extent);
    let i = b.begin_for(LoopKind::Parallel, &[extent])[0];
    let at = b.add(base, i);
    let (vx, vy) = (b.load(x, &[at]), b.load(y, &[at]));
    let c = b.constant(Const::f32(1.5));
    let v = b.fma(vx, c, vy);
    b.store(out, &[at], v);
    b.close();
    b.finish()
}

/// The same through tiles: copy in, compute in place, copy out.
fn axpy_tiles_kernel(n: usize, tile: usize) -> Func {
    let mut b = FuncBuilder::new("axpy_tiles", Span::unknown());
    let x = b.tensor("x", DType::F32, fixed(&[n]), Access::Read);
    let y = b.tensor("y", DType::F32, fixed(&[n]), Access::Read);
    let out = b.tensor("out", DType::F32, fixed(&[n]), Access::Write);
    let grid = b.index((n / tile) as i64);
    let ids = b.grid(&[grid], 128);
    let extent = b.index(tile as i64);
    let base = b.mul(ids[0], extent);
    let tiles: Vec<Buffer> = [x, y]
        .into_iter()
        .map(|t| {
            let f = b.alloc(Scope::Fragment, DType::F32, &[tile]);
            let (src, dst) = (b.window(t, &[base], &[tile]), b.whole(f));
            b.copy(src, dst);
            f
        })
        .collect();
    let i = b.begin_for(LoopKind::Parallel, &[extent])[0];
    let (vx, vy) = (b.load(tiles[0], &[i]), b.load(tiles[1], &[i]));
    let c = b.constant(Const::f32(1.5));
    let v = b.fma(vx, c, vy);
    b.store(tiles[0], &[i], v);
    b.close();
    let (src, dst) = (b.whole(tiles[0]), b.window(out, &[base], &[tile]));
    b.copy(src, dst);
    b.finish()
}

#[target_feature(enable = "avx2,fma")]
fn axpy_by_hand(x: &[f32], y: &[f32], out: &mut [f32]) {
    let c = _mm256_set1_ps(1.5);
    for ((x, y), out) in x.chunks_exact(8).zip(y.chunks_exact(8)).zip(out.chunks_exact_mut(8)) {
        // SAFETY: the chunks have eight elements.
        unsafe {
            let v = _mm256_fmadd_ps(_mm256_loadu_ps(x.as_ptr()), c, _mm256_loadu_ps(y.as_ptr()));
            _mm256_storeu_ps(out.as_mut_ptr(), v);
        }
    }
}

/// Row sums or row maxima of `[rows, columns]`, a few rows in a block.
fn reduce_kernel(op: ReduceOp, ty: DType, rows: usize, columns: usize) -> Func {
    let mut b = FuncBuilder::new("reduce", Span::unknown());
    let x = b.tensor("x", ty, fixed(&[rows, columns]), Access::Read);
    let out = b.tensor("out", DType::F32, fixed(&[rows]), Access::Write);
    let per_block = 8;
    let grid = b.index((rows / per_block) as i64);
    let ids = b.grid(&[grid], 128);
    let (extent, zero) = (b.index(per_block as i64), b.index(0));
    let base = b.mul(ids[0], extent);
    let (src, dst) = (b.window(x, &[base, zero], &[per_block, columns]), b.window(out, &[base], &[per_block]));
    b.append(OpKind::Reduce { op, src, dst, axis: 1, accumulate: false });
    b.finish()
}

#[target_feature(enable = "avx2,fma")]
fn row_sums_by_hand(x: &[f32], columns: usize, out: &mut [f32]) {
    for (row, out) in x.chunks_exact(columns).zip(out) {
        let mut acc = [_mm256_setzero_ps(); 4];
        for chunk in row.chunks_exact(32) {
            for (k, a) in acc.iter_mut().enumerate() {
                // SAFETY: the chunk has 32 elements.
                *a = _mm256_add_ps(*a, unsafe { _mm256_loadu_ps(chunk.as_ptr().add(8 * k)) });
            }
        }
        let sum = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
        let mut lanes = [0f32; 8];
        // SAFETY: eight lanes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        *out = lanes.iter().sum();
    }
}

#[target_feature(enable = "avx2,fma")]
fn row_maxima_by_hand(x: &[f32], columns: usize, out: &mut [f32]) {
    for (row, out) in x.chunks_exact(columns).zip(out) {
        let mut acc = [_mm256_set1_ps(f32::NEG_INFINITY); 4];
        for chunk in row.chunks_exact(32) {
            for (k, a) in acc.iter_mut().enumerate() {
                // SAFETY: the chunk has 32 elements.
                *a = _mm256_max_ps(*a, unsafe { _mm256_loadu_ps(chunk.as_ptr().add(8 * k)) });
            }
        }
        let max = _mm256_max_ps(_mm256_max_ps(acc[0], acc[1]), _mm256_max_ps(acc[2], acc[3]));
        let mut lanes = [0f32; 8];
        // SAFETY: eight lanes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), max) };
        *out = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }
}

/// RMS normalisation of bf16 rows: widen, sum of squares, scale, round.
fn rms_norm_kernel(rows: usize, columns: usize) -> Func {
    let mut b = FuncBuilder::new("rms_norm", Span::unknown());
    let x = b.tensor("x", DType::BF16, fixed(&[rows, columns]), Access::Read);
    let w = b.tensor("w", DType::F32, fixed(&[columns]), Access::Read);
    let out = b.tensor("out", DType::BF16, fixed(&[rows, columns]), Access::Write);
    let grid = b.index(rows as i64);
    let ids = b.grid(&[grid], 128);
    let (zero, n) = (b.index(0), b.index(columns as i64));
    let f = b.alloc(Scope::Fragment, DType::F32, &[columns]);
    let sq = b.alloc(Scope::Fragment, DType::F32, &[columns]);
    let total = b.alloc(Scope::Fragment, DType::F32, &[]);
    let (src, dst) = (b.window(x, &[ids[0], zero], &[columns]), b.whole(f));
    b.copy(src, dst);
    let i = b.begin_for(LoopKind::Parallel, &[n])[0];
    let v = b.load(f, &[i]);
    let v = b.mul(v, v);
    b.store(sq, &[i], v);
    b.close();
    let (src, dst) = (b.whole(sq), b.whole(total));
    b.append(OpKind::Reduce { op: ReduceOp::Sum, src, dst, axis: 0, accumulate: false });
    let i = b.begin_for(LoopKind::Parallel, &[n])[0];
    let sum = b.load(total, &[]);
    let count = b.constant(Const::f32(1.0 / columns as f32));
    let eps = b.constant(Const::f32(1e-6));
    let mean = b.fma(sum, count, eps);
    let scale = b.unary(UnaryOp::Rsqrt, mean);
    let (v, g) = (b.load(f, &[i]), b.load(w, &[i]));
    let v = b.mul(v, scale);
    let v = b.mul(v, g);
    let v = b.cast(v, DType::BF16);
    b.store(out, &[ids[0], i], v);
    b.close();
    b.finish()
}

#[target_feature(enable = "avx2,fma")]
fn rms_norm_by_hand(x: &[half::bf16], w: &[f32], out: &mut [half::bf16]) {
    let n = w.len();
    for (row, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        let widen = |c: &[half::bf16]| {
            // SAFETY: the chunk has eight elements of two bytes.
            let v = unsafe { _mm_loadu_si128(c.as_ptr().cast()) };
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v)))
        };
        let mut acc = [_mm256_setzero_ps(); 4];
        for chunk in row.chunks_exact(32) {
            for (k, a) in acc.iter_mut().enumerate() {
                let v = widen(&chunk[8 * k..8 * k + 8]);
                *a = _mm256_fmadd_ps(v, v, *a);
            }
        }
        let sum = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
        let mut lanes = [0f32; 8];
        // SAFETY: eight lanes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        let scale = 1.0 / (lanes.iter().sum::<f32>() / n as f32 + 1e-6).sqrt();
        let scale = _mm256_set1_ps(scale);
        for ((x, w), o) in row.chunks_exact(8).zip(w.chunks_exact(8)).zip(out.chunks_exact_mut(8)) {
            // SAFETY: the chunks have eight elements.
            let v = _mm256_mul_ps(_mm256_mul_ps(widen(x), scale), unsafe { _mm256_loadu_ps(w.as_ptr()) });
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let r = _mm256_srli_epi32::<16>(up);
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256::<1>(r));
            // SAFETY: the chunk has eight elements of two bytes.
            unsafe { _mm_storeu_si128(o.as_mut_ptr().cast(), packed) };
        }
    }
}

fn element_wise(results: &mut Vec<Row>) {
    let budget = Duration::from_millis(300);
    for n in [4096usize, 65536, 1 << 22] {
        let x: Vec<f32> = (0..n).map(|i| (i % 31) as f32).collect();
        let y: Vec<f32> = (0..n).map(|i| (i % 29) as f32).collect();
        let (mut ours, mut theirs) = (vec![0f32; n], vec![0f32; n]);
        let tile = 2048;
        for (name, func) in [("axpy", axpy_kernel(n, tile)), ("axpy tiles", axpy_tiles_kernel(n, tile))] {
            let tensors = [x.as_ptr().cast(), y.as_ptr().cast(), ours.as_mut_ptr().cast_const().cast()];
            let mut kernel = Bound::new(&func, &tensors, &[(n / tile) as u64]);
            let (a, b) = compare(
                budget,
                || kernel.run(),
                // SAFETY: the machine has AVX2 and FMA, or no kernel would have compiled.
                || unsafe { axpy_by_hand(black_box(&x), black_box(&y), black_box(&mut theirs)) },
            );
            assert!(ours == theirs);
            report(results, format!("{name} {n}"), &kernel, a, b, 0.5);
        }
    }
    let (rows, columns) = (64usize, 4096usize);
    let x: Vec<f32> = (0..rows * columns).map(|i| (i % 31) as f32 - 15.0).collect();
    let (mut ours, mut theirs) = (vec![0f32; rows], vec![0f32; rows]);
    for (name, op) in [("row sums", ReduceOp::Sum), ("row maxima", ReduceOp::Max)] {
        let func = reduce_kernel(op, DType::F32, rows, columns);
        let tensors = [x.as_ptr().cast(), ours.as_mut_ptr().cast_const().cast()];
        let mut kernel = Bound::new(&func, &tensors, &[rows as u64 / 8]);
        let by_hand = |theirs: &mut [f32]| {
            // SAFETY: as above.
            unsafe {
                match op {
                    ReduceOp::Sum => row_sums_by_hand(black_box(&x), columns, theirs),
                    _ => row_maxima_by_hand(black_box(&x), columns, theirs),
                }
            }
        };
        let (a, b) = compare(budget, || kernel.run(), || by_hand(black_box(&mut theirs)));
        assert!(ours == theirs);
        report(results, format!("{name} {rows}x{columns}"), &kernel, a, b, 0.5);
    }
    let x: Vec<half::bf16> = x.iter().map(|v| half::bf16::from_f32(*v)).collect();
    let w: Vec<f32> = (0..columns).map(|i| (i % 7) as f32 * 0.25).collect();
    let mut ours = vec![half::bf16::ZERO; rows * columns];
    let mut theirs = ours.clone();
    let func = rms_norm_kernel(rows, columns);
    let tensors = [x.as_ptr().cast(), w.as_ptr().cast(), ours.as_mut_ptr().cast_const().cast()];
    let mut kernel = Bound::new(&func, &tensors, &[rows as u64]);
    let (a, b) = compare(
        budget,
        || kernel.run(),
        // SAFETY: as above.
        || unsafe { rms_norm_by_hand(black_box(&x), black_box(&w), black_box(&mut theirs)) },
    );
    let close = ours.iter().zip(&theirs).all(|(a, b)| (a.to_f32() - b.to_f32()).abs() <= 0.01 * b.to_f32().abs());
    assert!(close, "rms_norm results differ");
    report(results, format!("rms_norm bf16 {rows}x{columns}"), &kernel, a, b, 0.5);
}

/// Compile times under criterion's statistics.
fn compile_times(c: &mut Criterion) {
    let gemm = gemm_kernel(DType::BF16, 1024, (128, 128, 64), true);
    c.bench_function("compile gemm", |b| b.iter(|| compile(black_box(&gemm), &CpuOptions::default())));
    let norm = rms_norm_kernel(64, 4096);
    c.bench_function("compile rms_norm", |b| b.iter(|| compile(black_box(&norm), &CpuOptions::default())));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let json = args.iter().position(|a| a == "--json").and_then(|at| args.get(at + 1));
    let filter = args.first().filter(|a| !a.starts_with("--")).cloned().unwrap_or_default();
    let mut rows = Vec::new();
    if "element".contains(&filter) {
        element_wise(&mut rows);
    }
    if "gemm".contains(&filter) {
        gemms(&mut rows);
    }
    if let Some(path) = json {
        machine::write(path, "cargo bench -p zellige-benches --bench cpu_codegen -- --json FILE", &rows);
    }
    if args.is_empty() {
        let mut c = Criterion::default().sample_size(20);
        compile_times(&mut c);
        c.final_summary();
    }
}
