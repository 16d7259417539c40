//! Tensors and tiles: handles of recorded buffers, their subscripts and windows.

use crate::expr::leak;
use crate::record;
use crate::{Expr, Idx};
use smallvec::SmallVec;
use std::marker::PhantomData;
use std::panic::Location;
use zellige_ir::diagnostic::Diagnostic;
use zellige_ir::{Buffer, Element, Extent, Numeric, Span, Value, Window, WindowAxis};

macro_rules! handle {
    ($($(#[$meta:meta])* $name:ident;)*) => { $(
        $(#[$meta])*
        pub struct $name<E, const R: usize> {
            pub(crate) buffer: Buffer,
            pub(crate) element: PhantomData<fn() -> E>,
        }

        impl<E, const R: usize> Clone for $name<E, R> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<E, const R: usize> Copy for $name<E, R> {}

        impl<E, const R: usize> std::fmt::Debug for $name<E, R> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.buffer)
            }
        }

        impl<E: Element, const R: usize> $name<E, R> {
            pub(crate) fn new(buffer: Buffer) -> Self {
                Self { buffer, element: PhantomData }
            }

            /// Writes one element; `#[kernel]` writes this for `buf[i] = v`.
            #[track_caller]
            pub fn store(&self, at: impl Subscript<R>, v: impl Into<Expr<E>>) {
                let (at, v) = (at.into_indices(), v.into());
                store(self.buffer, &at, v.value);
            }
        }

        impl<E: Element, I: Subscript<R>, const R: usize> std::ops::Index<I> for $name<E, R> {
            type Output = Expr<E>;
            #[track_caller]
            fn index(&self, at: I) -> &Expr<E> {
                leak(load(self.buffer, &at.into_indices()))
            }
        }

        impl<E: Element, I: Subscript<R>, const R: usize> StoreAt<I> for $name<E, R> {
            type Element = E;
            #[track_caller]
            fn store_at(&self, at: I, v: Expr<E>) {
                store(self.buffer, &at.into_indices(), v.value);
            }
        }
    )* };
}

handle! {
    /// A tensor parameter. Reads outside it give zero, writes outside it do nothing.
    Tensor;
    /// A tile in the memory that the threads of a block share.
    Shared;
    /// A tile spread over the registers of a block's threads.
    Fragment;
    /// A small table that every thread of a block has alike.
    Local;
}

/// What `buf[i] = v` and `buf[i] += v` in a kernel are rewritten to.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be assigned through this subscript in a kernel",
    label = "not a tensor or tile that takes a subscript of type `{I}`",
    note = "fill host arrays outside the kernel, or in a plain helper function"
)]
pub trait StoreAt<I> {
    /// Element type of the tensor or tile.
    type Element: Element;
    #[doc(hidden)]
    fn store_at(&self, at: I, v: Expr<Self::Element>);
}

macro_rules! through_reference { ($($r:ty),*) => { $(
    impl<I, B: StoreAt<I>> StoreAt<I> for $r {
        type Element = B::Element;
        #[track_caller]
        fn store_at(&self, at: I, v: Expr<B::Element>) {
            (**self).store_at(at, v);
        }
    }
)* } }
through_reference!(&B, &mut B);

#[track_caller]
fn load<E: Element>(buffer: Buffer, at: &[Idx]) -> Expr<E> {
    let at: SmallVec<[Value; 4]> = at.iter().map(|i| i.value).collect();
    Expr::new(record::with(Location::caller(), |r| r.builder.load(buffer, &at)))
}

#[track_caller]
fn store(buffer: Buffer, at: &[Idx], v: Value) {
    let at: SmallVec<[Value; 4]> = at.iter().map(|i| i.value).collect();
    record::with(Location::caller(), |r| r.builder.store(buffer, &at, v));
}

/// A subscript of a rank-`R` buffer: an index for rank 1, a tuple of indices otherwise. Device indices and host
/// integers may be mixed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a subscript of a rank-{R} tensor or tile",
    label = "expected {R} indices",
    note = "write `buf[i]` for rank 1, `buf[(i, j)]` for rank 2, and so on"
)]
pub trait Subscript<const R: usize> {
    #[doc(hidden)]
    fn into_indices(self) -> [Idx; R];
}

impl Subscript<1> for Idx {
    fn into_indices(self) -> [Idx; 1] {
        [self]
    }
}

macro_rules! host_subscript { ($($t:ty),*) => { $(
    impl Subscript<1> for $t {
        #[track_caller]
        fn into_indices(self) -> [Idx; 1] {
            [self.into()]
        }
    }
)* } }
host_subscript!(usize, i32);

impl<const R: usize> Subscript<R> for [Idx; R] {
    fn into_indices(self) -> [Idx; R] {
        self
    }
}

macro_rules! tuple_subscript { ($($n:literal $($t:ident)*;)*) => { $(
    impl<$($t: Into<Idx>),*> Subscript<$n> for ($($t,)*) {
        #[track_caller]
        #[allow(non_snake_case)]
        fn into_indices(self) -> [Idx; $n] {
            let ($($t,)*) = self;
            [$($t.into()),*]
        }
    }
)* } }
tuple_subscript! { 1 A; 2 A B; 3 A B C; 4 A B C D; 5 A B C D F; }

impl<E: Element, const R: usize> Tensor<E, R> {
    /// Extent of an axis: a constant if the dim is static, else known at launch.
    #[track_caller]
    pub fn dim(&self, axis: usize) -> Idx {
        let at = Location::caller();
        Expr::new(record::with(at, |r| match r.builder.func().buffers[self.buffer].shape.get(axis).copied() {
            Some(Extent::Static(n)) => r.builder.index(n as i64),
            Some(Extent::Dynamic(dim)) => r.builder.func().dims[dim].value,
            None => {
                let (span, what) = r.origin(self.buffer);
                r.error(
                    Diagnostic::error(format!("axis {axis} of a rank-{R} tensor"))
                        .at(Span::from(at), format!("axes run from 0 to {}", R.saturating_sub(1)))
                        .note_at(span, what),
                );
                r.builder.index(1)
            }
        }))
    }

    /// Extent of an axis as a number of the host, for tile shapes and unrolled loops. The dim must be static:
    /// name it in `#[kernel(static_dims(..))]`.
    #[track_caller]
    pub fn static_dim(&self, axis: usize) -> usize {
        let at = Location::caller();
        record::with(at, |r| {
            let shape = &r.builder.func().buffers[self.buffer].shape;
            match shape.get(axis).copied() {
                Some(Extent::Static(n)) => n,
                found => {
                    let name = match found {
                        Some(Extent::Dynamic(dim)) => r.builder.func().dims[dim].name.clone(),
                        Some(Extent::Static(_)) | None => format!("axis {axis}"),
                    };
                    let (span, what) = r.origin(self.buffer);
                    r.error(
                        Diagnostic::error(format!("dim `{name}` is not known while the kernel is recorded"))
                            .at(Span::from(at), "its extent is needed as a host number here")
                            .note_at(span, what)
                            .help(format!("declare it static: `#[kernel(static_dims({name}))]`")),
                    );
                    1
                }
            }
        })
    }

    /// A window that starts at `offset`; the other side of the copy gives its extents. Its axes are the
    /// tensor's last ones, as many as the tile has; [`At::axes`] picks others.
    #[track_caller]
    pub fn at(&self, offset: impl Subscript<R>) -> At<E, R> {
        At { buffer: self.buffer, offset: offset.into_indices(), axes: None, element: PhantomData }
    }
}

/// A place in a tensor where a tile goes or comes from.
pub struct At<E, const R: usize> {
    buffer: Buffer,
    offset: [Idx; R],
    axes: Option<SmallVec<[u8; 4]>>,
    element: PhantomData<fn() -> E>,
}

impl<E, const R: usize> Clone for At<E, R> {
    fn clone(&self) -> Self {
        At { buffer: self.buffer, offset: self.offset, axes: self.axes.clone(), element: PhantomData }
    }
}

impl<E, const R: usize> At<E, R> {
    /// Chooses the tensor axes that the tile's axes run along, in the tile's order.
    pub fn axes<const N: usize>(mut self, axes: [usize; N]) -> At<E, R> {
        self.axes = Some(axes.iter().map(|&a| u8::try_from(a).unwrap_or(u8::MAX)).collect());
        self
    }
}

/// A rectangle of a tile with extents of its own, possibly with its axes swapped.
pub struct View<E, const R: usize> {
    window: Window,
    element: PhantomData<fn() -> E>,
}

impl<E, const R: usize> Clone for View<E, R> {
    fn clone(&self) -> Self {
        View { window: self.window.clone(), element: PhantomData }
    }
}

impl<E> View<E, 2> {
    /// Transposed.
    pub fn t(self) -> View<E, 2> {
        View { window: self.window.transposed(), element: PhantomData }
    }
}

macro_rules! tile_views { ($($name:ident),*) => { $(
    impl<E: Element, const R: usize> $name<E, R> {
        /// Extents of the tile.
        pub fn shape(&self) -> [usize; R] {
            let mut shape = [0; R];
            record::with_current(|r| {
                let extents = r.builder.func().buffers[self.buffer].static_shape().expect("tiles have static shapes");
                shape.copy_from_slice(&extents);
            });
            shape
        }

        /// The rectangle of `extents` elements that starts at `offset`.
        #[track_caller]
        pub fn sub(&self, offset: impl Subscript<R>, extents: [usize; R]) -> View<E, R> {
            let offsets = offset.into_indices().iter().map(|i| i.value).collect();
            let axes = extents.iter().enumerate().map(|(i, &extent)| WindowAxis { axis: i as u8, extent }).collect();
            View { window: Window { buffer: self.buffer, offsets, axes }, element: PhantomData }
        }

        #[track_caller]
        fn whole(&self) -> View<E, R> {
            let window = record::with(Location::caller(), |r| r.builder.whole(self.buffer));
            View { window, element: PhantomData }
        }
    }

    impl<E: Element> $name<E, 2> {
        /// The tile transposed, as an operand of a gemm or a copy.
        #[track_caller]
        pub fn t(&self) -> View<E, 2> {
            self.whole().t()
        }

        /// Row `i` as a rank-1 view.
        #[track_caller]
        pub fn row(&self, i: impl Into<Idx>) -> View<E, 1> {
            let i: Idx = i.into();
            let [_, n] = self.shape();
            let zero = Idx::from(0usize);
            View {
                window: Window {
                    buffer: self.buffer,
                    offsets: SmallVec::from_slice(&[i.value, zero.value]),
                    axes: SmallVec::from_slice(&[WindowAxis { axis: 1, extent: n }]),
                },
                element: PhantomData,
            }
        }
    }

    impl<E: Element, const R: usize> Tile<E, R> for $name<E, R> {
        #[track_caller]
        fn window(&self, _other: Option<[usize; R]>) -> Option<Window> {
            Some(self.whole().window)
        }
        fn extents(&self) -> Option<[usize; R]> {
            Some(self.shape())
        }
        fn buffer(&self) -> Buffer {
            self.buffer
        }
    }
)* } }
tile_views!(Shared, Fragment, Local);

/// A rectangle of `R` axes and element type `E`: one side of a copy, an operand of a gemm.
#[diagnostic::on_unimplemented(
    message = "this is not a rank-{R} `{E}` tile or tensor window",
    label = "found `{Self}`, where element type `{E}` and rank {R} are needed",
    note = "both sides of `t.copy` have one element type and one rank; convert with `t.cast`",
    note = "a tensor is copied through a window: `a.at((i, j))`"
)]
pub trait Tile<E: Element, const R: usize> {
    /// The window, with the extents of the other side where it has none of its own.
    #[doc(hidden)]
    fn window(&self, other: Option<[usize; R]>) -> Option<Window>;
    /// The extents, if the window has its own.
    #[doc(hidden)]
    fn extents(&self) -> Option<[usize; R]>;
    #[doc(hidden)]
    fn buffer(&self) -> Buffer;
}

/// Something that has a buffer of its own, which can have a name.
pub trait Named {
    /// The name, for messages.
    #[track_caller]
    fn set_name(&self, name: &str);
}

#[track_caller]
fn set_name(buffer: Buffer, name: &str) {
    record::with(Location::caller(), |r| name.clone_into(&mut r.builder.func_mut().buffers[buffer].name));
}

macro_rules! named {
    ($($t:ident)*) => { $(impl<E: Element, const R: usize> Named for $t<E, R> {
        fn set_name(&self, name: &str) {
            set_name(self.buffer, name);
        }
    })* };
}
named!(Shared Fragment Local);

impl<E: Element> Named for crate::Var<E> {
    fn set_name(&self, name: &str) {
        set_name(self.buffer, name);
    }
}

impl<E: Element, const R: usize> Tile<E, R> for View<E, R> {
    fn window(&self, _other: Option<[usize; R]>) -> Option<Window> {
        Some(self.window.clone())
    }
    fn extents(&self) -> Option<[usize; R]> {
        let mut shape = [0; R];
        shape.copy_from_slice(&self.window.shape());
        Some(shape)
    }
    fn buffer(&self) -> Buffer {
        self.window.buffer
    }
}

impl<E: Element, const R: usize, const N: usize> Tile<E, R> for At<E, N> {
    #[track_caller]
    fn window(&self, other: Option<[usize; R]>) -> Option<Window> {
        let extents = other?;
        let axes: SmallVec<[u8; 4]> = match &self.axes {
            Some(axes) => axes.clone(),
            None if R <= N => (N - R..N).map(|a| a as u8).collect(),
            None => (0..R).map(|a| a as u8).collect(),
        };
        let distinct = axes.iter().enumerate().all(|(i, a)| usize::from(*a) < N && !axes[..i].contains(a));
        if axes.len() != R || !distinct {
            let at = Location::caller();
            record::with(at, |r| {
                let (span, what) = r.origin(self.buffer);
                r.error(
                    Diagnostic::error(format!("a rank-{R} tile cannot run along axes {axes:?} of a rank-{N} tensor"))
                        .at(Span::from(at), format!("needs {R} different axes below {N}"))
                        .note_at(span, what)
                        .help("choose them with `.axes([..])`"),
                );
            });
            return None;
        }
        Some(Window {
            buffer: self.buffer,
            offsets: self.offset.iter().map(|i| i.value).collect(),
            axes: axes.iter().zip(extents).map(|(&axis, extent)| WindowAxis { axis, extent }).collect(),
        })
    }
    fn extents(&self) -> Option<[usize; R]> {
        None
    }
    fn buffer(&self) -> Buffer {
        self.buffer
    }
}

macro_rules! by_reference { ($($name:ident),*) => { $(
    impl<E: Element, const R: usize> Tile<E, R> for &$name<E, R> {
        #[track_caller]
        fn window(&self, other: Option<[usize; R]>) -> Option<Window> {
            (**self).window(other)
        }
        fn extents(&self) -> Option<[usize; R]> {
            (**self).extents()
        }
        fn buffer(&self) -> Buffer {
            (**self).buffer
        }
    }
)* } }
by_reference!(Shared, Fragment, Local);

/// Integer positions for gathers and scatters.
pub trait Position: Numeric {}
impl Position for i32 {}
impl Position for i64 {}
