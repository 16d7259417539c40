//! Splits IR text into tokens.

use super::error::ParseErrorKind;
use crate::numerics::Const;
use std::fmt;

/// A token's content.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum TokenKind<'s> {
    /// An identifier.
    Word(&'s str),
    /// A name in backticks, which is never a keyword.
    Quoted(String),
    /// Text in double quotes.
    Str(String),
    /// `%name`, without the percent sign.
    Value(&'s str),
    /// `$name`, without the dollar sign.
    Buffer(&'s str),
    /// An immediate, not yet checked.
    Const(&'s str),
    /// Punctuation.
    Punct(&'static str),
    /// After the last token.
    End,
}

/// A token and its place, 1-based; columns count characters.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Token<'s> {
    pub kind: TokenKind<'s>,
    pub line: u32,
    pub col: u32,
    /// Column after the last character.
    pub end_col: u32,
    /// The first token of its line.
    pub first: bool,
}

impl fmt::Display for TokenKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenKind::Word(text) | TokenKind::Const(text) => write!(f, "`{text}`"),
            TokenKind::Quoted(name) => write!(f, "{}", quote(name, '`')),
            TokenKind::Str(text) => write!(f, "{}", quote(text, '"')),
            TokenKind::Value(name) => write!(f, "`%{name}`"),
            TokenKind::Buffer(name) => write!(f, "`${name}`"),
            TokenKind::Punct(text) => write!(f, "`{text}`"),
            TokenKind::End => f.write_str("the end of the text"),
        }
    }
}

/// Where and why a character could not be understood.
pub(crate) struct LexError {
    pub line: u32,
    pub col: u32,
    pub kind: ParseErrorKind,
}

/// Longest first where one starts another.
const PUNCTUATION: [&str; 13] = ["->", "(", ")", "{", "}", "[", "]", "<", ">", ",", ":", "=", "@"];

/// True if `name` can stand in text without backticks.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && word_len(name) == name.len() && Const::token_len(name).is_none()
}

/// Bytes of the identifier at the start of `text`; 0 if none starts there.
fn word_len(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_alphabetic() || c == '_') { name_len(text) } else { 0 }
}

/// Bytes of the letters, digits and underscores at the start of `text`.
fn name_len(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// `text` between two `mark`s, on one line and with everything unprintable escaped.
pub(crate) fn quote(text: &str, mark: char) -> String {
    let mut out = String::from(mark);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == mark => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(mark);
    out
}

/// Reads what [`quote`] writes: the text and the bytes it took.
fn unquote(text: &str, mark: char, what: &'static str) -> Result<(String, usize), ParseErrorKind> {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == mark => return Ok((out, at + c.len_utf8())),
            '\n' => break,
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, 't')) => out.push('\t'),
                Some((_, c)) if c == '\\' || c == mark => out.push(c),
                Some((_, 'u')) => {
                    let code: String = chars.by_ref().map(|(_, c)| c).take_while(|&c| c != '}' && c != '\n').collect();
                    let digits = code.strip_prefix('{').unwrap_or("");
                    let decoded = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
                    out.push(decoded.ok_or_else(|| ParseErrorKind::Escape(format!("u{code}")))?);
                }
                Some((_, c)) => return Err(ParseErrorKind::Escape(c.to_string())),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err(ParseErrorKind::Unterminated(what))
}

/// The tokens of `text`, an [`End`](TokenKind::End) last, and what could not be understood.
pub(crate) fn lex(text: &str) -> (Vec<Token<'_>>, Vec<LexError>) {
    let (mut tokens, mut errors) = (Vec::new(), Vec::new());
    let (mut line, mut line_start, mut first) = (1, 0, true);
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        if c == '\n' {
            at += 1;
            (line, line_start, first) = (line + 1, at, true);
            continue;
        }
        if c == ';' {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        let column = |at: usize| text[line_start..at].chars().count() as u32 + 1;
        let col = column(at);
        match token(rest) {
            Ok((kind, len)) => {
                at += len;
                tokens.push(Token { kind, line, col, end_col: column(at), first });
                first = false;
            }
            Err(kind) => {
                // A text that does not end would only produce nonsense: go on after its line.
                let skip = if matches!(kind, ParseErrorKind::Character(_)) {
                    c.len_utf8()
                } else {
                    rest.find('\n').unwrap_or(rest.len())
                };
                at += skip;
                errors.push(LexError { line, col, kind });
            }
        }
    }
    let col = text[line_start..].chars().count() as u32 + 1;
    tokens.push(Token { kind: TokenKind::End, line, col, end_col: col, first: true });
    (tokens, errors)
}

/// The token at the start of `rest`, which is not empty, and its length.
fn token(rest: &str) -> Result<(TokenKind<'_>, usize), ParseErrorKind> {
    if let Some(len) = Const::token_len(rest) {
        return Ok((TokenKind::Const(&rest[..len]), len));
    }
    if let Some(p) = PUNCTUATION.into_iter().find(|p| rest.starts_with(p)) {
        return Ok((TokenKind::Punct(p), p.len()));
    }
    let c = rest.chars().next().unwrap_or(' ');
    let sigil_name = |name: &str| name_len(name);
    match c {
        '"' => unquote(rest, '"', "text").map(|(text, len)| (TokenKind::Str(text), len)),
        '`' => unquote(rest, '`', "name").map(|(name, len)| (TokenKind::Quoted(name), len)),
        '%' if sigil_name(&rest[1..]) > 0 => {
            let len = 1 + sigil_name(&rest[1..]);
            Ok((TokenKind::Value(&rest[1..len]), len))
        }
        '$' if sigil_name(&rest[1..]) > 0 => {
            let len = 1 + sigil_name(&rest[1..]);
            Ok((TokenKind::Buffer(&rest[1..len]), len))
        }
        _ => match word_len(rest) {
            0 => Err(ParseErrorKind::Character(c)),
            len => Ok((TokenKind::Word(&rest[..len]), len)),
        },
    }
}
