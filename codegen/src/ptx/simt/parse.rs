//! Reads SIMT IR from its text ([`super::text`]), so that passes can be tested on kernels written by hand.
//!
//! `parse(text).to_string() == text` for every text that a kernel prints. Numbers of values, variables and so on are kept; gaps
//! in the numbering are filled with entries that nothing uses. What the text means is [`super::verify`]'s business.

use super::func::{
    Assertion, Block, GridPlan, Kernel, MapSpec, Obj, ObjData, ObjKind, ParamSlot, PhaseId, PhaseInfo, Roles, Val,
    ValDef, Var,
};
use super::op::{Addr, Def, Defs, SimtOp, Vals, Vars};
use super::text::is_word_char;
use super::ty::{Num, Space, Ty};
use std::sync::Arc;
use zellige_ir::{DType, EntityId, Span};

/// Where a text is no SIMT IR, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct ParseError {
    /// 1-based.
    pub line: usize,
    /// 1-based.
    pub column: usize,
    pub what: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Ids beyond this are mistakes: arenas are filled up to the largest id.
const MAX_ID: usize = 1 << 20;

/// Reads a kernel.
///
/// # Errors
/// At the first place where the text is not what [`Kernel`] prints.
pub fn parse(text: &str) -> Result<Kernel> {
    let mut p =
        Parser { text, at: 0, mark: 0, kernel: Kernel::new("", Span::unknown(), 0), defs: Vec::new(), first: true };
    p.kernel.spans = vec![Span::unknown()];
    p.values()?;
    p.header()?;
    p.expect("body")?;
    let body: Block = p.id("block")?;
    p.kernel.body = p.grown_block(body);
    p.block(body)?;
    match p.rest() {
        "" => Ok(p.kernel),
        _ => p.fail("expected the end of the text"),
    }
}

/// A cursor over the text and the kernel so far.
pub(super) struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// Where the token that was last looked at begins: the place that messages name.
    mark: usize,
    kernel: Kernel,
    /// Results of the op that is being read and have not been given to a field yet.
    defs: Vec<Val>,
    /// No field of the op has been read yet: none is preceded by a comma.
    first: bool,
}

impl<'t> Parser<'t> {
    pub(super) fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        let before = &self.text[..self.mark];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Err(ParseError { line, column, what: what.into() })
    }

    /// What is left, without blanks and comments in front.
    fn rest(&mut self) -> &'t str {
        loop {
            let rest = self.text[self.at..].trim_start();
            self.at = self.text.len() - rest.len();
            if !rest.starts_with("//") {
                self.mark = self.at;
                return rest;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    /// Takes `token` if it comes next; a word must end there.
    fn eat(&mut self, token: &str) -> bool {
        let Some(after) = self.rest().strip_prefix(token) else { return false };
        let joined = token.ends_with(is_word_char) && after.starts_with(is_word_char);
        if !joined {
            self.at = self.text.len() - after.len();
        }
        !joined
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.eat(token) { Ok(()) } else { self.fail(format!("expected `{token}`")) }
    }

    /// The next word; empty if there is none.
    fn peek_word(&mut self) -> &'t str {
        let rest = self.rest();
        &rest[..rest.find(|c| !is_word_char(c)).unwrap_or(rest.len())]
    }

    pub(super) fn word(&mut self) -> Result<&'t str> {
        let word = self.peek_word();
        if word.is_empty() {
            return self.fail("expected a word");
        }
        self.at += word.len();
        Ok(word)
    }

    pub(super) fn number<N: std::str::FromStr>(&mut self) -> Result<N> {
        let rest = self.rest();
        let len = rest.char_indices().find(|(i, c)| !(c.is_ascii_digit() || *i == 0 && matches!(c, '-' | '+')));
        let digits = &rest[..len.map_or(rest.len(), |(i, _)| i)];
        match digits.parse() {
            Ok(n) => {
                self.at += digits.len();
                Ok(n)
            }
            Err(_) => self.fail("expected a number"),
        }
    }

    /// Text in quotes, with Rust's escapes.
    pub(super) fn string(&mut self) -> Result<String> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some('u') => {
                        let code: String = chars.by_ref().map(|(_, c)| c).take_while(|c| *c != '}').skip(1).collect();
                        let c = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                        out.push(c.map_or_else(|| self.fail("no such character"), Ok)?);
                    }
                    Some(c) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        self.fail("the quotes are not closed")
    }

    /// A word, or a name in quotes.
    fn name(&mut self) -> Result<String> {
        if self.rest().starts_with('"') { self.string() } else { self.word().map(str::to_owned) }
    }

    /// `prefix` and a number.
    fn id<I: EntityId>(&mut self, prefix: &str) -> Result<I> {
        let digits = self.peek_word().strip_prefix(prefix).and_then(|d| d.parse::<usize>().ok());
        match digits {
            Some(n) if n < MAX_ID => {
                self.word()?;
                Ok(I::from_index(n))
            }
            _ => self.fail(format!("expected `{prefix}` and a number")),
        }
    }

    // ---- tables ------------------------------------------------------------------------------------------------

    /// Gives every value that is defined somewhere (`v7: b32`) its class, since loops use values before their definition.
    fn values(&mut self) -> Result<()> {
        let start = self.at;
        while !self.rest().is_empty() {
            if self.rest().starts_with('"') {
                self.string()?;
                continue;
            }
            let word = self.peek_word();
            if word.is_empty() {
                self.at += self.rest().chars().next().map_or(0, char::len_utf8);
                continue;
            }
            let is_value = word.strip_prefix('v').is_some_and(|d| d.parse::<usize>().is_ok());
            let before = self.at;
            self.word()?;
            if is_value && self.eat(":") {
                let after = self.at;
                self.at = before;
                let v: Val = self.id("v")?;
                self.at = after;
                let ty = Ty::parse(self)?;
                while self.kernel.vals.len() <= v.index() {
                    self.kernel.pending(Ty::B32);
                }
                self.kernel.vals[v].ty = ty;
            }
        }
        self.at = start;
        Ok(())
    }

    fn grown_block(&mut self, block: Block) -> Block {
        while self.kernel.blocks.len() <= block.index() {
            self.kernel.blocks.push(Vec::new());
        }
        block
    }

    fn header(&mut self) -> Result<()> {
        self.expect("simt")?;
        self.expect("kernel")?;
        self.kernel.name = self.name()?;
        self.expect("threads")?;
        self.kernel.threads = self.number()?;
        self.expect("shared")?;
        self.kernel.shared_bytes = self.number()?;
        if self.eat("persistent") {
            self.kernel.grid = GridPlan::Persistent;
        }
        if self.eat("spread") {
            self.kernel.grid = GridPlan::Spread;
        }
        if self.eat("consumers") {
            self.kernel.roles = Roles::Specialised { consumers: self.number()? };
        }
        if self.eat("cluster") {
            self.kernel.cluster = self.number()?;
        }
        while self.eat("param") {
            self.position(self.kernel.params.len(), "parameter")?;
            self.expect(":")?;
            let slot = self.param()?;
            self.kernel.params.push(slot);
        }
        while self.eat("assertion") {
            self.position(self.kernel.assertions.len() + 1, "assertion")?;
            self.expect(":")?;
            let assertion = Assertion { place: self.string()?, message: self.string()? };
            self.kernel.assertions.push(assertion);
        }
        while self.peek_word().strip_prefix('m').is_some_and(|d| d.parse::<usize>().is_ok()) {
            let id: Obj = self.id("m")?;
            self.next(id, self.kernel.objs.next_id(), "object")?;
            self.expect(":")?;
            let data = self.object()?;
            self.kernel.objs.push(data);
        }
        while self.eat("var") {
            let id: Var = self.id("r")?;
            self.next(id, self.kernel.vars.next_id(), "variable")?;
            self.expect(":")?;
            let ty = Ty::parse(self)?;
            self.kernel.vars.push(ty);
        }
        while self.peek_word().starts_with("phase") {
            let id: PhaseId = self.id("phase")?;
            self.next(id, self.kernel.phases.next_id(), "phase")?;
            self.expect(":")?;
            let info = self.phase()?;
            self.kernel.phases.push(info);
        }
        Ok(())
    }

    fn position(&mut self, want: usize, what: &str) -> Result<()> {
        let got: usize = self.number()?;
        if got == want { Ok(()) } else { self.fail(format!("the next {what} is number {want}")) }
    }

    fn next<I: EntityId + std::fmt::Display>(&self, got: I, want: I, what: &str) -> Result<()> {
        if got == want { Ok(()) } else { self.fail(format!("the next {what} is {want}")) }
    }

    fn param(&mut self) -> Result<ParamSlot> {
        Ok(match self.word()? {
            "base" => ParamSlot::Base { param: self.number()?, name: self.name()? },
            "stride" => ParamSlot::Stride { param: self.number()?, axis: self.number()?, name: self.name()? },
            "dim" => ParamSlot::Dim { dim: self.number()?, name: self.name()? },
            "scalar" => {
                let param = self.number()?;
                let dtype = self.dtype()?;
                ParamSlot::Scalar { param, name: self.name()?, dtype }
            }
            "map" => {
                let param = self.number()?;
                let dtype = self.dtype()?;
                let tf32 = self.eat("tf32");
                self.expect("[")?;
                let mut tile = Vec::new();
                while !self.eat("]") {
                    tile.push(self.number()?);
                }
                self.expect("swizzle")?;
                let map = MapSpec { dtype, tf32, tile, swizzle: self.number()? };
                ParamSlot::TensorMap { param, name: self.name()?, map }
            }
            "counter" => ParamSlot::Counter { name: self.name()? },
            "failure" => ParamSlot::Failure { name: self.name()? },
            _ => return self.fail("expected `base`, `stride`, `dim`, `scalar`, `map`, `counter` or `failure`"),
        })
    }

    fn dtype(&mut self) -> Result<DType> {
        match DType::from_name(self.word()?) {
            Some(dtype) => Ok(dtype),
            None => self.fail("no element type"),
        }
    }

    fn object(&mut self) -> Result<ObjData> {
        let kind = self.word()?;
        let name = self.name()?;
        let kind = match kind {
            "global" => ObjKind::Global { read_only: self.eat("read-only") },
            "shared" => {
                let (bytes, align) = self.extent()?;
                let offset = if self.eat("at") { Some(self.number()?) } else { None };
                ObjKind::Shared { bytes, align, offset }
            }
            "local" => {
                let (bytes, align) = self.extent()?;
                ObjKind::Local { bytes, align }
            }
            _ => return self.fail("expected `global`, `shared` or `local`"),
        };
        let managed = self.eat("managed");
        self.expect("home")?;
        let home = self.id("block")?;
        let home = self.grown_block(home);
        let mut split = Vec::new();
        while self.eat("split") {
            self.expect("by")?;
            let body = self.id("block")?;
            split.push(self.grown_block(body));
        }
        Ok(ObjData { name, kind, span: Span::unknown(), managed, home, split })
    }

    fn extent(&mut self) -> Result<(u32, u32)> {
        let bytes = self.number()?;
        self.expect("bytes")?;
        self.expect("align")?;
        Ok((bytes, self.number()?))
    }

    fn phase(&mut self) -> Result<PhaseInfo> {
        let what = self.string()?;
        let mut span = None;
        if self.eat("at") {
            let file = Arc::from(self.string()?);
            self.expect(":")?;
            let line = self.number()?;
            self.expect(":")?;
            span = Some(Span { file, line, col: self.number()? });
        }
        let mut apart = Vec::new();
        while self.eat("apart") {
            apart.push((self.id("m")?, self.id("phase")?));
        }
        let mut rings = Vec::new();
        while self.eat("ring") {
            rings.push(self.id("m")?);
        }
        Ok(PhaseInfo { what, span, apart, rings })
    }

    // ---- ops ---------------------------------------------------------------------------------------------------

    /// The ops of a block, in braces.
    fn block(&mut self, block: Block) -> Result<()> {
        self.expect("{")?;
        while !self.eat("}") {
            self.op(block)?;
        }
        Ok(())
    }

    fn op(&mut self, block: Block) -> Result<()> {
        self.defs.clear();
        if self.peek_word().strip_prefix('v').is_some_and(|d| d.parse::<usize>().is_ok()) {
            loop {
                let v: Val = self.id("v")?;
                self.expect(":")?;
                // The class was read before.
                Ty::parse(self)?;
                if self.kernel.vals[v].def != ValDef::Pending || self.defs.contains(&v) {
                    return self.fail(format!("{v} has two definitions"));
                }
                self.defs.push(v);
                if !self.eat(",") {
                    break;
                }
            }
            self.expect("=")?;
            self.defs.reverse();
        }
        self.rest();
        let start = self.at;
        let name = self.word()?;
        self.first = true;
        let Some(op) = SimtOp::parse(name, self)? else {
            self.mark = start;
            return self.fail(format!("no op `{name}`"));
        };
        if !self.defs.is_empty() {
            return self.fail(format!("`{name}` has fewer results"));
        }
        let mut nested = Vec::new();
        super::op::Fields::blocks(&op, &mut |b| nested.push(b));
        self.kernel.append(block, op, 0);
        nested.into_iter().try_for_each(|b| self.block(b))
    }

    /// The comma before every field but the first.
    fn comma(&mut self) -> Result<()> {
        if std::mem::take(&mut self.first) { Ok(()) } else { self.expect(",") }
    }

    fn result(&mut self) -> Result<Def> {
        match self.defs.pop() {
            Some(v) => Ok(Def(v)),
            None => self.fail("the op has more results"),
        }
    }

    /// A value or an immediate.
    fn operand(&mut self) -> Result<Val> {
        let rest = self.rest();
        let number = rest.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        if !number {
            return match self.peek_word() {
                "true" | "false" => {
                    let bits = u64::from(self.word()? == "true");
                    Ok(self.kernel.constant(Ty::Pred, bits))
                }
                "f32" => self.bits_of(Ty::F32),
                "f64" => self.bits_of(Ty::F64),
                _ => {
                    let v: Val = self.id("v")?;
                    if self.kernel.vals.get(v).is_none() {
                        return self.fail(format!("{v} has no definition"));
                    }
                    Ok(v)
                }
            };
        }
        let hex = rest.starts_with("0x");
        let mut last = ' ';
        let len = rest.find(|c: char| {
            let exponent = !hex && last == 'e' && matches!(c, '-' | '+');
            let sign = last == ' ' && c == '-';
            last = c;
            !(c.is_ascii_alphanumeric() || c == '.' || exponent || sign)
        });
        let word = &rest[..len.unwrap_or(rest.len())];
        let constant = match (word.strip_prefix("0x"), word.strip_suffix('L')) {
            (Some(digits), _) => u64::from_str_radix(digits, 16).ok().map(|bits| (Ty::B16, bits)),
            (None, Some(digits)) => digits.parse::<i64>().ok().map(|n| (Ty::B64, n as u64)),
            (None, None) => match word.as_bytes().last() {
                Some(b'f') => word[..word.len() - 1].parse::<f32>().ok().map(|x| (Ty::F32, u64::from(x.to_bits()))),
                Some(b'd') => word[..word.len() - 1].parse::<f64>().ok().map(|x| (Ty::F64, x.to_bits())),
                _ => word.parse::<i32>().ok().map(|n| (Ty::B32, u64::from(n as u32))),
            },
        };
        let Some((ty, bits)) = constant else { return self.fail("expected a value or an immediate") };
        self.at += word.len();
        Ok(self.kernel.constant(ty, bits))
    }

    fn bits_of(&mut self, ty: Ty) -> Result<Val> {
        self.word()?;
        self.expect(":")?;
        let digits = self.word()?.strip_prefix("0x").and_then(|d| u64::from_str_radix(d, 16).ok());
        match digits {
            Some(bits) => Ok(self.kernel.constant(ty, bits)),
            None => self.fail("expected `0x` and digits"),
        }
    }
}

/// A field of an op that can be read.
pub(super) trait ParseField: Sized {
    /// Reads the field called `name` with the comma before it, if the field is there.
    fn parse_field(p: &mut Parser<'_>, name: &str) -> Result<Self>;
}

impl ParseField for Def {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Def> {
        p.result()
    }
}

impl ParseField for Option<Def> {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Option<Def>> {
        Ok(p.defs.pop().map(Def))
    }
}

impl ParseField for Defs {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Defs> {
        Ok(p.defs.drain(..).rev().map(Def).collect())
    }
}

impl ParseField for Val {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Val> {
        p.comma()?;
        p.operand()
    }
}

impl ParseField for Option<Val> {
    fn parse_field(p: &mut Parser<'_>, name: &str) -> Result<Option<Val>> {
        let start = p.at;
        if p.eat(",") && p.eat(name) {
            return p.operand().map(Some);
        }
        p.at = start;
        Ok(None)
    }
}

impl ParseField for Vals {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Vals> {
        let start = p.at;
        let mut vals = Vals::new();
        if !(p.comma().is_ok() && p.eat("{")) {
            p.at = start;
            return Ok(vals);
        }
        while !p.eat("}") {
            vals.push(p.operand()?);
        }
        Ok(vals)
    }
}

impl ParseField for Vars {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Vars> {
        p.comma()?;
        p.expect("{")?;
        let number = |id: &str| id.strip_prefix('r').and_then(|d| d.parse::<usize>().ok());
        let range = p.word()?.split_once("..").and_then(|(a, b)| Some((number(a)?, number(b)?)));
        let Some((first, last)) = range.filter(|(_, last)| *last < p.kernel.vars.len()) else {
            return p.fail("expected declared variables `rN..rM`");
        };
        p.expect("}")?;
        Ok((first..=last).map(Var::from_index).collect())
    }
}

impl ParseField for Addr {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Addr> {
        p.comma()?;
        p.expect("[")?;
        let base = p.operand()?;
        let offset = p.number()?;
        p.expect("in")?;
        let obj = p.id("m")?;
        p.expect("]")?;
        known(p, obj, p.kernel.objs.get(obj).is_some())?;
        Ok(Addr { base, offset, obj })
    }
}

fn known<I: std::fmt::Display>(p: &Parser<'_>, id: I, is_known: bool) -> Result<I> {
    if is_known { Ok(id) } else { p.fail(format!("{id} is not declared")) }
}

impl ParseField for Obj {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Obj> {
        p.comma()?;
        let id = p.id("m")?;
        known(p, id, p.kernel.objs.get(id).is_some())
    }
}

impl ParseField for Var {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Var> {
        p.comma()?;
        let id = p.id("r")?;
        known(p, id, p.kernel.vars.get(id).is_some())
    }
}

impl ParseField for PhaseId {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<PhaseId> {
        p.comma()?;
        let id = p.id("phase")?;
        known(p, id, p.kernel.phases.get(id).is_some())
    }
}

impl ParseField for Block {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Block> {
        p.comma()?;
        let id = p.id("block")?;
        Ok(p.grown_block(id))
    }
}

impl ParseField for u32 {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<u32> {
        p.comma()?;
        p.number()
    }
}

impl ParseField for bool {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<bool> {
        p.comma()?;
        match p.word()? {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => p.fail("expected `true` or `false`"),
        }
    }
}

impl ParseField for String {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<String> {
        p.comma()?;
        p.string()
    }
}

/// Reads one of the variants by its name; a variant whose name is empty is not written at all.
pub(super) fn variant<V: Copy>(p: &mut Parser<'_>, all: &[V], name: impl Fn(V) -> &'static str) -> Result<V> {
    let start = p.at;
    let unwritten = all.iter().copied().find(|v| name(*v).is_empty());
    let found = p.comma().ok().and_then(|()| {
        let word = p.word().ok()?;
        all.iter().copied().find(|v| name(*v) == word)
    });
    match found.or(unwritten) {
        Some(v) => {
            if found.is_none() {
                p.at = start;
            }
            Ok(v)
        }
        None => {
            let names: Vec<&str> = all.iter().map(|v| name(*v)).collect();
            p.at = start;
            p.fail(format!("expected one of {}", names.join(", ")))
        }
    }
}

impl Ty {
    fn parse(p: &mut Parser<'_>) -> Result<Ty> {
        let word = p.word()?;
        Ty::ALL.into_iter().find(|t| t.name() == word).map_or_else(|| p.fail("no class of registers"), Ok)
    }
}

impl ParseField for Num {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Num> {
        variant(p, &Num::ALL, Num::name)
    }
}

impl ParseField for Space {
    fn parse_field(p: &mut Parser<'_>, _name: &str) -> Result<Space> {
        variant(p, &[Space::Global, Space::Shared, Space::Local], Space::name)
    }
}
