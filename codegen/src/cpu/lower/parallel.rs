//! Parallel loops: which axis becomes the vector, and when bounds are checked once for the whole loop.

use super::rep::W;
use super::{Lower, Result, Stride};
use crate::cpu::loopir::Val;
use crate::cpu::plan::is_elementwise;
use std::collections::{HashMap, HashSet};
use zellige_ir::{BinaryOp, Buffer, DType, OpKind, Region, Scope, Value, ValueDef, Visit};

/// A body of more ops than this is lowered in one version only.
const LARGE: usize = 300;

/// How an `index` value changes along one loop index.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Slope {
    Const(i64),
    Other,
}

/// How the accesses of a body look along one axis.
#[derive(Clone, Copy, Default)]
struct Score {
    contiguous: i64,
    invariant: i64,
    scattered: i64,
}

impl Lower<'_> {
    pub(super) fn parallel(&mut self, indices: &[Value], extents: &[Val], body: Region) -> Result {
        let axis = if self.wide { None } else { self.choose_axis(indices, extents, body) };
        if self.is_large(body) {
            return self.parallel_nest(indices, extents, axis, body);
        }
        let ivs: Vec<(Value, Val)> = indices.iter().copied().zip(extents.iter().copied()).collect();
        let Some((cond, proved)) = self.prove_inside(&ivs, body) else {
            return self.parallel_nest(indices, extents, axis, body);
        };
        let fresh: Vec<_> = proved.into_iter().filter(|op| self.unguarded.insert(*op)).collect();
        let fast = |l: &mut Self| l.parallel_nest(indices, extents, axis, body);
        match self.b.as_const(cond) {
            Some(1) => {
                fast(self)?;
                self.forget(&fresh);
            }
            _ => {
                self.b.begin_if(cond);
                fast(self)?;
                self.forget(&fresh);
                self.b.begin_else(&[]);
                // The edge of a tensor: rare, so small rather than fast.
                self.parallel_nest(indices, extents, None, body)?;
                self.b.end_if(&[]);
            }
        }
        Ok(())
    }

    /// Is the body so long that a second version of it, without checks, would cost more to compile than it saves?
    fn is_large(&self, body: Region) -> bool {
        let (mut ops, mut checked) = (0, 0);
        self.func.walk(body, &mut |op, data| {
            ops += 1;
            if let OpKind::Load { buffer, .. } | OpKind::Store { buffer, .. } | OpKind::Atomic { buffer, .. } =
                &data.kind
            {
                let is_checked = self.func.buffers[*buffer].scope == Scope::Global && !self.unguarded.contains(&op);
                checked += usize::from(is_checked);
            }
        });
        ops > LARGE && checked * 8 < ops
    }

    pub(super) fn forget(&mut self, ops: &[zellige_ir::Op]) {
        for op in ops {
            self.unguarded.remove(op);
        }
    }

    fn parallel_nest(&mut self, indices: &[Value], extents: &[Val], axis: Option<usize>, body: Region) -> Result {
        let unroll = match self.func.regions[body].ops.len() {
            0..=8 => 4,
            9..=20 => 2,
            _ => 1,
        };
        self.box_loop(extents, axis, unroll, &mut |l, point| {
            for (v, rep) in indices.iter().zip(point) {
                l.set(*v, *rep);
            }
            l.region(body)
        })
    }

    /// The axis along which four iterations at once pay most; `None` to run them one by one.
    fn choose_axis(&self, indices: &[Value], extents: &[Val], body: Region) -> Option<usize> {
        if !is_elementwise(self.func, body) {
            return None;
        }
        let mut best: Option<(i64, usize)> = None;
        for (axis, &iv) in indices.iter().enumerate() {
            if self.b.as_const(extents[axis]).is_some_and(|n| n < W as i64) {
                continue;
            }
            if !self.control_is_uniform(iv, body) {
                continue;
            }
            let s = self.score(iv, body);
            // Scattered accesses are four scalar ones; arithmetic still gains, so they only count as neutral.
            let value = 4 * s.contiguous + s.invariant - 2 * s.scattered;
            // Of equals, the last axis.
            if best.is_none_or(|(b, _)| value >= b) {
                best = Some((value, axis));
            }
        }
        best.map(|(_, axis)| axis)
    }

    /// Does everything that steers loops stay the same along `iv`, and differ only for small branches?
    fn control_is_uniform(&self, iv: Value, body: Region) -> bool {
        let mut varying = HashSet::from([iv]);
        let stored = self.stored_tiles(body);
        let mut ok = true;
        self.func.walk(body, &mut |_, data| {
            match &data.kind {
                // Iterations that part ways are lowered twice, together and one by one.
                OpKind::If { cond, then_body, else_body } if varying.contains(cond) => {
                    ok &= [then_body, else_body].iter().all(|r| self.is_small(**r));
                }
                // The condition is computed in the loop, after this point of the walk.
                OpKind::While { .. } => ok = false,
                OpKind::For { extents, kind, .. } => {
                    ok &= !extents.iter().any(|e| varying.contains(e)) && *kind != zellige_ir::LoopKind::Persistent;
                }
                _ => {}
            }
            let mut depends = false;
            data.kind.for_each_use(&mut |v| depends |= varying.contains(&v));
            // What a load finds may have been stored by another iteration of four before.
            if let OpKind::Load { buffer, .. } = &data.kind {
                depends |= stored.contains(buffer);
            }
            if depends {
                data.kind.for_each_def(&mut |v| {
                    varying.insert(v);
                });
            }
        });
        ok
    }

    fn is_small(&self, region: Region) -> bool {
        let mut ops = 0;
        self.func.walk(region, &mut |_, _| ops += 1);
        ops <= 24
    }

    /// Tiles that something in the region stores to.
    fn stored_tiles(&self, body: Region) -> HashSet<Buffer> {
        let mut stored = HashSet::new();
        self.func.walk(body, &mut |_, data| {
            if let OpKind::Store { buffer, .. } | OpKind::Atomic { buffer, .. } = &data.kind
                && self.func.buffers[*buffer].scope != Scope::Global
            {
                stored.insert(*buffer);
            }
        });
        stored
    }

    fn score(&self, iv: Value, body: Region) -> Score {
        let mut score = Score::default();
        let mut slopes = HashMap::from([(iv, Slope::Const(1))]);
        self.func.walk(body, &mut |_, data| {
            if let OpKind::Load { buffer, indices, .. }
            | OpKind::Store { buffer, indices, .. }
            | OpKind::Atomic { buffer, indices, .. } = &data.kind
            {
                let Some(s) = &self.storages[zellige_ir::EntityId::index(*buffer)] else { return };
                let mut step = Some(0);
                for (v, stride) in indices.iter().zip(&s.strides) {
                    step = match (step, self.slope(*v, &mut slopes), stride) {
                        (step, Slope::Const(0), _) => step,
                        (Some(step), Slope::Const(k), Stride::Const(c)) => Some(step + k * c),
                        _ => None,
                    };
                }
                match step {
                    Some(0) => score.invariant += 1,
                    Some(1) => score.contiguous += 1,
                    _ => score.scattered += 1,
                }
            }
        });
        score
    }

    /// Are all accesses of a body to neighbours along `iv`, or to the same element?
    pub(super) fn reads_along(&self, iv: Value, body: Region) -> bool {
        self.score(iv, body).scattered == 0
    }

    fn slope(&self, v: Value, slopes: &mut HashMap<Value, Slope>) -> Slope {
        if let Some(s) = slopes.get(&v) {
            return *s;
        }
        let s = self.slope_of(v, slopes);
        slopes.insert(v, s);
        s
    }

    fn slope_of(&self, v: Value, slopes: &mut HashMap<Value, Slope>) -> Slope {
        let func = self.func;
        let ValueDef::Op(op) = func.values[v].def else { return Slope::Const(0) };
        let OpKind::Binary { op, x, y, .. } = &func.ops[op].kind else {
            let mut slope = Slope::Const(0);
            if matches!(func.ops[op].kind, OpKind::For { .. }) {
                // An index of another loop.
                return slope;
            }
            func.ops[op].kind.for_each_use(&mut |u| {
                if self.slope(u, slopes) != Slope::Const(0) {
                    slope = Slope::Other;
                }
            });
            return slope;
        };
        let (sx, sy) = (self.slope(*x, slopes), self.slope(*y, slopes));
        let (Slope::Const(sx), Slope::Const(sy)) = (sx, sy) else { return Slope::Other };
        if sx == 0 && sy == 0 {
            return Slope::Const(0);
        }
        if func.ty(v) != DType::Index {
            return Slope::Other;
        }
        let (cx, cy) = (func.as_index(*x), func.as_index(*y));
        match (op, cx, cy) {
            (BinaryOp::Add, _, _) => Slope::Const(sx + sy),
            (BinaryOp::Sub, _, _) => Slope::Const(sx - sy),
            (BinaryOp::Mul, _, Some(c)) => Slope::Const(sx * c),
            (BinaryOp::Mul, Some(c), _) => Slope::Const(sy * c),
            // Four neighbours of an aligned start lie in one group.
            (BinaryOp::Div, _, Some(c)) if c > 0 && c % W as i64 == 0 && sx == 1 => Slope::Const(0),
            (BinaryOp::Rem, _, Some(c)) if c > 0 && c % W as i64 == 0 && sx == 1 => Slope::Const(1),
            _ => Slope::Other,
        }
    }
}
