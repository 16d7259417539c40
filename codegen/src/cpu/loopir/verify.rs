//! Checks that a loop IR function is well formed: every value is defined once, before its uses and in scope, and
//! operand types agree.

use super::node::*;
use super::types::Ty;

/// What is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("loop IR of `{func}` is malformed at {at}: {problem}")]
pub struct VerifyError {
    pub func: String,
    /// The value or statement.
    pub at: String,
    pub problem: String,
}

/// Checks a whole function.
pub fn verify(func: &LoopFunc) -> Result<(), VerifyError> {
    let mut v = Verifier { func, visible: vec![false; func.types.len()], defined: vec![false; func.types.len()] };
    for p in func.params {
        v.define(p, "parameters")?;
    }
    v.block(&func.body)
}

struct Verifier<'a> {
    func: &'a LoopFunc,
    visible: Vec<bool>,
    defined: Vec<bool>,
}

type Result<T, E = VerifyError> = std::result::Result<T, E>;

impl Verifier<'_> {
    fn fail<T>(&self, at: impl ToString, problem: impl ToString) -> Result<T> {
        Err(VerifyError { func: self.func.name.clone(), at: at.to_string(), problem: problem.to_string() })
    }

    fn check(&self, ok: bool, at: impl ToString, problem: &str) -> Result<()> {
        if ok { Ok(()) } else { self.fail(at, problem) }
    }

    fn define(&mut self, v: Val, at: &str) -> Result<()> {
        if self.defined[v.index()] {
            return self.fail(at, format!("{v} is defined twice"));
        }
        self.defined[v.index()] = true;
        self.visible[v.index()] = true;
        Ok(())
    }

    fn used(&self, v: Val, at: impl ToString) -> Result<Ty> {
        if self.visible[v.index()] { Ok(self.func.ty(v)) } else { self.fail(at, format!("{v} is not visible")) }
    }

    fn expect(&self, v: Val, ty: Ty, at: impl ToString) -> Result<()> {
        let found = self.used(v, at.to_string())?;
        if found == ty { Ok(()) } else { self.fail(at, format!("{v} has type {found}, expected {ty}")) }
    }

    /// Runs `f` and hides the values that it made visible.
    fn scope(&mut self, f: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let outer = self.visible.clone();
        f(self)?;
        self.visible = outer;
        Ok(())
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        block.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<()> {
        match stmt {
            Stmt::Let(v, node) => {
                self.node(*v, node)?;
                self.define(*v, "let")
            }
            Stmt::Load { out, mem, addr, .. } => {
                self.expect(*addr, Ty::I64, "load")?;
                let ok = *mem == Mem::Plain || self.func.ty(*out) == Ty::I32x4;
                self.check(ok, "load", "a widening load gives i32x4")?;
                self.define(*out, "load")
            }
            Stmt::Store { value, addr, .. } => {
                self.used(*value, "store")?;
                self.expect(*addr, Ty::I64, "store")
            }
            Stmt::Atomic { out, addr, value, .. } => {
                let ty = self.used(*value, "atomic")?;
                self.check(!ty.is_vector() && !ty.is_float(), "atomic", "operand is not an integer scalar")?;
                self.expect(*addr, Ty::I64, "atomic")?;
                self.define(*out, "atomic")
            }
            Stmt::Cas { out, addr, expected, value } => {
                let ty = self.used(*value, "cas")?;
                self.expect(*expected, ty, "cas")?;
                self.expect(*addr, Ty::I64, "cas")?;
                self.define(*out, "cas")
            }
            Stmt::Call { out, helper, args } => {
                self.check(args.len() == helper.arity(), helper.name(), "wrong number of arguments")?;
                self.check(out.is_some() == helper.has_result(), helper.name(), "result does not fit")?;
                args.iter().try_for_each(|a| self.expect(*a, Ty::I64, helper.name()))?;
                out.iter().try_for_each(|o| self.define(*o, helper.name()))
            }
            Stmt::ExitIf { cond, block, .. } => {
                self.expect(*cond, Ty::I8, "exit_if")?;
                self.expect(*block, Ty::I64, "exit_if")
            }
            Stmt::For { iv, lo, hi, step, carried, body } => {
                self.check(*step > 0, iv, "step is not positive")?;
                self.expect(*lo, Ty::I64, iv)?;
                self.expect(*hi, Ty::I64, iv)?;
                for c in carried {
                    self.expect(c.init, self.func.ty(c.param), "for")?;
                }
                self.scope(|v| {
                    v.define(*iv, "for")?;
                    for c in carried {
                        v.define(c.param, "for")?;
                    }
                    v.block(body)?;
                    carried.iter().try_for_each(|c| v.expect(c.next, v.func.ty(c.param), "for"))
                })?;
                carried.iter().try_for_each(|c| self.define(c.result, "for"))
            }
            Stmt::If { cond, then, otherwise, merges } => {
                self.expect(*cond, Ty::I8, "if")?;
                self.scope(|v| {
                    v.block(then)?;
                    merges.iter().try_for_each(|m| v.expect(m.then, v.func.ty(m.result), "if"))
                })?;
                self.scope(|v| {
                    v.block(otherwise)?;
                    merges.iter().try_for_each(|m| v.expect(m.otherwise, v.func.ty(m.result), "else"))
                })?;
                merges.iter().try_for_each(|m| self.define(m.result, "if"))
            }
            Stmt::While { before, cond, body } => self.scope(|v| {
                v.block(before)?;
                v.expect(*cond, Ty::I8, "while")?;
                v.block(body)
            }),
        }
    }

    fn node(&self, out: Val, node: &Node) -> Result<()> {
        let mut seen = Ok(());
        node.for_each_use(&mut |v| {
            if seen.is_ok() {
                seen = self.used(v, out).map(|_| ());
            }
        });
        seen?;
        let (t, ty) = (|v: Val| self.func.ty(v), self.func.ty(out));
        let ok = match *node {
            Node::Const(_) => !ty.is_vector(),
            Node::VConst(_) => ty.is_vector(),
            Node::Unary(op, x) => self.unary_ok(op, t(x), ty),
            Node::Binary(BinOp::Shl | BinOp::UShr | BinOp::SShr, x, y) if ty.is_vector() => {
                t(x) == ty && t(y) == Ty::I32
            }
            Node::Binary(BinOp::SNarrow | BinOp::UNarrow, x, y) => {
                t(x) == t(y) && t(x).is_vector() && ty.lane().bytes() * 2 == t(x).lane().bytes()
            }
            Node::Binary(BinOp::FAdd | BinOp::FSub | BinOp::FMul | BinOp::FDiv, x, y) => {
                t(x) == ty && t(y) == ty && ty.is_float()
            }
            Node::Binary(_, x, y) => t(x) == ty && t(y) == ty && !ty.is_float(),
            Node::Fma(x, y, z) => t(x) == ty && t(y) == ty && t(z) == ty && ty.is_float(),
            Node::ICmp(_, x, y) => t(x) == t(y) && !t(x).is_float() && ty == compared(t(x)),
            Node::FCmp(_, x, y) => t(x) == t(y) && t(x).is_float() && ty == compared(t(x)),
            Node::Select(c, x, y) => t(c) == Ty::I8 && t(x) == ty && t(y) == ty,
            Node::BitSelect(c, x, y) => t(c) == ty.as_int() && ty.is_vector() && t(x) == ty && t(y) == ty,
            Node::Extract(x, l) => t(x).is_vector() && t(x).lane() == ty && usize::from(l) < t(x).lanes(),
            Node::Insert(x, y, l) => t(x) == ty && t(y) == ty.lane() && usize::from(l) < ty.lanes(),
            Node::Shuffle(x, y, b) => t(x) == ty && t(y) == ty && ty.is_vector() && b.iter().all(|b| *b < 32),
        };
        self.check(ok, format!("{out}: {ty} = {node}"), "operand types do not fit")
    }

    fn unary_ok(&self, op: UnOp, from: Ty, to: Ty) -> bool {
        let wider = to.bytes() > from.bytes() && !from.is_vector();
        match op {
            UnOp::Not | UnOp::Popcnt | UnOp::Clz => from == to && !to.is_float(),
            UnOp::FNeg | UnOp::FAbs | UnOp::Sqrt | UnOp::Floor | UnOp::Ceil | UnOp::Trunc | UnOp::Nearest => {
                from == to && to.is_float()
            }
            UnOp::SExt | UnOp::ZExt => !from.is_float() && !to.is_float() && (wider || widens(from, to)),
            UnOp::SExtHigh | UnOp::ZExtHigh => widens(from, to),
            UnOp::Reduce => !to.is_vector() && !from.is_float() && to.bytes() < from.bytes(),
            UnOp::SToF | UnOp::UToF => to.is_float() && !from.is_float() && to.lanes() == from.lanes(),
            UnOp::FToS | UnOp::FToU => from.is_float() && !to.is_float() && to.lanes() == from.lanes(),
            UnOp::Promote => (from, to) == (Ty::F32, Ty::F64),
            UnOp::Demote => (from, to) == (Ty::F64, Ty::F32),
            UnOp::Bitcast => from.bytes() == to.bytes(),
            UnOp::Splat | UnOp::ToVector => to.is_vector() && to.lane() == from,
            UnOp::AnyTrue | UnOp::AllTrue => from.is_vector() && to == Ty::I8,
            UnOp::SignBits => from.is_vector() && to == Ty::I32,
        }
    }
}

fn widens(from: Ty, to: Ty) -> bool {
    from.is_vector() && to.is_vector() && to.lane().bytes() == 2 * from.lane().bytes()
}

fn compared(ty: Ty) -> Ty {
    if ty.is_vector() { ty.as_int() } else { Ty::I8 }
}
