//! Signatures and sections of functions.

use super::error::{ParseErrorKind, Parsed};
use super::lex::TokenKind;
use super::parse::{Parser, Place};
use crate::DType;
use crate::func::{Access, BlockOrder, BufferData, Func, Scope, Strides, Sums, ValueDef};
use crate::span::Span;

impl Parser<'_> {
    /// At the start of a function's section, where the ops of the one before end.
    pub(super) fn at_section(&self) -> bool {
        match self.peek() {
            TokenKind::Word("prelude" | "body") => *self.peek_at(1) == TokenKind::Punct(":"),
            TokenKind::Word("grid") => *self.peek_at(1) == TokenKind::Punct("("),
            _ => false,
        }
    }

    fn at_func(&self) -> bool {
        self.tokens[self.at].first && self.at_word("func")
    }

    /// Reads all functions of the text.
    pub(super) fn funcs(&mut self) -> Vec<Func> {
        let mut funcs = Vec::new();
        while *self.peek() != TokenKind::End {
            if !funcs.is_empty() && self.extra_func.is_none() {
                self.extra_func = Some(self.place());
            }
            self.values.clear();
            self.tiles.clear();
            self.scalars.clear();
            self.tensors.clear();
            self.func = Func::new("", self.span());
            if let Err(e) = self.function() {
                self.errors.push(*e);
                self.advance();
                while !(self.at_func() || *self.peek() == TokenKind::End) {
                    self.advance();
                }
            }
            funcs.push(std::mem::replace(&mut self.func, Func::new("", Span::unknown())));
        }
        funcs
    }

    fn function(&mut self) -> Parsed<()> {
        self.expect_word("func")?;
        self.func.name = self.name("the function's name")?;
        self.signature()?;
        self.expect("{")?;
        self.look_ahead_for_tiles();
        if self.at_word("prelude") {
            self.advance();
            self.expect(":")?;
            self.ops(self.func.prelude);
        }
        if self.eat_word("grid") {
            self.grid()?;
        }
        self.line_start = self.at;
        self.expect_word("body")?;
        self.expect(":")?;
        self.ops(self.func.body);
        self.line_start = self.at;
        self.expect("}")?;
        let undefined: Vec<(Place, String)> = self
            .values
            .iter()
            .filter(|(_, named)| named.defined.is_none())
            .map(|(name, named)| (named.first_use, format!("%{name}")))
            .collect();
        for (place, name) in undefined {
            let e = self.error_at(place, ParseErrorKind::Undefined(name));
            self.errors.push(*e);
        }
        Ok(())
    }

    fn signature(&mut self) -> Parsed<()> {
        self.expect("(")?;
        while !self.at(")") {
            self.param()?;
            if !self.eat(",") {
                break;
            }
        }
        self.expect(")")?;
        self.expect_word("threads")?;
        self.func.threads = self.number("the number of threads")?;
        if self.eat_word("order") {
            self.func.block_order = match self.keyword("a block order", &["row_major", "panel"], |w| w)? {
                "row_major" => BlockOrder::RowMajor,
                _ => {
                    self.expect("(")?;
                    let width = self.number("the panel's width")?;
                    self.expect(")")?;
                    BlockOrder::Panel(width)
                }
            };
        }
        if self.eat_word("sums") {
            let spread = self.keyword("a way to add up", &["runs", "spread"], |w| w)? == "spread";
            self.expect("(")?;
            let count = self.number("the number of runs")?;
            self.expect(")")?;
            self.func.sums = Sums::Runs { count, spread };
        }
        if self.eat_word("clusters") {
            self.expect("(")?;
            let along_first = self.number("the blocks of a cluster along the first axis")?;
            self.expect(",")?;
            let along_second = self.number("the blocks of a cluster along the second axis")?;
            self.expect(")")?;
            self.func.clusters = Some([along_first, along_second]);
        }
        self.func.ping_pong = self.eat_word("ping_pong");
        if let Some(span) = self.written_span()? {
            self.func.span = span;
        }
        Ok(())
    }

    fn param(&mut self) -> Parsed<()> {
        let (place, mut span) = (self.place(), self.span());
        let name = self.name("a parameter's name")?;
        self.expect(":")?;
        let access = if self.eat_word("mut") { Access::Write } else { Access::Read };
        if access == Access::Read && !self.at_word("tensor") {
            let ty = self.dtype()?;
            let value = self.func.add_scalar(name.clone(), ty);
            return self.declare_scalar(name, value, place);
        }
        self.expect_word("tensor")?;
        self.expect("<")?;
        let dtype = self.dtype()?;
        self.expect(",")?;
        let shape = self.shape(true)?;
        self.expect(">")?;
        let strides = if self.eat_word("strided") { Strides::Dynamic } else { Strides::Contiguous };
        if let Some(written) = self.written_span()? {
            span = written;
        }
        let data = BufferData { name: name.clone(), dtype, scope: Scope::Global, shape, strides, span };
        let buffer = self.func.add_tensor(data, access);
        if self.tensors.insert(name.clone(), buffer).is_some() {
            return Err(self.error_at(place, ParseErrorKind::DeclaredTwice { what: "tensor", name }));
        }
        Ok(())
    }

    /// Declares all tiles of the function's body, so that a use before the `alloc` is the verifier's to report.
    fn look_ahead_for_tiles(&mut self) {
        let start = self.at;
        while !(self.at_func() || *self.peek() == TokenKind::End) {
            if let TokenKind::Buffer(name) = *self.peek()
                && *self.peek_at(1) == TokenKind::Punct("=")
                && *self.peek_at(2) == TokenKind::Word("alloc")
            {
                self.at += 3;
                // What is wrong with a type is reported when its line is read.
                let data = self.tile_type(Span::unknown()).unwrap_or_else(|_| BufferData {
                    name: String::new(),
                    dtype: DType::F32,
                    scope: Scope::Local,
                    shape: Vec::new(),
                    strides: Strides::Contiguous,
                    span: Span::unknown(),
                });
                if !self.tiles.contains_key(name) {
                    self.tiles.insert(name, self.func.buffers.push(data));
                }
            } else {
                self.advance();
            }
        }
        self.at = start;
    }

    fn grid(&mut self) -> Parsed<()> {
        self.expect("(")?;
        let mut names = Vec::new();
        while let TokenKind::Value(name) = *self.peek() {
            names.push((name, self.place()));
            self.advance();
            if !self.eat(",") {
                break;
            }
        }
        self.expect(")")?;
        self.expect_word("in")?;
        self.expect("(")?;
        let grid = self.values()?;
        self.expect(")")?;
        self.func.grid = grid;
        for (axis, (name, place)) in names.into_iter().enumerate() {
            let named = self.named_value(name, place);
            if named.defined.replace(DType::Index).is_some() {
                let kind = ParseErrorKind::DeclaredTwice { what: "value", name: format!("%{name}") };
                return Err(self.error_at(place, kind));
            }
            let value = named.value;
            self.func.values[value].def = ValueDef::BlockId(axis as u32);
            self.func.block_ids.push(value);
        }
        Ok(())
    }
}
