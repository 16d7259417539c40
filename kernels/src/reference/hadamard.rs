//! Walsh–Hadamard transform in Sylvester order. May depend on `rayon`.

use rayon::prelude::*;

/// `y = x · H · n^-0.5` for each row of n channels, `H[i][j] = (−1)^popcount(i & j)`, no random
/// signs. Orthogonal and symmetric, so it is its own inverse.
///
/// # Panics
/// If `n` is not a power of two or does not divide the length.
pub fn hadamard(x: &[f32], n: usize) -> Vec<f32> {
    assert!(n.is_power_of_two(), "the transform size {n} is not a power of two");
    assert!(x.len().is_multiple_of(n), "{} elements are not rows of {n}", x.len());
    let scale = 1.0 / (n as f64).sqrt();
    x.par_chunks(n)
        .flat_map_iter(|row| {
            let mut y: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
            let mut half = 1;
            while half < n {
                for i in 0..n {
                    if i & half == 0 {
                        (y[i], y[i + half]) = (y[i] + y[i + half], y[i] - y[i + half]);
                    }
                }
                half *= 2;
            }
            y.into_iter().map(move |y| (y * scale) as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::metrics::max_abs;
    use super::super::testing::uniform;
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(hadamard(&[1.0, 2.0, 3.0, 4.0], 4), [5.0, -1.0, -2.0, 0.0]);
        assert_eq!(hadamard(&[3.5, -1.0], 1), [3.5, -1.0]);
    }

    #[test]
    fn agrees_with_the_matrix() {
        for n in [2usize, 16, 128, 512] {
            let x = uniform(n as u64, 3 * n, 1.0);
            let entry = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let product = |t: usize, j: usize| (0..n).map(|i| f64::from(x[t * n + i]) * entry(i, j)).sum::<f64>();
            let want: Vec<f32> = (0..3 * n).map(|i| (product(i / n, i % n) / (n as f64).sqrt()) as f32).collect();
            assert!(max_abs(&hadamard(&x, n), &want) < 1e-6);
        }
    }

    #[test]
    fn twice_is_the_identity() {
        let x = uniform(1, 4 * 128, 1.0);
        assert!(max_abs(&hadamard(&hadamard(&x, 128), 128), &x) < 1e-6);
    }
}
