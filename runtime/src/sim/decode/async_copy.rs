//! Decoding of `cp.async`, bulk copies and bulk tensor copies.

use super::builder::{Addr, Builder};
use super::op::{AtomOp, AtomTy, BulkKind, BulkOp, BulkReduce, Class, Inst, Op, Space};
use crate::sim::error::SimError;
use crate::sim::parse::ast::{Instr, Operand, Ty};

/// Slots a bulk copy keeps in the operand pool, in this order.
pub mod bulk_slot {
    /// Shared address (the destination of a load, the source of a store) and its offset.
    pub const SHARED: u32 = 0;
    pub const SHARED_OFFSET: u32 = 1;
    /// Global address or tensor map, or the other block's shared address, and its offset.
    pub const OTHER: u32 = 2;
    pub const OTHER_OFFSET: u32 = 3;
    pub const BARRIER: u32 = 4;
    pub const BARRIER_OFFSET: u32 = 5;
    /// Byte count of a plain copy.
    pub const SIZE: u32 = 6;
    /// Block mask of a multicast.
    pub const MASK: u32 = 7;
    /// First of five tensor coordinates.
    pub const COORDS: u32 = 8;
    pub const LEN: u32 = 13;
}

impl Builder<'_> {
    pub(super) fn async_copy(&mut self, i: &Instr) -> Result<Inst, SimError> {
        let first: Vec<&str> = i.mods.iter().map(String::as_str).take(3).collect();
        match first[..] {
            ["async", "commit_group"] => Ok(self.inst(Op::CpAsyncCommit)),
            ["async", "wait_all"] => Ok(self.inst(Op::CpAsyncWait { all: true })),
            ["async", "wait_group"] => {
                let mut inst = self.inst(Op::CpAsyncWait { all: false });
                inst.imm = self.immediate(i, 0)?;
                Ok(inst)
            }
            ["async", "mbarrier", "arrive"] => {
                self.only(i, &["async", "mbarrier", "arrive", "noinc", "shared", "shared::cta"])?;
                let addr_op = self.operand(i, 0)?.clone();
                let addr = self.address(i, &addr_op)?;
                let mut inst =
                    self.inst(Op::CpAsyncMbarArrive { noinc: i.has("noinc"), space: self.space(i), a64: addr.a64 });
                (inst.a, inst.imm) = (addr.slot, addr.offset);
                Ok(inst)
            }
            ["async", "bulk", "commit_group"] => Ok(self.inst(Op::BulkCommit)),
            ["async", "bulk", "wait_group"] => {
                self.only(i, &["async", "bulk", "wait_group", "read"])?;
                let mut inst = self.inst(Op::BulkWait { read: i.has("read") });
                inst.imm = self.immediate(i, 0)?;
                Ok(inst)
            }
            ["async", "bulk", "prefetch"] => Ok(self.inst(Op::Prefetch)),
            ["async", "bulk", "tensor"] | ["reduce", "async", "bulk"] => self.bulk(i),
            ["async", "bulk", _] => self.bulk(i),
            ["async", "ca" | "cg", _] => self.cp_async(i),
            _ => Err(self.unsupported(i)),
        }
    }

    fn cp_async(&mut self, i: &Instr) -> Result<Inst, SimError> {
        self.only(
            i,
            &[
                "async",
                "ca",
                "cg",
                "shared",
                "shared::cta",
                "global",
                "L2::cache_hint",
                "L2::64B",
                "L2::128B",
                "L2::256B",
            ],
        )?;
        let dst_op = self.operand(i, 0)?.clone();
        let dst: Addr = self.address(i, &dst_op)?;
        let src_op = self.operand(i, 1)?.clone();
        let src = self.address(i, &src_op)?;
        let bytes = self.immediate(i, 2)?;
        if !matches!((bytes, i.has("cg")), (16, _) | (4 | 8, false)) {
            return Err(self.invalid(i, format!("cp.async cannot copy {bytes} bytes (.ca: 4, 8 or 16; .cg: 16)")));
        }
        let (mut sized, mut ignore, mut c) = (false, false, 0);
        let hinted = i.has("L2::cache_hint");
        if i.operands.len() > 3 + usize::from(hinted) {
            match self.operand(i, 3)? {
                Operand::Reg(r) if self.declared_ty(*r) == Ty::Pred => {
                    ignore = true;
                    c = self.pred(i, 3)?.0;
                }
                _ => {
                    sized = true;
                    c = self.src(i, 3, Class::W32)?;
                }
            }
        }
        let mut inst = self.inst(Op::CpAsync { bytes: bytes as u8, sized, ignore, a64: dst.a64 });
        (inst.a, inst.imm) = (dst.slot, dst.offset);
        if !src.a64 {
            return Err(self.invalid(i, "the global address must be 64-bit"));
        }
        inst.b = src.slot;
        inst.c = c;
        inst.e = self.constant(Class::W64, src.offset as u64);
        Ok(inst)
    }

    fn bulk(&mut self, i: &Instr) -> Result<Inst, SimError> {
        const WORDS: &[&str] = &[
            "async",
            "bulk",
            "tensor",
            "1d",
            "2d",
            "3d",
            "4d",
            "5d",
            "shared::cluster",
            "shared::cta",
            "global",
            "tile",
            "mbarrier::complete_tx::bytes",
            "multicast::cluster",
            "L2::cache_hint",
            "bulk_group",
            "reduce",
            "add",
            "min",
            "max",
            "and",
            "or",
            "xor",
            "noftz",
        ];
        self.only(i, WORDS)?;
        let spaces: Vec<Space> = i
            .mods
            .iter()
            .filter_map(|m| match m.as_str() {
                "shared::cluster" => Some(Space::SharedCluster),
                "shared::cta" => Some(Space::Shared),
                "global" => Some(Space::Global),
                _ => None,
            })
            .collect();
        let kind = match spaces[..] {
            [Space::SharedCluster | Space::Shared, Space::Global] => BulkKind::GlobalToShared,
            [Space::Global, Space::Shared] => BulkKind::SharedToGlobal,
            [Space::SharedCluster, Space::Shared] => BulkKind::SharedToShared,
            _ => return Err(self.unsupported(i)),
        };
        let dims = i.mods.iter().find_map(|m| m.strip_suffix('d').and_then(|n| n.parse::<u8>().ok())).unwrap_or(0);
        if i.has("tensor") != (1..=5).contains(&dims) {
            return Err(self.invalid(i, "a tensor copy names 1d to 5d"));
        }
        let mbarrier = i.has("mbarrier::complete_tx::bytes");
        if mbarrier == i.has("bulk_group") || mbarrier == (kind == BulkKind::SharedToGlobal) {
            return Err(self.invalid(i, "loads complete on an mbarrier, stores on a bulk group"));
        }
        let reduce = if i.name == "cp" && i.has("reduce") {
            let op = match () {
                () if i.has("add") => AtomOp::Add,
                () if i.has("min") => AtomOp::Min,
                () if i.has("max") => AtomOp::Max,
                () if i.has("and") => AtomOp::And,
                () if i.has("or") => AtomOp::Or,
                () if i.has("xor") => AtomOp::Xor,
                () => return Err(self.unsupported(i)),
            };
            let ty = match (dims, self.ty(i)) {
                (0, Ok(Ty::F32)) => Some(AtomTy::F32),
                (0, Ok(Ty::F16)) => Some(AtomTy::F16),
                (0, Ok(Ty::Bf16)) => Some(AtomTy::Bf16),
                (0, Ok(Ty::U32 | Ty::B32)) => Some(AtomTy::U32),
                (0, Ok(Ty::S32)) => Some(AtomTy::S32),
                (0, Ok(Ty::U64 | Ty::B64)) => Some(AtomTy::U64),
                (0, Ok(Ty::S64)) => Some(AtomTy::S64),
                (0, Ok(Ty::F64)) => Some(AtomTy::F64),
                (0, _) => return Err(self.unsupported(i)),
                _ => None,
            };
            if kind != BulkKind::SharedToGlobal {
                return Err(self.unsupported(i));
            }
            self.global_atomics = true;
            Some(BulkReduce { op, ty })
        } else {
            None
        };

        let mut ops = i.operands.iter();
        let mut next = |b: &Self| ops.next().ok_or_else(|| b.invalid(i, "an operand is missing")).cloned();
        let (shared_op, other_op) = match kind {
            BulkKind::SharedToGlobal => {
                let other = next(self)?;
                (next(self)?, other)
            }
            // The destination comes first; for block-to-block copies the local source is `shared`.
            BulkKind::GlobalToShared => {
                let shared = next(self)?;
                (shared, next(self)?)
            }
            BulkKind::SharedToShared => {
                let other = next(self)?;
                (next(self)?, other)
            }
        };
        let zero64 = self.constant(Class::W64, 0);
        let zero32 = self.constant(Class::W32, 0);
        let mut slots = [zero32; bulk_slot::LEN as usize];
        let mut put = |at: u32, v: u32| slots[at as usize] = v;
        let shared = self.address(i, &shared_op)?;
        put(bulk_slot::SHARED, shared.slot);
        put(bulk_slot::SHARED_OFFSET, self.constant(Class::W64, shared.offset as u64));
        let other = match (&other_op, dims) {
            (Operand::TensorAddr { base, coords }, 1..) => {
                if coords.len() != dims as usize {
                    return Err(self.invalid(i, format!("{dims}d copy with {} coordinates", coords.len())));
                }
                for (k, c) in coords.iter().enumerate() {
                    put(bulk_slot::COORDS + k as u32, self.source(i, c, Class::W32, None)?);
                }
                self.address(i, base)?
            }
            (_, 0) => self.address(i, &other_op)?,
            _ => return Err(self.invalid(i, "expected [tensorMap, {coordinates}]")),
        };
        let (other_slot, other_offset) = if other.param {
            let at = crate::sim::memory::addr::PARAM_WINDOW.wrapping_add_signed(other.offset);
            (self.constant(Class::W64, at), 0)
        } else {
            (other.slot, other.offset)
        };
        put(bulk_slot::OTHER, other_slot);
        put(bulk_slot::OTHER_OFFSET, self.constant(Class::W64, other_offset as u64));
        if dims == 0 {
            let size = next(self)?;
            put(bulk_slot::SIZE, self.source(i, &size, Class::W32, None)?);
        }
        let mut b64 = true;
        put(bulk_slot::BARRIER, zero64);
        put(bulk_slot::BARRIER_OFFSET, zero64);
        if mbarrier {
            let bar_op = next(self)?;
            let bar = self.address(i, &bar_op)?;
            put(bulk_slot::BARRIER, bar.slot);
            put(bulk_slot::BARRIER_OFFSET, self.constant(Class::W64, bar.offset as u64));
            b64 = bar.a64;
        }
        let multicast = i.has("multicast::cluster");
        if multicast {
            let mask = next(self)?;
            put(bulk_slot::MASK, self.source(i, &mask, Class::W32, None)?);
        }
        let op =
            BulkOp { kind, dims, mbarrier, multicast, reduce, s64: shared.a64, g64: other.a64, b64, s_generic: false };
        let mut inst = self.inst(Op::Bulk(op));
        inst.e = self.push_pool(&slots);
        Ok(inst)
    }
}
