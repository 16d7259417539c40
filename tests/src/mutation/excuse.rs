//! Why mutants survive.

use std::collections::BTreeMap;

/// A mutant that nobody sees a difference of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survivor {
    pub kernel: &'static str,
    /// What was done to which instruction.
    pub what: String,
    /// Where: line of the text, author's place, problems.
    pub place: String,
}

/// One line of the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Excuse<'a> {
    /// `*` for every kernel.
    kernel: &'a str,
    /// How often it may serve in the whole library.
    limit: Option<usize>,
    /// The mutation's description begins so.
    what: &'a str,
    reason: &'a str,
}

/// A list of excuses: lines of kernel, limit, mutation and reason with `|` between them, `#` before a comment. The first that
/// fits a survivor is its excuse; `-` is no limit.
pub struct Excuses<'a>(Vec<Excuse<'a>>);

impl<'a> Excuses<'a> {
    /// Reads a list.
    ///
    /// # Panics
    /// If a line has not four fields.
    pub fn read(text: &'a str) -> Excuses<'a> {
        let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
        Excuses(
            lines
                .map(|line| {
                    let fields: Vec<&str> = line.split('|').map(str::trim).collect();
                    let [kernel, limit, what, reason] = fields[..] else { panic!("not four fields: {line}") };
                    assert!(!reason.is_empty(), "no reason: {line}");
                    let limit = (limit != "-").then(|| limit.parse().unwrap_or_else(|_| panic!("no limit: {line}")));
                    Excuse { kernel, limit, what, reason }
                })
                .collect(),
        )
    }

    /// What is left unexplained: survivors without an excuse, and excuses that serve more often than they may.
    pub fn unexplained(&self, survivors: &[Survivor]) -> Vec<String> {
        let mut left = Vec::new();
        let mut served: BTreeMap<usize, Vec<&Survivor>> = BTreeMap::new();
        for s in survivors {
            let fits = |e: &Excuse<'_>| (e.kernel == "*" || e.kernel == s.kernel) && s.what.starts_with(e.what);
            match self.0.iter().position(fits) {
                Some(at) => served.entry(at).or_default().push(s),
                None => left.push(format!("{} | {} | {}", s.kernel, s.what, s.place)),
            }
        }
        for (at, by) in served {
            let e = &self.0[at];
            if e.limit.is_some_and(|limit| by.len() > limit) {
                let places: Vec<&str> = by.iter().map(|s| s.place.as_str()).collect();
                left.push(format!(
                    "{} | {} survives {} times, more than the list says:\n    {}",
                    e.kernel,
                    e.what,
                    by.len(),
                    places.join("\n    ")
                ));
            }
        }
        left
    }

    /// How many survivors each reason explains.
    pub fn by_reason(&self, survivors: &[Survivor]) -> BTreeMap<&'a str, usize> {
        let mut counts = BTreeMap::new();
        for s in survivors {
            let fits = |e: &&Excuse<'_>| (e.kernel == "*" || e.kernel == s.kernel) && s.what.starts_with(e.what);
            if let Some(e) = self.0.iter().find(fits) {
                *counts.entry(e.reason).or_default() += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_excuse_serves_as_often_as_it_may() {
        let list = Excuses::read(
            "# kernel | limit | mutation | reason\na | 1 | drop bar | warps\n* | - | drop guard of ld | in bounds\n",
        );
        let s = |kernel, what: &str| Survivor { kernel, what: what.to_owned(), place: "here".to_owned() };
        assert!(list.unexplained(&[s("a", "drop bar.sync"), s("b", "drop guard of ld.global")]).is_empty());
        assert_eq!(list.unexplained(&[s("b", "drop bar.sync")]).len(), 1);
        assert_eq!(list.unexplained(&[s("a", "drop bar.sync"), s("a", "drop bar.sync")]).len(), 1);
        assert_eq!(list.by_reason(&[s("a", "drop bar.sync")]).get("warps"), Some(&1));
    }
}
