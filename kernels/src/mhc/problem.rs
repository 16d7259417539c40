//! What the entries of this family share: shapes, inputs, and the checks of sampled tokens.

use crate::inputs::sample_rows;
use crate::library::{
    Case, Comparison, Dtypes, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::metrics::{Tolerance, compare, compare_rounded};
use crate::reference::mhc::Mhc;
use std::fmt;
use zellige::runtime::DynTensor;
use zellige::{Kernel, Tune, TuneValue};
use zellige_ir::Const;

/// The eps of V4.
pub(super) const EPS: f32 = 1e-6;
/// V4's factor on `post`.
pub(super) const POST_MULTIPLIER: f32 = 2.0;
/// Parts that the cases split sums over tokens into.
pub(super) const PARTS: usize = 128;
/// Slabs of tokens that the cases split the gradient by phi into: few, for each is as large as phi.
pub(super) const TOKEN_SLABS: usize = 8;
/// Slabs that the cases split the projection's sum into.
pub(super) const SLABS: usize = 16;

/// Noise of an f32 sum relative to the magnitudes of its terms, whose coefficients are a few roundings off themselves.
/// Public tests of these operators allow 1e-5 + 1.6e-2 |x|, or 1e-2 + 1e-3 |x|, around a rounded reference.
const NOISE: f64 = 1.0 / 65_536.0;
/// The same where the kernel computes the coefficients from the projection too: a logit m is good to about 2e-6 m in f32,
/// and at V4 sizes |m| reaches 8.
pub(super) const MIXED_NOISE: f64 = 1.0 / 32_768.0;
/// The default tolerance of `torch.testing.assert_close` for f32.
pub(super) const F32: Tolerance = Tolerance::AbsPlusRel { abs: 1e-5, rel: 1.3e-6 };

/// Tokens compared of a large problem; the references are slow.
const SAMPLED_TOKENS: usize = 48;
/// Elements of a state from which on tokens are sampled.
const LARGE: usize = 1 << 22;

/// The sizes of a problem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub tokens: usize,
    pub streams: usize,
    pub dim: usize,
}

impl Shape {
    pub const fn new(tokens: usize, streams: usize, dim: usize) -> Shape {
        Shape { tokens, streams, dim }
    }

    /// The reference, with V4's constants.
    pub fn mhc(self) -> Mhc {
        Mhc { streams: self.streams, eps: f64::from(EPS), ..Mhc::v4(self.dim) }
    }

    /// Width of a state, n d.
    pub fn width(self) -> usize {
        self.streams * self.dim
    }

    /// Mixes of a token, n (2 + n).
    pub fn mixes(self) -> usize {
        self.mhc().mixes()
    }

    /// The tokens to compare.
    pub fn sample(self) -> Vec<usize> {
        let large = self.tokens * self.width() > LARGE;
        sample_rows(self.tokens, if large { SAMPLED_TOKENS } else { self.tokens })
    }

    /// No tokens, one, a few, remainders of every tile; 2, 4 and 8 streams.
    const SMALL: [Shape; 6] = [
        Shape::new(0, 4, 64),
        Shape::new(1, 4, 64),
        Shape::new(5, 4, 40),
        Shape::new(19, 4, 24),
        Shape::new(3, 2, 72),
        Shape::new(9, 8, 20),
    ];

    /// The shapes of a scale: V4-Flash has width 4096, V4-Pro 7168.
    pub fn of(scale: Scale) -> Vec<Shape> {
        match scale {
            Scale::Small => Shape::SMALL.to_vec(),
            Scale::Representative => vec![Shape::new(4096, 4, 7168)],
            Scale::Full => [(1, 7168), (13, 4096), (512, 7168), (4096, 4096), (4096, 7168), (1024, 1280)]
                .map(|(tokens, dim)| Shape::new(tokens, 4, dim))
                .to_vec(),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tokens={} n={} d={}", self.tokens, self.streams, self.dim)
    }
}

/// An entry of the library for a kernel of one set of element types.
pub struct Entry<C: 'static> {
    pub(super) info: Info,
    pub(super) config: C,
    /// The configs of the small cases: tiles small enough that several are needed.
    pub(super) small: &'static [C],
    pub(super) shapes: fn(Scale) -> Vec<Shape>,
    pub(super) kernel: fn(C) -> Box<dyn Kernel>,
    pub(super) problem: fn(Shape, C) -> Result<Problem, ProblemError>,
}

impl<C: Tune + Copy> LibraryKernel for Entry<C> {
    fn info(&self) -> Info {
        self.info
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(self.config)
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok((self.kernel)(apply(self.config, settings)?))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let configs = if scale == Scale::Small { self.small } else { &[self.config] };
        let problem = self.problem;
        let case = |(s, config): (Shape, &C)| {
            let mut name = s.to_string();
            if configs.len() > 1 {
                name.push_str(&format!(" {config:?}"));
            }
            Case::new(name, *config, move |config| problem(s, config))
        };
        let pairs = (self.shapes)(scale).into_iter().flat_map(|s| configs.iter().map(move |c| (s, c)));
        pairs.map(case).collect()
    }
}

/// A problem bound by memory traffic.
pub(super) fn problem(
    kernel: impl Kernel + 'static,
    args: Vec<Value>,
    verify: impl Fn(&[Value]) -> Vec<Comparison> + Send + Sync + 'static,
) -> Problem {
    let work = Work::of(&args);
    Problem { kernel: Box::new(kernel), args, work, verify: Box::new(verify) }
}

pub(super) fn scalar(v: f32) -> Value {
    Value::Scalar(Const::f32(v))
}

/// What a tensor holds at the given places of an axis, one place after the other.
///
/// # Panics
/// If the argument is a scalar or has no such places: a problem's own mistake.
pub(super) fn at(value: &Value, axis: usize, places: &[usize]) -> Vec<f32> {
    let Value::Tensor(tensor) = value else { panic!("only tensors have axes") };
    let all = |t: &DynTensor| -> Vec<f32> {
        t.to_f64_vec().expect("nobody writes the tensor now").into_iter().map(|v| v as f32).collect()
    };
    places.iter().flat_map(|&i| all(&tensor.select(axis, i).expect("the problem knows its shapes"))).collect()
}

/// Adds the parts of each column, f64: `parts` [P, columns].
pub(super) fn total(parts: &[f32], columns: usize) -> Vec<f32> {
    let column = |c: usize| parts.iter().skip(c).step_by(columns).map(|&v| f64::from(v)).sum::<f64>() as f32;
    (0..columns).map(column).collect()
}

/// The given tokens of an argument whose first axis is tokens.
pub(super) fn tokens(value: &Value, places: &[usize]) -> Vec<f32> {
    at(value, 0, places)
}

pub(super) fn check(output: &'static str, got: &[f32], want: &[f32], tolerance: Tolerance) -> Comparison {
    Comparison { output, verdict: compare(got, want, tolerance) }
}

/// Compares a bf16 result with the unrounded reference; `sizes` are the sums of the magnitudes of its terms.
pub(super) fn check_bf16(output: &'static str, got: &[f32], want: &[f32], sizes: &[f32]) -> Comparison {
    Comparison { output, verdict: compare_rounded(got, want, sizes, NOISE) }
}

/// As [`check_bf16`], where the kernel computes the coefficients too.
pub(super) fn check_mixed_bf16(output: &'static str, got: &[f32], want: &[f32], sizes: &[f32]) -> Comparison {
    Comparison { output, verdict: compare_rounded(got, want, sizes, MIXED_NOISE) }
}

/// Magnitudes.
pub(super) fn abs(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| v.abs()).collect()
}
