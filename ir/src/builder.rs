//! Appends ops to a function at an insertion point, computing result types on the way.
//!
//! The builder folds constants of type `index` and drops additions of zero and multiplications by
//! one, so that recorded kernels read well; everything else is left to the passes. It checks nothing:
//! the verifier does.

use crate::DType;
use crate::func::{Access, Buffer, BufferData, Extent, Func, Op, Region, Scope, Strides, Value};
use crate::numerics::Const;
use crate::op::{AtomicOp, BinaryOp, CmpOp, Def, LoopKind, OpKind, UnaryOp};
use crate::span::Span;
use crate::window::{Window, WindowAxis};
use smallvec::SmallVec;

/// Builds a [`Func`]. New ops go to the end of the innermost open region.
#[derive(Debug)]
pub struct FuncBuilder {
    func: Func,
    open: Vec<Region>,
    span: Span,
}

impl FuncBuilder {
    /// Starts a kernel; the first ops go to its prelude until [`grid`](Self::grid) is called.
    pub fn new(name: impl Into<String>, span: Span) -> FuncBuilder {
        let func = Func::new(name, span.clone());
        let open = vec![func.prelude];
        FuncBuilder { func, open, span }
    }

    /// The function as far as it is built.
    pub fn func(&self) -> &Func {
        &self.func
    }

    /// The function as far as it is built, for signature changes.
    pub fn func_mut(&mut self) -> &mut Func {
        &mut self.func
    }

    /// Ends building.
    pub fn finish(self) -> Func {
        self.func
    }

    /// Sets the span that the following ops and buffers carry.
    pub fn set_span(&mut self, span: Span) {
        self.span = span;
    }

    /// The region that new ops go to.
    pub fn region(&self) -> Region {
        *self.open.last().expect("a builder always has an open region")
    }

    /// Makes `region` the insertion point until the matching [`close`](Self::close).
    pub fn open(&mut self, region: Region) {
        self.open.push(region);
    }

    /// Returns to the insertion point before the last [`open`](Self::open).
    pub fn close(&mut self) {
        self.open.pop();
    }

    // Signature.

    /// Adds a contiguous tensor parameter.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: Vec<Extent>, access: Access) -> Buffer {
        let data = BufferData {
            name: name.to_owned(),
            dtype,
            scope: Scope::Global,
            shape,
            strides: Strides::Contiguous,
            span: self.span.clone(),
        };
        self.func.add_tensor(data, access)
    }

    /// Ends the prelude: sets the grid and returns the block's coordinates in it.
    pub fn grid(&mut self, extents: &[Value], threads: usize) -> Vec<Value> {
        let ids = self.func.set_grid(extents.to_vec(), threads);
        self.open = vec![self.func.body];
        ids
    }

    // Scalars.

    pub fn constant(&mut self, c: Const) -> Value {
        self.func.constant(c)
    }

    pub fn index(&mut self, v: i64) -> Value {
        self.func.constant(Const::index(v))
    }

    /// Appends an op at the insertion point.
    pub fn append(&mut self, kind: OpKind) -> Op {
        let region = self.region();
        self.func.append(region, kind, self.span.clone())
    }

    fn result(&mut self, ty: DType, kind: impl FnOnce(Def) -> OpKind) -> Value {
        let out = self.func.add_value(ty);
        self.append(kind(Def(out)));
        out
    }

    pub fn unary(&mut self, op: UnaryOp, x: Value) -> Value {
        let ty = match op {
            UnaryOp::IsNan | UnaryOp::IsFinite => DType::Bool,
            _ => self.func.ty(x),
        };
        self.result(ty, |out| OpKind::Unary { out, op, x })
    }

    pub fn binary(&mut self, op: BinaryOp, x: Value, y: Value) -> Value {
        if let Some(v) = self.fold_index(op, x, y) {
            return v;
        }
        let ty = self.func.ty(x);
        self.result(ty, |out| OpKind::Binary { out, op, x, y })
    }

    pub fn add(&mut self, x: Value, y: Value) -> Value {
        self.binary(BinaryOp::Add, x, y)
    }

    pub fn sub(&mut self, x: Value, y: Value) -> Value {
        self.binary(BinaryOp::Sub, x, y)
    }

    pub fn mul(&mut self, x: Value, y: Value) -> Value {
        self.binary(BinaryOp::Mul, x, y)
    }

    pub fn ceildiv(&mut self, x: Value, y: Value) -> Value {
        self.binary(BinaryOp::CeilDiv, x, y)
    }

    pub fn fma(&mut self, x: Value, y: Value, z: Value) -> Value {
        let ty = self.func.ty(x);
        self.result(ty, |out| OpKind::Fma { out, x, y, z })
    }

    pub fn cmp(&mut self, op: CmpOp, x: Value, y: Value) -> Value {
        self.result(DType::Bool, |out| OpKind::Cmp { out, op, x, y })
    }

    pub fn select(&mut self, cond: Value, x: Value, y: Value) -> Value {
        let ty = self.func.ty(x);
        self.result(ty, |out| OpKind::Select { out, cond, x, y })
    }

    /// Converts to `ty`; a value that has it already is returned as it is.
    pub fn cast(&mut self, x: Value, ty: DType) -> Value {
        if self.func.ty(x) == ty {
            return x;
        }
        self.result(ty, |out| OpKind::Cast { out, x })
    }

    pub fn bitcast(&mut self, x: Value, ty: DType) -> Value {
        if self.func.ty(x) == ty {
            return x;
        }
        self.result(ty, |out| OpKind::Bitcast { out, x })
    }

    pub fn load(&mut self, buffer: Buffer, indices: &[Value]) -> Value {
        let ty = self.func.buffers[buffer].dtype;
        let indices = SmallVec::from_slice(indices);
        self.result(ty, |out| OpKind::Load { out, buffer, indices })
    }

    pub fn store(&mut self, buffer: Buffer, indices: &[Value], value: Value) {
        self.append(OpKind::Store { buffer, indices: SmallVec::from_slice(indices), value });
    }

    /// Returns the element before the update.
    pub fn atomic(&mut self, op: AtomicOp, buffer: Buffer, indices: &[Value], value: Value) -> Value {
        let ty = self.func.buffers[buffer].dtype;
        let indices = SmallVec::from_slice(indices);
        self.result(ty, |out| OpKind::Atomic { out, op, buffer, indices, value })
    }

    // Tiles.

    /// Allocates a shared, fragment or local buffer.
    pub fn alloc(&mut self, scope: Scope, dtype: DType, shape: &[usize]) -> Buffer {
        let buffer = self.func.buffers.push(BufferData {
            name: String::new(),
            dtype,
            scope,
            shape: shape.iter().map(|&n| Extent::Static(n)).collect(),
            strides: Strides::Contiguous,
            span: self.span.clone(),
        });
        self.append(OpKind::Alloc { buffer });
        buffer
    }

    /// The window that covers a whole buffer of static shape.
    ///
    /// # Panics
    /// If an extent of the buffer is dynamic.
    pub fn whole(&mut self, buffer: Buffer) -> Window {
        let shape = self.func.buffers[buffer].static_shape().expect("only a buffer of static shape is a window");
        let zero = self.index(0);
        Window {
            buffer,
            offsets: shape.iter().map(|_| zero).collect(),
            axes: shape.iter().enumerate().map(|(i, &extent)| WindowAxis { axis: i as u8, extent }).collect(),
        }
    }

    /// A window at `offsets` whose axes are the last `shape.len()` axes of the buffer.
    pub fn window(&mut self, buffer: Buffer, offsets: &[Value], shape: &[usize]) -> Window {
        let first = self.func.buffers[buffer].rank() - shape.len();
        Window {
            buffer,
            offsets: SmallVec::from_slice(offsets),
            axes: shape.iter().enumerate().map(|(i, &extent)| WindowAxis { axis: (first + i) as u8, extent }).collect(),
        }
    }

    /// Copies with zero padding.
    pub fn copy(&mut self, src: Window, dst: Window) {
        let pad = Const::zero(self.func.buffers[src.buffer].dtype);
        self.append(OpKind::Copy { src, dst, pad });
    }

    // Control flow.

    /// Opens a loop over `extents` and returns its indices; [`close`](Self::close) ends its body.
    pub fn begin_for(&mut self, kind: LoopKind, extents: &[Value]) -> Vec<Value> {
        let indices: Vec<Value> = extents.iter().map(|_| self.func.add_value(DType::Index)).collect();
        let body = self.func.add_region();
        self.append(OpKind::For {
            kind,
            indices: indices.iter().map(|&v| Def(v)).collect(),
            extents: SmallVec::from_slice(extents),
            body,
        });
        self.open(body);
        indices
    }

    /// Opens the first arm of a conditional and returns the region of the second.
    pub fn begin_if(&mut self, cond: Value) -> Region {
        let then_body = self.func.add_region();
        let else_body = self.func.add_region();
        self.append(OpKind::If { cond, then_body, else_body });
        self.open(then_body);
        else_body
    }

    fn fold_index(&mut self, op: BinaryOp, x: Value, y: Value) -> Option<Value> {
        let (a, b) = (self.func.as_index(x), self.func.as_index(y));
        if let (Some(a), Some(b)) = (a, b) {
            return crate::numerics::eval_index(op, a, b).map(|v| self.index(v));
        }
        match (op, a, b) {
            (BinaryOp::Add, Some(0), _) | (BinaryOp::Mul, Some(1), _) => Some(y),
            (BinaryOp::Add | BinaryOp::Sub, _, Some(0)) => Some(x),
            (BinaryOp::Mul | BinaryOp::Div | BinaryOp::CeilDiv, _, Some(1)) => Some(x),
            (BinaryOp::Mul, Some(0), _) => Some(x),
            (BinaryOp::Mul, _, Some(0)) => Some(y),
            _ => None,
        }
    }
}
