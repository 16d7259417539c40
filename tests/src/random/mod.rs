//! Random programs: well-typed, executable, and the same on every backend to the last bit.
//!
//! A [`Plan`] is a tree of steps whose operands are numbers, resolved against whatever tiles exist when
//! the step is built. So any part of a plan is a plan, and proptest shrinks it by dropping steps. [`Plan::build`]
//! gives a [`Program`]: a function and its arguments.
//!
//! What a program never does, so that backends may be compared bit by bit (any two NaN being equal):
//! * read what was not written, or leave a tile that is not global;
//! * let iterations of a parallel loop, or blocks, depend on each other: each block writes its own part of the outputs;
//! * compute a NaN, or an infinity: `expr` keeps floats below 2^15 between steps;
//! * depend on the order of a sum: gemms, sums and float atomics see small integers or eighths, whose sums are exact.
//!
//! Integers wrap, floats underflow, casts saturate, windows stick out of tensors: all that has one meaning.
//!
//! ```
//! use zellige_ir::interp::Interpreter;
//! use zellige_tests::random::{Config, Program};
//!
//! let Program { func, mut args } = Program::from_seed(7, &Config::default());
//! assert_eq!(zellige_ir::verify(&func), Ok(()));
//! Interpreter::new(&func).run(&mut args).expect("a random program has a result");
//! ```

mod build;
mod data;
mod expr;
mod plan;
mod steps;

pub use plan::{Expr, Plan, Step, plans};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config as RunnerConfig, RngAlgorithm, TestRng, TestRunner};
use zellige_ir::interp::Arg;
use zellige_ir::{DType, Func};

/// A function and arguments for it.
#[derive(Clone, Debug)]
pub struct Program {
    pub func: Func,
    pub args: Vec<Arg>,
}

impl Program {
    /// Steps of the interpreter within which every program ends.
    pub const FUEL: u64 = 50_000_000;

    /// The program of a seed: the same on every machine.
    pub fn from_seed(seed: u64, config: &Config) -> Program {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(RunnerConfig::default(), rng);
        let tree = plans().new_tree(&mut runner).expect("plans are not filtered");
        tree.current().build(config)
    }
}

/// What programs may contain.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Extents of tiles.
    pub extents: Vec<usize>,
    /// Element types of tiles that are computed; arithmetic ones.
    pub dtypes: Vec<DType>,
    /// Element types of gemm operands.
    pub operands: Vec<DType>,
    /// Functions that are not IEEE operations (`exp2`, `sin`, ..), whose last bit is not everywhere the same.
    pub transcendental: bool,
    /// Fragments are read only at the element that is written; conditions do not look into fragments.
    pub aligned_fragments: bool,
    /// Warp roles and layouts, which change no result.
    pub hints: bool,
    /// Top-k, sort, shuffle, gather, scatter.
    pub exotic: bool,
}

impl Default for Config {
    /// Everything that is exact, in small tiles of odd and even extents.
    fn default() -> Config {
        Config {
            extents: vec![1, 2, 3, 4, 5, 8, 16, 32],
            dtypes: vec![
                DType::F32,
                DType::I32,
                DType::BF16,
                DType::F16,
                DType::F64,
                DType::I64,
                DType::U32,
                DType::I8,
                DType::U8,
                DType::I16,
                DType::U16,
            ],
            operands: vec![DType::BF16, DType::F32, DType::F16, DType::F8E4M3, DType::F8E5M2, DType::I8, DType::F4E2M1],
            transcendental: false,
            aligned_fragments: false,
            hints: true,
            exotic: true,
        }
    }
}

impl Config {
    /// As the default, but for devices that spread tiles over warps.
    pub fn gpu() -> Config {
        Config {
            extents: vec![16, 32, 64],
            dtypes: vec![DType::F32, DType::I32, DType::BF16, DType::F16],
            operands: vec![DType::BF16, DType::F16],
            transcendental: false,
            aligned_fragments: true,
            hints: true,
            exotic: false,
        }
    }
}
