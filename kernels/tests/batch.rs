//! A row of a batch does not know the rows around it: a launch of some rows gives, to the bit, what a launch of all of them
//! gives there. And a second run gives the bits of the first.
//!
//! The kernels of the library are taken as they come, by the names of their dims: [`AXES`] are those of a batch, and a few
//! kernels say theirs. A kernel for which independence has no meaning, or cannot hold, is on a list with the reason.

use std::ops::Range;
use zellige::prelude::{bf16, f8e4m3};
use zellige::runtime::{Arg, Device, DimSpec, DynTensor, ParamSpec};
use zellige::{Kernel, Tune};
use zellige_ir::{Access, Const, DType};
use zellige_kernels::gemm::batch_sum::{BatchSumConfig, BatchSumGemm};
use zellige_kernels::gemm::batched::{BatchedConfig, BatchedGemm};
use zellige_kernels::gemm::dense::{DenseGemm, GemmConfig};
use zellige_kernels::inputs::Inputs;
use zellige_kernels::library::{Case, LibraryKernel, Problem, Scale, Value, all};
use zellige_kernels::run::launch;

/// Dims that are a batch where an output has one, in this order.
const AXES: [&str; 4] = ["tokens", "rows", "m", "batch"];

/// Other names under which the batch dim appears, for arguments that may be left out or lie in another layout. A case in
/// which such a dim is neither the batch nor empty is passed over.
const ALIASES: [&str; 15] = [
    "a0",
    "a_sf0",
    "addend_rows",
    "experts_m",
    "fixed_rows",
    "fixed_tokens",
    "kept",
    "live_tokens",
    "m",
    "pairs_m",
    "positions",
    "saved",
    "sf_rows",
    "weight_rows",
    "y_sf_rows",
];

/// Kernels whose batch goes by another name, with its other names, and of how many rows a tile is that belongs together.
const OWN: [(&str, &str, &[&str], usize); 17] = [
    ("attention_head_sum", "kv_tokens", &[], 1),
    ("adamw", "n", &[], 1),
    ("engram_fused_weight", "n", &[], 1),
    ("engram_weight_grad", "n", &[], 1),
    ("muon_update", "n", &[], 1),
    ("column_sum", "dim", &[], 1),
    ("mhc_norm_weight", "outputs", &[], 1),
    ("mhc_norm_weight_backward", "outputs", &[], 1),
    ("expand_to_fused", "positions", &[], 1),
    ("expand_to_fused_with_sf", "positions", &["y_sf_rows"], 1),
    // Rows of a tile belong to one expert.
    ("grouped_gemm", "positions", &["a_sf0"], 32),
    ("masked_gemm", "experts", &["a_sf0", "b_sf0"], 1),
    ("k_grouped_gemm", "experts", &[], 1),
    ("k_grouped_scaled_gemm", "experts", &[], 1),
    // Per token and not gathered; the other cases are passed over.
    ("requant_cast", "m", &["positions", "tokens", "input_rows", "sf_rows"], 1),
    ("reduce_fused", "tokens", &["weight_rows", "addend_rows"], 1),
    ("reduce_fused_backward", "tokens", &[], 1),
];

/// Kernels whose results are about the whole batch, and those that are defined by the place in it.
const WHOLE: [(&str, &str); 15] = [
    ("aux_fi", "counts over all tokens"),
    ("group_count", "counts over all tokens"),
    ("get_fused_mapping", "the places of rows follow from the counts over all tokens"),
    ("expert_of_rows", "starts and ends are places in the whole batch"),
    ("token_order", "sorts all tokens"),
    ("embedding_backward", "sums over the tokens of a row of the table, in the order of the tokens"),
    ("per_block_cast", "rows of a block share a scale factor"),
    ("per_block_cast_lossless", "rows of a block share a scale factor"),
    ("per_channel_cast", "rows of a group share a scale factor"),
    ("per_channel_cast_and_transpose", "rows of a group share a scale factor"),
    ("swiglu_forward_and_per_channel_cast_and_transpose", "rows of a group share a scale factor"),
    ("stochastic_round", "draws its random numbers by the place of an element"),
    ("attention_dkv", "tokens see those of their sequence: see the test of sequences"),
    ("attention_dq", "tokens see those of their sequence: see the test of sequences"),
    ("flash_attention", "tokens see those of their sequence: see the test of sequences"),
];

/// Why a case cannot be cut, if it cannot.
fn passed_over(kernel: &str, case: &str) -> Option<&'static str> {
    match kernel {
        "top2_sum_gate" if case.contains("replicated") => Some("the replica of an expert goes by the token's place"),
        _ => None,
    }
}

/// How a kernel's arguments depend on the batch.
struct Batch {
    /// For each argument its batch axis.
    axes: Vec<Option<usize>>,
    extent: usize,
    tile: usize,
}

/// The batch of a problem; nothing if the case has none that can be cut.
fn batch(name: &str, problem: &Problem) -> Option<Batch> {
    let signature = problem.kernel.signature();
    let named = |d: &DimSpec, name: &str| matches!(d, DimSpec::Named(n) if n == name);
    let own = OWN.iter().find(|(kernel, ..)| *kernel == name);
    let outputs = || {
        signature.params.iter().filter_map(|p| match p {
            ParamSpec::Tensor(t) if t.access == Access::Write => Some(t),
            ParamSpec::Tensor(_) | ParamSpec::Scalar { .. } => None,
        })
    };
    let dim = match own {
        Some((_, dim, ..)) => *dim,
        None => AXES.into_iter().find(|axis| outputs().any(|t| t.dims.iter().any(|d| named(d, axis))))?,
    };
    let aliases: &[&str] = own.map_or(&ALIASES, |(_, _, aliases, _)| aliases);
    let (mut extent, mut axes) = (None, Vec::new());
    let shapes = || {
        problem.args.iter().zip(&signature.params).map(|(value, spec)| match (value, spec) {
            (Value::Tensor(t), ParamSpec::Tensor(spec)) => (t.shape(), &spec.dims[..]),
            (Value::Tensor(_) | Value::Scalar(_), _) => (&[][..], &[][..]),
        })
    };
    for (shape, dims) in shapes() {
        extent = extent.or_else(|| dims.iter().position(|d| named(d, dim)).map(|axis| shape[axis]));
    }
    let extent = extent?;
    for (shape, dims) in shapes() {
        let alias = dims.iter().position(|d| aliases.iter().any(|a| named(d, a)));
        let axis = dims.iter().position(|d| named(d, dim)).or(alias);
        match axis {
            Some(axis) if shape[axis] == extent => axes.push(Some(axis)),
            Some(axis) if shape[axis] == 0 || shape.contains(&0) => axes.push(None),
            Some(_) => return None,
            None => axes.push(None),
        }
    }
    Some(Batch { axes, extent, tile: own.map_or(1, |o| o.3) })
}

impl Batch {
    /// The first rows, and the last ones.
    fn ranges(&self) -> Vec<Range<usize>> {
        let middle = (self.extent / 2).next_multiple_of(self.tile).min(self.extent);
        vec![0..self.tile.min(self.extent), middle..self.extent]
    }

    /// Some rows of an argument, in memory of their own.
    fn cut(&self, problem: &Problem, rows: &Range<usize>) -> Vec<Value> {
        let cut = |(value, axis): (&Value, &Option<usize>)| match (value, axis) {
            (Value::Tensor(t), Some(axis)) => Value::Tensor(part(t, *axis, rows)),
            (Value::Tensor(_) | Value::Scalar(_), _) => value.clone(),
        };
        problem.args.iter().zip(&self.axes).map(cut).collect()
    }
}

fn part(tensor: &DynTensor, axis: usize, rows: &Range<usize>) -> DynTensor {
    let part = tensor.slice(axis, rows.clone()).expect("rows of the batch");
    // `contiguous` may return a view of the same memory.
    DynTensor::from_bytes(part.dtype(), part.shape(), &part.to_bytes().expect("nobody writes it")).expect("as large")
}

fn bytes(tensor: &DynTensor) -> Vec<u8> {
    tensor.to_bytes().expect("nobody writes the tensor now")
}

/// Launches all rows of a case, and some of them, and compares. False if the case has no batch that can be cut.
fn check_case(kernel: &dyn LibraryKernel, case: &Case, device: &Device, failures: &mut Vec<String>) -> bool {
    let name = kernel.info().name;
    if passed_over(name, &case.name).is_some() {
        return false;
    }
    let build = || (case.build)(&[]).unwrap_or_else(|e| panic!("{name} {}: {e}", case.name));
    let whole = build();
    let Some(batch) = batch(name, &whole).filter(|b| b.extent >= 2) else { return false };
    let stream = device.stream();
    launch(&whole, &stream).unwrap_or_else(|e| panic!("{name} {}: {e}", case.name));
    let signature = whole.kernel.signature();
    for rows in batch.ranges().into_iter().filter(|r| !r.is_empty()) {
        // Anew: a kernel may write what it reads.
        let fresh = build();
        let args = batch.cut(&fresh, &rows);
        let some = Problem { args, ..fresh };
        launch(&some, &stream).unwrap_or_else(|e| panic!("{name} {} rows {rows:?}: {e}", case.name));
        for (((got, all), axis), spec) in some.args.iter().zip(&whole.args).zip(&batch.axes).zip(&signature.params) {
            let (Value::Tensor(got), Value::Tensor(all), Some(axis)) = (got, all, axis) else { continue };
            let written = matches!(spec, ParamSpec::Tensor(t) if t.access == Access::Write);
            if written && bytes(got) != bytes(&part(all, *axis, &rows)) {
                let ParamSpec::Tensor(spec) = spec else { unreachable!("it is a tensor") };
                failures.push(format!("{name} {}: rows {rows:?} of `{}`", case.name, spec.name));
            }
        }
    }
    true
}

fn check(device: &Device, cases_each: usize) {
    let mut failures = Vec::new();
    for kernel in all() {
        let name = kernel.info().name;
        if WHOLE.iter().any(|(whole, _)| *whole == name) {
            continue;
        }
        let mut checked = 0;
        for case in kernel.cases(Scale::Small) {
            if checked < cases_each {
                checked += usize::from(check_case(*kernel, &case, device, &mut failures));
            }
        }
        assert!(
            checked > 0,
            "no case of `{name}` has a batch that can be cut: name its dim in OWN, or say in WHOLE why it has none"
        );
    }
    assert!(failures.is_empty(), "these depend on the rows around them:\n{}", failures.join("\n"));
}

#[test]
fn a_row_does_not_depend_on_the_batch_on_the_cpu() {
    check(&Device::cpu(), usize::MAX);
}

#[test]
fn a_row_does_not_depend_on_the_batch_on_the_simulated_gpu() {
    check(&Device::sim(), 2);
}

/// The library picks other tiles for other numbers of rows, and lets blocks share what one runs alone elsewhere.
#[test]
fn a_row_of_a_product_has_the_same_bits_in_every_config_of_its_shape() {
    let k = 4096;
    let all = random(&[9, k], 2);
    for n in [40, 136] {
        let b = random(&[n, k], 1);
        let mut first: Option<Vec<u8>> = None;
        let runs = GemmConfig::for_shape(1, n, k).runs;
        assert!(runs > 1);
        let mut configs: Vec<(usize, GemmConfig)> =
            [1, 7, 64, 128, 4096].map(|m| (m, GemmConfig::for_shape(m, n, k))).to_vec();
        // The tall tiles of wider products.
        let tall = GemmConfig { bm: 128, bn: 64, bk: 64, stages: 3, threads: 256, runs, ..GemmConfig::default() };
        configs.push((4096, tall));
        for &(m, config) in &configs {
            assert_eq!(config.runs, runs, "m={m} n={n}");
            // A few rows stand for many: what follows the first one changes nothing in it.
            let rows = m.min(9);
            let a = part(&all, 0, &(0..rows));
            let c = DynTensor::zeros(DType::BF16, &[rows, n]).expect("a small tensor");
            let kernel = DenseGemm::<bf16, bf16>::new(config);
            let args = [Arg::Read(&a), Arg::Read(&b), Arg::Write(&c), Arg::Scalar(Const::f32(1.0))];
            kernel.launch_args(&Device::sim().stream(), &args).unwrap_or_else(|e| panic!("m={m} {config:?}: {e}"));
            let got = bytes(&part(&c, 0, &(0..1)));
            assert_eq!(&got, first.get_or_insert_with(|| got.clone()), "m={m} n={n} {config:?}");
        }
        let kinds = |f: fn(&GemmConfig) -> usize| {
            configs.iter().map(|(_, c)| f(c)).collect::<std::collections::BTreeSet<_>>().len()
        };
        assert!(kinds(|c| c.bn) > 2 && kinds(|c| usize::from(c.spread)) == 2, "{configs:?}");
    }
}

/// Launches a kernel on operands, each followed by scale factors, of which the first two have rows along an axis, and returns
/// the bytes of the result's first row.
fn first_row(kernel: &dyn Kernel, [a, a_sf, b, b_sf, c]: &[DynTensor; 5], case: &str) -> Vec<u8> {
    let args = [Arg::Read(a), Arg::Read(a_sf), Arg::Read(b), Arg::Read(b_sf), Arg::Write(c)];
    kernel.launch_args(&Device::sim().stream(), &args).unwrap_or_else(|e| panic!("{case}: {e}"));
    bytes(&part(c, 0, &(0..1)))
}

const ROWS: [usize; 6] = [1, 7, 64, 65, 128, 4096];

#[test]
fn a_row_of_a_head_has_the_same_bits_for_every_number_of_rows() {
    let (heads, n, k) = (3, 136, 512);
    for (dtype, transposed) in
        [(DType::BF16, false), (DType::BF16, true), (DType::F8E4M3, false), (DType::F8E4M3, true)]
    {
        let mut inputs = Inputs::new(3);
        let scaled = dtype == DType::F8E4M3;
        let turn = |shape: [usize; 3]| if transposed { [shape[0], shape[2], shape[1]] } else { shape };
        let factors = |shape: [usize; 3]| if scaled { shape } else { [0; 3] };
        let w = inputs.normal(dtype, &turn([heads, n, k]), 1.0).unwrap();
        let w_sf = inputs.uniform(DType::F32, &factors(turn([heads, 2, k / 128])), 0.25, 2.0).unwrap();
        let a = inputs.normal(dtype, &[70, heads, k], 1.0).unwrap();
        let a_sf = inputs.uniform(DType::F32, &factors([70, heads, k / 128]), 0.25, 2.0).unwrap();
        let mut first: Option<Vec<u8>> = None;
        for m in ROWS {
            // A few rows stand for many: what follows the first one changes nothing in it.
            let rows = 0..m.min(if m == 65 { 65 } else { 9 });
            let lying = BatchedConfig { scaled, w_transposed: transposed, ..BatchedConfig::default() };
            let config = lying.for_shape(m, heads, n);
            let a_sf = if scaled { part(&a_sf, 0, &rows) } else { a_sf.clone() };
            let c = DynTensor::zeros(DType::BF16, &[rows.end, heads, n]).unwrap();
            let args = [part(&a, 0, &rows), a_sf, w.clone(), w_sf.clone(), c];
            let case = format!("m={m} {config:?}");
            let got = if scaled {
                first_row(&BatchedGemm::<f8e4m3, f32, bf16>::new(config), &args, &case)
            } else {
                first_row(&BatchedGemm::<bf16, f32, bf16>::new(config), &args, &case)
            };
            assert_eq!(&got, first.get_or_insert_with(|| got.clone()), "{case}");
        }
    }
}

#[test]
fn a_row_of_a_sum_over_a_batch_has_the_same_bits_for_every_number_of_rows() {
    let (batch, n) = (24, 40);
    for k in [96, 256] {
        let mut inputs = Inputs::new(4);
        let b = inputs.normal(DType::BF16, &[batch, n, k], 1.0).unwrap();
        let a = inputs.normal(DType::BF16, &[batch, 9, k], 1.0).unwrap();
        let none = DynTensor::zeros(DType::F32, &[0; 3]).unwrap();
        let mut first: Option<Vec<u8>> = None;
        for m in ROWS {
            let config = BatchSumConfig::for_shape(batch, m, n, k);
            assert!(k != 256 || config.runs > 1, "{config:?}");
            let rows = 0..m.min(9);
            let c = DynTensor::zeros(DType::F32, &[rows.end, n]).unwrap();
            let args = [part(&a, 1, &rows), none.clone(), b.clone(), none.clone(), c];
            let case = format!("m={m} {config:?}");
            let got = first_row(&BatchSumGemm::<bf16, f32, f32>::new(config), &args, &case);
            assert_eq!(&got, first.get_or_insert_with(|| got.clone()), "{case}");
        }
    }
}

#[test]
fn every_shape_of_a_product_has_a_legal_config_and_the_runs_of_its_weight() {
    for n in [1, 8, 24, 64, 100, 384, 512, 576, 1024, 2048, 2112, 4096, 7168, 24_576, 65_536, 129_280] {
        for k in [8, 512, 1024, 2048, 4096, 7168, 16_384, 28_672] {
            let runs = GemmConfig::for_shape(1, n, k).runs;
            for m in [0, 1, 7, 64, 65, 128, 129, 512, 4096, 8192, 100_000] {
                let config = GemmConfig::for_shape(m, n, k);
                assert_eq!(config.legal(), Ok(()), "{m} x {n} x {k}: {config:?}");
                assert_eq!(config.runs, runs, "{m} x {n} x {k}: {config:?}");
                let slots = 2 * config.bk * (config.bm + config.bn) * config.stages;
                let parts = if config.spread { 4 * config.bm * config.bn * (runs - 1) } else { 0 };
                assert!(slots + parts < 227 * 1024, "{m} x {n} x {k}: {config:?}");
            }
        }
    }
}

/// Normally distributed bf16 elements.
fn random(shape: &[usize], seed: u64) -> DynTensor {
    Inputs::new(seed).normal(DType::BF16, shape, 1.0).expect("a tensor of a few elements")
}

#[test]
fn the_lists_name_kernels_of_the_library() {
    let exists = |name: &str| zellige_kernels::library::find(name).is_some();
    let names = OWN.iter().map(|o| o.0).chain(WHOLE.iter().map(|w| w.0));
    let unknown: Vec<&str> = names.filter(|name| !exists(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// A sequence of a packed batch alone, and among others.
#[test]
fn a_sequence_does_not_depend_on_the_batch() {
    let mut failures = Vec::new();
    for name in ["flash_attention", "attention_dq", "attention_dkv"] {
        let kernel = zellige_kernels::library::find(name).expect("it is in the library");
        let mut checked = 0;
        for case in kernel.cases(Scale::Small) {
            let build = || (case.build)(&[]).unwrap_or_else(|e| panic!("{name} {}: {e}", case.name));
            let whole = build();
            let signature = whole.kernel.signature();
            // The axis along which an argument has the tokens of the batch, by their name.
            let tokens_of = |spec: &ParamSpec| match spec {
                ParamSpec::Tensor(t) => t.dims.iter().enumerate().find_map(|(axis, dim)| match dim {
                    DimSpec::Named(name) => {
                        let name = name.to_string();
                        ["tokens", "kv_tokens"].contains(&name.as_str()).then_some((axis, name))
                    }
                    DimSpec::Fixed(_) => None,
                }),
                ParamSpec::Scalar { .. } => None,
            };
            let ends = |name: &str| -> Vec<usize> {
                let at = signature.params.iter().position(|p| matches!(p, ParamSpec::Tensor(t) if t.name == name));
                whole.args[at.expect("packed batches have ends")].f32s().iter().map(|&v| v as usize).collect()
            };
            let (q_ends, k_ends) = (ends("cu_q"), ends("cu_k"));
            if q_ends.len() < 3 {
                continue;
            }
            let stream = Device::cpu().stream();
            launch(&whole, &stream).unwrap_or_else(|e| panic!("{name} {}: {e}", case.name));
            for sequence in 0..q_ends.len() - 1 {
                let (q, k) = (q_ends[sequence]..q_ends[sequence + 1], k_ends[sequence]..k_ends[sequence + 1]);
                let of = |spec: &ParamSpec| {
                    let (axis, tokens) = tokens_of(spec)?;
                    Some((axis, if tokens == "tokens" { q.clone() } else { k.clone() }))
                };
                let fresh = build();
                let args =
                    fresh.args.iter().zip(&signature.params).map(|(value, spec)| match (value, spec, of(spec)) {
                        (Value::Tensor(t), _, Some((axis, rows))) => Value::Tensor(part(t, axis, &rows)),
                        (Value::Tensor(_), ParamSpec::Tensor(spec), None) if spec.name.starts_with("cu_") => {
                            let len = if spec.name == "cu_q" { q.len() } else { k.len() };
                            Value::Tensor(DynTensor::from_slice::<i32>(&[2], &[0, len as i32]).expect("two numbers"))
                        }
                        (Value::Tensor(_) | Value::Scalar(_), _, _) => value.clone(),
                    });
                let alone = Problem { args: args.collect(), ..build() };
                launch(&alone, &stream).unwrap_or_else(|e| panic!("{name} {} alone: {e}", case.name));
                for ((got, all), spec) in alone.args.iter().zip(&whole.args).zip(&signature.params) {
                    let written = matches!(spec, ParamSpec::Tensor(t) if t.access == Access::Write);
                    let (Value::Tensor(got), Value::Tensor(all), Some((axis, rows))) = (got, all, of(spec)) else {
                        continue;
                    };
                    if written && bytes(got) != bytes(&part(all, axis, &rows)) {
                        failures.push(format!("{name} {}: sequence {sequence}", case.name));
                    }
                }
                checked += 1;
            }
        }
        assert!(checked > 0, "no case of `{name}` has two sequences");
    }
    assert!(failures.is_empty(), "these depend on the sequences around them:\n{}", failures.join("\n"));
}

/// Written tensors of one launch.
fn outputs(problem: &Problem, device: &Device) -> Vec<Vec<u8>> {
    launch(problem, &device.stream()).expect("small problems run");
    let bytes = |v: &Value| match v {
        Value::Tensor(t) => bytes(t),
        Value::Scalar(_) => Vec::new(),
    };
    problem.args.iter().map(bytes).collect()
}

/// The same for the CPU, for every case, is in `agree.rs`.
#[test]
fn a_second_run_on_the_simulated_gpu_gives_the_same_bits() {
    let mut failures = Vec::new();
    for kernel in all() {
        for case in kernel.cases(Scale::Small) {
            let (first, second) = ((case.build)(&[]).unwrap(), (case.build)(&[]).unwrap());
            let device = Device::sim();
            if outputs(&first, &device) != outputs(&second, &device) {
                failures.push(format!("{} {}", kernel.info().name, case.name));
            }
        }
    }
    assert!(failures.is_empty(), "the bits differ on: {}", failures.join(", "));
}
