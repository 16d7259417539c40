use zellige::prelude::*;

#[kernel]
fn copy_row(t: T, #[dims(n)] x: &Tensor<f32, 1>, #[dims(n)] y: &mut Tensor<f32, 1>) {
    let [_] = t.grid([1usize], 32);
    for i in t.parallel(x.dim(0)) {
        y[i] = x[i];
    }
}

fn main() {
    let stream = Device::interp().stream();
    let x = DeviceTensor::<bf16, 1>::zeros([4]).unwrap();
    let mut y = DeviceTensor::<f32, 2>::zeros([2, 2]).unwrap();
    CopyRow::new().launch(&stream, &x, &mut y).unwrap();
}
