//! Dense attention backward, one row at a time. May depend on `rayon`.

use super::attention::{Attention, dot};
use super::expect_len;
use rayon::prelude::*;

/// Gradients of [`Attention::forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionGrad {
    /// With respect to the queries, `[tokens, heads, dim_qk]`.
    pub dq: Vec<f32>,
    /// With respect to the keys, summed over the heads of a group, `[kv_tokens, kv_heads, dim_qk]`.
    pub dk: Vec<f32>,
    /// With respect to the values, `[kv_tokens, kv_heads, dim_v]`.
    pub dv: Vec<f32>,
    /// With respect to the sinks, `[heads]`; empty without sinks.
    pub dsink: Vec<f32>,
}

/// What one head adds; keys and values of all its tokens, of its own key head only.
struct Head {
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
    dsink: f64,
}

impl Attention<'_> {
    /// Gradients from `d_o` `[tokens, heads, dim_v]`. With the sink-inclusive `P_j = exp(s_j) / D` and
    /// `Δ = dO · O`: `dv_j = Σ P dO`, `dS_j = P_j (dO · v_j − Δ)`, `dq = scale Σ dS_j k_j`, `dk_j = scale Σ dS q`,
    /// `dsink = −Σ exp(sink) / D · Δ`.
    pub fn backward(&self, d_o: &[f32]) -> AttentionGrad {
        self.check();
        let tokens = self.cu_seqlens_q.last().copied().unwrap_or(0);
        let kv_tokens = self.cu_seqlens_kv.last().copied().unwrap_or(0);
        expect_len("d_o", d_o.len(), &[tokens, self.heads, self.dim_v]);
        let heads: Vec<Head> = (0..self.heads).into_par_iter().map(|h| self.backward_head(d_o, h)).collect();
        let (mut dq, mut dk, mut dv) = (
            vec![0f64; tokens * self.heads * self.dim_qk],
            vec![0f64; kv_tokens * self.kv_heads * self.dim_qk],
            vec![0f64; kv_tokens * self.kv_heads * self.dim_v],
        );
        for (h, head) in heads.iter().enumerate() {
            add_head(&mut dq, &head.dq, h, self.heads, self.dim_qk);
            let kv_head = h / (self.heads / self.kv_heads);
            add_head(&mut dk, &head.dk, kv_head, self.kv_heads, self.dim_qk);
            add_head(&mut dv, &head.dv, kv_head, self.kv_heads, self.dim_v);
        }
        let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect();
        let dsink = self.sink.map_or(Vec::new(), |_| heads.iter().map(|head| head.dsink as f32).collect());
        AttentionGrad { dq: narrow(dq), dk: narrow(dk), dv: narrow(dv), dsink }
    }

    fn backward_head(&self, d_o: &[f32], head: usize) -> Head {
        let tokens = self.cu_seqlens_q.last().copied().unwrap_or(0);
        let kv_tokens = self.cu_seqlens_kv.last().copied().unwrap_or(0);
        let kv_head = head / (self.heads / self.kv_heads);
        let key = |j: usize| &self.k[(j * self.kv_heads + kv_head) * self.dim_qk..][..self.dim_qk];
        let value = |j: usize| &self.v[(j * self.kv_heads + kv_head) * self.dim_v..][..self.dim_v];
        let sink = self.sink.map_or(f64::NEG_INFINITY, |sink| f64::from(sink[head]));
        let mut grad = Head {
            dq: vec![0.0; tokens * self.dim_qk],
            dk: vec![0.0; kv_tokens * self.dim_qk],
            dv: vec![0.0; kv_tokens * self.dim_v],
            dsink: 0.0,
        };
        for token in 0..tokens {
            let keys = self.visible(token);
            if keys.is_empty() {
                continue;
            }
            let q = &self.q[(token * self.heads + head) * self.dim_qk..][..self.dim_qk];
            let d_o = &d_o[(token * self.heads + head) * self.dim_v..][..self.dim_v];
            let scores: Vec<f64> = keys.clone().map(|j| self.scale * dot(q, key(j))).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
            let keep = 1.0 / (1.0 + (sink - lse).exp());
            let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp() * keep).collect();
            let dp: Vec<f64> = keys.clone().map(|j| dot(d_o, value(j))).collect();
            // dO · O, with O = Σ P_j v_j.
            let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for ((j, p), dp) in keys.zip(&p).zip(&dp) {
                let ds = self.scale * p * (dp - delta);
                add_scaled(&mut grad.dq[token * self.dim_qk..][..self.dim_qk], key(j), ds);
                add_scaled(&mut grad.dk[j * self.dim_qk..][..self.dim_qk], q, ds);
                add_scaled(&mut grad.dv[j * self.dim_v..][..self.dim_v], d_o, *p);
            }
            grad.dsink -= (1.0 - keep) * delta;
        }
        grad
    }
}

/// `y += a x`.
fn add_scaled(y: &mut [f64], x: &[f32], a: f64) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * f64::from(x);
    }
}

/// Adds the rows of one head to those of all heads `[rows, heads, dim]`.
fn add_head(all: &mut [f64], one: &[f64], head: usize, heads: usize, dim: usize) {
    for (all, one) in all.chunks_mut(heads * dim).zip(one.chunks(dim)) {
        for (all, one) in all[head * dim..].iter_mut().zip(one) {
            *all += one;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradient, uniform};
    use super::*;

    /// Every gradient against differences of `Σ dO · O`.
    #[test]
    fn gradients_match_differences() {
        let (heads, kv_heads, dim_qk, dim_v) = (4, 2, 3, 2);
        let (cu_q, cu_kv) = ([0usize, 3, 3, 5], [0usize, 2, 4, 7]);
        let q = uniform(1, 5 * heads * dim_qk, 1.0);
        let k = uniform(2, 7 * kv_heads * dim_qk, 1.0);
        let v = uniform(3, 7 * kv_heads * dim_v, 1.0);
        let sink = [0.3f32, -0.5, 1.0, 0.0];
        let d_o = uniform(4, 5 * heads * dim_v, 1.0);
        for causal in [false, true] {
            let base = Attention {
                q: &q,
                k: &k,
                v: &v,
                heads,
                kv_heads,
                dim_qk,
                dim_v,
                scale: 0.7,
                causal,
                sink: Some(&sink),
                cu_seqlens_q: &cu_q,
                cu_seqlens_kv: &cu_kv,
            };
            let loss = |a: Attention<'_>| -> f64 {
                a.forward().o.iter().zip(&d_o).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum()
            };
            let grad = base.backward(&d_o);
            check_gradient(&q, &grad.dq, 2e-3, |q| loss(Attention { q, ..base }));
            check_gradient(&k, &grad.dk, 2e-3, |k| loss(Attention { k, ..base }));
            check_gradient(&v, &grad.dv, 2e-3, |v| loss(Attention { v, ..base }));
            check_gradient(&sink, &grad.dsink, 2e-3, |sink| loss(Attention { sink: Some(sink), ..base }));
        }
    }

    #[test]
    fn an_infinite_sink_passes_nothing() {
        let (q, k, v) = ([1.0f32], [0.5f32], [2.0f32]);
        let problem = Attention {
            q: &q,
            k: &k,
            v: &v,
            heads: 1,
            kv_heads: 1,
            dim_qk: 1,
            dim_v: 1,
            scale: 1.0,
            causal: false,
            sink: Some(&[f32::INFINITY]),
            cu_seqlens_q: &[0, 1],
            cu_seqlens_kv: &[0, 1],
        };
        let grad = problem.backward(&[3.0]);
        assert_eq!((grad.dq, grad.dk, grad.dv, grad.dsink), (vec![0.0], vec![0.0], vec![0.0], vec![0.0]));
    }
}
