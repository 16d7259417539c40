//! The spelling of op fields, one implementation per field type, and of the syntaxes that join them.
//!
//! The op table generates [`OpText`] from each row's syntax; an op needs nothing here unless it has a field of a new type.

use super::error::Parsed;
use super::lex::{TokenKind, quote};
use super::parse::Parser;
use super::print::Printer;
use crate::func::{Buffer, Region, Value};
use crate::numerics::Const;
use crate::op::{
    AtomicOp, BinaryOp, CmpOp, Def, GemmPrecision, Indices, LayoutHint, LoopKind, OpKind, ReduceOp, ScanOp, ShuffleOp,
    UnaryOp, WarpRole,
};
use crate::window::{Window, WindowAxis};
use smallvec::SmallVec;

/// A part of a row's syntax.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Segment {
    /// Words and punctuation.
    Text(&'static str),
    /// A placeholder.
    Field { name: &'static str, aspect: Aspect },
}

/// What a placeholder shows of its field.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Aspect {
    /// The field itself.
    Whole,
    /// The type of the thing it names.
    Type,
}

/// The parts of a syntax in order.
pub(crate) fn segments(syntax: &'static str) -> impl Iterator<Item = Segment> {
    let mut rest = syntax;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some((placeholder, after)) = rest.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            rest = after;
            return Some(match placeholder.strip_suffix(":type") {
                Some(name) => Segment::Field { name, aspect: Aspect::Type },
                None => Segment::Field { name: placeholder, aspect: Aspect::Whole },
            });
        }
        let (text, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
        rest = after;
        Some(Segment::Text(text))
    })
}

/// The part that tells which op a line holds: the first word, not counting what stands before `=`.
pub(crate) fn head(syntax: &'static str) -> Segment {
    let after_results = syntax.split_once(" = ").map_or(syntax, |(_, rest)| rest);
    match segments(after_results).next() {
        Some(Segment::Text(text)) => Segment::Text(text.split(' ').next().unwrap_or(text)),
        Some(field) => field,
        None => Segment::Text(""),
    }
}

/// Text of the ops, generated from the op table.
pub(crate) trait OpText: Sized {
    /// The words that start an op, each with the name of its row.
    fn heads() -> Vec<(&'static str, &'static str)>;
    /// Writes one of the op's fields.
    fn print_field(&self, field: &'static str, aspect: Aspect, p: &mut Printer<'_>);
    /// Reads an op of the row named `op`.
    fn parse_fields(op: &'static str, p: &mut Parser<'_>) -> Parsed<OpKind>;
}

/// A type of op fields.
pub(crate) trait Field: Sized {
    /// Writes the field called `name`.
    fn print(&self, name: &'static str, p: &mut Printer<'_>);

    /// Reads the field called `name`.
    fn parse(name: &'static str, p: &mut Parser<'_>) -> Parsed<Self>;

    /// All spellings, where the field is an op's first word.
    fn spellings() -> Vec<&'static str> {
        Vec::new()
    }

    /// Writes the type of what the field names.
    fn print_type(&self, _p: &mut Printer<'_>) {}

    /// Reads the type of what the field names.
    fn parse_type(&self, _p: &mut Parser<'_>) -> Parsed<()> {
        Ok(())
    }

    /// Writes what a placeholder asks for.
    fn print_aspect(&self, name: &'static str, aspect: Aspect, p: &mut Printer<'_>) {
        match aspect {
            Aspect::Whole => self.print(name, p),
            Aspect::Type => self.print_type(p),
        }
    }

    /// Reads what a placeholder asks for into `field`.
    fn parse_aspect(name: &'static str, aspect: Aspect, field: &mut Option<Self>, p: &mut Parser<'_>) -> Parsed<()> {
        match (aspect, field) {
            (Aspect::Whole, field) => *field = Some(Self::parse(name, p)?),
            (Aspect::Type, Some(field)) => field.parse_type(p)?,
            (Aspect::Type, None) => unreachable!("a syntax shows `{{{name}:type}}` after `{{{name}}}`"),
        }
        Ok(())
    }
}

impl Field for Value {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.value(*self);
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<Value> {
        p.value()
    }
}

/// `%0, 4, n`
impl Field for Indices {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.list(self, |p, &v| p.value(v));
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<Indices> {
        p.values().map(Indices::from_vec)
    }
}

/// `%0: f32`
impl Field for Def {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.value(self.0);
        p.literal(": ");
        p.part(p.func.values.get(self.0).map_or("?", |data| data.ty.name()));
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<Def> {
        p.definition(true).map(Def)
    }
}

/// `%0, %1`: of type index unless a type follows.
impl Field for SmallVec<[Def; 4]> {
    fn print(&self, name: &'static str, p: &mut Printer<'_>) {
        p.list(self, |p, def| match p.func.values.get(def.0).map(|data| data.ty) {
            Some(crate::DType::Index) => p.value(def.0),
            Some(_) | None => def.print(name, p),
        });
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<SmallVec<[Def; 4]>> {
        p.list(|p| p.definition(false).map(Def)).map(SmallVec::from_vec)
    }
}

impl Field for Buffer {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.buffer(*self);
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<Buffer> {
        p.buffer()
    }
    fn print_type(&self, p: &mut Printer<'_>) {
        match p.func.buffers.get(*self) {
            Some(data) => p.tile_type(data),
            None => p.part("?"),
        }
    }
    fn parse_type(&self, p: &mut Parser<'_>) -> Parsed<()> {
        p.declared_tile_type(*self)
    }
}

impl Field for Region {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.region(*self);
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<Region> {
        p.region()
    }
}

/// `$0`, `$0[%1 : 16, %2]`, `$0[%1 : 16, 0 : 8] perm(1, 0)`
impl Field for Window {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.buffer(self.buffer);
        if !self.covers_whole_buffer(p.func) {
            p.part("[");
            p.list(self.offsets.iter().enumerate(), |p, (axis, &offset)| {
                p.value(offset);
                if let Some(a) = self.axes.iter().find(|a| usize::from(a.axis) == axis) {
                    p.part(format_args!(" : {}", a.extent));
                }
            });
            p.part("]");
        }
        // The position of each window axis among the buffer axes that have an extent.
        let position = |a: &WindowAxis| (0..a.axis).filter(|&b| self.axes.iter().any(|c| c.axis == b)).count();
        let order: Vec<usize> = self.axes.iter().map(position).collect();
        if !order.iter().copied().eq(0..order.len()) {
            p.literal(" perm(");
            p.list(order, |p, at| p.part(at));
            p.part(")");
        }
    }

    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<Window> {
        let buffer = p.buffer()?;
        let mut window = Window { buffer, offsets: SmallVec::new(), axes: SmallVec::new() };
        if p.eat("[") {
            if !p.at("]") {
                p.list(|p| {
                    let axis = window.offsets.len();
                    window.offsets.push(p.value()?);
                    if p.eat(":") {
                        window.axes.push(WindowAxis { axis: axis as u8, extent: p.number("an extent")? });
                    }
                    Ok(())
                })?;
            }
            p.expect("]")?;
        } else {
            let Some(shape) = p.func.buffers[buffer].static_shape() else {
                return Err(p.expected("`[`, as an extent of the tensor is known only at launch"));
            };
            let zero = p.func.constant(Const::index(0));
            window.offsets = shape.iter().map(|_| zero).collect();
            window.axes =
                shape.iter().enumerate().map(|(axis, &extent)| WindowAxis { axis: axis as u8, extent }).collect();
        }
        if p.at_word("perm") {
            p.advance();
            p.expect("(")?;
            let order = p.list(|p| {
                let place = p.place();
                let at: usize = p.number("the position of an axis")?;
                let axis = window.axes.get(at).copied();
                axis.ok_or_else(|| {
                    p.expected_at(place, &format!("an axis below {}", window.axes.len()), format!("`{at}`"))
                })
            })?;
            p.expect(")")?;
            window.axes = SmallVec::from_vec(order);
        }
        Ok(window)
    }
}

/// Nothing, or the field's name and the window.
impl Field for Option<Window> {
    fn print(&self, name: &'static str, p: &mut Printer<'_>) {
        if let Some(window) = self {
            p.part(name);
            p.literal(" ");
            window.print(name, p);
        }
    }
    fn parse(name: &'static str, p: &mut Parser<'_>) -> Parsed<Option<Window>> {
        if !p.at_word(name) {
            return Ok(None);
        }
        p.advance();
        Window::parse(name, p).map(Some)
    }
}

/// Nothing, or the field's name.
impl Field for bool {
    fn print(&self, name: &'static str, p: &mut Printer<'_>) {
        if *self {
            p.part(name);
        }
    }
    fn parse(name: &'static str, p: &mut Parser<'_>) -> Parsed<bool> {
        let found = p.at_word(name);
        if found {
            p.advance();
        }
        Ok(found)
    }
}

impl Field for u32 {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.part(self);
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<u32> {
        p.number("a number")
    }
}

impl Field for Const {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.part(self);
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<Const> {
        p.constant()
    }
}

impl Field for String {
    fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
        p.part(quote(self, '"'));
    }
    fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<String> {
        match p.peek().clone() {
            TokenKind::Str(text) => {
                p.advance();
                Ok(text)
            }
            _ => Err(p.expected("text in double quotes")),
        }
    }
}

macro_rules! named_fields {
    ($($t:ty: $what:literal),* $(,)?) => { $(impl Field for $t {
        fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
            p.part(self.name());
        }
        fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<$t> {
            p.keyword($what, <$t>::ALL, <$t>::name)
        }
        fn spellings() -> Vec<&'static str> {
            <$t>::ALL.iter().map(|t| t.name()).collect()
        }
    })* };
}
named_fields!(
    UnaryOp: "an operation",
    BinaryOp: "an operation",
    CmpOp: "a comparison",
    ReduceOp: "a reduction",
    ScanOp: "a scan",
    AtomicOp: "an atomic operation",
    ShuffleOp: "a shuffle",
    GemmPrecision: "a precision",
);

/// A field spelled as a word, for some words with a number in brackets.
macro_rules! worded_field {
    ($t:ty, $what:literal, { $($word:literal => $plain:expr),* $(,)? }, { $($call:literal ($n:ident) => $with:expr),* $(,)? }, $print:expr) => {
        impl Field for $t {
            fn print(&self, _name: &'static str, p: &mut Printer<'_>) {
                let print: fn(&$t) -> (&'static str, Option<u32>) = $print;
                match print(self) {
                    (word, None) => p.part(word),
                    (word, Some(n)) => p.part(format_args!("{word}({n})")),
                }
            }
            fn parse(_name: &'static str, p: &mut Parser<'_>) -> Parsed<$t> {
                let words: &[&'static str] = &[$($word,)* $($call),*];
                match p.keyword($what, words, |w| w)? {
                    $($word => Ok($plain),)*
                    $($call => {
                        p.expect("(")?;
                        let $n: u32 = p.number("a number")?;
                        p.expect(")")?;
                        Ok($with)
                    })*
                    word => unreachable!("`{word}` is not one of the words"),
                }
            }
        }
    };
}

worded_field!(LoopKind, "a kind of loop", {
    "serial" => LoopKind::Serial,
    "unrolled" => LoopKind::Unrolled,
    "parallel" => LoopKind::Parallel,
    "vectorized" => LoopKind::Vectorized,
    "persistent" => LoopKind::Persistent,
}, {
    "pipelined"(stages) => LoopKind::Pipelined { stages },
}, |kind| match *kind {
    LoopKind::Serial => ("serial", None),
    LoopKind::Unrolled => ("unrolled", None),
    LoopKind::Pipelined { stages } => ("pipelined", Some(stages)),
    LoopKind::Parallel => ("parallel", None),
    LoopKind::Vectorized => ("vectorized", None),
    LoopKind::Persistent => ("persistent", None),
});

worded_field!(WarpRole, "a warp role", {
    "producer" => WarpRole::Producer,
}, {
    "consumer"(number) => WarpRole::Consumer(number),
}, |role| match *role {
    WarpRole::Producer => ("producer", None),
    WarpRole::Consumer(number) => ("consumer", Some(number)),
});

worded_field!(LayoutHint, "a layout", {
    "row_major" => LayoutHint::RowMajor,
}, {
    "swizzle"(bytes) => LayoutHint::Swizzle(bytes),
    "pad"(elements) => LayoutHint::Pad(elements),
}, |hint| match *hint {
    LayoutHint::Swizzle(bytes) => ("swizzle", Some(bytes)),
    LayoutHint::Pad(elements) => ("pad", Some(elements)),
    LayoutHint::RowMajor => ("row_major", None),
});
