//! Pipelined loops with fewer stages, for targets whose shared memory does not hold as many as the author asks for.

use zellige_ir::{Func, LoopKind, Op, OpKind, Span};

/// Takes a stage from the deepest pipelined loop. Returns the loop's place and the stages that are left, or nothing if no loop
/// has more than one.
pub fn reduce(func: &mut Func) -> Option<(Span, u32)> {
    let mut deepest: Option<(Op, u32)> = None;
    func.walk(func.body, &mut |op, data| {
        if let OpKind::For { kind: LoopKind::Pipelined { stages }, .. } = data.kind
            && stages > deepest.map_or(1, |(_, most)| most)
        {
            deepest = Some((op, stages));
        }
    });
    let (op, stages) = deepest?;
    if let OpKind::For { kind, .. } = &mut func.ops[op].kind {
        *kind = LoopKind::Pipelined { stages: stages - 1 };
    }
    Some((func.ops[op].span.clone(), stages - 1))
}
