//! What `<`, `==`, `&&`, `||` and statement-`if` mean in a kernel: `#[kernel]` rewrites them to these traits, which
//! leave host values alone and record device values.

use crate::Expr;
use crate::record;
use std::panic::Location;
use zellige_ir::element::index;
use zellige_ir::{CmpOp, Element, Float, Region};

#[track_caller]
fn device<E: Element>(op: CmpOp, x: Expr<E>, y: Expr<E>) -> Expr<bool> {
    Expr::new(record::with(Location::caller(), |r| r.builder.cmp(op, x.value, y.value)))
}

/// Declares a family of comparisons: a trait for host values of a standard trait and for device values, and its functions.
macro_rules! comparison {
    ($(#[$meta:meta])* $tr:ident $host:ident: $($name:ident $op:ident $sign:tt;)*) => {
        $(#[$meta])*
        #[diagnostic::on_unimplemented(
            message = "cannot compare `{Self}` with `{R}` in a kernel",
            label = "the two sides have different types",
            note = "device values compare with device values of the same element type and with host numbers; convert with `.cast()`"
        )]
        pub trait $tr<R> {
            /// `bool` for host values, `Expr<bool>` for device values.
            type Output;
            $(#[doc(hidden)] fn $name(self, rhs: R) -> Self::Output;)*
        }

        impl<A: $host<B>, B> $tr<&B> for &A {
            type Output = bool;
            $(fn $name(self, rhs: &B) -> bool { self $sign rhs })*
        }

        impl<E: Element> $tr<&Expr<E>> for &Expr<E> {
            type Output = Expr<bool>;
            $(#[track_caller] fn $name(self, rhs: &Expr<E>) -> Expr<bool> { device(CmpOp::$op, *self, *rhs) })*
        }

        impl<E: Float> $tr<&f32> for &Expr<E> {
            type Output = Expr<bool>;
            $(#[track_caller] fn $name(self, rhs: &f32) -> Expr<bool> { device(CmpOp::$op, *self, Expr::from(*rhs)) })*
        }

        impl<E: Float> $tr<&Expr<E>> for &f32 {
            type Output = Expr<bool>;
            $(#[track_caller] fn $name(self, rhs: &Expr<E>) -> Expr<bool> { device(CmpOp::$op, Expr::from(*self), *rhs) })*
        }

        with_host! { $tr {$($name $op)*}
            usize => index; i32 => index; i32 => i32; i64 => i64; i16 => i16; i8 => i8; u8 => u8; u16 => u16; u32 => u32;
            u64 => u64; bool => bool;
        }

        $(
            #[doc = concat!("`x ", stringify!($sign), " y` of two host or two device values. `#[kernel]` writes this for the operator.")]
            #[track_caller]
            pub fn $name<'a, 'b, A, B>(x: &'a A, y: &'b B) -> <&'a A as $tr<&'b B>>::Output
            where
                &'a A: $tr<&'b B>,
            {
                x.$name(y)
            }
        )*
    };
}

macro_rules! with_host {
    ($tr:ident $ops:tt $($host:ty => $e:ty;)*) => { $(with_host! { @one $tr $ops $host, $e })* };
    (@one $tr:ident {$($name:ident $op:ident)*} $host:ty, $e:ty) => {
        impl $tr<&$host> for &Expr<$e> {
            type Output = Expr<bool>;
            $(#[track_caller] fn $name(self, rhs: &$host) -> Expr<bool> { device(CmpOp::$op, *self, Expr::from(*rhs)) })*
        }
        impl $tr<&Expr<$e>> for &$host {
            type Output = Expr<bool>;
            $(#[track_caller] fn $name(self, rhs: &Expr<$e>) -> Expr<bool> { device(CmpOp::$op, Expr::from(*self), *rhs) })*
        }
    };
}

comparison! {
    /// Ordering of two values of the host or of the device.
    Order PartialOrd: lt Lt <; le Le <=; gt Gt >; ge Ge >=;
}
comparison! {
    /// Equality of two values of the host or of the device.
    Equality PartialEq: eq Eq ==; ne Ne !=;
}

/// `&&` and `||` of host or device conditions.
#[diagnostic::on_unimplemented(message = "`{Self}` is not a condition", label = "expected `bool` or `Expr<bool>`")]
pub trait Logic<R> {
    type Output;
    #[doc(hidden)]
    fn and(self, rhs: impl FnOnce() -> R) -> Self::Output;
    #[doc(hidden)]
    fn or(self, rhs: impl FnOnce() -> R) -> Self::Output;
}

impl Logic<bool> for bool {
    type Output = bool;
    fn and(self, rhs: impl FnOnce() -> bool) -> bool {
        self && rhs()
    }
    fn or(self, rhs: impl FnOnce() -> bool) -> bool {
        self || rhs()
    }
}

impl Logic<Expr<bool>> for bool {
    type Output = Expr<bool>;
    #[track_caller]
    fn and(self, rhs: impl FnOnce() -> Expr<bool>) -> Expr<bool> {
        if self { rhs() } else { Expr::from(false) }
    }
    #[track_caller]
    fn or(self, rhs: impl FnOnce() -> Expr<bool>) -> Expr<bool> {
        if self { Expr::from(true) } else { rhs() }
    }
}

impl<R: Into<Expr<bool>>> Logic<R> for Expr<bool> {
    type Output = Expr<bool>;
    #[track_caller]
    fn and(self, rhs: impl FnOnce() -> R) -> Expr<bool> {
        self & rhs()
    }
    #[track_caller]
    fn or(self, rhs: impl FnOnce() -> R) -> Expr<bool> {
        self | rhs()
    }
}

/// A condition of a statement-`if`.
#[diagnostic::on_unimplemented(message = "`{Self}` is not a condition", label = "expected `bool` or `Expr<bool>`")]
pub trait Condition {
    #[doc(hidden)]
    fn branch(self) -> Branch;
}

/// A statement-`if` under way: which arms to run, and what to close at the end.
#[doc(hidden)]
pub struct Branch(State);

enum State {
    Host(bool),
    /// An `if` op is open; the region of its second arm is still to come, or was entered.
    Device(Region),
}

impl Condition for bool {
    fn branch(self) -> Branch {
        Branch(State::Host(self))
    }
}

impl Condition for Expr<bool> {
    #[track_caller]
    fn branch(self) -> Branch {
        Branch(State::Device(record::with(Location::caller(), |r| r.builder.begin_if(self.value))))
    }
}

impl Branch {
    pub fn enter_then(&self) -> bool {
        match self.0 {
            State::Host(taken) => taken,
            State::Device(_) => true,
        }
    }

    pub fn enter_else(&self) -> bool {
        match self.0 {
            State::Host(taken) => !taken,
            State::Device(other) => {
                record::with_current(|r| {
                    r.builder.close();
                    r.builder.open(other);
                });
                true
            }
        }
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        if let State::Device(_) = self.0 {
            record::with_current(|r| r.builder.close());
        }
    }
}
