//! The elementary functions of `numerics::math` on scalar or vector loop IR values: the same operations in the same
//! order as the interpreter, hence the same bits.

use crate::cpu::loopir::{BinOp, Builder, FloatCc, IntCc, Ty, UnOp, Val};
use zellige_ir::numerics::math::Arith;

/// Emits `f32`/`i32` operations in the shape of `float`: f32 or f32x4.
pub(super) struct Emit<'b> {
    pub b: &'b mut Builder,
    pub float: Ty,
}

impl Emit<'_> {
    fn int(&self) -> Ty {
        self.float.as_int()
    }
}

impl Arith for Emit<'_> {
    type F = Val;
    type I = Val;
    type B = Val;

    fn f32(&mut self, v: f32) -> Val {
        self.b.imm(self.float, u64::from(v.to_bits()))
    }
    fn i32(&mut self, v: i32) -> Val {
        self.b.imm(self.int(), v as u64)
    }
    fn add(&mut self, x: Val, y: Val) -> Val {
        self.b.bin(BinOp::FAdd, x, y)
    }
    fn sub(&mut self, x: Val, y: Val) -> Val {
        self.b.bin(BinOp::FSub, x, y)
    }
    fn mul(&mut self, x: Val, y: Val) -> Val {
        self.b.bin(BinOp::FMul, x, y)
    }
    fn div(&mut self, x: Val, y: Val) -> Val {
        self.b.bin(BinOp::FDiv, x, y)
    }
    fn fma(&mut self, x: Val, y: Val, z: Val) -> Val {
        self.b.fma(x, y, z)
    }
    fn sqrt(&mut self, x: Val) -> Val {
        self.b.un(UnOp::Sqrt, x)
    }
    fn round_even(&mut self, x: Val) -> Val {
        self.b.un(UnOp::Nearest, x)
    }
    fn abs(&mut self, x: Val) -> Val {
        self.b.un(UnOp::FAbs, x)
    }
    fn neg(&mut self, x: Val) -> Val {
        self.b.un(UnOp::FNeg, x)
    }
    fn bits(&mut self, x: Val) -> Val {
        let int = self.int();
        self.b.bitcast(int, x)
    }
    fn bits_to_float(&mut self, x: Val) -> Val {
        self.b.bitcast(self.float, x)
    }
    fn int_to_float(&mut self, x: Val) -> Val {
        self.b.convert(UnOp::SToF, self.float, x)
    }
    fn iadd(&mut self, x: Val, y: Val) -> Val {
        self.b.add(x, y)
    }
    fn isub(&mut self, x: Val, y: Val) -> Val {
        self.b.sub(x, y)
    }
    fn iand(&mut self, x: Val, y: Val) -> Val {
        self.b.bin(BinOp::And, x, y)
    }
    fn ior(&mut self, x: Val, y: Val) -> Val {
        self.b.bin(BinOp::Or, x, y)
    }
    fn ixor(&mut self, x: Val, y: Val) -> Val {
        self.b.bin(BinOp::Xor, x, y)
    }
    fn ishl(&mut self, x: Val, n: u32) -> Val {
        self.b.bin_imm(BinOp::Shl, x, i64::from(n))
    }
    fn ushr(&mut self, x: Val, n: u32) -> Val {
        self.b.bin_imm(BinOp::UShr, x, i64::from(n))
    }
    fn sshr(&mut self, x: Val, n: u32) -> Val {
        self.b.bin_imm(BinOp::SShr, x, i64::from(n))
    }
    fn lt(&mut self, x: Val, y: Val) -> Val {
        self.b.fcmp(FloatCc::Lt, x, y)
    }
    fn le(&mut self, x: Val, y: Val) -> Val {
        self.b.fcmp(FloatCc::Le, x, y)
    }
    fn eq(&mut self, x: Val, y: Val) -> Val {
        self.b.fcmp(FloatCc::Eq, x, y)
    }
    fn ne(&mut self, x: Val, y: Val) -> Val {
        self.b.fcmp(FloatCc::Ne, x, y)
    }
    fn ieq(&mut self, x: Val, y: Val) -> Val {
        self.b.icmp(IntCc::Eq, x, y)
    }
    fn select(&mut self, c: Val, x: Val, y: Val) -> Val {
        self.b.select(c, x, y)
    }
    fn iselect(&mut self, c: Val, x: Val, y: Val) -> Val {
        self.b.select(c, x, y)
    }
}
