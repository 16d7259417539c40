//! The elementary functions of `zellige_ir::numerics::math` on SIMT registers: the same steps as in the interpreter,
//! hence the same bits.

use crate::ptx::simt::{Bin, Builder, Cmp, Num, Round, Ty, Un, Val};
use zellige_ir::numerics::math::Arith;

/// Appends the steps of a function to the current block.
pub struct Steps<'b>(pub &'b mut Builder);

impl Arith for Steps<'_> {
    type F = Val;
    type I = Val;
    type B = Val;

    fn f32(&mut self, v: f32) -> Val {
        self.0.f32(v)
    }
    fn i32(&mut self, v: i32) -> Val {
        self.0.c32(v.into())
    }

    fn add(&mut self, x: Val, y: Val) -> Val {
        self.0.add(Num::F32, x, y)
    }
    fn sub(&mut self, x: Val, y: Val) -> Val {
        self.0.sub(Num::F32, x, y)
    }
    fn mul(&mut self, x: Val, y: Val) -> Val {
        self.0.mul(Num::F32, x, y)
    }
    fn div(&mut self, x: Val, y: Val) -> Val {
        self.0.bin(Bin::Div, Num::F32, x, y)
    }
    fn fma(&mut self, x: Val, y: Val, z: Val) -> Val {
        self.0.mad(Num::F32, x, y, z)
    }
    fn sqrt(&mut self, x: Val) -> Val {
        self.0.un(Un::Sqrt, Num::F32, x)
    }
    fn round_even(&mut self, x: Val) -> Val {
        self.0.cvt(Num::F32, Num::F32, Round::Rni, x)
    }
    fn abs(&mut self, x: Val) -> Val {
        self.0.un(Un::Abs, Num::F32, x)
    }
    fn neg(&mut self, x: Val) -> Val {
        self.0.un(Un::Neg, Num::F32, x)
    }

    fn bits(&mut self, x: Val) -> Val {
        self.0.bits(Ty::B32, x)
    }
    fn bits_to_float(&mut self, x: Val) -> Val {
        self.0.bits(Ty::F32, x)
    }
    fn int_to_float(&mut self, x: Val) -> Val {
        self.0.cvt(Num::F32, Num::S32, Round::Rn, x)
    }

    fn iadd(&mut self, x: Val, y: Val) -> Val {
        self.0.add(Num::S32, x, y)
    }
    fn isub(&mut self, x: Val, y: Val) -> Val {
        self.0.sub(Num::S32, x, y)
    }
    fn iand(&mut self, x: Val, y: Val) -> Val {
        self.0.bin(Bin::And, Num::B32, x, y)
    }
    fn ior(&mut self, x: Val, y: Val) -> Val {
        self.0.bin(Bin::Or, Num::B32, x, y)
    }
    fn ixor(&mut self, x: Val, y: Val) -> Val {
        self.0.bin(Bin::Xor, Num::B32, x, y)
    }
    fn ishl(&mut self, x: Val, n: u32) -> Val {
        let n = self.0.c32(n.into());
        self.0.bin(Bin::Shl, Num::B32, x, n)
    }
    fn ushr(&mut self, x: Val, n: u32) -> Val {
        let n = self.0.c32(n.into());
        self.0.bin(Bin::Shr, Num::U32, x, n)
    }
    fn sshr(&mut self, x: Val, n: u32) -> Val {
        let n = self.0.c32(n.into());
        self.0.bin(Bin::Shr, Num::S32, x, n)
    }

    fn lt(&mut self, x: Val, y: Val) -> Val {
        self.0.setp(Cmp::Lt, Num::F32, x, y)
    }
    fn le(&mut self, x: Val, y: Val) -> Val {
        self.0.setp(Cmp::Le, Num::F32, x, y)
    }
    fn eq(&mut self, x: Val, y: Val) -> Val {
        self.0.setp(Cmp::Eq, Num::F32, x, y)
    }
    fn ne(&mut self, x: Val, y: Val) -> Val {
        self.0.setp(Cmp::Neu, Num::F32, x, y)
    }
    fn ieq(&mut self, x: Val, y: Val) -> Val {
        self.0.setp(Cmp::Eq, Num::S32, x, y)
    }
    fn select(&mut self, c: Val, x: Val, y: Val) -> Val {
        self.0.selp(c, x, y)
    }
    fn iselect(&mut self, c: Val, x: Val, y: Val) -> Val {
        self.0.selp(c, x, y)
    }

    // No elementary function depends on the sign of a zero from min or max, which is where the hardware differs.
}
