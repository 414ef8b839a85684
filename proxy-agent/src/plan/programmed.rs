//! What is programmed for a service: just enough to compare with, since the rest can be read from the tables.

use proxy_common::maps::{Backend, Frontend, FrontendFlags, FrontendKey, Slot, SlotRange, SourceRangeKey};
use smallvec::SmallVec;

use super::frontends::{Frontends, PlannedFrontend};

/// What is programmed for one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    /// The groups.
    pub groups: Box<[ProgrammedGroup]>,
}

/// One service port in one family under one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgrammedGroup {
    /// What clients address.
    pub frontends: Frontends,
    /// The service id.
    pub service: u32,
    /// First slot.
    pub start: u32,
    /// Slots of new flows.
    pub active: u32,
    /// Slots behind those, of backends that drain.
    pub draining: u16,
    /// Flags of all frontends.
    pub flags: u16,
    /// For how many seconds a client stays with its backend, or 0.
    pub affinity: u32,
    /// Whose packets some of the frontends let through, in order; rare.
    pub source_ranges: Option<Box<[SourceRangeKey]>>,
}

/// The flags that a group's frontends have in common.
const GROUP_FLAGS: u32 = FrontendFlags::LOCAL_ONLY | FrontendFlags::AFFINITY | FrontendFlags::RESET_REMOVED;

/// Bits of [`Frontend::flags`] that hold the number of draining slots, so that a restarted agent finds them.
const DRAINING_SHIFT: u32 = 16;

impl Programmed {
    /// How many source ranges it has.
    pub fn range_count(&self) -> u32 {
        self.groups.iter().map(ProgrammedGroup::range_count).sum()
    }
}

impl ProgrammedGroup {
    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        self.active + u32::from(self.draining)
    }

    /// How many source ranges it has.
    pub fn range_count(&self) -> u32 {
        self.source_ranges
            .as_deref()
            .map_or(0, |ranges| ranges.len() as u32)
    }

    /// The keys of its frontends.
    pub fn keys(&self) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.iter().map(|frontend| &frontend.key)
    }

    /// Whether it has a frontend with this key.
    pub fn has_key(&self, key: &FrontendKey) -> bool {
        self.keys().any(|known| known == key)
    }

    /// The value of one of its frontends.
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

    /// What a frontend found in the tables says of its group.
    pub fn from_value(key: FrontendKey, value: &Frontend) -> Self {
        let range = SlotRange(value.slots);
        Self {
            frontends: SmallVec::from_buf([Self::frontend(key, value)]),
            service: value.service,
            start: range.start(),
            active: range.count(),
            draining: (value.flags >> DRAINING_SHIFT) as u16,
            flags: (value.flags & GROUP_FLAGS) as u16,
            affinity: value.affinity,
            source_ranges: None,
        }
    }

    /// A frontend found in the tables.
    pub fn frontend(key: FrontendKey, value: &Frontend) -> PlannedFrontend {
        PlannedFrontend {
            key,
            flags: (value.flags & !GROUP_FLAGS) as u16,
        }
    }
}

/// Read access to the arrays, for comparing.
pub trait View {
    /// A slot.
    fn slot(&self, index: u32) -> Slot;
    /// A backend.
    fn backend(&self, id: u32) -> Backend;
}
