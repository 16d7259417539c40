//! The verifier: what every function must satisfy before a backend sees it.
//!
//! [`Rule`] is the numbered list of all invariants. [`verify`] checks all of them and reports all violations, each with the
//! op's text and its place. It never panics, whatever the function looks like. A backend may rely on every rule: a
//! verified function never makes it panic.
//!
//! What depends on run-time values is not here: bounds of computed offsets, initialisation and races are checked by the
//! [interpreter](crate::interp).
//!
//! * `ids` and `structure`: entities, regions, visibility of values and tiles, control flow;
//! * `signature`: parameters, tiles, grid;
//! * `window`: windows and element accesses; `scalar` and `tile`: types and shapes, one function per op.
//!
//! Depends on the IR core, on [`text`](crate::text) for the wording of messages, and on [`diagnostic`](crate::diagnostic).

mod error;
mod ids;
mod scalar;
mod signature;
mod structure;
mod tile;
mod window;

pub use error::VerifyError;

use crate::func::{Access, Buffer, Extent, Func, Op, Param, Scope, Value};
use crate::op::OpKind;
use crate::text::{Names, op_text_with};
use crate::{DType, Span};
use std::collections::{HashMap, HashSet};

macro_rules! rules {
    ($($number:literal $name:ident $text:literal;)*) => {
        /// The invariants of a function.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Rule { $(#[doc = concat!(stringify!($number), ". ", $text)] $name = $number),* }

        impl Rule {
            /// All rules in order of their numbers, which start at 1.
            pub const ALL: &'static [Rule] = &[$(Rule::$name),*];

            /// The rule's position in the list.
            pub const fn number(self) -> usize {
                self as usize
            }

            /// The rule in words.
            pub const fn text(self) -> &'static str {
                match self { $(Rule::$name => $text),* }
            }
        }
    };
}

rules! {
    1 Ids "Every id refers to an entry of the function.";
    2 Tree "The prelude, the body and the regions of ops form a tree: each region has one owner and each op one place.";
    3 DefinedOnce "Every value has exactly one definition, and names the op it stands in.";
    4 Visible "A value is used after its definition, in the same region or one nested there. The prelude's values are visible in the body, the block's coordinates only there.";
    5 AllocOnce "Every tile is brought into being by one `alloc`; tensors by none.";
    6 Allocated "A tile is used after its `alloc`, in the same region or one nested there.";

    7 Names "Dims and scalar parameters have different names, and so have tensors.";
    8 Dims "Every dim is the extent of a tensor, and its value is an `index`.";
    9 Params "A tensor parameter is a global buffer of its own; a scalar parameter has a type with arithmetic, or bool.";
    10 Buffers "Elements have a memory representation (no `index`). Tiles are shared, fragment or local, contiguous, with static extents of at least 1; only tensors have dynamic extents and strides.";
    11 Packed "The last extent of a packed (`f4e2m1`) buffer is even.";
    12 Grid "The grid has one to three extents of type `index`, known after the prelude, and as many block coordinates. A block has a positive multiple of 32 threads, at most 1024. A panel order has a width and two axes.";
    13 Prelude "The prelude holds only scalar ops, `assert` and `assume`.";

    14 WindowAxes "A window has one `index` offset for each axis of its buffer; its axes are different axes of the buffer.";
    15 WindowBounds "Extents of windows are at least 1. As far as constants tell, a window of a tile lies inside it, and so do elements accessed singly.";
    16 PackedWindow "A window along the last axis of a packed buffer has an even extent there and, if constant, an even offset.";
    17 Elements "A load, store or atomic gives one `index` for each axis of its buffer.";
    18 ReadOnly "A tensor that is not `mut` is not written.";
    19 Overlap "As far as constants tell, what a tile op writes does not overlap its other operands; copies, scans and shuffles may work in place on one window.";

    20 ScalarTypes "Operands and results of scalar ops have the types that the op table demands.";
    21 StorageOnly "The narrow float formats are only moved, cast and bit-cast.";
    22 ElementType "Values loaded, stored, filled in or combined have the type of the buffer's elements.";
    23 Atomics "Atomics work on global and shared buffers of i32, u32, i64, u64 and f32; `min`, `max`, `and` and `or` on integers.";

    24 Pad "The padding of a copy or gather has the type of its source.";
    25 Shapes "The windows of a tile op have the shapes that the op table demands, and its axis exists.";
    26 TileTypes "The windows of a tile op have the element types that the op table demands.";
    27 GemmScopes "A gemm reads shared tiles or fragments and accumulates in a fragment.";

    28 Loops "A loop has one `index` variable for each of its extents, which are of type `index`; several only if it is parallel or vectorized. A pipeline has at least one stage.";
    29 Conditions "Conditions are of type bool; that of a `while` is computed in its first region.";
    30 ParallelBody "The body of a parallel or vectorized loop works on single elements: scalar ops, loads, stores, atomics, ifs, whiles, serial, unrolled and vectorized loops, `print`, `assert` and `assume`, and allocations of local tiles, which each iteration has for itself.";
    31 Roles "Warp roles are not nested.";
    32 Layouts "A layout fits the scope of its tile, and a tile has at most one: swizzles of 32, 64 or 128 bytes and padding on shared tiles, row-major on any.";
}

/// Checks all rules.
///
/// # Errors
/// All violations, in program order. If ids are broken (rules 1 and 2), only those.
pub fn verify(func: &Func) -> Result<(), Vec<VerifyError>> {
    let mut v = Verifier::new(func);
    v.check_ids();
    if v.errors.is_empty() {
        v.check_signature();
        v.check_structure();
    }
    if v.errors.is_empty() { Ok(()) } else { Err(v.errors) }
}

/// What is known at the point that is being checked.
struct Verifier<'f> {
    func: &'f Func,
    names: Names,
    errors: Vec<VerifyError>,
    /// The op being checked; `None` in the signature.
    op: Option<Op>,
    access: HashMap<Buffer, Access>,
    /// Values of ops, loops and the grid that may be used here.
    visible: HashSet<Value>,
    /// Tiles that may be used here.
    live: HashSet<Buffer>,
    /// Where values were defined, tiles allocated and laid out first.
    defined: HashMap<Value, Op>,
    allocated: HashMap<Buffer, Op>,
    laid_out: HashMap<Buffer, Op>,
    /// The innermost parallel or vectorized loop around.
    parallel: Option<Op>,
    role: Option<Op>,
}

impl<'f> Verifier<'f> {
    fn new(func: &'f Func) -> Verifier<'f> {
        let access = func.params.iter().filter_map(|param| match param {
            Param::Tensor { buffer, access } => Some((*buffer, *access)),
            Param::Scalar { .. } => None,
        });
        Verifier {
            func,
            names: Names::new(func),
            errors: Vec::new(),
            op: None,
            access: access.collect(),
            visible: HashSet::new(),
            live: HashSet::new(),
            defined: HashMap::new(),
            allocated: HashMap::new(),
            laid_out: HashMap::new(),
            parallel: None,
            role: None,
        }
    }

    /// Notes a violation by the current op, or by the signature.
    fn violation(&mut self, rule: Rule, message: impl Into<String>) -> &mut VerifyError {
        let func = self.func;
        let (span, text) = match self.op.and_then(|op| Some((op, func.ops.get(op)?))) {
            Some((op, data)) => (data.span.clone(), op_text_with(func, &self.names, op)),
            None => (func.span.clone(), format!("func {}", func.name)),
        };
        let error =
            VerifyError { rule, message: message.into(), op: self.op, text, span, notes: Vec::new(), help: None };
        self.errors.push(error);
        self.errors.last_mut().unwrap_or_else(|| unreachable!("an error was just pushed"))
    }

    /// Notes a violation that involves a buffer, and where that comes from.
    fn buffer_violation(&mut self, rule: Rule, buffer: Buffer, message: impl Into<String>) {
        let data = &self.func.buffers[buffer];
        let (name, span) = (self.buffer_name(buffer), data.span.clone());
        let shape: Vec<String> = data.shape.iter().map(|e| self.extent_name(*e)).collect();
        let what = format!("{name} is {} {}[{}]", data.scope.name(), data.dtype, shape.join(", "));
        self.violation(rule, message).note(span, what);
    }

    fn kind(&self, op: Op) -> &'f OpKind {
        &self.func.ops[op].kind
    }

    fn ty(&self, v: Value) -> DType {
        self.func.ty(v)
    }

    fn dtype(&self, b: Buffer) -> DType {
        self.func.buffers[b].dtype
    }

    fn scope(&self, b: Buffer) -> Scope {
        self.func.buffers[b].scope
    }

    /// The value's text in backticks.
    fn name(&self, v: Value) -> String {
        format!("`{}`", self.names.value(self.func, v))
    }

    /// The buffer's text in backticks.
    fn buffer_name(&self, b: Buffer) -> String {
        format!("`{}`", self.names.buffer(self.func, b))
    }

    fn extent_name(&self, e: Extent) -> String {
        match e {
            Extent::Static(n) => n.to_string(),
            Extent::Dynamic(dim) => self.names.dim(self.func, dim),
        }
    }

    fn op_span(&self, op: Op) -> Span {
        self.func.ops[op].span.clone()
    }

    /// Checks that a value has a type.
    fn expect_type(&mut self, rule: Rule, what: &str, v: Value, want: DType) {
        let got = self.ty(v);
        if got != want {
            let name = self.name(v);
            self.violation(rule, format!("{what} {name} is {got}, expected {want}"));
        }
    }
}

#[cfg(test)]
mod tests;
