//! Tiles and tensors in memory: from coordinates to addresses, and vectors of elements to and from registers.
//!
//! Vectors are found by address: elements whose addresses share a register part and whose constant parts follow one
//! another, as far as the address is known to be aligned and the elements are inside or outside together.

use super::index::{self, Idx};
use super::value;
use super::words;
use crate::ptx::simt::{Addr, AtomOp, Bin, Builder, Cache, MemTy, Num, Obj, Round, SimtOp, Space, Ty, Val, Vals};
use smallvec::SmallVec;
use zellige_ir::DType;
use zellige_ir::hash::FastMap;

pub type Coords = SmallVec<[Idx; 4]>;

/// How coordinates become byte offsets.
#[derive(Clone, Debug)]
pub enum Placement {
    /// Sum of coordinates times strides, in elements.
    Strided { strides: SmallVec<[Idx; 4]> },
    /// The last two axes in boxes of `atom` bytes along the last axis, box after box; the 16-byte chunks of a row are
    /// XORed with the row's low bits (`zellige_ir::layout::instances::Swizzle`). `rows` is the box's height.
    Swizzled { strides: SmallVec<[Idx; 4]>, rows: usize, atom: usize, row_bits: (u32, u32) },
}

/// A buffer in memory.
#[derive(Clone, Debug)]
pub struct View {
    pub space: Space,
    pub obj: Obj,
    pub dtype: DType,
    /// Address of the first element.
    pub base: Val,
    /// Constant bytes added to the address.
    pub base_offset: i64,
    /// Bytes that divide the address.
    pub align: u64,
    pub extents: Coords,
    pub placement: Placement,
    pub cache: Cache,
    /// Elements outside are skipped or padded; otherwise they are not asked for.
    pub checked: bool,
}

/// Bytes that so many elements take, without a last half byte.
fn in_bytes(b: &mut Builder, elems: Idx, bits: i64) -> Idx {
    match bits {
        ..8 => index::div(b, elems, Idx::constant(8 / bits)),
        _ => index::mul(b, elems, Idx::constant(bits / 8)),
    }
}

impl View {
    /// Byte offset of an element from `base`; for the packed 4-bit format that of its byte.
    pub fn offset(&self, b: &mut Builder, at: &[Idx]) -> Idx {
        let bits = self.dtype.bits() as i64;
        match &self.placement {
            Placement::Strided { strides } => {
                let mut elems = Idx::constant(0);
                if bits >= 8 {
                    for (&x, &s) in at.iter().zip(strides) {
                        let bytes = index::mul(b, s, Idx::constant(bits / 8));
                        let part = index::mul(b, x, bytes);
                        elems = index::add(b, elems, part);
                    }
                    return elems;
                }
                for (&x, &s) in at.iter().zip(strides) {
                    let part = index::mul(b, x, s);
                    elems = index::add(b, elems, part);
                }
                index::div(b, elems, Idx::constant(8 / bits))
            }
            Placement::Swizzled { strides, rows, atom, row_bits } => {
                let n = at.len();
                let (row, col) = (at[n - 2], at[n - 1]);
                let mut sum = Idx::constant(0);
                for (&x, &s) in at[..n - 2].iter().zip(strides) {
                    let bytes = in_bytes(b, s, bits);
                    let part = index::mul(b, x, bytes);
                    sum = index::add(b, sum, part);
                }
                let atom_bytes = *atom as i64;
                let col_bytes = in_bytes(b, col, bits);
                let which = index::div(b, col_bytes, Idx::constant(atom_bytes));
                let inside = index::rem(b, col_bytes, Idx::constant(atom_bytes));
                let part = index::mul(b, which, Idx::constant(*rows as i64 * atom_bytes));
                sum = index::add(b, sum, part);
                let part = index::mul(b, row, Idx::constant(atom_bytes));
                sum = index::add(b, sum, part);
                let low = index::rem(b, row, Idx::constant(8));
                let bits = index::div(b, low, Idx::constant(1 << row_bits.0));
                let flip = index::mul(b, bits, Idx::constant(16));
                let part = xor_chunk(b, inside, flip);
                index::add(b, sum, part)
            }
        }
    }

    /// The address of a byte offset.
    pub fn address(&self, b: &mut Builder, offset: Idx) -> Addr {
        let total = offset.off + self.base_offset;
        let fits = i32::try_from(total).is_ok();
        let dynamic = if fits { offset.base_only() } else { offset };
        let class = self.space.addr_ty();
        let base = match dynamic.as_const() {
            Some(0) => self.base,
            _ if class == Ty::B64 && fits => wide_add(b, self.base, dynamic),
            _ => {
                let v = index::to_val(b, dynamic, class);
                b.add(index::signed(class), self.base, v)
            }
        };
        let offset = if fits { total as i32 } else { self.base_offset as i32 };
        // A variable's own constant part is not in the register.
        if fits {
            b.kernel.set_aligned(base, self.align.min(dynamic.align));
        }
        Addr { base, offset, obj: self.obj }
    }

    /// True where all coordinates are inside; `None` if that is certain or nobody asks.
    pub fn guard(&self, b: &mut Builder, at: &[Idx]) -> Option<Val> {
        if !self.checked {
            return None;
        }
        let mut guard = None;
        for (&x, &e) in at.iter().zip(&self.extents) {
            let inside = index::in_bounds(b, x, e);
            guard = b.and_guard(guard, inside);
        }
        guard
    }

    /// Loads elements; zero where the guard is false.
    pub fn load(&self, b: &mut Builder, at: &[Coords], guards: &[Option<Val>]) -> Vec<Val> {
        let offsets: Vec<Idx> = at.iter().map(|c| self.offset(b, c)).collect();
        if self.dtype == DType::F4E2M1 {
            return self.load_nibbles(b, at, &offsets, guards);
        }
        let order = by_address(&offsets, guards);
        // Each place once, and which of them an element is at.
        let mut places: Vec<usize> = Vec::new();
        let mut slot = vec![0; at.len()];
        for i in order {
            let again = places.last().is_some_and(|&p| same_place((offsets[p], guards[p]), (offsets[i], guards[i])));
            if !again {
                places.push(i);
            }
            slot[i] = places.len() - 1;
        }
        let (offsets, guards) = (pick(&offsets, &places), pick(guards, &places));
        let mut vals = vec![b.zero(value::class(self.dtype)); places.len()];
        let mut i = 0;
        while i < places.len() {
            if guards[i].is_some_and(|g| b.as_const(g) == Some(0)) {
                i += 1;
                continue;
            }
            let n = self.run(&offsets[i..], &guards[i..]);
            let loaded = self.load_run(b, offsets[i], n, guards[i]);
            vals[i..i + n].copy_from_slice(&loaded);
            i += n;
        }
        pick(&vals, &slot)
    }

    /// Stores elements where the guard holds.
    pub fn store(&self, b: &mut Builder, at: &[Coords], guards: &[Option<Val>], vals: &[Val]) {
        let offsets: Vec<Idx> = at.iter().map(|c| self.offset(b, c)).collect();
        if self.dtype == DType::F4E2M1 {
            return self.store_nibbles(b, at, &offsets, guards, vals);
        }
        let order = by_address(&offsets, guards);
        let (offsets, guards, vals) = (pick(&offsets, &order), pick(guards, &order), pick(vals, &order));
        let mut i = 0;
        while i < offsets.len() {
            if guards[i].is_some_and(|g| b.as_const(g) == Some(0)) {
                i += 1;
                continue;
            }
            let n = self.run(&offsets[i..], &guards[i..]);
            self.store_run(b, offsets[i], guards[i], &vals[i..i + n]);
            i += n;
        }
    }

    /// How many of the first elements one access can take: a power of two.
    pub fn run(&self, offsets: &[Idx], guards: &[Option<Val>]) -> usize {
        let bytes = (self.dtype.bits() / 8) as i64;
        let align = self.align_of(offsets[0]);
        let mut n = 1;
        while 2 * n <= offsets.len() && 2 * n as i64 * bytes <= 16 && align >= 2 * n as u64 * bytes as u64 {
            let follow = (n..2 * n).all(|k| {
                offsets[k].base == offsets[0].base
                    && offsets[k].off == offsets[0].off + k as i64 * bytes
                    && guards[k] == guards[0]
            });
            if !follow {
                break;
            }
            n *= 2;
        }
        n
    }

    /// Bytes that divide the address of a byte offset.
    pub fn align_of(&self, offset: Idx) -> u64 {
        let constant = offset.off + self.base_offset;
        let constant = if constant == 0 { 1 << 62 } else { 1u64 << constant.trailing_zeros() };
        self.align.min(offset.align).min(constant)
    }

    fn load_run(&self, b: &mut Builder, offset: Idx, n: usize, guard: Option<Val>) -> Vec<Val> {
        let addr = self.address(b, offset);
        let bytes = n * self.dtype.bits() / 8;
        let Some(mem) = value::mem(self.dtype) else { unreachable!("nibbles are loaded elsewhere") };
        let per_word = words::per_word(self.dtype);
        if per_word == 1 || n == 1 {
            let vals = b.ld(self.space, mem, self.cache, addr, n, guard);
            return vals.into_iter().map(|v| self.loaded(b, v)).collect();
        }
        if bytes < 4 {
            // Two bytes.
            let word = b.ld(self.space, MemTy::U16, self.cache, addr, 1, guard)[0];
            return (0..n).map(|i| words::extract(b, self.dtype, word, i)).collect();
        }
        let loaded = b.ld(self.space, MemTy::B32, self.cache, addr, bytes / 4, guard);
        (0..n).map(|i| words::extract(b, self.dtype, loaded[i / per_word], i % per_word)).collect()
    }

    /// A single loaded element in the class of its type.
    fn loaded(&self, b: &mut Builder, v: Val) -> Val {
        if self.dtype == DType::Bool {
            let zero = b.c32(0);
            return b.setp(crate::ptx::simt::Cmp::Ne, Num::B32, v, zero);
        }
        v
    }

    fn store_run(&self, b: &mut Builder, offset: Idx, guard: Option<Val>, vals: &[Val]) {
        let addr = self.address(b, offset);
        let bytes = vals.len() * self.dtype.bits() / 8;
        let Some(mem) = value::mem(self.dtype) else { unreachable!("nibbles are stored elsewhere") };
        let per_word = words::per_word(self.dtype);
        if per_word == 1 || vals.len() == 1 {
            let vals: Vals = vals.iter().map(|&v| words::byte(b, self.dtype, v)).collect();
            b.st(self.space, mem, addr, vals, guard);
            return;
        }
        if bytes < 4 {
            let (lo, hi) = (words::byte(b, self.dtype, vals[0]), words::byte(b, self.dtype, vals[1]));
            let word = b.prmt(lo, hi, 0x0040);
            b.st(self.space, MemTy::U16, addr, SmallVec::from_slice(&[word]), guard);
            return;
        }
        let packed: Vals = vals.chunks(per_word).map(|c| words::pack(b, self.dtype, c)).collect();
        b.st(self.space, MemTy::B32, addr, packed, guard);
    }

    // ---- packed 4-bit elements -------------------------------------------------------------------------------

    /// Position of an element in its byte as a shift, 0 or 4.
    fn nibble(&self, b: &mut Builder, at: &Coords) -> Idx {
        let last = at.last().copied().unwrap_or(Idx::constant(0));
        let odd = index::rem(b, last, Idx::constant(2));
        index::mul(b, odd, Idx::constant(4))
    }

    fn load_nibbles(&self, b: &mut Builder, at: &[Coords], offsets: &[Idx], guards: &[Option<Val>]) -> Vec<Val> {
        let mut out = Vec::with_capacity(at.len());
        let mut i = 0;
        while i < at.len() {
            let n = self.nibble_run(b, &at[i..], &offsets[i..], &guards[i..]);
            let addr = self.address(b, offsets[i]);
            if n >= 8 {
                let loaded = b.ld(self.space, MemTy::B32, self.cache, addr, n / 8, guards[i]);
                out.extend((0..n).map(|k| words::extract(b, self.dtype, loaded[k / 8], k % 8)));
            } else if n >= 2 {
                let mem = if n == 2 { MemTy::U8 } else { MemTy::U16 };
                let word = b.ld(self.space, mem, self.cache, addr, 1, guards[i])[0];
                out.extend((0..n).map(|k| words::extract(b, self.dtype, word, k)));
            } else {
                let byte = b.ld(self.space, MemTy::U8, self.cache, addr, 1, guards[i])[0];
                let by = self.nibble(b, &at[i]);
                let by = index::to_val(b, by, Ty::B32);
                let shifted = b.bin(Bin::Shr, Num::U32, byte, by);
                out.push(b.bfe(shifted, 0, 4));
            }
            i += n;
        }
        out
    }

    /// Elements from an even position on that follow one another: 2, 4, 8, 16 or 32 of them, else 1.
    pub(super) fn nibble_run(&self, b: &mut Builder, at: &[Coords], offsets: &[Idx], guards: &[Option<Val>]) -> usize {
        let last = at[0].len() - 1;
        let first = at[0][last];
        if self.nibble(b, &at[0]).as_const() != Some(0) {
            return 1;
        }
        let align = self.align_of(offsets[0]);
        let mut n = 1;
        while 2 * n <= at.len().min(32) && align >= n as u64 {
            let follow = (n..2 * n).all(|k| {
                let c = at[k][last];
                at[k][..last] == at[0][..last]
                    && c.base == first.base
                    && c.off == first.off + k as i64
                    && guards[k] == guards[0]
            });
            if !follow {
                break;
            }
            n *= 2;
        }
        n
    }

    /// Pairs are stored as bytes. A lone element shares its byte with one that another thread may be storing, so it is
    /// cleared and set in its word by two atomics, neither of which touches other bits.
    fn store_nibbles(&self, b: &mut Builder, at: &[Coords], offsets: &[Idx], guards: &[Option<Val>], vals: &[Val]) {
        let mut i = 0;
        while i < at.len() {
            let n = self.nibble_run(b, &at[i..], &offsets[i..], &guards[i..]);
            let elems = &vals[i..i + n];
            if n >= 8 {
                let addr = self.address(b, offsets[i]);
                let packed: Vals = elems.chunks(8).map(|c| words::pack(b, self.dtype, c)).collect();
                b.st(self.space, MemTy::B32, addr, packed, guards[i]);
            } else if n >= 2 {
                let addr = self.address(b, offsets[i]);
                let mem = if n == 2 { MemTy::U8 } else { MemTy::U16 };
                let word = words::pack(b, self.dtype, elems);
                b.st(self.space, mem, addr, SmallVec::from_slice(&[word]), guards[i]);
            } else {
                self.store_nibble(b, &at[i], offsets[i], guards[i], elems[0]);
            }
            i += n;
        }
    }

    fn store_nibble(&self, b: &mut Builder, at: &Coords, offset: Idx, guard: Option<Val>, v: Val) {
        let in_byte = self.nibble(b, at);
        let byte_in_word = index::rem(b, offset, Idx::constant(4));
        let word = index::sub(b, offset, byte_in_word);
        let bits = index::mul(b, byte_in_word, Idx::constant(8));
        let by = index::add(b, bits, in_byte);
        let by = index::to_val(b, by, Ty::B32);
        let nibble = b.c32(0xf);
        let mask = b.bin(Bin::Shl, Num::B32, nibble, by);
        let keep = b.un(crate::ptx::simt::Un::Not, Num::B32, mask);
        let set = b.bin(Bin::Shl, Num::B32, v, by);
        let addr = self.address(b, word);
        for (op, x) in [(AtomOp::And, keep), (AtomOp::Or, set)] {
            b.push(SimtOp::Atom { out: None, op, num: Num::B32, space: self.space, addr, x, guard });
        }
    }
}

/// The elements in the order of their addresses as far as these are comparable: those of one register and one guard
/// together, by their constant parts. Elements at one place keep their order.
fn by_address(offsets: &[Idx], guards: &[Option<Val>]) -> Vec<usize> {
    let mut first: FastMap<(Option<Val>, Option<Val>), usize> = FastMap::default();
    let group: Vec<usize> =
        (0..offsets.len()).map(|i| *first.entry((offsets[i].base, guards[i])).or_insert(i)).collect();
    let mut order: Vec<usize> = (0..offsets.len()).collect();
    order.sort_by_key(|&i| (group[i], offsets[i].off));
    order
}

fn same_place((x, p): (Idx, Option<Val>), (y, q): (Idx, Option<Val>)) -> bool {
    x.base == y.base && x.off == y.off && p == q
}

fn pick<T: Copy>(from: &[T], order: &[usize]) -> Vec<T> {
    order.iter().map(|&i| from[i]).collect()
}

/// `inside ^ flip`, where `flip` is a multiple of 16 and `inside` a position in a swizzle atom. What does not reach into
/// the chunk number stays outside of the XOR, so that neighbours keep one register.
fn xor_chunk(b: &mut Builder, inside: Idx, flip: Idx) -> Idx {
    if flip.as_const() == Some(0) {
        return inside;
    }
    let within = inside.off.rem_euclid(16);
    let base = inside.base_only();
    if base.lo + within >= 0 && base.hi + within < 16 {
        let chunk = Idx::constant(inside.off - within);
        let flipped = index::bitwise(b, Bin::Xor, flip, chunk);
        return index::add(b, flipped, base.shift(within));
    }
    // What is less than the base's divisor carries nowhere.
    let below = inside.off.rem_euclid(inside.align.min(16) as i64);
    let flipped = index::bitwise(b, Bin::Xor, inside.shift(-below), flip);
    flipped.shift(below)
}

/// A 64-bit address plus an index.
fn wide_add(b: &mut Builder, base: Val, x: Idx) -> Val {
    let v = index::to_reg(b, x);
    let v = if b.ty(v) == Ty::B32 { b.cvt(Num::S64, Num::S32, Round::Exact, v) } else { v };
    b.add(Num::S64, base, v)
}
