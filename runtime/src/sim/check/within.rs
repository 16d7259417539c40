//! Global memory as the threads of one block use it: the check of shared memory, for the pages that the block touches.

use super::shadow::{Conflict, Shadow, Who};

/// Bytes of a page. No access crosses one, because accesses are aligned to their size.
const PAGE: u64 = 4096;

/// The shadow of one block's accesses to global memory.
#[derive(Debug, Default)]
pub struct BlockGlobal {
    /// By region of the address space and page of its allocation.
    pages: Vec<Vec<Option<Shadow>>>,
    touched: Vec<(usize, usize)>,
    /// Pages of earlier blocks, empty.
    spare: Vec<Shadow>,
}

impl BlockGlobal {
    /// Forgets everything.
    pub fn reset(&mut self) {
        for (region, page) in self.touched.drain(..) {
            if let Some(mut shadow) = self.pages[region][page].take() {
                shadow.reset(PAGE as usize);
                self.spare.push(shadow);
            }
        }
    }

    fn page(&mut self, region: usize, at: u64) -> &mut Shadow {
        let page = (at / PAGE) as usize;
        if self.pages.len() <= region {
            self.pages.resize_with(region + 1, Vec::new);
        }
        if self.pages[region].len() <= page {
            self.pages[region].resize_with(page + 1, || None);
        }
        let (touched, spare) = (&mut self.touched, &mut self.spare);
        self.pages[region][page].get_or_insert_with(|| {
            touched.push((region, page));
            spare.pop().unwrap_or_else(|| {
                let mut fresh = Shadow::default();
                fresh.reset(PAGE as usize);
                fresh
            })
        })
    }

    /// Records a read of `len` bytes at byte `at` of the allocation in `region`; returns a conflict, if there is one.
    pub fn read(&mut self, region: usize, at: u64, len: u32, who: &Who<'_>) -> Option<Conflict> {
        self.page(region, at).read((at % PAGE) as u32, len, who)
    }

    /// Records a write.
    pub fn write(&mut self, region: usize, at: u64, len: u32, who: &Who<'_>) -> Option<Conflict> {
        self.page(region, at).write((at % PAGE) as u32, len, who)
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::Agent;
    use super::super::shadow::EMPTY;
    use super::*;

    #[test]
    fn pages_are_apart_and_forgotten() {
        let (a, b) = (Agent::new(0), Agent::new(1));
        fn who(agent: &Agent) -> Who<'_> {
            Who { agent, lane: 0, pc: 0, recorded_as: None, asynchronous: false, strong: false, last: EMPTY.into() }
        }
        let mut g = BlockGlobal::default();
        assert_eq!(g.write(3, 8, 4, &who(&a)), None);
        assert_eq!(g.write(3, 8 + PAGE, 4, &who(&b)), None);
        assert_eq!(g.write(4, 8, 4, &who(&b)), None);
        assert!(g.read(3, 8, 4, &who(&b)).is_some());
        g.reset();
        assert_eq!(g.read(3, 8, 4, &who(&b)), None);
    }
}
