//! Contents of arguments.

use zellige_ir::DType;
use zellige_ir::interp::TensorArg;

/// The next number of a sequence (SplitMix64, Steele et al. 2014).
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A tensor of eighths between -8 and 8, integers between -100 and 100 (0 and 100 if unsigned), or small powers of two.
/// Eighths stay eighths in every format, so that sums of a few thousand products are exact in f32.
pub fn tensor(dtype: DType, shape: &[usize], state: &mut u64) -> TensorArg {
    let len = shape.iter().product();
    let values: Vec<f64> = (0..len).map(|_| value(dtype, next(state))).collect();
    TensorArg::from_f64(dtype, shape, &values)
}

fn value(dtype: DType, random: u64) -> f64 {
    let below = |n: u64| (random % n) as f64;
    match dtype {
        DType::Bool => below(2),
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => below(101),
        DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::Index => below(201) - 100.0,
        DType::E8M0 => (below(9) - 4.0).exp2(),
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 | DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 => {
            (below(129) - 64.0) / 8.0
        }
    }
}
