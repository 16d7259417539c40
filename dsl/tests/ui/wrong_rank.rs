use zellige::prelude::*;

#[kernel]
fn wrong_rank(t: T, a: &Tensor<f32, 2>, y: &mut Tensor<f32, 1>) {
    let [_] = t.grid([1usize], 32);
    let tile = t.fragment::<f32, 2>([32, 32]);
    let row = t.fragment::<f32, 1>([32]);
    t.copy(tile, row);
    y[0usize] = a[0usize];
    tile[(0, 1, 2)] = 1.0;
}

fn main() {}
