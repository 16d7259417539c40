//! Device `print`.

use super::index::{self, Idx};
use super::scan::window_point;
use super::value::Scalar;
use super::view::Coords;
use super::{Lowerer, Result, cast};
use crate::ptx::simt::{Num, Round, SimtOp, Ty, Val, Vals};
use zellige_ir::{DType, Indices, Op, Window};

impl Lowerer<'_> {
    /// A value as vprintf takes it, with its conversion.
    fn printable(&mut self, v: Scalar, ty: DType) -> (Val, &'static str) {
        let x = match v {
            Scalar::Idx(i) => return (index::to_val(&mut self.b, i, Ty::B64), "%lld"),
            Scalar::Reg(x) => x,
        };
        let b = &mut self.b;
        match ty {
            DType::Bool => {
                let (one, zero) = (b.c32(1), b.c32(0));
                (b.selp(x, one, zero), "%d")
            }
            DType::I8 | DType::I16 | DType::I32 => (x, "%d"),
            DType::U8 | DType::U16 | DType::U32 => (x, "%u"),
            DType::I64 | DType::Index => (x, "%lld"),
            DType::U64 => (x, "%llu"),
            DType::F64 => (x, "%g"),
            DType::F16 | DType::BF16 | DType::F32 | DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 | DType::E8M0 => {
                let wide = cast::widen(b, self.target, ty, x);
                (b.cvt(Num::F64, Num::F32, Round::Exact, wide), "%g")
            }
        }
    }

    pub(super) fn print_values(&mut self, op: Op, message: &str, values: &Indices, lane: Option<usize>) -> Result {
        let mut format = message.replace('%', "%%");
        let mut args = Vals::new();
        for &v in values {
            let ty = self.func.ty(v);
            let x = self.scalar(op, v, lane)?;
            let (x, conversion) = self.printable(x, ty);
            format.push(' ');
            format.push_str(conversion);
            args.push(x);
        }
        format.push('\n');
        self.b.push(SimtOp::Print { format, args });
        Ok(())
    }

    /// One thread prints the values; the window's elements follow, one a line.
    pub(super) fn print(&mut self, op: Op, message: &str, values: &Indices, window: Option<&Window>) -> Result {
        let view = match window {
            Some(w) => Some((w, self.readable(op, w.buffer)?, self.offsets(op, w)?)),
            None => None,
        };
        self.b.phase("print");
        let first = self.first_thread();
        self.branch_on(Some(first), &mut |l| {
            l.print_values(op, message, values, None)?;
            let Some((w, view, offsets)) = &view else { return Ok(()) };
            let shape = w.shape();
            let v = l.b.begin_for(Ty::B32);
            let mut rest = Idx::new(v, 0, w.len() as i64 - 1, 1);
            let mut point: Coords = shape.iter().map(|_| Idx::constant(0)).collect();
            for axis in (0..shape.len()).rev() {
                let extent = Idx::constant(shape[axis] as i64);
                point[axis] = index::rem(&mut l.b, rest, extent);
                rest = index::div(&mut l.b, rest, extent);
            }
            let c = window_point(&mut l.b, w, offsets, &point);
            let guard = view.guard(&mut l.b, &c);
            let x = view.load(&mut l.b, &[c], &[guard])[0];
            let (x, conversion) = l.printable(Scalar::Reg(x), view.dtype);
            let mut args = Vals::new();
            let mut format = String::from("  [");
            for (i, &p) in point.iter().enumerate() {
                if i > 0 {
                    format.push_str(", ");
                }
                format.push_str("%d");
                args.push(index::to_val(&mut l.b, p, Ty::B32));
            }
            format.push_str("] ");
            format.push_str(conversion);
            format.push('\n');
            args.push(x);
            l.b.push(SimtOp::Print { format, args });
            let (lo, hi, one) = (l.b.c32(0), l.b.c32(w.len() as i64), l.b.c32(1));
            l.b.end_for(v, lo, hi, one, false);
            Ok(())
        })
    }
}
