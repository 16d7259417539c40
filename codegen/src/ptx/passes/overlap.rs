//! Lets `mma.sync` multiply a step while the operands of the next one are read from shared memory.
//!
//! A pipelined loop over a product waits for its tiles, passes a barrier, and only then reads the operands of its first
//! step: the matrix units idle from the last product of an iteration to the first reads of the next. Here each iteration
//! reads its first step, multiplies the last step of the iteration before, whose operands stay in registers, and then reads
//! each step before it multiplies the one before; what is left is multiplied after the loop. The copies of a later iteration
//! start among the first products, behind the reads that these wait for. The first iteration multiplies zeros. No sum changes
//! its order. CUTLASS's `MmaMultistage` reads ahead in the same way.

use crate::ptx::simt::{Block, Def, Effect, Fields, Inst, InstData, Kernel, SimtOp, Space, Ty, Val, ValDef, Vals, Var};
use zellige_ir::hash::{FastMap, FastSet};

/// Registers of a multiprocessor, the most that a thread has, and what addresses and guards take of them.
const REGISTERS: usize = 1 << 16;
const MAX_REGISTERS: usize = 255;
const OTHERS: usize = 47;

/// Sums of one instruction tile over the steps of an iteration.
#[derive(Debug)]
struct Chain {
    /// The variables of its registers.
    vars: Vec<Var>,
    /// The products in order.
    products: Vec<Inst>,
}

/// What is known of a loop that can be reordered.
#[derive(Debug)]
struct Plan {
    chains: Vec<Chain>,
    /// The products of each step in program order, each with the number of its chain.
    steps: Vec<Vec<(usize, Inst)>>,
    /// Reads of operands, each with the first step that wants it, in program order.
    reads: Vec<(usize, Inst)>,
    /// Operands of the last step.
    carried: Vec<Val>,
    /// What starts the copies of a later iteration.
    copies: Vec<Inst>,
    /// Positions in the body of the first read and of the last product.
    span: (usize, usize),
}

/// Reorders every loop that fits.
pub fn run(k: &mut Kernel, explain: &mut Vec<String>) {
    for block in k.blocks.ids().collect::<Vec<_>>() {
        let mut at = 0;
        while at < k.blocks[block].len() {
            let inst = k.blocks[block][at];
            if let SimtOp::For { body, .. } = k.insts[inst].op
                && let Some(plan) = plan(k, body)
            {
                let span = &k.spans[k.insts[inst].span as usize];
                explain.push(format!(
                    "pipeline: the loop at {span} multiplies its last step of {} while the first one of the next iteration is read",
                    plan.steps.len()
                ));
                at = apply(k, block, at, body, &plan);
            }
            at += 1;
        }
    }
}

fn plan(k: &Kernel, body: Block) -> Option<Plan> {
    let insts = &k.blocks[body];
    let op = |inst: Inst| &k.insts[inst].op;
    insts.iter().find(|&&i| matches!(op(i), SimtOp::CpAsyncWait { .. }))?;
    let mut uses: FastMap<Val, u32> = FastMap::default();
    k.walk(body, &mut |_, data| data.op.uses(&mut |v| *uses.entry(v).or_default() += 1));
    let used_once = |v: Val| uses.get(&v) == Some(&1);

    let mut chains: Vec<Chain> = Vec::new();
    let mut steps: Vec<Vec<(usize, Inst)>> = Vec::new();
    // The chain and the step that each product belongs to.
    let mut place: FastMap<Inst, (usize, usize)> = FastMap::default();
    for &inst in insts {
        let SimtOp::Mma { outs, c, .. } = op(inst) else { continue };
        if !outs.iter().all(|d| used_once(d.0)) {
            return None;
        }
        let vars: Option<Vec<Var>> = c
            .iter()
            .map(|&v| match k.def(v) {
                Some(&SimtOp::Get { var, .. }) if used_once(v) => Some(var),
                _ => None,
            })
            .collect();
        let (chain, step) = match vars {
            Some(vars) => {
                chains.push(Chain { vars, products: Vec::new() });
                (chains.len() - 1, 0)
            }
            None => {
                let ValDef::Inst(before) = k.vals[*c.first()?].def else { return None };
                let SimtOp::Mma { outs, .. } = op(before) else { return None };
                let &(chain, step) = place.get(&before)?;
                if !outs.iter().map(|d| d.0).eq(c.iter().copied()) {
                    return None;
                }
                (chain, step + 1)
            }
        };
        chains[chain].products.push(inst);
        place.insert(inst, (chain, step));
        steps.resize(steps.len().max(step + 1), Vec::new());
        steps[step].push((chain, inst));
    }
    if chains.is_empty() {
        return None;
    }
    let sets: FastMap<Val, Var> =
        insts.iter().filter_map(|&i| if let SimtOp::Set { var, x } = *op(i) { Some((x, var)) } else { None }).collect();
    for Chain { vars, products } in &chains {
        let SimtOp::Mma { outs, .. } = op(*products.last()?) else { return None };
        if products.len() != steps.len() || !outs.iter().zip(vars).all(|(d, var)| sets.get(&d.0) == Some(var)) {
            return None;
        }
    }

    // Where each operand is wanted first.
    let mut wanted: FastMap<Val, (usize, u32)> = FastMap::default();
    let mut carried: Vec<Val> = Vec::new();
    for &inst in insts {
        let SimtOp::Mma { a, b, .. } = op(inst) else { continue };
        let (_, step) = place[&inst];
        for &v in a.iter().chain(b) {
            let entry = wanted.entry(v).or_insert((step, 0));
            *entry = (entry.0.min(step), entry.1 + 1);
            if step + 1 == steps.len() && !carried.contains(&v) {
                carried.push(v);
            }
        }
    }
    let mut reads = Vec::new();
    for &inst in insts {
        let SimtOp::LdMatrix { outs, .. } = op(inst) else { continue };
        let mut step = usize::MAX;
        for &Def(v) in outs {
            match wanted.remove(&v) {
                Some((first, count)) if uses.get(&v) == Some(&count) => step = step.min(first),
                _ => return None,
            }
        }
        reads.push((step, inst));
    }
    let words = chains.iter().map(|c| c.vars.len()).sum::<usize>() + 2 * carried.len();
    let registers = (REGISTERS / k.threads as usize).min(MAX_REGISTERS);
    if !wanted.is_empty() || words + OTHERS > registers {
        return None;
    }
    let first = insts.iter().position(|&i| matches!(op(i), SimtOp::LdMatrix { .. }))?;
    let last = insts.iter().rposition(|&i| matches!(op(i), SimtOp::Mma { .. }))?;
    let free = |op: &SimtOp| op.effect() == Effect::Pure || matches!(op, SimtOp::Get { .. } | SimtOp::LdMatrix { .. });
    let copies = copies(k, &insts[..first]);
    insts[first..=last].iter().all(|&i| free(op(i))).then_some(Plan {
        chains,
        steps,
        reads,
        carried,
        copies,
        span: (first, last),
    })
}

/// What starts the copies of a later iteration, if nothing but that stands between where threads meet in this one and the reads.
fn copies(k: &Kernel, before: &[Inst]) -> Vec<Inst> {
    let op = |inst: Inst| &k.insts[inst].op;
    let is_pure = |op: &SimtOp| op.effect() == Effect::Pure || matches!(op, SimtOp::Get { .. });
    let starts = |inst: Inst| {
        let mut only = true;
        let mut check = |op: &SimtOp| {
            let copy = matches!(
                op,
                SimtOp::CpAsync { .. } | SimtOp::CpAsyncCommit {} | SimtOp::Phase { .. } | SimtOp::If { .. }
            );
            only &= copy || is_pure(op) || matches!(op, SimtOp::Ld { space: Space::Global, .. });
        };
        check(op(inst));
        op(inst).blocks(&mut |b| k.walk(b, &mut |_, data| check(&data.op)));
        only
    };
    let position = |wanted: &dyn Fn(&SimtOp) -> bool| before.iter().rposition(|&i| wanted(op(i)));
    let meets = |op: &SimtOp| matches!(op, SimtOp::Phase { id } if !k.phases[*id].rings.is_empty());
    let (Some(meeting), Some(commit)) = (position(&meets), position(&|op| matches!(op, SimtOp::CpAsyncCommit {})))
    else {
        return Vec::new();
    };
    let rest = before.get(commit + 1..).unwrap_or_default();
    let only_marks = rest.iter().all(|&i| is_pure(op(i)) || matches!(op(i), SimtOp::Phase { .. }));
    match before.get(meeting + 1..=commit) {
        Some(ahead) if only_marks && ahead.iter().all(|&i| starts(i)) => {
            ahead.iter().copied().filter(|&i| !is_pure(op(i))).collect()
        }
        _ => Vec::new(),
    }
}

/// Reorders the loop at position `at` of `block`; returns its new position.
fn apply(k: &mut Kernel, block: Block, at: usize, body: Block, plan: &Plan) -> usize {
    let vars: FastMap<Val, Var> = plan.carried.iter().map(|&v| (v, k.vars.push(k.ty(v)))).collect();
    let mut rest = k.blocks[block].split_off(at);
    let inst = rest.remove(0);
    let span = k.insts[inst].span;
    // Before the loop there is nothing to multiply.
    let zero = k.constant(Ty::B32, 0);
    for v in &plan.carried {
        k.append(block, SimtOp::Set { var: vars[v], x: zero }, span);
    }
    let at = k.blocks[block].len();
    k.blocks[block].push(inst);
    reorder(k, body, plan, &vars, span);
    // The last step of the last iteration.
    let held = read_all(k, block, &vars, span);
    for &(chain, inst) in plan.steps.last().into_iter().flatten() {
        let InstData { op, span } = k.insts[inst].clone();
        let vars = &plan.chains[chain].vars;
        let starts = vars.iter().map(|&var| read(k, block, var, span)).collect();
        let sums = product(k, block, &op, &held, starts, span);
        set_all(k, block, vars, sums, span);
    }
    k.blocks[block].extend(rest);
    at
}

/// Puts the body of the loop in its new order; `vars` are those of the carried operands.
fn reorder(k: &mut Kernel, body: Block, plan: &Plan, vars: &FastMap<Val, Var>, loop_span: u32) {
    let Plan { chains, steps, reads, carried, copies, span: (first, last) } = plan;
    let old = std::mem::take(&mut k.blocks[body]);
    let products = steps.iter().flatten().map(|&(_, inst)| inst);
    let moved: FastSet<Inst> = products.chain(copies.iter().copied()).chain(reads.iter().map(|&(_, r)| r)).collect();
    k.blocks[body].extend(old[..=*last].iter().filter(|i| !moved.contains(i)));
    let read_of = |k: &mut Kernel, step: usize| {
        k.blocks[body].extend(reads.iter().filter(|(s, _)| *s == step).map(|(_, r)| *r));
    };
    read_of(k, 0);
    if !copies.is_empty() {
        k.blocks[body].extend_from_slice(copies);
        // What follows belongs to the phase of the reads again.
        let phases = old[..*first].iter().rev().map(|&i| &k.insts[i].op);
        if let Some(phase) = phases.into_iter().find(|op| matches!(op, SimtOp::Phase { .. })).cloned() {
            k.append(body, phase, loop_span);
        }
    }
    // The last step of the iteration before: the first one of this goes on from its sums.
    let held = read_all(k, body, vars, loop_span);
    let mut span = loop_span;
    for &(chain, inst) in &steps[steps.len() - 1] {
        let op = k.insts[inst].op.clone();
        span = k.insts[inst].span;
        let Chain { vars, products } = &chains[chain];
        let SimtOp::Mma { c, .. } = &k.insts[products[0]].op else { continue };
        let sums = product(k, body, &op, &held, c.clone(), span);
        match &mut k.insts[products[0]].op {
            SimtOp::Mma { c, .. } if products.len() > 1 => *c = sums,
            _ => set_all(k, body, vars, sums, span),
        }
    }
    for step in 1..steps.len() {
        read_of(k, step);
        k.blocks[body].extend(steps[step - 1].iter().map(|&(_, inst)| inst));
    }
    for v in carried {
        k.append(body, SimtOp::Set { var: vars[v], x: *v }, span);
    }
    // What stored the sums of the last step stores those of the step before.
    let mut before: FastMap<Val, Option<Val>> = FastMap::default();
    for Chain { products, .. } in chains {
        let earlier = products.len().checked_sub(2).map(|i| outs(k, products[i]));
        let last = outs(k, products[products.len() - 1]);
        before.extend(last.iter().enumerate().map(|(i, &v)| (v, earlier.as_ref().map(|e| e[i]))));
    }
    for &inst in &old[last + 1..] {
        if let SimtOp::Set { x, .. } = &mut k.insts[inst].op
            && let Some(&sum) = before.get(x)
        {
            match sum {
                Some(sum) => *x = sum,
                None => continue,
            }
        }
        k.blocks[body].push(inst);
    }
}

fn set_all(k: &mut Kernel, block: Block, vars: &[Var], values: Vals, span: u32) {
    for (&var, x) in vars.iter().zip(values) {
        k.append(block, SimtOp::Set { var, x }, span);
    }
}

fn outs(k: &Kernel, inst: Inst) -> Vals {
    let mut all = Vals::new();
    k.insts[inst].op.defs(&mut |v| all.push(v));
    all
}

fn read(k: &mut Kernel, block: Block, var: Var, span: u32) -> Val {
    let out = k.pending(k.vars[var]);
    k.append(block, SimtOp::Get { out: Def(out), var }, span);
    out
}

/// Reads the operands that are carried.
fn read_all(k: &mut Kernel, block: Block, vars: &FastMap<Val, Var>, span: u32) -> FastMap<Val, Val> {
    let mut sorted: Vec<(Val, Var)> = vars.iter().map(|(&v, &var)| (v, var)).collect();
    sorted.sort_unstable();
    sorted.into_iter().map(|(v, var)| (v, read(k, block, var, span))).collect()
}

/// Appends `like` with the carried operands in place of its own, on top of the sums `c`; returns the new sums.
fn product(k: &mut Kernel, block: Block, like: &SimtOp, held: &FastMap<Val, Val>, c: Vals, span: u32) -> Vals {
    let SimtOp::Mma { outs, kind, a, b, .. } = like else { return c };
    let of = |vals: &Vals| -> Vals { vals.iter().map(|v| held[v]).collect() };
    let (a, b) = (of(a), of(b));
    let sums: Vals = outs.iter().map(|d| k.pending(k.ty(d.0))).collect();
    let outs = sums.iter().map(|&v| Def(v)).collect();
    k.append(block, SimtOp::Mma { outs, kind: *kind, a, b, c }, span);
    sums
}
