//! Whether a kernel's pipelined loop can run on Hopper's own units, and how its work is cut for them.
//!
//! The pattern: a loop that copies whole tiles from tensors to shared memory and multiplies them into accumulators, with
//! nothing but scalars besides. Everything around the loop is free. A kernel that does not fit is told why, and runs on
//! the units of sm_80.

use super::super::infer::{SharedForm, is_whole};
use super::mixed::{self, Found};
use super::runs::Runs;
use super::store::BOXES;
use crate::ptx::simt::WgmmaTy;
use crate::ptx::target::{Arch, Target};
use zellige_ir::layout::instances::Swizzle;
use zellige_ir::layout::instances::wgmma::{self, Major, SharedOperand};
use zellige_ir::layout::{FragmentLayout, LayoutError};
use zellige_ir::{Access, Buffer, DType, Effect, Func, GemmPrecision, Op, OpKind, Param, Region, Scope, Visit, Window};

/// Threads of a warpgroup.
pub const WARPGROUP: usize = 128;

/// Accumulator registers that leave a thread room for everything else, by the warpgroups that multiply.
pub(super) const MAX_ACCUMULATORS: [usize; 4] = [0, 208, 224, 128];

/// Columns from which on a product by a fragment in tf32 runs on these units. Below, its block waits for what it fetches, and several
/// blocks to a multiprocessor hide that better than one.
const MIN_TF32_COLUMNS: usize = 64;

/// Extent limit of a box of a tensor map.
const MAX_BOX: usize = 256;

/// How a kernel runs on Hopper's units.
#[derive(Clone, Debug)]
pub struct HopperPlan {
    /// The loop whose copies and products run asynchronously.
    pub loop_op: Op,
    pub stages: usize,
    /// Warpgroups that multiply for a block of the grid.
    pub consumers: usize,
    /// Sets of as many warpgroups, which take the blocks of the grid in turns. One more warpgroup feeds them all.
    pub teams: usize,
    /// Why there is one team only, if the author wants more.
    pub no_teams: Option<String>,
    /// Neighbours along the first two axes of the grid that fetch tiles for each other.
    pub cluster: [usize; 2],
    pub loads: Vec<Load>,
    pub products: Vec<Product>,
    pub stores: Vec<Store>,
    /// Slots that change hands together.
    pub rings: Vec<Ring>,
    /// Set if the loop does more than copy and multiply.
    pub mixed: Option<Mixed>,
    /// Set if products are added up in runs of iterations.
    pub runs: Option<Runs>,
}

/// Slots of shared tiles that the loads of one ring fill together and products give back together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ring {
    /// Slots.
    pub stages: usize,
    pub kind: RingKind,
}

/// Who fills a ring's slots, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingKind {
    /// Tensor copies, in every iteration.
    Streamed,
    /// Tensor copies, once before the loop.
    Once,
    /// The warpgroups that multiply, in every iteration.
    Made,
}

/// What a loop needs that works on its products between them.
#[derive(Clone, Debug)]
pub struct Mixed {
    /// Position in [`HopperPlan::products`] of the product that ends an iteration and is started during the next one.
    pub carried: Option<usize>,
    /// Position of the product that ends an iteration and is waited for during the next one only.
    pub lasting: Option<usize>,
    /// Blocks of the grid are dealt out by a counter, not in turn: they are not equally long.
    pub dealt: bool,
}

impl HopperPlan {
    /// Bytes of a box of accumulators on its way to a tensor.
    pub fn box_bytes(&self) -> usize {
        self.stores.iter().map(|s| wgmma::M * s.swizzle.atom_bytes()).max().unwrap_or(0)
    }

    /// Bytes of all boxes of accumulators.
    pub fn staging_bytes(&self) -> usize {
        self.groups() * BOXES * self.box_bytes()
    }

    /// Warpgroups that multiply.
    pub fn groups(&self) -> usize {
        self.consumers * self.teams
    }
}

/// A copy of an accumulator, or of a fragment that lies like one, to a tensor.
#[derive(Clone, Debug)]
pub struct Store {
    pub op: Op,
    /// The fragment.
    pub src: Buffer,
    /// Position of the tensor among the parameters.
    pub param: u32,
    pub dtype: DType,
    /// Position in [`HopperPlan::products`] of the product whose accumulator lies in the same way.
    pub product: usize,
    pub swizzle: Swizzle,
    /// Extents of a box along the tensor's axes, innermost first.
    pub tile: Vec<u32>,
}

impl Store {
    /// Columns of a box.
    pub fn box_cols(&self) -> usize {
        self.swizzle.atom_bytes() * 8 / self.dtype.bits()
    }
}

/// What fills a ring of shared tiles: a copy from a tensor, or work of the loop.
#[derive(Clone, Debug)]
pub struct Load {
    /// The copy, or the first op of the work.
    pub op: Op,
    /// Position of the tensor among the parameters.
    pub param: u32,
    pub dtype: DType,
    /// The shared tile.
    pub buffer: Buffer,
    /// Extents of the tile as the tensor has it: rows, and elements that lie together.
    pub rows: usize,
    pub cols: usize,
    /// The author's tile has these axes the other way round.
    pub turned: bool,
    pub swizzle: Swizzle,
    /// Extents of a box along the tensor's axes, innermost first; of elements narrower than a byte, in bytes.
    pub tile: Vec<u32>,
    /// The blocks of a cluster along this axis want the same tile: each fetches a part for all.
    pub shared: Option<usize>,
    /// Position in [`HopperPlan::rings`].
    pub ring: usize,
    /// How the tile lies if the loop's work fills it: there is no tensor, box or sharing then.
    pub made: Option<SharedForm>,
}

impl Load {
    /// The tensor's axis along which the tile's rows follow each other; `src` is the window that is copied.
    pub fn row_axis(&self, src: &Window) -> usize {
        usize::from(src.axes[usize::from(self.turned)].axis)
    }

    /// True if the copy rounds to tf32: what products take of f32.
    pub fn is_tf32(&self) -> bool {
        self.dtype == DType::F32
    }

    /// Boxes of a tile, side by side.
    pub fn boxes(&self) -> usize {
        self.cols / self.box_cols()
    }

    /// Elements of a box that lie together.
    pub fn box_cols(&self) -> usize {
        self.swizzle.atom_bytes() * 8 / self.dtype.bits()
    }

    pub fn box_bytes(&self) -> usize {
        self.rows * self.swizzle.atom_bytes()
    }

    /// Bytes of a tile.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.bits() / 8
    }

    /// Bytes from one slot of the ring to the next.
    pub fn slot_bytes(&self) -> usize {
        self.bytes().next_multiple_of(1024)
    }
}

/// A gemm of the loop.
#[derive(Clone, Debug)]
pub struct Product {
    pub op: Op,
    pub acc: Buffer,
    pub ty: WgmmaTy,
    /// Extents m, n, k of the product.
    pub shape: [usize; 3],
    /// Where the product begins along k in the tiles of its first and its second operand.
    pub from_k: [usize; 2],
    /// Columns of one instruction.
    pub inst_n: usize,
    /// Warpgroups along m and n.
    pub warpgroups: [usize; 2],
    /// Warpgroups that compute the same.
    pub copies: usize,
    pub a: OperandA,
    /// Position in [`HopperPlan::loads`].
    pub b: usize,
    pub operand_b: SharedOperand,
    /// The op that clears the accumulator right before the loop (in a mixed loop: in every iteration): the first product
    /// does that instead.
    pub clear: Option<Op>,
}

/// Where the first operand of a product is.
#[derive(Clone, Debug)]
pub enum OperandA {
    Tile {
        /// Position in [`HopperPlan::loads`].
        load: usize,
        operand: Box<SharedOperand>,
    },
    /// In a fragment.
    Registers(Buffer),
}

impl Product {
    /// The accumulator's layout.
    pub fn layout(&self) -> Result<FragmentLayout, LayoutError> {
        let shape = [self.shape[0], self.shape[1]];
        if self.copies > 1 {
            return wgmma::copied_accumulator_tile(shape, self.inst_n, self.copies);
        }
        wgmma::accumulator_tile(shape, self.inst_n, self.warpgroups)
    }

    /// The fragment that holds the first operand and its layout, if one does.
    pub fn operand_fragment(&self) -> Option<(Buffer, Result<FragmentLayout, LayoutError>)> {
        let OperandA::Registers(buffer) = self.a else { return None };
        Some((buffer, wgmma::a_tile([self.shape[0], self.shape[2]], self.ty.bits(), self.warpgroups)))
    }

    /// True if a fragment is the first operand.
    pub fn is_operand(&self, fragment: Buffer) -> bool {
        matches!(self.a, OperandA::Registers(own) if own == fragment)
    }

    /// Registers of 32 bits of a thread: accumulators, and the first operand if it is in registers.
    pub fn registers(&self) -> usize {
        let [m, n, k] = self.shape;
        let threads = WARPGROUP * self.warpgroups[0];
        let operand = match (&self.a, self.ty) {
            (OperandA::Tile { .. }, _) => 0,
            // As they are, and rounded.
            (OperandA::Registers(_), WgmmaTy::TF32) => 2 * m * k / threads,
            (OperandA::Registers(_), _) => m * k / 2 / threads,
        };
        m * n / (threads * self.warpgroups[1]) + operand
    }

    /// Loads that fill its operands.
    pub fn loads(&self) -> impl Iterator<Item = usize> {
        let a = match self.a {
            OperandA::Tile { load, .. } => Some(load),
            OperandA::Registers(_) => None,
        };
        a.into_iter().chain([self.b])
    }
}

impl HopperPlan {
    /// The tensor copies into rings.
    pub fn copies(&self) -> impl Iterator<Item = &Load> {
        self.loads.iter().filter(|l| l.made.is_none())
    }

    /// True if an op is a tensor copy into a ring.
    pub fn is_copy(&self, op: Op) -> bool {
        self.copies().any(|l| l.op == op)
    }

    /// True if a product reads tiles of a ring.
    pub fn is_read(&self, ring: usize) -> bool {
        (0..self.products.len()).any(|p| self.reads(p, ring))
    }

    /// Blocks that fetch tiles for each other.
    pub fn sharing(&self) -> usize {
        self.cluster.iter().product()
    }

    /// True if two warpgroups start the products of an iteration one after the other, so that one multiplies while the other
    /// works between products.
    pub fn takes_turns(&self) -> bool {
        self.consumers == 2 && self.mixed.as_ref().is_some_and(|m| m.carried.is_some())
    }

    /// The product that is waited for during the next iteration only.
    pub fn lasting(&self) -> Option<usize> {
        self.mixed.as_ref().and_then(|m| m.lasting)
    }

    /// True if a counter deals out the blocks of the grid.
    pub fn is_dealt(&self) -> bool {
        self.mixed.as_ref().is_some_and(|m| m.dealt)
    }

    /// Blocks that fill a ring's slots together.
    pub fn fillers(&self, ring: usize) -> usize {
        if self.loads.iter().any(|l| l.ring == ring && l.shared.is_some()) { self.sharing() } else { 1 }
    }

    /// True if a product reads tiles of a ring.
    pub fn reads(&self, product: usize, ring: usize) -> bool {
        self.products[product].loads().any(|l| self.loads[l].ring == ring)
    }
}

/// How a product may be cut among warpgroups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Split {
    /// By rows, or else by columns.
    Tile,
    /// As the work between products wants it: by rows, or else each warpgroup has all rows of what products of shared tiles
    /// leave, and some columns of what products of fragments leave.
    Rows,
}

/// Why a kernel does not fit; nothing if there is no loop that could.
pub type Refusal = Option<String>;

/// Finds the plan of a function.
pub fn plan(func: &Func, target: Target) -> Result<HopperPlan, Refusal> {
    if target.arch != Arch::Sm90a {
        return Err(None);
    }
    match streamed(func, target) {
        Err(why) => mixed::plan(func, target).map_err(|other| other.or(why)),
        plan => plan,
    }
}

/// The plan of a loop that does nothing but copy and multiply.
fn streamed(func: &Func, target: Target) -> Result<HopperPlan, Refusal> {
    let mut found = mixed::find(func);
    found.retain(|f| f.stages >= 2);
    let &[Found { op: loop_op, stages, body: region, ref path }] = &found[..] else {
        return Err((found.len() > 1).then(|| "it has several pipelined loops with products".into()));
    };
    if !func.threads.is_multiple_of(WARPGROUP) || func.threads > 3 * WARPGROUP {
        return refuse(format!("its {} threads are not 1 to 3 warpgroups", func.threads));
    }
    let consumers = func.threads / WARPGROUP;
    let finder = Finder { func, loop_op, region, path: path.clone(), consumers };
    finder.is_reached()?;
    let loads = finder.loads()?;
    let products = finder.products(&loads)?;
    if products.is_empty() || loads.is_empty() {
        return Err(None);
    }
    let runs = finder.runs(&products)?;
    let mut need: usize = loads.iter().map(|l| l.slot_bytes() * stages).sum();
    let have = target.arch.max_shared_bytes() as usize - 1024;
    if need > have {
        return refuse(format!("its {stages} stages need {need} bytes of shared memory, there are {have}"));
    }
    let rings = vec![Ring { stages, kind: RingKind::Streamed }];
    let stores = finder.stores(&products);
    let (cluster, mixed) = ([1, 1], None);
    let (teams, no_teams) = (1, None);
    let mut plan = HopperPlan {
        loop_op,
        stages,
        consumers,
        teams,
        no_teams,
        cluster,
        loads,
        products,
        stores,
        rings,
        mixed,
        runs,
    };
    if func.ping_pong {
        match finder.teams(&plan) {
            Ok(teams) => plan.teams = teams,
            Err(why) => plan.no_teams = Some(why),
        }
    }
    need += plan.parts_bytes();
    if need > have {
        return refuse(format!(
            "its {stages} stages and the sums of runs need {need} bytes of shared memory, there are {have}"
        ));
    }
    if need + staging_limit(plan.groups()) > have {
        plan.stores.clear();
    }
    if plan.spread() == 1 {
        plan.cluster = finder.share(&mut plan.loads, &plan.products, &plan.stores);
    }
    Ok(plan)
}

/// Most bytes that boxes of accumulators of so many warpgroups take.
pub(super) fn staging_limit(groups: usize) -> usize {
    groups * BOXES * wgmma::M * 128
}

pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Some(why.into()))
}

/// Where a window begins along one of its axes, if it is all of its buffer but for that axis.
fn part_along(func: &Func, w: &Window, axis: usize) -> Option<usize> {
    let shape = func.buffers[w.buffer].static_shape()?;
    if w.axes.len() != shape.len() {
        return None;
    }
    let mut from = None;
    for (at, a) in w.axes.iter().enumerate() {
        let buffer_axis = usize::from(a.axis);
        let offset = usize::try_from(func.as_index(w.offsets[buffer_axis])?).ok()?;
        if at == axis {
            from = Some(offset);
        } else if offset != 0 || a.extent != shape[buffer_axis] {
            return None;
        }
    }
    from
}

/// The widest swizzle of rows of so many elements.
pub(super) fn operand_swizzle(dtype: DType, cols: usize) -> Result<Swizzle, String> {
    [Swizzle::B128, Swizzle::B64, Swizzle::B32]
        .into_iter()
        .find(|s| (cols * dtype.bits() / 8).is_multiple_of(s.atom_bytes()))
        .ok_or_else(|| format!("rows of {cols} elements have no swizzle"))
}

/// What the units multiply elements of a type as.
fn operand_type(dtype: DType) -> Option<WgmmaTy> {
    match dtype {
        DType::F32 => Some(WgmmaTy::TF32),
        DType::BF16 => Some(WgmmaTy::BF16),
        DType::F16 => Some(WgmmaTy::F16),
        DType::F8E4M3 => Some(WgmmaTy::E4M3),
        DType::F8E5M2 => Some(WgmmaTy::E5M2),
        _ => None,
    }
}

pub(super) fn has_gemm(func: &Func, region: Region) -> bool {
    func.regions[region].ops.iter().any(|&op| matches!(func.ops[op].kind, OpKind::Gemm { .. }))
}

/// Looks for the pattern around one loop.
pub(super) struct Finder<'f> {
    pub(super) func: &'f Func,
    pub(super) loop_op: Op,
    /// The loop's body.
    pub(super) region: Region,
    /// The function's body and the conditionals that the loop stands in, outermost first.
    pub(super) path: Vec<Region>,
    pub(super) consumers: usize,
}

impl Finder<'_> {
    /// The region that the loop stands in.
    pub(super) fn home(&self) -> Region {
        self.path.last().copied().unwrap_or(self.func.body)
    }

    fn dtype(&self, buffer: Buffer) -> DType {
        self.func.buffers[buffer].dtype
    }

    fn loads(&self) -> Result<Vec<Load>, Refusal> {
        let func = self.func;
        let mut loads: Vec<Load> = Vec::new();
        for &op in &func.regions[self.region].ops {
            let at = &func.ops[op].span;
            match &func.ops[op].kind {
                OpKind::Copy { src, dst, pad } => {
                    let load = self.load(op, src, dst).and_then(|l| {
                        if pad.bits() == 0 { Ok(l) } else { Err("it pads with something else than zero".to_owned()) }
                    });
                    let load = load.map_err(|why| Some(format!("the copy at {at}: {why}")))?;
                    if loads.iter().any(|l| l.buffer == load.buffer) {
                        return refuse(format!("the copy at {at} is not the only one into its tile"));
                    }
                    loads.push(load);
                }
                OpKind::Gemm { .. } => {}
                kind if kind.effect() == Effect::Pure => {}
                kind => return refuse(format!("its loop contains `{}` at {at}", kind.name())),
            }
        }
        for load in &loads {
            if self.uses_outside(load.buffer) > 0 {
                return refuse("a shared tile of the loop is used outside of it");
            }
        }
        Ok(loads)
    }

    pub(super) fn load(&self, op: Op, src: &Window, dst: &Window) -> Result<Load, String> {
        let func = self.func;
        let data = &func.buffers[src.buffer];
        if data.scope != Scope::Global || func.buffers[dst.buffer].scope != Scope::Shared {
            return Err("it does not go from a tensor to shared memory".into());
        }
        let Some(param) = func
            .params
            .iter()
            .position(|p| matches!(p, Param::Tensor { buffer, access: Access::Read } if *buffer == src.buffer))
        else {
            return Err("the kernel writes the tensor it reads".into());
        };
        let dtype = data.dtype;
        let widened = dtype == DType::F4E2M1;
        if dtype != self.dtype(dst.buffer) || (operand_type(dtype).is_none() && !widened) {
            let into = self.dtype(dst.buffer);
            return Err(format!("it moves {dtype} into {into}; bf16, f16, tf32, f8e4m3 and f8e5m2 are multiplied"));
        }
        if dtype == DType::F32 && !self.only_rounded(op, dst.buffer) {
            return Err("its f32 elements are wanted as they are, not rounded to tf32".into());
        }
        let shape = dst.shape();
        if !is_whole(func, dst) || shape.len() != 2 || src.shape() != shape {
            return Err("it does not fill a tile of two axes".into());
        }
        let rank = data.rank();
        let mut along: Vec<(usize, usize)> = src.axes.iter().map(|a| (usize::from(a.axis), a.extent)).collect();
        along.sort_unstable();
        let [(row_axis, rows), (col_axis, cols)] = along[..] else { unreachable!("the tile has two axes") };
        if !(2..=5).contains(&rank) || col_axis + 1 != rank {
            return Err("its rows do not lie together in the tensor".into());
        }
        let swizzle = operand_swizzle(dtype, cols)?;
        if rows > MAX_BOX || !rows.is_multiple_of(8) {
            return Err(format!("a box has a multiple of 8 up to {MAX_BOX} rows, not {rows}"));
        }
        if !src.offsets.iter().all(|&v| self.is_ahead(v)) {
            return Err("its place depends on more than scalars".into());
        }
        let mut tile = vec![1; rank];
        tile[row_axis] = rows as u32;
        tile[col_axis] = (swizzle.atom_bytes() * 8 / dtype.bits().max(8)) as u32;
        tile.reverse();
        Ok(Load {
            op,
            param: param as u32,
            dtype,
            buffer: dst.buffer,
            rows,
            cols,
            turned: usize::from(src.axes[0].axis) == col_axis,
            swizzle,
            tile,
            shared: None,
            ring: 0,
            made: None,
        })
    }

    /// True if nothing but products in tf32 reads what a copy leaves in a tile.
    fn only_rounded(&self, copy: Op, tile: Buffer) -> bool {
        let mut only = true;
        self.func.walk(self.func.body, &mut |op, d| match &d.kind {
            OpKind::Gemm { precision: GemmPrecision::Tf32, .. } | OpKind::Alloc { .. } | OpKind::Layout { .. } => {}
            kind if op != copy => kind.for_each_buffer(&mut |b| only &= b != tile),
            _ => {}
        });
        only
    }

    /// How often ops outside of the loop name a buffer.
    pub(super) fn uses_outside(&self, buffer: Buffer) -> usize {
        self.uses(self.path[0], buffer) - self.uses(self.region, buffer)
    }

    fn products(&self, loads: &[Load]) -> Result<Vec<Product>, Refusal> {
        let func = self.func;
        let mut products: Vec<Product> = Vec::new();
        for &op in &func.regions[self.region].ops {
            let OpKind::Gemm { a, b, acc, .. } = &func.ops[op].kind else { continue };
            let at = &func.ops[op].span;
            let product = self
                .product(op, [a, b, acc], loads, Split::Tile)
                .map_err(|why| Some(format!("the gemm at {at}: {why}")))?;
            if products.iter().any(|p| p.acc == product.acc) {
                return refuse(format!("the gemm at {at} is not the only one into its accumulator"));
            }
            products.push(product);
        }
        let registers: usize = products.iter().map(|p| p.shape[0] * p.shape[1] / (WARPGROUP * self.consumers)).sum();
        if registers > MAX_ACCUMULATORS[self.consumers] {
            return refuse(format!("its accumulators take {registers} registers a thread"));
        }
        Ok(products)
    }

    pub(super) fn product(
        &self,
        op: Op,
        [a, b, acc]: [&Window; 3],
        loads: &[Load],
        split: Split,
    ) -> Result<Product, String> {
        let func = self.func;
        let data = &func.buffers[acc.buffer];
        if data.scope != Scope::Fragment || data.dtype != DType::F32 || !is_whole(func, acc) {
            return Err("its accumulator is not a whole f32 fragment".into());
        }
        // The load of an operand, and where the operand begins along k in its tile; `k` is its axis in the window.
        let find = |w: &Window, k: usize| {
            let at = loads.iter().position(|l| l.buffer == w.buffer).zip(part_along(func, w, k));
            at.ok_or_else(|| "its operands are not tiles that the loop copies, whole but for k".to_owned())
        };
        let in_registers = split != Split::Tile && func.buffers[a.buffer].scope == Scope::Fragment && is_whole(func, a);
        let (la, ka) = if in_registers { None } else { Some(find(a, 1)?) }.unzip();
        let (lb, kb) = find(b, 0)?;
        let from_k = [ka.unwrap_or(0), kb];
        let (sa, sc) = (a.shape(), acc.shape());
        let shape @ [m, n, k] = [sc[0], sc[1], sa[1]];
        let (da, db) = (self.dtype(a.buffer), self.dtype(b.buffer));
        let Some(ty) = operand_type(da).filter(|_| da == db) else {
            return Err(format!("there is no product of {da} by {db}"));
        };
        if ty.bits() == 8 && in_registers {
            return Err(format!("its {da} operand is in registers"));
        }
        // The units would cut f32 off; tensor copies round it, for products in tf32 only.
        if ty == WgmmaTy::TF32 && la.into_iter().chain([lb]).any(|l| loads[l].made.is_some()) {
            return Err("an f32 operand is not copied from a tensor".into());
        }
        if in_registers && ty == WgmmaTy::TF32 {
            if n < MIN_TF32_COLUMNS {
                return Err(format!("{n} columns are not worth rounding an operand in registers"));
            }
            // The rounded operand changes when the fragment may, which waits for the product.
            if self.uses(self.region, a.buffer) < 2 {
                return Err("its first operand is the same in every iteration".into());
            }
        }
        // These units add 8-bit products with fewer digits than f32 has: a long sum belongs into another accumulator.
        if ty.bits() == 8 && split == Split::Tile {
            return Err(format!("its accumulator takes products of {da} from all iterations"));
        }
        let g = self.consumers;
        let (warpgroups, copies) = match split {
            _ if m.is_multiple_of(wgmma::M * g) => ([g, 1], 1),
            Split::Rows if la.is_some() => ([1, 1], g),
            Split::Tile | Split::Rows => ([1, g], 1),
        };
        if !m.is_multiple_of(wgmma::M * warpgroups[0])
            || !n.is_multiple_of(8 * warpgroups[1])
            || ![k, from_k[0], from_k[1]].iter().all(|k| k.is_multiple_of(ty.k()))
        {
            return Err(format!("{m} x {n} x {k} does not divide among {g} warpgroups"));
        }
        let columns = n / warpgroups[1];
        let inst_n = (8..=columns.min(256))
            .rev()
            .step_by(8)
            .find(|&i| i % 8 == 0 && columns.is_multiple_of(i))
            .ok_or_else(|| format!("{columns} columns do not divide into instructions"))?;
        if warpgroups[1] > 1 && inst_n != columns {
            return Err(format!("{columns} columns of a warpgroup are more than an instruction has"));
        }
        // Axes of a are (m, k), those of b (k, n): in order or swapped.
        let turned = |load: Option<usize>| load.is_some_and(|l| loads[l].turned);
        let major_a = if (a.axes[0].axis == 0) != turned(la) { Major::K } else { Major::Mn };
        let major_b = if (b.axes[0].axis == 0) != turned(Some(lb)) { Major::Mn } else { Major::K };
        let operand = |mn: usize, major: Major, load: usize| {
            let l = &loads[load];
            let k = if major == Major::K { l.cols } else { l.rows };
            wgmma::shared_operand([mn, k], ty.bits(), major, l.swizzle).map_err(|e| e.to_string())
        };
        for (major, block, load) in [(major_a, wgmma::M, la), (major_b, inst_n, Some(lb))] {
            let columns = load.map_or(1, |l| loads[l].box_cols());
            if major == Major::Mn && !block.is_multiple_of(columns) {
                return Err(format!("{block} columns of an instruction are no multiple of a box's {columns}"));
            }
        }
        let operand_b = operand(n, major_b, lb)?;
        let a = match la {
            Some(load) => OperandA::Tile { load, operand: Box::new(operand(m, major_a, load)?) },
            None => OperandA::Registers(a.buffer),
        };
        let clear = match split {
            Split::Tile => self.clear(acc.buffer, self.home(), self.loop_op),
            Split::Rows => self.clear(acc.buffer, self.region, op),
        };
        Ok(Product { op, acc: acc.buffer, ty, shape, from_k, inst_n, warpgroups, copies, a, b: lb, operand_b, clear })
    }

    /// Copies of whole accumulators that tensor copies can do: the only uses of their tensors.
    fn stores(&self, products: &[Product]) -> Vec<Store> {
        let func = self.func;
        let mut ops = func.regions[self.home()].ops.iter().skip_while(|&&op| op != self.loop_op);
        let mut stores = Vec::new();
        for &op in &mut ops {
            let OpKind::Copy { src, dst, .. } = &func.ops[op].kind else { continue };
            let Some(product) = products.iter().position(|p| p.acc == src.buffer) else { continue };
            let alone = self.uses(func.body, dst.buffer) == 1;
            let store = is_whole(func, src) && alone;
            stores.extend(store.then(|| self.store(op, src.buffer, product, &products[product], dst)).flatten());
        }
        stores
    }

    /// How often the ops of a region name a buffer.
    pub(super) fn uses(&self, region: Region, buffer: Buffer) -> usize {
        let mut uses = 0;
        self.func.walk(region, &mut |_, d| {
            if !matches!(d.kind, OpKind::Alloc { .. } | OpKind::Layout { .. }) {
                d.kind.for_each_buffer(&mut |b| uses += usize::from(b == buffer));
            }
        });
        uses
    }

    pub(super) fn store(&self, op: Op, src: Buffer, product: usize, p: &Product, dst: &Window) -> Option<Store> {
        let func = self.func;
        let data = &func.buffers[dst.buffer];
        let param =
            func.params.iter().position(|q| matches!(q, Param::Tensor { buffer, .. } if *buffer == dst.buffer))?;
        let axes: Vec<usize> = dst.axes.iter().map(|a| usize::from(a.axis)).collect();
        let rank = data.rank();
        let fits = p.copies == 1
            && matches!(data.dtype, DType::BF16 | DType::F16 | DType::F32)
            && (2..=5).contains(&rank)
            && matches!(axes[..], [rows, columns] if rows < columns && columns + 1 == rank);
        let columns = p.shape[1] / p.warpgroups[1];
        let swizzle = [Swizzle::B128, Swizzle::B64, Swizzle::B32]
            .into_iter()
            .find(|s| (columns * data.dtype.bits() / 8).is_multiple_of(s.atom_bytes()))?;
        let mut tile = vec![1; rank];
        tile[axes[0]] = wgmma::M as u32;
        tile[rank - 1] = (swizzle.atom_bytes() * 8 / data.dtype.bits()) as u32;
        tile.reverse();
        fits.then_some(Store { op, src, param: param as u32, dtype: data.dtype, product, swizzle, tile })
    }

    /// The op before `end` in a region that clears the accumulator, if nothing touches it in between.
    fn clear(&self, acc: Buffer, region: Region, end: Op) -> Option<Op> {
        let func = self.func;
        let ops = &func.regions[region].ops;
        let at = ops.iter().position(|&op| op == end)?;
        for &op in ops[..at].iter().rev() {
            let kind = &func.ops[op].kind;
            if let OpKind::Fill { dst, value } = kind
                && dst.buffer == acc
            {
                let zero = func.as_const(*value).is_some_and(|c| c.bits() == 0);
                return (zero && is_whole(func, dst)).then_some(op);
            }
            let mut touched = false;
            kind.for_each_buffer(&mut |b| touched |= b == acc);
            kind.for_each_region(&mut |r| {
                func.walk(r, &mut |_, d| d.kind.for_each_buffer(&mut |b| touched |= b == acc))
            });
            if touched {
                return None;
            }
        }
        None
    }
}
