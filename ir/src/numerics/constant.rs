//! Immediate values of any element type, and their spelling in IR text.
//!
//! Spelling (one token, exact round trip for every bit pattern):
//! * `index`: a bare integer, `128`, `-3`; `bool`: `true`, `false`;
//! * other integers: `3i32`, `-5i8`, `7u64`;
//! * finite floats: the shortest decimal that reads back to the same value, `1.5f32`, `-0.0f16`, `1e-45f32`,
//!   `448.0f8e4m3`; an underscore separates where the type name would look like an exponent: `0.25_e8m0`;
//! * `inf_f32`, `-inf_bf16`, and `nan_f32` for the positive quiet NaN that casts produce;
//! * any other NaN by its bits, all digits written: `0x7fc00001_f32`.
//!
//! A token starts with a digit, `-`, `true`, `false`, `inf_` or `nan_`; [`Const::token_len`] says where it ends.
//! On reading, an underscore before the type is always allowed, as is `0x..._type` for any value.

use super::cast;
use super::minifloat as mf;
use crate::DType;
use std::fmt;
use std::str::FromStr;

/// A value of some element type, stored as its bit pattern. Equality is equality of type and bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Const {
    dtype: DType,
    /// Zero above the width of the type, for negative integers too; 0 or 1 for `bool`.
    bits: u64,
}

/// Why a piece of text is not a constant.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseConstError {
    #[error("`{0}` is not a constant; write `12`, `3i32`, `1.5f32`, `true`, `inf_f32` or `0x7fc00000_f32`")]
    Malformed(String),
    #[error("`{text}` does not fit {dtype}")]
    OutOfRange { text: String, dtype: DType },
    #[error("`{text}`: bits of {dtype} take exactly {digits} hexadecimal digits")]
    Digits { text: String, dtype: DType, digits: usize },
}

/// The low bits of `bits` that belong to `dtype`.
fn mask(dtype: DType) -> u64 {
    u64::MAX >> (64 - dtype.bits())
}

/// Value of a signed integer's bit pattern.
pub(super) fn sign_extend(dtype: DType, bits: u64) -> i64 {
    let unused = 64 - dtype.bits();
    (bits << unused).cast_signed() >> unused
}

impl Const {
    /// The constant with the given bit pattern; bits above the type's width are dropped, and any non-zero `bool`
    /// is true.
    pub fn from_bits(dtype: DType, bits: u64) -> Const {
        let bits = if dtype == DType::Bool { u64::from(bits != 0) } else { bits & mask(dtype) };
        Const { dtype, bits }
    }

    /// `x` converted to `dtype` as [`cast::cast`] converts an `f64`.
    pub fn from_f64(dtype: DType, x: f64) -> Const {
        cast::from_f64(dtype, x)
    }

    /// `v` converted to `dtype` as [`cast::cast`] converts an `i64`.
    pub fn from_i64(dtype: DType, v: i64) -> Const {
        cast::cast(Const { dtype: DType::I64, bits: v.cast_unsigned() }, dtype)
    }

    /// A `bool`.
    pub const fn from_bool(v: bool) -> Const {
        Const { dtype: DType::Bool, bits: v as u64 }
    }

    /// An `index`.
    pub const fn index(v: i64) -> Const {
        Const { dtype: DType::Index, bits: v.cast_unsigned() }
    }

    /// An `f32`, bit for bit.
    pub fn f32(v: f32) -> Const {
        Const { dtype: DType::F32, bits: v.to_bits().into() }
    }

    /// An `i32`.
    pub const fn i32(v: i32) -> Const {
        Const { dtype: DType::I32, bits: v.cast_unsigned() as u64 }
    }

    /// The zero of `dtype` (2^-127 for `e8m0`, which has no zero).
    pub const fn zero(dtype: DType) -> Const {
        Const { dtype, bits: 0 }
    }

    /// The element type.
    pub const fn dtype(self) -> DType {
        self.dtype
    }

    /// The bit pattern, zero above the type's width.
    pub const fn bits(self) -> u64 {
        self.bits
    }

    /// The value; exact except for 64-bit integers beyond 2^53, which round to nearest. `bool` gives 0 or 1.
    pub fn as_f64(self) -> f64 {
        match self.dtype {
            DType::F64 => f64::from_bits(self.bits),
            DType::F32 => f32::from_bits(self.bits as u32).into(),
            DType::F16 => mf::f16_to_f32(self.bits as u16).into(),
            DType::BF16 => mf::bf16_to_f32(self.bits as u16).into(),
            DType::F8E4M3 => mf::f8e4m3_to_f32(self.bits as u8).into(),
            DType::F8E5M2 => mf::f8e5m2_to_f32(self.bits as u8).into(),
            DType::F4E2M1 => mf::f4e2m1_to_f32(self.bits as u8).into(),
            DType::E8M0 => mf::e8m0_to_f32(self.bits as u8).into(),
            DType::Bool | DType::U8 | DType::U16 | DType::U32 | DType::U64 => self.bits as f64,
            DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::Index => {
                sign_extend(self.dtype, self.bits) as f64
            }
        }
    }

    /// The value converted to `i64` as [`cast::cast`] does: `u64` keeps its bits, floats truncate and saturate.
    pub fn as_i64(self) -> i64 {
        cast::cast(self, DType::I64).bits.cast_signed()
    }

    /// Whether the value is not zero.
    pub fn as_bool(self) -> bool {
        cast::cast(self, DType::Bool).bits != 0
    }

    /// Length in bytes of the constant token at the start of `text`, or `None` if none starts there. The token may
    /// still turn out malformed; this only finds its end, for a lexer.
    pub fn token_len(text: &str) -> Option<usize> {
        let body = text.strip_prefix('-').unwrap_or(text);
        let word = |w: &str| {
            body.strip_prefix(w).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        };
        let numeric = body.starts_with(|c: char| c.is_ascii_digit());
        let special = body.starts_with("inf_") || body.starts_with("nan_");
        if !(numeric || special || word("true") || word("false")) {
            return None;
        }
        let mut end = text.len() - body.len();
        let mut last = ' ';
        for c in body.chars() {
            // A sign belongs to the token only after the `e` of an exponent; hexadecimal digits have none.
            let exponent_sign = matches!(c, '+' | '-') && last == 'e' && !body.starts_with("0x");
            if !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || exponent_sign) {
                break;
            }
            end += c.len_utf8();
            last = c;
        }
        Some(end)
    }
}

impl fmt::Display for Const {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Const { dtype, bits } = *self;
        match dtype {
            DType::Bool => write!(f, "{}", bits != 0),
            DType::Index => write!(f, "{}", bits.cast_signed()),
            DType::I8 | DType::I16 | DType::I32 | DType::I64 => {
                write!(f, "{}{dtype}", sign_extend(dtype, bits))
            }
            DType::U8 | DType::U16 | DType::U32 | DType::U64 => write!(f, "{bits}{dtype}"),
            DType::F16
            | DType::BF16
            | DType::F32
            | DType::F64
            | DType::F8E4M3
            | DType::F8E5M2
            | DType::F4E2M1
            | DType::E8M0 => {
                let x = self.as_f64();
                if x.is_infinite() {
                    write!(f, "{x}_{dtype}")
                } else if x.is_nan() && *self == Const::from_f64(dtype, f64::NAN) {
                    write!(f, "nan_{dtype}")
                } else if x.is_nan() {
                    write!(f, "0x{bits:0digits$x}_{dtype}", digits = dtype.bits() / 4)
                } else {
                    let separator = if dtype == DType::E8M0 { "_" } else { "" };
                    match dtype {
                        DType::F64 => write!(f, "{x:?}{separator}{dtype}"),
                        // Exact: every narrower value is an f32.
                        _ => write!(f, "{:?}{separator}{dtype}", x as f32),
                    }
                }
            }
        }
    }
}

/// Splits off the type name at the end of `text`, the longest that fits (`bf16` over `f16`).
fn split_suffix(text: &str) -> Option<(&str, DType)> {
    let candidates = DType::ALL.into_iter().filter_map(|t| Some((text.strip_suffix(t.name())?, t)));
    let (body, dtype) = candidates.min_by_key(|(body, _)| body.len())?;
    Some((body.strip_suffix('_').unwrap_or(body), dtype))
}

impl FromStr for Const {
    type Err = ParseConstError;

    fn from_str(text: &str) -> Result<Const, ParseConstError> {
        let malformed = || ParseConstError::Malformed(text.to_owned());
        let out_of_range = |dtype| ParseConstError::OutOfRange { text: text.to_owned(), dtype };
        match text {
            "true" => return Ok(Const::from_bool(true)),
            "false" => return Ok(Const::from_bool(false)),
            _ => {}
        }
        let is_integer = |s: &str| {
            let digits = s.strip_prefix('-').unwrap_or(s);
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        };
        if is_integer(text) {
            return text.parse().map(Const::index).map_err(|_| out_of_range(DType::Index));
        }
        let (body, dtype) = split_suffix(text).ok_or_else(malformed)?;
        if let Some(hex) = body.strip_prefix("0x") {
            if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) || dtype == DType::Bool {
                return Err(malformed());
            }
            let digits = dtype.bits() / 4;
            if hex.len() != digits {
                return Err(ParseConstError::Digits { text: text.to_owned(), dtype, digits });
            }
            let bits = u64::from_str_radix(hex, 16).map_err(|_| malformed())?;
            return Ok(Const { dtype, bits });
        }
        if dtype.is_int() && is_integer(body) {
            let value: i128 = body.parse().map_err(|_| out_of_range(dtype))?;
            let c = Const::from_bits(dtype, value as u64);
            return if cast::integer(c) == value { Ok(c) } else { Err(out_of_range(dtype)) };
        }
        if !dtype.is_float() {
            return Err(malformed());
        }
        match body {
            "inf" | "-inf" => {
                let has_infinity = matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64);
                let negative = body.starts_with('-');
                let infinity = if negative { f64::NEG_INFINITY } else { f64::INFINITY };
                match dtype {
                    _ if has_infinity => Ok(Const::from_f64(dtype, infinity)),
                    DType::F8E5M2 => Ok(Const::from_bits(dtype, if negative { 0xfc } else { 0x7c })),
                    _ => Err(out_of_range(dtype)),
                }
            }
            "nan" if dtype == DType::F4E2M1 => Err(out_of_range(dtype)),
            "nan" => Ok(Const::from_f64(dtype, f64::NAN)),
            _ => {
                // Rust's parser also takes `infinity`, `.5` and the like: insist on a digit in front.
                let digits = body.strip_prefix('-').unwrap_or(body);
                if !digits.starts_with(|c: char| c.is_ascii_digit()) {
                    return Err(malformed());
                }
                // The printer writes the shortest decimal of the f32, which as an f64 would be a neighbour.
                let x: f32 = body.parse().map_err(|_| malformed())?;
                let c = Const::from_f64(dtype, x.into());
                if dtype != DType::F64 && x.is_finite() && c.as_f64() == f64::from(x) {
                    return Ok(c);
                }
                // Any other decimal is rounded to the type once, from f64.
                let x: f64 = body.parse().map_err(|_| malformed())?;
                let c = Const::from_f64(dtype, x);
                if x.is_finite() && c.as_f64().is_finite() { Ok(c) } else { Err(out_of_range(dtype)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spelling() {
        let f = Const::from_f64;
        let spelled = [
            (Const::index(128), "128"),
            (Const::index(-3), "-3"),
            (Const::i32(3), "3i32"),
            (Const::from_i64(DType::U8, 7), "7u8"),
            (Const::from_i64(DType::I8, -128), "-128i8"),
            (Const::from_bool(true), "true"),
            (Const::f32(1.5), "1.5f32"),
            (Const::f32(-0.0), "-0.0f32"),
            (Const::f32(1e-45), "1e-45f32"),
            (f(DType::BF16, 0.5), "0.5bf16"),
            (f(DType::F8E4M3, 448.0), "448.0f8e4m3"),
            (f(DType::E8M0, 0.25), "0.25_e8m0"),
            (f(DType::F32, f64::NEG_INFINITY), "-inf_f32"),
            (f(DType::F16, f64::NAN), "nan_f16"),
            (Const::from_bits(DType::F32, 0xffc0_0001), "0xffc00001_f32"),
            (Const::from_bits(DType::F8E5M2, 0x7c), "inf_f8e5m2"),
        ];
        for (c, text) in spelled {
            assert_eq!(c.to_string(), text);
            assert_eq!(text.parse(), Ok(c), "{text}");
        }
    }

    #[test]
    fn every_narrow_pattern_round_trips() {
        for dtype in DType::ALL.into_iter().filter(|t| t.bits() <= 16 && *t != DType::Bool) {
            for bits in 0..1u64 << dtype.bits() {
                let c = Const::from_bits(dtype, bits);
                assert_eq!(c.to_string().parse(), Ok(c), "{c}");
            }
        }
    }

    #[test]
    fn bad_text_is_refused() {
        for text in [
            "",
            "-",
            "x",
            "1.5",
            "1.5i32",
            "0x12",
            "0x12_f32",
            "0xzz_u8",
            "256u8",
            "-1u8",
            "128i8",
            "1e999f32",
            "1e999f64",
            "inf",
            "nan_i32",
            "inf_f8e4m3",
            "nan_f4e2m1",
            ".5f32",
            "infinityf32",
            "+1i32",
            "1bool",
            "9223372036854775808",
            "1e6f16",
            "0x01_bool",
            "--1i32",
            "340282366920938463463374607431768211456u8",
        ] {
            assert!(text.parse::<Const>().is_err(), "{text}");
        }
        assert_eq!("256u8".parse::<Const>().map_err(|e| e.to_string()), Err("`256u8` does not fit u8".to_owned()));
    }

    #[test]
    fn tokens_end_where_they_should() {
        for (text, token) in [
            ("128]", "128"),
            ("-3, x", "-3"),
            ("1e-45f32)", "1e-45f32"),
            ("1.0_e8m0-1", "1.0_e8m0"),
            ("0xfe_u8-1", "0xfe_u8"),
            ("true)", "true"),
            ("-inf_f32 ", "-inf_f32"),
        ] {
            assert_eq!(Const::token_len(text), Some(token.len()), "{text}");
        }
        for text in ["trueish", "x1", "- 1", "info", "", "->"] {
            assert_eq!(Const::token_len(text), None, "{text}");
        }
    }

    #[test]
    fn accessors() {
        assert_eq!(Const::from_bits(DType::U64, u64::MAX).as_i64(), -1);
        assert_eq!(Const::from_i64(DType::I16, -2).as_f64(), -2.0);
        assert!(Const::f32(f32::NAN).as_bool() && !Const::f32(-0.0).as_bool());
        assert_eq!(Const::from_bits(DType::Bool, 2), Const::from_bool(true));
    }

    fn any_const() -> impl Strategy<Value = Const> {
        (proptest::sample::select(DType::ALL.to_vec()), any::<u64>(), 0u32..64)
            // The shift makes small magnitudes as likely as large ones.
            .prop_map(|(dtype, bits, shift)| Const::from_bits(dtype, bits >> shift))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn text_round_trips(c in any_const()) {
            let text = c.to_string();
            prop_assert_eq!(text.parse(), Ok(c), "{}", text);
            prop_assert_eq!(Const::token_len(&format!("{text}, rest")), Some(text.len()));
        }

        #[test]
        fn parsing_never_panics(text in "[-0-9a-z_.+]{0,12}") {
            let _ = text.parse::<Const>();
            let _ = Const::token_len(&text);
        }
    }
}
