//! Decoding of loads, stores, atomics and address conversions.

use super::builder::{Addr, Builder, class_of};
use super::op::{AtomOp, AtomSem, AtomTy, Class, Inst, MemOp, Op, Space};
use crate::sim::error::SimError;
use crate::sim::parse::ast::{Instr, Operand, Ty};

/// Cache and ordering words that change no value.
const HINTS: &[&str] = &[
    "weak",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::cache_hint",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "L2::evict_last",
    "L2::evict_normal",
    "L2::evict_first",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "volatile",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "v2",
    "v4",
    "noftz",
    "unified",
    "mmio",
];

impl Builder<'_> {
    /// The state space named by an instruction.
    pub(super) fn space(&self, i: &Instr) -> Space {
        for m in &i.mods {
            match m.as_str() {
                "global" => return Space::Global,
                "shared" | "shared::cta" => return Space::Shared,
                "shared::cluster" => return Space::SharedCluster,
                "local" => return Space::Local,
                "param" | "param::entry" | "param::func" => return Space::Param,
                "const" => return Space::Const,
                _ => {}
            }
        }
        Space::Generic
    }

    const SPACES: &'static [&'static str] = &[
        "global",
        "shared",
        "shared::cta",
        "shared::cluster",
        "local",
        "param",
        "param::entry",
        "param::func",
        "const",
    ];

    fn hints(&self, i: &Instr, extra: &[&str]) -> Result<(), SimError> {
        let mut allowed = HINTS.to_vec();
        allowed.extend_from_slice(Self::SPACES);
        allowed.extend_from_slice(extra);
        self.only(i, &allowed)
    }

    pub(super) fn memory(&mut self, i: &Instr) -> Result<Inst, SimError> {
        match i.name.as_str() {
            "ld" | "ldu" | "st" if i.has("async") => self.st_async(i),
            "ld" | "ldu" => self.load_store(i, true),
            "st" => self.load_store(i, false),
            "atom" => self.atomic(i, true),
            "red" if i.has("async") => Err(self.unsupported(i)),
            "red" => self.atomic(i, false),
            "cvta" => {
                self.only(i, &[Self::SPACES, &["to"]].concat())?;
                let wide = self.ty(i)?.bits() == 64;
                let class = if wide { Class::W64 } else { Class::W32 };
                let mut inst = self.inst(Op::Cvta { space: self.space(i), to: i.has("to"), wide });
                inst.d = self.dst(i, 0, class)?;
                inst.a = self.src(i, 1, class)?;
                Ok(inst)
            }
            "isspacep" => {
                self.only(i, Self::SPACES)?;
                let mut inst = self.inst(Op::IsSpace(self.space(i)));
                inst.d = self.dst(i, 0, Class::Pred)?;
                inst.a = self.src(i, 1, Class::W64)?;
                Ok(inst)
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" => Ok(self.inst(Op::Prefetch)),
            "createpolicy" => {
                let mut inst = self.inst(Op::Mov(Class::W64));
                inst.d = self.dst(i, 0, Class::W64)?;
                inst.a = self.constant(Class::W64, 0);
                Ok(inst)
            }
            _ => Err(self.unsupported(i)),
        }
    }

    /// Element count from `.v2`/`.v4`.
    fn vector(&self, i: &Instr) -> u8 {
        if i.has("v4") {
            4
        } else if i.has("v2") {
            2
        } else {
            1
        }
    }

    /// Slots of the data operands, all of one class. The class follows the registers, which may be wider than the type.
    fn data(&mut self, i: &Instr, op: &Operand, ty: Ty, n: u8, dst: bool) -> Result<(Vec<u32>, bool), SimError> {
        let items = self.elements(op);
        if items.len() != n as usize {
            return Err(self.invalid(i, format!("expected {n} data operands, found {}", items.len())));
        }
        let class = items
            .iter()
            .find_map(|o| match o {
                Operand::Reg(r) => Some(self.declared(*r)),
                _ => None,
            })
            .unwrap_or(class_of(ty));
        if class == Class::Pred || (ty.bits() == 64 && class != Class::W64) {
            return Err(self.invalid(i, "the data register is narrower than the type"));
        }
        let mut slots = Vec::with_capacity(items.len());
        for o in items {
            slots.push(if dst {
                self.destination(i, o, class)?
            } else {
                self.source(i, o, class, super::alu::flt_ty(ty))?
            });
        }
        Ok((slots, class == Class::W64))
    }

    fn load_store(&mut self, i: &Instr, load: bool) -> Result<Inst, SimError> {
        self.hints(i, &[])?;
        let ty = self.ty(i)?;
        let n = self.vector(i);
        if ty == Ty::Pred || ty.bytes() * u32::from(n) > 16 {
            return Err(self.unsupported(i));
        }
        let hinted = usize::from(i.has("L2::cache_hint"));
        self.count(i, 2 + hinted)?;
        let (data_at, addr_at) = if load { (0, 1) } else { (1, 0) };
        let addr_op = self.operand(i, addr_at)?.clone();
        let addr: Addr = self.address(i, &addr_op)?;
        let data_op = self.operand(i, data_at)?.clone();
        let (slots, wide) = self.data(i, &data_op, ty, n, load)?;
        let mut space = self.space(i);
        // Call parameters are a thread's own memory.
        if addr.local {
            space = Space::Local;
        }
        let mem = MemOp {
            space,
            elem: ty.bytes() as u8,
            n,
            signed: load && ty.is_signed(),
            wide,
            a64: addr.a64,
            strong: ["relaxed", "acquire", "release", "volatile"].iter().any(|m| i.has(m)),
            constant: load && i.has("nc"),
        };
        let op = match (load, space, addr.param) {
            (true, Space::Param, true) => Op::LdParam(mem),
            (false, Space::Param, _) => return Err(self.invalid(i, "kernel parameters are read-only")),
            (true, ..) if addr.param => return Err(self.invalid(i, "a kernel parameter is read with ld.param")),
            (true, ..) => Op::Ld(mem),
            (false, ..) => Op::St(mem),
        };
        let mut inst = self.inst(op);
        (inst.a, inst.imm) = (addr.slot, addr.offset);
        inst.e = self.push_pool(&slots);
        Ok(inst)
    }

    fn atomic(&mut self, i: &Instr, ret: bool) -> Result<Inst, SimError> {
        const OPS: &[&str] = &["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
        self.hints(i, OPS)?;
        let op = match i.mods.iter().find(|m| OPS.contains(&m.as_str())).map(String::as_str) {
            Some("add") => AtomOp::Add,
            Some("min") => AtomOp::Min,
            Some("max") => AtomOp::Max,
            Some("and") => AtomOp::And,
            Some("or") => AtomOp::Or,
            Some("xor") => AtomOp::Xor,
            Some("exch") => AtomOp::Exch,
            Some("cas") => AtomOp::Cas,
            Some("inc") => AtomOp::Inc,
            Some("dec") => AtomOp::Dec,
            _ => return Err(self.invalid(i, "the atomic names no operation")),
        };
        let pty = self.ty(i)?;
        let ty = match pty {
            Ty::U32 | Ty::B32 => AtomTy::U32,
            Ty::S32 => AtomTy::S32,
            Ty::U64 | Ty::B64 => AtomTy::U64,
            Ty::S64 => AtomTy::S64,
            Ty::F32 => AtomTy::F32,
            Ty::F64 => AtomTy::F64,
            Ty::F16 => AtomTy::F16,
            Ty::Bf16 => AtomTy::Bf16,
            Ty::F16x2 => AtomTy::F16x2,
            Ty::Bf16x2 => AtomTy::Bf16x2,
            _ => return Err(self.unsupported(i)),
        };
        if matches!(ty, AtomTy::F16 | AtomTy::Bf16 | AtomTy::F16x2 | AtomTy::Bf16x2) && !i.has("noftz") {
            return Err(self.invalid(i, "half-precision atomics need .noftz"));
        }
        let n = self.vector(i);
        if n > 1 && (op == AtomOp::Cas || op == AtomOp::Exch || self.space(i) != Space::Global) {
            return Err(self.unsupported(i));
        }
        let class = class_of(pty);
        let hinted = usize::from(i.has("L2::cache_hint"));
        self.count(i, usize::from(ret) + 2 + usize::from(op == AtomOp::Cas) + hinted)?;
        let mut slots = Vec::new();
        let mut at = 0;
        if ret {
            for o in self.elements(self.operand(i, 0)?) {
                slots.push(self.destination(i, o, class)?);
            }
            at = 1;
        }
        let addr_op = self.operand(i, at)?.clone();
        let addr = self.address(i, &addr_op)?;
        for o in self.elements(self.operand(i, at + 1)?) {
            slots.push(self.source(i, o, class, super::alu::flt_ty(pty))?);
        }
        if op == AtomOp::Cas {
            slots.push(self.src(i, at + 2, class)?);
        }
        let space = self.space(i);
        let sem =
            AtomSem { acquire: i.has("acquire") || i.has("acq_rel"), release: i.has("release") || i.has("acq_rel") };
        self.global_atomics |= matches!(space, Space::Global | Space::Generic);
        let mut inst = self.inst(Op::Atom { space, op, ty, n, ret, a64: addr.a64, sem });
        (inst.a, inst.imm) = (addr.slot, addr.offset);
        inst.e = self.push_pool(&slots);
        Ok(inst)
    }

    /// `st.async.shared::cluster.mbarrier::complete_tx::bytes [addr], value, [mbar]`.
    fn st_async(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.hints(i, &["async", "mbarrier::complete_tx::bytes"])?;
        if i.name != "st" || !i.has("mbarrier::complete_tx::bytes") {
            return Err(self.unsupported(i));
        }
        self.count(i, 3)?;
        let ty = self.ty(i)?;
        let n = self.vector(i);
        let addr_op = self.operand(i, 0)?.clone();
        let addr = self.address(i, &addr_op)?;
        let bar_op = self.operand(i, 2)?.clone();
        let bar = self.address(i, &bar_op)?;
        let data_op = self.operand(i, 1)?.clone();
        let (data, wide) = self.data(i, &data_op, ty, n, false)?;
        let mut inst = self.inst(Op::StAsync { elem: ty.bytes() as u8, n, wide, a64: addr.a64, b64: bar.a64 });
        (inst.a, inst.imm) = (addr.slot, addr.offset);
        let mut slots = vec![bar.slot, self.constant(Class::W64, bar.offset as u64)];
        slots.extend(data);
        inst.e = self.push_pool(&slots);
        Ok(inst)
    }
}
