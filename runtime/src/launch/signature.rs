//! What a kernel expects of its arguments, as the launcher and the command line see it.

use std::borrow::Cow;
use std::fmt;
use zellige_ir::{Access, DType};

/// The parameters of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Its documentation.
    pub doc: &'static str,
    /// Parameters that are given at launch, in order.
    pub params: Vec<ParamSpec>,
    /// Named dims whose extents are part of the kernel's identity: a kernel is built for each value.
    pub static_dims: &'static [&'static str],
}

impl Signature {
    /// The tensor parameters with their positions.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &TensorSpec)> {
        self.params.iter().enumerate().filter_map(|(i, p)| match p {
            ParamSpec::Tensor(t) => Some((i, t)),
            ParamSpec::Scalar { .. } => None,
        })
    }

    /// Is this dim part of the kernel's identity?
    pub fn is_static(&self, dim: &str) -> bool {
        self.static_dims.contains(&dim)
    }
}

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum ParamSpec {
    Tensor(TensorSpec),
    Scalar { name: &'static str, dtype: DType },
}

impl ParamSpec {
    pub fn name(&self) -> &'static str {
        match self {
            ParamSpec::Tensor(t) => t.name,
            ParamSpec::Scalar { name, .. } => name,
        }
    }
}

/// A tensor parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    pub name: &'static str,
    pub dtype: DType,
    pub dims: Vec<DimSpec>,
    pub access: Access,
    /// May rows lie apart? Otherwise the tensor must be contiguous.
    pub strided: bool,
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// One dim of a tensor parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DimSpec {
    /// Dims of one name have one extent in a launch.
    Named(Cow<'static, str>),
    /// The extent is fixed by the kernel.
    Fixed(usize),
}

impl DimSpec {
    pub const fn named(name: &'static str) -> DimSpec {
        DimSpec::Named(Cow::Borrowed(name))
    }
}

impl fmt::Display for DimSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DimSpec::Named(name) => f.write_str(name),
            DimSpec::Fixed(n) => write!(f, "{n}"),
        }
    }
}

/// Extents by dim name: of the static dims when a kernel is recorded, of all of them at launch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sizes(Vec<(Cow<'static, str>, usize)>);

impl Sizes {
    /// No dim has an extent yet.
    pub fn new() -> Sizes {
        Sizes::default()
    }

    /// Adds or replaces an extent.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, extent: usize) -> Sizes {
        self.set(name.into(), extent);
        self
    }

    pub(crate) fn set(&mut self, name: Cow<'static, str>, extent: usize) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, e)) => *e = extent,
            None => self.0.push((name, extent)),
        }
    }

    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|(n, _)| n == name)
    }

    pub fn get(&self, name: &str) -> Option<usize> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, e)| *e)
    }

    /// Names and extents in the order they were first set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(n, e)| (n.as_ref(), *e))
    }
}
