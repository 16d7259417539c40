//! Text to functions.
//!
//! A mistake ends its line, not the text: the parser goes on with the next line and reports all mistakes at once.

use super::error::{ParseError, ParseErrorKind, Parsed, nearest};
use super::fields::OpText;
use super::lex::{Token, TokenKind, lex};
use super::print::tile_type_text;
use crate::DType;
use crate::func::{Buffer, BufferData, Extent, Func, Region, Scope, Strides, Value};
use crate::numerics::Const;
use crate::op::OpKind;
use crate::span::Span;
use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

/// Reads a text with one function.
///
/// Spans are those written in the text; ops without one have an unknown span.
pub fn parse_func(text: &str) -> Result<Func, Vec<ParseError>> {
    let mut p = Parser::new(text, None);
    let mut funcs = p.funcs();
    if let Some(extra) = p.extra_func.take() {
        p.errors.push(*p.expected_at(extra, "one function", "another one".into()));
    }
    match funcs.pop() {
        Some(func) if p.errors.is_empty() => Ok(func),
        Some(_) => Err(p.finish_errors()),
        None => {
            if p.errors.is_empty() {
                p.errors.push(*p.expected("`func`"));
            }
            Err(p.finish_errors())
        }
    }
}

/// Reads a text with any number of functions. Spans are as in [`parse_func`].
pub fn parse_funcs(text: &str) -> Result<Vec<Func>, Vec<ParseError>> {
    parse(text, None)
}

/// Reads the text of `file` with any number of functions. Ops, parameters and functions without a written span get
/// their place in the file.
pub fn parse_file(file: &str, text: &str) -> Result<Vec<Func>, Vec<ParseError>> {
    parse(text, Some(file))
}

fn parse(text: &str, file: Option<&str>) -> Result<Vec<Func>, Vec<ParseError>> {
    let mut p = Parser::new(text, file);
    let funcs = p.funcs();
    if p.errors.is_empty() { Ok(funcs) } else { Err(p.finish_errors()) }
}

/// A place in the text: line and column.
pub(crate) type Place = (u32, u32);

/// A value named in the text.
pub(super) struct NamedValue {
    pub value: Value,
    /// The type of the definition, once there was one.
    pub defined: Option<DType>,
    pub first_use: Place,
}

/// Reads tokens into the function under construction.
pub(crate) struct Parser<'s> {
    pub func: Func,
    pub(super) tokens: Vec<Token<'s>>,
    pub(super) at: usize,
    pub(super) errors: Vec<ParseError>,
    /// Name of the file whose places stand in for missing spans.
    file: Option<Arc<str>>,
    pub(super) values: HashMap<&'s str, NamedValue>,
    pub(super) tiles: HashMap<&'s str, Buffer>,
    pub(super) scalars: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, Buffer>,
    /// Words that start an op, with the name of its row.
    heads: HashMap<&'static str, &'static str>,
    /// The first token of the op or section being read.
    pub(super) line_start: usize,
    /// Span written in the op being read.
    op_span: Option<Span>,
    /// Where a second function starts.
    pub(super) extra_func: Option<Place>,
}

impl<'s> Parser<'s> {
    fn new(text: &'s str, file: Option<&str>) -> Parser<'s> {
        let (tokens, lex_errors) = lex(text);
        let mut p = Parser {
            func: Func::new("", Span::unknown()),
            tokens,
            at: 0,
            errors: Vec::new(),
            file: file.map(Arc::from),
            values: HashMap::new(),
            tiles: HashMap::new(),
            scalars: HashMap::new(),
            tensors: HashMap::new(),
            heads: OpKind::heads().into_iter().collect(),
            line_start: 0,
            op_span: None,
            extra_func: None,
        };
        for e in lex_errors {
            let error = p.error_at((e.line, e.col), e.kind);
            p.errors.push(*error);
        }
        p
    }

    /// The errors in order of lines, without followers: of several on one line the first found, characters that
    /// make no sense before all others.
    fn finish_errors(mut self) -> Vec<ParseError> {
        self.errors.sort_by_key(|e| e.span.line);
        self.errors.dedup_by_key(|e| e.span.line);
        self.errors
    }

    // Tokens.

    pub fn peek(&self) -> &TokenKind<'s> {
        &self.tokens[self.at].kind
    }

    pub(super) fn peek_at(&self, ahead: usize) -> &TokenKind<'s> {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].kind
    }

    pub fn advance(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    /// Where the next token is.
    pub fn place(&self) -> Place {
        (self.tokens[self.at].line, self.tokens[self.at].col)
    }

    /// The next token's place as a span, if places stand in for spans.
    pub fn span(&self) -> Span {
        match &self.file {
            Some(file) => Span { file: Arc::clone(file), line: self.place().0, col: self.place().1 },
            None => Span::unknown(),
        }
    }

    pub fn at(&self, punct: &str) -> bool {
        matches!(self.peek(), TokenKind::Punct(p) if *p == punct)
    }

    pub fn at_word(&self, word: &str) -> bool {
        matches!(self.peek(), TokenKind::Word(w) if *w == word)
    }

    pub fn eat(&mut self, punct: &str) -> bool {
        let found = self.at(punct);
        if found {
            self.advance();
        }
        found
    }

    pub(super) fn eat_word(&mut self, word: &str) -> bool {
        let found = self.at_word(word);
        if found {
            self.advance();
        }
        found
    }

    pub fn expect(&mut self, punct: &str) -> Parsed<()> {
        if self.eat(punct) { Ok(()) } else { Err(self.expected(&format!("`{punct}`"))) }
    }

    pub(super) fn expect_word(&mut self, word: &str) -> Parsed<()> {
        if self.eat_word(word) { Ok(()) } else { Err(self.expected(&format!("`{word}`"))) }
    }

    /// Reads the literal text of a syntax.
    pub fn expect_literal(&mut self, text: &'static str) -> Parsed<()> {
        for token in lex(text).0 {
            match token.kind {
                TokenKind::End => {}
                kind if *self.peek() == kind => self.advance(),
                kind => return Err(self.expected(&kind.to_string())),
            }
        }
        Ok(())
    }

    // Errors.

    pub(super) fn error_at(&self, (line, col): Place, kind: ParseErrorKind) -> Box<ParseError> {
        let file = self.file.clone().unwrap_or_else(|| Span::unknown().file);
        Box::new(ParseError { span: Span { file, line, col }, kind, help: None })
    }

    pub fn expected_at(&self, place: Place, what: &str, found: String) -> Box<ParseError> {
        self.error_at(place, ParseErrorKind::Expected { expected: what.to_owned(), found })
    }

    /// The error of finding the next token instead of `what`, or the end of the line if an op goes on there.
    pub fn expected(&self, what: &str) -> Box<ParseError> {
        let next = &self.tokens[self.at];
        match self.at.checked_sub(1).map(|before| &self.tokens[before]) {
            Some(before) if next.kind == TokenKind::End && self.at == self.line_start => {
                self.expected_at((before.line, before.end_col), what, next.kind.to_string())
            }
            Some(before) if next.first && self.at != self.line_start => {
                self.expected_at((before.line, before.end_col), what, "the end of the line".into())
            }
            _ => self.expected_at((next.line, next.col), what, next.kind.to_string()),
        }
    }

    fn unknown_name<'a>(
        &self,
        place: Place,
        what: &'static str,
        name: &str,
        known: impl Iterator<Item = &'a str>,
    ) -> Box<ParseError> {
        let mut known: Vec<&str> = known.collect();
        known.sort_unstable();
        let mut e = self.error_at(place, ParseErrorKind::UnknownName { what, name: name.to_owned() });
        e.help = nearest(name, known).map(|n| format!("did you mean `{n}`?"));
        e
    }

    // Fields.

    /// Items separated by commas, at least one.
    pub fn list<T>(&mut self, mut f: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = vec![f(self)?];
        while self.eat(",") {
            items.push(f(self)?);
        }
        Ok(items)
    }

    /// Values separated by commas, possibly none before a closing bracket.
    pub fn values(&mut self) -> Parsed<Vec<Value>> {
        if self.at("]") || self.at(")") { Ok(Vec::new()) } else { self.list(Self::value) }
    }

    /// A number that is not a value: an extent, an axis.
    pub fn number<N: FromStr>(&mut self, what: &str) -> Parsed<N> {
        let parsed = match self.peek() {
            TokenKind::Const(text) => text.parse().ok(),
            _ => None,
        };
        let n = parsed.ok_or_else(|| self.expected(what))?;
        self.advance();
        Ok(n)
    }

    pub fn constant(&mut self) -> Parsed<Const> {
        let TokenKind::Const(text) = *self.peek() else { return Err(self.expected("a constant")) };
        let c = text.parse().map_err(|e| self.error_at(self.place(), ParseErrorKind::Constant(e)))?;
        self.advance();
        Ok(c)
    }

    /// One of `all` by its name.
    pub fn keyword<T: Copy>(&mut self, what: &str, all: &[T], name: fn(T) -> &'static str) -> Parsed<T> {
        if let TokenKind::Word(word) = *self.peek() {
            if let Some(&found) = all.iter().find(|&&t| name(t) == word) {
                self.advance();
                return Ok(found);
            }
            let mut e = self.expected(what);
            e.help = Some(match nearest(word, all.iter().map(|&t| name(t))) {
                Some(n) => format!("did you mean `{n}`?"),
                None => format!("one of {}", all.iter().map(|&t| name(t)).collect::<Vec<_>>().join(", ")),
            });
            return Err(e);
        }
        Err(self.expected(what))
    }

    pub(super) fn name(&mut self, what: &str) -> Parsed<String> {
        let name = match self.peek() {
            TokenKind::Word(word) => (*word).to_owned(),
            TokenKind::Quoted(name) => name.clone(),
            _ => return Err(self.expected(what)),
        };
        self.advance();
        Ok(name)
    }

    pub(super) fn dtype(&mut self) -> Parsed<DType> {
        self.keyword("an element type", &DType::ALL, DType::name)
    }

    /// A use of a value.
    pub fn value(&mut self) -> Parsed<Value> {
        let place = self.place();
        let name = match *self.peek() {
            TokenKind::Const(_) => return self.constant().map(|c| self.func.constant(c)),
            TokenKind::Value(name) => {
                self.advance();
                return Ok(self.named_value(name, place).value);
            }
            TokenKind::Word(word) => word.to_owned(),
            TokenKind::Quoted(ref name) => name.clone(),
            _ => return Err(self.expected("a value")),
        };
        let Some(&v) = self.scalars.get(&name) else {
            return Err(self.unknown_name(place, "dim or scalar parameter", &name, self.scalars.keys().map(|s| &**s)));
        };
        self.advance();
        Ok(v)
    }

    pub(super) fn named_value(&mut self, name: &'s str, place: Place) -> &mut NamedValue {
        let func = &mut self.func;
        self.values.entry(name).or_insert_with(|| NamedValue {
            value: func.add_value(DType::Index),
            defined: None,
            first_use: place,
        })
    }

    /// The name of an op's result or a loop's index, and its type, which is `index` if it is optional and missing.
    pub fn definition(&mut self, typed: bool) -> Parsed<Value> {
        let place = self.place();
        let TokenKind::Value(name) = *self.peek() else { return Err(self.expected("the name of a new value (`%0`)")) };
        self.advance();
        let mut ty = DType::Index;
        if typed || self.at(":") {
            self.expect(":")?;
            ty = self.dtype()?;
        }
        let named = self.named_value(name, place);
        let value = named.value;
        match named.defined.replace(ty) {
            Some(first) if first != ty => {
                let (name, first, second) = (format!("%{name}"), first.to_string(), ty.to_string());
                return Err(self.error_at(place, ParseErrorKind::TypeConflict { name, first, second }));
            }
            Some(_) | None => self.func.values[value].ty = ty,
        }
        Ok(value)
    }

    pub fn buffer(&mut self) -> Parsed<Buffer> {
        let place = self.place();
        let found = match self.peek() {
            TokenKind::Buffer(name) => self
                .tiles
                .get(name)
                .copied()
                .ok_or_else(|| self.error_at(place, ParseErrorKind::Undefined(format!("${name}")))),
            TokenKind::Word(_) | TokenKind::Quoted(_) => {
                let name = match self.peek() {
                    TokenKind::Quoted(name) => name.as_str(),
                    TokenKind::Word(word) => word,
                    _ => "",
                };
                let known = self.tensors.keys().map(|s| &**s);
                self.tensors.get(name).copied().ok_or_else(|| self.unknown_name(place, "tensor", name, known))
            }
            _ => Err(self.expected("a tensor or a tile")),
        }?;
        self.advance();
        Ok(found)
    }

    /// The scope, element type and shape of a tile.
    pub fn tile_type(&mut self, span: Span) -> Parsed<BufferData> {
        let scope = self.keyword("a scope", &Scope::ALL, Scope::name)?;
        let dtype = self.dtype()?;
        let shape = self.shape(false)?;
        let strides = if self.eat_word("strided") { Strides::Dynamic } else { Strides::Contiguous };
        Ok(BufferData { name: String::new(), dtype, scope, shape, strides, span })
    }

    /// The type of a tile that [`look_ahead_for_tiles`](Self::look_ahead_for_tiles) declared.
    pub fn declared_tile_type(&mut self, tile: Buffer) -> Parsed<()> {
        let place = self.place();
        let mut again = self.tile_type(Span::unknown())?;
        let first = &self.func.buffers[tile];
        again.span = first.span.clone();
        if again == *first {
            return Ok(());
        }
        let name = self.tiles.iter().find(|(_, b)| **b == tile).map_or(String::new(), |(name, _)| format!("${name}"));
        let [first, second] = [first, &again].map(|data| tile_type_text(&self.func, data));
        Err(self.error_at(place, ParseErrorKind::TypeConflict { name, first, second }))
    }

    /// Extents in square brackets. In a signature, a dim's first mention declares it.
    pub(super) fn shape(&mut self, declare: bool) -> Parsed<Vec<Extent>> {
        self.expect("[")?;
        let extent = |p: &mut Self| {
            let place = p.place();
            let name = match p.peek() {
                TokenKind::Word(_) | TokenKind::Quoted(_) => p.name("a dim")?,
                _ => return p.number("an extent").map(Extent::Static),
            };
            let known = p.func.dims.iter().find(|(_, data)| data.name == name).map(|(dim, _)| dim);
            match known {
                Some(dim) => Ok(Extent::Dynamic(dim)),
                None if declare => {
                    let dim = p.func.add_dim(name.clone());
                    p.declare_scalar(name, p.func.dims[dim].value, place)?;
                    Ok(Extent::Dynamic(dim))
                }
                None => Err(p.unknown_name(place, "dim", &name, p.func.dims.iter().map(|(_, d)| &*d.name))),
            }
        };
        let shape = if self.at("]") { Vec::new() } else { self.list(extent)? };
        self.expect("]")?;
        Ok(shape)
    }

    pub(super) fn declare_scalar(&mut self, name: String, value: Value, place: Place) -> Parsed<()> {
        if self.scalars.insert(name.clone(), value).is_some() {
            return Err(self.error_at(place, ParseErrorKind::DeclaredTwice { what: "dim or scalar parameter", name }));
        }
        Ok(())
    }

    /// A span, if one is written here.
    pub(super) fn written_span(&mut self) -> Parsed<Option<Span>> {
        if !self.eat("@") {
            return Ok(None);
        }
        let TokenKind::Str(file) = self.peek().clone() else { return Err(self.expected("a file in double quotes")) };
        self.advance();
        self.expect(":")?;
        let line = self.number("a line")?;
        self.expect(":")?;
        let col = self.number("a column")?;
        Ok(Some(Span { file: Arc::from(file), line, col }))
    }

    // Ops.

    pub fn region(&mut self) -> Parsed<Region> {
        if let Some(span) = self.written_span()? {
            self.op_span = Some(span);
        }
        self.expect("{")?;
        let outer_span = self.op_span.take();
        let region = self.func.add_region();
        self.ops(region);
        self.op_span = outer_span;
        self.expect("}")?;
        Ok(region)
    }

    /// Reads ops up to the end of the region or of the section.
    pub(super) fn ops(&mut self, region: Region) {
        while !(self.at("}") || *self.peek() == TokenKind::End || self.at_section()) {
            let start = self.at;
            if let Err(e) = self.op(region) {
                self.errors.push(*e);
                self.recover(start);
            }
        }
    }

    fn op(&mut self, region: Region) -> Parsed<()> {
        let mut span = self.span();
        self.op_span = None;
        self.line_start = self.at;
        let row = self.row()?;
        let kind = match OpKind::parse_fields(row, self) {
            Ok(kind) => kind,
            Err(mut e) => {
                if e.help.is_none() && matches!(e.kind, ParseErrorKind::Expected { .. }) {
                    let info = OpKind::TABLE.iter().find(|info| info.name == row);
                    e.help = info.map(|info| format!("the form is `{}`", info.syntax));
                }
                return Err(e);
            }
        };
        if let Some(written) = self.written_span()?.or(self.op_span.take()) {
            span = written;
        }
        if let OpKind::Alloc { buffer } = kind {
            self.func.buffers[buffer].span = span.clone();
        }
        if !(self.tokens[self.at].first || self.at("}")) {
            return Err(self.expected("the end of the line"));
        }
        self.func.append(region, kind, span);
        Ok(())
    }

    /// The name of the row of the op that starts here: given by its first word, or the word after `=`.
    fn row(&self) -> Parsed<&'static str> {
        let line = &self.tokens[self.at..];
        let line = &line[..line.iter().skip(1).position(|t| t.first).map_or(line.len(), |n| n + 1)];
        let head = match line[0].kind {
            TokenKind::Word(_) => Some(&line[0]),
            TokenKind::Value(_) | TokenKind::Buffer(_) => {
                let equals = line.iter().position(|t| t.kind == TokenKind::Punct("="));
                let Some(equals) = equals else {
                    let place = (line[0].line, line[line.len() - 1].end_col);
                    return Err(self.expected_at(place, "`=` and an op", "the end of the line".into()));
                };
                line.get(equals + 1)
            }
            _ => None,
        };
        let Some(&Token { kind: TokenKind::Word(word), line, col, .. }) = head else {
            return Err(self.expected("an op"));
        };
        self.heads.get(word).copied().ok_or_else(|| {
            let mut e = self.error_at((line, col), ParseErrorKind::UnknownOp(word.to_owned()));
            let mut known: Vec<&str> = self.heads.keys().copied().collect();
            known.sort_unstable();
            e.help = nearest(word, known).map(|n| format!("did you mean `{n}`?"));
            e
        })
    }

    /// Goes on after a line with a mistake that starts at token `start`: ops nested there are read for their own mistakes,
    /// and what the line would have defined counts as defined.
    fn recover(&mut self, start: usize) {
        let mut from = start;
        self.at = self.at.max(start + 1).min(self.tokens.len() - 1);
        loop {
            let mut depth = 0;
            while !self.tokens[self.at].first {
                match self.peek() {
                    TokenKind::Punct("{") => depth += 1,
                    TokenKind::Punct("}") if depth == 0 => break,
                    TokenKind::Punct("}") => depth -= 1,
                    _ => {}
                }
                self.advance();
            }
            for at in from..self.at {
                if let TokenKind::Value(name) = self.tokens[at].kind {
                    let place = (self.tokens[at].line, self.tokens[at].col);
                    self.named_value(name, place).defined.get_or_insert(DType::Index);
                }
            }
            let opens = self.tokens[self.at - 1].kind == TokenKind::Punct("{") && self.tokens[self.at].first;
            if !opens {
                return;
            }
            let region = self.func.add_region();
            self.ops(region);
            if !self.eat("}") {
                return;
            }
            from = self.at;
        }
    }
}
