//! The kernel of the README: a product of two small matrices, printed.

use zellige::prelude::*;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = bm * bn <= 128 * 256)]
#[tune(constraint = bm.is_multiple_of(32))]
pub struct GemmConfig {
    /// Rows of C that a block computes.
    #[tune(64, 128, 256)]
    pub bm: usize,
    /// Columns of C that a block computes.
    #[tune(64, 128, 256)]
    pub bn: usize,
    /// Step along K.
    #[tune(32, 64)]
    pub bk: usize,
    #[tune(2..=5)]
    pub stages: usize,
    pub threads: usize,
}

/// C = A B^T, halved.
#[kernel(static_dims(n, k))]
pub fn gemm<E: Float>(
    t: T,
    #[dims(m, k)] a: &Tensor<E, 2>,
    #[dims(n, k)] b: &Tensor<E, 2>,
    #[dims(m, n)] c: &mut Tensor<E, 2>,
    #[comptime] cfg: GemmConfig,
) {
    let GemmConfig { bm, bn, bk, .. } = cfg;
    let (m, n, k) = (a.dim(0), b.dim(0), a.dim(1));
    let [bx, by] = t.grid([n.ceil_div(bn), m.ceil_div(bm)], cfg.threads);
    let (a_s, b_s) = (t.shared::<E, 2>([bm, bk]), t.shared::<E, 2>([bn, bk]));
    let acc = t.fragment::<f32, 2>([bm, bn]);
    t.clear(acc);
    for ko in t.pipelined(k.ceil_div(bk), cfg.stages) {
        t.copy(a.at((by * bm, ko * bk)), a_s);
        t.copy(b.at((bx * bn, ko * bk)), b_s);
        t.gemm(a_s, b_s.t(), acc);
    }
    for (i, j) in t.parallel((bm, bn)) {
        acc[(i, j)] *= 0.5;
    }
    t.cast(acc, c.at((by * bm, bx * bn)));
}

/// Half the product of [5, 96] and [96, 3] matrices, a row to a line.
pub fn product() -> Result<String, Box<dyn std::error::Error>> {
    let cfg = GemmConfig { bm: 128, bn: 64, bk: 32, stages: 3, threads: 128 };
    let values = |n: usize| (0..n).map(|i| bf16::from_f32((i % 5) as f32)).collect::<Vec<_>>();
    let stream = Device::cpu().stream();
    let a = DeviceTensor::from_slice([5, 96], &values(5 * 96))?;
    let b = DeviceTensor::from_slice([3, 96], &values(3 * 96))?;
    let mut c = DeviceTensor::<bf16, 2>::zeros([5, 3])?;
    Gemm::<bf16>::new(cfg).launch(&stream, &a, &b, &mut c)?;
    Ok(c.to_vec()?.chunks(3).map(|row| format!("{row:?}\n")).collect())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    print!("{}", product()?);
    Ok(())
}
