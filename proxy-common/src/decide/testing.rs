//! Tables of plain hash maps, for the unit tests of the decisions.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;

use super::Tables;
use crate::maps::{
    AddressFlags, Backend, BackendState, Config, Flow, FlowKey, Frontend, FrontendKey, Slot, SlotRange,
    SocketKey, SocketPeer,
};
use crate::packet::Headers;
use crate::{Ip, Port};

pub fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

/// A packet's headers, `(address, port)` to `(address, port)`.
pub fn packet(protocol: u8, src: (&str, u16), dst: (&str, u16)) -> Headers {
    Headers {
        src: ip(src.0),
        dst: ip(dst.0),
        sport: Port::new(src.1),
        dport: Port::new(dst.1),
        protocol,
        detail: 0,
        ttl: 64,
        is_fragment: false,
        l3: 14,
        l4: 34,
    }
}

#[derive(Default)]
pub struct Fake {
    pub config: Config,
    pub frontends: HashMap<FrontendKey, Frontend>,
    pub slots: Vec<Slot>,
    pub backends: Vec<Backend>,
    pub addresses: HashMap<Ip, AddressFlags>,
    pub pods: Vec<Ip>,
    pub flows: RefCell<HashMap<FlowKey, Flow>>,
    pub socket_peers: RefCell<HashMap<SocketKey, SocketPeer>>,
    pub outside: Cell<bool>,
    pub time: Cell<u32>,
    pub random: Cell<u32>,
}

impl Fake {
    /// A node 192.168.50.11 with the service range 10.96.0.0/16 and 1000 masquerade ports.
    pub fn node() -> Self {
        let mut fake = Self::default();
        fake.config.node_v4 = ip("192.168.50.11");
        fake.config.service_range[0] = ip("10.96.0.0");
        fake.config.service_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        fake.config.masquerade_first = 61_000;
        fake.config.masquerade_count = 1000;
        fake.addresses
            .insert(ip("192.168.50.11"), AddressFlags(AddressFlags::NODE));
        fake
    }

    /// Adds a service with these backends and gives its key.
    pub fn service(
        &mut self,
        address: &str,
        port: u16,
        protocol: u8,
        backends: &[(&str, u16)],
    ) -> FrontendKey {
        let key = FrontendKey::new(ip(address), Port::new(port), protocol);
        let service = self.frontends.len() as u32 + 1;
        let start = self.slots.len() as u32;
        for (address, port) in backends {
            self.slots.push(Slot::new(service, self.backends.len() as u32));
            self.backends.push(Backend {
                address: ip(address),
                port: Port::new(*port),
                state: BackendState::Active as u8,
                generation: 1,
                service,
                ..Backend::default()
            });
        }
        let slots = SlotRange::new(start, backends.len() as u32).0;
        self.frontends.insert(
            key,
            Frontend {
                check: key.check(),
                slots,
                service,
                flags: 0,
            },
        );
        self.addresses
            .insert(ip(address), AddressFlags(AddressFlags::VIRTUAL));
        key
    }
}

impl Tables for Fake {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(id as usize).copied()
    }

    fn address(&self, address: &Ip) -> AddressFlags {
        self.addresses.get(address).copied().unwrap_or_default()
    }

    fn is_pod(&self, address: &Ip) -> bool {
        self.pods.contains(address)
    }

    fn flow(&self, key: &FlowKey, into: &mut Flow) -> bool {
        self.flows.borrow().get(key).map(|flow| *into = *flow).is_some()
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        let mut flows = self.flows.borrow_mut();
        let free = !flows.contains_key(key);
        if free {
            flows.insert(*key, *flow);
        }
        free
    }

    fn replace_flow(&self, key: &FlowKey, flow: &Flow) {
        self.flows.borrow_mut().insert(*key, *flow);
    }

    fn socket_peer(&self, key: &SocketKey) -> Option<SocketPeer> {
        self.socket_peers.borrow().get(key).copied()
    }

    fn replace_socket_peer(&self, key: &SocketKey, peer: &SocketPeer) {
        self.socket_peers.borrow_mut().insert(*key, *peer);
    }

    fn pods_answer_outside(&self) {
        self.outside.set(true);
    }

    fn now(&self) -> u32 {
        self.time.get()
    }

    fn random(&self) -> u32 {
        let next = self
            .random
            .get()
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.random.set(next);
        next
    }
}
