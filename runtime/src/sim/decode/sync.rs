//! Decoding of control flow, barriers, fences and warp-level exchange.

use super::builder::Builder;
use super::op::{BoolOp, Class, FenceKind, Inst, Op, Redux, Shfl, Vote};
use crate::sim::error::SimError;
use crate::sim::parse::ast::{Instr, Operand, Ty};

impl Builder<'_> {
    pub(super) fn sync(&mut self, i: &Instr) -> Result<Inst, SimError> {
        match i.name.as_str() {
            "bra" => self.branch(i),
            "ret" | "exit" => Ok(self.inst(Op::Exit)),
            "trap" => Ok(self.inst(Op::Trap)),
            "brkpt" => Ok(self.inst(Op::Brkpt)),
            "call" => self.call(i),
            "nanosleep" => Ok(self.inst(Op::Nanosleep)),
            "griddepcontrol" => {
                self.only(i, &["wait", "launch_dependents"])?;
                self.overlapped = true;
                Ok(self.inst(if i.has("wait") { Op::GridWait } else { Op::Nop }))
            }
            "setmaxnreg" => {
                self.only(i, &["inc", "dec", "sync", "aligned"])?;
                let mut inst = self.inst(Op::Setmaxnreg { inc: i.has("inc") });
                inst.imm = self.immediate(i, 0)?;
                if !(24..=256).contains(&inst.imm) || inst.imm % 8 != 0 {
                    return Err(self.invalid(i, "setmaxnreg takes a multiple of 8 from 24 to 256"));
                }
                Ok(inst)
            }
            "membar" => {
                self.only(i, &["cta", "gl", "sys", "gpu"])?;
                Ok(self.inst(Op::Fence(if i.has("cta") { FenceKind::Block } else { FenceKind::Device })))
            }
            "fence" => self.fence(i),
            "bar" | "barrier" => self.barrier(i),
            _ => self.warp_exchange(i),
        }
    }

    fn branch(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.only(i, &["uni"])?;
        self.count(i, 1)?;
        let Operand::Label(id) = self.operand(i, 0)? else {
            return Err(self.invalid(i, "the branch target must be a label"));
        };
        let mut inst = self.inst(Op::Bra);
        inst.imm = i64::from(self.label(*id));
        inst.e = u32::MAX;
        Ok(inst)
    }

    /// `call (ret), vprintf, (fmt, args)` and `call __assertfail, (...)`: arguments sit in call-parameter variables.
    fn call(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.only(i, &["uni"])?;
        let (ret, func, args) = match &i.operands[..] {
            [Operand::Args(r), Operand::Symbol(f, 0), Operand::Args(a)] => (r.first(), f, a),
            [Operand::Symbol(f, 0), Operand::Args(a)] => (None, f, a),
            _ => return Err(self.unsupported_because(i, "indirect call")),
        };
        let mut slots = Vec::new();
        for a in args {
            slots.push(self.source(i, a, Class::W64, None)?);
        }
        match (func.as_str(), slots.len()) {
            ("vprintf", 2) => {
                let mut inst = self.inst(Op::Printf);
                (inst.a, inst.b) = (slots[0], slots[1]);
                inst.d = match ret {
                    Some(r) => self.source(i, r, Class::W64, None)?,
                    None => self.constant(Class::W64, u64::MAX),
                };
                Ok(inst)
            }
            ("__assertfail", 5) => {
                let mut inst = self.inst(Op::AssertFail);
                inst.e = self.push_pool(&slots);
                Ok(inst)
            }
            _ => Err(self.unsupported_because(i, &format!("call of `{func}`"))),
        }
    }

    fn fence(&mut self, i: &Instr) -> Result<Inst, SimError> {
        if i.has("mbarrier_init") {
            self.only(i, &["mbarrier_init", "release", "cluster"])?;
            return Ok(self.inst(Op::Fence(FenceKind::MbarrierInit)));
        }
        if i.has("proxy") {
            if i.mods.iter().any(|m| m.starts_with("tensormap")) || i.has("alias") {
                return Ok(self.inst(Op::Nop));
            }
            self.only(
                i,
                &[
                    "proxy",
                    "async",
                    "async::generic",
                    "global",
                    "shared::cta",
                    "shared::cluster",
                    "acquire",
                    "release",
                    "cluster",
                    "sync_restrict::shared::cta",
                    "sync_restrict::shared::cluster",
                ],
            )?;
            if i.has("async") && !i.has("global") {
                return Ok(self.inst(Op::Fence(FenceKind::ProxyAsync)));
            }
            if i.has("async") {
                return Ok(self.inst(Op::Nop));
            }
            return Err(self.unsupported(i));
        }
        self.only(i, &["acq_rel", "sc", "acquire", "release", "cta", "cluster", "gpu", "sys"])?;
        Ok(self.inst(Op::Fence(if i.has("cta") { FenceKind::Block } else { FenceKind::Device })))
    }

    fn barrier(&mut self, i: &Instr) -> Result<Inst, SimError> {
        if i.has("warp") {
            self.only(i, &["warp", "sync"])?;
            let mut inst = self.inst(Op::WarpSync);
            inst.a = self.src(i, 0, Class::W32)?;
            return Ok(inst);
        }
        if i.has("cluster") {
            self.only(i, &["cluster", "arrive", "wait", "release", "acquire", "relaxed", "aligned"])?;
            return Ok(self.inst(if i.has("wait") {
                Op::ClusterWait
            } else {
                Op::ClusterArrive { relaxed: i.has("relaxed") }
            }));
        }
        let aligned = i.name == "bar" || i.has("aligned");
        let id = self.src(i, 0, Class::W32);
        if i.has("red") {
            self.only(i, &["cta", "red", "popc", "and", "or", "aligned"])?;
            let op = match (i.has("popc"), i.has("and"), i.has("or")) {
                (true, false, false) => None,
                (false, true, false) => Some(BoolOp::And),
                (false, false, true) => Some(BoolOp::Or),
                _ => return Err(self.invalid(i, "bar.red is .popc, .and or .or")),
            };
            let counted = i.operands.len() == 4;
            let mut inst = self.inst(Op::BarRed { op, aligned });
            inst.d = self.dst(i, 0, if op.is_some() { Class::Pred } else { Class::W32 })?;
            inst.a = self.src(i, 1, Class::W32)?;
            inst.b = if counted { self.src(i, 2, Class::W32)? } else { self.constant(Class::W32, 0) };
            let (c, negated) = self.pred(i, if counted { 3 } else { 2 })?;
            (inst.c, inst.imm) = (c, negated.into());
            return Ok(inst);
        }
        self.only(i, &["cta", "sync", "arrive", "aligned"])?;
        let arrive = i.has("arrive");
        if arrive {
            self.count(i, 2)?;
        }
        let mut inst = self.inst(if arrive { Op::BarArrive } else { Op::BarSync { aligned } });
        inst.a = id?;
        inst.b = if i.operands.len() > 1 { self.src(i, 1, Class::W32)? } else { self.constant(Class::W32, 0) };
        Ok(inst)
    }

    fn warp_exchange(&mut self, i: &Instr) -> Result<Inst, SimError> {
        let w32 = Class::W32;
        if i.name == "activemask" {
            let mut inst = self.inst(Op::Activemask);
            inst.d = self.dst(i, 0, w32)?;
            return Ok(inst);
        }
        if !i.has("sync") {
            return Err(self.unsupported_because(i, "forms without .sync were removed from the ISA"));
        }
        match i.name.as_str() {
            "shfl" => {
                self.only(i, &["sync", "up", "down", "bfly", "idx"])?;
                self.count(i, 5)?;
                let mode = match () {
                    () if i.has("up") => Shfl::Up,
                    () if i.has("down") => Shfl::Down,
                    () if i.has("bfly") => Shfl::Bfly,
                    () if i.has("idx") => Shfl::Idx,
                    () => return Err(self.invalid(i, "shfl names no mode")),
                };
                let (d, p) = match self.operand(i, 0)? {
                    Operand::Pair(d, p) => (self.destination(i, d, w32)?, Some(self.destination(i, p, Class::Pred)?)),
                    d => (self.destination(i, d, w32)?, None),
                };
                let mut inst = self.inst(Op::Shfl { mode, pred: p.is_some() });
                inst.d = d;
                (inst.a, inst.b, inst.c) = (self.src(i, 1, w32)?, self.src(i, 2, w32)?, self.src(i, 3, w32)?);
                let mask = self.src(i, 4, w32)?;
                inst.e = self.push_pool(&[mask, p.unwrap_or(0)]);
                Ok(inst)
            }
            "vote" => {
                self.only(i, &["sync", "all", "any", "uni", "ballot"])?;
                let vote = match () {
                    () if i.has("ballot") => Vote::Ballot,
                    () if i.has("all") => Vote::All,
                    () if i.has("any") => Vote::Any,
                    () => Vote::Uni,
                };
                let mut inst = self.inst(Op::Vote(vote));
                inst.d = self.dst(i, 0, if vote == Vote::Ballot { w32 } else { Class::Pred })?;
                let (a, negated) = self.pred(i, 1)?;
                (inst.a, inst.imm) = (a, negated.into());
                inst.b = self.src(i, 2, w32)?;
                Ok(inst)
            }
            "match" => {
                self.only(i, &["sync", "any", "all"])?;
                let wide = self.ty(i)? == Ty::B64;
                let all = i.has("all");
                let mut inst = self.inst(Op::Match { all, wide });
                (inst.d, inst.e) = match self.operand(i, 0)? {
                    Operand::Pair(d, p) => (self.destination(i, d, w32)?, self.destination(i, p, Class::Pred)?),
                    d => (self.destination(i, d, w32)?, self.sink(Class::Pred)),
                };
                inst.a = self.src(i, 1, if wide { Class::W64 } else { w32 })?;
                inst.b = self.src(i, 2, w32)?;
                Ok(inst)
            }
            "redux" => {
                self.only(i, &["sync", "add", "min", "max", "and", "or", "xor"])?;
                let signed = match self.ty(i)? {
                    Ty::S32 => true,
                    Ty::U32 | Ty::B32 => false,
                    _ => return Err(self.unsupported(i)),
                };
                let op = match () {
                    () if i.has("add") => Redux::Add,
                    () if i.has("min") && signed => Redux::MinS,
                    () if i.has("min") => Redux::MinU,
                    () if i.has("max") && signed => Redux::MaxS,
                    () if i.has("max") => Redux::MaxU,
                    () if i.has("and") => Redux::And,
                    () if i.has("or") => Redux::Or,
                    () if i.has("xor") => Redux::Xor,
                    () => return Err(self.invalid(i, "redux names no operation")),
                };
                let mut inst = self.inst(Op::Redux(op));
                inst.d = self.dst(i, 0, w32)?;
                (inst.a, inst.b) = (self.src(i, 1, w32)?, self.src(i, 2, w32)?);
                Ok(inst)
            }
            "elect" => {
                self.only(i, &["sync"])?;
                let mut inst = self.inst(Op::Elect);
                (inst.d, inst.e) = match self.operand(i, 0)? {
                    Operand::Pair(d, p) => (self.destination(i, d, w32)?, self.destination(i, p, Class::Pred)?),
                    _ => return Err(self.invalid(i, "elect.sync writes d|p")),
                };
                inst.a = self.src(i, 1, w32)?;
                Ok(inst)
            }
            _ => Err(self.unsupported(i)),
        }
    }
}
