//! How a tile IR scalar is held while a region is lowered, for one iteration or for four at once.
//!
//! Register forms by element type: `bool` is an i8 that is 0 or 1 (vector: a lane mask); integers of up to 32 bits an i32
//! extended by their own sign; `f32` and `f64` themselves; `i64`, `u64` and `index` an i64; every narrower float its bits
//! in an i32. Types of 64 bits have no vector form: their four lanes are four scalars.

use super::Lower;
use crate::cpu::loopir::{BinOp, IntCc, Ty, UnOp, Val};
use zellige_ir::DType;

/// Iterations that a vector holds.
pub(crate) const W: usize = 4;

/// A scalar of tile IR in registers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Rep {
    /// The same in all iterations (or there is only one).
    Uni(Val),
    /// An `index` that grows by a constant from one iteration to the next.
    Lin { base: Val, step: i64 },
    /// One lane for each iteration.
    Vec(Val),
    /// One scalar for each iteration.
    Lanes([Val; W]),
}

impl Rep {
    pub(crate) fn is_uniform(self) -> bool {
        matches!(self, Rep::Uni(_))
    }
}

/// Register type of one element.
pub(crate) fn reg(ty: DType) -> Ty {
    match ty {
        DType::Bool => Ty::I8,
        DType::I8
        | DType::I16
        | DType::I32
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::F16
        | DType::BF16
        | DType::F8E4M3
        | DType::F8E5M2
        | DType::F4E2M1
        | DType::E8M0 => Ty::I32,
        DType::I64 | DType::U64 | DType::Index => Ty::I64,
        DType::F32 => Ty::F32,
        DType::F64 => Ty::F64,
    }
}

/// Register type of four elements, if there is one.
pub(crate) fn vec_reg(ty: DType) -> Option<Ty> {
    match reg(ty) {
        Ty::I8 | Ty::I32 => Some(Ty::I32x4),
        Ty::F32 => Some(Ty::F32x4),
        _ => None,
    }
}

impl Lower<'_> {
    /// The vector form of a value whose type has one.
    pub(crate) fn as_vec(&mut self, rep: Rep, ty: DType) -> Val {
        match rep {
            Rep::Vec(v) => v,
            Rep::Uni(v) if ty == DType::Bool => {
                let wide = self.b.convert(UnOp::ZExt, Ty::I32, v);
                let zero = self.b.i32(0);
                let mask = self.b.sub(zero, wide);
                self.b.splat(mask)
            }
            Rep::Uni(v) => self.b.splat(v),
            Rep::Lin { .. } | Rep::Lanes(_) => {
                let lanes = self.as_lanes(rep, ty);
                self.join_lanes(lanes, ty)
            }
        }
    }

    /// Collects four scalars in a vector.
    pub(crate) fn join_lanes(&mut self, lanes: [Val; W], ty: DType) -> Val {
        let vec = vec_reg(ty).unwrap_or(Ty::I32x4);
        let scalar = |l: &mut Self, v: Val| match ty {
            DType::Bool => {
                let wide = l.b.convert(UnOp::ZExt, Ty::I32, v);
                let zero = l.b.i32(0);
                l.b.sub(zero, wide)
            }
            _ => v,
        };
        let first = scalar(self, lanes[0]);
        let mut out = self.b.convert(UnOp::ToVector, vec, first);
        for (i, &lane) in lanes.iter().enumerate().skip(1) {
            let lane = scalar(self, lane);
            out = self.b.insert(out, lane, i);
        }
        out
    }

    /// One scalar for each of the four iterations.
    pub(crate) fn as_lanes(&mut self, rep: Rep, ty: DType) -> [Val; W] {
        match rep {
            Rep::Uni(v) => [v; W],
            Rep::Lin { base, step } => std::array::from_fn(|i| self.b.add_imm(base, step * i as i64)),
            Rep::Vec(v) => std::array::from_fn(|i| {
                let lane = self.b.extract(v, i);
                if ty == DType::Bool {
                    let zero = self.b.i32(0);
                    self.b.icmp(IntCc::Ne, lane, zero)
                } else {
                    lane
                }
            }),
            Rep::Lanes(lanes) => lanes,
        }
    }

    /// The value in iteration `i` of the four.
    pub(crate) fn lane(&mut self, rep: Rep, ty: DType, i: usize) -> Val {
        match rep {
            Rep::Uni(v) => v,
            Rep::Lin { base, step } => self.b.add_imm(base, step * i as i64),
            Rep::Vec(_) | Rep::Lanes(_) => self.as_lanes(rep, ty)[i],
        }
    }

    /// Applies a computation that is written once for scalars and vectors. With `vector`, the computation can be
    /// done on four lanes at once where all types have a vector form.
    pub(crate) fn apply(
        &mut self,
        args: &[(Rep, DType)],
        out: DType,
        vector: bool,
        f: &mut dyn FnMut(&mut Self, &[Val]) -> Val,
    ) -> Rep {
        if args.iter().all(|(r, _)| r.is_uniform()) {
            let vals: Vec<Val> = args.iter().map(|(r, t)| self.lane(*r, *t, 0)).collect();
            return Rep::Uni(f(self, &vals));
        }
        if vector && vec_reg(out).is_some() && args.iter().all(|(_, t)| vec_reg(*t).is_some()) {
            let vals: Vec<Val> = args.iter().map(|(r, t)| self.as_vec(*r, *t)).collect();
            return Rep::Vec(f(self, &vals));
        }
        let lanes: Vec<[Val; W]> = args.iter().map(|(r, t)| self.as_lanes(*r, *t)).collect();
        let out_lanes = std::array::from_fn(|i| {
            let vals: Vec<Val> = lanes.iter().map(|l| l[i]).collect();
            f(self, &vals)
        });
        if vec_reg(out).is_some() { Rep::Vec(self.join_lanes(out_lanes, out)) } else { Rep::Lanes(out_lanes) }
    }

    /// i32x4 of `base + i * step` modulo 2^32.
    pub(crate) fn linear_i32(&mut self, base: Val, step: i64) -> Val {
        let low = self.b.convert(UnOp::Reduce, Ty::I32, base);
        let low = self.b.splat(low);
        let ramp = self.b.i32x4(std::array::from_fn(|i| (step * i as i64) as i32));
        self.b.bin(BinOp::Add, low, ramp)
    }

    /// Is `base + i * step` an i32 in all four iterations, as far as is known?
    pub(crate) fn fits_i32(&self, base: Val, step: i64) -> bool {
        let f = self.b.facts(base);
        let reach = step * (W as i64 - 1);
        f.lo.saturating_add(reach.min(0)) >= i64::from(i32::MIN)
            && f.hi.saturating_add(reach.max(0)) <= i64::from(i32::MAX)
    }
}
