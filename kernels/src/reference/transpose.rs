//! Batched transpose. Depends on nothing.

use super::expect_len;

/// Transposes each of `batch` matrices `[rows, cols]` to `[cols, rows]`.
pub fn batched_transpose<E: Copy>(x: &[E], batch: usize, rows: usize, cols: usize) -> Vec<E> {
    expect_len("x", x.len(), &[batch, rows, cols]);
    let mut y = Vec::with_capacity(x.len());
    for b in 0..batch {
        for col in 0..cols {
            y.extend((0..rows).map(|row| x[(b * rows + row) * cols + col]));
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_and_twice() {
        let x = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let y = batched_transpose(&x, 2, 2, 3);
        assert_eq!(y, [1, 4, 2, 5, 3, 6, 7, 10, 8, 11, 9, 12]);
        assert_eq!(batched_transpose(&y, 2, 3, 2), x);
    }
}
