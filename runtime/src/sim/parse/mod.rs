//! PTX text to [`ast::Ast`]: lexer, module-level directives, kernel bodies. Knows no opcode's meaning.

pub mod ast;
mod body;
mod lexer;
mod module;

pub use module::parse;

use lexer::{Tok, Token};

use crate::sim::error::SimError;

/// A cursor over tokens with the errors every part of the parser raises.
struct Cursor<'a> {
    text: &'a str,
    tokens: &'a [Token<'a>],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Tok<'a> {
        self.tokens[self.at].tok
    }

    fn peek_at(&self, ahead: usize) -> Tok<'a> {
        self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].tok
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    fn next(&mut self) -> Tok<'a> {
        let t = self.peek();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        t
    }

    /// Consumes `p` if it comes next.
    fn eat(&mut self, p: char) -> bool {
        let hit = self.peek() == Tok::Punct(p);
        if hit {
            self.next();
        }
        hit
    }

    fn expect(&mut self, p: char) -> Result<(), SimError> {
        if self.eat(p) { Ok(()) } else { Err(self.error(format!("expected `{p}`, found {}", self.found()))) }
    }

    fn name(&mut self, what: &str) -> Result<&'a str, SimError> {
        match self.peek() {
            Tok::Name(n) => {
                self.next();
                Ok(n)
            }
            _ => Err(self.error(format!("expected {what}, found {}", self.found()))),
        }
    }

    fn int(&mut self, what: &str) -> Result<u64, SimError> {
        match self.peek() {
            Tok::Int(v) => {
                self.next();
                Ok(v)
            }
            _ => Err(self.error(format!("expected {what}, found {}", self.found()))),
        }
    }

    fn int32(&mut self, what: &str) -> Result<u32, SimError> {
        let v = self.int(what)?;
        u32::try_from(v).map_err(|_| self.error(format!("{what} {v} does not fit in 32 bits")))
    }

    fn found(&self) -> String {
        match self.peek() {
            Tok::Name(n) => format!("`{n}`"),
            Tok::Dot(d) => format!("`.{d}`"),
            Tok::Int(v) => format!("`{v}`"),
            Tok::F32(b) => format!("`0f{b:08X}`"),
            Tok::F64(b) => format!("`0d{b:016X}`"),
            Tok::Str(s) => format!("{s:?}"),
            Tok::Punct(p) => format!("`{p}`"),
            Tok::End => "the end of the text".into(),
        }
    }

    fn source_line(&self, line: u32) -> String {
        self.text.lines().nth((line as usize).saturating_sub(1)).unwrap_or("").trim().to_string()
    }

    fn error(&self, message: String) -> SimError {
        let t = &self.tokens[self.at];
        SimError::Parse { line: t.line, col: t.col, text: self.source_line(t.line), message }
    }

    fn not_simulated(&self, what: String) -> SimError {
        let line = self.line();
        SimError::NotSimulated { what, line, text: self.source_line(line) }
    }
}
