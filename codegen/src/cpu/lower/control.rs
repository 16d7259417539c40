//! Loops, branches and assertions.

use super::guard::definitions;
use super::rep::{Rep, W};
use super::scalar::logical_not;
use super::{Lower, Result};
use crate::cpu::abi::FailureKind;
use crate::cpu::loopir::{Ty, UnOp, Val};
use std::collections::{BTreeSet, HashSet};
use zellige_ir::{BinaryOp, Buffer, DType, Def, LoopKind, Op, OpKind, Region, Value, Visit};

/// An unrolled loop of more iterations than this stays a loop.
const MAX_UNROLL: i64 = 16;

impl Lower<'_> {
    /// Notes which buffers a loop may write, so that loads from others can leave it.
    pub(super) fn enter_loop(&mut self, body: Region) {
        let mut written = HashSet::new();
        self.func.walk(body, &mut |_, data| {
            if !matches!(data.kind, OpKind::Load { .. }) {
                data.kind.for_each_buffer(&mut |b| {
                    written.insert(b);
                });
            }
        });
        self.b.forget_loads();
        self.loops.push((self.b.scope(), written));
    }

    pub(super) fn leave_loop(&mut self) {
        self.loops.pop();
        self.b.forget_loads();
    }

    /// The scope outside of which a load from a buffer must not move; `None` if it must stay where it is.
    pub(super) fn invariant_from(&self, buffer: Buffer) -> Option<usize> {
        let unchanged = self.loops.iter().rev().take_while(|(_, written)| !written.contains(&buffer));
        unchanged.last().map(|(depth, _)| *depth)
    }

    pub(super) fn for_loop(&mut self, kind: LoopKind, indices: &[Def], extents: &[Value], body: Region) -> Result {
        let vars: Vec<Value> = indices.iter().map(|d| d.0).collect();
        let extents: Vec<Val> = extents.iter().map(|v| self.get_uniform(*v)).collect();
        match kind {
            LoopKind::Parallel | LoopKind::Vectorized => self.parallel(&vars, &extents, body),
            LoopKind::Persistent => {
                let [n, ..] = extents[..] else { return Ok(()) };
                // This block's iterations: block, block + blocks, ..
                let left = self.b.sub(n, self.block);
                let blocks = self.blocks;
                let mine = self.index_quotient(BinaryOp::CeilDiv, left, blocks);
                let zero = self.b.i64(0);
                self.counted(zero, mine, 1, &mut |l, i| {
                    let skipped = l.b.mul(i, blocks);
                    let index = l.b.add(l.block, skipped);
                    l.set(vars[0], Rep::Uni(index));
                    l.region(body)
                })
            }
            LoopKind::Unrolled
                if extents.iter().all(|n| self.b.as_const(*n).is_some_and(|n| n <= MAX_UNROLL))
                    && self.func.regions[body].ops.len() <= 24 =>
            {
                let counts: Vec<i64> = extents.iter().map(|n| self.b.as_const(*n).unwrap_or(0)).collect();
                let total: i64 = counts.iter().map(|n| (*n).max(0)).product();
                for i in 0..total {
                    let mut rest = i;
                    for (v, n) in vars.iter().zip(&counts).rev() {
                        let c = self.b.i64(rest % n);
                        rest /= n;
                        self.set(*v, Rep::Uni(c));
                    }
                    self.region(body)?;
                }
                Ok(())
            }
            // Copies run where they stand: there is nothing to wait for.
            LoopKind::Serial | LoopKind::Unrolled | LoopKind::Pipelined { .. } => {
                let wide = self.wide;
                self.box_loop(&extents, None, 1, &mut |l, point| {
                    l.wide = wide;
                    for (v, rep) in vars.iter().zip(point) {
                        l.set(*v, *rep);
                    }
                    l.region(body)
                })
            }
        }
    }

    pub(super) fn if_op(&mut self, cond: Value, then_body: Region, else_body: Region) -> Result {
        if let Rep::Vec(mask) = self.get(cond) {
            return self.if_varying(mask, then_body, else_body);
        }
        let c = self.get_uniform(cond);
        match self.b.as_const(c) {
            Some(0) => return self.region(else_body),
            Some(_) => return self.region(then_body),
            None => {}
        }
        self.b.begin_if(c);
        self.region(then_body)?;
        self.b.begin_else(&[]);
        self.region(else_body)?;
        self.b.end_if(&[]);
        Ok(())
    }

    /// A branch of four iterations: together if they agree, else one by one.
    fn if_varying(&mut self, mask: Val, then_body: Region, else_body: Region) -> Result {
        let varying = self.varying_inputs(then_body, else_body);
        let all = self.b.convert(UnOp::AllTrue, Ty::I8, mask);
        self.b.begin_if(all);
        self.region(then_body)?;
        self.b.begin_else(&[]);
        let any = self.b.convert(UnOp::AnyTrue, Ty::I8, mask);
        self.b.begin_if(any);
        self.wide = false;
        for lane in 0..W {
            self.lane = lane;
            for &(v, rep) in &varying {
                let x = self.lane(rep, self.func.ty(v), lane);
                self.set(v, Rep::Uni(x));
            }
            let c = self.lane(Rep::Vec(mask), DType::Bool, lane);
            self.b.begin_if(c);
            self.region(then_body)?;
            self.b.begin_else(&[]);
            self.region(else_body)?;
            self.b.end_if(&[]);
        }
        self.lane = 0;
        self.wide = true;
        varying.iter().for_each(|&(v, rep)| self.set(v, rep));
        self.b.begin_else(&[]);
        self.region(else_body)?;
        self.b.end_if(&[]);
        self.b.end_if(&[]);
        Ok(())
    }

    /// Values from outside that differ between the four iterations and are used in one of the regions.
    fn varying_inputs(&self, then_body: Region, else_body: Region) -> Vec<(Value, Rep)> {
        let (mut used, mut own) = (BTreeSet::new(), HashSet::new());
        for region in [then_body, else_body] {
            own.extend(definitions(self.func, region));
            self.func.walk(region, &mut |_, data| {
                data.kind.for_each_use(&mut |u| {
                    used.insert(u);
                });
            });
        }
        let outer = used.into_iter().filter(|v| !own.contains(v));
        outer.filter_map(|v| self.values.get(&v).filter(|r| !r.is_uniform()).map(|r| (v, *r))).collect()
    }

    pub(super) fn while_op(&mut self, before: Region, cond: Value, body: Region) -> Result {
        self.b.begin_while();
        self.region(before)?;
        let c = self.get_uniform(cond);
        self.b.begin_while_body(c);
        self.region(body)?;
        self.b.end_while();
        Ok(())
    }

    pub(super) fn assert(&mut self, at: Op, cond: Value, message: &str) {
        let rep = self.get(cond);
        let lanes = match rep {
            Rep::Uni(v) => vec![v],
            _ => self.as_lanes(rep, DType::Bool)[..W].to_vec(),
        };
        for ok in lanes {
            let bad = logical_not(&mut self.b, ok);
            self.exit_if(bad, at, FailureKind::Assert { message: message.to_owned() });
        }
    }
}
