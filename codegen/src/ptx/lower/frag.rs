//! Fragment registers: variables that hold a thread's share of a tile, with a cache of their contents.
//!
//! Within a straight piece of code values go from op to op without touching the variables; narrow elements are packed
//! into words only when someone needs the word. At control flow everything dirty is written back.

use super::dist::Dist;
use super::words;
use crate::ptx::simt::{Builder, Val, Var};
use smallvec::SmallVec;
use std::rc::Rc;
use zellige_ir::DType;

/// A thread's share of a fragment.
#[derive(Clone, Debug)]
pub struct Fragment {
    pub dtype: DType,
    pub dist: Rc<Dist>,
    words: Vec<Word>,
}

#[derive(Clone, Debug)]
struct Word {
    var: Var,
    /// Contents of the variable or newer.
    value: Option<Val>,
    /// Elements known one by one; newer than `value` where set.
    elems: SmallVec<[Option<Val>; 4]>,
    /// True if the variable is out of date.
    dirty: bool,
}

impl Fragment {
    pub fn new(b: &mut Builder, dtype: DType, dist: Rc<Dist>) -> Fragment {
        let per_word = words::per_word(dtype);
        let count = dist.regs.len().div_ceil(per_word);
        let class = words::word_class(dtype);
        let words = (0..count)
            .map(|_| Word {
                var: b.new_var(class),
                value: None,
                elems: SmallVec::from_elem(None, per_word),
                dirty: false,
            })
            .collect();
        Fragment { dtype, dist, words }
    }

    /// The variables, in the order of the registers; up to date after [`Fragment::flush`].
    pub fn vars(&self) -> impl Iterator<Item = Var> {
        self.words.iter().map(|w| w.var)
    }

    fn split(&self, reg: usize) -> (usize, usize) {
        let per_word = words::per_word(self.dtype);
        (reg / per_word, reg % per_word)
    }

    /// The element in register `reg`.
    pub fn get(&mut self, b: &mut Builder, reg: usize) -> Val {
        let (w, i) = self.split(reg);
        if let Some(v) = self.words[w].elems[i] {
            return v;
        }
        let word = self.base_word(b, w);
        let v = words::extract(b, self.dtype, word, i);
        self.words[w].elems[i] = Some(v);
        v
    }

    /// Replaces the element in register `reg`.
    pub fn set(&mut self, reg: usize, v: Val) {
        let (w, i) = self.split(reg);
        self.words[w].elems[i] = Some(v);
        self.words[w].dirty = true;
    }

    /// The word as far as it was known as a whole, without newer single elements.
    fn base_word(&mut self, b: &mut Builder, w: usize) -> Val {
        match self.words[w].value {
            Some(v) => v,
            None => {
                let v = b.get(self.words[w].var);
                self.words[w].value = Some(v);
                v
            }
        }
    }

    /// The whole word `w` as it now is.
    pub fn word(&mut self, b: &mut Builder, w: usize) -> Val {
        if !self.words[w].dirty {
            return self.base_word(b, w);
        }
        let known: SmallVec<[Option<Val>; 4]> = self.words[w].elems.clone();
        let value = if known.iter().all(Option::is_some) {
            let elems: SmallVec<[Val; 4]> = known.into_iter().flatten().collect();
            words::pack(b, self.dtype, &elems)
        } else {
            let mut value = self.base_word(b, w);
            for (i, elem) in known.into_iter().enumerate() {
                if let Some(e) = elem {
                    value = words::insert(b, self.dtype, value, i, e);
                }
            }
            value
        };
        self.words[w].value = Some(value);
        value
    }

    /// Forgets the contents: they are not needed again.
    pub fn discard(&mut self) {
        for word in &mut self.words {
            word.value = None;
            word.dirty = false;
            word.elems.iter_mut().for_each(|e| *e = None);
        }
    }

    /// Writes everything back and forgets the cached contents: what follows runs under other conditions.
    pub fn flush(&mut self, b: &mut Builder) {
        for w in 0..self.words.len() {
            if self.words[w].dirty {
                let v = self.word(b, w);
                b.set(self.words[w].var, v);
            }
            let word = &mut self.words[w];
            word.value = None;
            word.dirty = false;
            word.elems.iter_mut().for_each(|e| *e = None);
        }
    }
}
