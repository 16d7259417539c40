//! A gemm by `mma.sync`: each warp multiplies its rows by its columns, step by step along k.

use super::operand::{Operand, Side};
use super::plan::MmaPlan;
use crate::ptx::lower::frag::Fragment;
use crate::ptx::lower::index::Idx;
use crate::ptx::lower::{Lowerer, Result};
use crate::ptx::simt::{Ty, Vals};
use zellige_ir::{Op, Window};

/// Instructions up to which the steps along k are unrolled.
const MAX_UNROLLED: usize = 256;

impl Lowerer<'_> {
    pub(super) fn gemm_mma(&mut self, op: Op, p: &MmaPlan, a: &Window, b: &Window, acc: &mut Fragment) -> Result {
        let dist = acc.dist.clone();
        let a = self.operand(op, Side::A, a, p, &dist)?;
        let b = self.operand(op, Side::B, b, p, &dist)?;
        self.b.phase("gemm");
        // Origins of the warp's instruction tiles, of batches of them along m.
        let mut rows: Vec<usize> = dist.regs.iter().map(|c| c[0]).filter(|m| m % p.depth_m() == 0).collect();
        let mut cols: Vec<usize> = dist.regs.iter().map(|c| c[1]).filter(|n| n % 8 == 0).collect();
        rows.sort_unstable();
        rows.dedup();
        cols.sort_unstable();
        cols.dedup();
        let (steps, batch, k) = (p.steps(), p.batch(), p.kind.k());
        let tiles = rows.len() * p.batch_m() * cols.len();
        let fixed = Self::is_in_registers(&a) || Self::is_in_registers(&b);
        if fixed || steps * tiles <= MAX_UNROLLED || steps <= batch {
            let base = Idx::constant(0);
            return (0..steps)
                .step_by(batch)
                .try_for_each(|step| self.mma_steps(op, p, &a, &b, acc, &rows, &cols, base, step));
        }
        let unroll = (batch..=steps)
            .rev()
            .find(|u| steps.is_multiple_of(*u) && u.is_multiple_of(batch) && u * tiles <= MAX_UNROLLED)
            .unwrap_or(batch);
        self.flush();
        acc.flush(&mut self.b);
        let i = self.b.begin_for(Ty::B32);
        let stride = (unroll * k) as i64;
        let base =
            Idx { base: Some(i), off: 0, lo: 0, hi: (steps * k) as i64 - stride, align: 1 << stride.trailing_zeros() };
        for step in (0..unroll).step_by(batch) {
            self.mma_steps(op, p, &a, &b, acc, &rows, &cols, base, step)?;
        }
        acc.flush(&mut self.b);
        let (lo, hi, by) = (self.b.c32(0), self.b.c32((steps * k) as i64), self.b.c32(stride));
        self.b.end_for(i, lo, hi, by, true);
        Ok(())
    }

    /// The steps from `step` on whose operands lie together, from depth `base` on.
    #[allow(clippy::too_many_arguments)]
    fn mma_steps(
        &mut self,
        op: Op,
        p: &MmaPlan,
        a: &Operand,
        b: &Operand,
        acc: &mut Fragment,
        rows: &[usize],
        cols: &[usize],
        base: Idx,
        step: usize,
    ) -> Result {
        let steps = step..step + p.batch();
        let b_regs = self.fetch_b(p, b, cols, base, steps.clone())?;
        for (&first, tile) in rows.iter().flat_map(|m| (0..p.batch_m()).map(move |t| (m, t))) {
            let m = [0, 1].map(|half| first + p.along_m(tile, half).1);
            let a_regs = self.fetch_a(p, a, m, base, steps.clone())?;
            for (a_regs, b_regs) in a_regs.iter().zip(&b_regs) {
                for (&n, b_regs) in cols.iter().zip(b_regs) {
                    let places = [[m[0], n], [m[0], n + 1], [m[1], n], [m[1], n + 1]];
                    let mut regs = [0; 4];
                    for (r, at) in regs.iter_mut().zip(&places) {
                        match acc.dist.reg(at) {
                            Some(reg) => *r = reg,
                            None => return self.malformed(op, "an accumulator does not lie as its instruction wants"),
                        }
                    }
                    let c: Vals = regs.iter().map(|&r| acc.get(&mut self.b, r)).collect();
                    let d = self.b.mma(p.kind, a_regs.clone(), b_regs.clone(), c);
                    for (&r, v) in regs.iter().zip(d) {
                        acc.set(r, v);
                    }
                }
            }
        }
        Ok(())
    }
}
