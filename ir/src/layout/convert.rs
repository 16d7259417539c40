//! Moving a tile from one fragment layout to another over the same threads. Depends on `fragment`, `query` and `DType`.
//!
//! Three ways, tried in order of cost: renaming registers, exchanging values inside each warp, going through shared
//! memory. The second is the interesting one, see [`ShufflePlan`]; `shuffle.rs` finds it.

use super::error::LayoutError;
use super::fragment::FragmentLayout;
use super::instances::{Swizzle, swizzled};
use super::memory::MemoryLayout;
use super::query::{BankUse, VectorAccess};
use super::shuffle::{ShufflePlan, plan_shuffles};
use crate::DType;

/// How to get a tile from one fragment layout into another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Conversion {
    /// Every thread already has what it needs: register `r` of the result is register `.0[r]` of the source.
    Registers(Vec<usize>),
    /// Every warp already has what it needs.
    Shuffles(ShufflePlan),
    /// Values change warps.
    Shared(Box<SharedPlan>),
}

impl Conversion {
    /// The cheapest way from `source` to `target`, which must have the same shape and number of threads.
    pub fn plan(source: &FragmentLayout, target: &FragmentLayout, dtype: DType) -> Result<Conversion, LayoutError> {
        comparable(source, target)?;
        if source == target {
            return Ok(Conversion::Registers((0..source.regs_per_thread()).collect()));
        }
        match plan_shuffles(source, target, dtype) {
            Some(plan) => Ok(match plan.as_renaming(target.regs_per_thread()) {
                Some(registers) => Conversion::Registers(registers),
                None => Conversion::Shuffles(plan),
            }),
            None => Ok(Conversion::Shared(Box::new(SharedPlan::new(source, target, dtype)?))),
        }
    }
}

/// A way through shared memory: primary places store, a barrier follows, all places load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedPlan {
    /// Layout of the scratch tile.
    pub scratch: MemoryLayout,
    /// Accesses that write it, in registers of the source.
    pub store: VectorAccess,
    /// Accesses that read it, in registers of the target.
    pub load: VectorAccess,
    /// Shared memory traffic of the first warp, stores and loads together.
    pub traffic: BankUse,
}

impl SharedPlan {
    /// The scratch layout with the least traffic among row-major, padded and swizzled ones.
    pub fn new(source: &FragmentLayout, target: &FragmentLayout, dtype: DType) -> Result<SharedPlan, LayoutError> {
        comparable(source, target)?;
        let align = 128 / dtype.bits();
        let mut best: Option<(usize, MemoryLayout, VectorAccess, VectorAccess)> = None;
        for scratch in scratch_layouts(source.shape(), dtype)? {
            let store = source.vectorize(&scratch, dtype, align)?;
            let load = target.vectorize(&scratch, dtype, align)?;
            let cost = estimate(source, &scratch, dtype, &store) + estimate(target, &scratch, dtype, &load);
            if best.as_ref().is_none_or(|b| (cost, scratch.span()) < (b.0, b.1.span())) {
                best = Some((cost, scratch, store, load));
            }
        }
        let none = || LayoutError::Rank { what: "scratch layout", expected: 1, shape: source.shape().to_vec() };
        let (_, scratch, store, load) = best.ok_or_else(none)?;
        let traffic = source.bank_use(&scratch, dtype, &store, 0) + target.bank_use(&scratch, dtype, &load, 0);
        Ok(SharedPlan { scratch, store, load, traffic })
    }
}

/// Instructions and wavefronts of the first warp, extrapolated from a few accesses: linear layouts make them alike, and
/// many candidates are compared.
fn estimate(fragment: &FragmentLayout, scratch: &MemoryLayout, dtype: DType, access: &VectorAccess) -> usize {
    const SAMPLES: usize = 8;
    let step = access.groups.len().div_ceil(SAMPLES).max(1);
    let groups: Vec<Vec<usize>> = access.groups.iter().step_by(step).cloned().collect();
    let samples = groups.len().max(1);
    let sampled = VectorAccess { elems: access.elems, groups, duplicates: Vec::new() };
    let traffic = fragment.bank_use(scratch, dtype, &sampled, 0);
    (traffic.accesses + traffic.wavefronts) * access.groups.len() / samples
}

/// Candidates, simplest first: an equal cost keeps the simplest.
fn scratch_layouts(shape: &[usize], dtype: DType) -> Result<Vec<MemoryLayout>, LayoutError> {
    let mut out = vec![MemoryLayout::row_major(shape)?];
    if shape.len() < 2 {
        return Ok(out);
    }
    let mut pads: Vec<usize> = [4, 8, 16].iter().map(|bytes| bytes * 8 / dtype.bits()).filter(|&p| p > 0).collect();
    pads.dedup();
    for &pad in &pads {
        out.push(MemoryLayout::padded(shape, pad)?);
    }
    if let &[rows, cols] = shape {
        for swizzle in [Swizzle::B128, Swizzle::B64, Swizzle::B32] {
            out.extend(swizzled([rows, cols], dtype.bits(), swizzle));
        }
        // The transposed kinds suit fragments whose runs go down a column.
        for pad in [0].iter().chain(&pads) {
            out.push(MemoryLayout::strided(shape, &[1, rows + pad])?);
        }
    }
    Ok(out)
}

fn comparable(source: &FragmentLayout, target: &FragmentLayout) -> Result<(), LayoutError> {
    if source.shape() == target.shape() && source.threads() == target.threads() {
        return Ok(());
    }
    let side = |f: &FragmentLayout| format!("{:?} over {} threads", f.shape(), f.threads());
    Err(LayoutError::SpaceMismatch { left: side(source), right: side(target) })
}
