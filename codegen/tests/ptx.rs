//! PTX of a fixed matrix of kernels and targets: compared with snapshots and assembled.
//!
//! `ZELLIGE_BLESS=1` rewrites the snapshots. `ptxas` is taken from `ZELLIGE_PTXAS` or the PATH; without it the assembling
//! test says that it was skipped.

#[path = "ptx/kernels.rs"]
mod kernels;

use std::path::{Path, PathBuf};
use std::process::Command;
use zellige_codegen::ptx::{Arch, PtxOptions, compile};

fn snapshot_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ptx/snapshots")
}

/// Kernels whose text is kept; the others are only assembled.
const KEPT: [&str; 6] = ["elementwise", "softmax", "gemm_bf16", "quantise", "histogram", "control"];

#[test]
fn snapshots() {
    let bless = std::env::var_os("ZELLIGE_BLESS").is_some();
    let mut stale = Vec::new();
    for (name, func) in kernels::all() {
        if !KEPT.contains(&name.as_str()) {
            continue;
        }
        for arch in [Arch::Sm80, Arch::Sm90a] {
            let kernel = compile(&func, &PtxOptions::new(arch)).unwrap_or_else(|e| panic!("{name} for {arch}: {e}"));
            let text = format!("{}\n// {}\n", kernel.ptx, kernel.explain.join("\n// "));
            let path = snapshot_dir().join(format!("{name}.{arch}.ptx"));
            if bless {
                std::fs::create_dir_all(snapshot_dir()).unwrap();
                std::fs::write(&path, text).unwrap();
            } else if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
                stale.push(path);
            }
        }
    }
    assert!(stale.is_empty(), "snapshots differ; look at them with ZELLIGE_BLESS=1 and git diff: {stale:?}");
}

/// The way to a value must not be walked as often as there are ways to it.
#[test]
fn deep_searches_compile() {
    let func = kernels::searches(40);
    for arch in [Arch::Sm80, Arch::Sm90a] {
        let kernel = compile(&func, &PtxOptions::new(arch)).unwrap_or_else(|e| panic!("{arch}: {e}"));
        assert_eq!(kernel.ptx.contains("wgmma.mma_async"), arch == Arch::Sm90a, "{:?}", kernel.explain);
    }
}

/// Sixteen elements of a thread pass a long conditional by four branches.
#[test]
fn lanes_share_the_branch_around_a_long_conditional() {
    let kernel = compile(&kernels::rarely(), &PtxOptions::new(Arch::Sm90a)).unwrap();
    let branches = kernel.ptx.lines().filter(|l| l.contains(" bra ")).count();
    assert_eq!(branches, 16 + 4, "{}", kernel.ptx);
}

/// Fragments that a loop goes through side by side lie as what is done with any of them wants it, and what a reduction leaves in
/// memory is put together by one thread for each element.
#[test]
fn columns_are_reduced_once_and_stored_as_they_lie() {
    let kernel = compile(&kernels::columns(), &PtxOptions::new(Arch::Sm90a)).unwrap();
    let explain = kernel.explain.join("\n");
    assert!(explain.contains("wide access along two axes"), "{explain}");
    assert!(!explain.contains("scratch of copy"), "{explain}");
    let partials = kernel.ptx.lines().filter(|l| l.contains("ld.shared")).count();
    // Four warps, and the copy of the result.
    assert_eq!(partials, 4 + 1, "{}", kernel.ptx);
}

fn find_ptxas() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ZELLIGE_PTXAS") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("ptxas")).find(|p| p.is_file())
}

#[test]
fn every_kernel_assembles() {
    let ptxas = find_ptxas();
    if ptxas.is_none() {
        eprintln!("SKIPPED: no ptxas (set ZELLIGE_PTXAS); the kernels are compiled but not assembled");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for (name, func) in kernels::all() {
        for arch in Arch::ALL {
            let kernel = match compile(&func, &PtxOptions::new(arch)) {
                Ok(k) => k,
                Err(e) => {
                    failures.push(format!("{name} for {arch}: {e}"));
                    continue;
                }
            };
            let Some(ptxas) = &ptxas else { continue };
            let file = dir.path().join(format!("{name}.{arch}.ptx"));
            std::fs::write(&file, &kernel.ptx).unwrap();
            let out = Command::new(ptxas)
                .args(["-arch", arch.name(), "-o"])
                .arg(dir.path().join("out.cubin"))
                .arg(&file)
                .output()
                .unwrap();
            if !out.status.success() {
                let log = String::from_utf8_lossy(&out.stderr).lines().take(4).collect::<Vec<_>>().join("\n  ");
                failures.push(format!("{name} for {arch}:\n  {log}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
