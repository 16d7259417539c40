//! Kernels on Hopper's own units: one warpgroup feeds rings of shared tiles with tensor copies, the others multiply them
//! with `wgmma` and run everything else.
//!
//! Every block takes several blocks of the author's grid, one after another, so that the first copies of the next run
//! during the last stores of the one before. Slots of the rings change hands through mbarriers: `full` counts the bytes of
//! the copies, `empty` the warps that have finished reading. The parity of a slot's use is carried across blocks.

mod ahead;
mod cluster;
mod consumer;
mod deal;
mod made;
mod mixed;
pub mod plan;
mod producer;
mod runs;
mod store;
mod teams;
mod turn;

use super::index::{self, Idx};
use super::value::Scalar;
use super::{Lowerer, Result};
use crate::ptx::simt::{
    Addr, Bin, Cmp, GridPlan, MapSpec, Num, Obj, ObjData, ObjKind, ParamSlot, Roles, ShflMode, SimtOp, Special, Ty,
    Val, Var,
};
use plan::{HopperPlan, RingKind, WARPGROUP};
use std::rc::Rc;
use zellige_ir::{BlockOrder, EntityId, Func, Param};

/// Bytes of an mbarrier.
const MBARRIER: usize = 8;

/// Registers of a thread of the feeding warpgroup, and of one that multiplies, by the number of the latter. They add up to
/// what a multiprocessor has. One warpgroup alone may use 255 without asking.
const REGISTERS: [Option<(u32, u32)>; 4] = [None, None, Some((40, 232)), Some((32, 160))];

/// The same for loops that work between products, which keep more in registers.
const MIXED_REGISTERS: [Option<(u32, u32)>; 4] = [None, None, Some((24, 240)), Some((32, 160))];

/// Loads whose places a thread keeps in as few registers as loops that work between products leave it.
const FEW_LOADS: usize = 3;

/// Bytes that a panel may keep in the L2 cache, which has 50 MB.
const CACHED_BYTES: usize = 32 << 20;

/// Rows of the panels in which blocks of a grid are taken if the author says nothing. What runs at once is then about as
/// high as it is wide (132 blocks of 128 x 256 are 2048 x 2112), and fetches the least from the L2 cache and beyond.
const PANEL_ROWS: usize = 2048;

/// The rings and their barriers in shared memory.
#[derive(Clone, Debug)]
pub(super) struct Rings {
    pub plan: Rc<HopperPlan>,
    /// One for each load.
    pub tiles: Vec<Obj>,
    pub barriers: Obj,
    /// Boxes of accumulators on their way to tensors.
    pub staging: Obj,
    /// Set if blocks of a cluster share the iterations of the loop.
    pub handover: Option<runs::Handover>,
    /// Set if several teams take the blocks in turns.
    pub teams: Option<teams::Teams>,
    /// Positions in the rings. Each role has its own.
    pub at: Vec<Position>,
}

/// A role's position in a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// The slot, and the parity of its use.
    pub slot: Var,
    pub parity: Var,
    /// Slots of the ring.
    stages: usize,
    /// Number of the ring's first barrier: the `full` ones, then the `empty` ones.
    first: usize,
}

/// What a warp does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Copies,
    Multiplies,
}

/// The role that is being lowered, where it is the one that multiplies.
#[derive(Debug)]
pub(super) struct HopperRole {
    rings: Rings,
    /// Number of the thread's warpgroup among those of its block of the grid.
    group: Val,
    /// Number of its team, which is that of its warpgroup where there are several.
    team: Val,
    /// The slot whose products were started last.
    previous: Var,
}

/// What the plan adds to the parameter list.
pub(super) fn map_slots(func: &Func, plan: &HopperPlan) -> Vec<ParamSlot> {
    let loads = plan.copies().map(|l| (l.param, l.dtype, l.is_tf32(), &l.tile, l.swizzle));
    let stores = plan.stores.iter().map(|s| (s.param, s.dtype, false, &s.tile, s.swizzle));
    let mut slots: Vec<ParamSlot> = Vec::new();
    for (param, dtype, tf32, tile, swizzle) in loads.chain(stores) {
        let name = match &func.params[param as usize] {
            Param::Tensor { buffer, .. } => &func.buffers[*buffer].name,
            Param::Scalar { name, .. } => name,
        };
        let map = MapSpec { dtype, tf32, tile: tile.clone(), swizzle: swizzle.atom_bytes() as u32 };
        let slot = ParamSlot::TensorMap { param, name: format!("{name}_map"), map };
        if !slots.contains(&slot) {
            slots.push(slot);
        }
    }
    if plan.is_dealt() {
        slots.push(ParamSlot::Counter { name: "blocks".into() });
    }
    slots
}

fn registers(plan: &HopperPlan) -> Option<(u32, u32)> {
    let few_loads = plan.copies().count() <= FEW_LOADS;
    if plan.mixed.is_some() && few_loads { MIXED_REGISTERS[plan.groups()] } else { REGISTERS[plan.groups()] }
}

impl Lowerer<'_> {
    /// Lowers the whole function under a plan.
    pub(super) fn specialised(&mut self, plan: Rc<HopperPlan>) -> Result {
        let func = self.func;
        let consumers = plan.groups() * WARPGROUP;
        self.b.kernel.threads = (consumers + WARPGROUP) as u32;
        self.b.kernel.roles = Roles::Specialised { consumers: consumers as u32 };
        self.b.kernel.grid = if plan.spread() > 1 { GridPlan::Spread } else { GridPlan::Persistent };
        self.explain_plan(&plan);
        self.b.kernel.cluster = (plan.sharing() * plan.spread()) as u32;
        self.params();
        self.region(func.prelude)?;

        let rings = self.rings(&plan);
        self.init_barriers(&rings);
        self.wait_for_launch();
        let group = self.warpgroup();
        let feeds = {
            let n = self.b.c32(plan.groups() as i64);
            self.b.setp(Cmp::Eq, Num::S32, group, n)
        };
        let registers = registers(&plan);
        let then_body = self.b.open(false);
        if let Some((few, _)) = registers {
            self.b.push(SimtOp::SetRegs { grow: false, count: few });
        }
        self.produce(&rings)?;
        self.b.close();
        let else_body = self.b.open(false);
        if let Some((_, many)) = registers {
            self.b.push(SimtOp::SetRegs { grow: true, count: many });
        }
        self.consume(&rings, group)?;
        self.b.close();
        self.b.push(SimtOp::If { cond: feeds, uniform: true, then_body, else_body });
        if self.b.kernel.cluster > 1 {
            // A block may not end before the others have stopped writing its tiles and barriers.
            self.b.push(SimtOp::ClusterSync {});
        }
        Ok(())
    }

    fn explain_plan(&mut self, plan: &HopperPlan) {
        let at = self.span(plan.loop_op);
        let bytes: usize = plan.loads.iter().map(|l| l.slot_bytes() * plan.rings[l.ring].stages).sum();
        self.explain.push(format!(
            "hopper: the loop at {at} runs on wgmma and tensor copies: {} warpgroups multiply, one copies into rings of {} \
             slots, {bytes} bytes",
            plan.groups(),
            plan.stages
        ));
        if plan.teams > 1 {
            let teams = plan.teams;
            self.explain.push(format!(
                "hopper: ping-pong: {teams} warpgroups take blocks in turns: one multiplies, another stores"
            ));
        }
        if let Some(why) = &plan.no_teams {
            self.explain.push(format!("hopper: no ping-pong: {why}"));
        }
        for p in &plan.products {
            let [m, n, k] = p.shape;
            let [gm, gn] = p.warpgroups;
            let at = self.span(p.op);
            self.explain.push(format!(
                "hopper: the gemm at {at}, {m} x {n} x {k}, by instructions of 64 x {} x {} in {gm} x {gn} warpgroups{}{}{}",
                p.inst_n,
                p.ty.k(),
                if p.copies > 1 { ", each alike" } else { "" },
                if matches!(p.a, plan::OperandA::Registers(_)) { "; its first operand stays in registers" } else { "" },
                if p.clear.is_some() { "; the first one clears the accumulator" } else { "" }
            ));
        }
        if plan.takes_turns() {
            self.explain.push(
                "hopper: the warpgroups take turns: one multiplies while the other works between products".into(),
            );
        }
        if let Some(p) = plan.mixed.as_ref().and_then(|m| m.carried) {
            let at = self.span(plan.products[p].op);
            self.explain.push(format!(
                "hopper: the gemm at {at} runs during the next iteration, beside the work on that one's first products"
            ));
        }
        if let Some(p) = plan.lasting() {
            let at = self.span(plan.products[p].op);
            self.explain.push(format!("hopper: the gemm at {at} goes on while the next iteration begins"));
        }
        if let Some((few, many)) = registers(plan) {
            self.explain.push(format!("hopper: {few} registers a thread that copies, {many} one that multiplies"));
        }
        for s in &plan.stores {
            let at = self.span(s.op);
            self.explain.push(format!("hopper: the copy at {at} goes through boxes of 64 x {} elements", s.box_cols()));
        }
        if plan.sharing() > 1 {
            let shared = plan.loads.iter().filter(|l| l.shared.is_some());
            let shared = shared.map(|l| self.name(l.buffer)).collect::<Vec<_>>().join(", ");
            let blocks = match plan.cluster {
                [n, 1] => format!("{n} blocks along axis 0"),
                [1, n] => format!("{n} blocks along axis 1"),
                [x, y] => format!("{x} x {y} blocks"),
            };
            self.explain
                .push(format!("hopper: clusters of {blocks} of the grid, each fetches its part of {shared} for all"));
        }
        if let Some(r) = plan.runs {
            let how = if r.spread { "each by another block of a cluster" } else { "one after another" };
            self.explain
                .push(format!("hopper: products are added up in {} runs of {} iterations, {how}", r.count, r.length));
        }
        let order = if plan.is_dealt() { "whichever block of the grid is next" } else { "blocks of the grid in turn" };
        self.explain.push(format!("hopper: persistent: a block takes {order}"));
    }

    fn rings(&mut self, plan: &Rc<HopperPlan>) -> Rings {
        let home = self.b.block();
        let span = self.span(plan.loop_op);
        let shared = |name: String, bytes: usize, align: u32| ObjData {
            name,
            kind: ObjKind::Shared { bytes: bytes as u32, align, offset: None },
            span: span.clone(),
            managed: true,
            home,
            split: Vec::new(),
        };
        let mut tiles = Vec::new();
        for l in &plan.loads {
            let stages = plan.rings[l.ring].stages;
            let name = format!("ring of {stages} for shared {}", self.name(l.buffer));
            tiles.push(self.b.new_obj(shared(name, l.slot_bytes() * stages, 1024)));
        }
        let (mut at, mut first) = (Vec::new(), 0);
        for ring in &plan.rings {
            let (slot, parity) = (self.b.new_var(Ty::B32), self.b.new_var(Ty::B32));
            at.push(Position { slot, parity, stages: ring.stages, first });
            first += if ring.kind == RingKind::Made { 0 } else { 2 * ring.stages };
        }
        if plan.is_dealt() {
            let (slot, parity) = (self.b.new_var(Ty::B32), self.b.new_var(Ty::B32));
            at.push(Position { slot, parity, stages: deal::SLOTS, first });
            first += 2 * deal::SLOTS;
        }
        let handover = (plan.spread() > 1).then(|| {
            let parts = self.b.new_obj(shared("sums of other blocks".into(), plan.parts_bytes(), 16));
            let parity = self.b.new_var(Ty::B32);
            first += runs::BARRIERS;
            runs::Handover { parts, first: first - runs::BARRIERS, parity }
        });
        let teams = (plan.teams > 1).then(|| {
            let [parity, skipped] = [(); 2].map(|()| self.b.new_var(Ty::B32));
            first += plan.teams;
            teams::Teams { first: first - plan.teams, parity, skipped }
        });
        // Numbers of blocks on their way between roles stand behind the barriers.
        let bytes = MBARRIER * first + if plan.is_dealt() { deal::BYTES } else { 0 };
        let barriers = self.b.new_obj(shared("barriers of the rings".into(), bytes, 16));
        let staging = self.b.new_obj(shared("boxes of accumulators".into(), plan.staging_bytes(), 1024));
        Rings { plan: plan.clone(), tiles, barriers, staging, handover, teams, at }
    }

    /// One thread makes the barriers; all others wait until they can be used.
    fn init_barriers(&mut self, rings: &Rings) {
        let first = self.first_thread();
        let base = self.b.shared_addr(rings.barriers);
        let warps = rings.plan.team_warps() as u32;
        let then_body = self.b.open(false);
        // They arrive while the barriers are made.
        let loads = rings.plan.copies().map(|l| (l.param, &l.tile));
        let mut maps: Vec<Val> = Vec::new();
        for (param, tile) in loads.chain(rings.plan.stores.iter().map(|s| (s.param, &s.tile))) {
            let map = self.map_address(param, tile);
            if !maps.contains(&map) {
                maps.push(map);
                self.b.push(SimtOp::MapPrefetch { map });
            }
        }
        let made = |number: usize| rings.plan.rings.get(number).is_some_and(|r| r.kind == RingKind::Made);
        for (number, ring) in rings.at.iter().enumerate().filter(|(number, _)| !made(*number)) {
            // All blocks that fill a slot must have been told that all who read it are done.
            let readers = warps * rings.plan.fillers(number) as u32;
            for s in 0..ring.stages {
                for (at, count) in [(ring.first + s, 1), (ring.first + ring.stages + s, readers)] {
                    let addr = Addr { base, offset: (MBARRIER * at) as i32, obj: rings.barriers };
                    self.b.push(SimtOp::MbarInit { addr, count });
                }
            }
        }
        self.init_handover(rings);
        self.init_teams(rings);
        self.b.push(SimtOp::MbarFence {});
        self.b.close();
        let (else_body, ()) = self.b.in_block(false, |_| ());
        self.b.push(SimtOp::If { cond: first, uniform: false, then_body, else_body });
        if self.b.kernel.cluster > 1 {
            self.b.push(SimtOp::ClusterSync {});
        } else {
            let (id, threads) = (self.b.c32(0), self.b.kernel.threads);
            self.b.push(SimtOp::BarPart { id, threads });
        }
    }

    /// The warpgroup's number, from the first lane so that the assembler knows that a warp agrees on it.
    fn warpgroup(&mut self) -> Val {
        let tid = self.b.special(Special::Tid);
        let by = self.b.c32(WARPGROUP.trailing_zeros().into());
        let group = self.b.bin(Bin::Shr, Num::U32, tid, by);
        let zero = self.b.c32(0);
        self.b.shfl(ShflMode::Idx, group, zero, 31)
    }

    /// The map of a tensor parameter in boxes of these extents.
    fn map_address(&mut self, param: u32, tile: &[u32]) -> Val {
        let slot =
            self.b.kernel.params.iter().position(
                |p| matches!(p, ParamSlot::TensorMap { param: q, map, .. } if *q == param && map.tile == tile),
            );
        self.b.param_addr(slot.expect("the parameter list has the plan's maps") as u32)
    }

    /// Runs `body` for the blocks of the grid that fall to this block.
    fn blocks(&mut self, rings: &Rings, role: Role, body: &mut dyn FnMut(&mut Self) -> Result) -> Result {
        let func = self.func;
        let plan: &HopperPlan = &rings.plan;
        let mut extents = Vec::new();
        for &g in &func.grid {
            extents.push(match (self.env[g.index()], func.as_index(g)) {
                (Some(Scalar::Idx(i)), _) => i,
                (_, Some(c)) => Idx::constant(c),
                (Some(Scalar::Reg(_)) | None, None) => Idx::constant(1),
            });
        }
        // The launcher sees to it that blocks are counted in 31 bits.
        let extents: Vec<Idx> = extents.into_iter().map(|e| self.narrow(e)).collect();
        // Blocks of a cluster take neighbours. The last may find itself outside of the grid: the plan has seen that nothing
        // comes of it.
        let mut extents = extents;
        for (extent, &n) in extents.iter_mut().zip(&plan.cluster).filter(|(_, n)| **n > 1) {
            let clusters = index::ceil_div(&mut self.b, *extent, Idx::constant(n as i64));
            *extent = self.narrow(clusters);
        }
        let mut total = self.b.c32(1);
        for &e in &extents {
            let e = index::to_val(&mut self.b, e, Ty::B32);
            total = self.b.mul(Num::S32, total, e);
        }
        let (mut first, mut step) = (self.b.special(Special::CtaX), self.b.special(Special::GridX));
        let together = i64::from(self.b.kernel.cluster);
        if together > 1 {
            let by = self.b.c32(together);
            [first, step] = [first, step].map(|v| self.b.bin(Bin::Div, Num::U32, v, by));
        }
        if plan.is_dealt() {
            return self.dealt_blocks(rings, role, total, &mut |l, number| l.at_block(plan, &extents, number, body));
        }
        if let (Role::Multiplies, Some(role)) = (role, self.hopper.clone()) {
            (first, step) = self.team_blocks(&role, first, step);
        }
        let v = self.b.begin_for(Ty::B32);
        self.turns_are_blocks();
        self.at_block(plan, &extents, v, body)?;
        self.b.end_for(v, first, total, step, true);
        Ok(())
    }

    /// Tells barrier insertion that each turn of the loop being lowered is a block of the author's grid: blocks run in any
    /// order, so what one writes to a tensor no other one may touch.
    pub(super) fn turns_are_blocks(&mut self) {
        let body = self.b.block();
        for obj in self.b.kernel.objs.ids().collect::<Vec<_>>() {
            let data = &mut self.b.kernel.objs[obj];
            if matches!(data.kind, ObjKind::Global { .. }) {
                data.split.push(body);
            }
        }
    }

    /// Runs `body` for the block of a number; blocks of a cluster have one number.
    fn at_block(
        &mut self,
        plan: &HopperPlan,
        extents: &[Idx],
        number: Val,
        body: &mut dyn FnMut(&mut Self) -> Result,
    ) -> Result {
        let func = self.func;
        let linear = Idx::new(number, 0, i64::from(i32::MAX), 1);
        let rows = plan.products.iter().map(|p| p.shape[0]).max().unwrap_or(1);
        let height = match func.block_order {
            BlockOrder::Panel(h) => i64::from(h),
            BlockOrder::RowMajor => (PANEL_ROWS / (rows * plan.cluster[1])) as i64,
        };
        let mut height = Idx::constant(height.max(1));
        if plan.is_dealt() && func.block_order == BlockOrder::RowMajor {
            height = self.cached_height(plan, height, extents);
        }
        let mut ids = self.block_of(linear, extents, height);
        for axis in (0..2).filter(|&axis| plan.cluster[axis] > 1) {
            let n = plan.cluster[axis] as i64;
            let x = index::mul(&mut self.b, ids[axis], Idx::constant(n));
            let mine = self.rank_along(plan, axis);
            ids[axis] = index::add(&mut self.b, x, Idx::new(mine, 0, n - 1, 1));
        }
        for (&id, at) in func.block_ids.iter().zip(ids) {
            self.env[id.index()] = Some(Scalar::Idx(at));
        }
        body(self)
    }

    /// The block's number in its cluster along an axis of the grid; the first axis is the faster one.
    fn rank_along(&mut self, plan: &HopperPlan, axis: usize) -> Val {
        let rank = self.b.special(Special::ClusterRank);
        let n = self.b.c32(plan.cluster[0] as i64);
        match (axis, plan.cluster) {
            (0, [_, 1]) | (1, [1, _]) => rank,
            (0, _) => self.b.bin(Bin::Rem, Num::U32, rank, n),
            _ => self.b.bin(Bin::Div, Num::U32, rank, n),
        }
    }

    /// Rows of a panel, at most `most`, such that what the loop reads for them stays in the L2 cache while the panel runs, if
    /// a row reads about as much as it has blocks.
    fn cached_height(&mut self, plan: &HopperPlan, most: Idx, extents: &[Idx]) -> Idx {
        let rows = plan.products.iter().map(|p| p.shape[0]).max().unwrap_or(1);
        let streamed = plan.loads.iter().filter(|l| plan.rings[l.ring].kind == RingKind::Streamed);
        let bytes: usize = streamed.map(|l| l.cols * l.dtype.bits() / 8 * rows).sum();
        let Some(&blocks) = extents.first() else { return most };
        let b = &mut self.b;
        let blocks = index::min(b, blocks, Idx::constant(CACHED_BYTES as i64));
        let fits = index::div(b, Idx::constant((CACHED_BYTES / bytes.max(1)) as i64), blocks);
        let fits = index::min(b, fits, most);
        let fits = index::max(b, fits, Idx::constant(1));
        Idx { lo: 1, hi: most.hi, ..fits }
    }

    fn narrow(&mut self, e: Idx) -> Idx {
        match e.as_const() {
            Some(_) => e,
            None => {
                let v = index::to_val(&mut self.b, e, Ty::B32);
                Idx::new(v, 1, e.hi.clamp(1, i64::from(i32::MAX)), 1)
            }
        }
    }

    /// Coordinates of a block by its number: panels along the second axis, the first axis fastest for any further ones.
    fn block_of(&mut self, linear: Idx, extents: &[Idx], height: Idx) -> Vec<Idx> {
        match *extents {
            [] => Vec::new(),
            [_] => vec![linear],
            [gx, gy] => {
                let (x, y) = self.panel_at(linear, gx, gy, height);
                vec![x, y]
            }
            [gx, gy, ..] => {
                let plane = index::mul(&mut self.b, gx, gy);
                let plane = self.narrow(plane);
                let z = index::div(&mut self.b, linear, plane);
                let rest = index::rem(&mut self.b, linear, plane);
                let (x, y) = self.panel_at(rest, gx, gy, height);
                vec![x, y, z]
            }
        }
    }

    /// Address of a slot's barrier; `empty` ones stand behind the `full` ones.
    fn barrier_at(&mut self, rings: &Rings, ring: usize, slot: Val, empty: bool) -> Addr {
        let base = self.b.shared_addr(rings.barriers);
        let size = self.b.c32(MBARRIER as i64);
        let at = self.b.mad(Num::S32, slot, size, base);
        let Position { first, stages, .. } = rings.at[ring];
        let offset = MBARRIER * (first + if empty { stages } else { 0 });
        Addr { base: at, offset: offset as i32, obj: rings.barriers }
    }

    /// Starts at slots 0. `parity` is that of the phase waited for first.
    fn start_rings(&mut self, rings: &Rings, parity: i64) {
        let (zero, parity) = (self.b.c32(0), self.b.c32(parity));
        for at in &rings.at {
            self.b.set(at.slot, zero);
            self.b.set(at.parity, parity);
        }
    }

    /// The position after this one.
    fn next(&mut self, rings: &Rings, ring: usize, slot: Val, parity: Val) -> (Val, Val) {
        let b = &mut self.b;
        let stages = rings.at[ring].stages;
        let (one, zero, limit) = (b.c32(1), b.c32(0), b.c32(stages as i64));
        let flipped = b.bin(Bin::Xor, Num::B32, parity, one);
        if stages == 1 {
            return (zero, flipped);
        }
        let next = b.add(Num::S32, slot, one);
        let wraps = b.setp(Cmp::Eq, Num::S32, next, limit);
        (b.selp(wraps, zero, next), b.selp(wraps, flipped, parity))
    }

    /// The slot before one.
    fn previous_slot(&mut self, rings: &Rings, ring: usize, slot: Val) -> Val {
        let b = &mut self.b;
        let (one, zero, last) = (b.c32(1), b.c32(0), b.c32(rings.at[ring].stages as i64 - 1));
        let (before, first) = (b.bin(Bin::Sub, Num::S32, slot, one), b.setp(Cmp::Eq, Num::S32, slot, zero));
        b.selp(first, last, before)
    }

    /// Moves on to the next slot.
    fn advance(&mut self, rings: &Rings, ring: usize, slot: Val, parity: Val) {
        let (next, flipped) = self.next(rings, ring, slot, parity);
        self.b.set(rings.at[ring].slot, next);
        self.b.set(rings.at[ring].parity, flipped);
    }
}
