//! What the hyper-connection kernels promise each other, to the bit: a fused kernel computes what its parts compute, and a
//! token's result does not depend on the batch around it.

use zellige::prelude::*;
use zellige::runtime::TensorError;
use zellige_kernels::inputs::Inputs;
use zellige_kernels::mhc::apply::{MhcApply, RowsConfig};
use zellige_kernels::mhc::head::{MhcHead, TokensConfig};
use zellige_kernels::mhc::head_mix::MhcHeadMix;
use zellige_kernels::mhc::mix::{MhcMix, MixConfig};
use zellige_kernels::mhc::mix_norm::{MhcMixNorm, MixNormConfig};
use zellige_kernels::mhc::post::MhcPost;
use zellige_kernels::mhc::post_mix::MhcPostMix;
use zellige_kernels::mhc::pre_big_fuse::{FuseConfig, MhcPreBigFuse};
use zellige_kernels::mhc::recompute::MhcRecompute;
use zellige_kernels::mhc::sinkhorn::{MhcSinkhorn, SinkhornConfig};
use zellige_kernels::mhc::split::{MhcSplit, SplitConfig};

type F32<const R: usize> = DeviceTensor<f32, R>;
type Bf16<const R: usize> = DeviceTensor<bf16, R>;
type Any = Box<dyn std::error::Error>;

const EPS: f32 = 1e-6;
const POST_MULTIPLIER: f32 = 2.0;
const ROUNDS: usize = 20;
const SLABS: usize = 3;

const MIX: MixConfig = MixConfig { bt: 16, bk: 32, stages: 2, threads: 128, tf32: true };
const NORM: MixNormConfig = MixNormConfig { bt: 8, threads: 32 };
const SPLIT: SplitConfig = SplitConfig { bt: 8, threads: 32 };
const SINKHORN: SinkhornConfig = SinkhornConfig { bt: 8, threads: 32, rounds: ROUNDS };
const ROWS: RowsConfig = RowsConfig { bt: 2, bd: 32, threads: 32 };
const FUSE: FuseConfig = FuseConfig { bt: 4, threads: 32, rounds: ROUNDS };

fn devices() -> Vec<Device> {
    vec![Device::interp(), Device::cpu()]
}

fn normal<E: Element, const R: usize>(
    inputs: &mut Inputs,
    shape: [usize; R],
    scale: f64,
) -> Result<DeviceTensor<E, R>, TensorError> {
    let values = inputs.draw(shape.iter().product(), |rng| scale * zellige_kernels::inputs::normal(rng));
    DeviceTensor::from_f64(shape, &values)
}

/// The state and the parameters of one hyper-connection.
struct Problem {
    tokens: usize,
    n: usize,
    d: usize,
    x: Bf16<3>,
    phi: F32<2>,
    scale: F32<1>,
    base: F32<1>,
}

impl Problem {
    fn new(tokens: usize, n: usize, d: usize, outputs: usize) -> Result<Problem, TensorError> {
        let mut inputs = Inputs::new(1);
        Ok(Problem {
            tokens,
            n,
            d,
            x: normal(&mut inputs, [tokens, n, d], 1.0)?,
            phi: normal(&mut inputs, [outputs, n * d], 2.0 / ((n * d) as f64).sqrt())?,
            scale: normal(&mut inputs, [if outputs == n { 1 } else { 3 }], 1.0)?,
            base: normal(&mut inputs, [outputs], 1.0)?,
        })
    }

    /// The same for some of the tokens.
    fn some(&self, tokens: std::ops::Range<usize>) -> Result<Problem, TensorError> {
        Ok(Problem {
            tokens: tokens.len(),
            x: self.x.slice(0, tokens)?.contiguous()?,
            phi: self.phi.clone(),
            scale: self.scale.clone(),
            base: self.base.clone(),
            ..*self
        })
    }

    fn project(&self, stream: &Stream) -> Result<(F32<3>, F32<2>), Any> {
        let outputs = self.phi.shape()[0];
        let mut raw = F32::full([SLABS, self.tokens, outputs], 77.0)?;
        let mut square_sum = F32::full([SLABS, self.tokens], 77.0)?;
        let x = self.x.reshape([self.tokens, self.n * self.d])?;
        MhcMix::new(MIX).launch(stream, &x, &self.phi, &mut raw, &mut square_sum)?;
        Ok((raw, square_sum))
    }

    fn mixes(&self, stream: &Stream) -> Result<F32<2>, Any> {
        let (raw, square_sum) = self.project(stream)?;
        let mut mixes = F32::full([self.tokens, self.phi.shape()[0]], 77.0)?;
        let width = (self.n * self.d) as f32;
        MhcMixNorm::new(NORM).launch(stream, &raw, &square_sum, &mut mixes, width, EPS)?;
        Ok(mixes)
    }

    fn apply(&self, stream: &Stream, pre: &F32<2>) -> Result<Bf16<2>, Any> {
        let mut u = Bf16::full([self.tokens, self.d], bf16::from_f32(77.0))?;
        MhcApply::new(ROWS).launch(stream, &self.x, pre, &mut u)?;
        Ok(u)
    }

    fn pre(&self, stream: &Stream) -> Result<Pre, Any> {
        let Problem { tokens, n, .. } = *self;
        let mixes = self.mixes(stream)?;
        let (mut pre, mut post) = (F32::full([tokens, n], 77.0)?, F32::full([tokens, n], 77.0)?);
        let (mut logits, mut comb) = (F32::full([tokens, n, n], 77.0)?, F32::full([tokens, n, n], 77.0)?);
        let split = MhcSplit::new(SPLIT);
        split.launch(
            stream,
            &mixes,
            &self.scale,
            &self.base,
            &mut pre,
            &mut post,
            &mut logits,
            EPS,
            POST_MULTIPLIER,
        )?;
        MhcSinkhorn::new(SINKHORN).launch(stream, &logits, &mut comb, EPS)?;
        Pre::of(&self.apply(stream, &pre)?, &post, &comb)
    }

    fn fused_pre(&self, stream: &Stream) -> Result<Pre, Any> {
        let Problem { tokens, n, d, .. } = *self;
        let (raw, square_sum) = self.project(stream)?;
        let mut u = Bf16::full([tokens, d], bf16::from_f32(77.0))?;
        let (mut post, mut comb) = (F32::full([tokens, n], 77.0)?, F32::full([tokens, n, n], 77.0)?);
        MhcPreBigFuse::new(FUSE).launch(
            stream,
            &self.x,
            &raw,
            &square_sum,
            &self.scale,
            &self.base,
            &mut u,
            &mut post,
            &mut comb,
            EPS,
            POST_MULTIPLIER,
        )?;
        Pre::of(&u, &post, &comb)
    }
}

/// The results of everything before a sub-layer.
#[derive(PartialEq, Debug)]
struct Pre {
    u: Vec<bf16>,
    post: Vec<f32>,
    comb: Vec<f32>,
}

impl Pre {
    fn of(u: &Bf16<2>, post: &F32<2>, comb: &F32<3>) -> Result<Pre, Any> {
        Ok(Pre { u: u.to_vec()?, post: post.to_vec()?, comb: comb.to_vec()? })
    }
}

#[test]
fn the_fused_kernel_has_the_bits_of_its_parts() -> Result<(), Any> {
    for device in devices() {
        let stream = device.stream();
        for (tokens, n, d) in [(1, 4, 40), (11, 4, 24), (6, 2, 72)] {
            let p = Problem::new(tokens, n, d, n * (2 + n))?;
            assert_eq!(p.fused_pre(&stream)?, p.pre(&stream)?, "{} {tokens} {n} {d}", device.name());
        }
    }
    Ok(())
}

#[test]
fn the_head_has_the_bits_of_its_parts() -> Result<(), Any> {
    for device in devices() {
        let stream = device.stream();
        let p = Problem::new(7, 4, 40, 4)?;
        let mut pre = F32::full([7, 4], 77.0)?;
        MhcHeadMix::new(SPLIT).launch(&stream, &p.mixes(&stream)?, &p.scale, &p.base, &mut pre, EPS)?;
        let parts = p.apply(&stream, &pre)?;
        let (raw, square_sum) = p.project(&stream)?;
        let mut fused = Bf16::full([7, 40], bf16::from_f32(77.0))?;
        MhcHead::new(TokensConfig { bt: 2, threads: 32 }).launch(
            &stream,
            &p.x,
            &raw,
            &square_sum,
            &p.scale,
            &p.base,
            &mut fused,
            EPS,
        )?;
        assert_eq!(fused.to_vec()?, parts.to_vec()?, "{}", device.name());
    }
    Ok(())
}

#[test]
fn a_token_does_not_depend_on_its_batch() -> Result<(), Any> {
    for device in devices() {
        let stream = device.stream();
        let p = Problem::new(19, 4, 24, 24)?;
        let all = p.fused_pre(&stream)?;
        for range in [0..1, 17..18, 5..14] {
            let some = p.some(range.clone())?.fused_pre(&stream)?;
            let of = |width: usize| range.start * width..range.end * width;
            assert_eq!(some.u, all.u[of(24)], "{}", device.name());
            assert_eq!(some.post, all.post[of(4)], "{}", device.name());
            assert_eq!(some.comb, all.comb[of(16)], "{}", device.name());
        }
    }
    Ok(())
}

/// A sub-layer's output and what spreads it over the streams.
struct Layer {
    pre: F32<2>,
    f: Bf16<2>,
    post: F32<2>,
    comb: F32<3>,
}

impl Layer {
    fn new(inputs: &mut Inputs, tokens: usize, n: usize, d: usize) -> Result<Layer, TensorError> {
        Ok(Layer {
            pre: normal(inputs, [tokens, n], 0.5)?,
            f: normal(inputs, [tokens, d], 1.0)?,
            post: normal(inputs, [tokens, n], 1.0)?,
            comb: normal(inputs, [tokens, n, n], 0.5)?,
        })
    }

    fn after(&self, stream: &Stream, x: &Bf16<3>) -> Result<Bf16<3>, Any> {
        let mut y = Bf16::full(x.shape(), bf16::from_f32(77.0))?;
        MhcPost::new(ROWS).launch(stream, &self.f, x, &self.post, &self.comb, &mut y)?;
        Ok(y)
    }
}

/// Tensors of one shape as one tensor with a new first axis.
fn stack<E: Element, const R: usize, const S: usize>(
    all: &[&DeviceTensor<E, R>],
) -> Result<DeviceTensor<E, S>, TensorError> {
    let mut values = Vec::new();
    for t in all {
        values.extend(t.as_dyn().to_f64_vec()?);
    }
    let mut shape = [all.len(); S];
    shape[1..].copy_from_slice(&all[0].shape());
    DeviceTensor::from_f64(shape, &values)
}

#[test]
fn recomputed_layers_have_the_bits_of_apply_and_post() -> Result<(), Any> {
    let (tokens, n, d, count) = (5, 4, 40, 3);
    let p = Problem::new(tokens, n, d, n * (2 + n))?;
    let mut inputs = Inputs::new(2);
    let layers: Vec<Layer> =
        (0..count).map(|_| Layer::new(&mut inputs, tokens, n, d)).collect::<Result<_, TensorError>>()?;
    for device in devices() {
        let stream = device.stream();
        for steps in [count, count - 1] {
            let (mut x, mut u, mut states) = (p.x.clone(), Vec::new(), Vec::new());
            for (l, layer) in layers.iter().enumerate() {
                u.extend(Problem { x: x.clone(), ..p.some(0..tokens)? }.apply(&stream, &layer.pre)?.to_vec()?);
                if l < steps {
                    x = layer.after(&stream, &x)?;
                    states.extend(x.to_vec()?);
                }
            }
            let mut all_u = Bf16::full([count, tokens, d], bf16::from_f32(77.0))?;
            let mut all_states = Bf16::full([steps, tokens, n, d], bf16::from_f32(77.0))?;
            MhcRecompute::new(ROWS).launch(
                &stream,
                &p.x,
                &stack(&layers.iter().map(|l| &l.pre).collect::<Vec<_>>())?,
                &stack(&layers[..steps].iter().map(|l| &l.f).collect::<Vec<_>>())?,
                &stack(&layers[..steps].iter().map(|l| &l.post).collect::<Vec<_>>())?,
                &stack(&layers[..steps].iter().map(|l| &l.comb).collect::<Vec<_>>())?,
                &mut all_u,
                &mut all_states,
            )?;
            assert_eq!(all_u.to_vec()?, u, "{} {steps}", device.name());
            assert_eq!(all_states.to_vec()?, states, "{} {steps}", device.name());
        }
    }
    Ok(())
}

#[test]
fn post_with_the_next_projection_writes_the_bits_of_post() -> Result<(), Any> {
    let (tokens, n, d, outputs) = (21, 4, 72, 24);
    let p = Problem::new(tokens, n, d, outputs)?;
    let layer = Layer::new(&mut Inputs::new(3), tokens, n, d)?;
    for device in devices() {
        let stream = device.stream();
        let want = layer.after(&stream, &p.x)?;
        let mut y = Bf16::full([tokens, n, d], bf16::from_f32(77.0))?;
        let mut raw = F32::full([SLABS, tokens, outputs], 77.0)?;
        let mut square_sum = F32::full([SLABS, tokens], 77.0)?;
        let phi = p.phi.reshape([outputs, n, d])?;
        let Layer { f, post, comb, .. } = &layer;
        MhcPostMix::new(MIX).launch(&stream, f, &p.x, post, comb, &phi, &mut y, &mut raw, &mut square_sum)?;
        assert_eq!(y.to_vec()?, want.to_vec()?, "{}", device.name());
    }
    Ok(())
}
