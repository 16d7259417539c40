//! Runs a kernel on the interpreter and as machine code, and compares every bit.

use zellige_codegen::cpu::{CpuOptions, run::run};
use zellige_ir::interp::{Arg, Interpreter, TensorArg};
use zellige_ir::{Const, DType, Func};

/// Deterministic numbers without a dependency (xorshift64*).
#[allow(dead_code, reason = "not every test file uses all of it")]
pub struct Rng(pub u64);

#[allow(dead_code, reason = "not every test file uses all of it")]
impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }

    /// A tensor of small integers or simple fractions, whose sums are exact.
    pub fn simple(&mut self, dtype: DType, shape: &[usize]) -> TensorArg {
        let n = shape.iter().product();
        let values: Vec<f64> = (0..n)
            .map(|_| match dtype {
                DType::Bool => self.below(2) as f64,
                DType::E8M0 => 2f64.powi(self.below(9) as i32 - 4),
                _ if dtype.is_int() && !dtype.is_signed_int() => self.below(20) as f64,
                _ => self.below(17) as f64 - 8.0,
            })
            .collect();
        TensorArg::from_f64(dtype, shape, &values)
    }

    /// A tensor of arbitrary bits.
    pub fn bits(&mut self, dtype: DType, shape: &[usize]) -> TensorArg {
        let mut t = TensorArg::zeros(dtype, shape);
        for b in &mut t.bytes {
            *b = self.next() as u8;
            if dtype == DType::Bool {
                *b &= 1;
            }
        }
        t
    }
}

/// Equal bits, or both NaN.
pub fn same(x: Const, y: Const) -> bool {
    x == y || (x.dtype().is_float() && x.as_f64().is_nan() && y.as_f64().is_nan())
}

/// Asserts that machine code leaves the same tensors and prints the same lines as the interpreter.
pub fn check(func: &Func, args: &[Arg]) {
    let (mut want, mut got) = (args.to_vec(), args.to_vec());
    let report = Interpreter::new(func).run(&mut want).unwrap_or_else(|e| panic!("interpreter: {e:?}"));
    let lines = run(func, &CpuOptions { check_bounds: true }, &mut got).unwrap_or_else(|e| panic!("machine code: {e}"));
    compare(&want, &got);
    assert_eq!(report.prints, lines);
    // Without bounds checks the code is other code.
    let mut got = args.to_vec();
    run(func, &CpuOptions::default(), &mut got).unwrap_or_else(|e| panic!("machine code: {e}"));
    compare(&want, &got);
}

fn compare(want: &[Arg], got: &[Arg]) {
    for (position, (w, g)) in want.iter().zip(got).enumerate() {
        let (Some(w), Some(g)) = (w.as_tensor(), g.as_tensor()) else { continue };
        for (i, (x, y)) in w.elements().into_iter().zip(g.elements()).enumerate() {
            let known = w.init.as_ref().is_none_or(|init| init[i.min(init.len() - 1)]) || w.strides.last() != Some(&1);
            assert!(!known || same(x, y), "argument {position}, element {i}: expected {x}, got {y}");
        }
    }
}
