//! The layers that are one call: the mixture of experts and the hyper-connection, against references of the whole.

use zellige::prelude::*;
use zellige_kernels::inputs::Inputs;
use zellige_kernels::mhc::layer::{MhcConfig, MhcError, MhcLayer};
use zellige_kernels::moe::layer::{Experts, LayerError, MoeConfig, MoeLayer, MoeOutput, Router, SharedExpert};
use zellige_kernels::reference::codec::tf32_round_half_away;
use zellige_kernels::reference::metrics::calc_diff;
use zellige_kernels::reference::mhc::Mhc;
use zellige_kernels::reference::mhc_step::{Parameter, Parameters};
use zellige_kernels::reference::moe::gate::Scoring;
use zellige_kernels::reference::moe::layer as reference;
use zellige_kernels::reference::quant::{CastSpec, CodeFormat, Quantized, ScaleFormat, cast};

type Any = Box<dyn std::error::Error>;

const HIDDEN: usize = 192;
const INNER: usize = 128;
const EXPERTS: usize = 12;
const TOP_K: usize = 3;
const VOCAB: usize = 50;

fn devices() -> Vec<Device> {
    vec![Device::interp(), Device::cpu(), Device::sim()]
}

fn normals(inputs: &mut Inputs, n: usize, scale: f64) -> Vec<f32> {
    inputs.draw(n, |rng| (scale * zellige_kernels::inputs::normal(rng)) as f32)
}

fn bf16s<const R: usize>(values: &[f32], shape: [usize; R]) -> Result<DeviceTensor<bf16, R>, Any> {
    Ok(DeviceTensor::from_slice(shape, &values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>())?)
}

fn f32s<E: Element, const R: usize>(tensor: &DeviceTensor<E, R>) -> Result<Vec<f32>, Any> {
    Ok(tensor.as_dyn().to_f64_vec()?.into_iter().map(|v| v as f32).collect())
}

/// The weights of a format: codes, and scale factors per expert, rows and columns.
fn weights<W: Element>(q: &Quantized, experts: usize) -> Result<(DeviceTensor<W, 3>, DeviceTensor<e8m0, 3>), Any> {
    let codes = DynTensor::from_bytes(W::DTYPE, &[experts, q.rows / experts, q.cols], &q.codes)?;
    // Blocks do not cross experts.
    let (rows, cols) = Quantized { rows: q.rows / experts, ..q.clone() }.scale_shape();
    let scales: Vec<e8m0> = q.scales.iter().map(|&s| e8m0::from_f32(s)).collect();
    Ok((codes.try_into()?, DeviceTensor::from_slice([experts, rows, cols], &scales)?))
}

/// A layer and the decoded values of its weights.
struct Moe<W: Element> {
    layer: MoeLayer<W, e8m0>,
    gate: Vec<f32>,
    bias: Vec<f32>,
    table: Vec<i32>,
    routed: [Vec<f32>; 2],
    shared: Option<[Vec<f32>; 2]>,
    config: MoeConfig,
}

impl<W: zellige_kernels::gemm::product::Weight> Moe<W> {
    fn new(hash: bool, with_shared: bool, group: usize) -> Result<Moe<W>, Any> {
        let mut inputs = Inputs::new(40);
        let gate = normals(&mut inputs, EXPERTS * HIDDEN, 0.1);
        let gate_tensor = bf16s(&gate, [EXPERTS, HIDDEN])?;
        // Expert 5 is never chosen, expert 2 often.
        let mut bias = normals(&mut inputs, EXPERTS, 0.1);
        (bias[5], bias[2]) = (-50.0, 1.0);
        let table: Vec<i32> = (0..(VOCAB * TOP_K) as i32).map(|i| (i / 3 + 4 * (i % 3)) % EXPERTS as i32).collect();
        let fp8 = CastSpec { block: (128, 128), ..CastSpec::per_token(CodeFormat::E4m3, 128, ScaleFormat::Ue8m0) };
        let mxfp4 = CastSpec::per_token(CodeFormat::E2m1, 32, ScaleFormat::Ue8m0);
        let spec = if W::DTYPE == zellige_ir::DType::F4E2M1 { mxfp4 } else { fp8 };
        let [gate_up, down] = [(2 * INNER, HIDDEN), (HIDDEN, INNER)].map(|(rows, cols)| {
            // Expert by expert: blocks do not cross experts.
            let scale = 1.0 / (cols as f64).sqrt();
            let parts: Vec<Quantized> =
                (0..EXPERTS).map(|_| cast(&normals(&mut inputs, rows * cols, scale), rows, cols, &spec)).collect();
            Quantized {
                rows: rows * EXPERTS,
                codes: parts.iter().flat_map(|q| q.codes.iter().copied()).collect(),
                scales: parts.iter().flat_map(|q| q.scales.iter().copied()).collect(),
                ..parts[0].clone()
            }
        });
        let routed = [&gate_up, &down].map(|q| {
            let per_expert = Quantized { rows: q.rows / EXPERTS, ..q.clone() };
            let codes = q.codes.len() / EXPERTS;
            let scales = q.scales.len() / EXPERTS;
            (0..EXPERTS)
                .flat_map(|e| {
                    let codes = q.codes[e * codes..][..codes].to_vec();
                    Quantized { codes, scales: q.scales[e * scales..][..scales].to_vec(), ..per_expert.clone() }
                        .dequantize()
                })
                .collect::<Vec<f32>>()
        });
        let shared = with_shared.then(|| {
            [(2 * INNER, HIDDEN), (HIDDEN, INNER)].map(|(rows, cols)| {
                cast(&normals(&mut inputs, rows * cols, 1.0 / (cols as f64).sqrt()), rows, cols, &fp8)
            })
        });
        let scale_tensor = |q: &Quantized| -> Result<DeviceTensor<e8m0, 2>, Any> {
            let (rows, cols) = q.scale_shape();
            let scales: Vec<e8m0> = q.scales.iter().map(|&s| e8m0::from_f32(s)).collect();
            Ok(DeviceTensor::from_slice([rows, cols], &scales)?)
        };
        let code_tensor = |q: &Quantized| -> Result<DeviceTensor<f8e4m3, 2>, Any> {
            Ok(DynTensor::from_bytes(zellige_ir::DType::F8E4M3, &[q.rows, q.cols], &q.codes)?.try_into()?)
        };
        let shared_expert = match &shared {
            None => None,
            Some([gate_up, down]) => Some(SharedExpert {
                gate_up: code_tensor(gate_up)?,
                gate_up_sf: scale_tensor(gate_up)?,
                down: code_tensor(down)?,
                down_sf: scale_tensor(down)?,
            }),
        };
        let router = if hash {
            Router::Hash { table: DeviceTensor::from_slice([VOCAB, TOP_K], &table)? }
        } else {
            Router::Biased { bias: DeviceTensor::from_slice([EXPERTS], &bias)? }
        };
        let (gate_up, gate_up_sf) = weights(&gate_up, EXPERTS)?;
        let (down, down_sf) = weights(&down, EXPERTS)?;
        let config = MoeConfig { top_k: TOP_K, group, ..MoeConfig::default() };
        let experts = Experts { gate_up, gate_up_sf, down, down_sf };
        Ok(Moe {
            gate: f32s(&gate_tensor)?,
            layer: MoeLayer::new(config, gate_tensor, router, experts, shared_expert)?,
            bias,
            table,
            routed,
            shared: shared.map(|s| s.map(|q| q.dequantize())),
            config,
        })
    }

    fn reference(&self, x: &[f32], token_ids: Option<&[i32]>) -> reference::Output {
        let layer = reference::Layer {
            hidden: HIDDEN,
            inner: INNER,
            experts: EXPERTS,
            top_k: TOP_K,
            scoring: Scoring::SqrtSoftplus,
            route_scale: self.config.route_scale,
            limit: self.config.limit,
            group: self.config.group,
            router: &self.gate,
            choice: match token_ids {
                None => reference::Choice::Biased(&self.bias),
                Some(ids) => reference::Choice::Hash(ids, &self.table),
            },
            routed: reference::Expert { gate_up: &self.routed[0], down: &self.routed[1] },
            shared: self.shared.as_ref().map(|s| reference::Expert { gate_up: &s[0], down: &s[1] }),
        };
        layer.forward(x)
    }
}

fn tokens(count: usize) -> Result<DeviceTensor<bf16, 2>, Any> {
    bf16s(&normals(&mut Inputs::new(41), count * HIDDEN, 1.0), [count, HIDDEN])
}

fn agrees(got: &MoeOutput, want: &reference::Output) -> Result<(), Any> {
    assert_eq!(got.ids.to_vec()?, want.routing.ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>());
    assert!(calc_diff(&got.weights.to_vec()?, &want.routing.weights) < 1e-12);
    // A sum in another order moves a bf16 or an e4m3 value across a rounding boundary now and then.
    let diff = calc_diff(&f32s(&got.y)?, &want.y);
    assert!(diff < 2e-5, "{diff}");
    Ok(())
}

#[test]
fn a_layer_with_mxfp4_experts_and_a_shared_one_agrees_with_its_reference() -> Result<(), Any> {
    let moe = Moe::<f4e2m1>::new(false, true, 128)?;
    let x = tokens(21)?;
    let want = moe.reference(&f32s(&x)?, None);
    for device in devices() {
        agrees(&moe.layer.forward(&device.stream(), &x, None)?, &want)?;
    }
    Ok(())
}

#[test]
fn activations_may_have_the_groups_of_mxfp4() -> Result<(), Any> {
    let moe = Moe::<f4e2m1>::new(false, true, 32)?;
    let x = tokens(9)?;
    agrees(&moe.layer.forward(&Device::cpu().stream(), &x, None)?, &moe.reference(&f32s(&x)?, None))
}

#[test]
fn a_layer_with_fp8_experts_chosen_by_token_id_agrees_with_its_reference() -> Result<(), Any> {
    let moe = Moe::<f8e4m3>::new(true, false, 128)?;
    let x = tokens(17)?;
    let ids: Vec<i32> = (0..17).map(|t| (t * 7 + 3) % VOCAB as i32).collect();
    let want = moe.reference(&f32s(&x)?, Some(&ids));
    let ids = DeviceTensor::from_slice([17], &ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>())?;
    for device in devices() {
        agrees(&moe.layer.forward(&device.stream(), &x, Some(&ids))?, &want)?;
    }
    Ok(())
}

#[test]
fn a_tokens_bits_do_not_depend_on_the_batch() -> Result<(), Any> {
    let moe = Moe::<f4e2m1>::new(false, true, 128)?;
    for (device, count) in [(Device::cpu(), 200), (Device::sim(), 20)] {
        let x = tokens(count)?;
        let stream = device.stream();
        let all = moe.layer.forward(&stream, &x, None)?;
        assert_eq!(moe.layer.forward(&stream, &x, None)?.y.to_vec()?, all.y.to_vec()?, "a second run");
        for range in [0..1, 7..19, count - 1..count] {
            let part = moe.layer.forward(&stream, &x.slice(0, range.clone())?.contiguous()?, None)?;
            assert_eq!(part.y.to_vec()?, all.y.slice(0, range)?.contiguous()?.to_vec()?);
        }
    }
    Ok(())
}

#[test]
fn no_tokens_are_no_work() -> Result<(), Any> {
    let moe = Moe::<f8e4m3>::new(false, true, 128)?;
    let out = moe.layer.forward(&Device::cpu().stream(), &tokens(0)?, None)?;
    assert_eq!((out.y.shape(), out.ids.shape()), ([0, HIDDEN], [0, TOP_K]));
    Ok(())
}

#[test]
fn a_layer_that_does_not_fit_together_says_what_is_wrong() -> Result<(), Any> {
    let moe = Moe::<f8e4m3>::new(true, false, 128)?;
    let stream = Device::cpu().stream();
    let error = moe.layer.forward(&stream, &tokens(3)?, None).unwrap_err();
    assert!(matches!(error, LayerError::TokenIds { tokens: 3 }), "{error}");
    let error = moe.layer.forward(&stream, &bf16s(&[0.0; 64], [1, 64])?, None).unwrap_err();
    assert_eq!(error.to_string(), "`x` has shape [1, 64], expected [1, 192] from `gate`");
    let parts = || -> Result<_, Any> {
        let gate_up = DeviceTensor::<f8e4m3, 3>::zeros([4, 256, 64])?;
        let (gate_up_sf, down_sf) = (DeviceTensor::<f32, 3>::zeros([4, 2, 1])?, DeviceTensor::zeros([4, 1, 1])?);
        let experts = Experts { gate_up, gate_up_sf, down: DeviceTensor::zeros([4, 64, 128])?, down_sf };
        let router = Router::Biased { bias: DeviceTensor::zeros([4])? };
        Ok((DeviceTensor::<bf16, 2>::zeros([4, 64])?, router, experts))
    };
    let new = |config: MoeConfig, spoil: fn(&mut Experts<f8e4m3, f32>)| -> Result<String, Any> {
        let (gate, router, mut experts) = parts()?;
        spoil(&mut experts);
        Ok(MoeLayer::new(config, gate, router, experts, None).err().map(|e| e.to_string()).unwrap_or_default())
    };
    let config = MoeConfig { top_k: 2, ..MoeConfig::default() };
    assert_eq!(new(config, |_| {})?, "");
    assert!(new(MoeConfig { top_k: 5, ..config }, |_| {})?.starts_with("5 experts per token of 4"));
    assert!(new(MoeConfig { group: 32, ..config }, |_| {})?.starts_with("activations in groups of 32"));
    assert_eq!(
        new(config, |e| e.down = DeviceTensor::zeros([4, 64, 64]).expect("small"))?,
        "`experts.down` has shape [4, 64, 64], expected [4, 64, 128] from `gate and experts.gate_up`"
    );
    Ok(())
}

/// A hyper-connection's parameters and a state.
struct Step {
    mhc: Mhc,
    layer: MhcLayer,
    x: DeviceTensor<bf16, 3>,
    dy: DeviceTensor<bf16, 3>,
    parameters: Parameters,
}

impl Step {
    fn new(tokens: usize, n: usize, d: usize) -> Result<Step, Any> {
        let mut inputs = Inputs::new(42);
        let mhc = Mhc { streams: n, ..Mhc::v4(d) };
        let outputs = mhc.mixes();
        let x = bf16s(&normals(&mut inputs, tokens * n * d, 1.0), [tokens, n, d])?;
        let dy = bf16s(&normals(&mut inputs, tokens * n * d, 1.0), [tokens, n, d])?;
        // Numbers of tf32, so that the projection rounds nothing.
        let phi = normals(&mut inputs, outputs * n * d, 1.0 / ((n * d) as f64).sqrt());
        let phi: Vec<f32> = phi.iter().map(|&v| tf32_round_half_away(v)).collect();
        let (scale, base) = (normals(&mut inputs, 3, 1.0), normals(&mut inputs, outputs, 1.0));
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let parameters =
            Parameters { x: x.as_dyn().to_f64_vec()?, phi: wide(&phi), scale: wide(&scale), base: wide(&base) };
        let layer = MhcLayer::new(
            MhcConfig::default(),
            DeviceTensor::from_slice([outputs, n * d], &phi)?,
            DeviceTensor::from_slice([3], &scale)?,
            DeviceTensor::from_slice([outputs], &base)?,
        )?;
        Ok(Step { mhc, layer, x, dy, parameters })
    }
}

/// The sub-layer of the tests, and its gradient from its output.
fn tanh(u: &DeviceTensor<bf16, 2>) -> Result<DeviceTensor<bf16, 2>, Any> {
    bf16s(&f32s(u)?.iter().map(|u| u.tanh()).collect::<Vec<_>>(), u.shape())
}

fn tanh_backward(f: &DeviceTensor<bf16, 2>, df: &DeviceTensor<bf16, 2>) -> Result<DeviceTensor<bf16, 2>, Any> {
    let du: Vec<f32> = f32s(f)?.iter().zip(f32s(df)?).map(|(f, df)| df * (1.0 - f * f)).collect();
    bf16s(&du, f.shape())
}

#[test]
fn the_gradient_of_a_hyper_connection_agrees_with_finite_differences() -> Result<(), Any> {
    for (tokens, n, d) in [(3, 4, 12), (2, 2, 20)] {
        let step = Step::new(tokens, n, d)?;
        let want_y: Vec<f32> = step.mhc.step(&step.parameters, f64::tanh).iter().map(|&v| v as f32).collect();
        let dy = step.dy.as_dyn().to_f64_vec()?;
        let want = [Parameter::X, Parameter::Phi, Parameter::Scale, Parameter::Base].map(|parameter| {
            let gradient = step.mhc.step_gradient(&step.parameters, parameter, &dy, f64::tanh);
            gradient.iter().map(|&v| v as f32).collect::<Vec<f32>>()
        });
        for device in devices() {
            let stream = device.stream();
            let mut f = None;
            let (y, saved) = step.layer.forward(&stream, &step.x, |u| {
                let out = tanh(u)?;
                f = Some(out.clone());
                Ok::<_, Any>(out)
            })?;
            // Values and gradients are rounded to bf16 at every stage: 2^-9 each.
            assert!(calc_diff(&f32s(&y)?, &want_y) < 1e-5);
            let f = f.expect("the sub-layer ran");
            let gradients = step.layer.backward(&stream, &saved, &step.dy, |df| tanh_backward(&f, df))?;
            let got = [f32s(&gradients.x)?, f32s(&gradients.phi)?, f32s(&gradients.scale)?, f32s(&gradients.base)?];
            for ((got, want), name) in got.iter().zip(&want).zip(["x", "phi", "scale", "base"]) {
                let diff = calc_diff(got, want);
                assert!(diff < 5e-5, "d{name} with {n} streams on {}: {diff}", device.name());
            }
        }
    }
    Ok(())
}

#[test]
fn inference_gives_the_bits_of_training_for_any_batch() -> Result<(), Any> {
    let step = Step::new(70, 4, 24)?;
    for device in [Device::cpu(), Device::sim()] {
        let stream = device.stream();
        let (y, _) = step.layer.forward(&stream, &step.x, tanh)?;
        assert_eq!(step.layer.infer(&stream, &step.x, tanh)?.to_vec()?, y.to_vec()?);
        for range in [0..1, 33..69] {
            let part = step.layer.infer(&stream, &step.x.slice(0, range.clone())?.contiguous()?, tanh)?;
            assert_eq!(part.to_vec()?, y.slice(0, range)?.contiguous()?.to_vec()?);
        }
    }
    Ok(())
}

#[test]
fn a_hyper_connection_of_no_tokens_has_a_gradient_of_zero() -> Result<(), Any> {
    let step = Step::new(0, 4, 8)?;
    for device in devices() {
        let stream = device.stream();
        let (y, saved) = step.layer.forward(&stream, &step.x, tanh)?;
        let gradients = step.layer.backward::<Any>(&stream, &saved, &step.dy, |df| Ok(df.clone()))?;
        assert_eq!((y.shape(), gradients.x.shape()), ([0, 4, 8], [0, 4, 8]));
        for parameter in [f32s(&gradients.phi)?, f32s(&gradients.scale)?, f32s(&gradients.base)?] {
            assert!(parameter.iter().all(|&v| v == 0.0), "{parameter:?}");
        }
    }
    Ok(())
}

#[test]
fn a_hyper_connection_that_does_not_fit_together_says_what_is_wrong() -> Result<(), Any> {
    let new = |phi: [usize; 2], base: usize, config: MhcConfig| -> Result<String, Any> {
        let layer =
            MhcLayer::new(config, DeviceTensor::zeros(phi)?, DeviceTensor::zeros([3])?, DeviceTensor::zeros([base])?);
        Ok(layer.err().map(|e| e.to_string()).unwrap_or_default())
    };
    let config = MhcConfig::default();
    assert_eq!(new([24, 64], 24, config)?, "");
    assert!(new([25, 64], 25, config)?.starts_with("phi has 25 rows"));
    assert!(new([24, 64], 8, config)?.contains("`base` 8 elements"));
    assert_eq!(new([24, 63], 24, config)?, "phi has 63 columns, which are not 4 streams of equal width");
    assert!(new([24, 64], 24, MhcConfig { rounds: 0, ..config })?.starts_with("a Sinkhorn normalisation of no rounds"));
    let step = Step::new(2, 4, 8)?;
    let stream = Device::cpu().stream();
    let error = step.layer.infer::<MhcError>(&stream, &step.x, |_| Ok(DeviceTensor::zeros([2, 9])?)).unwrap_err();
    assert_eq!(error.to_string(), "`the sub-layer's output` has shape [2, 9], expected [2, 8]");
    Ok(())
}
