//! `#[kernel]`, `#[tile]` and `#[derive(Tune)]`.
//!
//! `#[kernel]` keeps the function as Rust that rustc type-checks, rewrites only what Rust cannot overload
//! (module `rewrite`), and adds a typed launcher (module `kernel`). On an error the item is emitted too, its helper
//! attributes stripped, so that editors keep completing inside it.

mod kernel;
mod lint;
mod rewrite;
mod tune;

use proc_macro::TokenStream;

/// Makes a kernel of a function.
///
/// The first parameter is `t: T`. The others are `&Tensor<E, R>` (read), `&mut Tensor<E, R>` (written),
/// `Expr<E>` (a scalar given at launch), or `#[comptime] name: Type` (a host value that is part of the kernel's
/// identity). `#[dims(m, k)]` names a tensor's dims: a name used twice must agree at launch, an integer fixes
/// the extent. `#[kernel(static_dims(n, k))]` makes a kernel for each value of those dims. `#[strided]` lets
/// a tensor have gaps between its rows.
///
/// A function `my_kernel` gets a launcher `MyKernel` with `new(comptime..)` and `launch(&stream, args..)`.
#[proc_macro_attribute]
pub fn kernel(args: TokenStream, input: TokenStream) -> TokenStream {
    kernel::expand(args.into(), input.into()).into()
}

/// Gives a helper function the rewrites of `#[kernel]` (comparisons, subscript assignment, device `if`), without a launcher.
#[proc_macro_attribute]
pub fn tile(args: TokenStream, input: TokenStream) -> TokenStream {
    kernel::expand_helper(args.into(), input.into()).into()
}

/// Declares the search space of a config struct.
///
/// A field's `#[tune(64, 128, 256)]` or `#[tune(2..=5)]` lists its values; a field without it stays as given. An integer whose
/// listed values are positive is a size: zero is ruled out, other values may be set.
/// `#[tune(constraint = bm * bn <= 16384)]` on the struct rules out points; the fields are in scope. Several
/// constraints must all hold.
#[proc_macro_derive(Tune, attributes(tune))]
pub fn derive_tune(input: TokenStream) -> TokenStream {
    tune::expand(input.into()).into()
}
