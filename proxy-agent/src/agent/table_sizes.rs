//! The sizes of new tables, and the points at which the agent checks whether they have to grow.

use crate::apply::room;
use crate::bpf::object::MapSizes;
use crate::config::MapLimits;
use crate::source::Change;

/// The least number of entries from the first lists between two checks of the free space in the tables.
const LEAST_ROOM: usize = 2048;

/// The sizes of new tables.
pub fn initial(limits: &MapLimits) -> MapSizes {
    MapSizes {
        frontends: limits.frontends.initial,
        slots: limits.slots.initial,
        backends: limits.backends.initial,
        addresses: limits.addresses.initial,
        flows: limits.flows,
        affinity: limits.affinity,
        socket_peers: limits.socket_peers,
        pod_netns: limits.pod_namespaces,
    }
}

/// The largest sizes that the tables may grow to.
pub fn largest(limits: &MapLimits) -> MapSizes {
    MapSizes {
        frontends: limits.frontends.max,
        slots: limits.slots.max,
        backends: limits.backends.max,
        addresses: limits.addresses.max,
        ..initial(limits)
    }
}

/// The entries that have arrived in the first lists since the last check of the free space.
#[derive(Debug)]
pub struct Arrivals {
    /// The most entries that may have arrived.
    entries: usize,
    /// The number of entries that may arrive before the next check.
    room: usize,
}

impl Arrivals {
    /// No entry has arrived.
    pub fn none() -> Self {
        Self {
            entries: 0,
            room: LEAST_ROOM,
        }
    }

    /// Counts the entries of a change.
    pub fn count(&mut self, change: &Change) {
        self.entries += room::most_entries(change);
    }

    /// Whether the next check of the free space is due.
    pub fn are_many(&self) -> bool {
        self.entries >= self.room
    }

    /// Starts a new count; `left` is the number of entries for which there is space.
    pub fn restart(&mut self, left: u32) {
        // The next check comes when half of the space may be used, and not all the time if tables may not
        // grow.
        self.room = (left as usize / 2).max(LEAST_ROOM);
        self.entries = 0;
    }
}
