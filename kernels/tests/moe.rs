//! Training a mixture of experts: a layer's gradients against finite differences, and products of groups that are given by
//! prefix sums.

use zellige::prelude::*;
use zellige_kernels::gemm::grouped::GroupedGemm;
use zellige_kernels::gemm::product::ProductConfig;
use zellige_kernels::inputs::Inputs;
use zellige_kernels::moe::expert_of_rows::{ExpertOfRows, ExpertOfRowsConfig};
use zellige_kernels::moe::layer::{LayerError, MoeConfig, Router};
use zellige_kernels::moe::score::Scoring;
use zellige_kernels::moe::training::{ExpertWeights, MoeGradients, MoeTraining};
use zellige_kernels::reference::gemm::grouped_gemm_nt;
use zellige_kernels::reference::metrics::calc_diff;
use zellige_kernels::reference::moe::gate;
use zellige_kernels::reference::moe::training::{Parameter, Parameters, Training};

type Any = Box<dyn std::error::Error>;
type Bf16<const R: usize> = DeviceTensor<bf16, R>;

const HIDDEN: usize = 24;
const INNER: usize = 20;
const EXPERTS: usize = 6;
const TOP_K: usize = 2;
const VOCAB: usize = 9;
/// Experts that are never chosen.
const EMPTY: [i32; 2] = [2, 5];

fn devices() -> Vec<Device> {
    vec![Device::interp(), Device::cpu(), Device::sim()]
}

fn normal<const R: usize>(inputs: &mut Inputs, shape: [usize; R], scale: f64) -> Result<Bf16<R>, Any> {
    let values = inputs.draw(shape.iter().product(), |rng| scale * zellige_kernels::inputs::normal(rng));
    Ok(DeviceTensor::from_f64(shape, &values)?)
}

fn f32s<E: Element, const R: usize>(tensor: &DeviceTensor<E, R>) -> Result<Vec<f32>, Any> {
    Ok(tensor.as_dyn().to_f32_vec()?)
}

fn f64s<E: Element, const R: usize>(tensor: &DeviceTensor<E, R>) -> Result<Vec<f64>, Any> {
    Ok(tensor.as_dyn().to_f64_vec()?)
}

/// Weights of an expert of each kind.
fn experts(inputs: &mut Inputs, experts: usize, inner: usize) -> Result<ExpertWeights, Any> {
    Ok(ExpertWeights {
        gate_up: normal(inputs, [experts, 2 * inner, HIDDEN], 1.5 / (HIDDEN as f64).sqrt())?,
        down: normal(inputs, [experts, HIDDEN, inner], 1.0 / (inner as f64).sqrt())?,
    })
}

/// A clamp that some of the SwiGLU's inputs exceed, and none is so close to that rounding takes it to the other side, where
/// there is no gradient: the middle of the widest gap between them.
fn limit(p: &Parameters, ids: &[i64]) -> f32 {
    let project = |matrix: &[f64], x: &[f64]| -> Vec<f64> {
        matrix.chunks(HIDDEN).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>().abs()).collect()
    };
    let mut inputs = vec![1.25, 2.5];
    for (x, ids) in p.x.chunks(HIDDEN).zip(ids.chunks(TOP_K)) {
        for &e in ids {
            let rows = 2 * INNER * HIDDEN;
            inputs.extend(project(&p.gate_up[e as usize * rows..][..rows], x));
        }
        inputs.extend(project(&p.shared_gate_up, x));
    }
    assert!(p.x.is_empty() || inputs.iter().any(|&v| v > 2.5), "nothing is clamped");
    inputs.retain(|v| (1.25..=2.5).contains(v));
    inputs.sort_by(f64::total_cmp);
    let gap = inputs.windows(2).max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0]))).expect("there are two bounds");
    ((gap[0] + gap[1]) / 2.0) as f32
}

/// A layer, and what its output depends on.
struct Problem {
    layer: MoeTraining,
    reference: Training,
    x: Bf16<2>,
    dy: Bf16<2>,
    token_ids: Option<DeviceTensor<i64, 1>>,
    parameters: Parameters,
}

impl Problem {
    fn new(tokens: usize, scoring: Scoring, hash: bool, with_shared: bool) -> Result<Problem, Any> {
        let mut inputs = Inputs::new(50);
        let x = normal(&mut inputs, [tokens, HIDDEN], 1.0)?;
        let dy = normal(&mut inputs, [tokens, HIDDEN], 1.0)?;
        let gate = normal(&mut inputs, [EXPERTS, HIDDEN], 0.3)?;
        let routed = experts(&mut inputs, EXPERTS, INNER)?;
        let shared = if with_shared { Some(experts(&mut inputs, 1, 12)?) } else { None };
        let router = if hash {
            // Of all experts but the empty ones.
            let live = [0, 1, 3, 4];
            let table: Vec<i32> = (0..VOCAB * TOP_K).map(|i| live[(i / 2 + 3 * (i % 2)) % 4]).collect();
            Router::Hash { table: DeviceTensor::from_slice([VOCAB, TOP_K], &table)? }
        } else {
            let bias = [0.1f32, 0.0, -50.0, 0.0, 0.2, -50.0];
            Router::Biased { bias: DeviceTensor::from_slice([EXPERTS], &bias)? }
        };
        let token_ids: Vec<i64> = (0..tokens as i64).map(|t| t * 5 % VOCAB as i64).collect();
        let parameters = Parameters {
            x: f64s(&x)?,
            gate: f64s(&gate)?,
            gate_up: f64s(&routed.gate_up)?,
            down: f64s(&routed.down)?,
            shared_gate_up: shared.as_ref().map_or(Ok(Vec::new()), |s| f64s(&s.gate_up))?,
            shared_down: shared.as_ref().map_or(Ok(Vec::new()), |s| f64s(&s.down))?,
        };
        let token_ids = if hash { Some(DeviceTensor::from_slice([tokens], &token_ids)?) } else { None };
        let new = |limit| {
            let config = MoeConfig { top_k: TOP_K, scoring, limit, ..MoeConfig::default() };
            MoeTraining::new(config, gate.clone(), router.clone(), routed.clone(), shared.clone())
        };
        let (_, saved) = new(10.0)?.forward(&Device::cpu().stream(), &x, token_ids.as_ref())?;
        let limit = limit(&parameters, &saved.ids().to_vec()?);
        let reference = Training {
            hidden: HIDDEN,
            inner: INNER,
            experts: EXPERTS,
            top_k: TOP_K,
            scoring: match scoring {
                Scoring::SqrtSoftplus => gate::Scoring::SqrtSoftplus,
                Scoring::Sigmoid => gate::Scoring::Sigmoid,
                Scoring::Softmax => gate::Scoring::Softmax,
            },
            route_scale: f64::from(MoeConfig::default().route_scale),
            limit: f64::from(limit),
        };
        Ok(Problem { layer: new(limit)?, reference, x, dy, token_ids, parameters })
    }

    /// Output, ids and gradients.
    fn step(&self, device: &Device) -> Result<(Bf16<2>, Vec<i32>, MoeGradients), Any> {
        let stream = device.stream();
        let (y, saved) = self.layer.forward(&stream, &self.x, self.token_ids.as_ref())?;
        let ids = saved.ids().to_vec()?.into_iter().map(|id| id as i32).collect();
        assert_eq!(saved.weights().shape(), saved.ids().shape());
        Ok((y, ids, self.layer.backward(&stream, &saved, &self.dy)?))
    }

    /// Compares output and gradients with the reference.
    fn check(&self) -> Result<(), Any> {
        let narrow = |v: Vec<f64>| v.into_iter().map(|v| v as f32).collect::<Vec<f32>>();
        let mut wanted = None;
        for device in devices() {
            let (y, ids, got) = self.step(&device)?;
            let (want_y, wanted) = wanted.get_or_insert_with(|| {
                let dy = self.dy.as_dyn().to_f64_vec().expect("nobody writes it");
                let of = |parameter| narrow(self.reference.gradient(&self.parameters, &ids, parameter, &dy));
                use Parameter::{Down, Gate, GateUp, SharedDown, SharedGateUp, X};
                let y = narrow(self.reference.forward(&self.parameters, &ids));
                (y, [X, Gate, GateUp, Down, SharedGateUp, SharedDown].map(|parameter| (parameter, of(parameter))))
            });
            let shared = match &got.shared {
                None => [Vec::new(), Vec::new()],
                Some(shared) => [f32s(&shared.gate_up)?, f32s(&shared.down)?],
            };
            let [shared_gate_up, shared_down] = shared;
            let all = [
                f32s(&got.x)?,
                f32s(&got.gate)?,
                f32s(&got.experts.gate_up)?,
                f32s(&got.experts.down)?,
                shared_gate_up,
                shared_down,
            ];
            // Values and gradients are rounded to bf16 at every stage. The router's gradients are differences of those of
            // weights: with enough tokens they do not all cancel.
            let diff = calc_diff(&f32s(&y)?, want_y);
            assert!(diff < 5e-5, "y on {}: {diff}", device.name());
            for (got, (parameter, want)) in all.iter().zip(wanted.iter()) {
                let diff = calc_diff(got, want);
                assert!(diff < 5e-5, "{parameter:?} on {}: {diff}", device.name());
            }
            // Expert by expert, so that a small gradient is not lost beside a large one; zero for an expert without tokens.
            for (all, want) in [(&all[2], &wanted[2].1), (&all[3], &wanted[3].1)] {
                for (e, (got, want)) in
                    all.chunks(all.len() / EXPERTS).zip(want.chunks(want.len() / EXPERTS)).enumerate()
                {
                    let diff = calc_diff(got, want);
                    assert!(diff < 5e-5, "expert {e} on {}: {diff}", device.name());
                    let empty = !ids.contains(&(e as i32));
                    assert_eq!(empty, got.iter().all(|&g| g == 0.0), "expert {e} on {}", device.name());
                }
            }
            assert!(EMPTY.iter().all(|e| !ids.contains(e)));
        }
        Ok(())
    }
}

#[test]
fn the_gradient_of_a_layer_agrees_with_finite_differences() -> Result<(), Any> {
    Problem::new(21, Scoring::SqrtSoftplus, false, true)?.check()
}

#[test]
fn so_it_does_with_other_scores_and_without_a_shared_expert() -> Result<(), Any> {
    Problem::new(35, Scoring::Sigmoid, false, false)?.check()?;
    Problem::new(33, Scoring::Softmax, false, false)?.check()
}

#[test]
fn so_it_does_with_experts_chosen_by_token_id() -> Result<(), Any> {
    Problem::new(13, Scoring::SqrtSoftplus, true, false)?.check()
}

#[test]
fn a_layer_without_tokens_has_gradients_of_zero() -> Result<(), Any> {
    let problem = Problem::new(0, Scoring::SqrtSoftplus, false, true)?;
    for device in devices() {
        let (y, _, gradients) = problem.step(&device)?;
        assert_eq!((y.shape(), gradients.x.shape()), ([0, HIDDEN], [0, HIDDEN]));
        let shared = gradients.shared.expect("there is a shared expert");
        let all = [
            f32s(&gradients.gate)?,
            f32s(&gradients.experts.gate_up)?,
            f32s(&gradients.experts.down)?,
            f32s(&shared.gate_up)?,
            f32s(&shared.down)?,
        ];
        assert!(all.iter().flatten().all(|&g| g == 0.0));
    }
    Ok(())
}

#[test]
fn a_tokens_output_and_gradient_do_not_depend_on_the_batch() -> Result<(), Any> {
    let problem = Problem::new(75, Scoring::SqrtSoftplus, false, true)?;
    for device in [Device::cpu(), Device::sim()] {
        let (y, _, gradients) = problem.step(&device)?;
        let again = problem.step(&device)?.2;
        assert_eq!(again.experts.down.to_vec()?, gradients.experts.down.to_vec()?, "a second run");
        for range in [0..1, 30..64] {
            let cut = |x: &Bf16<2>| x.slice(0, range.clone())?.contiguous();
            let stream = device.stream();
            let (part, saved) = problem.layer.forward(&stream, &cut(&problem.x)?, None)?;
            assert_eq!(part.to_vec()?, cut(&y)?.to_vec()?);
            let dx = problem.layer.backward(&stream, &saved, &cut(&problem.dy)?)?.x;
            assert_eq!(dx.to_vec()?, cut(&gradients.x)?.to_vec()?);
        }
    }
    Ok(())
}

#[test]
fn a_training_layer_that_does_not_fit_together_says_what_is_wrong() -> Result<(), Any> {
    let new = |top_k: usize, down: [usize; 3], shared: Option<[usize; 3]>| -> Result<String, Any> {
        let weights = |gate_up, down| -> Result<ExpertWeights, Any> {
            Ok(ExpertWeights { gate_up: DeviceTensor::zeros(gate_up)?, down: DeviceTensor::zeros(down)? })
        };
        let shared = match shared {
            None => None,
            Some(gate_up) => Some(weights(gate_up, [1, 8, 2])?),
        };
        let layer = MoeTraining::new(
            MoeConfig { top_k, ..MoeConfig::default() },
            DeviceTensor::zeros([4, 8])?,
            Router::Biased { bias: DeviceTensor::zeros([4])? },
            weights([4, 6, 8], down)?,
            shared,
        );
        Ok(layer.err().map(|e| e.to_string()).unwrap_or_default())
    };
    assert_eq!(new(2, [4, 8, 3], Some([1, 4, 8]))?, "");
    assert!(new(5, [4, 8, 3], None)?.starts_with("5 experts per token of 4"));
    assert_eq!(
        new(2, [4, 8, 4], None)?,
        "`experts.down` has shape [4, 8, 4], expected [4, 8, 3] from `gate and experts.gate_up`"
    );
    assert_eq!(
        new(2, [4, 8, 3], Some([2, 4, 8]))?,
        "`shared.gate_up` has shape [2, 4, 8], expected [1, 4, 8] from `gate and shared.gate_up`"
    );
    let problem = Problem::new(3, Scoring::SqrtSoftplus, true, false)?;
    let stream = Device::cpu().stream();
    let error = problem.layer.forward(&stream, &problem.x, None).unwrap_err();
    assert!(matches!(error, LayerError::TokenIds { tokens: 3 }), "{error}");
    let error = problem.layer.forward(&stream, &DeviceTensor::zeros([1, 8])?, None).unwrap_err();
    assert_eq!(error.to_string(), "`x` has shape [1, 8], expected [1, 24] from `gate`");
    let (_, saved) = problem.layer.forward(&stream, &problem.x, problem.token_ids.as_ref())?;
    let error = problem.layer.backward(&stream, &saved, &DeviceTensor::zeros([4, HIDDEN])?).unwrap_err();
    assert_eq!(error.to_string(), "`dy` has shape [4, 24], expected [3, 24] from `x`");
    Ok(())
}

/// Groups given by prefix sums, with empty ones; padding is zero in the result, whatever it holds before.
#[test]
fn products_of_groups_given_by_prefix_sums_have_zero_padding() -> Result<(), Any> {
    let (rows, n, k, align) = ([0, 5, 0, 33, 1, 0], 40, 96, 16);
    let mut next = 0;
    let (starts, ends): (Vec<i32>, Vec<i32>) = rows
        .iter()
        .map(|&rows| {
            let start = next;
            next += (rows + align - 1) / align * align;
            (start, start + rows)
        })
        .unzip();
    let positions = next as usize + 20;
    let mut inputs = Inputs::new(51);
    let a = normal(&mut inputs, [positions, k], 1.0)?;
    let b = normal(&mut inputs, [rows.len(), n, k], 1.0)?;
    // Group by group, as the reference takes no padding.
    let (all_a, all_b) = (f32s(&a)?, f32s(&b)?);
    let mut want = vec![0.0; positions * n];
    for (e, (&start, &end)) in starts.iter().zip(&ends).enumerate() {
        let (start, end) = (start as usize, end as usize);
        let c = grouped_gemm_nt(
            &all_a[start * k..end * k],
            &all_b[e * n * k..][..n * k],
            &[0, end - start],
            end - start,
            n,
            k,
        );
        want[start * n..end * n].copy_from_slice(&c);
    }
    for device in devices() {
        let stream = device.stream();
        let mut pos_to_expert = DeviceTensor::full([positions], 77)?;
        ExpertOfRows::new(ExpertOfRowsConfig::default()).launch(
            &stream,
            &DeviceTensor::from_slice([rows.len()], &starts)?,
            &DeviceTensor::from_slice([rows.len()], &ends)?,
            &mut pos_to_expert,
        )?;
        let mut c = DeviceTensor::<f32, 2>::full([positions, n], 77.0)?;
        let config = ProductConfig { bm: 16, bn: 64, threads: 128, zero_padding: true, ..ProductConfig::unscaled() };
        GroupedGemm::<bf16, bf16, f32, f32>::new(config).launch(
            &stream,
            &a,
            &DeviceTensor::zeros([0, 0])?,
            &b,
            &DeviceTensor::zeros([0, 0, 0])?,
            &pos_to_expert,
            &mut c,
        )?;
        let c = f32s(&c)?;
        assert!(calc_diff(&c, &want) < 1e-12, "{}", device.name());
        assert!(c.iter().zip(&want).all(|(c, want)| *want != 0.0 || *c == 0.0), "padding on {}", device.name());
    }
    Ok(())
}

#[test]
fn starts_that_do_not_ascend_are_refused() -> Result<(), Any> {
    for device in [Device::interp(), Device::cpu()] {
        let error = ExpertOfRows::new(ExpertOfRowsConfig::default())
            .launch(
                &device.stream(),
                &DeviceTensor::from_slice([2], &[32, 16])?,
                &DeviceTensor::from_slice([2], &[40, 20])?,
                &mut DeviceTensor::zeros([64])?,
            )
            .unwrap_err();
        assert!(error.to_string().contains("starts and ends of experts do not ascend"), "{error}");
    }
    Ok(())
}

#[test]
fn groups_that_share_a_tile_are_refused() -> Result<(), Any> {
    let (rows, width) = (32, 64);
    let mut owners = vec![0; rows];
    // The last row of the second tile.
    owners[rows - 1] = 1;
    for device in devices() {
        let stream = device.stream();
        let config = ProductConfig { bm: 16, bn: 64, bk: 32, stages: 2, threads: 128, ..ProductConfig::unscaled() };
        let error = GroupedGemm::<bf16, bf16, f32, bf16>::new(config)
            .launch(
                &stream,
                &DeviceTensor::zeros([rows, width])?,
                &DeviceTensor::zeros([0, 0])?,
                &DeviceTensor::zeros([2, 2 * width, width])?,
                &DeviceTensor::zeros([0, 0, 0])?,
                &DeviceTensor::from_slice([rows], &owners)?,
                &mut DeviceTensor::zeros([rows, 2 * width])?,
            )
            .unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("kernel `grouped_gemm`"), "{}: {error}", device.name());
        assert!(
            error.contains("assertion failed") && error.contains(": rows of two groups share a tile"),
            "{}: {error}",
            device.name()
        );
    }
    Ok(())
}
