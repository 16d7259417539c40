//! `print`: values and elements go to scratch memory, and from there to the runtime.

use super::access::Guard;
use super::rep::Rep;
use super::{Lower, Result};
use crate::cpu::abi::PrintSite;
use crate::cpu::loopir::{Helper, Val};
use zellige_ir::{Op, Value, Window};

impl Lower<'_> {
    pub(super) fn print(&mut self, at: Op, message: &str, values: &[Value], window: Option<&Window>) -> Result {
        let shape: Vec<usize> = window.map_or(Vec::new(), |w| w.shape().to_vec());
        let site = PrintSite {
            message: message.to_owned(),
            values: values.iter().map(|v| self.func.ty(*v)).collect(),
            element: window.iter().map(|w| self.func.buffers[w.buffer].dtype).collect(),
            shape,
            place: (&self.func.ops[at].span).into(),
        };
        let position = match self.prints.iter().position(|s| *s == site) {
            Some(p) => p,
            None => {
                self.prints.push(site);
                self.prints.len() - 1
            }
        };
        let slots = self.scratch(values.len().max(1) * 8);
        for (i, v) in values.iter().enumerate() {
            let (x, ty) = (self.get_uniform(*v), self.func.ty(*v));
            let bits = self.bits_of_value(ty, x);
            self.b.store(bits, slots, i as i32 * 8);
        }
        let elements = match window {
            Some(w) => self.spill_window(at, w)?,
            None => slots,
        };
        // The context's user pointer takes the place of the first argument.
        let zero = self.b.i64(0);
        let site = self.b.i64(position as i64);
        let block = self.block;
        self.b.call(Helper::Print, vec![zero, site, block, slots, elements]);
        Ok(())
    }

    /// The window's elements as u64 bits in scratch memory, row-major.
    fn spill_window(&mut self, at: Op, w: &Window) -> Result<Val> {
        let s = self.storage(w.buffer, at)?;
        let area = self.scratch(w.len().max(1) * 8);
        let shape = w.shape();
        let extents: Vec<Val> = shape.iter().map(|n| self.b.i64(*n as i64)).collect();
        let ty = s.dtype;
        let pad = self.immediate(ty, 0);
        self.box_loop(&extents, None, 1, &mut |l, point| {
            let idx = l.window_point(w, point);
            let Rep::Uni(v) = l.load_elem(&s, &idx, if s.global { Guard::Check(pad) } else { Guard::Inside }) else {
                return Ok(());
            };
            let bits = l.bits_of_value(ty, v);
            let mut position = l.b.i64(0);
            for (p, n) in point.iter().zip(&shape) {
                let scaled = l.b.mul_imm(position, *n as i64);
                let Rep::Uni(i) = *p else { return Ok(()) };
                position = l.b.add(scaled, i);
            }
            let addr = l.b.scaled_address(area, position, 8);
            l.b.store(bits, addr, 0);
            Ok(())
        })?;
        Ok(area)
    }
}
