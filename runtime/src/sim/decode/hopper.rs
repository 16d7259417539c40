//! Decoding of mbarriers, cluster addressing and `wgmma`.

use super::builder::Builder;
use super::matrix::{acc_ty, mat_ty, shape};
use super::op::{AccTy, Class, Inst, MatTy, MbarOp, Op, Space, WgmmaOp};
use crate::sim::error::SimError;
use crate::sim::parse::ast::{Instr, Operand, Ty};

const MBAR_WORDS: &[&str] = &[
    "init",
    "inval",
    "arrive",
    "arrive_drop",
    "expect_tx",
    "complete_tx",
    "test_wait",
    "try_wait",
    "parity",
    "noComplete",
    "pending_count",
    "shared",
    "shared::cta",
    "shared::cluster",
    "release",
    "acquire",
    "relaxed",
    "cta",
    "cluster",
];

impl Builder<'_> {
    pub(super) fn hopper(&mut self, i: &Instr) -> Result<Inst, SimError> {
        match i.name.as_str() {
            "mbarrier" => self.mbarrier(i),
            "mapa" => {
                self.only(i, &["shared::cluster"])?;
                self.count(i, 3)?;
                let wide = self.ty(i)?.bits() == 64;
                let class = if wide { Class::W64 } else { Class::W32 };
                let mut inst = self.inst(Op::Mapa { wide, generic: self.space(i) == Space::Generic });
                inst.d = self.dst(i, 0, class)?;
                inst.a = self.src(i, 1, class)?;
                inst.b = self.src(i, 2, Class::W32)?;
                Ok(inst)
            }
            "getctarank" => {
                self.only(i, &["shared::cluster"])?;
                let wide = self.ty(i)?.bits() == 64;
                let mut inst = self.inst(Op::GetCtaRank { wide });
                inst.d = self.dst(i, 0, Class::W32)?;
                inst.a = self.src(i, 1, if wide { Class::W64 } else { Class::W32 })?;
                Ok(inst)
            }
            "wgmma" => self.wgmma(i),
            _ => Err(self.unsupported(i)),
        }
    }

    fn mbarrier(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.only(i, MBAR_WORDS)?;
        let verb = i.mods.first().map_or("", String::as_str);
        match verb {
            "init" => {
                self.count(i, 2)?;
                let addr_op = self.operand(i, 0)?.clone();
                let addr = self.address(i, &addr_op)?;
                let mut inst = self.inst(Op::MbarInit { a64: addr.a64 });
                (inst.a, inst.imm) = (addr.slot, addr.offset);
                inst.b = self.src(i, 1, Class::W32)?;
                Ok(inst)
            }
            "inval" => {
                self.count(i, 1)?;
                let addr_op = self.operand(i, 0)?.clone();
                let addr = self.address(i, &addr_op)?;
                let mut inst = self.inst(Op::MbarInval { a64: addr.a64 });
                (inst.a, inst.imm) = (addr.slot, addr.offset);
                Ok(inst)
            }
            "arrive" | "arrive_drop" | "expect_tx" | "complete_tx" => self.mbarrier_arrive(i, verb),
            "test_wait" | "try_wait" => {
                let parity = i.has("parity");
                if i.operands.len() != 4 || verb == "test_wait" {
                    self.count(i, 3)?;
                }
                let addr_op = self.operand(i, 1)?.clone();
                let addr = self.address(i, &addr_op)?;
                let mut inst = self.inst(Op::MbarTest {
                    parity,
                    wait: verb == "try_wait",
                    a64: addr.a64,
                    relaxed: i.has("relaxed"),
                });
                (inst.a, inst.imm) = (addr.slot, addr.offset);
                inst.d = self.dst(i, 0, Class::Pred)?;
                inst.b = self.src(i, 2, if parity { Class::W32 } else { Class::W64 })?;
                Ok(inst)
            }
            "pending_count" => {
                self.count(i, 2)?;
                let mut inst = self.inst(Op::MbarPending);
                inst.d = self.dst(i, 0, Class::W32)?;
                inst.a = self.src(i, 1, Class::W64)?;
                Ok(inst)
            }
            _ => Err(self.unsupported(i)),
        }
    }

    fn mbarrier_arrive(&mut self, i: &Instr, verb: &str) -> Result<Inst, SimError> {
        let arrive = verb.starts_with("arrive");
        let expect = i.has("expect_tx");
        let complete = i.has("complete_tx");
        // `arrive` may leave out its result: `mbarrier.arrive.shared.b64 _, [addr]` always has one in the ISA.
        let at = usize::from(arrive);
        let addr_op = self.operand(i, at)?.clone();
        let addr = self.address(i, &addr_op)?;
        let space = self.space(i);
        let op = MbarOp {
            space,
            a64: addr.a64,
            arrive,
            expect,
            complete,
            drop: verb == "arrive_drop",
            relaxed: i.has("relaxed"),
        };
        let mut inst = self.inst(Op::Mbar(op));
        (inst.a, inst.imm) = (addr.slot, addr.offset);
        inst.d = if arrive { self.dst(i, 0, Class::W64)? } else { self.sink(Class::W64) };
        if arrive && space == Space::SharedCluster && *self.operand(i, 0)? != Operand::Sink {
            return Err(self.invalid(i, "a remote arrive returns no state: write `_`"));
        }
        let one = self.constant(Class::W32, 1);
        let zero = self.constant(Class::W32, 0);
        let (mut count, mut tx) = (one, zero);
        if expect || complete {
            self.count(i, at + 2)?;
            tx = self.src(i, at + 1, Class::W32)?;
        } else if i.operands.len() > at + 1 {
            self.count(i, at + 2)?;
            count = self.src(i, at + 1, Class::W32)?;
        }
        (inst.b, inst.c) = (count, tx);
        Ok(inst)
    }

    fn wgmma(&mut self, i: &Instr) -> Result<Inst, SimError> {
        match i.mods.first().map_or("", String::as_str) {
            "fence" => {
                self.only(i, &["fence", "sync", "aligned"])?;
                return Ok(self.inst(Op::WgmmaFence));
            }
            "commit_group" => {
                self.only(i, &["commit_group", "sync", "aligned"])?;
                return Ok(self.inst(Op::WgmmaCommit));
            }
            "wait_group" => {
                self.only(i, &["wait_group", "sync", "aligned"])?;
                let mut inst = self.inst(Op::WgmmaWait);
                inst.imm = self.immediate(i, 0)?;
                return Ok(inst);
            }
            "mma_async" => {}
            _ => return Err(self.unsupported(i)),
        }
        let Some((word, (m, n, k))) = i.mods.iter().find_map(|w| shape(w).map(|s| (w.clone(), s))) else {
            return Err(self.invalid(i, "wgmma names no shape"));
        };
        self.only(i, &["mma_async", "sync", "aligned", &word])?;
        let types: Vec<Ty> = i.mods.iter().filter_map(|w| Ty::from_word(w)).collect();
        let [d, a, b] = types[..] else {
            return Err(self.invalid(i, "wgmma names three types"));
        };
        let (Some(acc), Some(a), Some(b)) = (acc_ty(d), mat_ty(a), mat_ty(b)) else {
            return Err(self.unsupported(i));
        };
        let int = matches!(a, MatTy::S8 | MatTy::U8);
        if m != 64 || n % 8 != 0 || !(8..=256).contains(&n) || k * a.bits() != 256 || a.bits() != b.bits() {
            return Err(self.unsupported(i));
        }
        if int != (acc == AccTy::S32) || (acc == AccTy::F16 && matches!(a, MatTy::Bf16 | MatTy::Tf32)) {
            return Err(self.unsupported(i));
        }
        let acc_regs = if acc == AccTy::F16 { n / 4 } else { n / 2 };
        let d_op = self.operand(i, 0)?.clone();
        let d_items = self.elements(&d_op).to_vec();
        if d_items.len() != acc_regs as usize {
            return Err(self.invalid(i, format!("the accumulator needs {acc_regs} registers, has {}", d_items.len())));
        }
        let mut slots = Vec::new();
        for o in &d_items {
            slots.push(self.destination(i, o, Class::W32)?);
        }
        let a_op = self.operand(i, 1)?.clone();
        let a_regs = matches!(a_op, Operand::Vec(_));
        if a_regs {
            let items = self.elements(&a_op).to_vec();
            if items.len() != 4 {
                return Err(self.invalid(i, format!("A from registers needs 4, has {}", items.len())));
            }
            for o in &items {
                slots.push(self.source(i, o, Class::W32, None)?);
            }
        } else {
            slots.push(self.src(i, 1, Class::W64)?);
        }
        slots.push(self.src(i, 2, Class::W64)?);
        let (scale_d, negated) =
            if i.operands.len() > 3 { self.pred(i, 3)? } else { (self.constant(Class::Pred, 1), false) };
        if negated {
            return Err(self.invalid(i, "scale-d cannot be negated"));
        }
        slots.push(scale_d);
        let sixteen = a.bits() == 16;
        let scales = if int { 0 } else { 2 };
        let transposes = match (sixteen, a_regs) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => 2,
        };
        let given = i.operands.len().saturating_sub(4);
        if given != 0 && given != scales + transposes {
            return Err(
                self.invalid(i, format!("expected {} immediates after scale-d, found {given}", scales + transposes))
            );
        }
        let mut flags = [1i64, 1, 0, 0];
        if given != 0 {
            for (at, f) in flags.iter_mut().enumerate().take(scales) {
                *f = self.immediate(i, 4 + at)?;
                if !matches!(*f, 1 | -1) {
                    return Err(self.invalid(i, "imm-scale is 1 or -1"));
                }
            }
            for at in 0..transposes {
                // With A in registers only trans-b exists.
                flags[if a_regs { 3 } else { 2 + at }] = self.immediate(i, 4 + scales + at)?;
            }
        } else if !int && sixteen {
            return Err(self.invalid(i, "imm-scale and imm-trans are required for 16-bit operands"));
        }
        let op = WgmmaOp {
            n: n as u16,
            a,
            b,
            acc,
            a_regs,
            negate_a: flags[0] < 0,
            negate_b: flags[1] < 0,
            trans_a: flags[2] != 0,
            trans_b: flags[3] != 0,
        };
        let mut inst = self.inst(Op::Wgmma(op));
        inst.e = self.push_pool(&slots);
        Ok(inst)
    }
}
