//! Device scalars: values that exist when the kernel runs, as ids of recorded ops.

use crate::record;
use std::any::TypeId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Rem, Shl, Shr, Sub};
use std::panic::Location;
use zellige_ir::element::index;
use zellige_ir::{BinaryOp, Const, Element, Float, Int, Numeric, UnaryOp, Value};

/// A device scalar of element type `E`, computed once, where the kernel names it.
pub struct Expr<E> {
    pub(crate) value: Value,
    element: PhantomData<fn() -> E>,
}

/// A loop index, extent or offset.
pub type Idx = Expr<index>;

impl<E> Clone for Expr<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Expr<E> {}

impl<E> std::fmt::Debug for Expr<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.value)
    }
}

impl<E: Element> Expr<E> {
    pub(crate) fn new(value: Value) -> Expr<E> {
        Expr { value, element: PhantomData }
    }

    /// Converts to another element type: to floats to nearest even (saturating for the 8- and 4-bit formats, to
    /// the next power of two above for `e8m0`), from floats to integers towards zero and saturating.
    #[track_caller]
    pub fn cast<F: Element>(self) -> Expr<F> {
        let at = Location::caller();
        Expr::new(record::with(at, |r| r.builder.cast(self.value, F::DTYPE)))
    }

    /// The same bits as another element type of the same width.
    #[track_caller]
    pub fn bitcast<F: Element>(self) -> Expr<F> {
        const { assert!(E::DTYPE.bits() == F::DTYPE.bits(), "bitcast needs two types of the same width") };
        let at = Location::caller();
        Expr::new(record::with(at, |r| r.builder.bitcast(self.value, F::DTYPE)))
    }

    #[track_caller]
    pub(crate) fn unary(self, op: UnaryOp) -> Expr<E> {
        let at = Location::caller();
        Expr::new(record::with(at, |r| r.builder.unary(op, self.value)))
    }

    #[track_caller]
    pub(crate) fn binary(self, op: BinaryOp, y: Expr<E>) -> Expr<E> {
        let at = Location::caller();
        Expr::new(record::with(at, |r| r.builder.binary(op, self.value, y.value)))
    }
}

#[track_caller]
fn constant<E: Element>(c: Const) -> Expr<E> {
    Expr::new(record::with(Location::caller(), |r| r.builder.constant(c)))
}

impl<E: Float> From<f32> for Expr<E> {
    #[track_caller]
    fn from(v: f32) -> Expr<E> {
        constant(Const::from_f64(E::DTYPE, f64::from(v)))
    }
}

macro_rules! from_integer {
    ($($host:ty => $($e:ty),*;)*) => { $($(
        impl From<$host> for Expr<$e> {
            #[track_caller]
            fn from(v: $host) -> Expr<$e> {
                constant(Const::from_i64(<$e as Element>::DTYPE, v as i64))
            }
        }
    )*)* };
}
from_integer! {
    usize => index;
    i32 => index, i32;
    i64 => i64;
    i16 => i16;
    i8 => i8;
    u8 => u8;
    u16 => u16;
    u32 => u32;
    u64 => u64;
}

impl From<bool> for Expr<bool> {
    #[track_caller]
    fn from(v: bool) -> Expr<bool> {
        constant(Const::from_bool(v))
    }
}

/// A cell read through `buf[i]` is a value; this lets `buf[i].max(0.0)` and `buf[i] + 1.0` work on the reference
/// that Rust's indexing yields. One cell per id and type is kept for the life of the thread.
pub(crate) fn leak<E: Element>(e: Expr<E>) -> &'static Expr<E> {
    type Cell = &'static (dyn std::any::Any + Send + Sync);
    thread_local!(static CELLS: RefCell<HashMap<(TypeId, Value), Cell>> = RefCell::new(HashMap::new()));
    CELLS.with(|cells| {
        let cell: Cell =
            *cells.borrow_mut().entry((TypeId::of::<E>(), e.value)).or_insert_with(|| Box::leak(Box::new(e)));
        cell.downcast_ref().expect("the key holds the cell's type")
    })
}

macro_rules! arithmetic {
    ($($tr:ident $method:ident $op:ident $bound:ident;)*) => { $(
        impl<E: $bound, R: Into<Expr<E>>> $tr<R> for Expr<E> {
            type Output = Expr<E>;
            #[track_caller]
            fn $method(self, rhs: R) -> Expr<E> {
                let rhs = rhs.into();
                self.binary(BinaryOp::$op, rhs)
            }
        }
    )* };
}
arithmetic! {
    Add add Add Numeric;
    Sub sub Sub Numeric;
    Mul mul Mul Numeric;
    Div div Div Numeric;
    Rem rem Rem Int;
    Shl shl Shl Int;
    Shr shr Shr Int;
}

macro_rules! host_on_the_left {
    ($($host:ty, $e:ty, $($tr:ident $method:ident),*;)*) => { $($(
        impl $tr<Expr<$e>> for $host {
            type Output = Expr<$e>;
            #[track_caller]
            fn $method(self, rhs: Expr<$e>) -> Expr<$e> {
                Expr::<$e>::from(self).$method(rhs)
            }
        }
    )*)* };
}
host_on_the_left! {
    usize, index, Add add, Sub sub, Mul mul, Div div, Rem rem;
    i32, i32, Add add, Sub sub, Mul mul, Div div, Rem rem;
    u32, u32, Add add, Sub sub, Mul mul, Div div, Rem rem;
    i64, i64, Add add, Sub sub, Mul mul, Div div, Rem rem;
    f32, f32, Add add, Sub sub, Mul mul, Div div;
}

/// Bit operations on integers and logic on bools.
pub trait Bits: Element {}
impl Bits for bool {}
impl Bits for index {}
macro_rules! bits { ($($t:ty),*) => { $(impl Bits for $t {})* } }
bits!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! bitwise {
    ($($tr:ident $method:ident $op:ident;)*) => { $(
        impl<E: Bits, R: Into<Expr<E>>> $tr<R> for Expr<E> {
            type Output = Expr<E>;
            #[track_caller]
            fn $method(self, rhs: R) -> Expr<E> {
                let rhs = rhs.into();
                self.binary(BinaryOp::$op, rhs)
            }
        }
    )* };
}
bitwise! { BitAnd bitand And; BitOr bitor Or; BitXor bitxor Xor; }

impl<E: Bits> Not for Expr<E> {
    type Output = Expr<E>;
    #[track_caller]
    fn not(self) -> Expr<E> {
        self.unary(UnaryOp::Not)
    }
}

impl<E: Numeric> Neg for Expr<E> {
    type Output = Expr<E>;
    #[track_caller]
    fn neg(self) -> Expr<E> {
        self.unary(UnaryOp::Neg)
    }
}

impl<E: Numeric> Expr<E> {
    /// Smaller of two; a NaN operand gives the other one.
    #[track_caller]
    pub fn min(self, y: impl Into<Expr<E>>) -> Expr<E> {
        let y = y.into();
        self.binary(BinaryOp::Min, y)
    }

    /// Larger of two; a NaN operand gives the other one.
    #[track_caller]
    pub fn max(self, y: impl Into<Expr<E>>) -> Expr<E> {
        let y = y.into();
        self.binary(BinaryOp::Max, y)
    }

    /// `max(lo)` then `min(hi)`; a NaN becomes `lo`.
    #[track_caller]
    pub fn clamp(self, lo: impl Into<Expr<E>>, hi: impl Into<Expr<E>>) -> Expr<E> {
        let (lo, hi) = (lo.into(), hi.into());
        self.binary(BinaryOp::Max, lo).binary(BinaryOp::Min, hi)
    }

    /// Magnitude.
    #[track_caller]
    pub fn abs(self) -> Expr<E> {
        self.unary(UnaryOp::Abs)
    }
}

macro_rules! float_methods {
    ($($(#[$meta:meta])* $method:ident $op:ident;)*) => {
        impl<E: Float> Expr<E> { $(
            $(#[$meta])*
            #[track_caller]
            pub fn $method(self) -> Expr<E> {
                self.unary(UnaryOp::$op)
            }
        )* }
    };
}
float_methods! {
    /// e^x.
    exp Exp;
    /// 2^x.
    exp2 Exp2;
    /// Natural logarithm.
    log Log;
    /// Logarithm to base 2.
    log2 Log2;
    /// log(1 + x), accurate near zero.
    log1p Log1p;
    sin Sin;
    cos Cos;
    tanh Tanh;
    /// Correctly rounded square root.
    sqrt Sqrt;
    /// 1 / sqrt(x), both steps correctly rounded.
    rsqrt Rsqrt;
    /// 1 / x, correctly rounded.
    recip Rcp;
    floor Floor;
    ceil Ceil;
    trunc Trunc;
    /// To the nearest integer, ties to even.
    round Round;
    /// 2^x by the device's fast unit.
    fast_exp2 FastExp2;
    /// log2(x) by the device's fast unit.
    fast_log2 FastLog2;
    /// 1 / x by the device's fast unit.
    fast_recip FastRcp;
    /// 1 / sqrt(x) by the device's fast unit.
    fast_rsqrt FastRsqrt;
    /// tanh(x) by the device's fast unit.
    fast_tanh FastTanh;
}

impl<E: Float> Expr<E> {
    /// `self * y + z`, rounded once.
    #[track_caller]
    pub fn mul_add(self, y: impl Into<Expr<E>>, z: impl Into<Expr<E>>) -> Expr<E> {
        let (y, z) = (y.into(), z.into());
        Expr::new(record::with(Location::caller(), |r| r.builder.fma(self.value, y.value, z.value)))
    }

    /// Magnitude of `self`, sign of `y`.
    #[track_caller]
    pub fn copysign(self, y: impl Into<Expr<E>>) -> Expr<E> {
        let y = y.into();
        self.binary(BinaryOp::CopySign, y)
    }

    /// Logistic function 1 / (1 + e^-x).
    #[track_caller]
    pub fn sigmoid(self) -> Expr<E> {
        let one: Expr<E> = 1.0f32.into();
        one / (one + (-self).exp())
    }

    #[track_caller]
    pub fn is_nan(self) -> Expr<bool> {
        Expr::new(record::with(Location::caller(), |r| r.builder.unary(UnaryOp::IsNan, self.value)))
    }

    #[track_caller]
    pub fn is_finite(self) -> Expr<bool> {
        Expr::new(record::with(Location::caller(), |r| r.builder.unary(UnaryOp::IsFinite, self.value)))
    }
}

impl Expr<f32> {
    /// `self` to the power `y`.
    #[track_caller]
    pub fn pow(self, y: impl Into<Expr<f32>>) -> Expr<f32> {
        let y = y.into();
        self.binary(BinaryOp::Pow, y)
    }
}

impl<E: Int> Expr<E> {
    /// Number of one bits.
    #[track_caller]
    pub fn count_ones(self) -> Expr<E> {
        self.unary(UnaryOp::Popcount)
    }

    /// Leading zero bits.
    #[track_caller]
    pub fn leading_zeros(self) -> Expr<E> {
        self.unary(UnaryOp::Clz)
    }

    /// As an index, for subscripts and extents.
    #[track_caller]
    pub fn to_index(self) -> Idx {
        self.cast()
    }
}

impl Expr<u32> {
    /// High half of the 64-bit product.
    #[track_caller]
    pub fn mul_hi(self, y: impl Into<Expr<u32>>) -> Expr<u32> {
        let y = y.into();
        self.binary(BinaryOp::MulHi, y)
    }
}

impl Idx {
    /// Division rounding up.
    #[track_caller]
    pub fn ceil_div(self, y: impl Into<Idx>) -> Idx {
        let y = y.into();
        self.binary(BinaryOp::CeilDiv, y)
    }
}

/// `if cond { x } else { y }` as a value; both are computed.
#[track_caller]
pub fn select<E: Element>(cond: Expr<bool>, x: impl Into<Expr<E>>, y: impl Into<Expr<E>>) -> Expr<E> {
    let (x, y) = (x.into(), y.into());
    Expr::new(record::with(Location::caller(), |r| r.builder.select(cond.value, x.value, y.value)))
}

/// A number known while recording as a device scalar, where the type cannot be inferred.
#[track_caller]
pub fn lit<E: Element>(v: impl Into<Expr<E>>) -> Expr<E> {
    v.into()
}

/// A mutable device scalar: one per block, the same in all its threads.
pub struct Var<E> {
    pub(crate) buffer: zellige_ir::Buffer,
    pub(crate) element: PhantomData<fn() -> E>,
}

impl<E> Clone for Var<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Var<E> {}

impl<E: Element> Var<E> {
    /// The value at this point of the kernel.
    #[track_caller]
    pub fn get(self) -> Expr<E> {
        Expr::new(record::with(Location::caller(), |r| r.builder.load(self.buffer, &[])))
    }

    /// Sets the value.
    #[track_caller]
    pub fn set(self, v: impl Into<Expr<E>>) {
        let v = v.into();
        record::with(Location::caller(), |r| r.builder.store(self.buffer, &[], v.value));
    }
}
