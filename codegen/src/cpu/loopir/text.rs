//! The text form of loop IR, for people.

use super::node::*;
use std::fmt::{self, Write};

impl fmt::Display for LoopFunc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ctx, first, last, arena] = self.params;
        writeln!(f, "loop @{}({ctx}: context, {first}: first, {last}: last, {arena}: arena) {{", self.name)?;
        self.block(f, &self.body, 1)?;
        f.write_str("}\n")
    }
}

impl LoopFunc {
    fn block(&self, f: &mut fmt::Formatter<'_>, block: &Block, depth: usize) -> fmt::Result {
        block.iter().try_for_each(|s| self.stmt(f, s, depth))
    }

    fn stmt(&self, f: &mut fmt::Formatter<'_>, stmt: &Stmt, depth: usize) -> fmt::Result {
        let pad = "  ".repeat(depth);
        f.write_str(&pad)?;
        match stmt {
            Stmt::Let(v, node) => writeln!(f, "{v}: {} = {node}", self.ty(*v)),
            Stmt::Load { out, mem, addr, offset } => {
                let mem = match mem {
                    Mem::Plain => "",
                    Mem::ZExt16x4 => ".zext16x4",
                    Mem::SExt16x4 => ".sext16x4",
                };
                writeln!(f, "{out}: {} = load{mem} {addr}{}", self.ty(*out), Offset(*offset))
            }
            Stmt::Store { value, addr, offset } => {
                writeln!(f, "store.{} {value}, {addr}{}", self.ty(*value), Offset(*offset))
            }
            Stmt::Atomic { out, op, addr, value } => {
                writeln!(f, "{out}: {} = atomic.{} {addr}, {value}", self.ty(*out), op.name())
            }
            Stmt::Cas { out, addr, expected, value } => {
                writeln!(f, "{out}: {} = cas {addr}, {expected}, {value}", self.ty(*out))
            }
            Stmt::Call { out, helper, args } => {
                if let Some(out) = out {
                    write!(f, "{out}: {} = ", self.ty(*out))?;
                }
                writeln!(f, "call {}({})", helper.name(), list(args.iter()))
            }
            Stmt::ExitIf { cond, site, block } => writeln!(f, "exit_if {cond}, site {site}, block {block}"),
            Stmt::For { iv, lo, hi, step, carried, body } => {
                write!(f, "for {iv} in {lo}..{hi} step {step}")?;
                if !carried.is_empty() {
                    let vars = carried.iter().map(|c| format!("{} = {}", c.param, c.init));
                    write!(f, " carrying {}", list(vars))?;
                }
                f.write_str(" {\n")?;
                self.block(f, body, depth + 1)?;
                write!(f, "{pad}}}")?;
                if !carried.is_empty() {
                    let nexts = list(carried.iter().map(|c| c.next));
                    write!(f, " next {nexts} -> {}", list(carried.iter().map(|c| c.result)))?;
                }
                f.write_char('\n')
            }
            Stmt::If { cond, then, otherwise, merges } => {
                writeln!(f, "if {cond} {{")?;
                self.block(f, then, depth + 1)?;
                if !otherwise.is_empty() {
                    writeln!(f, "{pad}}} else {{")?;
                    self.block(f, otherwise, depth + 1)?;
                }
                write!(f, "{pad}}}")?;
                if !merges.is_empty() {
                    let pick = merges.iter().map(|m| format!("{} = {} | {}", m.result, m.then, m.otherwise));
                    write!(f, " -> {}", list(pick))?;
                }
                f.write_char('\n')
            }
            Stmt::While { before, cond, body } => {
                f.write_str("while {\n")?;
                self.block(f, before, depth + 1)?;
                writeln!(f, "{pad}}} {cond} {{")?;
                self.block(f, body, depth + 1)?;
                writeln!(f, "{pad}}}")
            }
        }
    }
}

fn list<T: fmt::Display>(items: impl Iterator<Item = T>) -> String {
    items.map(|i| i.to_string()).collect::<Vec<_>>().join(", ")
}

struct Offset(i32);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "{:+}", self.0) }
    }
}

struct Bytes<'a>(&'a [u8; 16]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().rev().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Const(c) => write!(f, "{:#x}", c),
            Node::VConst(bytes) => write!(f, "0x{}", Bytes(bytes)),
            Node::Unary(op, x) => write!(f, "{} {x}", op.name()),
            Node::Binary(op, x, y) => write!(f, "{} {x}, {y}", op.name()),
            Node::Fma(x, y, z) => write!(f, "fma {x}, {y}, {z}"),
            Node::ICmp(cc, x, y) => write!(f, "icmp.{} {x}, {y}", cc.name()),
            Node::FCmp(cc, x, y) => write!(f, "fcmp.{} {x}, {y}", cc.name()),
            Node::Select(c, x, y) => write!(f, "select {c}, {x}, {y}"),
            Node::BitSelect(c, x, y) => write!(f, "bitselect {c}, {x}, {y}"),
            Node::Extract(x, lane) => write!(f, "extract {x}[{lane}]"),
            Node::Insert(x, y, lane) => write!(f, "insert {x}[{lane}], {y}"),
            Node::Shuffle(x, y, bytes) => write!(f, "shuffle {x}, {y}, 0x{}", Bytes(bytes)),
        }
    }
}
