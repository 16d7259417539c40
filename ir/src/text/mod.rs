//! The textual form of tile IR: printer and parser, exact inverses of each other.
//!
//! ```text
//! func scale(x: tensor<bf16, [m, 64]>, y: mut tensor<bf16, [m, 64]> strided, alpha: f32) threads 128 {
//! prelude:
//!   %0: index = ceildiv m, 16
//! grid (%bx) in (%0)
//! body:
//!   $0 = alloc shared bf16[16, 64]
//!   %1: index = mul %bx, 16
//!   copy x[%1 : 16, 0 : 64] -> $0 pad 0.0bf16
//!   for parallel (%2, %3) in (16, 64) {
//!     %4: bf16 = load $0[%2, %3]        ; a comment
//!     %5: f32 = cast %4
//!     %6: f32 = mul %5, alpha
//!     %7: bf16 = cast %6
//!     store %7 -> $0[%2, %3]
//!   }
//!   copy $0 -> y[%1 : 16, 0 : 64] pad 0.0bf16
//! }
//! ```
//!
//! * **Names.** Dims and scalar parameters are values written by their name, tensors are buffers written by
//!   their name; a name that is not an identifier stands in backticks. Op results and loop indices are `%0, %1, ..`,
//!   tiles `$0, $1, ..`, both numbered in order of appearance; the block's coordinates are `%bx, %by, %bz`. An
//!   immediate stands in place of a value ([`Const`](crate::Const) says how).
//! * **Windows.** `$0[%1 : 16, %2]` starts at `(%1, %2)` and runs over 16 elements of the first axis; the second is
//!   fixed. A buffer without brackets is its whole extent. `perm(1, 0)` after either reorders the axes that have an
//!   extent.
//! * **Spans.** `@"file":line:col` may follow an op (before its first region, if it has any), a parameter and
//!   the signature. [`Func::to_text`](crate::Func::to_text) prints them, [`Func::canonical_text`](crate::Func::canonical_text) does not.
//! * **Ops.** One to a line. The syntax of each is its row in the table of [`op`](crate::op); `fields` spells the types of
//!   operands and attributes. Nothing here knows a particular op, but for `alloc`, which gives a tile its number.
//!
//! `print(parse(print(f)))` equals `print(f)` byte for byte, with and without spans, for every function whose values
//! and tiles all have a definition. Depends on the IR core and [`diagnostic`](crate::diagnostic).

mod error;
pub(crate) mod fields;
mod function;
mod lex;
mod names;
mod parse;
mod print;

pub(crate) use error::Parsed;
pub use error::{ParseError, ParseErrorKind};
pub use names::Names;
pub(crate) use parse::Parser;
pub use parse::{parse_file, parse_func, parse_funcs};
pub(crate) use print::Printer;
pub use print::{op_text, op_text_with};

#[cfg(test)]
mod tests;
