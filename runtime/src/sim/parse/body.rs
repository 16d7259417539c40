//! Kernel bodies: nested scopes, register declarations, labels, instructions and their operands.

use std::collections::HashMap;
use std::sync::Arc;

use super::Cursor;
use super::ast::{AddrBase, Entry, Instr, Operand, RegDecl, RegId, Ty};
use super::lexer::Tok;
use super::module::variables;
use crate::sim::error::{SimError, SourceRef};

#[derive(Default)]
struct Scope {
    regs: HashMap<String, RegId>,
    labels: HashMap<String, u32>,
    /// Variables declared here: the name as written and the name it has in the kernel.
    vars: HashMap<String, String>,
    parent: Option<usize>,
}

struct Body<'c, 'a> {
    c: &'c mut Cursor<'a>,
    entry: &'c mut Entry,
    scopes: Vec<Scope>,
    scope: usize,
    /// Branches whose label is looked up once all labels are known: instruction, operand, name, scope, place.
    pending: Vec<Pending>,
    notes: &'c HashMap<u32, SourceRef>,
    files: &'c HashMap<u64, Arc<str>>,
    loc: Option<SourceRef>,
}

struct Pending {
    instr: usize,
    operand: usize,
    name: String,
    scope: usize,
    token: usize,
}

/// Parses `{ ... }` into `entry`; the cursor stands on the brace.
pub(super) fn parse(
    c: &mut Cursor<'_>,
    entry: &mut Entry,
    notes: &HashMap<u32, SourceRef>,
    files: &HashMap<u64, Arc<str>>,
) -> Result<(), SimError> {
    let mut b =
        Body { c, entry, scopes: vec![Scope::default()], scope: 0, pending: Vec::new(), notes, files, loc: None };
    b.c.expect('{')?;
    b.block()?;
    b.resolve_labels()
}

impl Body<'_, '_> {
    fn block(&mut self) -> Result<(), SimError> {
        loop {
            match self.c.peek() {
                Tok::Punct('}') => {
                    self.c.next();
                    return Ok(());
                }
                Tok::Punct('{') => {
                    self.c.next();
                    let outer = self.scope;
                    self.scopes.push(Scope { parent: Some(outer), ..Scope::default() });
                    self.scope = self.scopes.len() - 1;
                    self.block()?;
                    self.scope = outer;
                }
                Tok::Punct(';') => {
                    self.c.next();
                }
                Tok::Dot("reg") => self.registers()?,
                Tok::Dot("shared" | "local" | "param" | "const" | "global") => self.declare(false)?,
                Tok::Dot("extern") => {
                    self.c.next();
                    self.declare(true)?;
                }
                Tok::Dot("loc") => self.location()?,
                Tok::Dot("pragma") => {
                    while !self.c.eat(';') {
                        self.c.next();
                    }
                }
                Tok::Name(name) if self.c.peek_at(1) == Tok::Punct(':') => {
                    let at = self.entry.instrs.len() as u32;
                    let id = self.entry.labels.len() as u32;
                    if self.scopes[self.scope].labels.insert(name.to_string(), id).is_some() {
                        return Err(self.c.error(format!("label `{name}` is defined twice")));
                    }
                    self.entry.labels.push(at);
                    self.c.next();
                    self.c.next();
                }
                Tok::Name(_) | Tok::Punct('@') => self.instruction()?,
                Tok::End => return Err(self.c.error("the kernel body is not closed".into())),
                _ => return Err(self.c.error(format!("expected an instruction, found {}", self.c.found()))),
            }
        }
    }

    fn declare(&mut self, external: bool) -> Result<(), SimError> {
        for mut v in variables(self.c, external)? {
            let unique = if self.entry.vars.iter().any(|x| x.name == v.name) {
                format!("{}@{}", v.name, self.entry.vars.len())
            } else {
                v.name.clone()
            };
            self.scopes[self.scope].vars.insert(v.name, unique.clone());
            v.name = unique;
            self.entry.vars.push(v);
        }
        Ok(())
    }

    fn registers(&mut self) -> Result<(), SimError> {
        self.c.next();
        let Tok::Dot(word) = self.c.next() else {
            return Err(self.c.error("expected a register type".into()));
        };
        let ty = match Ty::from_word(word) {
            Some(ty) => ty,
            None => return Err(self.c.not_simulated(format!("registers of type `.{word}`"))),
        };
        loop {
            let name = self.c.name("a register name")?.to_string();
            if self.c.eat('<') {
                let n = self.c.int32("a register count")?;
                self.c.expect('>')?;
                for i in 0..n {
                    self.add_register(format!("{name}{i}"), ty);
                }
            } else {
                self.add_register(name, ty);
            }
            if self.c.eat(';') {
                return Ok(());
            }
            self.c.expect(',')?;
        }
    }

    fn add_register(&mut self, name: String, ty: Ty) {
        let id = RegId(self.entry.regs.len() as u32);
        self.entry.regs.push(RegDecl { name: name.clone(), ty });
        self.scopes[self.scope].regs.insert(name, id);
    }

    fn location(&mut self) -> Result<(), SimError> {
        self.c.next();
        let file = self.c.int("a file number")?;
        let line = self.c.int32("a line")?;
        let col = self.c.int32("a column")?;
        // Inlining information follows on the same statement; it does not change the place.
        while self.c.eat(',') {
            while matches!(self.c.peek(), Tok::Name(_) | Tok::Int(_) | Tok::Punct('+')) && !self.starts_statement() {
                self.c.next();
            }
        }
        let name = self.files.get(&file).cloned().unwrap_or_else(|| format!("file {file}").into());
        self.loc = Some(SourceRef { file: name, line, col });
        Ok(())
    }

    fn starts_statement(&self) -> bool {
        matches!((self.c.peek(), self.c.peek_at(1)), (Tok::Name(_), Tok::Dot(_) | Tok::Punct(':')))
    }

    fn find_reg(&self, name: &str) -> Option<RegId> {
        let mut s = Some(self.scope);
        while let Some(i) = s {
            if let Some(r) = self.scopes[i].regs.get(name) {
                return Some(*r);
            }
            s = self.scopes[i].parent;
        }
        None
    }

    /// The kernel-wide name of a variable declared in an enclosing scope, or `name` itself (a parameter or module variable).
    fn find_var(&self, name: &str) -> String {
        let mut s = Some(self.scope);
        while let Some(i) = s {
            if let Some(v) = self.scopes[i].vars.get(name) {
                return v.clone();
            }
            s = self.scopes[i].parent;
        }
        name.to_string()
    }

    fn instruction(&mut self) -> Result<(), SimError> {
        let line = self.c.line();
        let guard = if self.c.eat('@') {
            let negated = self.c.eat('!');
            let name = self.c.name("a guard predicate")?;
            let reg = self.find_reg(name).ok_or_else(|| self.c.error(format!("register `{name}` is not declared")))?;
            Some((reg, negated))
        } else {
            None
        };
        let name = self.c.name("an instruction")?.to_string();
        let mut mods = Vec::new();
        while let Tok::Dot(m) = self.c.peek() {
            mods.push(m.to_string());
            self.c.next();
        }
        let index = self.entry.instrs.len();
        let mut operands = Vec::new();
        while self.c.peek() != Tok::Punct(';') {
            if !operands.is_empty() {
                self.c.expect(',')?;
            }
            let before = self.c.at;
            let op = self.operand(name == "bra")?;
            if let (Operand::Label(_), Tok::Name(label)) = (&op, self.c.tokens[before].tok) {
                let (scope, operand) = (self.scope, operands.len());
                self.pending.push(Pending { instr: index, operand, name: label.into(), scope, token: before });
            }
            operands.push(op);
        }
        self.c.expect(';')?;
        let source = self.notes.get(&line).cloned().or_else(|| self.loc.clone());
        self.entry.instrs.push(Instr { guard, name, mods, operands, line, source });
        Ok(())
    }

    fn operand(&mut self, branch: bool) -> Result<Operand, SimError> {
        let first = self.simple_operand(branch)?;
        if self.c.eat('|') {
            let second = self.simple_operand(branch)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn list(&mut self, close: char) -> Result<Vec<Operand>, SimError> {
        let mut items = Vec::new();
        if self.c.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(self.operand(false)?);
            if self.c.eat(close) {
                return Ok(items);
            }
            self.c.expect(',')?;
        }
    }

    fn simple_operand(&mut self, branch: bool) -> Result<Operand, SimError> {
        match self.c.peek() {
            Tok::Punct('{') => {
                self.c.next();
                Ok(Operand::Vec(self.list('}')?))
            }
            Tok::Punct('(') => {
                self.c.next();
                Ok(Operand::Args(self.list(')')?))
            }
            Tok::Punct('[') => self.address(),
            Tok::Punct('!') => {
                self.c.next();
                let name = self.c.name("a predicate")?;
                self.find_reg(name)
                    .map(Operand::NotReg)
                    .ok_or_else(|| self.c.error(format!("register `{name}` is not declared")))
            }
            Tok::Punct('-') => {
                self.c.next();
                match self.c.next() {
                    Tok::Int(v) => Ok(Operand::Int(-i128::from(v))),
                    Tok::F32(b) => Ok(Operand::F32(b ^ 0x8000_0000)),
                    Tok::F64(b) => Ok(Operand::F64(b ^ (1 << 63))),
                    _ => Err(self.c.error("expected a number after `-`".into())),
                }
            }
            Tok::Int(v) => {
                self.c.next();
                Ok(Operand::Int(i128::from(v)))
            }
            Tok::F32(b) => {
                self.c.next();
                Ok(Operand::F32(b))
            }
            Tok::F64(b) => {
                self.c.next();
                Ok(Operand::F64(b))
            }
            Tok::Name("_") => {
                self.c.next();
                Ok(Operand::Sink)
            }
            Tok::Name(name) => {
                self.c.next();
                if branch {
                    return Ok(Operand::Label(u32::MAX));
                }
                if let Some(r) = self.find_reg(name) {
                    return Ok(Operand::Reg(r));
                }
                if name.starts_with('%') {
                    if let Tok::Dot(part @ ("x" | "y" | "z" | "w")) = self.c.peek() {
                        self.c.next();
                        return Ok(Operand::Special(format!("{name}.{part}")));
                    }
                    return Ok(Operand::Special(name.to_string()));
                }
                if name == "WARP_SZ" {
                    return Ok(Operand::Int(32));
                }
                let offset = if self.c.eat('+') { self.c.int("an offset")? as i64 } else { 0 };
                Ok(Operand::Symbol(self.find_var(name), offset))
            }
            _ => Err(self.c.error(format!("expected an operand, found {}", self.c.found()))),
        }
    }

    fn address(&mut self) -> Result<Operand, SimError> {
        self.c.expect('[')?;
        let mut base = AddrBase::Absolute;
        let mut offset = 0i64;
        match self.c.peek() {
            Tok::Name(name) => {
                self.c.next();
                base = match self.find_reg(name) {
                    Some(r) => AddrBase::Reg(r),
                    None if name.starts_with('%') => {
                        self.c.at -= 1;
                        return Err(self.c.error(format!("register `{name}` is not declared")));
                    }
                    None => AddrBase::Symbol(self.find_var(name)),
                };
            }
            Tok::Int(v) => {
                self.c.next();
                offset = v as i64;
            }
            _ => return Err(self.c.error(format!("expected an address, found {}", self.c.found()))),
        }
        // Offsets are added; the grammar has no subtraction, so a negative one reads `+-8`.
        while self.c.eat('+') {
            let negative = self.c.eat('-');
            let magnitude = self.c.int("an offset")?;
            let v = if negative { -i128::from(magnitude) } else { i128::from(magnitude) };
            let sum = i32::try_from(i128::from(offset) + v);
            offset = sum.map(i64::from).map_err(|_| self.c.error("the offset does not fit 32 bits".into()))?;
        }
        let addr = Operand::Addr { base, offset };
        if self.c.eat(',') {
            let coords = match self.operand(false)? {
                Operand::Vec(v) => v,
                other => vec![other],
            };
            self.c.expect(']')?;
            return Ok(Operand::TensorAddr { base: Box::new(addr), coords });
        }
        self.c.expect(']')?;
        Ok(addr)
    }

    fn resolve_labels(&mut self) -> Result<(), SimError> {
        for p in std::mem::take(&mut self.pending) {
            let mut s = Some(p.scope);
            let mut found = None;
            while let (Some(i), None) = (s, found) {
                found = self.scopes[i].labels.get(&p.name).copied();
                s = self.scopes[i].parent;
            }
            let Some(id) = found else {
                self.c.at = p.token;
                return Err(self.c.error(format!("label `{}` is not defined", p.name)));
            };
            self.entry.instrs[p.instr].operands[p.operand] = Operand::Label(id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const HEAD: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

    fn entry(body: &str) -> Entry {
        let text =
            format!("{HEAD}.visible .entry k(.param .u64 a, .param .align 64 .b8 m[128]) .reqntid 32 {{\n{body}\n}}");
        parse(&text).unwrap_or_else(|e| panic!("{e}")).entries.remove(0)
    }

    #[test]
    fn parameters_are_laid_out_with_their_alignment() {
        let e = entry("ret;");
        assert_eq!((e.params[0].offset, e.params[1].offset, e.params[1].bytes), (0, 64, 128));
        assert_eq!(e.required_threads, Some([32, 1, 1]));
    }

    #[test]
    fn nested_scopes_shadow_registers_and_labels() {
        let e = entry(
            ".reg .b32 %r<3>; .reg .pred p;\n{ .reg .pred p; L: @p bra L; }\n{ .reg .pred p; L: @!p bra.uni L; }\n@p bra DONE;\nDONE: ret;",
        );
        assert_eq!(e.labels.len(), 3);
        let targets: Vec<_> = e.instrs.iter().filter(|i| i.name == "bra").map(|i| i.operands[0].clone()).collect();
        assert_eq!(targets, vec![Operand::Label(0), Operand::Label(1), Operand::Label(2)]);
        let guards: Vec<_> = e.instrs.iter().filter_map(|i| i.guard).collect();
        assert_eq!(guards.len(), 3);
        assert!(guards[0].0 != guards[1].0 && guards[1].0 != guards[2].0 && guards[1].1);
    }

    #[test]
    fn operands_of_every_shape() {
        let e = entry(
            ".reg .b32 %r<9>; .reg .b64 %rd<3>; .reg .pred %p<3>;\n\
             ld.global.v4.u32 {%r0, %r1, _, %r3}, [%rd1+-16];\n\
             setp.lt.and.s32 %p0|%p1, %r1, -5, !%p2;\n\
             mov.u32 %r1, %tid.x;\n\
             cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];",
        );
        assert_eq!(e.instrs[0].operands[1], Operand::Addr { base: AddrBase::Reg(RegId(10)), offset: -16 });
        assert!(matches!(&e.instrs[1].operands[0], Operand::Pair(_, _)));
        assert_eq!(e.instrs[1].operands[2], Operand::Int(-5));
        assert_eq!(e.instrs[2].operands[1], Operand::Special("%tid.x".into()));
        assert!(matches!(&e.instrs[3].operands[1], Operand::TensorAddr { coords, .. } if coords.len() == 2));
        assert!(e.instrs[3].has("mbarrier::complete_tx::bytes"));
    }

    #[test]
    fn loc_and_comment_give_the_source() {
        let text = format!(
            "{HEAD}.file 1 \"gemm.rs\"\n.entry k() {{\n.reg .b32 %r<2>;\n.loc 1 7 9\nmov.u32 %r0, 1;\nmov.u32 %r1, 2; // tile.rs:3:4\n ret; }}"
        );
        let e = parse(&text).unwrap_or_else(|e| panic!("{e}")).entries.remove(0);
        let at: Vec<_> = e.instrs.iter().map(|i| i.source.as_ref().map(ToString::to_string)).collect();
        assert_eq!(at[0].as_deref(), Some("gemm.rs:7:9"));
        assert_eq!(at[1].as_deref(), Some("tile.rs:3:4"));
        assert_eq!(at[2].as_deref(), Some("gemm.rs:7:9"));
    }

    #[test]
    fn an_offset_is_added_never_subtracted() {
        let refusal = |address: &str| {
            let body = format!(".reg .b32 %r<2>; .reg .b64 %rd<2>;\n.shared .b8 s[16];\nld.global.u32 %r0, {address};");
            parse(&format!("{HEAD}.entry k() {{\n{body}\nret;\n}}")).map(|_| ()).map_err(|e| e.to_string())
        };
        for good in ["[%rd1]", "[%rd1+8]", "[%rd1+-8]", "[s+4]", "[%rd1+8+-4]"] {
            assert_eq!(refusal(good), Ok(()), "{good}");
        }
        for bad in ["[%rd1-8]", "[s-4]", "[%rd1+8-4]"] {
            assert!(refusal(bad).is_err_and(|e| e.contains("`-`")), "{bad}");
        }
        assert!(refusal("[%rd1+4294967296]").is_err_and(|e| e.contains("32 bits")));
    }

    #[test]
    fn errors_name_the_place() {
        let text = format!("{HEAD}.entry k() {{\n  bra NOWHERE;\n}}");
        let e = parse(&text).expect_err("must fail").to_string();
        assert!(e.contains("5:7") && e.contains("NOWHERE"), "{e}");
    }
}
