//! How each tile lies in memory.
//!
//! A tile's elements may be stored wider than its element type and in another axis order: nobody but the lowered
//! kernel sees them.

use zellige_ir::{DType, Func, Scope};

/// How an element lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cell {
    /// As in a tensor.
    Native,
    /// One `f4e2m1` code to a byte.
    Byte,
}

impl Cell {
    /// Distance of neighbouring elements; `None` for packed half bytes.
    pub(crate) fn bytes(self, ty: DType) -> Option<i64> {
        match self {
            Cell::Native if ty.bits() < 8 => None,
            Cell::Native => Some(ty.bits() as i64 / 8),
            Cell::Byte => Some(1),
        }
    }
}

/// The layout of a tile; of a tensor only `cell` counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub cell: Cell,
    /// In cells, one for each axis.
    pub strides: Vec<i64>,
    pub bytes: usize,
}

/// The layouts of all buffers, by buffer.
pub(crate) fn layouts(func: &Func) -> Vec<Layout> {
    func.buffers
        .iter()
        .map(|(_, data)| {
            let Some(shape) = data.static_shape().filter(|_| data.scope != Scope::Global) else {
                return Layout { cell: Cell::Native, strides: Vec::new(), bytes: 0 };
            };
            let cell = if data.dtype.bits() < 8 { Cell::Byte } else { Cell::Native };
            let mut strides = vec![1; shape.len()];
            for i in (1..shape.len()).rev() {
                strides[i - 1] = strides[i] * shape[i] as i64;
            }
            let elements: usize = shape.iter().product();
            let size = cell.bytes(data.dtype).unwrap_or(1) as usize;
            // Room for a vector access at the last element.
            Layout { cell, strides, bytes: elements * size + 16 }
        })
        .collect()
}
