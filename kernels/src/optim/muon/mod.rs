//! Muon: momentum, orthogonalisation by Newton-Schulz iterations, weight update; batches of equal matrices.
//!
//! A step of a matrix W [rows, cols] with gradient G is: [`momentum`] (M = mu M + G, and sums of squares of X = mu M + G),
//! [`normalize`] (Y = X / |X| in bf16), ten times [`gram`] (A = Y Y^T, or Y^T Y if that is smaller), [`gram`] again (B = b A + c A A^T) and
//! [`product`] (Y = a Y + B Y, or a Y + Y B), then [`update`] (W = W (1 - lr decay) - lr gamma sqrt(max(rows, cols)) Y).
//! [`step`] runs them all. The gram side is the small one, so no matrix is transposed.
//!
//! After Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).

pub mod gram;
pub mod momentum;
pub mod normalize;
pub mod product;
pub mod update;

use super::ElementwiseConfig;
use zellige::prelude::*;
use zellige::runtime::TensorError;

/// Constants of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MuonStep<'a> {
    pub learning_rate: f32,
    /// mu.
    pub momentum: f32,
    pub weight_decay: f32,
    /// gamma: the root mean square that the update aims at.
    pub update_rms: f32,
    /// (a, b, c) of each Newton-Schulz iteration.
    pub iterations: &'a [(f32, f32, f32)],
}

/// Why a step did not happen.
#[derive(Debug, thiserror::Error)]
pub enum MuonError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("{name} is {found:?}, but the weight is {weight:?}")]
    Shape { name: &'static str, found: [usize; 3], weight: [usize; 3] },
}

/// Parts of the sum of squares of a matrix.
const PARTS: usize = 64;

/// Updates weights and momenta `[batch, rows, cols]` in place.
///
/// # Errors
/// If the shapes differ, there is no memory for the iterates, or a launch fails.
pub fn step(
    stream: &Stream,
    step: &MuonStep<'_>,
    gradient: &DeviceTensor<f32, 3>,
    weight: &mut DeviceTensor<f32, 3>,
    momentum: &mut DeviceTensor<f32, 3>,
) -> Result<(), MuonError> {
    let shape = weight.shape();
    let [batch, rows, cols] = shape;
    for (name, found) in [("the gradient", gradient.shape()), ("the momentum", momentum.shape())] {
        if found != shape {
            return Err(MuonError::Shape { name, found, weight: shape });
        }
    }
    let (elementwise, gemm) = (ElementwiseConfig::default(), MuonGemmConfig::default());
    let flat = [batch, rows * cols];
    let mut momentum = momentum.reshape(flat)?;
    let gradient = gradient.reshape(flat)?;
    let mut squares = DeviceTensor::zeros([batch, PARTS])?;
    momentum::MuonMomentum::new(elementwise).launch(stream, &gradient, step.momentum, &mut momentum, &mut squares)?;

    let tall = rows > cols;
    let side = rows.min(cols);
    let mut y = DeviceTensor::<bf16, 3>::zeros(shape)?;
    normalize::MuonNormalize::new(elementwise).launch(
        stream,
        &gradient,
        &momentum,
        &squares,
        step.momentum,
        &mut y.reshape(flat)?,
    )?;
    let mut next = DeviceTensor::<bf16, 3>::zeros(shape)?;
    let none = DeviceTensor::<bf16, 3>::zeros([batch, 0, 0])?;
    let mut a_matrix = DeviceTensor::<bf16, 3>::zeros([batch, side, side])?;
    let mut b_matrix = DeviceTensor::<bf16, 3>::zeros([batch, side, side])?;
    let gram =
        |transposed, add| gram::MuonGram::new(gram::GramConfig { transposed, add, ..gram::GramConfig::from(gemm) });
    for &(a, b, c) in step.iterations {
        gram(tall, false).launch(stream, &y, &none, 1.0, 0.0, &mut a_matrix)?;
        gram(false, true).launch(stream, &a_matrix, &a_matrix, c, b, &mut b_matrix)?;
        let (left, right) = if tall { (&y, &b_matrix) } else { (&b_matrix, &y) };
        product::MuonProduct::new(gemm).launch(stream, left, right, &y, a, &mut next)?;
        std::mem::swap(&mut y, &mut next);
    }
    let keep = 1.0 - step.learning_rate * step.weight_decay;
    let scale = step.learning_rate * step.update_rms * (rows.max(cols) as f32).sqrt();
    let weight = &mut weight.reshape([batch * rows * cols])?;
    update::MuonUpdate::new(elementwise).launch(stream, &y.reshape([batch * rows * cols])?, keep, scale, weight)?;
    Ok(())
}

/// Tile sizes of the products.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct MuonGemmConfig {
    #[tune(64, 128)]
    pub bm: usize,
    #[tune(64, 128, 256)]
    pub bn: usize,
    #[tune(32, 64)]
    pub bk: usize,
    #[tune(2..=4)]
    pub stages: usize,
    #[tune(128, 256)]
    pub threads: usize,
}

impl Default for MuonGemmConfig {
    fn default() -> MuonGemmConfig {
        MuonGemmConfig { bm: 128, bn: 128, bk: 64, stages: 3, threads: 128 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::{Inputs, normal};
    use crate::reference::metrics::{Tolerance, compare};
    use crate::reference::muon as reference;

    /// The whole step against the reference, which iterates in f64: bf16 products stay within the percent that the iteration
    /// tolerates.
    #[test]
    fn a_step_orthogonalises() {
        for (rows, cols) in [(24, 40), (40, 24), (33, 33)] {
            let mut inputs = Inputs::new(18);
            let mut draw =
                |scale: f64| -> Vec<f32> { inputs.draw(2 * rows * cols, |rng| (scale * normal(rng)) as f32) };
            let (g, w, m) = (draw(0.1), draw(0.02), draw(0.5));
            let tensor = |x: &[f32]| DeviceTensor::<f32, 3>::from_slice([2, rows, cols], x).unwrap();
            let (mut weight, mut momentum) = (tensor(&w), tensor(&m));
            let iterations: Vec<(f32, f32, f32)> =
                reference::V4_STEPS.iter().map(|&(a, b, c)| (a as f32, b as f32, c as f32)).collect();
            let constants = MuonStep {
                learning_rate: 0.1,
                momentum: 0.95,
                weight_decay: 0.1,
                update_rms: 0.18,
                iterations: &iterations,
            };
            step(&Device::cpu().stream(), &constants, &tensor(&g), &mut weight, &mut momentum).unwrap();
            let (weight, momentum) = (weight.to_vec().unwrap(), momentum.to_vec().unwrap());
            for matrix in 0..2 {
                let of = |x: &[f32]| -> Vec<f32> { x[matrix * rows * cols..][..rows * cols].to_vec() };
                let f64s = |x: &[f32]| -> Vec<f64> { of(x).iter().map(|&x| x.into()).collect() };
                let f32s = |x: &[f64]| -> Vec<f32> { x.iter().map(|&x| x as f32).collect() };
                let (want_w, want_m) = reference::Muon::v4(0.1).update(&f64s(&w), &f64s(&m), &f64s(&g), rows, cols);
                let verdict = compare(&of(&momentum), &f32s(&want_m), Tolerance::AbsRel { abs: 1e-7, rel: 1e-6 });
                assert!(verdict.pass, "momentum of {rows}x{cols}: {verdict}");
                // What the iteration changed.
                let change = |new: &[f32]| -> Vec<f32> {
                    new.iter().zip(of(&w)).map(|(new, old)| new - old * (1.0 - 0.01)).collect()
                };
                let verdict = compare(&change(&of(&weight)), &change(&f32s(&want_w)), Tolerance::CalcDiff(1e-3));
                assert!(verdict.pass, "update of {rows}x{cols}: {verdict}");
            }
        }
    }
}
