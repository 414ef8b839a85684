//! The decisions: where a packet goes, and which peer a socket gets.
//!
//! [`Tables`] is the interface through which a decision reads and writes the maps. One module holds each
//! decision:
//!
//! - [`admission`]: the packets that may enter at a hook. [`tunnel`]: those that may enter by the port of the
//!   nodes' tunnel. [`sender`]: those that may leave a pod. [`offload`]: those that may leave it with a
//!   checksum that the NIC writes.
//! - [`packet`]: packets that enter the node's part of the network. `no_frontend`: those among them that
//!   go to no frontend. [`egress`]: packets that leave the node.
//! - [`socket`]: the socket hooks.
//! - [`select`]: the choice of a backend. [`host_port`]: the pod behind a host port.
//! - `translate`: the translation of a new flow. `conntrack`: the conntrack entries of a flow, from its begin
//!   to its end.
//! - `local_socket`: packets that sockets of the node send from ports of masqueraded flows.
//! - [`neighbour`]: the packets for which the node may resolve a neighbour. [`limit`]: the packets that go
//!   through a bandwidth limiter first.
//! - `fragment`: the ports of later fragments. `related`: ICMP errors. [`gateway`]: the replies of a pod's
//!   gateway.
//! - [`local`]: packets that go straight into another pod.

pub mod admission;
pub mod conntrack;
pub mod decision;
pub mod egress;
mod flow_state;
pub mod fragment;
pub mod gateway;
pub mod host_port;
pub mod limit;
pub mod local;
mod local_socket;
pub mod neighbour;
mod no_frontend;
pub mod offload;
pub mod packet;
mod related;
pub mod select;
pub mod sender;
pub mod socket;
mod translate;
pub mod tunnel;

pub use conntrack::settle;
pub use egress::note_direct;
pub use host_port::choose as choose_host_port;
pub use translate::{prepare, try_port};

use self::decision::Entry;
use self::select::Selected;
use crate::maps::{
    AddressFlags, Affinity, AffinityKey, Backend, Config, Datagram, FirstFragment, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, HostPort, HostPortKey, Pod, PodLink, RangeFlags,
    Reason, Slot, SocketKey, SocketPeer,
};
use crate::packet::{Headers, Packet, parse_into};
use crate::{Ip, Port};

/// The tables as a decision sees them.
///
/// Every look-up returns a copy, because a value in a map may change at any time.
pub trait Tables {
    /// The node's configuration.
    fn config(&self) -> Option<&Config>;
    /// The frontend a client addresses.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// One slot of a slice.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// A backend by id.
    fn backend(&self, id: u32) -> Option<Backend>;
    /// The flags of an address; none if the address is unknown.
    fn address(&self, address: &Ip) -> AddressFlags;
    /// The flags of the range that contains an address; none if no range does.
    fn range(&self, address: &Ip) -> RangeFlags;
    /// Whether the address belongs to a pod of any node of this cluster.
    fn is_pod(&self, address: &Ip) -> bool {
        self.range(address).has(RangeFlags::PODS)
    }
    /// Whether one of the plugin's tables ever held an entry, see [`crate::maps::InUse`].
    fn is_in_use(&self, table: u32) -> bool;
    /// The pod of this node that has an address, if our plugin set it up.
    fn pod(&self, address: &Ip) -> Option<Pod>;
    /// The packets that the pod behind an interface may send, if our plugin set up that interface.
    fn pod_link(&self, interface: u32) -> Option<PodLink>;
    /// The pod and port that a port of the node leads to.
    fn host_port(&self, key: &HostPortKey) -> Option<HostPort>;
    /// Whether a client may use those frontends of a service that are open to some ranges only.
    fn is_allowed(&self, service: u32, client: &Ip) -> bool;
    /// The backend of a client's last connection.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Stores the backend of a client.
    fn replace_affinity(&self, key: &AffinityKey, affinity: &Affinity);
    /// Copies the conntrack entry of a packet, the confirmed one if there are two; false if there is none.
    fn flow(&self, key: &FlowKey, into: &mut Flow) -> bool;
    /// Whether there is a conntrack entry.
    fn has_flow(&self, key: &FlowKey) -> bool;
    /// Stores a new flow unless there is an entry with this key; false if there is.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Stores a flow in the table of its state and overwrites an entry with this key; false if the table is
    /// full.
    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Sets the time of last use of an entry and adds bits to its state. Sets [`Flow::sequence`] and
    /// [`Flow::fin`] unless they are 0. Returns false if there is no entry.
    fn touch_flow(&self, key: &FlowKey, now: u32, state: u8, sequence: u32, fin: u32) -> bool;
    /// Removes an entry, from the table that evicts nothing (`protected`) or from `NEW_FLOWS`.
    fn forget_flow(&self, key: &FlowKey, protected: bool);
    /// Completes the work that [`conntrack::note`] has left, see [`settle`]. The default is complete; an
    /// implementor overrides it only to give the verifier a function of its own.
    fn settle(&self, ctx: &mut PacketContext)
    where
        Self: Sized,
    {
        if let Some(config) = self.config() {
            settle(self, config, ctx);
        }
    }
    /// Counts one more protected flow of a client. Returns false and counts nothing if the client's share is
    /// used up.
    fn take_share(&self, config: &Config, client: &Ip, protocol: u8) -> bool;
    /// Counts one protected flow less.
    fn return_share(&self, client: &Ip, protocol: u8);
    /// Counts one more flow of a client that holds a source port and waits for a reply. Returns false and
    /// counts nothing if the client has too many.
    fn note_unreplied(&self, config: &Config, client: &Ip) -> bool;
    /// Counts one waiting flow less.
    fn note_replied(&self, client: &Ip);
    /// Whether the node would have to resolve the neighbour that the packet goes to, before or after
    /// translation.
    fn lacks_neighbour(&self, ctx: &PacketContext, is_translated: bool) -> bool;
    /// Counts one more packet for which the node resolves a neighbour. The key is the index of the pod's
    /// interface, or a service port. Returns false and counts nothing if there are too many.
    fn note_neighbour(&self, config: &Config, key: u32) -> bool;
    /// The ports of a datagram whose first fragment was seen; none if its place holds another datagram.
    fn fragment(&self, key: &FragmentKey, datagram: &Datagram) -> Option<FragmentPorts>;
    /// Stores a first fragment for the later ones, over the datagram that its place holds.
    fn replace_fragment(&self, key: &FragmentKey, first: &FirstFragment);
    /// Fills in the ports of a later fragment, see [`fragment::fill_in`]. Overridden as [`Self::settle`].
    fn complete_fragment(&self, ctx: &mut PacketContext, passage: fragment::Passage)
    where
        Self: Sized,
    {
        fragment::fill_in(self, ctx, passage);
    }
    /// Stores the ports of a first fragment, see [`fragment::keep`]. Overridden as [`Self::settle`].
    fn note_fragment(&self, ctx: &mut PacketContext, passage: fragment::Passage)
    where
        Self: Sized,
    {
        fragment::keep(self, ctx, passage);
    }
    /// Whether a packet is admitted, see [`admission::admit`]. Overridden as [`Self::settle`].
    fn admit<P: Packet + ?Sized>(
        &self,
        config: &Config,
        packet: &P,
        ctx: &mut PacketContext,
        entry: Entry,
    ) -> Option<Reason>
    where
        Self: Sized,
    {
        admission::admit(self, config, packet, ctx, entry)
    }
    /// Writes a packet into its flow's entries, see [`conntrack::note`]. Overridden as [`Self::settle`].
    fn note(&self, ctx: &mut PacketContext) -> u32
    where
        Self: Sized,
    {
        conntrack::note(self, ctx)
    }
    /// Whether an ICMP error is about a flow that is translated here, see [`packet::is_error_of_a_flow`].
    /// Overridden as [`Self::settle`].
    fn is_error_of_a_flow<P: Packet + ?Sized>(&self, ctx: &mut PacketContext, packet: &P) -> bool
    where
        Self: Sized,
    {
        packet::is_error_of_a_flow(self, ctx, packet)
    }
    /// Whether a flow to the selected backend may begin, see [`packet::may_begin`]. Overridden as
    /// [`Self::settle`].
    fn may_begin(&self, config: &Config, ctx: &mut PacketContext, entry: Entry) -> Result<(), Reason>
    where
        Self: Sized,
    {
        packet::may_begin(self, config, ctx, entry)
    }
    /// Prepares a new flow, see [`prepare`]. Overridden as [`Self::settle`].
    fn prepare(&self, config: &Config, ctx: &mut PacketContext, entry: Entry) -> Result<(), Reason>
    where
        Self: Sized,
    {
        prepare(self, config, ctx, entry)
    }
    /// Whether a pod of this node has an address, if our plugin set it up.
    fn is_own_pod(&self, address: &Ip) -> bool {
        self.pod(address).is_some()
    }
    /// Selects the pod behind a host port, see [`choose_host_port`]. Overridden as [`Self::settle`].
    fn choose_host_port(&self, config: &Config, ctx: &mut PacketContext) -> bool
    where
        Self: Sized,
    {
        choose_host_port(self, config, ctx)
    }
    /// Stores a flow from outside to a pod's own address, see [`note_direct`]. Overridden as
    /// [`Self::settle`].
    fn note_direct(&self, config: &Config, ctx: &mut PacketContext)
    where
        Self: Sized,
    {
        note_direct(self, config, ctx);
    }
    /// Whether the output device of the route to the packet's source is this interface.
    fn passes_reverse_path(&self, headers: &Headers, interface: u32) -> bool;
    /// The output device of the route to the flow's destination; 0 if there is no route.
    fn output_device(&self, ctx: &PacketContext) -> u32;
    /// Whether the kernel would deliver packets with this key to a socket of the node.
    fn has_own_socket(&self, key: &FlowKey) -> bool;
    /// Whether packets with this key belong to a connected socket of the node.
    fn has_own_connection(&self, key: &FlowKey) -> bool;
    /// Tries a source port for a new flow, see [`try_port`]. Overridden as [`Self::settle`].
    fn try_port(&self, config: &Config, ctx: &mut PacketContext, attempt: u32) -> bool
    where
        Self: Sized,
    {
        try_port(self, config, ctx, attempt)
    }
    /// The translation of an unconnected socket's peer.
    fn socket_peer(&self, key: &SocketKey) -> Option<SocketPeer>;
    /// Stores the translation of an unconnected socket's peer.
    fn replace_socket_peer(&self, key: &SocketKey, peer: &SocketPeer);
    /// From now on, pods send replies to clients whose requests the uplink translated without masquerading.
    fn pods_reply_outside(&self);
    /// From now on, the node itself sends replies to clients whose requests the uplink translated without
    /// masquerading.
    fn node_replies_outside(&self);
    /// Nanoseconds since boot.
    fn clock(&self) -> u64;
    /// Coarse time: ticks of about one second (2^30 ns) since boot.
    fn now(&self) -> u32 {
        (self.clock() >> 30) as u32
    }
    /// A random number.
    fn random(&self) -> u32;
}

/// The words of an `ICMPv6` error that its checksum covers: pseudo-header, message, and the packet that it
/// carries.
pub const SCRATCH_WORDS: usize = 27;

/// The packet context: what a decision about a packet reads and writes.
///
/// A kernel program has 512 bytes of stack, which a few IPv6 addresses fill. The programs therefore keep this
/// in a per-CPU map. Every field is written before it is read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PacketContext {
    /// The packet's headers, from the parser.
    pub headers: Headers,
    /// The packet's conntrack key.
    pub key: FlowKey,
    /// The packet's translation, after [`packet::Decision::Translate`].
    pub flow: Flow,
    /// The packet that an ICMP error carries, after [`packet::Decision::TranslateError`].
    pub embedded: Headers,
    /// The source address that such an error gets.
    pub error_source: Ip,
    /// The next hop of the route, as words of an address of `next_hop_family`.
    pub next_hop: [u32; 4],
    /// `AF_INET` or `AF_INET6`; not always the packet's family (RFC 8950).
    pub next_hop_family: u32,
    /// The MTU of the link that the packet is too big for.
    pub mtu: u32,
    /// Scratch memory in which a program sums up a checksum after the decision.
    pub scratch: [u32; SCRATCH_WORDS],
    /// The pod that the packet goes straight to, after [`local::deliver_locally`].
    pub receiver: Pod,
    /// The cookie of the socket that sends the packet; 0 if unknown. The socket hooks may translate an
    /// unconnected socket too.
    pub socket: u64,
    /// The interface that the packet is on.
    pub interface: u32,
    /// The interface by which a packet on its way out has arrived; 0 if the node itself sends it.
    pub arrived_by: u32,
    /// The output device of a new flow, where its source address depends on that.
    pub out: u32,
    /// Whether the frame is a broadcast or a multicast on its link.
    pub is_for_group: u32,
    /// Whether the packet is one that the nodes' tunnel may take, see [`tunnel`].
    pub is_for_tunnel: u32,
    /// What [`settle`] has to do: [`Self::MOVES`] with the flow's old state, [`Self::FIRST_REPLY`], or
    /// nothing.
    pub unsettled: u32,
    selected: Selected,
    reply_key: FlowKey,
    reply: Flow,
    found: Flow,
    /// The place of the datagram that the packet is a fragment of.
    fragment_key: FragmentKey,
    /// The datagram that the packet is a fragment of.
    first_fragment: FirstFragment,
    /// Of the source ports tried so far, the one whose flow gives way most readily, and the rank of that flow
    /// (see `reuse_rank` in `translate`).
    reuse_port: Port,
    reserved: [u8; 2],
    reuse_rank: u32,
    /// The side that begins the flow, as shares are counted.
    client: Ip,
    /// Whether the client's own source port may be kept.
    keeps_port: u32,
}

impl PacketContext {
    /// The destination of the new flow.
    #[inline(always)]
    pub const fn destination(&self) -> &Ip {
        &self.selected.backend.address
    }

    /// The flow has to move to another table, from that of the state in the lowest byte.
    pub const MOVES: u32 = 1 << 8;
    /// The first reply came to a flow with a source port of the node.
    pub const FIRST_REPLY: u32 = 1 << 9;

    /// The context of a parsed packet.
    pub const fn new(headers: Headers) -> Self {
        let key = headers.flow_key();
        Self {
            headers,
            key,
            flow: Flow::EMPTY,
            embedded: headers,
            error_source: Ip::UNSPECIFIED,
            next_hop: [0; 4],
            next_hop_family: 0,
            mtu: 0,
            scratch: [0; SCRATCH_WORDS],
            receiver: Pod::EMPTY,
            socket: 0,
            interface: 0,
            arrived_by: 0,
            out: 0,
            is_for_group: 0,
            is_for_tunnel: 0,
            unsettled: 0,
            selected: Selected::NONE,
            reply_key: key,
            reply: Flow::EMPTY,
            found: Flow::EMPTY,
            fragment_key: FragmentKey::EMPTY,
            first_fragment: FirstFragment::EMPTY,
            reuse_port: Port::new(0),
            reserved: [0; 2],
            reuse_rank: 0,
            client: Ip::UNSPECIFIED,
            keeps_port: 0,
        }
    }

    /// Starts on another packet, whose network header is at `l3`.
    #[inline(always)]
    pub fn start<P: Packet + ?Sized>(&mut self, packet: &P, ether_type: u16, l3: u32) -> Result<(), Reason> {
        self.is_for_tunnel = 0;
        parse_into(packet, ether_type, l3, &mut self.headers)?;
        self.key = self.headers.flow_key();
        self.socket = 0;
        Ok(())
    }
}

#[cfg(test)]
mod packet_tests;
#[cfg(test)]
mod socket_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
