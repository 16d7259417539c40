//! Messages to kernel authors: one type for every stage, one renderer in the style of rustc.
//!
//! A [`Diagnostic`] names places in the author's source by [`Span`]. The renderer reads the source file
//! from disk, or from a text it was given, and falls back to `--> file:line:col` where it has neither.
//! Depends on [`span`](crate::span) only.

use crate::span::Span;
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer as Backend, Snippet};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The kernel cannot be built.
    Error,
    /// The kernel can be built, but the author probably means something else.
    Warning,
    /// Information.
    Note,
}

/// A place and what is to be said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    pub span: Span,
    pub text: String,
}

/// A message with the places it is about.
///
/// The message says what is wrong, in the author's terms; the primary label marks the place and says what
/// was found there; the notes mark the other places involved; the help says what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    pub severity: Severity,
    pub message: String,
    pub primary: Label,
    pub notes: Vec<Label>,
    pub help: Option<String>,
}

impl Diagnostic {
    /// A message without a place.
    pub fn new(severity: Severity, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity,
            message: message.into(),
            primary: Label { span: Span::unknown(), text: String::new() },
            notes: Vec::new(),
            help: None,
        }
    }

    /// An error without a place.
    pub fn error(message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Error, message)
    }

    /// A warning without a place.
    pub fn warning(message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Warning, message)
    }

    /// Sets the place the message is about. The label may be empty.
    #[must_use]
    pub fn at(mut self, span: Span, label: impl Into<String>) -> Diagnostic {
        self.primary = Label { span, text: label.into() };
        self
    }

    /// Adds another place.
    #[must_use]
    pub fn note_at(mut self, span: Span, label: impl Into<String>) -> Diagnostic {
        self.notes.push(Label { span, text: label.into() });
        self
    }

    /// Adds a note without a place.
    #[must_use]
    pub fn note(self, text: impl Into<String>) -> Diagnostic {
        self.note_at(Span::unknown(), text)
    }

    /// Says what to do about it.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Diagnostic {
        self.help = Some(text.into());
        self
    }
}

/// The message alone; [`render`] shows the rest.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diagnostic {}

/// Renders diagnostics without colours, one blank line between two.
pub fn render(diagnostics: &[Diagnostic]) -> String {
    Renderer::plain().render(diagnostics)
}

/// Renders diagnostics with ANSI colours, one blank line between two.
pub fn render_styled(diagnostics: &[Diagnostic]) -> String {
    Renderer::styled().render(diagnostics)
}

/// Turns diagnostics into text.
pub struct Renderer {
    backend: Backend,
    /// Texts by file name; `None` for files that could not be read.
    sources: HashMap<Arc<str>, Option<String>>,
}

impl Renderer {
    /// Without colours.
    pub fn plain() -> Renderer {
        Renderer { backend: Backend::plain(), sources: HashMap::new() }
    }

    /// With ANSI colours.
    pub fn styled() -> Renderer {
        Renderer { backend: Backend::styled(), sources: HashMap::new() }
    }

    /// Gives the text of a file, which is then not read from disk.
    #[must_use]
    pub fn with_source(mut self, file: impl Into<Arc<str>>, text: impl Into<String>) -> Renderer {
        self.sources.insert(file.into(), Some(text.into()));
        self
    }

    /// The diagnostics' text, one blank line between two, with a line end after the last.
    pub fn render(mut self, diagnostics: &[Diagnostic]) -> String {
        for label in diagnostics.iter().flat_map(|d| std::iter::once(&d.primary).chain(&d.notes)) {
            if !label.span.is_unknown() {
                self.sources.entry(Arc::clone(&label.span.file)).or_insert_with(|| read_source(&label.span.file));
            }
        }
        let parts: Vec<String> = diagnostics.iter().map(|d| self.render_one(d)).collect();
        let mut text = parts.join("\n\n");
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }

    fn render_one(&self, d: &Diagnostic) -> String {
        let level = match d.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let mut group = Group::with_title(level.primary_title(d.message.as_str()));
        // One snippet for each file, in order of first mention, so that rustc's layout of several labels applies.
        let mut snippets: Vec<(&str, &str, Vec<Annotation<'_>>)> = Vec::new();
        let mut placeless: Vec<&Label> = Vec::new();
        for (position, label) in std::iter::once(&d.primary).chain(&d.notes).enumerate() {
            let is_primary = position == 0;
            let kind = if is_primary { AnnotationKind::Primary } else { AnnotationKind::Context };
            match self.locate(&label.span) {
                Some((text, range)) => {
                    let annotation = kind.span(range).label(label.text.as_str());
                    let file: &str = &label.span.file;
                    match snippets.iter_mut().find(|(path, _, _)| *path == file) {
                        Some((_, _, annotations)) => annotations.push(annotation),
                        None => snippets.push((file, text, vec![annotation])),
                    }
                }
                None if !label.span.is_unknown() || !label.text.is_empty() => placeless.push(label),
                None => {}
            }
        }
        for (path, text, annotations) in snippets {
            group = group.element(Snippet::source(text).path(path).annotations(annotations));
        }
        for label in placeless {
            if !label.span.is_unknown() {
                let mut origin = Origin::path(&*label.span.file).line(label.span.line as usize);
                if label.span.col != 0 {
                    origin = origin.char_column(label.span.col as usize);
                }
                group = group.element(origin);
            }
            if !label.text.is_empty() {
                group = group.element(Level::NOTE.message(label.text.as_str()));
            }
        }
        if let Some(help) = &d.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        self.backend.render(&[group])
    }

    /// The file's text and the bytes of it that a span marks, if the place exists.
    fn locate(&self, span: &Span) -> Option<(&str, Range<usize>)> {
        if span.is_unknown() {
            return None;
        }
        let text = self.sources.get(&span.file)?.as_deref()?;
        let mut start = 0;
        for _ in 1..span.line {
            start += text[start..].find('\n')? + 1;
        }
        let line = text[start..].lines().next().unwrap_or("");
        let within = if span.col == 0 {
            line.len() - line.trim_start().len()..line.trim_end().len()
        } else {
            let column = line.char_indices().map(|(at, _)| at).chain([line.len()]).nth(span.col as usize - 1)?;
            column..column + phrase_len(&line[column..])
        };
        Some((text, start + within.start..start + within.end))
    }
}

/// Length of what a span that starts here most likely means: a name, with its arguments if they end on the
/// same line, or else one character.
fn phrase_len(rest: &str) -> usize {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let sigil = rest.len() - rest.trim_start_matches(['%', '$']).len();
    let name = sigil + rest[sigil..].find(|c| !is_name(c)).unwrap_or(rest.len() - sigil);
    if name == sigil {
        return rest.chars().next().map_or(0, char::len_utf8);
    }
    if !rest[name..].starts_with('(') {
        return name;
    }
    let mut depth = 0;
    for (at, c) in rest[name..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return name + at + 1;
        }
    }
    name
}

/// Reads a file whose path the compiler recorded: relative to the directory cargo was started for, which is
/// the working directory or, in tests and examples of a workspace member, one above it.
fn read_source(file: &str) -> Option<String> {
    let path = PathBuf::from(file);
    if path.is_absolute() {
        return std::fs::read_to_string(path).ok();
    }
    let here = std::env::current_dir().ok()?;
    here.ancestors().find_map(|dir| std::fs::read_to_string(dir.join(&path)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(file: &str, line: u32, col: u32) -> Span {
        Span { file: Arc::from(file), line, col }
    }

    const SOURCE: &str = "fn k() {\n    let a = t.shared([64, 32]);\n    let b = t.shared([64, 64]);\n\n\n\n    t.copy(a, b);\n    t.gemm(\n        a);\n}\n";

    #[test]
    fn labels_of_one_file_share_a_snippet() {
        let d = Diagnostic::error("copy between tiles of different shapes")
            .at(span("k.rs", 7, 7), "64x32 to 64x64")
            .note_at(span("k.rs", 2, 15), "`a` is 64x32")
            .note_at(span("k.rs", 3, 15), "`b` is 64x64")
            .help("allocate `b` as [64, 32]");
        let expected = "\
error: copy between tiles of different shapes
 --> k.rs:7:7
  |
2 |     let a = t.shared([64, 32]);
  |               ---------------- `a` is 64x32
3 |     let b = t.shared([64, 64]);
  |               ---------------- `b` is 64x64
...
7 |     t.copy(a, b);
  |       ^^^^^^^^^^ 64x32 to 64x64
  |
  = help: allocate `b` as [64, 32]
";
        assert_eq!(Renderer::plain().with_source("k.rs", SOURCE).render(&[d]), expected);
    }

    #[test]
    fn missing_source_degrades_to_the_place() {
        let d = Diagnostic::warning("unused tile")
            .at(span("no/such/file.rs", 3, 4), "allocated here")
            .note_at(span("no/such/other.rs", 1, 1), "and here")
            .help("remove it");
        let expected = "\
warning: unused tile
--> no/such/file.rs:3:4
 = note: allocated here
::: no/such/other.rs:1:1
 = note: and here
 = help: remove it
";
        assert_eq!(render(&[d]), expected);
    }

    #[test]
    fn places_outside_the_text_degrade() {
        for (line, col) in [(400, 1), (2, 900)] {
            let d = Diagnostic::error("stale").at(span("k.rs", line, col), "here");
            let text = Renderer::plain().with_source("k.rs", SOURCE).render(&[d]);
            assert!(text.contains(&format!("--> k.rs:{line}:{col}")), "{text}");
        }
    }

    #[test]
    fn unknown_place_prints_message_notes_and_help() {
        let d = Diagnostic::error("no grid").note("a kernel needs one").help("call `t.grid`");
        assert_eq!(render(&[d]), "error: no grid\n |\n = note: a kernel needs one\n = help: call `t.grid`\n");
    }

    #[test]
    fn several_are_separated_by_a_blank_line() {
        let text = render(&[Diagnostic::error("one"), Diagnostic::warning("two")]);
        assert_eq!(text, "error: one\n\nwarning: two\n");
    }

    #[test]
    fn reads_the_file_the_compiler_recorded() {
        let here = Span::from(std::panic::Location::caller());
        let text = render(&[Diagnostic::error("look").at(here, "the call itself")]);
        assert!(text.contains("let here = Span::from("), "{text}");
    }

    #[test]
    fn styled_output_has_colours_and_plain_has_none() {
        let d = [Diagnostic::error("look")];
        assert!(render_styled(&d).contains("\u{1b}["));
        assert!(!render(&d).contains("\u{1b}["));
    }

    #[test]
    fn marks_a_name_with_its_arguments() {
        for (rest, marked) in [
            ("copy(a, b[(1, 2)]); x", "copy(a, b[(1, 2)])"),
            ("gemm(", "gemm"),
            ("%12, 4", "%12"),
            ("+ 1", "+"),
            ("é", "é"),
            ("", ""),
        ] {
            assert_eq!(&rest[..phrase_len(rest)], marked);
        }
    }
}
