//! From plans to programs: signature, tiles, loops over elements.

use super::plan::Plan;
use super::{Config, Program, data};
use zellige_ir::interp::{Arg, TensorArg};
use zellige_ir::{
    Access, BlockOrder, Buffer, Const, DType, Dim, Extent, FuncBuilder, LoopKind, OpKind, Scope, Span, Value, Window,
};

/// Blocks along an axis, and steps along k.
const MAX_BLOCKS: usize = 3;
/// Tiles alive at once; further ones are not made.
const MAX_TILES: usize = 24;
/// Steps of the interpreter for all that plans ask for; the rest of [`Program::FUEL`] is for what each program does.
const MAX_WORK: u64 = Program::FUEL * 4 / 5;
/// Elements of a local tile.
const MAX_LOCAL: usize = 64;
/// Rows that a persistent loop deals out.
pub(super) const ROWS: usize = 5;
/// Counters that atomics update.
pub(super) const COUNTERS: usize = 3;

/// A problem axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Axis {
    M,
    N,
    K,
}

/// A tensor that is only read.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub buffer: Buffer,
    pub dtype: DType,
    pub axes: [Axis; 2],
}

/// A tile whose elements are all written.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Tile {
    pub buffer: Buffer,
    pub dtype: DType,
    pub scope: Scope,
    pub shape: Vec<usize>,
}

/// A program under construction.
pub(super) struct Builder<'c> {
    pub config: &'c Config,
    pub b: FuncBuilder,
    pub inputs: Vec<Input>,
    pub tiles: Vec<Tile>,
    /// Extents of tiles along m, n and k.
    pub tile: [usize; 3],
    /// Steps along k that cover it.
    pub k_steps: usize,
    /// First element of the block along m and n.
    pub base: [Value; 2],
    /// Values of type `index` that are known to be small and not negative.
    pub indices: Vec<Value>,
    /// Scalar parameters and dims.
    pub scalars: Vec<Value>,
    pub alpha: Value,
    /// Outputs that steps write to: `[m, n]`, [`ROWS`] rows, [`COUNTERS`] counters.
    pub direct: Buffer,
    pub rows: Buffer,
    pub counters: Buffer,
    pub in_role: bool,
    /// Times that the step under construction runs, over all blocks.
    pub runs: u64,
    /// Steps of the interpreter that may yet be asked for.
    work_left: u64,
    laid_out: Vec<Buffer>,
}

/// Element types of inputs: what tiles have, and the formats that are only stored.
fn input_dtypes(config: &Config) -> Vec<DType> {
    let mut all = config.dtypes.clone();
    for ty in config.operands.iter().copied().chain([DType::E8M0]) {
        // A packed tensor would need even extents of the dims.
        if !all.contains(&ty) && ty != DType::F4E2M1 {
            all.push(ty);
        }
    }
    all
}

/// The element that a choice means.
pub(super) fn pick<T: Clone>(choice: u8, all: &[T]) -> Option<T> {
    all.get(usize::from(choice) % all.len().max(1)).cloned()
}

impl Plan {
    /// The program of this plan.
    pub fn build(&self, config: &Config) -> Program {
        let tile = self.tiles.map(|c| pick(c, &config.extents).unwrap_or(1));
        let blocks = self.blocks.map(|c| usize::from(c) % MAX_BLOCKS + 1);
        // Whole tiles, less up to one: the last tile along an axis may stick out.
        let extent: [usize; 3] = std::array::from_fn(|i| blocks[i] * tile[i] - usize::from(self.rest[i]) % tile[i]);

        let mut b = FuncBuilder::new("random", Span::unknown());
        let mut args: Vec<Arg> = Vec::new();
        let mut state = self.data;
        let dims: [Dim; 3] = ["m", "n", "k"].map(|name| b.func_mut().add_dim(name));
        let dynamic = |axis: Axis| Extent::Dynamic(dims[axis as usize]);

        let dtypes = input_dtypes(config);
        let mut inputs = Vec::new();
        // All three dims are known from the first input; the others are random.
        let m_by_k = [(0, 2)];
        for (i, &(dtype, axes)) in m_by_k.iter().chain(&self.inputs).enumerate() {
            let all = [Axis::M, Axis::N, Axis::K];
            let (first, second) = if i == 0 { (0, 2) } else { (usize::from(axes) % 3, usize::from(axes) / 3 % 3) };
            let axes = [all[first], all[second]];
            let dtype = pick(dtype, &dtypes).unwrap_or(DType::F32);
            let buffer = b.tensor(&format!("x{i}"), dtype, axes.map(dynamic).to_vec(), Access::Read);
            args.push(data::tensor(dtype, &axes.map(|a| extent[a as usize]), &mut state).into());
            inputs.push(Input { buffer, dtype, axes });
        }
        let alpha = b.func_mut().add_scalar("alpha", DType::F32);
        let beta = b.func_mut().add_scalar("beta", DType::I32);
        args.push(Const::f32((data::next(&mut state) % 65) as f32 / 8.0 - 4.0).into());
        args.push(Const::i32((data::next(&mut state) % 201) as i32 - 100).into());
        let mut output = |b: &mut FuncBuilder, name: &str, dtype, shape: Vec<Extent>, sizes: &[usize]| {
            args.push(TensorArg::zeros(dtype, sizes).into());
            b.tensor(name, dtype, shape, Access::Write)
        };
        let [m, n, _] = extent;
        let direct = output(&mut b, "direct", DType::F32, vec![dynamic(Axis::M), dynamic(Axis::N)], &[m, n]);
        let rows = [ROWS, tile[1]];
        let rows = output(&mut b, "rows", DType::F32, rows.map(Extent::Static).to_vec(), &rows);
        let counters = output(&mut b, "counters", DType::I32, vec![Extent::Static(COUNTERS)], &[COUNTERS]);

        let dim = |b: &FuncBuilder, axis: Axis| b.func().dims[dims[axis as usize]].value;
        let grid: Vec<Value> = [Axis::M, Axis::N]
            .into_iter()
            .map(|axis| {
                let (extent, step) = (dim(&b, axis), b.index(tile[axis as usize] as i64));
                b.ceildiv(extent, step)
            })
            .collect();
        let threads = pick(self.threads, &[32, 64, 128]).unwrap_or(32);
        let ids = b.grid(&grid, threads);
        if !self.panel.is_multiple_of(4) {
            b.func_mut().block_order = BlockOrder::Panel(u32::from(self.panel % 4));
        }
        let base = [0, 1].map(|axis| {
            let step = b.index(tile[axis] as i64);
            b.mul(ids[axis], step)
        });
        let scalars = vec![alpha, beta, dim(&b, Axis::M), dim(&b, Axis::N), dim(&b, Axis::K)];
        let mut builder = Builder {
            config,
            b,
            inputs,
            tiles: Vec::new(),
            tile,
            k_steps: blocks[2],
            base,
            indices: ids.clone(),
            scalars,
            alpha,
            direct,
            rows,
            counters,
            in_role: false,
            runs: (blocks[0] * blocks[1]) as u64,
            work_left: MAX_WORK,
            laid_out: Vec::new(),
        };
        builder.steps(&self.steps);
        // Whatever was computed can be seen: each block writes its tiles to a place of its own.
        let tiles = builder.tiles.clone();
        for (i, t) in tiles.iter().enumerate() {
            let is_matrix = t.shape == tile[..2] && i % 2 == 0;
            let name = format!("y{i}");
            let buffer = if is_matrix {
                let shape = vec![dynamic(Axis::M), dynamic(Axis::N)];
                output(&mut builder.b, &name, t.dtype, shape, &[m, n])
            } else {
                let sizes: Vec<usize> = [MAX_BLOCKS; 2].into_iter().chain(t.shape.iter().copied()).collect();
                let shape = sizes.iter().map(|&n| Extent::Static(n)).collect();
                output(&mut builder.b, &name, t.dtype, shape, &sizes)
            };
            let zero = builder.b.index(0);
            let offsets = if is_matrix {
                base.to_vec()
            } else {
                ids.iter().copied().chain(t.shape.iter().map(|_| zero)).collect()
            };
            let to = builder.b.window(buffer, &offsets, &t.shape);
            let from = builder.b.whole(t.buffer);
            builder.b.copy(from, to);
        }
        Program { func: builder.b.finish(), args }
    }
}

impl Builder<'_> {
    /// The scope that a choice means for a tile of this shape.
    pub fn scope(&self, choice: u8, shape: &[usize]) -> Scope {
        let small = shape.iter().product::<usize>() <= MAX_LOCAL;
        match choice % 8 {
            0..=3 => Scope::Shared,
            4..=6 => Scope::Fragment,
            _ if small && !self.config.aligned_fragments => Scope::Local,
            _ => Scope::Shared,
        }
    }

    /// Counts the work of a step, each time that it runs; `None` if that is too much.
    pub fn spend(&mut self, work: u64) -> Option<()> {
        self.work_left = self.work_left.checked_sub(work * self.runs)?;
        Some(())
    }

    /// A new tile, whose elements must be written next; `None` if there are too many.
    pub fn alloc(&mut self, scope: Scope, dtype: DType, shape: &[usize]) -> Option<Tile> {
        if self.tiles.len() >= MAX_TILES {
            return None;
        }
        let buffer = self.b.alloc(scope, dtype, shape);
        Some(Tile { buffer, dtype, scope, shape: shape.to_vec() })
    }

    /// A tile's window, whole.
    pub fn whole(&mut self, t: &Tile) -> Window {
        self.b.whole(t.buffer)
    }

    /// A new tile with the elements of a window of this shape.
    pub fn copied(&mut self, scope: Scope, dtype: DType, from: Window, pad: i8) -> Option<Tile> {
        let t = self.alloc(scope, dtype, &from.shape())?;
        let dst = self.whole(&t);
        let pad = self.pad(&from, pad);
        self.b.append(OpKind::Copy { src: from, dst, pad });
        Some(t)
    }

    /// A padding for reads of a window.
    pub fn pad(&self, window: &Window, value: i8) -> Const {
        match self.b.func().buffers[window.buffer].dtype {
            // Has no negative values.
            DType::E8M0 => Const::from_f64(DType::E8M0, f64::from(value % 4).exp2()),
            ty => Const::from_f64(ty, f64::from(value)),
        }
    }

    /// The tile's extents along the axes of an input.
    pub fn extents(&self, input: &Input) -> [usize; 2] {
        input.axes.map(|axis| self.tile[axis as usize])
    }

    /// Where the block's part of an input starts, at step `k` along that axis.
    pub fn offsets(&mut self, input: &Input, k: Value) -> [Value; 2] {
        let step = self.b.index(self.tile[2] as i64);
        input.axes.map(|axis| match axis {
            Axis::M => self.base[0],
            Axis::N => self.base[1],
            Axis::K => self.b.mul(k, step),
        })
    }

    /// Runs `body` for every point of a shape. Local tiles belong to all threads alike, so writing them takes a serial loop.
    pub fn for_each(&mut self, loops: u8, dst: Scope, shape: &[usize], body: impl FnOnce(&mut Self, &[Value])) {
        let extents: Vec<Value> = shape.iter().map(|&n| self.b.index(n as i64)).collect();
        let (kinds, joined): (Vec<LoopKind>, bool) = match loops % 6 {
            _ if dst == Scope::Local => (vec![LoopKind::Serial; shape.len()], false),
            0..=2 => (vec![LoopKind::Parallel], true),
            3 => (vec![LoopKind::Vectorized], true),
            4 => (vec![LoopKind::Serial, LoopKind::Unrolled], false),
            _ => (vec![LoopKind::Parallel, LoopKind::Vectorized], false),
        };
        let mut point = Vec::new();
        if shape.is_empty() {
            return body(self, &[]);
        }
        if joined {
            point = self.b.begin_for(kinds[0], &extents);
        } else {
            for (axis, &n) in extents.iter().enumerate() {
                point.extend(self.b.begin_for(kinds[axis.min(kinds.len() - 1)], &[n]));
            }
        }
        body(self, &point);
        for _ in 0..if joined { 1 } else { extents.len() } {
            self.b.close();
        }
    }

    /// True once for each tile.
    pub fn may_lay_out(&mut self, t: &Tile) -> bool {
        let first = !self.laid_out.contains(&t.buffer);
        self.laid_out.push(t.buffer);
        first
    }
}
