//! The full router: groups, masked and fixed tokens, shared experts, replicas, parallel ranks.
//!
//! [`Gate`] with every option of a production router. May depend on [`super::gate`] and
//! [`super::indices`].

use super::super::expect_len;
use super::gate::{Gate, Routing, top_k};
use super::indices::{ExpertRanks, mask_indices_by_tp, normalize_weight, top_groups};

/// Physical copies of logical experts.
#[derive(Clone, Copy, Debug)]
pub struct Replicas<'a> {
    /// Physical id of each copy, `[logical, columns]`.
    pub to_physical: &'a [i32],
    /// Copies a logical expert has room for, plus one.
    pub columns: usize,
    /// Copies in use, `[logical]`.
    pub count: &'a [i32],
    /// This expert-parallel rank; with the token it chooses the copy.
    pub ep_rank: usize,
}

/// Options of [`route`]. [`Options::default`] makes it [`Gate::route`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// `(groups, kept)`: only experts of the `kept` groups with the largest sum of their two best
    /// keys can be chosen.
    pub groups: Option<(usize, usize)>,
    /// Tokens to route, `[tokens]`; the others get ids −1 and weights 0.
    pub live: Option<&'a [bool]>,
    /// `(which, ids)`: tokens whose choice is given, `[tokens]`, and the ids `[tokens, top_k]`.
    pub fixed: Option<(&'a [bool], &'a [i32])>,
    /// Shared experts appended after the chosen ones, with ids from `experts` and weight 1.
    pub shared: usize,
    /// Logical ids become physical ones: copy `(ep_rank + token · 23333) mod count`.
    pub replicas: Option<Replicas<'a>>,
    /// Keeps the ids of this rank only, renumbered. Its `experts` counts every physical expert.
    pub ranks: Option<ExpertRanks>,
}

/// Result of [`route`].
#[derive(Clone, Debug, PartialEq)]
pub struct FullRouting {
    /// Ids after every mapping, `[tokens, top_k + shared]`, and weights.
    pub routing: Routing,
    /// Chosen logical ids, `[tokens, top_k]`; −1 for tokens not routed.
    pub logical: Vec<i32>,
}

/// Routes with options. A fixed id of −1 stays and weighs as expert 0's score in the sum, as
/// upstream; ids themselves are exact.
pub fn route(gate: &Gate<'_>, options: &Options<'_>) -> FullRouting {
    let Gate { tokens, experts, top_k: k, route_scale, .. } = *gate;
    let mut keys = gate.keys();
    if let Some((groups, kept)) = options.groups {
        assert!(experts.is_multiple_of(groups), "{experts} experts do not form {groups} equal groups");
        let (_, best) = top_groups(&keys, tokens, groups, 2, kept);
        let per_group = experts / groups;
        for (i, key) in keys.iter_mut().enumerate() {
            let (token, group) = (i / experts, (i % experts / per_group) as i32);
            if !best[token * kept..][..kept].contains(&group) {
                *key = f32::NEG_INFINITY;
            }
        }
    }
    let mut logical = top_k(&keys, tokens, experts, k);
    if let Some((which, ids)) = options.fixed {
        expect_len("fixed", which.len(), &[tokens]);
        expect_len("fixed ids", ids.len(), &[tokens, k]);
        for token in (0..tokens).filter(|&token| which[token]) {
            logical[token * k..][..k].copy_from_slice(&ids[token * k..][..k]);
        }
    }
    let scores = gate.scores();
    let score = |(i, &id): (usize, &i32)| scores[i / k * experts + usize::try_from(id).unwrap_or(0)];
    let chosen: Vec<f32> = logical.iter().enumerate().map(score).collect();
    let (_, normalized) = normalize_weight(&chosen, tokens, k);

    let mut routing = Routing { ids: Vec::new(), weights: Vec::new() };
    for token in 0..tokens {
        let live = options.live.is_none_or(|live| live[token]);
        if !live {
            logical[token * k..][..k].fill(-1);
        }
        for slot in 0..k + options.shared {
            let (id, weight) = match slot.checked_sub(k) {
                _ if !live => (-1, 0.0),
                None => (logical[token * k + slot], normalized[token * k + slot] * route_scale),
                Some(shared) => ((experts + shared) as i32, 1.0),
            };
            routing.ids.push(physical(id, token, options.replicas.as_ref()));
            routing.weights.push(weight);
        }
    }
    if let Some(ranks) = options.ranks {
        routing.ids = mask_indices_by_tp(&routing.ids, ranks);
    }
    FullRouting { routing, logical }
}

fn physical(id: i32, token: usize, replicas: Option<&Replicas<'_>>) -> i32 {
    match (usize::try_from(id), replicas) {
        (Ok(id), Some(replicas)) => {
            let copy = (replicas.ep_rank + token * 23333) % replicas.count[id] as usize;
            replicas.to_physical[id * replicas.columns + copy]
        }
        (Ok(_), None) | (Err(_), _) => id,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::uniform;
    use super::super::gate::Scoring;
    use super::*;

    const TOKENS: usize = 20;

    fn gate(logits: &[f32]) -> Gate<'_> {
        let (experts, top_k) = (16, 3);
        Gate { logits, bias: None, tokens: TOKENS, experts, top_k, scoring: Scoring::SqrtSoftplus, route_scale: 2.5 }
    }

    #[test]
    fn without_options_it_is_the_plain_gate() {
        let logits = uniform(1, TOKENS * 16, 3.0);
        let out = route(&gate(&logits), &Options::default());
        assert_eq!(out.routing, gate(&logits).route());
        assert_eq!(out.logical, out.routing.ids);
        let all_groups = Options { groups: Some((4, 4)), ..Options::default() };
        assert_eq!(route(&gate(&logits), &all_groups), out);
    }

    #[test]
    fn groups_are_chosen_by_their_two_best() {
        // Group 0 has the single best expert, group 1 the best pair.
        let mut logits = vec![-5.0; TOKENS * 16];
        for row in logits.chunks_mut(16) {
            row[0] = 9.0;
            (row[4], row[5]) = (7.0, 8.0);
        }
        let out = route(&gate(&logits), &Options { groups: Some((4, 1)), ..Options::default() });
        assert_eq!(out.logical[..3], [5, 4, 6]);
    }

    #[test]
    fn masked_fixed_and_shared() {
        let logits = uniform(2, TOKENS * 16, 3.0);
        let mut live = [true; TOKENS];
        live[1] = false;
        let mut which = [false; TOKENS];
        which[0] = true;
        let ids = [7, 3, 11].repeat(TOKENS);
        let options = Options { live: Some(&live), fixed: Some((&which, &ids)), shared: 1, ..Options::default() };
        let out = route(&gate(&logits), &options);
        assert_eq!(out.routing.ids[..8], [7, 3, 11, 16, -1, -1, -1, -1]);
        assert_eq!(out.routing.weights[3..8], [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert!((out.routing.weights[..3].iter().sum::<f32>() - 2.5).abs() < 1e-5);
        assert_eq!(out.logical[..6], [7, 3, 11, -1, -1, -1]);
        let scores = gate(&logits).scores();
        let want = scores[3] / (scores[7] + scores[3] + scores[11]) * 2.5;
        assert!((out.routing.weights[1] - want).abs() < 1e-6);
        assert_eq!(out.routing.ids[8..11], gate(&logits).route().ids[6..9]);
    }

    #[test]
    fn replicas_alternate_and_ranks_keep_their_own() {
        let logits = uniform(3, TOKENS * 16, 3.0);
        // Expert e has copies 2e and 2e + 1.
        let table: Vec<i32> = (0..32).collect();
        let replicas = Replicas { to_physical: &table, columns: 2, count: &[2; 16], ep_rank: 1 };
        let options = Options { replicas: Some(replicas), ..Options::default() };
        let out = route(&gate(&logits), &options);
        for (i, (&id, &logical)) in out.routing.ids.iter().zip(&out.logical).enumerate() {
            assert_eq!(id, 2 * logical + ((1 + i / 3 * 23333) % 2) as i32);
        }
        let ranks = ExpertRanks { experts: 32, ep_ranks: 8, tp_ranks: 2, tp_rank: 1 };
        let local = route(&gate(&logits), &Options { ranks: Some(ranks), ..options });
        assert_eq!(local.routing.ids, mask_indices_by_tp(&out.routing.ids, ranks));
        assert_eq!(local.routing.weights, out.routing.weights);
    }
}
