//! Register names: which PTX register stands for which value.
//!
//! A `get` whose variable keeps its contents until the value's last use needs no register of its own: the value is
//! the variable. Everything else gets a register of its class; the assembler allocates real ones.

use crate::ptx::simt::{Block, Fields, Inst, Kernel, SimtOp, Ty, Val, Var};
use std::fmt::Write;
use zellige_ir::EntityId;
use zellige_ir::hash::FastMap;

/// Names of values and variables, and how many registers of each class there are.
pub struct Names {
    of_val: Vec<u32>,
    of_var: Vec<u32>,
    counts: [u32; 6],
    /// Values that are their variable.
    alias: Vec<Option<Var>>,
}

const UNNAMED: u32 = u32::MAX;

fn class(ty: Ty) -> usize {
    Ty::ALL.iter().position(|t| *t == ty).expect("every class is listed")
}

fn prefix(ty: Ty) -> &'static str {
    match ty {
        Ty::Pred => "%p",
        Ty::B16 => "%h",
        Ty::B32 => "%r",
        Ty::B64 => "%rd",
        Ty::F32 => "%f",
        Ty::F64 => "%fd",
    }
}

/// By hand, because every operand of every instruction passes here.
fn write_register(ty: Ty, n: u32, out: &mut String) {
    let (mut digits, mut first, mut rest) = ([0; 10], 10, n);
    while rest > 0 || first == 10 {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.push_str(prefix(ty));
    out.push_str(std::str::from_utf8(&digits[first..]).unwrap_or_default());
}

impl Names {
    pub fn new(k: &Kernel) -> Names {
        let mut names = Names {
            of_val: vec![UNNAMED; k.vals.len()],
            of_var: Vec::with_capacity(k.vars.len()),
            counts: [0; 6],
            alias: vec![None; k.vals.len()],
        };
        for (_, &ty) in k.vars.iter() {
            let n = names.fresh(ty);
            names.of_var.push(n);
        }
        let n = k.vals.len();
        let mut find = Aliases { k, names: &mut names, last_use: vec![None; n], at: Vec::new(), open: vec![None; n] };
        find.block(k.body);
        k.walk(k.body, &mut |_, data| {
            data.op.defs(&mut |v| {
                if !names.is_alias(v) {
                    names.of_val[v.index()] = names.fresh(k.ty(v));
                }
            });
        });
        names
    }

    /// Number of a new register.
    pub fn fresh(&mut self, ty: Ty) -> u32 {
        let n = &mut self.counts[class(ty)];
        *n += 1;
        *n
    }

    pub fn register(ty: Ty, n: u32) -> String {
        let mut name = String::with_capacity(8);
        write_register(ty, n, &mut name);
        name
    }

    pub fn val(&self, k: &Kernel, v: Val) -> String {
        let mut name = String::with_capacity(8);
        self.write_val(k, v, &mut name);
        name
    }

    /// Appends the name of a value to `out`.
    pub fn write_val(&self, k: &Kernel, v: Val, out: &mut String) {
        match self.alias[v.index()] {
            Some(var) => write_register(k.vars[var], self.of_var[var.index()], out),
            None => write_register(k.ty(v), self.of_val[v.index()], out),
        }
    }

    pub fn var(&self, k: &Kernel, v: Var) -> String {
        Self::register(k.vars[v], self.of_var[v.index()])
    }

    /// Appends the name of a variable to `out`.
    pub fn write_var(&self, k: &Kernel, v: Var, out: &mut String) {
        write_register(k.vars[v], self.of_var[v.index()], out);
    }

    /// True if the value is read straight from this variable.
    pub fn is_alias_of(&self, v: Val, var: Var) -> bool {
        self.alias[v.index()] == Some(var)
    }

    /// True if the value is read straight from its variable.
    pub fn is_alias(&self, v: Val) -> bool {
        self.alias[v.index()].is_some()
    }

    /// The `.reg` lines.
    pub fn declarations(&self) -> String {
        let mut text = String::new();
        for ty in Ty::ALL {
            let n = self.counts[class(ty)];
            if n > 0 {
                let _ = writeln!(text, "    .reg .{ty:<4} {}<{}>;", prefix(ty), n + 1);
            }
        }
        text
    }
}

/// Finds the `get`s that need no register.
struct Aliases<'a> {
    k: &'a Kernel,
    names: &'a mut Names,
    /// Position in its own block of the op that uses the value last (directly or in a nested block).
    last_use: Vec<Option<usize>>,
    /// For each enclosing block, the position being visited.
    at: Vec<usize>,
    /// Results of `get`s in the enclosing blocks, with the block's depth.
    open: Vec<Option<usize>>,
}

impl Aliases<'_> {
    fn block(&mut self, block: Block) {
        let depth = self.at.len();
        self.at.push(0);
        let mut gets: Vec<(usize, Val, Var)> = Vec::new();
        let mut sets: FastMap<Var, Vec<usize>> = FastMap::default();
        for (at, &inst) in self.k.blocks[block].iter().enumerate() {
            self.at[depth] = at;
            let op = &self.k.insts[inst].op;
            op.uses(&mut |v| {
                if let Some(d) = self.open[v.index()] {
                    self.last_use[v.index()] = Some(self.at[d]);
                }
            });
            match op {
                SimtOp::Get { out, var } => {
                    gets.push((at, out.0, *var));
                    self.open[out.0.index()] = Some(depth);
                }
                _ => op.written_vars().iter().for_each(|&var| sets.entry(var).or_default().push(at)),
            }
            op.blocks(&mut |b| {
                self.block(b);
                self.k.walk(b, &mut |_, d| {
                    d.op.written_vars().iter().for_each(|&var| sets.entry(var).or_default().push(at));
                });
            });
        }
        self.at.pop();
        for (at, val, var) in gets {
            self.open[val.index()] = None;
            let Some(last) = self.last_use[val.index()] else { continue };
            let positions = sets.get(&var).map_or(&[][..], Vec::as_slice);
            let next_set = positions.partition_point(|&p| p <= at);
            // A `set` at the last use itself reads its operand first; a nested one may not.
            let safe = positions.get(next_set).is_none_or(|&p| p > last || (p == last && self.is_set(block, p)));
            if safe {
                self.names.alias[val.index()] = Some(var);
            }
        }
    }

    fn is_set(&self, block: Block, at: usize) -> bool {
        let inst: Inst = self.k.blocks[block][at];
        matches!(self.k.insts[inst].op, SimtOp::Set { .. })
    }
}
