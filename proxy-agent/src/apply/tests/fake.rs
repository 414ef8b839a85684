//! Tables in memory in place of the kernel's, which insist on the order of writes and can be told to fail.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use proxy_common::Ip;
use proxy_common::maps::{Backend, BackendState, Frontend, FrontendKey, Slot, SlotRange, SourceRangeKey};

use crate::apply::Store;
use crate::bpf::BpfError;
use crate::bpf::object::MapSizes;
use crate::plan::programmed::View;

/// Tables in memory; every `fail_every`-th write fails.
pub struct Fake {
    pub frontends: RefCell<BTreeMap<FrontendKey, Frontend>>,
    pub addresses: RefCell<BTreeMap<Ip, u32>>,
    pub ranges: RefCell<BTreeSet<SourceRangeKey>>,
    pub max_ranges: u32,
    slots: RefCell<Vec<Slot>>,
    backends: RefCell<Vec<Backend>>,
    pub sizes: MapSizes,
    /// How often they have grown.
    pub grown: u32,
    pub fail_every: Cell<u32>,
    calls: Cell<u32>,
    writes: Cell<u32>,
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
            fail_every: Cell::new(0),
            calls: Cell::new(0),
            writes: Cell::new(0),
        }
    }

    /// The same tables, none of whose writes fail.
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
            fail_every: Cell::new(0),
            calls: Cell::new(0),
            writes: Cell::new(0),
        }
    }

    fn write(&self) -> io::Result<()> {
        self.writes.set(self.writes.get() + 1);
        self.calls.set(self.calls.get() + 1);
        let every = self.fail_every.get();
        if every > 0 && self.calls.get().is_multiple_of(every) {
            Err(io::ErrorKind::OutOfMemory.into())
        } else {
            Ok(())
        }
    }

    /// What clients can reach: frontend → backends, by value.
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
        for value in self.frontends.borrow().values() {
            let range = SlotRange(value.slots);
            assert!(
                index < range.start() || index >= range.start() + range.count(),
                "a live slice is edited"
            );
        }
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
