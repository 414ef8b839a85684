//! How large the tables are made, and when it is time to see whether they have to grow.

use crate::apply::room;
use crate::bpf::object::MapSizes;
use crate::config::MapLimits;
use crate::source::Change;

/// Entries that arrive in the first lists before the room in the tables is looked at again, at the least.
const LEAST_ROOM: usize = 2048;

/// The sizes of tables that are made anew.
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

/// The sizes that they may grow to.
pub fn largest(limits: &MapLimits) -> MapSizes {
    MapSizes {
        frontends: limits.frontends.max,
        slots: limits.slots.max,
        backends: limits.backends.max,
        addresses: limits.addresses.max,
        ..initial(limits)
    }
}

/// What has arrived of the first lists since the room in the tables was looked at.
#[derive(Debug)]
pub struct Arrivals {
    /// Entries, at the most.
    entries: usize,
    /// How many may arrive before the room is looked at again.
    room: usize,
}

impl Arrivals {
    /// Nothing has arrived.
    pub fn none() -> Self {
        Self {
            entries: 0,
            room: LEAST_ROOM,
        }
    }

    /// Counts what happened to an object.
    pub fn count(&mut self, change: &Change) {
        self.entries += room::most_entries(change);
    }

    /// Whether it is time to look at the room in the tables.
    pub fn are_many(&self) -> bool {
        self.entries >= self.room
    }

    /// Counts anew, where there is room for so many more entries.
    pub fn restart(&mut self, left: u32) {
        // To look again when half of it may be gone, and not all the time where tables may not grow.
        self.room = (left as usize / 2).max(LEAST_ROOM);
        self.entries = 0;
    }
}
