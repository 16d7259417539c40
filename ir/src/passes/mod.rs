//! Passes over tile IR: from verified functions to verified functions with the same meaning.
//!
//! A pass is a function `run(&mut Func) -> PassStats`. It keeps no state between runs, does not depend on the order of
//! hash tables, and never changes what the [interpreter](crate::interp) computes (ops whose results are unused may
//! go, and with them errors they would have reported). [`pipeline`] lists the passes in order; `docs/add-a-pass.md`
//! walks through adding one.
//!
//! Depends on the IR, on [`analysis`](crate::analysis) and on [`eval`](crate::eval); knows no backend.

pub mod forward;
pub mod licm;
pub mod pipeline;
pub mod roll;
pub mod simplify;

use std::collections::BTreeMap;
use std::fmt;

/// How often each rule of a pass was applied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PassStats {
    counts: BTreeMap<&'static str, usize>,
}

impl PassStats {
    /// Counts one application of a rule.
    pub fn note(&mut self, rule: &'static str) {
        *self.counts.entry(rule).or_default() += 1;
    }

    /// How often `rule` was applied.
    pub fn count(&self, rule: &str) -> usize {
        self.counts.get(rule).copied().unwrap_or(0)
    }

    /// Applications of all rules.
    pub fn total(&self) -> usize {
        self.counts.values().sum()
    }

    /// Rules with their counts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.counts.iter().map(|(&rule, &n)| (rule, n))
    }
}

impl fmt::Display for PassStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (rule, n)) in self.iter().enumerate() {
            write!(f, "{}{rule}: {n}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Compiles and runs the example of the walkthrough.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/add-a-pass.md")]
mod walkthrough {}
