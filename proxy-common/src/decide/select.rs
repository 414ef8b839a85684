//! The choice of a backend: the caller has made one hash look-up, and two array look-ups follow.

use super::Tables;
use crate::flow_hash::pick;
#[cfg(doc)]
use crate::maps::Flow;
use crate::maps::{
    Affinity, AffinityKey, Backend, BackendState, Frontend, FrontendFlags, FrontendKey, Reason, SlotRange,
};
use crate::{Ip, Port};

/// A backend and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Index into `BACKENDS`.
    pub id: u32,
    /// The service port it was chosen for.
    pub service: u32,
    /// Flags of the frontend it was chosen through.
    pub flags: FrontendFlags,
    /// Its address, port and generation.
    pub backend: Backend,
}

impl Selected {
    /// A backend that is in no map, see [`Flow::MASQUERADED`], [`Flow::DIRECT`] and [`Flow::TO_HOST_PORT`].
    #[inline(always)]
    pub(super) const fn synthetic(id: u32, flags: u32, address: Ip, port: Port, generation: u32) -> Self {
        Self {
            id,
            service: 0,
            flags: FrontendFlags(flags),
            backend: Backend {
                address,
                port,
                state: BackendState::Active as u8,
                reserved: 0,
                generation,
                service: 0,
                reserved2: 0,
            },
        }
    }

    /// The value for no backend.
    pub(super) const NONE: Self = Self {
        id: 0,
        service: 0,
        flags: FrontendFlags(0),
        backend: Backend {
            address: Ip::UNSPECIFIED,
            port: Port::new(0),
            state: 0,
            reserved: 0,
            generation: 0,
            service: 0,
            reserved2: 0,
        },
    };
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Chooses among the slots of `frontend` by `hash`. A client with session affinity gets its previous backend
/// instead.
///
/// The tables may change between the look-ups. So every step checks that it still belongs to the same
/// service. If not, the function tries a second time from the frontend on, see [`crate::maps::Frontend`].
///
/// # Errors
/// The reason to refuse the flow: no endpoints, no endpoints on this node, or tables that changed twice in a
/// row.
#[inline(always)]
pub fn select<T: Tables>(
    tables: &T,
    key: &FrontendKey,
    mut frontend: Frontend,
    client: &Ip,
    hash: u32,
) -> Result<Selected, Reason> {
    for _ in 0..2 {
        if frontend.check == key.check() {
            let range = SlotRange(frontend.slots);
            if range.count() == 0 {
                return Err(if frontend.flags().has(FrontendFlags::LOCAL_ONLY) {
                    Reason::NoLocalEndpoints
                } else {
                    Reason::NoEndpoints
                });
            }
            let is_affine = frontend.flags().has(FrontendFlags::AFFINITY);
            if is_affine && let Some(selected) = stay(tables, &frontend, client) {
                return Ok(selected);
            }
            let index = range.start().wrapping_add(pick(hash, range.count()));
            if let Some(slot) = tables.slot(index)
                && slot.service() == frontend.service
                && let Some(backend) = tables.backend(slot.backend())
                && backend.service == frontend.service
                && backend.is_alive()
            {
                let selected = Selected {
                    id: slot.backend(),
                    service: frontend.service,
                    flags: frontend.flags(),
                    backend,
                };
                if is_affine {
                    remember(tables, &selected, client);
                }
                return Ok(selected);
            }
        }
        frontend = tables.frontend(key).ok_or(Reason::NoSuchPort)?;
    }
    Err(Reason::Inconsistent)
}

/// The client's previous backend, if its time has not expired and the backend still takes new flows.
#[inline(always)]
fn stay<T: Tables>(tables: &T, frontend: &Frontend, client: &Ip) -> Option<Selected> {
    let known = tables.affinity(&AffinityKey::new(*client, frontend.service))?;
    let age = tables.clock().wrapping_sub(known.seen);
    if age > u64::from(frontend.affinity) * NANOS_PER_SECOND {
        return None;
    }
    let backend = tables.backend(known.backend)?;
    if backend.service != frontend.service || backend.generation != known.generation || !backend.is_active() {
        return None;
    }
    let selected = Selected {
        id: known.backend,
        service: frontend.service,
        flags: frontend.flags(),
        backend,
    };
    remember(tables, &selected, client);
    Some(selected)
}

#[inline(always)]
fn remember<T: Tables>(tables: &T, selected: &Selected, client: &Ip) {
    let affinity = Affinity {
        backend: selected.id,
        generation: selected.backend.generation,
        seen: tables.clock(),
    };
    tables.replace_affinity(&AffinityKey::new(*client, selected.service), &affinity);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::{Fake, ip};
    use crate::maps::Slot;
    use crate::protocol;

    const CLIENT: &str = "172.31.0.5";

    #[test]
    fn a_frontend_without_slots_says_why() {
        let mut fake = Fake::default();
        let key = fake.service("10.96.0.1", 80, protocol::TCP, &[]);
        let frontend = fake.frontends[&key];
        assert_eq!(
            select(&fake, &key, frontend, &ip(CLIENT), 0),
            Err(Reason::NoEndpoints)
        );
        let local = Frontend {
            flags: FrontendFlags::LOCAL_ONLY,
            ..frontend
        };
        assert_eq!(
            select(&fake, &key, local, &ip(CLIENT), 0),
            Err(Reason::NoLocalEndpoints)
        );
    }

    #[test]
    fn a_recycled_element_is_noticed_and_looked_up_again() {
        let mut fake = Fake::default();
        let key = fake.service("10.96.0.1", 80, protocol::TCP, &[("10.244.1.2", 8080)]);
        let other = fake.service("10.96.0.2", 80, protocol::TCP, &[("10.244.9.9", 9999)]);
        let recycled = fake.frontends[&other];
        let selected = select(&fake, &key, recycled, &ip(CLIENT), 0).unwrap();
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
            select(&fake, &key, fake.frontends[&key], &ip(CLIENT), 0),
            Err(Reason::Inconsistent)
        );
    }

    #[test]
    fn a_gone_backend_is_never_used() {
        let mut fake = Fake::default();
        let key = fake.service("10.96.0.1", 80, protocol::TCP, &[("10.244.1.2", 8080)]);
        fake.backends[0].state = BackendState::Gone as u8;
        assert_eq!(
            select(&fake, &key, fake.frontends[&key], &ip(CLIENT), 0),
            Err(Reason::Inconsistent)
        );
    }

    /// Three backends, and a service whose clients stay with their backend for ten seconds.
    fn affine() -> (Fake, FrontendKey) {
        let mut fake = Fake::default();
        let backends = [("10.244.1.2", 80), ("10.244.1.3", 80), ("10.244.1.4", 80)];
        let key = fake.service("10.96.0.1", 80, protocol::TCP, &backends);
        let frontend = fake.frontends.get_mut(&key).unwrap();
        frontend.flags |= FrontendFlags::AFFINITY;
        frontend.affinity = 10;
        (fake, key)
    }

    fn choose(fake: &Fake, key: &FrontendKey, client: &str, hash: u32) -> u32 {
        select(fake, key, fake.frontends[key], &ip(client), hash)
            .unwrap()
            .id
    }

    #[test]
    fn a_client_stays_as_long_as_it_comes_back_in_time() {
        let (fake, key) = affine();
        assert_eq!(choose(&fake, &key, CLIENT, u32::MAX), 2);
        for second in [10, 20, 29] {
            fake.clock.set(second * NANOS_PER_SECOND);
            assert_eq!(choose(&fake, &key, CLIENT, 0), 2, "at {second} s");
        }
        assert_eq!(
            choose(&fake, &key, "172.31.0.6", 0),
            0,
            "others choose for themselves"
        );
        fake.clock.set(39 * NANOS_PER_SECOND + 1);
        assert_eq!(choose(&fake, &key, CLIENT, 0), 0);
    }

    #[test]
    fn a_client_never_stays_with_a_backend_that_takes_no_new_flows() {
        for change in [
            (|backend| backend.state = BackendState::Terminating as u8) as fn(&mut Backend),
            |backend| backend.state = BackendState::Gone as u8,
            |backend| backend.generation += 1,
            |backend| backend.service += 1,
        ] {
            let (mut fake, key) = affine();
            assert_eq!(choose(&fake, &key, CLIENT, u32::MAX), 2);
            change(&mut fake.backends[2]);
            assert_eq!(choose(&fake, &key, CLIENT, 0), 0);
        }
        let (mut fake, key) = affine();
        assert_eq!(choose(&fake, &key, CLIENT, u32::MAX), 2);
        fake.backends[2].state = BackendState::LastResort as u8;
        assert_eq!(choose(&fake, &key, CLIENT, 0), 2, "nothing better is there");
    }
}
