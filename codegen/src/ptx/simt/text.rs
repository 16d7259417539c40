//! SIMT IR as text, for `emit --stage simt`, tests and error messages. [`super::parse`] reads it back.
//!
//! ```text
//! simt kernel axpy threads 128 shared 0
//! param 0: base 0 x
//! m0: global x home block0
//! phase0: "copy" at "axpy.rs":3:5
//! body block0 {
//!   v7: b32 = bin shl, u32, v3, 4
//!   v9: f32 = ld global, f32, [v8+16 in m0], guard v6
//!   if v6, false, block1, block2 {
//!   } {
//!   }
//! }
//! ```
//! An immediate says its class: `true`, `0x00ff` (b16), `4` (b32), `4L` (b64), `1.0f` (f32) and `1.0d` (f64), the last two as
//! `f32:0x7f800000` where they are no numbers. Places in the author's source are left out, but for those of phases.

use super::func::{Assertion, Block, GridPlan, Kernel, ObjKind, ParamSlot, Roles, Val, ValDef};
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
            Ty::B64 => format!("{}L", bits as i64),
            Ty::F32 => {
                let x = f32::from_bits(bits as u32);
                if x.is_finite() { format!("{x:?}f") } else { format!("f32:0x{bits:08x}") }
            }
            Ty::F64 => {
                let x = f64::from_bits(bits);
                if x.is_finite() { format!("{x:?}d") } else { format!("f64:0x{bits:016x}") }
            }
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

/// True for a name that stands in text as it is.
pub(super) fn is_word(name: &str) -> bool {
    !name.is_empty() && name.chars().all(is_word_char)
}

pub(super) fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '%')
}

/// A name, quoted if it is no word.
pub(super) fn name(name: &str) -> String {
    if is_word(name) { name.to_owned() } else { format!("{name:?}") }
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

impl fmt::Display for ParamSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParamSlot::Base { param, .. } => write!(f, "base {param}")?,
            ParamSlot::Stride { param, axis, .. } => write!(f, "stride {param} {axis}")?,
            ParamSlot::Dim { dim, .. } => write!(f, "dim {dim}")?,
            ParamSlot::Scalar { param, dtype, .. } => write!(f, "scalar {param} {dtype}")?,
            ParamSlot::Counter { .. } => write!(f, "counter")?,
            ParamSlot::Failure { .. } => write!(f, "failure")?,
            ParamSlot::TensorMap { param, map, .. } => {
                let tile: Vec<String> = map.tile.iter().map(ToString::to_string).collect();
                let tf32 = if map.tf32 { " tf32" } else { "" };
                write!(f, "map {param} {}{tf32} [{}] swizzle {}", map.dtype, tile.join(" "), map.swizzle)?;
            }
        }
        write!(f, " {}", name(self.name()))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simt kernel {} threads {} shared {}", name(&self.name), self.threads, self.shared_bytes)?;
        f.write_str(match self.grid {
            GridPlan::AsWritten => "",
            GridPlan::Persistent => " persistent",
            GridPlan::Spread => " spread",
        })?;
        if let Roles::Specialised { consumers } = self.roles {
            write!(f, " consumers {consumers}")?;
        }
        if self.cluster > 1 {
            write!(f, " cluster {}", self.cluster)?;
        }
        writeln!(f)?;
        for (i, p) in self.params.iter().enumerate() {
            writeln!(f, "param {i}: {p}")?;
        }
        for (i, Assertion { place, message }) in self.assertions.iter().enumerate() {
            writeln!(f, "assertion {}: {place:?} {message:?}", i + 1)?;
        }
        for (id, obj) in self.objs.iter() {
            write!(f, "{id}: ")?;
            let what = name(&obj.name);
            match &obj.kind {
                ObjKind::Global { read_only } => {
                    write!(f, "global {what}{}", if *read_only { " read-only" } else { "" })?;
                }
                ObjKind::Shared { bytes, align, offset } => {
                    write!(f, "shared {what} {bytes} bytes align {align}")?;
                    if let Some(at) = offset {
                        write!(f, " at {at}")?;
                    }
                }
                ObjKind::Local { bytes, align } => write!(f, "local {what} {bytes} bytes align {align}")?,
            }
            write!(f, "{} home {}", if obj.managed { " managed" } else { "" }, obj.home)?;
            for body in &obj.split {
                write!(f, " split by {body}")?;
            }
            writeln!(f)?;
        }
        for (id, ty) in self.vars.iter() {
            writeln!(f, "var {id}: {ty}")?;
        }
        for (id, phase) in self.phases.iter() {
            write!(f, "{id}: {:?}", phase.what)?;
            if let Some(span) = &phase.span {
                write!(f, " at {:?}:{}:{}", &*span.file, span.line, span.col)?;
            }
            for (obj, other) in &phase.apart {
                write!(f, " apart {obj} {other}")?;
            }
            for obj in &phase.rings {
                write!(f, " ring {obj}")?;
            }
            writeln!(f)?;
        }
        let mut text = String::new();
        block(self, self.body, 1, &mut text);
        write!(f, "body {} {{\n{text}}}\n", self.body)
    }
}
