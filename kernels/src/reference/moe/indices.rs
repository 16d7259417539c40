//! Small exact operators on expert ids and weights. Depends on nothing.

use super::super::expect_len;

/// How often each of `groups` ids occurs; negative ids are ignored.
pub fn group_count(ids: &[i32], groups: usize) -> Vec<i32> {
    let mut counts = vec![0; groups];
    for &id in ids {
        if let Ok(id) = usize::try_from(id) {
            counts[id] += 1;
        }
    }
    counts
}

/// Load of each expert relative to a balanced one: `f_e = count_e · E / (tokens · aux_top_k)`, in
/// f32 in this order; zeros for no tokens. `ids` is `[tokens, k]`, negative ids ignored.
pub fn aux_fi(ids: &[i32], tokens: usize, experts: usize, aux_top_k: usize) -> Vec<f32> {
    if tokens == 0 {
        return vec![0.0; experts];
    }
    let denominator = (tokens * aux_top_k) as f32;
    group_count(ids, experts).into_iter().map(|count| count as f32 * experts as f32 / denominator).collect()
}

/// `(Σ, w / Σ)` per row of weights `[tokens, k]`, with `Σ = ((1e-20 + w_0) + w_1) + …` in f32.
pub fn normalize_weight(weights: &[f32], tokens: usize, k: usize) -> (Vec<f32>, Vec<f32>) {
    expect_len("weights", weights.len(), &[tokens, k]);
    let sums: Vec<f32> =
        (0..tokens).map(|t| weights[t * k..][..k].iter().fold(1e-20, |sum, weight| sum + weight)).collect();
    let normalized = weights.iter().enumerate().map(|(i, weight)| weight / sums[i / k]).collect();
    (sums, normalized)
}

/// Which experts a rank owns. Experts are numbered over expert-parallel ranks, and consecutive
/// groups of `tp_ranks` of those form one data-parallel unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertRanks {
    /// Experts over all ranks.
    pub experts: usize,
    /// Expert-parallel ranks.
    pub ep_ranks: usize,
    /// Tensor-parallel ranks.
    pub tp_ranks: usize,
    /// This tensor-parallel rank.
    pub tp_rank: usize,
}

/// Keeps the ids whose expert-parallel rank is `tp_rank` modulo `tp_ranks`, renumbered so that the
/// kept experts are contiguous; the others become −1.
pub fn mask_indices_by_tp(ids: &[i32], ranks: ExpertRanks) -> Vec<i32> {
    let per_rank = ranks.experts / ranks.ep_ranks;
    let mask = |&id: &i32| match usize::try_from(id) {
        Ok(id) if id / per_rank % ranks.tp_ranks == ranks.tp_rank => {
            // Rank r = u · tp_ranks + tp_rank keeps place u among the kept ranks.
            let unit = id / per_rank / ranks.tp_ranks;
            (unit * per_rank + id % per_rank) as i32
        }
        Ok(_) | Err(_) => -1,
    };
    ids.iter().map(mask).collect()
}

/// Per row of `[tokens, k]`, replaces every repetition of an earlier id by −1.
pub fn unique_group_indices(ids: &[i32], tokens: usize, k: usize) -> Vec<i32> {
    expect_len("ids", ids.len(), &[tokens, k]);
    let unique = |i: usize| if ids[i / k * k..i].contains(&ids[i]) { -1 } else { ids[i] };
    (0..tokens * k).map(unique).collect()
}

/// Scores of groups, the sum of each group's `sum_top` (1 or 2) largest, from `[tokens, groups,
/// per_group]`, and the ids `[tokens, keep]` of the best groups, best first, smaller id on ties.
/// The two largest are added in f32, larger first.
pub fn top_groups(scores: &[f32], tokens: usize, groups: usize, sum_top: usize, keep: usize) -> (Vec<f32>, Vec<i32>) {
    let per_group = scores.len() / (tokens * groups).max(1);
    expect_len("scores", scores.len(), &[tokens, groups, per_group]);
    let sum = |group: &[f32]| {
        let mut sorted = group.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted.iter().take(sum_top).copied().reduce(|a, b| a + b).unwrap_or(0.0)
    };
    let sums: Vec<f32> = scores.chunks(per_group.max(1)).map(sum).collect();
    let ids = super::gate::top_k(&sums, tokens, groups, keep);
    (sums, ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting() {
        assert_eq!(group_count(&[0, 2, -1, 2, 2, -1], 4), [1, 0, 3, 0]);
        // 2 tokens, 3 slots: f = count · 4 / 6.
        assert_eq!(aux_fi(&[0, 2, -1, 2, 2, -1], 2, 4, 3), [4.0 / 6.0, 0.0, 2.0, 0.0]);
        assert_eq!(aux_fi(&[], 0, 2, 3), [0.0, 0.0]);
    }

    #[test]
    fn normalisation() {
        let (sums, weights) = normalize_weight(&[1.0, 3.0, 0.0, 0.0], 2, 2);
        assert_eq!(sums, [4.0, 1e-20]);
        assert_eq!(weights, [0.25, 0.75, 0.0, 0.0]);
    }

    #[test]
    fn masking_by_rank() {
        // 8 experts on 4 ranks, 2 TP ranks: rank pairs {0,1} and {2,3}. TP rank 1 owns
        // experts 2,3 and 6,7, renumbered 0..4.
        let ranks = ExpertRanks { experts: 8, ep_ranks: 4, tp_ranks: 2, tp_rank: 1 };
        assert_eq!(mask_indices_by_tp(&[0, 1, 2, 3, 4, 5, 6, 7, -1], ranks), [-1, -1, 0, 1, -1, -1, 2, 3, -1]);
        let first = ExpertRanks { tp_rank: 0, ..ranks };
        assert_eq!(mask_indices_by_tp(&[0, 1, 2, 4, 5, 7], first), [0, 1, -1, 2, 3, -1]);
        // The published formula: v − tp·per_gpu, less (per_dp − per_gpu) per unit.
        for tp_rank in 0..4 {
            let ranks = ExpertRanks { experts: 64, ep_ranks: 16, tp_ranks: 4, tp_rank };
            let (per_gpu, per_dp) = (4i32, 16i32);
            for id in 0..64i32 {
                let shifted = id - tp_rank as i32 * per_gpu;
                let owned = (id / per_gpu) % 4 == tp_rank as i32 && shifted >= 0;
                let want = if owned { shifted - shifted / per_dp * (per_dp - per_gpu) } else { -1 };
                assert_eq!(mask_indices_by_tp(&[id], ranks), [want]);
            }
        }
    }

    #[test]
    fn repetitions_go() {
        assert_eq!(unique_group_indices(&[3, 1, 3, 3, 1, 1, 1, 2], 2, 4), [3, 1, -1, -1, 1, -1, -1, 2]);
    }

    #[test]
    fn groups_by_their_two_best() {
        let scores = [1.0, 5.0, 2.0, 4.0, 4.0, 0.0, 3.0, 3.0, 3.0];
        let (sums, ids) = top_groups(&scores, 1, 3, 2, 2);
        assert_eq!(sums, [7.0, 8.0, 6.0]);
        assert_eq!(ids, [1, 0]);
        assert_eq!(top_groups(&scores, 1, 3, 1, 3).1, [0, 1, 2]);
    }
}
