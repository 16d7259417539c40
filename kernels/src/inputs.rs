//! Deterministic random inputs: the same for a seed on every machine and with any number of threads.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;
use zellige::runtime::{DynTensor, TensorError};
use zellige_ir::DType;

/// Elements drawn from one generator.
const CHUNK: usize = DynTensor::CHUNK;

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

    /// The generators of a new draw: one for each chunk.
    fn generators(&mut self) -> impl Fn(usize) -> ChaCha8Rng + Sync + use<> {
        self.draws += 1;
        let seed = self.seed ^ self.draws.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        move |chunk| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(chunk as u64);
            rng
        }
    }

    /// `n` numbers, each drawn by `f`.
    pub fn draw<V: Send + Clone + Default>(&mut self, n: usize, f: impl Fn(&mut ChaCha8Rng) -> V + Sync) -> Vec<V> {
        let generator = self.generators();
        let mut out = vec![V::default(); n];
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            let mut rng = generator(chunk);
            out.iter_mut().for_each(|v| *v = f(&mut rng));
        });
        out
    }

    /// A tensor of numbers, each drawn by `f`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn tensor(
        &mut self,
        dtype: DType,
        shape: &[usize],
        f: impl Fn(&mut ChaCha8Rng) -> f64 + Sync,
    ) -> Result<DynTensor, TensorError> {
        let generator = self.generators();
        DynTensor::from_f64_chunks(dtype, shape, |first, out| {
            let mut rng = generator(first / CHUNK);
            out.iter_mut().for_each(|v| *v = f(&mut rng));
        })
    }

    /// Numbers of mean 0 and standard deviation `scale`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn normal(&mut self, dtype: DType, shape: &[usize], scale: f64) -> Result<DynTensor, TensorError> {
        self.tensor(dtype, shape, |rng| scale * normal(rng))
    }

    /// Numbers spread evenly over `lo..hi`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn uniform(&mut self, dtype: DType, shape: &[usize], lo: f64, hi: f64) -> Result<DynTensor, TensorError> {
        self.tensor(dtype, shape, |rng| rng.random_range(lo..hi))
    }

    /// Integers spread evenly over `lo..hi`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn integers(&mut self, dtype: DType, shape: &[usize], lo: i64, hi: i64) -> Result<DynTensor, TensorError> {
        self.tensor(dtype, shape, |rng| rng.random_range(lo..hi) as f64)
    }
}

/// One number of the standard normal distribution.
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    rng.sample(StandardNormal)
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
