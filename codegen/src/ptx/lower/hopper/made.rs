//! Shared tiles that the warpgroups that multiply fill themselves in every iteration: operands that they convert, factors that
//! each of them needs.
//!
//! Such a tile has two slots. A warpgroup fills a slot only after the barrier of the iteration before, which all of them
//! reach when they are done with that slot: one barrier an iteration is enough.

use super::super::accesses::{self, Form};
use super::super::infer::{SharedForm, is_whole};
use super::plan::{Finder, Load, Refusal, Ring, RingKind, operand_swizzle};
use super::turn::writes_within;
use zellige_ir::layout::instances::Swizzle;
use zellige_ir::{Buffer, LoopKind, Op, OpKind, Scope, Value, Visit};

/// Slots of a tile.
const SLOTS: usize = 2;

impl Finder<'_> {
    /// Adds the tiles that the loop's work fills to its loads.
    pub(super) fn all_made(&self, loads: &mut Vec<Load>, rings: &mut Vec<Ring>) -> Result<(), Refusal> {
        let func = self.func;
        let mut found: Vec<(Buffer, Op)> = Vec::new();
        for &op in &func.regions[self.region].ops {
            let mut see = |b: Buffer| {
                let known = loads.iter().any(|l| l.buffer == b) || found.iter().any(|f| f.0 == b);
                if func.buffers[b].scope == Scope::Shared && !known {
                    found.push((b, op));
                }
            };
            let kind = &func.ops[op].kind;
            if matches!(kind, OpKind::Alloc { .. } | OpKind::Layout { .. }) {
                continue;
            }
            kind.for_each_buffer(&mut see);
            kind.for_each_region(&mut |r| func.walk(r, &mut |_, d| d.kind.for_each_buffer(&mut see)));
        }
        for (buffer, op) in found {
            let made = self.made(buffer, op).map_err(|why| {
                let d = &func.ops[op];
                Some(format!("`{}` at {}: {why}", d.kind.name(), d.span))
            })?;
            loads.push(Load { ring: rings.len(), ..made });
            rings.push(Ring { stages: SLOTS, kind: RingKind::Made });
        }
        Ok(())
    }

    fn made(&self, buffer: Buffer, op: Op) -> Result<Load, String> {
        let func = self.func;
        let data = &func.buffers[buffer];
        if !self.fills(op, buffer) {
            return Err("it works on a shared tile that nothing has filled in the same iteration".into());
        }
        let writers = func.regions[self.region].ops.iter().filter(|&&op| writes_within(func, op, buffer)).count();
        if writers > 1 {
            return Err("it fills a shared tile that another op of the loop changes".into());
        }
        if self.uses_outside(buffer) > 0 {
            return Err("it fills a shared tile that is used outside of the loop".into());
        }
        let Some([rows, cols]) = data.static_shape().and_then(|s| <[usize; 2]>::try_from(s).ok()) else {
            return Err("it fills a shared tile that has not two axes".into());
        };
        let dtype = data.dtype;
        let operand = func.regions[self.region].ops.iter().any(|&op| match &func.ops[op].kind {
            OpKind::Gemm { a, b, .. } => a.buffer == buffer || b.buffer == buffer,
            _ => false,
        });
        let (swizzle, form) = if operand {
            let swizzle = operand_swizzle(dtype, cols)?;
            (swizzle, SharedForm::Swizzled(swizzle))
        } else {
            (Swizzle::B32, SharedForm::RowMajor)
        };
        Ok(Load {
            op,
            param: 0,
            dtype,
            buffer,
            rows,
            cols,
            turned: false,
            swizzle,
            tile: Vec::new(),
            shared: None,
            ring: 0,
            made: Some(form),
        })
    }

    /// True if the op writes every element of the buffer and reads none.
    fn fills(&self, op: Op, buffer: Buffer) -> bool {
        let func = self.func;
        match &func.ops[op].kind {
            OpKind::Copy { src, dst, .. } => dst.buffer == buffer && src.buffer != buffer && is_whole(func, dst),
            OpKind::Fill { dst, .. } => dst.buffer == buffer && is_whole(func, dst),
            OpKind::For { kind: LoopKind::Parallel | LoopKind::Vectorized, indices, extents, body } => {
                let indices: Vec<Value> = indices.iter().map(|d| d.0).collect();
                let accesses = accesses::loop_accesses(func, &indices, *body);
                let own: Vec<_> = accesses.iter().filter(|a| a.buffer == buffer).collect();
                let ([only], Some(shape)) = (&own[..], func.buffers[buffer].static_shape()) else { return false };
                let always = func.regions[*body]
                    .ops
                    .iter()
                    .any(|&op| matches!(func.ops[op].kind, OpKind::Store { buffer: b, .. } if b == buffer));
                // Every axis goes over its whole extent with an index of its own.
                let mut left: Vec<usize> = (0..indices.len()).collect();
                always
                    && only.forms.iter().zip(&shape).all(|(form, &extent)| match *form {
                        Form::Loop { dim, off: 0 } => {
                            let full = func.as_index(extents[dim]) == i64::try_from(extent).ok();
                            full && left.iter().position(|&d| d == dim).map(|at| left.remove(at)).is_some()
                        }
                        Form::Const(0) => extent == 1,
                        Form::Loop { .. } | Form::Const(_) | Form::Other => false,
                    })
            }
            _ => false,
        }
    }
}
