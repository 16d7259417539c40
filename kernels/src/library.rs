//! What the command line and the tests know about a kernel: its metadata, its settings, and problems with
//! known answers.
//!
//! A kernel file declares one [`LibraryKernel`] and the list in [`all`] names it. Everything else (`list`,
//! `describe`, `check`, `bench`, `run`, the generated documentation, the test suite) works from that.

use crate::reference::metrics::{Tolerance, Verdict, compare};
use zellige::runtime::{DynTensor, Sizes, TensorError};
use zellige::{Kernel, Tune, TuneError, TuneField, TuneValue};
use zellige_ir::Const;

/// Which part of the library a kernel belongs to; also its folder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    Gemm,
    Attention,
    Norm,
    Quant,
    Mhc,
    Moe,
    Optim,
    Engram,
    Vocab,
}

impl Family {
    pub const ALL: [Family; 9] = [
        Family::Gemm,
        Family::Attention,
        Family::Norm,
        Family::Quant,
        Family::Mhc,
        Family::Moe,
        Family::Optim,
        Family::Engram,
        Family::Vocab,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Family::Gemm => "gemm",
            Family::Attention => "attention",
            Family::Norm => "norm",
            Family::Quant => "quant",
            Family::Mhc => "mhc",
            Family::Moe => "moe",
            Family::Optim => "optim",
            Family::Engram => "engram",
            Family::Vocab => "vocab",
        }
    }
}

/// What a kernel is, for people.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Unique, as given on the command line.
    pub name: &'static str,
    pub family: Family,
    /// One line.
    pub summary: &'static str,
    /// What it computes, as an equation.
    pub equation: &'static str,
    /// How its result is compared with the reference.
    pub tolerance: &'static str,
    /// Where the definition comes from.
    pub source: &'static str,
}

/// Which problems of a kernel are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scale {
    /// Small and edge shapes, quick enough for the interpreter and the simulator.
    Small,
    /// One problem at the size of DeepSeek-V4: what a bare `zellige` runs.
    Representative,
    /// Every size of DeepSeek-V4 that the kernel is used at.
    Full,
}

/// A config struct whose type is not known: fields by name.
pub trait Settings: Send + Sync {
    fn fields(&self) -> Vec<TuneField>;
    fn get(&self, name: &str) -> Option<TuneValue>;
    /// # Errors
    /// If there is no such field, or it cannot hold the value.
    fn set(&mut self, name: &str, value: TuneValue) -> Result<(), TuneError>;
    /// # Errors
    /// The text of the first constraint that does not hold.
    fn legal(&self) -> Result<(), &'static str>;
}

impl<C: Tune> Settings for C {
    fn fields(&self) -> Vec<TuneField> {
        C::fields()
    }
    fn get(&self, name: &str) -> Option<TuneValue> {
        Tune::get(self, name)
    }
    fn set(&mut self, name: &str, value: TuneValue) -> Result<(), TuneError> {
        Tune::set(self, name, value)
    }
    fn legal(&self) -> Result<(), &'static str> {
        Tune::legal(self)
    }
}

/// An argument that a problem brings along.
#[derive(Clone, Debug)]
pub enum Value {
    Tensor(DynTensor),
    Scalar(Const),
}

impl Value {
    /// The tensor's elements as f32, exact for every type up to 32 bits of f32 precision.
    ///
    /// # Panics
    /// If this is a scalar, or the tensor is being written: a problem's own mistake.
    pub fn f32s(&self) -> Vec<f32> {
        match self {
            Value::Tensor(t) => t.to_f32_vec().expect("nobody writes the tensor now"),
            Value::Scalar(c) => vec![c.as_f64() as f32],
        }
    }
}

/// Tensors and scalars for a kernel, and how to tell whether it did its work.
pub struct Problem {
    pub kernel: Box<dyn Kernel>,
    /// In the order of the kernel's signature; outputs are allocated and hold something other than the answer.
    pub args: Vec<Value>,
    pub work: Work,
    /// Compares the outputs with the reference.
    pub verify: Verify,
}

/// Compares the arguments after a launch with the reference, output by output.
pub type Verify = Box<dyn Fn(&[Value]) -> Vec<Comparison> + Send + Sync>;

/// The verdict on one output.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The parameter's name.
    pub output: &'static str,
    pub verdict: Verdict,
}

impl Comparison {
    /// Compares a tensor with one of the same type and shape, bit for bit.
    ///
    /// # Panics
    /// If `got` is no tensor, or the shapes differ: a problem's own mistake.
    pub fn exact(output: &'static str, got: &Value, want: &DynTensor) -> Comparison {
        let Value::Tensor(tensor) = got else { panic!("`{output}` is a scalar") };
        assert_eq!((tensor.dtype(), tensor.shape()), (want.dtype(), want.shape()), "`{output}` cannot be compared");
        let same = tensor.to_bytes().expect("nobody writes the tensor now") == want.to_bytes().expect("nor this one");
        // The values say where and by how much; integers may be too large for them to say whether.
        let mut verdict = compare(&got.f32s(), &Value::Tensor(want.clone()).f32s(), Tolerance::Exact);
        if !same && verdict.pass {
            verdict = Verdict { pass: false, used: f64::INFINITY, ..verdict };
        }
        Comparison { output, verdict }
    }

    /// Compares values bit for bit.
    pub fn exact_f32(output: &'static str, got: &[f32], want: &[f32]) -> Comparison {
        Comparison { output, verdict: compare(got, want, Tolerance::Exact) }
    }
}

/// What a problem asks of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations, if they bound the kernel; else 0.
    pub flops: f64,
    /// Bytes that must be moved: every input read once, every output written once.
    pub bytes: f64,
}

impl Work {
    /// The bytes of the arguments, each moved once.
    pub fn of(args: &[Value]) -> Work {
        let bytes = args
            .iter()
            .map(|a| match a {
                Value::Tensor(t) => t.byte_len() as f64,
                Value::Scalar(_) => 0.0,
            })
            .sum();
        Work { flops: 0.0, bytes }
    }

    /// The same with so many operations.
    #[must_use]
    pub fn flops(self, flops: f64) -> Work {
        Work { flops, ..self }
    }

    /// True if memory bounds the kernel rather than arithmetic: a product of few rows is told like a copy.
    pub fn is_bound_by_memory(&self) -> bool {
        self.bytes > 0.0 && self.flops < FLOPS_PER_BYTE * self.bytes
    }
}

/// Operations a byte from which on arithmetic bounds a kernel. GPUs of the last generations do 100 (tf32) to 400 (FP8).
const FLOPS_PER_BYTE: f64 = 50.0;

/// A named problem, built when it is wanted.
pub struct Case {
    /// Sizes and options, such as `m=4096 n=7168 k=2048 bf16 nt`.
    pub name: String,
    /// The config without changes.
    pub config: Box<dyn Settings>,
    /// Builds the problem; `settings` are changes to the kernel's config, given on the command line.
    pub build: Build,
}

/// Builds a problem with changes to the kernel's config.
pub type Build = Box<dyn Fn(&[(String, TuneValue)]) -> Result<Problem, ProblemError> + Send + Sync>;

impl Case {
    /// A case of a kernel with a config of type `C`.
    pub fn new<C: Tune>(
        name: impl Into<String>,
        config: C,
        build: impl Fn(C) -> Result<Problem, ProblemError> + Send + Sync + 'static,
    ) -> Case {
        Case {
            name: name.into(),
            config: Box::new(config.clone()),
            build: Box::new(move |settings| {
                let config = apply(config.clone(), settings)?;
                build(config)
            }),
        }
    }
}

/// `config` with changes, checked against its constraints.
///
/// # Errors
/// If a field does not exist or cannot hold the value, or a constraint is violated.
pub fn apply<C: Tune>(mut config: C, settings: &[(String, TuneValue)]) -> Result<C, ProblemError> {
    for (name, value) in settings {
        Tune::set(&mut config, name, *value)?;
    }
    Tune::legal(&config).map_err(|c| ProblemError::Illegal(c.to_owned()))?;
    Ok(config)
}

/// Why a problem or a kernel cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ProblemError {
    #[error(transparent)]
    Setting(#[from] TuneError),
    #[error("the config violates `{0}`")]
    Illegal(String),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("{0}")]
    Unsupported(String),
}

/// A kernel of the library.
pub trait LibraryKernel: Sync {
    fn info(&self) -> Info;

    /// The config it runs with unless told otherwise.
    fn settings(&self) -> Box<dyn Settings>;

    /// The config that suits tensors of these extents and element types, as far as they are given, changed by `settings`.
    ///
    /// # Errors
    /// If a setting does not fit.
    fn settings_at(
        &self,
        _sizes: &Sizes,
        _dtypes: &Dtypes,
        settings: &[(String, TuneValue)],
    ) -> Result<Box<dyn Settings>, ProblemError> {
        let mut config = self.settings();
        for (name, value) in settings {
            config.set(name, *value)?;
        }
        config.legal().map_err(|c| ProblemError::Illegal(c.to_owned()))?;
        Ok(config)
    }

    /// A launcher with the default config changed by `settings`, for tensors of the user's own.
    /// `dtypes` are the element types of the given arguments by parameter name, for kernels that take several.
    ///
    /// # Errors
    /// If a setting or an element type does not fit.
    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError>;

    /// Problems with known answers.
    fn cases(&self, scale: Scale) -> Vec<Case>;
}

/// Element types by parameter name.
pub type Dtypes = std::collections::BTreeMap<String, zellige_ir::DType>;

/// Every kernel, by family and name.
pub fn all() -> &'static [&'static dyn LibraryKernel] {
    &[
        &crate::gemm::dense::Entry,
        &crate::gemm::block_scaled::Entry,
        &crate::gemm::grouped::Contiguous,
        &crate::gemm::grouped::Masked,
        &crate::gemm::k_grouped::Entry,
        &crate::gemm::k_grouped_scaled::Entry,
        &crate::gemm::batched::Entry,
        &crate::gemm::batch_sum::Entry,
        &crate::mhc::expand::ENTRY,
        &crate::mhc::mix::ENTRY,
        &crate::mhc::mix_norm::ENTRY,
        &crate::mhc::split::ENTRY,
        &crate::mhc::sinkhorn::ENTRY,
        &crate::mhc::apply::ENTRY,
        &crate::mhc::post::ENTRY,
        &crate::mhc::pre_big_fuse::ENTRY,
        &crate::mhc::pre_big_fuse::NORM_ENTRY,
        &crate::mhc::head_mix::ENTRY,
        &crate::mhc::head::ENTRY,
        &crate::mhc::expand_backward::ENTRY,
        &crate::mhc::norm_weight::ENTRY,
        &crate::mhc::norm_weight::BACKWARD_ENTRY,
        &crate::mhc::mix_norm_backward::ENTRY,
        &crate::mhc::mix_backward::ENTRY,
        &crate::mhc::split_backward::ENTRY,
        &crate::mhc::head_mix_backward::ENTRY,
        &crate::mhc::sinkhorn_backward::ENTRY,
        &crate::mhc::apply_backward::ENTRY,
        &crate::mhc::post_backward::ENTRY,
        &crate::mhc::post_mix::ENTRY,
        &crate::mhc::recompute::Entry,
        &crate::attention::flash::Entry,
        &crate::attention::delta::Entry,
        &crate::attention::dq::Entry,
        &crate::attention::dkv::Entry,
        &crate::attention::head_sum::Entry,
        &crate::norm::rmsnorm::Entry,
        &crate::norm::rmsnorm_cast::Entry,
        &crate::norm::rmsnorm_backward::Entry,
        &crate::norm::column_sum::Entry,
        &crate::norm::rope::Entry,
        &crate::norm::hadamard::Entry,
        &crate::norm::mtp_input::Entry,
        &crate::vocab::embedding::Entry,
        &crate::vocab::token_order::Entry,
        &crate::vocab::embedding_backward::Entry,
        &crate::vocab::cross_entropy::Entry,
        &crate::vocab::cross_entropy_backward::Entry,
        &crate::vocab::reverse_kl::Entry,
        &crate::vocab::reverse_kl::BackwardEntry,
        &crate::vocab::sampling_topk::Entry,
        &crate::optim::adamw::Entry,
        &crate::optim::muon::momentum::Entry,
        &crate::optim::muon::normalize::Entry,
        &crate::optim::muon::gram::Entry,
        &crate::optim::muon::product::Entry,
        &crate::optim::muon::update::Entry,
        &crate::engram::hash::Entry,
        &crate::engram::weight::FusedEntry,
        &crate::engram::weight::GradEntry,
        &crate::engram::gate::Entry,
        &crate::engram::gate_backward::Entry,
        &crate::quant::per_token::Entry,
        &crate::quant::per_block::Entry,
        &crate::quant::per_channel::Entry,
        &crate::quant::per_channel::Transposed,
        &crate::quant::requant::Entry,
        &crate::quant::lossless::Entry,
        &crate::quant::cast_back::Entry,
        &crate::quant::e5m6::Entry,
        &crate::quant::e5m6::Back,
        &crate::quant::round_trip::Entry,
        &crate::quant::stochastic::Entry,
        &crate::quant::transpose::Entry,
        &crate::quant::activation::Entry,
        &crate::quant::activation_backward::Entry,
        &crate::quant::swiglu::PerToken,
        &crate::quant::swiglu::PerChannel,
        &crate::quant::swiglu_backward::Entry,
        &crate::moe::router::Entry,
        &crate::moe::gate::Entry,
        &crate::moe::gate_backward::Entry,
        &crate::moe::hash_gate::Entry,
        &crate::moe::top2_sum_gate::Entry,
        &crate::moe::top_groups::Entry,
        &crate::moe::normalize::Entry,
        &crate::moe::indices::MaskEntry,
        &crate::moe::indices::UniqueEntry,
        &crate::moe::load::GroupCountEntry,
        &crate::moe::load::AuxFiEntry,
        &crate::moe::mapping::Entry,
        &crate::moe::expert_of_rows::Entry,
        &crate::moe::expand::Entry,
        &crate::moe::expand::WithScales,
        &crate::moe::reduce::Entry,
        &crate::moe::reduce_backward::Entry,
    ]
}

/// The kernel called `name`.
pub fn find(name: &str) -> Option<&'static dyn LibraryKernel> {
    all().iter().copied().find(|k| k.info().name == name)
}
