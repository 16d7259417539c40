//! A whole hyper-connection step in f64 with nothing rounded on the way, to be differentiated by finite differences.
//!
//! Written out apart from [`super::mhc`], whose functions round their results to f32.

use super::expect_len;
use super::mhc::{Mhc, normalize_columns, normalize_rows, sigmoid};

/// What a step depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// The state `[tokens, n, d]`.
    pub x: Vec<f64>,
    /// `[n(2 + n), n d]`.
    pub phi: Vec<f64>,
    /// `[3]`.
    pub scale: Vec<f64>,
    /// `[n(2 + n)]`.
    pub base: Vec<f64>,
}

/// One of the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// [`Parameters::x`].
    X,
    /// [`Parameters::phi`].
    Phi,
    /// [`Parameters::scale`].
    Scale,
    /// [`Parameters::base`].
    Base,
}

impl Parameters {
    fn of(&mut self, parameter: Parameter) -> &mut Vec<f64> {
        match parameter {
            Parameter::X => &mut self.x,
            Parameter::Phi => &mut self.phi,
            Parameter::Scale => &mut self.scale,
            Parameter::Base => &mut self.base,
        }
    }
}

impl Mhc {
    /// The next state `[tokens, n, d]` with a sub-layer that works element by element.
    pub fn step(&self, p: &Parameters, sublayer: impl Fn(f64) -> f64) -> Vec<f64> {
        let (n, d, outputs) = (self.streams, self.dim, self.mixes());
        expect_len("phi", p.phi.len(), &[outputs, n * d]);
        let token = |x: &[f64]| {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / (n * d) as f64;
            let r = 1.0 / (mean + self.eps).sqrt();
            let mix = |o: usize| r * x.iter().zip(&p.phi[o * n * d..]).map(|(x, phi)| x * phi).sum::<f64>();
            let affine = |o: usize, s: usize| p.scale[s] * mix(o) + p.base[o];
            let pre: Vec<f64> = (0..n).map(|j| sigmoid(affine(j, 0)) + self.eps).collect();
            let post: Vec<f64> = (0..n).map(|j| self.post_multiplier * sigmoid(affine(n + j, 1))).collect();
            let logits: Vec<f64> = (0..n * n).map(|i| affine(2 * n + i, 2)).collect();
            let comb = self.doubly_stochastic(&logits);
            let f: Vec<f64> = (0..d).map(|c| sublayer((0..n).map(|j| pre[j] * x[j * d + c]).sum::<f64>())).collect();
            let next = |i: usize| {
                let (k, c) = (i / d, i % d);
                post[k] * f[c] + (0..n).map(|j| comb[j * n + k] * x[j * d + c]).sum::<f64>()
            };
            (0..n * d).map(next).collect::<Vec<f64>>()
        };
        p.x.chunks(n * d).flat_map(token).collect()
    }

    /// [`Mhc::sinkhorn`] of one matrix in f64.
    fn doubly_stochastic(&self, logits: &[f64]) -> Vec<f64> {
        let n = self.streams;
        let softmax = |row: &[f64]| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.into_iter().map(move |e| e / sum + self.eps)
        };
        let mut c: Vec<f64> = logits.chunks(n).flat_map(softmax).collect();
        normalize_columns(&mut c, n, self.eps);
        for _ in 1..self.rounds {
            normalize_rows(&mut c, n, self.eps);
            normalize_columns(&mut c, n, self.eps);
        }
        c
    }

    /// The gradient of `Σ dy · step` with respect to one of the parameters, by central differences.
    pub fn step_gradient(
        &self,
        p: &Parameters,
        parameter: Parameter,
        dy: &[f64],
        sublayer: impl Fn(f64) -> f64,
    ) -> Vec<f64> {
        const STEP: f64 = 1e-5;
        let mut moved = p.clone();
        let count = moved.of(parameter).len();
        let loss = |p: &Parameters| self.step(p, &sublayer).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
        (0..count)
            .map(|i| {
                let at = moved.of(parameter)[i];
                moved.of(parameter)[i] = at + STEP;
                let above = loss(&moved);
                moved.of(parameter)[i] = at - STEP;
                let below = loss(&moved);
                moved.of(parameter)[i] = at;
                (above - below) / (2.0 * STEP)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{calc_diff, max_abs};
    use super::super::testing::uniform;
    use super::*;

    const TOKENS: usize = 2;

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    fn narrow(x: &[f64]) -> Vec<f32> {
        x.iter().map(|&x| x as f32).collect()
    }

    /// The parts' forward and backward functions, chained, are the step and its gradient.
    #[test]
    fn the_chained_parts_agree_with_finite_differences() {
        let mhc = Mhc { streams: 4, dim: 5, ..Mhc::v4(5) };
        let (n, d, outputs) = (4, 5, mhc.mixes());
        let x = uniform(1, TOKENS * n * d, 1.0);
        let phi = uniform(2, outputs * n * d, 0.5);
        let (scale, base) = (uniform(3, 3, 1.0), uniform(4, outputs, 1.0));
        let dy = uniform(5, TOKENS * n * d, 1.0);

        let projection = mhc.project(&x, &phi, TOKENS, outputs);
        let mixes = mhc.split(&projection.mixes, &scale, &base, TOKENS);
        let u = mhc.apply(&x, &mixes.pre, TOKENS);
        let f: Vec<f32> = u.iter().map(|u| u.tanh()).collect();
        let comb = mhc.sinkhorn(&mixes.comb);
        let y = mhc.post(&f, &x, &mixes.post, &comb, TOKENS);
        let p = Parameters { x: wide(&x), phi: wide(&phi), scale: wide(&scale), base: wide(&base) };
        assert!(max_abs(&y, &narrow(&mhc.step(&p, f64::tanh))) < 1e-5);

        let post = mhc.post_backward(&f, &x, &mixes.post, &comb, &dy);
        let du: Vec<f32> = post.df.iter().zip(&f).map(|(df, f)| df * (1.0 - f * f)).collect();
        let (applied, dpre) = mhc.apply_backward(&x, &mixes.pre, &du);
        let dlogits = mhc.sinkhorn_backward(&mixes.comb, &post.dcomb);
        let split = mhc.split_backward(&projection.mixes, &scale, &base, (&dpre, &post.dpost, &dlogits));
        let project = mhc.project_backward(&x, &phi, &projection.raw, &projection.square_sum, &split.dmixes);
        let dx: Vec<f32> =
            post.dx.iter().zip(&applied).zip(&project.dx).map(|((post, apply), mix)| post + apply + mix).collect();
        for (parameter, got) in [
            (Parameter::X, &dx),
            (Parameter::Phi, &project.dphi),
            (Parameter::Scale, &split.dscale),
            (Parameter::Base, &split.dbase),
        ] {
            let want = narrow(&mhc.step_gradient(&p, parameter, &wide(&dy), f64::tanh));
            assert!(calc_diff(got, &want) < 1e-9, "{parameter:?}: {got:?} {want:?}");
        }
    }
}
