//! Slots, symbols and operand checks shared by every family's decoder.

use std::collections::HashMap;

use super::op::{Class, FltTy, Inst, Op};
use super::{ConstSlot, Image, Kernel, SHARED_BASE, Special, SpecialSlot, slots};
use crate::sim::error::SimError;
use crate::sim::memory::addr;
use crate::sim::parse::ast::{AddrBase, Ast, Entry, Instr, Operand, RegId, Ty, VarSpace};

/// Where a symbol lives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Symbol {
    Shared(u32),
    Local(u32),
    /// Kernel parameter at this offset of the parameter block.
    Param(u32),
    /// Full generic address.
    Fixed(u64),
}

/// A decoded address: base slot, whether it is 64-bit, byte offset.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addr {
    pub slot: u32,
    pub a64: bool,
    pub offset: i64,
    /// Names a kernel parameter directly; `offset` is then the place in the parameter block.
    pub param: bool,
    /// Names a call parameter or another local variable.
    pub local: bool,
}

pub(super) struct Builder<'a> {
    entry: &'a Entry,
    text: &'a [&'a str],
    symbols: HashMap<&'a str, Symbol>,
    regs: HashMap<RegId, u32>,
    next: [u32; 3],
    consts: HashMap<(Class, u64), u32>,
    specials: HashMap<(Class, Special), u32>,
    pub pool: Vec<u32>,
    pub code: Vec<Inst>,
    sinks: [Option<u32>; 3],
    shared_static: u32,
    shared_dynamic: u32,
    local_bytes: u32,
    pub global_atomics: bool,
    pub overlapped: bool,
}

fn class_index(c: Class) -> usize {
    match c {
        Class::Pred => 0,
        Class::W32 => 1,
        Class::W64 => 2,
    }
}

/// The register class that holds a type.
pub(super) fn class_of(ty: Ty) -> Class {
    match ty {
        Ty::Pred => Class::Pred,
        Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => Class::W64,
        _ => Class::W32,
    }
}

impl<'a> Builder<'a> {
    pub fn new(ast: &'a Ast, image: &'a Image, entry: &'a Entry, text: &'a [&'a str]) -> Result<Self, SimError> {
        let mut symbols = HashMap::new();
        for (name, (space, offset)) in &image.symbols {
            let window = if *space == VarSpace::Const { addr::CONST_WINDOW } else { addr::MODULE_WINDOW };
            symbols.insert(name.as_str(), Symbol::Fixed(window + u64::from(*offset)));
        }
        let (mut shared, mut local) = (SHARED_BASE, 0u32);
        let mut dynamic_align = 16u32;
        let mut dynamic = Vec::new();
        for v in ast.vars.iter().chain(&entry.vars) {
            let align = v.align.max(1);
            match v.space {
                VarSpace::Shared if v.bytes == 0 => {
                    dynamic_align = dynamic_align.max(align);
                    dynamic.push(v.name.as_str());
                }
                VarSpace::Shared => {
                    shared = shared.next_multiple_of(align);
                    symbols.insert(v.name.as_str(), Symbol::Shared(shared));
                    shared += v.bytes;
                }
                VarSpace::Local | VarSpace::CallParam => {
                    local = local.next_multiple_of(align.max(8));
                    symbols.insert(v.name.as_str(), Symbol::Local(local));
                    local += v.bytes;
                }
                VarSpace::Global | VarSpace::Const if symbols.contains_key(v.name.as_str()) => {}
                VarSpace::Global | VarSpace::Const => {
                    return Err(SimError::NotSimulated {
                        what: format!("global variable `{}` declared inside a kernel", v.name),
                        line: entry.line,
                        text: entry.name.clone(),
                    });
                }
            }
        }
        let shared_dynamic = shared.next_multiple_of(dynamic_align);
        for name in dynamic {
            symbols.insert(name, Symbol::Shared(shared_dynamic));
        }
        for p in &entry.params {
            symbols.insert(p.name.as_str(), Symbol::Param(p.offset));
        }
        Ok(Builder {
            entry,
            text,
            symbols,
            regs: HashMap::new(),
            next: [0; 3],
            consts: HashMap::new(),
            specials: HashMap::new(),
            pool: Vec::new(),
            code: Vec::new(),
            sinks: [None; 3],
            shared_static: shared,
            shared_dynamic,
            local_bytes: local,
            global_atomics: false,
            overlapped: false,
        })
    }

    pub fn finish(mut self, entry: &Entry) -> Result<Kernel, SimError> {
        let mut lines: Vec<u32> = entry.instrs.iter().map(|i| i.line).collect();
        lines.push(entry.instrs.last().map_or(entry.line, |i| i.line));
        let mut sources: Vec<_> = entry.instrs.iter().map(|i| i.source.clone()).collect();
        sources.push(None);
        let mut opcodes: Vec<_> = entry.instrs.iter().map(Instr::opcode).collect();
        opcodes.push("ret".into());
        let mut consts: Vec<_> =
            self.consts.iter().map(|(&(class, value), &slot)| ConstSlot { class, slot, value }).collect();
        let mut specials: Vec<_> =
            self.specials.iter().map(|(&(class, what), &slot)| SpecialSlot { class, slot, what }).collect();
        consts.sort();
        specials.sort_by_key(|s| (s.class, s.slot));
        slots::compact(&mut self.code, &mut self.pool, &mut self.next, &mut consts, &mut specials);
        let touched = slots::touched(&mut self.code, &mut self.pool);
        let last = entry.params.last();
        Ok(Kernel {
            name: entry.name.clone(),
            params: entry.params.clone(),
            param_bytes: last.map_or(0, |p| (p.offset + p.bytes) as usize),
            code: self.code,
            pool: self.pool,
            lines,
            sources,
            opcodes,
            slots: self.next,
            consts,
            specials,
            shared_static: self.shared_static,
            shared_dynamic: self.shared_dynamic,
            local_bytes: self.local_bytes,
            required_threads: entry.required_threads,
            max_threads: entry.max_threads,
            required_cluster: entry.required_cluster,
            global_atomics: self.global_atomics,
            overlapped: self.overlapped,
            touched,
        })
    }

    fn line_text(&self, line: u32) -> String {
        self.text.get((line as usize).saturating_sub(1)).map_or("", |s| s.trim()).to_string()
    }

    pub fn unsupported(&self, i: &Instr) -> SimError {
        SimError::NotSimulated { what: i.opcode(), line: i.line, text: self.line_text(i.line) }
    }

    pub fn unsupported_because(&self, i: &Instr, what: &str) -> SimError {
        SimError::NotSimulated { what: format!("{} ({what})", i.opcode()), line: i.line, text: self.line_text(i.line) }
    }

    pub fn invalid(&self, i: &Instr, message: impl Into<String>) -> SimError {
        SimError::Invalid { line: i.line, text: self.line_text(i.line), message: message.into() }
    }

    /// Rejects dotted words that are neither types nor in `allowed`: an ignored modifier would be a wrong simulation.
    pub fn only(&self, i: &Instr, allowed: &[&str]) -> Result<(), SimError> {
        match i.mods.iter().find(|m| Ty::from_word(m).is_none() && !allowed.contains(&m.as_str())) {
            Some(m) => Err(self.unsupported_because(i, &format!("modifier `.{m}`"))),
            None => Ok(()),
        }
    }

    /// The last type among the dotted words.
    pub fn ty(&self, i: &Instr) -> Result<Ty, SimError> {
        i.mods
            .iter()
            .rev()
            .find_map(|m| Ty::from_word(m))
            .ok_or_else(|| self.invalid(i, "the instruction names no type"))
    }

    pub fn count(&self, i: &Instr, n: usize) -> Result<(), SimError> {
        if i.operands.len() == n {
            return Ok(());
        }
        Err(self.invalid(i, format!("expected {n} operands, found {}", i.operands.len())))
    }

    pub fn operand<'i>(&self, i: &'i Instr, at: usize) -> Result<&'i Operand, SimError> {
        i.operands.get(at).ok_or_else(|| self.invalid(i, format!("operand {} is missing", at + 1)))
    }

    fn fresh(&mut self, class: Class) -> u32 {
        let n = &mut self.next[class_index(class)];
        *n += 1;
        *n - 1
    }

    /// The class a register was declared with.
    pub fn declared(&self, reg: RegId) -> Class {
        class_of(self.entry.regs[reg.0 as usize].ty)
    }

    /// The declared type of a register.
    pub fn declared_ty(&self, reg: RegId) -> Ty {
        self.entry.regs[reg.0 as usize].ty
    }

    /// The slot of a register that must be of `class`.
    pub fn register(&mut self, reg: RegId, class: Class, i: &Instr) -> Result<u32, SimError> {
        if self.declared(reg) != class {
            let r = &self.entry.regs[reg.0 as usize];
            let want = match class {
                Class::Pred => "a predicate",
                Class::W32 => "a register of at most 32 bits",
                Class::W64 => "a 64-bit register",
            };
            return Err(self.invalid(i, format!("`{}` is declared .{:?} where {want} is needed", r.name, r.ty)));
        }
        if let Some(s) = self.regs.get(&reg) {
            return Ok(*s);
        }
        let s = self.fresh(class);
        self.regs.insert(reg, s);
        Ok(s)
    }

    pub fn constant(&mut self, class: Class, value: u64) -> u32 {
        let value = match class {
            Class::Pred => value & 1,
            Class::W32 => value & 0xFFFF_FFFF,
            Class::W64 => value,
        };
        if let Some(s) = self.consts.get(&(class, value)) {
            return *s;
        }
        let s = self.fresh(class);
        self.consts.insert((class, value), s);
        s
    }

    pub fn special(&mut self, class: Class, what: Special) -> u32 {
        if let Some(s) = self.specials.get(&(class, what)) {
            return *s;
        }
        let s = self.fresh(class);
        self.specials.insert((class, what), s);
        s
    }

    /// A slot for a result nobody wants.
    pub fn sink(&mut self, class: Class) -> u32 {
        if let Some(s) = self.sinks[class_index(class)] {
            return s;
        }
        let s = self.fresh(class);
        self.sinks[class_index(class)] = Some(s);
        s
    }

    /// A source operand of `class`; `float` says how to read a decimal literal.
    pub fn source(&mut self, i: &Instr, op: &Operand, class: Class, float: Option<FltTy>) -> Result<u32, SimError> {
        match op {
            Operand::Reg(r) => self.register(*r, class, i),
            Operand::Int(v) => Ok(self.constant(class, *v as u64)),
            Operand::F32(bits) => match class {
                Class::W64 => Ok(self.constant(class, f64::from(f32::from_bits(*bits)).to_bits())),
                Class::W32 | Class::Pred => Ok(self.constant(class, u64::from(*bits))),
            },
            Operand::F64(bits) => match (class, float) {
                (Class::W32, Some(FltTy::F32)) => {
                    Ok(self.constant(class, u64::from((f64::from_bits(*bits) as f32).to_bits())))
                }
                (Class::W64, _) => Ok(self.constant(class, *bits)),
                _ => Err(self.invalid(i, "a double-precision literal does not fit this operand")),
            },
            Operand::Special(name) => match Special::from_name(name) {
                Some(s) => Ok(self.special(class, s)),
                None => Err(self.unsupported_because(i, &format!("special register {name}"))),
            },
            Operand::Symbol(name, offset) => {
                let sym = *self
                    .symbols
                    .get(name.as_str())
                    .ok_or_else(|| self.invalid(i, format!("`{name}` is not declared")))?;
                Ok(match sym {
                    Symbol::Shared(at) => self.special(class, Special::SharedAddr(at.wrapping_add(*offset as u32))),
                    Symbol::Local(at) => self.constant(class, u64::from(at).wrapping_add_signed(*offset)),
                    Symbol::Param(at) => {
                        self.constant(class, (addr::PARAM_WINDOW + u64::from(at)).wrapping_add_signed(*offset))
                    }
                    Symbol::Fixed(at) => self.constant(class, at.wrapping_add_signed(*offset)),
                })
            }
            Operand::NotReg(_)
            | Operand::Pair(..)
            | Operand::Label(_)
            | Operand::Sink
            | Operand::Addr { .. }
            | Operand::TensorAddr { .. }
            | Operand::Vec(_)
            | Operand::Args(_) => Err(self.invalid(i, "this operand cannot be a source here")),
        }
    }

    /// Source operand number `at`.
    pub fn src(&mut self, i: &Instr, at: usize, class: Class) -> Result<u32, SimError> {
        let op = self.operand(i, at)?;
        self.source(i, op, class, None)
    }

    /// Destination operand number `at`.
    pub fn dst(&mut self, i: &Instr, at: usize, class: Class) -> Result<u32, SimError> {
        let op = self.operand(i, at)?;
        self.destination(i, op, class)
    }

    pub fn destination(&mut self, i: &Instr, op: &Operand, class: Class) -> Result<u32, SimError> {
        match op {
            Operand::Reg(r) => self.register(*r, class, i),
            Operand::Sink => Ok(self.sink(class)),
            _ => Err(self.invalid(i, "the destination must be a register")),
        }
    }

    /// A predicate source: slot and negation.
    pub fn pred(&mut self, i: &Instr, at: usize) -> Result<(u32, bool), SimError> {
        match self.operand(i, at)? {
            Operand::NotReg(r) => Ok((self.register(*r, Class::Pred, i)?, true)),
            Operand::Int(v) => Ok((self.constant(Class::Pred, (*v != 0).into()), false)),
            op => Ok((self.source(i, op, Class::Pred, None)?, false)),
        }
    }

    /// An integer that must be known when the module is loaded.
    pub fn immediate(&self, i: &Instr, at: usize) -> Result<i64, SimError> {
        match self.operand(i, at)? {
            Operand::Int(v) => Ok(*v as i64),
            _ => Err(self.invalid(i, format!("operand {} must be an integer literal", at + 1))),
        }
    }

    /// Pushes slots to the pool; returns where they start.
    pub fn push_pool(&mut self, slots: &[u32]) -> u32 {
        let at = self.pool.len() as u32;
        self.pool.extend_from_slice(slots);
        at
    }

    /// The elements of a vector operand; a plain operand is a vector of one.
    pub fn elements<'i>(&self, op: &'i Operand) -> &'i [Operand] {
        match op {
            Operand::Vec(v) => v,
            other => std::slice::from_ref(other),
        }
    }

    /// An address operand, `[reg+imm]` or `[symbol+imm]` or a bare register (as in tensor map operands).
    pub fn address(&mut self, i: &Instr, op: &Operand) -> Result<Addr, SimError> {
        let plain = Addr { slot: 0, a64: true, offset: 0, param: false, local: false };
        let (base, offset) = match op {
            Operand::Addr { base, offset } => (base, *offset),
            _ => return Err(self.invalid(i, "expected an address in brackets")),
        };
        match base {
            AddrBase::Reg(r) => {
                let class = self.declared(*r);
                let slot = self.register(*r, class, i)?;
                Ok(Addr { slot, a64: class == Class::W64, offset, ..plain })
            }
            AddrBase::Absolute => Ok(Addr { slot: self.constant(Class::W64, 0), offset, ..plain }),
            AddrBase::Symbol(name) => {
                let sym = *self
                    .symbols
                    .get(name.as_str())
                    .ok_or_else(|| self.invalid(i, format!("`{name}` is not declared")))?;
                Ok(match sym {
                    Symbol::Shared(at) => {
                        Addr { slot: self.special(Class::W64, Special::SharedAddr(at)), offset, ..plain }
                    }
                    Symbol::Local(at) => {
                        Addr { slot: self.constant(Class::W64, u64::from(at)), offset, local: true, ..plain }
                    }
                    Symbol::Param(at) => Addr { offset: i64::from(at) + offset, param: true, ..plain },
                    Symbol::Fixed(at) => Addr { slot: self.constant(Class::W64, at), offset, ..plain },
                })
            }
        }
    }

    pub fn inst(&self, op: Op) -> Inst {
        Inst { op, guard: 0, d: 0, a: 0, b: 0, c: 0, e: 0, imm: 0 }
    }
}

impl Builder<'_> {
    /// The instruction a label stands before.
    pub fn label(&self, id: u32) -> u32 {
        self.entry.labels[id as usize]
    }
}
