//! Places in the author's source. Spans lie beside the entries they describe, so that IR types
//! stay free of them and two functions that differ only in spans print the same canonical text.

use std::fmt;
use std::sync::Arc;

/// A place in the author's source: where an op, a buffer or a parameter was written.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Span {
    /// Path as the compiler saw it.
    pub file: Arc<str>,
    /// 1-based line; 0 when the place is unknown.
    pub line: u32,
    /// 1-based column; 0 when the place is unknown.
    pub col: u32,
}

impl Span {
    /// The span of something that no author wrote.
    pub fn unknown() -> Span {
        thread_local!(static EMPTY: Arc<str> = Arc::from(""));
        Span { file: EMPTY.with(Arc::clone), line: 0, col: 0 }
    }

    /// True when the place is not known.
    pub fn is_unknown(&self) -> bool {
        self.line == 0
    }
}

impl From<&std::panic::Location<'_>> for Span {
    fn from(at: &std::panic::Location<'_>) -> Span {
        Span { file: Arc::from(at.file()), line: at.line(), col: at.column() }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unknown() { f.write_str("<unknown>") } else { write!(f, "{}:{}:{}", self.file, self.line, self.col) }
    }
}
