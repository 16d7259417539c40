//! Counter-based random numbers: the same bits for the same (seed, counter), on every device, in any order.
//!
//! Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

use crate::Expr;

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Four random words for a counter and a key.
#[track_caller]
pub fn philox(counter: [Expr<u32>; 4], key: [Expr<u32>; 2]) -> [Expr<u32>; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for round in 0..10 {
        if round > 0 {
            k0 = k0 + W0;
            k1 = k1 + W1;
        }
        let (hi0, lo0) = (c0.mul_hi(M0), c0 * M0);
        let (hi1, lo1) = (c2.mul_hi(M1), c2 * M1);
        (c0, c1, c2, c3) = (hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0);
    }
    [c0, c1, c2, c3]
}

/// A uniform number in [0, 1) from a random word: its upper 24 bits.
#[track_caller]
pub fn uniform(word: Expr<u32>) -> Expr<f32> {
    (word >> 8u32).cast::<f32>() * (1.0 / 16_777_216.0)
}
