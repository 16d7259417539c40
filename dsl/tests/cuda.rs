//! What only a GPU can show: graphs, resources, and how the device fails. Run one by one on a machine that has one:
//! `cargo test -p zellige --test cuda -- --ignored --test-threads 1 NAME`; the test of a lost device ends its process's use of
//! the GPU.

use zellige::prelude::*;
use zellige::runtime::Arg;
use zellige::{capture, capture_overlapped, runtime};

/// y = 2 x
#[kernel]
fn double(t: T, #[dims(n)] x: &Tensor<f32, 1>, #[dims(n)] y: &mut Tensor<f32, 1>) {
    let [b] = t.grid([x.dim(0).ceil_div(1024)], 128);
    for i in t.parallel(1024) {
        y[b * 1024 + i] = x[b * 1024 + i] * 2.0;
    }
}

/// y = x + 1
#[kernel]
fn increment(t: T, #[dims(n)] x: &Tensor<f32, 1>, #[dims(n)] y: &mut Tensor<f32, 1>) {
    let [b] = t.grid([x.dim(0).ceil_div(1024)], 128);
    for i in t.parallel(1024) {
        y[b * 1024 + i] = x[b * 1024 + i] + 1.0;
    }
}

/// y = the first element of x, which must be positive
#[kernel]
fn first_positive(t: T, #[dims(m, n)] x: &Tensor<f32, 2>, #[dims(k)] y: &mut Tensor<f32, 1>) {
    let [_b] = t.grid([y.dim(0)], 32);
    let first = x[(0, 0)];
    t.assert(zellige::cmp::ge(&first, &0.0), "the first element is negative");
    for i in t.parallel(1) {
        y[i] = first;
    }
}

fn vector(values: &[f32]) -> DynTensor {
    DeviceTensor::<f32, 1>::from_slice([values.len()], values).expect("a small tensor").into()
}

fn matrix(rows: usize, columns: usize, first: f32) -> DynTensor {
    let mut values = vec![0.0; rows * columns];
    values[0] = first;
    DeviceTensor::<f32, 2>::from_slice([rows, columns], &values).expect("a small tensor").into()
}

#[test]
fn devices_without_graphs_say_so() {
    let (x, y) = (vector(&[1.0]), vector(&[0.0]));
    let args = [Arg::Read(&x), Arg::Write(&y)];
    for device in [Device::cpu(), Device::interp()] {
        let name = device.name();
        let message = format!("{name} cannot record launches for a replay: launch the kernels one by one");
        for record in [capture, capture_overlapped] {
            let error = record(&device.stream(), &[(&Double::new(), &args)]).err().expect("no graphs here");
            assert_eq!(error.to_string(), message);
        }
    }
    // The refusal leaves the tensors free.
    Double::new().launch_args(&Device::cpu().stream(), &args).unwrap();
    assert_eq!(y.to_f64_vec().unwrap(), [2.0]);
}

/// Runs launches that feed each other, again and again.
fn replay(device: &Device) {
    let values: Vec<f32> = (0..5000).map(|i| i as f32).collect();
    let (x, y, z) = (vector(&values), vector(&[0.0; 5000]), vector(&[0.0; 5000]));
    let calls = [[Arg::Read(&x), Arg::Write(&y)], [Arg::Read(&y), Arg::Write(&z)], [Arg::Read(&z), Arg::Write(&y)]];
    let (double, increment) = (Double::new(), Increment::new());
    let stream = device.stream();
    for record in [capture, capture_overlapped] {
        let mut graph =
            record(&stream, &[(&double, &calls[0]), (&increment, &calls[1]), (&increment, &calls[2])]).unwrap();
        for _ in 0..3 {
            graph.run().unwrap();
        }
        assert_eq!(graph.time(4).unwrap().len(), 4);
        graph.finish().unwrap();
        drop(graph);
        let (y, z) = (y.to_f64_vec().unwrap(), z.to_f64_vec().unwrap());
        for i in 0..5000 {
            assert_eq!((y[i], z[i]), (2.0 * i as f64 + 2.0, 2.0 * i as f64 + 1.0));
        }
    }
}

#[test]
fn the_simulator_replays_launches_that_feed_each_other() {
    replay(&Device::sim());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_graph_replays_launches_that_feed_each_other() {
    replay(&Device::cuda(0).unwrap());
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn overlapped_launches_wait_for_each_other() {
    // Each launch reads all that the one before wrote and overwrites what that one read.
    const LAUNCHES: usize = 60;
    let device = Device::cuda(0).unwrap();
    let stream = device.stream();
    let increment = Increment::new();
    // One round of blocks, and several.
    for n in [1 << 10, 1 << 20] {
        for record in [capture, capture_overlapped] {
            let (x, y) = (vector(&vec![0.0; n]), vector(&vec![0.0; n]));
            let ways = [[Arg::Read(&x), Arg::Write(&y)], [Arg::Read(&y), Arg::Write(&x)]];
            let calls: Vec<(&dyn Kernel, &[Arg<'_>])> =
                (0..LAUNCHES).map(|i| (&increment as &dyn Kernel, &ways[i % 2][..])).collect();
            let mut graph = record(&stream, &calls).unwrap();
            let mut times = graph.time(25).unwrap();
            graph.finish().unwrap();
            drop(graph);
            times.sort_unstable();
            println!("{n} elements: {:.2} us a launch", times[12].as_secs_f64() * 1e6 / LAUNCHES as f64);
            let wrong = x.to_f64_vec().unwrap().into_iter().filter(|&v| v != (25 * LAUNCHES) as f64).count();
            assert_eq!(wrong, 0, "of {n}");
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_driver_tells_what_a_kernel_takes() {
    let device = Device::cuda(0).unwrap();
    let (x, y) = (vector(&[1.0]), vector(&[0.0]));
    let built = Double::new().prepare(&device, &[Arg::Read(&x), Arg::Write(&y)]).unwrap();
    let r: runtime::Resources = built.resources.unwrap();
    println!("{r:?}");
    assert!(r.registers > 0 && r.blocks_per_sm > 0 && r.occupancy > 0.0 && r.occupancy <= 1.0);
    assert_eq!((r.threads, r.local_bytes), (128, 0));
    let rate = device.copy_rate().unwrap().unwrap();
    println!("copy {:.0} GB/s", rate / 1e9);
    assert!(rate > 0.0);
}

#[test]
#[ignore = "needs an NVIDIA GPU, and takes all of its memory"]
fn a_full_gpu_says_what_was_asked_and_what_is_free() {
    let stream = Device::cuda(0).unwrap().stream();
    let x: DynTensor = DeviceTensor::<f32, 2>::zeros([8, 1 << 29]).unwrap().into();
    let outputs: Vec<DynTensor> = (0..64).map(|_| vector(&[7.0])).collect();
    let args: Vec<[Arg<'_>; 2]> = outputs.iter().map(|y| [Arg::Read(&x), Arg::Write(y)]).collect();
    let kernel = FirstPositive::new();
    let mut bound = Vec::new();
    let error = args.iter().find_map(|args| kernel.bind_args(&stream, args).map(|b| bound.push(b)).err());
    let error = error.expect("64 times 16 GiB fill any GPU");
    println!("after {} tensors: {error}", bound.len());
    let LaunchError::OutOfMemory { arg, asked, free, .. } = error else { panic!("{error}") };
    assert_eq!((arg.as_str(), asked), ("x", 16 << 30));
    assert!(free < asked);
    // Nothing is lost: with the memory back, the kernel runs.
    drop(bound);
    kernel.launch_args(&stream, &args[63]).unwrap();
    assert_eq!(outputs[63].to_f64_vec().unwrap(), [0.0]);
}

#[test]
#[ignore = "needs an NVIDIA GPU, and makes it unusable for the process"]
fn a_lost_device_names_the_kernel_that_lost_it() {
    let device = Device::cuda(0).unwrap();
    let stream = device.stream();
    let (x, y, z) = (vector(&[1.0]), vector(&[0.0]), vector(&[0.0]));
    let good = [Arg::Read(&x), Arg::Write(&y)];
    Double::new().launch_args(&stream, &good).unwrap();
    let bad = matrix(2, 2, -1.0);
    let error = FirstPositive::new().launch_args(&stream, &[Arg::Read(&bad), Arg::Write(&z)]).unwrap_err();
    println!("{error}");
    assert!(matches!(&error, LaunchError::Device { kernel: "first_positive", .. }), "{error}");
    let error = Double::new().launch_args(&stream, &good).unwrap_err();
    println!("{error}");
    assert!(matches!(&error, LaunchError::DeviceLost { kernel: "double", first: "first_positive", .. }), "{error}");
    let error = Increment::new().launch_args(&stream, &good).unwrap_err().to_string();
    println!("{error}");
    assert!(error.contains("since kernel `first_positive` failed"), "{error}");
    // The host's data is safe.
    assert_eq!(y.to_f64_vec().unwrap(), [2.0]);
}
