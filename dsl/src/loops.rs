//! Device loops. A loop yields its index once; the body is recorded, then the loop closes.

use crate::record;
use crate::{Expr, Idx};
use smallvec::SmallVec;
use std::panic::Location;
use zellige_ir::diagnostic::Diagnostic;
use zellige_ir::{LoopKind, Span, Value};

/// A device loop over a box, to be used in a `for`. Deliberately not an [`Iterator`]: `enumerate`, `rev` or `zip`
/// would have no meaning on it.
pub struct Loop<X: Extents> {
    kind: LoopKind,
    extents: X,
    at: &'static Location<'static>,
}

impl<X: Extents> Loop<X> {
    pub(crate) fn new(kind: LoopKind, extents: X, at: &'static Location<'static>) -> Loop<X> {
        Loop { kind, extents, at }
    }
}

impl<X: Extents> IntoIterator for Loop<X> {
    type Item = X::Indices;
    type IntoIter = Running<X>;

    fn into_iter(self) -> Running<X> {
        let extents = self.extents.values(self.at);
        Running { kind: self.kind, at: self.at, state: State::Fresh(extents) }
    }
}

/// A device loop under way.
pub struct Running<X: Extents> {
    kind: LoopKind,
    at: &'static Location<'static>,
    state: State<X>,
}

enum State<X: Extents> {
    Fresh(X::Values),
    Body,
    Done,
}

impl<X: Extents> Iterator for Running<X> {
    type Item = X::Indices;

    fn next(&mut self) -> Option<X::Indices> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Fresh(extents) => {
                let extents: SmallVec<[Value; 4]> = extents.as_ref().iter().map(|e| e.value).collect();
                let indices = record::with(self.at, |r| r.builder.begin_for(self.kind, &extents));
                self.state = State::Body;
                Some(X::indices(&indices))
            }
            State::Body => {
                record::with_current(|r| r.builder.close());
                None
            }
            State::Done => None,
        }
    }
}

impl<X: Extents> Drop for Running<X> {
    /// A loop dropped between its two steps was left by `break` or `return`.
    fn drop(&mut self) {
        if matches!(self.state, State::Body) && !std::thread::panicking() {
            let at = self.at;
            record::with_current(|r| {
                r.builder.close();
                r.error(
                    Diagnostic::error("`break` or `return` leaves a device loop")
                        .at(Span::from(at), "this loop always runs to its extent")
                        .help("guard the rest of the body with `if`, or bound the loop by its extent"),
                );
            });
        }
    }
}

/// Extents of a device loop: one number, or a tuple of them for several axes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a loop extent",
    label = "expected a host or device integer, or a tuple of them"
)]
pub trait Extents {
    /// What the loop yields: an index, or a tuple of indices.
    type Indices;
    #[doc(hidden)]
    type Values: AsRef<[Idx]>;
    #[doc(hidden)]
    fn values(self, at: &'static Location<'static>) -> Self::Values;
    #[doc(hidden)]
    fn indices(values: &[Value]) -> Self::Indices;
}

/// A host integer as an index recorded at `at`.
trait ToIndex {
    fn recorded_index(self, at: &'static Location<'static>) -> Idx;
}

impl ToIndex for Idx {
    fn recorded_index(self, _at: &'static Location<'static>) -> Idx {
        self
    }
}

macro_rules! host { ($($t:ty),*) => { $(
    impl ToIndex for $t {
        fn recorded_index(self, at: &'static Location<'static>) -> Idx {
            Expr::new(record::with(at, |r| r.builder.index(self as i64)))
        }
    }
)* } }
host!(usize, i32);

macro_rules! single { ($($t:ty),*) => { $(
    impl Extents for $t {
        type Indices = Idx;
        type Values = [Idx; 1];
        fn values(self, at: &'static Location<'static>) -> [Idx; 1] {
            [self.recorded_index(at)]
        }
        fn indices(values: &[Value]) -> Idx {
            Expr::new(values[0])
        }
    }
)* } }
single!(usize, i32, Idx);

macro_rules! several { ($($n:literal $($t:ident $i:literal),*;)*) => { $(
    #[allow(private_bounds)]
    impl<$($t: ToIndex),*> Extents for ($($t,)*) {
        type Indices = ($(several!(@idx $t),)*);
        type Values = [Idx; $n];
        #[allow(non_snake_case)]
        fn values(self, at: &'static Location<'static>) -> [Idx; $n] {
            let ($($t,)*) = self;
            [$($t.recorded_index(at)),*]
        }
        fn indices(values: &[Value]) -> Self::Indices {
            ($(Expr::new(values[$i]),)*)
        }
    }
)* }; (@idx $t:ident) => { Idx } }
several! { 1 A 0; 2 A 0, B 1; 3 A 0, B 1, C 2; 4 A 0, B 1, C 2, D 3; }
