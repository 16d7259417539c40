//! Where buffers live: shared arena, registers, thread-local memory; and scratch areas.

use super::dist::Dist;
use super::frag::Fragment;
use super::index::Idx;
use super::infer::SharedForm;
use super::view::{Coords, Placement, View};
use super::{Lowerer, Result};
use crate::ptx::error::CodegenError;
use crate::ptx::simt::{Cache, ObjData, ObjKind, Space};
use smallvec::SmallVec;
use std::rc::Rc;
use zellige_ir::{Buffer, DType, EntityId, Op, Scope, Span};

/// Where a buffer lives.
#[derive(Clone, Debug)]
pub enum Place {
    Memory(Box<View>),
    Registers(Fragment),
    /// Allocated inside a parallel loop: one for each iteration lowered side by side.
    PerLane(Vec<Fragment>),
}

/// Alignment of shared objects without special needs: the widest access.
const SHARED_ALIGN: u32 = 16;

fn constants(extents: &[usize]) -> Coords {
    extents.iter().map(|&e| Idx::constant(e as i64)).collect()
}

impl Lowerer<'_> {
    pub(super) fn alloc(&mut self, op: Op, buffer: Buffer) -> Result {
        let data = &self.func.buffers[buffer];
        let Some(shape) = data.static_shape() else {
            return self.malformed(op, format!("{} has a dynamic shape", self.name(buffer)));
        };
        let place = match (data.scope, self.layouts.dist(buffer)) {
            (Scope::Global, _) => return self.malformed(op, "a tensor is a parameter"),
            (Scope::Fragment | Scope::Local, Some(dist)) => {
                Place::Registers(Fragment::new(&mut self.b, data.dtype, dist))
            }
            (Scope::Shared | Scope::Fragment | Scope::Local, _) => {
                let form = self.layouts.shared_form(buffer);
                let name = format!("{} {}", data.scope.name(), self.name(buffer));
                Place::Memory(Box::new(self.shared_view(name, data.dtype, &shape, form, data.span.clone())))
            }
        };
        self.places[buffer.index()] = Some(place);
        Ok(())
    }

    /// A new area of the arena.
    pub(super) fn shared_view(
        &mut self,
        name: String,
        dtype: DType,
        shape: &[usize],
        form: SharedForm,
        span: Span,
    ) -> View {
        let (placement, bytes, align) = shared_placement(dtype, shape, form);
        let home = self.b.block();
        let kind = ObjKind::Shared { bytes: bytes as u32, align, offset: None };
        let obj = self.b.new_obj(ObjData { name, kind, span, managed: false, home, split: Vec::new() });
        let base = self.b.shared_addr(obj);
        View {
            space: Space::Shared,
            obj,
            dtype,
            base,
            base_offset: 0,
            align: u64::from(align),
            extents: constants(shape),
            placement,
            cache: Cache::Default,
            checked: false,
        }
    }

    /// A row-major scratch area.
    pub(super) fn scratch(&mut self, what: &str, dtype: DType, shape: &[usize]) -> View {
        let span = self.b.span();
        self.shared_view(format!("scratch of {what}"), dtype, shape, SharedForm::RowMajor, span)
    }

    pub(super) fn place(&self, op: Op, buffer: Buffer) -> Result<&Place> {
        match &self.places[buffer.index()] {
            Some(p) => Ok(p),
            None => self.malformed(op, format!("{} is used before its alloc", self.name(buffer))),
        }
    }

    /// The registers of a fragment.
    pub(super) fn fragment(&mut self, buffer: Buffer) -> Option<&mut Fragment> {
        match &mut self.places[buffer.index()] {
            Some(Place::Registers(f)) => Some(f),
            Some(Place::Memory(_) | Place::PerLane(_)) | None => None,
        }
    }

    pub(super) fn dist_of(&self, buffer: Buffer) -> Option<Rc<Dist>> {
        match &self.places[buffer.index()] {
            Some(Place::Registers(f)) => Some(f.dist.clone()),
            Some(Place::Memory(_) | Place::PerLane(_)) | None => None,
        }
    }

    /// The view of a buffer that lives in memory.
    pub(super) fn memory(&self, buffer: Buffer) -> Option<View> {
        match &self.places[buffer.index()] {
            Some(Place::Memory(v)) => Some((**v).clone()),
            Some(Place::Registers(_) | Place::PerLane(_)) | None => None,
        }
    }

    /// The element of a fragment in register `reg`.
    pub(super) fn get_reg(&mut self, buffer: Buffer, reg: usize) -> crate::ptx::simt::Val {
        let Some(Place::Registers(f)) = &mut self.places[buffer.index()] else {
            unreachable!("the caller knows that the buffer is a fragment")
        };
        f.get(&mut self.b, reg)
    }

    pub(super) fn set_reg(&mut self, buffer: Buffer, reg: usize, v: crate::ptx::simt::Val) {
        if let Some(f) = self.fragment(buffer) {
            f.set(reg, v);
        }
    }

    /// Writes fragment registers back: control flow follows.
    pub(super) fn flush(&mut self) {
        for place in self.places.iter_mut().flatten() {
            match place {
                Place::Registers(f) => f.flush(&mut self.b),
                Place::PerLane(fs) => fs.iter_mut().for_each(|f| f.flush(&mut self.b)),
                Place::Memory(_) => {}
            }
        }
    }

    pub(super) fn layout_error(&self, what: impl Into<String>, error: zellige_ir::layout::LayoutError) -> CodegenError {
        CodegenError::Layout { span: self.b.span(), what: what.into(), error: Box::new(error) }
    }

    pub(super) fn blocked(&self, shape: &[usize], vector: usize) -> Result<Rc<Dist>> {
        let dist = Dist::blocked(shape, self.func.threads, vector);
        dist.map(Rc::new).map_err(|e| self.layout_error("no layout for this tile", e))
    }
}

/// How a shared tile lies: placement, size in bytes, alignment.
pub fn shared_placement(dtype: DType, shape: &[usize], form: SharedForm) -> (Placement, usize, u32) {
    let bits = dtype.bits();
    let rank = shape.len();
    match form {
        SharedForm::Swizzled(swizzle) if rank >= 2 => {
            let rows = shape[rank - 2].next_multiple_of(8);
            let inner = rows * shape[rank - 1];
            let mut strides: SmallVec<[Idx; 4]> = SmallVec::from_elem(Idx::constant(inner as i64), rank - 2);
            let mut total = inner;
            for axis in (0..rank - 2).rev() {
                strides[axis] = Idx::constant(total as i64);
                total *= shape[axis];
            }
            let range = swizzle.row_bits();
            let placement = Placement::Swizzled {
                strides,
                rows,
                atom: swizzle.atom_bytes(),
                row_bits: (range.start as u32, range.end as u32),
            };
            (placement, total * bits / 8, swizzle.alignment().min(1024) as u32)
        }
        SharedForm::Swizzled(_) | SharedForm::RowMajor | SharedForm::Padded(_) => {
            let pad = match form {
                SharedForm::Padded(n) if rank >= 2 => n,
                _ => 0,
            };
            let mut strides: SmallVec<[Idx; 4]> = SmallVec::from_elem(Idx::constant(1), rank);
            let mut total = 1;
            for axis in (0..rank).rev() {
                strides[axis] = Idx::constant(total as i64);
                total *= shape[axis];
                if axis + 1 == rank {
                    total += pad;
                    if bits < 8 {
                        // Rows of packed elements begin at a byte.
                        total = total.next_multiple_of(8 / bits);
                    }
                }
            }
            let bytes = (total * bits).div_ceil(8).max(1).next_multiple_of(4);
            (Placement::Strided { strides }, bytes, SHARED_ALIGN)
        }
    }
}
