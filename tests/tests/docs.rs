//! Excerpts in the documentation are what the source says.

use std::path::Path;

/// Each fenced block whose first line is `// path` must occur in that file, whatever its indentation.
fn check_excerpts(page: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let text = std::fs::read_to_string(root.join(page)).expect("the page is readable");
    let trimmed = |text: &str| text.lines().map(|line| format!("{}\n", line.trim())).collect::<String>();
    let mut excerpts = 0;
    for block in text.split("```rust").skip(1) {
        // `rust,ignore` on pages whose other blocks are documentation tests.
        let block = block.strip_prefix(",ignore").unwrap_or(block).trim_start_matches('\n');
        let block = block.split("```").next().unwrap_or(block);
        let Some((path, code)) =
            block.split_once('\n').and_then(|(first, code)| Some((first.strip_prefix("// ")?, code)))
        else {
            continue;
        };
        let source = std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{page}: {path}: {e}"));
        assert!(trimmed(&source).contains(&trimmed(code)), "{page}: {path} does not contain\n{code}");
        excerpts += 1;
    }
    assert!(excerpts > 0, "{page} has no excerpts");
}

#[test]
fn adding_an_op() {
    check_excerpts("docs/add-an-op.md");
}

#[test]
fn adding_a_pass() {
    check_excerpts("docs/add-a-pass.md");
}

#[test]
fn the_kernel_of_the_readme() {
    check_excerpts("README.md");
}

/// The messages that the README shows are ones that tests keep.
#[test]
fn the_errors_of_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("the page is readable");
    let kept: String = std::fs::read_dir(root.join("dsl/tests/mistakes"))
        .expect("the folder is readable")
        .map(|file| std::fs::read_to_string(file.expect("a file").path()).expect("the file is readable"))
        .collect();
    let block = readme.split("```\n").find(|block| block.starts_with("error: ")).expect("the README shows errors");
    let messages: Vec<&str> = block.split("\n\n").map(str::trim_end).collect();
    assert!(messages.len() > 1, "{block}");
    for message in messages {
        assert!(kept.contains(message), "no test keeps\n{message}");
    }
}
