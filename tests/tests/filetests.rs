//! Runs the files in `tests/filetests`. A new directory needs a test here; a new pass gives it the pass's command.

use std::collections::HashSet;
use std::path::Path;
use zellige_ir::passes::simplify;
use zellige_ir::verify::Rule;
use zellige_ir::{OpKind, verify};
use zellige_tests::filetest::{self, TestFile, commands, passes};

const DIRECTORIES: [&str; 8] = ["parse", "verify", "run", "simplify", "licm", "roll", "forward", "pipeline"];

#[test]
fn parse() {
    filetest::check_directory("parse", commands::IR);
}

#[test]
fn verifier() {
    filetest::check_directory("verify", commands::IR);
}

#[test]
fn run() {
    filetest::check_directory("run", commands::IR);
}

#[test]
fn simplify() {
    filetest::check_directory("simplify", passes::PASSES);
}

#[test]
fn licm() {
    filetest::check_directory("licm", passes::PASSES);
}

#[test]
fn roll() {
    filetest::check_directory("roll", passes::PASSES);
}

#[test]
fn forward() {
    filetest::check_directory("forward", passes::PASSES);
}

#[test]
fn pipeline() {
    filetest::check_directory("pipeline", passes::PASSES);
}

fn read(directory: &str) -> Vec<TestFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests").join(directory);
    let paths = filetest::files(&root).expect("the directory is readable");
    paths.iter().map(|path| TestFile::read(path).expect("the file is readable")).collect()
}

#[test]
fn every_directory_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let found: HashSet<String> = std::fs::read_dir(root)
        .expect("the directory is readable")
        .map(|entry| entry.expect("the entry is readable").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, DIRECTORIES.iter().map(|&d| d.to_owned()).collect());
}

#[test]
fn every_op_is_parsed_and_every_op_runs() {
    for directory in ["parse", "run"] {
        let mut seen = HashSet::new();
        for func in read(directory).iter().filter_map(|file| file.funcs().ok()).flatten() {
            for region in [func.prelude, func.body] {
                func.walk(region, &mut |_, op| {
                    seen.insert(op.kind.name());
                });
            }
        }
        let missing: Vec<&str> =
            OpKind::TABLE.iter().map(|info| info.name).filter(|name| !seen.contains(name)).collect();
        assert!(missing.is_empty(), "no file in {directory} has {missing:?}");
    }
}

#[test]
fn every_rule_of_the_simplifier_is_applied() {
    let mut unseen: HashSet<&str> = simplify::rules().map(|(name, _)| name).collect();
    for mut func in read("simplify").iter().filter_map(|file| file.funcs().ok()).flatten() {
        for (rule, _) in simplify::run(&mut func).iter() {
            unseen.remove(rule);
        }
    }
    assert!(unseen.is_empty(), "no file applies {unseen:?}");
}

/// What the parser rejects already is in the verifier's unit tests.
#[test]
fn every_rule_is_violated() {
    let mut seen = HashSet::from([Rule::Ids, Rule::Tree, Rule::Names, Rule::Dims]);
    for func in read("verify").iter().filter_map(|file| file.funcs().ok()).flatten() {
        seen.extend(verify(&func).err().unwrap_or_default().iter().map(|e| e.rule));
    }
    let missing: Vec<Rule> = Rule::ALL.iter().copied().filter(|rule| !seen.contains(rule)).collect();
    assert!(missing.is_empty(), "no file violates {missing:?}");
}
