//! Arguments of a launch, and their check against a signature.

use super::error::LaunchError;
use super::signature::{DimSpec, ParamSpec, Signature, Sizes, TensorSpec};
use crate::tensor::{DeviceTensor, DynTensor, Hold, Mode};
use zellige_ir::{Access, Const, Element};

/// One argument of a launch.
#[derive(Debug)]
pub enum Arg<'a> {
    /// A tensor that the kernel reads.
    Read(&'a DynTensor),
    /// A tensor that the kernel writes. The launch takes the exclusive right to its storage.
    Write(&'a DynTensor),
    Scalar(Const),
}

impl<'a, E: Element, const R: usize> From<&'a DeviceTensor<E, R>> for Arg<'a> {
    fn from(t: &'a DeviceTensor<E, R>) -> Arg<'a> {
        Arg::Read(t.as_dyn())
    }
}

impl<'a, E: Element, const R: usize> From<&'a mut DeviceTensor<E, R>> for Arg<'a> {
    fn from(t: &'a mut DeviceTensor<E, R>) -> Arg<'a> {
        Arg::Write(t.as_dyn())
    }
}

impl Arg<'_> {
    /// The tensor, if the argument is one.
    pub fn tensor(&self) -> Option<&DynTensor> {
        match self {
            Arg::Read(t) | Arg::Write(t) => Some(t),
            Arg::Scalar(_) => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Arg::Read(_) => "tensor",
            Arg::Write(_) => "mutable tensor",
            Arg::Scalar(_) => "scalar",
        }
    }
}

/// Checks the arguments against the signature and returns the extent of every named dim.
///
/// # Errors
/// Names the argument, the dim and both values of the first disagreement.
pub fn bind(signature: &Signature, args: &[Arg<'_>]) -> Result<Sizes, LaunchError> {
    let kernel = signature.kernel;
    if args.len() != signature.params.len() {
        return Err(LaunchError::ArgumentCount { kernel, expected: signature.params.len(), found: args.len() });
    }
    let mut sizes = Sizes::new();
    // Which argument gave a dim its extent, for the message when another disagrees.
    let mut owners: Vec<&'static str> = Vec::new();
    for (param, arg) in signature.params.iter().zip(args) {
        match (param, arg) {
            (ParamSpec::Scalar { name, dtype }, Arg::Scalar(c)) => {
                if c.dtype() != *dtype {
                    return Err(LaunchError::Dtype { kernel, arg: name, expected: *dtype, found: c.dtype() });
                }
            }
            (ParamSpec::Tensor(spec), Arg::Read(t)) if spec.access == Access::Read => {
                bind_tensor(kernel, spec, t, &mut sizes, &mut owners)?;
            }
            (ParamSpec::Tensor(spec), Arg::Write(t)) => bind_tensor(kernel, spec, t, &mut sizes, &mut owners)?,
            (param, arg) => {
                let expected = match param {
                    ParamSpec::Scalar { .. } => "scalar",
                    ParamSpec::Tensor(t) if t.access == Access::Read => "tensor",
                    ParamSpec::Tensor(_) => "mutable tensor",
                };
                return Err(LaunchError::ArgumentKind { kernel, arg: param.name(), expected, found: arg.kind() });
            }
        }
    }
    check_overlap(signature, args)?;
    Ok(sizes)
}

fn bind_tensor(
    kernel: &'static str,
    spec: &TensorSpec,
    t: &DynTensor,
    sizes: &mut Sizes,
    owners: &mut Vec<&'static str>,
) -> Result<(), LaunchError> {
    let arg = spec.name;
    if t.dtype() != spec.dtype {
        return Err(LaunchError::Dtype { kernel, arg, expected: spec.dtype, found: t.dtype() });
    }
    if t.shape().len() != spec.dims.len() {
        return Err(LaunchError::Rank { kernel, arg, expected: spec.to_string(), found: t.shape().to_vec() });
    }
    for (axis, (dim, &found)) in spec.dims.iter().zip(t.shape()).enumerate() {
        match dim {
            DimSpec::Fixed(expected) if *expected != found => {
                return Err(LaunchError::FixedDim { kernel, arg, axis, expected: *expected, found });
            }
            DimSpec::Fixed(_) => {}
            DimSpec::Named(name) => match sizes.position(name) {
                None => {
                    sizes.set(name.clone(), found);
                    owners.push(arg);
                }
                Some(i) => {
                    let expected = sizes.get(name).unwrap_or(found);
                    if expected != found {
                        return Err(LaunchError::DimMismatch {
                            kernel,
                            arg,
                            axis,
                            dim: name.to_string(),
                            found,
                            other: owners[i],
                            expected,
                        });
                    }
                }
            },
        }
    }
    if !spec.strided && !t.is_contiguous() {
        let (shape, strides) = (t.shape().to_vec(), t.strides().to_vec());
        return Err(LaunchError::NotContiguous { kernel, arg, shape, strides });
    }
    if let (Some(&stride), Some(&n)) = (t.strides().last(), t.shape().last())
        && spec.strided
        && stride != 1
        && n > 1
    {
        return Err(LaunchError::LastStride { kernel, arg, stride });
    }
    Ok(())
}

/// An output must not share bytes with any other argument.
fn check_overlap(signature: &Signature, args: &[Arg<'_>]) -> Result<(), LaunchError> {
    for (i, (output, param)) in args.iter().zip(&signature.params).enumerate() {
        let Arg::Write(written) = output else { continue };
        for (j, (other, other_param)) in args.iter().zip(&signature.params).enumerate() {
            if i != j && other.tensor().is_some_and(|t| written.may_overlap(t)) {
                let (arg, other) = (param.name(), other_param.name());
                return Err(LaunchError::Overlap { kernel: signature.kernel, arg, other });
            }
        }
    }
    Ok(())
}

/// Takes the right to the storage of every argument of some launches, for as long as they are bound: exclusive where an
/// output lies in it.
///
/// # Errors
/// If somebody else holds one of them.
pub(crate) fn hold<'a>(
    launches: impl IntoIterator<Item = (&'a Signature, &'a [Arg<'a>])>,
) -> Result<Vec<Hold>, LaunchError> {
    struct Wanted<'a> {
        tensor: &'a DynTensor,
        mode: Mode,
        kernel: &'static str,
        arg: &'static str,
    }
    let mut storages: Vec<Wanted<'a>> = Vec::new();
    for (signature, args) in launches {
        for (arg, param) in args.iter().zip(&signature.params) {
            let (tensor, mode) = match arg {
                Arg::Read(t) => (*t, Mode::Read),
                Arg::Write(t) => (*t, Mode::Write),
                Arg::Scalar(_) => continue,
            };
            match storages.iter_mut().find(|w| w.tensor.storage_id() == tensor.storage_id()) {
                Some(wanted) if mode == Mode::Write => wanted.mode = Mode::Write,
                Some(_) => {}
                None => storages.push(Wanted { tensor, mode, kernel: signature.kernel, arg: param.name() }),
            }
        }
    }
    storages
        .into_iter()
        .map(|Wanted { tensor, mode, kernel, arg }| {
            tensor.hold(mode).map_err(|cause| LaunchError::InUse { kernel, arg, cause: cause.to_string() })
        })
        .collect()
}
