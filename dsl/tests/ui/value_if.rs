use zellige::prelude::*;

#[kernel]
fn value_if(t: T, x: &mut Tensor<f32, 1>) {
    let [b] = t.grid([4usize], 32);
    let v = if b < 2 { 1.0 } else { 2.0 };
    x[b] = v;
}

fn main() {}
