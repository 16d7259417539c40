//! SIMT IR as text, for `emit --stage simt`, tests and error messages.
//!
//! ```text
//! v7: b32 = bin shl, u32, v3, 4
//! ld f32, global, [v9+16 in m0] ...
//! ```

use super::func::{Block, Kernel, ObjKind, Val, ValDef};
use super::op::{Fields, SimtOp};
use super::ty::Ty;
use std::fmt::{self, Write};

/// An operand: the value's name, or the immediate.
pub fn operand(k: &Kernel, v: Val) -> String {
    match k.vals[v].def {
        ValDef::Const(bits) => match k.vals[v].ty {
            Ty::Pred => (bits != 0).to_string(),
            Ty::B16 => format!("0x{bits:04x}"),
            Ty::B32 => (bits as u32 as i32).to_string(),
            Ty::B64 => (bits as i64).to_string(),
            Ty::F32 => format!("{:?}f", f32::from_bits(bits as u32)),
            Ty::F64 => format!("{:?}d", f64::from_bits(bits)),
        },
        ValDef::Inst(_) | ValDef::Pending => v.to_string(),
    }
}

/// Fields one after another in braces; nothing if none prints anything.
pub fn list<'a, F: Fields + 'a>(k: &Kernel, items: impl Iterator<Item = &'a F>, out: &mut String) {
    let mut text = String::new();
    for item in items {
        let from = text.len();
        if from > 0 {
            text.push(' ');
        }
        item.show(k, &mut text);
    }
    if !text.trim().is_empty() {
        let _ = write!(out, "{{{text}}}");
    }
}

fn block(k: &Kernel, b: Block, depth: usize, out: &mut String) {
    for &inst in &k.blocks[b] {
        let op = &k.insts[inst].op;
        let _ = write!(out, "{:1$}", "", 2 * depth);
        let mut defs = Vec::new();
        op.defs(&mut |v| defs.push(format!("{v}: {}", k.ty(v))));
        if !defs.is_empty() {
            let _ = write!(out, "{} = ", defs.join(", "));
        }
        let mut fields = String::new();
        op.show(k, &mut fields);
        let _ = write!(out, "{}{}", op.name(), fields.replacen(',', "", 1));
        if let SimtOp::Phase { id } = op {
            let info = &k.phases[*id];
            let _ = write!(out, " // {}", info.what);
            if let Some(span) = &info.span {
                let _ = write!(out, " at {span}");
            }
        }
        let mut blocks = Vec::new();
        op.blocks(&mut |b| blocks.push(b));
        for b in blocks {
            out.push_str(" {\n");
            block(k, b, depth + 1, out);
            let _ = write!(out, "{:1$}}}", "", 2 * depth);
        }
        out.push('\n');
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "simt kernel {} threads {}", self.name, self.threads)?;
        for (i, p) in self.params.iter().enumerate() {
            writeln!(f, "param {i}: {} ({} bytes)", p.name(), p.bytes())?;
        }
        for (id, obj) in self.objs.iter() {
            match &obj.kind {
                ObjKind::Global { read_only } => {
                    writeln!(f, "{id}: global {}{}", obj.name, if *read_only { " read-only" } else { "" })?;
                }
                ObjKind::Shared { bytes, align, offset } => {
                    write!(f, "{id}: shared {} {bytes} bytes align {align}", obj.name)?;
                    if let Some(at) = offset {
                        write!(f, " at {at}")?;
                    }
                    writeln!(f)?;
                }
                ObjKind::Local { bytes, align } => writeln!(f, "{id}: local {} {bytes} bytes align {align}", obj.name)?,
            }
        }
        for (id, ty) in self.vars.iter() {
            writeln!(f, "var {id}: {ty}")?;
        }
        let mut text = String::new();
        block(self, self.body, 1, &mut text);
        write!(f, "{{\n{text}}}\n")
    }
}
