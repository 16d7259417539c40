//! A kernel in tile IR: arenas of values, buffers, ops and regions, and the signature around them.

use crate::DType;
use crate::entity::{Arena, entity};
use crate::hash::FastMap;
use crate::numerics::Const;
use crate::op::{OpKind, Visit};
use crate::span::Span;

entity!(/** An SSA scalar: a constant, a parameter, an op's result or a loop index. */ Value, "%");
entity!(/** A memory area with a shape: tensor parameter, shared tile, fragment or local scalar. */ Buffer, "$");
entity!(/** An operation. */ Op, "op");
entity!(/** A list of ops executed in order. */ Region, "region");
entity!(/** A named tensor extent that is known only at launch. */ Dim, "dim");

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ValueDef {
    /// An immediate, printed in place. Interned: equal constants are one value.
    Const(Const),
    /// The extent of a named dim, known at launch.
    Dim(Dim),
    /// A scalar parameter of the kernel: its position in [`Func::params`].
    Param(u32),
    /// The block's position along a grid axis.
    BlockId(u32),
    /// Defined by an op: its result, or an index variable of a loop.
    Op(Op),
    /// Allocated but not yet defined; no verified function has one.
    Pending,
}

#[derive(Clone, PartialEq, Debug)]
pub struct ValueData {
    pub ty: DType,
    pub def: ValueDef,
}

/// Which memory a buffer lives in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Scope {
    /// A tensor parameter: visible to all blocks, outlives the launch.
    Global,
    /// One per block, visible to all its threads.
    Shared,
    /// One per block, spread over its threads' registers.
    Fragment,
    /// One per block, the same in all threads: mutable device scalars and small tables.
    Local,
}

impl Scope {
    pub const ALL: [Scope; 4] = [Scope::Global, Scope::Shared, Scope::Fragment, Scope::Local];

    /// The spelling in IR text.
    pub const fn name(self) -> &'static str {
        match self {
            Scope::Global => "global",
            Scope::Shared => "shared",
            Scope::Fragment => "fragment",
            Scope::Local => "local",
        }
    }
}

/// Extent of a buffer axis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extent {
    Static(usize),
    /// Known at launch; only global buffers have such axes.
    Dynamic(Dim),
}

impl Extent {
    /// The extent when it is known at compile time.
    pub fn as_static(self) -> Option<usize> {
        match self {
            Extent::Static(n) => Some(n),
            Extent::Dynamic(_) => None,
        }
    }
}

/// How a global buffer's elements lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Strides {
    /// Row-major without gaps.
    Contiguous,
    /// The last axis is contiguous, the others have strides that are known at launch.
    Dynamic,
}

#[derive(Clone, PartialEq, Debug)]
pub struct BufferData {
    /// The author's name for a parameter; empty for tiles, which are named by their id.
    pub name: String,
    pub dtype: DType,
    pub scope: Scope,
    pub shape: Vec<Extent>,
    pub strides: Strides,
    pub span: Span,
}

impl BufferData {
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The shape when every extent is known at compile time; always so for buffers that are not global.
    pub fn static_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(|e| e.as_static()).collect()
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct DimData {
    pub name: String,
    /// The `index` value that stands for the extent.
    pub value: Value,
}

/// What a kernel does with a tensor parameter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// `&Tensor`: only read.
    Read,
    /// `&mut Tensor`: written, and possibly read.
    Write,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Param {
    Tensor { buffer: Buffer, access: Access },
    Scalar { name: String, value: Value },
}

#[derive(Clone, PartialEq, Debug)]
pub struct OpData {
    pub kind: OpKind,
    pub span: Span,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct RegionData {
    pub ops: Vec<Op>,
}

/// The order in which blocks are meant to run, for reuse in the L2 cache. A hint: results do not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum BlockOrder {
    /// First grid axis fastest.
    #[default]
    RowMajor,
    /// Panels of so many blocks along the second axis are walked before the first axis advances.
    Panel(u32),
}

/// Blocks of the grid, along its first two axes, that are meant to run together and to fetch the operands they have in common
/// for each other, where the device has a way to. A hint: results do not depend on it.
pub type Clusters = [u32; 2];

/// How the products of the pipelined loop in a kernel's body are added up. Results may differ in the rounding of these sums
/// alone; a device that knows one way only takes that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Sums {
    /// One after another.
    #[default]
    InTurn,
    /// The iterations are cut into `count` runs of equal length (the last may be shorter). The products of a run are added up
    /// by themselves, then the sums of the runs in their order. `spread`: blocks of the device share the runs of a block of
    /// the grid. Either way the bits are the same.
    Runs { count: u32, spread: bool },
}

/// A kernel.
///
/// `prelude` computes the grid from dims and scalar parameters; the host evaluates it before a
/// launch, and its values are visible in `body`. `body` runs once for each block of the grid.
/// Ops of a region run in order. A value is computed once, where its op stands, and is visible to the
/// ops after it in the same region and in regions nested there. Buffers are memory: a load sees the
/// last store before it, and two different buffers never alias.
#[derive(Clone, PartialEq, Debug)]
pub struct Func {
    pub name: String,
    pub span: Span,
    pub values: Arena<Value, ValueData>,
    pub buffers: Arena<Buffer, BufferData>,
    pub ops: Arena<Op, OpData>,
    pub regions: Arena<Region, RegionData>,
    pub dims: Arena<Dim, DimData>,
    pub params: Vec<Param>,
    pub prelude: Region,
    /// Extents of the grid, one to three `index` values.
    pub grid: Vec<Value>,
    /// The block's coordinates in the grid, as many as `grid` has.
    pub block_ids: Vec<Value>,
    /// Threads in a block where the device has them.
    pub threads: usize,
    pub block_order: BlockOrder,
    pub sums: Sums,
    /// Without it, the device's compiler chooses.
    pub clusters: Option<Clusters>,
    /// A wish: two sets of threads take the blocks of the grid in turns, so that one multiplies while the other stores. Devices
    /// without such sets, and kernels that do not fit them, ignore it. No result depends on it.
    pub ping_pong: bool,
    pub body: Region,
    constants: FastMap<Const, Value>,
}

impl Func {
    /// An empty kernel without a grid.
    pub fn new(name: impl Into<String>, span: Span) -> Func {
        let mut regions = Arena::default();
        let prelude = regions.push(RegionData::default());
        let body = regions.push(RegionData::default());
        Func {
            name: name.into(),
            span,
            values: Arena::default(),
            buffers: Arena::default(),
            ops: Arena::default(),
            regions,
            dims: Arena::default(),
            params: Vec::new(),
            prelude,
            grid: Vec::new(),
            block_ids: Vec::new(),
            threads: 128,
            block_order: BlockOrder::default(),
            sums: Sums::default(),
            clusters: None,
            ping_pong: false,
            body,
            constants: FastMap::default(),
        }
    }

    /// The value of an immediate.
    pub fn constant(&mut self, c: Const) -> Value {
        if let Some(&v) = self.constants.get(&c) {
            return v;
        }
        let v = self.values.push(ValueData { ty: c.dtype(), def: ValueDef::Const(c) });
        self.constants.insert(c, v);
        v
    }

    /// The immediate behind a value, if it is one.
    pub fn as_const(&self, v: Value) -> Option<Const> {
        match self.values[v].def {
            ValueDef::Const(c) => Some(c),
            ValueDef::Dim(_) | ValueDef::Param(_) | ValueDef::BlockId(_) | ValueDef::Op(_) | ValueDef::Pending => None,
        }
    }

    /// The immediate integer behind an `index` value, if it is one.
    pub fn as_index(&self, v: Value) -> Option<i64> {
        self.as_const(v).filter(|c| c.dtype() == DType::Index).map(|c| c.as_i64())
    }

    pub fn ty(&self, v: Value) -> DType {
        self.values[v].ty
    }

    /// Adds a named dim and the value that stands for it.
    pub fn add_dim(&mut self, name: impl Into<String>) -> Dim {
        let dim = self.dims.next_id();
        let value = self.values.push(ValueData { ty: DType::Index, def: ValueDef::Dim(dim) });
        self.dims.push(DimData { name: name.into(), value })
    }

    /// Adds a tensor parameter.
    pub fn add_tensor(&mut self, data: BufferData, access: Access) -> Buffer {
        debug_assert_eq!(data.scope, Scope::Global);
        let buffer = self.buffers.push(data);
        self.params.push(Param::Tensor { buffer, access });
        buffer
    }

    /// Adds a scalar parameter.
    pub fn add_scalar(&mut self, name: impl Into<String>, ty: DType) -> Value {
        let position = u32::try_from(self.params.len()).expect("few parameters");
        let value = self.values.push(ValueData { ty, def: ValueDef::Param(position) });
        self.params.push(Param::Scalar { name: name.into(), value });
        value
    }

    /// Sets the grid and returns the block's coordinates in it.
    pub fn set_grid(&mut self, grid: Vec<Value>, threads: usize) -> Vec<Value> {
        self.block_ids = (0..grid.len() as u32)
            .map(|axis| self.values.push(ValueData { ty: DType::Index, def: ValueDef::BlockId(axis) }))
            .collect();
        self.grid = grid;
        self.threads = threads;
        self.block_ids.clone()
    }

    /// An empty region, to be filled and attached to an op.
    pub fn add_region(&mut self) -> Region {
        self.regions.push(RegionData::default())
    }

    /// A value that an op appended later will define.
    pub fn add_value(&mut self, ty: DType) -> Value {
        self.values.push(ValueData { ty, def: ValueDef::Pending })
    }

    /// Appends an op to a region and makes it the definition of the values it names as results.
    pub fn append(&mut self, region: Region, kind: OpKind, span: Span) -> Op {
        let op = self.ops.push(OpData { kind, span });
        let mut defs = Vec::new();
        self.ops[op].kind.for_each_def(&mut |v| defs.push(v));
        for v in defs {
            self.values[v].def = ValueDef::Op(op);
        }
        self.regions[region].ops.push(op);
        op
    }

    /// Calls `f` for every op of `region` and of the regions nested in it, outer before inner, in program order.
    pub fn walk(&self, region: Region, f: &mut dyn FnMut(Op, &OpData)) {
        for &op in &self.regions[region].ops {
            let data = &self.ops[op];
            f(op, data);
            data.kind.for_each_region(&mut |r| self.walk(r, f));
        }
    }

    /// Shape of a window's buffer axis `axis` as a static extent, if it is one.
    pub fn buffer_extent(&self, buffer: Buffer, axis: usize) -> Extent {
        self.buffers[buffer].shape[axis]
    }
}
