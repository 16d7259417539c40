//! Arithmetic of `index` values.

use crate::op::BinaryOp;

/// Evaluates a binary op on two `index` values; `None` if the op is not defined on them, the divisor
/// is zero, or the result overflows.
pub fn eval_index(op: BinaryOp, x: i64, y: i64) -> Option<i64> {
    match op {
        BinaryOp::Add => x.checked_add(y),
        BinaryOp::Sub => x.checked_sub(y),
        BinaryOp::Mul => x.checked_mul(y),
        BinaryOp::Div => floor_div(x, y),
        BinaryOp::Rem => floor_div(x, y).map(|q| x - q * y),
        BinaryOp::CeilDiv => floor_div(x, y).map(|q| if q * y == x { q } else { q + 1 }),
        BinaryOp::Min => Some(x.min(y)),
        BinaryOp::Max => Some(x.max(y)),
        BinaryOp::And => Some(x & y),
        BinaryOp::Or => Some(x | y),
        BinaryOp::Xor => Some(x ^ y),
        BinaryOp::Shl => Some(x.wrapping_shl(y as u32)),
        BinaryOp::Shr => Some(x.wrapping_shr(y as u32)),
        BinaryOp::MulHi | BinaryOp::Pow | BinaryOp::CopySign => None,
    }
}

fn floor_div(x: i64, y: i64) -> Option<i64> {
    let q = x.checked_div(y)?;
    Some(if x % y != 0 && (x < 0) != (y < 0) { q - 1 } else { q })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_rounds_towards_minus_infinity_and_up() {
        for (x, y, div, rem, ceil) in
            [(7, 2, 3, 1, 4), (-7, 2, -4, 1, -3), (7, -2, -4, -1, -3), (-7, -2, 3, -1, 4), (6, 3, 2, 0, 2)]
        {
            assert_eq!(eval_index(BinaryOp::Div, x, y), Some(div), "{x} / {y}");
            assert_eq!(eval_index(BinaryOp::Rem, x, y), Some(rem), "{x} % {y}");
            assert_eq!(eval_index(BinaryOp::CeilDiv, x, y), Some(ceil), "{x} ceildiv {y}");
        }
        assert_eq!(eval_index(BinaryOp::Div, 1, 0), None);
        assert_eq!(eval_index(BinaryOp::Div, i64::MIN, -1), None);
    }
}
