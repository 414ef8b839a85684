//! The operations of the programmer on the kernel.

use std::io;

use proxy_common::Ip;
use proxy_common::maps::{Backend, Frontend, FrontendKey, Slot, SourceRangeKey};

use crate::bpf::object::{MapSizes, SOURCE_RANGES};
use crate::bpf::{BpfError, Datapath};
use crate::plan::programmed::View;
use crate::plan::source_ranges::SHARE;

// A service fills a small part of the table at the most.
const _: () = assert!(SHARE * 16 <= SOURCE_RANGES as usize);

/// The tables that the programmer writes.
pub trait Store: View {
    /// The present value of a frontend.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// Sets frontends. On an error it returns the index of the frontend that failed; those before it are set.
    fn set_frontends(&self, frontends: &[(FrontendKey, Frontend)]) -> Result<(), (usize, io::Error)>;
    /// Removes frontends, with the same kind of error.
    fn remove_frontends(&self, keys: &[FrontendKey]) -> Result<(), (usize, io::Error)>;
    /// Sets addresses, with the same kind of error.
    fn set_addresses(&self, addresses: &[(Ip, u32)]) -> Result<(), (usize, io::Error)>;
    /// Removes addresses, with the same kind of error.
    fn remove_addresses(&self, addresses: &[Ip]) -> Result<(), (usize, io::Error)>;
    /// Sets a source range.
    fn set_range(&self, range: &SourceRangeKey) -> io::Result<()>;
    /// Removes a source range.
    fn remove_range(&self, range: &SourceRangeKey) -> io::Result<()>;
    /// Writes a backend.
    fn write_backend(&self, id: u32, backend: &Backend);
    /// Writes a slot.
    fn write_slot(&self, index: u32, slot: Slot);
    /// Calls `each` with every frontend that is set.
    fn each_frontend(&self, each: &mut dyn FnMut(FrontendKey, Frontend)) -> io::Result<()>;
    /// Calls `each` with every address that is set.
    fn each_address(&self, each: &mut dyn FnMut(Ip, u32)) -> io::Result<()>;
    /// Calls `each` with every source range that is set.
    fn each_range(&self, each: &mut dyn FnMut(SourceRangeKey)) -> io::Result<()>;
    /// The capacities of the tables; those of other tables do not matter.
    fn sizes(&self) -> MapSizes;
    /// The capacity of the table of source ranges.
    fn max_ranges(&self) -> u32;
    /// Moves to larger tables with the same contents.
    fn grow(&mut self, sizes: &MapSizes) -> Result<(), BpfError>;
}

impl View for Datapath {
    fn slot(&self, index: u32) -> Slot {
        self.slots.get(index).unwrap_or_default()
    }

    fn backend(&self, id: u32) -> Backend {
        self.backends.get(id).unwrap_or_default()
    }
}

impl Store for Datapath {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).ok().flatten()
    }

    fn set_frontends(&self, frontends: &[(FrontendKey, Frontend)]) -> Result<(), (usize, io::Error)> {
        self.frontends.set_all(frontends)
    }

    fn remove_frontends(&self, keys: &[FrontendKey]) -> Result<(), (usize, io::Error)> {
        self.frontends.remove_all(keys)
    }

    fn set_addresses(&self, addresses: &[(Ip, u32)]) -> Result<(), (usize, io::Error)> {
        self.addresses.set_all(addresses)
    }

    fn remove_addresses(&self, addresses: &[Ip]) -> Result<(), (usize, io::Error)> {
        self.addresses.remove_all(addresses)
    }

    fn set_range(&self, range: &SourceRangeKey) -> io::Result<()> {
        self.source_ranges.set(range, &1)
    }

    fn remove_range(&self, range: &SourceRangeKey) -> io::Result<()> {
        self.source_ranges.remove(range)
    }

    fn write_backend(&self, id: u32, backend: &Backend) {
        self.backends.set(id, backend);
    }

    fn write_slot(&self, index: u32, slot: Slot) {
        self.slots.set(index, &slot);
    }

    fn each_frontend(&self, each: &mut dyn FnMut(FrontendKey, Frontend)) -> io::Result<()> {
        self.frontends.for_each(each)
    }

    fn each_address(&self, each: &mut dyn FnMut(Ip, u32)) -> io::Result<()> {
        self.addresses.for_each(each)
    }

    fn each_range(&self, each: &mut dyn FnMut(SourceRangeKey)) -> io::Result<()> {
        self.source_ranges.for_each(|range, _| each(range))
    }

    fn sizes(&self) -> MapSizes {
        Datapath::sizes(self)
    }

    fn max_ranges(&self) -> u32 {
        SOURCE_RANGES
    }

    fn grow(&mut self, sizes: &MapSizes) -> Result<(), BpfError> {
        Datapath::grow(self, sizes)
    }
}
