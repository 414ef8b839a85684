//! The maps as the decisions read and write them.
//!
//! In a dry run every look-up is real and no map is written.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use proxy_common::decide::PacketContext;
use proxy_common::decide::fragment::Passage;
use proxy_common::decide::packet::Entry;
use proxy_common::maps::{
    AddressFlags, Affinity, AffinityKey, Backend, Config, Datagram, FirstFragment, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, HostPort, HostPortKey, InUse, Pod, PodLink,
    RangeFlags, Reason, RecentCount, Share, Slot, SocketKey, SocketPeer,
};
use proxy_common::packet::{Headers, Packet};
use proxy_common::{Ip, Tables, protocol};

use crate::kernel::{self, Skb, array_element, read};
use crate::maps::{
    ADDRESSES, AFFINITY, BACKENDS, CONFIG, FLOWS, FRAGMENTS, FRONTENDS, HOST_PORTS, IN_USE, NEIGHBOURS,
    NEW_FLOWS, POD_LINKS, POD_RANGES, PODS, SHARES, SLOTS, SOCKET_PEERS, SOURCE_RANGES, STREAMS, UNANSWERED,
};
use crate::stage;

/// The maps of the kernel.
#[derive(Clone, Copy)]
pub struct KernelMaps {
    /// Whether the maps may not be written.
    pub dry_run: bool,
    /// Whether the caller settles the work that a packet's notes leave, so that one stage calls few others.
    pub settles_later: bool,
    /// The packet that the decision is about; null in a socket hook.
    packet: *mut __sk_buff,
}

impl KernelMaps {
    /// The maps in a socket hook.
    pub const HOOK: Self = Self {
        dry_run: false,
        settles_later: false,
        packet: core::ptr::null_mut(),
    };

    /// The same maps, in a stage whose caller settles.
    #[inline(always)]
    pub const fn settling_later(self) -> Self {
        Self {
            settles_later: true,
            ..self
        }
    }

    /// The same maps, read-only if `dry_run`.
    #[inline(always)]
    pub const fn dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
    }

    /// The maps for a packet.
    #[inline(always)]
    pub const fn of(skb: &Skb<'_>, dry_run: bool) -> Self {
        Self {
            dry_run,
            settles_later: false,
            packet: skb.0.skb.skb,
        }
    }
}

impl Tables for KernelMaps {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get_ptr(0).map(array_element)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        FRONTENDS.get_ptr(key).map(kernel::read_frontend)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        SLOTS.get_ptr(index).map(read)
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend> {
        BACKENDS.get_ptr(id).map(read)
    }

    #[inline(always)]
    fn address(&self, address: &Ip) -> AddressFlags {
        AddressFlags(ADDRESSES.get_ptr(address).map_or(0, read))
    }

    #[inline(always)]
    fn range(&self, address: &Ip) -> RangeFlags {
        RangeFlags(POD_RANGES.get(Key::new(128, *address)).copied().unwrap_or(0))
    }

    #[inline(always)]
    fn is_in_use(&self, table: u32) -> bool {
        IN_USE.get_ptr(table).is_some_and(|used| read(used) != 0)
    }

    #[inline(always)]
    fn pod(&self, address: &Ip) -> Option<Pod> {
        PODS.get_ptr(address).map(read)
    }

    #[inline(always)]
    fn pod_link(&self, interface: u32) -> Option<PodLink> {
        POD_LINKS.get_ptr(interface).map(read)
    }

    #[inline(always)]
    fn host_port(&self, key: &HostPortKey) -> Option<HostPort> {
        HOST_PORTS.get_ptr(key).map(read)
    }

    #[inline(always)]
    fn is_allowed(&self, service: u32, client: &Ip) -> bool {
        let [a, b, c, d] = client.v6_words();
        SOURCE_RANGES.get(Key::new(160, [service, a, b, c, d])).is_some()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        AFFINITY.get_ptr(key).map(read)
    }

    #[inline(always)]
    fn replace_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        if !self.dry_run {
            let _ = AFFINITY.insert(key, affinity, 0);
        }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey, into: &mut Flow) -> bool {
        protected(key)
            .or_else(|| NEW_FLOWS.get_ptr(key))
            .map(|flow| kernel::copy_flow(flow, into))
            .is_some()
    }

    #[inline(always)]
    fn has_flow(&self, key: &FlowKey) -> bool {
        protected(key).or_else(|| NEW_FLOWS.get_ptr(key)).is_some()
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        if protected(key).is_some() {
            return false;
        }
        if self.dry_run {
            return NEW_FLOWS.get_ptr(key).is_none();
        }
        NEW_FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        if self.dry_run {
            return true;
        }
        if !flow.state().is_protected() {
            return NEW_FLOWS.insert(key, flow, 0).is_ok();
        }
        if has_connections(key.protocol) {
            FLOWS.insert(key, flow, 0).is_ok()
        } else {
            STREAMS.insert(key, flow, 0).is_ok()
        }
    }

    #[inline(always)]
    fn touch_flow(&self, key: &FlowKey, now: u32, state: u8, sequence: u32, fin: u32) -> bool {
        if self.dry_run {
            return true;
        }
        let protected = if has_connections(key.protocol) {
            FLOWS.get_ptr_mut(key)
        } else {
            STREAMS.get_ptr_mut(key)
        };
        let found = protected.or_else(|| NEW_FLOWS.get_ptr_mut(key));
        found
            .map(|flow| kernel::touch_flow(flow, now, state, sequence, fin))
            .is_some()
    }

    #[inline(always)]
    fn forget_flow(&self, key: &FlowKey, protected: bool) {
        if !self.dry_run {
            let _ = match (protected, has_connections(key.protocol)) {
                (false, _) => NEW_FLOWS.remove(key),
                (true, true) => FLOWS.remove(key),
                (true, false) => STREAMS.remove(key),
            };
        }
    }

    #[inline(always)]
    fn settle(&self, _ctx: &mut PacketContext) {
        if !self.settles_later && !self.dry_run {
            stage::settle();
        }
    }

    #[inline(always)]
    fn take_share(&self, config: &Config, client: &Ip, protocol: u8) -> bool {
        let connections = has_connections(protocol);
        let taken = SHARES.get_ptr_mut(client);
        let all = SHARES.get_ptr_mut(Share::ALL);
        let [used, of_all] = [taken, all].map(|share| kernel::used_of(share, connections));
        if !config.has_share(protocol, used, of_all, self.is_own_pod(client)) {
            if used >= Share::limit(config, protocol) {
                kernel::note_refusal(taken, connections);
            }
            return false;
        }
        add_share(client, taken, connections) && add_share(&Share::ALL, all, connections)
    }

    #[inline(always)]
    fn return_share(&self, client: &Ip, protocol: u8) {
        if self.dry_run {
            return;
        }
        for key in [client, &Share::ALL] {
            if let Some(share) = SHARES.get_ptr_mut(key) {
                kernel::return_one(share, has_connections(protocol));
            }
        }
    }

    #[inline(always)]
    fn note_unreplied(&self, config: &Config, client: &Ip) -> bool {
        let now = self.now();
        let Some(unreplied) = UNANSWERED.get_ptr_mut(client) else {
            let first = RecentCount::first(now);
            if !self.dry_run {
                // If the insertion fails, the flow is not counted.
                let _ = UNANSWERED.insert(client, &first, 0);
            }
            return config.unreplied_share > 0;
        };
        if self.dry_run {
            return read(unreplied).at(now) < config.unreplied_share;
        }
        kernel::count_recent(unreplied, now, config.unreplied_share)
    }

    #[inline(always)]
    fn note_replied(&self, client: &Ip) {
        if !self.dry_run
            && let Some(unreplied) = UNANSWERED.get_ptr_mut(client)
        {
            kernel::count_replied(unreplied);
        }
    }

    #[inline(always)]
    fn lacks_neighbour(&self, _ctx: &PacketContext, is_translated: bool) -> bool {
        stage::lacks_neighbour(self.packet, is_translated)
    }

    #[inline(always)]
    fn note_neighbour(&self, config: &Config, interface: u32) -> bool {
        let now = self.now();
        let Some(recent) = NEIGHBOURS.get_ptr_mut(interface) else {
            let first = RecentCount::first(now);
            let _ = NEIGHBOURS.insert(&interface, &first, 0);
            return config.neighbour_share > 0;
        };
        kernel::count_recent(recent, now, config.neighbour_share)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey, datagram: &Datagram) -> Option<FragmentPorts> {
        let first = FRAGMENTS.get_ptr(key)?;
        kernel::ports_of(first, datagram)
    }

    #[inline(always)]
    fn replace_fragment(&self, key: &FragmentKey, first: &FirstFragment) {
        if !self.dry_run {
            let _ = FRAGMENTS.insert(key, first, 0);
        }
    }

    #[inline(always)]
    fn complete_fragment(&self, _ctx: &mut PacketContext, passage: Passage) {
        stage::complete_fragment(passage);
    }

    #[inline(always)]
    fn note_fragment(&self, _ctx: &mut PacketContext, passage: Passage) {
        if !self.dry_run {
            stage::note_fragment(passage);
        }
    }

    #[inline(always)]
    fn admit<P: Packet + ?Sized>(
        &self,
        _config: &Config,
        _packet: &P,
        _ctx: &mut PacketContext,
        entry: Entry,
    ) -> Option<Reason> {
        stage::admit_packet(self.packet, entry)
    }

    #[inline(always)]
    fn note(&self, _ctx: &mut PacketContext) -> u32 {
        stage::note(self.dry_run)
    }

    #[inline(always)]
    fn is_error_of_a_flow<P: Packet + ?Sized>(&self, _ctx: &mut PacketContext, _packet: &P) -> bool {
        stage::is_error_of_a_flow(self.packet)
    }

    #[inline(always)]
    fn may_begin(&self, _config: &Config, _ctx: &mut PacketContext, entry: Entry) -> Result<(), Reason> {
        stage::may_begin(entry)
    }

    #[inline(always)]
    fn prepare(&self, _config: &Config, _ctx: &mut PacketContext, entry: Entry) -> Result<(), Reason> {
        stage::prepare(self.dry_run, entry)
    }

    #[inline(always)]
    fn try_port(&self, _config: &Config, _ctx: &mut PacketContext, attempt: u32) -> bool {
        stage::try_port(self.packet, self.dry_run, attempt)
    }

    #[inline(always)]
    fn is_own_pod(&self, address: &Ip) -> bool {
        PODS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn choose_host_port(&self, _config: &Config, _ctx: &mut PacketContext) -> bool {
        self.is_in_use(InUse::HOST_PORTS) && stage::choose_host_port()
    }

    #[inline(always)]
    fn note_direct(&self, _config: &Config, _ctx: &mut PacketContext) {
        if !self.dry_run {
            stage::note_direct();
        }
    }

    #[inline(always)]
    fn passes_reverse_path(&self, _headers: &Headers, interface: u32) -> bool {
        stage::passes_reverse_path(self.packet, interface)
    }

    #[inline(always)]
    fn output_device(&self, _ctx: &PacketContext) -> u32 {
        stage::output_device(self.packet)
    }

    #[inline(always)]
    fn has_own_socket(&self, key: &FlowKey) -> bool {
        let tc = TcContext::new(self.packet);
        Skb(&tc).finds_socket(key)
    }

    #[inline(always)]
    fn has_own_connection(&self, _key: &FlowKey) -> bool {
        stage::has_own_connection(self.packet)
    }

    #[inline(always)]
    fn socket_peer(&self, key: &SocketKey) -> Option<SocketPeer> {
        SOCKET_PEERS.get_ptr(key).map(read)
    }

    #[inline(always)]
    fn replace_socket_peer(&self, key: &SocketKey, peer: &SocketPeer) {
        let _ = SOCKET_PEERS.insert(key, peer, 0);
    }

    #[inline(always)]
    fn pods_reply_outside(&self) {
        if !self.dry_run
            && let Some(config) = CONFIG.get_ptr_mut(0)
        {
            kernel::set_pods_reply_outside(config);
        }
    }

    #[inline(always)]
    fn node_replies_outside(&self) {
        if !self.dry_run
            && let Some(config) = CONFIG.get_ptr_mut(0)
        {
            kernel::set_node_replies_outside(config);
        }
    }

    #[inline(always)]
    fn clock(&self) -> u64 {
        kernel::clock()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        kernel::random()
    }
}

/// Counts one more flow in a share, whose entry may not exist yet.
#[inline(always)]
fn add_share(key: &Ip, share: Option<*mut Share>, connections: bool) -> bool {
    let Some(share) = share else {
        let first = Share {
            connections: u32::from(connections),
            streams: u32::from(!connections),
        };
        return SHARES.insert(key, &first, 0).is_ok();
    };
    let taken = kernel::share_of(share, connections);
    kernel::set_number(taken, read(taken) + 1);
    true
}

#[inline(always)]
const fn has_connections(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::SCTP)
}

/// The entry of a packet in the table that evicts nothing.
#[inline(always)]
fn protected(key: &FlowKey) -> Option<*const Flow> {
    if has_connections(key.protocol) {
        FLOWS.get_ptr(key)
    } else {
        STREAMS.get_ptr(key)
    }
}
