//! A whole hyper-connection step in one call: forward around a sub-layer, its gradient, and the fused form for
//! inference.
//!
//! ```
//! use zellige::prelude::*;
//! use zellige_kernels::mhc::layer::{MhcConfig, MhcError, MhcLayer};
//!
//! # fn main() -> Result<(), MhcError> {
//! let (tokens, n, d) = (3, 4, 64);
//! let phi = DeviceTensor::zeros([n * (2 + n), n * d])?;
//! let (scale, base) = (DeviceTensor::zeros([3])?, DeviceTensor::zeros([n * (2 + n)])?);
//! let layer = MhcLayer::new(MhcConfig::default(), phi, scale, base)?;
//! let stream = Device::cpu().stream();
//! let x = DeviceTensor::full([tokens, n, d], bf16::from_f32(1.0))?;
//! // A sub-layer that returns its input, 4 * 0.5; the streams are averaged and it is added.
//! let (y, saved) = layer.forward::<MhcError>(&stream, &x, |u| Ok(u.clone()))?;
//! assert!(y.to_vec()?.iter().all(|y| y.to_f32() == 3.0));
//! let gradients = layer.backward::<MhcError>(&stream, &saved, &x, |df| Ok(df.clone()))?;
//! assert_eq!(gradients.x.shape(), x.shape());
//! # Ok(())
//! # }
//! ```
//!
//! Depends on the kernels of this folder and on [`column_sum`](crate::norm::column_sum::column_sum); computes nothing itself.

use super::apply::{MhcApply, RowsConfig};
use super::apply_backward::MhcApplyBackward;
use super::mix::{MhcMix, MixConfig};
use super::mix_backward::MhcMixBackward;
use super::mix_norm::{MhcMixNorm, MixNormConfig};
use super::mix_norm_backward::MhcMixNormBackward;
use super::post::MhcPost;
use super::post_backward::MhcPostBackward;
use super::pre_big_fuse::{FuseConfig, MhcPreBigFuse};
use super::sinkhorn::{MhcSinkhorn, SinkhornConfig};
use super::sinkhorn_backward::MhcSinkhornBackward;
use super::split::{MhcSplit, SplitConfig};
use super::split_backward::MhcSplitBackward;
use super::{apply_backward, mix, mix_backward, post_backward, split_backward};
use crate::norm::column_sum::{ColumnSum, ColumnSumConfig};
use zellige::prelude::*;
use zellige::runtime::TensorError;

/// Slabs that the projection's sum, and sums over tokens, are cut into: fixed, so that bits depend on nothing else.
const SLABS: usize = 16;
/// The same of the gradient by phi, each as large as phi.
const TOKEN_SLABS: usize = 8;

/// Parts that the small sums over tokens are cut into.
const PARTS: usize = 128;

const NORM: MixNormConfig = MixNormConfig::DEFAULT;
const SPLIT: SplitConfig = SplitConfig { bt: 32, threads: 128 };

/// The constants of a hyper-connection. The defaults are DeepSeek-V4's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MhcConfig {
    /// Of the norm, of `pre` and of every Sinkhorn division.
    pub eps: f32,
    /// Factor on `post`.
    pub post_multiplier: f32,
    /// Column steps of the Sinkhorn normalisation.
    pub rounds: usize,
    /// Round phi to tf32 for the projection, half away from zero; else multiply in f32.
    pub tf32: bool,
}

impl Default for MhcConfig {
    fn default() -> MhcConfig {
        MhcConfig { eps: 1e-6, post_multiplier: 2.0, rounds: 20, tf32: true }
    }
}

/// Why a step cannot be made, or did not run.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MhcError {
    #[error("`{tensor}` has shape {found:?}, expected {expected:?}")]
    Shape { tensor: &'static str, found: Vec<usize>, expected: Vec<usize> },
    #[error("phi has {outputs} rows and `base` {base} elements: both are n (2 + n) for n streams, such as 24 for 4")]
    Outputs { outputs: usize, base: usize },
    #[error("phi has {columns} columns, which are not {streams} streams of equal width")]
    Columns { columns: usize, streams: usize },
    #[error("a Sinkhorn normalisation of no rounds: V4 has 20")]
    NoRounds,
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The parameters of a hyper-connection around one sub-layer, with n streams of width d.
#[derive(Clone, Debug)]
pub struct MhcLayer {
    config: MhcConfig,
    /// [n (2 + n), n d].
    phi: DeviceTensor<f32, 2>,
    /// Of `pre`, `post` and the residual matrix, `[3]`.
    scale: DeviceTensor<f32, 1>,
    /// [n (2 + n)].
    base: DeviceTensor<f32, 1>,
    streams: usize,
    dim: usize,
}

/// What the gradient needs of a forward step.
#[derive(Clone, Debug)]
pub struct Saved {
    x: DeviceTensor<bf16, 3>,
    /// The sub-layer's output.
    f: DeviceTensor<bf16, 2>,
    coefficients: Coefficients,
}

/// Everything that follows from a state before the sub-layer runs.
#[derive(Clone, Debug)]
struct Coefficients {
    raw: DeviceTensor<f32, 3>,
    square_sum: DeviceTensor<f32, 2>,
    mixes: DeviceTensor<f32, 2>,
    pre: DeviceTensor<f32, 2>,
    post: DeviceTensor<f32, 2>,
    logits: DeviceTensor<f32, 3>,
    comb: DeviceTensor<f32, 3>,
}

/// The gradients of a step.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// [tokens, n, d].
    pub x: DeviceTensor<bf16, 3>,
    /// [n (2 + n), n d].
    pub phi: DeviceTensor<f32, 2>,
    /// `[3]`.
    pub scale: DeviceTensor<f32, 1>,
    /// [n (2 + n)].
    pub base: DeviceTensor<f32, 1>,
}

fn expect(tensor: &'static str, found: &[usize], expected: &[usize]) -> Result<(), MhcError> {
    if found == expected {
        return Ok(());
    }
    Err(MhcError::Shape { tensor, found: found.to_vec(), expected: expected.to_vec() })
}

/// The columns of parts, added in order.
fn sum_of_parts<const R: usize>(
    stream: &Stream,
    parts: &DeviceTensor<f32, 2>,
    shape: [usize; R],
) -> Result<DeviceTensor<f32, R>, MhcError> {
    let mut sum = DeviceTensor::zeros([parts.shape()[1]])?;
    ColumnSum::new(ColumnSumConfig::default()).launch(stream, parts, &mut sum)?;
    Ok(sum.reshape(shape)?)
}

impl MhcLayer {
    /// Puts a hyper-connection together.
    ///
    /// # Errors
    /// If the shapes are not those of n streams of one width.
    pub fn new(
        config: MhcConfig,
        phi: DeviceTensor<f32, 2>,
        scale: DeviceTensor<f32, 1>,
        base: DeviceTensor<f32, 1>,
    ) -> Result<MhcLayer, MhcError> {
        let [outputs, columns] = phi.shape();
        let [base_len] = base.shape();
        let streams = (1..=outputs).find(|n| n * (2 + n) == outputs).filter(|_| base_len == outputs);
        let streams = streams.ok_or(MhcError::Outputs { outputs, base: base_len })?;
        if columns == 0 || !columns.is_multiple_of(streams) {
            return Err(MhcError::Columns { columns, streams });
        }
        if config.rounds == 0 {
            return Err(MhcError::NoRounds);
        }
        expect("scale", &scale.shape(), &[3])?;
        Ok(MhcLayer { config, phi, scale, base, streams, dim: columns / streams })
    }

    /// How many streams a state has, n.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// The width of a stream, d.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The next state for `x` [tokens, n, d], and what its gradient needs: `u = bf16(sum_j pre_j X_j)`, `f = sublayer(u)`,
    /// `X'_k = bf16(post_k f + sum_j C[j, k] X_j)`, where `pre`, `post` and C follow from `x`. `sublayer` takes and returns
    /// [tokens, d]. The bits of a token depend on no other token as long as those of the sub-layer do not.
    ///
    /// # Errors
    /// If a shape does not fit, memory runs out, a kernel fails, or the sub-layer does.
    pub fn forward<E: From<MhcError>>(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 3>,
        sublayer: impl FnOnce(&DeviceTensor<bf16, 2>) -> Result<DeviceTensor<bf16, 2>, E>,
    ) -> Result<(DeviceTensor<bf16, 3>, Saved), E> {
        let (u, coefficients) = self.before(stream, x)?;
        let f = sublayer(&u)?;
        let y = self.after(stream, x, &f, &coefficients.post, &coefficients.comb)?;
        Ok((y, Saved { x: x.clone(), f, coefficients }))
    }

    /// [`forward`](MhcLayer::forward) with the coefficients and `u` in one kernel and nothing saved: the same bits.
    ///
    /// # Errors
    /// As [`forward`](MhcLayer::forward).
    pub fn infer<E: From<MhcError>>(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 3>,
        sublayer: impl FnOnce(&DeviceTensor<bf16, 2>) -> Result<DeviceTensor<bf16, 2>, E>,
    ) -> Result<DeviceTensor<bf16, 3>, E> {
        let (u, post, comb) = self.fused(stream, x)?;
        let f = sublayer(&u)?;
        Ok(self.after(stream, x, &f, &post, &comb)?)
    }

    /// The gradients of a step from that of its result, `dy` [tokens, n, d]. `sublayer_backward` takes the gradient of the
    /// sub-layer's output to that of its input, both [tokens, d]. `x`'s gradient is rounded to bf16 after each of the three
    /// parts that add to it: post, apply, projection. Sums over tokens are formed in a fixed order.
    ///
    /// # Errors
    /// As [`forward`](MhcLayer::forward).
    pub fn backward<E: From<MhcError>>(
        &self,
        stream: &Stream,
        saved: &Saved,
        dy: &DeviceTensor<bf16, 3>,
        sublayer_backward: impl FnOnce(&DeviceTensor<bf16, 2>) -> Result<DeviceTensor<bf16, 2>, E>,
    ) -> Result<Gradients, E> {
        let (df, partial) = self.post_backward(stream, saved, dy)?;
        let du = sublayer_backward(&df)?;
        Ok(self.pre_backward(stream, saved, &du, partial)?)
    }

    fn project(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 3>,
    ) -> Result<(DeviceTensor<f32, 3>, DeviceTensor<f32, 2>), MhcError> {
        let tokens = x.shape()[0];
        expect("x", &x.shape(), &[tokens, self.streams, self.dim])?;
        let mut raw = DeviceTensor::zeros([SLABS, tokens, self.phi.shape()[0]])?;
        let mut square_sum = DeviceTensor::zeros([SLABS, tokens])?;
        let flat = x.reshape([tokens, self.streams * self.dim])?;
        let config = MixConfig { tf32: self.config.tf32, ..mix::DEFAULT };
        MhcMix::new(config).launch(stream, &flat, &self.phi, &mut raw, &mut square_sum)?;
        Ok((raw, square_sum))
    }

    /// Width of a state as the norm's divisor.
    fn width(&self) -> f32 {
        (self.streams * self.dim) as f32
    }

    fn before(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 3>,
    ) -> Result<(DeviceTensor<bf16, 2>, Coefficients), MhcError> {
        let MhcConfig { eps, post_multiplier, .. } = self.config;
        let (tokens, n) = (x.shape()[0], self.streams);
        let (raw, square_sum) = self.project(stream, x)?;
        let mut mixes = DeviceTensor::zeros([tokens, self.phi.shape()[0]])?;
        MhcMixNorm::new(NORM).launch(stream, &raw, &square_sum, &mut mixes, self.width(), eps)?;
        let (mut pre, mut post) = (DeviceTensor::zeros([tokens, n])?, DeviceTensor::zeros([tokens, n])?);
        let (mut logits, mut comb) = (DeviceTensor::zeros([tokens, n, n])?, DeviceTensor::zeros([tokens, n, n])?);
        let (scale, base) = (&self.scale, &self.base);
        let split = MhcSplit::new(SPLIT);
        split.launch(stream, &mixes, scale, base, &mut pre, &mut post, &mut logits, eps, post_multiplier)?;
        MhcSinkhorn::new(self.sinkhorn()).launch(stream, &logits, &mut comb, eps)?;
        let mut u = DeviceTensor::zeros([tokens, self.dim])?;
        MhcApply::new(RowsConfig::DEFAULT).launch(stream, x, &pre, &mut u)?;
        Ok((u, Coefficients { raw, square_sum, mixes, pre, post, logits, comb }))
    }

    fn sinkhorn(&self) -> SinkhornConfig {
        SinkhornConfig { bt: 32, threads: 32, rounds: self.config.rounds }
    }

    /// The sub-layer's input, `post` and C.
    #[allow(clippy::type_complexity)]
    fn fused(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 3>,
    ) -> Result<(DeviceTensor<bf16, 2>, DeviceTensor<f32, 2>, DeviceTensor<f32, 3>), MhcError> {
        let MhcConfig { eps, post_multiplier, rounds, .. } = self.config;
        let (tokens, n) = (x.shape()[0], self.streams);
        let (raw, square_sum) = self.project(stream, x)?;
        let mut u = DeviceTensor::zeros([tokens, self.dim])?;
        let (mut post, mut comb) = (DeviceTensor::zeros([tokens, n])?, DeviceTensor::zeros([tokens, n, n])?);
        MhcPreBigFuse::new(FuseConfig { rounds, ..FuseConfig::DEFAULT }).launch(
            stream,
            x,
            &raw,
            &square_sum,
            &self.scale,
            &self.base,
            &mut u,
            &mut post,
            &mut comb,
            eps,
            post_multiplier,
        )?;
        Ok((u, post, comb))
    }

    fn after(
        &self,
        stream: &Stream,
        x: &DeviceTensor<bf16, 3>,
        f: &DeviceTensor<bf16, 2>,
        post: &DeviceTensor<f32, 2>,
        comb: &DeviceTensor<f32, 3>,
    ) -> Result<DeviceTensor<bf16, 3>, MhcError> {
        expect("the sub-layer's output", &f.shape(), &[x.shape()[0], self.dim])?;
        let mut y = DeviceTensor::zeros(x.shape())?;
        MhcPost::new(RowsConfig::DEFAULT).launch(stream, f, x, post, comb, &mut y)?;
        Ok(y)
    }

    fn post_backward(
        &self,
        stream: &Stream,
        saved: &Saved,
        dy: &DeviceTensor<bf16, 3>,
    ) -> Result<(DeviceTensor<bf16, 2>, Partial), MhcError> {
        let Saved { x, f, coefficients: c } = saved;
        expect("dy", &dy.shape(), &x.shape())?;
        let mut df = DeviceTensor::zeros(f.shape())?;
        let mut dx = DeviceTensor::zeros(x.shape())?;
        let mut dpost = DeviceTensor::zeros(c.post.shape())?;
        let mut dcomb = DeviceTensor::zeros(c.comb.shape())?;
        MhcPostBackward::new(post_backward::DEFAULT)
            .launch(stream, f, x, &c.post, &c.comb, dy, &mut df, &mut dx, &mut dpost, &mut dcomb)?;
        Ok((df, Partial { dx, dpost, dcomb }))
    }

    fn pre_backward(
        &self,
        stream: &Stream,
        saved: &Saved,
        du: &DeviceTensor<bf16, 2>,
        partial: Partial,
    ) -> Result<Gradients, MhcError> {
        let MhcConfig { eps, post_multiplier, tf32, .. } = self.config;
        let Saved { x, f, coefficients: c } = saved;
        let Partial { mut dx, dpost, dcomb } = partial;
        expect("the gradient of the sub-layer's input", &du.shape(), &f.shape())?;
        let (tokens, outputs) = (x.shape()[0], self.phi.shape()[0]);
        let mut dpre = DeviceTensor::zeros(c.pre.shape())?;
        MhcApplyBackward::new(apply_backward::DEFAULT).launch(stream, x, &c.pre, du, &mut dx, &mut dpre)?;
        let mut dlogits = DeviceTensor::zeros(c.logits.shape())?;
        MhcSinkhornBackward::new(self.sinkhorn()).launch(stream, &c.logits, &dcomb, &mut dlogits, eps)?;
        let mut dmixes = DeviceTensor::zeros(c.mixes.shape())?;
        let mut dscale = DeviceTensor::zeros([PARTS, 3])?;
        let mut dbase = DeviceTensor::zeros([PARTS, outputs])?;
        MhcSplitBackward::new(split_backward::DEFAULT).launch(
            stream,
            &c.mixes,
            &self.scale,
            &self.base,
            &dpre,
            &dpost,
            &dlogits,
            &mut dmixes,
            &mut dscale,
            &mut dbase,
            post_multiplier,
        )?;
        let mut draw = DeviceTensor::zeros([tokens, outputs])?;
        let mut dsquare_sum = DeviceTensor::zeros([tokens])?;
        MhcMixNormBackward::new(NORM).launch(
            stream,
            &dmixes,
            &c.raw,
            &c.square_sum,
            &mut draw,
            &mut dsquare_sum,
            self.width(),
            eps,
        )?;
        let columns = self.streams * self.dim;
        let flat = x.reshape([tokens, columns])?;
        let mut dx_flat = dx.reshape([tokens, columns])?;
        let mut dphi = DeviceTensor::zeros([TOKEN_SLABS, outputs, columns])?;
        let kernel = MhcMixBackward::new(MixConfig { tf32, ..mix_backward::DEFAULT });
        kernel.launch(stream, &flat, &self.phi, &draw, &dsquare_sum, &mut dx_flat, &mut dphi)?;
        Ok(Gradients {
            x: dx,
            phi: sum_of_parts(stream, &dphi.reshape([TOKEN_SLABS, outputs * columns])?, [outputs, columns])?,
            scale: sum_of_parts(stream, &dscale, [3])?,
            base: sum_of_parts(stream, &dbase, [outputs])?,
        })
    }
}

/// Gradients halfway through a step.
struct Partial {
    /// Of the state, without the parts of `u` and of the projection.
    dx: DeviceTensor<bf16, 3>,
    dpost: DeviceTensor<f32, 2>,
    dcomb: DeviceTensor<f32, 3>,
}
