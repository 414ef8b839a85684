//! The programmed state of a service: only the part that a comparison needs, since the rest can be read from
//! the tables.

use proxy_common::maps::{Backend, Frontend, FrontendFlags, FrontendKey, Slot, SlotRange, SourceRangeKey};
use smallvec::SmallVec;

use super::frontends::{Frontends, PlannedFrontend};

/// The programmed state of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    /// The groups of the service.
    pub groups: Box<[ProgrammedGroup]>,
}

/// One service port in one family under one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgrammedGroup {
    /// The frontends of the group.
    pub frontends: Frontends,
    /// The service id of the group.
    pub service: u32,
    /// The first slot of the group.
    pub start: u32,
    /// The number of slots for new flows.
    pub active: u32,
    /// The number of slots behind those, of backends that drain.
    pub draining: u16,
    /// The flags of all frontends.
    pub flags: u16,
    /// The time for which a client keeps its backend, in seconds; 0 without affinity.
    pub affinity: u32,
    /// The clients that some of the frontends accept, in order; most groups have none.
    pub source_ranges: Option<Box<[SourceRangeKey]>>,
}

/// The flags that all frontends of a group have in common.
const GROUP_FLAGS: u32 = FrontendFlags::LOCAL_ONLY | FrontendFlags::AFFINITY | FrontendFlags::RESET_REMOVED;

/// The shift of the bits of [`Frontend::flags`] with the number of draining slots, which a restarted agent
/// reads there.
const DRAINING_SHIFT: u32 = 16;

impl Programmed {
    /// The number of source ranges of all groups.
    pub fn range_count(&self) -> u32 {
        self.groups.iter().map(ProgrammedGroup::range_count).sum()
    }
}

impl ProgrammedGroup {
    /// The number of slots, active and draining.
    pub fn slots(&self) -> u32 {
        self.active + u32::from(self.draining)
    }

    /// The number of source ranges of the group.
    pub fn range_count(&self) -> u32 {
        self.source_ranges
            .as_deref()
            .map_or(0, |ranges| ranges.len() as u32)
    }

    /// The keys of the group's frontends.
    pub fn keys(&self) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.iter().map(|frontend| &frontend.key)
    }

    /// Whether the group has a frontend with this key.
    pub fn has_key(&self, key: &FrontendKey) -> bool {
        self.keys().any(|known| known == key)
    }

    /// The map value of one of the group's frontends.
    pub fn value(&self, frontend: &PlannedFrontend) -> Frontend {
        Frontend {
            check: frontend.key.check(),
            slots: SlotRange::new(self.start, self.active).0,
            service: self.service,
            flags: u32::from(self.flags | frontend.flags) | u32::from(self.draining) << DRAINING_SHIFT,
            affinity: self.affinity,
            reserved: 0,
        }
    }

    /// The group that a frontend in the tables belongs to, as far as its value shows it.
    pub fn from_value(key: FrontendKey, value: &Frontend) -> Self {
        let range = SlotRange(value.slots);
        Self {
            frontends: SmallVec::from_buf([Self::frontend(key, value)]),
            service: value.service,
            start: range.start(),
            active: range.count(),
            draining: draining(value),
            flags: (value.flags & GROUP_FLAGS) as u16,
            affinity: value.affinity,
            source_ranges: None,
        }
    }

    /// The frontend of a key and a value in the tables.
    pub fn frontend(key: FrontendKey, value: &Frontend) -> PlannedFrontend {
        PlannedFrontend {
            key,
            flags: (value.flags & !GROUP_FLAGS) as u16,
        }
    }
}

/// The number of slots of draining backends in a frontend's slice.
pub fn draining(value: &Frontend) -> u16 {
    (value.flags >> DRAINING_SHIFT) as u16
}

/// Read access to the arrays, for comparisons.
pub trait View {
    /// The slot with this index.
    fn slot(&self, index: u32) -> Slot;
    /// The backend with this id.
    fn backend(&self, id: u32) -> Backend;
}
