//! The interpreter as a device: slow, checks every access, and defines what the other devices must compute.

use super::{Backend, Bound, Executable, Launch};
use crate::launch::{Arg, LaunchError};
use crate::tensor::DynTensor;
use std::sync::Arc;
use zellige_ir::Func;
use zellige_ir::diagnostic::{Diagnostic, render};
use zellige_ir::interp::{self, TensorArg};

pub(super) struct Interp;

impl Backend for Interp {
    fn name(&self) -> String {
        "interp".to_owned()
    }

    fn load(&self, func: &Func) -> Result<Arc<dyn Executable>, String> {
        Ok(Arc::new(Interpreted { func: func.clone() }))
    }
}

struct Interpreted {
    func: Func,
}

impl Executable for Interpreted {
    fn is_from_cache(&self) -> bool {
        false
    }

    fn bind<'a>(self: Arc<Self>, launch: Launch<'a>) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        Ok(Box::new(BoundInterpreted { kernel: self, launch }))
    }
}

struct BoundInterpreted<'a> {
    kernel: Arc<Interpreted>,
    launch: Launch<'a>,
}

impl Bound for BoundInterpreted<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        let launch = &self.launch;
        let mut args: Vec<interp::Arg> = launch.args.iter().map(import).collect();
        let report = interp::run(&self.kernel.func, &mut args).map_err(|errors| {
            let diagnostics: Vec<Diagnostic> = errors.into_iter().map(Diagnostic::from).collect();
            LaunchError::Device { kernel: launch.kernel, device: "interp".to_owned(), cause: render(&diagnostics) }
        })?;
        for line in &report.prints {
            println!("{line}");
        }
        for (arg, result) in launch.args.iter().zip(&args) {
            if let (Arg::Write(t), Some(result)) = (arg, result.as_tensor()) {
                let n = t.byte_range().len().min(result.bytes.len());
                // SAFETY: the launch holds the tensor's storage exclusively, and its bytes span this range.
                unsafe { std::ptr::copy_nonoverlapping(result.bytes.as_ptr(), t.as_ptr(), n) };
            }
        }
        Ok(())
    }
}

fn import(arg: &Arg<'_>) -> interp::Arg {
    match arg {
        Arg::Scalar(c) => interp::Arg::Scalar(*c),
        Arg::Read(t) | Arg::Write(t) => interp::Arg::Tensor(import_tensor(t)),
    }
}

fn import_tensor(t: &DynTensor) -> TensorArg {
    let n = t.byte_range().len();
    // SAFETY: the launch holds the tensor's storage, and its bytes span this range.
    let bytes = unsafe { std::slice::from_raw_parts(t.as_ptr(), n) }.to_vec();
    let arg = TensorArg::new(t.dtype(), t.shape(), bytes);
    // An empty tensor's strides are the storage's own business.
    if t.is_contiguous() { arg } else { TensorArg { strides: t.strides().to_vec(), ..arg } }
}
