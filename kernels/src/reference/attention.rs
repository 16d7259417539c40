//! Dense attention forward: grouped heads, causal or not, optional sink, ragged batches.
//!
//! One row at a time: all scores, their maximum, the exponentials, the weighted sum. May depend
//! on `rayon`.

use super::expect_len;
use rayon::prelude::*;

/// An attention problem over a batch of packed sequences.
///
/// For query `i` of a sequence with S queries and N keys, head h:
/// `s_j = scale · q·k_j`, `o = Σ_j exp(s_j) v_j / (Σ_j exp(s_j) + exp(sink_h))`,
/// over all keys, or with `causal` over `j ≤ i + N − S` (the last query sees the last key).
/// The sink logit is not scaled and has no value.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries `[tokens, heads, dim_qk]`, sequences packed one after another.
    pub q: &'a [f32],
    /// Keys `[kv_tokens, kv_heads, dim_qk]`.
    pub k: &'a [f32],
    /// Values `[kv_tokens, kv_heads, dim_v]`.
    pub v: &'a [f32],
    /// Query heads, a multiple of `kv_heads`: head h reads key/value head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of queries and keys.
    pub dim_qk: usize,
    /// Width of values and outputs.
    pub dim_v: usize,
    /// Factor on the scores, usually `dim_qk^-0.5`.
    pub scale: f64,
    /// Whether a query sees only the keys up to its own position.
    pub causal: bool,
    /// Optional extra logit per head; +inf empties the output, −inf is no sink.
    pub sink: Option<&'a [f32]>,
    /// Sequence b owns queries `cu_seqlens_q[b]..cu_seqlens_q[b + 1]`. Lengths may be zero.
    pub cu_seqlens_q: &'a [usize],
    /// Sequence b owns keys `cu_seqlens_kv[b]..cu_seqlens_kv[b + 1]`.
    pub cu_seqlens_kv: &'a [usize],
}

/// Result of [`Attention::forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOutput {
    /// `[tokens, heads, dim_v]`; zero for a query that sees no key.
    pub o: Vec<f32>,
    /// Natural log of `Σ_j exp(s_j)`, without the sink, `[tokens, heads]`; +inf for a query that
    /// sees no key.
    pub lse: Vec<f32>,
}

impl Attention<'_> {
    /// All queries.
    pub fn forward(&self) -> AttentionOutput {
        let tokens = self.cu_seqlens_q.last().copied().unwrap_or(0);
        self.forward_tokens(&(0..tokens).collect::<Vec<_>>())
    }

    /// The given queries only: `o` is `[tokens.len(), heads, dim_v]`.
    pub fn forward_tokens(&self, tokens: &[usize]) -> AttentionOutput {
        self.check();
        let rows: Vec<(Vec<f64>, f64)> = tokens
            .par_iter()
            .flat_map(|&token| (0..self.heads).into_par_iter().map(move |head| (token, head)))
            .map(|(token, head)| self.row(token, head))
            .collect();
        AttentionOutput {
            o: rows.iter().flat_map(|(o, _)| o.iter().map(|&o| o as f32)).collect(),
            lse: rows.iter().map(|&(_, lse)| lse as f32).collect(),
        }
    }

    pub(super) fn check(&self) {
        let total = |cu: &[usize]| cu.last().copied().unwrap_or(0);
        expect_len("q", self.q.len(), &[total(self.cu_seqlens_q), self.heads, self.dim_qk]);
        expect_len("k", self.k.len(), &[total(self.cu_seqlens_kv), self.kv_heads, self.dim_qk]);
        expect_len("v", self.v.len(), &[total(self.cu_seqlens_kv), self.kv_heads, self.dim_v]);
        expect_len("cu_seqlens_kv", self.cu_seqlens_kv.len(), &[self.cu_seqlens_q.len()]);
        assert!(
            self.heads.is_multiple_of(self.kv_heads.max(1)),
            "{} heads cannot be grouped over {} key/value heads",
            self.heads,
            self.kv_heads
        );
        if let Some(sink) = self.sink {
            expect_len("sink", sink.len(), &[self.heads]);
        }
    }

    /// Keys visible to a query, as a range of packed key positions.
    pub(super) fn visible(&self, token: usize) -> std::ops::Range<usize> {
        let inside = |cu: &[usize]| cu[0] <= token && token < cu[1];
        let Some(b) = self.cu_seqlens_q.windows(2).position(inside) else {
            panic!("query {token} belongs to no sequence of {:?}", self.cu_seqlens_q);
        };
        let (start, end) = (self.cu_seqlens_kv[b], self.cu_seqlens_kv[b + 1]);
        let queries = self.cu_seqlens_q[b + 1] - self.cu_seqlens_q[b];
        let i = token - self.cu_seqlens_q[b];
        // i + N − S + 1 keys, at least none.
        let count = if self.causal { (i + 1 + (end - start)).saturating_sub(queries) } else { end - start };
        start..start + count
    }

    /// Output and log-sum-exp of one query and head.
    fn row(&self, token: usize, head: usize) -> (Vec<f64>, f64) {
        let kv_head = head / (self.heads / self.kv_heads);
        let q = &self.q[(token * self.heads + head) * self.dim_qk..][..self.dim_qk];
        let keys = self.visible(token);
        let score =
            |j: usize| self.scale * dot(q, &self.k[(j * self.kv_heads + kv_head) * self.dim_qk..][..self.dim_qk]);
        let scores: Vec<f64> = keys.clone().map(score).collect();
        let value = |j: usize| &self.v[((keys.start + j) * self.kv_heads + kv_head) * self.dim_v..][..self.dim_v];
        let sink = self.sink.map_or(f64::NEG_INFINITY, |sink| f64::from(sink[head]));
        softmax_weighted_sum(&scores, sink, self.dim_v, value)
    }
}

/// `Σ_j exp(s_j) v_j / (Σ_j exp(s_j) + exp(sink))` and `ln Σ_j exp(s_j)`; zero and +inf if there
/// is no score above −inf.
pub(super) fn softmax_weighted_sum<'a>(
    scores: &[f64],
    sink: f64,
    dim: usize,
    value: impl Fn(usize) -> &'a [f32],
) -> (Vec<f64>, f64) {
    let mut o = vec![0.0; dim];
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !scores.iter().any(|s| s.is_nan()) {
        return (o, f64::INFINITY);
    }
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let lse = max + sum.ln();
    // exp(s − lse) · 1/(1 + exp(sink − lse)): no overflow for any sink, and 0 for +inf.
    let keep = 1.0 / (1.0 + (sink - lse).exp());
    for (j, s) in scores.iter().enumerate() {
        if *s == f64::NEG_INFINITY {
            // Not 0 · v: the value of a masked key may be NaN.
            continue;
        }
        let weight = (s - lse).exp() * keep;
        for (o, &v) in o.iter_mut().zip(value(j)) {
            *o += weight * f64::from(v);
        }
    }
    (o, lse)
}

/// Dot product in f64, eight interleaved partial sums.
pub(super) fn dot(x: &[f32], y: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    for (x, y) in x.chunks(8).zip(y.chunks(8)) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f64::from(x) * f64::from(y);
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::testing::uniform;
    use super::*;

    const ONE: [usize; 2] = [0, 1];

    /// One head, dim 1: scores are q·k and the output is a weighted mean of v.
    fn tiny<'a>(q: &'a [f32], k: &'a [f32], v: &'a [f32], cu: (&'a [usize], &'a [usize])) -> Attention<'a> {
        Attention {
            q,
            k,
            v,
            heads: 1,
            kv_heads: 1,
            dim_qk: 1,
            dim_v: 1,
            scale: 1.0,
            causal: false,
            sink: None,
            cu_seqlens_q: cu.0,
            cu_seqlens_kv: cu.1,
        }
    }

    fn close(x: f32, y: f64) {
        assert!((f64::from(x) - y).abs() < 1e-6, "{x} vs {y}");
    }

    #[test]
    fn two_keys_by_hand() {
        let out = tiny(&[1.0], &[0.0, 3f32.ln()], &[1.0, 5.0], (&ONE, &[0, 2])).forward();
        // Weights 1/4 and 3/4.
        close(out.o[0], 4.0);
        close(out.lse[0], 4f64.ln());
    }

    #[test]
    fn sink_takes_weight_but_is_not_in_lse() {
        let (q, k, v, cu) = ([1.0], [0.0, 3f32.ln()], [1.0, 5.0], [0, 2]);
        let base = tiny(&q, &k, &v, (&ONE, &cu));
        // exp(sink) = 4 doubles the denominator, whatever the scale of the scores.
        let out = Attention { sink: Some(&[4f32.ln()]), ..base }.forward();
        close(out.o[0], 2.0);
        close(out.lse[0], 4f64.ln());
        let full = Attention { sink: Some(&[f32::INFINITY]), ..base }.forward();
        assert_eq!(full.o, [0.0]);
        close(full.lse[0], 4f64.ln());
        let none = Attention { sink: Some(&[f32::NEG_INFINITY]), ..base }.forward();
        assert_eq!(none, base.forward());
    }

    #[test]
    fn causal_offset_and_rows_without_keys() {
        // Two queries, one key: query 0 sees none, query 1 sees it.
        let sink = Some(&[1.0f32][..]);
        let out = Attention { causal: true, sink, ..tiny(&[1.0, 1.0], &[2.0], &[7.0], (&[0, 2], &ONE)) }.forward();
        assert_eq!(out.o[0], 0.0);
        assert_eq!(out.lse[0], f32::INFINITY);
        close(out.o[1], 7.0 / (1.0 + (-1f64).exp()));
        // One query, three keys: N − S = 2, so it sees all three.
        let (k, v) = ([0.0; 3], [3.0, 6.0, 9.0]);
        let out = Attention { causal: true, ..tiny(&[1.0], &k, &v, (&ONE, &[0, 3])) }.forward();
        close(out.o[0], 6.0);
    }

    #[test]
    fn invisible_keys_may_be_nan() {
        let (k, v) = ([0.0, f32::NAN], [3.0, f32::NAN]);
        let out = Attention { causal: true, ..tiny(&[1.0, 1.0], &k, &v, (&[0, 2], &[0, 2])) }.forward();
        assert_eq!(out.o[0], 3.0);
        assert!(out.o[1].is_nan());
    }

    #[test]
    fn ragged_batches_equal_their_sequences() {
        let (heads, kv_heads, dim_qk, dim_v) = (4, 2, 8, 6);
        let (cu_q, cu_kv) = ([0usize, 3, 3, 8], [0usize, 5, 9, 9]);
        let q = uniform(1, 8 * heads * dim_qk, 2.0);
        let k = uniform(2, 9 * kv_heads * dim_qk, 2.0);
        let v = uniform(3, 9 * kv_heads * dim_v, 2.0);
        let batch = Attention {
            q: &q,
            k: &k,
            v: &v,
            heads,
            kv_heads,
            dim_qk,
            dim_v,
            scale: 0.3,
            causal: true,
            sink: Some(&[0.1, 0.2, 0.3, 0.4]),
            cu_seqlens_q: &cu_q,
            cu_seqlens_kv: &cu_kv,
        };
        let out = batch.forward();
        let first = Attention {
            q: &q[..3 * heads * dim_qk],
            k: &k[..5 * kv_heads * dim_qk],
            v: &v[..5 * kv_heads * dim_v],
            cu_seqlens_q: &[0, 3],
            cu_seqlens_kv: &[0, 5],
            ..batch
        };
        assert_eq!(out.o[..3 * heads * dim_v], first.forward().o);
        // The last sequence has queries but no keys.
        assert!(out.o[3 * heads * dim_v..].iter().all(|&o| o == 0.0));
        assert!(out.lse[3 * heads..].iter().all(|&lse| lse == f32::INFINITY));
        assert_eq!(batch.forward_tokens(&[2]).o, out.o[2 * heads * dim_v..3 * heads * dim_v]);
    }

    #[test]
    fn heads_share_their_group() {
        // Four heads, two groups; equal queries give equal outputs inside a group only.
        let q: Vec<f32> = [1.0, 2.0].repeat(4);
        let (k, v) = (uniform(4, 3 * 2 * 2, 1.0), uniform(5, 3 * 2, 1.0));
        let problem = Attention {
            q: &q,
            k: &k,
            v: &v,
            heads: 4,
            kv_heads: 2,
            dim_qk: 2,
            dim_v: 1,
            scale: 1.0,
            causal: false,
            sink: None,
            cu_seqlens_q: &ONE,
            cu_seqlens_kv: &[0, 3],
        };
        let out = problem.forward();
        assert_eq!(out.o[0], out.o[1]);
        assert_eq!(out.o[2], out.o[3]);
        assert_ne!(out.o[0], out.o[2]);
    }
}
