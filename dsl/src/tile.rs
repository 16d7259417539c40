//! `T`: the tile operations of a kernel.

use crate::buffer::{Position, Tile};
use crate::expr::Var;
use crate::extents::{gemm, move_tile, own_window, reduce, rows_match, scan, shuffle, windows};
use crate::loops::{Extents, Loop};
use crate::record;
use crate::{Expr, Fragment, Idx, Local, Shared, Tensor};
use smallvec::SmallVec;
use std::marker::PhantomData;
use std::panic::Location;
use zellige_ir::diagnostic::Diagnostic;
use zellige_ir::element::e8m0;
use zellige_ir::{
    AtomicOp, BlockOrder, Buffer, Const, DType, Element, GemmPrecision, Int, LayoutHint, LoopKind, Numeric, OpKind,
    ReduceOp, ScanOp, Scope, ShuffleOp, Span, Sums, Value, WarpRole,
};

/// The witness that a kernel is being recorded: every tile op is a method of it. A function that takes a `T`
/// visibly emits ops.
#[derive(Clone, Copy, Debug)]
pub struct T(pub(crate) ());

/// Extents of a grid: an array of one kind of number, or a tuple of several.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a grid",
    label = "expected one to three host or device integers"
)]
pub trait Grid<const N: usize> {
    #[doc(hidden)]
    fn extents(self) -> [Idx; N];
}

impl<I: Into<Idx>, const N: usize> Grid<N> for [I; N] {
    #[track_caller]
    fn extents(self) -> [Idx; N] {
        let mut it = self.into_iter();
        std::array::from_fn(|_| it.next().expect("an array of N has N elements").into())
    }
}

macro_rules! grid { ($($n:literal $($t:ident)*;)*) => { $(
    impl<$($t: Into<Idx>),*> Grid<$n> for ($($t,)*) {
        #[track_caller]
        #[allow(non_snake_case)]
        fn extents(self) -> [Idx; $n] {
            let ($($t,)*) = self;
            [$($t.into()),*]
        }
    }
)* } }
grid! { 1 A; 2 A B; 3 A B C; }

/// How a gemm multiplies. Accumulation is always in the accumulator's type.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Clear the accumulator first.
    pub clear: bool,
    pub precision: GemmPrecision,
}

impl Default for Gemm {
    fn default() -> Gemm {
        Gemm { clear: false, precision: GemmPrecision::Exact }
    }
}

impl T {
    // The block.

    /// Declares the grid, once, before the first tile op, and returns the block's coordinates in it. The extents
    /// are evaluated by the launcher. `threads` is the size of a block where the device has threads.
    #[track_caller]
    pub fn grid<const N: usize>(self, extents: impl Grid<N>, threads: usize) -> [Idx; N] {
        let at = Location::caller();
        let extents = extents.extents();
        let ids = record::with(at, |r| {
            if r.has_grid {
                r.error(Diagnostic::error("the grid is declared twice").at(Span::from(at), "second `t.grid` here"));
            }
            if !threads.is_multiple_of(32) || !(32..=1024).contains(&threads) {
                r.error(
                    Diagnostic::error(format!("{threads} threads in a block"))
                        .at(Span::from(at), "a block has a multiple of 32 threads, from 32 to 1024"),
                );
            }
            r.has_grid = true;
            let extents: SmallVec<[Value; 3]> = extents.iter().map(|e| e.value).collect();
            r.builder.grid(&extents, threads)
        });
        std::array::from_fn(|i| Expr::new(ids[i]))
    }

    /// Asks for blocks to run in panels of `n` along the second grid axis, for reuse in the L2 cache.
    pub fn block_order_panel(self, n: u32) {
        record::with_current(|r| r.builder.func_mut().block_order = BlockOrder::Panel(n));
    }

    /// Asks for the products of the kernel's pipelined loop to be added up in `count` runs of iterations of equal length, and
    /// the sums of the runs in their order: see [`Sums`]. With `spread`, several blocks of the device share the runs of a
    /// block. The bits of the result depend on `count`, not on `spread`.
    pub fn sum_in_runs(self, count: usize, spread: bool) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        record::with_current(|r| r.builder.func_mut().sums = Sums::Runs { count, spread });
    }

    /// Asks for `x` by `y` neighbouring blocks of the grid to run together and to fetch the operands of products that they have
    /// in common for each other: see [`Func::clusters`](zellige_ir::Func::clusters). `1, 1` asks for none.
    pub fn clusters(self, x: usize, y: usize) {
        let [x, y] = [x, y].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        record::with_current(|r| r.builder.func_mut().clusters = Some([x, y]));
    }

    /// Asks for two sets of threads that take the blocks of the grid in turns: while one multiplies in the pipelined loop, the other
    /// writes its results. For kernels of one warpgroup (128 threads) that multiply with `wgmma`; elsewhere nothing changes.
    pub fn ping_pong(self) {
        record::with_current(|r| r.builder.func_mut().ping_pong = true);
    }

    // Memory.

    #[track_caller]
    fn alloc(self, scope: Scope, dtype: DType, shape: &[usize]) -> Buffer {
        let at = Location::caller();
        record::with(at, |r| {
            if let Some(axis) = shape.iter().position(|&n| n == 0) {
                r.error(
                    Diagnostic::error(format!("axis {axis} of a {} {shape:?} is empty", scope.name()))
                        .at(Span::from(at), "every extent of a tile is at least 1"),
                );
            }
            if dtype == DType::F4E2M1 && shape.last().is_some_and(|n| n % 2 != 0) {
                r.error(
                    Diagnostic::error(format!("the last extent of a packed f4e2m1 tile is odd: {shape:?}"))
                        .at(Span::from(at), "two elements share a byte along the last axis"),
                );
            }
            r.builder.alloc(scope, dtype, shape)
        })
    }

    /// A tile in shared memory; its contents are undefined until written.
    #[track_caller]
    pub fn shared<E: Element, const R: usize>(self, shape: [usize; R]) -> Shared<E, R> {
        Shared::new(self.alloc(Scope::Shared, E::DTYPE, &shape))
    }

    /// A tile in registers; its contents are undefined until written.
    #[track_caller]
    pub fn fragment<E: Element, const R: usize>(self, shape: [usize; R]) -> Fragment<E, R> {
        Fragment::new(self.alloc(Scope::Fragment, E::DTYPE, &shape))
    }

    /// A small table that every thread has alike; its contents are undefined until written.
    #[track_caller]
    pub fn local<E: Element, const R: usize>(self, shape: [usize; R]) -> Local<E, R> {
        Local::new(self.alloc(Scope::Local, E::DTYPE, &shape))
    }

    /// A mutable scalar.
    #[track_caller]
    pub fn var<E: Element>(self, init: impl Into<Expr<E>>) -> Var<E> {
        let init = init.into();
        let var = Var { buffer: self.alloc(Scope::Local, E::DTYPE, &[]), element: PhantomData };
        var.set(init);
        var
    }

    /// Demands a swizzle of 32, 64 or 128 bytes for a shared tile.
    #[track_caller]
    pub fn swizzle<E: Element, const R: usize>(self, tile: Shared<E, R>, bytes: u32) {
        let at = Location::caller();
        record::with(at, |r| {
            if ![32, 64, 128].contains(&bytes) {
                let (span, what) = r.origin(tile.buffer);
                r.error(
                    Diagnostic::error(format!("a swizzle of {bytes} bytes"))
                        .at(Span::from(at), "expected 32, 64 or 128")
                        .note_at(span, what),
                );
            }
            r.builder.append(OpKind::Layout { buffer: tile.buffer, hint: LayoutHint::Swizzle(bytes) });
        });
    }

    /// Demands `elements` of padding after each row of a shared tile.
    #[track_caller]
    pub fn pad<E: Element, const R: usize>(self, tile: Shared<E, R>, elements: u32) {
        let hint = LayoutHint::Pad(elements);
        record::with(Location::caller(), |r| r.builder.append(OpKind::Layout { buffer: tile.buffer, hint }));
    }

    // Moves.

    /// Copies a tile. Elements outside a tensor read as zero and are not written.
    #[track_caller]
    pub fn copy<E: Element, const R: usize>(self, src: impl Tile<E, R>, dst: impl Tile<E, R>) {
        move_tile("copy", src, dst, Const::zero(E::DTYPE));
    }

    /// As [`copy`](Self::copy), with `pad` for elements outside a tensor.
    #[track_caller]
    pub fn copy_padded<E: Element, const R: usize>(self, src: impl Tile<E, R>, dst: impl Tile<E, R>, pad: f32) {
        move_tile("copy", src, dst, Const::from_f64(E::DTYPE, f64::from(pad)));
    }

    /// Copies a tile and converts its elements as [`Expr::cast`] does.
    #[track_caller]
    pub fn cast<A: Element, B: Element, const R: usize>(self, src: impl Tile<A, R>, dst: impl Tile<B, R>) {
        move_tile("cast", src, dst, Const::zero(A::DTYPE));
    }

    /// Copies rows chosen by position: row `i` of `dst` is row `index[i]` of `src`, counted from the window's start. A
    /// position below zero or beyond the tensor gives zeros.
    #[track_caller]
    pub fn gather<E: Element, P: Position, const R: usize>(
        self,
        src: impl Tile<E, R>,
        index: impl Tile<P, 1>,
        dst: impl Tile<E, R>,
    ) {
        let at = Location::caller();
        if let Some((src, dst)) = windows("gather", at, &src, &dst) {
            let index = index.window(Some([dst.shape()[0]]));
            record::with(at, |r| {
                if let Some(index) = index
                    && rows_match(r, "gather", at, &index, &dst)
                {
                    let pad = Const::zero(E::DTYPE);
                    r.builder.append(OpKind::Gather { src, index, dst, pad });
                }
            });
        }
    }

    /// Copies rows to chosen positions: row `i` of `src` becomes row `index[i]` of `dst`. A position below zero or beyond
    /// the tensor is skipped; positions must differ.
    #[track_caller]
    pub fn scatter<E: Element, P: Position, const R: usize>(
        self,
        src: impl Tile<E, R>,
        index: impl Tile<P, 1>,
        dst: impl Tile<E, R>,
    ) {
        let at = Location::caller();
        if let Some((src, dst)) = windows("scatter", at, &src, &dst) {
            let index = index.window(Some([src.shape()[0]]));
            record::with(at, |r| {
                if let Some(index) = index
                    && rows_match(r, "scatter", at, &index, &src)
                {
                    r.builder.append(OpKind::Scatter { src, dst, index });
                }
            });
        }
    }

    /// Sets every element.
    #[track_caller]
    pub fn fill<E: Element, const R: usize>(self, dst: impl Tile<E, R>, v: impl Into<Expr<E>>) {
        let at = Location::caller();
        let v = v.into();
        let Some(dst) = own_window("fill", at, &dst) else { return };
        record::with(at, |r| r.builder.append(OpKind::Fill { dst, value: v.value }));
    }

    /// Sets every element to zero.
    #[track_caller]
    pub fn clear<E: Element, const R: usize>(self, dst: impl Tile<E, R>) {
        let at = Location::caller();
        let Some(dst) = own_window("clear", at, &dst) else { return };
        record::with(at, |r| {
            let value = r.builder.constant(Const::zero(E::DTYPE));
            r.builder.append(OpKind::Fill { dst, value });
        });
    }

    // Compute.

    /// `acc += a b`. Use `.t()` on an operand that lies transposed.
    #[track_caller]
    pub fn gemm<A: Element, B: Element, C: Numeric>(self, a: impl Tile<A, 2>, b: impl Tile<B, 2>, acc: Fragment<C, 2>) {
        gemm(Location::caller(), &a, &b, acc, Gemm::default());
    }

    /// As [`gemm`](Self::gemm), with options.
    #[track_caller]
    pub fn gemm_with<A: Element, B: Element, C: Numeric>(
        self,
        a: impl Tile<A, 2>,
        b: impl Tile<B, 2>,
        acc: Fragment<C, 2>,
        options: Gemm,
    ) {
        gemm(Location::caller(), &a, &b, acc, options);
    }

    /// Running sum along `axis`, inclusive.
    #[track_caller]
    pub fn cumsum<E: Numeric, const R: usize>(self, src: impl Tile<E, R>, dst: impl Tile<E, R>, axis: usize) {
        scan(Location::caller(), ScanOp::Sum, &src, &dst, axis, false, false);
    }

    /// Running combination along `axis`: from the end if `reverse`, without the element itself if `exclusive`.
    #[track_caller]
    pub fn scan<E: Numeric, const R: usize>(
        self,
        op: ScanOp,
        src: impl Tile<E, R>,
        dst: impl Tile<E, R>,
        axis: usize,
        reverse: bool,
        exclusive: bool,
    ) {
        scan(Location::caller(), op, &src, &dst, axis, reverse, exclusive);
    }

    /// The largest elements along the last axis, in descending order, with their positions; as many as the last
    /// extent of `values` and `indices`. Ties: the smaller position first.
    #[track_caller]
    pub fn topk<E: Numeric, const R: usize>(
        self,
        src: impl Tile<E, R>,
        values: impl Tile<E, R>,
        indices: impl Tile<i32, R>,
    ) {
        let at = Location::caller();
        let (Some(src), Some(values), Some(indices)) =
            (own_window("topk", at, &src), own_window("topk", at, &values), own_window("topk", at, &indices))
        else {
            return;
        };
        record::with(at, |r| {
            let (s, v, i) = (src.shape(), values.shape(), indices.shape());
            let rows = |x: &[usize]| x[..x.len() - 1].to_vec();
            if v != i || rows(&s) != rows(&v) || v[R - 1] > s[R - 1] {
                let notes = [r.origin(src.buffer), r.origin(values.buffer), r.origin(indices.buffer)];
                r.error(notes.into_iter().fold(
                    Diagnostic::error(format!(
                        "topk of a {s:?} tile into values {v:?} and indices {i:?}: the leading extents must agree and the last be at most {}",
                        s[R - 1]
                    ))
                    .at(Span::from(at), ""),
                    |d, (span, what)| d.note_at(span, what),
                ));
                return;
            }
            r.builder.append(OpKind::TopK { src, values, indices, largest: true });
        });
    }

    /// Sorts along the last axis, stably; NaN comes last.
    #[track_caller]
    pub fn sort<E: Numeric, const R: usize>(self, keys: impl Tile<E, R>, descending: bool) {
        let at = Location::caller();
        let Some(keys) = own_window("sort", at, &keys) else { return };
        record::with(at, |r| r.builder.append(OpKind::Sort { keys, payload: None, descending }));
    }

    /// Sorts `keys` along the last axis, stably, and moves `payload` along.
    #[track_caller]
    pub fn sort_pairs<E: Numeric, P: Element, const R: usize>(
        self,
        keys: impl Tile<E, R>,
        payload: impl Tile<P, R>,
        descending: bool,
    ) {
        let at = Location::caller();
        if let Some((keys, payload)) = windows("sort", at, &keys, &payload) {
            record::with(at, |r| {
                r.builder.append(OpKind::Sort { keys, payload: Some(payload), descending });
            });
        }
    }

    // Loops.

    /// Iterations in order.
    #[track_caller]
    pub fn serial<X: Extents<Indices = Idx>>(self, n: X) -> Loop<X> {
        Loop::new(LoopKind::Serial, n, Location::caller())
    }

    /// Iterations in order, unrolled by the compiler. (A `for` over a host range unrolls while recording.)
    #[track_caller]
    pub fn unrolled<X: Extents<Indices = Idx>>(self, n: X) -> Loop<X> {
        Loop::new(LoopKind::Unrolled, n, Location::caller())
    }

    /// Iterations in order; the copies of up to `stages` of them may be in flight together.
    #[track_caller]
    pub fn pipelined<X: Extents<Indices = Idx>>(self, n: X, stages: usize) -> Loop<X> {
        Loop::new(LoopKind::Pipelined { stages: u32::try_from(stages).unwrap_or(u32::MAX) }, n, Location::caller())
    }

    /// Independent iterations, spread over the block's threads: `for (i, j) in t.parallel((m, n))`.
    #[track_caller]
    pub fn parallel<X: Extents>(self, extents: X) -> Loop<X> {
        Loop::new(LoopKind::Parallel, extents, Location::caller())
    }

    /// Independent iterations, to be done with vector instructions.
    #[track_caller]
    pub fn vectorized<X: Extents>(self, extents: X) -> Loop<X> {
        Loop::new(LoopKind::Vectorized, extents, Location::caller())
    }

    /// The iterations `i` of `0..n` with `i` = this block's linear id modulo the number of blocks, in order.
    #[track_caller]
    pub fn persistent<X: Extents<Indices = Idx>>(self, n: X) -> Loop<X> {
        Loop::new(LoopKind::Persistent, n, Location::caller())
    }

    /// Repeats `body` as long as `cond`, evaluated anew before each round, is true.
    #[track_caller]
    pub fn repeat_while(self, cond: impl FnOnce() -> Expr<bool>, body: impl FnOnce()) {
        let at = Location::caller();
        let (before, body_region) = record::with(at, |r| {
            let f = r.builder.func_mut();
            let regions = (f.add_region(), f.add_region());
            r.builder.open(regions.0);
            regions
        });
        let cond = cond();
        record::with(at, |r| {
            r.builder.close();
            r.builder.append(OpKind::While { before, cond: cond.value, body: body_region });
            r.builder.open(body_region);
        });
        body();
        record::with(at, |r| r.builder.close());
    }

    /// The body runs on producer warps where the device has warp specialisation.
    #[track_caller]
    pub fn producer(self, body: impl FnOnce()) {
        self.role(WarpRole::Producer, Location::caller(), body);
    }

    /// The body runs on consumer warp group `n` where the device has warp specialisation.
    #[track_caller]
    pub fn consumer(self, n: u32, body: impl FnOnce()) {
        self.role(WarpRole::Consumer(n), Location::caller(), body);
    }

    fn role(self, role: WarpRole, at: &'static Location<'static>, body: impl FnOnce()) {
        record::with(at, |r| {
            let region = r.builder.func_mut().add_region();
            r.builder.append(OpKind::Role { role, body: region });
            r.builder.open(region);
        });
        body();
        record::with(at, |r| r.builder.close());
    }

    // Warps.

    /// `dst[i] = src[i ^ mask]` in groups of 32 along the last axis.
    #[track_caller]
    pub fn shuffle_xor<E: Element, const R: usize>(
        self,
        src: Fragment<E, R>,
        dst: Fragment<E, R>,
        mask: impl Into<Idx>,
    ) {
        shuffle(Location::caller(), ShuffleOp::Xor, src, dst, mask.into());
    }

    /// `dst[i] = src[i - n]` in groups of 32 along the last axis; the first `n` keep their own.
    #[track_caller]
    pub fn shuffle_up<E: Element, const R: usize>(self, src: Fragment<E, R>, dst: Fragment<E, R>, n: impl Into<Idx>) {
        shuffle(Location::caller(), ShuffleOp::Up, src, dst, n.into());
    }

    /// `dst[i] = src[i + n]` in groups of 32 along the last axis; the last `n` keep their own.
    #[track_caller]
    pub fn shuffle_down<E: Element, const R: usize>(self, src: Fragment<E, R>, dst: Fragment<E, R>, n: impl Into<Idx>) {
        shuffle(Location::caller(), ShuffleOp::Down, src, dst, n.into());
    }

    /// `dst[i] = src[lane]` of the same group of 32 along the last axis.
    #[track_caller]
    pub fn shuffle_idx<E: Element, const R: usize>(
        self,
        src: Fragment<E, R>,
        dst: Fragment<E, R>,
        lane: impl Into<Idx>,
    ) {
        shuffle(Location::caller(), ShuffleOp::Idx, src, dst, lane.into());
    }

    // Debugging.

    /// Prints a message and values when the kernel runs.
    #[track_caller]
    pub fn print<E: Element>(self, message: &str, values: &[Expr<E>]) {
        let message = message.to_owned();
        let values = values.iter().map(|v| v.value).collect();
        record::with(Location::caller(), |r| r.builder.append(OpKind::Print { message, values, window: None }));
    }

    /// Prints a message and a tile when the kernel runs.
    #[track_caller]
    pub fn print_tile<E: Element, const R: usize>(self, message: &str, tile: impl Tile<E, R>) {
        let at = Location::caller();
        let window = own_window("print_tile", at, &tile);
        let message = message.to_owned();
        record::with(at, |r| r.builder.append(OpKind::Print { message, values: SmallVec::new(), window }));
    }

    /// Ends the launch with an error when `cond` is false.
    #[track_caller]
    pub fn assert(self, cond: Expr<bool>, message: &str) {
        let message = message.to_owned();
        record::with(Location::caller(), |r| r.builder.append(OpKind::Assert { cond: cond.value, message }));
    }

    /// Promises that `cond` holds; the compiler may rely on it.
    #[track_caller]
    pub fn assume(self, cond: Expr<bool>) {
        record::with(Location::caller(), |r| r.builder.append(OpKind::Assume { cond: cond.value }));
    }
}

macro_rules! reductions {
    ($($(#[$meta:meta])* $name:ident $into:ident $op:ident $bound:ident;)*) => { impl T { $(
        $(#[$meta])*
        #[track_caller]
        pub fn $name<E: $bound, const R: usize, const S: usize>(self, src: impl Tile<E, R>, dst: impl Tile<E, S>, axis: usize) {
            reduce(Location::caller(), ReduceOp::$op, &src, &dst, axis, false);
        }

        /// The same, combined with what the destination holds.
        #[track_caller]
        pub fn $into<E: $bound, const R: usize, const S: usize>(self, src: impl Tile<E, R>, dst: impl Tile<E, S>, axis: usize) {
            reduce(Location::caller(), ReduceOp::$op, &src, &dst, axis, true);
        }
    )* } };
}
reductions! {
    /// Sum along `axis`; the destination lacks that axis. The order of the sum is the backend's own, always the same.
    reduce_sum reduce_sum_into Sum Numeric;
    /// Largest element along `axis`.
    reduce_max reduce_max_into Max Numeric;
    /// Smallest element along `axis`.
    reduce_min reduce_min_into Min Numeric;
    /// Largest magnitude along `axis`.
    reduce_absmax reduce_absmax_into AbsMax Numeric;
    /// Bitwise (or logical) and along `axis`.
    reduce_and reduce_and_into And Element;
    /// Bitwise (or logical) or along `axis`: a vote over a fragment of bools.
    reduce_or reduce_or_into Or Element;
    /// Bitwise exclusive or along `axis`.
    reduce_xor reduce_xor_into Xor Element;
}

impl T {
    /// Position of the first largest element along `axis`.
    #[track_caller]
    pub fn argmax<E: Numeric, const R: usize, const S: usize>(
        self,
        src: impl Tile<E, R>,
        dst: impl Tile<i32, S>,
        axis: usize,
    ) {
        reduce(Location::caller(), ReduceOp::ArgMax, &src, &dst, axis, false);
    }

    /// Position of the first smallest element along `axis`.
    #[track_caller]
    pub fn argmin<E: Numeric, const R: usize, const S: usize>(
        self,
        src: impl Tile<E, R>,
        dst: impl Tile<i32, S>,
        axis: usize,
    ) {
        reduce(Location::caller(), ReduceOp::ArgMin, &src, &dst, axis, false);
    }
}

macro_rules! atomics {
    ($($(#[$meta:meta])* $name:ident $op:ident $bound:ident;)*) => {
        impl<E: Numeric, const R: usize> Tensor<E, R> { $(atomics! { @one $(#[$meta])* $name $op $bound })* }
        impl<E: Numeric, const R: usize> Shared<E, R> { $(atomics! { @one $(#[$meta])* $name $op $bound })* }
    };
    (@one $(#[$meta:meta])* $name:ident $op:ident $bound:ident) => {
        $(#[$meta])*
        #[track_caller]
        pub fn $name(&self, at: impl crate::Subscript<R>, v: impl Into<Expr<E>>) -> Expr<E>
        where
            E: $bound,
        {
            let (indices, v) = (at.into_indices(), v.into());
            let indices: SmallVec<[Value; 4]> = indices.iter().map(|i| i.value).collect();
            Expr::new(record::with(Location::caller(), |r| r.builder.atomic(AtomicOp::$op, self.buffer, &indices, v.value)))
        }
    };
}
atomics! {
    /// Adds indivisibly and returns the element before. The order of float additions is not defined: not for
    /// kernels that promise equal bits.
    atomic_add Add Numeric;
    /// Takes the smaller indivisibly and returns the element before.
    atomic_min Min Int;
    /// Takes the larger indivisibly and returns the element before.
    atomic_max Max Int;
    /// Bitwise and, indivisibly; returns the element before.
    atomic_and And Int;
    /// Bitwise or, indivisibly; returns the element before.
    atomic_or Or Int;
    /// Replaces indivisibly and returns the element before.
    atomic_exchange Exchange Int;
}

/// The power of two at or above each element as an exponent-only scale: `x` is an amount such as `amax / 448`.
#[track_caller]
pub fn ceil_pow2(x: Expr<f32>) -> Expr<e8m0> {
    x.cast()
}
