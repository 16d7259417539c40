//! Embedding lookup and its gradient. Depends on nothing.

use super::expect_len;

/// Rows `ids` of the table `[vocab, dim]`; a negative id gives zeros.
pub fn embedding(table: &[f32], ids: &[i32], dim: usize) -> Vec<f32> {
    let row = |&id: &i32| -> Vec<f32> {
        usize::try_from(id).map_or(vec![0.0; dim], |id| table[id * dim..(id + 1) * dim].to_vec())
    };
    ids.iter().flat_map(row).collect()
}

/// Adds row t of `d_out` `[ids.len(), dim]` to row `ids[t]` of a copy of `grad` `[vocab, dim]`; negative ids are skipped.
pub fn embedding_backward(grad: &[f32], ids: &[i32], d_out: &[f32], dim: usize) -> Vec<f32> {
    expect_len("d_out", d_out.len(), &[ids.len(), dim]);
    let mut sums: Vec<f64> = grad.iter().map(|&g| g.into()).collect();
    for (t, &id) in ids.iter().enumerate() {
        let Ok(id) = usize::try_from(id) else { continue };
        for c in 0..dim {
            sums[id * dim + c] += f64::from(d_out[t * dim + c]);
        }
    }
    sums.into_iter().map(|s| s as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let table = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(embedding(&table, &[1, -1, 0, 1], 2), [3.0, 4.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
        let d_out = [1.0, 10.0, 5.0, 5.0, 2.0, 20.0, 3.0, 30.0];
        assert_eq!(embedding_backward(&table, &[1, -1, 0, 1], &d_out, 2), [3.0, 22.0, 7.0, 44.0]);
    }
}
