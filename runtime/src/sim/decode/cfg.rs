//! Control flow of the decoded code: where a divergent branch's lanes meet again.
//!
//! The meeting point of a branch is its immediate post-dominator, found with the iterative algorithm of Cooper, Harvey and
//! Kennedy ("A Simple, Fast Dominance Algorithm", 2001) on the reversed graph. Blocks that only reach a `trap` or loop
//! forever are left out, so an assertion inside a branch does not postpone the meeting point.

use super::op::{Inst, Op};

/// No meeting point: the lanes exit separately.
pub const NEVER: u32 = u32::MAX;

/// The successors of the block that ends at instruction `at`.
fn successors(code: &[Inst], at: usize) -> [Option<usize>; 2] {
    let i = &code[at];
    let fall = (i.guard != 0 || !matches!(i.op, Op::Bra | Op::Exit | Op::Trap)).then_some(at + 1);
    let jump = matches!(i.op, Op::Bra).then_some(i.imm as usize);
    [fall.filter(|n| *n < code.len()), jump]
}

/// Fills in `e` of every branch with the instruction where its paths meet.
pub fn set_reconvergence(code: &mut [Inst]) {
    let n = code.len();
    // Basic blocks.
    let mut leader = vec![false; n + 1];
    leader[0] = true;
    for (at, i) in code.iter().enumerate() {
        if matches!(i.op, Op::Bra | Op::Exit | Op::Trap) {
            leader[at + 1] = true;
            if matches!(i.op, Op::Bra) {
                leader[i.imm as usize] = true;
            }
        }
    }
    let starts: Vec<usize> = (0..n).filter(|&at| leader[at]).collect();
    let mut block_of = vec![0usize; n];
    for (b, &s) in starts.iter().enumerate() {
        let end = starts.get(b + 1).copied().unwrap_or(n);
        block_of[s..end].fill(b);
    }
    let blocks = starts.len();
    let exit = blocks;
    let last = |b: usize| starts.get(b + 1).copied().unwrap_or(n) - 1;
    let mut succ: Vec<Vec<usize>> = vec![Vec::new(); blocks + 1];
    let mut pred: Vec<Vec<usize>> = vec![Vec::new(); blocks + 1];
    for (b, next) in succ.iter_mut().enumerate().take(blocks) {
        let at = last(b);
        next.extend(successors(code, at).into_iter().flatten().map(|t| block_of[t]));
        if matches!(code[at].op, Op::Exit) {
            next.push(exit);
        }
        for &s in next.iter() {
            pred[s].push(b);
        }
    }
    // Post order of the reversed graph from the exit.
    let mut order = Vec::new();
    let mut number = vec![usize::MAX; blocks + 1];
    let mut seen = vec![false; blocks + 1];
    let mut stack = vec![(exit, 0usize)];
    seen[exit] = true;
    while let Some((node, child)) = stack.pop() {
        if let Some(&p) = pred[node].get(child) {
            stack.push((node, child + 1));
            if !seen[p] {
                seen[p] = true;
                stack.push((p, 0));
            }
        } else {
            number[node] = order.len();
            order.push(node);
        }
    }
    let mut idom = vec![usize::MAX; blocks + 1];
    idom[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in order.iter().rev().filter(|b| **b != exit) {
            let mut new = usize::MAX;
            for &s in &succ[b] {
                if idom[s] == usize::MAX {
                    continue;
                }
                new = if new == usize::MAX { s } else { intersect(&idom, &number, new, s) };
            }
            if new != idom[b] {
                idom[b] = new;
                changed = true;
            }
        }
    }
    for at in 0..n {
        if !matches!(code[at].op, Op::Bra) {
            continue;
        }
        let b = block_of[at];
        code[at].e = match idom[b] {
            usize::MAX => NEVER,
            d if d == exit => NEVER,
            // Waiting at a bare return would keep lanes from leaving.
            d if matches!(code[starts[d]].op, Op::Exit) && code[starts[d]].guard == 0 => NEVER,
            d => starts[d] as u32,
        };
    }
}

fn intersect(idom: &[usize], number: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while number[a] < number[b] {
            a = idom[a];
        }
        while number[b] < number[a] {
            b = idom[b];
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inst(op: Op, guard: u32, to: i64) -> Inst {
        Inst { op, guard, d: 0, a: 0, b: 0, c: 0, e: 0, imm: to }
    }

    #[test]
    fn diamond_meets_after_both_arms() {
        // 0: @p bra 3; 1: nop; 2: bra 4; 3: nop; 4: nop; 5: exit
        let mut code = vec![
            inst(Op::Bra, 1, 3),
            inst(Op::Nop, 0, 0),
            inst(Op::Bra, 0, 4),
            inst(Op::Nop, 0, 0),
            inst(Op::Nop, 0, 0),
            inst(Op::Exit, 0, 0),
        ];
        set_reconvergence(&mut code);
        assert_eq!(code[0].e, 4);
    }

    #[test]
    fn loop_meets_behind_the_back_edge() {
        // 0: nop; 1: @p bra 0; 2: nop; 3: exit
        let mut code = vec![inst(Op::Nop, 0, 0), inst(Op::Bra, 1, 0), inst(Op::Nop, 0, 0), inst(Op::Exit, 0, 0)];
        set_reconvergence(&mut code);
        assert_eq!(code[1].e, 2);
    }

    #[test]
    fn a_trap_arm_does_not_postpone_the_meeting_point() {
        // 0: @p bra 2; 1: bra 3; 2: trap; 3: nop; 4: exit
        let mut code = vec![
            inst(Op::Bra, 1, 2),
            inst(Op::Bra, 0, 3),
            inst(Op::Trap, 0, 0),
            inst(Op::Nop, 0, 0),
            inst(Op::Exit, 0, 0),
        ];
        set_reconvergence(&mut code);
        assert_eq!(code[0].e, 1, "the only arm that goes on starts at 1");
    }

    #[test]
    fn early_return_never_meets() {
        // 0: @p bra 2; 1: nop; 2: exit
        let mut code = vec![inst(Op::Bra, 1, 2), inst(Op::Nop, 0, 0), inst(Op::Exit, 0, 0)];
        set_reconvergence(&mut code);
        assert_eq!(code[0].e, NEVER);
    }
}
