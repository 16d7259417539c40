//! What the warps that feed the rings can know: they run ahead of the others, and see none of the block's tiles.

use super::plan::{Finder, Refusal, refuse};
use zellige_ir::hash::FastSet;
use zellige_ir::{Access, Effect, Func, OpKind, Param, Value, ValueDef, Visit};

impl Finder<'_> {
    /// Refuses a loop of which the warps that run ahead cannot tell whether and how often it runs.
    pub(super) fn is_reached(&self) -> Result<(), Refusal> {
        let func = self.func;
        let OpKind::For { extents, .. } = &func.ops[self.loop_op].kind else { return Ok(()) };
        let of_what = |v: Value| match func.values[v].def {
            ValueDef::Op(op) => format!("by the {} at {}", func.ops[op].kind.name(), func.ops[op].span),
            _ => "in the block".to_owned(),
        };
        let unknown = |values: &[Value]| values.iter().copied().find(|&v| !self.is_ahead(v)).map(of_what);
        match (unknown(extents), unknown(&self.conditions())) {
            (Some(how), _) => refuse(format!("its number of iterations is computed {how}, too late for copies ahead")),
            (_, Some(how)) => refuse(format!("whether it runs is computed {how}, too late for copies ahead")),
            (None, None) => Ok(()),
        }
    }

    /// True if the warps that run ahead can compute the value: from scalars of the prelude, the body and the loop.
    pub(super) fn is_ahead(&self, v: Value) -> bool {
        let func = self.func;
        let (mut seen, mut open) = (FastSet::default(), vec![v]);
        while let Some(v) = open.pop() {
            let ValueDef::Op(op) = func.values[v].def else { continue };
            if op == self.loop_op || !seen.insert(v) {
                continue;
            }
            let mut regions = self.path.iter().chain([&func.prelude, &self.region]);
            let kind = &func.ops[op].kind;
            let may_run = kind.effect() == Effect::Pure || loads_constant(func, kind);
            if !may_run || !regions.any(|&r| func.regions[r].ops.contains(&op)) {
                return false;
            }
            kind.for_each_use(&mut |u| open.push(u));
        }
        true
    }

    /// What the loop's running depends on.
    pub(super) fn conditions(&self) -> Vec<Value> {
        let func = self.func;
        let outside = self.path.iter().flat_map(|&r| &func.regions[r].ops);
        outside
            .filter_map(|&op| match &func.ops[op].kind {
                OpKind::If { cond, then_body, else_body }
                    if self.path.contains(then_body) || self.path.contains(else_body) =>
                {
                    Some(*cond)
                }
                _ => None,
            })
            .collect()
    }
}

/// True for a load of an element that no block changes.
pub(super) fn loads_constant(func: &Func, kind: &OpKind) -> bool {
    let OpKind::Load { buffer, .. } = kind else { return false };
    func.params.iter().any(|p| matches!(p, Param::Tensor { buffer: b, access: Access::Read } if b == buffer))
}
