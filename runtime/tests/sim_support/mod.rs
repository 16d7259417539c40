//! Shared by the simulator's tests: wraps PTX bodies into modules, assembles them with `ptxas` where there is one, runs them.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;

use zellige_runtime::sim::{Fault, FaultKind, LaunchDims, Memory, Module, ParamBlock, Report, SimOptions, launch};

/// A module with one kernel `k`; `dyn` is its dynamic shared memory.
pub fn module_text(arch: &str, params: &str, body: &str) -> String {
    format!(
        ".version 8.0\n.target {arch}\n.address_size 64 .extern .shared .align 1024 .b8 dyn[];\n.visible .entry k({params})\n{{\n{body}\n}}\n"
    )
}

/// Assembles `text` if `ZELLIGE_PTXAS` names a `ptxas`; says loudly that it does not otherwise.
pub fn assemble(text: &str) {
    static SAID: Once = Once::new();
    let Some(ptxas) = std::env::var_os("ZELLIGE_PTXAS") else {
        SAID.call_once(|| eprintln!("SKIPPED: ZELLIGE_PTXAS is not set, the PTX of these tests is not assembled"));
        return;
    };
    let arch = text.split(".target").nth(1).and_then(|t| t.split_whitespace().next()).expect("a target");
    let id = format!("{:?}-{:x}", std::thread::current().id(), text.len() as u64 ^ text.as_ptr() as u64);
    let file: PathBuf =
        std::env::temp_dir().join(format!("zellige-sim-{}-{}.ptx", std::process::id(), id.replace(['(', ')'], "")));
    std::fs::write(&file, text).expect("temporary file");
    let out = Command::new(ptxas).args(["-arch", arch, "-o", "/dev/null"]).arg(&file).output().expect("ptxas runs");
    let _ = std::fs::remove_file(&file);
    assert!(
        out.status.success(),
        "ptxas rejects:\n{text}\n{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Loads a module, after assembling it.
pub fn load(text: &str) -> Module {
    assemble(text);
    Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Runs kernel `k` with every check on.
pub fn run(text: &str, dims: LaunchDims, params: &ParamBlock, memory: &mut Memory) -> Report {
    run_with(text, dims, params, memory, &SimOptions::default())
}

pub fn run_with(
    text: &str,
    dims: LaunchDims,
    params: &ParamBlock,
    memory: &mut Memory,
    options: &SimOptions,
) -> Report {
    launch(&load(text), "k", dims, params.as_bytes(), memory, options).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs and insists on a clean report.
pub fn run_clean(text: &str, dims: LaunchDims, params: &ParamBlock, memory: &mut Memory) -> Report {
    let r = run(text, dims, params, memory);
    assert!(r.faults.is_empty(), "{}\n{text}", r.describe());
    r
}

/// The only kind of fault in a report.
pub fn only(r: &Report, kind: FaultKind) -> &Fault {
    let kinds: Vec<_> = r.faults.iter().map(|f| f.kind).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|k| *k == kind), "expected only {kind:?}:\n{}", r.describe());
    &r.faults[0]
}

pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    words(bytes).into_iter().map(f32::from_bits).collect()
}

pub fn bytes32(v: &[u32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub fn bytes64(v: &[u64]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A reproducible stream of numbers.
pub struct Lcg(pub u64);

impl Lcg {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In -1..1, exactly representable in bf16 and f16.
    pub fn small(&mut self) -> f32 {
        (self.next() % 255) as f32 / 128.0 - 127.0 / 128.0
    }
}
