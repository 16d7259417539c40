//! The CPU device: blocks of a launch are shared out to the threads of the global rayon pool.

use super::{Backend, Bound, Executable, Launch, store};
use crate::cache::{Artifact, ArtifactKind, Key, Source};
use crate::launch::{Arg, LaunchError};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use zellige_codegen::cpu::abi::{Failure, FailureKind, scalar_slot};
use zellige_codegen::cpu::exec::{Arena, Executable as Code};
use zellige_codegen::cpu::{ArgSlot, CpuKernel, CpuOptions, compile, host_fingerprint};
use zellige_ir::{BinaryOp, Func, OpKind};

/// Blocks are handed to threads in so many pieces each, so that threads which finish early take more.
const PIECES_PER_THREAD: usize = 8;

/// Bytes copied to measure memory bandwidth, larger than any cache, and the piece of one task.
const COPY_BYTES: usize = 256 << 20;
const COPY_PIECE: usize = 32 << 20;

pub(super) struct Cpu {
    /// Features that the code of this machine may use; part of every cache key.
    target: Result<String, String>,
}

impl Cpu {
    pub(super) fn new() -> Cpu {
        Cpu { target: host_fingerprint().map_err(|e| e.to_string()) }
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    /// The fastest of a few copies by all threads of memory that no cache holds.
    fn copy_rate(&self) -> Result<Option<f64>, String> {
        let source = vec![1u8; COPY_BYTES];
        let mut target = vec![0u8; COPY_BYTES];
        let fastest = (0..5)
            .map(|_| {
                let start = Instant::now();
                let pieces = target.par_chunks_mut(COPY_PIECE).zip(source.par_chunks(COPY_PIECE));
                pieces.for_each(|(to, from)| to.copy_from_slice(from));
                std::hint::black_box(&target);
                start.elapsed()
            })
            .min()
            .unwrap_or_default();
        Ok((!fastest.is_zero()).then(|| 2.0 * COPY_BYTES as f64 / fastest.as_secs_f64()))
    }

    fn load(&self, func: &Func) -> Result<Arc<dyn Executable>, String> {
        let options = CpuOptions::default();
        let target = self.target.as_ref().map_err(String::clone)?;
        let key = Key::new(&cache_text(func), target, &format!("{options:?}"));
        let fetched = store::fetch(key, || {
            let kernel = compile(func, &options).map_err(|e| e.to_string())?;
            let code = postcard::to_stdvec(&kernel).map_err(|e| format!("the kernel cannot be stored: {e}"))?;
            let metadata =
                BTreeMap::from([("kernel".to_owned(), func.name.clone()), ("target".to_owned(), target.clone())]);
            Ok(Artifact { kind: ArtifactKind::CpuObject, code, metadata })
        })?;
        // An entry that passed its checksum but does not decode was written by a broken compiler: compile afresh.
        let kernel = match postcard::from_bytes::<CpuKernel>(&fetched.artifact.code) {
            Ok(kernel) => kernel,
            Err(_) => compile(func, &options).map_err(|e| e.to_string())?,
        };
        let code = Code::new(kernel).map_err(|e| format!("the system refuses executable memory: {e}"))?;
        Ok(Arc::new(CpuExecutable { code, from_cache: fetched.source == Source::Store }))
    }
}

/// The text that decides a kernel's code. Places in the author's source are part of it only where the code reports them.
fn cache_text(func: &Func) -> String {
    let mut reports = false;
    func.walk(func.body, &mut |_, op| {
        reports |= match &op.kind {
            OpKind::Assert { .. } | OpKind::Print { .. } => true,
            OpKind::Binary { op: BinaryOp::Div | BinaryOp::Rem | BinaryOp::CeilDiv, x, .. } => func.ty(*x).is_int(),
            _ => false,
        };
    });
    if reports { func.to_text() } else { func.canonical_text() }
}

struct CpuExecutable {
    code: Code,
    from_cache: bool,
}

thread_local!(static ARENA: RefCell<Arena> = RefCell::new(Arena::new(0)));

impl Executable for CpuExecutable {
    fn is_from_cache(&self) -> bool {
        self.from_cache
    }

    fn bind<'a>(self: Arc<Self>, launch: Launch<'a>) -> Result<Box<dyn Bound + 'a>, LaunchError> {
        let slots = slots(self.code.kernel(), &launch);
        Ok(Box::new(BoundKernel { kernel: self, slots, launch }))
    }
}

struct BoundKernel<'a> {
    kernel: Arc<CpuExecutable>,
    /// Values of the kernel's argument slots; the tensors they point to are borrowed by `launch`.
    slots: Vec<u64>,
    launch: Launch<'a>,
}

impl Bound for BoundKernel<'_> {
    fn run(&mut self) -> Result<(), LaunchError> {
        let (launch, args, code) = (&self.launch, &self.slots, &self.kernel.code);
        let kernel = code.kernel();
        let blocks: usize = launch.grid.iter().product();
        let pieces = (rayon::current_num_threads() * PIECES_PER_THREAD).min(blocks);
        let failed = AtomicBool::new(false);
        let first: Mutex<Option<Failure>> = Mutex::new(None);
        (0..pieces).into_par_iter().for_each(|piece| {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let range = (blocks * piece / pieces) as u64..(blocks * (piece + 1) / pieces) as u64;
            let result = ARENA.with_borrow_mut(|arena| {
                if arena.bytes() < kernel.arena_bytes {
                    *arena = Arena::new(kernel.arena_bytes);
                }
                let mut print = |site: usize, block: u64, values: &[u64], elements: &[u64]| {
                    println!("block {block}: {}", kernel.prints[site].line(values, elements));
                };
                // SAFETY: `bind` checked every tensor against the signature the kernel was recorded from, the slots
                // are those the kernel asks for, and the tensors are borrowed for the time of the launch.
                unsafe { code.run(args, range, arena, &mut print) }
            });
            if let Err(failure) = result {
                failed.store(true, Ordering::Relaxed);
                if let Ok(mut first) = first.lock() {
                    // The lowest failing block, whichever thread saw its failure first.
                    if first.as_ref().is_none_or(|f| failure.block < f.block) {
                        *first = Some(failure);
                    }
                }
            }
        });
        match first.into_inner().unwrap_or_default() {
            None => Ok(()),
            Some(failure) => Err(error(launch.kernel, failure)),
        }
    }
}

fn error(kernel: &'static str, failure: Failure) -> LaunchError {
    let place = &failure.site.place;
    let at = format!("{}:{}:{}", place.file, place.line, place.col);
    match &failure.site.kind {
        FailureKind::Assert { message } => LaunchError::AssertFailed { kernel, place: at, message: message.clone() },
        FailureKind::DivisionByZero | FailureKind::OutOfBounds { .. } => {
            LaunchError::Device { kernel, device: "cpu".to_owned(), cause: failure.to_string() }
        }
    }
}

/// The values of the kernel's argument slots.
fn slots(kernel: &CpuKernel, launch: &Launch<'_>) -> Vec<u64> {
    let tensor = |param: u32| launch.args[param as usize].tensor().expect("the signature says this is a tensor");
    kernel
        .args
        .iter()
        .map(|slot| match *slot {
            ArgSlot::Tensor { param } => tensor(param).as_ptr() as u64,
            ArgSlot::Stride { param, axis } => tensor(param).strides()[axis as usize] as u64,
            ArgSlot::Dim { dim } => launch.dims[dim as usize] as u64,
            ArgSlot::Scalar { param } => match &launch.args[param as usize] {
                Arg::Scalar(c) => scalar_slot(*c),
                Arg::Read(_) | Arg::Write(_) => unreachable!("the signature says this is a scalar"),
            },
            ArgSlot::Grid { axis } => launch.grid[axis as usize] as u64,
        })
        .collect()
}
