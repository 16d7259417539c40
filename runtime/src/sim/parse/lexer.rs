//! Splits PTX text into tokens. Keeps line and column of every token, and the author's `// file:line` notes.

use std::collections::HashMap;

use crate::sim::error::{SimError, SourceRef};

/// What a token is; the text of names is kept as a slice of the source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tok<'a> {
    /// A register, symbol, label or opcode word: `%r1`, `foo`, `$L__BB0_1`, `ld`.
    Name(&'a str),
    /// A dotted word: `.global`, `.m16n8k16`, `.shared::cluster`; the text excludes the dot.
    Dot(&'a str),
    /// An integer literal.
    Int(u64),
    /// `0f........`: the bits of an f32.
    F32(u32),
    /// `0d................` or a decimal literal with a point or exponent: the bits of an f64.
    F64(u64),
    /// A quoted string, without its quotes.
    Str(&'a str),
    /// One character of punctuation.
    Punct(char),
    /// End of input.
    End,
}

/// A token with its place.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    pub tok: Tok<'a>,
    pub line: u32,
    pub col: u32,
}

/// The token list of a module and the source notes found in its comments, by line.
pub struct Lexed<'a> {
    pub tokens: Vec<Token<'a>>,
    pub notes: HashMap<u32, SourceRef>,
}

fn is_name_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%')
}

fn is_name(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$')
}

/// Reads `file:line` or `file:line:col` at the start of a comment.
fn source_note(comment: &str) -> Option<SourceRef> {
    let word = comment.trim_start_matches(['/', '*', ' ', '\t']).split_whitespace().next()?;
    let mut parts = word.rsplitn(3, ':');
    let last: u32 = parts.next()?.parse().ok()?;
    let middle = parts.next()?;
    match (middle.parse::<u32>(), parts.next()) {
        (Ok(line), Some(file)) if !file.is_empty() => Some(SourceRef { file: file.into(), line, col: last }),
        _ if word.len() > middle.len() => {
            let file = word.rsplit_once(':')?.0;
            (!file.is_empty() && file.parse::<u32>().is_err()).then(|| SourceRef {
                file: file.into(),
                line: last,
                col: 0,
            })
        }
        _ => None,
    }
}

/// Tokenises `text`.
///
/// # Errors
/// An unterminated comment or string, or a character that PTX does not use.
pub fn lex(text: &str) -> Result<Lexed<'_>, SimError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(text.len() / 4);
    let mut notes = HashMap::new();
    let (mut i, mut line, mut line_start) = (0usize, 1u32, 0usize);
    let fail = |line: u32, col: u32, message: String| {
        let source = text.lines().nth(line as usize - 1).unwrap_or("").trim().to_string();
        SimError::Parse { line, col, text: source, message }
    };
    while i < bytes.len() {
        let c = bytes[i];
        let col = (i - line_start + 1) as u32;
        if c == b'\n' {
            i += 1;
            line += 1;
            line_start = i;
            continue;
        }
        if c.is_ascii_whitespace() {
            i += 1;
            continue;
        }
        if text[i..].starts_with("//") {
            let end = text[i..].find('\n').map_or(bytes.len(), |n| i + n);
            if let Some(note) = source_note(&text[i + 2..end]) {
                notes.insert(line, note);
            }
            i = end;
            continue;
        }
        if text[i..].starts_with("/*") {
            let Some(len) = text[i..].find("*/") else {
                return Err(fail(line, col, "comment is not closed".into()));
            };
            for (at, b) in bytes[i..i + len].iter().enumerate() {
                if *b == b'\n' {
                    line += 1;
                    line_start = i + at + 1;
                }
            }
            i += len + 2;
            continue;
        }
        let start = i;
        let tok = if is_name_start(c) {
            i += 1;
            while i < bytes.len() && is_name(bytes[i]) {
                i += 1;
            }
            Tok::Name(&text[start..i])
        } else if c == b'.' && bytes.get(i + 1).is_some_and(|&n| is_name(n)) {
            i += 1;
            while i < bytes.len() && (is_name(bytes[i]) || (bytes[i] == b':' && bytes.get(i + 1) == Some(&b':'))) {
                i += if bytes[i] == b':' { 2 } else { 1 };
            }
            Tok::Dot(&text[start + 1..i])
        } else if c.is_ascii_digit() {
            let (tok, len) = number(&text[i..]).ok_or_else(|| fail(line, col, "not a number PTX allows".into()))?;
            i += len;
            tok
        } else if c == b'"' {
            let Some(len) = text[i + 1..].find('"') else {
                return Err(fail(line, col, "string is not closed".into()));
            };
            i += len + 2;
            Tok::Str(&text[start + 1..i - 1])
        } else if b"{}()[]<>,;:|!@+-=*&~/".contains(&c) {
            i += 1;
            Tok::Punct(c as char)
        } else {
            return Err(fail(line, col, format!("unexpected character {:?}", text[i..].chars().next().unwrap_or('?'))));
        };
        tokens.push(Token { tok, line, col });
    }
    tokens.push(Token { tok: Tok::End, line, col: (i - line_start + 1) as u32 });
    Ok(Lexed { tokens, notes })
}

/// Reads a number at the start of `s`; returns the token and its length.
fn number(s: &str) -> Option<(Tok<'static>, usize)> {
    let b = s.as_bytes();
    let run = |from: usize, ok: fn(&u8) -> bool| from + b[from..].iter().take_while(|c| ok(c)).count();
    if b[0] == b'0' && b.len() > 1 {
        match b[1] {
            b'f' | b'F' => {
                let end = run(2, u8::is_ascii_hexdigit);
                return (end == 10)
                    .then(|| u32::from_str_radix(&s[2..10], 16).ok())
                    .flatten()
                    .map(|v| (Tok::F32(v), 10));
            }
            b'd' | b'D' => {
                let end = run(2, u8::is_ascii_hexdigit);
                return (end == 18)
                    .then(|| u64::from_str_radix(&s[2..18], 16).ok())
                    .flatten()
                    .map(|v| (Tok::F64(v), 18));
            }
            b'x' | b'X' => {
                let end = run(2, u8::is_ascii_hexdigit);
                let v = u64::from_str_radix(&s[2..end], 16).ok()?;
                return Some((Tok::Int(v), unsigned_suffix(b, end)));
            }
            b'b' | b'B' => {
                let end = run(2, |c| matches!(c, b'0' | b'1'));
                let v = u64::from_str_radix(&s[2..end], 2).ok()?;
                return Some((Tok::Int(v), unsigned_suffix(b, end)));
            }
            _ => {}
        }
    }
    let mut end = run(0, u8::is_ascii_digit);
    let mut float = false;
    if b.get(end) == Some(&b'.') && b.get(end + 1).is_some_and(u8::is_ascii_digit) {
        float = true;
        end = run(end + 1, u8::is_ascii_digit);
    }
    if matches!(b.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(b.get(end + 1), Some(b'+' | b'-')));
        if b.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            float = true;
            end = run(end + 1 + sign, u8::is_ascii_digit);
        }
    }
    if float {
        return s[..end].parse::<f64>().ok().map(|v| (Tok::F64(v.to_bits()), end));
    }
    let radix = if end > 1 && b[0] == b'0' { 8 } else { 10 };
    let v = u64::from_str_radix(&s[..end], radix).ok()?;
    Some((Tok::Int(v), unsigned_suffix(b, end)))
}

fn unsigned_suffix(b: &[u8], end: usize) -> usize {
    end + usize::from(matches!(b.get(end), Some(b'U' | b'u')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_notes() {
        let l =
            lex("ld.global.v4.u32 {%r1}, [%rd2+16]; // kernel.rs:12:5\n mov.f32 %f1, 0f3F800000; // gemm.rs:7 load\n")
                .expect("lexes");
        let toks: Vec<_> = l.tokens.iter().map(|t| t.tok).collect();
        assert_eq!(&toks[..4], &[Tok::Name("ld"), Tok::Dot("global"), Tok::Dot("v4"), Tok::Dot("u32")]);
        assert!(toks.contains(&Tok::F32(0x3F80_0000)));
        assert_eq!(l.notes[&1], SourceRef { file: "kernel.rs".into(), line: 12, col: 5 });
        assert_eq!(l.notes[&2], SourceRef { file: "gemm.rs".into(), line: 7, col: 0 });
    }

    #[test]
    fn double_colon_modifiers_stay_one_word() {
        let l = lex("mbarrier::complete_tx::bytes .shared::cluster.global").expect("lexes");
        assert!(l.tokens.iter().any(|t| t.tok == Tok::Dot("shared::cluster")));
        assert!(l.tokens.iter().any(|t| t.tok == Tok::Dot("global")));
    }

    #[test]
    fn bad_character_names_its_place() {
        let e = lex("mov.u32 %r1,\n  #;").err().expect("must fail").to_string();
        assert!(e.contains("2:3"), "{e}");
    }
}
