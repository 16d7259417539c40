//! Expert selection and weights. May depend on `rayon`.

use super::super::expect_len;
use rayon::prelude::*;

/// How a router logit becomes a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// `sqrt(softplus(x))`, softplus taken as x above 20.
    SqrtSoftplus,
    /// Logistic function.
    Sigmoid,
    /// Softmax over the experts.
    Softmax,
}

/// A routing problem.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// Router logits `[tokens, experts]`, finite.
    pub logits: &'a [f32],
    /// Added to the score for the choice only, `[experts]`.
    pub bias: Option<&'a [f32]>,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Score function.
    pub scoring: Scoring,
    /// Factor on the normalised weights.
    pub route_scale: f32,
}

/// Chosen experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Expert ids `[tokens, top_k]`, best first.
    pub ids: Vec<i32>,
    /// Weights `[tokens, top_k]`.
    pub weights: Vec<f32>,
}

impl Gate<'_> {
    /// Scores `[tokens, experts]`, evaluated in f64 and rounded once.
    pub fn scores(&self) -> Vec<f32> {
        expect_len("logits", self.logits.len(), &[self.tokens, self.experts]);
        self.logits.par_chunks(self.experts.max(1)).flat_map_iter(|row| score_row(row, self.scoring)).collect()
    }

    /// What the choice is made by, `[tokens, experts]`: score plus bias in f32; for
    /// [`Scoring::Softmax`], whose order is that of the logits, logit plus bias.
    pub fn keys(&self) -> Vec<f32> {
        let base = match self.scoring {
            Scoring::SqrtSoftplus | Scoring::Sigmoid => self.scores(),
            Scoring::Softmax => self.logits.to_vec(),
        };
        let Some(bias) = self.bias else { return base };
        expect_len("bias", bias.len(), &[self.experts]);
        base.iter().enumerate().map(|(i, key)| key + bias[i % self.experts]).collect()
    }

    /// Top-k routing.
    pub fn route(&self) -> Routing {
        let ids = top_k(&self.keys(), self.tokens, self.experts, self.top_k);
        let weights = self.weights_of(&ids);
        Routing { ids, weights }
    }

    /// Hash routing: the ids of a token are row `token_id` of `tid2eid` `[vocab, top_k]`; weights
    /// come from the scores as usual, the bias plays no part.
    pub fn route_by_hash(&self, token_ids: &[i32], tid2eid: &[i32]) -> Routing {
        expect_len("token_ids", token_ids.len(), &[self.tokens]);
        let row = |&id: &i32| tid2eid[id as usize * self.top_k..][..self.top_k].to_vec();
        let ids: Vec<i32> = token_ids.iter().flat_map(row).collect();
        let weights = self.weights_of(&ids);
        Routing { ids, weights }
    }

    /// `score_j / Σ score · route_scale` in f32; the sum starts at 1e-20 and runs in slot order.
    fn weights_of(&self, ids: &[i32]) -> Vec<f32> {
        let scores = self.scores();
        let chosen: Vec<f32> =
            ids.iter().enumerate().map(|(i, &id)| scores[i / self.top_k * self.experts + id as usize]).collect();
        let (_, normalized) = super::indices::normalize_weight(&chosen, self.tokens, self.top_k);
        normalized.iter().map(|w| w * self.route_scale).collect()
    }
}

pub(super) fn score_row(logits: &[f32], scoring: Scoring) -> Vec<f32> {
    let softplus = |x: f64| if x > 20.0 { x } else { x.exp().ln_1p() };
    match scoring {
        Scoring::SqrtSoftplus => logits.iter().map(|&x| softplus(f64::from(x)).sqrt() as f32).collect(),
        Scoring::Sigmoid => logits.iter().map(|&x| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32).collect(),
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f64> = logits.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.iter().map(|e| (e / sum) as f32).collect()
        }
    }
}

/// Ids of the k largest of each row of keys `[rows, width]`, largest first; of equal keys the
/// smaller id comes first.
pub fn top_k(keys: &[f32], rows: usize, width: usize, k: usize) -> Vec<i32> {
    expect_len("keys", keys.len(), &[rows, width]);
    assert!(k <= width, "{k} of {width} cannot be chosen");
    keys.par_chunks(width.max(1))
        .flat_map_iter(|row| {
            let mut order: Vec<i32> = (0..width as i32).collect();
            // The sort is stable, so equal keys stay in ascending id order.
            order.sort_by(|&a, &b| row[b as usize].partial_cmp(&row[a as usize]).unwrap_or(std::cmp::Ordering::Equal));
            order.into_iter().take(k)
        })
        .collect()
}

/// A choice that is not a top-k.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum BadChoice {
    /// An id is out of range or occurs twice.
    #[error("row {row}: id {id} is out of range or chosen twice")]
    Invalid {
        /// Row of the choice.
        row: usize,
        /// The offending id.
        id: i32,
    },
    /// An unchosen key is larger than a chosen one.
    #[error("row {row}: chosen key {chosen} is below the unchosen key {unchosen}")]
    NotLargest {
        /// Row of the choice.
        row: usize,
        /// Smallest chosen key.
        chosen: f32,
        /// Largest key not chosen.
        unchosen: f32,
    },
}

/// Checks a choice `[rows, k]` made from keys that may differ from `keys` by rounding: ids are
/// distinct and in range, and no unchosen key exceeds a chosen one by more than `slack`.
pub fn check_choice(
    keys: &[f32],
    ids: &[i32],
    rows: usize,
    width: usize,
    k: usize,
    slack: f32,
) -> Result<(), BadChoice> {
    expect_len("keys", keys.len(), &[rows, width]);
    expect_len("ids", ids.len(), &[rows, k]);
    for row in 0..rows {
        let (keys, ids) = (&keys[row * width..][..width], &ids[row * k..][..k]);
        let mut chosen = vec![false; width];
        for &id in ids {
            match usize::try_from(id).ok().and_then(|id| chosen.get_mut(id)) {
                Some(seen) if !*seen => *seen = true,
                Some(_) | None => return Err(BadChoice::Invalid { row, id }),
            }
        }
        let of = |which: bool| keys.iter().zip(&chosen).filter(move |&(_, &c)| c == which).map(|(&key, _)| key);
        let smallest = of(true).fold(f32::INFINITY, f32::min);
        let largest = of(false).fold(f32::NEG_INFINITY, f32::max);
        if largest > smallest + slack {
            return Err(BadChoice::NotLargest { row, chosen: smallest, unchosen: largest });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::uniform;
    use super::*;

    fn gate<'a>(logits: &'a [f32], experts: usize, top_k: usize, scoring: Scoring) -> Gate<'a> {
        let tokens = logits.len() / experts;
        Gate { logits, bias: None, tokens, experts, top_k, scoring, route_scale: 1.0 }
    }

    #[test]
    fn scores_by_hand() {
        let ln3 = 3f32.ln();
        assert_eq!(score_row(&[0.0], Scoring::SqrtSoftplus), [std::f64::consts::LN_2.sqrt() as f32]);
        assert_eq!(score_row(&[25.0], Scoring::SqrtSoftplus), [5.0]);
        assert!((score_row(&[ln3], Scoring::Sigmoid)[0] - 0.75).abs() < 1e-7);
        assert!((score_row(&[ln3, 0.0], Scoring::Softmax)[0] - 0.75).abs() < 1e-7);
    }

    #[test]
    fn ties_take_the_smaller_id() {
        assert_eq!(top_k(&[1.0, 3.0, 3.0, 1.0, 2.0], 1, 5, 4), [1, 2, 4, 0]);
        assert_eq!(top_k(&[0.0, -0.0, 0.0, f32::NEG_INFINITY], 1, 4, 3), [0, 1, 2]);
    }

    #[test]
    fn bias_moves_the_choice_but_not_the_weights() {
        let (logits, bias) = ([25.0, 36.0, 49.0, 64.0], [10.0, 0.0, 0.0, 0.0]);
        let base = Gate { route_scale: 2.0, ..gate(&logits, 4, 2, Scoring::SqrtSoftplus) };
        assert_eq!(base.route(), Routing { ids: vec![3, 2], weights: vec![8.0 / 15.0 * 2.0, 7.0 / 15.0 * 2.0] });
        let biased = Gate { bias: Some(&bias), ..base }.route();
        assert_eq!(biased, Routing { ids: vec![0, 3], weights: vec![5.0 / 13.0 * 2.0, 8.0 / 13.0 * 2.0] });
    }

    #[test]
    fn hash_routing_reads_the_table() {
        let logits = [25.0, 36.0, 49.0, 25.0, 25.0, 25.0];
        let table = [0, 1, 2, 1, 1, 0];
        let out = gate(&logits, 3, 2, Scoring::SqrtSoftplus).route_by_hash(&[1, 2], &table);
        assert_eq!(out.ids, [2, 1, 1, 0]);
        assert_eq!(out.weights, [7.0 / 13.0, 6.0 / 13.0, 0.5, 0.5]);
    }

    #[test]
    fn weights_sum_to_the_route_scale() {
        let logits = uniform(1, 50 * 256, 4.0);
        for scoring in [Scoring::SqrtSoftplus, Scoring::Sigmoid, Scoring::Softmax] {
            let gate = Gate { route_scale: 1.5, ..gate(&logits, 256, 6, scoring) };
            let out = gate.route();
            for weights in out.weights.chunks(6) {
                assert!((weights.iter().sum::<f32>() - 1.5).abs() < 1e-5);
                assert!(weights.windows(2).all(|pair| pair[0] >= pair[1]));
            }
            assert_eq!(check_choice(&gate.keys(), &out.ids, 50, 256, 6, 0.0), Ok(()));
        }
    }

    #[test]
    fn bad_choices_are_found() {
        let keys = [1.0, 2.0, 3.0];
        assert_eq!(check_choice(&keys, &[2, 1], 1, 3, 2, 0.0), Ok(()));
        assert_eq!(check_choice(&keys, &[2, 2], 1, 3, 2, 0.0), Err(BadChoice::Invalid { row: 0, id: 2 }));
        assert_eq!(check_choice(&keys, &[-1, 2], 1, 3, 2, 0.0), Err(BadChoice::Invalid { row: 0, id: -1 }));
        let swapped = Err(BadChoice::NotLargest { row: 0, chosen: 1.0, unchosen: 2.0 });
        assert_eq!(check_choice(&keys, &[2, 0], 1, 3, 2, 0.5), swapped);
        assert_eq!(check_choice(&keys, &[2, 0], 1, 3, 2, 1.0), Ok(()));
    }
}
