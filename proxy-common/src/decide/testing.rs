//! Tables of plain hash maps, for the unit tests and the fuzz target of the decisions.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which panic with what went wrong"
)]

mod frames;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;

use super::PacketContext;
use super::Tables;
use crate::maps::{
    AddressFlags, Affinity, AffinityKey, Backend, BackendState, Config, Datagram, FirstFragment, Flow,
    FlowKey, FragmentKey, FragmentPorts, Frontend, FrontendKey, HostPort, HostPortKey, InUse, Pod, PodLink,
    RangeFlags, RecentCount, Share, Slot, SlotRange, SocketKey, SocketPeer,
};
use crate::packet::Headers;
use crate::{Ip, Port, protocol};

pub use frames::check_frame;

/// Parses an IPv4 or IPv6 address.
pub fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

/// The headers of a packet from one `(address, port)` to another.
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
        has_ports: matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP),
        fragment_id: 0,
        sequence: 0,
        // The acknowledgement of a SYN with the sequence number 0.
        acknowledgement: 1,
        payload: 0,
        l3: 14,
        l4: 34,
    }
}

/// Tables of plain hash maps.
#[derive(Default)]
pub struct Fake {
    /// The node's configuration.
    pub config: Config,
    /// The map `FRONTENDS`.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// The map `SLOTS`.
    pub slots: Vec<Slot>,
    /// The map `BACKENDS`.
    pub backends: Vec<Backend>,
    /// The map `ADDRESSES`.
    pub addresses: HashMap<Ip, AddressFlags>,
    /// Addresses of pods.
    pub pods: Vec<Ip>,
    /// The map `POD_RANGES`, with single addresses that are not pods'.
    pub ranges: HashMap<Ip, RangeFlags>,
    /// The map `PODS`.
    pub own_pods: HashMap<Ip, Pod>,
    /// The map `POD_LINKS`.
    pub pod_links: HashMap<u32, PodLink>,
    /// The map `HOST_PORTS`.
    pub host_ports: HashMap<HostPortKey, HostPort>,
    /// The maps `FLOWS` and `STREAMS`.
    pub flows: RefCell<HashMap<FlowKey, Flow>>,
    /// The map `NEW_FLOWS`.
    pub new_flows: RefCell<HashMap<FlowKey, Flow>>,
    /// The most entries that `flows` may hold.
    pub room: usize,
    /// The map `SHARES`.
    pub shares: RefCell<HashMap<Ip, Share>>,
    /// The map `UNANSWERED`.
    pub unanswered: RefCell<HashMap<Ip, RecentCount>>,
    /// The map `NEIGHBOURS`.
    pub neighbours: RefCell<HashMap<u32, RecentCount>>,
    /// Neighbours whose hardware addresses are known.
    pub known_neighbours: Vec<Ip>,
    /// The output devices of the routes to some addresses. For every other address, any interface is one.
    pub routes_back: HashMap<Ip, u32>,
    /// The output devices of the routes to some addresses, for new flows.
    pub routes_out: HashMap<Ip, u32>,
    /// The map `AFFINITY`.
    pub affinities: RefCell<HashMap<AffinityKey, Affinity>>,
    /// The map `FRAGMENTS`.
    pub fragments: RefCell<HashMap<FragmentKey, FirstFragment>>,
    /// The map `SOURCE_RANGES`, with single addresses only.
    pub allowed: Vec<(u32, Ip)>,
    /// The map `SOCKET_PEERS`.
    pub socket_peers: RefCell<HashMap<SocketKey, SocketPeer>>,
    /// Ports that sockets of the node are bound to.
    pub own_ports: Vec<u16>,
    /// Connections of the node's own sockets, with the keys of their peers' packets.
    pub own_connections: Vec<FlowKey>,
    /// Whether the uplink translated without masquerading.
    pub outside: Cell<bool>,
    /// Whether the uplink translated to the node itself.
    pub outside_to_node: Cell<bool>,
    /// Nanoseconds since boot.
    pub clock: Cell<u64>,
    /// State of the random number generator.
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
        fake.config.connection_share = 1000;
        fake.config.stream_share = 1000;
        fake.config.unreplied_share = 2000;
        fake.room = usize::MAX;
        fake.addresses
            .insert(ip("192.168.50.11"), AddressFlags(AddressFlags::NODE));
        fake
    }

    /// Adds a service with these backends and returns its key.
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
                affinity: 0,
                reserved: 0,
            },
        );
        self.addresses
            .insert(ip(address), AddressFlags(AddressFlags::VIRTUAL));
        key
    }
}

impl Fake {
    /// Lets this many ticks pass.
    pub fn advance_clock(&self, ticks: u32) {
        self.clock.set(self.clock.get() + (u64::from(ticks) << 30));
    }

    /// The entry of a packet, in any table.
    pub fn known_flow(&self, key: &FlowKey) -> Option<Flow> {
        let confirmed = self.flows.borrow().get(key).copied();
        confirmed.or_else(|| self.new_flows.borrow().get(key).copied())
    }

    /// Removes an entry, as the kernel does when it evicts one.
    pub fn evict(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
        self.new_flows.borrow_mut().remove(key);
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

    fn range(&self, address: &Ip) -> RangeFlags {
        if self.pods.contains(address) {
            return RangeFlags(RangeFlags::PODS);
        }
        self.ranges.get(address).copied().unwrap_or_default()
    }

    fn is_in_use(&self, table: u32) -> bool {
        match table {
            InUse::PODS => !self.own_pods.is_empty(),
            _ => true,
        }
    }

    fn pod(&self, address: &Ip) -> Option<Pod> {
        self.own_pods.get(address).copied()
    }

    fn pod_link(&self, interface: u32) -> Option<PodLink> {
        self.pod_links.get(&interface).copied()
    }

    fn host_port(&self, key: &HostPortKey) -> Option<HostPort> {
        self.host_ports.get(key).copied()
    }

    fn is_allowed(&self, service: u32, client: &Ip) -> bool {
        self.allowed.contains(&(service, *client))
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn replace_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn flow(&self, key: &FlowKey, into: &mut Flow) -> bool {
        self.known_flow(key).map(|flow| *into = flow).is_some()
    }

    fn has_flow(&self, key: &FlowKey) -> bool {
        self.known_flow(key).is_some()
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        let free = self.known_flow(key).is_none();
        if free {
            self.new_flows.borrow_mut().insert(*key, *flow);
        }
        free
    }

    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        let mut flows = if flow.state().is_protected() {
            self.flows.borrow_mut()
        } else {
            self.new_flows.borrow_mut()
        };
        let has_room = !flow.state().is_protected() || flows.len() < self.room || flows.contains_key(key);
        if has_room {
            flows.insert(*key, *flow);
        }
        has_room
    }

    fn take_share(&self, config: &Config, client: &Ip, protocol: u8) -> bool {
        let is_own = self.is_own_pod(client);
        let mut shares = self.shares.borrow_mut();
        let mut of = |key: &Ip| Share::count(*Share::part(shares.entry(*key).or_default(), protocol));
        let (taken, all) = (of(client), of(&Share::ALL));
        if !config.has_share(protocol, taken, all, is_own) {
            if taken >= Share::limit(config, protocol) {
                *Share::part(shares.entry(*client).or_default(), protocol) |= Share::REFUSED;
            }
            return false;
        }
        for key in [client, &Share::ALL] {
            *Share::part(shares.entry(*key).or_default(), protocol) += 1;
        }
        true
    }

    fn return_share(&self, client: &Ip, protocol: u8) {
        let mut shares = self.shares.borrow_mut();
        for key in [client, &Share::ALL] {
            let share = shares.get_mut(key).expect("a share that was taken");
            let taken = Share::part(share, protocol);
            assert!(Share::count(*taken) > 0, "a share is given back once");
            *taken -= 1;
        }
    }

    fn note_unreplied(&self, config: &Config, client: &Ip) -> bool {
        let mut waiting = self.unanswered.borrow_mut();
        let recent = waiting.entry(*client).or_default();
        recent.another(self.now(), config.unreplied_share)
    }

    fn note_replied(&self, client: &Ip) {
        if let Some(waiting) = self.unanswered.borrow_mut().get_mut(client) {
            waiting.count = waiting.count.saturating_sub(1);
        }
    }

    fn passes_reverse_path(&self, headers: &Headers, interface: u32) -> bool {
        self.routes_back
            .get(&headers.src)
            .is_none_or(|by| *by == interface)
    }

    fn output_device(&self, ctx: &PacketContext) -> u32 {
        self.routes_out.get(ctx.destination()).copied().unwrap_or(0)
    }

    fn lacks_neighbour(&self, ctx: &PacketContext, is_translated: bool) -> bool {
        let to = if is_translated {
            ctx.flow.dst
        } else {
            ctx.headers.dst
        };
        !self.known_neighbours.contains(&to)
    }

    fn note_neighbour(&self, config: &Config, interface: u32) -> bool {
        let mut recent = self.neighbours.borrow_mut();
        let recent = recent.entry(interface).or_default();
        recent.another(self.now(), config.neighbour_share)
    }

    fn touch_flow(&self, key: &FlowKey, now: u32, state: u8, sequence: u32, fin: u32) -> bool {
        let (mut flows, mut new_flows) = (self.flows.borrow_mut(), self.new_flows.borrow_mut());
        let found = flows.get_mut(key).or_else(|| new_flows.get_mut(key));
        found
            .map(|flow| {
                flow.seen = now;
                flow.state |= state;
                if sequence != 0 {
                    flow.sequence = sequence;
                }
                if fin != 0 {
                    flow.fin = fin;
                }
            })
            .is_some()
    }

    fn forget_flow(&self, key: &FlowKey, protected: bool) {
        let flows = if protected { &self.flows } else { &self.new_flows };
        flows.borrow_mut().remove(key);
    }

    fn fragment(&self, key: &FragmentKey, datagram: &Datagram) -> Option<FragmentPorts> {
        let fragments = self.fragments.borrow();
        let first = fragments.get(key).filter(|first| first.datagram == *datagram);
        first.map(|first| first.ports)
    }

    fn replace_fragment(&self, key: &FragmentKey, first: &FirstFragment) {
        self.fragments.borrow_mut().insert(*key, *first);
    }

    fn has_own_socket(&self, key: &FlowKey) -> bool {
        self.own_ports.contains(&key.dport.number())
    }

    fn has_own_connection(&self, key: &FlowKey) -> bool {
        self.own_connections.contains(key)
    }

    fn socket_peer(&self, key: &SocketKey) -> Option<SocketPeer> {
        self.socket_peers.borrow().get(key).copied()
    }

    fn replace_socket_peer(&self, key: &SocketKey, peer: &SocketPeer) {
        self.socket_peers.borrow_mut().insert(*key, *peer);
    }

    fn pods_reply_outside(&self) {
        self.outside.set(true);
    }

    fn node_replies_outside(&self) {
        self.outside_to_node.set(true);
    }

    fn clock(&self) -> u64 {
        self.clock.get()
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
