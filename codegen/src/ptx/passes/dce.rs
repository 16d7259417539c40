//! Removes ops whose results nobody uses, variables that nobody reads, and conditionals without effect.

use crate::ptx::simt::{Block, Effect, Fields, Inst, Kernel, SimtOp, ValDef};
use zellige_ir::EntityId;

/// Removes dead ops from the kernel.
pub fn run(k: &mut Kernel) {
    let mut uses = vec![0u32; k.vals.len()];
    let mut reads = vec![0u32; k.vars.len()];
    k.walk(k.body, &mut |_, data| {
        data.op.uses(&mut |v| uses[v.index()] += 1);
        match &data.op {
            SimtOp::Get { var, .. } => reads[var.index()] += 1,
            SimtOp::Wgmma { acc, .. } => acc.iter().for_each(|var| reads[var.index()] += 1),
            SimtOp::WgmmaRegs { acc, a, .. } => acc.iter().chain(a).for_each(|var| reads[var.index()] += 1),
            _ => {}
        }
    });
    let mut dead = vec![false; k.insts.len()];
    let mut sets: Vec<Vec<Inst>> = vec![Vec::new(); k.vars.len()];
    let mut work: Vec<Inst> = Vec::new();
    k.walk(k.body, &mut |inst, data| {
        if let SimtOp::Set { var, .. } = data.op {
            sets[var.index()].push(inst);
        }
        if is_dead(&data.op, &uses, &reads) {
            work.push(inst);
        }
    });
    while let Some(inst) = work.pop() {
        if std::mem::replace(&mut dead[inst.index()], true) {
            continue;
        }
        let op = k.insts[inst].op.clone();
        op.uses(&mut |v| {
            uses[v.index()] -= 1;
            if let ValDef::Inst(def) = k.vals[v].def
                && !dead[def.index()]
                && is_dead(&k.insts[def].op, &uses, &reads)
            {
                work.push(def);
            }
        });
        if let SimtOp::Get { var, .. } = op {
            reads[var.index()] -= 1;
            if reads[var.index()] == 0 {
                work.extend(sets[var.index()].iter().copied().filter(|s| !dead[s.index()]));
            }
        }
    }
    let body = k.body;
    sweep(k, body, &dead);
}

fn is_dead(op: &SimtOp, uses: &[u32], reads: &[u32]) -> bool {
    match op {
        SimtOp::Set { var, .. } => reads[var.index()] == 0,
        _ if matches!(op.effect(), Effect::Pure | Effect::Read) => {
            let mut unused = true;
            op.defs(&mut |v| unused &= uses[v.index()] == 0);
            unused
        }
        _ => false,
    }
}

/// Removes dead ops and what they leave empty. Returns true if the block is empty afterwards.
fn sweep(k: &mut Kernel, block: Block, dead: &[bool]) -> bool {
    let insts = std::mem::take(&mut k.blocks[block]);
    let mut kept = Vec::with_capacity(insts.len());
    for inst in insts {
        if dead[inst.index()] {
            continue;
        }
        let mut empty = true;
        let mut nested = Vec::new();
        k.insts[inst].op.blocks(&mut |b| nested.push(b));
        for &b in &nested {
            empty &= sweep(k, b, dead);
        }
        let removable = matches!(k.insts[inst].op, SimtOp::If { .. } | SimtOp::For { .. });
        if removable && empty && !nested.is_empty() {
            continue;
        }
        kept.push(inst);
    }
    let empty = kept.is_empty();
    k.blocks[block] = kept;
    empty
}
