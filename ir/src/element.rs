//! Rust types that stand for element types: what `E` means in `Tensor<E, R>`.

use crate::DType;
use crate::numerics::minifloat as mf;
use std::fmt::Debug;

/// A Rust type that is one element of a tensor.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an element type of tiles and tensors",
    label = "expected one of f32, f64, f16, bf16, f8e4m3, f8e5m2, f4e2m1, e8m0, i8..i64, u8..u64, bool"
)]
pub trait Element: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// The element type this stands for.
    const DTYPE: DType;

    /// What slices of host memory hold: the type itself where every bit pattern of it is valid, `u8` for `bool`
    /// (0 or 1) and for `f4e2m1` (two elements, the even index in the lower nibble). `i64` for `index`, which
    /// no tensor holds.
    type Host: bytemuck::Pod + Debug + PartialEq + Send + Sync;

    /// The bit pattern in the low [`DType::bits`] bits, zero above.
    fn to_bits(self) -> u64;

    /// The element with the bit pattern in the low [`DType::bits`] bits; what is above is ignored.
    fn from_bits(bits: u64) -> Self;
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
    ($($(#[$meta:meta])* $name:ident = $dtype:ident in $host:ty, $encode:path, $decode:path;)*) => { $(
        $(#[$meta])*
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(transparent)]
        pub struct $name(pub u8);

        impl $name {
            /// The code of the value that a cast from `f32` gives (see [`crate::numerics::cast`]).
            pub fn from_f32(x: f32) -> Self {
                Self($encode(x))
            }

            /// The value, exactly.
            pub fn to_f32(self) -> f32 {
                $decode(self.0)
            }
        }

        impl Element for $name {
            const DTYPE: DType = DType::$dtype;
            type Host = $host;
            fn to_bits(self) -> u64 {
                u64::from(self.0) & (u64::MAX >> (64 - DType::$dtype.bits()))
            }
            fn from_bits(bits: u64) -> Self {
                Self((bits & (u64::MAX >> (64 - DType::$dtype.bits()))) as u8)
            }
        }
    )* };
}

narrow! {
    /// The code of an 8-bit float with 4 exponent and 3 mantissa bits.
    f8e4m3 = F8E4M3 in f8e4m3, mf::f8e4m3_from_f32, mf::f8e4m3_to_f32;
    /// The code of an 8-bit float with 5 exponent and 2 mantissa bits.
    f8e5m2 = F8E5M2 in f8e5m2, mf::f8e5m2_from_f32, mf::f8e5m2_to_f32;
    /// The code of a 4-bit float, in the low nibble. Memory packs two to a byte.
    f4e2m1 = F4E2M1 in u8, mf::f4e2m1_from_f32, mf::f4e2m1_to_f32;
    /// The code of an exponent-only scale.
    e8m0 = E8M0 in e8m0, mf::e8m0_from_f32_ceil, mf::e8m0_to_f32;
}

pub use half::{bf16, f16};

/// The type of loop indices, extents and offsets. No tensor can hold it.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct index(pub i64);

macro_rules! element {
    ($($t:ty = $dtype:ident in $host:ty, $to_bits:expr, $from_bits:expr; $($class:ident),*;)*) => { $(
        impl Element for $t {
            const DTYPE: DType = DType::$dtype;
            type Host = $host;
            fn to_bits(self) -> u64 {
                $to_bits(self)
            }
            fn from_bits(bits: u64) -> Self {
                $from_bits(bits)
            }
        }
        $(impl $class for $t {})*
    )* };
}

element! {
    bool = Bool in u8, u64::from, |b: u64| b & 0xff != 0;;
    i8 = I8 in i8, |v: i8| v.cast_unsigned().into(), |b| b as i8; Numeric, Int;
    i16 = I16 in i16, |v: i16| v.cast_unsigned().into(), |b| b as i16; Numeric, Int;
    i32 = I32 in i32, |v: i32| v.cast_unsigned().into(), |b| b as i32; Numeric, Int;
    i64 = I64 in i64, i64::cast_unsigned, u64::cast_signed; Numeric, Int;
    u8 = U8 in u8, u64::from, |b| b as u8; Numeric, Int;
    u16 = U16 in u16, u64::from, |b| b as u16; Numeric, Int;
    u32 = U32 in u32, u64::from, |b| b as u32; Numeric, Int;
    u64 = U64 in u64, |v| v, |b| b; Numeric, Int;
    index = Index in i64, |v: index| v.0.cast_unsigned(), |b: u64| index(b.cast_signed()); Numeric, Int;
    f16 = F16 in f16, |v: f16| v.to_bits().into(), |b| f16::from_bits(b as u16); Numeric, Float;
    bf16 = BF16 in bf16, |v: bf16| v.to_bits().into(), |b| bf16::from_bits(b as u16); Numeric, Float;
    f32 = F32 in f32, |v: f32| v.to_bits().into(), |b| f32::from_bits(b as u32); Numeric, Float;
    f64 = F64 in f64, f64::to_bits, f64::from_bits; Numeric, Float;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::Const;

    /// `E` and [`Const`] must agree on what the bits of a value are.
    fn check<E: Element>(value: E, as_f64: f64) {
        let c = Const::from_bits(E::DTYPE, value.to_bits());
        assert_eq!(c.as_f64(), as_f64, "{:?}", E::DTYPE);
        assert_eq!(c.bits(), value.to_bits(), "{:?}: bits above the type", E::DTYPE);
        assert_eq!(E::from_bits(value.to_bits()), value);
    }

    #[test]
    fn bits_agree_with_constants() {
        check(true, 1.0);
        check(-3i8, -3.0);
        check(-3i16, -3.0);
        check(-3i32, -3.0);
        check(-3i64, -3.0);
        check(index(-3), -3.0);
        check(250u8, 250.0);
        check(65_000u16, 65_000.0);
        check(4_000_000_000u32, 4e9);
        check(1u64 << 63, 2f64.powi(63));
        check(f16::from_f32(-1.5), -1.5);
        check(bf16::from_f32(-1.5), -1.5);
        check(-1.5f32, -1.5);
        check(-1.5f64, -1.5);
        check(f8e4m3::from_f32(-1.5), -1.5);
        check(f8e5m2::from_f32(-1.5), -1.5);
        check(f4e2m1::from_f32(-1.5), -1.5);
        check(e8m0::from_f32(0.75), 1.0);
        assert_eq!(f8e4m3::from_f32(1000.0).to_f32(), 448.0);
    }

    #[test]
    fn host_types_have_the_width_of_the_element() {
        fn width<E: Element>() -> (usize, usize) {
            (size_of::<E::Host>() * 8, E::DTYPE.bits())
        }
        assert_eq!(width::<bf16>(), (16, 16));
        assert_eq!(width::<f8e4m3>(), (8, 8));
        assert_eq!(width::<bool>(), (8, 8));
        assert_eq!(width::<f64>(), (64, 64));
        assert_eq!(width::<f4e2m1>(), (8, 4));
    }
}
