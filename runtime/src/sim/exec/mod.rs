//! Execution of decoded kernels, one cluster at a time, warp by warp.

mod access;
mod atomics;
mod barrier;
mod bulk;
mod combine;
mod compare;
mod copy;
mod cvt;
mod exchange;
mod float;
mod int;
mod ldst;
mod matrix;
mod mbarrier;
mod mma;
mod print;
pub mod regs;
mod report;
pub mod round;
mod sched;
mod setup;
pub mod state;
mod step;
pub mod tensormap;
mod wgmma;
