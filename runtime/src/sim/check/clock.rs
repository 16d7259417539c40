//! Vector clocks at warp granularity that still know lanes apart.
//!
//! A component of a clock is a warp, or an asynchronous agent such as the copies that complete on one mbarrier. A warp's
//! epoch grows whenever it releases. Because a single lane may arrive at an mbarrier for data that only it wrote, an entry
//! holds two bounds: the epochs ordered for all lanes of the component, and those ordered for the lanes of a mask. Where two
//! facts cannot be kept apart the union is taken: a race may be missed, but none is invented.

/// What is known about one component: accesses with epoch up to `all` are ordered before, for the lanes in `mask` also those
/// up to `some`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    pub all: u32,
    pub some: u32,
    pub mask: u32,
}

impl Entry {
    fn join(&mut self, o: Entry) {
        self.all = self.all.max(o.all);
        let mine = if self.some > self.all { self.mask } else { 0 };
        let theirs = if o.some > self.all { o.mask } else { 0 };
        self.some = match (mine != 0, theirs != 0) {
            (true, true) => self.some.max(o.some),
            (true, false) => self.some,
            (false, true) => o.some,
            (false, false) => 0,
        };
        self.mask = mine | theirs;
    }
}

/// A vector clock; components never heard of are at epoch 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clock(Vec<Entry>);

/// A lane number that stands for several lanes of one warp.
pub const MANY: u8 = 0xFF;

impl Clock {
    fn at(&mut self, component: u16) -> &mut Entry {
        let at = component as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, Entry::default());
        }
        &mut self.0[at]
    }

    /// Learns that all lanes of `component` are ordered up to `epoch`.
    pub fn raise(&mut self, component: u16, epoch: u32) {
        self.at(component).join(Entry { all: epoch, ..Entry::default() });
    }

    /// Learns that the lanes of `mask` are ordered up to `epoch`.
    pub fn raise_lanes(&mut self, component: u16, mask: u32, epoch: u32) {
        self.at(component).join(Entry { all: 0, some: epoch, mask });
    }

    /// Learns everything `o` knows.
    pub fn join(&mut self, o: &Clock) {
        if self.0.len() < o.0.len() {
            self.0.resize(o.0.len(), Entry::default());
        }
        for (a, b) in self.0.iter_mut().zip(&o.0) {
            a.join(*b);
        }
    }

    /// Whether an access by `lane` of `component` at `epoch` is ordered before.
    #[inline]
    pub fn covers(&self, component: u16, lane: u8, epoch: u32) -> bool {
        match self.0.get(component as usize) {
            Some(e) => {
                epoch <= e.all
                    || (epoch <= e.some
                        && if lane == MANY { e.mask.count_ones() > 1 } else { e.mask >> (lane & 31) & 1 != 0 })
            }
            None => false,
        }
    }
}

/// Order for the generic proxy, and the part of it that `fence.proxy.async` has made good for the async proxy too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Knowledge {
    pub order: Clock,
    pub proxy: Clock,
}

impl Knowledge {
    /// Learns everything `o` knows.
    pub fn join(&mut self, o: &Knowledge) {
        self.order.join(&o.order);
        self.proxy.join(&o.proxy);
    }
}

/// A warp's view.
#[derive(Debug, Clone, Default)]
pub struct Agent {
    /// Its component.
    pub id: u16,
    /// Epoch of the accesses it makes now; starts at 1.
    pub epoch: u32,
    /// Accesses with a smaller epoch are ordered between the warp's own lanes.
    pub synced: u32,
    pub known: Knowledge,
    /// What only some lanes have acquired.
    pub partial: Option<(u32, Knowledge)>,
}

impl Agent {
    /// A warp that knows nothing yet.
    pub fn new(id: u16) -> Agent {
        Agent { id, epoch: 1, synced: 1, known: Knowledge::default(), partial: None }
    }

    /// The lanes of `mask` publish what they did and know into `to`. `full` says that they are the whole warp.
    pub fn release(&mut self, mask: u32, full: bool, to: &mut Knowledge) {
        to.join(&self.known);
        if let Some((lanes, k)) = &self.partial
            && lanes & mask != 0
        {
            to.join(k);
        }
        if full {
            to.order.raise(self.id, self.epoch);
        } else {
            to.order.raise(self.id, self.synced - 1);
            to.order.raise_lanes(self.id, mask, self.epoch);
        }
        self.epoch += 1;
    }

    /// The lanes of `mask` learn what `from` knows.
    pub fn acquire(&mut self, mask: u32, full: bool, from: &Knowledge) {
        if full {
            self.known.join(from);
            return;
        }
        match &mut self.partial {
            Some((lanes, k)) => {
                *lanes |= mask;
                k.join(from);
            }
            None => self.partial = Some((mask, from.clone())),
        }
    }

    /// All lanes meet: earlier accesses of each are ordered before later ones of the others.
    pub fn warp_sync(&mut self) {
        if let Some((_, k)) = self.partial.take() {
            self.known.join(&k);
        }
        self.epoch += 1;
        self.synced = self.epoch;
    }

    /// `fence.proxy.async` by the lanes of `mask`.
    pub fn proxy_fence(&mut self, mask: u32, full: bool) {
        let order = self.known.order.clone();
        self.known.proxy.join(&order);
        if let Some((lanes, k)) = &mut self.partial
            && *lanes & mask != 0
        {
            let order = k.order.clone();
            k.proxy.join(&order);
        }
        if full {
            self.known.proxy.raise(self.id, self.epoch);
        } else {
            self.known.proxy.raise(self.id, self.synced - 1);
            self.known.proxy.raise_lanes(self.id, mask, self.epoch);
        }
        self.epoch += 1;
    }

    /// Whether an earlier access is ordered before what `lane` does now.
    #[inline]
    pub fn ordered(&self, lane: u8, component: u16, by: u8, epoch: u32) -> bool {
        if component == self.id && (by == lane || epoch < self.synced) {
            return true;
        }
        self.known.order.covers(component, by, epoch)
            || matches!(&self.partial, Some((m, k)) if m >> (lane & 31) & 1 != 0 && k.order.covers(component, by, epoch))
    }

    /// Whether an earlier generic write is ordered before an async-proxy access that `lane` starts now.
    pub fn proxy_ordered(&self, lane: u8, component: u16, by: u8, epoch: u32) -> bool {
        self.known.proxy.covers(component, by, epoch)
            || matches!(&self.partial, Some((m, k)) if m >> (lane & 31) & 1 != 0 && k.proxy.covers(component, by, epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lane_releases_only_itself() {
        let (mut a, mut b) = (Agent::new(0), Agent::new(1));
        let mut bar = Knowledge::default();
        a.release(1, false, &mut bar);
        b.acquire(u32::MAX, true, &bar);
        assert!(b.ordered(5, 0, 0, 1), "lane 0 arrived");
        assert!(!b.ordered(5, 0, 1, 1), "lane 1 did not");
    }

    #[test]
    fn warp_sync_before_a_single_arrival_covers_all_lanes() {
        let (mut a, mut b) = (Agent::new(0), Agent::new(1));
        let mut bar = Knowledge::default();
        a.warp_sync();
        a.release(1, false, &mut bar);
        b.acquire(u32::MAX, true, &bar);
        assert!(b.ordered(0, 0, 31, 1));
    }

    #[test]
    fn what_one_lane_acquired_needs_a_warp_sync_to_spread() {
        let (mut a, mut b) = (Agent::new(0), Agent::new(1));
        let mut bar = Knowledge::default();
        a.release(u32::MAX, true, &mut bar);
        b.acquire(1, false, &bar);
        assert!(b.ordered(0, 0, 3, 1));
        assert!(!b.ordered(1, 0, 3, 1));
        b.warp_sync();
        assert!(b.ordered(1, 0, 3, 1));
    }

    #[test]
    fn proxy_order_needs_the_fence() {
        let (mut a, mut b) = (Agent::new(0), Agent::new(1));
        let mut bar = Knowledge::default();
        a.release(u32::MAX, true, &mut bar);
        b.acquire(u32::MAX, true, &bar);
        assert!(b.ordered(0, 0, 0, 1) && !b.proxy_ordered(0, 0, 0, 1));
        b.proxy_fence(1, false);
        assert!(b.proxy_ordered(0, 0, 0, 1), "a fence on the acquiring side is enough");
    }
}
