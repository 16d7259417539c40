//! The mutations of a text.

use std::collections::HashMap;

/// What a mutation attacks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Aim {
    /// A barrier, fence, wait, group or count: what orders accesses.
    Order,
    /// A predicate: which threads do something, or how much of it.
    Predicate,
}

/// One change to a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mutation {
    pub aim: Aim,
    /// What is done to which instruction: `drop bar.sync`.
    pub what: String,
    /// The line concerned, from 1.
    pub line: usize,
    /// The author's `file:line:col` it comes from; empty if none does.
    pub place: String,
    /// New contents of lines, by position from 0.
    edits: Vec<(usize, String)>,
}

impl Mutation {
    /// The text with this change.
    pub fn apply(&self, ptx: &str) -> String {
        let mut lines: Vec<&str> = ptx.lines().collect();
        for (at, new) in &self.edits {
            lines[*at] = new;
        }
        let mut text = lines.join("\n");
        text.push('\n');
        text
    }
}

/// An instruction without its guard: opcode and operands.
fn split(line: &str) -> (Option<&str>, &str, &str) {
    let line = line.trim().trim_end_matches(';');
    let (guard, rest) = match line.strip_prefix('@') {
        Some(rest) => rest.split_once(' ').map_or((None, line), |(g, r)| (Some(g), r)),
        None => (None, line),
    };
    let (opcode, operands) = rest.split_once(' ').unwrap_or((rest, ""));
    (guard, opcode, operands)
}

/// The last operand, which is a number, and what stands before it.
fn last_number(operands: &str) -> Option<(&str, i64)> {
    let at = operands.rfind(' ').map_or(0, |p| p + 1);
    operands[at..].parse().ok().map(|n| (&operands[..at], n))
}

/// Where labels stand.
fn labels(lines: &[&str]) -> HashMap<String, usize> {
    let label = |l: &str| l.trim().strip_suffix(':').filter(|l| l.starts_with('$')).map(str::to_owned);
    lines.iter().enumerate().filter_map(|(i, l)| Some((label(l)?, i))).collect()
}

/// Memory instructions whose guard decides what they touch.
fn touches_memory(opcode: &str) -> bool {
    ["ld.", "st.", "cp.async.", "atom.", "red.", "mbarrier."].iter().any(|p| opcode.starts_with(p))
}

struct Text<'a> {
    lines: Vec<&'a str>,
    labels: HashMap<String, usize>,
    place: String,
    found: Vec<Mutation>,
}

/// Every mutation of a text that the compiler made, in the order of its lines.
pub fn mutations(ptx: &str) -> Vec<Mutation> {
    let lines: Vec<&str> = ptx.lines().collect();
    let labels = labels(&lines);
    let body = lines.iter().position(|l| *l == "{").map_or(0, |p| p + 1);
    let mut text = Text { lines, labels, place: String::new(), found: Vec::new() };
    for at in body..text.lines.len() {
        let line = text.lines[at].trim();
        match line.strip_prefix("// ") {
            Some(place) if place.contains(".rs:") => text.place = place.to_owned(),
            Some(_) => {}
            None => {
                text.order(at);
                text.predicate(at);
            }
        }
    }
    text.found
}

impl Text<'_> {
    fn add(&mut self, aim: Aim, what: String, at: usize, edits: Vec<(usize, String)>) {
        self.found.push(Mutation { aim, what, line: at + 1, place: self.place.clone(), edits });
    }

    fn drop_line(&mut self, at: usize, opcode: &str) {
        self.add(Aim::Order, format!("drop {opcode}"), at, vec![(at, String::new())]);
    }

    /// The same instruction with its last operand, a number, changed.
    fn change_count(&mut self, at: usize, by: i64, how: &str) {
        let (guard, opcode, operands) = split(self.lines[at]);
        if let Some((before, n)) = last_number(operands)
            && n + by > 0
        {
            let guard = guard.map_or(String::new(), |g| format!("@{g} "));
            let new = format!("{guard}{opcode} {before}{};", n + by);
            self.add(Aim::Order, format!("{how} {opcode}"), at, vec![(at, new)]);
        }
    }

    /// Mutations of what orders accesses.
    fn order(&mut self, at: usize) {
        let (guard, opcode, operands) = split(self.lines[at]);
        let dropped = ["bar.", "fence.", "wgmma.fence", "mbarrier.init", "mbarrier.arrive"];
        let groups = ["cp.async.commit_group", "cp.async.bulk.commit_group", "wgmma.commit_group"];
        let waits = ["cp.async.wait_group", "cp.async.bulk.wait_group", "wgmma.wait_group"];
        let is = |names: &[&str]| names.iter().any(|n| opcode.starts_with(n));
        if is(&dropped) || is(&groups) || is(&waits) {
            self.drop_line(at, opcode);
        }
        if is(&waits) {
            self.change_count(at, 1, "wait for one group less in");
        }
        if opcode.starts_with("mbarrier.init") {
            self.change_count(at, 1, "one arrival more in");
            self.change_count(at, -1, "one arrival less in");
        }
        if opcode.starts_with("mbarrier.arrive.expect_tx") {
            self.change_count(at, 16, "16 bytes more in");
            self.change_count(at, -16, "16 bytes less in");
            let plain = opcode.replace(".expect_tx", "");
            let guard = guard.map_or(String::new(), |g| format!("@{g} "));
            if let Some((before, _)) = last_number(operands) {
                let new = format!("{guard}{plain} {};", before.trim_end_matches(", "));
                self.add(Aim::Order, format!("expect nothing in {opcode}"), at, vec![(at, new)]);
            }
        }
        // A wait is a loop around its test.
        if opcode.starts_with("mbarrier.try_wait") {
            let both = vec![(at, String::new()), (at + 1, String::new())];
            self.add(Aim::Order, format!("drop {opcode}"), at, both);
            if let Some((before, parity)) = operands.rsplit_once(' ') {
                let flipped = "{ .reg .b32 %mutant;";
                let new = format!("{flipped} xor.b32 %mutant, {parity}, 1; {opcode} {before} %mutant; }}");
                self.add(Aim::Order, format!("other parity in {opcode}"), at, vec![(at, new)]);
            }
        }
        if opcode == "barrier.cluster.arrive.release" {
            let both = vec![(at, String::new()), (at + 1, String::new())];
            self.add(Aim::Order, "drop barrier.cluster".to_owned(), at, both);
            let new = "barrier.cluster.arrive.relaxed;".to_owned();
            self.add(Aim::Order, format!("relax {opcode}"), at, vec![(at, new)]);
        }
    }

    /// Mutations of predicates.
    fn predicate(&mut self, at: usize) {
        let (guard, opcode, operands) = split(self.lines[at]);
        if guard.is_some() && touches_memory(opcode) {
            let bare = format!("{opcode} {operands};");
            self.add(Aim::Predicate, format!("drop guard of {opcode}"), at, vec![(at, bare)]);
        }
        // The number of bytes to read, where the others become zero.
        let sized = opcode.starts_with("cp.async.c") && !opcode.starts_with("cp.async.commit");
        if sized && operands.split(", ").count() == 4 {
            let whole = operands.rsplit_once(", ").map_or(operands, |(whole, _)| whole);
            let guard = guard.map_or(String::new(), |g| format!("@{g} "));
            let new = format!("{guard}{opcode} {whole};");
            self.add(Aim::Predicate, format!("drop size of {opcode}"), at, vec![(at, new)]);
        }
        if opcode.starts_with("bra") && guard.is_some_and(|g| g.starts_with('!')) && self.skips(at, operands) {
            let inner = self.first_effect(at + 1, self.labels[operands]).map_or("arithmetic", |l| split(l).1);
            self.add(Aim::Predicate, format!("drop branch around {inner}"), at, vec![(at, String::new())]);
        }
    }

    /// True if the branch at `at` skips the block of a conditional, rather than ending or repeating a loop.
    fn skips(&self, at: usize, label: &str) -> bool {
        let Some(&target) = self.labels.get(label) else { return false };
        let before = (at + 1..target).rev().map(|i| self.lines[i].trim()).find(|l| !l.is_empty());
        let back = before.and_then(|l| {
            let (guard, opcode, to) = split(l);
            let jump = guard.is_none() && opcode.starts_with("bra");
            jump.then(|| self.labels.get(to)).flatten()
        });
        target > at && back.is_none_or(|&head| head > at)
    }

    /// The first instruction between two lines that does something to memory.
    fn first_effect(&self, from: usize, to: usize) -> Option<&str> {
        let effect = |l: &&&str| {
            let opcode = split(l).1;
            (touches_memory(opcode) && !opcode.starts_with("ld.param")) || opcode.starts_with("bar")
        };
        self.lines[from..to].iter().find(effect).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
.visible .entry k()
{
    // a.rs:3:5
    @%p1 st.global.b32 [%rd1], %r1;
    // a.rs:4:5
    bar.sync 0;
    cp.async.wait_group 1;
    @!%p2 bra $L1;
        st.shared.b32 [%r2], %r1;
$L1:
$L2:
    mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r3], %r4;
    @!%p3 bra $L2;
$L3:
        @!%p4 bra.uni $L4;
        bra.uni $L3;
$L4:
    ret;
}
";

    #[test]
    fn each_instruction_gets_its_mutations() {
        let found = mutations(TEXT);
        let what: Vec<(&str, &str)> = found.iter().map(|m| (m.what.as_str(), m.place.as_str())).collect();
        assert_eq!(
            what,
            [
                ("drop guard of st.global.b32", "a.rs:3:5"),
                ("drop bar.sync", "a.rs:4:5"),
                ("drop cp.async.wait_group", "a.rs:4:5"),
                ("wait for one group less in cp.async.wait_group", "a.rs:4:5"),
                ("drop branch around st.shared.b32", "a.rs:4:5"),
                ("drop mbarrier.try_wait.parity.shared::cta.b64", "a.rs:4:5"),
                ("other parity in mbarrier.try_wait.parity.shared::cta.b64", "a.rs:4:5"),
            ]
        );
        let weaker = found[3].apply(TEXT);
        assert!(weaker.contains("cp.async.wait_group 2;") && weaker.contains("bar.sync 0;"));
        assert!(found[0].apply(TEXT).contains("\nst.global.b32 [%rd1], %r1;\n"));
        assert!(!found[5].apply(TEXT).contains("$L2;"));
    }
}
