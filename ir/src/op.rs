//! The operations of tile IR.
//!
//! Every op is declared once, in the `ops!` table at the end of this file: its fields, the text it is
//! written as, what it does to memory, and its documentation. The enum, the visitors, the printer,
//! the parser and the op reference all come from that table. `docs/add-an-op.md` walks through a new row.
//!
//! A row's text is literal words and punctuation with `{field}` placeholders, in the order of reading; the field types'
//! own spelling is in [`text`](crate::text). `unary` and `binary` are spelled by their sub-operation's name.

use crate::func::{Buffer, Region, Value};
use crate::numerics::Const;
use crate::text::fields::{Aspect, Field, OpText, Segment, head, segments};
use crate::text::{Parsed, Parser, Printer};
use crate::window::Window;
use smallvec::SmallVec;

/// Declares a closed enum whose variants have a spelling in IR text and a meaning.
macro_rules! named_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum $name { $($(#[$vmeta])* $variant),* }

        impl $name {
            /// All of them, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The spelling in IR text.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }

            /// The one spelled `name`, if there is one.
            pub fn from_name(name: &str) -> Option<$name> {
                match name { $($text => Some($name::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named_enum! {
    /// One-operand arithmetic. The result has the operand's type unless said otherwise.
    /// Floats narrower than f32 are widened, computed in f32 and rounded once.
    UnaryOp {
        /// Arithmetic negation; flips the sign bit of a float.
        Neg = "neg",
        Abs = "abs",
        /// Logical not of a bool, bitwise complement of an integer.
        Not = "not",
        Exp = "exp",
        Exp2 = "exp2",
        Log = "log",
        Log2 = "log2",
        /// log(1 + x), accurate near zero.
        Log1p = "log1p",
        Sin = "sin",
        Cos = "cos",
        Tanh = "tanh",
        /// Correctly rounded square root.
        Sqrt = "sqrt",
        /// 1 / sqrt(x), both steps correctly rounded.
        Rsqrt = "rsqrt",
        /// 1 / x, correctly rounded.
        Rcp = "rcp",
        Floor = "floor",
        Ceil = "ceil",
        Trunc = "trunc",
        /// To the nearest integer, ties to even.
        Round = "round",
        /// Device-fast approximations: 2 ulp or better on a CPU, the hardware's unit on a GPU.
        FastExp2 = "fast_exp2",
        FastLog2 = "fast_log2",
        FastRcp = "fast_rcp",
        FastRsqrt = "fast_rsqrt",
        FastTanh = "fast_tanh",
        /// Number of one bits.
        Popcount = "popcount",
        /// Leading zero bits.
        Clz = "clz",
        /// bool: is the operand a NaN?
        IsNan = "is_nan",
        /// bool: is the operand neither infinite nor NaN?
        IsFinite = "is_finite",
    }
}

named_enum! {
    /// Two-operand arithmetic on operands of one type. Integers wrap; `index` must not overflow.
    BinaryOp {
        Add = "add",
        Sub = "sub",
        Mul = "mul",
        /// Floats: IEEE division. `index`: rounds towards minus infinity. Other integers: towards zero.
        /// An integer divisor of zero is an error.
        Div = "div",
        /// Integers and `index` only; has the sign that goes with `div`, so `index` gives 0 <= r < divisor
        /// for a positive divisor.
        Rem = "rem",
        /// `index` only: division rounding towards plus infinity.
        CeilDiv = "ceildiv",
        /// Floats: the other operand if one is NaN (IEEE 754 minimumNumber); -0 < +0.
        Min = "min",
        Max = "max",
        And = "and",
        Or = "or",
        Xor = "xor",
        /// The shift amount is taken modulo the width.
        Shl = "shl",
        /// Arithmetic for signed types, logical for unsigned ones; amount modulo the width.
        Shr = "shr",
        /// u32 only: high half of the 64-bit product.
        MulHi = "mul_hi",
        /// x to the power y, f32 only.
        Pow = "pow",
        /// Magnitude of the first operand, sign of the second.
        CopySign = "copysign",
    }
}

named_enum! {
    /// Comparison of two operands of one type. Ordered: false if an operand is NaN, except `ne`.
    CmpOp { Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge" }
}

named_enum! {
    /// How a reduction combines elements.
    ReduceOp {
        Sum = "sum",
        Max = "max",
        Min = "min",
        /// Maximum of magnitudes.
        AbsMax = "absmax",
        And = "and",
        Or = "or",
        Xor = "xor",
        /// Position (i32) of the first largest element; NaN is never chosen over a number.
        ArgMax = "argmax",
        /// Position (i32) of the first smallest element; NaN is never chosen over a number.
        ArgMin = "argmin",
    }
}

named_enum! {
    /// How a scan combines elements.
    ScanOp { Sum = "sum", Max = "max", Min = "min" }
}

named_enum! {
    /// How an atomic combines the stored and the given value.
    AtomicOp { Add = "add", Min = "min", Max = "max", And = "and", Or = "or", Exchange = "exchange" }
}

named_enum! {
    /// How lanes of a group of 32 exchange elements.
    ShuffleOp { Xor = "xor", Up = "up", Down = "down", Idx = "idx" }
}

named_enum! {
    /// Precision of a gemm's products. Accumulation is always in the accumulator's type.
    GemmPrecision {
        /// Products of the operands as they are.
        Exact = "exact",
        /// f32 operands are rounded to tf32 (10 mantissa bits) first: to nearest, halves away from zero, or to even where a tensor
        /// copy of sm_90a rounds.
        Tf32 = "tf32",
    }
}

/// How the iterations of a loop may run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LoopKind {
    /// In order.
    Serial,
    /// In order; a request to unroll completely.
    Unrolled,
    /// In order; copies of `stages` iterations may be in flight at once.
    Pipelined { stages: u32 },
    /// In any order or at once: an iteration must not read what another writes.
    Parallel,
    /// As parallel, and a request for vector instructions.
    Vectorized,
    /// In order, but only the iterations whose index is this block's linear id modulo the number of blocks.
    Persistent,
}

/// Which warps of a block execute a warp-specialised region. A placement hint: the region's ops run
/// once for the block, in order, on every device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WarpRole {
    Producer,
    Consumer(u32),
}

/// A demand on how a buffer lies in memory or registers. Results never depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LayoutHint {
    /// Shared memory swizzled with an atom of so many bytes (32, 64 or 128).
    Swizzle(u32),
    /// Shared memory with so many elements of padding after each row.
    Pad(u32),
    /// Row-major without swizzle.
    RowMajor,
}

/// What an op does besides computing its results.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Nothing: may be removed if unused, and moved anywhere its operands are defined.
    Pure,
    /// Reads memory.
    Read,
    /// Writes memory (and may read it).
    Write,
    /// Has nested regions or is observable on its own: control flow, print, assert.
    Control,
}

pub type Indices = SmallVec<[Value; 4]>;

/// A value that the op defines, as opposed to one it uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Def(pub Value);

/// Access to what an op's fields mention, whatever the op.
pub trait Visit {
    /// Values the field uses.
    fn for_each_use(&self, f: &mut dyn FnMut(Value));
    /// Values the field uses, replaceable.
    fn for_each_use_mut(&mut self, f: &mut dyn FnMut(&mut Value));
    /// Values the field defines.
    fn for_each_def(&self, _f: &mut dyn FnMut(Value)) {}
    /// Nested regions, in execution order.
    fn for_each_region(&self, _f: &mut dyn FnMut(Region)) {}
    /// Buffers the field names, directly or through a window.
    fn for_each_buffer(&self, _f: &mut dyn FnMut(Buffer)) {}
    /// Windows.
    fn for_each_window(&self, _f: &mut dyn FnMut(&Window)) {}
}

impl Visit for Value {
    fn for_each_use(&self, f: &mut dyn FnMut(Value)) {
        f(*self);
    }
    fn for_each_use_mut(&mut self, f: &mut dyn FnMut(&mut Value)) {
        f(self);
    }
}

impl Visit for Def {
    fn for_each_use(&self, _f: &mut dyn FnMut(Value)) {}
    fn for_each_use_mut(&mut self, _f: &mut dyn FnMut(&mut Value)) {}
    fn for_each_def(&self, f: &mut dyn FnMut(Value)) {
        f(self.0);
    }
}

impl Visit for Region {
    fn for_each_use(&self, _f: &mut dyn FnMut(Value)) {}
    fn for_each_use_mut(&mut self, _f: &mut dyn FnMut(&mut Value)) {}
    fn for_each_region(&self, f: &mut dyn FnMut(Region)) {
        f(*self);
    }
}

impl Visit for Buffer {
    fn for_each_use(&self, _f: &mut dyn FnMut(Value)) {}
    fn for_each_use_mut(&mut self, _f: &mut dyn FnMut(&mut Value)) {}
    fn for_each_buffer(&self, f: &mut dyn FnMut(Buffer)) {
        f(*self);
    }
}

impl Visit for Window {
    fn for_each_use(&self, f: &mut dyn FnMut(Value)) {
        self.offsets.iter().for_each(|v| f(*v));
    }
    fn for_each_use_mut(&mut self, f: &mut dyn FnMut(&mut Value)) {
        self.offsets.iter_mut().for_each(f);
    }
    fn for_each_buffer(&self, f: &mut dyn FnMut(Buffer)) {
        f(self.buffer);
    }
    fn for_each_window(&self, f: &mut dyn FnMut(&Window)) {
        f(self);
    }
}

macro_rules! visit_seq {
    ($($t:ty),*) => { $(impl Visit for $t {
        fn for_each_use(&self, f: &mut dyn FnMut(Value)) { self.iter().for_each(|x| x.for_each_use(f)); }
        fn for_each_use_mut(&mut self, f: &mut dyn FnMut(&mut Value)) { self.iter_mut().for_each(|x| x.for_each_use_mut(f)); }
        fn for_each_def(&self, f: &mut dyn FnMut(Value)) { self.iter().for_each(|x| x.for_each_def(f)); }
        fn for_each_buffer(&self, f: &mut dyn FnMut(Buffer)) { self.iter().for_each(|x| x.for_each_buffer(f)); }
        fn for_each_window(&self, f: &mut dyn FnMut(&Window)) { self.iter().for_each(|x| x.for_each_window(f)); }
    })* };
}
visit_seq!(Indices, SmallVec<[Def; 4]>, Option<Window>, Option<Def>);

macro_rules! visit_nothing {
    ($($t:ty),*) => { $(impl Visit for $t {
        fn for_each_use(&self, _f: &mut dyn FnMut(Value)) {}
        fn for_each_use_mut(&mut self, _f: &mut dyn FnMut(&mut Value)) {}
    })* };
}
visit_nothing!(
    UnaryOp,
    BinaryOp,
    CmpOp,
    ReduceOp,
    ScanOp,
    AtomicOp,
    ShuffleOp,
    GemmPrecision,
    LoopKind,
    WarpRole,
    LayoutHint,
    Const,
    bool,
    u32,
    String
);

/// The table's row for one op, for documentation and tests.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo {
    pub name: &'static str,
    /// The text form: literal text and `{field}` placeholders, `{field:type}` for the type of what a field names.
    pub syntax: &'static str,
    pub effect: Effect,
    pub fields: &'static [(&'static str, &'static str)],
    pub doc: &'static str,
}

macro_rules! ops {
    ($( $(#[doc = $doc:literal])* $name:literal $effect:ident $variant:ident { $($field:ident : $ty:ty),* $(,)? } = $syntax:literal )*) => {
        /// An operation with its operands, attributes, results and nested regions.
        #[derive(Clone, PartialEq, Debug)]
        pub enum OpKind { $( $(#[doc = $doc])* $variant { $($field: $ty),* } ),* }

        impl OpKind {
            /// The op table, in declaration order.
            pub const TABLE: &'static [OpInfo] = &[$(OpInfo {
                name: $name,
                syntax: $syntax,
                effect: Effect::$effect,
                fields: &[$((stringify!($field), stringify!($ty))),*],
                doc: concat!($($doc, "\n"),*),
            }),*];

            /// The op's name in the table.
            pub const fn name(&self) -> &'static str {
                match self { $(OpKind::$variant { .. } => $name),* }
            }

            /// The op's text form, as in [`OpInfo::syntax`].
            pub const fn syntax(&self) -> &'static str {
                match self { $(OpKind::$variant { .. } => $syntax),* }
            }

            /// What the op does besides computing its results.
            pub const fn effect(&self) -> Effect {
                match self { $(OpKind::$variant { .. } => Effect::$effect),* }
            }
        }

        impl OpText for OpKind {
            fn heads() -> Vec<(&'static str, &'static str)> {
                let mut heads = Vec::new();
                $(match head($syntax) {
                    Segment::Text(word) => heads.push((word, $name)),
                    Segment::Field { name, .. } => {
                        $(if name == stringify!($field) {
                            heads.extend(<$ty as Field>::spellings().into_iter().map(|word| (word, $name)));
                        })*
                    }
                })*
                heads
            }

            fn print_field(&self, field: &'static str, aspect: Aspect, p: &mut Printer<'_>) {
                match self { $(OpKind::$variant { $($field),* } => {
                    $(if field == stringify!($field) { $field.print_aspect(field, aspect, p); })*
                }),* }
            }

            fn parse_fields(op: &'static str, p: &mut Parser<'_>) -> Parsed<OpKind> {
                $(if op == $name {
                    $(let mut $field: Option<$ty> = None;)*
                    for segment in segments($syntax) {
                        match segment {
                            Segment::Text(text) => p.expect_literal(text)?,
                            Segment::Field { name, aspect } => {
                                $(if name == stringify!($field) { <$ty>::parse_aspect(name, aspect, &mut $field, p)?; })*
                            }
                        }
                    }
                    return Ok(OpKind::$variant { $($field: $field.expect("an op's syntax names all its fields")),* });
                })*
                unreachable!("`{op}` is not in the op table")
            }
        }

        impl Visit for OpKind {
            fn for_each_use(&self, f: &mut dyn FnMut(Value)) {
                match self { $(OpKind::$variant { $($field),* } => { $($field.for_each_use(f);)* }),* }
            }
            fn for_each_use_mut(&mut self, f: &mut dyn FnMut(&mut Value)) {
                match self { $(OpKind::$variant { $($field),* } => { $($field.for_each_use_mut(f);)* }),* }
            }
            fn for_each_def(&self, f: &mut dyn FnMut(Value)) {
                match self { $(OpKind::$variant { $($field),* } => { $($field.for_each_def(f);)* }),* }
            }
            fn for_each_region(&self, f: &mut dyn FnMut(Region)) {
                match self { $(OpKind::$variant { $($field),* } => { $($field.for_each_region(f);)* }),* }
            }
            fn for_each_buffer(&self, f: &mut dyn FnMut(Buffer)) {
                match self { $(OpKind::$variant { $($field),* } => { $($field.for_each_buffer(f);)* }),* }
            }
            fn for_each_window(&self, f: &mut dyn FnMut(&Window)) {
                match self { $(OpKind::$variant { $($field),* } => { $($field.for_each_window(f);)* }),* }
            }
        }
    };
}

ops! {
    /// `out = op x`.
    "unary" Pure Unary { out: Def, op: UnaryOp, x: Value }
        = "{out} = {op} {x}"
    /// `out = op x, y`.
    "binary" Pure Binary { out: Def, op: BinaryOp, x: Value, y: Value }
        = "{out} = {op} {x}, {y}"
    /// `out = x * y + z`, rounded once. Floats only.
    "fma" Pure Fma { out: Def, x: Value, y: Value, z: Value }
        = "{out} = fma {x}, {y}, {z}"
    /// `out: bool = x op y`.
    "cmp" Pure Cmp { out: Def, op: CmpOp, x: Value, y: Value }
        = "{out} = cmp {op} {x}, {y}"
    /// `out = cond ? x : y`.
    "select" Pure Select { out: Def, cond: Value, x: Value, y: Value }
        = "{out} = select {cond}, {x}, {y}"
    /// Converts to the type of `out`. To a float: nearest even, saturating for the 8- and 4-bit formats; to e8m0:
    /// the next power of two at or above; float to integer: towards zero, saturating, NaN gives 0;
    /// between integers: wraps; to bool: is it non-zero.
    "cast" Pure Cast { out: Def, x: Value }
        = "{out} = cast {x}"
    /// The bits of `x` as the type of `out`, which has the same width.
    "bitcast" Pure Bitcast { out: Def, x: Value }
        = "{out} = bitcast {x}"
    /// Reads one element. Outside a global buffer it yields zero.
    "load" Read Load { out: Def, buffer: Buffer, indices: Indices }
        = "{out} = load {buffer}[{indices}]"
    /// Writes one element. Outside a global buffer it does nothing.
    "store" Write Store { buffer: Buffer, indices: Indices, value: Value }
        = "store {value} -> {buffer}[{indices}]"
    /// Combines one element with `value` indivisibly; `out` is the element before. Global or shared buffers of
    /// i32, u32, i64, u64 or f32 (`min`, `max`, `and`, `or`: integers only).
    "atomic" Write Atomic { out: Def, op: AtomicOp, buffer: Buffer, indices: Indices, value: Value }
        = "{out} = atomic {op} {value} -> {buffer}[{indices}]"

    /// Brings a shared, fragment or local buffer into being; its contents are undefined until written.
    "alloc" Write Alloc { buffer: Buffer }
        = "{buffer} = alloc {buffer:type}"
    /// Copies a window element by element, converting as `cast` does where the element types differ.
    /// `pad` (of the source's type) stands for source elements outside a global buffer.
    "copy" Write Copy { src: Window, dst: Window, pad: Const }
        = "copy {src} -> {dst} pad {pad}"
    /// As copy, but row `i` (along the first axis of `dst`) comes from position `index[i]` of the source's first window
    /// axis, counted from that axis' offset; a position below zero or beyond the buffer gives `pad`.
    "gather" Write Gather { src: Window, index: Window, dst: Window, pad: Const }
        = "gather {src} at {index} -> {dst} pad {pad}"
    /// As copy, but row `i` (along the first axis of `src`) goes to position `index[i]` of the destination's first window
    /// axis; a position below zero or beyond the buffer is skipped. Positions must differ.
    "scatter" Write Scatter { src: Window, dst: Window, index: Window }
        = "scatter {src} -> {dst} at {index}"
    /// Sets every element.
    "fill" Write Fill { dst: Window, value: Value }
        = "fill {value} -> {dst}"
    /// `acc[i, j] += sum_k a[i, k] * b[k, j]`: products and sums in the accumulator's type (f32; i32 for
    /// 8-bit integers). The order of the sum is unspecified, but the same in every run on a device.
    "gemm" Write Gemm { a: Window, b: Window, acc: Window, precision: GemmPrecision }
        = "gemm {a}, {b} -> {acc} {precision}"
    /// Combines the elements along `axis` of `src` into `dst`, which lacks that axis. With `accumulate` the
    /// previous contents of `dst` take part, else they are replaced. The order of a sum is unspecified,
    /// but the same in every run on a device.
    "reduce" Write Reduce { op: ReduceOp, src: Window, dst: Window, axis: u32, accumulate: bool }
        = "reduce {op} {src} axis {axis} -> {dst} {accumulate}"
    /// Running combination along `axis`, inclusive unless `exclusive`, from the end if `reverse`.
    "scan" Write Scan { op: ScanOp, src: Window, dst: Window, axis: u32, reverse: bool, exclusive: bool }
        = "scan {op} {src} axis {axis} -> {dst} {reverse} {exclusive}"
    /// The largest (or smallest) `k` elements along the last axis of `src`, in order, with their positions; `k` is the last
    /// extent of `values` and `indices` (i32). Ties: the smaller position first. NaN comes last.
    "topk" Write TopK { src: Window, values: Window, indices: Window, largest: bool }
        = "topk {src} -> {values}, {indices} {largest}"
    /// Sorts along the last axis of `keys`, stably, moving `payload` (if any) along. NaN comes last.
    "sort" Write Sort { keys: Window, payload: Option<Window>, descending: bool }
        = "sort {keys} {payload} {descending}"
    /// Exchanges elements inside groups of 32 along the last axis: `dst[i] = src[j]` with `j` = `i ^ amount`, `i - amount`,
    /// `i + amount` or `amount` within the group; `j` outside the group leaves `dst[i] = src[i]`.
    "shuffle" Write Shuffle { op: ShuffleOp, src: Window, dst: Window, amount: Value }
        = "shuffle {op} {src} by {amount} -> {dst}"

    /// Runs `body` for every point of the box `0..extents`. One index for each extent; several only if the kind is
    /// parallel or vectorized. An extent of zero or less runs nothing.
    "for" Control For { kind: LoopKind, indices: SmallVec<[Def; 4]>, extents: Indices, body: Region }
        = "for {kind} ({indices}) in ({extents}) {body}"
    /// Runs one of two regions.
    "if" Control If { cond: Value, then_body: Region, else_body: Region }
        = "if {cond} {then_body} else {else_body}"
    /// Runs `before`, and as long as `cond` (a bool that `before` computes) holds, `body` and `before` again.
    "while" Control While { before: Region, cond: Value, body: Region }
        = "while {before} yields {cond} do {body}"
    /// Runs `body` once, on the given warps where the device has them.
    "role" Control Role { role: WarpRole, body: Region }
        = "role {role} {body}"

    /// Prints a message, the values, and the window's elements.
    "print" Control Print { message: String, values: Indices, window: Option<Window> }
        = "print {message} ({values}) {window}"
    /// Ends the launch with an error if `cond` is false.
    "assert" Control Assert { cond: Value, message: String }
        = "assert {cond}, {message}"
    /// Promises that `cond` is true; the compiler may rely on it, the interpreter checks it.
    "assume" Control Assume { cond: Value }
        = "assume {cond}"
    /// Demands a layout for a buffer.
    "layout" Control Layout { buffer: Buffer, hint: LayoutHint }
        = "layout {buffer} {hint}"
}
