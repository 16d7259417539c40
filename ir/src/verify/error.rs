//! A violation and its presentation.

use super::Rule;
use crate::diagnostic::{Diagnostic, Label};
use crate::func::Op;
use crate::span::Span;

/// A violated rule.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{span}: {message}, in `{text}`")]
pub struct VerifyError {
    pub rule: Rule,
    /// What is wrong, with the names of the function's text.
    pub message: String,
    /// The op at fault; `None` for the signature.
    pub op: Option<Op>,
    /// The op's text, or the function's name.
    pub text: String,
    pub span: Span,
    /// Other places involved.
    pub notes: Vec<Label>,
    /// The way out, where there is one to suggest.
    pub help: Option<String>,
}

impl VerifyError {
    pub(super) fn note(&mut self, span: Span, text: impl Into<String>) -> &mut VerifyError {
        self.notes.push(Label { span, text: text.into() });
        self
    }

    pub(super) fn help(&mut self, text: impl Into<String>) -> &mut VerifyError {
        self.help = Some(text.into());
        self
    }
}

impl From<&VerifyError> for Diagnostic {
    fn from(e: &VerifyError) -> Diagnostic {
        let mut d = Diagnostic::error(e.message.clone()).at(e.span.clone(), "");
        d.notes = e.notes.clone();
        let d = d.note(format!("in `{}`", e.text)).note(format!("rule {}: {}", e.rule.number(), e.rule.text()));
        match &e.help {
            Some(help) => d.help(help.clone()),
            None => d,
        }
    }
}
