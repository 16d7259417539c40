//! Filetests: IR text with commands and expectations in its comments.
//!
//! ```text
//! ; test verify                    a command; several may follow each other
//!
//! func f(x: tensor<f32, [4]>) threads 32 {
//! grid (%bx) in (1)
//! body:
//!   store 1.0f32 -> x[0]           ; error: read-only
//! }
//!
//! ; run: x = iota(4)               inputs of a run, see [`inputs`]
//! ; out: x = [0, 1, 2, 3]          the tensors it leaves
//!
//! ; check: func f(..               what a printing command prints, line by line
//! ```
//!
//! An `error:` must be part of the message of an error on its line; a message without one, and one without a message, fail
//! the test. With `ZELLIGE_BLESS=1` the expectations are rewritten to what was found.
//!
//! A [`Command`] is a function: tests of a pass register theirs with [`check_directory`].

pub mod commands;
pub mod inputs;
pub mod passes;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use zellige_ir::{Func, text};

/// What a command does with a file.
pub type Command = fn(&TestFile) -> Outcome;

/// A filetest as read from disk.
#[derive(Clone, Debug)]
pub struct TestFile {
    pub path: PathBuf,
    pub text: String,
    /// Names of the commands, with their arguments.
    pub commands: Vec<String>,
    pub runs: Vec<Run>,
    /// Text after `check:` of the lines that have it.
    pub checks: Vec<String>,
    /// Expected errors with their lines.
    pub errors: Vec<(u32, String)>,
}

/// One execution that a file asks for.
#[derive(Clone, Debug)]
pub struct Run {
    pub line: u32,
    /// Text after `run:`.
    pub inputs: String,
    /// Texts after `out:`, up to the next `run:`.
    pub outputs: Vec<String>,
}

/// What a command found, to be compared with the expectations.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Errors with their lines.
    pub errors: Vec<(u32, String)>,
    /// Lines printed, if the command prints.
    pub printed: Option<Vec<String>>,
    /// The outputs of each run, if the command runs.
    pub outputs: Option<Vec<Vec<String>>>,
}

/// Position of a comment's keyword in a line and the text after it.
fn comment<'a>(line: &'a str, keyword: &str) -> Option<(usize, &'a str)> {
    let marker = format!("; {keyword}:");
    let at = line.find(&marker)?;
    let rest = &line[at + marker.len()..];
    Some((at, rest.strip_prefix(' ').unwrap_or(rest)))
}

impl TestFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or has no command.
    pub fn read(path: &Path) -> Result<TestFile, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut file = TestFile {
            path: path.to_owned(),
            commands: Vec::new(),
            runs: Vec::new(),
            checks: Vec::new(),
            errors: Vec::new(),
            text: String::new(),
        };
        for (n, line) in (1..).zip(text.lines()) {
            if let Some(command) = line.strip_prefix("; test ") {
                file.commands.push(command.trim().to_owned());
            } else if let Some((0, check)) = comment(line, "check") {
                file.checks.push(check.to_owned());
            } else if let Some((0, inputs)) = comment(line, "run") {
                file.runs.push(Run { line: n, inputs: inputs.to_owned(), outputs: Vec::new() });
            } else if let Some((0, output)) = comment(line, "out") {
                let run =
                    file.runs.last_mut().ok_or_else(|| format!("{}:{n}: `out` before any `run`", path.display()))?;
                run.outputs.push(output.to_owned());
            } else if let Some((_, errors)) = comment(line, "error") {
                file.errors.extend(errors.split("; error:").map(|e| (n, e.trim().to_owned())));
            }
        }
        if file.commands.is_empty() {
            return Err(format!("{}: no `; test ..` line", path.display()));
        }
        file.text = text;
        Ok(file)
    }

    /// The file's name, which spans in its functions carry.
    pub fn name(&self) -> String {
        self.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The functions in the file.
    ///
    /// # Errors
    /// What the parser objects to.
    pub fn funcs(&self) -> Result<Vec<Func>, Vec<text::ParseError>> {
        text::parse_file(&self.name(), &self.text)
    }

    /// The text with what was found in place of the expectations.
    fn blessed(&self, outcome: &Outcome) -> String {
        let mut out = String::new();
        let mut run = 0;
        for (n, line) in (1u32..).zip(self.text.lines()) {
            if matches!(comment(line, "check"), Some((0, _))) && outcome.printed.is_some() {
                continue;
            }
            if matches!(comment(line, "out"), Some((0, _))) && outcome.outputs.is_some() {
                continue;
            }
            let code = comment(line, "error").map_or(line, |(at, _)| line[..at].trim_end());
            out.push_str(code);
            for (i, (_, message)) in outcome.errors.iter().filter(|(at, _)| *at == n).enumerate() {
                let gap = if i == 0 { "  " } else { " " };
                write!(out, "{gap}; error: {message}").expect("writing to a string");
            }
            out.push('\n');
            if matches!(comment(line, "run"), Some((0, _))) {
                for output in outcome.outputs.iter().filter_map(|all| all.get(run)).flatten() {
                    writeln!(out, "; out: {output}").expect("writing to a string");
                }
                run += 1;
            }
        }
        if let Some(printed) = &outcome.printed {
            out.truncate(out.trim_end().len());
            out.push_str("\n\n");
            for line in printed {
                writeln!(out, "{}", format!("; check: {line}").trim_end()).expect("writing to a string");
            }
        }
        out
    }

    /// How the outcome differs from the expectations.
    fn differences(&self, outcome: &Outcome) -> Vec<String> {
        let mut differences = Vec::new();
        let mut found = outcome.errors.clone();
        for (line, want) in &self.errors {
            match found.iter().position(|(at, message)| at == line && message.contains(want)) {
                Some(at) => drop(found.remove(at)),
                None => differences.push(format!("line {line}: expected the error: {want}")),
            }
        }
        differences.extend(found.iter().map(|(line, message)| format!("line {line}: unexpected error: {message}")));
        if let Some(printed) = &outcome.printed {
            let printed: Vec<&str> = printed.iter().map(|line| line.trim_end()).collect();
            let checks: Vec<&str> = self.checks.iter().map(|line| line.trim_end()).collect();
            if printed != checks {
                let at = (0..).find(|&i| printed.get(i) != checks.get(i)).unwrap_or(0);
                let shown = |lines: &[&str]| lines.get(at).map_or("nothing".to_owned(), |line| format!("`{line}`"));
                differences.push(format!(
                    "check line {}: expected {}, found {}",
                    at + 1,
                    shown(&checks),
                    shown(&printed)
                ));
            }
        }
        for (run, found) in self.runs.iter().zip(outcome.outputs.iter().flatten()) {
            if run.outputs != *found {
                differences.push(format!("line {}: expected {:?}, found {found:?}", run.line, run.outputs));
            }
        }
        differences
    }
}

/// Runs a file's commands; with `bless`, rewrites its expectations.
///
/// # Errors
/// What differs from the expectations, one to a line, with the file's name.
pub fn check_file(path: &Path, commands: &[(&str, Command)], bless: bool) -> Result<(), String> {
    let file = TestFile::read(path)?;
    let mut all = Outcome::default();
    for name in &file.commands {
        let Some((_, command)) = commands.iter().find(|(n, _)| n == name) else {
            let known: Vec<&str> = commands.iter().map(|(n, _)| *n).collect();
            return Err(format!("{}: unknown command `{name}`, expected one of {known:?}", path.display()));
        };
        let outcome = command(&file);
        for error in outcome.errors {
            // Two commands may find the same.
            if !all.errors.contains(&error) {
                all.errors.push(error);
            }
        }
        all.printed = outcome.printed.or(all.printed);
        all.outputs = outcome.outputs.or(all.outputs);
    }
    let lines = file.text.lines().count() as u32;
    if let Some((line, message)) = all.errors.iter().find(|(line, _)| !(1..=lines).contains(line)) {
        return Err(format!("{}:\n  line {line}: {message}", path.display()));
    }
    if bless {
        let blessed = file.blessed(&all);
        if blessed != file.text {
            std::fs::write(path, blessed).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        return Ok(());
    }
    let differences = file.differences(&all);
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!("{}:\n  {}", path.display(), differences.join("\n  ")))
}

/// All `.tile` files below a directory, in order of their paths.
///
/// # Errors
/// If a directory cannot be read.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", directory.display()))?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|e| e == "tile") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Checks all files below `tests/filetests/DIRECTORY` with the given commands. `ZELLIGE_FILETEST=PART` takes only files with
/// `PART` in their path; `ZELLIGE_BLESS=1` rewrites expectations.
///
/// # Panics
/// If a file differs from its expectations, with all differences; or if there is no file.
pub fn check_directory(directory: &str, commands: &[(&str, Command)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests").join(directory);
    let bless = std::env::var("ZELLIGE_BLESS").is_ok_and(|v| v == "1");
    let only = std::env::var("ZELLIGE_FILETEST").unwrap_or_default();
    let all = files(&root).unwrap_or_else(|e| panic!("{e}"));
    assert!(!all.is_empty(), "no filetests in {}", root.display());
    let chosen = all.iter().filter(|path| path.to_string_lossy().contains(&only));
    let failures: Vec<String> = chosen.filter_map(|path| check_file(path, commands, bless).err()).collect();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}
