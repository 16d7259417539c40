//! Blocks of the grid by a counter in device memory: whoever is done takes the next one.
//!
//! Blocks of unequal length, as those of causal attention are, leave multiprocessors without work at the end if each has
//! its share from the start. The thread that feeds the rings fetches the numbers, one block ahead, and passes them on
//! through shared memory. The fetch that is the last of a launch sets the counter back.

use super::super::{Lowerer, Result};
use super::{MBARRIER, Rings, Role};
use crate::ptx::simt::{
    Addr, AtomOp, Bin, Cache, Cmp, MemTy, Num, ObjData, ObjKind, ParamSlot, ShflMode, SimtOp, Space, Special, Ty, Val,
    Var,
};
use smallvec::smallvec;

/// Numbers on their way.
pub const SLOTS: usize = 2;

/// Their bytes.
pub const BYTES: usize = 4 * SLOTS;

impl Lowerer<'_> {
    /// Runs `body` for numbers below `total` as the counter deals them out.
    pub(super) fn dealt_blocks(
        &mut self,
        rings: &Rings,
        role: Role,
        total: Val,
        body: &mut dyn FnMut(&mut Self, Val) -> Result,
    ) -> Result {
        let number = self.b.new_var(Ty::B32);
        let first = self.b.special(Special::CtaX);
        self.b.set(number, first);
        let before = self.b.open(true);
        match role {
            Role::Copies => self.pass_on(rings, number),
            Role::Multiplies => self.take_over(rings, number),
        }
        let now = self.b.get(number);
        let cond = self.b.setp(Cmp::Lt, Num::S32, now, total);
        self.b.close();
        let inside = self.b.open(true);
        self.turns_are_blocks();
        let now = self.b.get(number);
        let next = (role == Role::Copies).then(|| self.fetch(total));
        body(self, now)?;
        if let Some(next) = next {
            self.b.set(number, next);
        }
        self.b.close();
        self.b.push(SimtOp::While { before, cond, uniform: true, body: inside });
        Ok(())
    }

    /// The next number from the counter.
    fn fetch(&mut self, total: Val) -> Val {
        let slot = self.b.kernel.params.iter().position(|p| matches!(p, ParamSlot::Counter { .. }));
        let base = self.b.param(Ty::B64, slot.expect("the parameter list has what the plan adds") as u32);
        let span = self.b.span();
        let home = self.b.kernel.body;
        let kind = ObjKind::Global { read_only: false };
        let obj = self.b.new_obj(ObjData {
            name: "counter of blocks".into(),
            kind,
            span,
            managed: true,
            home,
            split: Vec::new(),
        });
        let addr = Addr { base, offset: 0, obj };
        let (one, zero) = (self.b.c32(1), self.b.c32(0));
        let fetched = self.b.atom(AtomOp::Add, Num::U32, Space::Global, addr, one, None);
        // Each block that runs fetches one number: the last fetch finds all others counted.
        let rest = self.b.bin(Bin::Sub, Num::S32, total, one);
        let last = self.b.setp(Cmp::Eq, Num::S32, fetched, rest);
        self.b.atom(AtomOp::And, Num::B32, Space::Global, addr, zero, Some(last));
        let blocks = self.b.special(Special::GridX);
        self.b.add(Num::S32, fetched, blocks)
    }

    /// Where the number of a slot stands.
    fn number_at(&mut self, rings: &Rings, slot: Val) -> Addr {
        let (base, size) = (self.b.shared_addr(rings.barriers), self.b.c32(4));
        let base = self.b.mad(Num::S32, slot, size, base);
        let barriers = rings.at.last().map_or(0, |at| at.first + 2 * at.stages);
        Addr { base, offset: (MBARRIER * barriers) as i32, obj: rings.barriers }
    }

    fn pass_on(&mut self, rings: &Rings, number: Var) {
        let ring = rings.at.len() - 1;
        let (slot, parity) = (self.b.get(rings.at[ring].slot), self.b.get(rings.at[ring].parity));
        let empty = self.barrier_at(rings, ring, slot, true);
        self.b.push(SimtOp::MbarWait { addr: empty, parity });
        let (addr, now) = (self.number_at(rings, slot), self.b.get(number));
        self.b.st(Space::Shared, MemTy::B32, addr, smallvec![now], None);
        let full = self.barrier_at(rings, ring, slot, false);
        self.b.push(SimtOp::MbarArrive { addr: full, guard: None });
        self.advance(rings, ring, slot, parity);
    }

    fn take_over(&mut self, rings: &Rings, number: Var) {
        let ring = rings.at.len() - 1;
        let (slot, parity) = (self.b.get(rings.at[ring].slot), self.b.get(rings.at[ring].parity));
        let full = self.barrier_at(rings, ring, slot, false);
        self.b.push(SimtOp::MbarWait { addr: full, parity });
        let addr = self.number_at(rings, slot);
        // The first lane reads, which gives the slot back; the shuffle also tells the assembler that a warp agrees.
        let (lane, zero) = (self.b.special(Special::LaneId), self.b.c32(0));
        let first = self.b.setp(Cmp::Eq, Num::S32, lane, zero);
        let now = self.b.ld(Space::Shared, MemTy::B32, Cache::Default, addr, 1, Some(first))[0];
        let now = self.b.shfl(ShflMode::Idx, now, zero, 31);
        self.b.set(number, now);
        self.give_back(rings, ring);
    }
}
