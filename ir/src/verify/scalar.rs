//! Rules 17, 18, 20 to 23 and 28 to 29: operands of scalar ops, accesses to elements, and control flow.

use super::structure::is_parallel;
use super::{Rule, Verifier};
use crate::DType;
use crate::func::{Buffer, Scope, Value};
use crate::op::{AtomicOp, BinaryOp, CmpOp, LoopKind, OpKind, UnaryOp};

impl Verifier<'_> {
    /// Checks the types and shapes of an op's operands.
    pub(super) fn check_operands(&mut self, kind: &OpKind) {
        match kind {
            OpKind::Unary { out, op, x } => self.check_unary(*op, out.0, *x),
            OpKind::Binary { out, op, x, y } => self.check_binary(*op, out.0, *x, *y),
            OpKind::Fma { out, x, y, z } => {
                self.check_operand("fma", "floats", *x, is_float);
                self.check_same(&[*x, *y, *z, out.0]);
            }
            OpKind::Cmp { out, op, x, y } => {
                match op {
                    CmpOp::Eq | CmpOp::Ne => self.check_operand("cmp", "numbers and bool", *x, is_number_or_bool),
                    CmpOp::Lt | CmpOp::Le | CmpOp::Gt | CmpOp::Ge => {
                        self.check_operand(op.name(), "numbers", *x, DType::is_arithmetic);
                    }
                }
                self.check_same(&[*x, *y]);
                self.expect_type(Rule::ScalarTypes, "the result", out.0, DType::Bool);
            }
            OpKind::Select { out, cond, x, y } => {
                self.expect_type(Rule::Conditions, "the condition", *cond, DType::Bool);
                self.check_operand("select", "numbers and bool", *x, is_number_or_bool);
                self.check_same(&[*x, *y, out.0]);
            }
            // Any type converts to any other.
            OpKind::Cast { out: _, x: _ } => {}
            OpKind::Bitcast { out, x } => self.check_bitcast(out.0, *x),
            OpKind::Load { out, buffer, indices } => {
                self.check_element(*buffer, indices);
                self.check_element_type(*buffer, "the result", out.0);
            }
            OpKind::Store { buffer, indices, value } => {
                self.check_element(*buffer, indices);
                self.check_element_type(*buffer, "the value", *value);
                self.check_write(*buffer);
            }
            OpKind::Atomic { out, op, buffer, indices, value } => {
                self.check_element(*buffer, indices);
                self.check_element_type(*buffer, "the value", *value);
                self.check_element_type(*buffer, "the result", out.0);
                self.check_atomic(*op, *buffer);
                self.check_write(*buffer);
            }
            OpKind::For { kind, indices, extents, body: _ } => self.check_loop(*kind, indices, extents),
            OpKind::If { cond, .. } | OpKind::Assert { cond, .. } | OpKind::Assume { cond } => {
                self.expect_type(Rule::Conditions, "the condition", *cond, DType::Bool);
            }
            // The condition is checked at the end of the first region, where it is visible.
            OpKind::While { .. } => {}
            OpKind::Print { message: _, values: _, window } => {
                if let Some(w) = window {
                    self.check_window(w);
                }
            }
            OpKind::Alloc { .. } | OpKind::Role { .. } | OpKind::Layout { .. } => {}
            OpKind::Copy { .. }
            | OpKind::Gather { .. }
            | OpKind::Scatter { .. }
            | OpKind::Fill { .. }
            | OpKind::Gemm { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
            | OpKind::TopK { .. }
            | OpKind::Sort { .. }
            | OpKind::Shuffle { .. } => self.check_tile_op(kind),
        }
    }

    /// Checks that an operation is defined on an operand's type.
    fn check_operand(&mut self, op: &str, on: &str, x: Value, accepts: impl Fn(DType) -> bool) {
        let ty = self.ty(x);
        if accepts(ty) {
            return;
        }
        let name = self.name(x);
        if ty.is_storage_only() {
            self.violation(Rule::StorageOnly, format!("`{op}` computes with {name} of the storage format {ty}"))
                .help("cast it to f32 first");
        } else {
            self.violation(Rule::ScalarTypes, format!("`{op}` is defined on {on}, but {name} is {ty}"));
        }
    }

    /// Checks that all values have the type of the first.
    fn check_same(&mut self, values: &[Value]) {
        let Some((&first, rest)) = values.split_first() else { return };
        for &v in rest {
            if self.ty(v) != self.ty(first) {
                let (a, b, s, t) = (self.name(first), self.name(v), self.ty(first), self.ty(v));
                self.violation(Rule::ScalarTypes, format!("{a} is {s}, but {b} is {t}"));
            }
        }
    }

    fn check_unary(&mut self, op: UnaryOp, out: Value, x: Value) {
        use UnaryOp::*;
        match op {
            Neg | Abs => self.check_operand(op.name(), "numbers", x, DType::is_arithmetic),
            Not => self.check_operand(op.name(), "integers and bool", x, |ty| ty.is_int() || ty == DType::Bool),
            Exp | Exp2 | Log | Log2 | Log1p | Sin | Cos | Tanh | Sqrt | Rsqrt | Rcp | Floor | Ceil | Trunc | Round
            | IsNan | IsFinite => self.check_operand(op.name(), "floats", x, is_float),
            FastExp2 | FastLog2 | FastRcp | FastRsqrt | FastTanh => {
                self.check_operand(op.name(), "floats of up to 32 bits", x, |ty| is_float(ty) && ty != DType::F64);
            }
            Popcount | Clz => {
                let fixed = |ty: DType| ty.is_int() && ty != DType::Index;
                self.check_operand(op.name(), "integers of a known width", x, fixed);
            }
        }
        match op {
            IsNan | IsFinite => self.expect_type(Rule::ScalarTypes, "the result", out, DType::Bool),
            _ => self.check_same(&[x, out]),
        }
    }

    fn check_binary(&mut self, op: BinaryOp, out: Value, x: Value, y: Value) {
        use BinaryOp::*;
        match op {
            Add | Sub | Mul | Div | Min | Max => self.check_operand(op.name(), "numbers", x, DType::is_arithmetic),
            Rem | Shl | Shr => self.check_operand(op.name(), "integers", x, DType::is_int),
            CeilDiv => self.check_operand(op.name(), "index", x, |ty| ty == DType::Index),
            And | Or | Xor => {
                self.check_operand(op.name(), "integers and bool", x, |ty| ty.is_int() || ty == DType::Bool);
            }
            MulHi => self.check_operand(op.name(), "u32", x, |ty| ty == DType::U32),
            Pow => self.check_operand(op.name(), "f32", x, |ty| ty == DType::F32),
            CopySign => self.check_operand(op.name(), "floats", x, is_float),
        }
        self.check_same(&[x, y, out]);
    }

    fn check_bitcast(&mut self, out: Value, x: Value) {
        let (from, to) = (self.ty(x), self.ty(out));
        if let Some(ty) = [from, to].into_iter().find(|ty| matches!(ty, DType::Index | DType::Bool)) {
            self.violation(Rule::ScalarTypes, format!("`bitcast` is not defined on {ty}")).help("use `cast`");
        } else if from.bits() != to.bits() {
            let (m, n) = (from.bits(), to.bits());
            self.violation(Rule::ScalarTypes, format!("`bitcast` of {from} with {m} bits to {to} with {n}"));
        }
    }

    fn check_element_type(&mut self, b: Buffer, what: &str, v: Value) {
        let (got, want) = (self.ty(v), self.dtype(b));
        if got != want {
            let (name, buffer) = (self.name(v), self.buffer_name(b));
            self.buffer_violation(
                Rule::ElementType,
                b,
                format!("{what} {name} is {got}, but the elements of {buffer} are {want}"),
            );
        }
    }

    fn check_atomic(&mut self, op: AtomicOp, b: Buffer) {
        let (name, ty, scope) = (self.buffer_name(b), self.dtype(b), self.scope(b));
        if !matches!(scope, Scope::Global | Scope::Shared) {
            self.buffer_violation(Rule::Atomics, b, format!("an atomic on {name}, which is {}", scope.name()));
        }
        let is_int = matches!(ty, DType::I32 | DType::U32 | DType::I64 | DType::U64);
        let fits = match op {
            AtomicOp::Add | AtomicOp::Exchange => is_int || ty == DType::F32,
            AtomicOp::Min | AtomicOp::Max | AtomicOp::And | AtomicOp::Or => is_int,
        };
        if !fits {
            self.buffer_violation(Rule::Atomics, b, format!("atomic `{op}` on {ty} elements"));
        }
    }

    fn check_loop(&mut self, kind: LoopKind, indices: &[crate::Def], extents: &[Value]) {
        let (n, m) = (indices.len(), extents.len());
        if n != m {
            self.violation(Rule::Loops, format!("a loop has {n} indices for {m} extents"));
        } else if n == 0 {
            self.violation(Rule::Loops, "a loop has no index");
        } else if n > 1 && !is_parallel(kind) {
            self.violation(Rule::Loops, format!("a loop in order has {n} indices"))
                .help("nest loops with one index each");
        }
        for &v in extents {
            self.expect_type(Rule::Loops, "the extent", v, DType::Index);
        }
        for def in indices {
            self.expect_type(Rule::Loops, "the index", def.0, DType::Index);
        }
        match kind {
            LoopKind::Pipelined { stages: 0 } => {
                self.violation(Rule::Loops, "a pipeline has no stages");
            }
            LoopKind::Pipelined { .. }
            | LoopKind::Serial
            | LoopKind::Unrolled
            | LoopKind::Parallel
            | LoopKind::Vectorized
            | LoopKind::Persistent => {}
        }
    }
}

fn is_float(ty: DType) -> bool {
    ty.is_float() && ty.is_arithmetic()
}

fn is_number_or_bool(ty: DType) -> bool {
    ty.is_arithmetic() || ty == DType::Bool
}
