//! Tables in memory in place of the kernel's. They check the order of writes, and can be told to fail.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use proxy_common::Ip;
use proxy_common::maps::{Backend, BackendState, Frontend, FrontendKey, Slot, SlotRange, SourceRangeKey};

use crate::apply::Store;
use crate::bpf::BpfError;
use crate::bpf::object::MapSizes;
use crate::plan::programmed::View;

/// A generator of numbers (xorshift64*), good enough to choose edits and faults.
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        // The generator would stay at 0.
        Self(seed | 1)
    }

    /// A number below this one.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32 % bound
    }
}

/// Tables in memory.
pub struct Fake {
    pub frontends: RefCell<BTreeMap<FrontendKey, Frontend>>,
    pub addresses: RefCell<BTreeMap<Ip, u32>>,
    pub ranges: RefCell<BTreeSet<SourceRangeKey>>,
    pub max_ranges: u32,
    slots: RefCell<Vec<Slot>>,
    backends: RefCell<Vec<Backend>>,
    pub sizes: MapSizes,
    /// The number of times that they have grown.
    pub grown: u32,
    /// How often growing fails from now on.
    pub refuses_growth: u32,
    /// Chooses the writes that fail: one of so many.
    pub faults: RefCell<Option<(Dice, u32)>>,
    /// The number of writes that have failed.
    pub failed: Cell<u32>,
    writes: Cell<u32>,
    /// The slots of frontends, from and to; `None` until they are computed.
    live: RefCell<Option<BTreeMap<u32, u32>>>,
}

impl Fake {
    /// Empty tables of this size.
    pub fn new(size: u32) -> Self {
        Self {
            frontends: RefCell::default(),
            addresses: RefCell::default(),
            ranges: RefCell::default(),
            max_ranges: 1 << 20,
            slots: RefCell::new(vec![Slot::default(); size as usize]),
            backends: RefCell::new(vec![Backend::default(); size as usize]),
            sizes: sizes(size),
            grown: 0,
            refuses_growth: 0,
            faults: RefCell::default(),
            failed: Cell::new(0),
            writes: Cell::new(0),
            live: RefCell::default(),
        }
    }

    /// The same tables without faults.
    pub fn copy(&self) -> Self {
        Self {
            frontends: self.frontends.clone(),
            addresses: self.addresses.clone(),
            ranges: self.ranges.clone(),
            max_ranges: self.max_ranges,
            slots: self.slots.clone(),
            backends: self.backends.clone(),
            sizes: self.sizes,
            grown: 0,
            refuses_growth: 0,
            faults: RefCell::default(),
            failed: Cell::new(0),
            writes: Cell::new(0),
            live: RefCell::default(),
        }
    }

    fn write(&self) -> io::Result<()> {
        self.writes.set(self.writes.get() + 1);
        let mut faults = self.faults.borrow_mut();
        if faults.as_mut().is_some_and(|(dice, of)| dice.below(*of) == 0) {
            self.failed.set(self.failed.get() + 1);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    /// Whether a frontend uses a slot.
    fn is_live(&self, index: u32) -> bool {
        let ranges = || {
            let frontends = self.frontends.borrow();
            let ranges = frontends.values().map(|value| SlotRange(value.slots));
            let ranges = ranges.filter(|range| range.count() > 0);
            ranges
                .map(|range| (range.start(), range.start() + range.count()))
                .collect()
        };
        let mut live = self.live.borrow_mut();
        let before = live.get_or_insert_with(ranges).range(..=index).next_back();
        before.is_some_and(|(_, end)| index < *end)
    }

    /// Clients that frontends let through: prefix lengths and addresses. Each range belongs to one frontend.
    pub fn ranges_by_frontend(&self) -> BTreeMap<FrontendKey, Vec<(u32, Ip)>> {
        let (frontends, ranges) = (self.frontends.borrow(), self.ranges.borrow());
        for range in ranges.iter() {
            let mut services = frontends.values().map(|value| value.service);
            assert!(
                services.any(|service| service == range.service),
                "{range:?} is of no frontend"
            );
        }
        let of = |value: &Frontend| {
            let own = ranges.iter().filter(|range| range.service == value.service);
            own.map(|range| (range.prefix_len, range.address)).collect()
        };
        frontends.iter().map(|(key, value)| (*key, of(value))).collect()
    }

    /// The destinations that clients can reach: frontend → backends, by value.
    pub fn dump(&self) -> BTreeMap<FrontendKey, Vec<(Ip, u16, u8)>> {
        let backends = |value: &Frontend| {
            let range = SlotRange(value.slots);
            (range.start()..range.start() + range.count())
                .map(|index| {
                    let slot = self.slots.borrow()[index as usize];
                    let backend = self.backends.borrow()[slot.backend() as usize];
                    assert_eq!((slot.service(), backend.service), (value.service, value.service));
                    (backend.address, backend.port.number(), backend.state)
                })
                .collect()
        };
        self.frontends
            .borrow()
            .iter()
            .map(|(key, value)| (*key, backends(value)))
            .collect()
    }
}

/// The same size for every table that the programmer writes.
pub fn sizes(size: u32) -> MapSizes {
    MapSizes {
        frontends: size,
        slots: size,
        backends: size,
        addresses: size,
        flows: 1,
        affinity: 1,
        socket_peers: 1,
        pod_netns: 1,
    }
}

impl View for Fake {
    fn slot(&self, index: u32) -> Slot {
        self.slots.borrow()[index as usize]
    }

    fn backend(&self, id: u32) -> Backend {
        self.backends.borrow()[id as usize]
    }
}

impl Store for Fake {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.borrow().get(key).copied()
    }

    fn set_frontends(&self, frontends: &[(FrontendKey, Frontend)]) -> Result<(), (usize, io::Error)> {
        *self.live.borrow_mut() = None;
        for (index, (key, value)) in frontends.iter().enumerate() {
            self.write().map_err(|error| (index, error))?;
            let range = SlotRange(value.slots);
            for slot in range.start()..range.start() + range.count() {
                let backend = self.backend(self.slot(slot).backend());
                assert_ne!(
                    backend.state,
                    BackendState::Gone as u8,
                    "a frontend is set before its backends"
                );
            }
            self.frontends.borrow_mut().insert(*key, *value);
        }
        Ok(())
    }

    fn remove_frontends(&self, keys: &[FrontendKey]) -> Result<(), (usize, io::Error)> {
        *self.live.borrow_mut() = None;
        for (index, key) in keys.iter().enumerate() {
            self.write().map_err(|error| (index, error))?;
            self.frontends.borrow_mut().remove(key);
        }
        Ok(())
    }

    fn set_addresses(&self, addresses: &[(Ip, u32)]) -> Result<(), (usize, io::Error)> {
        for (index, (address, flags)) in addresses.iter().enumerate() {
            self.write().map_err(|error| (index, error))?;
            self.addresses.borrow_mut().insert(*address, *flags);
        }
        Ok(())
    }

    fn remove_addresses(&self, addresses: &[Ip]) -> Result<(), (usize, io::Error)> {
        for (index, address) in addresses.iter().enumerate() {
            self.write().map_err(|error| (index, error))?;
            self.addresses.borrow_mut().remove(address);
        }
        Ok(())
    }

    fn set_range(&self, range: &SourceRangeKey) -> io::Result<()> {
        self.write()?;
        let mut ranges = self.ranges.borrow_mut();
        if ranges.len() == self.max_ranges as usize && !ranges.contains(range) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        ranges.insert(*range);
        Ok(())
    }

    fn remove_range(&self, range: &SourceRangeKey) -> io::Result<()> {
        self.write()?;
        self.ranges.borrow_mut().remove(range);
        Ok(())
    }

    fn each_range(&self, each: &mut dyn FnMut(SourceRangeKey)) -> io::Result<()> {
        self.ranges.borrow().iter().copied().for_each(each);
        Ok(())
    }

    fn write_backend(&self, id: u32, backend: &Backend) {
        if backend.state == BackendState::Gone as u8 {
            for value in self.frontends.borrow().values() {
                let range = SlotRange(value.slots);
                for slot in range.start()..range.start() + range.count() {
                    assert_ne!(
                        self.slot(slot).backend(),
                        id,
                        "a backend is marked gone while a frontend leads to it"
                    );
                }
            }
        }
        self.writes.set(self.writes.get() + 1);
        self.backends.borrow_mut()[id as usize] = *backend;
    }

    fn write_slot(&self, index: u32, slot: Slot) {
        assert!(!self.is_live(index), "a live slice is edited");
        self.writes.set(self.writes.get() + 1);
        self.slots.borrow_mut()[index as usize] = slot;
    }

    fn each_frontend(&self, each: &mut dyn FnMut(FrontendKey, Frontend)) -> io::Result<()> {
        self.frontends
            .borrow()
            .iter()
            .for_each(|(key, value)| each(*key, *value));
        Ok(())
    }

    fn each_address(&self, each: &mut dyn FnMut(Ip, u32)) -> io::Result<()> {
        self.addresses
            .borrow()
            .iter()
            .for_each(|(address, flags)| each(*address, *flags));
        Ok(())
    }

    fn max_ranges(&self) -> u32 {
        self.max_ranges
    }

    fn sizes(&self) -> MapSizes {
        self.sizes
    }

    fn grow(&mut self, sizes: &MapSizes) -> Result<(), BpfError> {
        if self.refuses_growth > 0 {
            self.refuses_growth -= 1;
            return Err(BpfError::syscall("making a map")(
                io::ErrorKind::OutOfMemory.into(),
            ));
        }
        self.sizes = *sizes;
        self.grown += 1;
        self.slots
            .borrow_mut()
            .resize(sizes.slots as usize, Slot::default());
        self.backends
            .borrow_mut()
            .resize(sizes.backends as usize, Backend::default());
        Ok(())
    }
}
