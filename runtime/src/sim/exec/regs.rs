//! A warp's register files, structure of arrays: one slot holds a register's value for all 32 lanes.

/// Register files of one warp.
#[derive(Debug, Default, Clone)]
pub struct Regs {
    /// Predicates, one bit per lane.
    pub p: Vec<u32>,
    pub w32: Vec<[u32; 32]>,
    pub w64: Vec<[u64; 32]>,
}

/// A register width.
pub trait Word: Copy + Default {
    fn file(r: &Regs) -> &[[Self; 32]];
    fn file_mut(r: &mut Regs) -> &mut [[Self; 32]];
}

impl Word for u32 {
    fn file(r: &Regs) -> &[[u32; 32]] {
        &r.w32
    }
    fn file_mut(r: &mut Regs) -> &mut [[u32; 32]] {
        &mut r.w32
    }
}

impl Word for u64 {
    fn file(r: &Regs) -> &[[u64; 32]] {
        &r.w64
    }
    fn file_mut(r: &mut Regs) -> &mut [[u64; 32]] {
        &mut r.w64
    }
}

impl Regs {
    /// All registers zero.
    pub fn new(slots: [u32; 3]) -> Regs {
        Regs {
            p: vec![0; slots[0] as usize],
            w32: vec![[0; 32]; slots[1] as usize],
            w64: vec![[0; 32]; slots[2] as usize],
        }
    }

    #[inline(always)]
    pub fn get<W: Word>(&self, slot: u32) -> [W; 32] {
        W::file(self)[slot as usize]
    }

    /// Writes the lanes of `mask`.
    #[inline(always)]
    pub fn put<W: Word>(&mut self, slot: u32, value: &[W; 32], mask: u32) {
        let out = &mut W::file_mut(self)[slot as usize];
        if mask == u32::MAX {
            *out = *value;
        } else {
            for l in 0..32 {
                if mask >> l & 1 != 0 {
                    out[l] = value[l];
                }
            }
        }
    }

    #[inline(always)]
    pub fn put_pred(&mut self, slot: u32, bits: u32, mask: u32) {
        let p = &mut self.p[slot as usize];
        *p = (*p & !mask) | (bits & mask);
    }

    /// `d = f(a)` lane by lane. Inactive lanes are computed too and thrown away, which keeps the loop free of branches.
    #[inline(always)]
    pub fn map1<D: Word, A: Word>(&mut self, d: u32, a: u32, mask: u32, f: impl Fn(A) -> D) {
        let a: [A; 32] = self.get(a);
        let mut out = [D::default(); 32];
        for l in 0..32 {
            out[l] = f(a[l]);
        }
        self.put(d, &out, mask);
    }

    #[inline(always)]
    pub fn map2<D: Word, A: Word, B: Word>(&mut self, d: u32, ab: (u32, u32), mask: u32, f: impl Fn(A, B) -> D) {
        let a: [A; 32] = self.get(ab.0);
        let b: [B; 32] = self.get(ab.1);
        let mut out = [D::default(); 32];
        for l in 0..32 {
            out[l] = f(a[l], b[l]);
        }
        self.put(d, &out, mask);
    }

    #[inline(always)]
    pub fn map3<D: Word, A: Word, B: Word, C: Word>(
        &mut self,
        d: u32,
        abc: (u32, u32, u32),
        mask: u32,
        f: impl Fn(A, B, C) -> D,
    ) {
        let a: [A; 32] = self.get(abc.0);
        let b: [B; 32] = self.get(abc.1);
        let c: [C; 32] = self.get(abc.2);
        let mut out = [D::default(); 32];
        for l in 0..32 {
            out[l] = f(a[l], b[l], c[l]);
        }
        self.put(d, &out, mask);
    }

    /// A lane mask from a comparison.
    #[inline(always)]
    pub fn test2<A: Word>(&self, ab: (u32, u32), f: impl Fn(A, A) -> bool) -> u32 {
        let (a, b) = (&A::file(self)[ab.0 as usize], &A::file(self)[ab.1 as usize]);
        let mut bits = 0u32;
        for l in 0..32 {
            bits |= u32::from(f(a[l], b[l])) << l;
        }
        bits
    }

    /// The addresses `slot + offset` of all lanes; 32-bit addresses wrap at 32 bits.
    #[inline(always)]
    pub fn addresses(&self, slot: u32, a64: bool, offset: i64) -> [u64; 32] {
        if a64 {
            self.w64[slot as usize].map(|a| a.wrapping_add_signed(offset))
        } else {
            self.w32[slot as usize].map(|a| u64::from(a.wrapping_add(offset as u32)))
        }
    }
}

/// Iterates over the lanes of a mask.
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let l = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            l
        })
    })
}
