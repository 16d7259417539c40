//! Speed of the simulated GPU with all of its checks, in simulated thread-instructions per second of one core.
//!
//! A launch is recorded once and then simulated again and again; time is the thread's own processor time, because others may
//! use the machine. The launches: an element-wise kernel, a reduction, and one product on `mma.sync` and on `wgmma`.
//!
//! `cargo bench -p zellige-benches --bench sim_speed [-- element|reduction|mma|wgmma]`

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};
use zellige::TuneValue;
use zellige_benches::machine::thread_time;
use zellige_codegen::ptx::Arch;
use zellige_ir::{Const, DType};
use zellige_kernels::inputs::Inputs;
use zellige_kernels::library::{Dtypes, Scale, find};
use zellige_runtime::device::Recordings;
use zellige_runtime::sim::{Module, Recording, SimOptions};
use zellige_runtime::{Arg, Device, DynTensor, Stream};

/// Seconds of the thread's processor time.
struct ThreadTime;

impl Measurement for ThreadTime {
    type Intermediate = f64;
    type Value = f64;

    fn start(&self) -> f64 {
        thread_time()
    }

    fn end(&self, start: f64) -> f64 {
        thread_time() - start
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Seconds
    }
}

/// Shows seconds, and instructions a second.
struct Seconds;

impl ValueFormatter for Seconds {
    fn scale_values(&self, _typical: f64, values: &mut [f64]) -> &'static str {
        values.iter_mut().for_each(|v| *v *= 1e3);
        "ms"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let Throughput::Elements(n) = throughput else { unreachable!("the bench counts instructions") };
        values.iter_mut().for_each(|v| *v = *n as f64 / *v / 1e6);
        "M thread-instructions/s"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "s"
    }
}

/// The launch that `f` makes on a simulated GPU that does most.
fn record(arch: Arch, f: impl FnOnce(&Stream)) -> Recording {
    let recordings = Recordings::default();
    f(&Device::sim_recording(arch, recordings.clone()).stream());
    let launches = std::mem::take(&mut *recordings.lock().expect("nobody panicked"));
    launches.into_iter().max_by_key(|r| instructions(&Module::parse(&r.ptx).expect("PTX"), r)).expect("a launch")
}

/// Thread-instructions of a launch.
fn instructions(module: &Module, launch: &Recording) -> u64 {
    launch.replay(module, &SimOptions::fast()).expect("it ran before").report.stats.thread_instructions
}

/// The largest small problem of a kernel.
fn library(kernel: &str) -> Recording {
    record(Arch::Sm90a, |stream| {
        for case in find(kernel).expect("the library has it").cases(Scale::Small) {
            let problem = (case.build)(&[]).expect("the problem can be built");
            zellige_kernels::run::launch(&problem, stream).expect("the launch is clean");
        }
    })
}

/// A product of 256 x 512 by 512 x 256.
fn gemm(stream: &Stream) {
    let settings = [("bm", 128), ("bn", 128), ("bk", 64), ("threads", 256)];
    let settings = settings.map(|(name, n)| (name.to_owned(), TuneValue::Int(n)));
    let kernel =
        find("gemm").expect("the library has it").instantiate(&settings, &Dtypes::new()).expect("it can be built");
    let mut inputs = Inputs::new(1);
    let mut operand = || inputs.normal(DType::BF16, &[256, 512], 1.0).expect("the operand fits");
    let (a, b) = (operand(), operand());
    let c = DynTensor::zeros(DType::BF16, &[256, 256]).expect("the result fits");
    let args = [Arg::Read(&a), Arg::Read(&b), Arg::Write(&c), Arg::Scalar(Const::f32(0.5))];
    kernel.launch_args(stream, &args).expect("the launch is clean");
}

fn main() {
    let launches = [
        ("element", library("adamw")),
        ("reduction", library("rmsnorm")),
        ("mma", record(Arch::Sm80, gemm)),
        ("wgmma", record(Arch::Sm90a, gemm)),
    ];
    assert!(launches[2].1.ptx.contains("mma.sync") && launches[3].1.ptx.contains("wgmma.mma_async"));
    let mut criterion = Criterion::default().with_measurement(ThreadTime).sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("sim");
    let options = SimOptions { parallel: false, ..SimOptions::default() };
    for (name, launch) in &launches {
        let module = Module::parse(&launch.ptx).expect("the compiler writes PTX");
        group.throughput(Throughput::Elements(instructions(&module, launch)));
        group.bench_function(*name, |b| b.iter(|| launch.replay(&module, &options)));
    }
    group.finish();
    criterion.final_summary();
}
