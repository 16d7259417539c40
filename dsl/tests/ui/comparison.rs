use zellige::prelude::*;

#[kernel]
fn comparison(t: T, x: &mut Tensor<f32, 1>, n: Expr<i32>) {
    let [b] = t.grid([4usize], 32);
    if x[b] < n {
        x[b] = 1.0;
    }
}

fn main() {}
