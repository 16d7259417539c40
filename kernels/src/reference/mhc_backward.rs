//! Manifold-constrained hyper-connections, backward, and the recomputation of their states.
//! May depend on `rayon`.
//!
//! Gradients of the operators of [`super::mhc`], one method each, in f64. Accumulation into a
//! shared `dX` is left to the caller: each method returns its own contribution.

use super::codec::bf16_round_all;
use super::expect_len;
use super::gemm::{Gemm, Op};
use super::mhc::{Mhc, normalize_columns, normalize_rows, sigmoid, softmax_rows};
use rayon::prelude::*;

/// Gradients of [`Mhc::project`] with respect to its inputs, and the two intermediate ones a
/// split kernel exchanges.
#[derive(Clone, Debug, PartialEq)]
pub struct ProjectGrad {
    /// `r · g`, gradient of the unnormalised projection, `[tokens, outputs]`.
    pub draw: Vec<f32>,
    /// `−½ r / (Σv² + eps·n·d) · Σ g·raw`, gradient of the sum of squares, `[tokens]`.
    pub dsquare_sum: Vec<f32>,
    /// `draw φ + 2 dsquare_sum X`, `[tokens, n · d]`.
    pub dx: Vec<f32>,
    /// `drawᵀ X`, `[outputs, n · d]`.
    pub dphi: Vec<f32>,
}

/// Gradients of [`Mhc::split`].
#[derive(Clone, Debug, PartialEq)]
pub struct SplitGrad {
    /// With respect to the mixes, `[tokens, n(2 + n)]`.
    pub dmixes: Vec<f32>,
    /// With respect to the three scales, summed over tokens.
    pub dscale: Vec<f32>,
    /// With respect to the biases, summed over tokens, `[n(2 + n)]`.
    pub dbase: Vec<f32>,
}

/// Gradients of [`Mhc::post`].
#[derive(Clone, Debug, PartialEq)]
pub struct PostGrad {
    /// With respect to the sub-layer output, `[tokens, d]`.
    pub df: Vec<f32>,
    /// With respect to the streams, `[tokens, n, d]`.
    pub dx: Vec<f32>,
    /// `[tokens, n]`.
    pub dpost: Vec<f32>,
    /// `[tokens, n, n]`, source stream first.
    pub dcomb: Vec<f32>,
}

/// What one layer contributes to `recompute`.
#[derive(Clone, Copy, Debug)]
pub struct RecomputeLayer<'a> {
    /// `[tokens, n]`.
    pub pre: &'a [f32],
    /// Sub-layer output `[tokens, d]`, `post` `[tokens, n]` and C `[tokens, n, n]`; `None` for a
    /// last layer of which only `u` is wanted.
    pub post: Option<(&'a [f32], &'a [f32], &'a [f32])>,
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// Inner product of two equally long rows.
fn inner(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// `φ ∘ w`: folds an RMSNorm weight w `[width]` into a projection φ `[outputs, width]`. One f32
/// product per element.
pub fn merge_norm_weight(phi: &[f32], weight: &[f32]) -> Vec<f32> {
    phi.iter().enumerate().map(|(i, phi)| phi * weight[i % weight.len()]).collect()
}

/// Gradients of [`merge_norm_weight`] with respect to φ and w.
pub fn merge_norm_weight_backward(phi: &[f32], weight: &[f32], dmerged: &[f32]) -> (Vec<f32>, Vec<f32>) {
    expect_len("dmerged", dmerged.len(), &[phi.len()]);
    let width = weight.len();
    let mut dweight = vec![0.0; width];
    for (i, (&g, &phi)) in dmerged.iter().zip(phi).enumerate() {
        dweight[i % width] += f64::from(g) * f64::from(phi);
    }
    (merge_norm_weight(dmerged, weight), narrow(&dweight))
}

impl Mhc {
    /// Sum over streams of the gradient `[tokens, n, d]`.
    pub fn expand_backward(&self, dy: &[f32]) -> Vec<f32> {
        let (n, d) = (self.streams, self.dim);
        let sum = |i: usize| (0..n).map(|j| f64::from(dy[(i / d * n + j) * d + i % d])).sum::<f64>() as f32;
        (0..dy.len() / n).map(sum).collect()
    }

    /// Backward of [`Mhc::project`] from the gradient of the normalised mixes `[tokens, outputs]`
    /// and the saved `raw` and `square_sum`.
    pub fn project_backward(
        &self,
        x: &[f32],
        phi: &[f32],
        raw: &[f32],
        square_sum: &[f32],
        dmixes: &[f32],
    ) -> ProjectGrad {
        let (width, tokens) = (self.streams * self.dim, square_sum.len());
        let outputs = raw.len() / tokens.max(1);
        expect_len("x", x.len(), &[tokens, width]);
        expect_len("phi", phi.len(), &[outputs, width]);
        expect_len("dmixes", dmixes.len(), &[tokens, outputs]);
        let biased = |t: usize| f64::from(square_sum[t]) + self.eps * width as f64;
        let r = |t: usize| (width as f64 / biased(t)).sqrt();
        let draw: Vec<f64> = dmixes.iter().enumerate().map(|(i, &g)| r(i / outputs.max(1)) * f64::from(g)).collect();
        let dsquare = |t: usize| {
            let range = t * outputs..(t + 1) * outputs;
            -0.5 * r(t) / biased(t) * inner(&dmixes[range.clone()], &raw[range])
        };
        let dsquare_sum: Vec<f64> = (0..tokens).map(dsquare).collect();
        let phi: Vec<f64> = phi.iter().map(|&phi| f64::from(phi)).collect();
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let product = |m, n, k, a, op_a, b| {
            Gemm { m, n, k, alpha: 1.0, a, op_a, b, op_b: Op::N }.rows_f64(&(0..m).collect::<Vec<_>>())
        };
        let mut dx = product(tokens, width, outputs, &draw, Op::N, &phi);
        for (i, dx) in dx.iter_mut().enumerate() {
            *dx += 2.0 * dsquare_sum[i / width] * x[i];
        }
        let dphi = product(outputs, width, tokens, &draw, Op::T, &x);
        ProjectGrad { draw: narrow(&draw), dsquare_sum: narrow(&dsquare_sum), dx: narrow(&dx), dphi: narrow(&dphi) }
    }

    /// Backward of [`Mhc::split`] from the gradients of its three outputs.
    pub fn split_backward(
        &self,
        mixes: &[f32],
        scale: &[f32],
        base: &[f32],
        (dpre, dpost, dcomb): (&[f32], &[f32], &[f32]),
    ) -> SplitGrad {
        let (n, width) = (self.streams, self.mixes());
        let tokens = mixes.len() / width;
        expect_len("dpre", dpre.len(), &[tokens, n]);
        expect_len("dpost", dpost.len(), &[tokens, n]);
        expect_len("dcomb", dcomb.len(), &[tokens, n, n]);
        let (mut dmixes, mut dscale, mut dbase) = (Vec::new(), vec![0.0; 3], vec![0.0; width]);
        for (i, &m) in mixes.iter().enumerate() {
            let (t, c) = (i / width, i % width);
            // Which of the three parts, the gradient of its output, and whether a sigmoid (with
            // which factor) lies between.
            let (part, g, factor) = if c < n {
                (0, dpre[t * n + c], Some(1.0))
            } else if c < 2 * n {
                (1, dpost[t * n + c - n], Some(self.post_multiplier))
            } else {
                (2, dcomb[t * n * n + c - 2 * n], None)
            };
            let s = f64::from(scale[part]);
            let slope = factor.map_or(1.0, |factor| {
                let y = sigmoid(f64::from(m) * s + f64::from(base[c]));
                factor * y * (1.0 - y)
            });
            let d = f64::from(g) * slope;
            dmixes.push((d * s) as f32);
            dscale[part] += d * f64::from(m);
            dbase[c] += d;
        }
        SplitGrad { dmixes, dscale: narrow(&dscale), dbase: narrow(&dbase) }
    }

    /// Backward of [`Mhc::sinkhorn`] with respect to the logits `[tokens, n, n]`.
    ///
    /// A step `y = x / (S + eps)`, S the sum of x over an axis, has
    /// `dx = (dy − Σ dy∘y) / (S + eps)` over that axis; the steps are recomputed and undone last
    /// to first, then the softmax.
    pub fn sinkhorn_backward(&self, comb: &[f32], dy: &[f32]) -> Vec<f32> {
        let n = self.streams;
        expect_len("dy", dy.len(), &[comb.len()]);
        comb.par_chunks(n * n)
            .zip(dy.par_chunks(n * n))
            .flat_map_iter(|(logits, dy)| {
                let softmax = softmax_rows(logits, n);
                let mut states = vec![softmax.iter().map(|c| c + self.eps).collect::<Vec<f64>>()];
                // Step i is a column step for even i.
                for i in 0..2 * self.rounds - 1 {
                    let mut c = states[i].clone();
                    if i % 2 == 0 {
                        normalize_columns(&mut c, n, self.eps);
                    } else {
                        normalize_rows(&mut c, n, self.eps);
                    }
                    states.push(c);
                }
                let mut d: Vec<f64> = dy.iter().map(|&d| f64::from(d)).collect();
                for i in (0..2 * self.rounds - 1).rev() {
                    let (x, y) = (&states[i], &states[i + 1]);
                    for line in 0..n {
                        let at = |e: usize| if i % 2 == 0 { e * n + line } else { line * n + e };
                        let sum: f64 = (0..n).map(|e| x[at(e)]).sum::<f64>() + self.eps;
                        let dot: f64 = (0..n).map(|e| d[at(e)] * y[at(e)]).sum();
                        (0..n).for_each(|e| d[at(e)] = (d[at(e)] - dot) / sum);
                    }
                }
                let dlogit = move |i: usize| {
                    let row = i / n * n;
                    let dot: f64 = (row..row + n).map(|e| d[e] * softmax[e]).sum();
                    (softmax[i] * (d[i] - dot)) as f32
                };
                (0..n * n).map(dlogit)
            })
            .collect()
    }

    /// Backward of [`Mhc::apply`] from `du` `[tokens, d]`: `(pre_j du, <du, X_j>)`.
    pub fn apply_backward(&self, x: &[f32], pre: &[f32], du: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (n, d) = (self.streams, self.dim);
        let tokens = pre.len() / n;
        expect_len("x", x.len(), &[tokens, n, d]);
        expect_len("du", du.len(), &[tokens, d]);
        let dx = |i: usize| (f64::from(pre[i / d]) * f64::from(du[i / d / n * d + i % d])) as f32;
        let dpre = |i: usize| inner(&du[i / n * d..][..d], &x[i * d..][..d]) as f32;
        ((0..tokens * n * d).map(dx).collect(), (0..tokens * n).map(dpre).collect())
    }

    /// Backward of [`Mhc::post`] from `dy` `[tokens, n, d]`.
    pub fn post_backward(&self, f: &[f32], x: &[f32], post: &[f32], comb: &[f32], dy: &[f32]) -> PostGrad {
        let (n, d) = (self.streams, self.dim);
        let tokens = post.len() / n;
        expect_len("f", f.len(), &[tokens, d]);
        expect_len("x", x.len(), &[tokens, n, d]);
        expect_len("comb", comb.len(), &[tokens, n, n]);
        expect_len("dy", dy.len(), &[tokens, n, d]);
        let stream = |z, t: usize, j: usize| row(z, t * n + j, d);
        let df = |i: usize| {
            let (t, c) = (i / d, i % d);
            (0..n).map(|k| f64::from(post[t * n + k]) * f64::from(stream(dy, t, k)[c])).sum::<f64>() as f32
        };
        let dx = |i: usize| {
            let (t, j, c) = (i / (n * d), i / d % n, i % d);
            let term = |k: usize| f64::from(comb[(t * n + j) * n + k]) * f64::from(stream(dy, t, k)[c]);
            (0..n).map(term).sum::<f64>() as f32
        };
        let dpost = |i: usize| inner(row(dy, i, d), row(f, i / n, d)) as f32;
        let dcomb = |i: usize| {
            let (t, j, k) = (i / (n * n), i / n % n, i % n);
            inner(stream(x, t, j), stream(dy, t, k)) as f32
        };
        PostGrad {
            df: (0..tokens * d).into_par_iter().map(df).collect(),
            dx: (0..tokens * n * d).into_par_iter().map(dx).collect(),
            dpost: (0..tokens * n).map(dpost).collect(),
            dcomb: (0..tokens * n * n).map(dcomb).collect(),
        }
    }

    /// Backward of [`Mhc::head_mix`]: gradients of the mixes `[tokens, n]`, the scale, the base.
    pub fn head_mix_backward(&self, mixes: &[f32], scale: f32, base: &[f32], dy: &[f32]) -> (Vec<f32>, f32, Vec<f32>) {
        let n = self.streams;
        expect_len("dy", dy.len(), &[mixes.len()]);
        let (mut dmixes, mut dscale, mut dbase) = (Vec::new(), 0.0, vec![0.0; n]);
        for (i, (&m, &g)) in mixes.iter().zip(dy).enumerate() {
            let y = sigmoid(f64::from(m) * f64::from(scale) + f64::from(base[i % n]));
            let d = f64::from(g) * y * (1.0 - y);
            dmixes.push((d * f64::from(scale)) as f32);
            dscale += d * f64::from(m);
            dbase[i % n] += d;
        }
        (dmixes, dscale as f32, narrow(&dbase))
    }

    /// Recomputes every layer's input from the first state: returns the `u` of each layer and the
    /// state after each layer that has a post step. Both are rounded to bf16 as they are made, and
    /// the rounded state feeds the next layer.
    pub fn recompute(&self, x: &[f32], layers: &[RecomputeLayer<'_>]) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let tokens = x.len() / (self.streams * self.dim);
        let (mut inputs, mut states) = (Vec::new(), Vec::new());
        let mut state = x.to_vec();
        for layer in layers {
            inputs.push(bf16_round_all(&self.apply(&state, layer.pre, tokens)));
            if let Some((f, post, comb)) = layer.post {
                state = bf16_round_all(&self.post(f, &state, post, comb, tokens));
                states.push(state.clone());
            }
        }
        (inputs, states)
    }
}

fn row(x: &[f32], index: usize, width: usize) -> &[f32] {
    &x[index * width..][..width]
}

#[cfg(test)]
mod tests {
    use super::super::metrics::max_abs;
    use super::super::testing::{check_gradient, uniform, uniform_bf16};
    use super::*;

    const TOKENS: usize = 2;

    fn small() -> Mhc {
        Mhc { streams: 3, dim: 4, rounds: 4, eps: 1e-3, post_multiplier: 2.0 }
    }

    fn weighted(y: &[f32], dy: &[f32]) -> f64 {
        inner(y, dy)
    }

    #[test]
    fn expand_and_merge() {
        let mhc = Mhc { streams: 2, ..Mhc::v4(2) };
        assert_eq!(mhc.expand_backward(&[1.0, 2.0, 10.0, 20.0]), [11.0, 22.0]);
        let (phi, w, g) = ([1.0, 2.0, 3.0, 4.0], [10.0, 100.0], [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(merge_norm_weight(&phi, &w), [10.0, 200.0, 30.0, 400.0]);
        let (dphi, dw) = merge_norm_weight_backward(&phi, &w, &g);
        assert_eq!(dphi, [10.0, 100.0, 20.0, 200.0]);
        assert_eq!(dw, [7.0, 10.0]);
    }

    #[test]
    fn projection() {
        let (mhc, outputs) = (small(), 5);
        let x = uniform(1, TOKENS * 12, 1.0);
        let phi = uniform(2, outputs * 12, 1.0);
        let dm = uniform(3, TOKENS * outputs, 1.0);
        let forward = mhc.project(&x, &phi, TOKENS, outputs);
        let grad = mhc.project_backward(&x, &phi, &forward.raw, &forward.square_sum, &dm);
        let loss = |x: &[f32], phi: &[f32]| weighted(&mhc.project(x, phi, TOKENS, outputs).mixes, &dm);
        check_gradient(&x, &grad.dx, 1e-3, |x| loss(x, &phi));
        check_gradient(&phi, &grad.dphi, 1e-3, |phi| loss(&x, phi));
    }

    #[test]
    fn split() {
        let mhc = small();
        let m = uniform(4, TOKENS * mhc.mixes(), 1.0);
        let (s, b) = (uniform(5, 3, 1.0), uniform(6, mhc.mixes(), 1.0));
        let (dpre, dpost, dcomb) =
            (uniform(7, TOKENS * 3, 1.0), uniform(8, TOKENS * 3, 1.0), uniform(9, TOKENS * 9, 1.0));
        let loss = |m: &[f32], s: &[f32], b: &[f32]| {
            let out = mhc.split(m, s, b, TOKENS);
            weighted(&out.pre, &dpre) + weighted(&out.post, &dpost) + weighted(&out.comb, &dcomb)
        };
        let grad = mhc.split_backward(&m, &s, &b, (&dpre, &dpost, &dcomb));
        check_gradient(&m, &grad.dmixes, 1e-3, |m| loss(m, &s, &b));
        check_gradient(&s, &grad.dscale, 1e-3, |s| loss(&m, s, &b));
        check_gradient(&b, &grad.dbase, 1e-3, |b| loss(&m, &s, b));
    }

    #[test]
    fn sinkhorn() {
        for mhc in [small(), Mhc { rounds: 1, ..small() }, Mhc::v4(1)] {
            let size = mhc.streams * mhc.streams;
            let c = uniform(10, 3 * size, 2.0);
            let dy = uniform(11, 3 * size, 1.0);
            let grad = mhc.sinkhorn_backward(&c, &dy);
            check_gradient(&c, &grad, 1e-3, |c| weighted(&mhc.sinkhorn(c), &dy));
        }
    }

    #[test]
    fn apply_and_post() {
        let mhc = small();
        let (x, f) = (uniform(12, TOKENS * 12, 1.0), uniform(13, TOKENS * 4, 1.0));
        let (mix, comb) = (uniform(14, TOKENS * 3, 1.0), uniform(15, TOKENS * 9, 1.0));
        let du = uniform(16, TOKENS * 4, 1.0);
        let (dx, dpre) = mhc.apply_backward(&x, &mix, &du);
        check_gradient(&x, &dx, 1e-3, |x| weighted(&mhc.apply(x, &mix, TOKENS), &du));
        check_gradient(&mix, &dpre, 1e-3, |mix| weighted(&mhc.apply(&x, mix, TOKENS), &du));
        let dy = uniform(17, TOKENS * 12, 1.0);
        let loss = |f: &[f32], x: &[f32], mix: &[f32], comb: &[f32]| weighted(&mhc.post(f, x, mix, comb, TOKENS), &dy);
        let grad = mhc.post_backward(&f, &x, &mix, &comb, &dy);
        check_gradient(&f, &grad.df, 1e-3, |f| loss(f, &x, &mix, &comb));
        check_gradient(&x, &grad.dx, 1e-3, |x| loss(&f, x, &mix, &comb));
        check_gradient(&mix, &grad.dpost, 1e-3, |mix| loss(&f, &x, mix, &comb));
        check_gradient(&comb, &grad.dcomb, 1e-3, |comb| loss(&f, &x, &mix, comb));
    }

    #[test]
    fn head_mix() {
        let mhc = small();
        let (m, b, dy) = (uniform(18, TOKENS * 3, 1.0), uniform(19, 3, 1.0), uniform(20, TOKENS * 3, 1.0));
        let (dm, ds, db) = mhc.head_mix_backward(&m, 0.7, &b, &dy);
        check_gradient(&m, &dm, 1e-3, |m| weighted(&mhc.head_mix(m, 0.7, &b), &dy));
        check_gradient(&[0.7], &[ds], 1e-3, |s| weighted(&mhc.head_mix(&m, s[0], &b), &dy));
        check_gradient(&b, &db, 1e-3, |b| weighted(&mhc.head_mix(&m, 0.7, b), &dy));
    }

    #[test]
    fn recomputation_chains_layers() {
        let mhc = small();
        let x = uniform_bf16(21, TOKENS * 12, 1.0);
        let f = uniform_bf16(22, TOKENS * 4, 1.0);
        let (mix, comb) = (uniform(23, TOKENS * 3, 1.0), uniform(24, TOKENS * 9, 1.0));
        let full = RecomputeLayer { pre: &mix, post: Some((&f, &mix, &comb)) };
        let (inputs, states) = mhc.recompute(&x, &[full, RecomputeLayer { post: None, ..full }]);
        assert_eq!((inputs.len(), states.len()), (2, 1));
        let next = mhc.post(&f, &x, &mix, &comb, TOKENS);
        assert!(max_abs(&states[0], &next) < 2e-2);
        assert_eq!(inputs[1], bf16_round_all(&mhc.apply(&states[0], &mix, TOKENS)));
    }
}
