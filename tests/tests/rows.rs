//! A row of a product does not know how many rows there are.

use zellige_ir::{Const, DType};
use zellige_kernels::inputs::Inputs;
use zellige_kernels::library::find;
use zellige_runtime::{Arg, Device, DynTensor};

/// The first `rows` rows of operand A of `gemm` with these extents, times all of B, as bytes of the result.
fn product(device: &Device, rows: usize, [n, k]: [usize; 2]) -> Vec<u8> {
    let mut inputs = Inputs::new(5);
    let a = inputs.normal(DType::BF16, &[MOST_ROWS, k], 1.0).expect("the operand fits");
    let b = inputs.normal(DType::BF16, &[n, k], 1.0).expect("the operand fits");
    let a = a.slice(0, 0..rows).expect("there are as many");
    let c = DynTensor::zeros(DType::F32, &[rows, n]).expect("the result fits");
    let dtypes = [("a".to_owned(), DType::BF16), ("c".to_owned(), DType::F32)].into_iter().collect();
    let kernel = find("gemm").expect("the library has a gemm").instantiate(&[], &dtypes).expect("it can be built");
    let args = [Arg::Read(&a), Arg::Read(&b), Arg::Write(&c), Arg::Scalar(Const::f32(0.5))];
    kernel.launch_args(&device.stream(), &args).unwrap_or_else(|e| panic!("{} with {rows} rows: {e}", device.name()));
    c.to_bytes().expect("the launch is over")
}

const MOST_ROWS: usize = 4096;

/// A row of a product has the same bits however many rows there are: what makes inference independent of the batch.
#[test]
fn rows_do_not_depend_on_their_number() {
    let extents = [72, 200];
    for (device, rows) in [(Device::cpu(), &[1, 7, 64, 128, MOST_ROWS][..]), (Device::sim(), &[1, 7, 64, 128, 300])] {
        let all = product(&device, *rows.last().expect("there are some"), extents);
        for &rows in rows {
            let part = product(&device, rows, extents);
            let differs = part.chunks(4).zip(all.chunks(4)).position(|(p, a)| p != a);
            assert_eq!(differs, None, "{} with {rows} rows: the element from which on bits differ", device.name());
            assert_eq!(part.len(), rows * extents[0] * 4);
        }
    }
}
