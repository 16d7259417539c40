//! From expressions to scalar ops, keeping floats finite.

use super::build::{Builder, Tile, pick};
use super::plan::Expr;
use zellige_ir::{BinaryOp, CmpOp, Const, DType, Scope, UnaryOp, Value};

/// Floats that a tile holds are at most this large; every arithmetic format has it.
const BOUND: f64 = 32768.0;
/// Operands of sums are integers up to this.
pub(super) const SMALL: f64 = 4.0;

/// The point at which an expression is evaluated.
pub(super) struct Point<'p> {
    pub at: &'p [Value],
    /// The tile that is written there, which may be read only there.
    pub dst: Option<&'p Tile>,
}

impl Builder<'_> {
    /// The value of an expression in an arithmetic type.
    pub fn expr(&mut self, e: &Expr, ty: DType, point: &Point<'_>) -> Value {
        match e {
            Expr::Tile { tile, pattern } => self.element(*tile, *pattern, ty, point),
            Expr::Const(v) => {
                self.b.constant(Const::from_f64(ty, f64::from(*v) / if ty.is_float() { 8.0 } else { 1.0 }))
            }
            Expr::Scalar(choice) => {
                let all: Vec<Value> = self.scalars.iter().chain(&self.indices).chain(point.at).copied().collect();
                let v = all[usize::from(*choice) % all.len()];
                self.convert(v, ty)
            }
            Expr::Unary(op, x) => {
                let x = self.expr(x, ty, point);
                self.unary(*op, x)
            }
            Expr::Binary(op, x, y) => {
                let (x, y) = (self.expr(x, ty, point), self.expr(y, ty, point));
                self.binary(*op, x, y)
            }
            Expr::Fma(x, y, z) => {
                let [x, y, z] = [x, y, z].map(|e| self.expr(e, ty, point));
                if ty.is_float() {
                    let v = self.b.fma(x, y, z);
                    return self.bounded(v);
                }
                let product = self.b.mul(x, y);
                self.b.add(product, z)
            }
            Expr::Select { op, ty: other, operands } => {
                let other = pick(*other, &self.config.dtypes).unwrap_or(ty);
                let [a, b, x, y] = &**operands;
                let (a, b) = (self.expr(a, other, point), self.expr(b, other, point));
                let cond = self.b.cmp(CmpOp::ALL[usize::from(*op) % CmpOp::ALL.len()], a, b);
                let (x, y) = (self.expr(x, ty, point), self.expr(y, ty, point));
                self.b.select(cond, x, y)
            }
            Expr::Cast(other, x) => {
                let other = pick(*other, &self.config.dtypes).unwrap_or(ty);
                let x = self.expr(x, other, point);
                self.convert(x, ty)
            }
        }
    }

    /// The value of an expression as a condition, the same for the whole block.
    pub fn condition(&mut self, e: &Expr) -> Value {
        let v = self.expr(e, DType::F32, &Point { at: &[], dst: None });
        let half = self.b.constant(Const::f32(0.5));
        self.b.cmp(CmpOp::Gt, v, half)
    }

    /// An element of some tile in type `ty`.
    fn element(&mut self, choice: u8, pattern: u8, ty: DType, point: &Point<'_>) -> Value {
        let aligned = self.config.aligned_fragments;
        let readable: Vec<Tile> = (self.tiles.iter())
            .filter(|t| {
                let is_dst = point.dst.is_some_and(|d| d.buffer == t.buffer);
                let same_place = point.dst.is_some_and(|d| d.shape == t.shape);
                is_dst || !aligned || t.scope != Scope::Fragment || same_place
            })
            .cloned()
            .collect();
        let Some(t) = pick(choice, &readable) else { return self.convert(self.alpha, ty) };
        let is_dst = point.dst.is_some_and(|d| d.buffer == t.buffer);
        let in_place = is_dst || (aligned && t.scope == Scope::Fragment);
        let at: Vec<Value> = (0..t.shape.len())
            .map(|axis| {
                let n = t.shape[axis] as i64;
                // The last axes correspond; missing ones repeat.
                let skip = point.at.len().saturating_sub(t.shape.len());
                let Some(&i) = point.at.get(axis + skip).or(point.at.last()) else { return self.b.index(0) };
                if in_place {
                    return i;
                }
                let fits = point.dst.is_some_and(|d| d.shape.get(axis + skip).is_some_and(|&m| m as i64 <= n));
                let (one, n, last) = (self.b.index(1), self.b.index(n), self.b.index(n - 1));
                match pattern % 6 {
                    4 => {
                        let r = self.b.binary(BinaryOp::Rem, i, n);
                        self.b.sub(last, r)
                    }
                    5 => {
                        let next = self.b.add(i, one);
                        self.b.binary(BinaryOp::Rem, next, n)
                    }
                    _ if fits => i,
                    _ => self.b.binary(BinaryOp::Rem, i, n),
                }
            })
            .collect();
        let v = self.b.load(t.buffer, &at);
        self.convert(v, ty)
    }

    /// Converts to an arithmetic type, bounding what becomes a float.
    pub fn convert(&mut self, v: Value, ty: DType) -> Value {
        let from = self.b.func().ty(v);
        let v = self.b.cast(v, ty);
        let is_small = from == ty || from == DType::Bool || (from.is_float() && !from.is_storage_only());
        if ty.is_float() && !is_small { self.bounded(v) } else { v }
    }

    /// The value within [`BOUND`]: infinities do not survive, and no operation on what remains gives NaN.
    fn bounded(&mut self, v: Value) -> Value {
        self.clamped(v, BOUND)
    }

    fn clamped(&mut self, v: Value, bound: f64) -> Value {
        let ty = self.b.func().ty(v);
        let (low, high) = (self.b.constant(Const::from_f64(ty, -bound)), self.b.constant(Const::from_f64(ty, bound)));
        let v = self.b.binary(BinaryOp::Min, v, high);
        self.b.binary(BinaryOp::Max, v, low)
    }

    /// The sum, within bounds.
    pub fn sum(&mut self, x: Value, y: Value) -> Value {
        let v = self.b.add(x, y);
        if self.b.func().ty(v).is_float() { self.bounded(v) } else { v }
    }

    /// A small integer near the value, for sums that must be exact; integers stay as they are.
    pub fn small(&mut self, v: Value) -> Value {
        if !self.b.func().ty(v).is_float() {
            return v;
        }
        let v = self.clamped(v, SMALL);
        self.b.unary(UnaryOp::Round, v)
    }

    /// The value plus one, without its sign: a divisor.
    fn at_least_one(&mut self, v: Value) -> Value {
        let ty = self.b.func().ty(v);
        let (v, one) = (self.b.unary(UnaryOp::Abs, v), self.b.constant(Const::from_f64(ty, 1.0)));
        self.b.add(v, one)
    }

    fn unary(&mut self, choice: u8, x: Value) -> Value {
        use UnaryOp::*;
        let ty = self.b.func().ty(x);
        if !ty.is_float() {
            let op = pick(choice, &[Neg, Abs, Not, Popcount, Clz]).unwrap_or(Neg);
            return self.b.unary(op, x);
        }
        let op = if self.config.transcendental && choice >= 128 {
            pick(choice, &[Exp, Exp2, Log, Log2, Log1p, Sin, Cos, Tanh]).unwrap_or(Exp)
        } else {
            pick(choice, &[Neg, Abs, Sqrt, Rsqrt, Rcp, Floor, Ceil, Trunc, Round, IsNan, IsFinite]).unwrap_or(Neg)
        };
        match op {
            Sqrt => {
                let x = self.b.unary(Abs, x);
                self.b.unary(op, x)
            }
            Rsqrt | Rcp | Log | Log2 | Log1p => {
                let x = self.at_least_one(x);
                self.b.unary(op, x)
            }
            Exp | Exp2 => {
                let x = self.clamped(x, 8.0);
                self.b.unary(op, x)
            }
            // Range reduction is a matter of its own.
            Sin | Cos => {
                let x = self.clamped(x, 64.0);
                self.b.unary(op, x)
            }
            IsNan | IsFinite => {
                let is = self.b.unary(op, x);
                self.b.cast(is, ty)
            }
            _ => self.b.unary(op, x),
        }
    }

    fn binary(&mut self, choice: u8, x: Value, y: Value) -> Value {
        use BinaryOp::*;
        let ty = self.b.func().ty(x);
        if ty.is_float() {
            return match pick(choice, &[Add, Sub, Mul, Min, Max, Div, CopySign]).unwrap_or(Add) {
                Div => {
                    let y = self.at_least_one(y);
                    self.b.binary(Div, x, y)
                }
                op @ (Min | Max | CopySign) => self.b.binary(op, x, y),
                op => {
                    let v = self.b.binary(op, x, y);
                    self.bounded(v)
                }
            };
        }
        let mut ops = vec![Add, Sub, Mul, Min, Max, Div, Rem, And, Or, Xor, Shl, Shr];
        if ty == DType::U32 {
            ops.push(MulHi);
        }
        let op = pick(choice, &ops).unwrap_or(Add);
        let y = if matches!(op, Div | Rem) {
            let one = self.b.constant(Const::from_f64(ty, 1.0));
            self.b.binary(Or, y, one)
        } else {
            y
        };
        self.b.binary(op, x, y)
    }
}
