//! Assignment of (token, slot) pairs to rows of an expert-sorted, padded buffer. Depends on
//! nothing.

use super::super::expect_len;

/// The maps between (token, slot) pairs and expanded rows ("positions").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusedMapping {
    /// Expert of each position, −1 for padding.
    pub pos_to_expert: Vec<i32>,
    /// Token of each position, −1 for padding.
    pub pos_to_token: Vec<i32>,
    /// `token · k + slot` of each position, −1 for padding.
    pub pos_to_token_topk: Vec<i32>,
    /// Position of each pair, `[tokens, k]`, −1 where the id is negative.
    pub token_topk_to_pos: Vec<i32>,
    /// First position of each expert.
    pub expert_start: Vec<i32>,
    /// One past the last position of each expert, padding included.
    pub expert_end: Vec<i32>,
    /// `expert_end − expert_start`: the expert's count rounded up to the alignment.
    pub tokens_per_expert: Vec<i32>,
}

/// Positions a mapping needs: each expert's count rounded up to `alignment`, summed.
pub fn positions_needed(ids: &[i32], experts: usize, alignment: usize) -> usize {
    let counts = super::indices::group_count(ids, experts);
    counts.iter().map(|&count| (count as usize).next_multiple_of(alignment)).sum()
}

/// Builds the mapping of ids `[tokens, k]`.
///
/// Experts come in ascending order; within one, positions follow ascending (token, slot), so the
/// result is a function of the ids alone. `positions` is the length of the position maps, at least
/// [`positions_needed`]; the surplus is padding.
pub fn fused_mapping(
    ids: &[i32],
    tokens: usize,
    k: usize,
    experts: usize,
    alignment: usize,
    positions: usize,
) -> FusedMapping {
    expect_len("ids", ids.len(), &[tokens, k]);
    let needed = positions_needed(ids, experts, alignment);
    assert!(needed <= positions, "{needed} positions are needed but {positions} were given");
    let mut map = FusedMapping {
        pos_to_expert: vec![-1; positions],
        pos_to_token: vec![-1; positions],
        pos_to_token_topk: vec![-1; positions],
        token_topk_to_pos: vec![-1; tokens * k],
        expert_start: Vec::new(),
        expert_end: Vec::new(),
        tokens_per_expert: Vec::new(),
    };
    let mut pairs_of_expert = vec![Vec::new(); experts];
    for (pair, &id) in ids.iter().enumerate() {
        if let Ok(expert) = usize::try_from(id) {
            pairs_of_expert[expert].push(pair);
        }
    }
    let mut start = 0;
    for (expert, pairs) in pairs_of_expert.iter().enumerate() {
        for (i, &pair) in pairs.iter().enumerate() {
            let pos = start + i;
            map.pos_to_expert[pos] = expert as i32;
            map.pos_to_token[pos] = (pair / k) as i32;
            map.pos_to_token_topk[pos] = pair as i32;
            map.token_topk_to_pos[pair] = pos as i32;
        }
        let aligned = pairs.len().next_multiple_of(alignment);
        map.expert_start.push(start as i32);
        start += aligned;
        map.expert_end.push(start as i32);
        map.tokens_per_expert.push(aligned as i32);
    }
    map
}

/// The expert e of each of `positions` rows with `starts[e] <= p < ends[e]`; −1 where there is none.
pub fn expert_of_rows(starts: &[i32], ends: &[i32], positions: usize) -> Vec<i32> {
    let of = |p: i32| starts.iter().zip(ends).position(|(&start, &end)| start <= p && p < end);
    (0..positions as i32).map(|p| of(p).map_or(-1, |e| e as i32)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::integers;
    use super::*;

    #[test]
    fn by_hand() {
        // 3 tokens, 2 slots, 3 experts, alignment 2: expert 0 gets pairs 1, 2, 5; expert 2 pair 0.
        let map = fused_mapping(&[2, 0, 0, -1, -1, 0], 3, 2, 3, 2, 8);
        assert_eq!(map.tokens_per_expert, [4, 0, 2]);
        assert_eq!(map.expert_start, [0, 4, 4]);
        assert_eq!(map.expert_end, [4, 4, 6]);
        assert_eq!(map.pos_to_expert, [0, 0, 0, -1, 2, -1, -1, -1]);
        assert_eq!(map.pos_to_token, [0, 1, 2, -1, 0, -1, -1, -1]);
        assert_eq!(map.pos_to_token_topk, [1, 2, 5, -1, 0, -1, -1, -1]);
        assert_eq!(map.token_topk_to_pos, [4, 0, 1, -1, -1, 2]);
    }

    #[test]
    fn maps_are_inverse_and_sorted() {
        let (tokens, k, experts) = (200, 6, 72);
        let ids = integers(1, tokens * k, -1..experts as i32);
        for alignment in [1, 16, 64, 128] {
            let positions = positions_needed(&ids, experts, alignment);
            let map = fused_mapping(&ids, tokens, k, experts, alignment, positions);
            assert_eq!(positions, map.expert_end[experts - 1] as usize);
            for (pair, &pos) in map.token_topk_to_pos.iter().enumerate() {
                assert_eq!(pos < 0, ids[pair] < 0);
                if pos >= 0 {
                    assert_eq!(map.pos_to_token_topk[pos as usize], pair as i32);
                    assert_eq!(map.pos_to_expert[pos as usize], ids[pair]);
                    assert_eq!(map.pos_to_token[pos as usize], (pair / k) as i32);
                }
            }
            for expert in 0..experts {
                let range = map.expert_start[expert] as usize..map.expert_end[expert] as usize;
                assert!(range.start.is_multiple_of(alignment));
                let live: Vec<i32> = map.pos_to_token_topk[range].iter().copied().filter(|&p| p >= 0).collect();
                assert!(live.is_sorted());
            }
        }
    }

    #[test]
    fn no_tokens() {
        let map = fused_mapping(&[], 0, 6, 4, 128, 0);
        assert_eq!(map.tokens_per_expert, [0; 4]);
        assert!(map.pos_to_expert.is_empty());
    }
}
