//! SIMT IR to PTX text.
//!
//! The text is meant to be read: one op a line, the author's `file:line:col` before the ops that come from it, loops
//! and branches indented. Each SIMT op maps to one instruction, up to guards and operands that PTX wants in registers.

mod hopper;
mod inst;
mod names;
mod print;

use crate::ptx::simt::{Block, Kernel, ObjKind, ParamSlot, Roles, SimtOp, Ty, Val, ValDef};
use crate::ptx::target::Target;
use names::Names;
use std::fmt::{self, Write};
use zellige_ir::EntityId;

/// Name of the dynamic shared memory arena.
const ARENA: &str = "zellige_smem";

/// Alignment of the arena: what the widest swizzle atom needs.
const ARENA_ALIGN: u32 = 1024;

/// Bytes that a line of the body usually takes.
const LINE: usize = 40;

/// The module's text. `line_info` adds `.file` and `.loc` for profilers and debuggers.
pub fn emit(k: &Kernel, target: Target, line_info: bool) -> String {
    let mut e = Emitter {
        k,
        target,
        names: Names::new(k),
        out: String::with_capacity(LINE * k.insts.len()),
        depth: 1,
        labels: 0,
        span: u32::MAX,
        files: Vec::new(),
        line_info,
        formats: Vec::new(),
        print_bytes: 0,
    };
    e.block(k.body);
    e.line("ret;");
    e.finish()
}

struct Emitter<'k> {
    k: &'k Kernel,
    target: Target,
    names: Names,
    /// Text of the body.
    out: String,
    depth: usize,
    labels: u32,
    span: u32,
    files: Vec<String>,
    line_info: bool,
    formats: Vec<String>,
    /// Size of the area that arguments of `print` are passed in.
    print_bytes: usize,
}

/// A PTX identifier from any name.
pub fn identifier(name: &str) -> String {
    let mut id: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !id.starts_with(|c: char| c.is_ascii_alphabetic()) {
        id.insert_str(0, "k_");
    }
    id
}

impl Emitter<'_> {
    fn line(&mut self, text: &str) {
        self.indent();
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn indent(&mut self) {
        (0..self.depth).for_each(|_| self.out.push_str("    "));
    }

    /// [`line`](Self::line) from parts.
    fn write_line(&mut self, text: fmt::Arguments<'_>) {
        self.indent();
        let _ = self.out.write_fmt(text);
        self.out.push('\n');
    }

    fn label(&mut self) -> String {
        self.labels += 1;
        format!("$L{}", self.labels)
    }

    fn param_name(&self, slot: usize) -> String {
        format!("{}_{slot}_{}", identifier(&self.k.name), identifier(self.k.params[slot].name()))
    }

    fn block(&mut self, block: Block) {
        for &inst in &self.k.blocks[block] {
            let data = &self.k.insts[inst];
            self.place(data.span);
            self.op(&data.op);
        }
    }

    /// Comments the author's place when it changes.
    fn place(&mut self, span: u32) {
        if span == self.span {
            return;
        }
        self.span = span;
        let k = self.k;
        let at = &k.spans[span as usize];
        if at.is_unknown() {
            return;
        }
        self.write_line(format_args!("// {at}"));
        if self.line_info {
            let file = match self.files.iter().position(|f| **f == *at.file) {
                Some(i) => i,
                None => {
                    self.files.push(at.file.to_string());
                    self.files.len() - 1
                }
            };
            self.write_line(format_args!(".loc {} {} {}", file + 1, at.line, at.col));
        }
    }

    /// The operand as a register or an immediate.
    fn opnd(&self, v: Val) -> String {
        match self.k.vals[v].def {
            ValDef::Const(bits) => immediate(self.k.ty(v), bits),
            ValDef::Inst(_) | ValDef::Pending => self.names.val(self.k, v),
        }
    }

    /// Writes the operand as [`opnd`](Self::opnd) gives it.
    fn write_opnd(&mut self, v: Val) {
        match self.k.vals[v].def {
            ValDef::Const(bits) => self.out.push_str(&immediate(self.k.ty(v), bits)),
            ValDef::Inst(_) | ValDef::Pending => self.names.write_val(self.k, v, &mut self.out),
        }
    }

    /// The operand in a register, for operands that cannot be immediates.
    fn reg(&mut self, v: Val) -> String {
        let ty = self.k.ty(v);
        match self.k.vals[v].def {
            ValDef::Const(bits) => {
                let n = self.names.fresh(ty);
                let r = Names::register(ty, n);
                match ty {
                    Ty::Pred => self.line(&format!("setp.{}.b32 {r}, 0, 0;", if bits != 0 { "eq" } else { "ne" })),
                    _ => self.line(&format!("mov.{ty} {r}, {};", immediate(ty, bits))),
                }
                r
            }
            ValDef::Inst(_) | ValDef::Pending => self.names.val(self.k, v),
        }
    }

    fn finish(self) -> String {
        let k = self.k;
        let mut text = String::with_capacity(self.out.len() + 2048);
        let (major, minor) = self.target.ptx_isa;
        let _ = write!(
            text,
            "//\n// zellige {}: kernel {}, {} threads, {} bytes of shared memory\n//\n\
             .version {major}.{minor}\n.target {}\n.address_size 64\n\n",
            env!("CARGO_PKG_VERSION"),
            k.name,
            k.threads,
            k.shared_bytes,
            self.target.arch
        );
        for (i, file) in self.files.iter().enumerate() {
            let _ = writeln!(text, ".file {} \"{}\"", i + 1, file.replace('\\', "/").replace('"', "'"));
        }
        if k.shared_bytes > 0 {
            let _ = writeln!(text, ".extern .shared .align {ARENA_ALIGN} .b8 {ARENA}[];");
        }
        self.print_declarations(&mut text);
        let params: Vec<String> = (0..k.params.len())
            .map(|i| match &k.params[i] {
                p @ ParamSlot::TensorMap { .. } => {
                    format!("    .param .align {} .b8 {}[{}]", p.align(), self.param_name(i), p.bytes())
                }
                p => format!("    .param .b{} {}", 8 * p.bytes(), self.param_name(i)),
            })
            .collect();
        let mut bounds = String::new();
        if k.cluster > 1 {
            let _ = writeln!(bounds, ".explicitcluster\n.reqnctapercluster {}, 1, 1", k.cluster);
        }
        if let Roles::Specialised { .. } = k.roles {
            // `setmaxnreg` wants the register count to be fixed.
            bounds.push_str(".minnctapersm 1\n");
        }
        let _ = write!(
            text,
            "\n.visible .entry {}(\n{}\n)\n.maxntid {}, 1, 1\n{}{{\n{}",
            identifier(&k.name),
            params.join(",\n"),
            k.threads,
            bounds,
            self.names.declarations()
        );
        for (id, obj) in k.objs.iter() {
            match obj.kind {
                ObjKind::Local { bytes, align } => {
                    let _ = writeln!(text, "    .local .align {align} .b8 {}[{bytes}];", local_name(id.index()));
                }
                ObjKind::Shared { bytes, offset, .. } => {
                    if let Some(at) = offset {
                        let _ = writeln!(text, "    // shared {at}..{}: {}", at + bytes, obj.name);
                    }
                }
                ObjKind::Global { .. } => {}
            }
        }
        if self.print_bytes > 0 {
            let _ = writeln!(text, "    .local .align 8 .b8 {}[{}];", print::ARGS, self.print_bytes);
        }
        text.push('\n');
        text.push_str(&self.out);
        text.push_str("}\n");
        text
    }

    fn control(&mut self, op: &SimtOp) {
        match op {
            SimtOp::For { index, lo, hi, step, uniform, body } => {
                let ty = self.k.ty(index.0);
                let (i, bra) = (self.opnd(index.0), branch(*uniform));
                let (head, end) = (self.label(), self.label());
                let num = if ty == Ty::B64 { "s64" } else { "s32" };
                let hi = self.opnd(*hi);
                let step = self.opnd(*step);
                let lo_text = self.opnd(*lo);
                self.line(&format!("mov.{ty} {i}, {lo_text};"));
                let p = Names::register(Ty::Pred, self.names.fresh(Ty::Pred));
                self.line(&format!("setp.ge.{num} {p}, {i}, {hi};"));
                self.line(&format!("@{p} {bra} {end};"));
                self.target_label(&head);
                self.depth += 1;
                self.block(*body);
                self.line(&format!("add.{num} {i}, {i}, {step};"));
                self.line(&format!("setp.lt.{num} {p}, {i}, {hi};"));
                self.line(&format!("@{p} {bra} {head};"));
                self.depth -= 1;
                self.target_label(&end);
            }
            SimtOp::If { cond, uniform, then_body, else_body } => {
                let (p, bra) = (self.reg(*cond), branch(*uniform));
                let has_else = !self.k.blocks[*else_body].is_empty();
                let (other, end) = (self.label(), self.label());
                self.line(&format!("@!{p} {bra} {};", if has_else { &other } else { &end }));
                self.depth += 1;
                self.block(*then_body);
                self.depth -= 1;
                if has_else {
                    self.line(&format!("{bra} {end};"));
                    self.target_label(&other);
                    self.depth += 1;
                    self.block(*else_body);
                    self.depth -= 1;
                }
                self.target_label(&end);
            }
            SimtOp::While { before, cond, uniform, body } => {
                let bra = branch(*uniform);
                let (head, end) = (self.label(), self.label());
                self.target_label(&head);
                self.depth += 1;
                self.block(*before);
                let p = self.reg(*cond);
                self.line(&format!("@!{p} {bra} {end};"));
                self.block(*body);
                self.line(&format!("{bra} {head};"));
                self.depth -= 1;
                self.target_label(&end);
            }
            _ => unreachable!("not a control op"),
        }
    }

    fn target_label(&mut self, label: &str) {
        let _ = writeln!(self.out, "{label}:");
    }
}

fn branch(uniform: bool) -> &'static str {
    if uniform { "bra.uni" } else { "bra" }
}

fn local_name(index: usize) -> String {
    format!("zellige_local{index}")
}

fn immediate(ty: Ty, bits: u64) -> String {
    match ty {
        Ty::Pred => bits.to_string(),
        Ty::B16 => format!("0x{bits:04x}"),
        Ty::B32 => (bits as u32 as i32).to_string(),
        Ty::B64 => (bits as i64).to_string(),
        Ty::F32 => format!("0f{bits:08X}"),
        Ty::F64 => format!("0d{bits:016X}"),
    }
}
