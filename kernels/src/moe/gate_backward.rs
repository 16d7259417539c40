//! The gradient of the router's weights, for experts that were chosen by whichever router.

use super::gate::GateConfig;
use super::problem::{ROUTE_SCALE, RouterProblem, id_type, int_tensor, logits};
use super::score::{Scorer, Scoring};
use crate::choice::with_type;
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare};
use crate::reference::moe::gate_backward as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// From the gradient of the weights, `dweights` [tokens, k], to that of the logits. `ids` are the experts that
/// [`gate`](super::gate::gate) or [`hash_gate`](super::hash_gate::hash_gate) chose for `logits`, different ones in each row; a
/// negative id is an empty slot.
///
/// With scores s and S = 1e-20 + sum_j s_j: `ds_j = (dw_j - sum_i dw_i s_i / S) route_scale / S`, then the slope of the score
/// function. The choice and its bias have no gradient. The gradient of
/// [`normalize_weight`](super::normalize::normalize_weight) is part of this.
#[kernel(static_dims(experts, k))]
pub fn gate_backward<I: Int, O: Float>(
    t: T,
    #[dims(tokens, experts)] logits: &Tensor<f32, 2>,
    #[dims(tokens, k)] ids: &Tensor<I, 2>,
    #[dims(tokens, k)] dweights: &Tensor<f32, 2>,
    #[dims(tokens, experts)] dlogits: &mut Tensor<O, 2>,
    route_scale: Expr<f32>,
    #[comptime] cfg: GateConfig,
) {
    let (rows, experts, k) = (cfg.tokens, logits.static_dim(1), ids.static_dim(1));
    let [b] = t.grid([logits.dim(0).ceil_div(rows)], cfg.threads);
    let first = b * rows;
    let logits_s = t.shared::<f32, 2>([rows, experts]);
    t.copy(logits.at((first, 0)), logits_s);
    let scorer = Scorer::new(t, cfg.scoring, logits_s);
    let (chosen, scores) = (t.shared::<i32, 2>([rows, k]), t.shared::<f32, 2>([rows, k]));
    for (i, j) in t.parallel((rows, k)) {
        let id = select(first + i < logits.dim(0), ids[(first + i, j)].cast::<i32>(), -1);
        let score = scorer.score(i, logits_s[(i, id.max(0).to_index())]);
        chosen[(i, j)] = id;
        scores[(i, j)] = select(id >= 0, score, 0.0);
    }
    // Of each row: S, sum dw s / S, and sum ds s.
    let (sum, mean, along) = (t.fragment::<f32, 1>([rows]), t.fragment::<f32, 1>([rows]), t.fragment::<f32, 1>([rows]));
    let dscore = |i: Idx, j: Idx| (dweights[(first + i, j)] - mean[i]) / sum[i] * route_scale;
    for i in t.parallel(rows) {
        let total = (0..k).fold(lit::<f32>(1e-20), |total, j| total + scores[(i, j)]);
        sum[i] = total;
        mean[i] = (0..k).fold(lit::<f32>(0.0), |m, j| dweights[(first + i, j)].mul_add(scores[(i, j)], m)) / total;
        along[i] = (0..k).fold(lit::<f32>(0.0), |m, j| dscore(i, lit(j)).mul_add(scores[(i, j)], m));
    }
    let gradient = t.shared::<f32, 2>([rows, experts]);
    t.clear(gradient);
    for (i, j) in t.parallel((rows, k)) {
        let id = chosen[(i, j)];
        if id >= 0 {
            let x = logits_s[(i, id.to_index())];
            gradient[(i, id.to_index())] = scorer.own_slope(scores[(i, j)], x) * dscore(i, j);
        }
    }
    if cfg.scoring == Scoring::Softmax {
        // The others' scores fall as the chosen ones' rise.
        for (i, e) in t.parallel((rows, experts)) {
            gradient[(i, e)] = gradient[(i, e)] - scorer.score(i, logits_s[(i, e)]) * along[i];
        }
    }
    t.cast(gradient, dlogits.at((first, 0)));
}

/// The library's entry.
pub struct Entry;

impl Entry {
    fn launcher(ids: DType, dlogits: DType, cfg: GateConfig) -> Result<Box<dyn Kernel>, ProblemError> {
        id_type!(ids, I, {
            with_type!(dlogits, O in [F32 = f32, BF16 = bf16], Ok(Box::new(GateBackward::<I, O>::new(cfg))))
        })
    }
}

fn problem(p: RouterProblem, dlogits: DType, cfg: GateConfig) -> Result<Problem, ProblemError> {
    let RouterProblem { tokens, experts, k, ids } = p;
    let mut inputs = Inputs::new(15);
    let logits = logits(&mut inputs, tokens, experts);
    let mut choice = p.gate_of(&logits, None, cfg.scoring).route().ids;
    // Some slots are empty, and all of some tokens.
    choice.iter_mut().enumerate().for_each(|(i, id)| *id = if i % 11 == 3 || i / k % 9 == 5 { -1 } else { *id });
    let args = vec![
        Value::Tensor(DynTensor::from_slice::<f32>(&[tokens, experts], &logits)?),
        Value::Tensor(int_tensor(ids, &[tokens, k], &choice)?),
        Value::Tensor(inputs.normal(DType::F32, &[tokens, k], 1.0)?),
        Value::Tensor(output(dlogits, &[tokens, experts])?),
        Value::Scalar(Const::f32(ROUTE_SCALE)),
    ];
    let verify = move |args: &[Value]| {
        let gate = p.gate_of(&logits, None, cfg.scoring);
        let want = reference::gate_backward(&gate, &choice, &args[2].f32s());
        // Beside that of the f32 gradient, half a step of bf16.
        let rel = if dlogits == DType::BF16 { 2f64.powi(-8) } else { 0.0 };
        let tolerance = Tolerance::AbsPlusRel { abs: 1e-5, rel: 4e-6 + rel };
        vec![Comparison { output: "dlogits", verdict: compare(&args[3].f32s(), &want, tolerance) }]
    };
    Ok(Problem { kernel: Entry::launcher(ids, dlogits, cfg)?, work: Work::of(&args), args, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "gate_backward",
            family: Family::Moe,
            summary: "gradient of the logits from that of the router's weights",
            equation: "ds_j = (dw_j - sum_i dw_i s_i / S) route_scale / S, S = sum_j s_j;  dx_e = ds_e s'(x_e), 0 where e is not chosen",
            tolerance: "abs 1e-5 + rel 4e-6; bf16 rel 2^-8 more",
            source: "V4 specification 3.1 (router), differentiated",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(GateConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let of = |name: &str, default| dtypes.get(name).copied().unwrap_or(default);
        Entry::launcher(of("ids", DType::I64), of("dlogits", DType::F32), apply(GateConfig::default(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, experts: usize, k: usize, ids: DType, cfg: GateConfig| {
            let p = RouterProblem { tokens, experts, k, ids };
            Case::new(p.name(&cfg), cfg, move |cfg| problem(p, DType::F32, cfg))
        };
        let bf16 = |tokens: usize, experts: usize, k: usize, cfg: GateConfig| {
            let p = RouterProblem { tokens, experts, k, ids: DType::I64 };
            Case::new(format!("{} bf16", p.name(&cfg)), cfg, move |cfg| problem(p, DType::BF16, cfg))
        };
        let (i64, i32, cfg) = (DType::I64, DType::I32, GateConfig::default());
        match scale {
            Scale::Small => {
                let mut cases: Vec<Case> = [0, 1, 9].iter().map(|&tokens| case(tokens, 64, 6, i64, cfg)).collect();
                cases.push(bf16(9, 64, 6, cfg));
                for &scoring in Scoring::ALL {
                    let cfg = GateConfig { scoring, tokens: 4, ..cfg };
                    cases.extend([case(13, 72, 6, i32, cfg), case(5, 16, 1, i64, cfg)]);
                }
                cases
            }
            Scale::Representative => vec![case(4096, 384, 6, i64, cfg)],
            Scale::Full => vec![case(4001, 256, 6, i64, cfg), case(8001, 72, 8, i32, cfg), bf16(4096, 384, 6, cfg)],
        }
    }
}
