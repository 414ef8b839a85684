//! Choosing a backend: one hash look-up was made by the caller, two array look-ups follow.

use super::Tables;
use crate::flow_hash::pick;
use crate::maps::{Backend, Frontend, FrontendFlags, FrontendKey, Reason, SlotRange};

/// A backend and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Index into `BACKENDS`.
    pub id: u32,
    /// The service port it was chosen for.
    pub service: u32,
    /// Its address, port and generation.
    pub backend: Backend,
}

/// Chooses among the slots of `frontend` by `hash`.
///
/// The tables may change between the look-ups. Every step checks that it still speaks of the same service, and the
/// whole is tried a second time from the frontend on; see [`crate::maps::Frontend`].
///
/// # Errors
/// The reason to refuse the flow: no endpoints, none on this node, or tables that changed twice in a row.
#[inline(always)]
pub fn select<T: Tables>(
    tables: &T,
    key: &FrontendKey,
    mut frontend: Frontend,
    hash: u32,
) -> Result<Selected, Reason> {
    for _ in 0..2 {
        if frontend.check == key.check() {
            let range = SlotRange(frontend.slots);
            if range.count() == 0 {
                let local_only = frontend.flags & FrontendFlags::LOCAL_ONLY != 0;
                return Err(if local_only {
                    Reason::NoLocalEndpoints
                } else {
                    Reason::NoEndpoints
                });
            }
            let index = range.start().wrapping_add(pick(hash, range.count()));
            if let Some(slot) = tables.slot(index)
                && slot.service() == frontend.service
                && let Some(backend) = tables.backend(slot.backend())
                && backend.service == frontend.service
                && backend.is_alive()
            {
                return Ok(Selected {
                    id: slot.backend(),
                    service: frontend.service,
                    backend,
                });
            }
        }
        frontend = tables.frontend(key).ok_or(Reason::NoSuchPort)?;
    }
    Err(Reason::Inconsistent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::{Fake, ip};
    use crate::maps::{BackendState, Slot};
    use crate::{Port, protocol};

    #[test]
    fn a_frontend_without_slots_says_why() {
        let mut fake = Fake::default();
        let key = fake.service("10.96.0.1", 80, protocol::TCP, &[]);
        let frontend = fake.frontends[&key];
        assert_eq!(select(&fake, &key, frontend, 0), Err(Reason::NoEndpoints));
        let local = Frontend {
            flags: FrontendFlags::LOCAL_ONLY,
            ..frontend
        };
        assert_eq!(select(&fake, &key, local, 0), Err(Reason::NoLocalEndpoints));
    }

    #[test]
    fn a_recycled_element_is_noticed_and_looked_up_again() {
        let mut fake = Fake::default();
        let key = fake.service("10.96.0.1", 80, protocol::TCP, &[("10.244.1.2", 8080)]);
        let other = fake.service("10.96.0.2", 80, protocol::TCP, &[("10.244.9.9", 9999)]);
        let recycled = fake.frontends[&other];
        let selected = select(&fake, &key, recycled, 0).unwrap();
        assert_eq!(
            (selected.backend.address, selected.backend.port),
            (ip("10.244.1.2"), Port::new(8080))
        );
    }

    #[test]
    fn a_slot_of_another_service_is_never_used() {
        let mut fake = Fake::default();
        let key = fake.service("10.96.0.1", 80, protocol::TCP, &[("10.244.1.2", 8080)]);
        fake.slots[0] = Slot::new(999, 0);
        assert_eq!(
            select(&fake, &key, fake.frontends[&key], 0),
            Err(Reason::Inconsistent)
        );
    }

    #[test]
    fn a_gone_backend_is_never_used() {
        let mut fake = Fake::default();
        let key = fake.service("10.96.0.1", 80, protocol::TCP, &[("10.244.1.2", 8080)]);
        fake.backends[0].state = BackendState::Gone as u8;
        assert_eq!(
            select(&fake, &key, fake.frontends[&key], 0),
            Err(Reason::Inconsistent)
        );
    }
}
