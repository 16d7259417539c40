//! The interpreter and the CPU backend give the same bits on every kernel of the library, except where a kernel sums:
//! the op table leaves the order of sums to the backend, and those outputs are held to the reference's tolerance.

use zellige::runtime::Device;
use zellige_ir::{Func, OpKind, ReduceOp, ScanOp, UnaryOp};
use zellige_kernels::library::{Problem, Scale, Value, all};
use zellige_kernels::run::{launch, sizes};

/// Does the order of a float sum, or a device's fast unit, show in the kernel's results?
fn leaves_bits_open(func: &Func) -> bool {
    let mut open = false;
    func.walk(func.body, &mut |_, op| {
        open |= match &op.kind {
            OpKind::Gemm { acc, .. } => func.buffers[acc.buffer].dtype.is_float(),
            OpKind::Reduce { op: ReduceOp::Sum, dst, .. } => func.buffers[dst.buffer].dtype.is_float(),
            OpKind::Scan { op: ScanOp::Sum, dst, .. } => func.buffers[dst.buffer].dtype.is_float(),
            OpKind::Unary { op, .. } => matches!(
                op,
                UnaryOp::FastExp2 | UnaryOp::FastLog2 | UnaryOp::FastRcp | UnaryOp::FastRsqrt | UnaryOp::FastTanh
            ),
            _ => false,
        };
    });
    open
}

/// The outputs' bits as `device` computes them; every NaN as one.
fn outputs(problem: &Problem, device: &Device) -> Vec<Vec<u8>> {
    launch(problem, &device.stream()).unwrap();
    let bits = |v: &Value| match v {
        Value::Scalar(_) => Vec::new(),
        Value::Tensor(t) => {
            let nan = |v: f64| if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() };
            match t.dtype().is_float() {
                true => t.to_f64_vec().unwrap().into_iter().flat_map(|v| nan(v).to_le_bytes()).collect(),
                false => t.to_bytes().unwrap(),
            }
        }
    };
    problem.args.iter().map(bits).collect()
}

#[test]
fn interpreter_and_cpu_agree_bit_for_bit() {
    let (mut exact, mut failures) = (0, Vec::new());
    for kernel in all() {
        for case in kernel.cases(Scale::Small) {
            let name = format!("{} {}", kernel.info().name, case.name);
            let problem = (case.build)(&[]).unwrap();
            let func = problem.kernel.record(&sizes(&problem).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
            if leaves_bits_open(&func) {
                continue;
            }
            exact += 1;
            // A second problem: the first one's outputs may be inputs too.
            let again = (case.build)(&[]).unwrap();
            if outputs(&problem, &Device::interp()) != outputs(&again, &Device::cpu()) {
                failures.push(name);
            }
        }
    }
    assert!(failures.is_empty(), "the bits differ on: {}", failures.join(", "));
    println!("{exact} problems have one result to the last bit");
}

/// Same inputs, same config, same device: same bits, however many threads take part.
#[test]
fn a_second_run_gives_the_same_bits() {
    let mut failures = Vec::new();
    for kernel in all() {
        for case in kernel.cases(Scale::Small) {
            let (first, second) = ((case.build)(&[]).unwrap(), (case.build)(&[]).unwrap());
            if outputs(&first, &Device::cpu()) != outputs(&second, &Device::cpu()) {
                failures.push(format!("{} {}", kernel.info().name, case.name));
            }
        }
    }
    assert!(failures.is_empty(), "the bits differ on: {}", failures.join(", "));
}
