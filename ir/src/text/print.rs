//! Functions to text.

use super::fields::{OpText, Segment, segments};
use super::lex::quote;
use super::names::{Names, plain_or_quoted};
use crate::func::{
    Access, BlockOrder, Buffer, BufferData, Dim, Extent, Func, Op, Param, Region, Scope, Strides, Sums, Value,
};
use crate::span::Span;
use std::fmt::{self, Write};

/// Signatures wider than this have one parameter to a line.
const SIGNATURE_WIDTH: usize = 110;

impl Func {
    /// The function's text, with spans.
    pub fn to_text(&self) -> String {
        print(self, true)
    }

    /// The function's text without spans: equal for functions that differ only in where they were written.
    pub fn canonical_text(&self) -> String {
        print(self, false)
    }
}

/// The canonical text.
impl fmt::Display for Func {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical_text())
    }
}

/// The text of one op as [`Func::to_text`] numbers it, on one line: without spans and with `{ .. }` for its regions.
pub fn op_text(func: &Func, op: Op) -> String {
    op_text_with(func, &Names::new(func), op)
}

/// As [`op_text`], with the function's names at hand.
pub fn op_text_with(func: &Func, names: &Names, op: Op) -> String {
    let mut p = Printer::new(func, names, false);
    p.nested = false;
    p.op(op);
    p.out
}

/// The text of a tile's type.
pub(crate) fn tile_type_text(func: &Func, data: &BufferData) -> String {
    let names = Names::default();
    let mut p = Printer::new(func, &names, false);
    p.tile_type(data);
    p.out
}

fn print(func: &Func, spans: bool) -> String {
    let names = Names::new(func);
    let mut p = Printer::new(func, &names, spans);
    p.func();
    p.out
}

/// Writes text with single spaces between its parts.
pub(crate) struct Printer<'f> {
    pub func: &'f Func,
    pub names: &'f Names,
    out: String,
    indent: usize,
    /// A space stands before the next part, if there is one on this line.
    space: bool,
    spans: bool,
    /// Nested regions are printed, not abbreviated.
    nested: bool,
    /// Span of the op being printed, until it is written.
    span: Option<&'f Span>,
}

impl<'f> Printer<'f> {
    fn new(func: &'f Func, names: &'f Names, spans: bool) -> Printer<'f> {
        Printer { func, names, out: String::new(), indent: 0, space: false, spans, nested: true, span: None }
    }

    /// Writes a part as it is.
    pub fn part(&mut self, part: impl fmt::Display) {
        if std::mem::take(&mut self.space) {
            self.out.push(' ');
        }
        write!(self.out, "{part}").expect("writing to a string");
    }

    /// Writes literal text of a syntax; spaces at its ends separate it from its neighbours.
    pub fn literal(&mut self, text: &str) {
        self.space |= text.starts_with(' ');
        let body = text.trim();
        if !body.is_empty() {
            self.part(body);
            self.space = text.ends_with(' ');
        }
    }

    pub fn value(&mut self, v: Value) {
        self.part(self.names.value(self.func, v));
    }

    pub fn buffer(&mut self, b: Buffer) {
        self.part(self.names.buffer(self.func, b));
    }

    /// Writes items with commas between them.
    pub fn list<T>(&mut self, items: impl IntoIterator<Item = T>, mut f: impl FnMut(&mut Self, T)) {
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.literal(", ");
            }
            f(self, item);
        }
    }

    /// Writes a tile's scope, element type and shape.
    pub fn tile_type(&mut self, data: &BufferData) {
        self.part(data.scope.name());
        self.literal(" ");
        self.part(data.dtype);
        self.shape(data);
        self.strides(data);
    }

    fn shape(&mut self, data: &BufferData) {
        self.part("[");
        self.list(&data.shape, |p, extent| match *extent {
            Extent::Static(n) => p.part(n),
            Extent::Dynamic(dim) => p.dim(dim),
        });
        self.part("]");
    }

    fn strides(&mut self, data: &BufferData) {
        match data.strides {
            Strides::Contiguous => {}
            Strides::Dynamic => self.literal(" strided"),
        }
    }

    fn dim(&mut self, dim: Dim) {
        self.part(self.names.dim(self.func, dim));
    }

    /// Writes a nested region, after the op's span.
    pub fn region(&mut self, region: Region) {
        self.flush_span();
        self.part("{");
        if !self.nested {
            return self.part(" .. }");
        }
        if self.func.regions.get(region).is_some_and(|r| !r.ops.is_empty()) {
            self.end_line();
            self.ops(region);
            self.start_line();
        }
        self.part("}");
    }

    fn ops(&mut self, region: Region) {
        self.indent += 1;
        for &op in self.func.regions.get(region).iter().flat_map(|r| &r.ops) {
            self.start_line();
            self.op(op);
            self.end_line();
        }
        self.indent -= 1;
    }

    fn op(&mut self, op: Op) {
        let Some(data) = self.func.ops.get(op) else { return self.part(format_args!("?{op:?}")) };
        self.span = Some(&data.span).filter(|span| self.spans && !span.is_unknown());
        for segment in segments(data.kind.syntax()) {
            match segment {
                Segment::Text(text) => self.literal(text),
                Segment::Field { name, aspect } => data.kind.print_field(name, aspect, self),
            }
        }
        self.flush_span();
    }

    fn flush_span(&mut self) {
        if let Some(span) = self.span.take() {
            self.span_text(span);
        }
    }

    fn span_text(&mut self, span: &Span) {
        self.space = true;
        self.part(format_args!("@{}:{}:{}", quote(&span.file, '"'), span.line, span.col));
        self.space = true;
    }

    fn known_span(&mut self, span: &Span) {
        if self.spans && !span.is_unknown() {
            self.span_text(span);
        }
    }

    fn start_line(&mut self) {
        self.space = false;
        for _ in 0..self.indent {
            self.out.push_str("  ");
        }
    }

    fn end_line(&mut self) {
        self.space = false;
        self.out.push('\n');
    }

    fn line(&mut self, text: &str) {
        self.start_line();
        self.part(text);
        self.end_line();
    }

    fn func(&mut self) {
        let func = self.func;
        self.signature();
        let has_prelude = func.regions.get(func.prelude).is_some_and(|r| !r.ops.is_empty());
        if has_prelude {
            self.line("prelude:");
            self.ops(func.prelude);
        }
        if !(func.grid.is_empty() && func.block_ids.is_empty()) {
            self.literal("grid (");
            self.list(&func.block_ids, |p, &v| p.value(v));
            self.literal(") in (");
            self.list(&func.grid, |p, &v| p.value(v));
            self.part(")");
            self.end_line();
        }
        self.line("body:");
        self.ops(func.body);
        self.line("}");
    }

    fn signature(&mut self) {
        let func = self.func;
        let params: Vec<String> = func.params.iter().map(|param| self.param(param)).collect();
        let width: usize = params.iter().map(|p| p.len() + 2).sum();
        let tall = width > SIGNATURE_WIDTH || params.iter().any(|p| p.contains('@'));
        self.part(format_args!("func {}(", plain_or_quoted(&func.name)));
        if tall {
            self.end_line();
            params.iter().for_each(|param| self.line(&format!("  {param},")));
        } else {
            self.part(params.join(", "));
        }
        self.part(format_args!(") threads {}", func.threads));
        match func.block_order {
            BlockOrder::RowMajor => {}
            BlockOrder::Panel(width) => self.part(format_args!(" order panel({width})")),
        }
        match func.sums {
            Sums::InTurn => {}
            Sums::Runs { count, spread: false } => self.part(format_args!(" sums runs({count})")),
            Sums::Runs { count, spread: true } => self.part(format_args!(" sums spread({count})")),
        }
        if let Some([x, y]) = func.clusters {
            self.part(format_args!(" clusters({x}, {y})"));
        }
        if func.ping_pong {
            self.part(" ping_pong");
        }
        self.known_span(&func.span);
        self.space = true;
        self.part("{");
        self.end_line();
    }

    fn param(&self, param: &Param) -> String {
        let mut p = Printer::new(self.func, self.names, self.spans);
        match param {
            Param::Scalar { name, value } => {
                let ty = self.func.values.get(*value).map_or("?", |data| data.ty.name());
                p.part(format_args!("{}: {ty}", plain_or_quoted(name)));
            }
            Param::Tensor { buffer, access } => {
                p.buffer(*buffer);
                p.literal(": ");
                match access {
                    Access::Read => {}
                    Access::Write => p.literal("mut "),
                }
                let Some(data) = self.func.buffers.get(*buffer) else { return p.out };
                debug_assert_eq!(data.scope, Scope::Global);
                p.part(format_args!("tensor<{}, ", data.dtype));
                p.shape(data);
                p.part(">");
                p.strides(data);
                p.known_span(&data.span);
            }
        }
        p.out
    }
}
