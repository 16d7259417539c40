//! What `#[kernel]` generates code against: the [`Kernel`] trait, typed parameters, and the binder that turns a
//! signature into the symbolic arguments of a recording.

use crate::buffer::Tensor;
use crate::expr::Expr;
use crate::record::{self, RecordError};
use crate::tile::T;
use std::borrow::Cow;
use std::panic::Location;
use std::sync::Arc;
use zellige_ir::diagnostic::Diagnostic;
use zellige_ir::{Access, BufferData, Const, Element, Extent, Func, Scope, Span, Strides, Value};
use zellige_runtime::{
    Arg, BoundLaunch, BuildTimes, Device, DeviceTensor, DimSpec, LaunchError, ParamSpec, Recordable, Signature, Sizes,
    Stream, TensorSpec, bind,
};

/// Identity of a launcher: the kernel function, its type arguments and its compile-time parameters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of launcher type `L` with these compile-time parameters.
    pub fn of<L>(comptime: &impl std::fmt::Debug) -> Key {
        Key(format!("{} {comptime:?}", std::any::type_name::<L>()).into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A kernel with its compile-time parameters: what the launchers that `#[kernel]` generates implement.
pub trait Kernel: Send + Sync {
    /// What the kernel expects of its arguments.
    fn signature(&self) -> Signature;

    /// Identity of the kernel.
    fn key(&self) -> &Key;

    /// Runs the body and returns the tile IR it records. `sizes` gives the extents of the static dims.
    ///
    /// # Errors
    /// Every mistake in the kernel that is visible without running it.
    fn record(&self, sizes: &Sizes) -> Result<Func, RecordError>;

    /// [`record`](Self::record) for a kernel without static dims.
    ///
    /// # Errors
    /// As `record`.
    fn trace(&self) -> Result<Func, RecordError> {
        self.record(&Sizes::new())
    }

    /// Makes the kernel ready for these arguments without running it, and says what that took.
    ///
    /// # Errors
    /// As [`launch_args`](Self::launch_args).
    fn prepare(&self, device: &Device, args: &[Arg<'_>]) -> Result<BuildTimes, LaunchError> {
        let signature = self.signature();
        let sizes = bind(&signature, args)?;
        device.prepare(&recordable(self, &signature, &recorder(self)), &sizes)
    }

    /// Runs the kernel on untyped arguments.
    ///
    /// # Errors
    /// If an argument does not fit, the kernel cannot be built, or the device fails.
    fn launch_args(&self, stream: &Stream, args: &[Arg<'_>]) -> Result<(), LaunchError> {
        let signature = self.signature();
        stream.launch(&recordable(self, &signature, &recorder(self)), args)
    }

    /// Checks the arguments and gets everything ready, so that the kernel can be run, and timed, again and again.
    ///
    /// # Errors
    /// As [`launch_args`](Self::launch_args).
    fn bind_args<'a>(&self, stream: &Stream, args: &'a [Arg<'a>]) -> Result<BoundLaunch<'a>, LaunchError> {
        let signature = self.signature();
        stream.bind(&recordable(self, &signature, &recorder(self)), args)
    }
}

/// Records a kernel for the runtime.
fn recorder<K: Kernel + ?Sized>(kernel: &K) -> impl Fn(&Sizes) -> Result<Func, LaunchError> {
    |sizes| kernel.record(sizes).map_err(|e| LaunchError::Record(e.to_string().into()))
}

/// What the runtime needs to know of a kernel.
fn recordable<'a, K: Kernel + ?Sized>(
    kernel: &'a K,
    signature: &'a Signature,
    record: &'a dyn Fn(&Sizes) -> Result<Func, LaunchError>,
) -> Recordable<'a> {
    Recordable { key: kernel.key().as_str(), signature, record }
}

/// Records launches, to be run in order with one call as often as wanted ([`Stream::capture`]). A tensor that several of
/// them use is one on the device: what a kernel writes the next ones read.
///
/// # Errors
/// If the device has no such thing (GPUs have, real and simulated), and as [`Kernel::launch_args`] for each launch.
pub fn capture<'a>(stream: &Stream, calls: &[(&dyn Kernel, &'a [Arg<'a>])]) -> Result<BoundLaunch<'a>, LaunchError> {
    with_recordables(calls, |launches| stream.capture(launches))
}

/// As [`capture`], with launches that overlap on devices that can ([`Stream::capture_overlapped`]): less time between short
/// launches, the same results.
///
/// # Errors
/// As [`capture`].
pub fn capture_overlapped<'a>(
    stream: &Stream,
    calls: &[(&dyn Kernel, &'a [Arg<'a>])],
) -> Result<BoundLaunch<'a>, LaunchError> {
    with_recordables(calls, |launches| stream.capture_overlapped(launches))
}

fn with_recordables<'a, R>(
    calls: &[(&dyn Kernel, &'a [Arg<'a>])],
    f: impl FnOnce(&[(Recordable<'_>, &'a [Arg<'a>])]) -> R,
) -> R {
    let parts: Vec<_> = calls.iter().map(|&(kernel, _)| (kernel.signature(), recorder(kernel))).collect();
    let launches: Vec<(Recordable<'_>, &'a [Arg<'a>])> = calls
        .iter()
        .zip(&parts)
        .map(|(&(kernel, args), (signature, record))| (recordable(kernel, signature, record), args))
        .collect();
    f(&launches)
}

/// A tensor as a kernel parameter.
#[diagnostic::on_unimplemented(
    message = "`&{Self}` is not a kernel parameter",
    label = "expected `&Tensor<E, R>` or `&mut Tensor<E, R>`",
    note = "a host value that is part of the kernel's identity is marked `#[comptime]`; a scalar is `Expr<E>`"
)]
pub trait TensorParam {
    /// What the launcher takes.
    type Host;
    /// Dims, one for each axis.
    type Dims;
    #[doc(hidden)]
    fn spec(name: &'static str, dims: Self::Dims, access: Access, strided: bool) -> ParamSpec;
    #[doc(hidden)]
    fn anonymous(name: &'static str, access: Access, strided: bool) -> ParamSpec;
}

impl<E: Element, const R: usize> TensorParam for Tensor<E, R> {
    type Host = DeviceTensor<E, R>;
    type Dims = [DimSpec; R];

    fn spec(name: &'static str, dims: [DimSpec; R], access: Access, strided: bool) -> ParamSpec {
        ParamSpec::Tensor(TensorSpec { name, dtype: E::DTYPE, dims: dims.into(), access, strided })
    }

    fn anonymous(name: &'static str, access: Access, strided: bool) -> ParamSpec {
        let dims = (0..R).map(|i| DimSpec::Named(Cow::Owned(format!("{name}.{i}")))).collect();
        ParamSpec::Tensor(TensorSpec { name, dtype: E::DTYPE, dims, access, strided })
    }
}

/// A scalar as a kernel parameter.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a kernel parameter",
    label = "expected `Expr<E>`, `&Tensor<E, R>` or `&mut Tensor<E, R>`",
    note = "mark a host value that is part of the kernel's identity `#[comptime]`"
)]
pub trait ScalarParam {
    /// What the launcher takes.
    type Host;
    #[doc(hidden)]
    fn spec(name: &'static str) -> ParamSpec;
    #[doc(hidden)]
    fn arg(host: Self::Host) -> Arg<'static>;
}

impl<E: Element> ScalarParam for Expr<E> {
    type Host = E;
    fn spec(name: &'static str) -> ParamSpec {
        ParamSpec::Scalar { name, dtype: E::DTYPE }
    }
    fn arg(host: E) -> Arg<'static> {
        Arg::Scalar(Const::from_bits(E::DTYPE, host.to_bits()))
    }
}

enum Bound {
    Tensor(zellige_ir::Buffer),
    Scalar(Value),
}

/// The symbolic arguments of the kernel that is being recorded.
pub struct Binder {
    params: Vec<Bound>,
}

impl Binder {
    /// The witness of the recording.
    pub fn t(&self) -> T {
        T(())
    }

    /// The tensor parameter at a position of the signature; the call stands where the author declares it.
    #[track_caller]
    pub fn tensor<E: Element, const R: usize>(&self, position: usize) -> Tensor<E, R> {
        match self.params[position] {
            Bound::Tensor(b) => {
                let at = Location::caller();
                record::with(at, |r| r.builder.func_mut().buffers[b].span = Span::from(at));
                Tensor::new(b)
            }
            Bound::Scalar(_) => unreachable!("the macro numbers parameters by their kind"),
        }
    }

    /// The scalar parameter at a position of the signature.
    pub fn scalar<E: Element>(&self, position: usize) -> Expr<E> {
        match self.params[position] {
            Bound::Scalar(v) => Expr::new(v),
            Bound::Tensor(_) => unreachable!("the macro numbers parameters by their kind"),
        }
    }
}

/// Records a kernel: declares the parameters of `signature`, then runs `body`.
///
/// # Errors
/// Every mistake the body makes, and static dims without an extent.
pub fn record(
    signature: &Signature,
    sizes: &Sizes,
    at: &'static Location<'static>,
    body: impl FnOnce(&Binder),
) -> Result<Func, RecordError> {
    let missing: Vec<&str> = signature.static_dims.iter().copied().filter(|d| sizes.get(d).is_none()).collect();
    if !missing.is_empty() {
        return Err(RecordError {
            kernel: signature.kernel.to_owned(),
            diagnostics: vec![
                Diagnostic::error(format!("no extent is given for the static dims: {}", missing.join(", ")))
                    .at(Span::from(at), "")
                    .help("pass `Sizes::new().with(\"name\", extent)`, or launch with tensors"),
            ],
        });
    }
    record::record(signature.kernel, at, || {
        let binder = Binder { params: declare(signature, sizes, at) };
        body(&binder);
    })
}

fn declare(signature: &Signature, sizes: &Sizes, at: &'static Location<'static>) -> Vec<Bound> {
    record::with(at, |r| {
        let mut dims: Vec<(String, zellige_ir::Dim)> = Vec::new();
        let mut bound = Vec::new();
        for p in &signature.params {
            bound.push(match p {
                ParamSpec::Scalar { name, dtype } => Bound::Scalar(r.builder.func_mut().add_scalar(*name, *dtype)),
                ParamSpec::Tensor(spec) => {
                    let shape = spec
                        .dims
                        .iter()
                        .map(|d| match d {
                            DimSpec::Fixed(n) => Extent::Static(*n),
                            DimSpec::Named(name) => match sizes.get(name).filter(|_| signature.is_static(name)) {
                                Some(n) => Extent::Static(n),
                                None => {
                                    let known = dims.iter().find(|(n, _)| n == name).map(|(_, d)| *d);
                                    Extent::Dynamic(known.unwrap_or_else(|| {
                                        let dim = r.builder.func_mut().add_dim(name.as_ref());
                                        dims.push((name.to_string(), dim));
                                        dim
                                    }))
                                }
                            },
                        })
                        .collect();
                    let data = BufferData {
                        name: spec.name.to_owned(),
                        dtype: spec.dtype,
                        scope: Scope::Global,
                        shape,
                        strides: if spec.strided { Strides::Dynamic } else { Strides::Contiguous },
                        span: Span::from(at),
                    };
                    Bound::Tensor(r.builder.func_mut().add_tensor(data, spec.access))
                }
            });
        }
        bound
    })
}
