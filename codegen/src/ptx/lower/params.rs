//! The kernel's parameters and block coordinates as SIMT values.

use super::facts::Facts;
use super::index::{self, Idx};
use super::place::Place;
use super::value::{self, Scalar};
use super::view::{Coords, Placement, View};
use super::{Lowerer, cast};
use crate::ptx::simt::{Cache, Cmp, Num, ObjData, ObjKind, ParamSlot, Space, Special, Ty};
use crate::ptx::{ALIGNED, DIM_LIMIT};
use smallvec::SmallVec;
use zellige_ir::{Access, BlockOrder, Buffer, DType, EntityId, Extent, Func, Param, Scope, Strides, ValueDef};

/// The parameter list: tensors and scalars in their order, then the dims.
pub fn slots(func: &Func) -> Vec<ParamSlot> {
    let mut slots = Vec::new();
    for (i, param) in func.params.iter().enumerate() {
        let i = i as u32;
        match param {
            Param::Tensor { buffer, .. } => {
                let data = &func.buffers[*buffer];
                slots.push(ParamSlot::Base { param: i, name: data.name.clone() });
                if data.strides == Strides::Dynamic {
                    for axis in 0..data.rank().saturating_sub(1) {
                        let name = format!("{}_stride{axis}", data.name);
                        slots.push(ParamSlot::Stride { param: i, axis: axis as u32, name });
                    }
                }
            }
            Param::Scalar { name, value } => {
                slots.push(ParamSlot::Scalar { param: i, name: name.clone(), dtype: func.ty(*value) });
            }
        }
    }
    for (dim, data) in func.dims.iter() {
        slots.push(ParamSlot::Dim { dim: dim.index() as u32, name: data.name.clone() });
    }
    slots
}

/// Positions of strides, and of dims that are the length of a row, as bits.
pub fn alignable(func: &Func) -> u64 {
    let is_row = |dim: u32| {
        func.buffers.iter().any(|(_, data)| {
            data.scope == Scope::Global
                && data.shape.iter().enumerate().any(|(axis, e)| {
                    (axis > 0 || data.rank() == 1) && matches!(e, Extent::Dynamic(d) if d.index() as u32 == dim)
                })
        })
    };
    slots(func).iter().take(64).enumerate().fold(0, |bits, (i, slot)| match slot {
        ParamSlot::Stride { .. } => bits | 1 << i,
        ParamSlot::Dim { dim, .. } if is_row(*dim) => bits | 1 << i,
        ParamSlot::Dim { .. }
        | ParamSlot::Base { .. }
        | ParamSlot::Scalar { .. }
        | ParamSlot::TensorMap { .. }
        | ParamSlot::Counter { .. }
        | ParamSlot::Failure { .. } => bits,
    })
}

/// What a parameter is a multiple of.
fn divisor(aligned: u64, at: usize) -> u64 {
    if at < 64 && aligned >> at & 1 == 1 { ALIGNED } else { 1 }
}

impl Lowerer<'_> {
    /// Reads the parameters and places the tensors.
    pub(super) fn params(&mut self) {
        let func = self.func;
        let slots = self.b.kernel.params.clone();
        for (at, slot) in slots.iter().enumerate() {
            let at = at as u32;
            match slot {
                ParamSlot::Dim { dim, .. } => {
                    let dim = zellige_ir::Dim::from_index(*dim as usize);
                    let v = self.b.param(Ty::B32, at);
                    self.env[func.dims[dim].value.index()] =
                        Some(Scalar::Idx(Idx::new(v, 0, DIM_LIMIT, divisor(self.aligned, at as usize))));
                }
                ParamSlot::Scalar { param, dtype, .. } => {
                    let Param::Scalar { value, .. } = &func.params[*param as usize] else { continue };
                    let scalar = self.scalar_param(*dtype, at);
                    self.env[value.index()] = Some(scalar);
                }
                ParamSlot::Base { .. }
                | ParamSlot::Stride { .. }
                | ParamSlot::TensorMap { .. }
                | ParamSlot::Counter { .. }
                | ParamSlot::Failure { .. } => {}
            }
        }
        let facts = Facts::of(func);
        for (_, dim) in func.dims.iter() {
            let to = facts.resolve(dim.value);
            self.env[dim.value.index()] = match func.as_index(to) {
                Some(n) => Some(Scalar::Idx(Idx::constant(n))),
                None => self.env[to.index()],
            };
        }
        for (i, param) in func.params.iter().enumerate() {
            let Param::Tensor { buffer, access } = param else { continue };
            let place = self.tensor(*buffer, *access, i as u32, &slots);
            self.places[buffer.index()] = Some(Place::Memory(Box::new(place)));
        }
    }

    fn scalar_param(&mut self, dtype: DType, at: u32) -> Scalar {
        let b = &mut self.b;
        match dtype {
            DType::Index => {
                let v = b.param(Ty::B64, at);
                Scalar::Idx(Idx::new(v, i64::MIN, i64::MAX, 1))
            }
            DType::Bool => {
                let v = b.param(Ty::B32, at);
                let zero = b.c32(0);
                Scalar::Reg(b.setp(Cmp::Ne, Num::B32, v, zero))
            }
            _ => {
                let v = b.param(value::class(dtype), at);
                Scalar::Reg(if dtype.is_int() { cast::extend(b, dtype, v) } else { v })
            }
        }
    }

    fn tensor(&mut self, buffer: Buffer, access: Access, param: u32, slots: &[ParamSlot]) -> View {
        let data = &self.func.buffers[buffer];
        let read_only = access == Access::Read;
        let home = self.b.kernel.body;
        let obj = self.b.new_obj(ObjData {
            name: data.name.clone(),
            kind: ObjKind::Global { read_only },
            span: data.span.clone(),
            managed: false,
            home,
            split: Vec::new(),
        });
        let mut base = self.b.zero(Ty::B64);
        let mut given: Vec<Idx> = Vec::new();
        for (at, slot) in slots.iter().enumerate() {
            match slot {
                ParamSlot::Base { param: p, .. } if *p == param => base = self.b.param(Ty::B64, at as u32),
                ParamSlot::Stride { param: p, .. } if *p == param => {
                    let v = self.b.param(Ty::B64, at as u32);
                    given.push(Idx::new(v, 0, 1 << 40, divisor(self.aligned, at)));
                }
                _ => {}
            }
        }
        let extents: Coords = data.shape.iter().map(|&e| self.extent(e)).collect();
        let mut strides: SmallVec<[Idx; 4]> = SmallVec::from_elem(Idx::constant(1), extents.len());
        for axis in (0..extents.len().saturating_sub(1)).rev() {
            strides[axis] = match data.strides {
                Strides::Dynamic => given[axis],
                Strides::Contiguous => index::mul(&mut self.b, strides[axis + 1], extents[axis + 1]),
            };
        }
        View {
            space: Space::Global,
            obj,
            dtype: data.dtype,
            base,
            base_offset: 0,
            align: 16,
            extents,
            placement: Placement::Strided { strides },
            // The path for constant data may be read ahead of the wait for the launch that writes it.
            cache: if read_only && !self.overlapped { Cache::ReadOnly } else { Cache::Default },
            checked: true,
        }
    }

    fn extent(&mut self, e: Extent) -> Idx {
        match e {
            Extent::Static(n) => Idx::constant(n as i64),
            Extent::Dynamic(dim) => match self.env[self.func.dims[dim].value.index()] {
                Some(Scalar::Idx(i)) => i,
                Some(Scalar::Reg(_)) | None => Idx::constant(0),
            },
        }
    }

    /// The block's coordinates, bounded by the grid and permuted as the block order asks.
    pub(super) fn block_ids(&mut self) {
        let func = self.func;
        let his: Vec<Idx> = func
            .grid
            .iter()
            .map(|&g| match (self.env[g.index()], func.values[g].def) {
                (Some(Scalar::Idx(i)), _) => i,
                (_, ValueDef::Const(c)) => Idx::constant(c.as_i64()),
                _ => Idx { hi: i64::from(i32::MAX), ..Idx::constant(0) },
            })
            .collect();
        let regs = [Special::CtaX, Special::CtaY, Special::CtaZ];
        let mut ids: Vec<Idx> = Vec::new();
        for (axis, extent) in his.iter().enumerate() {
            let v = self.b.special(regs[axis.min(2)]);
            if let Idx { base: Some(blocks), off: 0, .. } = *extent {
                self.b.set_below(v, blocks);
            }
            ids.push(Idx::new(v, 0, (extent.hi - 1).clamp(0, i64::from(i32::MAX)), 1));
        }
        if let BlockOrder::Panel(height) = func.block_order
            && ids.len() >= 2
            && height > 1
        {
            let (x, y) = self.panel(ids[0], ids[1], i64::from(height));
            (ids[0], ids[1]) = (x, y);
        }
        for (&v, id) in func.block_ids.iter().zip(ids) {
            self.env[v.index()] = Some(Scalar::Idx(id));
        }
    }

    /// Blocks in panels of `height` along the second axis: down a panel's column first, then along the first axis.
    fn panel(&mut self, x: Idx, y: Idx, height: i64) -> (Idx, Idx) {
        let b = &mut self.b;
        let (gx, gy) = (b.special(Special::GridX), b.special(Special::GridY));
        let gx = Idx::new(gx, 1, x.hi + 1, 1);
        let gy = Idx::new(gy, 1, y.hi + 1, 1);
        let row = index::mul(b, y, gx);
        let linear = index::add(b, row, x);
        let linear = Idx { lo: 0, hi: (x.hi + 1).saturating_mul(y.hi + 1) - 1, ..linear };
        self.panel_at(linear, gx, gy, Idx::constant(height))
    }

    /// As [`Lowerer::panel`], of block number `linear` in a grid of `gx` by `gy`.
    pub(super) fn panel_at(&mut self, linear: Idx, gx: Idx, gy: Idx, height: Idx) -> (Idx, Idx) {
        let b = &mut self.b;
        let per_panel = index::mul(b, gx, height);
        let panel = index::div(b, linear, per_panel);
        let rest = index::rem(b, linear, per_panel);
        let first = index::mul(b, panel, height);
        let left = index::sub(b, gy, first);
        let rows = index::min(b, left, height);
        let rows = Idx { lo: 1, ..rows };
        let down = index::rem(b, rest, rows);
        let new_x = index::div(b, rest, rows);
        let new_y = index::add(b, first, down);
        let bound = |i: Idx, hi: i64| if i.base.is_some() { Idx { lo: 0, hi, ..i } } else { i };
        (bound(new_x, gx.hi - 1), bound(new_y, gy.hi - 1))
    }
}
