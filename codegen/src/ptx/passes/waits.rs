//! Copies to shared memory that follow each other are waited for together.
//!
//! Every copy outside of a pipelined loop is lowered with a wait of its own behind it, which would put the latencies of several
//! one behind the other. A wait goes, with the end of its group, if nothing that could ask for the copy stands before the next
//! such wait, which then waits for both. Depends on the SIMT IR only.

use crate::ptx::simt::{Block, Effect, Fields, Inst, Kernel, Obj, SimtOp, Space};

/// Joins waits everywhere in the kernel.
pub fn run(k: &mut Kernel) {
    for block in k.blocks.ids().collect::<Vec<_>>() {
        let dropped = superfluous(k, block);
        let mut at = 0;
        k.blocks[block].retain(|_| {
            at += 1;
            !dropped.contains(&(at - 1))
        });
    }
}

/// Positions of the waits of a block, and of the ends of their groups, that later ones make superfluous.
fn superfluous(k: &Kernel, block: Block) -> Vec<usize> {
    let mut dropped = Vec::new();
    // The last wait that the next may replace, what it waits for, and what has been copied since.
    let mut open: Option<(usize, Vec<Obj>)> = None;
    let mut copied: Vec<Obj> = Vec::new();
    let insts = &k.blocks[block];
    for (at, &inst) in insts.iter().enumerate() {
        let ends_group = at > 0 && matches!(k.insts[insts[at - 1]].op, SimtOp::CpAsyncCommit {});
        if matches!(k.insts[inst].op, SimtOp::CpAsyncWait { pending: 0 }) && ends_group {
            let mut pending = std::mem::take(&mut copied);
            // Two copies to one tile stay in order.
            if let Some((earlier, tiles)) = open.take().filter(|(_, tiles)| tiles.iter().all(|t| !pending.contains(t)))
            {
                dropped.extend([earlier - 1, earlier]);
                pending.extend(tiles);
            }
            open = Some((at, pending));
        } else if !is_indifferent(k, inst, &mut copied) {
            open = None;
            copied.clear();
        }
    }
    dropped
}

/// True if the op, with all in it, does not care whether copies have arrived. Adds the tiles that it copies to to `copied`.
fn is_indifferent(k: &Kernel, inst: Inst, copied: &mut Vec<Obj>) -> bool {
    let op = &k.insts[inst].op;
    match op {
        SimtOp::CpAsync { dst, .. } => {
            copied.push(dst.obj);
            true
        }
        SimtOp::Ld { space, .. } => *space == Space::Global,
        SimtOp::If { .. } | SimtOp::For { .. } => {
            let mut all = true;
            op.blocks(&mut |b| all &= k.blocks[b].iter().all(|&inner| is_indifferent(k, inner, copied)));
            all
        }
        SimtOp::CpAsyncCommit {} | SimtOp::Get { .. } | SimtOp::Set { .. } | SimtOp::Phase { .. } => true,
        _ => op.effect() == Effect::Pure,
    }
}
