//! CUDA graphs: a list of launches that the driver replays with one call.

use super::launch::{Call, Order, argument_name};
use super::memory::Resident;
use super::module::CudaExecutable;
use super::{Shared, time};
use crate::device::{Bound, Launch, Ready};
use crate::launch::{Arg, LaunchError};
use cudarc::driver::{CudaGraph, DriverError, sys};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// Launches on shared tensors, and the driver's recording of them.
struct BoundGraph<'a> {
    shared: Arc<Shared>,
    launches: Vec<Launch<'a>>,
    tensors: Vec<Resident>,
    graph: CudaGraph,
    /// The launches with their parameters, which the driver has copied.
    calls: Vec<Call>,
}

/// Records the launches. A tensor that several of them use is one on the device: what one writes the next reads.
pub(super) fn capture<'a>(
    shared: &Arc<Shared>,
    launches: Vec<Ready<'a>>,
    overlapped: bool,
) -> Result<Box<dyn Bound + 'a>, LaunchError> {
    let mut tensors: Vec<Resident> = Vec::new();
    let mut calls = Vec::new();
    for (executable, launch) in &launches {
        let kernel = launch.kernel;
        shared.usable(kernel)?;
        shared.context.bind_to_thread().map_err(|e| shared.failed(kernel, e))?;
        let any: Arc<dyn Any + Send + Sync> = Arc::clone(executable) as _;
        let Ok(executable) = any.downcast::<CudaExecutable>() else {
            unreachable!("a device captures what it has loaded")
        };
        let mut addresses = Vec::new();
        for (i, arg) in launch.args.iter().enumerate() {
            let Some(t) = arg.tensor() else {
                addresses.push(0);
                continue;
            };
            let name = argument_name(executable.first(), i);
            let at = match tensors.iter().position(|r| r.is_of(t)) {
                Some(at) => at,
                None if tensors.iter().any(|r| r.overlaps(t)) => {
                    return Err(LaunchError::GraphView { kernel, arg: name.to_owned() });
                }
                None => {
                    tensors.push(Resident::upload(shared, kernel, name, t)?);
                    tensors.len() - 1
                }
            };
            addresses.push(tensors[at].address(shared));
        }
        // Nothing of the graph is ahead of its first launch, but that one too must let the next begin.
        let order = match (overlapped, calls.is_empty()) {
            (false, _) => Order::InTurn,
            (true, true) => Order::Leads,
            (true, false) => Order::Follows,
        };
        calls.push(Call::new(&executable, launch, order, |i| addresses[i])?);
    }
    let kernel = launches.first().map_or("graph", |(_, l)| l.kernel);
    let graph = record(shared, &mut calls).map_err(|e| shared.failed(kernel, e))?;
    let launches = launches.into_iter().map(|(_, l)| l).collect();
    Ok(Box::new(BoundGraph { shared: Arc::clone(shared), launches, tensors, graph, calls }))
}

fn record(shared: &Shared, calls: &mut [Call]) -> Result<CudaGraph, DriverError> {
    let stream = &shared.stream;
    // Uploads are over before the recording begins: they are no part of it.
    stream.synchronize()?;
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let queued = calls.iter_mut().try_for_each(Call::enqueue);
    // Ended in any case: a stream that goes on recording runs nothing.
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    queued?;
    graph?.ok_or(DriverError(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED))
}

impl BoundGraph<'_> {
    /// The first kernel; in messages it stands for all of them.
    fn kernel(&self) -> &'static str {
        self.launches.first().map_or("graph", |l| l.kernel)
    }

    fn failed(&self, e: DriverError) -> LaunchError {
        let broken = self.launches.iter().zip(&self.calls).find(|(_, call)| call.broken().is_some());
        if let Some((launch, call)) = broken {
            return self.shared.failed_call(launch.kernel, call, e);
        }
        let names: Vec<String> = self.launches.iter().map(|l| format!("`{}`", l.kernel)).collect();
        match self.shared.failed(self.kernel(), e) {
            LaunchError::Device { kernel, device, cause } => {
                LaunchError::Device { kernel, device, cause: format!("in a graph of {}: {cause}", names.join(", ")) }
            }
            other => other,
        }
    }
}

impl Bound for BoundGraph<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        self.shared.usable(self.kernel())?;
        self.graph.launch().and_then(|()| self.shared.stream.synchronize()).map_err(|e| self.failed(e))
    }

    fn time(&mut self, repeats: usize) -> Result<Vec<Duration>, LaunchError> {
        self.shared.usable(self.kernel())?;
        time::launches(&self.shared, repeats, || self.graph.launch()).map_err(|e| self.failed(e))
    }

    fn finish(&mut self) -> Result<(), LaunchError> {
        for launch in &self.launches {
            for arg in launch.args {
                let Arg::Write(t) = arg else { continue };
                if let Some(tensor) = self.tensors.iter().find(|r| r.is_of(t)) {
                    tensor.download(&self.shared, launch.kernel, arg)?;
                }
            }
        }
        Ok(())
    }
}
