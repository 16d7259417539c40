//! The passes every function goes through before a backend sees it, in order.

use super::{PassStats, forward, licm, roll, simplify};
use crate::func::Func;

/// A pass with its name.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// As in filetests and dumps.
    pub name: &'static str,
    /// What it is for, in a sentence.
    pub summary: &'static str,
    pub run: fn(&mut Func) -> PassStats,
}

const SIMPLIFY: Pass = Pass {
    name: "simplify",
    summary: "folds constants, normalises index arithmetic, merges equal values, drops dead ops",
    run: simplify::run,
};

const LICM: Pass =
    Pass { name: "licm", summary: "moves what does not change in a loop to the front of the loop", run: licm::run };

/// For backends whose time grows with the code; before the others, which then have less to do.
pub const ROLL: Pass =
    Pass { name: "roll", summary: "makes a loop of ops that were recorded repetition by repetition", run: roll::run };

/// For backends whose tiles are memory like tensors; after the others, which make indices plain.
pub const FORWARD: Pass = Pass {
    name: "forward",
    summary: "lets element-wise loops read and write tensors instead of tiles that are only copied",
    run: forward::run,
};

/// All passes, each once.
pub const ALL: &[Pass] = &[SIMPLIFY, LICM, ROLL, FORWARD];

/// The passes of a compilation, in order.
pub const PIPELINE: &[Pass] = &[
    // Recorded kernels repeat index arithmetic; without it the other passes see more.
    SIMPLIFY, // Inner loops first, so that an op may leave several loops.
    LICM,     // Ops that left different loops may now be equal.
    SIMPLIFY,
];

/// The pass called `name`.
pub fn find(name: &str) -> Option<Pass> {
    ALL.iter().find(|p| p.name == name).copied()
}

/// Runs [`PIPELINE`].
pub fn run(func: &mut Func) {
    run_with(func, PIPELINE, &mut |_, _, _| {});
}

/// Runs `passes` in order and shows the function to `observe` after each.
///
/// # Panics
/// In debug builds, if a pass breaks a function that was valid before.
pub fn run_with(func: &mut Func, passes: &[Pass], observe: &mut dyn FnMut(&Pass, &Func, &PassStats)) {
    for pass in passes {
        let before = cfg!(debug_assertions).then(|| (crate::verify::verify(func).is_ok(), func.clone()));
        let stats = (pass.run)(func);
        if let Some((true, before)) = before
            && let Err(errors) = crate::verify::verify(func)
        {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            panic!(
                "pass {} breaks a valid function: {}\nbefore:\n{}\nafter:\n{}",
                pass.name,
                errors.join("; "),
                before.canonical_text(),
                func.canonical_text()
            );
        }
        observe(pass, func, &stats);
    }
}
