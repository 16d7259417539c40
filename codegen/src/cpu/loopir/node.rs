//! What loop IR consists of: pure nodes that define SSA values, and statements in structured blocks.

use super::types::Ty;
use std::fmt;

/// An SSA value of a [`LoopFunc`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Val(pub(super) u32);

impl Val {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$vmeta])* $variant),* }
        impl $name {
            /// The spelling in text.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }
    };
}

named! {
    /// One operand, result of the same type unless said otherwise.
    UnOp {
        Not = "not", Popcnt = "popcnt", Clz = "clz",
        FNeg = "fneg", FAbs = "fabs", Sqrt = "sqrt", Floor = "floor", Ceil = "ceil", Trunc = "trunc",
        /// To the nearest integer, ties to even.
        Nearest = "nearest",
        /// To an integer type twice or more as wide (scalars), or the low half of the lanes widened (vectors).
        SExt = "sext", ZExt = "zext",
        /// The high half of the lanes widened.
        SExtHigh = "sext_high", ZExtHigh = "zext_high",
        /// To a narrower integer scalar: the low bits.
        Reduce = "reduce",
        /// Integer to float, signed or unsigned, correctly rounded.
        SToF = "s_to_f", UToF = "u_to_f",
        /// Float to integer towards zero, saturating, NaN to 0.
        FToS = "f_to_s", FToU = "f_to_u",
        Promote = "promote", Demote = "demote",
        /// Same bits, another type of the same size.
        Bitcast = "bitcast",
        /// A scalar into every lane.
        Splat = "splat",
        /// A scalar into lane 0, zeros elsewhere.
        ToVector = "to_vector",
        /// Vector to i8: is some lane, are all lanes non-zero?
        AnyTrue = "any_true", AllTrue = "all_true",
        /// Vector to i32: the sign bits of the lanes.
        SignBits = "sign_bits",
    }
}

named! {
    /// Two operands of one type. Vector shifts take an i32 scalar amount; amounts are below the lane width.
    BinOp {
        Add = "add", Sub = "sub", Mul = "mul",
        /// High half of the unsigned product.
        UMulHi = "umulhi",
        /// The divisor is not zero, and the quotient representable.
        SDiv = "sdiv", UDiv = "udiv", SRem = "srem", URem = "urem",
        And = "and", Or = "or", Xor = "xor", Shl = "shl", UShr = "ushr", SShr = "sshr",
        SMin = "smin", SMax = "smax", UMin = "umin", UMax = "umax",
        FAdd = "fadd", FSub = "fsub", FMul = "fmul", FDiv = "fdiv",
        /// Lanes of both operands narrowed to half the width, saturating (signed source).
        SNarrow = "snarrow", UNarrow = "unarrow",
    }
}

named! {
    /// Integer comparison.
    IntCc { Eq = "eq", Ne = "ne", Slt = "slt", Sle = "sle", Sgt = "sgt", Sge = "sge",
            Ult = "ult", Ule = "ule", Ugt = "ugt", Uge = "uge" }
}

named! {
    /// Float comparison; all but `ne` and `uno` are false on NaN.
    FloatCc { Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge", Uno = "uno" }
}

named! {
    /// Read-modify-write.
    Rmw { Add = "add", And = "and", Or = "or", SMin = "smin", SMax = "smax", UMin = "umin", UMax = "umax", Xchg = "xchg" }
}

/// The definition of a value that has no effect and depends on nothing but its operands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Node {
    /// Scalar immediate: its bits, zero-extended.
    Const(u64),
    /// Vector immediate in memory order.
    VConst([u8; 16]),
    Unary(UnOp, Val),
    Binary(BinOp, Val, Val),
    /// `x * y + z`, rounded once.
    Fma(Val, Val, Val),
    /// Scalars give i8, vectors a mask.
    ICmp(IntCc, Val, Val),
    FCmp(FloatCc, Val, Val),
    /// Scalar condition.
    Select(Val, Val, Val),
    /// Bitwise: mask, value where set, value where clear.
    BitSelect(Val, Val, Val),
    Extract(Val, u8),
    /// Vector, scalar, lane.
    Insert(Val, Val, u8),
    /// Bytes picked from the concatenation of two vectors.
    Shuffle(Val, Val, [u8; 16]),
}

impl Node {
    pub fn for_each_use(&self, f: &mut dyn FnMut(Val)) {
        match *self {
            Node::Const(_) | Node::VConst(_) => {}
            Node::Unary(_, x) | Node::Extract(x, _) => f(x),
            Node::Binary(_, x, y)
            | Node::ICmp(_, x, y)
            | Node::FCmp(_, x, y)
            | Node::Insert(x, y, _)
            | Node::Shuffle(x, y, _) => [x, y].into_iter().for_each(f),
            Node::Fma(x, y, z) | Node::Select(x, y, z) | Node::BitSelect(x, y, z) => [x, y, z].into_iter().for_each(f),
        }
    }

    /// False for what must not run unless the program says so: integer division traps.
    pub fn is_speculatable(&self) -> bool {
        !matches!(self, Node::Binary(BinOp::SDiv | BinOp::UDiv | BinOp::SRem | BinOp::URem, _, _))
    }
}

/// How a load or store converts between memory and register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mem {
    /// The register's type as it is.
    Plain,
    /// Four 16-bit elements, zero-extended to i32x4 (loads only).
    ZExt16x4,
    /// Four 16-bit elements, sign-extended to i32x4 (loads only).
    SExt16x4,
}

/// A function of the runtime that generated code calls through the launch context's table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Helper {
    /// `(user, site, block, values, elements)`: print.
    Print,
    /// `(records, n)`: sorts u64 records ascending.
    Sort64,
    /// `(records, n)`: sorts (u64, u64) records ascending.
    Sort128,
    /// `(records, n, k)`: moves the k smallest u64 records to the front, sorted.
    Select64,
    /// `(records, n, k)`: the same for (u64, u64) records.
    Select128,
    /// `(function, bits of x)`: bits of an elementary function of an f64, which has no vector form.
    F64Math,
}

impl Helper {
    /// In the order of the table's fields.
    pub const ALL: [Helper; 6] =
        [Helper::Print, Helper::Sort64, Helper::Sort128, Helper::Select64, Helper::Select128, Helper::F64Math];

    pub const fn name(self) -> &'static str {
        match self {
            Helper::Print => "print",
            Helper::Sort64 => "sort64",
            Helper::Sort128 => "sort128",
            Helper::Select64 => "select64",
            Helper::Select128 => "select128",
            Helper::F64Math => "f64_math",
        }
    }

    /// Number of arguments, all i64.
    pub const fn arity(self) -> usize {
        match self {
            Helper::Print => 5,
            Helper::Sort64 | Helper::Sort128 | Helper::F64Math => 2,
            Helper::Select64 | Helper::Select128 => 3,
        }
    }

    /// Does it return an i64?
    pub const fn has_result(self) -> bool {
        matches!(self, Helper::F64Math)
    }
}

/// A value that a loop carries from one iteration to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried {
    /// The value inside the body.
    pub param: Val,
    /// Before the first iteration.
    pub init: Val,
    /// At the end of the body.
    pub next: Val,
    /// After the loop.
    pub result: Val,
}

/// A value that an `if` yields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Merge {
    pub then: Val,
    pub otherwise: Val,
    pub result: Val,
}

pub type Block = Vec<Stmt>;

/// A statement.
#[derive(Clone, PartialEq, Debug)]
pub enum Stmt {
    Let(Val, Node),
    Load {
        out: Val,
        mem: Mem,
        addr: Val,
        offset: i32,
    },
    Store {
        value: Val,
        addr: Val,
        offset: i32,
    },
    /// Sequentially consistent; `out` is the value before.
    Atomic {
        out: Val,
        op: Rmw,
        addr: Val,
        value: Val,
    },
    /// Compare and swap; `out` is the value before.
    Cas {
        out: Val,
        addr: Val,
        expected: Val,
        value: Val,
    },
    /// All arguments and the result, if any, are i64.
    Call {
        out: Option<Val>,
        helper: Helper,
        args: Vec<Val>,
    },
    /// Leaves the kernel with the status of failure site `site` in block `block`.
    ExitIf {
        cond: Val,
        site: u32,
        block: Val,
    },
    /// `iv` from `lo` in steps of `step` while below `hi` (signed).
    For {
        iv: Val,
        lo: Val,
        hi: Val,
        step: i64,
        carried: Vec<Carried>,
        body: Block,
    },
    If {
        cond: Val,
        then: Block,
        otherwise: Block,
        merges: Vec<Merge>,
    },
    /// `before` runs; while `cond`, `body` and `before` again. `body` sees the values of `before`.
    While {
        before: Block,
        cond: Val,
        body: Block,
    },
}

/// A kernel in loop IR: runs the blocks `first..last` of the grid.
#[derive(Clone, PartialEq, Debug)]
pub struct LoopFunc {
    pub name: String,
    /// Type of every value.
    pub types: Vec<Ty>,
    /// Launch context, first block, last block, arena.
    pub params: [Val; 4],
    pub body: Block,
}

impl LoopFunc {
    pub fn ty(&self, v: Val) -> Ty {
        self.types[v.index()]
    }
}
