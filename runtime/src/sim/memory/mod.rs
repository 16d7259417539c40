//! Simulated global memory: separate allocations with guard gaps, and a shadow that knows which bytes were ever written.
//!
//! Words are atomics so that blocks can run in parallel without `unsafe`; a racing kernel gives a racing result, never
//! undefined behaviour of the simulator.

pub mod addr;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::sim::error::SimError;

/// One allocation.
#[derive(Debug)]
pub struct Allocation {
    pub name: String,
    pub base: u64,
    /// Size in bytes.
    pub len: u64,
    words: Vec<AtomicU32>,
    /// One bit per byte of each word: written by host or kernel.
    written: Vec<AtomicU8>,
    live: bool,
}

/// Device memory, shared by all launches of a simulated device.
#[derive(Debug, Default)]
pub struct Memory {
    allocations: Vec<Allocation>,
}

impl Allocation {
    /// An allocation at a fixed base, all bytes unwritten.
    pub fn new(name: &str, base: u64, len: u64) -> Allocation {
        let words = len.div_ceil(4) as usize;
        let mut a = Allocation { name: name.into(), base, len, words: Vec::new(), written: Vec::new(), live: true };
        a.words.resize_with(words, || AtomicU32::new(0xAAAA_AAAA));
        a.written.resize_with(words, || AtomicU8::new(0));
        a
    }

    /// Little-endian value of `bytes` (1, 2, 4, 8 or 16) at `at`, which must be in bounds and aligned to `bytes`.
    #[inline]
    pub fn load(&self, at: u64, bytes: u32) -> u128 {
        let w = (at / 4) as usize;
        let word = |k: usize| u128::from(self.words[w + k].load(Relaxed));
        match bytes {
            1 => word(0) >> ((at % 4) * 8) & 0xFF,
            2 => word(0) >> ((at % 4) * 8) & 0xFFFF,
            4 => word(0),
            8 => word(0) | word(1) << 32,
            _ => word(0) | word(1) << 32 | word(2) << 64 | word(3) << 96,
        }
    }

    /// Stores as [`Self::load`] loads, and marks the bytes written.
    #[inline]
    pub fn store(&self, at: u64, bytes: u32, value: u128) {
        let w = (at / 4) as usize;
        if bytes < 4 {
            let shift = (at % 4) as u32 * 8;
            let mask = ((1u32 << (bytes * 8)) - 1) << shift;
            let new = (value as u32) << shift & mask;
            let mut old = self.words[w].load(Relaxed);
            while let Err(seen) = self.words[w].compare_exchange_weak(old, old & !mask | new, Relaxed, Relaxed) {
                old = seen;
            }
            self.mark(w, (((1u32 << bytes) - 1) << (at % 4)) as u8);
        } else {
            for k in 0..bytes as usize / 4 {
                self.words[w + k].store((value >> (32 * k)) as u32, Relaxed);
                self.mark(w + k, 0xF);
            }
        }
    }

    #[inline]
    fn mark(&self, word: usize, bits: u8) {
        let w = &self.written[word];
        if bits == 0xF {
            w.store(0xF, Relaxed);
        } else if w.load(Relaxed) & bits != bits {
            w.fetch_or(bits, Relaxed);
        }
    }

    /// Marks bytes as never written.
    fn unmark(&self, at: u64, len: u64) {
        for b in at..at + len {
            self.written[(b / 4) as usize].fetch_and(!(1 << (b % 4)), Relaxed);
        }
    }

    /// True when all `bytes` at `at` have been written.
    #[inline]
    pub fn is_written(&self, at: u64, bytes: u32) -> bool {
        let w = (at / 4) as usize;
        if bytes < 4 {
            let bits = (((1u32 << bytes) - 1) << (at % 4)) as u8;
            self.written[w].load(Relaxed) & bits == bits
        } else {
            self.written[w..w + bytes as usize / 4].iter().all(|b| b.load(Relaxed) == 0xF)
        }
    }

    /// Atomically replaces the value; returns the old one. `bytes` is 2, 4 or 8.
    pub fn update(&self, at: u64, bytes: u32, f: impl Fn(u64) -> u64) -> u64 {
        let old = match bytes {
            4 => {
                let w = &self.words[(at / 4) as usize];
                let mut old = w.load(Relaxed);
                while let Err(seen) = w.compare_exchange_weak(old, f(u64::from(old)) as u32, Relaxed, Relaxed) {
                    old = seen;
                }
                u64::from(old)
            }
            // Two words are not one atomic unit here; kernels with global atomics run their blocks one after another.
            _ => {
                let old = self.load(at, bytes) as u64;
                self.store(at, bytes, u128::from(f(old)));
                old
            }
        };
        if bytes == 4 {
            self.mark((at / 4) as usize, 0xF);
        }
        old
    }

    fn write(&self, at: u64, data: &[u8]) {
        let mut k = 0;
        while k < data.len() {
            let p = at + k as u64;
            if p.is_multiple_of(4) && data.len() - k >= 4 {
                self.store(p, 4, u128::from(u32::from_le_bytes([data[k], data[k + 1], data[k + 2], data[k + 3]])));
                k += 4;
            } else {
                self.store(p, 1, u128::from(data[k]));
                k += 1;
            }
        }
    }

    fn read(&self, at: u64, out: &mut [u8]) {
        let mut k = 0;
        while k < out.len() {
            let p = at + k as u64;
            if p.is_multiple_of(4) && out.len() - k >= 4 {
                out[k..k + 4].copy_from_slice(&(self.load(p, 4) as u32).to_le_bytes());
                k += 4;
            } else {
                out[k] = self.load(p, 1) as u8;
                k += 1;
            }
        }
    }
}

impl Memory {
    /// Empty memory.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Where the allocation number `index` of any memory lies.
    pub(crate) fn base(index: usize) -> u64 {
        (addr::FIRST_REGION + index as u64) << addr::REGION_SHIFT
    }

    /// Allocates `bytes`, aligned to 256; the contents count as never written. `name` appears in fault reports.
    pub fn alloc(&mut self, name: &str, bytes: usize) -> u64 {
        let base = Memory::base(self.allocations.len());
        self.allocations.push(Allocation::new(name, base, bytes as u64));
        base
    }

    /// Allocates and fills from `data`.
    pub fn alloc_init(&mut self, name: &str, data: &[u8]) -> u64 {
        let base = self.alloc(name, data.len());
        if let Some(a) = self.allocations.last() {
            a.write(0, data);
        }
        base
    }

    /// Frees an allocation: later accesses are out of bounds. Its address is not used again.
    ///
    /// # Errors
    /// `base` is not the start of a live allocation.
    pub fn free(&mut self, base: u64) -> Result<(), SimError> {
        let at = addr::region(base).wrapping_sub(addr::FIRST_REGION) as usize;
        match self.allocations.get_mut(at) {
            Some(a) if a.base == base && a.live => {
                a.live = false;
                a.len = 0;
                a.words = Vec::new();
                a.written = Vec::new();
                Ok(())
            }
            _ => Err(SimError::HostAccess { addr: base, len: 0, message: "not the start of a live allocation".into() }),
        }
    }

    /// The live allocation whose region contains `addr`; the address may still be past its end.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&Allocation> {
        let at = addr::region(address).wrapping_sub(addr::FIRST_REGION);
        self.allocations.get(usize::try_from(at).ok()?).filter(|a| a.live)
    }

    pub(crate) fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    fn host(&self, address: u64, len: usize) -> Result<(&Allocation, u64), SimError> {
        let fail = |message: String| SimError::HostAccess { addr: address, len, message };
        let a = self.find(address).ok_or_else(|| fail("no allocation there".into()))?;
        let at = address - a.base;
        if at.checked_add(len as u64).is_none_or(|end| end > a.len) {
            return Err(fail(format!("`{}` has {} bytes from {:#x}", a.name, a.len, a.base)));
        }
        Ok((a, at))
    }

    /// Writes host bytes.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), SimError> {
        let (a, at) = self.host(address, data.len())?;
        a.write(at, data);
        Ok(())
    }

    /// Reads bytes back.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn read(&self, address: u64, len: usize) -> Result<Vec<u8>, SimError> {
        let (a, at) = self.host(address, len)?;
        let mut out = vec![0; len];
        a.read(at, &mut out);
        Ok(out)
    }

    /// Whether every byte of the range has been written by host or kernel.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn is_initialised(&self, address: u64, len: usize) -> Result<bool, SimError> {
        let (a, at) = self.host(address, len)?;
        Ok((at..at + len as u64).all(|b| a.is_written(b, 1)))
    }

    /// Declares the range's contents meaningless, as if freshly allocated.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn mark_uninitialised(&mut self, address: u64, len: usize) -> Result<(), SimError> {
        let (a, at) = self.host(address, len)?;
        a.unmark(at, len as u64);
        Ok(())
    }
}

/// Serial numbers for launches (`%gridid`).
pub(crate) static NEXT_GRID: AtomicU64 = AtomicU64::new(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_at_odd_places() {
        let mut m = Memory::new();
        let p = m.alloc("x", 13);
        m.write(p + 1, &[1, 2, 3, 4, 5, 6, 7]).expect("in bounds");
        assert_eq!(m.read(p + 1, 7).expect("in bounds"), [1, 2, 3, 4, 5, 6, 7]);
        assert!(m.is_initialised(p + 1, 7).expect("in bounds"));
        assert!(!m.is_initialised(p, 2).expect("in bounds"));
        assert!(m.read(p + 10, 4).is_err());
    }

    #[test]
    fn freed_memory_is_gone() {
        let mut m = Memory::new();
        let p = m.alloc_init("x", &[0; 8]);
        m.free(p).expect("live");
        assert!(m.read(p, 1).is_err());
        assert!(m.free(p).is_err());
    }
}
