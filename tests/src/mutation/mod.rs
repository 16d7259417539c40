//! Mutants of kernels: PTX in which one barrier, fence, wait, count or predicate is missing or too weak, and what the simulated
//! GPU says about each.
//!
//! A mutant changes the text that would go to a GPU, one instruction a line, so a mutant is exactly one op of SIMT IR less.
//! It is *flagged* if the simulator reports a fault, *noticed* if only the results differ, and survives otherwise. A survivor
//! points at an op that the kernel does not need, or at something that the simulator does not see; the list of
//! [`Excuses`] says which.

mod excuse;
mod judge;
mod mutate;

pub use excuse::{Excuses, Survivor};
pub use judge::{Subject, Verdict, judge, subjects};
pub use mutate::{Aim, Mutation, mutations};
