use zellige::prelude::*;

#[kernel]
fn device_loops(t: T, x: &mut Tensor<f32, 1>) {
    let [b] = t.grid([1usize], 32);
    let mut count = 0;
    let mut sum = lit::<f32>(0.0);
    for i in t.serial(16) {
        if i < b {
            break;
        }
        count += 1;
        sum = sum + x[i];
        for k in 0..4 {
            if k == 2 {
                continue;
            }
        }
    }
    while count < 3 {
        count += 1;
    }
    loop {
        return;
    }
}

fn main() {}
