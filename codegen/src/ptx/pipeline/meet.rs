//! Whether what threads touch in one phase is touched by other threads in a later one.
//!
//! Addresses are compared thread by thread. Atoms that hold the same number for both accesses cancel; of any other only the
//! multiples count, so that addresses are known up to the greatest common divisor of their factors. Where that tells
//! nothing, accesses through the very same registers are known to touch the same: no two threads touch one place in a phase
//! in which one of them writes it.

use super::sites::{Kind, Touch};
use super::threads::Threads;
use crate::ptx::simt::Val;
use zellige_ir::EntityId;
use zellige_ir::layout::WARP;

/// Who has to wait for whom between two accesses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// No thread for another.
    Thread,
    /// The threads of a warp for one another.
    Warp,
    /// All of the block.
    Block,
}

/// Places that are looked at one by one; of more, the worst is assumed.
const MAX_PLACES: i64 = 1 << 17;

/// Those who touched a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Nobody,
    Thread(u16),
    Warp(u16),
    Many,
}

impl Owner {
    fn of(thread: usize, wide: bool) -> Owner {
        if wide { Owner::Warp((thread / WARP) as u16) } else { Owner::Thread(thread as u16) }
    }

    fn warp(self) -> Option<u16> {
        match self {
            Owner::Thread(t) => Some(t / WARP as u16),
            Owner::Warp(w) => Some(w),
            Owner::Nobody | Owner::Many => None,
        }
    }

    fn join(self, other: Owner) -> Owner {
        match (self, other) {
            (Owner::Nobody, o) | (o, Owner::Nobody) => o,
            (a, b) if a == b => a,
            (a, b) => match (a.warp(), b.warp()) {
                (Some(x), Some(y)) if x == y => Owner::Warp(x),
                _ => Owner::Many,
            },
        }
    }

    fn before(self, later: Owner) -> Level {
        match (self, later) {
            (Owner::Nobody, _) | (_, Owner::Nobody) => Level::Thread,
            (Owner::Thread(a), Owner::Thread(b)) if a == b => Level::Thread,
            (a, b) => match (a.warp(), b.warp()) {
                (Some(x), Some(y)) if x == y => Level::Warp,
                _ => Level::Block,
            },
        }
    }
}

/// What two accesses have in common.
pub struct Turn {
    /// Atoms defined under fewer loops than this hold for both the number of the same turn.
    pub depth: u32,
}

/// Who has to wait between the accesses `before` and `after` of one object, or of two that share bytes.
pub fn level(threads: &mut Threads<'_>, before: (Kind, &[Touch]), after: (Kind, &[Touch]), turn: &Turn) -> Level {
    let mut exact = true;
    let found = by_place(threads, before.1, after.1, turn, &mut exact);
    if found == Level::Thread || exact {
        return found;
    }
    let depths = &threads.depths;
    let same = |v: &Val| depths[v.index()] < turn.depth;
    let own = |covered: &[Touch], (kind, by): (Kind, &[Touch])| {
        kind == Kind::Write && covered.iter().all(|x| by.iter().any(|y| within(x, y, &same)))
    };
    if own(after.1, before) || own(before.1, after) { Level::Thread } else { found }
}

/// True if a thread that makes the access `x` makes the access `y` to the same place or more.
fn within(x: &Touch, y: &Touch, same: &dyn Fn(&Val) -> bool) -> bool {
    let known = |t: &Touch| t.form.terms.iter().all(|(v, _)| same(v)) && t.conds.iter().all(|(v, _)| same(v));
    !x.wide
        && !y.wide
        && known(x)
        && known(y)
        && y.conds.iter().all(|c| x.conds.contains(c))
        && x.form.terms == y.form.terms
        && x.form.offset_from(&y.form).is_some_and(|d| d >= 0 && d + x.bytes <= y.bytes)
}

fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a as i64
}

fn by_place(threads: &mut Threads<'_>, before: &[Touch], after: &[Touch], turn: &Turn, exact: &mut bool) -> Level {
    let all = || before.iter().chain(after);
    // Atoms of the same number in all accesses cancel if their factors are equal; what is left moves addresses by
    // multiples of `unknown`.
    let mut unknown = 0;
    let mut common: Option<Vec<(Val, i64)>> = None;
    for touch in all() {
        let mut own = Vec::new();
        for &(v, factor) in &touch.form.terms {
            if threads.depths[v.index()] < turn.depth && threads.is_uniform_atom(v) {
                own.push((v, factor));
            } else {
                unknown = gcd(unknown, factor);
                *exact = false;
            }
        }
        match &common {
            None => common = Some(own),
            Some(first) => {
                for factor in differences(first, &own) {
                    unknown = gcd(unknown, factor);
                    *exact = false;
                }
            }
        }
    }
    // In units of which every place is a whole number: a power of two, found by the lowest bit that is ever set.
    let base = all().next().map_or(0, |t| t.form.table.at(0));
    let mut bits = unknown;
    for touch in all() {
        bits |= touch.bytes;
        (0..threads.count).for_each(|t| bits |= touch.form.table.at(t).wrapping_sub(base));
    }
    let shift = bits.trailing_zeros();
    let modulus = unknown >> shift;
    let first = |touch: &Touch, t: usize| {
        let at = touch.form.table.at(t).wrapping_sub(base) >> shift;
        if modulus == 0 { at } else { at.rem_euclid(modulus) }
    };
    let each = |touch: &Touch, f: &mut dyn FnMut(i64, Owner)| {
        for t in (0..threads.count).filter(|&t| touch.active.as_ref().is_none_or(|a| a[t])) {
            let (from, who) = (first(touch, t), Owner::of(t, touch.wide));
            for at in from..from + (touch.bytes >> shift) {
                f(if modulus != 0 && at >= modulus { at % modulus } else { at }, who);
            }
        }
    };
    let work: i64 = all().map(|t| (t.bytes >> shift) * threads.count as i64).sum();
    let (mut low, mut high) = (i64::MAX, i64::MIN);
    for touch in all() {
        for t in 0..threads.count {
            let at = first(touch, t);
            (low, high) = (low.min(at), high.max(at + (touch.bytes >> shift)));
        }
    }
    if modulus != 0 {
        (low, high) = (0, modulus);
    }
    if work > MAX_PLACES || high.wrapping_sub(low) > MAX_PLACES || high < low {
        *exact = false;
        return Level::Block;
    }
    let mut owners = vec![Owner::Nobody; (high - low) as usize];
    for touch in before {
        each(touch, &mut |at, who| {
            let owner = &mut owners[(at - low) as usize];
            *owner = owner.join(who);
        });
    }
    let mut found = Level::Thread;
    for touch in after {
        each(touch, &mut |at, who| found = found.max(owners[(at - low) as usize].before(who)));
    }
    found
}

/// Factors by which two sums of atoms differ.
fn differences(x: &[(Val, i64)], y: &[(Val, i64)]) -> Vec<i64> {
    let of = |list: &[(Val, i64)], v: Val| list.iter().find(|t| t.0 == v).map_or(0, |t| t.1);
    let both = x.iter().chain(y).map(|t| t.0);
    both.map(|v| of(x, v) - of(y, v)).filter(|&by| by != 0).collect()
}
