//! Conversion of many elements between their bit patterns and numbers, on all cores.

use rayon::prelude::*;
use zellige_ir::DType;
use zellige_ir::numerics::Const;

/// Elements converted by one task; even, so that no byte of a packed type is shared.
pub(super) const CHUNK: usize = 1 << 14;

/// A floating-point type that elements are converted to.
pub(super) trait Number: Copy + Send + Sync {
    fn of(c: Const) -> Self;
}

impl Number for f32 {
    fn of(c: Const) -> f32 {
        c.as_f64() as f32
    }
}

impl Number for f64 {
    fn of(c: Const) -> f64 {
        c.as_f64()
    }
}

/// The elements in `bytes`, which lie one after another.
pub(super) fn decode<N: Number>(dtype: DType, bytes: &[u8]) -> Vec<N> {
    let of = |bits: u64| N::of(Const::from_bits(dtype, bits));
    match dtype.bits() {
        4 => {
            let table: Vec<N> = (0..16).map(of).collect();
            bytes
                .par_chunks(CHUNK)
                .flat_map_iter(|c| c.iter().flat_map(|b| [b & 0xf, b >> 4]).map(|c| table[usize::from(c)]))
                .collect()
        }
        8 => {
            let table: Vec<N> = (0..=0xff).map(of).collect();
            bytes.par_iter().map(|&b| table[usize::from(b)]).collect()
        }
        16 if bytes.len() >= 1 << 18 => {
            let table: Vec<N> = (0..=0xffff).map(of).collect();
            words(bytes, |w| table[usize::from(u16::from_ne_bytes(w))])
        }
        16 => words(bytes, |w| of(u16::from_ne_bytes(w).into())),
        32 => words(bytes, |w| of(u32::from_ne_bytes(w).into())),
        _ => words(bytes, |w| of(u64::from_ne_bytes(w))),
    }
}

/// Every `S` bytes as a number.
fn words<const S: usize, N: Number>(bytes: &[u8], of: impl Fn([u8; S]) -> N + Sync) -> Vec<N> {
    let (words, rest) = bytes.as_chunks::<S>();
    debug_assert!(rest.is_empty(), "{} bytes are not elements of {S}", bytes.len());
    words.par_iter().map(|&w| of(w)).collect()
}

/// Writes `values`, converted as [`Const::from_f64`] does, one after another into `bytes`.
pub(super) fn encode(dtype: DType, values: &[f64], bytes: &mut [u8]) {
    let bits = |v: f64| Const::from_f64(dtype, v).bits();
    match dtype.bits() {
        4 => {
            for (byte, pair) in bytes.iter_mut().zip(values.chunks(2)) {
                *byte = pair.iter().rev().fold(0, |byte, &v| byte << 4 | bits(v) as u8);
            }
        }
        8 => bytes.iter_mut().zip(values).for_each(|(byte, &v)| *byte = bits(v) as u8),
        16 => store(bytes, values, |v| (bits(v) as u16).to_ne_bytes()),
        32 => store(bytes, values, |v| (bits(v) as u32).to_ne_bytes()),
        _ => store(bytes, values, |v| bits(v).to_ne_bytes()),
    }
}

fn store<const S: usize>(bytes: &mut [u8], values: &[f64], word: impl Fn(f64) -> [u8; S]) {
    let (words, _) = bytes.as_chunks_mut::<S>();
    words.iter_mut().zip(values).for_each(|(w, &v)| *w = word(v));
}

/// Fills `bytes` with copies of one element.
pub(super) fn fill(dtype: DType, bits: u64, bytes: &mut [u8]) {
    let element = match dtype.bits() {
        4 => vec![bits as u8 & 0xf | (bits as u8) << 4],
        n => bits.to_le_bytes()[..n / 8].to_vec(),
    };
    let mut block = element.repeat(CHUNK / element.len());
    if cfg!(target_endian = "big") {
        block.chunks_mut(element.len()).for_each(<[u8]>::reverse);
    }
    bytes.par_chunks_mut(block.len()).for_each(|chunk| chunk.copy_from_slice(&block[..chunk.len()]));
}
