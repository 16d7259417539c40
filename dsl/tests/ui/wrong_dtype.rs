use zellige::prelude::*;

#[kernel]
fn wrong_dtype(t: T, a: &Tensor<bf16, 2>) {
    let [_] = t.grid([1usize], 32);
    let tile = t.shared::<f8e4m3, 2>([32, 32]);
    t.copy(a.at((0, 0)), tile);
}

fn main() {}
