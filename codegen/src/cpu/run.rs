//! Compiles a kernel and runs it on the arguments of an interpreted launch: the same call, for comparison.

use super::abi::{ArgSlot, CpuKernel, Failure, scalar_slot};
use super::exec::{Arena, Executable};
use super::{CodegenError, CpuOptions, compile};
use zellige_ir::interp::{Arg, TensorArg};
use zellige_ir::prelude::{self, Launch, PreludeError};
use zellige_ir::{Const, Dim, EntityId, Extent, Func, Param};

/// Why a kernel did not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Compile(#[from] CodegenError),
    #[error(transparent)]
    Prelude(#[from] PreludeError),
    #[error("the code could not be mapped: {0}")]
    Map(#[from] std::io::Error),
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("argument {position}: {problem}")]
    Argument { position: usize, problem: String },
}

/// Compiles `func` and runs it once over its grid on the calling thread. Returns the lines that it printed.
///
/// # Errors
/// If the kernel cannot be compiled, the arguments do not fit it, or it fails.
pub fn run(func: &Func, opts: &CpuOptions, args: &mut [Arg]) -> Result<Vec<String>, RunError> {
    run_kernel(func, compile(func, opts)?, args)
}

/// As [`run`], with code that was compiled before.
///
/// # Errors
/// As [`run`].
pub fn run_kernel(func: &Func, kernel: CpuKernel, args: &mut [Arg]) -> Result<Vec<String>, RunError> {
    let (dims, scalars) = bind(func, args)?;
    let launch = prelude::eval(func, &dims, &scalars)?;
    let slots = slot_values(&kernel, &dims, &launch, args);
    let exe = Executable::new(kernel)?;
    let mut arena = Arena::new(exe.kernel().arena_bytes);
    let mut lines = Vec::new();
    let sites = exe.kernel().prints.clone();
    let mut on_print = |site: usize, _block: u64, values: &[u64], elements: &[u64]| {
        lines.push(sites[site].line(values, elements));
    };
    // SAFETY: `bind` checked that each tensor has the type and extents that the kernel was compiled for and memory
    // for all of its elements.
    unsafe { exe.run(&slots, 0..launch.blocks() as u64, &mut arena, &mut on_print)? };
    for arg in args {
        if let Arg::Tensor(t) = arg {
            t.init = None;
        }
    }
    Ok(lines)
}

type Bound = (Vec<(Dim, usize)>, Vec<Const>);

/// Checks the arguments against the signature; returns the dims' extents and the scalars.
fn bind(func: &Func, args: &[Arg]) -> Result<Bound, RunError> {
    let fail = |position, problem: String| RunError::Argument { position, problem };
    if args.len() != func.params.len() {
        return Err(fail(args.len(), format!("expected {} arguments", func.params.len())));
    }
    let (mut dims, mut scalars): Bound = (Vec::new(), Vec::new());
    for (position, (param, arg)) in func.params.iter().zip(args).enumerate() {
        match (param, arg) {
            (Param::Tensor { buffer, .. }, Arg::Tensor(t)) => {
                let data = &func.buffers[*buffer];
                if t.dtype != data.dtype || t.shape.len() != data.rank() || t.strides.len() != data.rank() {
                    return Err(fail(position, format!("expected a {} tensor of rank {}", data.dtype, data.rank())));
                }
                let last = t.shape.iter().zip(&t.strides).map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>();
                if !t.is_empty() && t.bytes.len() < t.dtype.bytes_for(last + 1) {
                    return Err(fail(position, format!("its memory is smaller than {:?} needs", t.shape)));
                }
                for (&extent, &got) in data.shape.iter().zip(&t.shape) {
                    let want = match extent {
                        Extent::Static(n) => n,
                        Extent::Dynamic(dim) => match dims.iter().find(|(d, _)| *d == dim) {
                            Some(&(_, n)) => n,
                            None => {
                                dims.push((dim, got));
                                got
                            }
                        },
                    };
                    if want != got {
                        return Err(fail(position, format!("extent {got}, expected {want}")));
                    }
                }
            }
            (Param::Scalar { .. }, Arg::Scalar(c)) => scalars.push(*c),
            (Param::Tensor { .. }, Arg::Scalar(_)) | (Param::Scalar { .. }, Arg::Tensor(_)) => {
                return Err(fail(position, "a tensor where a scalar is expected, or the reverse".to_owned()));
            }
        }
    }
    Ok((dims, scalars))
}

fn slot_values(kernel: &CpuKernel, dims: &[(Dim, usize)], launch: &Launch, args: &mut [Arg]) -> Vec<u64> {
    let tensor = |args: &mut [Arg], param: u32, f: &dyn Fn(&mut TensorArg) -> u64| match &mut args[param as usize] {
        Arg::Tensor(t) => f(t),
        Arg::Scalar(_) => 0,
    };
    kernel
        .args
        .iter()
        .map(|slot| match *slot {
            ArgSlot::Tensor { param } => tensor(args, param, &|t| t.bytes.as_mut_ptr() as u64),
            ArgSlot::Stride { param, axis } => tensor(args, param, &|t| t.strides[axis as usize] as u64),
            ArgSlot::Dim { dim } => dims.iter().find(|(d, _)| d.index() == dim as usize).map_or(0, |(_, n)| *n as u64),
            ArgSlot::Scalar { param } => match &args[param as usize] {
                Arg::Scalar(c) => scalar_slot(*c),
                Arg::Tensor(_) => 0,
            },
            ArgSlot::Grid { axis } => launch.grid[axis as usize] as u64,
        })
        .collect()
}
