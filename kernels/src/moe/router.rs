//! The router's product: logits of all experts in fp32.
//!
//! The kernel is [`dense_gemm`](crate::gemm::dense::dense_gemm); products of bf16 operands are exact in f32, TF32 is not used.

use crate::choice::with_type;
use crate::gemm::dense::{DenseGemm, GemmConfig};
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::gemm as reference;
use crate::reference::metrics::{Tolerance, compare};
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::{Const, DType};

/// The library's entry.
pub struct Entry;

/// Rows of a large result that are compared.
const SAMPLED_ROWS: usize = 64;

fn config() -> GemmConfig {
    GemmConfig { bm: 64, bn: 128, bk: 64, ..GemmConfig::default() }
}

fn launcher(dtype: DType, cfg: GemmConfig) -> Result<Box<dyn Kernel>, ProblemError> {
    if cfg.a_transposed || cfg.b_transposed {
        let message = "the router's operands lie row by row: leave `a_transposed` and `b_transposed` off";
        return Err(ProblemError::Unsupported(message.to_owned()));
    }
    if cfg.tf32 {
        return Err(ProblemError::Unsupported("logits are of exact products: leave `tf32` off".to_owned()));
    }
    with_type!(dtype, E in [BF16 = bf16, F32 = f32], Ok(Box::new(DenseGemm::<E, f32>::new(cfg))))
}

fn problem(
    tokens: usize,
    experts: usize,
    hidden: usize,
    dtype: DType,
    cfg: GemmConfig,
) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(13);
    let args = vec![
        Value::Tensor(inputs.normal(dtype, &[tokens, hidden], 1.0)?),
        Value::Tensor(inputs.normal(dtype, &[experts, hidden], 0.05)?),
        Value::Tensor(output(DType::F32, &[tokens, experts])?),
        Value::Scalar(Const::f32(1.0)),
    ];
    let work = Work::of(&args).flops(2.0 * (tokens * experts * hidden) as f64);
    let verify = move |args: &[Value]| {
        let (x, weight, logits) = (args[0].f32s(), args[1].f32s(), args[2].f32s());
        let product = reference::Gemm {
            m: tokens,
            n: experts,
            k: hidden,
            alpha: 1.0,
            a: &x[..],
            op_a: reference::Op::N,
            b: &weight[..],
            op_b: reference::Op::T,
        };
        let rows = sample_rows(tokens, SAMPLED_ROWS);
        let got: Vec<f32> = rows.iter().flat_map(|r| logits[r * experts..(r + 1) * experts].iter().copied()).collect();
        vec![Comparison { output: "c", verdict: compare(&got, &product.rows(&rows), Tolerance::CalcDiff(1e-5)) }]
    };
    Ok(Problem { kernel: launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "router_gemm",
            family: Family::Moe,
            summary: "router logits in fp32 from bf16 or fp32 operands",
            equation: "logits[t,e] = sum_k x[t,k] W[e,k]",
            tolerance: "calc_diff < 1e-5",
            source: "V4 specification 3.1, appendix d 15; SGLang linear_bf16_fp32, DeepGEMM Mega Gate",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(config())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        launcher(dtypes.get("a").copied().unwrap_or(DType::BF16), apply(config(), settings)?)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |tokens: usize, experts: usize, hidden: usize, dtype: DType, cfg: GemmConfig| {
            let name = format!("t={tokens} e={experts} h={hidden} {dtype}");
            Case::new(name, cfg, move |cfg| problem(tokens, experts, hidden, dtype, cfg))
        };
        let (cfg, bf16) = (config(), DType::BF16);
        match scale {
            Scale::Small => {
                let small = GemmConfig { bm: 32, bn: 32, bk: 32, ..cfg };
                vec![case(0, 16, 64, bf16, small), case(1, 24, 96, bf16, small), case(33, 72, 72, DType::F32, small)]
            }
            Scale::Representative => vec![case(4096, 384, 7168, bf16, cfg)],
            Scale::Full => vec![case(4001, 256, 4096, bf16, cfg), case(1, 384, 7168, bf16, cfg)],
        }
    }
}
