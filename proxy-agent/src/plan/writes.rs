//! The writes that lead from one state of the tables to the next, by phase.
//!
//! A program may read the tables at any moment, so the order of the phases keeps them consistent:
//! 1. backends that become alive, or stay so in another state;
//! 2. slices, which no frontend points to yet;
//! 3. source ranges, then frontends that point to the slices, then addresses;
//! 4. frontends to remove, then addresses, then source ranges;
//! 5. backends that no slice points to any more become *gone*, so that the programs notice flows to them;
//! 6. slots and backend ids are freed after a grace period, when no program can still hold one.
//!
//! The phases are fields, and the caller carries them out from top to bottom. The sixth must wait until the
//! first five of the same writes have succeeded.

use proxy_common::Ip;
use proxy_common::maps::{Backend, Frontend, FrontendKey, Slot, SourceRangeKey};

/// The writes of any number of services.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Phase 1: backends by id.
    pub backends: Vec<(u32, Backend)>,
    /// Phase 2: the contents of all slices, one after another.
    pub slots: Vec<Slot>,
    /// Phase 2: the start of each slice in `SLOTS`, and the number of `slots` that belong to it.
    pub slices: Vec<(u32, u32)>,
    /// Phase 3: source ranges to set.
    pub set_ranges: Vec<SourceRangeKey>,
    /// Phase 3: frontends to set.
    pub set_frontends: Vec<(FrontendKey, Frontend)>,
    /// Phase 3: addresses to set, with their flags.
    pub set_addresses: Vec<(Ip, u32)>,
    /// Phase 4: frontends to remove, if they still belong to this service id.
    pub remove_frontends: Vec<(FrontendKey, u32)>,
    /// Phase 4: addresses to remove.
    pub remove_addresses: Vec<Ip>,
    /// Phase 4: source ranges to remove.
    pub remove_ranges: Vec<SourceRangeKey>,
    /// Phases 5 and 6: backends to mark gone, and to free.
    pub gone: Vec<(u32, Backend)>,
    /// Phase 6: slots to free, as start and count.
    pub freed_slots: Vec<(u32, u32)>,
}

impl Writes {
    /// Whether there are no writes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Clears all lists and keeps their memory.
    pub fn clear(&mut self) {
        let Self {
            backends,
            slots,
            slices,
            set_ranges,
            set_frontends,
            set_addresses,
            remove_frontends,
            remove_addresses,
            remove_ranges,
            gone,
            freed_slots,
        } = self;
        backends.clear();
        slots.clear();
        slices.clear();
        set_ranges.clear();
        set_frontends.clear();
        set_addresses.clear();
        remove_frontends.clear();
        remove_addresses.clear();
        remove_ranges.clear();
        gone.clear();
        freed_slots.clear();
    }
}
