//! The layouts that inference chooses, for pictures.

use super::infer::{self, SharedForm};
use super::{CodegenError, Result, hopper};
use crate::ptx::target::Target;
use zellige_ir::layout::{FragmentLayout, LayoutError, MemoryLayout, instances};
use zellige_ir::{Buffer, DType, Func, Scope};

/// How a tile lies.
#[derive(Clone, PartialEq, Debug)]
pub enum TileLayout {
    /// In the registers of the block's threads.
    Registers(Box<FragmentLayout>),
    /// In shared memory. A swizzled tile of more than two axes is a sequence of matrices of the last two, of which this is one.
    Shared(Box<MemoryLayout>),
}

/// The layouts of a kernel's tiles.
#[derive(Clone, PartialEq, Debug)]
pub struct Layouts {
    /// In the order of declaration.
    pub tiles: Vec<(Buffer, TileLayout)>,
    /// How each came about.
    pub explain: Vec<String>,
}

/// The layout of every tile of a function.
///
/// # Errors
/// If a tile has no layout.
pub fn layouts(func: &Func, target: Target) -> Result<Layouts> {
    let mut explain = Vec::new();
    let plan = hopper::plan::plan(func, target).ok();
    let layouts = infer::infer(func, target, plan.as_ref(), &mut explain)?;
    let mut tiles = Vec::new();
    for (buffer, data) in func.buffers.iter() {
        let Some(shape) = data.static_shape().filter(|_| data.scope != Scope::Global) else { continue };
        let layout = match layouts.dist(buffer) {
            Some(dist) => TileLayout::Registers(Box::new(dist.layout.clone())),
            None => {
                let layout = shared_layout(&shape, data.dtype, layouts.shared_form(buffer));
                TileLayout::Shared(layout.map(Box::new).map_err(|error| CodegenError::Layout {
                    span: data.span.clone(),
                    what: "a shared tile".into(),
                    error: Box::new(error),
                })?)
            }
        };
        tiles.push((buffer, layout));
    }
    Ok(Layouts { tiles, explain })
}

fn shared_layout(shape: &[usize], dtype: DType, form: SharedForm) -> std::result::Result<MemoryLayout, LayoutError> {
    match (form, shape) {
        (SharedForm::Swizzled(swizzle), [.., rows, cols]) => instances::swizzled([*rows, *cols], dtype.bits(), swizzle),
        (SharedForm::Padded(pad), [_, _, ..]) => MemoryLayout::padded(shape, pad),
        (SharedForm::RowMajor | SharedForm::Padded(_) | SharedForm::Swizzled(_), _) => MemoryLayout::row_major(shape),
    }
}
