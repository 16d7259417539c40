//! What a user reads when an argument does not fit: whole messages.

use zellige::prelude::*;
use zellige::runtime::Arg;

/// y = x W^T, one row a block.
#[kernel(static_dims(k))]
fn matvec(
    t: T,
    #[dims(m, k)] x: &Tensor<f32, 2>,
    #[dims(n, k)] w: &Tensor<f32, 2>,
    #[dims(m, n)] y: &mut Tensor<f32, 2>,
    #[dims(4)] flags: &Tensor<i32, 1>,
    scale: Expr<f32>,
) {
    let [row] = t.grid([x.dim(0)], 32);
    t.assert(w.dim(0) <= 1024, "at most 1024 columns");
    for j in t.parallel(w.dim(0)) {
        let mut sum = lit::<f32>(0.0);
        for k in 0..x.static_dim(1) {
            sum = x[(row, k)].mul_add(w[(j, k)], sum);
        }
        y[(row, j)] = select(flags[0usize] > 0, sum * scale, 0.0);
    }
}

struct Setup {
    x: DeviceTensor<f32, 2>,
    w: DeviceTensor<f32, 2>,
    y: DeviceTensor<f32, 2>,
    flags: DeviceTensor<i32, 1>,
}

impl Setup {
    fn new() -> Setup {
        Setup {
            x: DeviceTensor::from_slice([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap(),
            w: DeviceTensor::from_slice([2, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 1.0]).unwrap(),
            y: DeviceTensor::zeros([2, 2]).unwrap(),
            flags: DeviceTensor::from_slice([4], &[1, 0, 0, 0]).unwrap(),
        }
    }

    fn launch(&mut self) -> Result<(), String> {
        let stream = Device::cpu().stream();
        Matvec::new().launch(&stream, &self.x, &self.w, &mut self.y, &self.flags, 2.0).map_err(|e| e.to_string())
    }
}

#[track_caller]
fn fails(mut setup: Setup, message: &str) {
    assert_eq!(setup.launch().unwrap_err(), message);
}

#[test]
fn a_launch_that_fits_runs() {
    let mut setup = Setup::new();
    setup.launch().unwrap();
    assert_eq!(setup.y.to_vec().unwrap(), [2.0, 10.0, 8.0, 22.0]);
}

#[test]
fn dims_of_one_name_must_agree() {
    let w = DeviceTensor::zeros([2, 4]).unwrap();
    fails(Setup { w, ..Setup::new() }, "kernel `matvec`: argument `w`: dim `k` (axis 1) is 4, but `x` says 3");
}

#[test]
fn fixed_dims_must_match() {
    let flags = DeviceTensor::zeros([5]).unwrap();
    fails(
        Setup { flags, ..Setup::new() },
        "kernel `matvec`: argument `flags`: dim 0 is 5, the kernel is written for 4",
    );
}

#[test]
fn gaps_are_refused_where_the_kernel_expects_none() {
    let w = DeviceTensor::<f32, 2>::zeros([3, 2]).unwrap().transpose(0, 1).unwrap();
    fails(
        Setup { w, ..Setup::new() },
        "kernel `matvec`: argument `w` is not contiguous (shape [2, 3], strides [1, 2]): pass `.contiguous()` of it",
    );
}

#[test]
fn an_output_may_not_overlap_an_input() {
    let all = DeviceTensor::<f32, 2>::zeros([4, 3]).unwrap();
    let setup = Setup {
        x: all.slice(0, 0..2).unwrap(),
        y: all.reshape([12]).unwrap().slice(0, 2..6).unwrap().reshape([2, 2]).unwrap(),
        ..Setup::new()
    };
    fails(setup, "kernel `matvec`: output `y` overlaps argument `x` in memory: give the output memory of its own");
}

#[test]
fn a_tensor_that_is_being_read_cannot_be_written() {
    let mut setup = Setup::new();
    let other = setup.y.clone();
    let reading = other.as_slice().unwrap();
    let message = setup.launch().unwrap_err();
    assert!(message.starts_with("kernel `matvec`: argument `y` is in use: "), "{message}");
    drop(reading);
    setup.launch().unwrap();
}

#[test]
fn untyped_arguments_are_checked_too() {
    let stream = Device::cpu().stream();
    let launch = |args: &[Arg<'_>]| Matvec::new().launch_args(&stream, args).unwrap_err().to_string();
    let s = Setup::new();
    assert_eq!(launch(&[]), "kernel `matvec` takes 5 arguments, 0 were given");
    let (x, w, y, flags) = (Arg::from(&s.x), s.w.as_dyn(), s.y.as_dyn(), s.flags.as_dyn());
    let bf16 = DynTensor::zeros(zellige_ir::DType::BF16, &[2, 3]).unwrap();
    let scale = || Arg::Scalar(zellige_ir::Const::f32(1.0));
    assert_eq!(
        launch(&[Arg::Read(&bf16), Arg::Read(w), Arg::Write(y), Arg::Read(flags), scale()]),
        "kernel `matvec`: argument `x` has element type bf16, expected f32: convert it, or use the launcher of that type"
    );
    assert_eq!(
        launch(&[x, Arg::Read(flags), Arg::Write(y), Arg::Read(flags), scale()]),
        "kernel `matvec`: argument `w` has element type i32, expected f32: convert it, or use the launcher of that type"
    );
    let flat = DynTensor::zeros(zellige_ir::DType::F32, &[6]).unwrap();
    assert_eq!(
        launch(&[Arg::Read(&flat), Arg::Read(w), Arg::Write(y), Arg::Read(flags), scale()]),
        "kernel `matvec`: argument `x` has rank 1 (shape [6]), expected f32[m, k]"
    );
    assert_eq!(
        launch(&[Arg::Read(s.x.as_dyn()), Arg::Read(w), Arg::Read(y), Arg::Read(flags), scale()]),
        "kernel `matvec`: argument `y` is a tensor, expected a mutable tensor"
    );
    assert_eq!(
        launch(&[Arg::Read(s.x.as_dyn()), Arg::Read(w), Arg::Write(y), Arg::Read(flags), Arg::Read(flags)]),
        "kernel `matvec`: argument `scale` is a tensor, expected a scalar"
    );
}

#[test]
fn no_rows_is_a_launch_that_does_nothing() {
    let mut setup =
        Setup { x: DeviceTensor::zeros([0, 3]).unwrap(), y: DeviceTensor::zeros([0, 2]).unwrap(), ..Setup::new() };
    setup.launch().unwrap();
}

#[test]
fn assertions_before_the_grid_are_checked_by_the_launcher() {
    #[kernel]
    fn even(t: T, #[dims(n)] x: &mut Tensor<f32, 1>) {
        t.assert(x.dim(0) % 2usize == 0usize, "the length must be even");
        let [_] = t.grid([1usize], 32);
        x[0usize] = 1.0;
    }
    let mut x = DeviceTensor::zeros([3]).unwrap();
    let message = Even::new().launch(&Device::cpu().stream(), &mut x).unwrap_err().to_string();
    assert!(message.starts_with("kernel `even`: assertion failed at tests/tests/launch_errors.rs:"), "{message}");
    assert!(message.ends_with(": the length must be even"), "{message}");
}

#[test]
fn assertions_of_a_running_kernel_are_told_with_place_and_message() {
    #[kernel]
    fn checked(t: T, #[dims(n)] x: &mut Tensor<i32, 1>) {
        let [b] = t.grid([x.dim(0).ceil_div(32)], 32);
        t.assert(x[b * 32] != 7, "no block begins with 7");
        for i in t.parallel(32) {
            t.assert(x[b * 32 + i] < 9, "100% of the elements are below 9");
        }
        x[b * 32] = 1;
    }
    for device in [Device::cpu(), Device::sim()] {
        for (at, bad, message) in [(32, 7, "no block begins with 7"), (40, 9, "100% of the elements are below 9")] {
            let mut values = vec![0; 64];
            values[at] = bad;
            let mut x = DeviceTensor::from_slice([64], &values).unwrap();
            let error = Checked::new().launch(&device.stream(), &mut x).unwrap_err().to_string();
            assert!(
                error.starts_with("kernel `checked`: assertion failed at tests/tests/launch_errors.rs:"),
                "{error}"
            );
            assert!(error.ends_with(&format!(": {message}")), "{}: {error}", device.name());
        }
        let mut x = DeviceTensor::from_slice([64], &[0; 64]).unwrap();
        Checked::new().launch(&device.stream(), &mut x).unwrap();
    }
}

#[test]
fn an_unknown_device_is_named_with_those_that_exist() {
    let message = Device::from_name("tpu").unwrap_err().to_string();
    assert!(message.starts_with("no device `tpu`: the devices are: "), "{message}");
}
