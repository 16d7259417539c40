//! Rules about the tree itself: which crate may depend on which, how long a file may be, what a file opens with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Crates from the bottom up, with the crates of ours that each may name.
const LAYERS: [(&str, &[&str]); 8] = [
    ("ir", &[]),
    ("codegen", &["zellige-ir"]),
    ("runtime", &["zellige-ir", "zellige-codegen"]),
    ("dsl/macros", &[]),
    ("dsl", &["zellige-ir", "zellige-runtime", "zellige-macros"]),
    ("kernels", &["zellige", "zellige-ir", "zellige-codegen", "zellige-runtime"]),
    ("tests", &["zellige", "zellige-ir", "zellige-codegen", "zellige-runtime", "zellige-kernels"]),
    ("benches", &["zellige", "zellige-ir", "zellige-codegen", "zellige-runtime", "zellige-kernels"]),
];

/// A file longer than this holds more than one concept.
const MAX_LINES: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the tree is readable") {
        let path = entry.expect("the tree is readable").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() && !matches!(name, "target" | ".git" | "ui") {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    for (dir, allowed) in LAYERS {
        let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap();
        let mut section = String::new();
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line.trim().to_owned();
            }
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            let ours = name == "zellige" || name.starts_with("zellige-");
            // A crate may use a higher one in its tests only if that is declared here.
            if ours && section == "[dependencies]" && !allowed.contains(&name) {
                wrong.push(format!("{dir} depends on {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_hold_one_concept_and_say_which() {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{shown} has {lines} lines, the limit is {MAX_LINES}"));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{shown} does not open with what it is for"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn kernel_names_are_unique_and_match_their_family_folder() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for k in zellige_kernels::library::all() {
        let info = k.info();
        *seen.entry(info.name).or_default() += 1;
        assert!(root().join("kernels/src").join(info.family.name()).is_dir(), "{} has no folder", info.family.name());
        assert!(!info.summary.is_empty() && !info.equation.is_empty() && !info.source.is_empty(), "{}", info.name);
    }
    let twice: Vec<_> = seen.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
