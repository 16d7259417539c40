use zellige::prelude::*;

#[kernel]
fn host_value(t: T, x: &mut Tensor<f32, 1>, n: usize) {
    let [_] = t.grid([n], 32);
    x[0usize] = 1.0;
}

#[kernel(static_dims(k))]
fn unknown_dim(t: T, #[dims(m, n)] x: &mut Tensor<f32, 2>) {
    let [_] = t.grid([1usize], 32);
    x[(0, 0)] = 1.0;
}

#[kernel]
fn dim_count(t: T, #[dims(m, n, k)] x: &mut Tensor<f32, 2>) {
    let [_] = t.grid([1usize], 32);
    x[(0, 0)] = 1.0;
}

#[kernel]
fn returns(t: T, x: &mut Tensor<f32, 2>) -> f32 {
    let [_] = t.grid([1usize], 32);
    x[(0, 0)] = 1.0;
    1.0
}

fn main() {}
