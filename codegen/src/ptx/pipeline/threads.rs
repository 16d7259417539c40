//! What registers hold in each thread of a block, as far as that follows from the thread's number.
//!
//! A [`Form`] is a table over the threads plus multiples of *atoms*: registers about which nothing else is known. An atom is
//! uniform if all threads that execute its definition in one turn of the loops around it get the same value: parameters,
//! block numbers, the indices of loops that the block runs together. Of arithmetic that is linear only in the atoms the form
//! is exact up to overflow, which the lowering's index arithmetic rules out; arithmetic on tables alone is done as the
//! device does it. Everything else is an atom of its own.

use crate::ptx::simt::{
    Bin, Block, Cache, Cmp, Effect, Fields, Inst, Kernel, Num, ObjKind, ShflMode, SimtOp, Special, Ty, Val, ValDef,
    fold,
};
use std::rc::Rc;
use zellige_ir::EntityId;
use zellige_ir::hash::FastMap;
use zellige_ir::layout::WARP;

/// One number for each thread.
#[derive(Clone, PartialEq, Debug)]
pub enum Table {
    Same(i64),
    Each(Rc<[i64]>),
}

impl Table {
    pub fn at(&self, thread: usize) -> i64 {
        match self {
            Table::Same(x) => *x,
            Table::Each(xs) => xs[thread],
        }
    }

    fn map(&self, f: impl Fn(i64) -> Option<i64>) -> Option<Table> {
        Some(match self {
            Table::Same(x) => Table::Same(f(*x)?),
            Table::Each(xs) => Table::Each(xs.iter().map(|&x| f(x)).collect::<Option<_>>()?),
        })
    }

    fn zip(&self, other: &Table, f: impl Fn(i64, i64) -> Option<i64>) -> Option<Table> {
        Some(match (self, other) {
            (Table::Same(x), Table::Same(y)) => Table::Same(f(*x, *y)?),
            (Table::Each(xs), _) => {
                Table::Each(xs.iter().enumerate().map(|(i, &x)| f(x, other.at(i))).collect::<Option<_>>()?)
            }
            (_, Table::Each(ys)) => {
                Table::Each(ys.iter().enumerate().map(|(i, &y)| f(self.at(i), y)).collect::<Option<_>>()?)
            }
        })
    }
}

/// A table plus multiples of atoms, which are in order and have no factor of 0.
#[derive(Clone, PartialEq, Debug)]
pub struct Form {
    pub table: Table,
    pub terms: Vec<(Val, i64)>,
}

impl Form {
    fn table(table: Table) -> Form {
        Form { table, terms: Vec::new() }
    }

    fn atom(v: Val) -> Form {
        Form { table: Table::Same(0), terms: vec![(v, 1)] }
    }

    /// The same in all threads, and known.
    fn constant(&self) -> Option<i64> {
        match self.table {
            Table::Same(x) if self.terms.is_empty() => Some(x),
            _ => None,
        }
    }

    /// `self + other * by`
    pub fn plus(&self, other: &Form, by: i64) -> Option<Form> {
        let table = self.table.zip(&other.table, |x, y| x.checked_add(y.checked_mul(by)?))?;
        let mut terms = Vec::with_capacity(self.terms.len() + other.terms.len());
        let (mut a, mut b) = (self.terms.iter().peekable(), other.terms.iter().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (None, None) => break,
                (Some(&&(v, _)), Some(&&(w, _))) => v.min(w),
                (Some(&&(v, _)), None) | (None, Some(&&(v, _))) => v,
            };
            let left = a.next_if(|t| t.0 == next).map_or(0, |t| t.1);
            let right = b.next_if(|t| t.0 == next).map_or(0, |t| t.1);
            let sum = left.checked_add(right.checked_mul(by)?)?;
            if sum != 0 {
                terms.push((next, sum));
            }
        }
        Some(Form { table, terms })
    }

    /// The same, some bytes further.
    pub fn shifted(&self, by: i64) -> Form {
        let table = match &self.table {
            Table::Same(x) => Table::Same(x.wrapping_add(by)),
            Table::Each(xs) => Table::Each(xs.iter().map(|x| x.wrapping_add(by)).collect()),
        };
        Form { table, terms: self.terms.clone() }
    }

    /// How far one table is from another, if it is as far in all threads.
    pub fn offset_from(&self, other: &Form) -> Option<i64> {
        match (&self.table, &other.table) {
            (Table::Same(x), Table::Same(y)) => x.checked_sub(*y),
            (Table::Each(xs), _) => {
                let by = xs[0].checked_sub(other.table.at(0))?;
                xs.iter().enumerate().all(|(i, &x)| x == other.table.at(i).wrapping_add(by)).then_some(by)
            }
            (Table::Same(_), Table::Each(_)) => Some(-other.offset_from(self)?),
        }
    }

    fn times(&self, by: i64) -> Option<Form> {
        Form::table(Table::Same(0)).plus(self, by)
    }
}

/// Evaluates registers over the threads of a block.
pub struct Threads<'k> {
    k: &'k Kernel,
    /// Threads that run what is analysed.
    pub count: usize,
    forms: Vec<Option<Rc<Form>>>,
    uniform: Vec<Option<bool>>,
    /// The loop of which a register is the index.
    indices: Vec<Option<Inst>>,
    /// How many loops stand around a register's definition; the index of a loop is inside.
    pub depths: Vec<u32>,
    /// Indices that stand for one turn.
    fixed: Vec<(Val, i64)>,
    /// Forms that may depend on them.
    passing: Vec<Val>,
    /// The threads in which a predicate may hold in the present turn.
    allowed: FastMap<Val, Option<Rc<[bool]>>>,
}

impl<'k> Threads<'k> {
    pub fn new(k: &'k Kernel, count: usize) -> Threads<'k> {
        let mut indices = vec![None; k.vals.len()];
        k.walk(k.body, &mut |inst, data| {
            if let SimtOp::For { index, .. } = data.op {
                indices[index.0.index()] = Some(inst);
            }
        });
        let n = k.vals.len();
        let (forms, uniform, depths) = (vec![None; n], vec![None; n], depths(k));
        let (fixed, passing, allowed) = (Vec::new(), Vec::new(), FastMap::default());
        Threads { k, count, forms, uniform, indices, depths, fixed, passing, allowed }
    }

    /// Turns of a loop whose bounds are known.
    pub fn turns(&mut self, lo: Val, hi: Val, step: Val) -> Option<(i64, i64, i64)> {
        let mut known = |v: Val| self.form(v).constant();
        let (lo, hi, step) = (known(lo)?, known(hi)?, known(step)?);
        (step > 0).then(|| (lo, step, (hi - lo).max(0).div_euclid(step) + i64::from((hi - lo).max(0) % step != 0)))
    }

    /// Until the next call registers are those of a turn in which the indices have these values.
    pub fn fix(&mut self, turn: &[(Val, i64)]) {
        for v in self.passing.drain(..) {
            self.forms[v.index()] = None;
        }
        self.allowed.clear();
        self.fixed.clear();
        self.fixed.extend_from_slice(turn);
    }

    pub fn form(&mut self, v: Val) -> Rc<Form> {
        if let Some(known) = &self.forms[v.index()] {
            return known.clone();
        }
        let form = Rc::new(self.find(v));
        self.forms[v.index()] = Some(form.clone());
        if self.fixed.iter().any(|(index, _)| self.depths[v.index()] >= self.depths[index.index()]) {
            self.passing.push(v);
        }
        form
    }

    /// The threads in which a predicate may hold; `None` if it may in all.
    pub fn possible(&mut self, cond: Val) -> Option<Rc<[bool]>> {
        // Many accesses have one condition, and conditions share parts.
        if let Some(known) = self.allowed.get(&cond) {
            return known.clone();
        }
        let found = match self.k.def(cond) {
            Some(SimtOp::Bin { op, num: Num::Pred, x, y, .. }) => match (op, self.possible(*x), self.possible(*y)) {
                (Bin::And, x, None) => x,
                (Bin::And, None, y) => y,
                (Bin::And, Some(x), Some(y)) => Some(x.iter().zip(&*y).map(|(&a, &b)| a && b).collect()),
                (Bin::Or, Some(x), Some(y)) => Some(x.iter().zip(&*y).map(|(&a, &b)| a || b).collect()),
                _ => None,
            },
            _ => self.certain(cond, true),
        };
        self.allowed.insert(cond, found.clone());
        found
    }

    /// The threads in which a predicate has a value, if that is known of all threads.
    pub fn certain(&mut self, cond: Val, value: bool) -> Option<Rc<[bool]>> {
        let form = self.form(cond);
        form.terms.is_empty().then(|| (0..self.count).map(|t| (form.table.at(t) & 1 != 0) == value).collect())
    }

    /// True if all threads have the same value in one turn of the loops around the definition.
    pub fn is_uniform(&mut self, v: Val) -> bool {
        if let Some(known) = self.uniform[v.index()] {
            return known;
        }
        let found = match self.k.vals[v].def {
            ValDef::Const(_) => true,
            ValDef::Pending => false,
            ValDef::Inst(inst) => {
                let op = &self.k.insts[inst].op;
                match op {
                    SimtOp::Special { reg: Special::Tid | Special::LaneId, .. } => false,
                    SimtOp::For { lo, step, uniform, .. } => *uniform && self.is_uniform(*lo) && self.is_uniform(*step),
                    // What the kernel does not write does not change between the reads of two threads.
                    SimtOp::Ld { cache, addr, guard, .. } => {
                        let constant = matches!(self.k.objs[addr.obj].kind, ObjKind::Global { read_only: true });
                        (constant || *cache == Cache::ReadOnly)
                            && self.is_uniform(addr.base)
                            && guard.is_none_or(|g| self.is_uniform(g))
                    }
                    // Lanes hold different parts of a product.
                    SimtOp::Mma { .. } => false,
                    _ if op.effect() == Effect::Pure => {
                        let mut operands = Vec::new();
                        op.uses(&mut |x| operands.push(x));
                        operands.into_iter().all(|x| self.is_uniform(x))
                    }
                    _ => false,
                }
            }
        };
        self.uniform[v.index()] = Some(found);
        found
    }

    /// Tables hold integers as the register's signed value, predicates as 0 or 1.
    fn find(&mut self, v: Val) -> Form {
        let data = self.k.vals[v];
        match data.def {
            ValDef::Const(bits) => Form::table(Table::Same(signed(data.ty, bits))),
            ValDef::Pending => Form::atom(v),
            ValDef::Inst(inst) => self.of_op(v, inst).unwrap_or_else(|| Form::atom(v)),
        }
    }

    fn of_op(&mut self, v: Val, inst: Inst) -> Option<Form> {
        let k = self.k;
        let ty = k.ty(v);
        match &k.insts[inst].op {
            SimtOp::Special { reg: Special::Tid, .. } => {
                Some(Form::table(Table::Each((0..self.count as i64).collect())))
            }
            SimtOp::Special { reg: Special::LaneId, .. } => {
                Some(Form::table(Table::Each((0..self.count).map(|t| (t % WARP) as i64).collect())))
            }
            SimtOp::SharedAddr { obj, .. } => match k.objs[*obj].kind {
                ObjKind::Shared { offset: Some(at), .. } => Some(Form::table(Table::Same(at.into()))),
                _ => None,
            },
            SimtOp::Bin { op, num, x, y, .. } if !num.is_float() => {
                let (x, y) = (self.form(*x), self.form(*y));
                bin(ty, *op, *num, &x, &y)
            }
            SimtOp::Mad { num, x, y, z, .. } if !num.is_float() => {
                let (x, y, z) = (self.form(*x), self.form(*y), self.form(*z));
                let product = bin(ty, Bin::Mul, *num, &x, &y)?;
                bin(ty, Bin::Add, *num, &product, &z)
            }
            SimtOp::MadWide { num, x, y, z, .. } => {
                let (x, y, z) = (self.form(*x), self.form(*y), self.form(*z));
                let product = bin(ty, Bin::MulWide, *num, &x, &y)?;
                bin(ty, Bin::Add, Num::S64, &product, &z)
            }
            SimtOp::Un { op, num, x, .. } if !num.is_float() => {
                let x = self.form(*x);
                let from = num.ty();
                let table = x.table.map(|a| Some(signed(ty, fold::un(*op, *num, bits(from, a))?)));
                if x.terms.is_empty() { table.map(Form::table) } else { None }
            }
            SimtOp::Cvt { to, from, round, x, .. } if !to.is_float() && !from.is_float() => {
                let x = self.form(*x);
                if !x.terms.is_empty() {
                    let whole = |n: Num| matches!(n, Num::U32 | Num::S32 | Num::B32 | Num::U64 | Num::S64 | Num::B64);
                    return (whole(*to) && whole(*from)).then(|| (*x).clone());
                }
                let source = from.ty();
                x.table.map(|a| Some(signed(ty, fold::cvt(*to, *from, *round, bits(source, a))?))).map(Form::table)
            }
            SimtOp::Setp { op, num, x, y, .. } if !num.is_float() => {
                let (x, y) = (self.form(*x), self.form(*y));
                setp(*op, *num, &x, &y)
            }
            SimtOp::Selp { cond, x, y, .. } => {
                let (c, x, y) = (self.form(*cond), self.form(*x), self.form(*y));
                if !c.terms.is_empty() || x.terms != y.terms {
                    return None;
                }
                let chosen = |t: usize| if c.table.at(t) & 1 != 0 { x.table.at(t) } else { y.table.at(t) };
                let table = Table::Each((0..self.count).map(chosen).collect());
                Some(Form { table, terms: x.terms.clone() })
            }
            SimtOp::Bfe { x, pos, len, .. } => {
                let x = self.form(*x);
                let field = |a: i64| Some(i64::from((a as u32 >> pos) & ((1u64 << len) - 1) as u32));
                if x.terms.is_empty() { x.table.map(field).map(Form::table) } else { None }
            }
            // The value that a lane gives its warp, as the numbers of warpgroups are told.
            SimtOp::Shfl { mode: ShflMode::Idx, x, lane, clamp: 31, .. } => {
                let (x, lane) = (self.form(*x), self.form(*lane).constant()?);
                let from = |t: usize| (t & !(WARP - 1)) + (lane as usize & (WARP - 1));
                if !x.terms.is_empty() || from(self.count - 1) >= self.count {
                    return None;
                }
                Some(Form::table(Table::Each((0..self.count).map(|t| x.table.at(from(t))).collect())))
            }
            SimtOp::For { index, lo, step, .. } => {
                let index = index.0;
                if let Some(&(_, value)) = self.fixed.iter().find(|(v, _)| *v == index) {
                    return Some(Form::table(Table::Same(value)));
                }
                // The atom counts turns.
                let (lo, step) = (self.form(*lo), self.form(*step).constant()?);
                lo.plus(&Form::atom(index), step)
            }
            _ => None,
        }
    }

    /// Whether atoms hold one value for all threads: what an index counts is the number of its loop's turn.
    pub fn is_uniform_atom(&mut self, v: Val) -> bool {
        match self.indices[v.index()] {
            Some(inst) => match self.k.insts[inst].op {
                SimtOp::For { uniform, .. } => uniform,
                _ => false,
            },
            None => self.is_uniform(v),
        }
    }
}

/// The number that a register's bits stand for.
fn signed(ty: Ty, bits: u64) -> i64 {
    match ty.bits() {
        64 => bits as i64,
        32 => i64::from(bits as u32 as i32),
        16 => i64::from(bits as u16 as i16),
        _ => (bits & 1) as i64,
    }
}

fn bits(ty: Ty, value: i64) -> u64 {
    match ty.bits() {
        64 => value as u64,
        n => value as u64 & ((1u64 << n) - 1),
    }
}

fn bin(ty: Ty, op: Bin, num: Num, x: &Form, y: &Form) -> Option<Form> {
    if x.terms.is_empty() && y.terms.is_empty() {
        let class = num.ty();
        let amount = if matches!(op, Bin::Shl | Bin::Shr) { Ty::B32 } else { class };
        let f = |a: i64, b: i64| Some(signed(ty, fold::bin(op, num, bits(class, a), bits(amount, b))?));
        return x.table.zip(&y.table, f).map(Form::table);
    }
    match op {
        Bin::Add => x.plus(y, 1),
        Bin::Sub => x.plus(y, -1),
        Bin::Mul | Bin::MulWide => match (x.constant(), y.constant()) {
            (_, Some(c)) => x.times(c),
            (Some(c), _) => y.times(c),
            (None, None) => None,
        },
        Bin::Shl => x.times(1i64.checked_shl(u32::try_from(y.constant()?).ok().filter(|&n| n < 62)?)?),
        _ => None,
    }
}

fn setp(op: Cmp, num: Num, x: &Form, y: &Form) -> Option<Form> {
    let class = num.ty();
    if x.terms.is_empty() && y.terms.is_empty() {
        let f = |a: i64, b: i64| fold::cmp(op, num, bits(class, a), bits(class, b)).map(i64::from);
        return x.table.zip(&y.table, f).map(Form::table);
    }
    if x.terms != y.terms || !num.is_signed() {
        return None;
    }
    // The same unknown on both sides.
    let f = |a: i64, b: i64| fold::cmp(op, Num::S64, a as u64, b as u64).map(i64::from);
    x.table.zip(&y.table, f).map(Form::table)
}

fn depths(k: &Kernel) -> Vec<u32> {
    fn block(k: &Kernel, b: Block, depth: u32, depths: &mut [u32]) {
        for &inst in &k.blocks[b] {
            let op = &k.insts[inst].op;
            let inner = depth + u32::from(matches!(op, SimtOp::For { .. } | SimtOp::While { .. }));
            let own = if matches!(op, SimtOp::For { .. }) { inner } else { depth };
            op.defs(&mut |v| depths[v.index()] = own);
            op.blocks(&mut |b| block(k, b, inner, depths));
        }
    }
    let mut found = vec![0; k.vals.len()];
    block(k, k.body, 0, &mut found);
    found
}
