//! Elements inside 32-bit words: how narrow types lie in packed registers and in vectors from memory.

use super::value;
use crate::ptx::simt::{Builder, Cmp, Num, Round, SimtOp, Ty, Val};
use zellige_ir::DType;

/// Elements of a type that share a word register; 1 for types of 32 bits and more.
pub fn per_word(ty: DType) -> usize {
    32 / storage_bits(ty).min(32)
}

/// Bits of an element in registers and memory.
pub fn storage_bits(ty: DType) -> usize {
    ty.bits()
}

/// Class of the register that holds a word: packed narrow elements, or one wide element.
pub fn word_class(ty: DType) -> Ty {
    if storage_bits(ty) < 32 { Ty::B32 } else { value::class(ty) }
}

/// Element `i` of a packed word, in the class of its type.
pub fn extract(b: &mut Builder, ty: DType, word: Val, i: usize) -> Val {
    let bits = storage_bits(ty);
    match bits {
        16 => {
            let (lo, hi) = b.unpack(word);
            let half = if i == 0 { lo } else { hi };
            match ty {
                DType::F16 | DType::BF16 => half,
                DType::I16 => {
                    let shifted = shift_down(b, word, i, 16);
                    b.cvt(Num::S32, Num::S16, Round::Exact, shifted)
                }
                _ => b.bfe(word, 16 * i as u32, 16),
            }
        }
        8 if ty == DType::I8 => {
            let shifted = shift_down(b, word, i, 8);
            b.cvt(Num::S32, Num::S8, Round::Exact, shifted)
        }
        8 if ty == DType::Bool => {
            let byte = b.bfe(word, 8 * i as u32, 8);
            let zero = b.c32(0);
            b.setp(Cmp::Ne, Num::B32, byte, zero)
        }
        4 | 8 => b.bfe(word, (bits * i) as u32, bits as u32),
        _ => word,
    }
}

fn shift_down(b: &mut Builder, word: Val, i: usize, bits: i64) -> Val {
    let by = b.c32(i as i64 * bits);
    b.bin(crate::ptx::simt::Bin::Shr, Num::U32, word, by)
}

/// A word from all its elements.
pub fn pack(b: &mut Builder, ty: DType, elems: &[Val]) -> Val {
    if let Some(word) = origin(b, ty, elems) {
        return word;
    }
    match storage_bits(ty) {
        16 => {
            let halves: Vec<Val> = elems.iter().map(|&e| half(b, e)).collect();
            b.pack(halves[0], halves[1])
        }
        8 => {
            let bytes: Vec<Val> = elems.iter().map(|&e| byte(b, ty, e)).collect();
            let [lo, hi] = [[bytes[0], bytes[1]], [bytes[2], bytes[3]]].map(|pair| match origin(b, ty, &pair) {
                Some(word) => word,
                None => b.prmt(pair[0], pair[1], 0x0040),
            });
            b.prmt(lo, hi, 0x5410)
        }
        4 => {
            let mut word = elems[0];
            for (i, &e) in elems.iter().enumerate().skip(1) {
                word = b.bfi(e, word, 4 * i as u32, 4);
            }
            word
        }
        _ => elems[0],
    }
}

/// The register that narrow elements were extracted from, if they stand there in order from its low end.
pub fn origin(b: &Builder, ty: DType, elems: &[Val]) -> Option<Val> {
    let bits = storage_bits(ty) as u32;
    if !matches!(bits, 4 | 8) || ty == DType::Bool || ty == DType::I8 {
        return None;
    }
    let mut word = None;
    for (i, &e) in elems.iter().enumerate() {
        match b.kernel.def(e) {
            Some(&SimtOp::Bfe { x, pos, len, .. })
                if len == bits && pos == bits * i as u32 && word.is_none_or(|w| w == x) =>
            {
                word = Some(x);
            }
            _ => return None,
        }
    }
    word
}

/// `word` with element `i` replaced.
pub fn insert(b: &mut Builder, ty: DType, word: Val, i: usize, elem: Val) -> Val {
    match storage_bits(ty) {
        16 => {
            let (lo, hi) = b.unpack(word);
            let e = half(b, elem);
            if i == 0 { b.pack(e, hi) } else { b.pack(lo, e) }
        }
        8 => {
            let e = byte(b, ty, elem);
            b.bfi(e, word, 8 * i as u32, 8)
        }
        4 => b.bfi(elem, word, 4 * i as u32, 4),
        _ => elem,
    }
}

/// A 16-bit element as a 16-bit register.
fn half(b: &mut Builder, e: Val) -> Val {
    if b.ty(e) == Ty::B16 {
        return e;
    }
    let (lo, _) = b.unpack(e);
    lo
}

/// An 8-bit element as a 32-bit register whose low byte it is.
pub fn byte(b: &mut Builder, ty: DType, e: Val) -> Val {
    if ty == DType::Bool {
        let (one, zero) = (b.c32(1), b.c32(0));
        return b.selp(e, one, zero);
    }
    e
}
