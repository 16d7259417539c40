//! What can be wrong with IR text.

use crate::diagnostic::Diagnostic;
use crate::span::Span;

/// A mistake in IR text.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{}:{}: {kind}", span.line, span.col)]
pub struct ParseError {
    /// Where in the text. The file is the one given to the parser.
    pub span: Span,
    pub kind: ParseErrorKind,
    /// The way out, where there is one to suggest.
    pub help: Option<String>,
}

/// What is wrong.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ParseErrorKind {
    #[error("expected {expected}, found {found}")]
    Expected { expected: String, found: String },
    #[error("`{0}` is not an op")]
    UnknownOp(String),
    #[error("no {what} is called `{name}`")]
    UnknownName { what: &'static str, name: String },
    #[error("{what} `{name}` is declared twice")]
    DeclaredTwice { what: &'static str, name: String },
    #[error("`{0}` is never defined")]
    Undefined(String),
    #[error("`{name}` is defined as {first} and again as {second}")]
    TypeConflict { name: String, first: String, second: String },
    #[error(transparent)]
    Constant(#[from] crate::numerics::ParseConstError),
    #[error("unexpected character `{0}`")]
    Character(char),
    #[error("this {0} does not end on its line")]
    Unterminated(&'static str),
    #[error("`\\{0}` is not an escape")]
    Escape(String),
}

/// What a parsing function returns.
pub(crate) type Parsed<T> = Result<T, Box<ParseError>>;

impl From<&ParseError> for Diagnostic {
    fn from(e: &ParseError) -> Diagnostic {
        let d = Diagnostic::error(e.kind.to_string()).at(e.span.clone(), "");
        match &e.help {
            Some(help) => d.help(help.clone()),
            None => d,
        }
    }
}

/// The candidate that `name` is probably a misspelling of.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(name, c), c))
        .filter(|&(distance, c)| distance <= (c.chars().count().max(name.chars().count()) / 3).max(1))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, c)| c)
}
