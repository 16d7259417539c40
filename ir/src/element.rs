//! Rust types that stand for element types: what `E` means in `Tensor<E, R>`.

use crate::DType;
use std::fmt::Debug;

/// A Rust type that is one element of a tensor in host memory.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an element type of tiles and tensors",
    label = "expected one of f32, f64, f16, bf16, f8e4m3, f8e5m2, f4e2m1, e8m0, i8..i64, u8..u64, bool"
)]
pub trait Element: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// The element type this stands for.
    const DTYPE: DType;
}

/// Elements that arithmetic is defined on.
#[diagnostic::on_unimplemented(
    message = "arithmetic is not defined on `{Self}`",
    label = "storage-only or boolean type",
    note = "convert with `.cast::<f32>()` first"
)]
pub trait Numeric: Element {}

/// Floating-point elements that arithmetic is defined on.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a floating-point type with arithmetic",
    label = "expected f32, f64, f16 or bf16",
    note = "convert with `.cast::<f32>()` first"
)]
pub trait Float: Numeric {}

/// Integer elements.
#[diagnostic::on_unimplemented(message = "`{Self}` is not an integer type", label = "expected an integer type")]
pub trait Int: Numeric {}

/// Declares a transparent wrapper around the code of a narrow float.
macro_rules! narrow {
    ($($(#[$meta:meta])* $name:ident = $dtype:ident;)*) => { $(
        $(#[$meta])*
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(pub u8);

        impl Element for $name {
            const DTYPE: DType = DType::$dtype;
        }
    )* };
}

narrow! {
    /// The code of an 8-bit float with 4 exponent and 3 mantissa bits.
    f8e4m3 = F8E4M3;
    /// The code of an 8-bit float with 5 exponent and 2 mantissa bits.
    f8e5m2 = F8E5M2;
    /// The code of a 4-bit float, in the low nibble. Memory packs two to a byte.
    f4e2m1 = F4E2M1;
    /// The code of an exponent-only scale.
    e8m0 = E8M0;
}

pub use half::{bf16, f16};

/// The type of loop indices, extents and offsets. No tensor can hold it.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct index(pub i64);

macro_rules! element {
    ($($t:ty = $dtype:ident: $($class:ident),*;)*) => {
        $(impl Element for $t { const DTYPE: DType = DType::$dtype; } $(impl $class for $t {})*)*
    };
}

element! {
    bool = Bool:;
    i8 = I8: Numeric, Int;
    i16 = I16: Numeric, Int;
    i32 = I32: Numeric, Int;
    i64 = I64: Numeric, Int;
    u8 = U8: Numeric, Int;
    u16 = U16: Numeric, Int;
    u32 = U32: Numeric, Int;
    u64 = U64: Numeric, Int;
    index = Index: Numeric, Int;
    f16 = F16: Numeric, Float;
    bf16 = BF16: Numeric, Float;
    f32 = F32: Numeric, Float;
    f64 = F64: Numeric, Float;
}
