//! Joins accesses of neighbouring elements that stand apart in the code into one wide access.
//!
//! Lowering finds the vectors within one op. A body that names neighbours one by one (`x[2 * i]` and `x[2 * i + 1]`, an
//! unrolled loop over the elements of a group) gives an op each. Within a straight piece of code, loads of one base
//! register move up to the first of them and stores down to the last, unless another access to the object that may touch
//! the same bytes stands between. Depends on the SIMT IR only.

use crate::ptx::simt::{
    Addr, Block, Cache, Def, Effect, Fields, Inst, InstData, Kernel, MemTy, Obj, SimtOp, Space, Ty, Val, ValDef, Vals,
};
use smallvec::{SmallVec, smallvec};
use zellige_ir::hash::FastMap;

/// The widest access.
const WIDEST: i64 = 16;

/// What accesses have in common that can be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    is_store: bool,
    base: Val,
    obj: Obj,
    space: Space,
    mem: MemTy,
    cache: Cache,
    guard: Option<Val>,
}

/// Accesses that may still grow, with their places in the block.
#[derive(Clone, Debug)]
struct Group {
    key: Key,
    /// Offset, position in the block, element.
    items: Vec<(i64, usize, Val)>,
}

/// What stands at a position of a block afterwards; what is not named stays.
type Edits = FastMap<usize, Vec<SimtOp>>;

/// Joins accesses everywhere in the kernel.
pub fn run(k: &mut Kernel) {
    for block in k.blocks.ids().collect::<Vec<_>>() {
        let groups = groups(k, block);
        let mut edits = Edits::default();
        for group in groups {
            join(k, group, &mut edits);
        }
        apply(k, block, edits);
    }
}

fn bytes(mem: MemTy) -> i64 {
    match mem {
        MemTy::U8 | MemTy::S8 => 1,
        MemTy::U16 | MemTy::S16 | MemTy::B16 => 2,
        MemTy::B32 | MemTy::F32 => 4,
        MemTy::B64 | MemTy::F64 => 8,
    }
}

/// The access of one element that an op is.
fn single(op: &SimtOp) -> Option<(Key, i64, Val)> {
    match op {
        SimtOp::Ld { outs, space, mem, cache, addr, guard } if outs.len() == 1 => {
            let Addr { base, offset, obj } = *addr;
            let key = Key { is_store: false, base, obj, space: *space, mem: *mem, cache: *cache, guard: *guard };
            Some((key, offset.into(), outs[0].0))
        }
        SimtOp::St { space, mem, addr, vals, guard } if vals.len() == 1 => {
            let Addr { base, offset, obj } = *addr;
            let cache = Cache::Default;
            let key = Key { is_store: true, base, obj, space: *space, mem: *mem, cache, guard: *guard };
            Some((key, offset.into(), vals[0]))
        }
        _ => None,
    }
}

/// The groups of accesses in a block among which nothing stands that orders them.
fn groups(k: &Kernel, block: Block) -> Vec<Group> {
    let mut open: Vec<Group> = Vec::new();
    let mut closed: Vec<Group> = Vec::new();
    for (at, &inst) in k.blocks[block].iter().enumerate() {
        let op = &k.insts[inst].op;
        match op {
            SimtOp::Ld { outs, mem, addr, .. } => {
                let size = bytes(*mem) * outs.len() as i64;
                close(&mut open, &mut closed, |g| g.key.is_store && may_meet(g, addr, size));
            }
            SimtOp::St { vals, mem, addr, .. } => {
                let size = bytes(*mem) * vals.len() as i64;
                close(&mut open, &mut closed, |g| may_meet(g, addr, size));
            }
            // Variables are no memory.
            SimtOp::Shfl { .. }
            | SimtOp::Vote { .. }
            | SimtOp::Redux { .. }
            | SimtOp::Get { .. }
            | SimtOp::Set { .. } => {}
            _ if op.effect() == Effect::Pure => {}
            _ => closed.append(&mut open),
        }
        let Some((key, offset, val)) = single(op) else { continue };
        match open.iter_mut().find(|g| g.key == key) {
            Some(group) => group.items.push((offset, at, val)),
            None => open.push(Group { key, items: vec![(offset, at, val)] }),
        }
    }
    closed.append(&mut open);
    closed.retain(|g| g.items.len() > 1);
    closed
}

/// Moves the groups that `ends` names to the closed ones.
fn close(open: &mut Vec<Group>, closed: &mut Vec<Group>, mut ends: impl FnMut(&Group) -> bool) {
    closed.extend(open.extract_if(.., |g| ends(g)));
}

/// May an access touch bytes of a group's? Places with one base register are apart if their offsets are.
fn may_meet(group: &Group, addr: &Addr, size: i64) -> bool {
    if group.key.obj != addr.obj {
        return false;
    }
    let (from, own) = (i64::from(addr.offset), bytes(group.key.mem));
    group.key.base != addr.base || group.items.iter().any(|&(at, _, _)| at < from + size && from < at + own)
}

/// Joins the runs of neighbours in a group.
fn join(k: &mut Kernel, group: Group, edits: &mut Edits) {
    let Group { key, mut items } = group;
    if matches!(key.mem, MemTy::S8 | MemTy::S16) && !key.is_store {
        return;
    }
    items.sort_by_key(|&(offset, at, _)| (offset, at));
    // Two loads of one place stay two.
    items.dedup_by_key(|&mut (offset, _, _)| offset);
    let size = bytes(key.mem);
    let base_divisor = k.aligned(key.base);
    let mut first = 0;
    while first < items.len() {
        let start = items[first].0;
        let divisor = if start == 0 { base_divisor } else { base_divisor.min(1 << start.trailing_zeros()) };
        let mut n = 1;
        while 2 * n <= items.len() - first
            && 2 * n as i64 * size <= WIDEST
            && divisor >= 2 * n as u64 * size as u64
            && (n..2 * n).all(|i| items[first + i].0 == start + i as i64 * size)
        {
            n *= 2;
        }
        if n > 1 {
            let run = &items[first..first + n];
            let positions = run.iter().map(|&(_, at, _)| at);
            let place = if key.is_store { positions.max() } else { positions.min() };
            let vals: Vec<Val> = run.iter().map(|&(_, _, v)| v).collect();
            let ops = if key.is_store { stores(k, key, start, &vals) } else { loads(k, key, start, &vals) };
            for &(_, at, _) in run {
                edits.insert(at, Vec::new());
            }
            edits.extend(place.map(|p| (p, ops)));
        }
        first += n;
    }
}

/// How an access of `total` bytes is spelled: the type and number of its words.
fn words(mem: MemTy, total: i64) -> (MemTy, usize) {
    match (mem, total) {
        (MemTy::B64 | MemTy::F64 | MemTy::F32 | MemTy::B32, _) => (mem, (total / bytes(mem)) as usize),
        (_, 2) => (MemTy::U16, 1),
        (_, _) => (MemTy::B32, (total / 4) as usize),
    }
}

/// One wide load, and the elements picked from its words.
fn loads(k: &mut Kernel, key: Key, offset: i64, outs: &[Val]) -> Vec<SimtOp> {
    let size = bytes(key.mem);
    let (mem, count) = words(key.mem, size * outs.len() as i64);
    let addr = Addr { base: key.base, offset: offset as i32, obj: key.obj };
    let load = |outs| SimtOp::Ld { outs, space: key.space, mem, cache: key.cache, addr, guard: key.guard };
    if size >= 4 {
        return vec![load(outs.iter().map(|&v| Def(v)).collect())];
    }
    let words: SmallVec<[Val; 4]> = (0..count).map(|_| k.pending(Ty::B32)).collect();
    let mut ops = vec![load(words.iter().map(|&v| Def(v)).collect())];
    if key.mem == MemTy::B16 {
        let halves = outs.chunks(2).zip(&words);
        ops.extend(halves.map(|(pair, &x)| SimtOp::Unpack { lo: Def(pair[0]), hi: Def(pair[1]), x }));
        return ops;
    }
    let (bits, per_word) = (8 * size as u32, (4 / size) as usize);
    ops.extend(outs.iter().enumerate().map(|(i, &out)| {
        let pos = (i % per_word) as u32 * bits;
        SimtOp::Bfe { out: Def(out), x: words[i / per_word], pos, len: bits }
    }));
    ops
}

/// The elements packed into words, and one wide store.
fn stores(k: &mut Kernel, key: Key, offset: i64, vals: &[Val]) -> Vec<SimtOp> {
    let size = bytes(key.mem);
    let (mem, _) = words(key.mem, size * vals.len() as i64);
    let mut ops = Vec::new();
    let packed: Vals = match key.mem {
        MemTy::B64 | MemTy::F64 | MemTy::B32 | MemTy::F32 => vals.into(),
        MemTy::B16 => vals
            .chunks(2)
            .map(|pair| {
                let out = k.pending(Ty::B32);
                ops.push(SimtOp::Pack { out: Def(out), lo: pair[0], hi: pair[1] });
                out
            })
            .collect(),
        MemTy::U16 | MemTy::S16 => vals.chunks(2).map(|pair| prmt(k, &mut ops, pair[0], pair[1], 0x5410)).collect(),
        MemTy::U8 | MemTy::S8 => vals
            .chunks(4)
            .map(|bytes| {
                let lo = prmt(k, &mut ops, bytes[0], bytes[1], 0x0040);
                match bytes.get(2..4) {
                    Some(rest) => {
                        let hi = prmt(k, &mut ops, rest[0], rest[1], 0x0040);
                        prmt(k, &mut ops, lo, hi, 0x5410)
                    }
                    None => lo,
                }
            })
            .collect(),
    };
    let addr = Addr { base: key.base, offset: offset as i32, obj: key.obj };
    ops.push(SimtOp::St { space: key.space, mem, addr, vals: packed, guard: key.guard });
    ops
}

fn prmt(k: &mut Kernel, ops: &mut Vec<SimtOp>, x: Val, y: Val, sel: u32) -> Val {
    let out = k.pending(Ty::B32);
    ops.push(SimtOp::Prmt { out: Def(out), x, y, sel });
    out
}

/// Puts the edits into a block.
fn apply(k: &mut Kernel, block: Block, mut edits: Edits) {
    if edits.is_empty() {
        return;
    }
    let insts = std::mem::take(&mut k.blocks[block]);
    let mut kept: Vec<Inst> = Vec::with_capacity(insts.len());
    for (at, inst) in insts.into_iter().enumerate() {
        let Some(ops) = edits.remove(&at) else {
            kept.push(inst);
            continue;
        };
        let span = k.insts[inst].span;
        for op in ops {
            let mut defs: SmallVec<[Val; 4]> = smallvec![];
            op.defs(&mut |v| defs.push(v));
            let new = k.insts.push(InstData { op, span });
            for v in defs {
                k.vals[v].def = ValDef::Inst(new);
            }
            kept.push(new);
        }
    }
    k.blocks[block] = kept;
}
