//! NVIDIA's assembler takes the PTX of every kernel of the library, none spills registers, and nothing makes it wait for
//! every product of `wgmma`.
//!
//! Runs when `ZELLIGE_PTXAS` names the assembler; needs no GPU. The PTX texts stay in cargo's temporary directory for
//! tests, and a table of registers, shared memory and stack is printed (`--nocapture`).
//! `ZELLIGE_PTXAS_KERNEL` limits it to kernels whose name contains it.

use rayon::prelude::*;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use zellige_codegen::ptx::{Arch, CodegenError, PtxKernel, PtxOptions, alignable, compile};
use zellige_kernels::library::{LibraryKernel, Scale, all};
use zellige_kernels::run::sizes;

/// Kernels that spill on sm_90a today, the most bytes any of their problems spills, and why. Debts: none may grow, and no
/// kernel may join without a reason.
const SPILLS: [(&str, usize, &str); 12] = [
    (
        "attention_dkv",
        8,
        "a small problem whose one warp has all products: the assembler keeps to 128 registers for two words of a thread",
    ),
    (
        "batched_transpose",
        336,
        "only where tensors are not aligned: a thread's 64 elements come and go one by one, each with an address and a guard",
    ),
    (
        "block_scaled_gemm",
        164,
        "only where tensors are not aligned: on mma.sync the sums under way and their total take 128 registers a thread, beside \
         fragments, and the factors and addresses of two steps",
    ),
    ("grouped_gemm", 184, "only where tensors are not aligned: as block_scaled_gemm, and rows have a guard each"),
    ("k_grouped_scaled_gemm", 256, "only where tensors are not aligned: as block_scaled_gemm"),
    ("masked_gemm", 200, "only where tensors are not aligned: as grouped_gemm"),
    ("mhc_sinkhorn", 132, "a small problem has 8 x 8 cells in the registers of one thread, twice; V4 has 4 x 4"),
    (
        "per_channel_cast_and_transpose",
        24,
        "a small problem with f32 scale factors: the slow path of a division, taken for all elements of a thread at once",
    ),
    (
        "reverse_kl",
        88,
        "only where rows are not aligned: every element has a guard of its own, in a block of 512 threads",
    ),
    (
        "rmsnorm_backward",
        8,
        "a small problem of several rows of 576: sums of columns pass from rows that other threads hold",
    ),
    (
        "router_gemm",
        8,
        "only where tensors are not aligned: the assembler keeps to 128 registers for a word of a thread",
    ),
    (
        "swiglu_forward_and_per_channel_cast_and_transpose",
        20,
        "only with f32 scale factors: the slow path of a division, taken for all 32 elements of a thread at once",
    ),
];

/// A kernel's PTX for one feature level.
struct Unit {
    kernel: &'static str,
    case: String,
    arch: Arch,
    ptx: PtxKernel,
}

/// What the assembler says about a kernel.
#[derive(Default)]
struct Usage {
    registers: usize,
    stack: usize,
    spilled: usize,
    /// Its warnings about speed.
    slow: Vec<String>,
}

/// The number before `what` in the assembler's statistics.
fn figure(text: &str, what: &str) -> usize {
    let Some(end) = text.find(what) else { return 0 };
    text[..end].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The distinct texts of the library's small and representative problems, and the problems that do not compile. The
/// representative problem and the first small one come for every feature level, the others for the newest, where there
/// is also the variant for launches in which nothing is aligned.
fn units() -> (Vec<Unit>, Vec<String>) {
    let wanted = std::env::var("ZELLIGE_PTXAS_KERNEL").unwrap_or_default();
    let kernels: Vec<_> = all().iter().filter(|k| k.info().name.contains(&wanted)).collect();
    let found: Vec<(Vec<Unit>, Vec<String>)> = kernels.par_iter().map(|k| units_of(**k)).collect();
    let (units, failures): (Vec<Vec<Unit>>, Vec<Vec<String>>) = found.into_iter().unzip();
    let mut seen = HashSet::new();
    let distinct = units.into_iter().flatten().filter(|u| seen.insert(u.ptx.ptx.clone())).collect();
    (distinct, failures.into_iter().flatten().collect())
}

fn units_of(kernel: &dyn LibraryKernel) -> (Vec<Unit>, Vec<String>) {
    let name = kernel.info().name;
    let (mut units, mut failures) = (Vec::new(), Vec::new());
    for scale in [Scale::Representative, Scale::Small] {
        for (number, case) in kernel.cases(scale).into_iter().enumerate() {
            let at = |e: &dyn std::fmt::Display| format!("{name} {}: {e}", case.name);
            let problem = (case.build)(&[]).unwrap_or_else(|e| panic!("{}", at(&e)));
            let sizes = sizes(&problem).unwrap_or_else(|e| panic!("{}", at(&e)));
            let func = problem.kernel.record(&sizes).unwrap_or_else(|e| panic!("{}", at(&e)));
            let levels = if number == 0 { &Arch::ALL[..] } else { &[Arch::Sm90a] };
            let mut options: Vec<PtxOptions> =
                levels.iter().map(|&arch| PtxOptions::new(arch).aligned(alignable(&func))).collect();
            options.push(PtxOptions { tensor_maps: false, ..PtxOptions::new(Arch::Sm90a) });
            if scale == Scale::Small && number == 0 {
                let newest = PtxOptions::new(Arch::Sm90a).aligned(alignable(&func));
                options.push(PtxOptions { overlapped: true, ..newest });
            }
            for options in options {
                let arch = options.target.arch;
                match compile(&func, &options) {
                    // Tiles chosen for the newest level need not fit the older ones.
                    Err(CodegenError::SharedMemory { .. }) if arch != Arch::Sm90a => {}
                    Err(e) => failures.push(at(&format!("for {arch}: {e}"))),
                    Ok(ptx) => units.push(Unit { kernel: name, case: case.name.clone(), arch, ptx }),
                }
            }
        }
    }
    (units, failures)
}

/// Assembles one text.
fn assemble(ptxas: &Path, folder: &Path, number: usize, unit: &Unit) -> Result<Usage, String> {
    let tag: String = unit.case.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let file = folder.join(format!("{}-{tag}-{number}-{}.ptx", unit.kernel, unit.arch));
    std::fs::write(&file, &unit.ptx.ptx).map_err(|e| format!("{}: {e}", file.display()))?;
    let output = Command::new(ptxas)
        .args(["-v", "-arch", unit.arch.name(), "-o"])
        .arg(file.with_extension("cubin"))
        .arg(&file)
        .output()
        .map_err(|e| format!("{}: {e}", ptxas.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("the assembler refuses {}:\n{said}", file.display()));
    }
    Ok(Usage {
        registers: figure(&said, "registers"),
        stack: figure(&said, "bytes stack frame"),
        spilled: figure(&said, "bytes spill stores") + figure(&said, "bytes spill loads"),
        slow: said.lines().filter(|l| l.contains("Potential Performance Loss")).map(str::to_owned).collect(),
    })
}

#[test]
fn the_assembler_takes_every_kernel() {
    let Some(ptxas) = std::env::var_os("ZELLIGE_PTXAS").map(PathBuf::from) else {
        println!("skipped: ZELLIGE_PTXAS does not name an assembler");
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptx");
    std::fs::create_dir_all(&folder).unwrap();
    let (units, mut failures) = units();
    let results: Vec<Result<Usage, String>> =
        units.par_iter().enumerate().map(|(i, unit)| assemble(&ptxas, &folder, i, unit)).collect();
    println!("registers  stack  spilled  shared  threads  kernel, problem, feature level");
    for (unit, result) in units.iter().zip(results) {
        let what = format!("{} {} for {}", unit.kernel, unit.case, unit.arch);
        match result {
            Err(e) => failures.push(format!("{what}: {e}")),
            Ok(u) => {
                let (shared, threads) = (unit.ptx.shared_bytes, unit.ptx.threads);
                println!("{:9}  {:5}  {:7}  {shared:6}  {threads:7}  {what}", u.registers, u.stack, u.spilled);
                // Older levels convert 8-bit floats by hand; tiles are not chosen for that.
                let known = SPILLS.iter().find(|(k, ..)| *k == unit.kernel).map_or(0, |(_, bytes, _)| *bytes);
                if unit.arch == Arch::Sm90a && u.spilled > known {
                    let Usage { registers, spilled, .. } = u;
                    failures.push(format!("{what}: {registers} registers and {spilled} bytes of spills, not {known}"));
                }
                failures.extend(u.slow.iter().map(|said| format!("{what}: {said}")));
                if u.registers * (threads as usize) > 65536 {
                    failures.push(format!("{what}: {} registers in {threads} threads do not fit", u.registers));
                }
            }
        }
    }
    assert!(!units.is_empty(), "no kernel was assembled");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    println!("{} texts assembled", units.len());
}
