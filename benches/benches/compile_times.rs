//! Time from DSL to machine code on the CPU, or to PTX, for every kernel of the library: recording, the passes over tile IR,
//! and the back end (which runs the passes itself, so its time contains theirs). Each is the minimum of a few runs in the
//! thread's own processor time, because others may use the machine.
//!
//! `cargo bench -p zellige-benches --bench compile_times [-- [FILTER] [--ptx] [--json FILE]]`; `--ptx` is for sm_90a, at the
//! small problems and those of DeepSeek-V4; otherwise the small problems are compiled for this CPU.

use zellige_benches::machine::{self, thread_time};
use zellige_codegen::cpu::{self, CpuOptions};
use zellige_codegen::ptx::{self, Arch, PtxOptions, alignable};
use zellige_ir::Func;
use zellige_ir::passes::pipeline;
use zellige_kernels::library::{Scale, all};
use zellige_kernels::run::sizes;

/// Runs of each step; more for what seems slow, where noise matters.
const RUNS: usize = 3;

/// What a kernel is compiled to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Cpu,
    Ptx,
}

impl Target {
    /// The problems that are compiled: on a GPU sizes decide which tiles are used.
    fn scales(self) -> &'static [Scale] {
        match self {
            Target::Cpu => &[Scale::Small],
            Target::Ptx => &[Scale::Small, Scale::Representative],
        }
    }

    /// Runs the passes that the back end begins with.
    fn passes(self, func: &mut Func) {
        if self == Target::Ptx {
            pipeline::run_with(func, &[pipeline::ROLL], &mut |_, _, _| {});
        }
        pipeline::run(func);
    }

    /// Bytes of what comes out.
    fn compile(self, func: &Func) -> usize {
        match self {
            Target::Cpu => cpu::compile(func, &CpuOptions::default()).expect("the kernel compiles").code.len(),
            Target::Ptx => {
                let options = PtxOptions::new(Arch::Sm90a).aligned(alignable(func));
                ptx::compile(func, &options).expect("the kernel compiles").ptx.len()
            }
        }
    }
}

/// The fastest of several runs, in ms, and the last result.
fn fastest<T>(mut f: impl FnMut() -> T) -> (f64, T) {
    let mut best = f64::MAX;
    let mut runs = 0;
    loop {
        let start = thread_time();
        let out = f();
        best = best.min((thread_time() - start) * 1e3);
        runs += 1;
        if runs >= RUNS && (best < 5.0 || runs >= 4 * RUNS) {
            return (best, out);
        }
    }
}

/// The slowest case of a kernel at one scale.
struct Slowest {
    kernel: &'static str,
    scale: Scale,
    case: String,
    record: f64,
    passes: f64,
    backend: f64,
    code_bytes: usize,
}

impl Slowest {
    fn total(&self) -> f64 {
        self.record + self.backend
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let json = args.iter().position(|a| a == "--json").and_then(|at| args.get(at + 1));
    let filter = args.first().filter(|a| !a.starts_with("--")).cloned().unwrap_or_default();
    let target = if args.iter().any(|a| a == "--ptx") { Target::Ptx } else { Target::Cpu };
    let mut rows: Vec<Slowest> = Vec::new();
    for kernel in all().iter().filter(|k| k.info().name.contains(&filter)) {
        for &scale in target.scales() {
            let mut slowest: Option<Slowest> = None;
            for case in kernel.cases(scale) {
                let problem = (case.build)(&[]).expect("the problem can be built");
                let sizes = sizes(&problem).expect("the arguments agree");
                let (record, func) = fastest(|| problem.kernel.record(&sizes).expect("the kernel can be recorded"));
                let (passes, ()) = fastest(|| target.passes(&mut func.clone()));
                let (backend, code_bytes) = fastest(|| target.compile(&func));
                let kernel = kernel.info().name;
                let row = Slowest { kernel, scale, case: case.name, record, passes, backend, code_bytes };
                if slowest.as_ref().is_none_or(|s| s.total() < row.total()) {
                    slowest = Some(row);
                }
            }
            rows.extend(slowest);
        }
    }
    rows.sort_by(|a, b| b.total().total_cmp(&a.total()));
    println!("{:>8} {:>8} {:>8} {:>8} {:>8}", "total", "record", "backend", "(passes)", "code B");
    for r in &rows {
        println!(
            "{:8.2} {:8.2} {:8.2} {:8.2} {:8} {} {} ({:?})",
            r.total(),
            r.record,
            r.backend,
            r.passes,
            r.code_bytes,
            r.kernel,
            r.case,
            r.scale
        );
    }
    if let Some(path) = json {
        let rows: Vec<_> = rows
            .iter()
            .map(|r| {
                serde_json::json!({
                    "kernel": r.kernel, "scale": format!("{:?}", r.scale), "slowest_case": r.case,
                    "code_bytes": r.code_bytes, "total_ms": r.total(), "record_ms": r.record, "backend_ms": r.backend,
                    "of_it_passes_ms": r.passes,
                })
            })
            .collect();
        let ptx = if target == Target::Ptx { "--ptx " } else { "" };
        let command = format!("cargo bench -p zellige-benches --bench compile_times -- {ptx}--json FILE");
        machine::write(path, &command, &rows);
    }
}
