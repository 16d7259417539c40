//! The packing of virtual registers into few slots.
//!
//! PTX names thousands of virtual registers; a warp's register file must stay small to stay in cache. Liveness is computed
//! per thread (lanes write only their own part of a slot, so divergence needs no special care), then a linear scan over
//! instruction order (Poletto and Sarkar, "Linear Scan Register Allocation", 1999) assigns slots.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::op::{Class, Inst, Op};
use super::roles::{Role, visit};
use super::{ConstSlot, SpecialSlot};

/// One number space for the registers of all classes.
struct Ids {
    base: [u32; 3],
    total: usize,
}

impl Ids {
    fn new(count: [u32; 3]) -> Ids {
        let base = [0, count[0], count[0] + count[1]];
        Ids { base, total: (base[2] + count[2]) as usize }
    }

    fn of(&self, class: Class, slot: u32) -> usize {
        (self.base[class as usize] + slot) as usize
    }
}

#[derive(Clone, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Bits {
        Bits(vec![0; n.div_ceil(64)])
    }
    fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
    fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }
    fn get(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 != 0
    }
    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(w, &bits)| {
            let mut rest = bits;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let b = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    w * 64 + b
                })
            })
        })
    }
}

/// Renumbers all slots so that registers with disjoint lifetimes share one; constants and special registers keep their own.
pub fn compact(
    code: &mut [Inst],
    pool: &mut [u32],
    count: &mut [u32; 3],
    consts: &mut [ConstSlot],
    specials: &mut [SpecialSlot],
) {
    let ids = Ids::new(*count);
    let mut uses: Vec<Vec<usize>> = vec![Vec::new(); code.len()];
    let mut defs: Vec<Vec<usize>> = vec![Vec::new(); code.len()];
    for (at, i) in code.iter_mut().enumerate() {
        visit(i, pool, &mut |slot, class, role| {
            let id = ids.of(class, *slot);
            match role {
                Role::Use => uses[at].push(id),
                Role::Def => defs[at].push(id),
                Role::UseDef => {
                    uses[at].push(id);
                    defs[at].push(id);
                }
            }
        });
        // A guarded write may leave the old value.
        if i.guard != 0 {
            let d = defs[at].clone();
            uses[at].extend(d);
        }
    }
    let (first, last) = intervals(code, &uses, &defs, ids.total);

    let mut pinned = vec![false; ids.total];
    for c in consts.iter() {
        pinned[ids.of(c.class, c.slot)] = true;
    }
    for s in specials.iter() {
        pinned[ids.of(s.class, s.slot)] = true;
    }
    // Registers of an asynchronous wgmma stay in use until some later wait: they get slots of their own.
    for (at, i) in code.iter().enumerate() {
        if matches!(i.op, Op::Wgmma(_)) {
            uses[at].iter().for_each(|id| pinned[*id] = true);
        }
    }
    let mut next = [0u32; 3];
    let mut map = vec![u32::MAX; ids.total];
    for class in [Class::Pred, Class::W32, Class::W64] {
        let k = class as usize;
        let range = ids.base[k] as usize..(ids.base[k] + count[k]) as usize;
        for id in range.clone().filter(|id| pinned[*id]) {
            map[id] = next[k];
            next[k] += 1;
        }
        let mut order: Vec<usize> = range.filter(|id| !pinned[*id] && first[*id] != usize::MAX).collect();
        order.sort_by_key(|id| first[*id]);
        let mut free: Vec<u32> = Vec::new();
        // Active intervals by their end.
        let mut active: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for id in order {
            while let Some(e) = active.first_entry().filter(|e| *e.key() < first[id]) {
                free.extend(e.remove());
            }
            let slot = free.pop().unwrap_or_else(|| {
                next[k] += 1;
                next[k] - 1
            });
            map[id] = slot;
            active.entry(last[id]).or_default().push(slot);
        }
    }
    for i in code.iter_mut() {
        visit(i, pool, &mut |slot, class, _| *slot = map[ids.of(class, *slot)]);
    }
    for c in consts.iter_mut() {
        c.slot = map[ids.of(c.class, c.slot)];
    }
    for s in specials.iter_mut() {
        s.slot = map[ids.of(s.class, s.slot)];
    }
    *count = next;
}

/// The 32-bit slots of `wgmma` operands that every other instruction reads and writes, if there is a `wgmma`.
pub fn touched(code: &mut [Inst], pool: &mut [u32]) -> Vec<(Vec<u32>, Vec<u32>)> {
    let is_wgmma = |i: &Inst| matches!(i.op, Op::Wgmma(_));
    let mut operands = HashSet::new();
    for i in code.iter_mut().filter(|i| is_wgmma(i)) {
        visit(i, pool, &mut |slot, class, _| {
            if class == Class::W32 {
                operands.insert(*slot);
            }
        });
    }
    if operands.is_empty() {
        return Vec::new();
    }
    code.iter_mut()
        .map(|i| {
            let (mut uses, mut defs) = (Vec::new(), Vec::new());
            if is_wgmma(i) {
                return (uses, defs);
            }
            visit(i, pool, &mut |slot, class, role| {
                if class == Class::W32 && operands.contains(slot) {
                    if role != Role::Def {
                        uses.push(*slot);
                    }
                    if role != Role::Use {
                        defs.push(*slot);
                    }
                }
            });
            (uses, defs)
        })
        .collect()
}

/// First and last position at which each register is live.
fn intervals(code: &[Inst], uses: &[Vec<usize>], defs: &[Vec<usize>], total: usize) -> (Vec<usize>, Vec<usize>) {
    let n = code.len();
    let mut leader = vec![false; n + 1];
    leader[0] = true;
    for (at, i) in code.iter().enumerate() {
        if matches!(i.op, Op::Bra | Op::Exit | Op::Trap) {
            leader[at + 1] = true;
            if i.op == Op::Bra {
                leader[i.imm as usize] = true;
            }
        }
    }
    let starts: Vec<usize> = (0..n).filter(|&at| leader[at]).collect();
    let index: HashMap<usize, usize> = starts.iter().enumerate().map(|(b, s)| (*s, b)).collect();
    let end = |b: usize| starts.get(b + 1).copied().unwrap_or(n);
    let mut live_in = vec![Bits::new(total); starts.len()];
    let mut live_out = live_in.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..starts.len()).rev() {
            let i = &code[end(b) - 1];
            let mut out = Bits::new(total);
            let mut join = |at: usize| {
                if let Some(&s) = index.get(&at) {
                    for (o, l) in out.0.iter_mut().zip(&live_in[s].0) {
                        *o |= l;
                    }
                }
            };
            if i.guard != 0 || !matches!(i.op, Op::Bra | Op::Exit | Op::Trap) {
                join(end(b));
            }
            if i.op == Op::Bra {
                join(i.imm as usize);
            }
            let mut live = out.clone();
            live_out[b] = out;
            for at in (starts[b]..end(b)).rev() {
                defs[at].iter().for_each(|&d| live.clear(d));
                uses[at].iter().for_each(|&u| live.set(u));
            }
            if live != live_in[b] {
                live_in[b] = live;
                changed = true;
            }
        }
    }
    let (mut first, mut last) = (vec![usize::MAX; total], vec![0usize; total]);
    let mut touch = |id: usize, at: usize| {
        first[id] = first[id].min(at);
        last[id] = last[id].max(at);
    };
    for b in 0..starts.len() {
        for id in live_in[b].iter() {
            touch(id, starts[b]);
        }
        for id in live_out[b].iter() {
            touch(id, end(b) - 1);
        }
        for at in starts[b]..end(b) {
            uses[at].iter().chain(&defs[at]).for_each(|&id| touch(id, at));
        }
    }
    debug_assert!(live_in.first().is_none_or(|l| (0..total).all(|id| !l.get(id) || first[id] == 0)));
    (first, last)
}

#[cfg(test)]
mod tests {
    use crate::sim::Module;

    fn slots(body: &str) -> [u32; 3] {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .b32 %r<2000>; .reg .b64 %rd<4>; .reg .pred %q<9>;\n{body}\nret; }}"
        );
        Module::parse(&text).unwrap_or_else(|e| panic!("{e}")).kernels()[0].slots
    }

    #[test]
    fn a_chain_of_temporaries_needs_few_slots() {
        let chain: String = (0..1000).map(|k| format!("add.u32 %r{}, %r{k}, 1;", k + 1)).collect();
        let [_, w32, _] =
            slots(&format!("mov.u32 %r0, 1; {chain} ld.param.u64 %rd0, [p]; st.global.u32 [%rd0], %r1000;"));
        assert!(w32 <= 4, "{w32}");
    }

    #[test]
    fn values_that_live_together_stay_apart() {
        let load: String = (0..100).map(|k| format!("mov.u32 %r{k}, {k};")).collect();
        let add: String = (0..100).map(|k| format!("add.u32 %r200, %r200, %r{k};")).collect();
        let [_, w32, _] =
            slots(&format!("mov.u32 %r200, 0; {load} {add} ld.param.u64 %rd0, [p]; st.global.u32 [%rd0], %r200;"));
        assert!(w32 >= 101, "{w32}");
    }

    #[test]
    fn values_carried_around_a_loop_keep_their_slot() {
        // %r1 is set before the loop and read at its top only: temporaries inside must not take its place.
        let body = "mov.u32 %r1, 5; mov.u32 %r2, 0; L: add.u32 %r2, %r2, %r1; mov.u32 %r3, 7; add.u32 %r4, %r3, %r2; setp.lt.u32 %q0, %r4, 99; @%q0 bra L;
            ld.param.u64 %rd0, [p]; st.global.u32 [%rd0], %r2;";
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .b32 %r<9>; .reg .b64 %rd<4>; .reg .pred %q<9>;\n{body}\nret; }}"
        );
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let mut m = crate::sim::Memory::new();
        let p = m.alloc("p", 4);
        let dims = crate::sim::LaunchDims::linear(1, 1);
        crate::sim::launch(&module, "k", dims, &p.to_le_bytes(), &mut m, &crate::sim::SimOptions::default())
            .expect("launches");
        assert_eq!(m.read(p, 4).expect("read"), 95u32.to_le_bytes());
    }
}
