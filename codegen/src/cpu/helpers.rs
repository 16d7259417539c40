//! The parts of compiled kernels that are ordinary Rust: sorting of key records, and elementary functions of f64.
//!
//! A record is a key made to order as an unsigned integer, with the element's position in its low part, so an
//! unstable sort of records is a stable sort of elements.

use zellige_ir::numerics::Const;
use zellige_ir::{DType, UnaryOp, eval};

/// The elementary function with position `function` in [`UnaryOp::ALL`], of the f64 with these bits.
pub(crate) extern "C" fn f64_math(function: u64, bits: u64) -> u64 {
    let op = UnaryOp::ALL[function as usize];
    // Only functions that are defined on f64 are lowered to this call.
    eval::unary(op, Const::from_bits(DType::F64, bits)).map_or(0, Const::bits)
}

/// # Safety
/// `records` points to `n` records that nothing else accesses.
pub(crate) unsafe extern "C" fn sort64(records: *mut u64, n: u64) {
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts_mut(records, n as usize) }.sort_unstable();
}

/// # Safety
/// As [`sort64`].
pub(crate) unsafe extern "C" fn sort128(records: *mut [u64; 2], n: u64) {
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts_mut(records, n as usize) }.sort_unstable();
}

/// # Safety
/// As [`sort64`].
pub(crate) unsafe extern "C" fn select64(records: *mut u64, n: u64, k: u64) {
    // SAFETY: the caller's contract.
    select(unsafe { std::slice::from_raw_parts_mut(records, n as usize) }, k as usize);
}

/// # Safety
/// As [`sort64`].
pub(crate) unsafe extern "C" fn select128(records: *mut [u64; 2], n: u64, k: u64) {
    // SAFETY: the caller's contract.
    select(unsafe { std::slice::from_raw_parts_mut(records, n as usize) }, k as usize);
}

/// Moves the `k` smallest to the front, sorted.
fn select<T: Ord>(records: &mut [T], k: usize) {
    if k > 0 && k < records.len() {
        records.select_nth_unstable(k - 1);
    }
    let k = k.min(records.len());
    records[..k].sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn select_sorts_the_smallest_in_front() {
        for k in 0..=5 {
            let mut v = [5u64, 1, 4, 2, 3];
            select(&mut v, k);
            assert_eq!(v[..k], [1, 2, 3, 4, 5][..k]);
        }
    }
}
