//! SIMT IR as text: it reads back as what was printed, and passes do to it what the files in `simt/` say.
//!
//! A file begins with `// passes: NAME..`; a kernel follows, a line `----`, and what the passes make of it: the kernel's text
//! and, behind `//`, the decisions. `ZELLIGE_BLESS=1` rewrites the part below the line.

#[path = "ptx/kernels.rs"]
mod kernels;

use std::path::Path;
use zellige_codegen::ptx::emit::emit;
use zellige_codegen::ptx::simt::{Kernel, parse, verify};
use zellige_codegen::ptx::{Arch, PtxOptions, passes, pipeline, simt_kernel};

#[test]
fn every_kernel_reads_back_as_it_was() {
    for (name, func) in kernels::all() {
        for arch in Arch::ALL {
            let options = PtxOptions { line_info: false, ..PtxOptions::new(arch) };
            let (kernel, _) = simt_kernel(&func, &options).unwrap_or_else(|e| panic!("{name} for {arch}: {e}"));
            let text = kernel.to_string();
            let read = parse(&text).unwrap_or_else(|e| panic!("{name} for {arch}: {e}\n{text}"));
            assert!(read.to_string() == text, "{name} for {arch}:\n{text}\nreads back as\n{read}");
            verify(&read).unwrap_or_else(|e| panic!("{name} for {arch}: {e}"));
            // Comments name places in the author's source, which the text leaves out.
            let ptx = |k: &Kernel| -> Vec<String> {
                let text = emit(k, options.target, false);
                let code = text.lines().map(|l| l.split("//").next().unwrap_or_default().trim_end().to_owned());
                code.filter(|l| !l.is_empty()).collect()
            };
            assert!(ptx(&read) == ptx(&kernel), "{name} for {arch}: other code after reading back");
        }
    }
}

fn run(pass: &str, kernel: &mut Kernel, explain: &mut Vec<String>) {
    match pass {
        "dce" => passes::dce::run(kernel),
        "overlap" => passes::overlap::run(kernel, explain),
        "shared" => pipeline::shared::plan(kernel, explain),
        "barrier" => pipeline::barrier::insert(kernel, explain),
        other => panic!("no pass `{other}`"),
    }
}

#[test]
fn passes_do_what_the_files_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simt");
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "the files are in {}", dir.display());
    for path in files {
        let content = std::fs::read_to_string(&path).unwrap();
        let (input, expected) = content.split_once("----\n").unwrap_or((&content, ""));
        let named = input.lines().next().and_then(|l| l.strip_prefix("// passes:"));
        let named = named.unwrap_or_else(|| panic!("{}: the first line names no passes", path.display()));
        let mut kernel = parse(input).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        verify(&kernel).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut explain = Vec::new();
        for pass in named.split_whitespace() {
            run(pass, &mut kernel, &mut explain);
            verify(&kernel).unwrap_or_else(|e| panic!("{} after {pass}: {e}", path.display()));
        }
        let got = explain.iter().fold(kernel.to_string(), |text, line| format!("{text}// {line}\n"));
        if std::env::var_os("ZELLIGE_BLESS").is_some() {
            std::fs::write(&path, format!("{input}----\n{got}")).unwrap();
        } else {
            assert!(got == expected, "{}:\n{got}\ninstead of\n{expected}", path.display());
        }
    }
}

#[test]
fn mistakes_are_told_with_their_place() {
    let error = |body: &str| {
        let text = format!(
            "simt kernel k threads 32 shared 0\nm0: global x home block0\nvar r0: f32\nbody block0 {{\n{body}\n}}\n"
        );
        parse(&text).expect_err("a mistake").to_string()
    };
    for (body, message) in [
        ("  frob v1", "line 5, column 3: no op `frob`"),
        ("  set r0, v1", "line 5, column 11: v1 has no definition"),
        ("  set r1, 1.0f", "line 5, column 7: r1 is not declared"),
        ("  v0: f32 = get r0\n  v0: f32 = get r0", "line 6, column 7: v0 has two definitions"),
        ("  v0: f32, v1: f32 = get r0", "line 5, column 26: `get` has fewer results"),
        ("  get r0", "line 5, column 3: the op has more results"),
        ("  v0: f99 = get r0", "line 5, column 7: no class of registers"),
        ("  set r0 1.0f", "line 5, column 10: expected `,`"),
        ("  set r0, 1.0g", "line 5, column 11: expected a value or an immediate"),
        ("  print \"x", "line 5, column 9: the quotes are not closed"),
    ] {
        assert_eq!(error(body), message, "{body}");
    }
    assert!(parse("").is_err() && parse("simt kernel k threads 32 shared 0\nbody block0 {").is_err());
}
