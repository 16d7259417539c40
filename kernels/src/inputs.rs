//! Deterministic random inputs: the same for a seed on every machine and with any number of threads.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use zellige::runtime::{DynTensor, TensorError};
use zellige_ir::DType;

/// Elements drawn from one generator.
const CHUNK: usize = 1 << 14;

/// Draws tensors; each draw has its own stream of numbers.
#[derive(Debug)]
pub struct Inputs {
    seed: u64,
    draws: u64,
}

impl Inputs {
    pub fn new(seed: u64) -> Inputs {
        Inputs { seed, draws: 0 }
    }

    /// `n` numbers, each drawn by `f`.
    pub fn draw<V: Send + Clone + Default>(&mut self, n: usize, f: impl Fn(&mut ChaCha8Rng) -> V + Sync) -> Vec<V> {
        self.draws += 1;
        let (seed, draw) = (self.seed, self.draws);
        let mut out = vec![V::default(); n];
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ draw.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            rng.set_stream(chunk as u64);
            out.iter_mut().for_each(|v| *v = f(&mut rng));
        });
        out
    }

    /// Numbers of mean 0 and standard deviation `scale`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn normal(&mut self, dtype: DType, shape: &[usize], scale: f64) -> Result<DynTensor, TensorError> {
        let values = self.draw(shape.iter().product(), |rng| scale * normal(rng));
        DynTensor::from_f64(dtype, shape, &values)
    }

    /// Numbers spread evenly over `lo..hi`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn uniform(&mut self, dtype: DType, shape: &[usize], lo: f64, hi: f64) -> Result<DynTensor, TensorError> {
        let values = self.draw(shape.iter().product(), |rng| rng.random_range(lo..hi));
        DynTensor::from_f64(dtype, shape, &values)
    }

    /// Integers spread evenly over `lo..hi`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn integers(&mut self, dtype: DType, shape: &[usize], lo: i64, hi: i64) -> Result<DynTensor, TensorError> {
        let values = self.draw(shape.iter().product(), |rng| rng.random_range(lo..hi) as f64);
        DynTensor::from_f64(dtype, shape, &values)
    }
}

/// One number of the standard normal distribution (Box and Muller, 1958).
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let u: f32 = rng.random::<f32>().max(f32::MIN_POSITIVE);
    let v: f32 = rng.random();
    f64::from((-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos())
}

/// A tensor filled with a value that no kernel computes, to be overwritten.
///
/// # Errors
/// If there is no memory for it.
pub fn output(dtype: DType, shape: &[usize]) -> Result<DynTensor, TensorError> {
    let value = if dtype.is_float() {
        zellige_ir::Const::from_f64(dtype, 77.0)
    } else {
        zellige_ir::Const::from_i64(dtype, 77)
    };
    DynTensor::full(shape, value)
}

/// Rows spread over `0..n`, first and last included, for references too slow to compute in full.
pub fn sample_rows(n: usize, count: usize) -> Vec<usize> {
    match (n, count) {
        (0, _) | (_, 0) => Vec::new(),
        (_, 1) => vec![0],
        _ if n <= count => (0..n).collect(),
        _ => (0..count).map(|i| i * (n - 1) / (count - 1)).collect(),
    }
}
