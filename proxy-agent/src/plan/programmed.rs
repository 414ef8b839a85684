//! What is programmed for a service: just enough to compare with, since the rest can be read from the tables.

use proxy_common::maps::{Backend, Frontend, FrontendKey, Slot, SlotRange};
use smallvec::SmallVec;

/// What is programmed for one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    /// The groups.
    pub groups: Box<[ProgrammedGroup]>,
}

/// One service port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgrammedGroup {
    /// What clients address.
    pub frontends: SmallVec<[FrontendKey; 1]>,
    /// The service id.
    pub service: u32,
    /// First slot.
    pub start: u32,
    /// Slots of new flows.
    pub active: u32,
    /// Slots behind those, of backends that drain.
    pub draining: u16,
    /// Low half of the frontend's flags.
    pub flags: u16,
}

/// Bits of [`Frontend::flags`] that hold the number of draining slots, so that a restarted agent finds them.
const DRAINING_SHIFT: u32 = 16;

impl ProgrammedGroup {
    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        self.active + u32::from(self.draining)
    }

    /// The value of one of its frontends.
    pub fn value(&self, key: &FrontendKey) -> Frontend {
        Frontend {
            check: key.check(),
            slots: SlotRange::new(self.start, self.active).0,
            service: self.service,
            flags: u32::from(self.flags) | u32::from(self.draining) << DRAINING_SHIFT,
        }
    }

    /// What a frontend found in the tables says of its group.
    pub fn from_value(key: FrontendKey, value: &Frontend) -> Self {
        let range = SlotRange(value.slots);
        Self {
            frontends: SmallVec::from_buf([key]),
            service: value.service,
            start: range.start(),
            active: range.count(),
            draining: (value.flags >> DRAINING_SHIFT) as u16,
            flags: value.flags as u16,
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
